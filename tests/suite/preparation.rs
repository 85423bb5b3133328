//! Libtorch is ready before several threads of it compute.
//!
//! The fault that the preparation prevents strikes a few processes in a thousand, on Intel processors only. A library in front of
//! libtorch makes it strike every time and everywhere where libtorch has MKL's vector library (`vector_library_race.c`).

#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

use std::{collections::HashMap, path::Path, process::Command};

use transformer_utils::{
    lens::{Lens, LensOptions, Measure, TunedLens, TunedLensConfig},
    models::{Config, Factor, Model},
    tch::{Device, Kind, Tensor},
};

const CHILD: &str = "PREPARATION_TEST_CHILD";
const UNPREPARED: &str = "TRANSFORMER_UTILS_UNPREPARED";

/// The wide numbers as MKL numbers processors: with AVX-512, with AVX2.
fn processor() -> &'static str {
    if std::arch::is_x86_feature_detected!("avx512f") { "9" } else { "7" }
}

/// Builds the library that goes in front.
fn race(folder: &Path) -> std::path::PathBuf {
    let library = folder.join("race.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/suite/vector_library_race.c");
    // The compiler that tch was built with comes with one for C.
    let status = Command::new("cc").args(["-O1", "-shared", "-fPIC", "-o"]).arg(&library).arg(source).status().unwrap();
    assert!(status.success());
    library
}

/// What the child says after `error: `, the largest relative error of an `exp` that two threads share.
fn error_in_child(library: &Path, entry: &str, prepared: bool) -> f64 {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "preparation::child", "--nocapture", "--test-threads", "1"]);
    child.env(CHILD, entry).env("LD_PRELOAD", library).env("RACE_PROCESSOR", processor()).env("OMP_NUM_THREADS", "2");
    if !prepared {
        child.env(UNPREPARED, "1");
    }
    let output = child.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    let error = text.lines().find_map(|line| line.split_once("error: ")).expect(&text).1;
    error.parse().unwrap()
}

/// Not a test of its own: what the tests below run in processes of their own.
#[test]
fn child() {
    let Ok(entry) = std::env::var(CHILD) else { return };
    let config = r#"{"model_type": "gpt2", "n_layer": 1, "n_head": 2, "n_embd": 8, "vocab_size": 20}"#;
    let config = Config::from_json(config).unwrap();
    match entry.as_str() {
        "model" => drop(Model::random(config, 0).unwrap()),
        "checkpoint" => {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/tiny-gpt2");
            let checkpoint = transformer_utils::lowmem::Checkpoint::open(folder).unwrap();
            drop(checkpoint.tensors(&transformer_utils::lowmem::LoadOptions::default()).unwrap());
        }
        "product" => drop(Factor::new(&Tensor::ones([2, 3], (Kind::Float, Device::Cpu))).unwrap()),
        "tuned lens" => {
            let model = Model::random(config, 0).unwrap();
            let config = TunedLensConfig::of("tiny", &model).unwrap();
            drop(TunedLens::identity(config.clone(), Device::Cpu).unwrap());
            drop(TunedLens::from_tensors(config, HashMap::new()));
        }
        "tensors" => transformer_utils::prepare_libtorch(),
        other => panic!("{other}"),
    }
    let x = Tensor::linspace(-8.0, 0.0, 100_000, (Kind::Float, Device::Cpu));
    let found = x.exp().to_kind(Kind::Double);
    let exact = x.to_kind(Kind::Double).exp();
    let error = ((found - &exact).abs() / &exact).max().double_value(&[]);
    println!("\nerror: {error:e}");
}

#[test]
fn whoever_enters_first_finds_libtorch_ready() {
    let folder = tempfile::tempdir().unwrap();
    let library = race(folder.path());
    let unprepared = error_in_child(&library, "model", false);
    assert!(unprepared > 1e-6, "the fault does not show ({unprepared:e}), so this test could not fail");
    for entry in ["model", "checkpoint", "product", "tuned lens", "tensors"] {
        let error = error_in_child(&library, entry, true);
        assert!(error < 1e-6, "{entry}: {error:e}");
    }
}

/// The fault as users saw it: KL values of one half of the positions.
#[test]
fn a_lens_gives_the_same_bits_with_and_without_the_race() {
    let table = || {
        let config = r#"{"model_type": "gpt_neo", "num_layers": 4, "num_heads": 4, "hidden_size": 40, "vocab_size": 199,
            "max_position_embeddings": 64, "attention_types": [[["global", "local"], 2]]}"#;
        let model = Model::random(Config::from_json(config).unwrap(), 3).unwrap();
        let options = LensOptions::default().measures([Measure::Kl]);
        let ids: Vec<i64> = (0..40).map(|position| (37 * position + 11) % 199).collect();
        // The fault can be large enough for the lens to notice, and that is an answer too.
        match Lens::new(&model, options).unwrap().table("tiny", &ids, |id| id.to_string()) {
            Ok(table) => table.to_json().unwrap(),
            Err(error) => format!("refused: {error}"),
        }
    };
    const JSON: &str = "table: ";
    if std::env::var_os(CHILD).is_some() {
        println!("\n{JSON}{}", table().replace('\n', " "));
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let library = race(folder.path());
    let run = |front: bool, prepared: bool| {
        let mut child = Command::new(std::env::current_exe().unwrap());
        let name = "preparation::a_lens_gives_the_same_bits_with_and_without_the_race";
        child.args(["--exact", name, "--nocapture", "--test-threads", "1"]).env(CHILD, "1").env("OMP_NUM_THREADS", "2");
        child.env("RACE_PROCESSOR", processor());
        if front {
            child.env("LD_PRELOAD", &library);
        }
        if !prepared {
            child.env(UNPREPARED, "1");
        }
        let output = child.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{text}");
        text.lines().find_map(|line| line.strip_prefix(JSON)).expect(&text).to_owned()
    };
    let raced = run(true, true);
    assert!(!raced.starts_with("refused"), "{raced}");
    assert_eq!(raced, run(true, true));
    assert_ne!(raced, run(true, false), "the fault does not show, so this test could not fail");
}
