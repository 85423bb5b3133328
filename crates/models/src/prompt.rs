//! Whatever a model can be given to read.

use std::borrow::Cow;

use tch::Tensor;

use crate::{Error, Input, Model, NoObserver, Result};

/// Whatever a model can be given to read: a text or several, the token ids of one row or of several (of any lengths), a tensor
/// of ids, or an [`Input`]. It is made by `into` from strings, slices, arrays and vectors; functions that read something take
/// all of these.
///
/// ```
/// # use models::{Config, Input, Model};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let config = r#"{"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 8, "vocab_size": 20}"#;
/// # let model = Model::random(Config::from_json(config)?, 0)?;
/// assert_eq!(model.logits([1, 2, 3])?.size(), [1, 3, 20]);
/// assert_eq!(model.logits(vec![vec![1, 2, 3], vec![4]])?.size(), [2, 3, 20]);
/// assert_eq!(model.logits(&Input::from_rows(&[[1, 2, 3]])?)?.size(), [1, 3, 20]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Prompt<'a>(Given<'a>);

#[derive(Clone, Debug)]
enum Given<'a> {
    Texts(Vec<Cow<'a, str>>),
    Rows(Vec<Cow<'a, [i64]>>),
    Input(Cow<'a, Input>),
}

impl Model {
    /// The input that a prompt stands for. Texts become token ids; shorter rows are padded on the right, and the padding is
    /// masked.
    ///
    /// # Errors
    ///
    /// [`Error::EmptyInput`] where there is nothing to read, a text without tokens included; for text [`Error::NoTokenizer`] and
    /// [`Error::Tokenizer`].
    pub fn input<'p>(&self, prompt: impl Into<Prompt<'p>>) -> Result<Input> {
        match prompt.into().0 {
            Given::Input(input) => Ok(input.into_owned()),
            Given::Rows(rows) => Input::padded(&rows),
            Given::Texts(texts) => Input::padded(&self.encode_all(&texts)?),
        }
    }

    /// The token ids of each row of a prompt, without padding.
    ///
    /// # Errors
    ///
    /// For text [`Error::NoTokenizer`] and [`Error::Tokenizer`]; [`Error::NotRows`] for an input that is more than rows of ids.
    pub fn token_rows<'p>(&self, prompt: impl Into<Prompt<'p>>) -> Result<Vec<Vec<i64>>> {
        match prompt.into().0 {
            Given::Input(input) => input.rows(),
            Given::Rows(rows) => Ok(rows.into_iter().map(Cow::into_owned).collect()),
            Given::Texts(texts) => self.encode_all(&texts),
        }
    }

    fn encode_all(&self, texts: &[Cow<str>]) -> Result<Vec<Vec<i64>>> {
        texts.iter().map(|text| self.encode(text)).collect()
    }

    /// What the model says of the next token at every position, `[batch, position, vocabulary]` in the dtype of the run. Where
    /// rows differ in length, those at the padding mean nothing.
    ///
    /// # Errors
    ///
    /// As [`Model::input`] and [`Model::forward`].
    pub fn logits<'p>(&self, prompt: impl Into<Prompt<'p>>) -> Result<Tensor> {
        let outcome = self.forward(&self.input(prompt)?, &mut NoObserver)?;
        // Nothing stops a run that nobody observes.
        outcome.logits.ok_or(Error::EmptyInput)
    }
}

impl From<Input> for Prompt<'_> {
    fn from(input: Input) -> Self {
        Self(Given::Input(Cow::Owned(input)))
    }
}

impl<'a> From<&'a Input> for Prompt<'a> {
    fn from(input: &'a Input) -> Self {
        Self(Given::Input(Cow::Borrowed(input)))
    }
}

/// Token ids, `[batch, position]`.
impl From<Tensor> for Prompt<'_> {
    fn from(ids: Tensor) -> Self {
        Input::ids(ids).into()
    }
}

/// Token ids, `[batch, position]`.
impl From<&Tensor> for Prompt<'_> {
    fn from(ids: &Tensor) -> Self {
        Input::ids(ids.shallow_clone()).into()
    }
}

/// Makes prompts of types that hold one text or row.
macro_rules! one {
    ($variant:ident: $([$($generics:tt)*] $type:ty),* $(,)?) => {$(
        impl<'a, $($generics)*> From<$type> for Prompt<'a> {
            fn from(one: $type) -> Self {
                Self(Given::$variant(vec![one.into()]))
            }
        }
    )*};
}

