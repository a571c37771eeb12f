//! Held descriptors: left by a client under a name, given back on request.

use std::os::fd::{AsFd, OwnedFd};

use nix::sys::stat::{SFlag, fstat};
use papa_protocol::json::ErrorCode;
use papa_protocol::json::reply::Held;
use papa_protocol::limits::MAX_HELD;
use papa_protocol::name::{Name, NamePattern};

use super::claim::may_change;
use super::room::Room;
use super::{VerbError, fail, limit, not_recorded, refused};
use crate::keeper::wire::{Key, Kind};
use crate::world::World;
use crate::world::caller::Caller;
use crate::world::table::{Entry, Matcher};

/// Holds `fd` under `name`, in place of what was held there.
///
/// # Errors
/// A limit is reached or the namespace is claimed by someone else.
pub(crate) fn hold(
    world: &mut World,
    caller: &Caller,
    room: Room,
    name: Name,
    fd: OwnedFd,
) -> Result<(), VerbError> {
    may_change(world, caller, &name, false)?;
    let old = world.table.held.get(&name).map(|row| row.id);
    if old.is_none() && world.table.held.len() >= MAX_HELD {
        return Err(limit("held descriptors", MAX_HELD));
    }
    room.check(1)?;
    let id = world.table.next_id;
    let kind = kind_of(&fd).to_owned();
    let key = Key::new(Kind::HELD, id);
    world
        .keep(&[(key, fd.as_fd())])
        .map_err(|errno| refused("hold", errno))?;
    if let Err(error) = world.commit(Entry::Hold { id, name, kind }) {
        world.unkeep(&[key]);
        return Err(not_recorded(&error));
    }
    world.held_fds.insert(id, fd);
    if let Some(old) = old {
        world.held_fds.remove(&old);
        world.unkeep(&[Key::new(Kind::HELD, old)]);
    }
    Ok(())
}

/// A copy of what is held under `name`.
///
/// # Errors
/// The namespace is claimed by someone else, `not_found`, or the system has no
/// descriptor left.
pub(crate) fn fetch(world: &World, caller: &Caller, name: &Name) -> Result<OwnedFd, VerbError> {
    may_change(world, caller, name, false)?;
    let fd = world
        .table
        .held
        .get(name)
        .and_then(|row| world.held_fds.get(&row.id))
        .ok_or_else(|| {
            fail(
                ErrorCode::NotFound,
                &format!("no descriptor is held as {name}"),
            )
        })?;
    fd.try_clone().map_err(|error| duplicate_failed(&error))
}

/// What is held; no pattern means all.
pub(crate) fn list(world: &World, patterns: &[NamePattern]) -> Vec<Held> {
    let matcher = Matcher::new(patterns);
    world
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

/// Lets go of what matches and tells how many. Where one may not be let go none is.
///
/// # Errors
/// The namespace is claimed by someone else.
pub(crate) fn drop_matching(
    world: &mut World,
    caller: &Caller,
    patterns: &[NamePattern],
) -> Result<u64, VerbError> {
    let names: Vec<Name> = list(world, patterns)
        .into_iter()
        .map(|held| held.name)
        .collect();
    for name in &names {
        may_change(world, caller, name, false)?;
    }
    let count = names.len() as u64;
    for name in names {
        let id = world.table.held.get(&name).map(|row| row.id);
        world
            .commit(Entry::Unhold { name })
            .map_err(|error| not_recorded(&error))?;
        if let Some(id) = id {
            world.held_fds.remove(&id);
            world.unkeep(&[Key::new(Kind::HELD, id)]);
        }
    }
    Ok(count)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keeper::wire::ToKeeper;
    use crate::verbs::claim;
    use crate::world::caller::tests::caller;
    use crate::world::tests::{empty_world, recovered, told};

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    fn room() -> Room {
        Room { in_use: 0 }
    }

    fn memory() -> OwnedFd {
        crate::sys::memfd::memfd_create("test").unwrap()
    }

    #[test]
    fn what_takes_the_place_of_another_is_kept_before_that_is_let_go() {
        let (mut world, keeper, file) = empty_world();
        let me = caller(1, None);
        hold(&mut world, &me, room(), name("a"), memory()).unwrap();
        let first = world.table.held[&name("a")].id;
        hold(&mut world, &me, room(), name("a"), memory()).unwrap();
        let second = world.table.held[&name("a")].id;
        world.tell_unkept();
        let key = |id| vec![Key::new(Kind::HELD, id)];
        let said: Vec<_> = std::iter::from_fn(|| told(&keeper)).collect();
        assert_eq!(
            said,
            [
                (ToKeeper::Put(key(first)), 1),
                (ToKeeper::Put(key(second)), 1),
                (ToKeeper::Drop(key(first)), 0),
            ]
        );
        assert_eq!(world.held_fds.keys().collect::<Vec<_>>(), [&second]);
        assert_eq!(recovered(&file).held[&name("a")].kind, "memfd");
    }

    #[test]
    fn what_could_not_be_recorded_is_not_left_with_the_keeper() {
        let (mut world, keeper, _file) = empty_world();
        let me = caller(1, None);
        world.journal.break_file();
        hold(&mut world, &me, room(), name("a"), memory()).unwrap_err();
        world.tell_unkept();
        assert!(matches!(told(&keeper), Some((ToKeeper::Put(_), 1))));
        assert!(matches!(told(&keeper), Some((ToKeeper::Drop(_), 0))));
        assert!(world.held_fds.is_empty());
        fetch(&world, &me, &name("a")).unwrap_err();
    }

    #[test]
    fn no_descriptor_is_held_once_those_for_clients_would_be_used_up() {
        let (mut world, keeper, _file) = empty_world();
        let full = Room {
            in_use: u64::MAX / 2,
        };
        hold(&mut world, &caller(1, None), full, name("a"), memory()).unwrap_err();
        assert_eq!(told(&keeper), None);
    }

    #[test]
    fn a_claimed_descriptor_is_for_its_holder_alone() {
        let (mut world, _keeper, _file) = empty_world();
        let (holder, other) = (caller(1, Some(10)), caller(2, Some(20)));
        hold(&mut world, &other, room(), name("ns.x"), memory()).unwrap();
        claim::claim(&mut world, &holder, &name("ns"), "me".into(), false).unwrap();
        fetch(&world, &other, &name("ns.x")).unwrap_err();
        drop_matching(&mut world, &other, &[]).unwrap_err();
        fetch(&world, &holder, &name("ns.x")).unwrap();
        assert_eq!(drop_matching(&mut world, &holder, &[]), Ok(1));
        assert_eq!(list(&world, &[]), []);
    }
}
