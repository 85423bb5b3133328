//! The corpus, the run that nobody interrupts, the kills, and what is compared.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt::Write,
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::{environment::Environment, steps};

use super::process::{Process, left_over, logged};

/// Into how many pieces every engine divides the corpus.
pub const PIECES: u32 = 6;

/// How often something that was killed is started again. More than are killed.
pub const RETRIES: u32 = 1000;

/// Several run at once: each computes on one processor.
pub const QUIET: [(&str, &str); 1] = [("OMP_NUM_THREADS", "1")];

/// What is asked for.
pub const NAMES: &str = "h.1,h.3.mlp,h.5";

/// Texts of the corpus.
const TEXTS: usize = 400;

/// A round that takes longer has stopped.
const PATIENCE: Duration = Duration::from_secs(1200);

/// One run of the command.
pub struct Trial<'a> {
    /// Paths and variables.
    pub environment: &'a Environment,
    /// The program `activations`.
    pub program: PathBuf,
    /// How many processes each engine loses.
    pub kills: u32,
    /// In memory, for all that is written.
    folder: TempDir,
    /// What every folder of activations must hold.
    expected: Contents,
    /// The longest pause before a kill: what a piece takes, twice.
    pause: Duration,
    random: fastrand::Rng,
    passed: u32,
    failed: u32,
}

/// The files of a folder by their paths in it.
pub type Contents = BTreeMap<String, Vec<u8>>;

impl<'a> Trial<'a> {
    /// Writes the corpus and makes the uninterrupted run.
    ///
    /// # Errors
    /// If it fails.
    pub fn new(environment: &'a Environment, program: &Path, kills: u32, seed: u64) -> Result<Self> {
        let folder =
            tempfile::Builder::new().prefix("engines-").tempdir_in("/dev/shm").context("a folder in memory")?;
        let mut trial = Self {
            environment,
            program: std::path::absolute(program)?,
            kills,
            folder,
            expected: Contents::new(),
            pause: Duration::ZERO,
            random: fastrand::Rng::with_seed(seed),
            passed: 0,
            failed: 0,
        };
        fs::create_dir_all(trial.logs())?;
        let source = environment.workspace.join("assets/word-order/held-out.tsv");
        let source = fs::read_to_string(&source).with_context(|| format!("reading {}", source.display()))?;
        fs::write(trial.texts(), corpus(&source)).context("writing the corpus")?;

        let began = Instant::now();
        let out = trial.place("uninterrupted");
        trial.succeed(trial.activations(&out, None), "uninterrupted")?;
        trial.pause = began.elapsed() * 2 / PIECES;
        trial.expected = contents(&out)?;
        ensure!(trial.expected.contains_key("manifest.json"), "the uninterrupted run wrote no manifest.json");
        let bytes: usize = trial.expected.values().map(Vec::len).sum();
        let what = format!("{TEXTS} texts, {} files, {bytes} bytes, {:.1?}", trial.expected.len(), began.elapsed());
        trial.line("an uninterrupted run", Ok(what));
        Ok(trial)
    }

    /// The texts.
    pub fn texts(&self) -> PathBuf {
        self.folder.path().join("texts.jsonl")
    }

    /// Where everything that runs says what it has to say.
    pub fn logs(&self) -> PathBuf {
        self.folder.path().join("logs")
    }

    /// A path for whatever is written.
    pub fn place(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The bundled model.
    pub fn model(&self) -> PathBuf {
        self.environment.workspace.join("assets/tiny-gpt2")
    }

    /// A file of the recipes.
    pub fn recipe(&self, name: &str) -> PathBuf {
        self.environment.workspace.join("engines").join(name)
    }

    /// What is asked of the program, but for the place and the piece.
    pub fn arguments(&self) -> Vec<OsString> {
        self.arguments_for(NAMES)
    }

    /// The same with other names.
    pub fn arguments_for(&self, names: &str) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = vec!["--model".into(), self.model().into()];
        arguments.extend(["--file".into(), self.texts().into()]);
        // Small files, so that a piece has some.
        arguments.extend(["--names", names, "--store", "bf16", "--file-mib", "1"].map(OsString::from));
        arguments
    }

    /// The program at work on a piece, or on all.
    pub fn activations(&self, out: &Path, piece: Option<(u32, u32)>) -> Command {
        let mut command = Command::new(&self.program);
        command.args(self.arguments()).arg("--out").arg(out).envs(QUIET);
        if let Some((piece, pieces)) = piece {
            command.args(["--shard".to_owned(), format!("{piece}/{pieces}")]);
        }
        command
    }

