//! Layer and RMS norms.

use tch::{Kind, TchError, Tensor};

use crate::{Norm, NormKind, row};

/// A norm and its weights, `[width]` each.
pub(crate) struct Normer<T = Tensor> {
    pub(crate) norm: Norm,
    pub(crate) weight: Option<T>,
    pub(crate) bias: Option<T>,
}

impl Normer {
    /// Of `[.., width]`, over the last dimension, in the dtype of `x`.
    pub(crate) fn apply(&self, x: &Tensor) -> Result<Tensor, TchError> {
        let epsilon = self.norm.epsilon;
        match (self.norm.kind, &self.weight) {
            (NormKind::Layer { .. }, weight) => {
                let width = x.size().last().copied().unwrap_or(0);
                x.f_layer_norm([width], weight.as_ref(), self.bias.as_ref(), epsilon, false)
            }
            (_, None) => Ok(x.shallow_clone()),
            (NormKind::Rms, Some(weight)) => normalised(x, epsilon)?.f_to_kind(x.f_kind()?)?.f_mul(weight),
            (NormKind::RmsRoundedLast, Some(weight)) => {
                let normalised = normalised(x, epsilon)?;
                let kind = normalised.f_kind()?;
                normalised.f_mul(&weight.f_to_kind(kind)?)?.f_to_kind(x.f_kind()?)
            }
            (NormKind::RmsUnitOffset, Some(weight)) => {
                let normalised = normalised(x, epsilon)?;
                let kind = normalised.f_kind()?;
                normalised.f_mul(&weight.f_to_kind(kind)?.f_add_scalar(1.0)?)?.f_to_kind(x.f_kind()?)
            }
        }
    }

    /// As [`Normer::apply`], for few numbers.
    pub(crate) fn apply_to_row(&self, x: &Tensor) -> Result<Tensor, TchError> {
        let (weight, bias) = (row::numbers_of(self.weight.as_ref())?, row::numbers_of(self.bias.as_ref())?);
        let (Some(weight), Some(bias)) = (weight, bias) else { return self.apply(x) };
        let (Some(mut numbers), Some(&width)) = (row::numbers(x)?, x.size().last()) else { return self.apply(x) };
        for row in numbers.chunks_exact_mut(width.max(1) as usize) {
            self.apply_to_numbers(row, &weight, &bias);
        }
        row::like(x, &numbers)
    }

    /// Over all of `row`; weights may be missing.
    fn apply_to_numbers(&self, row: &mut [f32], weight: &[f32], bias: &[f32]) {
        let centred = matches!(self.norm.kind, NormKind::Layer { .. });
        if !centred && weight.is_empty() {
            return;
        }
        let width = row.len() as f32;
        if centred {
            let mean = row::sum(row, |x| x) / width;
            row.iter_mut().for_each(|x| *x -= mean);
        }
        let scale = 1.0 / (row::sum(row, |x| x * x) / width + self.norm.epsilon as f32).sqrt();
        row.iter_mut().for_each(|x| *x *= scale);
        let offset = if self.norm.kind == NormKind::RmsUnitOffset { 1.0 } else { 0.0 };
        row.iter_mut().zip(weight).for_each(|(x, weight)| *x *= weight + offset);
        row.iter_mut().zip(bias).for_each(|(x, bias)| *x += bias);
    }

    /// The direction in what the norm reads that `direction` is in what it gives, `[.., width]` both, computed in `kind`, with the
    /// scale that `stream` has: for every `x`, `x · found` is `direction ·` (`x` normed with that scale, without the bias).
    pub(crate) fn direction_before(&self, direction: &Tensor, stream: &Tensor, kind: Kind) -> Result<Tensor, TchError> {
        let (direction, stream) = (direction.f_to_kind(kind)?, stream.f_to_kind(kind)?);
        let unit_offset = self.norm.kind == NormKind::RmsUnitOffset;
        let weighted = match &self.weight {
            Some(weight) if unit_offset => direction.f_mul(&weight.f_to_kind(kind)?.f_add_scalar(1.0)?)?,
            Some(weight) => direction.f_mul(&weight.f_to_kind(kind)?)?,
            None => direction,
        };
        let mean = |of: &Tensor| of.f_mean_dim([-1].as_slice(), true, None);
        let centred = matches!(self.norm.kind, NormKind::Layer { .. });
        let spread = if centred { stream.f_sub(&mean(&stream)?)? } else { stream };
        let scaled = weighted.f_mul(&mean(&spread.f_square()?)?.f_add_scalar(self.norm.epsilon)?.f_rsqrt()?)?;
        if centred { scaled.f_sub(&mean(&scaled)?) } else { Ok(scaled) }
    }

    /// The same, with input and weights in `kind`.
    pub(crate) fn apply_in(&self, x: &Tensor, kind: Kind) -> Result<Tensor, TchError> {
        let turn = |tensor: &Option<Tensor>| tensor.as_ref().map(|tensor| tensor.f_to_kind(kind)).transpose();
        let there = Self { norm: self.norm, weight: turn(&self.weight)?, bias: turn(&self.bias)? };
        there.apply(&x.f_to_kind(kind)?)
    }
}

