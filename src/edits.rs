//! Edits as people type them, in programs and configurations.
//!
//! ```text
//! NAME[:positions=RANGE][:new][:heads=LIST]=ACTION
//!
//! RANGE   2..5 (5 is not part of it), 2.., ..5 or 2
//! LIST    numbers and ranges with commas: 0,2 or 0..4,7
//! ACTION  zero                       zeros
//!         mean                       the mean over batch and positions of the run
//!         scale:F                    the value times F
//!         add:FILE:TENSOR[*F]        the value and a stored tensor, times F
//!         replace:FILE:TENSOR[*F]    a stored tensor, times F
//! ```
//!
//! Positions count from the first token of each row; `new` means the tokens that generation adds. [`EditText::steer`] takes the
//! short form of an addition, `NAME[..]=FILE:TENSOR[*F]`. What each does is said at [`Edit`].
//!
//! ```
//! use transformer_utils::edits::EditText;
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let silence: EditText = "h.3.attn.z:heads=0,2=zero".parse()?;
//! assert_eq!(silence.site(), "h.3.attn.z");
//! let steer = EditText::steer("h.12:new=direction.safetensors:happy*4.0")?;
//! assert_eq!(steer.to_string(), "h.12:new=add:direction.safetensors:happy*4");
//!
//! let wrong = "h.3.attn.z:haeds=0=zero".parse::<EditText>().unwrap_err();
//! assert_eq!(wrong.to_string(), "character 12, \"haeds\": expected positions=A..B, heads=0,2 or new");
//! # Ok(())
//! # }
//! ```

use std::{fmt, path::PathBuf, str::FromStr};

use lowmem::{Checkpoint, LoadOptions};
use partial::{Edit, Patch};
use tch::{Device, Kind, TchError};

/// What can go wrong between a typed edit and an [`Edit`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The text is none.
    #[error("character {at}, {found:?}: expected {expected}")]
    Syntax {
        /// Where it goes wrong, in characters from 1.
        at: usize,
        /// What stands there.
        found: String,
        /// What may stand there.
        expected: &'static str,
    },
    /// The file with the tensor cannot be read.
    #[error(transparent)]
    File(#[from] lowmem::Error),
    /// The file has no such tensor.
    #[error("{file}: no tensor {tensor:?}; it has {}", .present.join(", "))]
    NoTensor {
        /// The file.
        file: PathBuf,
        /// The tensor asked for.
        tensor: String,
        /// Some that it has.
        present: Vec<String>,
    },
    /// Libtorch failed.
    #[error("{at}: {}", models::first_line(.source))]
    Torch {
        /// The tensor.
        at: String,
        /// What libtorch said.
        source: TchError,
    },
}

/// A result of this module.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Reads a place of a patch, `NAME[:positions=A..B][:heads=LIST]`.
///
/// ```
/// let receiver = transformer_utils::edits::patch("h.5.attn.q:heads=1,3:positions=2..4")?;
/// assert_eq!(receiver.to_string(), "h.5.attn.q head 1 positions 2..4 + h.5.attn.q head 3 positions 2..4");
/// # Ok::<(), transformer_utils::edits::Error>(())
/// ```
///
/// # Errors
///
/// [`Error::Syntax`].
pub fn patch(text: &str) -> Result<Patch> {
    Cursor { text, at: 0 }.patch()
}

/// Which positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Where {
    Range(i64, Option<i64>),
    New,
}

#[derive(Clone, Debug, PartialEq)]
enum Action {
    Zero,
    Mean,
    Scale(f64),
    Add(Stored),
    Replace(Stored),
}

/// A tensor of a file, and what it is multiplied by.
#[derive(Clone, Debug, PartialEq)]
struct Stored {
    file: PathBuf,
    tensor: String,
    factor: f64,
}

/// An edit as it is typed; see the [module](self). It displays as text that is read as the same edit.
#[derive(Clone, Debug, PartialEq)]
pub struct EditText {
    site: String,
    positions: Option<Where>,
    heads: Option<Vec<i64>>,
    action: Action,
}

impl EditText {
    /// Reads the short form of an addition, `NAME[..]=FILE:TENSOR[*F]`.
    ///
    /// # Errors
    ///
    /// [`Error::Syntax`].
    pub fn steer(text: &str) -> Result<Self> {
        Cursor { text, at: 0 }.edit(|cursor| Ok(Action::Add(cursor.stored()?)))
    }

    /// The name of the site that is edited, as it was typed; no model has seen it.
    pub fn site(&self) -> &str {
        &self.site
    }

