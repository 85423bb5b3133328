//! A page that explains itself: one file, no network, everything in it can be reached by mouse, keyboard and screen
//! reader.

mod attention;
mod data;

use minijinja::{Environment, context, value::Value};

use crate::compare::Comparison;
use crate::grid::Grid;
use crate::picture::{PictureError, Style};
use crate::table::Table;
use crate::table_error::TableError;
use crate::token_text::display_label;
use crate::view::{Subject, View};

use data::{grid_data, table_data};

pub use attention::attention;

/// Draws a table, with all its measures, or a grid as an interactive HTML page in one file.
///
/// Of the style, `cell_width`, `cell_height` and `pixel_ratio` are not used; `dark` forces what otherwise follows the
/// reader's settings. The page needs no network and forbids itself any.
///
/// # Errors
///
/// [`PictureError::Table`] for a table or grid that does not pass [`Table::check`] or [`Grid::check`].
pub fn page<'a>(view: impl Into<View<'a>>, style: &Style) -> Result<String, PictureError> {
    let view = view.into();
    view.check()?;
    let title = view.title(style.title.as_deref());
    let data = match view.subject() {
        Subject::Table(table, comparison) => table_data(view, table, comparison, style)?,
        Subject::Grid(grid) => grid_data(view, grid, style)?,
    };
    let (kind, description) = match view.subject() {
        Subject::Table(..) => ("logit lens".into(), format!("What each row of {title} predicts at each position")),
        Subject::Grid(grid) => (display_label(&grid.method), format!("{} of {title}", grid.heading())),
    };
    let parts = Parts {
        html: include_str!("../html/page.html"),
        css: &[include_str!("../html/base.css"), include_str!("../html/page.css")],
        scripts: &[include_str!("../html/base.js"), include_str!("../html/page.js")],
    };
    parts.page(
        style,
        &serde_json::to_string(&data).map_err(TableError::from)?,
        context! { title, kind, description, comparison => view.comparison_marks(), notes => view.notes() },
    )
}

/// What a page is made of.
struct Parts {
    /// The template.
    html: &'static str,
    css: &'static [&'static str],
    /// They share one scope.
    scripts: &'static [&'static str],
}

impl Parts {
    /// The page with its data (JSON) and what the template asks for besides.
    fn page(&self, style: &Style, data: &str, context: Value) -> Result<String, PictureError> {
        let mut environment = Environment::new();
        environment.add_template("head.html", include_str!("../html/head.html"))?;
        environment.add_template("page.html", self.html)?;
        let css = Value::from_safe_string(self.css.concat());
        let theme = if style.dark { "dark" } else { "auto" };
        let head = environment.get_template("head.html")?.render(context! { theme, css, ..context.clone() })?;
        let script = format!("\"use strict\";\n(() => {{\n{}}})();\n", self.scripts.concat());
        let page = environment.get_template("page.html")?.render(context! {
            head => Value::from_safe_string(head),
            script => Value::from_safe_string(script),
            data => Value::from_safe_string(harmless(data)),
            ..context
        })?;
        Ok(page)
    }
}

/// JSON that cannot end the element it stands in.
fn harmless(json: &str) -> String {
    json.replace('<', "\\u003c")
        .replace('>', "\\u003e")
        .replace('&', "\\u0026")
        .replace('\u{2028}', "\\u2028")
        .replace('\u{2029}', "\\u2029")
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

impl Grid {
    /// Shows the grid in a Rust notebook, as [`Table::evcxr_display`] does a table.
    pub fn evcxr_display(&self) {
        println!("{}", notebook(self));
    }
}

impl Comparison {
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

    use super::{data::STOPS, *};
    use crate::{Measure, TableError, TopK, compare, fixture};

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
