//! What `papactl` and the manager say to each other.
//!
//! Owns the shape of requests and replies as JSON lines; opens no socket and decides nothing. Requests and replies
//! have Circus's form, so that scripts reading the JSON keep working; fields beyond Circus's are additions.
//! Invariant: any bytes either parse into a typed request or give a typed error with Circus's number.
//! Source: manager/README.md, "Control".

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use crate::control::body::{
    ListReply, LogsReply, ManagerStatus, NumProcessesReply, OptionsReply, StatusReply, WatcherLogs,
    WatcherState, WatcherStatus, WorkerStatus, log_files,
};

/// Longest request line the manager reads, in bytes: names and options are short.
pub const MAX_REQUEST_BYTES: usize = 1024 * 1024;

/// Longest reply line `papactl` reads, in bytes: a status of 10,000 workers is well below.
pub const MAX_REPLY_BYTES: usize = 64 * 1024 * 1024;

/// One request line.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// Echoed in the reply.
    pub id: Value,
    /// No reply is wanted (`"msg_type":"cast"`).
    pub cast: bool,
    /// Answer when the work is done (`properties.waiting`), not when it was accepted.
    pub waiting: bool,
    /// What to do.
    pub command: Command,
}

/// What the manager can be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// States of all watchers, or of one. Body: [`StatusReply`].
    Status { name: Option<String> },
    /// Names of the watchers, or pids of one. Body: [`ListReply`].
    List { name: Option<String> },
    /// Starts watchers.
    Start(Selection),
    /// Stops watchers; they stay stopped across restarts of the manager.
    Stop(Selection),
    /// Stops and starts watchers.
    Restart(Selection),
    /// Ends the manager; workers stay.
    Quit,
    /// Stops every worker, gives up the sockets and ends the manager.
    Shutdown,
    /// How many workers are meant to run. Body: [`NumProcessesReply`].
    NumProcesses { name: Option<String> },
    /// How many watchers there are. Body: `{"numwatchers": n}`.
    NumWatchers,
    /// A watcher's options. Body: [`OptionsReply`].
    Options { name: String },
    /// Log files of all watchers, or of one. Body: [`LogsReply`].
    Logs { name: Option<String> },
}

/// Which watchers a command is about.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Selection {
    /// None means all (`start`, `restart`: all with `autostart`).
    pub name: Option<String>,
    /// How `name` is compared.
    pub matching: Matching,
}

/// How a name in a request is compared with watcher names, which are lower-cased first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Matching {
    /// Shell pattern; the default.
    #[default]
    Glob,
    /// The name itself.
    Simple,
}

impl Selection {
    /// Everything.
    #[must_use]
    pub fn all() -> Self {
        Self::default()
    }

    /// Whether the watcher whose lower-case name is `key` is meant.
    #[must_use]
    pub fn matches(&self, key: &str) -> bool {
        let Some(name) = &self.name else {
            return true;
        };
        let name = name.to_lowercase();
        match self.matching {
            // A watcher may be called `a[1]`: its own name always matches.
            Matching::Glob => name == key || crate::config::fnmatch::matches(&name, key),
            Matching::Simple => name == key,
        }
    }
}

/// Circus's error numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Errno {
    /// Not specified.
    Unspecified = 0,
    /// The line is not a JSON object.
    InvalidJson = 1,
    /// No such command.
    UnknownCommand = 2,
    /// A property is missing or wrong, or no watcher has that name.
    Message = 3,
    /// The operating system refused.
    Os = 4,
    /// The command failed.
    Command = 5,
    /// The work was accepted and failed later.
    Asynchronous = 6,
}

/// Why a request was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct RequestError {
    /// Circus's number.
    pub errno: Errno,
    /// For people.
    pub reason: String,
}

impl RequestError {
    /// An error with number and text.
    pub fn new(errno: Errno, reason: impl Into<String>) -> Self {
        Self {
            errno,
            reason: reason.into(),
        }
    }

    /// Circus's answer for a name no watcher has.
    #[must_use]
    pub fn unknown_watcher(name: &str) -> Self {
        Self::new(Errno::Message, format!("program {name} not found"))
    }
}

