//! A mixture of experts: what a run reads, beside the experts that its tokens go to.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Context, Result};
use safetensors::SafeTensors;
use serde_json::Value;

use crate::{
    Bench, MIB,
    checkpoints::Variant,
    figure::{Asked, Figure, Unit},
    files, number,
};

/// Tokens of the prompts.
const LENGTHS: [usize; 2] = [1, 5];

pub fn run(bench: &mut Bench) -> Result<()> {
    let Some(folder) = bench.checkpoints.provide(&bench.programs, Variant::Mixture)? else {
        bench.note("experts was skipped, the disk is full".into());
        return Ok(());
    };
    let config: Value = serde_json::from_str(&fs::read_to_string(folder.join("config.json"))?)?;
    let sizes = Sizes::of(&config, files::size(&folder)?)?;
    for tokens in LENGTHS {
        one(bench, &folder, &sizes, tokens)?;
    }
    Ok(())
}

/// Bytes of a mixture whose weights have two each.
struct Sizes {
    layers: u64,
    /// Of one row of the embedding.
    row: u64,
    rows: u64,
    /// Of one expert.
    expert: u64,
    experts: u64,
    /// Of the weight file.
    whole: u64,
}

impl Sizes {
    fn of(config: &Value, whole: u64) -> Result<Self> {
        let number = |field: &str| config[field].as_u64().with_context(|| format!("the config has no {field}"));
        let (d_model, d_mlp) = (number("hidden_size")?, number("intermediate_size")?);
        Ok(Self {
            layers: number("num_hidden_layers")?,
            row: 2 * d_model,
            rows: number("vocab_size")?,
            expert: 2 * 3 * d_model * d_mlp,
            experts: number("num_local_experts")?,
            whole,
        })
    }

    /// What a run over so many different tokens needs whose layers use so many experts together: everything but the other
    /// experts and the other rows of the embedding.
    fn needed(&self, tokens: u64, used: u64) -> u64 {
        let others = self.layers * self.experts - used;
        self.whole - others * self.expert - (self.rows - tokens) * self.row
    }
}

fn one(bench: &mut Bench, folder: &Path, sizes: &Sizes, tokens: usize) -> Result<()> {
    let chosen: Vec<String> = (0..sizes.layers).map(|layer| format!("h.{layer}.mlp.experts.chosen")).collect();
    let path = bench.scratch("chosen.safetensors");
    let names = format!("--names {},lm_head", chosen.join(","));
    let call = bench.example("activations", folder)?.args(&names).ids(tokens).args("--out chosen.safetensors");
    let call = call.replaced("chosen.safetensors", &path);
    let (_, report) = bench.reported(&call, crate::child::Call::run)?;
    let read = number(&report, "bytes_read")?;
    let used = used(&fs::read(&path)?, &chosen)?;
    let what = format!("mixture of {} experts, bf16: read by a run over {tokens}", sizes.experts);
    let what = format!("{what} {}", if tokens == 1 { "token" } else { "tokens" });
    let figure = Figure::new(what, read / MIB, Unit::Mebibytes, call.shown());
    let needed = sizes.needed(tokens as u64, used) as f64 / MIB;
    let words = format!("the weights that it uses, {used} of {} experts", sizes.layers * sizes.experts);
    // A part begins and ends within a page.
    bench.add(figure.clone().against(words, needed).asked(Asked::TimesAtMost(1.01)));
    bench.add(figure.against("all weights", sizes.whole as f64 / MIB));
    Ok(())
}

/// How many experts are named in the choices of all layers, each layer's counted by themselves.
fn used(file: &[u8], names: &[String]) -> Result<u64> {
    let tensors = SafeTensors::deserialize(file).context("the activations")?;
    let mut used = 0;
    for name in names {
        let tensor = tensors.tensor(name).with_context(|| format!("the activations have no {name}"))?;
        let numbers = tensor.data().as_chunks::<8>().0.iter().map(|bytes| i64::from_le_bytes(*bytes));
        used += numbers.collect::<BTreeSet<_>>().len() as u64;
    }
    Ok(used)
}

#[cfg(test)]
mod tests {
    use safetensors::{Dtype, tensor::TensorView};

    use super::*;

    #[test]
    fn what_a_run_needs_is_all_but_the_other_experts_and_rows() {
        let config = serde_json::json!({
            "hidden_size": 4, "intermediate_size": 5, "num_hidden_layers": 2, "num_local_experts": 3, "vocab_size": 7
        });
        let sizes = Sizes::of(&config, 10_000).unwrap();
        assert_eq!(sizes.needed(7, 6), 10_000);
        assert_eq!(sizes.needed(1, 4), 10_000 - 2 * (2 * 3 * 4 * 5) - 6 * 8);
    }

    #[test]
    fn experts_are_counted_layer_by_layer() {
        let bytes = |values: &[i64]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
        let (first, second) = (bytes(&[0, 3, 3, 1]), bytes(&[2, 2, 2, 2]));
        let view = |data| TensorView::new(Dtype::I64, vec![1, 2, 2], data).unwrap();
        let file = safetensors::serialize([("a", view(&first)), ("b", view(&second))], None).unwrap();
        assert_eq!(used(&file, &["a".to_owned(), "b".to_owned()]).unwrap(), 4);
        assert!(used(&file, &["c".to_owned()]).is_err());
    }
}
