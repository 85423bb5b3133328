//! Mixtral (Jiang et al., 2024): a Mistral with experts.

use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Family,
    json::fields_over,
    llama::{self, Fields, LLAMA},
};
use crate::{Config, Experts, Point, Result, Routing};

pub(super) static MIXTRAL: Family = Family {
    model_types: &["mixtral"],
    title: "Mixtral",
    read,
    modules: &[llama::OUTSIDE, llama::NORMS, llama::ATTENTION, &[(Point::Router, "block_sparse_moe.gate")]],
    // Transformers 5 calls `mlp` what 4 and the checkpoints call `block_sparse_moe`.
    aliases: &[
        (Point::RotaryCosines, &["rotary_emb"]),
        (Point::AttentionOutput, &["self_attn"]),
        (Point::Router, &["mlp.gate"]),
        (Point::ExpertSum, &["mlp.experts"]),
        (Point::MlpOutput, &["mlp", "block_sparse_moe"]),
    ],
    expert_modules: &[
        (Point::MlpGate, "block_sparse_moe.experts.{}.w1"),
        (Point::MlpInput, "block_sparse_moe.experts.{}.w3"),
        (Point::MlpOutput, "block_sparse_moe.experts.{}.w2"),
    ],
    ..LLAMA
};

#[derive(Deserialize)]
struct Own {
    num_local_experts: i64,
    num_experts_per_tok: i64,
}

fn read(value: Value) -> Result<Config> {
    let defaults = json!({
        "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "hidden_act": "silu", "max_position_embeddings": 131_072,
        "initializer_range": 0.02, "rms_norm_eps": 1e-5, "tie_word_embeddings": false, "eos_token_id": 2,
        "sliding_window": null, "rope_theta": 1e6, "num_local_experts": 8, "num_experts_per_tok": 2,
    });
    let own: Own = fields_over(value.clone(), defaults.clone())?;
    let mut fields: Fields = fields_over(value, defaults)?;
    // Hugging Face's Mixtral reads none of these.
    (fields.attention_bias, fields.mlp_bias, fields.layer_types) = (false, false, None);
    let windows = fields.windows(|_| true)?;
    let experts = Experts {
        count: own.num_local_experts,
        chosen: own.num_experts_per_tok,
        routing: Routing::SoftmaxFirst { renormalised: true, rounded: false },
        router_bias: false,
    };
    Ok(fields.config(&MIXTRAL)?.with_windows(windows).with_layers(|layer| layer.mlp.experts = Some(experts)))
}
