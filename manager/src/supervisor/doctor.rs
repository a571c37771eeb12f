//! What `doctor` looks at and how it judges.
//!
//! Owns the findings and their words. What the loop knew comes in as a value, so that judging is
//! pure; asking the kernel and reading the file again is `examine`'s, on a task of its own.

use std::collections::BTreeMap;
use std::sync::Arc;

use papa_client::ClientError;
use papa_protocol::json::reply::{ClaimInfo, Held};
use papa_protocol::json::request as ops;
use papa_protocol::json::status::StatusReply;
use papa_protocol::name::NamePattern;
use papa_protocol::process::Process;

use crate::config::change::is_added;
use crate::config::diff::diff;
use crate::config::{self, Config, ConfigErrors, WatcherConfig};
use crate::control::message::{DoctorReply, Finding};
use crate::kernel_link::KernelLink;
use crate::orphan::Orphan;
use crate::tree::{Member, describe, strays};
use papa_control::findings::{MAX_ALIKE, judge_ledgers, listed, notice, ok, problem, running};

/// What the loop knew.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) config: Arc<Config>,
    pub(super) kernel_trouble: Option<String>,
    /// Sockets that cannot be made, and why.
    pub(super) socket_troubles: BTreeMap<String, String>,
    pub(super) log_troubles: Vec<String>,
    /// What the kernel does not take for a successor.
    pub(super) saves_trouble: Option<String>,
    /// What earlier kernels left running.
    pub(super) orphans: Vec<Orphan>,
    pub(super) watchers: Vec<SeenWatcher>,
}

/// What the loop knew of one watcher.
#[derive(Debug)]
pub(super) struct SeenWatcher {
    pub(super) config: Arc<WatcherConfig>,
    /// Workers wanted now.
    pub(super) count: u32,
    /// Options set at run time.
    pub(super) set: Vec<String>,
    pub(super) message: Option<String>,
    /// It was given up, pauses after too many ends, or ends again and again.
    pub(super) failing: bool,
    /// Workers that are still to be replaced.
    pub(super) older: usize,
}

/// What the kernel said.
#[derive(Debug)]
struct Kernel {
    status: StatusReply,
    claims: Vec<ClaimInfo>,
    processes: Vec<Process>,
    held: Vec<Held>,
    /// What its processes have started, and of which nobody can tell whose it is.
    strays: Vec<Member>,
}

/// Looks at everything.
pub(super) async fn examine(seen: Seen, link: Option<KernelLink>) -> DoctorReply {
    let mut findings = Vec::new();
    match &link {
        None => {
            let trouble = seen.kernel_trouble.as_deref();
            let trouble = trouble.unwrap_or("not connected");
            let text = format!("{trouble}; if none runs, `papactl up FILE` starts one");
            findings.push(problem("kernel", text));
        }
        Some(link) => match ask(link, &seen.config.namespace).await {
            Ok(kernel) => judge_kernel(&seen, &kernel, &mut findings),
            Err(error) => findings.push(problem("kernel", format!("it does not answer: {error}"))),
        },
    }
    for (socket, reason) in &seen.socket_troubles {
        let text = format!("{socket}: {reason}; its watchers wait until it can be made");
        findings.push(problem("socket", text));
    }
    if let Some(trouble) = &seen.saves_trouble {
        findings.push(problem("state", trouble));
    }
    judge_orphans(&seen, &mut findings);
    judge_watchers(&seen, &mut findings);
    let path = seen.config.path.clone();
    let around = seen.config.base.around.clone();
    // Reading may take long where files are far away.
    let read = tokio::task::spawn_blocking(move || {
        config::load(&path, &around.again()).map_err(|errors: ConfigErrors| errors.listed())
    });
    let read = match read.await {
        Ok(read) => read,
        Err(error) => Err(error.to_string()),
    };
    judge_file(&seen.config, read.as_ref(), &mut findings);
    DoctorReply { findings }
}

