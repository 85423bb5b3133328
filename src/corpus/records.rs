//! Reading the texts of a unit.

use std::io::{self, BufRead, Read};

use serde_json::Value;

use super::{
    corpus::{Content, Corpus, Options, Span},
    error::{Error, Result},
    format::{self, Compression, Format},
    parquet_input::Groups,
};

/// One text of a unit.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Record {
    /// Its own id, where it has one.
    pub(super) id: Option<Value>,
    /// Its line, row or number, counted from 0 at the unit's first.
    pub(super) at: u64,
    pub(super) content: Content,
}

/// The texts of a unit.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Records {
    /// The file they are in; none of those in memory.
    pub(super) input: Option<String>,
    /// What the unit's first line or row is in its file, counted from 0. `None` for lines: nobody knows without counting those before.
    pub(super) first: Option<u64>,
    /// How many lines or rows the unit has, empty ones included.
    pub(super) lines: u64,
    pub(super) records: Vec<Record>,
}

/// Reads units, best in their order: what is packed is then unpacked once.
pub(super) struct Reader<'a> {
    corpus: &'a Corpus,
    packed: Option<Packed>,
    /// The Parquet file that was read last.
    groups: Option<(usize, Groups)>,
}

/// A packed file that is open.
struct Packed {
    file: usize,
    /// It stands where the first line begins that begins at this byte or later.
    from: u64,
    /// Which is here.
    at: u64,
    bytes: Box<dyn BufRead + Send>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(corpus: &'a Corpus) -> Self {
        Self { corpus, packed: None, groups: None }
    }

    /// The texts of a unit.
    pub(super) fn read(&mut self, span: &Span) -> Result<Records> {
        match *span {
            Span::Memory { start, end } => {
                let content = self.corpus.memory.iter().take(end).skip(start);
                let record =
                    |(at, content): (usize, &Content)| Record { id: None, at: at as u64, content: content.clone() };
                let records = content.enumerate().map(record).collect();
                Ok(Records { input: None, first: Some(start as u64), lines: (end - start) as u64, records })
            }
            Span::Files { start, end } => {
                let files = self.corpus.files.iter().take(end).skip(start).enumerate();
                let record = |(at, file): (usize, &super::corpus::File)| {
                    let bytes = file.place.reader(0, file.bytes, file.bytes)?;
                    let mut text = String::new();
                    let read = format::unpacked(bytes, file.compression).read_to_string(&mut text);
                    read.map_err(Error::io("read", &file.place))?;
                    // As the programs have it for one text: the line end of its last line is not part of it.
                    if text.ends_with('\n') {
                        text.pop();
                        if text.ends_with('\r') {
                            text.pop();
                        }
                    }
                    Ok(Record { id: Some(file.name.clone().into()), at: at as u64, content: Content::Text(text) })
                };
                let records = files.map(record).collect::<Result<_>>()?;
                Ok(Records { input: None, first: Some(start as u64), lines: (end - start) as u64, records })
            }
            Span::Rows { file: number, group, first, start, end } => {
                let Some(file) = self.corpus.files.get(number) else { return Ok(nothing()) };
                let mut groups = match self.groups.take().filter(|(open, _)| *open == number) {
                    Some((_, groups)) => groups,
                    None => Groups::open(file, &self.corpus.options)?,
                };
                let records = groups.read(group, first, start..end)?;
                self.groups = Some((number, groups));
                Ok(Records { input: Some(file.name.clone()), first: Some(first + start), lines: end - start, records })
            }
            Span::Lines { file, start, end } => self.lines(file, start, end),
        }
    }

