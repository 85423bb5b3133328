//! `engines/kubernetes`: the manifests against Kubernetes' schema, and their pods as processes that write to an object store.

use std::{fs, net::TcpStream, path::Path, process::Command};

use anyhow::{Context, Result, ensure};

use super::{
    process::Service,
    ray::Driver,
    tools::{Python, output},
    trial::{NAMES, PIECES, QUIET, RETRIES, Trial, contents, end, runs},
};

/// In the namespace every port is free.
const ADDRESS: &str = "127.0.0.1:5000";

/// What the manifest's Secret holds. The store takes every key.
const STORE: [(&str, &str); 6] = [
    ("AWS_ACCESS_KEY_ID", "loopback"),
    ("AWS_SECRET_ACCESS_KEY", "loopback"),
    ("AWS_REGION", "us-east-1"),
    ("AWS_ENDPOINT", "http://127.0.0.1:5000"),
    // The same for the Python client.
    ("AWS_ENDPOINT_URL", "http://127.0.0.1:5000"),
    ("AWS_ALLOW_HTTP", "true"),
];

pub(super) fn run(trial: &mut Trial, python: &Python) -> Result<&'static str> {
    let (pieces, merge) = (trial.recipe("kubernetes/activations.yaml"), trial.recipe("kubernetes/merge.yaml"));
    let script = |trial: &Trial, name: &str| {
        let mut command = python.command();
        command.arg(trial.recipe("kubernetes").join(name)).envs(STORE).envs(QUIET);
        command
    };
    let valid = output(script(trial, "stand_in.py").arg("validate").args([&pieces, &merge]));
    trial.line("kubernetes: the manifests", valid.map(|said| said.trim().to_owned()));
    for (right, wrong) in [
        ("backoffLimitPerIndex", "backoffLimitPerindex"),
        ("Indexed", "indexed"),
        ("\"4\"", "[4]"),
        ("completions: 64", "completions: 63"),
    ] {
        let result = misspelt(trial, script(trial, "stand_in.py"), &pieces, right, wrong);
        trial.line(&format!("kubernetes: {wrong} in place of {right}"), result);
    }

    let mut command = python.command();
    let mut store =
        Service::start("store", command.args(["-m", "moto.server", "-H", "127.0.0.1", "-p", "5000"]), &trial.logs())?;
    store.wait_for(|| TcpStream::connect(ADDRESS).is_ok())?;
    let client = |trial: &Trial, arguments: &[&str]| output(script(trial, "store.py").args(arguments));
    client(trial, &["make", "corpus"])?;
    client(trial, &["make", "activations"])?;
    client(trial, &["put", "corpus", "texts.jsonl", &trial.texts().display().to_string()])?;

    // The texts have another address there, which is in the job's identity and so in every object. Nobody is killed.
    let whole = trial.place("kubernetes-whole");
    let mut single = Command::new(&trial.program);
    single.args(["--model".as_ref(), trial.model().as_os_str()]).args([
        "--names",
        NAMES,
        "--store=bf16",
        "--file-mib=1",
    ]);
    single.args(["--file=s3://corpus/texts.jsonl", "--out=s3://activations/whole"]).envs(STORE).envs(QUIET);
    trial.succeed(single, "kubernetes-whole")?;
    client(trial, &["get", "activations", "whole/", &whole.display().to_string()])?;
    let expected = contents(&whole)?;
    let result = trial.compare_values(&expected);
    trial.line("kubernetes: an uninterrupted run from and to the store", result);
    let expected = trial.expect(expected);

    let log = trial.logs().join("kubernetes");
    let mut unfinished = String::new();
    trial.rounds("kubernetes", |trial, number, most| {
        let address = format!("s3://activations/round-{number}");
        let run = |manifest: &Path| {
            let mut command = script(trial, "stand_in.py");
            command.arg("run").arg(manifest).arg("--program").arg(&trial.program);
            command.args(["--retries", &RETRIES.to_string()]);
            command
        };
        let mut jobs = [run(&pieces), run(&merge)];
        jobs[0].args(["--pieces", &PIECES.to_string()]);
        let model = trial.model().display().to_string();
        // Of the manifest's arguments only those that are about this corpus.
        for (argument, with) in [
            ("--model=gpt2-xl", format!("--model={model}")),
            ("--names=h.20,h.30", format!("--names={NAMES}")),
            ("--store=bf16", "--store=bf16\n--file-mib=1".into()),
            ("--out=s3://activations/gpt2-xl", format!("--out={address}")),
        ] {
            jobs[0].arg(format!("--replace={argument}\n{with}"));
        }
        jobs[1].arg(format!("--replace=s3://activations/gpt2-xl\n{address}"));
        let mut kills = 0;
        for mut job in jobs {
            let mut driver = Driver::start(&mut job, &log)?;
            kills += trial.strike(most - kills, &runs(&trial.program), &mut || driver.finished())?;
            ensure!(driver.succeeded, "a Job failed: {}", end(&log));
        }
        let folder = trial.place(&format!("kubernetes-{number}"));
        client(trial, &["get", "activations", &format!("round-{number}/"), &folder.display().to_string()])?;
        unfinished += &client(trial, &["uploads", "activations"])?;
        let found = contents(&folder)?;
        fs::remove_dir_all(&folder)?;
        Ok((kills, found))
    });
    trial.expect(expected);
    let uploads = if unfinished.is_empty() { Ok("none".into()) } else { Err(anyhow::anyhow!(unfinished)) };
    trial.line("kubernetes: uploads left over in the store", uploads);
    store.stop();
    Ok("kubernetes")
}

/// A manifest with a mistake has to be refused: a check that takes everything checks nothing.
fn misspelt(trial: &Trial, mut command: Command, manifest: &Path, right: &str, wrong: &str) -> Result<String> {
    let text = fs::read_to_string(manifest).with_context(|| format!("reading {}", manifest.display()))?;
    ensure!(text.contains(right), "the manifest has no {right}");
    let copy = trial.place("misspelt.yaml");
    fs::write(&copy, text.replace(right, wrong))?;
    let output = command.arg("validate").arg(&copy).output().context("starting Python")?;
    ensure!(!output.status.success(), "it is taken");
    Ok("refused".into())
}
