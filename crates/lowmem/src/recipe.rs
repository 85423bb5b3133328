//! How a tensor is made of bytes that are not its elements: blocks of numbers of few bits, and what is done to them after.

use std::fmt;

use tch::{TchError, Tensor};

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
}

/// What is done to a tensor after its numbers have been read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Step {
    /// The last two dimensions change places.
    Transpose,
}

impl Encoding {
    /// What people call it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Mxfp4 { .. } => "MXFP4",
        }
    }

    /// Bytes of so many elements, scales included.
    fn bytes(&self, elements: u64) -> u64 {
        match self {
            Self::Mxfp4 { .. } => elements / MXFP4_ELEMENTS as u64 * (MXFP4_BYTES as u64 + 1),
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
        for step in &self.steps {
            match step {
                Step::Transpose => {
                    let last = shape.len().saturating_sub(1);
                    shape.swap(last.saturating_sub(1), last);
                }
            }
        }
        shape
    }

    /// Makes it that of one slice of the first dimension, with `before` such slices of `elements` elements before it, and says
    /// by how many bytes its numbers begin later. `None` where the tensor has no such slices.
    pub(crate) fn cut(&mut self, before: u64, elements: u64) -> Option<u64> {
        if self.stored.len() < 3 {
            return None;
        }
        self.stored.remove(0);
        match &mut self.encoding {
            Encoding::Mxfp4 { scales, .. } => {
                let groups = before * elements / MXFP4_ELEMENTS as u64;
                *scales += groups;
                Some(groups * MXFP4_BYTES as u64)
            }
        }
    }

    /// What is done to the numbers after they have been read, as views where that suffices.
    pub(crate) fn finish(&self, stored: Tensor) -> Result<Tensor, TchError> {
        self.steps.iter().try_fold(stored, |tensor, step| match step {
            Step::Transpose => tensor.f_transpose(-2, -1),
        })
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
