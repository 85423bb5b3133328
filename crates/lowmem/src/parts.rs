//! A checkpoint as an ordered list of parts, each placed when it is asked for.

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use tch::{Device, Kind, Tensor};

use crate::{
    Checkpoint, Dtype, Error, LoadOptions, LoadReport, Residency, Result, TensorInfo, available_memory,
    choose::Situation,
    compare::same_values,
    files::Files,
    nearest,
    place::{Placed, Placer},
    place_error::place_error,
    prefetch::Prefetcher,
    prepare_libtorch,
    read::read_rows,
};

/// One tensor that a part needs, by its name in the checkpoint and the shape it must have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorRequest {
    /// The name in the checkpoint.
    pub name: String,
    /// The shape it must have.
    pub shape: Vec<i64>,
    /// Another tensor of the parts that it is to be one with, see [`TensorRequest::tied_to`].
    pub tied_to: Option<String>,
}

impl TensorRequest {
    /// A request for the tensor `name` of that shape.
    pub fn new(name: impl Into<String>, shape: impl Into<Vec<i64>>) -> Self {
        Self { name: name.into(), shape: shape.into(), tied_to: None }
    }

    /// Asks for one tensor in memory where this one and `other`, of the same shape and requested too, have the same values
    /// in the dtype of the run. Where they differ each stays what it is, and the report says so: what Hugging Face does
    /// with tied weights of which a checkpoint holds both.
    #[must_use]
    pub fn tied_to(self, other: impl Into<String>) -> Self {
        Self { tied_to: Some(other.into()), ..self }
    }
}

/// Tensors that are needed together, such as one block of a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartRequest {
    /// What people call the part.
    pub label: String,
    /// Its tensors, in the order in which [`Parts::get`] returns them.
    pub tensors: Vec<TensorRequest>,
}

/// Tensors in the order of the parts that need them, placed as the [`Residency`] says.
///
/// `Parts` is [`Send`] and [`Sync`]; threads that ask at the same time wait for each other.
pub struct Parts {
    // Dropped first: its thread works on what is shared.
    prefetcher: Mutex<Option<Prefetcher>>,
    shared: Arc<Shared>,
}

/// What the prefetching thread needs too.
pub(crate) struct Shared {
    labels: Vec<String>,
    parts: Vec<Vec<Source>>,
    /// None for tensors that never were in a file.
    files: Option<Files>,
    options: LoadOptions,
    /// Bytes that streamed parts may hold at once.
    budget: u64,
    residency: Residency,
    dtype: Dtype,
    state: Mutex<State>,
    /// Held while tensors are placed, so that threads that ask for the same part do not place it twice.
    placing: Mutex<()>,
}

/// Where a tensor comes from. Tensors that share storage share a key.
#[derive(Clone)]
struct Source {
    key: usize,
    info: TensorInfo,
}

