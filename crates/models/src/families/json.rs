//! What configs of several families have in common.

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{Error, Result, Rotary, RotaryModule, RotaryPairs, RotaryScaling, architecture::within};

pub(super) fn malformed(error: serde_json::Error) -> Error {
    Error::Config { problem: error.to_string() }
}

/// Reads a family's fields.
pub(super) fn fields<T: DeserializeOwned>(value: Value) -> Result<T> {
    serde_json::from_value(value).map_err(malformed)
}

/// Refuses a setting that is not implemented.
pub(super) fn refuse(setting: &'static str, found: impl ToString, supported: &str) -> Error {
    Error::UnsupportedSetting { setting, found: found.to_string(), supported: supported.to_owned() }
}

/// Reads a family's fields; those that the config does not have are `defaults`'.
pub(super) fn fields_over<T: DeserializeOwned>(value: Value, defaults: Value) -> Result<T> {
    let (Value::Object(value), Value::Object(mut all)) = (value, defaults) else {
        return Err(Error::Config { problem: "it is no object".into() });
    };
    all.extend(value);
    fields(Value::Object(all))
}

/// The width of one of `heads` that share `d_model` evenly.
pub(super) fn head_width(d_model: i64, heads: i64) -> Result<i64> {
    within("the hidden size", d_model, 1 << 20)?;
    within("the number of heads", heads, 1 << 20)?;
    if d_model % heads == 0 { Ok(d_model / heads) } else { Err(Error::HeadWidth { d_model, heads }) }
}

#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum EndTokens {
    One(i64),
    Several(Vec<i64>),
}

pub(super) fn end_tokens(tokens: Option<EndTokens>) -> Vec<i64> {
    match tokens {
        None => Vec::new(),
        Some(EndTokens::One(token)) => vec![token],
        Some(EndTokens::Several(tokens)) => tokens,
    }
}

/// The fields of rotary positions as transformers 5 (`rope_parameters`) and 4 (`rope_theta`, `rope_scaling`) write them.
#[derive(Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct RopeFields {
    pub(super) rope_parameters: Option<Value>,
    pub(super) rope_scaling: Option<Value>,
    pub(super) rope_theta: Option<f64>,
    pub(super) partial_rotary_factor: Option<f64>,
    pub(super) original_max_position_embeddings: Option<i64>,
}

/// What `rope_parameters` says of one kind of layer.
#[derive(Clone, Default, Deserialize)]
#[serde(default)]
struct Parameters {
    rope_type: Option<String>,
    /// The same in the oldest configs.
    r#type: Option<String>,
    rope_theta: Option<f64>,
    partial_rotary_factor: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<i64>,
    attention_factor: Option<f64>,
    beta_fast: Option<f64>,
    beta_slow: Option<f64>,
    mscale: Option<f64>,
    mscale_all_dim: Option<f64>,
    truncate: Option<bool>,
    short_factor: Option<Vec<f64>>,
    long_factor: Option<Vec<f64>>,
}

/// What a family fills in, and what the parameters are relative to.
pub(super) struct RopeDefaults {
    pub(super) base: f64,
    pub(super) share: f64,
    pub(super) d_head: i64,
    pub(super) context: i64,
}

impl RopeFields {
    /// Rotary positions of all layers.
    pub(super) fn rotary(&self, defaults: &RopeDefaults) -> Result<Rotary> {
        let parameters = self.rope_scaling.clone().or_else(|| self.rope_parameters.clone());
        self.rotary_of(parameters, self.rope_theta, defaults)
    }

    /// Rotary positions by one table of parameters.
    pub(super) fn rotary_of(
        &self,
        parameters: Option<Value>,
        theta: Option<f64>,
        defaults: &RopeDefaults,
    ) -> Result<Rotary> {
        let parameters: Parameters = match parameters {
            Some(Value::Null) | None => Parameters::default(),
            Some(value) => fields(value)?,
        };
        let base = parameters.rope_theta.or(theta).unwrap_or(defaults.base);
        let share = parameters.partial_rotary_factor.or(self.partial_rotary_factor).unwrap_or(defaults.share);
        // As Hugging Face rounds.
        let dimensions = (defaults.d_head as f64 * share) as i64;
        let original = self.original_max_position_embeddings.or(parameters.original_max_position_embeddings);
        let scaling = parameters.scaling(original, defaults.context)?;
        Ok(Rotary {
            dimensions,
            base,
            pairs: RotaryPairs::Halves,
            scaling,
            in_f32: false,
            module: RotaryModule::EachDimension,
        })
    }
}

impl Parameters {
    fn scaling(self, original: Option<i64>, context: i64) -> Result<RotaryScaling> {
        let kind = self.rope_type.or(self.r#type).unwrap_or_else(|| "default".to_owned());
        let missing = |field: &str| Error::Config { problem: format!("rope_type {kind:?} needs {field}") };
        let factor = self.factor.ok_or_else(|| missing("factor"));
        match kind.as_str() {
            "default" => Ok(RotaryScaling::None),
            "linear" => Ok(RotaryScaling::Linear { factor: factor? }),
            "dynamic" => Ok(RotaryScaling::Dynamic { factor: factor?, context }),
            "llama3" => Ok(RotaryScaling::Llama3 {
                factor: factor?,
                low_frequency: self.low_freq_factor.ok_or_else(|| missing("low_freq_factor"))?,
                high_frequency: self.high_freq_factor.ok_or_else(|| missing("high_freq_factor"))?,
                original: original.unwrap_or(context) as f64,
            }),
            "yarn" => {
                let original = original.unwrap_or(context) as f64;
                let factor = factor.unwrap_or(context as f64 / original);
                let magnitude = |scale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 };
                let inferred = match (self.mscale, self.mscale_all_dim) {
                    (Some(one), Some(all)) if one != 0.0 && all != 0.0 => magnitude(one) / magnitude(all),
                    _ => magnitude(1.0),
                };
                Ok(RotaryScaling::Yarn {
                    factor,
                    fast: self.beta_fast.unwrap_or(32.0),
                    slow: self.beta_slow.unwrap_or(1.0),
                    original,
                    truncate: self.truncate.unwrap_or(true),
                    magnitude: self.attention_factor.unwrap_or(inferred),
                })
            }
            // "su" is what the first checkpoints call it.
            "longrope" | "su" => {
                let original = original.unwrap_or(context);
                let factor = self.factor.unwrap_or(context as f64 / original as f64);
                let inferred = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / (original as f64).ln()).sqrt() };
                Ok(RotaryScaling::Long {
                    short: self.short_factor.ok_or_else(|| missing("short_factor"))?,
                    long: self.long_factor.ok_or_else(|| missing("long_factor"))?,
                    original,
                    magnitude: self.attention_factor.unwrap_or(inferred),
                })
            }
            other => Err(refuse("rope_type", other, "default, linear, dynamic, llama3, yarn, longrope")),
        }
    }
}
