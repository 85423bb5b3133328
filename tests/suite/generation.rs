//! Generation under edits: what whole runs under the same edits give, captures, conditions that end it.

use std::{ops::ControlFlow, sync::Arc};

use transformer_utils::{
    lowmem::{Dtype, DtypeChoice, LoadOptions},
    models::{
        Action, Ending, Error as ModelError, GenerateOptions, Input, KvCache, Model, Observer, ObserverError, Site,
        Tokens, TokensError, generate_observed,
    },
    partial::{Edit, Error, Generation, Run, partial_forward},
    tch::{Device, Kind, Tensor},
};

use crate::{
    generate::{prompts, tiny},
    support::{cases, relative_error},
};

fn options(new_tokens: usize) -> GenerateOptions {
    GenerateOptions::default().max_new_tokens(new_tokens).end_tokens(Vec::new())
}

/// Numbers that are large enough to change what is chosen, `[size, ..]`.
fn numbers(shape: &[i64]) -> Tensor {
    let count = shape.iter().product::<i64>();
    ((Tensor::arange(count, (Kind::Float, Device::Cpu)) * 12.9898).sin() * 3.0).view(shape)
}

/// An edit for generation, and the same for a whole run over so many tokens of a text whose prompt has so many; nothing where it
/// is not reached.
struct Twofold {
    site: String,
    edit: Edit,
    whole: Box<dyn Fn(i64, i64) -> Option<Edit>>,
}

fn edits(model: &Model) -> Vec<Twofold> {
    let width = model.architecture().d_model;
    let last = model.config().layers() - 1;
    let direction = || numbers(&[width]);
    let values = || numbers(&[1, 4, width]);
    let twofold = |site: String, edit, whole| Twofold { site, edit, whole };
    vec![
        twofold("h.0".into(), Edit::add(&direction()), Box::new(move |_, _| Some(Edit::add(&numbers(&[width]))))),
        twofold(
            format!("h.{last}.mlp"),
            Edit::scale(-3.0).new_tokens(),
            Box::new(|length, prompt| (length > prompt).then(|| Edit::scale(-3.0).positions(prompt..))),
        ),
        twofold(
            format!("h.{last}.attn.z"),
            Edit::zero().heads([0]).positions(1..3),
            Box::new(|length, _| (length > 1).then(|| Edit::zero().heads(0..1).positions(1..3.min(length)))),
        ),
        // From within the prompts to the new tokens, one value for each position.
        twofold(
            "input".into(),
            Edit::replace(&values()).positions(2..6),
            Box::new(move |length, _| {
                let end = length.min(6);
                let values = || numbers(&[1, 4, width]).narrow(1, 0, end - 2);
                (length > 2).then(|| Edit::replace(&values()).positions(2..end))
            }),
        ),
    ]
}

/// The greedy continuation by whole runs, each over all tokens so far, without a cache.
fn by_whole_runs(model: &Model, prompt: &[i64], new_tokens: usize, edit: &Twofold) -> Vec<i64> {
    let mut row = prompt.to_vec();
    for _ in 0..new_tokens {
        let mut run = Run::new(model, &["logits"]).unwrap();
        if let Some(whole) = (edit.whole)(row.len() as i64, prompt.len() as i64) {
            run = run.edit(&edit.site, whole).unwrap();
        }
        let logits = run.run(&row).unwrap();
        row.push(logits.get("logits").unwrap().select(1, -1).argmax(-1, false).int64_value(&[0]));
    }
    row
}

#[test]
fn generation_under_an_edit_is_what_whole_runs_under_it_give() {
    let (mut compared, mut changed) = (0, 0);
    for case in cases().into_iter().filter(|case| case.is_original()) {
        let dtype = DtypeChoice::Fixed(Dtype::F32);
        let model = case.model(&LoadOptions::default().dtype(dtype));
        for batch in ["single", "left"] {
            // It rotates by the longest row of a batch, so that a row alone is another text.
            if case.name == "phi3_longrope" && batch == "left" {
                continue;
            }
            let prompts = prompts(&case, batch);
            let plain = model.generate(&prompts, &options(5)).unwrap();
            for edit in edits(&model) {
                let generation = Generation::new(&model).edit(&edit.site, edit.edit.clone()).unwrap();
                let found = generation.run(&prompts, &options(5)).unwrap().generated;
                for (row, prompt) in found.rows.iter().zip(&prompts) {
                    let expected = by_whole_runs(&model, prompt, 5, &edit);
                    assert_eq!(row.tokens, expected, "{} {batch} {}", case.name, edit.site);
                    compared += 1;
                }
                changed += usize::from(found != plain);
            }
        }
    }
    assert!(compared > 100 && changed > compared / 10, "{compared} compared, {changed} changed");
}

