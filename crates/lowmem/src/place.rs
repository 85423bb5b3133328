//! From a place on disk to a tensor.

use std::{path::Path, sync::Mutex};

use tch::{Device, Kind, Tensor};

use crate::{
    Dtype, Error, Result,
    index::{Index, TensorInfo, WeightFile},
};

/// The files of a checkpoint, each mapped once, privately, when first needed.
///
/// The mapping is libtorch's own (`from_file`): every view keeps it alive, writing to a view copies the touched page and
/// never reaches the file, and no code of this crate needs `unsafe` for it.
pub(crate) struct Mappings {
    files: Vec<WeightFile>,
    mapped: Mutex<Vec<Option<Tensor>>>,
}

impl Mappings {
    pub(crate) fn new(index: &Index) -> Self {
        Self { files: index.files.clone(), mapped: Mutex::new(index.files.iter().map(|_| None).collect()) }
    }

    /// The whole file as bytes.
    fn file(&self, info: &TensorInfo) -> Result<Tensor> {
        let mut mapped = self.mapped.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(Some(bytes)) = mapped.get(info.file) {
            return Ok(bytes.shallow_clone());
        }
        let Some(file) = self.files.get(info.file) else {
            return Err(Error::NotFound { path: Path::new(&info.name).to_owned() });
        };
        let bytes = map(file, info)?;
        let shared = bytes.shallow_clone();
        if let Some(slot) = mapped.get_mut(info.file) {
            *slot = Some(bytes);
        }
        Ok(shared)
    }

    /// The tensor as a view of its file. Only a tensor that does not begin at a multiple of its element size is copied.
    pub(crate) fn view(&self, info: &TensorInfo) -> Result<Tensor> {
        let bytes = self.file(info)?;
        let view = || {
            let mut part = bytes.f_narrow(0, info.offset as i64, info.extent() as i64)?;
            if info.offset % info.dtype.bytes() != 0 {
                part = part.f_clone(&part.f_empty_like()?)?;
            }
            let typed = part.f_view_dtype(info.dtype.kind())?;
            match &info.strides {
                None => typed.f_view(&info.shape[..]),
                Some(strides) => typed.f_as_strided(&info.shape[..], &strides[..], None),
            }
        };
        view().map_err(|source| place_error(info, info.dtype, Device::Cpu, source))
    }
}

fn map(file: &WeightFile, info: &TensorInfo) -> Result<Tensor> {
    let io = |source| Error::Io { path: file.path.clone(), source };
    let found = std::fs::metadata(&file.path).map_err(io)?.len();
    if found < file.bytes {
        // A page beyond the end would be a bus error when touched, long after this.
        return Err(Error::Shrunk { file: file.path.clone(), expected: file.bytes, found });
    }
    let Some(path) = file.path.to_str() else {
        return Err(Error::PathNotUtf8 { path: file.path.clone() });
    };
    let bytes = Tensor::f_from_file(path, false, file.bytes as i64, (Kind::Uint8, Device::Cpu));
    bytes.map_err(|source| place_error(info, info.dtype, Device::Cpu, source))
}

/// An error that names the tensor and what it was to become.
pub(crate) fn place_error(info: &TensorInfo, dtype: Dtype, device: Device, source: tch::TchError) -> Error {
    let bytes = info.elements() * dtype.bytes();
    Error::Place { tensor: info.name.clone(), bytes, target: format!("{dtype} on {device:?}"), source }
}
