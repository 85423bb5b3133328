//! Attention patterns: where each head looks from each token, as plain data.

use models::{Model, Point, Site};
use partial::{Columns, Run};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::{
    csv,
    error::{Error, Result},
    grid::{Grid, Shading},
    table::Token,
    table_error::TableError,
    token_text::{display_token, token_text_from_bytes},
};

/// The number in the `schema` field of the attention JSON this version reads and writes.
pub const ATTENTION_SCHEMA: u32 = 1;

/// Where chosen heads look from each token of an input: plain data.
///
/// `picture::attention_png` draws all heads side by side, `html::attention` makes a page in which a token shows where it looks, and
/// [`grid`](Self::grid) gives one head to every renderer.
///
/// ```
/// use lens::Attention;
/// use models::{Config, Model};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let config = r#"{"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 8, "vocab_size": 20}"#;
/// # let model = Model::random(Config::from_json(config)?, 0)?;
/// let attention = Attention::of(&model, [1, 2, 3], &[(0, 1), (1, 0)])?; // layer and head
/// assert_eq!(attention.heads[1].name(), "h.1 head 0");
/// assert_eq!(attention.heads[1].pattern.len(), 3); // [query, key]
/// println!("{}", attention.grid(1).unwrap());
/// # Ok(())
/// # }
/// ```
///
/// # JSON
///
/// [`to_json`](Self::to_json) writes the attention JSON, `schema` 1, described by `schema/lens-attention-1.schema.json` in this
/// crate.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(try_from = "Document")]
pub struct Attention {
    /// The model's name, for the title.
    pub model: String,
    /// The whole input.
    pub tokens: Vec<Token>,
    /// The heads, in the order in which they were asked for.
    pub heads: Vec<HeadPattern>,
}

/// Where one head looks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeadPattern {
    /// Its layer, counted from zero.
    pub layer: usize,
    /// Its number in the layer, counted from zero.
    pub head: usize,
    /// How much it looks from each token (the query) at each token (the key): `[query, key]`, each query's sum to one, or less where the model has attention sinks.
    pub pattern: Vec<Vec<f32>>,
}

impl HeadPattern {
    /// What it is called: `h.5 head 1`.
    pub fn name(&self) -> String {
        format!("h.{} head {}", self.layer, self.head)
    }
}

