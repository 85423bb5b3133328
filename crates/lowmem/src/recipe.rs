//! How a tensor is made of bytes that are not its elements: blocks of numbers of few bits, and what is done to them after.

use std::fmt;

use tch::{TchError, Tensor};

use crate::{Dtype, TensorInfo, gguf::Format};

/// Elements that share a scale in MXFP4 (Open Compute Project, Microscaling Formats, 2023).
pub(crate) const MXFP4_ELEMENTS: usize = 32;
/// Bytes of their numbers, two in each.
pub(crate) const MXFP4_BYTES: usize = MXFP4_ELEMENTS / 2;

/// How a tensor is made of what is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipe {
    /// How the bytes hold numbers.
    pub encoding: Encoding,
    /// The shape they have, row by row.
    pub stored: Vec<i64>,
    /// What is done to them then, one after the other.
    pub steps: Vec<Step>,
}

/// How bytes hold numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Encoding {
    /// 32 numbers of four bits, low half of a byte first, and apart from them a byte with the exponent of their scale: as
    /// gpt-oss has them in safetensors files.
    Mxfp4 {
        /// The file of the scales.
        scales_file: usize,
        /// Where in it they begin, in bytes.
        scales: u64,
    },
    /// A format of GGUF files, row by row.
    Gguf(Format),
}

/// What is done to a tensor after its numbers have been read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Step {
    /// The last two dimensions change places.
    Transpose,
    /// One is taken from every number: GGUF has Gemma's norms as they multiply, checkpoints what is added to one.
    SubtractOne,
    /// Rows, of which each head has as many, that stand in pairs of one of the first and one of the second half of a head come one
    /// half after the other: GGUF has Llama's queries and keys in pairs.
    PairsToHalves {
        /// How many heads there are.
        heads: i64,
    },
    /// Rows of all queries, then all keys, then all values become those of each head: as GPT-NeoX has them.
    HeadByHead {
        /// How many heads there are.
        heads: i64,
    },
}

impl Step {
    /// Whether it changes numbers, and not only where they are.
    pub(crate) fn computes(self) -> bool {
        self == Self::SubtractOne
    }

    pub(crate) fn apply(self, tensor: &Tensor) -> Result<Tensor, TchError> {
        let rows = |first: [i64; 3], swapped: (i64, i64)| {
            let size = tensor.size();
            let shape = [&first, size.get(1..).unwrap_or_default()].concat();
            tensor.f_reshape(shape)?.f_transpose(swapped.0, swapped.1)?.f_reshape(size)
        };
        match self {
            Self::Transpose => tensor.f_transpose(-2, -1),
            Self::SubtractOne => tensor.f_sub_scalar(1.0),
            Self::PairsToHalves { heads } => {
                let half = tensor.size().first().copied().unwrap_or(0) / (2 * heads.max(1));
                rows([heads, half, 2], (1, 2))
            }
            Self::HeadByHead { heads } => rows([3, heads, -1], (0, 1)),
        }
    }
}

impl Encoding {
    /// What people call it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Mxfp4 { .. } => "MXFP4",
            Self::Gguf(format) => format.name(),
        }
    }

    /// Bytes of so many elements, scales included.
    fn bytes(&self, elements: u64) -> u64 {
        match self {
            Self::Mxfp4 { .. } => elements / MXFP4_ELEMENTS as u64 * (MXFP4_BYTES as u64 + 1),
            Self::Gguf(format) => format.bytes(elements).unwrap_or(0),
        }
    }

    /// Whether numbers lie there in fewer bits than a dtype has.
    pub(crate) fn is_packed(&self) -> bool {
        match self {
            Self::Mxfp4 { .. } => true,
            Self::Gguf(format) => format.is_quantised(),
        }
    }
}

impl fmt::Display for Recipe {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.encoding.name())
    }
}

impl Recipe {
    /// Bytes on disk of so many elements.
    pub(crate) fn bytes(&self, elements: u64) -> u64 {
        self.encoding.bytes(elements)
    }

    /// The shape of the tensor once it is made.
    pub(crate) fn shape(&self) -> Vec<i64> {
        let mut shape = self.stored.clone();
        for _ in self.steps.iter().filter(|step| **step == Step::Transpose) {
            let last = shape.len().saturating_sub(1);
            shape.swap(last.saturating_sub(1), last);
        }
        shape
    }

    /// Makes it that of one slice of the first dimension, with `before` such slices of `elements` elements before it, and says
    /// by how many bytes its numbers begin later. `None` where the tensor has no such slices.
    pub(crate) fn cut(&mut self, before: u64, elements: u64) -> Option<u64> {
        let alike = |step: &Step| matches!(step, Step::Transpose | Step::SubtractOne);
        let least = if self.steps.contains(&Step::Transpose) { 3 } else { 2 };
        if self.stored.len() < least || !self.steps.iter().all(alike) {
            return None;
        }
        self.stored.remove(0);
        match &mut self.encoding {
            Encoding::Mxfp4 { scales, .. } => {
                let groups = before * elements / MXFP4_ELEMENTS as u64;
                *scales += groups;
                Some(groups * MXFP4_BYTES as u64)
            }
            Encoding::Gguf(format) => format.bytes(before.checked_mul(elements)?),
        }
    }

