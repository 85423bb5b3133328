//! `activations` over data sets of the Hub.

use std::{fs, path::Path};

use serde_json::json;

use crate::{
    fake_hub::{COMMIT, FakeHub},
    program::{command, golden, inside},
};

fn lines(file: i64) -> Vec<u8> {
    let line = |number: i64| {
        let ids: Vec<i64> = (0..1 + number % 5).map(|place| (file * 13 + number * 7 + place) % 61).collect();
        format!("{}\n", json!({ "ids": ids }))
    };
    (0..20).map(line).collect::<String>().into_bytes()
}

#[test]
fn a_data_set_of_the_hub_gives_what_its_folder_gives() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let names = ["data/test.jsonl", "data/train-0.jsonl", "data/train-1.jsonl"];
    let files: Vec<(String, Vec<u8>)> =
        names.iter().zip(0..).map(|(name, file)| ((*name).into(), lines(file))).collect();
    fs::create_dir_all(path("local/data")).unwrap();
    for (name, bytes) in &files {
        fs::write(path("local").join(name), bytes).unwrap();
    }
    let hub = FakeHub::start([("README.md".to_owned(), b"---".to_vec())].into_iter().chain(files));
    let run = |input: &str, out: &str, more: &[&str]| {
        let model = golden("gpt2_plain");
        let mut activations = command("activations");
        activations.args(["--model", &model, "--file", input, "--names", "h.1", "--device", "cpu", "--out"]);
        activations.arg(path(out)).args(more);
        activations.env("HF_ENDPOINT", &hub.endpoint).env("HF_HUB_CACHE", path("cache")).env_remove("HF_HUB_OFFLINE");
        let output = activations.output().unwrap();
        (output.status.success(), String::from_utf8(output.stderr).unwrap())
    };
    let requests = || -> Vec<String> { hub.take_requests().into_iter().map(|request| request.path).collect() };
    let local = |below: &str| path("local").join(below).display().to_string();
    let same = |one: &str, other: &str| {
        assert_eq!(inside(&path(one)), inside(&path(other)));
        for name in inside(&path(one)) {
            let read = |folder: &str| fs::read(Path::new(&path(folder)).join(&name)).unwrap();
            // Of a safetensors file, what is behind the header: that says whose it is, and so the commit.
            let numbers = |bytes: Vec<u8>| {
                let header = u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
                bytes[8 + header..].to_vec()
            };
            match name.rsplit('.').next() {
                Some("safetensors") => assert!(numbers(read(one)) == numbers(read(other)), "{name} differs"),
                Some("jsonl") => assert!(read(one) == read(other), "{name} differs"),
                _ => {}
            }
        }
    };
    let commit = |out: &str| fs::read_to_string(path(out).join("job.json")).unwrap().contains(COMMIT);
    // Only what is wanted is fetched.
    for (number, (address, below)) in [
        ("hf://datasets/org/data/data/train-*.jsonl", "data/train-*.jsonl"),
        ("hf://datasets/org/data@v1/data/train-1.jsonl", "data/train-1.jsonl"),
    ]
    .into_iter()
    .enumerate()
    {
        let (expected, found) = (format!("expected-{number}"), format!("found-{number}"));
        assert_eq!(run(&local(below), &expected, &[]), (true, String::new()), "{below}");
        assert_eq!(requests(), [""; 0]);
        let (good, errors) = run(address, &found, &[]);
        assert!(good, "{address}: {errors}");
        assert!(requests().iter().all(|path| path.contains("train") || path.contains("/api/")));
        same(&expected, &found);
        assert!(commit(&found) && !commit(&expected));
    }
    // Without the Hub: what is here, or a word on what is not.
    let (good, errors) = run("hf://datasets/org/data", "offline", &["--offline"]);
    assert!(!good && errors.contains("data/test.jsonl") && errors.contains("offline"), "{errors}");
    assert!(run("hf://datasets/org/data/data/train-*.jsonl", "again", &["--offline"]).0);
    assert_eq!(requests(), [""; 0]);
    same("found-0", "again");
    assert!(run("hf://datasets/org/data", "all", &[]).0);
    assert!(run(&local(""), "all-local", &[]).0);
    same("all-local", "all");
    for (address, expected) in [
        ("hf://datasets/org/data@v2", "no such file, revision or repository"),
        ("hf://datasets/org/data/test", "no texts"),
        ("hf://org/data", "expected hf://datasets/OWNER/NAME"),
    ] {
        let (good, errors) = run(address, "refused", &[]);
        assert!(!good && errors.contains(expected), "{address}: {errors}");
    }
}
