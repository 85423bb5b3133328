//! Reading a header from front to back: nothing is allocated for bytes that are not there.

use std::{
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
};

use super::{
    GgufError,
    value::{Array, Strings, Value},
};

/// Most bytes of a header. The largest real ones, with a vocabulary of 256,000 tokens and as many merges, have 20 MB.
const HEADER_LIMIT: u64 = 1 << 28;
/// The format's limit on a key; ggml's on a tensor's name is far below.
const NAME_LIMIT: u64 = 65_535;
/// Most arrays in one another.
const DEPTH_LIMIT: u64 = 4;
/// Most arrays that are elements of arrays, in the whole file.
const INNER_ARRAY_LIMIT: u64 = 100_000;
/// Bytes read at once.
const PIECE: usize = 1 << 16;

pub(super) struct Cursor<R> {
    path: PathBuf,
    reader: BufReader<R>,
    file_bytes: u64,
    position: u64,
    inner_arrays: u64,
    /// What is being read, for errors.
    pub(super) at: String,
}

impl<R: Read> Cursor<R> {
    pub(super) fn new(path: &Path, file_bytes: u64, reader: R) -> Self {
        Self {
            path: path.to_owned(),
            reader: BufReader::with_capacity(PIECE, reader),
            file_bytes,
            position: 0,
            inner_arrays: 0,
            at: "the header".to_owned(),
        }
    }

