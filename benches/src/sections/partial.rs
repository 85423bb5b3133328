//! Three activations, stopping at the deepest; observers and captures.

use anyhow::Result;

use super::{middle, shown, warm};
use crate::{
    Bench, TOKENS, asked_of_xl,
    checkpoints::Size,
    child::Call,
    figure::{Asked, Figure, Unit, median},
    seconds,
};

pub fn run(bench: &mut Bench) -> Result<()> {
    if let Some((size, folder)) = bench.largest_gpt2() {
        warm(&folder)?;
        // Each process runs warm, and processes take turns; inside one, ours takes turns with the forward it is a part of.
        let peer = |tool: &str| {
            let call = bench.peer("partial.py")?.arg(bench.relative(&folder)).arg(tool);
            Some((tool.to_owned(), call.args(&format!("{TOKENS} 3")), Vec::new()))
        };
        let mut peers: Vec<(String, Call, Vec<f64>)> =
            ["nnsight", "transformer-utils"].into_iter().filter_map(peer).collect();
        let mut ours = Vec::new();
        for _ in 0..bench.repeats() {
            ours.push(bench.inside(&folder, "forward", 3)?);
            for (_, call, times) in &mut peers {
                times.push(seconds(&call.run()?)?);
            }
        }
        let name = size.name();
        let command = shown(&ours);
        let middle = |figure: &str| middle(&ours, figure);
        let (forward, share, six) = (middle("forward")?, middle("six_blocks_share")?, middle("six_blocks")?);
        let three = middle("three_names")?;
        bench.add(Figure::new(format!("{name}: forward, {TOKENS} tokens, warm"), forward, Unit::Seconds, &command));
        let figure =
            |command: &str| Figure::new(format!("{name}: three names to h.5, warm"), three, Unit::Seconds, command);
        let most = asked_of_xl(size, Asked::TimesAtMost(1.10));
        bench.add(figure(&command).against("six blocks' share of the forward", share).asked(most));
        bench.add(figure(&command).against("a forward stopped at h.5", six).asked(most));
        for (tool, call, times) in &peers {
            let least = if tool == "nnsight" { 1.3 } else { 2.0 };
            let figure = figure(call.shown()).peer(tool.as_str(), median(times));
            bench.add(figure.asked(asked_of_xl(size, Asked::FasterBy(least))));
        }
        whole_process(bench, name, &folder)?;
    }
    // The promise is about the size where an observer weighs most.
    match bench.sizes().into_iter().find(|(size, _)| *size == Size::Gpt2) {
        Some((size, folder)) => observers(bench, size.name(), &folder),
        None => {
            bench.note("partial: observers and captures are measured on gpt2, which is not among the sizes".into());
            Ok(())
        }
    }
}

/// The same from the command line, to see the memory.
fn whole_process(bench: &mut Bench, name: &str, folder: &std::path::Path) -> Result<()> {
    let call = bench.example("activations", folder)?.args("--names h.0,h.2.attn.c_attn,h.5.mlp.c_proj").ids(TOKENS);
    let call = call.args("--out activations.safetensors");
    let run = call.clone().replaced("activations.safetensors", bench.scratch("activations.safetensors"));
    let (mut times, mut peaks) = (Vec::new(), Vec::new());
    for _ in 0..bench.repeats() {
        let outcome = run.run()?;
        times.push(outcome.seconds);
        peaks.extend(outcome.peak.resident);
    }
    let what = format!("{name}: three names to h.5, from process start to the file, warm");
    bench.add(Figure::new(what, median(&times), Unit::Seconds, call.shown()));
    if !peaks.is_empty() {
        let what = format!("{name}: the most memory of that, mapped weights included");
        bench.add(Figure::new(what, median(&peaks), Unit::Mebibytes, call.shown()));
    }
    Ok(())
}

fn observers(bench: &mut Bench, name: &str, folder: &std::path::Path) -> Result<()> {
    warm(folder)?;
    let inside = bench.inside(folder, "observer,captures", bench.repeats())?;
    let quiet = inside.get("one_token")?;
    let what = format!("{name}: forward of 1 token with an observer that wants nothing");
    let figure = Figure::new(what, inside.get("one_token_observed")?, Unit::Seconds, &inside.shown);
    bench.add(figure.against("without", quiet).asked(Asked::TimesAtMost(1.01)));
    let asking = inside.get("observer_questions")? * inside.get("observer_question")? * 1e-9;
    let figure = Figure::new(format!("{name}: the observer's answers alone"), asking, Unit::Seconds, &inside.shown);
    bench.add(figure.against("the forward", quiet).asked(Asked::TimesAtMost(0.01)));
    if let (Some(allocated), Some(storage)) = (inside.find("captures_allocated"), inside.find("captures_storage")) {
        let what = format!("{name}: memory taken by capturing every site, {TOKENS} tokens");
        let figure = Figure::new(what, allocated, Unit::Mebibytes, &inside.shown);
        // Every allocation ends in a page that is partly empty.
        bench.add(figure.against("the captures themselves", storage).asked(Asked::TimesAtMost(1.02)));
    }
    Ok(())
}
