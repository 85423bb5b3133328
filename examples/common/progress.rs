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

/// Shows files being fetched and weights being placed. They come one after the other, or a file while weights are placed;
/// the file is then what people wait for.
#[derive(Default)]
pub struct LoadBar {
    bar: Mutex<Option<ProgressBar>>,
    download: Mutex<Option<ProgressBar>>,
}

fn with(bar: &Mutex<Option<ProgressBar>>, act: impl FnOnce(&mut Option<ProgressBar>)) {
    act(&mut bar.lock().unwrap_or_else(PoisonError::into_inner));
}

fn finish(bar: &mut Option<ProgressBar>) {
    if let Some(bar) = bar.take() {
        bar.finish_and_clear();
    }
}

impl Progress for LoadBar {
    fn download_begin(&self, file: &str, length: u64, already: u64) {
        with(&self.download, |bar| {
            finish(bar);
            let new = bytes(length).with_position(already);
            new.reset_eta();
            new.set_message(file.to_owned());
            *bar = Some(new);
        });
    }

    fn downloaded(&self, _: &str, bytes: u64) {
        with(&self.download, |bar| {
            if let Some(bar) = bar {
                bar.inc(bytes);
            }
        });
    }

    fn download_end(&self, _: &str) {
        with(&self.download, finish);
    }

    fn begin(&self, length: u64) {
        with(&self.bar, |bar| *bar = Some(bytes(length)));
    }

    fn placed(&self, name: &str, bytes: u64) {
        with(&self.bar, |bar| {
            if let Some(bar) = bar {
                bar.set_message(name.to_owned());
                bar.inc(bytes);
            }
        });
    }

    fn end(&self) {
        with(&self.bar, finish);
    }
}
