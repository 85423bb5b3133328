//! The lens against its definitions, computed in f64 by the golden generator.

use transformer_utils::{
    lens::{Error, Lens, LensOptions, Measure, Prompt, RowOptions, Table, TunedLens, TunedLensConfig},
    lowmem::{Checkpoint, Dtype, LoadOptions, Residency},
    models::{Factor, Input, Model, NoObserver, Residual},
    partial::Run,
    tch::{Device, Kind, Tensor},
};

use crate::support::{Case, cases};

fn model(case: &Case, residency: Residency) -> Model {
    case.model(&LoadOptions::default().dtype(Dtype::F32).residency(residency))
}

fn all_measures() -> Vec<Measure> {
    vec![Measure::Logits, Measure::Probs, Measure::Ranks, Measure::Kl, Measure::ReverseKl, Measure::Entropy]
}

/// The golden rows: with those between the halves, where there are any.
fn subblocks(model: &Model) -> RowOptions {
    let parallel = model.architecture().layers.iter().any(|layer| layer.residual == Residual::Parallel);
    RowOptions::default().subblocks(!parallel)
}

fn table(model: &Model, ids: &[i64], options: LensOptions) -> Table {
    Lens::new(model, options).unwrap().table("golden", ids, |id| format!("<{id}>")).unwrap()
}

fn strings(value: &serde_json::Value) -> Vec<String> {
    value.as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned()).collect()
}

fn numbers(tensor: &Tensor) -> Vec<f64> {
    Vec::try_from(tensor.to_kind(Kind::Double).flatten(0, -1)).unwrap()
}

/// The golden name of a measure, and how far we may be from it.
fn golden(measure: &Measure) -> (&'static str, f64) {
    match measure {
        Measure::Logits => ("logits", 1e-4),
        Measure::Probs => ("probs", 1e-5),
        Measure::Ranks => ("ranks", 0.0),
        Measure::Kl => ("kl", 1e-4),
        Measure::ReverseKl => ("kl_reverse", 1e-4),
        Measure::Entropy => ("entropy", 1e-4),
        other => panic!("{other} is not in the golden suite"),
    }
}

fn compare(case: &Case, variant: &str, table: &Table) {
    let names = strings(&case.json["lens"][variant]["names"]);
    assert_eq!(table.rows.iter().map(|row| row.name.clone()).collect::<Vec<_>>(), names, "{} {variant}", case.name);
    let columns = table.positions.len();
    let expected = |name: &str| numbers(&case.expected[&format!("{variant}/{name}")]);
    let top1 = expected("top1");
    // Saturated attention magnifies the rounding of f32.
    let slack = case.json["f32_error"].as_f64().unwrap() / 1e-6;
    for (index, row) in table.rows.iter().enumerate() {
        let cells = index * columns..(index + 1) * columns;
        let found: Vec<f64> = row.top1.iter().map(|&id| id as f64).collect();
        assert_eq!(found, top1[cells.clone()], "{} {variant} {} top1", case.name, row.name);
        for measure in &table.measures {
            let (name, tolerance) = golden(measure);
            let tolerance = tolerance * slack.max(1.0);
            for (column, (found, expected)) in
                row.values[measure].iter().zip(&expected(name)[cells.clone()]).enumerate()
            {
                let apart = (found - expected).abs() / expected.abs().max(1.0);
                assert!(
                    apart <= tolerance,
                    "{} {variant} {} {name} at {column}: {found} instead of {expected}",
                    case.name,
                    row.name
                );
            }
        }
    }
}

#[test]
fn every_measure_equals_its_definition() {
    for case in cases() {
        let ids = case.ids("single").remove(0);
        for residency in [Residency::Auto, Residency::Streamed] {
            let model = model(&case, residency);
            for variant in ["lens", "lens_block", "lens_mlp"] {
                let Some(settings) = case.json["lens"].get(variant) else { continue };
                let options = LensOptions::default()
                    .measures(all_measures())
                    .rows(subblocks(&model))
                    .decoder(strings(&settings["decoder"]));
                compare(&case, variant, &table(&model, &ids, options));
            }
        }
    }
}

#[test]
fn little_memory_gives_the_same() {
    for case in cases().into_iter().filter(|case| case.json["lens"].get("lens").is_some()) {
        let model = model(&case, Residency::Auto);
        let options = LensOptions::default().measures(all_measures()).rows(subblocks(&model)).memory(1);
        compare(&case, "lens", &table(&model, &case.ids("single").remove(0), options));
    }
}

