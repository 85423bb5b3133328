//! Continuing texts, token by token.

use std::ops::ControlFlow;

use tch::{Device, Kind, TchError, Tensor};

use crate::{
    Ending, Error, GenerateOptions, Generated, GeneratedRow, Input, KvCache, LogitsAt, Model, NoObserver, Observer,
    Prompt, Result,
    sampling::{likeliest, penalize_repetition},
    stopping::Stopping,
};

/// A token as soon as it is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NewToken {
    /// Row of the batch.
    pub row: usize,
    /// How many new tokens the row had before.
    pub step: usize,
    /// The token.
    pub id: i64,
}

/// Continues every row of `prompts`, which may differ in length, until each has ended; `on_token` sees each new token and
/// may stop the run.
///
/// Shorter prompts are padded on the left and masked; their positions count from their own first token. Each step reads
/// the earlier positions from a cache, so weights are read, and with [`lowmem::Residency::Streamed`] placed, once for each
/// new token. No gradients are recorded.
///
/// ```
/// use std::ops::ControlFlow;
/// use models::{Config, GenerateOptions, Model, generate};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let config = r#"{"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 8, "vocab_size": 20}"#;
/// # let model = Model::random(Config::from_json(config)?, 0)?;
/// let options = GenerateOptions::default().max_new_tokens(5);
/// let generated = generate(&model, &[vec![1, 2, 3], vec![4]], &options, |token| {
///     println!("row {}: {}", token.row, token.id);
///     ControlFlow::Continue(())
/// })?;
/// assert_eq!(generated.rows[1].new_tokens().len(), 5);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// [`Error::Setting`] for an option out of range, [`Error::EmptyInput`] for an empty row, [`Error::NoTokenizer`] for
/// stop texts without a tokenizer; [`Error::LogitsNotFinite`] where
/// the model gives no number to choose by; whatever [`Model::forward`] refuses, [`Error::TooManyPositions`] for a prompt
/// longer than the model's context among it.
pub fn generate(
    model: &Model,
    prompts: &[Vec<i64>],
    options: &GenerateOptions,
    on_token: impl FnMut(NewToken) -> ControlFlow<()>,
) -> Result<Generated> {
    generate_observed(model, prompts, options, &mut NoObserver, on_token)
}

/// As [`generate`], with an observer of every run: the first reads the prompts, each one after it the tokens chosen last.
///
/// [`Observer::begin`] tells which columns of the texts a run reads: after so many that are in the cache, those of its input.
/// Where a family rotates all positions otherwise as a text grows, a run may read all columns again, after none that are in
/// the cache. Rows that have ended go on as padding tokens until all have.
///
/// # Errors
///
/// As [`generate`]; [`Error::Observer`]; [`Error::NoLogits`] where the observer stops a run.
pub fn generate_observed(
    model: &Model,
    prompts: &[Vec<i64>],
    options: &GenerateOptions,
    observer: &mut dyn Observer,
    mut on_token: impl FnMut(NewToken) -> ControlFlow<()>,
) -> Result<Generated> {
    let mut run = Run::new(model, prompts, options)?;
    let _no_grad = tch::no_grad_guard();
    for step in 0..options.max_new_tokens {
        let logits = run.next_logits(observer)?;
        run.choose(logits, step, &mut on_token)?;
        if run.endings.iter().all(Option::is_some) {
            break;
        }
    }
    run.finish()
}

impl Model {
    /// Continues a prompt, or every row of a batch, as [`generate`] does, which also hands out tokens as they come. What comes
    /// back displays as the text, the prompt included.
    ///
    /// ```
    /// # use models::{Config, GenerateOptions, Model};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let config = r#"{"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 8, "vocab_size": 20}"#;
    /// # let model = Model::random(Config::from_json(config)?, 0)?;
    /// let generated = model.generate([1, 2, 3], &GenerateOptions::default().max_new_tokens(5))?;
    /// assert_eq!(generated.rows[0].new_tokens().len(), 5);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`generate`] and [`Model::token_rows`].
    pub fn generate<'p>(&self, prompt: impl Into<Prompt<'p>>, options: &GenerateOptions) -> Result<Generated> {
        options.check()?;
        generate(self, &self.token_rows(prompt)?, options, |_| ControlFlow::Continue(()))
    }
}

