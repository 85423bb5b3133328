//! What streams say that were taken elsewhere: of many tokens of many texts, as a corpus has them.

use std::ops::Range;

use models::{Model, Site, Tail, Unembedding};
use tch::{Kind, TchError, Tensor};

use crate::{
    Error, FittedLens, LensOptions,
    error::Result,
    streams::translated,
    translators::Translators,
    unembed::{self, Streams, Wanted},
};

/// Decodes residual streams that a run of one's own has captured, as [`Lens`](crate::Lens) does those of its own runs: each through
/// the model's final norm and unembedding, measured against the last stream, in bounded memory. Tokens stand one after the other,
/// of whatever texts they are.
///
/// It holds the final norm and the unembedding and nothing else of the model, so it can go to another thread while the model runs.
///
/// ```
/// use lens::Readout;
/// use models::{Config, Model};
/// use partial::Run;
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let config = r#"{"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 8, "vocab_size": 20}"#;
/// # let model = Model::random(Config::from_json(config)?, 0)?;
/// let run = Run::new(&model, &["h.0", "h.1"])?.run([1, 2, 3])?;
/// let stream = |name| -> Result<_, Box<dyn std::error::Error>> { Ok(run.get(name)?.f_select(0, 0)?) }; // [3, d_model]
/// let found = Readout::new(&model)?.measure(&[stream("h.0")?], &stream("h.1")?, &[2, 3, -1])?;
/// assert_eq!(found[0].kl.len(), 3);
/// assert!(found[0].next_log_probability[2].is_nan());
/// # Ok(())
/// # }
/// ```
pub struct Readout {
    tail: Tail,
    unembedding: Unembedding,
    /// The dtype that the model's own output is normed in.
    kind: Kind,
    memory: u64,
    fitted: Option<(FittedLens, Vec<Option<usize>>)>,
}

/// What one stream says, a value for each token.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct StreamReadout {
    /// KL(final || stream), in nats.
    pub kl: Vec<f64>,
    /// The entropy of the stream's distribution, in nats.
    pub entropy: Vec<f64>,
    /// The token that it thinks likeliest to come next.
    pub top1: Vec<i64>,
    /// The probability of that, in 0..=1.
    pub top1_probability: Vec<f64>,
    /// Whether the last stream has the same token as its likeliest.
    pub agrees: Vec<bool>,
    /// The logarithm of the probability of the token that really comes next, in nats; NaN where there is none.
    pub next_log_probability: Vec<f64>,
}

/// Streams as they were given.
struct Given<'a> {
    tail: &'a Tail,
    /// A lens between the streams and the final norm, and which of its maps is each stream's.
    translators: Option<(Translators<'a>, &'a [Option<usize>])>,
    /// `[n, d_model]` each.
    rows: &'a [Tensor],
    tokens: i64,
}

fn torch(source: TchError) -> Error {
    Error::Torch { at: "taking streams", source }
}

impl Readout {
    /// Takes the final norm and the unembedding.
    ///
    /// # Errors
    ///
    /// [`Error::Model`] where their weights cannot be placed.
    pub fn new(model: &Model) -> Result<Self> {
        Ok(Self {
            tail: model.tail()?,
            unembedding: model.unembedding()?,
            kind: model.parts().dtype().kind(),
            memory: LensOptions::default().memory,
            fitted: None,
        })
    }

    /// Puts the maps of a tuned or a Jacobian lens between the streams and the final norm, as [`Lens::fitted`](crate::Lens::fitted)
    /// does. `sites` says what streams will be measured, in their order.
    ///
    /// # Errors
    ///
    /// [`Error::TunedLens`] or [`Error::JacobianLens`] where it was made for another model, or has no map for a stream that is not the
    /// last.
    pub fn fitted(mut self, model: &Model, fitted: FittedLens, sites: &[Site]) -> Result<Self> {
        fitted.check(model)?;
        let translators = fitted.translators();
        translators.cover(model, sites.iter().map(|site| (*site, site)))?;
        let layers = sites.iter().map(|site| translators.layer(*site)).collect();
        self.fitted = Some((fitted, layers));
        Ok(self)
    }

