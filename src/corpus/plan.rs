//! From texts to batches of rows.

use std::{cmp::Reverse, ops::Range, sync::Arc};

use lowmem::Dtype;
use models::{Library, Model, Products, Tokens};
use tch::Device;

use super::{
    corpus::{Content, Options},
    error::{Error, Result},
    records::{Record, Records},
    sink::{Text, Unit},
};

/// A batch is ended where padding would be more than this part of it, unless it is short of tokens; so short texts do not pay for
/// long ones.
const MOST_PADDING: f64 = 0.04;

/// What a batch of half as many positions has to save in padding, as a part of them.
const HALF: f64 = 0.003;
/// About how many numbers of positions batches have where shapes are to be few.
const SIZES: usize = 32;
/// What these numbers are multiples of: numbers of many divisors, each of which is a number of rows.
const STEPS: [usize; 9] = [1, 2, 6, 12, 24, 60, 120, 360, 720];

/// How texts become rows.
pub(super) struct Planner<'a> {
    tokens: Option<&'a dyn Tokens>,
    vocabulary: i64,
    context: usize,
    /// Whether batches come in few sizes.
    few_sizes: bool,
    options: Options,
    /// The token between packed texts.
    end: i64,
    batch_tokens: usize,
    positions: Option<Range<usize>>,
}

/// A unit that is ready to run.
pub(super) struct Planned {
    pub(super) unit: Arc<Unit>,
    pub(super) batches: Vec<PlannedBatch>,
}

/// Rows that run together.
#[derive(Debug, PartialEq)]
pub(super) struct PlannedBatch {
    pub(super) rows: Vec<Row>,
    /// Positions of each, padding included.
    pub(super) length: usize,
}

/// A row of a batch: a text, or what is packed into a context.
#[derive(Debug, PartialEq)]
pub(super) struct Row {
    pub(super) ids: Vec<i64>,
    /// Whose tokens they are, one after the other.
    pub(super) runs: Vec<Run>,
    /// The tokens whose values are kept.
    pub(super) kept: Range<usize>,
}

/// Tokens of one text that follow one another.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Run {
    /// The text, by its place in the unit; -1 for what stands between texts.
    pub(super) text: i32,
    /// The position of the first in its text.
    pub(super) position: i32,
    pub(super) tokens: usize,
}

impl<'a> Planner<'a> {
    pub(super) fn new(
        model: &'a Model,
        options: &Options,
        batch_tokens: usize,
        positions: Option<Range<usize>>,
    ) -> Result<Self> {
        let architecture = model.architecture();
        let mut context = usize::try_from(architecture.context).unwrap_or(0);
        let mut end = 0;
        if let Some(pack) = options.pack {
            end = pack.end.or(model.config().end_tokens.first().copied()).ok_or(Error::NoEndToken)?;
            let length = pack.length.unwrap_or(context);
            if !(1..=context).contains(&length) {
                let problem = format!("rows of {length} tokens; the model has {context} positions");
                return Err(Error::Option { option: "pack", problem });
            }
            context = length;
            if positions.is_some() {
                let problem = "chooses positions of each text; packed rows hold parts of several".into();
                return Err(Error::Option { option: "positions", problem });
            }
        }
        Ok(Self {
            tokens: model.tokens(),
            vocabulary: architecture.vocabulary,
            context,
            few_sizes: few_sizes(model),
            options: options.clone(),
            end,
            batch_tokens,
            positions,
        })
    }

    /// The batches of a unit. `place` says where its texts are.
    pub(super) fn plan(&self, number: usize, read: Records, place: impl Fn(u64) -> String) -> Result<Planned> {
        let mut texts = Vec::with_capacity(read.records.len());
        let mut all = Vec::with_capacity(read.records.len());
        for record in read.records {
            let Record { id, at, content } = record;
            all.push(self.ids(content).map_err(|source| refuse(place(at), source))?);
            texts.push(Text { id, at, tokens: 0, start: None });
        }
        let mut rows = if self.options.pack.is_some() { self.packed(all) } else { self.separate(all) };
        // The longest first: if memory does not suffice, that is known at once. Of equal ones, in their order.
        rows.sort_by_key(|row| Reverse(row.ids.len()));
        let longest = rows.first().map_or(0, |row| row.ids.len());
        let mut start = 0;
        for row in &rows {
            let mut first = 0;
            for run in &row.runs {
                let kept = run.tokens.min(row.kept.end.saturating_sub(first))
                    - run.tokens.min(row.kept.start.saturating_sub(first));
                if let Some(text) = usize::try_from(run.text).ok().and_then(|text| texts.get_mut(text))
                    && kept > 0
                {
                    text.start.get_or_insert(start);
                    text.tokens += kept;
                }
                start += kept;
                first += run.tokens;
            }
        }
        let Records { input, first, lines, .. } = read;
        let unit = Unit { number, input, first, lines, texts, tokens: start, longest };
        Ok(Planned { unit: Arc::new(unit), batches: self.batches(rows) })
    }

