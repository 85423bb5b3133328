//! How tensors are to be placed.

use std::{fmt, str::FromStr, sync::Arc};

use tch::Device;

use crate::{Dtype, NoProgress, Progress};

/// Where the weights live while a model runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Residency {
    /// Mapped where the dtype on disk is the dtype of the run on a CPU, resident otherwise; streamed where the weights
    /// exceed the available memory. [`LoadReport::reason`](crate::LoadReport::reason) says why.
    #[default]
    Auto,
    /// Views of a private mapping of the file. Nothing is copied; the system reads pages when they are touched.
    Mapped,
    /// Converted or moved when first asked for, then kept.
    Resident,
    /// Placed when asked for and dropped after use, the next part being prefetched. For models larger than memory.
    Streamed,
}

impl Residency {
    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Mapped => "mapped",
            Self::Resident => "resident",
            Self::Streamed => "streamed",
        }
    }
}

impl fmt::Display for Residency {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl FromStr for Residency {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let all = [Self::Auto, Self::Mapped, Self::Resident, Self::Streamed];
        let found = all.into_iter().find(|residency| residency.name() == name);
        found.ok_or_else(|| format!("unknown residency {name:?}; known: auto, mapped, resident, streamed"))
    }
}

/// The dtype a run computes in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum DtypeChoice {
    /// The dtype on disk, except that f16 and f64 become f32 on a CPU: half precision runs at a hundredth of the speed
    /// there.
    #[default]
    Auto,
    /// This one.
    Fixed(Dtype),
}

impl DtypeChoice {
    /// The dtype for weights stored as `on_disk` and computed on `device`.
    pub fn resolve(self, on_disk: Dtype, device: Device) -> Dtype {
        match (self, on_disk, device) {
            (Self::Fixed(dtype), _, _) => dtype,
            (Self::Auto, Dtype::F16, Device::Cpu) | (Self::Auto, Dtype::F64, _) => Dtype::F32,
            (Self::Auto, on_disk, _) if on_disk.is_float() => on_disk,
            (Self::Auto, _, _) => Dtype::F32,
        }
    }
}

impl From<Dtype> for DtypeChoice {
    fn from(dtype: Dtype) -> Self {
        Self::Fixed(dtype)
    }
}

impl FromStr for DtypeChoice {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        if name == "auto" { Ok(Self::Auto) } else { Ok(Self::Fixed(name.parse()?)) }
    }
}

/// What becomes of a checkpoint that holds tensors which no part of a model asks for, such as the `score.weight` of a
/// fine-tuned classifier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExtraTensors {
    /// It opens, and [`LoadReport::extra`](crate::LoadReport::extra) names them.
    #[default]
    Report,
    /// It is refused: [`Error::ExtraTensors`](crate::Error::ExtraTensors).
    Refuse,
}

/// How to place the tensors of a checkpoint.
#[derive(Clone)]
#[non_exhaustive]
pub struct LoadOptions {
    /// The device the run computes on. [`cuda_if_available`](crate::cuda_if_available) finds one.
    pub device: Device,
    /// The dtype the run computes in.
    pub dtype: DtypeChoice,
    /// Where the weights live.
    pub residency: Residency,
    /// Most bytes of the buffers, taken together, through which converted or moved tensors pass.
    pub staging_bytes: u64,
    /// Most bytes of weights that [`Residency::Streamed`] holds at once: of the part in use and the one prefetched. A
    /// part that does not fit beside the other is placed when it is asked for. `None`: half of the available memory.
    pub budget_bytes: Option<u64>,
    /// What the model does with tensors that it does not use. [`Parts`](crate::Parts) alone, which may be a part of a model,
    /// asks nobody.
    pub extra_tensors: ExtraTensors,
    /// Told as tensors are placed.
    pub progress: Arc<dyn Progress>,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            device: Device::Cpu,
            dtype: DtypeChoice::Auto,
            residency: Residency::Auto,
            staging_bytes: 256 << 20,
            budget_bytes: None,
            extra_tensors: ExtraTensors::default(),
            progress: Arc::new(NoProgress),
        }
    }
}

impl LoadOptions {
    /// With another choice of [`LoadOptions::device`].
    pub fn device(mut self, device: Device) -> Self {
        self.device = device;
        self
    }

    /// With another choice of [`LoadOptions::dtype`].
    pub fn dtype(mut self, dtype: impl Into<DtypeChoice>) -> Self {
        self.dtype = dtype.into();
        self
    }

    /// With another choice of [`LoadOptions::residency`].
    pub fn residency(mut self, residency: Residency) -> Self {
        self.residency = residency;
        self
    }

    /// With another choice of [`LoadOptions::staging_bytes`].
    pub fn staging_bytes(mut self, staging_bytes: u64) -> Self {
        self.staging_bytes = staging_bytes;
        self
    }

    /// With another choice of [`LoadOptions::budget_bytes`].
    pub fn budget_bytes(mut self, budget_bytes: impl Into<Option<u64>>) -> Self {
        self.budget_bytes = budget_bytes.into();
        self
    }

    /// With another choice of [`LoadOptions::extra_tensors`].
    pub fn extra_tensors(mut self, extra_tensors: ExtraTensors) -> Self {
        self.extra_tensors = extra_tensors;
        self
    }

    /// With another choice of [`LoadOptions::progress`].
    pub fn progress(mut self, progress: Arc<dyn Progress>) -> Self {
        self.progress = progress;
        self
    }
}

impl fmt::Debug for LoadOptions {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("LoadOptions")
            .field("device", &self.device)
            .field("dtype", &self.dtype)
            .field("residency", &self.residency)
            .field("staging_bytes", &self.staging_bytes)
            .field("budget_bytes", &self.budget_bytes)
            .field("extra_tensors", &self.extra_tensors)
            .finish_non_exhaustive()
    }
}
