//! What the kernel has for us: processes and their output.
//!
//! Owns the questions a session asks: which kernel this is, which processes there are, whose output
//! is to come. Leaves to others: when they are asked (`session`), where the output goes (`routes`,
//! `writer`).
//! Invariant: no process is forgotten that the kernel still knows, by name or by number.

use std::collections::{HashMap, HashSet};
use std::time::Instant;

use papa_protocol::json::reply::ErrorCode;
use papa_protocol::json::request as ops;
use papa_protocol::name::NamePattern;
use papa_protocol::process::Process as KernelProcess;
use papa_protocol::record::Serial;

use super::{Session, SessionError, TRY_AGAIN};
use crate::held::held_logs;
use crate::held::hold;
use crate::routes::Verdict;
use crate::writer::Process;

/// Most processes asked for by number in one request.
const SERIALS_PER_REQUEST: usize = 1024;
/// Most processes remembered as none of ours; others are asked about again.
const MAX_STRANGERS: usize = 4096;

impl Session<'_> {
    /// Finds out whether this is still the kernel that holds our state.
    pub(super) async fn recognise(&mut self) -> Result<(), SessionError> {
        let name = held_logs(&self.settings.namespace);
        let list = ops::HoldList {
            names: vec![NamePattern::new(&name)],
        };
        if self.client.call(list).await?.held.is_empty() {
            // A new kernel counts serials from the start: what we know belongs to processes of the
            // old one. Forgotten before the state is held there: a successor would take it for this
            // kernel's. Nothing was taken in from the new kernel yet, however often this is
            // repeated.
            self.writer.retain(|_| false)?;
            hold(&self.client, &name, self.writer.store()).await?;
        }
        Ok(())
    }

    /// Lists the processes, learns of new ones and forgets those that are gone.
    pub(super) async fn list(&mut self) -> Result<(), SessionError> {
        let names = vec![NamePattern::new(&format!("{}.*", self.settings.namespace))];
        let list = ops::ProcessList {
            names,
            serials: Vec::new(),
        };
        let mut processes = self.client.call(list).await?.processes;
        let mut listed: HashSet<u64> = processes.iter().map(|process| process.serial.0).collect();
        // A process whose name has gone to its successor is listed by its number alone.
        let unnamed: Vec<Serial> = self
            .writer
            .serials()
            .filter(|serial| !listed.contains(serial))
            .map(Serial)
            .collect();
        for serials in unnamed.chunks(SERIALS_PER_REQUEST) {
            let list = ops::ProcessList {
                names: Vec::new(),
                serials: serials.to_vec(),
            };
            processes.extend(self.client.call(list).await?.processes);
        }
        listed.extend(processes.iter().map(|process| process.serial.0));
        self.writer.retain(|serial| listed.contains(&serial))?;
        for process in &processes {
            self.add(process);
        }
        Ok(())
    }

    /// Output may overtake the news of its process. False for one that is no worker of ours: what
    /// it writes is the kernel's to keep.
    pub(super) async fn know(&mut self, serial: Serial) -> Result<bool, SessionError> {
        if self.writer.knows(serial.0) {
            return Ok(true);
        }
        if self.strangers.contains(&serial.0) {
            return Ok(false);
        }
        let list = ops::ProcessList {
            names: Vec::new(),
            serials: vec![serial],
        };
        let listed = match self.client.call(list).await {
            Ok(listed) => listed,
            Err(error) => {
                // What was pushed is lost with this answer: what follows it would look like a gap,
                // and all is asked for anew.
                self.lapse();
                self.unsettled.consumption = true;
                self.settle_at = Some(Instant::now() + TRY_AGAIN);
                return Err(error.into());
            }
        };
        for process in listed.processes {
            // What was pushed begins at the start, or with a gap from there.
            self.insert(&process, 0, 0);
        }
        if !self.writer.knows(serial.0) {
            if self.strangers.len() >= MAX_STRANGERS {
                self.strangers.clear();
            }
            self.strangers.insert(serial.0);
        }
        Ok(self.writer.knows(serial.0))
    }

    pub(super) fn add(&mut self, process: &KernelProcess) {
        if !self.writer.knows(process.serial.0) {
            self.insert(process, process.ledger.acknowledged, process.ledger.dropped);
        }
    }

    fn insert(&mut self, process: &KernelProcess, acknowledged: u64, dropped: u64) {
        let Verdict::Logged {
            routes,
            watcher,
            wid,
        } = self.table.verdict(&process.name)
        else {
            return;
        };
        let process = Process {
            serial: process.serial.0,
            name: process.name.to_string(),
            watcher: watcher.to_owned(),
            wid,
            pid: i32::try_from(process.pid).unwrap_or(0),
            reel_bytes: process.reel_bytes,
            acknowledged,
            dropped,
        };
        self.writer.add(&process, routes);
    }

    /// Gets the descriptor of a process's reel.
    pub(super) async fn open_reel(&mut self, serial: Serial) -> Result<(), SessionError> {
        let ask = ops::OutputReel { serial };
        let (reel, descriptor) = self.client.call_for_descriptor(ask).await?;
        let start_offset = reel.start_offset.ok_or(SessionError::ReelWithoutStart)?;
        self.reels
            .open(serial.0, descriptor, reel.data_offset, start_offset);
        Ok(())
    }

    /// Output that cannot be read from its reel is asked for anew, to be sent: over TCP there are
    /// no descriptors, and ours may have run out. From the next connection on it is tried again.
    pub(super) async fn go_inline(&mut self, error: &SessionError) -> Result<(), SessionError> {
        tracing::info!(%error, "output is not read from the reels but sent by the kernel");
        self.delivery = ops::Delivery::Inline;
        self.reels.clear();
        self.lapse();
        self.unsettled.consumption = true;
        self.settle().await
    }

    /// Asks for the output of everybody whose output is wanted, from the first byte not
    /// acknowledged, where that is not under way; and takes over from a predecessor that is not
    /// quite dead.
    pub(super) async fn consume(&mut self) -> Result<(), SessionError> {
        let wanted = self
            .table
            .prefixes(self.writer.names().map(|(_, name)| name));
        let (kept, gone) = std::mem::take(&mut self.subscriptions)
            .into_iter()
            .partition(|(prefix, _)| wanted.contains(prefix));
        self.subscriptions = kept;
        self.lapsed
            .extend(HashMap::<String, u64>::into_values(gone));
        while let Some(sub) = self.lapsed.last().copied() {
            match self.client.call(ops::OutputStop { sub }).await {
                Err(error) if error.code() == Some(ErrorCode::NotFound) => {}
                other => drop(other?),
            }
            self.lapsed.pop();
        }
        for prefix in wanted {
            if self.subscriptions.contains_key(&prefix) {
                continue;
            }
            let consume = ops::OutputConsume {
                names: vec![NamePattern::new(&format!("{prefix}*"))],
                bytes: self.delivery,
                force: true,
            };
            let sub = match self.client.call(consume.clone()).await {
                // A kernel of an earlier version.
                Err(error)
                    if error.code() == Some(ErrorCode::Invalid)
                        && self.delivery == ops::Delivery::Auto =>
                {
                    self.delivery = ops::Delivery::Inline;
                    let bytes = self.delivery;
                    let consume = ops::OutputConsume { bytes, ..consume };
                    self.client.call(consume).await?.sub
                }
                other => other?.sub,
            };
            self.subscriptions.insert(prefix, sub);
        }
        Ok(())
    }
}
