//! `patch`: effects as the library finds them, in every form, and what is refused.

use std::path::Path;

use transformer_utils::{
    lens::{Attention, Grid},
    lowmem::{Checkpoint, LoadOptions},
    models::Model,
    partial::{Columns, Edit, Metric, Patching, Run},
};

use crate::program::{golden, inside, json, refuse, succeed};

const CLEAN: &str = "3,1,4,1,5,9";
const CORRUPTED: &str = "3,1,7,1,5,9";
const CLEAN_IDS: [i64; 6] = [3, 1, 4, 1, 5, 9];
const CORRUPTED_IDS: [i64; 6] = [3, 1, 7, 1, 5, 9];

/// Flags for a golden checkpoint, which has no tokenizer.
fn flags<'a>(model: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let base = ["--model", model, "--dtype", "f32", "--device", "cpu", "--clean", CLEAN, "--corrupted", CORRUPTED];
    [&base[..], &["--answer", "7", "--wrong", "8"], more].concat()
}

fn path(folder: &Path, name: &str) -> String {
    folder.join(name).display().to_string()
}

#[test]
fn effects_are_those_of_the_library() {
    let folder = tempfile::tempdir().unwrap();
    let name = golden("gpt2_plain");
    let model = Model::open(&Checkpoint::open(&name).unwrap(), &LoadOptions::default()).unwrap();
    let metric = Metric::logit_difference([7], [8]);
    let patching = || Patching::new(&model, CLEAN_IDS, CORRUPTED_IDS).unwrap();
    let out = path(folder.path(), "effects.json");
    let read = |more: &[&str]| {
        succeed("patch", &flags(&name, &[more, &["--quiet", "--out", &out]].concat()));
        Grid::from_json(&std::fs::read_to_string(&out).unwrap()).unwrap()
    };

    let positions = read(&[]);
    let expected = patching().sites("h.*").unwrap().each_position().run(&metric).unwrap().effects;
    assert_eq!((&positions.rows, &positions.columns), (&expected.rows, &expected.columns));
    assert_eq!(positions.values, expected.values);
    assert_eq!((positions.clean, positions.corrupted), (expected.clean, expected.corrupted));
    assert_eq!(positions.tokens[2].id, 4);
    assert_eq!(positions.corrupted_tokens.as_ref().unwrap()[2].id, 7);

    let heads = read(&["--by", "heads", "--positions", "2..4", "--direction", "corrupted-into-clean"]);
    let expected = patching()
        .sites("h.*.attn.z")
        .unwrap()
        .each_head()
        .positions(2..4)
        .direction(transformer_utils::partial::Direction::CorruptedIntoClean)
        .run(&metric)
        .unwrap()
        .effects;
    assert_eq!((&heads.columns, &heads.values), (&expected.columns, &expected.values));
    assert!(heads.tokens.is_empty());

    let site = read(&["--by", "site", "--sites", "h.0.mlp,h.1.attn", "--metric", "logit-difference"]);
    assert_eq!((site.rows, site.columns), (vec!["h.0.mlp".to_owned(), "h.1.attn".to_owned()], Columns::Whole));
}

#[test]
fn effects_are_those_of_the_edited_model() {
    let folder = tempfile::tempdir().unwrap();
    let name = golden("gpt2_plain");
    let model = Model::open(&Checkpoint::open(&name).unwrap(), &LoadOptions::default()).unwrap();
    let out = path(folder.path(), "effects.json");
    let texts =
        ["--clean", CLEAN, "--corrupted", CORRUPTED, "--dtype", "f32", "--device", "cpu", "--quiet", "--out", &out];
    let edit = ["--edit", "h.0.attn.z:heads=0=zero", "--edit", "h.1:positions=2..4=scale:0.5"];
    succeed("patch", &[&["--model", &name, "--metric", "kl", "--by", "heads"], &texts[..], &edit].concat());
    let found = Grid::from_json(&std::fs::read_to_string(&out).unwrap()).unwrap();
    let edited = Run::new(&model, &["logits"]).unwrap().edit("h.0.attn.z", Edit::zero().heads([0])).unwrap();
    let edited = edited.edit("h.1", Edit::scale(0.5).positions(2..4)).unwrap();
    let logits = edited.run(CLEAN_IDS).unwrap();
    let metric = Metric::kl(&logits.get("logits").unwrap().select(1, -1));
    let patching = Patching::new(&model, CLEAN_IDS, CORRUPTED_IDS).unwrap().sites("h.*.attn.z").unwrap().each_head();
    let patching = patching.edit("h.0.attn.z", Edit::zero().heads([0])).unwrap();
    let expected = patching.edit("h.1", Edit::scale(0.5).positions(2..4)).unwrap().run(&metric).unwrap().effects;
    assert_eq!((&found.values, found.clean, found.corrupted), (&expected.values, expected.clean, expected.corrupted));
    // A silent head has nothing to put in, and the clean run is the edited one.
    assert_eq!((Some(found.values[0][0]), found.clean), (found.corrupted, Some(0.0)));
    assert!(found.model.contains("h.0.attn.z:heads=0=zero"), "{}", found.model);

    succeed(
        "patch",
        &[&flags(&name, &["--method", "attribution", "--by", "heads", "--quiet", "--out", &out]), &edit[..]].concat(),
    );
    let estimated = Grid::from_json(&std::fs::read_to_string(&out).unwrap()).unwrap();
    assert_eq!(estimated.values[0][0], 0.0);
    assert_ne!(estimated.values[0][1], 0.0);
}

