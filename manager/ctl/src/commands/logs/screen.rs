//! Lines on their way to standard output.
//!
//! Owns what a line looks like there: bytes unchanged in a pipe, control characters made visible on
//! a terminal (a log may hold whatever a stranger sent to a service), labels where there are
//! several places, one object for each line with `--json`.

use std::io::{self, IsTerminal, Write};
use std::process;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use chrono::SecondsFormat;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use papa_logs::form::LineForm;
use papa_system::civil;
use papa_system::printable::{printable, printable_bytes};
use serde_json::{Value, json};

use papa_control::live::{Line, MAX_LINE_BYTES};
use papa_control::sources::FileSource;

/// How lines are shown.
#[derive(Debug, Clone, Copy)]
pub(super) struct Style {
    pub(super) json: bool,
    /// Width of the label before each line, in columns; none: no label.
    pub(super) label_width: Option<usize>,
    pub(super) terminal: bool,
}

impl Style {
    /// For what standard output is.
    pub(super) fn new(json: bool, label_width: Option<usize>) -> Self {
        Self {
            json,
            label_width,
            terminal: io::stdout().is_terminal(),
        }
    }

    fn text(self, label: &str, line: &[u8], out: &mut Vec<u8>) {
        if let Some(width) = self.label_width {
            let label = printable(label);
            out.extend_from_slice(format!("{label:width$} | ").as_bytes());
        }
        if self.terminal {
            out.extend_from_slice(printable_bytes(line).as_bytes());
        } else {
            out.extend_from_slice(line);
        }
        out.push(b'\n');
    }

    /// A line from the kernel, which knows whose it is and when it came.
    pub(super) fn live(self, name: &str, line: &Line, out: &mut Vec<u8>) {
        if !self.json {
            return self.text(&format!("{name}.{}", line.wid), &line.text, out);
        }
        let mut object = json!({
            "watcher": name,
            "wid": line.wid,
            "pid": line.pid,
            "stream": line.stream_name(),
            "line": String::from_utf8_lossy(&line.text),
        });
        let time = civil::local(line.stamp_us);
        object["time"] = time.to_rfc3339_opts(SecondsFormat::Micros, false).into();
        push_json(&object, out);
    }
}

fn push_json(object: &Value, out: &mut Vec<u8>) {
    out.extend_from_slice(object.to_string().as_bytes());
    out.push(b'\n');
}

/// Lines of one file.
#[derive(Debug)]
pub(super) struct Printer {
    source: FileSource,
    label: String,
    style: Style,
    /// A line whose end has not come yet.
    partial: Vec<u8>,
}

impl Printer {
    pub(super) fn new(source: FileSource, style: Style) -> Self {
        Self {
            label: source.label(),
            source,
            style,
            partial: Vec::new(),
        }
    }

    pub(super) fn source(&self) -> &FileSource {
        &self.source
    }

    /// From now on lines look like this.
    pub(super) fn set_style(&mut self, style: Style) {
        self.style = style;
    }

    /// Prints the whole lines among what was held back and `bytes`.
    pub(super) fn take(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut out = Vec::new();
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.partial.extend_from_slice(line);
            if line.ends_with(b"\n") || self.partial.len() > MAX_LINE_BYTES {
                self.render(&mut out);
            }
        }
        write_out(&out)
    }

    /// Prints what is left without its end.
    pub(super) fn finish(&mut self) -> io::Result<()> {
        let mut out = Vec::new();
        if !self.partial.is_empty() {
            self.render(&mut out);
        }
        write_out(&out)
    }

    fn render(&mut self, out: &mut Vec<u8>) {
        let line = std::mem::take(&mut self.partial);
        let line = line.strip_suffix(b"\n").unwrap_or(&line);
        if !self.style.json {
            return self.style.text(&self.label, line, out);
        }
        if self.source.form == Some(LineForm::Json)
            && serde_json::from_slice::<serde_json::Map<String, Value>>(line).is_ok()
        {
            // It is an object that says more than we know.
            out.extend_from_slice(line);
            out.push(b'\n');
            return;
        }
        let mut object = json!({ "line": String::from_utf8_lossy(line) });
        match self.source.watchers.as_slice() {
            [watcher] => object["watcher"] = watcher.as_str().into(),
            watchers => object["watchers"] = watchers.into(),
        }
        if let Some(stream) = self.source.stream {
            object["stream"] = stream.into();
        }
        push_json(&object, out);
    }
}

