//! Which tensors the parts of a model need, and which is which when they arrive.
//!
//! One walk over the architecture does both: over a [`Shelf`] that writes down what is asked for, and over one that hands
//! out the tensors that came.

use lowmem::{Held, Index, PartRequest, TensorRequest};
use tch::Tensor;

use crate::{
    Architecture, Config, Error, Family, Gate, Layer, Mlp, Norm, NormOver, Point, Projections, Result, Site,
    families::{ExpertModule, Layout},
    linear::{Linear, Matrix},
    norm::Normer,
};

/// Where tensors are taken from, one after the other.
pub(crate) trait Shelf {
    type Tensor;

    /// The tensor of a module, `weight` or `bias`, which must have this shape.
    fn take(&mut self, module: Point, name: &str, shape: &[i64]) -> Result<Self::Tensor>;

    /// The matrix of a module, which must have this shape.
    fn matrix(&mut self, module: Point, shape: &[i64]) -> Result<Matrix<Self::Tensor>> {
        Ok(Matrix::Placed(self.take(module, "weight", shape)?))
    }

    /// The sinks of a layer's heads, `[head]`.
    fn sinks(&mut self, heads: i64) -> Result<Self::Tensor>;

    /// Which way matrices lie.
    fn layout(&self) -> Layout;

    fn normer(&mut self, module: Point, norm: Norm, width: i64) -> Result<Normer<Self::Tensor>> {
        let weight = norm.kind.has_weight().then(|| self.take(module, "weight", &[width])).transpose()?;
        let bias = norm.kind.has_bias().then(|| self.take(module, "bias", &[width])).transpose()?;
        Ok(Normer { norm, weight, bias })
    }

    fn linear(&mut self, module: Point, from: i64, to: i64, bias: bool) -> Result<Linear<Self::Tensor>> {
        let layout = self.layout();
        let shape = if layout == Layout::InOut { [from, to] } else { [to, from] };
        let weight = self.matrix(module, &shape)?;
        let bias = bias.then(|| self.take(module, "bias", &[to])).transpose()?;
        Ok(Linear { weight, bias, layout })
    }
}

/// The projections to queries, keys and values.
pub(crate) enum Projected<T = Tensor> {
    Joined(Linear<T>),
    Separate([Linear<T>; 3]),
}

/// The weights of one layer.
pub(crate) struct LayerWeights<T = Tensor> {
    pub(crate) attention_norms: NormWeights<T>,
    pub(crate) query_key_value: Projected<T>,
    pub(crate) query_key_norm: Option<[Normer<T>; 2]>,
    pub(crate) sinks: Option<T>,
    pub(crate) attention_output: Linear<T>,
    pub(crate) mlp_norms: NormWeights<T>,
    pub(crate) mlp: LayerMlp<T>,
}

/// What a layer holds of its MLP.
pub(crate) enum LayerMlp<T = Tensor> {
    Dense(MlpWeights<T>),
    /// The matrix of a router; its experts are parts of their own.
    Routed(Linear<T>),
}

/// The weights of one MLP, or of one expert.
pub(crate) struct MlpWeights<T = Tensor> {
    /// A gate with a matrix of its own.
    pub(crate) gate: Option<Linear<T>>,
    /// The other projection to the neurons, or both side by side.
    pub(crate) input: Linear<T>,
    pub(crate) output: Linear<T>,
}

impl<T> MlpWeights<T> {
    pub(crate) fn walk<S: Shelf<Tensor = T>>(mlp: &Mlp, d_model: i64, shelf: &mut S) -> Result<Self> {
        let gate = (mlp.gate == Gate::Separate)
            .then(|| shelf.linear(Point::MlpGate, d_model, mlp.d_mlp, mlp.bias))
            .transpose()?;
        let input = match mlp.gate {
            Gate::SideBySide | Gate::Interleaved => {
                shelf.linear(Point::MlpGateInput, d_model, 2 * mlp.d_mlp, mlp.bias)?
            }
            Gate::None | Gate::Separate => shelf.linear(Point::MlpInput, d_model, mlp.d_mlp, mlp.bias)?,
        };
        let output = shelf.linear(Point::MlpOutput, mlp.d_mlp, d_model, mlp.bias)?;
        Ok(Self { gate, input, output })
    }
}

