//! Attribution against TransformerLens, and against what it stands for.

use std::{fs, path::Path};

use serde_json::Value;
use transformer_utils::{
    lowmem::{Checkpoint, Dtype, LoadOptions, Residency},
    models::{Input, Model, NoObserver, Site},
    partial::{AttributionPatching, Columns, DirectLogitAttribution, Error, InputAttribution, Metric, Run},
    tch::{Kind, Tensor},
};

use crate::support::{self, Case, cases, relative_error};

const CASES: [&str; 4] = ["gpt2_plain", "llama_one_kv_head", "gemma2_softcaps", "gpt_neox_parallel"];

/// A case with what TransformerLens says of it.
struct Attributed {
    name: String,
    model: Model,
    about: Value,
    expected: std::collections::HashMap<String, Tensor>,
}

impl Attributed {
    fn all() -> Vec<Self> {
        let known = cases();
        let found = CASES.iter().filter_map(|name| known.iter().find(|case| case.name == *name)).map(Self::of);
        found.collect()
    }

    fn of(case: &Case) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/attribution").join(&case.name);
        let about = serde_json::from_str(&fs::read_to_string(folder.join("case.json")).unwrap()).unwrap();
        let expected = support::tensors(&folder.join("expected.safetensors"));
        Self { name: case.name.clone(), model: case.model(&options(Residency::Auto)), about, expected }
    }

    fn input(&self, which: &str) -> Input {
        Input::from_rows(&support::matrix(&self.about[which])).unwrap()
    }

    fn metric(&self) -> Metric {
        let token = |which: &str| vec![self.about[which].as_i64().unwrap()];
        Metric::logit_difference(token("right"), token("wrong"))
    }

    fn length(&self) -> i64 {
        self.input("ids").shape()[1]
    }

    #[track_caller]
    fn assert(&self, found: &[f64], expected: &str) {
        self.assert_in(found, expected, expected);
    }

    /// As [`Attributed::assert`], of a sum of numbers as large as those of `terms`.
    #[track_caller]
    fn assert_in(&self, found: &[f64], name: &str, terms: &str) {
        let expected = self.expected[name].flatten(0, -1);
        assert_eq!(found.len(), expected.numel(), "{} {name}", self.name);
        let largest = self.expected[terms].abs().max().double_value(&[]);
        let apart = (Tensor::from_slice(found) - expected).abs().max().double_value(&[]);
        // Values of order one, in f32.
        assert!(apart < 1e-4 * largest.max(0.1), "{} {name}: {apart:.1e} of {largest:.1e}", self.name);
    }
}

fn options(residency: Residency) -> LoadOptions {
    LoadOptions::default().dtype(Dtype::F32).residency(residency)
}

#[test]
fn direct_logit_attribution_is_that_of_transformer_lens() {
    for case in Attributed::all() {
        let metric = case.metric();
        let length = case.length();
        let everywhere = || DirectLogitAttribution::new(&case.model, &metric).unwrap().positions(0..length);
        let layers = everywhere().layers(case.input("ids")).unwrap();
        let terms = case.expected["direct/layers"].size()[0] as usize;
        case.assert(&layers.values[..terms].concat(), "direct/layers");
        assert_eq!(layers.columns, Columns::Positions((0..length).collect()));
        assert!(layers.rows.len() - terms <= 1, "{:?}", layers.rows);
        let heads = everywhere().heads(case.input("ids")).unwrap();
        if !case.expected.contains_key("direct/heads") {
            continue;
        }
        case.assert(&heads.values.concat(), "direct/heads");
        // The neuron that matters most anywhere comes first.
        let neurons = &case.expected["direct/neurons"];
        let [blocks, width, _] = neurons.size()[..] else { panic!("{neurons:?}") };
        let found = everywhere().neurons(case.input("ids"), 5).unwrap();
        assert_eq!((found.rows.len(), found.rows[0].contains(".mlp.neurons neuron ")), (5, true));
        for (name, values) in found.rows.iter().zip(&found.values) {
            let (block, neuron) = name.trim_start_matches("h.").split_once(".mlp.neurons neuron ").unwrap();
            let one = neurons.get(block.parse().unwrap()).get(neuron.parse().unwrap());
            let error = relative_error(&Tensor::from_slice(values), &one);
            assert!(error < 1e-4, "{} {name}: {error:.1e}", case.name);
        }
        let largest = neurons.abs().amax([2].as_slice(), false).view([blocks * width]).topk(5, 0, true, true).0;
        let found = found.values.iter().map(|row| row.iter().map(|value| value.abs()).fold(0.0, f64::max));
        assert!(relative_error(&Tensor::from_slice(&found.collect::<Vec<_>>()), &largest) < 1e-4, "{}", case.name);
    }
}

