//! A matrix with an optional bias.

use tch::{TchError, Tensor};

use crate::{Factor, families::Layout};

/// A matrix with an optional bias.
pub(crate) struct Linear<T = Tensor> {
    pub(crate) weight: T,
    pub(crate) bias: Option<T>,
    pub(crate) layout: Layout,
}

impl Linear {
    /// `[.., in]` to `[.., out]`; with `alike`, a single row is computed as it is among others.
    pub(crate) fn apply(&self, x: &Tensor, alike: bool) -> Result<Tensor, TchError> {
        self.times(&Factor::with(x, alike)?)
    }

    /// The same, of rows that several matrices multiply.
    pub(crate) fn times(&self, x: &Factor) -> Result<Tensor, TchError> {
        match self.layout {
            Layout::OutIn => x.times_transposed(&self.weight, self.bias.as_ref()),
            Layout::InOut => x.times(&self.weight, self.bias.as_ref()),
        }
    }

    /// `[batch, position, head, d_head]` to what each head contributes, `[batch, position, head, out]`, without the bias.
    pub(crate) fn each_head(&self, x: &Tensor) -> Result<Tensor, TchError> {
        let (_, _, heads, d_head) = x.size4()?;
        // [head, d_head, out]
        let weight = match self.layout {
            Layout::OutIn => self.weight.f_view([-1, heads, d_head])?.f_permute([1, 2, 0])?,
            Layout::InOut => self.weight.f_view([heads, d_head, -1])?,
        };
        Tensor::f_einsum("bphd,hdo->bpho", &[x, &weight], None::<&[i64]>)
    }

    /// What [`Linear::apply`] gives, from the contributions of the heads.
    pub(crate) fn sum_heads(&self, contributions: &Tensor) -> Result<Tensor, TchError> {
        let sum = contributions.f_sum_dim_intlist([2].as_slice(), false, None)?;
        match &self.bias {
            Some(bias) => sum.f_add(bias),
            None => Ok(sum),
        }
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    fn random(shape: &[i64]) -> Tensor {
        Tensor::randn(shape, (Kind::Float, Device::Cpu))
    }

    #[test]
    fn heads_add_up_to_the_whole_in_both_layouts() {
        tch::manual_seed(0);
        let z = random(&[2, 5, 3, 4]);
        let weight = random(&[12, 7]);
        let bias = Some(random(&[7]));
        for layout in [Layout::InOut, Layout::OutIn] {
            let weight = if layout == Layout::InOut { weight.shallow_clone() } else { weight.tr().contiguous() };
            let linear = Linear { weight, bias: bias.as_ref().map(Tensor::shallow_clone), layout };
            let whole = linear.apply(&z.reshape([2, 5, 12]), false).unwrap();
            let each = linear.each_head(&z).unwrap();
            assert_eq!(each.size(), [2, 5, 3, 7]);
            assert!(linear.sum_heads(&each).unwrap().allclose(&whole, 1e-5, 1e-5, false));
        }
    }
}
