//! `activations --file TEXTS.jsonl`: values, index, pieces, going on after a kill.

use std::{collections::HashMap, fs, path::Path};

use serde_json::{Value, json};
use transformer_utils::tch::Tensor;

use crate::program::{golden, inside, refuse, succeed};
use crate::support::{relative_error, tensors};

const NAMES: &str = "h.0,wpe,h.1.attn.pattern,h.1.attn.z";

/// Seventeen texts of one to twelve tokens, and an empty one.
fn texts() -> Vec<Vec<i64>> {
    let text = |number: i64| (0..(number * 5) % 13).map(|place| (number * 7 + place * 3) % 61).collect();
    (0..18).map(text).collect()
}

fn write_corpus(path: &Path) {
    let lines =
        texts().into_iter().enumerate().map(|(number, ids)| json!({ "id": format!("text-{number}"), "ids": ids }));
    // An empty line is no text.
    fs::write(path, lines.map(|line| format!("{line}\n")).collect::<String>() + "\n").unwrap();
}

fn arguments<'a>(model: &'a str, corpus: &'a str, out: &'a str) -> Vec<&'a str> {
    vec!["--model", model, "--file", corpus, "--names", NAMES, "--out", out, "--batch-tokens", "24", "--file-mib", "1"]
}

fn index(path: &Path) -> Vec<Value> {
    fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// What the model gives for one text alone.
fn alone(model: &str, ids: &[i64], folder: &Path) -> HashMap<String, Tensor> {
    let out = folder.join("alone.safetensors").display().to_string();
    let ids = crate::program::ids(&[ids.to_vec()]);
    succeed("activations", &["--model", model, "--ids", &ids, "--names", NAMES, "--out", &out]);
    tensors(out.as_ref())
}

fn check(model: &str, folder: &Path, entries: &[Value]) {
    let scratch = tempfile::tempdir().unwrap();
    let texts = texts();
    for entry in entries {
        let number = entry["line"].as_u64().unwrap() as usize - 1;
        let ids = &texts[number];
        assert_eq!(entry["id"], format!("text-{number}"));
        assert_eq!(entry["tokens"], ids.len());
        let Some(file) = entry["file"].as_str() else {
            assert!(ids.is_empty());
            continue;
        };
        let values = tensors(&folder.join(file));
        let (start, length) = (entry["start"].as_i64().unwrap(), ids.len() as i64);
        let row = |name: &str| values[name].narrow(0, start, length);
        assert_eq!(Vec::<i64>::try_from(row("ids")).unwrap(), *ids);
        for (name, expected) in alone(model, ids, scratch.path()) {
            let (found, expected) = if name == "h.1.attn.pattern" {
                (row(&name).narrow(2, 0, length), expected.get(0).transpose(0, 1))
            } else {
                (row(&name), expected.get(0))
            };
            let error = relative_error(&found, &expected);
            assert!(error <= 2e-5, "text {number} {name}: relative error {error:.1e}");
        }
    }
}

#[test]
fn every_text_has_the_values_it_has_alone() {
    let folder = tempfile::tempdir().unwrap();
    let [corpus, out] = ["texts.jsonl", "out"].map(|name| folder.path().join(name));
    write_corpus(&corpus);
    let [corpus, out_text] = [&corpus, &out].map(|path| path.display().to_string());
    let model = golden("gpt2_plain");
    succeed("activations", &arguments(&model, &corpus, &out_text));
    let entries = index(&out.join("index.jsonl"));
    assert_eq!(entries.len(), texts().len());
    check(&model, &out, &entries);
}

#[test]
fn pieces_share_a_folder_and_make_the_whole() {
    let folder = tempfile::tempdir().unwrap();
    let [corpus, out] = ["texts.jsonl", "out"].map(|name| folder.path().join(name));
    write_corpus(&corpus);
    let [corpus, out_text] = [&corpus, &out].map(|path| path.display().to_string());
    let model = golden("gpt2_plain");
    let mut lines = Vec::new();
    for piece in ["0/3", "2/3", "1/3"] {
        let mut arguments = arguments(&model, &corpus, &out_text);
        arguments.extend(["--shard", piece]);
        succeed("activations", &arguments);
        let entries = index(&out.join(format!("index-{}.jsonl", piece.replace('/', "-of-"))));
        lines.extend(entries.iter().map(|entry| entry["line"].as_u64().unwrap()));
        if piece == "2/3" {
            check(&model, &out, &entries);
        }
    }
    lines.sort_unstable();
    assert_eq!(lines, (1..=texts().len() as u64).collect::<Vec<_>>());
    let mut other = arguments(&model, &corpus, &out_text);
    other.extend(["--shard", "0/2"]);
    assert!(refuse("activations", &other).contains("pieces"));
    other.extend(["--shard", "3/3"]);
    refuse("activations", &other);
}

#[test]
fn goes_on_after_a_kill_and_refuses_another_job() {
    let folder = tempfile::tempdir().unwrap();
    let [corpus, out] = ["texts.jsonl", "out"].map(|name| folder.path().join(name));
    // Enough for several files of a MiB.
    let ids: Vec<i64> = (0..24).collect();
    let text: String = (0..900).map(|number| format!("{}\n", json!({ "ids": ids[..24 - number % 3] }))).collect();
    fs::write(&corpus, text).unwrap();
    let [corpus, out_text] = [&corpus, &out].map(|path| path.display().to_string());
    let model = golden("gpt2_plain");
    let arguments = [&arguments(&model, &corpus, &out_text)[..6], &["--out", &out_text, "--file-mib", "1"]].concat();
    succeed("activations", &arguments);
    let before = inside(&out);
    let files: Vec<&String> = before.iter().filter(|name| name.ends_with(".safetensors")).collect();
    assert!(files.len() > 3, "{before:?}");
    let bytes: Vec<Vec<u8>> = files.iter().map(|name| fs::read(out.join(name)).unwrap()).collect();

    // As a kill leaves it: one file missing, another half-written beside it, no index.
    fs::remove_file(out.join(files[2])).unwrap();
    fs::remove_file(out.join("index.jsonl")).unwrap();
    fs::write(out.join(format!(".{}.1.tmp", files[2])), "half").unwrap();
    let times = |name: &String| fs::metadata(out.join(name)).unwrap().modified().unwrap();
    let time = times(files[0]);
    let report = folder.path().join("report.json").display().to_string();
    succeed("activations", &[&arguments[..], &["--json", &report]].concat());
    let report = crate::program::json(report.as_ref());
    assert_eq!(
        (report["files_written"].as_u64(), report["files_kept"].as_u64()),
        (Some(1), Some(files.len() as u64 - 1))
    );
    assert_eq!(inside(&out), before);
    assert_eq!(times(files[0]), time);
    for (name, bytes) in files.iter().zip(bytes) {
        assert!(fs::read(out.join(name)).unwrap() == bytes, "{name} has changed");
    }

    let line = refuse("activations", &[&arguments[..], &["--store", "bf16"]].concat());
    assert!(line.contains("store"), "{line}");
    fs::write(&corpus, "[1, 2]\n").unwrap();
    assert!(refuse("activations", &arguments).contains("line 1"));
    fs::write(&corpus, "{\"ids\": [1, 2]}\n\n{\"ids\": [1, 99]}\n").unwrap();
    assert!(refuse("activations", &arguments).contains("line 3"));
    fs::write(&corpus, "{\"ids\": [1, 2]}\n").unwrap();
    assert!(refuse("activations", &arguments).contains("another job"));
    assert_eq!(inside(&out), before);
}