impl Attention {
    /// Runs the model over one text, or one row of token ids, as far as the deepest of the `heads`, each given by its layer and its
    /// number, and keeps where they look.
    ///
    /// # Errors
    ///
    /// [`Error::Head`] for one that is not there, [`Error::SeveralRows`] for a batch; whatever the model refuses.
    pub fn of<'p>(model: &Model, prompt: impl Into<models::Prompt<'p>>, heads: &[(usize, usize)]) -> Result<Self> {
        let rows = model.token_rows(prompt)?;
        let ids = match &rows[..] {
            [] => return Err(Error::Model(models::Error::EmptyInput)),
            [ids] => ids,
            several => return Err(Error::SeveralRows { rows: several.len() }),
        };
        let layers = &model.architecture().layers;
        for &(layer, head) in heads {
            let there = layers.get(layer).map_or(0, |layer| layer.attention.heads as usize);
            if head >= there {
                return Err(Error::Head { layer, head, layers: layers.len(), heads: there });
            }
        }
        let mut sites: Vec<Site> = heads.iter().map(|&(layer, _)| Site::block(layer, Point::Pattern)).collect();
        sites.dedup();
        let output =
            tch::no_grad(|| Run::new(model, &sites)?.to_device(Device::Cpu).to_kind(Kind::Float).run(ids.as_slice()))?;
        let head = |&(layer, head): &(usize, usize)| {
            let all = output.get(Site::block(layer, Point::Pattern))?;
            let pattern =
                rows_of(all, head).map_err(|source| Error::Torch { at: "reading an attention pattern", source })?;
            Ok(HeadPattern { layer, head, pattern })
        };
        let spell = model.tokens();
        let text =
            |id: i64| spell.map_or_else(|| id.to_string(), |spell| token_text_from_bytes(&spell.token_bytes(id)));
        Ok(Self {
            model: model.name().to_owned(),
            tokens: ids.iter().map(|&id| Token { id, text: text(id) }).collect(),
            heads: heads.iter().map(head).collect::<Result<_>>()?,
        })
    }

    /// One head as a grid, a row for each query; cells after the query, where it may not look, are empty.
    pub fn grid(&self, index: usize) -> Option<Grid> {
        let head = self.heads.get(index)?;
        let query = |(position, weights): (usize, &Vec<f32>)| {
            let weight = |(key, weight): (usize, &f32)| if key > position { f64::NAN } else { f64::from(*weight) };
            weights.iter().enumerate().map(weight).collect()
        };
        let name = |(position, token): (usize, &Token)| format!("{} {position}", display_token(&token.text));
        Some(Grid {
            model: self.model.clone(),
            method: head.name(),
            metric: "attention from each row to each column".into(),
            rows: self.tokens.iter().enumerate().map(name).collect(),
            columns: Columns::Positions((0..self.tokens.len() as i64).collect()),
            tokens: self.tokens.clone(),
            corrupted_tokens: None,
            values: head.pattern.iter().enumerate().map(query).collect(),
            shading: Shading::Upwards,
            clean: None,
            corrupted: None,
        })
    }

    /// Checks that every pattern is as large as the input.
    ///
    /// # Errors
    ///
    /// The first that is not.
    pub fn check(&self) -> Result<(), TableError> {
        let expected = self.tokens.len();
        for head in &self.heads {
            let lengths = std::iter::once(head.pattern.len()).chain(head.pattern.iter().map(Vec::len));
            if let Some(found) = lengths.into_iter().find(|length| *length != expected) {
                return Err(TableError::PatternSize { head: head.name(), expected, found });
            }
        }
        Ok(())
    }

    /// Reads and checks what [`to_json`](Self::to_json) wrote.
    ///
    /// # Errors
    ///
    /// Whatever is wrong with it, by name.
    pub fn from_json(json: &str) -> Result<Self, TableError> {
        serde_json::from_str::<Document>(json).map_err(|source| TableError::AttentionJson { source })?.try_into()
    }

    /// Writes the attention JSON, `schema` 1, on one line.
    ///
    /// # Errors
    ///
    /// None in practice: everything in it has a form in JSON.
    pub fn to_json(&self) -> Result<String, TableError> {
        let document = Document {
            schema: u64::from(ATTENTION_SCHEMA),
            model: self.model.clone(),
            tokens: self.tokens.clone(),
            heads: self.heads.clone(),
        };
        Ok(serde_json::to_string(&document)?)
    }

    /// Writes tidy CSV with the columns `layer`, `head`, `query`, `query_token`, `key`, `key_token` and `weight`, one line for each
    /// head, query and key that it may look at.
    ///
    /// # Errors
    ///
    /// What [`check`](Self::check) finds.
    pub fn to_csv(&self) -> Result<String, TableError> {
        self.check()?;
        let mut writer = ::csv::Writer::from_writer(Vec::new());
        writer.write_record(["layer", "head", "query", "query_token", "key", "key_token", "weight"])?;
        for head in &self.heads {
            for (query, (asks, weights)) in self.tokens.iter().zip(&head.pattern).enumerate() {
                for (key, (asked, weight)) in self.tokens.iter().zip(weights).enumerate().take(query + 1) {
                    let numbers = [head.layer, head.head, query, key].map(|number| number.to_string());
                    let [layer, head, query, key] = numbers;
                    let weight = if weight.is_finite() { weight.to_string() } else { String::new() };
                    writer.write_record([&layer, &head, &query, &asks.text, &key, &asked.text, &weight])?;
                }
            }
        }
        csv::text(writer)
    }
}

/// The pattern of one head of `[batch, head, query, key]`, of the first of the batch.
fn rows_of(patterns: &Tensor, head: usize) -> Result<Vec<Vec<f32>>, tch::TchError> {
    let pattern = patterns.f_select(0, 0)?.f_select(0, head as i64)?;
    Vec::<Vec<f32>>::try_from(&pattern)
}

/// The JSON.
#[derive(Serialize, Deserialize)]
struct Document {
    schema: u64,
    model: String,
    tokens: Vec<Token>,
    heads: Vec<HeadPattern>,
}

impl TryFrom<Document> for Attention {
    type Error = TableError;

    fn try_from(document: Document) -> Result<Self, TableError> {
        if document.schema != u64::from(ATTENTION_SCHEMA) {
            return Err(TableError::Schema { found: document.schema });
        }
        let attention = Self { model: document.model, tokens: document.tokens, heads: document.heads };
        attention.check()?;
        Ok(attention)
    }
}

#[cfg(test)]
mod tests;