    /// The program that checks and joins.
    pub fn merge(&self, out: &Path) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("merge").arg(out).envs(QUIET);
        command
    }

    /// Runs a command to its end; what it said is in the log `name`.
    ///
    /// # Errors
    /// If it fails, with the end of what it said.
    pub fn succeed(&self, mut command: Command, name: &str) -> Result<()> {
        let log = self.logs().join(name);
        let status = logged(&mut command, &log)?.status().with_context(|| format!("starting {name}"))?;
        ensure!(status.success(), "{name} ended with {status}: {}", end(&log));
        Ok(())
    }

    /// Kills processes at random moments until `finished`, but no more than `most`: how many it killed.
    ///
    /// # Errors
    /// If `finished` does, or if it takes too long.
    pub fn strike(
        &mut self,
        most: u32,
        victims: &dyn Fn(&Process) -> bool,
        finished: &mut dyn FnMut() -> Result<bool>,
    ) -> Result<u32> {
        let began = Instant::now();
        let mut kills = 0;
        let pause = |random: &mut fastrand::Rng| Instant::now() + self.pause.mul_f64(random.f64());
        let mut next = pause(&mut self.random);
        while !finished()? {
            if kills < most && Instant::now() >= next {
                let mut all = Process::all();
                all.retain(victims);
                if !all.is_empty() {
                    kills += u32::from(all[self.random.usize(..all.len())].kill());
                    next = pause(&mut self.random);
                }
            }
            ensure!(began.elapsed() < PATIENCE, "not finished after {PATIENCE:.0?}");
            thread::sleep(Duration::from_millis(5));
        }
        Ok(kills)
    }

    /// Rounds in fresh places until enough were killed. `round` gets its number and how many to kill, and gives how many it
    /// did, and what it wrote.
    pub fn rounds(&mut self, name: &str, mut round: impl FnMut(&mut Self, u32, u32) -> Result<(u32, Contents)>) {
        let (began, mut kills, mut number) = (Instant::now(), 0, 0);
        let result = loop {
            match round(self, number, self.kills - kills) {
                Ok((killed, found)) => {
                    (kills, number) = (kills + killed, number + 1);
                    if let Err(error) = self.compare(&found) {
                        break Err(error.context(format!("round {number}, after {killed} kills")));
                    }
                }
                Err(error) => break Err(error),
            }
            if kills >= self.kills {
                let seconds = began.elapsed().as_secs();
                break Ok(format!(
                    "{kills} kills, {number} rounds, {seconds} s: the bytes of the uninterrupted run, no more files"
                ));
            }
            if number >= self.kills.max(10) {
                break Err(anyhow::anyhow!("only {kills} processes were killed in {number} rounds"));
            }
        };
        self.line(name, result);
    }

    /// Expects something else from now on: what was expected before.
    pub fn expect(&mut self, expected: Contents) -> Contents {
        std::mem::replace(&mut self.expected, expected)
    }

    /// Whether the tensors of another uninterrupted run are the same: safetensors files, but for their headers.
    ///
    /// # Errors
    /// If not, naming the files.
    pub fn compare_values(&self, found: &Contents) -> Result<String> {
        let names = |contents: &Contents| contents.keys().cloned().collect::<Vec<_>>();
        ensure!(
            names(found) == names(&self.expected),
            "other files: {:?} and {:?}",
            names(found),
            names(&self.expected)
        );
        let (mut files, mut bytes) = (0, 0);
        for (name, expected) in self.expected.iter().filter(|(name, _)| name.ends_with(".safetensors")) {
            let same = values(expected).context("a short file")?;
            ensure!(found.get(name).and_then(|found| values(found)) == Some(same), "the values in {name} differ");
            (files, bytes) = (files + 1, bytes + same.len());
        }
        ensure!(files > 0, "no safetensors files");
        Ok(format!("{files} files with the values of the uninterrupted run, {bytes} bytes"))
    }

    /// Whether what was found is what the uninterrupted run wrote.
    ///
    /// # Errors
    /// If not, naming the files.
    pub fn compare(&self, found: &Contents) -> Result<()> {
        let mut wrong = String::new();
        for (name, bytes) in &self.expected {
            match found.get(name) {
                None => write!(wrong, "{name} is missing; ")?,
                Some(other) if other != bytes => write!(wrong, "{name} differs; ")?,
                Some(_) => {}
            }
        }
        for name in found.keys().filter(|name| !self.expected.contains_key(*name)) {
            write!(wrong, "{name} is left over; ")?;
        }
        if wrong.is_empty() { Ok(()) } else { bail!("{}", wrong.trim_end_matches("; ")) }
    }

    /// Shows how a check ended.
    pub fn line(&mut self, name: &str, result: Result<String>) {
        match result {
            Ok(what) => {
                self.passed += 1;
                println!("  ok      {name}: {what}");
            }
            Err(error) => {
                self.failed += 1;
                println!("  FAILED  {name}: {error:#}");
            }
        }
    }

    /// After an engine: whether it could be run at all, and what it left.
    pub fn end(&mut self, result: Result<&'static str>) {
        let name = match result {
            Ok(name) => name,
            Err(error) => {
                self.line("an engine", Err(error));
                "that engine"
            }
        };
        let left = left_over(Duration::from_secs(10));
        let lines: Vec<_> = left.iter().map(|process| process.arguments.join(" ")).collect();
        // The next engine finds an empty machine.
        for process in &left {
            process.kill();
        }
        let result = if left.is_empty() { Ok("none".to_owned()) } else { Err(anyhow::anyhow!(lines.join("; "))) };
        self.line(&format!("{name}: processes left over"), result);
    }

    /// The last line.
    ///
    /// # Errors
    /// If a check failed.
    pub fn summary(self) -> Result<()> {
        println!("{} passed, {} failed", self.passed, self.failed);
        if self.failed == 0 {
            return Ok(());
        }
        // What is in memory goes with us.
        let kept = steps::target(self.environment).join("engines-logs");
        fs::create_dir_all(&kept).with_context(|| format!("making {}", kept.display()))?;
        for (name, text) in contents(&self.logs())? {
            fs::write(kept.join(name), text).context("keeping a log")?;
        }
        bail!("{} failed; what the services said is in {}", self.failed, kept.display())
    }
}

