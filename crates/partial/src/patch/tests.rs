//! Patched runs against whole runs with an edit, one by one; what is refused; how batches are made.

mod edits;
mod memory;
mod paths;
mod refused;

use models::{Config, LogitsAt};
use tch::{Kind, Tensor};

use super::*;
use crate::{Edit, Run, partial_forward};

fn model(config: &str) -> Model {
    Model::random(Config::from_json(config).unwrap(), 0).unwrap()
}

const GPT2: &str = r#"{"model_type": "gpt2", "n_layer": 2, "n_head": 4, "n_embd": 64, "vocab_size": 96}"#;
const NEO: &str = r#"{"model_type": "gpt_neo", "num_layers": 2, "num_heads": 4, "hidden_size": 64, "vocab_size": 96,
    "attention_types": [[["global", "local"], 1]], "window_size": 5, "max_position_embeddings": 64}"#;
const LLAMA: &str = r#"{"model_type": "llama", "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "hidden_size": 64, "intermediate_size": 96, "vocab_size": 96, "rms_norm_eps": 1e-6, "max_position_embeddings": 64,
    "hidden_act": "silu"}"#;
const GEMMA3: &str = r#"{"model_type": "gemma3_text", "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "hidden_size": 64, "intermediate_size": 96, "vocab_size": 96,
    "rms_norm_eps": 1e-6, "max_position_embeddings": 64, "sliding_window": 5, "query_pre_attn_scalar": 16,
    "hidden_activation": "gelu_pytorch_tanh",
    "layer_types": ["full_attention", "sliding_attention"]}"#;
const MISTRAL: &str = r#"{"model_type": "mistral", "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "hidden_size": 64, "intermediate_size": 96, "vocab_size": 96, "rms_norm_eps": 1e-6, "max_position_embeddings": 64,
    "sliding_window": 5, "hidden_act": "silu"}"#;
const NEOX: &str = r#"{"model_type": "gpt_neox", "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64,
    "intermediate_size": 96, "vocab_size": 96, "layer_norm_eps": 1e-5, "max_position_embeddings": 64, "hidden_act": "gelu",
    "use_parallel_residual": true, "rotary_pct": 0.5, "rotary_emb_base": 10000}"#;

const OPT: &str = r#"{"model_type": "opt", "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64, "ffn_dim": 96,
    "vocab_size": 96, "max_position_embeddings": 64, "word_embed_proj_dim": 32, "do_layer_norm_before": false,
    "activation_function": "relu"}"#;

/// A site, with positions and heads where not all are meant.
type Place = (Site, Option<Range<i64>>, Option<Range<i64>>);

/// The part of a site's value that is meant: a view. Positions are columns here, where those of an edit are each row's own.
fn chosen(model: &Model, (site, positions, heads): &Place, value: &Tensor) -> Tensor {
    let (sites, mut chosen) = (model.sites(), value.shallow_clone());
    for (dimension, range) in [(sites.position_dimension(*site), positions), (sites.head_dimension(*site), heads)] {
        if let Some(range) = range {
            chosen = chosen.narrow(dimension.unwrap() as i64, range.start, range.end - range.start);
        }
    }
    chosen
}

/// The metric of a whole run of `base` with a value of `source` put in.
fn naive(model: &Model, base: &Input, source: &Input, place: &Place, metric: &Metric) -> f64 {
    let site = &place.0;
    let value = |input: &Input| partial_forward(model, &[site], input).unwrap().get(site).unwrap().copy();
    let (new, old) = (value(source), value(base));
    chosen(model, place, &old).copy_(&chosen(model, place, &new));
    let edit = Edit::replace(&old);
    let run = Run::new(model, &["logits"]).unwrap().edit(site, edit).unwrap();
    let logits = run.run(base.clone().logits_at(LogitsAt::All)).unwrap();
    mean(metric, logits.get("logits").unwrap(), base)
}

/// The metric of the last tokens of all rows of `logits`, `[row, position, vocabulary]`, averaged.
fn mean(metric: &Metric, logits: &Tensor, input: &Input) -> f64 {
    let (rows, length) = (logits.size()[0], logits.size()[1]);
    let mask = input.attended(Site::INPUT).unwrap();
    let is_token = |row: i64, at: i64| mask.as_ref().is_none_or(|mask| mask.int64_value(&[row, at]) == 1);
    let last = |row: i64| logits.get(row).get((0..length).rev().find(|&at| is_token(row, at)).unwrap());
    let last = Tensor::stack(&(0..rows).map(last).collect::<Vec<_>>(), 0);
    metric.of(&last).unwrap().to_kind(Kind::Double).mean(None).double_value(&[])
}

