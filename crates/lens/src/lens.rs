//! The logit lens itself: one run, every row, every measure.

use std::{collections::BTreeMap, ops::Range};

use models::{Model, Site};
use tch::Kind;

use crate::{
    Error, Measure, Row, RowOptions, Table, Token, TopK, TunedLens,
    decoder::{DEFAULT_DECODER, Decoder},
    error::Result,
    rows::RowPlan,
    streams::{Chosen, RowStreams},
    table::TUNED,
    unembed::{self, Measured, Wanted},
};

/// What a lens shows and how.
#[derive(Clone, Debug)]
pub struct LensOptions {
    /// What is measured; for tracked tokens see [`LensOptions::tracked`].
    pub measures: Vec<Measure>,
    /// The positions that are decoded; all of them by default. The model always sees the whole prompt.
    pub positions: Option<Range<usize>>,
    /// Which places become rows.
    pub rows: RowOptions,
    /// What turns a stream into logits: blocks or halves of blocks, then `final_layernorm` and `lm_head`.
    pub decoder: Vec<String>,
    /// How many of the likeliest tokens are kept for each cell.
    pub top_k: usize,
    /// Tokens by text and id whose probability and rank are measured in every cell.
    pub tracked: Vec<(String, i64)>,
    /// Probabilities below this count as this in `kl`, as in transformer-utils, which takes 1 / (10 x vocabulary). By
    /// default the divergence is exact.
    pub kl_clip: Option<f64>,
    /// Bytes that temporary results may take.
    pub memory: u64,
}

impl Default for LensOptions {
    fn default() -> Self {
        Self {
            measures: vec![Measure::Probs],
            positions: None,
            rows: RowOptions::default(),
            decoder: DEFAULT_DECODER.map(str::to_owned).into(),
            top_k: 0,
            tracked: Vec::new(),
            kl_clip: None,
            memory: 256 << 20,
        }
    }
}

/// One prompt of a batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prompt {
    /// Its token ids.
    pub ids: Vec<i64>,
    /// The positions that are decoded; `None` takes those of [`LensOptions::positions`].
    pub positions: Option<Range<usize>>,
}

/// One prompt's share of the results.
struct Cells<'a> {
    measured: &'a Measured,
    wanted: &'a Wanted,
    /// Columns of all prompts together.
    columns: usize,
    /// This prompt's among them.
    mine: Range<usize>,
}

/// A lens on one model, checked and ready.
///
/// Based on "interpreting GPT: the logit lens" by nostalgebraist (2020),
/// <https://www.lesswrong.com/posts/AcKRB8wDpdaN6v6ru/interpreting-gpt-the-logit-lens>.
pub struct Lens<'a> {
    model: &'a Model,
    options: LensOptions,
    decoder: Decoder,
    rows: Vec<RowPlan>,
    tuned: Option<&'a TunedLens>,
}

impl<'a> Lens<'a> {
    /// Checks the options against the model; nothing runs.
    ///
    /// # Errors
    ///
    /// [`Error::Decoder`], [`Error::BlockStep`], [`Error::NoRows`], [`Error::NoMeasure`], [`Error::TrackedToken`],
    /// [`Error::TopK`], and unknown names.
    pub fn new(model: &'a Model, options: LensOptions) -> Result<Self> {
        let vocabulary = model.config().vocabulary;
        if options.measures.is_empty() && options.tracked.is_empty() {
            return Err(Error::NoMeasure);
        }
        if let Some((text, id)) = options.tracked.iter().find(|(_, id)| !(0..vocabulary).contains(id)) {
            return Err(Error::TrackedToken { text: text.clone(), id: *id, vocabulary });
        }
        if options.top_k as i64 > vocabulary {
            return Err(Error::TopK { asked: options.top_k, vocabulary });
        }
        let decoder = Decoder::parse(model, &options.decoder)?;
        let rows = options.rows.plan(model.config().layers(), &decoder)?;
        Ok(Self { model, options, decoder, rows, tuned: None })
    }

    /// The names of the rows in the order in which they run.
    pub fn row_names(&self) -> impl Iterator<Item = &str> {
        self.rows.iter().map(|row| row.name.as_str())
    }

    /// Puts translators (the tuned lens) between the rows and the decoder: each row goes through its own, then through the final
    /// norm and the unembedding.
    ///
    /// # Errors
    ///
    /// [`Error::TunedLens`] where they were made for another model, where the decoder holds blocks, and where a row has no
    /// translator: there are translators of the streams that enter blocks, and the last row needs none.
    pub fn tuned(mut self, tuned: &'a TunedLens) -> Result<Self> {
        tuned.check(self.model)?;
        if !self.decoder.steps.is_empty() {
            let problem = "translators lead to the last block's output; a decoder cannot hold blocks as well".into();
            return Err(Error::TunedLens { problem });
        }
        let last = Site::before_block(self.model.config().layers());
        if let Some(row) = self.rows.iter().find(|row| row.site != last && tuned.layer(row.site).is_none()) {
            let name = &row.name;
            let problem = format!("there is no translator for the row {name}; there are those of whole blocks");
            return Err(Error::TunedLens { problem });
        }
        self.tuned = Some(tuned);
        Ok(self)
    }

