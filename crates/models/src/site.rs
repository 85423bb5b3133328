//! The places in a model that have a name and a value.

use std::fmt;

use crate::{Config, Error, Result};

/// A stage of a run, in the order in which they run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// Before the first block.
    Embedding,
    /// Block number `i`.
    Block(usize),
    /// After the last block.
    Head,
}

/// A place within a stage, in the order in which they are computed.
///
/// Shapes use `batch`, `position`, `d_model`, `head`, `d_head`, `d_mlp` and `vocabulary`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Point {
    /// `wte`: token embeddings, `[batch, position, d_model]`.
    TokenEmbedding,
    /// `wpe`: position embeddings, `[1 or batch, position, d_model]`.
    PositionEmbedding,
    /// `input`, `drop`: what enters the first block, `[batch, position, d_model]`.
    Input,
    /// `ln_1`: what attention reads, `[batch, position, d_model]`.
    Norm1,
    /// `attn.c_attn`: queries, keys and values side by side, `[batch, position, 3 d_model]`.
    QueryKeyValue,
    /// `q_proj`, `[batch, position, d_model]`.
    Query,
    /// `k_proj`, `[batch, position, d_model]`.
    Key,
    /// `v_proj`, `[batch, position, d_model]`.
    Value,
    /// `attn.q`: each head's queries, `[batch, position, head, d_head]`.
    HeadQuery,
    /// `attn.k`: each head's keys, `[batch, position, head, d_head]`; with a cache, those of the new positions.
    HeadKey,
    /// `attn.v`: each head's values, `[batch, position, head, d_head]`; with a cache, those of the new positions.
    HeadValue,
    /// `attn.scores`: what the softmax reads, scaled and masked, `[batch, head, query position, key position]`. Where a
    /// query may not look it is the dtype's least value (TransformerLens has minus infinity; both become 0). An edit that
    /// changes those entries lets the query look there.
    Scores,
    /// `attn.pattern`: softmaxed attention, `[batch, head, query position, key position]`.
    Pattern,
    /// `attn.z`: per-head values before the output projection, `[batch, position, head, d_head]`.
    Z,
    /// `attn.result`: what each head adds to the residual stream, `[batch, position, head, d_model]`; their sum and the
    /// bias of the output projection are `attn`.
    HeadOutput,
    /// `attn`: what attention adds to the residual stream, `[batch, position, d_model]`.
    AttentionOutput,
    /// `resid_mid`: the residual stream between attention and MLP, `[batch, position, d_model]`.
    ResidMid,
    /// `ln_2`: what the MLP reads, `[batch, position, d_model]`.
    Norm2,
    /// `mlp.c_fc`: the hidden layer before its non-linearity, `[batch, position, d_mlp]`.
    MlpInput,
    /// `mlp.act`: the hidden layer after it, `[batch, position, d_mlp]`.
    MlpActivation,
    /// `mlp`: what the MLP adds to the residual stream, `[batch, position, d_model]`.
    MlpOutput,
    /// `h.i`: the residual stream after the block, `[batch, position, d_model]`.
    Output,
    /// `ln_f`: what the unembedding reads, `[batch, position, d_model]`.
    FinalNorm,
    /// `lm_head`: the logits, `[batch, position, vocabulary]`.
    Logits,
}

/// One place in a model. Sites are ordered as they are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Site {
    /// The stage of the run.
    pub stage: Stage,
    /// The place within it.
    pub point: Point,
}

impl Site {
    /// What enters the first block.
    pub const INPUT: Self = Self { stage: Stage::Embedding, point: Point::Input };
    /// The output of the final layer norm.
    pub const FINAL_NORM: Self = Self { stage: Stage::Head, point: Point::FinalNorm };
    /// The logits.
    pub const LOGITS: Self = Self { stage: Stage::Head, point: Point::Logits };

    /// A place in block `block`.
    pub const fn block(block: usize, point: Point) -> Self {
        Self { stage: Stage::Block(block), point }
    }

    /// The residual stream before block `block`: `input`, or the output of the block before.
    pub const fn before_block(block: usize) -> Self {
        match block {
            0 => Self::INPUT,
            _ => Self::block(block - 1, Point::Output),
        }
    }

    /// Whether the value is the residual stream itself.
    pub fn is_residual_stream(self) -> bool {
        matches!(self.point, Point::Input | Point::ResidMid | Point::Output)
    }

    /// Blocks that must run, at least in part, to reach the site.
    pub fn blocks_needed(self, layers: usize) -> usize {
        match self.stage {
            Stage::Embedding => 0,
            Stage::Block(block) => block + 1,
            Stage::Head => layers,
        }
    }
}

