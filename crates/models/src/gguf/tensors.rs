//! From GGUF's tensors to those of Hugging Face.

use lowmem::{Checkpoint, Spelled, Step, TensorInfo};

use crate::{
    Architecture, Config, Error, Family, Layer, NormKind, Point, Projections, Result,
    families::{ExpertModule, Layout},
};

/// Tensors outside of the layers.
const OUTSIDE: [(&str, Point); 3] = [
    ("token_embd", Point::TokenEmbedding),
    ("position_embd", Point::PositionEmbedding),
    ("output_norm", Point::FinalNorm),
];

/// Tensors of a layer.
const OF_A_LAYER: [(&str, Point); 16] = [
    ("attn_norm", Point::Norm1),
    ("attn_q", Point::Query),
    ("attn_k", Point::Key),
    ("attn_v", Point::Value),
    ("attn_qkv", Point::QueryKeyValue),
    ("attn_q_norm", Point::QueryNorm),
    ("attn_k_norm", Point::KeyNorm),
    ("attn_output", Point::AttentionOutput),
    ("post_attention_norm", Point::AttentionNorm),
    ("ffn_norm", Point::Norm2),
    ("ffn_gate_inp", Point::Router),
    ("ffn_gate", Point::MlpGate),
    ("ffn_up", Point::MlpInput),
    ("ffn_down", Point::MlpOutput),
    ("post_ffw_norm", Point::MlpNorm),
    ("attn_sinks", Point::Scores),
];

/// Tensors of all experts of a layer.
const OF_EXPERTS: [(&str, Point); 3] =
    [("ffn_gate_exps", Point::MlpGate), ("ffn_up_exps", Point::MlpInput), ("ffn_down_exps", Point::MlpOutput)];

/// Tensors that are settings, and have been read.
const SETTINGS: [&str; 4] = ["rope_freqs", "rope_factors_short", "rope_factors_long", "attn_rot_embd"];

/// The checkpoint with its tensors as the config's family has them. What is not known keeps its name.
pub(crate) fn spelled(checkpoint: &Checkpoint, config: &Config) -> Result<Checkpoint> {
    let architecture = checkpoint.gguf().and_then(|metadata| metadata.get_str("general.architecture").ok().flatten());
    let spelling = Spelling {
        family: config.family,
        architecture: &config.architecture,
        pairs: architecture == Some("llama"),
        joined: config
            .architecture
            .layers
            .first()
            .is_some_and(|layer| layer.attention.projections != Projections::Separate),
    };
    checkpoint.respelled(|info| spelling.of(info)).map_err(Error::from)
}

struct Spelling<'a> {
    family: &'static Family,
    architecture: &'a Architecture,
    /// Whether rows of queries and keys stand in pairs.
    pairs: bool,
    /// Whether one matrix gives queries, keys and values.
    joined: bool,
}

