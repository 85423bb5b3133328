//! The dtypes that checkpoints store.

use std::{fmt, str::FromStr};

use tch::Kind;

/// A dtype as stored on disk or held in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
#[non_exhaustive]
pub enum Dtype {
    F64,
    F32,
    F16,
    Bf16,
    I64,
    I32,
    I16,
    I8,
    U8,
    Bool,
}

impl Dtype {
    const ALL: [(Self, &'static str, &'static str, Kind, u64); 10] = [
        (Self::F64, "F64", "f64", Kind::Double, 8),
        (Self::F32, "F32", "f32", Kind::Float, 4),
        (Self::F16, "F16", "f16", Kind::Half, 2),
        (Self::Bf16, "BF16", "bf16", Kind::BFloat16, 2),
        (Self::I64, "I64", "i64", Kind::Int64, 8),
        (Self::I32, "I32", "i32", Kind::Int, 4),
        (Self::I16, "I16", "i16", Kind::Int16, 2),
        (Self::I8, "I8", "i8", Kind::Int8, 1),
        (Self::U8, "U8", "u8", Kind::Uint8, 1),
        (Self::Bool, "BOOL", "bool", Kind::Bool, 1),
    ];

    fn row(self) -> (Self, &'static str, &'static str, Kind, u64) {
        Self::ALL.into_iter().find(|row| row.0 == self).unwrap_or(Self::ALL[1])
    }

    /// Size of one element in bytes.
    pub fn bytes(self) -> u64 {
        self.row().4
    }

    /// The libtorch kind.
    pub fn kind(self) -> Kind {
        self.row().3
    }

    /// The dtype of a libtorch kind, where checkpoints can store it.
    pub fn from_kind(kind: Kind) -> Option<Self> {
        Self::ALL.into_iter().find(|row| row.3 == kind).map(|row| row.0)
    }

    /// The name that safetensors headers use, such as `BF16`.
    pub fn safetensors_name(self) -> &'static str {
        self.row().1
    }

    /// The dtype of a safetensors name.
    pub fn from_safetensors_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|row| row.1 == name).map(|row| row.0)
    }

    /// Whether this is a floating-point dtype.
    pub fn is_float(self) -> bool {
        matches!(self, Self::F64 | Self::F32 | Self::F16 | Self::Bf16)
    }

    pub(crate) fn names() -> String {
        Self::ALL.map(|row| row.2).join(", ")
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.row().2)
    }
}

impl FromStr for Dtype {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let row = Self::ALL.into_iter().find(|row| row.2 == name || row.1 == name);
        row.map(|row| row.0).ok_or_else(|| format!("unknown dtype {name:?}; known: {}", Self::names()))
    }
}
