//! The names of a model's sites: the neutral ones, the family's own, and TransformerLens's.

use std::fmt;

use crate::{
    Architecture, Config, Error, Layer, Point, Result, Rotary, Site, Stage,
    architecture::{Gate, NormKind, NormOver, Residual, Routing},
    site::Order,
};

/// TransformerLens's names inside a block. `hook_resid_pre` is the stream before it and handled apart.
const LENS_BLOCK_NAMES: [&str; 21] = [
    "ln1.hook_normalized",
    "attn.hook_q",
    "attn.hook_k",
    "attn.hook_v",
    "attn.hook_rot_q",
    "attn.hook_rot_k",
    "attn.hook_attn_scores",
    "attn.hook_pattern",
    "attn.hook_z",
    "attn.hook_result",
    "hook_attn_out",
    "hook_resid_mid",
    "ln2.hook_normalized",
    "mlp.hook_pre",
    "mlp.hook_pre_linear",
    "mlp.hook_post",
    "hook_mlp_out",
    "hook_resid_post",
    "hook_out",
    "ln1_post.hook_normalized",
    "ln2_post.hook_normalized",
];

/// TransformerLens's names outside the blocks.
const LENS_OUTER_NAMES: [&str; 3] = ["hook_embed", "hook_pos_embed", "ln_final.hook_normalized"];

/// What a TransformerLens name means in a layer; nothing where its value there is none of ours.
fn lens_point(layer: &Layer, name: &str) -> Option<Point> {
    // TransformerLens reads RMS norms before the multiplication with their weights.
    let read = |norm: Option<crate::Norm>, point| {
        norm.filter(|norm| matches!(norm.kind, NormKind::Layer { .. })).map(|_| point)
    };
    Some(match name {
        "ln1.hook_normalized" => return read(layer.attention_norms.before, Point::Norm1),
        "ln1_post.hook_normalized" => return read(layer.attention_norms.after, Point::AttentionNorm),
        "ln2.hook_normalized" => return read(layer.mlp_norms.before, Point::Norm2),
        "ln2_post.hook_normalized" => return read(layer.mlp_norms.after, Point::MlpNorm),
        "attn.hook_q" => Point::HeadQuery,
        "attn.hook_k" => Point::HeadKey,
        "attn.hook_v" => Point::HeadValue,
        "attn.hook_rot_q" => Point::RotatedQuery,
        "attn.hook_rot_k" => Point::RotatedKey,
        "attn.hook_attn_scores" => Point::Scores,
        "attn.hook_pattern" => Point::Pattern,
        "attn.hook_z" => Point::Z,
        "attn.hook_result" => Point::HeadOutput,
        "hook_attn_out" => layer.attention_added(),
        "hook_resid_mid" => Point::ResidMid,
        "mlp.hook_pre" | "mlp.hook_pre_linear" | "mlp.hook_post" if layer.mlp.experts.is_some() => return None,
        "mlp.hook_pre" if layer.mlp.gate == Gate::None => Point::MlpInput,
        "mlp.hook_pre" => Point::MlpGate,
        "mlp.hook_pre_linear" if layer.mlp.gate == Gate::Separate => Point::MlpInput,
        "mlp.hook_post" => layer.neurons(),
        "hook_mlp_out" => layer.mlp_added(),
        "hook_resid_post" | "hook_out" => Point::Output,
        _ => return None,
    })
}

fn lens_outer_site(architecture: &Architecture, name: &str) -> Option<Site> {
    match name {
        "hook_embed" => Some(Site { stage: Stage::Embedding, point: Point::TokenEmbedding }),
        "hook_pos_embed" => Some(Site { stage: Stage::Embedding, point: Point::PositionEmbedding }),
        "ln_final.hook_normalized" => {
            architecture.final_norm.filter(|norm| matches!(norm.kind, NormKind::Layer { .. })).map(|_| Site::FINAL_NORM)
        }
        _ => None,
    }
}

/// What a dimension of a value counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Axis {
    /// Rows of the batch.
    Batch,
    /// Rows of the batch, or one for all.
    OneOrBatch,
    /// Tokens that went to an expert.
    Token,
    /// Positions.
    Position,
    /// Positions that look.
    Query,
    /// Positions that are looked at.
    Key,
    /// Heads.
    Head,
    /// Anything else: a width.
    Width,
}

/// One dimension of a site's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dimension {
    /// What it counts.
    pub axis: Axis,
    /// How many; `None` where the input says.
    pub size: Option<i64>,
}

