//! Sockets made for workers: bound once, kept whatever happens to us.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::SockType;
use papa_protocol::classic::{Error, socket_line};
use papa_protocol::json::ErrorCode;
use papa_protocol::json::push::{Event, EventType};
use papa_protocol::json::request::SocketMake;
use papa_protocol::limits::MAX_SOCKETS;
use papa_protocol::name::NamePattern;
use papa_protocol::socket::{DEFAULT_BACKLOG, Family, SocketInfo, SocketType};
use papa_protocol::text::escape_control_bytes;

use super::claim::may_change;
use super::held::duplicate_failed;
use super::room::Room;
use super::{VerbError, fail, limit, not_recorded, refused};
use crate::keeper::wire::{Key, Kind};
use crate::sys::socket::{Address, Options, is_bound_at, local_port, open_listener, server_at};
use crate::world::World;
use crate::world::caller::Caller;
use crate::world::table::{Entry, SocketRow, known};

mod aside;

/// The first number a socket gets: above what programs use by themselves,
/// below the descriptor limits they run under.
pub(crate) const FIRST_NUMBER: u32 = 100;
/// Most bytes of the hosts file looked at.
const MAX_HOSTS_BYTES: u64 = 1 << 20;

/// Makes a socket, or answers the equal one there is (then `false`). With `aside`, one of that name
/// that is different makes way; see `aside`.
///
/// # Errors
/// One of that name or path is different and does not make way, or binding failed. Then nothing
/// has changed.
pub(crate) fn make(
    world: &mut World,
    caller: &Caller,
    room: Room,
    mut make: SocketMake,
) -> Result<(u64, bool), VerbError> {
    let force = std::mem::take(&mut make.force);
    may_change(world, caller, &make.name, force)?;
    let replace = std::mem::take(&mut make.replace);
    let aside = make.aside.take();
    if let Some(aside) = &aside {
        may_change(world, caller, aside, force)?;
    }
    settle_defaults(&mut make)?;
    if let Some(row) = world.table.socket_named(&make.name) {
        if is_same(&row.make, row.port, &make) {
            return Ok((row.id, false));
        }
        if aside.is_none() {
            return Err(Error::SocketExists {
                name: make.name.clone(),
                line: socket_line(&describe(row)),
            });
        }
    }
    if let Some(aside) = &aside
        && let Some(id) = aside::take_back(world, aside, &make)?
    {
        return Ok((id, false));
    }
    if world.table.sockets().count() >= MAX_SOCKETS {
        return Err(limit("sockets", MAX_SOCKETS));
    }
    room.check(1)?;
    if let Some(path) = &make.path {
        if world
            .table
            .sockets()
            .any(|row| row.make.path.as_ref() == Some(path))
        {
            return Err(Error::PathExists(path.display()));
        }
        make_room(path.as_path(), replace)?;
    }
    let fd = open(&make, None)?;
    let port = local_port(&fd).map_err(|errno| refused("getsockname", errno))?;
    let id = world.table.next_id;
    let number = (!make.reuseport).then(|| world.table.free_socket_number(FIRST_NUMBER));
    let key = Key::new(Kind::SOCKET, id);
    // With reuseport the kernel holds no listener: it would be dealt
    // connections that nobody accepts.
    if number.is_some() {
        world
            .keep(&[(key, fd.as_fd())])
            .map_err(|errno| refused("keep the socket", errno))?;
    }
    let name = make.name.clone();
    let made_way = match &aside {
        Some(aside) => {
            aside::make_way(world, &name, aside).inspect_err(|_| world.unkeep(&[key]))?
        }
        None => None,
    };
    let row = SocketRow {
        id,
        make,
        port,
        number,
    };
    if let Err(error) = world.commit(Entry::Socket(Box::new(row))) {
        world.unkeep(&[key]);
        if let Some(before) = made_way {
            aside::rename(world, before, &name)?;
        }
        return Err(not_recorded(&error));
    }
    if number.is_some() {
        world.socket_fds.insert(id, fd);
    }
    tracing::info!(session = caller.session, %name, "socket made");
    announce_socket(world, id, EventType::SocketMade);
    Ok((id, true))
}

/// Sockets that match, described; unknown names are left out.
pub(crate) fn list(world: &World, patterns: &[NamePattern]) -> Vec<SocketInfo> {
    let mut listed: Vec<SocketInfo> =
        known(patterns, |patterns| world.table.find_sockets(patterns))
            .into_iter()
            .filter_map(|id| describe_with_path(world, id))
            .collect();
    listed.sort_by(|one, other| one.name.cmp(&other.name));
    listed.dedup_by(|one, other| one.name == other.name);
    listed
}

