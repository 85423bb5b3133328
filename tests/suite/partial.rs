//! Names, stops, edits, starts in the middle: what `partial` promises beyond parity.

use std::sync::{Arc, Mutex};

use transformer_utils::{
    lowmem::{LoadOptions, Residency},
    models::{
        Action, Error as ModelError, Input, KvCache, LogitsAt, Model, Observer, ObserverError, Point, Site, Values,
    },
    partial::{Activations, Edit, Error, Run, partial_forward},
    tch::{Device, Kind, TchError, Tensor},
};

use crate::support::{Case, cases, relative_error};

fn case(name: &str) -> Case {
    cases().into_iter().find(|case| case.name == name).unwrap()
}

fn plain() -> (Model, Input) {
    let case = case("gpt2_plain");
    (case.model(&LoadOptions::default()), case.input("single"))
}

fn one(model: &Model, name: &str, input: &Input) -> Tensor {
    partial_forward(model, &[name], input).unwrap().get(name).unwrap().shallow_clone()
}

#[test]
fn weights_after_the_deepest_name_are_never_placed() {
    for residency in [Residency::Mapped, Residency::Resident, Residency::Streamed] {
        let case = case("gpt2_plain");
        let model = case.model(&LoadOptions::default().residency(residency));
        let per_block = 12;
        partial_forward(&model, &["wte"], case.input("single")).unwrap();
        assert_eq!(model.report().tensors_placed, 0, "{residency}");
        let output = partial_forward(&model, &["h.0.ln_1", "h.1.attn"], case.input("single")).unwrap();
        assert_eq!((output.blocks_run(), output.blocks_total()), (2, 3));
        assert_eq!(model.report().tensors_placed, 2 * per_block, "{residency}");
        let whole: u64 = case_bytes(&case);
        assert!(model.report().bytes_read < whole, "{residency}: {} of {whole}", model.report().bytes_read);
    }
}

#[test]
fn only_the_experts_that_tokens_go_to_are_read() {
    for residency in [Residency::Mapped, Residency::Resident, Residency::Streamed] {
        let case = case("mixtral_ties");
        let model = case.model(&LoadOptions::default().residency(residency));
        let input = || Input::from_rows(&[[7]]).unwrap();
        let chosen = one(&model, "h.0.mlp.experts.chosen", &input());
        assert_eq!(chosen.size(), [1, 1, 2]);
        let placed = model.report().tensors_placed;
        let expert = chosen.int64_value(&[0, 0, 0]);
        assert_eq!(one(&model, &format!("h.0.mlp.experts.{expert}"), &input()).size()[0], 1);
        let idle = (0..4).find(|expert| (0..2).all(|place| chosen.int64_value(&[0, 0, place]) != *expert)).unwrap();
        assert_eq!(one(&model, &format!("h.0.mlp.experts.{idle}"), &input()).size()[0], 0);
        // Streamed parts are placed again by each run; a layer has seven tensors, and one expert three.
        let fresh = case.model(&LoadOptions::default().residency(residency));
        partial_forward(&fresh, &["h.0"], input()).unwrap();
        assert_eq!((placed, fresh.report().tensors_placed), (7, 7 + 2 * 3), "{residency}");
    }
}

fn case_bytes(case: &Case) -> u64 {
    std::fs::metadata(case.folder.join("model.safetensors")).unwrap().len()
}

