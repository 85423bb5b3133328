//! Sizes and settings of a model, from Hugging Face's `config.json`.

use serde::Deserialize;

use crate::{Activation, Error, Family, Result, family};

/// Which earlier positions a block attends to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttentionKind {
    /// All of them.
    Global,
    /// The last `window` positions, the token's own included.
    Local {
        /// Positions a token sees.
        window: i64,
    },
}

/// How one block attends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BlockAttention {
    /// To which positions.
    pub kind: AttentionKind,
    /// What query-key products are multiplied by before the softmax.
    pub scale: f64,
}

/// The most blocks a model may have. No published one has a quarter of them.
const MOST_LAYERS: u64 = 1 << 12;

/// Sizes and settings of a model.
///
/// The fields may be changed; whatever makes a model of a config checks it first ([`Config::check`]).
#[derive(Clone, Debug)]
pub struct Config {
    /// The family: tensor names, layouts, module names.
    pub family: &'static Family,
    /// Rows of the token embedding; may exceed the tokenizer's vocabulary.
    pub vocabulary: i64,
    /// Rows of the position embedding: the longest input.
    pub positions: i64,
    /// Width of the residual stream.
    pub d_model: i64,
    /// Attention heads of a block.
    pub heads: i64,
    /// Width of the MLP's hidden layer.
    pub d_mlp: i64,
    /// The MLP's non-linearity.
    pub activation: Activation,
    /// What layer norms add to the variance.
    pub layer_norm_epsilon: f64,
    /// How each block attends; its length is the number of blocks.
    pub blocks: Vec<BlockAttention>,
    /// Whether attention scores are computed in f32 whatever the dtype of the run.
    pub attention_in_f32: bool,
    /// Whether the unembedding is the token embedding. A checkpoint that holds both and in which they differ has its way.
    pub tied: bool,
    /// Tokens that end a generated text.
    pub end_tokens: Vec<i64>,
    /// Standard deviation of random initial weights.
    pub initializer_range: f64,
}

impl Config {
    /// Reads the text of a `config.json`.
    ///
    /// # Errors
    ///
    /// [`Error::UnsupportedModelType`] listing the supported ones; [`Error::Config`], [`Error::UnsupportedSetting`] and those
    /// of [`Config::check`] naming the field. Nothing is allocated for sizes that are refused.
    pub fn from_json(text: &str) -> Result<Self> {
        let malformed = |error: serde_json::Error| Error::Config { problem: error.to_string() };
        let value: serde_json::Value = serde_json::from_str(text).map_err(malformed)?;
        let model_type = match value.get("model_type") {
            Some(serde_json::Value::String(model_type)) => model_type.as_str(),
            Some(other) => return Err(Error::Config { problem: format!("model_type is {other}, expected a string") }),
            None => return Err(Error::Config { problem: "model_type is missing; is this a model's config?".into() }),
        };
        let config = match model_type {
            "gpt2" => serde_json::from_value::<Gpt2>(value).map_err(malformed)?.config()?,
            "gpt_neo" => serde_json::from_value::<GptNeo>(value).map_err(malformed)?.config()?,
            other => {
                let supported = family::ALL.iter().map(|family| family.model_type).collect();
                return Err(Error::UnsupportedModelType { found: other.to_owned(), supported });
            }
        };
        config.check()?;
        Ok(config)
    }

    /// Number of blocks.
    pub fn layers(&self) -> usize {
        self.blocks.len()
    }

    /// Width of one head; 0 for a config without heads, which no model can have.
    pub fn d_head(&self) -> i64 {
        self.d_model.checked_div(self.heads).unwrap_or(0)
    }

    /// The standard deviation of a matrix's random initial weights, as Radford et al. (2019) choose it: `initializer_range`,
    /// and `1 / sqrt(2 layers)` of it for the projections into the residual stream. `name` is the tensor's.
    pub fn initial_deviation(&self, name: &str) -> f64 {
        let residual = [self.family.attention_output.name, self.family.mlp_output.name];
        let is_residual = residual.iter().any(|module| name.ends_with(&format!(".{module}.weight")));
        let depth = if is_residual { (2.0 * self.layers() as f64).sqrt() } else { 1.0 };
        self.initializer_range / depth
    }

