//! Many texts: batches of like length, safetensors files with an index, restartable.

use std::{
    fmt, fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    str::FromStr,
    time::Instant,
};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use transformer_utils::{
    lowmem::{self, Checkpoint, Dtype},
    models::{Axis, Dimension, Input, Point, Site},
    partial::{Activations, Plan, Run},
    tch::{Device, Kind, Tensor, no_grad},
};

use crate::common::{
    input::check_row,
    model::{ModelFlags, Opened, Placement},
    output, progress, system,
};

/// What `--help` says below the flags.
pub const HELP: &str = r#"Many texts:
  With --file TEXTS.jsonl, --out is a folder. A line of the file is a string, {"text": ...} or {"ids": [...]}; an "id" beside them comes back in the index. The folder gets activations-00000.safetensors and so on and, when all of them are there, index.jsonl with one line a text, in the order of the file:

    {"id": ..., "line": 1, "file": "activations-00003.safetensors", "start": 120, "tokens": 17}

  Each file holds one tensor a name, the tokens of all its texts one after the other, [tokens, ...], and ids, [tokens]. In Python:

    with safe_open(folder / entry["file"], "pt") as file:
        values = file.get_slice("h.3")[entry["start"]:entry["start"] + entry["tokens"]]

  Attention scores and patterns are [tokens, head, key]: a row for each query, zero beyond the text's own keys.

  Files are written whole or not at all. After a kill, the same command goes on where it was."#;

/// How a `--file` of many texts is worked through.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Many texts (--file TEXTS.jsonl)")]
pub struct CorpusFlags {
    /// Most tokens in a batch, padding included [default: 4096]. A longer text is a batch by itself.
    #[arg(long, value_name = "N")]
    batch_tokens: Option<usize>,

    /// Most MiB of activations in a file [default: 256]. A batch may be cut short for it, a text is not.
    #[arg(long, value_name = "MIB")]
    file_mib: Option<u64>,

    /// Do piece K of N only, K counted from 0, as SLURM_ARRAY_TASK_ID and JOB_COMPLETION_INDEX are; all pieces can share the
    /// folder. Piece K has the lines K, K + N, ... of the file, and its own index-K-of-N.jsonl.
    #[arg(long, value_name = "K/N")]
    shard: Option<Piece>,

    /// Cut texts that are longer than the model's positions, instead of refusing them.
    #[arg(long)]
    truncate: bool,
}

impl CorpusFlags {
    /// Refuses the flags where there is one text only.
    pub fn refuse(&self) -> Result<()> {
        let given = [
            ("--batch-tokens", self.batch_tokens.is_some()),
            ("--file-mib", self.file_mib.is_some()),
            ("--shard", self.shard.is_some()),
            ("--truncate", self.truncate),
        ];
        match given.into_iter().find(|(_, given)| *given) {
            Some((flag, _)) => bail!("{flag} is for many texts; give them with --file TEXTS.jsonl"),
            None => Ok(()),
        }
    }
}

/// One of `of` pieces of the corpus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    number: usize,
    of: usize,
}

impl FromStr for Piece {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.split_once('/').and_then(|(number, of)| Some((number.parse().ok()?, of.parse().ok()?)));
        match parsed {
            Some((number, of)) if number < of => Ok(Self { number, of }),
            Some((_, of)) if of > 0 => Err(format!("there is no such piece; K counts from 0 to {}", of - 1)),
            _ => Err("expected K/N, such as 0/8".into()),
        }
    }
}

impl Piece {
    const WHOLE: Self = Self { number: 0, of: 1 };

    /// `stem.ending`, with the piece in between unless it is the whole.
    fn file(self, stem: &str, ending: &str) -> String {
        let Self { number, of } = self;
        if of == 1 { format!("{stem}{ending}") } else { format!("{stem}-{number}-of-{of}{ending}") }
    }
}

