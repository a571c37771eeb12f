//! Sockets that make way for others of their name, and take the name back.
//!
//! Whoever replaces a socket by a different one keeps the old one open under another name until it
//! is certain that the new one stays. Each step is one record of the journal: a kernel that dies
//! between two of them leaves the old socket under one of both names, and the same request, made
//! again, goes on from there.

use papa_protocol::json::push::EventType;
use papa_protocol::json::request::SocketMake;
use papa_protocol::name::Name;
use papa_test_hooks::failpoint;

use super::{announce_socket, close, is_same};
use crate::verbs::{VerbError, not_recorded};
use crate::world::World;
use crate::world::table::Entry;

/// Gives the socket called `aside` the name of `make`, if it is the one that `make` asks for, and
/// closes the one that has that name. Answers its id; none if it is not there or different.
///
/// # Errors
/// A change could not be recorded.
pub(super) fn take_back(
    world: &mut World,
    aside: &Name,
    make: &SocketMake,
) -> Result<Option<u64>, VerbError> {
    let Some(row) = world.table.socket_named(aside) else {
        return Ok(None);
    };
    let mut wanted = make.clone();
    wanted.name = aside.clone();
    if !is_same(&row.make, row.port, &wanted) {
        return Ok(None);
    }
    let id = row.id;
    if let Some(other) = world.table.socket_named(&make.name).map(|row| row.id) {
        close(world, other)?;
        failpoint::reach("socket.closed");
    }
    rename(world, id, &make.name)?;
    // Kernels that know no renaming would give the socket both names.
    world.compact();
    announce_socket(world, id, EventType::SocketMade);
    Ok(Some(id))
}

/// Frees `name` for another socket: the one that has it is called `aside` from now on, or is closed
/// if there is one of that name already. Answers the id of the one that was renamed.
///
/// # Errors
/// The change could not be recorded; nothing has changed.
pub(super) fn make_way(
    world: &mut World,
    name: &Name,
    aside: &Name,
) -> Result<Option<u64>, VerbError> {
    let Some(id) = world.table.socket_named(name).map(|row| row.id) else {
        return Ok(None);
    };
    if world.table.socket_named(aside).is_some() {
        close(world, id)?;
        return Ok(None);
    }
    announce_socket(world, id, EventType::SocketRemoved);
    rename(world, id, aside)?;
    failpoint::reach("socket.aside");
    Ok(Some(id))
}

/// Gives a socket another name.
///
/// # Errors
/// The change could not be recorded; nothing has changed.
pub(super) fn rename(world: &mut World, id: u64, name: &Name) -> Result<(), VerbError> {
    let Some(row) = world.table.socket(id) else {
        return Ok(());
    };
    let mut row = row.clone();
    row.make.name = name.clone();
    let renamed = Entry::Socket(Box::new(row));
    world.commit(renamed).map_err(|error| not_recorded(&error))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;
    use crate::keeper::wire::{Key, Kind, ToKeeper};
    use crate::verbs::room::Room;
    use crate::verbs::socket::{list, make, remove};
    use crate::world::caller::tests::caller;
    use crate::world::tests::{empty_world, recovered, told};

    /// A request for an internet socket of any port, told from others by its backlog.
    fn request(backlog: u32, aside: bool) -> SocketMake {
        let mut make = SocketMake::new(Name::new("ns.web").unwrap());
        make.host = Some("127.0.0.1".to_owned());
        make.backlog = Some(backlog);
        make.aside = aside.then(|| Name::new("ns.OLD").unwrap());
        make
    }

    fn names(world: &World) -> Vec<(String, u64)> {
        let listed = list(world, &[]).into_iter();
        listed
            .map(|socket| (socket.name.to_string(), socket.serial.unwrap()))
            .collect()
    }

    fn named(all: &[(&str, u64)]) -> Vec<(String, u64)> {
        let all = all.iter();
        all.map(|(name, id)| ((*name).to_owned(), *id)).collect()
    }

    #[test]
    fn a_socket_that_makes_way_stays_open_and_takes_its_name_back() {
        let (mut world, keeper, file) = empty_world();
        let me = caller(1, None);
        let ask = |world: &mut World, backlog, aside| {
            make(world, &me, Room { in_use: 0 }, request(backlog, aside))
        };
        let (old, _) = ask(&mut world, 1, false).unwrap();
        told(&keeper);
        let descriptor = world.socket_fds[&old].as_raw_fd();
        let (new, created) = ask(&mut world, 2, true).unwrap();
        assert!(created && new != old);
        let both = named(&[("ns.OLD", old), ("ns.web", new)]);
        assert_eq!(names(&world), both);
        assert_eq!(world.socket_fds[&old].as_raw_fd(), descriptor);
        assert_eq!(ask(&mut world, 2, true), Ok((new, false)), "twice is once");
        let numbers = |world: &World| {
            let rows = world.table.sockets();
            rows.filter_map(|row| row.number).collect::<Vec<_>>()
        };
        assert_eq!(numbers(&world).len(), 2);
        assert_ne!(numbers(&world)[0], numbers(&world)[1]);
        let after = recovered(&file);
        assert_eq!(after.socket_named("ns.OLD").unwrap().id, old);
        assert_eq!(after.socket_named("ns.web").unwrap().id, new);
        let put = vec![Key::new(Kind::SOCKET, new)];
        assert_eq!(told(&keeper), Some((ToKeeper::Put(put), 1)));

        assert_eq!(ask(&mut world, 1, true), Ok((old, false)));
        assert_eq!(names(&world), named(&[("ns.web", old)]));
        assert_eq!(world.socket_fds.len(), 1);
        world.tell_unkept();
        let dropped = vec![Key::new(Kind::SOCKET, new)];
        assert_eq!(told(&keeper), Some((ToKeeper::Drop(dropped), 0)));
        let after = recovered(&file);
        assert_eq!(after.sockets().count(), 1);
        assert_eq!(after.socket_named("ns.web").unwrap().id, old);
        assert!(after.socket_named("ns.OLD").is_none());
    }

    #[test]
    fn the_first_that_made_way_is_what_is_returned_to() {
        let (mut world, _keeper, _file) = empty_world();
        let me = caller(1, None);
        let ask = |world: &mut World, backlog| {
            make(world, &me, Room { in_use: 0 }, request(backlog, true))
        };
        let (old, _) = ask(&mut world, 1).unwrap();
        ask(&mut world, 2).unwrap();
        let (newest, _) = ask(&mut world, 3).unwrap();
        assert_eq!(names(&world), named(&[("ns.OLD", old), ("ns.web", newest)]));
        assert_eq!(ask(&mut world, 1), Ok((old, false)));
        assert_eq!(names(&world), named(&[("ns.web", old)]));
    }

    #[test]
    fn nothing_makes_way_for_a_socket_that_cannot_be_bound() {
        let (mut world, _keeper, _file) = empty_world();
        let me = caller(1, None);
        let (old, _) = make(&mut world, &me, Room { in_use: 0 }, request(1, true)).unwrap();
        let mut same_port = request(2, true);
        same_port.port = world.table.socket(old).map(|row| row.port);
        make(&mut world, &me, Room { in_use: 0 }, same_port).unwrap_err();
        assert_eq!(names(&world), named(&[("ns.web", old)]));
        // As a kernel that died between the two steps leaves it.
        rename(&mut world, old, &Name::new("ns.OLD").unwrap()).unwrap();
        let again = make(&mut world, &me, Room { in_use: 0 }, request(1, true));
        assert_eq!(again, Ok((old, false)));
        assert_eq!(remove(&mut world, &me, &[], false), Ok(1));
    }
}
