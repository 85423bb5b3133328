//! The example programs as people run them: arguments in, files, standard error and an exit code out.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod activations;
mod bad_input;
mod checkpoints;
#[cfg(all(feature = "object-store", feature = "parquet"))]
mod corpora;
mod corpus_lens;
mod edits;
#[cfg(feature = "hub")]
#[allow(dead_code)]
#[path = "../../crates/lowmem/tests/suite/fake_hub.rs"]
mod fake_hub;
mod generate;
#[cfg(feature = "hub")]
mod hub_corpora;
mod jacobian_lens;
mod many_texts;
mod pages;
mod patch;
mod program;
#[allow(dead_code)]
#[path = "../suite/support.rs"]
mod support;
mod synth;
mod tuned_lens;
