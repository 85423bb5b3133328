//! Writes a checkpoint of any size with random weights, for measuring.

#[path = "../common/mod.rs"]
mod common;
mod sizes;
mod weights;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, ValueEnum};
use transformer_utils::{lowmem::Dtype, models::Config};

use common::{output, table};

/// Write a checkpoint with random weights.
///
/// The weights are drawn as a fresh model's are: normal with the config's initializer_range, projections into the residual
/// stream smaller by sqrt(2 layers); norms and biases vary a little, so that a mix-up shows. The same flags give the same bytes
/// on every machine. Memory stays small whatever the size; the folder appears when it is complete.
#[derive(Parser)]
#[command(after_long_help = sizes::names())]
struct Flags {
    /// A size that is known by name (gpt2-xl, llama-3.2-1b, ...; --list shows all), or the path of a config.json.
    #[arg(long, value_name = "NAME|PATH", required_unless_present = "list")]
    config: Option<String>,

    /// Folder to make.
    #[arg(long, value_name = "DIR", required_unless_present = "list")]
    out: Option<PathBuf>,

    /// Show the names of all sizes, how many parameters they have and whose config they are, and make nothing.
    #[arg(long, exclusive = true)]
    list: bool,

    /// Dtype to store.
    #[arg(long, value_enum, default_value = "f32")]
    dtype: StoredDtype,

    /// Number of weight files; more than one get an index.
    #[arg(long, value_name = "N", default_value_t = 1)]
    shards: usize,

    /// Seed of the weights.
    #[arg(long, default_value_t = 0)]
    seed: u64,

    /// Format of the weight files.
    #[arg(long, value_enum, default_value = "safetensors")]
    format: Format,

    /// tokenizer.json to copy beside the weights.
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum StoredDtype {
    F32,
    Bf16,
    F16,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Safetensors,
}

impl StoredDtype {
    fn dtype(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::Bf16 => Dtype::Bf16,
            Self::F16 => Dtype::F16,
        }
    }
}

fn main() -> ! {
    common::main(run)
}

fn run(flags: Flags) -> Result<()> {
    if flags.list {
        return list();
    }
    let start = Instant::now();
    let Format::Safetensors = flags.format;
    let (Some(name), Some(out)) = (&flags.config, &flags.out) else { bail!("--config and --out are needed") };
    let config_text = config_text(name)?;
    let config = Config::from_json(&config_text).with_context(|| name.clone())?;
    if let Some(tokenizer) = &flags.tokenizer {
        ensure!(tokenizer.is_file(), "--tokenizer {}: no such file", tokenizer.display());
    }
    let taken = out.exists() && fs::read_dir(out).map_or(true, |mut inside| inside.next().is_some());
    ensure!(!taken, "{}: is there already; choose another folder or remove it", out.display());
    let parent = output::folder_of(out);
    ensure!(parent.is_dir(), "{}: the folder {} does not exist", out.display(), parent.display());

    let tensors = weights::plan(&config, flags.seed)?;
    ensure!(
        (1..=tensors.len()).contains(&flags.shards),
        "--shards {}: expected 1 to {}, the number of tensors",
        flags.shards,
        tensors.len()
    );
    let parameters: u64 = tensors.iter().map(|tensor| tensor.elements).sum();
    let bytes = parameters * flags.dtype.dtype().bytes();
    let available = fs4::available_space(&parent).with_context(|| format!("cannot ask {}", parent.display()))?;
    // Headers and small files, generously.
    let needed = bytes + (16 << 20);
    ensure!(
        needed <= available,
        "{}: the checkpoint needs {} and the disk has {} left",
        out.display(),
        table::size(needed),
        table::size(available)
    );
    common::print(format!(
        "{name}: {} parameters, {} in {} {}",
        thousands(parameters),
        table::size(bytes),
        flags.shards,
        if flags.shards == 1 { "file" } else { "files" }
    ))?;

    let context = || format!("cannot write in {}", parent.display());
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    {
        // A temporary folder is private; this one gets the mode that any new folder has.
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(fs::Permissions::from_mode(0o777));
    }
    let folder = builder.prefix(".synth").tempdir_in(&parent).with_context(context)?;
    weights::write(folder.path(), &tensors, flags.dtype, flags.shards)?;
    output::write(&folder.path().join("config.json"), config_text.as_bytes())?;
    if let Some(tokenizer) = &flags.tokenizer {
        let bytes = fs::read(tokenizer).with_context(|| format!("cannot read {}", tokenizer.display()))?;
        output::write(&folder.path().join("tokenizer.json"), &bytes)?;
    }
    let finished = folder.path().to_owned();
    fs::rename(&finished, out).with_context(|| format!("cannot make {}", out.display()))?;
    // The temporary folder has become the checkpoint; there is nothing left to remove.
    let _ = folder.keep();
    let seconds = start.elapsed().as_secs_f64();
    common::print(format!("wrote {} in {seconds:.1} s, {:.2} GB/s", out.display(), bytes as f64 / 1e9 / seconds))
}

/// The sizes that are known by name.
fn list() -> Result<()> {
    let mut rows = Vec::new();
    for family in sizes::all()? {
        for size in &family.sizes {
            let config = Config::from_json(&family.config(size).to_string()).with_context(|| size.name.clone())?;
            let parameters = format!("{:>7.3} billion", weights::parameters(&config)? as f64 / 1e9);
            let hub = size.hub.clone().unwrap_or_else(|| "nobody's: to compare with gpt2-xl".to_owned());
            rows.push([size.name.clone(), parameters, family.family.clone(), hub]);
        }
    }
    common::print(table::columns(&rows).trim_end())
}

fn config_text(asked: &str) -> Result<String> {
    if let Some(config) = sizes::config(asked)? {
        return Ok(format!("{config:#}\n"));
    }
    let path = Path::new(asked);
    let path = if path.is_dir() { path.join("config.json") } else { path.to_owned() };
    if !path.is_file() {
        bail!(
            "--config {asked}: neither a file nor a known size such as gpt2-xl or llama-3.2-1b; --list shows the sizes"
        );
    }
    fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
}

/// `1557611200` as `1,557,611,200`.
fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
