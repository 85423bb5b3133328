//! Matrices that stay as their file has them, for products with one vector.

use std::{mem::MaybeUninit, sync::Arc};

use rayon::prelude::*;
use tch::{Device, Kind, TchError, Tensor};

use crate::{
    Dtype, Result,
    decode::Decoder,
    files::{Files, Mapping},
    gguf::{Format, product},
    index::TensorInfo,
    place_error::place_error,
    read::memory,
    recipe::{Encoding, Recipe, Step},
};

/// Elements from which a further thread is worth waking.
const WORTH_A_THREAD: usize = 1 << 17;

/// A matrix in the blocks of a GGUF file, which are mapped and multiplied where they lie.
///
/// A product with one vector reads every number once: it takes the time in which the file's bytes are read, and no memory. For more
/// rows the matrix is better made once ([`PackedMatrix::dense`]).
pub struct PackedMatrix {
    info: TensorInfo,
    recipe: Recipe,
    format: Format,
    mapping: Arc<Mapping>,
    rows: usize,
    columns: usize,
}

/// Whether a tensor can stay packed: a matrix in blocks, of which each row is one of the product's numbers, whatever their order.
/// `turned` says that the matrix was wanted as `[in, out]`.
pub(crate) fn is_packable(info: &TensorInfo, turned: bool) -> bool {
    let Some(recipe) = &info.recipe else { return false };
    let mut steps = recipe.steps.as_slice();
    if turned {
        let Some((Step::Transpose, rest)) = steps.split_last() else { return false };
        steps = rest;
    }
    let in_blocks = matches!(recipe.encoding, Encoding::Gguf(_)) && recipe.encoding.is_packed();
    let orders = |step: &Step| matches!(step, Step::PairsToHalves { .. } | Step::HeadByHead { .. });
    in_blocks && recipe.stored.len() == 2 && steps.iter().all(orders)
}

impl PackedMatrix {
    /// `None` where [`is_packable`] says no.
    pub(crate) fn new(files: &Files, info: &TensorInfo, turned: bool) -> Result<Option<Self>> {
        let Some(recipe) = info.recipe.clone().filter(|_| is_packable(info, turned)) else { return Ok(None) };
        let (Encoding::Gguf(format), &[rows, columns]) = (&recipe.encoding, &recipe.stored[..]) else {
            return Ok(None);
        };
        let (Ok(rows), Ok(columns)) = (usize::try_from(rows), usize::try_from(columns)) else { return Ok(None) };
        let mapping = files.mapping(info, info.file)?;
        Ok(Some(Self { info: info.clone(), format: *format, rows, columns, mapping, recipe }))
    }

    /// The product of the matrix `[out, in]` (or of a `[in, out]` one from the left) with a vector of `in` numbers: `[out]`, in f32.
    ///
    /// The numbers are those of [`PackedMatrix::dense`], multiplied and added in f32. The bits depend neither on the
    /// processor nor on the threads.
    ///
    /// # Errors
    ///
    /// [`crate::Error::Place`] where the vector has another length or memory runs out, [`crate::Error::Shrunk`].
    pub fn product(&self, vector: &[f32]) -> Result<Tensor> {
        let fail = |error| place_error(&self.info, Dtype::F32, Device::Cpu, error);
        if vector.len() != self.columns {
            let (found, expected) = (vector.len(), self.columns);
            return Err(fail(TchError::Shape(format!("a vector of {found} numbers, where {expected} were expected"))));
        }
        let row = self.format.bytes(self.columns as u64).and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(0);
        let bytes = self.mapping.bytes(self.info.offset, row.saturating_mul(self.rows))?;
        let mut fresh = Tensor::f_empty([self.rows as i64], (Kind::Float, Device::Cpu)).map_err(fail)?;
        let unsuitable = || fail(TchError::Kind("numbers cannot be written into fresh memory".into()));
        let target = memory::<f32>(&mut fresh).ok_or_else(unsuitable)?;
        let part = |bytes: &[u8], target: &mut [MaybeUninit<f32>]| -> Result<()> {
            let mut numbers = vec![0.0; target.len()];
            product(self.format, bytes, vector, &mut numbers)?;
            target.iter_mut().zip(numbers).for_each(|(target, number)| {
                target.write(number);
            });
            Ok(())
        };
        let threads = (self.rows * self.columns / WORTH_A_THREAD).clamp(1, rayon::current_num_threads());
        let share = self.rows.div_ceil(threads).max(1);
        if threads == 1 || row == 0 {
            part(bytes, target)?;
        } else {
            let parts = bytes.par_chunks(share * row).zip(target.par_chunks_mut(share));
            parts.try_for_each(|(bytes, target)| part(bytes, target))?;
        }
        let ordered = self.orders().try_fold(fresh, |product, step| step.apply(&product));
        ordered.map_err(fail)
    }

    /// The steps that put rows in order.
    fn orders(&self) -> impl Iterator<Item = &Step> {
        self.recipe.steps.iter().filter(|step| **step != Step::Transpose)
    }

    /// The matrix itself, in f32 on the CPU: made for each call.
    ///
    /// # Errors
    ///
    /// As [`PackedMatrix::product`].
    pub fn dense(&self) -> Result<Tensor> {
        let fail = |error| place_error(&self.info, Dtype::F32, Device::Cpu, error);
        let fresh = Tensor::f_empty(self.recipe.stored.as_slice(), (Kind::Float, Device::Cpu)).map_err(fail)?;
        let whole = Decoder::of_mapping(&self.info, &self.recipe, Arc::clone(&self.mapping)).whole(fresh)?;
        self.recipe.finish(whole).map_err(fail)
    }
}