/// Properties of every command; which ones a command takes is checked against the command.
#[derive(Debug, Default, Deserialize)]
struct Properties {
    #[serde(default)]
    name: Option<String>,
    #[serde(default, rename = "match")]
    matching: Option<Matching>,
    #[serde(default)]
    waiting: bool,
}

impl Request {
    /// A request that is answered when its work is done.
    #[must_use]
    pub fn waiting(command: Command) -> Self {
        Self {
            id: Value::from(1),
            cast: false,
            waiting: true,
            command,
        }
    }

    /// Reads one line, without its newline.
    ///
    /// # Errors
    /// The request's `id` (null if it has none) and what is wrong with it.
    pub fn parse(line: &[u8]) -> Result<Self, (Value, RequestError)> {
        let object: Map<String, Value> = serde_json::from_slice(line).map_err(|_| {
            (
                Value::Null,
                RequestError::new(Errno::InvalidJson, "json invalid"),
            )
        })?;
        let id = object.get("id").cloned().unwrap_or(Value::Null);
        match Self::from_object(&object, id.clone()) {
            Ok(request) => Ok(request),
            Err(error) => Err((id, error)),
        }
    }

    fn from_object(object: &Map<String, Value>, id: Value) -> Result<Self, RequestError> {
        let word = object
            .get("command")
            .and_then(Value::as_str)
            .ok_or_else(|| {
                RequestError::new(
                    Errno::Message,
                    "\"command\": expected the name of a command",
                )
            })?;
        let properties: Properties = match object.get("properties") {
            None | Some(Value::Null) => Properties::default(),
            Some(value) => Properties::deserialize(value).map_err(|error| {
                RequestError::new(Errno::Message, format!("\"properties\": {error}"))
            })?,
        };
        let name = properties.name;
        let selection = Selection {
            name: name.clone(),
            matching: properties.matching.unwrap_or_default(),
        };
        let command = match word.to_lowercase().as_str() {
            "status" => Command::Status { name },
            "list" => Command::List { name },
            "start" => Command::Start(selection),
            "stop" => Command::Stop(selection),
            "restart" => Command::Restart(selection),
            "quit" => Command::Quit,
            "shutdown" | "down" => Command::Shutdown,
            "numprocesses" => Command::NumProcesses { name },
            "numwatchers" => Command::NumWatchers,
            "options" => Command::Options {
                name: name.ok_or_else(|| {
                    RequestError::new(Errno::Message, "message invalid: \"name\" is missing")
                })?,
            },
            "logs" => Command::Logs { name },
            _ => {
                return Err(RequestError::new(
                    Errno::UnknownCommand,
                    format!("unknown command: {word:?}"),
                ));
            }
        };
        Ok(Self {
            id,
            cast: object.get("msg_type").and_then(Value::as_str) == Some("cast"),
            waiting: properties.waiting,
            command,
        })
    }

    /// Renders the request as one line, newline included.
    #[must_use]
    pub fn to_line(&self) -> Vec<u8> {
        let mut properties = Map::new();
        let (word, name) = match &self.command {
            Command::Status { name } => ("status", name.as_ref()),
            Command::List { name } => ("list", name.as_ref()),
            Command::Start(selection) => ("start", selection.name.as_ref()),
            Command::Stop(selection) => ("stop", selection.name.as_ref()),
            Command::Restart(selection) => ("restart", selection.name.as_ref()),
            Command::Quit => ("quit", None),
            Command::Shutdown => ("shutdown", None),
            Command::NumProcesses { name } => ("numprocesses", name.as_ref()),
            Command::NumWatchers => ("numwatchers", None),
            Command::Options { name } => ("options", Some(name)),
            Command::Logs { name } => ("logs", name.as_ref()),
        };
        if let Some(name) = name {
            properties.insert("name".into(), name.as_str().into());
        }
        if let Command::Start(selection) | Command::Stop(selection) | Command::Restart(selection) =
            &self.command
            && selection.matching == Matching::Simple
        {
            properties.insert("match".into(), "simple".into());
        }
        if self.waiting {
            properties.insert("waiting".into(), true.into());
        }
        let mut object = Map::new();
        object.insert("id".into(), self.id.clone());
        object.insert("command".into(), word.into());
        object.insert("properties".into(), properties.into());
        if self.cast {
            object.insert("msg_type".into(), "cast".into());
        }
        line_of(&Value::Object(object))
    }
}