/// The norms around one half of a layer.
pub(crate) struct NormWeights<T = Tensor> {
    pub(crate) before: Option<Normer<T>>,
    pub(crate) after: Option<Normer<T>>,
    pub(crate) stream: Option<Normer<T>>,
}

impl<T> LayerWeights<T> {
    pub(crate) fn walk<S: Shelf<Tensor = T>>(layer: &Layer, d_model: i64, shelf: &mut S) -> Result<Self> {
        let (attention, mlp) = (&layer.attention, &layer.mlp);
        let norm = |shelf: &mut S, module, norm: Option<Norm>| {
            norm.map(|norm| shelf.normer(module, norm, d_model)).transpose()
        };
        let before = norm(shelf, Point::Norm1, layer.attention_norms.before)?;
        let (queries, keys) = (attention.query_width(), attention.key_width());
        let bias = attention.input_bias;
        let query_key_value = match attention.projections {
            Projections::Separate => Projected::Separate([
                shelf.linear(Point::Query, d_model, queries, bias)?,
                shelf.linear(Point::Key, d_model, keys, bias)?,
                shelf.linear(Point::Value, d_model, keys, bias)?,
            ]),
            Projections::SideBySide | Projections::HeadByHead => {
                Projected::Joined(shelf.linear(Point::QueryKeyValue, d_model, queries + 2 * keys, bias)?)
            }
        };
        let query_key_norm = match attention.query_key_norm {
            None => None,
            Some(of) => {
                let widths =
                    if of.over == NormOver::AllHeads { (queries, keys) } else { (attention.d_head, attention.d_head) };
                Some([
                    shelf.normer(Point::QueryNorm, of.norm, widths.0)?,
                    shelf.normer(Point::KeyNorm, of.norm, widths.1)?,
                ])
            }
        };
        let sinks = attention.sinks.then(|| shelf.sinks(attention.heads)).transpose()?;
        let attention_output = shelf.linear(Point::AttentionOutput, queries, d_model, attention.output_bias)?;
        let after = norm(shelf, Point::AttentionNorm, layer.attention_norms.after)?;
        let stream = norm(shelf, Point::Norm1, layer.attention_norms.stream)?;
        let attention_norms = NormWeights { before, after, stream };
        let before = norm(shelf, Point::Norm2, layer.mlp_norms.before)?;
        let weights = match mlp.experts {
            Some(experts) => {
                LayerMlp::Routed(shelf.linear(Point::Router, d_model, experts.count, experts.router_bias)?)
            }
            None => LayerMlp::Dense(MlpWeights::walk(mlp, d_model, shelf)?),
        };
        let after = norm(shelf, Point::MlpNorm, layer.mlp_norms.after)?;
        let stream = norm(shelf, Point::Norm2, layer.mlp_norms.stream)?;
        let mlp_norms = NormWeights { before, after, stream };
        Ok(Self { attention_norms, query_key_value, query_key_norm, sinks, attention_output, mlp_norms, mlp: weights })
    }
}

/// What comes between the last layer and the unembedding.
pub(crate) struct TailWeights<T = Tensor> {
    pub(crate) norm: Option<Normer<T>>,
    pub(crate) projection: Option<Linear<T>>,
}

impl<T> TailWeights<T> {
    pub(crate) fn walk<S: Shelf<Tensor = T>>(architecture: &Architecture, shelf: &mut S) -> Result<Self> {
        let (d_model, width) = (architecture.d_model, architecture.embedding.width);
        let norm = architecture.final_norm.map(|norm| shelf.normer(Point::FinalNorm, norm, d_model)).transpose()?;
        let projects = width != d_model;
        let projection = projects.then(|| shelf.linear(Point::OutputProjection, d_model, width, false)).transpose()?;
        Ok(Self { norm, projection })
    }
}

/// Hands out tensors in the order in which they were requested.
pub(crate) struct Placed {
    tensors: std::vec::IntoIter<Held>,
    layout: Layout,
}

