//! Columns of activations, by the crates `parquet` and `arrow`.

use std::{path::Path, sync::Arc};

use arrow_array::{
    ArrayRef, ArrowPrimitiveType, FixedSizeListArray, Int32Array, Int64Array, PrimitiveArray, RecordBatch, StringArray,
    types::{Float16Type, Float32Type, Float64Type, Int64Type},
};
use arrow_schema::{DataType, Field, Schema};
use lowmem::Dtype;
use parquet::{
    arrow::{
        ArrowWriter,
        arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions},
    },
    file::{
        metadata::KeyValue,
        properties::{EnabledStatistics, WriterProperties},
    },
    schema::types::ColumnPath,
};
use serde_json::{Value, json};

use crate::corpus::{
    error::{Error, Result},
    folder::Folder,
    identity::Identity,
    output::Output,
    parquet_input::Source,
    place::Place,
    record::{KEY, UnitRecord},
    safetensors::permutation,
    sink::{Batch, Piece, Sink, Unit},
};

/// Columns beside those of the names.
const OWN: [&str; 4] = ["text_id", "text", "position", "token_id"];
/// About the bytes of a row group: what those who read row by row hold at once.
const GROUP_BYTES: usize = 64 << 20;

/// Keeps each unit as a Parquet file, a row a token, as `datasets.load_dataset` opens them: the columns `text_id`,
/// `text` (its place in the unit), `position`, `token_id`, and one for each name, a list of fixed length.
///
/// `text_id` is the text's own id; without one, its row or number in its file, counted from 1 (`17`). Of a line without an id it is the
/// unit and the line within it, `UNIT:LINE`, the unit counted from 0 and the line from 1 (`3:17`): which line of its file that is follows
/// only from all units before, and `index.jsonl` says it. It is null for tokens between packed texts.
///
/// Arrow has no bf16: values are f32 or f16 ([`Job::store`](crate::corpus::Job::store)). Values of more than one dimension are flattened; the
/// files' metadata has their shapes.
#[derive(Debug)]
pub struct Parquet {
    folder: Folder,
    shuffle: Option<u64>,
    shapes: Value,
    store: Option<Dtype>,
    rows: Rows,
}

/// What is held of the unit that is being written.
#[derive(Debug, Default)]
struct Rows {
    ids: Vec<i64>,
    texts: Vec<i32>,
    positions: Vec<i32>,
    values: Vec<Values>,
}

/// The type of a number of 16 bits.
type Half = <Float16Type as ArrowPrimitiveType>::Native;

#[derive(Debug)]
struct Values {
    name: String,
    /// Numbers of a token.
    width: usize,
    numbers: Numbers,
}

/// The numbers of a name, in the width they are written in.
#[derive(Debug)]
enum Numbers {
    F16(Vec<Half>),
    F32(Vec<f32>),
    F64(Vec<f64>),
    I64(Vec<i64>),
}

impl Parquet {
    /// A folder, which is made if it is not there (its parent must be), or an address such as `s3://bucket/path`.
    ///
    /// # Errors
    ///
    /// [`Error::Address`], [`Error::NeedsFeature`].
    pub fn create(path: impl AsRef<Path>) -> Result<Self> {
        let folder = Folder::new(path.as_ref(), Output::Parquet)?;
        Ok(Self { folder, shuffle: None, shapes: Value::Null, store: None, rows: Rows::default() })
    }

    /// Writes the tokens of each unit in an order that is random but for the seed and the unit's number.
    pub fn shuffle(mut self, seed: u64) -> Self {
        self.shuffle = Some(seed);
        self
    }
}

