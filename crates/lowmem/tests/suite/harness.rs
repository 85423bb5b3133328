//! Makes checkpoints, good and bad, byte by byte.

use std::{
    fs,
    path::{Path, PathBuf},
};

use lowmem::{Checkpoint, Error, LoadOptions, PartRequest, Parts, Residency, TensorRequest};
use tch::{Device, Kind, Tensor};

/// A safetensors file from the text of its header and the bytes behind it.
pub(crate) fn raw(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(data);
    bytes
}

/// A header's entry of an f32 tensor.
pub(crate) fn entry(name: &str, shape: &[u64], begin: u64, end: u64) -> String {
    format!("{name:?}:{{\"dtype\":\"F32\",\"shape\":{shape:?},\"data_offsets\":[{begin},{end}]}}")
}

/// Writes `bytes` as `model.safetensors` into a new folder.
pub(crate) fn folder_with(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    fs::write(&path, bytes).unwrap();
    (folder, path)
}

/// The error of opening a file with these bytes.
pub(crate) fn open_error(bytes: &[u8]) -> Error {
    let (_folder, path) = folder_with(bytes);
    Checkpoint::open(&path).expect_err("this file is bad")
}

/// Normally distributed numbers that are the same in every run.
pub(crate) fn numbers(shape: &[i64], seed: i64) -> Tensor {
    let count: i64 = shape.iter().product();
    let ramp = Tensor::f_arange(count, (Kind::Float, Device::Cpu)).unwrap();
    ((ramp * 12.9898 + seed as f64 * 78.233).sin() * 43.7585).f_frac().unwrap().f_view(shape).unwrap()
}

/// One part for each tensor name of `groups`, with the shapes that the checkpoint has.
pub(crate) fn requests(checkpoint: &Checkpoint, groups: &[&[&str]]) -> Vec<PartRequest> {
    let request = |name: &&str| TensorRequest::new(*name, checkpoint.index().get(name).unwrap().shape.clone());
    let part = |(number, names): (usize, &&[&str])| PartRequest {
        label: format!("part {number}"),
        tensors: names.iter().map(request).collect(),
    };
    groups.iter().enumerate().map(part).collect()
}

/// Every tensor of a checkpoint, placed with this residency and otherwise default options.
pub(crate) fn place_all(path: &Path, residency: Residency) -> Vec<(String, Tensor)> {
    let checkpoint = Checkpoint::open(path).unwrap();
    let names: Vec<&str> = checkpoint.index().tensors.keys().map(String::as_str).collect();
    let groups: Vec<&[&str]> = names.chunks(3).collect();
    let options = LoadOptions::default().residency(residency);
    let parts = Parts::new(&checkpoint, requests(&checkpoint, &groups), &options).unwrap();
    let mut placed = Vec::new();
    for part in 0..parts.len() {
        let tensors = parts.get(part, Some(part + 1)).unwrap();
        placed.extend(parts.names(part).unwrap().into_iter().map(str::to_owned).zip(tensors));
    }
    placed
}

/// Equal in shape, dtype and every bit.
pub(crate) fn assert_same(left: &[(String, Tensor)], right: &[(String, Tensor)]) {
    assert_eq!(left.len(), right.len());
    for ((left_name, left), (right_name, right)) in left.iter().zip(right) {
        assert_eq!(left_name, right_name);
        assert_eq!((left.size(), left.kind()), (right.size(), right.kind()), "{left_name}");
        assert!(left.equal(right), "{left_name} differs");
    }
}

/// Defines a test that does nothing unless [`in_child`] runs it in a process of its own.
macro_rules! child {
    ($name:ident, $body:expr) => {
        #[test]
        fn $name() {
            if std::env::var_os("LOWMEM_TEST_CHILD").is_some() {
                let body: fn(&dyn Fn(&str) -> String) = $body;
                body(&|name| std::env::var(name).unwrap());
            }
        }
    };
}
pub(crate) use child;

/// Runs one [`child!`] of this test program, with these variables, in a process of its own.
pub(crate) fn in_child(test: &str, variables: &[(&str, &str)]) -> std::process::Output {
    in_child_under(&[], test, variables)
}

/// The same, started by a command that ends in running its own arguments.
pub(crate) fn in_child_under(command: &[&str], test: &str, variables: &[(&str, &str)]) -> std::process::Output {
    let program = std::env::current_exe().unwrap();
    let mut words = command.iter().map(std::ffi::OsStr::new).chain([program.as_os_str()]);
    let mut child = std::process::Command::new(words.next().unwrap());
    child.args(words).args(["--exact", test, "--nocapture", "--test-threads", "1"]);
    child.env_remove("HF_TOKEN").env_remove("HF_HUB_OFFLINE").env("LOWMEM_TEST_CHILD", "1");
    let output = child.envs(variables.iter().copied()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(!text.contains("running 0 tests"), "there is no test {test}");
    output
}

/// Asserts that a child ran and passed.
pub(crate) fn assert_passed(test: &str, output: &std::process::Output) {
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{test}: {}\n{text}", output.status);
}

/// Says that this machine cannot run a test. One that tests every change must be able to.
pub(crate) fn cannot_run(why: &str) {
    assert!(std::env::var_os("CI").is_none(), "this test must run where CI is set: {why}");
    eprintln!("skipped: {why}");
}