#[test]
fn the_terms_of_the_stream_add_up_to_the_logit_difference() {
    for case in cases() {
        if !case.is_original() || case.json["single"].is_null() {
            continue;
        }
        let model = case.model(&options(Residency::Auto));
        let metric = Metric::logit_difference([7], [20]);
        let attribution = match DirectLogitAttribution::new(&model, &metric) {
            Ok(attribution) => attribution,
            Err(Error::NotASum { site }) => {
                assert_eq!((case.name.as_str(), site.as_str()), ("opt_350m", "h.0.ln_1"));
                continue;
            }
            Err(error) => panic!("{}: {error}", case.name),
        };
        // Batches whose rows end at different places, and padding on either side.
        for batch in ["single", "left", "right"] {
            let effects = attribution.layers(case.input(batch)).unwrap();
            let logits = model.forward(&case.input(batch), &mut NoObserver).unwrap().logits;
            let mut logits = logits.unwrap().to_kind(Kind::Double);
            if let Some(cap) = model.architecture().head.softcap {
                logits = (logits / cap).atanh() * cap;
            }
            let ends: Vec<i64> = match case.json[batch].get("attention_mask") {
                Some(mask) => support::matrix(mask)
                    .iter()
                    .map(|row| row.iter().rposition(|&on| on == 1).unwrap() as i64)
                    .collect(),
                None => vec![logits.size()[1] - 1],
            };
            let of = |(row, end): (usize, &i64)| {
                let there = logits.get(row as i64).get(*end);
                there.double_value(&[7]) - there.double_value(&[20])
            };
            let own = ends.iter().enumerate().map(of).sum::<f64>() / ends.len() as f64;
            let sum: f64 = effects.values.iter().flatten().sum();
            let size: f64 = effects.values.iter().flatten().map(|value| value.abs()).sum();
            let clean = effects.clean.unwrap();
            assert!((sum - clean).abs() < 1e-6 * size, "{} {batch}: {sum} is not {clean}", case.name);
            assert!((sum - own).abs() < 2e-4 * size.max(1.0), "{} {batch}: {sum} is not {own}", case.name);
        }
    }
}

#[test]
fn attribution_patching_is_what_transformer_lens_gives_by_its_hooks() {
    for case in Attributed::all() {
        let metric = case.metric();
        let (clean, corrupted) = (case.input("ids"), case.input("corrupted"));
        let hooks: Vec<&str> =
            case.expected.keys().filter_map(|name| name.strip_prefix("patching/")?.strip_suffix("/site")).collect();
        assert!(hooks.len() > 8);
        let of = |names: &[&str]| {
            let patching = AttributionPatching::new(&case.model, &clean, &corrupted).unwrap();
            names.iter().fold(patching, |patching, name| patching.sites(name).unwrap())
        };
        // All at once, in whatever order they are asked for, and one by one.
        let all = of(&hooks).run(&metric).unwrap();
        assert_eq!(all.rows.len(), hooks.len());
        case.assert(&[all.clean.unwrap(), all.corrupted.unwrap()], "patching/metric");
        for hook in hooks {
            let site = case.model.sites().parse(hook).unwrap().to_string();
            let row = all.rows.iter().position(|row| *row == site).unwrap();
            let positions = format!("patching/{hook}/positions");
            case.assert_in(&all.values[row], &format!("patching/{hook}/site"), &positions);
            case.assert(&of(&[hook]).each_position().run(&metric).unwrap().values[0], &positions);
            let heads = format!("patching/{hook}/heads");
            if case.expected.contains_key(&heads) {
                case.assert(&of(&[hook]).each_head().run(&metric).unwrap().values[0], &heads);
                // Each position of each head; over all heads, and over all positions, they are the others.
                let both = of(&[hook]).each_head().each_position().run(&metric).unwrap();
                assert_eq!(both.rows[1], format!("{site} head 1"));
                case.assert(&both.values.iter().map(|row| row.iter().sum()).collect::<Vec<f64>>(), &heads);
                let over_heads = |position: usize| both.values.iter().map(|row| row[position]).sum::<f64>();
                case.assert(&(0..both.columns.len()).map(over_heads).collect::<Vec<_>>(), &positions);
            }
        }
    }
}

