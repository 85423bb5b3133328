//! One model, several threads at once.

use std::{ops::ControlFlow, sync::Barrier, thread};

use transformer_utils::{
    lowmem::{Dtype, DtypeChoice, LoadOptions, Residency},
    models::{GenerateOptions, Input, Model, generate},
    partial::partial_forward,
    tch::Tensor,
};

use crate::support::{Case, cases};

const THREADS: i64 = 4;
const NAMES: [&[&str]; 4] = [&["lm_head"], &["h.0.attn.pattern", "h.1"], &["h.1.mlp.act", "lm_head"], &["input"]];

fn open(case: &Case, residency: Residency) -> Model {
    let dtype = DtypeChoice::Fixed(Dtype::F32);
    case.model(&LoadOptions::default().dtype(dtype).residency(residency))
}

/// What thread number `thread` computes: a text of its own, to names of its own.
fn work(model: &Model, thread: i64) -> (Vec<Tensor>, Vec<i64>) {
    let row: Vec<i64> = (0..8).map(|index| (thread * 11 + index * 5) % model.architecture().vocabulary).collect();
    let names = NAMES[thread as usize % NAMES.len()];
    let mut tensors = Vec::new();
    for length in [8, 3] {
        let output = partial_forward(model, names, Input::from_rows(&[&row[..length]]).unwrap()).unwrap();
        tensors.extend(output.into_tensors().into_iter().map(|(_, tensor)| tensor));
    }
    let options = GenerateOptions::default().max_new_tokens(3).end_tokens(Some(vec![]));
    let generated = generate(model, &[row[..4].to_vec()], &options, |_| ControlFlow::Continue(())).unwrap();
    (tensors, generated.rows[0].tokens.clone())
}

fn at_once<T: Send>(work: impl Fn(i64) -> T + Sync) -> Vec<T> {
    let together = Barrier::new(THREADS as usize);
    thread::scope(|scope| {
        let work = |thread| {
            together.wait();
            work(thread)
        };
        let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(move || work(thread))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

#[test]
fn runs_at_once_give_the_bits_of_runs_in_turn() {
    for case in cases().into_iter().filter(|case| ["gpt2_plain", "neo_plain"].contains(&case.name.as_str())) {
        for residency in [Residency::Mapped, Residency::Resident, Residency::Streamed] {
            let sequential = open(&case, residency);
            let expected: Vec<_> = (0..THREADS).map(|thread| work(&sequential, thread)).collect();
            // Nothing of it has been placed when the threads begin.
            let model = open(&case, residency);
            for _ in 0..3 {
                for (thread, (found, expected)) in
                    at_once(|thread| work(&model, thread)).iter().zip(&expected).enumerate()
                {
                    let equal = found.0.iter().zip(&expected.0).all(|(found, expected)| found.equal(expected));
                    assert!(equal && found.1 == expected.1, "{} {residency}, thread {thread}", case.name);
                }
            }
            // What is kept is placed once, whoever asks for it first.
            if residency != Residency::Streamed {
                assert_eq!(model.report().tensors_placed, sequential.report().tensors_placed, "{residency}");
            }
        }
    }
}

#[test]
fn weights_become_trainable_beside_runs_that_go_on_without() {
    let case = cases().into_iter().find(|case| case.name == "gpt2_plain").unwrap();
    for residency in [Residency::Mapped, Residency::Resident, Residency::Streamed] {
        let model = open(&case, residency);
        let expected: Vec<_> = (0..THREADS).map(|thread| work(&model, thread)).collect();
        let before = model.unembedding().unwrap().weight().shallow_clone();
        let found = at_once(|thread| match thread {
            0 => (Some(model.trainable(0..model.parts().len()).unwrap()), None),
            thread => (None, Some(work(&model, thread))),
        });
        for (found, expected) in found.iter().zip(&expected) {
            let Some(found) = &found.1 else { continue };
            assert_eq!(found.1, expected.1, "{residency}");
            // Where gradients are asked for, products go to the other library.
            let close = |(found, expected): (&Tensor, &Tensor)| found.allclose(expected, 1e-4, 1e-5, false);
            assert!(found.0.iter().zip(&expected.0).all(close), "{residency}");
        }
        // A tensor given out before is not touched, the next one is the leaf.
        let leaves = found[0].0.as_ref().unwrap();
        let (_, leaf) = leaves.iter().find(|(name, _)| name == "transformer.wte.weight").unwrap();
        assert!(!before.requires_grad(), "{residency}");
        let after = model.unembedding().unwrap().weight().shallow_clone();
        assert!(after.requires_grad() && after.is_leaf() && after.data_ptr() == leaf.data_ptr(), "{residency}");
        // Asked for again, the same leaves: an optimizer may hold them.
        let gradient = |leaf: &Tensor| leaf.grad().defined();
        let input = Input::from_rows(&[[1, 2, 3]]).unwrap();
        partial_forward(&model, &["lm_head"], &input).unwrap().get("lm_head").unwrap().square().sum(None).backward();
        let again = model.trainable(0..model.parts().len()).unwrap();
        assert!(
            leaves.iter().zip(&again).all(|(first, second)| gradient(&first.1) && gradient(&second.1)),
            "{residency}"
        );
    }
}
