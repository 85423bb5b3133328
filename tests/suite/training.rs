//! Training on activations: what learns, what stays as it is, what is saved.

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    path::{Path, PathBuf},
};

use clap::Parser;
use transformer_utils::{
    lowmem::{Checkpoint, LoadOptions, Residency, save_safetensors},
    models::{Config, Model},
    partial::{AdamW, AdamWOptions},
    tch::{Device, Tensor},
};

use crate::classify::{
    self, Outcome, TrainingFlags,
    data::{self, Batch, Example},
    head::{Head, HeadShape, Pooling},
    training::{BagOfTokens, Classifier, Scores, Settings, accuracy, feature_width, predictions},
};

const WORDS: [&str; 10] = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"];
const CONFIG: &str = r#"{"model_type": "gpt2", "n_layer": 3, "n_head": 2, "n_embd": 16, "vocab_size": 12, "n_positions": 24,
    "initializer_range": 0.3}"#;

#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    training: TrainingFlags,
}

/// A folder with a random model, a tokenizer of ten words, and texts: words in order, or some of them out of it.
struct Fixture {
    folder: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        let fixture = Self { folder: tempfile::tempdir().unwrap() };
        let model = Model::random(config(), 1).unwrap();
        let mut tensors = model.trainable(0..model.parts().len()).unwrap();
        tensors.sort_by(|(left, _), (right, _)| left.cmp(right));
        save_safetensors(&fixture.path("model.safetensors"), &tensors).unwrap();
        fs::write(fixture.path("config.json"), CONFIG).unwrap();
        let vocabulary: BTreeMap<&str, usize> = WORDS.iter().enumerate().map(|(id, word)| (*word, id + 1)).collect();
        let tokenizer = serde_json::json!({
            "version": "1.0",
            "pre_tokenizer": {"type": "WhitespaceSplit"},
            "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "one"},
        });
        fs::write(fixture.path("tokenizer.json"), tokenizer.to_string()).unwrap();
        for (name, range) in [("train.tsv", 0..48), ("held-out.tsv", 48..64)] {
            let line = |(label, words): (&str, Vec<usize>)| {
                let words: Vec<&str> = words.into_iter().map(|word| WORDS[word - 1]).collect();
                format!("{label}\t{}\n", words.join(" "))
            };
            let text: String = range.flat_map(pair).map(line).collect();
            fs::write(fixture.path(name), text).unwrap();
        }
        fixture
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn run(&self, base_learning_rate: Option<f64>, flags: &[&str]) -> Outcome {
        let folder = self.folder.path().to_str().unwrap();
        let common = ["program", "--device", "cpu", "--model", folder, "--data", folder];
        let flags = Flags::parse_from(common.iter().chain(flags));
        classify::run(&flags.training, base_learning_rate).unwrap()
    }
}

fn config() -> Config {
    Config::from_json(CONFIG).unwrap()
}

