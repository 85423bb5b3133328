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

/// The `index`-th number of the sequence that `seed` begins (SplitMix64; Steele et al., 2014): a resumed run draws the
/// same batches.
pub fn random(seed: u64, index: u64) -> u64 {
    let mut x = seed.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}
