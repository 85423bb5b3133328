//! The places in a model that have a value.

use std::fmt;

use crate::Architecture;

/// A stage of a run, in the order in which they run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// Before the first block.
    Embedding,
    /// Block number `i`.
    Block(usize),
    /// After the last block.
    Head,
}

/// A place within a stage.
///
/// Which of them a layer has, and in which order they are computed, is in [`crate::Layer::points`]. Shapes use `batch`,
/// `position`, `d_model`, `head`, `kv_head`, `d_head`, `d_mlp` and `vocabulary`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Point {
    /// `wte`: token embeddings, `[batch, position, width]`, the width being `d_model` but where a matrix projects them.
    TokenEmbedding,
    /// `project_in`: token embeddings projected to the residual stream, `[batch, position, d_model]`.
    EmbeddingProjection,
    /// `wpe`: position embeddings, `[1 or batch, position, d_model]`.
    PositionEmbedding,
    /// `input`: what enters the first block, `[batch, position, d_model]`.
    Input,
    /// `rotary_emb`: the cosines of rotary positions, `[1 or batch, position, rotated dimensions]`.
    RotaryCosines,
    /// `ln_1`: what attention reads, `[batch, position, d_model]`; where the norm is on the stream itself, that.
    Norm1,
    /// `attn.qkv_proj`: queries, keys and values by one matrix, `[batch, position, (head + 2 kv_head) d_head]`.
    QueryKeyValue,
    /// `attn.q_proj`, `[batch, position, head · d_head]`.
    Query,
    /// `attn.k_proj`, `[batch, position, kv_head · d_head]`.
    Key,
    /// `attn.v_proj`, `[batch, position, kv_head · d_head]`.
    Value,
    /// `attn.q`: what the projection gives each head, `[batch, position, head, d_head]`.
    HeadQuery,
    /// `attn.k`: each head's keys, `[batch, position, kv_head, d_head]`; with a cache, those of the new positions.
    HeadKey,
    /// `attn.v`: each head's values, `[batch, position, kv_head, d_head]`; with a cache, those of the new positions.
    HeadValue,
    /// `attn.q_norm`: queries after their norm, `[batch, position, head, d_head]`, in some families
    /// `[batch, head, position, d_head]`, or `[batch, position, head · d_head]` where it is over all heads.
    QueryNorm,
    /// `attn.k_norm`: keys after their norm.
    KeyNorm,
    /// `attn.q_rot`: queries as they enter the scores, after norm and rotation, `[batch, position, head, d_head]`.
    RotatedQuery,
    /// `attn.k_rot`: keys as they enter the scores, `[batch, position, kv_head, d_head]`.
    RotatedKey,
    /// `attn.scores`: what the softmax reads, scaled and masked, `[batch, head, query position, key position]`. Where a
    /// query may not look it is the dtype's least value (TransformerLens has minus infinity; both become 0). An edit that
    /// changes those entries lets the query look there.
    Scores,
    /// `attn.pattern`: softmaxed attention, `[batch, head, query position, key position]`.
    Pattern,
    /// `attn.z`: per-head values before the output projection, `[batch, position, head, d_head]`.
    Z,
    /// `attn.result`: what each head's part of the output projection gives, `[batch, position, head, d_model]`; their sum and
    /// the bias of the projection are `attn`.
    HeadOutput,
    /// `attn`: the output of attention, `[batch, position, d_model]`. It is added to the residual stream, but where a norm
    /// comes between.
    AttentionOutput,
    /// `ln_1_post`: the output of attention after a norm of its own, `[batch, position, d_model]`.
    AttentionNorm,
    /// `resid_mid`: the residual stream between attention and MLP, `[batch, position, d_model]`.
    ResidMid,
    /// `ln_2`: what the MLP reads, `[batch, position, d_model]`; where the norm is on the stream itself, that.
    Norm2,
    /// `mlp.gate`: the router's score of each expert, `[batch, position, expert]`.
    Router,
    /// `mlp.experts.chosen`: the experts that each token goes to, the best first, Int64, `[batch, position, chosen]`.
    ExpertChoice,
    /// `mlp.experts.weights`: their weights, `[batch, position, chosen]`.
    ExpertWeights,
    /// `mlp.experts.E`: what expert `E` says of the tokens that go to it, before it is weighted, `[token, d_model]` in the order
    /// of rows and positions.
    Expert(usize),
    /// `mlp.experts`: the weighted sum of what the experts say, `[batch, position, d_model]`.
    ExpertSum,
    /// `mlp.gate_up_proj`: gate and neurons by one matrix, side by side, `[batch, position, 2 d_mlp]`.
    MlpGateInput,
    /// `mlp.gate_proj`: the gate before its non-linearity, `[batch, position, d_mlp]`.
    MlpGate,
    /// `mlp.up_proj`: the neurons before the non-linearity, or before they are multiplied with the gate,
    /// `[batch, position, d_mlp]`.
    MlpInput,
    /// `mlp.act`: the output of the non-linearity, `[batch, position, d_mlp]`.
    MlpActivation,
    /// `mlp.neurons`: what the output projection reads, `[batch, position, d_mlp]`; without a gate, that is `mlp.act`.
    Neurons,
    /// `mlp`: the output of the MLP, `[batch, position, d_model]`. It is added to the residual stream, but where a norm comes
    /// between.
    MlpOutput,
    /// `ln_2_post`: the output of the MLP after a norm of its own, `[batch, position, d_model]`.
    MlpNorm,
    /// `h.i`: the residual stream after the block, `[batch, position, d_model]`.
    Output,
    /// `ln_f`: the stream after the final norm, `[batch, position, d_model]`; without one, the stream itself.
    FinalNorm,
    /// `project_out`: the stream projected to the width of the unembedding, `[batch, position, width]`.
    OutputProjection,
    /// `lm_head` where logits have a softcap: what it is put on, `[batch, position, vocabulary]`.
    UncappedLogits,
    /// `logits`: what the model says of the next token, `[batch, position, vocabulary]`; without a softcap, also `lm_head`.
    Logits,
}

