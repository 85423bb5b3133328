//! Parity with Hugging Face transformers: one table of cases through every path.

use transformer_utils::{
    lowmem::{Dtype, DtypeChoice, LoadOptions, Residency},
    models::{Input, KvCache, Model, NoObserver},
    partial::{Edit, Run, partial_forward},
    tch::{Kind, Tensor},
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

/// Queries, keys and values of a block as Hugging Face gives them, split into heads.
fn heads(case: &Case, batch: &str, block: usize, heads: i64) -> [Tensor; 3] {
    let module = |name: &str| case.expected.get(&format!("{batch}/transformer.h.{block}.attn.{name}"));
    let parts = match module("c_attn") {
        Some(joined) => joined.chunk(3, -1),
        None => ["q_proj", "k_proj", "v_proj"]
            .map(|name| module(&format!("attention.{name}")).unwrap().shallow_clone())
            .into(),
    };
    let split = |part: &Tensor| part.reshape([part.size()[0], part.size()[1], heads, -1]);
    [split(&parts[0]), split(&parts[1]), split(&parts[2])]
}

#[test]
fn queries_keys_values_and_scores_are_those_of_the_modules() {
    for case in cases() {
        let model = model(&case);
        for batch in ["single", "left", "right"] {
            // Padded batches have all modules in some cases only.
            if !case.expected.contains_key(&format!("{batch}/h.0.attn.pattern")) {
                continue;
            }
            for (block, settings) in model.config().blocks.iter().enumerate() {
                let names = ["q", "k", "v", "scores", "pattern"].map(|name| format!("h.{block}.attn.{name}"));
                let output = partial_forward(&model, &names, &case.input(batch)).unwrap();
                let found = |name: &str| output.get(&format!("h.{block}.attn.{name}")).unwrap();
                let expected = heads(&case, batch, block, model.config().heads);
                for (name, expected) in ["q", "k", "v"].into_iter().zip(&expected) {
                    check(&case, batch, &format!("h.{block}.attn.{name}"), found(name), expected);
                }
                let pattern = &case.expected[&format!("{batch}/h.{block}.attn.pattern")];
                check(&case, batch, &format!("h.{block}.attn.pattern"), found("pattern"), pattern);
                check(&case, batch, "softmaxed scores", &found("scores").softmax(-1, None), pattern);
                if batch == "single" {
                    let [queries, keys, _] = expected.map(|part| part.transpose(1, 2).to_kind(Kind::Double));
                    let products = queries.matmul(&keys.transpose(-2, -1)) * settings.scale;
                    let hidden = found("scores").lt(f64::from(f32::MIN) / 2.0);
                    assert!(found("pattern").masked_select(&hidden).eq(0).all().int64_value(&[]) != 0);
                    let visible = |scores: &Tensor| scores.masked_fill(&hidden, 0);
                    check(&case, batch, "visible scores", &visible(found("scores")), &visible(&products));
                }
            }
        }
    }
}

#[test]
fn a_head_s_result_is_what_it_adds_alone() {
    for case in cases() {
        let model = model(&case);
        let input = case.input("single");
        let heads = model.config().heads;
        for block in 0..model.config().layers() {
            let [attention, z, result] = ["", ".z", ".result"].map(|end| format!("h.{block}.attn{end}"));
            let output = partial_forward(&model, &[&attention, &result], &input).unwrap();
            let expected = &case.expected[&format!("single/transformer.{attention}")];
            check(&case, "with results", &attention, output.get(&attention).unwrap(), expected);
            // The attention output when only some heads say anything; of none, it is the bias.
            let only = |silent: [std::ops::Range<i64>; 2]| {
                let mut run = Run::new(&model, &[&attention]).unwrap();
                for range in silent.into_iter().filter(|range| !range.is_empty()) {
                    run = run.edit(&z, Edit::zero().heads(range)).unwrap();
                }
                run.run(&input).unwrap().get(&attention).unwrap().shallow_clone()
            };
            let bias = only([0..heads, 0..0]);
            for head in 0..heads {
                let found = output.get(&result).unwrap().select(2, head) + &bias;
                let alone = only([0..head, head + 1..heads]);
                check(&case, "alone", &format!("{result} of head {head}"), &found, &alone);
            }
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
