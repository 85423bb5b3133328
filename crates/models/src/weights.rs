//! Which tensors the parts of a model need, and which is which when they arrive.
//!
//! Part 0 is the embedding, part `i + 1` block `i`, then come the final norm and the unembedding. The functions that ask
//! for tensors and those that take them apart walk the same [`Family`] in the same order.

use lowmem::{Index, PartRequest, TensorRequest};
use tch::{TchError, Tensor};

use crate::{
    Config, Error, Factor, Family, Result,
    family::{LinearSpec, Matrices, QueryKeyValue},
};

pub(crate) const EMBEDDING: usize = 0;
pub(crate) const TOKENS: usize = 0;
pub(crate) const POSITIONS: usize = 1;

pub(crate) const fn block(index: usize) -> usize {
    index + 1
}

pub(crate) const fn final_norm(layers: usize) -> usize {
    layers + 1
}

pub(crate) const fn unembedding(layers: usize) -> usize {
    layers + 2
}

const PREFIX: &str = "transformer.";
const TOKEN_EMBEDDING: &str = "wte.weight";
const HEAD: &str = "lm_head.weight";

/// How one checkpoint spells the names that are not the family's own.
pub(crate) struct Spelling {
    prefix: &'static str,
    tokens: String,
    head: String,
}

impl Spelling {
    /// The spelling of a checkpoint: with or without `transformer.`, with its own unembedding or not.
    ///
    /// A tied checkpoint may store the shared matrix under either name, or both. Where it has both, their values decide, as
    /// they do in Hugging Face: equal ones are tied, others are two matrices, whatever the config says.
    pub(crate) fn of(index: &Index, config: &Config) -> Self {
        let has = |name: &str| index.get(name).is_some();
        let prefix = if index.tensors.keys().any(|name| name.starts_with(PREFIX)) { PREFIX } else { "" };
        let tokens = format!("{prefix}{TOKEN_EMBEDDING}");
        let head = if !config.tied || has(HEAD) { HEAD.to_owned() } else { tokens.clone() };
        let tokens = if config.tied && !has(&tokens) && has(HEAD) { HEAD.to_owned() } else { tokens };
        Self { prefix, tokens, head }
    }

    /// The spelling that `save_pretrained` would give.
    pub(crate) fn standard(config: &Config) -> Self {
        let tokens = format!("{PREFIX}{TOKEN_EMBEDDING}");
        let head = if config.tied { tokens.clone() } else { HEAD.to_owned() };
        Self { prefix: PREFIX, tokens, head }
    }
}

/// The parts of a model, in order, each made when its turn comes.
pub(crate) fn parts<'a>(config: &'a Config, spelling: &'a Spelling) -> impl Iterator<Item = PartRequest> + 'a {
    let prefix = spelling.prefix;
    let d_model = config.d_model;
    let part = |label: &str, tensors: Vec<TensorRequest>| PartRequest { label: label.into(), tensors };
    let embedding = vec![
        TensorRequest::new(&spelling.tokens, [config.vocabulary, d_model]),
        TensorRequest::new(format!("{prefix}wpe.weight"), [config.positions, d_model]),
    ];
    let blocks = (0..config.layers()).map(move |index| {
        let label = format!("h.{index}");
        part(&label, block_tensors(config, &format!("{prefix}{label}.")))
    });
    let norm = norm_tensors(&format!("{prefix}ln_f"), d_model).into();
    let mut head = TensorRequest::new(&spelling.head, [config.vocabulary, d_model]);
    if config.tied && spelling.head != spelling.tokens {
        head = head.tied_to(&spelling.tokens);
    }
    std::iter::once(part("embedding", embedding)).chain(blocks).chain([part("ln_f", norm), part("lm_head", vec![head])])
}

fn norm_tensors(name: &str, width: i64) -> [TensorRequest; 2] {
    ["weight", "bias"].map(|kind| TensorRequest::new(format!("{name}.{kind}"), [width]))
}

fn block_tensors(config: &Config, prefix: &str) -> Vec<TensorRequest> {
    let family = config.family;
    let (d_model, d_mlp) = (config.d_model, config.d_mlp);
    let mut tensors = Vec::new();
    let linear = |tensors: &mut Vec<TensorRequest>, spec: LinearSpec, from: i64, to: i64| {
        let shape = match family.matrices {
            Matrices::InOut => [from, to],
            Matrices::OutIn => [to, from],
        };
        tensors.push(TensorRequest::new(format!("{prefix}{}.weight", spec.name), shape));
        if spec.bias {
            tensors.push(TensorRequest::new(format!("{prefix}{}.bias", spec.name), [to]));
        }
    };
    tensors.extend(norm_tensors(&format!("{prefix}ln_1"), d_model));
    match family.query_key_value {
        QueryKeyValue::Fused(spec) => linear(&mut tensors, spec, d_model, 3 * d_model),
        QueryKeyValue::Separate(specs) => {
            specs.map(|spec| linear(&mut tensors, spec, d_model, d_model)).into_iter().collect()
        }
    }
    linear(&mut tensors, family.attention_output, d_model, d_model);
    tensors.extend(norm_tensors(&format!("{prefix}ln_2"), d_model));
    linear(&mut tensors, family.mlp_input, d_model, d_mlp);
    linear(&mut tensors, family.mlp_output, d_mlp, d_model);
    tensors
}

