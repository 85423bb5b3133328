//! `activations` against Hugging Face, and its reports.

use serde_json::Value;

use crate::{
    program::{command, golden, ids, json, succeed},
    support::{cases, matrix, relative_error, tensors},
};

/// The promise of the README.
const TOLERANCE: f64 = 2e-5;

#[test]
fn matches_hugging_face_at_every_name() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("activations.safetensors");
    for case in cases() {
        // One process for each: what every path computes from every input is proved in `suite`.
        let mut batches = ["right", "single"].into_iter();
        let Some(batch) = batches.find(|batch| case.expected(batch).next().is_some()) else { continue };
        let names: Vec<&str> = case.expected(batch).map(|(name, _)| name).collect();
        let mut rows = case.ids(batch);
        if let Some(mask) = case.json[batch].get("attention_mask") {
            for (row, mask) in rows.iter_mut().zip(matrix(mask)) {
                row.truncate(mask.iter().sum::<i64>() as usize);
            }
        }
        let [model, out_text] = [&case.folder, &out].map(|path| path.display().to_string());
        let (ids, asked_text) = (ids(&rows), names.join(","));
        let arguments =
            ["--model", &model, "--dtype", "f32", "--ids", &ids, "--names", &asked_text, "--out", &out_text];
        succeed("activations", &arguments);
        let found = tensors(&out);
        for (name, expected) in case.expected(batch) {
            let error = relative_error(&found[name], expected);
            assert!(error <= TOLERANCE, "{} {batch} {name}: relative error {error:.1e}", case.name);
        }
    }
}

#[test]
fn stops_at_the_deepest_name_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let [out, report] = ["a.safetensors", "report.json"].map(|name| folder.path().join(name).display().to_string());
    let model = golden("gpt2_plain");
    let arguments =
        ["--model", &model, "--ids", "1,2,3;4", "--names", "h.0,h.1.attn.c_attn", "--out", &out, "--json", &report];
    succeed("activations", &arguments);
    let report = json(report.as_ref());
    assert_eq!(report["blocks_run"], 2);
    assert_eq!(report["blocks_total"], 3);
    assert_eq!(report["row_lengths"], serde_json::json!([3, 1]));
    let whole = std::fs::metadata(format!("{model}/model.safetensors")).unwrap().len();
    assert!(report["bytes_read"].as_u64().unwrap() < whole * 3 / 4, "{report}");
    for field in ["load_ms", "forward_ms", "peak_rss_mib"] {
        let there = report[field].as_f64().is_some_and(|value| value > 0.0);
        assert!(there || (field == "peak_rss_mib" && !cfg!(target_os = "linux")), "{field}: {report}");
    }
    let mut keys: Vec<String> = tensors(out.as_ref()).into_keys().collect();
    keys.sort();
    assert_eq!(keys, ["h.0", "h.1.attn.c_attn"]);
}

#[test]
fn positions_and_dtype_are_those_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("a.safetensors").display().to_string();
    let model = golden("gpt2_plain");
    let mut arguments = vec!["--model", &model, "--ids", "1,2,3,4,5", "--names", "h.1,h.1.attn.pattern", "--out", &out];
    succeed("activations", &arguments);
    let whole = tensors(out.as_ref());
    arguments.extend(["--positions", "1..3", "--store", "f16"]);
    succeed("activations", &arguments);
    let part = tensors(out.as_ref());
    for (name, dimension) in [("h.1", 1), ("h.1.attn.pattern", 2)] {
        let expected = whole[name].narrow(dimension, 1, 2);
        assert_eq!(part[name].kind(), transformer_utils::tch::Kind::Half);
        assert!(relative_error(&part[name], &expected) < 1e-3, "{name}");
    }
}

#[test]
fn lists_every_site_without_weights() {
    let folder = tempfile::tempdir().unwrap();
    let report = folder.path().join("sites.json").display().to_string();
    let case = cases().into_iter().find(|case| case.name == "gpt2_plain").unwrap();
    let model = golden("gpt2_plain");
    let tree = succeed("activations", &["--model", &model, "--list", "--json", &report]);
    assert!(tree.contains("h.0 … h.2") && tree.contains("│  ├─ c_attn"), "{tree}");
    assert!(tree.contains("blocks.i.attn.hook_q\n") && tree.contains("ln_final.hook_normalized\n"), "{tree}");
    let all = succeed("activations", &["--model", &model, "--list", "--all"]);
    assert!(all.contains("\nh.1 ") && !all.contains('…'), "{all}");
    let listed = json(report.as_ref());
    let [input, last] = [2, listed.as_array().unwrap().len() - 3].map(|place| &listed[place]["transformer_lens"]);
    assert_eq!(input, &serde_json::json!(["blocks.0.hook_resid_pre"]));
    assert_eq!(last, &serde_json::json!(["blocks.2.hook_resid_post", "blocks.2.hook_out"]));
    let dimension = |size: &Value| size.as_str().unwrap().parse::<i64>().ok();
    for (name, expected) in case.expected("single").filter(|(name, _)| !["logits", "transformer"].contains(name)) {
        let short = name.trim_start_matches("transformer.");
        let site = listed
            .as_array()
            .unwrap()
            .iter()
            .find(|site| site["names"].as_array().unwrap().iter().any(|known| known.as_str() == Some(short)));
        let Some(site) = site else { panic!("{name} is not listed") };
        let shape: Vec<Option<i64>> = site["shape"].as_array().unwrap().iter().map(dimension).collect();
        assert_eq!(shape.len(), expected.dim(), "{name}");
        for (listed, found) in shape.iter().zip(expected.size()) {
            assert!(listed.is_none_or(|listed| listed == found), "{name}: {shape:?}");
        }
    }
}

#[test]
fn a_hub_id_is_found_in_the_cache_when_offline() {
    let cache = tempfile::tempdir().unwrap();
    let repository = cache.path().join("models--somebody--tiny");
    let snapshot = repository.join("snapshots/0123456789abcdef");
    std::fs::create_dir_all(&snapshot).unwrap();
    std::fs::create_dir_all(repository.join("refs")).unwrap();
    std::fs::write(repository.join("refs/v1"), "0123456789abcdef").unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(format!("{}/{file}", golden("gpt2_plain")), snapshot.join(file)).unwrap();
    }
    let report = cache.path().join("report.json").display().to_string();
    let run = |revision: &str| {
        let arguments = ["--model", "somebody/tiny", "--revision", revision, "--offline", "--json", &report];
        command("load").args(arguments).env("HF_HUB_CACHE", cache.path()).output().unwrap()
    };
    let found = run("v1");
    assert!(found.status.success(), "{}", String::from_utf8_lossy(&found.stderr));
    assert_eq!(json(report.as_ref())["model"], "somebody/tiny");
    let refused = run("v2");
    assert_eq!(refused.status.code(), Some(2));
    let line = String::from_utf8(refused.stderr).unwrap();
    assert!(line.starts_with("error: ") && line.lines().count() == 1 && line.contains("somebody/tiny"), "{line}");
}

#[test]
fn the_bundled_model_is_found_from_any_folder() {
    let folder = tempfile::tempdir().unwrap();
    let run = ["--device", "cpu", "--ids", "3,1,4", "--names", "h.0", "--out", "a.safetensors"];
    let output = command("activations").current_dir(folder.path()).args(run).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(tensors(&folder.path().join("a.safetensors"))["h.0"].size(), [1, 3, 160]);
}
