//! Prints a few activations of the bundled model.

use std::{error::Error, path::Path};

use transformer_utils::{prelude::*, tch::Kind};

fn main() -> Result<(), Box<dyn Error>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/tiny-gpt2");
    let options = LoadOptions::default().device(cuda_if_available());
    let model = Model::open(&Checkpoint::open(folder)?, &options)?;
    let names = ["h.0", "h.1.attn.c_attn"];
    let output = partial_forward(&model, &names, &Input::from_rows(&[[3, 1, 4, 1, 5]])?)?;
    for name in names {
        let values = output.get(name)?;
        let first = values.f_get(0)?.f_get(0)?.f_narrow(0, 0, 4)?.f_to_kind(Kind::Float)?;
        println!("{name}: {:?}, {:?} ...", values.size(), Vec::<f32>::try_from(first)?);
    }
    println!("{} of {} blocks run on {:?}", output.blocks_run(), model.config().layers(), options.device);
    Ok(())
}
