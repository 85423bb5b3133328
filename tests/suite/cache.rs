//! What may be done with a KV cache, and what is refused before anything runs.

use transformer_utils::{
    lowmem::{Dtype, DtypeChoice, LoadOptions, Residency},
    models::{Config, Error, Input, KvCache, Model, NoObserver, Point, Site},
    partial::{self, Run, partial_forward},
    tch::Tensor,
};

use crate::support::{cases, relative_error};

fn plain(dtype: Dtype) -> Model {
    let case = cases().into_iter().find(|case| case.name == "gpt2_plain").unwrap();
    let dtype = DtypeChoice::Fixed(dtype);
    case.model(&LoadOptions::default().dtype(dtype).residency(Residency::Resident))
}

fn random(layers: usize, heads: usize, width: usize) -> Model {
    let sizes = format!(r#""n_layer": {layers}, "n_head": {heads}, "n_embd": {width}, "vocab_size": 61"#);
    Model::random(Config::from_json(&format!(r#"{{"model_type": "gpt2", {sizes}}}"#)).unwrap(), 0).unwrap()
}

fn input() -> Input {
    Input::from_rows(&[[1, 2, 3, 4]]).unwrap()
}

fn cached(model: &Model, input: &Input, cache: &mut KvCache) -> Result<Tensor, Error> {
    Ok(model.forward_cached(input, cache, &mut NoObserver)?.logits.unwrap())
}

fn stream(model: &Model, site: Site) -> Input {
    let name = site.to_string();
    let output = partial_forward(model, &[&name], input()).unwrap();
    Input::stream(site, output.get(&name).unwrap().shallow_clone())
}

#[test]
fn a_start_in_the_middle_is_refused_and_leaves_the_cache_as_it_was() {
    let model = plain(Dtype::F32);
    for site in [Site::block(0, Point::ResidMid), Site::before_block(1), Site::before_block(3)] {
        let mut cache = KvCache::new();
        let middle = stream(&model, site);
        let error = cached(&model, &middle, &mut cache).unwrap_err();
        assert!(matches!(&error, Error::CachedStart { site: said } if *said == site.to_string()), "{error}");
        let run = Run::new(&model, &["lm_head"]).unwrap().run_cached(&middle, &mut cache).unwrap_err();
        assert!(matches!(run, partial::Error::Model(Error::CachedStart { .. })), "{run}");
        assert!(cache.is_empty());
        // And with positions in it.
        drop(cached(&model, &input(), &mut cache).unwrap());
        assert!(matches!(cached(&model, &middle, &mut cache), Err(Error::CachedStart { .. })));
        assert_eq!(cache.len(), 4);
    }
}

#[test]
fn a_stream_at_the_input_fills_every_block() {
    let model = plain(Dtype::F32);
    let expected = model.forward(&Input::from_rows(&[[1, 2, 3, 4, 5]]).unwrap(), &mut NoObserver);
    let expected = expected.unwrap().logits.unwrap().narrow(1, 4, 1);
    let mut cache = KvCache::new();
    drop(cached(&model, &stream(&model, Site::INPUT), &mut cache).unwrap());
    let last = cached(&model, &Input::from_rows(&[[5]]).unwrap(), &mut cache).unwrap();
    assert!(relative_error(&last, &expected) < 1e-5);
}

#[test]
fn a_cache_of_another_model_or_batch_is_refused() {
    let model = random(2, 2, 12);
    let mut cache = KvCache::new();
    drop(cached(&model, &input(), &mut cache).unwrap());
    let before = cache.layout().unwrap();
    for other in [random(3, 2, 12), random(2, 3, 12), random(2, 2, 16), plain(Dtype::Bf16)] {
        let error = cached(&other, &input(), &mut cache).unwrap_err();
        let Error::CacheMismatch { expected, found } = error else { panic!("{error}") };
        assert_eq!(found, before);
        assert_ne!(expected, before);
        let heads = other.architecture().layers[0].attention.kv_heads;
        assert_eq!((expected.layers, expected.heads), (other.config().layers(), heads));
    }
    let batch = Input::from_rows(&[[1], [2]]).unwrap();
    assert!(matches!(cached(&model, &batch, &mut cache), Err(Error::CacheMismatch { .. })));
    assert_eq!(cache.len(), 4);
    drop(cached(&model, &input(), &mut cache).unwrap());
    assert_eq!(cache.len(), 8);
}