impl Placed {
    pub(crate) fn new(family: &Family, tensors: Vec<Held>) -> Self {
        Self { tensors: tensors.into_iter(), layout: family.layout }
    }

    /// The tensors of one expert.
    pub(crate) fn of_expert(family: &Family, tensors: Vec<Held>) -> Self {
        Self { tensors: tensors.into_iter(), layout: family.expert_layout }
    }

    fn next(&mut self) -> Result<Held> {
        // Out of step with the requests: a bug, but no reason to panic.
        self.tensors.next().ok_or_else(|| Error::Config { problem: "a part has fewer tensors than requested".into() })
    }
}

impl Shelf for Placed {
    type Tensor = Tensor;

    fn take(&mut self, _: Point, _: &str, _: &[i64]) -> Result<Tensor> {
        match self.next()? {
            Held::Tensor(tensor) => Ok(tensor),
            Held::Packed(packed) => Ok(packed.dense()?),
        }
    }

    fn matrix(&mut self, _: Point, _: &[i64]) -> Result<Matrix> {
        Ok(match self.next()? {
            Held::Tensor(tensor) => Matrix::Placed(tensor),
            Held::Packed(packed) => Matrix::Packed(packed),
        })
    }

    fn sinks(&mut self, _: i64) -> Result<Tensor> {
        self.take(Point::Scores, "", &[])
    }

    fn layout(&self) -> Layout {
        self.layout
    }
}

/// Writes down what is asked for.
struct Requests<'a> {
    family: &'a Family,
    /// What stands before the names of modules, with the dot.
    prefix: &'a str,
    /// Whose modules they are, where they are an expert's, and of how many.
    expert: Option<(usize, i64)>,
    tensors: Vec<TensorRequest>,
}

impl Shelf for Requests<'_> {
    type Tensor = ();

    fn take(&mut self, module: Point, name: &str, shape: &[i64]) -> Result<()> {
        let missing =
            || Error::Config { problem: format!("{} has no module for {}", self.family.title, module.name()) };
        let prefix = self.prefix;
        let request = match self.expert {
            None => {
                let module = self.family.module(module).ok_or_else(missing)?;
                TensorRequest::new(format!("{prefix}{module}.{name}"), shape)
            }
            Some((expert, count)) => match self.family.expert_module(module, expert).ok_or_else(missing)? {
                ExpertModule::Own(module) => TensorRequest::new(format!("{prefix}{module}.{name}"), shape),
                ExpertModule::Shared(tensor) => {
                    let ending = if name == "weight" { String::new() } else { format!("_{name}") };
                    TensorRequest::slice_of(format!("{prefix}{tensor}{ending}"), expert as i64, count, shape)
                }
            },
        };
        self.tensors.push(request);
        Ok(())
    }

    fn sinks(&mut self, heads: i64) -> Result<()> {
        self.tensors.push(TensorRequest::new(format!("{}{}", self.prefix, self.family.sinks), [heads]));
        Ok(())
    }

    fn layout(&self) -> Layout {
        if self.expert.is_some() { self.family.expert_layout } else { self.family.layout }
    }
}

/// The tensors of the embedding part: tokens, and positions where they are learned.
pub(crate) const TOKENS: usize = 0;
pub(crate) const POSITIONS: usize = 1;

/// The places of the parts of a model.
///
/// The embedding comes first, because rows are gathered from it; a matrix that projects it is a part of its own. So is each
/// expert, behind its layer: a run places those that tokens go to.
#[derive(Clone, Debug)]
pub(crate) struct PartMap {
    projects: bool,
    /// Where each layer begins, and what follows the last.
    layers: Vec<usize>,
    bias: bool,
}

impl PartMap {
    pub(crate) const EMBEDDING: usize = 0;

    pub(crate) fn of(architecture: &Architecture) -> Self {
        let projects = architecture.embedding.width != architecture.d_model;
        let mut layers = vec![1 + usize::from(projects)];
        let mut next = 1 + usize::from(projects);
        for layer in &architecture.layers {
            next += 1 + layer.mlp.experts.map_or(0, |experts| experts.count as usize);
            layers.push(next);
        }
        Self { projects, layers, bias: architecture.head.bias }
    }

