//! Writes a checkpoint of any size with random weights, for measuring.

mod common;

use std::{
    fs::{self, File, OpenOptions},
    io::{Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, ValueEnum};
use indicatif::ProgressBar;
use serde_json::{Map, Value, json};
use transformer_utils::{
    lowmem::Dtype,
    models::{Config, Initial, Model, Random},
};

use common::{output, progress, table};

/// Write a checkpoint with random weights.
///
/// The weights are drawn as a fresh model's are: normal with the config's initializer_range, projections into the residual
/// stream smaller by sqrt(2 layers); norms and biases vary a little, so that a mix-up shows. The same flags give the same bytes
/// on every machine. Memory stays small whatever the size; the folder appears when it is complete.
#[derive(Parser)]
struct Flags {
    /// A size that is known by name (gpt2, gpt2-medium, gpt2-large, gpt2-xl, gpt-neo-125m, gpt-neo-1.3B, gpt-neo-2.7B), or the
    /// path of a config.json.
    #[arg(long, value_name = "NAME|PATH")]
    config: String,

    /// Folder to make.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,

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

/// A published size: name, family, blocks, heads, width.
struct Size(&'static str, Kind, usize, usize, usize);

#[derive(Clone, Copy)]
enum Kind {
    Gpt2,
    GptNeo,
}

const SIZES: [Size; 7] = [
    Size("gpt2", Kind::Gpt2, 12, 12, 768),
    Size("gpt2-medium", Kind::Gpt2, 24, 16, 1024),
    Size("gpt2-large", Kind::Gpt2, 36, 20, 1280),
    Size("gpt2-xl", Kind::Gpt2, 48, 25, 1600),
    Size("gpt-neo-125m", Kind::GptNeo, 12, 12, 768),
    Size("gpt-neo-1.3B", Kind::GptNeo, 24, 16, 2048),
    Size("gpt-neo-2.7B", Kind::GptNeo, 32, 20, 2560),
];

impl Size {
    /// The `config.json` of this size.
    fn json(&self) -> Value {
        let &Self(_, kind, layers, heads, width) = self;
        match kind {
            Kind::Gpt2 => json!({
                "model_type": "gpt2",
                "architectures": ["GPT2LMHeadModel"],
                "activation_function": "gelu_new",
                "attn_pdrop": 0.1,
                "bos_token_id": 50256,
                "embd_pdrop": 0.1,
                "eos_token_id": 50256,
                "initializer_range": 0.02,
                "layer_norm_epsilon": 1e-5,
                "n_ctx": 1024,
                "n_embd": width,
                "n_head": heads,
                "n_inner": null,
                "n_layer": layers,
                "n_positions": 1024,
                "reorder_and_upcast_attn": false,
                "resid_pdrop": 0.1,
                "scale_attn_by_inverse_layer_idx": false,
                "scale_attn_weights": true,
                "tie_word_embeddings": true,
                "use_cache": true,
                "vocab_size": 50257,
            }),
            Kind::GptNeo => json!({
                "model_type": "gpt_neo",
                "architectures": ["GPTNeoForCausalLM"],
                "activation_function": "gelu_new",
                "attention_dropout": 0,
                "attention_layers": (0..layers).map(|layer| ["global", "local"][layer % 2]).collect::<Vec<_>>(),
                "attention_types": [[["global", "local"], layers / 2]],
                "bos_token_id": 50256,
                "embed_dropout": 0,
                "eos_token_id": 50256,
                "hidden_size": width,
                "initializer_range": 0.02,
                "intermediate_size": null,
                "layer_norm_epsilon": 1e-5,
                "max_position_embeddings": 2048,
                "num_heads": heads,
                "num_layers": layers,
                "resid_dropout": 0,
                "tie_word_embeddings": true,
                "use_cache": true,
                "vocab_size": 50257,
                "window_size": 256,
            }),
        }
    }
}

fn main() -> ExitCode {
    common::main(run)
}

fn run(flags: Flags) -> Result<()> {
    let start = Instant::now();
    let Format::Safetensors = flags.format;
    let config_text = config_text(&flags.config)?;
    let config = Config::from_json(&config_text).with_context(|| flags.config.clone())?;
    if let Some(tokenizer) = &flags.tokenizer {
        ensure!(tokenizer.is_file(), "--tokenizer {}: no such file", tokenizer.display());
    }
    let out = &flags.out;
    let taken = out.exists() && fs::read_dir(out).map_or(true, |mut inside| inside.next().is_some());
    ensure!(!taken, "{}: is there already; choose another folder or remove it", out.display());
    let parent = output::folder_of(out);
    ensure!(parent.is_dir(), "{}: the folder {} does not exist", out.display(), parent.display());

    let tensors = tensors(&config, &flags)?;
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
        "{}: {} parameters, {} in {} {}",
        flags.config,
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
    write_weights(folder.path(), &tensors, &flags, bytes)?;
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

fn config_text(asked: &str) -> Result<String> {
    if let Some(size) = SIZES.iter().find(|size| size.0 == asked) {
        return Ok(format!("{:#}\n", size.json()));
    }
    let path = Path::new(asked);
    let path = if path.is_dir() { path.join("config.json") } else { path.to_owned() };
    if !path.is_file() {
        let names = SIZES.map(|size| size.0).join(", ");
        bail!("--config {asked}: neither a file nor a known size; the sizes are {names}");
    }
    fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
}

/// How a tensor's values are distributed.
#[derive(Clone, Copy)]
struct Normal {
    mean: f64,
    deviation: f64,
}

/// One tensor to be written.
struct Planned {
    name: String,
    shape: Vec<i64>,
    elements: u64,
    normal: Normal,
    random: Random,
}

fn tensors(config: &Config, flags: &Flags) -> Result<Vec<Planned>> {
    let normal = |name: &str, shape: &[i64]| match config.initial(name, shape) {
        Initial::Norm { value } => Normal { mean: value, deviation: 0.1 },
        Initial::Normal { deviation } => Normal { mean: 0.0, deviation },
        _ => Normal { mean: 0.0, deviation: 0.02 },
    };
    let planned = |(name, shape): (String, Vec<i64>)| Planned {
        elements: shape.iter().map(|&size| size as u64).product(),
        normal: normal(&name, &shape),
        random: Random::named(flags.seed, &name),
        name,
        shape,
    };
    Ok(Model::tensor_shapes(config)?.into_iter().map(planned).collect())
}

/// Elements that one thread makes and writes at a time.
const CHUNK: u64 = 1 << 20;

/// A stretch of one tensor and its place in a file.
struct Chunk<'a> {
    tensor: &'a Planned,
    first: u64,
    count: u64,
    file: usize,
    offset: u64,
}

fn write_weights(folder: &Path, tensors: &[Planned], flags: &Flags, bytes: u64) -> Result<()> {
    let dtype = flags.dtype.dtype();
    let mut paths = Vec::new();
    let mut chunks = Vec::new();
    let mut weight_map = Map::new();
    for (number, shard) in split(tensors, flags.shards).into_iter().enumerate() {
        let name = match flags.shards {
            1 => "model.safetensors".to_owned(),
            shards => format!("model-{:05}-of-{shards:05}.safetensors", number + 1),
        };
        let path = folder.join(&name);
        let header = header(shard, dtype);
        let mut file = File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
        file.write_all(&header).with_context(|| format!("cannot write {}", path.display()))?;
        let mut offset = header.len() as u64;
        for tensor in shard {
            weight_map.insert(tensor.name.clone(), name.clone().into());
            let mut first = 0;
            while first < tensor.elements {
                let count = CHUNK.min(tensor.elements - first);
                chunks.push(Chunk { tensor, first, count, file: paths.len(), offset });
                first += count;
                offset += count * dtype.bytes();
            }
        }
        paths.push(path);
    }
    if flags.shards > 1 {
        let index = json!({ "metadata": { "total_size": bytes }, "weight_map": weight_map });
        output::write_json(&folder.join("model.safetensors.index.json"), &index)?;
    }
    let bar = progress::bytes(bytes);
    let next = AtomicUsize::new(0);
    let failure = Mutex::new(None);
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                if let Err(error) = write_chunks(&chunks, &next, &paths, flags.dtype, &bar) {
                    *failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                    // The others need not go on.
                    next.store(chunks.len(), Ordering::Relaxed);
                }
            });
        }
    });
    bar.finish_and_clear();
    failure.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}

