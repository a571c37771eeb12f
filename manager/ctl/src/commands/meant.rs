//! Whom the names on a command line mean: watchers by name or pattern, `all`, and single workers as
//! `NAME:WID`.
//!
//! Owns the reading of such words against what runs now. A watcher that is really called `all` or
//! `web:1` comes first.
//! Source: manager/docs/papactl.md.

use std::collections::HashSet;

use papa_system::printable::printable;

use crate::cli::Common;
use crate::commands::{CommandError, status_of_all};
use papa_control::client::{ManagerClient, ManagerError};
use papa_control::message::{Matching, RequestError, Selection, StatusReply, WatcherStatus};

/// The word for every watcher.
const ALL: &str = "all";

/// One of those that are meant.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Target {
    /// A watcher, as it writes itself.
    pub(super) watcher: String,
    /// Only this worker of it.
    pub(super) worker: Option<Worker>,
}

/// A worker that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Worker {
    pub(super) wid: u32,
    pub(super) pid: u32,
}

/// Everything `words` mean, each once, in the order typed; no word means every watcher.
///
/// # Errors
/// A word that means nobody.
pub(super) fn targets(
    common: &Common,
    client: &mut ManagerClient,
    words: &[String],
) -> Result<Vec<Target>, CommandError> {
    targets_in(&status_of_all(common, client)?, words)
}

/// As [`targets`], by a status that is already there.
///
/// # Errors
/// A word that means nobody.
pub(super) fn targets_in(
    status: &StatusReply,
    words: &[String],
) -> Result<Vec<Target>, CommandError> {
    Ok(expanded(status, words)?)
}

/// The watchers `words` mean, for requests that take a selection. One plain word passes as it is:
/// the manager knows whether it means anybody.
///
/// # Errors
/// A word that means nobody, or a single worker, which `verb` does not do.
pub(super) fn selection(
    common: &Common,
    client: &mut ManagerClient,
    words: &[String],
    matching: Matching,
    verb: &str,
) -> Result<Selection, CommandError> {
    let plain = |word: &String| !word.contains(':') && !word.eq_ignore_ascii_case(ALL);
    match words {
        [] => return Ok(Selection::all()),
        [word] if matching != Matching::Glob || plain(word) => {
            return Ok(Selection {
                name: Some(word.clone()),
                matching,
                ..Selection::default()
            });
        }
        _ => {}
    }
    let status = status_of_all(common, client)?;
    let mut names = Vec::new();
    for word in words {
        if matching == Matching::Glob {
            match meaning(&status, word)? {
                Meaning::All => return Ok(Selection::all()),
                Meaning::Watchers(name) => names.push(name),
                Meaning::Worker(watcher, worker) => {
                    return Err(CommandError::Usage(one_worker(verb, &watcher.name, worker)));
                }
            }
        } else {
            let one = Selection {
                name: Some(word.clone()),
                matching,
                ..Selection::default()
            };
            one.check().map_err(ManagerError::from)?;
            if chosen(&status, &one).next().is_none() {
                return Err(unknown(word).into());
            }
            names.push(word.clone());
        }
    }
    let mut names = names.into_iter();
    let selection = Selection {
        name: names.next(),
        names: names.collect(),
        matching,
    };
    selection.check().map_err(ManagerError::from)?;
    Ok(selection)
}

/// Words that end with a worker's pid, which goes with one watcher: `web 4715`.
pub(super) fn names_and_pid(words: &[String]) -> (&[String], Option<u32>) {
    if let [_, last] = words
        && let Ok(pid) = last.parse::<u32>()
        && pid > 0
    {
        return (&words[..1], Some(pid));
    }
    (words, None)
}

fn one_worker(verb: &str, watcher: &str, worker: Worker) -> String {
    let (watcher, wid) = (printable(watcher), worker.wid);
    format!(
        "{watcher}:{wid} is one worker of {watcher}, and {verb} is for whole watchers; `papactl kill {watcher}:{wid}` ends it and starts \
         another in its place, `papactl decr {watcher}` runs one fewer"
    )
}

/// What a word means.
#[derive(Debug)]
enum Meaning<'a> {
    All,
    /// A name or pattern that means at least one.
    Watchers(String),
    Worker(&'a WatcherStatus, Worker),
}

