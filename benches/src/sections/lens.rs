//! The lens: time, memory, and from start to picture.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::{faster, middle, shown, warm};
use crate::{
    Bench, Inside, TOKENS, asked_of_xl,
    checkpoints::{Size, Variant},
    child::{Call, Peak},
    figure::{Asked, Figure, Unit, median},
    files, seconds,
};

pub fn run(bench: &mut Bench) -> Result<()> {
    let Some((size, folder)) = bench.largest_gpt2() else { return Ok(()) };
    let bf16 = bench.checkpoints.provide(&bench.programs, Variant::Bf16(size))?;
    if bf16.is_none() {
        bench.note("lens: bf16 was skipped, the disk is full".into());
    }
    in_process(bench, size, &folder, bf16.as_deref())?;
    memory(bench, size, &folder)?;
    positions(bench, size, &folder)?;
    pictures(bench, size, &folder, bf16.as_deref())?;
    tuned(bench, size, &folder)
}

const MEASURES: [&str; 2] = ["probs", "kl"];

/// The lens inside one process, beside the forward, the product that is its floor, its peer, and itself in bf16.
fn in_process(bench: &mut Bench, size: Size, folder: &Path, bf16: Option<&Path>) -> Result<()> {
    let name = size.name();
    warm(folder)?;
    bf16.map(warm).transpose()?;
    let peer = |measure: &str| {
        let call = bench.peer("lens.py")?.arg(bench.relative(folder)).arg(measure);
        Some((call.args(&format!("{TOKENS} 1")), Vec::new()))
    };
    let mut peers: Vec<Option<(Call, Vec<f64>)>> = MEASURES.into_iter().map(peer).collect();
    let (mut ours, mut halves) = (Vec::new(), Vec::new());
    for _ in 0..bench.repeats() {
        ours.push(bench.inside(folder, "lens", 1)?);
        if let Some(bf16) = bf16 {
            halves.push(bench.inside(bf16, "lens", 1)?);
        }
        for (call, times) in peers.iter_mut().flatten() {
            times.push(seconds(&call.run()?)?);
        }
    }
    let forward = middle(&ours, "lens_forward")?;
    let floor = faster(&ours, "lens_product", "", "one matrix product");
    let rows = middle(&ours, "lens_rows")?;
    let command = shown(&ours);
    for (measure, peer) in MEASURES.into_iter().zip(&peers) {
        let whole = middle(&ours, &format!("lens_{measure}"))?;
        let what = format!("{name}: {measure}, {rows} rows, {TOKENS} tokens, warm, beyond the forward");
        let figure = Figure::new(what, whole - forward, Unit::Seconds, &command);
        let figure = figure.floor(floor.clone());
        bench.add(figure.asked(asked_of_xl(size, Asked::TimesAtMost(1.2))));
        let what = format!("{name}: {measure}, the forward included");
        let figure = Figure::new(what, whole, Unit::Seconds, &command);
        bench.add(match peer {
            Some((call, times)) => {
                let figure = Figure { command: call.shown().to_owned(), ..figure };
                let figure = figure.peer("transformer-utils", median(times));
                figure.asked(asked_of_xl(size, Asked::FasterBy(3.0)))
            }
            None => figure,
        });
    }
    let four = middle(&ours, "lens_four")?;
    let figure = Figure::new(format!("{name}: four measures together"), four, Unit::Seconds, &command);
    let figure = figure.against("kl alone", middle(&ours, "lens_kl")?);
    bench.add(figure.asked(asked_of_xl(size, Asked::TimesAtMost(1.15))));
    if !halves.is_empty() {
        for measure in MEASURES {
            let name_of = format!("lens_{measure}");
            let what = format!("{name}: {measure} of bf16 weights, the forward included");
            let figure = Figure::new(what, middle(&halves, &name_of)?, Unit::Seconds, shown(&halves));
            let figure = figure.against("f32", middle(&ours, &name_of)?);
            bench.add(figure.asked(asked_of_xl(size, Asked::FasterBy(2.0))));
        }
    }
    Ok(())
}

/// What a lens holds beside the mapped weights, in a process that has run nothing before.
fn memory(bench: &mut Bench, size: Size, folder: &Path) -> Result<()> {
    let inside = bench.inside(folder, "memory", 1)?;
    for (measure, asked) in [("kl", true), ("probs", true), ("four", false)] {
        if let Some(held) = inside.find(&format!("memory_{measure}")) {
            let what = format!("{}: private memory of a whole lens in process, {measure}", size.name());
            let figure = Figure::new(what, held, Unit::Mebibytes, &inside.shown);
            let most = Asked::AtMost(350e6 / 1_048_576.0);
            bench.add(figure.asked(if asked { asked_of_xl(size, most) } else { Asked::Nothing }));
        }
    }
    Ok(())
}

