//! Continues a text.

mod common;

use std::{io::Write, ops::ControlFlow, sync::Arc};

use anyhow::Result;
use clap::Parser;
use transformer_utils::{
    models::{Ending, GenerateOptions, GeneratedRow, NewToken, Sampling},
    partial::Generation,
    text::TextStream,
};

use common::{
    edits::EditFlags,
    input::{ChatFlags, InputFlags},
    model::{ModelFlags, Opened},
};

/// Continue a text, token by token.
///
/// The likeliest token is taken (greedy) unless --temperature, --top-k, --top-p or --seed asks for sampling; the same seed
/// gives the same text. The text goes to standard output as it is written, prompt first. With --ids, token ids do; the rows
/// of a batch are continued together and written one after the other, each after its number.
#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    model: ModelFlags,

    #[command(flatten)]
    input: InputFlags,

    #[command(flatten)]
    chat: ChatFlags,

    #[command(flatten)]
    edits: EditFlags,

    /// Tokens to add, at most.
    #[arg(long, value_name = "N", default_value_t = 40, help_heading = "Generation")]
    max_tokens: usize,

    /// Take the likeliest token, which is the default.
    #[arg(long, conflicts_with_all = ["temperature", "top_k", "top_p", "seed"], help_heading = "Generation")]
    greedy: bool,

    /// Sample, from logits divided by this: below 1 is safer, above 1 bolder [default when sampling: 1].
    #[arg(long, value_name = "T", help_heading = "Generation")]
    temperature: Option<f64>,

    /// Sample from the K likeliest tokens only.
    #[arg(long, value_name = "K", help_heading = "Generation")]
    top_k: Option<usize>,

    /// Sample from the likeliest tokens that together have this probability.
    #[arg(long, value_name = "P", help_heading = "Generation")]
    top_p: Option<f64>,

    /// Above 1 makes tokens that the text already has less likely.
    #[arg(long, value_name = "PENALTY", default_value_t = 1.0, help_heading = "Generation")]
    repetition_penalty: f64,

    /// Sample, with this seed [default when sampling: 0].
    #[arg(long, value_name = "SEED", help_heading = "Generation")]
    seed: Option<u64>,

    /// Go on after an end-of-text token.
    #[arg(long, help_heading = "Generation")]
    ignore_end: bool,

    /// End a row when what was added contains this text; repeatable. The token that completes it is kept.
    #[arg(long, value_name = "TEXT", help_heading = "Generation")]
    stop: Vec<String>,
}

impl Flags {
    fn options(&self) -> GenerateOptions {
        let sampled = self.temperature.is_some() || self.top_k.is_some() || self.top_p.is_some() || self.seed.is_some();
        let sampling = sampled.then(|| {
            Sampling::default()
                .temperature(self.temperature.unwrap_or(1.0))
                .top_k(self.top_k)
                .top_p(self.top_p)
                .seed(self.seed.unwrap_or(0))
        });
        GenerateOptions::default()
            .max_new_tokens(self.max_tokens)
            .sampling(sampling)
            .repetition_penalty(self.repetition_penalty)
            .end_tokens(self.ignore_end.then(Vec::new))
            .stop_texts(&self.stop)
    }
}

fn main() -> ! {
    common::main(run)
}

fn run(flags: Flags) -> Result<()> {
    let options = flags.options();
    options.check()?;
    let edits = flags.edits.read()?;
    let mut opened = flags.model.open()?;
    if !flags.stop.is_empty() {
        let tokenizer = opened.need_tokenizer()?.clone();
        opened.model = opened.model.with_tokens(Arc::new(tokenizer));
    }
    let opened = &opened;
    let mut generation = Generation::new(&opened.model);
    for (site, edit) in edits {
        generation = generation.edit(site, edit)?;
    }
    let rows = flags.input.read_chat(&flags.chat, opened)?;
    let mut writer = match &rows.text {
        Some(text) => Writer::text(opened, text)?,
        None if rows.ids.len() == 1 => Writer::ids(rows.single()?)?,
        None => Writer::Silent,
    };
    let mut failed = None;
    let generated = generation.stream(&rows.ids, &options, |token| match writer.token(token) {
        Ok(()) => ControlFlow::Continue(()),
        Err(error) => {
            failed = Some(error);
            ControlFlow::Break(())
        }
    });
    let ended = writer.end();
    let generated = generated?.generated;
    if let Some(error) = failed {
        return Err(error);
    }
    ended?;
    if let Writer::Silent = writer {
        for (index, row) in generated.rows.iter().enumerate() {
            common::print(format_args!("{index}: {}", join(&row.tokens)))?;
        }
    }
    for (index, row) in generated.rows.iter().enumerate() {
        note(index, generated.rows.len(), row);
    }
    Ok(())
}

/// Says on standard error why a text is shorter than asked, where it is not the model's own choice.
fn note(index: usize, rows: usize, row: &GeneratedRow) {
    if row.ending == Ending::ContextFull {
        let place = if rows > 1 { format!("row {index}: ") } else { String::new() };
        let new = row.new_tokens().len();
        eprintln!("{place}stopped after {new} new tokens: the model has no positions left");
    }
}

fn join(ids: &[i64]) -> String {
    ids.iter().map(i64::to_string).collect::<Vec<_>>().join(",")
}

/// Writes tokens to standard output as they come.
enum Writer<'a> {
    /// As text.
    Text { opened: &'a Opened, stream: TextStream },
    /// As numbers.
    Ids,
    /// Rows of a batch come in turns, which nobody could read.
    Silent,
}

impl<'a> Writer<'a> {
    fn text(opened: &'a Opened, prompt: &str) -> Result<Self> {
        put(prompt.as_bytes())?;
        Ok(Self::Text { opened, stream: opened.need_tokenizer()?.stream(false) })
    }

    fn ids(prompt: &[i64]) -> Result<Self> {
        put(join(prompt).as_bytes())?;
        Ok(Self::Ids)
    }

    fn token(&mut self, token: NewToken) -> Result<()> {
        match self {
            Self::Text { opened, stream } => {
                // The end-of-text token says that the text is over; it is no part of it.
                if opened.config().end_tokens.contains(&token.id) {
                    return Ok(());
                }
                put(stream.push(token.id).as_bytes())
            }
            Self::Ids => put(format!(",{}", token.id).as_bytes()),
            Self::Silent => Ok(()),
        }
    }

    fn end(&mut self) -> Result<()> {
        if let Self::Text { stream, .. } = self {
            put(stream.finish().as_bytes())?;
        }
        if let Self::Silent = self { Ok(()) } else { put(b"\n") }
    }
}

fn put(bytes: &[u8]) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(bytes)?;
    // Whoever watches wants to see it now.
    Ok(out.flush()?)
}
