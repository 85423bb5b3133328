//! `activations` over a corpus: values, index, pieces, going on after kills, what is refused.

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
    vec!["--model", model, "--file", corpus, "--names", NAMES, "--out", out, "--batch-tokens", "24", "--store", "f32"]
}

/// Texts of twenty to twenty-four tokens.
fn write_many(path: &Path, texts: i64) {
    let line = |number: i64| {
        let ids: Vec<i64> = (0..20 + number % 5).map(|place| (number * 11 + place * 7) % 61).collect();
        format!("{}\n", json!({ "id": number, "ids": ids }))
    };
    fs::write(path, (0..texts).map(line).collect::<String>()).unwrap();
}

/// The same files, byte for byte.
fn assert_same(one: &Path, other: &Path) {
    assert_eq!(inside(one), inside(other));
    for name in inside(one) {
        assert!(fs::read(one.join(&name)).unwrap() == fs::read(other.join(&name)).unwrap(), "{name} differs");
    }
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
    let corpus = folder.path().join("texts.jsonl");
    write_many(&corpus, 1500);
    let corpus = corpus.display().to_string();
    let model = golden("gpt2_plain");
    let arguments = |out: &Path| {
        let base = ["--model", &model, "--file", &corpus, "--names", "h.0.mlp.act,h.1.mlp.act", "--file-mib", "1"];
        let own = ["--device", "cpu", "--out", out.to_str().unwrap()];
        base.iter().chain(&own).map(ToString::to_string).collect::<Vec<_>>()
    };
    let outs = ["whole", "two", "seven"].map(|name| folder.path().join(name));
    let [whole, two, seven] = &outs;
    let run = |arguments: Vec<String>| {
        succeed("activations", &arguments.iter().map(String::as_str).collect::<Vec<_>>());
    };
    run(arguments(whole));
    let files = inside(whole).into_iter().filter(|name| name.ends_with(".safetensors")).count();
    assert!(files > 7, "{files} files");
    assert!(!whole.join("index-0-of-2.jsonl").exists());

    // One after the other, the last first.
    let merge = |out: &Path| ["merge", out.to_str().unwrap()].map(str::to_owned);
    run([arguments(two), vec!["--shard".into(), "1/2".into()]].concat());
    let [command_name, folder_name] = merge(two);
    let complaint = refuse("activations", &[&command_name, &folder_name]);
    assert!(complaint.contains("units are missing: 0, 2, 4"), "{complaint}");
    assert!(!two.join("index.jsonl").exists());
    run([arguments(two), vec!["--shard".into(), "0/2".into()]].concat());
    run(merge(two).to_vec());
    assert_same(whole, two);

    // All at once, as a job array begins.
    let start = |piece: usize| {
        let mut running = command("activations");
        running.args(arguments(seven)).args(["--shard", &format!("{piece}/7")]);
        running.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    };
    for running in [3, 0, 6, 1, 5, 2, 4].map(start) {
        let output = running.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    run(merge(seven).to_vec());
    assert_same(whole, seven);
    // Merging is not only for the first time, and tells numbers to programs.
    let told = succeed("activations", &["merge", seven.to_str().unwrap(), "--json"]);
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!((told["units"].as_u64(), told["texts"].as_u64()), (Some(files as u64), Some(1500)));
    assert_same(whole, seven);

    let lines: Vec<u64> =
        index(&seven.join("index.jsonl")).iter().map(|entry| entry["line"].as_u64().unwrap()).collect();
    assert_eq!(lines, (1..=1500).collect::<Vec<_>>());

    // A file that is cut, and one of another unit.
    let name = seven.join("activations-00001.safetensors");
    let bytes = fs::read(&name).unwrap();
    fs::write(&name, &bytes[..bytes.len() - 1]).unwrap();
    let [command_name, folder_name] = merge(seven);
    assert!(refuse("activations", &[&command_name, &folder_name]).contains("activations-00001.safetensors"));
    fs::copy(seven.join("activations-00002.safetensors"), &name).unwrap();
    assert!(refuse("activations", &[&command_name, &folder_name]).contains("holds unit 2"));
    let past = seven.join(format!("activations-{files:05}.safetensors"));
    fs::write(&name, &bytes).unwrap();
    fs::copy(&name, &past).unwrap();
    assert!(refuse("activations", &[&command_name, &folder_name]).contains("none of this job"));
    for wrong in ["3/3", "x", "0/0"] {
        refuse("activations", &["--file", &corpus, "--names", "h.0", "--out", "o", "--shard", wrong]);
    }
}

#[test]
fn goes_on_after_a_kill_and_refuses_another_job() {
    let folder = tempfile::tempdir().unwrap();
    let [corpus, out] = ["texts.jsonl", "out"].map(|name| folder.path().join(name));
    write_many(&corpus, 800);
    let [corpus, out_text] = [&corpus, &out].map(|path| path.display().to_string());
    let model = golden("gpt2_plain");
    let arguments = |names, model| {
        vec!["--model", model, "--file", &corpus, "--names", names, "--out", &out_text, "--file-mib", "1"]
    };
    let own = arguments("h.0.mlp.act,h.1.mlp.act", &model);
    succeed("activations", &own);
    let before = inside(&out);
    let files: Vec<&String> = before.iter().filter(|name| name.ends_with(".safetensors")).collect();
    assert!(files.len() > 3, "{before:?}");
    let bytes: Vec<Vec<u8>> = files.iter().map(|name| fs::read(out.join(name)).unwrap()).collect();

    // As a kill leaves it: one file missing, another half-written beside it, no index.
    fs::remove_file(out.join(files[2])).unwrap();
    fs::remove_file(out.join("index.jsonl")).unwrap();
    fs::write(out.join(format!(".{}.aBc123.tmp", files[2])), "half").unwrap();
    fs::write(out.join(".job.json.aBc123.tmp"), "half").unwrap();
    let times = |name: &String| fs::metadata(out.join(name)).unwrap().modified().unwrap();
    let time = times(files[0]);
    let report = folder.path().join("report.json").display().to_string();
    succeed("activations", &[&own[..], &["--json", &report]].concat());
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

    let refused = |arguments: &[&str], field: &str| {
        let line = refuse("activations", arguments);
        assert!(line.contains("another job") && line.contains(&format!(": {field} is ")), "{line}");
    };
    refused(&[&own[..], &["--store", "f16"]].concat(), "store");
    refused(&[&own[..], &["--batch-tokens", "100"]].concat(), "batch_tokens");
    refused(&[&own[..], &["--truncate"]].concat(), "truncate");
    refused(&[&own[..], &["--edit", "h.0.mlp.act=zero"]].concat(), "edits");
    refused(&arguments("h.0.mlp.act", &model), "names");
    let other = golden("gpt2_epsilon");
    refused(&arguments("h.0.mlp.act,h.1.mlp.act", &other), "model");
    write_many(corpus.as_ref(), 801);
    let line = refuse("activations", &own);
    assert!(line.contains("another job"), "{line}");
    assert_eq!(inside(&out), before);
}

#[test]
fn a_killed_run_goes_on_and_ends_like_one_that_was_not() {
    let folder = tempfile::tempdir().unwrap();
    let [corpus, whole, killed, report] =
        ["texts.jsonl", "whole", "killed", "report.json"].map(|name| folder.path().join(name));
    // Some thirty files of a MiB each, of texts that differ.
    write_many(&corpus, 4000);
    let [corpus, whole_text, killed_text, report_text] =
        [&corpus, &whole, &killed, &report].map(|path| path.display().to_string());
    let model = golden("gpt2_plain");
    let arguments = |out| {
        let base = ["--model", &model, "--file", &corpus, "--names", "h.0.mlp.act,h.1.mlp.act", "--file-mib", "1"];
        [&base[..], &["--device", "cpu", "--store", "f32", "--out", out]].concat()
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

    // Byte for byte, the index and the job included, and nothing else is there.
    assert_same(&killed, &whole);
    let lines: Vec<u64> =
        index(&killed.join("index.jsonl")).iter().map(|entry| entry["line"].as_u64().unwrap()).collect();
    assert_eq!(lines, (1..=4000).collect::<Vec<_>>());
}

#[test]
fn texts_that_cannot_be_read_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let [corpus, out] = ["texts.jsonl", "out"].map(|name| folder.path().join(name));
    let [corpus_text, out_text] = [&corpus, &out].map(|path| path.display().to_string());
    let model = golden("gpt2_plain");
    let arguments = ["--model", &model, "--file", &corpus_text, "--names", "h.0", "--out", &out_text];
    let refused = |lines: &str, expected: &[&str]| {
        fs::write(&corpus, lines).unwrap();
        let line = refuse("activations", &arguments);
        assert!(expected.iter().all(|part| line.contains(part)), "{line}");
        fs::remove_dir_all(&out).unwrap();
    };
    refused("[1, 2]\n", &["texts.jsonl, line 1: is a list"]);
    refused("{\"ids\": [1, 2]}\n\n{\"ids\": [1, 99]}\n", &["texts.jsonl, line 3: ", "99"]);
    let long = format!("{{\"ids\": [1]}}\n{}\n", json!({ "ids": vec![1; 2000] }));
    refused(&long, &["texts.jsonl, line 2: ", "2000", "truncated"]);
    refused("\"a text\"\n", &["texts.jsonl, line 1: ", "tokenizer"]);
    fs::write(&corpus, "").unwrap();
    assert!(refuse("activations", &arguments).contains("no texts"));

    fs::write(&corpus, &long).unwrap();
    succeed("activations", &[&arguments[..], &["--truncate"]].concat());
    let entries = index(&out.join("index.jsonl"));
    let context = crate::program::json(&Path::new(&model).join("config.json"))["n_positions"].clone();
    assert_eq!((&entries[0]["tokens"], &entries[1]["tokens"]), (&json!(1), &context));
}

/// A process that may write no file of more than 512 KiB stands for a full disk; the system tells both in the same way.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_one_error_and_leaves_nothing_half_written() {
    let folder = tempfile::tempdir().unwrap();
    let [corpus, out] = ["texts.jsonl", "out"].map(|name| folder.path().join(name));
    write_many(&corpus, 400);
    let model = golden("gpt2_plain");
    let run = |limit: &str| {
        let limited = format!("trap '' XFSZ; ulimit -f {limit}; exec \"$@\"");
        let program = command("activations");
        let arguments = ["--model", &model, "--names", "h.0.mlp.act,h.1.mlp.act", "--file-mib", "2"];
        let mut shell = std::process::Command::new("sh");
        shell.args(["-c", &limited, "sh"]).arg(program.get_program()).args(arguments);
        shell.arg("--file").arg(&corpus).arg("--out").arg(&out).output().unwrap()
    };
    let full = run("512");
    let complaint = String::from_utf8(full.stderr).unwrap();
    assert_eq!(full.status.code(), Some(2), "{complaint}");
    assert!(complaint.lines().count() == 1 && complaint.contains("activations-00000.safetensors"), "{complaint}");
    assert_eq!(inside(&out), ["job.json"]);
    assert!(run("unlimited").status.success());
    assert!(inside(&out).contains(&"index.jsonl".to_owned()));
}

