//! What each part of a model has to do with a metric, estimated from gradients or read off the final stream.

mod direct;
mod gradients;
mod input;
mod patching;

pub use direct::DirectLogitAttribution;
pub use input::InputAttribution;
pub use patching::{AttributionPatching, Estimated};
