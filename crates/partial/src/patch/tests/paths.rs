//! Paths against three whole runs with edits that say by name what stays.

use super::*;

/// The halves of blocks whose names say so, and what each adds to the stream.
fn added(model: &Model, block: usize) -> [(String, Site); 2] {
    let layer = &model.architecture().layers[block];
    [("attn", layer.attention_added()), ("mlp", layer.mlp_added())]
        .map(|(half, point)| (format!("h.{block}.{half}"), Site::block(block, point)))
}

/// A name, and one head where not all are meant.
type End = (&'static str, Option<i64>);

/// Puts in the whole of a value, or one head of it.
fn put<'a>(model: &Model, run: Run<'a>, (name, head): End, new: &Tensor) -> Run<'a> {
    let edit = head.map_or_else(
        || Edit::replace(new),
        |head| {
            let dimension = model.sites().head_dimension(model.sites().parse(name).unwrap()).unwrap() as i64;
            Edit::replace(&new.narrow(dimension, head, 1)).heads([head])
        },
    );
    run.edit(name, edit).unwrap()
}

/// The metric of the run that a path's end is put into.
fn naive(model: &Model, [base, source]: [&Input; 2], sender: End, receiver: End, mlps: bool, metric: &Metric) -> f64 {
    let value = |input: &Input, name: &str| partial_forward(model, &[name], input).unwrap().get(name).unwrap().copy();
    let mut run = Run::new(model, &[receiver.0]).unwrap();
    run = put(model, run, sender, &value(source, sender.0));
    let (end, begin) = (model.sites().parse(receiver.0).unwrap(), model.sites().parse(sender.0).unwrap());
    for (half, site) in (0..model.config().layers()).flat_map(|block| added(model, block)) {
        let between = model.sites().is_after(end, site) && model.sites().is_after(site, begin);
        let free = sender.0.starts_with(&half) || (mlps && half.ends_with("mlp"));
        if between && !free {
            run = run.edit(site, Edit::replace(&value(base, &site.to_string()))).unwrap();
        }
    }
    let arrived = run.run(base.clone()).unwrap();
    let run = put(model, Run::new(model, &["logits"]).unwrap(), receiver, arrived.get(receiver.0).unwrap());
    let logits = run.run(base.clone().logits_at(LogitsAt::All)).unwrap();
    mean(metric, logits.get("logits").unwrap(), base)
}

#[test]
fn a_path_is_what_arrives_at_its_end() {
    let clean = Input::from_rows(&[[1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11, 12]]).unwrap();
    let corrupted = Input::from_rows(&[[1, 2, 33, 4, 5, 6], [7, 8, 9, 44, 11, 12]]).unwrap();
    let metric = Metric::logit_difference([3, 4], [5, 6]);
    for config in [GPT2, LLAMA, GEMMA3, NEOX, OPT] {
        let deeper = config.replace("_layers\": 2", "_layers\": 3").replace("n_layer\": 2", "n_layer\": 3");
        let deeper = deeper.replace("[\"full_attention\", ", "[\"full_attention\", \"full_attention\", ");
        let mut fresh = Config::from_json(&deeper).unwrap();
        // Usual weights are small, and what a head adds to a normed stream then moves nothing.
        fresh.initializer_range = 0.1;
        let model = Model::random(fresh, 0).unwrap();
        let mut moved = 0;
        for (sender, receiver) in [
            (("h.0.attn.z", Some(1)), ("h.2.attn.q", Some(2))),
            (("h.0.attn.z", Some(1)), ("h.2", None)),
            (("h.0.mlp", None), ("h.2.attn.v", Some(1))),
            (("h.1.attn.v", Some(0)), ("h.1.attn", None)),
            (("h.1.attn.z", Some(3)), ("h.1.mlp", None)),
            (("h.0", None), ("h.2.mlp", None)),
            (("h.2.attn.z", Some(0)), ("h.2", None)),
            (("h.2.attn.z", Some(0)), ("h.2.attn.k", Some(0))),
        ] {
            for mlps in [false, true] {
                let place = |(name, head): End| {
                    let at = Patch::at(name);
                    head.map_or(at.clone(), |head| at.heads(head..head + 1))
                };
                let mut patching = Patching::new(&model, clean.clone(), corrupted.clone()).unwrap();
                patching = patching.received_at(place(receiver));
                if mlps {
                    patching = patching.through_mlps();
                }
                let found = patching.run_each(&[place(sender)], &metric).unwrap().effects;
                let (value, base) = (found.values[0][0], found.corrupted.unwrap());
                let what = format!("{config}: {sender:?} to {receiver:?}, {mlps}");
                if receiver.0 == "h.2.attn.k" {
                    assert_eq!(value, base, "{what}: heads speak to no keys of their own layer");
                    continue;
                }
                let expected = naive(&model, [&corrupted, &clean], sender, receiver, mlps, &metric);
                assert!(
                    (value - expected).abs() < 1e-5 * value.abs().max(1.0),
                    "{what}: {value} instead of {expected}, from {base}"
                );
                let none = config == NEOX && receiver.0 == "h.1.mlp";
                assert!(!none || (value - base).abs() < 1e-6, "{what}: {value} from {base}");
                moved += usize::from((value - base).abs() > 1e-5);
            }
        }
        assert!(moved > 5, "{config}: {moved}");
    }
}

#[test]
fn many_paths_are_those_paths_one_by_one() {
    let model = model(GPT2);
    let [clean, corrupted] = [[1, 2, 3, 4, 5, 6], [1, 2, 33, 4, 5, 66]];
    let metric = Metric::logit([3]);
    let receiver = || Patch::at("h.1.attn.k").heads(0..2).and_at("h.1.attn.v").positions(1..5);
    let patching = || Patching::new(&model, clean, corrupted).unwrap().received_at(receiver());
    let all = patching().sites("h.0.*").unwrap().each_position().run(&metric).unwrap();
    assert_eq!(all.effects.method, "path patched");
    assert!(all.report.largest_batch > 1 && all.report.unchanged > 0);
    for (name, row) in all.effects.rows.iter().zip(&all.effects.values) {
        for (position, &value) in (0..).zip(row) {
            let patch = Patch::at(name.as_str()).positions(position..position + 1);
            let alone = patching().run_each(&[patch], &metric).unwrap();
            assert!((alone.effects.values[0][0] - value).abs() < 1e-6, "{name} {position}");
        }
    }
}

#[test]
fn a_receiver_that_is_not_there_is_refused() {
    let model = model(GPT2);
    let to = |receiver: Patch| {
        let patching = Patching::new(&model, [1, 2, 3], [1, 5, 3]).unwrap().sites("h.0").unwrap().received_at(receiver);
        patching.run(&Metric::logit([3])).unwrap_err()
    };
    assert!(matches!(to(Patch::at("logits")), Error::NotPatchable { .. }));
    assert!(matches!(to(Patch::at("h.1.attn.q").heads(3..5)), Error::OutOfRange { what: "heads", .. }));
    assert!(matches!(to(Patch::at("h.2")), Error::Model(_)));
}
