//! The last words of workers that have ended, whose output is in no file and no longer in the kernel.
//!
//! Owns what they look like. Leaves to others: keeping them (the manager), when they are shown (`logs`, and verbs that fail).

use std::collections::BTreeSet;
use std::time::{SystemTime, UNIX_EPOCH};

use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::{Value, json};

use crate::civil;
use crate::cli::Common;
use crate::commands::logs::pick::Wanted;
use crate::commands::{note, table};
use crate::control::client::ManagerClient;
use crate::control::message::{Command, LineForm, LogsReply, Request, WatcherLogs};
use crate::last_words::End;

/// Lines of an end shown with a failure; `papactl logs` shows all.
const MAX_FAILURE_LINES: usize = 10;
/// Ends shown with a failure.
const MAX_FAILURES: usize = 5;

/// Watchers with output in no file: what of theirs was in a file is there still.
pub(super) fn of_no_file(logs: &WatcherLogs) -> bool {
    [&logs.stdout_lines, &logs.stderr_lines]
        .iter()
        .any(|form| **form == Some(LineForm::Kernel))
}

/// The ends that are wanted, as text for standard output; nothing where there are none.
pub(super) fn shown(
    logs: &WatcherLogs,
    wids: Option<&BTreeSet<u32>>,
    wanted: Wanted,
    style: super::Style,
) -> Vec<u8> {
    let mut out = Vec::new();
    for end in &logs.ends {
        let too_old = wanted.since.is_some_and(|since| moment(end) < since);
        if too_old || wids.is_some_and(|wids| !wids.contains(&end.wid)) {
            continue;
        }
        let most = wanted.lines.unwrap_or(usize::MAX);
        let skipped = end.lines.len().saturating_sub(most);
        let lines = end.lines.get(skipped..).unwrap_or_default();
        if style.json {
            for line in lines {
                let object = json!({
                    "watcher": logs.name,
                    "wid": end.wid,
                    "pid": end.pid,
                    "stream": Value::Null,
                    "line": line,
                    "time": time(end).to_rfc3339_opts(SecondsFormat::Micros, false),
                    "ended": end.how(),
                });
                out.extend_from_slice(object.to_string().as_bytes());
                out.push(b'\n');
            }
            continue;
        }
        out.extend_from_slice(heading(&logs.name, end).as_bytes());
        out.push(b'\n');
        for line in lines {
            let line = if style.terminal {
                table::printable_bytes(line.as_bytes())
            } else {
                line.clone()
            };
            out.extend_from_slice(line.as_bytes());
            out.push(b'\n');
        }
    }
    out
}

/// `--- web.1, pid 4711, exited with 1, ran 0.2 s, 2026-11-27 16:02:03; it wrote last:`
fn heading(name: &str, end: &End) -> String {
    let said = if end.lines.is_empty() {
        "; it wrote nothing"
    } else {
        "; it wrote last:"
    };
    format!(
        "--- {}.{}, pid {}, {}, {}{said}",
        table::printable(name),
        end.wid,
        end.pid,
        end.how_and_ran(),
        time(end).format("%Y-%m-%d %H:%M:%S"),
    )
}

fn time(end: &End) -> DateTime<chrono::Local> {
    civil::local(i64::try_from(end.at_ms.saturating_mul(1000)).unwrap_or(i64::MAX))
}

fn moment(end: &End) -> DateTime<Utc> {
    time(end).with_timezone(&Utc)
}

/// Milliseconds since the epoch.
pub(in crate::commands) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}

/// After something failed: what workers of these watchers that have ended since then wrote last, on standard error. `begun_ms`: when
/// it began, in milliseconds since the epoch.
pub(in crate::commands) fn explain(
    common: &Common,
    client: &mut ManagerClient,
    meant: impl Fn(&str) -> bool,
    begun_ms: u64,
) {
    if common.json {
        return;
    }
    let question = Request::waiting(Command::Logs { name: None });
    let Ok(reply) = client.ask::<LogsReply>(&question, common.timeout()) else {
        // What failed is said; this was to be more.
        return;
    };
    let ends = reply.logs.iter().filter(|logs| meant(&logs.name));
    let ends = ends.filter_map(|logs| Some((logs, logs.ends.back()?)));
    let recent = ends.filter(|(_, end)| end.at_ms >= begun_ms);
    for (logs, end) in recent.take(MAX_FAILURES) {
        note(&heading(&logs.name, end));
        let skipped = end.lines.len().saturating_sub(MAX_FAILURE_LINES);
        for line in end.lines.iter().skip(skipped) {
            note(&table::printable_bytes(line.as_bytes()));
        }
        if skipped > 0 {
            note(&format!(
                "--- {skipped} lines before these: papactl logs -n all {}",
                table::printable(&logs.name)
            ));
        }
    }
}
