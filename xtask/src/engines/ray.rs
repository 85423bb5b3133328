//! `engines/ray` on a cluster of one node with two processors.

use std::{
    fs,
    process::{Child, Command},
};

use anyhow::{Context, Result, ensure};

use super::{
    process::{Process, logged},
    tools::{Python, output},
    trial::{PIECES, QUIET, RETRIES, Trial, contents, end, runs},
};

/// In the namespace every port is free.
const ADDRESS: &str = "127.0.0.1:6379";

pub(super) fn run(trial: &mut Trial, python: &Python) -> Result<&'static str> {
    let home = trial.place("ray");
    fs::create_dir_all(&home)?;
    let command = || {
        let mut command = python.command();
        // What Ray keeps for its user (a token) belongs to this cluster.
        command.env("HOME", &home).env("RAY_USAGE_STATS_ENABLED", "0").env("RAY_ADDRESS", ADDRESS).envs(QUIET);
        command
    };
    let scripts = |arguments: &[&str]| {
        let mut command = command();
        command.args(["-m", "ray.scripts.scripts"]).args(arguments);
        command
    };
    let temporary = format!("--temp-dir={}", home.display());
    // Small: what tasks hand over here is a line of text.
    let memory = ["--object-store-memory=80000000", "--include-dashboard=false", "--disable-usage-stats"];
    let head = ["start", "--head", "--node-ip-address=127.0.0.1", "--port=6379", "--num-cpus=2", &temporary];
    let mut start = scripts(&[&head[..], &memory].concat());
    start.env_remove("RAY_ADDRESS");
    trial.succeed(start, "ray-start")?;
    trial.line("ray: a node is up", Ok(output(&mut scripts(&["--version"]))?.trim().to_owned()));

    let recipe = |trial: &Trial, out: &std::path::Path| {
        let mut command = command();
        command.arg(trial.recipe("ray/activations.py")).args(["--pieces", &PIECES.to_string(), "--program"]);
        command.arg(&trial.program).args(["--retries", &RETRIES.to_string(), "--out"]).arg(out).arg("--");
        command
    };
    let log = trial.logs().join("ray");
    trial.rounds("ray", |trial, number, most| {
        let out = trial.place(&format!("ray-{number}"));
        let mut driver = Driver::start(recipe(trial, &out).args(trial.arguments()), &log)?;
        let program = runs(&trial.program);
        // A worker is called by what it does.
        let worker = |process: &Process| process.arguments[0].starts_with("ray::run");
        let victims = |process: &Process| program(process) || worker(process);
        let kills = trial.strike(most, &victims, &mut || driver.finished())?;
        ensure!(driver.succeeded, "the driver failed: {}", end(&log));
        let found = contents(&out)?;
        fs::remove_dir_all(&out)?;
        Ok((kills, found))
    });
    let refused = trial.place("ray-refused");
    let mut command = recipe(trial, &refused);
    command.args(trial.arguments_for("h.99"));
    let result = command.output().context("starting the driver").and_then(|output| {
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        ensure!(!output.status.success() && said.contains("h.99"), "{said}");
        Ok("the driver says why and fails".into())
    });
    trial.line("ray: a name that does not exist", result);
    let stopped = trial.succeed(scripts(&["stop", "--force"]), "ray-stop");
    stopped.map(|()| "ray")
}

/// The recipe at work.
pub(super) struct Driver {
    child: Child,
    /// Once it has finished.
    pub succeeded: bool,
}

impl Driver {
    pub(super) fn start(command: &mut Command, log: &std::path::Path) -> Result<Self> {
        Ok(Self { child: logged(command, log)?.spawn().context("starting the driver")?, succeeded: false })
    }

    pub(super) fn finished(&mut self) -> Result<bool> {
        let status = self.child.try_wait().context("waiting for the driver")?;
        self.succeeded = status.is_some_and(|status| status.success());
        Ok(status.is_some())
    }
}
