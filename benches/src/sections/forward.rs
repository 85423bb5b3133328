//! A forward of every length, beside its products alone and its peers.

use std::path::Path;

use anyhow::Result;

use super::{faster, middle, shown, warm};
use crate::{
    Bench, Inside, case,
    checkpoints::{Dtype, Size},
    child::Call,
    figure::{Asked, Case, Figure, Unit, median},
    middle_of,
};

pub fn run(bench: &mut Bench) -> Result<()> {
    for (size, _) in bench.sizes() {
        let mut full = Vec::new();
        for dtype in Dtype::ALL {
            if let Some(folder) = bench.checkpoint(size, dtype)? {
                let ours = one(bench, size, dtype, &folder, &full)?;
                if dtype == Dtype::F32 {
                    full = ours;
                }
            }
        }
    }
    Ok(())
}

/// Another program that runs the same, and its times for every length.
struct Peer {
    name: String,
    call: Call,
    times: Vec<Vec<f64>>,
}

/// What libtorch's fused attention and its GELU take where nothing else is done: a forward cannot do without, but they are no
/// products with weights, to which its limit is bound.
const REST: &str = "its attention and activations alone";

/// One checkpoint; gives back our times for every length. `full` are those in f32.
fn one(bench: &mut Bench, size: Size, dtype: Dtype, folder: &Path, full: &[f64]) -> Result<Vec<f64>> {
    let lengths = bench.options.lengths.clone();
    let list = lengths.iter().map(u64::to_string).collect::<Vec<_>>().join(",");
    let call = bench.inside_call(folder, &format!("--only products --lengths {list} --repeats 1"))?;
    let mut peers = Vec::new();
    let none = || vec![Vec::new(); lengths.len()];
    if let Some(peer) = bench.peer("forward.py") {
        let call = peer.arg(bench.relative(folder)).args(&format!("{} {list} 1", dtype.torch()));
        peers.push(Peer { name: "transformers".into(), call, times: none() });
    }
    // On a CPU candle multiplies no bf16.
    if let Some((name, peer)) = bench.candle(size).filter(|_| dtype == Dtype::F32) {
        let call = peer.args(&format!("--lengths {list} --repeats 1"));
        peers.push(Peer { name, call, times: none() });
        bench.note("candle gives the logits of the last position only, everybody else those of all".into());
    }
    warm(folder)?;
    let mut ours: Vec<Inside> = Vec::new();
    for _ in 0..bench.repeats() {
        ours.push(Inside::run(&call)?);
        for peer in &mut peers {
            let json = peer.call.run()?.json()?;
            for (times, length) in peer.times.iter_mut().zip(&lengths) {
                times.push(middle_of(&json["forward"][length.to_string()])?);
            }
        }
    }
    let command = shown(&ours);
    let mut all = Vec::new();
    for (place, &length) in lengths.iter().enumerate() {
        let time = middle(&ours, &format!("forward_{length}"))?;
        let what = format!("{} {dtype}: forward, {length} {}, warm", size.name(), tokens(length));
        let case = Case { tokens: Some(length), ..case(size, dtype) };
        let figure = Figure::new(&what, time, Unit::Seconds, &command).case(case);
        let floor = if length == 512 { Asked::TimesAtMost(1.15) } else { Asked::Nothing };
        let products = faster(&ours, "products", &format!("_{length}"), "its products");
        let rest = middle(&ours, &format!("attention_and_activation_{length}"))?;
        bench.add(figure.clone().floor(products).also(REST, rest).asked(floor));
        for peer in &peers {
            let asked = match peer.name.as_str() {
                "transformers" => of_transformers(size, dtype, length),
                _ => Asked::Faster,
            };
            let figure = figure.clone().peer(&peer.name, median(peer.times.get(place).map_or(&[], Vec::as_slice)));
            bench.add(Figure { command: peer.call.shown().to_owned(), ..figure }.asked(asked));
        }
        if let Some(&full) = full.get(place) {
            bench.add(figure.against("the same in f32", full).asked(Asked::TimesAtMost(1.0)));
        }
        all.push(time);
    }
    Ok(all)
}

fn tokens(count: u64) -> &'static str {
    if count == 1 { "token" } else { "tokens" }
}

/// The promise about the two large models.
fn of_transformers(size: Size, dtype: Dtype, length: u64) -> Asked {
    match (size, dtype, length) {
        (Size::Gpt2, ..) => Asked::Faster,
        (_, Dtype::F32, 45) => Asked::TimesAtMost(0.95),
        (_, Dtype::F32, 512 | 1024) => Asked::TimesAtMost(0.9),
        (_, Dtype::Bf16, 45 | 512 | 1024) => Asked::TimesAtMost(0.8),
        _ => Asked::Faster,
    }
}
