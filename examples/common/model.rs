//! The flags that choose a model, and the model they open.

use std::{
    cell::OnceCell,
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
    time::Instant,
};

use anyhow::{Context, Result, bail, ensure};
use clap::{
    Args, ValueEnum,
    builder::{PossibleValuesParser, TypedValueParser},
};
use serde::Serialize;
use transformer_utils::{
    load::model_name,
    lowmem::{Checkpoint, DtypeChoice, ExtraTensors, HubOptions, LoadOptions, LoadReport, Residency, Source},
    models::{Config, Model, Numerics},
    prepare_libtorch,
    tch::{Cuda, Device},
    text::Tokenizer,
};

use super::{progress::LoadBar, system};

/// Which model, and how to place it.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Model")]
pub struct ModelFlags {
    /// A folder, a weight file (GGUF too), or a Hub id such as EleutherAI/gpt-neo-125m or owner/name:file.gguf [default: the
    /// bundled model].
    #[arg(long, value_name = "DIR|FILE|HUB_ID")]
    pub model: Option<String>,

    /// Branch, tag or commit of a Hub id [default: main].
    #[arg(long, value_name = "R")]
    pub revision: Option<String>,

    /// Fetch nothing from the Hub: use what its cache on this machine has.
    #[arg(long)]
    pub offline: bool,

    /// Where to compute: auto (CUDA if there is one, else the CPU), cpu, cuda or cuda:N.
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: DeviceChoice,

    /// Dtype to compute in; auto is the one on disk, but f32 for f16 weights on a CPU.
    #[arg(long, default_value = "auto", value_parser = named::<DtypeChoice>(&["auto", "f32", "bf16", "f16"]))]
    pub dtype: DtypeChoice,

    /// Where the weights live: mapped (views of the file, nothing is copied), resident (converted or moved once, then
    /// kept) or streamed (placed block by block, for models larger than memory). auto is mapped where that is possible,
    /// streamed where the weights exceed the free memory, else resident.
    #[arg(
        long,
        default_value = "auto",
        value_parser = named::<Residency>(&["auto", "mapped", "resident", "streamed"])
    )]
    pub residency: Residency,

    /// Refuse a checkpoint that holds tensors the model does not use, instead of saying so.
    #[arg(long)]
    pub strict: bool,

    /// How to compute where ways differ in the last bits, separated by commas [default: the fastest].
    #[arg(long, value_enum, value_delimiter = ',', value_name = "WAYS")]
    pub numerics: Vec<Alike>,
}

/// A value of `--numerics`: which runs give the same bits at a cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Alike {
    /// A single token (a step of generation) as among others.
    AlikeRows,
    /// Runs that replace attention patterns as those that do not.
    MaterialisedAttention,
}

/// A parser that lists `names` in the help and makes a value of the one chosen.
fn named<T>(names: &'static [&'static str]) -> impl TypedValueParser<Value = T>
where
    T: FromStr<Err = String> + Clone + Send + Sync + 'static,
{
    PossibleValuesParser::new(names).try_map(|name: String| name.parse::<T>())
}

/// The value of `--device`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// CUDA if there is one, else the CPU.
    #[default]
    Auto,
    /// This one.
    Fixed(Device),
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name.split_once(':') {
            None if name == "auto" => Ok(Self::Auto),
            None if name == "cpu" => Ok(Self::Fixed(Device::Cpu)),
            None if name == "cuda" => Ok(Self::Fixed(Device::Cuda(0))),
            Some(("cuda", number)) if number.parse::<u8>().is_ok_and(|parsed| parsed.to_string() == number) => {
                Ok(Self::Fixed(Device::Cuda(number.parse().map_err(|error| format!("{error}"))?)))
            }
            _ => Err("expected auto, cpu, cuda or cuda:N".into()),
        }
    }
}

