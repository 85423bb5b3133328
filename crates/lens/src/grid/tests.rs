use super::*;
use crate::{
    ColorDepth, Measure, csv, fixture,
    terminal::{TerminalStyle, render},
};

#[test]
fn a_grid_comes_back_from_its_json() {
    for columns in
        [Columns::Whole, Columns::Heads(vec![3]), Columns::Neurons(vec![70_000]), Columns::Positions(vec![1])]
    {
        let whole = columns == Columns::Whole;
        let grid = Grid {
            columns,
            values: vec![vec![0.1], vec![-2.5e-9], vec![7.0]],
            shading: if whole { Shading::Upwards } else { Shading::Around(-0.3) },
            clean: None,
            ..fixture::grid()
        };
        assert_eq!(Grid::from_json(&grid.to_json().unwrap()).unwrap(), grid);
    }
}

#[test]
fn the_json_is_as_its_schema_says() {
    let schema: serde_json::Value = serde_json::from_str(include_str!("../../schema/lens-grid-1.schema.json")).unwrap();
    let schema = jsonschema::validator_for(&schema).unwrap();
    let heads =
        Grid { columns: Columns::Heads(vec![4, 5, 6]), tokens: Vec::new(), corrupted_tokens: None, ..fixture::grid() };
    let whole =
        Grid { columns: Columns::Whole, values: vec![vec![1.0]; 3], shading: Shading::Upwards, ..heads.clone() };
    for grid in [fixture::grid(), heads, whole] {
        let json = serde_json::to_value(&grid).unwrap();
        let errors: Vec<String> = schema.iter_errors(&json).map(|error| error.to_string()).collect();
        assert!(errors.is_empty(), "{errors:?} in {json}");
    }
    let mut json = serde_json::to_value(fixture::grid()).unwrap();
    json["columns"] = serde_json::json!({"planets": [1]});
    assert!(!schema.is_valid(&json));
}

#[test]
fn what_is_not_a_number_is_null() {
    let json = serde_json::to_value(fixture::grid()).unwrap();
    assert_eq!(json["rows"][2]["values"], serde_json::json!([null, 0.5, -0.125]));
    assert!(Grid::from_json(&json.to_string()).unwrap().values[2][0].is_nan());
}

#[test]
fn every_disagreement_is_named() {
    let error = |change: fn(&mut serde_json::Value)| {
        let mut json = serde_json::to_value(fixture::grid()).unwrap();
        change(&mut json);
        Grid::from_json(&json.to_string()).unwrap_err().to_string()
    };
    type Change = fn(&mut serde_json::Value);
    let cases: [(Change, &str); 6] = [
        (|json| json["schema"] = 2.into(), "schema 2"),
        (|json| json["rows"][1]["values"] = serde_json::json!([1]), "1 values of the row `h.0`, expected 3"),
        (|json| json["columns"] = serde_json::json!({"positions": [0, 1, 9]}), "position 9"),
        (|json| json["columns"] = serde_json::json!({"positions": [-1, 1, 2]}), "position -1"),
        (
            |json| drop(json["corrupted_tokens"].as_array_mut().unwrap().pop()),
            "2 tokens of the corrupted input, expected 3",
        ),
        (|json| drop(json.as_object_mut().unwrap().remove("metric")), "not a grid: missing field `metric`"),
    ];
    for (change, says) in cases {
        assert!(error(change).contains(says), "{says}: {}", error(change));
    }
}

#[test]
fn numbers_of_a_grid_have_the_same_decimals() {
    let cases: [(&[f64], bool, &[&str]); 6] = [
        (&[1.5, -0.001, 0.25], true, &["+1.50", "0.00", "+0.25"]),
        (&[123.4, -7.0], true, &["+123", "−7"]),
        (&[12.34, -7.0], false, &["12.3", "−7.0"]),
        (&[0.0123, -0.4e-4], true, &["+0.0123", "0.0000"]),
        (&[1.2e-7, -3e-9, 0.0], true, &["+1e−7", "−3e−9", "0"]),
        (&[0.0, f64::NAN], true, &["0.00", "–"]),
    ];
    for (values, signed, shown) in cases {
        let format = NumberFormat::of(values.iter().copied(), signed);
        assert_eq!(values.iter().map(|value| format.short(*value)).collect::<Vec<_>>(), shown);
    }
}

#[test]
fn a_grid_displays_its_numbers_and_both_inputs() {
    assert_eq!(
        fixture::grid().to_string(),
        "\
tiny · patched: logit difference

      h.1        +0.50 −0.12
      h.0  0.00  −1.25 +3.00
    input  0.00  +2.00 0.00
    clean  When  ·Mary ·and
corrupted        ·Anna
 position  0     1     2

clean run: 3.21  corrupted run: −1.00  empty: nothing there"
    );
}

