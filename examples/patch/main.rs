//! Which places make the model say what it says: activation patching, attribution, and where heads look.

#[path = "../common/mod.rs"]
mod common;
mod effects;
mod texts;

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use clap::{Args, Parser, ValueEnum};
use common::{
    edits::EditFlags,
    input::Positions,
    model::{ModelFlags, Opened},
    pictures::{DrawFlags, Format, outputs, text_pages, write_pages},
};
use texts::Texts;
use transformer_utils::{
    lens::{
        Attention, Grid, csv, html, picture,
        terminal::{render, text},
    },
    lowmem::{Dtype, DtypeChoice},
};

/// The flags that say what effects to measure.
const MEASURING: [&str; 13] = [
    "answer",
    "wrong",
    "metric",
    "method",
    "sites",
    "by",
    "direction",
    "to",
    "through_mlps",
    "memory",
    "beside_patching",
    "edits",
    "steers",
];

/// Find the places that make a model say one thing and not another.
///
/// A clean text makes the model do what is studied, a corrupted one of as many tokens does not. Values of one run are put into the
/// other, one place at a time, and a metric of the logits at the last token says how much depends on each. Draws a heatmap on
/// the terminal, and files with --out. Without any texts, the bundled model is shown a pair of its own. With --edit, all
/// runs are those of the edited model.
#[derive(Parser)]
#[command(version)]
struct Flags {
    #[command(flatten)]
    model: ModelFlags,

    #[command(flatten)]
    input: PairFlags,

    #[command(flatten)]
    question: QuestionFlags,

    #[command(flatten)]
    edits: EditFlags,

    /// What to do: patch runs the model once for each place; attribution estimates that by gradients, in one run; direct is what
    /// each part adds to the logits by itself; gradient (times input) and integrated (gradients) say how much each token answers
    /// for.
    #[arg(long, value_enum, value_name = "METHOD", default_value_t = Method::Patch)]
    method: Method,

    /// Which places, for patch and attribution: names, or patterns such as h.*.attn.z, separated by commas [default: h.*; by heads
    /// h.*.attn.z].
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    sites: Vec<String>,

    /// What the columns are. Of a site as a whole there is one; neurons are for direct, which shows the twenty that matter most
    /// [default: positions; for direct the site].
    #[arg(long, value_enum, value_name = "COLUMNS")]
    by: Option<By>,

    /// Patch only these positions, B excluded.
    #[arg(long, value_name = "A..B", conflicts_with_all = ["attention", "redraw"])]
    positions: Option<Positions>,

    /// Which run is given values of the other: the corrupted (what suffices) or the clean one (what is needed).
    #[arg(long, value_enum, value_name = "DIRECTION", default_value_t = Direction::CleanIntoCorrupted)]
    direction: Direction,

    /// Path patching: count only what of a patch arrives at this place along the residual stream, such as h.5.attn.q:heads=1, or h.11
    /// for what twelve layers' parts say to the logits themselves.
    #[arg(long, value_name = "NAME[:heads=LIST]")]
    to: Option<String>,

    /// With --to, let the MLPs on the way answer to the patch.
    #[arg(long, requires = "to")]
    through_mlps: bool,

    /// Memory for patching, in MiB [default: 1024].
    #[arg(long, value_name = "MIB")]
    memory: Option<u64>,

    /// With --method attribution, also patch, and say how far the estimates agree with what that does.
    #[arg(long)]
    beside_patching: bool,

    /// Instead of effects, show where heads look in the clean text: 5.1 is head 1 of layer 5, 5 all heads of the layer, * all heads;
    /// separated by commas.
    #[arg(long, value_name = "LAYER.HEAD", value_delimiter = ',', conflicts_with_all = MEASURING.into_iter().chain(["top_down"]))]
    attention: Vec<String>,

    /// On the terminal, colour the tokens of the text rather than the cells of a heatmap, once for each site.
    #[arg(long, conflicts_with = "attention")]
    text: bool,

    /// Where to write: .png, .svg, .html, .json or .csv; repeatable. Further pages go beside it under numbered names.
    #[arg(long, value_name = "PATH")]
    out: Vec<PathBuf>,

    /// Redraw effects from a .json; no model is run.
    #[arg(
        long,
        value_name = "GRID.json",
        conflicts_with_all = MEASURING.into_iter().chain(["clean", "corrupted", "attention", "model"])
    )]
    redraw: Option<PathBuf>,

    #[command(flatten)]
    draw: DrawFlags,
}

/// The two texts.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Input")]
struct PairFlags {
    /// The text that makes the model do what is studied. It may be token ids, such as 1,2,3, where there is no tokenizer.
    #[arg(long, value_name = "TEXT")]
    clean: Option<String>,

    /// The text that does not: as many tokens, as alike as can be.
    #[arg(long, value_name = "TEXT")]
    corrupted: Option<String>,
}

/// What the effects are measured by.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Metric")]
struct QuestionFlags {
    /// The token that should come next after the clean text, such as " Mary"; an id where there is no tokenizer [default: the one
    /// the model finds likeliest].
    #[arg(long, value_name = "TOKEN")]
    answer: Option<String>,

    /// The token that should not [default: the one the model finds likeliest after the corrupted text, other than the answer].
    #[arg(long, value_name = "TOKEN")]
    wrong: Option<String>,

