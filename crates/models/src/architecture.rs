//! What a network is, as data: the decoder runs an [`Architecture`] and knows no family.

use crate::{
    Activation, Error, Point, Result,
    rotary::{Rotary, RotaryModule},
};

/// The most layers a model may have. No published one has a quarter of them.
pub(crate) const MOST_LAYERS: u64 = 1 << 12;

/// A decoder-only network: embedding, layers, final norm, head.
#[derive(Clone, Debug, PartialEq)]
pub struct Architecture {
    /// Rows of the token embedding; may exceed the tokenizer's vocabulary.
    pub vocabulary: i64,
    /// The longest input that the model was made for. A model with learned positions can read no longer one.
    pub context: i64,
    /// Width of the residual stream.
    pub d_model: i64,
    /// From tokens to the stream that enters the first layer.
    pub embedding: Embedding,
    /// The layers, in order.
    pub layers: Vec<Layer>,
    /// The norm after the last layer, where there is one.
    pub final_norm: Option<Norm>,
    /// From the normed stream to logits.
    pub head: Head,
    /// What hides a position that is both in the future and padding.
    pub masks: Masking,
}

/// From tokens to a residual stream.
#[derive(Clone, Debug, PartialEq)]
pub struct Embedding {
    /// Width of a token's row; where it is not `d_model`, a matrix projects it.
    pub width: i64,
    /// What rows are multiplied by, rounded to the dtype of the run.
    pub scale: Option<f64>,
    /// Learned positions that are added; without them, attention knows positions by rotation.
    pub positions: Option<LearnedPositions>,
}

/// A position embedding.
#[derive(Clone, Debug, PartialEq)]
pub struct LearnedPositions {
    /// Its row of position 0.
    pub offset: i64,
    /// Whether a padded row's positions count its tokens, rather than its columns, where nothing else is asked for. Padding
    /// then has position -1.
    pub count_tokens: bool,
}

/// How the two halves of a layer join the residual stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Residual {
    /// Attention adds to the stream, and the MLP reads the sum.
    Sequential,
    /// Attention and MLP read the same stream, and both are added to it. Without a norm of its own, the MLP reads what
    /// attention reads.
    Parallel,
}

/// One layer: attention and MLP, each with its norms.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    /// How the halves join the residual stream.
    pub residual: Residual,
    /// Norms around attention.
    pub attention_norms: Norms,
    /// Attention.
    pub attention: Attention,
    /// Norms around the MLP.
    pub mlp_norms: Norms,
    /// The MLP.
    pub mlp: Mlp,
}

/// Where a half of a layer has norms.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Norms {
    /// On what the half reads.
    pub before: Option<Norm>,
    /// On what the half says, before it is added to the stream.
    pub after: Option<Norm>,
    /// On the residual stream itself, after the sum.
    pub stream: Option<Norm>,
}

impl Norms {
    /// Only on what the half reads, as most families have it.
    pub fn before(norm: Norm) -> Self {
        Self { before: Some(norm), ..Self::default() }
    }
}

/// A normalisation over the last dimension.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Norm {
    /// Which one.
    pub kind: NormKind,
    /// What is added to the variance, or to the mean square.
    pub epsilon: f64,
}

/// How a norm computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NormKind {
    /// `(x - mean) / sqrt(variance + ε) · w + b` (Ba et al., 2016).
    Layer {
        /// Whether it has a weight and a bias.
        weights: bool,
    },
    /// `x / sqrt(mean square + ε) · w` (Zhang and Sennrich, 2019), the quotient rounded to the dtype of the run before it is
    /// multiplied.
    Rms,
    /// The same, rounded after it is multiplied.
    RmsRoundedLast,
    /// `x / sqrt(mean square + ε) · (1 + w)`, rounded last: weights near zero mean nearly nothing.
    RmsUnitOffset,
}

impl NormKind {
    /// Whether it has a weight.
    pub fn has_weight(self) -> bool {
        self != Self::Layer { weights: false }
    }

    /// Whether it has a bias.
    pub fn has_bias(self) -> bool {
        self == Self::Layer { weights: true }
    }

    /// The weight that changes nothing.
    pub fn neutral_weight(self) -> f64 {
        if self == Self::RmsUnitOffset { 0.0 } else { 1.0 }
    }
}

