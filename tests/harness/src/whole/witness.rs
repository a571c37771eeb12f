//! Those who look on all the time: a client of the workers' listener, and one of the manager's
//! events.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::PATIENCE;

/// Pause between two visits: a hundred a second are enough to hit every closed door, and leave the
/// machine to others.
const VISIT_EVERY: Duration = Duration::from_millis(10);

/// Pause before a manager that is away is tried again.
const TRY_AGAIN: Duration = Duration::from_millis(10);

/// A thread that goes on until it is dropped, and what it has seen.
#[derive(Debug)]
struct Watch<T> {
    over: Arc<AtomicBool>,
    seen: Arc<Mutex<T>>,
    thread: Option<JoinHandle<()>>,
}

impl<T: Default + Send + 'static> Watch<T> {
    fn start(run: impl FnOnce(&AtomicBool, &Mutex<T>) + Send + 'static) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let seen = Arc::new(Mutex::new(T::default()));
        let shared = (Arc::clone(&over), Arc::clone(&seen));
        Self {
            over,
            seen,
            thread: Some(std::thread::spawn(move || run(&shared.0, &shared.1))),
        }
    }
}

impl<T> Watch<T> {
    fn seen(&self) -> MutexGuard<'_, T> {
        locked(&self.seen)
    }
}

impl<T> Drop for Watch<T> {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn locked<T>(seen: &Mutex<T>) -> MutexGuard<'_, T> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug, Default)]
struct Visits {
    answered: u64,
    worst: Duration,
    failures: Vec<String>,
}

/// Connects to a listener again and again; whoever accepts answers with a line.
#[derive(Debug)]
pub struct Visitor(Watch<Visits>);

impl Visitor {
    /// Starts visiting this port of the loopback interface.
    pub fn start(port: u16) -> Self {
        Self(Watch::start(move |over, seen: &Mutex<Visits>| {
            while !over.load(Ordering::Relaxed) {
                let begun = Instant::now();
                let result = visit(port);
                let mut seen = locked(seen);
                seen.worst = seen.worst.max(begun.elapsed());
                match result {
                    Ok(()) => seen.answered += 1,
                    Err(error) => {
                        let text = format!("a visit failed after {:?}: {error}", begun.elapsed());
                        seen.failures.push(text);
                    }
                }
                drop(seen);
                std::thread::sleep(VISIT_EVERY);
            }
        }))
    }

    /// Visits that were answered.
    pub fn answered(&self) -> u64 {
        self.0.seen().answered
    }

    /// The longest visit.
    pub fn worst(&self) -> Duration {
        self.0.seen().worst
    }

    /// What failed since the last time this was asked.
    pub fn failures(&self) -> Vec<String> {
        std::mem::take(&mut self.0.seen().failures)
    }
}

fn visit(port: u16) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    if text.ends_with('\n') {
        Ok(())
    } else {
        Err(std::io::Error::other(format!("the answer was {text:?}")))
    }
}

/// Ends of workers as the manager's events told them, by pid: each with its status, none where the
/// manager does not know.
pub type Reaps = BTreeMap<i32, Vec<Option<i64>>>;

/// Listens to the manager's events, through all its lives.
#[derive(Debug)]
pub struct Listener(Watch<Reaps>);

impl Listener {
    /// Starts listening at the manager's control socket.
    pub fn start(socket: &Path) -> Self {
        let socket = socket.to_owned();
        Self(Watch::start(move |over, seen: &Mutex<Reaps>| {
            // Where it left off: an event is asked for once, whatever the connection did.
            let mut since = json!(0);
            while !over.load(Ordering::Relaxed) {
                let _ = listen(&socket, &mut since, over, seen);
                std::thread::sleep(TRY_AGAIN);
            }
        }))
    }

    /// All ends so far.
    pub fn reaps(&self) -> Reaps {
        self.0.seen().clone()
    }
}

fn listen(
    socket: &PathBuf,
    since: &mut Value,
    over: &AtomicBool,
    seen: &Mutex<Reaps>,
) -> std::io::Result<()> {
    let mut stream = UnixStream::connect(socket)?;
    let properties = json!({"topics": ["watcher."], "since": since});
    let request = json!({"command": "listen", "properties": properties});
    writeln!(stream, "{request}")?;
    stream.set_read_timeout(Some(Duration::from_millis(200)))?;
    let mut reader = BufReader::new(stream);
    let mut incarnation = None;
    // A line may come in several reads.
    let mut line = Vec::new();
    while !over.load(Ordering::Relaxed) {
        match reader.read_until(b'\n', &mut line) {
            Ok(0) => return Ok(()),
            Ok(_) if line.ends_with(b"\n") => {}
            Ok(_) => continue,
            Err(error)
                if matches!(
                    error.kind(),
                    std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                ) =>
            {
                continue;
            }
            Err(error) => return Err(error),
        }
        let event: Value = serde_json::from_slice(&line).unwrap_or_default();
        line.clear();
        if let Some(text) = event["incarnation"].as_str() {
            incarnation = Some(text.to_owned());
        }
        let (Some(incarnation), Some(number)) = (&incarnation, event["seq"].as_u64()) else {
            continue;
        };
        if event["topic"]
            .as_str()
            .is_some_and(|topic| topic.ends_with(".reap"))
        {
            let pid = event["process_pid"].as_i64().unwrap_or_default();
            let pid = i32::try_from(pid).unwrap_or_default();
            let status = event["exit_code"].as_i64();
            locked(seen).entry(pid).or_default().push(status);
        }
        if event.get("topic").is_some() {
            *since = json!(format!("{incarnation}:{number}"));
        }
    }
    Ok(())
}
