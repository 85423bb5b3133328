//! What a `.bin` file holds beside its tensors.

use std::path::Path;

use serde_json::{Map, Number, Value};

use crate::{
    Error, Result, bin_file,
    pickle::{Id, Node, Pickle},
};

/// How deep settings may nest.
const DEPTH_LIMIT: usize = 32;
/// Values that all settings of a file may have together: a pickle can name one value in many places.
const VALUE_LIMIT: usize = 100_000;

/// The texts, numbers, lists and dictionaries that stand in PyTorch's `.bin` (also `.pt`) beside the tensors, such as what a training
/// script notes down. Tensors, and what JSON has no word for, are null. Nothing in the file is run, and no tensor is read.
///
/// # Errors
///
/// As opening the file as a [`Checkpoint`](crate::Checkpoint); [`Error::Archive`] where there is no dictionary, and for one that nests
/// deeper, or has more values, than settings do.
pub fn bin_settings(path: &Path) -> Result<Map<String, Value>> {
    let pickle = bin_file::read_pickle(path)?;
    let Node::Dict(items) = pickle.node(pickle.root) else {
        return Err(Error::Archive { file: path.to_owned(), problem: "it holds no dictionary".into() });
    };
    let mut reader = Reader { path, pickle: &pickle, values: 0 };
    reader.object(items, 0)
}

struct Reader<'a> {
    path: &'a Path,
    pickle: &'a Pickle,
    values: usize,
}

impl Reader<'_> {
    fn object(&mut self, items: &[(Id, Id)], depth: usize) -> Result<Map<String, Value>> {
        let mut object = Map::new();
        for &(key, value) in items {
            let key = match self.pickle.node(key) {
                Node::Text(text) => text.clone(),
                Node::Int(number) => number.to_string(),
                _ => continue,
            };
            let value = self.value(value, depth + 1)?;
            object.insert(key, value);
        }
        Ok(object)
    }

    fn value(&mut self, id: Id, depth: usize) -> Result<Value> {
        self.values += 1;
        if depth > DEPTH_LIMIT || self.values > VALUE_LIMIT {
            let problem = format!(
                "its settings nest deeper than {DEPTH_LIMIT}, or are more than {VALUE_LIMIT}, which settings never are"
            );
            return Err(Error::Archive { file: self.path.to_owned(), problem });
        }
        Ok(match self.pickle.node(id) {
            Node::Bool(value) => Value::Bool(*value),
            Node::Int(number) => i64::try_from(*number).map_or(Value::Null, Value::from),
            Node::Float(number) => Number::from_f64(*number).map_or(Value::Null, Value::Number),
            Node::Text(text) => Value::String(text.clone()),
            Node::Tuple(items) | Node::List(items) => {
                let items = items.iter().map(|&item| self.value(item, depth + 1));
                Value::Array(items.collect::<Result<_>>()?)
            }
            Node::Dict(items) => Value::Object(self.object(items, depth)?),
            Node::None | Node::Global(_) | Node::Tensor(_) | Node::Persistent(_) => Value::Null,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tch::{Device, Kind, Tensor};

    use super::*;
    use crate::{Checkpoint, LoadOptions, save_bin, save_numbered_bin};

    #[test]
    fn numbered_tensors_and_settings_are_read_as_they_were_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lens.pt");
        let tensor = |seed: f64| Tensor::arange(6, (Kind::Float, Device::Cpu)).view([2, 3]) + seed;
        let settings = json!({
            "n": 3, "large": 5_000_000_000_i64, "negative": -7, "rate": 0.25, "name": "gpt2 – ü", "none": null, "yes": true,
            "no": false, "list": [0, 1, [2.5]], "metadata": {"deep": {"er": "x"}, "empty": {}, "nothing": []},
        });
        let Value::Object(settings) = settings else { panic!() };
        let tensors = [(0, tensor(0.0)), (11, tensor(0.5))];
        save_numbered_bin(&path, "J", &tensors, &settings).unwrap();
        let read = Checkpoint::open(&path).unwrap().tensors(&LoadOptions::default()).unwrap();
        assert_eq!(read.len(), 2);
        assert_eq!((&read["J.0"], &read["J.11"]), (&tensors[0].1, &tensors[1].1));
        let mut found = bin_settings(&path).unwrap();
        assert_eq!(found.remove("J"), Some(json!({"0": null, "11": null})));
        assert_eq!(Value::Object(found), Value::Object(settings));
    }

    #[test]
    fn what_is_no_settings_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.pt");
        save_bin(&path, &[("w".into(), Tensor::zeros([1], (Kind::Float, Device::Cpu)))]).unwrap();
        assert_eq!(Value::Object(bin_settings(&path).unwrap()), json!({"w": null}));
        let mut deep = json!(1);
        for _ in 0..40 {
            deep = json!([deep]);
        }
        let settings = Map::from_iter([("deep".to_owned(), deep)]);
        save_numbered_bin(&path, "J", &[(0, Tensor::zeros([1], (Kind::Float, Device::Cpu)))], &settings).unwrap();
        assert!(matches!(bin_settings(&path), Err(Error::Archive { .. })));
        std::fs::write(&path, b"nothing of the kind").unwrap();
        assert!(bin_settings(&path).is_err());
    }
}
