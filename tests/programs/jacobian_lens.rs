//! Fitting a Jacobian lens, and looking through it.

use std::fs;

use crate::program::{json, refuse, root, succeed};

#[test]
fn what_is_fitted_is_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    fs::copy(root().join("tests/held-out.txt"), at("text.txt")).unwrap();
    let text = at("text.txt");
    let (first, second) = (at("lens.pt"), at("again.pt"));
    let fit = |out: &str| {
        let size = ["--context", "12", "--skip-first", "4", "--sequences", "2", "--at-once", "40"];
        succeed("jacobian_lens", &[&["--dtype", "f32", "--text", &text, "--out", out][..], &size].concat())
    };
    assert!(fit(&first).contains("2 sequences of 12 tokens"));
    fit(&second);
    // There is no chance in it.
    assert_eq!(fs::read(&first).unwrap(), fs::read(&second).unwrap());
    let lens = format!("jacobian:{first}");
    let out = at("t.json");
    succeed("logit_lens", &["--lens", &lens, "--measure", "kl", "--out", &out, "--quiet", "In the beginning"]);
    let table = json(&folder.path().join("t.json"));
    assert_eq!((&table["lens"], &table["rows"][0]["name"]), (&"jacobian".into(), &"h.0".into()));
    let refused = refuse("logit_lens", &["--lens", "jacobian:", "a"]);
    assert!(refused.contains("jacobian:FILE"), "{refused}");
    let short = ["--text", &text, "--out", &second, "--context", "12"];
    assert!(refuse("jacobian_lens", &short).contains("--skip-first 16 needs at least 18"));
}
