//! Texts to train on, and the ends of them that are held out.

use std::path::PathBuf;

use anyhow::{Context, Result};

/// All texts, each cut into a training part and a held-out end of the fraction `held_out`.
pub fn split(paths: &[PathBuf], held_out: f64) -> Result<(String, String)> {
    let (mut train, mut rest) = (String::new(), String::new());
    for path in paths {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut cut = (text.len() as f64 * (1.0 - held_out)) as usize;
        while !text.is_char_boundary(cut) {
            cut += 1;
        }
        // Between paragraphs, so that no sentence is in both; between lines or words where paragraphs are too long for that.
        let wanted = text.len() - cut;
        let after = |end: &str| text[cut..].find(end).map(|offset| cut + offset + end.len());
        let ends = ["\n\n", "\n", " "].into_iter().filter_map(after);
        cut = ends.into_iter().find(|end| text.len() - end >= wanted / 2).unwrap_or(cut);
        train.push_str(&text[..cut]);
        rest.push_str(&text[cut..]);
    }
    Ok((train, rest))
}