struct State {
    kept: HashMap<usize, Tensor>,
    report: LoadReport,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing in here is left half-changed by a panic elsewhere.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Parts {
    /// Checks every requested tensor against the checkpoint's index and prepares to place them. It reads no weight, except
    /// to compare tensors that are to be tied and lie in two places: up to the first difference, piece by piece.
    ///
    /// # Errors
    ///
    /// [`Error::MissingTensor`], [`Error::Misshapen`]; [`Error::Residency`] or [`Error::DtypeOnDevice`] where the options
    /// contradict each other; as [`Parts::get`] where weights are compared.
    pub fn new(checkpoint: &Checkpoint, parts: Vec<PartRequest>, options: &LoadOptions) -> Result<Self> {
        prepare_libtorch();
        let index = checkpoint.index();
        let mut keys: Vec<TensorInfo> = Vec::new();
        let mut tied = Vec::new();
        let mut labels = Vec::with_capacity(parts.len());
        let mut sources: Vec<Vec<Source>> = Vec::with_capacity(parts.len());
        let mut to_tie = Vec::new();
        for part in parts {
            let mut tensors = Vec::with_capacity(part.tensors.len());
            for request in part.tensors {
                let info = find(checkpoint, &request)?.clone();
                to_tie.extend(request.tied_to.map(|other| (request.name, other)));
                let key = keys.iter().position(|other| other.same_storage(&info)).unwrap_or_else(|| {
                    keys.push(info.clone());
                    keys.len() - 1
                });
                if let Some(first) = keys.get(key).filter(|first| first.name != info.name) {
                    tied.push((info.name.clone(), first.name.clone()));
                }
                tensors.push(Source { key, info });
            }
            labels.push(part.label);
            sources.push(tensors);
        }
        let on_disk = keys.iter().filter(|info| info.dtype.is_float()).max_by_key(|info| info.bytes());
        let on_disk = on_disk.map_or(Dtype::F32, |info| info.dtype);
        let dtype = options.dtype.resolve(on_disk, options.device);
        check_dtype(dtype, options.device)?;
        let files = Files::new(index, checkpoint.fetch());
        let (mut untied, mut compared) = (Vec::new(), 0);
        for (name, other) in to_tie {
            let source = |name: &str| sources.iter().flatten().find(|source| source.info.name == *name);
            let (Some(tensor), Some(first)) = (source(&name), source(&other)) else { continue };
            let (tensor, first) = (tensor.clone(), first.clone());
            if tensor.key != first.key {
                let (same, read) = same_values(&files, &first.info, &tensor.info, dtype)?;
                compared += read;
                if !same {
                    untied.push((name, other));
                    continue;
                }
                tied.push((name.clone(), other));
            }
            // One tensor under one name, so that whoever trains the model changes it once.
            sources.iter_mut().flatten().filter(|source| source.info.name == name).for_each(|tensor| {
                *tensor = first.clone();
            });
        }
        let used: HashSet<usize> = sources.iter().flatten().map(|source| source.key).collect();
        let keys: Vec<TensorInfo> =
            (0..).zip(keys).filter(|(key, _)| used.contains(key)).map(|(_, info)| info).collect();
        let available = available_memory();
        let situation = Situation {
            tensors: &keys,
            dtype,
            device: options.device,
            staging_bytes: options.staging_bytes,
            available,
        };
        let (residency, reason) = situation.choose(options.residency)?;
        let budget = options.budget_bytes.or(available.map(|available| available / 2)).unwrap_or(u64::MAX);
        let report = LoadReport {
            files: index.files.len(),
            tensors: keys.len(),
            residency,
            reason,
            dtype,
            tensors_placed: 0,
            bytes_read: compared,
            bytes_allocated: 0,
            staging_peak: 0,
            seconds: 0.0,
            ignored: Vec::new(),
            extra: Vec::new(),
            tied,
            untied,
        };
        let shared = Shared {
            labels,
            parts: sources,
            files: Some(files),
            options: options.clone(),
            budget,
            residency,
            dtype,
            state: Mutex::new(State { kept: HashMap::new(), report }),
            placing: Mutex::new(()),
        };
        Ok(Self { prefetcher: Mutex::new(None), shared: Arc::new(shared) })
    }

    /// Parts over tensors that are in memory already: for models that are made, not loaded. All must have one dtype and
    /// device.
    ///
    /// # Errors
    ///
    /// [`Error::MissingTensor`], [`Error::Misshapen`].
    pub fn from_tensors(tensors: &HashMap<String, Tensor>, parts: Vec<PartRequest>) -> Result<Self> {
        prepare_libtorch();
        let memory = PathBuf::from("(in memory)");
        let mut names: Vec<String> = Vec::new();
        let mut kept = HashMap::new();
        let mut labels = Vec::new();
        let mut sources = Vec::new();
        let (mut device, mut dtype) = (Device::Cpu, Dtype::F32);
        for part in parts {
            let mut list = Vec::new();
            for TensorRequest { name, shape, .. } in part.tensors {
                let Some(tensor) = tensors.get(&name) else {
                    let nearest = nearest(&name, tensors.keys().map(String::as_str));
                    return Err(Error::MissingTensor { checkpoint: memory, tensor: name, shape, nearest });
                };
                if tensor.size() != shape {
                    return Err(Error::Misshapen { file: memory, tensor: name, expected: shape, found: tensor.size() });
                }
                device = tensor.device();
                dtype = tensor.f_kind().ok().and_then(Dtype::from_kind).unwrap_or(dtype);
                let key = names.iter().position(|other| *other == name).unwrap_or_else(|| {
                    names.push(name.clone());
                    names.len() - 1
                });
                kept.insert(key, tensor.shallow_clone());
                list.push(Source {
                    key,
                    info: TensorInfo { name, dtype, shape, file: 0, offset: key as u64, strides: None },
                });
            }
            labels.push(part.label);
            sources.push(list);
        }
        let report = LoadReport {
            files: 0,
            tensors: names.len(),
            residency: Residency::Resident,
            reason: "the tensors are in memory already".into(),
            dtype,
            tensors_placed: names.len(),
            bytes_read: 0,
            bytes_allocated: 0,
            staging_peak: 0,
            seconds: 0.0,
            ignored: Vec::new(),
            extra: Vec::new(),
            tied: Vec::new(),
            untied: Vec::new(),
        };
        let shared = Shared {
            labels,
            parts: sources,
            files: None,
            options: LoadOptions { device, ..LoadOptions::default() },
            budget: u64::MAX,
            residency: Residency::Resident,
            dtype,
            state: Mutex::new(State { kept, report }),
            placing: Mutex::new(()),
        };
        Ok(Self { prefetcher: Mutex::new(None), shared: Arc::new(shared) })
    }

    /// How many parts there are.
    pub fn len(&self) -> usize {
        self.shared.parts.len()
    }

    /// Whether there is no part.
    pub fn is_empty(&self) -> bool {
        self.shared.parts.is_empty()
    }

    /// The labels of the parts.
    pub fn labels(&self) -> &[String] {
        &self.shared.labels
    }

    /// The device that tensors are placed on.
    pub fn device(&self) -> Device {
        self.shared.options.device
    }

    /// The dtype that tensors are placed in.
    pub fn dtype(&self) -> Dtype {
        self.shared.dtype
    }

    /// Where the weights live.
    pub fn residency(&self) -> Residency {
        self.shared.residency
    }

    /// What has been placed so far.
    pub fn report(&self) -> LoadReport {
        lock(&self.shared.state).report.clone()
    }

    /// Says in the report which tensors of the checkpoint are not used: `ignored` are known to be no weights, `extra` are not
    /// known.
    pub fn report_unused(&self, ignored: Vec<String>, extra: Vec<String>) {
        let mut state = lock(&self.shared.state);
        (state.report.ignored, state.report.extra) = (ignored, extra);
    }

    /// The tensors of `part` in the order in which they were requested, placing them if they are not.
    ///
    /// With [`Residency::Streamed`] the tensors live as long as the answer does, and `next`, the part that will be asked
    /// for after this one, is placed on a background thread meanwhile, provided that both fit the budget.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchPart`], [`Error::Shrunk`], [`Error::Io`], [`Error::Place`].
    pub fn get(&self, part: usize, next: Option<usize>) -> Result<Vec<Tensor>> {
        if self.shared.residency != Residency::Streamed {
            return self.shared.place_part(part);
        }
        let mut prefetcher = lock(&self.prefetcher);
        // A part nobody asked for after all is dropped here: its memory must be free before more is taken.
        let ready = prefetcher.as_mut().and_then(Prefetcher::take).filter(|(ready, _)| *ready == part);
        let tensors = match ready {
            Some((_, tensors)) => tensors?,
            None => self.shared.place_part(part)?,
        };
        if let Some(next) = next.filter(|&next| next != part && next < self.len())
            && self.shared.placed_bytes(part).saturating_add(self.shared.placed_bytes(next)) <= self.shared.budget
        {
            let prefetcher = prefetcher.get_or_insert_with(|| {
                let shared = Arc::clone(&self.shared);
                Prefetcher::new(move |part| shared.place_part(part))
            });
            prefetcher.begin(next);
        }
        Ok(tensors)
    }

    /// Rows of tensor number `tensor` of `part`, chosen by `indices` (Int64, any shape): what an embedding does.
    ///
    /// Unless the tensor has been placed already, only the chosen rows are read.
    /// Shape: the indices' shape, then the tensor's shape without its first dimension.
    ///
    /// # Errors
    ///
    /// As [`Parts::get`].
    pub fn rows(&self, part: usize, tensor: usize, indices: &Tensor) -> Result<Tensor> {
        let source = self.shared.source(part, tensor)?;
        let target = (self.shared.dtype, self.shared.options.device);
        let fail = |error| place_error(&source.info, target.0, target.1, error);
        let chosen = check_rows(&source.info, indices)?;
        let placed = lock(&self.shared.state).kept.get(&source.key).map(Tensor::shallow_clone);
        if let Some(table) = placed {
            let indices = indices.f_to_device(target.1).map_err(fail)?;
            return Tensor::f_embedding(&table, &indices, -1, false, false).map_err(fail);
        }
        let start = Instant::now();
        let info = &source.info;
        let Some(files) = &self.shared.files else {
            return Err(Error::NoSuchPart { part, parts: self.len() });
        };
        let (rows, read) = if info.strides.is_some() || self.shared.residency == Residency::Mapped && info.is_aligned()
        {
            let table = files.view(info)?;
            let gather = || Tensor::f_embedding(&table, &indices.f_to_device(Device::Cpu)?, -1, false, false);
            let rows = gather().map_err(fail)?;
            let read = rows.numel() as u64 * info.dtype.bytes();
            (rows, read)
        } else {
            self.read_rows(files, info, indices, &chosen)?
        };
        let rows = rows.f_to_device(target.1).and_then(|rows| rows.f_to_kind(target.0.kind())).map_err(fail)?;
        let mut state = lock(&self.shared.state);
        state.report.bytes_read += read;
        state.report.seconds += start.elapsed().as_secs_f64();
        Ok(rows)
    }

    /// The rows as they are on disk, read one by one: a mapping of a file larger than memory may be refused.
    fn read_rows(&self, files: &Files, info: &TensorInfo, indices: &Tensor, chosen: &[u64]) -> Result<(Tensor, u64)> {
        let fail = |error| place_error(info, info.dtype, Device::Cpu, error);
        let (count, inner) = info.shape.split_first().map_or((1, &[][..]), |(&count, inner)| (count, inner));
        let row_bytes = info.bytes() / count.max(1) as u64;
        let bytes = row_bytes * chosen.len() as u64;
        let file = files.open(info)?;
        let buffer = read_rows(&file, info.offset, row_bytes, chosen)?.map_err(fail)?;
        let shape = [&indices.size()[..], inner].concat();
        let rows = buffer.bytes(0, bytes).and_then(|rows| rows.f_view_dtype(info.dtype.kind())?.f_view(&shape[..]));
        Ok((rows.map_err(fail)?, bytes))
    }

    /// One tensor by its name in the checkpoint, placed and kept whatever the residency: training changes it in place.
    ///
    /// # Errors
    ///
    /// As [`Parts::get`]; [`Error::MissingTensor`] when no part has that name.
    pub fn keep(&self, name: &str) -> Result<Tensor> {
        let (source, tensor) = self.placed(name)?;
        // Another thread may have been faster, and its tensor is what everybody has by now.
        let mut state = lock(&self.shared.state);
        Ok(state.kept.entry(source.key).or_insert(tensor).shallow_clone())
    }

    /// As [`Parts::keep`], a leaf that gradients are collected for. It takes the place of the tensor that was given out
    /// before and shares its storage, but is another: whoever is computing with the old one goes on without gradients.
    ///
    /// # Errors
    ///
    /// As [`Parts::keep`].
    pub fn leaf(&self, name: &str) -> Result<Tensor> {
        let (source, tensor) = self.placed(name)?;
        let fail = |error| place_error(&source.info, self.shared.dtype, self.shared.options.device, error);
        let mut state = lock(&self.shared.state);
        let held = state.kept.entry(source.key).or_insert(tensor);
        if !held.requires_grad() {
            *held = held.f_detach().and_then(|alias| alias.f_set_requires_grad(true)).map_err(fail)?;
        }
        Ok(held.shallow_clone())
    }

    /// One tensor by its name, placed.
    fn placed(&self, name: &str) -> Result<(&Source, Tensor)> {
        let source = self.shared.parts.iter().flatten().find(|source| source.info.name == name);
        let Some(source) = source else {
            let names = self.shared.parts.iter().flatten().map(|source| source.info.name.as_str());
            let nearest = nearest(name, names);
            return Err(Error::MissingTensor {
                checkpoint: PathBuf::from("(parts)"),
                tensor: name.to_owned(),
                shape: Vec::new(),
                nearest,
            });
        };
        let mut tensors = self.shared.place(&[source])?;
        let tensor = tensors.pop().ok_or(Error::NoSuchPart { part: 0, parts: self.len() })?;
        Ok((source, tensor))
    }

    /// The names of the tensors of `part`. One that is tied has the name of the other.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchPart`].
    pub fn names(&self, part: usize) -> Result<Vec<&str>> {
        Ok(self.shared.sources(part)?.iter().map(|source| source.info.name.as_str()).collect())
    }

    /// Places these parts now, telling the progress of the options, instead of when they are first asked for. Does nothing
    /// for mapped and streamed weights, which have nothing to wait for.
    ///
    /// # Errors
    ///
    /// As [`Parts::get`].
    pub fn preload(&self, parts: impl IntoIterator<Item = usize>) -> Result<()> {
        if self.shared.residency != Residency::Resident {
            return Ok(());
        }
        let mut sources: Vec<&Source> = Vec::new();
        for part in parts {
            sources.extend(self.shared.sources(part)?);
        }
        let mut seen = HashSet::new();
        let kept: HashSet<usize> = lock(&self.shared.state).kept.keys().copied().collect();
        let new = sources.iter().filter(|source| !kept.contains(&source.key) && seen.insert(source.key));
        let bytes = new.map(|source| source.info.bytes()).sum();
        let progress = &self.shared.options.progress;
        progress.begin(bytes);
        self.shared.place(&sources)?;
        progress.end();
        Ok(())
    }
}

impl Shared {
    fn sources(&self, part: usize) -> Result<&[Source]> {
        self.parts.get(part).map(Vec::as_slice).ok_or(Error::NoSuchPart { part, parts: self.parts.len() })
    }

