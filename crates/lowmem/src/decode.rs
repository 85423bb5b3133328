//! From stored bytes to the numbers of a tensor, by all threads, without a copy of the bytes.

use std::{mem::MaybeUninit, num::NonZero, sync::Arc, thread};

use tch::{Device, Kind, TchError, Tensor};

use crate::{
    Error, Result,
    files::{Files, Mapping},
    gguf::{dequantise, f32_to_bf16},
    index::TensorInfo,
    place_error::place_error,
    read::{Number, memory},
    recipe::{Encoding, MXFP4_BYTES, MXFP4_ELEMENTS, Recipe, decode_mxfp4},
};

/// Elements that are read at a time, a multiple of every block; in f32 they fit a processor's nearest caches.
const STRETCH: usize = 4096;
/// Elements from which a further thread is worth its start.
const WORTH_A_THREAD: usize = 1 << 18;

/// The stored bytes of one tensor, and how they hold numbers.
pub(crate) struct Decoder<'a> {
    info: &'a TensorInfo,
    recipe: &'a Recipe,
    numbers: Arc<Mapping>,
    scales: Option<Arc<Mapping>>,
}

impl<'a> Decoder<'a> {
    pub(crate) fn new(files: &Files, info: &'a TensorInfo, recipe: &'a Recipe) -> Result<Self> {
        let numbers = files.mapping(info, info.file)?;
        let scales = match recipe.encoding {
            Encoding::Mxfp4 { scales_file, .. } => Some(files.mapping(info, scales_file)?),
            Encoding::Gguf(_) => None,
        };
        Ok(Self { info, recipe, numbers, scales })
    }

    /// Of a tensor whose scales, if it has any, lie among its numbers.
    pub(crate) fn of_mapping(info: &'a TensorInfo, recipe: &'a Recipe, numbers: Arc<Mapping>) -> Self {
        Self { info, recipe, numbers, scales: None }
    }

    /// The numbers as they are stored, on the CPU, in a kind of this module's: f32, or bf16.
    pub(crate) fn whole(&self, mut fresh: Tensor) -> Result<Tensor> {
        self.fill(&mut fresh, STRETCH, |stretch| (stretch * STRETCH) as u64)?;
        Ok(fresh)
    }

    /// Rows of a table, `[row, ..]`, in f32.
    pub(crate) fn rows(&self, rows: &[u64]) -> Result<Tensor> {
        let width: i64 = self.info.shape.iter().skip(1).product();
        let fail = |error| place_error(self.info, self.info.dtype, Device::Cpu, error);
        let shape = [&[rows.len() as i64], self.info.shape.get(1..).unwrap_or_default()].concat();
        let mut fresh = Tensor::f_empty(&shape, (Kind::Float, Device::Cpu)).map_err(fail)?;
        if width > 0 {
            self.fill(&mut fresh, width as usize, |row| rows.get(row).copied().unwrap_or(0) * width as u64)?;
        }
        Ok(fresh)
    }

    /// The values from number `first` on.
    fn values(&self, first: u64, values: &mut [f32]) -> Result<()> {
        match &self.recipe.encoding {
            Encoding::Mxfp4 { scales, .. } => {
                let group = first / MXFP4_ELEMENTS as u64;
                let groups = values.len().div_ceil(MXFP4_ELEMENTS);
                let begin = self.info.offset + group * MXFP4_BYTES as u64;
                let blocks = self.numbers.bytes(begin, groups * MXFP4_BYTES)?;
                let scales = self.scales.as_ref().unwrap_or(&self.numbers).bytes(scales + group, groups)?;
                decode_mxfp4(blocks, scales, values);
            }
            Encoding::Gguf(format) => {
                let bytes = |elements: u64| format.bytes(elements).and_then(|bytes| usize::try_from(bytes).ok());
                let (Some(before), Some(length)) = (bytes(first), bytes(values.len() as u64)) else {
                    return Err(self.numbers.io(std::io::Error::other("a row that is no whole number of blocks")));
                };
                let bytes = self.numbers.bytes(self.info.offset + before as u64, length)?;
                dequantise(*format, bytes, values)?;
            }
        }
        Ok(())
    }

    /// Fills fresh memory, `stretch` elements at a time; `first` says where among the numbers a stretch begins.
    fn fill(&self, fresh: &mut Tensor, stretch: usize, first: impl Fn(usize) -> u64 + Sync) -> Result<()> {
        match fresh.f_kind() {
            Ok(Kind::BFloat16) => self.fill_as::<u16>(fresh, stretch, first, f32_to_bf16),
            _ => self.fill_as::<f32>(fresh, stretch, first, |value| value),
        }
    }

    fn fill_as<T: Number>(
        &self,
        fresh: &mut Tensor,
        stretch: usize,
        first: impl Fn(usize) -> u64 + Sync,
        rounded: impl Fn(f32) -> T + Copy + Sync,
    ) -> Result<()> {
        let (bytes, kind) = (self.info.bytes(), fresh.kind());
        let unsuitable = || Error::Place {
            tensor: self.info.name.clone(),
            bytes,
            target: format!("{kind:?}"),
            source: TchError::Kind(format!("numbers cannot be written into memory of {kind:?}")),
        };
        let target = memory::<T>(fresh).ok_or_else(unsuitable)?;
        let cores = thread::available_parallelism().map_or(1, NonZero::get);
        let threads = cores.min(target.len() / WORTH_A_THREAD).max(1);
        let stretches = target.len().div_ceil(stretch);
        let share = stretches.div_ceil(threads).max(1);
        let first = &first;
        let work = |number: usize, part: &mut [MaybeUninit<T>]| -> Result<()> {
            let mut values = vec![0.0_f32; stretch.min(part.len())];
            for (stretch_number, target) in part.chunks_mut(stretch).enumerate() {
                let Some(values) = values.get_mut(..target.len()) else { continue };
                self.values(first(number * share + stretch_number), values)?;
                for (target, &value) in target.iter_mut().zip(&*values) {
                    target.write(rounded(value));
                }
            }
            Ok(())
        };
        if threads == 1 {
            return work(0, target);
        }
        let ended_early = || self.numbers.io(std::io::Error::other("a decoding thread ended early"));
        thread::scope(|scope| {
            let parts = target.chunks_mut(share * stretch).enumerate();
            let threads: Vec<_> = parts.map(|(number, part)| scope.spawn(move || work(number, part))).collect();
            threads.into_iter().try_for_each(|thread| thread.join().unwrap_or_else(|_| Err(ended_early())))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_to_bf16_is_libtorchs() {
        let values: Vec<f32> = [0_u32, 0x8000_0000, 0x3F80_8000, 0x3F81_8000, 0x3F80_8001, 0x7F7F_FFFF, 0x7F80_0000, 1]
            .map(f32::from_bits)
            .to_vec();
        let rounded = Tensor::from_slice(&values).to_kind(Kind::BFloat16).to_kind(Kind::Float);
        let expected: Vec<f32> = Vec::try_from(&rounded).unwrap();
        let found: Vec<f32> = values.iter().map(|&value| f32::from_bits(u32::from(f32_to_bf16(value)) << 16)).collect();
        assert_eq!(found, expected);
        assert!(f32::from_bits(u32::from(f32_to_bf16(f32::NAN)) << 16).is_nan());
    }
}
