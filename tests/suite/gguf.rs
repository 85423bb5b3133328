//! Models in GGUF files against the same models as Hugging Face has them: `tests/golden/gguf_models.py`.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use transformer_utils::{
    lowmem::{Checkpoint, Dtype, DtypeChoice, LoadOptions, Residency},
    models::{Config, Error, Input, KvCache, Model, NoObserver},
    tch::{self, Tensor},
};

const RESIDENCIES: [Residency; 2] = [Residency::Resident, Residency::Streamed];

fn folders() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/gguf_models");
    let mut folders: Vec<PathBuf> = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    assert!(folders.len() >= 16, "{folders:?}");
    folders
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let files = ["f32.gguf", "mixed.gguf"].map(|name| folder.join(name));
    files.into_iter().filter(|file| file.is_file()).collect()
}

fn options(residency: Residency) -> LoadOptions {
    let dtype = DtypeChoice::Fixed(Dtype::F32);
    let mut options = LoadOptions::default();
    (options.residency, options.dtype) = (residency, dtype);
    options
}

/// Every tensor of a model by its name.
fn weights(model: &Model) -> BTreeMap<String, Tensor> {
    let parts = model.parts();
    let mut weights = BTreeMap::new();
    for part in 0..parts.len() {
        let names: Vec<String> = parts.names(part).unwrap().into_iter().map(str::to_owned).collect();
        weights.extend(names.into_iter().zip(parts.get(part, None).unwrap()));
    }
    weights
}

fn logits(model: &Model, ids: &[i64]) -> Tensor {
    model.forward(&Input::from_rows(&[ids]).unwrap(), &mut NoObserver).unwrap().logits.unwrap()
}

#[test]
fn every_weight_and_logit_is_that_of_the_model_as_hugging_face_has_it() {
    for folder in folders() {
        let ours = Model::open(&Checkpoint::open(folder.join("model.safetensors")).unwrap(), &options(Residency::Auto));
        let ours = ours.unwrap();
        let ids: Vec<i64> = (0..20).map(|token| (token * 7 + 3) % 40).collect();
        let expected = (weights(&ours), logits(&ours, &ids));
        for file in files(&folder) {
            for residency in RESIDENCIES {
                let model = Model::open(&Checkpoint::open(&file).unwrap(), &options(residency)).unwrap();
                let report = model.report();
                assert!(report.extra.is_empty(), "{}: {:?}", file.display(), report.extra);
                let separate = |name: &String| name.contains("experts.gate_proj") || name.contains("experts.up_proj");
                for (name, tensor) in weights(&model).iter().filter(|(name, _)| !separate(name)) {
                    let name =
                        if expected.0.contains_key(name) { name.clone() } else { panic!("{} {name}", file.display()) };
                    assert!(tensor.equal(&expected.0[&name]), "{} {name}", file.display());
                }
                let found = logits(&model, &ids);
                let error = crate::support::relative_error(&found, &expected.1);
                assert!(error < 2e-6, "{}: logits {error:.1e}", file.display());
            }
        }
    }
}

/// Logits of the ids one by one, each after those before it, `[1, position, vocabulary]`.
fn logits_one_by_one(model: &Model, ids: &[i64]) -> Tensor {
    let mut cache = KvCache::new();
    let step = |id: &i64| {
        let input = Input::from_rows(&[[*id]]).unwrap();
        model.forward_cached(&input, &mut cache, &mut NoObserver).unwrap().logits.unwrap()
    };
    Tensor::cat(&ids.iter().map(step).collect::<Vec<_>>(), 1)
}

#[test]
fn single_tokens_are_multiplied_in_the_blocks_of_the_file() {
    // So many that no family rotates keys otherwise for a longer text.
    let ids: Vec<i64> = (0..8).map(|token| (token * 7 + 3) % 40).collect();
    let mut packing = 0;
    for file in folders().iter().flat_map(|folder| files(folder)) {
        for residency in RESIDENCIES {
            let model = Model::open(&Checkpoint::open(&file).unwrap(), &options(residency)).unwrap();
            let found = logits_one_by_one(&model, &ids);
            let error = crate::support::relative_error(&found, &logits(&model, &ids));
            assert!(error < 1e-5, "{}: {error:.1e}", file.display());
            packing += usize::from(model.parts().can_pack());
        }
    }
    assert!(packing >= 16, "{packing}");
    // What is not in blocks is placed once.
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/gguf_models/llama/mixed.gguf");
    let model = Model::open(&Checkpoint::open(file).unwrap(), &options(Residency::Streamed)).unwrap();
    let _ = logits_one_by_one(&model, &ids[..1]);
    let placed = model.report().tensors_placed;
    let _ = logits_one_by_one(&model, &ids);
    assert_eq!(model.report().tensors_placed, placed);
    assert!(placed < model.report().tensors / 2, "{:?}", model.report());
    let whole: u64 = weights(&model).values().map(|tensor| tensor.numel() as u64 * 4).sum();
    assert!(model.report().bytes_read < whole, "{:?}", model.report());
}

