//! What a line looks like in its file: as it came, with a prefix, coloured, as JSON, as a syslog
//! message.
//!
//! Owns the bytes around a line. Leaves to others: where lines begin and end (`lines`), files and
//! sockets.
//! Invariant: what is made of a line of at most `max_line_bytes` fits one write together with
//! everything around it.

use std::fmt::Write as _;
use std::io::Write as _;

use chrono::SecondsFormat;
use papa_config::FancyConfig;
use papa_system::civil;
use serde_json::json;

use crate::layout::{Kind, MAX_BATCH_BYTES};
use crate::lines::MAX_LINE_BYTES;
use crate::prefix::{MAX_PREFIX_BYTES, Prefix};
use crate::syslog_socket::rfc3164_header;

/// Longest line that fits one JSON object whatever it is: each byte may become six characters, and
/// again a third more in base64.
const SURE_JSON_LINE_BYTES: usize = 32 * 1024;
/// Bytes of an object around its line, at most: a watcher's name is much shorter.
const AROUND_JSON_LINE_BYTES: usize = 4096;
/// Longest syslog message text to a local daemon, whose own limit is often 8 KiB.
const MAX_LOCAL_MESSAGE_BYTES: usize = 7 * 1024;
/// To another host: with its header such a message fits what RFC 5426 says receivers should take.
const MAX_REMOTE_MESSAGE_BYTES: usize = 1800;
/// Severities of RFC 5424.
const INFORMATIONAL: u8 = 6;
const ERROR: u8 = 3;

const _: () = assert!(MAX_LINE_BYTES + MAX_PREFIX_BYTES < MAX_BATCH_BYTES);
const _: () = assert!(SURE_JSON_LINE_BYTES * 22 / 3 + AROUND_JSON_LINE_BYTES < MAX_BATCH_BYTES);

/// How a line is written.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Style {
    /// Bytes pass unchanged.
    #[default]
    Raw,
    /// `TIME [PID] | line`, with this strftime format.
    Stamped(String),
    /// The same, in colour.
    Fancy(FancyConfig),
    /// One JSON object.
    Json {
        /// A longer line becomes several.
        max_line_bytes: usize,
    },
    /// One syslog message.
    Syslog {
        /// 0 to 23.
        facility: u8,
        /// Otherwise RFC 3164.
        rfc5424: bool,
        /// Whether another host reads it.
        remote: bool,
    },
}

/// Who wrote a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Author {
    pub(super) watcher: String,
    pub(super) wid: u32,
    pub(super) pid: i32,
}

/// The place of a part in its line. Lines that are too long are written in parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    /// From 1.
    pub(super) number: u32,
    /// Another one follows.
    pub(super) more: bool,
    /// The one before it stands directly before it.
    pub(super) joined: bool,
}

impl Part {
    /// A line that is not cut.
    pub(super) const WHOLE: Self = Self {
        number: 1,
        more: false,
        joined: false,
    };
}

/// Makes the lines of one stream.
#[derive(Debug)]
pub(super) enum Format {
    Raw,
    Stamped(Prefix),
    Fancy { color: u8, prefix: Prefix },
    Json { max_line_bytes: usize },
    Syslog(Syslog),
}

/// How a syslog message begins.
#[derive(Debug)]
pub(super) struct Syslog {
    facility: u8,
    rfc5424: bool,
    /// The daemon is on another host.
    remote: bool,
    /// Our name.
    host: String,
}

impl Syslog {
    fn header(&self, author: &Author, kind: Kind, stamp_us: i64) -> String {
        let severity = if kind == Kind::Err {
            ERROR
        } else {
            INFORMATIONAL
        };
        let priority = self.facility * 8 + severity;
        let time = civil::local(stamp_us);
        let (host, tag, pid) = (&self.host, tag(&author.watcher), author.pid);
        if self.rfc5424 {
            let time = time.to_rfc3339_opts(SecondsFormat::Micros, true);
            format!("<{priority}>1 {time} {host} {tag} {pid} - - ")
        } else if self.remote {
            rfc3164_header(priority, &time, &format!("{host} {tag}"), pid)
        } else {
            rfc3164_header(priority, &time, &tag, pid)
        }
    }
}

impl Format {
    pub(super) fn new(style: &Style, watcher: &str) -> Self {
        match style {
            Style::Raw => Self::Raw,
            Style::Stamped(time_format) => Self::Stamped(Prefix::new(time_format)),
            Style::Fancy(fancy) => Self::Fancy {
                color: fancy.color.unwrap_or_else(|| color_of(watcher)),
                prefix: Prefix::new(&fancy.time_format),
            },
            Style::Json { max_line_bytes } => Self::Json {
                max_line_bytes: *max_line_bytes,
            },
            Style::Syslog {
                facility,
                rfc5424,
                remote,
            } => Self::Syslog(Syslog {
                facility: *facility,
                rfc5424: *rfc5424,
                remote: *remote,
                host: host(),
            }),
        }
    }

