//! What a run reads.

use std::ops::Range;

use tch::{Device, Kind, TchError, Tensor};

use crate::{Error, Result, Site};

/// At which positions logits are computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum LogitsAt {
    /// At all of them.
    #[default]
    All,
    /// At each row's last token, wherever its padding is: what generation needs. The `lm_head` site then has one position.
    /// In a row of padding alone it is the last column.
    Last,
}

/// Where a run begins and what it reads there.
#[derive(Debug)]
pub(crate) enum Start {
    /// From token ids, `[batch, position]`.
    Tokens(Tensor),
    /// In the middle: this residual stream is the value at the site, and the run goes on after it.
    Stream { site: Site, stream: Tensor },
}

impl Clone for Start {
    fn clone(&self) -> Self {
        match self {
            Self::Tokens(ids) => Self::Tokens(ids.shallow_clone()),
            Self::Stream { site, stream } => Self::Stream { site: *site, stream: stream.shallow_clone() },
        }
    }
}

/// The input of one run: token ids (or a residual stream to start from), and optionally a mask and positions.
#[derive(Debug)]
pub struct Input {
    pub(crate) start: Start,
    pub(crate) attention_mask: Option<Tensor>,
    pub(crate) position_ids: Option<Tensor>,
    pub(crate) logits_at: LogitsAt,
}

/// The clone shares the tensors.
impl Clone for Input {
    fn clone(&self) -> Self {
        let shared = |tensor: &Option<Tensor>| tensor.as_ref().map(Tensor::shallow_clone);
        Self {
            start: self.start.clone(),
            attention_mask: shared(&self.attention_mask),
            position_ids: shared(&self.position_ids),
            logits_at: self.logits_at,
        }
    }
}

impl Input {
    /// Token ids as a tensor of any integer dtype, `[batch, position]`.
    pub fn ids(ids: Tensor) -> Self {
        Self::starting(Start::Tokens(ids))
    }

    /// Token ids as rows of equal length.
    ///
    /// # Errors
    ///
    /// [`Error::EmptyInput`]; [`Error::InputShape`] where rows differ in length (pad them and give a mask).
    pub fn from_rows<R: AsRef<[i64]>>(rows: &[R]) -> Result<Self> {
        let length = rows.first().map_or(0, |row| row.as_ref().len());
        if length == 0 {
            return Err(Error::EmptyInput);
        }
        if let Some(other) = rows.iter().find(|row| row.as_ref().len() != length) {
            return Err(Error::InputShape {
                what: "a row of the batch",
                expected: vec![1, length as i64],
                found: vec![1, other.as_ref().len() as i64],
            });
        }
        let flat: Vec<i64> = rows.iter().flat_map(|row| row.as_ref().iter().copied()).collect();
        let ids = Tensor::f_from_slice(&flat).and_then(|ids| ids.f_view([rows.len() as i64, length as i64]));
        Ok(Self::ids(ids.map_err(Error::torch("the input"))?))
    }

    /// Token ids as rows of any lengths: shorter ones are padded on the right with token 0, and the padding is masked.
    ///
    /// On the right, because positions then count from each row's first token as they would without the batch, and a
    /// causal model gives every token the values it would have alone.
    ///
    /// # Errors
    ///
    /// [`Error::EmptyInput`] where there is no row, or an empty one.
    pub fn padded<R: AsRef<[i64]>>(rows: &[R]) -> Result<Self> {
        Self::padded_to(rows, 0)
    }

    /// As [`Input::padded`], with every row at least `length` long: so that inputs come in few shapes, for each of which libtorch
    /// may keep what it prepared.
    ///
    /// # Errors
    ///
    /// As [`Input::padded`].
    pub fn padded_to<R: AsRef<[i64]>>(rows: &[R], length: usize) -> Result<Self> {
        let longest = rows.iter().map(|row| row.as_ref().len()).max().unwrap_or(0).max(length);
        if rows.iter().any(|row| row.as_ref().is_empty()) {
            return Err(Error::EmptyInput);
        }
        let fill = |row: &R, value: fn(i64) -> i64| -> Vec<i64> {
            row.as_ref().iter().map(|&id| value(id)).chain(std::iter::repeat(0)).take(longest).collect()
        };
        let input = Self::from_rows(&rows.iter().map(|row| fill(row, |id| id)).collect::<Vec<_>>())?;
        if rows.iter().all(|row| row.as_ref().len() == longest) {
            return Ok(input);
        }
        let mask: Vec<i64> = rows.iter().flat_map(|row| fill(row, |_| 1)).collect();
        let mask = Tensor::f_from_slice(&mask).and_then(|mask| mask.f_view([rows.len() as i64, longest as i64]));
        Ok(input.attention_mask(mask.map_err(Error::torch("the attention mask"))?))
    }

