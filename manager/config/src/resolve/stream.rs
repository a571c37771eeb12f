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
    FancyConfig, FileStreamConfig, RotateWhen, RotationConfig, StreamClass, StreamConfig,
    SyslogAddress, SyslogConfig,
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
    let name = fields.filled(&class_key);
    let name = name.as_deref().map_or(StreamClass::File.name(), str::trim);
    let origin = fields.origin(&class_key).unwrap_or(&first.origin);
    let Some(class) = StreamClass::named(name) else {
        let names = StreamClass::NAMES.map(|(name, _)| name).join(", ");
        let name = name.strip_prefix("circus.stream.").unwrap_or(name);
        fields.findings.error(
            origin,
            format!("{class_key} {name:?}: expected {names}; classes written in Python are not supported"),
        );
        return StreamConfig::Unset;
    };
    report_useless(fields, class, &prefix);
    let rotates = fields.filled(&format!("{prefix}rotate_when")).is_some();
    let mut config = empty(class, rotates);
    // An option that only other classes of the same kind read is checked too.
    let is_read = |key: &known::Key<StreamConfig>| key.classes.iter().any(|of| of.is_like(class));
    for key in known::STREAM.iter().filter(|key| is_read(key)) {
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
        if class == StreamClass::TimedRotatingFile && !written {
            fields.findings.error(
                origin,
                format!("{prefix}rotate_when is missing, expected {WHEN}"),
            );
        }
    }
    config
}

/// A stream before its options are read; the table of keys has their defaults.
fn empty(class: StreamClass, rotates: bool) -> StreamConfig {
    match class {
        StreamClass::Null => StreamConfig::Null,
        StreamClass::Stdout => StreamConfig::Stdout,
        StreamClass::FancyStdout => StreamConfig::Fancy(FancyConfig {
            color: None,
            time_format: FANCY_TIME.to_owned(),
        }),
        StreamClass::Syslog => StreamConfig::Syslog(SyslogConfig {
            address: SyslogAddress::Unix(PathBuf::new()),
            facility: 0,
            rfc5424: false,
        }),
        StreamClass::File
        | StreamClass::WatchedFile
        | StreamClass::TimedRotatingFile
        | StreamClass::Json => StreamConfig::File(FileStreamConfig {
            watch_path: class == StreamClass::WatchedFile,
            json: class == StreamClass::Json,
            rotation: (rotates
                && matches!(class, StreamClass::TimedRotatingFile | StreamClass::Json))
            .then_some(RotationConfig {
                when: RotateWhen::Midnight,
                interval: 1,
                utc: false,
            }),
            ..FileStreamConfig::default()
        }),
    }
}

/// Circus accepts and ignores what a class does not read; here it is said.
fn report_useless(fields: &mut Fields<'_>, class: StreamClass, prefix: &str) {
    for entry in fields.entries() {
        let Some(option) = entry.key.strip_prefix(prefix) else {
            continue;
        };
        let key = known::find(known::STREAM, option);
        if option == "class" || key.is_some_and(|key| key.classes.contains(&class)) {
            continue;
        }
        let text = match key {
            Some(key) if key.effect == known::Effect::Active => {
                format!("{} has no effect with class {}", entry.key, class.name())
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
