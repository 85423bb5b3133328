//! Says what is there and what is missing: libtorch, devices, memory, caches, bundled models.

mod common;

use std::{
    env,
    fmt::Display,
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, Result};
use clap::Parser;
use serde::Serialize;
use transformer_utils::{
    lowmem::{self, Checkpoint, CudaLibrary, LoadOptions},
    models::{Family, Input, Model, NoObserver, Products},
    tch::{self, Cuda, Device, Kind, Tensor},
    text::Tokenizer,
};

use common::{Status, model, output, system, table};

/// Say what is there and what is missing.
///
/// Exit code 0 when everything that must work works, 1 when something marked ✗ does not.
#[derive(Parser)]
struct Flags {
    /// JSON file for what was found.
    #[arg(long, value_name = "PATH")]
    json: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Good,
    Bad,
    /// Neither: a fact.
    Note,
}

#[derive(Serialize)]
struct Finding {
    what: &'static str,
    state: State,
    found: String,
    /// What to do about it.
    advice: Option<String>,
}

impl Finding {
    fn good(what: &'static str, found: impl Display) -> Self {
        Self { what, state: State::Good, found: found.to_string(), advice: None }
    }

    fn note(what: &'static str, found: impl Display) -> Self {
        Self { what, state: State::Note, found: found.to_string(), advice: None }
    }

    fn bad(what: &'static str, found: impl Display) -> Self {
        Self { what, state: State::Bad, found: found.to_string(), advice: None }
    }

    fn advice(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(advice.into());
        self
    }
}

fn main() -> ! {
    common::main(run)
}

fn run(flags: Flags) -> Result<Status> {
    if let Some(json) = &flags.json {
        output::check_writable(json)?;
    }
    let mut findings = vec![libtorch(), cuda(), threads(), cpu(), products()];
    findings.extend(speeds());
    findings.push(memory());
    findings.extend(hub());
    findings.push(families());
    for name in ["tiny-gpt2", "tiny-gpt-neo"] {
        findings.push(bundled(name));
    }
    if let Some(json) = &flags.json {
        output::write_json(json, &findings)?;
    }
    let row = |finding: &Finding| {
        let sign = match finding.state {
            State::Good => "✓",
            State::Bad => "✗",
            State::Note => "·",
        };
        let advice = finding.advice.as_ref().map_or_else(String::new, |advice| format!(" ({advice})"));
        [sign.to_owned(), finding.what.to_owned(), format!("{}{advice}", finding.found)]
    };
    common::print(table::columns(&findings.iter().map(row).collect::<Vec<_>>()).trim_end())?;
    let usable = findings.iter().all(|finding| finding.state != State::Bad);
    Ok(Status(if usable { 0 } else { 1 }))
}

/// The release that tch was written for.
const LIBTORCH: &str = "2.13.0";

fn libtorch() -> Finding {
    let Some(folder) = lowmem::libtorch_folder() else {
        return Finding::note("libtorch", format!("{LIBTORCH}, the release this program was built for"));
    };
    let shown = folder.display();
    match version(&folder) {
        Some(version) if version.split('+').next() == Some(LIBTORCH) => {
            Finding::good("libtorch", format!("{version} from {shown}"))
        }
        Some(version) => Finding::bad("libtorch", format!("{version} from {shown}, built for {LIBTORCH}"))
            .advice("cargo xtask libtorch fetches the right one"),
        None => Finding::good("libtorch", format!("from {shown}")),
    }
}

/// What the distribution around a library folder says it is: an archive has `build-version`, a wheel `version.py`.
fn version(folder: &Path) -> Option<String> {
    let root = folder.parent()?;
    if let Ok(text) = fs::read_to_string(root.join("build-version")) {
        return Some(text.trim().to_owned());
    }
    let text = fs::read_to_string(root.join("version.py")).ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix("__version__")?.split_once('='))?.1;
    Some(value.trim().trim_matches(['\'', '"']).to_owned())
}

