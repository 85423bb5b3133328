//! The lens of the bundled model, from process start to picture.

use anyhow::Result;

use crate::{
    Bench,
    child::Call,
    figure::{Asked, Figure, Unit, median},
};

/// What the model reads: the sentence of `cargo xtask demo`.
const SENTENCE: &str = "If we say that we have no sin, we deceive ourselves, and the truth is not in us.";

pub fn run(bench: &mut Bench) -> Result<()> {
    let program = bench.programs.get("logit_lens")?;
    let typed = Call::new(program, "cargo run --release --example logit_lens --");
    let call = typed.clone().args("--quiet --measure probs --out lens.png").arg(SENTENCE);
    let run = call.clone().replaced("lens.png", bench.scratch("start.png"));
    // The least that any program linked to libtorch does.
    let help = typed.arg("--help");
    let (mut times, mut loading) = (Vec::new(), Vec::new());
    for turn in 0..=bench.repeats() {
        let (time, load) = (run.run()?.seconds, help.run()?.seconds);
        // The first one fills the page cache.
        if turn > 0 {
            times.push(time);
            loading.push(load);
        }
    }
    let figure = Figure::new(
        "bundled model: probs, from process start to the picture, warm",
        median(&times),
        Unit::Seconds,
        call.shown(),
    );
    bench.add(figure.clone().asked(Asked::AtMost(0.5)));
    bench.add(figure.floor([("starting the program for its help".to_owned(), median(&loading))]));
    Ok(())
}
