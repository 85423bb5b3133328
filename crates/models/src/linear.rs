//! A matrix with an optional bias.

use std::sync::Arc;

use lowmem::PackedMatrix;
use tch::{Kind, TchError, Tensor};

use crate::{Factor, families::Layout};

/// The numbers of a matrix.
pub(crate) enum Matrix<T = Tensor> {
    /// In memory.
    Placed(T),
    /// In the blocks of their file.
    Packed(Arc<PackedMatrix>),
}

impl Matrix {
    /// In memory, in this dtype.
    pub(crate) fn placed(&self, kind: Kind) -> Result<Tensor, TchError> {
        match self {
            Self::Placed(tensor) => tensor.f_to_kind(kind),
            Self::Packed(packed) => packed.dense().map_err(unreadable)?.f_to_kind(kind),
        }
    }
}

/// The error of a file that cannot be read any more, among libtorch's.
pub(crate) fn unreadable(error: lowmem::Error) -> TchError {
    TchError::Io(std::io::Error::other(error))
}

/// A matrix with an optional bias.
pub(crate) struct Linear<T = Tensor> {
    pub(crate) weight: Matrix<T>,
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
        let bias = self.bias.as_ref();
        match (&self.weight, self.layout) {
            (Matrix::Placed(weight), Layout::OutIn) => x.times_transposed(weight, bias),
            (Matrix::Placed(weight), Layout::InOut) => x.times(weight, bias),
            (Matrix::Packed(packed), _) if x.can_be_packed() => x.times_packed(packed, bias),
            (Matrix::Packed(_), layout) => {
                let placed = Linear { weight: Matrix::Placed(self.weight.placed(x.kind()?)?), bias: None, layout };
                let product = placed.times(x)?;
                bias.map_or(Ok(product.shallow_clone()), |bias| product.f_add(bias))
            }
        }
    }

    /// `[batch, position, head, d_head]` to what each head contributes, `[batch, position, head, out]`, without the bias.
    pub(crate) fn each_head(&self, x: &Tensor) -> Result<Tensor, TchError> {
        let (_, _, heads, d_head) = x.size4()?;
        let weight = self.weight.placed(x.f_kind()?)?;
        // [head, d_head, out]
        let weight = match self.layout {
            Layout::OutIn => weight.f_view([-1, heads, d_head])?.f_permute([1, 2, 0])?,
            Layout::InOut => weight.f_view([heads, d_head, -1])?,
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
            let linear =
                Linear { weight: Matrix::Placed(weight), bias: bias.as_ref().map(Tensor::shallow_clone), layout };
            let whole = linear.apply(&z.reshape([2, 5, 12]), false).unwrap();
            let each = linear.each_head(&z).unwrap();
            assert_eq!(each.size(), [2, 5, 3, 7]);
            assert!(linear.sum_heads(&each).unwrap().allclose(&whole, 1e-5, 1e-5, false));
        }
    }
}