#[test]
fn a_name_means_the_same_with_and_without_prefix_and_in_transformer_lens() {
    let (model, input) = plain();
    for (name, other) in [
        ("h.1", "transformer.h.1"),
        ("h.1", "blocks.1.hook_resid_post"),
        ("h.0", "blocks.1.hook_resid_pre"),
        ("input", "blocks.0.hook_resid_pre"),
        ("h.1.resid_mid", "blocks.1.hook_resid_mid"),
        ("h.1.attn.z", "blocks.1.attn.hook_z"),
        ("h.1.attn.pattern", "blocks.1.attn.hook_pattern"),
        ("h.1.attn.attn_dropout", "transformer.h.1.attn.attn_dropout"),
        ("h.1.ln_1", "blocks.1.ln1.hook_normalized"),
        ("h.1.attn.q", "blocks.1.attn.hook_q"),
        ("h.1.attn.k", "blocks.1.attn.hook_k"),
        ("h.1.attn.v", "blocks.1.attn.hook_v"),
        ("h.1.attn.scores", "blocks.1.attn.hook_attn_scores"),
        ("h.1.attn.result", "blocks.1.attn.hook_result"),
        ("h.1.mlp.act", "blocks.1.mlp.hook_post"),
        ("wte", "hook_embed"),
        ("ln_f", "ln_final.hook_normalized"),
        ("ln_f", "final_layernorm"),
        ("ln_f", "transformer"),
    ] {
        assert!(one(&model, name, &input).equal(&one(&model, other, &input)), "{name} {other}");
    }
}

#[test]
fn unknown_names_are_refused_with_the_nearest_before_anything_runs() {
    let (model, input) = plain();
    for (name, nearest) in [
        ("h.1.atn", "h.1.attn"),
        ("h.01", "h.0"),
        ("transformer.h.2.mlp.fc", "h.2.mlp"),
        ("lmhead", "lm_head"),
        ("blocks.1.atn.hook_q", "blocks.1.attn.hook_q"),
    ] {
        let error = partial_forward(&model, &["h.0", name], &input).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains(nearest), "{error}");
    }
    let beyond = partial_forward(&model, &["h.10"], &input).unwrap_err().to_string();
    assert!(beyond.contains("3 blocks"), "{beyond}");
    for name in ["", "h.", "h.1.", ".h.1", "h.1..attn", "h.-1", "h.1.attn.attention.q_proj"] {
        assert!(partial_forward(&model, &[name], &input).is_err(), "{name:?}");
    }
    for container in ["h", "transformer.h", "blocks"] {
        let container = partial_forward(&model, &[container], &input);
        assert!(matches!(container, Err(Error::Model(ModelError::Container { .. }))));
    }
    assert!(matches!(partial_forward::<&str>(&model, &[], &input), Err(Error::NoNames)));
    assert_eq!(model.report().bytes_read, 0);
}

#[test]
fn every_listed_name_is_a_site_with_the_listed_shape() {
    for name in ["gpt2_plain", "neo_plain", "gpt2_bf16", "neo_bf16", "gemma2_softcaps", "opt_350m", "phi3_window"] {
        let case = case(name);
        let model = case.model(&LoadOptions::default());
        for info in model.sites().iter() {
            let kind = match info.values {
                Values::AtLeastF32 => Kind::Float,
                Values::Integers => Kind::Int64,
                _ => model.parts().dtype().kind(),
            };
            for name in info.names.iter().chain(&info.lens_names) {
                assert_eq!(model.sites().parse(name).unwrap(), info.site);
                let value = one(&model, name, &case.input("single"));
                let sizes = info.shape.iter().zip(value.size());
                assert_eq!((info.shape.len(), kind), (value.dim(), value.kind()), "{name}");
                assert!(sizes.into_iter().all(|(said, is)| said.size.is_none_or(|said| said == is)), "{name}");
            }
        }
    }
}

