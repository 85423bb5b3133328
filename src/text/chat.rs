//! Chats as the text that a model was trained on.

use std::{fmt, sync::Arc, time::SystemTime};

use minijinja::{Environment, ErrorKind, Value, value::Serde};
use serde::Serialize;

use super::{
    chat_functions::{NOW, environment, seconds, without_generation_blocks},
    error::{Error, Result},
    tokenizer::SpecialTokens,
};

/// What one side of a chat said.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Message {
    /// Who: `system`, `user`, `assistant`, or another that the template knows.
    pub role: String,
    /// What.
    pub content: String,
    /// Further fields that the template reads, such as `tool_calls`.
    #[serde(flatten)]
    pub more: serde_json::Map<String, serde_json::Value>,
}

impl Message {
    /// What `role` said.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into(), more: serde_json::Map::new() }
    }

    /// What the model is told to be.
    pub fn system(content: impl Into<String>) -> Self {
        Self::new("system", content)
    }

    /// What the user said.
    pub fn user(content: impl Into<String>) -> Self {
        Self::new("user", content)
    }

    /// What the model answered.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self::new("assistant", content)
    }
}

/// How to render a chat.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct ChatOptions {
    /// Whether the text ends where the model's answer begins.
    pub add_generation_prompt: bool,
    /// Further values that the template reads, such as `tools` or `enable_thinking`.
    pub values: serde_json::Map<String, serde_json::Value>,
    /// The time that `strftime_now` writes, in UTC; the clock's in the machine's time zone if not given.
    pub now: Option<SystemTime>,
}

impl ChatOptions {
    /// With another choice of [`ChatOptions::add_generation_prompt`].
    pub fn add_generation_prompt(mut self, add_generation_prompt: bool) -> Self {
        self.add_generation_prompt = add_generation_prompt;
        self
    }

    /// With other [`ChatOptions::values`].
    pub fn values(mut self, values: serde_json::Map<String, serde_json::Value>) -> Self {
        self.values = values;
        self
    }

    /// With another choice of [`ChatOptions::now`].
    pub fn now(mut self, now: impl Into<Option<SystemTime>>) -> Self {
        self.now = now.into();
        self
    }
}

/// A Jinja template that writes a chat as text, used as Hugging Face's `apply_chat_template` uses it. A clone is cheap.
#[derive(Clone)]
pub struct ChatTemplate {
    name: String,
    environment: Arc<Environment<'static>>,
    special: Vec<(&'static str, String)>,
}

impl fmt::Debug for ChatTemplate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("ChatTemplate").field("name", &self.name).finish_non_exhaustive()
    }
}

impl ChatTemplate {
    /// Reads a template. It knows no special tokens; [`Tokenizer::chat_template`](super::Tokenizer::chat_template) gives one
    /// that does.
    ///
    /// # Errors
    ///
    /// [`Error::ChatTemplate`] with the line that is wrong.
    pub fn new(name: impl Into<String>, source: &str) -> Result<Self> {
        let name = name.into();
        let source = without_generation_blocks(source);
        let read = || {
            let mut environment = environment()?;
            environment.add_template_owned(name.clone(), source)?;
            Ok(environment)
        };
        let environment = read().map_err(|error| refused(&name, &error))?;
        Ok(Self { name, environment: Arc::new(environment), special: Vec::new() })
    }

    /// The same with the special tokens that the template may write: `bos_token`, `eos_token`, `unk_token`, `pad_token`.
    pub fn with_special_tokens(mut self, special: &SpecialTokens) -> Self {
        let tokens = [
            ("bos_token", &special.bos),
            ("eos_token", &special.eos),
            ("unk_token", &special.unk),
            ("pad_token", &special.pad),
        ];
        let known = tokens.into_iter().filter_map(|(role, token)| Some((role, token.as_ref()?.1.clone())));
        self.special = known.collect();
        self
    }

    /// The template's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The text of a chat. With `add_generation_prompt` it ends where the model's answer begins.
    ///
    /// # Errors
    ///
    /// [`Error::ChatTemplate`]: what the template refuses (roles in the wrong order, say), or a line of it that fails.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        self.render_with(messages, &ChatOptions::default().add_generation_prompt(add_generation_prompt))
    }

    /// The text of a chat, with everything that can be set.
    ///
    /// # Errors
    ///
    /// As [`ChatTemplate::render`].
    pub fn render_with(&self, messages: &[Message], options: &ChatOptions) -> Result<String> {
        let mut values: Vec<(String, Value)> = Vec::new();
        values.push(("tools".into(), Value::from(())));
        values.push(("documents".into(), Value::from(())));
        values.extend(self.special.iter().map(|(role, token)| ((*role).to_owned(), Value::from(token.as_str()))));
        values.extend(options.values.iter().map(|(name, value)| (name.clone(), Value::from(Serde(value)))));
        values.push(("messages".into(), Value::from(Serde(messages))));
        values.push(("add_generation_prompt".into(), Value::from(options.add_generation_prompt)));
        values.extend(options.now.map(|now| (NOW.to_owned(), Value::from(seconds(now)))));
        let context = Value::from_pairs(values);
        let rendered = self.environment.get_template(&self.name).and_then(|template| template.render(context));
        rendered.map_err(|error| refused(&self.name, &error))
    }
}

