//! Values of a watcher's options as they come in `add` and `set`.
//!
//! Owns Circus's JSON types of options and turns each value into the text an INI file would hold,
//! so that one place, `config`, decides what it means. Knows the keys from `config::known`; decides
//! nothing about watchers.
//! Invariant: every key is one an INI file knows (or has a known prefix), every value passed its
//! type.
//! Source: Circus's `util.convert_opt` and `validate_option`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::reply::{Errno, RequestError};
use papa_config::known::{self, Form};
use papa_config::scalar;

/// Most options in one request.
const MAX_OPTIONS: usize = 1024;

/// Options with their values, as an INI file would write them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct OptionValues {
    /// Text by key, nested ones flattened: `stdout_stream.filename`.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
    /// The whole environment section, when `env` was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<BTreeMap<String, String>>,
}

impl OptionValues {
    /// Checks and converts the object of a request.
    ///
    /// # Errors
    /// A key is unknown, or a value has the wrong type.
    pub fn parse(object: &Map<String, Value>) -> Result<Self, RequestError> {
        if object.len() > MAX_OPTIONS {
            return Err(wrong(format!(
                "\"options\": {} keys, expected at most {MAX_OPTIONS}",
                object.len()
            )));
        }
        let mut values = Self::default();
        for (key, value) in object {
            values.take(key, value)?;
        }
        Ok(values)
    }

    fn take(&mut self, key: &str, value: &Value) -> Result<(), RequestError> {
        match key {
            "env" => self.env = Some(texts(key, value)?),
            "stdout_stream" | "stderr_stream" | "hooks" => {
                for (option, text) in texts(key, value)? {
                    self.options.insert(format!("{key}.{option}"), text);
                }
            }
            "args" => {
                let text = match value {
                    Value::Array(words) => quoted(key, words)?,
                    other => text(key, other)?,
                };
                self.options.insert(key.to_owned(), text);
            }
            _ if is_known(key) => {
                self.options.insert(key.to_owned(), typed(key, value)?);
            }
            _ => {
                let foreign = known::foreign::find(key);
                let hint = match (foreign, known::suggestion(known::WATCHER, key)) {
                    (Some(foreign), _) => {
                        format!("; a key of {}, {}", foreign.program, foreign.advice())
                    }
                    (None, Some(meant)) => format!("; did you mean {meant:?}?"),
                    (None, None) => String::new(),
                };
                return Err(wrong(format!("unknown option {key:?}{hint}")));
            }
        }
        Ok(())
    }

    /// The object of a request that gives these values.
    #[must_use]
    pub fn to_value(&self) -> Value {
        let mut object: Map<String, Value> = self
            .options
            .iter()
            .map(|(key, text)| (key.clone(), from_text(key, text)))
            .collect();
        if let Some(env) = &self.env {
            object.insert("env".to_owned(), serde_json::json!(env));
        }
        Value::Object(object)
    }
}

fn is_known(key: &str) -> bool {
    // A watcher's name is what it is found by; `add` has a property of its own for it.
    key != "name" && known::is_watcher_key(key)
}

/// The form of an option's value: what the file's reader takes, so that both accept the same.
fn form(key: &str) -> Form {
    known::form_of_watcher_key(key).unwrap_or(Form::Text("text"))
}

/// A typed value as text.
fn typed(key: &str, value: &Value) -> Result<String, RequestError> {
    let expected = |what: &str| {
        Err(wrong(format!(
            "option {key:?}: got {value}, expected {what}"
        )))
    };
    match (form(key), value) {
        (Form::Number(..) | Form::NumberOrEver, Value::Number(number))
            if number.is_i64() || number.is_u64() =>
        {
            Ok(number.to_string())
        }
        (Form::Number(..) | Form::NumberOrEver, _) => expected("a whole number"),
        (Form::Seconds | Form::Period, Value::Number(number)) => Ok(number.to_string()),
        (Form::Seconds | Form::Period, _) => expected("a number of seconds"),
        (Form::YesNo, Value::Bool(flag)) => Ok(flag.to_string()),
        (Form::YesNo, _) => expected("true or false"),
        (Form::Signal, Value::Number(number)) if number.is_i64() => Ok(number.to_string()),
        (Form::Signal, Value::String(name)) => Ok(name.clone()),
        (Form::Signal, _) => expected("a signal's name or number"),
        (Form::Text(_), value) => text(key, value),
    }
}

