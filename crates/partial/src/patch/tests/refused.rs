//! What is refused, and mixtures of experts.

use super::*;

#[test]
fn what_cannot_be_patched_is_refused_before_anything_runs() {
    let model = model(LLAMA);
    let (clean, corrupted) = pair(1, 12);
    let new = |clean: Input, corrupted: Input| Patching::new(&model, clean, corrupted).err().unwrap();
    let rows = |ids: &[&[i64]]| Input::padded(ids).unwrap();
    assert!(
        matches!(new(rows(&[&[1, 2]]), rows(&[&[1, 2, 3]])), Error::PatchInputs { problem } if problem.contains("1 rows of 2 positions"))
    );
    assert!(matches!(new(rows(&[&[1, 2]]), rows(&[&[1, 2], &[3, 4]])), Error::PatchInputs { .. }));
    assert!(
        matches!(new(rows(&[&[1, 2], &[3]]), rows(&[&[1], &[3, 4]])), Error::PatchInputs { problem } if problem.contains("padding"))
    );
    assert!(matches!(
        new(rows(&[&[1, 2]]), rows(&[&[1, 96]])),
        Error::Model(models::Error::TokenOutOfRange { id: 96, .. })
    ));
    let middle = Input::stream(
        Site::block(0, models::Point::Output),
        Tensor::zeros([1, 2, 64], (Kind::Float, tch::Device::Cpu)),
    );
    assert!(
        matches!(new(rows(&[&[1, 2]]), middle), Error::PatchInputs { problem } if problem.contains("starts at h.0"))
    );

    let patching = || Patching::new(&model, &clean, &corrupted).unwrap();
    let site = |name: &str| patching().sites(name).err().unwrap();
    assert!(matches!(site("h.*.mpl"), Error::Model(models::Error::UnknownSite { .. })));
    assert!(matches!(site("h.2"), Error::Model(models::Error::UnknownSite { blocks: 2, .. })));
    assert!(matches!(site("wpe"), Error::Model(models::Error::AbsentSite { .. })));
    assert!(matches!(site("logits"), Error::NotPatchable { .. }));
    assert!(matches!(site("rotary_emb"), Error::NotPatchable { .. }));

    let run = |patch: Patch| patching().run_each(&[patch], &difference()).unwrap_err();
    assert!(matches!(
        run(Patch::at("h.0").positions(3..13)),
        Error::OutOfRange { what: "positions", end: 13, size: 12, .. }
    ));
    assert!(matches!(run(Patch::at("h.0").positions(3..3)), Error::OutOfRange { .. }));
    assert!(matches!(run(Patch::at("h.0.attn.k").heads(2..3)), Error::OutOfRange { what: "heads", size: 2, .. }));
    assert!(matches!(run(Patch::at("h.0.mlp").heads(0..1)), Error::NoHeads { .. }));
    let grid = |patching: Patching| patching.run(&difference()).unwrap_err();
    assert!(matches!(grid(patching()), Error::NoPatches));
    assert!(matches!(patching().run_each(&[], &difference()).unwrap_err(), Error::NoPatches));
    assert!(matches!(grid(patching().sites("h.0").unwrap().each_head()), Error::NoHeads { .. }));
    assert!(matches!(grid(patching().sites("h.*.attn.z").unwrap().heads(3..5).each_head()), Error::OutOfRange { .. }));
    assert!(matches!(
        grid(patching().sites("h.0").unwrap().positions(4..20).each_position()),
        Error::OutOfRange { .. }
    ));
    assert!(matches!(grid(patching().sites("h.0").unwrap().read_at(12)), Error::OutOfRange { .. }));
    let metric = |metric: Metric| patching().sites("h.0").unwrap().run(&metric).unwrap_err();
    assert!(matches!(metric(Metric::logit([96])), Error::MetricToken { token: 96, .. }));
    assert!(matches!(metric(Metric::logit_difference([1], [2, 3])), Error::MetricRows { .. }));
    assert!(matches!(
        metric(Metric::kl(&Tensor::zeros([1, 95], (Kind::Float, tch::Device::Cpu)))),
        Error::MetricRows { .. }
    ));
}

#[test]
fn experts_one_by_one_are_refused_and_mixtures_patched() {
    let model = model(
        r#"{"model_type": "mixtral", "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "hidden_size": 64, "intermediate_size": 32, "vocab_size": 96, "rms_norm_eps": 1e-5, "num_local_experts": 4,
        "num_experts_per_tok": 2, "max_position_embeddings": 64, "hidden_act": "silu"}"#,
    );
    let (clean, corrupted) = pair(1, 12);
    let patching = || Patching::new(&model, &clean, &corrupted).unwrap();
    assert!(matches!(patching().sites("h.0.mlp.experts.1"), Err(Error::NotPatchable { .. })));
    let found =
        patching().sites("h.*.mlp").unwrap().sites("h.*.mlp.gate").unwrap().each_position().run(&difference()).unwrap();
    for (row, site) in found.effects.rows.iter().enumerate() {
        let place = (model.sites().parse(site).unwrap(), Some(7..8), None);
        let expected = naive(&model, &corrupted, &clean, &place, &difference());
        // An expert may get one token here and several there.
        assert!((found.effects.values[row][7] - expected).abs() < 1e-6, "{site}");
    }
}
