//! Activation patching against TransformerLens, and what is read before a patch is refused.

use std::path::Path;

use transformer_utils::{
    lowmem::{Dtype, LoadOptions},
    models::{Input, Model, Point, Site},
    partial::{Effects, Metric, Patch, Patching},
    tch::{Kind, Tensor},
};

use crate::support::{cases, relative_error, tensors};

fn model(name: &str) -> Model {
    let case = cases().into_iter().find(|case| case.name == name).unwrap();
    case.model(&LoadOptions::default().dtype(Dtype::F32))
}

/// `[row, column]`
fn values(effects: &Effects) -> Tensor {
    let rows: Vec<Tensor> = effects.values.iter().map(|row| Tensor::from_slice(row)).collect();
    Tensor::stack(&rows, 0)
}

#[test]
fn patches_give_what_they_give_in_transformer_lens() {
    for name in ["gpt2_plain", "llama_one_kv_head", "llama_rope_scaled"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/patching");
        let expected = tensors(&folder.join(format!("{name}.safetensors")));
        let model = model(name);
        let ids = |key: &str| Input::ids(expected[key].shallow_clone());
        let tokens = |key: &str| Vec::<i64>::try_from(&expected[key]).unwrap();
        let metric = Metric::logit_difference(tokens("right"), tokens("wrong"));
        let sweep = |sites: &str| Patching::new(&model, ids("clean"), ids("corrupted")).unwrap().sites(sites).unwrap();
        let check = |key: &str, patching: Patching, turned: bool| {
            let effects = patching.run(&metric).unwrap().effects;
            let (found, expected) = (values(&effects), &expected[key]);
            // Ours has a row for each head of each layer, and columns of positions.
            let found = if turned {
                let (layers, positions, heads) = expected.size3().unwrap();
                found.view([layers, heads, positions]).transpose(1, 2)
            } else {
                found
            };
            let error = relative_error(&found, expected);
            assert!(error < 1e-5, "{name} {key}: {error:e}");
            for (key, found) in [("metric/clean", effects.clean), ("metric/corrupted", effects.corrupted)] {
                let expected =
                    crate::support::tensors(&folder.join(format!("{name}.safetensors")))[key].double_value(&[]);
                assert!((found.unwrap() - expected).abs() < 1e-5 * expected.abs().max(1.0), "{name} {key}");
            }
        };
        check("resid_pre", sweep("blocks.*.hook_resid_pre").each_position(), false);
        check("resid_mid", sweep("h.*.resid_mid").each_position(), false);
        check("attn_out", sweep("h.*.attn").each_position(), false);
        check("mlp_out", sweep("h.*.mlp").each_position(), false);
        check("z", sweep("h.*.attn.z").each_head(), false);
        check("q", sweep("h.*.attn.q").each_head(), false);
        check("pattern", sweep("h.*.attn.pattern").each_head(), false);
        let last = model.config().layers() - 1;
        let heads = || sweep("h.*.attn.z").each_head();
        let queries = || Patch::at(Site::block(last, Point::HeadQuery)).heads(0..1);
        check("path/q", heads().received_at(queries()), false);
        check("path/q_mlps", heads().received_at(queries()).through_mlps(), false);
        check("path/stream", heads().received_at(Patch::at(Site::block(last, Point::Output))), false);
        check("z_by_pos", sweep("h.*.attn.z").each_head().each_position(), true);
    }
}

#[test]
fn nothing_is_read_for_a_patch_that_is_refused() {
    let model = model("gpt2_plain");
    let patching = || Patching::new(&model, [1, 2, 3, 4], [1, 5, 3, 4]).unwrap();
    let metric = Metric::logit([2]);
    assert!(patching().sites("h.3").is_err());
    assert!(patching().sites("h.0").unwrap().positions(2..5).run(&metric).is_err());
    assert!(patching().sites("h.0.attn.z").unwrap().heads(1..4).each_head().run(&metric).is_err());
    assert!(patching().sites("h.0").unwrap().run(&Metric::logit([61])).is_err());
    assert!(patching().sites("h.0").unwrap().memory_budget(1000).run(&metric).is_err());
    assert!(Patching::new(&model, [1, 2], [1, 61]).is_err());
    assert_eq!((model.report().tensors_placed, model.report().bytes_read), (0, 0));
    // And it can be used.
    let found = patching().sites("h.0").unwrap().run(&metric).unwrap();
    assert_eq!(found.effects.clean, Some(found.effects.values[0][0]));
    let logits = model.logits([1, 2, 3, 4]).unwrap().select(1, 3).to_kind(Kind::Double);
    assert_eq!(found.effects.clean, Some(logits.double_value(&[0, 2])));
}