/// Every site that can be patched: whole, at some positions or at one, and at one head.
fn places(model: &Model, length: i64) -> Vec<Place> {
    let mut places = Vec::new();
    for (index, info) in model.sites().iter().filter(|info| places::check_site(model, info.site).is_ok()).enumerate() {
        let site = info.site;
        let range = [2..3, 9..14, length - 2..length, length - 1..length][index % 4].clone();
        places.extend([(site, None, None), (site, Some(range), None)]);
        if let Some(dimension) = model.sites().head_dimension(site) {
            let heads = info.shape[dimension].size.unwrap();
            places.extend([(site, None, Some(heads - 1..heads)), (site, Some(11..12), Some(0..1))]);
        }
    }
    places
}

fn patch((site, positions, heads): &Place) -> Patch {
    let mut patch = Patch::at(site);
    if let Some(positions) = positions {
        patch = patch.positions(positions.clone());
    }
    if let Some(heads) = heads {
        patch = patch.heads(heads.clone());
    }
    patch
}

/// Rows of ids that differ from position 3 on, here and there.
fn pair(rows: i64, length: i64) -> (Input, Input) {
    let ids = |turn: i64| {
        let row =
            |row: i64| (0..length).map(move |at| (7 + 13 * row + 29 * at + if at % 4 == 3 { turn } else { 0 }) % 96);
        Input::from_rows(&(0..rows).map(|at| row(at).collect::<Vec<_>>()).collect::<Vec<_>>()).unwrap()
    };
    (ids(0), ids(5))
}

fn difference() -> Metric {
    Metric::logit_difference([2], [0])
}

/// Compares patched runs with whole ones, bit for bit.
fn compare(name: &str, model: &Model, clean: &Input, corrupted: &Input) -> PatchReport {
    let places = places(model, clean.shape()[1]);
    let patches: Vec<Patch> = places.iter().map(patch).collect();
    let found = Patching::new(model, clean, corrupted).unwrap().run_each(&patches, &difference()).unwrap();
    for (place, found) in places.iter().zip(&found.effects.values) {
        let expected = naive(model, corrupted, clean, place, &difference());
        assert_eq!(found[0], expected, "{name}: {}", patch(place));
    }
    for (input, found) in [(clean, found.effects.clean), (corrupted, found.effects.corrupted)] {
        assert_eq!(found, Some(mean(&difference(), &model.logits(input).unwrap(), input)), "{name}");
    }
    found.report
}

#[test]
fn patched_runs_have_the_bits_of_whole_runs() {
    let all = [
        ("gpt2", GPT2),
        ("neo", NEO),
        ("llama", LLAMA),
        ("gemma3", GEMMA3),
        ("mistral", MISTRAL),
        ("neox", NEOX),
        ("opt", OPT),
    ];
    for (name, config) in all {
        let (clean, corrupted) = pair(1, 21);
        let report = compare(name, &model(config), &clean, &corrupted);
        assert!(report.blocks_run < report.blocks_total && report.positions_run < report.positions_total);
    }
    let (clean, corrupted) = pair(3, 16);
    compare("gemma3, 3 rows", &model(GEMMA3), &clean, &corrupted);
}

#[test]
fn padded_rows_have_the_bits_of_whole_runs() {
    let mask = |rows: [[i64; 14]; 2]| Tensor::from_slice2(&rows);
    let mut right = [[1; 14]; 2];
    right[1][9..].fill(0);
    let mut left = [[1; 14]; 2];
    left[0][..3].fill(0);
    for (name, config) in [("opt", OPT), ("mistral", MISTRAL)] {
        let model = model(config);
        for (side, rows) in [("left", left), ("right", right)] {
            let padded = |input: Input| {
                let positions = Input::positions_from_mask(&mask(rows)).unwrap();
                let input = input.attention_mask(mask(rows));
                if side == "left" { input.position_ids(positions) } else { input }
            };
            let (clean, corrupted) = pair(2, 14);
            compare(&format!("{name}, {side}"), &model, &padded(clean), &padded(corrupted));
        }
    }
}

