//! The hash by which the tuned-lens package knows a model's unembedding.

use sha2::{Digest, Sha256};
use tch::{Device, Kind, TchError, Tensor};

/// Rows and columns at each end of a matrix that NumPy prints of a large one.
const EDGE: i64 = 3;
/// Elements from which on NumPy prints the ends only.
const LARGE: i64 = 1000;

/// The rows, or columns, that NumPy prints of `size` of them.
pub(crate) fn shown(size: i64) -> Vec<i64> {
    if size > 2 * EDGE { (0..EDGE).chain(size - EDGE..size).collect() } else { (0..size).collect() }
}

/// SHA-256, in hexadecimal, of what NumPy prints of a large matrix of `rows` rows with one digit after the point, from the
/// rows that are [`shown`], `[shown, d_model]`. `None` for a small matrix, which NumPy would print whole, over several
/// lines.
///
/// As `tensor_hash` of the tuned-lens package; the layout is that of `numpy.array_str(matrix, precision=1)`.
pub(crate) fn unembedding_hash(shown_rows: &Tensor, rows: i64) -> Result<Option<String>, TchError> {
    let columns = shown_rows.size2()?.1;
    if rows.saturating_mul(columns) <= LARGE {
        return Ok(None);
    }
    let shown_columns = shown(columns);
    let places = Tensor::f_from_slice(&shown_columns)?.f_to_device(shown_rows.device())?;
    let corners = shown_rows.f_index_select(1, &places)?;
    let corners = corners.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?.f_contiguous()?;
    let mut values = vec![0.0_f32; corners.numel()];
    corners.f_copy_data(&mut values, corners.numel())?;
    let gaps = (rows > 2 * EDGE, columns > 2 * EDGE);
    let text = printed(&values, shown_columns.len(), gaps);
    Ok(Some(Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()))
}

/// The values as NumPy prints a matrix of `width` shown columns, with `...` where rows or columns are left out.
fn printed(values: &[f32], width: usize, (row_gap, column_gap): (bool, bool)) -> String {
    let cells = cells(values);
    let edge = EDGE as usize;
    let mut lines = Vec::new();
    for (index, row) in cells.chunks(width.max(1)).enumerate() {
        if row_gap && index == edge {
            lines.push("...".to_owned());
        }
        let mut words: Vec<&str> = row.iter().map(String::as_str).collect();
        if column_gap {
            words.insert(edge, "...");
        }
        lines.push(format!("[{}]", words.join(" ")));
    }
    format!("[{}]", lines.join("\n "))
}

/// The values with at most one digit after the point, all equally wide, in the notation that NumPy chooses for them.
fn cells(values: &[f32]) -> Vec<String> {
    let magnitudes = values.iter().map(|value| value.abs()).filter(|value| *value != 0.0);
    let (least, most) =
        magnitudes.fold((f32::INFINITY, 0.0_f32), |(least, most), value| (least.min(value), most.max(value)));
    let scientific = most >= 1e8 || (most > 0.0 && (least < 1e-4 || f64::from(most) / f64::from(least) > 1000.0));
    let cells: Vec<String> = if scientific { scientific_cells(values) } else { plain_cells(values) };
    let width = cells.iter().map(String::len).max().unwrap_or(0);
    // Only the left is still uneven.
    cells.into_iter().map(|cell| format!("{cell:>width$}")).collect()
}

fn plain_cells(values: &[f32]) -> Vec<String> {
    // "0.0" is printed "0."; where some have a digit after the point, the others get a space.
    let cut: Vec<String> = values
        .iter()
        .map(|value| {
            let text = format!("{value:.1}");
            text.strip_suffix('0').map_or(text.clone(), str::to_owned)
        })
        .collect();
    let digits = cut.iter().any(|text| !text.ends_with('.'));
    let pad = |text: String| if digits && text.ends_with('.') { text + " " } else { text };
    cut.into_iter().map(pad).collect()
}

fn scientific_cells(values: &[f32]) -> Vec<String> {
    // Rust writes 1.2e-1 and 3e0; NumPy signs exponents and gives them two digits.
    let split = |value: &f32| -> (String, i32) {
        let text = format!("{value:.1e}");
        let (number, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        (number.to_owned(), exponent.parse().unwrap_or(0))
    };
    let parts: Vec<(String, i32)> = values.iter().map(split).collect();
    let digits = parts.iter().any(|(number, _)| !number.ends_with('0'));
    let cell = |(number, exponent): &(String, i32)| {
        let number = if digits { number.as_str() } else { number.strip_suffix('0').unwrap_or(number) };
        let sign = if *exponent < 0 { '-' } else { '+' };
        format!("{number}e{sign}{:02}", exponent.abs())
    };
    parts.iter().map(cell).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers of many magnitudes; in every third matrix many zeros and ties.
    fn matrix(seed: u64) -> Tensor {
        let (rows, columns) = (30 + seed % 5, 40);
        let scale = 10.0_f64.powi((seed % 11) as i32 - 6);
        let value = |index: u64| {
            let mut x = (index + seed * 1_000_003 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            x ^= x >> 27;
            let unit = (x >> 40) as f64 / f64::from(1 << 24) - 0.5;
            let unit = if seed.is_multiple_of(3) { (unit * 8.0).round_ties_even() / 8.0 } else { unit };
            (unit * scale) as f32
        };
        let values: Vec<f32> = (0..rows * columns).map(value).collect();
        Tensor::from_slice(&values).view([rows as i64, columns as i64])
    }

    /// Expected: what the tuned-lens package's `tensor_hash` gives for the same 400 matrices (NumPy 2.4).
    #[test]
    fn the_hash_is_that_of_the_tuned_lens_package() {
        let hash = |seed| {
            let matrix = matrix(seed);
            let rows = matrix.size2().unwrap().0;
            unembedding_hash(&matrix.index_select(0, &Tensor::from_slice(&shown(rows))), rows).unwrap().unwrap()
        };
        assert_eq!(hash(7).get(..16), Some("5cd472cac33200a0"));
        assert_eq!(hash(10).get(..16), Some("218da6cb039f8d75"));
        let all: String = (0..400).map(hash).collect();
        let whole: String = Sha256::digest(all).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(whole, "5f73a0bb91828847351a5f2443739d53b2a09b69d497eda54f01cc9545a3b092");
    }

    #[test]
    fn a_small_matrix_has_none() {
        assert_eq!(unembedding_hash(&Tensor::zeros([6, 50], (Kind::Float, Device::Cpu)), 20).unwrap(), None);
    }
}
