//! What the computing half of this crate refuses.

use tch::TchError;

use crate::TableError;

/// A result of the lens.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong between a prompt and a table.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The model, its input or a name is at fault.
    #[error(transparent)]
    Model(#[from] models::Error),
    /// The run was refused.
    #[error(transparent)]
    Run(#[from] partial::Error),
    /// The table cannot be made.
    #[error(transparent)]
    Table(#[from] TableError),
    /// Positions outside the prompt.
    #[error("positions {begin}..{end} are outside the {tokens} tokens of the input")]
    Positions {
        /// First position asked for.
        begin: usize,
        /// One past the last position asked for.
        end: usize,
        /// Tokens in the prompt.
        tokens: usize,
    },
    /// Streams that do not fit the tokens or one another.
    #[error("a stream has the shape {found:?}; expected {expected:?}, [token, d_model]")]
    StreamShape {
        /// Its shape.
        found: Vec<i64>,
        /// The shape that all must have.
        expected: Vec<i64>,
    },
    /// Several rows where one is read.
    #[error("there are {rows} rows, and this table is of one; give one, or take the tables of all with Lens::tables")]
    SeveralRows {
        /// How many.
        rows: usize,
    },
    /// A head that the model does not have.
    #[error(
        "there is no head {head} in layer {layer}: the model has layers 0..{layers}, and that one has {heads} heads"
    )]
    Head {
        /// The layer asked for.
        layer: usize,
        /// The head asked for.
        head: usize,
        /// How many layers there are.
        layers: usize,
        /// How many heads the layer has; 0 where it is not there.
        heads: usize,
    },
    /// A step of zero blocks.
    #[error("a block step of 0 shows no block; use at least 1")]
    BlockStep,
    /// No measure was asked for.
    #[error("no measure was asked for")]
    NoMeasure,
    /// Something in the decoder that cannot be there.
    #[error("decoder name {name:?} cannot be used: {problem}")]
    Decoder {
        /// The name.
        name: String,
        /// Why not, and what is expected.
        problem: String,
    },
    /// The halves of a parallel block cannot be decoded apart.
    #[error(
        "block {block} is parallel: attention and MLP read the same stream, and both are added to it at once, so there is no \
         stream between them to decode; decode whole blocks"
    )]
    ParallelBlock {
        /// The first such block.
        block: usize,
    },
    /// Heads whose part in what is added to the stream cannot be told by itself.
    #[error(
        "block {block} norms what attention says, all heads together, before or after it is added to the stream; look at whole \
         contributions, or share logits out among heads by direct logit attribution"
    )]
    HeadsBehindNorm {
        /// The first such block.
        block: usize,
    },
    /// Every row was skipped or is part of the decoder.
    #[error("no row is left to decode; show the input, or take blocks out of the decoder")]
    NoRows,
    /// A tracked token outside the vocabulary.
    #[error("tracked token {text:?} has id {id}, outside the vocabulary of {vocabulary}")]
    TrackedToken {
        /// Its text.
        text: String,
        /// Its id.
        id: i64,
        /// Size of the vocabulary.
        vocabulary: i64,
    },
    /// More of the likeliest tokens than there are tokens.
    #[error("the {asked} likeliest tokens were asked for, but the vocabulary has {vocabulary}")]
    TopK {
        /// How many were asked for.
        asked: usize,
        /// Size of the vocabulary.
        vocabulary: i64,
    },
    /// The last row does not give the model's own output.
    #[error(
        "row {row} should give the model's own output, but at position {position} its score is {found} instead of \
         {expected} (allowed difference: {allowed:.1e}); are there infinities or NaNs in the weights?"
    )]
    LastRow {
        /// The row.
        row: String,
        /// The position.
        position: usize,
        /// The model's own score, or the logarithm of its normaliser.
        expected: f64,
        /// The row's.
        found: f64,
        /// The most that rounding explains.
        allowed: f64,
    },
    /// Translators that cannot be used.
    #[error("tuned lens: {problem}")]
    TunedLens {
        /// What is wrong, and what is expected.
        problem: String,
    },
    /// A Jacobian lens that cannot be used or fitted.
    #[error("Jacobian lens: {problem}")]
    JacobianLens {
        /// What is wrong, and what is expected.
        problem: String,
    },
    /// Libtorch failed: out of memory, a device error.
    #[error("{at}: {}", models::first_line(.source))]
    Torch {
        /// What was being computed.
        at: &'static str,
        /// What libtorch said.
        source: TchError,
    },
}
