//! Makes directions to steer by: how the activations of some texts differ from those of others.

mod common;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use common::{input::check_row, model::ModelFlags, model::Opened, output};
use transformer_utils::{
    lowmem,
    models::Input,
    partial::{Plan, Run},
    tch::{Kind, Tensor, no_grad},
};

/// Make a steering direction from two sets of texts.
///
/// At each of --names, the mean activation over all tokens of the texts in --towards minus that of the texts in --from (the
/// difference of means). The file holds one tensor a name, [width] in f32, for --steer of the other programs:
/// --steer h.5=FILE:h.5*2.0.
#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    model: ModelFlags,

    /// Where to look, separated by commas; anything of shape [batch, position, width].
    #[arg(long, value_name = "NAMES", value_delimiter = ',', required = true)]
    names: Vec<String>,

    /// Texts that the direction leads to, one on each line.
    #[arg(long, value_name = "FILE")]
    towards: PathBuf,

    /// Texts that it leads away from, one on each line.
    #[arg(long, value_name = "FILE")]
    from: PathBuf,

    /// Safetensors file to write.
    #[arg(long, value_name = "PATH", help_heading = "Output")]
    out: PathBuf,
}

fn main() -> ! {
    common::main(run)
}

fn run(flags: Flags) -> Result<()> {
    output::check_writable(&flags.out)?;
    let opened = flags.model.open()?;
    let plan = Plan::new(&opened.model, &flags.names)?;
    let run = Run::planned(&opened.model, plan).to_kind(Kind::Float);
    let towards = means(&opened, &run, &flags.names, &flags.towards)?;
    let from = means(&opened, &run, &flags.names, &flags.from)?;
    let mut directions = Vec::with_capacity(towards.len());
    for ((name, towards), from) in flags.names.iter().zip(&towards).zip(&from) {
        let direction = towards.f_sub(from)?;
        let length = direction.f_norm()?.f_double_value(&[])?;
        common::print(format_args!(
            "{name}: {length:.3} long, the mean it leads to {:.3}",
            towards.f_norm()?.f_double_value(&[])?
        ))?;
        directions.push((name.clone(), direction));
    }
    lowmem::save_safetensors(&flags.out, &directions)?;
    common::print(format_args!("wrote {}", flags.out.display()))
}

/// The mean over all tokens of a file's lines at each name, `[width]`.
fn means(opened: &Opened, run: &Run, names: &[String], path: &Path) -> Result<Vec<Tensor>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let tokenizer = opened.need_tokenizer()?;
    let mut sums: Vec<Option<Tensor>> = names.iter().map(|_| None).collect();
    let mut tokens = 0;
    for (line, text) in text.lines().enumerate().filter(|(_, text)| !text.trim().is_empty()) {
        let ids = tokenizer.encode(text, true)?;
        check_row(&ids, line, opened).with_context(|| format!("{}, line {}", path.display(), line + 1))?;
        tokens += ids.len();
        let activations = no_grad(|| run.run(Input::from_rows(&[ids])?))?;
        for (name, sum) in names.iter().zip(&mut sums) {
            let value = activations.get(name)?;
            ensure!(
                value.dim() == 3,
                "{name} has shape {:?}; a direction needs [batch, position, width]",
                value.size()
            );
            let of_line = value.f_sum_dim_intlist([0, 1].as_slice(), false, Kind::Float)?;
            *sum = Some(match sum.take() {
                Some(sum) => sum.f_add(&of_line)?,
                None => of_line,
            });
        }
    }
    let mean = |sum: Option<Tensor>| {
        let sum = sum.with_context(|| format!("{}: no texts", path.display()))?;
        Ok(sum.f_div_scalar(tokens as f64)?)
    };
    sums.into_iter().map(mean).collect()
}
