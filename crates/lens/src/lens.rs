//! The logit lens itself: one run, every row, every measure.

use std::{collections::BTreeMap, ops::Range};

use models::{AsSite, Model, Site};
use partial::{Edit, Run};
use tch::Kind;

use crate::{
    Error, JacobianLens, LensOptions, Measure, Row, Table, Token, TopK, TunedLens,
    decoder::Decoder,
    error::Result,
    rows::RowPlan,
    streams::{Chosen, RowStreams},
    token_text::token_text_from_bytes,
    translators::{FittedLens, Translators},
    unembed::{self, Measured, Wanted},
};

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

/// How far apart two scores may be that are computed in two ways from one stream, in a run in `kind` with streams of
/// `width`; `reach` is that of [`Measured::final_reach`], `score` the largest magnitude in question.
///
/// A score is `Σ u_k s_k`, with `u` from the unembedding and `s` the normed stream. Let `ε` be half of the spacing of
/// `kind` at one.
///
/// - Each `s_k` is the rounding of one number, computed twice in f32: the two are equal, or neighbours, which are
///   `2 ε |s_k|` apart at most. These errors are independent.
/// - Each score is rounded to `kind` in the end: `ε` times the score, twice.
/// - The products are summed in f32. A sum on its way is about as large as the reach or as the score; it is rounded `width`
///   times, in either way, and six standard deviations of that never happen by chance.
///
/// A normaliser is a mean over the scores of the likeliest tokens, and no less exact than these.
fn rounding(kind: Kind, width: i64, reach: f64, score: f64) -> f64 {
    let single = f64::from(f32::EPSILON) / 2.0;
    let half_spacing = match kind {
        Kind::BFloat16 => 1.0 / 256.0,
        Kind::Half => 1.0 / 2048.0,
        _ => single,
    };
    let sums = single * (2.0 * width as f64).sqrt() * (reach + 6.0 * score);
    2.0 * half_spacing * (reach + score) + sums
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
    translators: Option<Translators<'a>>,
    edits: Vec<(Site, Edit)>,
}

