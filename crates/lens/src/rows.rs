//! Which places of a model become rows.

use models::{Architecture, Point, Residual, Site};

use crate::{
    Error,
    decoder::{Decoder, Step},
    error::Result,
};

/// Which places become rows, as `make_layer_names` of transformer-utils has it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RowOptions {
    /// Every how many blocks there is a row.
    pub block_step: usize,
    /// Whether the stream that enters the first block is a row.
    pub input: bool,
    /// Whether the last block is a row even where the step would skip it.
    pub force_output: bool,
    /// Whether the stream after a block's attention is a row before the block's own (`h.i.attn`).
    pub subblocks: bool,
    /// Whether what attention and MLP add to the stream are rows too (`h.i.attn.added`, `h.i.mlp.added`).
    pub contributions: bool,
    /// Whether what each head adds to the stream is a row (`h.i.attn.0.added`), without the bias of the output projection, which is
    /// added once for all heads. Not in families with a norm between attention and the stream, which heads cannot pass one by one.
    pub heads: bool,
}

impl Default for RowOptions {
    fn default() -> Self {
        Self { block_step: 1, input: true, force_output: true, subblocks: false, contributions: false, heads: false }
    }
}

impl RowOptions {
    /// With another choice of [`RowOptions::block_step`].
    pub fn block_step(mut self, block_step: usize) -> Self {
        self.block_step = block_step;
        self
    }

    /// With another choice of [`RowOptions::input`].
    pub fn input(mut self, input: bool) -> Self {
        self.input = input;
        self
    }

    /// With another choice of [`RowOptions::force_output`].
    pub fn force_output(mut self, force_output: bool) -> Self {
        self.force_output = force_output;
        self
    }

    /// With another choice of [`RowOptions::subblocks`].
    pub fn subblocks(mut self, subblocks: bool) -> Self {
        self.subblocks = subblocks;
        self
    }

    /// With another choice of [`RowOptions::contributions`].
    pub fn contributions(mut self, contributions: bool) -> Self {
        self.contributions = contributions;
        self
    }

    /// With another choice of [`RowOptions::heads`].
    pub fn heads(mut self, heads: bool) -> Self {
        self.heads = heads;
        self
    }
}

/// One row: its name, and where its stream is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RowPlan {
    pub(crate) name: String,
    pub(crate) site: Site,
    /// Which head of the site's value is the row's stream, where it has heads.
    pub(crate) head: Option<i64>,
}

impl RowOptions {
    /// The rows in the order in which they run, without those that are part of the decoder.
    pub(crate) fn plan(&self, architecture: &Architecture, decoder: &Decoder) -> Result<Vec<RowPlan>> {
        if self.block_step == 0 {
            return Err(Error::BlockStep);
        }
        let layers = architecture.layers.len();
        let parallel = architecture.layers.iter().position(|layer| layer.residual == Residual::Parallel);
        if let Some(block) = parallel.filter(|_| self.subblocks) {
            return Err(Error::ParallelBlock { block });
        }
        let normed = |layer: &models::Layer| layer.attention_norms.after.or(layer.attention_norms.stream).is_some();
        if let Some(block) = architecture.layers.iter().position(normed).filter(|_| self.heads) {
            return Err(Error::HeadsBehindNorm { block });
        }
        let mut rows = Vec::new();
        if self.input {
            rows.push(RowPlan { name: "input".into(), site: Site::INPUT, head: None });
        }
        let last = layers.saturating_sub(1);
        let stepped = |block: &usize| block.is_multiple_of(self.block_step) || (self.force_output && *block == last);
        for (block, layer) in architecture.layers.iter().enumerate().filter(|(block, _)| stepped(block)) {
            let row = |suffix: &str, point| {
                let site = Site::block(block, point);
                RowPlan { name: format!("h.{block}{suffix}"), site, head: None }
            };
            let whole = decoder.steps.contains(&Step::Block(block));
            let attention = whole || decoder.steps.contains(&Step::Attention(block));
            let mlp = whole || decoder.steps.contains(&Step::Mlp(block));
            if self.heads && !attention {
                let of = |head| RowPlan { head: Some(head), ..row(&format!(".attn.{head}.added"), Point::HeadOutput) };
                rows.extend((0..layer.attention.heads).map(of));
            }
            if self.contributions && !attention {
                rows.push(row(".attn.added", layer.attention_added()));
            }
            if self.subblocks && !attention {
                rows.push(row(".attn", Point::ResidMid));
            }
            if self.contributions && !mlp {
                rows.push(row(".mlp.added", layer.mlp_added()));
            }
            // A decoder that holds a part of the block holds what comes after that part.
            if !attention && !mlp {
                rows.push(row("", Point::Output));
            }
        }
        if rows.is_empty() { Err(Error::NoRows) } else { Ok(rows) }
    }
}