    fn lines(&mut self, number: usize, start: u64, end: u64) -> Result<Records> {
        let Some(file) = self.corpus.files.get(number) else { return Ok(nothing()) };
        let io = |error| Error::io("read", &file.place)(error);
        let is_packed = file.compression != Compression::None;
        let open = self.packed.take().filter(|packed| packed.file == number && packed.from <= start);
        let (mut at, mut bytes) = match open {
            Some(open) => (open.at, open.bytes),
            None if is_packed => (0, format::unpacked(file.place.reader(0, file.bytes, file.bytes)?, file.compression)),
            // The byte before says whether a line begins at the first.
            None => {
                let before = start.saturating_sub(1);
                (before, format::unpacked(file.place.reader(before, file.bytes, end - before)?, file.compression))
            }
        };
        if at < start {
            at += io::copy(&mut bytes.by_ref().take(start - 1 - at), &mut io::sink()).map_err(io)?;
            at += bytes.skip_until(b'\n').map_err(io)? as u64;
        }
        let mut read = Records { input: Some(file.name.clone()), first: None, lines: 0, records: Vec::new() };
        let mut line = Vec::new();
        while at < end {
            line.clear();
            let length = bytes.read_until(b'\n', &mut line).map_err(io)?;
            if length == 0 {
                break;
            }
            at += length as u64;
            let record = parse(&line, file.format, &self.corpus.options);
            match record {
                Ok(Some((id, content))) => read.records.push(Record { id, at: read.lines, content }),
                Ok(None) => {}
                Err(problem) => {
                    let place = self.place(&Span::Lines { file: number, start, end }, read.lines);
                    return Err(Error::Malformed { place, problem, expected: self.expected() });
                }
            }
            read.lines += 1;
        }
        if is_packed {
            self.packed = Some(Packed { file: number, from: end, at, bytes });
        }
        Ok(read)
    }

    fn expected(&self) -> String {
        let Options { text, ids, .. } = &self.corpus.options;
        format!("a string, {{{text:?}: \"...\"}} or {{{ids:?}: [...]}}")
    }

    /// Where a text is, as people count: `texts.jsonl, line 3`.
    pub(super) fn place(&self, span: &Span, at: u64) -> String {
        let file =
            |number: usize| self.corpus.files.get(number).map_or_else(String::new, |file| file.place.to_string());
        match *span {
            Span::Memory { start, .. } => format!("text {}", start as u64 + at),
            Span::Files { start, .. } => file(start + at as usize),
            Span::Rows { file: number, first, start, .. } => {
                format!("{}, row {}", file(number), first + start + at + 1)
            }
            Span::Lines { file: number, start, .. } => match self.lines_before(number, start) {
                Ok(before) => format!("{}, line {}", file(number), before + at + 1),
                // The error that is being told matters more than this one.
                Err(_) => format!("{}, line {} after byte {start}", file(number), at + 1),
            },
        }
    }

    /// How many lines begin before a byte. Counted only where somebody is to be told.
    fn lines_before(&self, number: usize, start: u64) -> Result<u64> {
        let Some(file) = self.corpus.files.get(number).filter(|_| start > 0) else { return Ok(0) };
        let bytes = file.place.reader(0, file.bytes, start)?;
        let mut bytes = format::unpacked(bytes, file.compression).take(start - 1);
        // A line that begins before the byte and ends behind it, or there, has begun.
        let mut lines = 1;
        loop {
            let held = bytes.fill_buf().map_err(Error::io("read", &file.place))?;
            if held.is_empty() {
                return Ok(lines);
            }
            lines += held.iter().filter(|&&byte| byte == b'\n').count() as u64;
            let length = held.len();
            bytes.consume(length);
        }
    }
}

fn nothing() -> Records {
    Records { input: None, first: Some(0), lines: 0, records: Vec::new() }
}

