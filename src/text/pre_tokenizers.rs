//! How a byte-level tokenizer splits a text before it merges bytes, by the names that GGUF files give the ways.
//!
//! The names and what they mean are llama.cpp's (`src/llama-vocab.cpp`); the expressions are those of the models' own
//! `tokenizer.json` files.

use tokenizers::{
    PreTokenizerWrapper, SplitDelimiterBehavior,
    pre_tokenizers::{
        byte_level::ByteLevel,
        digits::Digits,
        sequence::Sequence,
        split::{Split, SplitPattern},
    },
};

use super::error::{Error, Result};

/// A way of splitting, and what else is usual where it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Splitting {
    steps: &'static [Step],
    /// Whether a whole piece that is in the vocabulary is taken as it is.
    pub(super) ignore_merges: bool,
    /// Whether a text begins with the beginning-of-text token where the file does not say.
    pub(super) add_bos: bool,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// Every match is a piece, and so is what lies between two.
    Matches(&'static str),
    /// Every digit is a piece.
    Digits,
    /// GPT-2's expression.
    Gpt2,
}

use Step::{Digits as EachDigit, Gpt2, Matches};

macro_rules! words {
    ($letters:literal, $numbers:literal, $symbols:literal, $lines:literal) => {
        concat!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?",
            $letters,
            "|",
            $numbers,
            "| ?",
            $symbols,
            "|",
            $lines,
            r"|\s+(?!\S)|\s+"
        )
    };
}

macro_rules! cased {
    ($contractions:literal, $numbers:literal) => {
        concat!(
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
            $contractions,
            r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
            $contractions,
            "|",
            $numbers,
            r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )
    };
}