async fn ask(link: &KernelLink, namespace: &str) -> Result<Kernel, ClientError> {
    let ours = || vec![NamePattern::new(&format!("{namespace}.*"))];
    let client = link.client();
    let claims = client.call(ops::ClaimList {}).await?.claims;
    let list = ops::ProcessList {
        names: ours(),
        ..ops::ProcessList::default()
    };
    let processes = client.call(list).await?.processes;
    let held = client.call(ops::HoldList { names: ours() }).await?.held;
    // Looked for before all are listed: who was started meanwhile is in the list.
    let now = client.call(ops::Status {}).await?;
    let (pid, keeper) = (now.pid.cast_signed(), now.keeper.cast_signed());
    let looked = tokio::task::spawn_blocking(move || strays::find(pid, keeper));
    let looked = looked.await.unwrap_or_default();
    let mut strays: Vec<Member> = looked.iter().map(strays::Stray::member).collect();
    let all = ops::ProcessList {
        names: vec![NamePattern::new("*")],
        ..ops::ProcessList::default()
    };
    let all = client.call(all).await?.processes;
    // Last, so that its sums hold what the processes had.
    let status = client.call(ops::Status {}).await?;
    strays.retain(|stray| {
        all.iter()
            .all(|process| process.pid != stray.pid.unsigned_abs())
    });
    Ok(Kernel {
        status,
        claims,
        processes,
        held,
        strays,
    })
}

fn judge_kernel(seen: &Seen, kernel: &Kernel, findings: &mut Vec<Finding>) {
    let status = &kernel.status;
    findings.push(running(status));
    let troubled = kernel.processes.iter().filter_map(|process| {
        let trouble = process.trouble.as_ref()?;
        Some(format!(
            "{} (pid {}) waits: {trouble}",
            process.name, process.pid
        ))
    });
    let troubled: Vec<String> = troubled.collect();
    for text in troubled.iter().take(MAX_ALIKE) {
        findings.push(problem("output", text.clone()));
    }
    if troubled.len() > MAX_ALIKE {
        let more = troubled.len() - MAX_ALIKE;
        findings.push(problem("output", format!("{more} more processes wait")));
    }
    if status.skipped_records > 0 {
        findings.push(problem(
            "kernel",
            format!(
                "{} journal records could not be recovered; what they described may be missing",
                status.skipped_records
            ),
        ));
    }
    if let Some(limit) = status.file_size_limit {
        findings.push(notice(
            "kernel",
            format!(
                "its files may have {limit} bytes at most (ulimit -f), so that it keeps less output and logging costs more; \
                 start papa with ulimit -f unlimited"
            ),
        ));
    }
    judge_claims(seen, &kernel.claims, findings);
    judge_ledgers(&kernel.processes, &status.ledger, findings);
    judge_strangers(seen, &kernel.processes, findings);
    if !kernel.strays.is_empty() {
        let text = format!(
            "of these it cannot be told which worker has started them (their parent is gone, session and environment are their own): {}; `papactl down` ends them",
            describe(&kernel.strays)
        );
        findings.push(notice("processes", text));
    }
    let held: Vec<String> = kernel
        .held
        .iter()
        .map(|held| format!("{} ({})", held.name, held.kind))
        .collect();
    let count = held.len();
    findings.push(ok("held", format!("{count} descriptors{}", listed(&held))));
}

fn judge_orphans(seen: &Seen, findings: &mut Vec<Finding>) {
    for orphan in seen.orphans.iter().take(MAX_ALIKE) {
        let name = format!("orphan {}.{}", orphan.mark.watcher, orphan.mark.wid);
        let text = format!(
            "pid {}, {} s old, was started by an earlier kernel and runs on: {}; `papactl down` ends it",
            orphan.pid,
            orphan.age.as_secs(),
            orphan.command
        );
        findings.push(problem(&name, text));
    }
    if let Some(more) = seen
        .orphans
        .len()
        .checked_sub(MAX_ALIKE)
        .filter(|more| *more > 0)
    {
        findings.push(problem("orphans", format!("{more} more")));
    }
}

fn judge_claims(seen: &Seen, claims: &[ClaimInfo], findings: &mut Vec<Finding>) {
    let namespace = seen.config.namespace.as_str();
    let own = claims
        .iter()
        .find(|claim| claim.namespace.as_str() == namespace);
    findings.push(match own {
        Some(claim) if claim.live => ok(
            "claim",
            format!(
                "{namespace} is held by {:?}, epoch {}",
                claim.holder, claim.epoch
            ),
        ),
        Some(claim) => problem(
            "claim",
            format!("{namespace} is vacant; it was held by {:?}", claim.holder),
        ),
        None => problem("claim", format!("{namespace} is claimed by nobody")),
    });
    for claim in claims
        .iter()
        .filter(|claim| claim.namespace.as_str() != namespace && !claim.live)
        .take(MAX_ALIKE)
    {
        let text = format!(
            "{} is vacant: its manager {:?} is gone",
            claim.namespace, claim.holder
        );
        findings.push(notice("claim", text));
    }
}