    /// A run from the middle: `stream` (`[batch, position, d_model]`) stands for the value at `site`, which must be a
    /// residual stream (`input`, `h.i.resid_mid`, `h.i`); what follows the site is run.
    pub fn stream(site: Site, stream: Tensor) -> Self {
        Self::starting(Start::Stream { site, stream })
    }

    fn starting(start: Start) -> Self {
        Self { start, attention_mask: None, position_ids: None, logits_at: LogitsAt::All }
    }

    /// Marks padding: `[batch, position]`, zero where a token is padding; with a cache, the cached positions come first.
    pub fn attention_mask(mut self, mask: Tensor) -> Self {
        self.attention_mask = Some(mask);
        self
    }

    /// Positions of the tokens, `[batch or 1, position]`; by default counted from the first column (in OPT, from the first
    /// token of each row).
    pub fn position_ids(mut self, positions: Tensor) -> Self {
        self.position_ids = Some(positions);
        self
    }

    /// Position ids that count the tokens that are not padding, as Hugging Face's `generate` does for left padding.
    ///
    /// # Errors
    ///
    /// [`Error::Torch`].
    pub fn positions_from_mask(mask: &Tensor) -> Result<Tensor> {
        let count = || {
            let mask = mask.f_to_kind(Kind::Int64)?;
            let positions = mask.f_cumsum(-1, Kind::Int64)?.f_sub_scalar(1)?;
            positions.f_masked_fill(&mask.f_eq(0)?, 0)
        };
        count().map_err(Error::torch("positions from the attention mask"))
    }

    /// Where a run from the middle starts; `None` for one from token ids.
    pub fn start_site(&self) -> Option<Site> {
        match &self.start {
            Start::Tokens(_) => None,
            Start::Stream { site, .. } => Some(*site),
        }
    }

    /// Which positions of the value at `site` are tokens and which are padding, `[batch, position]` of Bool; `None` where
    /// all are tokens. With a cache, these are the new positions.
    ///
    /// # Errors
    ///
    /// [`Error::InputShape`] for a mask that does not fit, [`Error::Torch`].
    pub fn attended(&self, site: Site) -> Result<Option<Tensor>> {
        let Some(mask) = &self.attention_mask else { return Ok(None) };
        let unembeds = matches!(site, Site::LOGITS | Site::UNCAPPED_LOGITS | Site::PROJECTED);
        if unembeds && self.logits_at == LogitsAt::Last {
            return Ok(None);
        }
        let shape = self.shape();
        let (batch, length) = (shape.first().copied().unwrap_or(0), shape.get(1).copied().unwrap_or(0));
        match mask.size()[..] {
            [rows, total] if rows == batch && total >= length => {
                let own = mask.f_narrow(1, total - length, length).and_then(|own| own.f_ne(0));
                Ok(Some(own.map_err(Error::torch("the attention mask"))?))
            }
            _ => Err(mismatch("attention_mask", &[batch, length], mask.size())),
        }
    }

    /// The columns from each row's first token to its last, cached columns first, where an attention mask says that some are
    /// padding: one range for each row, empty where all is padding. `None` where there is no mask.
    ///
    /// # Errors
    ///
    /// [`Error::InputShape`] for a mask that is not `[batch, position]`, [`Error::Torch`].
    pub fn token_columns(&self) -> Result<Option<Vec<Range<i64>>>> {
        let Some(mask) = &self.attention_mask else { return Ok(None) };
        let [_, total] = mask.size()[..] else { return Err(mismatch("attention_mask", &[-1, -1], mask.size())) };
        if mask.numel() == 0 {
            return Err(Error::EmptyInput);
        }
        let mask = mask.f_ne(0).and_then(|mask| mask.f_to_device(Device::Cpu)?.f_to_kind(Kind::Int64)?.f_contiguous());
        let mask = chunks(&mask.map_err(Error::torch("the attention mask"))?, total)?;
        let range = |row: &Vec<i64>| {
            let first = row.iter().position(|&attended| attended != 0).unwrap_or(0);
            let end = row.iter().rposition(|&attended| attended != 0).map_or(0, |last| last + 1);
            first as i64..end as i64
        };
        Ok(Some(mask.iter().map(range).collect()))
    }

