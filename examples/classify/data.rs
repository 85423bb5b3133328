//! Labelled texts, as token ids, and the batches made of them.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Context, Result, ensure};
use transformer_utils::{
    models,
    tch::{Device, Kind, Tensor},
};

/// One text: what it is, and its token ids.
#[derive(Clone, Debug)]
pub struct Example {
    /// Which of the labels.
    pub label: i64,
    /// Token ids, at least one.
    pub ids: Vec<i64>,
}

/// Labelled texts as they stand in a file: a label, a tab and a text on each line.
///
/// # Errors
///
/// A file that cannot be read, a line without a tab, an empty text: with the number of the line.
pub fn read(path: &Path) -> Result<Vec<(String, String)>> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut examples = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let place = || format!("{}, line {}", path.display(), index + 1);
        let (label, text) = line.split_once('\t').with_context(|| format!("{}: no tab after the label", place()))?;
        ensure!(!label.is_empty() && !text.is_empty(), "{}: the label or the text is empty", place());
        examples.push((label.to_owned(), text.to_owned()));
    }
    ensure!(!examples.is_empty(), "{}: no texts", path.display());
    Ok(examples)
}

/// The distinct labels in alphabetical order.
pub fn labels(examples: &[(String, String)]) -> Vec<String> {
    let distinct: BTreeSet<&String> = examples.iter().map(|(label, _)| label).collect();
    distinct.into_iter().cloned().collect()
}

/// Texts as token ids and labels as numbers.
///
/// # Errors
///
/// A label that is not among `labels`, a text longer than `positions` tokens, what `encode` says.
pub fn encode(
    examples: &[(String, String)],
    labels: &[String],
    positions: i64,
    encode: impl Fn(&str) -> Result<Vec<i64>>,
) -> Result<Vec<Example>> {
    let example = |(label, text): &(String, String)| -> Result<Example> {
        let number = labels.iter().position(|known| known == label);
        let number = number.with_context(|| format!("label {label:?} is not among {}", labels.join(", ")))?;
        let ids = encode(text)?;
        let (found, limit) = (ids.len() as i64, positions);
        ensure!(found <= limit, models::Error::TooManyPositions { found, limit });
        Ok(Example { label: number as i64, ids })
    };
    let number = |(index, text)| example(text).with_context(|| format!("text {}", index + 1));
    examples.iter().enumerate().map(number).collect()
}

/// Some examples as tensors.
pub struct Batch {
    /// Token ids, `[batch, position]` (Int64, on the CPU), shorter texts padded on the right with 0.
    pub ids: Tensor,
    /// 1 at a token, 0 at padding: `[batch, position]` (f32).
    pub mask: Tensor,
    /// `[batch]` (Int64).
    pub labels: Tensor,
}

impl Batch {
    /// The batch of `examples`.
    pub fn new(examples: &[&Example], device: Device) -> Result<Self> {
        let width = examples.iter().map(|example| example.ids.len()).max().context("a batch of no texts")?;
        let shape = [examples.len() as i64, width as i64];
        let mut ids = Vec::with_capacity(examples.len() * width);
        let mut mask = Vec::with_capacity(examples.len() * width);
        for example in examples {
            let padding = width - example.ids.len();
            ids.extend(&example.ids);
            ids.extend(std::iter::repeat_n(0, padding));
            mask.extend(std::iter::repeat_n(1.0_f32, example.ids.len()));
            mask.extend(std::iter::repeat_n(0.0_f32, padding));
        }
        let labels: Vec<i64> = examples.iter().map(|example| example.label).collect();
        Ok(Self {
            ids: Tensor::f_from_slice(&ids)?.f_view(shape)?,
            mask: Tensor::f_from_slice(&mask)?.f_view(shape)?.f_to_device(device)?.f_to_kind(Kind::Float)?,
            labels: Tensor::f_from_slice(&labels)?.f_to_device(device)?,
        })
    }
}

/// The numbers below `length` in an order that depends on the seed and the epoch alone (Fisher and Yates' shuffle).
pub fn shuffled(length: usize, seed: u64, epoch: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..length).collect();
    let random = models::Random::new(seed ^ (epoch + 1).wrapping_mul(0xD1B5_4A32_D192_ED03));
    for (index, end) in (1..length).rev().enumerate() {
        order.swap(end, (random.bits(index as u64) % (end as u64 + 1)) as usize);
    }
    order
}
