//! Phi 1, 1.5 and 2 (Gunasekar et al., 2023; Li et al., 2023).

use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Family, Layout,
    json::{EndTokens, RopeDefaults, RopeFields, end_tokens, fields_over, head_width},
};
use crate::{
    Activation, Architecture, Attention, Config, Embedding, Head, Layer, Masking, Mlp, Norm, NormKind, NormOver, Norms,
    Point, QueryKeyNorm, Residual, Result, architecture::check_layers,
};

pub(super) static PHI: Family = Family {
    model_types: &["phi"],
    title: "Phi",
    read,
    prefixes: &["model."],
    layers: "layers",
    layout: Layout::OutIn,
    modules: &[&[
        (Point::TokenEmbedding, "embed_tokens"),
        (Point::Norm1, "input_layernorm"),
        (Point::Query, "self_attn.q_proj"),
        (Point::Key, "self_attn.k_proj"),
        (Point::Value, "self_attn.v_proj"),
        (Point::QueryNorm, "self_attn.q_layernorm"),
        (Point::KeyNorm, "self_attn.k_layernorm"),
        (Point::AttentionOutput, "self_attn.dense"),
        (Point::MlpInput, "mlp.fc1"),
        (Point::MlpOutput, "mlp.fc2"),
        (Point::FinalNorm, "final_layernorm"),
    ]],
    heads: &["lm_head"],
    aliases: &[
        (Point::Input, &["embed_dropout"]),
        (Point::RotaryCosines, &["rotary_emb"]),
        (Point::AttentionOutput, &["self_attn"]),
        (Point::MlpActivation, &["mlp.activation_fn"]),
        // It runs after attention, too, and the MLP's is the last.
        (Point::MlpOutput, &["mlp", "resid_dropout"]),
    ],
    buffers: &["self_attn.rotary_emb.inv_freq"],
    expert_modules: &[],
    expert_layout: Layout::OutIn,
    sinks: "",
    foreign: &[],
};

#[derive(Deserialize)]
struct Fields {
    vocab_size: i64,
    hidden_size: i64,
    intermediate_size: i64,
    num_hidden_layers: u64,
    num_attention_heads: i64,
    num_key_value_heads: Option<i64>,
    head_dim: Option<i64>,
    hidden_act: String,
    max_position_embeddings: i64,
    initializer_range: f64,
    layer_norm_eps: f64,
    tie_word_embeddings: bool,
    qk_layernorm: bool,
    eos_token_id: Option<EndTokens>,
    #[serde(flatten)]
    rope: RopeFields,
}

fn read(value: Value) -> Result<Config> {
    let defaults = json!({
        "vocab_size": 51200, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24,
        "num_attention_heads": 32, "num_key_value_heads": null, "head_dim": null, "hidden_act": "gelu_new",
        "max_position_embeddings": 2048, "initializer_range": 0.02, "layer_norm_eps": 1e-5,
        "tie_word_embeddings": false, "qk_layernorm": false, "eos_token_id": 2,
    });
    let fields: Fields = fields_over(value, defaults)?;
    check_layers(fields.num_hidden_layers)?;
    let d_head = match fields.head_dim {
        Some(d_head) => d_head,
        None => head_width(fields.hidden_size, fields.num_attention_heads)?,
    };
    let rope = RopeDefaults { base: 10_000.0, share: 0.5, d_head, context: fields.max_position_embeddings };
    let norm = Norm { kind: NormKind::Layer { weights: true }, epsilon: fields.layer_norm_eps };
    let layer = Layer {
        residual: Residual::Parallel,
        attention_norms: Norms::before(norm),
        attention: Attention {
            kv_heads: fields.num_key_value_heads.unwrap_or(fields.num_attention_heads),
            rotary: Some(fields.rope.rotary(&rope)?),
            query_key_norm: fields.qk_layernorm.then_some(QueryKeyNorm { norm, over: NormOver::TurnedHead }),
            input_bias: true,
            output_bias: true,
            ..Attention::plain(fields.num_attention_heads, d_head)
        },
        mlp_norms: Norms::default(),
        mlp: Mlp::plain(fields.intermediate_size, Activation::from_name(&fields.hidden_act)?),
    };
    Ok(Config {
        family: &PHI,
        architecture: Architecture {
            vocabulary: fields.vocab_size,
            context: fields.max_position_embeddings,
            d_model: fields.hidden_size,
            embedding: Embedding::plain(fields.hidden_size),
            layers: vec![layer; fields.num_hidden_layers as usize],
            final_norm: Some(norm),
            head: Head { bias: true, ..Head::plain(fields.tie_word_embeddings) },
            masks: Masking::Joined,
        },
        end_tokens: end_tokens(fields.eos_token_id),
        initializer_range: fields.initializer_range,
    })
}