#[test]
fn edits_do_what_they_say() {
    let (model, input) = plain();
    let clean = one(&model, "h.1.attn", &input);
    let edited = |edit: Edit| {
        let run = Run::new(&model, &["h.1.attn", "lm_head"]).unwrap().edit("h.1.attn", edit).unwrap();
        run.run(&input).unwrap().get("h.1.attn").unwrap().shallow_clone()
    };
    let vector = Tensor::arange(clean.size()[2], (Kind::Float, clean.device()));
    assert!(edited(Edit::zero()).equal(&clean.zeros_like()));
    assert!(edited(Edit::scale(2.0)).equal(&(&clean * 2.0)));
    assert!(edited(Edit::add(&vector)).equal(&(&clean + &vector)));
    assert!(edited(Edit::replace(&vector)).equal(&vector.expand_as(&clean)));
    assert!(edited(Edit::with(|value| value.f_neg())).equal(&clean.neg()));
    let mean = clean.mean_dim([0_i64, 1].as_slice(), true, None);
    assert!(edited(Edit::mean()).allclose(&mean.expand_as(&clean), 1e-6, 1e-6, false));
    let part = edited(Edit::zero().positions(2..4));
    assert!(part.narrow(1, 2, 2).equal(&clean.narrow(1, 2, 2).zeros_like()));
    assert!(part.narrow(1, 0, 2).equal(&clean.narrow(1, 0, 2)));
    assert!(one(&model, "h.1.attn", &input).equal(&clean), "the model has changed");
}

/// Two rows of 5 and 2 tokens, padded on the right or on the left.
fn padded(right: bool) -> (Input, [std::ops::Range<i64>; 2]) {
    let tokens = [[1, 2, 3, 4, 5], if right { [6, 7, 0, 0, 0] } else { [0, 0, 0, 6, 7] }];
    let mask = [[1, 1, 1, 1, 1], if right { [1, 1, 0, 0, 0] } else { [0, 0, 0, 1, 1] }];
    let mask = Tensor::from_slice(&mask.concat()).view([2, 5]);
    let input = Input::from_rows(&tokens).unwrap().attention_mask(mask);
    (input, if right { [0..5, 0..2] } else { [0..5, 3..5] })
}

#[test]
fn a_mean_leaves_padding_out() {
    let model = plain().0;
    for right in [true, false] {
        let (input, rows) = padded(right);
        for name in ["input", "wpe", "h.1", "h.1.attn", "h.1.attn.z", "h.1.attn.pattern", "lm_head"] {
            let clean = one(&model, name, &input);
            // [batch, position, ..] also for patterns.
            let turned =
                |value: &Tensor| if name.ends_with("pattern") { value.transpose(1, 2) } else { value.shallow_clone() };
            let tokens = |value: &Tensor| {
                let row = |(row, range): (usize, &std::ops::Range<i64>)| {
                    let row = if value.size()[0] == 1 { 0 } else { row as i64 };
                    turned(value).select(0, row).narrow(0, range.start, range.end - range.start)
                };
                Tensor::cat(&rows.iter().enumerate().map(row).collect::<Vec<_>>(), 0)
            };
            let expected = tokens(&clean).mean_dim(0, true, None);
            let run = Run::new(&model, &[name]).unwrap().edit(name, Edit::mean()).unwrap().run(&input).unwrap();
            let found = run.get(name).unwrap();
            assert!(tokens(found).allclose(&expected.expand_as(&tokens(found)), 1e-5, 1e-6, false), "{name} {right}");
            assert!(!tokens(found).allclose(&tokens(&clean), 1e-3, 1e-3, false), "{name}: the mean changes nothing");
        }
    }
}

#[test]
fn a_mean_over_some_positions_counts_their_tokens_and_needs_one() {
    let model = plain().0;
    let (input, _) = padded(true);
    let clean = one(&model, "h.1", &input);
    let run = |positions| {
        let edit = Edit::mean().positions(positions);
        Run::new(&model, &["h.1"]).unwrap().edit("h.1", edit).unwrap()
    };
    // Position 1 is a token of both rows, position 2 of the first.
    let tokens = [clean.select(0, 0).narrow(0, 1, 2), clean.select(0, 1).narrow(0, 1, 1)];
    let expected = Tensor::cat(&tokens, 0).mean_dim(0, true, None).unsqueeze(0);
    let output = run(1..3).run(&input).unwrap();
    let found = output.get("h.1").unwrap();
    assert!(found.narrow(1, 1, 2).allclose(&expected.expand([2, 2, 12], false), 1e-5, 1e-6, false));
    assert!(found.narrow(1, 3, 2).equal(&clean.narrow(1, 3, 2)));
    let short = Tensor::from_slice(&[1_i64, 1, 1, 0, 0, 1, 1, 0, 0, 0]).view([2, 5]);
    let error = run(3..5).run(padded(true).0.attention_mask(short)).unwrap_err();
    assert!(matches!(&error, Error::OutOfRange { what: "positions", size: 3, .. }), "{error}");
    let holes = Tensor::from_slice(&[1_i64, 0, 0, 1, 0, 1, 0, 0, 1, 0]).view([2, 5]);
    let error = run(1..3).run(padded(true).0.attention_mask(holes)).unwrap_err();
    assert!(matches!(&error, Error::NothingToAverage { site } if site == "h.1"), "{error}");
}