    /// What is done to the numbers after they have been read, as views where that suffices.
    pub(crate) fn finish(&self, stored: Tensor) -> Result<Tensor, TchError> {
        self.steps.iter().try_fold(stored, |tensor, step| step.apply(&tensor))
    }
}

/// A tensor as somebody else calls it, made of a stored one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spelled {
    /// What it is called.
    pub name: String,
    /// Which slice of the stored one's first dimension it is, where it is not the whole.
    pub slice: Option<i64>,
    /// What is done to its numbers.
    pub steps: Vec<Step>,
}

impl Spelled {
    /// The whole tensor as it is.
    pub fn same(name: impl Into<String>) -> Self {
        Self { name: name.into(), slice: None, steps: Vec::new() }
    }

    /// `None` where the stored tensor has no such slice, or steps do not fit it.
    pub(crate) fn of(&self, stored: &TensorInfo) -> Option<TensorInfo> {
        let mut info = match self.slice {
            Some(index) => stored.slice(index, self.name.clone())?,
            None => TensorInfo { name: self.name.clone(), ..stored.clone() },
        };
        if self.steps.is_empty() {
            return Some(info);
        }
        let mut recipe = match info.recipe.take() {
            Some(recipe) => recipe,
            None => Recipe {
                encoding: Encoding::Gguf(plain_format(info.dtype)?),
                stored: info.shape.clone(),
                steps: Vec::new(),
            },
        };
        recipe.steps.extend(&self.steps);
        let rows = info.shape.first().copied().unwrap_or(0);
        let fits = |step: &Step| match step {
            Step::Transpose => info.shape.len() >= 2,
            Step::SubtractOne => true,
            Step::PairsToHalves { heads } => *heads > 0 && rows % (2 * heads) == 0,
            Step::HeadByHead { heads } => *heads > 0 && rows % (3 * heads) == 0,
        };
        if info.strides.is_some() || !self.steps.iter().all(fits) {
            return None;
        }
        info.shape = recipe.shape();
        info.recipe = Some(recipe);
        Some(info)
    }
}

/// How numbers of a dtype lie in a file, as GGUF calls it.
fn plain_format(dtype: Dtype) -> Option<Format> {
    match dtype {
        Dtype::F64 => Some(Format::F64),
        Dtype::F32 => Some(Format::F32),
        Dtype::F16 => Some(Format::F16),
        Dtype::Bf16 => Some(Format::BF16),
        _ => None,
    }
}

/// The sixteen numbers of MXFP4, by their four bits.
const MXFP4_VALUES: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// Numbers of whole groups.
pub(crate) fn decode_mxfp4(blocks: &[u8], scales: &[u8], values: &mut [f32]) {
    let (blocks, _) = blocks.as_chunks::<MXFP4_BYTES>();
    let (values, _) = values.as_chunks_mut::<MXFP4_ELEMENTS>();
    for ((block, &exponent), values) in blocks.iter().zip(scales).zip(values) {
        let scale = match exponent {
            // 2^-127 has no exponent of its own in f32.
            0 => f32::from_bits(1 << 22),
            exponent => f32::from_bits(u32::from(exponent) << 23),
        };
        let table = MXFP4_VALUES.map(|value| value * scale);
        let at = |number: u8| table.get(usize::from(number)).copied().unwrap_or(0.0);
        let (pairs, _) = values.as_chunks_mut::<2>();
        for (pair, &byte) in pairs.iter_mut().zip(block) {
            *pair = [at(byte & 15), at(byte >> 4)];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_four_bits_are_the_low_half_of_a_byte_first() {
        let mut blocks = [0_u8; 32];
        (blocks[0], blocks[15], blocks[16]) = (0x21, 0xF7, 0x09);
        let mut values = [9.0; 64];
        decode_mxfp4(&blocks, &[128, 0], &mut values);
        assert_eq!((values[0], values[1], values[30], values[31]), (1.0, 2.0, 12.0, -12.0));
        assert_eq!((values[32], values[33]), (-0.5 * 2_f32.powi(-127), 0.0));
        assert!(values[2..30].iter().all(|&value| value == 0.0));
    }

    #[test]
    fn a_slice_begins_where_those_before_it_end() {
        let whole = Recipe {
            encoding: Encoding::Mxfp4 { scales_file: 1, scales: 1000 },
            stored: vec![4, 3, 64],
            steps: vec![Step::Transpose],
        };
        assert_eq!(whole.shape(), [4, 64, 3]);
        assert_eq!(whole.bytes(4 * 3 * 64), 4 * 3 * 2 * 17);
        let mut slice = whole.clone();
        assert_eq!(slice.cut(2, 3 * 64), Some(2 * 6 * 16));
        assert_eq!((slice.stored.as_slice(), slice.shape().as_slice()), (&[3, 64][..], &[64, 3][..]));
        assert_eq!(slice.encoding, Encoding::Mxfp4 { scales_file: 1, scales: 1012 });
    }
}
