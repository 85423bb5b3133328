//! Whether a text gives the same numbers however it is run: alone, in a batch, padded, in pieces through a cache, from weights
//! placed in any way, on one thread and on two. Prints the table of `docs/numerics.md`:
//!
//! ```sh
//! cargo xtask bench invariance
//! ```
//!
//! A cell is the largest difference of a logit from the run of the text alone, over all positions of the text; below, how many of
//! the lens's ranks and top-1 tokens (of every row, at every position) differ.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use transformer_utils::{
    lowmem::{Checkpoint, Dtype, LoadOptions, Residency},
    models::{Factor, Input, KvCache, Model, Numerics},
    partial::{Edit, Run},
    tch::{self, Kind, Tensor},
};

/// Run one text in every way and compare.
#[derive(Parser)]
struct Flags {
    /// Checkpoint folders, separated by commas [default: both bundled models].
    #[arg(long, value_delimiter = ',', value_name = "DIRS")]
    models: Vec<PathBuf>,

    /// Tokens of the text.
    #[arg(long, default_value_t = 100, value_name = "N")]
    tokens: usize,
}

/// How the text is run.
#[derive(Clone, Copy)]
enum Way {
    Batch,
    PaddedRight,
    PaddedLeft,
    Pieces(usize),
    SinglesAlike,
    PatternsCaptured,
    PatternsReplaced,
    PatternsReplacedMaterialised,
    Placed(Residency),
    Threads(i32),
}

const WAYS: [Way; 15] = [
    Way::Batch,
    Way::PaddedRight,
    Way::PaddedLeft,
    Way::Pieces(64),
    Way::Pieces(7),
    Way::Pieces(1),
    Way::SinglesAlike,
    Way::Placed(Residency::Mapped),
    Way::Placed(Residency::Resident),
    Way::Placed(Residency::Streamed),
    Way::Threads(1),
    Way::Threads(2),
    Way::PatternsCaptured,
    Way::PatternsReplaced,
    Way::PatternsReplacedMaterialised,
];

impl Way {
    fn name(self) -> String {
        match self {
            Self::Batch => "in a batch of 8 copies".into(),
            Self::PaddedRight => "in a batch of 8 with longer mates, padded right".into(),
            Self::PaddedLeft => "the same, padded left".into(),
            Self::Pieces(1) => "token by token through a cache".into(),
            Self::Pieces(size) => format!("in pieces of {size} through a cache"),
            Self::SinglesAlike => "the same with `alike_rows`".into(),
            Self::PatternsCaptured => "every attention pattern captured".into(),
            Self::PatternsReplaced => "every attention pattern replaced by itself".into(),
            Self::PatternsReplacedMaterialised => "the same, both with `materialised_attention`".into(),
            Self::Placed(residency) => format!("{residency} weights"),
            Self::Threads(1) => "on 1 thread".into(),
            Self::Threads(threads) => format!("on {threads} threads"),
        }
    }
}

/// What a run of the text gives, whatever stood around it.
struct Seen {
    /// `[position, vocabulary]` in f32.
    logits: Tensor,
    /// Rank of the model's own top-1 in every row, and the row's own top-1, `[2, row, position]`.
    ranks: Tensor,
}

/// How much longer than the text each mate is.
const LONGER: [usize; 7] = [1, 5, 13, 16, 32, 47, 60];

fn main() -> Result<()> {
    let flags = Flags::parse();
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets");
    let bundled = || ["tiny-gpt2", "tiny-gpt-neo"].map(|name| assets.join(name)).into();
    let folders = if flags.models.is_empty() { bundled() } else { flags.models.clone() };
    let dtypes = [Dtype::F32, Dtype::Bf16];
    let mut columns = Vec::new();
    for folder in &folders {
        for dtype in dtypes {
            columns.push(column(folder, dtype, flags.tokens)?);
        }
    }
    let names = folders.iter().map(|folder| folder.file_name().map(|name| name.to_string_lossy().into_owned()));
    let names = names.collect::<Option<Vec<_>>>().context("a folder without a name")?;
    let heads = names.iter().flat_map(|name| dtypes.map(|dtype| format!("{name} {dtype}")));
    println!("| the text | {} |", heads.collect::<Vec<_>>().join(" | "));
    println!("|---|{}", "---|".repeat(columns.len()));
    for (place, way) in WAYS.iter().enumerate() {
        let cells = columns.iter().filter_map(|column| column.get(place).cloned());
        println!("| {} | {} |", way.name(), cells.collect::<Vec<_>>().join(" | "));
    }
    Ok(())
}

