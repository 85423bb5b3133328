//! Trains a small GPT-2 or GPT-Neo from plain text: tokenizer, model, card. The bundled models were made by this.

mod common;

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use common::texts;
use serde::{Deserialize, Serialize};
use tokenizers::{
    AddedToken, Tokenizer,
    models::{
        TrainerWrapper,
        bpe::{BPE, BpeTrainerBuilder},
    },
    pre_tokenizers::byte_level::ByteLevel,
};
use transformer_utils::{
    lowmem,
    models::{Config, Input, Model, NoObserver, Random},
    partial::{AdamW, AdamWOptions},
    tch::{Kind, Reduction, Tensor, no_grad},
};

/// Train a small model from text.
///
/// Writes config.json, tokenizer.json, model.safetensors and README.md (the card) into --out. Run it again with the same
/// flags after a kill and it goes on from the last saved step.
#[derive(Parser, Serialize)]
struct Flags {
    /// Text to train on; repeat for several files. The last part of each is held out.
    #[arg(long = "text", required = true, value_name = "FILE")]
    texts: Vec<PathBuf>,
    /// Folder for the model.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Which family.
    #[arg(long, value_enum, default_value = "gpt2")]
    family: FamilyName,
    /// Blocks.
    #[arg(long, default_value_t = 8)]
    layers: usize,
    /// Width of the residual stream.
    #[arg(long, default_value_t = 128)]
    width: i64,
    /// Attention heads.
    #[arg(long, default_value_t = 4)]
    heads: i64,
    /// Longest input in tokens.
    #[arg(long, default_value_t = 256)]
    positions: i64,
    /// Window of the local layers, in tokens (GPT-Neo).
    #[arg(long, default_value_t = 32)]
    window: i64,
    /// Tokens in the vocabulary.
    #[arg(long, default_value_t = 4096)]
    vocabulary: usize,
    /// Optimizer steps.
    #[arg(long, default_value_t = 1500)]
    steps: u64,
    /// Sequences in a step.
    #[arg(long, default_value_t = 32)]
    batch: i64,
    /// Tokens in a sequence.
    #[arg(long, default_value_t = 128)]
    context: i64,
    /// Highest learning rate; it rises over the warm-up and falls along a cosine to a tenth.
    #[arg(long, default_value_t = 3e-3)]
    learning_rate: f64,
    /// Steps of warm-up.
    #[arg(long, default_value_t = 100)]
    warm_up: u64,
    /// Weight decay (on matrices only).
    #[arg(long, default_value_t = 0.1)]
    weight_decay: f64,
    /// Seed of weights and batches.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Part of each text that is held out.
    #[arg(long, default_value_t = 0.05)]
    validation: f64,
    /// Measure the held-out loss, and save, every so many steps.
    #[arg(long, default_value_t = 100)]
    every: u64,
    /// Dtype of the matrix products; the weights that are trained stay f32.
    #[arg(long, value_enum, default_value = "bf16")]
    compute: Precision,
    /// Dtype of the stored weights.
    #[arg(long, value_enum, default_value = "bf16")]
    store: Precision,
    /// Licence to name in the card.
    #[arg(long, default_value = "MIT OR Apache-2.0")]
    license: String,
}

#[derive(Clone, Copy, ValueEnum, Serialize)]
enum FamilyName {
    Gpt2,
    GptNeo,
}

#[derive(Clone, Copy, ValueEnum, Serialize)]
enum Precision {
    F32,
    Bf16,
    F16,
}

impl Precision {
    fn kind(self) -> Kind {
        match self {
            Self::F32 => Kind::Float,
            Self::Bf16 => Kind::BFloat16,
            Self::F16 => Kind::Half,
        }
    }
}

const END_OF_TEXT: &str = "<|endoftext|>";
const STATE: &str = "training.safetensors";
const PROGRESS: &str = "training.json";

fn main() -> ! {
    common::main(run)
}

