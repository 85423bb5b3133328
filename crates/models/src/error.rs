//! The one error type of this crate.

use tch::TchError;

use crate::{CacheLayout, Site};

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong between a checkpoint and its logits.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The checkpoint's weights could not be found or placed.
    #[error(transparent)]
    Weights(#[from] lowmem::Error),
    /// `config.json` is not what a config must be.
    #[error("config.json: {problem}")]
    Config {
        /// Which field, what was expected, what was found.
        problem: String,
    },
    /// A number of the config is not one that a model can have.
    #[error("config.json: {field} is {found}, expected {expected}")]
    ConfigNumber {
        /// Which number.
        field: &'static str,
        /// Its value.
        found: String,
        /// Values that work.
        expected: String,
    },
    /// The heads do not divide the residual stream evenly.
    #[error("config.json: the hidden size {d_model} is not a multiple of the {heads} heads")]
    HeadWidth {
        /// Width of the residual stream.
        d_model: i64,
        /// Attention heads of a block.
        heads: i64,
    },
    /// GPT-Neo's list of attention kinds is for another number of layers.
    #[error("config.json: attention_types describes {described} layers, num_layers is {layers}")]
    AttentionTypes {
        /// Layers that `attention_types` has kinds for.
        described: u64,
        /// The config's `num_layers`.
        layers: u64,
    },
    /// The environment variable that forces how products are computed says something else.
    #[error(
        "{variable} is {found:?}, expected blas or onednn, bf16-native or bf16-widened, or one of each with a comma; \
         unset, the processor decides"
    )]
    Products {
        /// Its name.
        variable: &'static str,
        /// Its value.
        found: String,
    },
    /// A model family that this crate does not know.
    #[error("config.json: model_type {found:?} is not supported; supported: {}", .supported.join(", "))]
    UnsupportedModelType {
        /// The `model_type` of the config.
        found: String,
        /// Those that work.
        supported: Vec<&'static str>,
    },
    /// A GGUF file of an architecture that this crate does not know.
    #[error("{file}: general.architecture {found:?} is not supported; supported: {}", .supported.join(", "))]
    UnsupportedGguf {
        /// The file.
        file: std::path::PathBuf,
        /// Its architecture.
        found: String,
        /// Those that work.
        supported: Vec<&'static str>,
    },
    /// A setting of a known family that this crate does not implement.
    #[error("config.json: {setting} = {found} is not supported; supported: {supported}")]
    UnsupportedSetting {
        /// The field.
        setting: &'static str,
        /// Its value.
        found: String,
        /// Values that work.
        supported: String,
    },
    /// A name that is no site of this model.
    #[error("unknown name {name:?}{}{}", blocks_hint(.name, *.blocks), did_you_mean(.nearest))]
    UnknownSite {
        /// The name as asked.
        name: String,
        /// How many blocks the model has.
        blocks: usize,
        /// The names most like it.
        nearest: Vec<String>,
    },
    /// A name that other models have.
    #[error("{name:?} is not in this model: {reason}")]
    AbsentSite {
        /// The name as asked.
        name: String,
        /// Why, and what to ask for instead.
        reason: String,
    },
    /// A module that only holds others and has no output.
    #[error("{name:?} holds other modules and has no output of its own; ask for one of them: {}", .inside.join(", "))]
    Container {
        /// The name as asked.
        name: String,
        /// Some of the names inside.
        inside: Vec<String>,
    },
    /// There is nothing to run.
    #[error("the input is empty; give at least one token")]
    EmptyInput,
    /// Text was given to a model that cannot read it.
    #[error(
        "the model has no tokenizer, so it can read no text; give token ids, or a tokenizer with Model::with_tokens"
    )]
    NoTokenizer,
    /// The tokenizer failed.
    #[error("{doing}: {source}")]
    Tokenizer {
        /// What it was to do.
        doing: &'static str,
        /// What it said.
        source: crate::TokensError,
    },
    /// An input that is more than rows of token ids, where only these can be used.
    #[error("an input that {problem} is more than rows of token ids; give text, or token ids")]
    NotRows {
        /// What it has besides.
        problem: &'static str,
    },
    /// An input has another shape than its companions imply.
    #[error("{what} has shape {found:?}, expected {expected:?} ([batch, position])")]
    InputShape {
        /// Which input.
        what: &'static str,
        /// The shape it must have.
        expected: Vec<i64>,
        /// The shape it has.
        found: Vec<i64>,
    },
    /// A token id that the embedding has no row for.
    #[error("token id {id} in row {row} at position {position} is outside the vocabulary of {vocabulary}")]
    TokenOutOfRange {
        /// The id.
        id: i64,
        /// Row of the batch.
        row: i64,
        /// Position in the row.
        position: i64,
        /// Size of the vocabulary.
        vocabulary: i64,
    },
    /// More tokens than the model has positions.
    #[error("{found} positions, but the model has {limit}; shorten the input")]
    TooManyPositions {
        /// Positions needed, those in the cache included.
        found: i64,
        /// Positions the model has.
        limit: i64,
    },
    /// A position id that the position embedding has no row for.
    #[error("position id {id} is outside {first}..{limit}")]
    PositionOutOfRange {
        /// The id.
        id: i64,
        /// The first position the model has: 0, but where padding has positions of its own.
        first: i64,
        /// One past its last.
        limit: i64,
    },
    /// A run can only start from the residual stream.
    #[error("a run cannot start at {site}: it must be a residual stream (input, h.i.resid_mid or h.i)")]
    BadStart {
        /// Where it was to start.
        site: String,
    },
    /// The cache was filled by another kind of run, or by another model.
    #[error("the cache holds {found}; this run needs {expected}")]
    CacheMismatch {
        /// What the run needs.
        expected: CacheLayout,
        /// What the cache holds.
        found: CacheLayout,
    },
    /// A run that skips blocks cannot fill a cache: they would have neither keys nor values.
    #[error(
        "a run with a cache cannot start at {site}: the blocks before it would stay empty; start at input or with tokens"
    )]
    CachedStart {
        /// Where it was to start.
        site: String,
    },
    /// The cache holds keys that were rotated for shorter texts: this model rotates all positions otherwise when a text is longer.
    #[error(
        "the cache holds {positions} positions whose keys were rotated for shorter texts than this one, of {length}; start with an \
         empty cache"
    )]
    CacheRotation {
        /// Positions in the cache.
        positions: i64,
        /// Positions of the text.
        length: i64,
    },
    /// The cache has no keys and values of a block.
    #[error("the cache has {positions} positions, but nothing of block {block}")]
    CacheIncomplete {
        /// The block.
        block: usize,
        /// Positions in the cache.
        positions: i64,
    },
    /// More positions of a cache were asked for than it has, or none.
    #[error("a prefix of {length} positions was asked for; the cache has {positions}, and a prefix at least 1")]
    PrefixLength {
        /// Positions asked for.
        length: i64,
        /// Positions in the cache.
        positions: i64,
    },
    /// A cache no longer has its first positions: in this block, nothing that comes can see them.
    #[error(
        "the cache has dropped the positions of block {block} before {first}, which are out of its window; take the prefix right after \
         the run that filled the cache"
    )]
    PrefixForgotten {
        /// The block.
        block: usize,
        /// The first position it still has.
        first: i64,
    },
    /// A run's rows cannot be shared out among those of a prefix.
    #[error("a run of {rows} rows cannot go on after a prefix of {prefix}; a multiple of them can")]
    PrefixRows {
        /// Rows of the run.
        rows: i64,
        /// Rows of the prefix.
        prefix: i64,
    },
    /// An option of generation that makes no sense.
    #[error("{setting} is {found}, expected {expected}")]
    Setting {
        /// The option.
        setting: &'static str,
        /// Its value.
        found: String,
        /// Values that work.
        expected: &'static str,
    },
    /// The model gave logits that no token can be chosen by.
    #[error("row {row}: the logits after position {position} are not finite; the weights may be damaged")]
    LogitsNotFinite {
        /// Row of the batch.
        row: usize,
        /// The position in the row, padding not counted.
        position: usize,
    },
    /// An observer's replacement does not fit the place.
    #[error(
        "the value put in at {site} has shape {found:?}, dtype {found_kind:?} and device {found_device:?}; \
         expected {expected:?}, {expected_kind:?}, {expected_device:?}"
    )]
    Replacement {
        /// The site's name.
        site: String,
        /// Shape of the value it replaces.
        expected: Vec<i64>,
        /// Shape of the replacement.
        found: Vec<i64>,
        /// Dtype of the value it replaces.
        expected_kind: tch::Kind,
        /// Dtype of the replacement.
        found_kind: tch::Kind,
        /// Device of the value it replaces.
        expected_device: tch::Device,
        /// Device of the replacement.
        found_device: tch::Device,
    },
    /// An observer failed.
    #[error("at {site}: {source}")]
    Observer {
        /// The site's name.
        site: String,
        /// What the observer said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Libtorch failed: out of memory, a device error.
    #[error("computing {at}: {}", lowmem::first_line(.source))]
    Torch {
        /// The site's name or the input.
        at: String,
        /// What libtorch said.
        source: TchError,
    },
}

impl Error {
    pub(crate) fn torch(at: impl ToString) -> impl FnOnce(TchError) -> Self {
        move |source| Self::Torch { at: at.to_string(), source }
    }
}

/// Puts the site's name on a libtorch error. The name is only spelt out when there is an error.
pub(crate) trait At<T> {
    fn at(self, site: Site) -> Result<T>;
}

impl<T> At<T> for std::result::Result<T, TchError> {
    fn at(self, site: Site) -> Result<T> {
        self.map_err(|source| Error::Torch { at: site.to_string(), source })
    }
}

fn did_you_mean(nearest: &[String]) -> String {
    if nearest.is_empty() { String::new() } else { format!("; nearest: {}", nearest.join(", ")) }
}

/// Says how many blocks there are to somebody who asked for one beyond them.
fn blocks_hint(name: &str, blocks: usize) -> String {
    let block = name.split('.').find_map(|segment| segment.parse::<usize>().ok());
    match block {
        Some(block) if block >= blocks => {
            format!("; the model has {blocks} blocks, h.0 to h.{}", blocks.saturating_sub(1))
        }
        _ => String::new(),
    }
}
