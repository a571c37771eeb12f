//! Properties of requests as they travel, before and after they are typed.
//!
//! Owns those whose form on the wire is not that of the typed request: names, defaults and JSON types,
//! Circus's where it has them. `request` has the table of commands and their other properties.
//! Source: Circus's commands.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::options::OptionValues;
use crate::reply::{Errno, RequestError};
use crate::request::{self as typed, Reach, ReloadHow, Since};
use crate::selection::{Matching, Selection};
use papa_config::SignalNumber;

/// Longest grace period that can be asked for, in seconds: a year, far from any overflow of the
/// clock.
const MAX_GRACE_SECONDS: f64 = 366.0 * 24.0 * 3600.0;

/// Most topics in one request.
const MAX_TOPICS: usize = 256;

/// How many workers `incr` and `decr` mean.
pub(crate) fn one() -> u32 {
    1
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Set {
    name: String,
    options: Map<String, Value>,
}

impl Set {
    pub(crate) fn into_parts(self) -> Result<(String, OptionValues), RequestError> {
        Ok((self.name, OptionValues::parse(&self.options)?))
    }

    #[expect(
        clippy::needless_pass_by_value,
        reason = "the table of commands hands over every property"
    )]
    pub(crate) fn from_parts(name: String, options: OptionValues) -> Self {
        Self {
            name,
            options: object(options.to_value()),
        }
    }
}

impl Selection {
    pub(crate) fn into_parts(self) -> Result<Self, RequestError> {
        self.check()?;
        Ok(self)
    }

