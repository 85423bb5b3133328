//! Trains a tuned lens: for each layer an affine translator from its stream to the last one's.

mod common;

use std::{
    ffi::OsStr,
    ops::ControlFlow,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Result, bail, ensure};
use clap::Parser;
use common::{model::ModelFlags, output, progress, table, texts};
use serde::Serialize;
use transformer_utils::{
    lens::{
        TunedLens, TunedLensConfig, TunedLensTraining,
        picture::{Curves, Style, curves_png, curves_svg},
    },
    tuned_lens,
};

/// Train a tuned lens from text.
///
/// Each layer gets an affine translator in front of the final norm and the unembedding, trained to bring KL(final || row)
/// down (Belrose et al., 2023). Prints the held-out divergence of each layer through the logit lens and through the tuned
/// one, and writes config.json and params.pt as the tuned-lens project does; logit_lens reads them with --lens tuned:DIR.
#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    model: ModelFlags,

    /// Text to train on; repeat for several files. The last part of each is held out.
    #[arg(long = "text", required = true, value_name = "FILE")]
    texts: Vec<PathBuf>,
    /// Part of each text that is held out.
    #[arg(long, default_value_t = 0.05)]
    held_out: f64,
    /// Optimizer steps.
    #[arg(long, default_value_t = 250)]
    steps: u64,
    /// Sequences in a step.
    #[arg(long, default_value_t = 8)]
    batch: usize,
    /// Tokens in a sequence [default: what the model reads, at most 256].
    #[arg(long)]
    context: Option<usize>,
    /// Learning rate of AdamW at the first step; it falls to nothing along a line.
    #[arg(long, default_value_t = 2e-3)]
    learning_rate: f64,
    /// Weight decay: it pulls the translators towards the logit lens.
    #[arg(long, default_value_t = 1e-3)]
    weight_decay: f64,
    /// Tokens that are unembedded at once; fewer take less memory.
    #[arg(long, default_value_t = 1024)]
    tokens_at_once: usize,
    /// Held-out sequences to measure on, at most.
    #[arg(long, default_value_t = 64)]
    held_out_sequences: usize,
    /// Seed of the batches.
    #[arg(long, default_value_t = 0)]
    seed: u64,

    /// Folder for config.json and params.pt.
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    out: PathBuf,
    /// Draw the held-out divergence of each layer: .png or .svg.
    #[arg(long, value_name = "PATH", help_heading = "Output")]
    plot: Option<PathBuf>,
    /// JSON file for the figures.
    #[arg(long, value_name = "PATH", help_heading = "Output")]
    json: Option<PathBuf>,
}

fn main() -> ! {
    common::main(run)
}

