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

/// Sizes and settings of a model.
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
    /// [`Error::UnsupportedModelType`] listing the supported ones; [`Error::Config`] and [`Error::UnsupportedSetting`]
    /// naming the field.
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
        config.check()
    }

    /// Number of blocks.
    pub fn layers(&self) -> usize {
        self.blocks.len()
    }

    /// Width of one head.
    pub fn d_head(&self) -> i64 {
        self.d_model / self.heads
    }

    fn check(self) -> Result<Self> {
        let sizes = [
            ("vocab_size", self.vocabulary),
            ("number of positions", self.positions),
            ("hidden size", self.d_model),
            ("number of heads", self.heads),
            ("inner size", self.d_mlp),
            ("number of layers", self.blocks.len() as i64),
        ];
        // The bound keeps products of sizes within 64 bits.
        if let Some((name, found)) = sizes.into_iter().find(|(_, size)| !(1..=1 << 30).contains(size)) {
            return Err(Error::Config { problem: format!("the {name} is {found}, expected 1 to 2^30") });
        }
        if self.d_model % self.heads != 0 {
            let problem = format!("the hidden size {} is not a multiple of the {} heads", self.d_model, self.heads);
            return Err(Error::Config { problem });
        }
        Ok(self)
    }
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
    n_layer: usize,
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
        let d_head = (self.n_embd / self.n_head.max(1)) as f64;
        let base = if self.scale_attn_weights { d_head.powf(-0.5) } else { 1.0 };
        let scale = |block: usize| {
            if self.scale_attn_by_inverse_layer_idx { base / (block + 1) as f64 } else { base }
        };
        let attention = |block| BlockAttention { kind: AttentionKind::Global, scale: scale(block) };
        Ok(Config {
            family: &family::GPT2,
            vocabulary: self.vocab_size,
            positions: self.n_positions,
            d_model: self.n_embd,
            heads: self.n_head,
            d_mlp: self.n_inner.unwrap_or(4 * self.n_embd),
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
    num_layers: usize,
    attention_types: Option<Vec<(Vec<String>, usize)>>,
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
        let mut blocks = Vec::new();
        for (pattern, times) in types {
            if times > 1 << 20 {
                return Err(Error::Config { problem: format!("attention_types repeats {pattern:?} {times} times") });
            }
            for _ in 0..times {
                for name in &pattern {
                    let kind = match name.as_str() {
                        "global" => AttentionKind::Global,
                        "local" => AttentionKind::Local { window: self.window_size },
                        other => {
                            return Err(Error::UnsupportedSetting {
                                setting: "attention_types",
                                found: other.to_owned(),
                                supported: "global, local".into(),
                            });
                        }
                    };
                    // GPT-Neo does not divide by the square root of the head's width.
                    blocks.push(BlockAttention { kind, scale: 1.0 });
                }
            }
        }
        if blocks.len() != self.num_layers {
            let problem =
                format!("attention_types describes {} layers, num_layers is {}", blocks.len(), self.num_layers);
            return Err(Error::Config { problem });
        }
        if self.window_size < 1 {
            return Err(Error::Config { problem: format!("window_size is {}, expected at least 1", self.window_size) });
        }
        Ok(Config {
            family: &family::GPT_NEO,
            vocabulary: self.vocab_size,
            positions: self.max_position_embeddings,
            d_model: self.hidden_size,
            heads: self.num_heads,
            d_mlp: self.intermediate_size.unwrap_or(4 * self.hidden_size),
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