/// What a line holds; `None` for an empty one.
fn parse(
    line: &[u8],
    format: Format,
    options: &Options,
) -> std::result::Result<Option<(Option<Value>, Content)>, String> {
    let line = std::str::from_utf8(line).map_err(|error| format!("is not UTF-8 ({error})"))?;
    if line.trim().is_empty() {
        return Ok(None);
    }
    if format == Format::Plain {
        let text = line.strip_suffix('\n').unwrap_or(line);
        return Ok(Some((None, Content::Text(text.strip_suffix('\r').unwrap_or(text).to_owned()))));
    }
    let mut object = match serde_json::from_str(line) {
        Ok(Value::String(text)) => return Ok(Some((None, Content::Text(text)))),
        Ok(Value::Object(object)) => object,
        Ok(other) => return Err(format!("is {}", kind(&other))),
        Err(error) => return Err(format!("is not JSON ({error})")),
    };
    let id = object.shift_remove(&options.id).filter(|id| !id.is_null());
    let field = |value: Option<Value>| value.filter(|value| !value.is_null());
    let text = field(object.shift_remove(&options.text));
    let content = match (field(object.shift_remove(&options.ids)), text) {
        (Some(ids), _) => {
            Content::Ids(serde_json::from_value(ids).map_err(|_| format!("its {:?} are no token ids", options.ids))?)
        }
        (None, Some(Value::String(text))) if !options.prefers_ids => Content::Text(text),
        (None, Some(other)) if !options.prefers_ids => {
            return Err(format!("its {:?} is {}", options.text, kind(&other)));
        }
        _ if options.prefers_ids => return Err(format!("has no {:?}", options.ids)),
        _ => return Err(format!("has neither {:?} nor {:?}", options.text, options.ids)),
    };
    Ok(Some((id, content)))
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write};

    use super::*;

    /// All lines of a corpus, each with its number in the file, however it is cut.
    fn numbered(corpus: &Corpus, unit_bytes: u64) -> Vec<(u64, String)> {
        let mut reader = Reader::new(corpus);
        let (mut found, mut before) = (Vec::new(), 0);
        for span in corpus.units(unit_bytes).unwrap() {
            let read = reader.read(&span).unwrap();
            for record in read.records {
                let Content::Text(text) = record.content else { panic!("no text") };
                assert!(reader.place(&span, record.at).ends_with(&format!(", line {}", before + record.at + 1)));
                found.push((before + record.at, text));
            }
            before += read.lines;
        }
        found
    }

    #[test]
    fn every_line_is_in_one_unit_however_large_units_are() {
        let folder = tempfile::tempdir().unwrap();
        let lines: Vec<String> =
            (0..40).map(|number: usize| "é".repeat(number * 7 % 12) + &number.to_string()).collect();
        // Empty lines count, and the last has no end.
        let text = lines.join("\n\n");
        let plain = folder.path().join("texts.txt");
        fs::write(&plain, &text).unwrap();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(text.as_bytes()).unwrap();
        fs::write(folder.path().join("texts.txt.gz"), gzip.finish().unwrap()).unwrap();
        let zstandard = ruzstd::encoding::compress_to_vec(text.as_bytes(), ruzstd::encoding::CompressionLevel::Fastest);
        fs::write(folder.path().join("texts.txt.zst"), zstandard).unwrap();
        let expected: Vec<(u64, String)> =
            lines.into_iter().enumerate().map(|(number, line)| (2 * number as u64, line)).collect();
        for name in ["texts.txt", "texts.txt.gz", "texts.txt.zst"] {
            let corpus = Corpus::open(folder.path().join(name)).unwrap().lines(true);
            for unit_bytes in [1, 2, 3, 7, 16, 100, 10_000] {
                assert_eq!(numbered(&corpus, unit_bytes), expected, "{name}, {unit_bytes}");
            }
        }
        // Out of order, too.
        let corpus = Corpus::open(folder.path().join("texts.txt.gz")).unwrap().lines(true);
        let spans = corpus.units(50).unwrap();
        let mut reader = Reader::new(&corpus);
        let last = reader.read(&spans[3]).unwrap();
        let first = reader.read(&spans[1]).unwrap();
        assert_eq!(reader.read(&spans[3]).unwrap(), last);
        assert_eq!(reader.read(&spans[1]).unwrap(), first);
    }

    #[test]
    fn lines_that_are_none_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("texts.jsonl");
        let refused = |line: &str| {
            fs::write(&path, format!("\"fine\"\n\n{line}\n")).unwrap();
            let corpus = Corpus::open(&path).unwrap();
            let error = corpus.units(9).unwrap().iter().find_map(|span| Reader::new(&corpus).read(span).err());
            let error = error.unwrap().to_string();
            assert!(error.contains("texts.jsonl, line 3: "), "{error}");
            error
        };
        assert!(refused("[1, 2]").contains("is a list"));
        assert!(refused("{\"text\": 1}").contains("its \"text\" is a number"));
        assert!(refused("{\"ids\": [1.5]}").contains("its \"ids\" are no token ids"));
        assert!(refused("{}").contains("has neither \"text\" nor \"ids\""));
        assert!(refused("{").contains("is not JSON"));
    }
}