fn meaning<'a>(status: &'a StatusReply, word: &str) -> Result<Meaning<'a>, ManagerError> {
    let exact = Selection {
        name: Some(word.to_owned()),
        matching: Matching::Simple,
        ..Selection::default()
    };
    if chosen(status, &exact).next().is_some() {
        return Ok(Meaning::Watchers(word.to_owned()));
    }
    if word.eq_ignore_ascii_case(ALL) {
        return Ok(Meaning::All);
    }
    if let Some((name, wid)) = word.rsplit_once(':') {
        // As supervisord writes all of a group.
        if wid == "*" {
            return meaning(status, name);
        }
        let simple = Selection {
            name: Some(name.to_owned()),
            matching: Matching::Simple,
            ..Selection::default()
        };
        if let Some(watcher) = chosen(status, &simple).next() {
            return Ok(Meaning::Worker(watcher, worker(watcher, wid)?));
        }
    }
    if chosen(status, &Selection::named(word)).next().is_none() {
        return Err(unknown(word));
    }
    Ok(Meaning::Watchers(word.to_owned()))
}

fn worker(watcher: &WatcherStatus, text: &str) -> Result<Worker, ManagerError> {
    let number = text.parse::<u32>().ok();
    let mut workers = watcher.workers.iter();
    if let Some(found) = workers.find(|worker| Some(worker.wid) == number) {
        return Ok(Worker {
            wid: found.wid,
            pid: found.pid,
        });
    }
    let there: Vec<String> = watcher
        .workers
        .iter()
        .map(|worker| worker.wid.to_string())
        .collect();
    let there = if there.is_empty() {
        "none runs".to_owned()
    } else {
        format!("these run: {}", there.join(", "))
    };
    Err(RequestError::new(
        papa_control::message::Errno::Message,
        format!("{} has no worker {text:?}; {there}", watcher.name),
    )
    .into())
}

fn expanded(status: &StatusReply, words: &[String]) -> Result<Vec<Target>, ManagerError> {
    let mut targets: Vec<Target> = Vec::new();
    let mut seen = HashSet::new();
    let mut add = |target: Target| {
        if seen.insert(target.clone()) {
            targets.push(target);
        }
    };
    let whole = |watcher: &WatcherStatus| Target {
        watcher: watcher.name.clone(),
        worker: None,
    };
    if words.is_empty() {
        status.watchers.iter().map(whole).for_each(&mut add);
    }
    for word in words {
        match meaning(status, word)? {
            Meaning::All => status.watchers.iter().map(whole).for_each(&mut add),
            Meaning::Watchers(name) => chosen(status, &Selection::named(name))
                .map(whole)
                .for_each(&mut add),
            Meaning::Worker(watcher, worker) => add(Target {
                watcher: watcher.name.clone(),
                worker: Some(worker),
            }),
        }
    }
    Ok(targets)
}

fn chosen<'a>(
    status: &'a StatusReply,
    selection: &Selection,
) -> impl Iterator<Item = &'a WatcherStatus> {
    let matcher = selection.matcher();
    status
        .watchers
        .iter()
        .filter(move |watcher| matcher.matches(&watcher.name.to_lowercase()))
}

fn unknown(word: &str) -> ManagerError {
    RequestError::unknown_watcher(word).into()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn status() -> StatusReply {
        let worker = |wid: u32| json!({"wid": wid, "pid": 100 + wid, "serial": 1, "started_us": 0, "stopping": false});
        let watcher = |name: &str, wids: &[u32]| {
            let workers: Vec<_> = wids.iter().map(|wid| worker(*wid)).collect();
            json!({"name": name, "state": "active", "numprocesses": wids.len(), "workers": workers})
        };
        serde_json::from_value(json!({
            "statuses": {},
            "watchers": [watcher("Web", &[1, 3]), watcher("web:api", &[1]), watcher("db", &[])],
        }))
        .unwrap()
    }

    fn shown(words: &[&str]) -> Result<Vec<String>, String> {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        let targets = expanded(&status(), &words).map_err(|error| error.to_string())?;
        Ok(targets
            .iter()
            .map(|target| match target.worker {
                Some(worker) => format!("{}:{}={}", target.watcher, worker.wid, worker.pid),
                None => target.watcher.clone(),
            })
            .collect())
    }

    #[test]
    fn names_patterns_all_and_workers_are_told_apart() {
        let all = ["Web", "web:api", "db"].map(str::to_owned).to_vec();
        assert_eq!(shown(&[]).unwrap(), all);
        assert_eq!(shown(&["all"]).unwrap(), all);
        assert_eq!(
            shown(&["db", "web*", "web"]).unwrap(),
            ["db", "Web", "web:api"]
        );
        assert_eq!(
            shown(&["web:3", "web:api"]).unwrap(),
            ["Web:3=103", "web:api"]
        );
        assert_eq!(
            shown(&["web:api:1", "db:*"]).unwrap(),
            ["web:api:1=101", "db"]
        );
        assert!(shown(&["web:2"]).unwrap_err().contains("these run: 1, 3"));
        assert!(shown(&["db:1"]).unwrap_err().contains("none runs"));
        assert!(shown(&["db", "nope"]).unwrap_err().contains("nope"));
    }
}
