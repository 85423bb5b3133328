//! Attention of one layer, site by site.

use tch::Tensor;

use super::{Halt, Past, Run};
use crate::{
    Factor, Point, Site,
    architecture::{Attention, NormOver, Projections},
    attend,
    error::At,
    norm::Normer,
    weights::{LayerWeights, Projected},
};

impl Run<'_> {
    /// What attention of a layer says of what it reads, `[batch, position, d_model]`.
    pub(super) fn attention(
        &mut self,
        block: usize,
        attention: &Attention,
        weights: &LayerWeights,
        read: &Tensor,
    ) -> Result<Tensor, Halt> {
        let site = |point| Site::block(block, point);
        let [queries, keys, values] = self.projected(block, attention, &weights.query_key_value, read)?;
        let queries = self.split(site(Point::HeadQuery), queries)?;
        let keys = self.split(site(Point::HeadKey), keys)?;
        let values = self.split(site(Point::HeadValue), values)?;
        let (queries, keys) = self.turned(block, attention, weights, queries, keys)?;
        let heads_first = |tensor: &Tensor, at: Site| tensor.f_transpose(1, 2).at(at);
        let queries = heads_first(&queries, site(Point::HeadQuery))?;
        let mut keys = heads_first(&keys, site(Point::HeadKey))?;
        let mut values = heads_first(&values, site(Point::HeadValue))?;
        // A sum over keys that are hidden anyway is made in another order: who asks for the same bits keeps them.
        let window = attention.window.filter(|_| !self.model.numerics().alike_rows);
        match &mut self.past {
            Past::None => {}
            Past::Cache(cache) => (keys, values) = cache.extend(block, &keys, &values, window)?,
            Past::Prefix(prefix) => (keys, values) = prefix.followed_by(block, &keys, &values)?,
        }
        let sinks = weights.sinks.as_ref();
        let at = site(Point::Pattern);
        let seen = self.observer.wants(site(Point::Scores)) || self.observer.wants(at);
        // Gradients reach a pattern only if the values are multiplied by that very one.
        let materialised = self.model.numerics().materialised_attention || seen && queries.requires_grad();
        let mut pattern = None;
        if seen || materialised {
            let scores = attend::scores(&queries, &keys, attention, &self.masks).at(site(Point::Scores))?;
            let (scores, scores_replaced) = self.show_and_tell(site(Point::Scores), scores)?;
            let made = queries.f_kind().and_then(|kind| attend::pattern(scores, kind, sinks)).at(at)?;
            let (made, replaced) = self.show_and_tell(at, made)?;
            // Otherwise the run goes on as if nobody had looked.
            pattern = Some(made).filter(|_| materialised || replaced || scores_replaced);
        }
        let z = match pattern {
            Some(pattern) => attend::apply(&pattern, &values, attention, &self.masks),
            None => attend::attend(&queries, &keys, &values, attention, &self.masks, sinks),
        };
        let at = site(Point::Z);
        let z = z.and_then(|z| z.f_transpose(1, 2)).at(at)?;
        let z = self.show(at, z)?;
        self.attention_output(block, attention, weights, &z)
    }

    /// Queries, keys and values, `[batch, position, head, d_head]` each.
    fn projected(
        &mut self,
        block: usize,
        attention: &Attention,
        weights: &Projected,
        read: &Tensor,
    ) -> Result<[Tensor; 3], Halt> {
        let site = |point| Site::block(block, point);
        let alike = self.model.numerics().alike_rows;
        let (batch, length, d_head) = (self.batch, self.length, attention.d_head);
        match weights {
            Projected::Joined(linear) => {
                let at = site(Point::QueryKeyValue);
                let joined = linear.apply(read, alike).at(at)?;
                let joined = self.show(at, joined)?;
                if attention.projections == Projections::HeadByHead {
                    let heads = joined.f_reshape([batch, length, attention.heads, 3 * d_head]).at(at)?;
                    let part = |index: i64| heads.f_narrow(-1, index * d_head, d_head).at(at);
                    return Ok([part(0)?, part(1)?, part(2)?]);
                }
                let part = |from: i64, heads: i64| {
                    let part = joined.f_narrow(-1, from, heads * d_head);
                    part.and_then(|part| part.f_reshape([batch, length, heads, d_head])).at(at)
                };
                let (queries, keys) = (attention.query_width(), attention.key_width());
                let kv_heads = attention.kv_heads;
                Ok([part(0, attention.heads)?, part(queries, kv_heads)?, part(queries + keys, kv_heads)?])
            }
            Projected::Separate([query, key, value]) => {
                let at = site(Point::Query);
                let factor = Factor::with(read, alike).at(at)?;
                let mut project = |linear: &crate::linear::Linear, point, heads| {
                    let at = site(point);
                    let projected = linear.times(&factor).at(at)?;
                    let projected = self.show(at, projected)?;
                    projected.f_reshape([batch, length, heads, d_head]).at(at).map_err(Halt::Error)
                };
                Ok([
                    project(query, Point::Query, attention.heads)?,
                    project(key, Point::Key, attention.kv_heads)?,
                    project(value, Point::Value, attention.kv_heads)?,
                ])
            }
        }
    }

    /// One of the three, shown.
    fn split(&mut self, at: Site, heads: Tensor) -> Result<Tensor, Halt> {
        // A part of a joint projection: whoever keeps it should not keep the whole with it.
        let heads = if self.observer.wants(at) { heads.f_contiguous().at(at)? } else { heads };
        self.show(at, heads)
    }

    /// Queries and keys as they enter the scores: after their norms and the rotation.
    fn turned(
        &mut self,
        block: usize,
        attention: &Attention,
        weights: &LayerWeights,
        queries: Tensor,
        keys: Tensor,
    ) -> Result<(Tensor, Tensor), Halt> {
        let site = |point| Site::block(block, point);
        let (mut queries, mut keys) = (queries, keys);
        if let (Some(of), Some([query, key])) = (attention.query_key_norm, &weights.query_key_norm) {
            queries = self.head_norm(site(Point::QueryNorm), of.over, query, &queries)?;
            keys = self.head_norm(site(Point::KeyNorm), of.over, key, &keys)?;
        }
        if let Some(rotary) = &attention.rotary {
            let at = site(Point::RotatedQuery);
            let turned = self.rotated(rotary, &queries).at(at)?;
            queries = self.show(at, turned)?;
            let at = site(Point::RotatedKey);
            let turned = self.rotated(rotary, &keys).at(at)?;
            keys = self.show(at, turned)?;
        }
        Ok((queries, keys))
    }

    /// The norm of queries or keys, `[batch, position, head, d_head]`.
    fn head_norm(&mut self, at: Site, over: NormOver, norm: &Normer, heads: &Tensor) -> Result<Tensor, Halt> {
        match over {
            NormOver::Head => {
                let normed = self.norm(norm, heads).at(at)?;
                self.show(at, normed)
            }
            NormOver::TurnedHead => {
                let turned = self.norm(norm, heads).and_then(|normed| normed.f_transpose(1, 2)).at(at)?;
                let turned = self.show(at, turned)?;
                turned.f_transpose(1, 2).at(at).map_err(Halt::Error)
            }
            NormOver::AllHeads => {
                let normed = heads.f_flatten(2, 3).and_then(|all| self.norm(norm, &all)).at(at)?;
                let normed = self.show(at, normed)?;
                normed.f_view(heads.size().as_slice()).at(at).map_err(Halt::Error)
            }
        }
    }

    /// From what the heads say, `[batch, position, head, d_head]`, to the output of attention.
    fn attention_output(
        &mut self,
        block: usize,
        attention: &Attention,
        weights: &LayerWeights,
        z: &Tensor,
    ) -> Result<Tensor, Halt> {
        let at = Site::block(block, Point::AttentionOutput);
        let each = Site::block(block, Point::HeadOutput);
        let mut outputs = None;
        if self.observer.wants(each) {
            let made = weights.attention_output.each_head(z).at(each)?;
            let recorded = made.requires_grad();
            let (made, replaced) = self.show_and_tell(each, made)?;
            // As with the pattern: who only looks changes nothing, and gradients reach what was seen.
            outputs = Some(made).filter(|_| replaced || recorded);
        }
        let added = match outputs {
            Some(outputs) => weights.attention_output.sum_heads(&outputs),
            None => {
                let joined = z.f_reshape([self.batch, self.length, attention.query_width()]);
                joined.and_then(|joined| weights.attention_output.apply(&joined, self.model.numerics().alike_rows))
            }
        };
        self.show(at, added.at(at)?)
    }
}

#[cfg(test)]
mod tests;
