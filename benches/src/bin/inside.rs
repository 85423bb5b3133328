//! What can only be measured inside one process: a forward beside its products by each library, shares of it, generation,
//! observers, captures, the lens beside its floor, and how fast this machine's memory is.
//!
//! The cases that are compared run in turns (A, B, A, B, ...), after one run of each that touches the pages of the mapped
//! weights. `cargo xtask bench` runs this on checkpoints of full size and puts the figures beside what they are compared
//! with; by itself:
//!
//! ```sh
//! cargo run --release -p bench --bin inside -- --model path/to/gpt2-xl --only products,lens
//! ```

#[path = "../../../examples/common/system.rs"]
#[allow(dead_code, reason = "the programs need more of it")]
mod system;

#[path = "inside/corpus.rs"]
mod corpus;
#[path = "inside/patch.rs"]
mod patch;

use std::{
    cell::Cell,
    collections::HashSet,
    fs::File,
    hint::black_box,
    io::{Read, Seek, SeekFrom},
    ops::ControlFlow,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use bench::files;
use clap::{Parser, ValueEnum};
use serde::{Deserialize, Serialize};
use transformer_utils::{
    lens::{Lens, LensOptions, Measure, TunedLens, TunedLensConfig},
    lowmem::{Checkpoint, DtypeChoice, LoadOptions, Progress, Residency},
    models::{
        Action, Architecture, GenerateOptions, Input, Layer, Layout, LogitsAt, Model, NoObserver, Observer,
        ObserverError, Point, Site, generate,
    },
    partial::{Edit, Generation, Plan, Run, partial_forward},
    tch::{self, Device, Kind, Tensor, utils},
};

/// Measure what only one process can.
#[derive(Parser)]
struct Flags {
    /// Checkpoint folder [default: the bundled model].
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,

    /// Tokens of the prompt.
    #[arg(long, default_value_t = 45, value_name = "N")]
    tokens: i64,

    /// Tokens of the prompts of the section `products`, separated by commas [default: that of --tokens].
    #[arg(long, value_delimiter = ',', value_name = "N,..")]
    lengths: Vec<i64>,

    /// New tokens of the section `generate`, with a cache and without.
    #[arg(long, num_args = 2, value_names = ["N", "N"], default_values_t = [33, 9],
        value_parser = clap::value_parser!(u16).range(2..))]
    new_tokens: Vec<u16>,

    /// Timed runs of every case.
    #[arg(long, default_value_t = 5, value_name = "N")]
    repeats: usize,

    /// Sections to run, separated by commas [default: all].
    #[arg(long, value_enum, value_delimiter = ',', value_name = "SECTIONS")]
    only: Vec<Section>,

    /// Print JSON, with every single run, instead of a table.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Section {
    /// Private memory of a whole lens, weights not counted
    Memory,
    /// A whole forward, one that stops after block 5, and three names
    Forward,
    /// A whole forward beside nothing but its matrix products, by each library
    Products,
    /// Forwards that stop after an eighth, a quarter, a half and all of the blocks
    Depth,
    /// Greedy generation, with a cache, under an edit, and without a cache, beside reading the weights as often
    Generate,
    /// Reading the weights and writing half as many bytes, on one and two threads
    Copying,
    /// A forward of one token with an observer that wants nothing
    Observer,
    /// What capturing every site allocates
    Captures,
    /// The lens over all rows, and the one matrix product it cannot do without
    Lens,
    /// Five positions of a long prompt, and a prompt of five
    Positions,
    /// The lens through the translators of a tuned lens
    Tuned,
    /// Patching the stream before every block at every position, and every head
    Patch,
    /// Activations of a corpus into files, and its forwards alone
    Corpus,
}

/// Everything measured.
#[derive(Serialize, Deserialize)]
struct Report {
    model: String,
    dtype: String,
    tokens: i64,
    blocks: usize,
    threads: i32,
    /// In the order in which they were measured.
    figures: Vec<Figure>,
}

/// One number.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Figure {
    name: String,
    /// `s`, `ns`, `MiB`, `bytes` or `count`.
    unit: String,
    median: f64,
    runs: Vec<f64>,
}

impl Figure {
    fn new(name: &str, unit: &str, runs: Vec<f64>) -> Self {
        let mut sorted = runs.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = |at: usize| sorted.get(at).copied().unwrap_or(f64::NAN);
        let median = match sorted.len() {
            0 => f64::NAN,
            count => (middle((count - 1) / 2) + middle(count / 2)) / 2.0,
        };
        Self { name: name.to_owned(), unit: unit.to_owned(), median, runs }
    }

