//! The lens over a corpus: `activations --format lens`.

use std::{fs, path::Path};

use serde_json::{Value, json};
use transformer_utils::{
    corpus::{Corpus, Job, LensStatistics, LensSummary},
    lens::{FittedLens, JacobianFit, Table},
    lowmem::Dtype,
    prelude::*,
    tuned_lens,
};

use crate::program::{golden, inside, refuse, root, succeed};

const TEXTS: [&str; 5] =
    ["Emma was very happy with her friend", "The", "in the evening she was", "", "her father had been so kind to her"];

fn read(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// The means of what the lens finds of each text, for the layer `row`: KL, entropy, agreement, log probability, accuracy, confidence,
/// and the calibration error.
fn from_tables(tables: &[Table], row: usize) -> [f64; 7] {
    let (mut tokens, mut known) = (0.0, 0.0);
    let (mut kl, mut entropy, mut agreed, mut log, mut right, mut confidence) = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0);
    let mut bins = [[0.0; 2]; 10];
    for table in tables {
        let (own, last) = (&table.rows[row], table.rows.last().unwrap());
        for place in 0..table.tokens.len() {
            tokens += 1.0;
            kl += own.values[&Measure::Kl][place];
            entropy += own.values[&Measure::Entropy][place];
            agreed += f64::from(u8::from(own.top1[place] == last.top1[place]));
            let Some(next) = table.tokens.get(place + 1) else { continue };
            known += 1.0;
            log -= own.values[&Measure::CrossEntropy][place];
            let probability = own.top_k.as_ref().unwrap()[place][0].prob;
            let hit = f64::from(u8::from(own.top1[place] == next.id));
            right += hit;
            confidence += probability;
            let bin = bins.iter_mut().enumerate().find(|(bin, _)| probability <= (*bin as f64 + 1.0) / 10.0).unwrap().1;
            bin[0] += probability;
            bin[1] += hit;
        }
    }
    let apart: f64 = bins.iter().map(|[confidence, right]| (confidence - right).abs()).sum();
    [kl / tokens, entropy / tokens, agreed / tokens, log / known, right / known, confidence / known, apart / known]
}

/// Checks the statistics of a corpus against the tables of its texts, through the lens that `fitted` makes, if any.
fn assert_statistics(fitted: Option<&dyn Fn(&Model) -> FittedLens>) {
    let model = Model::loader(root().join("assets/tiny-gpt2")).dtype(Dtype::F32).load().unwrap();
    let made = fitted.map(|fitted| fitted(&model));
    let measures = [Measure::Kl, Measure::Entropy, Measure::CrossEntropy];
    let mut lens = Lens::new(&model, LensOptions::default().measures(measures).top_k(1)).unwrap();
    if let Some(made) = &made {
        lens = lens.fitted(made).unwrap();
    }
    let tables: Vec<Table> = TEXTS.iter().filter(|text| !text.is_empty()).map(|text| lens.of(*text).unwrap()).collect();
    let folder = tempfile::tempdir().unwrap();
    let run = |out: &str, memory: u64| {
        let out = folder.path().join(out);
        let mut sink = LensStatistics::create(&out, &model).unwrap().memory(memory);
        if let Some(fitted) = fitted {
            sink = sink.fitted(fitted(&model)).unwrap();
        }
        let names = sink.names(&[""; 0]).unwrap();
        assert_eq!(names, lens.row_names().collect::<Vec<_>>());
        let job = Job::new(&model, Corpus::from_texts(TEXTS)).names(&names).unwrap().store(None).batch_tokens(20);
        job.run(&mut sink).unwrap();
        LensSummary::read(&out).unwrap()
    };
    // With little memory tokens come in groups and the vocabulary in slices.
    for summary in [run("out", 256 << 20), run("little", 200_000)] {
        let tokens: usize = tables.iter().map(|table| table.tokens.len()).sum();
        assert_eq!((summary.tokens, summary.next_tokens), (tokens as i64, (tokens - tables.len()) as i64));
        assert_eq!(summary.lens.as_deref(), made.as_ref().map(FittedLens::name));
        assert_eq!(summary.layers.len(), tables[0].rows.len());
        for (row, layer) in summary.layers.iter().enumerate() {
            assert_eq!(layer.name, tables[0].rows[row].name);
            let found = [
                layer.kl,
                layer.entropy,
                layer.top1_agreement,
                layer.next_log_probability,
                layer.accuracy,
                layer.confidence,
                layer.calibration_error,
            ];
            for (what, (found, expected)) in found.into_iter().zip(from_tables(&tables, row)).enumerate() {
                let found = found.unwrap();
                let close = (found - expected).abs() <= 2e-6 + 2e-6 * expected.abs();
                assert!(close, "{}, number {what}: {found} instead of {expected}", layer.name);
            }
            let binned: i64 = layer.calibration.iter().map(|bin| bin.tokens).sum();
            assert_eq!(binned, summary.next_tokens);
        }
        let last = summary.layers.last().unwrap();
        assert_eq!(last.top1_agreement, Some(1.0));
        assert!(last.kl.unwrap() < 1e-6);
    }
}

fn tuned(_: &Model) -> FittedLens {
    tuned_lens::open(root().join("assets/tiny-gpt2/tuned-lens")).unwrap().into()
}

fn jacobian(model: &Model) -> FittedLens {
    let mut fit = JacobianFit::new(model).unwrap().skip_first(1);
    fit.add(&[5, 9, 3, 7]).unwrap();
    fit.finish().unwrap().into()
}

