//! The formats in which tensors are stored.

use std::fmt;

/// How a tensor's numbers are stored: as they are, or in blocks that share scales.
///
/// Names and numbers are those of ggml, <https://github.com/ggml-org/ggml/blob/master/include/ggml.h>.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, non_camel_case_types)]
pub enum Format {
    F32,
    F16,
    BF16,
    F64,
    I8,
    I16,
    I32,
    I64,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    IQ4_NL,
    IQ4_XS,
    MXFP4,
}

/// Formats that ggml knows or knew and this crate does not read.
const UNSUPPORTED: [(u32, &str); 22] = [
    (4, "Q4_2"),
    (5, "Q4_3"),
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (29, "IQ1_M"),
    (31, "Q4_0_4_4"),
    (32, "Q4_0_4_8"),
    (33, "Q4_0_8_8"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (36, "IQ4_NL_4_4"),
    (37, "IQ4_NL_4_8"),
    (38, "IQ4_NL_8_8"),
    (40, "NVFP4"),
    (41, "Q1_0"),
    (42, "Q2_0"),
];

impl Format {
    /// Format, ggml's number, name, elements and bytes of a block.
    const ALL: [(Self, u32, &'static str, u64, u64); 21] = [
        (Self::F32, 0, "F32", 1, 4),
        (Self::F16, 1, "F16", 1, 2),
        (Self::BF16, 30, "BF16", 1, 2),
        (Self::F64, 28, "F64", 1, 8),
        (Self::I8, 24, "I8", 1, 1),
        (Self::I16, 25, "I16", 1, 2),
        (Self::I32, 26, "I32", 1, 4),
        (Self::I64, 27, "I64", 1, 8),
        (Self::Q4_0, 2, "Q4_0", 32, 18),
        (Self::Q4_1, 3, "Q4_1", 32, 20),
        (Self::Q5_0, 6, "Q5_0", 32, 22),
        (Self::Q5_1, 7, "Q5_1", 32, 24),
        (Self::Q8_0, 8, "Q8_0", 32, 34),
        (Self::Q2_K, 10, "Q2_K", 256, 84),
        (Self::Q3_K, 11, "Q3_K", 256, 110),
        (Self::Q4_K, 12, "Q4_K", 256, 144),
        (Self::Q5_K, 13, "Q5_K", 256, 176),
        (Self::Q6_K, 14, "Q6_K", 256, 210),
        (Self::IQ4_NL, 20, "IQ4_NL", 32, 18),
        (Self::IQ4_XS, 23, "IQ4_XS", 256, 136),
        (Self::MXFP4, 39, "MXFP4", 32, 17),
    ];

    fn row(self) -> (Self, u32, &'static str, u64, u64) {
        Self::ALL.into_iter().find(|row| row.0 == self).unwrap_or(Self::ALL[0])
    }

    /// All formats.
    pub fn all() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().map(|row| row.0)
    }

    /// ggml's number of it.
    pub fn number(self) -> u32 {
        self.row().1
    }

    /// Its name, as ggml spells it.
    pub fn name(self) -> &'static str {
        self.row().2
    }

    /// Elements of a block; 1 for formats without blocks. Rows are whole numbers of blocks.
    pub fn elements_per_block(self) -> u64 {
        self.row().3
    }

    /// Bytes of a block.
    pub fn bytes_per_block(self) -> u64 {
        self.row().4
    }

    /// Whether blocks share scales.
    pub fn is_quantised(self) -> bool {
        self.elements_per_block() > 1
    }

    /// Bytes of so many elements; `None` where they fill no whole number of blocks or the bytes are beyond 64 bits.
    pub fn bytes(self, elements: u64) -> Option<u64> {
        let (_, _, _, block, bytes) = self.row();
        if elements.is_multiple_of(block) { (elements / block).checked_mul(bytes) } else { None }
    }

    /// The format of ggml's number.
    ///
    /// # Errors
    ///
    /// The name of a format that is not supported, or `type N` where no format is known to have that number.
    pub fn from_number(number: u32) -> Result<Self, String> {
        if let Some(row) = Self::ALL.into_iter().find(|row| row.1 == number) {
            return Ok(row.0);
        }
        let known = UNSUPPORTED.into_iter().find(|row| row.0 == number);
        Err(known.map_or_else(|| format!("type {number}"), |row| row.1.to_owned()))
    }

    pub(crate) fn names() -> String {
        Self::ALL.map(|row| row.2).join(", ")
    }
}

impl fmt::Display for Format {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}
