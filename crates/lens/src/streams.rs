//! The streams of the rows: taken in one run, decoded when their turn comes.

use std::ops::Range;

use models::{Input, Model, Site, Tail};
use partial::{Edit, Plan, Run};
use tch::{Kind, TchError, Tensor};

use crate::{Error, decoder::Decoder, error::Result, rows::RowPlan, translators::Translators, unembed::Streams};

/// One prompt and what of it is decoded.
#[derive(Clone, Debug)]
pub(crate) struct Chosen<'a> {
    pub(crate) ids: &'a [i64],
    pub(crate) positions: Range<usize>,
}

impl Chosen<'_> {
    fn count(&self) -> i64 {
        self.positions.len() as i64
    }
}

/// The streams of every row at the chosen positions, those of the prompts side by side.
pub(crate) struct RowStreams<'a> {
    /// Held for the run, so that streamed weights are read once however many stacks there are.
    tail: Tail,
    /// Translators, and the layer each row belongs to.
    translators: Option<Translators<'a>>,
    layers: Vec<Option<usize>>,
    /// For each row `[position, d_model]` in the dtype of the run.
    rows: Vec<Tensor>,
    /// The model's own normed output, `[position, d_model]` in f32.
    pub(crate) reference: Tensor,
}

fn torch(at: &'static str) -> impl Fn(TchError) -> Error {
    move |source| Error::Torch { at, source }
}

impl<'a> RowStreams<'a> {
    /// Runs the model once over all prompts, under the edits, and what the decoder holds before the final norm. `memory` bounds the bytes
    /// that the decoder's blocks take.
    pub(crate) fn take(
        model: &'a Model,
        plans: &[RowPlan],
        decoder: &Decoder,
        translators: Option<Translators<'a>>,
        edits: &[(Site, Edit)],
        prompts: &[Chosen],
        memory: u64,
    ) -> Result<Self> {
        let sites: Vec<String> = plans.iter().map(|row| row.site.to_string()).collect();
        // The model's own output is normed here: the final norm is read once, for it and for the rows.
        let reference = Site::before_block(model.config().layers()).to_string();
        let names: Vec<&String> = sites.iter().chain([&reference]).collect();
        let mut run = Run::planned(model, Plan::new(model, &names)?);
        for (site, edit) in edits {
            run = run.edit(*site, edit.clone())?;
        }
        // Streams of other positions are kept only if the decoder's attention will read them.
        let mut offset = 0;
        if decoder.is_local() {
            let begin = prompts.iter().map(|prompt| prompt.positions.start).min().unwrap_or(0);
            let end = prompts.iter().map(|prompt| prompt.positions.end).max().unwrap_or(0);
            run = run.positions(begin as i64..end as i64);
            offset = begin;
        }
        let ids: Vec<&[i64]> = prompts.iter().map(|prompt| prompt.ids).collect();
        let output = run.run(&Input::padded(&ids)?)?;
        let at = torch("taking the rows' streams");
        // One prompt's positions of a capture, `[1, position, d_model]`.
        let part = |capture: &Tensor, prompt: usize, positions: Range<usize>| {
            let length = (positions.end - positions.start) as i64;
            capture.f_narrow(0, prompt as i64, 1)?.f_narrow(1, (positions.start - offset) as i64, length)
        };
        let beside = |capture: &Tensor| -> Result<Tensor, TchError> {
            let parts = prompts.iter().enumerate().map(|(at, prompt)| part(capture, at, prompt.positions.clone()));
            side_by_side(&parts.collect::<Result<Vec<_>, _>>()?)
        };
        let tail = model.tail()?;
        let own = tail.apply(&beside(output.get(&reference)?).map_err(&at)?, model.parts().dtype().kind())?;
        let own = own.f_to_kind(Kind::Float).map_err(&at)?;
        let capture = |(site, plan): (&String, &RowPlan)| -> Result<Tensor> {
            let capture = output.get(site)?;
            match plan.head {
                Some(head) => capture.f_select(2, head).map_err(&at),
                None => Ok(capture.shallow_clone()),
            }
        };
        let captures = sites.iter().zip(plans).map(capture).collect::<Result<Vec<_>>>()?;
        let rows = if decoder.steps.is_empty() {
            captures.iter().map(beside).collect::<Result<Vec<_>, _>>().map_err(&at)?
        } else {
            let mut decoded: Vec<Vec<Tensor>> = captures.iter().map(|_| Vec::with_capacity(prompts.len())).collect();
            for (index, prompt) in prompts.iter().enumerate() {
                let read = if decoder.is_local() { prompt.positions.clone() } else { 0..prompt.ids.len() };
                let kept = (prompt.positions.start - read.start) as i64;
                let at_once = rows_at_once(model, read.len(), memory);
                for first in (0..captures.len()).step_by(at_once) {
                    let group = captures.iter().skip(first).take(at_once);
                    let streams =
                        group.map(|capture| part(capture, index, read.clone())).collect::<Result<Vec<_>, _>>();
                    let streams = streams.and_then(|streams| Tensor::f_cat(&streams, 0)).map_err(&at)?;
                    let streams = decoder.run_blocks(model, streams)?;
                    for (row, stream) in decoded.iter_mut().skip(first).zip(streams.f_split(1, 0).map_err(&at)?) {
                        // A view would hold on to the positions that nobody asked for, and to the other rows.
                        let stream = stream
                            .f_narrow(1, kept, prompt.count())
                            .and_then(|view| view.f_clone(&view.f_empty_like()?));
                        row.push(stream.map_err(&at)?);
                    }
                }
            }
            decoded.iter().map(|parts| side_by_side(parts)).collect::<Result<Vec<_>, _>>().map_err(&at)?
        };
        let layers = plans.iter().map(|row| translators.and_then(|translators| translators.layer(row.site))).collect();
        Ok(Self { tail, translators, layers, rows, reference: own })
    }
}