    fn ids(&self, content: Content) -> std::result::Result<Vec<i64>, models::Error> {
        let mut ids = match content {
            Content::Ids(ids) => ids,
            Content::Text(text) => {
                let tokens = self.tokens.ok_or(models::Error::NoTokenizer)?;
                let encoded = tokens.encode(&text);
                encoded.map_err(|source| models::Error::Tokenizer { doing: "encoding a text", source })?
            }
        };
        if self.options.pack.is_none() {
            if self.options.truncate {
                ids.truncate(self.context);
            }
            if ids.len() > self.context {
                return Err(models::Error::TooManyPositions { found: ids.len() as i64, limit: self.context as i64 });
            }
        }
        match ids.iter().enumerate().find(|(_, id)| !(0..self.vocabulary).contains(*id)) {
            None => Ok(ids),
            Some((position, &id)) => {
                let (position, vocabulary) = (position as i64, self.vocabulary);
                Err(models::Error::TokenOutOfRange { id, row: 0, position, vocabulary })
            }
        }
    }

    /// Each text a row; those without tokens have none.
    fn separate(&self, texts: Vec<Vec<i64>>) -> Vec<Row> {
        let row = |(text, ids): (usize, Vec<i64>)| {
            let tokens = ids.len();
            let kept = self.positions.as_ref().map_or(0..tokens, |kept| kept.start.min(tokens)..kept.end.min(tokens));
            (tokens > 0).then(|| Row { ids, runs: vec![Run { text: text as i32, position: 0, tokens }], kept })
        };
        texts.into_iter().enumerate().filter_map(row).collect()
    }

    /// The texts one after the other, cut into rows.
    fn packed(&self, texts: Vec<Vec<i64>>) -> Vec<Row> {
        let mut rows = Vec::new();
        let mut open = Row { ids: Vec::with_capacity(self.context), runs: Vec::new(), kept: 0..0 };
        let mut put = |text: i32, ids: &[i64]| {
            let mut position = 0;
            while position < ids.len() {
                let tokens = (ids.len() - position).min(self.context - open.ids.len());
                open.ids.extend(ids.iter().skip(position).take(tokens));
                open.runs.push(Run { text, position: position as i32, tokens });
                position += tokens;
                open.kept.end = open.ids.len();
                if open.ids.len() == self.context {
                    let fresh = Row { ids: Vec::with_capacity(self.context), runs: Vec::new(), kept: 0..0 };
                    rows.push(std::mem::replace(&mut open, fresh));
                }
            }
        };
        for (text, ids) in texts.iter().enumerate().filter(|(_, ids)| !ids.is_empty()) {
            put(text as i32, ids);
            put(-1, &[self.end]);
        }
        if !open.ids.is_empty() {
            rows.push(open);
        }
        rows
    }

    fn batches(&self, rows: Vec<Row>) -> Vec<PlannedBatch> {
        if self.few_sizes {
            return self.batches_of_few_sizes(rows);
        }
        let mut batches: Vec<Vec<Row>> = Vec::new();
        let mut tokens = 0;
        for row in rows {
            let length = row.ids.len();
            let fits = batches.last().is_some_and(|batch| {
                let longest = batch.first().map_or(0, |first| first.ids.len());
                let padded = (batch.len() + 1) * longest;
                let padding = padded - tokens - length;
                let is_dense = padding as f64 <= MOST_PADDING * padded as f64;
                padded <= self.batch_tokens && (is_dense || tokens < self.batch_tokens / 8)
            });
            match batches.last_mut().filter(|_| fits) {
                Some(batch) => batch.push(row),
                None => {
                    tokens = 0;
                    batches.push(vec![row]);
                }
            }
            tokens += length;
        }
        let batch = |rows: Vec<Row>| PlannedBatch { length: rows.first().map_or(0, |row| row.ids.len()), rows };
        batches.into_iter().map(batch).collect()
    }

