//! What becomes of activations.

use std::sync::Arc;

use serde_json::Value;
use tch::Tensor;

use super::{
    error::{Error, Result},
    identity::Identity,
};

/// Takes what a job computes: unit after unit, batch after batch.
///
/// A unit is the smallest part of the work that can be done: some texts of the corpus, always the same ones. If a sink keeps what it
/// gets, it should keep a unit whole or not at all, in [`Sink::finish`]; then a job that was killed goes on where it was.
///
/// ```
/// use transformer_utils::{corpus::{Batch, Corpus, Job, Result, Sink, Unit}, prelude::*, tch::{Kind, Tensor}};
///
/// /// The sum of a name's values.
/// struct Sum(Option<Tensor>);
///
/// impl Sink for Sum {
///     fn is_done(&mut self, _: usize) -> Result<bool> {
///         Ok(false)
///     }
///
///     fn take(&mut self, batch: Batch) -> Result<()> {
///         let sum = batch.get("h.3")?.sum_dim_intlist(0, false, Kind::Double); // [tokens, d_model] to [d_model]
///         self.0 = Some(match self.0.take() { Some(sums) => sums + sum, None => sum });
///         Ok(())
///     }
///
///     fn finish(&mut self, _: &Unit) -> Result<()> {
///         Ok(())
///     }
/// }
///
/// # fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
/// let model = Model::load("assets/tiny-gpt2")?;
/// let mut sum = Sum(None);
/// let report = Job::new(&model, Corpus::from_texts(["Emma was very", "happy"])).names(["h.3"])?.run(&mut sum)?;
/// assert_eq!(report.texts, 2);
/// assert_eq!(sum.0.unwrap().size(), [160]);
/// # Ok(())
/// # }
/// ```
pub trait Sink: Send {
    /// A job begins. Here a sink that keeps things sees whether what it has is this job's. Called on the caller's thread.
    ///
    /// # Errors
    ///
    /// Ends the job before anything is computed.
    fn begin(&mut self, _job: &Identity, _piece: Piece) -> Result<()> {
        Ok(())
    }

    /// Whether a unit was done before, so that it is left out. Called on the caller's thread, before the first batch.
    ///
    /// # Errors
    ///
    /// Ends the job before anything is computed.
    fn is_done(&mut self, unit: usize) -> Result<bool>;

    /// Gets the next batch of a unit. Batches of a unit come one after the other, and always the same ones. Called on a thread of
    /// its own, while the next batch is computed.
    ///
    /// # Errors
    ///
    /// Ends the job; what was finished stays.
    fn take(&mut self, batch: Batch) -> Result<()>;

    /// A unit is whole. One without tokens comes without a batch before.
    ///
    /// # Errors
    ///
    /// Ends the job; what was finished stays.
    fn finish(&mut self, unit: &Unit) -> Result<()>;

    /// All units of the piece are done, now or before.
    ///
    /// # Errors
    ///
    /// Whatever the sink cannot bring to an end.
    fn end(&mut self) -> Result<()> {
        Ok(())
    }
}

/// One of `of` pieces of a job: the units whose number leaves `number` when it is divided by `of`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    number: usize,
    of: usize,
}

impl Default for Piece {
    fn default() -> Self {
        Self::WHOLE
    }
}

impl Piece {
    /// All of it.
    pub const WHOLE: Self = Self { number: 0, of: 1 };

    /// Piece `number`, counted from 0, of `of`.
    ///
    /// # Errors
    ///
    /// [`Error::Option`] where there is no such piece.
    pub fn new(number: usize, of: usize) -> Result<Self> {
        if number < of {
            return Ok(Self { number, of });
        }
        let problem = match of {
            0 => "expected K/N, such as 0/8".to_owned(),
            _ => format!("there is no piece {number} of {of}; K counts from 0 to {}", of - 1),
        };
        Err(Error::Option { option: "piece", problem })
    }

    /// Whether it is all of the job.
    pub fn is_whole(self) -> bool {
        self.of == 1
    }

    /// Whether it has this unit.
    pub fn has(self, unit: usize) -> bool {
        unit % self.of == self.number
    }
}

