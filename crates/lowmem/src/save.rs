//! Writing tensors: safetensors, and PyTorch's `.bin`.

use std::{
    borrow::Cow,
    collections::HashMap,
    fs::File,
    io::{BufWriter, Write},
    path::Path,
};

use serde_json::Value;
use tch::{TchError, Tensor};
use zip::{CompressionMethod, ZipWriter, write::SimpleFileOptions};

use crate::{Dtype, Error, Result, first_line, write::write_whole};

/// A tensor that can be written as it lies: contiguous, on the CPU, of a dtype this crate knows.
struct Plain<'a> {
    name: &'a str,
    tensor: Tensor,
    dtype: Dtype,
    shape: Vec<usize>,
}

impl<'a> Plain<'a> {
    fn all(file: &Path, tensors: &'a [(String, Tensor)]) -> Result<Vec<Self>> {
        let plain = |(name, tensor): &'a (String, Tensor)| {
            let refuse = |problem| Error::Write { file: file.to_owned(), tensor: name.clone(), problem };
            let laid_out = || tensor.f_detach()?.f_to_device(tch::Device::Cpu)?.f_contiguous();
            let tensor = laid_out().map_err(|error| refuse(first_line(&error)))?;
            let kind = tensor.f_kind().map_err(|error| refuse(first_line(&error)))?;
            let dtype = Dtype::from_kind(kind).ok_or_else(|| refuse(format!("dtype {kind:?} is not supported")))?;
            let shape = tensor.size().iter().map(|&size| size as usize).collect();
            Ok(Self { name, tensor, dtype, shape })
        };
        tensors.iter().map(plain).collect()
    }

    fn length(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.bytes() as usize
    }

    fn bytes(&self) -> Result<Vec<u8>, TchError> {
        let mut bytes = vec![0; self.length()];
        self.tensor.f_copy_data_u8(&mut bytes, self.tensor.numel())?;
        Ok(bytes)
    }
}

impl safetensors::View for &Plain<'_> {
    fn dtype(&self) -> safetensors::Dtype {
        use safetensors::Dtype as S;
        match self.dtype {
            Dtype::F64 => S::F64,
            Dtype::F32 => S::F32,
            Dtype::F16 => S::F16,
            Dtype::Bf16 => S::BF16,
            Dtype::I64 => S::I64,
            Dtype::I32 => S::I32,
            Dtype::I16 => S::I16,
            Dtype::I8 => S::I8,
            Dtype::U8 => S::U8,
            Dtype::Bool => S::BOOL,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        // The trait has no way to fail. The tensor is contiguous, on the CPU and of a known dtype, so this copy cannot
        // either; a short file would be refused by every reader.
        Cow::Owned(self.bytes().unwrap_or_default())
    }

    fn data_len(&self) -> usize {
        self.length()
    }
}

/// Writes tensors as one safetensors file: to a temporary file beside it, then renamed, so that a kill or a full disk
/// leaves either the old file or the new one.
///
/// Tensors are written one at a time; only those that are not contiguous or not on the CPU are copied first.
///
/// # Errors
///
/// [`Error::Write`] for a dtype this crate does not know and where the file cannot be written, [`Error::Io`] where none can be
/// made or the whole file cannot be given its name.
pub fn save_safetensors(path: &Path, tensors: &[(String, Tensor)]) -> Result<()> {
    let plain = Plain::all(path, tensors)?;
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    write_whole(path, |temporary| {
        let views = plain.iter().map(|view| (view.name, view));
        safetensors::serialize_to_file(views, Some(metadata), temporary).map_err(|error| refused(path, &error))
    })
}

/// Writes tensors as PyTorch's `.bin` (also `.pt`): what `torch.save` makes of a state dict since PyTorch 1.6, readable by
/// `torch.load` with `weights_only`. To a temporary file beside it, then renamed, as [`save_safetensors`].
///
/// Storages are aligned to 64 bytes, so that a reader can map them.
///
/// # Errors
///
/// As [`save_safetensors`].
pub fn save_bin(path: &Path, tensors: &[(String, Tensor)]) -> Result<()> {
    let plain = Plain::all(path, tensors)?;
    let pickle = state_dict(&plain);
    write_whole(path, |temporary| write_archive(temporary, &pickle, &plain).map_err(|error| refused(path, &*error)))
}

/// Writes PyTorch's `.bin` of a dictionary that holds tensors by number, `{name: {0: tensor, ..}}`, and settings beside them; as
/// [`save_bin`] otherwise. [`Checkpoint`](crate::Checkpoint) reads the tensors as `name.0`, [`bin_settings`](crate::bin_settings) the
/// rest.
///
/// # Errors
///
/// As [`save_bin`].
pub fn save_numbered_bin(
    path: &Path,
    name: &str,
    tensors: &[(usize, Tensor)],
    settings: &serde_json::Map<String, Value>,
) -> Result<()> {
    let named: Vec<(String, Tensor)> =
        tensors.iter().map(|(number, tensor)| (format!("{name}.{number}"), tensor.shallow_clone())).collect();
    let plain = Plain::all(path, &named)?;
    let mut pickle = b"\x80\x02}(".to_vec();
    text(&mut pickle, name);
    pickle.extend(b"}(");
    for (key, ((number, _), tensor)) in tensors.iter().zip(&plain).enumerate() {
        integer(&mut pickle, *number);
        rebuilt(&mut pickle, key, tensor);
    }
    pickle.push(b'u');
    for (key, setting) in settings {
        text(&mut pickle, key);
        value(&mut pickle, setting);
    }
    pickle.extend(b"u.");
    write_whole(path, |temporary| write_archive(temporary, &pickle, &plain).map_err(|error| refused(path, &*error)))
}

