//! From the configuration to where each process's lines go.
//!
//! Owns the table of logged watchers and what their workers' names begin with; decides nothing
//! about files (`writer`) and talks to nobody.
//! Invariant: a process is known here only if a logged watcher gives its workers such a name.
//! Output of others under a similar name stays in the kernel.

use std::collections::HashMap;
use std::sync::Arc;

use papa_config::{Readiness, StreamConfig, SyslogAddress, WatcherConfig, worker_of};
use regex_lite::{Regex, RegexBuilder};

use crate::file::Limits;
use crate::format::Style;
use crate::own_output::OWN_STDOUT;
use crate::route::{Route, Routes};
use crate::sink::Address;

/// Memory a compiled expression may take; an ordinary one takes some kilobytes.
const MAX_REGEX_BYTES: usize = 1024 * 1024;

/// The logged watchers, and what they want.
#[derive(Debug)]
pub(super) struct Table {
    namespace: String,
    watchers: Arc<[Arc<WatcherConfig>]>,
    /// By lower-case name: which of them, and where its lines go if they go anywhere.
    entries: HashMap<String, (usize, Option<Routes>)>,
}

/// What is to be done with a process.
#[derive(Debug, Clone, Copy)]
pub(super) enum Verdict<'a> {
    /// A worker of a logged watcher, by that name, with that number.
    Logged {
        routes: &'a Routes,
        watcher: &'a str,
        wid: u32,
    },
    /// A worker of a watcher whose output nobody collects.
    NotLogged,
    /// A worker of no watcher there is.
    Unknown,
}

impl Table {
    pub(super) fn new(namespace: &str, watchers: Arc<[Arc<WatcherConfig>]>) -> Self {
        let entry = |(index, watcher): (usize, &Arc<WatcherConfig>)| {
            let routes = watcher.is_logged().then(|| routes(watcher));
            (watcher.key.clone(), (index, routes))
        };
        let entries = watchers.iter().enumerate().map(entry).collect();
        Self {
            namespace: namespace.to_owned(),
            watchers,
            entries,
        }
    }

    /// What to do with the process `name`.
    pub(super) fn verdict(&self, name: &str) -> Verdict<'_> {
        let found = worker_of(&self.namespace, name)
            .and_then(|(key, wid)| Some((self.entries.get(key)?, wid)));
        match found {
            None => Verdict::Unknown,
            Some(((_, None), _)) => Verdict::NotLogged,
            Some(((index, Some(routes)), wid)) => Verdict::Logged {
                routes,
                watcher: self.watchers.get(*index).map_or("", |known| &known.name),
                wid,
            },
        }
    }

    /// What the names of logged workers begin with, and those of `others`. A name that begins with
    /// another is covered by it: a watcher `web` and one `web.api` would otherwise both be asked
    /// for the latter.
    pub(super) fn prefixes<'a>(&self, others: impl Iterator<Item = &'a str>) -> Vec<String> {
        let mut all: Vec<String> = self
            .entries
            .iter()
            .filter(|(_, (_, routes))| routes.is_some())
            .map(|(key, _)| format!("{}.{key}.", self.namespace))
            .chain(
                others
                    .filter(|name| matches!(self.verdict(name), Verdict::Unknown))
                    .filter_map(prefix_of)
                    .map(str::to_owned),
            )
            .collect();
        all.sort_unstable();
        let mut kept: Vec<String> = Vec::new();
        for prefix in all {
            // In this order, what begins with a name comes right behind it.
            if !kept
                .last()
                .is_some_and(|known| prefix.starts_with(known.as_str()))
            {
                kept.push(prefix);
            }
        }
        kept
    }
}

/// A worker's name without its number.
fn prefix_of(name: &str) -> Option<&str> {
    name.rfind('.').and_then(|dot| name.get(..=dot))
}

fn routes(watcher: &WatcherConfig) -> Routes {
    Routes {
        out: route(&watcher.stdout),
        err: route(&watcher.stderr),
        ready: match &watcher.ready {
            Some(Readiness::Log(text)) => compiled(&watcher.name, text),
            _ => None,
        },
    }
}

fn compiled(watcher: &str, text: &str) -> Option<Regex> {
    let built = RegexBuilder::new(text).size_limit(MAX_REGEX_BYTES).build();
    if let Err(error) = &built {
        // `check` refuses these; the worker is then judged by its ready_timeout.
        tracing::warn!(watcher, %error, "ready = log: expected a regular expression");
    }
    built.ok()
}

fn route(stream: &StreamConfig) -> Option<Route> {
    let own_stdout = |style| Route {
        to: Address::File(OWN_STDOUT.into()),
        limits: Limits::default(),
        style,
    };
    match stream {
        StreamConfig::Unset | StreamConfig::Null => None,
        StreamConfig::Stdout => Some(own_stdout(Style::Raw)),
        StreamConfig::Fancy(fancy) => Some(own_stdout(Style::Fancy(fancy.clone()))),
        StreamConfig::Syslog(syslog) => Some(Route {
            to: Address::Syslog(syslog.clone()),
            limits: Limits::default(),
            style: Style::Syslog {
                facility: syslog.facility,
                rfc5424: syslog.rfc5424,
                remote: matches!(syslog.address, SyslogAddress::Udp(..)),
            },
        }),
        StreamConfig::File(file) => Some(Route {
            to: Address::File(file.filename.clone()),
            limits: Limits {
                max_bytes: file.max_bytes,
                backup_count: file.backup_count,
                watch_path: file.watch_path,
                rotation: file.rotation,
                compress: file.compress,
                mkdir: file.mkdir,
            },
            style: match &file.time_format {
                _ if file.json => Style::Json {
                    max_line_bytes: file.max_line_bytes,
                },
                Some(format) => Style::Stamped(format.clone()),
                None => Style::Raw,
            },
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use papa_config::Surroundings;

    fn table(ini: &str) -> Table {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("t.ini");
        std::fs::write(&file, ini).unwrap();
        let config = papa_config::load(&file, &Surroundings::current().unwrap()).unwrap();
        Table::new(
            "circus",
            config.watchers.into_iter().map(Arc::new).collect(),
        )
    }

    #[test]
    fn only_workers_of_logged_watchers_are_consumed() {
        let table = table(
            "[watcher:web]\ncmd = x\nstdout_stream.filename = /l/web\n\
             [watcher:web.api]\ncmd = x\nstdout_stream.filename = /l/api\n\
             [watcher:quiet]\ncmd = x\n",
        );
        assert!(matches!(
            table.verdict("circus.web.1"),
            Verdict::Logged { routes, wid: 1, .. } if routes.out.is_some() && routes.err.is_none()
        ));
        assert!(matches!(
            table.verdict("circus.quiet.1"),
            Verdict::NotLogged
        ));
        for other in ["circus.web.migrate", "circus.web.01", "circus.gone.1"] {
            assert!(matches!(table.verdict(other), Verdict::Unknown), "{other}");
        }
        let names = ["circus.gone.1", "circus.gone.2", "circus.quiet.1"];
        assert_eq!(
            table.prefixes(names.into_iter()),
            ["circus.gone.", "circus.web."]
        );
    }
}
