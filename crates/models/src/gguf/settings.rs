//! From metadata to a `config.json`.

use lowmem::{
    Checkpoint,
    gguf::{Metadata, Value as Entry},
};
use serde_json::{Map, Value, json};

use super::numbers;
use crate::{Error, Result};

/// What Hugging Face calls an architecture of GGUF's; with experts or without.
const ARCHITECTURES: [(&str, bool, &str); 13] = [
    ("llama", false, "llama"),
    ("llama", true, "mixtral"),
    ("qwen2", false, "qwen2"),
    ("qwen3", false, "qwen3"),
    ("qwen3moe", true, "qwen3_moe"),
    ("gemma", false, "gemma"),
    ("gemma2", false, "gemma2"),
    ("gemma3", false, "gemma3_text"),
    ("gpt2", false, "gpt2"),
    ("gptneox", false, "gpt_neox"),
    ("phi2", false, "phi"),
    ("phi3", false, "phi3"),
    ("olmo2", false, "olmo2"),
];
const GPT_OSS: (&str, bool, &str) = ("gpt-oss", true, "gpt_oss");

/// Fields of a config that are numbers, and the keys that they come from, after the architecture's name. A size that is an array
/// has one entry for each layer.
const SIZES: [(&str, &str); 14] = [
    ("num_hidden_layers", "block_count"),
    ("max_position_embeddings", "context_length"),
    ("hidden_size", "embedding_length"),
    ("intermediate_size", "feed_forward_length"),
    ("num_attention_heads", "attention.head_count"),
    ("num_key_value_heads", "attention.head_count_kv"),
    ("head_dim", "attention.key_length"),
    ("sliding_window", "attention.sliding_window"),
    ("num_local_experts", "expert_count"),
    ("num_experts_per_tok", "expert_used_count"),
    ("rms_norm_eps", "attention.layer_norm_rms_epsilon"),
    ("layer_norm_eps", "attention.layer_norm_epsilon"),
    ("attn_logit_softcapping", "attn_logit_softcapping"),
    ("final_logit_softcapping", "final_logit_softcapping"),
];

/// The keys that nothing stands in for.
const REQUIRED: [&str; 5] =
    ["block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count"];

/// GPT-2's own names of the same.
const GPT2: [(&str, &str); 6] = [
    ("num_hidden_layers", "n_layer"),
    ("max_position_embeddings", "n_positions"),
    ("hidden_size", "n_embd"),
    ("intermediate_size", "n_inner"),
    ("num_attention_heads", "n_head"),
    ("layer_norm_eps", "layer_norm_epsilon"),
];

/// What a GGUF file says of its model.
pub(super) struct Settings<'a> {
    checkpoint: &'a Checkpoint,
    metadata: &'a Metadata,
    architecture: &'a str,
    model_type: &'static str,
}

fn gguf_error(error: lowmem::gguf::GgufError) -> Error {
    Error::from(lowmem::Error::from(error))
}

impl<'a> Settings<'a> {
    pub(super) fn new(checkpoint: &'a Checkpoint, metadata: &'a Metadata) -> Result<Self> {
        let architecture = metadata.require_str("general.architecture").map_err(gguf_error)?;
        let mut settings = Self { checkpoint, metadata, architecture, model_type: "" };
        let experts = settings.whole("expert_count")?.is_some_and(|count| count > 0);
        let known = || ARCHITECTURES.into_iter().chain([GPT_OSS]);
        let found = known().find(|&(name, with_experts, _)| name == architecture && with_experts == experts);
        let Some((_, _, model_type)) = found else {
            let mut supported: Vec<&str> = known().map(|(name, ..)| name).collect();
            supported.dedup();
            let found = if experts { format!("{architecture} with experts") } else { architecture.to_owned() };
            return Err(Error::UnsupportedGguf { file: checkpoint.path().to_owned(), found, supported });
        };
        settings.model_type = model_type;
        Ok(settings)
    }

    /// As Hugging Face would write it.
    pub(super) fn json(&self) -> Result<Value> {
        let mut fields = Map::new();
        fields.insert("model_type".into(), json!(self.model_type));
        for key in REQUIRED {
            if self.number(key)?.is_none() {
                // Which says that it is missing.
                self.metadata.require_u64(&self.key(key)).map_err(gguf_error)?;
            }
        }
        for (field, key) in SIZES {
            if let Some(value) = self.number(key)? {
                fields.insert(self.field(field).to_owned(), value);
            }
        }
        self.vocabulary(&mut fields);
        self.end_tokens(&mut fields)?;
        if let Some(rope) = self.rope()? {
            fields.insert("rope_parameters".into(), rope);
        }
        self.particular(&mut fields)?;
        Ok(Value::Object(fields))
    }

