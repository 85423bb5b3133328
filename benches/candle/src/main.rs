//! Times candle on a Llama of GPT-2's size, and prints one line of JSON.
//!
//! candle has no GPT-2 (its `bigcode` is one in name, but runs only with keys and values shared among heads). Its Llama
//! with as many blocks, heads and channels, keys and values for every head, and an MLP of three matrices that are together
//! as large as GPT-2's two, has as many parameters and as much to multiply: 123.6 million and 1.55 billion. It gives the
//! logits of the last position only. Weights are random.
//!
//! Built with the machine's own instructions, candle may be faster: `RUSTFLAGS="-C target-cpu=native"`.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::{Init, VarBuilder, var_builder::SimpleBackend};
use candle_transformers::models::llama::{Cache, Config, Llama};
use clap::{Parser, ValueEnum};
use serde_json::json;

/// Time candle on a Llama of GPT-2's size.
#[derive(Parser)]
struct Flags {
    /// Size of the model.
    #[arg(long, value_enum, default_value = "gpt2")]
    size: Size,

    /// Tokens of the prompts of timed forwards, separated by commas.
    #[arg(long, value_delimiter = ',', value_name = "N,..")]
    lengths: Vec<u32>,

    /// Tokens of the prompt, and new tokens of a timed greedy generation.
    #[arg(long, num_args = 2, value_names = ["N", "N"])]
    generate: Option<Vec<u32>>,

    /// Timed runs, after one that is not.
    #[arg(long, default_value_t = 1, value_name = "N")]
    repeats: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Size {
    /// 124 million parameters.
    #[value(name = "gpt2")]
    Gpt2,
    /// 1.56 billion parameters.
    #[value(name = "gpt2-xl")]
    Gpt2Xl,
}

impl Size {
    fn config(self) -> Config {
        // Of the MLP's width two thirds of GPT-2's, in multiples of 8.
        let (hidden_size, intermediate_size, num_hidden_layers, num_attention_heads) = match self {
            Self::Gpt2 => (768, 2048, 12, 12),
            Self::Gpt2Xl => (1600, 4264, 48, 25),
        };
        Config {
            hidden_size,
            intermediate_size,
            vocab_size: VOCABULARY as usize,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads: num_attention_heads,
            use_flash_attn: false,
            rms_norm_eps: 1e-5,
            rope_theta: 10_000.0,
            bos_token_id: None,
            eos_token_id: None,
            rope_scaling: None,
            max_position_embeddings: POSITIONS as usize,
            tie_word_embeddings: true,
        }
    }
}

const VOCABULARY: u32 = 50257;
const POSITIONS: u32 = 1024;

/// Weights by name, made when they are first asked for: small random numbers, norms one.
#[derive(Default)]
struct Random(Mutex<HashMap<String, Tensor>>);

impl Random {
    fn tensor(&self, shape: Shape, name: &str, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        let mut tensors = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tensor) = tensors.get(name) {
            return Ok(tensor.clone());
        }
        let tensor = if shape.rank() == 1 {
            Tensor::ones(shape, dtype, device)?
        } else {
            Tensor::rand(-0.035_f32, 0.035, shape, device)?.to_dtype(dtype)?
        };
        tensors.insert(name.to_owned(), tensor.clone());
        Ok(tensor)
    }
}

impl SimpleBackend for Random {
    fn get(&self, shape: Shape, name: &str, _: Init, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        self.tensor(shape, name, dtype, device)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        candle_core::bail!("{name}: a random tensor needs a shape")
    }

    fn contains_tensor(&self, _: &str) -> bool {
        true
    }
}

fn main() -> Result<()> {
    let flags = Flags::parse();
    for &length in &flags.lengths {
        ensure!((1..=POSITIONS).contains(&length), "--lengths {length}: the model reads 1 to {POSITIONS}");
    }
    let weights = VarBuilder::from_backend(Box::new(Random::default()), DType::F32, Device::Cpu);
    let config = flags.size.config();
    let model = Llama::load(weights, &config)?;
    let cache = |keeps| Cache::new(keeps, DType::F32, &config, &Device::Cpu);
    let mut forward = serde_json::Map::new();
    for &length in &flags.lengths {
        let input = Tensor::new(ids(length), &Device::Cpu)?.unsqueeze(0)?;
        let mut cache = cache(false)?;
        let mut seconds = Vec::new();
        for run in 0..=flags.repeats {
            let start = Instant::now();
            let logits = model.forward(&input, 0, &mut cache)?;
            if run > 0 {
                seconds.push(start.elapsed().as_secs_f64());
            }
            drop(logits);
        }
        forward.insert(length.to_string(), json!(seconds));
    }
    let mut tokens = Vec::new();
    if let Some([prompt, new]) = flags.generate.as_deref() {
        ensure!(*prompt > 0 && *new > 1, "--generate {prompt} {new}: at least 1 and 2 are needed");
        ensure!(prompt.saturating_add(*new) <= POSITIONS, "--generate: the model reads {POSITIONS} tokens");
        for run in 0..=flags.repeats {
            let seconds = generate(&model, &mut cache(true)?, *prompt, *new)?;
            if run > 0 {
                tokens.push(seconds);
            }
        }
    }
    println!("{}", json!({ "forward": forward, "token": tokens }));
    Ok(())
}

/// The ids that the other programs of the bench read.
fn ids(count: u32) -> Vec<u32> {
    (0..count).map(|index| (1000 + 23 * index) % VOCABULARY).collect()
}

/// Seconds between two new tokens, the first not counted: it comes with the prompt.
fn generate(model: &Llama, cache: &mut Cache, prompt: u32, new: u32) -> Result<f64> {
    let mut pending = ids(prompt);
    let mut past = 0;
    let mut times = Vec::new();
    for _ in 0..new {
        let input = Tensor::new(pending.as_slice(), &Device::Cpu)?.unsqueeze(0)?;
        let logits = model.forward(&input, past, cache)?;
        past += pending.len();
        pending = vec![logits.squeeze(0)?.argmax(0)?.to_scalar::<u32>()?];
        times.push(Instant::now());
    }
    let (first, last) = times.first().zip(times.last()).context("no token came")?;
    Ok((*last - *first).as_secs_f64() / f64::from(new - 1))
}
