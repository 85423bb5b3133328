//! `activations --file TEXTS.jsonl`: values, index, pieces, going on after a kill.

use std::{collections::HashMap, fs, path::Path, process::Stdio, time::Duration};

use serde_json::{Value, json};
use transformer_utils::tch::Tensor;

use crate::program::{command, golden, inside, refuse, succeed};
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
    // All at once, as a job array begins.
    let start = |piece| {
        let mut running = command("activations");
        running.args(arguments(&model, &corpus, &out_text)).args(["--shard", piece]);
        (piece, running.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap())
    };
    for (piece, running) in ["0/3", "2/3", "1/3"].map(start) {
        let output = running.wait_with_output().unwrap();
        assert!(output.status.success(), "{piece}: {}", String::from_utf8_lossy(&output.stderr));
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

#[test]
fn a_killed_run_goes_on_and_ends_like_one_that_was_not() {
    let folder = tempfile::tempdir().unwrap();
    let [corpus, whole, killed, report] =
        ["texts.jsonl", "whole", "killed", "report.json"].map(|name| folder.path().join(name));
    // Some thirty files of a MiB each, of texts that differ.
    let line = |number: i64| {
        let ids: Vec<i64> = (0..20 + number % 5).map(|place| (number * 11 + place * 7) % 61).collect();
        format!("{}\n", json!({ "id": number, "ids": ids }))
    };
    fs::write(&corpus, (0..4000).map(line).collect::<String>()).unwrap();
    let [corpus, whole_text, killed_text, report_text] =
        [&corpus, &whole, &killed, &report].map(|path| path.display().to_string());
    let model = golden("gpt2_plain");
    let arguments = |out| {
        let base = ["--model", &model, "--file", &corpus, "--names", "h.0.mlp.act,h.1.mlp.act", "--file-mib", "1"];
        [&base[..], &["--device", "cpu", "--out", out]].concat()
    };
    succeed("activations", &arguments(&whole_text));

    let complete = |name: &String| name.starts_with("activations-") && name.ends_with(".safetensors");
    let done = |folder: &Path| -> Vec<String> {
        if folder.is_dir() { inside(folder).into_iter().filter(complete).collect() } else { Vec::new() }
    };
    let mut kills = 0;
    // Killed again and again as soon as it has written another file, until it has written most of them.
    let all = done(&whole).len();
    assert!(all > 20, "only {all} files");
    for wanted in [1, all / 3, 2 * all / 3] {
        let before = done(&killed);
        let stamp = |name: &String| {
            let path = killed.join(name);
            (fs::metadata(&path).unwrap().modified().unwrap(), fs::read(&path).unwrap())
        };
        let stamps: Vec<_> = before.iter().map(stamp).collect();
        let mut running = command("activations");
        let mut running =
            running.args(arguments(&killed_text)).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        while done(&killed).len() < wanted.max(before.len() + 1) && running.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        // On Unix this is SIGKILL: nothing is tidied up.
        running.kill().unwrap();
        if !running.wait().unwrap().success() {
            kills += 1;
            assert!(!killed.join("index.jsonl").exists() || done(&killed).len() == all);
        }
        // What was there has not been written again.
        assert!(before.iter().map(stamp).eq(stamps), "a finished file was written again");
    }
    let kept = done(&killed).len();
    succeed("activations", &[&arguments(&killed_text)[..], &["--json", &report_text]].concat());
    let report = crate::program::json(&report);
    assert_eq!(report["files_kept"], kept);
    assert_eq!(report["files_written"], all - kept);
    // Each had most of its files still to write when it was found at work.
    assert!(kills > 0, "every run was over before it could be killed");

    // Byte for byte, the index and the plan included, and nothing else is there.
    assert_eq!(inside(&killed), inside(&whole));
    for name in inside(&whole) {
        assert!(fs::read(killed.join(&name)).unwrap() == fs::read(whole.join(&name)).unwrap(), "{name} differs");
    }
    let mut lines: Vec<u64> =
        index(&killed.join("index.jsonl")).iter().map(|entry| entry["line"].as_u64().unwrap()).collect();
    lines.dedup();
    assert_eq!(lines, (1..=4000).collect::<Vec<_>>());
}