/// One socket, described, and whether its path still leads to it.
pub(crate) fn describe_with_path(world: &World, id: u64) -> Option<SocketInfo> {
    let row = world.table.socket(id)?;
    let mut info = describe(row);
    if let (Some(path), Some(fd)) = (&row.make.path, world.socket_fds.get(&id)) {
        info.at_path = match is_bound_at(fd, path.as_path()) {
            Ok(bound) => Some(bound),
            Err(Errno::ENOENT | Errno::ENOTDIR) => Some(false),
            Err(_) => None,
        };
    }
    Some(info)
}

/// Closes sockets and removes their paths.
///
/// # Errors
/// A plain name names nothing; then nothing is removed.
pub(crate) fn remove(
    world: &mut World,
    caller: &Caller,
    patterns: &[NamePattern],
    force: bool,
) -> Result<u64, VerbError> {
    let ids = world
        .table
        .find_sockets(patterns)
        .map_err(|pattern| Error::NotFound(pattern.clone()))?;
    for id in &ids {
        if let Some(row) = world.table.socket(*id) {
            may_change(world, caller, &row.make.name, force)?;
        }
    }
    for id in &ids {
        close(world, *id)?;
    }
    Ok(ids.len() as u64)
}

/// Closes a socket and removes its path.
fn close(world: &mut World, id: u64) -> Result<(), VerbError> {
    announce_socket(world, id, EventType::SocketRemoved);
    let row = world.table.socket(id);
    let path = row.and_then(|row| row.make.path.clone());
    world
        .commit(Entry::Unsocket { id })
        .map_err(|error| not_recorded(&error))?;
    let fd = world.socket_fds.remove(&id);
    world.unkeep(&[Key::new(Kind::SOCKET, id)]);
    if let (Some(path), Some(fd)) = (path, fd) {
        remove_own_path(path.as_path(), &fd);
    }
    Ok(())
}

/// A copy of a socket's descriptor.
///
/// # Errors
/// The namespace is claimed by someone else, `not_found`, or `unsupported` for one that the kernel
/// holds none of.
pub(crate) fn fetch(world: &World, caller: &Caller, name: &str) -> Result<OwnedFd, VerbError> {
    may_change(world, caller, name, false)?;
    let row = world
        .table
        .socket_named(name)
        .ok_or_else(|| Error::SocketNotFound(name.to_owned()))?;
    let fd = world.socket_fds.get(&row.id).ok_or_else(|| {
        fail(
            ErrorCode::Unsupported,
            &format!("{name} shares its port (reuseport): each process gets its own socket"),
        )
    })?;
    fd.try_clone().map_err(|error| duplicate_failed(&error))
}

fn announce_socket(world: &mut World, id: u64, kind: EventType) {
    let Some(row) = world.table.socket(id) else {
        return;
    };
    let event = Event {
        sub: 0,
        seq: 0,
        kind,
        name: row.make.name.clone(),
        serial: None,
        process: None,
        socket: Some(describe(row)),
    };
    world.events.push(event);
}

/// Fills in what was left out, so that equal requests compare equal.
fn settle_defaults(make: &mut SocketMake) -> Result<(), VerbError> {
    let family = make.effective_family();
    make.family = Some(family);
    make.backlog = Some(make.backlog.unwrap_or(DEFAULT_BACKLOG));
    if family == Family::Unix {
        let absolute = make
            .path
            .as_ref()
            .is_some_and(|path| path.as_bytes().starts_with(b"/"));
        if !absolute {
            return Err(Error::PathNotAbsolute);
        }
        make.host = None;
        make.port = None;
        make.interface = None;
        make.reuseport = false;
        make.v6only = None;
    } else {
        make.path = None;
        make.umask = None;
        make.v6only = make.v6only.filter(|_| family == Family::Inet6);
        let host = family
            .default_host(make.interface.is_some())
            .unwrap_or_default();
        make.host.get_or_insert_with(|| host.to_owned());
        make.port.get_or_insert(0);
    }
    Ok(())
}

/// Whether a request asks for the socket there is; port 0 fits any.
fn is_same(have: &SocketMake, port: u16, want: &SocketMake) -> bool {
    let wanted_port = want.port.unwrap_or(0);
    if wanted_port != 0 && wanted_port != port {
        return false;
    }
    let mut want = want.clone();
    want.port = have.port;
    // As in papa 1.0.6, which could not tell afterwards either.
    want.reuseport = have.reuseport;
    *have == want
}

