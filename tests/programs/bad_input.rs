//! Bad input: one clear line, exit code 2, nothing half-written.

use std::{fs, path::Path};

use crate::program::{exists, golden, inside, refuse};

/// The programs that read a model and an input and write a file, with what they cannot do without.
fn programs(folder: &Path) -> Vec<(&'static str, Vec<String>)> {
    let out = |name: &str| folder.join(name).display().to_string();
    let all = [
        ("activations", vec!["--names".into(), "h.0".into(), "--out".into(), out("a.safetensors")]),
        ("logit_lens", vec!["--out".into(), out("lens.json")]),
        ("generate", vec![]),
    ];
    all.into_iter().filter(|(program, _)| exists(program)).collect()
}

/// Every program refuses `arguments`, naming each of `named`, and writes nothing.
fn all_refuse(arguments: &[&str], named: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    for (program, own) in programs(folder.path()) {
        let mut all: Vec<&str> = own.iter().map(String::as_str).collect();
        all.extend(arguments);
        let line = refuse(program, &all);
        for name in named {
            assert!(line.contains(name), "{program}: {name:?} is not in {line}");
        }
        assert_eq!(inside(folder.path()), [""; 0], "{program}");
    }
}

/// A copy of a golden checkpoint to spoil.
fn copy(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(Path::new(&golden(name)).join(file), folder.path().join(file)).unwrap();
    }
    folder
}

#[test]
fn unknown_names() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("a.safetensors").display().to_string();
    let model = golden("gpt2_plain");
    let cases = [
        ("h.0.mlp.c_porj", "h.0.mlp.c_proj"),
        ("h.3", "h.0 to h.2"),
        ("h", "holds other modules"),
        ("h.0.attn.attention.q_proj", "nearest"),
        ("h.0,h.01", "h.01"),
    ];
    for (names, named) in cases {
        let line = refuse("activations", &["--model", &model, "--ids", "1,2", "--names", names, "--out", &out]);
        assert!(line.contains(named), "{names}: {line}");
    }
    assert_eq!(inside(folder.path()), [""; 0]);
}

#[test]
fn ids_outside_the_vocabulary() {
    let model = golden("gpt2_plain");
    all_refuse(&["--model", &model, "--ids", "1,2,61"], &["61", "position 2"]);
    all_refuse(&["--model", &model, "--ids", "1,-1,2"], &["-1", "position 1"]);
}

#[test]
fn more_tokens_than_positions() {
    let ids = vec!["1"; 25].join(",");
    all_refuse(&["--model", &golden("gpt2_plain"), "--ids", &ids], &["25", "24"]);
}

#[test]
fn empty_input() {
    let model = golden("gpt2_plain");
    all_refuse(&["--model", &model, "--ids", ""], &["empty"]);
    all_refuse(&["--model", &model, "--ids", "1,x"], &["\"x\""]);
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("a.safetensors").display().to_string();
    let line = refuse("activations", &["--model", &model, "--ids", "1,2;;3", "--names", "h.0", "--out", &out]);
    assert!(line.contains("row 1") && line.contains("empty"), "{line}");
    let line = refuse("activations", &["--model", &model, "--names", "h.0", "--out", &out]);
    assert!(line.contains("--ids"), "{line}");
}

#[test]
fn text_without_a_tokenizer() {
    all_refuse(&["--model", &golden("gpt2_plain"), "some text"], &["tokenizer.json", "--ids"]);
}

#[test]
fn truncated_weights() {
    for keep in [5, 100, 20_000] {
        let folder = copy("gpt2_plain");
        let path = folder.path().join("model.safetensors");
        let bytes = fs::read(&path).unwrap();
        assert!(keep < bytes.len());
        fs::write(&path, &bytes[..keep]).unwrap();
        let model = folder.path().display().to_string();
        all_refuse(&["--model", &model, "--ids", "1,2"], &["model.safetensors", "truncated"]);
    }
}

#[test]
fn unsupported_families() {
    let folder = copy("gpt2_plain");
    fs::write(folder.path().join("config.json"), r#"{"model_type": "bert"}"#).unwrap();
    let model = folder.path().display().to_string();
    all_refuse(&["--model", &model, "--ids", "1,2"], &["bert", "gpt2", "gpt_neo"]);
}

#[test]
fn checkpoints_that_are_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().display().to_string();
    all_refuse(&["--model", &empty, "--ids", "1,2"], &[&empty, "no weights"]);
    let missing = folder.path().join("missing").display().to_string();
    all_refuse(&["--model", &missing, "--ids", "1,2"], &["missing"]);
    all_refuse(&["--model", "nobody/has-this", "--offline", "--ids", "1,2"], &["nobody/has-this"]);
}

#[test]
fn outputs_that_cannot_be_written() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let model = golden("gpt2_plain");
    for out in [folder.path().join("missing/a.safetensors"), file.join("a.safetensors"), folder.path().to_owned()] {
        let out = out.display().to_string();
        refuse("activations", &["--model", &model, "--ids", "1,2", "--names", "h.0", "--out", &out]);
    }
    assert_eq!(inside(folder.path()), ["file"]);
}

#[test]
fn flags_that_contradict_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("a.safetensors").display().to_string();
    let model = golden("gpt2_plain");
    let base = ["--model", &model, "--names", "h.0", "--out", &out];
    let cases: [(&[&str], &str); 9] = [
        (&["--nmaes", "h.0"], "--names"),
        (&["--ids", "1", "some text"], "--ids"),
        (&["--ids", "1", "--device", "gpu"], "cuda:N"),
        (&["--ids", "1", "--device", "cuda:200"], "cuda"),
        (&["--ids", "1", "--dtype", "f16"], "f16"),
        (&["--ids", "1", "--dtype", "bf16", "--residency", "mapped"], "--residency resident"),
        (&["--ids", "1,2,3", "--positions", "2..9"], "0..3"),
        (&["--ids", "1", "--revision", "main"], "--revision"),
        (&["--ids", "1", "--truncate"], "--truncate"),
    ];
    for (arguments, named) in cases {
        let line = refuse("activations", &[&base[..], arguments].concat());
        assert!(line.contains(named), "{arguments:?}: {line}");
    }
    assert_eq!(inside(folder.path()), [""; 0]);
}
