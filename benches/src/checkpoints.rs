//! The random checkpoints that are measured, made by the example `synth` where they are missing.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;

use super::programs::Programs;

/// A published size, smallest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, ValueEnum)]
pub enum Size {
    /// 124 million parameters, 0.5 GB
    #[value(name = "gpt2")]
    Gpt2,
    /// A Llama-shaped model of 1.54 billion parameters, 6.2 GB; the section `ratios` is about it
    #[value(name = "llama-xl")]
    LlamaXl,
    /// 1.56 billion parameters, 6.2 GB; most promises are about it
    #[value(name = "gpt2-xl")]
    Gpt2Xl,
    /// 2.65 billion parameters, 10.6 GB
    #[value(name = "gpt-neo-2.7B")]
    GptNeo,
}

impl Size {
    /// The name that `synth` knows.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gpt2 => "gpt2",
            Self::LlamaXl => "llama-xl",
            Self::Gpt2Xl => "gpt2-xl",
            Self::GptNeo => "gpt-neo-2.7B",
        }
    }

    /// How many parameters it has, tied matrices once.
    pub fn parameters(self) -> u64 {
        match self {
            Self::Gpt2 => 124_439_808,
            Self::LlamaXl => 1_540_474_880,
            Self::Gpt2Xl => 1_557_611_200,
            Self::GptNeo => 2_651_307_520,
        }
    }

    /// The parameters of candle's model of this size, if it has one.
    pub fn candle(self) -> Option<&'static str> {
        match self {
            Self::Gpt2 => Some("124M"),
            Self::Gpt2Xl => Some("1.55B"),
            Self::LlamaXl | Self::GptNeo => None,
        }
    }

    /// Bytes of its weights in f32, rounded up.
    fn bytes(self) -> u64 {
        match self {
            Self::Gpt2 => 498_000_000,
            Self::LlamaXl => 6_162_000_000,
            Self::Gpt2Xl => 6_231_000_000,
            Self::GptNeo => 10_607_000_000,
        }
    }

    /// The memory in MiB that it has to run in, and the tokens that it then reads.
    pub fn cap(self) -> (u64, usize) {
        match self {
            // Nothing is promised for this one; a quarter of the weights would not hold libtorch itself.
            Self::Gpt2 => (384, super::TOKENS),
            Self::LlamaXl | Self::Gpt2Xl => (1536, super::TOKENS),
            Self::GptNeo => (4096, 2048),
        }
    }
}

/// What the weights of a checkpoint are stored and computed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    /// 32 bits.
    F32,
    /// 16 bits with the exponent of 32.
    Bf16,
}

impl Dtype {
    /// Both.
    pub const ALL: [Self; 2] = [Self::F32, Self::Bf16];

    /// Its name in PyTorch.
    pub fn torch(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::Bf16 => "bfloat16",
        }
    }
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        })
    }
}

/// One folder of weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Variant {
    /// One safetensors file in f32.
    Whole(Size),
    /// The same values in so many files.
    Shards(Size, usize),
    /// The same values, rounded to bf16.
    Bf16(Size),
    /// The same values in a file that PyTorch wrote, which takes a peer.
    Bin(Size),
    /// A small mixture of experts in bf16.
    Mixture,
}

/// The config of [`Variant::Mixture`], from the workspace.
const MIXTURE: &str = "benches/mixture.json";

impl Variant {
    /// The name of the folder.
    fn name(self) -> String {
        match self {
            Self::Whole(size) => size.name().to_owned(),
            Self::Shards(size, count) => format!("{}-{count}-shards", size.name()),
            Self::Bf16(size) => format!("{}-bf16", size.name()),
            Self::Bin(size) => format!("{}-bin", size.name()),
            Self::Mixture => "mixture-bf16".to_owned(),
        }
    }

    /// Bytes of the weights, rounded up.
    fn bytes(self) -> u64 {
        match self {
            Self::Whole(size) | Self::Shards(size, _) | Self::Bin(size) => size.bytes(),
            Self::Bf16(size) => size.bytes() / 2,
            Self::Mixture => 860_000_000,
        }
    }

    /// The arguments of `synth`, `--out` apart.
    fn arguments(self) -> Option<Vec<String>> {
        let bf16 = || vec!["--dtype".to_owned(), "bf16".to_owned()];
        let (config, more) = match self {
            Self::Whole(size) => (size.name(), Vec::new()),
            Self::Shards(size, count) => (size.name(), vec!["--shards".to_owned(), count.to_string()]),
            Self::Bf16(size) => (size.name(), bf16()),
            Self::Mixture => (MIXTURE, bf16()),
            Self::Bin(_) => return None,
        };
        Some(["--config".to_owned(), config.to_owned()].into_iter().chain(more).collect())
    }
}