fn refused(name: &str, error: &minijinja::Error) -> Error {
    let detail = error.detail().map(str::to_owned);
    let reason = match error.kind() {
        // What a template says itself, and what is said about a call, needs no category.
        ErrorKind::InvalidOperation => detail.unwrap_or_else(|| error.kind().to_string()),
        kind => detail.map_or_else(|| kind.to_string(), |detail| format!("{kind}: {detail}")),
    };
    Error::ChatTemplate { name: name.to_owned(), line: error.line().unwrap_or(0), reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(source: &str) -> String {
        let rendered = ChatTemplate::new("default", source).and_then(|it| it.render(&[Message::user("Hi")], true));
        rendered.unwrap_err().to_string()
    }

    #[test]
    fn errors_say_where_and_why() {
        assert_eq!(
            reason("a\n{{ raise_exception('Roles must alternate') }}"),
            "chat template \"default\", line 2: Roles must alternate"
        );
        assert!(reason("a\nb\n{% if %}").starts_with("chat template \"default\", line 3: "), "{}", reason("{% if %}"));
        assert!(
            reason("{{ messages[0].role.shout() }}").contains("shout"),
            "{}",
            reason("{{ messages[0].role.shout() }}")
        );
        assert!(reason("{{ 'a'.b.c }}").contains("line 1"));
    }

    #[test]
    fn pythons_ways_are_known() {
        let cases = [
            ("{{ messages[0]['content'].strip() }}|{{ messages[0].content.split('-')[-1] }}", "a-b|b "),
            ("{{ 'abc'[1:] }}{{ 'abc'[::-1] }}{{ messages[::-1][0].role }}{{ 'abc'[:-1] }}", "bccbauserab"),
            ("{{ 'x'.startswith('x') and not 'x'.endswith(('a', 'b')) }}", "True"),
            (
                "{% set n = namespace(i=0) %}{% for c in 'ab' %}{% set n.i = n.i + loop.index0 %}{% endfor %}{{ n.i }}",
                "1",
            ),
            ("{% macro f(x, y='d') %}<{{ x }}{{ y }}>{% endmacro %}{{ f('a') }}{{ f('b', y='c') }}", "<ad><bc>"),
            (
                "{% for i in range(5) %}{% if i == 1 %}{% continue %}{% elif i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}",
                "02",
            ),
            ("{{ {'a': '<é>', 'b': [1, 2.5]} | tojson }}", r#"{"a": "<é>", "b": [1, 2.5]}"#),
            ("  {% if true %}\n  x\n  {% endif %}\ny\n", "  x\ny"),
            ("{% generation %}\n{% set x = 1 %}z{% endgeneration %}{{ x }}", "z"),
            ("{% for k, v in {'b': 1, 'a': 2}.items() %}{{ k }}{{ v }}{% endfor %}", "b1a2"),
            (
                "{{ tools is none }}{{ custom is defined }}{{ messages is iterable }}{{ messages[0] is mapping }}\
                 {{ tools is iterable }}{{ 'a' is iterable }}{{ 1 is iterable }}",
                "TrueFalseTrueTrueFalseTrueFalse",
            ),
            ("{{ messages[0].get('name', 'nobody') }}", "nobody"),
            ("{{ (messages | selectattr('role', 'equalto', 'user') | list | length) }}", "1"),
            ("{{ '' ~ true ~ none ~ 1.0 }}", "TrueNone1.0"),
        ];
        for (source, expected) in cases {
            let template = ChatTemplate::new("default", source).unwrap();
            let rendered = template.render(&[Message::user(" a-b ")], false);
            assert_eq!(rendered.unwrap(), expected, "{source}");
        }
    }

    #[test]
    fn dates_can_be_fixed() {
        let template = ChatTemplate::new("default", "{{ strftime_now('%d %b %Y|%A, %B %d, %Y|%H:%M') }}").unwrap();
        let now = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_721_995_200);
        let options = ChatOptions::default().now(now);
        assert_eq!(template.render_with(&[], &options).unwrap(), "26 Jul 2024|Friday, July 26, 2024|12:00");
    }
}