fn run(flags: Flags) -> Result<()> {
    let flags = &flags;
    ensure!((0.0..0.5).contains(&flags.validation), "--validation {}: expected 0 to 0.5", flags.validation);
    ensure!(flags.context <= flags.positions, "--context {} exceeds --positions {}", flags.context, flags.positions);
    ensure!(
        flags.steps > 0 && flags.batch > 0 && flags.context > 1,
        "--steps and --batch must be at least 1, --context 2"
    );
    ensure!(
        !matches!(flags.compute, Precision::F16),
        "--compute f16: half precision is far too slow here; use bf16 or f32"
    );
    fs::create_dir_all(&flags.out).with_context(|| format!("cannot make {}", flags.out.display()))?;
    let (train_text, held_out_text) = texts::split(&flags.texts, flags.validation)?;
    let tokenizer = tokenizer(flags, &train_text)?;
    let train = tokens(&tokenizer, &train_text)?;
    let held_out = tokens(&tokenizer, &held_out_text)?;
    let least = flags.context as usize + 1;
    ensure!(train.len() > least, "the texts have {} tokens, fewer than one sequence of {least}", train.len());
    ensure!(held_out.len() > least, "the held-out part has {} tokens, fewer than {least}", held_out.len());
    let config_text = config_text(flags, tokenizer.get_vocab_size(true));
    common::output::write(&flags.out.join("config.json"), config_text.as_bytes())?;
    let config = Config::from_json(&config_text)?;
    let mut training = Training::start_or_resume(flags, config)?;
    common::print(format!(
        "{} parameters; {} tokens to train on, {} held out; step {} of {}",
        training.parameters(),
        train.len(),
        held_out.len(),
        training.progress.step,
        flags.steps
    ))?;
    training.run(flags, &train, &held_out)?;
    let loss = training.loss(flags, &held_out, usize::MAX)?;
    common::print(format!("held-out loss {loss:.4} nats per token"))?;
    training.finish(flags, loss, train.len(), held_out.len())
}

/// The tokenizer of an earlier run, or a new byte-level BPE trained on the training part alone.
fn tokenizer(flags: &Flags, text: &str) -> Result<Tokenizer> {
    let path = flags.out.join("tokenizer.json");
    let lift = |error: tokenizers::Error| anyhow::anyhow!("{}: {error}", path.display());
    if path.is_file() {
        return Tokenizer::from_file(&path).map_err(lift);
    }
    let trainer = BpeTrainerBuilder::new()
        .show_progress(false)
        .vocab_size(flags.vocabulary)
        .min_frequency(2)
        .special_tokens(vec![AddedToken::from(END_OF_TEXT, true)])
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    let mut tokenizer = Tokenizer::new(BPE::default());
    tokenizer.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    tokenizer.train(&mut TrainerWrapper::from(trainer), text.split_inclusive('\n')).map_err(lift)?;
    let json = tokenizer.to_string(false).map_err(lift)?;
    common::output::write(&path, json.as_bytes())?;
    Ok(tokenizer)
}

fn tokens(tokenizer: &Tokenizer, text: &str) -> Result<Vec<i64>> {
    let mut tokens = Vec::new();
    for line in text.split_inclusive('\n') {
        let encoding = tokenizer.encode_fast(line, false).map_err(|error| anyhow::anyhow!("{error}"))?;
        tokens.extend(encoding.get_ids().iter().map(|&id| i64::from(id)));
    }
    Ok(tokens)
}

