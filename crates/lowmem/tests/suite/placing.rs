//! The same tensors, bit for bit, whichever way they come and wherever they live.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use lowmem::{
    Checkpoint, Dtype, DtypeChoice, Error, LoadOptions, PartRequest, Parts, Progress, Residency, TensorRequest,
    save_safetensors,
};
use tch::{Device, Kind, Tensor};

use crate::harness::{assert_same, cannot_run, numbers, place_all, requests};

/// Thirty tensors from a few bytes to more than one read, some of odd length.
fn tensors(kind: Kind) -> Vec<(String, Tensor)> {
    let shape = |at: i64| match at % 5 {
        0 => vec![700, 513],
        1 => vec![7],
        2 => vec![64, 33],
        3 => vec![1, 1, 1025],
        _ => vec![3, 4097],
    };
    (0..30).map(|at| (format!("h.{at:02}.weight"), numbers(&shape(at), at).to_kind(kind))).collect()
}

fn write_shards(folder: &Path, tensors: &[(String, Tensor)], shards: usize) {
    let mut map = BTreeMap::new();
    for (number, part) in tensors.chunks(tensors.len().div_ceil(shards)).enumerate() {
        let name = format!("model-{:05}-of-{shards:05}.safetensors", number + 1);
        let clone: Vec<_> = part.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect();
        save_safetensors(&folder.join(&name), &clone).unwrap();
        map.extend(part.iter().map(|(tensor, _)| (tensor.clone(), name.clone())));
    }
    let text = serde_json::to_string(&serde_json::json!({ "weight_map": map })).unwrap();
    fs::write(folder.join("model.safetensors.index.json"), text).unwrap();
}

fn single(tensors: &[(String, Tensor)]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let clone: Vec<_> = tensors.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect();
    save_safetensors(&path, &clone).unwrap();
    (folder, path)
}

const ALL: [Residency; 3] = [Residency::Mapped, Residency::Resident, Residency::Streamed];

#[test]
fn every_residency_and_number_of_shards() {
    let expected = tensors(Kind::Float);
    for shards in [1, 3, 30] {
        let folder = tempfile::tempdir().unwrap();
        write_shards(folder.path(), &expected, shards);
        for residency in ALL {
            assert_same(&place_all(folder.path(), residency), &expected);
        }
    }
}

#[test]
fn conversions_are_libtorchs_own() {
    for (kind, stored) in
        [(Kind::Float, Dtype::F32), (Kind::Half, Dtype::F16), (Kind::BFloat16, Dtype::Bf16), (Kind::Double, Dtype::F64)]
    {
        let original = tensors(kind);
        let (_folder, path) = single(&original);
        for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F64] {
            let expected: Vec<_> =
                original.iter().map(|(name, tensor)| (name.clone(), tensor.to_kind(dtype.kind()))).collect();
            for residency in [Residency::Resident, Residency::Streamed] {
                // Staging from a few pages, so that tensors pass in many pieces, to plenty.
                for staging_bytes in [1, 200_000, 256 << 20] {
                    let checkpoint = Checkpoint::open(&path).unwrap();
                    assert_eq!(checkpoint.index().get("h.00.weight").unwrap().dtype, stored);
                    let names: Vec<&str> = expected.iter().map(|(name, _)| name.as_str()).collect();
                    let options = LoadOptions::default().residency(residency).dtype(dtype).staging_bytes(staging_bytes);
                    let parts = Parts::new(&checkpoint, requests(&checkpoint, &[&names]), &options).unwrap();
                    let placed = parts.get(0, None).unwrap();
                    let placed: Vec<_> = names.iter().map(|&name| name.to_owned()).zip(placed).collect();
                    assert_same(&placed, &expected);
                    let report = parts.report();
                    assert_eq!(report.bytes_read, checkpoint.index().bytes());
                    // Three buffers of at least one page each, with their slack.
                    assert!(report.staging_peak <= staging_bytes.max(3 * 4 * 4096), "{report:?}");
                    assert_eq!(report.staging_peak == 0, dtype == stored);
                }
            }
        }
    }
}

