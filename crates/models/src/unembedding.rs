//! From normed streams to logits: the one place where they are made.

use std::ops::Range;

use tch::{Kind, TchError, Tensor};

use crate::Factor;

/// The unembedding: a matrix, in some families a bias, in some a softcap, `logits = c tanh((x Wᵀ + b) / c)`.
///
/// The forward, the lens and the tuned lens all make their logits here.
pub struct Unembedding {
    /// `[vocabulary, width]`
    weight: Tensor,
    /// `[vocabulary]`
    bias: Option<Tensor>,
    softcap: Option<f64>,
}

impl Unembedding {
    /// Of a matrix, `[vocabulary, width]`, and a bias, `[vocabulary]`.
    pub fn new(weight: Tensor, bias: Option<Tensor>, softcap: Option<f64>) -> Self {
        Self { weight, bias, softcap }
    }

    /// The matrix, `[vocabulary, width]`; the width is `d_model`, but where the stream is projected before.
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// The bias, `[vocabulary]`.
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    /// The dtype of the matrix.
    ///
    /// # Errors
    ///
    /// As [`Unembedding::logits`].
    pub fn kind(&self) -> Result<Kind, TchError> {
        self.weight.f_kind()
    }

    /// Entries of the vocabulary.
    pub fn vocabulary(&self) -> i64 {
        self.weight.size().first().copied().unwrap_or(0)
    }

    /// `c` of `c tanh(logit / c)`.
    pub fn softcap(&self) -> Option<f64> {
        self.softcap
    }

    /// The logits of normed streams, `[.., width]` as a [`Factor`], in the dtype of both: `[.., vocabulary]`.
    ///
    /// # Errors
    ///
    /// Whatever libtorch says, such as that shapes do not fit.
    pub fn logits(&self, normed: &Factor) -> Result<Tensor, TchError> {
        capped(self.uncapped(normed)?, self.softcap)
    }

    /// The same before the softcap.
    ///
    /// # Errors
    ///
    /// As [`Unembedding::logits`].
    pub(crate) fn uncapped(&self, normed: &Factor) -> Result<Tensor, TchError> {
        normed.times_transposed(&self.weight, self.bias.as_ref())
    }

    /// The part of the vocabulary in `range`; nothing is copied.
    ///
    /// # Errors
    ///
    /// As [`Unembedding::logits`].
    pub fn slice(&self, range: &Range<i64>) -> Result<Self, TchError> {
        let part = |tensor: &Tensor| tensor.f_narrow(0, range.start, range.end - range.start);
        Ok(Self { weight: part(&self.weight)?, bias: self.bias.as_ref().map(part).transpose()?, softcap: self.softcap })
    }

    /// The rows of some ids (Int64, `[n]`).
    ///
    /// # Errors
    ///
    /// As [`Unembedding::logits`].
    pub fn select(&self, ids: &Tensor) -> Result<Self, TchError> {
        let rows = |tensor: &Tensor| tensor.f_index_select(0, ids);
        Ok(Self { weight: rows(&self.weight)?, bias: self.bias.as_ref().map(rows).transpose()?, softcap: self.softcap })
    }

    /// The same in another dtype.
    ///
    /// # Errors
    ///
    /// As [`Unembedding::logits`].
    pub fn to_kind(&self, kind: Kind) -> Result<Self, TchError> {
        let turn = |tensor: &Tensor| tensor.f_to_kind(kind);
        Ok(Self { weight: turn(&self.weight)?, bias: self.bias.as_ref().map(turn).transpose()?, softcap: self.softcap })
    }
}

/// `c tanh(score / c)`; may change `scores`.
pub(crate) fn capped(mut scores: Tensor, softcap: Option<f64>) -> Result<Tensor, TchError> {
    match softcap {
        None => Ok(scores),
        Some(cap) if scores.requires_grad() => scores.f_div_scalar(cap)?.f_tanh()?.f_mul_scalar(cap),
        // In place: the scores of a long text are the largest tensor of the run.
        Some(cap) => scores.f_div_scalar_(cap)?.f_tanh_()?.f_mul_scalar_(cap),
    }
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    #[test]
    fn slices_and_rows_give_the_logits_of_their_part() {
        tch::manual_seed(0);
        let random = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, Device::Cpu));
        let x = random(&[7, 5]);
        let factor = Factor::new(&x).unwrap();
        let whole = Unembedding::new(random(&[20, 5]), Some(random(&[20])), Some(2.0));
        let logits = whole.logits(&factor).unwrap();
        assert!(logits.abs().max().double_value(&[]) <= 2.0);
        let exact = ((x.matmul(&whole.weight().tr()) + whole.bias().unwrap()) / 2.0).tanh() * 2.0;
        assert!(logits.allclose(&exact, 1e-5, 1e-5, false));
        let slice = whole.slice(&(3..9)).unwrap().logits(&factor).unwrap();
        assert!(slice.allclose(&logits.narrow(1, 3, 6), 1e-6, 1e-6, false));
        let ids = Tensor::from_slice(&[19_i64, 0, 7]);
        let rows = whole.select(&ids).unwrap().logits(&factor).unwrap();
        assert!(rows.allclose(&logits.index_select(1, &ids), 1e-6, 1e-6, false));
    }
}
