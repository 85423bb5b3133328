//! Writes activations by name, running no further than the deepest of them.

#[path = "../common/mod.rs"]
mod common;
mod corpus;
mod sites;

use std::{collections::BTreeMap, path::PathBuf, time::Instant};

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};
use serde::Serialize;
use transformer_utils::{
    lowmem::{self, Dtype, LoadReport},
    partial::{Activations, Plan, Run},
    tch::Tensor,
};

use common::{
    edits::EditFlags,
    input::{InputFlags, Positions},
    model::{ModelFlags, Opened, Placement, milliseconds},
    output, system, table,
};

/// Write activations by name, running no further than the deepest of them.
///
/// Names are those of Hugging Face's named_modules(), with or without "transformer.": h.3, h.3.attn.c_attn, h.3.mlp.act,
/// ln_f, lm_head. Also input (what enters the first block), h.3.resid_mid, each head's h.3.attn.q, .k, .v, .scores, .pattern,
/// .z and .result, and TransformerLens's names such as blocks.3.attn.hook_q. --list shows all of a model.
///
/// Blocks after the deepest name are neither computed nor read from disk. The tensors in --out are called exactly as they
/// were asked for; in a batch of rows of different lengths the values at padding mean nothing.
#[derive(Parser)]
#[command(after_long_help = corpus::HELP, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
struct Flags {
    #[command(subcommand)]
    command: Option<Command>,

    #[command(flatten)]
    model: ModelFlags,

    #[command(flatten)]
    input: InputFlags,

    #[command(flatten)]
    edits: EditFlags,

    /// Names to write, separated by commas; with --format lens, the streams to decode [default there: those of all blocks].
    #[arg(
        long,
        value_name = "NAMES",
        value_delimiter = ',',
        required_unless_present_any = ["list", "format"],
        help_heading = "Output"
    )]
    names: Vec<String>,

    /// Safetensors file to write; for a --file of many texts, a folder.
    #[arg(long, value_name = "PATH", required_unless_present = "list", help_heading = "Output")]
    out: Option<PathBuf>,

    /// Keep these positions only: A..B with B excluded; of many texts, those that each has. The model still reads all.
    #[arg(long, value_name = "A..B", help_heading = "Output")]
    positions: Option<Positions>,

    /// Dtype to write in [default: the dtype of the run; of many texts, bf16, in parquet files f32].
    #[arg(long, value_name = "DTYPE", value_parser = ["f32", "bf16", "f16"], help_heading = "Output")]
    store: Option<String>,

    /// JSON file for the report: blocks_run, blocks_total, bytes_read, load_ms, forward_ms, peak_rss_mib and more.
    #[arg(long, value_name = "REPORT", help_heading = "Output")]
    json: Option<PathBuf>,

    /// Show the names of the model with their shapes, reading no weights; blocks that are alike are shown once. With --json,
    /// write them there.
    #[arg(long, conflicts_with_all = ["text", "file", "ids", "edits", "steers", "names", "out", "positions"], help_heading = "Output")]
    list: bool,

    /// With --list: show every block.
    #[arg(long, requires = "list", help_heading = "Output")]
    all: bool,

    #[command(flatten)]
    corpus: corpus::CorpusFlags,
}

#[derive(Subcommand)]
enum Command {
    Merge(corpus::MergeFlags),
}

fn main() -> ! {
    common::main(run)
}