/// Takes chunks until there are none left. What a chunk holds does not depend on who writes it.
fn write_chunks(
    chunks: &[Chunk],
    next: &AtomicUsize,
    paths: &[PathBuf],
    dtype: StoredDtype,
    bar: &ProgressBar,
) -> Result<()> {
    let (mut values, mut bytes) = (Vec::new(), Vec::new());
    let mut open: Option<(usize, File)> = None;
    while let Some(chunk) = chunks.get(next.fetch_add(1, Ordering::Relaxed)) {
        fill(chunk, dtype, &mut values, &mut bytes);
        let path = &paths[chunk.file];
        let context = || format!("cannot write {}", path.display());
        let mut file = match open.take() {
            Some((number, file)) if number == chunk.file => file,
            _ => OpenOptions::new().write(true).open(path).with_context(context)?,
        };
        file.seek(SeekFrom::Start(chunk.offset)).with_context(context)?;
        file.write_all(&bytes).with_context(context)?;
        bar.inc(bytes.len() as u64);
        open = Some((chunk.file, file));
    }
    Ok(())
}

/// The bytes of a chunk's values.
fn fill(chunk: &Chunk, dtype: StoredDtype, values: &mut Vec<f32>, bytes: &mut Vec<u8>) {
    bytes.clear();
    let Planned { normal, random, .. } = chunk.tensor;
    values.resize(chunk.count as usize, 0.0);
    random.fill_normal(normal.mean, normal.deviation, chunk.first, values);
    let values = values.iter().copied();
    match dtype {
        StoredDtype::F32 => bytes.extend(values.flat_map(f32::to_le_bytes)),
        StoredDtype::Bf16 => bytes.extend(values.flat_map(|value| half::bf16::from_f32(value).to_le_bytes())),
        StoredDtype::F16 => bytes.extend(values.flat_map(|value| half::f16::from_f32(value).to_le_bytes())),
    }
}

