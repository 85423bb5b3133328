//! PyTorch's `.bin`: that it reads as the same checkpoint in safetensors does, and what it refuses.

use std::{
    fs,
    path::{Path, PathBuf},
};

use lowmem::{Checkpoint, Dtype, Error, LoadOptions, Parts, Residency};
use proptest::prelude::*;

use crate::harness::{assert_same, place_all, requests};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/bin").join(name)
}

/// Each tensor by itself, in its own dtype: the fixtures mix all of them.
fn place_each(path: &Path) -> Vec<(String, tch::Tensor)> {
    let checkpoint = Checkpoint::open(path).unwrap();
    let names = checkpoint.index().tensors.keys();
    let float = |name: &str| checkpoint.index().get(name).unwrap().dtype;
    let place = |name: &String| {
        let dtype = float(name);
        let dtype = if dtype.is_float() && dtype != Dtype::F16 { dtype } else { Dtype::F32 };
        let residency = if float(name) == dtype { Residency::Mapped } else { Residency::Resident };
        let options = LoadOptions::default().residency(residency).dtype(dtype);
        let parts = Parts::new(&checkpoint, requests(&checkpoint, &[&[name]]), &options).unwrap();
        (name.clone(), parts.get(0, None).unwrap().remove(0))
    };
    names.map(place).collect()
}

#[test]
fn every_layout_holds_the_same_tensors() {
    let expected = place_each(&fixture("expected.safetensors"));
    assert_eq!(expected.len(), 18);
    for name in ["zip.bin", "legacy.bin", "wrapped.bin", "protocol4.bin", "sharded"] {
        println!("{name}");
        assert_same(&place_each(&fixture(name)), &expected);
    }
}

#[test]
fn index_is_the_same_dtype_by_dtype() {
    let expected = Checkpoint::open(fixture("expected.safetensors")).unwrap();
    for name in ["zip.bin", "legacy.bin"] {
        let checkpoint = Checkpoint::open(fixture(name)).unwrap();
        for (tensor, info) in &expected.index().tensors {
            let found = checkpoint.index().get(tensor).unwrap();
            assert_eq!((found.dtype, &found.shape), (info.dtype, &info.shape), "{name} {tensor}");
        }
    }
}

#[test]
fn views_keep_their_strides_and_ties_are_seen() {
    let checkpoint = Checkpoint::open(fixture("zip.bin")).unwrap();
    let get = |name: &str| checkpoint.index().get(name).unwrap();
    assert_eq!(get("transposed").strides, Some(vec![1, 3]));
    assert_eq!(get("columns").strides, Some(vec![12, 1]));
    assert_eq!(get("expanded").strides, Some(vec![1, 0]));
    assert_eq!(get("rows").strides, None);
    assert_eq!(get("columns").offset + 32, get("rows").offset);
    assert!(get("wte.weight").same_storage(get("lm_head.weight")));
    let options = LoadOptions::default();
    let parts =
        Parts::new(&checkpoint, requests(&checkpoint, &[&["wte.weight"], &["lm_head.weight"]]), &options).unwrap();
    assert_eq!(parts.report().tied, [("lm_head.weight".to_owned(), "wte.weight".to_owned())]);
    let (one, other) = (parts.get(0, None).unwrap(), parts.get(1, None).unwrap());
    assert_eq!(one[0].data_ptr(), other[0].data_ptr(), "mapped once, in place");
    assert_eq!(parts.report().bytes_allocated, 0);
}

#[test]
fn state_dict_of_a_module_opens() {
    let checkpoint = Checkpoint::open(fixture("module.bin")).unwrap();
    assert_eq!(checkpoint.index().get("weight").unwrap().shape, [3, 2]);
}

#[test]
fn folder_prefers_safetensors_and_falls_back_to_bin() {
    let folder = tempfile::tempdir().unwrap();
    fs::copy(fixture("module.bin"), folder.path().join("pytorch_model.bin")).unwrap();
    assert_eq!(place_all(folder.path(), Residency::Mapped).len(), 2);
    fs::copy(fixture("expected.safetensors"), folder.path().join("model.safetensors")).unwrap();
    assert_eq!(Checkpoint::open(folder.path()).unwrap().index().tensors.len(), 18);
}

