//! BENCHMARKS.md: the newest figures of every processor, made from the files in `benches/results`.

use std::{
    collections::BTreeMap,
    fmt::Write,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;

use super::{
    Section,
    figure::{Figure, table},
    plot,
    results::{self, Results},
};

/// The page, in the workspace.
pub const PAGE: &str = "BENCHMARKS.md";

/// Where its pictures lie.
pub const PICTURES: &str = "docs/benchmarks";

/// The schema beside the results.
const SCHEMA_FILE: &str = "schema.json";

const HEAD: &str = "\
# Benchmarks

<!-- Made by `cargo xtask bench --report` from the files in benches/results; changes belong there. -->

Every figure stands beside its floor (what cannot be undercut), its limit, or a peer that does the same. What is compared ran in
turns; values are medians. Ratios are times: at most 1.15 means at most 15 % more than what stands beside it. Under each table
are the commands. `cargo xtask bench --keep` adds the figures of another machine, `cargo xtask bench --report` makes this page.
";

/// A picture: where it belongs, and what it is.
#[derive(Debug)]
pub struct Picture {
    /// From the workspace.
    pub path: String,
    /// The file.
    pub svg: String,
}

/// Makes the page and its pictures in `workspace`, and says which files it wrote.
///
/// # Errors
/// If there are no results, or a file cannot be read or written.
pub fn make(workspace: &Path) -> Result<Vec<PathBuf>> {
    let all = read(&workspace.join(results::FOLDER))?;
    ensure!(!all.is_empty(), "{} holds no results yet; `cargo xtask bench --keep` makes some", results::FOLDER);
    let (text, pictures) = page(&all)?;
    let folder = workspace.join(PICTURES);
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let mut written = Vec::new();
    let files = pictures.into_iter().map(|picture| (picture.path, picture.svg)).chain([(PAGE.to_owned(), text)]);
    for (path, text) in files {
        fs::write(workspace.join(&path), text).with_context(|| format!("writing {path}"))?;
        written.push(PathBuf::from(path));
    }
    Ok(written)
}

/// All kept results, oldest first.
fn read(folder: &Path) -> Result<Vec<Results>> {
    let context = || format!("reading {}", folder.display());
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(context)? {
        let path = entry.with_context(context)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.ends_with(".json") && name != SCHEMA_FILE {
            let results = Results::read(&path)?;
            // Of one day, the tenth has a longer name than the second.
            found.push(((results.machine.date.clone(), name.len(), name), results));
        }
    }
    found.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(found.into_iter().map(|(_, results)| results).collect())
}

/// The text of the page and its pictures, from results with the oldest first.
///
/// # Errors
/// If a picture cannot be drawn.
pub fn page(all: &[Results]) -> Result<(String, Vec<Picture>)> {
    let mut processors: BTreeMap<String, Vec<&Results>> = BTreeMap::new();
    for results in all {
        processors.entry(results.machine.slug()).or_default().push(results);
    }
    let mut text = HEAD.to_owned();
    let mut pictures = Vec::new();
    for (slug, runs) in &processors {
        let sections = newest(runs);
        let Some(last) = runs.last() else { continue };
        let machine = &last.machine;
        // Writing to a string cannot fail.
        let _ = write!(text, "\n## {}, {} cores\n\n{}", machine.name(), machine.cores, machine.vendor);
        if machine.memory_gib > 0.0 {
            let _ = write!(text, ", {:.0} GiB of memory", machine.memory_gib);
        }
        if !machine.features.is_empty() {
            let _ = write!(text, "; {}", machine.features.join(", "));
        }
        text.push_str(".\n");
        let figures: Vec<&Figure> = sections.iter().flat_map(|section| &section.figures).copied().collect();
        for plot in plot::plots(&figures) {
            let path = format!("{PICTURES}/{slug}-{}.svg", plot.name);
            let _ = write!(text, "\n![{}]({path})\n", plot.caption);
            pictures.push(Picture { path, svg: plot.svg()? });
        }
        for Kept { name, results, figures } in &sections {
            let machine = &results.machine;
            let _ = write!(text, "\n### {name}\n\n");
            if let Some(words) = describe(name) {
                let _ = write!(text, "{words}. ");
            }
            let _ = write!(text, "{}, {}", machine.date, machine.libtorch);
            if !machine.commit.is_empty() {
                let _ = write!(text, ", commit {}", machine.commit);
            }
            let figures: Vec<Figure> = figures.iter().copied().cloned().collect();
            let _ = write!(text, ". {}.\n\n{}", results::runs(results.repeats), table(&figures));
        }
        let notes = notes(&sections);
        if !notes.is_empty() {
            text.push_str("\n### Notes\n\n");
            for (note, commands) in notes {
                let _ = writeln!(text, "- {note} (`{}`)", commands.join("`, `"));
            }
        }
    }
    Ok((text, pictures))
}

/// One section with the newest run that has it.
struct Kept<'a> {
    name: &'a str,
    results: &'a Results,
    figures: Vec<&'a Figure>,
}

