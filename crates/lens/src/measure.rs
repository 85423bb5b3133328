//! What is measured in a cell of the lens.

use std::fmt;

use serde::Serialize;

use crate::token_text::display_token;

/// What a cell of the lens says about a row's distribution over the vocabulary.
///
/// A measure's name (its [`Display`](fmt::Display) form) is the key of its values in the lens JSON and what
/// `--measure` takes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(into = "String")]
#[non_exhaustive]
pub enum Measure {
    /// `logits`: the score the row gives the model's own final top-1 token.
    Logits,
    /// `probs`: the probability, in 0..=1, the row gives the model's own final top-1 token.
    Probs,
    /// `ranks`: one more than the number of vocabulary entries the row scores strictly higher than the model's own
    /// final top-1 token; 1 is best.
    Ranks,
    /// `kl`: KL(final || row), in nats.
    Kl,
    /// `reverse_kl`: KL(row || final), in nats.
    ReverseKl,
    /// `entropy`: of the row's distribution, in nats.
    Entropy,
    /// `cross_entropy`: minus the logarithm of the probability the row gives the token that really comes next, in
    /// nats; not a number where no token comes next.
    CrossEntropy,
    /// `prob: TOKEN`: the probability, in 0..=1, the row gives a token of the reader's choice.
    TrackedProb(String),
    /// `rank: TOKEN`: the rank of a token of the reader's choice; 1 is best.
    TrackedRank(String),
}

/// How the name of a tracked probability begins.
pub(crate) const TRACKED_PROB: &str = "prob: ";
/// How the name of a tracked rank begins.
pub(crate) const TRACKED_RANK: &str = "rank: ";

impl Measure {
    /// The measures that need no token of the reader's choice.
    pub const PLAIN: [Self; 7] =
        [Self::Logits, Self::Probs, Self::Ranks, Self::Kl, Self::ReverseKl, Self::Entropy, Self::CrossEntropy];

    /// What the values count: `nats`, `probability`, `rank` or `logit`.
    pub fn unit(&self) -> &'static str {
        match self {
            Self::Logits => "logit",
            Self::Probs | Self::TrackedProb(_) => "probability",
            Self::Ranks | Self::TrackedRank(_) => "rank",
            Self::Kl | Self::ReverseKl | Self::Entropy | Self::CrossEntropy => "nats",
        }
    }

    /// A heading for people, with the unit: `KL(final ‖ row), nats`.
    pub fn heading(&self) -> String {
        match self {
            Self::Logits => "Logit of the final prediction".into(),
            Self::Probs => "Probability of the final prediction".into(),
            Self::Ranks => "Rank of the final prediction (1 is best)".into(),
            Self::Kl => "KL(final ‖ row), nats".into(),
            Self::ReverseKl => "KL(row ‖ final), nats".into(),
            Self::Entropy => "Entropy, nats".into(),
            Self::CrossEntropy => "Cross-entropy with the next token, nats".into(),
            Self::TrackedProb(token) => format!("Probability of “{}”", display_token(token)),
            Self::TrackedRank(token) => format!("Rank of “{}” (1 is best)", display_token(token)),
        }
    }

    /// A value of this measure in at most six characters or so, for people; `–` for one that is not finite.
    pub fn short(&self, value: f64) -> String {
        if !value.is_finite() {
            return "–".into();
        }
        match self.unit() {
            "rank" if value.abs() < 100_000.0 => format!("{value:.0}"),
            "rank" => format!("{:.0}k", value / 1000.0),
            "probability" if value != 0.0 && value.abs() < 0.0005 => format!("{value:.0e}"),
            "probability" => format!("{value:.3}"),
            _ if value.abs() >= 999.5 => format!("{value:.0}"),
            _ if value.abs() >= 99.95 => format!("{value:.1}"),
            _ => format!("{value:.2}"),
        }
    }
}

impl fmt::Display for Measure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Logits => formatter.pad("logits"),
            Self::Probs => formatter.pad("probs"),
            Self::Ranks => formatter.pad("ranks"),
            Self::Kl => formatter.pad("kl"),
            Self::ReverseKl => formatter.pad("reverse_kl"),
            Self::Entropy => formatter.pad("entropy"),
            Self::CrossEntropy => formatter.pad("cross_entropy"),
            Self::TrackedProb(token) => write!(formatter, "{TRACKED_PROB}{token}"),
            Self::TrackedRank(token) => write!(formatter, "{TRACKED_RANK}{token}"),
        }
    }
}

impl From<Measure> for String {
    fn from(measure: Measure) -> Self {
        measure.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_values_are_short() {
        let cases = [
            (Measure::Probs, 0.92345, "0.923"),
            (Measure::Probs, 1e-12, "1e-12"),
            (Measure::Probs, 0.0, "0.000"),
            (Measure::Ranks, 50256.0, "50256"),
            (Measure::Ranks, 256_000.0, "256k"),
            (Measure::Logits, -123.456, "-123.5"),
            (Measure::Kl, 12.5, "12.50"),
            (Measure::Kl, f64::NAN, "–"),
        ];
        for (measure, value, short) in cases {
            assert_eq!(measure.short(value), short);
        }
    }
}
