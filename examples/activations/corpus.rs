//! Many texts: what the flags say, as a job of the library.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use serde::Serialize;
use transformer_utils::{
    corpus::{self, Aggregates, Corpus, Job, LensStatistics, Merged, Piece, Progress, Safetensors, Sink},
    lowmem::{Dtype, HubOptions},
    models::Model,
    text::Tokenizer,
};

use crate::common::{
    edits::EditFlags,
    input::Positions,
    lens_choice::LensChoice,
    model::{ModelFlags, Opened, Placement},
    output, print, progress, system,
};

/// What `--help` says below the flags.
pub const HELP: &str = r#"Many texts:
  With a --file of many texts, --out is a folder: TEXTS.jsonl (a line is a string, {"text": ...} or {"ids": [...]}, with an "id" if it has one; also .gz and .zst), .parquet, a folder of such files (a Hugging Face dataset's), a pattern ('data/train-*.parquet'), or one of these in an object store (s3://bucket/path, gs://, az://, file://), where --out can be, too, or a data set of the Hugging Face Hub (hf://datasets/OWNER/NAME[@REVISION][/PATH]), which is fetched into the shared cache. Keys and endpoints of stores come from the environment: AWS_ACCESS_KEY_ID, AWS_ENDPOINT and so on. Parquet and stores need a build with --features parquet,object-store.

  The folder gets activations-00000.safetensors and so on and, when all of them are there, index.jsonl with one line a text, in the order of the corpus:

    {"id": ..., "line": 1, "file": "activations-00003.safetensors", "start": 120, "tokens": 17, "input": "texts.jsonl"}

  Each file holds one tensor a name, the tokens of all its texts one after the other, [tokens, ...], and [tokens] of each: ids, text (its number in the file) and position. In Python:

    with safe_open(folder / entry["file"], "pt") as file:
        values = file.get_slice("h.3")[entry["start"]:entry["start"] + entry["tokens"]]

  Attention scores and patterns are [tokens, head, key]: a row for each query, zero beyond the text's own keys.

  Files are written whole or not at all. After a kill, the same command goes on where it was. Pieces (--shard) of any number can share the folder, and files are the same byte for byte, however many there were; activations merge FOLDER then checks that nothing is missing and writes the index. A run without --shard does that itself."#;

/// Bytes of text whose sums are a file: some hundred thousand tokens.
const AGGREGATED_BYTES: u64 = 1 << 20;

/// How a `--file` of many texts is worked through.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Many texts (--file TEXTS.jsonl, .parquet, a folder, a pattern, s3://...)")]
pub struct CorpusFlags {
    /// Most tokens in a batch, padding included [default: 4096, fewer where a layer's values would take more than 32 MiB]. A longer text is a batch by itself.
    #[arg(long, value_name = "N")]
    batch_tokens: Option<usize>,

    /// About the MiB of activations in a file [default: 256].
    #[arg(long, value_name = "MIB")]
    file_mib: Option<u64>,

    /// Do piece K of N only, K counted from 0, as SLURM_ARRAY_TASK_ID and JOB_COMPLETION_INDEX are; all pieces can share the
    /// folder. Piece K has the files K, K + N and so on.
    #[arg(long, value_name = "K/N", value_parser = |text: &str| text.parse::<Piece>().map_err(|error| error.to_string()))]
    shard: Option<Piece>,

    /// Cut texts that are longer than the model's positions, instead of refusing them.
    #[arg(long)]
    truncate: bool,

    /// Join texts with the end-of-text token and cut them into rows of N tokens, instead of running each by itself [default of N:
    /// the model's positions].
    #[arg(long, value_name = "N", num_args = 0..=1, require_equals = true, conflicts_with = "truncate")]
    pack: Option<Option<usize>>,

    /// The token between packed texts [default: the one that the model's config names].
    #[arg(long, value_name = "ID", requires = "pack")]
    end_token: Option<i64>,

    /// The column of Parquet files, or the field of lines, with the text [default: text].
    #[arg(long, value_name = "NAME", conflicts_with = "ids_column")]
    column: Option<String>,

    /// The column or field with token ids, which are read in the place of text.
    #[arg(long, value_name = "NAME")]
    ids_column: Option<String>,

    /// The column or field with a text's own id [default: id].
    #[arg(long, value_name = "NAME")]
    id_column: Option<String>,

    /// Read each line of .txt files as a text.
    #[arg(long)]
    lines: bool,

    /// Write the tokens of each file in a random order, which this seed decides.
    #[arg(long, value_name = "SEED")]
    shuffle: Option<u64>,

    /// What files to write [default: safetensors]; parquet has a row a token, as datasets.load_dataset reads them, in f32 or f16.
    #[arg(long, value_enum)]
    format: Option<Format>,

    /// With --format lens, what stands between a stream and the final norm: logit (nothing); tuned:DIR, made by tune_lens or published
    /// by the tuned-lens project; or jacobian:FILE, made by jacobian_lens or for TransformerLens.
    #[arg(long, value_name = "logit|tuned:DIR|jacobian:FILE")]
    lens: Option<LensChoice>,

    /// With --format aggregates: the covariance of features, too.
    #[arg(long)]
    covariance: bool,

    /// With --format aggregates: each feature's K largest values, with their contexts.
    #[arg(long, value_name = "K")]
    top: Option<usize>,
}

/// A value of `--format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A tensor a name.
    Safetensors,
    /// A column a name.
    Parquet,
    /// Not rows but what all have together, aggregates.safetensors: mean, variance and quantiles of each feature, norms of tokens.
    Aggregates,
    /// What the streams of --names [default: of all blocks] say when they are decoded, lens.json and charts: mean KL to the model's
    /// own output, entropy, top-1 agreement, log probability of the next token, calibration.
    Lens,
}