impl Sink for Parquet {
    fn begin(&mut self, job: &Identity, piece: Piece) -> Result<()> {
        if let Some(name) = job.names().iter().find(|name| OWN.contains(&name.as_str())) {
            return Err(Error::Reserved { name: name.clone() });
        }
        let stored = |field: &str| job.fields().get(field)?.as_str()?.parse::<Dtype>().ok();
        self.store = stored("store").or_else(|| stored("dtype"));
        if self.store == Some(Dtype::Bf16) {
            let problem = "Parquet has no bf16; store f32 or f16".into();
            return Err(Error::Option { option: "store", problem });
        }
        let identity = self.folder.identity(job).with("shuffle", self.shuffle);
        self.shapes = job.names.iter().cloned().zip(job.shapes.iter().map(|shape| json!(shape))).collect();
        self.folder.begin(&identity, piece)?;
        self.rows = Rows::default();
        // So that a unit without tokens has all columns, too.
        for (name, shape) in job.names.iter().zip(&job.shapes) {
            if shape.iter().any(|&size| size < 0) {
                let problem = format!("{name} has as many numbers as a text has tokens; columns have a fixed width");
                return Err(Error::Option { option: "names", problem });
            }
        }
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
        if rows.values.is_empty() {
            rows.values = self.no_values();
        }
        let record = self.folder.record(unit, self.shuffle.is_none());
        let order = self.shuffle.map(|seed| permutation(seed, unit));
        let object = self.folder.object(unit.number());
        let failed = |error| Error::io("write", &object)(std::io::Error::other(error));
        let record = serde_json::to_string(&record).map_err(|error| Error::io("write", &object)(error.into()))?;
        let metadata = vec![
            KeyValue::new(KEY.to_owned(), record),
            KeyValue::new(format!("{KEY}_shapes"), self.shapes.to_string()),
        ];
        let bytes = rows.file(unit, order.as_deref(), metadata).map_err(failed)?;
        object.write(vec![bytes])
    }

    fn end(&mut self) -> Result<()> {
        self.folder.end()
    }
}

impl Parquet {
    /// The columns of a unit without tokens.
    fn no_values(&self) -> Vec<Values> {
        let shapes = self.shapes.as_object().into_iter().flatten();
        let values = |(name, shape): (&String, &Value)| {
            let sizes = shape.as_array().into_iter().flatten().filter_map(Value::as_u64);
            let numbers = match self.store {
                Some(Dtype::F16) => Numbers::F16(Vec::new()),
                Some(Dtype::F64) => Numbers::F64(Vec::new()),
                _ => Numbers::F32(Vec::new()),
            };
            Values { name: name.clone(), width: sizes.product::<u64>() as usize, numbers }
        };
        shapes.map(values).collect()
    }
}

impl Rows {
    fn take(&mut self, batch: &Batch) -> Result<()> {
        self.ids.extend(batch.ids());
        self.texts.extend(batch.texts());
        self.positions.extend(batch.positions());
        for (place, (name, values)) in batch.values().enumerate() {
            let fail = |source| Error::torch(format!("writing the values of {name}"))(source);
            let flat = values.f_contiguous().and_then(|values| values.f_view([-1])).map_err(fail)?;
            let kind = flat.f_kind().map_err(fail)?;
            if self.values.len() == place {
                let width = values.size().into_iter().skip(1).product::<i64>() as usize;
                let numbers = match Dtype::from_kind(kind) {
                    Some(Dtype::F16) => Numbers::F16(Vec::new()),
                    Some(Dtype::F32) => Numbers::F32(Vec::new()),
                    Some(Dtype::F64) => Numbers::F64(Vec::new()),
                    Some(Dtype::I64) => Numbers::I64(Vec::new()),
                    _ => {
                        let problem = format!("{name} is of {kind:?}, which these files do not have");
                        return Err(Error::Option { option: "store", problem });
                    }
                };
                self.values.push(Values { name: name.to_owned(), width, numbers });
            }
            let Some(home) = self.values.get_mut(place) else { continue };
            match &mut home.numbers {
                Numbers::F16(numbers) => numbers.extend(Vec::<Half>::try_from(flat).map_err(fail)?),
                Numbers::F32(numbers) => numbers.extend(Vec::<f32>::try_from(flat).map_err(fail)?),
                Numbers::F64(numbers) => numbers.extend(Vec::<f64>::try_from(flat).map_err(fail)?),
                Numbers::I64(numbers) => numbers.extend(Vec::<i64>::try_from(flat).map_err(fail)?),
            }
        }
        Ok(())
    }