    /// The matrix that projects the embedding.
    pub(crate) fn projection(&self) -> Option<usize> {
        self.projects.then_some(1)
    }

    /// A layer; of one beyond the last, what follows the layers.
    pub(crate) fn layer(&self, index: usize) -> usize {
        self.layers.get(index).or(self.layers.last()).copied().unwrap_or(1)
    }

    pub(crate) fn expert(&self, layer: usize, expert: usize) -> usize {
        self.layer(layer) + 1 + expert
    }

    /// The final norm and what comes with it.
    pub(crate) fn tail(&self) -> usize {
        self.layers.last().copied().unwrap_or(1)
    }

    pub(crate) fn head(&self) -> usize {
        self.tail() + 1
    }

    /// The bias of the logits.
    pub(crate) fn bias(&self) -> Option<usize> {
        self.bias.then_some(self.head() + 1)
    }

    /// How many parts there are.
    pub(crate) fn count(&self) -> usize {
        self.head() + 1 + usize::from(self.bias)
    }
}

/// How one checkpoint spells the names that are not the family's own.
pub(crate) struct Spelling {
    prefix: &'static str,
    tokens: String,
    /// The module of the unembedding.
    head: String,
}

impl Spelling {
    /// The spelling of a checkpoint: which prefix it has, if any, and its own unembedding or not.
    ///
    /// A tied checkpoint may store the shared matrix under either name, or both. Where it has both, their values decide, as
    /// they do in Hugging Face: equal ones are tied, others are two matrices, whatever the config says.
    pub(crate) fn of(index: &Index, config: &Config) -> Self {
        let has = |name: &str| index.get(name).is_some();
        let family = config.family;
        let holds = |prefix: &&&str| {
            let layers = format!("{prefix}{}.", family.layers);
            index.tensors.keys().any(|name| name.starts_with(&layers))
        };
        // A checkpoint without a layer of ours is refused by the names that its prefix would give.
        let begins = |prefix: &&&str| index.tensors.keys().any(|name| name.starts_with(**prefix));
        let prefixes = || family.prefixes.iter();
        let prefix = prefixes().find(holds).or_else(|| prefixes().find(begins)).copied().unwrap_or("");
        let tokens = format!("{prefix}{}.weight", family.module(Point::TokenEmbedding).unwrap_or_default());
        let tied = config.architecture.head.tied;
        let stored = family.heads.iter().find(|head| has(&format!("{head}.weight"))).copied();
        let usual = family.heads.first().copied().unwrap_or_default();
        let embedding = tokens.strip_suffix(".weight").unwrap_or(&tokens).to_owned();
        let head = match stored {
            Some(head) => head.to_owned(),
            None if tied => embedding,
            None => usual.to_owned(),
        };
        let tokens = if tied && !has(&tokens) && stored.is_some() { format!("{head}.weight") } else { tokens };
        Self { prefix, tokens, head }
    }

    /// The spelling that `save_pretrained` would give.
    pub(crate) fn standard(config: &Config) -> Self {
        let family = config.family;
        let prefix = family.prefix();
        let embedding = format!("{prefix}{}", family.module(Point::TokenEmbedding).unwrap_or_default());
        let head = family.heads.first().copied().unwrap_or_default().to_owned();
        let head = if config.architecture.head.tied { embedding.clone() } else { head };
        Self { prefix, tokens: format!("{embedding}.weight"), head }
    }
}

