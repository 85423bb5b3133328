//! Safetensors files of activations.

use std::path::Path;

use lowmem::Dtype;
use models::Random;
use serde_json::Value;
use tch::Tensor;

use super::{
    error::{Error, Result},
    folder::Folder,
    identity::Identity,
    output::Output,
    place::Place,
    sink::{Batch, Piece, Sink, Unit},
    tensor_file::Stored,
};

/// Keeps each unit as a safetensors file in a folder, or under the address of one in an object store.
///
/// A file holds one tensor a name, the tokens of its texts one after the other, `[tokens, ...]`, and `ids`, `text` and `position`,
/// `[tokens]`: each token's id, its text (a place in the file's list of texts) and its position in it. What the texts are is in the
/// file's own metadata and, when the job is whole, in `index.jsonl`. Files are written whole or not at all.
#[derive(Debug)]
pub struct Safetensors {
    folder: Folder,
    shuffle: Option<u64>,
    identity: Option<Identity>,
    rows: Rows,
}

/// What is held of the unit that is being written.
#[derive(Debug, Default)]
struct Rows {
    ids: Vec<u8>,
    texts: Vec<u8>,
    positions: Vec<u8>,
    values: Vec<Values>,
}

/// The rows of one name.
#[derive(Debug)]
struct Values {
    name: String,
    dtype: Dtype,
    /// Of a row.
    shape: Vec<i64>,
    bytes: Vec<u8>,
}

impl Safetensors {
    /// A folder, which is made if it is not there (its parent must be), or an address such as `s3://bucket/path`.
    ///
    /// # Errors
    ///
    /// [`Error::Address`], [`Error::NeedsFeature`].
    pub fn create(path: impl AsRef<Path>) -> Result<Self> {
        Ok(Self::at(Place::parse(path.as_ref())?))
    }

    pub(super) fn at(place: Place) -> Self {
        let folder = Folder::at(place, Output::Safetensors);
        Self { folder, shuffle: None, identity: None, rows: Rows::default() }
    }

    /// Writes the tokens of each unit in an order that is random but for the seed and the unit's number. Rows of a text do not follow
    /// one another then: `text` and `position` say what a row is.
    pub fn shuffle(mut self, seed: u64) -> Self {
        self.shuffle = Some(seed);
        self
    }
}

impl Sink for Safetensors {
    fn begin(&mut self, job: &Identity, piece: Piece) -> Result<()> {
        let identity = self.folder.identity(job).with("shuffle", self.shuffle);
        self.folder.begin(&identity, piece)?;
        (self.identity, self.rows) = (Some(identity), Rows::default());
        Ok(())
    }

    fn is_done(&mut self, unit: usize) -> Result<bool> {
        self.folder.is_done(unit)
    }

    fn take(&mut self, batch: Batch) -> Result<()> {
        self.rows.take(&batch)
    }

    fn finish(&mut self, unit: &Unit) -> Result<()> {
        let mut rows = std::mem::take(&mut self.rows);
        if rows.values.is_empty()
            && let Some(identity) = &self.identity
        {
            rows.values = none(identity);
        }
        if let Some(seed) = self.shuffle {
            rows.shuffle(&permutation(seed, unit));
        }
        self.folder.write_tensors(unit, self.shuffle.is_none(), rows.tensors(unit))
    }

    fn end(&mut self) -> Result<()> {
        self.folder.end()
    }
}

/// The tensors of a unit without tokens.
fn none(identity: &Identity) -> Vec<Values> {
    let stored = |name: &Value| name.as_str()?.parse::<Dtype>().ok();
    let store = ["store", "dtype"].iter().find_map(|field| stored(identity.fields.get(*field)?));
    let names = identity.names.iter().zip(&identity.shapes);
    let values = |(name, shape): (&String, &Vec<i64>)| Values {
        name: name.clone(),
        dtype: store.unwrap_or(Dtype::F32),
        shape: shape.iter().map(|&size| size.max(0)).collect(),
        bytes: Vec::new(),
    };
    names.map(values).collect()
}

/// Which row stands at each place.
pub(super) fn permutation(seed: u64, unit: &Unit) -> Vec<usize> {
    let random = Random::named(seed, "corpus").branch(unit.number() as u64);
    let mut order: Vec<usize> = (0..unit.tokens()).collect();
    for last in (1..order.len()).rev() {
        let other = random.bits(last as u64) % (last as u64 + 1);
        order.swap(last, other as usize);
    }
    order
}

/// The bytes of a tensor, behind those that are there.
pub(super) fn append(bytes: &mut Vec<u8>, tensor: &Tensor, dtype: Dtype) -> std::result::Result<(), tch::TchError> {
    let tensor = tensor.f_contiguous()?;
    let start = bytes.len();
    bytes.resize(start + tensor.numel() * dtype.bytes() as usize, 0);
    match bytes.get_mut(start..) {
        Some(home) if !home.is_empty() => tensor.f_copy_data_u8(home, tensor.numel()),
        _ => Ok(()),
    }
}

impl Rows {
    fn take(&mut self, batch: &Batch) -> Result<()> {
        self.ids.extend(batch.ids().iter().flat_map(|id| id.to_le_bytes()));
        self.texts.extend(batch.texts().iter().flat_map(|text| text.to_le_bytes()));
        self.positions.extend(batch.positions().iter().flat_map(|position| position.to_le_bytes()));
        for (place, (name, values)) in batch.values().enumerate() {
            let fail = |source| Error::torch(format!("writing the values of {name}"))(source);
            let kind = values.f_kind().map_err(fail)?;
            let dtype = Dtype::from_kind(kind).ok_or_else(|| Error::Option {
                option: "store",
                problem: format!("{name} is of {kind:?}, which safetensors files do not have"),
            })?;
            if self.values.len() == place {
                let shape: Vec<i64> = values.size().into_iter().skip(1).collect();
                let row = shape.iter().product::<i64>() as usize * dtype.bytes() as usize;
                let bytes = Vec::with_capacity(row * batch.unit().tokens());
                self.values.push(Values { name: name.to_owned(), dtype, shape, bytes });
            }
            if let Some(home) = self.values.get_mut(place) {
                append(&mut home.bytes, values, dtype).map_err(fail)?;
            }
        }
        Ok(())
    }

    fn shuffle(&mut self, order: &[usize]) {
        let permute = |bytes: &mut Vec<u8>, row: usize| {
            let mut permuted = Vec::with_capacity(bytes.len());
            order.iter().for_each(|&from| permuted.extend(bytes.iter().skip(from * row).take(row)));
            *bytes = permuted;
        };
        permute(&mut self.ids, 8);
        permute(&mut self.texts, 4);
        permute(&mut self.positions, 4);
        for values in &mut self.values {
            let row = values.shape.iter().product::<i64>() as usize * values.dtype.bytes() as usize;
            permute(&mut values.bytes, row);
        }
    }

    /// The tensors of the file.
    fn tensors(self, unit: &Unit) -> Vec<Stored> {
        let tokens = unit.tokens() as i64;
        let mut tensors = vec![
            Stored::new("ids", Dtype::I64, [tokens], self.ids),
            Stored::new("text", Dtype::I32, [tokens], self.texts),
            Stored::new("position", Dtype::I32, [tokens], self.positions),
        ];
        for Values { name, dtype, shape, bytes } in self.values {
            tensors.push(Stored::new(name, dtype, [vec![tokens], shape].concat(), bytes));
        }
        tensors
    }
}
