//! GPT-2 XL and a Llama-shaped model as large, in f32 and bf16, in turns with transformers: loading, a forward, three activations,
//! the lens. Whether a family is as well served as another is told by these ratios, not by the times.

use std::path::Path;

use anyhow::Result;

use super::{load::opened, middle, shown, warm};
use crate::{
    Bench, Inside, TOKENS, case,
    checkpoints::{Dtype, Size, Variant},
    child::Call,
    figure::{Asked, Case, Figure, Unit, median},
    middle_of, seconds,
};

pub fn run(bench: &mut Bench) -> Result<()> {
    for size in [Size::Gpt2Xl, Size::LlamaXl] {
        for dtype in Dtype::ALL {
            let variant = match dtype {
                Dtype::F32 => Variant::Whole(size),
                Dtype::Bf16 => Variant::Bf16(size),
            };
            match bench.checkpoints.provide(&bench.programs, variant)? {
                Some(folder) => one(bench, size, dtype, &folder)?,
                None => bench.note(format!("{} in {dtype} was skipped, the disk is full", size.name())),
            }
        }
    }
    Ok(())
}

/// Another program that does the same, and its times.
struct Peer {
    name: &'static str,
    call: Call,
    times: Vec<f64>,
}

fn one(bench: &mut Bench, size: Size, dtype: Dtype, folder: &Path) -> Result<()> {
    let peer = |name, script: &str, arguments: String| {
        let call = bench.peer(script)?.arg(bench.relative(folder)).args(&arguments);
        Some(Peer { name, call, times: Vec::new() })
    };
    let torch = dtype.torch();
    let mut load = peer("transformers", "load.py", torch.to_owned());
    let mut forward = peer("transformers", "forward.py", format!("{torch} {TOKENS} 1"));
    let mut partial = peer("transformers, stopped by a hook", "partial.py", format!("hooks {TOKENS} 1 {torch}"));
    let mut traced = peer("nnsight", "partial.py", format!("nnsight {TOKENS} 1 {torch}"));
    let mut lens = peer("a lens by hand on transformers", "lens_by_hand.py", format!("{torch} {TOKENS} 1"));
    let loading = bench.example("load", folder)?.args("--residency mapped");
    warm(folder)?;
    let (mut loads, mut ours) = (Vec::new(), Vec::new());
    for _ in 0..bench.repeats() {
        loads.push(opened(bench, &loading)?.0);
        ours.push(bench.inside(folder, "forward,lens", 1)?);
        if let Some(peer) = &mut forward {
            let json = peer.call.run()?.json()?;
            peer.times.push(middle_of(&json["forward"][TOKENS.to_string()])?);
        }
        for peer in [&mut load, &mut partial, &mut traced, &mut lens].into_iter().flatten() {
            peer.times.push(seconds(&peer.call.run()?)?);
        }
    }
    let name = format!("{} {dtype}", size.name());
    let command = shown(&ours);
    let mut add = |what: &str, time: f64, case: Option<Case>, peers: [&Option<Peer>; 2]| {
        let figure = Figure { case, ..Figure::new(format!("{name}: {what}"), time, Unit::Seconds, &command) };
        let mut alone = true;
        for peer in peers.into_iter().flatten() {
            alone = false;
            let figure = figure.clone().peer(peer.name, median(&peer.times)).asked(Asked::Faster);
            bench.add(Figure { command: peer.call.shown().to_owned(), ..figure });
        }
        if alone {
            bench.add(figure);
        }
    };
    let forward_case = Case { tokens: Some(TOKENS as u64), ..case(size, dtype) };
    add("mapped load, every tensor handed out, warm", median(&loads), None, [&load, &None]);
    let time = |figure: &str| middle(&ours as &[Inside], figure);
    let whole = time("forward")?;
    add(&format!("forward, {TOKENS} tokens, warm"), whole, Some(forward_case), [&forward, &None]);
    add("three names to h.5, warm", time("three_names")?, None, [&partial, &traced]);
    let rows = time("lens_rows")?;
    add(&format!("kl, {rows} rows, {TOKENS} tokens, the forward included"), time("lens_kl")?, None, [&lens, &None]);
    Ok(())
}
