//! Sizes and settings of a model, from Hugging Face's `config.json`.

use lowmem::Checkpoint;

use crate::{Architecture, Error, Family, Point, Result, architecture::number, gguf};

/// What a `config.json` says: the network, whose family spells its tensors, and how it is used.
///
/// The fields may be changed; whatever makes a model of a config checks it first ([`Config::check`]).
#[derive(Clone, Debug)]
pub struct Config {
    /// The family: tensor names, layouts, module names.
    pub family: &'static Family,
    /// The network.
    pub architecture: Architecture,
    /// Tokens that end a generated text.
    pub end_tokens: Vec<i64>,
    /// Standard deviation of random initial weights.
    pub initializer_range: f64,
}

/// How a fresh tensor's values begin.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Initial {
    /// A matrix: normal numbers of mean 0 and this deviation.
    Normal {
        /// The standard deviation.
        deviation: f64,
    },
    /// The weight of a norm: this value, which changes nothing.
    Norm {
        /// One, or zero where it is added to one.
        value: f64,
    },
    /// A bias: zero.
    Bias,
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
        Self::from_value(serde_json::from_str(text).map_err(malformed)?)
    }

    /// The config of a checkpoint: its `config.json`, or the metadata of a GGUF file.
    ///
    /// # Errors
    ///
    /// As [`Config::from_json`]; [`Error::UnsupportedGguf`] listing the architectures that run; [`Error::Weights`] naming the key.
    pub fn of(checkpoint: &Checkpoint) -> Result<Self> {
        match checkpoint.gguf() {
            Some(metadata) => gguf::config(checkpoint, metadata),
            None => Self::from_json(&checkpoint.read_text("config.json")?),
        }
    }

    pub(crate) fn from_value(value: serde_json::Value) -> Result<Self> {
        let family = match value.get("model_type") {
            Some(serde_json::Value::String(model_type)) => Family::of(model_type)?,
            Some(other) => return Err(Error::Config { problem: format!("model_type is {other}, expected a string") }),
            None => return Err(Error::Config { problem: "model_type is missing; is this a model's config?".into() }),
        };
        let config = (family.read)(value)?;
        config.check()?;
        Ok(config)
    }

    /// Number of blocks.
    pub fn layers(&self) -> usize {
        self.architecture.layers.len()
    }

    /// How a tensor of a fresh model begins, as Radford et al. (2019) have it: normal numbers with `initializer_range`, and
    /// `1 / sqrt(2 layers)` of it for the projections into the residual stream. `name` is the tensor's, `shape` its shape.
    pub fn initial(&self, name: &str, shape: &[i64]) -> Initial {
        let (module, kind) = name.rsplit_once('.').unwrap_or((name, ""));
        if kind == "bias" || kind.ends_with("_bias") {
            return Initial::Bias;
        }
        let ends = |own: &str| module == own || module.strip_suffix(own).is_some_and(|rest| rest.ends_with('.'));
        // Of an expert's module, what follows its number.
        let of_expert = |point| {
            let own = self.family.expert_modules.iter().find(|(of, _)| *of == point);
            own.and_then(|(_, name)| name.rsplit('.').next())
        };
        let is = |point| self.family.module(point).is_some_and(ends) || of_expert(point).is_some_and(ends);
        if shape.len() == 1 && kind == "weight" {
            let norms =
                self.architecture.final_norm.into_iter().chain(self.architecture.layers.iter().flat_map(|layer| {
                    let norms = [layer.attention_norms, layer.mlp_norms];
                    norms.into_iter().flat_map(|norms| [norms.before, norms.after, norms.stream]).flatten()
                }));
            return Initial::Norm { value: norms.last().map_or(1.0, |norm| norm.kind.neutral_weight()) };
        }
        let is_residual = is(Point::AttentionOutput) || is(Point::MlpOutput);
        let depth = if is_residual { (2.0 * self.layers() as f64).sqrt() } else { 1.0 };
        Initial::Normal { deviation: self.initializer_range / depth }
    }

    /// Whether a model can have these sizes and settings: those of [`Architecture::check`], and an `initializer_range` that
    /// keeps weights within f32.
    ///
    /// # Errors
    ///
    /// [`Error::ConfigNumber`].
    pub fn check(&self) -> Result<()> {
        self.architecture.check()?;
        // So that no weight drawn with it leaves the range of f32.
        if !(0.0..=1e30).contains(&self.initializer_range) {
            return Err(number("initializer_range", self.initializer_range, "0 to 1e30"));
        }
        Ok(())
    }
}
#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;
    use crate::{Model, architecture::MOST_LAYERS};

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
            (r#""layer_norm_epsilon": -1e-5"#, "the epsilon of a norm"),
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
        let changes: [fn(&mut Config); 14] = [
            |config| config.architecture.layers[1].attention.heads = 0,
            |config| config.architecture.layers[1].attention.kv_heads = 3,
            |config| config.architecture.layers[1].attention.d_head = -1,
            |config| config.architecture.layers[1].attention.window = Some(0),
            |config| config.architecture.layers[1].attention.scale = f64::NAN,
            |config| config.architecture.layers[1].attention.softcap = Some(0.0),
            |config| config.architecture.layers[1].mlp.d_mlp = 0,
            |config| config.architecture.d_model = i64::MAX,
            |config| config.architecture.vocabulary = -1,
            |config| config.architecture.layers.clear(),
            |config| config.architecture.layers = vec![config.architecture.layers[0].clone(); 5000],
            |config| config.architecture.final_norm.as_mut().unwrap().epsilon = f64::NAN,
            |config| config.architecture.layers[0].mlp_norms.before.as_mut().unwrap().epsilon = f64::INFINITY,
            |config| config.initializer_range = f64::NAN,
        ];
        let mut configs: Vec<Config> = changes.iter().map(|_| good.clone()).collect();
        changes.iter().zip(&mut configs).for_each(|(change, config)| change(config));
        for config in configs {
            let refused = |error: Error| matches!(error, Error::ConfigNumber { .. } | Error::HeadWidth { .. });
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
                prop_assert!(config.architecture.layers.iter().all(|layer| layer.attention.d_head >= 1));
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
