//! Fits a Jacobian lens: for each block the mean Jacobian of the last stream by the block's output.

mod common;

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::{Parser, ValueEnum};
use common::{model::ModelFlags, output, progress, texts};
use transformer_utils::{jacobian_lens, lens::JacobianFit, lowmem::Dtype};

/// Fit a Jacobian lens from text.
///
/// Each block gets a matrix in front of the final norm and the unembedding: what the model makes of its stream until the end, to
/// first order, averaged over texts (Gurnee et al., 2026). Writes a .pt that TransformerLens 4.3 reads, too; logit_lens reads it with
/// --lens jacobian:FILE. A text takes as many backward passes as the stream is wide, divided by --at-once.
#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    model: ModelFlags,

    /// Text to fit on; repeat for several files.
    #[arg(long = "text", required = true, value_name = "FILE")]
    texts: Vec<PathBuf>,
    /// Sequences to take, spread over the text.
    #[arg(long, default_value_t = 100)]
    sequences: usize,
    /// Tokens in a sequence [default: what the model reads, at most 128].
    #[arg(long)]
    context: Option<usize>,
    /// Positions to leave out at the beginning of each.
    #[arg(long, default_value_t = 16)]
    skip_first: usize,
    /// Dimensions of the stream in a backward pass; more take more memory.
    #[arg(long, default_value_t = 8)]
    at_once: usize,

    /// Where to write the lens: a .pt.
    #[arg(long, value_name = "PATH", help_heading = "Output")]
    out: PathBuf,
    /// Dtype of the matrices in the file.
    #[arg(long, value_enum, default_value = "f16", help_heading = "Output")]
    store: Store,
}

#[derive(Clone, Copy, ValueEnum)]
enum Store {
    F16,
    F32,
}

fn main() -> ! {
    common::main(run)
}

fn run(flags: Flags) -> Result<()> {
    output::check_writable(&flags.out)?;
    ensure!(flags.sequences > 0 && flags.at_once > 0, "--sequences and --at-once must be at least 1");
    let opened = flags.model.open()?;
    let longest = opened.model.architecture().context as usize;
    let context = flags.context.unwrap_or(longest.min(128));
    let least = flags.skip_first + 2;
    ensure!(
        (least..=longest).contains(&context),
        "--context {context}: the model reads up to {longest} tokens, and --skip-first {} needs at least {least}",
        flags.skip_first
    );
    let mut fit = JacobianFit::new(&opened.model)?.skip_first(flags.skip_first).at_once(flags.at_once);
    let (text, _) = texts::split(&flags.texts, 0.0)?;
    let ids = opened.need_tokenizer()?.encode(&text, true)?;
    let all: Vec<&[i64]> = ids.chunks_exact(context).collect();
    ensure!(!all.is_empty(), "the texts have {} tokens, fewer than one sequence of {context}", ids.len());
    let count = flags.sequences.min(all.len());
    common::print(format!("{}; {count} sequences of {context} tokens", opened.placement()))?;
    let bar = progress::steps(count as u64);
    for number in 0..count {
        fit.add(all[number * all.len() / count])?;
        bar.set_position(number as u64 + 1);
    }
    bar.finish_and_clear();
    let lens = fit.finish()?.with_note("base_model", opened.name.as_str()).with_note("max_seq_len", context);
    let dtype = match flags.store {
        Store::F16 => Dtype::F16,
        Store::F32 => Dtype::F32,
    };
    jacobian_lens::save(&flags.out, &lens, dtype)?;
    common::print(format!("wrote {}", flags.out.display()))
}
