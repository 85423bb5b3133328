//! What a run of a single token computes between its products, on the CPU and in f32, without libtorch: for a few hundred numbers each of
//! its calls costs more than the work. A layer norm by libtorch is one call, an RMS norm seven, a rotation six.

use tch::{TchError, Tensor};

/// The numbers of a tensor; `None` where it is not f32, bf16 or f16 on the CPU, or gradients are recorded.
pub(crate) fn numbers(x: &Tensor) -> Result<Option<Vec<f32>>, TchError> {
    if x.requires_grad() { Ok(None) } else { lowmem::numbers_of(x) }
}

/// A tensor of the shape and dtype of `x`: what is computed of a row is rounded once.
pub(crate) fn like(x: &Tensor, numbers: &[f32]) -> Result<Tensor, TchError> {
    lowmem::tensor_of(numbers, &x.size(), x.f_kind()?)
}

/// The same of a tensor that there may be none of.
pub(crate) fn numbers_of(x: Option<&Tensor>) -> Result<Option<Vec<f32>>, TchError> {
    x.map_or(Ok(Some(Vec::new())), numbers)
}

/// The sum of what `term` gives for each number, in one order whatever the processor.
pub(crate) fn sum(numbers: &[f32], term: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0_f32; 16];
    let (wide, rest) = numbers.as_chunks::<16>();
    for numbers in wide {
        for (lane, number) in lanes.iter_mut().zip(numbers) {
            *lane += term(*number);
        }
    }
    for (lane, number) in lanes.iter_mut().zip(rest) {
        *lane += term(*number);
    }
    lanes.iter().sum()
}

/// Scores to probabilities.
pub(crate) fn softmax(scores: &mut [f32]) {
    let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    scores.iter_mut().for_each(|score| *score = libm::expf(*score - most));
    let all = sum(scores, |share| share);
    scores.iter_mut().for_each(|share| *share /= all);
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    #[test]
    fn a_softmax_is_libtorch_s_also_of_numbers_whose_exponentials_are_none() {
        tch::manual_seed(0);
        let scores = Tensor::randn([70], (Kind::Float, Device::Cpu)) * 30.0 + 200.0;
        let mut found = numbers(&scores).unwrap().unwrap();
        softmax(&mut found);
        assert!(lowmem::tensor_of(&found, &[70], Kind::Float).unwrap().allclose(
            &scores.softmax(-1, None),
            1e-6,
            1e-7,
            false
        ));
        // As libtorch: where a score is no number, none is.
        let mut broken = [0.0, f32::NAN];
        softmax(&mut broken);
        assert!(broken.iter().all(|share| share.is_nan()));
    }
}
