//! GPT-2 (Radford et al., 2019).

use serde::Deserialize;
use serde_json::Value;

use super::{
    Family, Layout,
    json::{EndTokens, end_tokens, fields, head_width, refuse},
};
use crate::{
    Activation, Architecture, Attention, Config, Embedding, Head, Layer, LearnedPositions, Masking, Mlp, Norm,
    NormKind, Norms, Point, Projections, Residual, Result, architecture::check_layers,
};

pub(super) static GPT2: Family = Family {
    model_types: &["gpt2"],
    title: "GPT-2",
    read,
    prefixes: &["transformer."],
    layers: "h",
    layout: Layout::InOut,
    modules: &[&[
        (Point::TokenEmbedding, "wte"),
        (Point::PositionEmbedding, "wpe"),
        (Point::Norm1, "ln_1"),
        (Point::QueryKeyValue, "attn.c_attn"),
        (Point::AttentionOutput, "attn.c_proj"),
        (Point::Norm2, "ln_2"),
        (Point::MlpInput, "mlp.c_fc"),
        (Point::MlpOutput, "mlp.c_proj"),
        (Point::FinalNorm, "ln_f"),
    ]],
    heads: &["lm_head"],
    aliases: &[
        (Point::Input, &["drop"]),
        (Point::Pattern, &["attn.attn_dropout"]),
        (Point::AttentionOutput, &["attn.resid_dropout"]),
        (Point::MlpOutput, &["mlp.dropout"]),
    ],
    buffers: &["attn.bias", "attn.masked_bias"],
    expert_modules: &[],
    expert_layout: Layout::OutIn,
    sinks: "",
    foreign: &[],
};

/// What `GPT2Config` fills in for absent fields.
#[derive(Deserialize)]
#[serde(default)]
struct Fields {
    vocab_size: i64,
    n_positions: i64,
    n_embd: i64,
    n_layer: u64,
    n_head: i64,
    n_inner: Option<i64>,
    activation_function: String,
    layer_norm_epsilon: f64,
    initializer_range: f64,
    scale_attn_weights: bool,
    scale_attn_by_inverse_layer_idx: bool,
    reorder_and_upcast_attn: bool,
    add_cross_attention: bool,
    tie_word_embeddings: bool,
    eos_token_id: Option<EndTokens>,
}

impl Default for Fields {
    fn default() -> Self {
        Self {
            vocab_size: 50257,
            n_positions: 1024,
            n_embd: 768,
            n_layer: 12,
            n_head: 12,
            n_inner: None,
            activation_function: "gelu_new".into(),
            layer_norm_epsilon: 1e-5,
            initializer_range: 0.02,
            scale_attn_weights: true,
            scale_attn_by_inverse_layer_idx: false,
            reorder_and_upcast_attn: false,
            add_cross_attention: false,
            tie_word_embeddings: true,
            eos_token_id: Some(EndTokens::One(50256)),
        }
    }
}

fn read(value: Value) -> Result<Config> {
    let fields: Fields = fields(value)?;
    if fields.add_cross_attention {
        return Err(refuse("add_cross_attention", true, "false"));
    }
    check_layers(fields.n_layer)?;
    let d_head = head_width(fields.n_embd, fields.n_head)?;
    let base = if fields.scale_attn_weights { (d_head as f64).powf(-0.5) } else { 1.0 };
    let norm = Norm { kind: NormKind::Layer { weights: true }, epsilon: fields.layer_norm_epsilon };
    let mlp = Mlp::plain(
        fields.n_inner.unwrap_or_else(|| fields.n_embd.saturating_mul(4)),
        Activation::from_name(&fields.activation_function)?,
    );
    let layer = |number: u64| Layer {
        residual: Residual::Sequential,
        attention_norms: Norms::before(norm),
        attention: Attention {
            scale: if fields.scale_attn_by_inverse_layer_idx { base / (number + 1) as f64 } else { base },
            projections: Projections::SideBySide,
            input_bias: true,
            output_bias: true,
            in_f32: fields.reorder_and_upcast_attn,
            ..Attention::plain(fields.n_head, d_head)
        },
        mlp_norms: Norms::before(norm),
        mlp: mlp.clone(),
    };
    Ok(Config {
        family: &GPT2,
        architecture: Architecture {
            vocabulary: fields.vocab_size,
            context: fields.n_positions,
            d_model: fields.n_embd,
            embedding: Embedding {
                positions: Some(LearnedPositions { offset: 0, count_tokens: false }),
                ..Embedding::plain(fields.n_embd)
            },
            layers: (0..fields.n_layer).map(layer).collect(),
            final_norm: Some(norm),
            head: Head::plain(fields.tie_word_embeddings),
            masks: Masking::Joined,
        },
        end_tokens: end_tokens(fields.eos_token_id),
        initializer_range: fields.initializer_range,
    })
}