/// Reads `K/N`.
impl std::str::FromStr for Piece {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parsed = text.split_once('/').and_then(|(number, of)| Some((number.parse().ok()?, of.parse().ok()?)));
        let malformed = || Error::Option { option: "piece", problem: "expected K/N, such as 0/8".into() };
        let (number, of) = parsed.ok_or_else(malformed)?;
        Self::new(number, of)
    }
}

/// A text, in the unit that has it.
#[derive(Clone, Debug, PartialEq)]
pub struct Text {
    pub(super) id: Option<Value>,
    pub(super) at: u64,
    pub(super) tokens: usize,
    pub(super) start: Option<usize>,
}

impl Text {
    /// The id that the corpus gives it.
    pub fn id(&self) -> Option<&Value> {
        self.id.as_ref()
    }

    /// Its line, row or number, counted from 0 at the unit's first.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// Its tokens whose values are kept.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// The first of them among the tokens of the unit, in the order of its batches; `None` where there are none.
    pub fn start(&self) -> Option<usize> {
        self.start
    }
}

/// The smallest part of a job.
#[derive(Clone, Debug, PartialEq)]
pub struct Unit {
    pub(super) number: usize,
    pub(super) input: Option<String>,
    pub(super) first: Option<u64>,
    pub(super) lines: u64,
    pub(super) texts: Vec<Text>,
    pub(super) tokens: usize,
    pub(super) longest: usize,
}

impl Unit {
    /// Its number, counted from 0 in the order of the corpus.
    pub fn number(&self) -> usize {
        self.number
    }

    /// The file its texts are in; `None` for texts in memory and for files that are texts.
    pub fn input(&self) -> Option<&str> {
        self.input.as_deref()
    }

    /// What its first line, row or text is in its file, or in the corpus, counted from 0; `None` for lines, which the units before
    /// say only together.
    pub fn first(&self) -> Option<u64> {
        self.first
    }

    /// Lines, rows or texts that it has, empty ones included.
    pub fn lines(&self) -> u64 {
        self.lines
    }

    /// Its texts, in the order of the corpus.
    pub fn texts(&self) -> &[Text] {
        &self.texts
    }

    /// Tokens whose values are kept.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Tokens of its longest row: as many keys as attention patterns have in all of the unit.
    pub fn longest(&self) -> usize {
        self.longest
    }
}

/// Activations of some tokens of a unit, without padding.
#[derive(Debug)]
pub struct Batch {
    pub(super) unit: Arc<Unit>,
    pub(super) ids: Vec<i64>,
    pub(super) texts: Vec<i32>,
    pub(super) positions: Vec<i32>,
    pub(super) next: Vec<i64>,
    pub(super) values: Vec<(String, Tensor)>,
}

impl Batch {
    /// The unit it belongs to.
    pub fn unit(&self) -> &Unit {
        &self.unit
    }

    /// How many tokens there are: the first dimension of every value.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// The id of each token.
    pub fn ids(&self) -> &[i64] {
        &self.ids
    }

    /// The text of each token, a place in [`Unit::texts`]; -1 for a token that stands between packed texts.
    pub fn texts(&self) -> &[i32] {
        &self.texts
    }

    /// The position of each token in its text.
    pub fn positions(&self) -> &[i32] {
        &self.positions
    }

    /// The id that follows each token in its text, whether its own values are kept or not; -1 where a text or its row ends.
    pub fn next_ids(&self) -> &[i64] {
        &self.next
    }

    /// The values of a name, spelt as it was asked for: `[tokens, ...]`, with what the site has beyond positions behind. Attention
    /// scores and patterns are `[tokens, head, key]`, zero beyond a row's own keys.
    ///
    /// # Errors
    ///
    /// [`Error::NotCaptured`].
    pub fn get(&self, name: &str) -> Result<&Tensor> {
        let found = self.values.iter().find(|(known, _)| known == name).map(|(_, values)| values);
        found.ok_or_else(|| Error::NotCaptured {
            name: name.to_owned(),
            names: self.values.iter().map(|(name, _)| name.clone()).collect(),
        })
    }

    /// Names and values in the order of asking.
    pub fn values(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.values.iter().map(|(name, values)| (name.as_str(), values))
    }
}
