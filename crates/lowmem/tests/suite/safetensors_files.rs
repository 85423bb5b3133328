//! One test for each way a safetensors file can be wrong, and one for what must never happen.

use std::{fs, io::Write};

use lowmem::{Checkpoint, Dtype, Error, LoadOptions, Parts, Residency, save_safetensors};
use proptest::prelude::*;

use crate::harness::{assert_same, entry, folder_with, numbers, open_error, place_all, raw, requests};

fn good() -> Vec<u8> {
    let header = format!("{{{},{}}}", entry("wte.weight", &[2, 3], 0, 24), entry("ln_f.bias", &[2], 24, 32));
    raw(&header, &[0; 32])
}

#[test]
fn good_file_opens() {
    let (_folder, path) = folder_with(&good());
    let checkpoint = Checkpoint::open(&path).unwrap();
    let info = checkpoint.index().get("ln_f.bias").unwrap();
    assert_eq!((info.dtype, info.shape.as_slice(), info.bytes()), (Dtype::F32, &[2_i64][..], 8));
    assert_eq!(checkpoint.index().bytes(), 32);
}

#[test]
fn file_shorter_than_its_length_field() {
    let error = open_error(&[1, 2, 3]);
    assert!(matches!(error, Error::TruncatedHeader { expected: 8, found: 3, .. }), "{error}");
    assert!(error.to_string().contains("model.safetensors"), "{error}");
}

#[test]
fn empty_file() {
    assert!(matches!(open_error(&[]), Error::TruncatedHeader { found: 0, .. }));
}

#[test]
fn truncated_header() {
    let error = open_error(&good()[..40]);
    assert!(matches!(error, Error::TruncatedHeader { found: 40, .. }), "{error}");
}

#[test]
fn truncated_data() {
    let bytes = good();
    let error = open_error(&bytes[..bytes.len() - 1]);
    let Error::OutOfRange { ref tensor, end, file_bytes, .. } = error else { panic!("{error}") };
    assert_eq!((tensor.as_str(), end, file_bytes), ("ln_f.bias", bytes.len() as u64, bytes.len() as u64 - 1));
    assert!(error.to_string().contains("download it again"), "{error}");
}

#[test]
fn huge_header() {
    let mut bytes = good();
    bytes[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    let error = open_error(&bytes);
    assert!(matches!(error, Error::HeaderTooLarge { bytes: u64::MAX, limit: 100_000_000, .. }), "{error}");
}

#[test]
fn header_that_is_not_json() {
    assert!(matches!(open_error(&raw("{\"a\":", &[])), Error::Header { .. }));
    assert!(matches!(open_error(&raw("[1, 2]", &[])), Error::Header { .. }));
    assert!(matches!(open_error(&raw("{\"a\":{\"dtype\":\"F32\"}}", &[])), Error::Header { .. }));
}

#[test]
fn overlap() {
    let header = format!("{{{},{}}}", entry("a", &[2], 0, 8), entry("b", &[2], 4, 12));
    let error = open_error(&raw(&header, &[0; 12]));
    let Error::Overlap { ref first, ref second, .. } = error else { panic!("{error}") };
    assert_eq!((first.as_str(), second.as_str()), ("a", "b"));
}

#[test]
fn out_of_range() {
    let header = format!("{{{}}}", entry("a", &[4], 100, 116));
    let error = open_error(&raw(&header, &[0; 16]));
    assert!(matches!(error, Error::OutOfRange { ref tensor, .. } if tensor == "a"), "{error}");
    let end = u64::MAX - 1;
    let error = open_error(&raw(&format!("{{{}}}", entry("a", &[2], end - 8, end)), &[]));
    assert!(matches!(error, Error::OutOfRange { end: u64::MAX, .. }), "{error}");
}

#[test]
fn hole_before_between_and_after() {
    for (header, data) in [
        (format!("{{{}}}", entry("a", &[1], 4, 8)), 8),
        (format!("{{{},{}}}", entry("a", &[1], 0, 4), entry("b", &[1], 8, 12)), 12),
        (format!("{{{}}}", entry("a", &[1], 0, 4)), 8),
    ] {
        let error = open_error(&raw(&header, &vec![0; data]));
        let Error::Hole { begin, end, .. } = error else { panic!("{error}") };
        assert_eq!(end - begin, 4);
    }
}

#[test]
fn duplicate_name() {
    let header = format!("{{{},{}}}", entry("a", &[1], 0, 4), entry("a", &[1], 4, 8));
    let error = open_error(&raw(&header, &[0; 8]));
    assert!(matches!(error, Error::Duplicate { ref tensor, .. } if tensor == "a"), "{error}");
}

#[test]
fn range_that_does_not_fit_the_shape() {
    let error = open_error(&raw(&format!("{{{}}}", entry("a", &[3], 0, 8)), &[0; 8]));
    assert!(matches!(error, Error::WrongSize { expected: 12, found: 8, .. }), "{error}");
}

#[test]
fn range_that_runs_backwards() {
    let error = open_error(&raw(&format!("{{{}}}", entry("a", &[1], 8, 4)), &[0; 8]));
    assert!(matches!(error, Error::BadEntry { ref tensor, .. } if tensor == "a"), "{error}");
}

#[test]
fn shape_beyond_64_bits() {
    for shape in [&[1 << 40, 1 << 40][..], &[u64::MAX], &[0, u64::MAX], &[1 << 62]] {
        let error = open_error(&raw(&format!("{{{}}}", entry("a", shape, 0, 0)), &[]));
        assert!(matches!(error, Error::BadEntry { ref tensor, .. } if tensor == "a"), "{shape:?}: {error}");
    }
}

#[test]
fn unsupported_dtype() {
    let header = entry("a", &[8], 0, 8).replace("F32", "F8_E4M3");
    let error = open_error(&raw(&format!("{{{header}}}"), &[0; 8]));
    let Error::UnsupportedDtype { ref tensor, ref dtype, .. } = error else { panic!("{error}") };
    assert_eq!((tensor.as_str(), dtype.as_str()), ("a", "F8_E4M3"));
    assert!(error.to_string().contains("bf16"), "{error}");
}

#[test]
fn misaligned_data_works_by_copying() {
    // The header's length is odd, so every element straddles its natural boundary.
    let header = format!("{{{},{}}}", entry("a", &[2, 2], 0, 16), entry("b", &[3], 16, 28));
    let header = if header.len().is_multiple_of(2) { header + " " } else { header };
    let values: Vec<u8> = (0..7).flat_map(|value| (value as f32).to_le_bytes()).collect();
    let (_folder, path) = folder_with(&raw(&header, &values));
    for residency in [Residency::Mapped, Residency::Resident, Residency::Streamed] {
        let placed = place_all(&path, residency);
        let numbers = |at: usize| Vec::<f32>::try_from(placed[at].1.flatten(0, -1)).unwrap();
        assert_eq!((numbers(0), numbers(1)), (vec![0.0, 1.0, 2.0, 3.0], vec![4.0, 5.0, 6.0]), "{residency}");
    }
}

#[test]
fn scalars_and_empty_tensors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let tensors = vec![
        ("empty".to_owned(), numbers(&[0, 4], 1)),
        ("matrix".to_owned(), numbers(&[2, 2], 2)),
        ("scalar".to_owned(), numbers(&[], 3)),
    ];
    save_safetensors(&path, &tensors).unwrap();
    for residency in [Residency::Mapped, Residency::Resident, Residency::Streamed] {
        assert_same(&place_all(&path, residency), &tensors);
    }
}

