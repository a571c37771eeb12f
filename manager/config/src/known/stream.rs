//! `stdout_stream.` and `stderr_stream.`.

use super::key::{self, Apply, Form, Key, OnChange};
use super::{BYTES, Inactive, NEVER_READ, PATH};
use crate::scalar;
use crate::types::{StreamClass, StreamConfig, SyslogAddress, SyslogConfig};
use crate::values::stream;

type Section = StreamConfig;

/// Most rotated files kept: each rotation renames them all.
const MAX_BACKUP_COUNT: i64 = 10_000;
/// Most units between two rotations.
const MAX_INTERVAL: i64 = 1_000_000;
/// Longest line in one JSON object that may be asked for. The kernel keeps a line until it has an
/// end or this length.
const MAX_LINE_BYTES: i64 = 64 * 1024;
const MIN_LINE_BYTES: i64 = 1024;

/// Classes that write a file.
const FILES: &[StreamClass] = &StreamClass::FILES;
/// Those of them that rotate by time.
const TIMED: &[StreamClass] = &[StreamClass::TimedRotatingFile, StreamClass::Json];
/// Classes that put the time before each line.
const TIMES: &[StreamClass] = &[
    StreamClass::File,
    StreamClass::WatchedFile,
    StreamClass::TimedRotatingFile,
    StreamClass::Json,
    StreamClass::FancyStdout,
];

/// A field of `StreamConfig::File`.
macro_rules! file {
    ($name:literal, $form:expr, $field:ident, $read:path, $show:path $(,)?) => {
        Key::new($name, $form).field(
            |stream: &mut Section, written| {
                let value = $read(written.text)?;
                if let StreamConfig::File(file) = stream {
                    file.$field = value;
                }
                Ok(())
            },
            |stream: &Section| stream.file().map(|file| $show(&file.$field)),
        )
    };
}

/// A field of a file's rotation by time, which is there if `rotate_when` is written.
macro_rules! rotation {
    ($name:literal, $form:expr, $field:ident, $read:path, $show:path $(,)?) => {
        Key::new($name, $form).field(
            |stream: &mut Section, written| {
                let value = $read(written.text)?;
                if let StreamConfig::File(file) = stream
                    && let Some(rotation) = &mut file.rotation
                {
                    rotation.$field = value;
                }
                Ok(())
            },
            |stream: &Section| {
                let rotation = stream.file()?.rotation.as_ref();
                rotation.map(|rotation| $show(&rotation.$field))
            },
        )
    };
}

/// A field of `StreamConfig::Syslog`.
macro_rules! syslog {
    ($name:literal, $form:expr, $field:ident, $read:path, $show:path $(,)?) => {
        Key::new($name, $form).field(
            |stream: &mut Section, written| {
                let value = $read(written.text)?;
                if let StreamConfig::Syslog(syslog) = stream {
                    syslog.$field = value;
                }
                Ok(())
            },
            |stream: &Section| syslog(stream).map(|syslog| $show(&syslog.$field)),
        )
    };
}

