//! What tells one model family from another, as data.

use crate::Point;

/// How a family spells its tensors and modules, and which way its matrices lie.
///
/// Names are relative to the block for everything inside one. A new family is a new value of this type, and whatever
/// the decoder skeleton does not yet know how to do.
#[derive(Debug)]
pub struct Family {
    /// The `model_type` of its configs.
    pub model_type: &'static str,
    /// What Hugging Face calls it.
    pub title: &'static str,
    /// Which way matrices lie.
    pub(crate) matrices: Matrices,
    pub(crate) query_key_value: QueryKeyValue,
    pub(crate) attention_output: LinearSpec,
    pub(crate) mlp_input: LinearSpec,
    pub(crate) mlp_output: LinearSpec,
    /// Tensors of a block that checkpoints carry and that are no weights: causal masks of old versions.
    pub(crate) buffers: &'static [&'static str],
    /// Whether the family's own causal mask and the padding mask are added up, rather than joined. It matters only in rows
    /// that are padding themselves.
    pub(crate) adds_masks: bool,
    /// Every name of a point inside a block, the preferred one first.
    pub(crate) block_points: &'static [(Point, &'static [&'static str])],
}

/// Which way matrices lie in the checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Matrices {
    /// `[in, out]`, GPT-2's `Conv1D`.
    InOut,
    /// `[out, in]`, `nn.Linear`.
    OutIn,
}

/// A matrix and, where the family has one, its bias.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LinearSpec {
    pub(crate) name: &'static str,
    pub(crate) bias: bool,
}

/// How queries, keys and values are projected.
#[derive(Clone, Copy, Debug)]
pub(crate) enum QueryKeyValue {
    /// By one matrix, side by side.
    Fused(LinearSpec),
    /// By one matrix each.
    Separate([LinearSpec; 3]),
}

const fn linear(name: &'static str, bias: bool) -> LinearSpec {
    LinearSpec { name, bias }
}

/// All families.
pub(crate) const ALL: [&Family; 2] = [&GPT2, &GPT_NEO];

/// Radford et al., 2019.
pub(crate) static GPT2: Family = Family {
    model_type: "gpt2",
    title: "GPT-2",
    matrices: Matrices::InOut,
    query_key_value: QueryKeyValue::Fused(linear("attn.c_attn", true)),
    attention_output: linear("attn.c_proj", true),
    mlp_input: linear("mlp.c_fc", true),
    mlp_output: linear("mlp.c_proj", true),
    buffers: &["attn.bias", "attn.masked_bias"],
    adds_masks: false,
    block_points: &[
        (Point::Norm1, &["ln_1"]),
        (Point::QueryKeyValue, &["attn.c_attn"]),
        (Point::HeadQuery, &["attn.q"]),
        (Point::HeadKey, &["attn.k"]),
        (Point::HeadValue, &["attn.v"]),
        (Point::Scores, &["attn.scores"]),
        (Point::Pattern, &["attn.pattern", "attn.attn_dropout"]),
        (Point::Z, &["attn.z"]),
        (Point::HeadOutput, &["attn.result"]),
        (Point::AttentionOutput, &["attn", "attn.c_proj", "attn.resid_dropout"]),
        (Point::ResidMid, &["resid_mid"]),
        (Point::Norm2, &["ln_2"]),
        (Point::MlpInput, &["mlp.c_fc"]),
        (Point::MlpActivation, &["mlp.act"]),
        (Point::MlpOutput, &["mlp", "mlp.c_proj", "mlp.dropout"]),
        (Point::Output, &[""]),
    ],
};

/// Black et al., 2021.
pub(crate) static GPT_NEO: Family = Family {
    model_type: "gpt_neo",
    title: "GPT-Neo",
    matrices: Matrices::OutIn,
    query_key_value: QueryKeyValue::Separate([
        linear("attn.attention.q_proj", false),
        linear("attn.attention.k_proj", false),
        linear("attn.attention.v_proj", false),
    ]),
    attention_output: linear("attn.attention.out_proj", true),
    mlp_input: linear("mlp.c_fc", true),
    mlp_output: linear("mlp.c_proj", true),
    buffers: &["attn.attention.bias", "attn.attention.masked_bias"],
    adds_masks: true,
    block_points: &[
        (Point::Norm1, &["ln_1"]),
        (Point::Query, &["attn.attention.q_proj"]),
        (Point::Key, &["attn.attention.k_proj"]),
        (Point::Value, &["attn.attention.v_proj"]),
        (Point::HeadQuery, &["attn.q"]),
        (Point::HeadKey, &["attn.k"]),
        (Point::HeadValue, &["attn.v"]),
        (Point::Scores, &["attn.scores"]),
        (Point::Pattern, &["attn.pattern", "attn.attention.attn_dropout"]),
        (Point::Z, &["attn.z"]),
        (Point::HeadOutput, &["attn.result"]),
        (
            Point::AttentionOutput,
            &["attn", "attn.attention", "attn.attention.out_proj", "attn.attention.resid_dropout"],
        ),
        (Point::ResidMid, &["resid_mid"]),
        (Point::Norm2, &["ln_2"]),
        (Point::MlpInput, &["mlp.c_fc"]),
        (Point::MlpActivation, &["mlp.act"]),
        (Point::MlpOutput, &["mlp", "mlp.c_proj", "mlp.dropout"]),
        (Point::Output, &[""]),
    ],
};
