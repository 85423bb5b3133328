//! `synth`, and what only a checkpoint made by it can show: a tokenizer, residencies, shards.

#[allow(dead_code)] // the program shows the names, too
#[path = "../../examples/synth/sizes.rs"]
mod sizes;

use std::{collections::HashMap, fs, path::Path};

use tokenizers::{
    Tokenizer,
    models::{
        TrainerWrapper,
        bpe::{BPE, BpeTrainerBuilder},
    },
    pre_tokenizers::byte_level::ByteLevel,
};

use transformer_utils::models::{Config, Model};

use crate::{
    program::{golden, inside, json, refuse, succeed},
    support::tensors,
};

const CONFIG: &str = r#"{
    "model_type": "gpt_neo", "vocab_size": 320, "max_position_embeddings": 32, "hidden_size": 24, "num_layers": 4,
    "num_heads": 3, "window_size": 4, "attention_types": [[["global", "local"], 2]]
}"#;

/// A config in `folder`, and a checkpoint of it named `name`, made with more flags.
fn synth(folder: &Path, name: &str, more: &[&str]) -> String {
    let config = folder.join("tiny.json");
    fs::write(&config, CONFIG).unwrap();
    let [config, out] = [config, folder.join(name)].map(|path| path.display().to_string());
    succeed("synth", &[&["--config", &config, "--out", &out], more].concat());
    out
}

fn logits(folder: &Path, model: &str, more: &[&str]) -> Vec<u8> {
    let out = folder.join("logits.safetensors").display().to_string();
    let base = ["--model", model, "--ids", "1,2,3,4,5,6,7", "--names", "lm_head", "--out", &out];
    succeed("activations", &[&base[..], more].concat());
    fs::read(out).unwrap()
}

#[test]
fn shards_and_residencies_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let one = synth(path, "one", &[]);
    let expected = logits(path, &one, &[]);
    for shards in ["2", "5", "47"] {
        let several = synth(path, &format!("shards-{shards}"), &["--shards", shards]);
        for residency in ["mapped", "resident", "streamed"] {
            assert!(logits(path, &several, &["--residency", residency]) == expected, "{shards} {residency}");
        }
    }
    assert!(logits(path, &synth(path, "other", &["--seed", "1"]), &[]) != expected);
}

#[test]
fn values_are_distributed_as_promised() {
    let folder = tempfile::tempdir().unwrap();
    for (name, more) in [("f32", &["--dtype", "f32"]), ("bf16", &["--dtype", "bf16"]), ("f16", &["--dtype", "f16"])] {
        let model = synth(folder.path(), name, more);
        let weights = tensors(&Path::new(&model).join("model.safetensors"));
        let moments = |name: &str| {
            let values = weights[name].to_kind(transformer_utils::tch::Kind::Double);
            (values.mean(None).double_value(&[]), values.std(true).double_value(&[]))
        };
        let (mean, deviation) = moments("transformer.wte.weight");
        assert!(mean.abs() < 0.001 && (deviation - 0.02).abs() < 0.001, "{name}: {mean} {deviation}");
        let (mean, deviation) = moments("transformer.h.1.ln_2.weight");
        assert!((mean - 1.0).abs() < 0.1 && (0.05..0.2).contains(&deviation), "{name}: {mean} {deviation}");
        let (_, deviation) = moments("transformer.h.2.mlp.c_proj.weight");
        assert!((deviation - 0.02 / 8_f64.sqrt()).abs() < 0.001, "{name}: {deviation}");
    }
}

#[test]
fn matrices_are_those_of_a_random_model() {
    let folder = tempfile::tempdir().unwrap();
    let path = synth(folder.path(), "seeded", &["--seed", "9"]);
    let weights = tensors(&Path::new(&path).join("model.safetensors"));
    let model = Model::random(Config::from_json(CONFIG).unwrap(), 9).unwrap();
    for part in [0, 2, 6] {
        for (name, tensor) in model.parts().names(part).unwrap().into_iter().zip(model.parts().get(part, None).unwrap())
        {
            // Norms and biases vary in a synthetic checkpoint only.
            let is_matrix = tensor.dim() == 2;
            assert!(!is_matrix || weights[name].equal(&tensor), "{name}");
        }
    }
}

