//! Direct logit attribution: the final stream as a sum, and what each term says of a logit.

use std::ops::Range;

use models::{Half, Input, Model, Point, Prompt, Site, Stage};
use tch::{Kind, TchError, Tensor};

use super::gradients::{mean, numbers, torch};
use crate::{Activations, Columns, Effects, Error, Metric, Result, Run};

/// How much each part of a model adds to a logit, or to the difference of two, by what it adds to the residual stream itself: not by
/// what later parts make of that.
///
/// The final stream is the sum of the embedding and of what every attention and MLP adds. The final norm is linear once its scale is
/// fixed, which is that of the real stream: each part is multiplied with it, centred where the norm centres, and then multiplied with
/// the norm's weight and the tokens' rows of the unembedding, as TransformerLens's `logit_attrs` does with the stack of
/// `decompose_resid`. Where the logits have a softcap, it is the logit before it that is shared out.
///
/// ```
/// use models::{Config, Model};
/// use partial::{DirectLogitAttribution, Metric};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let config = r#"{"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 8, "vocab_size": 20}"#;
/// # let model = Model::random(Config::from_json(config)?, 0)?;
/// let metric = Metric::logit_difference([4], [5]);
/// let attribution = DirectLogitAttribution::new(&model, &metric)?; // at the last token
/// let layers = attribution.layers([1, 2, 3])?;
/// assert_eq!(layers.rows, ["wte", "wpe", "h.0.attn", "h.0.mlp", "h.1.attn", "h.1.mlp", "bias"]);
/// let sum: f64 = layers.values.iter().flatten().sum();
/// assert!((sum - layers.clean.unwrap_or(f64::NAN)).abs() < 1e-5); // the difference itself
///
/// let heads = attribution.heads([1, 2, 3])?; // a row for each block, a column for each head
/// let neurons = attribution.neurons([1, 2, 3], 5)?; // the five that matter most, of all blocks
/// assert_eq!((heads.columns.len(), neurons.rows.len()), (2, 5));
/// # Ok(())
/// # }
/// ```
pub struct DirectLogitAttribution<'a> {
    model: &'a Model,
    metric: &'a Metric,
    positions: Option<Range<i64>>,
}

/// The metric as a direction in the final stream.
struct Direction {
    /// `[row, position, d_model]` in f32.
    stream: Tensor,
    /// What biases add, and the metric itself: `[row, position]` in f64.
    constant: Tensor,
    total: Tensor,
    has_constant: bool,
}

impl<'a> DirectLogitAttribution<'a> {
    /// Of a logit or a logit difference, at each row's last token. Nothing runs.
    ///
    /// # Errors
    ///
    /// [`Error::NotLinear`] for another metric; [`Error::NotASum`] for a model that norms the stream itself, as OPT-350m does.
    pub fn new(model: &'a Model, metric: &'a Metric) -> Result<Self> {
        if !metric.is_linear() {
            return Err(Error::NotLinear { metric: metric.to_string() });
        }
        for (block, layer) in model.architecture().layers.iter().enumerate() {
            let normed = [(&layer.attention_norms, Point::Norm1), (&layer.mlp_norms, Point::Norm2)];
            if let Some((_, point)) = normed.into_iter().find(|(norms, _)| norms.stream.is_some()) {
                return Err(Error::NotASum { site: Site::block(block, point).to_string() });
            }
        }
        Ok(Self { model, metric, positions: None })
    }

    /// At these positions instead, each with a column of its own. The tokens of the metric are the same at all of them.
    pub fn positions(mut self, positions: Range<i64>) -> Self {
        self.positions = Some(positions);
        self
    }

