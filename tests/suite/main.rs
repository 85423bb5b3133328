//! Everything that crosses crates, as one test program.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod attribution;
mod cache;
mod checkpoints;
mod generate;
mod gguf;
mod golden;
mod invariance;
mod jacobian_lens;
mod lens;
mod memory;
mod partial;
mod patch;
mod preparation;
mod reduced_precision;
mod support;
mod text;
mod threads;
mod three_lines;
mod training;
mod tuned_lens;

// Programs whose insides are tested, not only their output.
#[path = "../../examples/classify/mod.rs"]
mod classify;
#[path = "../../examples/common/mod.rs"]
mod common;
