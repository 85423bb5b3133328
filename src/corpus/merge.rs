//! Whether all of a job is there, and what it has together.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
    thread,
};

use serde::Serialize;
use serde_json::{Value, json};

use super::{
    aggregates,
    error::{Error, Result},
    folder::{self, read_job},
    lens_statistics,
    output::Output,
    place::{Listed, Place, temporary_of},
    record::UnitRecord,
};

/// The list of texts.
const INDEX: &str = "index.jsonl";
/// The list of files.
const MANIFEST: &str = "manifest.json";
/// Files that are not a unit's.
const OWN: [&str; 4] = [folder::JOB, INDEX, MANIFEST, "aggregates.safetensors"];
/// Headers read at a time; from an object store they take long to come.
const AT_ONCE: usize = 16;
/// Missing units that a message names.
const NAMED: usize = 8;

/// What a whole job has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Merged {
    /// Units, each a file.
    pub units: usize,
    /// Texts of all units.
    pub texts: usize,
    /// Tokens whose values are kept.
    pub tokens: usize,
    /// Bytes of all files.
    pub bytes: u64,
}

/// One line of the index.
#[derive(Serialize)]
struct Entry<'a> {
    id: &'a Value,
    line: u64,
    file: Option<&'a str>,
    start: Option<usize>,
    tokens: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    input: Option<&'a str>,
}

/// Checks that the output of a job is whole, every unit there once and of this job, and writes what it has together: `index.jsonl`, a line
/// for each text in the order of the corpus, and `manifest.json`, the files. Reads headers only. What killed workers left is removed.
/// Merging twice gives the same.
///
/// # Errors
///
/// [`Error::NoJob`]; [`Error::Missing`] with the numbers of units; [`Error::OtherJob`], [`Error::Object`] naming the file;
/// [`Error::Io`].
pub fn merge(path: impl AsRef<Path>) -> Result<Merged> {
    merge_place(&Place::parse(path.as_ref())?)
}

pub(super) fn merge_place(folder: &Place) -> Result<Merged> {
    let job = read_job(folder)?;
    let bad_job = || Error::Object { place: folder.join(folder::JOB).to_string(), problem: "is no job's".into() };
    let fingerprint = job.get("fingerprint").and_then(Value::as_str).ok_or_else(bad_job)?;
    let units = job.get("units").and_then(Value::as_u64).ok_or_else(bad_job)? as usize;
    let output = job.get("output").and_then(Value::as_str).and_then(Output::named).ok_or_else(bad_job)?;
    let listed = folder.list()?.ok_or_else(|| Error::NoJob { place: folder.to_string() })?;
    let objects = objects(folder, &listed, units, output)?;
    let mut merged = Merged { units, ..Merged::default() };
    let mut files = Vec::with_capacity(units);
    let mut index = Vec::new();
    // The lines of a file that stand before a unit's.
    let mut before: HashMap<Option<String>, u64> = HashMap::new();
    let all: Vec<(usize, u64)> = objects.into_iter().collect();
    for some in all.chunks(AT_ONCE) {
        for (record, &(unit, bytes)) in read_some(folder, some, output)?.into_iter().zip(some) {
            let name = output.object_name(unit);
            folder::check(&folder.join(&name), &record, fingerprint, unit)?;
            let lines = before.entry(record.input.clone()).or_default();
            let first = record.first.unwrap_or(*lines);
            *lines = first + record.lines;
            write_index(&mut index, &record, &name, first)?;
            files.push(json!({ "file": name, "unit": unit, "texts": record.texts.len(), "tokens": record.tokens, "bytes": bytes }));
            merged.texts += record.texts.len();
            merged.tokens += record.tokens;
            merged.bytes += bytes;
        }
    }
    for file in &listed {
        let target = temporary_of(&file.name);
        let is_own = |name: &str| {
            output.unit_of(name).is_some() || OWN.contains(&name) || lens_statistics::FILES.contains(&name)
        };
        if target.is_some_and(is_own) {
            folder.join(&file.name).remove()?;
        }
    }
    let names = job.get("names").and_then(Value::as_array).ok_or_else(bad_job)?;
    let names: Vec<String> = names.iter().filter_map(|name| name.as_str().map(str::to_owned)).collect();
    match output {
        Output::Safetensors | Output::Parquet => {}
        Output::Aggregates => {
            let top = job.get("top").and_then(Value::as_u64).unwrap_or(0) as usize;
            aggregates::join(folder, &names, top, &all)?;
        }
        Output::Lens => lens_statistics::join(folder, &job, &names, &all)?,
    }
    folder.join(INDEX).write(vec![index])?;
    let Merged { units, texts, tokens, bytes } = merged;
    let manifest = json!({
        "fingerprint": fingerprint, "units": units, "texts": texts, "tokens": tokens, "bytes": bytes, "files": files,
    });
    // Last of all: where it is, everything is.
    folder.join(MANIFEST).write(vec![format!("{manifest:#}\n").into_bytes()])?;
    Ok(merged)
}

/// The objects of all units with their bytes; refuses a job that has not all of them, or one that has others.
fn objects(folder: &Place, listed: &[Listed], units: usize, output: Output) -> Result<BTreeMap<usize, u64>> {
    let mut objects = BTreeMap::new();
    for file in listed {
        let Some((unit, ending)) = output.unit_of(&file.name) else { continue };
        if unit >= units || ending != output.ending() {
            let problem = format!("is none of this job's {units} {} files", output.ending());
            return Err(Error::Object { place: folder.join(&file.name).to_string(), problem });
        }
        objects.insert(unit, file.bytes);
    }
    let missing: Vec<usize> = (0..units).filter(|unit| !objects.contains_key(unit)).collect();
    if missing.is_empty() {
        return Ok(objects);
    }
    let ranges: Vec<String> = missing
        .chunk_by(|one, next| one + 1 == *next)
        .filter_map(|run| match run {
            [one] => Some(one.to_string()),
            [first, .., last] => Some(format!("{first} to {last}")),
            [] => None,
        })
        .collect();
    let mut which: Vec<String> = ranges.iter().take(NAMED).cloned().collect();
    which.extend((ranges.len() > NAMED).then(|| "...".to_owned()));
    Err(Error::Missing { place: folder.to_string(), missing: missing.len(), units, which })
}

/// What some objects say of themselves.
fn read_some(folder: &Place, some: &[(usize, u64)], output: Output) -> Result<Vec<UnitRecord>> {
    let read = |&(unit, bytes): &(usize, u64)| output.read_record(&folder.join(&output.object_name(unit)), bytes);
    let Place::Object(_) = folder else { return some.iter().map(read).collect() };
    thread::scope(|scope| {
        let running: Vec<_> = some.iter().map(|one| scope.spawn(move || read(one))).collect();
        let join = |thread: thread::ScopedJoinHandle<'_, Result<UnitRecord>>| {
            thread.join().map_err(|_| Error::Thread { doing: "reads" })?
        };
        running.into_iter().map(join).collect()
    })
}

fn write_index(index: &mut Vec<u8>, record: &UnitRecord, file: &str, first: u64) -> Result<()> {
    for text in &record.texts {
        let line = first + text.1 + 1;
        let own = line.into();
        let id = text.0.as_ref().unwrap_or(&own);
        let file = (text.3 > 0).then_some(file);
        let entry = Entry { id, line, file, start: text.2, tokens: text.3, input: record.input.as_deref() };
        let written = serde_json::to_writer(&mut *index, &entry);
        written.map_err(|error| Error::io("write", INDEX)(error.into()))?;
        index.push(b'\n');
    }
    Ok(())
}
