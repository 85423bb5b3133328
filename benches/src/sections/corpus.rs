//! Activations of a corpus, from texts to files.

use anyhow::Result;

use super::{middle, shown, warm};
use crate::{
    Bench,
    checkpoints::Size,
    figure::{Asked, Figure, Unit, median},
    seconds,
};

pub fn run(bench: &mut Bench) -> Result<()> {
    let Some((size, folder)) = bench.sizes().into_iter().find(|(size, _)| *size == Size::Gpt2) else {
        bench.note("corpus: it is measured on gpt2, which is not among the sizes".into());
        return Ok(());
    };
    warm(&folder)?;
    let peer = bench.peer("corpus.py").map(|call| call.arg(bench.relative(&folder)));
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..bench.repeats() {
        ours.push(bench.inside(&folder, "corpus", 1)?);
        if let Some(call) = &peer {
            theirs.push(seconds(&call.run()?)?);
        }
    }
    let (tokens, command) = (middle(&ours, "corpus_tokens")?, shown(&ours));
    let what = format!("{}: three names of {tokens} tokens of 96 texts into files, bf16", size.name());
    let time = middle(&ours, "corpus_whole")?;
    let figure = Figure::new(what, time, Unit::Seconds, &command);
    if let Some(call) = &peer {
        let figure = figure.clone().peer("a loop with hooks on transformers", median(&theirs));
        bench.add(Figure { command: call.shown().to_owned(), ..figure.asked(Asked::FasterBy(2.0)) });
    }
    bench
        .add(figure.against("the forwards alone", middle(&ours, "corpus_bare")?).asked(Asked::TimesAtMost(1.0 / 0.95)));
    Ok(())
}