#[test]
fn with_a_cache_a_mean_counts_the_new_tokens() {
    let model = plain().0;
    let mask = |rows: &[[i64; 2]], columns: i64| Tensor::from_slice(&rows.concat()).view([2, columns]);
    let mut cache = KvCache::new();
    let first = Input::from_rows(&[[1, 2], [0, 3]]).unwrap().attention_mask(mask(&[[1, 1], [0, 1]], 2));
    Run::new(&model, &["lm_head"]).unwrap().run_cached(&first, &mut cache).unwrap();
    let second =
        Input::from_rows(&[[4, 5], [6, 0]]).unwrap().attention_mask(mask(&[[1, 1], [1, 1], [0, 1], [1, 0]], 4));
    let run = Run::new(&model, &["h.0.attn", "h.1"]).unwrap();
    let clean = run.run_cached(&second, &mut cache).unwrap();
    let edited = Run::new(&model, &["h.0.attn"]).unwrap().edit("h.0.attn", Edit::mean()).unwrap();
    let edited = edited.run_cached(&second, &mut cache).unwrap();
    let clean = clean.get("h.0.attn").unwrap();
    let tokens = Tensor::cat(&[clean.select(0, 0), clean.select(0, 1).narrow(0, 0, 1)], 0);
    let expected = tokens.mean_dim(0, true, None).unsqueeze(0).expand_as(clean);
    assert!(edited.get("h.0.attn").unwrap().allclose(&expected, 1e-5, 1e-6, false));
}

#[test]
fn the_last_logits_are_those_of_each_row_s_last_token() {
    let model = plain().0;
    let last = |input: Input| one(&model, "lm_head", &input.logits_at(LogitsAt::Last));
    for right in [true, false] {
        let (input, rows) = padded(right);
        let all = one(&model, "lm_head", &input);
        let found = last(padded(right).0);
        assert_eq!(found.size(), [2, 1, all.size()[2]]);
        for (row, range) in rows.into_iter().enumerate() {
            let expected = all.select(0, row as i64).select(0, range.end - 1);
            assert!(relative_error(&found.select(0, row as i64).select(0, 0), &expected) < 1e-6, "{right} {row}");
        }
    }
    // Padding on the right changes nothing for a row.
    let found = last(Input::padded(&[vec![1, 2, 3, 4, 5], vec![6, 7]]).unwrap());
    let alone = last(Input::from_rows(&[[6, 7]]).unwrap());
    assert!(relative_error(&found.select(0, 1), &alone.select(0, 0)) < 1e-5);
    // A row without a token gives the last column.
    let nothing = Tensor::from_slice(&[1_i64, 1, 0, 0, 0, 0]).view([2, 3]);
    let input = || Input::from_rows(&[[1, 2, 3], [4, 5, 6]]).unwrap().attention_mask(nothing.shallow_clone());
    let all = one(&model, "lm_head", &input());
    let found = last(input());
    for (row, column) in [(0, 1), (1, 2)] {
        let expected = all.select(0, row).select(0, column);
        assert!(relative_error(&found.select(0, row).select(0, 0), &expected) < 1e-6);
    }
}

