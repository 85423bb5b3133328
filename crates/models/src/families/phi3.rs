//! Phi-3 and Phi-4-mini (Abdin et al., 2024): a Llama whose matrices are joined.

use serde_json::{Value, json};

use super::{
    Family,
    json::fields_over,
    llama::{self, Fields, LLAMA},
};
use crate::{Config, Gate, Point, Projections, Result};

pub(super) static PHI3: Family = Family {
    model_types: &["phi3"],
    title: "Phi-3",
    read,
    modules: &[
        llama::OUTSIDE,
        llama::NORMS,
        &[
            (Point::QueryKeyValue, "self_attn.qkv_proj"),
            (Point::AttentionOutput, "self_attn.o_proj"),
            (Point::MlpGateInput, "mlp.gate_up_proj"),
            (Point::MlpOutput, "mlp.down_proj"),
        ],
    ],
    aliases: &[
        (Point::RotaryCosines, &["rotary_emb"]),
        (Point::AttentionOutput, &["self_attn", "resid_attn_dropout"]),
        (Point::MlpActivation, &["mlp.activation_fn"]),
        (Point::MlpOutput, &["mlp", "resid_mlp_dropout"]),
    ],
    ..LLAMA
};

fn read(value: Value) -> Result<Config> {
    let defaults = json!({
        "vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": null, "hidden_act": "silu", "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096, "initializer_range": 0.02, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": false, "eos_token_id": 32000, "sliding_window": null,
    });
    let mut fields: Fields = fields_over(value, defaults)?;
    // Hugging Face's Phi-3 reads none of these.
    (fields.attention_bias, fields.layer_types) = (false, None);
    // The first checkpoints name what became longrope after another method, whose fields they do not have.
    for parameters in [&mut fields.rope.rope_scaling, &mut fields.rope.rope_parameters].into_iter().flatten() {
        for field in ["type", "rope_type"] {
            if parameters.get(field).is_some_and(|kind| kind == "yarn") {
                parameters[field] = json!("longrope");
            }
        }
    }
    let windows = fields.windows(|_| true)?;
    let config = fields.config(&PHI3)?.with_windows(windows);
    Ok(config.with_layers(|layer| {
        layer.attention.projections = Projections::SideBySide;
        layer.mlp.gate = Gate::SideBySide;
        layer.mlp.bias = false;
    }))
}
