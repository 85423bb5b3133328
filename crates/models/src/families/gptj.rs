//! GPT-J (Wang and Komatsuzaki, 2021).

use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Family, Layout,
    json::{EndTokens, end_tokens, fields_over, head_width},
};
use crate::{
    Activation, Architecture, Attention, Config, Embedding, Head, Layer, Masking, Mlp, Norm, NormKind, Norms, Point,
    Residual, Result, Rotary, RotaryModule, RotaryPairs, RotaryScaling, architecture::check_layers,
};

pub(super) static GPTJ: Family = Family {
    model_types: &["gptj"],
    title: "GPT-J",
    read,
    prefixes: &["transformer."],
    layers: "h",
    layout: Layout::OutIn,
    modules: &[&[
        (Point::TokenEmbedding, "wte"),
        (Point::Norm1, "ln_1"),
        (Point::Query, "attn.q_proj"),
        (Point::Key, "attn.k_proj"),
        (Point::Value, "attn.v_proj"),
        (Point::AttentionOutput, "attn.out_proj"),
        (Point::MlpInput, "mlp.fc_in"),
        (Point::MlpOutput, "mlp.fc_out"),
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

#[derive(Deserialize)]
struct Fields {
    vocab_size: i64,
    n_positions: i64,
    n_embd: i64,
    n_layer: u64,
    n_head: i64,
    rotary_dim: Option<i64>,
    n_inner: Option<i64>,
    activation_function: String,
    layer_norm_epsilon: f64,
    initializer_range: f64,
    eos_token_id: Option<EndTokens>,
    tie_word_embeddings: bool,
}

fn read(value: Value) -> Result<Config> {
    let defaults = json!({
        "vocab_size": 50400, "n_positions": 2048, "n_embd": 4096, "n_layer": 28, "n_head": 16, "rotary_dim": 64,
        "n_inner": null, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "initializer_range": 0.02,
        "eos_token_id": 50256, "tie_word_embeddings": false,
    });
    let fields: Fields = fields_over(value, defaults)?;
    check_layers(fields.n_layer)?;
    let d_head = head_width(fields.n_embd, fields.n_head)?;
    let rotary = Rotary {
        // Without the setting Hugging Face makes a table for the whole width, which fits one head only.
        dimensions: fields.rotary_dim.unwrap_or(fields.n_embd),
        base: 10_000.0,
        pairs: RotaryPairs::Neighbours,
        scaling: RotaryScaling::None,
        in_f32: false,
        module: RotaryModule::None,
    };
    let norm = Norm { kind: NormKind::Layer { weights: true }, epsilon: fields.layer_norm_epsilon };
    let layer = Layer {
        residual: Residual::Parallel,
        attention_norms: Norms::before(norm),
        attention: Attention { rotary: Some(rotary), in_f32: true, ..Attention::plain(fields.n_head, d_head) },
        mlp_norms: Norms::default(),
        mlp: Mlp::plain(
            fields.n_inner.unwrap_or_else(|| fields.n_embd.saturating_mul(4)),
            Activation::from_name(&fields.activation_function)?,
        ),
    };
    Ok(Config {
        family: &GPTJ,
        architecture: Architecture {
            vocabulary: fields.vocab_size,
            context: fields.n_positions,
            d_model: fields.n_embd,
            embedding: Embedding::plain(fields.n_embd),
            layers: vec![layer; fields.n_layer as usize],
            final_norm: Some(norm),
            head: Head { bias: true, ..Head::plain(fields.tie_word_embeddings) },
            masks: Masking::Joined,
        },
        end_tokens: end_tokens(fields.eos_token_id),
        initializer_range: fields.initializer_range,
    })
}
