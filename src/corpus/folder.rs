//! The folder or prefix that the objects of a job share.

use std::{collections::HashMap, path::Path};

use serde_json::Value;

use super::{
    error::{Error, Result},
    identity::Identity,
    merge,
    output::Output,
    place::{Place, temporary_of},
    record::UnitRecord,
    sink::{Piece, Unit},
    tensor_file::{self, Stored},
};

/// The file that says whose folder it is.
pub(super) const JOB: &str = "job.json";

/// A folder of objects, one for each unit: what the sinks of the library have in common.
#[derive(Debug)]
pub(super) struct Folder {
    place: Place,
    output: Output,
    piece: Piece,
    fingerprint: String,
    /// Files that are there, with their bytes.
    present: HashMap<String, u64>,
}

impl Folder {
    /// A folder, or an address such as `s3://bucket/path`.
    pub(super) fn new(path: &Path, output: Output) -> Result<Self> {
        Ok(Self::at(Place::parse(path)?, output))
    }

    pub(super) fn at(place: Place, output: Output) -> Self {
        Self { place, output, piece: Piece::WHOLE, fingerprint: String::new(), present: HashMap::new() }
    }

    /// A job as this output knows it; fields of the sink's own may follow.
    pub(super) fn identity(&self, job: &Identity) -> Identity {
        job.clone().with("output", self.output.name())
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
        self.piece = piece;
        self.present.clear();
        for file in self.place.list()?.unwrap_or_default() {
            let target = temporary_of(&file.name);
            match target.and_then(|name| self.output.unit_of(name)) {
                Some((unit, _)) if piece.has(unit) => self.place.join(&file.name).remove()?,
                _ => _ = self.present.insert(file.name, file.bytes),
            }
        }
        Ok(())
    }

    /// Whether the object of a unit is there. It was written whole, so what it says of itself is enough.
    pub(super) fn is_done(&self, unit: usize) -> Result<bool> {
        let Some(&bytes) = self.present.get(&self.output.object_name(unit)) else { return Ok(false) };
        let object = self.object(unit);
        check(&object, &self.output.read_record(&object, bytes)?, &self.fingerprint, unit)?;
        Ok(true)
    }

    /// The object of a unit.
    pub(super) fn object(&self, unit: usize) -> Place {
        self.place.join(&self.output.object_name(unit))
    }

    /// What the object of a unit says of itself. `in_order`: whether the rows stand as the unit had them.
    pub(super) fn record(&self, unit: &Unit, in_order: bool) -> UnitRecord {
        UnitRecord::of(unit, self.fingerprint.clone(), in_order)
    }

    /// Writes the object of a unit, a safetensors file.
    pub(super) fn write_tensors(&self, unit: &Unit, in_order: bool, tensors: Vec<Stored>) -> Result<()> {
        self.object(unit.number()).write(tensor_file::encode(tensors, Some(&self.record(unit, in_order)))?)
    }

    /// The piece is done: where it is all of the job, what the job has together is written, too.
    pub(super) fn end(&self) -> Result<()> {
        if self.piece.is_whole() {
            merge::merge_place(&self.place)?;
        }
        Ok(())
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

/// The `job.json` of a folder.
pub(super) fn read_job(folder: &Place) -> Result<Value> {
    let job = folder.join(JOB);
    let bytes = job.read()?.ok_or_else(|| Error::NoJob { place: folder.to_string() })?;
    serde_json::from_slice(&bytes)
        .map_err(|error| Error::Object { place: job.to_string(), problem: format!("is not JSON ({error})") })
}