    /// What is measured at the last token; kl is KL(clean run || run), in nats.
    #[arg(long, value_enum, value_name = "METRIC", default_value_t = MetricName::LogitDifference)]
    metric: MetricName,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Method {
    Patch,
    Attribution,
    Direct,
    Gradient,
    Integrated,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum By {
    Positions,
    Heads,
    Neurons,
    Site,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Direction {
    CleanIntoCorrupted,
    CorruptedIntoClean,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum MetricName {
    LogitDifference,
    Logit,
    Probability,
    LogProbability,
    Kl,
}

fn main() -> ! {
    common::main(run)
}

fn run(flags: Flags) -> Result<()> {
    let outputs = outputs(&flags.out)?;
    if let Some(path) = &flags.redraw {
        let json = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let grid = Grid::from_json(&json).with_context(|| path.display().to_string())?;
        return draw_grid(&flags, &grid, &outputs);
    }
    ensure!(flags.memory != Some(0), "--memory 0: some memory is needed");
    let opened = opened(&flags.model)?;
    let pair = Texts::read(&flags.input, &opened)?;
    if flags.attention.is_empty() {
        return draw_grid(&flags, &effects::measure(&flags, &opened, &pair)?, &outputs);
    }
    let heads = chosen_heads(&flags.attention, &opened)?;
    let mut attention = Attention::of(&opened.model, pair.clean.as_slice(), &heads)?;
    attention.model.clone_from(&opened.name);
    attention.tokens = texts::tokens(&pair.clean, &opened)?;
    draw_attention(&flags, &attention, &outputs)
}

/// The model. Effects are differences of logits, which bf16 rounds to two digits: the bundled one is computed in f32.
fn opened(flags: &ModelFlags) -> Result<Opened> {
    let mut flags = flags.clone();
    if flags.model.is_none() && flags.dtype == DtypeChoice::Auto {
        flags.dtype = DtypeChoice::Fixed(Dtype::F32);
    }
    flags.open()
}

/// The heads that `--attention` means.
fn chosen_heads(asked: &[String], opened: &Opened) -> Result<Vec<(usize, usize)>> {
    let layers = &opened.model.architecture().layers;
    let heads_of = |layer: usize| -> Result<Vec<(usize, usize)>> {
        let count = layers.len();
        let of =
            layers.get(layer).with_context(|| format!("--attention {layer}: the model has the layers 0..{count}"))?;
        Ok((0..of.attention.heads as usize).map(|head| (layer, head)).collect())
    };
    let number = |text: &str| {
        let malformed = || format!("--attention {text}: expected LAYER.HEAD, such as 5.1, a LAYER, or *");
        text.trim().parse::<usize>().with_context(malformed)
    };
    let mut heads = Vec::new();
    for one in asked {
        match one.split_once('.') {
            None if one.trim() == "*" => {
                for layer in 0..layers.len() {
                    heads.extend(heads_of(layer)?);
                }
            }
            None => heads.extend(heads_of(number(one)?)?),
            Some((layer, head)) => heads.push((number(layer)?, number(head)?)),
        }
    }
    Ok(heads)
}

fn draw_grid(flags: &Flags, grid: &Grid, outputs: &[(PathBuf, Format)]) -> Result<()> {
    if !flags.draw.quiet {
        let style = flags.draw.terminal();
        let drawn = if flags.text { text(grid, &style)? } else { render(grid, None, &style)? };
        write!(std::io::stdout().lock(), "{drawn}")?;
    }
    let style = flags.draw.style();
    write_all(outputs, |format| {
        Ok(match format {
            Format::Png => picture::png(grid, &[], &style)?,
            Format::Svg => text_pages(picture::svg(grid, &[], &style)?),
            Format::Html => text_pages(vec![html::page(grid, &style)?]),
            Format::Json => text_pages(vec![grid.to_json()?]),
            Format::Csv => text_pages(vec![csv::write(grid)?]),
        })
    })
}

fn draw_attention(flags: &Flags, attention: &Attention, outputs: &[(PathBuf, Format)]) -> Result<()> {
    if !flags.draw.quiet {
        // A pattern reads from the top down.
        let style = flags.draw.terminal().top_down(true);
        let mut out = std::io::stdout().lock();
        for grid in (0..attention.heads.len()).filter_map(|index| attention.grid(index)) {
            writeln!(out, "{}", render(&grid, None, &style)?)?;
        }
    }
    let style = flags.draw.style();
    write_all(outputs, |format| {
        Ok(match format {
            Format::Png => picture::attention_png(attention, &style)?,
            Format::Svg => text_pages(picture::attention_svg(attention, &style)?),
            Format::Html => text_pages(vec![html::attention(attention, &style)?]),
            Format::Json => text_pages(vec![attention.to_json()?]),
            Format::Csv => text_pages(vec![attention.to_csv()?]),
        })
    })
}

fn write_all(outputs: &[(PathBuf, Format)], pages: impl Fn(Format) -> Result<Vec<Vec<u8>>>) -> Result<()> {
    outputs.iter().try_for_each(|(path, format): &(PathBuf, Format)| write_pages(Path::new(path), &pages(*format)?))
}