impl fmt::Display for Dimension {
    /// The size, or what it counts.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.size, self.axis) {
            (Some(size), _) => write!(formatter, "{size}"),
            (None, Axis::Batch) => formatter.write_str("batch"),
            (None, Axis::OneOrBatch) => formatter.write_str("1 or batch"),
            (None, Axis::Token) => formatter.write_str("token"),
            (None, Axis::Position) => formatter.write_str("position"),
            (None, Axis::Query) => formatter.write_str("query"),
            (None, Axis::Key) => formatter.write_str("key"),
            (None, Axis::Head) => formatter.write_str("head"),
            (None, Axis::Width) => formatter.write_str("width"),
        }
    }
}

/// One site of a model with its names and shape.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SiteInfo {
    /// The site.
    pub site: Site,
    /// All its names, the preferred one first. Each also works with the prefix of the family's base model in front.
    pub names: Vec<String>,
    /// Its names in TransformerLens. The values are those of its `from_pretrained_no_processing`; by default it changes the
    /// weights in ways that keep the logits, and with them what stands at many hooks.
    pub lens_names: Vec<String>,
    /// Its shape.
    pub shape: Vec<Dimension>,
    /// Of which dtype its value is.
    pub values: Values,
}

/// Of which dtype a site's value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Values {
    /// That of the run.
    OfTheRun,
    /// At least f32, whatever the dtype of the run.
    AtLeastF32,
    /// Int64.
    Integers,
}

/// All names of one model's sites.
#[derive(Clone, Copy, Debug)]
pub struct Sites<'a> {
    config: &'a Config,
    order: &'a Order,
}

impl<'a> Sites<'a> {
    pub(crate) fn new(config: &'a Config, order: &'a Order) -> Self {
        Self { config, order }
    }

    pub(crate) fn layers(&self) -> usize {
        self.config.architecture.layers.len()
    }

