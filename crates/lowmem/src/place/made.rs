//! Tensors that are made of what is stored: numbers of few bits, read from a mapping straight into the dtype of the run.

use tch::{Device, Kind, Tensor};

use super::placer::{Placed, Placer, fill_slot};
use crate::{Dtype, Result, decode::Decoder, index::TensorInfo, recipe::Recipe};

/// Makes each of `wanted`, one after the other, each by all threads.
pub(super) fn place_made(
    placer: &Placer<'_>,
    wanted: &[(usize, &TensorInfo)],
    slots: &mut [Option<Tensor>],
    placed: &mut Placed,
) -> Result<()> {
    for &(slot, info) in wanted {
        let Some(recipe) = &info.recipe else { continue };
        fill_slot(slots, slot, made(placer, info, recipe, placed)?);
        placer.done(info, placed);
    }
    Ok(())
}

fn made(placer: &Placer<'_>, info: &TensorInfo, recipe: &Recipe, placed: &mut Placed) -> Result<Tensor> {
    // Other dtypes are made of f32, which holds every number exactly.
    let computes = recipe.steps.iter().any(|step| step.computes());
    let dtype = if placer.dtype == Dtype::Bf16 && !computes { Dtype::Bf16 } else { Dtype::F32 };
    let stored = TensorInfo { shape: recipe.stored.clone(), ..info.clone() };
    let on_cpu = Placer { dtype, device: Device::Cpu, ..*placer };
    let numbers = Decoder::new(placer.files, info, recipe)?.whole(on_cpu.empty(&stored)?)?;
    let bytes = info.elements() * dtype.bytes();
    let here = placer.device == Device::Cpu && placer.dtype == dtype;
    placed.allocated += info.elements() * placer.dtype.bytes();
    if !here {
        placed.staging = placed.staging.max(bytes);
    }
    let kind: Kind = placer.dtype.kind();
    let finished = recipe.finish(numbers).and_then(|tensor| tensor.f_to_device_(placer.device, kind, false, false));
    finished.map_err(placer.error(info))
}
