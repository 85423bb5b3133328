//! The one error type of this crate.

use tch::TchError;

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong between names and tensors.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The model, its input or a name is at fault.
    #[error(transparent)]
    Model(#[from] models::Error),
    /// No name was asked for.
    #[error("no names were given; ask for at least one, such as h.0")]
    NoNames,
    /// A name that was not among those of the run.
    #[error("{name:?} was not captured; captured: {}", .captured.join(", "))]
    NotCaptured {
        /// The name as asked.
        name: String,
        /// Names of the run.
        captured: Vec<String>,
    },
    /// An edit that the run would never reach.
    #[error("the edit of {edit} comes after {deepest}, where the run ends; capture something after it")]
    EditAfterStop {
        /// The site of the edit.
        edit: String,
        /// The deepest name of the run.
        deepest: String,
    },
    /// A site that lies before the place where the run starts.
    #[error("{site} comes before {start}, where the run starts, and has no value")]
    BeforeStart {
        /// The site.
        site: String,
        /// Where the run starts.
        start: String,
    },
    /// Heads were chosen at a site that has none.
    #[error("{site} has no heads; attn.q, attn.k, attn.v, attn.scores, attn.pattern, attn.z and attn.result have")]
    NoHeads {
        /// The site of the edit.
        site: String,
    },
    /// Positions were chosen at a site that has none: an expert sees the tokens that were sent to it.
    #[error(
        "{site} has one row for each token that goes there, and no positions; mlp.experts.chosen says which those are"
    )]
    NoPositions {
        /// The site.
        site: String,
    },
    /// Positions or heads beyond those there are.
    #[error("{site}: {what} {begin}..{end} is outside the {size} there are")]
    OutOfRange {
        /// The site.
        site: String,
        /// `positions` or `heads`.
        what: &'static str,
        /// First chosen.
        begin: i64,
        /// One past the last chosen.
        end: i64,
        /// How many there are.
        size: i64,
    },
    /// Positions were chosen at a value that the rows share although their texts begin at different columns.
    #[error(
        "{site} has one row for all texts, which begin at different columns; give position ids, or choose no positions"
    )]
    SharedRow {
        /// The site of the edit.
        site: String,
    },
    /// New tokens were chosen in a run that generates none.
    #[error("the edit of {site} is for new tokens, and only generation has those; choose positions")]
    NoNewTokens {
        /// The site of the edit.
        site: String,
    },
    /// A mean over positions that are all padding.
    #[error("the edit of {site} is a mean over padding alone; choose positions with tokens")]
    NothingToAverage {
        /// The site of the edit.
        site: String,
    },
    /// An edit's value does not fit what it changes.
    #[error("the edit of {site} has a value of shape {found:?}, which does not fit {expected:?}")]
    EditShape {
        /// The site of the edit.
        site: String,
        /// The shape of what is changed.
        expected: Vec<i64>,
        /// The shape of the value.
        found: Vec<i64>,
    },
    /// An option of the optimizer that makes no sense.
    #[error("{option} is {found}, expected {expected}")]
    Optimizer {
        /// The option.
        option: &'static str,
        /// Its value.
        found: String,
        /// Values that work.
        expected: &'static str,
    },
    /// The state of an optimizer belongs to other tensors.
    #[error("the state's {tensor} must have shape {expected:?}, but {}", shape_or_missing(.found.as_deref()))]
    OptimizerState {
        /// The tensor of the state.
        tensor: String,
        /// Its shape here.
        expected: Vec<i64>,
        /// Its shape in the state; `None` where it is missing.
        found: Option<Vec<i64>>,
    },
    /// Examples that no probe can be trained on, or tensors that are none.
    #[error("{problem}")]
    Probe {
        /// What was expected, and what was found.
        problem: String,
    },
    /// A metric's token is not in the vocabulary.
    #[error("the metric ({metric}) is of token {token}, but the vocabulary has the ids 0..{vocabulary}")]
    MetricToken {
        /// The metric.
        metric: String,
        /// The token.
        token: i64,
        /// Tokens there are.
        vocabulary: i64,
    },
    /// A metric's tokens, reference or result are for another number of rows.
    #[error(
        "the metric ({metric}) needs the shape {expected:?}, one entry or one for each row, but was given {found:?}"
    )]
    MetricRows {
        /// The metric.
        metric: String,
        /// The shape that fits the rows.
        expected: Vec<i64>,
        /// The shape there was.
        found: Vec<i64>,
    },
    /// A site whose value cannot be put from one run into another.
    #[error("{site} cannot be patched: {reason}")]
    NotPatchable {
        /// The site.
        site: String,
        /// Why.
        reason: &'static str,
    },
    /// Two inputs that cannot be patched into each other.
    #[error("the clean and the corrupted input do not fit together: {problem}")]
    PatchInputs {
        /// What differs.
        problem: String,
    },
    /// Nothing to patch.
    #[error("there is nothing to patch; choose sites, such as h.*, or give a list of patches")]
    NoPatches,
    /// Patching needs more memory than it may take.
    #[error(
        "patching needs at least {needed} bytes besides the weights, and may take {budget}; allow more, patch fewer sites, or \
         take fewer or shorter inputs"
    )]
    MemoryBudget {
        /// Bytes needed.
        needed: u64,
        /// Bytes allowed.
        budget: u64,
    },
    /// Gradients of a model whose weights are read anew for every run.
    #[error(
        "gradients need all weights at once, and this model streams them; open it with the residency mapped or resident"
    )]
    StreamedGradient,
    /// A path of no points.
    #[error("a path needs at least 1 step, and 1 at once; asked for: {steps}, {at_once} at once")]
    NoSteps {
        /// Points asked for.
        steps: i64,
        /// Points in a batch.
        at_once: i64,
    },
    /// A metric that is not a sum of logits.
    #[error(
        "direct logit attribution needs a metric that is linear in the logits, a logit or a logit difference, not the {metric}"
    )]
    NotLinear {
        /// The metric.
        metric: String,
    },
    /// A model whose final stream is not the sum of what its blocks add.
    #[error(
        "{site} is a norm of the residual stream itself, so that the stream is no sum of what the blocks add to it"
    )]
    NotASum {
        /// The first such norm.
        site: String,
    },
    /// Effects that cannot be set beside each other.
    #[error("a correlation needs the same rows and columns in both, and 2 pairs of numbers that vary: {problem}")]
    NotPaired {
        /// What differs, or is missing.
        problem: String,
    },
    /// Libtorch failed while a value was captured or changed.
    #[error("{at}: {}", models::first_line(.source))]
    Torch {
        /// The site.
        at: String,
        /// What libtorch said.
        source: TchError,
    },
}

fn shape_or_missing(found: Option<&[i64]>) -> String {
    found.map_or_else(|| "it is missing".into(), |found| format!("it has {found:?}"))
}