#[test]
fn statistics_are_those_of_the_lens_text_by_text() {
    assert_statistics(None);
    assert_statistics(Some(&tuned));
    assert_statistics(Some(&jacobian));
}

#[test]
fn a_folder_belongs_to_the_lens_that_began_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    fs::write(path("texts.jsonl"), "{\"text\": \"Emma was very happy\"}\n").unwrap();
    let (model, tuned) = (root().join("assets/tiny-gpt2"), root().join("assets/tiny-gpt2/tuned-lens"));
    let (model, texts) = (model.display().to_string(), path("texts.jsonl"));
    let try_to = |run: fn(&str, &[&str]) -> String, out: &str, lens: &str| {
        let base = ["--model", &model, "--file", &texts, "--format", "lens"];
        run("activations", &[&base[..], &["--lens", lens, "--out", &path(out)]].concat())
    };
    let tuned = format!("tuned:{}", tuned.display());
    for (first, second) in [("logit", tuned.as_str()), (&tuned, "logit")] {
        let out = if first == "logit" { "logit" } else { "tuned" };
        try_to(succeed, out, first);
        let summary = read(&folder.path().join(out).join("lens.json"));
        assert_eq!(summary["lens"].as_str(), Some("tuned").filter(|_| out == "tuned"));
        assert_eq!(summary["layers"].as_array().unwrap().len(), 9);
        let again = try_to(refuse, out, second);
        assert!(again.contains("lens") && again.contains("job.json"), "{again}");
        try_to(succeed, out, first);
    }
    let other = ["--model", &golden("gpt2_plain"), "--file", &texts, "--format", "lens", "--lens", &tuned];
    assert!(refuse("activations", &[&other[..], &["--out", &path("other")]].concat()).contains("another model"));
    assert!(!folder.path().join("other").exists());
    let rows = ["--model", &model, "--file", &texts, "--names", "h.0", "--lens", "logit", "--out", &path("rows")];
    assert!(refuse("activations", &rows).contains("--format lens"));
}

#[test]
fn pieces_and_restarts_give_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let model = golden("gpt2_plain");
    fs::create_dir(folder.path().join("in")).unwrap();
    for file in 0..4_i64 {
        let ids =
            |line: i64| (0..1 + line % 9).map(|place| (file * 31 + line * 7 + place * 3) % 61).collect::<Vec<_>>();
        let lines: String = (0..40).map(|line| format!("{}\n", json!({ "ids": ids(line) }))).collect();
        fs::write(folder.path().join(format!("in/{file}.jsonl")), lines).unwrap();
    }
    let base = |out: &str| ["--model", &model, "--file", &path("in"), "--out", out].map(str::to_owned);
    let run = |out: &str, more: &[&str]| {
        let base = base(out);
        let arguments: Vec<&str> = base.iter().map(String::as_str).chain(more.iter().copied()).collect();
        succeed("activations", &[&arguments[..], &["--format", "lens", "--device", "cpu"]].concat());
    };
    run(&path("whole"), &[]);
    for piece in ["2/3", "1/3", "0/3"] {
        run(&path("pieces"), &["--shard", piece]);
    }
    // What a killed worker has not written is done again, and nothing else.
    fs::remove_file(folder.path().join("pieces/lens-00002.safetensors")).unwrap();
    assert!(refuse("activations", &["merge", &path("pieces")]).contains("2"));
    run(&path("pieces"), &["--shard", "2/3"]);
    succeed("activations", &["merge", &path("pieces")]);
    let files = inside(path("whole").as_ref());
    assert_eq!(files, inside(path("pieces").as_ref()));
    assert!(files.len() >= 4 + 4 && files.contains(&"lens.json".to_owned()), "{files:?}");
    for name in files {
        let bytes = |folder: &str| fs::read(Path::new(&path(folder)).join(&name)).unwrap();
        assert!(bytes("whole") == bytes("pieces"), "{name} differs");
    }
    let summary = read(&folder.path().join("whole/lens.json"));
    assert_eq!(summary["layers"][0]["name"], "input");
    assert_eq!(summary["tokens"].as_i64(), Some(4 * (4 * 45 + 10)));

    // Chosen layers, and the last stream without being asked for.
    run(&path("some"), &["--names", "h.0"]);
    let some = read(&folder.path().join("some/lens.json"));
    let all = summary["layers"].as_array().unwrap();
    let of = |name: &str| all.iter().find(|layer| layer["name"] == name).unwrap();
    let some = some["layers"].as_array().unwrap();
    assert_eq!(some.len(), 2);
    assert_eq!(some[1]["name"], all.last().unwrap()["name"]);
    let close = |what: &str| (some[0][what].as_f64().unwrap() - of("h.0")[what].as_f64().unwrap()).abs() < 1e-6;
    assert!(["kl", "entropy", "next_log_probability", "calibration_error"].into_iter().all(close));

    let refused = |more: &[&str]| {
        let base = base(&path("refused"));
        let arguments: Vec<&str> = base.iter().map(String::as_str).chain(more.iter().copied()).collect();
        refuse("activations", &arguments)
    };
    assert!(refused(&["--format", "lens", "--names", "h.0.attn.z"]).contains("no residual stream"));
    assert!(refused(&["--format", "lens", "--store", "bf16"]).contains("as the run computes them, in f32"));
    assert!(refused(&["--format", "lens", "--shuffle", "1"]).contains("--shuffle"));
    assert!(refused(&["--format", "safetensors"]).contains("--names is missing"));
}