#[test]
fn clipping_gives_what_transformer_utils_gives() {
    for case in cases().into_iter().filter(|case| case.json["lens"].get("lens").is_some()) {
        let model = model(&case, Residency::Auto);
        let clip = 1.0 / (10.0 * model.architecture().vocabulary as f64);
        let options = LensOptions::default().measures([Measure::Kl]).rows(subblocks(&model)).kl_clip(Some(clip));
        let table = table(&model, &case.ids("single").remove(0), options);
        let expected = numbers(&case.expected["lens/kl_clipped"]);
        let found: Vec<f64> = table.rows.iter().flat_map(|row| row.values[&Measure::Kl].clone()).collect();
        for (found, expected) in found.iter().zip(&expected) {
            assert!((found - expected).abs() <= 1e-3 * expected.abs().max(1.0), "{}: {found} {expected}", case.name);
        }
    }
}

fn first() -> (Case, Model, Vec<i64>) {
    let case = cases().into_iter().find(|case| case.name == "gpt2_plain").unwrap();
    let model = model(&case, Residency::Auto);
    let ids = case.ids("single").remove(0);
    (case, model, ids)
}

#[test]
fn positions_choose_columns_and_change_nothing_else() {
    let (_, model, ids) = first();
    for decoder in [vec!["final_layernorm", "lm_head"], vec!["h.2", "final_layernorm", "lm_head"]] {
        let decoder: Vec<String> = decoder.into_iter().map(str::to_owned).collect();
        let options = |positions| {
            LensOptions::default().measures(all_measures()).positions(positions).decoder(decoder.clone()).top_k(3)
        };
        let (whole, part) = (table(&model, &ids, options(None)), table(&model, &ids, options(Some(2..5))));
        assert_eq!(part.positions, [2, 3, 4]);
        assert_eq!(part.tokens, whole.tokens);
        for (part, whole) in part.rows.iter().zip(&whole.rows) {
            assert_eq!(part.top1, whole.top1[2..5]);
            for (measure, values) in &part.values {
                for (part, whole) in values.iter().zip(&whole.values[measure][2..5]) {
                    assert!((part - whole).abs() <= 1e-5 * whole.abs().max(1.0), "{measure}: {part} {whole}");
                }
            }
        }
    }
}

#[test]
fn a_batch_gives_the_tables_of_its_prompts() {
    let (_, model, ids) = first();
    let prompts = [
        Prompt { ids: ids.clone(), positions: None },
        Prompt { ids: ids[..3].to_vec(), positions: Some(1..3) },
        Prompt { ids: ids[1..5].to_vec(), positions: Some(0..1) },
    ];
    for decoder in
        [vec!["final_layernorm", "lm_head"], vec!["h.2", "ln_f", "lm_head"], vec!["h.2.mlp", "ln_f", "lm_head"]]
    {
        for memory in [1, 256 << 20] {
            let options = LensOptions::default()
                .measures([all_measures(), vec![Measure::CrossEntropy]].concat())
                .decoder(decoder.iter().copied())
                .top_k(2)
                .tracked(vec![("x".into(), 3)])
                .memory(memory);
            let lens = Lens::new(&model, options.clone()).unwrap();
            let together = lens.tables("golden", &prompts, |id| format!("<{id}>")).unwrap();
            assert_eq!(together.len(), prompts.len());
            for (prompt, batched) in prompts.iter().zip(&together) {
                let alone = table(&model, &prompt.ids, options.clone().positions(prompt.positions.clone()));
                assert_eq!((&batched.tokens, &batched.positions), (&alone.tokens, &alone.positions));
                for (batched, alone) in batched.rows.iter().zip(&alone.rows) {
                    assert_eq!((&batched.name, &batched.top1), (&alone.name, &alone.top1));
                    for (measure, values) in &batched.values {
                        for (found, expected) in values.iter().zip(&alone.values[measure]) {
                            let close = (found - expected).abs() <= 1e-5 * expected.abs().max(1.0);
                            assert!(close || (found.is_nan() && expected.is_nan()), "{measure}: {found} {expected}");
                        }
                    }
                }
            }
        }
    }
    let lens = Lens::new(&model, LensOptions::default()).unwrap();
    let outside = [Prompt { ids: ids[..3].to_vec(), positions: Some(1..4) }];
    assert!(lens.tables("golden", &outside, |id| id.to_string()).unwrap_err().to_string().contains("1..4"));
}

#[test]
fn the_likeliest_tokens_are_in_order_and_begin_with_the_likeliest() {
    let (_, model, ids) = first();
    for memory in [1, 256 << 20] {
        let table = table(&model, &ids, LensOptions::default().top_k(5).memory(memory));
        for row in &table.rows {
            for (cell, &top1) in row.top_k.as_ref().unwrap().iter().zip(&row.top1) {
                assert_eq!((cell.len(), cell[0].id), (5, top1));
                assert!(cell.windows(2).all(|pair| pair[0].prob >= pair[1].prob));
            }
        }
    }
}