/// One reply line.
#[derive(Debug, Clone, PartialEq)]
pub struct Reply {
    /// The request's id.
    pub id: Value,
    /// Seconds since the epoch.
    pub time: f64,
    /// The fields of the answer, or why there is none.
    pub result: Result<Map<String, Value>, RequestError>,
}

/// A reply line that is not one.
#[derive(Debug, thiserror::Error)]
pub enum ReplyError {
    /// The manager refused.
    #[error("{0}")]
    Refused(#[from] RequestError),
    /// The line is not a reply.
    #[error("the manager's answer is not understood: {0}")]
    Malformed(#[from] serde_json::Error),
}

impl Reply {
    /// A positive answer; `body` must serialise to an object, as the `…Reply` types and `()`-like maps do.
    #[must_use]
    pub fn ok(id: Value, time: f64, body: &impl Serialize) -> Self {
        let fields = match serde_json::to_value(body) {
            Ok(Value::Object(fields)) => fields,
            Ok(Value::Null) => Map::new(),
            Ok(other) => Map::from_iter([("results".to_owned(), other)]),
            Err(error) => {
                return Self::error(
                    id,
                    time,
                    RequestError::new(Errno::Command, error.to_string()),
                );
            }
        };
        Self {
            id,
            time,
            result: Ok(fields),
        }
    }

    /// A positive answer without fields.
    #[must_use]
    pub fn done(id: Value, time: f64) -> Self {
        Self {
            id,
            time,
            result: Ok(Map::new()),
        }
    }

    /// A negative answer.
    #[must_use]
    pub fn error(id: Value, time: f64, error: RequestError) -> Self {
        Self {
            id,
            time,
            result: Err(error),
        }
    }

    /// The reply as one JSON object, as it travels.
    #[must_use]
    pub fn to_value(&self) -> Value {
        let mut object = Map::new();
        match &self.result {
            Ok(fields) => {
                object.insert("status".into(), "ok".into());
                // `status NAME` answers the watcher's state in the very field that says "ok" elsewhere: scripts
                // know Circus that way.
                object.extend(fields.clone());
            }
            Err(error) => {
                object.insert("status".into(), "error".into());
                object.insert("reason".into(), error.reason.as_str().into());
                object.insert("errno".into(), (error.errno as u8).into());
                object.insert("tb".into(), Value::Null);
            }
        }
        object.insert("time".into(), self.time.into());
        object.insert("id".into(), self.id.clone());
        Value::Object(object)
    }

    /// Renders the reply as one line, newline included.
    #[must_use]
    pub fn to_line(&self) -> Vec<u8> {
        line_of(&self.to_value())
    }

    /// Reads one line, without its newline.
    ///
    /// # Errors
    /// The line is not a JSON object.
    pub fn parse(line: &[u8]) -> Result<Self, serde_json::Error> {
        let mut object: Map<String, Value> = serde_json::from_slice(line)?;
        let id = object.remove("id").unwrap_or(Value::Null);
        let time = object
            .remove("time")
            .and_then(|time| time.as_f64())
            .unwrap_or(0.0);
        let result = if object.get("status").and_then(Value::as_str) == Some("error") {
            let reason = object.get("reason").and_then(Value::as_str);
            let errno = object.get("errno").and_then(Value::as_u64);
            Err(RequestError::new(
                Errno::from_number(errno.unwrap_or(0)),
                reason.unwrap_or("no reason was given"),
            ))
        } else {
            Ok(object)
        };
        Ok(Self { id, time, result })
    }

    /// The answer's fields as a typed body.
    ///
    /// # Errors
    /// The manager refused, or the fields are not those of `T`.
    pub fn body<T: DeserializeOwned>(self) -> Result<T, ReplyError> {
        Ok(serde_json::from_value(Value::Object(self.result?))?)
    }
}

impl Errno {
    fn from_number(number: u64) -> Self {
        match number {
            1 => Self::InvalidJson,
            2 => Self::UnknownCommand,
            3 => Self::Message,
            4 => Self::Os,
            5 => Self::Command,
            6 => Self::Asynchronous,
            _ => Self::Unspecified,
        }
    }
}

fn line_of(value: &Value) -> Vec<u8> {
    let mut line = value.to_string().into_bytes();
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn parse(text: &str) -> Result<Request, (Value, RequestError)> {
        Request::parse(text.as_bytes())
    }

    #[test]
    fn every_command_survives_the_wire() {
        let name = || Some("Web".to_owned());
        let selection = Selection {
            name: name(),
            matching: Matching::Simple,
        };
        for command in [
            Command::Status { name: None },
            Command::Status { name: name() },
            Command::List { name: name() },
            Command::Start(Selection::all()),
            Command::Stop(selection.clone()),
            Command::Restart(selection),
            Command::Quit,
            Command::Shutdown,
            Command::NumProcesses { name: None },
            Command::NumWatchers,
            Command::Options { name: "web".into() },
            Command::Logs { name: name() },
        ] {
            let request = Request::waiting(command);
            let line = request.to_line();
            assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
            assert_eq!(
                parse(String::from_utf8(line).unwrap().trim_end()),
                Ok(request)
            );
        }
    }

    #[test]
    fn circus_requests_are_understood() {
        let request = parse(r#"{"command":"STATUS","id":"x","msg_type":"cast"}"#).unwrap();
        assert_eq!(request.command, Command::Status { name: None });
        assert!(request.cast && !request.waiting);
        assert_eq!(request.id, Value::from("x"));
    }

    #[test]
    fn bad_requests_get_circus_numbers_and_keep_their_id() {
        for (text, id, errno) in [
            ("", Value::Null, Errno::InvalidJson),
            ("[1]", Value::Null, Errno::InvalidJson),
            (r#"{"id":7}"#, 7.into(), Errno::Message),
            (
                r#"{"id":7,"command":"frobnicate"}"#,
                7.into(),
                Errno::UnknownCommand,
            ),
            (r#"{"id":7,"command":"options"}"#, 7.into(), Errno::Message),
            (
                r#"{"id":7,"command":"stop","properties":3}"#,
                7.into(),
                Errno::Message,
            ),
            (
                r#"{"id":7,"command":"stop","properties":{"name":3}}"#,
                7.into(),
                Errno::Message,
            ),
        ] {
            let (got, error) = parse(text).unwrap_err();
            assert_eq!((got, error.errno), (id, errno), "{text}");
        }
    }

    #[test]
    fn replies_have_circus_shape() {
        let body = StatusReply {
            status: Some("active".into()),
            statuses: BTreeMap::new(),
            watchers: Vec::new(),
            manager: None,
        };
        let reply = Reply::ok(3.into(), 1.5, &body);
        assert_eq!(
            reply.to_value(),
            serde_json::json!({"status":"active","statuses":{},"watchers":[],"time":1.5,"id":3})
        );
        let parsed = Reply::parse(reply.to_line().trim_ascii_end()).unwrap();
        assert_eq!(parsed.body::<StatusReply>().unwrap(), body);

        let error = RequestError::unknown_watcher("nope");
        let reply = Reply::error(Value::Null, 1.5, error.clone());
        assert_eq!(
            reply.to_value(),
            serde_json::json!({"status":"error","reason":"program nope not found","errno":3,"tb":null,"time":1.5,"id":null})
        );
        let parsed = Reply::parse(reply.to_line().trim_ascii_end()).unwrap();
        assert_eq!(parsed.result, Err(error));
    }

    #[test]
    fn selections_ignore_case_and_take_patterns() {
        let named = |name: &str, matching| Selection {
            name: Some(name.into()),
            matching,
        };
        assert!(Selection::all().matches("web"));
        assert!(named("WEB", Matching::Simple).matches("web"));
        assert!(named("W*", Matching::Glob).matches("web"));
        assert!(!named("W*", Matching::Simple).matches("web"));
        assert!(named("a[1]", Matching::Glob).matches("a[1]"));
    }
}