    /// The bytes of the file.
    fn file(self, unit: &Unit, order: Option<&[usize]>, metadata: Vec<KeyValue>) -> parquet::errors::Result<Vec<u8>> {
        let name = |&text: &i32| {
            let text = usize::try_from(text).ok().and_then(|text| unit.texts().get(text))?;
            Some(match (text.id(), unit.first()) {
                (Some(Value::String(id)), _) => id.clone(),
                (Some(id), _) => id.to_string(),
                (None, Some(first)) => (first + text.at() + 1).to_string(),
                // Lines are counted by `merge`, when all units are there.
                (None, None) => format!("{}:{}", unit.number(), text.at() + 1),
            })
        };
        let names: Vec<Option<String>> = permuted(self.texts.iter().map(name).collect(), order, 1);
        let column = |name: &str, data| Field::new(name, data, name == "text_id");
        let mut fields = vec![
            column("text_id", DataType::Utf8),
            column("text", DataType::Int32),
            column("position", DataType::Int32),
            column("token_id", DataType::Int64),
        ];
        let mut columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from(names)),
            Arc::new(Int32Array::from(permuted(self.texts, order, 1))),
            Arc::new(Int32Array::from(permuted(self.positions, order, 1))),
            Arc::new(Int64Array::from(permuted(self.ids, order, 1))),
        ];
        let mut row_bytes = 24;
        for Values { name, width, numbers } in self.values {
            row_bytes += width * 4;
            let array = match numbers {
                Numbers::F16(numbers) => list::<Float16Type>(permuted(numbers, order, width), width)?,
                Numbers::F32(numbers) => list::<Float32Type>(permuted(numbers, order, width), width)?,
                Numbers::F64(numbers) => list::<Float64Type>(permuted(numbers, order, width), width)?,
                Numbers::I64(numbers) => list::<Int64Type>(permuted(numbers, order, width), width)?,
            };
            fields.push(Field::new(name, array.data_type().clone(), false));
            columns.push(array);
        }
        let schema = Arc::new(Schema::new(fields));
        let batch = RecordBatch::try_new(Arc::clone(&schema), columns)?;
        let properties = WriterProperties::builder()
            .set_dictionary_enabled(false)
            .set_column_dictionary_enabled(ColumnPath::from("text_id"), true)
            .set_statistics_enabled(EnabledStatistics::None)
            .set_max_row_group_row_count(Some((GROUP_BYTES / row_bytes).max(1)))
            .set_key_value_metadata(Some(metadata))
            .build();
        let mut bytes = Vec::new();
        let mut writer = ArrowWriter::try_new(&mut bytes, schema, Some(properties))?;
        writer.write(&batch)?;
        writer.close()?;
        Ok(bytes)
    }
}

/// Rows of `width` things in another order.
fn permuted<T: Clone>(values: Vec<T>, order: Option<&[usize]>, width: usize) -> Vec<T> {
    let Some(order) = order else { return values };
    order.iter().filter_map(|&row| values.get(row * width..(row + 1) * width)).flatten().cloned().collect()
}

fn list<T: ArrowPrimitiveType>(numbers: Vec<T::Native>, width: usize) -> parquet::errors::Result<ArrayRef>
where
    PrimitiveArray<T>: From<Vec<T::Native>>,
{
    let width = i32::try_from(width).map_err(|error| parquet::errors::ParquetError::General(error.to_string()))?;
    let field = Arc::new(Field::new_list_field(T::DATA_TYPE, false));
    Ok(Arc::new(FixedSizeListArray::try_new(field, width, Arc::new(PrimitiveArray::<T>::from(numbers)), None)?))
}

/// What a file says of its unit; refuses one that is not whole.
pub(in crate::corpus) fn read_record(object: &Place, bytes: u64) -> Result<UnitRecord> {
    let problem = |problem: &str| Error::Object { place: object.to_string(), problem: problem.to_owned() };
    let source = Source::new(object.clone(), bytes);
    let metadata = ArrowReaderMetadata::load(&source, ArrowReaderOptions::new());
    let metadata = metadata.map_err(|_| problem("is no whole Parquet file"))?;
    let pairs = metadata.metadata().file_metadata().key_value_metadata();
    let record = pairs.into_iter().flatten().find(|pair| pair.key == KEY).and_then(|pair| pair.value.as_deref());
    let record = record.and_then(|record| serde_json::from_str(record).ok());
    record.ok_or_else(|| problem("does not say which unit it holds"))
}
