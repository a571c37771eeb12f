//! The manager's requests to the kernel, in the manager's own words.
//!
//! Owns the translation of workers and sockets into the kernel's operations, and the few multi-step
//! requests. Leaves to others: when to ask (`supervisor`), the connection
//! (`papa_client`).
//! Invariant: every request can be repeated: what exists already is answered, not made twice.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use papa_client::{Address, Client, ClientError, Options, Push};
use papa_protocol::json::reply::ErrorCode;
use papa_protocol::json::request as ops;
use papa_protocol::json::request::ops::FollowFrom;
use papa_protocol::name::{Name, NameError, NamePattern};
use papa_protocol::process::{
    Account, Environment, Input, Overflow, Process, Rlimit, Sockets, Stderr, Stdout,
};
use papa_protocol::record::Serial;
use papa_protocol::size::ByteSize;
use papa_protocol::socket::{SocketInfo, Umask};
use papa_protocol::text::ByteString;
use papa_system::sys;
use papa_test_hooks::failpoint;
use tokio::time::{Instant, timeout, timeout_at};

use crate::adopt::Note;
use crate::config::{
    Identity, RlimitValue, SocketConfig, WatcherConfig, WorkerInput, WorkerOutput, WorkerSpec,
    render_worker, scalar, socket_name,
};
use crate::last_words::{Ends, lines_of};
use crate::mark::{Lineage, Mark};
use crate::probe::ready::Means;
use crate::state;

mod process;

/// Output kept of a worker nobody logs: enough to see how it ended.
const UNLOGGED_REEL_BYTES: u64 = 256 * 1024;

/// Ended processes whose last words are read when everything is listed; a predecessor that was away
/// long has left more.
const MAX_WORDS: usize = 256;

/// Most output that is read for the sake of its last lines: what is kept of a worker nobody logs,
/// and more. Of one whose log is stuck and that has more than this waiting, nothing is read: it
/// gets to the log in the end.
const MAX_FOLLOWED_BYTES: u64 = 1024 * 1024;

/// How long reading last words may hold up the list they belong to, all of them together.
const WORDS_PATIENCE: Duration = Duration::from_secs(2);

/// Silence of the kernel after which the list tells whether there is anything left to read: what
/// was acknowledged or dropped meanwhile does not come.
const QUIET: Duration = Duration::from_millis(100);

/// Why the kernel did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The kernel or the connection.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A name the kernel would not take.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The operating system, when signalling.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

impl LinkError {
    /// The kernel's code, if it refused.
    #[must_use]
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Client(error) => error.code(),
            Self::Name(_) | Self::Io(_) => None,
        }
    }

    /// The kernel did not answer: whether it acted is unknown, and asking again is right.
    #[must_use]
    pub fn is_unanswered(&self) -> bool {
        matches!(self, Self::Client(error) if !matches!(error, ClientError::Refused(_)))
    }
}

/// What the kernel has of our namespace.
#[derive(Debug, Default)]
pub struct Inventory {
    /// Every process, dead ones included.
    pub processes: Vec<Process>,
    /// Kept watcher states by lower-case name.
    pub kept: BTreeMap<String, state::Kept>,
    /// Watchers that no file has, by lower-case name.
    pub added: BTreeMap<String, state::Added>,
    /// A change of the configuration that a predecessor did not finish.
    pub change: Option<state::KeptChange>,
    /// What ended workers have left behind.
    pub left: state::KeptLeft,
    /// File mode mask of workers whose watcher names none, if one is kept.
    pub umask: Option<u32>,
    /// By lower-case name of a watcher: how its latest workers ended.
    pub ends: BTreeMap<String, Ends>,
    /// By serial of a process that has ended: what it wrote last.
    pub words: HashMap<u64, Vec<String>>,
}

/// The kernel, as one namespace's manager sees it.
#[derive(Debug, Clone)]
pub struct KernelLink {
    client: Client,
    /// Where the kernel is, for connections besides that one.
    addresses: Vec<Address>,
    namespace: String,
    /// File mode mask of workers whose watcher has none, once it is known; see
    /// `state::umask_value`.
    umask: Option<u32>,
    /// Serials of the sockets there are, by their names in the file; an older kernel gives none.
    sockets: Arc<Mutex<BTreeMap<String, Option<u64>>>>,
    process: Arc<process::Shared>,
}

