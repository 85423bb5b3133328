//! Progress bars: on a terminal, and nowhere else.

use std::{
    io::IsTerminal,
    sync::{Mutex, PoisonError},
};

use indicatif::{ProgressBar, ProgressStyle};
use transformer_utils::lowmem::Progress;

/// A bar over `length` steps, with a message.
pub fn steps(length: u64) -> ProgressBar {
    bar(length, "{bar:30} {pos}/{len} {msg} {eta} left")
}

/// A bar over `length` bytes, with a message.
pub fn bytes(length: u64) -> ProgressBar {
    bar(length, "{bar:30} {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} {msg}")
}

fn bar(length: u64, template: &str) -> ProgressBar {
    let bar = if std::io::stderr().is_terminal() { ProgressBar::new(length) } else { ProgressBar::hidden() };
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// Shows weights being placed.
#[derive(Default)]
pub struct LoadBar {
    bar: Mutex<Option<ProgressBar>>,
}

impl LoadBar {
    fn with(&self, act: impl FnOnce(&mut Option<ProgressBar>)) {
        act(&mut self.bar.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Progress for LoadBar {
    fn begin(&self, length: u64) {
        self.with(|bar| *bar = Some(bytes(length)));
    }

    fn placed(&self, name: &str, bytes: u64) {
        self.with(|bar| {
            if let Some(bar) = bar {
                bar.set_message(name.to_owned());
                bar.inc(bytes);
            }
        });
    }

    fn end(&self) {
        self.with(|bar| {
            if let Some(bar) = bar.take() {
                bar.finish_and_clear();
            }
        });
    }
}
