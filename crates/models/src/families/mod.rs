//! What tells one model family from another, as data: one file each.

mod gemma;
mod gpt2;
mod gpt_neo;
mod gpt_neox;
mod gpt_oss;
mod gptj;
mod json;
mod llama;
mod mixtral;
mod olmo2;
mod opt;
mod phi;
mod phi3;
mod qwen3_moe;

use serde_json::Value;

use crate::{Config, Error, Point, Result};

/// How a family reads its config and spells its tensors and modules.
///
/// A new family is a file with a value of this type, and a line in the list of them.
#[derive(Debug)]
pub struct Family {
    /// The `model_type`s of its configs.
    pub model_types: &'static [&'static str],
    /// What Hugging Face calls it.
    pub title: &'static str,
    /// Reads a config.
    pub(crate) read: fn(Value) -> Result<Config>,
    /// What stands before the names of the base model in a checkpoint, with the dot; the first is what `save_pretrained`
    /// writes. None at all is always tried.
    pub(crate) prefixes: &'static [&'static str],
    /// The module that holds the layers.
    pub(crate) layers: &'static str,
    /// Which way matrices lie in the checkpoint.
    pub(crate) layout: Layout,
    /// The modules that have weights, each with the point that its output is; within the layer, or the base model. In tables that
    /// families share.
    pub(crate) modules: &'static [&'static [(Point, &'static str)]],
    /// Names of the unembedding in checkpoints; the first is what `save_pretrained` writes.
    pub(crate) heads: &'static [&'static str],
    /// Modules without weights of their own whose output a point is.
    pub(crate) aliases: &'static [(Point, &'static [&'static str])],
    /// Tensors of a layer that checkpoints carry and that are no weights: causal masks of old versions.
    pub(crate) buffers: &'static [&'static str],
    /// The modules of one expert, as [`Family::modules`]; `{}` stands for its number. A name without it is that of one tensor
    /// that holds all of them, slice by slice; their biases have `_bias` after it.
    pub(crate) expert_modules: &'static [(Point, &'static str)],
    /// Which way the matrices of experts lie.
    pub(crate) expert_layout: Layout,
    /// The tensor of a layer with the sinks of its heads, where the family has any.
    pub(crate) sinks: &'static str,
    /// Beginnings of names that belong to other networks in the same file.
    pub(crate) foreign: &'static [&'static str],
}

/// Which way matrices lie in the checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Layout {
    /// `[in, out]`, GPT-2's `Conv1D`.
    InOut,
    /// `[out, in]`, `nn.Linear`.
    OutIn,
}

/// Where the weights of an expert are.
pub(crate) enum ExpertModule {
    /// In a module of its own.
    Own(String),
    /// In a tensor that holds those of all experts.
    Shared(&'static str),
}

/// All families.
pub(crate) const ALL: [&Family; 19] = [
    &gpt2::GPT2,
    &gpt_neo::GPT_NEO,
    &llama::LLAMA,
    &llama::MISTRAL,
    &llama::QWEN2,
    &llama::QWEN3,
    &gemma::GEMMA,
    &gemma::GEMMA2,
    &gemma::GEMMA3,
    &gemma::GEMMA3_IN_MULTIMODAL,
    &gpt_neox::GPT_NEOX,
    &gptj::GPTJ,
    &opt::OPT,
    &phi::PHI,
    &phi3::PHI3,
    &olmo2::OLMO2,
    &mixtral::MIXTRAL,
    &qwen3_moe::QWEN3_MOE,
    &gpt_oss::GPT_OSS,
];

impl Family {
    /// Every `model_type` that runs.
    pub fn supported() -> Vec<&'static str> {
        ALL.iter().flat_map(|family| family.model_types).copied().collect()
    }

    /// The family of a `model_type`.
    pub(crate) fn of(model_type: &str) -> Result<&'static Self> {
        let found = ALL.into_iter().find(|family| family.model_types.contains(&model_type));
        found.ok_or_else(|| Error::UnsupportedModelType { found: model_type.to_owned(), supported: Self::supported() })
    }

    /// What `save_pretrained` writes before the names of the base model, with the dot: `transformer.`, `model.`.
    pub fn prefix(&self) -> &'static str {
        self.prefixes.first().copied().unwrap_or("")
    }

    /// Which way matrices lie in a checkpoint.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// The family's own names of a point, its module's first.
    pub(crate) fn names_of(&self, point: Point) -> impl Iterator<Item = &'static str> + use<> {
        let module = self.module(point);
        let aliases =
            self.aliases.iter().filter(move |(of, _)| *of == point).flat_map(|(_, names)| names.iter().copied());
        module.into_iter().chain(aliases)
    }

    /// What stands before an expert's number in the names of its modules.
    pub(crate) fn expert_list(&self) -> Option<&'static str> {
        self.expert_modules.first().and_then(|(_, name)| name.split_once("{}")).map(|(list, _)| list)
    }

    /// Where the weights of an expert are, within its layer.
    pub(crate) fn expert_module(&self, point: Point, expert: usize) -> Option<ExpertModule> {
        let (_, name) = self.expert_modules.iter().find(|(of, _)| *of == point)?;
        Some(if name.contains("{}") {
            ExpertModule::Own(name.replace("{}", &expert.to_string()))
        } else {
            ExpertModule::Shared(name)
        })
    }

    /// The module whose weights make the value of a point.
    pub(crate) fn module(&self, point: Point) -> Option<&'static str> {
        self.modules.iter().copied().flatten().find(|(of, _)| *of == point).map(|(_, name)| *name)
    }

    /// A name without the longest prefix of the base model that it has; empty for the base model itself.
    pub(crate) fn without_prefix<'n>(&self, name: &'n str) -> &'n str {
        let strip = |prefix: &&str| {
            let bare = prefix.strip_suffix('.').unwrap_or(prefix);
            if name == bare { Some("") } else { name.strip_prefix(prefix) }
        };
        self.prefixes.iter().filter_map(strip).min_by_key(|rest| rest.len()).unwrap_or(name)
    }
}