fn text(key: &str, value: &Value) -> Result<String, RequestError> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Number(number) => Ok(number.to_string()),
        Value::Bool(flag) => Ok(flag.to_string()),
        Value::Null => Ok(String::new()),
        Value::Array(_) | Value::Object(_) => Err(wrong(format!(
            "option {key:?}: got {value}, expected a text"
        ))),
    }
}

fn texts(key: &str, value: &Value) -> Result<BTreeMap<String, String>, RequestError> {
    let Value::Object(object) = value else {
        return Err(wrong(format!(
            "option {key:?}: got {value}, expected an object of texts"
        )));
    };
    object
        .iter()
        .map(|(name, value)| Ok((name.clone(), text(&format!("{key}.{name}"), value)?)))
        .collect()
}

/// Words as one command line that splits into them again.
fn quoted(key: &str, words: &[Value]) -> Result<String, RequestError> {
    let words: Vec<String> = words
        .iter()
        .map(|word| Ok(quote(&text(key, word)?)))
        .collect::<Result<_, RequestError>>()?;
    Ok(words.join(" "))
}

/// A word in the form a POSIX shell reads as that word.
#[must_use]
pub fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "@%_-+=:,./$()".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\"'\"'"))
}

/// The JSON value of a watcher's option that an operator typed, or that a file holds.
///
/// What the file's reader would refuse stays a text: the manager says what it expects.
#[must_use]
pub fn from_text(key: &str, text: &str) -> Value {
    value_of(form(key), text)
}

/// The JSON value of a text of this form; what is not of the form stays a text.
#[must_use]
pub fn value_of(form: Form, text: &str) -> Value {
    let value = match form {
        Form::Number(..) | Form::NumberOrEver => scalar::whole(text, i64::MIN, i64::MAX)
            .ok()
            .map(Value::from),
        Form::Seconds | Form::Period => scalar::seconds(text).ok().map(|seconds| {
            let seconds = seconds.as_secs_f64();
            // A whole number is written as one.
            format!("{seconds}")
                .parse::<i64>()
                .map_or_else(|_| Value::from(seconds), Value::from)
        }),
        Form::YesNo => scalar::boolean(text).ok().map(Value::from),
        Form::Signal | Form::Text(_) => None,
    };
    value.unwrap_or_else(|| Value::from(text))
}

