//! Random weights of a checkpoint: which tensors, and their bytes, written by all processors at once.

use std::{
    fs::{File, OpenOptions},
    io::{Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use anyhow::{Context, Result};
use indicatif::ProgressBar;
use serde_json::{Map, Value, json};
use transformer_utils::{
    lowmem::Dtype,
    models::{Config, Initial, Model, Random},
};

use crate::{
    StoredDtype,
    common::{output, progress},
};

/// How a tensor's values are distributed.
#[derive(Clone, Copy)]
struct Normal {
    mean: f64,
    deviation: f64,
}

/// One tensor to be written.
pub struct Planned {
    name: String,
    shape: Vec<i64>,
    /// How many values it has.
    pub elements: u64,
    normal: Normal,
    random: Random,
}

/// How many parameters a model has, tied matrices once.
pub fn parameters(config: &Config) -> Result<u64> {
    let shapes = Model::tensor_shapes(config)?;
    Ok(shapes.iter().map(|(_, shape)| shape.iter().product::<i64>() as u64).sum())
}

/// The tensors of a model.
pub fn plan(config: &Config, seed: u64) -> Result<Vec<Planned>> {
    let normal = |name: &str, shape: &[i64]| match config.initial(name, shape) {
        Initial::Norm { value } => Normal { mean: value, deviation: 0.1 },
        Initial::Normal { deviation } => Normal { mean: 0.0, deviation },
        _ => Normal { mean: 0.0, deviation: 0.02 },
    };
    let planned = |(name, shape): (String, Vec<i64>)| Planned {
        elements: shape.iter().map(|&size| size as u64).product(),
        normal: normal(&name, &shape),
        random: Random::named(seed, &name),
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

/// Writes the weight files into a folder, and their index where there are several.
pub fn write(folder: &Path, tensors: &[Planned], stored: StoredDtype, shards: usize) -> Result<()> {
    let dtype = stored.dtype();
    let bytes = tensors.iter().map(|tensor| tensor.elements).sum::<u64>() * dtype.bytes();
    let mut paths = Vec::new();
    let mut chunks = Vec::new();
    let mut weight_map = Map::new();
    for (number, shard) in split(tensors, shards).into_iter().enumerate() {
        let name = match shards {
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
    if shards > 1 {
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
                if let Err(error) = write_chunks(&chunks, &next, &paths, stored, &bar) {
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