impl KernelLink {
    /// Speaks for `namespace`.
    #[must_use]
    pub fn new(client: Client, addresses: Vec<Address>, namespace: String) -> Self {
        Self {
            client,
            addresses,
            namespace,
            umask: None,
            sockets: Arc::default(),
            process: Arc::default(),
        }
    }

    /// The kernel's process id: after an upgrade it may be another than the one that was connected
    /// to. If the kernel does not answer within `patience`, the one it said last.
    pub async fn process_now(&self, patience: Duration) -> i32 {
        let ask = async || {
            let asked = tokio::time::timeout(patience, self.client.call(ops::Status {})).await;
            let pid = match asked {
                Ok(Ok(status)) => status.pid,
                _ => self.client.hello().pid,
            };
            i32::try_from(pid).unwrap_or(0)
        };
        self.process.get(ask).await
    }

    /// Sets the file mode mask of workers whose watcher names none.
    pub fn set_umask(&mut self, mask: Option<u32>) {
        self.umask = mask;
    }

    /// The connection.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// First part of every name of ours.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Takes the namespace. `holder` says who we are, for whoever is refused later.
    ///
    /// # Errors
    /// `claimed` while another manager lives.
    pub async fn claim(&self, holder: &str) -> Result<u64, LinkError> {
        let claim = ops::Claim {
            namespace: Name::new(&self.namespace)?,
            holder: holder.to_owned(),
            force: false,
        };
        Ok(self.client.call(claim).await?.epoch)
    }

    /// Gives the namespace up for good.
    ///
    /// # Errors
    /// The kernel did not answer.
    pub async fn release(&self) -> Result<(), LinkError> {
        let namespace = Name::new(&self.namespace)?;
        self.client.call(ops::ClaimRelease { namespace }).await?;
        Ok(())
    }

    /// Asks to be told of every change in the namespace.
    ///
    /// # Errors
    /// The kernel refused or did not answer.
    pub async fn subscribe(&self) -> Result<(), LinkError> {
        let names = vec![self.everything()];
        self.client.call(ops::Subscribe { names }).await?;
        Ok(())
    }

    /// Lists what there is.
    ///
    /// # Errors
    /// The kernel did not answer.
    pub async fn inventory(&self) -> Result<Inventory, LinkError> {
        let prefix = state::watcher_value(&self.namespace, "");
        let added_prefix = state::added_value(&self.namespace, "");
        let ends_prefix = state::ends_value(&self.namespace, "");
        let change = state::change_value(&self.namespace);
        let left = state::left_value(&self.namespace);
        let umask = state::umask_value(&self.namespace);
        let names = vec![
            NamePattern::new(&format!("{prefix}*")),
            NamePattern::new(&format!("{added_prefix}*")),
            NamePattern::new(&format!("{ends_prefix}*")),
            NamePattern::new(&change),
            NamePattern::new(&left),
            NamePattern::new(&umask),
        ];
        let values = self.client.call(ops::ValueList { names }).await?.values;
        let added = values
            .iter()
            .filter_map(|(name, value)| {
                let key = name.strip_prefix(added_prefix.as_str())?;
                let added = serde_json::from_slice(value.as_bytes()).ok()?;
                Some((key.to_owned(), added))
            })
            .collect();
        let kept = values
            .iter()
            .filter_map(|(name, value)| {
                let key = name.strip_prefix(prefix.as_str())?;
                Some((key.to_owned(), state::Kept::parse(value.as_bytes())))
            })
            .collect();
        let ends = values
            .iter()
            .filter_map(|(name, value)| {
                let key = name.strip_prefix(ends_prefix.as_str())?;
                let ends = state::parse("how workers ended", value.as_bytes())?;
                Some((key.to_owned(), ends))
            })
            .collect();
        let change = values
            .get(change.as_str())
            .and_then(|value| state::parse("a change of the configuration", value.as_bytes()));
        let left = values
            .get(left.as_str())
            .and_then(|value| state::parse("what workers left behind", value.as_bytes()))
            .unwrap_or_default();
        let umask = values
            .get(umask.as_str())
            .and_then(|value| std::str::from_utf8(value.as_bytes()).ok())
            .and_then(|text| scalar::octal_mask(text).ok());
        // Processes last: an answer to a start that comes later is handled later too.
        let list = ops::ProcessList {
            names: vec![self.everything()],
            serials: Vec::new(),
        };
        let processes = self.client.call(list).await?.processes;
        failpoint::reach("adopt.processes");
        let words = self.words_of(&processes).await;
        Ok(Inventory {
            processes,
            ends,
            words,
            kept,
            added,
            change,
            left,
            umask,
        })
    }

