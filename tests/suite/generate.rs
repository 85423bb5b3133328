//! Generation: Hugging Face's greedy output token for token, and what sampling, padding and limits must keep.

use std::ops::ControlFlow;

use transformer_utils::{
    lowmem::{Dtype, DtypeChoice, LoadOptions, Residency},
    models::{Config, Ending, Error, GenerateOptions, Generated, Model, NewToken, Sampling, generate},
    tch::{Kind, Tensor},
};

use crate::support::{Case, cases};

fn quiet(_: NewToken) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn run(model: &Model, prompts: &[Vec<i64>], options: &GenerateOptions) -> Generated {
    generate(model, prompts, options, quiet).unwrap()
}

/// The rows of `single` or `left` without their padding.
pub fn prompts(case: &Case, batch: &str) -> Vec<Vec<i64>> {
    let ids = case.ids(batch);
    let Some(mask) = case.json[batch].get("attention_mask") else {
        return ids;
    };
    let mask = crate::support::matrix(mask);
    let keep = |(row, mask): (Vec<i64>, Vec<i64>)| {
        row.into_iter().zip(mask).filter(|(_, attended)| *attended != 0).map(|(id, _)| id).collect()
    };
    ids.into_iter().zip(mask).map(keep).collect()
}

fn rows(tensor: &Tensor) -> Vec<Vec<i64>> {
    Vec::<Vec<i64>>::try_from(tensor.to_kind(Kind::Int64)).unwrap()
}

#[test]
fn greedy_is_hugging_face_s_token_for_token() {
    let mut compared = 0;
    for case in cases() {
        let settings = &case.json["generate"];
        let options = |end_tokens: Vec<i64>| {
            GenerateOptions::default()
                .max_new_tokens(settings["max_new_tokens"].as_u64().unwrap() as usize)
                .pad_token(settings["pad_id"].as_i64())
                .end_tokens(Some(end_tokens))
        };
        for residency in [Residency::Auto, Residency::Resident, Residency::Streamed] {
            let dtype = DtypeChoice::Fixed(Dtype::F32);
            let model = case.model(&LoadOptions::default().dtype(dtype).residency(residency));
            for (name, batch) in
                [("greedy", "single"), ("greedy_left", "left"), ("eos", "single"), ("eos_left", "left")]
            {
                let Some(expected) = case.expected.get(&format!("generate/{name}")) else {
                    assert!(name.starts_with("eos"), "{}: no generate/{name}", case.name);
                    continue;
                };
                let end_tokens = settings["eos_id"].as_i64().filter(|_| name.starts_with("eos"));
                // Hugging Face was given the rows of a batch that differ in length, and one row by itself.
                let prompts = prompts(&case, batch);
                let found = run(&model, &prompts, &options(end_tokens.into_iter().collect()));
                assert_eq!(found.padded(), rows(expected), "{} {residency} {name}", case.name);
                compared += 1;
            }
        }
    }
    assert!(compared > 100, "only {compared} comparisons");
}

pub fn tiny() -> Model {
    let config = r#"{"model_type": "gpt2", "n_layer": 3, "n_head": 2, "n_embd": 16, "vocab_size": 40, "n_positions": 24,
        "initializer_range": 0.6, "eos_token_id": 39}"#;
    Model::random(Config::from_json(config).unwrap(), 3).unwrap()
}

fn sampled(seed: u64) -> GenerateOptions {
    let sampling = Sampling::default().temperature(1.5).top_k(Some(30)).top_p(Some(0.98)).seed(seed);
    GenerateOptions::default().sampling(Some(sampling)).max_new_tokens(12).end_tokens(Some(vec![]))
}

#[test]
fn the_same_seed_gives_the_same_tokens_whatever_libtorch_s_generator_does() {
    let model = tiny();
    let prompts = [vec![1, 2, 3]];
    let first = run(&model, &prompts, &sampled(5));
    transformer_utils::tch::manual_seed(99);
    assert_eq!(first, run(&model, &prompts, &sampled(5)));
    assert_ne!(first, run(&model, &prompts, &sampled(6)));
}

#[test]
fn a_row_is_continued_in_a_batch_as_it_is_alone() {
    let model = tiny();
    let prompts = [vec![1, 2, 3, 4, 5], vec![7], vec![9, 8]];
    let greedy = GenerateOptions::default()
        .repetition_penalty(1.3)
        .max_new_tokens(12)
        // Also the padding: it must not count as seen.
        .pad_token(Some(0));
    let batch = run(&model, &prompts, &greedy);
    for (row, prompt) in batch.rows.iter().zip(&prompts) {
        assert_eq!(*row, run(&model, std::slice::from_ref(prompt), &greedy).rows[0]);
    }
    // The first row of a batch draws what it draws alone.
    assert_eq!(run(&model, &prompts, &sampled(1)).rows[0], run(&model, &prompts[..1], &sampled(1)).rows[0]);
}

