//! The error of a tensor that could not be placed. Whoever opens, reads, compares or places files makes it, so it belongs
//! to none of them.

use tch::{Device, TchError};

use crate::{Dtype, Error, index::TensorInfo};

/// An error that names the tensor and what it was to become.
pub(crate) fn place_error(info: &TensorInfo, dtype: Dtype, device: Device, source: TchError) -> Error {
    let bytes = info.elements().saturating_mul(dtype.bytes());
    Error::Place { tensor: info.name.clone(), bytes, target: format!("{dtype} on {device:?}"), source }
}
