//! `[socket:NAME]`.
//!
//! Owns what follows from several keys; `known` reads each key, and the kernel makes the socket. A
//! mask with a leading 0 is octal, unlike in Circus. The shared socket is non-blocking, as in
//! Circus: asyncio and tornado trust the flag they inherit. With `use_papa` it is blocking, as the
//! sockets were that papa held for Circus.
//! Source: Circus 0.17.2's `CircusSocket`.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::environment::Lookup;
use crate::fields::{Around, Fields};
use crate::known;
use crate::problem::Findings;
use crate::raw::RawSection;
use crate::resolve::{MAX_KERNEL_NAME_BYTES, keys, name_fault};
use crate::scalar;
use crate::surroundings::Surroundings;
use crate::types::{SocketConfig, SocketFamily, SocketType};

/// Circus's default mask for a unix socket, 8: everybody may connect, the group may not look. It is
/// odd, but a front end running as another user depends on being let in.
const DEFAULT_UMASK: u32 = 0o010;

/// Longest path of a unix socket, in bytes. Source: unix(7), `sun_path` less its final NUL.
const MAX_SOCKET_PATH_BYTES: usize = 107;

/// Bytes of a kernel name left for the namespace and a dot.
const NAMESPACE_ROOM: usize = 40;

/// Reads one socket's section; none if it cannot be made sense of.
pub(super) fn resolve(
    section: &RawSection,
    lookup: &Lookup,
    around: &Surroundings,
    findings: &mut Findings,
) -> Option<SocketConfig> {
    const { assert!(NAMESPACE_ROOM < MAX_KERNEL_NAME_BYTES) };
    let name = section.name.to_lowercase();
    if let Some(fault) = name_fault(&name, NAMESPACE_ROOM) {
        findings.error(&section.origin, fault);
    }
    let mut fields = Fields::new(&section.entries, lookup, findings);
    keys::report(&mut fields, keys::SectionKind::Socket, section.own, false);
    keys::report_variables(&mut fields, |_| false);
    let as_papa = fields.origin("use_papa").is_some() && fields.boolean("use_papa", true);
    let host = fields.filled("host").unwrap_or_default();
    let host_is_v6 = host.trim().parse::<Ipv6Addr>().is_ok();
    let mut socket = SocketConfig {
        name,
        origin: section.origin.clone(),
        family: if host_is_v6 {
            SocketFamily::Inet6
        } else {
            SocketFamily::Inet
        },
        nonblocking: !as_papa,
        use_papa: true,
        ..SocketConfig::default()
    };
    let around = Around {
        directory: &around.directory,
        sockets: &[],
    };
    fields.fill(known::SOCKET, "", &mut socket, around);
    check_place(&mut fields, socket.path.is_some());
    if let Some(path) = &socket.path {
        check_path(&mut fields, path);
        // A path decides, as in Circus.
        socket.family = SocketFamily::Unix;
    }
    let unix = socket.family == SocketFamily::Unix;
    if unix && socket.path.is_none() {
        fields.findings.error(
            &section.origin,
            format!("[socket:{}] has family AF_UNIX but no path", socket.name),
        );
    }
    check_protocol(&mut fields, unix, socket.kind);
    settle_place(&mut socket, &mut fields);
    Some(socket)
}

/// Clears what a socket of its family does not have, and reports what is wrong with the rest.
fn settle_place(socket: &mut SocketConfig, fields: &mut Fields<'_>) {
    let umask = umask(fields);
    if socket.family == SocketFamily::Unix {
        socket.umask = umask;
        socket.host = None;
        socket.port = None;
    } else {
        check_host(fields, socket.family);
        if let Some(host) = &mut socket.host
            && host.eq_ignore_ascii_case("localhost")
        {
            *host = localhost(socket.family).to_owned();
        }
    }
    if socket.family != SocketFamily::Inet6
        && socket.v6only.take().is_some()
        && let Some(origin) = fields.origin("v6only")
    {
        let message = "v6only: has no effect, only a socket of family AF_INET6 has it";
        fields.findings.warn(origin, message);
    }
}

/// Circus binds to `localhost` unless told otherwise, by an address of the socket's family.
fn localhost(family: SocketFamily) -> &'static str {
    match family {
        SocketFamily::Inet6 => "::1",
        SocketFamily::Inet | SocketFamily::Unix => "127.0.0.1",
    }
}

/// Keys that say nothing because another one, or none, says where the socket is.
fn check_place(fields: &mut Fields<'_>, has_path: bool) {
    if !has_path {
        if let Some(origin) = fields.origin("path") {
            let message = "path: is empty and has no effect; the socket gets a host and a port";
            fields.findings.warn(origin, message);
        }
        return;
    }
    for key in ["host", "port", "interface"] {
        if fields.filled(key).is_some()
            && let Some(origin) = fields.origin(key)
        {
            let message = format!("{key}: has no effect, path makes it a unix socket");
            fields.findings.warn(origin, message);
        }
    }
}