#[test]
fn heads_that_do_not_fit_are_colors() {
    let values: Vec<Vec<f64>> =
        (0..4).map(|row| (0..32).map(|head| f64::from(row * head) / 10.0 - 2.0).collect()).collect();
    let grid = Grid {
        rows: (0..4).map(|block| format!("h.{block}.attn.z")).collect(),
        columns: Columns::Heads((0..32).collect()),
        tokens: Vec::new(),
        corrupted_tokens: None,
        values,
        ..fixture::grid()
    };
    let draw = |color, width| render(&grid, None, &TerminalStyle::default().color(color).width(width)).unwrap();
    let colored = draw(ColorDepth::TrueColor, 120);
    assert_eq!(colored.matches("h.3.attn.z").count(), 1, "one block: {colored}");
    assert!(!colored.contains("+1.1"));
    // Without colours the numbers are all there is.
    let plain = draw(ColorDepth::None, 120);
    assert!(plain.matches("h.3.attn.z").count() > 1 && plain.contains("+7.30"), "{plain}");
    assert!(draw(ColorDepth::TrueColor, 400).contains("+7.30"));
}

#[test]
fn csv_has_a_line_for_each_number() {
    let text = csv::write(&fixture::grid()).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "row,position,token_id,token,corrupted_id,corrupted,value");
    assert_eq!(lines[1], "input,0,10,When,10,When,0");
    assert_eq!(lines[2], "input,1,11, Mary,21, Anna,2");
    assert_eq!(lines[7], "h.1,0,10,When,10,When,");
    assert_eq!(lines.len(), 1 + 9);
    let whole = Grid { columns: Columns::Whole, values: vec![vec![1.5]; 3], ..fixture::grid() };
    assert!(csv::write(&whole).unwrap().starts_with("row,value\ninput,1.5\n"));
    let heads = Grid { columns: Columns::Heads(vec![0, 4, 8]), ..fixture::grid() };
    assert!(csv::write(&heads).unwrap().starts_with("row,head,value\ninput,0,0\ninput,4,2\n"));
}

#[test]
fn a_grid_has_no_measures_and_a_table_needs_one() {
    let style = TerminalStyle::default();
    let error = render(&fixture::grid(), &Measure::Kl, &style).unwrap_err();
    assert!(matches!(error, TableError::MeasureOfGrid { measure: Measure::Kl }));
    let error = render(&fixture::small(), None, &style).unwrap_err();
    assert!(error.to_string().contains("probs, kl"), "{error}");
}

#[cfg(feature = "plot")]
#[test]
fn pictures_and_pages_draw_a_grid() {
    use crate::{
        html,
        picture::{self, PictureError, Style},
    };

    let grid = fixture::grid();
    let page = picture::svg(&grid, &[], &Style::default()).unwrap().remove(0);
    for text in ["−1.25", "+3.00", "·Mary", "·Anna", "corrupted", "patched: logit difference", "clean run: 3.21"] {
        assert!(page.contains(text), "{text}");
    }
    assert!(!page.contains('★') && !page.contains("predicts"));
    let refused = picture::svg(&grid, &[Measure::Kl], &Style::default()).unwrap_err();
    assert!(matches!(refused, PictureError::Table(TableError::MeasureOfGrid { .. })));
    let many = Grid { columns: Columns::Heads((0..130).collect()), values: vec![vec![0.5; 130]; 3], ..grid.clone() };
    let pages = picture::svg(&many, &[], &Style::default()).unwrap();
    assert!(pages.len() == 3 && pages[1].contains("heads 43 to 85 · page 2 of 3"));

    let page = html::page(&grid, &Style::default()).unwrap();
    let (_, rest) = page.split_once("id=\"data\">").unwrap();
    let data: serde_json::Value = serde_json::from_str(rest.split_once("</script>").unwrap().0).unwrap();
    assert_eq!(data["grid"], serde_json::json!(["position", "positions"]));
    assert_eq!(data["rows"][2], serde_json::json!({"name": "h.1", "values": [[null, 0.5, -0.125]]}));
    assert_eq!(data["inputs"][1], serde_json::json!({"position": 1, "text": 1, "corrupted": 2}));
    assert_eq!(data["measures"][0]["format"], serde_json::json!({"decimals": 2, "signed": true}));
    assert!(page.contains("clean run: 3.21") && !page.contains("right: predicts"));
}

#[test]
fn the_middle_of_the_colors_is_the_reference() {
    let grid = Grid { shading: Shading::Around(1.5), ..fixture::grid() };
    assert!((grid.scale().fraction(1.5).unwrap() - 0.5).abs() < 1e-9);
    assert!(grid.scale().ticks(0.1).iter().any(|tick| tick.label == "1.5"));
    let up = Grid { shading: Shading::Upwards, values: vec![vec![0.25, 0.5, 1.0]; 3], ..fixture::grid() };
    assert_eq!((up.scale().fraction(0.0), up.scale().fraction(1.0)), (Some(0.0), Some(1.0)));
    assert!(!up.to_string().contains('+'));
}