#[test]
fn text_is_read_with_the_checkpoint_s_own_tokenizer() {
    let folder = tempfile::tempdir().unwrap();
    let trainer = BpeTrainerBuilder::new()
        .show_progress(false)
        .vocab_size(300)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    let mut tokenizer = Tokenizer::new(BPE::default());
    tokenizer.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    tokenizer.train(&mut TrainerWrapper::from(trainer), ["the cat sat on the mat"; 4].into_iter()).unwrap();
    let file = folder.path().join("tokenizer.json");
    tokenizer.save(&file, false).unwrap();
    let model = synth(folder.path(), "model", &["--tokenizer", &file.display().to_string()]);

    let text = "the cat,\nthe wörld";
    let expected = tokenizer.encode(text, true).unwrap().get_ids().len();
    let [out, report, written] =
        ["a.safetensors", "report.json", "text.txt"].map(|name| folder.path().join(name).display().to_string());
    fs::write(&written, format!("{text}\n")).unwrap();
    let base = ["--model", &model, "--names", "h.0", "--out", &out, "--json", &report];
    for input in [&[text][..], &["--file", &written]] {
        succeed("activations", &[&base[..], input].concat());
        assert_eq!(json(report.as_ref())["row_lengths"], serde_json::json!([expected]));
    }
    let line = refuse("activations", &[&base[..], &[""]].concat());
    assert!(line.contains("empty"), "{line}");
}

#[test]
fn load_reports_what_was_placed() {
    let folder = tempfile::tempdir().unwrap();
    let report = folder.path().join("report.json").display().to_string();
    let model = golden("gpt2_plain");
    let elements = 61 * 12 + 24 * 12 + 3 * (4 * 12 + 12 * 36 + 36 + 12 * 12 + 12 + 2 * 12 * 48 + 48 + 12) + 2 * 12;
    for (flags, bytes, allocated) in [
        (&["--residency", "mapped"][..], 4 * elements, 0),
        (&["--residency", "resident"], 4 * elements, 4 * elements),
        (&["--dtype", "bf16"], 4 * elements, 2 * elements),
    ] {
        succeed("load", &[&["--model", &model, "--json", &report], flags].concat());
        let report = json(report.as_ref());
        assert_eq!(report["bytes_read"], bytes, "{flags:?}");
        // Direct reads end at whole pages, one or two for each part.
        let slack = if allocated > 0 { 64 << 10 } else { 0 };
        let found = report["bytes_allocated"].as_u64().unwrap();
        assert!((allocated..=allocated + slack).contains(&found), "{flags:?}: {found}");
        assert_eq!(report["tensors_placed"], report["tensors"], "{flags:?}");
    }
}

#[test]
fn refuses_what_it_cannot_make() {
    let folder = tempfile::tempdir().unwrap();
    let taken = folder.path().join("taken");
    fs::create_dir(&taken).unwrap();
    fs::write(taken.join("file"), "").unwrap();
    let [out, taken, missing] =
        [folder.path().join("out"), taken, folder.path().join("a/b")].map(|path| path.display().to_string());
    for (arguments, named) in [
        (["--config", "gpt3", "--out", &out], "gpt2-xl"),
        (["--config", "gpt2", "--out", &taken], "there already"),
        (["--config", "gpt2", "--out", &missing], "does not exist"),
    ] {
        let line = refuse("synth", &arguments);
        assert!(line.contains(named), "{line}");
    }
    refuse("synth", &["--config", "gpt2", "--out", &out, "--shards", "0"]);
    assert_eq!(inside(folder.path()), ["taken"]);
}