/// The cells of one model in one dtype.
fn column(folder: &Path, dtype: Dtype, tokens: usize) -> Result<Vec<String>> {
    let open = |residency| -> Result<Model> {
        let options = LoadOptions::default().dtype(dtype).residency(residency);
        Ok(Model::open(&Checkpoint::open(folder)?, &options)?)
    };
    let model = open(Residency::Auto)?;
    let with = |numerics| Ok::<_, anyhow::Error>(open(Residency::Auto)?.with_numerics(numerics));
    let vocabulary = model.architecture().vocabulary;
    // Any ids do: what is compared is the same text with itself.
    let text: Vec<i64> = (0..tokens as i64).map(|place| (place * place * 31 + place * 7 + 3) % vocabulary).collect();
    let alone = whole(&model, &text)?;
    let mut cells = Vec::new();
    for way in WAYS {
        let found = match way {
            Way::Batch => batch(&model, &text, &[0; 7], false)?,
            Way::PaddedRight => batch(&model, &text, &LONGER, false)?,
            Way::PaddedLeft => batch(&model, &text, &LONGER, true)?,
            Way::Pieces(size) => pieces(&model, &text, size)?,
            Way::SinglesAlike => pieces(&with(Numerics::FAST.alike_rows(true))?, &text, 1)?,
            Way::PatternsCaptured => watched(&model, &text, false)?,
            Way::PatternsReplaced => watched(&model, &text, true)?,
            Way::PatternsReplacedMaterialised => {
                let model = with(Numerics::FAST.materialised_attention(true))?;
                cells.push(cell(&watched(&model, &text, true)?, &whole(&model, &text)?)?);
                continue;
            }
            // Mapped weights are in the dtype of their file, so in another there is nothing to compare.
            Way::Placed(residency) => match open(residency) {
                Ok(model) => whole(&model, &text)?,
                Err(_) if residency == Residency::Mapped => {
                    cells.push("–".into());
                    continue;
                }
                Err(error) => return Err(error),
            },
            Way::Threads(threads) => {
                let before = tch::get_num_threads();
                tch::set_num_threads(threads);
                let found = whole(&model, &text);
                tch::set_num_threads(before);
                found?
            }
        };
        cells.push(cell(&found, &alone)?);
    }
    Ok(cells)
}

fn cell(found: &Seen, alone: &Seen) -> Result<String> {
    ensure!(found.logits.size() == alone.logits.size(), "the runs have other shapes");
    let apart = found.logits.f_sub(&alone.logits)?.f_abs()?.f_max()?.f_double_value(&[])?;
    ensure!(apart.is_finite(), "the logits are not finite");
    let ranks = found.ranks.f_ne_tensor(&alone.ranks)?.f_sum(Kind::Int64)?.f_int64_value(&[])?;
    let apart = if apart == 0.0 { "0".to_owned() } else { format!("{apart:.1e}") };
    Ok(if ranks == 0 { apart } else { format!("{apart}, {ranks} of {} ranks", alone.ranks.numel()) })
}

/// The names of the rows, and of the logits last.
fn names(model: &Model) -> Vec<String> {
    let blocks = (0..model.config().layers()).map(|block| format!("h.{block}"));
    std::iter::once("input".to_owned()).chain(blocks).chain(["lm_head".to_owned()]).collect()
}

fn whole(model: &Model, text: &[i64]) -> Result<Seen> {
    let names = names(model);
    let output = Run::new(model, &names)?.run(&Input::from_rows(&[text])?)?;
    let taken = names.iter().map(|name| Ok(output.get(name)?.f_squeeze_dim(0)?)).collect::<Result<Vec<_>>>()?;
    seen(model, taken)
}

