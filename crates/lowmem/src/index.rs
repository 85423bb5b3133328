//! Where every tensor of a checkpoint lies.

use std::{collections::BTreeMap, path::PathBuf};

use crate::{Dtype, Error, Result};

/// One file that holds weights.
#[derive(Clone, Debug)]
pub struct WeightFile {
    /// Its path.
    pub path: PathBuf,
    /// Its size in bytes when it was indexed.
    pub bytes: u64,
}

/// One tensor on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its name in the checkpoint.
    pub name: String,
    /// Its dtype on disk.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: Vec<i64>,
    /// Index into [`Index::files`].
    pub file: usize,
    /// First byte in the file of the element at index zero.
    pub offset: u64,
    /// Strides in elements where the tensor is not stored row by row (only `.bin` files can have them).
    pub strides: Option<Vec<i64>>,
}

impl TensorInfo {
    /// Number of elements.
    pub fn elements(&self) -> u64 {
        self.shape.iter().map(|&size| size as u64).product()
    }

    /// Bytes of the tensor's elements on disk.
    pub fn bytes(&self) -> u64 {
        self.elements() * self.dtype.bytes()
    }

    /// Bytes from the first to the last element on disk, gaps included.
    pub fn extent(&self) -> u64 {
        let Some(strides) = &self.strides else { return self.bytes() };
        if self.shape.contains(&0) {
            return 0;
        }
        let last: i64 = self.shape.iter().zip(strides).map(|(&size, &stride)| (size - 1) * stride).sum();
        (last as u64 + 1) * self.dtype.bytes()
    }

    /// Whether its elements can be used where they lie.
    pub(crate) fn is_aligned(&self) -> bool {
        self.offset.is_multiple_of(self.dtype.bytes())
    }

    /// Whether two names mean the same bytes on disk, as tied weights in `.bin` files do.
    pub fn same_storage(&self, other: &Self) -> bool {
        self.file == other.file
            && self.offset == other.offset
            && self.dtype == other.dtype
            && self.shape == other.shape
            && self.strides == other.strides
    }
}

/// All tensors of a checkpoint by name, and the files they are in.
#[derive(Clone, Debug, Default)]
pub struct Index {
    /// The weight files.
    pub files: Vec<WeightFile>,
    /// The tensors by name.
    pub tensors: BTreeMap<String, TensorInfo>,
}

impl Index {
    /// The tensor of that name.
    pub fn get(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    /// Bytes of all tensors on disk; tensors that share bytes count once.
    pub fn bytes(&self) -> u64 {
        let mut seen = std::collections::HashSet::new();
        let distinct = self.tensors.values().filter(|tensor| seen.insert((tensor.file, tensor.offset)));
        distinct.map(TensorInfo::bytes).sum()
    }

    /// Adds the tensors of one file.
    ///
    /// # Errors
    ///
    /// [`Error::Duplicate`] when a name is already there.
    pub(crate) fn add(&mut self, file: WeightFile, tensors: Vec<TensorInfo>) -> Result<()> {
        let position = self.files.len();
        for mut tensor in tensors {
            tensor.file = position;
            if let Some(first) = self.tensors.get(&tensor.name) {
                let first = self.files.get(first.file).map_or_else(|| file.path.clone(), |file| file.path.clone());
                return Err(Error::Duplicate { tensor: tensor.name, first, second: file.path });
            }
            self.tensors.insert(tensor.name.clone(), tensor);
        }
        self.files.push(file);
        Ok(())
    }
}