impl Point {
    /// The name that means the point in every family that has it, within its block; empty for the block itself. An expert's
    /// number follows.
    pub const fn name(self) -> &'static str {
        match self {
            Self::TokenEmbedding => "wte",
            Self::EmbeddingProjection => "project_in",
            Self::PositionEmbedding => "wpe",
            Self::Input => "input",
            Self::RotaryCosines => "rotary_emb",
            Self::Norm1 => "ln_1",
            Self::QueryKeyValue => "attn.qkv_proj",
            Self::Query => "attn.q_proj",
            Self::Key => "attn.k_proj",
            Self::Value => "attn.v_proj",
            Self::HeadQuery => "attn.q",
            Self::HeadKey => "attn.k",
            Self::HeadValue => "attn.v",
            Self::QueryNorm => "attn.q_norm",
            Self::KeyNorm => "attn.k_norm",
            Self::RotatedQuery => "attn.q_rot",
            Self::RotatedKey => "attn.k_rot",
            Self::Scores => "attn.scores",
            Self::Pattern => "attn.pattern",
            Self::Z => "attn.z",
            Self::HeadOutput => "attn.result",
            Self::AttentionOutput => "attn",
            Self::AttentionNorm => "ln_1_post",
            Self::ResidMid => "resid_mid",
            Self::Norm2 => "ln_2",
            Self::Router => "mlp.gate",
            Self::ExpertChoice => "mlp.experts.chosen",
            Self::ExpertWeights => "mlp.experts.weights",
            Self::Expert(_) => "mlp.experts.",
            Self::ExpertSum => "mlp.experts",
            Self::MlpGateInput => "mlp.gate_up_proj",
            Self::MlpGate => "mlp.gate_proj",
            Self::MlpInput => "mlp.up_proj",
            Self::MlpActivation => "mlp.act",
            Self::Neurons => "mlp.neurons",
            Self::MlpOutput => "mlp",
            Self::MlpNorm => "ln_2_post",
            Self::Output => "",
            Self::FinalNorm => "ln_f",
            Self::OutputProjection => "project_out",
            Self::UncappedLogits => "lm_head",
            Self::Logits => "logits",
        }
    }

    /// Whether it is the output of a projection into attention or the MLP, which families store in different ways.
    pub(crate) fn is_projection(self) -> bool {
        let attention = matches!(self, Self::QueryKeyValue | Self::Query | Self::Key | Self::Value);
        attention || matches!(self, Self::MlpGateInput | Self::MlpGate | Self::MlpInput)
    }

    /// All points of blocks, but for the experts one by one.
    pub(crate) const OF_BLOCKS: [Self; 32] = [
        Self::Norm1,
        Self::QueryKeyValue,
        Self::Query,
        Self::Key,
        Self::Value,
        Self::HeadQuery,
        Self::HeadKey,
        Self::HeadValue,
        Self::QueryNorm,
        Self::KeyNorm,
        Self::RotatedQuery,
        Self::RotatedKey,
        Self::Scores,
        Self::Pattern,
        Self::Z,
        Self::HeadOutput,
        Self::AttentionOutput,
        Self::AttentionNorm,
        Self::ResidMid,
        Self::Norm2,
        Self::Router,
        Self::ExpertChoice,
        Self::ExpertWeights,
        Self::ExpertSum,
        Self::MlpGateInput,
        Self::MlpGate,
        Self::MlpInput,
        Self::MlpActivation,
        Self::Neurons,
        Self::MlpOutput,
        Self::MlpNorm,
        Self::Output,
    ];

    /// All points outside of blocks.
    pub(crate) const OUTSIDE: [(Stage, Self); 9] = [
        (Stage::Embedding, Self::TokenEmbedding),
        (Stage::Embedding, Self::EmbeddingProjection),
        (Stage::Embedding, Self::PositionEmbedding),
        (Stage::Embedding, Self::Input),
        (Stage::Embedding, Self::RotaryCosines),
        (Stage::Head, Self::FinalNorm),
        (Stage::Head, Self::OutputProjection),
        (Stage::Head, Self::UncappedLogits),
        (Stage::Head, Self::Logits),
    ];
}

