//! Choosing the next token from one row of logits.
//!
//! The steps are Hugging Face's `LogitsProcessor`s, in the order in which `generate` applies them: repetition penalty;
//! and, when sampling, temperature, top-k, top-p. They work on plain numbers on the CPU, so that the same logits and the
//! same seed give the same token on every device and whatever else has used libtorch's generator. The numbers are f64: a
//! temperature may be any positive one, and probabilities are summed without loss.

use std::collections::HashSet;

use crate::{Error, Random, Result};

/// How tokens are drawn when not the likeliest one is taken.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Sampling {
    /// What logits are divided by: below 1 sharpens, above 1 flattens.
    pub temperature: f64,
    /// Only the `k` likeliest tokens (and those that tie with the last of them).
    pub top_k: Option<usize>,
    /// Only the likeliest tokens that together have at least this probability.
    pub top_p: Option<f64>,
    /// The same seed gives the same tokens.
    pub seed: u64,
}

impl Default for Sampling {
    /// Draws from the model's own distribution.
    fn default() -> Self {
        Self { temperature: 1.0, top_k: None, top_p: None, seed: 0 }
    }
}

impl Sampling {
    /// With another choice of [`Sampling::temperature`].
    pub fn temperature(mut self, temperature: f64) -> Self {
        self.temperature = temperature;
        self
    }

    /// With another choice of [`Sampling::top_k`].
    pub fn top_k(mut self, top_k: impl Into<Option<usize>>) -> Self {
        self.top_k = top_k.into();
        self
    }

    /// With another choice of [`Sampling::top_p`].
    pub fn top_p(mut self, top_p: impl Into<Option<f64>>) -> Self {
        self.top_p = top_p.into();
        self
    }

    /// With another choice of [`Sampling::seed`].
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }
}

impl Sampling {
    pub(crate) fn check(&self) -> Result<()> {
        positive("temperature", self.temperature)?;
        let refuse = |setting, found, expected| Err(Error::Setting { setting, found, expected });
        match (self.top_k, self.top_p) {
            (Some(0), _) => refuse("top_k", "0".to_owned(), "at least 1"),
            (_, Some(p)) if !(p > 0.0 && p <= 1.0) => refuse("top_p", p.to_string(), "above 0 and at most 1"),
            _ => Ok(()),
        }
    }

    /// Draws token number `step` of row `row`. `logits` are changed on the way; they must be finite or `-inf`, and one of
    /// them finite.
    pub(crate) fn draw(&self, logits: &mut [f64], row: usize, step: usize) -> usize {
        // Before the temperature, which keeps the order but may make equals of what is not.
        if let Some(k) = self.top_k {
            keep_top_k(logits, k);
        }
        // The most likely token's is 0 whatever the temperature; the others' may become `-inf`, never infinite or NaN.
        let most = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        logits.iter_mut().for_each(|logit| *logit = (*logit - most) / self.temperature);
        if let Some(p) = self.top_p.filter(|&p| p < 1.0) {
            keep_top_p(logits, p);
        }
        let weights = weights(logits);
        let total: f64 = weights.iter().sum();
        // By row and step alone, so that a row does not depend on when others end.
        let random = Random::new(self.seed).branch(row as u64).branch(step as u64);
        let place = random.uniform(0) * total;
        let mut below = 0.0;
        let mut last = 0;
        for (id, &weight) in weights.iter().enumerate().filter(|(_, weight)| **weight > 0.0) {
            below += weight;
            last = id;
            if place < below {
                break;
            }
        }
        // Rounding can leave `place` at the very end; then the last possible token is meant.
        last
    }
}

/// Refuses what is no factor to scale logits by.
pub(crate) fn positive(setting: &'static str, found: f64) -> Result<()> {
    if found.is_finite() && found > 0.0 {
        return Ok(());
    }
    Err(Error::Setting { setting, found: found.to_string(), expected: "a number above 0" })
}

/// The likeliest token, the first of equals.
pub(crate) fn likeliest(logits: &[f64]) -> usize {
    let mut best = 0;
    let mut most = f64::NEG_INFINITY;
    for (id, &logit) in logits.iter().enumerate() {
        if logit > most {
            (best, most) = (id, logit);
        }
    }
    best
}