#[test]
fn captures_are_what_a_whole_run_over_the_text_has_there() {
    for name in ["gpt2_plain", "neo_plain", "llama_one_kv_head"] {
        let Some(case) = cases().into_iter().find(|case| case.name == name) else { panic!("no {name}") };
        let model = case.model(&LoadOptions::default().dtype(Dtype::F32));
        let prompts = [vec![3, 1, 4, 1, 5], vec![9, 2]];
        let names = ["h.0.attn.z", "h.1", "h.1.attn.pattern", "logits"];
        let edit = || Edit::add(&numbers(&[model.architecture().d_model])).positions(1..);
        for whole_prompt in [true, false] {
            let mut generation = Generation::new(&model).edit("h.0.mlp", edit()).unwrap().capture(names).unwrap();
            if whole_prompt {
                generation = generation.with_prompt();
            }
            let found = generation.run(&prompts, &options(6)).unwrap();
            for (index, row) in found.generated.rows.iter().enumerate() {
                let run = Run::new(&model, &names).unwrap().edit("h.0.mlp", edit()).unwrap();
                let expected = run.run(&row.tokens[..row.tokens.len() - 1]).unwrap();
                for (name, dimension) in names.into_iter().zip([0, 0, 1, 0]) {
                    let value = found.get(name).unwrap().select(0, index as i64);
                    let positions = &found.positions(name).unwrap()[index];
                    let logits_alone = name == "logits" || !whole_prompt;
                    assert_eq!(positions.len(), if logits_alone { 6 } else { 10 }, "{name}");
                    assert_eq!(positions.last(), Some(&Some(row.tokens.len() as i64 - 2)));
                    for (column, position) in positions.iter().enumerate() {
                        let Some(position) = *position else { continue };
                        let mut found = value.select(dimension, column as i64);
                        let mut expected = expected.get(name).unwrap().select(0, 0).select(dimension, position);
                        if name.ends_with("pattern") {
                            // Columns of padding come first; keys that the query does not see are zero.
                            let padding = 5 - row.prompt as i64;
                            assert_eq!(found.narrow(1, 0, padding).abs().sum(Kind::Float).double_value(&[]), 0.0);
                            found = found.narrow(1, padding, position + 1);
                            expected = expected.narrow(1, 0, position + 1);
                        }
                        let error = relative_error(&found, &expected);
                        assert!(error < 1e-4, "{} {name} {position}: {error}", case.name);
                    }
                }
            }
        }
    }
}

#[test]
fn rows_that_have_ended_say_so_in_their_positions() {
    let model = tiny();
    let prompts = [vec![1, 2, 3], vec![4]];
    let free = model.generate(&prompts, &options(6)).unwrap();
    let end = free.rows[0].new_tokens()[1];
    let options = options(6).end_tokens(vec![end]);
    let found = Generation::new(&model).capture(["h.2"]).unwrap().run(&prompts, &options).unwrap();
    let row = &found.generated.rows[0];
    let read = found.positions("h.2").unwrap()[0].iter().flatten().copied().collect::<Vec<_>>();
    assert_eq!(row.ending, Ending::EndToken(end));
    assert_eq!(read, (2..row.tokens.len() as i64).collect::<Vec<_>>());
    assert!(found.positions("h.1").is_err());
}

