//! What the figures were measured on.

use std::{fmt, fs, path::Path, process::Command};

use serde::{Deserialize, Serialize};

use super::child::status_mib;

/// The facts of a machine that decide how fast it computes, and what ran on it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// What the processor calls itself.
    pub processor: String,
    /// What tells two generations of one name apart: `family 25, model 17`. Empty where the system does not say, and in older files.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub generation: String,
    /// Who made it: `GenuineIntel`, `AuthenticAMD`.
    pub vendor: String,
    /// Those of its instruction sets that matrix products use.
    pub features: Vec<String>,
    /// Threads that can run at once.
    pub cores: usize,
    /// All its memory, in GiB; 0 where the system does not say.
    pub memory_gib: f64,
    /// `linux`, `macos`.
    pub system: String,
    /// The version of libtorch and its kind.
    pub libtorch: String,
    /// The workspace's commit, with `+` where files were changed since; empty outside of a Git checkout.
    pub commit: String,
    /// The day, `2026-01-31`.
    pub date: String,
}

/// Instruction sets that a library of matrix products asks about. The kernel's names.
const FEATURES: [&str; 22] = [
    "avx",
    "avx2",
    "fma",
    "f16c",
    "avx_vnni",
    "avx512f",
    "avx512bw",
    "avx512dq",
    "avx512vl",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_bf16",
    "amx_int8",
    "amx_fp16",
    "asimd",
    "asimddp",
    "bf16",
    "i8mm",
    "sve",
    "sve2",
];

impl Machine {
    /// Looks around. `libtorch` is its version in words.
    pub fn look(workspace: &Path, libtorch: &str) -> Self {
        let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let flags = field(&text, "flags").or_else(|| field(&text, "Features")).unwrap_or_default();
        let features = FEATURES.into_iter().filter(|feature| flags.split_whitespace().any(|flag| flag == *feature));
        let memory = fs::read_to_string("/proc/meminfo").ok().and_then(|text| status_mib(&text, "MemTotal"));
        let git = |arguments: &[&str]| {
            let output = Command::new("git").current_dir(workspace).args(arguments).output().ok()?;
            output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
        };
        let changed = git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|text| !text.is_empty());
        let commit = git(&["rev-parse", "--short=12", "HEAD"]).unwrap_or_default();
        Self {
            processor: field(&text, "model name").unwrap_or_else(|| format!("{} processor", std::env::consts::ARCH)),
            generation: generation(&text),
            vendor: field(&text, "vendor_id").unwrap_or_else(|| "unknown".into()),
            features: features.map(str::to_owned).collect(),
            cores: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            memory_gib: memory.map_or(0.0, |mib| (mib / 102.4).round() / 10.0),
            system: std::env::consts::OS.into(),
            // Where it lies is nobody's affair.
            libtorch: libtorch.split(" at ").next().unwrap_or_default().to_owned(),
            commit: if changed { format!("{commit}+") } else { commit },
            date: time::OffsetDateTime::now_utc().date().to_string(),
        }
    }

    /// The processor, with its generation where it is known.
    pub fn name(&self) -> String {
        if self.generation.is_empty() {
            self.processor.clone()
        } else {
            format!("{}, {}", self.processor, self.generation)
        }
    }

    /// The processor and its cores as a file may be called: `amd-epyc-2-cores`.
    pub fn slug(&self) -> String {
        let text = format!("{}-{}-{}-cores", self.processor, self.generation, self.cores).to_lowercase();
        let words = text.split(|letter: char| !letter.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
        // What `(R)` and `(TM)` leave.
        words.filter(|word| !matches!(*word, "r" | "tm" | "cpu")).collect::<Vec<_>>().join("-")
    }
}

impl fmt::Display for Machine {
    /// One line: date, processor, memory, libtorch, commit.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { date, cores, memory_gib, libtorch, commit, .. } = self;
        write!(formatter, "{date}: {} ({}), {cores} cores", self.name(), self.vendor)?;
        if *memory_gib > 0.0 {
            write!(formatter, ", {memory_gib:.0} GiB of memory")?;
        }
        write!(formatter, ", {libtorch}")?;
        if commit.is_empty() { Ok(()) } else { write!(formatter, ", commit {commit}") }
    }
}

/// The generation of a processor for x86, by the text of `/proc/cpuinfo`.
fn generation(text: &str) -> String {
    match (field(text, "cpu family"), field(text, "model")) {
        (Some(family), Some(model)) => format!("family {family}, model {model}"),
        _ => String::new(),
    }
}

/// The first value of a field in the text of `/proc/cpuinfo`.
fn field(text: &str, name: &str) -> Option<String> {
    let value = |line: &str| Some(line.strip_prefix(name)?.trim_start().strip_prefix(':')?.trim().to_owned());
    text.lines().find_map(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_is_found_by_name() {
        let text = "processor\t: 0\nmodel name\t: Intel(R) Xeon(R) @ 2.60GHz\nmodel name\t: another\n";
        assert_eq!(field(text, "model name").as_deref(), Some("Intel(R) Xeon(R) @ 2.60GHz"));
        assert_eq!(field("Hardware: board\n", "model name"), None);
        assert_eq!(generation(&format!("{text}cpu family\t: 25\nmodel\t\t: 17\n")), "family 25, model 17");
        assert_eq!(generation(text), "");
    }

    #[test]
    fn a_processors_name_becomes_part_of_a_files() {
        let slug = |processor: &str| Machine { processor: processor.into(), cores: 2, ..Machine::default() }.slug();
        assert_eq!(slug("Intel(R) Xeon(R) CPU @ 2.60GHz"), "intel-xeon-2-60ghz-2-cores");
        assert_eq!(slug("AMD EPYC"), "amd-epyc-2-cores");
        assert_eq!(slug("../x"), "x-2-cores");
        let (processor, generation) = ("AMD EPYC".to_owned(), "family 25, model 17".to_owned());
        let machine = Machine { processor, generation, cores: 2, ..Machine::default() };
        assert_eq!(machine.slug(), "amd-epyc-family-25-model-17-2-cores");
        assert_eq!(machine.name(), "AMD EPYC, family 25, model 17");
    }
}
