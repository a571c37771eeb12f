//! Workers: started, held by pidfd and acknowledged in the kernel.
//!
//! Owns the request that a worker's settings become, and the digest by which a running worker is
//! compared with them. Leaves to others: which worker is wanted (`watcher`), what its settings are
//! (`papa_config`).

use std::time::Duration;

use papa_processes::mark::limits_of;
use papa_protocol::json::reply::ErrorCode;
use papa_protocol::json::request as ops;
use papa_protocol::name::{Name, NameError, NamePattern};
use papa_protocol::process::{Environment, Input, Overflow, Process, Rlimit, Sockets};
use papa_protocol::size::ByteSize;
use papa_protocol::socket::Umask;
use papa_protocol::text::ByteString;

use super::{KernelLink, LinkError};
use crate::config::{WatcherConfig, WorkerSpec, render_worker, scalar};
use crate::note::Note;
use crate::probe::ready::Means;

/// Output kept of a worker without a log: enough to see how it ended.
const UNLOGGED_REEL_BYTES: u64 = 256 * 1024;

/// The limit that is a worker's mark where its environment is cleared, as a watcher's key
/// `rlimit_NAME` names it.
const MARK_LIMIT: &str = "rttime";
/// How long the kernel may take to tell its process id.
const STATUS_PATIENCE: Duration = Duration::from_millis(500);

impl KernelLink {
    /// Starts worker `wid`, or finds it started. The answer may be a process that has ended and
    /// still has the name. `placed` is `watcher`, or the same in another release: the worker starts
    /// there.
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
        let mut spec = render_worker(placed, self.namespace(), wid);
        spec.sockets = self.to_inherit(placed);
        let mut request = process_request(placed, spec)?;
        let settings = settings(watcher, self.namespace(), wid);
        // The mark is no part of the settings: workers of older managers have none and are up to
        // date all the same.
        let mark = self.ours.mark(&watcher.key, wid).await?;
        for (variable, value) in mark.variables() {
            let environment = &mut request.env.0;
            environment.insert(variable.to_owned(), ByteString::from(value));
        }
        if !request.rlimits.contains_key(MARK_LIMIT)
            && let Some((soft, None)) = self.inherited_limit().await
        {
            let hard = Some(mark.limit());
            let soft = soft.or(hard);
            let limit = Rlimit { soft, hard };
            request.rlimits.insert(MARK_LIMIT.to_owned(), limit);
        }
        if let Some((variable, value)) = means.variable {
            let environment = &mut request.env.0;
            environment.insert(variable.to_owned(), ByteString::from(value));
        }
        request.descriptors.extend(means.descriptor);
        // The manager's own mask is no setting of the file: workers of older managers, which did
        // not set it, are up to date.
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
        match self.client().call(request).await {
            Ok(made) => Ok(made.process),
            Err(error) if error.code() == Some(ErrorCode::Exists) => {
                // The configuration changed while the worker ran; it takes effect with a restart.
                tracing::warn!(process = %name, %error, "keeping a worker that runs with other settings");
                let list = ops::ProcessList {
                    names: vec![NamePattern::new(&name)],
                    serials: Vec::new(),
                };
                let processes = self.client().call(list).await?.processes;
                let running = processes.iter().position(|process| process.running);
                processes
                    .into_iter()
                    .nth(running.unwrap_or(0))
                    .ok_or(LinkError::Client(error))
            }
            Err(error) => Err(error.into()),
        }
    }
}

impl KernelLink {
    /// The limits, soft and hard, that a worker has from the kernel: only one without a hard limit
    /// can have its mark for one. The kernel is asked for its process id only if it is another than
    /// the one that was connected to, so that requests to start keep their order.
    async fn inherited_limit(&self) -> Option<(Option<u64>, Option<u64>)> {
        let connected = i32::try_from(self.client().hello().pid).ok();
        match connected.and_then(limits_of) {
            None => limits_of(self.process_now(STATUS_PATIENCE).await),
            limits => limits,
        }
    }
}

/// Digest of everything worker `wid` is started with. A running worker with another digest has
/// outdated settings. With `copy_env` the environment is left out: it is that of whoever started the
/// manager, and differs each time.
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
    // These follow from `uid`; workers of older managers, which did not set them, are up to date.
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
    request.uid = spec.uid;
    request.gid = spec.gid;
    request.umask = spec.umask.and_then(|bits| Umask::new(bits.into()));
    request.rlimits = spec.rlimits;
    let sockets: Result<Vec<Name>, NameError> =
        spec.sockets.iter().map(|name| Name::new(name)).collect();
    request.sockets = Sockets::Named(sockets?);
    request.stdin = match spec.stdin_socket {
        None => Input::Null,
        Some(name) => Input::Socket(Name::new(&name)?),
    };
    request.stdout = spec.stdout;
    request.stderr = spec.stderr;
    request.verbatim = spec.verbatim;
    if !watcher.is_logged() {
        request.overflow = Overflow::DropOldest;
        request.reel_bytes = Some(ByteSize(UNLOGGED_REEL_BYTES));
    }
    Ok(request)
}