#[test]
fn top_k_of_one_and_a_tiny_top_p_are_greedy() {
    let model = tiny();
    let prompts = [vec![1, 2, 3]];
    let options = |sampling| GenerateOptions::default().sampling(sampling).max_new_tokens(12);
    let greedy = run(&model, &prompts, &options(None));
    let top_k = Sampling::default().top_k(Some(1));
    let top_p = Sampling::default().top_p(Some(1e-9));
    assert_eq!(greedy, run(&model, &prompts, &options(Some(top_k))));
    assert_eq!(greedy, run(&model, &prompts, &options(Some(top_p))));
}

#[test]
fn a_strong_repetition_penalty_repeats_nothing() {
    let options = GenerateOptions::default().repetition_penalty(1e4).max_new_tokens(15);
    let found = run(&tiny(), &[vec![1, 2, 3]], &options.end_tokens(Some(vec![])));
    let mut tokens = found.rows[0].tokens.clone();
    tokens.sort_unstable();
    tokens.dedup();
    assert_eq!(tokens.len(), 18);
}

#[test]
fn a_full_context_ends_the_text_and_says_so() {
    let model = tiny();
    let options = GenerateOptions::default().max_new_tokens(100).end_tokens(Some(vec![]));
    let found = run(&model, &[vec![1; 20]], &options);
    // 24 positions can be read; the last of them still predicts a token.
    assert_eq!((found.rows[0].tokens.len(), found.rows[0].ending), (25, Ending::ContextFull));
    let exactly = run(&model, &[vec![1; 20]], &options.clone().max_new_tokens(5));
    assert_eq!(exactly.rows[0].ending, Ending::MaxNewTokens);
    let too_long = generate(&model, &[vec![1; 25]], &options, quiet);
    assert!(matches!(too_long, Err(Error::TooManyPositions { found: 25, limit: 24 })), "{too_long:?}");
}

#[test]
fn tokens_are_told_as_they_come_and_the_callback_can_stop() {
    let model = tiny();
    let mut seen = Vec::new();
    let options = sampled(2).end_tokens(Some(vec![]));
    let found = generate(&model, &[vec![1], vec![2, 3]], &options, |token| {
        seen.push(token);
        if token.step == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })
    .unwrap();
    assert_eq!(seen.len(), 7);
    let of_row = |row| seen.iter().filter(|token| token.row == row).map(|token| token.id).collect::<Vec<_>>();
    assert_eq!(found.rows[0].new_tokens(), of_row(0));
    assert_eq!(found.rows[1].new_tokens(), of_row(1));
    assert_eq!(found.rows[0].ending, Ending::Stopped);
}

#[test]
fn rows_end_at_their_own_end_token() {
    let model = tiny();
    let prompts = [vec![1, 2], vec![3]];
    let free = run(&model, &prompts, &sampled(4));
    let end = free.rows[0].new_tokens()[2];
    let found = run(&model, &prompts, &sampled(4).end_tokens(Some(vec![end])));
    let first = free.rows[0].new_tokens().iter().position(|&id| id == end).unwrap();
    assert_eq!(found.rows[0].ending, Ending::EndToken(end));
    assert_eq!(found.rows[0].new_tokens(), &free.rows[0].new_tokens()[..=first]);
    let padded = found.padded();
    assert_eq!(padded[0].len(), padded[1].len());
}

#[test]
fn bad_requests_are_errors_and_leave_the_model_usable() {
    let model = tiny();
    let good = GenerateOptions::default();
    let fails =
        |prompts: &[Vec<i64>], options: &GenerateOptions| generate(&model, prompts, options, quiet).unwrap_err();
    assert!(matches!(fails(&[], &good), Error::EmptyInput));
    assert!(matches!(fails(&[vec![1], vec![]], &good), Error::EmptyInput));
    assert!(matches!(fails(&[vec![1, 40]], &good), Error::TokenOutOfRange { id: 40, .. }));
    let bad = [
        good.clone().repetition_penalty(0.0),
        good.clone().pad_token(Some(40)),
        good.clone().sampling(Some(Sampling::default().temperature(0.0))),
    ];
    for options in bad {
        assert!(matches!(fails(&[vec![1]], &options), Error::Setting { .. }), "{options:?}");
    }
    assert_eq!(run(&model, &[vec![1]], &good.clone().max_new_tokens(0)).rows[0].tokens, [1]);
    assert_eq!(run(&model, &[vec![1]], &good.end_tokens(Some(vec![]))).rows[0].tokens.len(), 21);
}

#[test]
fn damaged_weights_are_reported() {
    let config = tiny().config().clone();
    let named = Model::tensor_shapes(&config).unwrap().into_iter();
    let tensors = named
        .map(|(name, shape)| (name, Tensor::full(shape, f64::NAN, (Kind::Float, transformer_utils::tch::Device::Cpu))));
    let model = Model::from_tensors(config, &tensors.collect()).unwrap();
    let error = generate(&model, &[vec![1, 2]], &GenerateOptions::default(), quiet).unwrap_err();
    assert!(matches!(error, Error::LogitsNotFinite { row: 0, position: 1 }), "{error}");
}