#[test]
fn gradients_along_the_input_are_those_of_autograd_and_complete() {
    for case in Attributed::all() {
        let metric = case.metric();
        let (clean, corrupted) = (case.input("ids"), case.input("corrupted"));
        let of = || InputAttribution::new(&case.model, &metric).unwrap().steps(20);
        case.assert(&of().gradient_times_input(&clean).unwrap().values[0], "times_input");
        for at_once in [1, 7, 20] {
            case.assert(&of().at_once(at_once).integrated_gradients(&clean).unwrap().values[0], "integrated/zero");
        }
        let from_corrupted = || of().baseline(&corrupted).unwrap();
        case.assert(&from_corrupted().integrated_gradients(&clean).unwrap().values[0], "integrated/corrupted");
        let complete = |steps| {
            let effects = from_corrupted().steps(steps).integrated_gradients(&clean).unwrap();
            let sum: f64 = effects.values[0].iter().sum();
            (sum - (effects.clean.unwrap() - effects.corrupted.unwrap())).abs()
        };
        let (coarse, fine) = (complete(8), complete(128));
        assert!(fine < 5e-3 && fine < coarse.max(1e-4), "{}: {coarse} {fine}", case.name);
        // Tokens that are the same in both have no part in it.
        let values = from_corrupted().integrated_gradients(&clean).unwrap().values.concat();
        assert!(
            values.iter().enumerate().all(|(place, value)| (*value == 0.0) != [1, 3].contains(&place)),
            "{values:?}"
        );
    }
}

#[test]
fn heads_and_neurons_add_up_to_what_attention_and_mlp_add() {
    // Without biases, and with one key head for all, norms behind the halves, experts beside attention.
    for name in ["llama_one_kv_head", "gemma2_softcaps", "gemma3_layers", "olmo2_grouped", "mixtral_one_chosen"] {
        let Some(case) = cases().into_iter().find(|case| case.name == name) else { continue };
        let model = case.model(&options(Residency::Auto));
        let metric = Metric::logit_difference([7], [20]);
        let attribution = DirectLogitAttribution::new(&model, &metric).unwrap();
        let layers = attribution.layers(case.input("left")).unwrap();
        let heads = attribution.heads(case.input("left")).unwrap();
        let of = |row: &str| layers.values[layers.rows.iter().position(|name| name == row).unwrap()][0];
        let mut mlps = vec![0.0; heads.rows.len()];
        let neurons = attribution.neurons(case.input("left"), 1_000_000).ok();
        assert_eq!(neurons.is_none(), name.starts_with("mixtral"));
        for (row, value) in neurons.iter().flat_map(|neurons| neurons.rows.iter().zip(&neurons.values)) {
            let block: usize = row.split('.').nth(1).unwrap().parse().unwrap();
            mlps[block] += value[0];
        }
        for (block, heads) in heads.values.iter().enumerate() {
            let layer = &model.architecture().layers[block];
            let site = |point| Site::block(block, point).to_string();
            let close = |sum: f64, row: &str| {
                assert!(
                    (sum - of(row)).abs() < 1e-5 * of(row).abs().max(1.0),
                    "{name} {row}: {sum} is not {}",
                    of(row)
                );
            };
            close(heads.iter().sum(), &site(layer.attention_added()));
            if neurons.is_some() {
                close(mlps[block], &site(layer.mlp_added()));
            }
        }
    }
}

#[test]
fn an_estimate_of_a_small_change_is_what_patching_does() {
    for case in Attributed::all() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(&case.name);
        let wide = LoadOptions::default().dtype(Dtype::F64);
        let model = Model::open(&Checkpoint::open(&folder).unwrap(), &wide).unwrap();
        // Close enough that the metric is a line between them.
        let stream = |input: &Input| {
            let run = Run::new(&model, &["input"]).unwrap().run(input).unwrap();
            run.get("input").unwrap().shallow_clone()
        };
        let (clean, corrupted) = (stream(&case.input("ids")), stream(&case.input("corrupted")));
        let near = &clean + (&corrupted - &clean) * 1e-3;
        let inputs = [near, clean].map(|stream| Input::stream(Site::INPUT, stream));
        let metric = case.metric();
        let of = |names: &[&str]| {
            let patching = AttributionPatching::new(&model, &inputs[0], &inputs[1]).unwrap();
            names.iter().fold(patching, |patching, name| patching.sites(name).unwrap())
        };
        let sites = of(&["h.*.attn", "h.*.mlp", "h.1.attn.z", "h.1", "h.1.ln_1", "ln_f"]);
        let heads = of(&["h.*.attn.z"]).each_head();
        let positions = of(&["h.*.attn.z", "h.0"]).each_position();
        let heads_and_positions = of(&["h.*.attn.result"]).each_head().each_position();
        for (what, patching) in
            [("sites", sites), ("heads", heads), ("positions", positions), ("both", heads_and_positions)]
        {
            let both = patching.beside_patching(&metric).unwrap();
            let found = both.correlation.unwrap();
            assert!(found.pearson > 0.999 && found.pairs > 5, "{} {what}: {both:?}", case.name);
            let largest = both.patched.values.iter().flatten().map(|exact| exact.abs()).fold(0.0, f64::max);
            for (estimated, patched) in both.estimated.values.iter().flatten().zip(both.patched.values.iter().flatten())
            {
                assert!((estimated - patched).abs() < 0.02 * largest, "{} {what}: {both:?}", case.name);
            }
        }
    }
}

