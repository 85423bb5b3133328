//! The logit lens: what every layer already believes, as a heatmap, a picture, a page or a table.

mod common;

use std::{
    io::Write,
    path::{Path, PathBuf},
    str::FromStr,
};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use common::{
    edits::EditFlags,
    input::{ChatFlags, InputFlags, Positions},
    lens_choice::LensChoice,
    model::ModelFlags,
    pictures::{DrawFlags, Format, numbered, outputs, text_pages, write_pages},
};
use transformer_utils::lens::{
    Comparison, DEFAULT_DECODER, Lens, LensOptions, Measure, Prompt, RowOptions, Table, View, compare, csv, html,
    picture, terminal,
};

/// Look through the logit lens: decode every layer's residual stream as if it were the model's output.
///
/// Draws a heatmap on the terminal, and files with --out. Cells hold each layer's most likely next token; a star marks a
/// prediction that is right.
#[derive(Parser)]
#[command(version)]
struct Flags {
    #[command(flatten)]
    model: ModelFlags,

    #[command(flatten)]
    input: InputFlags,

    #[command(flatten)]
    chat: ChatFlags,

    #[command(flatten)]
    edits: EditFlags,

    /// What to show, separated by commas: logits, probs, ranks (of the model's final prediction), kl (KL(final || row)),
    /// reverse_kl, entropy, cross_entropy (with the next token).
    #[arg(long, value_name = "MEASURES", value_delimiter = ',', default_value = "logits", value_parser = measure)]
    measure: Vec<Measure>,

    /// Positions to decode, B excluded; the model always sees the whole input.
    #[arg(long, value_name = "A..B")]
    positions: Option<Positions>,

    /// Show every N-th block.
    #[arg(long, value_name = "N", default_value_t = 1)]
    block_step: usize,

    /// Leave out the row of the embeddings.
    #[arg(long)]
    no_input: bool,

    /// Leave out the last block where the step skips it.
    #[arg(long)]
    no_force_output: bool,

    /// Also show the stream after each block's attention.
    #[arg(long)]
    subblocks: bool,

    /// Also show what attention and MLP add to the stream, decoded by themselves.
    #[arg(long)]
    contributions: bool,

    /// Also show what each head adds to the stream, decoded by itself.
    #[arg(long)]
    heads: bool,

    /// What decodes a row: blocks or halves of blocks (h.47, h.47.mlp), then final_layernorm,lm_head.
    #[arg(long, value_name = "NAMES", value_delimiter = ',', default_values = DEFAULT_DECODER)]
    decoder: Vec<String>,

    /// What stands in front of the decoder: logit (nothing); tuned:DIR, translators made by tune_lens or published by the
    /// tuned-lens project (config.json and params.pt in DIR); or jacobian:FILE, made by jacobian_lens, by TransformerLens or
    /// published for it (it has nothing for the input, whose row is left out).
    #[arg(long, value_name = "logit|tuned:DIR|jacobian:FILE", default_value = "logit")]
    lens: LensChoice,

    /// Keep the K likeliest tokens of each cell, for .json and .html [default: 8 for .html, else 0].
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,

    /// Also measure probability and rank of this token, such as " Paris"; repeatable.
    #[arg(long, value_name = "TOKEN")]
    track: Vec<String>,

    /// Clip probabilities in kl at 1 / (10 x vocabulary), as the Python package does.
    #[arg(long)]
    kl_clip: bool,

    /// Memory for temporary results, in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 256)]
    memory: u64,

    /// Where to write: .png, .svg, .html, .json or .csv; repeatable. Further pages of a long input, and further rows of a
    /// batch, go beside it under numbered names.
    #[arg(long, value_name = "PATH")]
    out: Vec<PathBuf>,

    /// Draw the difference to an earlier table of the same input, a .json from --out.
    #[arg(long, value_name = "TABLE.json")]
    compare: Option<PathBuf>,

    /// Redraw a table from a .json; no model is run.
    #[arg(long, value_name = "TABLE.json", conflicts_with_all = ["text", "file", "ids", "chat", "model", "edits", "steers"])]
    redraw: Option<PathBuf>,

    #[command(flatten)]
    draw: DrawFlags,
}

fn measure(name: &str) -> Result<Measure, String> {
    Measure::from_str(name).map_err(|error| error.to_string())
}

fn main() -> ! {
    common::main(run)
}

fn run(flags: Flags) -> Result<()> {
    let outputs = outputs(&flags.out)?;
    let before = flags.compare.as_deref().map(read_table).transpose()?;
    let tables = match &flags.redraw {
        Some(path) => vec![read_table(path)?],
        None => look(&flags, &outputs)?,
    };
    for (row, table) in tables.iter().enumerate() {
        let measures = shown(&flags, table)?;
        let comparison = before.as_ref().map(|before| compare(before, table)).transpose()?;
        let drawing = Drawing { flags: &flags, table, comparison: comparison.as_ref(), measures: &measures };
        if !flags.draw.quiet {
            drawing.terminal()?;
        }
        for (path, format) in &outputs {
            let path = if row == 0 { path.clone() } else { numbered(path, "row", row) };
            drawing.file(&path, *format)?;
        }
    }
    Ok(())
}

