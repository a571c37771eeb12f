//! Requests: every command the manager knows, with typed properties.
//!
//! Owns the words and properties on the wire, in both directions; opens no socket and decides
//! nothing.
//! Invariant: any bytes either parse into a typed request or give a typed error with Circus's
//! number; what `to_line` writes, `parse` reads as the same request.
//! Source: manager/docs/control.md; Circus's commands and their properties.

use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::config::SignalNumber;
use crate::control::options::OptionValues;
use crate::control::properties as wire;
use crate::control::reply::{Errno, RequestError, line_of};
use crate::control::selection::Selection;

#[cfg(test)]
mod tests;

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

/// What the manager can be asked. Bodies of the answers are in `body`; where none is named, there
/// are no fields.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// Adds a watcher that is in no file. Waiting for one that is started:
    /// [`super::body::StartedReply`].
    Add(Add),
    /// Stops and forgets a watcher.
    Rm {
        /// Its name.
        name: String,
        /// Forgets it only: its workers run on, managed by nobody.
        nostop: bool,
    },
    /// Starts watchers. Waiting for one: [`super::body::InfoReply`].
    Start(Selection),
    /// Stops watchers; they stay stopped across restarts of the manager.
    Stop(Selection),
    /// Stops and starts watchers. Waiting for one: [`super::body::InfoReply`].
    Restart(Selection),
    /// Replaces workers. Waiting for one: [`super::body::InfoReply`].
    Reload {
        /// Whose.
        selection: Selection,
        /// In which way.
        how: ReloadHow,
    },
    /// Applies the difference between the file and what runs. Body: [`super::body::PlanReply`].
    ReloadConfig {
        /// Only say what would be done.
        plan: bool,
        /// What runs may be stopped, however much it is.
        accept_removal: bool,
    },
    /// Ends the manager; workers stay.
    Quit,
    /// Stops every worker, gives up the sockets and ends the manager.
    Shutdown,
    /// The manager re-executes itself; workers stay.
    Upgrade,
    /// Opens log files anew, after somebody moved them.
    ReopenLogs,
    /// More workers. Waiting: [`super::body::NumProcessesReply`].
    Incr {
        /// Whose.
        name: String,
        /// How many more.
        by: u32,
    },
    /// Fewer workers, not below none. Waiting: [`super::body::NumProcessesReply`].
    Decr {
        /// Whose.
        name: String,
        /// How many fewer.
        by: u32,
    },
    /// Changes options of a running watcher.
    Set {
        /// Its name.
        name: String,
        /// At least one.
        options: OptionValues,
    },
    /// Some of a watcher's options. Body: [`super::body::OptionsReply`].
    Get {
        /// Its name.
        name: String,
        /// Which.
        keys: Vec<String>,
    },
    /// All of a watcher's options. Body: [`super::body::OptionsReply`].
    Options {
        /// Its name.
        name: String,
    },
    /// Options of `[circus]`, or one of them. Body: [`super::body::OptionsReply`].
    GlobalOptions {
        /// Which; none means all.
        option: Option<String>,
    },
    /// Names of the watchers, or pids of one. Body: [`super::body::ListReply`].
    List {
        /// None means the watchers.
        name: Option<String>,
    },
    /// States of all watchers, or of one. Body: [`super::body::StatusReply`].
    Status {
        /// None means all.
        name: Option<String>,
    },
    /// How many workers are meant to run. Body: [`super::body::NumProcessesReply`].
    NumProcesses {
        /// None means all together.
        name: Option<String>,
    },
    /// How many watchers there are. Body: `{"numwatchers": n}`.
    NumWatchers,
    /// What workers use of the machine.
    Stats {
        /// None means all watchers.
        name: Option<String>,
        /// Only this one of its processes.
        process: Option<u32>,
        /// Accepted; extended statistics come from hooks.
        extended: bool,
    },
    /// What the manager uses of the machine.
    DStats,
    /// The sockets held for the workers.
    ListSockets,
    /// Sends a signal to workers.
    Signal(Signal),
    /// Stops workers, which are then replaced.
    Kill(Kill),
    /// Turns the connection into a stream of events.
    Listen(Listen),
    /// Log files of all watchers, or of one. Body: [`super::body::LogsReply`].
    Logs {
        /// None means all.
        name: Option<String>,
    },
    /// What is not as it should be. Body: [`super::body::DoctorReply`].
    Doctor,
}

/// A watcher that is in no file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Add {
    /// Its name.
    pub name: String,
    /// Its options, `cmd` and `args` among them.
    pub options: OptionValues,
    /// Starts it at once.
    pub start: bool,
}

/// How a reload replaces workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ReloadHow {
    /// New ones are ready before old ones go.
    #[default]
    Graceful,
    /// One after another, each old one before its successor.
    Sequential,
    /// All old ones first, like a restart.
    Terminate,
}