    fn one(name: &str, unit: &str, value: f64) -> Self {
        Self::new(name, unit, vec![value])
    }
}

fn main() -> Result<()> {
    let flags = Flags::parse();
    ensure!(flags.repeats > 0, "--repeats 0: at least one run is needed");
    // Starts libtorch's threads and allocators: what follows is what a model costs.
    let square = Tensor::f_ones([256, 256], (Kind::Float, Device::Cpu))?;
    drop(square.f_matmul(&square)?);
    let resident = system::resident_mib();
    let private = system::private_mib();

    let folder =
        flags.model.clone().unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/tiny-gpt2"));
    let bench = Bench {
        model: open(&folder, Arc::new(Silent))?,
        folder,
        tokens: flags.tokens,
        lengths: if flags.lengths.is_empty() { vec![flags.tokens] } else { flags.lengths.clone() },
        new_tokens: flags.new_tokens.iter().map(|&count| usize::from(count)).collect(),
        repeats: flags.repeats,
        private_at_start: private,
    };
    let limit = bench.model.architecture().context;
    for (flag, tokens) in bench.lengths.iter().map(|length| ("lengths", *length)).chain([("tokens", bench.tokens)]) {
        ensure!((1..=limit).contains(&tokens), "--{flag} {tokens}: the model reads 1 to {limit}");
    }

    let mut figures = Vec::new();
    figures.extend(resident.map(|mib| Figure::one("start_resident", "MiB", mib)));
    figures.extend(private.map(|mib| Figure::one("start_private", "MiB", mib)));
    for section in Section::value_variants() {
        if flags.only.is_empty() || flags.only.contains(section) {
            let start = Instant::now();
            figures.extend(tch::no_grad(|| bench.section(*section)).with_context(|| format!("{section:?}"))?);
            eprintln!("{section:?}: {:.1} s", start.elapsed().as_secs_f64());
        }
    }
    let name = bench.folder.file_name().unwrap_or_default();
    let report = Report {
        model: name.to_string_lossy().into_owned(),
        dtype: bench.model.parts().dtype().to_string(),
        tokens: bench.tokens,
        blocks: bench.model.config().layers(),
        threads: tch::get_num_threads(),
        figures,
    };
    if flags.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        println!("{} ({}), {} tokens, {} threads", report.model, report.dtype, report.tokens, report.threads);
        let width = report.figures.iter().map(|figure| figure.name.len()).max().unwrap_or(0);
        for Figure { name, unit, median, runs } in &report.figures {
            println!("{name:width$}  {median:>14.6} {unit:5}  median of {}", runs.len());
        }
    }
    Ok(())
}

struct Silent;

impl Progress for Silent {}

fn open(folder: &Path, progress: Arc<dyn Progress>) -> Result<Model> {
    let options = LoadOptions::default().dtype(DtypeChoice::Auto).residency(Residency::Mapped).progress(progress);
    Ok(Model::open(&Checkpoint::open(folder)?, &options)?)
}

/// Something that can be run again, and how many seconds it took.
type Case<'a> = &'a dyn Fn() -> Result<f64>;

/// Runs every case once untimed and then `repeats` times, in turns; gives back the runs of each.
fn turns<const N: usize>(repeats: usize, cases: [Case; N]) -> Result<[Vec<f64>; N]> {
    let mut runs = [const { Vec::new() }; N];
    for turn in 0..=repeats {
        for (case, runs) in cases.iter().zip(&mut runs) {
            let seconds = case()?;
            if turn > 0 {
                runs.push(seconds);
            }
        }
    }
    Ok(runs)
}

/// Seconds of `work`, its result dropped outside of them.
fn timed<T>(work: impl FnOnce() -> Result<T>) -> Result<f64> {
    let start = Instant::now();
    let result = work()?;
    let seconds = start.elapsed().as_secs_f64();
    drop(black_box(result));
    Ok(seconds)
}

struct Bench {
    model: Model,
    folder: PathBuf,
    tokens: i64,
    lengths: Vec<i64>,
    /// With a cache, and without.
    new_tokens: Vec<usize>,
    repeats: usize,
    private_at_start: Option<f64>,
}

impl Bench {
    fn section(&self, section: Section) -> Result<Vec<Figure>> {
        match section {
            Section::Memory => self.memory(),
            Section::Forward => self.forward(),
            Section::Products => self.products(),
            Section::Depth => self.depth(),
            Section::Generate => self.generate(),
            Section::Copying => self.copying(),
            Section::Observer => self.observer(),
            Section::Captures => self.captures(),
            Section::Lens => self.lens(),
            Section::Positions => self.positions(),
            Section::Tuned => self.tuned(),
            Section::Patch => self.patch(),
            Section::Corpus => self.corpus(),
        }
    }

