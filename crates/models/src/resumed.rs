//! Inputs made of an input: the same text from a later place on.

use tch::{Kind, TchError, Tensor};

use crate::{Error, Input, Result, Site, input::Start};

impl Input {
    /// The same text, from `site` on: `stream` (`[batch, position, d_model]`) stands for the value there, as in
    /// [`Input::stream`]; mask and positions stay.
    pub fn resumed_at(&self, site: Site, stream: Tensor) -> Self {
        let mut resumed = self.clone();
        resumed.start = Start::Stream { site, stream };
        resumed
    }

    /// The same text without its first `first` positions, for [`crate::Model::forward_after`] and
    /// [`crate::Model::forward_cached`]: the mask stays whole.
    ///
    /// # Errors
    ///
    /// [`Error::EmptyInput`] where nothing is left; [`Error::Torch`].
    pub fn without_first(&self, first: i64) -> Result<Self> {
        let length = self.shape().get(1).copied().unwrap_or(0);
        if !(0..length).contains(&first) {
            return Err(Error::EmptyInput);
        }
        let rest = |tensor: &Tensor| tensor.f_narrow(1, first, length - first).map_err(Error::torch("the input"));
        let mut later = self.clone();
        later.start = match &self.start {
            Start::Tokens(ids) => Start::Tokens(rest(ids)?),
            Start::Stream { site, stream } => Start::Stream { site: *site, stream: rest(stream)? },
        };
        later.position_ids = self.position_ids.as_ref().map(rest).transpose()?;
        Ok(later)
    }

    /// The whole batch `copies` times, one after the other. A stream of one row is not copied.
    ///
    /// # Errors
    ///
    /// [`Error::EmptyInput`] for no copies; [`Error::Torch`].
    pub fn repeated(&self, copies: i64) -> Result<Self> {
        if copies < 1 {
            return Err(Error::EmptyInput);
        }
        let all = |tensor: &Tensor| repeated(tensor, copies).map_err(Error::torch("the input"));
        let mut several = self.clone();
        several.start = match &self.start {
            Start::Tokens(ids) => Start::Tokens(all(ids)?),
            Start::Stream { site, stream } => Start::Stream { site: *site, stream: all(stream)? },
        };
        several.attention_mask = self.attention_mask.as_ref().map(all).transpose()?;
        // Positions of one row are for all.
        let each = self.position_ids.as_ref().filter(|positions| positions.size().first() != Some(&1));
        if let Some(positions) = each {
            several.position_ids = Some(all(positions)?);
        }
        Ok(several)
    }

    /// Whether it has positions of its own.
    pub fn has_positions(&self) -> bool {
        self.position_ids.is_some()
    }

    /// Whether two inputs have padding at the same places, and the same positions of their own.
    ///
    /// # Errors
    ///
    /// [`Error::Torch`].
    pub fn same_padding(&self, other: &Self) -> Result<bool> {
        let masks = alike(self.attended(Site::INPUT)?.as_ref(), other.attended(Site::INPUT)?.as_ref());
        let positions = alike(self.position_ids.as_ref(), other.position_ids.as_ref());
        masks.and_then(|masks| Ok(masks && positions?)).map_err(Error::torch("the input"))
    }

    /// The first position at which two inputs differ in any row; `None` where they are the same. Inputs that cannot be compared
    /// by position (of other shapes or padding, or one of tokens and one a stream) differ from the first on.
    ///
    /// # Errors
    ///
    /// [`Error::Torch`].
    pub fn first_difference(&self, other: &Self) -> Result<Option<i64>> {
        let settings = self.shape() == other.shape() && self.same_padding(other)?;
        let found = || match (&self.start, &other.start) {
            (Start::Tokens(ours), Start::Tokens(theirs)) if settings => first_column(ours, theirs),
            (Start::Stream { site, stream }, Start::Stream { site: at, stream: theirs }) if settings && site == at => {
                first_column(stream, theirs)
            }
            _ => Ok(Some(0)),
        };
        found().map_err(Error::torch("the input"))
    }
}

fn repeated(tensor: &Tensor, copies: i64) -> Result<Tensor, TchError> {
    let mut shape = tensor.size();
    let mut times = vec![1; shape.len()];
    match (shape.first_mut(), times.first_mut()) {
        (Some(rows), _) if *rows == 1 => {
            *rows = copies;
            tensor.f_expand(shape, false)
        }
        (Some(_), Some(first)) => {
            *first = copies;
            tensor.f_repeat(times)
        }
        _ => Ok(tensor.shallow_clone()),
    }
}