fn config_text(flags: &Flags, vocabulary: usize) -> String {
    let common = serde_json::json!({
        "vocab_size": vocabulary,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "initializer_range": 0.02,
        "tie_word_embeddings": true,
        "bos_token_id": 0,
        "eos_token_id": 0,
    });
    let own = match flags.family {
        FamilyName::Gpt2 => serde_json::json!({
            "model_type": "gpt2",
            "architectures": ["GPT2LMHeadModel"],
            "n_positions": flags.positions,
            "n_embd": flags.width,
            "n_layer": flags.layers,
            "n_head": flags.heads,
        }),
        FamilyName::GptNeo => {
            let kinds: Vec<&str> = (0..flags.layers).map(|layer| ["global", "local"][layer % 2]).collect();
            serde_json::json!({
                "model_type": "gpt_neo",
                "architectures": ["GPTNeoForCausalLM"],
                "max_position_embeddings": flags.positions,
                "hidden_size": flags.width,
                "num_layers": flags.layers,
                "num_heads": flags.heads,
                "attention_types": [[kinds, 1]],
                "window_size": flags.window,
            })
        }
    };
    let mut merged = own;
    if let (Some(merged), Some(common)) = (merged.as_object_mut(), common.as_object()) {
        merged.extend(common.clone());
    }
    format!("{merged:#}\n")
}

/// What a run has done so far; the rest of its state is tensors.
#[derive(Serialize, Deserialize, Default)]
struct Progress {
    step: u64,
    seconds: f64,
    losses: Vec<(u64, f64)>,
}

struct Training {
    config: Config,
    /// Trained weights in f32, by name, in a fixed order.
    weights: Vec<(String, Tensor)>,
    optimizer: AdamW,
    progress: Progress,
}

impl Training {
    fn start_or_resume(flags: &Flags, config: Config) -> Result<Self> {
        let shapes = Model::tensor_shapes(&config)?;
        let state = flags.out.join(STATE);
        let mut saved = None;
        let mut progress = Progress::default();
        let mut weights = Vec::new();
        if state.is_file() {
            let text = fs::read_to_string(flags.out.join(PROGRESS)).context("cannot read the saved progress")?;
            progress = serde_json::from_str(&text).context("the saved progress is damaged; delete the folder")?;
            let found = common::tensors::read(&state)?;
            for (name, shape) in shapes {
                let key = format!("weight.{name}");
                let tensor = found.get(&key).with_context(|| format!("{}: {key} is missing", state.display()))?;
                ensure!(
                    tensor.size() == shape,
                    "{}: {key} belongs to another model; use another --out",
                    state.display()
                );
                weights.push((name.clone(), tensor.shallow_clone()));
            }
            saved = Some(found);
        } else {
            let model = Model::random(config.clone(), flags.seed)?;
            weights = model.trainable(0..model.parts().len())?;
        }
        let leaf = |(name, weight): (String, Tensor)| Ok((name, weight.f_detach()?.f_set_requires_grad(true)?));
        let weights = weights.into_iter().map(leaf).collect::<Result<Vec<_>>>()?;
        // Only matrices decay.
        let (matrices, others): (Vec<_>, Vec<_>) = weights
            .iter()
            .map(|(name, weight)| (name.clone(), weight.shallow_clone()))
            .partition(|(_, weight)| weight.dim() > 1);
        let options = AdamWOptions::default().betas(0.9, 0.95);
        let mut optimizer = AdamW::new(matrices, options.weight_decay(flags.weight_decay))?;
        optimizer.add_group(others, options.weight_decay(0.0))?;
        if let Some(saved) = saved {
            optimizer.load_state(&saved).with_context(|| state.display().to_string())?;
        }
        Ok(Self { config, weights, optimizer, progress })
    }

    fn parameters(&self) -> usize {
        self.weights.iter().map(|(_, weight)| weight.numel()).sum()
    }

    /// The model over the weights as they are now, cast to the dtype of the matrix products. Gradients flow back through
    /// the cast to the f32 weights.
    fn model(&self, kind: Kind) -> Result<Model> {
        let cast = |(name, weight): &(String, Tensor)| Ok((name.clone(), weight.f_to_kind(kind)?));
        let tensors = self.weights.iter().map(cast).collect::<Result<HashMap<_, _>>>()?;
        Ok(Model::from_tensors(self.config.clone(), &tensors)?)
    }

