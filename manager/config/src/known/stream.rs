//! `stdout_stream.` and `stderr_stream.`.

use super::{Inactive, Key, NEVER_READ, NUMBER, PATH, SECONDS, Value, Words, YES_NO, inert, key};

/// Options of `stdout_stream.` and `stderr_stream.`.
pub const STREAM: &[Key] = &[
    key(
        "class",
        "`FileStream`, `WatchedFileStream`, `TimedRotatingFileStream`, `json`, `StdoutStream`, `FancyStdoutStream`, `syslog` or `null`",
        Value("FileStream"),
        "where the stream goes: a file, one that others may move, one rotated by time, one with a JSON object for each line, the manager's own output, plain or coloured, the system's log, nowhere",
        "WatchedFileStream",
    ),
    key(
        "filename",
        PATH,
        Words(""),
        "the log file; several watchers and both streams may share one, and the limits named first hold for all",
        "/var/log/web.log",
    ),
    key(
        "max_bytes",
        "bytes",
        Value("0"),
        "rotate before a write that would reach this size; 0: never",
        "10000000",
    ),
    key(
        "backup_count",
        NUMBER,
        Value("0"),
        "how many rotated files are kept, `.1` being the newest of those turned for their size; 0: none is made by size, all are kept by time",
        "5",
    ),
    key(
        "rotate_when",
        "`S`, `M`, `H`, `D`, `MIDNIGHT` or `W0` (Monday) to `W6`",
        Words("required by `TimedRotatingFileStream`"),
        "unit of rotation by time, any case: so long after the file was made, or at the end of a date or of that day of the week; also for `json`",
        "MIDNIGHT",
    ),
    key("rotate_interval", NUMBER, Value("1"), "so many units", "6"),
    key(
        "utc",
        YES_NO,
        Value("no"),
        "dates of rotation by UTC instead of local time",
        "yes",
    ),
    key(
        "compress",
        "`gzip` or `no`",
        Value("no"),
        "compress rotated files, aside from the writing",
        "gzip",
    ),
    key(
        "mkdir",
        YES_NO,
        Value("no"),
        "make missing directories, mode 755",
        "yes",
    ),
    key(
        "time_format",
        "strftime",
        Words("bytes pass unchanged"),
        "each line becomes `TIME [PID] | line`; local time, the moment the kernel read it",
        "%Y-%m-%d %H:%M:%S",
    ),
    key(
        "max_line_bytes",
        "1024 to 65536",
        Value("32768"),
        "a longer line becomes several objects of a `json` file, each with `part` (from 1) and `more`",
        "65536",
    ),
    key(
        "color",
        "`red`, `green`, `yellow`, `blue`, `magenta`, `cyan` or `white`",
        Words("one of them, by the watcher's name"),
        "colour of `FancyStdoutStream`",
        "green",
    ),
    key(
        "address",
        "a socket's path or `syslog://HOST[:PORT]`",
        Value("/dev/log"),
        "where the syslog daemon listens for datagrams",
        "syslog://loghost",
    ),
    key(
        "facility",
        "`daemon`, `user`, `local0` … `local7` …",
        Value("daemon"),
        "facility of syslog messages; their severity is info for standard output and err for standard error",
        "local3",
    ),
    key(
        "format",
        "`rfc3164` or `rfc5424`",
        Words("`rfc3164` to a path, `rfc5424` to a host"),
        "form of syslog messages, with the moment the kernel read the line",
        "rfc5424",
    ),
    inert(
        "refresh_time",
        SECONDS,
        "a leftover of old Circus",
        "0.3",
        Inactive(NEVER_READ),
    ),
];
