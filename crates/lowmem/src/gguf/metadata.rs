//! A header's keys and values, asked for by what they should be.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    path::{Path, PathBuf},
};

use super::{Array, GgufError, Strings, Value};

/// The metadata of one file. `get_` forms give `None` for a key that is not there, `require_` forms an error; both give an
/// error that names file, key, what is expected and what is there where the value is of another kind.
#[derive(Clone, Debug, PartialEq)]
pub struct Metadata {
    file: PathBuf,
    values: BTreeMap<String, Value>,
}

impl Metadata {
    pub(super) fn new(file: &Path) -> Self {
        Self { file: file.to_owned(), values: BTreeMap::new() }
    }

    pub(super) fn insert(&mut self, key: String, value: Value) -> Result<(), GgufError> {
        match self.values.entry(key) {
            Entry::Vacant(place) => {
                place.insert(value);
                Ok(())
            }
            Entry::Occupied(place) => {
                Err(GgufError::DuplicateKey { file: self.file.clone(), key: place.key().clone() })
            }
        }
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }

    /// All keys and values by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.values.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Whether there is no key.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// An integer that is not negative, of any width.
    ///
    /// # Errors
    ///
    /// [`GgufError::KeyType`].
    pub fn get_u64(&self, key: &str) -> Result<Option<u64>, GgufError> {
        self.typed(key, UNSIGNED, Value::as_u64)
    }

    /// An integer that is not negative, of any width.
    ///
    /// # Errors
    ///
    /// [`GgufError::MissingKey`], [`GgufError::KeyType`].
    pub fn require_u64(&self, key: &str) -> Result<u64, GgufError> {
        self.required(key, UNSIGNED, Value::as_u64)
    }

    /// A number.
    ///
    /// # Errors
    ///
    /// [`GgufError::KeyType`].
    pub fn get_f64(&self, key: &str) -> Result<Option<f64>, GgufError> {
        self.typed(key, NUMBER, Value::as_f64)
    }

    /// A number.
    ///
    /// # Errors
    ///
    /// [`GgufError::MissingKey`], [`GgufError::KeyType`].
    pub fn require_f64(&self, key: &str) -> Result<f64, GgufError> {
        self.required(key, NUMBER, Value::as_f64)
    }

    /// A truth value.
    ///
    /// # Errors
    ///
    /// [`GgufError::KeyType`].
    pub fn get_bool(&self, key: &str) -> Result<Option<bool>, GgufError> {
        self.typed(key, "a truth value", Value::as_bool)
    }

    /// Text.
    ///
    /// # Errors
    ///
    /// [`GgufError::KeyType`].
    pub fn get_str(&self, key: &str) -> Result<Option<&str>, GgufError> {
        self.typed(key, TEXT, Value::as_str)
    }

    /// Text.
    ///
    /// # Errors
    ///
    /// [`GgufError::MissingKey`], [`GgufError::KeyType`].
    pub fn require_str(&self, key: &str) -> Result<&str, GgufError> {
        self.required(key, TEXT, Value::as_str)
    }

    /// An array.
    ///
    /// # Errors
    ///
    /// [`GgufError::KeyType`].
    pub fn get_array(&self, key: &str) -> Result<Option<&Array>, GgufError> {
        self.typed(key, "an array", Value::as_array)
    }

    /// An array of strings.
    ///
    /// # Errors
    ///
    /// [`GgufError::KeyType`].
    pub fn get_strings(&self, key: &str) -> Result<Option<&Strings>, GgufError> {
        self.typed(key, "an array of strings", |value| value.as_array().and_then(Array::as_strings))
    }

    /// Integers that are not negative, of any width.
    ///
    /// # Errors
    ///
    /// [`GgufError::KeyType`].
    pub fn get_u64s(&self, key: &str) -> Result<Option<Vec<u64>>, GgufError> {
        self.typed(key, "an array of integers that are not negative", |value| value.as_array()?.to_u64s())
    }

    /// Numbers.
    ///
    /// # Errors
    ///
    /// [`GgufError::KeyType`].
    pub fn get_f64s(&self, key: &str) -> Result<Option<Vec<f64>>, GgufError> {
        self.typed(key, "an array of numbers", |value| value.as_array()?.to_f64s())
    }

    /// Truth values.
    ///
    /// # Errors
    ///
    /// [`GgufError::KeyType`].
    pub fn get_bools(&self, key: &str) -> Result<Option<Vec<bool>>, GgufError> {
        self.typed(key, "an array of truth values", |value| value.as_array()?.to_bools())
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &'static str,
        convert: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, GgufError> {
        let Some(value) = self.values.get(key) else { return Ok(None) };
        convert(value).map(Some).ok_or_else(|| GgufError::KeyType {
            file: self.file.clone(),
            key: key.to_owned(),
            expected,
            found: value.describe(),
        })
    }

    fn required<'a, T>(
        &'a self,
        key: &str,
        expected: &'static str,
        convert: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<T, GgufError> {
        self.typed(key, expected, convert)?.ok_or_else(|| GgufError::MissingKey {
            file: self.file.clone(),
            key: key.to_owned(),
            expected,
        })
    }
}

const UNSIGNED: &str = "an integer that is not negative";
const NUMBER: &str = "a number";
const TEXT: &str = "a string";
