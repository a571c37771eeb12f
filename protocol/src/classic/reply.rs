//! Replies and frames of the classic dialect, byte by byte.
//!
//! Owns the prompt's rule, the listings' lines and the frames of a watch. Every field a client
//! chose is escaped, so no listing holds a line nobody wrote; the bytes of output travel as they
//! are, their length ahead of them.

use std::fmt::Write as _;

use bytes::{BufMut, BytesMut};

use crate::name::Name;
use crate::process::Process;
use crate::record::Stream;
use crate::socket::SocketInfo;
use crate::text::{escape_control, escape_control_bytes, push_escaped_bytes};

/// Sent when a session starts, the prompt included.
pub const BANNER: &str = "Papa is home. Type \"help\" for commands.\n> ";

/// Ends every reply.
pub const PROMPT: &str = "> ";

/// Answers `quit`; the session is closed after it, without a prompt.
pub const QUIT_REPLY: &str = "ok\n";

/// The last line of a session when the kernel ends because somebody asked it to.
pub const KERNEL_ENDS: &str = "\nThe kernel ends: a client asked it to, and it holds nothing.\n";

/// What a line that answers a batch and is none of the words for that is answered with; the batch
/// waits on.
pub const WATCH_HINT: &str = "Press Enter for more, q to stop watching, quit to leave\n] ";

/// Answers `exit-if-idle` when idle; the session is closed after it.
pub const EXITING: &str = "Exiting papa!\n> ";

/// Answers `exit-if-idle` when not.
pub const NOT_IDLE: &str = "not idle";

/// Ends a batch of frames; the client then acknowledges by a line.
pub const WATCH_BATCH_END: &str = "] ";

/// Ends a watch when every watched process is gone.
pub const NOTHING_LEFT: &str = "Nothing left to watch";

/// Ends a watch after `q`.
pub const STOPPED: &str = "Stopped watching";

/// Appends a reply and the prompt: after a newline the prompt stands alone, otherwise on a line of
/// its own.
pub fn finish(text: &str, out: &mut BytesMut) {
    let newline = if text.ends_with('\n') { "" } else { "\n" };
    let length = text.len() + newline.len() + PROMPT.len();
    if out.is_empty() {
        // Exactly as long: then it is frozen as it is.
        *out = BytesMut::with_capacity(length);
    } else {
        out.reserve(length);
    }
    out.put_slice(text.as_bytes());
    out.put_slice(newline.as_bytes());
    out.put_slice(PROMPT.as_bytes());
}

/// Appends an error and the prompt.
pub fn finish_error(message: &str, out: &mut BytesMut) {
    out.put_slice(b"Error: ");
    out.put_slice(message.as_bytes());
    out.put_u8(b'\n');
    out.put_slice(PROMPT.as_bytes());
}

/// A process as listed, without a newline.
#[must_use]
pub fn process_line(process: &Process) -> String {
    let mut line = String::with_capacity(96);
    let (seconds, micros) = split_us(process.started_us);
    // Writing to a String cannot fail.
    let _ = write!(
        line,
        "{} pid={} running={} started={seconds}.{micros:06}",
        escape_control(&process.name),
        process.pid,
        if process.running { "True" } else { "False" },
    );
    for (key, id) in [("uid", process.uid), ("gid", process.gid)] {
        // Root's numbers are not shown, as papa 1.0.6 does not.
        if let Some(id) = id.filter(|id| *id != 0) {
            let _ = write!(line, " {key}={id}");
        }
    }
    if process.shell {
        line.push_str(" shell=True");
    }
    for (index, argument) in process.argv.iter().enumerate() {
        line.push_str(if index == 0 { " args=" } else { " " });
        push_escaped_bytes(&mut line, argument.as_bytes());
    }
    line
}

/// A socket as listed, without a newline.
#[must_use]
pub fn socket_line(socket: &SocketInfo) -> String {
    let mut line = format!(
        "{} family={} type={} backlog={}",
        escape_control(&socket.name),
        socket.family.word(),
        socket.socket_type.word(),
        socket.backlog
    );
    // Writing to a String cannot fail.
    if let Some(path) = &socket.path {
        let _ = write!(line, " path={}", escape_control_bytes(path.as_bytes()));
    }
    if let Some(umask) = socket.umask {
        let _ = write!(line, " umask={}", umask.bits());
    }
    if let Some(host) = &socket.host {
        let _ = write!(line, " host={}", escape_control(host));
    }
    if let Some(port) = socket.port {
        let _ = write!(line, " port={port}");
    }
    if let Some(interface) = &socket.interface {
        let _ = write!(line, " interface={}", escape_control(interface));
    }
    if socket.reuseport {
        line.push_str(" reuseport=1");
    }
    if let Some(fileno) = socket.fileno {
        let _ = write!(line, " fileno={fileno}");
    }
    line
}

/// A value as listed, without a newline.
#[must_use]
pub fn value_line(name: &Name, value: &[u8]) -> String {
    let mut line = String::with_capacity(name.len() + 1 + value.len());
    line.push_str(&escape_control(name));
    line.push(' ');
    push_escaped_bytes(&mut line, value);
    line
}

/// A value as `get` answers it.
#[must_use]
pub fn value_text(value: &[u8]) -> String {
    escape_control_bytes(value)
}

/// Appends what a watch starts with.
pub fn watching(count: usize, out: &mut BytesMut) {
    put(out, format_args!("Watching {count}\n"));
}

/// Appends the header of a frame of output; `length_bytes` bytes and a newline must follow it.
pub fn watch_output(
    stream: Stream,
    name: &Name,
    stamp_us: u64,
    length_bytes: usize,
    out: &mut BytesMut,
) {
    let (seconds, micros) = split_us(stamp_us);
    put(
        out,
        format_args!(
            "{}:{name}:{seconds}.{micros:06}:{length_bytes}\n",
            stream.word()
        ),
    );
}

/// Appends the frame of an exit; `code` is negative for a signal.
pub fn watch_closed(name: &Name, stamp_us: u64, code: i32, out: &mut BytesMut) {
    let (seconds, micros) = split_us(stamp_us);
    put(
        out,
        format_args!("closed:{name}:{seconds}.{micros:06}:{code}\n"),
    );
}

fn put(out: &mut BytesMut, text: std::fmt::Arguments<'_>) {
    // Writing to a BytesMut only fails beyond isize::MAX bytes, which the session budget is far
    // below.
    let _ = out.write_fmt(text);
}

fn split_us(stamp_us: u64) -> (u64, u64) {
    (stamp_us / 1_000_000, stamp_us % 1_000_000)
}