impl Spelling<'_> {
    fn of(&self, info: &TensorInfo) -> Vec<Spelled> {
        let known = || {
            let (module, kind) = info.name.rsplit_once('.')?;
            match module.strip_prefix("blk.") {
                Some(in_layer) => {
                    let (number, module) = in_layer.split_once('.')?;
                    let index: usize = number.parse().ok()?;
                    self.of_layer(index, self.architecture.layers.get(index)?, module, kind)
                }
                None => self.outside(module, kind),
            }
        };
        known().unwrap_or_else(|| vec![Spelled::same(info.name.as_str())])
    }

    fn outside(&self, module: &str, kind: &str) -> Option<Vec<Spelled>> {
        if SETTINGS.contains(&module) {
            return Some(Vec::new());
        }
        if module == "output" {
            return Some(vec![Spelled::same(format!("{}.{kind}", self.family.heads.first()?))]);
        }
        let point = point_of(&OUTSIDE, module)?;
        let name = format!("{}{}.{kind}", self.family.prefix(), self.family.module(point)?);
        let steps =
            if point == Point::FinalNorm { norm_steps(self.architecture.final_norm?.kind, kind) } else { Vec::new() };
        Some(vec![Spelled { name, slice: None, steps }])
    }

    fn of_layer(&self, index: usize, layer: &Layer, module: &str, kind: &str) -> Option<Vec<Spelled>> {
        if SETTINGS.contains(&module) {
            return Some(Vec::new());
        }
        let prefix = format!("{}{}.{index}.", self.family.prefix(), self.family.layers);
        if let Some(point) = point_of(&OF_EXPERTS, module) {
            return self.of_experts(&prefix, layer, point, kind);
        }
        let point = self.own_point(point_of(&OF_A_LAYER, module)?);
        if point == Point::Scores {
            return Some(vec![Spelled::same(format!("{prefix}{}", self.family.sinks))]);
        }
        if point == Point::QueryKeyValue && !self.joined {
            return None;
        }
        let name = format!("{prefix}{}.{kind}", self.family.module(point)?);
        Some(vec![Spelled { name, slice: None, steps: self.steps(layer, point, kind) }])
    }

    /// Where this family has what others have elsewhere.
    fn own_point(&self, point: Point) -> Point {
        let joined_input = point == Point::MlpInput && self.family.module(point).is_none();
        match point {
            _ if joined_input => Point::MlpGateInput,
            Point::AttentionNorm if self.family.module(point).is_none() => Point::Norm2,
            point => point,
        }
    }

    fn steps(&self, layer: &Layer, point: Point, kind: &str) -> Vec<Step> {
        let attention = &layer.attention;
        let norms = [layer.attention_norms, layer.mlp_norms].into_iter();
        let mut norms = norms.flat_map(|norms| [norms.before, norms.after, norms.stream]).flatten();
        match point {
            Point::Norm1 | Point::Norm2 | Point::AttentionNorm | Point::MlpNorm => {
                norms.next().map_or(Vec::new(), |norm| norm_steps(norm.kind, kind))
            }
            Point::QueryNorm | Point::KeyNorm => {
                attention.query_key_norm.map_or(Vec::new(), |of| norm_steps(of.norm.kind, kind))
            }
            Point::Query if self.pairs => vec![Step::PairsToHalves { heads: attention.heads }],
            Point::Key if self.pairs => vec![Step::PairsToHalves { heads: attention.kv_heads }],
            Point::QueryKeyValue if attention.projections == Projections::HeadByHead => {
                vec![Step::HeadByHead { heads: attention.heads }]
            }
            _ if self.family.layout == Layout::InOut && kind == "weight" => vec![Step::Transpose],
            _ => Vec::new(),
        }
    }

    fn of_experts(&self, prefix: &str, layer: &Layer, point: Point, kind: &str) -> Option<Vec<Spelled>> {
        let count = layer.mlp.experts?.count;
        let spelled = |expert: i64| {
            Some(match self.family.expert_module(point, usize::try_from(expert).ok()?)? {
                ExpertModule::Own(module) => {
                    Spelled { name: format!("{prefix}{module}.{kind}"), slice: Some(expert), steps: Vec::new() }
                }
                ExpertModule::Shared(tensor) if kind == "weight" => {
                    let turned = self.family.expert_layout == Layout::InOut;
                    let steps = if turned { vec![Step::Transpose] } else { Vec::new() };
                    Spelled { name: format!("{prefix}{tensor}"), slice: None, steps }
                }
                ExpertModule::Shared(tensor) => Spelled::same(format!("{prefix}{tensor}_{kind}")),
            })
        };
        let first = spelled(0)?;
        if first.slice.is_none() {
            return Some(vec![first]);
        }
        (0..count).map(spelled).collect()
    }
}

fn point_of(table: &[(&str, Point)], module: &str) -> Option<Point> {
    table.iter().find(|(name, _)| *name == module).map(|(_, point)| *point)
}

fn norm_steps(norm: NormKind, kind: &str) -> Vec<Step> {
    if norm == NormKind::RmsUnitOffset && kind == "weight" { vec![Step::SubtractOne] } else { Vec::new() }
}
