//! Matrix products, by the faster of the two libraries that libtorch brings.

use tch::{Device, Kind, TchError, Tensor, utils};

/// The left factor of matrix products, `[.., in]`.
///
/// Libtorch sends f32 products on a CPU to the BLAS it was built with, where a few rows times a large matrix (what a prompt
/// is) reach a third of the processor's speed, less on processors that the BLAS does not favour. oneDNN, which libtorch
/// uses for bf16, takes f32 as well and needs half the time (measured on AVX-512: 1.4 to 4 times as fast for 1 to 1024
/// rows, in both layouts of the weights), without a copy of the weights. So f32 products go there, unless gradients are
/// asked for: the choice depends on dtypes, devices and layouts, never on a clock, so that a run gives the same bits each
/// time. A libtorch without oneDNN does as it always does.
pub struct Factor<'a> {
    x: &'a Tensor,
    /// The one row of `x` twice, `[2, in]`, where it is to be computed as rows are.
    doubled: Option<Tensor>,
    /// The numbers to multiply as oneDNN holds them, `[n, in]`.
    prepared: Option<Tensor>,
}

impl<'a> Factor<'a> {
    /// Takes `x`, `[.., in]`.
    ///
    /// # Errors
    ///
    /// Whatever libtorch says, such as that memory is full.
    pub fn new(x: &'a Tensor) -> Result<Self, TchError> {
        Self::from_rows(x, None)
    }

    /// As [`Factor::new`], but a single row gets the bits that it gets among others: for one row libtorch has other kernels,
    /// which add in another order.
    ///
    /// # Errors
    ///
    /// As [`Factor::new`].
    pub fn alike(x: &'a Tensor) -> Result<Self, TchError> {
        let width = x.size().last().copied().unwrap_or(0);
        let single = x.numel() as i64 == width && x.device() == Device::Cpu;
        Self::from_rows(x, if single { Some(x.f_reshape([1, width])?.f_repeat([2, 1])?) } else { None })
    }

    fn from_rows(x: &'a Tensor, doubled: Option<Tensor>) -> Result<Self, TchError> {
        lowmem::prepare_libtorch();
        let width = x.size().last().copied().unwrap_or(0);
        let rows = doubled.as_ref().unwrap_or(x);
        let prepared = if suits(rows)? && width > 0 && utils::has_mkldnn() {
            Some(rows.f_reshape([-1, width])?.f_to_mkldnn(None)?)
        } else {
            None
        };
        Ok(Self { x, doubled, prepared })
    }

