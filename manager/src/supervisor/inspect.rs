//! Requests that only look, but further than the loop sees: into the kernel, `/proc`, the
//! configuration file.
//!
//! Owns one task per request, with what the loop knew when it began; changes nothing.

use std::collections::BTreeMap;
use std::time::Instant;

use papa_protocol::json::request as ops;
use papa_protocol::name::NamePattern;
use serde_json::{Map, Value, json};
use tokio::sync::oneshot;

use crate::control::message::{Errno, Reply, Request, RequestError, SocketEntry, SocketsReply};
use crate::kernel_link::{ASIDE, KernelLink};
use crate::procinfo::{Info, Statistics, Subject};
use crate::supervisor::Supervisor;
use crate::supervisor::doctor::{self, Seen, SeenWatcher};
use crate::supervisor::tickets::answer;
use crate::watcher::Watcher;

/// What is said where the kernel would have to be asked.
const NOT_CONNECTED: &str = "the kernel is not connected";

impl Supervisor {
    /// Answers with the sockets of our namespace.
    pub(super) fn list_sockets(&self, request: Request, reply: oneshot::Sender<Reply>) {
        let Some(link) = self.connection.sound_link().cloned() else {
            let error = RequestError::new(Errno::Os, NOT_CONNECTED);
            return answer::<()>(request, reply, Err(&error));
        };
        let namespace = self.config.namespace.clone();
        let missing = self.missing_sockets();
        tokio::spawn(async move {
            let sockets = sockets(&link, &namespace).await.map(|mut reply| {
                let there = std::mem::take(&mut reply.sockets);
                let is_there =
                    |entry: &SocketEntry| there.iter().any(|other| other.name == entry.name);
                let missing = missing.into_iter().filter(|entry| !is_there(entry));
                let missing: Vec<SocketEntry> = missing.collect();
                reply.sockets = there.into_iter().chain(missing).collect();
                reply
            });
            answer(request, reply, sockets.as_ref());
        });
    }

    /// Those of the file that could not be made.
    fn missing_sockets(&self) -> Vec<SocketEntry> {
        let sockets = self.config.sockets.iter();
        sockets
            .filter_map(|socket| {
                let trouble = self.sockets.troubles().get(&socket.name)?.clone();
                Some(SocketEntry {
                    fd: None,
                    name: socket.name.clone(),
                    backlog: socket.backlog,
                    host: socket.host.clone(),
                    port: socket.port,
                    path: socket.path.as_ref().map(|path| path.display().to_string()),
                    trouble: Some(trouble),
                })
            })
            .collect()
    }

    /// Answers with what workers use.
    pub(super) fn stats(
        &mut self,
        name: Option<&str>,
        process: Option<u32>,
        request: Request,
        reply: oneshot::Sender<Reply>,
    ) {
        let meant: Vec<&Watcher> = match name.map(|name| self.named(name)).transpose() {
            Ok(Some(watcher)) => vec![watcher],
            Ok(None) => self.watchers.values().collect(),
            Err(error) => return answer::<()>(request, reply, Err(&error)),
        };
        let asked =
            |subject: &Subject| process.is_none_or(|pid| u32::try_from(subject.pid) == Ok(pid));
        let subjects: Vec<(String, Subject)> = meant
            .iter()
            .flat_map(|watcher| {
                let name = &watcher.config().name;
                let workers = watcher.workers().iter();
                workers.filter_map(move |(wid, worker)| {
                    let process = worker.process()?;
                    let subject = Subject::worker(process.pid, *wid, process.started_us);
                    Some((name.clone(), subject))
                })
            })
            .filter(|(_, subject)| asked(subject))
            .collect();
        let names: Vec<String> = meant
            .iter()
            .map(|watcher| watcher.config().name.clone())
            .collect();
        if let Some(pid) = process
            && subjects.is_empty()
        {
            let error = RequestError::new(
                Errno::Message,
                format!("process {pid}: expected the pid of one of this watcher's workers"),
            );
            return answer::<()>(request, reply, Err(&error));
        }
        let one = name.map(str::to_owned);
        let statistics = self.statistics();
        tokio::spawn(async move {
            let pids = subjects.iter().map(|(_, subject)| *subject).collect();
            let infos = statistics.look(pids).await;
            let body = stats_body(one.as_deref(), process, &names, &subjects, &infos);
            answer(request, reply, Ok(&body));
        });
    }

