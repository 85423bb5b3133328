//! The bytes of safetensors files that carry a unit's record.

use std::collections::HashMap;

use lowmem::Dtype;
use serde_json::{Map, Value, json};

use super::{
    error::{Error, Result},
    place::Place,
    record::{KEY, UnitRecord},
};

/// A tensor as it lies in a file.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Stored {
    pub(super) name: String,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<i64>,
    pub(super) bytes: Vec<u8>,
}

impl Stored {
    pub(super) fn new(name: impl Into<String>, dtype: Dtype, shape: impl Into<Vec<i64>>, bytes: Vec<u8>) -> Self {
        Self { name: name.into(), dtype, shape: shape.into(), bytes }
    }

    pub(super) fn f64(name: impl Into<String>, shape: impl Into<Vec<i64>>, numbers: &[f64]) -> Self {
        Self::new(name, Dtype::F64, shape, numbers.iter().flat_map(|number| number.to_le_bytes()).collect())
    }

    pub(super) fn f32(name: impl Into<String>, shape: impl Into<Vec<i64>>, numbers: &[f32]) -> Self {
        Self::new(name, Dtype::F32, shape, numbers.iter().flat_map(|number| number.to_le_bytes()).collect())
    }

    pub(super) fn i64(name: impl Into<String>, shape: impl Into<Vec<i64>>, numbers: &[i64]) -> Self {
        Self::new(name, Dtype::I64, shape, numbers.iter().flat_map(|number| number.to_le_bytes()).collect())
    }

    /// Its numbers, eight bytes each.
    fn wide<T>(&self, number: impl Fn([u8; 8]) -> T) -> Vec<T> {
        self.bytes.as_chunks::<8>().0.iter().map(|&bytes| number(bytes)).collect()
    }

    pub(super) fn to_f64(&self) -> Vec<f64> {
        self.wide(f64::from_le_bytes)
    }

    pub(super) fn to_i64(&self) -> Vec<i64> {
        self.wide(i64::from_le_bytes)
    }

    pub(super) fn to_f32(&self) -> Vec<f32> {
        self.bytes.as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
    }
}

/// The bytes of a file: the length of the header, the header, the tensors in their order. Tensors of wide numbers should come first, so
/// that all are aligned in a mapping of the file.
pub(super) fn encode(tensors: Vec<Stored>, record: Option<&UnitRecord>) -> Result<Vec<Vec<u8>>> {
    let fail = |error: serde_json::Error| Error::io("write", "a unit's record")(error.into());
    let mut metadata = Map::new();
    metadata.insert("format".into(), "pt".into());
    if let Some(record) = record {
        metadata.insert(KEY.into(), serde_json::to_string(record).map_err(fail)?.into());
    }
    let mut header = Map::new();
    header.insert("__metadata__".into(), metadata.into());
    let mut offset = 0;
    for tensor in &tensors {
        let end = offset + tensor.bytes.len();
        let dtype = tensor.dtype.safetensors_name();
        header.insert(
            tensor.name.clone(),
            json!({ "dtype": dtype, "shape": tensor.shape, "data_offsets": [offset, end] }),
        );
        offset = end;
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut bytes = vec![(header.len() as u64).to_le_bytes().to_vec(), header];
    bytes.extend(tensors.into_iter().map(|tensor| tensor.bytes));
    Ok(bytes)
}

/// The header of a file of so many bytes, and where its tensors begin; refuses a file that is not whole.
fn header(object: &Place, bytes: u64) -> Result<(Map<String, Value>, u64)> {
    let problem = || Error::Object { place: object.to_string(), problem: "is no whole safetensors file".into() };
    let length: [u8; 8] = object.range(0, 8.min(bytes))?.try_into().map_err(|_| problem())?;
    let length = u64::from_le_bytes(length);
    if length > bytes.saturating_sub(8) {
        return Err(problem());
    }
    let header: Map<String, Value> = serde_json::from_slice(&object.range(8, length)?).map_err(|_| problem())?;
    let ends = header.values().filter_map(|tensor| tensor.get("data_offsets")?.get(1)?.as_u64());
    if 8 + length + ends.max().unwrap_or(0) != bytes {
        return Err(problem());
    }
    Ok((header, 8 + length))
}

/// What a file says of its unit; refuses one that is not whole.
pub(super) fn read_record(object: &Place, bytes: u64) -> Result<UnitRecord> {
    let (header, _) = header(object, bytes)?;
    let record = header.get("__metadata__").and_then(|metadata| metadata.get(KEY)?.as_str());
    let problem = || Error::Object { place: object.to_string(), problem: "does not say which unit it holds".into() };
    record.and_then(|record| serde_json::from_str(record).ok()).ok_or_else(problem)
}

/// All tensors of a file by their names.
pub(super) fn decode(object: &Place, bytes: u64) -> Result<HashMap<String, Stored>> {
    let (header, start) = header(object, bytes)?;
    let data = object.range(start, bytes - start)?;
    let tensor = |(name, tensor): (String, Value)| {
        let dtype = tensor.get("dtype")?.as_str()?;
        let shape: Vec<i64> = tensor.get("shape")?.as_array()?.iter().filter_map(Value::as_i64).collect();
        let offset = |place: usize| usize::try_from(tensor.get("data_offsets")?.get(place)?.as_u64()?).ok();
        let bytes = data.get(offset(0)?..offset(1)?)?.to_vec();
        let dtype = dtype.to_ascii_lowercase().parse().ok()?;
        Some((name.clone(), Stored { name, dtype, shape, bytes }))
    };
    Ok(header.into_iter().filter_map(tensor).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let place = Place::Local(folder.path().join("a.safetensors"));
        let record = UnitRecord {
            job: "0".into(),
            unit: 3,
            input: None,
            first: Some(4),
            lines: 2,
            tokens: 0,
            texts: Vec::new(),
        };
        let tensors =
            vec![Stored::f64("a", [2], &[1.5, -2.0]), Stored::i64("b", [1, 1], &[7]), Stored::f32("c", [0], &[])];
        place.write(encode(tensors.clone(), Some(&record)).unwrap()).unwrap();
        let bytes = place.size().unwrap().unwrap();
        assert_eq!(read_record(&place, bytes).unwrap(), record);
        let read = decode(&place, bytes).unwrap();
        assert!(tensors.iter().all(|tensor| read[&tensor.name] == *tensor));
        assert_eq!(read["a"].to_f64(), [1.5, -2.0]);
        // Other readers find the same.
        let Place::Local(path) = &place else { panic!("not a file") };
        let checkpoint = lowmem::Checkpoint::open(path).unwrap();
        assert_eq!(checkpoint.index().get("b").unwrap().shape, [1, 1]);
        place.write(vec![vec![1, 2, 3]]).unwrap();
        assert!(read_record(&place, 3).is_err());
    }
}
