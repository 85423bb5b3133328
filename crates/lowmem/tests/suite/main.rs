//! Everything this crate promises, through its public API.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bin_files;
#[cfg(feature = "hub")]
mod fake_hub;
mod gguf_bytes;
mod gguf_files;
mod gguf_formats;
mod harness;
#[cfg(feature = "hub")]
mod hub_files;
mod index_files;
mod made_tensors;
mod memory_claims;
mod placing;
mod safetensors_files;
mod written_files;