#[test]
fn chosen_positions_shuffled_rows_and_packed_texts_stay_known() {
    let folder = tempfile::tempdir().unwrap();
    let corpus = folder.path().join("texts.jsonl");
    write_corpus(&corpus);
    let corpus = corpus.display().to_string();
    let model = golden("gpt2_plain");
    let run = |name: &str, more: &[&str]| {
        let out = folder.path().join(name);
        let out_text = out.display().to_string();
        let base = ["--model", &model, "--file", &corpus, "--names", "h.1", "--out", &out_text, "--store", "f32"];
        succeed("activations", &[&base[..], more].concat());
        (tensors(&out.join("activations-00000.safetensors")), index(&out.join("index.jsonl")))
    };
    let (plain, entries) = run("plain", &[]);
    let integers = |values: &HashMap<String, Tensor>, name: &str| -> Vec<i64> {
        Vec::try_from(values[name].to_kind(transformer_utils::tch::Kind::Int64)).unwrap()
    };
    // Every row by its text and position.
    let rows = |values: &HashMap<String, Tensor>| -> HashMap<(i64, i64), (i64, Tensor)> {
        let [ids, texts, positions] = ["ids", "text", "position"].map(|name| integers(values, name));
        let row = |row: usize| ((texts[row], positions[row]), (ids[row], values["h.1"].get(row as i64)));
        (0..ids.len()).map(row).collect()
    };
    let expected = rows(&plain);
    assert_eq!(expected.len(), texts().iter().map(Vec::len).sum::<usize>());
    for (&(text, position), (id, _)) in &expected {
        assert_eq!(texts()[text as usize][position as usize], *id);
    }
    let (shuffled, shuffled_entries) = run("shuffled", &["--shuffle", "7"]);
    assert!(shuffled_entries.iter().all(|entry| entry["start"].is_null()));
    assert_ne!(integers(&shuffled, "ids"), integers(&plain, "ids"));
    assert_eq!(rows(&shuffled), expected);

    let (kept, kept_entries) = run("kept", &["--positions", "1..3"]);
    for (key, (id, value)) in rows(&kept) {
        assert!((1..3).contains(&key.1));
        assert!(expected[&key] == (id, value));
    }
    for (entry, text) in kept_entries.iter().zip(texts()) {
        assert_eq!(entry["tokens"], text.len().clamp(1, 3) - 1);
    }

    let (packed, packed_entries) = run("packed", &["--pack=10", "--end-token", "60"]);
    let ids = integers(&packed, "ids");
    let joined: Vec<i64> =
        texts().into_iter().filter(|text| !text.is_empty()).flat_map(|text| [text, vec![60]].concat()).collect();
    assert_eq!(ids, joined);
    for (entry, text) in packed_entries.iter().zip(texts()).filter(|(_, text)| !text.is_empty()) {
        let start = entry["start"].as_u64().unwrap() as usize;
        assert_eq!(ids[start..start + text.len()], text);
    }
    assert_eq!(entries.len(), packed_entries.len());
    let base = ["--model", &model, "--file", &corpus, "--names", "h.1", "--out", "x", "--pack=0", "--end-token", "1"];
    assert!(refuse("activations", &base).contains("pack"));
}