    /// Bytes that temporary results may take, as [`LensOptions::memory`].
    pub fn memory(mut self, memory: u64) -> Self {
        self.memory = memory;
        self
    }

    /// Measures `streams` against `last`, the stream after the last block; all `[n, d_model]` in the dtype of the run. `next` has
    /// for each of the `n` tokens the one that really comes next, -1 where there is none.
    ///
    /// # Errors
    ///
    /// [`Error::StreamShape`]; another number of streams than [`Readout::fitted`] was told of; [`Error::Torch`], [`Error::Model`].
    pub fn measure(&self, streams: &[Tensor], last: &Tensor, next: &[i64]) -> Result<Vec<StreamReadout>> {
        let expected = [next.len() as i64, last.size().last().copied().unwrap_or(0)];
        let odd = streams.iter().chain([last]).map(Tensor::size).find(|shape| *shape != expected);
        if let Some(found) = odd {
            return Err(Error::StreamShape { found, expected: expected.to_vec() });
        }
        let translators = self.fitted.as_ref().map(|(lens, layers)| (lens.translators(), layers.as_slice()));
        if let Some((translators, layers)) = translators.filter(|(_, layers)| layers.len() != streams.len()) {
            let problem = format!("it was set for {} streams, and {} came", layers.len(), streams.len());
            return Err(translators.refuse(problem));
        }
        if next.is_empty() {
            return Ok(vec![StreamReadout::default(); streams.len()]);
        }
        let device = self.unembedding.weight().device();
        let placed = |stream: &Tensor| stream.f_to_device(device).map_err(torch);
        let rows = streams.iter().map(placed).collect::<Result<Vec<_>>>()?;
        // As the model rounds its own output, so that it is measured against what it says.
        let reference = self.tail.apply(&placed(last)?, self.kind)?.f_to_kind(Kind::Float).map_err(torch)?;
        let given = Given { tail: &self.tail, translators, rows: &rows, tokens: next.len() as i64 };
        let wanted =
            Wanted { kl: true, entropy: true, next: Some(next.to_vec()), memory: self.memory, ..Wanted::default() };
        let measured = tch::no_grad(|| unembed::measure(&given, &reference, &self.unembedding, &wanted))?;
        let row = |row: usize| {
            let cells = row * next.len()..(row + 1) * next.len();
            let floats = |values: &[f32]| -> Vec<f64> {
                values.get(cells.clone()).unwrap_or_default().iter().map(|&value| f64::from(value)).collect()
            };
            let normalisers = measured.log_normaliser.get(cells.clone()).unwrap_or_default();
            let below = |logits: &[f32]| -> Vec<f64> {
                floats(logits).iter().zip(normalisers).map(|(logit, normaliser)| logit - normaliser).collect()
            };
            let top1 = measured.top1.get(cells.clone()).unwrap_or_default().to_vec();
            let known = |(log, &next): (f64, &i64)| if next < 0 { f64::NAN } else { log };
            StreamReadout {
                kl: floats(&measured.kl),
                entropy: floats(&measured.entropy),
                top1_probability: below(&measured.top1_logit).into_iter().map(|log| log.exp().min(1.0)).collect(),
                agrees: top1.iter().zip(&measured.final_top1).map(|(own, last)| own == last).collect(),
                next_log_probability: below(&measured.next_logit).into_iter().zip(next).map(known).collect(),
                top1,
            }
        };
        Ok((0..streams.len()).map(row).collect())
    }
}

impl Streams for Given<'_> {
    fn rows(&self) -> usize {
        self.rows.len()
    }

    fn positions(&self) -> i64 {
        self.tokens
    }

    fn normed(&self, rows: Range<usize>, positions: Range<i64>) -> Result<Tensor> {
        let (translators, layers) = self.translators.unzip();
        let streams = translated(translators, layers.unwrap_or_default(), self.rows, rows, positions)?;
        Ok(self.tail.apply(&streams, Kind::Float)?)
    }
}
