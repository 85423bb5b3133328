//! Threads that stay awake between short pieces of work.
//!
//! A product of a matrix with one vector takes a tenth of a millisecond, and the next follows as soon as a few small operations are
//! done. Waking a thread that sleeps takes half as long on a virtual machine: these wait busily for a while before they sleep.

use std::{
    num::NonZero,
    sync::{
        Arc, Mutex, OnceLock, TryLockError,
        mpsc::{Receiver, Sender, TryRecvError, channel},
    },
    thread,
    time::{Duration, Instant},
};

/// How long a thread waits busily: several times what lies between two products of a token.
const AWAKE: Duration = Duration::from_micros(400);

/// How often a thread looks for a message before it looks at the clock, which takes longer.
const LOOKS: usize = 64;

/// Work on share `index` of some that are equal.
type Work<T> = dyn Fn(usize) -> T + Send + Sync;

struct Helper<T> {
    work: Sender<(usize, Arc<Work<T>>)>,
    done: Receiver<T>,
}

/// Threads beside the one that asks, as many as there are further processors.
pub(crate) struct Team<T> {
    helpers: OnceLock<Mutex<Vec<Helper<T>>>>,
}

impl<T: Send + 'static> Team<T> {
    pub(crate) const fn new() -> Self {
        Self { helpers: OnceLock::new() }
    }

    /// How many take part.
    pub(crate) fn size() -> usize {
        // Asked once: on Linux the answer is in files, and takes as long to read as a small product.
        static SIZE: OnceLock<usize> = OnceLock::new();
        *SIZE.get_or_init(|| thread::available_parallelism().map_or(1, NonZero::get))
    }

    /// The results of `work` for the shares `0..shares`, in their order: this thread does the first, others the rest. Where others are
    /// busy with somebody else's work, or cannot be started, this thread does all.
    pub(crate) fn share(&self, shares: usize, work: Arc<Work<T>>) -> Vec<T> {
        let helpers = self.helpers.get_or_init(|| Mutex::new((1..Self::size()).filter_map(helper).collect()));
        let helpers = match helpers.try_lock() {
            Ok(helpers) => helpers,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return (0..shares).map(|share| work(share)).collect(),
        };
        let ask = |(helper, share): (&Helper<T>, usize)| helper.work.send((share, Arc::clone(&work))).is_ok();
        let asked: Vec<bool> = helpers.iter().zip(1..shares).map(ask).collect();
        let mut results = Vec::with_capacity(shares);
        results.push(work(0));
        for share in 1..shares {
            let helper = helpers.get(share - 1).filter(|_| asked.get(share - 1) == Some(&true));
            let result = helper.and_then(|helper| awaited(&helper.done));
            results.push(result.unwrap_or_else(|| work(share)));
        }
        results
    }
}

/// A thread; `None` where the system has no more.
fn helper<T: Send + 'static>(number: usize) -> Option<Helper<T>> {
    let (work, to_do) = channel::<(usize, Arc<Work<T>>)>();
    let (finished, done) = channel();
    let started = thread::Builder::new().name(format!("products {number}")).spawn(move || {
        while let Some((share, work)) = awaited(&to_do) {
            let result = work(share);
            // What is borrowed must be given back before anybody goes on.
            drop(work);
            if finished.send(result).is_err() {
                break;
            }
        }
    });
    started.ok().map(|_| Helper { work, done })
}

/// The next message, awaited busily at first; `None` where there will be none.
fn awaited<T>(messages: &Receiver<T>) -> Option<T> {
    let start = Instant::now();
    while start.elapsed() < AWAKE {
        for _ in 0..LOOKS {
            match messages.try_recv() {
                Ok(message) => return Some(message),
                Err(TryRecvError::Disconnected) => return None,
                Err(TryRecvError::Empty) => std::hint::spin_loop(),
            }
        }
    }
    messages.recv().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_come_back_in_order_whoever_does_them() {
        static TEAM: Team<usize> = Team::new();
        for shares in [1, 2, 3, 40] {
            let results = TEAM.share(shares, Arc::new(|share| share * share));
            assert_eq!(results, (0..shares).map(|share| share * share).collect::<Vec<_>>());
        }
        // Whoever asks meanwhile is not kept waiting.
        let nested = TEAM.share(2, Arc::new(|share| TEAM.share(3, Arc::new(|share| share)).len() + share));
        assert_eq!(nested, [3, 4]);
    }
}
