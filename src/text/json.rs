//! JSON as Python's `json.dumps` writes it, which is what chat templates were written for.

use minijinja::{
    Error, ErrorKind, Value,
    value::{Kwargs, ValueKind},
};

/// How to write.
pub(super) struct Style {
    indent: Option<String>,
    item: String,
    key: String,
    ascii: bool,
    sorted: bool,
}

impl Style {
    /// Python's defaults, changed by the arguments of the filter.
    pub(super) fn from_arguments(arguments: &Kwargs) -> Result<Self, Error> {
        let indent: Option<Value> = arguments.get("indent")?;
        let indent = match indent {
            None => None,
            Some(value) if value.is_none() => None,
            Some(value) => Some(match value.as_str() {
                Some(text) => text.to_owned(),
                None => " ".repeat(usize::try_from(value)?.min(64)),
            }),
        };
        let separators: Option<Vec<String>> = arguments.get("separators")?;
        let (item, key) = match separators.as_deref() {
            Some([item, key]) => (item.clone(), key.clone()),
            Some(_) => return Err(Error::new(ErrorKind::InvalidOperation, "tojson: separators are two texts")),
            None => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
        };
        let flag = |name: &str| Ok::<_, Error>(arguments.get::<Option<bool>>(name)?.unwrap_or(false));
        Ok(Self { indent, item, key, ascii: flag("ensure_ascii")?, sorted: flag("sort_keys")? })
    }

    /// The JSON of a value.
    pub(super) fn write(&self, value: &Value) -> Result<String, Error> {
        let mut out = String::new();
        self.value(value, 0, &mut out)?;
        Ok(out)
    }

    fn value(&self, value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.push_str(&number(value)),
            ValueKind::String => self.text(value.as_str().unwrap_or_default(), out),
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sorted {
                    keys.sort();
                }
                self.enclosed('{', '}', keys, depth, out, |style, key, out| {
                    style.text(&key.to_string(), out);
                    out.push_str(&style.key);
                    style.value(&value.get_item(key)?, depth + 1, out)
                })?;
            }
            ValueKind::Seq | ValueKind::Iterable => {
                let items = value.try_iter()?.collect();
                self.enclosed('[', ']', items, depth, out, |style, item, out| style.value(item, depth + 1, out))?;
            }
            kind => {
                return Err(Error::new(ErrorKind::InvalidOperation, format!("{kind} cannot be written as JSON")));
            }
        }
        Ok(())
    }

    fn enclosed(
        &self,
        open: char,
        close: char,
        items: Vec<Value>,
        depth: usize,
        out: &mut String,
        each: impl Fn(&Self, &Value, &mut String) -> Result<(), Error>,
    ) -> Result<(), Error> {
        out.push(open);
        for (index, item) in items.iter().enumerate() {
            if index > 0 {
                out.push_str(&self.item);
            }
            self.line(depth + 1, out);
            each(self, item, out)?;
        }
        if !items.is_empty() {
            self.line(depth, out);
        }
        out.push(close);
        Ok(())
    }

    fn line(&self, depth: usize, out: &mut String) {
        if let Some(indent) = &self.indent {
            out.push('\n');
            out.push_str(&indent.repeat(depth));
        }
    }

    fn text(&self, text: &str, out: &mut String) {
        out.push('"');
        for character in text.chars() {
            match character {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                _ if character < ' ' || (self.ascii && !character.is_ascii()) => {
                    let mut units = [0; 2];
                    for unit in character.encode_utf16(&mut units) {
                        out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                _ => out.push(character),
            }
        }
        out.push('"');
    }
}

/// A number as Python writes it: floats keep a decimal point or an exponent.
fn number(value: &Value) -> String {
    if value.is_integer() {
        return value.to_string();
    }
    let Ok(float) = f64::try_from(value.clone()) else { return value.to_string() };
    if float.is_nan() {
        return "NaN".into();
    }
    if float.is_infinite() {
        return if float > 0.0 { "Infinity" } else { "-Infinity" }.into();
    }
    let size = float.abs();
    if size != 0.0 && !(1e-4..1e16).contains(&size) {
        let text = format!("{float:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, exponent) = exponent.strip_prefix('-').map_or(("+", exponent), |rest| ("-", rest));
        return format!("{digits}e{sign}{exponent:0>2}");
    }
    format!("{float:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dumps(value: serde_json::Value, arguments: &[(&str, Value)]) -> String {
        let arguments: Kwargs = arguments.iter().cloned().collect();
        Style::from_arguments(&arguments).unwrap().write(&Value::from(minijinja::value::Serde(value))).unwrap()
    }

    #[test]
    fn values_are_written_as_python_writes_them() {
        let value =
            serde_json::json!({"b": [1, 2.0, 1e20, 1e-7, true, null], "a": "<é\"\\\n\u{1}🚀>", "c": {}, "d": []});
        assert_eq!(
            dumps(value.clone(), &[]),
            r#"{"b": [1, 2.0, 1e+20, 1e-07, true, null], "a": "<é\"\\\n\u0001🚀>", "c": {}, "d": []}"#
        );
        assert_eq!(
            dumps(
                serde_json::json!({"b": [1], "a": "é🚀"}),
                &[("indent", Value::from(2)), ("sort_keys", Value::from(true)), ("ensure_ascii", Value::from(true))]
            ),
            "{\n  \"a\": \"\\u00e9\\ud83d\\ude80\",\n  \"b\": [\n    1\n  ]\n}"
        );
        let separators = Value::from(vec![",", ":"]);
        assert_eq!(dumps(serde_json::json!({"a": [1, 2]}), &[("separators", separators)]), r#"{"a":[1,2]}"#);
    }
}
