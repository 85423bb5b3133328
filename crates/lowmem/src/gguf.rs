//! The GGUF format: headers without the weights, and what its formats of numbers mean.
//!
//! [`GgufHeader::read`] parses one file's header and checks it against the file's size, [`read_split`] those of a model in
//! several files; neither reads a weight. [`dequantise`] turns a tensor's bytes into numbers. This module knows neither models nor
//! tensors of libtorch.
//!
//! Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>. What the block formats mean is what `quants.py` of the
//! Python package `gguf` computes; the values here are equal bit for bit.

mod block_kernels;
mod cursor;
mod dequantise;
mod error;
mod format;
mod groups;
mod header;
mod k_kernels;
mod layout;
mod metadata;
mod numbers;
mod product;
#[cfg(all(target_arch = "x86_64", not(target_feature = "avx512f")))]
mod product_avx512;
mod split;
mod value;

pub use dequantise::dequantise;
pub use error::GgufError;
pub use format::Format;
pub use header::{GgufHeader, GgufTensor};
pub use metadata::Metadata;
pub(crate) use numbers::{bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};
pub(crate) use product::product;
pub use split::read_split;
pub use value::{Array, Strings, Value};
