//! The columns of texts, by the crates `parquet` and `arrow`.

use std::{
    io::{BufReader, Read},
    ops::Range,
    sync::Arc,
};

use arrow_array::{
    Array, ArrayRef, LargeStringArray, ListArray, RecordBatch, StringArray,
    cast::AsArray,
    types::{Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type, UInt32Type, UInt64Type},
};
use bytes::Bytes;
use parquet::{
    arrow::{
        ProjectionMask,
        arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder},
    },
    errors::ParquetError,
    file::reader::{ChunkReader, Length},
};
use serde_json::Value;

use crate::corpus::{
    corpus::{Content, File, Options, Span},
    error::{Error, Result},
    place::Place,
    records::Record,
};

/// The row groups of a file.
pub(in crate::corpus) struct Groups {
    place: Place,
    bytes: u64,
    metadata: ArrowReaderMetadata,
    /// The column of texts or ids, by its place among the roots.
    content: usize,
    /// That of the texts' ids.
    id: Option<usize>,
    /// Of the row group that was read last.
    held: Option<(usize, Held)>,
}

/// The bytes of chosen columns of a row group.
type Held = Arc<Vec<(Range<u64>, Bytes)>>;

/// Rows decoded at a time.
const STEP: usize = 1024;

impl Groups {
    pub(in crate::corpus) fn open(file: &File, options: &Options) -> Result<Self> {
        let source = Source::new(file.place.clone(), file.bytes);
        // What Parquet itself says of the columns: texts are then strings, however they were held in memory by their writer.
        let reading = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
        let metadata = ArrowReaderMetadata::load(&source, reading).map_err(|error| refuse(&file.place, &error))?;
        let names: Vec<&str> = metadata.schema().fields().iter().map(|field| field.name().as_str()).collect();
        let find = |name: &String| names.iter().position(|known| known == name);
        let wanted = if options.prefers_ids { &options.ids } else { &options.text };
        let content = find(wanted).ok_or_else(|| Error::Malformed {
            place: file.place.to_string(),
            problem: format!("has no column {wanted:?}"),
            expected: format!("one of its columns {}", names.join(", ")),
        })?;
        let id = find(&options.id).filter(|&id| id != content);
        Ok(Self { place: file.place.clone(), bytes: file.bytes, metadata, content, id, held: None })
    }

    /// Runs of rows of about equal length, none of which has more than `unit_bytes` unless a row has.
    pub(in crate::corpus) fn spans(&self, file: usize, unit_bytes: u64) -> Vec<Span> {
        let mut spans = Vec::new();
        let mut first = 0;
        for (group, metadata) in self.metadata.metadata().row_groups().iter().enumerate() {
            let rows = u64::try_from(metadata.num_rows()).unwrap_or(0);
            let leaves = metadata.columns().iter().zip(self.roots());
            let bytes = leaves.filter(|(_, root)| *root == self.content).map(|(leaf, _)| leaf.uncompressed_size());
            let bytes = u64::try_from(bytes.sum::<i64>()).unwrap_or(0);
            let runs = bytes.div_ceil(unit_bytes).clamp(1, rows.max(1));
            // Row numbers times runs fit in 128 bits.
            let cut = |run: u64| (u128::from(rows) * u128::from(run) / u128::from(runs)) as u64;
            spans.extend((0..runs).map(|run| Span::Rows { file, group, first, start: cut(run), end: cut(run + 1) }));
            first += rows;
        }
        spans.retain(|span| !matches!(span, Span::Rows { start, end, .. } if start == end));
        spans
    }

    /// Which root each leaf belongs to.
    fn roots(&self) -> impl Iterator<Item = usize> {
        let schema = self.metadata.parquet_schema();
        (0..schema.num_columns()).map(|leaf| schema.get_column_root_idx(leaf))
    }

    /// Rows of a row group, counted from its first; `first` is that one's number in the file.
    pub(in crate::corpus) fn read(&mut self, group: usize, first: u64, rows: Range<u64>) -> Result<Vec<Record>> {
        let held = match self.held.take().filter(|(held, _)| *held == group) {
            Some((_, held)) => held,
            None => self.fetch(group)?,
        };
        self.held = Some((group, Arc::clone(&held)));
        let source = Source { place: self.place.clone(), bytes: self.bytes, held };
        let fail = |error: ParquetError| refuse(&self.place, &error);
        let columns = ProjectionMask::roots(self.metadata.parquet_schema(), self.wanted());
        let reader = ParquetRecordBatchReaderBuilder::new_with_metadata(source, self.metadata.clone())
            .with_row_groups(vec![group])
            .with_projection(columns)
            .with_batch_size(STEP)
            .with_offset(rows.start as usize)
            .with_limit((rows.end - rows.start) as usize);
        let mut records = Vec::new();
        for batch in reader.build().map_err(fail)? {
            let batch = batch.map_err(|error| refuse(&self.place, &ParquetError::from(error)))?;
            self.records(&batch, first + rows.start, &mut records)?;
        }
        Ok(records)
    }

