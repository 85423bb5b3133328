//! What partial runs cost in memory, measured in processes of their own, and what happens when there is not enough.

#![cfg(target_os = "linux")]

use std::{fs, process::Command};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use transformer_utils::{
    models::{Config, Input, LogitsAt, Model, NoObserver},
    partial::{Edit, Run, partial_forward},
    tch::{Kind, TchError, Tensor, no_grad},
};

const MEBIBYTE: u64 = 1 << 20;
const CHILD: &str = "MEMORY_TEST_CHILD";

/// Runs `body` in a process that runs nothing else: this test program, asked for the one test `name`.
fn in_child(name: &str, body: fn()) {
    if std::env::var_os(CHILD).is_some() {
        return body();
    }
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", &format!("memory::{name}"), "--nocapture", "--test-threads", "1"]).env(CHILD, "1");
    // Lets the C library give large blocks back as soon as they are freed, instead of keeping them for later. One thread: each
    // has a stack, and many small tensors are no work for several.
    child.env("MALLOC_MMAP_THRESHOLD_", "65536").env("OMP_NUM_THREADS", "1");
    let output = child.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{}\n{text}", output.status);
}

/// A line of this process's status, in bytes.
fn status(name: &str) -> u64 {
    let text = fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap();
    line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap() * 1024
}

fn model(family: &str, positions: i64) -> Model {
    let config = match family {
        "gpt2" => format!(
            r#"{{"model_type": "gpt2", "n_layer": 2, "n_head": 4, "n_embd": 64, "vocab_size": 100, "n_positions": {positions}}}"#
        ),
        _ => format!(
            r#"{{"model_type": "gpt_neo", "num_layers": 2, "num_heads": 4, "hidden_size": 64, "vocab_size": 100,
                "max_position_embeddings": {positions}, "window_size": 8, "attention_types": [[["global", "local"], 1]]}}"#
        ),
    };
    Model::random(Config::from_json(&config).unwrap(), 1).unwrap()
}

fn input(batch: i64, length: i64) -> Input {
    let row = |row: i64| (0..length).map(|position| (7 * row + 3 * position) % 100).collect::<Vec<_>>();
    Input::from_rows(&(0..batch).map(row).collect::<Vec<_>>()).unwrap()
}

#[test]
fn a_thousand_partial_forwards_leave_memory_flat() {
    in_child("a_thousand_partial_forwards_leave_memory_flat", || {
        let models = ["gpt2", "gpt_neo"].map(|family| model(family, 64));
        // One of them records gradients.
        let _weights = models[1].trainable(0..models[1].parts().len()).unwrap();
        let input = input(2, 64);
        let too_many = self::input(2, 65);
        let mut held = Vec::new();
        for round in 0..1000 {
            let model = &models[round % 2];
            let sites: Vec<String> = model.sites().iter().map(|info| info.names[0].clone()).collect();
            let name = |step: usize| sites[(round / 2 * step + step) % sites.len()].as_str();
            let names = [name(1), name(3), "h.1.attn.z"];
            let run = Run::new(model, &names).unwrap();
            let result = match round % 7 {
                0 | 1 => run.run(&input),
                2 => run.edit("h.0.attn.q", Edit::zero().heads(1..2)).unwrap().run(&input),
                3 => run.edit("h.1.attn.z", Edit::mean().positions(3..9)).unwrap().to_kind(Kind::Double).run(&input),
                4 => run.positions(60..64).run(&input),
                // Runs that fail leave nothing behind, either.
                5 => run.edit("h.0.mlp", Edit::with(|_| Err(TchError::Shape("no".into())))).unwrap().run(&input),
                _ => run.run(&too_many),
            };
            assert_eq!(result.is_ok(), round % 7 < 5, "{result:?}");
            drop(result);
            held.push(status("RssAnon"));
        }
        // A residual stream is 32 KiB: whoever kept one in each round would be 16 MiB up.
        let most = |rounds: &[u64]| rounds.iter().copied().max().unwrap();
        let (early, late) = (most(&held[..500]), most(&held[500..]));
        assert!(late <= early + 2 * MEBIBYTE, "{early} bytes in the first 500 rounds, {late} in the second");
    });
}