impl CorpusFlags {
    /// Refuses the flags where there is one text only.
    pub fn refuse(&self) -> Result<()> {
        let given = [
            ("--batch-tokens", self.batch_tokens.is_some()),
            ("--file-mib", self.file_mib.is_some()),
            ("--shard", self.shard.is_some()),
            ("--truncate", self.truncate),
            ("--pack", self.pack.is_some()),
            ("--column", self.column.is_some()),
            ("--ids-column", self.ids_column.is_some()),
            ("--id-column", self.id_column.is_some()),
            ("--shuffle", self.shuffle.is_some()),
            ("--format", self.format.is_some()),
            ("--lens", self.lens.is_some()),
            ("--covariance", self.covariance),
            ("--top", self.top.is_some()),
        ];
        match given.into_iter().find(|(_, given)| *given) {
            Some((flag, _)) => bail!("{flag} is for many texts; give them with --file TEXTS.jsonl"),
            None => Ok(()),
        }
    }

    /// Whether `path` means many texts.
    pub fn is_corpus(&self, path: &Path) -> bool {
        let name = path.to_string_lossy().to_ascii_lowercase();
        let many = [".jsonl", ".ndjson", ".parquet", ".gz", ".zst"];
        let is_pattern = !path.exists() && name.contains(['*', '?', '[', '{']);
        self.lines || many.iter().any(|end| name.ends_with(end)) || name.contains("://") || path.is_dir() || is_pattern
    }

    /// The corpus.
    fn open(&self, path: &Path, hub: &HubOptions) -> Result<Corpus> {
        let mut corpus = Corpus::open_with(path, hub)?.lines(self.lines).truncate(self.truncate);
        if let Some(column) = &self.column {
            corpus = corpus.column(column);
        }
        if let Some(column) = &self.ids_column {
            corpus = corpus.ids_column(column);
        }
        if let Some(column) = &self.id_column {
            corpus = corpus.id_column(column);
        }
        match self.pack {
            None => {}
            Some(None) => corpus = corpus.pack(),
            Some(Some(length)) => corpus = corpus.pack_into(length),
        }
        if let Some(end) = self.end_token {
            corpus = corpus.pack_with(end);
        }
        Ok(corpus)
    }

    /// Whether streams are decoded, so that names may be left out.
    pub fn is_lens(&self) -> bool {
        self.format == Some(Format::Lens)
    }

    /// The lens over the corpus, if that is wanted.
    fn lens<'a>(&self, out: &Path, model: &'a Model) -> Result<Option<LensStatistics<'a>>> {
        if !self.is_lens() {
            return Ok(None);
        }
        let lens = LensStatistics::create(out, model)?;
        Ok(Some(match self.lens.as_ref().map(LensChoice::open).transpose()?.flatten() {
            Some(fitted) => lens.fitted(fitted)?,
            None => lens,
        }))
    }

    /// Refuses flags that the format makes nothing of.
    fn check_format(&self) -> Result<()> {
        let aggregates = self.format == Some(Format::Aggregates);
        ensure!(self.is_lens() || self.lens.is_none(), "--lens is for --format lens");
        ensure!(aggregates || !self.covariance, "--covariance is for --format aggregates");
        ensure!(aggregates || self.top.is_none(), "--top is for --format aggregates");
        let has_rows = !aggregates && !self.is_lens();
        ensure!(has_rows || self.shuffle.is_none(), "--shuffle orders rows; --format aggregates and lens have none");
        Ok(())
    }

    /// Where everything else goes.
    fn sink(&self, out: &Path) -> Result<Box<dyn Sink>> {
        Ok(match self.format {
            Some(Format::Aggregates) => {
                Box::new(Aggregates::create(out)?.covariance(self.covariance).top(self.top.unwrap_or(0)))
            }
            #[cfg(feature = "parquet")]
            Some(Format::Parquet) => {
                let sink = corpus::Parquet::create(out)?;
                Box::new(match self.shuffle {
                    Some(seed) => sink.shuffle(seed),
                    None => sink,
                })
            }
            #[cfg(not(feature = "parquet"))]
            Some(Format::Parquet) => bail!("--format parquet: build with --features parquet"),
            _ => {
                let sink = Safetensors::create(out)?;
                Box::new(match self.shuffle {
                    Some(seed) => sink.shuffle(seed),
                    None => sink,
                })
            }
        })
    }
}

