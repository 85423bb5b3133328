//! What is to be read, and how it falls into units.

use std::{
    io::{self, Read},
    path::Path,
    sync::Arc,
};

use globset::GlobBuilder;
use lowmem::HubOptions;
use serde_json::{Value, json};

use super::{
    error::{Error, Result},
    format::{self, Compression, Format},
    hub_input,
    parquet_input::Groups,
    place::{Listed, Place},
};

/// Texts, in order: files of them in a folder or a store, or a list in memory.
///
/// | files | a text is |
/// |---|---|
/// | `.jsonl`, `.ndjson` | a line: a string, `{"text": ...}` or `{"ids": [...]}`, with an `"id"` if it has one; also `.gz`, `.zst` |
/// | `.txt` | a file, or a line of one with [`Corpus::lines`]; also `.gz`, `.zst` |
/// | `.parquet` | a row: the column `text`, or another ([`Corpus::column`]), or one of token ids ([`Corpus::ids_column`]) |
///
/// ```
/// use transformer_utils::corpus::Corpus;
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let corpus = Corpus::from_texts(["Emma was very", "happy"]).truncate(true);
/// # let _ = corpus;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use = "a corpus is read by a job"]
pub struct Corpus {
    pub(super) files: Vec<File>,
    pub(super) memory: Arc<Vec<Content>>,
    pub(super) options: Options,
    /// The commit of a data set of the Hub: another has other files under the same names.
    commit: Option<String>,
}

/// How the texts are read.
#[derive(Clone, Debug)]
pub(super) struct Options {
    /// The column or field of the text.
    pub(super) text: String,
    /// The column or field of token ids.
    pub(super) ids: String,
    /// Whether a column of ids was asked for, rather than one of text.
    pub(super) prefers_ids: bool,
    /// The column or field of the text's own id.
    pub(super) id: String,
    pub(super) lines: bool,
    pub(super) truncate: bool,
    pub(super) pack: Option<Pack>,
}

/// How texts are joined.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pack {
    /// Tokens of a row; the model's context unless it is given.
    pub(super) length: Option<usize>,
    /// What stands between texts; the model's own unless it is given.
    pub(super) end: Option<i64>,
}

/// One file of texts.
#[derive(Clone, Debug)]
pub(super) struct File {
    pub(super) place: Place,
    /// What it is called in the index: its name below the folder that was asked for.
    pub(super) name: String,
    pub(super) bytes: u64,
    pub(super) format: Format,
    pub(super) compression: Compression,
}

/// What there is of a text.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Content {
    Text(String),
    Ids(Vec<i64>),
}

impl Content {
    fn bytes(&self) -> u64 {
        match self {
            Self::Text(text) => text.len() as u64,
            Self::Ids(ids) => ids.len() as u64 * BYTES_A_TOKEN,
        }
    }
}

/// Bytes of text that a token is taken for where units are cut. English has about four; so files come out smaller than they may be.
pub(super) const BYTES_A_TOKEN: u64 = 3;

/// Where the texts of a unit are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Span {
    /// The lines that begin in these (unpacked) bytes of a file.
    Lines { file: usize, start: u64, end: u64 },
    /// Whole files, each a text.
    Files { start: usize, end: usize },
    /// Rows of a row group; `first` is the group's first row in the file.
    #[cfg_attr(not(feature = "parquet"), allow(dead_code))]
    Rows { file: usize, group: usize, first: u64, start: u64, end: u64 },
    /// Of the list in memory.
    Memory { start: usize, end: usize },
}

impl Corpus {
    fn new(files: Vec<File>, memory: Vec<Content>) -> Self {
        let options = Options {
            text: "text".into(),
            ids: "ids".into(),
            prefers_ids: false,
            id: "id".into(),
            lines: false,
            truncate: false,
            pack: None,
        };
        Self { files, memory: Arc::new(memory), options, commit: None }
    }