/// A signal for workers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signal {
    /// Whose workers.
    pub name: String,
    /// Only this one of them.
    pub pid: Option<u32>,
    /// What is sent.
    pub signal: SignalNumber,
    /// To whom in the worker's tree.
    pub reach: Reach,
}

/// Who in a worker's tree gets a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// The worker.
    Worker,
    /// One child of it.
    Child(u32),
    /// Its direct children, not itself.
    Children,
    /// Itself and everything it started.
    Tree,
}

/// A commanded end of workers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kill {
    /// Whose workers.
    pub name: String,
    /// Only this one of them.
    pub pid: Option<u32>,
    /// Instead of the watcher's `stop_signal`.
    pub signal: Option<SignalNumber>,
    /// Instead of the watcher's `graceful_timeout`.
    pub graceful_timeout: Option<Duration>,
}

/// Which events are wanted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Listen {
    /// Beginnings of topics; empty means all events.
    pub topics: Vec<String>,
    /// The last event seen; none means: only new ones.
    pub since: Option<Since>,
}

/// A place in the stream of events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Since {
    /// Of which manager's life; none means the one that answers.
    pub incarnation: Option<String>,
    /// Number of the last event seen; 0 for all there still are.
    pub seq: u64,
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

    /// A request that is answered when its work is accepted.
    #[must_use]
    pub fn accepted(command: Command) -> Self {
        Self {
            waiting: false,
            ..Self::waiting(command)
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
        match Self::from_object(object, id.clone()) {
            Ok(request) => Ok(request),
            Err(error) => Err((id, error)),
        }
    }

    fn from_object(mut object: Map<String, Value>, id: Value) -> Result<Self, RequestError> {
        let Some(Value::String(word)) = object.remove("command") else {
            let reason = "\"command\": expected the name of a command";
            return Err(RequestError::new(Errno::Message, reason));
        };
        let cast = object.get("msg_type").and_then(Value::as_str) == Some("cast");
        let properties = match object.remove("properties") {
            None | Some(Value::Null) => Map::new(),
            Some(Value::Object(properties)) => properties,
            Some(other) => {
                let reason = format!("\"properties\": got {other}, expected an object");
                return Err(RequestError::new(Errno::Message, reason));
            }
        };
        let waiting = wire::waiting(&properties)?;
        Ok(Self {
            id,
            cast,
            waiting,
            command: Command::parse(&word, properties)?,
        })
    }

    /// Renders the request as one line, newline included.
    #[must_use]
    pub fn to_line(&self) -> Vec<u8> {
        let mut properties = self.command.properties();
        if self.waiting {
            properties.insert("waiting".into(), true.into());
        }
        let mut object = Map::new();
        object.insert("id".into(), self.id.clone());
        object.insert("command".into(), self.command.word().into());
        object.insert("properties".into(), properties.into());
        if self.cast {
            object.insert("msg_type".into(), "cast".into());
        }
        line_of(&Value::Object(object))
    }
}