fn run(flags: Flags) -> Result<()> {
    let draw = flags.plot.as_deref().map(Format::of).transpose()?;
    for path in flags.plot.iter().chain(&flags.json) {
        output::check_writable(path)?;
    }
    check_folder(&flags.out)?;
    ensure!((0.0..1.0).contains(&flags.held_out), "--held-out {}: expected 0 to 1", flags.held_out);
    ensure!(
        flags.batch > 0 && flags.tokens_at_once > 0 && flags.held_out_sequences > 0,
        "--batch, --tokens-at-once and --held-out-sequences must be at least 1"
    );
    let opened = flags.model.open()?;
    let longest = opened.model.architecture().context as usize;
    let context = flags.context.unwrap_or(longest.min(256));
    ensure!((1..=longest).contains(&context), "--context {context}: the model reads 1 to {longest} tokens");
    let tokenizer = opened.need_tokenizer()?;
    let (train, held_out) = texts::split(&flags.texts, flags.held_out)?;
    let (train, held_out) = (tokenizer.encode(&train, true)?, tokenizer.encode(&held_out, true)?);
    for (what, part) in [("training", &train), ("held-out", &held_out)] {
        let found = part.len();
        ensure!(
            found >= context,
            "the {what} part of the texts has {found} tokens, fewer than one sequence of {context}"
        );
    }
    let held_out: Vec<&[i64]> = held_out.chunks_exact(context).take(flags.held_out_sequences).collect();

    let lens = TunedLens::identity(TunedLensConfig::of(&opened.name, &opened.model)?, opened.model.parts().device())?;
    let before = lens.divergences(&opened.model, &held_out, flags.tokens_at_once)?;
    common::print(format!("{}; {} tokens to train on, {context} in a sequence", opened.placement(), train.len()))?;
    let training = TunedLensTraining::default()
        .steps(flags.steps)
        .batch(flags.batch)
        .context(context)
        .learning_rate(flags.learning_rate)
        .weight_decay(flags.weight_decay)
        .tokens_at_once(flags.tokens_at_once)
        .seed(flags.seed);
    let started = Instant::now();
    let bar = progress::steps(flags.steps);
    lens.train(&opened.model, &train, &training, |step| {
        bar.set_message(format!("KL {:.3} nats", step.divergence));
        bar.set_position(step.steps);
        ControlFlow::Continue(())
    })?;
    bar.finish_and_clear();
    let seconds = started.elapsed().as_secs_f64();
    let after = lens.divergences(&opened.model, &held_out, flags.tokens_at_once)?;

    tuned_lens::save(&flags.out, &lens)?;
    let report = Report {
        model: opened.name.clone(),
        steps: flags.steps,
        seconds,
        held_out_tokens: held_out.len() * context,
        rows: (0..lens.layers()).map(|layer| TunedLens::site(layer).to_string()).collect(),
        logit_lens_kl: before,
        tuned_lens_kl: after,
    };
    common::print(report.text().trim_end())?;
    if let (Some(path), Some(format)) = (&flags.plot, draw) {
        format.draw(path, &report.curves())?;
    }
    if let Some(path) = &flags.json {
        output::write_json(path, &report)?;
    }
    common::print(format!("wrote {}", flags.out.display()))
}

/// Refuses a folder that cannot be made or written, before any work is done for it.
fn check_folder(folder: &Path) -> Result<()> {
    if folder.is_dir() { output::check_writable(&folder.join("params.pt")) } else { output::check_writable(folder) }
}

#[derive(Clone, Copy)]
enum Format {
    Png,
    Svg,
}

impl Format {
    fn of(path: &Path) -> Result<Self> {
        match path.extension().and_then(OsStr::to_str) {
            Some("png") => Ok(Self::Png),
            Some("svg") => Ok(Self::Svg),
            _ => bail!("{}: unknown extension; known: .png, .svg", path.display()),
        }
    }

    fn draw(self, path: &Path, curves: &Curves) -> Result<()> {
        let style = Style::default();
        let bytes = match self {
            Self::Png => curves_png(curves, &style)?,
            Self::Svg => curves_svg(curves, &style)?.into_bytes(),
        };
        output::write(path, &bytes)
    }
}

/// What `--json` gets.
#[derive(Serialize)]
struct Report {
    model: String,
    steps: u64,
    seconds: f64,
    held_out_tokens: usize,
    rows: Vec<String>,
    logit_lens_kl: Vec<f64>,
    tuned_lens_kl: Vec<f64>,
}

impl Report {
    fn text(&self) -> String {
        let mut rows = vec![["row".to_owned(), "logit lens".to_owned(), "tuned lens".to_owned()]];
        let measured = self.logit_lens_kl.iter().zip(&self.tuned_lens_kl);
        rows.extend(
            self.rows
                .iter()
                .zip(measured)
                .map(|(name, (before, after))| [name.clone(), format!("{before:10.4}"), format!("{after:10.4}")]),
        );
        format!(
            "{} steps in {:.0} s; KL(final || row) in nats over {} held-out tokens:\n\n{}",
            self.steps,
            self.seconds,
            self.held_out_tokens,
            table::columns(&rows)
        )
    }

    fn curves(&self) -> Curves {
        Curves {
            title: format!("{}: logit lens and tuned lens", self.model),
            heading: "KL(final ‖ row) on held-out text, nats".into(),
            logarithmic: true,
            rows: self.rows.clone(),
            curves: vec![
                ("logit lens".into(), self.logit_lens_kl.clone()),
                ("tuned lens".into(), self.tuned_lens_kl.clone()),
            ],
        }
    }
}
