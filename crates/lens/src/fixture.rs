//! Tables for the tests of the renderers.

use crate::{Attention, Columns, Grid, HeadPattern, Measure, Row, Shading, Table, Token};

/// Three rows, three of four tokens, two measures; the last two predictions are right.
pub(crate) fn small() -> Table {
    let texts = ["The", " sky", " is", " blue"];
    let ids = [464, 6766, 318, 4171];
    let row = |name: &str, top1: [usize; 3], probs: [f64; 3], kl: [f64; 3]| Row {
        name: name.into(),
        top1: top1.map(|at| ids[at]).to_vec(),
        top1_text: top1.map(|at| texts[at].to_owned()).to_vec(),
        values: [(Measure::Probs, probs.to_vec()), (Measure::Kl, kl.to_vec())].into(),
        top_k: None,
    };
    Table {
        model: "tiny".into(),
        dtype: "f32".into(),
        lens: None,
        measures: vec![Measure::Probs, Measure::Kl],
        tokens: ids.into_iter().zip(texts).map(|(id, text)| Token { id, text: text.into() }).collect(),
        positions: vec![0, 1, 2],
        rows: vec![
            row("input", [0, 1, 2], [0.01, 0.02, 0.03], [9.5, 8.0, 7.25]),
            row("h.0", [3, 2, 3], [0.25, 0.5, 0.125], [2.0, 1.0, 3.5]),
            row("h.1", [3, 2, 3], [0.75, 0.875, 0.5], [0.0, 0.0, 0.0]),
        ],
    }
}

/// One row for each name, one column for each token, all texts taken from the tokens, with the given measures.
pub(crate) fn of_tokens(texts: &[&str], names: &[&str], measures: &[Measure]) -> Table {
    let count = texts.len().max(1) as f64;
    let rows = names.iter().enumerate().map(|(row, name)| {
        let shift = |column: usize| (column + row) % texts.len().max(1);
        Row {
            name: (*name).into(),
            top1: (0..texts.len()).map(|column| shift(column) as i64).collect(),
            top1_text: (0..texts.len()).map(|column| texts[shift(column)].to_owned()).collect(),
            values: measures
                .iter()
                .map(|measure| {
                    (measure.clone(), (0..texts.len()).map(|column| (shift(column) as f64 + 0.5) / count).collect())
                })
                .collect(),
            top_k: None,
        }
    });
    Table {
        model: "tiny".into(),
        dtype: "f32".into(),
        lens: None,
        measures: measures.to_vec(),
        tokens: texts.iter().enumerate().map(|(id, text)| Token { id: id as i64, text: (*text).into() }).collect(),
        positions: (0..texts.len()).collect(),
        rows: rows.collect(),
    }
}

/// Three rows, three positions of two inputs; one number is missing.
pub(crate) fn grid() -> Grid {
    let tokens = |ids: [i64; 3], texts: [&str; 3]| {
        ids.into_iter().zip(texts).map(|(id, text)| Token { id, text: text.into() }).collect::<Vec<_>>()
    };
    Grid {
        model: "tiny".into(),
        method: "patched".into(),
        metric: "logit difference".into(),
        rows: ["input", "h.0", "h.1"].map(Into::into).to_vec(),
        columns: Columns::Positions(vec![0, 1, 2]),
        tokens: tokens([10, 11, 12], ["When", " Mary", " and"]),
        corrupted_tokens: Some(tokens([10, 21, 12], ["When", " Anna", " and"])),
        values: vec![vec![0.0, 2.0, 0.0], vec![0.0, -1.25, 3.0], vec![f64::NAN, 0.5, -0.125]],
        shading: Shading::Around(0.0),
        clean: Some(3.21),
        corrupted: Some(-1.0),
    }
}

/// Heads of layer 0; each query looks at itself with 0.5, in odd heads with 0.6, and at the first token with the rest.
pub(crate) fn attention(tokens: usize, heads: usize) -> Attention {
    let pattern = |own: f32| {
        let weight = |query: usize, key: usize| match key {
            _ if query == 0 && key == 0 => 1.0,
            _ if key == query => own,
            0 => 1.0 - own,
            _ => 0.0,
        };
        (0..tokens).map(|query| (0..tokens).map(|key| weight(query, key)).collect()).collect()
    };
    Attention {
        model: "tiny".into(),
        tokens: (0..tokens).map(|at| Token { id: at as i64, text: format!("t{at}") }).collect(),
        heads: (0..heads)
            .map(|head| HeadPattern {
                layer: 0,
                head,
                pattern: pattern(if head.is_multiple_of(2) { 0.5 } else { 0.6 }),
            })
            .collect(),
    }
}