fn read_table(path: &Path) -> Result<Table> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    Table::from_json(&text).with_context(|| path.display().to_string())
}

/// Runs the model: one table for each row of the batch.
fn look(flags: &Flags, outputs: &[(PathBuf, Format)]) -> Result<Vec<Table>> {
    ensure!(flags.memory > 0, "--memory 0: some memory is needed");
    let edits = flags.edits.read()?;
    let opened = flags.model.open()?;
    let rows = flags.input.read_chat(&flags.chat, &opened)?;
    let vocabulary = opened.model.architecture().vocabulary;
    let interactive = outputs.iter().any(|(_, format)| *format == Format::Html);
    let options = LensOptions::default()
        .measures(flags.measure.clone())
        .rows(
            RowOptions::default()
                .block_step(flags.block_step)
                .input(!flags.no_input)
                .force_output(!flags.no_force_output)
                .subblocks(flags.subblocks)
                .contributions(flags.contributions)
                .heads(flags.heads),
        )
        .decoder(flags.decoder.clone())
        .top_k(flags.top_k.unwrap_or(if interactive { 8.min(vocabulary as usize) } else { 0 }))
        .tracked(
            flags
                .track
                .iter()
                .map(|text| Ok((text.clone(), opened.one_token("--track", text)?)))
                .collect::<Result<Vec<_>>>()?,
        )
        .kl_clip(flags.kl_clip.then(|| 1.0 / (10.0 * vocabulary as f64)))
        .memory(flags.memory << 20);
    let prompt = |ids: &Vec<i64>| {
        let range = flags.positions.as_ref().map(|positions| positions.within(ids.len() as i64)).transpose()?;
        let positions = range.map(|range| range.start as usize..range.end as usize);
        Ok(Prompt { ids: ids.clone(), positions })
    };
    let prompts = rows.ids.iter().map(prompt).collect::<Result<Vec<_>>>()?;
    let fitted = flags.lens.open()?;
    let mut lens = Lens::new(&opened.model, options)?;
    if let Some(fitted) = &fitted {
        lens = lens.fitted(fitted)?;
    }
    for (site, edit) in edits {
        lens = lens.edit(site, edit)?;
    }
    let name = if flags.edits.is_given() { format!("{}, {}", opened.name, flags.edits) } else { opened.name.clone() };
    // A tokenizer that cannot be read is reported before anything runs.
    opened.tokenizer()?;
    Ok(lens.tables(&name, &prompts, |id| opened.token_text(id).unwrap_or_else(|_| id.to_string()))?)
}

/// What is drawn: all measures of a fresh table, of a redrawn one those that were asked for if it has them.
fn shown(flags: &Flags, table: &Table) -> Result<Vec<Measure>> {
    if flags.redraw.is_none() {
        return Ok(table.measures.clone());
    }
    let asked: Vec<Measure> =
        flags.measure.iter().filter(|measure| table.measures.contains(measure)).cloned().collect();
    let measures = if asked.is_empty() { table.measures.clone() } else { asked };
    ensure!(!measures.is_empty(), "the table has no measure to draw");
    Ok(measures)
}

struct Drawing<'a> {
    flags: &'a Flags,
    table: &'a Table,
    comparison: Option<&'a Comparison>,
    measures: &'a [Measure],
}

impl Drawing<'_> {
    fn view(&self) -> View<'_> {
        self.comparison.map_or_else(|| View::from(self.table), View::from)
    }

    fn terminal(&self) -> Result<()> {
        let style = self.flags.draw.terminal();
        let mut out = std::io::stdout().lock();
        for measure in self.measures {
            writeln!(out, "{}", terminal::render(self.view(), measure, &style)?)?;
        }
        Ok(())
    }

    fn file(&self, path: &Path, format: Format) -> Result<()> {
        let style = self.flags.draw.style();
        // What is stored is the table itself; a comparison can be made again from two of them.
        let pages: Vec<Vec<u8>> = match format {
            Format::Png => picture::png(self.view(), self.measures, &style)?,
            Format::Svg => text_pages(picture::svg(self.view(), self.measures, &style)?),
            Format::Html => text_pages(vec![html::page(self.view(), &style)?]),
            Format::Json => text_pages(vec![self.table.to_json()?]),
            Format::Csv => text_pages(vec![csv::write(self.table)?]),
        };
        write_pages(path, &pages)
    }
}
