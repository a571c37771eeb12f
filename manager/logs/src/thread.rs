//! The log thread as the rest of the manager sees it: started, given orders, ended.
//!
//! Owns the thread; `session` does the work.
//! Invariant: no order is lost, since the orders are one value, the latest, and not a queue.

use std::io;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use papa_config::WatcherConfig;
use tokio::sync::watch;

use crate::exchange::{FAREWELL, Orders, Reports, TRY_AGAIN};
pub use crate::exchange::{LogReport, LogSettings};
use crate::pulse::Pulse;
use crate::session::Session;

/// Time beyond the farewell for a write that was begun. A thread that hangs in a write (a dead
/// network file system) is then left behind; the end of the process is for it what a kill is, and
/// the state is made for that.
const LAST_WRITE: Duration = Duration::from_secs(1);

/// The running thread.
#[derive(Debug)]
pub struct LogThread {
    wanted: watch::Sender<Orders>,
    /// Closed when the thread has ended.
    ended: mpsc::Receiver<()>,
}

impl LogThread {
    /// Starts the thread, whether or not there is something to log yet. `report` takes what it has
    /// to say; `false` means that there is no room, and the same is said again a little later.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(
        settings: LogSettings,
        report: impl Fn(LogReport) -> bool + Send + 'static,
    ) -> io::Result<Self> {
        let (wanted, receiver) = watch::channel(Orders {
            watchers: settings.watchers.clone().into(),
            reopenings: 0,
            finish: false,
        });
        let (end, ended) = mpsc::channel();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let pulse = Pulse::start(settings.addresses.clone())?;
        std::thread::Builder::new()
            .name("logs".to_owned())
            .spawn(move || {
                let _dropped_at_the_end = end;
                let reports = Reports::new(report);
                runtime.block_on(run(&settings, receiver, reports, &pulse));
            })?;
        Ok(Self { wanted, ended })
    }

    /// Says that the configuration is another one. Lines of running processes go on exactly once:
    /// up to some line to where they went, from there on to where they are to go now. Processes of
    /// a watcher that is gone are written as before until they end.
    pub fn update(&self, watchers: Vec<Arc<WatcherConfig>>) {
        self.wanted
            .send_modify(|wanted| wanted.watchers = watchers.into());
    }

    /// Closes all log files, so that the next line opens them by their paths.
    pub fn reopen(&self) {
        self.wanted.send_modify(|wanted| wanted.reopenings += 1);
    }

    /// Writes and acknowledges what has arrived, then ends the thread. Blocks for that time, at
    /// most three seconds.
    pub fn finish(self) {
        self.wanted.send_modify(|wanted| wanted.finish = true);
        if self.ended.recv_timeout(FAREWELL + LAST_WRITE) == Err(mpsc::RecvTimeoutError::Timeout) {
            tracing::warn!("log thread hangs in a write; ending without it");
        }
    }
}

async fn run(
    settings: &LogSettings,
    mut wanted: watch::Receiver<Orders>,
    mut reports: Reports,
    pulse: &Pulse,
) {
    loop {
        // Cloned beforehand: what is borrowed cannot be told anew, and opening may wait for a
        // kernel as long as it likes.
        let now = wanted.borrow().clone();
        let attempt = async {
            // What a predecessor left half done on a slow disk takes its time too.
            let _at_work = pulse.work();
            match Session::open(settings, &now, &mut reports).await {
                Ok(session) => Some(session),
                Err(error) => {
                    reports.troubles(vec![format!("logs: {error}")]);
                    reports.send();
                    tokio::time::sleep(TRY_AGAIN).await;
                    None
                }
            }
        };
        let mut ending = wanted.clone();
        let opened = tokio::select! {
            opened = attempt => opened,
            _ = ending.wait_for(|wanted| wanted.finish) => return,
        };
        if let Some(session) = opened {
            reports.troubles(Vec::new());
            return session.serve(&mut wanted, &mut reports, pulse).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use papa_client::Address;

    use super::*;

    #[test]
    fn it_can_be_told_more_while_it_waits_for_the_kernel() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kernel.sock");
        // Takes the connection and says nothing.
        let kernel = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let settings = LogSettings {
            addresses: vec![Address::Unix(path)],
            namespace: "circus".to_owned(),
            watchers: Vec::new(),
        };
        let thread = LogThread::start(settings, |_| true).unwrap();
        let connection = kernel.accept().unwrap();
        let (told, done) = mpsc::channel();
        std::thread::spawn(move || {
            // The first wakes it up, the second waits for what it does then.
            thread.update(Vec::new());
            thread.update(Vec::new());
            thread.finish();
            let _ = told.send(());
        });
        let done = done.recv_timeout(Duration::from_secs(20));
        assert_eq!(done, Ok(()), "whoever tells it something hangs");
        drop(connection);
    }
}