struct Run<'a> {
    model: &'a Model,
    options: &'a GenerateOptions,
    stopping: Stopping<'a>,
    pad_token: i64,
    rows: Vec<Vec<i64>>,
    prompts: Vec<usize>,
    endings: Vec<Option<Ending>>,
    cache: KvCache,
    /// What the next step runs over, rows of one length.
    pending: Vec<Vec<i64>>,
    /// What the steps before ran over.
    read: Vec<Vec<i64>>,
}

impl<'a> Run<'a> {
    fn new(model: &'a Model, prompts: &[Vec<i64>], options: &'a GenerateOptions) -> Result<Self> {
        options.check()?;
        if prompts.is_empty() || prompts.iter().any(Vec::is_empty) {
            return Err(Error::EmptyInput);
        }
        let config = model.config();
        let end_tokens = options.end_tokens.as_ref().unwrap_or(&config.end_tokens);
        // A config may name an end token that its vocabulary lacks (GPT-2's default in a tiny model); it never comes.
        let known = |id: &&i64| (0..config.architecture.vocabulary).contains(*id);
        let pad_token = options.pad_token.or_else(|| end_tokens.iter().find(known).copied()).unwrap_or(0);
        if !known(&&pad_token) {
            let found = pad_token.to_string();
            return Err(Error::Setting { setting: "pad_token", found, expected: "an id of the vocabulary" });
        }
        let width = prompts.iter().map(Vec::len).max().unwrap_or(0);
        let pad = |row: &Vec<i64>| [vec![pad_token; width - row.len()], row.clone()].concat();
        Ok(Self {
            model,
            options,
            stopping: Stopping::new(model, options, end_tokens, prompts.len())?,
            pad_token,
            rows: prompts.to_vec(),
            prompts: prompts.iter().map(Vec::len).collect(),
            endings: vec![None; prompts.len()],
            cache: KvCache::new(),
            pending: prompts.iter().map(pad).collect(),
            read: vec![Vec::new(); prompts.len()],
        })
    }

    /// Runs the pending columns and gives the logits after the last one, each row's on the CPU.
    fn next_logits(&mut self, observer: &mut dyn Observer) -> Result<Vec<Vec<f64>>> {
        let logits = match self.run_pending(observer) {
            // All positions are rotated otherwise from here on: they are run again.
            Err(Error::CacheRotation { .. }) => {
                self.cache = KvCache::new();
                let read = std::mem::take(&mut self.read);
                self.pending =
                    read.into_iter().zip(&self.pending).map(|(read, new)| [read, new.clone()].concat()).collect();
                self.read = vec![Vec::new(); self.pending.len()];
                self.run_pending(observer)?
            }
            logits => logits?,
        };
        self.read.iter_mut().zip(&self.pending).for_each(|(read, new)| read.extend(new));
        Ok(logits)
    }

    fn run_pending(&mut self, observer: &mut dyn Observer) -> Result<Vec<Vec<f64>>> {
        let columns = self.cache.len() + self.pending.first().map_or(0, Vec::len) as i64;
        let mut input = Input::from_rows(&self.pending)?.logits_at(LogitsAt::Last);
        let width = self.prompts.iter().max().copied().unwrap_or(0);
        if self.prompts.iter().any(|&prompt| prompt < width) {
            let mask = self.mask(width, columns)?;
            let positions = Input::positions_from_mask(&mask)?;
            let new = positions.f_narrow(1, self.cache.len(), columns - self.cache.len());
            let new = new.map_err(Error::torch("positions of the new tokens"))?;
            input = input.attention_mask(mask).position_ids(new);
        }
        let outcome = self.model.forward_cached(&input, &mut self.cache, observer)?;
        let stopped_at = outcome.stopped_at;
        let logits = outcome.logits.ok_or_else(|| Error::NoLogits {
            site: stopped_at.map_or_else(|| "its start".into(), |site| site.to_string()),
        })?;
        let values = numbers(&logits).map_err(Error::torch("the logits of the last position"))?;
        Ok(values.chunks(self.model.architecture().vocabulary as usize).map(<[f64]>::to_vec).collect())
    }