/// Makes prompts of types that hold several texts or rows, lent or given away.
macro_rules! several {
    ($variant:ident, lent: $([$($generics:tt)*] $type:ty),* $(,)?) => {$(
        impl<'a, $($generics)*> From<$type> for Prompt<'a> {
            fn from(several: $type) -> Self {
                Self(Given::$variant(several.iter().map(|one| Cow::Borrowed(one.as_ref())).collect()))
            }
        }
    )*};
    ($variant:ident, given: $([$($generics:tt)*] $type:ty),* $(,)?) => {$(
        impl<'a, $($generics)*> From<$type> for Prompt<'a> {
            fn from(several: $type) -> Self {
                Self(Given::$variant(several.into_iter().map(Cow::from).collect()))
            }
        }
    )*};
}

one!(Texts: [] &'a str, [] &'a String, [] String, [] Cow<'a, str>);
several!(Texts, lent: [] &'a [&'a str], [] &'a [String], [] &'a Vec<&'a str>, [] &'a Vec<String>,
    [const N: usize] &'a [&'a str; N], [const N: usize] &'a [String; N]);
several!(Texts, given: [] Vec<&'a str>, [] Vec<String>, [const N: usize] [&'a str; N], [const N: usize] [String; N]);

one!(Rows: [] &'a [i64], [] &'a Vec<i64>, [] Vec<i64>, [] Cow<'a, [i64]>);
several!(Rows, lent: [] &'a [&'a [i64]], [] &'a [Vec<i64>], [] &'a Vec<&'a [i64]>, [] &'a Vec<Vec<i64>>,
    [const N: usize] &'a [&'a [i64]; N], [const N: usize] &'a [Vec<i64>; N],
    [const M: usize] &'a [[i64; M]], [const M: usize, const N: usize] &'a [[i64; M]; N]);
several!(Rows, given: [] Vec<&'a [i64]>, [] Vec<Vec<i64>>, [const N: usize] [&'a [i64]; N], [const N: usize] [Vec<i64>; N]);

impl<'a, const N: usize> From<&'a [i64; N]> for Prompt<'a> {
    fn from(row: &'a [i64; N]) -> Self {
        row.as_slice().into()
    }
}

impl<const N: usize> From<[i64; N]> for Prompt<'_> {
    fn from(row: [i64; N]) -> Self {
        row.to_vec().into()
    }
}