    /// Whether bytes pass unchanged, so that many lines are written at once.
    pub(super) fn is_raw(&self) -> bool {
        matches!(self, Self::Raw)
    }

    /// Longest line; a longer one is cut.
    pub(super) fn max_line_bytes(&self) -> usize {
        match self {
            Self::Raw | Self::Stamped(_) | Self::Fancy { .. } => MAX_LINE_BYTES,
            Self::Json { max_line_bytes } => *max_line_bytes,
            Self::Syslog(Syslog { remote: false, .. }) => MAX_LOCAL_MESSAGE_BYTES,
            Self::Syslog(Syslog { remote: true, .. }) => MAX_REMOTE_MESSAGE_BYTES,
        }
    }

    /// The same for this line, since its written form has to fit one write.
    pub(super) fn max_line_bytes_of(&self, line: &[u8]) -> usize {
        match self {
            Self::Json { max_line_bytes } if line.len() > SURE_JSON_LINE_BYTES => {
                let line = line.get(..*max_line_bytes).unwrap_or(line);
                if json_bytes(line) + AROUND_JSON_LINE_BYTES < MAX_BATCH_BYTES {
                    *max_line_bytes
                } else {
                    SURE_JSON_LINE_BYTES
                }
            }
            other => other.max_line_bytes(),
        }
    }

    /// What ends a line of which only the beginning stands in the file; `None` where each part of a
    /// line is complete in itself.
    pub(super) fn ending(&self) -> Option<&'static [u8]> {
        match self {
            Self::Stamped(_) => Some(b"\n"),
            Self::Fancy { .. } => Some(b"\x1b[0m\n"),
            Self::Raw | Self::Json { .. } | Self::Syslog(_) => None,
        }
    }

    /// Formats a line or a part of one, given without its newline, into `out`; some lines add
    /// nothing.
    pub(super) fn line(
        &mut self,
        out: &mut Vec<u8>,
        author: &Author,
        kind: Kind,
        stamp_us: i64,
        line: &[u8],
        part: Part,
    ) {
        match self {
            Self::Raw => {
                out.extend_from_slice(line);
                out.push(b'\n');
            }
            Self::Stamped(prefix) => {
                if !part.joined {
                    out.extend_from_slice(prefix.at(stamp_us, author.pid));
                }
                out.extend_from_slice(line);
                if !part.more {
                    out.push(b'\n');
                }
            }
            Self::Fancy { color, prefix } => {
                if line.is_empty() && !part.joined {
                    return;
                }
                if !part.joined {
                    let _ = write!(out, "\x1b[0;3{color};40m");
                    out.extend_from_slice(prefix.at(stamp_us, author.pid));
                }
                out.extend_from_slice(line);
                if !part.more {
                    out.extend_from_slice(b"\x1b[0m\n");
                }
            }
            Self::Json { .. } => json_line(out, author, kind, stamp_us, line, part),
            // An empty message says nothing, and some daemons refuse it.
            Self::Syslog(_) if line.is_empty() => {}
            Self::Syslog(syslog) => {
                out.extend_from_slice(syslog.header(author, kind, stamp_us).as_bytes());
                out.extend_from_slice(line);
            }
        }
    }
}

/// Upper bound of a line's bytes in an object.
fn json_bytes(line: &[u8]) -> usize {
    let in_base64 = match std::str::from_utf8(line) {
        Ok(_) => 0,
        Err(_) => line.len().div_ceil(3) * 4,
    };
    let in_text: usize = line
        .iter()
        .map(|byte| match byte {
            b'"' | b'\\' => 2,
            0..0x20 => 6,
            0x20..0x80 => 1,
            // A byte that is not UTF-8 becomes the replacement character.
            0x80.. => 3,
        })
        .sum();
    in_text + in_base64
}

/// `line` is always text, what is not UTF-8 in it replaced; where something was, `line_base64` has
/// every byte. A part of a line says which it is, and whether more come.
fn json_line(
    out: &mut Vec<u8>,
    author: &Author,
    kind: Kind,
    stamp_us: i64,
    line: &[u8],
    part: Part,
) {
    let time = civil::local(stamp_us).to_rfc3339_opts(SecondsFormat::Micros, false);
    let stream = if kind == Kind::Err {
        "stderr"
    } else {
        "stdout"
    };
    let text = String::from_utf8_lossy(line);
    // Formatted by hand, so that members are in the order in which people read them.
    let _ = write!(
        out,
        "{{\"time\":\"{time}\",\"watcher\":{},\"wid\":{},\"pid\":{},\"stream\":\"{stream}\",\"line\":{}",
        json!(author.watcher),
        author.wid,
        author.pid,
        json!(text)
    );
    if matches!(text, std::borrow::Cow::Owned(_)) {
        let _ = write!(out, ",\"line_base64\":\"{}\"", base64(line));
    }
    let Part { number, more, .. } = part;
    if number > 1 || more {
        let _ = write!(out, ",\"part\":{number},\"more\":{more}");
    }
    out.extend_from_slice(b"}\n");
}

fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let word = chunk
            .iter()
            .chain([&0; 2])
            .take(3)
            .fold(0usize, |word, byte| word << 8 | usize::from(*byte));
        for place in 0..4 {
            let digit = ALPHABET.get(word >> (18 - 6 * place) & 63);
            text.push(match digit {
                Some(digit) if place <= chunk.len() => char::from(*digit),
                _ => '=',
            });
        }
    }
    text
}

/// The same watcher has the same colour after every start.
fn color_of(watcher: &str) -> u8 {
    let sum = watcher.bytes().fold(0u32, |sum, byte| {
        sum.wrapping_mul(31).wrapping_add(u32::from(byte))
    });
    u8::try_from(sum % 7).unwrap_or(0) + 1
}

/// The watcher's name as a word of printable ASCII, at most as long as RFC 5424 lets an APP-NAME
/// be.
fn tag(watcher: &str) -> String {
    let mut tag = String::new();
    for c in watcher.chars().take(48) {
        let fit = c.is_ascii_graphic() && !matches!(c, '[' | ']' | ':');
        let _ = tag.write_char(if fit { c } else { '_' });
    }
    tag
}

fn host() -> String {
    nix::unistd::gethostname()
        .ok()
        .and_then(|name| name.into_string().ok())
        .map(|name| tag(&name))
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "-".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(style: &Style, kind: Kind, line: &[u8]) -> String {
        let author = Author {
            watcher: "web [1]".to_owned(),
            wid: 2,
            pid: 42,
        };
        let mut out = Vec::new();
        let stamp_us = 1_795_315_366_978_956;
        Format::new(style, "web").line(&mut out, &author, kind, stamp_us, line, Part::WHOLE);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_fancy_line_is_as_circus_prints_it() {
        let style = Style::Fancy(FancyConfig {
            color: Some(2),
            time_format: "%f".to_owned(),
        });
        assert_eq!(
            made(&style, Kind::Out, b"hello"),
            "\x1b[0;32;40m978956 [42] | hello\x1b[0m\n"
        );
        assert_eq!(made(&style, Kind::Out, b""), "");
    }

    const JSON: Style = Style::Json {
        max_line_bytes: 65_536,
    };

    #[test]
    fn whatever_a_line_is_made_of_its_object_fits_one_write() {
        for byte in 0..=255u8 {
            for mixed in [b'a', 0xff, 1] {
                let mut line = vec![byte; 65_536];
                line[7] = mixed;
                let format = Format::new(&JSON, "w");
                let part = &line[..format.max_line_bytes_of(&line)];
                let length = made(&JSON, Kind::Out, part).len();
                assert!(length < MAX_BATCH_BYTES, "{byte} {mixed}: {length}");
                assert!(length <= json_bytes(part) + AROUND_JSON_LINE_BYTES);
            }
        }
    }

    #[test]
    fn a_json_line_keeps_every_byte() {
        let line = made(&JSON, Kind::Err, "a\"\u{1b}\u{e9}".as_bytes());
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["line"], "a\"\u{1b}\u{e9}");
        assert_eq!(value["watcher"], "web [1]");
        assert_eq!((&value["wid"], &value["pid"]), (&json!(2), &json!(42)));
        assert_eq!(value["stream"], "stderr");
        assert!(value["time"].as_str().unwrap().contains(".978956"));
        assert!(value.get("line_base64").is_none());
        let value: serde_json::Value =
            serde_json::from_str(&made(&JSON, Kind::Out, b"a\xff")).unwrap();
        assert_eq!(value["line"], "a\u{fffd}");
        assert_eq!(value["line_base64"], "Yf8=");
        assert_eq!(base64(b"abc"), "YWJj");
        assert_eq!(base64(b"a"), "YQ==");
    }

    #[test]
    fn syslog_messages() {
        let style = |rfc5424, remote| Style::Syslog {
            facility: 3,
            rfc5424,
            remote,
        };
        let local = made(&style(false, false), Kind::Out, b"hello");
        assert!(local.starts_with("<30>Nov 2"), "{local}");
        assert!(local.ends_with(" web__1_[42]: hello"), "{local}");
        let new = made(&style(true, true), Kind::Err, b"hello");
        assert!(new.starts_with("<27>1 2026-11-2"), "{new}");
        assert!(new.ends_with(" web__1_ 42 - - hello"), "{new}");
    }
}