/// Prints at once: somebody may be watching.
pub(in crate::commands) fn write_out(out: &[u8]) -> io::Result<()> {
    if out.is_empty() {
        return Ok(());
    }
    WRITTEN.store(true, Ordering::Relaxed);
    let mut stdout = io::stdout().lock();
    stdout.write_all(out)?;
    stdout.flush()
}

/// Whether anything has been shown: what has nothing to show says so.
static WRITTEN: AtomicBool = AtomicBool::new(false);

/// Whether anything has been shown by this command.
pub(super) fn has_shown() -> bool {
    WRITTEN.load(Ordering::Relaxed)
}

/// Ends this program once nobody can read standard output any more, also while it waits for
/// something else.
pub(in crate::commands) fn end_with_reader() {
    thread::spawn(|| {
        while reader_stays(PollTimeout::NONE) {}
        process::exit(0);
    });
}

/// Fails once nobody can read standard output any more, so that a quiet follower ends too.
pub(super) fn check_reader() -> io::Result<()> {
    if reader_stays(PollTimeout::ZERO) {
        Ok(())
    } else {
        Err(io::ErrorKind::BrokenPipe.into())
    }
}

/// Waits so long for the reader of standard output to go; whether it has not.
fn reader_stays(patience: PollTimeout) -> bool {
    let stdout = io::stdout();
    let mut wanted = [PollFd::new(
        std::os::fd::AsFd::as_fd(&stdout),
        PollFlags::empty(),
    )];
    // A failure here says nothing about the reader.
    let gone = poll(&mut wanted, patience).is_ok_and(|count| count > 0)
        && wanted.iter().filter_map(PollFd::revents).any(|events| {
            events.intersects(PollFlags::POLLERR | PollFlags::POLLHUP | PollFlags::POLLNVAL)
        });
    !gone
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    use papa_control::message::{LogsReply, WatcherLogs};
    use papa_control::sources::Sources;

    fn rendered(style: Style, form: LineForm, line: &[u8]) -> Vec<u8> {
        let logs = WatcherLogs {
            name: "a\x1b".to_owned(),
            stdout: Some("/x".to_owned()),
            stderr: None,
            stdout_lines: Some(form),
            stderr_lines: None,
            ends: Default::default(),
            draining: false,
        };
        let mut sources = Sources::of(&LogsReply {
            logs: vec![logs],
            troubles: BTreeMap::new(),
            gone: Vec::new(),
        });
        let mut printer = Printer::new(sources.files.remove(0), style);
        printer.partial = line.to_vec();
        let mut out = Vec::new();
        printer.render(&mut out);
        out
    }

    const PIPE: Style = Style {
        json: false,
        label_width: None,
        terminal: false,
    };

    #[test]
    fn a_terminal_sees_no_control_characters_and_a_pipe_sees_the_bytes() {
        let terminal = Style {
            terminal: true,
            ..PIPE
        };
        let plain = |style, line: &[u8]| rendered(style, LineForm::Plain, line);
        assert_eq!(plain(terminal, b"\x1b[2J\n"), b"^[[2J\n");
        assert_eq!(plain(PIPE, b"\x1b\xff\n"), b"\x1b\xff\n");
        let labelled = Style {
            label_width: Some(3),
            ..PIPE
        };
        assert_eq!(plain(labelled, b"x"), b"a^[ | x\n", "as wide as asked");
        let json = Style {
            json: true,
            ..terminal
        };
        assert_eq!(
            plain(json, b"\x1bx"),
            b"{\"line\":\"\\u001bx\",\"stream\":\"stdout\",\"watcher\":\"a\\u001b\"}\n"
        );
    }

    #[test]
    fn objects_pass_as_they_are() {
        let json = Style { json: true, ..PIPE };
        let object = b"{\"time\":\"t\",\"line\":\"x\"}\n";
        assert_eq!(rendered(json, LineForm::Json, object), object);
        let other = rendered(json, LineForm::Json, b"[1]\n");
        assert!(other.starts_with(b"{\"line\":\"[1]\""));
    }
}
