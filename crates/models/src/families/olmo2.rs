//! OLMo 2 (OLMo Team, 2025): a Llama with norms after each half instead of before, and norms of queries and keys.

use serde_json::{Value, json};

use super::{
    Family,
    json::fields_over,
    llama::{self, Fields, LLAMA},
};
use crate::{Config, Norm, NormKind, NormOver, Norms, Point, QueryKeyNorm, Result};

pub(super) static OLMO2: Family = Family {
    model_types: &["olmo2"],
    title: "OLMo 2",
    read,
    modules: &[
        llama::OUTSIDE,
        llama::ATTENTION,
        llama::MLP,
        &[(Point::AttentionNorm, "post_attention_layernorm"), (Point::MlpNorm, "post_feedforward_layernorm")],
    ],
    ..LLAMA
};

fn read(value: Value) -> Result<Config> {
    let defaults = json!({
        "vocab_size": 50304, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": null, "hidden_act": "silu", "max_position_embeddings": 2048,
        "initializer_range": 0.02, "rms_norm_eps": 1e-5, "tie_word_embeddings": false, "eos_token_id": 50279,
    });
    let fields: Fields = fields_over(value, defaults)?;
    let norm = Norm { kind: NormKind::RmsRoundedLast, epsilon: fields.rms_norm_eps };
    let mut config = fields.config(&OLMO2)?.with_layers(|layer| {
        let after = Norms { after: Some(norm), ..Norms::default() };
        (layer.attention_norms, layer.mlp_norms) = (after, after);
        layer.attention.query_key_norm = Some(QueryKeyNorm { norm, over: NormOver::AllHeads });
        layer.mlp.bias = false;
        if let Some(rotary) = &mut layer.attention.rotary {
            rotary.in_f32 = true;
        }
    });
    config.architecture.final_norm = Some(norm);
    Ok(config)
}
