//! `stdout_stream.*` and `stderr_stream.*`.
//!
//! Owns where a watcher's output goes: a file, the manager's own output, the system's log, nowhere.
//! Classes that exist only as Python code are refused, because accepting them would lose output
//! silently.
//! Source: Circus 0.17.2's `circus.stream`; reference/circus.md section 4.

use std::path::PathBuf;

use crate::fields::Fields;
use crate::known;
use crate::problem::Origin;
use crate::resolve::Surroundings;
use crate::scalar;
use crate::types::{
    FancyConfig, FileStreamConfig, RotateWhen, RotationConfig, StreamConfig, SyslogAddress,
    SyslogConfig,
};

/// Most rotated files kept: each rotation renames them all.
const MAX_BACKUP_COUNT: i64 = 10_000;

/// Most units between two rotations.
const MAX_INTERVAL: i64 = 1_000_000;
const WHEN: &str = "S, M, H, D, MIDNIGHT or W0 (Monday) to W6";
/// The prefix of `FancyStdoutStream` unless it says otherwise, as in Circus.
const FANCY_TIME: &str = "%Y-%m-%d %H:%M:%S";
/// In the order of their numbers, from 1.
const COLORS: [&str; 7] = ["red", "green", "yellow", "blue", "magenta", "cyan", "white"];
/// In the order of their numbers, from 0. Source: RFC 5424 section 6.2.1 and syslog(3).
const FACILITIES: [&str; 24] = [
    "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv",
    "ftp", "ntp", "audit", "alert", "clock", "local0", "local1", "local2", "local3", "local4",
    "local5", "local6", "local7",
];
const DAEMON: u8 = 3;
/// Source: RFC 5426.
const SYSLOG_PORT: u16 = 514;

/// Reads the stream called `stream`, `stdout` or `stderr`.
pub(super) fn resolve(
    fields: &mut Fields<'_>,
    stream: &str,
    around: &Surroundings,
) -> StreamConfig {
    let prefix = format!("{stream}_stream.");
    fields.report_keys(known::STREAM, &prefix);
    report_undotted(fields, stream);
    if fields.boolean(&format!("close_child_{stream}"), false) {
        // As in Circus, closing wins over a stream.
        return StreamConfig::Null;
    }
    let Some(first) = fields
        .entries()
        .iter()
        .find(|entry| entry.key.starts_with(&prefix))
    else {
        return StreamConfig::Unset;
    };
    let class_key = format!("{prefix}class");
    let class = fields.filled(&class_key);
    let origin = fields.origin(&class_key).unwrap_or(&first.origin);
    let name = class.as_deref().map_or("FileStream", str::trim);
    let name = name.strip_prefix("circus.stream.").unwrap_or(name);
    let Some(class) = CLASSES.iter().find(|class| class.name == name) else {
        let names: Vec<&str> = CLASSES.iter().map(|class| class.name).collect();
        fields.findings.error(
            origin,
            format!(
                "{class_key} {name:?}: expected {}; classes written in Python are not supported",
                names.join(", ")
            ),
        );
        return StreamConfig::Unset;
    };
    report_useless(fields, class, &prefix);
    match class.kind {
        Kind::Null => StreamConfig::Null,
        Kind::Stdout => StreamConfig::Stdout,
        Kind::Fancy => StreamConfig::Fancy(FancyConfig {
            color: fields.parsed(&format!("{prefix}color"), color).flatten(),
            time_format: time_format(fields, &prefix).unwrap_or_else(|| FANCY_TIME.to_owned()),
        }),
        Kind::Syslog => StreamConfig::Syslog(syslog(fields, &prefix)),
        Kind::File => file(fields, &prefix, around, origin, class.name),
    }
}

/// Classes and the options they read beside `class`.
struct Class {
    name: &'static str,
    kind: Kind,
    options: &'static [&'static str],
}

#[derive(Clone, Copy)]
enum Kind {
    File,
    Stdout,
    Fancy,
    Syslog,
    Null,
}

const PLAIN_FILE: &[&str] = &[
    "filename",
    "time_format",
    "max_bytes",
    "backup_count",
    "compress",
    "mkdir",
];
const TIMED_FILE: &[&str] = &[
    "filename",
    "time_format",
    "max_bytes",
    "backup_count",
    "compress",
    "mkdir",
    "rotate_when",
    "rotate_interval",
    "utc",
];

const JSON_FILE: &[&str] = &[
    "filename",
    "time_format",
    "max_bytes",
    "backup_count",
    "compress",
    "mkdir",
    "rotate_when",
    "rotate_interval",
    "utc",
    "max_line_bytes",
];

/// Longest line in one JSON object, unless said otherwise; such a line fits one whatever it is made
/// of.
const LINE_BYTES: usize = 32 * 1024;
/// What may be said. The kernel keeps a line until it has an end or this length.
const MAX_LINE_BYTES: i64 = 64 * 1024;
const MIN_LINE_BYTES: i64 = 1024;

const CLASSES: &[Class] = &[
    class("FileStream", Kind::File, PLAIN_FILE),
    class("WatchedFileStream", Kind::File, PLAIN_FILE),
    class("TimedRotatingFileStream", Kind::File, TIMED_FILE),
    class("json", Kind::File, JSON_FILE),
    class("StdoutStream", Kind::Stdout, &[]),
    class("FancyStdoutStream", Kind::Fancy, &["color", "time_format"]),
    class("syslog", Kind::Syslog, &["address", "facility", "format"]),
    class("null", Kind::Null, &[]),
    class("None", Kind::Null, &[]),
];