    /// Texts of files: a file, a folder (such as that of a Hugging Face dataset, whose files are taken in the order of their names; where
    /// it has Parquet files only those, else those of lines, else those of text), a pattern such as `data/train-*.parquet`, or the
    /// address of one of these, `s3://bucket/path` (feature `object-store`), or `hf://datasets/OWNER/NAME[@REVISION][/PATH]`, of a data
    /// set of the Hugging Face Hub (feature `hub`): its files are fetched here, as far as the shared cache has them not.
    ///
    /// # Errors
    ///
    /// [`Error::NoTexts`]; [`Error::Io`]; [`Error::NeedsFeature`], [`Error::Address`], [`Error::Hub`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_with(path, &HubOptions::default())
    }

    /// The same with other ways to the Hub; a revision in the address goes before that of the options.
    ///
    /// # Errors
    ///
    /// As [`Corpus::open`].
    pub fn open_with(path: impl AsRef<Path>, hub: &HubOptions) -> Result<Self> {
        let path = path.as_ref();
        let none = || Error::NoTexts { place: path.display().to_string(), expected: format::ENDINGS.to_owned() };
        if let Some(address) = path.to_str().and_then(|text| text.strip_prefix(hub_input::SCHEME)) {
            let (files, commit) = hub_input::fetch(path, address, hub)?;
            let corpus = Self { commit: Some(commit), ..Self::new(files, Vec::new()) };
            return if corpus.files.is_empty() { Err(none()) } else { Ok(corpus) };
        }
        // A file whose name happens to look like a pattern is that file.
        let place = Place::parse(path)?;
        if let Some(bytes) = place.size()? {
            let (format, compression) = format::of(&place.name()).ok_or_else(none)?;
            let name = place.name();
            return Ok(Self::new(vec![File { place, name, bytes, format, compression }], Vec::new()));
        }
        let (folder, pattern) = match split_pattern(path) {
            Some((folder, pattern)) => (Place::parse(folder.as_ref())?, Some(pattern)),
            None => (place, None),
        };
        let listed = folder.list()?.ok_or_else(none)?;
        let files = choose(&folder, listed, pattern.as_deref())?;
        if files.is_empty() {
            return Err(none());
        }
        Ok(Self::new(files, Vec::new()))
    }

    /// Texts from memory.
    pub fn from_texts(texts: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self::new(Vec::new(), texts.into_iter().map(|text| Content::Text(text.into())).collect())
    }

    /// Token ids from memory, one list a text.
    pub fn from_ids(texts: impl IntoIterator<Item = impl Into<Vec<i64>>>) -> Self {
        Self::new(Vec::new(), texts.into_iter().map(|ids| Content::Ids(ids.into())).collect())
    }

    /// The column of Parquet files, or the field of lines, that has the text; `text` by default.
    pub fn column(mut self, name: impl Into<String>) -> Self {
        (self.options.text, self.options.prefers_ids) = (name.into(), false);
        self
    }

    /// The column or field that has token ids, which are read in the place of text. Lines may have either; their field is `ids` by
    /// default.
    pub fn ids_column(mut self, name: impl Into<String>) -> Self {
        (self.options.ids, self.options.prefers_ids) = (name.into(), true);
        self
    }

    /// The column or field that has a text's own id, which comes back in the index; `id` by default. Without one a text is known by
    /// its line or row.
    pub fn id_column(mut self, name: impl Into<String>) -> Self {
        self.options.id = name.into();
        self
    }

    /// Whether each line of `.txt` files is a text, rather than each file.
    pub fn lines(mut self, lines: bool) -> Self {
        self.options.lines = lines;
        self
    }

    /// Whether texts that are longer than the model's positions are cut, rather than refused.
    pub fn truncate(mut self, truncate: bool) -> Self {
        self.options.truncate = truncate;
        self
    }

    /// Joins the texts of a unit with the end-of-text token and cuts them into rows as long as the model's context, rather than
    /// running each text as a row of its own.
    pub fn pack(mut self) -> Self {
        self.options.pack.get_or_insert_default();
        self
    }

    /// As [`Corpus::pack`], into rows of `length` tokens.
    pub fn pack_into(mut self, length: usize) -> Self {
        self.options.pack.get_or_insert_default().length = Some(length);
        self
    }

    /// As [`Corpus::pack`], with another token between texts than the first one that the model's config says ends a text.
    pub fn pack_with(mut self, end: i64) -> Self {
        self.options.pack.get_or_insert_default().end = Some(end);
        self
    }

    /// The units, which follow from the sizes of the inputs alone.
    pub(super) fn units(&self, unit_bytes: u64) -> Result<Vec<Span>> {
        let unit_bytes = unit_bytes.max(1);
        let mut spans = Vec::new();
        gather(self.memory.iter().map(Content::bytes), unit_bytes, |start, end| {
            spans.push(Span::Memory { start, end });
        });
        let whole = |file: &File| file.format == Format::Plain && !self.options.lines;
        if self.files.first().is_some_and(whole) {
            gather(self.files.iter().map(|file| file.bytes), unit_bytes, |start, end| {
                spans.push(Span::Files { start, end });
            });
            return Ok(spans);
        }
        for (number, file) in self.files.iter().enumerate() {
            if file.format == Format::Parquet {
                spans.extend(Groups::open(file, &self.options)?.spans(number, unit_bytes));
                continue;
            }
            let bytes = file.unpacked_bytes()?;
            for part in 0..bytes.div_ceil(unit_bytes) {
                let start = part * unit_bytes;
                spans.push(Span::Lines { file: number, start, end: bytes.min(start + unit_bytes) });
            }
        }
        Ok(spans)
    }

    /// What says whether two jobs read the same.
    pub(super) fn identity(&self) -> Value {
        let Options { text, ids, prefers_ids, id, lines, truncate, pack } = &self.options;
        let files: Vec<Value> = self.files.iter().map(|file| json!([file.name, file.bytes])).collect();
        let memory = self.memory.iter().flat_map(|content| match content {
            Content::Text(text) => [text.as_bytes(), &[0xff]].concat(),
            Content::Ids(ids) => ids.iter().flat_map(|id| id.to_le_bytes()).chain([0xfe]).collect(),
        });
        json!({
            "files": files,
            "commit": self.commit,
            "texts": if self.memory.is_empty() { Value::Null } else { super::identity::hash(memory).into() },
            "text": text,
            "ids": ids,
            "prefers_ids": prefers_ids,
            "id": id,
            "lines": lines,
            "truncate": truncate,
            "pack": pack.map(|pack| json!({ "length": pack.length, "end": pack.end })),
        })
    }
}