    /// The token ids that `cargo xtask bench` gives the programs, wrapped round where the vocabulary is small.
    fn ids(&self, count: i64) -> Vec<i64> {
        (0..count).map(|index| (1000 + 23 * index) % self.model.architecture().vocabulary).collect()
    }

    fn input(&self, count: i64) -> Result<Input> {
        Ok(Input::from_rows(&[self.ids(count)])?)
    }

    fn whole(&self, input: &Input) -> Result<f64> {
        timed(|| Ok(self.model.forward(input, &mut NoObserver)?))
    }

    fn forward(&self) -> Result<Vec<Figure>> {
        let input = self.input(self.tokens)?;
        let layers = self.model.config().layers();
        // The sites of the README's names, by names that every family has, nearer to the input in a model without six blocks.
        let block = |asked: usize| asked.min(layers.saturating_sub(1));
        let fused = format!("h.{}.attn.qkv_proj", block(2));
        let middle = match self.model.sites().parse(&fused) {
            Ok(_) => fused,
            Err(_) => format!("h.{}.attn.q_proj", block(2)),
        };
        let names = [format!("h.{}", block(0)), middle, format!("h.{}.mlp", block(5))];
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let whole = || self.whole(&input);
        let six = || timed(|| Ok(self.model.forward(&input, &mut StopsAt(Site::block(block(5), Point::Output)))?));
        let partial = || timed(|| Ok(partial_forward(&self.model, &names, &input)?));
        let [whole, six, partial] = turns(self.repeats, [&whole, &six, &partial])?;
        let share = block(5) as f64 + 1.0;
        let share = whole.iter().map(|seconds| seconds * share / layers.max(1) as f64).collect();
        Ok(vec![
            Figure::new("forward", "s", whole),
            Figure::new("six_blocks_share", "s", share),
            Figure::new("six_blocks", "s", six),
            Figure::new("three_names", "s", partial),
        ])
    }

    /// A forward of each length beside its products alone, over the model's own weights, so that they come from memory as
    /// they do in the forward. Inputs lie ready in the form that the library wants; results are dropped.
    fn products(&self) -> Result<Vec<Figure>> {
        let matrices = self.matrices()?;
        let kind = self.model.unembedding()?.kind()?;
        let mut figures = Vec::new();
        for &tokens in &self.lengths {
            let input = self.input(tokens)?;
            let forward = || self.whole(&input);
            let mut add = |name: &str, runs| figures.push(Figure::new(&format!("{name}_{tokens}"), "s", runs));
            let plain = Rows::ready(&matrices, tokens, kind, false)?;
            let plain = || timed(|| plain.times_all(&matrices));
            let rest = Rest::ready(self.model.architecture(), tokens, kind)?;
            let rest = || timed(|| rest.run());
            // oneDNN takes bf16 anyway.
            if kind == Kind::Float && utils::has_mkldnn() {
                let prepared = Rows::ready(&matrices, tokens, kind, true)?;
                let prepared = || timed(|| prepared.times_all(&matrices));
                let [forward, blas, onednn, rest] = turns(self.repeats, [&forward, &plain, &prepared, &rest])?;
                add("forward", forward);
                add("products_blas", blas);
                add("products_onednn", onednn);
                add("attention_and_activation", rest);
            } else {
                let [forward, own, rest] = turns(self.repeats, [&forward, &plain, &rest])?;
                add("forward", forward);
                add(if kind == Kind::Float { "products_blas" } else { "products_own" }, own);
                add("attention_and_activation", rest);
            }
        }
        Ok(figures)
    }

    /// All matrices that a token is multiplied by, in order.
    fn matrices(&self) -> Result<Vec<Matrix>> {
        let parts = self.model.parts();
        let out_in = self.model.config().family.layout() == Layout::OutIn;
        let mut matrices = Vec::new();
        for (part, label) in parts.labels().iter().enumerate() {
            if label.starts_with("h.") {
                let mut tensors = parts.names(part)?.into_iter().zip(parts.get(part, None)?).peekable();
                while let Some((_, weight)) = tensors.next() {
                    if weight.dim() == 2 {
                        let bias = tensors.next_if(|(name, _)| name.ends_with(".bias"));
                        matrices.push(Matrix { weight, bias: bias.map(|(_, bias)| bias), out_in });
                    }
                }
            }
        }
        let head = self.model.unembedding()?;
        let bias = head.bias().map(Tensor::shallow_clone);
        matrices.push(Matrix { weight: head.weight().shallow_clone(), bias, out_in: true });
        Ok(matrices)
    }