/// Hosts that no machine can bind to.
fn check_host(fields: &mut Fields<'_>, family: SocketFamily) {
    let (Some(host), Some(origin)) = (fields.filled("host"), fields.origin("host")) else {
        return;
    };
    let host = host.trim();
    if let Some((address, port)) = with_port(host) {
        let message = format!(
            "host {host:?}: expected an address without a port; write host = {address} and port = {port}"
        );
        return fields.findings.error(origin, message);
    }
    if looks_like_ipv4(host) && !is_ipv4(host) {
        let message = format!(
            "host {host:?}: is no IPv4 address; expected four numbers up to 255, an IPv6 address or a name"
        );
        return fields.findings.error(origin, message);
    }
    let address = host.parse::<Ipv6Addr>();
    if address.is_ok() && family == SocketFamily::Inet {
        let message =
            format!("host {host:?}: is no address of family AF_INET; write family = AF_INET6");
        fields.findings.error(origin, message);
    }
    if address.is_ok_and(|address| address.is_unicast_link_local())
        && fields.filled("interface").is_none()
    {
        let message = format!(
            "host {host:?}: is a link-local address, which every network interface has anew; name one with interface = NAME"
        );
        fields.findings.warn(origin, message);
    }
}

/// Address or name, and port, of a host that has both.
fn with_port(host: &str) -> Option<(String, u16)> {
    if let Ok(address) = host.parse::<SocketAddr>() {
        return Some((address.ip().to_string(), address.port()));
    }
    let (name, port) = host.split_once(':')?;
    Some((name.to_owned(), port.parse().ok()?))
}

/// The last part of a name is never a number.
fn looks_like_ipv4(host: &str) -> bool {
    host.rsplit('.')
        .next()
        .is_some_and(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()))
}

/// As `inet_aton(3)` reads it, which resolvers do: fewer than four numbers, the last one wide.
fn is_ipv4(host: &str) -> bool {
    if host.parse::<Ipv4Addr>().is_ok() {
        return true;
    }
    let parts: Vec<&str> = host.split('.').collect();
    let wide = 8 * (5_u32.saturating_sub(u32::try_from(parts.len()).unwrap_or(5)));
    parts.len() <= 4
        && parts.iter().enumerate().all(|(index, part)| {
            let bits = if index + 1 == parts.len() { wide } else { 8 };
            let number = match part.to_lowercase().strip_prefix("0x") {
                Some(digits) => u64::from_str_radix(digits, 16),
                None if part.len() > 1 && part.starts_with('0') => u64::from_str_radix(part, 8),
                None => part.parse(),
            };
            number.is_ok_and(|number| number < 1_u64 << bits)
        })
}

fn check_path(fields: &mut Fields<'_>, path: &std::path::Path) {
    let length = path.as_os_str().len();
    if length > MAX_SOCKET_PATH_BYTES
        && let Some(origin) = fields.origin("path")
    {
        fields.findings.error(
            origin,
            format!(
                "path {:?}: is {length} bytes long, a unix socket's path has at most {MAX_SOCKET_PATH_BYTES}",
                path.display().to_string()
            ),
        );
    }
}

/// The kernel opens sockets with their type's usual protocol; naming that one changes nothing.
fn check_protocol(fields: &mut Fields<'_>, unix: bool, kind: SocketType) {
    if fields.filled("proto").is_none() {
        return;
    }
    let usual = match (unix, kind) {
        (false, SocketType::Stream) => Some("tcp"),
        (false, SocketType::Dgram) => Some("udp"),
        _ => None,
    };
    fields.parsed("proto", |text| {
        let name = text.trim().to_lowercase();
        if name == "ip" || Some(name.as_str()) == usual {
            return Ok(());
        }
        Err(match usual {
            Some(usual) => format!("expected {usual}, which it is without this key too"),
            None => "expected no proto for a socket of this family and type".to_owned(),
        })
    });
}

fn umask(fields: &mut Fields<'_>) -> Option<u32> {
    let Some(text) = fields.filled("umask") else {
        return Some(DEFAULT_UMASK);
    };
    let digits = text.trim();
    if digits.starts_with('0') {
        if digits.len() > 1
            && let Some(origin) = fields.origin("umask")
        {
            fields.findings.differs(
                origin,
                format!("umask {digits}: read as octal because of the leading 0; Circus read it as decimal"),
            );
        }
        return fields.parsed("umask", scalar::octal_mask);
    }
    let mask = fields.parsed("umask", |text| {
        let mask = text.trim().parse::<u32>().ok();
        mask.filter(|mask| *mask <= 0o777).ok_or_else(|| {
            "expected an octal mask with a leading 0, or a decimal one, at most 0777".to_owned()
        })
    })?;
    if let Some(origin) = fields.origin("umask") {
        fields.findings.differs(
            origin,
            format!("umask {digits}: read as decimal as in Circus, so it is octal {mask:03o}; write 0{mask:o}"),
        );
    }
    Some(mask)
}
