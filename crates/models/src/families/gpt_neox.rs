//! GPT-NeoX (Black et al., 2022) and Pythia (Biderman et al., 2023).

use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Family, Layout,
    json::{EndTokens, RopeDefaults, RopeFields, end_tokens, fields_over, head_width},
};
use crate::{
    Activation, Architecture, Attention, Config, Embedding, Head, Layer, Masking, Mlp, Norm, NormKind, Norms, Point,
    Projections, Residual, Result, architecture::check_layers,
};

pub(super) static GPT_NEOX: Family = Family {
    model_types: &["gpt_neox"],
    title: "GPT-NeoX",
    read,
    prefixes: &["gpt_neox."],
    layers: "layers",
    layout: Layout::OutIn,
    modules: &[&[
        (Point::TokenEmbedding, "embed_in"),
        (Point::Norm1, "input_layernorm"),
        (Point::QueryKeyValue, "attention.query_key_value"),
        (Point::AttentionOutput, "attention.dense"),
        (Point::Norm2, "post_attention_layernorm"),
        (Point::MlpInput, "mlp.dense_h_to_4h"),
        (Point::MlpOutput, "mlp.dense_4h_to_h"),
        (Point::FinalNorm, "final_layer_norm"),
    ]],
    heads: &["embed_out", "lm_head"],
    aliases: &[
        (Point::Input, &["emb_dropout"]),
        (Point::RotaryCosines, &["rotary_emb"]),
        (Point::AttentionOutput, &["attention", "post_attention_dropout"]),
        (Point::MlpActivation, &["mlp.act"]),
        (Point::MlpOutput, &["mlp", "post_mlp_dropout"]),
    ],
    buffers: &["attention.bias", "attention.masked_bias", "attention.rotary_emb.inv_freq"],
    expert_modules: &[],
    expert_layout: Layout::OutIn,
    sinks: "",
    foreign: &[],
};

#[derive(Deserialize)]
struct Fields {
    vocab_size: i64,
    hidden_size: i64,
    num_hidden_layers: u64,
    num_attention_heads: i64,
    intermediate_size: i64,
    hidden_act: String,
    max_position_embeddings: i64,
    initializer_range: f64,
    layer_norm_eps: f64,
    eos_token_id: Option<EndTokens>,
    tie_word_embeddings: bool,
    use_parallel_residual: bool,
    attention_bias: bool,
    #[serde(default)]
    rotary_pct: Option<f64>,
    #[serde(default)]
    rotary_emb_base: Option<f64>,
    #[serde(flatten)]
    rope: RopeFields,
}

fn read(value: Value) -> Result<Config> {
    let defaults = json!({
        "vocab_size": 50432, "hidden_size": 6144, "num_hidden_layers": 44, "num_attention_heads": 64,
        "intermediate_size": 24576, "hidden_act": "gelu", "max_position_embeddings": 2048, "initializer_range": 0.02,
        "layer_norm_eps": 1e-5, "eos_token_id": 2, "tie_word_embeddings": false, "use_parallel_residual": true,
        "attention_bias": true,
    });
    let fields: Fields = fields_over(value, defaults)?;
    check_layers(fields.num_hidden_layers)?;
    let d_head = head_width(fields.hidden_size, fields.num_attention_heads)?;
    let rope = RopeDefaults {
        base: fields.rotary_emb_base.unwrap_or(10_000.0),
        share: fields.rotary_pct.unwrap_or(0.25),
        d_head,
        context: fields.max_position_embeddings,
    };
    let norm = Norm { kind: NormKind::Layer { weights: true }, epsilon: fields.layer_norm_eps };
    let layer = Layer {
        residual: if fields.use_parallel_residual { Residual::Parallel } else { Residual::Sequential },
        attention_norms: Norms::before(norm),
        attention: Attention {
            rotary: Some(fields.rope.rotary(&rope)?),
            projections: Projections::HeadByHead,
            input_bias: fields.attention_bias,
            output_bias: fields.attention_bias,
            ..Attention::plain(fields.num_attention_heads, d_head)
        },
        mlp_norms: Norms::before(norm),
        mlp: Mlp::plain(fields.intermediate_size, Activation::from_name(&fields.hidden_act)?),
    };
    Ok(Config {
        family: &GPT_NEOX,
        architecture: Architecture {
            vocabulary: fields.vocab_size,
            context: fields.max_position_embeddings,
            d_model: fields.hidden_size,
            embedding: Embedding::plain(fields.hidden_size),
            layers: vec![layer; fields.num_hidden_layers as usize],
            final_norm: Some(norm),
            head: Head::plain(fields.tie_word_embeddings),
            masks: Masking::Joined,
        },
        end_tokens: end_tokens(fields.eos_token_id),
        initializer_range: fields.initializer_range,
    })
}
