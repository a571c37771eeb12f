//! `stdout_stream.*` and `stderr_stream.*`.
//!
//! Owns where a watcher's output goes: a file, the manager's own output, the system's log, nowhere.
//! Classes that exist only as Python code are refused, because accepting them would lose output
//! silently.
//! Source: Circus 0.17.2's `circus.stream`.

use std::path::PathBuf;

use crate::fields::{Around, Fields};
use crate::known;
use crate::scalar;
use crate::types::{
    FancyConfig, FileStreamConfig, RotateWhen, RotationConfig, StreamConfig, SyslogAddress,
    SyslogConfig,
};
use crate::values::stream::WHEN;

/// The prefix of `FancyStdoutStream` unless it says otherwise, as in Circus.
const FANCY_TIME: &str = "%Y-%m-%d %H:%M:%S";

/// Reads the stream called `stream`, `stdout` or `stderr`.
pub(super) fn resolve(fields: &mut Fields<'_>, stream: &str, around: Around<'_>) -> StreamConfig {
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
    let timed = matches!(class.name, "TimedRotatingFileStream" | "json");
    let rotates = fields.filled(&format!("{prefix}rotate_when")).is_some();
    let mut config = match class.kind {
        Kind::Null => StreamConfig::Null,
        Kind::Stdout => StreamConfig::Stdout,
        Kind::Fancy => StreamConfig::Fancy(FancyConfig {
            color: None,
            time_format: FANCY_TIME.to_owned(),
        }),
        Kind::Syslog => StreamConfig::Syslog(SyslogConfig {
            address: SyslogAddress::Unix(PathBuf::new()),
            facility: 0,
            rfc5424: false,
        }),
        Kind::File => StreamConfig::File(FileStreamConfig {
            watch_path: class.name == "WatchedFileStream",
            json: class.name == "json",
            rotation: (timed && rotates).then_some(RotationConfig {
                when: RotateWhen::Midnight,
                interval: 1,
                utc: false,
            }),
            ..FileStreamConfig::default()
        }),
    };
    // An option that only other classes of the same kind read is checked too.
    let kind_reads = |key: &known::Key<StreamConfig>| {
        let mut of_kind = CLASSES.iter().filter(|other| other.kind == class.kind);
        of_kind.any(|other| key.classes.contains(&other.name))
    };
    for key in known::STREAM.iter().filter(|key| kind_reads(key)) {
        fields.fill(std::slice::from_ref(key), &prefix, &mut config, around);
        if key.name == "time_format" {
            report_conversions(fields, &format!("{prefix}time_format"));
        }
    }
    if let StreamConfig::File(file) = &config {
        if file.filename.as_os_str().is_empty() {
            fields.findings.error(
                origin,
                format!("{prefix}filename is missing, expected the path of a file"),
            );
            return StreamConfig::Unset;
        }
        let written = fields.origin(&format!("{prefix}rotate_when")).is_some();
        if class.name == "TimedRotatingFileStream" && !written {
            fields.findings.error(
                origin,
                format!("{prefix}rotate_when is missing, expected {WHEN}"),
            );
        }
    }
    config
}

/// Classes; the table of keys says which options each reads.
struct Class {
    name: &'static str,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    File,
    Stdout,
    Fancy,
    Syslog,
    Null,
}

const CLASSES: &[Class] = &[
    class("FileStream", Kind::File),
    class("WatchedFileStream", Kind::File),
    class("TimedRotatingFileStream", Kind::File),
    class("json", Kind::File),
    class("StdoutStream", Kind::Stdout),
    class("FancyStdoutStream", Kind::Fancy),
    class("syslog", Kind::Syslog),
    class("null", Kind::Null),
    class("None", Kind::Null),
];

const fn class(name: &'static str, kind: Kind) -> Class {
    Class { name, kind }
}

/// Circus accepts and ignores what a class does not read; here it is said.
fn report_useless(fields: &mut Fields<'_>, class: &Class, prefix: &str) {
    for entry in fields.entries() {
        let Some(option) = entry.key.strip_prefix(prefix) else {
            continue;
        };
        let key = known::find(known::STREAM, option);
        if option == "class" || key.is_some_and(|key| key.classes.contains(&class.name)) {
            continue;
        }
        let text = match key {
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

/// Reports conversions of a time format that are printed as they are.
fn report_conversions(fields: &mut Fields<'_>, key: &str) {
    let (Some(text), Some(origin)) = (fields.filled(key), fields.origin(key)) else {
        return;
    };
    let (_, unknown) = scalar::time_format(&text);
    if !unknown.is_empty() {
        let message = format!("{key}: {} is printed as it is", unknown.join(", "));
        fields.findings.warn(origin, message);
    }
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
