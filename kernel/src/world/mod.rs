//! What exists: the table of everything, the journal that records it, and the
//! descriptors and output of live processes.
//!
//! [`World`] is what verbs work on. It knows no session
//! but by its number, and no socket of a client.
//! Invariant: a change is in the journal before it is answered.

pub(crate) mod caller;
pub mod deadline;
mod describe;
pub mod journal;
pub mod live;
pub mod reel;
pub mod table;

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::Instant;

use nix::errno::Errno;
use papa_protocol::json::push::Event;
use papa_protocol::name::Name;
use serde_json::value::RawValue;
use tracing::error;

use self::deadline::Agenda;
use self::journal::{Journal, JournalError};
use self::live::{Live, Poller};
use self::table::{Entry, Record, Table};
use crate::client::exchange::{Peer, SessionId};
use crate::config::Config;
use crate::keeper::link::{KeeperLink, is_gone};
use crate::keeper::wire::{Key, Kind, ToKeeper};
use crate::sys::cgroup::Cgroups;
use crate::sys::pidfd::has_exit_info;

/// The kernel's descriptors that no process or client made.
#[derive(Debug)]
pub struct Fixed {
    /// The settings.
    pub config: OwnedFd,
    /// The program file.
    pub binary: OwnedFd,
    /// The kernel's own listeners by id.
    pub controls: Vec<(u64, OwnedFd)>,
    /// `/dev/null`, for reading and writing.
    pub null: OwnedFd,
}

/// The session that holds a claim, and who is at its other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holder {
    /// Its number.
    pub session: SessionId,
    /// Who is there.
    pub peer: Peer,
}

/// What exists, its record, and the descriptors behind it.
#[derive(Debug)]
pub struct World {
    /// Settings.
    pub config: Config,
    /// Descriptors that no process or client made.
    pub fixed: Fixed,
    /// The line to the keeper.
    pub link: KeeperLink,
    /// The journal, open.
    pub journal: Journal,
    /// Records left out in recoveries.
    pub skipped_records: u64,
    /// Records of later versions, kept as they are.
    pub unknown_records: Vec<Box<RawValue>>,
    /// Changes recovery made that are not in the journal yet.
    pub unrecorded: VecDeque<Entry>,
    /// What the journal's records amount to.
    pub table: Table,
    /// Descriptors and output of processes, by serial.
    pub live: HashMap<u64, Live>,
    /// Descriptors of sockets, by id.
    pub socket_fds: HashMap<u64, OwnedFd>,
    /// Descriptors held for clients, by id.
    pub held_fds: HashMap<u64, OwnedFd>,
    /// Descriptors of records this version cannot read, for one that can.
    pub strangers: Vec<(Key, OwnedFd)>,
    /// Claims whose holder is connected, by namespace.
    pub claims: HashMap<Name, Holder>,
    /// What was made and removed, and subscribers have not been told yet.
    pub events: Vec<Event>,
    /// The set that reports output, exits, the keeper, signals and the timer.
    pub poller: Rc<Poller>,
    /// Zombies by the order in which they ended.
    pub zombies: VecDeque<u64>,
    /// Where each process gets a control group.
    pub cgroups: Option<Cgroups>,
    /// What has to be looked at later.
    pub agenda: Agenda,
    /// Until when the keeper may go back to the program before, which may read reels of the first
    /// kind only.
    pub older_may_return: Option<Instant>,
    /// The system tells how a process ended through its handle.
    pub has_exit_info: bool,
    /// What the keeper has copies of that are not needed any more.
    unkept: Vec<Key>,
    /// The keeper could not be reached; nothing was sent since.
    keeper_gone: bool,
}

impl World {
    /// A world with the `table` that `journal` records, and no descriptors yet.
    ///
    /// # Errors
    /// The errno of `epoll_create1(2)`.
    pub fn new(
        config: Config,
        fixed: Fixed,
        link: KeeperLink,
        journal: Journal,
        table: Table,
    ) -> Result<Self, Errno> {
        let cgroups = Cgroups::find(table.first_started_us);
        Ok(Self {
            config,
            fixed,
            link,
            journal,
            skipped_records: 0,
            unknown_records: Vec::new(),
            unrecorded: VecDeque::new(),
            table,
            live: HashMap::new(),
            socket_fds: HashMap::new(),
            held_fds: HashMap::new(),
            strangers: Vec::new(),
            claims: HashMap::new(),
            events: Vec::new(),
            poller: Rc::new(Poller::new()?),
            zombies: VecDeque::new(),
            cgroups,
            agenda: Agenda::default(),
            older_may_return: None,
            has_exit_info: has_exit_info(),
            unkept: Vec::new(),
            keeper_gone: false,
        })
    }

    // ---- journal -------------------------------------------------------

    /// Records what recovery found, in order and as far as there is memory;
    /// what is left is tried again with the next change.
    pub(crate) fn record_findings(&mut self) {
        while let Some(entry) = self.unrecorded.front() {
            if let Err(error) = self.journal.append(entry) {
                error!(%error, "cannot record yet what recovery found");
                return;
            }
            self.unrecorded.pop_front();
        }
    }

    /// Records a change and makes it.
    ///
    /// # Errors
    /// The record could not be written; then nothing has changed.
    pub(crate) fn commit(&mut self, entry: Entry) -> Result<(), JournalError> {
        self.record_findings();
        self.journal.append(&entry)?;
        self.table.apply(entry);
        Ok(())
    }

