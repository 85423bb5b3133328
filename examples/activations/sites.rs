//! `--list`: the names of a model as a tree.

use serde::Serialize;
use transformer_utils::{
    lowmem::Dtype,
    models::{Attention, SiteInfo, Stage, Values},
};

use crate::common::{model::Opened, table};

/// One site for `--json`.
#[derive(Serialize)]
pub struct Listed {
    names: Vec<String>,
    transformer_lens: Vec<String>,
    shape: Vec<String>,
    dtype: String,
}

/// The dtype of a site's value in this run.
fn dtype(opened: &Opened, info: &SiteInfo) -> String {
    match (opened.model.parts().dtype(), info.values) {
        (_, Values::Integers) => Dtype::I64.to_string(),
        (Dtype::Bf16 | Dtype::F16, Values::AtLeastF32) => Dtype::F32.to_string(),
        (dtype, _) => dtype.to_string(),
    }
}

/// Every site in the order in which they run.
pub fn list(opened: &Opened) -> Vec<Listed> {
    let listed = |info: SiteInfo| Listed {
        dtype: dtype(opened, &info),
        names: info.names,
        transformer_lens: info.lens_names,
        shape: info.shape.iter().map(ToString::to_string).collect(),
    };
    opened.model.sites().iter().map(listed).collect()
}

/// One segment of the names: what it holds, and its value if it has one.
#[derive(Default, PartialEq)]
struct Node {
    inside: Vec<(String, Node)>,
    value: Option<Value>,
}

#[derive(PartialEq)]
struct Value {
    shape: String,
    dtype: String,
    /// What else the site is called, told alike in blocks that are alike.
    note: String,
}

impl Node {
    fn at(&mut self, segment: &str) -> &mut Self {
        let place = self.inside.iter().position(|(name, _)| name == segment).unwrap_or_else(|| {
            self.inside.push((segment.to_owned(), Self::default()));
            self.inside.len() - 1
        });
        &mut self.inside[place].1
    }
}

/// What the tree leaves out.
fn aliases(opened: &Opened) -> String {
    let prefix = opened.config().family.prefix();
    let base = prefix.trim_end_matches('.');
    format!(
        "\
Each name also works with {prefix:?} in front; {base:?} itself is its last stream. Names on the right are TransformerLens's
and work too (i is the block), as does blocks.i.hook_resid_pre, the stream before a block; their values are those of its
from_pretrained_no_processing."
    )
}

/// The names as a tree, with shapes and dtypes; blocks that are alike are shown once unless `all`.
pub fn tree(opened: &Opened, all: bool) -> String {
    let mut root = Node::default();
    for info in opened.model.sites().iter() {
        let block = match info.site.stage {
            Stage::Block(block) => format!("h.{block}."),
            _ => String::new(),
        };
        let first = info.names.first().cloned().unwrap_or_default();
        let dtype = dtype(opened, &info);
        // The names that say which block only as this block's do.
        let own = block.replacen('h', "blocks", 1);
        let lens = info.lens_names.iter().filter_map(|name| {
            let inside = name.strip_prefix(&own)?;
            Some(if own.is_empty() { inside.to_owned() } else { format!("blocks.i.{inside}") })
        });
        let lens = lens.filter(|name| !name.ends_with("hook_resid_pre")).collect::<Vec<_>>().join(", ");
        for name in &info.names {
            let node = name.split('.').fold(&mut root, Node::at);
            let note = if *name == first {
                lens.clone()
            } else {
                format!("same as {}", first.strip_prefix(&block).unwrap_or(&first))
            };
            let shape: Vec<String> = info.shape.iter().map(ToString::to_string).collect();
            node.value = Some(Value { shape: format!("[{}]", shape.join(", ")), dtype: dtype.clone(), note });
        }
    }
    let mut rows = Vec::new();
    for (name, node) in &root.inside {
        if node.value.is_some() {
            show(node, name.clone(), "", &mut rows);
            continue;
        }
        // A list of blocks: runs of equal ones.
        let mut blocks = node.inside.iter().peekable();
        while let Some((first, block)) = blocks.next() {
            let mut last = first;
            while let Some((next, _)) = blocks.next_if(|(_, next)| !all && next == block) {
                last = next;
            }
            let label =
                if first == last { format!("{name}.{first}") } else { format!("{name}.{first} … {name}.{last}") };
            show(block, label, "", &mut rows);
        }
    }
    let architecture = opened.model.architecture();
    let heads = architecture.layers.first().map_or_else(String::new, |layer| heads(&layer.attention));
    format!(
        "{}: {} blocks, {heads}, {} positions, {} tokens in the vocabulary\n\n{}\n{}",
        opened.placement(),
        architecture.layers.len(),
        architecture.context,
        architecture.vocabulary,
        table::columns(&rows),
        aliases(opened)
    )
}

fn heads(attention: &Attention) -> String {
    let Attention { heads, kv_heads, d_head, .. } = attention;
    if heads == kv_heads {
        format!("{heads} heads of {d_head}")
    } else {
        format!("{heads} heads of {d_head} on {kv_heads} of keys")
    }
}

fn show(node: &Node, label: String, indent: &str, rows: &mut Vec<[String; 4]>) {
    let value = node.value.as_ref();
    let cell = |part: fn(&Value) -> &String| value.map_or_else(String::new, |value| part(value).clone());
    rows.push([label, cell(|value| &value.shape), cell(|value| &value.dtype), cell(|value| &value.note)]);
    for (place, (name, inside)) in node.inside.iter().enumerate() {
        let last = place + 1 == node.inside.len();
        let (branch, below) = if last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
        show(inside, format!("{indent}{branch}{name}"), &format!("{indent}{below}"), rows);
    }
}
