//! A page that explains itself: one file, no network, everything in it can be reached by mouse, keyboard and screen
//! reader.

use std::collections::HashMap;

use minijinja::{Environment, context, value::Value};
use serde::Serialize;

use crate::measure::Measure;
use crate::picture::{PictureError, Style};
use crate::table::Table;
use crate::table_error::TableError;
use crate::token_text::{display_label, display_token};
use crate::view::View;

/// Enough stops that the colours between them differ by less than can be seen.
const STOPS: u32 = 33;

/// What the script finds in the page.
#[derive(Serialize)]
struct Data {
    top_down: bool,
    comparison: bool,
    max_columns: usize,
    measures: Vec<MeasureData>,
    /// Every text that is shown, once.
    texts: Vec<String>,
    inputs: Vec<Input>,
    predictions: Vec<PredictionData>,
    rows: Vec<RowData>,
}

#[derive(Serialize)]
struct MeasureData {
    name: String,
    heading: String,
    unit: &'static str,
    transform: &'static str,
    low: f64,
    high: f64,
    stops: Vec<String>,
    ticks: Vec<TickData>,
}

#[derive(Serialize)]
struct TickData {
    fraction: f64,
    label: String,
}

#[derive(Serialize)]
struct Input {
    position: usize,
    text: usize,
}

#[derive(Serialize)]
struct PredictionData {
    text: usize,
    right: bool,
}

#[derive(Serialize)]
struct RowData {
    name: String,
    ids: Vec<i64>,
    top1: Vec<usize>,
    /// Of a comparison: what stood in each cell that changed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    before: Vec<Option<usize>>,
    /// For each measure; single precision is more than is shown, and half as long. Not finite is `null`.
    values: Vec<Vec<Option<f32>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_k: Option<Vec<Best>>,
}

/// The likeliest tokens of a cell: the number of each text, and its probability.
type Best = Vec<(usize, Option<f32>)>;

/// Gives every text that is shown a number.
#[derive(Default)]
struct Texts {
    numbers: HashMap<String, usize>,
    texts: Vec<String>,
}

impl Texts {
    fn number(&mut self, text: &str) -> usize {
        if let Some(number) = self.numbers.get(text) {
            return *number;
        }
        let number = self.texts.len();
        self.numbers.insert(text.to_owned(), number);
        self.texts.push(display_token(text));
        number
    }
}

/// Draws the table, with all its measures, as an interactive HTML page in one file.
///
/// Of the style, `cell_width`, `cell_height` and `pixel_ratio` are not used; `dark` forces what otherwise follows the
/// reader's settings. The page needs no network and forbids itself any.
///
/// # Errors
///
/// [`PictureError::Table`] for a table that does not pass [`Table::check`].
pub fn page<'a>(view: impl Into<View<'a>>, style: &Style) -> Result<String, PictureError> {
    let view = view.into();
    view.table().check()?;
    let title = view.title(style.title.as_deref());
    let description = format!("What each row of {title} predicts at each position");
    let data = serde_json::to_string(&data(view, style)?).map_err(TableError::from)?;
    let mut environment = Environment::new();
    environment.add_template("page.html", include_str!("../html/page.html"))?;
    let page = environment.get_template("page.html")?.render(context! {
        title,
        description,
        comparison => view.comparison().is_some(),
        theme => if style.dark { "dark" } else { "auto" },
        css => Value::from_safe_string(include_str!("../html/page.css").into()),
        script => Value::from_safe_string(include_str!("../html/page.js").into()),
        data => Value::from_safe_string(harmless(&data)),
    })?;
    Ok(page)
}

/// JSON that cannot end the element it stands in.
fn harmless(json: &str) -> String {
    json.replace('<', "\\u003c")
        .replace('>', "\\u003e")
        .replace('&', "\\u0026")
        .replace('\u{2028}', "\\u2028")
        .replace('\u{2029}', "\\u2029")
}