    /// Whether a model can have these sizes and settings: every size is within its bounds, so that the bytes of all weights
    /// together fit 64 bits, the heads divide the width, and no number is infinite or NaN.
    ///
    /// # Errors
    ///
    /// [`Error::ConfigNumber`], [`Error::HeadWidth`].
    pub fn check(&self) -> Result<()> {
        check_layers(self.blocks.len() as u64)?;
        for (field, found, most) in [
            ("the vocabulary size", self.vocabulary, 1 << 30),
            ("the number of positions", self.positions, 1 << 30),
            ("the hidden size", self.d_model, 1 << 20),
            ("the number of heads", self.heads, 1 << 20),
            ("the inner size", self.d_mlp, 1 << 20),
        ] {
            if !(1..=most).contains(&found) {
                return Err(number(field, found, format!("1 to {most}")));
            }
        }
        if self.d_model % self.heads != 0 {
            return Err(Error::HeadWidth { d_model: self.d_model, heads: self.heads });
        }
        for block in &self.blocks {
            if let AttentionKind::Local { window } = block.kind
                && window < 1
            {
                return Err(number("window_size", window, "at least 1"));
            }
            if !block.scale.is_finite() {
                return Err(number("the scale of attention", block.scale, "a finite number"));
            }
        }
        let epsilon = self.layer_norm_epsilon;
        if !(epsilon.is_finite() && epsilon >= 0.0) {
            return Err(number("layer_norm_epsilon", epsilon, "a finite number, at least 0"));
        }
        // So that no weight drawn with it leaves the range of f32.
        if !(0.0..=1e30).contains(&self.initializer_range) {
            return Err(number("initializer_range", self.initializer_range, "0 to 1e30"));
        }
        Ok(())
    }
}

fn number(field: &'static str, found: impl ToString, expected: impl Into<String>) -> Error {
    Error::ConfigNumber { field, found: found.to_string(), expected: expected.into() }
}

/// Refuses a number of layers before anything is made for each of them.
fn check_layers(layers: u64) -> Result<()> {
    if (1..=MOST_LAYERS).contains(&layers) {
        return Ok(());
    }
    Err(number("the number of layers", layers, format!("1 to {MOST_LAYERS}")))
}

#[derive(Deserialize)]
#[serde(untagged)]
enum EndTokens {
    One(i64),
    Several(Vec<i64>),
}

fn end_tokens(tokens: Option<EndTokens>) -> Vec<i64> {
    match tokens {
        None => Vec::new(),
        Some(EndTokens::One(token)) => vec![token],
        Some(EndTokens::Several(tokens)) => tokens,
    }
}

/// What `GPT2Config` fills in for absent fields.
#[derive(Deserialize)]
#[serde(default)]
struct Gpt2 {
    vocab_size: i64,
    n_positions: i64,
    n_embd: i64,
    n_layer: u64,
    n_head: i64,
    n_inner: Option<i64>,
    activation_function: String,
    layer_norm_epsilon: f64,
    initializer_range: f64,
    scale_attn_weights: bool,
    scale_attn_by_inverse_layer_idx: bool,
    reorder_and_upcast_attn: bool,
    add_cross_attention: bool,
    tie_word_embeddings: bool,
    eos_token_id: Option<EndTokens>,
}

impl Default for Gpt2 {
    fn default() -> Self {
        Self {
            vocab_size: 50257,
            n_positions: 1024,
            n_embd: 768,
            n_layer: 12,
            n_head: 12,
            n_inner: None,
            activation_function: "gelu_new".into(),
            layer_norm_epsilon: 1e-5,
            initializer_range: 0.02,
            scale_attn_weights: true,
            scale_attn_by_inverse_layer_idx: false,
            reorder_and_upcast_attn: false,
            add_cross_attention: false,
            tie_word_embeddings: true,
            eos_token_id: Some(EndTokens::One(50256)),
        }
    }
}

