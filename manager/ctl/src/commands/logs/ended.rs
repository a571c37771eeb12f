//! The last words of workers that have ended: those that are in no file and no longer in the
//! kernel, and after a failure also those at the end of a log file.
//!
//! Owns what they look like. Leaves to others: keeping them (the manager), when they are shown
//! (`logs`, and verbs that fail).

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use chrono::{DateTime, SecondsFormat, Utc};
use nix::fcntl::OFlag;
use papa_logs::form::LineForm;
use papa_logs::reader::Wanted;
use papa_system::civil;
use papa_system::printable::{printable, printable_bytes};
use serde_json::{Value, json};

use crate::cli::Common;
use crate::commands::note;
use papa_control::client::ManagerClient;
use papa_control::last_words::End;
use papa_control::message::{Command, LogsReply, Request, WatcherLogs};

/// Lines of an end shown with a failure; `papactl logs` shows all.
const MAX_FAILURE_LINES: usize = 10;
/// How much of the end of a log file they are looked for in.
const MAX_FAILURE_BYTES: u64 = 16 * 1024;
/// How long the manager may take to write what ended workers wrote last.
const FLUSH_PATIENCE: Duration = Duration::from_secs(1);
/// How often to look whether it has.
const POLL: Duration = Duration::from_millis(20);
/// A file's time of the last write is that of a clock with such steps.
const MTIME_STEP: Duration = Duration::from_millis(20);
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
                printable_bytes(line.as_bytes())
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
    format!("{}{said}", title(name, end))
}

/// Who ended, how and when.
fn title(name: &str, end: &End) -> String {
    format!(
        "--- {}.{}, pid {}, {}, {}",
        printable(name),
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

/// After something failed: what workers of these watchers that have ended since then wrote last, on
/// standard error; of those with log files the last lines of these. `begun_ms`: when it began, in
/// milliseconds since the epoch.
pub(in crate::commands) fn explain(
    common: &Common,
    client: &mut ManagerClient,
    meant: impl Fn(&str) -> bool,
    begun_ms: u64,
) {
    if common.json {
        return;
    }
    let deadline = Instant::now() + FLUSH_PATIENCE;
    let reply = loop {
        let question = Request::waiting(Command::Logs { name: None });
        let Ok(reply) = client.ask::<LogsReply>(&question, common.timeout()) else {
            // What failed is said; this was to be more.
            return;
        };
        // What they wrote is perhaps not in the file yet.
        let draining = recent(&reply, &meant, begun_ms).any(|(logs, _)| logs.draining);
        if !draining || Instant::now() >= deadline {
            break reply;
        }
        thread::sleep(POLL);
    };
    for (logs, end) in recent(&reply, &meant, begun_ms).take(MAX_FAILURES) {
        let files = files(logs);
        if files.is_empty() || !end.lines.is_empty() {
            note(&heading(&logs.name, end));
        } else {
            note(&title(&logs.name, end));
        }
        let skipped = end.lines.len().saturating_sub(MAX_FAILURE_LINES);
        for line in end.lines.iter().skip(skipped) {
            note(&printable_bytes(line.as_bytes()));
        }
        if skipped > 0 {
            note(&format!(
                "--- {skipped} lines before these: papactl logs -n all {}",
                printable(&logs.name)
            ));
        }
        for path in files {
            note_file(path, begun_ms);
        }
    }
}

/// The watchers that are meant whose workers have ended unasked since then, with the latest of
/// these ends.
fn recent<'a>(
    reply: &'a LogsReply,
    meant: &'a impl Fn(&str) -> bool,
    begun_ms: u64,
) -> impl Iterator<Item = (&'a WatcherLogs, &'a End)> {
    let all = reply.logs.iter().chain(&reply.gone);
    let ends = all.filter(|logs| meant(&logs.name));
    let ends = ends.filter_map(|logs| Some((logs, logs.ends.back()?)));
    ends.filter(move |(_, end)| end.at_ms >= begun_ms)
}

/// The files that a watcher's lines are in, each once.
fn files(logs: &WatcherLogs) -> Vec<&str> {
    let mut files: Vec<&str> = Vec::new();
    for path in [&logs.stdout, &logs.stderr].into_iter().flatten() {
        if !files.contains(&path.as_str()) {
            files.push(path);
        }
    }
    files
}

/// The last lines of a log file, if anything was written to it since then.
fn note_file(path: &str, begun_ms: u64) {
    let shown = printable(path);
    match last_lines(Path::new(path), begun_ms) {
        Ok(Some(lines)) => {
            note(&format!("--- its log {shown} ends with:"));
            for line in lines {
                note(&printable_bytes(&line));
            }
        }
        Ok(None) => note(&format!("--- it wrote nothing to its log {shown}")),
        Err(error) => note(&format!("--- its log {shown} cannot be read: {error}")),
    }
}

/// None if nothing was written since then.
fn last_lines(path: &Path, begun_ms: u64) -> io::Result<Option<Vec<Vec<u8>>>> {
    let mut options = File::options();
    // A fifo in its place would wait for a writer.
    options.read(true).custom_flags(OFlag::O_NONBLOCK.bits());
    let file = match options.open(path) {
        Ok(file) => file,
        // It is made when there is something to write.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("it is not a file"));
    }
    let written = metadata.modified()?.duration_since(UNIX_EPOCH);
    let written = written.unwrap_or_default() + MTIME_STEP;
    if metadata.len() == 0 || written.as_millis() < u128::from(begun_ms) {
        return Ok(None);
    }
    let start = metadata.len().saturating_sub(MAX_FAILURE_BYTES);
    let mut bytes = Vec::new();
    let mut file = file;
    file.seek(SeekFrom::Start(start))?;
    file.take(MAX_FAILURE_BYTES).read_to_end(&mut bytes)?;
    let mut lines: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').collect();
    if lines.last().is_some_and(|line| line.is_empty()) {
        lines.pop();
    }
    if start > 0 && lines.len() > 1 {
        // Its beginning is not there.
        lines.remove(0);
    }
    let skipped = lines.len().saturating_sub(MAX_FAILURE_LINES);
    let lines = lines.into_iter().skip(skipped);
    Ok(Some(lines.map(<[u8]>::to_vec).collect()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_end_of_a_log_is_bounded_and_a_fifo_is_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        assert_eq!(last_lines(&path, 0).unwrap(), None);
        fs::write(&path, "a\nb\n\nwithout end").unwrap();
        let lines = |begun| last_lines(&path, begun).unwrap();
        let expected = ["a", "b", "", "without end"].map(|line| line.as_bytes().to_vec());
        assert_eq!(lines(0).unwrap(), expected);
        assert_eq!(lines(now_ms() + 60_000), None);
        let long = "x".repeat(100_000);
        fs::write(&path, format!("first\n{long}")).unwrap();
        assert_eq!(lines(0).unwrap().concat().len() as u64, MAX_FAILURE_BYTES);
        fs::write(&path, "line\n".repeat(10_000)).unwrap();
        assert_eq!(lines(0).unwrap().len(), MAX_FAILURE_LINES);
        fs::remove_file(&path).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(last_lines(&path, 0).is_err());
    }
}
