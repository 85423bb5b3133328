//! Plain processes: the least that an engine is.

use std::{
    collections::VecDeque,
    fs,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command},
};

use anyhow::{Context, Result, ensure};

use super::{
    process::logged,
    trial::{PIECES, Trial, contents, end, runs},
};

pub(super) fn run(trial: &mut Trial) -> Result<&'static str> {
    for pieces in [1, 2, 7] {
        let result = undisturbed(trial, pieces);
        trial.line(&format!("processes: {pieces} pieces, last to first, nobody killed"), result);
    }
    trial.rounds("processes", |trial, number, most| {
        let out = trial.place(&format!("processes-{number}"));
        let log = trial.logs().join("processes");
        let victims = runs(&trial.program);
        let pieces = (0..PIECES).map(|piece| trial.activations(&out, Some((piece, PIECES)))).collect();
        let mut workers = Workers::new(pieces, &log)?;
        let mut kills = trial.strike(most, &victims, &mut || workers.finished())?;
        let mut workers = Workers::new(vec![trial.merge(&out)], &log)?;
        kills += trial.strike(most - kills, &victims, &mut || workers.finished())?;
        let found = contents(&out)?;
        fs::remove_dir_all(&out)?;
        Ok((kills, found))
    });
    Ok("processes")
}

/// Some pieces, the last first, one after the other.
fn undisturbed(trial: &Trial, pieces: u32) -> Result<String> {
    let out = trial.place(&format!("pieces-{pieces}"));
    for piece in (0..pieces).rev() {
        trial.succeed(trial.activations(&out, Some((piece, pieces))), "pieces")?;
    }
    trial.succeed(trial.merge(&out), "pieces")?;
    trial.compare(&contents(&out)?)?;
    fs::remove_dir_all(&out)?;
    Ok("the bytes of the uninterrupted run, no more files".into())
}

/// Commands, two at a time, each until it succeeds.
struct Workers {
    commands: Vec<Command>,
    waiting: VecDeque<usize>,
    running: Vec<(usize, Child)>,
    log: PathBuf,
}

impl Workers {
    fn new(mut commands: Vec<Command>, log: &Path) -> Result<Self> {
        for command in &mut commands {
            logged(command, log)?;
        }
        Ok(Self { waiting: (0..commands.len()).collect(), commands, running: Vec::new(), log: log.to_owned() })
    }

    /// Starts what can be started, again what was killed: whether all have succeeded.
    fn finished(&mut self) -> Result<bool> {
        for (command, mut child) in std::mem::take(&mut self.running) {
            match child.try_wait().context("waiting for a piece")? {
                None => self.running.push((command, child)),
                Some(status) if status.success() => {}
                Some(status) => {
                    ensure!(status.signal().is_some(), "a piece ended with {status}: {}", end(&self.log));
                    self.waiting.push_back(command);
                }
            }
        }
        while self.running.len() < 2 {
            let Some(command) = self.waiting.pop_front() else { break };
            self.running.push((command, self.commands[command].spawn().context("starting a piece")?));
        }
        Ok(self.running.is_empty())
    }
}