    fn depth(&self) -> Result<Vec<Figure>> {
        let input = self.input(self.tokens)?;
        let layers = self.model.config().layers();
        let depths = [8, 4, 2, 1].map(|part| (layers / part).max(1));
        let whole = || self.whole(&input);
        let stopped = depths.map(|depth| {
            let site = Site::block(depth - 1, Point::Output);
            let input = &input;
            move || timed(|| Ok(self.model.forward(input, &mut StopsAt(site))?))
        });
        let [eighth, quarter, half, all] = &stopped;
        let [whole, runs @ ..] = turns(self.repeats, [&whole, eighth, quarter, half, all])?;
        let mut figures =
            vec![Figure::one("depth_layers", "count", layers as f64), Figure::new("depth_whole", "s", whole)];
        figures.extend(depths.iter().zip(runs).map(|(depth, runs)| Figure::new(&format!("depth_{depth}"), "s", runs)));
        Ok(figures)
    }

    /// Seconds between two new tokens, the first not counted: it comes with the prompt. With an edit: a direction that is added to
    /// the stream in the middle of the model at every token.
    fn generate(&self) -> Result<Vec<Figure>> {
        let prompt = self.ids(self.tokens);
        let [cached, uncached] = self.new_tokens[..] else { return Err(anyhow!("--new-tokens takes two numbers")) };
        let context = self.model.architecture().context;
        for new in [cached, uncached] {
            let asked = self.tokens + new as i64;
            ensure!(asked <= context, "--tokens and --new-tokens: {asked} in all, the model reads {context}");
        }
        let with = || {
            let end_tokens = Some(Vec::new());
            let options = GenerateOptions::default().max_new_tokens(cached).end_tokens(end_tokens);
            let mut times = Vec::with_capacity(cached);
            generate(&self.model, std::slice::from_ref(&prompt), &options, |_| {
                times.push(Instant::now());
                ControlFlow::Continue(())
            })?;
            between(&times)
        };
        let middle = Site::block(self.model.config().layers() / 2, Point::Output);
        let direction = Tensor::f_ones([self.model.architecture().d_model], (Kind::Float, Device::Cpu))?;
        let generation = Generation::new(&self.model).edit(middle, Edit::add(&direction))?;
        let edited = || {
            let options = GenerateOptions::default().max_new_tokens(cached).end_tokens(Some(Vec::new()));
            let mut times = Vec::with_capacity(cached);
            generation.stream(&prompt, &options, |_| {
                times.push(Instant::now());
                ControlFlow::Continue(())
            })?;
            between(&times)
        };
        let without = || {
            let mut ids = prompt.clone();
            let mut times = Vec::with_capacity(uncached);
            for _ in 0..uncached {
                let input = Input::from_rows(&[&ids])?.logits_at(LogitsAt::Last);
                let logits = self.model.forward(&input, &mut NoObserver)?.logits.context("the run was stopped")?;
                ids.push(logits.f_argmax(None, false)?.f_int64_value(&[])?);
                times.push(Instant::now());
            }
            between(&times)
        };
        let weights = self.weights()?;
        let passes = cached.saturating_sub(1).max(1);
        // Libtorch's sum needs every number and next to no arithmetic.
        let read = || {
            let all = timed(|| {
                for weight in std::iter::repeat_n(&weights, passes).flatten() {
                    drop(black_box(weight.f_sum(Kind::Float)?));
                }
                Ok(())
            });
            Ok(all? / passes as f64)
        };
        let [with, edited, without, read] = turns(self.repeats, [&with, &edited, &without, &read])?;
        let bytes: usize = weights.iter().map(|weight| size_of::<f32>() * weight.numel()).sum();
        Ok(vec![
            Figure::new("token_cached", "s", with),
            Figure::new("token_edited", "s", edited),
            Figure::new("token_uncached", "s", without),
            Figure::new("token_read", "s", read),
            Figure::one("token_bytes", "bytes", bytes as f64),
        ])
    }

    /// What a token cannot do without reading, the matrices behind the embedding, as numbers of f32 whatever they hold.
    fn weights(&self) -> Result<Vec<Tensor>> {
        let parts = self.model.parts();
        let mut weights = Vec::new();
        for part in 1..parts.len() {
            let matrices = parts.get(part, None)?.into_iter().filter(|tensor| tensor.dim() == 2);
            weights.extend(matrices.map(|matrix| matrix.f_view_dtype(Kind::Float)).collect::<Result<Vec<_>, _>>()?);
        }
        Ok(weights)
    }

