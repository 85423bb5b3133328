//! Runs that record what a metric depends on.

use models::{Input, LogitsAt, Model, Site};
use tch::{Kind, TchError, Tensor};

use crate::{Edit, Error, Metric, Result, Run};

/// Refuses a model whose weights are dropped after use: a backward pass needs them all, which is what streaming is to avoid.
pub(super) fn refuse_streamed(model: &Model) -> Result<()> {
    if model.is_streamed() { Err(Error::StreamedGradient) } else { Ok(()) }
}

/// Refuses an input that begins after `input`: what it has there is all that there is.
pub(super) fn refuse_middle(input: &Input) -> Result<()> {
    match input.start_site() {
        Some(start) if start != Site::INPUT => {
            Err(Error::BeforeStart { site: Site::INPUT.to_string(), start: start.to_string() })
        }
        _ => Ok(()),
    }
}

/// The input with logits only where the metric is: at each row's last token, or at one position.
pub(super) fn at_metric(input: &Input, at: Option<i64>) -> Result<Input> {
    let length = input.shape().get(1).copied().unwrap_or(0);
    if let Some(position) = at.filter(|position| !(0..length).contains(position)) {
        let (begin, end) = (position, position + 1);
        return Err(Error::OutOfRange { site: "the metric".into(), what: "positions", begin, end, size: length });
    }
    Ok(input.clone().logits_at(if at.is_some() { LogitsAt::All } else { LogitsAt::Last }))
}

/// The metric of each row, of logits `[row, position, vocabulary]` of an input that [`at_metric`] made.
pub(super) fn metric_of(metric: &Metric, logits: &Tensor, at: Option<i64>) -> Result<Tensor> {
    let there = logits.f_select(1, at.unwrap_or(0));
    metric.of(&there.map_err(torch(Site::LOGITS))?)
}

/// An edit that cuts the value off from what it was made of, and collects gradients there.
pub(super) fn leaf() -> Edit {
    Edit::with(|value| value.f_detach()?.f_set_requires_grad(true))
}

/// The gradients of the sum of `metric`, each of the shape of its value; `None` for a value that the metric does not depend on.
pub(super) fn gradients(metric: &Tensor, values: &[&Tensor]) -> Result<Vec<Option<Tensor>>> {
    let at = || torch("the backward pass");
    let sum = metric.f_sum(None).map_err(at())?;
    let recorded: Vec<&Tensor> = values.iter().copied().filter(|value| value.requires_grad()).collect();
    let mut found = if sum.requires_grad() && !recorded.is_empty() {
        Tensor::f_run_backward(&[sum], &recorded, false, false).map_err(at())?.into_iter()
    } else {
        Vec::new().into_iter()
    };
    let mut of = |value: &&Tensor| if value.requires_grad() { found.next().filter(Tensor::defined) } else { None };
    Ok(values.iter().map(&mut of).collect())
}

/// The metric of a run over `input`, of which nothing is recorded, `[row]`.
pub(super) fn plain_metric(
    model: &Model,
    metric: &Metric,
    input: &Input,
    at: Option<i64>,
    edit: Option<Edit>,
) -> Result<Tensor> {
    let mut run = Run::new(model, &[Site::LOGITS])?;
    if let Some(edit) = edit {
        run = run.edit(Site::INPUT, edit)?;
    }
    let output = tch::no_grad(|| run.run(&at_metric(input, at)?))?;
    metric_of(metric, output.get(Site::LOGITS)?, at)
}

/// The mean over the rows of a batch.
pub(super) fn mean(metric: &Tensor) -> Result<f64> {
    let mean = metric.f_mean(Kind::Double).and_then(|mean| mean.f_double_value(&[]));
    mean.map_err(torch("the metric"))
}

/// The numbers of a tensor of one dimension.
pub(super) fn numbers(tensor: &Tensor) -> Result<Vec<f64>> {
    let read = || {
        let tensor = tensor.f_to_kind(Kind::Double)?.f_to_device(tch::Device::Cpu)?.f_contiguous()?;
        let mut values = vec![0.0; tensor.numel()];
        tensor.f_copy_data(&mut values, tensor.numel())?;
        Ok(values)
    };
    read().map_err(torch("the effects"))
}

pub(super) fn torch(at: impl ToString) -> impl FnOnce(TchError) -> Error {
    move |source| Error::Torch { at: at.to_string(), source }
}
