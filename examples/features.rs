//! The first layers of a model as frozen features for a classifier.

mod classify;
mod common;

use clap::Parser;

use classify::TrainingFlags;

/// Train a classifier on the first layers of a model, which stay as they are.
///
/// Reads the values at --names (by default those after the first two blocks; later blocks are neither run nor read), puts
/// Linear -> ReLU -> Linear on them at every position, and pools over the positions. A bag of tokens is trained first, to
/// show what word lists alone can tell. `finetune` is the same with the layers trained too.
///
/// The bundled texts are sentences as they were written and the same words in another order, so nothing but their order
/// tells them apart. Computes in f32 unless --dtype says otherwise.
#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    training: TrainingFlags,
}

fn main() -> ! {
    common::main(|flags: Flags| classify::run(&flags.training, None).map(drop))
}
