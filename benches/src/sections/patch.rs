//! Activation patching over every position and every head.

use anyhow::Result;

use super::{middle, shown, warm};
use crate::{
    Bench, TOKENS,
    checkpoints::Size,
    figure::{Asked, Figure, Unit, median},
    middle_of,
};

pub fn run(bench: &mut Bench) -> Result<()> {
    let Some((size, folder)) = bench.sizes().into_iter().find(|(size, _)| *size == Size::Gpt2) else {
        bench.note("patch: sweeps are measured on gpt2, which is not among the sizes".into());
        return Ok(());
    };
    warm(&folder)?;
    let peer = bench.peer("patch.py").map(|call| call.arg(bench.relative(&folder)).args(&format!("{TOKENS}")));
    let (mut ours, mut positions, mut heads) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..bench.repeats() {
        ours.push(bench.inside(&folder, "patch", 1)?);
        if let Some(call) = &peer {
            let times = call.run()?.json()?;
            positions.push(middle_of(&times["seconds"])?);
            heads.push(middle_of(&times["heads"])?);
        }
    }
    let (name, command) = (size.name(), shown(&ours));
    for (sweep, what, theirs) in
        [("positions", "the stream before every block at every position", positions), ("heads", "every head", heads)]
    {
        let time = middle(&ours, &format!("patch_{sweep}"))?;
        let what = format!("{name}: patching {what}, {TOKENS} tokens, the sixth of which differs");
        let figure = |command: &str| Figure::new(what.as_str(), time, Unit::Seconds, command);
        match &peer {
            Some(call) => {
                let figure = figure(call.shown()).peer("TransformerLens", median(&theirs));
                bench.add(figure.asked(Asked::FasterBy(6.0)));
            }
            None => bench.add(figure(&command)),
        }
        let planned = middle(&ours, &format!("patch_{sweep}_planned"))?;
        bench.add(Figure::new(format!("{what}: the most memory, as planned"), planned, Unit::Mebibytes, &command));
    }
    let what = format!("{name}: attribution patching of every stream at every position, {TOKENS} tokens");
    let figure = Figure::new(what, middle(&ours, "patch_attribution")?, Unit::Seconds, &command);
    let floor = middle(&ours, "forward_backward")?;
    bench.add(figure.against("one forward and backward", floor).asked(Asked::TimesAtMost(3.0)));
    Ok(())
}
