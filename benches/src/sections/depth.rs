//! Runs to a part of the blocks, beside that share of a whole forward.

use anyhow::Result;

use super::{middle, shown, warm};
use crate::{
    Bench, Inside, TOKENS, asked_of_xl, case,
    checkpoints::Dtype,
    figure::{Asked, Case, Figure, Unit},
};

pub fn run(bench: &mut Bench) -> Result<()> {
    let Some((size, _)) = bench.largest_gpt2() else { return Ok(()) };
    for dtype in Dtype::ALL {
        let Some(folder) = bench.checkpoint(size, dtype)? else { continue };
        warm(&folder)?;
        let mut ours: Vec<Inside> = Vec::new();
        for _ in 0..bench.repeats() {
            ours.push(bench.inside(&folder, "depth", 1)?);
        }
        let (whole, layers) = (middle(&ours, "depth_whole")?, middle(&ours, "depth_layers")?);
        let command = shown(&ours);
        for part in [8.0, 4.0, 2.0, 1.0] {
            let depth = (layers / part).floor().max(1.0);
            let time = middle(&ours, &format!("depth_{depth}"))?;
            let what = format!("{} {dtype}: {depth} of {layers} blocks, {TOKENS} tokens, warm", size.name());
            let case = Case { tokens: Some(TOKENS as u64), blocks: Some(depth as u64), ..case(size, dtype) };
            let figure = Figure::new(what, time, Unit::Seconds, &command).case(case);
            let figure = figure.against("that share of a whole forward", whole * depth / layers);
            bench.add(figure.asked(asked_of_xl(size, Asked::TimesAtMost(1.1))));
        }
    }
    Ok(())
}
