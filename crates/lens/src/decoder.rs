//! The tail of the model that turns a stream into logits.

use models::{Input, Model, Point, Residual, Site, Stage};
use partial::Run;
use tch::Tensor;

use crate::{Error, error::Result};

/// The ordinary decoder: the final layer norm and the unembedding.
pub const DEFAULT_DECODER: [&str; 2] = ["final_layernorm", "lm_head"];

/// What a decoder runs before the final norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Step {
    Attention(usize),
    Mlp(usize),
    Block(usize),
}

impl Step {
    /// Where it begins and ends within the model, for putting steps in order.
    fn span(self) -> (usize, usize) {
        match self {
            Self::Attention(block) => (2 * block, 2 * block + 1),
            Self::Mlp(block) => (2 * block + 1, 2 * block + 2),
            Self::Block(block) => (2 * block, 2 * block + 2),
        }
    }
}

/// A decoder: some blocks or halves of blocks, then the final norm and the unembedding.
#[derive(Clone, Debug)]
pub(crate) struct Decoder {
    pub(crate) steps: Vec<Step>,
}

impl Decoder {
    /// Reads names such as `h.47.mlp`, `final_layernorm`, `lm_head`.
    pub(crate) fn parse(model: &Model, names: &[String]) -> Result<Self> {
        let fail = |name: &str, problem: &str| Error::Decoder { name: name.to_owned(), problem: problem.to_owned() };
        let (mut steps, mut tail) = (Vec::<Step>::new(), Vec::new());
        for name in names {
            let site = model.sites().parse(name)?;
            if site.stage == Stage::Head {
                tail.push(site);
                continue;
            }
            if !tail.is_empty() {
                return Err(fail(name, "it comes after the final norm; blocks come first, in their order"));
            }
            let Stage::Block(block) = site.stage else {
                return Err(fail(name, "expected a block (h.47) or one of its halves (h.47.attn, h.47.mlp)"));
            };
            let step = match site.point {
                Point::Output => Step::Block(block),
                Point::AttentionOutput => Step::Attention(block),
                Point::MlpOutput => Step::Mlp(block),
                _ => return Err(fail(name, "expected a block (h.47) or one of its halves (h.47.attn, h.47.mlp)")),
            };
            let layer = model.architecture().layers.get(block);
            if step != Step::Block(block) && layer.is_some_and(|layer| layer.residual == Residual::Parallel) {
                return Err(Error::ParallelBlock { block });
            }
            if steps.last().is_some_and(|last| last.span().1 > step.span().0) {
                return Err(fail(name, "it is out of order; name the decoder's blocks in the order in which they run"));
            }
            steps.push(step);
        }
        // What is not named, a projection or a softcap, is there all the same; a final norm that the model lacks need not be
        // named.
        let ends = matches!(tail.last(), Some(&Site::LOGITS | &Site::UNCAPPED_LOGITS));
        let begins = tail.first() == Some(&Site::FINAL_NORM) || model.architecture().final_norm.is_none();
        let ordered = tail.iter().zip(tail.iter().skip(1)).all(|(first, next)| model.sites().is_after(*next, *first));
        if begins && ends && ordered {
            Ok(Self { steps })
        } else {
            let last = names.last().map_or("", String::as_str);
            Err(fail(last, "a decoder ends with final_layernorm, lm_head"))
        }
    }

    /// Whether every position can be decoded without the others.
    pub(crate) fn is_local(&self) -> bool {
        self.steps.iter().all(|step| matches!(step, Step::Mlp(_)))
    }

    /// Runs the steps over streams `[row, position, d_model]`; the result has the same shape.
    pub(crate) fn run_blocks(&self, model: &Model, streams: Tensor) -> Result<Tensor> {
        let mut streams = streams;
        for step in &self.steps {
            let (start, end) = match *step {
                Step::Attention(block) => (Site::before_block(block), Site::block(block, Point::ResidMid)),
                Step::Mlp(block) => (Site::block(block, Point::ResidMid), Site::block(block, Point::Output)),
                Step::Block(block) => (Site::before_block(block), Site::block(block, Point::Output)),
            };
            let name = end.to_string();
            let output = Run::new(model, &[&name])?.run(Input::stream(start, streams))?;
            streams = output.get(&name)?.shallow_clone();
        }
        Ok(streams)
    }
}