    /// What those of `processes` that have ended wrote last, as far as that can be read within
    /// [`WORDS_PATIENCE`]: the list does not wait for more.
    async fn words_of(&self, processes: &[Process]) -> HashMap<u64, Vec<String>> {
        let by = Instant::now() + WORDS_PATIENCE;
        let mut words = HashMap::new();
        let ended = processes.iter().filter(|process| has_words(process));
        for process in ended.take(MAX_WORDS) {
            match timeout_at(by, self.last_lines(process)).await {
                Ok(Ok(lines)) => drop(words.insert(process.serial.0, lines)),
                Ok(Err(error)) => {
                    tracing::debug!(process = %process.name, %error, "cannot read last words");
                }
                Err(_) => {
                    tracing::warn!(
                        process = %process.name,
                        "the kernel does not hand over the last words of ended workers within {} s; going on without them",
                        WORDS_PATIENCE.as_secs()
                    );
                    break;
                }
            }
        }
        words
    }

    /// Keeps a value, or forgets it.
    ///
    /// # Errors
    /// The kernel refused or did not answer.
    pub async fn keep(&self, name: &str, value: Option<String>) -> Result<(), LinkError> {
        let name = Name::new(name)?;
        match value {
            Some(text) => {
                let value = ByteString::from(text);
                self.client.call(ops::ValueSet { name, value }).await?;
            }
            None => {
                let names = vec![NamePattern::new(name.as_ref())];
                self.client.call(ops::ValueRemove { names }).await?;
            }
        }
        Ok(())
    }

    /// Makes a socket, or finds it made.
    ///
    /// # Errors
    /// The kernel refused; one that exists with other parameters is kept, with a warning.
    pub async fn make_socket(&self, socket: &SocketConfig) -> Result<(), LinkError> {
        let request = socket_request(socket, &self.namespace)?;
        match self.ask_for_socket(request).await {
            Err(error) if error.code() == Some(ErrorCode::Exists) => {
                tracing::warn!(socket = socket.name, %error, "keeping the existing socket, which differs from the file");
                self.describe_socket(socket).await.map(drop)
            }
            other => {
                self.is_there(socket, &other?);
                Ok(())
            }
        }
    }

    /// Whether the socket is there as the file has it; one that is not there at all is made.
    ///
    /// # Errors
    /// The kernel refused for another reason than that it has another one, or did not answer.
    pub async fn has_socket(&self, socket: &SocketConfig) -> Result<bool, LinkError> {
        let request = socket_request(socket, &self.namespace)?;
        match self.ask_for_socket(request).await {
            Err(error) if error.code() == Some(ErrorCode::Exists) => Ok(false),
            other => {
                self.is_there(socket, &other?);
                Ok(true)
            }
        }
    }

    /// The kernel is another one, and has none of the sockets.
    pub fn forget_sockets(&self) {
        if let Ok(mut known) = self.sockets.lock() {
            known.clear();
        }
    }

    fn is_there(&self, socket: &SocketConfig, info: &SocketInfo) {
        if let Ok(mut known) = self.sockets.lock() {
            known.insert(socket.name.clone(), info.serial);
        }
    }

    /// Names in the kernel of the sockets a worker inherits. One that cannot be made keeps only
    /// those from starting that need it.
    fn to_inherit(&self, watcher: &WatcherConfig) -> Vec<String> {
        let needed = watcher.needed_sockets();
        let is_there = |name: &String| {
            let known = self.sockets.lock();
            known.is_ok_and(|known| known.contains_key(name))
        };
        let inherited = watcher.sockets.iter();
        inherited
            .filter(|name| needed.contains(*name) || is_there(name))
            .map(|name| socket_name(&self.namespace, name))
            .collect()
    }