/// The folder of all, and those that are there.
#[derive(Debug)]
pub struct Checkpoints {
    folder: PathBuf,
    there: HashMap<Variant, PathBuf>,
}

/// Left free on the disk: for reports, pictures and whoever else writes there.
const SPARE: u64 = 1 << 30;

impl Checkpoints {
    /// Checkpoints in `folder`, which is made if it is missing.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn new(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        Ok(Self { folder: folder.to_owned(), there: HashMap::new() })
    }

    /// The folder of all.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where a checkpoint is, if it is.
    pub fn get(&self, variant: Variant) -> Option<PathBuf> {
        self.there.get(&variant).cloned()
    }

    /// Where a checkpoint is or will be.
    pub fn place(&self, variant: Variant) -> PathBuf {
        self.folder.join(variant.name())
    }

    /// Makes a checkpoint if it is missing; `None`, with a message, if the disk has no room for it.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn provide(&mut self, programs: &Programs, variant: Variant) -> Result<Option<PathBuf>> {
        let place = self.place(variant);
        if place.join("config.json").is_file() {
            self.there.insert(variant, place.clone());
            return Ok(Some(place));
        }
        let Some(arguments) = variant.arguments() else { return Ok(None) };
        if !self.has_room(variant)? {
            return Ok(None);
        }
        let mut command = Command::new(programs.get("synth")?);
        command.args(arguments).arg("--out").arg(&place).stdin(Stdio::null()).stdout(Stdio::null());
        let status = command.status().context("starting synth")?;
        ensure!(status.success(), "synth ended with {status}");
        self.there.insert(variant, place.clone());
        Ok(Some(place))
    }

    /// Says what is about to be made, or that there is no room for it.
    ///
    /// # Errors
    /// If the disk cannot be asked.
    pub fn has_room(&self, variant: Variant) -> Result<bool> {
        let available = fs4::available_space(&self.folder).with_context(|| self.folder.display().to_string())?;
        let (name, size) = (self.place(variant), variant.bytes());
        let (size, left) = (size as f64 / 1e9, available.saturating_sub(SPARE) as f64 / 1e9);
        let fits = size <= left;
        if fits {
            eprintln!("making {}: {size:.1} GB", name.display());
        } else {
            eprintln!("skipped: {} needs {size:.1} GB, and the disk has {left:.1} GB to spare", name.display());
        }
        Ok(fits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_variant_has_a_folder_and_arguments_of_its_own() {
        let shards = Variant::Shards(Size::Gpt2, 30);
        assert_eq!(shards.name(), "gpt2-30-shards");
        assert_eq!(shards.arguments().unwrap().join(" "), "--config gpt2 --shards 30");
        let bf16 = Variant::Bf16(Size::Gpt2Xl);
        assert_eq!(bf16.arguments().unwrap().join(" "), "--config gpt2-xl --dtype bf16");
        assert_eq!(bf16.bytes(), Size::Gpt2Xl.bytes() / 2);
        assert_eq!(Variant::Whole(Size::GptNeo).arguments().unwrap().join(" "), "--config gpt-neo-2.7B");
        assert_eq!(Variant::Mixture.arguments().unwrap().join(" "), "--config benches/mixture.json --dtype bf16");
        assert_eq!(Variant::Bin(Size::Gpt2).arguments(), None);
    }

    #[test]
    fn sizes_are_ordered_and_named_as_on_the_command_line() {
        assert!(Size::Gpt2 < Size::LlamaXl && Size::LlamaXl < Size::Gpt2Xl && Size::Gpt2Xl < Size::GptNeo);
        for size in Size::value_variants() {
            assert_eq!(size.to_possible_value().unwrap().get_name(), size.name());
            assert!(size.bytes().abs_diff(4 * size.parameters()) < size.bytes() / 100, "{}", size.name());
        }
    }

    #[test]
    fn what_is_there_is_not_made_again() {
        let folder = tempfile::tempdir().unwrap();
        let mut checkpoints = Checkpoints::new(folder.path()).unwrap();
        let place = checkpoints.place(Variant::Whole(Size::Gpt2));
        fs::create_dir(&place).unwrap();
        fs::write(place.join("config.json"), "{}").unwrap();
        let none = Programs::default();
        assert_eq!(checkpoints.provide(&none, Variant::Whole(Size::Gpt2)).unwrap(), Some(place));
        assert!(checkpoints.get(Variant::Whole(Size::Gpt2)).is_some());
        // Only PyTorch writes this one.
        assert_eq!(checkpoints.provide(&none, Variant::Bin(Size::Gpt2)).unwrap(), None);
    }
}