pub(crate) fn describe(row: &SocketRow) -> SocketInfo {
    let make = &row.make;
    let family = make.effective_family();
    SocketInfo {
        name: make.name.clone(),
        family,
        socket_type: make.socket_type,
        backlog: make.backlog.unwrap_or(DEFAULT_BACKLOG),
        path: make.path.clone(),
        umask: make.umask,
        host: make.host.clone(),
        port: (family != Family::Unix).then_some(row.port),
        interface: make.interface.clone(),
        reuseport: make.reuseport,
        nonblocking: make.nonblocking,
        v6only: make.v6only,
        serial: Some(row.id),
        at_path: None,
        fileno: row.number,
    }
}

/// Opens a socket as asked; `port` replaces the one asked for.
pub(crate) fn open(make: &SocketMake, port: Option<u16>) -> Result<OwnedFd, VerbError> {
    let options = Options {
        kind: match make.socket_type {
            SocketType::Stream => SockType::Stream,
            SocketType::Dgram => SockType::Datagram,
            SocketType::Raw => SockType::Raw,
            SocketType::Rdm => SockType::Rdm,
            SocketType::Seqpacket => SockType::SeqPacket,
        },
        backlog: i32::try_from(make.backlog.unwrap_or(DEFAULT_BACKLOG)).unwrap_or(i32::MAX),
        interface: make.interface.as_deref(),
        reuseport: make.reuseport,
        umask: make.umask.map(papa_protocol::socket::Umask::bits),
        nonblocking: make.nonblocking,
        v6only: make.v6only,
    };
    if let Some(path) = &make.path {
        return open_listener(Address::Path(path.as_path()), &options).map_err(|errno| {
            Error::BindPathFailed {
                errno: errno as i32,
                reason: errno.desc().to_owned(),
            }
        });
    }
    let host = make.host.as_deref().unwrap_or_default();
    let port = port.or(make.port).unwrap_or(0);
    let address = resolve(host, make.effective_family() == Family::Inet6)?;
    open_listener(Address::Internet(SocketAddr::new(address, port)), &options).map_err(|errno| {
        Error::BindFailed {
            host: host.to_owned(),
            port,
            errno: errno as i32,
            reason: errno.desc().to_owned(),
        }
    })
}

/// An address, `localhost`, or a name in the hosts file. No name server is
/// asked: a slow one would hold up everybody.
fn resolve(host: &str, v6: bool) -> Result<IpAddr, VerbError> {
    let fits = |address: &IpAddr| address.is_ipv6() == v6;
    if let Ok(address) = host.parse::<IpAddr>() {
        return Some(address).filter(fits).ok_or_else(|| {
            let family = if v6 { "inet6" } else { "inet" };
            fail(
                ErrorCode::Invalid,
                &format!("host {host:?} is not an address of family {family}"),
            )
        });
    }
    if host.eq_ignore_ascii_case("localhost") {
        return Ok(if v6 {
            IpAddr::V6(std::net::Ipv6Addr::LOCALHOST)
        } else {
            IpAddr::V4(std::net::Ipv4Addr::LOCALHOST)
        });
    }
    let mut text = String::new();
    if let Ok(file) = std::fs::File::open("/etc/hosts") {
        let _ = std::io::Read::read_to_string(
            &mut std::io::Read::take(file, MAX_HOSTS_BYTES),
            &mut text,
        );
    }
    let found = text.lines().find_map(|line| {
        let mut words = line.split('#').next()?.split_whitespace();
        let address: IpAddr = words.next()?.parse().ok().filter(fits)?;
        words
            .any(|name| name.eq_ignore_ascii_case(host))
            .then_some(address)
    });
    found.ok_or_else(|| {
        fail(
            ErrorCode::Invalid,
            &format!("host {host:?}: expected an address, localhost, or a name in /etc/hosts"),
        )
    })
}

