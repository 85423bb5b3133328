//! Gemma 1, 2 and 3 (Gemma Team, 2024, 2025).

use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Family,
    json::{RopeFields, fields, fields_over, refuse},
    llama::{self, Fields, LLAMA},
};
use crate::{Config, Error, Norm, NormKind, NormOver, Norms, Point, QueryKeyNorm, Result};

pub(super) static GEMMA: Family = Family { model_types: &["gemma"], title: "Gemma", read, ..LLAMA };

pub(super) static GEMMA2: Family =
    Family { model_types: &["gemma2"], title: "Gemma 2", read: read_2, modules: MODULES, ..LLAMA };

pub(super) static GEMMA3: Family =
    Family { model_types: &["gemma3_text"], title: "Gemma 3", read: read_3, modules: MODULES, ..LLAMA };

/// The language model of a checkpoint that sees, too.
pub(super) static GEMMA3_IN_MULTIMODAL: Family = Family {
    model_types: &["gemma3"],
    title: "Gemma 3, the language model of a multimodal one",
    read: read_3_in_multimodal,
    prefixes: &["model.language_model.", "language_model.model."],
    modules: MODULES,
    heads: &["lm_head", "language_model.lm_head"],
    foreign: &["model.vision_tower.", "model.multi_modal_projector.", "vision_tower.", "multi_modal_projector."],
    ..LLAMA
};

/// From Gemma 2 on, each half has a norm before and a norm after it.
const MODULES: &[&[(Point, &str)]] = &[
    llama::OUTSIDE,
    &[
        (Point::Norm1, "input_layernorm"),
        (Point::AttentionNorm, "post_attention_layernorm"),
        (Point::Norm2, "pre_feedforward_layernorm"),
        (Point::MlpNorm, "post_feedforward_layernorm"),
    ],
    llama::ATTENTION,
    llama::MLP,
];

/// What only Gemma has.
#[derive(Deserialize)]
struct Own {
    query_pre_attn_scalar: f64,
    attn_logit_softcapping: Option<f64>,
    final_logit_softcapping: Option<f64>,
    #[serde(default)]
    use_bidirectional_attention: Option<bool>,
    #[serde(default)]
    sliding_window_pattern: Option<u64>,
    #[serde(default)]
    rope_local_base_freq: Option<f64>,
}

/// Gemma 1 reads `hidden_act`, the later ones `hidden_activation`; some configs have both.
const ACTIVATIONS: [&str; 2] = ["hidden_act", "hidden_activation"];

/// The shared fields, and Gemma's own. `activation` is the field that names it.
fn read_fields(mut value: Value, defaults: Value, activation: &str) -> Result<(Fields, Own)> {
    if let Some(object) = value.as_object_mut() {
        let named = object.get(activation).cloned().filter(|named| !named.is_null());
        ACTIVATIONS.iter().for_each(|field| drop(object.remove(*field)));
        named.map(|named| object.insert("hidden_act".to_owned(), named));
    }
    let fields: Fields = fields_over(value.clone(), defaults.clone())?;
    let own: Own = fields_over(value, defaults)?;
    if own.use_bidirectional_attention == Some(true) {
        return Err(refuse("use_bidirectional_attention", true, "false"));
    }
    Ok((fields, own))
}

fn defaults() -> Value {
    json!({
        "vocab_size": 256_000, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "hidden_act": "gelu_pytorch_tanh",
        "max_position_embeddings": 8192, "initializer_range": 0.02, "rms_norm_eps": 1e-6, "tie_word_embeddings": true,
        "eos_token_id": 1, "query_pre_attn_scalar": 256, "sliding_window": 4096, "attn_logit_softcapping": null,
        "final_logit_softcapping": null,
    })
}

/// What all three share: scaled embeddings, and norms whose weights are added to one.
fn gemma(config: Config, epsilon: f64) -> Config {
    let norm = Norm { kind: NormKind::RmsUnitOffset, epsilon };
    let mut config = config.with_layers(|layer| {
        (layer.attention_norms, layer.mlp_norms) = (Norms::before(norm), Norms::before(norm));
        layer.mlp.bias = false;
    });
    // Hugging Face keeps the square root in f32.
    config.architecture.embedding.scale = Some(f64::from((config.architecture.d_model as f64).sqrt() as f32));
    config.architecture.final_norm = Some(norm);
    config
}

fn read(value: Value) -> Result<Config> {
    let mut defaults = defaults();
    for (field, default) in [
        ("hidden_size", 3072),
        ("intermediate_size", 24576),
        ("num_hidden_layers", 28),
        ("num_attention_heads", 16),
        ("num_key_value_heads", 16),
    ] {
        defaults[field] = json!(default);
    }
    let mut value = value;
    // An old spelling, which always meant the approximation.
    if value["hidden_act"] == "gelu" {
        value["hidden_act"] = json!("gelu_pytorch_tanh");
    }
    let (fields, _) = read_fields(value, defaults, ACTIVATIONS[0])?;
    let epsilon = fields.rms_norm_eps;
    Ok(gemma(fields.config(&GEMMA)?, epsilon))
}

