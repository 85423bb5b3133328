//! What a few lines do: a model by its name, text in, text and tables and activations out.

use std::{fs, path::Path};

use transformer_utils::{
    lens::{self, terminal},
    load,
    lowmem::{self, Dtype, ExtraTensors, HubOptions},
    models::{self, NoObserver, Numerics, generate},
    partial,
    prelude::*,
    tch::Tensor,
    text::Tokenizer,
};

const MODEL: &str = "assets/tiny-gpt2";
const TEXT: &str = "Emma was very";

fn model() -> Model {
    Model::load(MODEL).unwrap()
}

/// The tokenizer by itself.
fn tokens() -> Tokenizer {
    Tokenizer::of(&Checkpoint::open(MODEL).unwrap()).unwrap().unwrap()
}

/// A folder with these files of the bundled model.
fn folder_with(files: &[&str]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in files {
        fs::copy(Path::new(MODEL).join(file), folder.path().join(file)).unwrap();
    }
    folder
}

#[test]
fn a_model_is_loaded_by_whatever_names_it() {
    let by_path = Model::load(Path::new(MODEL)).unwrap();
    let by_string = Model::load(MODEL.to_owned()).unwrap();
    let by_file = Model::load(format!("{MODEL}/model.safetensors")).unwrap();
    let by_source = Model::load(lowmem::Source::Local(MODEL.into())).unwrap();
    for model in [model(), by_path, by_string, by_file, by_source] {
        assert_eq!((model.name(), model.report().tensors_placed), ("tiny-gpt2", 0));
        assert!(model.tokens().is_some());
    }
}

#[test]
fn a_gguf_file_is_called_as_the_file_is() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/gguf_models/llama/f32.gguf");
    let model = Model::load(&file).unwrap();
    let opened = Model::open(&Checkpoint::open(&file).unwrap(), &LoadOptions::default()).unwrap();
    assert_eq!((model.name(), opened.name()), ("f32", "Llama"));
    assert_eq!(model.logits([1, 2, 3]).unwrap(), opened.logits([1, 2, 3]).unwrap());
}

#[test]
fn the_loader_hands_its_options_on() {
    let loader = Model::loader(MODEL).dtype(Dtype::Bf16).residency(Residency::Streamed);
    let model = loader.numerics(Numerics::FAST.alike_rows(true)).load().unwrap();
    assert_eq!((model.parts().dtype(), model.parts().residency()), (Dtype::Bf16, Residency::Streamed));
    assert_eq!(model.numerics(), Numerics::FAST.alike_rows(true));

    let folder = folder_with(&["config.json"]);
    let weights = Checkpoint::open(MODEL).unwrap();
    let mut tensors: Vec<(String, Tensor)> =
        lowmem_tensors(&weights).into_iter().chain([("score.weight".to_owned(), Tensor::from(1.0_f32))]).collect();
    tensors.sort_by(|one, other| one.0.cmp(&other.0));
    lowmem::save_safetensors(&folder.path().join("model.safetensors"), &tensors).unwrap();
    assert_eq!(Model::load(folder.path()).unwrap().report().extra, ["score.weight"]);
    let strict = Model::loader(folder.path()).extra_tensors(ExtraTensors::Refuse).load();
    assert!(strict.err().unwrap().to_string().contains("score.weight"));
}

fn lowmem_tensors(checkpoint: &Checkpoint) -> Vec<(String, Tensor)> {
    let files = &checkpoint.index().files;
    files.iter().flat_map(|file| Tensor::read_safetensors(&file.path).unwrap()).collect()
}

#[test]
fn logits_of_a_text_are_those_of_its_tokens() {
    let (model, ids) = (model(), tokens().encode(TEXT, true).unwrap());
    let input = Input::from_rows(std::slice::from_ref(&ids)).unwrap();
    let expected = model.forward(&input, &mut NoObserver).unwrap().logits.unwrap();
    assert_eq!(expected.size(), [1, ids.len() as i64, model.architecture().vocabulary]);
    assert_eq!(model.logits(TEXT).unwrap(), expected);
    assert_eq!(model.logits(&ids).unwrap(), expected);
    assert_eq!(model.logits(ids.as_slice()).unwrap(), expected);
    assert_eq!(model.logits(&input).unwrap(), expected);
    assert_eq!(model.logits(vec![ids]).unwrap(), expected);
}

