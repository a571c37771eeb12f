//! `papactl logs`: the end of watchers' log files, and with `-f` what is added.
//!
//! Owns which files are meant and how their lines are shown; reading is `tail`'s. On a terminal control characters
//! are made visible: a log may hold whatever a stranger sent to a service.

use std::collections::HashSet;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use serde_json::json;

use crate::cli::Common;
use crate::cli::args::LogsArgs;
use crate::commands::tail::Tail;
use crate::commands::{CommandError, connect, note, table};
use crate::config::{self, Surroundings};
use crate::control::client::ManagerError;
use crate::control::message::{Command, LogsReply, Request, RequestError, Selection, log_files};

/// How often files are looked at when following.
const POLL: Duration = Duration::from_millis(100);

/// Longest line held back until its end comes, in bytes.
const MAX_LINE_BYTES: usize = 1024 * 1024;

/// Runs the verb.
pub(super) fn run(common: &Common, args: &LogsArgs) -> Result<(), CommandError> {
    let mut reply = known_files(common)?;
    let selection = Selection {
        name: args.name.clone(),
        ..Selection::default()
    };
    reply
        .logs
        .retain(|logs| selection.matches(&logs.name.to_lowercase()));
    if let Some(name) = &args.name
        && reply.logs.is_empty()
    {
        return Err(ManagerError::from(RequestError::unknown_watcher(name)).into());
    }
    let mut sources = sources(&reply);
    if sources.is_empty() {
        return Err(CommandError::Failed(
            "no log files: these watchers have no stdout_stream.filename or stderr_stream.filename"
                .to_owned(),
        ));
    }
    let style = Style {
        json: common.json,
        labelled: sources.len() > 1,
        terminal: io::stdout().is_terminal(),
    };
    let mut tails = Vec::new();
    for source in sources.drain(..) {
        let (tail, last) = Tail::open(source.path.clone(), args.lines).map_err(|error| {
            CommandError::Failed(format!("log {}: {error}", source.path.display()))
        })?;
        if !tail.exists() {
            note(&format!(
                "papactl: log {} does not exist yet",
                source.path.display()
            ));
        }
        let mut printer = Printer::new(source, style);
        printer.take(&last)?;
        if !args.follow {
            printer.finish()?;
        }
        tails.push((tail, printer));
    }
    if args.follow { follow(tails) } else { Ok(()) }
}

/// Prints what is added, until interrupted or nobody reads any more.
fn follow(mut tails: Vec<(Tail, Printer)>) -> Result<(), CommandError> {
    loop {
        for (tail, printer) in &mut tails {
            tail.poll(|bytes| printer.take(bytes))?;
        }
        thread::sleep(POLL);
    }
}

/// Asks the manager; without one, the file named by `--config` tells as well.
fn known_files(common: &Common) -> Result<LogsReply, CommandError> {
    let request = Request::waiting(Command::Logs { name: None });
    match connect(common) {
        Ok(mut client) => Ok(client.ask(&request, common.timeout())?),
        Err(CommandError::Manager(error @ ManagerError::NotRunning { .. })) => match &common.config
        {
            Some(file) => {
                let config = config::load(file, &Surroundings::current()?)?;
                Ok(log_files(config.watchers.iter()))
            }
            None => Err(CommandError::Failed(format!(
                "{error}, or name the file with --config FILE"
            ))),
        },
        Err(error) => Err(error),
    }
}

/// One file and who writes it.
#[derive(Debug, Clone)]
struct Source {
    path: PathBuf,
    watcher: String,
    stream: &'static str,
    /// Shown before each line when there are several files.
    label: String,
}

/// Every file once, even if both streams or several watchers share it.
fn sources(reply: &LogsReply) -> Vec<Source> {
    let mut seen = HashSet::new();
    let mut sources = Vec::new();
    for logs in &reply.logs {
        let both = logs.stdout.is_some() && logs.stderr.is_some() && logs.stdout != logs.stderr;
        for (stream, path) in [("stdout", &logs.stdout), ("stderr", &logs.stderr)] {
            let Some(path) = path else {
                continue;
            };
            if seen.insert(path.clone()) {
                sources.push(Source {
                    path: path.into(),
                    watcher: logs.name.clone(),
                    stream,
                    label: if both {
                        format!("{} {stream}", logs.name)
                    } else {
                        logs.name.clone()
                    },
                });
            }
        }
    }
    sources
}