    fn field<'f>(&self, field: &'f str) -> &'f str {
        let own = GPT2.iter().find(|(of, _)| *of == field).filter(|_| self.model_type == "gpt2");
        own.map_or(field, |(_, own)| own)
    }

    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    /// A number of the architecture, as it is stored.
    fn number(&self, key: &str) -> Result<Option<Value>> {
        let key = self.key(key);
        let entry = match self.metadata.get(&key) {
            Some(Entry::Array(array)) => {
                let first = array.get(0);
                let alike = (0..array.len()).all(|index| array.get(index) == first);
                if !alike {
                    let supported = "one size for all layers".to_owned();
                    return Err(Error::UnsupportedSetting { setting: "a size for each layer", found: key, supported });
                }
                first
            }
            entry => entry.cloned(),
        };
        Ok(match entry {
            None => None,
            Some(Entry::F32(_) | Entry::F64(_)) => {
                self.metadata.get_f64(&key).map_err(gguf_error)?.map(|value| json!(value))
            }
            Some(Entry::Array(_)) | Some(Entry::String(_)) | Some(Entry::Bool(_)) => {
                self.metadata.get_u64(&key).map_err(gguf_error)?.map(|value| json!(value))
            }
            Some(entry) => entry.as_i64().map(|value| json!(value)),
        })
    }

    fn whole(&self, key: &str) -> Result<Option<i64>> {
        Ok(self.number(key)?.and_then(|value| value.as_i64()))
    }

    fn real(&self, key: &str) -> Result<Option<f64>> {
        self.metadata.get_f64(&self.key(key)).map_err(gguf_error)
    }

    fn has(&self, tensor: &str) -> bool {
        self.checkpoint.index().get(tensor).is_some()
    }

    /// The sizes that only tensors tell.
    fn vocabulary(&self, fields: &mut Map<String, Value>) {
        let embedding = self.checkpoint.index().get("token_embd.weight");
        if let Some(rows) = embedding.and_then(|embedding| embedding.shape.first()) {
            fields.insert("vocab_size".into(), json!(rows));
        }
        fields.insert("tie_word_embeddings".into(), json!(!self.has("output.weight")));
        fields.insert("attention_bias".into(), json!(self.has("blk.0.attn_output.bias")));
        fields.insert("mlp_bias".into(), json!(self.has("blk.0.ffn_down.bias")));
    }

    fn end_tokens(&self, fields: &mut Map<String, Value>) -> Result<()> {
        let mut ends = Vec::new();
        for kind in ["eos", "eot"] {
            let key = format!("tokenizer.ggml.{kind}_token_id");
            ends.extend(self.metadata.get_u64(&key).map_err(gguf_error)?.filter(|end| !ends.contains(end)));
        }
        fields.insert("eos_token_id".into(), if ends.is_empty() { Value::Null } else { json!(ends) });
        Ok(())
    }

    /// The width of a head, stored or its share.
    fn d_head(&self) -> Result<Option<i64>> {
        if let Some(width) = self.whole("attention.key_length")? {
            return Ok(Some(width));
        }
        let (width, heads) = (self.whole("embedding_length")?, self.whole("attention.head_count")?);
        Ok(width.zip(heads).and_then(|(width, heads)| width.checked_div(heads)))
    }

    /// Rotary positions: base, share of a head, scaling.
    fn rope(&self) -> Result<Option<Value>> {
        let mut rope = Map::new();
        if let Some(base) = self.real("rope.freq_base")? {
            rope.insert("rope_theta".into(), json!(base));
        }
        let rotated = self.whole("rope.dimension_count")?;
        if let Some((rotated, d_head)) = rotated.zip(self.d_head()?).filter(|(rotated, d_head)| rotated != d_head) {
            rope.insert("partial_rotary_factor".into(), json!(rotated as f64 / d_head as f64));
        }
        rope.insert("rope_type".into(), json!("default"));
        self.scaling(&mut rope)?;
        let is_default = rope.len() == 1 && rope.get("rope_type") == Some(&json!("default"));
        Ok(if is_default { None } else { Some(Value::Object(rope)) })
    }

    fn scaling(&self, rope: &mut Map<String, Value>) -> Result<()> {
        let original = self.whole("rope.scaling.original_context_length")?;
        if let Some(original) = original {
            rope.insert("original_max_position_embeddings".into(), json!(original));
        }
        // Factors of each pair's wavelength, as tensors: one for all texts, or one for short and one for long ones.
        let of_all = numbers(self.checkpoint, "rope_freqs.weight")?;
        let short = numbers(self.checkpoint, "rope_factors_short.weight")?;
        let long = numbers(self.checkpoint, "rope_factors_long.weight")?;
        let magnitude = self.real("rope.scaling.attn_factor")?;
        let factors = short.zip(long).map(|factors| (factors, magnitude));
        let factors = factors.or(of_all.map(|factors| ((factors.clone(), factors), Some(1.0))));
        if let Some(((short, long), magnitude)) = factors {
            rope.insert("rope_type".into(), json!("longrope"));
            rope.insert("short_factor".into(), json!(short));
            rope.insert("long_factor".into(), json!(long));
            rope.insert("attention_factor".into(), json!(magnitude.unwrap_or(1.0)));
            return Ok(());
        }
        let kind = self.metadata.get_str(&self.key("rope.scaling.type")).map_err(gguf_error)?;
        let factor = self.real("rope.scaling.factor")?.or(self.real("rope.scale_linear")?);
        let linear = kind.is_none() && factor.is_some_and(|factor| factor != 0.0 && factor != 1.0);
        match kind.unwrap_or(if linear { "linear" } else { "none" }) {
            "none" => return Ok(()),
            "linear" => rope.insert("rope_type".into(), json!("linear")),
            "yarn" => {
                rope.insert("truncate".into(), json!(self.model_type != "gpt_oss"));
                for (field, key) in [("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")] {
                    if let Some(value) = self.real(&format!("rope.scaling.{key}"))? {
                        rope.insert(field.into(), json!(value));
                    }
                }
                rope.insert("rope_type".into(), json!("yarn"))
            }
            other => {
                let supported = "none, linear, yarn".to_owned();
                let found = other.to_owned();
                return Err(Error::UnsupportedSetting { setting: "rope.scaling.type", found, supported });
            }
        };
        rope.insert("factor".into(), json!(factor));
        Ok(())
    }

    /// What only some families have, or what llama.cpp knows without being told.
    fn particular(&self, fields: &mut Map<String, Value>) -> Result<()> {
        let mut set = |field: &str, value: Value| drop(fields.insert(field.into(), value));
        match self.model_type {
            "qwen3_moe" => {
                set("norm_topk_prob", json!(true));
                if let Some(width) = self.whole("expert_feed_forward_length")? {
                    set("moe_intermediate_size", json!(width));
                }
            }
            "gpt_oss" => {
                if let Some(width) = self.whole("expert_feed_forward_length")? {
                    set("intermediate_size", json!(width));
                }
            }
            "gpt_neox" => {
                let parallel = self.metadata.get_bool(&self.key("use_parallel_residual")).map_err(gguf_error)?;
                set("use_parallel_residual", json!(parallel.unwrap_or(true)));
            }
            "phi3" => {
                // A window of zero is none.
                if self.whole("attention.sliding_window")? == Some(0) {
                    set("sliding_window", Value::Null);
                }
                if let Some(original) = self.whole("rope.scaling.original_context_length")? {
                    set("original_max_position_embeddings", json!(original));
                }
            }
            "gemma2" => set("query_pre_attn_scalar", json!(self.query_scalar(46)?)),
            "gemma3_text" => {
                set("query_pre_attn_scalar", json!(self.query_scalar(62)?));
                if let Some(pattern) = self.whole("attention.sliding_window_pattern")? {
                    set("sliding_window_pattern", json!(pattern));
                }
                // Layers that slide turn by a base of their own, and are not scaled.
                let full = fields.remove("rope_parameters");
                let local = self.real("rope.freq_base_swa")?.unwrap_or(10_000.0);
                let sliding = json!({ "rope_type": "default", "rope_theta": local });
                let full = full.unwrap_or_else(|| json!({ "rope_type": "default", "rope_theta": 1e6 }));
                let both = json!({ "full_attention": full, "sliding_attention": sliding });
                fields.insert("rope_parameters".into(), both);
            }
            _ => {}
        }
        Ok(())
    }

    /// What a Gemma's queries are divided by the root of: the width of a head, but for the largest one, which is told by its
    /// number of layers.
    fn query_scalar(&self, layers_of_the_largest: i64) -> Result<Option<i64>> {
        if self.whole("block_count")? == Some(layers_of_the_largest) {
            let (width, heads) = (self.whole("embedding_length")?, self.whole("attention.head_count")?);
            return Ok(width.zip(heads).and_then(|(width, heads)| width.checked_div(heads)));
        }
        self.d_head()
    }
}