#[test]
fn what_cannot_be_attributed_is_refused_before_anything_runs() {
    let case = cases().into_iter().find(|case| case.name == "gpt2_plain").unwrap();
    let streamed = case.model(&options(Residency::Streamed));
    let metric = Metric::logit([1]);
    assert!(matches!(InputAttribution::new(&streamed, &metric).err(), Some(Error::StreamedGradient)));
    assert!(matches!(AttributionPatching::new(&streamed, [1, 2], [1, 3]).err(), Some(Error::StreamedGradient)));
    assert_eq!(streamed.report().bytes_read, 0);
    // Without gradients, streaming is no trouble.
    let resident = case.model(&options(Residency::Resident));
    let heads = |model| DirectLogitAttribution::new(model, &metric).unwrap().heads(case.input("single")).unwrap();
    assert_eq!(heads(&streamed), heads(&resident));
    let new = || AttributionPatching::new(&resident, [1, 2, 3], [1, 2, 4]).unwrap();
    assert!(matches!(new().sites("logits").err(), Some(Error::NotPatchable { .. })));
    assert!(new().sites("h.9").is_err());
    assert!(matches!(new().run(&metric).err(), Some(Error::NoPatches)));
    let heads = new().sites("h.0").unwrap().sites("h.0.attn.z").unwrap().each_head().run(&metric);
    assert!(matches!(heads.err(), Some(Error::NoHeads { .. })));
    let shapes = AttributionPatching::new(&resident, [1, 2, 3], [1, 2]).err();
    assert!(matches!(shapes, Some(Error::PatchInputs { .. })));
    let beyond = new().sites("h.0").unwrap().read_at(3).run(&metric).unwrap_err();
    assert!(matches!(beyond, Error::OutOfRange { .. }), "{beyond}");
    let absent = new().sites("h.0").unwrap().run(&Metric::logit([10_000])).unwrap_err();
    assert!(matches!(absent, Error::MetricToken { .. }), "{absent}");
    let input = InputAttribution::new(&resident, &metric).unwrap();
    assert!(matches!(input.steps(0).integrated_gradients([1, 2]).err(), Some(Error::NoSteps { .. })));
    let softmaxed = Metric::probability([1]);
    assert!(matches!(DirectLogitAttribution::new(&resident, &softmaxed).err(), Some(Error::NotLinear { .. })));
    let absent = Metric::logit([10_000]);
    let refused = DirectLogitAttribution::new(&resident, &absent).unwrap().layers([1, 2]).err();
    assert!(matches!(refused, Some(Error::MetricToken { .. })));
    let experts = cases().into_iter().find(|case| case.name == "mixtral_one_chosen").unwrap();
    let model = experts.model(&options(Residency::Auto));
    let of_experts = DirectLogitAttribution::new(&model, &metric).unwrap();
    assert!(of_experts.neurons([1, 2], 3).unwrap_err().to_string().contains("experts"));
    assert!(of_experts.heads([1, 2]).is_ok());
    let chosen = AttributionPatching::new(&model, [1, 2], [1, 3]).unwrap().sites("h.0.mlp.experts.chosen");
    assert!(matches!(chosen.err(), Some(Error::NotPatchable { .. })));
}

#[test]
fn two_forward_passes_and_one_back_serve_every_site() {
    use std::{cell::Cell, rc::Rc};
    let case = cases().into_iter().find(|case| case.name == "gpt2_plain").unwrap();
    let model = case.model(&options(Residency::Auto));
    let passes = Rc::new(Cell::new(0));
    let counted = Rc::clone(&passes);
    let metric = Metric::with("counted", move |logits| {
        counted.set(counted.get() + 1);
        logits.f_select(1, 3)
    });
    let mut patching = AttributionPatching::new(&model, [1, 2, 3], [1, 5, 3]).unwrap();
    let every = model
        .sites()
        .iter()
        .map(|info| info.site)
        .filter(|site| ![Site::LOGITS.to_string(), "wpe".into()].contains(&site.to_string()));
    let every: Vec<Site> = every.collect();
    for site in &every {
        patching = patching.sites(site).unwrap();
    }
    let effects = patching.run(&metric).unwrap();
    assert_eq!((effects.rows.len(), passes.get()), (every.len(), 2));
    assert!(effects.values.iter().flatten().all(|value| value.is_finite()));
    // The tokens are all that the two inputs differ in.
    let of = |name: &str| effects.values[effects.rows.iter().position(|row| row == name).unwrap()][0];
    assert!((of("input") - of("wte")).abs() < 1e-6);
}