/// Words 1 to 10: some that follow each other, and the same with two neighbours swapped.
fn pair(index: usize) -> [(&'static str, Vec<usize>); 2] {
    let (start, length) = (1 + index % 4, 4 + index % 3);
    let natural: Vec<usize> = (start..start + length).collect();
    let mut disturbed = natural.clone();
    let place = 1 + index % (length - 2);
    disturbed.swap(place, place + 1);
    [("natural", natural), ("disturbed", disturbed)]
}

fn examples() -> Vec<Example> {
    let example = |(label, words): (&str, Vec<usize>)| Example {
        label: i64::from(label == "natural"),
        ids: words.into_iter().map(|word| word as i64).collect(),
    };
    (0..24).flat_map(pair).map(example).collect()
}

fn head(model: &Model, names: &[&str], pooling: Pooling) -> Head {
    let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    let features = feature_width(model, &names).unwrap();
    let labels = vec!["disturbed".to_owned(), "natural".to_owned()];
    Head::new(HeadShape { names, features, hidden: 24, pooling, labels }, 3, Device::Cpu).unwrap()
}

fn settings() -> Settings {
    Settings { epochs: 2, batch: 8, learning_rate: 3e-3, base_learning_rate: 3e-3, weight_decay: 0.01, seed: 0 }
}

fn bytes(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap()
}

const FROZEN: Option<f64> = None;
const TRAINED: Option<f64> = Some(3e-3);

#[test]
fn the_loss_falls_and_what_is_saved_gives_the_same_accuracy() {
    let fixture = Fixture::new();
    let untouched = bytes(&fixture.path("model.safetensors"));
    for (name, base) in [("frozen", FROZEN), ("trained", TRAINED)] {
        for pooling in ["mean", "attention"] {
            let out = fixture.path(&format!("{name}-{pooling}"));
            let out = out.to_str().unwrap();
            let short = ["--epochs", "3", "--batch", "8", "--hidden", "32", "--learning-rate", "5e-3"];
            let flags = ["--residency", "mapped", "--pooling", pooling, "--out", out];
            let trained = fixture.run(base, &[&short[..], &flags].concat());
            let (first, last) = (trained.losses[0], trained.losses[2]);
            assert!(last < first, "{name} {pooling}: the loss went from {first} to {last}");
            assert_eq!(Path::new(out).join("base.safetensors").is_file(), base != FROZEN);
            // What is needed to evaluate is in the folder, whichever program reads it.
            for base in [FROZEN, TRAINED] {
                let evaluated = fixture.run(base, &["--evaluate", out]);
                assert_eq!(evaluated.accuracies[0], trained.accuracies[2], "{name} {pooling}");
            }
        }
    }
    assert!(untouched == bytes(&fixture.path("model.safetensors")), "training wrote into the checkpoint");
}

#[test]
fn the_same_seed_trains_the_same_head() {
    let fixture = Fixture::new();
    let flags = ["--epochs", "2", "--batch", "8", "--hidden", "32", "--seed", "5"];
    assert_eq!(fixture.run(TRAINED, &flags), fixture.run(TRAINED, &flags));
}

#[test]
fn a_reloaded_head_gives_identical_scores() {
    let model = Model::random(config(), 2).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("head.safetensors");
    for pooling in [Pooling::Mean, Pooling::Attention] {
        let classifier = Classifier::new(&model, head(&model, &["h.0", "h.1.attn.c_attn"], pooling)).unwrap();
        classifier.fit(&examples(), &settings(), |_, _| Ok(())).unwrap();
        classifier.head.save(&path).unwrap();
        let loaded = Head::load(classifier.head.shape().clone(), &path, Device::Cpu).unwrap();
        let loaded = Classifier::new(&model, loaded).unwrap();
        let examples = examples();
        let batch = Batch::new(&examples.iter().collect::<Vec<_>>(), Device::Cpu).unwrap();
        assert!(classifier.scores(&batch).unwrap().equal(&loaded.scores(&batch).unwrap()), "{pooling:?}");
        assert_eq!(predictions(&classifier, &examples, 8).unwrap(), predictions(&loaded, &examples, 5).unwrap());
    }
}

#[test]
fn only_the_layers_in_use_are_trained() {
    let fixture = Fixture::new();
    let untouched = bytes(&fixture.path("model.safetensors"));
    let options = LoadOptions::default().residency(Residency::Mapped);
    let model = Model::open(&Checkpoint::open(fixture.folder.path()).unwrap(), &options).unwrap();
    let mut classifier = Classifier::new(&model, head(&model, &["h.0", "h.1.resid_mid"], Pooling::Mean)).unwrap();
    classifier.unfreeze().unwrap();
    let trained: HashSet<&str> = classifier.base.iter().map(|(name, _)| name.as_str()).collect();
    let expected: Vec<String> = Model::tensor_shapes(model.config())
        .unwrap()
        .into_iter()
        .map(|(name, _)| name)
        .filter(|name| {
            ["wte", "wpe", "h.0", "h.1"].iter().any(|part| name.starts_with(&format!("transformer.{part}.")))
        })
        .collect();
    assert_eq!(trained, expected.iter().map(String::as_str).collect());

    let before: Vec<Tensor> = classifier.base.iter().map(|(_, tensor)| tensor.detach().copy()).collect();
    classifier.fit(&examples(), &settings(), |_, _| Ok(())).unwrap();
    // The optimizer holds these and the head's four, nothing else.
    let optimizer = classifier.optimizer(&settings()).unwrap();
    let held: Vec<Tensor> = optimizer.tensors().map(|(_, tensor)| tensor.shallow_clone()).collect();
    let expected = classifier.head.tensors().into_iter().map(|(_, tensor)| tensor);
    let expected = expected.chain(classifier.base.iter().map(|(_, tensor)| tensor.shallow_clone()));
    let addresses =
        |tensors: &mut dyn Iterator<Item = Tensor>| tensors.map(|tensor| tensor.data_ptr() as usize).collect();
    let (held, expected): (HashSet<usize>, HashSet<usize>) =
        (addresses(&mut held.into_iter()), addresses(&mut expected.into_iter()));
    assert_eq!(held, expected);
    // The last name stands before the second block's MLP.
    let reached = |name: &str| !(name.contains("h.1.ln_2") || name.contains("h.1.mlp"));
    for ((name, after), before) in classifier.base.iter().zip(&before) {
        assert_eq!(after.grad().defined(), reached(name), "{name}");
        // The bias of the keys moves all scores of a query alike, so its gradient is rounding; it may stay as it was.
        assert!(!(reached(name) && after.equal(before)), "{name} did not change");
    }
    for part in [3, 4] {
        for tensor in model.parts().get(part, None).unwrap() {
            assert!(!tensor.requires_grad());
        }
    }
    assert!(untouched == bytes(&fixture.path("model.safetensors")), "training wrote into the checkpoint");
}

#[test]
fn frozen_layers_are_not_recorded() {
    let model = Model::random(config(), 2).unwrap();
    let classifier = Classifier::new(&model, head(&model, &["h.1"], Pooling::Mean)).unwrap();
    let ids = Tensor::from_slice(&[1_i64, 2, 3]).view([1, 3]);
    let features = classifier.features(&ids).unwrap();
    assert_eq!((features.size(), features.requires_grad()), (vec![1, 3, 16], false));
    let weights = model.trainable(0..model.parts().len()).unwrap();
    assert!(!classifier.features(&ids).unwrap().requires_grad());
    assert!(weights.iter().all(|(_, weight)| !weight.grad().defined()));
}

#[test]
fn what_was_trainable_can_be_frozen_again_as_it_is() {
    let model = Model::random(config(), 2).unwrap();
    let clean = model.logits([1, 2, 3]).unwrap();
    let leaves = model.trainable(0..model.parts().len()).unwrap();
    model.logits([1, 2, 3]).unwrap().sum(None).backward();
    let mut optimizer = AdamW::new(leaves, AdamWOptions::default().learning_rate(0.1)).unwrap();
    optimizer.step().unwrap();
    let trained = model.logits([1, 2, 3]).unwrap();
    model.freeze([model.block_part(0), model.block_part(1)]).unwrap();
    assert!(model.logits([1, 2, 3]).unwrap().requires_grad());
    model.freeze(0..model.parts().len()).unwrap();
    let frozen = model.logits([1, 2, 3]).unwrap();
    assert!(trained.requires_grad() && !frozen.requires_grad());
    // Products that gradients come back to are libtorch's own, others may be another library's.
    let apart = |other: &Tensor| (&frozen - other).abs().max().double_value(&[]);
    assert!(apart(&trained) < 1e-5 && apart(&clean) > 1e-2, "{} {}", apart(&trained), apart(&clean));
    // And the other way round, as often as one likes.
    assert!(model.trainable([0]).unwrap().iter().all(|(_, leaf)| leaf.requires_grad()));
    assert!(model.logits([1, 2, 3]).unwrap().requires_grad());
}

#[test]
fn padding_changes_no_score() {
    let model = Model::random(config(), 2).unwrap();
    let examples = examples();
    for pooling in [Pooling::Mean, Pooling::Attention] {
        let classifier = Classifier::new(&model, head(&model, &["h.0", "h.2"], pooling)).unwrap();
        let scores = |examples: &[&Example]| classifier.scores(&Batch::new(examples, Device::Cpu).unwrap()).unwrap();
        let together = scores(&examples.iter().collect::<Vec<_>>());
        for (index, example) in examples.iter().enumerate() {
            let difference = (scores(&[example]) - together.narrow(0, index as i64, 1)).abs().max().double_value(&[]);
            assert!(difference < 1e-5, "{pooling:?} {index}: {difference}");
        }
    }
}

#[test]
fn a_bag_of_tokens_cannot_tell_order() {
    let bag = BagOfTokens::new(12, 2, Device::Cpu).unwrap();
    let examples = examples();
    bag.fit(&examples, &settings()).unwrap();
    assert_eq!(accuracy(&bag, &examples, 8).unwrap(), 0.5);
}

#[test]
fn a_bag_of_tokens_learns_what_words_tell() {
    let bag = BagOfTokens::new(12, 2, Device::Cpu).unwrap();
    let examples: Vec<Example> =
        (0..40).map(|index| Example { label: index % 2, ids: vec![3 + index % 2, 5, 7] }).collect();
    bag.fit(&examples, &settings()).unwrap();
    assert_eq!(accuracy(&bag, &examples, 8).unwrap(), 1.0);
}

#[test]
fn features_have_one_value_for_each_token() {
    let model = Model::random(config(), 2).unwrap();
    let width = |name: &str| feature_width(&model, &[name.to_owned()]);
    assert_eq!(width("h.0.attn.c_attn").unwrap(), 48);
    for (name, says) in [("h.0.attn.pattern", "query"), ("wpe", "1 or batch"), ("h.3", "3 blocks")] {
        let error = width(name).unwrap_err().to_string();
        assert!(error.contains(says), "{name}: {error}");
    }
}

#[test]
fn bad_texts_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("train.tsv");
    for (text, says) in [("natural\tone\nnatural one\n", "line 2: no tab"), ("\tone\n", "line 1"), ("", "no texts")] {
        fs::write(&path, text).unwrap();
        let error = format!("{:#}", data::read(&path).unwrap_err());
        assert!(error.contains(says), "{error}");
    }
    let read = [("natural".to_owned(), "one".to_owned()), ("odd".to_owned(), "two".to_owned())];
    let encode = |positions| data::encode(&read, &["natural".to_owned()], positions, |_| Ok(vec![1, 2]));
    assert!(format!("{:#}", encode(8).unwrap_err()).contains("text 2: label \"odd\""));
    assert!(format!("{:#}", encode(1).unwrap_err()).contains("text 1: 2 positions"));
}

#[test]
fn the_bundled_sentences_differ_in_nothing_but_order() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/word-order");
    let mut seen = HashSet::new();
    for file in ["train.tsv", "held-out.tsv"] {
        // How often each bag of words occurs under each label.
        let mut bags: BTreeMap<Vec<String>, [usize; 2]> = BTreeMap::new();
        for (label, text) in data::read(&folder.join(file)).unwrap() {
            assert!(seen.insert(text.clone()), "{file}: {text} occurs twice");
            let mut words: Vec<String> = text.split(' ').map(str::to_owned).collect();
            words.sort();
            bags.entry(words).or_default()[usize::from(label == "natural")] += 1;
        }
        for (words, [disturbed, natural]) in bags {
            assert_eq!(disturbed, natural, "{file}: {words:?}");
        }
    }
}
