//! Says for the log thread that it is at work while it cannot say so itself: it writes to a slow
//! disk, or renames thousands of files.
//!
//! Owns a thread that sleeps while nothing is logged and looks twice a second while something is.
//! The kernel lets a writer wait for a consumer that acknowledges, and drops the oldest output of
//! one that does not for two seconds; an acknowledgement of nothing, sent over a connection of this
//! thread's own, counts as one. Leaves the work to `session`; reads and writes no file, so no disk
//! stops it.
//! Invariant: nothing is said for a log thread that has stood still in one step for [`HUNG`]: a
//! dead disk costs lines, not services.
//! Source: protocol/README.md, "Output".

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use papa_client::{Address, Client, Options, Pushes};
use papa_protocol::json::request::OutputAck;
use papa_test_hooks::slow_disk;
use tokio::runtime::Runtime;

/// Between two looks, and so between two signs of life: a fraction of the kernel's patience of two
/// seconds.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long one step (a write, a rename) may take until the disk counts as dead. Far more than a
/// busy one takes, and as long as whoever writes to the log stands still with us.
const HUNG: Duration = Duration::from_secs(60);
/// Looks that found nothing to do after which the thread sleeps.
const QUIET_LOOKS: u32 = 4;
/// How long a sign of life may be under way.
const SAY_LIMIT: Duration = Duration::from_secs(1);

/// Steps done by the log thread; there is one in a process, and its steps are many calls deep.
static STEPS: AtomicU64 = AtomicU64::new(0);

/// Counts a step that takes a disk's time.
pub(super) fn step() {
    STEPS.fetch_add(1, Ordering::Relaxed);
    slow_disk::pause();
}

/// The side of the log thread.
#[derive(Debug)]
pub(super) struct Pulse {
    shared: Arc<Shared>,
    thread: Thread,
}

#[derive(Debug, Default)]
struct Shared {
    /// Whether the log thread is at work.
    busy: AtomicBool,
    /// Whether the thread looks; otherwise it sleeps.
    watched: AtomicBool,
    ended: AtomicBool,
}

impl Pulse {
    /// Starts the thread, asleep.
    ///
    /// # Errors
    /// When no thread can be started.
    pub(super) fn start(addresses: Vec<Address>) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let watched = Arc::clone(&shared);
        let handle = thread::Builder::new()
            .name("logs-pulse".to_owned())
            .spawn(move || watch(&watched, &addresses))?;
        Ok(Self {
            shared,
            thread: handle.thread().clone(),
        })
    }

    /// Notes that work begins; it ends when the returned value is dropped.
    pub(super) fn work(&self) -> AtWork<'_> {
        // In this order here, and in the other in `watch`: one of the two sees what the other did.
        self.shared.busy.store(true, Ordering::SeqCst);
        if !self.shared.watched.load(Ordering::SeqCst)
            && !self.shared.watched.swap(true, Ordering::SeqCst)
        {
            self.thread.unpark();
        }
        AtWork(&self.shared)
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        self.thread.unpark();
    }
}

/// Work under way.
#[derive(Debug)]
pub(super) struct AtWork<'a>(&'a Shared);

impl Drop for AtWork<'_> {
    fn drop(&mut self) {
        STEPS.fetch_add(1, Ordering::Relaxed);
        self.0.busy.store(false, Ordering::SeqCst);
    }
}

fn watch(shared: &Shared, addresses: &[Address]) {
    loop {
        while !shared.watched.load(Ordering::SeqCst) {
            if shared.ended.load(Ordering::SeqCst) {
                return;
            }
            thread::park();
        }
        let mut voice = None;
        let mut looks = Looks::default();
        while looks.quiet < QUIET_LOOKS {
            thread::park_timeout(LOOK_EVERY);
            if shared.ended.load(Ordering::SeqCst) {
                return;
            }
            let busy = shared.busy.load(Ordering::SeqCst);
            match looks.look(busy, STEPS.load(Ordering::Relaxed), Instant::now()) {
                Sight::Quiet => voice = None,
                Sight::AtWork => say(&mut voice, addresses),
                Sight::JustHung => {
                    tracing::error!(
                        seconds = HUNG.as_secs(),
                        "a log write takes longer than a disk may; writers no longer wait for it, and their oldest output goes"
                    );
                    voice = None;
                }
                Sight::Hung => {}
            }
        }
        shared.watched.store(false, Ordering::SeqCst);
        if shared.busy.load(Ordering::SeqCst) {
            shared.watched.store(true, Ordering::SeqCst);
        }
    }
}