fn open(bytes: &[u8]) -> Result<Checkpoint, Error> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pytorch_model.bin");
    fs::write(&path, bytes).unwrap();
    Checkpoint::open(&path)
}

/// A zip archive as PyTorch writes it: stored entries.
fn zip(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut bytes, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in entries {
        let offset = bytes.len() as u32;
        let crc = crc32(data);
        let mut common = vec![20, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        common.extend(crc.to_le_bytes());
        common.extend((data.len() as u32).to_le_bytes());
        common.extend((data.len() as u32).to_le_bytes());
        common.extend((name.len() as u16).to_le_bytes());
        common.extend([0, 0]);
        bytes.extend(b"PK\x03\x04");
        bytes.extend(&common);
        bytes.extend(name.as_bytes());
        bytes.extend(*data);
        directory.extend(b"PK\x01\x02\x14\x00");
        directory.extend(&common);
        directory.extend([0; 10]);
        directory.extend(offset.to_le_bytes());
        directory.extend(name.as_bytes());
    }
    let begin = bytes.len() as u32;
    bytes.extend(&directory);
    bytes.extend(b"PK\x05\x06\0\0\0\0");
    bytes.extend((entries.len() as u16).to_le_bytes());
    bytes.extend((entries.len() as u16).to_le_bytes());
    bytes.extend((directory.len() as u32).to_le_bytes());
    bytes.extend(begin.to_le_bytes());
    bytes.extend([0, 0]);
    bytes
}

fn crc32(data: &[u8]) -> u32 {
    !data.iter().fold(!0, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & 0_u32.wrapping_sub(crc & 1)))
    })
}

/// The pickle `{'w': <tensor>}` of an f32 storage, with these numbers as its offset, shape and strides.
fn tensor_pickle(key: &str, offset: &[u8], shape: &[u8], strides: &[u8]) -> Vec<u8> {
    let mut pickle =
        b"\x80\x02}X\x01\0\0\0wctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\n".to_vec();
    pickle.extend([b'X', key.len() as u8, 0, 0, 0]);
    pickle.extend(key.as_bytes());
    pickle.extend(b"X\x03\0\0\0cpuK\x04tQ");
    pickle.extend(offset);
    pickle.extend(shape);
    pickle.extend(strides);
    pickle.extend(b"\x89NtRs.");
    pickle
}

fn tensor_file(pickle: &[u8], data: &[u8]) -> Vec<u8> {
    zip(&[("m/data.pkl", pickle), ("m/byteorder", b"little"), ("m/data/0", data)])
}

#[test]
fn hand_made_archive_opens() {
    let file = tensor_file(&tensor_pickle("0", b"K\x01", b"K\x03\x85", b"K\x01\x85"), &[0; 16]);
    let checkpoint = open(&file).unwrap();
    let info = checkpoint.index().get("w").unwrap();
    assert_eq!((info.shape.as_slice(), info.dtype), (&[3_i64][..], Dtype::F32));
}

#[test]
fn names_outside_the_allow_list() {
    for (pickle, name) in [
        (&b"\x80\x02cos\nsystem\nX\x07\0\0\0echo hi\x85R."[..], "os.system"),
        (b"cbuiltins\neval\n(S'1'\ntR.", "builtins.eval"),
        (b"\x80\x04\x8c\x0asubprocess\x8c\x05Popen\x93.", "subprocess.Popen"),
        (b"(ios\nsystem\n.", "os.system"),
        (b"\x80\x02ctorch\nload\n.", "torch.load"),
        (b"\x80\x02c__torch__\nModel\n.", "__torch__.Model"),
    ] {
        for file in [zip(&[("m/data.pkl", pickle)]), [&b"\x80\x02"[..], pickle, &[0; 16]].concat()] {
            let error = open(&file).expect_err(name);
            let Error::PickleGlobal { ref global, .. } = error else { panic!("{name}: {error}") };
            assert_eq!(global, name);
            assert!(error.to_string().contains("pytorch_model.bin"), "{error}");
        }
    }
}

