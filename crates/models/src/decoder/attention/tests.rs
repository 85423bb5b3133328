use tch::{Device, Kind};

use super::*;
use crate::{
    Architecture, Config, Input, Model, Norm, NormKind, QueryKeyNorm, Rotary, RotaryPairs, RotaryScaling,
    decoder::testing::{Watcher, assert_close, model, weights},
};

/// Separate projections, four query heads on two key heads.
const LLAMA: &str = r#"{
    "model_type": "olmo2", "vocab_size": 13, "hidden_size": 20, "intermediate_size": 12, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6, "max_position_embeddings": 16
}"#;

/// One matrix, queries, keys and values side by side.
const PHI3: &str = r#"{
    "model_type": "phi3", "vocab_size": 13, "hidden_size": 24, "intermediate_size": 12, "num_hidden_layers": 1,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 16
}"#;

/// One matrix, head by head.
const NEOX: &str = r#"{
    "model_type": "gpt_neox", "vocab_size": 13, "hidden_size": 24, "intermediate_size": 12, "num_hidden_layers": 1,
    "num_attention_heads": 3, "max_position_embeddings": 16
}"#;

const IDS: [[i64; 7]; 2] = [[3, 11, 0, 7, 7, 12, 5], [1, 2, 4, 8, 3, 6, 12]];

fn input() -> Input {
    Input::from_rows(&IDS).unwrap()
}

/// A model whose layers attend in another way.
fn attending(json: &str, change: impl Fn(&mut Attention)) -> Model {
    model(json, |config| config.architecture.layers.iter_mut().for_each(|layer| change(&mut layer.attention)))
}

/// The values of `[batch, position, head, d_head]` as nested lists of f64.
fn nested(tensor: &Tensor) -> Vec<Vec<Vec<Vec<f64>>>> {
    let size = tensor.size();
    let value = |b, p, h, d| tensor.double_value(&[b, p, h, d]);
    let head = |b, p, h| (0..size[3]).map(|d| value(b, p, h, d)).collect();
    let position = |b, p| (0..size[2]).map(|h| head(b, p, h)).collect();
    (0..size[0]).map(|b| (0..size[1]).map(|p| position(b, p)).collect()).collect()
}

/// Attention one number at a time, from queries, keys and values `[batch, position, head, d_head]`: the pattern
/// `[batch, head, query, key]`, and what the heads say, `[batch, position, head, d_head]`.
fn by_hand(queries: &Tensor, keys: &Tensor, values: &Tensor, attention: &Attention) -> (Tensor, Tensor) {
    let (queries, keys, values) = (nested(queries), nested(keys), nested(values));
    let (batch, length) = (queries.len(), queries[0].len());
    let (heads, width) = (attention.heads as usize, attention.d_head as usize);
    let shared = heads / attention.kv_heads as usize;
    let options = (Kind::Double, Device::Cpu);
    let pattern = Tensor::zeros([batch, heads, length, length].map(|size| size as i64), options);
    let z = Tensor::zeros([batch, length, heads, width].map(|size| size as i64), options);
    let put = |tensor: &Tensor, place: [usize; 4], value: f64| {
        let cell = place.iter().fold(tensor.shallow_clone(), |rest, &index| rest.get(index as i64));
        let _ = cell.shallow_clone().fill_(value);
    };
    for (b, head, query) in (0..batch).flat_map(|b| (0..heads).flat_map(move |h| (0..length).map(move |q| (b, h, q)))) {
        let of = head / shared;
        let seen = attention.window.map_or(0, |window| (query + 1).saturating_sub(window as usize))..=query;
        let score = |key: usize| {
            let product: f64 = queries[b][query][head].iter().zip(&keys[b][key][of]).map(|(q, k)| q * k).sum();
            let score = product * attention.scale;
            attention.softcap.map_or(score, |cap| cap * (score / cap).tanh())
        };
        let sum: f64 = seen.clone().map(|key| score(key).exp()).sum();
        for key in seen.clone() {
            put(&pattern, [b, head, query, key], score(key).exp() / sum);
        }
        let said = |d: usize| seen.clone().map(|key| score(key).exp() / sum * values[b][key][of][d]).sum();
        (0..width).for_each(|d| put(&z, [b, query, head, d], said(d)));
    }
    (pattern, z)
}

