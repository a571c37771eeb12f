//! `stdout_stream.` and `stderr_stream.`.

use super::{
    Inactive, Key, NEVER_READ, NOT_YET, NUMBER, PATH, SECONDS, TEXT, Value, Words, YES_NO, inert,
    key,
};

/// Options of `stdout_stream.` and `stderr_stream.`.
pub const STREAM: &[Key] = &[
    key(
        "class",
        "`FileStream`, `WatchedFileStream`, `StdoutStream` or `null`",
        Value("FileStream"),
        "where the stream goes: a file, a file others may move, the manager's own output, nowhere",
        "WatchedFileStream",
    ),
    key(
        "filename",
        PATH,
        Words(""),
        "the log file; several watchers and both streams may share one",
        "/var/log/web.log",
    ),
    key(
        "max_bytes",
        "bytes",
        Value("0"),
        "rotate to `.1` … before a write that would reach this size; 0: never",
        "10000000",
    ),
    key(
        "backup_count",
        NUMBER,
        Value("0"),
        "how many rotated files are kept",
        "5",
    ),
    key(
        "time_format",
        "strftime",
        Words("bytes pass unchanged"),
        "each line becomes `TIME [PID] | line`; local time, the moment the kernel read it",
        "%Y-%m-%d %H:%M:%S",
    ),
    inert(
        "rotate_when",
        TEXT,
        "unit of rotation by time",
        "MIDNIGHT",
        Inactive(NOT_YET),
    ),
    inert(
        "rotate_interval",
        NUMBER,
        "so many units",
        "1",
        Inactive(NOT_YET),
    ),
    inert("utc", YES_NO, "rotation by UTC", "no", Inactive(NOT_YET)),
    inert(
        "color",
        TEXT,
        "colour of `FancyStdoutStream`",
        "green",
        Inactive("is accepted but not active: output is not coloured"),
    ),
    inert(
        "refresh_time",
        SECONDS,
        "a leftover of old Circus",
        "0.3",
        Inactive(NEVER_READ),
    ),
];