/// What came with Gemma 2: norms after each half, a scale of its own, softcaps, layers that slide.
fn second(config: Config, own: &Own, windows: Vec<Option<i64>>, epsilon: f64) -> Config {
    let after = Some(Norm { kind: NormKind::RmsUnitOffset, epsilon });
    let mut config = gemma(config, epsilon).with_windows(windows).with_layers(|layer| {
        layer.attention.scale = own.query_pre_attn_scalar.powf(-0.5);
        (layer.attention_norms.after, layer.mlp_norms.after) = (after, after);
    });
    config.architecture.head.softcap = own.final_logit_softcapping;
    config
}

fn read_2(value: Value) -> Result<Config> {
    let mut defaults = defaults();
    (defaults["attn_logit_softcapping"], defaults["final_logit_softcapping"]) = (json!(50.0), json!(30.0));
    let (fields, own) = read_fields(value, defaults, ACTIVATIONS[1])?;
    let (windows, epsilon) = (fields.windows(|layer| layer.is_multiple_of(2))?, fields.rms_norm_eps);
    let config = second(fields.config(&GEMMA2)?, &own, windows, epsilon);
    Ok(config.with_layers(|layer| layer.attention.softcap = own.attn_logit_softcapping))
}

fn read_3(value: Value) -> Result<Config> {
    gemma3(value, &GEMMA3)
}

fn read_3_in_multimodal(value: Value) -> Result<Config> {
    /// The text model's config is a part of the whole.
    #[derive(Deserialize)]
    struct Whole {
        text_config: Option<Value>,
        eos_token_id: Option<Value>,
        tie_word_embeddings: Option<bool>,
    }
    let whole: Whole = fields(value)?;
    let missing = || Error::Config { problem: "text_config is missing".into() };
    let mut text = whole.text_config.ok_or_else(missing)?;
    if let Some(object) = text.as_object_mut() {
        for (field, of_whole) in
            [("eos_token_id", whole.eos_token_id), ("tie_word_embeddings", whole.tie_word_embeddings.map(Value::from))]
        {
            if let Some(of_whole) = of_whole.filter(|value| !value.is_null()) {
                object.insert(field.to_owned(), of_whole);
            }
        }
    }
    let mut config = gemma3(text, &GEMMA3_IN_MULTIMODAL)?;
    // Hugging Face's multimodal class has none, whatever the config says.
    config.architecture.head.softcap = None;
    Ok(config)
}

/// Gemma 3: norms of queries and keys, and positions that turn faster in the layers that slide.
///
/// `attn_logit_softcapping` is read by nobody, as in Hugging Face.
fn gemma3(value: Value, family: &'static Family) -> Result<Config> {
    let mut defaults = defaults();
    (defaults["vocab_size"], defaults["max_position_embeddings"]) = (json!(262_208), json!(131_072));
    let (mut fields, own) = read_fields(value, defaults, ACTIVATIONS[1])?;
    let every = own.sliding_window_pattern.unwrap_or(6).max(1);
    let (windows, epsilon) = (fields.windows(|layer| !(layer + 1).is_multiple_of(every))?, fields.rms_norm_eps);
    let slides = |windows: &[Option<i64>], types: &Option<Vec<String>>, layer: usize| match types {
        Some(types) => types.get(layer).is_some_and(|kind| kind == "sliding_attention"),
        None => windows.get(layer).is_some_and(|_| !(layer as u64 + 1).is_multiple_of(every)),
    };
    let of_kind = (0..windows.len()).map(|layer| slides(&windows, &fields.layer_types, layer)).collect::<Vec<_>>();
    let rope = std::mem::take(&mut fields.rope);
    let d_head = fields.d_head()?;
    let mut rope_defaults = fields.rope_defaults(d_head);
    // One table for each kind of layer, or the old spelling, in which only full attention is scaled.
    let table = |kind: &str| rope.rope_parameters.as_ref().and_then(|tables| tables.get(kind)).cloned();
    let full = table("full_attention").or_else(|| rope.rope_scaling.clone());
    rope_defaults.base = 1_000_000.0;
    let global = RopeFields::default().rotary_of(full, rope.rope_theta, &rope_defaults)?;
    rope_defaults.base = 10_000.0;
    let local =
        RopeFields::default().rotary_of(table("sliding_attention"), own.rope_local_base_freq, &rope_defaults)?;
    let norm = Norm { kind: NormKind::RmsUnitOffset, epsilon };
    let mut config = second(fields.config(family)?, &own, windows, epsilon).with_layers(|layer| {
        layer.attention.query_key_norm = Some(QueryKeyNorm { norm, over: NormOver::TurnedHead });
    });
    for (layer, slides) in config.architecture.layers.iter_mut().zip(of_kind) {
        layer.attention.rotary = Some(if slides { local.clone() } else { global.clone() });
    }
    Ok(config)
}