/// How a layer attends.
#[derive(Clone, Debug, PartialEq)]
pub struct Attention {
    /// Query heads.
    pub heads: i64,
    /// Key and value heads, each shared by `heads / kv_heads` query heads (Ainslie et al., 2023).
    pub kv_heads: i64,
    /// Width of one head; need not be `d_model / heads`.
    pub d_head: i64,
    /// What query-key products are multiplied by.
    pub scale: f64,
    /// How many positions a token sees, its own included; `None` for all earlier ones.
    pub window: Option<i64>,
    /// `c` of `c · tanh(score / c)`, before the mask.
    pub softcap: Option<f64>,
    /// How positions rotate queries and keys (Su et al., 2021).
    pub rotary: Option<Rotary>,
    /// Norms of queries and keys before they are rotated.
    pub query_key_norm: Option<QueryKeyNorm>,
    /// How queries, keys and values are projected.
    pub projections: Projections,
    /// Whether these projections have biases.
    pub input_bias: bool,
    /// Whether the output projection has one.
    pub output_bias: bool,
    /// Whether scores are computed in f32 whatever the dtype of the run.
    pub in_f32: bool,
    /// Whether each head has a sink: a score of its own beside those of the positions, which takes its share of the softmax and
    /// says nothing (Xiao et al., 2024).
    pub sinks: bool,
}

/// Norms of queries and keys.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QueryKeyNorm {
    /// How it computes.
    pub norm: Norm,
    /// Over what.
    pub over: NormOver,
}

/// What a norm of queries and keys is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NormOver {
    /// Each head by itself, with weights `[d_head]`; Hugging Face's module gives `[batch, position, head, d_head]`.
    Head,
    /// The same, and the module gives `[batch, head, position, d_head]`.
    TurnedHead,
    /// All heads together, with weights `[heads · d_head]` and `[kv_heads · d_head]`.
    AllHeads,
}

/// How the projections to queries, keys and values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Projections {
    /// One matrix each.
    Separate,
    /// One matrix, all queries, then all keys, then all values.
    SideBySide,
    /// One matrix, for each head its query, key and value.
    HeadByHead,
}

/// What a layer computes at each position by itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Mlp {
    /// Width of the hidden layer: the neurons. With experts, of each of them.
    pub d_mlp: i64,
    /// The non-linearity.
    pub activation: Activation,
    /// Whether a second projection, the gate, decides how much of each neuron passes.
    pub gate: Gate,
    /// What is done to gate and input before they are multiplied.
    pub bounds: Option<Bounds>,
    /// Whether the projections have biases.
    pub bias: bool,
    /// Where there are several such MLPs, and each token goes to some of them.
    pub experts: Option<Experts>,
}

/// Bounds on what a gated MLP multiplies: `activation(min(gate, limit)) · (clamp(input, -limit, limit) + offset)`, as gpt-oss
/// has them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bounds {
    /// The most that the gate, and the input in size, may be.
    pub limit: f64,
    /// What is added to the input.
    pub offset: f64,
}

/// A mixture of experts (Shazeer et al., 2017): a router scores them for each token, and what the best ones say is added up,
/// each weighted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Experts {
    /// How many there are.
    pub count: i64,
    /// How many each token goes to.
    pub chosen: i64,
    /// From scores to weights.
    pub routing: Routing,
    /// Whether the scores have a bias.
    pub router_bias: bool,
}

/// How a router's scores become weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Routing {
    /// The best by a softmax over all experts, computed in f32.
    SoftmaxFirst {
        /// Whether the weights of the chosen ones are made to add up to one.
        renormalised: bool,
        /// Whether they are rounded to the dtype of the run.
        rounded: bool,
    },
    /// The best by their scores, weighted by a softmax over theirs alone.
    BestFirst,
}

/// The gate of an MLP (Shazeer, 2020): neurons are `activation(gate(x)) · up(x)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Gate {
    /// None: neurons are `activation(in(x))`.
    None,
    /// By a matrix of its own.
    Separate,
    /// In one matrix with the other projection, before it.
    SideBySide,
    /// In one matrix with the other projection, one of each in turn, the gate first.
    Interleaved,
}

/// From the normed stream to logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Head {
    /// Whether the unembedding is the token embedding. A checkpoint that holds both and in which they differ has its way.
    pub tied: bool,
    /// Whether logits have a bias.
    pub bias: bool,
    /// `c` of `c · tanh(logit / c)`.
    pub softcap: Option<f64>,
}

/// What hides a position that is both in the future and padding. It matters only in rows that are padding themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Masking {
    /// Hidden once, by the least number of the dtype.
    Joined,
    /// The causal and the padding mask are added up.
    Added,
}

impl Embedding {
    /// Rows as wide as the stream, and positions that are not added to them.
    pub fn plain(width: i64) -> Self {
        Self { width, scale: None, positions: None }
    }
}

impl Mlp {
    /// `out(activation(in(x)))`, with biases.
    pub fn plain(d_mlp: i64, activation: Activation) -> Self {
        Self { d_mlp, activation, gate: Gate::None, bounds: None, bias: true, experts: None }
    }
}

impl Head {
    /// Without a bias and without a softcap.
    pub fn plain(tied: bool) -> Self {
        Self { tied, bias: false, softcap: None }
    }
}

