//! What a change to a run is judged by.

use std::fmt;

use tch::{Kind, TchError, Tensor};

use crate::{Error, Result};

type Function = Box<dyn Fn(&Tensor) -> Result<Tensor, TchError>>;

enum Rule {
    LogitDifference { right: Vec<i64>, wrong: Vec<i64> },
    Logit(Vec<i64>),
    LogProbability(Vec<i64>),
    Probability(Vec<i64>),
    KullbackLeibler { reference: Tensor },
    With(Function),
}

/// A number for each row of a batch, made of its logits at one position (by default, its last token): what patches and
/// attributions are judged by. It can be differentiated.
///
/// Tokens are given for each row of the batch, or once for all rows.
///
/// ```
/// use partial::Metric;
/// use tch::Tensor;
/// # fn main() -> Result<(), partial::Error> {
/// let metric = Metric::logit_difference([2], [0]);
/// let logits = Tensor::from_slice2(&[[1.0f32, 0.0, 4.0], [2.0, 0.0, 1.0]]); // [row, vocabulary]
/// assert_eq!(metric.of(&logits)?, Tensor::from_slice(&[3.0f32, -1.0])); // [row]
/// # Ok(())
/// # }
/// ```
pub struct Metric {
    name: String,
    rule: Rule,
}

impl fmt::Debug for Metric {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Metric").field(&self.name).finish()
    }
}

/// The name, with the unit: `logit difference`, `KL divergence, nats`.
impl fmt::Display for Metric {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.name)
    }
}

impl Metric {
    fn new(name: impl Into<String>, rule: Rule) -> Self {
        Self { name: name.into(), rule }
    }

    /// How much higher the right token's logit is than the wrong one's.
    pub fn logit_difference(right: impl Into<Vec<i64>>, wrong: impl Into<Vec<i64>>) -> Self {
        Self::new("logit difference", Rule::LogitDifference { right: right.into(), wrong: wrong.into() })
    }

    /// The token's logit.
    pub fn logit(token: impl Into<Vec<i64>>) -> Self {
        Self::new("logit", Rule::Logit(token.into()))
    }

    /// The logarithm of the token's probability, in nats.
    pub fn log_probability(token: impl Into<Vec<i64>>) -> Self {
        Self::new("log probability, nats", Rule::LogProbability(token.into()))
    }

    /// The token's probability, in 0..=1.
    pub fn probability(token: impl Into<Vec<i64>>) -> Self {
        Self::new("probability", Rule::Probability(token.into()))
    }

    /// KL(reference || row), in nats; `reference` are logits, `[row or 1, vocabulary]`, such as those of the clean run.
    pub fn kl(reference: &Tensor) -> Self {
        Self::new("KL divergence, nats", Rule::KullbackLeibler { reference: reference.detach() })
    }

    /// What `function` makes of the logits, `[row, vocabulary]` in f32: one number for each row, `[row]`.
    pub fn with(name: impl Into<String>, function: impl Fn(&Tensor) -> Result<Tensor, TchError> + 'static) -> Self {
        Self::new(name, Rule::With(Box::new(function)))
    }

    /// The metric of each row, `[row]` in f32, of logits `[row, vocabulary]`.
    ///
    /// # Errors
    ///
    /// [`Error::MetricToken`] for a token that the vocabulary lacks; [`Error::MetricRows`] where tokens or reference are for another
    /// number of rows, or a function does not give one number for each; [`Error::Torch`].
    pub fn of(&self, logits: &Tensor) -> Result<Tensor> {
        let torch = |source| Error::Torch { at: format!("the metric ({})", self.name), source };
        let (rows, vocabulary) = logits.size2().map_err(torch)?;
        let logits = logits.f_to_kind(Kind::Float).map_err(torch)?;
        let logit = |scores: &Tensor, tokens: &[i64]| {
            let ids = self.ids(tokens, rows, vocabulary)?;
            let picked = ids
                .f_to_device(scores.device())
                .and_then(|ids| scores.f_gather(1, &ids.f_unsqueeze(1)?, false)?.f_squeeze_dim(1));
            picked.map_err(torch)
        };
        let log_probabilities = || logits.f_log_softmax(-1, Kind::Float).map_err(torch);
        let values = match &self.rule {
            Rule::LogitDifference { right, wrong } => {
                logit(&logits, right)?.f_sub(&logit(&logits, wrong)?).map_err(torch)
            }
            Rule::Logit(token) => logit(&logits, token),
            Rule::LogProbability(token) => logit(&log_probabilities()?, token),
            Rule::Probability(token) => logit(&log_probabilities()?, token)?.f_exp().map_err(torch),
            Rule::KullbackLeibler { reference } => {
                self.check_reference(reference, rows, vocabulary)?;
                let own = log_probabilities()?;
                let kl = || {
                    let reference = reference.f_to_device(own.device())?.f_log_softmax(-1, Kind::Float)?;
                    let terms = reference.f_exp()?.f_mul(&reference.f_sub(&own)?)?;
                    terms.f_sum_dim_intlist([-1].as_slice(), false, None)
                };
                kl().map_err(torch)
            }
            Rule::With(function) => function(&logits).and_then(|values| values.f_to_kind(Kind::Float)).map_err(torch),
        }?;
        if values.size() == [rows] { Ok(values) } else { Err(self.misfit(vec![rows], values.size())) }
    }

