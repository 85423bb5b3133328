//! Parity with Hugging Face transformers: one table of cases through every path.

use transformer_utils::{
    lowmem::{Checkpoint, Dtype, LoadOptions, Residency},
    models::{Error, Input, KvCache, Model, NoObserver, Projections, Residual},
    partial::{Edit, Run, partial_forward},
    tch::{Kind, Tensor},
};

use crate::support::{Case, cases, relative_error};

/// The promise of the README.
const TOLERANCE: f64 = 2e-5;

fn f32_options(residency: Residency) -> LoadOptions {
    LoadOptions::default().dtype(Dtype::F32).residency(residency)
}

fn model(case: &Case) -> Model {
    case.model(&f32_options(Residency::Auto))
}

fn check(case: &Case, path: &str, name: &str, found: &Tensor, expected: &Tensor) {
    assert_eq!(found.size(), expected.size(), "{} {path} {name}", case.name);
    let error = relative_error(found, expected);
    assert!(error <= TOLERANCE, "{} {path} {name}: relative error {error:.1e}", case.name);
}

#[test]
fn every_site_in_one_full_run() {
    for case in cases() {
        let model = model(&case);
        for batch in ["single", "left", "right"] {
            let names: Vec<&str> = case.expected(batch).map(|(name, _)| name).collect();
            if names.is_empty() {
                continue;
            }
            let output = partial_forward(&model, &names, case.input(batch)).unwrap();
            for (name, expected) in case.expected(batch) {
                check(&case, batch, name, output.get(name).unwrap(), expected);
            }
        }
    }
}

#[test]
fn every_site_in_a_run_of_its_own() {
    for case in cases() {
        let model = model(&case);
        for (name, expected) in case.expected("single") {
            let run = Run::new(&model, &[name]).unwrap();
            let output = run.run(case.input("single")).unwrap();
            check(&case, "partial", name, output.get(name).unwrap(), expected);
            let site = model.sites().parse(name).unwrap();
            assert_eq!(output.blocks_run(), site.blocks_needed(model.config().layers()), "{} {name}", case.name);
        }
    }
}

/// Queries and keys of a block as they enter Hugging Face's scores, `[batch, head, position, d_head]`.
fn entering(case: &Case, model: &Model, batch: &str, block: usize) -> [Tensor; 2] {
    let attention = &model.architecture().layers[block].attention;
    let at = |name: &str| case.at(model, batch, &format!("h.{block}.attn.{name}"));
    let split = |part: &Tensor| part.reshape([part.size()[0], part.size()[1], -1, attention.d_head]);
    let [queries, keys] = match (at("q_rot"), at("k_rot"), at("qkv_proj")) {
        (Some(queries), Some(keys), _) => [queries.shallow_clone(), keys.shallow_clone()],
        (_, _, Some(joined)) => {
            let width = attention.query_width();
            [split(&joined.narrow(-1, 0, width)), split(&joined.narrow(-1, width, attention.key_width()))]
        }
        _ => [split(at("q_proj").unwrap()), split(at("k_proj").unwrap())],
    };
    [queries.transpose(1, 2), keys.transpose(1, 2)]
}

/// The pattern that scores give, beside the sinks of the checkpoint where its heads have some.
fn softmaxed(case: &Case, block: usize, scores: &Tensor, sinks: bool) -> Tensor {
    if !sinks {
        return scores.softmax(-1, None);
    }
    let mut weights = Checkpoint::open(&case.folder).unwrap().tensors(&f32_options(Residency::Resident)).unwrap();
    let sinks = weights.remove(&format!("model.layers.{block}.self_attn.sinks")).unwrap();
    let mut shape = scores.size();
    shape[3] = 1;
    let joined = Tensor::cat(&[scores, &sinks.view([1, -1, 1, 1]).expand(shape, false)], -1);
    joined.softmax(-1, None).narrow(-1, 0, scores.size()[3])
}