#[test]
fn what_training_changed_is_not_read_from_the_file() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/gguf_models/llama/mixed.gguf");
    let model = Model::open(&Checkpoint::open(file).unwrap(), &options(Residency::Resident)).unwrap();
    assert!(model.parts().can_pack());
    let before = logits(&model, &[7]);
    let leaves = model.trainable([model.block_part(0)]).unwrap();
    tch::no_grad(|| leaves.iter().for_each(|(_, leaf)| drop(leaf.shallow_clone().fill_(0.01))));
    // Two rows are not multiplied in blocks.
    let pair = |ids: &[[i64; 1]; 2]| model.forward(&Input::from_rows(ids).unwrap(), &mut NoObserver).unwrap();
    let (alone, among) = (logits(&model, &[7]), pair(&[[7], [7]]).logits.unwrap().narrow(0, 0, 1));
    assert!(crate::support::relative_error(&alone, &among) < 1e-5);
    assert!(crate::support::relative_error(&alone, &before) > 1e-3);
    // Gradients come through matrices of later blocks, which are still those of the file.
    alone.sum(tch::Kind::Float).backward();
    // A single token's pattern does not depend on its query and key.
    let moves = |name: &str| !name.contains("q_proj") && !name.contains("k_proj");
    for (name, leaf) in leaves.iter().filter(|(name, _)| moves(name)) {
        assert!(leaf.grad().defined() && leaf.grad().abs().max().double_value(&[]) > 0.0, "{name}");
    }
}

/// A little-endian GGUF file of these keys and values and one tensor, the token embedding.
pub(crate) fn gguf_with(entries: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let text = |text: &str| [(text.len() as u64).to_le_bytes().to_vec(), text.as_bytes().to_vec()].concat();
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(3_u32.to_le_bytes());
    bytes.extend(1_u64.to_le_bytes());
    bytes.extend((entries.len() as u64).to_le_bytes());
    for (key, value) in entries {
        bytes.extend(text(key));
        bytes.extend(value);
    }
    bytes.extend(text("token_embd.weight"));
    bytes.extend(2_u32.to_le_bytes());
    for size in [8_u64, 5] {
        bytes.extend(size.to_le_bytes());
    }
    bytes.extend(0_u32.to_le_bytes());
    bytes.extend(0_u64.to_le_bytes());
    bytes.resize(bytes.len().next_multiple_of(32) + 8 * 5 * 4, 0);
    bytes
}

pub(crate) fn string(value: &str) -> Vec<u8> {
    [8_u32.to_le_bytes().to_vec(), (value.len() as u64).to_le_bytes().to_vec(), value.as_bytes().to_vec()].concat()
}

pub(crate) fn number(value: u32) -> Vec<u8> {
    [4_u32.to_le_bytes(), value.to_le_bytes()].concat()
}

pub(crate) fn numbers(values: &[u32]) -> Vec<u8> {
    let mut bytes = [9_u32.to_le_bytes(), 4_u32.to_le_bytes()].concat();
    bytes.extend((values.len() as u64).to_le_bytes());
    values.iter().for_each(|value| bytes.extend(value.to_le_bytes()));
    bytes
}

pub(crate) fn strings(values: &[String]) -> Vec<u8> {
    let mut bytes = [9_u32.to_le_bytes(), 8_u32.to_le_bytes()].concat();
    bytes.extend((values.len() as u64).to_le_bytes());
    values.iter().for_each(|value| bytes.extend(&string(value)[4..]));
    bytes
}

fn config(entries: &[(&str, Vec<u8>)]) -> Result<Config, Error> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    fs::write(&path, gguf_with(entries)).unwrap();
    Config::of(&Checkpoint::open(&path).unwrap())
}