/// A connection for signs of life, and the runtime that it needs.
struct Voice {
    client: Client,
    _pushes: Pushes,
    runtime: Runtime,
}

impl Voice {
    fn open(addresses: &[Address]) -> Option<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .ok()?;
        let options = Options {
            client: format!("papa-manager {} logs, alive", std::process::id()),
            ..Options::default()
        };
        let connect = Client::connect(addresses.to_vec(), options);
        let connected = runtime.block_on(async { tokio::time::timeout(SAY_LIMIT, connect).await });
        let (client, pushes) = connected.ok()?.ok()?;
        Some(Self {
            client,
            _pushes: pushes,
            runtime,
        })
    }
}

/// Sends a sign of life. Failures are ignored: a kernel that does not answer drops nothing either.
fn say(voice: &mut Option<Voice>, addresses: &[Address]) {
    if voice.is_none() {
        *voice = Voice::open(addresses);
    }
    let Some(open) = voice else {
        return;
    };
    let nothing = OutputAck {
        acks: BTreeMap::new(),
    };
    let call = open.client.call(nothing);
    let said = open
        .runtime
        .block_on(async { tokio::time::timeout(SAY_LIMIT, call).await });
    if !matches!(said, Ok(Ok(_))) {
        *voice = None;
    }
}

/// What the thread has seen so far.
#[derive(Debug, Default)]
struct Looks {
    /// Looks in a row that found nothing to do.
    quiet: u32,
    /// Steps done, and since when no more.
    last: Option<(u64, Instant)>,
    hung: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Sight {
    Quiet,
    AtWork,
    JustHung,
    Hung,
}

impl Looks {
    fn look(&mut self, busy: bool, steps: u64, now: Instant) -> Sight {
        if !busy {
            *self = Self {
                quiet: self.quiet + 1,
                ..Self::default()
            };
            return Sight::Quiet;
        }
        self.quiet = 0;
        let since = match self.last {
            Some((known, since)) if known == steps => since,
            _ => now,
        };
        self.last = Some((steps, since));
        if now.duration_since(since) < HUNG {
            self.hung = false;
            Sight::AtWork
        } else if std::mem::replace(&mut self.hung, true) {
            Sight::Hung
        } else {
            Sight::JustHung
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_that_goes_on_is_told_however_long_and_a_dead_disk_is_not() {
        let mut looks = Looks::default();
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        // Ten minutes of renames.
        for second in 0..600 {
            assert_eq!(looks.look(true, second, after(second)), Sight::AtWork);
        }
        assert_eq!(looks.look(true, 599, after(658)), Sight::AtWork);
        assert_eq!(looks.look(true, 599, after(659)), Sight::JustHung);
        assert_eq!(looks.look(true, 599, after(660)), Sight::Hung);
        assert_eq!(looks.look(true, 600, after(661)), Sight::AtWork);
        assert_eq!(looks.look(false, 601, after(662)), Sight::Quiet);
        // Another piece of work is another step, whatever the count.
        assert_eq!(looks.look(true, 601, after(900)), Sight::AtWork);
    }

    #[test]
    fn the_thread_wakes_for_work_and_ends_with_its_owner() {
        let pulse = Pulse::start(Vec::new()).unwrap();
        let shared = Arc::downgrade(&pulse.shared);
        assert!(!pulse.shared.busy.load(Ordering::SeqCst));
        drop(pulse.work());
        assert!(pulse.shared.watched.load(Ordering::SeqCst));
        assert!(!pulse.shared.busy.load(Ordering::SeqCst));
        drop(pulse);
        let deadline = Instant::now() + Duration::from_secs(20);
        while shared.strong_count() > 0 {
            assert!(Instant::now() < deadline, "the thread does not end");
            thread::yield_now();
        }
    }
}
