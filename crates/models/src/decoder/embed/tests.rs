use super::*;
use crate::{
    Input, LearnedPositions, Model,
    decoder::testing::{Watcher, assert_close, model, model_in, weights},
};
use tch::Kind;

const OPT: &str = r#"{
    "model_type": "opt", "vocab_size": 13, "hidden_size": 8, "ffn_dim": 12, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 10, "word_embed_proj_dim": 6
}"#;

const GEMMA: &str = r#"{
    "model_type": "gemma", "vocab_size": 13, "hidden_size": 24, "intermediate_size": 12, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 6, "max_position_embeddings": 16
}"#;

const IDS: [i64; 4] = [3, 11, 0, 7];

fn at(point: Point) -> Site {
    Site { stage: Stage::Embedding, point }
}

fn input() -> Input {
    Input::from_rows(&[IDS]).unwrap()
}

fn rows(table: &Tensor, rows: &[i64]) -> Tensor {
    table.index_select(0, &Tensor::from_slice(rows)).unsqueeze(0)
}

fn weight(model: &Model, name: &str) -> Tensor {
    weights(model.config())[name].shallow_clone()
}

#[test]
fn positions_begin_at_their_row() {
    for offset in [0, 2, 5] {
        let model = model(OPT, |config| {
            config.architecture.embedding.positions = Some(LearnedPositions { offset, count_tokens: false });
        });
        let table = weight(&model, "model.decoder.embed_positions.weight");
        assert_eq!(table.size(), [10 + offset, 8]);
        let seen = Watcher::of_all().run(&model, &input());
        let expected = rows(&table, &[offset, offset + 1, offset + 2, offset + 3]);
        assert!(seen.at(at(Point::PositionEmbedding)).equal(&expected), "{offset}");
        // Positions of one's own are counted from the same row.
        let given = input().position_ids(Tensor::from_slice(&[4_i64, 4, 0, 9]).view([1, 4]));
        let seen = Watcher::of_all().run(&model, &given);
        let expected = rows(&table, &[offset + 4, offset + 4, offset, offset + 9]);
        assert!(seen.at(at(Point::PositionEmbedding)).equal(&expected), "{offset}");
    }
}

#[test]
fn padding_moves_positions_only_where_tokens_are_counted() {
    let mask = || Tensor::from_slice(&[0_i64, 0, 1, 1]).view([1, 4]);
    for (count_tokens, expected) in [(true, [1_i64, 1, 2, 3]), (false, [2, 3, 4, 5])] {
        let model = model(OPT, |config| {
            config.architecture.embedding.positions = Some(LearnedPositions { offset: 2, count_tokens });
        });
        let seen = Watcher::of_all().run(&model, &input().attention_mask(mask()));
        let expected = rows(&weight(&model, "model.decoder.embed_positions.weight"), &expected);
        assert!(seen.at(at(Point::PositionEmbedding)).equal(&expected), "{count_tokens}");
    }
}

#[test]
fn a_narrow_embedding_is_projected_before_positions_are_added_and_back_before_the_logits() {
    let model = model(OPT, |_| ());
    let seen = Watcher::of_all().run(&model, &input());
    let tokens = rows(&weight(&model, "model.decoder.embed_tokens.weight"), &IDS);
    assert!(seen.at(at(Point::TokenEmbedding)).equal(&tokens));
    let projected = tokens.matmul(&weight(&model, "model.decoder.project_in.weight").tr());
    assert_close(seen.at(at(Point::EmbeddingProjection)), &projected, "in");
    assert_close(seen.at(Site::INPUT), &(&projected + seen.at(at(Point::PositionEmbedding))), "input");
    let out = seen.at(Site::FINAL_NORM).matmul(&weight(&model, "model.decoder.project_out.weight").tr());
    assert_close(seen.at(Site::PROJECTED), &out, "out");
    let logits = out.matmul(&weight(&model, "model.decoder.embed_tokens.weight").tr());
    assert_close(seen.at(Site::LOGITS), &logits, "logits");
}