#[test]
fn a_head_is_silenced_alike_through_its_values_and_its_pattern() {
    let (model, input) = plain();
    let logits = |name: &str| {
        let run = Run::new(&model, &["lm_head"]).unwrap().edit(name, Edit::zero().heads(1..2)).unwrap();
        run.run(&input).unwrap().get("lm_head").unwrap().shallow_clone()
    };
    let (by_z, by_pattern) = (logits("h.1.attn.z"), logits("h.1.attn.pattern"));
    assert!(relative_error(&by_z, &by_pattern) < 1e-5);
    assert!(relative_error(&by_z, &one(&model, "lm_head", &input)) > 1e-3);
}

/// The same tokens the other way round.
fn reversed() -> Input {
    let row = case("gpt2_plain").ids("single").remove(0);
    Input::from_rows(&[row.into_iter().rev().collect::<Vec<_>>()]).unwrap()
}

#[test]
fn patching_one_head_s_queries_and_keys_moves_only_its_pattern() {
    let (model, input) = plain();
    let names = ["h.1.attn.q", "h.1.attn.k", "h.1.attn.v", "h.1.attn.scores", "h.1.attn.pattern", "h.1.attn"];
    let own = partial_forward(&model, &names, &input).unwrap();
    let other = partial_forward(&model, &names, reversed()).unwrap();
    let patched = |sites: &[&str], heads: std::ops::Range<i64>, dimension: i64| {
        let mut run = Run::new(&model, &names).unwrap();
        for name in sites {
            let part = other.get(name).unwrap().narrow(dimension, heads.start, heads.end - heads.start);
            run = run.edit(name, Edit::replace(&part).heads(heads.clone())).unwrap();
        }
        run.run(&input).unwrap()
    };
    for run in [patched(&["h.1.attn.q", "h.1.attn.k"], 1..2, 2), patched(&["h.1.attn.scores"], 1..2, 1)] {
        for head in 0..3 {
            let pattern = |run: &Activations| run.get("h.1.attn.pattern").unwrap().select(1, head);
            let expected = pattern(if head == 1 { &other } else { &own });
            assert!(pattern(&run).allclose(&expected, 1e-6, 1e-6, false), "head {head}");
        }
    }
    let whole = patched(&names[..3], 0..3, 2);
    assert!(relative_error(whole.get("h.1.attn").unwrap(), other.get("h.1.attn").unwrap()) < 1e-6);
}

#[test]
fn with_a_cache_queries_keys_and_values_are_those_of_the_new_positions() {
    let (model, input) = plain();
    let names = ["h.1.attn.q", "h.1.attn.k", "h.1.attn.v", "h.1.attn.scores", "lm_head"];
    let whole = partial_forward(&model, &names, &input).unwrap();
    let row = case("gpt2_plain").ids("single").remove(0);
    let (first, second) = row.split_at(row.len() - 2);
    let (run, mut cache) = (Run::new(&model, &names).unwrap(), KvCache::new());
    run.run_cached(Input::from_rows(&[first]).unwrap(), &mut cache).unwrap();
    let new = run.run_cached(Input::from_rows(&[second]).unwrap(), &mut cache).unwrap();
    for (name, dimension) in names.into_iter().zip([1, 1, 1, 2, 1]) {
        let expected = whole.get(name).unwrap().narrow(dimension, first.len() as i64, 2);
        assert!(relative_error(new.get(name).unwrap(), &expected) < 1e-5, "{name}");
    }
}

