//! What `doctor` looks at and how it judges.
//!
//! Owns the findings and their words. What the loop knew comes in as a value, so that judging is pure; asking the kernel
//! and reading the file again is `examine`'s, on a task of its own.

use std::collections::BTreeMap;
use std::sync::Arc;

use papa_protocol::client::ClientError;
use papa_protocol::json::reply::{ClaimInfo, Held};
use papa_protocol::json::request as ops;
use papa_protocol::json::status::StatusReply;
use papa_protocol::name::NamePattern;
use papa_protocol::process::Process;

use crate::config::change::is_added;
use crate::config::diff::diff;
use crate::config::{self, Config, ConfigErrors, Surroundings, WatcherConfig};
use crate::control::message::{DoctorReply, Finding, Level};
use crate::kernel_link::KernelLink;

/// Most findings of one kind that are told one by one.
const MAX_ALIKE: usize = 20;

/// What the loop knew.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) config: Arc<Config>,
    pub(super) kernel_trouble: Option<String>,
    pub(super) log_troubles: Vec<String>,
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
}

/// Looks at everything.
pub(super) async fn examine(seen: Seen, link: Option<KernelLink>) -> DoctorReply {
    let mut findings = Vec::new();
    match &link {
        None => {
            let trouble = seen.kernel_trouble.as_deref();
            findings.push(problem("kernel", trouble.unwrap_or("not connected")));
        }
        Some(link) => match ask(link, &seen.config.namespace).await {
            Ok(kernel) => judge_kernel(&seen, &kernel, &mut findings),
            Err(error) => findings.push(problem("kernel", format!("it does not answer: {error}"))),
        },
    }
    judge_watchers(&seen, &mut findings);
    let path = seen.config.path.clone();
    // Reading may take long where files are far away.
    let read = tokio::task::spawn_blocking(move || {
        Surroundings::current()
            .map_err(|error| error.to_string())
            .and_then(|around| {
                config::load(&path, &around).map_err(|errors: ConfigErrors| errors.to_string())
            })
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
    Ok(Kernel {
        status: client.call(ops::Status {}).await?,
        claims: client.call(ops::ClaimList {}).await?.claims,
        processes: client
            .call(ops::ProcessList {
                names: ours(),
                ..ops::ProcessList::default()
            })
            .await?
            .processes,
        held: client.call(ops::HoldList { names: ours() }).await?.held,
    })
}

fn judge_kernel(seen: &Seen, kernel: &Kernel, findings: &mut Vec<Finding>) {
    let status = &kernel.status;
    findings.push(ok(
        "kernel",
        format!(
            "pid {}, version {}, start number {}, {} processes run",
            status.pid, status.version, status.incarnation, status.counts.running
        ),
    ));
    if status.skipped_records > 0 {
        findings.push(problem(
            "kernel",
            format!(
                "{} journal records could not be recovered; what they described may be missing",
                status.skipped_records
            ),
        ));
    }
    judge_claims(seen, &kernel.claims, findings);
    judge_ledgers(&kernel.processes, findings);
    judge_strangers(seen, &kernel.processes, findings);
    let held: Vec<String> = kernel
        .held
        .iter()
        .map(|held| format!("{} ({})", held.name, held.kind))
        .collect();
    let count = held.len();
    findings.push(ok("held", format!("{count} descriptors{}", listed(&held))));
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

fn judge_ledgers(processes: &[Process], findings: &mut Vec<Finding>) {
    let mut sums = [0_u64; 4];
    let mut wrong = Vec::new();
    let mut gaps = Vec::new();
    for process in processes {
        let ledger = &process.ledger;
        let gone = ledger.acknowledged.saturating_add(ledger.dropped);
        let kept = ledger.captured.checked_sub(gone);
        match kept {
            None => wrong.push(format!(
                "{}: captured {}, acknowledged {}, dropped {}",
                process.name, ledger.captured, ledger.acknowledged, ledger.dropped
            )),
            Some(_) if ledger.dropped > 0 => {
                gaps.push(format!("{}: {} bytes", process.name, ledger.dropped));
            }
            Some(_) => {}
        }
        for (sum, value) in sums.iter_mut().zip([
            ledger.captured,
            ledger.acknowledged,
            ledger.dropped,
            kept.unwrap_or(0),
        ]) {
            *sum = sum.saturating_add(value);
        }
    }
    let [captured, acknowledged, dropped, kept] = sums;
    if wrong.is_empty() {
        findings.push(ok(
            "ledger",
            format!(
                "adds up for all {} processes: {captured} bytes captured = {acknowledged} \
                 acknowledged + {dropped} dropped + {kept} kept",
                processes.len()
            ),
        ));
    }
    for text in wrong.into_iter().take(MAX_ALIKE) {
        findings.push(problem("ledger", format!("does not add up for {text}")));
    }
    if !gaps.is_empty() {
        let text = format!("output was dropped unread{}", listed(&gaps));
        findings.push(notice("ledger", text));
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
            findings.push(notice(&about, message.clone()));
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

/// `: a, b`, not more than a few.
fn listed(all: &[String]) -> String {
    if all.is_empty() {
        return String::new();
    }
    let more = match all.len().saturating_sub(MAX_ALIKE) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let some: Vec<&str> = all.iter().take(MAX_ALIKE).map(String::as_str).collect();
    format!(": {}{more}", some.join(", "))
}

fn ok(about: &str, text: impl Into<String>) -> Finding {
    finding(Level::Ok, about, text)
}

fn notice(about: &str, text: impl Into<String>) -> Finding {
    finding(Level::Notice, about, text)
}

fn problem(about: &str, text: impl Into<String>) -> Finding {
    finding(Level::Problem, about, text)
}

fn finding(level: Level, about: &str, text: impl Into<String>) -> Finding {
    Finding {
        level,
        about: about.to_owned(),
        text: text.into(),
    }
}