    /// The edit, with the tensor that it names read from its file.
    ///
    /// # Errors
    ///
    /// [`Error::File`], [`Error::NoTensor`].
    pub fn read(&self) -> Result<Edit> {
        let mut edit = match &self.action {
            Action::Zero => Edit::zero(),
            Action::Mean => Edit::mean(),
            Action::Scale(factor) => Edit::scale(*factor),
            Action::Add(stored) => Edit::add(&stored.read()?),
            Action::Replace(stored) => Edit::replace(&stored.read()?),
        };
        edit = match self.positions {
            Some(Where::Range(begin, Some(end))) => edit.positions(begin..end),
            Some(Where::Range(begin, None)) => edit.positions(begin..),
            Some(Where::New) => edit.new_tokens(),
            None => edit,
        };
        Ok(match &self.heads {
            Some(heads) => edit.heads(heads.iter().copied()),
            None => edit,
        })
    }
}

impl Stored {
    /// The tensor times its factor, in f32 on the CPU.
    fn read(&self) -> Result<tch::Tensor> {
        let mut tensors = Checkpoint::open(&self.file)?.tensors(&LoadOptions::default())?;
        let Some(tensor) = tensors.remove(&self.tensor) else {
            let mut present: Vec<String> = tensors.into_keys().collect();
            present.sort();
            present.truncate(8);
            return Err(Error::NoTensor { file: self.file.clone(), tensor: self.tensor.clone(), present });
        };
        // The product is a copy: the file may be written again while the edit is in use.
        let product =
            tensor.f_to_device(Device::Cpu).and_then(|tensor| tensor.f_to_kind(Kind::Float)?.f_mul_scalar(self.factor));
        product.map_err(|source| Error::Torch { at: self.tensor.clone(), source })
    }
}

impl FromStr for EditText {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Cursor { text, at: 0 }.edit(|cursor| cursor.action())
    }
}

impl fmt::Display for EditText {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.site)?;
        match self.positions {
            Some(Where::Range(begin, Some(end))) => write!(formatter, ":positions={begin}..{end}")?,
            Some(Where::Range(begin, None)) => write!(formatter, ":positions={begin}..")?,
            Some(Where::New) => formatter.write_str(":new")?,
            None => {}
        }
        if let Some(heads) = &self.heads {
            let heads: Vec<String> = heads.iter().map(i64::to_string).collect();
            write!(formatter, ":heads={}", heads.join(","))?;
        }
        match &self.action {
            Action::Zero => formatter.write_str("=zero"),
            Action::Mean => formatter.write_str("=mean"),
            Action::Scale(factor) => write!(formatter, "=scale:{factor}"),
            Action::Add(stored) => write!(formatter, "=add:{stored}"),
            Action::Replace(stored) => write!(formatter, "=replace:{stored}"),
        }
    }
}

impl fmt::Display for Stored {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}*{}", self.file.display(), self.tensor, self.factor)
    }
}

/// A text that is read from its start.
struct Cursor<'a> {
    text: &'a str,
    /// In bytes.
    at: usize,
}

const PLACES: &str = "positions=A..B, heads=0,2 or new";
const ACTIONS: &str = "zero, mean, scale:F, add:FILE:TENSOR or replace:FILE:TENSOR";