#[test]
fn a_tracked_token_and_the_next_one_agree_with_the_whole_distribution() {
    let (_, model, ids) = first();
    let vocabulary = model.architecture().vocabulary as usize;
    let options =
        LensOptions::default().measures([Measure::CrossEntropy]).tracked(vec![(" Paris".into(), 7)]).top_k(vocabulary);
    let table = table(&model, &ids, options);
    for row in &table.rows {
        for (column, cell) in row.top_k.as_ref().unwrap().iter().enumerate() {
            let place = cell.iter().position(|entry| entry.id == 7).unwrap();
            let probability = row.values[&Measure::TrackedProb(" Paris".into())][column];
            assert!((probability - cell[place].prob).abs() < 1e-6);
            assert_eq!(row.values[&Measure::TrackedRank(" Paris".into())][column], place as f64 + 1.0);
            let loss = row.values[&Measure::CrossEntropy][column];
            match ids.get(column + 1) {
                Some(next) => {
                    let expected = -cell.iter().find(|entry| entry.id == *next).unwrap().prob.ln();
                    assert!((loss - expected).abs() < 1e-4, "{loss} {expected}");
                }
                None => assert!(loss.is_nan()),
            }
        }
    }
}

#[test]
fn rows_follow_make_layer_names() {
    let (_, model, _) = first();
    let names = |rows: RowOptions, decoder: &[&str]| -> Vec<String> {
        let options = LensOptions::default().rows(rows).decoder(decoder.iter().copied());
        Lens::new(&model, options).unwrap().row_names().map(str::to_owned).collect()
    };
    let tail = ["final_layernorm", "lm_head"];
    let by_two = RowOptions::default().block_step(2);
    assert_eq!(names(by_two.clone(), &tail), ["input", "h.0", "h.2"]);
    let by_three = RowOptions::default().block_step(3).subblocks(true);
    assert_eq!(names(by_three.clone(), &tail), ["input", "h.0.attn", "h.0", "h.2.attn", "h.2"]);
    let kept = by_three.force_output(false).input(false);
    assert_eq!(names(kept, &tail), ["h.0.attn", "h.0"]);
    assert_eq!(names(by_two, &["h.2", "final_layernorm", "lm_head"]), ["input", "h.0"]);
    assert_eq!(
        names(subblocks(&model), &["h.2.mlp", "ln_f", "lm_head"]),
        ["input", "h.0.attn", "h.0", "h.1.attn", "h.1", "h.2.attn"]
    );
}

#[test]
fn what_cannot_be_shown_is_refused() {
    let (_, model, ids) = first();
    let refuse = |options: LensOptions| {
        let lens = Lens::new(&model, options);
        let error = lens.and_then(|lens| lens.table("golden", &ids, |id| id.to_string())).unwrap_err();
        error.to_string()
    };
    let decoder = |names: &[&str]| LensOptions::default().decoder(names.iter().copied());
    assert!(refuse(decoder(&["h.9", "ln_f", "lm_head"])).contains("h.9"));
    assert!(refuse(decoder(&["h.2", "h.1", "ln_f", "lm_head"])).contains("out of order"));
    assert!(refuse(decoder(&["h.2", "h.2.mlp", "ln_f", "lm_head"])).contains("out of order"));
    assert!(refuse(decoder(&["lm_head", "ln_f"])).contains("ends with"));
    assert!(refuse(decoder(&["h.2"])).contains("ends with"));
    assert!(refuse(decoder(&[])).contains("ends with"));
    assert!(refuse(decoder(&["h.2.ln_1", "ln_f", "lm_head"])).contains("h.47.mlp"));
    let positions = LensOptions::default().positions(Some(3..400));
    assert!(refuse(positions).contains("3..400"));
    assert!(refuse(LensOptions::default().measures(Vec::new())).contains("measure"));
    let step = RowOptions::default().block_step(0);
    assert!(refuse(LensOptions::default().rows(step)).contains("step"));
    assert!(refuse(LensOptions::default().tracked(vec![("x".into(), 1 << 40)])).contains("tracked"));
}

