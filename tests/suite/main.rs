//! Everything that crosses crates, as one test program.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod generate;
mod golden;
mod lens;
mod support;