    /// Runs the model over a prompt and decodes every row.
    ///
    /// `name` is what the table calls the model, `text` spells a token. The reference of every measure is the model's
    /// real output, whatever rows and decoder were chosen.
    ///
    /// # Errors
    ///
    /// [`Error::Positions`]; whatever the model refuses; [`Error::LastRow`] if the last block's row does not give the
    /// model's own output, which is checked on every run that has it.
    pub fn table(&self, name: &str, ids: &[i64], text: impl Fn(i64) -> String) -> Result<Table> {
        let prompt = Prompt { ids: ids.to_vec(), positions: self.options.positions.clone() };
        let mut tables = self.tables(name, &[prompt], text)?;
        tables.pop().ok_or(Error::Model(models::Error::EmptyInput))
    }

    /// Runs the model once over a batch of prompts; one table for each, as [`Lens::table`] would make it.
    ///
    /// Shorter prompts are padded for the run; nothing of the padding is decoded. A prompt without positions of its own
    /// takes those of the options.
    ///
    /// # Errors
    ///
    /// As [`Lens::table`].
    pub fn tables(&self, name: &str, prompts: &[Prompt], text: impl Fn(i64) -> String) -> Result<Vec<Table>> {
        let chosen = prompts.iter().map(|prompt| self.choose(prompt)).collect::<Result<Vec<_>>>()?;
        let wanted = self.wanted(&chosen);
        let measured = tch::no_grad(|| self.measure(&chosen, &wanted))?;
        self.check_last_row(&measured, &chosen)?;
        let dtype = self.model.parts().dtype().to_string();
        let columns = chosen.iter().map(|prompt| prompt.positions.len()).sum();
        let mut begin = 0;
        let table = |prompt: &Chosen| {
            let mine = begin..begin + prompt.positions.len();
            begin = mine.end;
            let cells = Cells { measured: &measured, wanted: &wanted, columns, mine };
            let rows = self.rows.iter().enumerate().map(|(row, plan)| self.row(row, plan, &cells, &text));
            let table = Table {
                model: name.to_owned(),
                dtype: dtype.clone(),
                lens: self.tuned.map(|_| TUNED.to_owned()),
                measures: self.measures(),
                tokens: prompt.ids.iter().map(|&id| Token { id, text: text(id) }).collect(),
                positions: prompt.positions.clone().collect(),
                rows: rows.collect(),
            };
            table.check()?;
            Ok(table)
        };
        chosen.iter().map(table).collect()
    }