/// Whether a file holds many texts.
pub fn is_corpus(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "jsonl" || extension == "ndjson")
}

/// One line of the corpus.
#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Bare(String),
    Full(Full),
}

#[derive(Deserialize)]
struct Full {
    id: Option<Value>,
    text: Option<String>,
    ids: Option<Vec<i64>>,
}

/// One text of this piece.
struct Text {
    /// Line of the file, counted from 1.
    line: usize,
    id: Value,
    ids: Vec<u32>,
}

/// One line of the index.
#[derive(Serialize)]
struct Entry<'a> {
    id: &'a Value,
    line: usize,
    file: Option<&'a str>,
    start: usize,
    tokens: usize,
}

/// A file to be written: batches of texts, by their place in the list of texts.
struct Planned {
    name: String,
    batches: Vec<Vec<usize>>,
    tokens: usize,
    longest: usize,
}

/// The whole of the work.
pub struct Job<'a> {
    /// The corpus.
    pub texts: &'a Path,
    /// The folder.
    pub out: &'a Path,
    /// Names to write.
    pub names: &'a [String],
    /// Dtype to write in.
    pub store: Option<Dtype>,
    /// The rest.
    pub flags: &'a CorpusFlags,
}

/// What was done.
#[derive(Serialize)]
pub struct Report {
    #[serde(flatten)]
    placement: Placement,
    out: PathBuf,
    texts: usize,
    tokens: usize,
    files_written: usize,
    files_kept: usize,
    blocks_run: usize,
    blocks_total: usize,
    bytes_read: u64,
    load_ms: f64,
    run_seconds: f64,
    tokens_per_second: f64,
    peak_rss_mib: Option<f64>,
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{}: {} texts, {} tokens, {} of {} blocks, {:.0} tokens per second\n{} files written, {} there already, in {}",
            self.placement,
            self.texts,
            self.tokens,
            self.blocks_run,
            self.blocks_total,
            self.tokens_per_second,
            self.files_written,
            self.files_kept,
            self.out.display()
        )
    }
}