#[derive(Debug, Clone, Copy)]
struct Style {
    json: bool,
    labelled: bool,
    terminal: bool,
}

/// Lines of one file on their way to standard output.
#[derive(Debug)]
struct Printer {
    source: Source,
    style: Style,
    /// A line whose end has not come yet.
    partial: Vec<u8>,
}

impl Printer {
    fn new(source: Source, style: Style) -> Self {
        Self {
            source,
            style,
            partial: Vec::new(),
        }
    }

    /// Prints the whole lines among what was held back and `bytes`.
    fn take(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut out = Vec::new();
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.partial.extend_from_slice(line);
            if line.ends_with(b"\n") || self.partial.len() > MAX_LINE_BYTES {
                self.render(&mut out);
            }
        }
        write_out(&out)
    }

    /// Prints what is left without its end.
    fn finish(&mut self) -> io::Result<()> {
        let mut out = Vec::new();
        if !self.partial.is_empty() {
            self.render(&mut out);
        }
        write_out(&out)
    }

    fn render(&mut self, out: &mut Vec<u8>) {
        let line = std::mem::take(&mut self.partial);
        let line = line.strip_suffix(b"\n").unwrap_or(&line);
        if self.style.json {
            let object = json!({
                "watcher": self.source.watcher,
                "stream": self.source.stream,
                "line": String::from_utf8_lossy(line),
            });
            out.extend_from_slice(object.to_string().as_bytes());
        } else {
            if self.style.labelled {
                out.extend_from_slice(table::printable(&self.source.label).as_bytes());
                out.extend_from_slice(b" | ");
            }
            if self.style.terminal {
                out.extend_from_slice(table::printable_bytes(line).as_bytes());
            } else {
                out.extend_from_slice(line);
            }
        }
        out.push(b'\n');
    }
}

fn write_out(out: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(out)?;
    stdout.flush()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::message::WatcherLogs;

    fn logs(name: &str, stdout: Option<&str>, stderr: Option<&str>) -> WatcherLogs {
        WatcherLogs {
            name: name.to_owned(),
            stdout: stdout.map(str::to_owned),
            stderr: stderr.map(str::to_owned),
        }
    }

    #[test]
    fn a_shared_file_is_shown_once() {
        let reply = LogsReply {
            logs: vec![
                logs("a", Some("/x"), Some("/x")),
                logs("b", Some("/x"), None),
                logs("c", Some("/y"), Some("/z")),
                logs("d", None, None),
            ],
        };
        let labels: Vec<_> = sources(&reply)
            .into_iter()
            .map(|source| source.label)
            .collect();
        assert_eq!(labels, ["a", "c stdout", "c stderr"]);
    }

    fn rendered(style: Style, line: &[u8]) -> Vec<u8> {
        let reply = LogsReply {
            logs: vec![logs("a\x1b", Some("/x"), None)],
        };
        let mut printer = Printer::new(sources(&reply).remove(0), style);
        printer.partial = line.to_vec();
        let mut out = Vec::new();
        printer.render(&mut out);
        out
    }

    #[test]
    fn a_terminal_sees_no_control_characters_and_a_pipe_sees_the_bytes() {
        let style = |json, labelled, terminal| Style {
            json,
            labelled,
            terminal,
        };
        assert_eq!(
            rendered(style(false, false, true), b"\x1b[2J\n"),
            b"^[[2J\n"
        );
        assert_eq!(
            rendered(style(false, false, false), b"\x1b\xff\n"),
            b"\x1b\xff\n"
        );
        assert_eq!(rendered(style(false, true, false), b"x"), b"a^[ | x\n");
        assert_eq!(
            rendered(style(true, true, true), b"\x1bx"),
            b"{\"line\":\"\\u001bx\",\"stream\":\"stdout\",\"watcher\":\"a\\u001b\"}\n"
        );
    }
}
