//! Patched runs against whole runs with an edit, one by one.

use transformer_utils::{
    lowmem::LoadOptions,
    models::{Input, LogitsAt, Model, Site},
    partial::{Columns, Direction, Edit, Metric, Patch, Patching, Run, partial_forward},
    tch::{Kind, Tensor},
};

use crate::support::{Case, cases, matrix, tensor};

/// Two inputs that differ from position 1 on, here and there.
fn pair(case: &Case, model: &Model, batch: &str) -> (Input, Input) {
    let vocabulary = model.architecture().vocabulary;
    let mut ids = matrix(&case.json[batch]["ids"]);
    for (row, ids) in ids.iter_mut().enumerate() {
        for (position, id) in ids.iter_mut().enumerate().filter(|(position, _)| position % 4 == 1) {
            *id = (*id + 1 + (row + position) as i64) % vocabulary;
        }
    }
    let mut other = Input::from_rows(&ids).unwrap();
    if let Some(mask) = case.json[batch].get("attention_mask") {
        other = other.attention_mask(tensor(&matrix(mask)));
    }
    if let Some(positions) = case.json[batch].get("position_ids").filter(|_| batch == "left") {
        other = other.position_ids(tensor(&matrix(positions)));
    }
    (case.input(batch), other)
}

/// Logits of each row's last token, `[row, vocabulary]`, of a whole run of all positions.
fn last(logits: &Tensor, input: &Input) -> Tensor {
    let (rows, length, _) = logits.size3().unwrap();
    let last_of = |row: i64| {
        let attended = input.attended(Site::INPUT).unwrap();
        let last = (0..length).rev().find(|&at| attended.as_ref().is_none_or(|mask| mask.int64_value(&[row, at]) == 1));
        logits.get(row).get(last.unwrap_or(length - 1))
    };
    Tensor::stack(&(0..rows).map(last_of).collect::<Vec<_>>(), 0)
}

/// The metric of a whole run of `base` with a value of `source` put in.
fn naive(model: &Model, base: &Input, source: &Input, place: &Place, metric: &Metric) -> f64 {
    let (site, positions, heads) = place;
    let value = partial_forward(model, &[site], source).unwrap();
    let mut value = value.get(site).unwrap().shallow_clone();
    let sites = model.sites();
    let mut narrow = |dimension: Option<usize>, range: &std::ops::Range<i64>| {
        value = value.narrow(dimension.unwrap() as i64, range.start, range.end - range.start);
    };
    if let Some(positions) = positions {
        narrow(sites.position_dimension(*site), positions);
    }
    if let Some(heads) = heads {
        narrow(sites.head_dimension(*site), heads);
    }
    let mut edit = Edit::replace(&value);
    if let Some(positions) = positions {
        edit = edit.positions(positions.clone());
    }
    if let Some(heads) = heads {
        edit = edit.heads(heads.clone());
    }
    let run = Run::new(model, &["logits"]).unwrap().edit(site, edit).unwrap();
    let logits = run.run(&base.clone().logits_at(LogitsAt::All)).unwrap();
    let metric = metric.of(&last(logits.get("logits").unwrap(), base)).unwrap();
    metric.to_kind(Kind::Double).mean(None).double_value(&[])
}

type Place = (Site, Option<std::ops::Range<i64>>, Option<std::ops::Range<i64>>);

/// Every site that can be patched, with all its positions, some, and one, and with one head.
fn places(model: &Model, length: i64) -> Vec<Place> {
    let mut places = Vec::new();
    for info in model.sites().iter() {
        let site = info.site;
        if Patching::new(model, [1, 2], [1, 3]).unwrap().sites(site).is_err() {
            continue;
        }
        places.extend([(site, None, None), (site, Some(0..1), None), (site, Some(length - 1..length), None)]);
        places.extend([(site, Some(3..6), None), (site, Some(length - 2..length), None)]);
        if let Some(dimension) = model.sites().head_dimension(site) {
            let heads = info.shape[dimension].size.unwrap();
            places.extend([(site, None, Some(heads - 1..heads)), (site, Some(5..6), Some(0..1))]);
        }
    }
    places
}

fn patches(places: &[Place]) -> Vec<Patch> {
    let patch = |(site, positions, heads): &Place| {
        let mut patch = Patch::at(site);
        if let Some(positions) = positions {
            patch = patch.positions(positions.clone());
        }
        if let Some(heads) = heads {
            patch = patch.heads(heads.clone());
        }
        patch
    };
    places.iter().map(patch).collect()
}

#[test]
fn patched_runs_have_the_bits_of_whole_runs() {
    let mut wrong = Vec::new();
    for case in cases().into_iter().filter(Case::is_original) {
        let model = case.model(&LoadOptions::default());
        if model.parts().dtype().kind() != Kind::Float {
            continue;
        }
        for batch in ["single", "left", "right"].into_iter().filter(|batch| case.json.get(batch).is_some()) {
            let (clean, corrupted) = pair(&case, &model, batch);
            let places = places(&model, clean.shape()[1]);
            let metric = Metric::logit_difference([2], [0]);
            let found =
                Patching::new(&model, &clean, &corrupted).unwrap().run_each(&patches(&places), &metric).unwrap();
            let mut differing = 0;
            for (place, found) in places.iter().zip(&found.effects.values) {
                let expected = naive(&model, &corrupted, &clean, place, &metric);
                if found[0] != expected {
                    differing += 1;
                    wrong.push(format!(
                        "{} {batch} {} {:?} {:?}: {} instead of {expected}",
                        case.name, place.0, place.1, place.2, found[0]
                    ));
                }
            }
            println!(
                "{} {batch} {:?}: {differing} of {} differ; {:?}",
                case.name,
                clean.shape(),
                places.len(),
                found.report
            );
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}
