//! What chat templates may call, as Hugging Face gives it to them.

use std::time::SystemTime;

use jiff::{Timestamp, Zoned, fmt::strtime, tz::TimeZone};
use minijinja::{Environment, Error, ErrorKind, Value, syntax::SyntaxConfig, value::Kwargs};

use super::json::Style;

/// The name under which a render finds the time it is told; none means the clock's.
pub(super) const NOW: &str = "__now";

/// An environment with the settings and functions that chat templates rely on.
pub(super) fn environment() -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_unknown_method_callback(method);
    // Templates ask this of what may be none, which Python does not iterate over.
    environment.add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
    environment.add_filter("tojson", |value: Value, arguments: Kwargs| {
        let text = Style::from_arguments(&arguments)?.write(&value)?;
        arguments.assert_all_used()?;
        Ok::<_, Error>(Value::from_safe_string(text))
    });
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_function("strftime_now", |state: &minijinja::State, format: String| {
        let now = match state.lookup(NOW).and_then(|now| i64::try_from(now).ok()) {
            Some(seconds) => Timestamp::from_second(seconds).map(|time| time.to_zoned(TimeZone::UTC)),
            None => Ok(Zoned::now()),
        };
        let text = now.and_then(|now| strtime::format(&format, &now));
        text.map_err(|error| Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {error}")))
    });
    Ok(environment)
}

/// Python's methods of strings and mappings.
fn method(state: &mut minijinja::State, value: &Value, name: &str, arguments: &[Value]) -> Result<Value, Error> {
    match (name, value.as_str(), arguments) {
        // For Python a word begins after anything that is no letter.
        ("title", Some(text), []) => Ok(Value::from(title(text))),
        _ => minijinja_contrib::pycompat::unknown_method_callback(state, value, name, arguments),
    }
}

fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut within_word = false;
    for character in text.chars() {
        if within_word {
            out.extend(character.to_lowercase());
        } else {
            out.extend(character.to_uppercase());
        }
        within_word = character.is_alphabetic();
    }
    out
}

/// Seconds since 1970.
pub(super) fn seconds(time: SystemTime) -> i64 {
    let since = |earlier: SystemTime, later: SystemTime| {
        let seconds = later.duration_since(earlier).map_or(0, |duration| duration.as_secs());
        i64::try_from(seconds).unwrap_or(i64::MAX)
    };
    since(SystemTime::UNIX_EPOCH, time) - since(time, SystemTime::UNIX_EPOCH)
}

/// Writes `{% generation %}` blocks, which mark what the model says in training data, as blocks that do nothing.
pub(super) fn without_generation_blocks(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        let end = tag.find("%}").map_or(tag.len(), |end| end + 2);
        let (tag, after) = tag.split_at(end);
        let inside = tag.strip_prefix("{%").and_then(|tag| tag.strip_suffix("%}")).unwrap_or_default();
        let word = inside.trim_start_matches(['-', '+']).trim_end_matches(['-', '+']).trim();
        match word {
            "generation" => out.push_str(&tag.replace(word, "with")),
            "endgeneration" => out.push_str(&tag.replace(word, "endwith")),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn generation_blocks_keep_their_signs_and_lines() {
        assert_eq!(
            without_generation_blocks("a{%- generation -%}\nb{% endgeneration %}{% if generation %}{% endif %}{%"),
            "a{%- with -%}\nb{% endwith %}{% if generation %}{% endif %}{%"
        );
    }

    #[test]
    fn times_before_1970_are_negative() {
        assert_eq!(seconds(SystemTime::UNIX_EPOCH + Duration::from_secs(5)), 5);
        assert_eq!(seconds(SystemTime::UNIX_EPOCH - Duration::from_secs(5)), -5);
    }
}