fn cuda() -> Finding {
    // First: libtorch looks once for its CUDA library.
    let library = lowmem::cuda_library();
    if Cuda::is_available() {
        return Finding::good("CUDA", format!("{} devices, --device cuda:N", Cuda::device_count()));
    }
    let driver = Path::new("/proc/driver/nvidia/version").exists();
    match (library, driver) {
        (CudaLibrary::Failed { path, reason }, _) => {
            Finding::note("CUDA", format!("none: {} does not load: {reason}", path.display()))
                .advice("until it does, everything runs on the CPU")
        }
        (CudaLibrary::Loaded(_), true) => Finding::note("CUDA", "this libtorch has it, but the driver finds no device"),
        (CudaLibrary::Loaded(_), false) => Finding::note("CUDA", "this libtorch has it, but there is no driver"),
        (_, true) => Finding::note("CUDA", "there is a driver, but this libtorch has no CUDA")
            .advice("point LIBTORCH at a CUDA libtorch and build again"),
        (_, false) => Finding::note("CUDA", "none; runs on the CPU"),
    }
}

fn threads() -> Finding {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = tch::get_num_threads();
    let set = env::var("OMP_NUM_THREADS").map(|value| format!(", OMP_NUM_THREADS={value}")).unwrap_or_default();
    let finding = Finding::note("threads", format!("{threads} of libtorch on {cores} cores{set}"));
    if (threads as usize) < cores { finding.advice("OMP_NUM_THREADS sets them") } else { finding }
}

fn cpu() -> Finding {
    #[cfg(target_arch = "x86_64")]
    let known = [
        ("AVX2", is_x86_feature_detected!("avx2")),
        ("AVX-512", is_x86_feature_detected!("avx512f")),
        ("AVX-512 bf16", is_x86_feature_detected!("avx512bf16")),
        ("AVX-512 f16", is_x86_feature_detected!("avx512fp16")),
    ];
    #[cfg(target_arch = "aarch64")]
    let known = [
        ("NEON", std::arch::is_aarch64_feature_detected!("neon")),
        ("bf16", std::arch::is_aarch64_feature_detected!("bf16")),
        ("SVE", std::arch::is_aarch64_feature_detected!("sve")),
    ];
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let known: [(&str, bool); 0] = [];
    let there: Vec<&str> = known.into_iter().filter(|(_, there)| *there).map(|(name, _)| name).collect();
    let there = if there.is_empty() { "no known extensions".to_owned() } else { there.join(", ") };
    Finding::note("CPU", format!("{}: {there}", env::consts::ARCH))
}

/// Who multiplies, and why.
fn products() -> Finding {
    let products = match Products::chosen() {
        Ok(products) => products,
        Err(error) => return Finding::bad("products", error),
    };
    let bf16 = match products.widen_from {
        None => "bf16 as it is".to_owned(),
        Some(rows) => format!("bf16 widened to f32 from {rows} rows on"),
    };
    Finding::note("products", format!("f32 by {} ({}); {bf16}", products.library, products.reason))
}

/// A matrix product in each dtype, which is also the proof that libtorch computes.
fn speeds() -> Vec<Finding> {
    let measured = [("f32", Kind::Float, 512), ("bf16", Kind::BFloat16, 512), ("f16", Kind::Half, 512)];
    let measured = measured.map(|(name, kind, size)| (name, speed(kind, size)));
    let f32_speed = measured[0].1.as_ref().map_or(f64::INFINITY, |speed| *speed);
    let finding = |(name, speed): (&'static str, Result<f64>)| match speed {
        Ok(speed) => {
            let finding = Finding::good(name, format!("{speed:.1} GFLOP/s on the CPU"));
            match name {
                "bf16" if speed > 1.3 * f32_speed => finding.advice("faster than f32: try --dtype bf16"),
                "f16" if speed < 0.3 * f32_speed => {
                    Finding { state: State::Note, ..finding }.advice("too slow to compute in: f16 weights run as f32")
                }
                _ => finding,
            }
        }
        Err(error) => Finding::bad(
            name,
            format!("does not compute: {}", error.root_cause().to_string().lines().next().unwrap_or_default()),
        ),
    };
    measured.into_iter().map(finding).collect()
}