fn wrong(reason: String) -> RequestError {
    RequestError::new(Errno::Message, reason)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use papa_config as config;

    fn parse(value: &Value) -> Result<OptionValues, RequestError> {
        OptionValues::parse(value.as_object().unwrap())
    }

    #[test]
    fn values_become_what_a_file_would_hold() {
        let values = parse(&json!({
            "numprocesses": 3, "warmup_delay": 0.5, "send_hup": true, "stop_signal": 3,
            "args": ["a b", "c", ""], "cmd": "x y", "rlimit_nofile": 500, "uid": "www",
            "stdout_stream": {"class": "FileStream", "filename": "/x", "max_bytes": 5},
            "hooks": {"before_start": "a.b"}, "env": {"A": "1"},
        }))
        .unwrap();
        let expected = [
            ("args", "'a b' c ''"),
            ("cmd", "x y"),
            ("hooks.before_start", "a.b"),
            ("numprocesses", "3"),
            ("rlimit_nofile", "500"),
            ("send_hup", "true"),
            ("stdout_stream.class", "FileStream"),
            ("stdout_stream.filename", "/x"),
            ("stdout_stream.max_bytes", "5"),
            ("stop_signal", "3"),
            ("uid", "www"),
            ("warmup_delay", "0.5"),
        ];
        let got: Vec<_> = values
            .options
            .iter()
            .map(|(key, text)| (key.as_str(), text.as_str()))
            .collect();
        assert_eq!(got, expected);
        assert_eq!(values.env.as_ref().unwrap()["A"], "1");
        assert_eq!(parse(&values.to_value()), Ok(values));
    }

    #[test]
    fn what_a_file_accepts_is_accepted_here_too() {
        for (key, text) in [
            ("max_age", "200.5"),
            ("max_age_variance", "0.5"),
            ("warmup_delay", "0.25"),
            ("backoff_first", "0.5"),
            ("health_interval", "1.5"),
            ("flapping.window", "2.5"),
            ("flapping.attempts", "3"),
            ("max_retry", "-1"),
            ("rlimit_nofile", ""),
        ] {
            let object = json!({key: from_text(key, text)});
            let values = parse(&object).unwrap_or_else(|error| panic!("{key}: {error:?}"));
            assert_eq!(values.options[key], text);
        }
    }

    /// A configuration whose watcher `w` has these keys.
    fn loaded(keys: &str) -> Result<config::Config, String> {
        const OTHERS: &str =
            "[socket:web]\nport = 0\n[watcher:db]\ncmd = x\n[watcher:cache]\ncmd = x\n";
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("t.ini");
        std::fs::write(&file, format!("{OTHERS}[watcher:w]\n{keys}")).unwrap();
        let around = config::Surroundings {
            environment: BTreeMap::new(),
            directory: "/srv".into(),
        };
        config::load(&file, &around).map_err(|errors| errors.to_string())
    }

    /// What the reader of a file says of `key = text` in a watcher.
    fn in_a_file(key: &str, text: &str) -> Result<config::Config, String> {
        let cmd = if key == "cmd" { "" } else { "cmd = x\n" };
        loaded(&format!("{cmd}{key} = {text}\n"))
    }

    /// What `set` says of it, from the operator's words to the watcher's new configuration.
    fn by_set(key: &str, text: &str) -> Result<config::WatcherConfig, String> {
        let object = json!({key: from_text(key, text)});
        let values = parse(&object).map_err(|error| error.reason)?;
        let given = config::change::Given {
            options: &values.options,
            env: None,
        };
        let changed = config::change::with_options(&loaded("cmd = x\n")?, "w", given);
        changed.map_err(|errors| errors.to_string())
    }

    #[test]
    fn set_accepts_exactly_what_a_file_accepts() {
        let others = [
            "",
            "0",
            "1",
            "-1",
            "-2",
            "1_000",
            "+5",
            "007",
            "0.5",
            ".5",
            "1e3",
            "1.",
            "inf",
            "nan",
            "99999999999",
            "yes",
            "OFF",
            "True",
            "maybe",
            "TERM",
            "rtmin+1",
            "65",
            "x",
            "web, db",
        ];
        let mut accepted = 0;
        for key in known::WATCHER {
            // Of a family any name; and what a file may rename, `set` may not.
            if key.is_family() || key.name == "name" {
                continue;
            }
            for text in others.into_iter().chain([key.example]) {
                let (file, set) = (in_a_file(key.name, text), by_set(key.name, text));
                let place = format!("{} = {text:?}", key.name);
                match (file, set) {
                    (Ok(file), Ok(set)) => {
                        let file = file.watcher("w").unwrap();
                        let change = config::diff::diff_watcher(file, &set);
                        assert_eq!(change, None, "{place}: the values differ");
                        accepted += 1;
                    }
                    (Err(_), Err(_)) => {}
                    (file, set) => panic!("{place}: {:?}, {:?}", file.err(), set.err()),
                }
            }
        }
        assert!(accepted > 300, "{accepted}");
    }

    #[test]
    fn wrong_types_and_unknown_keys_are_refused() {
        for (value, expected) in [
            (json!({"numprocesses": "3"}), "a whole number"),
            (json!({"numprocesses": 1.5}), "a whole number"),
            (json!({"graceful_timeout": "3"}), "a number of seconds"),
            (json!({"send_hup": "true"}), "true or false"),
            (json!({"cmd": ["a"]}), "a text"),
            (json!({"env": "A=1"}), "an object"),
            (json!({"numproceses": 1}), "did you mean \"numprocesses\""),
            (json!({"name": "x"}), "unknown option"),
            (json!({"rlimit_": 1}), "unknown option"),
            (json!({"free": 1}), "unknown option"),
        ] {
            let error = parse(&value).unwrap_err();
            assert_eq!(error.errno, Errno::Message);
            assert!(error.reason.contains(expected), "{}", error.reason);
        }
    }

    #[test]
    fn words_survive_quoting() {
        for word in ["", "a b", "it's", "\"x\"", "$(circus.wid)", "a\nb", "\\"] {
            assert_eq!(
                papa_config::words::split(&quote(word)).unwrap(),
                [word],
                "{word}"
            );
        }
    }
}