#[test]
fn heads_share_keys_and_see_what_window_and_softcap_leave() {
    type Change = fn(&mut Attention);
    let changes: [(&str, Change); 6] = [
        ("as it is", |_| ()),
        ("a key head for each", |attention| attention.kv_heads = 4),
        ("one key head", |attention| attention.kv_heads = 1),
        ("a window", |attention| attention.window = Some(3)),
        ("a softcap", |attention| attention.softcap = Some(1.5)),
        ("all at once", |attention| {
            (attention.window, attention.softcap, attention.scale) = (Some(2), Some(0.7), 0.9);
        }),
    ];
    for (what, change) in changes {
        let model = attending(LLAMA, change);
        let attention = &model.architecture().layers[1].attention;
        let seen = Watcher::of_all().run(&model, &input());
        let at = |point| seen.of_block(1, point);
        let (pattern, z) = by_hand(at(Point::RotatedQuery), at(Point::RotatedKey), at(Point::HeadValue), attention);
        assert_close(at(Point::Pattern), &pattern, (what, "pattern"));
        assert_close(&at(Point::Scores).softmax(-1, None), &pattern, (what, "scores"));
        assert_close(at(Point::Z), &z, (what, "z"));
        // The output projection, all heads together and one by one.
        let matrix = weights(model.config())["model.layers.1.self_attn.o_proj.weight"].to_kind(Kind::Double);
        let output = z.flatten(2, 3).matmul(&matrix.tr());
        assert_close(at(Point::AttentionOutput), &output, (what, "output"));
        let second = z.select(2, 1).matmul(&matrix.narrow(1, attention.d_head, attention.d_head).tr());
        assert_close(&at(Point::HeadOutput).select(2, 1), &second, (what, "the second head"));
        // Where nobody looks at the pattern, it is computed in another way.
        let site = Site::block(1, Point::AttentionOutput);
        let unseen = Watcher::of(&[site]).run(&model, &input());
        assert_close(unseen.at(site), &output, (what, "unseen"));
    }
}

#[test]
fn joint_projections_hold_what_their_kind_says() {
    let model = attending(PHI3, |_| ());
    let seen = Watcher::of_all().run(&model, &input());
    let joined = seen.of_block(0, Point::QueryKeyValue);
    assert_eq!(joined.size(), [2, 7, (4 + 2 + 2) * 6]);
    for (point, from, heads) in [(Point::HeadQuery, 0, 4), (Point::HeadKey, 24, 2), (Point::HeadValue, 36, 2)] {
        for head in 0..heads {
            let found = seen.of_block(0, point).select(2, head);
            assert!(found.equal(&joined.narrow(-1, from + 6 * head, 6)), "{point:?} {head}");
        }
    }
    let model = attending(NEOX, |_| ());
    let seen = Watcher::of_all().run(&model, &input());
    let joined = seen.of_block(0, Point::QueryKeyValue);
    for (place, point) in [Point::HeadQuery, Point::HeadKey, Point::HeadValue].into_iter().enumerate() {
        for head in 0..3 {
            let found = seen.of_block(0, point).select(2, head);
            assert!(found.equal(&joined.narrow(-1, 24 * head + 8 * place as i64, 8)), "{point:?} {head}");
        }
    }
}

#[test]
fn norms_of_queries_and_keys_are_over_what_they_say() {
    let epsilon = 1e-3;
    for (over, kind) in [
        (NormOver::Head, NormKind::Rms),
        (NormOver::TurnedHead, NormKind::Rms),
        (NormOver::TurnedHead, NormKind::Layer { weights: true }),
        (NormOver::AllHeads, NormKind::RmsRoundedLast),
    ] {
        let norm = QueryKeyNorm { norm: Norm { kind, epsilon }, over };
        let model = attending(LLAMA, |attention| attention.query_key_norm = Some(norm));
        let seen = Watcher::of_all().run(&model, &input());
        for (raw, normed, module, heads) in
            [(Point::HeadQuery, Point::QueryNorm, "q_norm", 4), (Point::HeadKey, Point::KeyNorm, "k_norm", 2)]
        {
            let raw = seen.of_block(1, raw).to_kind(Kind::Double);
            let raw = if over == NormOver::AllHeads { raw.flatten(2, 3) } else { raw };
            let weight = |end: &str| {
                let name = format!("model.layers.1.self_attn.{module}.{end}");
                weights(model.config()).get(&name).map(|tensor| tensor.to_kind(Kind::Double))
            };
            let centred = match kind {
                NormKind::Layer { .. } => &raw - raw.mean_dim(-1, true, None),
                _ => raw,
            };
            let expected = &centred / (centred.square().mean_dim(-1, true, None) + epsilon).sqrt();
            let expected = expected * weight("weight").unwrap();
            let expected = weight("bias").map_or(expected.shallow_clone(), |bias| expected + bias);
            let (found, expected) = match over {
                NormOver::TurnedHead => (seen.of_block(1, normed), expected.transpose(1, 2)),
                _ => (seen.of_block(1, normed), expected),
            };
            let shape = match over {
                NormOver::Head => vec![2, 7, heads, 6],
                NormOver::TurnedHead => vec![2, heads, 7, 6],
                NormOver::AllHeads => vec![2, 7, 6 * heads],
            };
            assert_eq!(found.size(), shape, "{over:?}");
            assert_close(found, &expected, (over, kind, module));
        }
        // They are rotated after it: at the first position nothing turns.
        let first = |tensor: &Tensor| tensor.select(1, 0).flatten(1, -1);
        let normed = seen.of_block(1, Point::QueryNorm);
        let normed = if over == NormOver::TurnedHead { normed.transpose(1, 2) } else { normed.shallow_clone() };
        assert_close(&first(&normed), &first(seen.of_block(1, Point::RotatedQuery)), over);
    }
}

