//! From the last layer's stream to logits.

use tch::{Kind, TchError, Tensor};

use super::{Halt, Run};
use crate::{Factor, LogitsAt, Site, error::At, families::Layout, unembedding::capped};

impl Run<'_> {
    pub(super) fn head(&mut self, x: Tensor, logits_at: LogitsAt, attended: Option<&Tensor>) -> Result<Tensor, Halt> {
        let (model, map) = (self.model, self.model.part_map());
        let unembeds = [Site::LOGITS, Site::UNCAPPED_LOGITS];
        let ends = self.deepest.is_some_and(|deepest| !unembeds.contains(&deepest));
        let next = (!ends && !self.packed).then(|| map.head());
        let tail = model.tail_of(self.held(map.tail(), next, model.config().family.layout == Layout::InOut)?)?;
        let normed = tail.norm(&x, model.parts().dtype().kind())?;
        let mut normed = self.show(Site::FINAL_NORM, normed)?;
        if logits_at == LogitsAt::Last {
            normed = last_tokens(&normed, attended).at(Site::LOGITS)?;
        }
        if model.order().has(Site::PROJECTED) {
            let projected = tail.project(&normed)?;
            normed = self.show(Site::PROJECTED, projected)?;
        }
        let alike = model.numerics().alike_rows;
        let factor = Factor::with(&normed, alike).at(Site::LOGITS)?;
        let packed = if factor.can_be_packed() { model.packed_unembedding()? } else { None };
        let mut scores = match packed {
            Some(packed) => factor.times_packed(&packed, model.unembedding_bias()?.as_ref()),
            None => model.unembedding()?.uncapped(&factor),
        }
        .at(Site::LOGITS)?;
        let softcap = model.architecture().head.softcap;
        if softcap.is_some() {
            // Whoever keeps them must not find them changed.
            let kept = self.observer.wants(Site::UNCAPPED_LOGITS);
            scores = self.show(Site::UNCAPPED_LOGITS, scores)?;
            if kept {
                scores = scores.f_clone(&scores.f_empty_like().at(Site::LOGITS)?).at(Site::LOGITS)?;
            }
        }
        let logits = capped(scores, softcap).at(Site::LOGITS)?;
        self.show(Site::LOGITS, logits)
    }
}

/// Each row's last position that is not padding, `[batch, 1, d_model]` of `[batch, position, d_model]`. `attended` is
/// `[batch, cached and new positions]`.
fn last_tokens(stream: &Tensor, attended: Option<&Tensor>) -> Result<Tensor, TchError> {
    let (batch, length, width) = stream.size3()?;
    let Some(attended) = attended else { return stream.f_narrow(1, length - 1, 1) };
    let new = attended.f_narrow(1, attended.size2()?.1 - length, length)?;
    let columns = Tensor::f_arange(length, (Kind::Int64, stream.device()))?;
    // Every token counts for more than any padding, and the later of two for more than the earlier.
    let weights = new.f_to_kind(Kind::Int64)?.f_mul_scalar(length)?.f_add(&columns)?;
    let last = weights.f_argmax(1, true)?.f_unsqueeze(2)?;
    stream.f_gather(1, &last.f_expand([batch, 1, width], false)?, false)
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    #[test]
    fn the_last_token_of_a_row_is_the_last_that_is_no_padding() {
        let stream = Tensor::arange(12, (Kind::Float, Device::Cpu)).view([3, 4, 1]);
        let mask = Tensor::from_slice(&[1_i64, 1, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0]).view([3, 4]).ne(0);
        let last = last_tokens(&stream, Some(&mask)).unwrap();
        // Of a row of padding alone, the last column.
        assert!(last.flatten(0, 2).equal(&Tensor::from_slice(&[1.0_f32, 7.0, 11.0])));
        assert!(last_tokens(&stream, None).unwrap().flatten(0, 2).equal(&Tensor::from_slice(&[3.0_f32, 7.0, 11.0])));
    }
}
