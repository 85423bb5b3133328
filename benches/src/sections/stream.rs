//! A forward within less memory than the weights.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::{cold, middle, shown, warm};
use crate::{
    Bench, asked_of_xl,
    cgroup::Group,
    checkpoints::Size,
    child::{Call, Outcome},
    figure::{Asked, Figure, Unit, median},
    files::{self, Reading},
    number, seconds,
};

pub fn run(bench: &mut Bench) -> Result<()> {
    // Before anything is measured for nothing.
    if let Err(error) = Group::new(1 << 30) {
        bench.note(format!("stream was skipped: {error:#}"));
        return Ok(());
    }
    if let Some((size, folder)) = bench.largest_gpt2() {
        beside_floors(bench, size, &folder)?;
    }
    if let Some((size, folder)) = bench.sizes().into_iter().find(|(size, _)| *size == Size::GptNeo) {
        whole_context(bench, size, &folder)?;
    }
    Ok(())
}

/// Runs a call in a fresh group, so that nothing cached by an earlier one is charged to it; with the group's peak in MiB.
fn capped(call: &Call, mebibytes: u64) -> Result<(Outcome, Option<f64>)> {
    let group = Group::new(mebibytes << 20)?;
    let outcome = call.run_in(&group).with_context(|| format!("in {mebibytes} MiB"))?;
    Ok((outcome, group.peak_mib()))
}

fn beside_floors(bench: &mut Bench, size: Size, folder: &Path) -> Result<()> {
    let (name, (cap, tokens)) = (size.name(), size.cap());
    let paths = files::weights(folder)?;
    let ours = streamed(bench, folder, tokens)?;
    let readings = Reading::ALL.map(|reading| (reading, plain_read(reading, &paths)));
    let (mut times, mut inside) = (Vec::new(), Vec::new());
    let mut floors = readings.clone().map(|_| Vec::new());
    let mut peak: Option<f64> = None;
    for _ in 0..bench.repeats() {
        for ((_, call), floor) in readings.iter().zip(&mut floors) {
            if !cold(bench, &paths) {
                return Ok(());
            }
            floor.push(seconds(&capped(call, cap)?.0)?);
        }
        if !cold(bench, &paths) {
            return Ok(());
        }
        let (time, held) = forward(bench, &ours, cap)?;
        times.push(time);
        // Without a cap and with all in memory, what remains is arithmetic.
        warm(folder)?;
        inside.push(bench.inside(folder, "forward", 1)?);
        peak = held.into_iter().chain(peak).reduce(f64::max);
    }
    let compute = middle(&inside, "forward")?;
    let what = format!("{name}: forward, {tokens} tokens, mapped, warm, no cap");
    bench.add(Figure::new(what, compute, Unit::Seconds, shown(&inside)));
    let bytes = files::size(folder)? as f64;
    let mut fastest = f64::INFINITY;
    for ((reading, call), floor) in readings.iter().zip(&floors) {
        let time = median(floor);
        let what = format!("{name}: plain read in {cap} MiB, cold, {reading} ({:.2} GB/s)", bytes / 1e9 / time);
        bench.add(Figure::new(what, time, Unit::Seconds, call.shown()));
        fastest = fastest.min(time);
    }
    let floor = if compute > fastest { ("the forward without a cap", compute) } else { ("the fastest read", fastest) };
    let what = format!("{name}: forward, {tokens} tokens, streamed in {cap} MiB, cold");
    let figure = Figure::new(what, median(&times), Unit::Seconds, ours.shown()).against(floor.0, floor.1);
    bench.add(figure.asked(asked_of_xl(size, Asked::TimesAtMost(1.15))));
    most_held(bench, name, peak, cap, &ours);
    Ok(())
}

/// A model far larger than the memory reads all it can, once.
fn whole_context(bench: &mut Bench, size: Size, folder: &Path) -> Result<()> {
    let (name, (cap, tokens)) = (size.name(), size.cap());
    let files = files::weights(folder)?;
    if !cold(bench, &files) {
        return Ok(());
    }
    let ours = streamed(bench, folder, tokens)?;
    let (time, peak) = forward(bench, &ours, cap)?;
    let what = format!("{name}: forward, {tokens} tokens, streamed in {cap} MiB, cold, one run");
    bench.add(Figure::new(what, time, Unit::Seconds, ours.shown()));
    most_held(bench, name, peak, cap, &ours);
    Ok(())
}

fn most_held(bench: &mut Bench, name: &str, peak: Option<f64>, cap: u64, call: &Call) {
    if let Some(peak) = peak {
        let what = format!("{name}: the most memory of that, page cache included");
        let figure = Figure::new(what, peak, Unit::Mebibytes, call.shown()).against("cap", cap as f64);
        bench.add(figure.asked(Asked::TimesAtMost(1.0)));
    }
}

/// The run to the logits of the last position, which is the whole model.
fn streamed(bench: &Bench, folder: &Path, tokens: usize) -> Result<Call> {
    let call = bench.example("activations", folder)?.args("--residency streamed --names lm_head");
    let call = call.args(&format!("--positions {}", tokens - 1)).ids(tokens).args("--out logits.safetensors");
    Ok(call.replaced("logits.safetensors", bench.scratch("logits.safetensors")))
}

/// Seconds of placing and computing under the cap, and the most that the group held.
fn forward(bench: &Bench, call: &Call, cap: u64) -> Result<(f64, Option<f64>)> {
    let mut peak = None;
    let (_, report) = bench.reported(call, |call| {
        let (outcome, held) = capped(call, cap)?;
        peak = held;
        Ok(outcome)
    })?;
    Ok(((number(&report, "place_ms")? + number(&report, "forward_ms")?) / 1e3, peak))
}

/// This program, reading.
fn plain_read(reading: Reading, paths: &[PathBuf]) -> Call {
    let call = Call::new(&std::env::current_exe().unwrap_or_default(), "cargo xtask bench");
    let call = reading.arguments().iter().fold(call, Call::arg);
    paths.iter().fold(call, Call::arg)
}