impl File {
    /// How many bytes there are when it is unpacked, which takes unpacking it.
    fn unpacked_bytes(&self) -> Result<u64> {
        if self.compression == Compression::None {
            return Ok(self.bytes);
        }
        let bytes = self.place.reader(0, self.bytes, self.bytes)?;
        let mut unpacked = format::unpacked(bytes, self.compression);
        io::copy(&mut unpacked.by_ref(), &mut io::sink()).map_err(Error::io("read", &self.place))
    }
}

/// Puts things of some sizes together, in order, as many as `limit` holds and at least one.
fn gather(sizes: impl Iterator<Item = u64>, limit: u64, mut push: impl FnMut(usize, usize)) {
    let (mut start, mut held, mut count) = (0, 0, 0);
    for size in sizes {
        if count > start && held + size > limit {
            push(start, count);
            (start, held) = (count, 0);
        }
        held += size;
        count += 1;
    }
    if count > start {
        push(start, count);
    }
}

/// The folder before the first segment that is a pattern, and the pattern from there on.
pub(super) fn split_pattern(path: &Path) -> Option<(String, String)> {
    let text = path.to_str()?;
    let special = text.find(['*', '?', '[', '{'])?;
    let (folder, pattern) = match text.get(..special)?.rfind('/') {
        Some(slash) => (text.get(..slash)?, text.get(slash + 1..)?),
        None => (".", text),
    };
    Some((if folder.is_empty() { "/".to_owned() } else { folder.to_owned() }, pattern.to_owned()))
}