/// The text alone with every block's pattern looked at, and put back if `replaced`.
fn watched(model: &Model, text: &[i64], replaced: bool) -> Result<Seen> {
    let mut names = names(model);
    let rows = names.len();
    let patterns: Vec<String> = (0..model.config().layers()).map(|block| format!("h.{block}.attn.pattern")).collect();
    names.extend(patterns.iter().cloned());
    let mut run = Run::new(model, &names)?;
    for pattern in patterns.iter().filter(|_| replaced) {
        run = run.edit(pattern, Edit::with(|value| Ok(value.shallow_clone())))?;
    }
    let output = run.run(&Input::from_rows(&[text])?)?;
    names.truncate(rows);
    seen(model, names.iter().map(|name| Ok(output.get(name)?.f_squeeze_dim(0)?)).collect::<Result<Vec<_>>>()?)
}

/// The text in the middle of a batch, with mates that many tokens longer.
fn batch(model: &Model, text: &[i64], longer: &[usize], left: bool) -> Result<Seen> {
    let vocabulary = model.architecture().vocabulary;
    let mate = |&more: &usize| -> Vec<i64> {
        (0..(text.len() + more) as i64).map(|place| (place * 13 + more as i64 + 1) % vocabulary).collect()
    };
    let mut rows: Vec<Vec<i64>> = longer.iter().map(mate).collect();
    rows.insert(3, text.to_vec());
    let width = rows.iter().map(Vec::len).max().unwrap_or(0);
    let begin = if left { width - text.len() } else { 0 };
    let input = if left {
        let pad = |row: &Vec<i64>| [vec![0; width - row.len()], row.clone()].concat();
        let mask = |row: &Vec<i64>| [vec![0; width - row.len()], vec![1; row.len()]].concat();
        let mask: Vec<i64> = rows.iter().flat_map(mask).collect();
        let mask = Tensor::f_from_slice(&mask)?.f_view([rows.len() as i64, width as i64])?;
        let positions = Input::positions_from_mask(&mask)?;
        Input::from_rows(&rows.iter().map(pad).collect::<Vec<_>>())?.attention_mask(mask).position_ids(positions)
    } else {
        Input::padded(&rows)?
    };
    let names = names(model);
    let output = Run::new(model, &names)?.run(&input)?;
    let part = |name: &String| {
        let row = output.get(name)?.f_select(0, 3)?;
        Ok(row.f_narrow(0, begin as i64, text.len() as i64)?)
    };
    seen(model, names.iter().map(part).collect::<Result<Vec<_>>>()?)
}

fn pieces(model: &Model, text: &[i64], size: usize) -> Result<Seen> {
    let names = names(model);
    let run = Run::new(model, &names)?;
    let mut cache = KvCache::new();
    let mut parts: Vec<Vec<Tensor>> = names.iter().map(|_| Vec::new()).collect();
    for piece in text.chunks(size) {
        let output = run.run_cached(&Input::from_rows(&[piece])?, &mut cache)?;
        for (part, name) in parts.iter_mut().zip(&names) {
            part.push(output.get(name)?.f_squeeze_dim(0)?);
        }
    }
    seen(model, parts.iter().map(|parts| Ok(Tensor::f_cat(parts, 0)?)).collect::<Result<Vec<_>>>()?)
}

/// Ranks as the lens has them, from the streams of the rows (`[position, d_model]`) and the logits, which come last.
fn seen(model: &Model, mut taken: Vec<Tensor>) -> Result<Seen> {
    let logits = taken.pop().context("no logits")?.f_to_kind(Kind::Float)?;
    let (norm, unembedding) = (model.tail()?, model.unembedding()?);
    let own = logits.f_argmax(-1, true)?;
    let mut ranks = Vec::new();
    for stream in &taken {
        let normed = norm.apply(stream, Kind::Float)?.f_to_kind(unembedding.kind()?)?;
        let row = unembedding.logits(&Factor::new(&normed)?)?.f_to_kind(Kind::Float)?;
        let target = row.f_gather(-1, &own, false)?;
        let higher = row.f_gt_tensor(&target)?.f_sum_dim_intlist([-1].as_slice(), false, Kind::Int64)?;
        ranks.push(Tensor::f_stack(&[higher, row.f_argmax(-1, false)?], 0)?);
    }
    Ok(Seen { logits, ranks: Tensor::f_stack(&ranks, 1)? })
}
