//! The commands of `docs/steering.md`, as they stand there.

use std::process::Command;

use crate::program::{command, root};

/// The commands of a page, lines that end in `\` joined: the program and its arguments.
fn commands(page: &str) -> Vec<(String, Vec<String>)> {
    let blocks = page.split("```sh\n").skip(1).filter_map(|block| block.split("```").next());
    let lines = blocks.flat_map(|block| block.replace("\\\n", " ").lines().map(str::to_owned).collect::<Vec<_>>());
    let parse = |line: String| {
        let line = line.strip_prefix("cargo run --release --example ").unwrap_or_else(|| panic!("{line}")).to_owned();
        let (program, arguments) = line.split_once(" -- ").unwrap();
        // Quoted parts hold spaces, and no other quotes.
        let words = arguments.split('"').enumerate().flat_map(|(index, part)| match index % 2 {
            0 => part.split_whitespace().map(str::to_owned).collect::<Vec<_>>(),
            _ => vec![part.to_owned()],
        });
        (program.to_owned(), words.collect())
    };
    lines.map(parse).collect()
}

fn output(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_page_s_commands_work_and_say_what_it_says() {
    let page = std::fs::read_to_string(root().join("docs/steering.md")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let commands = commands(&page);
    assert!(commands.len() >= 5, "{commands:?}");
    let shown: Vec<&str> = page.split("```text\n").skip(1).filter_map(|block| block.split("```").next()).collect();
    let mut shown = shown.into_iter();
    for (program, arguments) in commands {
        let arguments = arguments.into_iter().map(|word| match word.strip_prefix("assets/") {
            Some(_) => root().join(&word).display().to_string(),
            None => word,
        });
        let found = output(command(&program).args(arguments).args(["--device", "cpu"]).current_dir(folder.path()));
        if program == "generate" {
            assert_eq!(Some(found.as_str()), shown.next());
        }
    }
    assert_eq!(shown.next(), None);
}
