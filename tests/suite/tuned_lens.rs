//! The tuned lens: against the tuned-lens package, against the logit lens, and the bundled ones.

use std::{collections::HashMap, fs, path::Path};

use transformer_utils::{
    lens::{Lens, LensOptions, Measure, RowOptions, Table, TunedLens, TunedLensConfig},
    lowmem::{Checkpoint, Dtype, LoadOptions, save_bin},
    models::{Config, Model},
    tch::{Device, Kind, Tensor},
    tuned_lens,
};

use crate::support::{self, Case, cases};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn f32_options() -> LoadOptions {
    LoadOptions::default().dtype(Dtype::F32)
}

fn plain() -> (Case, Model) {
    let case = cases().into_iter().find(|case| case.name == "gpt2_plain").unwrap();
    let model = case.model(&f32_options());
    (case, model)
}

fn identity(model: &Model) -> TunedLens {
    TunedLens::identity(TunedLensConfig::of("test", model).unwrap(), Device::Cpu).unwrap()
}

fn table(lens: &Lens, ids: &[i64]) -> Table {
    lens.table("test", ids, |id| id.to_string()).unwrap()
}

/// The cases that have a folder of the tuned-lens package's.
const FOREIGN: [&str; 6] =
    ["gpt2_plain", "gpt_neox_parallel", "gptj_full", "llama_one_kv_head", "llama_rope_linear", "opt_plain"];

#[test]
fn a_published_lens_gives_what_the_tuned_lens_package_gives() {
    let cases = cases();
    for name in FOREIGN {
        let Some(case) = cases.iter().find(|case| case.name == name) else { continue };
        let model = case.model(&f32_options());
        let folder = root().join("tests/golden/tuned_lens").join(name);
        let tuned = tuned_lens::open(&folder).unwrap();
        assert_eq!(tuned.config().base_model_name_or_path, name);
        let expected = support::tensors(&folder.join("expected.safetensors"));
        let vocabulary = model.architecture().vocabulary as usize;
        let measures = vec![Measure::Logits, Measure::Kl];
        let options = LensOptions::default().measures(measures).top_k(vocabulary);
        let ids = &case.ids("single")[0];
        let table = table(&Lens::new(&model, options).unwrap().tuned(&tuned).unwrap(), ids);
        assert_eq!(table.rows.len(), tuned.layers() + 1, "{name}");
        for (layer, row) in table.rows.iter().take(tuned.layers()).enumerate() {
            let probabilities = expected[&format!("logits/{layer}")].softmax(-1, Kind::Double);
            for (position, cell) in row.top_k.as_ref().unwrap().iter().enumerate() {
                assert_eq!(cell.len(), vocabulary);
                for entry in cell {
                    let expected = probabilities.double_value(&[position as i64, entry.id]);
                    let found = entry.prob;
                    assert!((found - expected).abs() < 1e-5, "{name} {} {position}: {found} {expected}", row.name);
                }
            }
            let divergences = &expected[&format!("kl/{layer}")];
            for (position, &found) in row.values[&Measure::Kl].iter().enumerate() {
                let expected = divergences.double_value(&[position as i64]);
                assert!((found - expected).abs() < 2e-5, "{name} {} {position}: KL {found} {expected}", row.name);
            }
        }
        // Without its translators, the lens gives other rows.
        let plain = LensOptions::default().measures([Measure::Kl]);
        let logit = self::table(&Lens::new(&model, plain).unwrap(), ids);
        assert_ne!(logit.rows[0].values[&Measure::Kl], table.rows[0].values[&Measure::Kl], "{name}");
    }
}

#[test]
fn translators_of_zeros_are_the_logit_lens() {
    let (case, model) = plain();
    let options = || LensOptions::default().measures([Measure::Logits, Measure::Kl, Measure::Ranks, Measure::Entropy]);
    let ids = &case.ids("single")[0];
    let zeros = identity(&model);
    let tuned = table(&Lens::new(&model, options()).unwrap().tuned(&zeros).unwrap(), ids);
    let logit = table(&Lens::new(&model, options()).unwrap(), ids);
    assert_eq!((tuned.lens.as_deref(), logit.lens.as_deref()), (Some("tuned"), None));
    assert_eq!(tuned.rows, logit.rows);
}