/// `x / sqrt(mean square + epsilon)`, at least in f32.
fn normalised(x: &Tensor, epsilon: f64) -> Result<Tensor, TchError> {
    let kind = x.f_kind()?;
    let x = if matches!(kind, Kind::BFloat16 | Kind::Half) { x.f_to_kind(Kind::Float)? } else { x.shallow_clone() };
    let square = x.f_square()?.f_mean_dim([-1].as_slice(), true, None)?;
    x.f_mul(&square.f_add_scalar(epsilon)?.f_rsqrt()?)
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    fn norm(kind: NormKind, weight: &Tensor) -> Normer {
        Normer { norm: Norm { kind, epsilon: 1e-3 }, weight: Some(weight.shallow_clone()), bias: None }
    }

    #[test]
    fn rms_norms_are_what_their_formulas_say() {
        tch::manual_seed(0);
        let (x, weight) =
            (Tensor::randn([3, 8], (Kind::Float, Device::Cpu)), Tensor::randn([8], (Kind::Float, Device::Cpu)));
        let exact = x.to_kind(Kind::Double);
        let exact = &exact / (exact.square().mean_dim(-1, true, None) + 1e-3).sqrt();
        let plain = &exact * weight.to_kind(Kind::Double);
        let offset = &exact * (weight.to_kind(Kind::Double) + 1.0);
        for (kind, expected) in
            [(NormKind::Rms, &plain), (NormKind::RmsRoundedLast, &plain), (NormKind::RmsUnitOffset, &offset)]
        {
            let found = norm(kind, &weight).apply(&x).unwrap().to_kind(Kind::Double);
            assert!(found.allclose(expected, 1e-6, 1e-6, false), "{kind:?}");
        }
    }

    #[test]
    fn a_row_is_normed_as_rows_are() {
        tch::manual_seed(3);
        let random = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, Device::Cpu));
        let (x, weight, bias) = (random(&[1, 1, 3, 37]), random(&[37]), random(&[37]));
        let kinds =
            [NormKind::Layer { weights: true }, NormKind::Rms, NormKind::RmsRoundedLast, NormKind::RmsUnitOffset];
        for kind in kinds {
            for (weight, bias) in [(Some(&weight), Some(&bias)), (Some(&weight), None), (None, None)] {
                let bias = bias.filter(|_| matches!(kind, NormKind::Layer { .. }));
                let [weight, bias] = [weight, bias].map(|tensor| tensor.map(Tensor::shallow_clone));
                let norm = Normer { norm: Norm { kind, epsilon: 1e-3 }, weight, bias };
                let (row, rows) = (norm.apply_to_row(&x).unwrap(), norm.apply(&x).unwrap());
                assert!(row.allclose(&rows, 1e-6, 1e-6, false) && row.size() == rows.size(), "{kind:?}");
            }
            let in_bf16 = norm(kind, &weight.to_kind(Kind::BFloat16));
            let x = x.to_kind(Kind::BFloat16);
            let (row, rows) = (in_bf16.apply_to_row(&x).unwrap(), in_bf16.apply(&x).unwrap());
            assert_eq!(row.kind(), Kind::BFloat16);
            assert!(row.to_kind(Kind::Float).allclose(&rows.to_kind(Kind::Float), 1e-2, 1e-2, false), "{kind:?}");
        }
    }

    #[test]
    fn in_bf16_the_families_round_at_different_places() {
        tch::manual_seed(1);
        let x = Tensor::randn([64, 32], (Kind::Float, Device::Cpu)).to_kind(Kind::BFloat16);
        let weight = Tensor::randn([32], (Kind::Float, Device::Cpu)).to_kind(Kind::BFloat16);
        let first = norm(NormKind::Rms, &weight).apply(&x).unwrap();
        let last = norm(NormKind::RmsRoundedLast, &weight).apply(&x).unwrap();
        assert_eq!((first.kind(), last.kind()), (Kind::BFloat16, Kind::BFloat16));
        assert!(!first.equal(&last));
        let (first, last) = (first.to_kind(Kind::Float), last.to_kind(Kind::Float));
        assert!(first.allclose(&last, 1e-2, 1e-2, false));
    }

    #[test]
    fn a_direction_before_a_norm_sees_what_it_sees_behind_it() {
        tch::manual_seed(2);
        let random = |shape: &[i64]| Tensor::randn(shape, (Kind::Double, Device::Cpu));
        let (x, direction, weight, bias) = (random(&[3, 8]), random(&[3, 8]), random(&[8]), random(&[8]));
        let along = |x: &Tensor, direction: &Tensor| (x * direction).sum_dim_intlist([-1].as_slice(), false, None);
        let layer = NormKind::Layer { weights: true };
        for kind in [layer, NormKind::Rms, NormKind::RmsRoundedLast, NormKind::RmsUnitOffset] {
            let with_bias = kind == layer;
            let norm = Normer { bias: with_bias.then(|| bias.shallow_clone()), ..norm(kind, &weight) };
            let before = norm.direction_before(&direction, &x, Kind::Double).unwrap();
            let constant = along(&bias, &direction) * f64::from(with_bias);
            let found = along(&x, &before) + constant;
            assert!(found.allclose(&along(&norm.apply(&x).unwrap(), &direction), 1e-10, 1e-10, false), "{kind:?}");
        }
    }

    #[test]
    fn a_layer_norm_may_have_no_weights() {
        let x = Tensor::randn([3, 8], (Kind::Float, Device::Cpu));
        let norm = Norm { kind: NormKind::Layer { weights: false }, epsilon: 0.0 };
        let found = Normer { norm, weight: None, bias: None }.apply(&x).unwrap();
        assert!(found.mean_dim(-1, false, None).abs().max().double_value(&[]) < 1e-6);
    }
}