const fn class(name: &'static str, kind: Kind, options: &'static [&'static str]) -> Class {
    Class {
        name,
        kind,
        options,
    }
}

/// Circus accepts and ignores what a class does not read; here it is said.
fn report_useless(fields: &mut Fields<'_>, class: &Class, prefix: &str) {
    for entry in fields.entries() {
        let Some(option) = entry.key.strip_prefix(prefix) else {
            continue;
        };
        if option == "class" || class.options.contains(&option) {
            continue;
        }
        let text = match known::find(known::STREAM, option) {
            Some(key) if key.effect == known::Effect::Active => {
                format!("{} has no effect with class {}", entry.key, class.name)
            }
            None if known::suggestion(known::STREAM, option).is_none() => {
                format!("{} is not known and has no effect", entry.key)
            }
            _ => continue,
        };
        fields.findings.warn(&entry.origin, text);
    }
}

fn file(
    fields: &mut Fields<'_>,
    prefix: &str,
    around: &Surroundings,
    origin: &Origin,
    class: &str,
) -> StreamConfig {
    let Some(filename) = fields.path(&format!("{prefix}filename"), &around.directory) else {
        fields.findings.error(
            origin,
            format!("{prefix}filename is missing, expected the path of a file"),
        );
        return StreamConfig::Unset;
    };
    let when = fields.parsed(&format!("{prefix}rotate_when"), rotate_when);
    if class == "TimedRotatingFileStream"
        && fields.origin(&format!("{prefix}rotate_when")).is_none()
    {
        fields.findings.error(
            origin,
            format!("{prefix}rotate_when is missing, expected {WHEN}"),
        );
    }
    let interval = fields.whole(&format!("{prefix}rotate_interval"), 1, MAX_INTERVAL);
    let utc = fields.boolean(&format!("{prefix}utc"), false);
    let timed = matches!(class, "TimedRotatingFileStream" | "json");
    StreamConfig::File(FileStreamConfig {
        filename,
        max_bytes: fields
            .whole(&format!("{prefix}max_bytes"), 0, i64::MAX)
            .unwrap_or(0),
        backup_count: fields
            .whole(&format!("{prefix}backup_count"), 0, MAX_BACKUP_COUNT)
            .unwrap_or(0),
        time_format: time_format(fields, prefix),
        watch_path: class == "WatchedFileStream",
        rotation: when.filter(|_| timed).map(|when| RotationConfig {
            when,
            interval: interval.unwrap_or(1),
            utc,
        }),
        compress: fields
            .parsed(&format!("{prefix}compress"), compress)
            .unwrap_or(false),
        mkdir: fields.boolean(&format!("{prefix}mkdir"), false),
        json: class == "json",
        max_line_bytes: fields
            .whole(
                &format!("{prefix}max_line_bytes"),
                MIN_LINE_BYTES,
                MAX_LINE_BYTES,
            )
            .unwrap_or(LINE_BYTES),
    })
}

fn time_format(fields: &mut Fields<'_>, prefix: &str) -> Option<String> {
    let key = format!("{prefix}time_format");
    let (format, unknown) = scalar::time_format(&fields.filled(&key)?);
    if !unknown.is_empty()
        && let Some(origin) = fields.origin(&key)
    {
        fields.findings.warn(
            origin,
            format!("{key}: {} is printed as it is", unknown.join(", ")),
        );
    }
    Some(format)
}

fn syslog(fields: &mut Fields<'_>, prefix: &str) -> SyslogConfig {
    let address = fields
        .parsed(&format!("{prefix}address"), syslog_address)
        .unwrap_or_else(|| SyslogAddress::Unix(PathBuf::from("/dev/log")));
    let rfc5424 = fields.parsed(&format!("{prefix}format"), |text| {
        match text.trim().to_lowercase().as_str() {
            "rfc3164" => Ok(false),
            "rfc5424" => Ok(true),
            _ => Err("expected rfc3164 or rfc5424".to_owned()),
        }
    });
    SyslogConfig {
        facility: fields
            .parsed(&format!("{prefix}facility"), facility)
            .unwrap_or(DAEMON),
        rfc5424: rfc5424.unwrap_or(matches!(address, SyslogAddress::Udp(..))),
        address,
    }
}

fn rotate_when(text: &str) -> Result<RotateWhen, String> {
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

fn compress(text: &str) -> Result<bool, String> {
    match text.trim().to_lowercase().as_str() {
        "gzip" => Ok(true),
        other => match scalar::boolean(other) {
            Ok(false) => Ok(false),
            _ => Err("expected gzip or no".to_owned()),
        },
    }
}

/// Circus's `random` and an empty value leave the choice to us.
fn color(text: &str) -> Result<Option<u8>, String> {
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
pub fn color_name(number: u8) -> String {
    let index = usize::from(number).saturating_sub(1);
    COLORS
        .get(index)
        .map_or(String::new(), |name| (*name).to_owned())
}

/// A facility's word.
pub fn facility_name(number: u8) -> String {
    let name = FACILITIES.get(usize::from(number));
    name.map_or_else(|| number.to_string(), |name| (*name).to_owned())
}

pub(super) fn facility(text: &str) -> Result<u8, String> {
    let text = text.trim().to_lowercase();
    FACILITIES
        .iter()
        .zip(0..)
        .find(|(name, _)| **name == text)
        .map(|(_, number)| number)
        .ok_or_else(|| "expected a facility like daemon, user or local0 to local7".to_owned())
}

pub(super) fn syslog_address(text: &str) -> Result<SyslogAddress, String> {
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

/// `stdout_stream = …` without a dot crashes Circus.
fn report_undotted(fields: &mut Fields<'_>, stream: &str) {
    let key = format!("{stream}_stream");
    if let Some(origin) = fields.origin(&key) {
        fields.findings.error(
            origin,
            format!("{key}: expected an option of it like {key}.filename"),
        );
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
