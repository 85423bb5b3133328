//! Keys and values of positions that have been run already.

use tch::{TchError, Tensor};

use crate::{Error, Result};

/// Keys and values of every block for the positions seen so far, so that a longer text costs only its new tokens.
///
/// Starts empty and fits itself to the first run. A run that fails or is stopped leaves it as it was.
#[derive(Debug, Default)]
pub struct KvCache {
    blocks: Vec<Option<Block>>,
    length: i64,
    batch: i64,
}

#[derive(Debug)]
struct Block {
    /// `[batch, head, capacity, d_head]`
    keys: Tensor,
    values: Tensor,
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

    /// Bytes held, room for further positions included.
    pub fn bytes(&self) -> u64 {
        let size =
            |tensor: &Tensor| tensor.numel() as u64 * tensor.f_kind().map_or(0, |kind| kind.elt_size_in_bytes() as u64);
        self.blocks.iter().flatten().map(|block| size(&block.keys) + size(&block.values)).sum()
    }

    /// Readies the cache for a run over `layers` blocks and `batch` rows.
    pub(crate) fn begin(&mut self, layers: usize, batch: i64) -> Result<()> {
        if self.length == 0 {
            self.blocks = (0..layers).map(|_| None).collect();
            self.batch = batch;
        } else if (self.blocks.len(), self.batch) != (layers, batch) {
            return Err(Error::CacheMismatch {
                expected: format!("{layers} blocks and a batch of {batch}"),
                found: format!("{} blocks and a batch of {}", self.blocks.len(), self.batch),
            });
        }
        Ok(())
    }

    /// Adds keys and values (`[batch, head, position, d_head]`) of new positions and returns those of all positions.
    /// They count only after [`KvCache::commit`].
    pub(crate) fn extend(
        &mut self,
        block: usize,
        keys: &Tensor,
        values: &Tensor,
    ) -> Result<(Tensor, Tensor), TchError> {
        let (start, new) = (self.length, keys.size4()?.2);
        let end = start + new;
        let Some(slot) = self.blocks.get_mut(block) else {
            return Err(TchError::Shape(format!("the cache has no block {block}")));
        };
        let enough = slot.as_ref().is_some_and(|held| held.keys.size().get(2).is_some_and(|&capacity| capacity >= end));
        if !enough {
            let capacity = (end as u64).next_power_of_two().max(32) as i64;
            *slot = Some(Block {
                keys: grown(slot.as_ref().map(|held| &held.keys), keys, start, capacity)?,
                values: grown(slot.as_ref().map(|held| &held.values), values, start, capacity)?,
            });
        }
        let Some(held) = slot else {
            return Err(TchError::Shape(format!("the cache has no block {block}")));
        };
        held.keys.f_narrow(2, start, new)?.f_copy_(keys)?;
        held.values.f_narrow(2, start, new)?.f_copy_(values)?;
        Ok((held.keys.f_narrow(2, 0, end)?, held.values.f_narrow(2, 0, end)?))
    }

    pub(crate) fn commit(&mut self, new: i64) {
        self.length += new;
    }
}

fn grown(held: Option<&Tensor>, like: &Tensor, length: i64, capacity: i64) -> Result<Tensor, TchError> {
    let (batch, heads, _, width) = like.size4()?;
    let room = Tensor::f_empty([batch, heads, capacity, width], (like.f_kind()?, like.device()))?;
    if let Some(held) = held {
        room.f_narrow(2, 0, length)?.f_copy_(&held.f_narrow(2, 0, length)?)?;
    }
    Ok(room)
}