    /// Bytes read so far.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    pub(super) fn path(&self) -> PathBuf {
        self.path.clone()
    }

    pub(super) fn limit(&self, what: &'static str, found: u64, limit: u64) -> Result<(), GgufError> {
        if found <= limit {
            return Ok(());
        }
        Err(GgufError::Limit { file: self.path(), at: self.at.clone(), what, found, limit })
    }

    /// Checks that so many bytes follow.
    fn need(&self, bytes: u64) -> Result<(), GgufError> {
        let left = self.file_bytes.saturating_sub(self.position);
        if bytes > left {
            return Err(GgufError::Truncated { file: self.path(), at: self.at.clone(), expected: bytes, found: left });
        }
        self.limit("bytes of header", self.position + bytes, HEADER_LIMIT)
    }

    fn fill(&mut self, into: &mut [u8]) -> Result<(), GgufError> {
        self.reader.read_exact(into).map_err(|source| GgufError::Io { file: self.path.clone(), source })?;
        self.position += into.len() as u64;
        Ok(())
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], GgufError> {
        self.need(N as u64)?;
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    /// Appends bytes that are known to follow.
    fn append(&mut self, mut bytes: u64, to: &mut Vec<u8>) -> Result<(), GgufError> {
        while bytes > 0 {
            let (begin, piece) = (to.len(), bytes.min(PIECE as u64));
            to.resize(begin + piece as usize, 0);
            self.fill(to.get_mut(begin..).unwrap_or_default())?;
            bytes -= piece;
        }
        Ok(())
    }

    pub(super) fn u32(&mut self) -> Result<u32, GgufError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, GgufError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// The first four bytes of the file, or what there is of them.
    pub(super) fn magic(&mut self) -> Result<[u8; 4], GgufError> {
        if self.file_bytes < 4 {
            let mut found = Vec::new();
            self.append(self.file_bytes, &mut found)?;
            return Err(GgufError::Magic { file: self.path(), found: String::from_utf8_lossy(&found).into_owned() });
        }
        self.array()
    }

    /// A key or a tensor's name.
    pub(super) fn name(&mut self) -> Result<String, GgufError> {
        let length = self.u64()?;
        self.limit("bytes of name", length, NAME_LIMIT)?;
        self.text(length)
    }

    fn text(&mut self, length: u64) -> Result<String, GgufError> {
        self.need(length)?;
        let mut bytes = Vec::new();
        self.append(length, &mut bytes)?;
        String::from_utf8(bytes).map_err(|error| GgufError::NotUtf8 {
            file: self.path(),
            at: self.at.clone(),
            found: String::from_utf8_lossy(error.as_bytes()).chars().take(40).collect(),
        })
    }

    fn bool(&mut self, byte: u8) -> Result<bool, GgufError> {
        match byte {
            0 => Ok(false),
            1 => Ok(true),
            found => Err(GgufError::Bool { file: self.path(), at: self.at.clone(), found }),
        }
    }

    /// A value behind the number of its type.
    pub(super) fn value(&mut self) -> Result<Value, GgufError> {
        let value = match self.u32()? {
            0 => Value::U8(u8::from_le_bytes(self.array()?)),
            1 => Value::I8(i8::from_le_bytes(self.array()?)),
            2 => Value::U16(u16::from_le_bytes(self.array()?)),
            3 => Value::I16(i16::from_le_bytes(self.array()?)),
            4 => Value::U32(self.u32()?),
            5 => Value::I32(i32::from_le_bytes(self.array()?)),
            6 => Value::F32(f32::from_le_bytes(self.array()?)),
            7 => {
                let [byte] = self.array()?;
                Value::Bool(self.bool(byte)?)
            }
            8 => {
                let length = self.u64()?;
                Value::String(self.text(length)?)
            }
            9 => Value::Array(self.elements(1)?),
            10 => Value::U64(self.u64()?),
            11 => Value::I64(i64::from_le_bytes(self.array()?)),
            12 => Value::F64(f64::from_le_bytes(self.array()?)),
            found => return Err(self.no_type(found)),
        };
        Ok(value)
    }

    fn no_type(&self, found: u32) -> GgufError {
        GgufError::ValueType { file: self.path(), at: self.at.clone(), found }
    }

    /// The type, number and elements of an array.
    fn elements(&mut self, depth: u64) -> Result<Array, GgufError> {
        self.limit("arrays in one another", depth, DEPTH_LIMIT)?;
        let kind = self.u32()?;
        let count = self.u64()?;
        let array = match kind {
            0 => Array::U8(self.numbers(count, u8::from_le_bytes)?),
            1 => Array::I8(self.numbers(count, i8::from_le_bytes)?),
            2 => Array::U16(self.numbers(count, u16::from_le_bytes)?),
            3 => Array::I16(self.numbers(count, i16::from_le_bytes)?),
            4 => Array::U32(self.numbers(count, u32::from_le_bytes)?),
            5 => Array::I32(self.numbers(count, i32::from_le_bytes)?),
            6 => Array::F32(self.numbers(count, f32::from_le_bytes)?),
            7 => Array::Bool(self.bools(count)?),
            8 => Array::Strings(self.strings(count)?),
            9 => Array::Arrays(self.arrays(count, depth)?),
            10 => Array::U64(self.numbers(count, u64::from_le_bytes)?),
            11 => Array::I64(self.numbers(count, i64::from_le_bytes)?),
            12 => Array::F64(self.numbers(count, f64::from_le_bytes)?),
            found => return Err(self.no_type(found)),
        };
        Ok(array)
    }

    fn numbers<T, const N: usize>(&mut self, count: u64, convert: fn([u8; N]) -> T) -> Result<Vec<T>, GgufError> {
        let bytes = count.saturating_mul(N as u64);
        self.need(bytes)?;
        // The bytes are there, and within the header's limit.
        let (mut left, mut piece, mut values) = (bytes, Vec::new(), Vec::with_capacity(count as usize));
        while left > 0 {
            let next = left.min(PIECE as u64);
            piece.clear();
            self.append(next, &mut piece)?;
            values.extend(piece.as_chunks().0.iter().map(|&bytes| convert(bytes)));
            left -= next;
        }
        Ok(values)
    }

    fn bools(&mut self, count: u64) -> Result<Vec<bool>, GgufError> {
        let bytes: Vec<u8> = self.numbers(count, u8::from_le_bytes)?;
        bytes.into_iter().map(|byte| self.bool(byte)).collect()
    }

    fn strings(&mut self, count: u64) -> Result<Strings, GgufError> {
        self.need(count.saturating_mul(8))?;
        let (mut strings, mut left) = (Strings::default(), count);
        while left > 0 {
            left -= self.buffered_strings(left, &mut strings);
            if left > 0 {
                let length = self.u64()?;
                self.need(length)?;
                self.append(length, strings.buffer())?;
                strings.end();
                left -= 1;
            }
        }
        strings.shrink();
        Ok(strings)
    }

    /// Takes the strings that lie in the buffer as a whole, up to so many, and says how many it took: a vocabulary has too
    /// many of them to read each from the file.
    fn buffered_strings(&mut self, most: u64, strings: &mut Strings) -> u64 {
        let in_file = self.file_bytes.saturating_sub(self.position).min(PIECE as u64) as usize;
        let buffer = self.reader.buffer();
        let all = buffer.get(..in_file).unwrap_or(buffer);
        let (mut rest, mut taken) = (all, 0);
        while taken < most {
            let Some((length, behind)) = rest.split_first_chunk() else { break };
            let length = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX);
            let Some((text, behind)) = behind.split_at_checked(length) else { break };
            strings.buffer().extend_from_slice(text);
            strings.end();
            rest = behind;
            taken += 1;
        }
        let bytes = all.len() - rest.len();
        self.reader.consume(bytes);
        self.position += bytes as u64;
        taken
    }

    fn arrays(&mut self, count: u64, depth: u64) -> Result<Vec<Array>, GgufError> {
        self.inner_arrays = self.inner_arrays.saturating_add(count);
        self.limit("arrays in arrays", self.inner_arrays, INNER_ARRAY_LIMIT)?;
        // Each has at least a type and a number of elements.
        self.need(count.saturating_mul(12))?;
        (0..count).map(|_| self.elements(depth + 1)).collect()
    }
}
