//! Checkpoints that do not fit their config, and configs that fit nothing.

use std::{collections::HashMap, fs, path::Path};

use tempfile::TempDir;
use transformer_utils::{
    lowmem::{self, Checkpoint, ExtraTensors, LoadOptions},
    models::{Config, Error, Input, Model, NoObserver},
    tch::Tensor,
};

use crate::support::{cases, tensors};

/// A copy of the plain case with its tensors changed.
fn changed(change: impl FnOnce(&mut HashMap<String, Tensor>)) -> (TempDir, Result<Model, Error>) {
    let folder = write_changed(change);
    let model = open(folder.path());
    (folder, model)
}

fn write_changed(change: impl FnOnce(&mut HashMap<String, Tensor>)) -> TempDir {
    let case = cases().into_iter().find(|case| case.name == "gpt2_plain").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut weights = tensors(&case.folder.join("model.safetensors"));
    change(&mut weights);
    let weights: Vec<(String, Tensor)> = weights.into_iter().collect();
    lowmem::save_safetensors(&folder.path().join("model.safetensors"), &weights).unwrap();
    fs::copy(case.folder.join("config.json"), folder.path().join("config.json")).unwrap();
    folder
}

fn open(folder: &Path) -> Result<Model, Error> {
    Model::open(&Checkpoint::open(folder)?, &LoadOptions::default())
}

const LAST: &str = "transformer.h.2.mlp.c_proj.weight";

#[test]
fn an_unchanged_copy_opens() {
    assert!(changed(|_| {}).1.is_ok());
}

#[test]
fn a_missing_tensor_is_named_with_its_shape_and_the_nearest() {
    let (_folder, model) = changed(|weights| {
        let tensor = weights.remove(LAST).unwrap();
        weights.insert("transformer.h.2.mlp.c_prj.weight".into(), tensor);
    });
    let Err(Error::Weights(lowmem::Error::MissingTensor { tensor, shape, nearest, .. })) = model else {
        panic!("not refused as missing")
    };
    assert_eq!((tensor.as_str(), shape.len()), (LAST, 2));
    assert!(nearest.contains(&"transformer.h.2.mlp.c_prj.weight".to_owned()), "{nearest:?}");
}

/// What a fine-tuned checkpoint holds besides: a classifier's head, a value head, a block too many.
const EXTRA: [&str; 4] =
    ["score.weight", "transformer.h.3.ln_1.weight", "v_head.summary.bias", "v_head.summary.weight"];

fn insert_extra(weights: &mut HashMap<String, Tensor>) {
    weights.extend(EXTRA.map(|name| (name.to_owned(), Tensor::from_slice(&[1.0_f32]))));
}

#[test]
fn extra_tensors_are_reported_and_change_nothing() {
    let (_folder, model) = changed(insert_extra);
    let model = model.unwrap();
    assert_eq!(model.report().extra, EXTRA);
    let (_folder, plain) = changed(|_| {});
    let plain = plain.unwrap();
    assert!(plain.report().extra.is_empty());
    let logits = |model: &Model| {
        let input = Input::from_rows(&[[3, 1, 4, 1, 5]]).unwrap();
        model.forward(&input, &mut NoObserver).unwrap().logits.unwrap()
    };
    assert!(logits(&model).equal(&logits(&plain)));
}

#[test]
fn extra_tensors_are_named_where_they_are_refused() {
    let folder = write_changed(insert_extra);
    let strict = LoadOptions::default().extra_tensors(ExtraTensors::Refuse);
    let model = Model::open(&Checkpoint::open(folder.path()).unwrap(), &strict);
    let Err(Error::Weights(lowmem::Error::ExtraTensors { tensors, .. })) = model else {
        panic!("not refused as extra")
    };
    assert_eq!(tensors, EXTRA);
}

#[test]
fn a_checkpoint_of_other_names_is_no_model_with_extra_tensors() {
    let (_folder, model) = changed(|weights| {
        *weights =
            weights.drain().map(|(name, tensor)| (name.replace("transformer.h", "gpt.layers"), tensor)).collect();
    });
    let Err(Error::Weights(lowmem::Error::MissingTensor { tensor, nearest, .. })) = model else {
        panic!("not refused as missing")
    };
    assert!(tensor.starts_with("transformer.h.0."), "{tensor}");
    assert!(!nearest.is_empty());
}