/// Prompts of a batch, each `[1, position, d_model]`, as one `[position, d_model]`. One alone is not copied.
fn side_by_side(parts: &[Tensor]) -> Result<Tensor, TchError> {
    match parts {
        [one] => one.f_squeeze_dim(0),
        _ => Tensor::f_cat(parts, 1)?.f_squeeze_dim(0),
    }
}

/// How many rows of `length` positions the decoder's blocks may run over together.
fn rows_at_once(model: &Model, length: usize, memory: u64) -> usize {
    let architecture = model.architecture();
    // In a block live at once: the hidden layer before and after its non-linearity, and its gate; the stream, its norm,
    // queries, keys, values, and what attention makes of them.
    let of_layer = |layer: &models::Layer| 3 * layer.mlp.d_mlp + 4 * layer.attention.query_width();
    let width = architecture.layers.iter().map(of_layer).max().unwrap_or(0) + 4 * architecture.d_model;
    let row = 4 * width.max(1) as u64 * length.max(1) as u64;
    (memory / row).max(1) as usize
}

impl Streams for RowStreams<'_> {
    fn rows(&self) -> usize {
        self.rows.len()
    }

    fn positions(&self) -> i64 {
        self.reference.size().first().copied().unwrap_or(0)
    }

    fn normed(&self, rows: Range<usize>, positions: Range<i64>) -> Result<Tensor> {
        let streams = translated(self.translators, &self.layers, &self.rows, rows, positions)?;
        Ok(self.tail.apply(&streams, Kind::Float)?)
    }
}

/// Positions of some rows, each `[position, d_model]`, as one `[row, position, d_model]`; each through its map, by `layers`, where a
/// lens has maps.
pub(crate) fn translated(
    translators: Option<Translators>,
    layers: &[Option<usize>],
    streams: &[Tensor],
    rows: Range<usize>,
    positions: Range<i64>,
) -> Result<Tensor> {
    let at = torch("the rows");
    let mut parts = Vec::with_capacity(rows.len());
    for (row, stream) in streams.iter().enumerate().take(rows.end).skip(rows.start) {
        let part = stream.f_narrow(0, positions.start, positions.end - positions.start).map_err(&at)?;
        parts.push(match translators {
            Some(translators) => translators.translate(layers.get(row).copied().flatten(), &part)?,
            None => part,
        });
    }
    Tensor::f_stack(&parts, 0).map_err(&at)
}