    pub(crate) fn from_parts(selection: Self) -> Self {
        selection
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Add {
    name: String,
    cmd: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    args: Option<Value>,
    #[serde(default)]
    options: Map<String, Value>,
    #[serde(default)]
    start: bool,
}

impl Add {
    pub(crate) fn into_parts(self) -> Result<typed::Add, RequestError> {
        let Self {
            name,
            cmd,
            args,
            mut options,
            start,
        } = self;
        if name.is_empty() {
            return Err(wrong("\"name\": expected at least one character"));
        }
        options.insert("cmd".to_owned(), cmd.into());
        if let Some(args) = args {
            options.insert("args".to_owned(), args);
        }
        Ok(typed::Add {
            name,
            options: OptionValues::parse(&options)?,
            start,
        })
    }

    pub(crate) fn from_parts(add: typed::Add) -> Self {
        let mut options = object(add.options.to_value());
        let cmd = options.remove("cmd");
        Self {
            name: add.name,
            cmd: cmd
                .as_ref()
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned(),
            args: options.remove("args"),
            options,
            start: add.start,
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Reload {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    names: Vec<String>,
    #[serde(default, rename = "match")]
    matching: Matching,
    #[serde(default = "yes")]
    graceful: bool,
    #[serde(default)]
    sequential: bool,
}

fn yes() -> bool {
    true
}

impl Reload {
    pub(crate) fn into_parts(self) -> Result<(Selection, ReloadHow), RequestError> {
        let how = match (self.graceful, self.sequential) {
            (false, _) => ReloadHow::Terminate,
            (true, true) => ReloadHow::Sequential,
            (true, false) => ReloadHow::Graceful,
        };
        let selection = Selection {
            name: self.name,
            names: self.names,
            matching: self.matching,
        };
        Ok((selection.into_parts()?, how))
    }

    pub(crate) fn from_parts(selection: Selection, how: ReloadHow) -> Self {
        Self {
            name: selection.name,
            names: selection.names,
            matching: selection.matching,
            graceful: how != ReloadHow::Terminate,
            sequential: how == ReloadHow::Sequential,
        }
    }
}

/// A number, or a text that is one: command lines of old pass what was typed.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Lenient {
    Number(serde_json::Number),
    Text(String),
}

impl Lenient {
    fn pid(&self, property: &str) -> Result<u32, RequestError> {
        let number = match self {
            Self::Number(number) => number.as_u64().and_then(|number| number.try_into().ok()),
            Self::Text(text) => text.trim().parse().ok(),
        };
        number
            .filter(|pid| *pid > 0)
            .ok_or_else(|| wrong(format!("\"{property}\": expected a process id")))
    }

    fn seconds(&self, property: &str) -> Result<Duration, RequestError> {
        let seconds = match self {
            Self::Number(number) => number.as_f64(),
            Self::Text(text) => text.trim().parse().ok(),
        };
        seconds
            .filter(|seconds| (0.0..=MAX_GRACE_SECONDS).contains(seconds))
            .map(Duration::from_secs_f64)
            .ok_or_else(|| {
                wrong(format!(
                    "\"{property}\": expected a number of seconds from 0"
                ))
            })
    }

    fn signal(&self, property: &str) -> Result<SignalNumber, RequestError> {
        let text = match self {
            Self::Number(number) => number.to_string(),
            Self::Text(text) => text.clone(),
        };
        text.parse()
            .map_err(|error| wrong(format!("\"{property}\": got {text:?}, {error}")))
    }

    fn whole(number: impl Into<serde_json::Number>) -> Self {
        Self::Number(number.into())
    }
}

fn pid(value: Option<&Lenient>, property: &str) -> Result<Option<u32>, RequestError> {
    value.map(|value| value.pid(property)).transpose()
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Stats {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    process: Option<Lenient>,
    #[serde(default)]
    extended: bool,
}

impl Stats {
    pub(crate) fn into_parts(self) -> Result<(Option<String>, Option<u32>, bool), RequestError> {
        let process = pid(self.process.as_ref(), "process")?;
        if process.is_some() && self.name.is_none() {
            return Err(wrong("\"process\": needs the \"name\" of its watcher"));
        }
        Ok((self.name, process, self.extended))
    }

    pub(crate) fn from_parts(name: Option<String>, process: Option<u32>, extended: bool) -> Self {
        Self {
            name,
            process: process.map(Lenient::whole),
            extended,
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Signal {
    name: String,
    signum: Lenient,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pid: Option<Lenient>,
    // Circus's documentation says child_pid, its code reads childpid.
    #[serde(default, alias = "child_pid", skip_serializing_if = "Option::is_none")]
    childpid: Option<Lenient>,
    #[serde(default)]
    children: bool,
    #[serde(default)]
    recursive: bool,
}

impl Signal {
    pub(crate) fn into_parts(self) -> Result<typed::Signal, RequestError> {
        let pid_given = pid(self.pid.as_ref(), "pid")?;
        let child = pid(self.childpid.as_ref(), "childpid")?;
        if child.is_some() && pid_given.is_none() {
            return Err(wrong("\"childpid\": needs the \"pid\" of its worker"));
        }
        let reach = match (child, self.recursive, self.children) {
            (Some(child), ..) => Reach::Child(child),
            (None, true, _) => Reach::Tree,
            (None, false, true) => Reach::Children,
            (None, false, false) => Reach::Worker,
        };
        Ok(typed::Signal {
            name: self.name,
            pid: pid_given,
            signal: self.signum.signal("signum")?,
            reach,
        })
    }

    pub(crate) fn from_parts(signal: typed::Signal) -> Self {
        Self {
            name: signal.name,
            signum: Lenient::whole(signal.signal.number()),
            pid: signal.pid.map(Lenient::whole),
            childpid: match signal.reach {
                Reach::Child(pid) => Some(Lenient::whole(pid)),
                Reach::Worker | Reach::Children | Reach::Tree => None,
            },
            children: signal.reach == Reach::Children,
            recursive: signal.reach == Reach::Tree,
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Kill {
    name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pid: Option<Lenient>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    signum: Option<Lenient>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    graceful_timeout: Option<Lenient>,
}

impl Kill {
    pub(crate) fn into_parts(self) -> Result<typed::Kill, RequestError> {
        let grace = self.graceful_timeout.as_ref();
        let signum = self.signum.as_ref();
        Ok(typed::Kill {
            pid: pid(self.pid.as_ref(), "pid")?,
            signal: signum.map(|signum| signum.signal("signum")).transpose()?,
            graceful_timeout: grace
                .map(|grace| grace.seconds("graceful_timeout"))
                .transpose()?,
            name: self.name,
        })
    }

    pub(crate) fn from_parts(kill: typed::Kill) -> Self {
        Self {
            name: kill.name,
            pid: kill.pid.map(Lenient::whole),
            signum: kill.signal.map(|signal| Lenient::whole(signal.number())),
            graceful_timeout: kill
                .graceful_timeout
                .and_then(|grace| serde_json::Number::from_f64(grace.as_secs_f64()))
                .map(Lenient::Number),
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Listen {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    topics: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    since: Option<Lenient>,
}

impl Listen {
    pub(crate) fn into_parts(self) -> Result<typed::Listen, RequestError> {
        if self.topics.len() > MAX_TOPICS {
            return Err(wrong(format!(
                "\"topics\": expected at most {MAX_TOPICS} of them"
            )));
        }
        let since = match &self.since {
            None => None,
            Some(Lenient::Number(number)) => number.as_u64().map(|seq| Since {
                incarnation: None,
                seq,
            }),
            Some(Lenient::Text(text)) => text.parse().ok(),
        };
        if self.since.is_some() && since.is_none() {
            return Err(wrong(format!("\"since\": {SINCE_EXPECTED}")));
        }
        Ok(typed::Listen {
            topics: self.topics,
            since,
        })
    }

    pub(crate) fn from_parts(listen: typed::Listen) -> Self {
        Self {
            topics: listen.topics,
            since: listen.since.map(|since| Lenient::Text(since.to_string())),
        }
    }
}

const SINCE_EXPECTED: &str =
    "expected the number of an event, or INCARNATION:NUMBER as `listen` tells it";

impl std::str::FromStr for Since {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (incarnation, seq) = match text.rsplit_once(':') {
            Some((incarnation, seq)) => (Some(incarnation.to_owned()), seq),
            None => (None, text),
        };
        let seq = seq.parse().map_err(|_| SINCE_EXPECTED)?;
        Ok(Self { incarnation, seq })
    }
}

impl std::fmt::Display for Since {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.incarnation {
            Some(incarnation) => write!(f, "{incarnation}:{}", self.seq),
            None => write!(f, "{}", self.seq),
        }
    }
}

/// The `waiting` property, which every command may have.
pub(crate) fn waiting(properties: &Map<String, Value>) -> Result<bool, RequestError> {
    match properties.get("waiting") {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(waiting)) => Ok(*waiting),
        Some(other) => Err(wrong(format!(
            "\"waiting\": got {other}, expected true or false"
        ))),
    }
}

/// Properties as an object; one that is not given is left out.
pub(crate) fn write(value: &impl Serialize) -> Map<String, Value> {
    let mut properties = object(serde_json::to_value(value).unwrap_or_default());
    properties.retain(|_, value| !value.is_null());
    properties
}

/// The object that a value is; nothing else is one.
pub(crate) fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(object) => object,
        _ => Map::new(),
    }
}

fn wrong(reason: impl Into<String>) -> RequestError {
    RequestError::new(Errno::Message, reason)
}