impl Job<'_> {
    /// Does what is not done yet.
    pub fn run(&self, model: &ModelFlags) -> Result<Report> {
        ensure!(!self.out.is_file(), "{}: is a file; many texts go into a folder", self.out.display());
        if !self.out.is_dir() {
            output::check_folder(self.out)?;
        }
        let piece = self.flags.shard.unwrap_or(Piece::WHOLE);
        let opened = model.open()?;
        let plan = Plan::new(&opened.model, self.names)?;
        let (texts, lines) = self.read(&opened, piece)?;
        let store = self.store.unwrap_or_else(|| opened.model.parts().dtype());
        let files = self.plan_files(&opened, &texts, store, piece)?;
        self.claim(&opened, &texts, store, piece, lines)?;

        plan.preload(&opened.model)?;
        let blocks_run = plan.deepest().blocks_needed(opened.config().layers());
        let run = Run::planned(&opened.model, plan).to_device(Device::Cpu).to_kind(store.kind());
        let start = Instant::now();
        let bar = progress::steps(files.iter().map(|file| file.tokens as u64).sum());
        let (mut written, mut tokens_run) = (0, 0);
        for file in &files {
            let path = self.out.join(&file.name);
            if self.is_done(&path, file) {
                bar.inc(file.tokens as u64);
                continue;
            }
            bar.set_message(format!("tokens, {}", file.name));
            let tensors = no_grad(|| self.compute(&run, &opened, &texts, file, |tokens| bar.inc(tokens)))?;
            lowmem::save_safetensors(&path, &tensors)?;
            written += 1;
            tokens_run += file.tokens;
        }
        bar.finish_and_clear();
        let run_seconds = start.elapsed().as_secs_f64();
        self.write_index(&texts, &files, piece)?;
        Ok(Report {
            placement: opened.placement(),
            out: self.out.to_owned(),
            texts: texts.len(),
            tokens: texts.iter().map(|text| text.ids.len()).sum(),
            files_written: written,
            files_kept: files.len() - written,
            blocks_run: if written > 0 { blocks_run } else { 0 },
            blocks_total: opened.config().layers(),
            bytes_read: opened.model.report().bytes_read,
            load_ms: opened.load_ms,
            run_seconds,
            tokens_per_second: tokens_run as f64 / run_seconds.max(1e-9),
            peak_rss_mib: system::peak_resident_mib(),
        })
    }

    /// The texts of this piece, and how many lines the corpus has.
    fn read(&self, opened: &Opened, piece: Piece) -> Result<(Vec<Text>, usize)> {
        let shown = self.texts.display();
        let corpus = fs::read_to_string(self.texts).with_context(|| format!("cannot read {shown}"))?;
        let mut texts = Vec::new();
        let mut lines = 0;
        let bar = progress::bytes(corpus.len() as u64);
        bar.set_message("reading");
        for (number, line) in corpus.lines().enumerate() {
            bar.inc(line.len() as u64 + 1);
            if line.trim().is_empty() {
                continue;
            }
            lines += 1;
            if (lines - 1) % piece.of != piece.number {
                continue;
            }
            let text = self.text(opened, number + 1, line).with_context(|| format!("{shown}, line {}", number + 1))?;
            texts.push(text);
        }
        bar.finish_and_clear();
        ensure!(lines > 0, "{shown}: holds no texts");
        Ok((texts, lines))
    }

    fn text(&self, opened: &Opened, line: usize, json: &str) -> Result<Text> {
        let expected = "expected a string, {\"text\": ...} or {\"ids\": [...]}";
        let parsed: Line = serde_json::from_str(json).map_err(|_| anyhow::anyhow!("{expected}"))?;
        let full = match parsed {
            Line::Bare(text) => Full { id: None, text: Some(text), ids: None },
            Line::Full(full) => full,
        };
        let mut ids = match (full.ids, full.text) {
            (Some(ids), _) => ids,
            (None, Some(text)) => opened.need_tokenizer()?.encode(&text, true)?,
            (None, None) => bail!(expected),
        };
        if self.flags.truncate {
            ids.truncate(opened.model.architecture().context.max(0) as usize);
        }
        // A text without tokens is no mistake in a corpus; it has an entry and no values.
        if !ids.is_empty() {
            check_row(&ids, 0, opened)?;
        }
        let ids = ids.into_iter().map(u32::try_from).collect::<Result<_, _>>()?;
        Ok(Text { line, id: full.id.unwrap_or_else(|| line.into()), ids })
    }

    /// Which texts go into which batch and file: the same for the same texts and flags.
    fn plan_files(&self, opened: &Opened, texts: &[Text], store: Dtype, piece: Piece) -> Result<Vec<Planned>> {
        let batch_tokens = self.flags.batch_tokens.unwrap_or(4096);
        let file_bytes = self.flags.file_mib.unwrap_or(256) << 20;
        ensure!(batch_tokens > 0 && file_bytes > 0, "--batch-tokens and --file-mib must be at least 1");
        // The longest first: if memory does not suffice, that is known at once.
        let mut order: Vec<usize> = (0..texts.len()).filter(|&text| !texts[text].ids.is_empty()).collect();
        order.sort_by_key(|&text| std::cmp::Reverse(texts[text].ids.len()));
        let mut files: Vec<Planned> = Vec::new();
        for text in order {
            let length = texts[text].ids.len();
            let fits = |file: &&mut Planned| {
                let bytes = self.bytes_per_token(opened, file.longest, store) * (file.tokens + length) as u64;
                bytes <= file_bytes
            };
            let file = match files.last_mut().filter(|file| fits(file)) {
                Some(file) => file,
                None => {
                    let name = piece.file("activations", &format!("-{:05}.safetensors", files.len()));
                    files.push(Planned { name, batches: Vec::new(), tokens: 0, longest: length });
                    let Some(file) = files.last_mut() else { continue };
                    file
                }
            };
            file.tokens += length;
            match file.batches.last_mut() {
                Some(batch) if (batch.len() + 1) * texts[batch[0]].ids.len() <= batch_tokens => batch.push(text),
                _ => file.batches.push(vec![text]),
            }
        }
        Ok(files)
    }

    /// Bytes that all names write for one token.
    fn bytes_per_token(&self, opened: &Opened, longest: usize, store: Dtype) -> u64 {
        let sites = opened.model.sites();
        // Whatever the input decides is one for each token, but the keys of a pattern.
        let size = |dimension: &Dimension| match dimension.axis {
            Axis::Key => longest as i64,
            _ => dimension.size.unwrap_or(1),
        };
        let elements = |site: Site| sites.shape(site).iter().map(size).product::<i64>();
        let all: i64 = self.names.iter().filter_map(|name| sites.parse(name).ok()).map(elements).sum();
        all as u64 * store.bytes() + 8
    }

    /// Makes the folder this job's, or refuses one that belongs to another.
    fn claim(&self, opened: &Opened, texts: &[Text], store: Dtype, piece: Piece, lines: usize) -> Result<()> {
        let ids = texts.iter().flat_map(|text| text.ids.iter().chain(&[u32::MAX]));
        let weights = opened.checkpoint.index().files.iter();
        let shared = json!({
            "format": 1,
            "model": opened.name,
            "config": hash(opened.checkpoint.read_text("config.json")?.bytes()),
            "weight_bytes": weights.map(|file| file.bytes).collect::<Vec<_>>(),
            "dtype": opened.model.parts().dtype(),
            "names": self.names,
            "store": store,
            "batch_tokens": self.flags.batch_tokens.unwrap_or(4096),
            "file_mib": self.flags.file_mib.unwrap_or(256),
            "texts": lines,
            "pieces": piece.of,
        });
        let own = json!({ "piece": piece.number, "ids": hash(ids.flat_map(|id| id.to_le_bytes())) });
        let whole = json!({ "shared": shared, "own": own });
        let own_file = piece.file("plan", ".json");
        // Pieces that share the folder may all begin at once: whoever comes first makes it.
        if let Err(error) = fs::create_dir(self.out)
            && error.kind() != ErrorKind::AlreadyExists
        {
            return Err(error).with_context(|| format!("cannot make {}", self.out.display()));
        }
        for file in fs::read_dir(self.out).with_context(|| format!("cannot read {}", self.out.display()))? {
            let path = file?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.starts_with("plan") && name.ends_with(".json") {
                let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
                let found: Value = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
                for part in if name == own_file { &["shared", "own"][..] } else { &["shared"] } {
                    compare(&path, &found[part], &whole[part])?;
                }
            } else if name.starts_with(&piece.file(".activations", "-")) && name.ends_with(".tmp") {
                // Left by this piece when it was killed.
                fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
            }
        }
        output::write_json(&self.out.join(own_file), &whole)
    }

    /// Whether a file of an earlier run is there. It was written whole, so its header says enough.
    fn is_done(&self, path: &Path, file: &Planned) -> bool {
        let Ok(checkpoint) = Checkpoint::open(path) else { return false };
        let rows = |name: &str| checkpoint.index().get(name).and_then(|tensor| tensor.shape.first().copied());
        let mut names = self.names.iter().map(String::as_str).chain(["ids"]);
        names.all(|name| rows(name) == Some(file.tokens as i64))
    }

    /// The tensors of one file.
    fn compute(
        &self,
        run: &Run,
        opened: &Opened,
        texts: &[Text],
        file: &Planned,
        done: impl Fn(u64),
    ) -> Result<Vec<(String, Tensor)>> {
        let mut tensors: Vec<(String, Tensor)> = Vec::new();
        let mut all_ids = Vec::with_capacity(file.tokens);
        for batch in &file.batches {
            let rows: Vec<Vec<i64>> =
                batch.iter().map(|&text| texts[text].ids.iter().map(|&id| i64::from(id)).collect()).collect();
            let context = || format!("{}, lines {:?}", self.texts.display(), lines(texts, batch));
            let activations: Activations = run.run(&Input::padded(&rows)?).with_context(context)?;
            let first = all_ids.len() as i64;
            for (place, (name, values)) in activations.iter().enumerate() {
                let sites = opened.model.sites();
                let site = sites.parse(name)?;
                let pattern = matches!(site.point, Point::Scores | Point::Pattern);
                // Of a pattern, [batch, head, query, key] to [batch, query, head, key].
                let positions = sites.position_dimension(site);
                let positions = positions.with_context(|| format!("{name} has no value for each token"))?;
                let values = values.f_transpose(1, positions as i64)?;
                if tensors.len() == place {
                    let mut shape = values.size();
                    shape.splice(..2, [file.tokens as i64]);
                    if let (true, Some(keys)) = (pattern, shape.last_mut()) {
                        *keys = file.longest as i64;
                    }
                    tensors.push((name.to_owned(), Tensor::f_zeros(&shape, (values.f_kind()?, Device::Cpu))?));
                }
                let target = &tensors[place].1;
                let mut at = first;
                for (row, ids) in rows.iter().enumerate() {
                    let length = ids.len() as i64;
                    // Position embeddings are the same for all rows.
                    let row = (row as i64).min(values.size()[0] - 1);
                    let mut value = values.f_select(0, row)?.f_narrow(0, 0, length)?;
                    let mut home = target.f_narrow(0, at, length)?;
                    if pattern {
                        value = value.f_narrow(2, 0, length)?;
                        home = home.f_narrow(2, 0, length)?;
                    }
                    home.f_copy_(&value)?;
                    at += length;
                }
            }
            all_ids.extend(rows.iter().flatten().copied());
            done(rows.iter().map(|ids| ids.len() as u64).sum());
        }
        tensors.push(("ids".to_owned(), Tensor::f_from_slice(&all_ids)?.f_to_kind(Kind::Int64)?));
        Ok(tensors)
    }

    /// The index in the order of the corpus, last of all: where it is, everything is there.
    fn write_index(&self, texts: &[Text], files: &[Planned], piece: Piece) -> Result<()> {
        let mut places: Vec<(Option<&str>, usize)> = vec![(None, 0); texts.len()];
        for file in files {
            let mut start = 0;
            for &text in file.batches.iter().flatten() {
                places[text] = (Some(&file.name), start);
                start += texts[text].ids.len();
            }
        }
        let mut index = String::new();
        for (text, (file, start)) in texts.iter().zip(places) {
            let entry = Entry { id: &text.id, line: text.line, file, start, tokens: text.ids.len() };
            index.push_str(&serde_json::to_string(&entry)?);
            index.push('\n');
        }
        output::write(&self.out.join(piece.file("index", ".jsonl")), index.as_bytes())
    }
}

fn lines(texts: &[Text], batch: &[usize]) -> Vec<usize> {
    batch.iter().map(|&text| texts[text].line).collect()
}

/// Refuses a folder of another job, naming what differs.
fn compare(path: &Path, found: &Value, wanted: &Value) -> Result<()> {
    let Some(wanted) = wanted.as_object() else { return Ok(()) };
    for (field, value) in wanted {
        let other = &found[field];
        ensure!(
            other == value,
            "{}: the folder belongs to another job: {field} is {other} there and {value} here; choose another --out",
            path.display()
        );
    }
    Ok(())
}

/// FNV-1a: the same in every build, which the standard library's hasher does not promise.
fn hash(bytes: impl Iterator<Item = u8>) -> String {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    format!("{:016x}", bytes.fold(0xcbf2_9ce4_8422_2325, step))
}