/// The files of a corpus among those of a folder.
pub(super) fn choose(folder: &Place, listed: Vec<Listed>, pattern: Option<&str>) -> Result<Vec<File>> {
    let glob = match pattern {
        Some(pattern) => {
            let glob = GlobBuilder::new(pattern).literal_separator(true).build();
            let refuse =
                |error: globset::Error| Error::Address { place: pattern.to_owned(), problem: error.to_string() };
            Some(glob.map_err(refuse)?.compile_matcher())
        }
        None => None,
    };
    let known = |file: Listed| {
        let (format, compression) = format::of(&file.name)?;
        let place = file.name.split('/').fold(folder.clone(), |place, segment| place.join(segment));
        let hidden = file.name.split('/').any(|segment| segment.starts_with('.'));
        let wanted = glob.as_ref().is_none_or(|glob| glob.is_match(&file.name)) && !hidden;
        wanted.then_some(File { place, name: file.name, bytes: file.bytes, format, compression })
    };
    let mut files: Vec<File> = listed.into_iter().filter_map(known).collect();
    // Beside the data of a dataset lie a licence and lists of words.
    let first = files.iter().map(|file| file.format).min();
    files.retain(|file| Some(file.format) == first);
    Ok(files)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn names(corpus: &Corpus) -> Vec<&str> {
        corpus.files.iter().map(|file| file.name.as_str()).collect()
    }

    #[test]
    fn folders_and_patterns_give_files_in_the_order_of_their_names() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("data")).unwrap();
        fs::create_dir(folder.path().join(".cache")).unwrap();
        for name in ["data/b.jsonl", "data/a.jsonl.gz", "LICENSE.txt", "README.md", ".cache/c.jsonl", "data/.d.jsonl"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        assert_eq!(names(&Corpus::open(folder.path()).unwrap()), ["data/a.jsonl.gz", "data/b.jsonl"]);
        assert_eq!(names(&Corpus::open(folder.path().join("data/*.jsonl")).unwrap()), ["b.jsonl"]);
        assert_eq!(names(&Corpus::open(folder.path().join("*/{b,x}.jsonl")).unwrap()), ["data/b.jsonl"]);
        assert_eq!(names(&Corpus::open(folder.path().join("data/b.jsonl")).unwrap()), ["b.jsonl"]);
        for absent in ["c.jsonl", "data/*.parquet", "README.md"] {
            let error = Corpus::open(folder.path().join(absent)).unwrap_err();
            assert!(matches!(error, Error::NoTexts { .. }), "{error}");
        }
    }

    #[test]
    fn units_follow_from_sizes() {
        let corpus = Corpus::from_ids([vec![1; 4], vec![2; 4], vec![3; 40], vec![4]]);
        let ends: Vec<Span> = corpus.units(24).unwrap();
        let span = |start, end| Span::Memory { start, end };
        assert_eq!(ends, [span(0, 2), span(2, 3), span(3, 4)]);
        let folder = tempfile::tempdir().unwrap();
        for (name, length) in [("a.txt", 10), ("b.txt", 15), ("c.txt", 0)] {
            fs::write(folder.path().join(name), "x".repeat(length)).unwrap();
        }
        let corpus = Corpus::open(folder.path()).unwrap();
        assert_eq!(corpus.units(20).unwrap(), [Span::Files { start: 0, end: 1 }, Span::Files { start: 1, end: 3 }]);
        let lines = |file, start, end| Span::Lines { file, start, end };
        assert_eq!(
            corpus.lines(true).units(8).unwrap(),
            [lines(0, 0, 8), lines(0, 8, 10), lines(1, 0, 8), lines(1, 8, 15)]
        );
    }
}