impl Command {
    /// The word on the wire.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Add(_) => "add",
            Self::Rm { .. } => "rm",
            Self::Start(_) => "start",
            Self::Stop(_) => "stop",
            Self::Restart(_) => "restart",
            Self::Reload { .. } => "reload",
            Self::ReloadConfig { .. } => "reloadconfig",
            Self::Quit => "quit",
            Self::Shutdown => "shutdown",
            Self::Upgrade => "upgrade",
            Self::ReopenLogs => "reopenlogs",
            Self::Incr { .. } => "incr",
            Self::Decr { .. } => "decr",
            Self::Set { .. } => "set",
            Self::Get { .. } => "get",
            Self::Options { .. } => "options",
            Self::GlobalOptions { .. } => "globaloptions",
            Self::List { .. } => "list",
            Self::Status { .. } => "status",
            Self::NumProcesses { .. } => "numprocesses",
            Self::NumWatchers => "numwatchers",
            Self::Stats { .. } => "stats",
            Self::DStats => "dstats",
            Self::ListSockets => "listsockets",
            Self::Signal(_) => "signal",
            Self::Kill(_) => "kill",
            Self::Listen(_) => "listen",
            Self::Logs { .. } => "logs",
            Self::Doctor => "doctor",
        }
    }

    fn parse(word: &str, given: Map<String, Value>) -> Result<Self, RequestError> {
        let selection = |given| {
            let selection: Selection = read(given)?;
            selection.check()?;
            Ok::<_, RequestError>(selection)
        };
        Ok(match word.to_lowercase().as_str() {
            "add" => Self::Add(read::<wire::Add>(given)?.into_typed()?),
            "rm" => {
                let wire::Rm { name, nostop } = read(given)?;
                Self::Rm { name, nostop }
            }
            "start" => Self::Start(selection(given)?),
            "stop" => Self::Stop(selection(given)?),
            "restart" => Self::Restart(selection(given)?),
            "reload" => {
                let how = read::<wire::Reload>(given.clone())?.how();
                let selection = selection(given)?;
                Self::Reload { selection, how }
            }
            "reloadconfig" => {
                let wire::ReloadConfig {
                    plan,
                    accept_removal,
                } = read(given)?;
                Self::ReloadConfig {
                    plan,
                    accept_removal,
                }
            }
            "quit" => Self::Quit,
            "shutdown" | "down" => Self::Shutdown,
            "upgrade" => Self::Upgrade,
            "reopenlogs" => Self::ReopenLogs,
            "incr" => {
                let wire::Count { name, nb } = read(given)?;
                Self::Incr { name, by: nb }
            }
            "decr" => {
                let wire::Count { name, nb } = read(given)?;
                Self::Decr { name, by: nb }
            }
            "set" => {
                let set: wire::Set = read(given)?;
                let options = OptionValues::parse(&set.options)?;
                let name = set.name;
                Self::Set { name, options }
            }
            "get" => {
                let wire::Get { name, keys } = read(given)?;
                Self::Get { name, keys }
            }
            "options" => Self::Options {
                name: read::<wire::Named>(given)?.name,
            },
            "globaloptions" => Self::GlobalOptions {
                option: read::<wire::GlobalOptions>(given)?.option,
            },
            "list" => Self::List {
                name: read::<wire::MaybeNamed>(given)?.name,
            },
            "status" => Self::Status {
                name: read::<wire::MaybeNamed>(given)?.name,
            },
            "numprocesses" => Self::NumProcesses {
                name: read::<wire::MaybeNamed>(given)?.name,
            },
            "numwatchers" => Self::NumWatchers,
            "stats" => read::<wire::Stats>(given)?.into_typed()?,
            "dstats" => Self::DStats,
            "listsockets" => Self::ListSockets,
            "signal" => Self::Signal(read::<wire::Signal>(given)?.into_typed()?),
            "kill" => Self::Kill(read::<wire::Kill>(given)?.into_typed()?),
            "listen" => Self::Listen(read::<wire::Listen>(given)?.into_typed()?),
            "logs" => Self::Logs {
                name: read::<wire::MaybeNamed>(given)?.name,
            },
            "doctor" => Self::Doctor,
            _ => {
                let reason = format!("unknown command: {word:?}");
                return Err(RequestError::new(Errno::UnknownCommand, reason));
            }
        })
    }

    fn properties(&self) -> Map<String, Value> {
        match self.clone() {
            Self::Add(add) => wire::write(&wire::Add::from_typed(add)),
            Self::Rm { name, nostop } => wire::write(&wire::Rm { name, nostop }),
            Self::Start(selection) | Self::Stop(selection) | Self::Restart(selection) => {
                wire::write(&selection)
            }
            Self::Reload { selection, how } => {
                let mut value = wire::write(&selection);
                value.extend(wire::write(&wire::Reload::from_how(how)));
                value
            }
            Self::ReloadConfig {
                plan,
                accept_removal,
            } => wire::write(&wire::ReloadConfig {
                plan,
                accept_removal,
            }),
            Self::Incr { name, by } | Self::Decr { name, by } => {
                wire::write(&wire::Count { name, nb: by })
            }
            Self::Set { name, options } => wire::write(&wire::Set {
                name,
                options: wire::object(options.to_value()),
            }),
            Self::Get { name, keys } => wire::write(&wire::Get { name, keys }),
            Self::Options { name } => wire::write(&wire::Named { name }),
            Self::GlobalOptions { option } => wire::write(&wire::GlobalOptions { option }),
            Self::List { name }
            | Self::Status { name }
            | Self::NumProcesses { name }
            | Self::Logs { name } => wire::write(&wire::MaybeNamed { name }),
            Self::Stats {
                name,
                process,
                extended,
            } => wire::write(&wire::Stats::from_typed(name, process, extended)),
            Self::Signal(signal) => wire::write(&wire::Signal::from_typed(signal)),
            Self::Kill(kill) => wire::write(&wire::Kill::from_typed(kill)),
            Self::Listen(listen) => wire::write(&wire::Listen::from_typed(listen)),
            Self::Quit
            | Self::Shutdown
            | Self::Upgrade
            | Self::ReopenLogs
            | Self::NumWatchers
            | Self::DStats
            | Self::ListSockets
            | Self::Doctor => Map::new(),
        }
    }
}

/// Reads the properties of one command; those it does not know are ignored, as in Circus.
fn read<T: DeserializeOwned>(given: Map<String, Value>) -> Result<T, RequestError> {
    T::deserialize(Value::Object(given))
        .map_err(|error| RequestError::new(Errno::Message, format!("message invalid: {error}")))
}
