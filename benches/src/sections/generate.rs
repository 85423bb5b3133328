//! Greedy generation of one text, with and without a cache, beside reading the weights and its peers.

use std::path::Path;

use anyhow::Result;

use super::{middle, shown, warm};
use crate::{
    Bench, Inside, TOKENS, case,
    checkpoints::{Dtype, Size},
    figure::{Asked, Case, Figure, Unit, median},
    middle_of,
};

/// New tokens with a cache, and without, where each costs a whole forward.
const NEW: [u32; 2] = [33, 9];

pub fn run(bench: &mut Bench) -> Result<()> {
    for (size, _) in bench.sizes() {
        for dtype in Dtype::ALL {
            if let Some(folder) = bench.checkpoint(size, dtype)? {
                one(bench, size, dtype, &folder)?;
            }
        }
    }
    Ok(())
}

fn one(bench: &mut Bench, size: Size, dtype: Dtype, folder: &Path) -> Result<()> {
    let [cached, uncached] = NEW;
    let arguments = format!("--only generate --tokens {TOKENS} --new-tokens {cached} {uncached} --repeats 1");
    let call = bench.inside_call(folder, &arguments)?;
    let peer = bench.peer("generate.py").map(|peer| {
        peer.arg(bench.relative(folder)).args(&format!("{} {TOKENS} {cached} {uncached} 1", dtype.torch()))
    });
    // On a CPU candle multiplies no bf16.
    let candle = bench.candle(size).filter(|_| dtype == Dtype::F32);
    let candle = candle.map(|(name, call)| (name, call.args(&format!("--generate {TOKENS} {cached} --repeats 1"))));
    warm(folder)?;
    let mut ours: Vec<Inside> = Vec::new();
    let (mut with, mut without, mut candles) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..bench.repeats() {
        ours.push(Inside::run(&call)?);
        if let Some(peer) = &peer {
            let json = peer.run()?.json()?;
            with.push(middle_of(&json["cached"])?);
            without.push(middle_of(&json["uncached"])?);
        }
        if let Some((_, candle)) = &candle {
            candles.push(middle_of(&candle.run()?.json()?["token"])?);
        }
    }
    let command = shown(&ours);
    let figure = |seconds: f64, how: &str| {
        let what = format!("{} {dtype}: greedy generation after {TOKENS} tokens, {how}", size.name());
        let case = Case { tokens: Some(TOKENS as u64), ..case(size, dtype) };
        (Figure::new(what, 1.0 / seconds, Unit::TokensPerSecond, &command), case)
    };
    let (figure_with, case) = figure(middle(&ours, "token_cached")?, "cached");
    let figure_with = figure_with.case(case);
    let read = middle(&ours, "token_read")?;
    let asked = if size == Size::Gpt2 && dtype == Dtype::F32 { Asked::Nothing } else { Asked::TimesAtMost(1.2) };
    let name = format!("reading the weights at {:.1} GB/s", middle(&ours, "token_bytes")? / read / 1e9);
    bench.add(figure_with.clone().floor([(name, 1.0 / read)]).asked(asked));
    if let Some(peer) = &peer {
        let least = if size == Size::Gpt2 { Asked::FasterBy(1.5) } else { Asked::Faster };
        let figure = figure_with.clone().peer("transformers", 1.0 / median(&with)).asked(least);
        bench.add(Figure { command: peer.shown().to_owned(), ..figure });
    }
    if let Some((name, candle)) = &candle {
        let figure = figure_with.peer(name, 1.0 / median(&candles)).asked(Asked::Faster);
        bench.add(Figure { command: candle.shown().to_owned(), ..figure });
    }
    let (figure_edited, _) = figure(middle(&ours, "token_edited")?, "cached, under an edit");
    let plain = ("generation without the edit".to_owned(), 1.0 / middle(&ours, "token_cached")?);
    bench.add(figure_edited.floor([plain]).asked(Asked::TimesAtMost(1.05)));
    // Without a case: the plots show what people use.
    let (figure_without, _) = figure(middle(&ours, "token_uncached")?, "no cache");
    bench.add(match &peer {
        Some(peer) => {
            let figure = figure_without.peer("transformers", 1.0 / median(&without)).asked(Asked::Faster);
            Figure { command: peer.shown().to_owned(), ..figure }
        }
        None => figure_without,
    });
    Ok(())
}
