//! What a billion tokens take on 8 and on 512 machines, on paper and simulated; see docs/clusters.md.
//!
//! ```sh
//! cargo xtask bench capacity
//! ```

use bench::capacity::{Plan, mean};
use clap::Parser;

/// What a corpus takes on a cluster: bytes, objects and time on paper, and beside it a simulation with machines that die.
///
/// Two tables in Markdown. Three names in bf16; what a machine computes is an assumption that a flag replaces.
#[derive(Parser)]
#[command(bin_name = "cargo xtask bench capacity")]
struct Flags {
    /// Tokens of the corpus
    #[arg(long, default_value_t = 1e9)]
    tokens: f64,
    /// Machines, separated by commas
    #[arg(long, value_delimiter = ',', default_values_t = [8, 512])]
    machines: Vec<usize>,
    /// Instead of the four workloads: how many values a token has for each name ...
    #[arg(long, requires = "rate")]
    width: Option<f64>,
    /// ... and how many tokens a second a machine computes
    #[arg(long, requires = "width")]
    rate: Option<f64>,
    /// Bytes a second that a machine writes [default: 10 Gbit/s]
    #[arg(long, default_value_t = 1.25e9)]
    writes: f64,
    /// MiB of an object at most
    #[arg(long, default_value_t = 256.0)]
    file_mib: f64,
    /// Pieces for each machine [default: at most 8, each at least ten times as long as a process takes to start]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    pieces: Option<u16>,
    /// Mean hours until a machine is lost
    #[arg(long, default_value_t = 24.0)]
    lifetime: f64,
    /// Runs of the simulation
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..))]
    runs: u64,
}

/// Name, width, tokens a second of a machine.
const WORKLOADS: [(&str, f64, f64); 4] = [
    // 512 tokens of gpt2-xl in bf16 take two cores 2.88 s (BENCHMARKS.md): by parameters, of which it has 1,558 million, and times
    // 16 for 32 cores.
    ("124M, 32 cores", 768.0, 512.0 / 2.88 * 1558.0 / 124.0 * 16.0),
    ("8B, 32 cores", 4096.0, 512.0 / 2.88 * 1558.0 / 8030.0 * 16.0),
    // Two operations a parameter and token, of 989e12 a second: 20 % of them for a small model, 40 % for a large one.
    ("124M, one H100", 768.0, 0.2 * 989e12 / (2.0 * 124e6)),
    ("8B, one H100", 4096.0, 0.4 * 989e12 / (2.0 * 8.03e9)),
];

fn main() {
    let flags = Flags::parse();
    let workloads = match (flags.width, flags.rate) {
        (Some(width), Some(rate)) => vec![("yours", width, rate)],
        _ => WORKLOADS.to_vec(),
    };
    let plans: Vec<(&str, Plan)> = workloads
        .iter()
        .flat_map(|&(name, width, computes)| {
            flags.machines.iter().map(move |&machines| (name, width, computes, machines))
        })
        .map(|(name, width, computes, machines)| {
            let mut plan = Plan {
                tokens: flags.tokens,
                width,
                names: 3.0,
                machines,
                computes,
                writes: flags.writes,
                object: flags.file_mib * 1024.0 * 1024.0,
                pieces: 1,
                lifetime: flags.lifetime * 3600.0,
                replaced: 300.0,
                start: 30.0,
                spread: 0.2,
                slow: 0.02,
                keeps: true,
            };
            let usual = || (plan.ideal() / (10.0 * plan.start)).clamp(1.0, 8.0) as usize;
            plan.pieces = flags.pieces.map_or_else(usual, usize::from);
            (name, plan)
        })
        .collect();

    println!(
        "| {} tokens, 3 names | machines | tokens/s of one | limit | all write | output | objects | a unit | index, manifest | merge |",
        count(flags.tokens)
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for (name, plan) in &plans {
        let limit = if plan.writing_limits() { "writing" } else { "computing" };
        println!(
            "| {name}, width {} | {} | {} | {limit} | {}/s | {} | {} | {} | {}, {} | {} |",
            plan.width,
            plan.machines,
            count(plan.rate()),
            bytes(plan.rate() * plan.bytes_a_token() * plan.machines as f64),
            bytes(plan.bytes()),
            plan.units(),
            time(plan.unit()),
            bytes(plan.index()),
            bytes(plan.manifest()),
            time(plan.merge()),
        );
    }
    println!();
    println!(
        "| | machines x pieces | ideal | expected | simulated (shortest to longest of {}) | machines lost | work lost | waiting for the \
         last | no units kept | and one piece a machine |",
        flags.runs
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for (name, plan) in &plans {
        let (outcome, shortest, longest) = mean(plan, flags.runs);
        let without = |pieces| mean(&Plan { pieces, keeps: false, ..*plan }, flags.runs).0.makespan;
        println!(
            "| {name} | {} x {} | {} | {} | {} ({} to {}) | {} | {:.2} % | {:.0} % | {} | {} |",
            plan.machines,
            plan.pieces,
            time(plan.ideal()),
            time(plan.expected()),
            time(outcome.makespan),
            time(shortest),
            time(longest),
            outcome.losses,
            100.0 * outcome.lost,
            100.0 * outcome.waited,
            time(without(plan.pieces)),
            time(without(1)),
        );
    }
}

/// A number with three digits and a unit of thousands.
fn scaled(value: f64, units: &[&str]) -> String {
    let steps = units.len() - 1;
    let step = ((value.max(1.0).log10() / 3.0) as usize).min(steps);
    let value = value / 1000_f64.powi(step as i32);
    let digits = if value < 9.995 { 2 } else { usize::from(value < 99.95) };
    format!("{value:.digits$}{}", units[step])
}

fn bytes(value: f64) -> String {
    scaled(value, &[" B", " kB", " MB", " GB", " TB"])
}

fn count(value: f64) -> String {
    scaled(value, &["", " thousand", " million", " billion"])
}

fn time(seconds: f64) -> String {
    match seconds {
        s if s < 99.95 => format!("{s:.1} s"),
        s if s < 5997.0 => format!("{:.1} min", s / 60.0),
        s if s < 99.95 * 3600.0 => format!("{:.1} h", s / 3600.0),
        s => format!("{:.1} days", s / 86400.0),
    }
}