fn data(view: View<'_>, style: &Style) -> Result<Data, PictureError> {
    let table = view.table();
    let mut texts = Texts::default();
    let inputs = table
        .positions
        .iter()
        .zip(table.inputs())
        .map(|(&position, token)| Input { position, text: texts.number(&token.text) })
        .collect();
    let predictions = table
        .predictions()
        .into_iter()
        .map(|prediction| PredictionData {
            text: texts.number(&prediction.text),
            right: prediction.right == Some(true),
        })
        .collect();
    let rows = (0..table.rows.len()).filter_map(|row| row_data(view, row, &mut texts)).collect();
    let measures =
        table.measures.iter().map(|measure| measure_data(view, measure)).collect::<Result<Vec<_>, PictureError>>()?;
    Ok(Data {
        top_down: style.top_down,
        comparison: view.comparison().is_some(),
        max_columns: style.max_columns.max(1),
        measures,
        texts: texts.texts,
        inputs,
        predictions,
        rows,
    })
}

fn row_data(view: View<'_>, index: usize, texts: &mut Texts) -> Option<RowData> {
    let table = view.table();
    let row = table.rows.get(index)?;
    let single = |value: f64| value.is_finite().then_some(value as f32);
    let top_k = row.top_k.as_ref().map(|positions| {
        let cell = |best: &Vec<crate::TopK>, texts: &mut Texts| {
            best.iter().map(|one| (texts.number(&one.text), single(one.prob))).collect()
        };
        positions.iter().map(|best| cell(best, texts)).collect()
    });
    let before = view.comparison().and_then(|comparison| comparison.before().rows.get(index));
    let before = before.into_iter().flat_map(|row| &row.top1_text).enumerate();
    let before: Vec<Option<usize>> =
        before.map(|(column, text)| view.changed(index, column).then(|| texts.number(text))).collect();
    Some(RowData {
        name: display_label(&row.name),
        ids: row.top1.clone(),
        top1: row.top1_text.iter().map(|text| texts.number(text)).collect(),
        before,
        values: table
            .measures
            .iter()
            .map(|measure| row.values.get(measure).into_iter().flatten().map(|value| single(*value)).collect())
            .collect(),
        top_k,
    })
}

fn measure_data(view: View<'_>, measure: &Measure) -> Result<MeasureData, PictureError> {
    let scale = view.scale(measure)?;
    let (transform, low, high) = scale.range();
    let stop = |index: u32| scale.color_at(f64::from(index) / f64::from(STOPS - 1)).hex();
    let ticks = scale.ticks(0.12).into_iter().map(|tick| TickData { fraction: tick.fraction, label: tick.label });
    Ok(MeasureData {
        name: display_label(&measure.to_string()),
        heading: view.heading(measure),
        unit: measure.unit(),
        transform: transform.name(),
        low,
        high,
        stops: (0..STOPS).map(stop).collect(),
        ticks: ticks.collect(),
    })
}

impl Table {
    /// Shows the table in a Rust notebook: evcxr calls this for the last expression of a cell.
    ///
    /// Prints the interactive page to standard output, in the form evcxr reads, inside a frame that keeps its styles
    /// to itself.
    pub fn evcxr_display(&self) {
        println!("{}", notebook(self));
    }
}

impl crate::Comparison {
    /// Shows the comparison in a Rust notebook, as [`Table::evcxr_display`] does a table.
    pub fn evcxr_display(&self) {
        println!("{}", notebook(self));
    }
}

fn notebook<'a>(view: impl Into<View<'a>>) -> String {
    let page = match page(view, &Style::default()) {
        Ok(page) => page,
        Err(error) => return format!("EVCXR_BEGIN_CONTENT text/plain\n{error}\nEVCXR_END_CONTENT"),
    };
    let page = page.replace('&', "&amp;").replace('"', "&quot;");
    format!(
        "EVCXR_BEGIN_CONTENT text/html\n<iframe title=\"Logit lens\" sandbox=\"allow-scripts allow-modals\" \
         style=\"width:100%;height:640px;border:0\" srcdoc=\"{page}\"></iframe>\nEVCXR_END_CONTENT"
    )
}

#[cfg(test)]
mod tests {
    use serde_json::Value as Json;

    use super::*;
    use crate::{TableError, TopK, compare, fixture};

    fn draw(table: &Table) -> String {
        page(table, &Style::default()).unwrap()
    }

    /// The data as the browser would read it.
    fn embedded(page: &str) -> Json {
        let (_, rest) = page.split_once("id=\"data\">").unwrap();
        serde_json::from_str(rest.split_once("</script>").unwrap().0).unwrap()
    }

