//! The Jacobian lens against TransformerLens: what it fits, what its files say, and what is seen through it.

use std::{collections::HashMap, fs, path::Path};

use serde_json::{Map, Value, json};
use transformer_utils::{
    jacobian_lens,
    lens::{Error, JacobianFit, JacobianLens, Lens, LensOptions, Measure, RowOptions},
    lowmem::{Dtype, LoadOptions, Residency, bin_settings},
    models::Model,
    partial,
    tch::{Device, Kind, Tensor},
};

use crate::support::{self, Case, cases, relative_error};

const CASES: [&str; 4] = ["gpt2_plain", "llama_one_kv_head", "gemma2_softcaps", "gpt_neox_parallel"];

fn options(residency: Residency) -> LoadOptions {
    LoadOptions::default().dtype(Dtype::F32).residency(residency)
}

fn each(mut act: impl FnMut(&Case, &Path, &Model)) {
    let known = cases();
    for case in CASES.iter().filter_map(|name| known.iter().find(|case| case.name == *name)) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/jacobian_lens").join(&case.name);
        act(case, &folder, &case.model(&options(Residency::Auto)));
    }
}

fn plain() -> (Case, Model) {
    let case = cases().into_iter().find(|case| case.name == "gpt2_plain").unwrap();
    let model = case.model(&options(Residency::Auto));
    (case, model)
}

fn identity(layers: usize, d_model: i64) -> JacobianLens {
    let eye = |layer: usize| (format!("J.{layer}"), Tensor::eye(d_model, (Kind::Float, Device::Cpu)));
    JacobianLens::from_tensors(&Map::new(), (0..layers).map(eye).collect()).unwrap()
}

#[test]
fn a_fit_is_that_of_transformer_lens_and_so_are_its_files() {
    each(|case, folder, model| {
        let about: Value = serde_json::from_str(&fs::read_to_string(folder.join("case.json")).unwrap()).unwrap();
        let theirs = jacobian_lens::open(folder.join("lens.pt")).unwrap();
        theirs.check(model).unwrap();
        assert_eq!(theirs.texts(), about["used"].as_i64().unwrap());
        assert_eq!(theirs.metadata()["estimator"], "jacobian_lens");
        // The sums of a fit that is under way.
        let sums = jacobian_lens::open(folder.join("checkpoint.pt")).unwrap();
        sums.check(model).unwrap();
        for at_once in [1, 5, 100] {
            let skip = about["skip"].as_u64().unwrap() as usize;
            let mut fit = JacobianFit::new(model).unwrap().skip_first(skip).at_once(at_once);
            let counted = support::matrix(&about["prompts"]).iter().filter(|ids| fit.add(ids).unwrap()).count();
            assert_eq!((counted as i64, fit.texts()), (theirs.texts(), theirs.texts()));
            let ours = fit.finish().unwrap();
            ours.check(model).unwrap();
            assert_eq!(ours.layers().collect::<Vec<_>>(), theirs.layers().collect::<Vec<_>>());
            for layer in ours.layers() {
                for (what, other) in [("lens.pt", &theirs), ("checkpoint.pt", &sums)] {
                    let error = relative_error(ours.matrix(layer).unwrap(), other.matrix(layer).unwrap());
                    assert!(error < 1e-4, "{} {what} {layer}: {error:.1e}", case.name);
                }
            }
        }
        // What was read is written as it was, but for the order of the notes.
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lens.pt");
        jacobian_lens::save(&path, &theirs, Dtype::F32).unwrap();
        let again = jacobian_lens::open(&path).unwrap();
        assert_eq!(again.settings(), theirs.settings());
        for layer in theirs.layers() {
            assert_eq!(again.matrix(layer), theirs.matrix(layer));
        }
    });
}