#[test]
fn a_grid_is_what_its_patches_are_one_by_one() {
    let model = model(GPT2);
    let (clean, corrupted) = pair(1, 12);
    let patching = || Patching::new(&model, &clean, &corrupted).unwrap();
    let one = |patch: Patch| patching().run_each(&[patch], &difference()).unwrap().effects.values[0][0];

    let positions =
        patching().sites("h.*.mlp").unwrap().positions(2..9).each_position().run(&difference()).unwrap().effects;
    assert_eq!(
        (&positions.rows[..], &positions.columns),
        (&["h.0.mlp".into(), "h.1.mlp".into()][..], &Columns::Positions((2..9).collect()))
    );
    assert_eq!(positions.values[1][5], one(Patch::at("h.1.mlp").positions(7..8)));
    // The inputs are the same up to position 3.
    assert_eq!(Some(positions.values[0][0]), positions.corrupted);

    let heads =
        patching().sites("h.*.attn.z").unwrap().each_head().positions(4..12).run(&difference()).unwrap().effects;
    assert_eq!((heads.rows.len(), &heads.columns), (2, &Columns::Heads(vec![0, 1, 2, 3])));
    assert_eq!(heads.values[0][3], one(Patch::at("h.0.attn.z").heads(3..4).positions(4..12)));

    let both = patching().sites("h.1.attn.z").unwrap().each_head().each_position().run(&difference()).unwrap().effects;
    assert_eq!((both.rows[2].as_str(), both.columns.len(), both.values.len()), ("h.1.attn.z head 2", 12, 4));
    assert_eq!(both.values[2][7], one(Patch::at("h.1.attn.z").heads(2..3).positions(7..8)));

    let whole = patching().sites("h.1").unwrap().sites("h.0").unwrap().run(&difference()).unwrap().effects;
    assert_eq!((&whole.rows[..], &whole.columns), (&["h.0".into(), "h.1".into()][..], &Columns::Whole));
    assert_eq!([whole.values[0][0], whole.values[1][0]].map(Some), [whole.clean; 2]);

    let noised =
        patching().direction(Direction::CorruptedIntoClean).sites("h.1").unwrap().run(&difference()).unwrap().effects;
    assert_eq!(
        (noised.clean, noised.corrupted, Some(noised.values[0][0])),
        (whole.clean, whole.corrupted, whole.corrupted)
    );
}

#[test]
fn sites_with_fewer_heads_have_no_number_for_the_others() {
    let model = model(LLAMA);
    let (clean, corrupted) = pair(1, 8);
    let patching =
        Patching::new(&model, &clean, &corrupted).unwrap().sites("h.0.attn.q").unwrap().sites("h.0.attn.k").unwrap();
    let effects = patching.each_head().run(&difference()).unwrap().effects;
    assert_eq!(effects.columns, Columns::Heads(vec![0, 1, 2, 3]));
    let numbers = |row: usize| effects.values[row].iter().filter(|value| !value.is_nan()).count();
    assert_eq!((numbers(0), numbers(1)), (4, 2));
}

#[test]
fn several_places_are_patched_at_once() {
    let model = model(GPT2);
    let (clean, corrupted) = pair(1, 12);
    // All that is added to the stream after position 3 is all that the last position can know of the difference.
    let all = Patch::at("input").and_at("h.0.attn").and_at("h.0.mlp").and_at("h.1.attn").and_at("h.1.mlp");
    let found = Patching::new(&model, &clean, &corrupted).unwrap().run_each(&[all], &difference()).unwrap().effects;
    assert_eq!(Some(found.values[0][0]), found.clean);
    let two = Patch::at("h.0.attn.z").heads(1..2).and_at("h.1.mlp").positions(5..7);
    let found = Patching::new(&model, &clean, &corrupted).unwrap().run_each(&[two], &difference()).unwrap().effects;
    let taken = partial_forward(&model, &["h.0.attn.z", "h.1.mlp"], &clean).unwrap();
    let z = taken.get("h.0.attn.z").unwrap().narrow(2, 1, 1);
    let mlp = taken.get("h.1.mlp").unwrap().narrow(1, 5, 2);
    let run = Run::new(&model, &["logits"]).unwrap().edit("h.0.attn.z", Edit::replace(&z).heads(1..2)).unwrap();
    let run = run.edit("h.1.mlp", Edit::replace(&mlp).positions(5..7)).unwrap().run(&corrupted).unwrap();
    assert_eq!(found.values[0][0], mean(&difference(), run.get("logits").unwrap(), &corrupted));
}

#[test]
fn a_stream_with_noise_is_a_corrupted_input() {
    let model = model(LLAMA);
    let (clean, _) = pair(1, 10);
    let embedded = partial_forward(&model, &["input"], &clean).unwrap();
    let embedded = embedded.get("input").unwrap();
    let noise = Tensor::zeros_like(embedded);
    let _ = noise.narrow(1, 4, 2).fill_(0.1);
    let corrupted = Input::stream(Site::INPUT, embedded + noise);
    let found = Patching::new(&model, &clean, &corrupted)
        .unwrap()
        .sites("h.*")
        .unwrap()
        .each_position()
        .run(&difference())
        .unwrap();
    for (row, site) in ["h.0", "h.1"].into_iter().enumerate() {
        for at in [5, 9] {
            let place = (model.sites().parse(site).unwrap(), Some(at..at + 1), None);
            assert_eq!(
                found.effects.values[row][at as usize],
                naive(&model, &corrupted, &clean, &place, &difference())
            );
        }
    }
    let tokens =
        Patching::new(&model, &clean, &corrupted).unwrap().sites("wte").unwrap().run(&difference()).unwrap_err();
    assert!(matches!(tokens, Error::BeforeStart { .. }), "{tokens}");
}

