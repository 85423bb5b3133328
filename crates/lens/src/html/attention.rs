//! The page of attention patterns.

use minijinja::context;
use serde::Serialize;

use super::Parts;
use super::data::{TickData, stops, ticks};
use crate::attention::{Attention, HeadPattern};
use crate::picture::{PictureError, Style};
use crate::scale::Scale;
use crate::table_error::TableError;
use crate::token_text::{display_label, display_token};

/// What the script finds in the page.
#[derive(Serialize)]
struct Data {
    tokens: Vec<String>,
    transform: &'static str,
    low: f64,
    high: f64,
    stops: Vec<String>,
    ticks: Vec<TickData>,
    heads: Vec<HeadData>,
}

#[derive(Serialize)]
struct HeadData {
    name: String,
    /// For each query its weights, up to its own, in thousandths: more than is shown, and shorter than numbers in full.
    pattern: Vec<Vec<u16>>,
}

/// Draws attention patterns as an interactive HTML page in one file: all heads small, one of them large, and the text, in which a
/// token shows where the head looks from it, or from where it is looked at.
///
/// Of the style, `title` and `dark` are used, as [`page`](super::page) does. The page needs no network and forbids itself any.
///
/// # Errors
///
/// [`PictureError::Table`] for patterns that are not as large as the input, [`PictureError::NoMeasure`] where there is no head.
pub fn attention(attention: &Attention, style: &Style) -> Result<String, PictureError> {
    attention.check()?;
    if attention.heads.is_empty() {
        return Err(PictureError::NoMeasure);
    }
    let title = display_label(style.title.as_deref().unwrap_or(&attention.model));
    let patterns = attention.heads.iter().flat_map(|head| &head.pattern).flatten();
    let weights: Vec<f64> = patterns.map(|weight| f64::from(*weight)).collect();
    let scale = Scale::upwards([&weights[..]]);
    let (transform, low, high) = scale.range();
    let data = Data {
        tokens: attention.tokens.iter().map(|token| display_token(&token.text)).collect(),
        transform: transform.name(),
        low,
        high,
        stops: stops(&scale),
        ticks: ticks(&scale),
        heads: attention.heads.iter().map(head).collect(),
    };
    let parts = Parts {
        html: include_str!("../../html/attention.html"),
        css: &[include_str!("../../html/base.css"), include_str!("../../html/attention.css")],
        scripts: &[include_str!("../../html/base.js"), include_str!("../../html/attention.js")],
    };
    let data = serde_json::to_string(&data).map_err(TableError::from)?;
    parts.page(style, &data, context! { title, kind => "attention" })
}

fn head(head: &HeadPattern) -> HeadData {
    let thousandths = |weight: &f32| (weight.clamp(0.0, 1.0) * 1000.0).round() as u16;
    let query = |(at, weights): (usize, &Vec<f32>)| weights.iter().take(at + 1).map(thousandths).collect();
    HeadData { name: head.name(), pattern: head.pattern.iter().enumerate().map(query).collect() }
}
