//! The sums of a unit, and of several.

use std::collections::HashMap;

use lens::StreamReadout;

use crate::corpus::tensor_file::Stored;

/// Bins of confidence, of one width, as Guo et al. (2017) draw them.
pub(super) const BINS: usize = 10;

/// Sums over the tokens of one stream.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Sums {
    pub(super) tokens: i64,
    /// Tokens whose likeliest next one is that of the last stream.
    pub(super) agreed: i64,
    /// Nats.
    pub(super) kl: f64,
    /// Nats.
    pub(super) entropy: f64,
    /// Nats, over the tokens that have a next one.
    pub(super) log_probability: f64,
    /// These tokens, by the probability of the likeliest next one.
    pub(super) bins: [Bin; BINS],
}

/// Tokens that are about as sure.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Bin {
    pub(super) tokens: i64,
    /// Tokens whose likeliest next one is the next one.
    pub(super) right: i64,
    /// The sum of the likeliest ones' probabilities.
    pub(super) confidence: f64,
}

/// The bin of a probability: `K` has those above `K / 10`, up to and with `(K + 1) / 10`; the first has 0, too.
fn bin_of(probability: f64) -> usize {
    // What is no number goes to the first, whose sum it makes none.
    ((probability * BINS as f64).ceil() as usize).clamp(1, BINS) - 1
}

impl Bin {
    fn add(&mut self, other: &Self) {
        self.tokens += other.tokens;
        self.right += other.right;
        self.confidence += other.confidence;
    }
}

impl Sums {
    /// Adds the tokens of a batch; `next` has what comes next, -1 for nothing.
    pub(super) fn add(&mut self, found: &StreamReadout, next: &[i64]) {
        self.tokens += next.len() as i64;
        self.agreed += found.agrees.iter().filter(|&&agrees| agrees).count() as i64;
        self.kl += found.kl.iter().sum::<f64>();
        self.entropy += found.entropy.iter().sum::<f64>();
        let own = found.next_log_probability.iter().zip(&found.top1).zip(&found.top1_probability);
        for (((&log_probability, &top1), &confidence), &next) in own.zip(next).filter(|(_, next)| **next >= 0) {
            self.log_probability += log_probability;
            if let Some(bin) = self.bins.get_mut(bin_of(confidence)) {
                bin.add(&Bin { tokens: 1, right: i64::from(top1 == next), confidence });
            }
        }
    }

    /// Adds the sums of another unit.
    pub(super) fn join(&mut self, other: &Self) {
        self.tokens += other.tokens;
        self.agreed += other.agreed;
        self.kl += other.kl;
        self.entropy += other.entropy;
        self.log_probability += other.log_probability;
        self.bins.iter_mut().zip(&other.bins).for_each(|(bin, other)| bin.add(other));
    }

    /// The tensors of a file.
    pub(super) fn stored(&self, name: &str) -> [Stored; 4] {
        let counts: Vec<i64> = self.bins.iter().flat_map(|bin| [bin.tokens, bin.right]).collect();
        let confidences = self.bins.map(|bin| bin.confidence);
        let bins = BINS as i64;
        [
            Stored::i64(format!("{name}.counts"), [2], &[self.tokens, self.agreed]),
            Stored::f64(format!("{name}.sums"), [3], &[self.kl, self.entropy, self.log_probability]),
            Stored::i64(format!("{name}.bin_counts"), [bins, 2], &counts),
            Stored::f64(format!("{name}.bin_confidences"), [bins], &confidences),
        ]
    }

    /// The same of the tensors of a file; `None` where one is missing or of another length.
    pub(super) fn read(name: &str, tensors: &HashMap<String, Stored>) -> Option<Self> {
        let tensor = |what: &str| tensors.get(&format!("{name}.{what}"));
        let [tokens, agreed] = *tensor("counts")?.to_i64().first_chunk()?;
        let [kl, entropy, log_probability] = *tensor("sums")?.to_f64().first_chunk()?;
        let (counts, confidences) = (tensor("bin_counts")?.to_i64(), tensor("bin_confidences")?.to_f64());
        let mut bins = [Bin::default(); BINS];
        for (place, bin) in bins.iter_mut().enumerate() {
            let (tokens, right) = (*counts.get(2 * place)?, *counts.get(2 * place + 1)?);
            *bin = Bin { tokens, right, confidence: *confidences.get(place)? };
        }
        Some(Self { tokens, agreed, kl, entropy, log_probability, bins })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bins_have_their_upper_ends() {
        let found = [0.0, 0.05, 0.1, 0.100_001, 0.5, 0.95, 1.0].map(bin_of);
        assert_eq!(found, [0, 0, 0, 1, 4, 9, 9]);
        assert_eq!(bin_of(f64::NAN), 0);
    }

    #[test]
    fn what_is_stored_is_read() {
        let mut sums = Sums { tokens: 7, agreed: 3, kl: 1.5, entropy: 0.25, log_probability: -2.0, ..Sums::default() };
        sums.bins[9] = Bin { tokens: 4, right: 2, confidence: 3.75 };
        let tensors: HashMap<_, _> =
            sums.stored("h.1").into_iter().map(|tensor| (tensor.name.clone(), tensor)).collect();
        assert_eq!(Sums::read("h.1", &tensors), Some(sums.clone()));
        assert_eq!(Sums::read("h.2", &tensors), None);
        let mut twice = sums.clone();
        twice.join(&sums);
        assert_eq!((twice.tokens, twice.kl, twice.bins[9].right), (14, 3.0, 4));
    }
}