#[test]
fn automatic_choices_are_explained() {
    let (_folder, path) = single(&tensors(Kind::Half));
    let checkpoint = Checkpoint::open(&path).unwrap();
    let new = |options: &LoadOptions| Parts::new(&checkpoint, requests(&checkpoint, &[&["h.00.weight"]]), options);
    let parts = new(&LoadOptions::default()).unwrap();
    assert_eq!((parts.dtype(), parts.residency()), (Dtype::F32, Residency::Resident));
    assert!(parts.report().reason.contains("converted to f32"), "{}", parts.report().reason);
    let error = new(&LoadOptions::default().residency(Residency::Mapped)).err().unwrap();
    assert!(matches!(error, Error::Residency { .. }) && error.to_string().contains("h.00.weight"), "{error}");
    let dtype = DtypeChoice::Fixed(Dtype::F16);
    let error = new(&LoadOptions::default().dtype(dtype)).err().unwrap();
    assert!(matches!(error, Error::DtypeOnDevice { .. }), "{error}");
    let (_folder, path) = single(&tensors(Kind::BFloat16));
    let checkpoint = Checkpoint::open(&path).unwrap();
    let parts = Parts::new(&checkpoint, requests(&checkpoint, &[&["h.00.weight"]]), &LoadOptions::default()).unwrap();
    assert_eq!((parts.dtype(), parts.residency()), (Dtype::Bf16, Residency::Mapped));
    assert!(parts.report().reason.contains("where it lies"), "{}", parts.report().reason);
}

#[test]
fn only_what_is_asked_for_is_read() {
    let expected = tensors(Kind::Float);
    let (_folder, path) = single(&expected);
    let checkpoint = Checkpoint::open(&path).unwrap();
    for residency in ALL {
        let options = LoadOptions::default().residency(residency);
        let groups: &[&[&str]] = &[&["h.00.weight", "h.01.weight"], &["h.02.weight"], &["h.05.weight"]];
        let parts = Parts::new(&checkpoint, requests(&checkpoint, groups), &options).unwrap();
        assert_eq!(parts.report().bytes_read, 0);
        drop(parts.get(1, None).unwrap());
        assert_eq!(parts.report().bytes_read, 64 * 33 * 4, "{residency}");
        assert_eq!(parts.report().tensors_placed, 1);
        let indices = Tensor::from_slice(&[3_i64, 699, 3, 4]).view([2, 2]);
        let rows = parts.rows(2, 0, &indices).unwrap();
        assert_eq!(rows.size(), [2, 2, 513]);
        assert!(rows.equal(&expected[5].1.index_select(0, &indices.flatten(0, -1)).view([2, 2, 513])), "{residency}");
        assert_eq!(parts.report().bytes_read, 64 * 33 * 4 + 4 * 513 * 4, "{residency}");
        for row in [-1_i64, 700] {
            let error = parts.rows(2, 0, &Tensor::from_slice(&[row])).unwrap_err();
            assert!(matches!(error, Error::RowOutOfRange { rows: 700, .. }), "{error}");
        }
    }
}

#[test]
fn resident_and_mapped_are_kept_and_streamed_is_not() {
    let (_folder, path) = single(&tensors(Kind::Float));
    let checkpoint = Checkpoint::open(&path).unwrap();
    for residency in ALL {
        let options = LoadOptions::default().residency(residency);
        let parts =
            Parts::new(&checkpoint, requests(&checkpoint, &[&["h.00.weight"], &["h.05.weight"]]), &options).unwrap();
        for _ in 0..3 {
            parts.get(0, Some(1)).unwrap();
            parts.get(1, Some(0)).unwrap();
        }
        let report = parts.report();
        if residency == Residency::Streamed {
            // The last prefetch may still be under way.
            assert!(report.tensors_placed >= 6, "{report:?}");
        } else {
            assert_eq!(report.tensors_placed, 2);
        }
    }
}