#[test]
fn rows_are_scaled_by_a_number_that_is_rounded_as_they_are() {
    for (kind, rounded) in [(Kind::Float, f64::from(24_f64.sqrt() as f32)), (Kind::BFloat16, 4.90625)] {
        let model = model_in(kind, GEMMA, |_| ());
        assert_eq!(model.parts().dtype().kind(), kind);
        let table = weight(&model, "model.embed_tokens.weight").to_kind(kind).to_kind(Kind::Double);
        let seen = Watcher::of_all().run(&model, &input());
        let found = seen.at(at(Point::TokenEmbedding));
        assert!(found.equal(&(rows(&table, &IDS) * rounded).to_kind(kind)), "{kind:?}");
        assert!(seen.at(Site::INPUT).equal(found));
        // The root of 24 itself is another number, and the rows show it.
        assert!(!found.equal(&(rows(&table, &IDS) * 24_f64.sqrt()).to_kind(kind)), "{kind:?}");
    }
}

#[test]
fn sites_come_in_order_and_edits_of_them_reach_the_stream() {
    let model = model(OPT, |_| ());
    let plain = Watcher::of_all().run(&model, &input());
    let order = [Point::TokenEmbedding, Point::EmbeddingProjection, Point::PositionEmbedding, Point::Input].map(at);
    let found: Vec<Site> = plain.seen.iter().map(|(site, _)| *site).take(4).collect();
    assert_eq!(found, order);
    for (index, &site) in order.iter().enumerate() {
        let edited = Watcher::of_all().changing(site, |value| value * 2.0).run(&model, &input());
        for before in &order[..index] {
            assert!(edited.at(*before).equal(plain.at(*before)), "{site} changed {before}");
        }
        assert!(!edited.at(Site::INPUT).equal(plain.at(Site::INPUT)), "{site}");
        assert!(!edited.at(Site::LOGITS).equal(plain.at(Site::LOGITS)), "{site}");
    }
    // A value that takes another's place is what is added.
    let zeros = Watcher::of_all().changing(order[1], Tensor::zeros_like).run(&model, &input());
    assert!(zeros.at(Site::INPUT).equal(plain.at(order[2])));
}

#[test]
fn cosines_are_shown_once_and_turn_every_layer() {
    let model = model(GEMMA, |_| ());
    let site = at(Point::RotaryCosines);
    let plain = Watcher::of_all().run(&model, &input());
    assert_eq!(plain.at(site).size(), [1, 4, 6]);
    // At position 0 nothing turns: all cosines are one.
    assert_eq!(plain.at(site).select(1, 0).min().double_value(&[]), 1.0);
    // With cosines of zero, what is left of the first position, whose sines are zero, is nothing.
    let edited = Watcher::of_all().changing(site, Tensor::zeros_like).run(&model, &input());
    for block in 0..2 {
        for point in [Point::RotatedQuery, Point::RotatedKey] {
            let first = |seen: &Watcher| seen.of_block(block, point).select(1, 0).abs().max().double_value(&[]);
            assert!(first(&plain) > 0.0 && first(&edited) == 0.0, "h.{block} {point:?}");
        }
    }
    assert!(edited.at(Site::INPUT).equal(plain.at(Site::INPUT)));
}

#[test]
fn cosines_of_several_kinds_are_no_site() {
    let model = model(GEMMA, |config| {
        if let Some(rotary) = &mut config.architecture.layers[1].attention.rotary {
            rotary.base = 100.0;
        }
    });
    let seen = Watcher::of_all().run(&model, &input());
    assert!(seen.seen.iter().all(|(site, _)| site.point != Point::RotaryCosines));
    // Both layers turn, each in its own way.
    let turned = |block| {
        let ratio = |point: Point| seen.of_block(block, point).select(1, 3).shallow_clone();
        (ratio(Point::HeadKey), ratio(Point::RotatedKey))
    };
    assert!((0..2).all(|block| !turned(block).0.equal(&turned(block).1)));
}
