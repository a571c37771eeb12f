//! Stops all connections, then becomes the next program or the keeper.
//!
//! How far the stop has come is in `change/changing.rs`.
//! Invariant: until the exec has succeeded everything can be taken back; afterwards the keeper has
//! the old program.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use nix::errno::Errno;
use papa_test_hooks::failpoint;
use tracing::{error, info, warn};

use super::Owner;
use crate::change::changing::{Changing, FREEZE_LIMIT, Role, Stage};
use crate::change::handover::Change;
use crate::change::{sessions, takeover};
use crate::client::connection::Frozen;
use crate::client::exchange::SessionId;
use crate::client::server::Listener;
use crate::keeper::PROGRAM_BEFORE;
use crate::keeper::wire::{Key, Kind, ToKeeper};
use crate::sys::socket::local_port;
use crate::world::deadline::Deadline;

impl Owner {
    /// Has every connection stop; the change goes on when all have.
    pub(super) fn freeze(&mut self, role: Role) {
        if let Some(until) = self.change.freeze(&self.readers.sessions, role) {
            if let Some(server) = &self.server {
                server.pause();
            }
            self.world.agenda.at(until, Deadline::Freeze);
        }
    }

    /// Has connections stop because the keeper is gone, and takes its place then. A change under
    /// way ends with that.
    pub(super) fn freeze_orphaned(&mut self) {
        if let Some(changing) = &mut self.change.under_way {
            let change = std::mem::take(&mut changing.change);
            let reason = "the keeper has died meanwhile; nothing was changed, ask again";
            self.answer_change(&change, Err(reason.to_owned()));
        }
        if let Some(until) = self.change.hurry_orphaned() {
            self.world.agenda.at(until, Deadline::Freeze);
            return;
        }
        let Ok(program) = self.world.fixed.binary.try_clone() else {
            self.take_keepers_place("it is gone", &[]);
        };
        self.change.under_way = Some(Changing::of_role(Change::default(), program));
        self.freeze(Role::Orphan);
    }

    /// Notes that a connection has stopped, or lets it go on if the change was given up.
    pub(super) fn on_frozen(&mut self, id: SessionId, connection: Frozen) {
        if let Some(connection) = self.change.note_frozen(id, connection)
            && let Some(server) = &self.server
        {
            server.thaw(connection);
        }
    }

    /// Goes on with the change once all connections have stopped.
    pub(super) fn change_when_frozen(&mut self) {
        if self.world.link.is_lost() && self.change.under_way.is_none() {
            // Whatever came between: a kernel without a keeper has to take its place.
            self.freeze_orphaned();
        }
        if self.change.is_frozen() {
            self.change_now();
        }
    }

    /// Ends the wait for connections that do not stop.
    pub(super) fn on_freeze_limit(&mut self, now: Instant) {
        match self.change.late(now) {
            // The deadline of an earlier change.
            None => {}
            Some((sessions, Role::Orphan)) => {
                warn!(sessions, "not at rest in time; they are closed");
                self.change_now();
            }
            Some(_) => {
                if let Some(changing) = self.change.under_way.take() {
                    let limit = FREEZE_LIMIT.as_secs();
                    let reason = format!("the clients did not come to rest within {limit} s");
                    self.take_back(changing, &reason);
                }
            }
        }
    }

    /// All connections have stopped, or need not be waited for: becomes what is to be.
    fn change_now(&mut self) {
        let Some(mut changing) = self.change.under_way.take() else {
            return;
        };
        let Stage::Freezing { frozen, role, .. } = &mut changing.stage else {
            return;
        };
        for stopped in frozen.values_mut() {
            stopped.connection.catch_up(&stopped.inbox);
        }
        let role = *role;
        failpoint::reach("upgrade.frozen");
        if role == Role::Kernel && !self.reel_kinds().is_subset(&changing.tried_reels) {
            let reason = format!(
                "a process was started while {} was tried, and it is not known whether that program can read its output; \
                 ask again",
                changing.change.to_path
            );
            return self.take_back(changing, &reason);
        }
        let errno = self.hand_over(&changing, role);
        // Only a failure comes back.
        let reason = format!(
            "{} could not be started: {}",
            changing.change.to_path,
            errno.desc()
        );
        self.take_back(changing, &reason);
    }