#[test]
fn what_is_seen_through_it_is_what_transformer_lens_sees() {
    each(|case, folder, model| {
        let lens = jacobian_lens::open(folder.join("lens.pt")).unwrap();
        let expected = support::tensors(&folder.join("expected.safetensors"));
        let vocabulary = model.architecture().vocabulary as usize;
        let options = LensOptions::default().measures([Measure::Logits]).top_k(vocabulary);
        let through = Lens::new(model, options).unwrap().jacobian(&lens).unwrap();
        let table = through.table("test", &case.ids("single")[0], |id| id.to_string()).unwrap();
        assert_eq!(table.lens.as_deref(), Some("jacobian"));
        let blocks = (0..model.config().layers()).map(|block| format!("h.{block}"));
        assert!(table.rows.iter().map(|row| row.name.clone()).eq(blocks), "{}", case.name);
        for (layer, row) in lens.layers().zip(&table.rows) {
            let probabilities = expected[&format!("logits/{layer}")].softmax(-1, Kind::Double);
            for (position, cell) in row.top_k.as_ref().unwrap().iter().enumerate() {
                for token in cell {
                    let expected = probabilities.double_value(&[position as i64, token.id]);
                    assert!((token.prob - expected).abs() < 2e-5, "{} {layer} {position}: {token:?}", case.name);
                }
            }
        }
    });
}

#[test]
fn the_identity_is_the_logit_lens() {
    let (case, model) = plain();
    let ids = &case.ids("single")[0];
    let options = || LensOptions::default().measures([Measure::Kl]).rows(RowOptions::default().input(false));
    let lens = identity(2, 12);
    let through = Lens::new(&model, options()).unwrap().jacobian(&lens).unwrap();
    let plain = Lens::new(&model, options()).unwrap();
    let [through, plain] = [through, plain].map(|lens| lens.table("test", ids, |id| id.to_string()).unwrap());
    for (through, plain) in through.rows.iter().zip(&plain.rows) {
        for (one, two) in through.values[&Measure::Kl].iter().zip(&plain.values[&Measure::Kl]) {
            assert!((one - two).abs() < 1e-5, "{}: {one} {two}", plain.name);
        }
    }
}

#[test]
fn what_cannot_be_fitted_or_used_is_refused() {
    let (case, model) = plain();
    let streamed = case.model(&options(Residency::Streamed));
    let refused = JacobianFit::new(&streamed).err();
    assert!(matches!(refused, Some(Error::Run(partial::Error::StreamedGradient))));
    let mut fit = JacobianFit::new(&model).unwrap();
    assert!(!fit.add(&[1; 17]).unwrap());
    assert!(fit.add(&[1000; 18]).is_err());
    assert!(fit.finish().unwrap_err().to_string().contains("at least 18 tokens"));
    let problem = |lens: &JacobianLens| lens.check(&model).unwrap_err().to_string();
    assert!(problem(&identity(2, 8)).contains("width 8"));
    assert!(problem(&identity(3, 12)).contains("block 2"));
    assert!(problem(&identity(2, 12).with_note("target_layer", 1)).contains("block 1"));
    assert!(problem(&identity(2, 12).with_note("estimator", "other")).contains("other"));
    let through = |lens: &JacobianLens, options: LensOptions| {
        Lens::new(&model, options).and_then(|through| through.jacobian(lens).map(drop)).unwrap_err().to_string()
    };
    assert!(through(&identity(1, 12), LensOptions::default()).contains("h.1"));
    let halves = LensOptions::default().rows(RowOptions::default().subblocks(true));
    assert!(through(&identity(2, 12), halves).contains("h.0.attn"));
    let tensors = |name: &str, shape: &[i64]| {
        HashMap::from([(name.to_owned(), Tensor::zeros(shape, (Kind::Float, Device::Cpu)))])
    };
    for (name, shape) in [("J.0", [3, 2]), ("K.0", [2, 2]), ("J.x", [2, 2]), ("jacobian_sum.0", [2, 2])] {
        let refused = JacobianLens::from_tensors(&Map::new(), tensors(name, &shape)).err();
        assert!(matches!(refused, Some(Error::JacobianLens { .. })), "{name}");
    }
    assert!(JacobianLens::from_tensors(&Map::new(), HashMap::new()).is_err());
    // Some other file.
    assert!(jacobian_lens::open(case.folder.join("model.safetensors")).is_err());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lens.pt");
    jacobian_lens::save(&path, &identity(2, 12), Dtype::F16).unwrap();
    let settings = json!({"J": {"0": null, "1": null}, "n_prompts": 0, "source_layers": [0, 1], "d_model": 12});
    assert_eq!(Value::Object(bin_settings(&path).unwrap()), settings);
}