    /// `x weightᵀ + bias` with `weight` `[out, in]` and `bias` `[out]`; the result is `[.., out]`.
    ///
    /// # Errors
    ///
    /// Whatever libtorch says, such as that shapes do not fit.
    pub fn times_transposed(&self, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor, TchError> {
        match self.prepared_for(weight, bias)? {
            Some(prepared) => self.finish(prepared.f_mkldnn_linear(weight, bias)?.f_to_dense(None, false)?),
            None => self.plain(weight, bias),
        }
    }

    /// `x weight + bias` with `weight` `[in, out]` and `bias` `[out]`; the result is `[.., out]`.
    ///
    /// # Errors
    ///
    /// As [`Factor::times_transposed`].
    pub fn times(&self, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor, TchError> {
        let Some(prepared) = self.prepared_for(weight, bias)? else {
            // A transposed view; libtorch turns it back when it multiplies, so nothing is copied.
            return self.plain(&weight.f_transpose(0, 1)?, bias);
        };
        // The gradient of `y = g wᵀ` with respect to `g`, with ours for the incoming one, is the product in this layout.
        let size = [prepared.size2()?.0, weight.size2()?.1];
        let product = Tensor::f_mkldnn_linear_backward_input(size, prepared, weight)?;
        let mut product = self.finish(product.f_to_dense(None, false)?)?;
        match bias {
            Some(bias) => product.f_add_(bias),
            None => Ok(product),
        }
    }

    /// By libtorch's own choice.
    fn plain(&self, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor, TchError> {
        match &self.doubled {
            Some(doubled) => self.finish(doubled.f_linear(weight, bias)?),
            None => self.x.f_linear(weight, bias),
        }
    }

    fn prepared_for(&self, weight: &Tensor, bias: Option<&Tensor>) -> Result<Option<&Tensor>, TchError> {
        let plain = suits(weight)? && weight.is_contiguous() && bias.map_or(Ok(true), suits)?;
        Ok(self.prepared.as_ref().filter(|_| plain))
    }

    /// The product, `[n, out]`, with the outer dimensions of `x`.
    fn finish(&self, product: Tensor) -> Result<Tensor, TchError> {
        let mut shape = self.x.size();
        if let Some(last) = shape.last_mut() {
            *last = product.size2()?.1;
        }
        let product = if self.doubled.is_some() { product.f_narrow(0, 0, 1)? } else { product };
        product.f_view(shape.as_slice())
    }
}

/// Whether oneDNN takes the tensor, and nobody wants gradients through it.
fn suits(tensor: &Tensor) -> Result<bool, TchError> {
    Ok(tensor.device() == Device::Cpu
        && tensor.f_kind()? == Kind::Float
        && !tensor.requires_grad()
        && tensor.numel() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(shape: &[i64]) -> Tensor {
        Tensor::randn(shape, (Kind::Float, Device::Cpu))
    }

    fn error(found: &Tensor, expected: &Tensor) -> f64 {
        let expected = expected.to_kind(Kind::Double);
        let apart = (found.to_kind(Kind::Double) - &expected).abs().max().double_value(&[]);
        apart / expected.abs().max().double_value(&[]).max(1e-30)
    }

    fn exact(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Tensor {
        let double = |tensor: &Tensor| tensor.to_kind(Kind::Double);
        double(x).linear(&double(weight), bias.map(double).as_ref())
    }

    #[test]
    fn products_of_all_shapes_and_layouts_are_right() {
        tch::manual_seed(0);
        for outer in [vec![1], vec![7], vec![2, 3], vec![1, 45], vec![2, 1, 5]] {
            for (width, out) in [(1, 1), (3, 5), (16, 64), (65, 33)] {
                let x = random(&[outer.clone(), vec![width]].concat());
                let (weight, bias) = (random(&[out, width]), random(&[out]));
                let factor = Factor::new(&x).unwrap();
                for bias in [None, Some(&bias)] {
                    let expected = exact(&x, &weight, bias);
                    let found = factor.times_transposed(&weight, bias).unwrap();
                    assert_eq!(found.size(), expected.size());
                    assert!(error(&found, &expected) < 1e-5);
                    let stored = weight.tr().contiguous();
                    assert!(error(&factor.times(&stored, bias).unwrap(), &expected) < 1e-5);
                    // Views are no reason for another result.
                    assert!(error(&factor.times(&weight.tr(), bias).unwrap(), &expected) < 1e-5);
                    assert!(error(&factor.times_transposed(&stored.tr(), bias).unwrap(), &expected) < 1e-5);
                }
            }
        }
    }

    #[test]
    fn parts_of_a_larger_tensor_are_multiplied_as_they_are() {
        tch::manual_seed(1);
        let (x, weight) = (random(&[9, 12]), random(&[40, 8]));
        let (x, weight) = (x.narrow(1, 2, 8), weight.narrow(0, 3, 20));
        let found = Factor::new(&x).unwrap().times_transposed(&weight, None).unwrap();
        assert!(error(&found, &exact(&x, &weight, None)) < 1e-5);
    }

    #[test]
    fn gradients_flow_where_they_are_asked_for() {
        let (x, weight, bias) = (random(&[4, 6]), random(&[6, 3]).set_requires_grad(true), random(&[3]));
        Factor::new(&x).unwrap().times(&weight, Some(&bias)).unwrap().sum(Kind::Float).backward();
        let expected = x.sum_dim_intlist([0].as_slice(), false, Kind::Float).unsqueeze(1).expand([6, 3], false);
        assert!(error(&weight.grad(), &expected) < 1e-5);
        let x = x.set_requires_grad(true);
        Factor::new(&x).unwrap().times_transposed(&weight.detach().tr(), None).unwrap().sum(Kind::Float).backward();
        assert!(x.grad().defined());
    }

    #[test]
    fn other_dtypes_and_shapes_that_do_not_fit() {
        let x = random(&[4, 6]).to_kind(Kind::Double);
        let weight = random(&[3, 6]).to_kind(Kind::Double);
        assert!(
            error(&Factor::new(&x).unwrap().times_transposed(&weight, None).unwrap(), &exact(&x, &weight, None))
                < 1e-12
        );
        let x = random(&[4, 6]);
        assert!(Factor::new(&x).unwrap().times_transposed(&random(&[3, 5]), None).is_err());
        assert!(Factor::new(&x).unwrap().times(&random(&[5, 3]), None).is_err());
        assert!(Factor::new(&x).unwrap().times_transposed(&random(&[3, 6]), Some(&random(&[4]))).is_err());
    }
}
