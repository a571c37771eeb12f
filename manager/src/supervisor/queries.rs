//! Requests that only look: answered at once from what the loop knows.
//!
//! Owns what is shown of the manager's state, in Circus's shapes; changes nothing.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use papa_client::ClientError;
use papa_config::worker_of;
use papa_protocol::json::request as ops;
use papa_protocol::name::NamePattern;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::config::{OrphanPolicy, WatcherConfig};
use crate::control::message::{
    Command, Errno, ListReply, LogsReply, ManagerStatus, NumProcessesReply, OptionsReply, Reply,
    Request, RequestError, StatusReply, WatcherLogs, WatcherState, WatcherStatus, log_files,
};
use crate::kernel_link::KernelLink;
use crate::supervisor::tickets::answer;
use crate::supervisor::{Supervisor, shown_options};
use crate::watcher::Watcher;

/// How long `status` waits for the kernel to say which process it is. It does nothing slow; one
/// that stands still must not keep anybody Watchers remembered that are gone; it is asked for them
/// right after a change was taken back.
const MAX_GONE: usize = 16;
/// from seeing the workers.
const KERNEL_PATIENCE: Duration = Duration::from_millis(500);

impl Supervisor {
    /// Answers a request that changes nothing.
    pub(super) fn look(&mut self, request: Request, reply: oneshot::Sender<Reply>) {
        match &request.command {
            Command::Status { name } => {
                let name = name.clone();
                self.show_status(name.as_deref(), request, reply);
            }
            Command::List { name } => {
                let list = self.list(name.as_deref());
                answer(request, reply, list.as_ref());
            }
            Command::NumProcesses { name } => {
                let count = self.count(name.as_deref());
                answer(request, reply, count.as_ref());
            }
            Command::NumWatchers => {
                let count = json!({ "numwatchers": self.watchers.len() });
                answer(request, reply, Ok(&count));
            }
            Command::Options { name } => {
                let options = self.options(name).map(|options| OptionsReply { options });
                answer(request, reply, options.as_ref());
            }
            Command::Get { name, keys } => {
                let options = self
                    .options(name)
                    .and_then(|options| shown_options::some(options, keys));
                answer(request, reply, options.as_ref());
            }
            Command::GlobalOptions { option } => {
                let options = shown_options::of_circus(&self.config, option.as_deref());
                answer(request, reply, options.as_ref());
            }
            Command::Stats { name, process, .. } => {
                let (name, process) = (name.clone(), *process);
                self.stats(name.as_deref(), process, request, reply);
            }
            Command::DStats => self.own_stats(request, reply),
            Command::ListSockets => self.list_sockets(request, reply),
            Command::Doctor => self.examine(request, reply),
            Command::Logs { name } => {
                let logs = match name {
                    Some(name) => self
                        .named(name)
                        .map(|watcher| logs_of([watcher].into_iter())),
                    None => Ok(logs_of(self.watchers.values())),
                };
                let logs = logs.map(|mut logs| {
                    logs.troubles = self.file_troubles();
                    logs.gone = self.gone();
                    logs
                });
                answer(request, reply, logs.as_ref());
            }
            other => {
                let reason = format!("{} is not available yet", other.word());
                let error = RequestError::new(Errno::Command, reason);
                answer::<()>(request, reply, Err(&error));
            }
        }
    }

    fn options(&self, name: &str) -> Result<BTreeMap<String, Value>, RequestError> {
        let watcher = self.named(name)?;
        Ok(shown_options::of_watcher(watcher.config(), watcher.count()))
    }

    pub(super) fn named(&self, name: &str) -> Result<&Watcher, RequestError> {
        self.keys
            .get(&name.to_lowercase())
            .and_then(|id| self.watchers.get(id))
            .ok_or_else(|| RequestError::unknown_watcher(name))
    }

