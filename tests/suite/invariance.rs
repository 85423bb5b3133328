//! A text gives the same numbers however it is run; the whole table is `cargo xtask bench invariance`.

use std::path::Path;

use transformer_utils::{
    lowmem::{Checkpoint, Dtype, LoadOptions},
    models::{Input, KvCache, Library, Model, NoObserver, Numerics, Products},
    partial::{Edit, Run, partial_forward},
    tch::{Kind, Tensor},
};

/// Both bundled models in both dtypes.
fn models(numerics: Numerics) -> Vec<(String, Model)> {
    let open = |name: &str, dtype: Dtype| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets").join(name);
        let options = LoadOptions::default().dtype(dtype);
        let model = Model::open(&Checkpoint::open(folder).unwrap(), &options).unwrap().with_numerics(numerics);
        (format!("{name} in {dtype}"), model)
    };
    ["tiny-gpt2", "tiny-gpt-neo"].iter().flat_map(|name| [open(name, Dtype::F32), open(name, Dtype::Bf16)]).collect()
}

fn ids(length: usize, seed: i64) -> Vec<i64> {
    (0..length as i64).map(|place| (place * place * 31 + place * seed + 3) % 4096).collect()
}

fn logits(model: &Model, input: &Input) -> Tensor {
    model.forward(input, &mut NoObserver).unwrap().logits.unwrap()
}

/// What logits around 10 lose to rounding: f32 has seven digits, bf16 two.
fn rounding(kind: Kind) -> f64 {
    if kind == Kind::Float { 5e-5 } else { 0.25 }
}

/// Whether a row's products are known to have the same bits among any number of others: measured with AVX-512 and oneDNN, in bf16
/// where the processor has instructions for it. For MKL on Intel's processors the bench says it.
fn is_invariant(kind: Kind) -> bool {
    let products = Products::chosen().unwrap();
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx512f") && products.library == Library::OneDnn {
        let bf16 = std::arch::is_x86_feature_detected!("avx512bf16") && products.widen_from.is_none();
        return kind == Kind::Float || bf16;
    }
    let _ = (kind, products);
    false
}

fn check_same(what: &str, found: &Tensor, expected: &Tensor) {
    assert_eq!(found.size(), expected.size(), "{what}");
    let apart = (found - expected).abs().max().double_value(&[]);
    let allowed = if is_invariant(expected.kind()) { 0.0 } else { rounding(expected.kind()) };
    assert!(apart <= allowed, "{what}: {apart:.1e}");
}

#[test]
fn a_token_gets_the_same_bits_alone_and_in_company() {
    for (name, model) in models(Numerics::FAST) {
        for length in [2, 45] {
            let text = ids(length, 7);
            let alone = logits(&model, &Input::from_rows(&[&text]).unwrap());
            let rows = [ids(length + 26, 5), text.clone(), ids(length + 5, 3)];
            let right = logits(&model, &Input::padded(&rows).unwrap());
            check_same(&format!("{name}, {length}, right"), &right.narrow(0, 1, 1).narrow(1, 0, length as i64), &alone);

            let width = length + 26;
            let fill = |row: &Vec<i64>, value: i64| [vec![value; width - row.len()], row.clone()].concat();
            let mask: Vec<i64> = rows.iter().flat_map(|row| fill(&vec![1; row.len()], 0)).collect();
            let mask = Tensor::from_slice(&mask).view([3, width as i64]);
            let positions = Input::positions_from_mask(&mask).unwrap();
            let padded: Vec<Vec<i64>> = rows.iter().map(|row| fill(row, 0)).collect();
            let input = Input::from_rows(&padded).unwrap().attention_mask(mask).position_ids(positions);
            let left = logits(&model, &input).narrow(0, 1, 1).narrow(1, 26, length as i64);
            check_same(&format!("{name}, {length}, left"), &left, &alone);
        }
    }
}

fn in_pieces(model: &Model, text: &[i64], size: usize) -> Tensor {
    let mut cache = KvCache::new();
    let run = |piece: &[i64]| {
        let input = Input::from_rows(&[piece]).unwrap();
        model.forward_cached(&input, &mut cache, &mut NoObserver).unwrap().logits.unwrap()
    };
    Tensor::cat(&text.chunks(size).map(run).collect::<Vec<_>>(), 1)
}

#[test]
fn a_token_gets_the_same_bits_in_pieces_through_a_cache() {
    let text = ids(45, 7);
    for (name, model) in models(Numerics::FAST) {
        let whole = logits(&model, &Input::from_rows(&[&text]).unwrap());
        for size in [2, 7, 64] {
            // A last piece of one token is a single row, which has a switch of its own.
            let text = if size == 2 { &text[..44] } else { &text };
            let whole = whole.narrow(1, 0, text.len() as i64);
            check_same(&format!("{name} by {size}"), &in_pieces(&model, text, size), &whole);
        }
    }
    for (name, model) in models(Numerics::FAST.alike_rows(true)) {
        let whole = logits(&model, &Input::from_rows(&[&text]).unwrap());
        check_same(&format!("{name} token by token"), &in_pieces(&model, &text, 1), &whole);
    }
}

#[test]
fn looking_changes_nothing() {
    let input = || Input::from_rows(&[ids(45, 7), ids(45, 5)]).unwrap();
    for (name, model) in models(Numerics::FAST) {
        let blocks = 0..model.config().layers();
        let mut names: Vec<String> = blocks.map(|block| format!("h.{block}.attn.pattern")).collect();
        names.extend(["h.1.attn.scores", "h.2.attn.result", "lm_head"].map(str::to_owned));
        let output = partial_forward(&model, &names, input()).unwrap();
        // On every processor: the run goes the same way.
        assert!(output.get("lm_head").unwrap().equal(&logits(&model, &input())), "{name}");
    }
}

#[test]
fn a_pattern_replaced_by_itself_changes_nothing_where_attention_is_materialised() {
    let input = || Input::from_rows(&[ids(45, 7)]).unwrap();
    let replaced = |model: &Model| {
        let itself = Edit::with(|value| Ok(value.shallow_clone()));
        let run = Run::new(model, &["lm_head"]).unwrap().edit("h.2.attn.pattern", itself).unwrap();
        run.run(input()).unwrap().get("lm_head").unwrap().shallow_clone()
    };
    for (name, model) in models(Numerics::FAST.materialised_attention(true)) {
        assert!(replaced(&model).equal(&logits(&model, &input())), "{name}");
    }
    // Without, it costs the last bits and no more.
    for (name, model) in models(Numerics::FAST) {
        let apart = (replaced(&model) - logits(&model, &input())).abs().max().double_value(&[]);
        assert!(apart > 0.0 && apart < rounding(model.parts().dtype().kind()), "{name}: {apart:.1e}");
    }
}

#[test]
fn gradients_reach_a_captured_pattern() {
    let (_, model) = models(Numerics::FAST).swap_remove(0);
    let _weights = model.trainable([1]).unwrap();
    let output =
        partial_forward(&model, &["h.0.attn.pattern", "h.0"], Input::from_rows(&[ids(9, 7)]).unwrap()).unwrap();
    let (pattern, stream) = (output.get("h.0.attn.pattern").unwrap(), output.get("h.0").unwrap());
    let gradients = Tensor::run_backward(&[stream.sum(Kind::Float)], &[pattern], false, false);
    assert!(gradients[0].abs().max().double_value(&[]) > 0.0);
}
