use models::Config;

use super::*;
use crate::fixture;

#[test]
fn heads_are_those_of_the_run() {
    let config = r#"{"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 8, "vocab_size": 20}"#;
    let model = Model::random(Config::from_json(config).unwrap(), 0).unwrap();
    let attention = Attention::of(&model, [1, 2, 3], &[(1, 0), (0, 1), (1, 1)]).unwrap();
    let output = partial::partial_forward(&model, &["h.1.attn.pattern", "h.0.attn.pattern"], [1, 2, 3]).unwrap();
    for head in &attention.heads {
        let expected = output.get(&*format!("h.{}.attn.pattern", head.layer)).unwrap();
        let expected = expected.get(0).get(head.head as i64);
        assert_eq!(head.pattern, Vec::<Vec<f32>>::try_from(&expected).unwrap(), "{}", head.name());
    }
    assert_eq!(
        attention.heads.iter().map(|head| (head.layer, head.head)).collect::<Vec<_>>(),
        [(1, 0), (0, 1), (1, 1)]
    );
    assert_eq!(attention.tokens[2], Token { id: 3, text: "3".into() });
    for (heads, says) in [((2, 0), "layers 0..2"), ((1, 2), "has 2 heads")] {
        let error = Attention::of(&model, [1, 2, 3], &[heads]).unwrap_err();
        assert!(matches!(error, Error::Head { .. }) && error.to_string().contains(says), "{error}");
    }
}

#[test]
fn one_head_is_a_grid_that_ends_at_each_query() {
    let grid = fixture::attention(3, 2).grid(1).unwrap();
    grid.check().unwrap();
    assert_eq!(grid.rows[1], "t1 1");
    assert_eq!(grid.method, "h.0 head 1");
    assert!(grid.values[1][2].is_nan() && (grid.values[1][1] - 0.6).abs() < 1e-6);
    assert!(fixture::attention(3, 2).grid(2).is_none());
}

#[test]
fn json_and_csv() {
    let attention = fixture::attention(3, 2);
    assert_eq!(Attention::from_json(&attention.to_json().unwrap()).unwrap(), attention);
    let schema: serde_json::Value =
        serde_json::from_str(include_str!("../../schema/lens-attention-1.schema.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&attention.to_json().unwrap()).unwrap();
    assert!(jsonschema::validator_for(&schema).unwrap().is_valid(&json), "{json}");
    let csv = attention.to_csv().unwrap();
    let lines: Vec<&str> = csv.lines().collect();
    assert_eq!(
        lines[..3],
        ["layer,head,query,query_token,key,key_token,weight", "0,0,0,t0,0,t0,1", "0,0,1,t1,0,t0,0.5"]
    );
    assert_eq!(lines.len(), 1 + 2 * 6, "no key after its query");

    let mut broken = attention;
    broken.heads[1].pattern[2].pop();
    assert!(
        broken
            .to_csv()
            .unwrap_err()
            .to_string()
            .contains("h.0 head 1 has 2 queries or keys, expected one for each of 3")
    );
}

#[cfg(feature = "plot")]
#[test]
fn heads_are_drawn_side_by_side_and_on_a_page() {
    use crate::{
        html,
        picture::{self, Style},
    };

    let page = |attention: &Attention| picture::attention_svg(attention, &Style::default()).unwrap();
    let few = page(&fixture::attention(5, 3)).remove(0);
    for text in ["h.0 head 0", "h.0 head 2", "t4", "rotate(270"] {
        assert!(few.contains(text), "{text}");
    }
    let many = page(&fixture::attention(5, 100));
    assert!(many.len() > 1 && many[1].contains("page 2 of"));
    assert!(many.last().unwrap().contains("h.0 head 99"));
    // One head is a heatmap like any other, a long input a picture without names.
    assert!(page(&fixture::attention(5, 1)).remove(0).contains("0.50"));
    let long = page(&fixture::attention(80, 2)).remove(0);
    assert!(long.contains("positions 0 to 79") && !long.contains("rotate"));

    let page = html::attention(&fixture::attention(3, 2), &Style::default()).unwrap();
    assert_eq!(page.matches("<script").count(), 2);
    assert!(page.contains("default-src 'none'") && page.contains(r#""pattern":[[1000],[400,600],"#));
    for outside in ["http://", "https://", "@import", "url(", "src=", "<link"] {
        assert!(!page.contains(outside), "{outside}");
    }
    let none = Attention { heads: Vec::new(), ..fixture::attention(3, 1) };
    assert!(
        html::attention(&none, &Style::default()).is_err() && picture::attention_svg(&none, &Style::default()).is_err()
    );
}