    /// Answers with the watchers as they are now. Only the kernel knows its pid: it may have become
    /// another process while our session was handed over, without our noticing.
    fn show_status(&self, name: Option<&str>, request: Request, reply: oneshot::Sender<Reply>) {
        let mut status = match self.status(name) {
            Ok(status) => status,
            Err(error) => return answer::<()>(request, reply, Err(&error)),
        };
        let connected = self.connection.sound_link().cloned();
        let Some(link) = connected else {
            return answer(request, reply, Ok(&status));
        };
        tokio::spawn(async move {
            if let Some(manager) = &mut status.manager {
                let (pid, troubled) = kernel_pid(&link).await;
                manager.kernel_pid = pid;
                if troubled {
                    let namespace = manager.namespace.clone();
                    tell_reel_troubles(&link, &namespace, &mut status.watchers).await;
                }
            }
            answer(request, reply, Ok(&status));
        });
    }

    /// Notes a watcher that goes, for whoever asks afterwards why.
    pub(super) fn note_gone(&mut self, watcher: &Watcher) {
        if watcher.last_ends().is_empty() {
            return;
        }
        let logs = logs_of([watcher].into_iter()).logs;
        self.gone.extend(logs);
        let surplus = self.gone.len().saturating_sub(MAX_GONE);
        self.gone.drain(..surplus);
    }

    fn gone(&self) -> Vec<WatcherLogs> {
        let mut gone: Vec<WatcherLogs> = self.gone.iter().cloned().collect();
        for logs in &mut gone {
            logs.draining = self.undrained.has(&logs.name.to_lowercase());
        }
        gone
    }

    fn status(&self, name: Option<&str>) -> Result<StatusReply, RequestError> {
        let shown: Vec<&Watcher> = match name {
            Some(name) => vec![self.named(name)?],
            None => self.watchers.values().collect(),
        };
        let mut watchers: Vec<_> = shown
            .iter()
            .map(|watcher| watcher.status(Instant::now()))
            .collect();
        for status in &mut watchers {
            if !self.connection.is_connected() && status.state != WatcherState::Stopped {
                status.state = WatcherState::Starting;
            }
            for worker in &mut status.workers {
                worker.started_ticks = self.orphans_of_kernels.started(worker.serial);
            }
            let key = status.name.to_lowercase();
            status.orphans = self.orphans_of_kernels.statuses(&key);
            let policy = self.orphan_policy(&key);
            if let Some(orphans) = self.orphans_of_kernels.told(&key, policy) {
                // Orphans that are left hinder nobody; something else may.
                let hindered = status.message.take();
                let hindered = hindered.filter(|_| policy == OrphanPolicy::Leave);
                let hindered = hindered.map_or(String::new(), |message| message + "; ");
                status.message = Some(hindered + &orphans);
            } else if status.message.is_none() || !self.connection.is_connected() {
                status.message = self.trouble_of(&status.name);
            }
        }
        watchers.sort_by(|a, b| a.name.cmp(&b.name));
        let statuses: BTreeMap<String, WatcherState> = watchers
            .iter()
            .map(|status| (status.name.clone(), status.state))
            .collect();
        Ok(StatusReply {
            status: name.and_then(|_| {
                watchers
                    .first()
                    .map(|status| status.state.as_str().to_owned())
            }),
            statuses,
            watchers,
            manager: Some(self.manager_status()),
        })
    }

    /// What hinders a watcher besides its own workers: the kernel, or one of its log files.
    fn trouble_of(&self, name: &str) -> Option<String> {
        if let Some(trouble) = self.connection.trouble() {
            return Some(trouble.to_owned());
        }
        self.log_trouble_of(self.named(name).ok()?.config())
    }

    /// What hinders one of its log files.
    pub(super) fn log_trouble_of(&self, config: &WatcherConfig) -> Option<String> {
        let files: Vec<String> = [&config.stdout, &config.stderr]
            .iter()
            .filter_map(|stream| stream.place())
            .collect();
        let concerns = |trouble: &&String| {
            // One that names no file concerns all that are logged.
            let general = trouble.starts_with("logs: ") && !files.is_empty();
            let about = |file: &String| {
                trouble.starts_with(&format!("log {file} cannot be written"))
                    || trouble.starts_with(&format!("{file}: "))
            };
            general || files.iter().any(about)
        };
        self.output.troubles().iter().find(concerns).cloned()
    }

