//! Opening a checkpoint with mapped weights.

use anyhow::Result;

use super::{cold, warm};
use crate::{
    Bench,
    child::Call,
    figure::{Asked, Figure, Unit, median},
    number, seconds,
};

pub fn run(bench: &mut Bench) -> Result<()> {
    let mut all = Vec::new();
    for (size, folder) in bench.sizes() {
        let name = size.name();
        let ours = bench.example("load", &folder)?.args("--residency mapped");
        let peer = bench.peer("load.py").map(|call| call.arg(bench.relative(&folder)));
        let files = warm(&folder)?;
        let (mut times, mut peers, mut private) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..bench.repeats() {
            let (time, memory) = opened(bench, &ours)?;
            times.push(time);
            private.extend(memory);
            if let Some(peer) = &peer {
                peers.push(seconds(&peer.run()?)?);
            }
        }
        let time = median(&times);
        let what = format!("{name}: mapped load, every tensor handed out, warm");
        let figure = Figure::new(&what, time, Unit::Seconds, ours.shown());
        bench.add(figure.asked(Asked::AtMost(0.020)));
        if let Some(peer) = peer {
            let figure = Figure::new(what, time, Unit::Seconds, peer.shown());
            let figure = figure.peer("transformers", median(&peers));
            bench.add(figure.asked(Asked::FasterBy(100.0)));
        }
        if !private.is_empty() {
            let what = format!("{name}: private memory of that");
            bench.add(Figure::new(what, median(&private), Unit::Mebibytes, ours.shown()));
        }
        let mut times = Vec::new();
        for _ in 0..bench.repeats() {
            if cold(bench, &files) {
                times.push(opened(bench, &ours)?.0);
            }
        }
        if !times.is_empty() {
            let figure = Figure::new(format!("{name}: mapped load, cold"), median(&times), Unit::Seconds, ours.shown());
            bench.add(figure.asked(Asked::AtMost(0.020)));
        }
        all.push((name, time));
    }
    if let [(small, least), .., (large, most)] = all[..] {
        let command = "cargo xtask bench --only load";
        let figure = Figure::new(format!("{large}: mapped load, warm; flat?"), most, Unit::Seconds, command);
        bench.add(figure.against(small, least));
    }
    Ok(())
}

/// Seconds until every tensor is there, and the private memory in MiB that it took.
pub(super) fn opened(bench: &Bench, call: &Call) -> Result<(f64, Option<f64>)> {
    let (_, report) = bench.reported(call, Call::run)?;
    let milliseconds = number(&report, "load_ms")? + number(&report, "place_ms")?;
    Ok((milliseconds / 1e3, report["private_mib"].as_f64()))
}
