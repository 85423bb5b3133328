//! What can go wrong with a corpus.

use std::io;

use tch::TchError;

/// Why a corpus cannot be read, a job cannot run, or a folder of activations is not whole.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or object cannot be read or written.
    #[error("cannot {doing} {place}: {source}")]
    Io {
        /// What was done: `read`, `write`, `list`, `remove`.
        doing: &'static str,
        /// The file or object.
        place: String,
        /// What the system or the store said.
        source: io::Error,
    },
    /// Nothing is there that could be a corpus.
    #[error("{place}: no texts there; expected files that end in {expected}")]
    NoTexts {
        /// The file, folder, pattern or address.
        place: String,
        /// The endings of names that are read.
        expected: String,
    },
    /// An address or a format that this build cannot read or write.
    #[error("{place}: needs a build with --features {feature}")]
    NeedsFeature {
        /// The file or address.
        place: String,
        /// The feature to build with.
        feature: &'static str,
    },
    /// An address that is none.
    #[error("{place}: {problem}")]
    Address {
        /// The address.
        place: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A line or a row that is not what it should be.
    #[error("{place}: {problem}; expected {expected}")]
    Malformed {
        /// The file and the line or row, counted from 1: `texts.jsonl, line 3`.
        place: String,
        /// What is wrong with it.
        problem: String,
        /// What may stand there.
        expected: String,
    },
    /// A text that the model cannot read.
    #[error("{place}: {source}{hint}")]
    Text {
        /// The file and the line or row, counted from 1.
        place: String,
        /// What is wrong with it.
        source: models::Error,
        /// What can be done.
        hint: &'static str,
    },
    /// Packing needs the token that ends a text, and the model's config says none.
    #[error("the model has no end-of-text token to pack texts with; give one")]
    NoEndToken,
    /// Two options that exclude each other, or one that cannot be.
    #[error("{option}: {problem}")]
    Option {
        /// The option.
        option: &'static str,
        /// Why it cannot be.
        problem: String,
    },
    /// A name whose value is not one for each token.
    #[error("{name} has no value for each token")]
    NotPerToken {
        /// The name.
        name: String,
    },
    /// A name that stands for something else in the files.
    #[error("{name:?} cannot be written: the files have a tensor of that name of their own; ask for another spelling")]
    Reserved {
        /// The name.
        name: String,
    },
    /// A batch has no such name.
    #[error("{name:?} was not asked for; there are {}", .names.join(", "))]
    NotCaptured {
        /// The name.
        name: String,
        /// Those that were.
        names: Vec<String>,
    },
    /// A data set of the Hub is not here and cannot be fetched.
    #[error("{place}: {source}")]
    Hub {
        /// Its address.
        place: String,
        /// What went wrong.
        source: lowmem::Error,
    },
    /// The model cannot run.
    #[error(transparent)]
    Run(#[from] partial::Error),
    /// The lens cannot decode a stream.
    #[error(transparent)]
    Lens(#[from] lens::Error),
    /// A chart cannot be drawn.
    #[error("cannot draw {place}: {problem}")]
    Chart {
        /// The picture's file or object.
        place: String,
        /// Why.
        problem: String,
    },
    /// A batch failed.
    #[error("{place}: {source}")]
    Batch {
        /// The texts of the batch.
        place: String,
        /// What went wrong.
        source: partial::Error,
    },
    /// A libtorch call failed.
    #[error("{doing}: {}", lowmem::first_line(.source))]
    Torch {
        /// What was done.
        doing: String,
        /// What libtorch said.
        source: TchError,
    },
    /// The folder belongs to a job that differs from this one.
    #[error(
        "{place}: belongs to another job: {field} is {found} there and {expected} here; choose another place for the output"
    )]
    OtherJob {
        /// The folder's `job.json`, or the object.
        place: String,
        /// What differs.
        field: String,
        /// What it is there.
        found: String,
        /// What it would have to be.
        expected: String,
    },
    /// There is no job.
    #[error("{place}: no job.json there; is this the folder of a corpus's activations?")]
    NoJob {
        /// The folder.
        place: String,
    },
    /// An object is not what this library writes, or only a part of it.
    #[error("{place}: {problem}; remove it and run its piece again")]
    Object {
        /// The object.
        place: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Units that nobody has done.
    #[error("{place}: {missing} of {units} units are missing: {}; run the pieces that have them, K of N has unit U where U mod N is K", .which.join(", "))]
    Missing {
        /// The folder.
        place: String,
        /// How many are missing.
        missing: usize,
        /// How many there are in all.
        units: usize,
        /// Their numbers, in ranges; the first few.
        which: Vec<String>,
    },
    /// A thread of the pipeline ended without saying why.
    #[error("the thread that {doing} ended unexpectedly")]
    Thread {
        /// What it does.
        doing: &'static str,
    },
    /// What a sink of the caller's says.
    #[error(transparent)]
    Sink(Box<dyn std::error::Error + Send + Sync>),
}

/// A result of this module.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(super) fn io(doing: &'static str, place: impl ToString) -> impl FnOnce(io::Error) -> Self {
        let place = place.to_string();
        move |source| Self::Io { doing, place, source }
    }

    pub(super) fn torch(doing: impl ToString) -> impl FnOnce(TchError) -> Self {
        let doing = doing.to_string();
        move |source| Self::Torch { doing, source }
    }
}
