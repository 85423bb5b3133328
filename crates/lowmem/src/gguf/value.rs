//! The values of the metadata.

/// A value of the metadata.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    U64(u64),
    I64(i64),
    F32(f32),
    F64(f64),
    Bool(bool),
    String(String),
    Array(Array),
}

/// An array of the metadata: its elements are of one type.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F32(Vec<f32>),
    F64(Vec<f64>),
    Bool(Vec<bool>),
    Strings(Strings),
    Arrays(Vec<Array>),
}

/// Many strings in one buffer: a vocabulary. Whether they are UTF-8 is looked at when one is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Strings {
    bytes: Vec<u8>,
    /// One past the last byte of each.
    ends: Vec<u32>,
}

impl Strings {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The bytes of one, as they are in the file.
    pub fn bytes(&self, index: usize) -> Option<&[u8]> {
        let end = *self.ends.get(index)?;
        let begin = index.checked_sub(1).map_or(Some(0), |before| self.ends.get(before).copied())?;
        self.bytes.get(begin as usize..end as usize)
    }

    /// One string; `None` where there is none at that index or it is not UTF-8.
    pub fn get(&self, index: usize) -> Option<&str> {
        std::str::from_utf8(self.bytes(index)?).ok()
    }

    /// All of them, as bytes.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        (0..self.len()).map(|index| self.bytes(index).unwrap_or_default())
    }

    /// The buffer that the next string is to be appended to; [`Strings::end`] ends it.
    pub(super) fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// Ends a string. A header's limit is below 32 bits.
    pub(super) fn end(&mut self) {
        self.ends.push(self.bytes.len() as u32);
    }

    pub(super) fn shrink(&mut self) {
        self.bytes.shrink_to_fit();
        self.ends.shrink_to_fit();
    }
}

impl Value {
    /// The value as an unsigned integer, whatever its width.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Self::U8(value) => Some(value.into()),
            Self::U16(value) => Some(value.into()),
            Self::U32(value) => Some(value.into()),
            Self::U64(value) => Some(value),
            Self::I8(value) => value.try_into().ok(),
            Self::I16(value) => value.try_into().ok(),
            Self::I32(value) => value.try_into().ok(),
            Self::I64(value) => value.try_into().ok(),
            _ => None,
        }
    }

    /// The value as an integer, whatever its width.
    pub fn as_i64(&self) -> Option<i64> {
        match *self {
            Self::I8(value) => Some(value.into()),
            Self::I16(value) => Some(value.into()),
            Self::I32(value) => Some(value.into()),
            Self::I64(value) => Some(value),
            _ => self.as_u64()?.try_into().ok(),
        }
    }

    /// The value as a floating-point number, where it is a number; an f32 is exact.
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            Self::F32(value) => Some(value.into()),
            Self::F64(value) => Some(value),
            _ => self.as_i64().map(|value| value as f64),
        }
    }

    /// The value as a truth value.
    pub fn as_bool(&self) -> Option<bool> {
        if let Self::Bool(value) = self { Some(*value) } else { None }
    }

    /// The value as text.
    pub fn as_str(&self) -> Option<&str> {
        if let Self::String(value) = self { Some(value) } else { None }
    }

    /// The value as an array.
    pub fn as_array(&self) -> Option<&Array> {
        if let Self::Array(value) = self { Some(value) } else { None }
    }

    /// What it is, for an error: type and value, or type and length.
    pub fn describe(&self) -> String {
        match self {
            Self::U8(value) => format!("u8 {value}"),
            Self::I8(value) => format!("i8 {value}"),
            Self::U16(value) => format!("u16 {value}"),
            Self::I16(value) => format!("i16 {value}"),
            Self::U32(value) => format!("u32 {value}"),
            Self::I32(value) => format!("i32 {value}"),
            Self::U64(value) => format!("u64 {value}"),
            Self::I64(value) => format!("i64 {value}"),
            Self::F32(value) => format!("f32 {value}"),
            Self::F64(value) => format!("f64 {value}"),
            Self::Bool(value) => format!("bool {value}"),
            Self::String(value) => format!("string {:?}", value.chars().take(40).collect::<String>()),
            Self::Array(value) => format!("array of {} {}", value.len(), value.type_name()),
        }
    }
}

impl Array {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::U8(values) => values.len(),
            Self::I8(values) => values.len(),
            Self::U16(values) => values.len(),
            Self::I16(values) => values.len(),
            Self::U32(values) => values.len(),
            Self::I32(values) => values.len(),
            Self::U64(values) => values.len(),
            Self::I64(values) => values.len(),
            Self::F32(values) => values.len(),
            Self::F64(values) => values.len(),
            Self::Bool(values) => values.len(),
            Self::Strings(values) => values.len(),
            Self::Arrays(values) => values.len(),
        }
    }

    /// Whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One element.
    pub fn get(&self, index: usize) -> Option<Value> {
        match self {
            Self::U8(values) => values.get(index).copied().map(Value::U8),
            Self::I8(values) => values.get(index).copied().map(Value::I8),
            Self::U16(values) => values.get(index).copied().map(Value::U16),
            Self::I16(values) => values.get(index).copied().map(Value::I16),
            Self::U32(values) => values.get(index).copied().map(Value::U32),
            Self::I32(values) => values.get(index).copied().map(Value::I32),
            Self::U64(values) => values.get(index).copied().map(Value::U64),
            Self::I64(values) => values.get(index).copied().map(Value::I64),
            Self::F32(values) => values.get(index).copied().map(Value::F32),
            Self::F64(values) => values.get(index).copied().map(Value::F64),
            Self::Bool(values) => values.get(index).copied().map(Value::Bool),
            Self::Strings(values) => values.get(index).map(|text| Value::String(text.to_owned())),
            Self::Arrays(values) => values.get(index).cloned().map(Value::Array),
        }
    }

    /// All elements as unsigned integers, whatever their width.
    pub fn to_u64s(&self) -> Option<Vec<u64>> {
        self.each(Value::as_u64)
    }

    /// All elements as integers, whatever their width.
    pub fn to_i64s(&self) -> Option<Vec<i64>> {
        self.each(Value::as_i64)
    }

    /// All elements as floating-point numbers.
    pub fn to_f64s(&self) -> Option<Vec<f64>> {
        self.each(Value::as_f64)
    }

    /// All elements as truth values.
    pub fn to_bools(&self) -> Option<Vec<bool>> {
        self.each(Value::as_bool)
    }

    /// The strings of an array of strings.
    pub fn as_strings(&self) -> Option<&Strings> {
        if let Self::Strings(values) = self { Some(values) } else { None }
    }

    fn each<T>(&self, convert: impl Fn(&Value) -> Option<T>) -> Option<Vec<T>> {
        if matches!(self, Self::Strings(_) | Self::Arrays(_)) {
            return None;
        }
        (0..self.len()).map(|index| convert(&self.get(index)?)).collect()
    }

    fn type_name(&self) -> &'static str {
        match self {
            Self::U8(_) => "u8",
            Self::I8(_) => "i8",
            Self::U16(_) => "u16",
            Self::I16(_) => "i16",
            Self::U32(_) => "u32",
            Self::I32(_) => "i32",
            Self::U64(_) => "u64",
            Self::I64(_) => "i64",
            Self::F32(_) => "f32",
            Self::F64(_) => "f64",
            Self::Bool(_) => "bool",
            Self::Strings(_) => "strings",
            Self::Arrays(_) => "arrays",
        }
    }
}
