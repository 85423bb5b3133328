//! Whether two tensors on disk have the same values.

use tch::{Device, TchError, Tensor};

use crate::{
    Dtype, Error, Result,
    files::{Files, OpenFile},
    index::TensorInfo,
    place_error::place_error,
    read::Buffer,
};

/// Bytes of the first piece that is compared: tensors that differ mostly do from the start.
const FIRST: u64 = 64 << 10;
/// Bytes of the largest piece.
const LARGEST: u64 = 16 << 20;

/// Whether two tensors of one shape have the same values in `dtype`, as `torch.equal` sees it (NaN equals nothing), and
/// how many bytes that took to read. It ends at the first piece that differs and holds two pieces at a time.
pub(crate) fn same_values(files: &Files, left: &TensorInfo, right: &TensorInfo, dtype: Dtype) -> Result<(bool, u64)> {
    let (left, right) = (Pieces::new(files, left)?, Pieces::new(files, right)?);
    let (mut first, mut bytes, mut read) = (0, FIRST, 0);
    while first < left.rows {
        let rows = ((bytes / left.row_bytes().max(right.row_bytes()).max(1)).max(1)).min(left.rows - first);
        read += rows * (left.row_bytes() + right.row_bytes());
        let ours = left.read(first, rows, dtype)?;
        let theirs = right.read(first, rows, dtype)?;
        if !ours.f_equal(&theirs).map_err(left.error(dtype))? {
            return Ok((false, read));
        }
        first += rows;
        bytes = (2 * bytes).min(LARGEST);
    }
    Ok((true, read))
}

/// A tensor that is read some rows at a time.
struct Pieces<'a> {
    info: &'a TensorInfo,
    file: std::sync::Arc<OpenFile>,
    /// The tensor where its elements do not lie row by row.
    view: Option<Tensor>,
    rows: u64,
    columns: u64,
}

impl<'a> Pieces<'a> {
    fn new(files: &Files, info: &'a TensorInfo) -> Result<Self> {
        let view = if info.strides.is_some() { Some(files.view(info)?) } else { None };
        let rows = info.shape.first().map_or(1, |&rows| rows as u64);
        let columns = info.elements().checked_div(rows).unwrap_or(0);
        Ok(Self { info, file: files.open(info)?, view, rows, columns })
    }

    fn row_bytes(&self) -> u64 {
        self.columns * self.info.dtype.bytes()
    }

    fn error(&self, dtype: Dtype) -> impl Fn(TchError) -> Error {
        let info = self.info;
        move |source| place_error(info, dtype, Device::Cpu, source)
    }

    /// `[rows, columns]`.
    fn read(&self, first: u64, rows: u64, dtype: Dtype) -> Result<Tensor> {
        let shape = [rows as i64, self.columns as i64];
        let piece = match &self.view {
            Some(view) => view.f_narrow(0, first as i64, rows as i64).and_then(|piece| piece.f_reshape(shape)),
            None => {
                let bytes = rows * self.row_bytes();
                let mut buffer = Buffer::new(bytes, Device::Cpu, true).map_err(self.error(dtype))?;
                let begin = self.info.offset + first * self.row_bytes();
                let lead = buffer.fill(&self.file, begin, bytes, self.info.is_aligned())?;
                let typed = buffer.bytes(lead, bytes).and_then(|bytes| bytes.f_view_dtype(self.info.dtype.kind()));
                typed.and_then(|typed| typed.f_view(shape))
            }
        };
        piece.and_then(|piece| piece.f_to_kind(dtype.kind())).map_err(self.error(dtype))
    }
}