impl<const M: usize, const N: usize> From<[[i64; M]; N]> for Prompt<'_> {
    fn from(rows: [[i64; M]; N]) -> Self {
        rows.map(Vec::from).into()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{Config, GenerateOptions, LogitsAt, Site, Tokens, TokensError};

    /// Letters from a on; a space ends the world.
    struct Letters;

    impl Tokens for Letters {
        fn encode(&self, text: &str) -> Result<Vec<i64>, TokensError> {
            let id =
                |letter: char| (letter != ' ').then(|| i64::from(u32::from(letter)) - 97).ok_or("no spaces, please");
            text.chars().map(id).collect::<Result<_, _>>().map_err(Into::into)
        }

        fn decode(&self, ids: &[i64]) -> Result<String, TokensError> {
            Ok(ids.iter().filter_map(|&id| char::from_u32(97 + id as u32)).collect())
        }

        fn token_bytes(&self, id: i64) -> Vec<u8> {
            vec![97 + id as u8]
        }
    }

    fn model() -> Model {
        let config = r#"{"model_type": "gpt2", "n_layer": 1, "n_head": 2, "n_embd": 8, "vocab_size": 20}"#;
        Model::random(Config::from_json(config).unwrap(), 0).unwrap()
    }

    #[test]
    fn everything_that_can_be_read_gives_the_same_rows() {
        let model = model().with_tokens(Arc::new(Letters));
        let rows = |prompt: Prompt| model.token_rows(prompt).unwrap();
        let (text, vector) = (String::from("bcd"), vec![1_i64, 2, 3]);
        let input = Input::from_rows(&[[1, 2, 3]]).unwrap();
        let one: [Prompt; 11] = [
            "bcd".into(),
            (&text).into(),
            text.clone().into(),
            Cow::Borrowed("bcd").into(),
            [1, 2, 3].into(),
            (&[1, 2, 3]).into(),
            vector.as_slice().into(),
            (&vector).into(),
            vector.clone().into(),
            (&input).into(),
            Tensor::from_slice2(&[[1, 2, 3]]).into(),
        ];
        for prompt in one {
            assert_eq!(rows(prompt), [vec![1, 2, 3]]);
        }
        let vectors = vec![vector.clone(), vec![4]];
        let slices = [&vector[..], &[4]];
        let two: [Prompt; 8] = [
            ["bcd", "e"].into(),
            (&["bcd", "e"]).into(),
            vec![text.clone(), String::from("e")].into(),
            slices.as_slice().into(),
            slices.into(),
            vectors.clone().into(),
            (&vectors).into(),
            Input::padded(&[vec![1, 2, 3], vec![4]]).unwrap().into(),
        ];
        for prompt in two {
            assert_eq!(rows(prompt.clone()), [vec![1, 2, 3], vec![4]]);
            let input = model.input(prompt).unwrap();
            assert_eq!(input.rows().unwrap(), [vec![1, 2, 3], vec![4]]);
        }
        assert_eq!(rows([[1, 2], [3, 4]].into()), [[1, 2], [3, 4]]);
        assert_eq!(rows((&[[1, 2], [3, 4]]).into()), [[1, 2], [3, 4]]);
    }

    #[test]
    fn logits_are_those_of_a_forward() {
        let model = model();
        let input = Input::from_rows(&[[1, 2, 3]]).unwrap().logits_at(LogitsAt::Last);
        let expected = model.forward(&input, &mut NoObserver).unwrap().logits.unwrap();
        assert_eq!(expected.size(), [1, 1, 20]);
        assert_eq!(model.logits(&input).unwrap(), expected);
        let input = Input::from_rows(&[[1, 2, 3]]).unwrap();
        let expected = model.forward(&input, &mut NoObserver).unwrap().logits.unwrap();
        assert_eq!(expected.size(), [1, 3, 20]);
        assert_eq!(model.logits([1, 2, 3]).unwrap(), expected);
    }

    #[test]
    fn generated_text_is_the_prompt_and_what_was_added() {
        let options = GenerateOptions::default().max_new_tokens(3).end_tokens(Vec::new());
        let ids = model().generate([1, 2, 3], &options).unwrap();
        let found = model().with_tokens(Arc::new(Letters)).generate("bcd", &options).unwrap();
        assert_eq!(found.rows[0].tokens, ids.rows[0].tokens);
        let text = Letters.decode(&ids.rows[0].tokens).unwrap();
        assert_eq!((found.to_string(), found.rows[0].new_text()), (text.clone(), text.strip_prefix("bcd")));
        let joined: Vec<String> = ids.rows[0].tokens.iter().map(i64::to_string).collect();
        assert_eq!((ids.to_string(), ids.rows[0].new_text()), (joined.join(","), None));
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        let (without, with) = (model(), model().with_tokens(Arc::new(Letters)));
        assert!(matches!(without.logits("bcd"), Err(Error::NoTokenizer)));
        assert!(matches!(with.logits(""), Err(Error::EmptyInput)));
        assert!(matches!(with.logits(["a", ""]), Err(Error::EmptyInput)));
        assert!(matches!(with.logits(Vec::<Vec<i64>>::new()), Err(Error::EmptyInput)));
        assert!(matches!(with.generate("", &GenerateOptions::default()), Err(Error::EmptyInput)));
        assert_eq!(with.logits("b d").unwrap_err().to_string(), "encoding a text: no spaces, please");
        // Settings come first: nothing is encoded for a call that is refused.
        let wrong = GenerateOptions::default().repetition_penalty(0.0);
        assert!(matches!(without.generate("bcd", &wrong), Err(Error::Setting { .. })));
    }

    #[test]
    fn inputs_that_are_more_than_rows_are_not_taken_apart() {
        let model = model();
        let input = || Input::from_rows(&[[1, 2, 3]]).unwrap();
        let mask = |mask: [i64; 3]| input().attention_mask(Tensor::from_slice2(&[mask]));
        let stream = Input::stream(Site::INPUT, Tensor::zeros([1, 3, 8], (tch::Kind::Float, tch::Device::Cpu)));
        let positions = input().position_ids(Tensor::from_slice2(&[[0, 1, 2]]));
        for refused in [stream, positions, mask([0, 1, 1]), mask([1, 0, 1])] {
            assert!(matches!(model.token_rows(refused), Err(Error::NotRows { .. })));
        }
        assert_eq!(model.token_rows(mask([1, 1, 0])).unwrap(), [[1, 2]]);
        let flat = Input::ids(Tensor::from_slice(&[1, 2, 3]));
        assert!(matches!(model.token_rows(flat), Err(Error::InputShape { .. })));
    }
}
