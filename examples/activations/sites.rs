//! `--list`: the names of a model as a tree.

use serde::Serialize;
use transformer_utils::models::Stage;

use crate::common::{model::Opened, table};

/// One site for `--json`.
#[derive(Serialize)]
pub struct Listed {
    names: Vec<String>,
    shape: Vec<String>,
    dtype: String,
}

/// Every site in the order in which they run.
pub fn list(opened: &Opened) -> Vec<Listed> {
    let dtype = opened.model.parts().dtype().to_string();
    let listed = |info: transformer_utils::models::SiteInfo| Listed {
        names: info.names,
        shape: info.shape,
        dtype: dtype.clone(),
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
    /// For the further names of a site, the first one, relative to the block.
    same_as: Option<String>,
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
const ALIASES: &str = "\
Each name also works with \"transformer.\" in front; \"transformer\" itself is ln_f. TransformerLens's names work too:
hook_embed, blocks.3.hook_resid_pre, blocks.3.attn.hook_z, blocks.3.mlp.hook_post, blocks.3.hook_resid_post and others.";

/// The names as a tree, with shapes and dtypes; blocks that are alike are shown once unless `all`.
pub fn tree(opened: &Opened, all: bool) -> String {
    let mut root = Node::default();
    for info in opened.model.sites().iter() {
        let block = match info.site.stage {
            Stage::Block(block) => format!("h.{block}."),
            _ => String::new(),
        };
        let first = info.names.first().cloned().unwrap_or_default();
        for name in &info.names {
            let node = name.split('.').fold(&mut root, Node::at);
            let same_as = (*name != first).then(|| first.strip_prefix(&block).unwrap_or(&first).to_owned());
            node.value = Some(Value { shape: format!("[{}]", info.shape.join(", ")), same_as });
        }
    }
    let dtype = opened.model.parts().dtype().to_string();
    let mut rows = Vec::new();
    for (name, node) in &root.inside {
        if node.value.is_some() {
            show(node, name.clone(), "", &dtype, &mut rows);
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
            show(block, label, "", &dtype, &mut rows);
        }
    }
    let config = opened.config();
    format!(
        "{}: {} blocks, {} heads of {}, {} positions, {} tokens in the vocabulary\n\n{}\n{ALIASES}",
        opened.placement(),
        config.layers(),
        config.heads,
        config.d_head(),
        config.positions,
        config.vocabulary,
        table::columns(&rows)
    )
}

fn show(node: &Node, label: String, indent: &str, dtype: &str, rows: &mut Vec<[String; 4]>) {
    let (shape, dtype_shown, note) = match &node.value {
        Some(value) => {
            let note = value.same_as.as_ref().map(|other| format!("same as {other}"));
            (value.shape.clone(), dtype.to_owned(), note.unwrap_or_default())
        }
        None => Default::default(),
    };
    rows.push([label, shape, dtype_shown, note]);
    for (place, (name, inside)) in node.inside.iter().enumerate() {
        let last = place + 1 == node.inside.len();
        let (branch, below) = if last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
        show(inside, format!("{indent}{branch}{name}"), &format!("{indent}{below}"), dtype, rows);
    }
}
