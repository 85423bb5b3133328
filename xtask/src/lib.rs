//! Set-up for the workspace: one libtorch of the right version, found or installed, and the commands that need it.
//!
//! `cargo xtask` is the only place that knows how to get libtorch. The order is: what the user's environment names, the
//! `.libtorch` link of the workspace, the per-user cache, then the [`routes`] of an installation, the official
//! archive before the Python package. [`libtorch::provide`] is that order; everything else here serves it:
//!
//! | module | owns |
//! |---|---|
//! | [`environment`] | what is read from the process, in one value, so that tests can make another |
//! | [`folder`] | is this folder a libtorch, and which version |
//! | [`cache`] | the per-user folder: lock, staging, the rename that makes an installation appear at once |
//! | [`routes`] | the official archive, the wheel through pip |
//! | [`real`] | the published model of the demonstration |
//! | [`engines`] | the recipes of `engines/`, run on Slurm, Ray and an object store of this machine |
//! | [`download`], [`unpack`] | bytes from a server, files from a zip |
//! | [`link`] | the `.libtorch` link |
//! | [`build`] | builds by Cargo: beside a download, and with the time that they still take |
//! | [`steps`] | running Cargo, and what is checked before |

pub mod build;
pub mod cache;
pub mod download;
#[cfg(unix)]
pub mod engines;
pub mod environment;
pub mod folder;
pub mod libtorch;
pub mod link;
mod pip;
pub mod real;
pub mod routes;
pub mod steps;
pub mod unpack;

#[cfg(test)]
mod tests;
