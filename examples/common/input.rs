//! The flags that give a model something to read.

use std::{io::Read, ops::Range, path::PathBuf, str::FromStr};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use transformer_utils::{
    models::{self, Input},
    text::Message,
};

use super::model::Opened;

/// What the model reads: a text, a file, or token ids.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Input")]
pub struct InputFlags {
    /// Text to read.
    #[arg(value_name = "TEXT", conflicts_with_all = ["file", "ids"])]
    pub text: Option<String>,

    /// Read the text from a file, or from standard input with "-". One line end at its end is not part of the text.
    #[arg(long, value_name = "PATH", conflicts_with = "ids")]
    pub file: Option<PathBuf>,

    /// Token ids instead of text: 1,2,3. A semicolon begins the next row of a batch (1,2,3;4,5); shorter rows are padded on
    /// the right and the padding is masked. Needs no tokenizer.
    #[arg(long, value_name = "IDS", allow_hyphen_values = true)]
    pub ids: Option<String>,
}

/// The text as a message of a chat.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Input")]
pub struct ChatFlags {
    /// Read the text as the user's message: the checkpoint's chat template writes it down, up to where the answer begins.
    #[arg(long, conflicts_with = "ids")]
    pub chat: bool,

    /// What the model is told to be, before the user's message.
    #[arg(long, value_name = "TEXT", requires = "chat")]
    pub system: Option<String>,
}

impl ChatFlags {
    /// The chat with this message.
    fn messages(&self, text: String) -> Vec<Message> {
        self.system.iter().map(Message::system).chain([Message::user(text)]).collect()
    }
}

/// Rows of token ids that the model can read, and the text they came from.
#[derive(Clone, Debug)]
pub struct Rows {
    /// The token ids of each row.
    pub ids: Vec<Vec<i64>>,
    /// The text, where there was one.
    pub text: Option<String>,
}

impl InputFlags {
    /// Whether any input was given.
    pub fn is_given(&self) -> bool {
        self.text.is_some() || self.file.is_some() || self.ids.is_some()
    }

    /// Reads the input and checks it against the model, before any weight is read.
    ///
    /// # Errors
    ///
    /// No input, an empty one, one that is too long, ids outside the vocabulary; text without a tokenizer.
    pub fn read(&self, opened: &Opened) -> Result<Rows> {
        self.read_chat(&ChatFlags::default(), opened)
    }

    /// The same, for programs that also read chats.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read); a chat without a template, or one that the template refuses.
    pub fn read_chat(&self, chat: &ChatFlags, opened: &Opened) -> Result<Rows> {
        let rows = if let Some(ids) = &self.ids {
            Rows { ids: parse_rows(ids)?, text: None }
        } else {
            let mut text = self.read_text()?;
            let tokenizer = opened.need_tokenizer()?;
            if chat.chat {
                text = tokenizer.chat_template().context("--chat")?.render(&chat.messages(text), true)?;
            }
            // A template writes the special tokens itself.
            Rows { ids: vec![tokenizer.encode(&text, !chat.chat)?], text: Some(text) }
        };
        rows.check(opened)?;
        Ok(rows)
    }

    fn read_text(&self) -> Result<String> {
        let mut text = match (&self.text, &self.file) {
            (Some(text), _) => return Ok(text.clone()),
            (None, None) => bail!("nothing to read; give TEXT, --file PATH or --ids 1,2,3"),
            (None, Some(path)) if path.as_os_str() == "-" => {
                let mut text = String::new();
                std::io::stdin().read_to_string(&mut text).context("cannot read standard input")?;
                text
            }
            (None, Some(path)) => {
                std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?
            }
        };
        if text.ends_with('\n') {
            text.pop();
            if text.ends_with('\r') {
                text.pop();
            }
        }
        Ok(text)
    }
}

