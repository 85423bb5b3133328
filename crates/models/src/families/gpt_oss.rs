//! gpt-oss (OpenAI, 2025): experts in tensors that hold all of them, windows on every second layer, and sinks.

use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Family, Layout,
    json::fields_over,
    llama::{self, Fields, LLAMA},
};
use crate::{Activation, Bounds, Config, Experts, Gate, Norm, NormKind, Point, Result, RotaryModule, Routing};

pub(super) static GPT_OSS: Family = Family {
    model_types: &["gpt_oss"],
    title: "gpt-oss",
    read,
    modules: &[llama::OUTSIDE, llama::NORMS, llama::ATTENTION, &[(Point::Router, "mlp.router")]],
    aliases: &[
        (Point::RotaryCosines, &["rotary_emb"]),
        (Point::AttentionOutput, &["self_attn"]),
        (Point::ExpertSum, &["mlp.experts"]),
        (Point::MlpOutput, &["mlp"]),
    ],
    expert_modules: &[
        (Point::MlpGateInput, "mlp.experts.gate_up_proj"),
        // In GGUF files, where gate and input are apart.
        (Point::MlpGate, "mlp.experts.gate_proj"),
        (Point::MlpInput, "mlp.experts.up_proj"),
        (Point::MlpOutput, "mlp.experts.down_proj"),
    ],
    expert_layout: Layout::InOut,
    sinks: "self_attn.sinks",
    ..LLAMA
};

#[derive(Deserialize)]
struct Own {
    num_local_experts: i64,
    num_experts_per_tok: i64,
    // Null in some configs.
    swiglu_alpha: Option<f64>,
    swiglu_limit: Option<f64>,
}

fn read(mut value: Value) -> Result<Config> {
    let rope = json!({
        "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": false,
        "original_max_position_embeddings": 4096,
    });
    let defaults = json!({
        "vocab_size": 201_088, "hidden_size": 2880, "intermediate_size": 2880, "num_hidden_layers": 36,
        "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64, "hidden_act": "silu",
        "max_position_embeddings": 131_072, "initializer_range": 0.02, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": false, "eos_token_id": null, "sliding_window": 128, "rope_theta": 150_000.0,
        "attention_bias": true, "num_local_experts": 128, "num_experts_per_tok": 4, "swiglu_alpha": 1.702,
        "swiglu_limit": 7.0,
    });
    let given = |field: &str| value.get(field).is_some_and(|value| !value.is_null());
    if let (false, Some(fields)) = (given("rope_parameters") || given("rope_scaling"), value.as_object_mut()) {
        fields.insert("rope_parameters".to_owned(), rope);
    }
    let own: Own = fields_over(value.clone(), defaults.clone())?;
    let mut fields: Fields = fields_over(value, defaults)?;
    fields.mlp_bias = true;
    let windows = fields.windows(|layer| layer.is_multiple_of(2))?;
    let norm = Norm { kind: NormKind::RmsRoundedLast, epsilon: fields.rms_norm_eps };
    let experts = Experts {
        count: own.num_local_experts,
        chosen: own.num_experts_per_tok,
        routing: Routing::BestFirst,
        router_bias: true,
    };
    let mut config = fields.config(&GPT_OSS)?.with_windows(windows).with_layers(|layer| {
        (layer.attention_norms.before, layer.mlp_norms.before) = (Some(norm), Some(norm));
        layer.attention.sinks = true;
        if let Some(rotary) = &mut layer.attention.rotary {
            rotary.module = RotaryModule::EachPair;
        }
        layer.mlp.gate = Gate::Interleaved;
        layer.mlp.activation = Activation::Swish { slope: own.swiglu_alpha.unwrap_or(1.702) };
        layer.mlp.bounds = Some(Bounds { limit: own.swiglu_limit.unwrap_or(7.0), offset: 1.0 });
        layer.mlp.experts = Some(experts);
    });
    config.architecture.final_norm = Some(norm);
    Ok(config)
}
