//! Sweeps of an edited model against whole runs with the same edits, one by one.

use super::*;

/// Sites, and what every run changes there.
type Edits = Vec<(&'static str, Edit)>;

fn run<'a>(model: &'a Model, name: Site, edits: &Edits) -> Run<'a> {
    let run = Run::new(model, &[name]).unwrap();
    let before = edits.iter().filter(|(site, _)| !model.sites().is_after(model.sites().parse(site).unwrap(), name));
    before.fold(run, |run, (site, edit)| run.edit(*site, edit.clone()).unwrap())
}

/// The metric of a whole edited run of `base` with the edited value of `source` put in.
fn by_hand(model: &Model, [base, source]: [&Input; 2], place: &Place, edits: &Edits) -> f64 {
    let site = &place.0;
    let value = |input: &Input| run(model, *site, edits).run(input).unwrap().get(site).unwrap().copy();
    let (new, old) = (value(source), value(base));
    chosen(model, place, &old).copy_(&chosen(model, place, &new));
    let patched = run(model, Site::LOGITS, edits).edit(site, Edit::replace(&old)).unwrap();
    let logits = patched.run(base.clone()).unwrap();
    mean(&difference(), logits.get(Site::LOGITS).unwrap(), base)
}

/// Some of the places, and what a sweep of the edited model found there, all of which is compared.
fn compare_edited(name: &str, model: &Model, [clean, corrupted]: [&Input; 2], edits: &Edits) -> PatchReport {
    let sweep = || {
        let patching = Patching::new(model, clean, corrupted).unwrap();
        edits.iter().fold(patching, |patching, (site, edit)| patching.edit(*site, edit.clone()).unwrap())
    };
    let at = |site: &str| model.sites().parse(site).unwrap();
    let places = [
        (Site::INPUT, Some(7..9), None),
        (at("h.0"), None, None),
        (at("h.0"), Some(8..9), None),
        (at("h.0"), Some(0..3), None),
        (at("h.0.attn.z"), None, Some(0..1)),
        (at("h.0.attn.z"), None, Some(1..2)),
        (at("h.0.attn.z"), Some(3..10), Some(1..2)),
        (at("h.0.mlp"), Some(9..10), None),
        (at("h.1.attn.z"), None, Some(1..2)),
        (at("h.1.mlp"), None, None),
        (at("ln_f"), None, None),
    ];
    let found = sweep().run_each(&places.clone().map(|place| patch(&place)), &difference()).unwrap();
    let mut moved = 0;
    for (place, found) in places.iter().zip(&found.effects.values) {
        let expected = by_hand(model, [corrupted, clean], place, edits);
        assert!((found[0] - expected).abs() < 1e-6, "{name}, {}: {} instead of {expected}", patch(place), found[0]);
        moved += usize::from(Some(found[0]) != found_base(&sweep));
    }
    assert!(moved > 5, "{name}: {moved}");
    for (input, found) in [(clean, found.effects.clean), (corrupted, found.effects.corrupted)] {
        let logits = run(model, Site::LOGITS, edits).run(input.clone()).unwrap();
        assert_eq!(found, Some(mean(&difference(), logits.get(Site::LOGITS).unwrap(), input)), "{name}");
    }
    found.report
}

fn found_base<'a>(sweep: &impl Fn() -> Patching<'a>) -> Option<f64> {
    sweep().run_each(&[Patch::at("h.0").positions(0..1)], &difference()).unwrap().effects.corrupted
}

