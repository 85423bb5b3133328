//! Libtorch has one generator for the whole process, so this test is a program of its own.
#![allow(missing_docs, clippy::unwrap_used)]

use models::{Config, Model};
use tch::{Device, Kind, Tensor};

#[test]
fn random_weights_neither_use_nor_change_libtorch_s_generator() {
    let config = || Config::from_json(r#"{"model_type": "gpt2", "n_layer": 1, "n_head": 2, "n_embd": 8}"#).unwrap();
    let draw = || Tensor::rand([16], (Kind::Float, Device::Cpu));
    let weights = |model: &Model| model.unembedding().unwrap().weight().copy();

    tch::manual_seed(1);
    let expected = draw();
    tch::manual_seed(1);
    let first = weights(&Model::random(config(), 7).unwrap());
    assert!(draw().equal(&expected));
    // Wherever the generator stands by now.
    assert!(weights(&Model::random(config(), 7).unwrap()).equal(&first));
}
