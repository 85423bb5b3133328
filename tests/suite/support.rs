//! What the tests share: golden cases, tensors from files, comparing tensors.

use std::{collections::HashMap, fs, path::Path, path::PathBuf};

use serde_json::Value;
use transformer_utils::{
    lowmem::{Checkpoint, LoadOptions},
    models::{Input, Model},
    tch::{Kind, Tensor},
};

/// One folder of `tests/golden`.
pub struct Case {
    pub name: String,
    pub folder: PathBuf,
    pub json: Value,
    pub expected: HashMap<String, Tensor>,
    source: PathBuf,
}

/// All cases; a case whose `case.json` says `same_as` has the expectations of the other. Another folder of cases takes their
/// place where `TRANSFORMER_UTILS_CASES` says so: `tests/golden/README.md`.
pub fn cases() -> Vec<Case> {
    let own = || Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let root = std::env::var_os("TRANSFORMER_UTILS_CASES").map_or_else(own, PathBuf::from);
    let mut folders: Vec<PathBuf> = fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.retain(|folder| folder.join("case.json").is_file());
    folders.sort();
    assert!(!folders.is_empty(), "no golden cases in {}", root.display());
    folders.into_iter().map(|folder| case(&root, folder)).collect()
}

fn case(root: &Path, folder: PathBuf) -> Case {
    let own = read(&folder, "case.json");
    let source = own.get("same_as").map_or_else(|| folder.clone(), |other| root.join(other.as_str().unwrap()));
    let name = folder.file_name().unwrap().to_string_lossy().into_owned();
    let expected = tensors(&source.join("expected.safetensors"));
    Case { name, json: read(&source, "case.json"), expected, source, folder }
}

fn read(folder: &Path, file: &str) -> Value {
    serde_json::from_str(&fs::read_to_string(folder.join(file)).unwrap()).unwrap()
}

impl Case {
    /// Whether the case has expectations of its own, rather than those of the case whose weights it holds.
    pub fn is_original(&self) -> bool {
        self.folder.join("expected.safetensors").is_file()
    }

    /// How exact Hugging Face's bf16 run is: `contexts`, and the error of each site.
    pub fn bf16(&self) -> Value {
        read(&self.source, "bf16.json")
    }

    pub fn model(&self, options: &LoadOptions) -> Model {
        let checkpoint = Checkpoint::open(&self.folder).unwrap_or_else(|error| panic!("{}: {error}", self.name));
        Model::open(&checkpoint, options).unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }

    /// The rows of ids of `single`, `left` or `right`.
    pub fn ids(&self, batch: &str) -> Vec<Vec<i64>> {
        matrix(&self.json[batch]["ids"])
    }

    /// The input of `single`, `left` or `right` as Hugging Face was given it.
    pub fn input(&self, batch: &str) -> Input {
        let mut input = Input::from_rows(&self.ids(batch)).unwrap();
        if let Some(mask) = self.json[batch].get("attention_mask") {
            input = input.attention_mask(tensor(&matrix(mask)));
        }
        // Right padding leaves Hugging Face's own positions in place.
        if let Some(positions) = self.json[batch].get("position_ids").filter(|_| batch == "left") {
            input = input.position_ids(tensor(&matrix(positions)));
        }
        input
    }

    /// What Hugging Face gives at a site, under whatever name.
    pub fn at(&self, model: &Model, batch: &str, site: &str) -> Option<&Tensor> {
        let site = model.sites().parse(site).ok()?;
        self.expected(batch).find(|(name, _)| model.sites().parse(name).ok() == Some(site)).map(|(_, value)| value)
    }

    /// What Hugging Face gives at every name of `batch`.
    pub fn expected<'a>(&'a self, batch: &str) -> impl Iterator<Item = (&'a str, &'a Tensor)> {
        let prefix = format!("{batch}/");
        // What experts say of a padded batch is stored without its padding, which is routed, too.
        let of_expert = |name: &str| name.rsplit_once(".experts.").is_some_and(|(_, end)| end.parse::<usize>().is_ok());
        let here = |name: &&String| name.starts_with(&prefix) && (batch == "single" || !of_expert(name));
        let mut names: Vec<&String> = self.expected.keys().filter(here).collect();
        names.sort();
        let start = prefix.len();
        names.into_iter().map(move |name| (&name[start..], &self.expected[name]))
    }
}

pub fn matrix(value: &Value) -> Vec<Vec<i64>> {
    let row = |row: &Value| row.as_array().unwrap().iter().map(|id| id.as_i64().unwrap()).collect();
    value.as_array().unwrap().iter().map(row).collect()
}

pub fn tensor(rows: &[Vec<i64>]) -> Tensor {
    Tensor::from_slice(&rows.concat()).view([rows.len() as i64, -1])
}

/// All tensors of a safetensors file, each in its own dtype.
pub fn tensors(path: &Path) -> HashMap<String, Tensor> {
    let checkpoint = Checkpoint::open(path).unwrap();
    let bytes = fs::read(path).unwrap();
    let view = |info: &transformer_utils::lowmem::TensorInfo| {
        let bytes = &bytes[info.offset as usize..][..info.bytes() as usize];
        Tensor::f_from_data_size(bytes, &info.shape, info.dtype.kind()).unwrap()
    };
    checkpoint.index().tensors.values().map(|info| (info.name.clone(), view(info))).collect()
}

/// The largest difference relative to the largest expected value.
pub fn relative_error(found: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(found.size(), expected.size());
    let (found, expected) = (found.to_kind(Kind::Double), expected.to_kind(Kind::Double));
    let largest = expected.abs().max().double_value(&[]);
    let difference = (found - &expected).abs().max().double_value(&[]);
    if difference.is_nan() { f64::INFINITY } else { difference / largest.max(f64::MIN_POSITIVE) }
}
