//! The commands of pages, as they stand there.
//!
//! They run on the bundled models; with the variable `MODEL`, those that a page gives `--model $MODEL` run on that one.

use std::{fs, process::Command};

use crate::program::{command, root};

/// The programs of a page and their arguments, lines that end in `\` joined.
fn commands(page: &str) -> Vec<(String, Vec<String>)> {
    let page = fs::read_to_string(root().join("docs").join(page)).unwrap();
    let model = std::env::var("MODEL").map_or_else(|_| String::new(), |model| format!("--model {model}"));
    let page = page.replace("--model $MODEL", &model).replace("\\\n", " ");
    let blocks = page.split("```sh\n").skip(1).filter_map(|block| block.split("```").next());
    let parse = |line: &str| {
        let (program, arguments) = line.strip_prefix("cargo run --release --example ")?.split_once(" -- ")?;
        // Quoted parts hold spaces, and no other quotes.
        let words = arguments.split('"').enumerate().flat_map(|(index, part)| match index % 2 {
            0 => part.split_whitespace().map(str::to_owned).collect::<Vec<_>>(),
            _ => vec![part.to_owned()],
        });
        let here = |word: String| {
            let ours = word.split_once("assets/").map(|(before, _)| before.to_owned());
            match ours {
                Some(before) if before.is_empty() || before.ends_with(':') => {
                    format!("{before}{}", root().join(word.get(before.len()..).unwrap()).display())
                }
                _ => word,
            }
        };
        Some((program.to_owned(), words.map(here).collect()))
    };
    blocks.flat_map(str::lines).filter_map(parse).collect()
}

fn output(command: &mut Command) -> String {
    let output = command.args(["--device", "cpu"]).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn steering_says_what_its_page_says() {
    let page = fs::read_to_string(root().join("docs/steering.md")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let commands = commands("steering.md");
    assert!(commands.len() >= 5, "{commands:?}");
    let shown: Vec<&str> = page.split("```text\n").skip(1).filter_map(|block| block.split("```").next()).collect();
    let mut shown = shown.into_iter();
    for (program, arguments) in commands {
        let found = output(command(&program).args(arguments).current_dir(folder.path()));
        if program == "generate" {
            assert_eq!(Some(found.as_str()), shown.next());
        }
    }
    assert_eq!(shown.next(), None);
}

#[test]
fn patching_shows_something_on_the_bundled_model() {
    let commands = commands("patching.md");
    assert!(commands.len() >= 8, "{commands:?}");
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("docs")).unwrap();
    for (program, arguments) in commands {
        assert_eq!(program, "patch");
        let found = output(command("patch").args(&arguments).current_dir(folder.path()));
        assert!(found.contains(" · "), "{arguments:?}");
    }
}

#[test]
fn the_tutorial_can_be_followed() {
    let commands = commands("tutorial.md");
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let sentences = |file: &str| fs::read_to_string(root().join("assets/word-order").join(file)).unwrap();
    let text: String = sentences("train.tsv").lines().filter_map(|line| line.split_once('\t')).map(|it| it.1).collect();
    fs::write(at("your-text.txt"), text).unwrap();
    fs::create_dir(at("data")).unwrap();
    for file in ["train.tsv", "held-out.tsv"] {
        let few: Vec<String> = sentences(file).lines().take(40).map(str::to_owned).collect();
        fs::write(at("data").join(file), few.join("\n") + "\n").unwrap();
    }
    let mut programs: Vec<String> = Vec::new();
    for (program, mut arguments) in commands {
        // What takes minutes is only begun.
        match program.as_str() {
            "tune_lens" => {
                let steps = arguments.iter().position(|word| word == "--steps").unwrap();
                arguments[steps + 1] = "2".into();
            }
            "features" => arguments.extend(["--data", "data", "--epochs", "1"].map(str::to_owned)),
            _ => {}
        }
        assert!(!output(command(&program).args(arguments).current_dir(folder.path())).is_empty(), "{program}");
        programs.push(program);
    }
    assert_eq!(programs, ["logit_lens", "activations", "activations", "tune_lens", "logit_lens", "features"]);
    for file in ["lens.html", "acts.safetensors", "smollm2-lens/params.pt", "tuned.png"] {
        assert!(at(file).exists(), "{file}");
    }
}
