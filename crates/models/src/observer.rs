//! Who watches a run, and what they may answer.

use tch::Tensor;

use crate::{Input, Site};

/// Why an observer gave up.
pub type ObserverError = Box<dyn std::error::Error + Send + Sync>;

/// What is to happen after a site has been seen.
#[derive(Debug)]
pub enum Action {
    /// Go on with the value as it is.
    Continue,
    /// End the run here; nothing after this site is computed or read.
    Stop,
    /// Go on with this value instead. It must have the shape, dtype and device of the one it replaces.
    Replace(Tensor),
}

/// Sees the value at every site as it is computed.
pub trait Observer {
    /// A run over `input` begins, after `cached` columns that come from a cache. The input has been checked; nothing has been
    /// computed.
    ///
    /// # Errors
    ///
    /// Ends the run with [`crate::Error::Observer`].
    fn begin(&mut self, _input: &Input, _cached: i64) -> Result<(), ObserverError> {
        Ok(())
    }

    /// Whether [`Observer::observe`] is to be called for the site; may be asked more than once. Some values exist only if
    /// somebody wants them: the attention scores and pattern of a block cost memory in the square of the positions, its
    /// heads' outputs one residual stream for each head.
    fn wants(&self, site: Site) -> bool;

    /// Sees the value at a site.
    ///
    /// `value` shares its storage with the run: keep a `shallow_clone`, never write into it. Several sites can share
    /// one storage.
    ///
    /// # Errors
    ///
    /// Ends the run with [`crate::Error::Observer`], which names the site.
    fn observe(&mut self, site: Site, value: &Tensor) -> Result<Action, ObserverError>;

    /// The last site that matters. The run ends there, and weights needed only after it are never placed, not even by a
    /// background thread that reads ahead. `None` means the whole model.
    fn deepest(&self) -> Option<Site> {
        None
    }
}

/// Watches nothing; the run goes to the logits.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoObserver;

impl Observer for NoObserver {
    fn wants(&self, _: Site) -> bool {
        false
    }

    fn observe(&mut self, _: Site, _: &Tensor) -> Result<Action, ObserverError> {
        Ok(Action::Continue)
    }
}