    /// Columns of the input, padding included; with a cache, the new ones.
    pub fn columns(&self) -> i64 {
        self.shape().get(1).copied().unwrap_or(0)
    }

    /// At which positions logits are computed.
    pub fn wanted_logits(&self) -> LogitsAt {
        self.logits_at
    }

    /// `[batch, position]` and, of a stream, `d_model`; not checked against a model.
    pub fn shape(&self) -> Vec<i64> {
        match &self.start {
            Start::Tokens(ids) => ids.size(),
            Start::Stream { stream, .. } => stream.size(),
        }
    }

    /// The token ids of each row, without padding.
    pub(crate) fn rows(&self) -> Result<Vec<Vec<i64>>> {
        let refused = |problem| Err(Error::NotRows { problem });
        let Start::Tokens(ids) = &self.start else { return refused("starts with a residual stream") };
        if self.position_ids.is_some() {
            return refused("has positions of its own");
        }
        let [_, length] = ids.size()[..] else { return Err(mismatch("the token ids", &[-1, -1], ids.size())) };
        if ids.numel() == 0 {
            return Err(Error::EmptyInput);
        }
        let mut rows = chunks(&integers(ids, "the token ids")?, length)?;
        let Some(mask) = &self.attention_mask else { return Ok(rows) };
        if mask.size() != ids.size() {
            return Err(mismatch("attention_mask", &ids.size(), mask.size()));
        }
        let mask = mask.f_ne(0).and_then(|mask| mask.f_to_device(Device::Cpu)?.f_to_kind(Kind::Int64)?.f_contiguous());
        let mask = chunks(&mask.map_err(Error::torch("the attention mask"))?, length)?;
        for (row, mask) in rows.iter_mut().zip(mask) {
            let tokens = mask.iter().take_while(|&&attended| attended != 0).count();
            if mask.iter().skip(tokens).any(|&attended| attended != 0) {
                return refused("has padding before or between its tokens");
            }
            row.truncate(tokens);
        }
        Ok(rows)
    }

    /// Which logits to compute.
    pub fn logits_at(mut self, at: LogitsAt) -> Self {
        self.logits_at = at;
        self
    }
}

/// An input that has been checked against the model.
pub(crate) struct Checked {
    /// Token ids on the CPU, `[batch, position]`, unless the run starts in the middle.
    pub(crate) ids: Option<Tensor>,
    /// Position ids on the CPU, `[batch or 1, position]`.
    pub(crate) position_ids: Tensor,
    /// `[batch, cached and new positions]`, true where a token may be attended to; absent when all may.
    pub(crate) attended: Option<Tensor>,
    pub(crate) batch: i64,
    pub(crate) length: i64,
}

pub(crate) struct Limits {
    pub(crate) vocabulary: i64,
    /// How many positions there are rows for; `None` where they are not learned.
    pub(crate) positions: Option<i64>,
    /// The least position that there is a row for.
    pub(crate) first_position: i64,
    /// Whether positions count the tokens of a padded row, rather than its columns, where nothing else is asked for.
    pub(crate) count_tokens: bool,
    pub(crate) d_model: i64,
    pub(crate) cached: i64,
    pub(crate) device: Device,
}