#[test]
fn every_run_of_a_sweep_is_edited() {
    let direction = (Tensor::arange(64, (Kind::Float, tch::Device::Cpu)) * 2.3).sin();
    let alike = || {
        vec![
            ("h.0.attn.z", Edit::zero().heads([0])),
            ("h.0.attn.z", Edit::scale(0.5).positions(4..)),
            ("input", Edit::scale(3.0)),
            ("h.0", Edit::add(&direction).positions(2..9)),
            ("ln_f", Edit::scale(2.0)),
        ]
    };
    for (name, config) in [("gpt2", GPT2), ("llama", LLAMA), ("neox", NEOX)] {
        let model = model(config);
        for rows in [1, 2] {
            let (clean, corrupted) = pair(rows, 12);
            let report = compare_edited(name, &model, [&clean, &corrupted], &alike());
            assert!(report.positions_run < report.positions_total && report.largest_batch > 1, "{report:?}");
        }
    }
    let model = model(GPT2);
    let (clean, corrupted) = pair(2, 12);
    let mask = Tensor::from_slice2(&[[1; 12], [0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]]);
    let padded = |input: Input| {
        input.attention_mask(mask.shallow_clone()).position_ids(Input::positions_from_mask(&mask).unwrap())
    };
    compare_edited("padded", &model, [&padded(clean), &padded(corrupted)], &alike());
}

#[test]
fn edits_that_mix_or_tell_apart_are_made_in_runs_of_their_own() {
    let model = model(GPT2);
    let (clean, corrupted) = pair(2, 12);
    let stored = |shape: &[i64]| {
        let size: i64 = shape.iter().product();
        (Tensor::arange(size, (Kind::Float, tch::Device::Cpu)) * 1.7).sin().view(shape)
    };
    for (name, edit) in [
        ("mean", Edit::mean()),
        ("mean of some", Edit::mean().positions(5..)),
        ("function", Edit::with(|value| value.f_flip([1]))),
        ("each position", Edit::add(&stored(&[12, 64]))),
        ("each row", Edit::add(&stored(&[2, 1, 64]))),
    ] {
        let report = compare_edited(name, &model, [&clean, &corrupted], &vec![("h.0.mlp", edit)]);
        assert_eq!((report.largest_batch, report.positions_run), (1, report.positions_total), "{name}");
    }
}

#[test]
fn paths_lead_through_the_edited_model() {
    let model = model(GPT2);
    let (clean, corrupted) = pair(1, 12);
    let patching = || Patching::new(&model, &clean, &corrupted).unwrap().received_at(Patch::at("h.1"));
    let silent = patching().edit("h.0.attn.z", Edit::zero()).unwrap();
    let found = silent.sites("h.0.attn.z").unwrap().each_head().run(&difference()).unwrap().effects;
    assert_eq!(found.values, [[found.corrupted.unwrap(); 4]]);
    let heads = patching().sites("h.0.attn.z").unwrap().each_head().run(&difference()).unwrap().effects;
    assert_ne!(heads.values, found.values);
}

#[test]
fn edits_that_no_sweep_makes_are_refused() {
    let model = model(GPT2);
    let (clean, corrupted) = pair(1, 12);
    let patching = || Patching::new(&model, &clean, &corrupted).unwrap();
    assert!(matches!(patching().edit("logits", Edit::zero()), Err(Error::NotPatchable { .. })));
    assert!(matches!(patching().edit("h.0", Edit::zero().heads([0])), Err(Error::NoHeads { .. })));
    assert!(matches!(patching().edit("h.2", Edit::zero()), Err(Error::Model(_))));
    let stream = || Input::stream(Site::INPUT, Tensor::zeros([1, 12, 64], (Kind::Float, tch::Device::Cpu)));
    let streams = Patching::new(&model, stream(), stream()).unwrap();
    assert!(matches!(streams.edit("wte", Edit::zero()), Err(Error::BeforeStart { .. })));
    let run = |edit: Edit| patching().edit("h.0", edit).unwrap().sites("h.1").unwrap().run(&difference()).unwrap_err();
    assert!(matches!(run(Edit::zero().positions(4..13)), Error::OutOfRange { what: "positions", .. }));
    assert!(matches!(run(Edit::zero().new_tokens()), Error::NoNewTokens { .. }));
}