    /// Troubles by the log files they are about.
    fn file_troubles(&self) -> BTreeMap<String, String> {
        let about = |trouble: &String| {
            let path = trouble.strip_prefix("log ")?;
            let (path, _) = path.split_once(" cannot be written: ")?;
            Some((path.to_owned(), trouble.clone()))
        };
        self.output.troubles().iter().filter_map(about).collect()
    }

    fn manager_status(&self) -> ManagerStatus {
        ManagerStatus {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            config: self.config.path.display().to_string(),
            namespace: self.config.namespace.clone(),
            kernel: self
                .startup
                .addresses
                .first()
                .map(ToString::to_string)
                .unwrap_or_default(),
            kernel_pid: None,
            started: self.startup.at,
        }
    }

    fn list(&self, name: Option<&str>) -> Result<ListReply, RequestError> {
        let Some(name) = name else {
            let mut watchers: Vec<String> = self
                .watchers
                .values()
                .map(|watcher| watcher.config().key.clone())
                .collect();
            watchers.sort_unstable();
            return Ok(ListReply::Watchers { watchers });
        };
        let pids = self
            .named(name)?
            .status(Instant::now())
            .workers
            .iter()
            .map(|worker| worker.pid)
            .collect();
        Ok(ListReply::Pids { pids })
    }

    fn count(&self, name: Option<&str>) -> Result<NumProcessesReply, RequestError> {
        let of = |watcher: &Watcher| u64::from(watcher.count());
        Ok(match name {
            Some(name) => {
                let watcher = self.named(name)?;
                NumProcessesReply {
                    numprocesses: of(watcher),
                    watcher_name: Some(watcher.config().name.clone()),
                    singleton: false,
                }
            }
            None => NumProcessesReply {
                numprocesses: self.watchers.values().map(of).sum(),
                watcher_name: None,
                singleton: false,
            },
        })
    }
}

/// Which process the kernel is now; none if the connection has just gone.
async fn kernel_pid(link: &KernelLink) -> (Option<u32>, bool) {
    let client = link.client();
    let asked = tokio::time::timeout(KERNEL_PATIENCE, client.call(ops::Status {})).await;
    match asked {
        Ok(Ok(status)) => (Some(status.pid), status.counts.troubled > 0),
        Ok(Err(ClientError::Lost | ClientError::Closed)) => (None, false),
        // It stands still, or says nothing we understand: it is the one that was connected to, as
        // far as anybody knows.
        Ok(Err(_)) | Err(_) => (Some(client.hello().pid), false),
    }
}

/// Most workers of which it is told that they wait; `doctor` tells of more.
const MAX_TOLD: usize = 8;

/// Says at a watcher that the output of one of its workers cannot be stored: nothing else says why
/// the worker waits.
async fn tell_reel_troubles(link: &KernelLink, namespace: &str, watchers: &mut [WatcherStatus]) {
    let list = ops::ProcessList {
        names: vec![NamePattern::new(&format!("{namespace}.*"))],
        ..ops::ProcessList::default()
    };
    let asked = tokio::time::timeout(KERNEL_PATIENCE, link.client().call(list)).await;
    let Ok(Ok(listed)) = asked else {
        return;
    };
    let mut told = 0;
    for process in &listed.processes {
        let Some((trouble, (key, wid))) = process
            .trouble
            .as_ref()
            .zip(worker_of(namespace, &process.name))
        else {
            continue;
        };
        let is_its = |status: &&mut WatcherStatus| status.name.eq_ignore_ascii_case(key);
        if let Some(status) = watchers.iter_mut().find(is_its) {
            let before = status
                .message
                .take()
                .map_or(String::new(), |message| format!("{message}; "));
            status.message = Some(format!("{before}worker {wid} waits: {trouble}"));
            told += 1;
        }
        if told == MAX_TOLD {
            break;
        }
    }
}

/// Where the output of watchers can be read, and how their latest workers ended.
fn logs_of<'a>(watchers: impl Iterator<Item = &'a Watcher> + Clone) -> LogsReply {
    let mut reply = log_files(watchers.clone().map(|watcher| watcher.config().as_ref()));
    for (logs, watcher) in reply.logs.iter_mut().zip(watchers) {
        logs.ends = watcher.last_ends().clone();
        logs.draining = watcher.config().is_logged() && !watcher.kept().ended.is_empty();
    }
    reply
}
