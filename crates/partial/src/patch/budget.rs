//! What a sweep holds in memory, estimated from shapes before anything runs.

use models::{Axis, Model, Site};

/// The sizes that memory depends on.
pub(crate) struct Costs<'a> {
    pub(crate) model: &'a Model,
    /// Rows of an input.
    pub(crate) pairs: i64,
    /// Positions of an input.
    pub(crate) length: i64,
}

impl Costs<'_> {
    fn element(&self) -> u64 {
        self.model.parts().dtype().kind().elt_size_in_bytes() as u64
    }

    /// Numbers of the value at a site for one row, of which `computed` positions are computed.
    fn numbers(&self, site: Site, computed: i64) -> u64 {
        let size = |axis: Axis, size: Option<i64>| match axis {
            Axis::Batch | Axis::OneOrBatch => 1,
            Axis::Key => self.length,
            Axis::Position | Axis::Query | Axis::Token => computed,
            _ => size.unwrap_or(1),
        };
        self.model.sites().shape(site).into_iter().map(|of| size(of.axis, of.size).max(0) as u64).product()
    }

    /// Bytes of a value kept for all rows and positions.
    pub(crate) fn kept(&self, site: Site) -> u64 {
        // Scores and others may be f32 in a run of fewer bits; they are counted as such.
        let element = if self.model.sites().info(site).values == models::Values::OfTheRun { self.element() } else { 8 };
        self.numbers(site, self.length) * self.pairs.max(0) as u64 * element
    }

    /// Bytes of keys and values of all positions in all blocks, with the room that a cache keeps.
    pub(crate) fn cache(&self) -> u64 {
        let layers = &self.model.architecture().layers;
        let of_layer = |layer: &models::Layer| {
            let attention = &layer.attention;
            let room = if attention.window.is_some() { 2 * self.length } else { self.length };
            let room = (room.max(0) as u64).next_power_of_two().max(32);
            2 * (attention.kv_heads * attention.d_head).max(0) as u64 * room
        };
        layers.iter().map(of_layer).sum::<u64>() * self.pairs.max(0) as u64 * self.element()
    }

    /// Bytes of the activations of one patched run of all rows, from position `first` on, with `sites` changed: the largest block's
    /// at its widest moment, and the logits.
    pub(crate) fn run(&self, first: i64, sites: &[Site]) -> u64 {
        let architecture = self.model.architecture();
        let computed = (self.length - first).max(1) as u64;
        let (all, width) = (self.length as u64, architecture.d_model as u64);
        let of_layer = |layer: &models::Layer| {
            let (attention, mlp) = (&layer.attention, &layer.mlp);
            let (queries, keys) =
                ((attention.heads * attention.d_head) as u64, (attention.kv_heads * attention.d_head) as u64);
            // The product as the library gives it and as a tensor, queries, keys and values apart, turned, and filled up.
            let projected = computed * (4 * queries + 6 * keys) + (all + 16) * 4 * keys + 16 * queries;
            let own_scores = attention.softcap.is_some() || layer.attention.sinks;
            let scores = if own_scores { 3 * attention.heads as u64 * (computed + 8) * all } else { 0 };
            // In a mixture, what each chosen expert reads, has inside and says.
            let chosen = mlp.experts.map_or(1, |experts| experts.chosen as u64);
            let inside = chosen * computed * (4 * mlp.d_mlp as u64 + if chosen > 1 { 3 * width } else { 0 });
            projected.max(inside) + scores
        };
        let largest = architecture.layers.iter().map(of_layer).max().unwrap_or(0);
        // The stream, its norm, what is added, and the sum.
        let block = 4 * computed * width + largest;
        // A changed value beside the one it replaces; of scores and patterns, also what comes between.
        let changed: u64 = sites.iter().map(|&site| 4 * self.numbers(site, computed as i64)).sum();
        let logits = architecture.vocabulary as u64 * (self.element() + 3 * 4);
        ((block + changed) * self.element() + logits) * self.pairs.max(0) as u64
    }
}
