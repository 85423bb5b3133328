//! Llama (Touvron et al., 2023) and the families that differ from it in a few settings: Mistral, Qwen 2 and Qwen 3.

use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Family, Layout,
    json::{EndTokens, RopeDefaults, RopeFields, end_tokens, fields_over, refuse},
};
use crate::{
    Activation, Architecture, Attention, Config, Embedding, Gate, Head, Layer, Masking, Mlp, Norm, NormKind, NormOver,
    Norms, Point, QueryKeyNorm, Residual, Result,
    architecture::{check_layers, within},
};

pub(super) const PREFIXES: &[&str] = &["model."];

pub(super) const ALIASES: &[(Point, &[&str])] = &[
    (Point::RotaryCosines, &["rotary_emb"]),
    (Point::AttentionOutput, &["self_attn"]),
    (Point::MlpActivation, &["mlp.act_fn"]),
    (Point::MlpOutput, &["mlp"]),
];

/// The modules outside of the layers.
pub(super) const OUTSIDE: &[(Point, &str)] = &[(Point::TokenEmbedding, "embed_tokens"), (Point::FinalNorm, "norm")];

pub(super) const NORMS: &[(Point, &str)] =
    &[(Point::Norm1, "input_layernorm"), (Point::Norm2, "post_attention_layernorm")];

pub(super) const ATTENTION: &[(Point, &str)] = &[
    (Point::Query, "self_attn.q_proj"),
    (Point::Key, "self_attn.k_proj"),
    (Point::Value, "self_attn.v_proj"),
    (Point::QueryNorm, "self_attn.q_norm"),
    (Point::KeyNorm, "self_attn.k_norm"),
    (Point::AttentionOutput, "self_attn.o_proj"),
];

pub(super) const MLP: &[(Point, &str)] =
    &[(Point::MlpGate, "mlp.gate_proj"), (Point::MlpInput, "mlp.up_proj"), (Point::MlpOutput, "mlp.down_proj")];

pub(super) static LLAMA: Family = Family {
    model_types: &["llama"],
    title: "Llama",
    read: read_llama,
    prefixes: PREFIXES,
    layers: "layers",
    layout: Layout::OutIn,
    modules: &[OUTSIDE, NORMS, ATTENTION, MLP],
    heads: &["lm_head"],
    aliases: ALIASES,
    buffers: &["self_attn.rotary_emb.inv_freq"],
    expert_modules: &[],
    expert_layout: Layout::OutIn,
    sinks: "",
    foreign: &[],
};

pub(super) static MISTRAL: Family = Family { model_types: &["mistral"], title: "Mistral", read: read_mistral, ..LLAMA };

pub(super) static QWEN2: Family = Family { model_types: &["qwen2"], title: "Qwen 2", read: read_qwen2, ..LLAMA };

pub(super) static QWEN3: Family = Family { model_types: &["qwen3"], title: "Qwen 3", read: read_qwen3, ..LLAMA };

/// The fields that these families share. What a config leaves out is the family's default.
#[derive(Deserialize)]
pub(super) struct Fields {
    vocab_size: i64,
    pub(super) hidden_size: i64,
    intermediate_size: i64,
    pub(super) num_hidden_layers: u64,
    pub(super) num_attention_heads: i64,
    num_key_value_heads: Option<i64>,
    pub(super) head_dim: Option<i64>,
    hidden_act: String,
    pub(super) max_position_embeddings: i64,
    initializer_range: f64,
    pub(super) rms_norm_eps: f64,
    tie_word_embeddings: bool,
    eos_token_id: Option<EndTokens>,
    #[serde(default)]
    pub(super) attention_bias: bool,
    #[serde(default)]
    pub(super) mlp_bias: bool,
    #[serde(default)]
    pub(super) sliding_window: Option<i64>,
    #[serde(default)]
    use_sliding_window: bool,
    #[serde(default)]
    max_window_layers: u64,
    #[serde(default)]
    pub(super) layer_types: Option<Vec<String>>,
    #[serde(flatten)]
    pub(super) rope: RopeFields,
}