    /// Records a change that has happened whether or not it can be recorded.
    pub(crate) fn commit_fact(&mut self, entry: Entry) {
        self.record_findings();
        if let Err(error) = self.journal.append(&entry) {
            error!(%error, "cannot record a change in the journal");
        }
        self.table.apply(entry);
    }

    /// Writes the journal anew with what exists alone.
    pub(crate) fn compact(&mut self) {
        let ours = self.table.image().map(Record::Entry);
        let later = self
            .unknown_records
            .iter()
            .map(|record| Record::Unknown(record));
        if let Err(error) = self.journal.compact(ours.chain(later)) {
            error!(%error, "cannot compact the journal");
        } else {
            self.table.has_renamed = false;
        }
    }

    // ---- claims --------------------------------------------------------

    /// The claimed namespace `name` lies in, with its holder's name.
    pub(crate) fn claim_of(&self, name: &str) -> Option<(&Name, &str)> {
        // Of nested namespaces the innermost counts.
        name.rmatch_indices('.').find_map(|(at, _)| {
            let (namespace, row) = self.table.claims.get_key_value(&name[..at])?;
            Some((namespace, row.holder.as_deref()?))
        })
    }

    /// The connected session that holds the claim `name` lies in.
    pub(crate) fn claim_holder(&self, name: &str) -> Option<SessionId> {
        let (namespace, _) = self.claim_of(name)?;
        self.claims.get(namespace).map(|holder| holder.session)
    }

    // ---- the keeper's copies -------------------------------------------

    /// Gives the keeper copies. If it has died they go along when this process
    /// takes its place.
    ///
    /// # Errors
    /// It lives, and could not be sent a descriptor.
    pub(crate) fn keep(&mut self, entries: &[(Key, BorrowedFd<'_>)]) -> Result<(), Errno> {
        // A key may be used again.
        self.tell_unkept();
        if self.keeper_gone || self.link.is_lost() {
            return Ok(());
        }
        let told = self.link.put(entries);
        self.keeper_gone = is_gone(told);
        if self.keeper_gone { Ok(()) } else { told }
    }

    /// Lets the keeper's copies go, at the end of this turn: the ends of a
    /// process and of its streams are mostly one message then.
    pub(crate) fn unkeep(&mut self, keys: &[Key]) {
        self.unkept.extend_from_slice(keys);
    }

    /// Says now what was let go.
    pub(crate) fn tell_unkept(&mut self) {
        if self.unkept.is_empty() {
            return;
        }
        let keys = std::mem::take(&mut self.unkept);
        if !self.keeper_gone {
            self.keeper_gone = is_gone(self.link.drop_keys(&keys));
        }
    }

    /// Whether the keeper is gone, dealt with or not.
    pub(crate) fn has_lost_keeper(&self) -> bool {
        self.keeper_gone || self.link.is_lost()
    }

    /// Sends the keeper a message. If it has died that is noted, as with [`Self::keep`].
    pub(crate) fn tell_keeper(&mut self, message: &ToKeeper) {
        let told = self.link.tell(message);
        self.keeper_gone |= is_gone(told);
    }

    /// Whether the keeper was found gone since this was last asked. Whoever
    /// calls a method that tells the keeper something asks afterwards.
    pub(crate) fn take_keeper_gone(&mut self) -> bool {
        std::mem::take(&mut self.keeper_gone)
    }

    // ---- descriptors ---------------------------------------------------

    /// The descriptors that would have to move if this process changed role,
    /// except those of processes that are being started.
    pub(crate) fn descriptors(&self) -> Vec<(Key, &OwnedFd)> {
        let mut all = vec![
            (Key::new(Kind::CONFIG, 0), &self.fixed.config),
            (Key::new(Kind::BINARY, 0), &self.fixed.binary),
        ];
        let of = |kind| move |(id, fd)| (Key::new(kind, id), fd);
        let controls = self.fixed.controls.iter().map(|(id, fd)| (*id, fd));
        all.extend(controls.map(of(Kind::CONTROL)));
        let sockets = self.socket_fds.iter().map(|(id, fd)| (*id, fd));
        all.extend(sockets.map(of(Kind::SOCKET)));
        let held = self.held_fds.iter().map(|(id, fd)| (*id, fd));
        all.extend(held.map(of(Kind::HELD)));
        all.extend(self.strangers.iter().map(|(key, fd)| (*key, fd)));
        for (serial, live) in &self.live {
            let own = [
                (Kind::PIDFD, live.pidfd.as_ref()),
                (Kind::OUT, live.out.as_ref()),
                (Kind::ERR, live.err.as_ref()),
                (Kind::REEL, live.reel.as_ref().map(reel::Reel::file)),
            ];
            all.extend(
                own.into_iter()
                    .filter_map(|(kind, fd)| Some((Key::new(kind, *serial), fd?))),
            );
        }
        all
    }

    /// Whether nothing would be lost if the kernel ended: no process is listed, and there is no
    /// socket, value or held descriptor.
    pub(crate) fn is_idle(&self) -> bool {
        self.table.processes().all(|row| !row.is_listed())
            && self.table.sockets().next().is_none()
            && self.table.values.is_empty()
            && self.table.held.is_empty()
    }

    /// Whether the program before may be back soon.
    pub(crate) fn older_is_expected(&self) -> bool {
        self.older_may_return
            .is_some_and(|until| Instant::now() < until)
    }

    /// A descriptor of the poller's set that is about to be closed.
    pub(crate) fn unwatch(&self, fd: impl AsFd) {
        self.poller.remove(fd);
    }
}

#[cfg(test)]
pub(crate) mod tests;