impl DeviceChoice {
    /// The device, if it is there.
    pub fn resolve(self) -> Result<Device> {
        // Libtorch looks once for its CUDA library, so that is loaded before it is asked.
        prepare_libtorch();
        let there = if Cuda::is_available() { Cuda::device_count().max(0) as usize } else { 0 };
        match self {
            Self::Auto if there > 0 => Ok(Device::Cuda(0)),
            Self::Auto => Ok(Device::Cpu),
            Self::Fixed(Device::Cuda(number)) => {
                ensure!(there > 0, "--device cuda: there is no CUDA device, or this libtorch has no CUDA; see doctor");
                ensure!(
                    number < there,
                    "--device cuda:{number}: the last of the {there} devices is cuda:{}",
                    there - 1
                );
                Ok(Device::Cuda(number))
            }
            Self::Fixed(device) => Ok(device),
        }
    }
}

/// A device as the flags spell it.
pub fn device_name(device: Device) -> String {
    match device {
        Device::Cpu => "cpu".into(),
        Device::Cuda(number) => format!("cuda:{number}"),
        other => format!("{other:?}").to_lowercase(),
    }
}

/// The folder of the model that comes with the sources.
pub fn bundled_model() -> PathBuf {
    bundled_models().join("tiny-gpt2")
}

/// The folder of everything that comes with the sources.
pub fn bundled_models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("assets")
}

/// A model that is open: indexed and checked, its weights not yet read.
pub struct Opened {
    /// The model.
    pub model: Model,
    /// Where it came from.
    pub checkpoint: Checkpoint,
    /// What to call it.
    pub name: String,
    /// Milliseconds from the flags to the model.
    pub load_ms: f64,
    /// MiB of private memory that opening it took, where the system says.
    pub load_private_mib: Option<f64>,
    tokenizer: OnceCell<Option<Tokenizer>>,
}

/// How a model was placed, for reports.
#[derive(Serialize)]
pub struct Placement {
    model: String,
    family: &'static str,
    device: String,
    dtype: String,
    /// Where the weights live.
    pub residency: &'static str,
    threads: i32,
}

impl ModelFlags {
    /// Finds the checkpoint. Whatever `--model` can be is decided here and nowhere else.
    pub fn find_checkpoint(&self) -> Result<Checkpoint> {
        let Some(asked) = &self.model else {
            ensure!(self.revision.is_none(), "--revision needs a --model on the Hub");
            let folder = bundled_model();
            let hint = "the bundled model is not where this program was built; choose one with --model";
            return Checkpoint::open(&folder).context(hint);
        };
        let source = Source::parse(asked)?;
        if matches!(source, Source::Local(_)) {
            ensure!(
                self.revision.is_none(),
                "--revision: {asked} is on this machine; only models on the Hub have revisions"
            );
        }
        Ok(Checkpoint::find(&source, &self.hub_options().revision(self.revision.clone()))?)
    }

    /// How the Hub is asked, with a progress bar on a terminal.
    pub fn hub_options(&self) -> HubOptions {
        HubOptions::default().offline(self.offline).progress(Arc::new(LoadBar::default()))
    }

    fn chosen_numerics(&self) -> Numerics {
        Numerics::FAST
            .alike_rows(self.numerics.contains(&Alike::AlikeRows))
            .materialised_attention(self.numerics.contains(&Alike::MaterialisedAttention))
    }

    /// What the model is called in titles and reports.
    pub fn name(&self) -> String {
        let Some(asked) = &self.model else { return "tiny-gpt2".into() };
        Source::parse(asked).map_or_else(|_| asked.clone(), |source| model_name(&source))
    }

    /// Device, dtype, residency, and a progress bar on a terminal.
    pub fn load_options(&self) -> Result<LoadOptions> {
        Ok(LoadOptions::default()
            .device(self.device.resolve()?)
            .dtype(self.dtype)
            .residency(self.residency)
            .extra_tensors(if self.strict { ExtraTensors::Refuse } else { ExtraTensors::Report })
            .progress(Arc::new(LoadBar::default())))
    }

