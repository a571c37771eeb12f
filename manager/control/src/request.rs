//! Requests: every command the manager knows, with typed properties.
//!
//! Owns the words and properties on the wire, in both directions; opens no socket and decides
//! nothing.
//! Invariant: any bytes either parse into a typed request or give a typed error with Circus's
//! number; what `to_line` writes, `parse` reads as the same request.
//! Source: manager/docs/control.md; Circus's commands and their properties.

use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::options::OptionValues;
use crate::properties as wire;
use crate::reply::{Errno, RequestError, line_of};
use crate::selection::Selection;
use papa_config::SignalNumber;

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

/// Defines [`Command`]: for each its word on the wire, its properties and what it does. Reading,
/// writing and the table in manager/docs/control.md follow from that.
///
/// Properties in braces travel as they are; `via` names the type whose `into_parts` and
/// `from_parts` convert them where the wire has another form.
macro_rules! commands {
    ($(
        $(#[doc = $doc:literal])+
        $word:literal $(| $alias:literal)? => $variant:ident
        $({ $(
            $(#[doc = $property_doc:literal])+
            $(#[serde($($serde:tt)*)])?
            $property:ident: $type:ty,
        )+ })?
        $(($inner:ty))?
        $(via $wire:ty)?;
    )+) => {
        /// What the manager can be asked. Bodies of the answers are in `body`; where none is named,
        /// there are no fields.
        #[derive(Debug, Clone, PartialEq)]
        pub enum Command {
            $(
                $(#[doc = $doc])+
                $variant
                $({ $( $(#[doc = $property_doc])+ $property: $type, )+ })?
                $(($inner))?,
            )+
        }

        impl Command {
            /// The word on the wire.
            #[must_use]
            pub fn word(&self) -> &'static str {
                match self {
                    $( Self::$variant { .. } => $word, )+
                }
            }

            fn parse(word: &str, given: Map<String, Value>) -> Result<Self, RequestError> {
                match word.to_lowercase().as_str() {
                    $(
                        $word $(| $alias)? => read_command!(
                            $variant, given,
                            $({ $( $(#[serde($($serde)*)])? $property: $type, )+ })?
                            $(($inner))? $(via $wire)?
                        ),
                    )+
                    _ => {
                        let reason = format!("unknown command: {word:?}");
                        Err(RequestError::new(Errno::UnknownCommand, reason))
                    }
                }
            }

            fn properties(&self) -> Map<String, Value> {
                $(
                    write_command!(
                        $variant, self,
                        $({ $( $(#[serde($($serde)*)])? $property: $type, )+ })?
                        $(($inner))? $(via $wire)?
                    );
                )+
                Map::new()
            }
        }

        /// Word, names of the properties and first lines of documentation of every command.
        #[cfg(test)]
        pub(crate) fn described() -> Vec<(&'static str, Vec<&'static str>, String)> {
            vec![$((
                $word,
                names_of_properties!(
                    $({ $( $(#[serde($($serde)*)])? $property: $type, )+ })?
                    $(via $wire)?
                ),
                [$($doc),+].concat(),
            ),)+]
        }
    };
}

/// One command from its properties.
macro_rules! read_command {
    ($variant:ident, $given:ident, { $($(#[$serde:meta])? $property:ident: $type:ty,)+ }) => {{
        #[derive(Deserialize)]
        struct Properties { $( $(#[$serde])? $property: $type, )+ }
        let Properties { $($property),+ } = read($given)?;
        Ok(Self::$variant { $($property),+ })
    }};
    (
        $variant:ident, $given:ident,
        { $($(#[$serde:meta])? $property:ident: $type:ty,)+ } via $wire:ty
    ) => {{
        let ($($property),+) = read::<$wire>($given)?.into_parts()?;
        Ok(Self::$variant { $($property),+ })
    }};
    ($variant:ident, $given:ident, ($inner:ty) via $wire:ty) => {
        Ok(Self::$variant(read::<$wire>($given)?.into_parts()?))
    };
    ($variant:ident, $given:ident,) => {
        Ok(Self::$variant)
    };
}

/// Returns the properties of a command if it is this one.
macro_rules! write_command {
    ($variant:ident, $command:ident, { $($(#[$serde:meta])? $property:ident: $type:ty,)+ }) => {
        if let Self::$variant { $($property),+ } = $command {
            #[derive(Serialize)]
            struct Properties<'a> { $( $(#[$serde])? $property: &'a $type, )+ }
            return wire::write(&Properties { $($property),+ });
        }
    };
    (
        $variant:ident, $command:ident,
        { $($(#[$serde:meta])? $property:ident: $type:ty,)+ } via $wire:ty
    ) => {
        if let Self::$variant { $($property),+ } = $command.clone() {
            return wire::write(&<$wire>::from_parts($($property),+));
        }
    };
    ($variant:ident, $command:ident, ($inner:ty) via $wire:ty) => {
        if let Self::$variant(inner) = $command.clone() {
            return wire::write(&<$wire>::from_parts(inner));
        }
    };
    ($variant:ident, $command:ident,) => {};
}

/// The names of a command's properties, as serde's derive knows them.
#[cfg(test)]
macro_rules! names_of_properties {
    ({ $($(#[$serde:meta])? $property:ident: $type:ty,)+ }) => {{
        #[derive(Deserialize)]
        #[allow(dead_code, reason = "only its shape is asked for")]
        struct Properties { $( $(#[$serde])? $property: $type, )+ }
        tests::fields_of::<Properties>()
    }};
    ($({ $($(#[$serde:meta])? $property:ident: $type:ty,)+ })? via $wire:ty) => {
        tests::fields_of::<$wire>()
    };
    () => {
        Vec::new()
    };
}

commands! {
    /// Adds a watcher that is in no file. Waiting for one that is started:
    /// [`super::body::StartedReply`].
    "add" => Add(Add) via wire::Add;
    /// Stops and forgets a watcher.
    "rm" => Rm {
        /// Its name.
        name: String,
        /// Forgets it only: its workers run on, managed by nobody.
        #[serde(default)]
        nostop: bool,
    };
    /// Starts watchers. Waiting for one: [`super::body::InfoReply`].
    "start" => Start(Selection) via Selection;
    /// Stops watchers; they stay stopped across restarts of the manager.
    "stop" => Stop(Selection) via Selection;
    /// Stops and starts watchers. Waiting for one: [`super::body::InfoReply`].
    "restart" => Restart(Selection) via Selection;
    /// Replaces workers. Waiting for one: [`super::body::InfoReply`].
    "reload" => Reload {
        /// Whose.
        selection: Selection,
        /// In which way.
        how: ReloadHow,
    } via wire::Reload;
    /// Applies the difference between the file and what runs. Body: [`super::body::PlanReply`].
    "reloadconfig" => ReloadConfig {
        /// Only say what would be done.
        #[serde(default)]
        plan: bool,
        /// What runs may be stopped, however much it is.
        #[serde(default)]
        accept_removal: bool,
    };
    /// Ends the manager; workers stay.
    "quit" => Quit;
    /// Stops every worker, gives up the sockets and ends the manager.
    "shutdown" | "down" => Shutdown;
    /// The manager re-executes itself; workers stay.
    "upgrade" => Upgrade;
    /// Opens log files anew, after somebody moved them.
    "reopenlogs" => ReopenLogs;
    /// More workers. Waiting: [`super::body::NumProcessesReply`].
    "incr" => Incr {
        /// Whose.
        name: String,
        /// How many more.
        #[serde(rename = "nb", default = "wire::one")]
        by: u32,
    };
    /// Fewer workers, not below none. Waiting: [`super::body::NumProcessesReply`].
    "decr" => Decr {
        /// Whose.
        name: String,
        /// How many fewer.
        #[serde(rename = "nb", default = "wire::one")]
        by: u32,
    };
    /// Changes options of a running watcher.
    "set" => Set {
        /// Its name.
        name: String,
        /// At least one.
        options: OptionValues,
    } via wire::Set;
    /// Some of a watcher's options. Body: [`super::body::OptionsReply`].
    "get" => Get {
        /// Its name.
        name: String,
        /// Which.
        keys: Vec<String>,
    };
    /// All of a watcher's options. Body: [`super::body::OptionsReply`].
    "options" => Options {
        /// Its name.
        name: String,
    };
    /// Options of `[circus]`, or one of them. Body: [`super::body::OptionsReply`].
    "globaloptions" => GlobalOptions {
        /// Which; none means all.
        option: Option<String>,
    };
    /// Names of the watchers, or pids of one. Body: [`super::body::ListReply`].
    "list" => List {
        /// None means the watchers.
        name: Option<String>,
    };
    /// States of all watchers, or of one. Body: [`super::body::StatusReply`].
    "status" => Status {
        /// None means all.
        name: Option<String>,
    };
    /// How many workers are meant to run. Body: [`super::body::NumProcessesReply`].
    "numprocesses" => NumProcesses {
        /// None means all together.
        name: Option<String>,
    };
    /// How many watchers there are. Body: `{"numwatchers": n}`.
    "numwatchers" => NumWatchers;
    /// What workers use of the machine.
    "stats" => Stats {
        /// None means all watchers.
        name: Option<String>,
        /// Only this one of its processes.
        process: Option<u32>,
        /// Accepted; extended statistics come from hooks.
        extended: bool,
    } via wire::Stats;
    /// What the manager uses of the machine.
    "dstats" => DStats;
    /// The sockets held for the workers.
    "listsockets" => ListSockets;
    /// Sends a signal to workers.
    "signal" => Signal(Signal) via wire::Signal;
    /// Stops workers, which are then replaced.
    "kill" => Kill(Kill) via wire::Kill;
    /// Turns the connection into a stream of events.
    "listen" => Listen(Listen) via wire::Listen;
    /// Log files of all watchers, or of one. Body: [`super::body::LogsReply`].
    "logs" => Logs {
        /// None means all.
        name: Option<String>,
    };
    /// What is not as it should be. Body: [`super::body::DoctorReply`].
    "doctor" => Doctor;
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

impl Command {
    /// Whether the command changes nothing, so that it is as if never asked when no answer comes.
    #[must_use]
    pub fn only_asks(&self) -> bool {
        matches!(
            self,
            Self::Get { .. }
                | Self::Options { .. }
                | Self::GlobalOptions { .. }
                | Self::List { .. }
                | Self::Status { .. }
                | Self::NumProcesses { .. }
                | Self::NumWatchers
                | Self::Stats { .. }
                | Self::DStats
                | Self::ListSockets
                | Self::Listen(_)
                | Self::Logs { .. }
                | Self::Doctor
        )
    }
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

/// Reads the properties of one command; those it does not know are ignored, as in Circus.
fn read<T: DeserializeOwned>(given: Map<String, Value>) -> Result<T, RequestError> {
    T::deserialize(Value::Object(given))
        .map_err(|error| RequestError::new(Errno::Message, format!("message invalid: {error}")))
}
