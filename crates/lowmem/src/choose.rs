//! Which residency `auto` means.

use tch::{Device, Kind, Tensor};

use crate::{Dtype, Error, Residency, Result, TensorInfo};

/// What the choice depends on.
pub(crate) struct Situation<'a> {
    /// Tensors the parts ask for, each storage once.
    pub(crate) tensors: &'a [TensorInfo],
    pub(crate) dtype: Dtype,
    pub(crate) device: Device,
    pub(crate) staging_bytes: u64,
    /// Bytes of memory that can still be taken, where known.
    pub(crate) available: Option<u64>,
}

impl Situation<'_> {
    /// The residency to use and, in words, why.
    pub(crate) fn choose(&self, asked: Residency) -> Result<(Residency, String)> {
        let is_other = |info: &&TensorInfo| info.dtype != self.dtype || info.is_packed();
        let other = self.tensors.iter().find(is_other);
        let mappable = self.device == Device::Cpu && other.is_none();
        match asked {
            Residency::Auto => Ok(self.automatic(mappable)),
            Residency::Mapped if !mappable => {
                let problem = match other {
                    Some(TensorInfo { name, recipe: Some(recipe), .. }) if recipe.encoding.is_packed() => format!(
                        "tensor {name} is stored as {recipe} and must be made of it; use --residency resident or streamed"
                    ),
                    Some(info) if self.device == Device::Cpu => format!(
                        "tensor {} is {} on disk and the run computes in {}; use --residency resident, or --dtype {}",
                        info.name, info.dtype, self.dtype, info.dtype
                    ),
                    _ => format!("{:?} cannot read a mapped file; use --residency resident", self.device),
                };
                Err(Error::Residency { residency: "mapped", problem })
            }
            chosen => Ok((chosen, "asked for".into())),
        }
    }

    fn automatic(&self, mappable: bool) -> (Residency, String) {
        let on_disk: u64 = self.tensors.iter().map(TensorInfo::bytes).sum();
        let placed: u64 = self.tensors.iter().map(|info| info.elements() * self.dtype.bytes()).sum();
        if mappable {
            return match self.available.filter(|&available| available < on_disk) {
                None => (Residency::Mapped, format!("the file is {} already and is used where it lies", self.dtype)),
                Some(available) => (
                    Residency::Streamed,
                    format!("{} of weights exceed {} of available memory", size(on_disk), size(available)),
                ),
            };
        }
        let packed = self.tensors.iter().filter(|info| info.is_packed()).max_by_key(|info| info.bytes());
        let packed = packed.and_then(|info| info.recipe.as_ref());
        let why = if let Some(recipe) = packed {
            format!("the file holds {recipe}")
        } else if self.device == Device::Cpu {
            format!("the file is converted to {}", self.dtype)
        } else {
            format!("{:?} has memory of its own", self.device)
        };
        let fits = match self.device {
            Device::Cpu => self.available.is_none_or(|available| placed + self.staging_bytes <= available),
            // Asking is the one way libtorch offers to learn what fits. What is given back here stays in libtorch's own
            // pool, from which the weights are then taken.
            device => Tensor::f_empty([placed as i64], (Kind::Uint8, device)).is_ok(),
        };
        if fits {
            (Residency::Resident, format!("{why}, and {} fit", size(placed)))
        } else {
            (Residency::Streamed, format!("{why}, and {} do not fit at once", size(placed)))
        }
    }
}

/// Bytes for people.
fn size(bytes: u64) -> String {
    if bytes < 10_000_000 { format!("{:.1} kB", bytes as f64 / 1e3) } else { format!("{:.2} GB", bytes as f64 / 1e9) }
}