/// Whether a process is the program, at work on a piece or joining them.
pub fn runs(program: &Path) -> impl Fn(&Process) -> bool + use<> {
    let program = program.to_owned();
    move |process| {
        // The second is it where the first is an interpreter.
        let is = process.arguments.iter().take(2).any(|argument| Path::new(argument) == program);
        is && process.arguments.iter().any(|argument| argument.starts_with("--shard") || argument == "merge")
    }
}

/// What follows the header of a safetensors file: its length in eight bytes, then JSON.
fn values(file: &[u8]) -> Option<&[u8]> {
    let length = u64::from_le_bytes(*file.first_chunk()?);
    file.get(8_usize.checked_add(length.try_into().ok()?)?..)
}

/// The second column of the source, a text a line.
fn corpus(source: &str) -> String {
    let texts = source.lines().filter_map(|line| line.split_once('\t')).map(|(_, text)| text).take(TEXTS);
    let quoted = texts.map(|text| text.replace('\\', "\\\\").replace('"', "\\\""));
    quoted.enumerate().map(|(number, text)| format!("{{\"id\": {number}, \"text\": \"{text}\"}}\n")).collect()
}

/// All files below `folder`.
///
/// # Errors
/// If they cannot be read.
pub fn contents(folder: &Path) -> Result<Contents> {
    let mut found = Contents::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(&next).with_context(|| format!("reading {}", next.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(folder).unwrap_or(&path).display().to_string();
                found.insert(name, fs::read(&path).with_context(|| format!("reading {}", path.display()))?);
            }
        }
    }
    Ok(found)
}

/// The last lines of a log.
pub fn end(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<_> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(5)..].join(" | ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_corpus_is_a_text_a_line_as_json() {
        let lines = corpus("natural\tHe said \"no\".\nno tab\ndisturbed\ta \\ b\n");
        assert_eq!(lines, "{\"id\": 0, \"text\": \"He said \\\"no\\\".\"}\n{\"id\": 1, \"text\": \"a \\\\ b\"}\n");
    }

    #[test]
    fn values_follow_the_header() {
        let file = [&[2, 0, 0, 0, 0, 0, 0, 0], &b"{}123"[..]].concat();
        assert_eq!(values(&file), Some(&b"123"[..]));
        assert_eq!(values(&file[..9]), None);
        assert_eq!(values(&[255; 20]), None);
    }

    #[test]
    fn contents_are_all_files_by_their_paths() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("a")).unwrap();
        fs::write(folder.path().join("a/b"), "c").unwrap();
        let found: Vec<_> = contents(folder.path()).unwrap().into_iter().collect();
        assert_eq!(found, [("a/b".to_owned(), b"c".to_vec())]);
    }
}