fn judge_strangers(seen: &Seen, processes: &[Process], findings: &mut Vec<Finding>) {
    // By name: a worker may have been started since the loop was looked at.
    let namespace = &seen.config.namespace;
    let is_worker = |process: &Process| {
        seen.watchers.iter().any(|watcher| {
            watcher
                .config
                .worker_number(namespace, process.name.as_str())
                .is_some()
        })
    };
    let strangers: Vec<String> = processes
        .iter()
        .filter(|process| process.running && !is_worker(process))
        .map(|process| format!("{} (pid {})", process.name, process.pid))
        .collect();
    if !strangers.is_empty() {
        let text = format!("no watcher knows these processes{}", listed(&strangers));
        findings.push(notice("processes", text));
    }
}

fn judge_watchers(seen: &Seen, findings: &mut Vec<Finding>) {
    for trouble in &seen.log_troubles {
        findings.push(problem("logs", trouble.clone()));
    }
    if seen.log_troubles.is_empty() {
        findings.push(ok("logs", "no log file is in trouble"));
    }
    let mut drift = false;
    for watcher in &seen.watchers {
        let name = &watcher.config.name;
        let about = format!("watcher:{name}");
        if let Some(message) = &watcher.message {
            let level = if watcher.failing { problem } else { notice };
            findings.push(level(&about, message.clone()));
        }
        if watcher.older > 0 {
            let text = format!("{} workers of an older generation still run", watcher.older);
            findings.push(notice(&about, text));
        }
        let file = seen
            .config
            .watcher(name)
            .filter(|watcher| !is_added(watcher));
        match file {
            None => findings.push(notice(&about, "was added at run time and is in no file")),
            Some(file) if file.numprocesses != watcher.count => {
                let text = format!(
                    "numprocesses is {}, the file says {}",
                    watcher.count, file.numprocesses
                );
                findings.push(notice(&about, text));
            }
            Some(_) => {}
        }
        if !watcher.set.is_empty() {
            let text = format!("set at run time: {}", watcher.set.join(", "));
            findings.push(notice(&about, text));
        }
        drift |=
            file.is_none_or(|file| file.numprocesses != watcher.count) || !watcher.set.is_empty();
    }
    if !drift {
        findings.push(ok("drift", "nothing was set at run time"));
    }
}

fn judge_file(old: &Config, read: Result<&Config, &String>, findings: &mut Vec<Finding>) {
    let about = "file";
    match read {
        Err(errors) => {
            for line in errors.lines().take(MAX_ALIKE) {
                let text = format!("{line}; what runs is as it was read before");
                findings.push(problem(about, text));
            }
        }
        Ok(new) => {
            // What was added at run time is no difference of the file.
            let mut old = old.clone();
            let all = std::mem::take(&mut old.watchers);
            let of_file = all.into_iter().filter(|watcher| !is_added(watcher));
            old.watchers = of_file.collect();
            let plan = diff(&old, new);
            let mut parts: BTreeMap<&str, usize> = BTreeMap::new();
            let watchers = &plan.watchers;
            let sockets = &plan.sockets;
            for (what, count) in [
                ("keys of [circus]", plan.manager.len() + plan.settings.len()),
                (
                    "sockets",
                    sockets.added.len() + sockets.removed.len() + sockets.changed.len(),
                ),
                (
                    "watchers",
                    watchers.added.len() + watchers.removed.len() + watchers.changed.len(),
                ),
            ] {
                if count > 0 {
                    parts.insert(what, count);
                }
            }
            let path = new.path.display();
            if parts.is_empty() {
                findings.push(ok(about, format!("{path} is as it was read")));
            } else {
                let parts: Vec<String> = parts
                    .iter()
                    .map(|(what, count)| format!("{what}: {count}"))
                    .collect();
                findings.push(notice(
                    about,
                    format!(
                        "{path} has changed since it was read (differing {}); `papactl reloadconfig \
                         --plan` shows how",
                        parts.join(", ")
                    ),
                ));
            }
        }
    }
}
