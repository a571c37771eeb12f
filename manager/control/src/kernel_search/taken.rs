//! Who is at the kernel's place and is no kernel of ours.
//!
//! Owns the one sentence about it: who that is, as far as the system tells, and how to go another
//! way.

use std::net::{IpAddr, Ipv4Addr, TcpListener};

use nix::unistd::{Uid, User};
use papa_client::{Address, ClientError};

use papa_system::holder::{self, Sought};

/// How the kernel of another user begins what it tells us.
const ANOTHER_USERS: &str = "papa: this kernel belongs to ";
/// What the client says of a kernel with the original's greeting and without our dialect.
const NO_JSON: &str = "does not speak JSON";
/// What the client says of a listener of another user.
const NOT_TRUSTED: &str = "the listener belongs to";
/// How many ports are tried for the example.
const MAX_PORTS: u16 = 100;

/// The sentence for a port of this machine that somebody else serves; none for other places.
pub(super) fn describe(address: &Address, source: &ClientError) -> Option<String> {
    let Address::Tcp(place) = address else {
        return None;
    };
    if !place.ip().is_loopback() {
        return None;
    }
    let said = source.to_string();
    let holder = holder::of_address(&Sought {
        address: Some(place.ip()),
        port: place.port(),
        datagram: false,
    });
    let user = holder.as_ref().and_then(|holder| holder.uid);
    let others = user.is_some_and(|uid| uid != Uid::effective().as_raw());
    let process = holder
        .as_ref()
        .filter(|holder| holder.pid.is_some())
        .map(ToString::to_string);
    let of_user = user.filter(|_| others).map(account);
    let who = match (process, of_user) {
        (Some(process), Some(user)) => format!("{process} of {user}"),
        (Some(process), None) => process,
        (None, Some(user)) => format!("a program of {user}"),
        (None, None) => "another program".to_owned(),
    };
    let what = if said.contains(ANOTHER_USERS) {
        "a papa kernel that serves only that user and root".to_owned()
    } else if said.contains(NO_JSON) {
        "which is an original papa and not this kernel; its processes cannot be taken over"
            .to_owned()
    } else if said.contains(NOT_TRUSTED) && Uid::effective().is_root() {
        "which root does not use: run papactl as that user for what runs there".to_owned()
    } else if said.contains(NOT_TRUSTED) {
        "which is not trusted with what a kernel is told".to_owned()
    } else {
        format!("which is no papa kernel ({said})")
    };
    Some(format!(
        "port {} is taken by {who}, {what}; end it, or give your kernel another port in [circus] of your file: papa_endpoint = tcp://127.0.0.1:{}",
        place.port(),
        free_port_after(place.port())
    ))
}

/// A port that nobody has, for an example.
fn free_port_after(port: u16) -> u16 {
    let next = port.saturating_add(1);
    (next..next.saturating_add(MAX_PORTS))
        .find(|port| TcpListener::bind((IpAddr::from(Ipv4Addr::LOCALHOST), *port)).is_ok())
        .unwrap_or(next)
}

/// A user for people: name and number, or the number alone.
pub fn account(uid: u32) -> String {
    match User::from_uid(Uid::from_raw(uid)) {
        Ok(Some(user)) => format!("user {} (uid {uid})", user.name.escape_debug()),
        _ => format!("uid {uid}"),
    }
}