    /// By what adds to the stream: the embedding of tokens and of positions, each block's attention and MLP (behind their norms, where
    /// they have some: the sites are `h.i.ln_1_post` and `h.i.ln_2_post` then), and, where there are some, the biases of final norm and
    /// unembedding. The rows add up to [`Effects::clean`], up to rounding. Of a batch, means over its rows.
    ///
    /// # Errors
    ///
    /// What [`Metric::of`] refuses, before anything runs; whatever [`Model::input`] and [`Model::forward`] refuse;
    /// [`Error::OutOfRange`]; [`Error::Torch`].
    pub fn layers<'p>(&self, input: impl Into<Prompt<'p>>) -> Result<Effects> {
        let input = self.model.input(input)?;
        let terms = self.terms(&input);
        let output = self.run(&input, &terms)?;
        let direction = self.direction(&input, &output)?;
        let mut rows: Vec<String> = terms.iter().map(Site::to_string).collect();
        let mut values = Vec::with_capacity(rows.len() + 1);
        for site in terms {
            let value = self.chosen(&input, &output, site)?;
            values.push(over_rows(&along(&value, &direction.stream).map_err(torch(site))?)?);
        }
        if direction.has_constant {
            rows.push("bias".into());
            values.push(over_rows(&direction.constant)?);
        }
        self.effects(rows, self.columns(&input)?, values, &direction)
    }

    /// By head: what each head's part of the output projection adds. With one position, a row for each block and a column for each
    /// head; with several, a row for each head. What the biases of the projections add is in none of them.
    ///
    /// # Errors
    ///
    /// As [`DirectLogitAttribution::layers`].
    pub fn heads<'p>(&self, input: impl Into<Prompt<'p>>) -> Result<Effects> {
        let input = self.model.input(input)?;
        let blocks = self.blocks(&input, Half::Attention);
        let of_block = |&block: &usize| [Point::Z, Point::AttentionOutput].map(|point| Site::block(block, point));
        let output = self.run(&input, &blocks.iter().flat_map(of_block).collect::<Vec<_>>())?;
        let direction = self.direction(&input, &output)?;
        let columns = self.columns(&input)?;
        let (mut rows, mut values) = (Vec::new(), Vec::new());
        for block in blocks {
            let site = Site::block(block, Point::HeadOutput);
            let z = self.chosen(&input, &output, Site::block(block, Point::Z))?;
            let said = self.chosen(&input, &output, Site::block(block, Point::AttentionOutput))?;
            let back = self.model.direction_before_output(block, Half::Attention, &direction.stream, &said)?;
            // [head, position]
            let heads = || along(&z, &back.f_view_as(&z)?)?.f_mean_dim([0].as_slice(), false, None)?.f_transpose(0, 1);
            let heads = heads().map_err(torch(site))?;
            let each = heads.f_unbind(0).map_err(torch(site))?;
            let each = each.iter().map(numbers).collect::<Result<Vec<_>>>()?;
            if columns.len() == 1 {
                rows.push(site.to_string());
                values.push(each.concat());
            } else {
                rows.extend((0..each.len()).map(|head| format!("{site} head {head}")));
                values.extend(each);
            }
        }
        if columns.len() != 1 {
            return self.effects(rows, columns, values, &direction);
        }
        let widest = values.iter().map(Vec::len).max().unwrap_or(0);
        values.iter_mut().for_each(|row| row.resize(widest, f64::NAN));
        self.effects(rows, Columns::Heads((0..widest as i64).collect()), values, &direction)
    }

    /// By neuron of the MLPs: the `top` of all blocks that add or take most, the largest first, each a row; of several positions the one
    /// where it is largest counts. What a neuron adds is its activation times its row of the output projection.
    ///
    /// # Errors
    ///
    /// As [`DirectLogitAttribution::layers`]; [`models::Error::AbsentSite`] for a model with experts.
    pub fn neurons<'p>(&self, input: impl Into<Prompt<'p>>, top: usize) -> Result<Effects> {
        let input = self.model.input(input)?;
        let layers = &self.model.architecture().layers;
        let sites = |block: usize| layers.get(block).map(|layer| Site::block(block, layer.neurons()));
        let blocks: Vec<(usize, Site)> =
            self.blocks(&input, Half::Mlp).into_iter().filter_map(|block| Some((block, sites(block)?))).collect();
        let of_block = |&(block, neurons): &(usize, Site)| [neurons, Site::block(block, Point::MlpOutput)];
        let output = self.run(&input, &blocks.iter().flat_map(of_block).collect::<Vec<_>>())?;
        let direction = self.direction(&input, &output)?;
        let mut found: Vec<(String, Vec<f64>, f64)> = Vec::new();
        for (block, site) in blocks {
            let neurons = self.chosen(&input, &output, site)?;
            let said = self.chosen(&input, &output, Site::block(block, Point::MlpOutput))?;
            let back = self.model.direction_before_output(block, Half::Mlp, &direction.stream, &said)?;
            let most = || {
                let each = neurons.f_to_kind(Kind::Double)?.f_mul(&back.f_to_kind(Kind::Double)?)?;
                let each = each.f_mean_dim([0].as_slice(), false, None)?; // [position, neuron]
                let size = each.f_abs()?.f_amax([0].as_slice(), false)?;
                let width = size.numel();
                let (_, which) = size.f_topk(top.min(width) as i64, 0, true, true)?;
                Ok((each.f_index_select(1, &which)?.f_transpose(0, 1)?, which))
            };
            let (each, which) = most().map_err(torch(site))?;
            let each = each.f_unbind(0).map_err(torch(site))?;
            for (values, neuron) in each.iter().zip(numbers(&which)?) {
                let values = numbers(values)?;
                let largest = values.iter().map(|value| value.abs()).fold(0.0, f64::max);
                found.push((format!("{} neuron {neuron}", Site::block(block, Point::Neurons)), values, largest));
            }
        }
        found.sort_by(|one, two| two.2.total_cmp(&one.2));
        found.truncate(top);
        let (rows, values) = found.into_iter().map(|(name, values, _)| (name, values)).unzip();
        self.effects(rows, self.columns(&input)?, values, &direction)
    }

    /// The sites whose values add up to the final stream.
    fn terms(&self, input: &Input) -> Vec<Site> {
        let mut terms = match input.start_site() {
            Some(start) => vec![start],
            None => {
                let embedding = |point| Site { stage: Stage::Embedding, point };
                let tokens = [Point::EmbeddingProjection, Point::TokenEmbedding].map(embedding);
                let tokens = tokens.into_iter().find(|site| self.model.sites().find(site).is_ok());
                let positions = Some(embedding(Point::PositionEmbedding));
                [tokens, positions].into_iter().flatten().filter(|site| self.model.sites().find(site).is_ok()).collect()
            }
        };
        for (block, layer) in self.model.architecture().layers.iter().enumerate() {
            let halves = [Half::Attention, Half::Mlp].into_iter().filter(|half| self.runs(input, block, *half));
            terms.extend(halves.map(|half| match half {
                Half::Attention => Site::block(block, layer.attention_added()),
                Half::Mlp => Site::block(block, layer.mlp_added()),
            }));
        }
        terms
    }

    /// Whether a run over the input computes this half of a block.
    fn runs(&self, input: &Input, block: usize, half: Half) -> bool {
        let point = match half {
            Half::Attention => Point::AttentionOutput,
            Half::Mlp => Point::MlpOutput,
        };
        input.start_site().is_none_or(|start| self.model.sites().is_after(Site::block(block, point), start))
    }

    fn blocks(&self, input: &Input, half: Half) -> Vec<usize> {
        (0..self.model.config().layers()).filter(|&block| self.runs(input, block, half)).collect()
    }

    /// The final residual stream.
    fn last(&self) -> Site {
        Site::before_block(self.model.config().layers())
    }

    fn run(&self, input: &Input, sites: &[Site]) -> Result<Activations> {
        let (rows, length) = self.size(input);
        // Refused before anything runs.
        self.metric.linear(rows, self.model.architecture().vocabulary).map(drop)?;
        if let Some(Range { start, end }) = self.positions.clone()
            && (start < 0 || end > length || start >= end)
        {
            let site = "direct logit attribution".into();
            return Err(Error::OutOfRange { site, what: "positions", begin: start, end, size: length });
        }
        let captured: Vec<Site> = sites.iter().copied().chain([self.last()]).collect();
        let mut run = Run::new(self.model, &captured)?;
        if let Some(positions) = &self.positions {
            run = run.positions(positions.clone());
        }
        tch::no_grad(|| run.run(input))
    }

    /// Rows and positions of an input.
    fn size(&self, input: &Input) -> (i64, i64) {
        let shape = input.shape();
        (shape.first().copied().unwrap_or(0), shape.get(1).copied().unwrap_or(0))
    }

    fn columns(&self, input: &Input) -> Result<Columns> {
        Ok(match &self.positions {
            Some(positions) => Columns::Positions(positions.clone().collect()),
            None => match last_tokens(input)?.as_slice() {
                [first, rest @ ..] if rest.iter().all(|position| position == first) => Columns::Positions(vec![*first]),
                _ => Columns::Whole,
            },
        })
    }

    /// What was captured at a site at the chosen positions, `[row, position, ..]`.
    fn chosen(&self, input: &Input, output: &Activations, site: Site) -> Result<Tensor> {
        let value = output.get(site)?;
        let (rows, length) = self.size(input);
        // The position embedding may be one row for the whole batch.
        let mut shape = value.size();
        if let Some(first) = shape.first_mut() {
            *first = rows;
        }
        let value = value.f_expand(shape, false).map_err(torch(site))?;
        if self.positions.is_some() {
            return Ok(value);
        }
        let last = last_tokens(input)?;
        let gather = || {
            let places: Vec<i64> = last.iter().enumerate().map(|(row, place)| row as i64 * length + place).collect();
            let places = Tensor::f_from_slice(&places)?.f_to_device(value.device())?;
            value.f_flatten(0, 1)?.f_index_select(0, &places)?.f_unsqueeze(1)
        };
        gather().map_err(torch(site))
    }

    fn direction(&self, input: &Input, output: &Activations) -> Result<Direction> {
        let stream = self.chosen(input, output, self.last())?;
        let (rows, _) = self.size(input);
        let (right, wrong) = self.metric.linear(rows, self.model.architecture().vocabulary)?;
        let tail = self.model.tail()?;
        let right = self.model.unembedding_rows(&right)?;
        let wrong = wrong.map(|wrong| self.model.unembedding_rows(&wrong)).transpose()?;
        let single = |tensor: &Tensor| tensor.f_to_kind(Kind::Float);
        let difference = |one: &Tensor, two: Option<&Tensor>| match two {
            Some(two) => single(one)?.f_sub(&single(two)?),
            None => single(one),
        };
        let weight = difference(right.weight(), wrong.as_ref().map(models::Unembedding::weight));
        let at = || torch(Site::LOGITS);
        // [row, 1, width]
        let weight = weight.and_then(|weight| weight.f_unsqueeze(1)).map_err(at())?;
        let bias = right.bias().map(|bias| difference(bias, wrong.as_ref().and_then(models::Unembedding::bias)));
        let bias = bias.transpose().map_err(at())?;
        let found = tail.direction_before(&weight, &stream)?;
        let of_norm = tail.along_bias(&weight)?;
        let normed = tail.apply(&stream, Kind::Float)?;
        let sum = || {
            let mut total = along(&normed, &weight)?;
            let mut constant = total.f_zeros_like()?;
            if let Some(of_norm) = &of_norm {
                constant = constant.f_add(of_norm)?;
            }
            if let Some(bias) = &bias {
                let bias = bias.f_unsqueeze(1)?;
                (constant, total) = (constant.f_add(&bias)?, total.f_add(&bias)?);
            }
            Ok((constant, total))
        };
        let (constant, total) = sum().map_err(at())?;
        let has_constant = of_norm.is_some() || bias.is_some();
        Ok(Direction { stream: found, constant, total, has_constant })
    }

    fn effects(
        &self,
        rows: Vec<String>,
        columns: Columns,
        values: Vec<Vec<f64>>,
        direction: &Direction,
    ) -> Result<Effects> {
        let capped = self.model.architecture().head.softcap.is_some();
        let metric = if capped { format!("{} before the softcap", self.metric) } else { self.metric.to_string() };
        // With several positions there are several metrics, and no single one of the run.
        let clean = (direction.total.size().get(1) == Some(&1)).then(|| mean(&direction.total)).transpose()?;
        Ok(Effects { method: "direct logit attribution".into(), metric, rows, columns, values, clean, corrupted: None })
    }
}