#[test]
fn what_is_kept_for_training_is_what_parts_hand_out() {
    let (_folder, path) = single(&tensors(Kind::Float));
    let checkpoint = Checkpoint::open(&path).unwrap();
    let before = fs::read(&path).unwrap();
    for residency in ALL {
        let options = LoadOptions::default().residency(residency);
        let parts =
            Parts::new(&checkpoint, requests(&checkpoint, &[&["h.01.weight"], &["h.06.weight"]]), &options).unwrap();
        let mut kept = parts.keep("h.01.weight").unwrap();
        let _ = kept.fill_(2.5);
        parts.get(1, Some(0)).unwrap();
        let again = parts.get(0, None).unwrap();
        assert_eq!(Vec::<f32>::try_from(&again[0]).unwrap(), vec![2.5; 7], "{residency}");
        let rows = parts.rows(0, 0, &Tensor::from_slice(&[1_i64]).view([1])).unwrap_err();
        assert!(matches!(rows, Error::Place { .. }), "a vector has no rows to embed: {rows}");
        let error = parts.keep("h.1.weight").unwrap_err();
        assert!(
            matches!(error, Error::MissingTensor { ref nearest, .. } if nearest.contains(&"h.01.weight".to_owned()))
        );
    }
    assert_eq!(fs::read(&path).unwrap(), before, "the file is never written to");
}

#[test]
fn a_part_that_was_not_asked_for_after_all() {
    let expected = tensors(Kind::Float);
    let (_folder, path) = single(&expected);
    let checkpoint = Checkpoint::open(&path).unwrap();
    let options = LoadOptions::default().residency(Residency::Streamed);
    let groups: Vec<[&str; 1]> = expected.iter().map(|(name, _)| [name.as_str()]).collect();
    let groups: Vec<&[&str]> = groups.iter().map(|group| &group[..]).collect();
    let parts = Parts::new(&checkpoint, requests(&checkpoint, &groups), &options).unwrap();
    for (part, next) in [(0, 1), (2, 3), (3, 99), (4, 4), (0, 29), (29, 0)] {
        assert!(parts.get(part, Some(next)).unwrap()[0].equal(&expected[part].1));
    }
    assert!(matches!(parts.get(30, None), Err(Error::NoSuchPart { part: 30, parts: 30 })));
}

#[test]
fn budget_limits_the_prefetch() {
    let (_folder, path) = single(&tensors(Kind::Float));
    let checkpoint = Checkpoint::open(&path).unwrap();
    let both = 2 * 700 * 513 * 4;
    for (budget, expected) in [(both - 1, &["h.00.weight"][..]), (both, &["h.00.weight", "h.05.weight"])] {
        let recorder = Arc::new(Recorder::default());
        let options =
            LoadOptions::default().residency(Residency::Streamed).budget_bytes(budget).progress(recorder.clone());
        let parts =
            Parts::new(&checkpoint, requests(&checkpoint, &[&["h.00.weight"], &["h.05.weight"]]), &options).unwrap();
        parts.get(0, Some(1)).unwrap();
        // Waits for what has been begun.
        drop(parts);
        assert_eq!(*recorder.names.lock().unwrap(), expected);
    }
}

#[derive(Default)]
struct Recorder {
    begun: AtomicU64,
    placed: AtomicU64,
    names: Mutex<Vec<String>>,
    ended: AtomicU64,
}

impl Progress for Recorder {
    fn begin(&self, bytes: u64) {
        self.begun.fetch_add(bytes, Ordering::Relaxed);
    }
    fn placed(&self, name: &str, bytes: u64) {
        self.placed.fetch_add(bytes, Ordering::Relaxed);
        self.names.lock().unwrap().push(name.to_owned());
    }
    fn end(&self) {
        self.ended.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn progress_hears_of_every_tensor_once() {
    let (_folder, path) = single(&tensors(Kind::Half));
    let checkpoint = Checkpoint::open(&path).unwrap();
    let recorder = Arc::new(Recorder::default());
    let options = LoadOptions::default().progress(recorder.clone());
    let groups: &[&[&str]] = &[&["h.00.weight", "h.01.weight"], &["h.02.weight", "h.00.weight"]];
    let parts = Parts::new(&checkpoint, requests(&checkpoint, groups), &options).unwrap();
    parts.preload(0..2).unwrap();
    parts.preload(0..2).unwrap();
    assert_eq!(recorder.begun.load(Ordering::Relaxed), recorder.placed.load(Ordering::Relaxed));
    assert_eq!(recorder.ended.load(Ordering::Relaxed), 2);
    let mut names = recorder.names.lock().unwrap().clone();
    names.sort();
    assert_eq!(names, ["h.00.weight", "h.01.weight", "h.02.weight"]);
    assert!(parts.report().seconds > 0.0 && parts.report().gigabytes_per_second() > 0.0);
}

#[test]
fn threads_that_ask_together_place_once() {
    let (_folder, path) = single(&tensors(Kind::Half));
    let checkpoint = Checkpoint::open(&path).unwrap();
    let parts = Parts::new(&checkpoint, requests(&checkpoint, &[&["h.00.weight"]]), &LoadOptions::default()).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| parts.get(0, None).unwrap());
        }
    });
    assert_eq!(parts.report().tensors_placed, 1);
}