#[test]
fn lies_about_sizes() {
    let big = b"J\xff\xff\xff\x7f";
    let huge = b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f";
    for (offset, shape, strides) in [
        (&b"K\x02"[..], b"K\x03\x85".to_vec(), b"K\x01\x85".to_vec()),
        (b"K\x00", b"K\x05\x85".to_vec(), b"K\x01\x85".to_vec()),
        (b"K\x00", b"K\x02\x85".to_vec(), b"K\x04\x85".to_vec()),
        (b"K\x00", [big, &b"\x85"[..]].concat(), b"K\x00\x85".to_vec().repeat(1)),
        (huge, b"K\x01\x85".to_vec(), b"K\x01\x85".to_vec()),
        (b"K\x00", [huge, &huge[..], b"\x86"].concat(), b"K\x00K\x00\x86".to_vec()),
        (b"K\x00", b"K\x02\x85".to_vec(), [huge, &b"\x85"[..]].concat()),
        (b"K\x00", b"J\xff\xff\xff\xff\x85".to_vec(), b"K\x01\x85".to_vec()),
        (b"K\x00", b"K\x02\x85".to_vec(), b"J\xff\xff\xff\xff\x85".to_vec()),
        (b"K\x00", b"K\x02\x85".to_vec(), b")".to_vec()),
        (b"N", b"K\x02\x85".to_vec(), b"K\x01\x85".to_vec()),
    ] {
        let result = open(&tensor_file(&tensor_pickle("0", offset, &shape, &strides), &[0; 16]));
        if shape.starts_with(b"J\xff\xff\xff\x7f") {
            // Two billion elements that are all the same one: strange, but true.
            assert!(result.is_ok());
            continue;
        }
        let error = result.expect_err("the view leaves its storage");
        let Error::BadEntry { ref tensor, .. } = error else { panic!("{error}") };
        assert_eq!(tensor, "w");
    }
    let error = open(&tensor_file(&tensor_pickle("7", b"K\x00", b"K\x01\x85", b"K\x01\x85"), &[0; 16])).unwrap_err();
    assert!(matches!(error, Error::BadEntry { .. }) && error.to_string().contains("storage 7"), "{error}");
}

#[test]
fn big_endian() {
    let pickle = tensor_pickle("0", b"K\x00", b"K\x01\x85", b"K\x01\x85");
    let file = zip(&[("m/data.pkl", &pickle), ("m/byteorder", b"big"), ("m/data/0", &[0; 16])]);
    assert!(matches!(open(&file), Err(Error::BigEndian { .. })));
}

#[test]
fn truncated_archive() {
    let bytes = fs::read(fixture("zip.bin")).unwrap();
    for length in [10, 100, bytes.len() / 2, bytes.len() - 1] {
        let error = open(&bytes[..length]).expect_err("the end is missing");
        assert!(matches!(error, Error::Archive { .. }), "{error}");
        assert!(error.to_string().contains("truncated"), "{error}");
    }
}

#[test]
fn truncated_legacy_file() {
    let bytes = fs::read(fixture("legacy.bin")).unwrap();
    for length in (20..bytes.len()).step_by(37) {
        let error = open(&bytes[..length]).expect_err("the end is missing");
        assert!(matches!(error, Error::Pickle { .. } | Error::Archive { .. }), "{error}");
        assert!(error.to_string().contains("truncated"), "{length}: {error}");
    }
}