#[test]
fn every_method_draws() {
    let name = golden("gpt2_plain");
    for (more, shows) in [
        (&["--method", "patch"][..], &["patched: logit difference of “7” and “8”", "h.0", "corrupted run"][..]),
        (&["--method", "attribution", "--by", "heads"], &["attribution patching", "h.1.attn.z"]),
        (&["--method", "direct"], &["direct logit attribution", "h.0.mlp", "wte"]),
        (&["--method", "direct", "--by", "heads"], &["head"]),
        (&["--method", "direct", "--by", "neurons"], &["h."]),
        (&["--method", "gradient", "--text"], &["3[", "input"]),
        (&["--method", "integrated"], &["input", "position"]),
    ] {
        let shown = succeed("patch", &flags(&name, more));
        for text in shows {
            assert!(shown.contains(text), "{more:?}: {text:?} is not in {shown}");
        }
    }
    // Metrics of the clean run alone, and of all tokens.
    let base = ["--model", &name, "--device", "cpu", "--clean", CLEAN];
    let alone = succeed("patch", &[&base[..], &["--method", "gradient", "--metric", "log-probability"]].concat());
    assert!(alone.contains("log probability"), "{alone}");
    let kl = succeed("patch", &[&base[..], &["--corrupted", CORRUPTED, "--metric", "kl"]].concat());
    assert!(kl.contains("patched: KL divergence, nats") && kl.contains("clean run: 0.00"), "{kl}");
}

#[test]
fn every_format_is_written_and_effects_are_redrawn() {
    let folder = tempfile::tempdir().unwrap();
    let name = golden("gpt2_plain");
    let files = ["a.png", "a.svg", "a.html", "a.json", "a.csv"].map(|name| path(folder.path(), name));
    let outs: Vec<&str> = files.iter().flat_map(|file| ["--out", file.as_str()]).collect();
    let shown = succeed("patch", &flags(&name, &outs));
    assert_eq!(inside(folder.path()), ["a.csv", "a.html", "a.json", "a.png", "a.svg"]);
    assert!(std::fs::read(&files[0]).unwrap().starts_with(b"\x89PNG"));
    assert!(std::fs::read_to_string(&files[1]).unwrap().contains("patched: logit difference"));
    assert!(std::fs::read_to_string(&files[4]).unwrap().starts_with("row,position,token_id,token,corrupted_id"));
    assert_eq!(succeed("patch", &["--redraw", &files[3]]), shown);

    let patterns = ["b.png", "b.html", "b.json", "b.csv"].map(|name| path(folder.path(), name));
    let outs: Vec<&str> = patterns.iter().flat_map(|file| ["--out", file.as_str()]).collect();
    let shown = succeed("patch", &[&["--model", &name, "--clean", CLEAN, "--attention", "1,0.1"], &outs[..]].concat());
    assert!(shown.contains("h.1 head 0: attention") && shown.contains("h.0 head 1: attention"), "{shown}");
    let attention = Attention::from_json(&std::fs::read_to_string(&patterns[2]).unwrap()).unwrap();
    assert_eq!(attention.heads.last().map(|head| (head.layer, head.head)), Some((0, 1)));
    assert_eq!(attention.tokens.iter().map(|token| token.id).collect::<Vec<_>>(), CLEAN_IDS);
    assert_eq!(json(Path::new(&patterns[2]))["schema"], 1);
    assert!(std::fs::read_to_string(&patterns[1]).unwrap().contains("looks at"));
}

#[test]
fn what_does_not_fit_is_refused() {
    let name = golden("gpt2_plain");
    let lengths = refuse("patch", &["--clean", "Emma was happy", "--corrupted", "Emma was"]);
    assert!(lengths.contains("3") && lengths.contains("Em"), "both are shown: {lengths}");
    assert!(lengths.contains("|·was|") && lengths.contains("--corrupted has"), "{lengths}");
    for (more, says) in [
        (&["--sites", "h.*.mpl"][..], "h.0.mlp"),
        (&["--sites", "lm_head"], "cannot be patched"),
        (&["--by", "neurons"], "--by"),
        (&["--method", "direct", "--sites", "h.0"], "--sites"),
        (&["--method", "gradient", "--by", "heads"], "--by"),
        (&["--method", "direct", "--metric", "probability", "--wrong", "8"], "--wrong"),
        (&["--positions", "5..9"], "0..6"),
        (&["--attention", "1"], "cannot be used with"),
        (&["--memory", "0"], "--memory"),
        (&["--method", "direct", "--memory", "64"], "--memory"),
        (&["--method", "gradient", "--direction", "corrupted-into-clean"], "--direction"),
        (&["--by", "heads", "--text"], "heads"),
        (&["--edit", "logits=zero"], "logits cannot be patched"),
        (&["--edit", "h.0:new=zero"], "new tokens"),
        (&["--method", "direct", "--edit", "h.0=zero"], "--edit"),
        (&["--attention", "1", "--edit", "h.0=zero"], "cannot be used with"),
        (&["--out", "effects.gif"], ".png"),
    ] {
        let error = refuse("patch", &flags(&name, more));
        assert!(error.contains(says), "{more:?}: {error}");
    }
    for (heads, says) in [("9", "layers 0..3"), ("0.99", "head 99"), ("x", "LAYER.HEAD"), ("1 --text", "LAYER.HEAD")] {
        let error = refuse("patch", &["--model", &name, "--clean", CLEAN, "--attention", heads]);
        assert!(error.contains(says), "{heads}: {error}");
    }
    let error = refuse("patch", &["--model", &name]);
    assert!(error.contains("--clean"), "{error}");
    let error = refuse("patch", &["--model", &name, "--clean", CLEAN, "--answer", "1", "--wrong", "2"]);
    assert!(error.contains("--corrupted"), "{error}");
    let error = refuse("patch", &["--answer", " very happy"]);
    assert!(error.contains("--answer") && error.contains("expected one"), "{error}");
}
