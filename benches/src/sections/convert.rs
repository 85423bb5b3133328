//! From f32 to bf16.

use anyhow::Result;

use super::{cold, middle, shown, warm};
use crate::{
    Bench, Inside, asked_of_xl,
    child::{Call, Peak},
    figure::{Asked, Figure, Unit, median},
    files, number, seconds,
};

pub fn run(bench: &mut Bench) -> Result<()> {
    let Some((size, folder)) = bench.largest_gpt2() else { return Ok(()) };
    let name = size.name();
    let ours = bench.example("load", &folder)?.args("--dtype bf16");
    let peer = bench.peer("load.py").map(|call| call.arg(bench.relative(&folder)).arg("bfloat16"));
    let files = warm(&folder)?;
    let (mut times, mut peers, mut inside) = (Vec::new(), Vec::new(), Vec::<Inside>::new());
    let (mut peak, mut peer_peak) = (Peak::default(), Peak::default());
    for _ in 0..bench.repeats() {
        let (outcome, report) = bench.reported(&ours, Call::run)?;
        times.push((number(&report, "load_ms")? + number(&report, "place_ms")?) / 1e3);
        peak = peak.max(outcome.peak);
        inside.push(bench.inside(&folder, "copying", 1)?);
        if let Some(peer) = &peer {
            let outcome = peer.run()?;
            peers.push(seconds(&outcome)?);
            peer_peak = peer_peak.max(outcome.peak);
        }
    }
    let time = median(&times);
    let figure = Figure::new(format!("{name}: f32 to bf16, warm"), time, Unit::Seconds, ours.shown());
    let copying =
        |threads: &str, figure| Ok::<_, anyhow::Error>((format!("plain copying, {threads}"), middle(&inside, figure)?));
    let floor = figure.clone().floor([copying("1 thread", "copying_1")?, copying("2 threads", "copying_2")?]);
    let floor = Figure { command: shown(&inside), ..floor.asked(asked_of_xl(size, Asked::TimesAtMost(1.2))) };
    let peer = peer.map(|peer| {
        let figure = Figure { command: peer.shown().to_owned(), ..figure.peer("transformers", median(&peers)) };
        figure.asked(asked_of_xl(size, Asked::FasterBy(3.0)))
    });
    // One of the two is promised; the other is then there to be seen.
    let (near, far) = (floor.met() == Some(true), peer.as_ref().is_some_and(|peer| peer.met() == Some(true)));
    bench.add(if far && !near { floor.asked(Asked::Nothing) } else { floor });
    if let Some(peer) = peer {
        bench.add(if near && !far { peer.asked(Asked::Faster) } else { peer });
    }
    // What the process holds beside the page cache of its source: what is no file's, and the program's own pages, which
    // are those of a program that has opened nothing.
    let start = bench.inside(&folder, "memory", 1)?;
    let (Some(private), Some(baseline), Some(own)) =
        (peak.private, start.find("start_resident"), start.find("start_private"))
    else {
        bench.note("convert: this system does not say how much memory a process holds".into());
        return Ok(());
    };
    let weights = files::size(&folder)? as f64 / 2.0 / 1_048_576.0;
    let limit = 1.10 * weights + 256.0 + baseline;
    let held = private + (baseline - own);
    let figure = Figure::new(format!("{name}: the most memory of that"), held, Unit::Mebibytes, ours.shown());
    let figure = figure.against("limit (1.10 x weights + 256 + an idle program)", limit);
    bench.add(figure.asked(Asked::TimesAtMost(1.0)));
    if let Some(resident) = peak.resident {
        let what = format!("{name}: the same with mapped file pages");
        let figure = Figure::new(what, resident, Unit::Mebibytes, ours.shown());
        bench.add(match peer_peak.resident {
            Some(other) => figure.peer("transformers", other),
            None => figure,
        });
    }
    let mut times = Vec::new();
    for _ in 0..bench.repeats() {
        if cold(bench, &files) {
            let (_, report) = bench.reported(&ours, Call::run)?;
            times.push((number(&report, "load_ms")? + number(&report, "place_ms")?) / 1e3);
        }
    }
    if !times.is_empty() {
        bench.add(Figure::new(format!("{name}: f32 to bf16, cold"), median(&times), Unit::Seconds, ours.shown()));
    }
    Ok(())
}
