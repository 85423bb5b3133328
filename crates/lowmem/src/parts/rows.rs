//! Rows of a table, without placing the table.

use std::time::Instant;

use tch::{Device, Kind, Tensor};

use super::{Parts, shared::lock};
use crate::{
    Dtype, Error, Residency, Result, TensorInfo, decode::Decoder, files::Files, place_error::place_error,
    read::read_rows,
};

impl Parts {
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
        let mut placed = lock(&self.shared.state).kept.get(&source.key).map(Tensor::shallow_clone);
        if source.info.recipe.as_ref().is_some_and(|recipe| !recipe.steps.is_empty()) {
            // Its rows are no rows on disk.
            placed = self.shared.place(&[source])?.pop();
        }
        if let Some(table) = placed {
            let indices = indices.f_to_device(target.1).map_err(fail)?;
            return Tensor::f_embedding(&table, &indices, -1, false, false).map_err(fail);
        }
        let start = Instant::now();
        let info = &source.info;
        let Some(files) = &self.shared.files else {
            return Err(Error::NoSuchPart { part, parts: self.len() });
        };
        let (rows, read) = if let Some(recipe) = &info.recipe {
            let decoder = Decoder::new(files, info, recipe)?;
            let read = info.bytes() / info.shape.first().map_or(1, |&rows| rows.max(1) as u64) * chosen.len() as u64;
            let shape = [&indices.size()[..], info.shape.get(1..).unwrap_or_default()].concat();
            (decoder.rows(&chosen)?.f_view(&shape[..]).map_err(fail)?, read)
        } else if info.strides.is_some() || self.shared.residency == Residency::Mapped && info.is_aligned() {
            let table = files.view(info)?;
            let gather = || Tensor::f_embedding(&table, &indices.f_to_device(Device::Cpu)?, -1, false, false);
            let rows = gather().map_err(fail)?;
            let read = rows.numel() as u64 * info.dtype.bytes();
            (rows, read)
        } else {
            rows_on_disk(files, info, indices, &chosen)?
        };
        let rows = rows.f_to_device(target.1).and_then(|rows| rows.f_to_kind(target.0.kind())).map_err(fail)?;
        let mut state = lock(&self.shared.state);
        state.report.bytes_read += read;
        state.report.seconds += start.elapsed().as_secs_f64();
        Ok(rows)
    }
}

/// The rows as they are on disk, read one by one: a mapping of a file larger than memory may be refused.
fn rows_on_disk(files: &Files, info: &TensorInfo, indices: &Tensor, chosen: &[u64]) -> Result<(Tensor, u64)> {
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