/// Tensors of the checkpoint that are known to be no weights.
pub(crate) fn ignored(index: &Index, config: &Config, spelling: &Spelling) -> Vec<String> {
    let buffer = |block: usize, name: &&str| format!("{}h.{block}.{name}", spelling.prefix);
    let blocks = 0..config.layers();
    let names = blocks.flat_map(|block| config.family.buffers.iter().map(move |name| buffer(block, name)));
    names.filter(|name| index.get(name).is_some()).collect()
}

/// A layer norm's weights, `[width]` each.
pub(crate) struct Norm {
    weight: Tensor,
    bias: Tensor,
}

impl Norm {
    /// `(x - mean) / sqrt(variance + epsilon) * weight + bias` over the last dimension.
    pub(crate) fn apply(&self, x: &Tensor, epsilon: f64) -> Result<Tensor, TchError> {
        x.f_layer_norm(self.weight.size(), Some(&self.weight), Some(&self.bias), epsilon, false)
    }

    /// The same, with input and weights in `kind`.
    pub(crate) fn apply_in(&self, x: &Tensor, epsilon: f64, kind: tch::Kind) -> Result<Tensor, TchError> {
        let norm = Self { weight: self.weight.f_to_kind(kind)?, bias: self.bias.f_to_kind(kind)? };
        norm.apply(&x.f_to_kind(kind)?, epsilon)
    }
}

/// A matrix with an optional bias.
pub(crate) struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
    matrices: Matrices,
    /// Whether a single row is computed as it is among others.
    alike: bool,
}

impl Linear {
    /// `[.., in]` to `[.., out]`.
    pub(crate) fn apply(&self, x: &Tensor) -> Result<Tensor, TchError> {
        let x = if self.alike { Factor::alike(x)? } else { Factor::new(x)? };
        match self.matrices {
            Matrices::OutIn => x.times_transposed(&self.weight, self.bias.as_ref()),
            Matrices::InOut => x.times(&self.weight, self.bias.as_ref()),
        }
    }

    /// `[batch, position, head, d_head]` to what each head contributes, `[batch, position, head, out]`, without the bias.
    pub(crate) fn each_head(&self, x: &Tensor) -> Result<Tensor, TchError> {
        let (_, _, heads, d_head) = x.size4()?;
        // [head, d_head, out]
        let weight = match self.matrices {
            Matrices::OutIn => self.weight.f_view([-1, heads, d_head])?.f_permute([1, 2, 0])?,
            Matrices::InOut => self.weight.f_view([heads, d_head, -1])?,
        };
        Tensor::f_einsum("bphd,hdo->bpho", &[x, &weight], None::<&[i64]>)
    }

    /// What [`Linear::apply`] gives, from the contributions of the heads.
    pub(crate) fn sum_heads(&self, contributions: &Tensor) -> Result<Tensor, TchError> {
        let sum = contributions.f_sum_dim_intlist([2].as_slice(), false, None)?;
        match &self.bias {
            Some(bias) => sum.f_add(bias),
            None => Ok(sum),
        }
    }
}

pub(crate) enum Projections {
    Fused(Linear),
    Separate([Linear; 3]),
}

/// The weights of one block.
pub(crate) struct Block {
    pub(crate) norm_1: Norm,
    pub(crate) query_key_value: Projections,
    pub(crate) attention_output: Linear,
    pub(crate) norm_2: Norm,
    pub(crate) mlp_input: Linear,
    pub(crate) mlp_output: Linear,
}

/// Takes tensors in the order in which they were requested.
struct Cursor {
    family: &'static Family,
    alike: bool,
    tensors: std::vec::IntoIter<Tensor>,
}

impl Cursor {
    fn tensor(&mut self) -> Result<Tensor> {
        // Out of step with the requests above: a bug, but no reason to panic.
        self.tensors.next().ok_or_else(|| Error::Config { problem: "a part has fewer tensors than requested".into() })
    }

    fn norm(&mut self) -> Result<Norm> {
        Ok(Norm { weight: self.tensor()?, bias: self.tensor()? })
    }

    fn linear(&mut self, spec: LinearSpec) -> Result<Linear> {
        let weight = self.tensor()?;
        let bias = if spec.bias { Some(self.tensor()?) } else { None };
        Ok(Linear { weight, bias, matrices: self.family.matrices, alike: self.alike })
    }
}

impl Block {
    pub(crate) fn take(family: &'static Family, alike: bool, tensors: Vec<Tensor>) -> Result<Self> {
        let mut cursor = Cursor { family, alike, tensors: tensors.into_iter() };
        Ok(Self {
            norm_1: cursor.norm()?,
            query_key_value: match family.query_key_value {
                QueryKeyValue::Fused(spec) => Projections::Fused(cursor.linear(spec)?),
                QueryKeyValue::Separate([query, key, value]) => {
                    Projections::Separate([cursor.linear(query)?, cursor.linear(key)?, cursor.linear(value)?])
                }
            },
            attention_output: cursor.linear(family.attention_output)?,
            norm_2: cursor.norm()?,
            mlp_input: cursor.linear(family.mlp_input)?,
            mlp_output: cursor.linear(family.mlp_output)?,
        })
    }
}

impl Norm {
    pub(crate) fn take(family: &'static Family, tensors: Vec<Tensor>) -> Result<Self> {
        Cursor { family, alike: false, tensors: tensors.into_iter() }.norm()
    }
}