    /// The highest serial of these sockets, if all are known.
    #[must_use]
    pub fn newest_of(&self, sockets: &BTreeSet<String>) -> Option<u64> {
        let known = self.sockets.lock().ok()?;
        let serials = sockets
            .iter()
            .map(|name| known.get(name).copied().flatten());
        let serials: Option<Vec<u64>> = serials.collect();
        serials?.into_iter().max()
    }

    async fn describe_socket(&self, socket: &SocketConfig) -> Result<SocketInfo, LinkError> {
        let request = ops::SocketList {
            names: vec![NamePattern::new(&socket.kernel_name(&self.namespace))],
        };
        let listed = self.client.call(request).await?.sockets;
        let found = listed.into_iter().next();
        let found = found.ok_or_else(|| std::io::Error::other("the kernel has no such socket"))?;
        self.is_there(socket, &found);
        Ok(found)
    }

    /// Kernels that know no `replace` always replace.
    async fn ask_for_socket(
        &self,
        mut request: ops::SocketMake,
    ) -> Result<SocketInfo, ClientError> {
        let made = match self.client.call(request.clone()).await {
            Err(error) if request.replace && error.code() == Some(ErrorCode::Invalid) => {
                request.replace = false;
                self.client.call(request).await
            }
            other => other,
        };
        made.map(|made| made.socket)
    }

    /// Whether the path of a unix socket leads to it, if the kernel knows.
    ///
    /// # Errors
    /// The kernel refused, did not answer, or has no such socket.
    pub async fn is_at_its_path(&self, socket: &SocketConfig) -> Result<Option<bool>, LinkError> {
        Ok(self.describe_socket(socket).await?.at_path)
    }

    /// Whether a socket could be made: one like it is made under another name, and removed.
    ///
    /// # Errors
    /// The kernel refused or did not answer.
    pub async fn try_socket(&self, socket: &SocketConfig) -> Result<(), LinkError> {
        self.forget_trial().await?;
        let mut request = socket_request(socket, &self.namespace)?;
        request.name = self.trial()?;
        // A trial takes nothing from anybody.
        let replaces = std::mem::take(&mut request.replace);
        match self.client.call(request).await {
            Err(error) if replaces && error.code() == Some(ErrorCode::BindFailed) => Ok(()),
            Err(error) => Err(error.into()),
            Ok(_) => self.forget_trial().await,
        }
    }

    /// Removes what a predecessor may have left that was killed in a `try_socket`: it would hold an
    /// address.
    ///
    /// # Errors
    /// The kernel refused or did not answer.
    pub async fn forget_trial(&self) -> Result<(), LinkError> {
        let request = ops::SocketRemove {
            names: vec![NamePattern::new(&self.trial()?)],
            force: false,
        };
        match self.client.call(request).await {
            Err(error) if error.code() == Some(ErrorCode::NotFound) => Ok(()),
            other => Ok(other.map(drop)?),
        }
    }

    /// Outside of every namespace, so that no socket of a file has this name.
    fn trial(&self) -> Result<Name, NameError> {
        Name::new(&format!("{}-trial", self.namespace))
    }

    /// Removes a socket; one that is gone is no error.
    ///
    /// # Errors
    /// The kernel refused or did not answer.
    pub async fn remove_socket(&self, socket: &SocketConfig) -> Result<(), LinkError> {
        if let Ok(mut known) = self.sockets.lock() {
            known.remove(&socket.name);
        }
        let request = ops::SocketRemove {
            names: vec![NamePattern::new(&socket.kernel_name(&self.namespace))],
            force: false,
        };
        match self.client.call(request).await {
            Err(error) if error.code() == Some(ErrorCode::NotFound) => Ok(()),
            other => Ok(other.map(drop)?),
        }
    }