    fn wanted(&self) -> impl Iterator<Item = usize> {
        std::iter::once(self.content).chain(self.id)
    }

    /// The bytes of the wanted columns: a column in one piece, rather than its pages one by one.
    fn fetch(&self, group: usize) -> Result<Held> {
        let Some(metadata) = self.metadata.metadata().row_groups().get(group) else { return Ok(Held::default()) };
        let mut held = Vec::new();
        for (leaf, root) in metadata.columns().iter().zip(self.roots()) {
            if self.wanted().any(|wanted| wanted == root) {
                let (start, length) = leaf.byte_range();
                held.push((start..start + length, Bytes::from(self.place.range(start, length)?)));
            }
        }
        Ok(Arc::new(held))
    }

    fn records(&self, batch: &RecordBatch, first: u64, records: &mut Vec<Record>) -> Result<()> {
        // The columns of a projection stand in the order of the file.
        let (content, id) = match self.id {
            Some(id) if id < self.content => (1, Some(0)),
            Some(_) => (0, Some(1)),
            None => (0, None),
        };
        let content = batch.column(content);
        let id = id.map(|id| batch.column(id));
        for row in 0..batch.num_rows() {
            let at = records.len() as u64;
            let content = content_at(content, row).ok_or_else(|| Error::Malformed {
                place: format!("{}, row {}", self.place, first + at + 1),
                problem: format!("the column is of {}", content.data_type()),
                expected: "strings or lists of whole numbers".into(),
            })?;
            records.push(Record { id: id.and_then(|id| id_at(id, row)), at, content });
        }
        Ok(())
    }
}

fn refuse(place: &Place, error: &ParquetError) -> Error {
    let problem = format!("cannot be read as Parquet ({error})");
    Error::Malformed { place: place.to_string(), problem, expected: "a whole Parquet file".into() }
}

/// A text or its ids; a row without a value is an empty text.
fn content_at(column: &ArrayRef, row: usize) -> Option<Content> {
    if let Some(list) = column.as_any().downcast_ref::<ListArray>() {
        let ids = if list.is_null(row) { Vec::new() } else { integers(&list.value(row))? };
        return Some(Content::Ids(ids));
    }
    Some(Content::Text(if column.is_null(row) { String::new() } else { string(column, row)? }))
}

fn string(column: &ArrayRef, row: usize) -> Option<String> {
    let any = column.as_any();
    let short = any.downcast_ref::<StringArray>().map(|strings| strings.value(row).to_owned());
    short.or_else(|| any.downcast_ref::<LargeStringArray>().map(|strings| strings.value(row).to_owned()))
}

fn id_at(column: &ArrayRef, row: usize) -> Option<Value> {
    if column.is_null(row) {
        return None;
    }
    let number = || integers(&column.slice(row, 1))?.first().copied().map(Value::from);
    string(column, row).map(Value::from).or_else(number)
}

/// Whole numbers of whatever width.
fn integers(values: &ArrayRef) -> Option<Vec<i64>> {
    macro_rules! widths {
        ($($width:ty),*) => {
            $(if let Some(values) = values.as_primitive_opt::<$width>() {
                // A missing number is none; one that is too large is no token.
                let wide = values.iter().map(|value| value.map_or(-1, |value| i64::try_from(value).unwrap_or(i64::MAX)));
                return Some(wide.collect());
            })*
        };
    }
    widths!(Int64Type, Int32Type, Int16Type, Int8Type, UInt64Type, UInt32Type, UInt16Type, UInt8Type);
    None
}

/// The bytes of a file for the crate `parquet`.
pub(in crate::corpus) struct Source {
    place: Place,
    bytes: u64,
    held: Held,
}

impl Source {
    /// A file of so many bytes.
    pub(in crate::corpus) fn new(place: Place, bytes: u64) -> Self {
        Self { place, bytes, held: Held::default() }
    }

    /// What is held of the bytes from `start` on.
    fn held(&self, start: u64) -> Option<Bytes> {
        let (range, bytes) = self.held.iter().find(|(range, _)| range.contains(&start))?;
        Some(bytes.slice((start - range.start) as usize..))
    }
}

impl Length for Source {
    fn len(&self) -> u64 {
        self.bytes
    }
}

impl ChunkReader for Source {
    type T = Box<dyn Read + Send>;

    fn get_read(&self, start: u64) -> parquet::errors::Result<Self::T> {
        if let Some(bytes) = self.held(start) {
            return Ok(Box::new(std::io::Cursor::new(bytes)));
        }
        let reader =
            self.place.reader(start, self.bytes, 0).map_err(|error| ParquetError::External(Box::new(error)))?;
        Ok(Box::new(BufReader::new(reader)))
    }

    fn get_bytes(&self, start: u64, length: usize) -> parquet::errors::Result<Bytes> {
        if let Some(bytes) = self.held(start).filter(|bytes| bytes.len() >= length) {
            return Ok(bytes.slice(..length));
        }
        let read = self.place.range(start, length as u64);
        read.map(Bytes::from).map_err(|error| ParquetError::External(Box::new(error)))
    }
}