    /// Answers with what we use.
    pub(super) fn own_stats(&mut self, request: Request, reply: oneshot::Sender<Reply>) {
        let statistics = self.statistics();
        tokio::spawn(async move {
            let infos = statistics.look(vec![Subject::own()]).await;
            answer(request, reply, Ok(&json!({ "info": infos.first() })));
        });
    }

    /// The one that answers; it is started by the first question.
    fn statistics(&mut self) -> Statistics {
        self.threads
            .statistics
            .get_or_insert_with(Statistics::start)
            .clone()
    }

    /// Answers with everything that is not as it should be.
    pub(super) fn examine(&self, request: Request, reply: oneshot::Sender<Reply>) {
        let seen = Seen {
            config: self.config.clone(),
            kernel_trouble: self.connection.trouble().map(str::to_owned),
            log_troubles: self.output.troubles().to_vec(),
            saves_trouble: self.outbox.trouble(Instant::now()),
            socket_troubles: self.sockets.troubles().clone(),
            orphans: self.orphans_of_kernels.all().cloned().collect(),
            watchers: self.watchers.values().map(seen).collect(),
        };
        let link = self.connection.sound_link().cloned();
        tokio::spawn(async move {
            let report = doctor::examine(seen, link).await;
            answer(request, reply, Ok(&report));
        });
    }
}

fn seen(watcher: &Watcher) -> SeenWatcher {
    let kept = watcher.kept();
    let status = watcher.status(Instant::now());
    SeenWatcher {
        config: watcher.config().clone(),
        count: watcher.count(),
        set: kept.set.keys().cloned().collect(),
        message: status.message,
        failing: status.failing,
        older: watcher
            .workers()
            .values()
            .filter(|worker| worker.is_wanted() && !worker.is_fresh())
            .count(),
    }
}

async fn sockets(link: &KernelLink, namespace: &str) -> Result<SocketsReply, RequestError> {
    let list = ops::SocketList {
        names: vec![NamePattern::new(&format!("{namespace}.*"))],
    };
    let answered = link.client().call(list).await;
    let listed =
        answered.map_err(|error| RequestError::new(Errno::Os, format!("the kernel: {error}")))?;
    let mut sockets: Vec<SocketEntry> = listed
        .sockets
        .into_iter()
        .filter_map(|socket| {
            let name = socket.name.as_str();
            let own = name
                .strip_prefix(namespace)
                .and_then(|rest| rest.strip_prefix('.'));
            // One that only a change under way keeps open is in no file.
            if own.is_some_and(|own| own.starts_with(ASIDE)) {
                return None;
            }
            Some(SocketEntry {
                fd: socket.fileno,
                name: own.unwrap_or(name).to_owned(),
                backlog: socket.backlog,
                host: socket.host.filter(|_| socket.path.is_none()),
                port: socket.port.filter(|_| socket.path.is_none()),
                path: socket
                    .path
                    .map(|path| String::from_utf8_lossy(path.as_bytes()).into_owned()),
                trouble: None,
            })
        })
        .collect();
    sockets.sort_by(|a, b| (a.fd, &a.name).cmp(&(b.fd, &b.name)));
    Ok(SocketsReply { sockets })
}

/// Circus's three shapes of an answer to `stats`.
fn stats_body(
    name: Option<&str>,
    process: Option<u32>,
    names: &[String],
    subjects: &[(String, Subject)],
    infos: &[Info],
) -> Value {
    if let (Some(pid), Some(info)) = (process, infos.first()) {
        return json!({"process": pid, "info": info});
    }
    let mut by_watcher: BTreeMap<&str, Map<String, Value>> = names
        .iter()
        .map(|name| (name.as_str(), Map::new()))
        .collect();
    for ((watcher, subject), info) in subjects.iter().zip(infos) {
        by_watcher
            .entry(watcher)
            .or_default()
            .insert(subject.pid.to_string(), json!(info));
    }
    match name {
        Some(name) => json!({"name": name, "info": by_watcher.into_values().next()}),
        None => json!({ "infos": by_watcher }),
    }
}
