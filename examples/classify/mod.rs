//! The two training examples of the origin README as one program: a classifier on the first layers of a model, which are
//! frozen (`features`) or trained with it (`finetune`).

pub mod data;
pub mod head;
pub mod training;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};
use transformer_utils::{
    lowmem::{Dtype, DtypeChoice},
    tch::Tensor,
};

use crate::common::{
    self,
    model::{ModelFlags, Opened, bundled_models},
    output,
};
use data::Example;
use head::{Head, HeadShape, Pooling};
use training::{BagOfTokens, Classifier, Settings, accuracy, feature_width};

/// The flags that `features` and `finetune` share.
#[derive(Args, Clone, Debug)]
pub struct TrainingFlags {
    #[command(flatten)]
    pub model: ModelFlags,

    /// Folder with train.tsv and held-out.tsv: a label, a tab and a text on each line [default: the bundled word-order].
    #[arg(long, value_name = "DIR", help_heading = "Classifier")]
    pub data: Option<PathBuf>,

    /// What the classifier reads, separated by commas; anything of shape [batch, position, width].
    #[arg(long, value_name = "NAMES", value_delimiter = ',', default_value = "h.0,h.1", help_heading = "Classifier")]
    pub names: Vec<String>,

    /// Width of the classifier's hidden layer.
    #[arg(long, value_name = "N", default_value_t = 768, value_parser = clap::value_parser!(i64).range(1..=65536),
        help_heading = "Classifier")]
    pub hidden: i64,

    /// How positions become one answer: mean counts every token alike, attention learns how much each counts.
    #[arg(long, value_enum, default_value = "mean", help_heading = "Classifier")]
    pub pooling: Pooling,

    /// Times through the training texts.
    #[arg(long, value_name = "N", default_value_t = 8, help_heading = "Training")]
    pub epochs: usize,

    /// Texts in a step.
    #[arg(long, value_name = "N", default_value_t = 32, help_heading = "Training")]
    pub batch: usize,

    /// Learning rate of the classifier; it falls linearly to zero.
    #[arg(long, value_name = "RATE", default_value_t = 1e-3, help_heading = "Training")]
    pub learning_rate: f64,

    /// Weight decay of AdamW.
    #[arg(long, value_name = "DECAY", default_value_t = 0.01, help_heading = "Training")]
    pub weight_decay: f64,

    /// Seed of the classifier's first weights and of the order of the texts.
    #[arg(long, value_name = "SEED", default_value_t = 0, help_heading = "Training")]
    pub seed: u64,

    /// Folder to save into: head.json, head.safetensors, and base.safetensors with the layers that were trained.
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    pub out: Option<PathBuf>,

    /// Train nothing: evaluate what --out saved in this folder. It says itself what it reads; give the same --model.
    #[arg(long, value_name = "DIR", help_heading = "Output",
        conflicts_with_all = ["out", "names", "hidden", "pooling", "epochs", "learning_rate", "weight_decay", "seed"])]
    pub evaluate: Option<PathBuf>,
}

/// What was measured.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// Mean training loss of each epoch.
    pub losses: Vec<f64>,
    /// Held-out accuracy after each epoch; of `--evaluate`, the one.
    pub accuracies: Vec<f64>,
    /// Held-out accuracy of the bag of tokens, when it was trained.
    pub baseline: Option<f64>,
}

/// What `head.json` says.
#[derive(Serialize, Deserialize)]
struct Saved {
    #[serde(flatten)]
    shape: HeadShape,
    base_model: String,
    base_is_trained: bool,
    held_out_accuracy: f64,
    baseline_accuracy: f64,
}

const DESCRIPTION: &str = "head.json";
const HEAD: &str = "head.safetensors";
const BASE: &str = "base.safetensors";

/// Trains and evaluates, or only evaluates. The base model's layers are trained if they have a learning rate.
pub fn run(flags: &TrainingFlags, base_learning_rate: Option<f64>) -> Result<Outcome> {
    let positive = |rate: f64| rate.is_finite() && rate > 0.0;
    ensure!(flags.epochs > 0 && flags.batch > 0, "--epochs and --batch must be at least 1");
    ensure!(positive(flags.learning_rate), "--learning-rate {}: expected a number above 0", flags.learning_rate);
    if let Some(rate) = base_learning_rate {
        ensure!(positive(rate), "--base-learning-rate {rate}: expected a number above 0");
    }
    let opened = open(&flags.model)?;
    match &flags.evaluate {
        Some(folder) => evaluate(flags, &opened, folder),
        None => train(flags, base_learning_rate, &opened),
    }
}

/// Opens the base model to compute in f32 unless asked otherwise: small steps are lost in the eight bits of bf16.
fn open(flags: &ModelFlags) -> Result<Opened> {
    let mut flags = flags.clone();
    if matches!(flags.dtype, DtypeChoice::Auto) {
        flags.dtype = DtypeChoice::Fixed(Dtype::F32);
    }
    flags.open()
}

/// One part of the data, as token ids. Labels are those of the training part.
struct Data {
    labels: Vec<String>,
    train: Vec<Example>,
    held_out: Vec<Example>,
}