/// GFLOP/s of a product of two square matrices.
fn speed(kind: Kind, size: i64) -> Result<f64> {
    let matrix = Tensor::f_ones([size, size], (kind, Device::Cpu))?;
    let product = matrix.f_matmul(&matrix)?;
    anyhow::ensure!(product.f_double_value(&[0, 0])? == size as f64, "the product of two matrices is wrong");
    let start = Instant::now();
    let mut runs = 0;
    while runs < 1 || start.elapsed().as_millis() < 50 {
        drop(matrix.f_matmul(&matrix)?);
        runs += 1;
    }
    Ok(2.0 * (size as f64).powi(3) * f64::from(runs) / start.elapsed().as_secs_f64() / 1e9)
}

fn memory() -> Finding {
    let gib = |mib: f64| format!("{:.1} GiB", mib / 1024.0);
    let free = lowmem::available_memory().map(|bytes| bytes as f64 / system::MIB);
    let (Some(free), Some(system), Some(total)) = (free, system::available_mib(), system::total_mib()) else {
        return Finding::note("memory", "unknown");
    };
    // The two are asked one after the other and never quite agree.
    let limited = if free < 0.95 * system { "; this process's control group allows " } else { "" };
    let limit = if limited.is_empty() { String::new() } else { gib(free) };
    Finding::note("memory", format!("{} of {} free{limited}{limit}", gib(system), gib(total)))
        .advice("--residency streamed runs models that are larger")
}

/// Where models from the Hub are kept, and the variables that matter.
fn hub() -> Vec<Finding> {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = set("HF_HUB_CACHE").or_else(|| Some(set("HF_HOME")?.join("hub")));
    let cache = cache.or_else(|| {
        let caches = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")))?;
        Some(caches.join("huggingface/hub"))
    });
    let mut findings = vec![match cache {
        Some(cache) if cache.is_dir() => {
            let names = fs::read_dir(&cache).into_iter().flatten().flatten().map(|entry| entry.file_name());
            let models = names.filter(|name| name.to_string_lossy().starts_with("models--")).count();
            Finding::note("Hub cache", format!("{}, {models} models", cache.display()))
        }
        Some(cache) => Finding::note("Hub cache", format!("{}, not there yet", cache.display())),
        None => Finding::note("Hub cache", "nowhere").advice("set HF_HOME"),
    }];
    let variables = ["HF_HUB_OFFLINE", "HF_ENDPOINT", "HF_TOKEN"].into_iter().filter(|name| set(name).is_some());
    let variables: Vec<&str> = variables.collect();
    if !variables.is_empty() {
        findings.push(Finding::note("Hub variables", format!("{} set", variables.join(", "))));
    }
    findings
}

/// Which models run.
fn families() -> Finding {
    Finding::good("model types", Family::supported().join(", "))
}

fn bundled(name: &'static str) -> Finding {
    let folder = model::bundled_models().join(name);
    let look = || -> Result<String> {
        let checkpoint = Checkpoint::open(&folder)?;
        let model = Model::open(&checkpoint, &LoadOptions::default())?;
        model.forward(&Input::from_rows(&[[0]])?, &mut NoObserver)?;
        let tokenizer = Tokenizer::of(&checkpoint)?.context("its tokenizer.json is missing")?;
        let size = table::size(checkpoint.index().bytes());
        Ok(format!(
            "{}, {} blocks, {} tokens, {size}",
            model.config().family.title,
            model.config().layers(),
            tokenizer.vocabulary_size()
        ))
    };
    match look() {
        Ok(found) => Finding::good(name, found),
        Err(error) => {
            Finding::bad(name, format!("{error:#}")).advice("check the sources out again, or always give --model")
        }
    }
}
