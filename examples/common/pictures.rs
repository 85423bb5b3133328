//! Files of pictures and tables: what a path's extension asks for, and further pages beside the first.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
};

use anyhow::{Result, bail};
use clap::Args;
use transformer_utils::lens::{picture::Style, terminal::TerminalStyle};

use super::{output, terminal};

/// How it is drawn.
#[derive(Args)]
pub struct DrawFlags {
    /// Put the input on top.
    #[arg(long)]
    pub top_down: bool,

    /// Light on dark pictures.
    #[arg(long)]
    dark: bool,

    /// A title in place of the model's name.
    #[arg(long)]
    title: Option<String>,

    /// Nothing on the terminal.
    #[arg(long)]
    pub quiet: bool,
}

impl DrawFlags {
    /// For files.
    pub fn style(&self) -> Style {
        Style::default().title(self.title.clone()).top_down(self.top_down).dark(self.dark)
    }

    /// For the terminal.
    pub fn terminal(&self) -> TerminalStyle {
        terminal::style().title(self.title.clone()).top_down(self.top_down)
    }
}

/// What a file holds, by its extension.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Png,
    Svg,
    Html,
    Json,
    Csv,
}

impl Format {
    fn of(path: &Path) -> Result<Self> {
        let extension = path.extension().and_then(OsStr::to_str).unwrap_or_default().to_ascii_lowercase();
        Ok(match extension.as_str() {
            "png" => Self::Png,
            "svg" => Self::Svg,
            "html" | "htm" => Self::Html,
            "json" => Self::Json,
            "csv" => Self::Csv,
            _ => bail!("{}: unknown extension; known: .png, .svg, .html, .json, .csv", path.display()),
        })
    }
}

/// The formats of files that can be written, checked before any work is done for them.
///
/// # Errors
///
/// An unknown extension; a folder that is not there.
pub fn outputs(paths: &[PathBuf]) -> Result<Vec<(PathBuf, Format)>> {
    let check = |path: &PathBuf| {
        let format = Format::of(path)?;
        output::check_writable(path)?;
        Ok((path.clone(), format))
    };
    paths.iter().map(check).collect()
}

/// `lens.png` to `lens.page-2.png`.
pub fn numbered(path: &Path, what: &str, number: usize) -> PathBuf {
    let extension = path.extension().unwrap_or_default().to_string_lossy();
    path.with_extension(format!("{what}-{}.{extension}", number + 1))
}

/// Pages of text as bytes.
pub fn text_pages(pages: Vec<String>) -> Vec<Vec<u8>> {
    pages.into_iter().map(String::into_bytes).collect()
}

/// Writes the first page to `path` and the others beside it, and says so.
///
/// # Errors
///
/// Files that cannot be written.
pub fn write_pages(path: &Path, pages: &[Vec<u8>]) -> Result<()> {
    for (page, bytes) in pages.iter().enumerate() {
        let path = if page == 0 { path.to_owned() } else { numbered(path, "page", page) };
        output::write(&path, bytes)?;
        eprintln!("wrote {}", path.display());
    }
    Ok(())
}
