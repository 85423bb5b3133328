//! `synth`, and what only a checkpoint made by it can show: a tokenizer, residencies, shards.

use std::{fs, path::Path};

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
