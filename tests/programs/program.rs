//! Running the programs.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use serde_json::Value;

/// The sources' folder.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A golden checkpoint.
pub fn golden(name: &str) -> String {
    root().join("tests/golden").join(name).display().to_string()
}

/// Whether the sources have this program.
pub fn exists(program: &str) -> bool {
    let examples = root().join("examples");
    examples.join(format!("{program}.rs")).is_file() || examples.join(program).join("main.rs").is_file()
}

/// `cargo test` builds the examples before it runs tests, into a folder beside that of the tests. `cargo test --test
/// programs` does not: run `cargo build --examples` first, or it tests old ones.
fn binary(program: &str) -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let path = tests.ancestors().nth(2).unwrap().join("examples").join(program);
    let path = path.with_extension(std::env::consts::EXE_EXTENSION);
    assert!(path.is_file(), "{} is not built; run cargo build --examples", path.display());
    path
}

pub fn command(program: &str) -> Command {
    Command::new(binary(program))
}

fn run(program: &str, arguments: &[&str]) -> Output {
    command(program).args(arguments).output().unwrap()
}

/// Runs a program that must succeed, and returns its standard output.
pub fn succeed(program: &str, arguments: &[&str]) -> String {
    let output = run(program, arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {}\n{errors}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

/// Runs a program that must refuse its arguments, and returns its complaint.
pub fn refuse(program: &str, arguments: &[&str]) -> String {
    let output = run(program, arguments);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{program} {arguments:?}: {errors}");
    assert_eq!(errors.lines().count(), 1, "{program} {arguments:?}: {errors}");
    assert!(errors.starts_with("error: "), "{program} {arguments:?}: {errors}");
    assert!(output.stdout.is_empty(), "{program} {arguments:?}: {:?}", output.stdout);
    errors
}

pub fn json(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// Rows as `--ids` takes them.
pub fn ids(rows: &[Vec<i64>]) -> String {
    let row = |row: &Vec<i64>| row.iter().map(i64::to_string).collect::<Vec<_>>().join(",");
    rows.iter().map(row).collect::<Vec<_>>().join(";")
}

/// The names of what is in a folder.
pub fn inside(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = entries.collect();
    names.sort();
    names
}
