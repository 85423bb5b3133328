//! Everything this crate promises, through its public API.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bin_files;
mod harness;
mod index_files;
mod placing;
mod safetensors_files;
