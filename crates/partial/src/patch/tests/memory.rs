//! What sweeps really hold, beside what they were planned to.

use std::{
    process::Command,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Duration,
};

use super::*;

/// Anonymous memory of this process in bytes.
fn anonymous() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// The most that `work` adds to it.
fn added<T>(work: impl FnOnce() -> T) -> (u64, T) {
    let (before, most, running) = (anonymous(), AtomicU64::new(0), AtomicBool::new(true));
    let result = thread::scope(|scope| {
        scope.spawn(|| {
            while running.load(Ordering::Relaxed) {
                most.fetch_max(anonymous(), Ordering::Relaxed);
                thread::sleep(Duration::from_micros(200));
            }
        });
        let result = work();
        running.store(false, Ordering::Relaxed);
        result
    });
    (most.into_inner().saturating_sub(before), result)
}

const MEASURED: &str = "PARTIAL_MEASURES_PATCHING";

#[test]
#[cfg(target_os = "linux")]
fn a_sweep_stays_within_its_budget() {
    const NAME: &str = "patch::tests::memory::a_sweep_stays_within_its_budget";
    if std::env::var_os(MEASURED).is_none() {
        // In a process of its own, where every larger tensor is a mapping that goes when the tensor does.
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", NAME, "--nocapture"])
            .env(MEASURED, "1")
            .env("MALLOC_MMAP_THRESHOLD_", "16384")
            .env("MALLOC_ARENA_MAX", "1")
            .output();
        let child = child.unwrap();
        let said = String::from_utf8_lossy(&child.stdout).into_owned() + &String::from_utf8_lossy(&child.stderr);
        assert!(child.status.success(), "{said}");
        println!("{said}");
        return;
    }
    let gpt2 = r#"{"model_type": "gpt2", "n_layer": 2, "n_head": 8, "n_embd": 256, "vocab_size": 5000}"#;
    let llama = r#"{"model_type": "llama", "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 2,
        "hidden_size": 256, "intermediate_size": 768, "vocab_size": 5000, "rms_norm_eps": 1e-6, "max_position_embeddings": 64,
        "hidden_act": "silu"}"#;
    let gemma2 = r#"{"model_type": "gemma2", "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 2,
        "head_dim": 32, "hidden_size": 256, "intermediate_size": 768, "vocab_size": 5000, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 64, "sliding_window": 5, "query_pre_attn_scalar": 32, "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0, "hidden_activation": "gelu_pytorch_tanh"}"#;
    let mixtral = r#"{"model_type": "mixtral", "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 2,
        "hidden_size": 256, "intermediate_size": 512, "vocab_size": 5000, "rms_norm_eps": 1e-5, "num_local_experts": 4,
        "num_experts_per_tok": 2, "max_position_embeddings": 64, "hidden_act": "silu"}"#;
    for (name, config) in [("gpt2", gpt2), ("llama", llama), ("gemma2", gemma2), ("mixtral", mixtral)] {
        let model = model(config);
        let (clean, corrupted) = pair(1, 48);
        let metric = Metric::kl(&model.logits(&clean).unwrap().select(1, 47));
        for site in ["h.0.attn.z", "h.0.attn.pattern", "h.0.attn.result"] {
            let patching = Patching::new(&model, &clean, &corrupted).unwrap().sites(site).unwrap();
            let patching = patching.each_head().each_position().positions(4..9);
            drop(patching.run(&metric).unwrap());
            let budget = 32 << 20;
            let (added, patched) = added(|| patching.memory_budget(budget).run(&metric).unwrap());
            let report = patched.report;
            println!(
                "{name} {site}: added {} KiB, planned {} KiB, largest batch {}",
                added >> 10,
                report.bytes >> 10,
                report.largest_batch
            );
            assert!(added <= report.bytes, "{name} {site}: {added} bytes instead of {}", report.bytes);
            assert!(report.bytes <= budget && report.largest_batch > 2, "{name} {site}: {report:?}");
        }
    }
}