impl Fields {
    /// The width of a head, when nothing says that it is not its share of the stream.
    pub(super) fn d_head(&self) -> Result<i64> {
        within("the hidden size", self.hidden_size, 1 << 20)?;
        within("the number of heads", self.num_attention_heads, 1 << 20)?;
        Ok(self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads))
    }

    pub(super) fn rope_defaults(&self, d_head: i64) -> RopeDefaults {
        RopeDefaults { base: 10_000.0, share: 1.0, d_head, context: self.max_position_embeddings }
    }

    /// The window of each layer by its `layer_types`, or by what `default` says of a layer that slides.
    pub(super) fn windows(&self, default: impl Fn(u64) -> bool) -> Result<Vec<Option<i64>>> {
        check_layers(self.num_hidden_layers)?;
        let Some(types) = &self.layer_types else {
            let window = |layer| self.sliding_window.filter(|_| default(layer));
            return Ok((0..self.num_hidden_layers).map(window).collect());
        };
        if types.len() as u64 != self.num_hidden_layers {
            let expected = format!("{}, one for each layer", self.num_hidden_layers);
            return Err(crate::architecture::number("the number of layer_types", types.len(), expected));
        }
        let window = |kind: &String| match kind.as_str() {
            "full_attention" => Ok(None),
            "sliding_attention" => Ok(self.sliding_window),
            other => Err(refuse("layer_types", other, "full_attention, sliding_attention")),
        };
        types.iter().map(window).collect()
    }

    /// Llama itself: RMS norms before both halves, rotary positions, a gated MLP.
    pub(super) fn config(self, family: &'static Family) -> Result<Config> {
        check_layers(self.num_hidden_layers)?;
        let d_head = self.d_head()?;
        let norm = Norm { kind: NormKind::Rms, epsilon: self.rms_norm_eps };
        let layer = Layer {
            residual: Residual::Sequential,
            attention_norms: Norms::before(norm),
            attention: Attention {
                kv_heads: self.num_key_value_heads.unwrap_or(self.num_attention_heads),
                rotary: Some(self.rope.rotary(&self.rope_defaults(d_head))?),
                input_bias: self.attention_bias,
                output_bias: self.attention_bias,
                ..Attention::plain(self.num_attention_heads, d_head)
            },
            mlp_norms: Norms::before(norm),
            mlp: Mlp {
                gate: Gate::Separate,
                bias: self.mlp_bias,
                ..Mlp::plain(self.intermediate_size, Activation::from_name(&self.hidden_act)?)
            },
        };
        Ok(Config {
            family,
            architecture: Architecture {
                vocabulary: self.vocab_size,
                context: self.max_position_embeddings,
                d_model: self.hidden_size,
                embedding: Embedding::plain(self.hidden_size),
                layers: vec![layer; self.num_hidden_layers as usize],
                final_norm: Some(norm),
                head: Head::plain(self.tie_word_embeddings),
                masks: Masking::Joined,
            },
            end_tokens: end_tokens(self.eos_token_id),
            initializer_range: self.initializer_range,
        })
    }
}

impl Config {
    /// Each layer sees so many positions.
    pub(super) fn with_windows(mut self, windows: Vec<Option<i64>>) -> Self {
        for (layer, window) in self.architecture.layers.iter_mut().zip(windows) {
            layer.attention.window = window;
        }
        self
    }

    /// The same change of every layer.
    pub(super) fn with_layers(mut self, change: impl Fn(&mut Layer)) -> Self {
        self.architecture.layers.iter_mut().for_each(change);
        self
    }
}

fn read_llama(value: Value) -> Result<Config> {
    let defaults = json!({
        "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "hidden_act": "silu", "max_position_embeddings": 2048, "initializer_range": 0.02,
        "rms_norm_eps": 1e-6, "tie_word_embeddings": false, "eos_token_id": 2,
    });
    fields_over::<Fields>(value, defaults)?.config(&LLAMA)
}

fn read_mistral(value: Value) -> Result<Config> {
    let defaults = json!({
        "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "hidden_act": "silu", "max_position_embeddings": 131_072,
        "initializer_range": 0.02, "rms_norm_eps": 1e-6, "tie_word_embeddings": false, "eos_token_id": 2,
        "sliding_window": 4096,
    });
    let mut fields: Fields = fields_over(value, defaults)?;
    // Hugging Face's Mistral reads none of these.
    (fields.attention_bias, fields.mlp_bias, fields.layer_types) = (false, false, None);
    let windows = fields.windows(|_| true)?;
    Ok(fields.config(&MISTRAL)?.with_windows(windows))
}

/// Qwen's layers slide from `max_window_layers` on, where they slide at all.
fn qwen_windows(fields: &mut Fields) -> Result<Vec<Option<i64>>> {
    fields.sliding_window = fields.sliding_window.filter(|_| fields.use_sliding_window);
    let first = fields.max_window_layers;
    fields.windows(|layer| layer >= first)
}

pub(super) fn qwen_defaults() -> Value {
    json!({
        "vocab_size": 151_936, "hidden_size": 4096, "intermediate_size": 22016, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "hidden_act": "silu", "max_position_embeddings": 32768,
        "initializer_range": 0.02, "rms_norm_eps": 1e-6, "tie_word_embeddings": false, "sliding_window": 4096,
        "max_window_layers": 28, "eos_token_id": null,
    })
}

fn read_qwen2(value: Value) -> Result<Config> {
    let mut fields: Fields = fields_over(value, qwen_defaults())?;
    (fields.attention_bias, fields.mlp_bias) = (false, false);
    let windows = qwen_windows(&mut fields)?;
    let config = fields.config(&QWEN2)?.with_windows(windows);
    Ok(config.with_layers(|layer| layer.attention.input_bias = true))
}

fn read_qwen3(value: Value) -> Result<Config> {
    let mut defaults = qwen_defaults();
    defaults["head_dim"] = json!(128);
    qwen3(fields_over(value, defaults)?, &QWEN3)
}

/// Qwen 3: each head's queries and keys have norms.
pub(super) fn qwen3(mut fields: Fields, family: &'static Family) -> Result<Config> {
    fields.mlp_bias = false;
    let windows = qwen_windows(&mut fields)?;
    let norm = Norm { kind: NormKind::Rms, epsilon: fields.rms_norm_eps };
    let config = fields.config(family)?.with_windows(windows);
    Ok(config.with_layers(|layer| {
        layer.attention.query_key_norm = Some(QueryKeyNorm { norm, over: NormOver::Head });
    }))
}
