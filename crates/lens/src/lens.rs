//! The logit lens itself: one run, every row, every measure.

use std::{collections::BTreeMap, ops::Range};

use models::{Input, Model, Site};
use partial::{Plan, Run};
use tch::{Kind, TchError, Tensor};

use crate::{
    Error, Measure, Row, RowOptions, Table, Token, TopK,
    decoder::{DEFAULT_DECODER, Decoder},
    error::Result,
    rows::RowPlan,
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

/// A lens on one model, checked and ready.
///
/// Based on "interpreting GPT: the logit lens" by nostalgebraist (2020),
/// <https://www.lesswrong.com/posts/AcKRB8wDpdaN6v6ru/interpreting-gpt-the-logit-lens>.
pub struct Lens<'a> {
    model: &'a Model,
    options: LensOptions,
    decoder: Decoder,
    rows: Vec<RowPlan>,
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
        Ok(Self { model, options, decoder, rows })
    }

    /// The names of the rows in the order in which they run.
    pub fn row_names(&self) -> impl Iterator<Item = &str> {
        self.rows.iter().map(|row| row.name.as_str())
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
        let positions = self.options.positions.clone().unwrap_or(0..ids.len());
        if !ids.is_empty() && (positions.start >= positions.end || positions.end > ids.len()) {
            return Err(Error::Positions { begin: positions.start, end: positions.end, tokens: ids.len() });
        }
        let wanted = self.wanted(ids, &positions);
        let measured = tch::no_grad(|| self.measure(ids, &positions, &wanted))?;
        self.check_last_row(&measured, &positions)?;
        let dtype = self.model.parts().dtype().to_string();
        let tokens = ids.iter().map(|&id| Token { id, text: text(id) }).collect();
        let columns = positions.len();
        let rows =
            self.rows.iter().enumerate().map(|(row, plan)| self.row(row, plan, &measured, columns, &wanted, &text));
        let table = Table {
            model: name.to_owned(),
            dtype,
            measures: self.measures(),
            tokens,
            positions: positions.clone().collect(),
            rows: rows.collect(),
        };
        table.check()?;
        Ok(table)
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

    fn wanted(&self, ids: &[i64], positions: &Range<usize>) -> Wanted {
        let has = |measure: &Measure| self.options.measures.contains(measure);
        let next = |position: usize| ids.get(position + 1).copied().unwrap_or(-1);
        Wanted {
            ranks: has(&Measure::Ranks),
            kl: has(&Measure::Kl),
            clip: self.options.kl_clip,
            reverse_kl: has(&Measure::ReverseKl),
            entropy: has(&Measure::Entropy),
            top_k: self.options.top_k,
            tracked: self.options.tracked.iter().map(|(_, id)| *id).collect(),
            next: has(&Measure::CrossEntropy).then(|| positions.clone().map(next).collect()),
            memory: self.options.memory,
        }
    }

    fn measure(&self, ids: &[i64], positions: &Range<usize>, wanted: &Wanted) -> Result<Measured> {
        let torch = |at| move |source: TchError| Error::Torch { at, source };
        let sites: Vec<String> = self.rows.iter().map(|row| row.site.to_string()).collect();
        let mut names = sites.clone();
        let reference = Site::FINAL_NORM.to_string();
        names.push(reference.clone());
        let mut run = Run::planned(self.model, Plan::new(self.model, &names)?);
        let range = positions.start as i64..positions.end as i64;
        // Streams of other positions are kept only if the decoder's attention will read them.
        let local = self.decoder.is_local();
        if local {
            run = run.positions(range.clone());
        }
        let output = run.run(&Input::from_rows(&[ids])?)?;
        let cut = |tensor: Tensor| -> Result<Tensor, TchError> {
            if local { Ok(tensor) } else { tensor.f_narrow(1, range.start, range.end - range.start) }
        };
        let streams = sites.iter().map(|site| output.get(site)).collect::<partial::Result<Vec<_>>>()?;
        let streams = Tensor::f_cat(&streams, 0).map_err(torch("stacking the rows"))?;
        let reference = cut(output.get(&reference)?.shallow_clone()).map_err(torch("the model's own output"))?;
        drop(output);
        let streams = cut(self.decoder.run_blocks(self.model, streams)?).map_err(torch("the rows"))?;
        let normed = self.model.final_norm(&streams, Kind::Float)?;
        let reference = reference.f_squeeze_dim(0).and_then(|tensor| tensor.f_to_kind(Kind::Float));
        let reference = reference.map_err(torch("the model's own output"))?;
        let unembedding = self.model.unembedding()?;
        unembed::measure(&normed, &reference, &unembedding, wanted).map_err(torch("unembedding the rows"))
    }

    /// The row of the last block is the model's own output, computed another way.
    fn check_last_row(&self, measured: &Measured, positions: &Range<usize>) -> Result<()> {
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
        for (column, position) in positions.clone().enumerate() {
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

    fn row(
        &self,
        row: usize,
        plan: &RowPlan,
        measured: &Measured,
        columns: usize,
        wanted: &Wanted,
        text: &impl Fn(i64) -> String,
    ) -> Row {
        let cells = row * columns..(row + 1) * columns;
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
            Measure::CrossEntropy => match wanted.next.as_ref().and_then(|next| next.get(cell % columns.max(1))) {
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