/// The parts of a model, in order, each made when its turn comes.
pub(crate) fn parts<'a>(config: &'a Config, spelling: &'a Spelling) -> impl Iterator<Item = Result<PartRequest>> + 'a {
    let (family, architecture) = (config.family, &config.architecture);
    let prefix = spelling.prefix;
    let requests = |prefix: &'a str| Requests { family, prefix, expert: None, tensors: Vec::new() };
    let embedding = move || embedding_part(config, spelling, requests(prefix));
    let projection = PartMap::of(architecture).projection().map(move |_| {
        let mut shelf = requests(prefix);
        shelf.linear(Point::EmbeddingProjection, architecture.embedding.width, architecture.d_model, false)?;
        Ok(PartRequest { label: Point::EmbeddingProjection.name().into(), tensors: shelf.tensors })
    });
    let layers = architecture.layers.iter().enumerate().flat_map(move |(index, layer)| {
        let prefix = format!("{prefix}{}.{index}.", family.layers);
        let of_layer = {
            let prefix = prefix.clone();
            move || {
                let mut shelf = Requests { family, prefix: &prefix, expert: None, tensors: Vec::new() };
                LayerWeights::walk(layer, architecture.d_model, &mut shelf)?;
                Ok(PartRequest { label: format!("h.{index}"), tensors: shelf.tensors })
            }
        };
        let count = layer.mlp.experts.map_or(0, |experts| experts.count);
        let experts = (0..count as usize).map(move |expert| {
            let mut shelf = Requests { family, prefix: &prefix, expert: Some((expert, count)), tensors: Vec::new() };
            MlpWeights::walk(&layer.mlp, architecture.d_model, &mut shelf)?;
            let label = Site::block(index, Point::Expert(expert)).to_string();
            Ok(PartRequest { label, tensors: shelf.tensors })
        });
        std::iter::once_with(of_layer).chain(experts)
    });
    let tail = move || {
        let mut shelf = requests(prefix);
        TailWeights::walk(architecture, &mut shelf)?;
        Ok(PartRequest { label: Point::FinalNorm.name().into(), tensors: shelf.tensors })
    };
    let head = move || Ok(head_part(config, spelling));
    let bias = architecture.head.bias.then(|| Ok(bias_part(config)));
    let first = std::iter::once_with(embedding).chain(projection);
    first.chain(layers).chain(std::iter::once_with(tail)).chain(std::iter::once_with(head)).chain(bias)
}

fn embedding_part(config: &Config, spelling: &Spelling, mut shelf: Requests) -> Result<PartRequest> {
    let architecture = &config.architecture;
    let (vocabulary, width) = (architecture.vocabulary, architecture.embedding.width);
    shelf.tensors.push(TensorRequest::new(&spelling.tokens, [vocabulary, width]));
    if let Some(positions) = &architecture.embedding.positions {
        let rows = architecture.context + positions.offset;
        shelf.take(Point::PositionEmbedding, "weight", &[rows, architecture.d_model])?;
    }
    Ok(PartRequest { label: "embedding".into(), tensors: shelf.tensors })
}

fn head_part(config: &Config, spelling: &Spelling) -> PartRequest {
    let architecture = &config.architecture;
    let name = format!("{}.weight", spelling.head);
    let mut weight = TensorRequest::new(&name, [architecture.vocabulary, architecture.embedding.width]);
    if architecture.head.tied && name != spelling.tokens {
        weight = weight.tied_to(&spelling.tokens);
    }
    PartRequest { label: Point::Logits.name().into(), tensors: vec![weight] }
}

/// The bias of the logits. Apart, because rows of the matrix are read without the others, and it is small. A tied head's
/// matrix goes by another name; its bias does not.
fn bias_part(config: &Config) -> PartRequest {
    let name = format!("{}.bias", config.family.heads.first().copied().unwrap_or_default());
    PartRequest { label: name.clone(), tensors: vec![TensorRequest::new(name, [config.architecture.vocabulary])] }
}

/// Tensors of the checkpoint that are known to be no weights of this network.
pub(crate) fn ignored(index: &Index, config: &Config, spelling: &Spelling) -> Vec<String> {
    let family = config.family;
    let buffer = |block: usize, name: &&str| format!("{}{}.{block}.{name}", spelling.prefix, family.layers);
    let blocks = 0..config.layers();
    let names = blocks.flat_map(|block| family.buffers.iter().map(move |name| buffer(block, name)));
    let buffers = names.filter(|name| index.get(name).is_some());
    let foreign = |name: &&String| family.foreign.iter().any(|prefix| name.starts_with(prefix));
    buffers.chain(index.tensors.keys().filter(foreign).cloned()).collect()
}