    #[test]
    fn the_page_has_all_that_is_shown() {
        let mut table = fixture::small();
        table.rows[1].top_k = Some(vec![vec![TopK { id: 7, text: " night".into(), prob: 0.25 }], vec![], vec![]]);
        let data = embedded(&draw(&table));
        let texts: Vec<&str> = data["texts"].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect();
        assert_eq!(texts, ["The", "·sky", "·is", "·blue", "·night"]);
        assert_eq!(data["rows"][1]["name"], "h.0");
        assert_eq!(data["rows"][1]["top1"], serde_json::json!([3, 2, 3]));
        assert_eq!(data["rows"][1]["values"][1], serde_json::json!([2.0, 1.0, 3.5]));
        assert_eq!(data["rows"][1]["top_k"][0], serde_json::json!([[4, 0.25]]));
        assert_eq!(data["predictions"][1], serde_json::json!({"text": 2, "right": true}));
        assert_eq!(data["measures"][0]["name"], "probs");
        assert_eq!(data["measures"][0]["stops"].as_array().unwrap().len(), STOPS as usize);
    }

    #[test]
    fn nothing_comes_from_elsewhere() {
        let page = draw(&fixture::small());
        for outside in ["http://", "https://", "//cdn", "@import", "url(", "src=", "<link"] {
            assert!(!page.contains(outside), "{outside}");
        }
        assert!(page.contains("default-src 'none'"));
    }

    #[test]
    fn texts_cannot_break_out() {
        let evil = "</script><script>alert(1)</script><!--\u{2028}\u{2029}&quot;\"'";
        let mut table = fixture::of_tokens(&[evil], &[evil], &[Measure::Kl, Measure::TrackedProb(evil.into())]);
        table.model = evil.into();
        let page = page(&table, &Style { title: Some(evil.into()), ..Style::default() }).unwrap();
        assert_eq!(page.matches("<script").count(), 2, "our two and no more");
        assert_eq!(page.matches("</script>").count(), 2);
        assert!(!page.contains("<!--") && !page.contains(['\u{2028}', '\u{2029}']));
        assert_eq!(embedded(&page)["rows"][0]["name"], display_label(evil));
        let notebook = notebook(&table);
        assert_eq!(notebook.matches("<iframe").count(), 1);
        assert_eq!(notebook.matches('"').count(), 8, "all quotes inside the frame are escaped");
    }

    #[test]
    fn values_that_are_not_finite_are_null() {
        let mut table = fixture::small();
        table.rows[0].values.get_mut(&Measure::Kl).unwrap()[0] = f64::NEG_INFINITY;
        assert_eq!(embedded(&draw(&table))["rows"][0]["values"][1][0], Json::Null);
    }

    #[test]
    fn comparisons_say_what_was_there_before() {
        let before = fixture::small();
        let mut after = before.clone();
        after.rows[1].top1_text[0] = " grey".into();
        after.rows[1].top1[0] = 7;
        let data = embedded(&page(&compare(&before, &after).unwrap(), &Style::default()).unwrap());
        assert_eq!(data["comparison"], true);
        let text = |field: &str| &data["texts"][data["rows"][1][field][0].as_u64().unwrap() as usize];
        assert_eq!(data["rows"][1]["before"][1], Json::Null, "not changed");
        assert_eq!((text("before"), text("top1")), (&Json::from("·blue"), &Json::from("·grey")));
        let low = data["measures"][0]["low"].as_f64().unwrap();
        assert_eq!(data["measures"][0]["high"].as_f64().unwrap(), -low);
    }

    #[test]
    fn empty_tables_are_drawn_and_broken_ones_refused() {
        let empty = Table { tokens: Vec::new(), positions: Vec::new(), rows: Vec::new(), ..fixture::small() };
        draw(&empty);
        let mut broken = fixture::small();
        broken.rows[0].top1.pop();
        let error = page(&broken, &Style::default()).unwrap_err();
        assert!(matches!(error, PictureError::Table(TableError::RowLength { .. })));
        assert!(notebook(&broken).starts_with("EVCXR_BEGIN_CONTENT text/plain\n"));
    }
}
