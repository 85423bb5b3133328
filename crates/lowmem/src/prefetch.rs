//! Placing the next part while the current one computes.

use std::{
    sync::mpsc,
    thread::{self, JoinHandle},
};

use tch::Tensor;

use crate::Result;

/// One thread that places one part at a time. It stays, because libtorch keeps a team of helpers for every thread that
/// computes, and a new thread would need a new team.
pub(crate) struct Prefetcher {
    /// None only while it is being dropped.
    requests: Option<mpsc::Sender<usize>>,
    answers: mpsc::Receiver<Result<Vec<Tensor>>>,
    /// The part that was begun and not taken.
    pending: Option<usize>,
    worker: Option<JoinHandle<()>>,
}

impl Prefetcher {
    /// A thread that calls `place` with the number of each part that is begun.
    pub(crate) fn new(place: impl Fn(usize) -> Result<Vec<Tensor>> + Send + 'static) -> Self {
        let (requests, requested) = mpsc::channel();
        let (answer, answers) = mpsc::channel();
        let worker = thread::spawn(move || {
            for part in requested {
                if answer.send(place(part)).is_err() {
                    return;
                }
            }
        });
        Self { requests: Some(requests), answers, pending: None, worker: Some(worker) }
    }

    /// Begins to place `part`. What was begun before must have been taken.
    pub(crate) fn begin(&mut self, part: usize) {
        // Where the thread has died, the part is placed when it is asked for.
        if self.requests.as_ref().is_some_and(|requests| requests.send(part).is_ok()) {
            self.pending = Some(part);
        }
    }

    /// Waits for the part that was begun.
    pub(crate) fn take(&mut self) -> Option<(usize, Result<Vec<Tensor>>)> {
        let part = self.pending.take()?;
        self.answers.recv().ok().map(|tensors| (part, tensors))
    }
}

impl Drop for Prefetcher {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(worker) = self.worker.take() {
            // What it was placing is dropped with the channel.
            let _ = worker.join();
        }
    }
}