    /// Batches whose numbers of positions are multiples of one step, so that there are few of them: rows and their length are chosen
    /// together. Products with weights see nothing else of a batch's shape.
    fn batches_of_few_sizes(&self, rows: Vec<Row>) -> Vec<PlannedBatch> {
        let step = STEPS.into_iter().rfind(|step| step * SIZES <= self.batch_tokens).unwrap_or(1);
        let mut tokens_before = vec![0];
        for row in &rows {
            tokens_before.push(tokens_before.last().copied().unwrap_or(0) + row.ids.len());
        }
        let (mut rows, mut first) = (rows.into_iter().peekable(), 0);
        let mut batches = Vec::new();
        while let Some(longest) = rows.peek().map(|row| row.ids.len()) {
            let left = tokens_before.len() - 1 - first;
            let tokens = |count: usize| {
                tokens_before.get(first + count).zip(tokens_before.get(first)).map(|(to, from)| to - from)
            };
            let cost = |&(count, length): &(usize, usize)| {
                let positions = (count * length) as f64;
                1.0 - tokens(count).unwrap_or(0) as f64 / positions
                    + HALF * (self.batch_tokens as f64 / positions).log2()
            };
            let divided = |positions: usize| {
                let counts = (1..=left.min(positions / longest)).filter(move |count| positions.is_multiple_of(*count));
                counts.map(move |count| (count, positions / count))
            };
            // Small batches, which the end of every unit has, would be padded too much by whole steps.
            let sizes = (1..=self.batch_tokens / step).map(|size| size * step);
            let halves = (0..SIZES / 3).map(|size| size * step + step / 2);
            let sizes = sizes.chain(halves).flat_map(divided);
            // No row can be longer than a context, and packed ones are as long: no step need fit these.
            let whole = ((self.batch_tokens / self.context.max(1)).clamp(1, left), self.context);
            let fits = |&(_, length): &(usize, usize)| (longest..=self.context).contains(&length);
            let best = sizes.filter(fits).chain(Some(whole).filter(|(_, length)| length - longest < step));
            let (count, length) = best
                .min_by(|one, other| cost(one).total_cmp(&cost(other)))
                .unwrap_or((1, longest.next_multiple_of(step).min(self.context)));
            batches.push(PlannedBatch { rows: rows.by_ref().take(count).collect(), length });
            first += count;
        }
        batches
    }
}

/// Whether batches should come in few sizes: on a CPU libtorch's oneDNN keeps what it prepares for a product of each number of rows, up to
/// a thousand of them and a MiB each. Where it multiplies f32, the batches that a row is in do not change its bits; in other dtypes
/// they may, so there it must not depend on the machine.
pub(super) fn few_sizes(model: &Model) -> bool {
    let by_one_dnn = || Products::chosen().is_ok_and(|products| products.library == Library::OneDnn);
    model.parts().dtype() != Dtype::F32 || (model.parts().device() == Device::Cpu && by_one_dnn())
}

