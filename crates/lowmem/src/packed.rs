//! Matrices that stay as their file has them, for products with one vector.

use std::sync::Arc;

use tch::{Device, Kind, TchError, Tensor};

use crate::{
    Dtype, Result,
    decode::Decoder,
    files::{Files, Mapping},
    gguf::{Format, product},
    index::TensorInfo,
    place_error::place_error,
    recipe::{Encoding, Recipe, Step},
    rows::WORTH_A_THREAD,
    team::Team,
};

/// The threads that share products.
static TEAM: Team<Result<Vec<f32>>> = Team::new();

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
    /// Which stored row each of the matrix is, where that is another one.
    order: Option<Vec<usize>>,
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
        let order = order(&recipe, rows).map_err(|error| place_error(info, Dtype::F32, Device::Cpu, error))?;
        Ok(Some(Self { info: info.clone(), format: *format, rows, columns, mapping, recipe, order }))
    }

    /// The product of the matrix `[out, in]` (or of a `[in, out]` one from the left) with a vector of `in` numbers: `out` numbers,
    /// in f32.
    ///
    /// The numbers are those of [`PackedMatrix::dense`], multiplied and added in f32, whatever the dtype of the run; where blocks hold
    /// small integers, a scale is applied once to the sum of a group instead of to each number. The bits depend neither on the
    /// processor nor on the threads.
    ///
    /// # Errors
    ///
    /// [`crate::Error::Place`] where the vector has another length, [`crate::Error::Shrunk`].
    pub fn product(self: &Arc<Self>, vector: &Arc<[f32]>) -> Result<Vec<f32>> {
        if vector.len() != self.columns {
            let (found, expected) = (vector.len(), self.columns);
            let error = TchError::Shape(format!("a vector of {found} numbers, where {expected} were expected"));
            return Err(place_error(&self.info, Dtype::F32, Device::Cpu, error));
        }
        let shares = (self.rows * self.columns / WORTH_A_THREAD as usize).clamp(1, Team::<Result<Vec<f32>>>::size());
        let share = self.rows.div_ceil(shares).max(1);
        let (matrix, vector) = (Arc::clone(self), Arc::clone(vector));
        let work = move |index: usize| matrix.product_of_rows(index * share, share, &vector);
        let mut product = Vec::with_capacity(self.rows);
        if shares == 1 {
            product = work(0)?;
        } else {
            for part in TEAM.share(shares, Arc::new(work)) {
                product.append(&mut part?);
            }
        }
        let Some(order) = &self.order else { return Ok(product) };
        Ok(order.iter().filter_map(|row| product.get(*row).copied()).collect())
    }

    /// What `count` rows from row `first` on give, or as many as there are.
    fn product_of_rows(&self, first: usize, count: usize, vector: &[f32]) -> Result<Vec<f32>> {
        let count = count.min(self.rows.saturating_sub(first));
        let row = self.format.bytes(self.columns as u64).unwrap_or(0);
        let begin = self.info.offset + row * first as u64;
        let bytes = self.mapping.bytes(begin, usize::try_from(row).unwrap_or(usize::MAX).saturating_mul(count))?;
        let mut numbers = vec![0.0; count];
        product(self.format, bytes, vector, &mut numbers)?;
        Ok(numbers)
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

/// What the steps that put rows in order do to the numbers of the rows; `None` where there are no such steps.
fn order(recipe: &Recipe, rows: usize) -> std::result::Result<Option<Vec<usize>>, TchError> {
    let mut steps = recipe.steps.iter().filter(|step| **step != Step::Transpose).peekable();
    if steps.peek().is_none() {
        return Ok(None);
    }
    let rows = Tensor::f_arange(rows as i64, (Kind::Int64, Device::Cpu))?;
    let ordered = steps.try_fold(rows, |rows, step| step.apply(&rows))?;
    Ok(Some(Vec::<i64>::try_from(ordered)?.into_iter().map(|row| row as usize).collect()))
}
