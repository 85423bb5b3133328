//! The same logits, bit for bit, from every residency and file format.

use std::{fs, path::Path};

use anyhow::{Context, Result};

use crate::{
    Bench, TOKENS,
    checkpoints::Variant,
    figure::{Asked, Figure, Unit},
};

pub fn run(bench: &mut Bench) -> Result<()> {
    let Some((size, whole)) = bench.smallest() else { return Ok(()) };
    let mut forms = vec![("1 file", whole.clone())];
    for (name, count) in [("3 shards", 3), ("30 shards", 30)] {
        match bench.checkpoints.provide(&bench.programs, Variant::Shards(size, count))? {
            Some(folder) => forms.push((name, folder)),
            None => bench.note(format!("same: {name} were skipped, the disk is full")),
        }
    }
    match bin(bench, &whole, Variant::Bin(size))? {
        Some(folder) => forms.push((".bin", folder)),
        None => bench.note("same: .bin was skipped; PyTorch writes it, with --peers and room on the disk".into()),
    }
    let mut first: Option<Vec<u8>> = None;
    let mut command = String::new();
    let (mut runs, mut equal) = (0, 0);
    for (form, folder) in &forms {
        for residency in ["mapped", "resident", "streamed"] {
            let call = bench.example("activations", folder)?.args(&format!("--residency {residency} --dtype f32"));
            let call = call.args("--names lm_head").ids(TOKENS).args("--out logits.safetensors");
            let out = bench.scratch("logits.safetensors");
            call.clone().replaced("logits.safetensors", &out).run()?;
            let bytes = fs::read(&out).with_context(|| out.display().to_string())?;
            runs += 1;
            if command.is_empty() {
                command = call.shown().to_owned();
            }
            if first.get_or_insert_with(|| bytes.clone()) == &bytes {
                equal += 1;
            } else {
                bench.note(format!("same: {form}, {residency} gives other logits"));
            }
        }
    }
    let forms: Vec<&str> = forms.iter().map(|(form, _)| *form).collect();
    let what = format!("{}: equal logits, {} x mapped, resident, streamed", size.name(), forms.join(", "));
    let figure = Figure::new(what, f64::from(equal), Unit::Count, command).against("runs", f64::from(runs));
    bench.add(figure.asked(Asked::Same));
    Ok(())
}

/// The folder with the file that PyTorch writes, made if there are peers.
fn bin(bench: &mut Bench, whole: &Path, variant: Variant) -> Result<Option<std::path::PathBuf>> {
    if let Some(folder) = bench.checkpoints.provide(&bench.programs, variant)? {
        return Ok(Some(folder));
    }
    let Some(call) = bench.peer("to_bin.py") else { return Ok(None) };
    if !bench.checkpoints.has_room(variant)? {
        return Ok(None);
    }
    call.arg(whole).arg(bench.checkpoints.place(variant)).run()?;
    bench.checkpoints.provide(&bench.programs, variant)
}