    /// What converting f32 to bf16 cannot do without: reading the files, which are in the page cache, and writing half as
    /// many bytes to memory that nobody has touched.
    fn copying(&self) -> Result<Vec<Figure>> {
        let paths = files::weights(&self.folder)?;
        let one = || copied(&paths, 1);
        let two = || copied(&paths, 2);
        let [one, two] = turns(self.repeats, [&one, &two])?;
        Ok(vec![Figure::new("copying_1", "s", one), Figure::new("copying_2", "s", two)])
    }

    fn tuned(&self) -> Result<Vec<Figure>> {
        // Zeros cost what anything costs.
        let config = TunedLensConfig::of("random", &self.model)?;
        let tuned = TunedLens::identity(config, Device::Cpu)?;
        let (input, ids) = (self.input(self.tokens)?, self.ids(self.tokens));
        let forward = || self.whole(&input);
        let through = || {
            let options = LensOptions::default().measures([Measure::Kl]);
            timed(|| Ok(Lens::new(&self.model, options)?.tuned(&tuned)?.table("", &ids, |_| String::new())?))
        };
        let [forward, through] = turns(self.repeats, [&forward, &through])?;
        Ok(vec![Figure::new("tuned_forward", "s", forward), Figure::new("tuned_kl", "s", through)])
    }

    fn observer(&self) -> Result<Vec<Figure>> {
        let input = self.input(1)?;
        let quiet = || self.whole(&input);
        // A place no model has: asked about everywhere, seen nowhere.
        let mut listening = Listening { wanted: vec![Site::block(usize::MAX, Point::Output)], asked: Cell::new(0) };
        self.model.forward(&input, &mut listening)?;
        let asked = listening.asked.get();
        let listening = || {
            let mut observer = Listening { wanted: listening.wanted.clone(), asked: Cell::new(0) };
            timed(|| Ok(self.model.forward(&input, &mut observer)?))
        };
        // Short runs scatter.
        let [quiet, listening] = turns((10 * self.repeats).max(50), [&quiet, &listening])?;
        // What the difference of two medians cannot resolve: the questions by themselves.
        let questions = || {
            let observer = Listening { wanted: vec![Site::block(usize::MAX, Point::Output)], asked: Cell::new(0) };
            let observer: &dyn Observer = black_box(&observer);
            let start = Instant::now();
            for block in 0..QUESTIONS {
                black_box(observer.wants(black_box(Site::block(block, Point::Z))));
            }
            Ok(start.elapsed().as_secs_f64() * 1e9 / QUESTIONS as f64)
        };
        let [question] = turns(self.repeats, [&questions])?;
        Ok(vec![
            Figure::new("one_token", "s", quiet),
            Figure::new("one_token_observed", "s", listening),
            Figure::one("observer_questions", "count", asked as f64),
            Figure::new("observer_question", "ns", question),
        ])
    }

    /// Private memory before and after a run that captures everything.
    ///
    /// Only allocations that are mappings of their own come and go page by page; smaller ones would hide in what the
    /// allocator keeps. Where that begins is decided when a process starts, so this runs in one of its own.
    fn captures(&self) -> Result<Vec<Figure>> {
        const THRESHOLD: &str = "MALLOC_MMAP_THRESHOLD_";
        if std::env::var_os(THRESHOLD).is_none() {
            let output = Command::new(std::env::current_exe()?)
                .args(["--only", "captures", "--json", "--tokens", &self.tokens.to_string(), "--model"])
                .arg(&self.folder)
                .env(THRESHOLD, "16384")
                .output()?;
            ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
            let report: Report = serde_json::from_slice(&output.stdout)?;
            return Ok(report.figures.into_iter().filter(|figure| figure.name.starts_with("captures")).collect());
        }
        let input = self.input(self.tokens)?;
        let names: Vec<String> = self.model.sites().iter().filter_map(|info| info.names.into_iter().next()).collect();
        let plan = Plan::new(&self.model, &names)?;
        // Whatever is allocated once and kept is there after this.
        drop(Run::planned(&self.model, plan.clone()).run(&input)?);
        let Some(before) = system::private_mib() else { return Ok(Vec::new()) };
        let captured = Run::planned(&self.model, plan).run(&input)?;
        let Some(after) = system::private_mib() else { return Ok(Vec::new()) };
        let mut seen = HashSet::new();
        let storages = captured.iter().filter(|(_, tensor)| seen.insert(tensor.data_ptr()));
        let bytes = storages
            .map(|(_, tensor)| Ok(tensor.numel() as f64 * tensor.f_kind()?.elt_size_in_bytes() as f64))
            .sum::<Result<f64>>()?;
        Ok(vec![
            Figure::one("captures", "count", captured.iter().count() as f64),
            Figure::one("captures_storage", "MiB", bytes / system::MIB),
            Figure::one("captures_allocated", "MiB", after - before),
        ])
    }