/// For every section the newest run that has it: a run of one section does not hide the others of an older one.
fn newest<'a>(runs: &[&'a Results]) -> Vec<Kept<'a>> {
    let mut found: BTreeMap<(usize, &str), Kept> = BTreeMap::new();
    for &results in runs {
        let mut own: BTreeMap<&str, Vec<&Figure>> = BTreeMap::new();
        for figure in &results.figures {
            own.entry(&figure.section).or_default().push(figure);
        }
        for (name, figures) in own {
            found.insert((place(name), name), Kept { name, results, figures });
        }
    }
    found.into_values().collect()
}

/// Sections in the order in which they are measured; one that is measured no more comes last.
fn place(name: &str) -> usize {
    let order = Section::value_variants();
    order.iter().position(|section| section.name() == name).unwrap_or(order.len())
}

/// What a section is about, in the words of `--help`.
fn describe(name: &str) -> Option<String> {
    let value = Section::from_str(name, false).ok()?.to_possible_value()?;
    Some(value.get_help()?.to_string())
}

/// The notes of the runs that are shown, each once, with the commands of these runs.
fn notes<'a>(sections: &[Kept<'a>]) -> Vec<(&'a str, Vec<&'a str>)> {
    let mut notes: Vec<(&str, Vec<&str>)> = Vec::new();
    for Kept { results, .. } in sections {
        for note in &results.notes {
            let command = results.command.as_str();
            match notes.iter_mut().find(|(known, _)| known == note) {
                Some((_, commands)) if commands.contains(&command) => {}
                Some((_, commands)) => commands.push(command),
                None => notes.push((note, vec![command])),
            }
        }
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixture() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
    }

    #[test]
    fn the_page_made_of_the_fixture() {
        let all = read(&fixture().join("results")).unwrap();
        assert_eq!(all.len(), 3, "one is newer for one section, one is of another processor");
        let (text, pictures) = page(&all).unwrap();
        let expected = fs::read_to_string(fixture().join("BENCHMARKS.md")).unwrap();
        assert_eq!(text, expected, "if this is right, put it into benches/fixtures/BENCHMARKS.md:\n{text}");
        let paths: Vec<&str> = pictures.iter().map(|picture| picture.path.as_str()).collect();
        let names = ["tokens", "layers", "parameters"];
        assert_eq!(paths, names.map(|name| format!("docs/benchmarks/amd-epyc-2-cores-{name}.svg")));
        for Picture { path, svg } in &pictures {
            assert!(svg.starts_with("<svg") && svg.contains("here, f32"), "{path}");
        }
        assert!(pictures[0].svg.contains("transformers, f32") && pictures[0].svg.contains("floor, bf16"));
    }

    #[test]
    fn without_results_there_is_no_page() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join(results::FOLDER)).unwrap();
        let error = make(folder.path()).unwrap_err().to_string();
        assert!(error.contains("no results yet"), "{error}");
    }

    #[test]
    fn the_page_and_its_pictures_are_written_together() {
        let folder = tempfile::tempdir().unwrap();
        let results = folder.path().join(results::FOLDER);
        fs::create_dir_all(&results).unwrap();
        for entry in fs::read_dir(fixture().join("results")).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), results.join(entry.file_name())).unwrap();
        }
        let written = make(folder.path()).unwrap();
        assert_eq!(written.len(), 4);
        assert!(written.iter().all(|path| folder.path().join(path).is_file()), "{written:?}");
    }
}