    /// `[batch, columns]`, zero where a prompt of width `width` was padded.
    fn mask(&self, width: usize, columns: i64) -> Result<Tensor> {
        let row = |&prompt: &usize| {
            let padding = width - prompt;
            (0..columns).map(move |column| i64::from(column >= padding as i64))
        };
        let mask: Vec<i64> = self.prompts.iter().flat_map(row).collect();
        let shaped = Tensor::f_from_slice(&mask).and_then(|mask| mask.f_view([self.prompts.len() as i64, columns]));
        shaped.map_err(Error::torch("the attention mask"))
    }

    /// Chooses a token for every row that has not ended.
    fn choose(
        &mut self,
        logits: Vec<Vec<f64>>,
        step: usize,
        on_token: &mut impl FnMut(NewToken) -> ControlFlow<()>,
    ) -> Result<()> {
        let full = self.cache.len() >= self.model.architecture().context;
        let mut stopped = false;
        self.pending.clear();
        for (index, mut logits) in logits.into_iter().enumerate() {
            let (Some(row), Some(ending)) = (self.rows.get_mut(index), self.endings.get_mut(index)) else {
                continue;
            };
            if ending.is_some() || stopped {
                // The cache needs a token for every row; nobody looks at what this one leads to.
                self.pending.push(vec![self.pad_token]);
                continue;
            }
            let usable =
                logits.iter().all(|logit| *logit < f64::INFINITY) && logits.iter().any(|logit| logit.is_finite());
            if !usable {
                return Err(Error::LogitsNotFinite { row: index, position: row.len() - 1 });
            }
            if self.options.repetition_penalty != 1.0 {
                penalize_repetition(&mut logits, row.iter(), self.options.repetition_penalty);
            }
            let id = match &self.options.sampling {
                None => likeliest(&logits),
                Some(sampling) => sampling.draw(&mut logits, index, step),
            } as i64;
            row.push(id);
            self.pending.push(vec![id]);
            let prompt = self.prompts.get(index).copied().unwrap_or(0);
            *ending = self.stopping.after(index, row.get(prompt..).unwrap_or_default());
            if ending.is_none() && full && step + 1 < self.options.max_new_tokens {
                *ending = Some(Ending::ContextFull);
            }
            stopped = on_token(NewToken { row: index, step, id }).is_break();
        }
        if stopped {
            self.endings.iter_mut().for_each(|ending| *ending = ending.or(Some(Ending::Stopped)));
        }
        Ok(())
    }

    fn finish(self) -> Result<Generated> {
        let rows = self.rows.into_iter().zip(self.prompts).zip(self.endings).map(|((tokens, prompt), ending)| {
            let ending = ending.unwrap_or(Ending::MaxNewTokens);
            GeneratedRow::new(self.model, tokens, prompt, ending)
        });
        Ok(Generated { rows: rows.collect::<Result<_>>()?, pad_token: self.pad_token })
    }
}

/// The elements of a tensor. Libtorch would wake threads to convert a whole vocabulary, which wait busily for more and take the time
/// of those that multiply next.
fn numbers(tensor: &Tensor) -> Result<Vec<f64>, TchError> {
    let tensor = tensor.f_to_device(Device::Cpu)?;
    if let Some(numbers) = lowmem::numbers_of(&tensor)? {
        return Ok(numbers.into_iter().map(f64::from).collect());
    }
    let tensor = tensor.f_to_kind(Kind::Double)?;
    let mut values = vec![0.0_f64; tensor.numel()];
    tensor.f_copy_data(&mut values, tensor.numel())?;
    Ok(values)
}