/// Billions of parameters as published: on the Hub where it counts them, otherwise in the models' papers.
const BILLIONS: [(&str, f64); 78] = [
    ("gpt2", 0.124),
    ("gpt2-medium", 0.355),
    ("gpt2-large", 0.774),
    ("gpt2-xl", 1.558),
    ("gpt-neo-125m", 0.125),
    ("gpt-neo-1.3B", 1.316),
    ("gpt-neo-2.7B", 2.651),
    ("llama-xl", 1.540),
    ("tinyllama-1.1b", 1.100),
    ("llama-2-7b", 6.738),
    ("llama-2-13b", 13.016),
    ("llama-2-70b", 68.977),
    ("llama-3-8b", 8.030),
    ("llama-3-70b", 70.554),
    ("llama-3.1-8b", 8.030),
    ("llama-3.1-70b", 70.554),
    ("llama-3.1-405b", 405.853),
    ("llama-3.2-1b", 1.236),
    ("llama-3.2-3b", 3.213),
    ("smollm2-360m", 0.362),
    ("smollm2-1.7b", 1.711),
    ("mistral-7b-v0.1", 7.242),
    ("mistral-7b-v0.3", 7.248),
    ("qwen2-0.5b", 0.494),
    ("qwen2-1.5b", 1.544),
    ("qwen2-7b", 7.616),
    ("qwen2.5-0.5b", 0.494),
    ("qwen2.5-1.5b", 1.544),
    ("qwen2.5-3b", 3.086),
    ("qwen2.5-7b", 7.616),
    ("qwen2.5-14b", 14.770),
    ("qwen2.5-32b", 32.764),
    ("qwen3-0.6b", 0.596),
    ("qwen3-1.7b", 1.721),
    ("qwen3-4b", 4.022),
    ("qwen3-8b", 8.191),
    ("qwen3-14b", 14.768),
    ("qwen3-32b", 32.762),
    ("gemma-2b", 2.506),
    ("gemma-7b", 8.538),
    ("gemma-2-2b", 2.614),
    ("gemma-2-9b", 9.242),
    ("gemma-2-27b", 27.227),
    ("gemma-3-270m", 0.268),
    ("gemma-3-1b", 1.000),
    ("pythia-70m", 0.070),
    ("pythia-160m", 0.162),
    ("pythia-410m", 0.405),
    ("pythia-1b", 1.012),
    ("pythia-1.4b", 1.415),
    ("pythia-2.8b", 2.775),
    ("pythia-6.9b", 6.857),
    ("pythia-12b", 11.846),
    ("gpt-neox-20b", 20.555),
    ("gpt-j-6b", 6.051),
    ("opt-125m", 0.125),
    ("opt-350m", 0.331),
    ("opt-1.3b", 1.316),
    ("opt-2.7b", 2.652),
    ("opt-6.7b", 6.658),
    ("opt-13b", 12.853),
    ("opt-30b", 29.975),
    ("opt-66b", 65.720),
    ("phi-1", 1.418),
    ("phi-1.5", 1.418),
    ("phi-2", 2.780),
    ("phi-3-mini-4k", 3.821),
    ("phi-4", 14.660),
    ("olmo-2-1b", 1.485),
    ("olmo-2-7b", 7.299),
    ("olmo-2-13b", 13.716),
    ("olmo-2-32b", 32.234),
    ("mixtral-8x7b", 46.703),
    ("mixtral-8x22b", 140.630),
    ("qwen3-30b-a3b", 30.532),
    ("qwen3-235b-a22b", 235.094),
    ("gpt-oss-20b", 20.915),
    ("gpt-oss-120b", 116.829),
];

#[test]
fn every_known_size_is_a_model_as_large_as_published() {
    let published = HashMap::from(BILLIONS);
    let mut found = Vec::new();
    for family in sizes::all().unwrap() {
        for size in &family.sizes {
            let text = sizes::config(&size.name.to_uppercase()).unwrap().expect(&size.name).to_string();
            let config = Config::from_json(&text).unwrap_or_else(|error| panic!("{}: {error}", size.name));
            config.check().unwrap();
            let shapes = Model::tensor_shapes(&config).unwrap();
            let billions = shapes.iter().map(|(_, shape)| shape.iter().product::<i64>()).sum::<i64>() as f64 / 1e9;
            let expected = published[size.name.as_str()];
            assert!((billions - expected).abs() < 0.0006, "{}: {billions}, published {expected}", size.name);
            assert!(size.hub.as_ref().is_none_or(|hub| hub.split('/').count() == 2), "{}", size.name);
            found.push(size.name.clone());
        }
    }
    assert_eq!(found, BILLIONS.map(|(name, _)| name));
}

#[test]
fn the_known_sizes_are_listed() {
    let list = succeed("synth", &["--list"]);
    assert_eq!(list.lines().count(), BILLIONS.len());
    let line = list.lines().find(|line| line.starts_with("llama-3.2-1b ")).unwrap();
    assert!(line.contains("1.236 billion") && line.ends_with("meta-llama/Llama-3.2-1B"), "{line}");
    let help = succeed("synth", &["--help"]);
    assert!(help.lines().all(|line| line.len() <= 140), "{help}");
    assert!(BILLIONS.iter().all(|(name, _)| help.contains(name)));
    refuse("synth", &["--list", "--out", "nowhere"]);
    refuse("synth", &["--config", "gpt2"]);
}