#[test]
fn gradients_flow_from_and_to_every_site() {
    for name in ["gpt2_plain", "neo_plain"] {
        let case = case(name);
        let model = case.model(&LoadOptions::default());
        let weights = model.trainable(0..model.parts().len()).unwrap();
        for info in model.sites().iter() {
            let name = &info.names[0];
            let output = partial_forward(&model, &[name.as_str(), "lm_head"], case.input("single")).unwrap();
            let (value, logits) = (output.get(name).unwrap(), output.get("lm_head").unwrap());
            // To the site, as attribution patching wants it. The last position's logits depend on all but what other
            // positions alone lead to.
            let loss = logits.log_softmax(-1, None).select(1, -1).square().sum(None);
            let gradient = Tensor::f_run_backward(&[&loss], &[value], true, false).unwrap().remove(0);
            assert_eq!(gradient.size(), value.size(), "{name}");
            assert!(gradient.isfinite().all().int64_value(&[]) != 0, "{name}");
            assert!(gradient.abs().max().double_value(&[]) > 0.0, "{name}");
            // And from it, to the weights.
            assert!(value.requires_grad(), "{name}");
        }
        drop(weights);
    }
}

#[test]
fn patching_the_whole_stream_gives_the_other_run() {
    let (model, input) = plain();
    let other = reversed();
    let stream = one(&model, "h.0", &other);
    let run = Run::new(&model, &["lm_head"]).unwrap().edit("h.0", Edit::replace(&stream)).unwrap();
    let patched = run.run(&input).unwrap();
    assert!(patched.get("lm_head").unwrap().equal(&one(&model, "lm_head", &other)));
}

#[test]
fn an_edit_a_stop_and_a_start_in_the_middle_go_together() {
    let (model, input) = plain();
    let run = |deepest: &str| Run::new(&model, &["h.1", deepest]).unwrap().edit("h.1.attn.z", Edit::zero()).unwrap();
    let whole = run("lm_head").run(&input).unwrap();
    let stopped = run("h.1").run(&input).unwrap();
    assert_eq!((whole.blocks_run(), stopped.blocks_run()), (3, 2));
    assert!(stopped.get("h.1").unwrap().equal(whole.get("h.1").unwrap()));
    assert!(!stopped.get("h.1").unwrap().equal(&one(&model, "h.1", &input)));
    let middle = Input::stream(Site::before_block(1), one(&model, "h.0", &input));
    let begun = run("h.1").run(&middle).unwrap();
    assert_eq!(begun.blocks_run(), 1);
    assert!(begun.get("h.1").unwrap().equal(whole.get("h.1").unwrap()));
}

#[test]
fn edits_that_cannot_be_are_refused_and_the_model_still_works() {
    let (model, input) = plain();
    let run = || Run::new(&model, &["h.1"]).unwrap();
    assert!(matches!(run().edit("h.2.attn", Edit::zero()), Err(Error::EditAfterStop { .. })));
    assert!(matches!(run().edit("h.1.mlp", Edit::zero().heads(0..1)), Err(Error::NoHeads { .. })));
    let refuse = |edit: Edit| run().edit("h.0.attn.z", edit).unwrap().run(&input).unwrap_err();
    assert!(matches!(refuse(Edit::zero().heads(3..9)), Error::OutOfRange { what: "heads", .. }));
    assert!(matches!(refuse(Edit::zero().positions(5..500)), Error::OutOfRange { what: "positions", .. }));
    let shape = refuse(Edit::replace(&Tensor::zeros([2, 3], (Kind::Float, transformer_utils::tch::Device::Cpu))));
    assert!(matches!(shape, Error::EditShape { .. }) && shape.to_string().contains("h.0.attn.z"), "{shape}");
    let narrowed = refuse(Edit::with(|value| value.f_narrow(1, 0, 2)));
    assert!(matches!(narrowed, Error::EditShape { .. }) && narrowed.to_string().contains("h.0.attn.z"), "{narrowed}");
    let failed = refuse(Edit::with(|_| Err(TchError::Shape("no such thing".into()))));
    assert!(failed.to_string().contains("h.0.attn.z") && failed.to_string().contains("no such thing"), "{failed}");
    assert!(run().run(&input).is_ok());
}

#[test]
fn an_edit_s_value_comes_to_the_dtype_and_device_of_the_run() {
    let (model, input) = plain();
    let zeros = Tensor::zeros([12], (Kind::Int64, Device::Cpu));
    let run = Run::new(&model, &["h.1.attn"]).unwrap().edit("h.1.attn", Edit::replace(&zeros)).unwrap();
    assert_eq!(run.run(&input).unwrap().get("h.1.attn").unwrap().kind(), Kind::Float);
}

