//! OPT (Zhang et al., 2022). OPT-350m has its norms on the residual stream itself, none at the end, and an embedding narrower
//! than the stream.

use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Family, Layout,
    json::{EndTokens, end_tokens, fields_over, head_width},
};
use crate::{
    Activation, Architecture, Attention, Config, Embedding, Head, Layer, LearnedPositions, Masking, Mlp, Norm,
    NormKind, Norms, Point, Residual, Result, architecture::check_layers,
};

pub(super) static OPT: Family = Family {
    model_types: &["opt"],
    title: "OPT",
    read,
    prefixes: &["model.decoder.", "decoder."],
    layers: "layers",
    layout: Layout::OutIn,
    modules: &[&[
        (Point::TokenEmbedding, "embed_tokens"),
        (Point::EmbeddingProjection, "project_in"),
        (Point::PositionEmbedding, "embed_positions"),
        (Point::Norm1, "self_attn_layer_norm"),
        (Point::Query, "self_attn.q_proj"),
        (Point::Key, "self_attn.k_proj"),
        (Point::Value, "self_attn.v_proj"),
        (Point::AttentionOutput, "self_attn.out_proj"),
        (Point::Norm2, "final_layer_norm"),
        (Point::MlpInput, "fc1"),
        (Point::MlpOutput, "fc2"),
        (Point::FinalNorm, "final_layer_norm"),
        (Point::OutputProjection, "project_out"),
    ]],
    heads: &["lm_head"],
    aliases: &[(Point::AttentionOutput, &["self_attn"]), (Point::MlpActivation, &["activation_fn"])],
    buffers: &[],
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
    ffn_dim: i64,
    max_position_embeddings: i64,
    do_layer_norm_before: bool,
    #[serde(rename = "_remove_final_layer_norm")]
    remove_final_layer_norm: bool,
    word_embed_proj_dim: Option<i64>,
    num_attention_heads: i64,
    activation_function: String,
    init_std: f64,
    eos_token_id: Option<EndTokens>,
    enable_bias: bool,
    layer_norm_elementwise_affine: bool,
    tie_word_embeddings: bool,
}

fn read(value: Value) -> Result<Config> {
    let defaults = json!({
        "vocab_size": 50272, "hidden_size": 768, "num_hidden_layers": 12, "ffn_dim": 3072,
        "max_position_embeddings": 2048, "do_layer_norm_before": true, "_remove_final_layer_norm": false,
        "word_embed_proj_dim": null, "num_attention_heads": 12, "activation_function": "relu", "init_std": 0.02,
        "eos_token_id": 2, "enable_bias": true, "layer_norm_elementwise_affine": true, "tie_word_embeddings": true,
    });
    let fields: Fields = fields_over(value, defaults)?;
    check_layers(fields.num_hidden_layers)?;
    let d_head = head_width(fields.hidden_size, fields.num_attention_heads)?;
    let norm = Norm { kind: NormKind::Layer { weights: fields.layer_norm_elementwise_affine }, epsilon: 1e-5 };
    let norms = if fields.do_layer_norm_before {
        Norms::before(norm)
    } else {
        Norms { stream: Some(norm), ..Norms::default() }
    };
    let layer = Layer {
        residual: Residual::Sequential,
        attention_norms: norms,
        attention: Attention {
            input_bias: fields.enable_bias,
            output_bias: fields.enable_bias,
            ..Attention::plain(fields.num_attention_heads, d_head)
        },
        mlp_norms: norms,
        mlp: Mlp {
            bias: fields.enable_bias,
            ..Mlp::plain(fields.ffn_dim, Activation::from_name(&fields.activation_function)?)
        },
    };
    let last = fields.do_layer_norm_before && !fields.remove_final_layer_norm;
    Ok(Config {
        family: &OPT,
        architecture: Architecture {
            vocabulary: fields.vocab_size,
            context: fields.max_position_embeddings,
            d_model: fields.hidden_size,
            embedding: Embedding {
                positions: Some(LearnedPositions { offset: 2, count_tokens: true }),
                ..Embedding::plain(fields.word_embed_proj_dim.unwrap_or(fields.hidden_size))
            },
            layers: vec![layer; fields.num_hidden_layers as usize],
            final_norm: last.then_some(norm),
            head: Head::plain(fields.tie_word_embeddings),
            masks: Masking::Joined,
        },
        end_tokens: end_tokens(fields.eos_token_id),
        initializer_range: fields.init_std,
    })
}