#[test]
fn scores_are_of_what_has_been_rotated() {
    let rotary = Rotary {
        dimensions: 4,
        base: 10.0,
        pairs: RotaryPairs::Neighbours,
        scaling: RotaryScaling::None,
        in_f32: false,
        module: crate::RotaryModule::None,
    };
    let model = attending(LLAMA, |attention| {
        (attention.rotary, attention.query_key_norm) = (Some(rotary.clone()), None);
    });
    let seen = Watcher::of_all().run(&model, &input());
    // Pair i of two turns by position · 10^(-i/2); the last two dimensions stay.
    let turned = |x: &Tensor| {
        let x = x.to_kind(Kind::Double);
        let turned = x.copy();
        for (position, pair) in (0..7).flat_map(|position| (0..2).map(move |pair| (position, pair))) {
            let (sine, cosine) = (position as f64 * 10_f64.powf(-(pair as f64) / 2.0)).sin_cos();
            let at = |tensor: &Tensor, dimension| tensor.select(1, position).select(-1, dimension);
            let (one, other) = (at(&x, 2 * pair), at(&x, 2 * pair + 1));
            at(&turned, 2 * pair).copy_(&(&one * cosine - &other * sine));
            at(&turned, 2 * pair + 1).copy_(&(&other * cosine + &one * sine));
        }
        turned
    };
    let (queries, keys) = (turned(seen.of_block(0, Point::HeadQuery)), turned(seen.of_block(0, Point::HeadKey)));
    assert_close(seen.of_block(0, Point::RotatedQuery), &queries, "queries");
    assert_close(seen.of_block(0, Point::RotatedKey), &keys, "keys");
    let attention = &model.architecture().layers[0].attention;
    let (pattern, _) = by_hand(&queries, &keys, seen.of_block(0, Point::HeadValue), attention);
    assert_close(seen.of_block(0, Point::Pattern), &pattern, "pattern");
}

/// One small config for each way a layer can be built.
const KINDS: [&str; 9] = [
    LLAMA,
    PHI3,
    NEOX,
    r#"{"model_type": "gpt2", "vocab_size": 13, "n_embd": 12, "n_head": 3, "n_layer": 1}"#,
    r#"{"model_type": "gptj", "vocab_size": 13, "n_embd": 12, "n_head": 3, "n_layer": 1, "rotary_dim": 2}"#,
    r#"{"model_type": "opt", "vocab_size": 13, "hidden_size": 8, "ffn_dim": 12, "num_hidden_layers": 1,
        "num_attention_heads": 2, "do_layer_norm_before": false}"#,
    r#"{"model_type": "phi", "vocab_size": 13, "hidden_size": 16, "intermediate_size": 12, "num_hidden_layers": 1,
        "num_attention_heads": 2, "qk_layernorm": true}"#,
    r#"{"model_type": "gemma3_text", "vocab_size": 13, "hidden_size": 16, "intermediate_size": 12, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}"#,
    r#"{"model_type": "mixtral", "vocab_size": 13, "hidden_size": 16, "intermediate_size": 12, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 3, "num_experts_per_tok": 2}"#,
];

#[test]
fn sites_are_shown_once_each_in_the_order_of_the_layer() {
    for json in KINDS {
        let model = model(json, |_| ());
        let seen = Watcher::of_all().run(&model, &input());
        let found: Vec<Point> = seen
            .seen
            .iter()
            .filter(|(site, _)| site.stage == crate::Stage::Block(0))
            .map(|(site, _)| site.point)
            .collect();
        assert_eq!(found, model.architecture().layers[0].points(), "{json}");
    }
}

