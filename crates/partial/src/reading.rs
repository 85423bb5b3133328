//! Which positions of which texts a run reads.

use std::ops::Range;

use models::{Input, LogitsAt, Site};

use crate::{Error, Result, edit::At, generation::unembeds};

/// What the columns of a run are: positions of each row's own text, counted from its first token.
#[derive(Clone, Debug)]
pub(crate) struct Reading {
    /// Columns that come from a cache.
    cached: i64,
    /// New columns.
    columns: i64,
    /// Whether the text has other positions than those of this run, before or after them.
    is_part: bool,
    /// Whether logits are those of each row's last token only.
    last_logits: bool,
    /// Each row's columns from its first token to its last, cached ones included; `None` where nothing is padding.
    tokens: Option<Vec<Range<i64>>>,
    /// How many tokens each row's prompt has, in generation.
    prompts: Option<Vec<i64>>,
}

/// Some rows at some columns of a value, and which of the chosen positions these are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Block {
    /// `None`: all rows.
    pub(crate) row: Option<i64>,
    pub(crate) columns: Range<i64>,
    /// How many chosen positions come before the first of these columns.
    pub(crate) offset: i64,
}

impl Reading {
    /// What a run over `input` reads after `cached` columns. `is_part` says that the text has other positions than those.
    pub(crate) fn of(input: &Input, cached: i64, is_part: bool, prompts: Option<&[i64]>) -> Result<Self> {
        Ok(Self {
            cached,
            columns: input.columns(),
            is_part,
            last_logits: input.wanted_logits() == LogitsAt::Last,
            tokens: input.token_columns()?,
            prompts: prompts.map(<[i64]>::to_vec),
        })
    }

    fn row(&self, row: usize) -> Range<i64> {
        let all = || 0..self.cached + self.columns;
        self.tokens.as_ref().map_or_else(all, |rows| rows.get(row).cloned().unwrap_or_else(all))
    }

    /// The position of the first column of a value at `site`, in a row.
    fn first_position(&self, site: Site, row: usize) -> i64 {
        let tokens = self.row(row);
        if self.last_logits && unembeds(site) { tokens.end - 1 - tokens.start } else { self.cached - tokens.start }
    }

    /// The position of each of `columns` columns of a value at `site`, in a row; negative at padding.
    pub(crate) fn positions(&self, site: Site, row: usize, columns: i64) -> impl Iterator<Item = i64> + use<> {
        let first = self.first_position(site, row);
        first..first + columns
    }

    /// The chosen part of a value with `columns` columns at `site`. Empty where this run reads nothing of it.
    pub(crate) fn blocks(&self, site: Site, at: At, columns: i64) -> Result<Vec<Block>> {
        let rows = self.tokens.as_ref().map_or(1, Vec::len).max(self.prompts.as_ref().map_or(1, Vec::len));
        self.check(site, at, rows)?;
        let block = |row: usize| {
            let (begin, end) = match at {
                At::Range(begin, end) => (begin, end),
                At::NewTokens => {
                    (self.prompts.as_ref().and_then(|prompts| prompts.get(row)).copied().unwrap_or(0), None)
                }
            };
            let first = self.first_position(site, row);
            let start = (begin - first).clamp(0, columns);
            let end = end.map_or(columns, |end| (end - first).clamp(start, columns));
            Block { row: Some(row as i64), columns: start..end, offset: first + start - begin }
        };
        let blocks: Vec<Block> = (0..rows).map(block).collect();
        let alike =
            |block: &Block| blocks.first().is_some_and(|first| Block { row: first.row, ..block.clone() } == *first);
        let blocks = if blocks.iter().all(alike) {
            blocks.into_iter().take(1).map(|block| Block { row: None, ..block }).collect()
        } else {
            blocks
        };
        Ok(blocks.into_iter().filter(|block| !block.columns.is_empty()).collect())
    }

    /// Refuses positions that no text has.
    fn check(&self, site: Site, at: At, rows: usize) -> Result<()> {
        let site = || site.to_string();
        let At::Range(begin, end) = at else {
            return if self.prompts.is_some() { Ok(()) } else { Err(Error::NoNewTokens { site: site() }) };
        };
        let size = (0..rows).map(|row| self.row(row)).map(|tokens| tokens.end - tokens.start).max().unwrap_or(0);
        let last = end.unwrap_or(begin.saturating_add(1));
        if begin < 0 || last <= begin || (!self.is_part && last > size) {
            return Err(Error::OutOfRange { site: site(), what: "positions", begin, end: last, size });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tch::Tensor;

    use super::*;

    fn block(row: Option<i64>, columns: Range<i64>, offset: i64) -> Block {
        Block { row, columns, offset }
    }

    /// Rows of 3 and 5 tokens, padded on the left.
    fn padded(columns: usize) -> Input {
        let mask = |padding: i64| (0..columns as i64).map(move |column| i64::from(column >= padding));
        let mask: Vec<i64> = mask(2).chain(mask(0)).collect();
        Input::from_rows(&[vec![1; columns], vec![1; columns]])
            .unwrap()
            .attention_mask(Tensor::from_slice(&mask).view([2, -1]))
    }

    #[test]
    fn positions_count_from_each_row_s_first_token() {
        let site = Site::INPUT;
        let whole = Reading::of(&padded(5), 0, false, None).unwrap();
        let blocks = whole.blocks(site, At::Range(1, Some(3)), 5).unwrap();
        assert_eq!(blocks, [block(Some(0), 3..5, 0), block(Some(1), 1..3, 0)]);
        // Position 3 is beyond the first row.
        assert_eq!(whole.blocks(site, At::Range(3, None), 5).unwrap(), [block(Some(1), 3..5, 0)]);
        assert!(matches!(whole.blocks(site, At::Range(3, Some(6)), 5), Err(Error::OutOfRange { size: 5, .. })));
        assert!(matches!(whole.blocks(site, At::NewTokens, 5), Err(Error::NoNewTokens { .. })));
    }

    #[test]
    fn with_a_cache_positions_are_those_of_the_text() {
        let one = Input::from_rows(&[[7, 8], [7, 8]]).unwrap();
        let part = Reading::of(&one, 4, true, None).unwrap();
        let blocks = |at| part.blocks(Site::INPUT, at, 2).unwrap();
        assert_eq!(blocks(At::Range(2, Some(5))), [block(None, 0..1, 2)]);
        assert_eq!(blocks(At::Range(5, Some(60))), [block(None, 1..2, 0)]);
        assert_eq!(blocks(At::Range(4, None)), [block(None, 0..2, 0)]);
        assert_eq!(blocks(At::Range(0, Some(4))), []);
        assert_eq!(blocks(At::Range(6, None)), []);
    }

    #[test]
    fn new_tokens_are_those_after_each_row_s_prompt() {
        let prompts = Some(&[3_i64, 5][..]);
        let first = Reading::of(&padded(5), 0, true, prompts).unwrap();
        assert_eq!(first.blocks(Site::INPUT, At::NewTokens, 5).unwrap(), []);
        // One new column, the seventh; the mask is of all.
        let mask = padded(7).token_columns().unwrap();
        let later = Reading { cached: 6, columns: 1, tokens: mask, ..first };
        assert_eq!(later.blocks(Site::INPUT, At::NewTokens, 1).unwrap(), [block(None, 0..1, 1)]);
        let logits = later.positions(Site::LOGITS, 0, 1).chain(later.positions(Site::LOGITS, 1, 1));
        assert_eq!(logits.collect::<Vec<_>>(), [4, 6]);
    }
}