/// Removes a socket file that nobody serves, as papa 1.0.6 does, and with
/// `replace` one that somebody does. Anything else stays.
fn make_room(path: &std::path::Path, replace: bool) -> Result<(), VerbError> {
    use std::os::unix::fs::FileTypeExt;
    let failed = |errno: Errno, reason: String| Error::BindPathFailed {
        errno: errno as i32,
        reason,
    };
    match std::fs::symlink_metadata(path) {
        Err(_) => return Ok(()),
        Ok(metadata) if metadata.file_type().is_socket() => {}
        Ok(_) => {
            return Err(failed(
                Errno::EADDRINUSE,
                "a file that is not a socket is in the way".to_owned(),
            ));
        }
    }
    if !replace {
        let shown = escape_control_bytes(path.as_os_str().as_encoded_bytes());
        match server_at(path) {
            Ok(None) => {}
            Ok(Some(server)) => {
                let who = server.describe();
                return Err(failed(
                    Errno::EADDRINUSE,
                    format!("{shown} is served by {who}"),
                ));
            }
            Err(errno) => {
                return Err(failed(
                    errno,
                    format!("cannot ask who serves {shown}; remove it if nobody does"),
                ));
            }
        }
    }
    std::fs::remove_file(path).map_err(|error| {
        failed(
            Errno::from_raw(error.raw_os_error().unwrap_or(0)),
            "cannot remove the old socket".to_owned(),
        )
    })
}

/// Removes the file a socket of ours was bound to, unless another has taken
/// its place by now.
fn remove_own_path(path: &std::path::Path, fd: &OwnedFd) {
    use std::os::unix::fs::FileTypeExt;
    let ours = is_bound_at(fd, path).unwrap_or_else(|_| {
        // A system that cannot be asked; what is no socket is somebody else's.
        std::fs::symlink_metadata(path).is_ok_and(|there| there.file_type().is_socket())
    });
    if ours {
        // One that has just gone is as good.
        let _ = std::fs::remove_file(path);
    }
}

#[cfg(test)]
mod tests {
    use papa_protocol::name::Name;

    use super::*;
    use crate::keeper::wire::ToKeeper;
    use crate::verbs::claim;
    use crate::world::caller::tests::caller;
    use crate::world::tests::{empty_world, recovered, told};

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    fn at(name_: &str, path: &std::path::Path) -> SocketMake {
        let mut make = SocketMake::new(name(name_));
        make.path = Some(path.to_str().unwrap().into());
        make
    }

    fn room() -> Room {
        Room { in_use: 0 }
    }

    #[test]
    fn a_socket_is_made_once_and_its_path_goes_with_it() {
        let (mut world, keeper, file) = empty_world();
        let me = caller(1, None);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let (id, created) = make(&mut world, &me, room(), at("a", &path)).unwrap();
        assert!(created && path.exists());
        assert_eq!(
            make(&mut world, &me, room(), at("a", &path)),
            Ok((id, false))
        );
        let other = at("a", &directory.path().join("other"));
        make(&mut world, &me, room(), other).unwrap_err();
        make(&mut world, &me, room(), at("b", &path)).unwrap_err();
        assert_eq!(recovered(&file).sockets().count(), 1);
        let key = vec![Key::new(Kind::SOCKET, id)];
        assert_eq!(told(&keeper), Some((ToKeeper::Put(key.clone()), 1)));
        assert_eq!(remove(&mut world, &me, &[], false), Ok(1));
        world.tell_unkept();
        assert_eq!(told(&keeper), Some((ToKeeper::Drop(key), 0)));
        assert!(!path.exists());
        let said: Vec<_> = world.events.iter().map(|event| event.kind).collect();
        assert_eq!(said, [EventType::SocketMade, EventType::SocketRemoved]);
    }

    #[test]
    fn a_file_that_is_no_socket_of_ours_is_left_where_it_is() {
        let (mut world, _keeper, _file) = empty_world();
        let me = caller(1, None);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        std::fs::write(&path, "text").unwrap();
        make(&mut world, &me, room(), at("a", &path)).unwrap_err();
        assert_eq!(std::fs::read(&path).unwrap(), b"text");
        std::fs::remove_file(&path).unwrap();
        make(&mut world, &me, room(), at("a", &path)).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "text").unwrap();
        assert_eq!(list(&world, &[])[0].at_path, Some(false));
        remove(&mut world, &me, &[], false).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"text");
    }

    #[test]
    fn a_claimed_socket_is_removed_by_its_holder_or_by_force() {
        let (mut world, _keeper, _file) = empty_world();
        let (holder, other) = (caller(1, Some(10)), caller(2, Some(20)));
        claim::claim(&mut world, &holder, &name("ns"), "me".into(), false).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        make(&mut world, &other, room(), at("ns.a", &path)).unwrap_err();
        make(&mut world, &holder, room(), at("ns.a", &path)).unwrap();
        remove(&mut world, &other, &[], false).unwrap_err();
        fetch(&world, &other, "ns.a").unwrap_err();
        fetch(&world, &holder, "ns.a").unwrap();
        assert_eq!(remove(&mut world, &other, &[], true), Ok(1));
    }
}