/// One place in a model. Which of two is computed first depends on the model: [`crate::Sites::is_after`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Site {
    /// The stage of the run.
    pub stage: Stage,
    /// The place within it.
    pub point: Point,
}

impl Site {
    /// What enters the first block.
    pub const INPUT: Self = Self { stage: Stage::Embedding, point: Point::Input };
    /// The output of the final layer norm.
    pub const FINAL_NORM: Self = Self { stage: Stage::Head, point: Point::FinalNorm };
    /// The stream projected to the width of the unembedding.
    pub const PROJECTED: Self = Self { stage: Stage::Head, point: Point::OutputProjection };
    /// The logits before their softcap.
    pub const UNCAPPED_LOGITS: Self = Self { stage: Stage::Head, point: Point::UncappedLogits };
    /// The logits.
    pub const LOGITS: Self = Self { stage: Stage::Head, point: Point::Logits };

    /// A place in block `block`.
    pub const fn block(block: usize, point: Point) -> Self {
        Self { stage: Stage::Block(block), point }
    }

    /// The residual stream before block `block`: `input`, or the output of the block before.
    pub const fn before_block(block: usize) -> Self {
        match block {
            0 => Self::INPUT,
            _ => Self::block(block - 1, Point::Output),
        }
    }

    /// Whether the value is the residual stream itself.
    pub fn is_residual_stream(self) -> bool {
        matches!(self.point, Point::Input | Point::ResidMid | Point::Output)
    }

    /// Blocks that must run, at least in part, to reach the site.
    pub fn blocks_needed(self, layers: usize) -> usize {
        match self.stage {
            Stage::Embedding => 0,
            Stage::Block(block) => block + 1,
            Stage::Head => layers,
        }
    }
}

impl fmt::Display for Site {
    /// The name that every family shares, such as `h.3.mlp`.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.stage, self.point, self.point.name()) {
            (Stage::Block(block), Point::Expert(expert), name) => write!(formatter, "h.{block}.{name}{expert}"),
            (Stage::Block(block), _, "") => write!(formatter, "h.{block}"),
            (Stage::Block(block), _, name) => write!(formatter, "h.{block}.{name}"),
            (_, _, name) => formatter.write_str(name),
        }
    }
}

/// The sites of one model in the order in which they are computed.
#[derive(Clone, Debug)]
pub(crate) struct Order {
    embedding: Vec<Point>,
    layers: Vec<Vec<Point>>,
    head: Vec<Point>,
}

impl Order {
    pub(crate) fn of(architecture: &Architecture) -> Self {
        let embedding = &architecture.embedding;
        let mut first = vec![Point::TokenEmbedding];
        first.extend((embedding.width != architecture.d_model).then_some(Point::EmbeddingProjection));
        first.extend(embedding.positions.as_ref().map(|_| Point::PositionEmbedding));
        first.push(Point::Input);
        first.extend(architecture.only_rotary().map(|_| Point::RotaryCosines));
        let mut head = vec![Point::FinalNorm];
        head.extend((embedding.width != architecture.d_model).then_some(Point::OutputProjection));
        head.extend(architecture.head.softcap.map(|_| Point::UncappedLogits));
        head.push(Point::Logits);
        Self { embedding: first, layers: architecture.layers.iter().map(crate::Layer::points).collect(), head }
    }

    pub(crate) fn points(&self, stage: Stage) -> &[Point] {
        match stage {
            Stage::Embedding => &self.embedding,
            Stage::Block(block) => self.layers.get(block).map_or(&[], Vec::as_slice),
            Stage::Head => &self.head,
        }
    }

    pub(crate) fn has(&self, site: Site) -> bool {
        self.points(site.stage).contains(&site.point)
    }

    /// Where a site stands; one that the model lacks stands at the end of its stage.
    pub(crate) fn rank(&self, site: Site) -> (Stage, usize) {
        let points = self.points(site.stage);
        (site.stage, points.iter().position(|point| *point == site.point).unwrap_or(points.len()))
    }

    pub(crate) fn stages(&self) -> impl Iterator<Item = Stage> + use<> {
        let blocks = (0..self.layers.len()).map(Stage::Block);
        std::iter::once(Stage::Embedding).chain(blocks).chain([Stage::Head])
    }
}