#[test]
fn capturing_every_site_allocates_the_captures_and_nothing_else() {
    in_child("capturing_every_site_allocates_the_captures_and_nothing_else", || {
        for family in ["gpt2", "gpt_neo"] {
            let (model, input) = (model(family, 512), input(4, 512));
            let infos: Vec<_> = model.sites().iter().collect();
            let names: Vec<&str> = infos.iter().map(|info| info.names[0].as_str()).collect();
            let aliases: Vec<&str> = infos.iter().flat_map(|info| &info.names).map(String::as_str).collect();
            let bytes = |tensor: &Tensor| tensor.numel() as u64 * tensor.kind().elt_size_in_bytes() as u64;
            // Starts libtorch's threads and fills its caches, with nothing that would be worth keeping.
            drop(partial_forward(&model, &names, self::input(1, 16)).unwrap());

            let before = status("RssAnon");
            let output = partial_forward(&model, &names, &input).unwrap();
            let grown = status("RssAnon").saturating_sub(before);
            let captured: u64 = output.iter().map(|(_, tensor)| bytes(tensor)).sum();
            assert!(captured > 80 * MEBIBYTE, "{captured}");
            // Threads' stacks and small blocks; a second copy of one block's scores would be 16 MiB.
            let excess = grown as i64 - captured as i64;
            assert!(excess.unsigned_abs() < 4 * MEBIBYTE, "{family}: {grown} bytes for {captured} bytes of captures");

            // Each capture is the run's own tensor and holds on to nothing larger.
            for (name, tensor) in output.iter() {
                assert!(output.shares_storage(name).unwrap().len() <= 1, "{name}");
                let dense: i64 =
                    tensor.size().into_iter().zip(tensor.stride()).map(|(size, step)| (size - 1) * step).sum();
                assert_eq!(dense + 1, tensor.numel() as i64, "{name} is a part of something larger");
            }
            // A second name of a site costs nothing.
            drop(output);
            let output = partial_forward(&model, &aliases, &input).unwrap();
            for info in &infos {
                for name in &info.names[1..] {
                    assert!(output.shares_storage(name).unwrap().contains(&info.names[0].as_str()), "{name}");
                }
            }
        }
    });
}

/// Lets this process have `more` bytes of addresses beyond what it has. Linux lets every process have less.
fn limit(more: u64) {
    let maximum = getrlimit(Resource::As).maximum;
    let current = status("VmSize") + more;
    assert!(
        maximum.is_none_or(|maximum| current <= maximum),
        "{maximum:?} bytes of addresses are too few for the test"
    );
    setrlimit(Resource::As, Rlimit { current: Some(current), maximum }).unwrap();
}

#[test]
fn full_memory_while_capturing_is_an_error_that_names_the_site() {
    in_child("full_memory_while_capturing_is_an_error_that_names_the_site", || {
        let model = model("gpt2", 1024);
        let input = input(16, 1024);
        let logits = || {
            let input = self::input(1, 8).logits_at(LogitsAt::Last);
            model.forward(&input, &mut NoObserver).unwrap().logits.unwrap()
        };
        let expected = logits();
        no_grad(|| drop(partial_forward(&model, &["h.1"], &input).unwrap()));
        limit(100 * MEBIBYTE);
        // 256 MiB of scores, where the model without anybody watching makes none.
        for name in ["h.1.attn.pattern", "h.0.attn.scores"] {
            let error = partial_forward(&model, &[name], &input).unwrap_err().to_string();
            let site = name.replace("pattern", "scores");
            assert!(error.contains(&site) && error.contains("memory"), "{error}");
            assert!(logits().equal(&expected));
        }
        // An edit that needs more than there is.
        let edit = Edit::with(|value| value.f_tile([64, 1, 1]));
        let run = Run::new(&model, &["h.0.mlp.act"]).unwrap().edit("h.0.mlp.act", edit).unwrap();
        let error = run.run(&input).unwrap_err().to_string();
        assert!(error.contains("h.0.mlp.act") && error.contains("memory"), "{error}");
        assert!(logits().equal(&expected));
        // Captures that fill it one by one.
        let names =
            ["h.0.mlp.c_fc", "h.0.mlp.act", "h.0.attn.result", "h.1.mlp.c_fc", "h.1.mlp.act", "h.1.attn.result"];
        let error = Run::new(&model, &names).unwrap().to_kind(Kind::Double).run(&input).unwrap_err().to_string();
        assert!(model.sites().iter().any(|info| error.contains(&info.site.to_string())), "{error}");
        assert!(error.contains("memory"), "{error}");
        assert!(logits().equal(&expected));
        assert!(partial_forward(&model, &["h.1"], &input).is_ok());
    });
}