#[test]
fn queries_keys_and_scores_are_those_of_the_modules() {
    for case in cases() {
        let model = model(&case);
        for batch in ["single", "left", "right"] {
            // Padded batches have all modules in some cases only.
            if !case.expected.contains_key(&format!("{batch}/h.0.attn.pattern")) {
                continue;
            }
            for (block, layer) in model.architecture().layers.iter().enumerate() {
                let attention = &layer.attention;
                let ends = if attention.rotary.is_some() { ["q_rot", "k_rot"] } else { ["q", "k"] };
                let names = [ends[0], ends[1], "scores", "pattern"].map(|name| format!("h.{block}.attn.{name}"));
                let output = partial_forward(&model, &names, case.input(batch)).unwrap();
                let found = |name: &str| output.get(format!("h.{block}.attn.{name}")).unwrap();
                let [queries, keys] = entering(&case, &model, batch, block);
                check(&case, batch, &names[0], found(ends[0]), &queries.transpose(1, 2));
                check(&case, batch, &names[1], found(ends[1]), &keys.transpose(1, 2));
                let pattern = &case.expected[&format!("{batch}/h.{block}.attn.pattern")];
                check(&case, batch, &format!("h.{block}.attn.pattern"), found("pattern"), pattern);
                let softmaxed = softmaxed(&case, block, found("scores"), attention.sinks);
                check(&case, batch, "softmaxed scores", &softmaxed, pattern);
                if batch == "single" {
                    let (queries, keys) = (queries.to_kind(Kind::Double), keys.to_kind(Kind::Double));
                    let keys = keys.repeat_interleave_self_int(attention.heads / attention.kv_heads, 1, None);
                    let products = queries.matmul(&keys.transpose(-2, -1)) * attention.scale;
                    let products =
                        attention.softcap.map_or(products.shallow_clone(), |cap| (products / cap).tanh() * cap);
                    let hidden = found("scores").lt(f64::from(f32::MIN) / 2.0);
                    assert!(found("pattern").masked_select(&hidden).eq(0).all().int64_value(&[]) != 0);
                    let visible = |scores: &Tensor| scores.masked_fill(&hidden, 0);
                    check(&case, batch, "visible scores", &visible(found("scores")), &visible(&products));
                }
            }
        }
    }
}

/// What the projections give each head is what is before norms and rotation.
#[test]
fn queries_keys_and_values_are_parts_of_the_projections() {
    for case in cases() {
        let model = model(&case);
        for (block, layer) in model.architecture().layers.iter().enumerate() {
            let attention = &layer.attention;
            let split = |part: &Tensor| part.reshape([part.size()[0], part.size()[1], -1, attention.d_head]);
            let at = |name: &str| case.at(&model, "single", &format!("h.{block}.attn.{name}"));
            let expected = match at("qkv_proj") {
                Some(joined) if attention.projections == Projections::HeadByHead => {
                    let heads = joined.reshape([joined.size()[0], joined.size()[1], attention.heads, -1]);
                    heads.chunk(3, -1)
                }
                Some(joined) => {
                    let (queries, keys) = (attention.query_width(), attention.key_width());
                    joined.split_with_sizes([queries, keys, keys], -1).iter().map(split).collect()
                }
                None => ["q_proj", "k_proj", "v_proj"].iter().map(|name| split(at(name).unwrap())).collect(),
            };
            let names = ["q", "k", "v"].map(|name| format!("h.{block}.attn.{name}"));
            let output = partial_forward(&model, &names, case.input("single")).unwrap();
            for (name, expected) in names.iter().zip(&expected) {
                check(&case, "single", name, output.get(name).unwrap(), expected);
            }
        }
    }
}

#[test]
fn a_head_s_result_is_what_it_adds_alone() {
    for case in cases() {
        let model = model(&case);
        let input = case.input("single");
        let heads = model.architecture().layers[0].attention.heads;
        for block in 0..model.config().layers() {
            let [attention, z, result] = ["", ".z", ".result"].map(|end| format!("h.{block}.attn{end}"));
            let output = partial_forward(&model, &[&attention, &result], &input).unwrap();
            let expected = case.at(&model, "single", &attention).unwrap();
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
            let cached = |ids: &[i64], cache: &mut KvCache| {
                let input = Input::from_rows(&[ids]).unwrap();
                model.forward_cached(&input, cache, &mut NoObserver).map(|outcome| outcome.logits.unwrap())
            };
            let mut pieces = Vec::new();
            for ids in row.chunks(step) {
                let logits = match cached(ids, &mut cache) {
                    // Longer texts are rotated otherwise, all of them.
                    Err(Error::CacheRotation { positions, .. }) => {
                        cache = KvCache::new();
                        pieces.clear();
                        cached(&row[..positions as usize + ids.len()], &mut cache).unwrap()
                    }
                    logits => logits.unwrap(),
                };
                pieces.push(logits);
            }
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
                if model.architecture().layers[block].residual == Residual::Parallel && name.ends_with("resid_mid") {
                    assert!(
                        matches!(model.sites().parse(&name), Err(Error::AbsentSite { .. })),
                        "{} {name}",
                        case.name
                    );
                    continue;
                }
                let output = partial_forward(&model, &[&name], case.input("single")).unwrap();
                let site = model.sites().parse(&name).unwrap();
                let rest = Input::stream(site, output.get(&name).unwrap().shallow_clone());
                check(&case, &name, "logits", &logits(&model, &rest), &case.expected["single/logits"]);
            }
        }
    }
}
