//! Values of a stream's options: units of rotation, colours, syslog addresses and facilities.

use std::path::PathBuf;

use crate::scalar;
use crate::types::{RotateWhen, SyslogAddress};

/// Units of rotation by time.
pub(crate) const WHEN: &str = "S, M, H, D, MIDNIGHT or W0 (Monday) to W6";
/// In the order of their numbers, from 1.
const COLORS: [&str; 7] = ["red", "green", "yellow", "blue", "magenta", "cyan", "white"];
/// In the order of their numbers, from 0. Source: RFC 5424 section 6.2.1 and syslog(3).
const FACILITIES: [&str; 24] = [
    "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv",
    "ftp", "ntp", "audit", "alert", "clock", "local0", "local1", "local2", "local3", "local4",
    "local5", "local6", "local7",
];
/// Source: RFC 5426.
const SYSLOG_PORT: u16 = 514;

pub(crate) fn rotate_when(text: &str) -> Result<RotateWhen, String> {
    match text.trim().to_uppercase().as_str() {
        "S" => Ok(RotateWhen::Second),
        "M" => Ok(RotateWhen::Minute),
        "H" => Ok(RotateWhen::Hour),
        "D" => Ok(RotateWhen::Day),
        "MIDNIGHT" => Ok(RotateWhen::Midnight),
        other => match other.strip_prefix('W').map(str::parse) {
            Some(Ok(day @ 0..=6)) => Ok(RotateWhen::Weekday(day)),
            _ => Err(format!("expected {WHEN}")),
        },
    }
}

pub(crate) fn compress(text: &str) -> Result<bool, String> {
    match text.trim().to_lowercase().as_str() {
        "gzip" => Ok(true),
        other => match scalar::boolean(other) {
            Ok(false) => Ok(false),
            _ => Err("expected gzip or no".to_owned()),
        },
    }
}

/// Circus's `random` and an empty value leave the choice to us.
pub(crate) fn color(text: &str) -> Result<Option<u8>, String> {
    let text = text.trim().to_lowercase();
    if text.is_empty() || text == "random" {
        return Ok(None);
    }
    COLORS
        .iter()
        .zip(1..)
        .find(|(name, _)| **name == text)
        .map(|(_, number)| Some(number))
        .ok_or_else(|| format!("expected {}", COLORS.join(", ")))
}

/// A colour's word.
pub(crate) fn color_name(number: &u8) -> String {
    let index = usize::from(*number).saturating_sub(1);
    COLORS
        .get(index)
        .map_or(String::new(), |name| (*name).to_owned())
}

/// A facility's word.
pub(crate) fn facility_name(number: &u8) -> String {
    let name = FACILITIES.get(usize::from(*number));
    name.map_or_else(|| number.to_string(), |name| (*name).to_owned())
}

pub(crate) fn facility(text: &str) -> Result<u8, String> {
    let text = text.trim().to_lowercase();
    FACILITIES
        .iter()
        .zip(0..)
        .find(|(name, _)| **name == text)
        .map(|(_, number)| number)
        .ok_or_else(|| "expected a facility like daemon, user or local0 to local7".to_owned())
}

pub(crate) fn syslog_address(text: &str) -> Result<SyslogAddress, String> {
    let expected = || "expected the path of a socket or syslog://HOST[:PORT]".to_owned();
    let text = text.trim();
    if text.starts_with('/') {
        return Ok(SyslogAddress::Unix(PathBuf::from(text)));
    }
    let rest = text.strip_prefix("syslog://").ok_or_else(expected)?;
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let (host, port) = match rest.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']').ok_or_else(expected)?;
            (host, port.strip_prefix(':'))
        }
        None => match rest.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (rest, None),
        },
    };
    let port = match port {
        Some(port) => port
            .parse()
            .ok()
            .filter(|port| *port > 0)
            .ok_or_else(expected)?,
        None => SYSLOG_PORT,
    };
    if host.is_empty() {
        return Err(expected());
    }
    Ok(SyslogAddress::Udp(host.to_owned(), port))
}

/// The text of an address.
pub(crate) fn address_text(address: &SyslogAddress) -> String {
    match address {
        SyslogAddress::Unix(path) => path.display().to_string(),
        SyslogAddress::Udp(host, port) if host.contains(':') => {
            format!("syslog://[{host}]:{port}")
        }
        SyslogAddress::Udp(host, port) => format!("syslog://{host}:{port}"),
    }
}

/// The text of a unit.
pub(crate) fn rotate_when_text(when: &RotateWhen) -> String {
    match when {
        RotateWhen::Second => "S".to_owned(),
        RotateWhen::Minute => "M".to_owned(),
        RotateWhen::Hour => "H".to_owned(),
        RotateWhen::Day => "D".to_owned(),
        RotateWhen::Midnight => "MIDNIGHT".to_owned(),
        RotateWhen::Weekday(day) => format!("W{day}"),
    }
}

/// The text of a compression.
pub(crate) fn compress_text(compress: &bool) -> String {
    if *compress { "gzip" } else { "no" }.to_owned()
}

/// The text of a form of messages.
pub(crate) fn format_text(rfc5424: &bool) -> String {
    if *rfc5424 { "rfc5424" } else { "rfc3164" }.to_owned()
}

/// Whether messages have the form of RFC 5424.
pub(crate) fn is_rfc5424(text: &str) -> Result<bool, String> {
    match text.trim().to_lowercase().as_str() {
        "rfc3164" => Ok(false),
        "rfc5424" => Ok(true),
        _ => Err("expected rfc3164 or rfc5424".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_in_any_case() {
        assert_eq!(rotate_when("midnight"), Ok(RotateWhen::Midnight));
        assert_eq!(rotate_when(" w6 "), Ok(RotateWhen::Weekday(6)));
        assert!(rotate_when("W7").is_err() && rotate_when("").is_err());
    }

    #[test]
    fn addresses() {
        let udp = |host: &str, port| Ok(SyslogAddress::Udp(host.to_owned(), port));
        assert_eq!(syslog_address("syslog://loghost"), udp("loghost", 514));
        assert_eq!(
            syslog_address("syslog://10.0.0.1:5514/"),
            udp("10.0.0.1", 5514)
        );
        assert_eq!(syslog_address("syslog://[::1]:5514"), udp("::1", 5514));
        assert_eq!(
            syslog_address("/dev/log"),
            Ok(SyslogAddress::Unix("/dev/log".into()))
        );
        for bad in [
            "loghost",
            "syslog://",
            "syslog://x:0",
            "syslog://[::1",
            "tcp://x",
        ] {
            assert!(syslog_address(bad).is_err(), "{bad}");
        }
    }
}