    /// Starts worker `wid`, or finds it started. The answer may be a process that has ended and
    /// still has the name. It starts in the place that `placed` has: `watcher` itself, or that with
    /// another release.
    ///
    /// # Errors
    /// The kernel refused or did not answer.
    pub async fn start(
        &self,
        watcher: &WatcherConfig,
        placed: &WatcherConfig,
        wid: u32,
        generation: u64,
        means: Means,
    ) -> Result<Process, LinkError> {
        let mut spec = render_worker(placed, &self.namespace, wid);
        spec.sockets = self.to_inherit(placed);
        let mut request = process_request(placed, spec)?;
        let settings = settings(watcher, &self.namespace, wid);
        // Not part of the settings: what an older manager started has no mark, and is the same
        // worker still.
        let mark = self.mark(&watcher.key, wid).await?;
        for (variable, value) in mark.variables() {
            let environment = &mut request.env.0;
            environment.insert(variable.to_owned(), ByteString::from(value));
        }
        if let Some((variable, value)) = means.variable {
            let environment = &mut request.env.0;
            environment.insert(variable.to_owned(), ByteString::from(value));
        }
        request.descriptors.extend(means.descriptor);
        // Not a setting of the file: workers of a manager that did not know it are not outdated.
        if request.umask.is_none() {
            request.umask = self.umask.and_then(|bits| Umask::new(bits.into()));
        }
        let note = Note {
            generation,
            settings,
            sockets: self.newest_of(&watcher.needed_sockets()),
        };
        request.tag = note.to_tag();
        let name = request.name.clone();
        match self.client.call(request).await {
            Ok(made) => Ok(made.process),
            Err(error) if error.code() == Some(ErrorCode::Exists) => {
                // The configuration changed while the worker ran: it is kept until it is restarted.
                tracing::warn!(process = %name, %error, "keeping a worker that runs with other settings");
                let list = ops::ProcessList {
                    names: vec![NamePattern::new(&name)],
                    serials: Vec::new(),
                };
                let processes = self.client.call(list).await?.processes;
                let running = processes.iter().position(|process| process.running);
                processes
                    .into_iter()
                    .nth(running.unwrap_or(0))
                    .ok_or(LinkError::Client(error))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// What the environment of worker `wid` of the watcher `key` says of whose it is.
    ///
    /// # Errors
    /// See [`Self::lineage`].
    pub async fn mark(&self, key: &str, wid: u32) -> Result<Mark, LinkError> {
        Ok(Mark {
            namespace: self.namespace.clone(),
            watcher: key.to_owned(),
            wid,
            lineage: self.lineage().await?,
        })
    }

    /// Which line of kernels the one we speak to belongs to.
    ///
    /// # Errors
    /// A kernel that does not say it in `hello` did not answer.
    pub async fn lineage(&self) -> Result<Lineage, LinkError> {
        let hello = self.client.hello();
        let started_us = match hello.lineage {
            0 => self.client.call(ops::Status {}).await?.started_us,
            started_us => started_us,
        };
        Ok(Lineage {
            started_us,
            place: hello.place.clone(),
        })
    }

    /// A pidfd for a process whose exit we have not acknowledged.
    ///
    /// # Errors
    /// `not_found` when the kernel has forgotten it.
    pub async fn pidfd(&self, serial: u64, pid: i32) -> Result<OwnedFd, LinkError> {
        let request = ops::ProcessPidfd {
            serial: Serial(serial),
        };
        match self.client.call_for_descriptor(request).await {
            Ok((_, pidfd)) => Ok(pidfd),
            // Over TCP no descriptor passes. The kernel keeps the pid from being given away until
            // the exit is acknowledged, so opening it here and then seeing the process still listed
            // makes sure of it.
            Err(ClientError::Unsupported | ClientError::NoDescriptor) => {
                let pidfd = sys::pidfd_open(pid)?;
                let list = ops::ProcessList {
                    names: Vec::new(),
                    serials: vec![Serial(serial)],
                };
                let processes = self.client.call(list).await?.processes;
                if processes.is_empty() {
                    return Err(std::io::Error::from_raw_os_error(nix::libc::ESRCH).into());
                }
                Ok(pidfd)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The last lines that nobody has taken of what an ended process wrote. The kernel has taken
    /// everything out of its pipes before it tells of the end.
    ///
    /// # Errors
    /// The kernel did not answer, or refused.
    pub async fn last_lines_of(&self, serial: u64) -> Result<Vec<String>, LinkError> {
        let list = ops::ProcessList {
            names: Vec::new(),
            serials: vec![Serial(serial)],
        };
        match self.client.call(list).await?.processes.first() {
            Some(process) if has_words(process) => self.last_lines(process).await,
            _ => Ok(Vec::new()),
        }
    }

    /// Read as a follower, which only looks, on a connection of its own: the output of one process
    /// is not to come between the rest. Whoever consumes the output may take it meanwhile; the list
    /// tells, since the kernel does not. The caller bounds how long this takes.
    async fn last_lines(&self, process: &Process) -> Result<Vec<String>, LinkError> {
        let end = process.ledger.captured;
        let oldest = gone(process);
        if end - oldest > MAX_FOLLOWED_BYTES {
            return Ok(Vec::new());
        }
        let options = Options {
            client: format!("papa-manager {} last words", std::process::id()),
            ..Options::default()
        };
        let (client, mut pushes) = Client::connect(self.addresses.clone(), options).await?;
        client
            .call(ops::OutputFollow {
                names: vec![NamePattern::new(process.name.as_ref())],
                from: FollowFrom::Start,
            })
            .await?;
        let mut words = Words::after(oldest);
        while words.position < end {
            match timeout(QUIET, pushes.recv()).await {
                Ok(Some(Push::Output { header, bytes })) if header.serial == process.serial => {
                    words.take(header.start, &bytes);
                }
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(_) => {
                    let list = ops::ProcessList {
                        names: Vec::new(),
                        serials: vec![process.serial],
                    };
                    let listed = self.client.call(list).await?.processes;
                    let Some(listed) = listed.first() else {
                        break;
                    };
                    words.skip_to(gone(listed));
                }
            }
        }
        Ok(lines_of(&words.bytes, words.start > 0))
    }

    /// The exit of a process is known and dealt with. With `discard` its output is wanted by
    /// nobody.
    ///
    /// # Errors
    /// The connection's queue stays full.
    pub async fn acknowledge_exit(&self, serial: u64, discard: bool) -> Result<(), LinkError> {
        let serials = vec![Serial(serial)];
        if discard {
            // Answers `not_found` when the acknowledgement alone was enough; then there is nothing
            // left to do.
            let acknowledge = ops::ExitAck {
                serials: serials.clone(),
            };
            let remove = ops::ProcessRemove {
                serials,
                ..ops::ProcessRemove::default()
            };
            for result in [
                self.client.call(acknowledge).await.map(drop),
                self.client.call(remove).await.map(drop),
            ] {
                match result {
                    Err(error) if error.code() == Some(ErrorCode::NotFound) => {}
                    other => other?,
                }
            }
            return Ok(());
        }
        self.client.call(ops::ExitAck { serials }).await?;
        Ok(())
    }

    fn everything(&self) -> NamePattern {
        NamePattern::new(&format!("{}.*", self.namespace))
    }
}

/// A number for everything worker `wid` is started with: another one means that a worker that runs
/// has other settings than it would get now. With `copy_env` the environment is left out: it is
/// that of whoever started the manager, and differs each time.
#[must_use]
pub fn settings(watcher: &WatcherConfig, namespace: &str, wid: u32) -> Option<u64> {
    let request = process_request(watcher, render_worker(watcher, namespace, wid)).ok()?;
    digest(watcher, &request)
}

/// FNV-1a, which is the same in every build.
fn digest(watcher: &WatcherConfig, request: &ops::ProcessMake) -> Option<u64> {
    let mut value = serde_json::to_value(request).ok()?;
    let copied = watcher.options.get("copy_env");
    let copied = copied.is_some_and(|text| scalar::boolean(text) == Ok(true));
    if copied && let Some(fields) = value.as_object_mut() {
        fields.remove("env");
    }
    // These follow from `uid`, and workers of managers that did not set them are not outdated.
    if let Some(env) = value
        .get_mut("env")
        .and_then(serde_json::Value::as_object_mut)
    {
        for name in &watcher.account_env {
            env.remove(*name);
        }
    }
    let hash = value
        .to_string()
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
    Some(hash)
}

/// Whether an ended process has output that nobody has taken.
fn has_words(process: &Process) -> bool {
    !process.running && process.ledger.captured > gone(process)
}

/// The first position of a process's output that the kernel still has.
fn gone(process: &Process) -> u64 {
    let ledger = &process.ledger;
    ledger.acknowledged.saturating_add(ledger.dropped)
}

/// Output as it is read: `bytes` are those from `start` to `position`.
#[derive(Debug)]
struct Words {
    start: u64,
    position: u64,
    bytes: Vec<u8>,
}

impl Words {
    fn after(position: u64) -> Self {
        Self {
            start: position,
            position,
            bytes: Vec::new(),
        }
    }

    /// Takes what is new of `bytes`, which begin at `at`: after a reconnection everything the
    /// kernel still has comes again, in pieces that may be cut elsewhere.
    fn take(&mut self, at: u64, bytes: &[u8]) {
        self.skip_to(at);
        let known = usize::try_from(self.position - at).unwrap_or(usize::MAX);
        let new = bytes.get(known..).unwrap_or_default();
        self.bytes.extend_from_slice(new);
        self.position += new.len() as u64;
    }

    /// What is before `position` and has not come was taken or dropped: a line does not go over it.
    fn skip_to(&mut self, position: u64) {
        if position > self.position {
            *self = Self::after(position);
        }
    }
}

fn socket_request(socket: &SocketConfig, namespace: &str) -> Result<ops::SocketMake, LinkError> {
    let mut request = ops::SocketMake::new(Name::new(&socket.kernel_name(namespace))?);
    request.family = Some(socket.family);
    request.socket_type = socket.kind;
    request.backlog = Some(socket.backlog);
    request.path = socket
        .path
        .as_ref()
        .map(|path| ByteString::from(path.clone().into_os_string()));
    request.umask = socket.umask.and_then(|bits| Umask::new(bits.into()));
    request.host = socket.host.clone();
    request.port = socket.port;
    request.interface = socket.interface.clone();
    request.reuseport = socket.reuseport;
    request.nonblocking = socket.nonblocking;
    request.replace = socket.replace && socket.path.is_some();
    request.v6only = socket.v6only;
    Ok(request)
}

fn process_request(
    watcher: &WatcherConfig,
    spec: WorkerSpec,
) -> Result<ops::ProcessMake, LinkError> {
    let argv = spec.argv.into_iter().map(ByteString::from).collect();
    let mut request = ops::ProcessMake::new(Name::new(&spec.name)?, argv);
    request.env = Environment(
        spec.env
            .into_iter()
            .filter_map(|(name, value)| match name.into_string() {
                Ok(name) => Some((name, ByteString::from(value))),
                Err(name) => {
                    tracing::warn!(variable = ?name, "ignoring an environment variable whose name is not UTF-8");
                    None
                }
            })
            .collect(),
    );
    request.working_dir = Some(ByteString::from(spec.working_dir.into_os_string()));
    request.uid = spec.uid.map(account);
    request.gid = spec.gid.map(account);
    request.umask = spec.umask.and_then(|bits| Umask::new(bits.into()));
    request.rlimits = spec
        .rlimits
        .into_iter()
        .map(|(name, value)| {
            let limit = match value {
                RlimitValue::Limit(limit) => Some(limit),
                RlimitValue::Infinity => None,
            };
            (name, Rlimit::both(limit))
        })
        .collect();
    let sockets: Result<Vec<Name>, NameError> =
        spec.sockets.iter().map(|name| Name::new(name)).collect();
    request.sockets = Sockets::Named(sockets?);
    request.stdin = match spec.stdin {
        WorkerInput::Null => Input::Null,
        WorkerInput::Socket(name) => Input::Socket(Name::new(&name)?),
    };
    request.stdout = match spec.stdout {
        WorkerOutput::Pipe => Stdout::Pipe,
        WorkerOutput::Null => Stdout::Null,
    };
    request.stderr = match spec.stderr {
        WorkerOutput::Pipe => Stderr::Pipe,
        WorkerOutput::Null => Stderr::Null,
    };
    request.verbatim = spec.verbatim;
    if !watcher.is_logged() {
        request.overflow = Overflow::DropOldest;
        request.reel_bytes = Some(ByteSize(UNLOGGED_REEL_BYTES));
    }
    Ok(request)
}

fn account(identity: Identity) -> Account {
    match identity {
        Identity::Name(name) => Account::Name(name),
        Identity::Number(number) => Account::Id(number),
    }
}