    /// The whole lens over `ids`.
    fn table(&self, ids: &[i64], measures: &[Measure]) -> Result<f64> {
        let options = LensOptions::default().measures(measures.to_vec());
        timed(|| Ok(Lens::new(&self.model, options)?.table("", ids, |_| String::new())?))
    }

    fn lens(&self) -> Result<Vec<Figure>> {
        let input = self.input(self.tokens)?;
        let ids = self.ids(self.tokens);
        let unembedding = self.model.unembedding()?.weight().shallow_clone();
        let (vocabulary, width) = unembedding.size2()?;
        let rows = Lens::new(&self.model, LensOptions::default())?.row_names().count() as i64;
        let options = (unembedding.f_kind()?, unembedding.device());
        let streams = Tensor::f_randn([rows * self.tokens, width], (Kind::Float, options.1))?.f_to_kind(options.0)?;
        // The product's memory is there and touched: the floor is arithmetic alone.
        let product = Tensor::f_zeros([rows * self.tokens, vocabulary], options)?;
        let transposed = unembedding.f_transpose(0, 1)?;
        let forward = || self.whole(&input);
        let probs = || self.table(&ids, &[Measure::Probs]);
        let kl = || self.table(&ids, &[Measure::Kl]);
        let four = || self.table(&ids, &FOUR);
        let floor = || timed(|| Ok(streams.f_mm_out(&product, &transposed)?));
        let prepared =
            (options.0 == Kind::Float && utils::has_mkldnn()).then(|| streams.f_to_mkldnn(None)).transpose()?;
        let onednn = || match &prepared {
            Some(prepared) => timed(|| sliced(prepared, &unembedding)),
            None => Ok(f64::NAN),
        };
        let cases: [Case; 6] = [&forward, &probs, &kl, &four, &floor, &onednn];
        let [forward, probs, kl, four, floor, onednn] = turns(self.repeats, cases)?;
        let mut figures = vec![
            Figure::one("lens_rows", "count", rows as f64),
            Figure::new("lens_forward", "s", forward),
            Figure::new("lens_probs", "s", probs),
            Figure::new("lens_kl", "s", kl),
            Figure::new("lens_four", "s", four),
            Figure::new(if options.0 == Kind::Float { "lens_product_blas" } else { "lens_product_own" }, "s", floor),
        ];
        figures.extend(prepared.is_some().then(|| Figure::new("lens_product_onednn", "s", onednn)));
        Ok(figures)
    }

    /// What the lens costs after the model has run, for five positions of a long prompt and for five tokens.
    fn positions(&self) -> Result<Vec<Figure>> {
        let limit = self.model.architecture().context;
        let long = self.ids(limit.min(1024));
        let first = 40.min(long.len().saturating_sub(5));
        let few = 5.min(long.len());
        let short = self.ids(few as i64);
        let sliced = || self.beyond(&long, Some(first..first + few));
        let five = || self.beyond(&short, None);
        let [sliced, five] = turns(self.repeats, [&sliced, &five])?;
        Ok(vec![
            Figure::one("positions_prompt", "count", long.len() as f64),
            Figure::new("positions_sliced", "s", sliced),
            Figure::new("positions_five", "s", five),
        ])
    }

    /// Seconds from the end of the model's run to the first token text, which the lens asks for when all is measured.
    ///
    /// A long run scatters by more than the lens over five positions takes, so that subtracting a forward would say
    /// nothing. A fresh model tells when its last norm is placed, which is when the blocks have run.
    fn beyond(&self, ids: &[i64], positions: Option<std::ops::Range<usize>>) -> Result<f64> {
        let mark = Arc::new(FinalNormPlaced::default());
        let model = open(&self.folder, mark.clone())?;
        let options = LensOptions::default().measures([Measure::Kl]).positions(positions);
        let ended = Cell::new(None);
        Lens::new(&model, options)?.table("", ids, |_| {
            ended.set(ended.get().or_else(|| Some(Instant::now())));
            String::new()
        })?;
        let began = *mark.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (began, ended) = began.zip(ended.get()).context("the lens placed no final norm")?;
        Ok((ended - began).as_secs_f64())
    }

    /// The most private memory while a lens runs, above what the process held before it opened the model. Mapped weights
    /// are not private.
    fn memory(&self) -> Result<Vec<Figure>> {
        let Some(start) = self.private_at_start else { return Ok(Vec::new()) };
        let ids = self.ids(self.tokens);
        let measures: [(&str, &[Measure]); 3] =
            [("memory_kl", &[Measure::Kl]), ("memory_probs", &[Measure::Probs]), ("memory_four", &FOUR)];
        let mut figures = Vec::new();
        for (name, measures) in measures {
            let (peak, _) = peak_private(|| self.table(&ids, measures))?;
            figures.push(Figure::one(name, "MiB", peak - start));
        }
        Ok(figures)
    }
}