/// The keys of a small Llama, and more.
fn llama(more: &[(&'static str, Vec<u8>)]) -> Vec<(&'static str, Vec<u8>)> {
    let mut entries = vec![
        ("general.architecture", string("llama")),
        ("llama.block_count", number(2)),
        ("llama.context_length", number(64)),
        ("llama.embedding_length", number(8)),
        ("llama.feed_forward_length", number(16)),
        ("llama.attention.head_count", number(2)),
    ];
    entries.extend(more.iter().cloned());
    entries
}

#[test]
fn settings_come_from_the_metadata() {
    let read = config(&llama(&[
        ("llama.attention.head_count_kv", numbers(&[1, 1])),
        ("tokenizer.ggml.eos_token_id", number(3)),
        ("tokenizer.ggml.eot_token_id", number(4)),
    ]))
    .unwrap();
    let architecture = &read.architecture;
    assert_eq!((architecture.vocabulary, architecture.context, architecture.d_model), (5, 64, 8));
    assert_eq!((read.layers(), architecture.layers[1].attention.kv_heads), (2, 1));
    assert!(architecture.head.tied);
    assert_eq!(read.end_tokens, [3, 4]);
}

#[test]
fn what_cannot_be_run_is_refused_by_name() {
    let other = config(&[("general.architecture", string("mamba"))]).unwrap_err();
    assert!(matches!(&other, Error::UnsupportedGguf { found, .. } if found == "mamba"), "{other}");
    assert!(other.to_string().contains("llama") && other.to_string().contains("gpt-oss"), "{other}");
    let experts = [("general.architecture", string("qwen3")), ("qwen3.expert_count", number(4))];
    let experts = config(&experts).unwrap_err();
    assert!(experts.to_string().contains("qwen3 with experts"), "{experts}");
    let none = config(&[("general.name", string("nobody"))]).unwrap_err();
    assert!(none.to_string().contains("general.architecture"), "{none}");
    let uneven = config(&llama(&[("llama.attention.head_count_kv", numbers(&[1, 2]))])).unwrap_err();
    assert!(uneven.to_string().contains("llama.attention.head_count_kv"), "{uneven}");
    let scaled = config(&llama(&[("llama.rope.scaling.type", string("spiral"))])).unwrap_err();
    assert!(scaled.to_string().contains("spiral"), "{scaled}");
    let mut text = llama(&[]);
    text[1].1 = string("two");
    let text = config(&text).unwrap_err();
    assert!(text.to_string().contains("llama.block_count"), "{text}");
    let missing = config(&llama(&[])[..5]).unwrap_err();
    assert!(missing.to_string().contains("llama.attention.head_count"), "{missing}");
}

#[test]
fn numbers_that_lie_there_as_they_are_can_be_mapped() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/gguf_models/llama");
    let mapped = Model::open(&Checkpoint::open(folder.join("f32.gguf")).unwrap(), &LoadOptions::default()).unwrap();
    assert_eq!(mapped.report().residency, Residency::Mapped);
    let ids = [1, 5, 9];
    let resident =
        Model::open(&Checkpoint::open(folder.join("f32.gguf")).unwrap(), &options(Residency::Resident)).unwrap();
    assert!(logits(&mapped, &ids).equal(&logits(&resident, &ids)));
    // Rows of queries and keys stand in another order there, and are the only ones that are copied.
    let attention = &mapped.architecture().layers[0].attention;
    let rows = (attention.query_width() + attention.key_width()) * mapped.architecture().d_model;
    assert_eq!(mapped.report().bytes_allocated, (rows * 4 * mapped.config().layers() as i64) as u64);
    let packed = Checkpoint::open(folder.join("mixed.gguf")).unwrap();
    assert!(Model::open(&packed, &options(Residency::Mapped)).is_err());
    let auto = Model::open(&packed, &LoadOptions::default()).unwrap();
    assert_eq!(auto.report().residency, Residency::Resident);
    assert!(auto.report().reason.contains("the file holds Q"), "{}", auto.report().reason);
}

#[test]
fn a_folder_with_one_model_in_gguf_is_that_model() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/gguf_models/gpt2");
    let folder = tempfile::tempdir().unwrap();
    fs::copy(golden.join("f32.gguf"), folder.path().join("gpt2.gguf")).unwrap();
    assert!(Checkpoint::open(folder.path()).unwrap().gguf().is_some());
    fs::copy(golden.join("mixed.gguf"), folder.path().join("other.gguf")).unwrap();
    // Which of two is meant, nobody can know.
    assert!(Checkpoint::open(folder.path()).is_err());
}