impl Gpt2 {
    fn config(self) -> Result<Config> {
        if self.add_cross_attention {
            let (setting, found) = ("add_cross_attention", "true".to_owned());
            return Err(Error::UnsupportedSetting { setting, found, supported: "false".into() });
        }
        check_layers(self.n_layer)?;
        // Sizes that make no sense here are refused by the check of the whole.
        let d_head = (self.n_embd / self.n_head.max(1)).max(1) as f64;
        let base = if self.scale_attn_weights { d_head.powf(-0.5) } else { 1.0 };
        let scale = |block: u64| {
            if self.scale_attn_by_inverse_layer_idx { base / (block + 1) as f64 } else { base }
        };
        let attention = |block| BlockAttention { kind: AttentionKind::Global, scale: scale(block) };
        Ok(Config {
            family: &family::GPT2,
            vocabulary: self.vocab_size,
            positions: self.n_positions,
            d_model: self.n_embd,
            heads: self.n_head,
            d_mlp: self.n_inner.unwrap_or_else(|| self.n_embd.saturating_mul(4)),
            activation: Activation::from_name(&self.activation_function)?,
            layer_norm_epsilon: self.layer_norm_epsilon,
            blocks: (0..self.n_layer).map(attention).collect(),
            attention_in_f32: self.reorder_and_upcast_attn,
            tied: self.tie_word_embeddings,
            end_tokens: end_tokens(self.eos_token_id),
            initializer_range: self.initializer_range,
        })
    }
}

/// What `GPTNeoConfig` fills in for absent fields.
#[derive(Deserialize)]
#[serde(default)]
struct GptNeo {
    vocab_size: i64,
    max_position_embeddings: i64,
    hidden_size: i64,
    num_layers: u64,
    attention_types: Option<Vec<(Vec<String>, u64)>>,
    num_heads: i64,
    intermediate_size: Option<i64>,
    window_size: i64,
    activation_function: String,
    layer_norm_epsilon: f64,
    initializer_range: f64,
    tie_word_embeddings: bool,
    eos_token_id: Option<EndTokens>,
}

impl Default for GptNeo {
    fn default() -> Self {
        Self {
            vocab_size: 50257,
            max_position_embeddings: 2048,
            hidden_size: 2048,
            num_layers: 24,
            attention_types: None,
            num_heads: 16,
            intermediate_size: None,
            window_size: 256,
            activation_function: "gelu_new".into(),
            layer_norm_epsilon: 1e-5,
            initializer_range: 0.02,
            tie_word_embeddings: true,
            eos_token_id: Some(EndTokens::One(50256)),
        }
    }
}