#[test]
fn tokens_are_streamed_and_captures_moved() {
    let model = tiny();
    let mut seen = Vec::new();
    let generation = Generation::new(&model).capture(["h.0"]).unwrap().to_kind(Kind::Double);
    let found = generation.stream([1, 2], &options(9), |token| {
        seen.push(token.id);
        if token.step == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    let found = found.unwrap();
    assert_eq!((found.generated.rows[0].new_tokens(), found.generated.rows[0].ending), (&seen[..], Ending::Stopped));
    assert_eq!((found.get("h.0").unwrap().size(), found.get("h.0").unwrap().kind()), (vec![1, 4, 16], Kind::Double));
}

#[test]
fn an_edit_of_the_logits_chooses_the_token() {
    let model = tiny();
    let push = Tensor::zeros([40], (Kind::Float, Device::Cpu));
    let _ = push.narrow(0, 7, 1).fill_(1e4);
    let forced = Generation::new(&model).edit("lm_head", Edit::add(&push)).unwrap();
    let forced = forced.run([[1, 2, 3].to_vec(), [5].to_vec()], &options(4)).unwrap();
    assert!(forced.generated.rows.iter().all(|row| row.new_tokens() == [7; 4]));
    // From the fifth position of each row's text on.
    let later = Generation::new(&model).edit("lm_head", Edit::add(&push).positions(4..)).unwrap();
    let later = later.run([[1, 2, 3].to_vec(), [5].to_vec()], &options(6)).unwrap();
    let firsts = later.generated.rows.iter().map(|row| row.new_tokens().iter().position(|&id| id == 7));
    assert_eq!(firsts.collect::<Vec<_>>(), [Some(2), Some(4)]);
}

#[test]
fn positions_of_an_edit_are_those_of_the_text_whatever_is_cached() {
    let model = tiny();
    let text = [1, 2, 3, 4, 5, 6, 7, 8];
    let edit = || Edit::replace(&numbers(&[1, 4, 16])).positions(3..7);
    let run = || Run::new(&model, &["h.1", "logits"]).unwrap().edit("h.0", edit()).unwrap();
    let whole = run().run(text).unwrap();
    let mut cache = KvCache::new();
    for piece in [0..2, 2..5, 5..6, 6..8] {
        let part = run().run_cached(&text[piece.clone()], &mut cache).unwrap();
        let expected = whole.get("h.1").unwrap().narrow(1, piece.start as i64, piece.len() as i64);
        assert!(relative_error(part.get("h.1").unwrap(), &expected) < 1e-5, "{piece:?}");
    }
}

#[test]
fn in_a_batch_with_padding_in_front_positions_are_each_row_s_own() {
    let case = cases().into_iter().find(|case| case.name == "gpt2_plain").unwrap();
    let model = case.model(&LoadOptions::default());
    let (input, rows) = (case.input("left"), prompts(&case, "left"));
    let edit = |edit: Edit| edit.positions(1..3);
    let changes: [fn() -> Edit; 3] =
        [|| Edit::zero(), || Edit::add(&numbers(&[2, 12])), || Edit::with(|value| value.f_neg())];
    for change in changes {
        let run = Run::new(&model, &["h.1"]).unwrap().edit("h.0", edit(change())).unwrap();
        let together = run.run(&input).unwrap();
        for (index, row) in rows.iter().enumerate() {
            let alone = run.run(row).unwrap();
            let found = together.get("h.1").unwrap().narrow(0, index as i64, 1);
            let length = row.len() as i64;
            let found = found.narrow(1, found.size()[1] - length, length);
            assert!(relative_error(&found, alone.get("h.1").unwrap()) < 1e-5, "row {index}");
        }
    }
    let means = Run::new(&model, &["h.0"]).unwrap().edit("h.0", edit(Edit::mean())).unwrap().run(&input).unwrap();
    let clean = partial_forward(&model, &["h.0"], &input).unwrap();
    let columns = input.token_columns().unwrap().unwrap();
    let chosen = columns.iter().enumerate().map(|(row, tokens)| {
        let begin = tokens.start + 1;
        (row as i64, begin, (tokens.end - begin).min(2))
    });
    let part = |(row, begin, count): (i64, i64, i64)| clean.get("h.0").unwrap().select(0, row).narrow(0, begin, count);
    let mean = Tensor::cat(&chosen.clone().map(part).collect::<Vec<_>>(), 0).mean_dim(0, false, None);
    for (row, begin, count) in chosen {
        let found = means.get("h.0").unwrap().select(0, row).narrow(0, begin, count);
        assert!(found.allclose(&mean.expand_as(&found), 1e-5, 1e-5, false));
    }
}

#[test]
fn heads_need_not_stand_side_by_side() {
    let case = cases().into_iter().find(|case| case.name == "gpt2_plain").unwrap();
    let (model, input) = (case.model(&LoadOptions::default()), case.input("single"));
    let clean = partial_forward(&model, &["h.1.attn.z"], &input).unwrap();
    let values = numbers(&[1, 1, 2, 4]);
    let run = Run::new(&model, &["h.1.attn.z"]).unwrap();
    let run = run.edit("h.1.attn.z", Edit::replace(&values).heads([2, 0])).unwrap().run(&input).unwrap();
    let head = |head: i64| run.get("h.1.attn.z").unwrap().select(2, head);
    assert!(head(2).equal(&values.select(2, 0).expand_as(&head(2))));
    assert!(head(0).equal(&values.select(2, 1).expand_as(&head(0))));
    assert!(head(1).equal(&clean.get("h.1.attn.z").unwrap().select(2, 1)));
}

#[test]
fn what_generation_cannot_change_or_capture_is_refused() {
    let model = tiny();
    let run = Run::new(&model, &["h.1"]).unwrap().edit("h.0", Edit::zero().new_tokens()).unwrap();
    assert!(matches!(run.run([1, 2, 3]), Err(Error::NoNewTokens { .. })));
    assert!(matches!(Generation::new(&model).edit("h.1.mlp", Edit::zero().heads([0])), Err(Error::NoHeads { .. })));
    assert!(Generation::new(&model).capture(["h.9"]).is_err());
    let heads = Generation::new(&model).edit("h.0.attn.z", Edit::zero().heads([0, 2])).unwrap();
    let refused = heads.run([1], &options(2)).unwrap_err();
    assert!(matches!(refused, Error::OutOfRange { what: "heads", begin: 2, .. }), "{refused}");
    let short = Generation::new(&model).edit("h.0", Edit::replace(&numbers(&[1, 2, 16])).positions(1..4)).unwrap();
    let refused = short.run([1, 2, 3], &options(2)).unwrap_err();
    assert!(matches!(&refused, Error::EditShape { expected, .. } if expected[..] == [1, 3, 16]), "{refused}");
}

/// Every id is two letters.
struct Pairs;

impl Tokens for Pairs {
    fn encode(&self, _: &str) -> Result<Vec<i64>, TokensError> {
        Ok(vec![1, 2])
    }

    fn decode(&self, ids: &[i64]) -> Result<String, TokensError> {
        Ok(ids.iter().map(|&id| String::from_utf8_lossy(&self.token_bytes(id)).into_owned()).collect())
    }

    fn token_bytes(&self, id: i64) -> Vec<u8> {
        vec![b'a' + (id % 20) as u8, b'A' + (id / 20) as u8]
    }
}

#[test]
fn texts_tokens_and_conditions_end_rows() {
    let model = tiny().with_tokens(Arc::new(Pairs));
    let free = model.generate([1, 2, 3], &options(10)).unwrap();
    let new = free.rows[0].new_tokens().to_vec();
    let text = Pairs.decode(&new).unwrap();
    let ended = |options: GenerateOptions| {
        let found = model.generate([1, 2, 3], &options).unwrap().rows.remove(0);
        (found.new_tokens().len(), found.ending)
    };
    // From within one token to within the next: the first place where it stands.
    let stop = &text[5..7];
    let first = text.find(stop).unwrap();
    let tokens = (first + 2).div_ceil(2);
    assert_eq!(ended(options(10).stop_texts(["zzz", stop])), (tokens, Ending::StopText(1)));
    let first = new.windows(2).position(|pair| pair == &new[3..5]).unwrap();
    assert_eq!(ended(options(10).stop_tokens([new[3..5].to_vec()])), (first + 2, Ending::StopTokens(0)));
    assert_eq!(ended(options(10).stop_when(|new| new.len() == 4)), (4, Ending::StopCondition));
    assert_eq!(ended(options(10).stop_texts(["no such text"])).1, Ending::MaxNewTokens);
    let refused = |options: GenerateOptions| tiny().generate([1], &options).unwrap_err();
    assert!(matches!(refused(options(3).stop_texts(["a"])), ModelError::NoTokenizer));
    assert!(matches!(refused(options(3).stop_texts([""])), ModelError::Setting { .. }));
    assert!(matches!(refused(options(3).stop_tokens([Vec::new()])), ModelError::Setting { .. }));
}

/// Writes down the runs it sees; stops them where it is told.
#[derive(Default)]
struct Witness {
    runs: Vec<(i64, i64)>,
    stop: bool,
}

impl Observer for Witness {
    fn begin(&mut self, input: &Input, cached: i64) -> Result<(), ObserverError> {
        self.runs.push((cached, input.columns()));
        Ok(())
    }

    fn wants(&self, site: Site) -> bool {
        site == Site::INPUT
    }

    fn observe(&mut self, _: Site, _: &Tensor) -> Result<Action, ObserverError> {
        Ok(if self.stop { Action::Stop } else { Action::Continue })
    }
}

#[test]
fn an_observer_sees_every_run_of_generation() {
    let model = tiny();
    let prompts = [vec![1, 2, 3], vec![4]];
    let generate = |witness: &mut Witness| {
        generate_observed(&model, &prompts, &options(4), witness, |_| ControlFlow::Continue(()))
    };
    let mut witness = Witness::default();
    assert_eq!(generate(&mut witness).unwrap(), model.generate(&prompts, &options(4)).unwrap());
    assert_eq!(witness.runs, [(0, 3), (3, 1), (4, 1), (5, 1)]);
    let stopped = generate(&mut Witness { stop: true, ..Witness::default() }).unwrap_err();
    assert!(matches!(&stopped, ModelError::NoLogits { site } if site == "input"), "{stopped}");
}
