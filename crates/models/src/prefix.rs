//! The first positions of a text, shared by runs that go on after them.

use tch::{TchError, Tensor};

use crate::{CacheLayout, Error, KvCache, Point, Result, Site, error::At};

/// Keys and values of a text's first positions in every block, for runs that go on after them: of many continuations of one
/// text, and of runs that start in the middle, at a block that earlier positions have been through already.
///
/// A [`KvCache`] gives it, and shares its memory. Runs read it and never change it, so that one serves many, also at the same
/// time; a run of more rows than it has reads it again and again: with `n` rows, row `i` goes on after row `i % n`. Nothing tells
/// two models of the same sizes apart: use it with the model that filled the cache.
///
/// ```
/// use models::{Config, Input, KvCache, Model, NoObserver};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let config = r#"{"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 8, "vocab_size": 20}"#;
/// # let model = Model::random(Config::from_json(config)?, 0)?;
/// let mut cache = KvCache::new();
/// model.forward_cached(&Input::from_rows(&[[1, 2, 3]])?, &mut cache, &mut NoObserver)?;
/// let prefix = cache.prefix(2)?;
/// let several = Input::from_rows(&[[3, 4], [5, 6], [7, 8]])?;
/// let logits = model.forward_after(&several, &prefix, &mut NoObserver)?.logits.ok_or("stopped")?;
/// assert_eq!(logits.size(), [3, 2, 20]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Prefix {
    layout: CacheLayout,
    /// Keys and values, `[row, head, position, d_head]`.
    blocks: Vec<(Tensor, Tensor)>,
    length: i64,
    /// Which way the keys were rotated.
    way: i64,
}

impl KvCache {
    /// The first `length` positions.
    ///
    /// # Errors
    ///
    /// [`Error::PrefixLength`] where the cache has fewer, or `length` is not positive; [`Error::PrefixForgotten`] where the window
    /// of a block has moved on, and its first positions are no longer there.
    pub fn prefix(&self, length: i64) -> Result<Prefix> {
        let positions = self.len();
        let layout = self.layout().filter(|_| (1..=positions).contains(&length));
        let layout = layout.ok_or(Error::PrefixLength { length, positions })?;
        let first = |tensor: &Tensor| tensor.f_narrow(2, 0, length);
        let mut blocks = Vec::with_capacity(layout.layers);
        for block in 0..layout.layers {
            let (keys, values, from) = self.held(block).ok_or(Error::CacheIncomplete { block, positions })?;
            if from > 0 {
                return Err(Error::PrefixForgotten { block, first: from });
            }
            let of_block = first(keys).and_then(|keys| Ok((keys, first(values)?)));
            blocks.push(of_block.at(Site::block(block, Point::Pattern))?);
        }
        Ok(Prefix { layout, blocks, length, way: self.way() })
    }
}

impl Prefix {
    /// Positions.
    pub fn len(&self) -> i64 {
        self.length
    }

    /// Never: a prefix has at least one position.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// What a run that goes on after it must have in common with it; of rows, a multiple.
    pub fn layout(&self) -> CacheLayout {
        self.layout
    }

    /// Refuses a run of another layout, or, to a text of `length` positions, of another rotation.
    pub(crate) fn check(&self, run: CacheLayout, way: i64, length: i64) -> Result<()> {
        let rows = self.layout.batch;
        if (CacheLayout { batch: rows, ..run }) != self.layout {
            return Err(Error::CacheMismatch { expected: run, found: self.layout });
        }
        if rows == 0 || run.batch % rows != 0 {
            return Err(Error::PrefixRows { rows: run.batch, prefix: rows });
        }
        if self.way == way { Ok(()) } else { Err(Error::CacheRotation { positions: self.length, length }) }
    }

    /// Keys and values of all positions, where `keys` and `values` are those of the new ones, `[batch, head, position, d_head]`.
    ///
    /// Also with a window: the sums over hidden keys are made as they are in a run of the whole text.
    pub(crate) fn followed_by(&self, block: usize, keys: &Tensor, values: &Tensor) -> Result<(Tensor, Tensor)> {
        let missing = Error::CacheIncomplete { block, positions: self.length };
        let (first_keys, first_values) = self.blocks.get(block).ok_or(missing)?;
        let both = || Ok((joined(first_keys, keys)?, joined(first_values, values)?));
        both().at(Site::block(block, Point::Pattern))
    }
}

fn joined(first: &Tensor, new: &Tensor) -> Result<Tensor, TchError> {
    let (rows, heads, length, width) = first.size4()?;
    let batch = new.size4()?.0;
    let first = match rows {
        1 => first.f_expand([batch, heads, length, width], false)?,
        rows if rows == batch => first.shallow_clone(),
        rows => first.f_repeat([batch / rows, 1, 1, 1])?,
    };
    Tensor::f_cat(&[&first, new], 2)
}