/// Puts a value of its own in at one site.
struct Meddler(Site, Tensor);

impl Observer for Meddler {
    fn wants(&self, site: Site) -> bool {
        site == self.0
    }

    fn observe(&mut self, _: Site, _: &Tensor) -> Result<Action, ObserverError> {
        Ok(Action::Replace(self.1.shallow_clone()))
    }
}

#[test]
fn an_observer_cannot_change_shape_or_dtype_at_any_site() {
    let (model, input) = plain();
    for info in model.sites().iter() {
        let value = one(&model, &info.names[0], &input);
        for other in [value.narrow(-1, 0, 1), value.unsqueeze(0), value.to_kind(Kind::Double)] {
            if other.size() == value.size() && other.kind() == value.kind() {
                continue;
            }
            let error = model.forward(&input, &mut Meddler(info.site, other)).unwrap_err();
            assert!(matches!(error, ModelError::Replacement { .. }), "{error}");
            assert!(error.to_string().contains(&format!("put in at {} ", info.site)), "{error}");
        }
        assert!(model.forward(&input, &mut Meddler(info.site, value)).is_ok(), "{}", info.site);
    }
}

#[test]
fn a_read_after_the_stop_names_the_site() {
    let (model, input) = plain();
    let output = partial_forward(&model, &["h.0", "h.1.attn"], &input).unwrap();
    let error = output.get("h.1").unwrap_err().to_string();
    assert!(error.contains("\"h.1\"") && error.contains("h.1.attn"), "{error}");
    assert!(partial_forward(&model, &["h.1"], &input).is_ok());
}

#[test]
fn a_start_in_the_middle_has_no_earlier_sites() {
    let (model, input) = plain();
    let start = || Input::stream(Site::before_block(2), one(&model, "h.1", &input));
    assert!(matches!(partial_forward(&model, &["h.0.attn"], start()), Err(Error::BeforeStart { .. })));
    let output = partial_forward(&model, &["h.2"], start()).unwrap();
    assert_eq!(output.blocks_run(), 1);
    assert!(output.get("h.2").unwrap().equal(&one(&model, "h.2", &input)));
}

#[test]
fn positions_device_and_kind_of_captures() {
    let (model, input) = plain();
    let names = ["h.0", "h.1.attn.pattern", "h.1.attn.z"];
    let whole = partial_forward(&model, &names, &input).unwrap();
    let run = Run::new(&model, &names).unwrap().positions(1..3).to_kind(Kind::Double);
    let part = run.run(&input).unwrap();
    for (name, dimension) in names.into_iter().zip([1, 2, 1]) {
        let expected = whole.get(name).unwrap().narrow(dimension, 1, 2).to_kind(Kind::Double);
        assert!(part.get(name).unwrap().equal(&expected), "{name}");
    }
}

#[test]
fn captures_say_what_they_share() {
    let (model, input) = plain();
    let output = partial_forward(&model, &["h.1.attn", "h.1.attn.c_proj", "h.1"], &input).unwrap();
    assert_eq!(output.shares_storage("h.1.attn").unwrap(), ["h.1.attn.c_proj"]);
    assert!(output.shares_storage("h.1").unwrap().is_empty());
    assert!(output.get("h.2").unwrap_err().to_string().contains("h.1.attn.c_proj"));
}