#[test]
fn a_gpu_gets_the_same_bits_or_is_said_to_be_missing() {
    let original = tensors(Kind::Float);
    let (_folder, path) = single(&original);
    let checkpoint = Checkpoint::open(&path).unwrap();
    let names: Vec<&str> = original.iter().map(|(name, _)| name.as_str()).collect();
    for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F16, Dtype::F64] {
        for residency in [Residency::Resident, Residency::Streamed] {
            for staging_bytes in [1, 200_000, 256 << 20] {
                let dtype_choice = DtypeChoice::Fixed(dtype);
                let (device, residency) = (Device::Cuda(0), residency);
                let options = LoadOptions::default()
                    .device(device)
                    .dtype(dtype_choice)
                    .residency(residency)
                    .staging_bytes(staging_bytes);
                let parts = Parts::new(&checkpoint, requests(&checkpoint, &[&names]), &options).unwrap();
                let placed = parts.get(0, None);
                if !tch::Cuda::is_available() {
                    assert!(matches!(placed, Err(Error::Place { .. })), "{placed:?}");
                    return;
                }
                let placed = placed.unwrap().into_iter().map(|tensor| tensor.to_device(Device::Cpu));
                let placed: Vec<_> = names.iter().map(|&name| name.to_owned()).zip(placed).collect();
                let expected = original.iter().map(|(name, tensor)| (name.clone(), tensor.to_kind(dtype.kind())));
                assert_same(&placed, &expected.collect::<Vec<_>>());
            }
        }
    }
}

/// A file larger than memory: a mapping of it may be refused, so rows and parts must come without one.
#[test]
#[cfg(target_os = "linux")]
fn file_larger_than_memory_streams() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let (rows, columns) = (1_u64 << 25, 1_u64 << 10); // 128 GiB of f32 that take no space on disk
    let bytes = rows * columns * 4;
    let header = format!(
        "{{{},{}}}",
        crate::harness::entry("wte.weight", &[rows, columns], 0, bytes),
        crate::harness::entry("ln_f.weight", &[2], bytes, bytes + 8)
    );
    fs::write(&path, crate::harness::raw(&header, &[])).unwrap();
    let file = fs::File::options().write(true).open(&path).unwrap();
    if file.set_len(file.metadata().unwrap().len() + bytes + 8).is_err() {
        return cannot_run("this file system has no sparse files of that size");
    }
    let checkpoint = Checkpoint::open(&path).unwrap();
    let parts =
        Parts::new(&checkpoint, requests(&checkpoint, &[&["wte.weight"], &["ln_f.weight"]]), &LoadOptions::default())
            .unwrap();
    assert_eq!(parts.residency(), Residency::Streamed, "{}", parts.report().reason);
    let found = parts.rows(0, 0, &Tensor::from_slice(&[0_i64, 1 << 24, (1 << 25) - 1])).unwrap();
    assert_eq!((found.size(), found.abs().sum(Kind::Float).double_value(&[])), (vec![3, 1024], 0.0));
    assert_eq!(parts.get(1, None).unwrap()[0].size(), [2]);
}

#[test]
fn tensors_in_memory_are_parts_too() {
    let weight = numbers(&[4, 2], 1);
    let tensors = std::collections::HashMap::from([("w".to_owned(), weight.shallow_clone())]);
    let request =
        |shape: [i64; 2]| vec![PartRequest { label: "all".into(), tensors: vec![TensorRequest::new("w", shape)] }];
    let parts = Parts::from_tensors(&tensors, request([4, 2])).unwrap();
    assert_eq!((parts.device(), parts.dtype(), parts.len()), (Device::Cpu, Dtype::F32, 1));
    assert!(parts.get(0, None).unwrap()[0].equal(&weight));
    assert_eq!(parts.rows(0, 0, &Tensor::from_slice(&[3_i64])).unwrap(), weight.narrow(0, 3, 1));
    assert!(matches!(Parts::from_tensors(&tensors, request([2, 4])), Err(Error::Misshapen { .. })));
}

