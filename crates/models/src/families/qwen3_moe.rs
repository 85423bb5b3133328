//! Qwen 3 with experts (Qwen Team, 2025).

use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Family,
    json::fields_over,
    llama::{self, Fields, LLAMA, qwen_defaults, qwen3},
};
use crate::{Config, Experts, Point, Result, Routing};

pub(super) static QWEN3_MOE: Family = Family {
    model_types: &["qwen3_moe"],
    title: "Qwen 3 MoE",
    read,
    modules: &[
        llama::OUTSIDE,
        llama::NORMS,
        llama::ATTENTION,
        &[(Point::Router, "mlp.gate")],
        // Of the layers without experts.
        llama::MLP,
    ],
    aliases: &[
        (Point::RotaryCosines, &["rotary_emb"]),
        (Point::AttentionOutput, &["self_attn"]),
        (Point::ExpertSum, &["mlp.experts"]),
        (Point::MlpActivation, &["mlp.act_fn"]),
        (Point::MlpOutput, &["mlp"]),
    ],
    expert_modules: &[
        (Point::MlpGate, "mlp.experts.{}.gate_proj"),
        (Point::MlpInput, "mlp.experts.{}.up_proj"),
        (Point::MlpOutput, "mlp.experts.{}.down_proj"),
    ],
    ..LLAMA
};

#[derive(Deserialize)]
struct Own {
    /// Transformers 4's name; 5 writes `num_local_experts`.
    num_experts: i64,
    num_local_experts: Option<i64>,
    num_experts_per_tok: i64,
    moe_intermediate_size: i64,
    norm_topk_prob: bool,
    decoder_sparse_step: u64,
    mlp_only_layers: Option<Vec<u64>>,
}

fn read(value: Value) -> Result<Config> {
    let mut defaults = qwen_defaults();
    for (field, default) in [
        ("hidden_size", json!(2048)),
        ("intermediate_size", json!(6144)),
        ("num_hidden_layers", json!(24)),
        ("num_key_value_heads", json!(4)),
        ("num_experts", json!(128)),
        ("num_local_experts", json!(null)),
        ("max_window_layers", json!(0)),
        ("num_experts_per_tok", json!(8)),
        ("moe_intermediate_size", json!(768)),
        ("norm_topk_prob", json!(false)),
        ("decoder_sparse_step", json!(1)),
        ("mlp_only_layers", json!(null)),
    ] {
        defaults[field] = default;
    }
    let own: Own = fields_over(value.clone(), defaults.clone())?;
    let mut value = value;
    // Here a window holds in every layer.
    if let Some(object) = value.as_object_mut() {
        object.remove("max_window_layers");
        object.remove("layer_types");
    }
    let fields: Fields = fields_over(value, defaults)?;
    let experts = Experts {
        count: own.num_local_experts.unwrap_or(own.num_experts),
        chosen: own.num_experts_per_tok,
        routing: Routing::SoftmaxFirst { renormalised: own.norm_topk_prob, rounded: true },
        router_bias: false,
    };
    let dense = own.mlp_only_layers.unwrap_or_default();
    let mut config = qwen3(fields, &QWEN3_MOE)?;
    for (layer, number) in config.architecture.layers.iter_mut().zip(0_u64..) {
        // A step of zero is no step; every step-th layer has experts.
        if !dense.contains(&number) && (number + 1).is_multiple_of(own.decoder_sparse_step.max(1)) {
            layer.mlp.d_mlp = own.moe_intermediate_size;
            layer.mlp.experts = Some(experts);
        }
    }
    Ok(config)
}
