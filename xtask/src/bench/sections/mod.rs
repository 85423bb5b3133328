//! What is measured, one module for each section.

mod convert;
mod lens;
mod load;
mod partial;
mod same;
mod stream;

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::{Bench, Inside, Section, figure::median, files};

/// Runs one section.
pub fn run(bench: &mut Bench, section: Section) -> Result<()> {
    match section {
        Section::Load => load::run(bench),
        Section::Convert => convert::run(bench),
        Section::Stream => stream::run(bench),
        Section::Same => same::run(bench),
        Section::Partial => partial::run(bench),
        Section::Lens => lens::run(bench),
    }
}

/// The weight files of a checkpoint, in the page cache.
fn warm(folder: &Path) -> Result<Vec<PathBuf>> {
    let files = files::weights(folder)?;
    files::warm(&files)?;
    Ok(files)
}

/// The median of one figure over several runs of the bench.
fn middle(runs: &[Inside], figure: &str) -> Result<f64> {
    Ok(median(&runs.iter().map(|inside| inside.get(figure)).collect::<Result<Vec<_>>>()?))
}

/// The command of all these runs.
fn shown(runs: &[Inside]) -> String {
    runs.first().map_or_else(String::new, |inside| inside.shown.clone())
}

/// Drops files from the page cache and notes how; `false`, with a note, where that cannot be done.
fn cold(bench: &mut Bench, files: &[PathBuf]) -> bool {
    match files::forget(files) {
        Ok(how) => bench.note(format!("cold: {how}")),
        Err(error) => {
            bench.note(format!("cold figures are missing: {error:#}"));
            return false;
        }
    }
    true
}
