//! Measures read from their names. Apart from [`Measure`], because what is wrong with a name is a [`TableError`], which in
//! turn names measures.

use std::str::FromStr;

use serde::{Deserialize, Deserializer, de::Error as _};

use crate::measure::{Measure, TRACKED_PROB, TRACKED_RANK};
use crate::table_error::TableError;

impl FromStr for Measure {
    type Err = TableError;

    fn from_str(name: &str) -> Result<Self, TableError> {
        if let Some(token) = name.strip_prefix(TRACKED_PROB) {
            return Ok(Self::TrackedProb(token.into()));
        }
        if let Some(token) = name.strip_prefix(TRACKED_RANK) {
            return Ok(Self::TrackedRank(token.into()));
        }
        let valid = || {
            let mut names: Vec<String> = Self::PLAIN.iter().map(ToString::to_string).collect();
            names.extend([format!("{TRACKED_PROB}TOKEN"), format!("{TRACKED_RANK}TOKEN")]);
            names
        };
        Self::PLAIN
            .into_iter()
            .find(|measure| measure.to_string() == name)
            .ok_or_else(|| TableError::UnknownMeasure { name: name.into(), valid: valid() })
    }
}

impl TryFrom<String> for Measure {
    type Error = TableError;

    fn try_from(name: String) -> Result<Self, TableError> {
        name.parse()
    }
}

impl<'de> Deserialize<'de> for Measure {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.try_into().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        let tracked = [Measure::TrackedProb(" Paris".into()), Measure::TrackedRank(String::new())];
        for measure in Measure::PLAIN.into_iter().chain(tracked) {
            assert_eq!(measure.to_string().parse::<Measure>().unwrap(), measure);
        }
    }

    #[test]
    fn an_unknown_name_is_refused_with_the_valid_ones() {
        let error = "probability".parse::<Measure>().unwrap_err();
        let text = error.to_string();
        assert!(text.contains("`probability`") && text.contains("probs, ranks, kl"), "{text}");
    }
}