    /// A name without the prefix of the family's base model.
    pub(crate) fn without_prefix<'n>(&self, name: &'n str) -> &'n str {
        self.config.family.without_prefix(name)
    }

    pub(crate) fn has(&self, site: Site) -> bool {
        self.order.has(site)
    }

    /// Whether `site` is computed after `other`.
    pub fn is_after(&self, site: Site, other: Site) -> bool {
        self.order.rank(site) > self.order.rank(other)
    }

    /// The site that is computed last of some.
    pub fn deepest(&self, sites: impl IntoIterator<Item = Site>) -> Option<Site> {
        sites.into_iter().max_by_key(|site| self.order.rank(*site))
    }

    /// The site that `name` means, with or without the prefix of the base model, or by its TransformerLens name.
    ///
    /// Names are compared segment by segment: `h.1` is not the beginning of `h.10`.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownSite`] with the nearest names; [`Error::AbsentSite`] with the reason for a name that other models
    /// have; [`Error::Container`] for a module without an output.
    pub fn parse(&self, name: &str) -> Result<Site> {
        let family = self.config.family;
        let short = family.without_prefix(name);
        // The base model's own output is the normalised stream.
        if short.is_empty() && !name.is_empty() && !name.ends_with('.') {
            return Ok(self.last_hidden());
        }
        if short == "h" || short == family.layers || name == "blocks" {
            let inside = (0..self.layers().min(3)).map(|block| format!("h.{block}")).collect();
            return Err(Error::Container { name: name.to_owned(), inside });
        }
        let found = self.lookup(short).or_else(|| self.lookup(name)).or_else(|| self.lookup_lens(name));
        match found {
            Some(site) if self.order.has(site) => Ok(site),
            Some(site) => Err(Error::AbsentSite { name: name.to_owned(), reason: self.why_absent(site) }),
            None => {
                let known: Vec<String> =
                    self.iter().flat_map(|info| info.names.into_iter().chain(info.lens_names)).collect();
                Err(Error::UnknownSite {
                    name: name.to_owned(),
                    blocks: self.layers(),
                    nearest: lowmem::nearest(short, known.iter().map(String::as_str)),
                })
            }
        }
    }

    fn last_hidden(&self) -> Site {
        if self.order.has(Site::PROJECTED) { Site::PROJECTED } else { Site::FINAL_NORM }
    }

    fn lookup(&self, name: &str) -> Option<Site> {
        let family = self.config.family;
        let outside = |&(stage, point): &(Stage, Point)| {
            (point.name() == name || family.names_of(point).any(|known| known == name)).then_some(Site { stage, point })
        };
        if let Some(site) = Point::OUTSIDE.iter().find_map(outside) {
            return Some(self.present(site));
        }
        // transformer-utils' name.
        if name == "final_layernorm" {
            return Some(Site::FINAL_NORM);
        }
        let inside = name.strip_prefix(family.layers).and_then(|rest| rest.strip_prefix('.'));
        let (block, inner) = self.split_block(inside.or_else(|| name.strip_prefix("h."))?)?;
        let site = |point| self.present(Site::block(block, point));
        let lists = family.expert_list().into_iter().chain([Point::Expert(0).name()]);
        let expert = lists
            .filter_map(|list| inner.strip_prefix(list))
            .find_map(|number| number.parse::<usize>().ok().filter(|expert| expert.to_string() == number));
        if let Some(expert) = expert {
            return Some(site(Point::Expert(expert)));
        }
        // The family's own spelling first: a neutral name may be one that the family gives to something else.
        let own = Point::OF_BLOCKS.into_iter().find(|point| family.names_of(*point).any(|known| known == inner));
        own.or_else(|| Point::OF_BLOCKS.into_iter().find(|point| point.name() == inner)).map(site)
    }

    /// The site itself, but where its value is also that of another, which stands for both: without a gate the neurons are what
    /// the non-linearity gives, and without a softcap the logits have nothing before them.
    pub(crate) fn present(&self, site: Site) -> Site {
        match (site.stage, site.point) {
            (Stage::Block(block), Point::Neurons) => {
                let layer = self.config.architecture.layers.get(block);
                layer.map_or(site, |layer| Site::block(block, layer.neurons()))
            }
            _ if site == Site::UNCAPPED_LOGITS && self.config.architecture.head.softcap.is_none() => Site::LOGITS,
            _ => site,
        }
    }

    fn lookup_lens(&self, name: &str) -> Option<Site> {
        if let Some(site) = lens_outer_site(&self.config.architecture, name) {
            return Some(site);
        }
        let (block, inner) = self.split_block(name.strip_prefix("blocks.")?)?;
        if inner == "hook_resid_pre" {
            return Some(Site::before_block(block));
        }
        let layer = self.config.architecture.layers.get(block)?;
        lens_point(layer, inner).map(|point| Site::block(block, point))
    }

    /// `"3.attn"` to `(3, "attn")`, for blocks the model has.
    fn split_block<'n>(&self, name: &'n str) -> Option<(usize, &'n str)> {
        let (number, inner) = name.split_once('.').unwrap_or((name, ""));
        let block: usize = number.parse().ok()?;
        // "h.03" and "h.+3" are spelling mistakes, and "h.3." has an empty segment.
        let plain = block.to_string() == number && !(inner.is_empty() && name.contains('.'));
        (plain && block < self.layers()).then_some((block, inner))
    }

    /// Why a model has no such site.
    pub(crate) fn why_absent(&self, site: Site) -> String {
        let architecture = &self.config.architecture;
        let layer = match site.stage {
            Stage::Block(block) => architecture.layers.get(block),
            _ => None,
        };
        let here = |text: &str| match site.stage {
            Stage::Block(block) => text.replace("h.i", &format!("h.{block}")),
            _ => text.to_owned(),
        };
        let parallel = layer.is_some_and(|layer| layer.residual == Residual::Parallel);
        here(match site.point {
            Point::ResidMid => {
                "attention and MLP of a parallel block read the same stream, and both are added to it at once: there is no \
                 stream between them; read h.i, or what they add, h.i.attn and h.i.mlp"
            }
            Point::Norm2 if parallel => "attention and MLP read the same norm, h.i.ln_1",
            Point::Norm1 | Point::Norm2 => "this family has no norm there; h.i.ln_1_post and h.i.ln_2_post come after",
            Point::AttentionNorm | Point::MlpNorm => "what attention and MLP say is added to the stream without a norm",
            Point::QueryKeyValue => "queries, keys and values have a matrix each: h.i.attn.q_proj, k_proj and v_proj",
            Point::Query | Point::Key | Point::Value => {
                "one matrix gives queries, keys and values: h.i.attn.qkv_proj; h.i.attn.q, k and v are its parts"
            }
            Point::QueryNorm | Point::KeyNorm => "queries and keys have no norm",
            Point::RotatedQuery | Point::RotatedKey => {
                "nothing comes between h.i.attn.q, h.i.attn.k and the scores: positions are added to the stream, not rotated"
            }
            Point::MlpGate | Point::MlpInput | Point::MlpActivation | Point::Neurons | Point::MlpGateInput
                if layer.is_some_and(|layer| layer.mlp.experts.is_some()) =>
            {
                "this block has experts instead of one MLP: h.i.mlp.experts.0 is what the first says"
            }
            Point::MlpGate | Point::MlpInput
                if layer.is_some_and(|layer| matches!(layer.mlp.gate, Gate::SideBySide | Gate::Interleaved)) =>
            {
                "one matrix gives gate and neurons side by side: h.i.mlp.gate_up_proj"
            }
            Point::MlpGateInput if layer.is_some_and(|layer| layer.mlp.gate == Gate::Separate) => {
                "gate and neurons have a matrix each: h.i.mlp.gate_proj and up_proj"
            }
            Point::Expert(_) if layer.is_some_and(|layer| layer.mlp.experts.is_some()) => {
                let count = layer.and_then(|layer| layer.mlp.experts).map_or(0, |experts| experts.count);
                return here(&format!("there are {count} experts: h.i.mlp.experts.0 to {}", count - 1));
            }
            Point::Router | Point::ExpertChoice | Point::ExpertWeights | Point::Expert(_) | Point::ExpertSum => {
                "this block has one MLP, and no experts"
            }
            Point::MlpGate | Point::MlpGateInput => "the MLP has no gate",
            Point::PositionEmbedding => "positions are not embedded: they rotate queries and keys",
            Point::RotaryCosines => {
                "the model has no such module, or one that runs once for each kind of layer, in no defined order"
            }
            Point::EmbeddingProjection | Point::OutputProjection => "the embedding is as wide as the stream",
            _ => "this model does not compute it",
        })
    }

    /// Every site of the model in the order in which they run.
    pub fn iter(&self) -> impl Iterator<Item = SiteInfo> + use<'a> {
        let sites = *self;
        let stages = sites.order.stages();
        stages.flat_map(move |stage| {
            sites.order.points(stage).iter().map(move |&point| sites.info(Site { stage, point }))
        })
    }

    /// What is known of a site.
    pub fn info(&self, site: Site) -> SiteInfo {
        let layer = self.layer_of(site);
        let in_f32 = match site.point {
            Point::Scores => layer.is_some_and(|layer| layer.attention.in_f32),
            Point::RotaryCosines => self.config.architecture.only_rotary().is_some_and(|rotary| rotary.in_f32),
            Point::ExpertWeights => {
                let routing = layer.and_then(|layer| layer.mlp.experts).map(|experts| experts.routing);
                matches!(routing, Some(Routing::SoftmaxFirst { rounded: false, .. }))
            }
            _ => false,
        };
        let values = match site.point {
            Point::ExpertChoice => Values::Integers,
            _ if in_f32 => Values::AtLeastF32,
            _ => Values::OfTheRun,
        };
        SiteInfo { site, names: self.names(site), lens_names: self.lens_names(site), shape: self.shape(site), values }
    }

    fn layer_of(&self, site: Site) -> Option<&'a Layer> {
        match site.stage {
            Stage::Block(block) => self.config.architecture.layers.get(block),
            _ => None,
        }
    }

    /// The neutral name, the family's own, and what else means the site.
    fn names(&self, site: Site) -> Vec<String> {
        let family = self.config.family;
        let mut names = Vec::new();
        let mut add = |name: String| {
            if !names.contains(&name) {
                names.push(name);
            }
        };
        let Stage::Block(block) = site.stage else {
            add(site.to_string());
            family.names_of(site.point).for_each(|name| add(name.to_owned()));
            match site {
                Site::FINAL_NORM => add("final_layernorm".to_owned()),
                Site::LOGITS if self.config.architecture.head.softcap.is_none() => {
                    names.insert(0, Site::UNCAPPED_LOGITS.to_string());
                }
                _ => {}
            }
            return names;
        };
        let of = |list: &str, inner: &str| match inner {
            "" => format!("{list}.{block}"),
            inner => format!("{list}.{block}.{inner}"),
        };
        add(site.to_string());
        if self.layer_of(site).is_some_and(|layer| layer.neurons() == site.point) {
            add(of("h", Point::Neurons.name()));
        }
        family.names_of(site.point).for_each(|name| add(of(family.layers, name)));
        if let (Point::Expert(expert), Some(list)) = (site.point, family.expert_list()) {
            add(of(family.layers, &format!("{list}{expert}")));
        }
        // Families that write `h.0` have names of their own for modules that are not in all families.
        let own = family.layers == "h" && site.point.is_projection() && family.module(site.point).is_some();
        if own && family.module(site.point) != Some(site.point.name()) {
            names.rotate_left(1);
        }
        names
    }

    /// All TransformerLens names of a site.
    fn lens_names(&self, site: Site) -> Vec<String> {
        let mut names = Vec::new();
        let outer = LENS_OUTER_NAMES.iter();
        let here = |name: &&&str| lens_outer_site(&self.config.architecture, name) == Some(site);
        names.extend(outer.filter(here).map(|&name| name.to_owned()));
        if let (Stage::Block(block), Some(layer)) = (site.stage, self.layer_of(site)) {
            let inside = LENS_BLOCK_NAMES.iter().filter(|name| lens_point(layer, name) == Some(site.point));
            names.extend(inside.map(|name| format!("blocks.{block}.{name}")));
        }
        // The stream before the block that follows, where one does.
        let next = site.blocks_needed(self.layers());
        if site == Site::before_block(next) && next < self.layers() {
            names.push(format!("blocks.{next}.hook_resid_pre"));
        }
        names
    }

    /// Which dimension of a site's value counts positions (of a pattern, those that look); `None` where none does.
    pub fn position_dimension(&self, site: Site) -> Option<usize> {
        let counts = |dimension: &Dimension| matches!(dimension.axis, Axis::Position | Axis::Query);
        self.shape(site).iter().position(counts)
    }

    /// Which dimension of a site's value counts heads; `None` where none does.
    pub fn head_dimension(&self, site: Site) -> Option<usize> {
        self.shape(site).iter().position(|dimension| dimension.axis == Axis::Head)
    }

    /// The shape of a site's value.
    pub fn shape(&self, site: Site) -> Vec<Dimension> {
        let architecture = &self.config.architecture;
        let open = |axis| Dimension { axis, size: None };
        let known = |axis, size| Dimension { axis, size: Some(size) };
        let stream = |width: i64| vec![open(Axis::Batch), open(Axis::Position), known(Axis::Width, width)];
        let once = |width: i64| vec![open(Axis::OneOrBatch), open(Axis::Position), known(Axis::Width, width)];
        let Some(layer) = self.layer_of(site) else {
            return match site.point {
                Point::TokenEmbedding | Point::OutputProjection => stream(architecture.embedding.width),
                Point::PositionEmbedding => once(architecture.d_model),
                Point::RotaryCosines => once(architecture.only_rotary().map_or(0, Rotary::module_width)),
                Point::UncappedLogits | Point::Logits => stream(architecture.vocabulary),
                _ => stream(architecture.d_model),
            };
        };
        let (attention, mlp) = (&layer.attention, &layer.mlp);
        let split = |heads: i64, width: i64| {
            vec![open(Axis::Batch), open(Axis::Position), known(Axis::Head, heads), known(Axis::Width, width)]
        };
        let over = attention.query_key_norm.map(|norm| norm.over);
        let full = over == Some(NormOver::AllHeads);
        let turned = |heads: i64| {
            let width = known(Axis::Width, attention.d_head);
            vec![open(Axis::Batch), known(Axis::Head, heads), open(Axis::Position), width]
        };
        match site.point {
            Point::Scores | Point::Pattern => {
                vec![open(Axis::Batch), known(Axis::Head, attention.heads), open(Axis::Query), open(Axis::Key)]
            }
            Point::QueryNorm if full => stream(attention.query_width()),
            Point::KeyNorm if full => stream(attention.key_width()),
            Point::QueryNorm if over == Some(NormOver::TurnedHead) => turned(attention.heads),
            Point::KeyNorm if over == Some(NormOver::TurnedHead) => turned(attention.kv_heads),
            Point::HeadQuery | Point::RotatedQuery | Point::QueryNorm | Point::Z => {
                split(attention.heads, attention.d_head)
            }
            Point::HeadKey | Point::RotatedKey | Point::KeyNorm | Point::HeadValue => {
                split(attention.kv_heads, attention.d_head)
            }
            Point::HeadOutput => split(attention.heads, architecture.d_model),
            Point::QueryKeyValue => stream(attention.query_width() + 2 * attention.key_width()),
            Point::Query => stream(attention.query_width()),
            Point::Key | Point::Value => stream(attention.key_width()),
            Point::Router => stream(mlp.experts.map_or(0, |experts| experts.count)),
            Point::ExpertChoice | Point::ExpertWeights => stream(mlp.experts.map_or(0, |experts| experts.chosen)),
            Point::Expert(_) => vec![open(Axis::Token), known(Axis::Width, architecture.d_model)],
            Point::MlpGateInput => stream(2 * mlp.d_mlp),
            Point::MlpGate | Point::MlpInput | Point::MlpActivation | Point::Neurons => stream(mlp.d_mlp),
            _ => stream(architecture.d_model),
        }
    }
}
