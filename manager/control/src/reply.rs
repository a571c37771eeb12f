//! Replies: the envelope around what a request gave, or why it gave nothing.
//!
//! Owns Circus's reply shape and error numbers; what a positive answer holds is `body`'s.
//! Source: manager/docs/control.md.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

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
        Self::new(Errno::Message, format!("watcher {name} not found"))
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
    /// A positive answer; `body` must serialise to an object, as the `…Reply` types and `()`-like
    /// maps do.
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
                // `status NAME` answers the watcher's state in the very field that says "ok"
                // elsewhere: scripts know Circus that way.
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

pub(crate) fn line_of(value: &Value) -> Vec<u8> {
    let mut line = value.to_string().into_bytes();
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::body::StatusReply;

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
            serde_json::json!({"status":"error","reason":"watcher nope not found","errno":3,"tb":null,"time":1.5,"id":null})
        );
        let parsed = Reply::parse(reply.to_line().trim_ascii_end()).unwrap();
        assert_eq!(parsed.result, Err(error));
    }
}
