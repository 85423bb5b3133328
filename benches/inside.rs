//! What can only be measured inside one process: shares of a forward, observers, captures, and the lens beside its floor.
//!
//! The cases that are compared run in turns (A, B, A, B, ...), after one run of each that touches the pages of the mapped
//! weights. `cargo xtask bench` runs this on checkpoints of full size and puts the figures beside what they are compared
//! with; by itself:
//!
//! ```sh
//! cargo bench --bench inside -- --model path/to/gpt2-xl --only forward,lens
//! ```

#[path = "../examples/common/system.rs"]
#[allow(dead_code, reason = "the programs need more of it")]
mod system;

use std::{
    cell::Cell,
    collections::HashSet,
    hint::black_box,
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

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use serde::{Deserialize, Serialize};
use transformer_utils::{
    lens::{Lens, LensOptions, Measure},
    lowmem::{Checkpoint, DtypeChoice, LoadOptions, Progress, Residency},
    models::{Action, Input, Model, NoObserver, Observer, ObserverError, Point, Site},
    partial::{Plan, Run, partial_forward},
    tch::{self, Kind, Tensor},
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

    /// Timed runs of every case.
    #[arg(long, default_value_t = 5, value_name = "N")]
    repeats: usize,

    /// Sections to run, separated by commas [default: all].
    #[arg(long, value_enum, value_delimiter = ',', value_name = "SECTIONS")]
    only: Vec<Section>,

    /// Print JSON, with every single run, instead of a table.
    #[arg(long)]
    json: bool,

    /// What Cargo adds.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Section {
    /// Private memory of a whole lens, weights not counted
    Memory,
    /// A whole forward, one that stops after block 5, and three names
    Forward,
    /// A forward of one token with an observer that wants nothing
    Observer,
    /// What capturing every site allocates
    Captures,
    /// The lens over all rows, and the one matrix product it cannot do without
    Lens,
    /// Five positions of a long prompt, and a prompt of five
    Positions,
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
    let square = Tensor::f_ones([256, 256], (Kind::Float, tch::Device::Cpu))?;
    drop(square.f_matmul(&square)?);
    let resident = system::resident_mib();
    let private = system::private_mib();

    let folder = flags.model.clone().unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/tiny-gpt2"));
    let bench = Bench {
        model: open(&folder, Arc::new(Silent))?,
        folder,
        tokens: flags.tokens,
        repeats: flags.repeats,
        private_at_start: private,
    };
    let limit = bench.model.config().positions;
    ensure!((1..=limit).contains(&flags.tokens), "--tokens {}: the model reads 1 to {limit}", flags.tokens);

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
    let options =
        LoadOptions { dtype: DtypeChoice::Auto, residency: Residency::Mapped, progress, ..LoadOptions::default() };
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
    repeats: usize,
    private_at_start: Option<f64>,
}

impl Bench {
    fn section(&self, section: Section) -> Result<Vec<Figure>> {
        match section {
            Section::Memory => self.memory(),
            Section::Forward => self.forward(),
            Section::Observer => self.observer(),
            Section::Captures => self.captures(),
            Section::Lens => self.lens(),
            Section::Positions => self.positions(),
        }
    }

    /// The token ids that `cargo xtask bench` gives the programs, wrapped round where the vocabulary is small.
    fn ids(&self, count: i64) -> Vec<i64> {
        (0..count).map(|index| (1000 + 23 * index) % self.model.config().vocabulary).collect()
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
        // The names of the README, nearer to the input in a model without six blocks.
        let block = |asked: usize| asked.min(layers.saturating_sub(1));
        let fused = format!("h.{}.attn.c_attn", block(2));
        let middle = match self.model.sites().parse(&fused) {
            Ok(_) => fused,
            Err(_) => format!("h.{}.attn.attention.q_proj", block(2)),
        };
        let names = [format!("h.{}", block(0)), middle, format!("h.{}.mlp.c_proj", block(5))];
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
        let options = LensOptions { measures: measures.to_vec(), ..LensOptions::default() };
        timed(|| Ok(Lens::new(&self.model, options)?.table("", ids, |_| String::new())?))
    }

    fn lens(&self) -> Result<Vec<Figure>> {
        let input = self.input(self.tokens)?;
        let ids = self.ids(self.tokens);
        let unembedding = self.model.unembedding()?;
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
        let [forward, probs, kl, four, floor] = turns(self.repeats, [&forward, &probs, &kl, &four, &floor])?;
        Ok(vec![
            Figure::one("lens_rows", "count", rows as f64),
            Figure::new("lens_forward", "s", forward),
            Figure::new("lens_probs", "s", probs),
            Figure::new("lens_kl", "s", kl),
            Figure::new("lens_four", "s", four),
            Figure::new("lens_product", "s", floor),
        ])
    }

    /// What the lens costs after the model has run, for five positions of a long prompt and for five tokens.
    fn positions(&self) -> Result<Vec<Figure>> {
        let limit = self.model.config().positions;
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
        let options = LensOptions { measures: vec![Measure::Kl], positions, ..LensOptions::default() };
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