impl Data {
    fn read(flags: &TrainingFlags, opened: &Opened, labels: Option<&[String]>) -> Result<Self> {
        let folder = flags.data.clone().unwrap_or_else(|| bundled_models().join("word-order"));
        let tokenizer = opened.need_tokenizer()?;
        let encode = |path: PathBuf, examples: &[(String, String)], labels: &[String]| {
            let encoded = data::encode(examples, labels, opened.model.architecture().context, |text| {
                Ok(tokenizer.encode(text, true)?)
            });
            encoded.with_context(|| path.display().to_string())
        };
        let held_out_path = folder.join("held-out.tsv");
        let hint = || match flags.data {
            Some(_) => "--data",
            None => "the bundled texts are not where this program was built; choose others with --data",
        };
        let held_out = data::read(&held_out_path).with_context(hint)?;
        if let Some(labels) = labels {
            let held_out = encode(held_out_path, &held_out, labels)?;
            return Ok(Self { labels: labels.to_vec(), train: Vec::new(), held_out });
        }
        let train_path = folder.join("train.tsv");
        let train = data::read(&train_path)?;
        let labels = data::labels(&train);
        ensure!(labels.len() > 1, "{}: all texts are labelled {}", train_path.display(), labels.join(", "));
        let train = encode(train_path, &train, &labels)?;
        let held_out = encode(held_out_path, &held_out, &labels)?;
        Ok(Self { labels, train, held_out })
    }
}

fn train(flags: &TrainingFlags, base_learning_rate: Option<f64>, opened: &Opened) -> Result<Outcome> {
    let features = feature_width(&opened.model, &flags.names)?;
    if let Some(out) = &flags.out {
        fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
        output::check_writable(&out.join(HEAD))?;
    }
    let data = Data::read(flags, opened, None)?;
    let device = opened.model.parts().device();
    let settings = Settings {
        epochs: flags.epochs,
        batch: flags.batch,
        learning_rate: flags.learning_rate,
        base_learning_rate: base_learning_rate.unwrap_or(0.0),
        weight_decay: flags.weight_decay,
        seed: flags.seed,
    };
    let bag = BagOfTokens::new(opened.model.architecture().vocabulary, data.labels.len(), device)?;
    bag.fit(&data.train, &settings)?;
    let baseline = accuracy(&bag, &data.held_out, flags.batch)?;

    let (names, hidden, pooling) = (flags.names.clone(), flags.hidden, flags.pooling);
    let shape = HeadShape { names, features, hidden, pooling, labels: data.labels.clone() };
    let mut classifier = Classifier::new(&opened.model, Head::new(shape, flags.seed, device)?)?;
    if base_learning_rate.is_some() {
        classifier.unfreeze()?;
    }
    let count = |tensors: &mut dyn Iterator<Item = Tensor>| tensors.map(|tensor| tensor.numel()).sum::<usize>();
    common::print(format_args!(
        "{}: {} texts to train on, {} held out; {} parameters in the head, {} trained in the base model",
        opened.placement(),
        data.train.len(),
        data.held_out.len(),
        count(&mut classifier.head.tensors().into_iter().map(|(_, tensor)| tensor)),
        count(&mut classifier.base.iter().map(|(_, tensor)| tensor.shallow_clone())),
    ))?;
    common::print(format_args!("bag of tokens    held-out accuracy {:.1} %", 100.0 * baseline))?;
    let mut outcome = Outcome { baseline: Some(baseline), ..Outcome::default() };
    let start = Instant::now();
    classifier.fit(&data.train, &settings, |epoch, loss| {
        let accuracy = accuracy(&classifier, &data.held_out, flags.batch)?;
        outcome.losses.push(loss);
        outcome.accuracies.push(accuracy);
        let (epoch, accuracy, seconds) = (epoch + 1, 100.0 * accuracy, start.elapsed().as_secs_f64());
        common::print(format_args!(
            "epoch {epoch:>2}  loss {loss:.4}  held-out accuracy {accuracy:.1} %  {seconds:.0} s"
        ))
    })?;
    if let Some(out) = &flags.out {
        let saved = Saved {
            shape: classifier.head.shape().clone(),
            base_model: opened.name.clone(),
            base_is_trained: base_learning_rate.is_some(),
            held_out_accuracy: outcome.accuracies.last().copied().unwrap_or(0.0),
            baseline_accuracy: baseline,
        };
        save(out, &classifier, &saved)?;
    }
    Ok(outcome)
}

/// The description last: a folder that has one is complete.
fn save(out: &Path, classifier: &Classifier, saved: &Saved) -> Result<()> {
    let base = out.join(BASE);
    classifier.head.save(&out.join(HEAD))?;
    if saved.base_is_trained {
        classifier.save_base(&base)?;
    } else if base.is_file() {
        // Left by an earlier run; it does not belong to this head.
        fs::remove_file(&base).with_context(|| format!("cannot remove {}", base.display()))?;
    }
    output::write_json(&out.join(DESCRIPTION), saved)?;
    common::print(format_args!("wrote {}", out.display()))
}

fn evaluate(flags: &TrainingFlags, opened: &Opened, folder: &Path) -> Result<Outcome> {
    let path = folder.join(DESCRIPTION);
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let saved: Saved = serde_json::from_str(&text).with_context(|| format!("{} is damaged", path.display()))?;
    let data = Data::read(flags, opened, Some(&saved.shape.labels))?;
    let device = opened.model.parts().device();
    let head = Head::load(saved.shape, &folder.join(HEAD), device)?;
    let classifier = Classifier::new(&opened.model, head)?;
    if saved.base_is_trained {
        classifier.load_base(&folder.join(BASE))?;
    }
    let accuracy = accuracy(&classifier, &data.held_out, flags.batch)?;
    common::print(format_args!(
        "held-out accuracy {:.1} % of {} texts ({:.1} % when it was saved)",
        100.0 * accuracy,
        data.held_out.len(),
        100.0 * saved.held_out_accuracy,
    ))?;
    Ok(Outcome { accuracies: vec![accuracy], ..Outcome::default() })
}