    fn run(&mut self, flags: &Flags, train: &[i64], held_out: &[i64]) -> Result<()> {
        let bar = common::progress::steps(flags.steps);
        let started = Instant::now();
        let seconds_before = self.progress.seconds;
        let mut smoothed = None::<f64>;
        while self.progress.step < flags.steps {
            let step = self.progress.step;
            let rate = learning_rate(flags, step);
            let loss = self.step(flags, train, step, rate)?;
            ensure!(loss.is_finite(), "the loss is {loss} at step {step}; lower --learning-rate");
            smoothed = Some(smoothed.map_or(loss, |mean| 0.95 * mean + 0.05 * loss));
            bar.set_message(format!("loss {:.3}", smoothed.unwrap_or(loss)));
            self.progress.step += 1;
            bar.set_position(self.progress.step);
            self.progress.seconds = seconds_before + started.elapsed().as_secs_f64();
            if self.progress.step.is_multiple_of(flags.every) || self.progress.step == flags.steps {
                let held_out_loss = self.loss(flags, held_out, 32)?;
                self.progress.losses.push((self.progress.step, held_out_loss));
                let line = format!(
                    "step {:>6}  training loss {:.4}  held-out loss {held_out_loss:.4}  learning rate {rate:.2e}  {:.0} s",
                    self.progress.step,
                    smoothed.unwrap_or(loss),
                    self.progress.seconds
                );
                bar.suspend(|| common::print(&line))?;
                self.save(flags)?;
            }
        }
        bar.finish_and_clear();
        Ok(())
    }

    /// One step of AdamW with gradients clipped to norm one.
    fn step(&mut self, flags: &Flags, train: &[i64], step: u64, rate: f64) -> Result<f64> {
        // By the step's number, so that a resumed run draws the same batches.
        let random = Random::new(flags.seed);
        let sequences = (0..flags.batch as u64).map(|row| {
            let places = (train.len() - flags.context as usize - 1) as u64;
            let start = random.bits(step * flags.batch as u64 + row) % places;
            &train[start as usize..][..flags.context as usize + 1]
        });
        let loss = sequence_loss(&self.model(flags.compute.kind())?, sequences)?;
        loss.f_backward()?;
        let value = loss.f_double_value(&[])?;
        for (name, weight) in &self.weights {
            ensure!(weight.grad().defined(), "no gradient reached {name}");
        }
        self.optimizer.clip(1.0)?;
        for group in 0..self.optimizer.groups() {
            self.optimizer.set_learning_rate(group, rate)?;
        }
        self.optimizer.step()?;
        self.optimizer.zero_grad()?;
        Ok(value)
    }

    /// Mean loss in nats per token over consecutive held-out sequences, at most `batches` of them.
    fn loss(&self, flags: &Flags, held_out: &[i64], batches: usize) -> Result<f64> {
        let model = self.model(Kind::Float)?;
        let length = flags.context as usize;
        let sequences: Vec<&[i64]> = held_out.windows(length + 1).step_by(length).collect();
        let (mut total, mut count) = (0.0, 0);
        for batch in sequences.chunks(flags.batch as usize).take(batches) {
            let loss = no_grad(|| sequence_loss(&model, batch.iter().copied()))?;
            total += loss.f_double_value(&[])? * batch.len() as f64;
            count += batch.len();
        }
        Ok(total / count as f64)
    }

    fn save(&self, flags: &Flags) -> Result<()> {
        let mut tensors = self.optimizer.state()?;
        tensors.extend(self.weights.iter().map(|(name, weight)| (format!("weight.{name}"), weight.shallow_clone())));
        // The step count last: a kill between the two repeats some steps, it does not skip any.
        lowmem::save_safetensors(&flags.out.join(STATE), &tensors)?;
        common::output::write(&flags.out.join(PROGRESS), serde_json::to_string(&self.progress)?.as_bytes())
    }