impl Attention {
    /// As Vaswani et al. (2017) have it: keys of its own for each head, scores divided by the root of its width, everything
    /// before a token in sight; a matrix each for queries, keys and values, without biases.
    pub fn plain(heads: i64, d_head: i64) -> Self {
        Self {
            heads,
            kv_heads: heads,
            d_head,
            scale: (d_head as f64).powf(-0.5),
            window: None,
            softcap: None,
            rotary: None,
            query_key_norm: None,
            projections: Projections::Separate,
            input_bias: false,
            output_bias: false,
            in_f32: false,
            sinks: false,
        }
    }

    /// Width of the queries, `heads · d_head`.
    pub fn query_width(&self) -> i64 {
        self.heads * self.d_head
    }

    /// Width of the keys, and of the values.
    pub fn key_width(&self) -> i64 {
        self.kv_heads * self.d_head
    }
}

impl Layer {
    /// The places of a layer that have a value, in the order in which they are computed.
    pub fn points(&self) -> Vec<Point> {
        let mut points = Vec::with_capacity(32);
        let norms = &self.attention_norms;
        points.extend(norms.before.map(|_| Point::Norm1));
        match self.attention.projections {
            Projections::Separate => points.extend([Point::Query, Point::Key, Point::Value]),
            Projections::SideBySide | Projections::HeadByHead => points.push(Point::QueryKeyValue),
        }
        points.extend([Point::HeadQuery, Point::HeadKey, Point::HeadValue]);
        if self.attention.query_key_norm.is_some() {
            points.extend([Point::QueryNorm, Point::KeyNorm]);
        }
        if self.attention.rotary.is_some() {
            points.extend([Point::RotatedQuery, Point::RotatedKey]);
        }
        points.extend([Point::Scores, Point::Pattern, Point::Z, Point::HeadOutput, Point::AttentionOutput]);
        points.extend(norms.after.map(|_| Point::AttentionNorm));
        points.extend(norms.stream.map(|_| Point::Norm1));
        if self.residual == Residual::Sequential {
            points.push(Point::ResidMid);
        }
        points.extend(self.mlp_norms.before.map(|_| Point::Norm2));
        if let Some(experts) = self.mlp.experts {
            points.extend([Point::Router, Point::ExpertChoice, Point::ExpertWeights]);
            points.extend((0..experts.count as usize).map(Point::Expert));
            points.push(Point::ExpertSum);
        }
        let dense = self.mlp.experts.is_none().then_some(self.mlp.gate);
        points.extend(dense.map_or([].as_slice(), |gate| match gate {
            Gate::None => [Point::MlpInput, Point::MlpActivation].as_slice(),
            Gate::Separate => &[Point::MlpGate, Point::MlpActivation, Point::MlpInput, Point::Neurons],
            Gate::SideBySide | Gate::Interleaved => &[Point::MlpGateInput, Point::MlpActivation, Point::Neurons],
        }));
        points.push(Point::MlpOutput);
        points.extend(self.mlp_norms.after.map(|_| Point::MlpNorm));
        points.extend(self.mlp_norms.stream.map(|_| Point::Norm2));
        points.push(Point::Output);
        points
    }

    /// Where what the output projection of the MLP reads is: its neurons.
    pub fn neurons(&self) -> Point {
        if self.mlp.gate == Gate::None { Point::MlpActivation } else { Point::Neurons }
    }

    /// Where what attention adds to the residual stream is read.
    pub fn attention_added(&self) -> Point {
        if self.attention_norms.after.is_some() { Point::AttentionNorm } else { Point::AttentionOutput }
    }

    /// Where what the MLP adds to the residual stream is read.
    pub fn mlp_added(&self) -> Point {
        if self.mlp_norms.after.is_some() { Point::MlpNorm } else { Point::MlpOutput }
    }
}

impl Architecture {
    /// The first layer: sizes that all layers share are its.
    fn first(&self) -> Result<&Layer> {
        self.layers.first().ok_or_else(|| number("the number of layers", 0, format!("1 to {MOST_LAYERS}")))
    }

