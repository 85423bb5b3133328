//! Whether every process gives the same bits: starts many, lets each compute the same thing, and compares what they say.
//!
//! ```sh
//! cargo xtask bench repeat --processes 1000
//! ```
//!
//! What can differ from process to process is what libtorch settles once in each. `docs/numerics.md` tells what was found;
//! `--unprepared` leaves out what was done about it, so that the fault shows where the processor has it.

use std::{
    collections::BTreeMap,
    path::Path,
    process::{Command, ExitCode},
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use sha2::{Digest, Sha256};
use transformer_utils::{
    lens::{Lens, LensOptions, Measure, RowOptions},
    lowmem::{Checkpoint, LoadOptions},
    models::{self, Config, GenerateOptions, Input, Model, NoObserver, Sampling},
    tch::{Kind, Tensor},
    tuned_lens,
};

/// Start many processes and compare their bits.
#[derive(Parser)]
struct Flags {
    /// Processes to start for each kind of work.
    #[arg(long, default_value_t = 100, value_name = "N")]
    processes: usize,

    /// What they compute, separated by commas [default: all].
    #[arg(long, value_enum, value_delimiter = ',', value_name = "WORK")]
    only: Vec<Work>,

    /// Leave libtorch as it starts, to see the fault.
    #[arg(long)]
    unprepared: bool,

    /// What one process does; prints the hash of its results.
    #[arg(long, value_enum, hide = true, value_name = "WORK")]
    child: Option<Work>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Work {
    /// KL, entropy and ranks of every row, with sub-blocks.
    Lens,
    /// Logits.
    Forward,
    /// Tokens, greedy and drawn.
    Generation,
    /// The tuned lens of the bundled GPT-2.
    Tuned,
}

fn main() -> Result<ExitCode> {
    let flags = Flags::parse();
    if let Some(work) = flags.child {
        println!("{}", hash(work)?);
        return Ok(ExitCode::SUCCESS);
    }
    let works = if flags.only.is_empty() { Work::value_variants() } else { &flags.only };
    println!("{}", processor());
    let mut same = true;
    for &work in works {
        let start = Instant::now();
        let answers = answers(work, &flags)?;
        let most = answers.values().max().copied().unwrap_or(0);
        let others = flags.processes - most;
        same &= others == 0;
        let seconds = start.elapsed().as_secs_f64();
        println!("{work:?}: {others} of {} processes differ ({seconds:.0} s)", flags.processes);
    }
    Ok(if same { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// How many processes gave each answer.
fn answers(work: Work, flags: &Flags) -> Result<BTreeMap<String, usize>> {
    let bar = ProgressBar::new(flags.processes as u64);
    bar.set_style(ProgressStyle::with_template("{msg} {pos}/{len} {bar:40} {eta} left")?);
    bar.set_message(format!("{work:?}"));
    let mut answers = BTreeMap::new();
    for _ in 0..flags.processes {
        let mut child = Command::new(std::env::current_exe()?);
        child.args(["--child", &format!("{work:?}").to_lowercase()]);
        if flags.unprepared {
            child.env("TRANSFORMER_UTILS_UNPREPARED", "1");
        }
        let output = child.output().context("starting a process")?;
        // A run that noticed by itself that its numbers are wrong has given another answer than the rest.
        let answer = if output.status.success() { output.stdout } else { first_line(output.stderr) };
        *answers.entry(String::from_utf8(answer)?).or_insert(0) += 1;
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(answers)
}

fn first_line(text: Vec<u8>) -> Vec<u8> {
    text.split(|byte| *byte == b'\n').next().unwrap_or_default().to_vec()
}

/// What one process computes.
fn hash(work: Work) -> Result<String> {
    let mut hash = Sha256::new();
    let bundled = || -> Result<Model> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/tiny-gpt2");
        Ok(Model::open(&Checkpoint::open(folder)?, &LoadOptions::default())?)
    };
    // Small ones: what goes wrong goes wrong in the first large call.
    let small = || {
        let config = r#"{"model_type": "gpt_neo", "num_layers": 4, "num_heads": 4, "hidden_size": 40, "vocab_size": 199,
            "max_position_embeddings": 64, "attention_types": [[["global", "local"], 2]]}"#;
        Model::random(Config::from_json(config)?, 3)
    };
    let ids: Vec<i64> = (0..40).map(|position| (37 * position + 11) % 199).collect();
    match work {
        Work::Lens => {
            let rows = RowOptions::default().subblocks(true);
            let measures = vec![Measure::Kl, Measure::Entropy, Measure::Ranks];
            let options = LensOptions::default().measures(measures).rows(rows);
            for model in [small()?, bundled()?] {
                hash.update(Lens::new(&model, options.clone())?.table("model", &ids, |id| id.to_string())?.to_json()?);
            }
        }
        Work::Forward => {
            for model in [small()?, bundled()?] {
                let outcome = model.forward(&Input::from_rows(&[&ids])?, &mut NoObserver)?;
                hash.update(bits(&outcome.logits.context("the run was stopped")?)?);
            }
        }
        Work::Generation => {
            for sampling in [None, Some(Sampling::default().temperature(1.5))] {
                for model in [small()?, bundled()?] {
                    let options = GenerateOptions::default().sampling(sampling.clone()).max_new_tokens(24);
                    let rows = [ids.clone(), ids[..30].to_vec()];
                    let generated = models::generate(&model, &rows, &options, |_| std::ops::ControlFlow::Continue(()))?;
                    for row in generated.rows {
                        hash.update(row.tokens.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<u8>>());
                    }
                }
            }
        }
        Work::Tuned => {
            let model = bundled()?;
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/tiny-gpt2/tuned-lens");
            let tuned = tuned_lens::open(folder)?;
            let options = LensOptions::default().measures([Measure::Kl, Measure::Probs]);
            let lens = Lens::new(&model, options)?.tuned(&tuned)?;
            hash.update(lens.table("model", &ids, |id| id.to_string())?.to_json()?);
        }
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The bytes of a tensor's elements.
fn bits(tensor: &Tensor) -> Result<Vec<u8>> {
    let tensor = tensor.f_to_kind(Kind::Float)?.f_contiguous()?;
    let mut values = vec![0_f32; tensor.numel()];
    tensor.f_copy_data(&mut values, tensor.numel())?;
    ensure!(values.iter().all(|value| value.is_finite()), "the results are not finite");
    Ok(values.into_iter().flat_map(f32::to_le_bytes).collect())
}

/// What the processor calls itself.
fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    match (field("vendor_id"), field("model name")) {
        (Some(vendor), Some(model)) => format!("{model} ({vendor})"),
        _ => "a processor that does not say what it is".into(),
    }
}