/// Options of `stdout_stream.` and `stderr_stream.`. `format` comes behind `address`, which says
/// what it is without it.
pub const STREAM: &[Key<StreamConfig>] = &[
    Key::new(
        "class",
        Form::Text(
            "`FileStream`, `WatchedFileStream`, `TimedRotatingFileStream`, `json`, \
             `StdoutStream`, `FancyStdoutStream`, `syslog` or `null`",
        ),
    )
    .show(|stream: &Section| Some(stream.class().map_or("", StreamClass::name).to_owned()))
    .change(OnChange::By(
        "in place; rolling reload from and to `null`",
        |_| Apply::InPlace,
    ))
    .default("FileStream")
    .meaning(
        "where the stream goes: a file, one that others may move, one rotated by time, \
         one with a JSON object for each line, the manager's own output, plain or \
         coloured, the system's log, nowhere",
    )
    .example("WatchedFileStream"),
    Key::new("filename", PATH)
        .field(
            |stream: &mut Section, written| {
                if let StreamConfig::File(file) = stream {
                    file.filename = written.directory.join(written.text.trim());
                }
                Ok(())
            },
            |stream| stream.file().map(|file| key::path(&file.filename)),
        )
        .or_blank()
        .of_classes(FILES)
        .meaning(
            "the log file; several watchers and both streams may share one, and the limits \
             named first hold for all",
        )
        .example("/var/log/web.log"),
    file!("max_bytes", BYTES, max_bytes, bytes, ToString::to_string)
        .of_classes(FILES)
        .default("0")
        .meaning("rotate before a write that would reach this size; 0: never")
        .example("10000000"),
    file!(
        "backup_count",
        Form::Number(0, MAX_BACKUP_COUNT),
        backup_count,
        backup_count,
        ToString::to_string
    )
    .of_classes(FILES)
    .default("0")
    .meaning(
        "how many rotated files are kept, `.1` being the newest of those turned for \
         their size; 0: none is made by size, all are kept by time",
    )
    .example("5"),
    rotation!(
        "rotate_when",
        Form::Text("`S`, `M`, `H`, `D`, `MIDNIGHT` or `W0` (Monday) to `W6`"),
        when,
        stream::rotate_when,
        stream::rotate_when_text
    )
    .of_classes(TIMED)
    .without("required by `TimedRotatingFileStream`")
    .meaning(
        "unit of rotation by time, any case: so long after the file was made, or at \
         the end of a date or of that day of the week; also for `json`",
    )
    .example("MIDNIGHT"),
    rotation!(
        "rotate_interval",
        Form::Number(1, MAX_INTERVAL),
        interval,
        interval,
        ToString::to_string
    )
    .of_classes(TIMED)
    .default("1")
    .meaning("so many units")
    .example("6"),
    rotation!("utc", Form::YesNo, utc, scalar::boolean, key::yes_no)
        .of_classes(TIMED)
        .default("no")
        .meaning("dates of rotation by UTC instead of local time")
        .example("yes"),
    file!(
        "compress",
        Form::Text("`gzip` or `no`"),
        compress,
        stream::compress,
        stream::compress_text
    )
    .of_classes(FILES)
    .default("no")
    .meaning("compress rotated files, aside from the writing")
    .example("gzip"),
    file!("mkdir", Form::YesNo, mkdir, scalar::boolean, key::yes_no)
        .of_classes(FILES)
        .default("no")
        .meaning("make missing directories, mode 755")
        .example("yes"),
    Key::new("time_format", Form::Text("strftime"))
        .field(
            |stream: &mut Section, written| {
                let (format, _) = scalar::time_format(written.text);
                match stream {
                    StreamConfig::File(file) => file.time_format = Some(format),
                    StreamConfig::Fancy(fancy) => fancy.time_format = format,
                    _ => {}
                }
                Ok(())
            },
            |stream| match stream {
                StreamConfig::File(file) => file.time_format.clone(),
                StreamConfig::Fancy(fancy) => Some(fancy.time_format.clone()),
                _ => None,
            },
        )
        .or_blank()
        .of_classes(TIMES)
        .without("bytes pass unchanged")
        .meaning(
            "each line becomes `TIME [PID] | line`; local time, the moment the kernel read \
             it",
        )
        .example("%Y-%m-%d %H:%M:%S"),
    Key::new(
        "max_line_bytes",
        Form::Number(MIN_LINE_BYTES, MAX_LINE_BYTES),
    )
    .field(
        |stream: &mut Section, written| {
            let bytes = key::to_number(written.text, MIN_LINE_BYTES, MAX_LINE_BYTES)?;
            if let StreamConfig::File(file) = stream {
                file.max_line_bytes = bytes;
            }
            Ok(())
        },
        |stream| {
            stream
                .file()
                .filter(|file| file.json)
                .map(|file| file.max_line_bytes.to_string())
        },
    )
    .of_classes(&[StreamClass::Json])
    .default("32768")
    .meaning(
        "a longer line becomes several objects of a `json` file, each with `part` \
         (from 1) and `more`",
    )
    .example("65536"),
    Key::new(
        "color",
        Form::Text("`red`, `green`, `yellow`, `blue`, `magenta`, `cyan` or `white`"),
    )
    .field(
        |stream: &mut Section, written| {
            let color = stream::color(written.text)?;
            if let StreamConfig::Fancy(fancy) = stream {
                fancy.color = color;
            }
            Ok(())
        },
        |stream| match stream {
            StreamConfig::Fancy(fancy) => fancy.color.as_ref().map(stream::color_name),
            _ => None,
        },
    )
    .of_classes(&[StreamClass::FancyStdout])
    .without("one of them, by the watcher's name")
    .meaning("colour of `FancyStdoutStream`")
    .example("green"),
    Key::new(
        "address",
        Form::Text("a socket's path or `syslog://HOST[:PORT]`"),
    )
    .field(
        |stream: &mut Section, written| {
            let address = stream::syslog_address(written.text)?;
            if let StreamConfig::Syslog(syslog) = stream {
                syslog.rfc5424 = matches!(address, SyslogAddress::Udp(..));
                syslog.address = address;
            }
            Ok(())
        },
        |stream| syslog(stream).map(|syslog| stream::address_text(&syslog.address)),
    )
    .of_classes(&[StreamClass::Syslog])
    .default("/dev/log")
    .meaning("where the syslog daemon listens for datagrams")
    .example("syslog://loghost"),
    syslog!(
        "facility",
        Form::Text("`daemon`, `user`, `local0` … `local7` …"),
        facility,
        stream::facility,
        stream::facility_name
    )
    .of_classes(&[StreamClass::Syslog])
    .default("daemon")
    .meaning(
        "facility of syslog messages; their severity is info for standard output and \
         err for standard error",
    )
    .example("local3"),
    syslog!(
        "format",
        Form::Text("`rfc3164` or `rfc5424`"),
        rfc5424,
        stream::is_rfc5424,
        stream::format_text
    )
    .of_classes(&[StreamClass::Syslog])
    .without("`rfc3164` to a path, `rfc5424` to a host")
    .meaning("form of syslog messages, with the moment the kernel read the line")
    .example("rfc5424"),
    Key::inert("refresh_time", Form::Seconds, Inactive(NEVER_READ))
        .meaning("a leftover of old Circus")
        .example("0.3"),
];

fn syslog(stream: &StreamConfig) -> Option<&SyslogConfig> {
    match stream {
        StreamConfig::Syslog(syslog) => Some(syslog),
        StreamConfig::Unset
        | StreamConfig::Null
        | StreamConfig::Stdout
        | StreamConfig::Fancy(_)
        | StreamConfig::File(_) => None,
    }
}

fn bytes(text: &str) -> Result<u64, String> {
    key::to_number(text, 0, i64::MAX)
}

fn backup_count(text: &str) -> Result<u32, String> {
    key::to_number(text, 0, MAX_BACKUP_COUNT)
}

fn interval(text: &str) -> Result<u32, String> {
    key::to_number(text, 1, MAX_INTERVAL)
}
