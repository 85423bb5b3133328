//! Parity with Hugging Face transformers: one table of cases through every path.

use transformer_utils::{
    lowmem::{Dtype, DtypeChoice, LoadOptions, Residency},
    models::{Input, KvCache, Model, NoObserver},
    partial::{Run, partial_forward},
    tch::Tensor,
};

use crate::support::{Case, cases, relative_error};

/// The promise of the README.
const TOLERANCE: f64 = 2e-5;

fn f32_options(residency: Residency) -> LoadOptions {
    LoadOptions { dtype: DtypeChoice::Fixed(Dtype::F32), residency, ..LoadOptions::default() }
}

fn model(case: &Case) -> Model {
    case.model(&f32_options(Residency::Auto))
}

fn check(case: &Case, path: &str, name: &str, found: &Tensor, expected: &Tensor) {
    assert_eq!(found.size(), expected.size(), "{} {path} {name}", case.name);
    let error = relative_error(found, expected);
    assert!(error <= TOLERANCE, "{} {path} {name}: relative error {error:.1e}", case.name);
}

/// The names under which we know what Hugging Face calls `logits`.
fn our_name(name: &str) -> &str {
    if name == "logits" { "lm_head" } else { name }
}

#[test]
fn every_site_in_one_full_run() {
    for case in cases() {
        let model = model(&case);
        for batch in ["single", "left", "right"] {
            let names: Vec<&str> = case.expected(batch).map(|(name, _)| our_name(name)).collect();
            if names.is_empty() {
                continue;
            }
            let output = partial_forward(&model, &names, &case.input(batch)).unwrap();
            for (name, expected) in case.expected(batch) {
                check(&case, batch, name, output.get(our_name(name)).unwrap(), expected);
            }
        }
    }
}

#[test]
fn every_site_in_a_run_of_its_own() {
    for case in cases() {
        let model = model(&case);
        for (name, expected) in case.expected("single") {
            let run = Run::new(&model, &[our_name(name)]).unwrap();
            let output = run.run(&case.input("single")).unwrap();
            check(&case, "partial", name, output.get(our_name(name)).unwrap(), expected);
            let site = model.sites().parse(our_name(name)).unwrap();
            assert_eq!(output.blocks_run(), site.blocks_needed(model.config().layers()), "{} {name}", case.name);
        }
    }
}

fn logits(model: &Model, input: &Input) -> Tensor {
    model.forward(input, &mut NoObserver).unwrap().logits.unwrap()
}

#[test]
fn residencies_agree_bit_for_bit() {
    for case in cases() {
        let resident = logits(&case.model(&f32_options(Residency::Resident)), &case.input("single"));
        let streamed = logits(&case.model(&f32_options(Residency::Streamed)), &case.input("single"));
        let auto = logits(&model(&case), &case.input("single"));
        check(&case, "resident", "logits", &resident, &case.expected["single/logits"]);
        assert!(resident.equal(&streamed) && resident.equal(&auto), "{}", case.name);
    }
}

#[test]
fn a_batch_gives_what_its_rows_give() {
    for case in cases() {
        let model = model(&case);
        let row = case.ids("single").remove(0);
        let batch = logits(&model, &Input::from_rows(&[row.clone(), row.clone(), row]).unwrap());
        for index in 0..3 {
            check(&case, "batch", "logits", &batch.narrow(0, index, 1), &case.expected["single/logits"]);
        }
    }
}

#[test]
fn a_cache_gives_what_a_full_run_gives() {
    for case in cases() {
        let model = model(&case);
        let row = case.ids("single").remove(0);
        for step in [1, 2, row.len().div_ceil(2)] {
            let mut cache = KvCache::new();
            let pieces: Vec<Tensor> = row
                .chunks(step)
                .map(|ids| {
                    let input = Input::from_rows(&[ids]).unwrap();
                    model.forward_cached(&input, &mut cache, &mut NoObserver).unwrap().logits.unwrap()
                })
                .collect();
            let found = Tensor::cat(&pieces, 1);
            check(&case, &format!("cached by {step}"), "logits", &found, &case.expected["single/logits"]);
        }
    }
}

#[test]
fn a_run_from_the_middle_gives_what_a_full_run_gives() {
    for case in cases() {
        let model = model(&case);
        for block in 0..model.config().layers() {
            for name in [format!("h.{block}.resid_mid"), format!("h.{block}")] {
                let output = partial_forward(&model, &[&name], &case.input("single")).unwrap();
                let site = model.sites().parse(&name).unwrap();
                let rest = Input::stream(site, output.get(&name).unwrap().shallow_clone());
                check(&case, &name, "logits", &logits(&model, &rest), &case.expected["single/logits"]);
            }
        }
    }
}