/// `shards` stretches of about equal bytes, none empty.
fn split(tensors: &[Planned], shards: usize) -> Vec<&[Planned]> {
    let total: u64 = tensors.iter().map(|tensor| tensor.elements).sum();
    let mut rest = tensors;
    let mut done = 0;
    let mut stretches = Vec::with_capacity(shards);
    for shard in 1..=shards {
        let most = rest.len() - (shards - shard);
        let mut count = 0;
        while count < most && (count == 0 || shard == shards || done < total * shard as u64 / shards as u64) {
            done += rest[count].elements;
            count += 1;
        }
        let (stretch, others) = rest.split_at(count);
        stretches.push(stretch);
        rest = others;
    }
    stretches
}

/// A safetensors header with its length, padded so that the data are aligned.
fn header(tensors: &[Planned], dtype: Dtype) -> Vec<u8> {
    let mut entries = Map::new();
    entries.insert("__metadata__".into(), json!({ "format": "pt" }));
    let mut begin = 0;
    for tensor in tensors {
        let end = begin + tensor.elements * dtype.bytes();
        let entry = json!({ "dtype": dtype.safetensors_name(), "shape": tensor.shape, "data_offsets": [begin, end] });
        entries.insert(tensor.name.clone(), entry);
        begin = end;
    }
    let mut text = Value::Object(entries).to_string().into_bytes();
    // The length takes eight bytes before it.
    text.resize((text.len() + 8).next_multiple_of(64) - 8, b' ');
    let mut header = (text.len() as u64).to_le_bytes().to_vec();
    header.extend(text);
    header
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