    fn source(&self, part: usize, tensor: usize) -> Result<&Source> {
        self.sources(part)?.get(tensor).ok_or(Error::NoSuchPart { part, parts: self.parts.len() })
    }

    pub(crate) fn place_part(&self, part: usize) -> Result<Vec<Tensor>> {
        self.place(&self.sources(part)?.iter().collect::<Vec<_>>())
    }

    /// Bytes that a part takes once placed.
    fn placed_bytes(&self, part: usize) -> u64 {
        let sources = self.parts.get(part).map(Vec::as_slice).unwrap_or_default();
        sources.iter().map(|source| source.info.elements() * self.dtype.bytes()).sum()
    }

    /// The tensors of these sources, placing those that are not.
    fn place(&self, sources: &[&Source]) -> Result<Vec<Tensor>> {
        let _placing = lock(&self.placing);
        let mut tensors: HashMap<usize, Tensor> = HashMap::new();
        let mut missing: Vec<&Source> = Vec::new();
        {
            let state = lock(&self.state);
            for &source in sources {
                if let Some(tensor) = state.kept.get(&source.key) {
                    tensors.insert(source.key, tensor.shallow_clone());
                } else if !missing.iter().any(|other| other.key == source.key) {
                    missing.push(source);
                }
            }
        }
        if let Some(files) = self.files.as_ref().filter(|_| !missing.is_empty()) {
            let start = Instant::now();
            let infos: Vec<&TensorInfo> = missing.iter().map(|source| &source.info).collect();
            let placed = self.place_new(files, &infos)?;
            let mut state = lock(&self.state);
            state.report.tensors_placed += placed.tensors.len();
            state.report.bytes_read += placed.read;
            state.report.bytes_allocated += placed.allocated;
            state.report.staging_peak = state.report.staging_peak.max(placed.staging);
            state.report.seconds += start.elapsed().as_secs_f64();
            for (source, tensor) in missing.iter().zip(placed.tensors) {
                if self.residency != Residency::Streamed {
                    state.kept.insert(source.key, tensor.shallow_clone());
                }
                tensors.insert(source.key, tensor);
            }
        }
        let tensor = |source: &&Source| {
            let tensor = tensors.get(&source.key).map(Tensor::shallow_clone);
            tensor.ok_or_else(|| Error::NotFound { path: PathBuf::from(&source.info.name) })
        };
        sources.iter().map(tensor).collect()
    }