impl GptNeo {
    fn config(self) -> Result<Config> {
        let types = self.attention_types.unwrap_or_else(|| vec![(vec!["global".into(), "local".into()], 12)]);
        check_layers(self.num_layers)?;
        let kind = |name: &String| match name.as_str() {
            "global" => Ok(AttentionKind::Global),
            "local" => Ok(AttentionKind::Local { window: self.window_size }),
            other => {
                let (setting, found) = ("attention_types", other.to_owned());
                Err(Error::UnsupportedSetting { setting, found, supported: "global, local".into() })
            }
        };
        let patterns = types.iter().map(|(pattern, _)| pattern.iter().map(kind).collect::<Result<Vec<_>>>());
        let patterns = patterns.collect::<Result<Vec<_>>>()?;
        // Counted before they are made: a pattern of a few bytes may be repeated any number of times.
        let counts =
            patterns.iter().zip(&types).map(|(pattern, (_, times))| (pattern.len() as u64).saturating_mul(*times));
        let described = counts.fold(0, u64::saturating_add);
        if described != self.num_layers {
            return Err(Error::AttentionTypes { described, layers: self.num_layers });
        }
        let repeated = patterns.iter().zip(&types).filter(|(pattern, _)| !pattern.is_empty());
        let kinds = repeated.flat_map(|(pattern, (_, times))| (0..*times).flat_map(move |_| pattern));
        // GPT-Neo does not divide by the square root of the head's width.
        let blocks = kinds.map(|&kind| BlockAttention { kind, scale: 1.0 }).collect();
        Ok(Config {
            family: &family::GPT_NEO,
            vocabulary: self.vocab_size,
            positions: self.max_position_embeddings,
            d_model: self.hidden_size,
            heads: self.num_heads,
            d_mlp: self.intermediate_size.unwrap_or_else(|| self.hidden_size.saturating_mul(4)),
            activation: Activation::from_name(&self.activation_function)?,
            layer_norm_epsilon: self.layer_norm_epsilon,
            blocks,
            attention_in_f32: true,
            tied: self.tie_word_embeddings,
            end_tokens: end_tokens(self.eos_token_id),
            initializer_range: self.initializer_range,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;
    use crate::Model;

    fn refused(json: &str) -> Error {
        Config::from_json(json).expect_err(json)
    }

    #[test]
    fn sizes_that_no_model_has_are_refused_before_anything_is_made_for_them() {
        for (settings, field) in [
            (r#""n_layer": 0"#, "the number of layers"),
            (r#""n_layer": 10000000000000"#, "the number of layers"),
            (r#""n_layer": 1000000000000000000"#, "the number of layers"),
            (r#""n_layer": 1073741824"#, "the number of layers"),
            (r#""n_embd": 9223372036854775807"#, "the hidden size"),
            (r#""n_embd": 4611686018427387904, "n_head": -1"#, "the hidden size"),
            (r#""n_embd": -9223372036854775808"#, "the hidden size"),
            (r#""n_head": 0"#, "the number of heads"),
            (r#""n_inner": 1099511627776"#, "the inner size"),
            (r#""n_positions": 0"#, "the number of positions"),
            (r#""layer_norm_epsilon": -1e-5"#, "layer_norm_epsilon"),
            (r#""initializer_range": 1e300"#, "initializer_range"),
        ] {
            let error = refused(&format!(r#"{{"model_type": "gpt2", {settings}}}"#));
            assert!(
                matches!(&error, Error::ConfigNumber { field: named, .. } if *named == field),
                "{settings}: {error}"
            );
        }
        // JSON has no infinity; what would round to it is no number.
        for field in ["layer_norm_epsilon", "initializer_range"] {
            assert!(matches!(refused(&format!(r#"{{"model_type": "gpt2", "{field}": 1e999}}"#)), Error::Config { .. }));
        }
    }

    #[test]
    fn attention_types_are_counted_before_they_are_repeated() {
        let neo = |types: &str, layers: u64| {
            refused(&format!(r#"{{"model_type": "gpt_neo", "num_layers": {layers}, "attention_types": {types}}}"#))
        };
        for (types, count) in [
            (r#"[[["global", "local"], 1000000]]"#, 2_000_000),
            (r#"[[["global"], 18446744073709551615], [["local"], 5]]"#, u64::MAX),
            (r#"[[["global", "local"], 9223372036854775808]]"#, u64::MAX),
            (r#"[[[], 18446744073709551615]]"#, 0),
        ] {
            let error = neo(types, 24);
            assert!(matches!(error, Error::AttentionTypes { described, layers: 24 } if described == count), "{error}");
        }
        let billions = neo(r#"[[["global"], 1073741824]]"#, 1 << 30);
        assert!(matches!(billions, Error::ConfigNumber { field: "the number of layers", .. }), "{billions}");
        let unknown = neo(r#"[[["global"], 24], [["sparse"], 0]]"#, 24);
        assert!(matches!(unknown, Error::UnsupportedSetting { .. }), "{unknown}");
        let empty =
            r#"{"model_type": "gpt_neo", "num_layers": 1, "attention_types": [[[], 9999999999], [["local"], 1]]}"#;
        assert_eq!(Config::from_json(empty).unwrap().layers(), 1);
    }

    #[test]
    fn no_model_is_made_of_fields_that_were_changed_for_the_worse() {
        let good = Config::from_json(r#"{"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 8}"#).unwrap();
        let local = |window| BlockAttention { kind: AttentionKind::Local { window }, scale: 1.0 };
        let global = |scale| BlockAttention { kind: AttentionKind::Global, scale };
        let changes: [fn(&mut Config); 8] = [
            |config| config.heads = 0,
            |config| config.heads = 3,
            |config| config.d_model = i64::MAX,
            |config| config.vocabulary = -1,
            |config| config.blocks.clear(),
            |config| config.layer_norm_epsilon = f64::NAN,
            |config| config.layer_norm_epsilon = f64::INFINITY,
            |config| config.initializer_range = f64::NAN,
        ];
        let mut configs: Vec<Config> = changes.iter().map(|_| good.clone()).collect();
        changes.iter().zip(&mut configs).for_each(|(change, config)| change(config));
        for blocks in [vec![local(0)], vec![global(f64::NAN)], vec![global(1.0); 5000]] {
            configs.push(Config { blocks, ..good.clone() });
        }
        for config in configs {
            let refused = |error: Error| matches!(error, Error::ConfigNumber { .. } | Error::HeadWidth { .. });
            assert!(config.d_head() >= 0);
            assert!(refused(Model::tensor_shapes(&config).unwrap_err()), "{config:?}");
            assert!(refused(Model::random(config.clone(), 0).err().unwrap()), "{config:?}");
            assert!(refused(Model::from_tensors(config.clone(), &HashMap::new()).err().unwrap()), "{config:?}");
        }
        assert!(Model::tensor_shapes(&good).is_ok());
    }

    /// Numbers that configs have, and those that break code.
    fn numbers() -> impl Strategy<Value = String> {
        let edges = "0 -1 1 2 4096 4097 1048576 1048577 1073741824 4294967296 10000000000000 1000000000000000000 \
            4611686018427387904 9223372036854775807 -9223372036854775808 9223372036854775808 18446744073709551615 1e13 0.5 \
            -0.0 1e300 1e999 null \"12\"";
        let edges: Vec<&str> = edges.split(' ').collect();
        prop_oneof![
            3 => (1_i64..300).prop_map(|number| number.to_string()),
            2 => proptest::sample::select(edges).prop_map(str::to_owned),
            1 => any::<i64>().prop_map(|number| number.to_string()),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_numbers_give_a_config_within_its_bounds_or_an_error(
            neo in any::<bool>(),
            chosen in proptest::collection::vec((0_usize..8, numbers()), 0..5),
            pattern in 0_usize..4,
            times in numbers(),
        ) {
            let fields = if neo {
                ["vocab_size", "max_position_embeddings", "hidden_size", "num_layers", "num_heads", "intermediate_size",
                 "window_size", "layer_norm_epsilon"]
            } else {
                ["vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner", "initializer_range",
                 "layer_norm_epsilon"]
            };
            let family = if neo { "gpt_neo" } else { "gpt2" };
            let mut json = format!(r#"{{"model_type": "{family}""#);
            if neo {
                json += &format!(r#", "attention_types": [[{:?}, {times}]]"#, vec!["local"; pattern]);
            }
            for (field, number) in chosen {
                json += &format!(r#", "{}": {number}"#, fields[field]);
            }
            if let Ok(config) = Config::from_json(&(json + "}")) {
                prop_assert!((1..=MOST_LAYERS as usize).contains(&config.layers()));
                prop_assert!(config.d_head() >= 1);
                let shapes = Model::tensor_shapes(&config).unwrap();
                let elements = shapes.iter().try_fold(0_i64, |sum, (_, shape)| {
                    let product = shape.iter().try_fold(1_i64, |product, &size| product.checked_mul(size))?;
                    sum.checked_add(product)
                });
                // Of eight bytes each.
                prop_assert!(elements.is_some_and(|elements| elements.checked_mul(8).is_some()));
            }
        }
    }
}
