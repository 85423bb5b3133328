//! The first layers of a model, trained together with a classifier on them.

mod classify;
mod common;

use clap::Parser;

use classify::TrainingFlags;

/// Train a classifier together with the first layers of a model.
///
/// As `features`, and the embedding and the blocks up to the deepest of --names are trained too, with a learning rate of
/// their own. Later blocks are neither run nor read nor trained, and cost the optimizer nothing. The checkpoint on disk is
/// never changed: --out gets the trained layers, under their names in the checkpoint.
#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    training: TrainingFlags,

    /// Learning rate of the model's layers; it falls linearly to zero.
    #[arg(long, value_name = "RATE", default_value_t = 5e-4, help_heading = "Training")]
    base_learning_rate: f64,
}

fn main() -> ! {
    common::main(|flags: Flags| classify::run(&flags.training, Some(flags.base_learning_rate)).map(drop))
}