#[test]
fn a_misshapen_tensor_is_named_with_both_shapes() {
    let (_folder, model) = changed(|weights| {
        let turned = weights[LAST].transpose(0, 1).contiguous();
        weights.insert(LAST.into(), turned);
    });
    let Err(Error::Weights(lowmem::Error::Misshapen { tensor, expected, found, .. })) = model else {
        panic!("not refused as misshapen")
    };
    assert_eq!((tensor.as_str(), expected[0], expected[1]), (LAST, found[1], found[0]));
}

#[test]
fn an_untied_head_must_be_there() {
    let case = cases().into_iter().find(|case| case.name == "gpt2_plain").unwrap();
    let folder = tempfile::tempdir().unwrap();
    fs::copy(case.folder.join("model.safetensors"), folder.path().join("model.safetensors")).unwrap();
    let config = fs::read_to_string(case.folder.join("config.json")).unwrap();
    let untied = config.replace("\"tie_word_embeddings\": true", "\"tie_word_embeddings\": false");
    assert_ne!(config, untied);
    fs::write(folder.path().join("config.json"), untied).unwrap();
    let error = open(folder.path()).err().unwrap().to_string();
    assert!(error.contains("lm_head.weight") && error.contains("missing"), "{error}");
}

#[test]
fn both_matrices_of_a_tied_model_are_compared() {
    let pair = vec![("lm_head.weight".to_owned(), "transformer.wte.weight".to_owned())];
    let both: Vec<_> = cases().into_iter().filter(|case| case.name.contains("_both_")).collect();
    assert_eq!(both.len(), 8);
    for case in both {
        let model = case.model(&LoadOptions::default());
        let (report, tied) = (model.report(), case.name.ends_with("_equal"));
        assert!(model.architecture().head.tied, "{}", case.name);
        assert_eq!((report.tied == pair, report.untied == pair), (tied, !tied), "{}: {report:?}", case.name);
        // One matrix or two, also for somebody who trains it.
        let weights = model.trainable(0..model.parts().len()).unwrap();
        let matrices = weights.iter().filter(|(name, _)| name.ends_with("wte.weight") || name == "lm_head.weight");
        assert_eq!(matrices.count(), if tied { 1 } else { 2 }, "{}", case.name);
    }
}

#[test]
fn a_config_with_more_layers_than_the_checkpoint_names_the_first_that_is_missing() {
    let case = cases().into_iter().find(|case| case.name == "gpt2_plain").unwrap();
    let folder = tempfile::tempdir().unwrap();
    fs::copy(case.folder.join("model.safetensors"), folder.path().join("model.safetensors")).unwrap();
    let config = fs::read_to_string(case.folder.join("config.json")).unwrap();
    for layers in ["4", "4096"] {
        let more = config.replace("\"n_layer\": 3", &format!("\"n_layer\": {layers}"));
        assert_ne!(config, more);
        fs::write(folder.path().join("config.json"), more).unwrap();
        let error = open(folder.path()).err().unwrap();
        let Error::Weights(lowmem::Error::MissingTensor { tensor, .. }) = error else { panic!("{error}") };
        assert_eq!(tensor, "transformer.h.3.ln_1.weight");
    }
}

#[test]
fn configs_that_fit_nothing_say_why() {
    let refused = |json: &str| Config::from_json(json).unwrap_err().to_string();
    let unknown = refused(r#"{"model_type": "bert"}"#);
    assert!(unknown.contains("bert") && unknown.contains("gpt2, gpt_neo, llama"), "{unknown}");
    assert!(refused("{").contains("config.json"));
    assert!(refused("{}").contains("model_type"));
    assert!(refused(r#"{"model_type": "gpt2", "n_embd": 10, "n_head": 3}"#).contains("multiple"));
    assert!(refused(r#"{"model_type": "gpt2", "n_layer": 0}"#).contains("layers"));
    assert!(refused(r#"{"model_type": "gpt2", "activation_function": "cubic"}"#).contains("gelu_new"));
    assert!(refused(r#"{"model_type": "gpt2", "add_cross_attention": true}"#).contains("add_cross_attention"));
    assert!(refused(r#"{"model_type": "gpt_neo", "num_layers": 3}"#).contains("24 layers"));
    let sparse = r#"{"model_type": "gpt_neo", "num_layers": 1, "attention_types": [[["sparse"], 1]]}"#;
    assert!(refused(sparse).contains("global, local"));
    assert!(refused(r#"{"model_type": "gpt2", "vocab_size": -5}"#).contains("-5"));
}