fn alike(ours: Option<&Tensor>, theirs: Option<&Tensor>) -> Result<bool, TchError> {
    match (ours, theirs) {
        (None, None) => Ok(true),
        (Some(ours), Some(theirs)) => same(ours, theirs),
        // A mask that hides nothing is none.
        (Some(one), None) | (None, Some(one)) if one.f_kind()? == Kind::Bool => {
            Ok(one.f_all()?.f_int64_value(&[])? == 1)
        }
        _ => Ok(false),
    }
}

fn same(ours: &Tensor, theirs: &Tensor) -> Result<bool, TchError> {
    if ours.size() != theirs.size() {
        return Ok(false);
    }
    let theirs = theirs.f_to_device(ours.device())?;
    Ok(ours.f_ne_tensor(&theirs)?.f_any()?.f_int64_value(&[])? == 0)
}

/// The first column, `[row, column, ..]`, in which two tensors differ.
fn first_column(ours: &Tensor, theirs: &Tensor) -> Result<Option<i64>, TchError> {
    if ours.size() != theirs.size() {
        return Ok(Some(0));
    }
    let theirs = theirs.f_to_device(ours.device())?;
    let columns = ours.f_ne_tensor(&theirs)?.f_transpose(0, 1)?.f_flatten(1, -1)?.f_any_dim(1, false)?;
    if columns.f_any()?.f_int64_value(&[])? == 0 {
        return Ok(None);
    }
    columns.f_to_kind(Kind::Int64)?.f_argmax(0, false)?.f_int64_value(&[]).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_difference_is_that_of_any_row() {
        let input = |rows: &[[i64; 4]]| Input::from_rows(rows).unwrap();
        let (ours, theirs) = (input(&[[1, 2, 3, 4], [5, 6, 7, 8]]), input(&[[1, 2, 3, 9], [5, 6, 0, 8]]));
        assert_eq!(ours.first_difference(&theirs).unwrap(), Some(2));
        assert_eq!(ours.first_difference(&ours).unwrap(), None);
        assert_eq!(ours.first_difference(&input(&[[1, 2, 3, 4]])).unwrap(), Some(0));
        let masked = ours.clone().attention_mask(Tensor::from_slice2(&[[1, 1, 1, 0], [1, 1, 1, 1]]));
        assert_eq!(ours.first_difference(&masked).unwrap(), Some(0));
        assert_eq!(masked.first_difference(&masked).unwrap(), None);
        let stream = |last: f32| Input::stream(Site::INPUT, Tensor::from_slice(&[0.0, 1.0, 2.0, last]).view([1, 2, 2]));
        assert_eq!(stream(0.0).first_difference(&stream(1.0)).unwrap(), Some(1));
        assert_eq!(stream(0.0).first_difference(&ours).unwrap(), Some(0));
    }

    #[test]
    fn parts_of_an_input_keep_mask_and_positions_in_step() {
        let positions = Tensor::from_slice2(&[[0, 0, 1, 2], [0, 1, 2, 3]]);
        let mask = Tensor::from_slice2(&[[0, 1, 1, 1], [1, 1, 1, 1]]);
        let input = Input::from_rows(&[[0, 2, 3, 4], [5, 6, 7, 8]]).unwrap();
        let input = input.attention_mask(mask).position_ids(positions);
        let later = input.without_first(1).unwrap().repeated(2).unwrap();
        let Start::Tokens(ids) = &later.start else { panic!("a stream") };
        assert_eq!(*ids, Tensor::from_slice2(&[[2, 3, 4], [6, 7, 8], [2, 3, 4], [6, 7, 8]]));
        assert_eq!(later.position_ids.unwrap(), Tensor::from_slice2(&[[0, 1, 2], [1, 2, 3], [0, 1, 2], [1, 2, 3]]));
        assert_eq!(later.attention_mask.unwrap().size(), [4, 4]);
        assert!(matches!(input.without_first(4), Err(Error::EmptyInput)));
        assert!(matches!(input.repeated(0), Err(Error::EmptyInput)));
    }
}
