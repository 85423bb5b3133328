//! A checkpoint as an ordered list of parts, each placed when it is asked for.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::Instant,
};

use tch::{Device, Tensor};

use crate::{
    Checkpoint, Dtype, Error, LoadOptions, LoadReport, Residency, Result, TensorInfo, nearest,
    place::{Mappings, place_error},
};

/// One tensor that a part needs, by its name in the checkpoint and the shape it must have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorRequest {
    /// The name in the checkpoint.
    pub name: String,
    /// The shape it must have.
    pub shape: Vec<i64>,
}

impl TensorRequest {
    /// A request for the tensor `name` of that shape.
    pub fn new(name: impl Into<String>, shape: impl Into<Vec<i64>>) -> Self {
        Self { name: name.into(), shape: shape.into() }
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
    shared: Arc<Shared>,
    prefetched: Mutex<Option<Prefetch>>,
}

struct Prefetch {
    part: usize,
    worker: JoinHandle<Result<Vec<Tensor>>>,
}

struct Shared {
    labels: Vec<String>,
    parts: Vec<Vec<Source>>,
    mappings: Option<Mappings>,
    options: LoadOptions,
    residency: Residency,
    dtype: Dtype,
    state: Mutex<State>,
}

/// Where a tensor comes from. Tensors that share storage share a key.
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
    /// Checks every requested tensor against the checkpoint's index and prepares to place them; reads no weight.
    ///
    /// # Errors
    ///
    /// [`Error::MissingTensor`], [`Error::Misshapen`]; [`Error::Residency`] or [`Error::DtypeOnDevice`] where the options
    /// contradict each other.
    pub fn new(checkpoint: &Checkpoint, parts: Vec<PartRequest>, options: &LoadOptions) -> Result<Self> {
        let index = checkpoint.index();
        let mut keys: Vec<TensorInfo> = Vec::new();
        let mut tied = Vec::new();
        let mut labels = Vec::with_capacity(parts.len());
        let mut sources = Vec::with_capacity(parts.len());
        for part in parts {
            let mut tensors = Vec::with_capacity(part.tensors.len());
            for request in part.tensors {
                let info = find(checkpoint, &request)?.clone();
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
        let mappable = options.device == Device::Cpu && keys.iter().all(|info| info.dtype == dtype);
        let residency = match options.residency {
            Residency::Auto if mappable => Residency::Mapped,
            Residency::Auto => Residency::Resident,
            Residency::Mapped if !mappable => {
                let other = keys.iter().find(|info| info.dtype != dtype);
                return Err(Error::Residency {
                    residency: "mapped",
                    problem: match other {
                        Some(info) if options.device == Device::Cpu => format!(
                            "tensor {} is {} on disk and the run computes in {dtype}; use --residency resident, or --dtype {}",
                            info.name, info.dtype, info.dtype
                        ),
                        _ => format!("{:?} cannot read a mapped file; use --residency resident", options.device),
                    },
                });
            }
            chosen => chosen,
        };
        let report = LoadReport {
            files: index.files.len(),
            tensors: keys.len(),
            residency,
            dtype,
            tensors_placed: 0,
            bytes_read: 0,
            bytes_allocated: 0,
            staging_peak: 0,
            seconds: 0.0,
            ignored: Vec::new(),
            tied,
        };
        let shared = Shared {
            labels,
            parts: sources,
            mappings: Some(Mappings::new(index)),
            options: options.clone(),
            residency,
            dtype,
            state: Mutex::new(State { kept: HashMap::new(), report }),
        };
        Ok(Self { shared: Arc::new(shared), prefetched: Mutex::new(None) })
    }

    /// Parts over tensors that are in memory already: for models that are made, not loaded. All must have one dtype and
    /// device.
    ///
    /// # Errors
    ///
    /// [`Error::MissingTensor`], [`Error::Misshapen`].
    pub fn from_tensors(tensors: &HashMap<String, Tensor>, parts: Vec<PartRequest>) -> Result<Self> {
        let memory = PathBuf::from("(in memory)");
        let mut names: Vec<String> = Vec::new();
        let mut kept = HashMap::new();
        let mut labels = Vec::new();
        let mut sources = Vec::new();
        let (mut device, mut dtype) = (Device::Cpu, Dtype::F32);
        for part in parts {
            let mut list = Vec::new();
            for TensorRequest { name, shape } in part.tensors {
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
            dtype,
            tensors_placed: names.len(),
            bytes_read: 0,
            bytes_allocated: 0,
            staging_peak: 0,
            seconds: 0.0,
            ignored: Vec::new(),
            tied: Vec::new(),
        };
        let shared = Shared {
            labels,
            parts: sources,
            mappings: None,
            options: LoadOptions { device, ..LoadOptions::default() },
            residency: Residency::Resident,
            dtype,
            state: Mutex::new(State { kept, report }),
        };
        Ok(Self { shared: Arc::new(shared), prefetched: Mutex::new(None) })
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

    /// Says in the report that these tensors of the checkpoint are not used.
    pub fn report_ignored(&self, names: Vec<String>) {
        lock(&self.shared.state).report.ignored = names;
    }

    /// The tensors of `part` in the order in which they were requested, placing them if they are not.
    ///
    /// With [`Residency::Streamed`] the tensors live as long as the answer does, and `next`, the part that will be asked
    /// for after this one, is placed on a background thread meanwhile.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchPart`], [`Error::Shrunk`], [`Error::Io`], [`Error::Place`].
    pub fn get(&self, part: usize, next: Option<usize>) -> Result<Vec<Tensor>> {
        if self.shared.residency != Residency::Streamed {
            return self.shared.place_part(part);
        }
        let mut prefetched = lock(&self.prefetched);
        let ready = match prefetched.take() {
            Some(prefetch) if prefetch.part == part => prefetch.worker.join().ok(),
            // A part nobody asked for after all: its memory must be free before more is taken.
            Some(prefetch) => {
                drop(prefetch.worker.join());
                None
            }
            None => None,
        };
        let tensors = ready.unwrap_or_else(|| self.shared.place_part(part))?;
        if let Some(next) = next.filter(|&next| next != part && next < self.len()) {
            let shared = Arc::clone(&self.shared);
            *prefetched = Some(Prefetch { part: next, worker: std::thread::spawn(move || shared.place_part(next)) });
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
        let placed = lock(&self.shared.state).kept.get(&source.key).map(Tensor::shallow_clone);
        if let Some(table) = placed {
            let indices = indices.f_to_device(target.1).map_err(fail)?;
            return Tensor::f_embedding(&table, &indices, -1, false, false).map_err(fail);
        }
        let start = Instant::now();
        let table = self.shared.mapped(source)?;
        let gather = || {
            let indices = indices.f_to_device(Device::Cpu)?;
            let rows = Tensor::f_embedding(&table, &indices, -1, false, false)?;
            rows.f_to_device(target.1)?.f_to_kind(target.0.kind())
        };
        let rows = gather().map_err(fail)?;
        let row_bytes = source.info.bytes() / source.info.shape.first().map_or(1, |&rows| rows.max(1) as u64);
        let mut state = lock(&self.shared.state);
        state.report.bytes_read += row_bytes * indices.numel() as u64;
        state.report.seconds += start.elapsed().as_secs_f64();
        Ok(rows)
    }

    /// One tensor by its name in the checkpoint, placed and kept whatever the residency: training changes it in place.
    ///
    /// # Errors
    ///
    /// As [`Parts::get`]; [`Error::MissingTensor`] when no part has that name.
    pub fn keep(&self, name: &str) -> Result<Tensor> {
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
        let tensor = self.shared.place(source)?;
        lock(&self.shared.state).kept.insert(source.key, tensor.shallow_clone());
        Ok(tensor)
    }

    /// The names of the tensors of `part`.
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
        let parts: Vec<usize> = parts.into_iter().collect();
        let mut bytes = 0;
        for &part in &parts {
            bytes += self.shared.sources(part)?.iter().map(|source| source.info.bytes()).sum::<u64>();
        }
        let progress = &self.shared.options.progress;
        progress.begin(bytes);
        for part in parts {
            self.shared.place_part(part)?;
        }
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

    fn place_part(&self, part: usize) -> Result<Vec<Tensor>> {
        self.sources(part)?.iter().map(|source| self.place(source)).collect()
    }

    fn mapped(&self, source: &Source) -> Result<Tensor> {
        match &self.mappings {
            Some(mappings) => mappings.view(&source.info),
            None => Err(Error::NotFound { path: PathBuf::from("(in memory)") }),
        }
    }

    fn place(&self, source: &Source) -> Result<Tensor> {
        if let Some(tensor) = lock(&self.state).kept.get(&source.key) {
            return Ok(tensor.shallow_clone());
        }
        let start = Instant::now();
        let view = self.mapped(source)?;
        let device = self.options.device;
        let (tensor, allocated) = if self.residency == Residency::Mapped {
            (view, 0)
        } else {
            let copy = || view.f_to_device_(device, self.dtype.kind(), false, true);
            let tensor = copy().map_err(|error| place_error(&source.info, self.dtype, device, error))?;
            (tensor, source.info.elements() * self.dtype.bytes())
        };
        let mut state = lock(&self.state);
        if self.residency != Residency::Streamed {
            state.kept.insert(source.key, tensor.shallow_clone());
        }
        state.report.tensors_placed += 1;
        state.report.bytes_read += source.info.bytes();
        state.report.bytes_allocated += allocated;
        state.report.seconds += start.elapsed().as_secs_f64();
        drop(state);
        self.options.progress.placed(&source.info.name, source.info.bytes());
        Ok(tensor)
    }
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