impl<'a> Cursor<'a> {
    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    /// What stands before the next of `ends`, or before the end of the text.
    fn until(&mut self, ends: &[char]) -> &'a str {
        let rest = self.rest();
        let word = rest.split(ends).next().unwrap_or_default();
        self.at += word.len();
        word
    }

    fn skip(&mut self, character: char) -> bool {
        let there = self.rest().starts_with(character);
        self.at += if there { character.len_utf8() } else { 0 };
        there
    }

    /// The complaint about what stands at a place, up to the next of `:` and `=`.
    fn fail<T>(&self, at: usize, expected: &'static str) -> Result<T> {
        let before = self.text.get(..at).unwrap_or_default();
        let found = self.text.get(at..).unwrap_or_default().split([':', '=']).next().unwrap_or_default();
        Err(Error::Syntax { at: before.chars().count() + 1, found: found.to_owned(), expected })
    }

    fn edit(mut self, action: impl FnOnce(&mut Self) -> Result<Action>) -> Result<EditText> {
        let (site, positions, heads) = self.place()?;
        if !self.skip('=') {
            return self.fail(self.at, "= and what to do: zero, mean, scale, add or replace");
        }
        let action = action(&mut self)?;
        Ok(EditText { site, positions, heads, action })
    }

    fn patch(mut self) -> Result<Patch> {
        let (site, positions, heads) = self.place()?;
        if !self.rest().is_empty() {
            return self.fail(self.at, "nothing more after the place");
        }
        let positions = match positions {
            None => None,
            Some(Where::Range(begin, Some(end))) => Some(begin..end),
            Some(_) => return self.fail(site.len() + 1, "positions as A..B, or one position"),
        };
        let place = |patch: Patch| positions.iter().fold(patch, |patch, range| patch.positions(range.clone()));
        let Some(heads) = heads else { return Ok(place(Patch::at(site.as_str()))) };
        let mut patch: Option<Patch> = None;
        for head in heads {
            let at = patch.take().map_or_else(|| Patch::at(site.as_str()), |patch| patch.and_at(site.as_str()));
            patch = Some(place(at.heads(head..head + 1)));
        }
        patch.map_or_else(|| self.fail(self.at, "a head's number, or a range such as 0..4"), Ok)
    }

    /// `NAME[:positions=RANGE][:new][:heads=LIST]`
    fn place(&mut self) -> Result<(String, Option<Where>, Option<Vec<i64>>)> {
        let site = self.until(&[':', '=']).to_owned();
        if site.is_empty() {
            return self.fail(0, "the name of a site, such as h.3.attn.z");
        }
        let (mut positions, mut heads) = (None, None);
        while self.skip(':') {
            let start = self.at;
            match self.until(&[':', '=']) {
                "new" if positions.is_none() => positions = Some(Where::New),
                "positions" if positions.is_none() => positions = Some(self.positions()?),
                "heads" if heads.is_none() => heads = Some(self.heads()?),
                "new" | "positions" => return self.fail(start, "only one choice of positions"),
                "heads" => return self.fail(start, "only one list of heads"),
                _ => return self.fail(start, PLACES),
            }
        }
        Ok((site, positions, heads))
    }

    fn positions(&mut self) -> Result<Where> {
        const EXPECTED: &str = "positions as A..B with B excluded, A.., ..B or one position";
        if !self.skip('=') {
            return self.fail(self.at, "= and positions, such as positions=2..5");
        }
        let start = self.at;
        let range = range(self.until(&[':', '=']));
        range.map_or_else(|| self.fail(start, EXPECTED), |(begin, end)| Ok(Where::Range(begin, end)))
    }

    fn heads(&mut self) -> Result<Vec<i64>> {
        if !self.skip('=') {
            return self.fail(self.at, "= and heads, such as heads=0,2");
        }
        let mut heads = Vec::new();
        loop {
            let start = self.at;
            // More heads than that no model has; a slip of the finger should not fill the memory.
            match range(self.until(&[',', ':', '='])) {
                Some((begin, Some(end))) if end <= 65536 => heads.extend(begin..end),
                _ => return self.fail(start, "a head's number, or a range such as 0..4"),
            }
            if !self.skip(',') {
                return Ok(heads);
            }
        }
    }

    fn action(&mut self) -> Result<Action> {
        let start = self.at;
        let action = match self.until(&[':']) {
            "zero" => Action::Zero,
            "mean" => Action::Mean,
            "scale" if self.skip(':') => {
                let start = self.at;
                let factor = self.until(&[]).parse::<f64>().ok().filter(|factor| factor.is_finite());
                Action::Scale(factor.map_or_else(|| self.fail(start, "a number, such as 0.5"), Ok)?)
            }
            "add" if self.skip(':') => Action::Add(self.stored()?),
            "replace" if self.skip(':') => Action::Replace(self.stored()?),
            "scale" => return self.fail(start, "scale:F, such as scale:0.5"),
            "add" => return self.fail(start, "add:FILE:TENSOR, such as add:direction.safetensors:happy*4.0"),
            "replace" => return self.fail(start, "replace:FILE:TENSOR, such as replace:acts.safetensors:h.3"),
            _ => return self.fail(start, ACTIONS),
        };
        if self.rest().is_empty() { Ok(action) } else { self.fail(self.at, "nothing more after it") }
    }

    fn stored(&mut self) -> Result<Stored> {
        let start = self.at;
        let whole = self.until(&[]);
        let (place, factor) = match whole.rsplit_once('*') {
            None => (whole, 1.0),
            Some((place, factor)) => match factor.parse::<f64>() {
                Ok(factor) if factor.is_finite() => (place, factor),
                _ => return self.fail(start + place.len() + 1, "a factor after the *, such as 4.0"),
            },
        };
        // The last colon: there may be one in a path.
        match place.rsplit_once(':') {
            Some((file, tensor)) if !file.is_empty() && !tensor.is_empty() => {
                Ok(Stored { file: file.into(), tensor: tensor.to_owned(), factor })
            }
            _ => self.fail(start, "FILE:TENSOR or FILE:TENSOR*F, such as direction.safetensors:happy*4.0"),
        }
    }
}