#[test]
fn a_lens_comes_back_from_its_folder() {
    let (_, model) = plain();
    let lens = identity(&model);
    for (_, mut tensor) in lens.tensors() {
        let _ = tensor.uniform_(-1.0, 1.0);
    }
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path().join("new");
    tuned_lens::save(&folder, &lens).unwrap();
    let back = tuned_lens::open(&folder).unwrap();
    assert_eq!(back.config(), lens.config());
    for ((name, before), (other, after)) in lens.tensors().into_iter().zip(back.tensors()) {
        assert_eq!(name, other);
        assert!(before.equal(&after), "{name}");
    }
}

#[test]
fn translators_of_another_model_are_refused() {
    let config = |layers: i64, width: i64| {
        format!(r#"{{"model_type": "gpt2", "n_layer": {layers}, "n_head": 2, "n_embd": {width}, "vocab_size": 500}}"#)
    };
    let random = |layers, width, seed| Model::random(Config::from_json(&config(layers, width)).unwrap(), seed).unwrap();
    let refuse = |lens: &TunedLens, model: &Model, options: LensOptions| {
        Lens::new(model, options).unwrap().tuned(lens).err().expect("refused").to_string()
    };
    let own = random(2, 8, 0);
    let lens = identity(&own);
    assert!(Lens::new(&own, LensOptions::default()).unwrap().tuned(&lens).is_ok());
    let deeper = refuse(&lens, &random(3, 8, 0), LensOptions::default());
    assert!(deeper.contains("another model") && deeper.contains("2 layers of width 8"), "{deeper}");
    assert!(refuse(&lens, &random(2, 16, 0), LensOptions::default()).contains("width 16"));
    // The same sizes, other weights: the hash of the unembedding tells them apart.
    assert!(refuse(&lens, &random(2, 8, 1), LensOptions::default()).contains("hash"));
    // Rows and decoders that no translator fits.
    let subblocks = RowOptions::default().subblocks(true);
    let error = refuse(&lens, &own, LensOptions::default().rows(subblocks));
    assert!(error.contains("h.0.attn"), "{error}");
    let decoder = ["h.1", "final_layernorm", "lm_head"];
    assert!(refuse(&lens, &own, LensOptions::default().decoder(decoder)).contains("decoder"));
}

#[test]
fn damaged_folders_are_refused_by_name() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let error = || tuned_lens::open(folder).unwrap_err().to_string();
    let config = |text: &str| fs::write(folder.join("config.json"), text).unwrap();
    let parameters = |shapes: &[(&str, &[i64])]| {
        let zeros =
            |(name, shape): &(&str, &[i64])| ((*name).to_owned(), Tensor::zeros(*shape, (Kind::Float, Device::Cpu)));
        save_bin(&folder.join("params.pt"), &shapes.iter().map(zeros).collect::<Vec<_>>()).unwrap();
    };
    assert!(error().contains("config.json"));
    config("{}");
    assert!(error().contains("base_model_name_or_path"), "{}", error());
    config(r#"{"base_model_name_or_path": "m", "d_model": 4, "num_hidden_layers": 1, "lens_type": "other"}"#);
    parameters(&[("0.weight", &[4, 4]), ("0.bias", &[4])]);
    assert!(error().contains("lens_type"), "{}", error());
    config(r#"{"base_model_name_or_path": "m", "d_model": 4, "num_hidden_layers": 1}"#);
    assert!(tuned_lens::open(folder).is_ok());
    parameters(&[("0.weight", &[4, 4])]);
    assert!(error().contains("0.bias is missing"), "{}", error());
    parameters(&[("0.weight", &[4, 3]), ("0.bias", &[4])]);
    assert!(error().contains("0.weight is [4, 3], expected [4, 4]"), "{}", error());
    parameters(&[("0.weight", &[4, 4]), ("0.bias", &[4]), ("1.weight", &[4, 4])]);
    assert!(error().contains("1.weight"), "{}", error());
    config(r#"{"base_model_name_or_path": "m", "d_model": 4, "num_hidden_layers": 1, "bias": false}"#);
    parameters(&[("0.weight", &[4, 4])]);
    assert!(tuned_lens::open(folder).is_ok());
    fs::write(folder.join("params.pt"), b"PK\x03\x04 and nothing else").unwrap();
    assert!(error().contains("params.pt"), "{}", error());
}

#[test]
fn gradients_lower_the_divergence() {
    let model = Model::random(
        Config::from_json(r#"{"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 8, "vocab_size": 30}"#)
            .unwrap(),
        3,
    )
    .unwrap();
    let lens = identity(&model);
    let ids = transformer_utils::models::Input::from_rows(&[[1, 2, 3, 4]]).unwrap();
    let output = transformer_utils::partial::partial_forward(&model, &["input", "lm_head"], &ids).unwrap();
    let stream = output.get("input").unwrap().squeeze_dim(0);
    let own = output.get("lm_head").unwrap().squeeze_dim(0).log_softmax(-1, Kind::Float);
    let unembedding = model.unembedding().unwrap();
    let norm = model.tail().unwrap();
    let loss = || lens.divergence(&norm, 0, &stream, &own, &unembedding).unwrap();
    assert_eq!(loss().size(), [4]);
    let leaves = lens.trainable().unwrap().remove(0);
    let first = loss().mean(Kind::Float);
    first.backward();
    transformer_utils::tch::no_grad(|| {
        for leaf in &leaves {
            let _ = leaf.shallow_clone().f_sub_(&(leaf.grad() * 0.05)).unwrap();
        }
    });
    let second = loss().mean(Kind::Float);
    assert!(second.double_value(&[]) < first.double_value(&[]));
}

/// Held-out KL(final || row) of every row but the last, through both lenses, summed over some texts.
fn divergences(name: &str) -> (HashMap<String, f64>, HashMap<String, f64>) {
    let folder = root().join("assets").join(name);
    let model = Model::open(&Checkpoint::open(&folder).unwrap(), &f32_options()).unwrap();
    let tuned = tuned_lens::open(folder.join("tuned-lens")).unwrap();
    let tokenizer = tokenizers::Tokenizer::from_file(folder.join("tokenizer.json")).unwrap();
    let text = fs::read_to_string(root().join("tests/held-out.txt")).unwrap();
    let ids: Vec<i64> = tokenizer.encode_fast(text, false).unwrap().get_ids().iter().map(|&id| i64::from(id)).collect();
    let prompts: Vec<transformer_utils::lens::Prompt> =
        ids.chunks(128).map(|ids| transformer_utils::lens::Prompt { ids: ids.to_vec(), positions: None }).collect();
    assert!(prompts.len() > 3);
    let sum = |lens: &Lens| {
        let mut sums = HashMap::new();
        for table in lens.tables(name, &prompts, |id| id.to_string()).unwrap() {
            for row in table.rows.split_last().unwrap().1 {
                *sums.entry(row.name.clone()).or_insert(0.0) += row.values[&Measure::Kl].iter().sum::<f64>();
            }
        }
        sums
    };
    let lens = || Lens::new(&model, LensOptions::default().measures([Measure::Kl])).unwrap();
    (sum(&lens()), sum(&lens().tuned(&tuned).unwrap()))
}

#[test]
fn the_bundled_tuned_lenses_are_nearer_to_the_output_at_every_layer() {
    for name in ["tiny-gpt2", "tiny-gpt-neo"] {
        let (logit, tuned) = divergences(name);
        assert_eq!(logit.len(), 8);
        for (row, before) in logit {
            assert!(tuned[&row] < before, "{name} {row}: {} instead of less than {before}", tuned[&row]);
        }
    }
}