const FOUR: [Measure; 4] = [Measure::Logits, Measure::Probs, Measure::Ranks, Measure::Kl];

const QUESTIONS: usize = 1_000_000;

/// Seconds from one of these moments to the next, on average.
fn between(times: &[Instant]) -> Result<f64> {
    let (first, last) = times.first().zip(times.last()).context("no token came")?;
    ensure!(times.len() > 1, "one token has no distance");
    Ok((*last - *first).as_secs_f64() / (times.len() - 1) as f64)
}

/// What is read at a time: both this and the half that is written stay in a core's own cache.
const COPIED: usize = 512 << 10;

/// A stretch of a file, and where half of it goes.
struct Stretch<'a> {
    path: &'a Path,
    offset: u64,
    bytes: usize,
    target: &'a mut [u8],
}

/// Seconds of reading the files on so many threads and writing every other half of what was read to fresh memory.
fn copied(paths: &[PathBuf], threads: usize) -> Result<f64> {
    let mut sizes = Vec::new();
    for path in paths {
        sizes.push(path.metadata().with_context(|| path.display().to_string())?.len());
    }
    timed(|| {
        // Zeros of this size are pages that come when they are written to.
        let mut memory = vec![0_u8; usize::try_from(sizes.iter().sum::<u64>() / 2)?];
        let mut free = &mut memory[..];
        let mut stretches = Vec::new();
        for (path, &size) in paths.iter().zip(&sizes) {
            for offset in (0..size).step_by(COPIED) {
                let bytes = (size - offset).min(COPIED as u64) as usize;
                let (target, rest) = free.split_at_mut((bytes / 2).min(free.len()));
                free = rest;
                stretches.push(Stretch { path, offset, bytes, target });
            }
        }
        let queue = Mutex::new(stretches.into_iter());
        let worker = || -> Result<()> {
            let mut buffer = vec![0; COPIED];
            let mut opened: Option<(&Path, File)> = None;
            loop {
                let Some(stretch) = queue.lock().unwrap_or_else(PoisonError::into_inner).next() else { return Ok(()) };
                let context = || format!("reading {}", stretch.path.display());
                let file = match &mut opened {
                    Some((path, file)) if *path == stretch.path => file,
                    other => &mut other.insert((stretch.path, File::open(stretch.path).with_context(context)?)).1,
                };
                file.seek(SeekFrom::Start(stretch.offset)).with_context(context)?;
                let read = &mut buffer[..stretch.bytes];
                file.read_exact(read).with_context(context)?;
                stretch.target.copy_from_slice(&read[..stretch.target.len()]);
            }
        };
        thread::scope(|scope| {
            let workers: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
            workers.into_iter().try_for_each(|worker| worker.join().map_err(|_| anyhow!("a reader panicked"))?)
        })?;
        Ok(memory)
    })
}

/// Rows of the unembedding that are multiplied at a time by oneDNN, which has no way to write into memory that is there:
/// results of this size the allocator hands out again without new pages.
const SLICE: i64 = 2048;

/// The streams times the unembedding, a slice of the vocabulary at a time.
fn sliced(streams: &Tensor, unembedding: &Tensor) -> Result<()> {
    let vocabulary = unembedding.size2()?.0;
    for begin in (0..vocabulary).step_by(SLICE as usize) {
        let slice = unembedding.f_narrow(0, begin, SLICE.min(vocabulary - begin))?;
        drop(black_box(streams.f_mkldnn_linear(&slice, None::<&Tensor>)?));
    }
    Ok(())
}

/// A matrix of the model with its bias.
struct Matrix {
    weight: Tensor,
    bias: Option<Tensor>,
    /// Whether it lies as `[out, in]`.
    out_in: bool,
}

impl Matrix {
    /// `(in, out)`.
    fn sizes(&self) -> Result<(i64, i64)> {
        let (first, second) = self.weight.size2()?;
        Ok(if self.out_in { (second, first) } else { (first, second) })
    }
}

/// Random rows of every width that the matrices take.
struct Rows {
    tokens: i64,
    /// Whether oneDNN holds them.
    onednn: bool,
    widths: Vec<(i64, Tensor)>,
}

