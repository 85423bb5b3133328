//! Checkpoints that are not quite what their config says, and files that others are to read.

use std::{fs, path::Path};

use transformer_utils::{lowmem, tch::Tensor};

use crate::{
    program::{command, golden, json, refuse, succeed},
    support::tensors,
};

/// A copy of a golden checkpoint that was fine-tuned as a classifier.
fn classifier() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let source = golden("gpt2_plain");
    let mut weights: Vec<_> = tensors(&Path::new(&source).join("model.safetensors")).into_iter().collect();
    weights.push(("score.weight".into(), Tensor::from_slice(&[1.0_f32, 2.0]).view([1, 2])));
    lowmem::save_safetensors(&folder.path().join("model.safetensors"), &weights).unwrap();
    fs::copy(Path::new(&source).join("config.json"), folder.path().join("config.json")).unwrap();
    folder
}

/// What a program that must succeed says on standard error.
fn errors(program: &str, arguments: &[&str]) -> String {
    let output = command(program).args(arguments).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {text}");
    text
}

#[test]
fn tensors_that_are_not_used_are_noted_or_refused() {
    let folder = classifier();
    let model = folder.path().display().to_string();
    let report = folder.path().join("report.json");
    let load = ["--model", &model, "--device", "cpu", "--json", &report.display().to_string()];
    assert!(succeed("load", &load).contains("score.weight"));
    assert_eq!(json(&report)["extra"], serde_json::json!(["score.weight"]));
    let generate = ["--model", &model, "--device", "cpu", "--ids", "1,2", "--max-tokens", "1"];
    let note = errors("generate", &generate);
    assert!(note.starts_with("note: ") && note.contains("score.weight") && note.contains("--strict"), "{note}");
    assert_eq!(note.lines().count(), 1, "{note}");
    let line = refuse("generate", &[&generate[..], &["--strict"]].concat());
    assert!(line.contains("score.weight"), "{line}");
    let plain = golden("gpt2_plain");
    let generate = ["--model", &plain, "--device", "cpu", "--ids", "1,2", "--max-tokens", "1", "--strict"];
    assert_eq!(errors("generate", &generate), "");
}

#[test]
fn a_head_that_is_not_the_tied_one_is_noted() {
    let folder = tempfile::tempdir().unwrap();
    let report = folder.path().join("report.json");
    for (case, differ) in [("gpt2_both_differ", true), ("gpt2_both_equal", false)] {
        let model = golden(case);
        let load = ["--model", &model, "--device", "cpu", "--json", &report.display().to_string()];
        let note = errors("load", &load);
        assert_eq!(note.starts_with("note: lm_head.weight") && note.contains("not tied"), differ, "{note}");
        let pair = serde_json::json!([["lm_head.weight", "transformer.wte.weight"]]);
        assert_eq!(json(&report)[if differ { "untied" } else { "tied" }], pair);
    }
}

#[test]
#[cfg(unix)]
fn outputs_have_the_mode_that_the_umask_says() {
    use std::os::unix::fs::PermissionsExt;
    let model = golden("gpt2_plain");
    for umask in [0o000, 0o027] {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        let run = |program: &str, arguments: &[&str]| {
            let program = command(program).get_program().to_owned();
            let script = format!("umask {umask:03o}; exec \"$0\" \"$@\"");
            let output = std::process::Command::new("sh").args(["-c", &script]).arg(program).args(arguments).output();
            let output = output.unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        };
        let lens = ["png", "svg", "html", "json", "csv"].map(|extension| path(&format!("lens.{extension}")));
        let mut arguments = vec!["--model", &model, "--device", "cpu", "--ids", "1,2"];
        lens.iter().for_each(|out| arguments.extend(["--out", out]));
        run("logit_lens", &arguments);
        run("synth", &["--config", &format!("{model}/config.json"), "--out", &path("synth")]);
        let mode = |path: &str| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        for out in lens.iter().chain([&path("synth/config.json"), &path("synth/model.safetensors")]) {
            assert_eq!(mode(out), 0o666 & !umask, "{out}");
        }
        assert_eq!(mode(&path("synth")), 0o777 & !umask);
    }
}
