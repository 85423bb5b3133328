//! The folder or prefix that the objects of a job share.

use std::collections::HashMap;

use serde_json::Value;

use super::{
    error::{Error, Result},
    identity::Identity,
    place::{Place, temporary_of},
    record::UnitRecord,
    sink::Piece,
};

/// The file that says whose folder it is.
pub(super) const JOB: &str = "job.json";

/// A folder of objects, one for each unit.
#[derive(Debug)]
pub(super) struct Folder {
    pub(super) place: Place,
    /// What stands before the unit's number in the names of objects.
    stem: &'static str,
    /// What stands behind.
    ending: &'static str,
    fingerprint: String,
    /// Files that are there, with their bytes.
    present: HashMap<String, u64>,
}

impl Folder {
    pub(super) fn new(place: Place, stem: &'static str, ending: &'static str) -> Self {
        Self { place, stem, ending, fingerprint: String::new(), present: HashMap::new() }
    }

    /// Makes the folder the job's, or refuses one that belongs to another; removes what killed workers of the piece left.
    pub(super) fn begin(&mut self, identity: &Identity, piece: Piece) -> Result<()> {
        self.place.make_folder()?;
        let job = self.place.join(JOB);
        // Pieces that share the folder may all begin at once: whoever comes first makes it theirs.
        if job.size()?.is_some() || !job.create(identity.to_json().as_bytes())? {
            identity.compare(&job.to_string(), &read_job(&self.place)?)?;
        }
        self.fingerprint = identity.fingerprint();
        self.present.clear();
        for file in self.place.list()?.unwrap_or_default() {
            let target = temporary_of(&file.name);
            match target.and_then(|name| unit_of(name, self.stem)) {
                Some((unit, _)) if piece.has(unit) => self.place.join(&file.name).remove()?,
                _ => _ = self.present.insert(file.name, file.bytes),
            }
        }
        Ok(())
    }

    pub(super) fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// The object of a unit.
    pub(super) fn object(&self, unit: usize) -> Place {
        self.place.join(&object_name(self.stem, unit, self.ending))
    }

    /// Whether the object of a unit is there. It was written whole, so what it says of itself is enough.
    pub(super) fn is_done(&self, unit: usize, record: impl FnOnce(&Place, u64) -> Result<UnitRecord>) -> Result<bool> {
        let Some(&bytes) = self.present.get(&object_name(self.stem, unit, self.ending)) else { return Ok(false) };
        let object = self.object(unit);
        check(&object, &record(&object, bytes)?, &self.fingerprint, unit)?;
        Ok(true)
    }
}

/// Refuses the object of another job or of another unit.
pub(super) fn check(object: &Place, record: &UnitRecord, fingerprint: &str, unit: usize) -> Result<()> {
    if record.job != fingerprint {
        let (place, field) = (object.to_string(), "fingerprint".to_owned());
        return Err(Error::OtherJob { place, field, found: record.job.clone(), expected: fingerprint.to_owned() });
    }
    if record.unit != unit {
        let problem = format!("holds unit {}, which its name is not of", record.unit);
        return Err(Error::Object { place: object.to_string(), problem });
    }
    Ok(())
}

pub(super) fn object_name(stem: &str, unit: usize, ending: &str) -> String {
    format!("{stem}-{unit:05}{ending}")
}

/// The unit and the ending of an object's name, if it is one.
pub(super) fn unit_of<'a>(name: &'a str, stem: &str) -> Option<(usize, &'a str)> {
    let rest = name.strip_prefix(stem)?.strip_prefix('-')?;
    let (number, ending) = rest.split_at(rest.find('.')?);
    let unit = number.parse().ok()?;
    (object_name(stem, unit, ending) == name).then_some((unit, ending))
}

/// The `job.json` of a folder.
pub(super) fn read_job(folder: &Place) -> Result<Value> {
    let job = folder.join(JOB);
    let bytes = job.read()?.ok_or_else(|| Error::NoJob { place: folder.to_string() })?;
    serde_json::from_slice(&bytes)
        .map_err(|error| Error::Object { place: job.to_string(), problem: format!("is not JSON ({error})") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_known_by_their_names() {
        assert_eq!(unit_of("activations-00012.safetensors", "activations"), Some((12, ".safetensors")));
        assert_eq!(unit_of("activations-123456.parquet", "activations"), Some((123_456, ".parquet")));
        for other in ["activations-12.safetensors", "activations-00012", "job.json", "activations-x.parquet"] {
            assert_eq!(unit_of(other, "activations"), None, "{other}");
        }
    }
}