    fn choose<'p>(&self, prompt: &'p Prompt) -> Result<Chosen<'p>> {
        let tokens = prompt.ids.len();
        let positions = prompt.positions.as_ref().or(self.options.positions.as_ref()).cloned().unwrap_or(0..tokens);
        // An empty prompt is the model's to refuse.
        if tokens > 0 && (positions.start >= positions.end || positions.end > tokens) {
            return Err(Error::Positions { begin: positions.start, end: positions.end, tokens });
        }
        Ok(Chosen { ids: &prompt.ids, positions })
    }

    fn measures(&self) -> Vec<Measure> {
        let mut measures = self.options.measures.clone();
        for (text, _) in &self.options.tracked {
            measures.extend([Measure::TrackedProb(text.clone()), Measure::TrackedRank(text.clone())]);
        }
        let mut seen = std::collections::HashSet::new();
        measures.retain(|measure| seen.insert(measure.clone()));
        measures
    }

    fn wanted(&self, prompts: &[Chosen]) -> Wanted {
        let has = |measure: &Measure| self.options.measures.contains(measure);
        let next = || {
            let of = |prompt: &'_ Chosen, position: usize| prompt.ids.get(position + 1).copied().unwrap_or(-1);
            let each = prompts.iter().flat_map(|prompt| prompt.positions.clone().map(move |at| of(prompt, at)));
            each.collect()
        };
        Wanted {
            ranks: has(&Measure::Ranks),
            kl: has(&Measure::Kl),
            clip: self.options.kl_clip,
            reverse_kl: has(&Measure::ReverseKl),
            entropy: has(&Measure::Entropy),
            top_k: self.options.top_k,
            tracked: self.options.tracked.iter().map(|(_, id)| *id).collect(),
            next: has(&Measure::CrossEntropy).then(next),
            memory: self.options.memory,
        }
    }

    fn measure(&self, prompts: &[Chosen], wanted: &Wanted) -> Result<Measured> {
        let memory = self.options.memory;
        let streams = RowStreams::take(self.model, &self.rows, &self.decoder, self.tuned, prompts, memory)?;
        let unembedding = self.model.unembedding()?;
        unembed::measure(&streams, &streams.reference, &unembedding, wanted)
    }

    /// The row of the last block is the model's own output, computed another way.
    fn check_last_row(&self, measured: &Measured, prompts: &[Chosen]) -> Result<()> {
        let layers = self.model.config().layers();
        let whole = self.decoder.steps.is_empty();
        let Some(row) = self.rows.iter().position(|row| row.site == Site::before_block(layers)).filter(|_| whole)
        else {
            return Ok(());
        };
        // What rounding explains, relative to one more than the score.
        let tolerance = match self.model.parts().dtype().kind() {
            Kind::BFloat16 | Kind::Half => 0.1,
            _ => 1e-3,
        };
        let pairs = [
            (&measured.target_logit, &measured.final_logit),
            (&measured.log_normaliser, &measured.final_log_normaliser),
        ];
        let positions: Vec<usize> = prompts.iter().flat_map(|prompt| prompt.positions.clone()).collect();
        for (column, &position) in positions.iter().enumerate() {
            for (rows, own) in pairs {
                let (Some(&found), Some(&expected)) = (rows.get(row * positions.len() + column), own.get(column))
                else {
                    continue;
                };
                let allowed = tolerance * (1.0 + f64::from(expected.abs()));
                let apart = f64::from((found - expected).abs());
                if apart.is_nan() || apart > allowed {
                    let row = self.rows.get(row).map_or_else(String::new, |row| row.name.clone());
                    return Err(Error::LastRow { row, position, expected, found, allowed });
                }
            }
        }
        Ok(())
    }

    fn row(&self, row: usize, plan: &RowPlan, of: &Cells, text: &impl Fn(i64) -> String) -> Row {
        let Cells { measured, wanted, columns, mine } = of;
        let cells = row * columns + mine.start..row * columns + mine.end;
        let at = |values: &[f32], cell: usize| values.get(cell).map_or(f64::NAN, |&value| f64::from(value));
        let log_probability = |logits: &[f32], cell| at(logits, cell) - at(&measured.log_normaliser, cell);
        let tracked = wanted.tracked.len();
        let track = |text: &str| self.options.tracked.iter().position(|(known, _)| known == text).unwrap_or(0);
        let value = |measure: &Measure, cell: usize| match measure {
            Measure::Logits => at(&measured.target_logit, cell),
            Measure::Probs => log_probability(&measured.target_logit, cell).exp().min(1.0),
            Measure::Ranks => measured.ranks.get(cell).map_or(f64::NAN, |&rank| rank as f64),
            Measure::Kl => at(&measured.kl, cell),
            Measure::ReverseKl => at(&measured.reverse_kl, cell),
            Measure::Entropy => at(&measured.entropy, cell),
            Measure::CrossEntropy => match wanted.next.as_ref().and_then(|next| next.get(cell % (*columns).max(1))) {
                Some(&next) if next >= 0 => -log_probability(&measured.next_logit, cell),
                _ => f64::NAN,
            },
            Measure::TrackedProb(text) => {
                let logit = at(&measured.tracked_logit, cell * tracked + track(text));
                (logit - at(&measured.log_normaliser, cell)).exp().min(1.0)
            }
            Measure::TrackedRank(text) => {
                measured.tracked_rank.get(cell * tracked + track(text)).map_or(f64::NAN, |&rank| rank as f64)
            }
        };
        let values: BTreeMap<Measure, Vec<f64>> = self
            .measures()
            .into_iter()
            .map(|measure| {
                let column = cells.clone().map(|cell| value(&measure, cell)).collect();
                (measure, column)
            })
            .collect();
        let top1: Vec<i64> = measured.top1.get(cells.clone()).unwrap_or_default().to_vec();
        let k = wanted.top_k;
        let top_k = (k > 0).then(|| {
            let cell = |cell: usize| {
                let entry = |place: usize| {
                    let id = measured.top_k_ids.get(place).copied().unwrap_or(0);
                    let prob = (at(&measured.top_k_logits, place) - at(&measured.log_normaliser, cell)).exp().min(1.0);
                    TopK { id, text: text(id), prob }
                };
                (cell * k..(cell + 1) * k).map(entry).collect()
            };
            cells.clone().map(cell).collect()
        });
        let top1_text = top1.iter().map(|&id| text(id)).collect();
        Row { name: plan.name.clone(), top1, top1_text, values, top_k }
    }
}