/// Each row's last token that is not padding; of a row of padding alone, the last column.
fn last_tokens(input: &Input) -> Result<Vec<i64>> {
    let shape = input.shape();
    let (rows, length) = (shape.first().copied().unwrap_or(0), shape.get(1).copied().unwrap_or(0));
    let Some(attended) = input.attended(Site::FINAL_NORM)? else { return Ok(vec![length - 1; rows as usize]) };
    let attended = attended.f_flatten(0, 1).map_err(torch("the attention mask"))?;
    let attended = numbers(&attended)?;
    let last = |row: &[f64]| row.iter().rposition(|&token| token != 0.0).map_or(length - 1, |place| place as i64);
    Ok(attended.chunks(length.max(1) as usize).map(last).collect())
}

/// The products of values and directions, summed over the last dimension, in f64.
fn along(value: &Tensor, direction: &Tensor) -> Result<Tensor, TchError> {
    let product = value.f_to_kind(Kind::Double)?.f_mul(&direction.f_to_kind(Kind::Double)?)?;
    product.f_sum_dim_intlist([-1].as_slice(), false, None)
}

/// The mean over rows of `[row, position]`.
fn over_rows(values: &Tensor) -> Result<Vec<f64>> {
    numbers(&values.f_mean_dim([0].as_slice(), false, None).map_err(torch("the effects"))?)
}