#[test]
fn runs_start_at_the_patched_site_and_at_the_patched_position() {
    let model = model(GPT2);
    let (clean, corrupted) = pair(1, 12);
    let report = |site: &str, positions| {
        let patch = [Patch::at(site).positions(positions)];
        Patching::new(&model, &clean, &corrupted).unwrap().run_each(&patch, &difference()).unwrap().report
    };
    let ran = |report: PatchReport| (report.blocks_run, report.positions_run, report.unchanged);
    assert_eq!(ran(report("input", 0..12)), (2, 9, 0));
    assert_eq!(ran(report("h.0", 0..12)), (1, 9, 0));
    assert_eq!(ran(report("h.0.mlp", 7..8)), (2, 5, 0)); // the first of them in part
    assert_eq!(ran(report("h.1.attn.z", 8..9)), (1, 4, 0));
    assert_eq!(ran(report("h.1", 11..12)), (0, 2, 0));
    assert_eq!(ran(report("ln_f", 11..12)), (0, 2, 0));
    assert_eq!(ran(report("h.0", 0..3)), (0, 0, 1));
    // What comes after the position that is read.
    let read = Patching::new(&model, &clean, &corrupted).unwrap().read_at(5).sites("h.0").unwrap().each_position();
    let read = read.run(&difference()).unwrap();
    assert_eq!((read.report.unchanged, read.effects.values[0].len()), (3 + 6, 12));
    let last = partial_forward(&model, &["logits"], &corrupted).unwrap();
    let last = difference().of(&last.get("logits").unwrap().select(1, 5)).unwrap().double_value(&[0]);
    assert_eq!((read.effects.values[0][8], read.effects.corrupted), (last, Some(last)));
}

#[test]
fn batches_keep_to_the_budget_and_change_nothing() {
    let model = model(LLAMA);
    let (clean, corrupted) = pair(2, 16);
    let patching = || Patching::new(&model, &clean, &corrupted).unwrap().sites("h.*.attn.z").unwrap().each_head();
    let free = patching().run(&difference()).unwrap();
    assert_eq!(free.report.largest_batch, 4);
    let least = patching().memory_budget(0).run(&difference()).unwrap_err();
    let Error::MemoryBudget { needed, budget: 0 } = least else { panic!("{least}") };
    let tight = patching().memory_budget(needed).run(&difference()).unwrap();
    assert_eq!((tight.report.largest_batch, tight.effects), (1, free.effects.clone()));
    assert!(tight.report.bytes <= needed);
    let between = patching().memory_budget((needed + free.report.bytes) / 2).run(&difference()).unwrap();
    assert!((2..4).contains(&between.report.largest_batch) && between.report.bytes <= (needed + free.report.bytes) / 2);
    assert_eq!(between.effects, free.effects);
}

#[test]
fn progress_counts_every_patch_once() {
    let model = model(GPT2);
    let (clean, corrupted) = pair(1, 12);
    let seen = std::cell::RefCell::new(Vec::new());
    let patching = Patching::new(&model, &clean, &corrupted).unwrap().sites("h.*").unwrap().each_position();
    let patching = patching.on_progress(|progress| seen.borrow_mut().push((progress.done, progress.total)));
    let report = patching.run(&difference()).unwrap().report;
    drop(patching);
    let seen = seen.into_inner();
    assert_eq!((seen.len(), seen.last()), (report.batches, Some(&(24, 24))));
    assert!(seen.is_sorted() && report.unchanged == 6);
}

#[test]
fn every_metric_can_judge() {
    let model = model(GPT2);
    let (clean, corrupted) = pair(2, 12);
    let logits = model.logits(&clean).unwrap().select(1, 11);
    let run = |metric: &Metric| {
        let patching = Patching::new(&model, &clean, &corrupted).unwrap().sites("h.1").unwrap();
        patching.run(metric).unwrap().effects
    };
    let kl = run(&Metric::kl(&logits));
    assert_eq!((kl.clean, kl.values[0][0]), (Some(0.0), 0.0));
    assert!(kl.corrupted.unwrap() > 0.0);
    let rows = run(&Metric::probability([3, 4]));
    assert!((0.0..1.0).contains(&rows.values[0][0]));
    let most = run(&Metric::with("most", |logits| Ok(logits.f_max_dim(1, false)?.0)));
    assert_eq!((most.metric.as_str(), Some(most.values[0][0])), ("most", most.clean));
}
