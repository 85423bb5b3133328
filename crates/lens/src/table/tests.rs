//! One test per error, a round trip for everything, and the schema that others rely on.

use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::fixture;

fn read_changed(change: impl FnOnce(&mut Value)) -> Result<Table, TableError> {
    let mut value = serde_json::to_value(fixture::small()).unwrap();
    change(&mut value);
    Table::from_json(&value.to_string())
}

#[test]
fn the_json_has_the_agreed_fields_in_order() {
    let value = serde_json::to_value(fixture::small()).unwrap();
    let keys: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys, ["schema", "model", "dtype", "measures", "tokens", "positions", "rows"]);
    assert_eq!(value["schema"], 1);
    assert_eq!(value["tokens"][0], json!({"id": 464, "text": "The"}));
    let row: Vec<&str> = value["rows"][0].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(row, ["name", "top1", "top1_text", "values"], "no top_k unless it was asked for");
}

#[test]
fn values_that_are_not_finite_become_null_and_nan() {
    let mut table = fixture::small();
    table.rows[0].values.get_mut(&Measure::Kl).unwrap()[0] = f64::INFINITY;
    table.rows[0].top_k = Some(vec![vec![TopK { id: 1, text: "a".into(), prob: f64::NAN }], vec![], vec![]]);
    let json = table.to_json().unwrap();
    assert!(json.contains(r#""kl":[null,"#), "{json}");
    let read = Table::from_json(&json).unwrap();
    assert!(read.rows[0].values[&Measure::Kl][0].is_nan());
    assert!(read.rows[0].top_k.as_ref().unwrap()[0][0].prob.is_nan());
}

#[test]
fn fields_from_the_future_are_ignored() {
    let read = read_changed(|value| {
        value["seed"] = json!(7);
        value["rows"][0]["norm"] = json!([1, 2]);
        value["tokens"][0]["offset"] = json!([0, 3]);
    });
    assert_eq!(read.unwrap(), fixture::small());
}

#[test]
fn every_disagreement_is_named() {
    let error = read_changed(|value| value["schema"] = json!(2)).unwrap_err();
    assert!(matches!(error, TableError::Schema { found: 2 }));

    let error = read_changed(|value| value["measures"][1] = json!("klingon")).unwrap_err();
    assert!(error.to_string().contains("klingon"), "{error}");

    let error = read_changed(|value| value["measures"] = json!(["probs", "probs", "kl"])).unwrap_err();
    assert!(matches!(error, TableError::DuplicateMeasure { measure: Measure::Probs }));

    let error = read_changed(|value| value["measures"] = json!(["probs"])).unwrap_err();
    assert!(matches!(error, TableError::UnlistedValues { row: 0, measure: Measure::Kl, .. }));

    let error = read_changed(|value| value["measures"] = json!(["probs", "kl", "ranks"])).unwrap_err();
    assert!(matches!(error, TableError::MissingValues { row: 0, measure: Measure::Ranks, .. }));

    let error = read_changed(|value| value["positions"] = json!([0, 1, 9])).unwrap_err();
    assert!(matches!(error, TableError::PositionOutside { position: 9, tokens: 4 }));

    let error = read_changed(|value| value["positions"] = json!([0, 2, 2])).unwrap_err();
    assert!(matches!(error, TableError::PositionOrder { before: 2, position: 2 }));

    for (field, values) in [("top1", json!([1])), ("top1_text", json!(["a"])), ("top_k", json!([[]]))] {
        let error = read_changed(|value| value["rows"][1][field] = values).unwrap_err();
        let TableError::RowLength { row: 1, field: found, expected: 3, found: 1, .. } = error else {
            panic!("{error}");
        };
        assert_eq!(found, field);
    }
    let error = read_changed(|value| value["rows"][1]["values"]["kl"] = json!([0.5])).unwrap_err();
    assert!(matches!(error, TableError::RowLength { row: 1, field, .. } if field == "kl"));

    let error = read_changed(|value| value["tokens"] = json!("none")).unwrap_err();
    assert!(matches!(error, TableError::Json { .. }));
    assert!(matches!(Table::from_json("{"), Err(TableError::Json { .. })));
    let error = read_changed(|value| drop(value.as_object_mut().unwrap().remove("schema"))).unwrap_err();
    assert!(error.to_string().contains("schema"), "{error}");
}

#[test]
fn predictions_are_right_where_they_name_the_next_token() {
    let right = |table: &Table| table.predictions().iter().map(|prediction| prediction.right).collect::<Vec<_>>();
    let mut table = fixture::small();
    assert_eq!(right(&table), [Some(false), Some(true), Some(true)]);
    assert_eq!(table.predictions()[1].text, " is");
    table.positions = vec![1, 2, 3];
    assert_eq!(right(&table), [Some(false), Some(false), None], "nothing is known to follow the last token");
    table.rows.clear();
    assert!(table.predictions().is_empty());
}

#[test]
fn values_of_a_measure_that_is_not_there_are_refused() {
    let error = fixture::small().values(&Measure::Logits).unwrap_err();
    assert_eq!(error.to_string(), "the table has no measure `logits`; it has probs, kl");
    assert_eq!(fixture::small().values(&Measure::Kl).unwrap().len(), 3);
}

#[test]
fn the_shipped_schema_describes_what_is_written_and_refuses_what_is_not() {
    let schema: Value = serde_json::from_str(include_str!("../../schema/lens-table-1.schema.json")).unwrap();
    jsonschema::meta::validate(&schema).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let mut table = fixture::small();
    table.rows[0].values.get_mut(&Measure::Kl).unwrap()[0] = f64::NAN;
    table.rows[0].top_k = Some(vec![vec![TopK { id: 1, text: "a".into(), prob: 0.5 }]; 3]);
    let value = serde_json::to_value(&table).unwrap();
    if let Err(error) = validator.validate(&value) {
        panic!("{error} at {}", error.instance_path());
    }
    for field in ["schema", "model", "dtype", "measures", "tokens", "positions", "rows"] {
        let mut broken = value.clone();
        broken.as_object_mut().unwrap().remove(field);
        assert!(!validator.is_valid(&broken), "{field} is required");
    }
    let mut broken = value.clone();
    broken["measures"][0] = json!("klingon");
    assert!(!validator.is_valid(&broken));
}

fn tables() -> impl Strategy<Value = Table> {
    let measures = proptest::sample::subsequence(
        Measure::PLAIN.into_iter().chain([Measure::TrackedProb(" Paris".into())]).collect::<Vec<_>>(),
        0..=8,
    );
    (measures, 0..5usize, 0..4usize).prop_flat_map(|(measures, positions, rows)| {
        let number = prop_oneof![proptest::num::f64::NORMAL, Just(0.0), (0.0..1.0f64)];
        let values = measures.iter().map(|_| vec(number.clone(), positions)).collect::<Vec<_>>();
        let texts = || vec(any::<String>(), positions);
        let top_k = proptest::option::of(vec(
            vec(
                (any::<i64>(), any::<String>(), 0.0..1.0f64).prop_map(|(id, text, prob)| TopK { id, text, prob }),
                0..3,
            ),
            positions,
        ));
        let names = measures.clone();
        let row = (any::<String>(), vec(any::<i64>(), positions), texts(), values, top_k).prop_map(
            move |(name, top1, top1_text, values, top_k)| Row {
                name,
                top1,
                top1_text,
                values: names.iter().cloned().zip(values).collect(),
                top_k,
            },
        );
        let tokens = vec((any::<i64>(), any::<String>()), positions * 2);
        (any::<String>(), tokens, vec(row, rows)).prop_map(move |(model, tokens, rows)| Table {
            model,
            dtype: "bf16".into(),
            lens: (positions % 2 == 1).then(|| "tuned".into()),
            measures: measures.clone(),
            tokens: tokens.into_iter().map(|(id, text)| Token { id, text }).collect(),
            positions: (0..positions).map(|position| position * 2).collect(),
            rows,
        })
    })
}

proptest! {
    #[test]
    fn json_round_trips(table in tables()) {
        let json = table.to_json().unwrap();
        prop_assert_eq!(Table::from_json(&json).unwrap(), table);
    }

    #[test]
    fn reading_never_panics(json in r#"[\[\]{}":,a-z0-9 ]{0,60}"#) {
        let _ = Table::from_json(&json);
    }
}