const LLAMA3: &str = words!(r"\p{L}+", r"\p{N}{1,3}", r"[^\s\p{L}\p{N}]+[\r\n]*", r"\s*[\r\n]+");
const QWEN2: &str = words!(r"\p{L}+", r"\p{N}", r"[^\s\p{L}\p{N}]+[\r\n]*", r"\s*[\r\n]+");
const QWEN35: &str = words!(r"[\p{L}\p{M}]+", r"\p{N}", r"[^\s\p{L}\p{M}\p{N}]+[\r\n]*", r"\s*[\r\n]+");
const SEED_CODER: &str = words!(r"\p{L}+", r"\p{N}", r"[^\s\p{L}\p{N}\r\n]+", r"\s*[\r\n]+");
const BAILING: &str =
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";
const TEKKEN: &str = cased!("", r"\p{N}");
const GPT_4O: &str = cased!(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?", r"\p{N}{1,3}");
const TINY_AYA_NUMBERS: &str = r"\d{1,3}(?=(?:\d{3})*\b)";
const SENTENCES: &str = r" ?[^(\s|.,!?…。，、।۔،)]+";
const DEEPSEEK_LATIN: &str = concat!(
    r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\x{1F7D}ᾀ-ᾴᾶ-ᾼ",
    r"\x{1FBE}ῂ-ῄῆ-ῌῐ-\x{1FD3}ῖ-\x{1FDB}ῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\x{2126}ℨ\x{212A}-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻",
    r"𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+"
);
const DEEPSEEK_CJK: &str = "[一-龥ࠀ-一가-퟿]+";
const DEEPSEEK3: &str = concat!(
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"##,
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

const fn plain(steps: &'static [Step]) -> Splitting {
    Splitting { steps, ignore_merges: false, add_bos: false }
}

const fn whole_pieces(steps: &'static [Step], add_bos: bool) -> Splitting {
    Splitting { steps, ignore_merges: true, add_bos }
}

/// Names of ways, and the ways. The first name of each line is the usual one.
const KNOWN: &[(&[&str], Splitting)] = &[
    (
        &[
            "gpt-2",
            "phi-2",
            "gigachat",
            "a.x-4.0",
            "mellum",
            "modern-bert",
            "exaone4",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "granite-docling",
        ],
        plain(&[Gpt2]),
    ),
    (&["default"], plain(&[Matches(r"[\p{P}\$\+<=>\^~\|]+"), Gpt2, Matches(r"\p{N}+"), Matches("[0-9][0-9][0-9]")])),
    (
        &["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"],
        whole_pieces(&[Matches(LLAMA3)], true),
    ),
    (&["dbrx", "smaug-bpe", "glm4", "chatglm-bpe"], plain(&[Matches(LLAMA3)])),
    (
        &["qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "stablelm2", "hunyuan", "solar-open", "grok-2"],
        plain(&[Matches(QWEN2)]),
    ),
    (&["qwen35"], plain(&[Matches(QWEN35)])),
    (
        &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"],
        plain(&[EachDigit, Gpt2]),
    ),
    (
        &["deepseek-llm"],
        plain(&[
            Matches(r"[\r\n]"),
            Matches(DEEPSEEK_LATIN),
            Matches(r"\s?[!-/:-~！-／：-～‘-‟　-。]+"),
            Matches(r"\s+$"),
            Matches(DEEPSEEK_CJK),
            Matches(r"\p{N}+"),
        ]),
    ),
    (
        &["deepseek-coder"],
        plain(&[
            Matches(r"[\r\n]"),
            Matches(r"\s?\p{L}+"),
            Matches(r"\s?\p{P}+"),
            Matches(DEEPSEEK_CJK),
            Matches(r"\p{N}"),
        ]),
    ),
    (
        &["deepseek-v3", "hunyuan-dense", "joyai-llm"],
        plain(&[Matches(r"\p{N}{1,3}"), Matches("[一-龥぀-ゟ゠-ヿ]+"), Matches(DEEPSEEK3)]),
    ),
    (&["falcon"], plain(&[Matches(r"[\p{P}\$\+<=>\^~\|`]+"), Gpt2, Matches("[0-9][0-9][0-9]")])),
    (&["tekken"], whole_pieces(&[Matches(TEKKEN)], true)),
    (&["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"], plain(&[Matches(GPT_4O)])),
    (&["tiny_aya", "cohere2moe"], plain(&[Matches(TINY_AYA_NUMBERS), Matches(GPT_4O)])),
    (&["poro-chat", "bloom", "gpt3-finnish"], plain(&[Matches(SENTENCES)])),
    (&["viking"], plain(&[Matches(SENTENCES), Matches(r"\p{N}")])),
    (&["seed-coder"], plain(&[Matches(SEED_CODER)])),
    (&["bailingmoe", "bailingmoe2", "llada-moe"], plain(&[Matches(BAILING)])),
    (&["superbpe"], plain(&[Matches(r"\p{N}+"), Matches(r"(?=(\d{3})+(?!\d))")])),
];

impl Splitting {
    /// The way of this name.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownPreTokenizer`].
    pub(super) fn named(pre: &str) -> Result<Self> {
        let found = KNOWN.iter().find(|(names, _)| names.contains(&pre));
        found.map(|(_, splitting)| *splitting).ok_or_else(|| Error::UnknownPreTokenizer {
            pre: pre.to_owned(),
            known: KNOWN.iter().flat_map(|(names, _)| names.iter().copied()).collect(),
        })
    }

    /// The splitting, and then bytes as GPT-2's characters.
    pub(super) fn pipeline(&self) -> tokenizers::Result<PreTokenizerWrapper> {
        let mut steps = self.steps.iter().map(|step| step.build()).collect::<tokenizers::Result<Vec<_>>>()?;
        steps.push(ByteLevel::new(false, true, false).into());
        Ok(Sequence::new(steps).into())
    }
}

impl Step {
    fn build(self) -> tokenizers::Result<PreTokenizerWrapper> {
        let isolated = SplitDelimiterBehavior::Isolated;
        let expression =
            |expression: &str| Ok(Split::new(SplitPattern::Regex(expression.to_owned()), isolated, false)?.into());
        match self {
            Matches(text) => expression(text),
            EachDigit => Ok(Digits::new(true).into()),
            Gpt2 => expression(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

    use super::*;

    fn pieces(pre: &str, text: &str) -> Vec<String> {
        let mut split = PreTokenizedString::from(text);
        for step in Splitting::named(pre).unwrap().steps {
            step.build().unwrap().pre_tokenize(&mut split).unwrap();
        }
        let pieces = split.get_splits(OffsetReferential::Original, OffsetType::Byte);
        pieces.into_iter().map(|(piece, ..)| piece.to_owned()).collect()
    }

    #[test]
    fn every_expression_can_be_read_and_loses_nothing() {
        let text = "It's  café 12345 тест 日本 don'T a\u{301}b\r\n\n  x+y; ١٢٣ 🚀👩\u{200d}🚀 end  ";
        for (names, _) in KNOWN {
            for name in *names {
                assert_eq!(pieces(name, text).concat(), text, "{name}");
            }
        }
    }

    #[test]
    fn ways_differ_in_numbers_case_and_lines() {
        assert_eq!(pieces("llama-bpe", "a 12345"), ["a", " ", "123", "45"]);
        assert_eq!(pieces("qwen2", "a 123"), ["a", " ", "1", "2", "3"]);
        assert_eq!(pieces("gpt-2", "a 123 I'm I'M"), ["a", " 123", " I", "'m", " I", "'", "M"]);
        assert_eq!(pieces("smollm", "a 12"), ["a", " ", "1", "2"]);
        assert_eq!(pieces("llama-bpe", "I'M\n\n  x"), ["I", "'M", "\n\n", " ", " x"]);
        assert_eq!(pieces("gpt-4o", "camelCase it's"), ["camel", "Case", " it's"]);
        assert_eq!(pieces("tekken", "camelCase it's 12"), ["camel", "Case", " it", "'s", " ", "1", "2"]);
        assert_eq!(pieces("superbpe", "x 1234567"), ["x ", "1", "234", "567"]);
        assert_eq!(pieces("tiny_aya", "1234567"), ["1", "234", "567"]);
        assert_eq!(pieces("deepseek-v3", "12345日本x"), ["123", "45", "日本", "x"]);
    }

    #[test]
    fn an_unknown_name_is_refused() {
        let error = Splitting::named("morse").unwrap_err().to_string();
        assert!(error.contains("\"morse\"") && error.contains("llama-bpe"), "{error}");
    }
}