/// `A..B`, `A..`, `..B`, or one number.
fn range(text: &str) -> Option<(i64, Option<i64>)> {
    let number = |text: &str| text.parse::<u32>().ok().map(i64::from);
    let (begin, end) = match text.split_once("..") {
        None => (number(text)?, Some(number(text)? + 1)),
        Some((begin, end)) => {
            let begin = if begin.is_empty() { 0 } else { number(begin)? };
            (begin, if end.is_empty() { None } else { Some(number(end)?) })
        }
    };
    end.is_none_or(|end| end > begin).then_some((begin, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_typed_is_read_and_displays_as_the_same() {
        for (text, shown) in [
            ("h.3=zero", "h.3=zero"),
            ("h.3:positions=2..5=mean", "h.3:positions=2..5=mean"),
            ("h.3:positions=..5=mean", "h.3:positions=0..5=mean"),
            ("h.3:positions=2=mean", "h.3:positions=2..3=mean"),
            ("h.3.attn.z:heads=0,2..4,7:positions=2..=scale:-0.5", "h.3.attn.z:positions=2..:heads=0,2,3,7=scale:-0.5"),
            ("h.3:new=add:C:\\a.safetensors:x.y*-2e-1", "h.3:new=add:C:\\a.safetensors:x.y*-0.2"),
            ("input=replace:a=b.safetensors:x", "input=replace:a=b.safetensors:x*1"),
        ] {
            let read: EditText = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(read.to_string(), shown);
            assert_eq!(shown.parse::<EditText>().unwrap(), read);
        }
        let steer = EditText::steer("h.12:positions=3..=direction.safetensors:name*4.0").unwrap();
        assert_eq!(steer, "h.12:positions=3..=add:direction.safetensors:name*4".parse().unwrap());
    }

    #[test]
    fn complaints_say_where_what_and_what_may_stand_there() {
        for (text, place, what, may) in [
            ("", 1, "", "name"),
            ("=zero", 1, "", "name"),
            ("h.3", 4, "", "zero"),
            ("h.3=zeros", 5, "zeros", "zero, mean"),
            ("h.3=zero:x", 9, "", "nothing more"),
            ("h.3:haeds=0=zero", 5, "haeds", "heads=0,2"),
            ("h.3:heads=0,x=zero", 13, "x", "head's number"),
            ("h.3:heads=0..=zero", 11, "0..", "head's number"),
            ("h.3:heads:new=zero", 10, "", "heads=0,2"),
            ("h.3:positions=5..5=zero", 15, "5..5", "A..B"),
            ("h.3:positions=a=zero", 15, "a", "A..B"),
            ("h.3:new:positions=1=zero", 9, "positions", "one choice"),
            ("h.3:heads=1:heads=2=zero", 13, "heads", "one list"),
            ("ä.3=scale:x", 11, "x", "number"),
            ("h.3=scale", 5, "scale", "scale:F"),
            ("h.3=add", 5, "add", "add:FILE:TENSOR"),
            ("h.3=add:file", 9, "file", "FILE:TENSOR"),
            ("h.3=add:file:x*y", 16, "y", "factor"),
            ("h.3=replace::x", 13, "", "FILE:TENSOR"),
        ] {
            let Err(Error::Syntax { at, found, expected }) = text.parse::<EditText>() else { panic!("{text}") };
            assert_eq!((at, found.as_str()), (place, what), "{text}");
            assert!(expected.contains(may), "{text}: {expected}");
        }
        assert!(EditText::steer("h.3=zero").is_err());
        for (text, place, may) in [
            ("h.3=zero", 4, "nothing more"),
            ("h.3:new", 5, "A..B"),
            ("h.3:positions=2..", 5, "A..B"),
            ("h.3:heads=", 11, "head's number"),
        ] {
            let Err(Error::Syntax { at, expected, .. }) = patch(text) else { panic!("{text}") };
            assert!(at == place && expected.contains(may), "{text}: {at} {expected}");
        }
    }
}