    fn finish(&self, flags: &Flags, loss: f64, train: usize, held_out: usize) -> Result<()> {
        let store =
            |(name, weight): &(String, Tensor)| Ok((name.clone(), weight.f_detach()?.f_to_kind(flags.store.kind())?));
        let tensors = self.weights.iter().map(store).collect::<Result<Vec<_>>>()?;
        lowmem::save_safetensors(&flags.out.join("model.safetensors"), &tensors)?;
        common::output::write(&flags.out.join("README.md"), self.card(flags, loss, train, held_out).as_bytes())?;
        for file in [STATE, PROGRESS] {
            fs::remove_file(flags.out.join(file)).with_context(|| format!("cannot remove {file}"))?;
        }
        common::print(format!("wrote {}", flags.out.display()))?;
        Ok(())
    }

    fn card(&self, flags: &Flags, loss: f64, train: usize, held_out: usize) -> String {
        let name = |path: &PathBuf| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let texts = flags.texts.iter().map(name).collect::<Vec<_>>().join(", ");
        let command: Vec<String> = std::env::args().skip(1).map(|word| short(&word)).collect();
        let history =
            self.progress.losses.iter().map(|(step, loss)| format!("| {step} | {loss:.4} |\n")).collect::<String>();
        format!(
            "# {}\n\nA small {} for demonstrations and tests: {} parameters, {} blocks, width {}.\n\n\
             | | |\n|---|---|\n| data | {texts} ({train} tokens; the last {:.0} % of each file, {held_out} tokens, held out) |\n\
             | steps | {} of {} sequences of {} tokens, {:.0} minutes |\n\
             | held-out loss | {loss:.4} nats per token (perplexity {:.1}) |\n| licence | {} |\n\n\
             ```\ncargo run --release --example pretrain -- {}\n```\n\n| step | held-out loss |\n|---|---|\n{history}",
            flags.out.file_name().unwrap_or_default().to_string_lossy(),
            self.config.family.title,
            self.parameters(),
            self.config.layers(),
            self.config.architecture.d_model,
            flags.validation * 100.0,
            self.progress.step,
            flags.batch,
            flags.context,
            self.progress.seconds / 60.0,
            loss.exp(),
            flags.license,
            command.join(" "),
        )
    }
}

/// A path on somebody's machine says nothing to others; its file name does.
fn short(word: &str) -> String {
    match Path::new(word) {
        path if path.is_absolute() => path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        _ => word.to_owned(),
    }
}

/// Mean cross-entropy, in nats, of predicting each sequence's tokens from those before.
fn sequence_loss<'a>(model: &Model, sequences: impl Iterator<Item = &'a [i64]>) -> Result<Tensor> {
    let sequences: Vec<&[i64]> = sequences.collect();
    let ids = Tensor::f_from_slice(&sequences.concat())?.f_view([sequences.len() as i64, -1])?;
    let length = ids.size2()?.1 - 1;
    let outcome = model.forward(&Input::ids(ids.f_narrow(1, 0, length)?), &mut NoObserver)?;
    let logits = outcome.logits.context("the run gave no logits")?;
    let logits = logits.f_view([-1, model.architecture().vocabulary])?.f_to_kind(Kind::Float)?;
    let targets = ids.f_narrow(1, 1, length)?.f_reshape([-1])?;
    let log_probabilities = logits.f_log_softmax(-1, Kind::Float)?;
    Ok(log_probabilities.f_nll_loss(&targets, None::<&Tensor>, Reduction::Mean, -100)?)
}

/// Rises linearly, then falls along half a cosine to a tenth.
fn learning_rate(flags: &Flags, step: u64) -> f64 {
    if step < flags.warm_up {
        return flags.learning_rate * (step + 1) as f64 / flags.warm_up as f64;
    }
    let rest = flags.steps.saturating_sub(flags.warm_up).max(1) as f64;
    let progress = ((step - flags.warm_up) as f64 / rest).min(1.0);
    flags.learning_rate * (0.1 + 0.45 * (1.0 + (std::f64::consts::PI * progress).cos()))
}