#[test]
fn programs_that_loop_nest_or_bloat() {
    // A list in itself, a dict in itself: nothing to follow, so nothing to loop on.
    for pickle in [&b"\x80\x02]q\0h\0a."[..], b"\x80\x02}q\0X\x01\0\0\0ah\0s."] {
        assert!(matches!(open(&zip(&[("m/data.pkl", pickle)])), Err(Error::NoTensors { .. })));
    }
    // A million lists inside each other, freed without a deep stack.
    let mut deep = vec![b']'; 1_000_000];
    deep.extend(vec![b'a'; 999_999]);
    deep.push(b'.');
    assert!(matches!(open(&zip(&[("m/data.pkl", &deep)])), Err(Error::NoTensors { .. })));
    let marks = vec![b'('; 100_000];
    let error = open(&zip(&[("m/data.pkl", &marks)])).unwrap_err();
    assert!(error.to_string().contains("nests deeper"), "{error}");
    let endless = vec![b'N'; 5_000_000];
    let error = open(&zip(&[("m/data.pkl", &endless)])).unwrap_err();
    assert!(error.to_string().contains("opcodes"), "{error}");
    // Claims four gigabytes, has four bytes.
    let error = open(&zip(&[("m/data.pkl", b"\x80\x02X\xff\xff\xff\xffabcd.")])).unwrap_err();
    assert!(matches!(error, Error::Pickle { .. }), "{error}");
    let error = open(&zip(&[("m/data.pkl", b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\xffabcd.")])).unwrap_err();
    assert!(matches!(error, Error::Pickle { .. }), "{error}");
    // A tuple of many that every call would copy.
    let mut copies = b"\x80\x02(".to_vec();
    copies.extend(vec![b'N'; 100_000]);
    copies.extend(b"tq\0ctorch._utils\n_rebuild_tensor_v2\nq\x01h\0R.");
    let error = open(&zip(&[("m/data.pkl", &copies)])).unwrap_err();
    assert!(error.to_string().contains("arguments"), "{error}");
}

#[test]
fn not_a_state_dict() {
    for pickle in [&b"\x80\x02K\x01."[..], b"\x80\x02}.", b"\x80\x02]."] {
        assert!(matches!(open(&zip(&[("m/data.pkl", pickle)])), Err(Error::NoTensors { .. })));
    }
    let error = open(&zip(&[("m/readme.txt", b"hello")])).unwrap_err();
    assert!(error.to_string().contains("no data.pkl"), "{error}");
    // A pickle that is not PyTorch's.
    let error = open(b"\x80\x02}q\0X\x01\0\0\0aK\x01s.").unwrap_err();
    assert!(matches!(error, Error::Archive { .. }) && error.to_string().contains("magic"), "{error}");
}

/// An archive larger than 4 GB, whose entries' places do not fit 32 bits. The hole costs no space on disk.
#[test]
#[cfg(target_os = "linux")]
fn archive_beyond_four_gigabytes() {
    use std::io::{Seek, SeekFrom, Write};
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pytorch_model.bin");
    let mut file = fs::File::create(&path).unwrap();
    let hole: u64 = 5 << 30;
    let pickle = tensor_pickle("1", b"K\x00", b"K\x04\x85", b"K\x01\x85");
    let values: Vec<u8> = [1.0_f32, 2.0, 3.0, 4.0].iter().flat_map(|value| value.to_le_bytes()).collect();
    let mut directory = Vec::new();
    let entries: [(&str, &[u8], u64); 3] = [
        ("m/data/0", &[], hole),
        ("m/data/1", &values, values.len() as u64),
        ("m/data.pkl", &pickle, pickle.len() as u64),
    ];
    for (name, data, length) in entries {
        let offset = file.stream_position().unwrap();
        let head = |field: u32| {
            let mut bytes = vec![45, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            bytes.extend(field.to_le_bytes());
            bytes.extend(field.to_le_bytes());
            bytes.extend((name.len() as u16).to_le_bytes());
            bytes
        };
        let mut local = b"PK\x03\x04".to_vec();
        local.extend(head(u32::MAX));
        local.extend(20_u16.to_le_bytes());
        local.extend(name.as_bytes());
        local.extend([1, 0, 16, 0]);
        local.extend(length.to_le_bytes());
        local.extend(length.to_le_bytes());
        file.write_all(&local).unwrap();
        let begin = file.stream_position().unwrap();
        file.write_all(data).unwrap();
        file.seek(SeekFrom::Start(begin + length)).unwrap();
        directory.extend(b"PK\x01\x02\x2d\x00");
        directory.extend(head(u32::MAX));
        directory.extend(28_u16.to_le_bytes());
        directory.extend([0; 10]);
        directory.extend(u32::MAX.to_le_bytes());
        directory.extend(name.as_bytes());
        directory.extend([1, 0, 24, 0]);
        directory.extend(length.to_le_bytes());
        directory.extend(length.to_le_bytes());
        directory.extend(offset.to_le_bytes());
    }
    let begin = file.stream_position().unwrap();
    file.write_all(&directory).unwrap();
    let end = file.stream_position().unwrap();
    let mut tail = b"PK\x06\x06".to_vec();
    tail.extend(44_u64.to_le_bytes());
    tail.extend([45, 0, 45, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    tail.extend(3_u64.to_le_bytes());
    tail.extend(3_u64.to_le_bytes());
    tail.extend((directory.len() as u64).to_le_bytes());
    tail.extend(begin.to_le_bytes());
    tail.extend(b"PK\x06\x07\0\0\0\0");
    tail.extend(end.to_le_bytes());
    tail.extend([1, 0, 0, 0]);
    tail.extend(b"PK\x05\x06\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\0\0");
    file.write_all(&tail).unwrap();
    drop(file);
    let placed = place_all(&path, Residency::Streamed);
    assert_eq!(Vec::<f32>::try_from(&placed[0].1).unwrap(), [1.0, 2.0, 3.0, 4.0]);
}

fn never_panics(bytes: &[u8]) {
    if let Ok(checkpoint) = open(bytes) {
        for name in checkpoint.index().tensors.keys() {
            let _ = Parts::new(&checkpoint, requests(&checkpoint, &[&[name]]), &LoadOptions::default());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_programs(opcodes in proptest::collection::vec(
        prop_oneof![
            proptest::sample::select(&b"(012NKMJ)\x85\x86\x87t]laeds}uq\0h\0RbQ.\x88\x89\x8a\x93\x94\x81"[..]).prop_map(|byte| vec![byte]),
            Just(b"ctorch._utils\n_rebuild_tensor_v2\n".to_vec()),
            Just(b"ccollections\nOrderedDict\n".to_vec()),
            Just(b"X\x01\0\0\0a".to_vec()),
        ],
        0..60,
    )) {
        let pickle = opcodes.concat();
        never_panics(&tensor_file(&pickle, &[0; 16]));
        never_panics(&[b"\x80\x02", &pickle[..]].concat());
    }

    #[test]
    fn mutated_files(legacy in any::<bool>(), changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
        let mut bytes = fs::read(fixture(if legacy { "legacy.bin" } else { "zip.bin" })).unwrap();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        never_panics(&bytes);
    }
}

#[test]
fn what_is_saved_reads_as_it_was() {
    let expected = place_each(&fixture("expected.safetensors"));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("params.pt");
    let tensors: Vec<(String, tch::Tensor)> =
        expected.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect();
    lowmem::save_bin(&path, &tensors).unwrap();
    assert_same(&place_each(&path), &expected);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "the temporary file has gone");

    // Storages are aligned: f32 ones can be mapped.
    let checkpoint = Checkpoint::open(&path).unwrap();
    assert!(checkpoint.index().tensors.values().all(|info| info.offset % 64 == 0));
    let odd = fixture("expected.safetensors");
    let mixed = Checkpoint::open(&odd).unwrap().tensors(&LoadOptions::default()).unwrap();
    assert_eq!(mixed.len(), expected.len());
}

#[test]
fn a_view_is_saved_as_what_it_shows() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("views.bin");
    let matrix = crate::harness::numbers(&[4, 6], 3);
    let empty = tch::Tensor::zeros([0, 3], (tch::Kind::Float, tch::Device::Cpu));
    let scalar = tch::Tensor::from(2.5_f32);
    let tensors = [("transposed", matrix.tr()), ("column", matrix.select(1, 2)), ("scalar", scalar), ("empty", empty)];
    let tensors: Vec<_> = tensors.into_iter().map(|(name, tensor)| (name.to_owned(), tensor)).collect();
    lowmem::save_bin(&path, &tensors).unwrap();
    let back = Checkpoint::open(&path).unwrap().tensors(&LoadOptions::default()).unwrap();
    for (name, tensor) in &tensors {
        assert_eq!(back[name].size(), tensor.size(), "{name}");
        assert!(back[name].equal(&tensor.contiguous()), "{name}");
    }
}

#[test]
fn a_file_that_cannot_be_written_is_named() {
    let missing = Path::new("/nonexistent/folder/params.pt");
    let error = lowmem::save_bin(missing, &[]).unwrap_err();
    assert!(matches!(error, Error::Io { ref path, .. } if path == missing), "{error}");
}
