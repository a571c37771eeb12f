//! Held descriptors: left by a client under a name, given back on request.

use std::os::fd::{AsFd, OwnedFd};

use nix::sys::stat::{SFlag, fstat};
use papa_protocol::json::ErrorCode;
use papa_protocol::json::reply::Held;
use papa_protocol::limits::MAX_HELD;
use papa_protocol::name::{Name, NamePattern};

use super::{VerbError, fail, limit, not_recorded, refused};
use crate::client::exchange::SessionId;
use crate::keeper::wire::{Key, Kind};
use crate::owner::Owner;
use crate::world::table::{Entry, Matcher};

impl Owner {
    /// Holds `fd` under `name`, in place of what was held there.
    ///
    /// # Errors
    /// A limit is reached or the namespace is claimed by someone else.
    pub(crate) fn hold(
        &mut self,
        session: SessionId,
        name: Name,
        fd: OwnedFd,
    ) -> Result<(), VerbError> {
        self.may_change(session, &name, false)?;
        let old = self.world.table.held.get(&name).map(|row| row.id);
        if old.is_none() && self.world.table.held.len() >= MAX_HELD {
            return Err(limit("held descriptors", MAX_HELD));
        }
        self.check_descriptor_room(1)?;
        let id = self.world.table.next_id;
        let kind = kind_of(&fd).to_owned();
        let key = Key::new(Kind::HELD, id);
        self.keep(&[(key, fd.as_fd())])
            .map_err(|errno| refused("hold", errno))?;
        if let Err(error) = self.world.commit(Entry::Hold { id, name, kind }) {
            self.world.unkeep(&[key]);
            return Err(not_recorded(&error));
        }
        self.world.held_fds.insert(id, fd);
        if let Some(old) = old {
            self.world.held_fds.remove(&old);
            self.world.unkeep(&[Key::new(Kind::HELD, old)]);
        }
        Ok(())
    }

    /// A copy of what is held under `name`.
    ///
    /// # Errors
    /// `not_found`, or the system has no descriptor left.
    pub(crate) fn fetch_held(&self, name: &Name) -> Result<OwnedFd, VerbError> {
        let fd = self
            .world
            .table
            .held
            .get(name)
            .and_then(|row| self.world.held_fds.get(&row.id))
            .ok_or_else(|| {
                fail(
                    ErrorCode::NotFound,
                    &format!("no descriptor is held as {name}"),
                )
            })?;
        fd.try_clone().map_err(|error| duplicate_failed(&error))
    }

    /// What is held; no pattern means all.
    pub(crate) fn list_held(&self, patterns: &[NamePattern]) -> Vec<Held> {
        let matcher = Matcher::new(patterns);
        self.world
            .table
            .held
            .iter()
            .filter(|(name, _)| matcher.matches(name))
            .map(|(name, row)| Held {
                name: name.clone(),
                kind: row.kind.clone(),
            })
            .collect()
    }

    /// Lets go of what matches and tells how many.
    ///
    /// # Errors
    /// The namespace is claimed by someone else.
    pub(crate) fn drop_held(
        &mut self,
        session: SessionId,
        patterns: &[NamePattern],
    ) -> Result<u64, VerbError> {
        let names: Vec<Name> = self
            .list_held(patterns)
            .into_iter()
            .map(|held| held.name)
            .collect();
        for name in &names {
            self.may_change(session, name, false)?;
        }
        let count = names.len() as u64;
        for name in names {
            let id = self.world.table.held.get(&name).map(|row| row.id);
            self.world
                .commit(Entry::Unhold { name })
                .map_err(|error| not_recorded(&error))?;
            if let Some(id) = id {
                self.world.held_fds.remove(&id);
                self.world.unkeep(&[Key::new(Kind::HELD, id)]);
            }
        }
        Ok(count)
    }
}

pub(crate) fn duplicate_failed(error: &std::io::Error) -> VerbError {
    let errno = nix::errno::Errno::from_raw(error.raw_os_error().unwrap_or(0));
    refused("duplicate a descriptor", errno)
}

fn kind_of(fd: &OwnedFd) -> &'static str {
    let Ok(stat) = fstat(fd) else {
        return "unknown";
    };
    match SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT {
        SFlag::S_IFSOCK => "socket",
        SFlag::S_IFIFO => "pipe",
        SFlag::S_IFDIR => "directory",
        SFlag::S_IFCHR => "device",
        SFlag::S_IFBLK => "block device",
        SFlag::S_IFREG if stat.st_nlink == 0 => "memfd",
        SFlag::S_IFREG => "file",
        _ => "other",
    }
}