impl fmt::Display for Site {
    /// The name that every family shares, such as `h.3.mlp`.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.point {
            Point::TokenEmbedding => "wte",
            Point::PositionEmbedding => "wpe",
            Point::Input => "input",
            Point::Norm1 => "ln_1",
            Point::QueryKeyValue => "attn.c_attn",
            Point::Query => "attn.attention.q_proj",
            Point::Key => "attn.attention.k_proj",
            Point::Value => "attn.attention.v_proj",
            Point::HeadQuery => "attn.q",
            Point::HeadKey => "attn.k",
            Point::HeadValue => "attn.v",
            Point::Scores => "attn.scores",
            Point::Pattern => "attn.pattern",
            Point::Z => "attn.z",
            Point::HeadOutput => "attn.result",
            Point::AttentionOutput => "attn",
            Point::ResidMid => "resid_mid",
            Point::Norm2 => "ln_2",
            Point::MlpInput => "mlp.c_fc",
            Point::MlpActivation => "mlp.act",
            Point::MlpOutput => "mlp",
            Point::Output => "",
            Point::FinalNorm => "ln_f",
            Point::Logits => "lm_head",
        };
        match (self.stage, name) {
            (Stage::Block(block), "") => write!(formatter, "h.{block}"),
            (Stage::Block(block), name) => write!(formatter, "h.{block}.{name}"),
            (_, name) => formatter.write_str(name),
        }
    }
}

/// Names outside the blocks, the preferred one first.
const OUTER_POINTS: [(Stage, Point, &[&str]); 5] = [
    (Stage::Embedding, Point::TokenEmbedding, &["wte"]),
    (Stage::Embedding, Point::PositionEmbedding, &["wpe"]),
    (Stage::Embedding, Point::Input, &["input", "drop"]),
    (Stage::Head, Point::FinalNorm, &["ln_f", "final_layernorm"]),
    (Stage::Head, Point::Logits, &["lm_head"]),
];

/// TransformerLens's names inside a block. `hook_resid_pre` is the stream before it and handled apart.
const LENS_BLOCK_POINTS: [(Point, &str); 16] = [
    (Point::Norm1, "ln1.hook_normalized"),
    (Point::HeadQuery, "attn.hook_q"),
    (Point::HeadKey, "attn.hook_k"),
    (Point::HeadValue, "attn.hook_v"),
    (Point::Scores, "attn.hook_attn_scores"),
    (Point::Pattern, "attn.hook_pattern"),
    (Point::Z, "attn.hook_z"),
    (Point::HeadOutput, "attn.hook_result"),
    (Point::AttentionOutput, "hook_attn_out"),
    (Point::ResidMid, "hook_resid_mid"),
    (Point::Norm2, "ln2.hook_normalized"),
    (Point::MlpInput, "mlp.hook_pre"),
    (Point::MlpActivation, "mlp.hook_post"),
    (Point::MlpOutput, "hook_mlp_out"),
    (Point::Output, "hook_resid_post"),
    (Point::Output, "hook_out"),
];

/// TransformerLens's names outside the blocks.
const LENS_OUTER_POINTS: [(Stage, Point, &str); 3] = [
    (Stage::Embedding, Point::TokenEmbedding, "hook_embed"),
    (Stage::Embedding, Point::PositionEmbedding, "hook_pos_embed"),
    (Stage::Head, Point::FinalNorm, "ln_final.hook_normalized"),
];

/// All TransformerLens names of a site.
fn lens_names(config: &Config, site: Site) -> Vec<String> {
    let mut names = Vec::new();
    for (stage, point, name) in LENS_OUTER_POINTS {
        if (Site { stage, point }) == site {
            names.push(name.to_owned());
        }
    }
    if let Stage::Block(block) = site.stage {
        let inside = LENS_BLOCK_POINTS.iter().filter(|(point, _)| *point == site.point);
        names.extend(inside.map(|(_, name)| format!("blocks.{block}.{name}")));
    }
    // The stream before the block that follows, where one does.
    let next = site.blocks_needed(config.layers());
    if site == Site::before_block(next) && next < config.layers() {
        names.push(format!("blocks.{next}.hook_resid_pre"));
    }
    names
}

/// One site of a model with its names and shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SiteInfo {
    /// The site.
    pub site: Site,
    /// All its names, the preferred one first.
    pub names: Vec<String>,
    /// Its names in TransformerLens. The values are those of its `from_pretrained_no_processing`; by default it changes the
    /// weights in ways that keep the logits, and with them what stands at many hooks.
    pub lens_names: Vec<String>,
    /// Its shape, unknown sizes by name: `["batch", "position", "768"]`.
    pub shape: Vec<String>,
    /// Whether the value is at least f32, whatever the dtype of the run.
    pub at_least_f32: bool,
}

impl SiteInfo {
    fn new(config: &Config, site: Site, names: Vec<String>) -> Self {
        let at_least_f32 = site.point == Point::Scores && config.attention_in_f32;
        Self { site, names, lens_names: lens_names(config, site), shape: shape(config, site.point), at_least_f32 }
    }
}

