//! Sections that ask for the same address.
//!
//! Owns the rules for which sockets can be bound at the same time. `::` takes IPv4 too unless it is
//! told otherwise; it leaves IPv4 alone where another section has that. Leaves to others: addresses
//! in use outside the file, which the kernel finds.
//! Source: `ipv6(7)`, `socket(7)`; `inet_csk_bind_conflict` of Linux.

use std::net::IpAddr;

use crate::problem::Findings;
use crate::types::{SocketConfig, SocketFamily, SocketType};

/// Sets `v6only` where it is not written and another section needs it, and reports what cannot be
/// bound side by side.
pub(super) fn settle(sockets: &mut [SocketConfig], findings: &mut Findings) {
    for index in 0..sockets.len() {
        let socket = &sockets[index];
        let needs = |other: &SocketConfig| {
            other.family == SocketFamily::Inet
                && other.kind == socket.kind
                && has_port(other)
                && other.port == socket.port
        };
        if takes_both(socket) && socket.v6only.is_none() && sockets.iter().any(needs) {
            sockets[index].v6only = Some(true);
        }
    }
    for (index, socket) in sockets.iter().enumerate() {
        for first in &sockets[..index] {
            // The same name is another mistake, told elsewhere.
            if first.name != socket.name && clash(first, socket) {
                report(first, socket, findings);
            }
        }
    }
}

fn report(first: &SocketConfig, socket: &SocketConfig, findings: &mut Findings) {
    let (name, place, origin) = (&socket.name, socket.place(), &first.origin);
    let other = format!("[socket:{}] at {origin}", first.name);
    let meant = if first.place() == place {
        format!("[socket:{name}] has the address {place} as {other} has it")
    } else {
        format!(
            "[socket:{name}] has the address {place}, which {other} takes too, being {}",
            first.place()
        )
    };
    // The system lets both have it, and gives all datagrams to one.
    if socket.path.is_none() && socket.kind == SocketType::Dgram {
        let message = format!("{meant}: only one of them gets what is sent there");
        return findings.warn(&socket.origin, message);
    }
    let families = first.family != socket.family && socket.path.is_none();
    let remedy = if families {
        "expected another port, or no v6only = no"
    } else if socket.path.is_some() {
        "expected another path"
    } else {
        "expected another address or port, or so_reuseport = yes in both"
    };
    // As in Circus no mistake: the second is reported as it cannot be bound, and its watchers wait.
    findings.warn(&socket.origin, format!("{meant}: {remedy}"));
}

/// Whether only one of two can be bound.
fn clash(one: &SocketConfig, other: &SocketConfig) -> bool {
    if one.path.is_some() || other.path.is_some() {
        return one.path == other.path;
    }
    let apart = matches!((&one.interface, &other.interface), (Some(a), Some(b)) if a != b);
    one.kind == other.kind
        && has_port(one)
        && one.port == other.port
        && !apart
        && !(one.reuseport && other.reuseport)
        && overlap(one, other)
}

fn overlap(one: &SocketConfig, other: &SocketConfig) -> bool {
    match (address(one), address(other)) {
        (Some(a), Some(b)) if a.is_ipv4() == b.is_ipv4() => {
            a == b || a.is_unspecified() || b.is_unspecified()
        }
        (Some(_), Some(_)) => takes_both(one) || takes_both(other),
        // A name is whatever it leads to.
        _ => one.host == other.host && one.family == other.family,
    }
}

/// `::` takes IPv4 too unless told otherwise.
fn takes_both(socket: &SocketConfig) -> bool {
    has_port(socket)
        && socket.family == SocketFamily::Inet6
        && socket.v6only != Some(true)
        && address(socket).is_some_and(|address| address.is_unspecified())
}

fn has_port(socket: &SocketConfig) -> bool {
    socket.port.is_some_and(|port| port > 0)
}

/// The address bound to, if it is written as one; an IPv4 address in IPv6's clothes is the former.
fn address(socket: &SocketConfig) -> Option<IpAddr> {
    let address: IpAddr = socket.host.as_ref()?.parse().ok()?;
    Some(address.to_canonical())
}
