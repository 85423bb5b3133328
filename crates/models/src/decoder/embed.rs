//! From tokens to the stream that enters the first layer.

use tch::Tensor;

use super::{Halt, Run};
use crate::{
    Error, Factor, Point, Site, Stage,
    error::At,
    input::Checked,
    weights::{self, PartMap},
};

impl Run<'_> {
    pub(super) fn embed(&mut self, checked: &Checked) -> Result<Tensor, Halt> {
        let at = |point| Site { stage: Stage::Embedding, point };
        let Some(ids) = &checked.ids else { return Err(Error::EmptyInput.into()) };
        let (parts, embedding) = (self.model.parts(), &self.model.architecture().embedding);
        let tokens = parts.rows(PartMap::EMBEDDING, weights::TOKENS, ids).map_err(Error::from)?;
        let tokens = match embedding.scale {
            // Rounded as the rows are, because Hugging Face's is.
            Some(scale) => tokens
                .f_kind()
                .and_then(|kind| {
                    tokens.f_mul(&Tensor::f_from_slice(&[scale])?.f_to_kind(kind)?.f_to_device(tokens.device())?)
                })
                .at(at(Point::TokenEmbedding))?,
            None => tokens,
        };
        let mut x = self.show(at(Point::TokenEmbedding), tokens)?;
        if let Some(part) = self.model.part_map().projection() {
            let site = at(Point::EmbeddingProjection);
            let matrix = parts.get(part, None).map_err(Error::from)?.into_iter().next();
            let matrix = matrix.ok_or_else(|| Error::Config { problem: "the embedding has no projection".into() })?;
            let projected = Factor::new(&x).and_then(|x| x.times_transposed(&matrix, None)).at(site)?;
            x = self.show(site, projected)?;
        }
        if let Some(learned) = &embedding.positions {
            let site = at(Point::PositionEmbedding);
            let rows = checked.position_ids.f_add_scalar(learned.offset).at(site)?;
            let positions = parts.rows(PartMap::EMBEDDING, weights::POSITIONS, &rows).map_err(Error::from)?;
            let positions = self.show(site, positions)?;
            x = x.f_add(&positions).at(Site::INPUT)?;
        }
        let x = self.show(Site::INPUT, x)?;
        if let Some(rotary) = self.model.architecture().only_rotary() {
            let site = at(Point::RotaryCosines);
            if self.observer.wants(site) || self.is_deep(site) {
                let cosines = self.rotations.cosines(rotary).at(site)?;
                let (cosines, replaced) = self.show_and_tell(site, cosines)?;
                if replaced {
                    self.rotations.replace_cosines(rotary, &cosines).at(site)?;
                }
            }
        }
        Ok(x)
    }
}

#[cfg(test)]
mod tests;