fn run(flags: Flags) -> Result<()> {
    if let Some(Command::Merge(merge)) = &flags.command {
        return merge.run();
    }
    if let Some(json) = &flags.json {
        output::check_writable(json)?;
    }
    if flags.list {
        let opened = flags.model.open()?;
        if let Some(json) = &flags.json {
            output::write_json(json, &sites::list(&opened))?;
        }
        return common::print(sites::tree(&opened, flags.all).trim_end());
    }
    let out = flags.out.as_ref().context("--out is missing")?;
    ensure!(flags.corpus.is_lens() || !flags.names.is_empty(), "--names is missing");
    let store = flags.store.as_deref().map(|name| name.parse::<Dtype>().map_err(anyhow::Error::msg)).transpose()?;
    if let Some(texts) = flags.input.file.as_ref().filter(|path| flags.corpus.is_corpus(path)) {
        let work = corpus::Work {
            texts,
            out,
            names: &flags.names,
            store,
            positions: flags.positions.as_ref(),
            edits: &flags.edits,
            flags: &flags.corpus,
        };
        let report = work.run(&flags.model)?;
        if let Some(json) = &flags.json {
            output::write_json(json, &report)?;
        }
        return common::print(report);
    }
    flags.corpus.refuse()?;
    output::check_writable(out)?;

    let edits = flags.edits.read()?;
    let opened = flags.model.open()?;
    let plan = Plan::new(&opened.model, &flags.names)?;
    let rows = flags.input.read(&opened)?;
    let positions = flags.positions.as_ref().map(|positions| positions.within(rows.positions())).transpose()?;

    let start = Instant::now();
    plan.preload(&opened.model)?;
    let place_ms = milliseconds(start);
    let start = Instant::now();
    let mut run = Run::planned(&opened.model, plan);
    for (site, edit) in edits {
        run = run.edit(site, edit)?;
    }
    if let Some(positions) = positions {
        run = run.positions(positions);
    }
    if let Some(store) = store {
        run = run.to_kind(store.kind());
    }
    let activations = run.run(&rows.input()?)?;
    let forward_ms = milliseconds(start);

    let (blocks_run, blocks_total) = (activations.blocks_run(), activations.blocks_total());
    let captured = captured(&activations)?;
    lowmem::save_safetensors(out, &activations.into_tensors())?;
    let report = Report {
        placement: opened.placement(),
        blocks_run,
        blocks_total,
        bytes_read: opened.model.report().bytes_read,
        bytes_allocated: opened.model.report().bytes_allocated,
        load_ms: opened.load_ms,
        load_private_mib: opened.load_private_mib,
        place_ms,
        forward_ms,
        peak_rss_mib: system::peak_resident_mib(),
        row_lengths: rows.ids.iter().map(Vec::len).collect(),
        captured,
    };
    if let Some(json) = &flags.json {
        output::write_json(json, &report)?;
    }
    common::print(report.text(&opened, &opened.model.report(), &out.display().to_string()))
}

/// What `--json` gets.
#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    placement: Placement,
    blocks_run: usize,
    blocks_total: usize,
    bytes_read: u64,
    bytes_allocated: u64,
    load_ms: f64,
    load_private_mib: Option<f64>,
    place_ms: f64,
    forward_ms: f64,
    peak_rss_mib: Option<f64>,
    row_lengths: Vec<usize>,
    captured: BTreeMap<String, Captured>,
}

#[derive(Serialize)]
struct Captured {
    shape: Vec<i64>,
    dtype: String,
}

fn captured(activations: &Activations) -> Result<BTreeMap<String, Captured>> {
    let describe = |tensor: &Tensor| -> Result<Captured> {
        let kind = tensor.f_kind()?;
        let dtype = Dtype::from_kind(kind).map_or_else(|| format!("{kind:?}"), |dtype| dtype.to_string());
        Ok(Captured { shape: tensor.size(), dtype })
    };
    activations.iter().map(|(name, tensor)| Ok((name.to_owned(), describe(tensor)?))).collect()
}

impl Report {
    fn text(&self, opened: &Opened, load: &LoadReport, out: &str) -> String {
        let rows: Vec<[String; 3]> = self
            .captured
            .iter()
            .map(|(name, captured)| [name.clone(), format!("{:?}", captured.shape), captured.dtype.clone()])
            .collect();
        let peak = self.peak_rss_mib.map_or_else(String::new, |peak| format!(", peak {peak:.0} MiB"));
        format!(
            "{}: {} of {} blocks, {} read, opened in {:.1} ms, placed in {:.1} ms, ran in {:.1} ms{peak}\n{}wrote {out}",
            opened.placement(),
            self.blocks_run,
            self.blocks_total,
            table::size(load.bytes_read),
            self.load_ms,
            self.place_ms,
            self.forward_ms,
            table::columns(&rows),
        )
    }
}