impl Input {
    pub(crate) fn check(&self, limits: &Limits) -> Result<Checked> {
        let shape = self.shape();
        let (batch, length) = match (&self.start, &shape[..]) {
            (Start::Tokens(_), &[batch, length]) => (batch, length),
            (Start::Stream { .. }, &[batch, length, width]) if width == limits.d_model => (batch, length),
            (Start::Tokens(_), _) => return Err(mismatch("the token ids", &[-1, -1], shape)),
            (Start::Stream { .. }, _) => return Err(mismatch("the stream", &[-1, -1, limits.d_model], shape)),
        };
        if batch == 0 || length == 0 {
            return Err(Error::EmptyInput);
        }
        let total = limits.cached + length;
        if let Some(limit) = limits.positions.filter(|limit| total > *limit) {
            return Err(Error::TooManyPositions { found: total, limit });
        }
        let torch = || Error::torch("the input");
        let ids = match &self.start {
            Start::Tokens(ids) => {
                let ids = integers(ids, "the token ids")?;
                check_ids(&ids, limits.vocabulary)?;
                Some(ids)
            }
            Start::Stream { .. } => None,
        };
        let attended = match &self.attention_mask {
            None => None,
            Some(mask) if mask.size() != [batch, total] => {
                return Err(mismatch("attention_mask", &[batch, total], mask.size()));
            }
            Some(mask) => {
                let attended = mask.f_ne(0).map_err(torch())?;
                let all = attended.f_all().and_then(|all| all.f_int64_value(&[])).map_err(torch())?;
                if all != 0 { None } else { Some(attended.f_to_device(limits.device).map_err(torch())?) }
            }
        };
        let position_ids = match &self.position_ids {
            Some(positions) => {
                let size = positions.size();
                if size != [batch, length] && size != [1, length] {
                    return Err(mismatch("position_ids", &[batch, length], size));
                }
                let positions = integers(positions, "position_ids")?;
                let (least, most) = (positions.f_min(), positions.f_max());
                let limit = limits.positions.unwrap_or(i64::MAX);
                for value in [least, most] {
                    let id = value.and_then(|value| value.f_int64_value(&[])).map_err(torch())?;
                    if !(limits.first_position..limit).contains(&id) {
                        return Err(Error::PositionOutOfRange { id, first: limits.first_position, limit });
                    }
                }
                positions
            }
            None => {
                let counted = attended.as_ref().filter(|_| limits.count_tokens);
                let positions = match counted {
                    Some(attended) => token_positions(attended, length),
                    None => Tensor::f_arange_start(limits.cached, total, (Kind::Int64, Device::Cpu))
                        .and_then(|positions| positions.f_unsqueeze(0)),
                };
                positions.map_err(torch())?
            }
        };
        Ok(Checked { ids, position_ids, attended, batch, length })
    }
}

/// Positions that count the tokens of each row, `[batch, length]` of its last columns; -1 at padding.
fn token_positions(attended: &Tensor, length: i64) -> Result<Tensor, TchError> {
    let attended = attended.f_to_device(Device::Cpu)?.f_to_kind(Kind::Int64)?;
    let positions = attended.f_cumsum(-1, Kind::Int64)?.f_mul(&attended)?.f_sub_scalar(1)?;
    positions.f_narrow(1, attended.size2()?.1 - length, length)
}

pub(crate) fn mismatch(what: &'static str, expected: &[i64], found: Vec<i64>) -> Error {
    Error::InputShape { what, expected: expected.to_vec(), found }
}

fn integers(tensor: &Tensor, what: &'static str) -> Result<Tensor> {
    let convert = || {
        let kind = tensor.f_kind()?;
        let whole = matches!(kind, Kind::Int64 | Kind::Int | Kind::Int16 | Kind::Int8 | Kind::Uint8);
        if !whole {
            return Err(TchError::Kind(format!("{what} must be integers, not {kind:?}")));
        }
        tensor.f_to_device(Device::Cpu)?.f_to_kind(Kind::Int64)?.f_contiguous()
    };
    convert().map_err(Error::torch(what))
}

/// The numbers of an Int64 tensor on the CPU as rows of `length`, which is not 0.
fn chunks(tensor: &Tensor, length: i64) -> Result<Vec<Vec<i64>>> {
    let mut values = vec![0_i64; tensor.numel()];
    tensor.f_copy_data(&mut values, tensor.numel()).map_err(Error::torch("the input"))?;
    Ok(values.chunks(length as usize).map(<[i64]>::to_vec).collect())
}

fn check_ids(ids: &Tensor, vocabulary: i64) -> Result<()> {
    let mut values = vec![0_i64; ids.numel()];
    ids.f_copy_data(&mut values, ids.numel()).map_err(Error::torch("the token ids"))?;
    let columns = ids.size().last().copied().unwrap_or(1).max(1);
    for (place, id) in values.into_iter().enumerate() {
        if !(0..vocabulary).contains(&id) {
            let (row, position) = (place as i64 / columns, place as i64 % columns);
            return Err(Error::TokenOutOfRange { id, row, position, vocabulary });
        }
    }
    Ok(())
}