    fn place_new(&self, files: &Files, infos: &[&TensorInfo]) -> Result<Placed> {
        let progress = &*self.options.progress;
        if self.residency != Residency::Mapped {
            let (device, staging_bytes) = (self.options.device, self.options.staging_bytes);
            let passing = self.residency == Residency::Streamed;
            return Placer { files, dtype: self.dtype, device, staging_bytes, passing, progress }.place(infos);
        }
        let mut placed = Placed::default();
        for info in infos {
            placed.tensors.push(files.view(info)?);
            placed.read += info.bytes();
            placed.allocated += if info.is_aligned() { 0 } else { info.bytes() };
            progress.placed(&info.name, info.bytes());
        }
        Ok(placed)
    }
}

/// The indices of rows, all of which the table has.
fn check_rows(info: &TensorInfo, indices: &Tensor) -> Result<Vec<u64>> {
    let flat = || Vec::<i64>::try_from(indices.f_to_device(Device::Cpu)?.f_to_kind(Kind::Int64)?.f_flatten(0, -1)?);
    let chosen = flat().map_err(|error| place_error(info, Dtype::I64, Device::Cpu, error))?;
    let rows = info.shape.first().copied().unwrap_or(0);
    let row = |row: i64| {
        let known = u64::try_from(row).ok().filter(|_| row < rows);
        known.ok_or_else(|| Error::RowOutOfRange { tensor: info.name.clone(), row, rows })
    };
    chosen.into_iter().map(row).collect()
}

fn find<'a>(checkpoint: &'a Checkpoint, request: &TensorRequest) -> Result<&'a TensorInfo> {
    let index = checkpoint.index();
    let Some(info) = index.get(&request.name) else {
        return Err(Error::MissingTensor {
            checkpoint: checkpoint.path().to_owned(),
            tensor: request.name.clone(),
            shape: request.shape.clone(),
            nearest: nearest(&request.name, index.tensors.keys().map(String::as_str)),
        });
    };
    if info.shape != request.shape {
        let file = index.files.get(info.file).map_or_else(|| checkpoint.path().to_owned(), |file| file.path.clone());
        let (expected, found) = (request.shape.clone(), info.shape.clone());
        return Err(Error::Misshapen { file, tensor: request.name.clone(), expected, found });
    }
    Ok(info)
}

fn check_dtype(dtype: Dtype, device: Device) -> Result<()> {
    let problem = match (dtype, device) {
        (Dtype::F16, Device::Cpu) => "half precision runs at a hundredth of the speed of f32 on a CPU; use f32 or bf16",
        (dtype, _) if !dtype.is_float() => "weights are floating-point; use f32, bf16 or f16",
        _ => return Ok(()),
    };
    Err(Error::DtypeOnDevice { dtype, device: format!("{device:?}"), problem })
}