impl<'a> Lens<'a> {
    /// Checks the options against the model; nothing runs.
    ///
    /// # Errors
    ///
    /// [`Error::Decoder`], [`Error::BlockStep`], [`Error::NoRows`], [`Error::NoMeasure`], [`Error::TrackedToken`],
    /// [`Error::TopK`], and unknown names.
    pub fn new(model: &'a Model, options: LensOptions) -> Result<Self> {
        let vocabulary = model.architecture().vocabulary;
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
        let rows = options.rows.plan(model.architecture(), &decoder)?;
        Ok(Self { model, options, decoder, rows, translators: None, edits: Vec::new() })
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
    pub fn tuned(self, tuned: &'a TunedLens) -> Result<Self> {
        tuned.check(self.model)?;
        self.check_translated(Translators::Tuned(tuned))
    }

    /// [`Lens::tuned`] or [`Lens::jacobian`].
    ///
    /// # Errors
    ///
    /// As they.
    pub fn fitted(self, fitted: &'a FittedLens) -> Result<Self> {
        match fitted {
            FittedLens::Tuned(tuned) => self.tuned(tuned),
            FittedLens::Jacobian(jacobian) => self.jacobian(jacobian),
        }
    }

    /// Puts the matrices of a Jacobian lens between the rows and the decoder, each row's own. There is none for `input`, whose row is
    /// left out, and the last row needs none.
    ///
    /// # Errors
    ///
    /// [`Error::JacobianLens`] where they were fitted to another model, where the decoder holds blocks, and where another row has no
    /// matrix; [`Error::NoRows`].
    pub fn jacobian(mut self, jacobian: &'a JacobianLens) -> Result<Self> {
        jacobian.check(self.model)?;
        self.rows.retain(|row| row.site != Site::INPUT);
        if self.rows.is_empty() {
            return Err(Error::NoRows);
        }
        self.check_translated(Translators::Jacobian(jacobian))
    }

    /// Every row but the last has a map, and the decoder is the model's own.
    fn check_translated(mut self, translators: Translators<'a>) -> Result<Self> {
        if !self.decoder.steps.is_empty() {
            let problem = "translators lead to the last block's output; a decoder cannot hold blocks as well";
            return Err(translators.refuse(problem.into()));
        }
        translators.cover(self.model, self.rows.iter().map(|row| (row.site, &row.name)))?;
        self.translators = Some(translators);
        Ok(self)
    }

    /// Changes the value at `name` as the model runs; several edits of one site apply in the order given. The rows are those of the
    /// changed run, and so is the output that measures refer to. Blocks of the decoder run without edits.
    ///
    /// # Errors
    ///
    /// As [`Run::edit`]: an unknown name, and a site after the last block.
    pub fn edit(mut self, name: impl AsSite, edit: Edit) -> Result<Self> {
        let site = self.model.sites().find(name.as_site())?;
        let last = Site::before_block(self.model.config().layers());
        Run::new(self.model, &[last])?.edit(name, edit.clone())?;
        self.edits.push((site, edit));
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
                lens: self.translators.map(|translators| translators.name().to_owned()),
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

    /// Runs the model over one text, or one row of token ids, and decodes every row.
    ///
    /// The table is called as the model is ([`Model::name`]), and the model's own tokenizer spells the tokens; without one, they
    /// are their ids. The table displays itself ([`Table`]).
    ///
    /// ```
    /// # use lens::{Lens, LensOptions};
    /// # use models::{Config, Model};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let config = r#"{"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 8, "vocab_size": 20}"#;
    /// # let model = Model::random(Config::from_json(config)?, 0)?;
    /// let table = Lens::new(&model, LensOptions::default())?.of([1, 2, 3])?;
    /// println!("{table}");
    /// assert_eq!(table.rows.len(), 3); // input, h.0, h.1
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`Lens::table`] and [`Model::token_rows`]; [`Error::SeveralRows`] for a batch, which [`Lens::tables`] takes.
    pub fn of<'p>(&self, prompt: impl Into<models::Prompt<'p>>) -> Result<Table> {
        let rows = self.model.token_rows(prompt)?;
        let ids = match &rows[..] {
            [] => return Err(Error::Model(models::Error::EmptyInput)),
            [ids] => ids,
            several => return Err(Error::SeveralRows { rows: several.len() }),
        };
        let tokens = self.model.tokens();
        let text =
            |id: i64| tokens.map_or_else(|| id.to_string(), |tokens| token_text_from_bytes(&tokens.token_bytes(id)));
        self.table(self.model.name(), ids, text)
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
        let streams =
            RowStreams::take(self.model, &self.rows, &self.decoder, self.translators, &self.edits, prompts, memory)?;
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
        let (kind, width) = (self.model.parts().dtype().kind(), self.model.architecture().embedding.width);
        let positions: Vec<usize> = prompts.iter().flat_map(|prompt| prompt.positions.clone()).collect();
        for (column, &position) in positions.iter().enumerate() {
            let cell = row * positions.len() + column;
            let (reach, score) = (measured.final_reach.get(column), measured.final_logit.get(column));
            let (Some(&reach), Some(&score), Some(&found_score)) = (reach, score, measured.target_logit.get(cell))
            else {
                continue;
            };
            let normalisers = (measured.final_log_normaliser.get(column), measured.log_normaliser.get(cell));
            let (Some(&normaliser), Some(&found_normaliser)) = normalisers else { continue };
            let score = f64::from(score);
            for (expected, found) in [(score, f64::from(found_score)), (normaliser, found_normaliser)] {
                let allowed = rounding(kind, width, f64::from(reach), score.abs().max(normaliser.abs()));
                let apart = (found - expected).abs();
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
        let log_normaliser = |cell: usize| measured.log_normaliser.get(cell).map_or(f64::NAN, |&value| value);
        let log_probability = |logits: &[f32], cell| at(logits, cell) - log_normaliser(cell);
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
                (logit - log_normaliser(cell)).exp().min(1.0)
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
                    let prob = (at(&measured.top_k_logits, place) - log_normaliser(cell)).exp().min(1.0);
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

#[cfg(test)]
mod tests {
    use super::*;
    use models::Config;
    use std::collections::HashMap;
    use tch::{Device, Tensor};

    /// A model of width 64 whose logits are as large as a trained one's, all of them shifted by `offset`.
    fn model(kind: Kind, offset: f64) -> Model {
        let config = r#"{"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 64, "vocab_size": 500}"#;
        let config = Config::from_json(config).unwrap();
        let weights: HashMap<String, Tensor> = Model::tensor_shapes(&config)
            .unwrap()
            .into_iter()
            .enumerate()
            .map(|(seed, (name, shape))| {
                let count = shape.iter().product::<i64>();
                let large =
                    (Tensor::arange(count, (Kind::Double, Device::Cpu)) * 12.9898 + seed as f64).sin() * 43758.5453;
                let mut weight = (large.frac() * 0.5).view(shape.as_slice());
                if name.ends_with("wte.weight") {
                    // A constant column of the unembedding, which the final norm's bias reads.
                    let _ = weight.narrow(1, 0, 1).fill_(1.0);
                } else if name.ends_with("ln_f.bias") {
                    let _ = weight.narrow(0, 0, 1).fill_(offset);
                } else if name.contains("ln_") && name.ends_with("weight") {
                    weight += 1.0;
                }
                (name, weight.to_kind(kind))
            })
            .collect();
        Model::from_tensors(config, &weights).unwrap()
    }

    #[test]
    fn a_last_row_that_differs_by_more_than_rounding_is_an_error() {
        for kind in [Kind::Float, Kind::BFloat16] {
            for offset in [0.0, -100.0] {
                let model = model(kind, offset);
                let options = LensOptions { measures: vec![Measure::Logits, Measure::Kl], ..LensOptions::default() };
                let lens = Lens::new(&model, options).unwrap();
                let ids: Vec<i64> = (0..40).map(|id| id * 11 + 3).collect();
                let chosen = [Chosen { ids: &ids, positions: 0..40 }];
                let streams =
                    RowStreams::take(&model, &lens.rows, &lens.decoder, None, &[], &chosen, lens.options.memory)
                        .unwrap();
                let unembedding = model.unembedding().unwrap();
                let check = |reference: &Tensor| {
                    let measured = unembed::measure(&streams, reference, &unembedding, &lens.wanted(&chosen)).unwrap();
                    lens.check_last_row(&measured, &chosen)
                };
                check(&streams.reference).unwrap();
                // A head that scales its stream, by a few times what one rounding may do to it.
                let half_spacing = if kind == Kind::Float { 6e-8 } else { 1.0 / 256.0 };
                let times = if kind == Kind::Float { 300.0 } else { 10.0 };
                let error = check(&(&streams.reference * (1.0 + times * half_spacing))).unwrap_err();
                let Error::LastRow { expected, found, allowed, .. } = &error else { panic!("{error}") };
                assert!((found - expected).abs() > *allowed, "{error}");
                // One entry of the stream that is wrong by as much as all of it is long.
                let wrong =
                    streams.reference.shallow_clone() + Tensor::eye(64, (Kind::Float, Device::Cpu)).select(0, 5) * 8.0;
                assert!(matches!(check(&wrong), Err(Error::LastRow { .. })));
            }
        }
    }
}