#[test]
fn file_that_shrinks_before_it_is_read() {
    for residency in [Residency::Mapped, Residency::Resident, Residency::Streamed] {
        let (_folder, path) = folder_with(&good());
        let checkpoint = Checkpoint::open(&path).unwrap();
        let options = LoadOptions::default().residency(residency);
        let parts = Parts::new(&checkpoint, requests(&checkpoint, &[&["wte.weight"]]), &options).unwrap();
        fs::File::options().write(true).open(&path).unwrap().set_len(100).unwrap();
        let error = parts.get(0, None).expect_err("the file is shorter now");
        assert!(matches!(error, Error::Shrunk { found: 100, .. }), "{residency}: {error}");
    }
}

#[test]
fn save_replaces_the_file_or_leaves_it() {
    let (folder, path) = folder_with(&good());
    let unsupported = numbers(&[2], 1).to_kind(tch::Kind::ComplexFloat);
    let error = save_safetensors(&path, &[("a".into(), unsupported)]).expect_err("complex numbers are not supported");
    assert!(matches!(error, Error::Write { ref tensor, .. } if tensor == "a"), "{error}");
    assert_eq!(fs::read(&path).unwrap(), good());
    save_safetensors(&path, &[("a".into(), numbers(&[2], 1))]).unwrap();
    assert!(Checkpoint::open(&path).unwrap().index().get("a").is_some());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file stays");
}

/// Opening must give an answer for these bytes, whichever; and if it opens, every tensor can be placed.
fn never_panics(bytes: &[u8]) {
    let (_folder, path) = folder_with(bytes);
    if let Ok(checkpoint) = Checkpoint::open(&path) {
        for name in checkpoint.index().tensors.keys() {
            let requests = requests(&checkpoint, &[&[name]]);
            if let Ok(parts) = Parts::new(&checkpoint, requests, &LoadOptions::default()) {
                let _ = parts.get(0, None);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        never_panics(&bytes);
    }

    #[test]
    fn random_header_text(header in "[{}\\[\\]\":,a-z0-9 \\\\-]{0,120}") {
        never_panics(&raw(&header, &[0; 16]));
    }

    #[test]
    fn mutated_good_file(changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6), cut in 0_usize..20) {
        let mut bytes = good();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes.truncate(bytes.len() - cut);
        never_panics(&bytes);
    }

    #[test]
    fn mutated_entries(shape in proptest::collection::vec(any::<u64>(), 0..4), begin in any::<u64>(), end in any::<u64>()) {
        never_panics(&raw(&format!("{{{}}}", entry("a", &shape, begin, end)), &[0; 64]));
    }

    #[test]
    fn what_is_written_is_read_back(shapes in proptest::collection::vec(proptest::collection::vec(0_i64..5, 0..4), 1..6)) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let tensors: Vec<_> = shapes.iter().enumerate().map(|(at, shape)| (format!("t{at}"), numbers(shape, at as i64))).collect();
        save_safetensors(&path, &tensors).unwrap();
        assert_same(&place_all(&path, Residency::Mapped), &tensors);
    }
}

#[test]
fn not_a_checkpoint_at_all() {
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(Checkpoint::open(folder.path()), Err(Error::NoWeights { .. })));
    let error = Checkpoint::open(folder.path().join("absent")).unwrap_err();
    assert!(matches!(error, Error::NotFound { ref path } if path.ends_with("absent")), "{error}");
    let path = folder.path().join("model.safetensors");
    fs::File::create(&path).unwrap().write_all(b"<!DOCTYPE html><html>Not found</html>").unwrap();
    assert!(matches!(Checkpoint::open(folder.path()), Err(Error::HeaderTooLarge { .. })));
}