#[test]
fn streamed_weights_are_read_once_however_many_stacks_there_are() {
    for case in cases().into_iter().filter(|case| ["gpt2_plain", "gpt2_untied", "neo_plain"].contains(&&*case.name)) {
        let index = Checkpoint::open(&case.folder).unwrap();
        let bytes = |name: &&str| index.index().get(name).unwrap().bytes();
        let model = model(&case, Residency::Streamed);
        let ids = case.ids("single").remove(0);
        // Of the embedding, two rows for each token; every other part once.
        let rows = 2 * ids.len() as u64 * model.architecture().d_model as u64 * 4;
        let parts = (1..model.parts().len()).flat_map(|part| model.parts().names(part).unwrap());
        let once = rows + parts.map(|name| bytes(&name)).sum::<u64>();
        let tuned = TunedLens::identity(TunedLensConfig::of("golden", &model).unwrap(), Device::Cpu).unwrap();
        for translators in [None, Some(&tuned)] {
            // With so little memory each position is a stack of its own.
            let options = LensOptions::default().measures(all_measures()).memory(1);
            let mut lens = Lens::new(&model, options).unwrap();
            if let Some(translators) = translators {
                // What tells models apart is a few rows of the unembedding, not all of it.
                let before = model.report().bytes_read;
                lens = lens.tuned(translators).unwrap();
                assert_eq!(
                    model.report().bytes_read - before,
                    6 * model.architecture().d_model as u64 * 4,
                    "{}",
                    case.name
                );
            }
            let before = model.report().bytes_read;
            lens.table("golden", &ids, |id| id.to_string()).unwrap();
            assert_eq!(model.report().bytes_read - before, once, "{}", case.name);
        }
    }
}

#[test]
fn the_last_row_is_the_models_own_output_in_every_dtype() {
    for case in cases() {
        for dtype in [Dtype::F32, Dtype::Bf16] {
            let model = case.model(&LoadOptions::default().dtype(dtype));
            let ids = case.ids("single").remove(0);
            // A last row further away than rounding explains would be an error.
            let options = LensOptions::default().measures([Measure::Logits, Measure::Ranks]);
            let table = table(&model, &ids, options);
            let last = table.rows.last().unwrap();
            let logits = model.forward(&Input::from_rows(&[ids]).unwrap(), &mut NoObserver).unwrap().logits.unwrap();
            let logits = logits.squeeze_dim(0).to_kind(Kind::Float);
            let best = numbers(&logits.amax([-1].as_slice(), false));
            let chosen = numbers(&logits.gather(1, &Tensor::from_slice(&last.top1).unsqueeze(1), false));
            // Equal, or where the norm in f32 rounds to a neighbour, next to it.
            let spacing = if dtype == Dtype::F32 { 1e-6 } else { 1.0 / 128.0 };
            for (column, (found, best)) in chosen.iter().zip(&best).enumerate() {
                assert!(best - found <= spacing * best.abs().max(1.0), "{} {dtype}: {found} {best}", case.name);
                let own = last.values[&Measure::Logits][column];
                assert!((own - best).abs() <= spacing * best.abs().max(1.0), "{} {dtype}: {own} {best}", case.name);
            }
        }
    }
}

#[test]
fn what_each_head_adds_is_decoded_by_itself() {
    for case in cases().into_iter().filter(|case| case.is_original() && !case.json["single"].is_null()) {
        let model = model(&case, Residency::Auto);
        let vocabulary = model.architecture().vocabulary as usize;
        let rows = RowOptions::default().heads(true).contributions(true);
        let options = LensOptions::default().measures([Measure::Logits]).rows(rows).top_k(vocabulary);
        let lens = match Lens::new(&model, options) {
            Ok(lens) => lens,
            Err(Error::HeadsBehindNorm { block: 0 }) => {
                let layer = &model.architecture().layers[0].attention_norms;
                assert!(layer.after.is_some() || layer.stream.is_some(), "{}", case.name);
                continue;
            }
            Err(error) => panic!("{}: {error}", case.name),
        };
        let ids = case.ids("single").remove(0);
        let table = lens.table("test", &ids, |id| id.to_string()).unwrap();
        let heads = Run::new(&model, &["h.1.attn.result"]).unwrap().run(case.input("single")).unwrap();
        let heads = heads.get("h.1.attn.result").unwrap();
        let names: Vec<String> = (0..heads.size()[2]).map(|head| format!("h.1.attn.{head}.added")).collect();
        let first = table.rows.iter().position(|row| row.name == names[0]).unwrap();
        assert!(table.rows[first..].iter().take(names.len()).map(|row| &row.name).eq(&names), "{}", case.name);
        assert_eq!(table.rows[first + names.len()].name, "h.1.attn.added");
        let (tail, unembedding) = (model.tail().unwrap(), model.unembedding().unwrap());
        for (head, row) in table.rows[first..].iter().take(names.len()).enumerate() {
            let stream = heads.get(0).select(1, head as i64);
            let normed = tail.apply(&stream, Kind::Float).unwrap();
            let logits = unembedding.logits(&Factor::new(&normed).unwrap()).unwrap();
            let expected = logits.softmax(-1, Kind::Double);
            for (position, cell) in row.top_k.as_ref().unwrap().iter().enumerate() {
                let apart =
                    cell.iter().map(|token| (token.prob - expected.double_value(&[position as i64, token.id])).abs());
                assert!(apart.fold(0.0, f64::max) < 2e-5, "{} {} {position}", case.name, row.name);
            }
        }
    }
}