    /// Opens the model. Headers are read and checked; no weight is. What is odd about the checkpoint is said on standard
    /// error.
    pub fn open(&self) -> Result<Opened> {
        let before = system::private_mib();
        let start = Instant::now();
        let options = self.load_options()?;
        let checkpoint = self.find_checkpoint()?;
        let model = Model::open(&checkpoint, &options)?.with_numerics(self.chosen_numerics());
        notes(&model.report()).iter().for_each(|note| eprintln!("note: {note}"));
        let load_ms = milliseconds(start);
        let load_private_mib = system::private_mib().zip(before).map(|(after, before)| (after - before).max(0.0));
        Ok(Opened { model, checkpoint, name: self.name(), load_ms, load_private_mib, tokenizer: OnceCell::new() })
    }
}

/// What somebody should know about a checkpoint who expects it to be as its config says.
fn notes(report: &LoadReport) -> Vec<String> {
    let mut notes = Vec::new();
    if let [first, rest @ ..] = &report.extra[..] {
        let more = if rest.is_empty() { String::new() } else { format!(" and {} more tensors", rest.len()) };
        notes.push(format!("the checkpoint holds {first}{more}, which the model does not use; --strict refuses that"));
    }
    for (name, other) in &report.untied {
        notes.push(format!("{name} and {other} differ, so they are not tied, whatever config.json says"));
    }
    notes
}

/// Milliseconds since `start`.
pub fn milliseconds(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}

impl Opened {
    /// Sizes and settings.
    pub fn config(&self) -> &Config {
        self.model.config()
    }

    /// The tokenizer beside the weights, if there is one. It is read when first asked for.
    ///
    /// # Errors
    ///
    /// A tokenizer that is there and cannot be read.
    pub fn tokenizer(&self) -> Result<Option<&Tokenizer>> {
        if let Some(tokenizer) = self.tokenizer.get() {
            return Ok(tokenizer.as_ref());
        }
        let tokenizer = Tokenizer::of(&self.checkpoint)?;
        Ok(self.tokenizer.get_or_init(|| tokenizer).as_ref())
    }

    /// The tokenizer, for those who have text.
    ///
    /// # Errors
    ///
    /// Says that there is none, and what works without.
    pub fn need_tokenizer(&self) -> Result<&Tokenizer> {
        let missing = || {
            let folder = self.checkpoint.folder().display();
            format!("{folder}: no tokenizer.json there, so text cannot be read; give token ids with --ids")
        };
        self.tokenizer()?.with_context(missing)
    }

    /// The text of a token, bytes that are no UTF-8 written `\xE2`; the bare id where there is no tokenizer.
    pub fn token_text(&self, id: i64) -> Result<String> {
        Ok(self.tokenizer()?.map_or_else(|| id.to_string(), |tokenizer| tokenizer.token_text(id)))
    }

    /// The one token of a text given to a flag; without a tokenizer the text is its id.
    ///
    /// # Errors
    ///
    /// A text of several tokens, which are shown.
    pub fn one_token(&self, flag: &str, text: &str) -> Result<i64> {
        let Some(tokenizer) = self.tokenizer()? else {
            let folder = self.checkpoint.folder().display();
            return text
                .trim()
                .parse()
                .with_context(|| format!("{folder}: no tokenizer.json there, so {flag} takes a token id"));
        };
        let ids = tokenizer.encode(text, false)?;
        let [id] = ids[..] else {
            let pieces: Vec<String> = ids.iter().map(|&id| self.token_text(id)).collect::<Result<_>>()?;
            bail!(
                "{flag} {text:?} is {} tokens ({pieces:?}), expected one; words usually begin with a space",
                ids.len()
            )
        };
        Ok(id)
    }

    /// How the model was placed.
    pub fn placement(&self) -> Placement {
        Placement {
            model: self.name.clone(),
            family: self.config().family.title,
            device: device_name(self.model.parts().device()),
            dtype: self.model.parts().dtype().to_string(),
            residency: self.model.parts().residency().name(),
            threads: transformer_utils::tch::get_num_threads(),
        }
    }
}

impl fmt::Display for Placement {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { model, family, device, dtype, residency, .. } = self;
        write!(formatter, "{model} ({family}, {dtype}, {residency}, {device})")
    }
}