/// Makes tokens that occurred less likely (Keskar et al., 2019): positive logits are divided, negative ones multiplied.
pub(crate) fn penalize_repetition<'a>(logits: &mut [f64], seen: impl Iterator<Item = &'a i64>, penalty: f64) {
    let distinct: HashSet<&i64> = seen.collect();
    for &id in distinct {
        if let Some(logit) =
            usize::try_from(id).ok().and_then(|id| logits.get_mut(id)).filter(|logit| logit.is_finite())
        {
            let changed = if *logit < 0.0 { *logit * penalty } else { *logit / penalty };
            // Finite logits stay finite, so that differences between them exist.
            *logit = changed.clamp(f64::MIN / 4.0, f64::MAX / 4.0);
        }
    }
}

fn keep_top_k(logits: &mut [f64], k: usize) {
    if k >= logits.len() {
        return;
    }
    let mut sorted = logits.to_vec();
    let (_, &mut least, _) = sorted.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
    // Not by rank: what ties with the last one stays.
    logits.iter_mut().filter(|logit| **logit < least).for_each(|logit| *logit = f64::NEG_INFINITY);
}

fn keep_top_p(logits: &mut [f64], p: f64) {
    let weights = weights(logits);
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
    // In the order of the sums below, so that rounding cannot make the whole differ from the sum of all.
    let total: f64 = order.iter().map(|&id| weights[id]).sum();
    let mut above = 0.0;
    for (rank, id) in order.into_iter().enumerate() {
        // The likeliest stays whatever `p` is.
        if rank > 0 && above >= p * total {
            logits[id] = f64::NEG_INFINITY;
        }
        above += weights[id];
    }
}

