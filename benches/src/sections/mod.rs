//! What is measured, one module for each section.

mod convert;
mod corpus;
mod depth;
mod experts;
mod forward;
mod generate;
mod lens;
mod load;
mod partial;
mod patch;
mod ratios;
mod same;
mod start;
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
        Section::Forward => forward::run(bench),
        Section::Generate => generate::run(bench),
        Section::Depth => depth::run(bench),
        Section::Start => start::run(bench),
        Section::Partial => partial::run(bench),
        Section::Patch => patch::run(bench),
        Section::Corpus => corpus::run(bench),
        Section::Lens => lens::run(bench),
        Section::Ratios => ratios::run(bench),
        Section::Experts => experts::run(bench),
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

/// The medians of one floor by every library that measured it, for [`crate::figure::Figure::floor`]: the figure `NAME_LIBRARY`
/// with `ending` after it. `what` is what the library did.
fn faster(runs: &[Inside], name: &str, ending: &str, what: &str) -> Vec<(String, f64)> {
    let libraries = [("blas", "by the BLAS"), ("onednn", "by oneDNN"), ("own", "by libtorch's choice")];
    let found = |(library, words): (&str, &str)| {
        let time = middle(runs, &format!("{name}_{library}{ending}")).ok()?;
        Some((format!("{what} {words}"), time))
    };
    libraries.into_iter().filter_map(found).collect()
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
