//! Loads a checkpoint and says what that took.

mod common;

use std::{path::PathBuf, time::Instant};

use anyhow::Result;
use clap::Parser;
use serde::Serialize;
use transformer_utils::lowmem::LoadReport;

use common::{
    model::{ModelFlags, Placement, milliseconds},
    output, system, table,
};

/// Load a checkpoint and say what that took.
///
/// Places every part of the model in turn. Mapped weights are views of the file, so placing them reads nothing; resident ones
/// are read and converted; streamed ones are read, placed and dropped again, as a run would.
#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    model: ModelFlags,

    /// JSON file for the report.
    #[arg(long, value_name = "PATH", help_heading = "Output")]
    json: Option<PathBuf>,
}

fn main() -> ! {
    common::main(run)
}

fn run(flags: Flags) -> Result<()> {
    if let Some(json) = &flags.json {
        output::check_writable(json)?;
    }
    let before = system::private_mib();
    let opened = flags.model.open()?;
    let parts = opened.model.parts();
    let start = Instant::now();
    parts.preload(0..parts.len())?;
    for part in 0..parts.len() {
        // Dropped at once, and the next one comes meanwhile: only a streamed model reads here.
        drop(parts.get(part, Some(part + 1))?);
    }
    let place_ms = milliseconds(start);
    let load = opened.model.report();
    let report = Report {
        placement: opened.placement(),
        files: load.files,
        tensors: load.tensors,
        tensors_placed: load.tensors_placed,
        bytes_on_disk: opened.checkpoint.index().bytes(),
        bytes_read: load.bytes_read,
        bytes_allocated: load.bytes_allocated,
        staging_peak_bytes: load.staging_peak,
        residency_reason: load.reason.clone(),
        load_ms: opened.load_ms,
        place_ms,
        place_gigabytes_per_second: load.gigabytes_per_second(),
        private_mib: system::private_mib().zip(before).map(|(after, before)| (after - before).max(0.0)),
        peak_rss_mib: system::peak_resident_mib(),
        ignored: load.ignored.clone(),
        extra: load.extra.clone(),
        tied: load.tied.clone(),
        untied: load.untied.clone(),
    };
    if let Some(json) = &flags.json {
        output::write_json(json, &report)?;
    }
    common::print(report.text(&load).trim_end())
}

/// What `--json` gets.
#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    placement: Placement,
    files: usize,
    tensors: usize,
    tensors_placed: usize,
    bytes_on_disk: u64,
    bytes_read: u64,
    bytes_allocated: u64,
    staging_peak_bytes: u64,
    residency_reason: String,
    load_ms: f64,
    place_ms: f64,
    place_gigabytes_per_second: f64,
    private_mib: Option<f64>,
    peak_rss_mib: Option<f64>,
    ignored: Vec<String>,
    extra: Vec<String>,
    tied: Vec<(String, String)>,
    untied: Vec<(String, String)>,
}

impl Report {
    fn text(&self, load: &LoadReport) -> String {
        let mib = |mib: Option<f64>| mib.map_or_else(|| "unknown".into(), |mib| format!("{mib:.1} MiB"));
        let some = |names: Vec<String>| match names.len() {
            0 => "none".to_owned(),
            1..=3 => names.join(", "),
            count => format!("{}, ... ({count})", names[..3].join(", ")),
        };
        let pairs = |pairs: &[(String, String)], sign: &str| {
            some(pairs.iter().map(|(name, other)| format!("{name} {sign} {other}")).collect())
        };
        // Mapping a file is no reading of it.
        let speed = if self.bytes_allocated > 0 || self.placement.residency == "streamed" {
            format!(", {:.2} GB/s", self.place_gigabytes_per_second)
        } else {
            String::new()
        };
        let lines = [
            ("residency", format!("{}: {}", load.residency, load.reason)),
            ("files", self.files.to_string()),
            ("tensors", format!("{} of {} placed", self.tensors_placed, self.tensors)),
            ("on disk", table::size(self.bytes_on_disk)),
            ("handed out", table::size(self.bytes_read)),
            ("allocated", table::size(self.bytes_allocated)),
            ("staging buffer, at most", table::size(self.staging_peak_bytes)),
            ("opened in", format!("{:.2} ms", self.load_ms)),
            ("placed in", format!("{:.2} ms{speed}", self.place_ms)),
            ("private memory", mib(self.private_mib)),
            ("peak resident memory", mib(self.peak_rss_mib)),
            ("ignored", some(self.ignored.clone())),
            ("extra, not used", some(self.extra.clone())),
            ("tied", pairs(&load.tied, "=")),
            ("not tied, they differ", pairs(&load.untied, "and")),
        ];
        format!("{}\n\n{}", self.placement, table::pairs(&lines))
    }
}