fn refused(path: &Path, error: &dyn std::error::Error) -> Error {
    Error::Write { file: path.to_owned(), tensor: "(all)".into(), problem: error.to_string() }
}

fn write_archive(path: &Path, pickle: &[u8], tensors: &[Plain]) -> Result<(), Box<dyn std::error::Error>> {
    let mut archive = ZipWriter::new(BufWriter::new(File::create(path)?));
    let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored).with_alignment(64);
    let mut entry = |name: &str, content: &[u8]| -> Result<(), Box<dyn std::error::Error>> {
        archive.start_file(format!("archive/{name}"), stored.large_file(content.len() >= u32::MAX as usize))?;
        Ok(archive.write_all(content)?)
    };
    entry("data.pkl", pickle)?;
    entry("byteorder", b"little")?;
    for (key, tensor) in tensors.iter().enumerate() {
        entry(&format!("data/{key}"), &tensor.bytes()?)?;
    }
    entry("version", b"3\n")?;
    archive.finish()?.flush()?;
    Ok(())
}

const ORDERED_DICT: &[u8] = b"ccollections\nOrderedDict\n)R";

/// The pickle (protocol 2) of an ordered dictionary of tensors.
fn state_dict(tensors: &[Plain]) -> Vec<u8> {
    let mut pickle = b"\x80\x02".to_vec();
    pickle.extend(ORDERED_DICT);
    pickle.push(b'(');
    for (key, tensor) in tensors.iter().enumerate() {
        text(&mut pickle, tensor.name);
        rebuilt(&mut pickle, key, tensor);
    }
    pickle.extend(b"u.");
    pickle
}

/// A tensor that is all of storage `key`.
fn rebuilt(pickle: &mut Vec<u8>, key: usize, tensor: &Plain) {
    pickle.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
    text(pickle, "storage");
    pickle.extend(format!("ctorch\n{}\n", crate::pickle::storage_name(tensor.dtype)).bytes());
    text(pickle, &key.to_string());
    text(pickle, "cpu");
    integer(pickle, tensor.shape.iter().product());
    // The tuple is the storage's persistent id; then the offset, the shape and the strides.
    pickle.extend(b"tQ");
    integer(pickle, 0);
    let mut strides = vec![1; tensor.shape.len()];
    for dimension in (1..tensor.shape.len()).rev() {
        strides[dimension - 1] = strides[dimension] * tensor.shape[dimension].max(1);
    }
    for tuple in [&tensor.shape, &strides] {
        pickle.push(b'(');
        tuple.iter().for_each(|&size| integer(pickle, size));
        pickle.push(b't');
    }
    // No gradient is asked for; no hooks.
    pickle.push(0x89);
    pickle.extend(ORDERED_DICT);
    pickle.extend(b"tR");
}

/// A setting.
fn value(pickle: &mut Vec<u8>, setting: &Value) {
    match setting {
        Value::Null => pickle.push(b'N'),
        Value::Bool(true) => pickle.push(0x88),
        Value::Bool(false) => pickle.push(0x89),
        Value::Number(number) => match number.as_i64() {
            Some(whole) => {
                pickle.extend([0x8a, 8]);
                pickle.extend(whole.to_le_bytes());
            }
            None => {
                pickle.push(b'G');
                pickle.extend(number.as_f64().unwrap_or(f64::NAN).to_be_bytes());
            }
        },
        Value::String(string) => text(pickle, string),
        Value::Array(items) => {
            pickle.extend(b"](");
            items.iter().for_each(|item| value(pickle, item));
            pickle.push(b'e');
        }
        Value::Object(items) => {
            pickle.extend(b"}(");
            for (key, item) in items {
                text(pickle, key);
                value(pickle, item);
            }
            pickle.push(b'u');
        }
    }
}

/// A string.
fn text(pickle: &mut Vec<u8>, text: &str) {
    pickle.push(b'X');
    pickle.extend((text.len() as u32).to_le_bytes());
    pickle.extend(text.bytes());
}

/// A number that is not negative.
fn integer(pickle: &mut Vec<u8>, value: usize) {
    match i32::try_from(value) {
        Ok(value) => {
            pickle.push(b'J');
            pickle.extend(value.to_le_bytes());
        }
        // Nine bytes of two's complement, so that the first bit is no sign.
        Err(_) => {
            pickle.extend([0x8a, 9]);
            pickle.extend((value as u64).to_le_bytes());
            pickle.push(0);
        }
    }
}