/// Rows of ids: `1,2,3;4,5`.
///
/// # Errors
///
/// What is no token id.
pub fn parse_rows(text: &str) -> Result<Vec<Vec<i64>>> {
    let rows = text.strip_suffix(';').unwrap_or(text).split(';');
    rows.map(parse_row).collect()
}

fn parse_row(row: &str) -> Result<Vec<i64>> {
    if row.trim().is_empty() {
        return Ok(Vec::new());
    }
    let id = |word: &str| {
        let word = word.trim();
        word.parse().with_context(|| format!("--ids: {word:?} is not a token id; expected numbers such as 1,2,3"))
    };
    row.split(',').map(id).collect()
}

/// Checks one row against the model.
///
/// # Errors
///
/// What a run would say, with `row` as its row.
pub fn check_row(ids: &[i64], row: usize, opened: &Opened) -> models::Result<()> {
    let (vocabulary, limit) = (opened.model.architecture().vocabulary, opened.model.architecture().context);
    if ids.is_empty() {
        return Err(models::Error::EmptyInput);
    }
    if ids.len() as i64 > limit {
        return Err(models::Error::TooManyPositions { found: ids.len() as i64, limit });
    }
    match ids.iter().enumerate().find(|(_, id)| !(0..vocabulary).contains(*id)) {
        None => Ok(()),
        Some((position, &id)) => {
            Err(models::Error::TokenOutOfRange { id, row: row as i64, position: position as i64, vocabulary })
        }
    }
}

impl Rows {
    fn check(&self, opened: &Opened) -> Result<()> {
        for (row, ids) in self.ids.iter().enumerate() {
            let checked = check_row(ids, row, opened);
            if self.ids.len() > 1 {
                checked.with_context(|| format!("row {row} of the batch"))?;
            } else {
                checked?;
            }
        }
        Ok(())
    }

    /// The longest row's length: the positions of the run.
    pub fn positions(&self) -> i64 {
        self.ids.iter().map(Vec::len).max().unwrap_or(0) as i64
    }

    /// The one row, for programs that read one.
    ///
    /// # Errors
    ///
    /// A batch.
    pub fn single(&self) -> Result<&[i64]> {
        match &self.ids[..] {
            [ids] => Ok(ids),
            rows => bail!("--ids gives {} rows; this program reads one", rows.len()),
        }
    }

    /// The input of a run: rows padded on the right to the longest, the padding masked.
    pub fn input(&self) -> Result<Input> {
        Ok(Input::padded(&self.ids)?)
    }
}

/// The value of `--positions`: `A..B` with B excluded, or one position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Positions {
    begin: i64,
    end: Option<i64>,
}

impl FromStr for Positions {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let malformed = || "expected A..B with B excluded, A.., ..B or one position".to_owned();
        let number = |text: &str| text.trim().parse::<u32>().map(i64::from).map_err(|_| malformed());
        let Some((begin, end)) = text.split_once("..") else {
            let begin = number(text)?;
            return Ok(Self { begin, end: Some(begin + 1) });
        };
        let begin = if begin.trim().is_empty() { 0 } else { number(begin)? };
        let end = if end.trim().is_empty() { None } else { Some(number(end)?) };
        if end.is_some_and(|end| end <= begin) {
            Err(format!("{text} holds no position"))
        } else {
            Ok(Self { begin, end })
        }
    }
}

impl Positions {
    /// The range in texts of any length, which need not have all of it.
    pub fn of_any(&self) -> Range<usize> {
        let end = self.end.and_then(|end| usize::try_from(end).ok()).unwrap_or(usize::MAX);
        usize::try_from(self.begin).unwrap_or(0)..end
    }

    /// The range within `length` positions.
    ///
    /// # Errors
    ///
    /// Positions that are not there.
    pub fn within(&self, length: i64) -> Result<Range<i64>> {
        let end = self.end.unwrap_or(length);
        ensure!(
            self.begin < end && end <= length,
            "--positions {}..{end}: the input has the positions 0..{length}",
            self.begin
        );
        Ok(self.begin..end)
    }
}