impl Rows {
    fn ready(matrices: &[Matrix], tokens: i64, kind: Kind, onednn: bool) -> Result<Self> {
        let mut widths: Vec<(i64, Tensor)> = Vec::new();
        for matrix in matrices {
            let (width, _) = matrix.sizes()?;
            if widths.iter().all(|(known, _)| *known != width) {
                let rows = Tensor::f_randn([tokens, width], (Kind::Float, Device::Cpu))?.f_to_kind(kind)?;
                widths.push((width, if onednn { rows.f_to_mkldnn(None)? } else { rows }));
            }
        }
        Ok(Self { tokens, onednn, widths })
    }

    fn times_all(&self, matrices: &[Matrix]) -> Result<()> {
        for matrix in matrices {
            let (width, out) = matrix.sizes()?;
            let rows = self.widths.iter().find(|(known, _)| *known == width);
            let (_, rows) = rows.with_context(|| format!("no rows of {width}"))?;
            let (weight, bias) = (&matrix.weight, matrix.bias.as_ref());
            drop(black_box(match (self.onednn, matrix.out_in, bias) {
                (true, true, _) => rows.f_mkldnn_linear(weight, bias)?,
                // The gradient of `y = g wᵀ` with respect to `g` is the product in this layout; it takes no bias.
                (true, false, _) => Tensor::f_mkldnn_linear_backward_input([self.tokens, out], rows, weight)?,
                (false, true, _) => rows.f_linear(weight, bias)?,
                (false, false, Some(bias)) => bias.f_addmm(rows, weight)?,
                (false, false, None) => rows.f_matmul(weight)?,
            }));
        }
        Ok(())
    }
}

/// What a forward computes beside its products with weights, by one call of libtorch each.
struct Rest {
    /// For each layer the queries, `[1, head, position, d_head]`, which stand for keys and values, too, and what the
    /// non-linearity reads, `[position, d_mlp]`.
    layers: Vec<(Tensor, Tensor)>,
}

impl Rest {
    fn ready(architecture: &Architecture, tokens: i64, kind: Kind) -> Result<Self> {
        let random = |shape: &[i64]| Tensor::f_randn(shape, (Kind::Float, Device::Cpu))?.f_to_kind(kind);
        let layer = |layer: &Layer| {
            let attention = &layer.attention;
            Ok((random(&[1, attention.heads, tokens, attention.d_head])?, random(&[tokens, layer.mlp.d_mlp])?))
        };
        Ok(Self { layers: architecture.layers.iter().map(layer).collect::<Result<_>>()? })
    }

    fn run(&self) -> Result<()> {
        for (heads, neurons) in &self.layers {
            let bias = None::<&Tensor>;
            drop(black_box(Tensor::f_scaled_dot_product_attention(heads, heads, heads, bias, 0.0, true, None, false)?));
            drop(black_box(neurons.f_gelu("tanh")?));
        }
        Ok(())
    }
}

/// Wants nothing and ends the run.
struct StopsAt(Site);

impl Observer for StopsAt {
    fn wants(&self, _: Site) -> bool {
        false
    }

    fn observe(&mut self, _: Site, _: &Tensor) -> Result<Action, ObserverError> {
        Ok(Action::Continue)
    }

    fn deepest(&self) -> Option<Site> {
        Some(self.0)
    }
}

/// Compares every site with a list, as a run that captures does, and counts.
struct Listening {
    wanted: Vec<Site>,
    asked: Cell<u64>,
}

impl Observer for Listening {
    fn wants(&self, site: Site) -> bool {
        self.asked.set(self.asked.get() + 1);
        self.wanted.contains(&site)
    }

    fn observe(&mut self, _: Site, _: &Tensor) -> Result<Action, ObserverError> {
        Ok(Action::Continue)
    }
}

/// When the weights of the last norm were handed out for the first time.
#[derive(Default)]
struct FinalNormPlaced(Mutex<Option<Instant>>);

impl Progress for FinalNormPlaced {
    fn placed(&self, name: &str, _: u64) {
        if name.ends_with("ln_f.weight") {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(Instant::now);
        }
    }
}

/// The most private memory in MiB while `work` runs, looked at every millisecond, and its result.
fn peak_private<T>(work: impl FnOnce() -> Result<T>) -> Result<(f64, T)> {
    let running = AtomicBool::new(true);
    let (send, receive) = mpsc::channel();
    let result = thread::scope(|scope| {
        scope.spawn(|| {
            let send = send;
            let mut peak: f64 = 0.0;
            while running.load(Ordering::Relaxed) {
                peak = peak.max(system::private_mib().unwrap_or(f64::NAN));
                thread::sleep(Duration::from_millis(1));
            }
            let _ = send.send(peak);
        });
        let result = work();
        running.store(false, Ordering::Relaxed);
        result
    })?;
    Ok((receive.recv()?, result))
}