/// The points of attention that a change of `point` must change, and those that it must not, each among those the layer has.
fn reached(point: Point, architecture: &Architecture) -> (Vec<Point>, Vec<Point>) {
    const QUERIES: [Point; 4] = [Point::Query, Point::HeadQuery, Point::QueryNorm, Point::RotatedQuery];
    const KEYS: [Point; 4] = [Point::Key, Point::HeadKey, Point::KeyNorm, Point::RotatedKey];
    const VALUES: [Point; 2] = [Point::Value, Point::HeadValue];
    const REST: [Point; 5] = [Point::Scores, Point::Pattern, Point::Z, Point::HeadOutput, Point::AttentionOutput];
    let chain: Vec<Point> = match point {
        _ if QUERIES.contains(&point) => QUERIES.into_iter().chain(REST).collect(),
        _ if KEYS.contains(&point) => KEYS.into_iter().chain(REST).collect(),
        _ if VALUES.contains(&point) => VALUES.into_iter().chain(REST.into_iter().skip(2)).collect(),
        Point::QueryKeyValue => {
            [point, Point::HeadQuery, Point::HeadKey, Point::HeadValue].into_iter().chain(REST).collect()
        }
        _ => REST.to_vec(),
    };
    let after = chain.into_iter().skip_while(|other| *other != point);
    let (mut changed, mut same) = (Vec::new(), Vec::new());
    let after: Vec<Point> = after.collect();
    let attention = [&QUERIES[..], &KEYS, &VALUES, &REST].concat();
    for other in architecture.layers[0].points() {
        if after.contains(&other) {
            changed.push(other);
        } else if attention.contains(&other) && point != Point::QueryKeyValue {
            same.push(other);
        }
    }
    (changed, same)
}

#[test]
fn an_edit_changes_what_is_made_of_the_value_and_nothing_else() {
    for json in KINDS {
        let model = model(json, |_| ());
        let plain = Watcher::of_all().run(&model, &input());
        let last = Point::AttentionOutput;
        let points = model.architecture().layers[0].points();
        let until = points.iter().position(|point| *point == last).unwrap();
        for &point in points[..=until].iter().filter(|point| **point != Point::Norm1) {
            let site = Site::block(0, point);
            // Not by a factor alone, which a norm would undo; and not all scores alike, which a softmax would.
            let ramp = |value: &Tensor| {
                let ramp = Tensor::arange(value.numel() as i64, (value.kind(), value.device()));
                value * 0.5 + (ramp * 0.7).sin().view(value.size().as_slice())
            };
            let edited = Watcher::of_all().changing(site, ramp).run(&model, &input());
            let (changed, same) = reached(point, model.architecture());
            let equal = |other: &Point| edited.of_block(0, *other).equal(plain.of_block(0, *other));
            assert!(changed.contains(&last), "{json} {point:?}");
            assert!(!changed.iter().any(equal), "{json}: {point:?} left one of {changed:?} as it was");
            assert!(same.iter().all(equal), "{json}: {point:?} changed one of {same:?}");
        }
    }
}

#[test]
fn a_pattern_or_the_heads_outputs_that_are_replaced_are_what_is_used() {
    let model = attending(LLAMA, |_| ());
    // Every query looks at the first position alone.
    let first = |pattern: &Tensor| {
        let only = pattern.zeros_like();
        let _ = only.select(-1, 0).fill_(1.0);
        only
    };
    let seen = Watcher::of_all().changing(Site::block(0, Point::Pattern), first).run(&model, &input());
    let values = seen.of_block(0, Point::HeadValue).select(1, 0).repeat_interleave_self_int(2, 1, None);
    let expected = values.unsqueeze(1).expand([2, 7, 4, 6], false);
    assert_close(seen.of_block(0, Point::Z), &expected, "z");
    // Scores of nothing but zeros let every query see every key, later ones too.
    let seen = Watcher::of_all().changing(Site::block(0, Point::Scores), Tensor::zeros_like).run(&model, &input());
    let values = seen.of_block(0, Point::HeadValue).mean_dim(1, true, None).repeat_interleave_self_int(2, 2, None);
    assert_close(seen.of_block(0, Point::Z), &values.expand([2, 7, 4, 6], false), "z of zeros");
    // Of the heads' outputs one is left.
    let one = |outputs: &Tensor| {
        let kept = outputs.zeros_like();
        kept.select(2, 3).copy_(&outputs.select(2, 3));
        kept
    };
    let seen = Watcher::of_all().changing(Site::block(0, Point::HeadOutput), one).run(&model, &input());
    let alone = seen.of_block(0, Point::HeadOutput).select(2, 3);
    assert_close(seen.of_block(0, Point::AttentionOutput), &alone, "output");
}

#[test]
fn who_only_looks_changes_no_bit() {
    for json in KINDS {
        let model = model(json, |config: &mut Config| {
            config.architecture.layers.iter_mut().for_each(|layer| layer.attention.window = Some(3));
        });
        let unseen = Watcher::of(&[Site::LOGITS]).run(&model, &input());
        let seen = Watcher::of_all().run(&model, &input());
        assert!(unseen.at(Site::LOGITS).equal(seen.at(Site::LOGITS)), "{json}");
    }
}
