//! The way back: which direction in an earlier value a direction in a later one is, where the way between them is linear once the
//! scale of a norm is fixed.

use lowmem::Held;
use tch::{Kind, TchError, Tensor};

use crate::{
    Error, Factor, Model, Point, Result, Site, Tail,
    families::Layout,
    linear::Linear,
    weights::{LayerMlp, LayerWeights, Placed},
};

/// One of the two halves of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Half {
    /// Attention.
    Attention,
    /// The MLP.
    Mlp,
}

impl Tail {
    /// The direction in the residual stream that `direction`, `[.., width]`, is in what the unembedding reads, the final norm's scale
    /// being that of `stream`, `[.., d_model]`; the same shape as `stream`, in f32.
    ///
    /// `stream · found`, and what [`Tail::along_bias`] gives, is `direction · tail(stream)`. Of a part of the stream it is the part's
    /// share, as in TransformerLens's `apply_ln_to_stack`: a layer norm centres the part by itself, and divides by the scale of the
    /// whole.
    ///
    /// # Errors
    ///
    /// [`Error::Torch`].
    pub fn direction_before(&self, direction: &Tensor, stream: &Tensor) -> Result<Tensor> {
        let back = || {
            let direction = self.before_projection(direction)?;
            match &self.weights.norm {
                Some(norm) => norm.direction_before(&direction, stream, Kind::Float),
                None => direction.f_expand(stream.size(), false),
            }
        };
        back().map_err(Error::torch(Site::FINAL_NORM))
    }

    /// What the bias of the final norm adds along `direction`, `[.., width]`; `[..]` in f32. `None` for a norm without a bias.
    ///
    /// # Errors
    ///
    /// [`Error::Torch`].
    pub fn along_bias(&self, direction: &Tensor) -> Result<Option<Tensor>> {
        let Some(bias) = self.weights.norm.as_ref().and_then(|norm| norm.bias.as_ref()) else { return Ok(None) };
        let along = || {
            let product = self.before_projection(direction)?.f_mul(&bias.f_to_kind(Kind::Float)?)?;
            product.f_sum_dim_intlist([-1].as_slice(), false, None)
        };
        along().map(Some).map_err(Error::torch(Site::FINAL_NORM))
    }

    fn before_projection(&self, direction: &Tensor) -> Result<Tensor, TchError> {
        let direction = direction.f_to_kind(Kind::Float)?;
        match &self.weights.projection {
            Some(projection) => projection.direction_before(&direction),
            None => Ok(direction),
        }
    }
}

impl Linear {
    /// The direction in what the matrix reads that `direction`, `[.., out]`, is in what it gives, in the dtype of the direction:
    /// `[.., in]`.
    fn direction_before(&self, direction: &Tensor) -> Result<Tensor, TchError> {
        let weight = self.weight.placed(direction.f_kind()?)?;
        let factor = Factor::new(direction)?;
        match self.layout {
            Layout::OutIn => factor.times(&weight, None),
            Layout::InOut => factor.times_transposed(&weight, None),
        }
    }
}

impl Model {
    /// The direction in what the output projection of a half of a block reads (`attn.z`, its heads side by side, or the neurons of the
    /// MLP) that `direction`, `[.., d_model]`, is in what the half adds to the residual stream; `[.., width]` in f32.
    ///
    /// `said` is what the half says, the value at `attn` or `mlp`, `[.., d_model]`: it has the scale of the norm that some families put
    /// between it and the stream. The biases of norm and projection add what hangs on no head or neuron.
    ///
    /// # Errors
    ///
    /// [`Error::AbsentSite`] for the MLP of a block with experts, [`Error::UnknownSite`] for a block there is not, [`Error::Weights`],
    /// [`Error::Torch`].
    pub fn direction_before_output(
        &self,
        block: usize,
        half: Half,
        direction: &Tensor,
        said: &Tensor,
    ) -> Result<Tensor> {
        let point = match half {
            Half::Attention => Point::AttentionOutput,
            Half::Mlp => Point::MlpOutput,
        };
        let site = self.sites().find(Site::block(block, point))?;
        let Some(layer) = self.architecture().layers.get(block) else { return Ok(direction.shallow_clone()) };
        let tensors = self.parts().get(self.part_map().layer(block), None)?;
        let tensors = tensors.into_iter().map(Held::Tensor).collect();
        let mut shelf = Placed::new(self.config().family, tensors);
        let weights = LayerWeights::walk(layer, self.architecture().d_model, &mut shelf)?;
        let (norms, output) = match (half, &weights.mlp) {
            (Half::Attention, _) => (&weights.attention_norms, &weights.attention_output),
            (Half::Mlp, LayerMlp::Dense(mlp)) => (&weights.mlp_norms, &mlp.output),
            (Half::Mlp, LayerMlp::Routed(_)) => {
                let neurons = Site::block(block, layer.neurons());
                return Err(Error::AbsentSite { name: neurons.to_string(), reason: self.sites().why_absent(neurons) });
            }
        };
        let back = || {
            let direction = match &norms.after {
                Some(norm) => norm.direction_before(direction, said, Kind::Float)?,
                None => direction.f_to_kind(Kind::Float)?,
            };
            output.direction_before(&direction)
        };
        back().map_err(Error::torch(site))
    }
}