/// Opens two matrices that are to be tied.
fn tie(path: &Path, options: &LoadOptions) -> Parts {
    let checkpoint = Checkpoint::open(path).unwrap();
    let shape = checkpoint.index().get("head").unwrap().shape.clone();
    let part = |tensor| PartRequest { label: "part".into(), tensors: vec![tensor] };
    let parts = [TensorRequest::new("table", shape.clone()), TensorRequest::new("head", shape).tied_to("table")];
    Parts::new(&checkpoint, parts.map(part).into(), options).unwrap()
}

#[test]
fn the_values_decide_whether_tensors_are_tied() {
    let table = numbers(&[5000, 700], 1);
    let changed = |row: i64, value: f64| {
        let head = table.copy();
        let _ = head.get(row).get(3).fill_(value);
        head
    };
    let pair = vec![("head".to_owned(), "table".to_owned())];
    let whole = 2 * 5000 * 700 * 4;
    // The head, whether it is the table, and the most and fewest bytes that seeing this takes.
    let cases = [
        (table.copy(), true, whole..=whole),
        (changed(0, 2.0), false, 1..=2 << 16),
        (changed(4999, 2.0), false, whole / 2..=whole),
        (changed(7, f64::NAN), false, 1..=2 << 16),
    ];
    for (head, same, read) in cases {
        let (_folder, path) = single(&[("head".into(), head.shallow_clone()), ("table".into(), table.shallow_clone())]);
        for residency in ALL {
            let parts = tie(&path, &LoadOptions::default().residency(residency));
            let report = parts.report();
            assert!(read.contains(&report.bytes_read), "{read:?} {report:?}");
            assert_eq!((report.tied == pair, report.untied == pair), (same, !same), "{report:?}");
            assert_eq!(report.tensors, if same { 1 } else { 2 });
            let placed = [parts.get(0, None).unwrap().remove(0), parts.get(1, None).unwrap().remove(0)];
            assert!(placed[0].equal(&table));
            assert!(placed[1].allclose(&head, 0.0, 0.0, true));
            let one = residency != Residency::Streamed && same;
            assert_eq!(placed[0].data_ptr() == placed[1].data_ptr(), one, "{residency}");
            assert_eq!(parts.names(1).unwrap(), [if same { "table" } else { "head" }]);
        }
    }
}

#[test]
fn tensors_are_tied_in_the_dtype_of_the_run() {
    let head = numbers(&[40, 30], 1).to_kind(Kind::BFloat16);
    let table = head.to_kind(Kind::Float) * (1.0 + 1e-4);
    let (_folder, path) = single(&[("head".into(), head), ("table".into(), table)]);
    for (dtype, same) in [(Dtype::F32, false), (Dtype::Bf16, true)] {
        let parts = tie(&path, &LoadOptions::default().dtype(dtype));
        assert_eq!(parts.report().tied.len() == 1, same);
        let placed = [parts.get(0, None).unwrap().remove(0), parts.get(1, None).unwrap().remove(0)];
        assert_eq!((placed[0].kind(), placed[1].kind()), (dtype.kind(), dtype.kind()));
        assert_eq!(placed[0].equal(&placed[1]), same);
    }
    // Equal values of two dtypes are one tensor, which can then be mapped.
    let table = numbers(&[40, 30], 1).to_kind(Kind::BFloat16);
    let (_folder, path) =
        single(&[("head".into(), table.shallow_clone()), ("table".into(), table.to_kind(Kind::Float))]);
    let parts = tie(&path, &LoadOptions::default());
    assert_eq!((parts.dtype(), parts.residency()), (Dtype::F32, Residency::Mapped));
    assert!(parts.get(1, None).unwrap()[0].equal(&table.to_kind(Kind::Float)));
}
