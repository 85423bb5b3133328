//! `--edit` and `--steer`, which programs share.

use transformer_utils::{
    lowmem::save_safetensors,
    models::{GenerateOptions, Model},
    partial::{Edit, Generation, Run},
    prelude::*,
    tch::{Device, Kind, Tensor},
};

use crate::{
    program::{golden, json, refuse, succeed},
    support::tensors,
};

/// A folder with `direction.safetensors`, which holds `name`, `[12]`.
fn stored() -> (tempfile::TempDir, String, Tensor) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("direction.safetensors");
    let direction = (Tensor::arange(12, (Kind::Float, Device::Cpu)) * 2.3).sin();
    save_safetensors(&path, &[("name".to_owned(), direction.shallow_clone())]).unwrap();
    let path = path.display().to_string();
    (folder, path, direction)
}

fn model() -> Model {
    Model::load(golden("gpt2_plain")).unwrap()
}

#[test]
fn generation_is_steered_as_the_library_steers_it() {
    let (_folder, file, direction) = stored();
    let model = model();
    let options = GenerateOptions::default().max_new_tokens(6).end_tokens(Vec::new());
    let prompts = [vec![3, 1, 4], vec![2]];
    let expected = Generation::new(&model)
        .edit("h.0.attn.z", Edit::zero().heads([0, 2]))
        .unwrap()
        .edit("h.1", Edit::add(&(direction * 4.0)).new_tokens())
        .unwrap()
        .run(&prompts, &options)
        .unwrap();
    let rows = expected.generated.rows.iter().enumerate();
    let expected: String = rows.map(|(index, row)| format!("{index}: {row}\n")).collect();
    let base = ["--model", &golden("gpt2_plain"), "--device", "cpu", "--max-tokens", "6", "--ignore-end"];
    let base = [&base[..], &["--ids", "3,1,4;2"]].concat();
    let steer = format!("h.1:new={file}:name*4.0");
    let found = succeed("generate", &[&base[..], &["--edit", "h.0.attn.z:heads=0,2=zero", "--steer", &steer]].concat());
    assert_eq!(found, expected);
    assert_ne!(succeed("generate", &base), expected);
}

#[test]
fn a_stop_text_ends_the_text() {
    let text = succeed("generate", &["--device", "cpu", "Emma was very", "--max-tokens", "8"]);
    let stop = &text["Emma was very".len() + 2..][..4];
    let short = succeed("generate", &["--device", "cpu", "Emma was very", "--max-tokens", "8", "--stop", stop]);
    assert!(
        short.len() < text.len() && text.starts_with(short.trim_end()) && short.contains(stop),
        "{short:?} {stop:?}"
    );
}

#[test]
fn activations_and_the_lens_are_those_of_the_edited_run() {
    let (folder, file, direction) = stored();
    let at = |name: &str| folder.path().join(name).display().to_string();
    let model = model();
    let run = Run::new(&model, &["h.2", "h.0"]).unwrap();
    let run = run.edit("h.0", Edit::replace(&(direction * -1.5)).positions(1..3)).unwrap();
    let expected = run.run([3, 1, 4, 1]).unwrap();
    let edit = format!("h.0:positions=1..3=replace:{file}:name*-1.5");
    let base = ["--model", &golden("gpt2_plain"), "--device", "cpu", "--ids", "3,1,4,1", "--edit", &edit];
    succeed("activations", &[&base[..], &["--names", "h.0,h.2", "--out", &at("a.safetensors")]].concat());
    let found = tensors(&folder.path().join("a.safetensors"));
    for name in ["h.0", "h.2"] {
        assert!(found[name].equal(expected.get(name).unwrap()), "{name}");
    }
    succeed("logit_lens", &[&base[..], &["--out", &at("a.json"), "--quiet"]].concat());
    let table = json(&folder.path().join("a.json"));
    let lens = Lens::new(&model, LensOptions::default()).unwrap();
    let edited = lens.edit("h.0", Edit::replace(&found["h.0"].select(0, 0).select(0, 1)).positions(1..3)).unwrap();
    let expected = edited.of([3, 1, 4, 1]).unwrap();
    for (row, expected) in table["rows"].as_array().unwrap().iter().zip(&expected.rows) {
        let top1: Vec<i64> = row["top1"].as_array().unwrap().iter().map(|id| id.as_i64().unwrap()).collect();
        assert_eq!(top1, expected.top1, "{}", expected.name);
    }
    assert!(table["model"].as_str().unwrap().contains("h.0:positions=1..3=replace"), "{}", table["model"]);
}

#[test]
fn edits_that_cannot_be_are_refused_in_every_program() {
    let (folder, file, _) = stored();
    let out = folder.path().join("a.safetensors").display().to_string();
    let model = golden("gpt2_plain");
    let programs: [(&str, &[&str]); 3] = [
        ("generate", &["--max-tokens", "2"]),
        ("logit_lens", &["--quiet"]),
        ("activations", &["--names", "h.2", "--out", &out]),
    ];
    let missing = format!("h.1={file}:other");
    for (program, own) in programs {
        let base = [&["--model", &model, "--ids", "1,2"][..], own].concat();
        let cases: [(&[&str], &str); 6] = [
            (&["--edit", "h.1:haeds=0=zero"], "character 5, \"haeds\""),
            (&["--edit", "h.1=zeroes"], "add:FILE:TENSOR"),
            (&["--steer", &missing], "it has name"),
            (&["--steer", "h.1=/no/such/file:name"], "/no/such/file"),
            (&["--edit", "h.99=zero"], "h.99"),
            (&["--edit", "h.1.mlp:heads=0=zero"], "no heads"),
        ];
        for (flags, says) in cases {
            let error = refuse(program, &[&base[..], flags].concat());
            assert!(error.contains(says), "{program} {flags:?}: {error}");
        }
    }
    // Of a corpus, too: before its first line is read.
    let corpus = folder.path().join("texts.jsonl");
    std::fs::write(&corpus, "{}\n").unwrap();
    let corpus = corpus.display().to_string();
    let flags = ["--file", &corpus, "--names", "h.0", "--out", &out, "--edit", "h.0.mlp:heads=0=zero"];
    assert!(refuse("activations", &flags).contains("no heads"));
}