#[test]
fn every_token_has_the_bytes_that_the_programs_show() {
    let (model, expected) = (model(), tokens());
    let found = model.tokens().unwrap();
    for id in -1..model.architecture().vocabulary + 2 {
        assert_eq!(found.token_bytes(id), expected.token_bytes(id), "token {id}");
    }
    assert!(found.decode(&[-1]).unwrap_err().to_string().contains("-1"));
}

#[test]
fn a_text_goes_on() {
    let (model, ids) = (model(), tokens().encode(TEXT, true).unwrap());
    let options = GenerateOptions::default().max_new_tokens(8);
    let found = model.generate(TEXT, &options).unwrap();
    let expected = generate(&model, &[ids], &options, |_| std::ops::ControlFlow::Continue(())).unwrap();
    assert_eq!(found, expected);
    let row = &found.rows[0];
    assert_eq!((row.new_tokens().len(), found.to_string()), (8, row.text.clone().unwrap()));
    assert_eq!(found.to_string(), format!("{TEXT}{}", row.new_text().unwrap()));
    let bytes: Vec<u8> = row.new_tokens().iter().flat_map(|&id| tokens().token_bytes(id)).collect();
    assert_eq!(row.new_text().unwrap().as_bytes(), bytes);

    let two = model.generate([TEXT, "Sir"], &options).unwrap();
    assert_eq!(two.to_string(), format!("{}\n{}", two.rows[0], two.rows[1]));
    assert!(two.rows[1].to_string().starts_with("Sir"));
}

#[test]
fn a_lens_reads_text_and_its_table_displays_itself() {
    let (model, tokens) = (model(), tokens());
    let options = LensOptions::default().measures([Measure::Probs, Measure::Kl]);
    let lens = Lens::new(&model, options).unwrap();
    let ids = tokens.encode(TEXT, true).unwrap();
    let expected = lens.table("tiny-gpt2", &ids, |id| tokens.token_text(id)).unwrap();
    assert_eq!(lens.of(TEXT).unwrap(), expected);
    assert_eq!(lens.of(ids).unwrap(), expected);
    let style = terminal::TerminalStyle::default().width(60);
    let of = |measure| terminal::render(&expected, &measure, &style).unwrap();
    assert_eq!(format!("{expected:60}\n"), format!("{}\n{}", of(Measure::Probs), of(Measure::Kl)));

    let nameless = Model::open(&Checkpoint::open(MODEL).unwrap(), &LoadOptions::default()).unwrap();
    let table = Lens::new(&nameless, LensOptions::default()).unwrap().of([10, 20]).unwrap();
    assert_eq!((table.model.as_str(), table.tokens[1].text.as_str()), ("GPT-2", "20"));
}

#[test]
fn activations_of_a_text_are_those_of_its_tokens() {
    let (model, ids) = (model(), tokens().encode(TEXT, true).unwrap());
    let input = Input::from_rows(&[ids]).unwrap();
    let expected = partial_forward(&model, &["h.3", "h.2.attn.pattern"], &input).unwrap();
    let names = vec![String::from("h.3"), String::from("h.2.attn.pattern")];
    let sites = [Site::block(3, Point::Output), Site::block(2, Point::Pattern)];
    let found = [
        model.activations(TEXT, ["h.3", "h.2.attn.pattern"]).unwrap(),
        model.activations(TEXT, &names).unwrap(),
        model.activations(TEXT, sites).unwrap(),
        model.activations(&input, sites).unwrap(),
        Run::new(&model, &sites).unwrap().run(TEXT).unwrap(),
    ];
    for found in found {
        assert_eq!(found.blocks_run(), 4);
        for (site, name) in sites.iter().zip(&names) {
            assert_eq!(found.get(site).unwrap(), expected.get(name).unwrap());
        }
    }
    let edited = Run::new(&model, &sites).unwrap().edit(Site::INPUT, Edit::zero()).unwrap().run(TEXT).unwrap();
    assert_ne!(edited.get(sites[0]).unwrap(), expected.get("h.3").unwrap());
    let missing = expected.get(Site::LOGITS).unwrap_err().to_string();
    assert_eq!(missing, "\"logits\" was not captured; captured: h.3, h.2.attn.pattern");
}

