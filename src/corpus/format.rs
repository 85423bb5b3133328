//! What files of texts are, by the endings of their names.

use std::io::{self, BufRead, BufReader, Read};

use ruzstd::decoding::{
    BlockDecodingStrategy, FrameDecoder,
    errors::{FrameDecoderError, ReadFrameHeaderError},
};

/// What a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Format {
    /// Columns.
    Parquet,
    /// A JSON value on each line.
    JsonLines,
    /// Text.
    Plain,
}

/// How its bytes are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compression {
    None,
    Gzip,
    Zstandard,
}

/// The endings that are known, for messages.
pub(super) const ENDINGS: &str = ".jsonl, .ndjson or .txt (also with .gz or .zst behind) or .parquet";

/// What a file is; `None` for one that is none of a corpus.
pub(super) fn of(name: &str) -> Option<(Format, Compression)> {
    let name = name.rsplit('/').next().unwrap_or(name).to_ascii_lowercase();
    if name.starts_with(['.', '_']) {
        return None;
    }
    let (stem, compression) = match name.rsplit_once('.')? {
        (stem, "gz") => (stem, Compression::Gzip),
        (stem, "zst" | "zstd") => (stem, Compression::Zstandard),
        _ => (name.as_str(), Compression::None),
    };
    let format = match (stem.rsplit_once('.')?.1, compression) {
        ("jsonl" | "ndjson", _) => Format::JsonLines,
        ("txt", _) => Format::Plain,
        ("parquet", Compression::None) => Format::Parquet,
        _ => return None,
    };
    Some((format, compression))
}

/// What the bytes of a file say when they are unpacked.
pub(super) fn unpacked(bytes: Box<dyn Read + Send>, compression: Compression) -> Box<dyn BufRead + Send> {
    match compression {
        Compression::None => Box::new(BufReader::with_capacity(256 << 10, bytes)),
        // Files may be several that were appended to one another.
        Compression::Gzip => Box::new(BufReader::with_capacity(256 << 10, flate2::read::MultiGzDecoder::new(bytes))),
        Compression::Zstandard => {
            let packed = BufReader::with_capacity(256 << 10, bytes);
            let frames = Frames { packed, decoder: FrameDecoder::new(), inside: false };
            Box::new(BufReader::with_capacity(256 << 10, frames))
        }
    }
}

/// The frames of a Zstandard file one after the other.
struct Frames {
    packed: BufReader<Box<dyn Read + Send>>,
    decoder: FrameDecoder,
    inside: bool,
}

impl Read for Frames {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.inside {
                while self.decoder.can_collect() == 0 && !self.decoder.is_finished() {
                    let step = BlockDecodingStrategy::UptoBlocks(1);
                    self.decoder.decode_blocks(&mut self.packed, step).map_err(io::Error::other)?;
                }
                let read = self.decoder.read(buffer)?;
                if read > 0 || buffer.is_empty() {
                    return Ok(read);
                }
                self.inside = false;
            }
            if self.packed.fill_buf()?.is_empty() {
                return Ok(0);
            }
            match self.decoder.init(&mut self.packed) {
                Ok(()) => self.inside = true,
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame { length, .. })) => {
                    io::copy(&mut (&mut self.packed).take(length.into()), &mut io::sink())?;
                }
                Err(error) => return Err(io::Error::other(error)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use ruzstd::encoding::{CompressionLevel, compress_to_vec};

    use super::*;

    #[test]
    fn names_say_what_files_are() {
        assert_eq!(of("data/train-00000.parquet"), Some((Format::Parquet, Compression::None)));
        assert_eq!(of("a.b/texts.JSONL.zst"), Some((Format::JsonLines, Compression::Zstandard)));
        assert_eq!(of("texts.txt.gz"), Some((Format::Plain, Compression::Gzip)));
        for none in ["README.md", ".hidden.txt", "a.parquet.gz", "jsonl", "train.gz", "_texts.txt"] {
            assert_eq!(of(none), None, "{none}");
        }
    }

    #[test]
    fn frames_follow_one_another() {
        let parts = ["one\n".repeat(100_000), String::new(), "two".into()];
        let mut packed: Vec<u8> = Vec::new();
        for part in &parts {
            packed.extend(compress_to_vec(part.as_bytes(), CompressionLevel::Fastest));
            // A frame that is to be skipped: its magic number, its length, its bytes.
            packed.extend([0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3]);
        }
        let mut text = String::new();
        unpacked(Box::new(Cursor::new(packed.clone())), Compression::Zstandard).read_to_string(&mut text).unwrap();
        assert!(text == parts.concat());
        packed.truncate(packed.len() / 2);
        let mut cut = unpacked(Box::new(Cursor::new(packed)), Compression::Zstandard);
        assert!(cut.read_to_string(&mut text).is_err());
    }
}