    /// Lets everything go on as before, and tells whoever asked why.
    fn take_back(&mut self, changing: Changing, reason: &str) {
        if let (Stage::Freezing { frozen, .. }, Some(server)) =
            (changing.stage, self.server.clone())
        {
            for (_, stopped) in frozen {
                server.thaw(stopped);
            }
        }
        self.listen_again();
        let reason = format!("{reason}; the program before goes on");
        self.answer_change(&changing.change, Err(reason));
        // What came meanwhile was held back.
        self.deliver();
    }

    /// Gives everything to the keeper and becomes the program; returns why that failed.
    fn hand_over(&mut self, changing: &Changing, role: Role) -> Errno {
        let handed = match self.handed(changing, role) {
            Ok(handed) => handed,
            Err(errno) if role == Role::Orphan => {
                error!(%errno, "cannot hand sessions over; closing them");
                self.take_keepers_place("it is gone", &[]);
            }
            Err(errno) => return errno,
        };
        let entries: Vec<_> = handed.iter().map(|(key, fd)| (*key, fd.as_fd())).collect();
        let told = self.world.link.put(&entries);
        failpoint::reach("upgrade.recorded");
        let errno = match told {
            Ok(()) => self.become_next(changing, role, &handed),
            Err(errno) => errno,
        };
        // A keeper that died meanwhile takes no session with it.
        let keys: Vec<Key> = handed.iter().map(|(key, _)| *key).collect();
        let told = self.world.link.drop_keys(&keys);
        self.check_keeper_with(told, &handed);
        errno
    }

    /// What the next program finds of the sessions and of the change: their descriptors, the
    /// program to go back to, and last the record, so that it names only what is there.
    fn handed(&self, changing: &Changing, role: Role) -> Result<Vec<(Key, OwnedFd)>, Errno> {
        let Stage::Freezing { frozen, .. } = &changing.stage else {
            return Err(Errno::EINVAL);
        };
        let mut handed = Vec::new();
        let change = &changing.change;
        let record = sessions::write_down(&self.world, &self.readers, change, frozen, &mut handed)?;
        let file = record.write()?;
        // The next keeper has to know what to go back to.
        let before = match role {
            Role::Kernel if change.keeper => Some(&self.world.fixed.binary),
            Role::Keeper => self.change.before.as_ref(),
            Role::Kernel | Role::Orphan => None,
        };
        if let Some(program) = before.and_then(|program| program.try_clone().ok()) {
            handed.push((PROGRAM_BEFORE, program));
        }
        handed.push((Key::new(Kind::HANDOVER, 0), file));
        Ok(handed)
    }

    /// Executes into the role; returns why that failed.
    fn become_next(&mut self, changing: &Changing, role: Role, handed: &[(Key, OwnedFd)]) -> Errno {
        let errno = match role {
            Role::Orphan => self.take_keepers_place("it is gone", handed),
            // A keeper of an earlier version would start a kernel beside this one.
            Role::Keeper if !self.world.link.keeper_leaves() => {
                self.take_keepers_place("as asked", handed)
            }
            Role::Keeper => {
                if let Err(errno) = self.world.link.tell(&ToKeeper::Succeed) {
                    return errno;
                }
                failpoint::reach("succession.told");
                info!(
                    keeper = self.world.link.keeper().as_raw(),
                    "taking the keeper's place, as asked"
                );
                takeover::become_next_keeper(&self.holdings(), handed)
            }
            Role::Kernel => {
                let program = changing.program.as_fd();
                if let Err(errno) = self.world.link.try_program(program) {
                    return errno;
                }
                failpoint::reach("upgrade.tried");
                info!(
                    path = changing.change.to_path,
                    "changing to the new program"
                );
                takeover::become_program(&self.holdings(), program, handed)
            }
        };
        let told = self.world.link.tell(&ToKeeper::Untried);
        self.check_keeper_with(told, handed);
        errno
    }

    /// Accepts callers again.
    fn listen_again(&self) {
        let Some(server) = &self.server else {
            return;
        };
        for (_, fd) in &self.world.fixed.controls {
            let tcp = local_port(fd).is_ok_and(|port| port != 0);
            let listener = fd.try_clone().and_then(|copy| Listener::new(copy, tcp));
            match listener {
                Ok(listener) => server.serve(listener),
                Err(error) => error!(%error, "cannot serve a listener again"),
            }
        }
    }
}
