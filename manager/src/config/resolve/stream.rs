//! `stdout_stream.*` and `stderr_stream.*`.
//!
//! Owns where a watcher's output goes: a file, nowhere, or the manager's own output. Classes that exist only as
//! Python code are refused, because accepting them would lose output silently.
//! Source: Circus 0.17.2's `circus.stream`.

use crate::config::fields::Fields;
use crate::config::known;
use crate::config::problem::Origin;
use crate::config::resolve::Surroundings;
use crate::config::scalar;
use crate::config::types::{FileStreamConfig, StreamConfig};

/// Most rotated files kept: each rotation renames them all.
const MAX_BACKUP_COUNT: i64 = 10_000;

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
    match class.as_deref().map(str::trim) {
        Some("FileStream" | "circus.stream.FileStream") | None => {
            file(fields, &prefix, around, origin, false)
        }
        Some("WatchedFileStream") => file(fields, &prefix, around, origin, true),
        Some("TimedRotatingFileStream") => {
            fields.findings.warn(
                origin,
                format!("{class_key}: rotation by time is not yet active, the file grows"),
            );
            file(fields, &prefix, around, origin, false)
        }
        Some("StdoutStream") => StreamConfig::Stdout,
        Some("FancyStdoutStream") => {
            fields.findings.warn(
                origin,
                format!("{class_key}: printed like StdoutStream, without colours"),
            );
            StreamConfig::Stdout
        }
        Some("null" | "None") => StreamConfig::Null,
        Some(other) => {
            fields.findings.error(
                origin,
                format!(
                    "{class_key} {other:?}: expected FileStream, WatchedFileStream, StdoutStream or null; classes written in Python are not supported"
                ),
            );
            StreamConfig::Unset
        }
    }
}

fn file(
    fields: &mut Fields<'_>,
    prefix: &str,
    around: &Surroundings,
    origin: &Origin,
    watch_path: bool,
) -> StreamConfig {
    let Some(filename) = fields.path(&format!("{prefix}filename"), &around.directory) else {
        fields.findings.error(
            origin,
            format!("{prefix}filename is missing, expected the path of a file"),
        );
        return StreamConfig::Unset;
    };
    let format_key = format!("{prefix}time_format");
    let time_format = fields.filled(&format_key).map(|text| {
        let (format, unknown) = scalar::time_format(&text);
        if !unknown.is_empty()
            && let Some(origin) = fields.origin(&format_key)
        {
            fields.findings.warn(
                origin,
                format!("{format_key}: {} is printed as it is", unknown.join(", ")),
            );
        }
        format
    });
    StreamConfig::File(FileStreamConfig {
        filename,
        max_bytes: fields
            .whole(&format!("{prefix}max_bytes"), 0, i64::MAX)
            .unwrap_or(0),
        backup_count: fields
            .whole(&format!("{prefix}backup_count"), 0, MAX_BACKUP_COUNT)
            .unwrap_or(0),
        time_format,
        watch_path,
    })
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