/// All names of one model's sites.
#[derive(Clone, Copy, Debug)]
pub struct Sites<'a> {
    config: &'a Config,
}

impl<'a> Sites<'a> {
    pub(crate) fn new(config: &'a Config) -> Self {
        Self { config }
    }

    /// The site that `name` means, with or without `transformer.`, or by its TransformerLens name.
    ///
    /// Names are compared segment by segment: `h.1` is not the beginning of `h.10`.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownSite`] with the nearest names; [`Error::Container`] for a module without an output.
    pub fn parse(&self, name: &str) -> Result<Site> {
        // The base model's own output is the normalised stream.
        if name == "transformer" {
            return Ok(Site::FINAL_NORM);
        }
        let short = name.strip_prefix("transformer.").unwrap_or(name);
        if short == "h" || name == "blocks" {
            let inside = (0..self.config.layers().min(3)).map(|block| format!("h.{block}")).collect();
            return Err(Error::Container { name: name.to_owned(), inside });
        }
        self.lookup(short).or_else(|| self.lookup_lens(name)).ok_or_else(|| {
            let known: Vec<String> =
                self.iter().flat_map(|info| info.names.into_iter().chain(info.lens_names)).collect();
            Error::UnknownSite {
                name: name.to_owned(),
                blocks: self.config.layers(),
                nearest: lowmem::nearest(short, known.iter().map(String::as_str)),
            }
        })
    }

    fn lookup(&self, name: &str) -> Option<Site> {
        if let Some((stage, point, _)) = OUTER_POINTS.iter().find(|(_, _, names)| names.contains(&name)) {
            return Some(Site { stage: *stage, point: *point });
        }
        let (block, inner) = self.split_block(name.strip_prefix("h.")?)?;
        let (point, _) = self.config.family.block_points.iter().find(|(_, names)| names.contains(&inner))?;
        Some(Site::block(block, *point))
    }

    fn lookup_lens(&self, name: &str) -> Option<Site> {
        if let Some((stage, point, _)) = LENS_OUTER_POINTS.iter().find(|(_, _, known)| *known == name) {
            return Some(Site { stage: *stage, point: *point });
        }
        let (block, inner) = self.split_block(name.strip_prefix("blocks.")?)?;
        if inner == "hook_resid_pre" {
            return Some(Site::before_block(block));
        }
        let (point, _) = LENS_BLOCK_POINTS.iter().find(|(_, known)| *known == inner)?;
        Some(Site::block(block, *point))
    }

    /// `"3.attn"` to `(3, "attn")`, for blocks the model has.
    fn split_block<'n>(&self, name: &'n str) -> Option<(usize, &'n str)> {
        let (number, inner) = name.split_once('.').unwrap_or((name, ""));
        let block: usize = number.parse().ok()?;
        // "h.03" and "h.+3" are spelling mistakes, and "h.3." has an empty segment.
        let plain = block.to_string() == number && !(inner.is_empty() && name.contains('.'));
        (plain && block < self.config.layers()).then_some((block, inner))
    }

    /// Every site of the model in the order in which they run.
    pub fn iter(&self) -> impl Iterator<Item = SiteInfo> + use<'a> {
        let config = self.config;
        let outer = |stage: Stage| {
            OUTER_POINTS.iter().filter(move |(of, _, _)| *of == stage).map(move |(stage, point, names)| {
                let names = names.iter().map(|&name| name.to_owned()).collect();
                SiteInfo::new(config, Site { stage: *stage, point: *point }, names)
            })
        };
        let blocks = (0..config.layers()).flat_map(move |block| {
            config.family.block_points.iter().map(move |(point, names)| {
                let name = |inner: &&str| match *inner {
                    "" => format!("h.{block}"),
                    inner => format!("h.{block}.{inner}"),
                };
                SiteInfo::new(config, Site::block(block, *point), names.iter().map(name).collect())
            })
        });
        outer(Stage::Embedding).chain(blocks).chain(outer(Stage::Head))
    }
}

fn shape(config: &Config, point: Point) -> Vec<String> {
    let known = |size: i64| size.to_string();
    let named = |name: &str| name.to_owned();
    let last = match point {
        Point::Scores | Point::Pattern => {
            return vec![named("batch"), known(config.heads), named("query"), named("key")];
        }
        Point::HeadQuery | Point::HeadKey | Point::HeadValue | Point::Z => {
            return vec![named("batch"), named("position"), known(config.heads), known(config.d_head())];
        }
        Point::HeadOutput => {
            return vec![named("batch"), named("position"), known(config.heads), known(config.d_model)];
        }
        Point::QueryKeyValue => 3 * config.d_model,
        Point::MlpInput | Point::MlpActivation => config.d_mlp,
        Point::Logits => config.vocabulary,
        _ => config.d_model,
    };
    let batch = if point == Point::PositionEmbedding { "1 or batch" } else { "batch" };
    vec![named(batch), named("position"), known(last)]
}
