//! What a job's units become, and what their objects are called.

use super::{error::Result, parquet_output, place::Place, record::UnitRecord, tensor_file};

/// A kind of output, one for each sink of the library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Output {
    Safetensors,
    #[cfg_attr(not(feature = "parquet"), allow(dead_code))]
    Parquet,
    Aggregates,
    Lens,
}

impl Output {
    pub(super) const ALL: [Self; 4] = [Self::Safetensors, Self::Parquet, Self::Aggregates, Self::Lens];

    /// What `job.json` calls it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Safetensors => "safetensors",
            Self::Parquet => "parquet",
            Self::Aggregates => "aggregates",
            Self::Lens => "lens",
        }
    }

    /// The same by that name.
    pub(super) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|output| output.name() == name)
    }

    /// What stands before the unit's number in the names of objects.
    fn stem(self) -> &'static str {
        match self {
            Self::Safetensors | Self::Parquet => "activations",
            Self::Aggregates | Self::Lens => self.name(),
        }
    }

    /// What stands behind.
    pub(super) fn ending(self) -> &'static str {
        match self {
            Self::Parquet => ".parquet",
            Self::Safetensors | Self::Aggregates | Self::Lens => ".safetensors",
        }
    }

    /// The name of a unit's object.
    pub(super) fn object_name(self, unit: usize) -> String {
        format!("{}-{unit:05}{}", self.stem(), self.ending())
    }

    /// The unit and the ending of an object's name, if it is one. The ending may be another's that shares the stem.
    pub(super) fn unit_of(self, name: &str) -> Option<(usize, &str)> {
        let rest = name.strip_prefix(self.stem())?.strip_prefix('-')?;
        let (number, ending) = rest.split_at(rest.find('.')?);
        let unit = number.parse().ok()?;
        (format!("{}-{unit:05}{ending}", self.stem()) == name).then_some((unit, ending))
    }

    /// What an object of so many bytes says of its unit; refuses one that is not whole.
    pub(super) fn read_record(self, object: &Place, bytes: u64) -> Result<UnitRecord> {
        match self {
            Self::Parquet => parquet_output::read_record(object, bytes),
            Self::Safetensors | Self::Aggregates | Self::Lens => tensor_file::read_record(object, bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_known_by_their_names() {
        let unit_of = |name| Output::Safetensors.unit_of(name);
        assert_eq!(unit_of("activations-00012.safetensors"), Some((12, ".safetensors")));
        assert_eq!(unit_of("activations-123456.parquet"), Some((123_456, ".parquet")));
        for other in ["activations-12.safetensors", "activations-00012", "job.json", "activations-x.parquet"] {
            assert_eq!(unit_of(other), None, "{other}");
        }
        for output in Output::ALL {
            assert_eq!(output.unit_of(&output.object_name(7)), Some((7, output.ending())));
            assert_eq!(Output::named(output.name()), Some(output));
        }
    }
}