    /// What the metric is of, where it is linear in the logits: for each row a token that counts, and where it is a difference one that
    /// counts against it, `[row]` each.
    pub(crate) fn linear(&self, rows: i64, vocabulary: i64) -> Result<(Tensor, Option<Tensor>)> {
        match &self.rule {
            Rule::LogitDifference { right, wrong } => {
                Ok((self.ids(right, rows, vocabulary)?, Some(self.ids(wrong, rows, vocabulary)?)))
            }
            Rule::Logit(token) => Ok((self.ids(token, rows, vocabulary)?, None)),
            _ => Err(Error::NotLinear { metric: self.name.clone() }),
        }
    }

    /// Whether [`Metric::linear`] has an answer.
    pub(crate) fn is_linear(&self) -> bool {
        matches!(self.rule, Rule::LogitDifference { .. } | Rule::Logit(_))
    }

    /// Whether it can be of `rows` rows of logits over `vocabulary` tokens, as far as that is known without any.
    pub(crate) fn check(&self, rows: i64, vocabulary: i64) -> Result<()> {
        match &self.rule {
            Rule::LogitDifference { right, wrong } => {
                self.ids(right, rows, vocabulary).map(drop)?;
                self.ids(wrong, rows, vocabulary).map(drop)
            }
            Rule::Logit(token) | Rule::LogProbability(token) | Rule::Probability(token) => {
                self.ids(token, rows, vocabulary).map(drop)
            }
            Rule::KullbackLeibler { reference } => self.check_reference(reference, rows, vocabulary),
            Rule::With(_) => Ok(()),
        }
    }

    fn check_reference(&self, reference: &Tensor, rows: i64, vocabulary: i64) -> Result<()> {
        let size = reference.size();
        let fits = matches!(size[..], [of, width] if (of == rows || of == 1) && width == vocabulary);
        if fits { Ok(()) } else { Err(self.misfit(vec![rows, vocabulary], size)) }
    }

    fn misfit(&self, expected: Vec<i64>, found: Vec<i64>) -> Error {
        Error::MetricRows { metric: self.name.clone(), expected, found }
    }

    /// One token for each row.
    fn ids(&self, tokens: &[i64], rows: i64, vocabulary: i64) -> Result<Tensor> {
        if let Some(&token) = tokens.iter().find(|token| !(0..vocabulary).contains(token)) {
            return Err(Error::MetricToken { metric: self.name.clone(), token, vocabulary });
        }
        let each = match tokens {
            [token] => vec![*token; rows as usize],
            tokens if tokens.len() as i64 == rows => tokens.to_vec(),
            tokens => return Err(self.misfit(vec![rows], vec![tokens.len() as i64])),
        };
        Tensor::f_from_slice(&each).map_err(|source| Error::Torch { at: self.name.clone(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logits() -> Tensor {
        Tensor::from_slice2(&[[1.0f32, 0.0, 4.0], [2.0, 0.0, 1.0]])
    }

    #[test]
    fn each_rule_is_its_formula() {
        let probabilities = logits().softmax(-1, Kind::Float);
        let close = |metric: &Metric, expected: Tensor| {
            assert!(metric.of(&logits()).unwrap().allclose(&expected, 1e-6, 1e-7, false), "{metric}");
        };
        close(&Metric::logit_difference([2, 0], [0, 2]), Tensor::from_slice(&[3.0f32, 1.0]));
        close(&Metric::logit([2]), Tensor::from_slice(&[4.0f32, 1.0]));
        close(&Metric::probability([0]), probabilities.select(1, 0));
        close(&Metric::log_probability([0]), probabilities.select(1, 0).log());
        let reference = Tensor::from_slice2(&[[0.5f32, 1.0, -1.0]]);
        let p = reference.softmax(-1, Kind::Float);
        let kl = (&p * (p.log() - probabilities.log())).sum_dim_intlist([1].as_slice(), false, None);
        close(&Metric::kl(&reference), kl);
        close(
            &Metric::with("sum", |logits| logits.f_sum_dim_intlist([1].as_slice(), false, None)),
            Tensor::from_slice(&[5.0f32, 3.0]),
        );
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let of = |metric: Metric| metric.of(&logits()).unwrap_err();
        assert!(matches!(of(Metric::logit([3])), Error::MetricToken { token: 3, vocabulary: 3, .. }));
        assert!(matches!(of(Metric::probability([-1])), Error::MetricToken { token: -1, .. }));
        assert!(matches!(of(Metric::logit([0, 1, 2])), Error::MetricRows { .. }));
        assert!(matches!(of(Metric::kl(&Tensor::from_slice2(&[[0.0f32, 1.0]]))), Error::MetricRows { .. }));
        assert!(matches!(of(Metric::with("all", |logits| logits.f_sum(None))), Error::MetricRows { .. }));
    }
}
