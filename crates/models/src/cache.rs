//! Keys and values of positions that have been run already.

use std::fmt;

use tch::{Device, Kind, TchError, Tensor};

use crate::{Error, Point, Result, Site, error::At};

/// What a cache has in common with every run that uses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheLayout {
    /// Blocks of the model.
    pub layers: usize,
    /// Rows of the batch.
    pub batch: i64,
    /// Key heads of a block.
    pub heads: i64,
    /// Width of one head.
    pub d_head: i64,
    /// Dtype of keys and values.
    pub kind: Kind,
    /// Where they lie.
    pub device: Device,
}

impl fmt::Display for CacheLayout {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { layers, batch, heads, d_head, kind, device } = self;
        write!(
            formatter,
            "{layers} blocks with {heads} heads of width {d_head} and {batch} rows, {kind:?} on {device:?}"
        )
    }
}

/// Keys and values of every block for the positions seen so far, so that a longer text costs only its new tokens.
///
/// Starts empty and fits itself to the first run; later runs must have the same [`CacheLayout`]. A run that fails or is
/// stopped leaves it as it was. Nothing tells two models of the same sizes apart: use a cache with the model that filled it.
#[derive(Debug, Default)]
pub struct KvCache {
    layout: Option<CacheLayout>,
    blocks: Vec<Option<Block>>,
    length: i64,
    /// Which way its keys were rotated.
    way: i64,
}

#[derive(Debug)]
struct Block {
    /// `[batch, head, capacity, d_head]`
    keys: Tensor,
    values: Tensor,
    /// The position that the first of them belongs to: those before are out of sight.
    first: i64,
}

impl KvCache {
    /// An empty cache.
    pub fn new() -> Self {
        Self::default()
    }

    /// Positions in the cache.
    pub fn len(&self) -> i64 {
        self.length
    }

    /// Whether no position has been run.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Refuses a run, to a text of `length` positions, that rotates its keys otherwise than those it holds.
    pub(crate) fn turn(&mut self, way: i64, length: i64) -> Result<()> {
        if self.is_empty() {
            self.way = way;
        }
        if self.way == way { Ok(()) } else { Err(Error::CacheRotation { positions: self.length, length }) }
    }

    /// Bytes held, room for further positions included.
    pub fn bytes(&self) -> u64 {
        let size =
            |tensor: &Tensor| tensor.numel() as u64 * tensor.f_kind().map_or(0, |kind| kind.elt_size_in_bytes() as u64);
        self.blocks.iter().flatten().map(|block| size(&block.keys) + size(&block.values)).sum()
    }

    /// What the runs that use it must have in common; `None` before the first.
    pub fn layout(&self) -> Option<CacheLayout> {
        self.layout
    }

    /// Keys and values of a block, `[batch, head, capacity, d_head]`, and the position that the first of them belongs to.
    pub(crate) fn held(&self, block: usize) -> Option<(&Tensor, &Tensor, i64)> {
        let held = self.blocks.get(block)?.as_ref()?;
        Some((&held.keys, &held.values, held.first))
    }

    /// Which way its keys were rotated.
    pub(crate) fn way(&self) -> i64 {
        self.way
    }

    /// Readies the cache for a run of this layout.
    pub(crate) fn begin(&mut self, layout: CacheLayout) -> Result<()> {
        match self.layout.filter(|_| self.length > 0) {
            Some(found) if found != layout => Err(Error::CacheMismatch { expected: layout, found }),
            Some(_) => Ok(()),
            None => {
                self.blocks = (0..layout.layers).map(|_| None).collect();
                self.layout = Some(layout);
                Ok(())
            }
        }
    }

    /// Adds keys and values (`[batch, head, position, d_head]`) of new positions and returns those of all positions that the
    /// new ones may see: with a window, of the last ones. They count only after [`KvCache::commit`].
    pub(crate) fn extend(
        &mut self,
        block: usize,
        keys: &Tensor,
        values: &Tensor,
        window: Option<i64>,
    ) -> Result<(Tensor, Tensor)> {
        let start = self.length;
        let slot = self.blocks.get_mut(block);
        let slot = slot.filter(|slot| start == 0 || slot.is_some());
        let slot = slot.ok_or(Error::CacheIncomplete { block, positions: start })?;
        extended(slot, keys, values, start, window).at(Site::block(block, Point::Pattern))
    }

    pub(crate) fn commit(&mut self, new: i64) {
        self.length += new;
    }
}