fn positions(bench: &mut Bench, size: Size, folder: &Path) -> Result<()> {
    let inside = bench.inside(folder, "positions", bench.repeats())?;
    let what = format!(
        "{}: five positions of {} tokens, kl, without the forward",
        size.name(),
        inside.get("positions_prompt")?
    );
    let figure = Figure::new(what, inside.get("positions_sliced")?, Unit::Seconds, &inside.shown);
    let figure = figure.against("a prompt of five", inside.get("positions_five")?);
    bench.add(figure.asked(asked_of_xl(size, Asked::TimesAtMost(1.1))));
    Ok(())
}

/// The lens through translators, beside the package that invented them.
fn tuned(bench: &mut Bench, size: Size, folder: &Path) -> Result<()> {
    let peer = bench.peer("tuned.py").map(|call| call.arg(bench.relative(folder)).args(&format!("{TOKENS} 1")));
    let (mut ours, mut peers): (Vec<Inside>, _) = (Vec::new(), Vec::new());
    for _ in 0..bench.repeats() {
        ours.push(bench.inside(folder, "tuned", 1)?);
        if let Some(peer) = &peer {
            peers.push(seconds(&peer.run()?)?);
        }
    }
    let what = format!("{}: kl through a tuned lens, the forward included", size.name());
    let figure = Figure::new(what, middle(&ours, "tuned_kl")?, Unit::Seconds, shown(&ours));
    bench.add(match &peer {
        Some(peer) => {
            let figure = Figure { command: peer.shown().to_owned(), ..figure };
            figure.peer("tuned-lens", median(&peers)).asked(Asked::Faster)
        }
        None => figure.against("a forward", middle(&ours, "tuned_forward")?),
    });
    Ok(())
}

/// One program that is run from the command line.
struct Case {
    what: String,
    call: Call,
    times: Vec<f64>,
    peak: Peak,
}

/// Whole processes: from start to a saved picture.
fn pictures(bench: &mut Bench, size: Size, folder: &Path, bf16: Option<&Path>) -> Result<()> {
    let name = size.name();
    let ours = |what: String, folder: &Path, measures: &str| -> Result<Case> {
        let call = bench.example("logit_lens", folder)?.args(&format!("--measure {measures}"));
        let call = call.ids(TOKENS).args("--quiet --out lens.png");
        Ok(Case::new(what, call.replaced("lens.png", bench.scratch("lens.png"))))
    };
    let mut cases = vec![
        ours("probs".into(), folder, "probs")?,
        ours("kl".into(), folder, "kl")?,
        ours("four measures".into(), folder, "logits,probs,ranks,kl")?,
    ];
    if let Some(bf16) = bf16 {
        cases.push(ours("kl, bf16".into(), bf16, "kl")?);
    }
    let count = cases.len();
    let pictures: Vec<PathBuf> = MEASURES.iter().map(|measure| bench.scratch(&format!("{measure}.png"))).collect();
    for (measure, picture) in MEASURES.into_iter().zip(&pictures) {
        if let Some(call) = bench.peer("lens.py") {
            let call = call.arg(bench.relative(folder)).arg(measure).args(&format!("{TOKENS} lens.png"));
            cases.push(Case::new(measure.into(), call.replaced("lens.png", picture)));
        }
    }
    for _ in 0..bench.repeats() {
        for case in &mut cases {
            let outcome = case.call.run()?;
            case.times.push(outcome.seconds);
            case.peak = case.peak.max(outcome.peak);
        }
    }
    let peers = cases.split_off(count);
    let weights = files::size(folder)? as f64 / 1_048_576.0;
    for case in &cases {
        let peer = peers.iter().find(|peer| peer.what == case.what);
        let what = format!("{name}: {}, from process start to the picture, warm", case.what);
        let figure = Figure::new(what, median(&case.times), Unit::Seconds, case.call.shown());
        bench.add(match peer {
            Some(peer) => {
                let figure = Figure { command: peer.call.shown().to_owned(), ..figure };
                let figure = figure.peer("the Python script", median(&peer.times));
                figure.asked(asked_of_xl(size, Asked::FasterBy(3.5)))
            }
            None => figure,
        });
        if let Some(private) = case.peak.private {
            let what = format!("{name}: {}, private memory of that process, libtorch included", case.what);
            let figure = Figure::new(what, private, Unit::Mebibytes, case.call.shown());
            bench.add(match peer.and_then(|peer| peer.peak.resident) {
                Some(resident) => figure.peer("the Python script above its weights", resident - weights),
                None => figure,
            });
        }
    }
    Ok(())
}

impl Case {
    fn new(what: String, call: Call) -> Self {
        Self { what, call, times: Vec::new(), peak: Peak::default() }
    }
}