/// The whole of the work.
pub struct Work<'a> {
    /// The corpus.
    pub texts: &'a Path,
    /// The folder.
    pub out: &'a Path,
    /// Names to write.
    pub names: &'a [String],
    /// Dtype to write in.
    pub store: Option<Dtype>,
    /// Positions to keep of each text.
    pub positions: Option<&'a Positions>,
    /// Changes to the runs.
    pub edits: &'a EditFlags,
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
    padding: f64,
    files_written: usize,
    files_kept: usize,
    blocks_run: usize,
    blocks_total: usize,
    bytes_read: u64,
    load_ms: f64,
    run_seconds: f64,
    forward_seconds: f64,
    tokens_per_second: f64,
    peak_rss_mib: Option<f64>,
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{}: {} texts, {} tokens, {} of {} blocks, {:.0} tokens per second, {:.1} % padding\n{} files written, {} there already, in {}",
            self.placement,
            self.texts,
            self.tokens,
            self.blocks_run,
            self.blocks_total,
            self.tokens_per_second,
            self.padding * 100.0,
            self.files_written,
            self.files_kept,
            self.out.display()
        )
    }
}

impl Work<'_> {
    /// Does what is not done yet.
    pub fn run(&self, flags: &ModelFlags) -> Result<Report> {
        self.flags.check_format()?;
        let mut opened = flags.open()?;
        let (placement, load_ms) = (opened.placement(), opened.load_ms);
        if let Some(tokenizer) = Tokenizer::of(&opened.checkpoint)? {
            opened.model = opened.model.with_tokens(Arc::new(tokenizer));
        }
        let Opened { model, name, .. } = opened;
        let model = model.with_name(name);
        // Names are refused before a corpus is looked at.
        let lens = self.flags.lens(self.out, &model)?;
        let names = lens.as_ref().map_or_else(|| Ok(self.names.to_vec()), |lens| lens.names(self.names))?;
        let mut job = Job::new(&model, self.flags.open(self.texts, &flags.hub_options())?).names(&names)?;
        job = match self.flags.format {
            // Decoded where the unembedding is.
            Some(Format::Lens) => job.store(self.store).unit_bytes(AGGREGATED_BYTES).device(model.parts().device()),
            // Sums are of what the run computes, and files of them small whatever a unit has.
            Some(Format::Aggregates) => job.store(self.store).unit_bytes(AGGREGATED_BYTES),
            Some(Format::Parquet) => job.store(self.store.unwrap_or(Dtype::F32)),
            _ => job.store(self.store.unwrap_or(Dtype::Bf16)),
        };
        let mut sink = match lens {
            Some(lens) => Box::new(lens),
            None => self.flags.sink(self.out)?,
        };
        job = job.piece(self.flags.shard.unwrap_or_default());
        for edit in self.edits.all() {
            let read = edit.read().with_context(|| format!("reading the edit {edit}"))?;
            job = job.edit(edit.site(), read, edit.to_string());
        }
        if let Some(positions) = self.positions {
            job = job.positions(positions.of_any());
        }
        if let Some(tokens) = self.flags.batch_tokens {
            job = job.batch_tokens(tokens);
        }
        if let Some(mib) = self.flags.file_mib {
            job = job.file_mib(mib);
        }
        let bar = progress::steps(0);
        let job = job.progress(|at: &Progress| {
            bar.set_length(at.units as u64);
            bar.set_position(at.done as u64);
            bar.set_message(format!("files, {} tokens", at.tokens));
        });
        let report = job.run(&mut *sink)?;
        bar.finish_and_clear();
        Ok(Report {
            placement,
            out: self.out.to_owned(),
            texts: report.texts,
            tokens: report.tokens,
            padding: report.padding(),
            files_written: report.units_done,
            files_kept: report.units_kept,
            blocks_run: report.blocks_run,
            blocks_total: model.config().layers(),
            bytes_read: model.report().bytes_read,
            load_ms,
            run_seconds: report.seconds,
            forward_seconds: report.forward_seconds,
            tokens_per_second: report.tokens_per_second(),
            peak_rss_mib: system::peak_resident_mib(),
        })
    }
}

/// Check that every file of a job is there, once and of this job, and write index.jsonl and manifest.json. Reads headers only, and
/// needs no model.
#[derive(Args, Clone, Debug)]
pub struct MergeFlags {
    /// The folder or address that was --out.
    folder: PathBuf,

    /// JSON file for the numbers: units, texts, tokens, bytes; without a name, standard output.
    #[arg(long, value_name = "REPORT", num_args = 0..=1, default_missing_value = "-")]
    json: Option<PathBuf>,
}

impl MergeFlags {
    /// Merges.
    pub fn run(&self) -> Result<()> {
        let merged = corpus::merge(&self.folder)?;
        match &self.json {
            Some(path) if path.as_os_str() == "-" => return print(serde_json::to_string_pretty(&merged)?),
            Some(path) => output::write_json(path, &merged)?,
            None => {}
        }
        let Merged { units, texts, tokens, .. } = merged;
        print(format!("{}: whole; {units} files, {texts} texts, {tokens} tokens", self.folder.display()))
    }
}
