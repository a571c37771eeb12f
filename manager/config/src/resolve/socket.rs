//! `[socket:NAME]`.
//!
//! Owns a socket's keys and defaults; the kernel makes the socket. One difference from Circus: a
//! mask with a leading 0 is octal. The shared socket is non-blocking as Circus's are: asyncio and
//! tornado trust the flag they inherit. Those that papa held were blocking, so they are where the
//! section says `use_papa`.
//! Source: Circus 0.17.2's `CircusSocket`.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::environment::Lookup;
use crate::fields::Fields;
use crate::problem::Findings;
use crate::raw::RawSection;
use crate::resolve::{MAX_KERNEL_NAME_BYTES, Surroundings, keys, name_fault};
use crate::scalar;
use crate::types::{SocketConfig, SocketFamily, SocketType};

/// Circus's default port.
const DEFAULT_PORT: u16 = 8080;

/// Circus's default accept queue.
const DEFAULT_BACKLOG: u32 = 2048;

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
    keys::report(&mut fields, keys::Kind::Socket, section.own, false);
    keys::report_variables(&mut fields, |_| false);
    let path = fields.path("path", &around.directory);
    check_place(&mut fields, path.is_some());
    if let Some(path) = &path {
        check_path(&mut fields, path);
    }
    let family = family(&mut fields, path.is_some());
    let unix = family == SocketFamily::Unix;
    if unix && path.is_none() {
        fields.findings.error(
            &section.origin,
            format!("[socket:{name}] has family AF_UNIX but no path"),
        );
    }
    let kind = fields
        .parsed("type", socket_type)
        .unwrap_or(SocketType::Stream);
    check_protocol(&mut fields, unix, kind);
    if !unix {
        check_host(&mut fields);
    }
    let port = fields
        .whole("port", 0, i64::from(u16::MAX))
        .unwrap_or(DEFAULT_PORT);
    let use_papa = fields.boolean("use_papa", true);
    let as_papa = fields.origin("use_papa").is_some() && use_papa;
    let blocking = fields.boolean("blocking", as_papa);
    Some(SocketConfig {
        family,
        kind,
        umask: umask(&mut fields).filter(|_| unix),
        host: (!unix).then(|| host(&fields, family)),
        port: (!unix).then_some(port),
        interface: fields.filled("interface"),
        backlog: fields
            .whole("backlog", 0, i64::from(i32::MAX))
            .unwrap_or(DEFAULT_BACKLOG),
        reuseport: fields.boolean("so_reuseport", false),
        replace: fields.boolean("replace", false),
        nonblocking: !blocking,
        v6only: v6only(&mut fields, family),
        use_papa,
        path,
        name,
        origin: section.origin.clone(),
    })
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
fn check_host(fields: &mut Fields<'_>) {
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

fn v6only(fields: &mut Fields<'_>, family: SocketFamily) -> Option<bool> {
    let origin = fields.origin("v6only")?;
    let written = fields.boolean("v6only", false);
    if family != SocketFamily::Inet6 {
        let message = "v6only: has no effect, only a socket of family AF_INET6 has it";
        fields.findings.warn(origin, message);
        return None;
    }
    Some(written)
}

fn family(fields: &mut Fields<'_>, has_path: bool) -> SocketFamily {
    let family = fields.parsed("family", |text| match prefixless(text, "AF_").as_str() {
        "INET" => Ok(SocketFamily::Inet),
        "INET6" => Ok(SocketFamily::Inet6),
        "UNIX" => Ok(SocketFamily::Unix),
        _ => Err("expected AF_INET, AF_INET6 or AF_UNIX".to_owned()),
    });
    // A path decides, as in Circus.
    if has_path {
        return SocketFamily::Unix;
    }
    let host = fields.filled("host").unwrap_or_default();
    let is_v6 = host.trim().parse::<Ipv6Addr>().is_ok();
    match family {
        Some(SocketFamily::Inet) if is_v6 => {
            if let Some(origin) = fields.origin("host") {
                let message = format!(
                    "host {host:?}: is no address of family AF_INET; write family = AF_INET6"
                );
                fields.findings.error(origin, message);
            }
            SocketFamily::Inet
        }
        None if is_v6 => SocketFamily::Inet6,
        family => family.unwrap_or(SocketFamily::Inet),
    }
}

fn socket_type(text: &str) -> Result<SocketType, String> {
    match prefixless(text, "SOCK_").as_str() {
        "STREAM" => Ok(SocketType::Stream),
        "DGRAM" => Ok(SocketType::Datagram),
        "RAW" => Ok(SocketType::Raw),
        "RDM" => Ok(SocketType::Rdm),
        "SEQPACKET" => Ok(SocketType::SeqPacket),
        _ => {
            Err("expected SOCK_STREAM, SOCK_DGRAM, SOCK_RAW, SOCK_RDM or SOCK_SEQPACKET".to_owned())
        }
    }
}

/// The kernel opens sockets with their type's usual protocol; naming that one changes nothing.
fn check_protocol(fields: &mut Fields<'_>, unix: bool, kind: SocketType) {
    if fields.filled("proto").is_none() {
        return;
    }
    let usual = match (unix, kind) {
        (false, SocketType::Stream) => Some("tcp"),
        (false, SocketType::Datagram) => Some("udp"),
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

fn prefixless(text: &str, prefix: &str) -> String {
    let text = text.trim().to_uppercase();
    text.strip_prefix(prefix).unwrap_or(&text).to_owned()
}

/// Circus binds to `localhost` unless told otherwise, by an address of the socket's family.
fn host(fields: &Fields<'_>, family: SocketFamily) -> String {
    match fields.filled("host") {
        Some(host) if !host.trim().eq_ignore_ascii_case("localhost") => host.trim().to_owned(),
        _ if family == SocketFamily::Inet6 => "::1".to_owned(),
        _ => "127.0.0.1".to_owned(),
    }
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