#[test]
fn bad_inputs_are_refused_and_the_model_still_works() {
    let (model, input) = plain();
    let config = model.architecture();
    let refuse = |input: &Input| match partial_forward(&model, &["h.0"], input) {
        Err(Error::Model(error)) => error,
        _ => panic!("not refused"),
    };
    let rows = |rows: &[[i64; 3]]| Input::from_rows(rows).unwrap();
    assert!(matches!(refuse(&rows(&[[1, config.vocabulary, 2]])), ModelError::TokenOutOfRange { position: 1, .. }));
    assert!(matches!(refuse(&rows(&[[1, 2, 3], [4, -1, 5]])), ModelError::TokenOutOfRange { row: 1, id: -1, .. }));
    let long = Input::from_rows(&[vec![1; config.context as usize + 1]]).unwrap();
    assert!(matches!(refuse(&long), ModelError::TooManyPositions { .. }));
    assert!(matches!(Input::from_rows::<[i64; 0]>(&[]), Err(ModelError::EmptyInput)));
    assert!(matches!(Input::from_rows(&[vec![1, 2], vec![3]]), Err(ModelError::InputShape { .. })));
    let mask = rows(&[[1, 2, 3]]).attention_mask(Tensor::from_slice(&[1_i64, 1]).view([1, 2]));
    assert!(matches!(refuse(&mask), ModelError::InputShape { what: "attention_mask", .. }));
    let positions = rows(&[[1, 2, 3]]).position_ids(Tensor::from_slice(&[0_i64, 1, config.context]).view([1, 3]));
    assert!(matches!(refuse(&positions), ModelError::PositionOutOfRange { .. }));
    for shape in [vec![3], vec![1, 2], vec![2, 3]] {
        let numbers = || Tensor::zeros(&shape[..], (Kind::Int64, Device::Cpu));
        let mask = rows(&[[1, 2, 3]]).attention_mask(numbers());
        assert!(matches!(refuse(&mask), ModelError::InputShape { what: "attention_mask", .. }), "{shape:?}");
        let positions = rows(&[[1, 2, 3]]).position_ids(numbers());
        assert!(matches!(refuse(&positions), ModelError::InputShape { what: "position_ids", .. }), "{shape:?}");
    }
    let halves = rows(&[[1, 2, 3]]).position_ids(Tensor::from_slice(&[0.0_f32, 0.5, 1.0]).view([1, 3]));
    assert!(refuse(&halves).to_string().contains("position_ids must be integers"));
    let stream = Input::stream(Site::INPUT, Tensor::zeros([1, 3, 11], (Kind::Float, Device::Cpu)));
    assert!(matches!(refuse(&stream), ModelError::InputShape { what: "the stream", .. }));
    let middle = Input::stream(Site::block(0, Point::MlpInput), Tensor::zeros([1, 3, 12], (Kind::Float, Device::Cpu)));
    let error = partial_forward(&model, &["h.1"], &middle).unwrap_err();
    assert!(matches!(error, Error::Model(ModelError::BadStart { .. })), "{error}");
    assert!(partial_forward(&model, &["h.0"], &input).is_ok());
}

#[test]
fn a_model_is_used_on_one_thread_after_another() {
    let (model, _) = plain();
    let ids = case("gpt2_plain").ids("single");
    let first = one(&model, "lm_head", &Input::from_rows(&ids).unwrap());
    let copy = ids.clone();
    let model = std::thread::spawn(move || {
        drop(one(&model, "lm_head", &Input::from_rows(&copy).unwrap()));
        model
    });
    let model = model.join().unwrap();
    assert!(one(&model, "lm_head", &Input::from_rows(&ids).unwrap()).equal(&first));
}

#[test]
fn a_model_is_used_by_several_threads_in_turn() {
    fn sent<T: Send>(value: T) -> T {
        value
    }
    let (model, input) = plain();
    let expected = one(&model, "h.1.attn.z", &input);
    let model = Arc::new(Mutex::new(sent(model)));
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let model = Arc::clone(&model);
            std::thread::spawn(move || {
                let ids = case("gpt2_plain").ids("single");
                let model = model.lock().unwrap();
                sent(partial_forward(&model, &["h.1.attn.z"], Input::from_rows(&ids).unwrap()).unwrap())
            })
        })
        .collect();
    for thread in threads {
        assert!(thread.join().unwrap().get("h.1.attn.z").unwrap().equal(&expected));
    }
}