#[test]
fn names_that_do_not_exist_are_refused_with_the_nearest() {
    let model = model();
    let unknown = model.activations(TEXT, ["h.3.atn"]).unwrap_err().to_string();
    assert!(unknown.starts_with("unknown name \"h.3.atn\"; nearest: h.3.attn"), "{unknown}");
    let beyond = model.activations(TEXT, [Site::block(8, Point::Output)]).unwrap_err().to_string();
    assert_eq!(beyond, "unknown name \"h.8\"; the model has 8 blocks, h.0 to h.7");
    let none = model.activations(TEXT, [] as [&str; 0]).unwrap_err();
    assert!(matches!(none, partial::Error::NoNames));
    assert_eq!(model.report().tensors_placed, 0);
}

#[test]
fn an_empty_text_is_refused() {
    let model = model();
    let lens = Lens::new(&model, LensOptions::default()).unwrap();
    let said = "the input is empty; give at least one token";
    assert_eq!(model.logits("").unwrap_err().to_string(), said);
    assert_eq!(model.generate("", &GenerateOptions::default()).unwrap_err().to_string(), said);
    assert_eq!(model.activations("", ["h.0"]).unwrap_err().to_string(), said);
    assert_eq!(lens.of("").unwrap_err().to_string(), said);
    let several = lens.of([TEXT, TEXT]).unwrap_err();
    assert!(matches!(several, lens::Error::SeveralRows { rows: 2 }));
}

#[test]
fn without_a_tokenizer_there_are_ids() {
    let folder = folder_with(&["config.json", "model.safetensors"]);
    let model = Model::load(folder.path()).unwrap();
    let refused = model.logits(TEXT).unwrap_err();
    assert!(matches!(refused, models::Error::NoTokenizer));
    assert!(refused.to_string().contains("give token ids"));
    assert_eq!(model.logits([10, 20]).unwrap().size(), [1, 2, model.architecture().vocabulary]);
    let generated = model.generate([10, 20], &GenerateOptions::default().max_new_tokens(1)).unwrap();
    assert!(generated.to_string().starts_with("10,20,"));
}

#[test]
fn a_damaged_tokenizer_is_an_error_of_whoever_gives_text() {
    let folder = folder_with(&["config.json", "model.safetensors"]);
    fs::write(folder.path().join("tokenizer.json"), "{").unwrap();
    let model = Model::load(folder.path()).unwrap();
    assert_eq!(model.logits([10, 20]).unwrap().size(), [1, 2, model.architecture().vocabulary]);
    let refused = model.logits(TEXT).unwrap_err().to_string();
    assert!(refused.starts_with("encoding a text: ") && refused.contains("tokenizer.json"), "{refused}");
}

#[test]
fn what_is_not_there_is_refused() {
    let path = Model::load("./no-such-folder").err().unwrap();
    assert!(matches!(path, load::Error::Checkpoint(lowmem::Error::NotFound { .. })));
    // A path is never a repository of the Hub.
    let path = Model::load(Path::new("no-such-folder")).err().unwrap();
    assert!(matches!(path, load::Error::Checkpoint(lowmem::Error::NotFound { .. })));
    let revision = Model::loader(MODEL).revision("v2").load().err().unwrap();
    assert!(matches!(revision, load::Error::RevisionOfLocal { .. }));

    let cache = tempfile::tempdir().unwrap();
    let hub = HubOptions::default().cache(cache.path().to_owned());
    let absent = Model::loader("someone/no-such-model").hub_options(hub).offline(true).load().err().unwrap();
    assert!(matches!(absent, load::Error::Checkpoint(lowmem::Error::NotCached { .. })), "{absent}");
}
