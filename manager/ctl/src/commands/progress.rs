//! Waiting visibly: a line on the terminal that says what is still missing, and an end by Ctrl-C
//! that says what goes on.
//!
//! Owns one line of standard error, redrawn at most every `REDRAW`; nothing at all when that is no
//! terminal or JSON is wanted.

use std::io::{self, IsTerminal, Write};
use std::process;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use papa_system::printable::printable;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::Common;
use crate::commands::{note, print_json, table};
use papa_control::client::ManagerClient;
use papa_control::message::{
    Command, Request, Selection, StatusReply, WatcherState, WatcherStatus,
};
use papa_system::runtime_dir::RuntimeDir;

/// Shortest time between two drawings.
const REDRAW: Duration = Duration::from_millis(100);
/// Work that takes less is not worth a line.
const QUICK: Duration = Duration::from_millis(300);
/// How long a status may take while it is only decoration.
const STATUS_PATIENCE: Duration = Duration::from_secs(5);
/// Back to the first column, the rest of the line erased.
const CLEAR: &str = "\r\x1b[K";
/// What is said when waiting ends but the work does not.
pub(super) const GOES_ON: &str =
    "the manager goes on with it; `papactl status` shows how far it is";

/// The line.
#[derive(Debug)]
pub(super) struct ProgressLine {
    enabled: bool,
    begun: Instant,
    drawn: Option<Instant>,
}

impl ProgressLine {
    /// A line that is not there yet.
    pub(super) fn new(common: &Common) -> Self {
        Self {
            enabled: !common.json && io::stderr().is_terminal(),
            begun: Instant::now(),
            drawn: None,
        }
    }

    /// Shows `text`, unless that was done a moment ago.
    pub(super) fn show(&mut self, text: &str) {
        let now = Instant::now();
        let early = now.duration_since(self.begun) < QUICK
            || self
                .drawn
                .is_some_and(|drawn| now.duration_since(drawn) < REDRAW);
        if self.enabled && !early && !text.is_empty() {
            let seconds = now.duration_since(self.begun).as_secs();
            let line = table::shortened(&format!("{seconds} s: {text}"));
            let mut stderr = io::stderr().lock();
            let _ = write!(stderr, "{CLEAR}{line}").and_then(|()| stderr.flush());
            self.drawn = Some(now);
        }
    }
}

impl Drop for ProgressLine {
    fn drop(&mut self) {
        if self.drawn.is_some() {
            let _ = write!(io::stderr(), "{CLEAR}");
        }
    }
}

/// What of `selection` is still on its way: `web stopping 1/2, api starting 0/4`.
pub(super) fn missing(status: &StatusReply, selection: &Selection) -> String {
    let matcher = selection.matcher();
    let described: Vec<String> = status
        .watchers
        .iter()
        .filter(|watcher| matcher.matches(&watcher.name.to_lowercase()) && is_on_its_way(watcher))
        .map(|watcher| {
            format!(
                "{} {} {}/{}",
                printable(&watcher.name),
                word(watcher),
                watcher.workers.len(),
                watcher.numprocesses
            )
        })
        .collect();
    described.join(", ")
}

fn word(watcher: &WatcherStatus) -> &'static str {
    match watcher.state {
        WatcherState::Active if watcher.settling => "settling",
        state => state.as_str(),
    }
}

fn is_on_its_way(watcher: &WatcherStatus) -> bool {
    match watcher.state {
        _ if watcher.settling => true,
        WatcherState::Starting | WatcherState::Stopping => true,
        WatcherState::Active => {
            watcher.workers.len() != watcher.numprocesses as usize
                || watcher.workers.iter().any(|worker| worker.stopping)
        }
        WatcherState::Stopped => false,
    }
}

/// Asks on a connection of its own what is still missing.
pub(super) fn ask_missing(namespace: &str, selection: &Selection) -> Option<String> {
    let mut client = ManagerClient::connect(&RuntimeDir::locate(), namespace).ok()?;
    let request = Request::waiting(Command::Status { name: None });
    let status = client.ask(&request, STATUS_PATIENCE).ok()?;
    Some(missing(&status, selection))
}

/// Shows what is missing until it is dropped.
#[derive(Debug)]
pub(super) struct Watching {
    stop: Option<mpsc::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Watching {
    /// Begins; does nothing where nobody sees it.
    pub(super) fn start(common: &Common, namespace: &str, selection: &Selection) -> Self {
        let mut line = ProgressLine::new(common);
        if !line.enabled {
            return Self {
                stop: None,
                thread: None,
            };
        }
        let (stop, stopped) = mpsc::channel();
        let (namespace, selection) = (namespace.to_owned(), selection.clone());
        let thread = thread::spawn(move || {
            while stopped.recv_timeout(REDRAW) == Err(mpsc::RecvTimeoutError::Timeout) {
                if let Some(missing) = ask_missing(&namespace, &selection) {
                    line.show(&missing);
                }
            }
        });
        Self {
            stop: Some(stop),
            thread: Some(thread),
        }
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // A panic there is no reason for one here.
            let _ = thread.join();
        }
    }
}

/// From now on Ctrl-C ends the program with a word about what goes on without it.
pub(super) fn say_when_interrupted(common: &Common) {
    let json = common.json;
    let listening = || -> io::Result<tokio::runtime::Runtime> {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
    };
    // Without a runtime Ctrl-C ends the program as it always does, only silently.
    let Ok(runtime) = listening() else {
        return;
    };
    // Here and not in the thread: what is asked next may be interrupted before that runs.
    let entered = runtime.enter();
    let interrupts = signal(SignalKind::interrupt());
    drop(entered);
    let Ok(mut interrupts) = interrupts else {
        return;
    };
    thread::spawn(move || {
        if runtime.block_on(interrupts.recv()).is_none() {
            return;
        }
        let reason = format!("waiting was interrupted; {GOES_ON}");
        if json {
            let _ = print_json(&json!({"status": "error", "reason": reason}));
        } else {
            let clear = if io::stderr().is_terminal() {
                CLEAR
            } else {
                ""
            };
            note(&format!("{clear}papactl: {reason}"));
        }
        process::exit(1);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use papa_control::message::Reply;

    #[test]
    fn only_what_is_on_its_way_is_missing() {
        let line = br#"{"statuses":{},"watchers":[
            {"name":"Web","state":"stopping","numprocesses":2,"workers":[{"wid":1,"pid":5,"serial":1,"started_us":1}]},
            {"name":"api","state":"starting","numprocesses":4,"workers":[]},
            {"name":"done","state":"active","numprocesses":0,"workers":[]},
            {"name":"off","state":"stopped","numprocesses":1,"workers":[]}]}"#;
        let status: StatusReply = Reply::parse(line).unwrap().body().unwrap();
        assert_eq!(
            missing(&status, &Selection::all()),
            "Web stopping 1/2, api starting 0/4"
        );
        assert_eq!(
            missing(&status, &Selection::named("a*")),
            "api starting 0/4"
        );
    }
}