/// Probabilities up to a factor.
fn weights(logits: &[f64]) -> Vec<f64> {
    let most = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    logits.iter().map(|&logit| (logit - most).exp()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f64; 6] = [1.0, -2.0, 3.0, 3.0, 0.5, -0.25];

    fn kept(logits: &[f64]) -> Vec<usize> {
        (0..logits.len()).filter(|&id| logits[id].is_finite()).collect()
    }

    #[test]
    fn repetition_penalty_divides_what_is_positive_and_multiplies_what_is_not() {
        let mut logits = LOGITS;
        penalize_repetition(&mut logits, [0, 1, 1, 9, -1].iter(), 2.0);
        assert_eq!(logits, [0.5, -4.0, 3.0, 3.0, 0.5, -0.25]);
    }

    #[test]
    fn top_k_keeps_ties_with_the_last() {
        for (k, expected) in
            [(1, vec![2, 3]), (2, vec![2, 3]), (3, vec![0, 2, 3]), (6, (0..6).collect()), (9, (0..6).collect())]
        {
            let mut logits = LOGITS;
            keep_top_k(&mut logits, k);
            assert_eq!(kept(&logits), expected, "{k}");
        }
    }

    #[test]
    fn top_p_keeps_the_token_that_crosses_the_threshold() {
        let probabilities = [0.5_f64, 0.3, 0.15, 0.05];
        for (p, expected) in [(0.01, 1), (0.49, 1), (0.51, 2), (0.79, 2), (0.81, 3), (0.96, 4)] {
            let mut logits = probabilities.map(f64::ln);
            keep_top_p(&mut logits, p);
            assert_eq!(kept(&logits), (0..expected).collect::<Vec<_>>(), "{p}");
        }
    }

    #[test]
    fn draws_follow_the_distribution_and_the_seed() {
        let probabilities = [0.5_f64, 0.0, 0.3, 0.2];
        let sampling = Sampling { seed: 7, ..Sampling::default() };
        let draw = |sampling: &Sampling, step| sampling.draw(&mut probabilities.map(f64::ln), 0, step);
        let draws: Vec<usize> = (0..20_000).map(|step| draw(&sampling, step)).collect();
        for (id, probability) in probabilities.into_iter().enumerate() {
            let share = draws.iter().filter(|&&drawn| drawn == id).count() as f64 / draws.len() as f64;
            assert!((share - probability).abs() < 0.015, "token {id}: {share} instead of {probability}");
        }
        assert!(draws[1..100] == (1..100).map(|step| draw(&sampling, step)).collect::<Vec<_>>()[..]);
        let other = Sampling { seed: 8, ..sampling };
        assert!(draws[..100] != (0..100).map(|step| draw(&other, step)).collect::<Vec<_>>()[..]);
    }

    #[test]
    fn a_low_temperature_takes_the_likeliest() {
        let sampling = Sampling { temperature: 1e-3, ..Sampling::default() };
        assert!((0..100).all(|step| sampling.draw(&mut [1.0, 1.1, 0.9], 0, step) == 1));
    }

    #[test]
    fn any_positive_temperature_gives_a_distribution() {
        // 3.0 twice: at temperatures that let nothing else through, the two are equally likely.
        let shares = |temperature: f64, top_p: Option<f64>| {
            let sampling = Sampling { temperature, top_p, ..Sampling::default() };
            let mut shares = [0_usize; LOGITS.len()];
            (0..2000).for_each(|step| shares[sampling.draw(&mut { LOGITS }, 0, step)] += 1);
            shares
        };
        for temperature in [5e-324, 1e-320, 1e-50, f64::from(f32::MIN_POSITIVE), 1e-10] {
            let both = shares(temperature, None);
            assert_eq!(both[2] + both[3], 2000, "{temperature:e}: {both:?}");
            assert!(both[2].abs_diff(1000) < 150, "{temperature:e}: {both:?}");
            // Half of the probability is the first's.
            assert_eq!(shares(temperature, Some(0.4)), [0, 0, 2000, 0, 0, 0]);
        }
        // And at those that level everything.
        for temperature in [1e50, 1e300, f64::MAX] {
            assert!(shares(temperature, None).iter().all(|share| share.abs_diff(333) < 100), "{temperature:e}");
        }
    }

    #[test]
    fn a_tiny_difference_decides_at_a_tiny_temperature() {
        let below = f64::from(f32::from_bits(3.0_f32.to_bits() - 1));
        for temperature in [5e-324, 1e-50, f64::from(f32::MIN_POSITIVE)] {
            let sampling = Sampling { temperature, ..Sampling::default() };
            assert!((0..100).all(|step| sampling.draw(&mut [below, 3.0, below, f64::NEG_INFINITY], 0, step) == 1));
        }
    }

    #[test]
    fn top_k_keeps_its_tokens_apart_at_any_temperature() {
        // Divided by so much, all three are zero.
        let sampling = Sampling { temperature: 1e300, top_k: Some(1), ..Sampling::default() };
        let logits = [0.0, 1e-30, 2e-30];
        assert!((0..50).all(|step| sampling.draw(&mut { logits }, 0, step) == 2));
    }

    #[test]
    fn top_p_of_nearly_one_keeps_all_and_of_nearly_none_the_first() {
        let mut logits: Vec<f64> = (0..50_000).map(|id| -f64::from(id % 97) / 50.0).collect();
        keep_top_p(&mut logits, 1.0 - f64::EPSILON / 2.0);
        assert_eq!(kept(&logits).len(), 50_000);
        for p in [5e-324, f64::MIN_POSITIVE, 1e-50] {
            let mut logits = LOGITS;
            keep_top_p(&mut logits, p);
            assert_eq!(kept(&logits), [2]);
        }
    }

    #[test]
    fn any_penalty_leaves_finite_logits_finite() {
        for penalty in [5e-324, 1e-50, 1e50, f64::MAX] {
            let mut logits = [1.0, -1.0, 0.0, f64::NEG_INFINITY];
            penalize_repetition(&mut logits, [0, 1, 2, 3].iter(), penalty);
            assert!(logits[..3].iter().all(|logit| logit.is_finite()), "{penalty:e}: {logits:?}");
            assert_eq!((logits[2], logits[3]), (0.0, f64::NEG_INFINITY));
            assert!(Sampling::default().draw(&mut logits, 0, 0) < 3);
        }
    }

    #[test]
    fn settings_out_of_range_are_refused() {
        let settings = [
            Sampling { temperature: 0.0, ..Sampling::default() },
            Sampling { temperature: f64::NAN, ..Sampling::default() },
            Sampling { top_k: Some(0), ..Sampling::default() },
            Sampling { top_p: Some(0.0), ..Sampling::default() },
            Sampling { top_p: Some(1.5), ..Sampling::default() },
        ];
        for sampling in settings {
            assert!(matches!(sampling.check(), Err(Error::Setting { .. })), "{sampling:?}");
        }
    }
}
