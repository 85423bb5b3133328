//! GPT-Neo (Black et al., 2021): layers that see everything and layers that see a window, by turns.

use serde::Deserialize;
use serde_json::Value;

use super::{
    Family, Layout,
    json::{EndTokens, end_tokens, fields, head_width, refuse},
};
use crate::{
    Activation, Architecture, Attention, Config, Embedding, Error, Head, Layer, LearnedPositions, Masking, Mlp, Norm,
    NormKind, Norms, Point, Residual, Result, architecture::check_layers,
};

pub(super) static GPT_NEO: Family = Family {
    model_types: &["gpt_neo"],
    title: "GPT-Neo",
    read,
    prefixes: &["transformer."],
    layers: "h",
    layout: Layout::OutIn,
    modules: &[&[
        (Point::TokenEmbedding, "wte"),
        (Point::PositionEmbedding, "wpe"),
        (Point::Norm1, "ln_1"),
        (Point::Query, "attn.attention.q_proj"),
        (Point::Key, "attn.attention.k_proj"),
        (Point::Value, "attn.attention.v_proj"),
        (Point::AttentionOutput, "attn.attention.out_proj"),
        (Point::Norm2, "ln_2"),
        (Point::MlpInput, "mlp.c_fc"),
        (Point::MlpOutput, "mlp.c_proj"),
        (Point::FinalNorm, "ln_f"),
    ]],
    heads: &["lm_head"],
    aliases: &[
        (Point::Input, &["drop"]),
        (Point::Pattern, &["attn.attention.attn_dropout"]),
        (Point::AttentionOutput, &["attn.attention", "attn.attention.resid_dropout"]),
        (Point::MlpOutput, &["mlp.dropout"]),
    ],
    buffers: &["attn.attention.bias", "attn.attention.masked_bias"],
    expert_modules: &[],
    expert_layout: Layout::OutIn,
    sinks: "",
    foreign: &[],
};

/// What `GPTNeoConfig` fills in for absent fields.
#[derive(Deserialize)]
#[serde(default)]
struct Fields {
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

impl Default for Fields {
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

impl Fields {
    /// The window of each layer.
    fn windows(&self) -> Result<Vec<Option<i64>>> {
        let default = || vec![(vec!["global".into(), "local".into()], 12)];
        let types = self.attention_types.clone().unwrap_or_else(default);
        check_layers(self.num_layers)?;
        let window = |name: &String| match name.as_str() {
            "global" => Ok(None),
            "local" => Ok(Some(self.window_size)),
            other => Err(refuse("attention_types", other, "global, local")),
        };
        let patterns = types.iter().map(|(pattern, _)| pattern.iter().map(window).collect::<Result<Vec<_>>>());
        let patterns = patterns.collect::<Result<Vec<_>>>()?;
        // Counted before they are made: a pattern of a few bytes may be repeated any number of times.
        let counts =
            patterns.iter().zip(&types).map(|(pattern, (_, times))| (pattern.len() as u64).saturating_mul(*times));
        let described = counts.fold(0, u64::saturating_add);
        if described != self.num_layers {
            return Err(Error::AttentionTypes { described, layers: self.num_layers });
        }
        let repeated = patterns.iter().zip(&types).filter(|(pattern, _)| !pattern.is_empty());
        Ok(repeated.flat_map(|(pattern, (_, times))| (0..*times).flat_map(move |_| pattern)).copied().collect())
    }
}

fn read(value: Value) -> Result<Config> {
    let fields: Fields = fields(value)?;
    let windows = fields.windows()?;
    let d_head = head_width(fields.hidden_size, fields.num_heads)?;
    let norm = Norm { kind: NormKind::Layer { weights: true }, epsilon: fields.layer_norm_epsilon };
    let mlp = Mlp::plain(
        fields.intermediate_size.unwrap_or_else(|| fields.hidden_size.saturating_mul(4)),
        Activation::from_name(&fields.activation_function)?,
    );
    let layer = |window| Layer {
        residual: Residual::Sequential,
        attention_norms: Norms::before(norm),
        attention: Attention {
            // GPT-Neo does not divide by the square root of the head's width.
            scale: 1.0,
            window,
            output_bias: true,
            in_f32: true,
            ..Attention::plain(fields.num_heads, d_head)
        },
        mlp_norms: Norms::before(norm),
        mlp: mlp.clone(),
    };
    Ok(Config {
        family: &GPT_NEO,
        architecture: Architecture {
            vocabulary: fields.vocab_size,
            context: fields.max_position_embeddings,
            d_model: fields.hidden_size,
            embedding: Embedding {
                positions: Some(LearnedPositions { offset: 0, count_tokens: false }),
                ..Embedding::plain(fields.hidden_size)
            },
            layers: windows.into_iter().map(layer).collect(),
            final_norm: Some(norm),
            head: Head::plain(fields.tie_word_embeddings),
            masks: Masking::Added,
        },
        end_tokens: end_tokens(fields.eos_token_id),
        initializer_range: fields.initializer_range,
    })
}