/// Keys and values of the first `start` positions, as far as the new ones see them, and the new ones, which are put behind.
fn extended(
    slot: &mut Option<Block>,
    keys: &Tensor,
    values: &Tensor,
    start: i64,
    window: Option<i64>,
) -> Result<(Tensor, Tensor), TchError> {
    let new = keys.size4()?.2;
    let end = start + new;
    // The first new position sees itself and `window - 1` before it.
    let needed = window.map_or(0, |window| (start - window + 1).max(0));
    let enough = |held: &Block| {
        let capacity = held.keys.size().get(2).copied().unwrap_or(0);
        held.first <= needed && end - held.first <= capacity
    };
    let held = match slot {
        Some(held) if enough(held) => held,
        _ => {
            // With a window, room for as many again, so that what is out of sight is dropped once in a while.
            let room = if window.is_some() { (end - needed).saturating_mul(2) } else { end };
            let capacity = (room as u64).next_power_of_two().max(32) as i64;
            let old = slot.as_ref().map(|held| (held, held.first));
            let part = |tensor: fn(&Block) -> &Tensor| old.map(|(held, first)| (tensor(held), needed - first));
            let keys = grown(part(|held| &held.keys), keys, start - needed, capacity)?;
            let values = grown(part(|held| &held.values), values, start - needed, capacity)?;
            slot.insert(Block { keys, values, first: needed })
        }
    };
    held.keys.f_narrow(2, start - held.first, new)?.f_copy_(keys)?;
    held.values.f_narrow(2, start - held.first, new)?.f_copy_(values)?;
    let seen = |tensor: &Tensor| tensor.f_narrow(2, needed - held.first, end - needed);
    Ok((seen(&held.keys)?, seen(&held.values)?))
}

/// Room for `capacity` positions that begins with `length` of those held, from a place on.
fn grown(held: Option<(&Tensor, i64)>, like: &Tensor, length: i64, capacity: i64) -> Result<Tensor, TchError> {
    let (batch, heads, _, width) = like.size4()?;
    let room = Tensor::f_empty([batch, heads, capacity, width], (like.f_kind()?, like.device()))?;
    if let Some((held, from)) = held {
        room.f_narrow(2, 0, length)?.f_copy_(&held.f_narrow(2, from, length)?)?;
    }
    Ok(room)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_that_was_never_filled_is_an_error() {
        let layout = CacheLayout { layers: 2, batch: 1, heads: 1, d_head: 4, kind: Kind::Float, device: Device::Cpu };
        let new = |length| Tensor::zeros([1, 1, length, 4], (Kind::Float, Device::Cpu));
        let mut cache = KvCache::new();
        cache.begin(layout).unwrap();
        assert_eq!(cache.extend(0, &new(3), &new(3), None).unwrap().0.size(), [1, 1, 3, 4]);
        cache.commit(3);
        assert_eq!(cache.extend(0, &new(2), &new(2), None).unwrap().0.size(), [1, 1, 5, 4]);
        let missing = cache.extend(1, &new(2), &new(2), None).unwrap_err();
        assert!(matches!(missing, Error::CacheIncomplete { block: 1, positions: 3 }), "{missing}");
        assert!(matches!(cache.extend(2, &new(2), &new(2), None), Err(Error::CacheIncomplete { block: 2, .. })));
    }

    #[test]
    fn a_window_keeps_what_can_still_be_seen() {
        let layout = CacheLayout { layers: 1, batch: 1, heads: 2, d_head: 1, kind: Kind::Float, device: Device::Cpu };
        let at = |positions: std::ops::Range<i64>| {
            let row = Tensor::arange_start(positions.start, positions.end, (Kind::Float, Device::Cpu));
            row.view([1, 1, -1, 1]).expand([1, 2, positions.end - positions.start, 1], false)
        };
        let mut cache = KvCache::new();
        cache.begin(layout).unwrap();
        let mut length = 0;
        let mut most = 0;
        for new in [5, 1, 1, 1, 7, 3].into_iter().chain(std::iter::repeat_n(1, 300)) {
            let (keys, values) = (at(length..length + new), at(length..length + new));
            let (keys, values) = cache.extend(0, &keys, &values, Some(4)).unwrap();
            let seen = at((length - 3).max(0)..length + new);
            assert!(keys.equal(&seen) && values.equal(&seen), "{length} and {new}");
            cache.commit(new);
            length += new;
            most = most.max(cache.bytes());
        }
        // Two tensors of two heads, 32 positions and 4 bytes.
        assert_eq!((cache.len(), most), (318, 512));
    }
}