    /// Whether a model can have these sizes and settings: every size is within its bounds, so that the bytes of all weights
    /// together fit 64 bits, the heads fit each other, and no number is infinite or NaN.
    ///
    /// # Errors
    ///
    /// [`Error::ConfigNumber`].
    pub fn check(&self) -> Result<()> {
        check_layers(self.layers.len() as u64)?;
        within("the vocabulary size", self.vocabulary, 1 << 30)?;
        within("the number of positions", self.context, 1 << 30)?;
        within("the hidden size", self.d_model, 1 << 20)?;
        within("the width of the token embedding", self.embedding.width, 1 << 20)?;
        if let Some(positions) = &self.embedding.positions
            && !(0..=1 << 20).contains(&positions.offset)
        {
            return Err(number("the offset of positions", positions.offset, "0 to 2^20"));
        }
        self.embedding.scale.map_or(Ok(()), |scale| finite("the scale of the embedding", scale))?;
        self.head.softcap.map_or(Ok(()), |cap| positive("the softcap of the logits", cap))?;
        self.final_norm.map_or(Ok(()), check_norm)?;
        let first = self.first()?;
        for layer in &self.layers {
            layer.check()?;
            let (ours, theirs) = (&layer.attention, &first.attention);
            if (ours.kv_heads, ours.d_head) != (theirs.kv_heads, theirs.d_head) {
                // The cache has one shape for all.
                let found = format!("{} of {} in one layer", ours.kv_heads, ours.d_head);
                return Err(number("the key heads", found, format!("{} of {}", theirs.kv_heads, theirs.d_head)));
            }
        }
        Ok(())
    }

    /// The rotary positions of all layers, where they are the same; of several kinds Hugging Face computes the last one in no
    /// defined order.
    pub(crate) fn only_rotary(&self) -> Option<&Rotary> {
        let mut all = self.layers.iter().filter_map(|layer| layer.attention.rotary.as_ref());
        let first = all.next()?;
        all.all(|other| other == first).then_some(first).filter(|rotary| rotary.module != RotaryModule::None)
    }

    /// Key heads and their width, which all layers share.
    pub(crate) fn key_heads(&self) -> (i64, i64) {
        self.layers.first().map_or((0, 0), |layer| (layer.attention.kv_heads, layer.attention.d_head))
    }
}

impl Layer {
    fn check(&self) -> Result<()> {
        let attention = &self.attention;
        for (field, found, most) in [
            ("the number of heads", attention.heads, 1 << 20),
            ("the number of key heads", attention.kv_heads, 1 << 20),
            ("the width of a head", attention.d_head, 1 << 20),
            ("the width of the heads together", attention.heads.saturating_mul(attention.d_head), 1 << 20),
            ("the inner size", self.mlp.d_mlp, 1 << 20),
        ] {
            within(field, found, most)?;
        }
        if attention.heads % attention.kv_heads != 0 {
            let expected = format!("a divisor of the {} heads", attention.heads);
            return Err(number("the number of key heads", attention.kv_heads, expected));
        }
        if let Some(experts) = self.mlp.experts {
            within("the number of experts", experts.count, 1 << 12)?;
            within("the number of chosen experts", experts.chosen, experts.count)?;
        }
        if let Some(bounds) = self.mlp.bounds {
            positive("the limit of an MLP", bounds.limit)?;
            finite("the offset of an MLP", bounds.offset)?;
        }
        if let Some(window) = attention.window
            && window < 1
        {
            return Err(number("the attention window", window, "at least 1"));
        }
        finite("the scale of attention", attention.scale)?;
        attention.softcap.map_or(Ok(()), |cap| positive("the softcap of attention", cap))?;
        attention.rotary.as_ref().map_or(Ok(()), |rotary| rotary.check(attention.d_head))?;
        let of_heads = attention.query_key_norm.map(|of| of.norm);
        let norms = [self.attention_norms, self.mlp_norms].into_iter();
        let norms = norms.flat_map(|norms| [norms.before, norms.after, norms.stream]).chain([of_heads]);
        norms.flatten().try_for_each(check_norm)
    }
}

fn check_norm(norm: Norm) -> Result<()> {
    if norm.epsilon.is_finite() && norm.epsilon >= 0.0 {
        return Ok(());
    }
    Err(number("the epsilon of a norm", norm.epsilon, "a finite number, at least 0"))
}

pub(crate) fn within(field: &'static str, found: i64, most: i64) -> Result<()> {
    if (1..=most).contains(&found) { Ok(()) } else { Err(number(field, found, format!("1 to {most}"))) }
}

fn finite(field: &'static str, found: f64) -> Result<()> {
    if found.is_finite() { Ok(()) } else { Err(number(field, found, "a finite number")) }
}

fn positive(field: &'static str, found: f64) -> Result<()> {
    if found.is_finite() && found > 0.0 { Ok(()) } else { Err(number(field, found, "a finite number above 0")) }
}

pub(crate) fn number(field: &'static str, found: impl ToString, expected: impl Into<String>) -> Error {
    Error::ConfigNumber { field, found: found.to_string(), expected: expected.into() }
}

/// Refuses a number of layers before anything is made for each of them.
pub(crate) fn check_layers(layers: u64) -> Result<()> {
    if (1..=MOST_LAYERS).contains(&layers) {
        return Ok(());
    }
    Err(number("the number of layers", layers, format!("1 to {MOST_LAYERS}")))
}