fn refuse(place: String, source: models::Error) -> Error {
    let hint = match source {
        models::Error::TooManyPositions { .. } => "; it can be truncated or packed",
        models::Error::NoTokenizer => "; token ids need none",
        _ => "",
    };
    Error::Text { place, source, hint }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use models::Config;

    use super::*;
    use crate::corpus::Corpus;

    fn model() -> Model {
        let config = r#"{"model_type": "gpt2", "n_layer": 1, "n_head": 1, "n_embd": 4, "vocab_size": 20, "n_positions": 8,
            "eos_token_id": 19}"#;
        Model::random(Config::from_json(config).unwrap(), 0).unwrap()
    }

    fn records(texts: &[Vec<i64>]) -> Records {
        let record =
            |(at, ids): (usize, &Vec<i64>)| Record { id: None, at: at as u64, content: Content::Ids(ids.clone()) };
        let records = texts.iter().enumerate().map(record).collect();
        Records { input: None, first: Some(0), lines: texts.len() as u64, records }
    }

    #[test]
    fn packed_texts_fill_contexts_and_stay_known() {
        let model = model();
        let corpus = Corpus::from_texts([""; 0]).pack();
        let planner = Planner::new(&model, &corpus.options, 16, None).unwrap();
        let planned = planner.plan(0, records(&[vec![1; 5], vec![], vec![2; 12]]), |_| String::new()).unwrap();
        let rows: Vec<&Row> = planned.batches.iter().flat_map(|batch| &batch.rows).collect();
        assert_eq!(rows.len(), 3);
        assert_eq!(rows[0].ids, [1, 1, 1, 1, 1, 19, 2, 2]);
        assert_eq!(rows[1].ids, [2; 8]);
        assert_eq!(rows[2].ids, [2, 2, 19]);
        assert_eq!(rows[1].runs, [Run { text: 2, position: 2, tokens: 8 }]);
        let starts: Vec<_> = planned.unit.texts.iter().map(|text| (text.start, text.tokens)).collect();
        assert_eq!(starts, [(Some(0), 5), (None, 0), (Some(6), 12)]);
        assert_eq!(planned.unit.tokens, 19);
    }

    #[test]
    fn texts_of_like_length_share_batches() {
        let model = model();
        let corpus = Corpus::from_texts([""; 0]);
        let texts: Vec<Vec<i64>> = [1, 8, 3, 8, 2, 1, 1, 7].map(|length| vec![0; length]).to_vec();
        let planner = Planner::new(&model, &corpus.options, 16, Some(1..3)).unwrap();
        let planned = planner.plan(3, records(&texts), |_| String::new()).unwrap();
        let lengths: Vec<Vec<usize>> =
            planned.batches.iter().map(|batch| batch.rows.iter().map(|row| row.ids.len()).collect()).collect();
        assert_eq!(lengths[0], [8, 8]);
        assert_eq!(lengths.concat(), [8, 8, 7, 3, 2, 1, 1, 1]);
        // Two positions of each where there are as many.
        let kept: Vec<usize> = planned.unit.texts.iter().map(|text| text.tokens).collect();
        assert_eq!(kept, [0, 2, 2, 2, 1, 0, 0, 2]);
        assert_eq!(planned.unit.tokens, 9);
        let starts: Vec<Option<usize>> = planned.unit.texts.iter().map(|text| text.start).collect();
        assert_eq!(starts, [None, Some(0), Some(6), Some(2), Some(8), None, None, Some(4)]);
    }

    #[test]
    fn few_sizes_are_enough_for_batches_of_all_lengths() {
        let config =
            r#"{"model_type": "gpt2", "n_layer": 1, "n_head": 1, "n_embd": 4, "vocab_size": 20, "n_positions": 500}"#;
        let model = Model::random(Config::from_json(config).unwrap(), 0).unwrap();
        let corpus = Corpus::from_texts([""; 0]);
        let mut planner = Planner::new(&model, &corpus.options, 4096, None).unwrap();
        planner.few_sizes = true;
        let (mut sizes, mut tokens, mut positions) = (BTreeSet::new(), 0, 0);
        for unit in 0..3 {
            let texts: Vec<Vec<i64>> = (0..300).map(|text| vec![1; 1 + (text * text * 37 + unit * 11) % 500]).collect();
            let mut expected: Vec<usize> = texts.iter().map(Vec::len).collect();
            expected.sort_by_key(|&length| Reverse(length));
            let batches = planner.plan(unit, records(&texts), |_| String::new()).unwrap().batches;
            let found: Vec<usize> = batches.iter().flat_map(|batch| &batch.rows).map(|row| row.ids.len()).collect();
            assert_eq!(found, expected);
            for PlannedBatch { rows, length } in &batches {
                assert!(rows[0].ids.len() <= *length && *length <= 500 && rows.len() * length <= 4096);
                sizes.insert(rows.len() * length);
                positions += rows.len() * length;
            }
            tokens += found.iter().sum::<usize>();
        }
        assert!(sizes.len() < 45 && sizes.iter().all(|size| size % 60 == 0 || size % 500 == 0), "{sizes:?}");
        let padding = 1.0 - tokens as f64 / positions as f64;
        assert!(padding < 0.03, "{padding}");
        // Full contexts are not padded.
        let packed = planner.plan(0, records(&vec![vec![1; 500]; 11]), |_| String::new()).unwrap().batches;
        assert_eq!(
            packed.iter().map(|batch| (batch.rows.len(), batch.length)).collect::<Vec<_>>(),
            [(8, 500), (3, 500)]
        );
    }

    #[test]
    fn texts_that_do_not_fit_are_refused_where_they_are() {
        let model = model();
        let corpus = Corpus::from_texts([""; 0]);
        let planner = Planner::new(&model, &corpus.options, 16, None).unwrap();
        let refused = |ids: Vec<i64>| {
            let error = planner.plan(0, records(&[vec![1], ids]), |at| format!("line {}", at + 1)).err();
            error.unwrap().to_string()
        };
        assert!(refused(vec![0; 9]).starts_with("line 2: "), "{}", refused(vec![0; 9]));
        assert!(refused(vec![0, 20]).contains("20"), "{}", refused(vec![0, 20]));
        let cut = Planner::new(&model, &corpus.truncate(true).options, 16, None).unwrap();
        assert_eq!(cut.plan(0, records(&[vec![0; 9]]), |_| String::new()).unwrap().unit.tokens, 8);
    }
}
