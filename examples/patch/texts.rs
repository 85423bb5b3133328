//! The two texts, position by position.

use anyhow::{Context, Result, bail, ensure};
use transformer_utils::lens::{Token, display_token};

use crate::{
    PairFlags,
    common::{
        input::{check_row, parse_rows},
        model::Opened,
    },
};

/// What the bundled model is shown where nobody gives texts: it has read whom the LORD speaks to on the mountain.
const CLEAN: &str = "And Moses went up unto the mountain, and the LORD said unto";
const CORRUPTED: &str = "And Jacob went up unto the mountain, and the LORD said unto";

/// A clean and a corrupted text as token ids, as many of one as of the other.
pub struct Texts {
    pub clean: Vec<i64>,
    /// The clean one where none was given: some methods need one text only.
    pub corrupted: Option<Vec<i64>>,
}

impl Texts {
    /// Reads the texts and checks them against the model, before any weight is read.
    pub fn read(flags: &PairFlags, opened: &Opened) -> Result<Self> {
        let bundled = opened.name == "tiny-gpt2" && flags.clean.is_none() && flags.corrupted.is_none();
        let clean = flags.clean.as_deref().or(bundled.then_some(CLEAN));
        let corrupted = flags.corrupted.as_deref().or(bundled.then_some(CORRUPTED));
        let clean = ids("--clean", clean.context("nothing to read; give --clean TEXT and --corrupted TEXT")?, opened)?;
        let corrupted = corrupted.map(|text| ids("--corrupted", text, opened)).transpose()?;
        if let Some(corrupted) = &corrupted
            && corrupted.len() != clean.len()
        {
            bail!(
                "the texts must have as many tokens as each other, so that positions are the same: --clean has {}, {}; \
                 --corrupted has {}, {}",
                clean.len(),
                pieces(&clean, opened)?,
                corrupted.len(),
                pieces(corrupted, opened)?
            );
        }
        Ok(Self { clean, corrupted })
    }

    /// The corrupted text, for those who need it.
    pub fn need_corrupted(&self) -> Result<&[i64]> {
        self.corrupted.as_deref().context("this needs a second text; give --corrupted TEXT")
    }
}

fn ids(flag: &str, text: &str, opened: &Opened) -> Result<Vec<i64>> {
    let ids = match opened.tokenizer()? {
        Some(tokenizer) => tokenizer.encode(text, true)?,
        None => {
            let folder = opened.checkpoint.folder().display();
            let rows = parse_rows(text)
                .with_context(|| format!("{folder}: no tokenizer.json there, so {flag} takes token ids"))?;
            ensure!(rows.len() == 1, "{flag} gives {} rows; this program reads one", rows.len());
            rows.concat()
        }
    };
    check_row(&ids, 0, opened).with_context(|| flag.to_owned())?;
    Ok(ids)
}

/// The tokens of a text.
pub fn tokens(ids: &[i64], opened: &Opened) -> Result<Vec<Token>> {
    ids.iter().map(|&id| Ok(Token { id, text: opened.token_text(id)? })).collect()
}

/// `When|·Mary|·and`.
fn pieces(ids: &[i64], opened: &Opened) -> Result<String> {
    let texts = ids.iter().map(|&id| Ok(display_token(&opened.token_text(id)?))).collect::<Result<Vec<_>>>()?;
    Ok(texts.join("|"))
}
