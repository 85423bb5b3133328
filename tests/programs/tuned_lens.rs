//! Training translators, and looking through them.

use std::{fs, path::Path};

use crate::program::{golden, inside, json, refuse, root, succeed};

fn bundled(name: &str) -> String {
    root().join("assets").join(name).display().to_string()
}

fn text(folder: &Path) -> String {
    let path = folder.join("text.txt");
    fs::copy(root().join("tests/held-out.txt"), &path).unwrap();
    path.display().to_string()
}

#[test]
fn what_is_trained_is_read_back_and_is_nearer_to_the_output() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    let text = text(folder.path());
    let arguments = [
        "--dtype",
        "f32",
        "--text",
        &text,
        "--held-out",
        "0.3",
        "--context",
        "32",
        "--batch",
        "4",
        "--steps",
        "12",
        "--out",
        &at("lens"),
        "--plot",
        &at("kl.svg"),
        "--json",
        &at("kl.json"),
    ];
    let table = succeed("tune_lens", &arguments);
    assert!(table.contains("input") && table.contains("tuned lens"), "{table}");
    assert_eq!(inside(&folder.path().join("lens")), ["config.json", "params.pt"]);
    assert!(fs::read_to_string(at("kl.svg")).unwrap().contains("<svg"));
    let report = json(&folder.path().join("kl.json"));
    let numbers = |name: &str| -> Vec<f64> {
        report[name].as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect()
    };
    let (logit, tuned) = (numbers("logit_lens_kl"), numbers("tuned_lens_kl"));
    assert_eq!((logit.len(), tuned.len()), (8, 8));
    assert!(tuned[0] < logit[0] && tuned[1] < logit[1], "{tuned:?} {logit:?}");

    let lens = format!("tuned:{}", at("lens"));
    succeed(
        "logit_lens",
        &["--dtype", "f32", "--lens", &lens, "--measure", "kl", "--out", &at("t.json"), "--quiet", "In the beginning"],
    );
    assert_eq!(json(&folder.path().join("t.json"))["lens"], "tuned");

    // The same again gives the same bytes.
    let first = fs::read(folder.path().join("lens/params.pt")).unwrap();
    succeed("tune_lens", &arguments);
    assert_eq!(fs::read(folder.path().join("lens/params.pt")).unwrap(), first);
}

#[test]
fn the_bundled_lens_changes_the_rows_and_not_the_output() {
    let folder = tempfile::tempdir().unwrap();
    let look = |lens: &str, name: &str| {
        let path = folder.path().join(name);
        let out = path.display().to_string();
        succeed("logit_lens", &["--lens", lens, "--measure", "kl", "--out", &out, "--quiet", "And God said"]);
        json(&path)
    };
    let tuned = format!("tuned:{}/tuned-lens", bundled("tiny-gpt2"));
    let (logit, tuned) = (look("logit", "a.json"), look(&tuned, "b.json"));
    let rows = logit["rows"].as_array().unwrap().len();
    assert_eq!(logit["rows"][rows - 1]["top1"], tuned["rows"][rows - 1]["top1"]);
    let sum = |table: &serde_json::Value, row: usize| -> f64 {
        table["rows"][row]["values"]["kl"].as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).sum()
    };
    assert!(sum(&tuned, 0) < sum(&logit, 0));
}

#[test]
fn lenses_that_do_not_fit_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("a.png").display().to_string();
    let own = format!("tuned:{}/tuned-lens", bundled("tiny-gpt2"));
    let cases: [(&[&str], &str); 6] = [
        (&["--lens", "tuned:/nonexistent", "x"], "/nonexistent/config.json"),
        (&["--lens", "tuned:", "x"], "tuned:DIR"),
        (&["--lens", "other", "x"], "tuned:DIR"),
        (&["--lens", &own, "--subblocks", "x"], "h.0.attn"),
        (&["--lens", &own, "--decoder", "h.7,final_layernorm,lm_head", "x"], "decoder"),
        (&["--lens", &own, "--model", &golden("gpt2_plain"), "--ids", "1,2"], "another model"),
    ];
    for (arguments, named) in cases {
        let line = refuse("logit_lens", &[arguments, &["--out", &out]].concat());
        assert!(line.contains(named), "{arguments:?}: {line}");
    }
    // The same sizes, but another model's unembedding.
    let neo = bundled("tiny-gpt-neo");
    let line = refuse("logit_lens", &["--lens", &own, "--model", &neo, "--dtype", "f32", "--out", &out, "x"]);
    assert!(line.contains("another model") && line.contains("hash"), "{line}");
    assert_eq!(inside(folder.path()), [""; 0]);
}

#[test]
fn training_that_cannot_begin_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let text = text(folder.path());
    let out = folder.path().join("lens").display().to_string();
    let deep = folder.path().join("no/such/lens").display().to_string();
    let cases: [(&[&str], &str); 7] = [
        (&["--text", "/nonexistent", "--out", &out], "/nonexistent"),
        (&["--text", &text, "--out", &deep], "does not exist"),
        (&["--text", &text, "--out", &out, "--context", "300"], "256"),
        (&["--text", &text, "--out", &out, "--held-out", "0.001"], "held-out part"),
        (&["--text", &text, "--out", &out, "--held-out", "1.5"], "--held-out"),
        (&["--text", &text, "--out", &out, "--batch", "0"], "--batch"),
        (&["--text", &text, "--out", &out, "--plot", "a.bmp"], "a.bmp"),
    ];
    for (arguments, named) in cases {
        let line = refuse("tune_lens", arguments);
        assert!(line.contains(named), "{arguments:?}: {line}");
    }
    assert_eq!(inside(folder.path()), ["text.txt"]);
}
