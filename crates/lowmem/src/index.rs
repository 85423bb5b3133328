//! Where every tensor of a checkpoint lies.

use std::{collections::BTreeMap, path::PathBuf};

use crate::{
    Dtype, Error, Recipe, Result,
    recipe::{Encoding, MXFP4_BYTES, MXFP4_ELEMENTS, Step},
};

const BLOCKS: &str = "_blocks";
const SCALES: &str = "_scales";

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
    /// Its dtype on disk. Of one with a recipe, the dtype that holds its values exactly.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: Vec<i64>,
    /// Index into [`Index::files`].
    pub file: usize,
    /// First byte in the file of the element at index zero.
    pub offset: u64,
    /// Strides in elements where the tensor is not stored row by row (only `.bin` files can have them).
    pub strides: Option<Vec<i64>>,
    /// How it is made of what is stored, where its elements do not lie there as they are.
    pub recipe: Option<Recipe>,
}

impl TensorInfo {
    /// Number of elements.
    pub fn elements(&self) -> u64 {
        self.shape.iter().map(|&size| size as u64).product()
    }

    /// Bytes of the tensor's elements on disk.
    pub fn bytes(&self) -> u64 {
        match &self.recipe {
            Some(recipe) => recipe.bytes(self.elements()),
            None => self.elements() * self.dtype.bytes(),
        }
    }

    /// Whether its numbers lie there in fewer bits than a dtype has.
    pub(crate) fn is_packed(&self) -> bool {
        self.recipe.as_ref().is_some_and(|recipe| recipe.encoding.is_packed())
    }

    /// Slice `index` of the first dimension, as a tensor of its own called `name`. `None` where there is no such slice.
    pub(crate) fn slice(&self, index: i64, name: String) -> Option<Self> {
        let (&count, shape) = self.shape.split_first()?;
        let before = u64::try_from(index).ok().filter(|_| index < count)?;
        let mut slice = Self { name, shape: shape.to_vec(), ..self.clone() };
        let elements = slice.elements();
        match &mut slice.recipe {
            Some(recipe) => slice.offset += recipe.cut(before, elements)?,
            None => {
                let step = match &mut slice.strides {
                    Some(strides) if !strides.is_empty() => strides.remove(0) as u64,
                    _ => elements,
                };
                slice.offset += before * step * self.dtype.bytes();
            }
        }
        Some(slice)
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
            && self.recipe == other.recipe
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

    /// Makes one tensor of each pair of `NAME_blocks` and `NAME_scales` that hold MXFP4 numbers.
    pub(crate) fn join_mxfp4(&mut self) {
        let joined: Vec<(String, TensorInfo)> = self.tensors.keys().filter_map(|name| self.mxfp4(name)).collect();
        for (name, tensor) in joined {
            self.tensors.remove(&format!("{name}{BLOCKS}"));
            self.tensors.remove(&format!("{name}{SCALES}"));
            self.tensors.insert(name, tensor);
        }
    }

    /// The tensor whose blocks have this name, where they and its scales fit each other and nothing else has its name.
    fn mxfp4(&self, blocks: &str) -> Option<(String, TensorInfo)> {
        let name = blocks.strip_suffix(BLOCKS).filter(|name| !self.tensors.contains_key(*name))?;
        let (blocks, scales) = (self.get(blocks)?, self.get(&format!("{name}{SCALES}"))?);
        let bytes = |tensor: &TensorInfo| tensor.dtype == Dtype::U8 && tensor.strides.is_none();
        let (&width, groups) = blocks.shape.split_last()?;
        let (&count, outer) = groups.split_last()?;
        if !bytes(blocks) || !bytes(scales) || width != MXFP4_BYTES as i64 || scales.shape != groups || outer.is_empty()
        {
            return None;
        }
        let stored = [outer, &[count * MXFP4_ELEMENTS as i64]].concat();
        let recipe = Recipe {
            encoding: Encoding::Mxfp4 { scales_file: scales.file, scales: scales.offset },
            // Their matrices lie [out, in], those that are stored as they are [in, out].
            steps: vec![Step::Transpose],
            stored: stored.clone(),
        };
        let info = TensorInfo {
            name: name.to_owned(),
            dtype: Dtype::Bf16,
            shape: recipe.shape(),
            file: blocks.file,
            offset: blocks.offset,
            strides: None,
            recipe: Some(recipe),
        };
        Some((name.to_owned(), info))
    }
}
