//! Models in GGUF files against the same models as Hugging Face has them: `tests/golden/gguf_models.py`.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use transformer_utils::{
    lowmem::{Checkpoint, Dtype, DtypeChoice, LoadOptions, Residency},
    models::{Input, Model, NoObserver},
    tch::Tensor,
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
