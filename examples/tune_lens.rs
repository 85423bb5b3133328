//! Trains a tuned lens: for each layer an affine translator from its stream to the last one's.

mod common;

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

use anyhow::{Result, bail, ensure};
use clap::{Parser, ValueEnum};
use common::{
    model::{ModelFlags, Opened},
    optimizer::store_of,
    output, progress, table, texts,
};
use serde::Serialize;
use transformer_utils::{
    lens::{
        TunedLens, TunedLensConfig,
        picture::{Curves, Style, curves_png, curves_svg},
    },
    models::{Input, Random, Site, Tail, Unembedding},
    partial::Run,
    tch::{
        Kind, Tensor,
        nn::{self, OptimizerConfig},
        no_grad,
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
    /// How the translators are changed.
    #[arg(long, value_enum, default_value = "adam")]
    optimizer: Optimizer,
    /// Learning rate at the first step; it falls to nothing along a line [default: 0.002 for adam, 1 for sgd].
    #[arg(long)]
    learning_rate: Option<f64>,
    /// Momentum (Nesterov's) of sgd.
    #[arg(long, default_value_t = 0.9)]
    momentum: f64,
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

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Optimizer {
    Sgd,
    Adam,
}

fn main() -> ExitCode {
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
    let training = Training::new(&opened, &lens)?;
    let before = training.divergences(&held_out, flags.tokens_at_once)?;
    common::print(format!("{}; {} tokens to train on, {context} in a sequence", opened.placement(), train.len()))?;
    let seconds = training.fit(&flags, &train, context)?;
    let after = training.divergences(&held_out, flags.tokens_at_once)?;

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

/// A model, a lens for it, and what does not change while that is trained.
struct Training<'a> {
    lens: &'a TunedLens,
    run: Run<'a>,
    sites: Vec<String>,
    logits: String,
    tail: Tail,
    /// In f32.
    unembedding: Unembedding,
}

impl<'a> Training<'a> {
    fn new(opened: &'a Opened, lens: &'a TunedLens) -> Result<Self> {
        let sites: Vec<String> = (0..lens.layers()).map(|layer| TunedLens::site(layer).to_string()).collect();
        let logits = Site::LOGITS.to_string();
        let names: Vec<&String> = sites.iter().chain([&logits]).collect();
        let run = Run::new(&opened.model, &names)?;
        let unembedding = opened.model.unembedding()?.to_kind(Kind::Float)?;
        let tail = opened.model.tail()?;
        Ok(Self { lens, run, sites, logits, tail, unembedding })
    }

    /// Calls `act` with each layer, its streams (`[position, d_model]`) and the logarithms of the model's own probabilities
    /// there (`[position, vocabulary]`), some tokens of all layers at a time.
    fn each(
        &self,
        rows: &[&[i64]],
        tokens_at_once: usize,
        mut act: impl FnMut(usize, &Tensor, &Tensor) -> Result<()>,
    ) -> Result<()> {
        let output = no_grad(|| self.run.run(&Input::from_rows(rows)?))?;
        let flat = |name: &str| -> Result<Tensor> { Ok(output.get(name)?.f_flatten(0, 1)?.f_to_kind(Kind::Float)?) };
        let logits = flat(&self.logits)?;
        let streams = self.sites.iter().map(|site| flat(site)).collect::<Result<Vec<_>>>()?;
        drop(output);
        let count = logits.size2()?.0;
        for first in (0..count).step_by(tokens_at_once) {
            let length = (tokens_at_once as i64).min(count - first);
            let own = logits.f_narrow(0, first, length)?.f_log_softmax(-1, Kind::Float)?;
            for (layer, stream) in streams.iter().enumerate() {
                act(layer, &stream.f_narrow(0, first, length)?, &own)?;
            }
        }
        Ok(())
    }

    fn divergence(&self, layer: usize, stream: &Tensor, own: &Tensor) -> Result<Tensor> {
        Ok(self.lens.divergence(&self.tail, layer, stream, own, &self.unembedding)?)
    }

    /// Each layer's mean KL(final || row) over held-out sequences, in nats.
    fn divergences(&self, sequences: &[&[i64]], tokens_at_once: usize) -> Result<Vec<f64>> {
        let mut sums = vec![0.0; self.lens.layers()];
        let mut tokens = 0;
        for sequence in sequences {
            tokens += sequence.len();
            self.each(&[sequence], tokens_at_once, |layer, stream, own| {
                let divergence = no_grad(|| self.divergence(layer, stream, own))?;
                sums[layer] += divergence.f_sum(Kind::Double)?.f_double_value(&[])?;
                Ok(())
            })?;
        }
        Ok(sums.into_iter().map(|sum| sum / tokens as f64).collect())
    }

    /// Trains, and gives the seconds it took.
    fn fit(&self, flags: &Flags, train: &[i64], context: usize) -> Result<f64> {
        let translators = self.lens.trainable()?;
        let leaves: Vec<Tensor> = translators.iter().flatten().map(Tensor::shallow_clone).collect();
        let store = store_of(&[leaves], self.unembedding.weight().device())?;
        let (momentum, wd) = (flags.momentum, flags.weight_decay);
        let (mut optimizer, rate) = match flags.optimizer {
            Optimizer::Adam => {
                let rate = flags.learning_rate.unwrap_or(2e-3);
                (nn::AdamW { wd, ..nn::AdamW::default() }.build(&store, rate)?, rate)
            }
            Optimizer::Sgd => {
                let rate = flags.learning_rate.unwrap_or(1.0);
                (nn::Sgd { momentum, dampening: 0.0, wd, nesterov: momentum > 0.0 }.build(&store, rate)?, rate)
            }
        };
        let started = Instant::now();
        let bar = progress::steps(flags.steps);
        let random = Random::new(flags.seed);
        for step in 0..flags.steps {
            // Like the published lenses: the rate falls to nothing along a line.
            optimizer.set_lr(rate * (1.0 - step as f64 / flags.steps as f64));
            let rows: Vec<&[i64]> = (0..flags.batch as u64)
                .map(|row| {
                    let places = (train.len() - context + 1) as u64;
                    let start = random.bits(step * flags.batch as u64 + row) % places;
                    &train[start as usize..][..context]
                })
                .collect();
            let tokens = (rows.len() * context) as f64;
            let mut mean = 0.0;
            optimizer.zero_grad();
            self.each(&rows, flags.tokens_at_once, |layer, stream, own| {
                let loss = self.divergence(layer, stream, own)?.f_sum(Kind::Float)?.f_div_scalar(tokens)?;
                // Layer by layer: each layer's logits are dropped before the next one's are made.
                loss.f_backward()?;
                mean += loss.f_double_value(&[])? / self.lens.layers() as f64;
                Ok(())
            })?;
            ensure!(mean.is_finite(), "the divergence is {mean} at step {step}; lower --learning-rate");
            for translator in &translators {
                // Each layer by itself: one that is far off must not hold the others back.
                clip(translator, 1.0)?;
            }
            optimizer.step();
            bar.set_message(format!("KL {mean:.3} nats"));
            bar.set_position(step + 1);
        }
        bar.finish_and_clear();
        Ok(started.elapsed().as_secs_f64())
    }
}

/// Scales the gradients of these tensors so that their common norm is at most `most`.
fn clip(tensors: &[Tensor], most: f64) -> Result<()> {
    let gradients: Vec<Tensor> = tensors.iter().map(Tensor::grad).collect();
    let mut squares = 0.0;
    for gradient in &gradients {
        squares += gradient.f_square()?.f_sum(Kind::Double)?.f_double_value(&[])?;
    }
    let scale = most / (squares.sqrt() + 1e-6);
    if scale < 1.0 {
        for mut gradient in gradients {
            let _ = no_grad(|| gradient.f_mul_scalar_(scale))?;
        }
    }
    Ok(())
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
