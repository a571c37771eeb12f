//! The kinds of streams: by time, compressed, JSON, coloured, syslog, directories that are not
//! there.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

use flate2::read::MultiGzDecoder;
use serde_json::Value;

use crate::stack::Stack;
use papa_harness::wait_until;

/// What a file holds, compressed or not.
pub(crate) fn text_of(path: &Path) -> Vec<u8> {
    let mut text = Vec::new();
    // It may be compressed at this very moment, and is looked for again then.
    let Ok(mut file) = File::open(path) else {
        return text;
    };
    if path.extension().is_some_and(|end| end == "gz") {
        let _ = MultiGzDecoder::new(file).read_to_end(&mut text);
    } else {
        let _ = file.read_to_end(&mut text);
    }
    text
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(directory)
        .into_iter()
        .flatten()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn files_are_turned_by_time_compressed_and_no_line_is_lost() {
    let stack = Stack::start(
        "[watcher:w]\ncmd = sh -c 'i=0; while [ $i -lt 40 ]; do echo $i; i=$((i+1)); sleep 0.1; done; exec sleep 1000'\n\
         copy_env = true\nstdout_stream.class = TimedRotatingFileStream\nstdout_stream.filename = DIR/deep/er/w.log\n\
         stdout_stream.rotate_when = s\nstdout_stream.utc = false\nstdout_stream.compress = gzip\nstdout_stream.mkdir = yes\n",
    );
    let directory = stack.kernel.directory().join("deep/er");
    // The last period ends by the clock: nothing is written any more.
    wait_until("all is in compressed files", || {
        let names = names(&directory);
        let rest = names.iter().filter(|name| !name.ends_with(".gz"));
        let files = names.iter().filter(|name| name.ends_with(".gz"));
        let lines: usize = files
            .map(|name| {
                text_of(&directory.join(name))
                    .split(|b| *b == b'\n')
                    .count()
                    - 1
            })
            .sum();
        lines == 40 && rest.eq(["w.log"])
    });
    let files = names(&directory);
    let text: Vec<u8> = files
        .iter()
        .filter(|name| name.ends_with(".gz"))
        .flat_map(|name| text_of(&directory.join(name)))
        .collect();
    let text = String::from_utf8(text).unwrap();
    assert!(files.len() > 3, "{files:?}");
    let stamp = files[1].strip_prefix("w.log.").unwrap();
    assert_eq!(stamp.len(), "20261122010203.gz".len(), "{files:?}");
    for (number, line) in text.lines().enumerate() {
        assert_eq!(line, number.to_string());
    }
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&directory), 0o755);
}

#[test]
fn json_lines_say_who_and_when() {
    let stack = Stack::start(
        "[watcher:Web]\ncmd = sh -c 'printf \"a\\n\\303\\251\\377\\n\"; echo e >&2; exec sleep 1000'\ncopy_env = true\n\
         stdout_stream.class = json\nstdout_stream.filename = DIR/logs/w.json\n\
         stderr_stream.class = json\nstderr_stream.filename = DIR/logs/w.json\n",
    );
    let pid = stack.wait_pids("web", 1)[&1];
    let lines = || -> Vec<Value> {
        let text = String::from_utf8(stack.log("w.json")).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    };
    wait_until("the lines are written", || lines().len() == 3);
    let lines = lines();
    let of = |stream: &str| -> Vec<&Value> {
        lines
            .iter()
            .filter(|line| line["stream"] == stream)
            .collect()
    };
    assert_eq!(of("stdout")[0]["line"], "a");
    assert_eq!(of("stdout")[1]["line"], "\u{e9}\u{fffd}");
    assert_eq!(of("stdout")[1]["line_base64"], "w6n/");
    assert_eq!(of("stderr")[0]["line"], "e");
    for line in &lines {
        assert_eq!(line["watcher"], "Web");
        assert_eq!(line["wid"], 1);
        assert_eq!(line["pid"], pid);
    }
}

#[test]
fn a_syslog_daemon_gets_a_message_for_each_line_also_if_it_comes_late() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    let mut stack = Stack::start(&format!(
        "[watcher:w]\ncmd = sh -c 'i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); done; exec sleep 1000'\ncopy_env = true\n\
         stdout_stream.class = syslog\nstdout_stream.address = {}\nstdout_stream.facility = local3\n",
        path.display()
    ));
    let pid = stack.wait_pids("w", 1)[&1];
    wait_until("the manager says what is wrong", || {
        let status = stack.request("status", "w").to_string();
        status.contains("syslog")
    });
    let daemon = UnixDatagram::bind(&path).unwrap();
    daemon
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let mut next = 0;
    let mut killed = false;
    while next < 3000 {
        let mut message = [0; 4096];
        let length = daemon.recv(&mut message).expect("a message in time");
        let message = std::str::from_utf8(&message[..length]).unwrap();
        let (header, text) = message.split_once(": line ").unwrap();
        assert!(header.starts_with("<158>"), "{message}");
        assert!(header.ends_with(&format!(" w[{pid}]")), "{message}");
        let number: u64 = text.parse().unwrap();
        // At least once: what was on its way comes again after a kill, and nothing is left out.
        assert!(
            number <= next && (number == next || killed),
            "{message}, expected {next}"
        );
        next = next.max(number + 1);
        if next == 1500 && !killed {
            killed = true;
            stack.kill_manager();
            stack.start_manager();
        }
    }
}

#[test]
fn the_managers_own_output_may_be_a_socket_and_in_colour() {
    let stack = Stack::start_with_output(
        "[watcher:w]\ncmd = sh -c 'echo plain; exec sleep 1000'\ncopy_env = true\nstdout_stream.class = StdoutStream\n\
         [watcher:x]\ncmd = sh -c 'echo; echo coloured; exec sleep 1000'\ncopy_env = true\nstdout_stream.class = FancyStdoutStream\n\
         stdout_stream.color = blue\nstdout_stream.time_format = T\n",
    );
    let pid = stack.wait_pids("x", 1)[&1];
    let expected = format!("\x1b[0;34;40mT [{pid}] | coloured\x1b[0m\n");
    wait_until("both lines have come", || {
        let text = stack.own_output();
        text.contains("plain\n") && text.contains(&expected)
    });
    assert_eq!(stack.own_output().matches("\x1b[0;34").count(), 1);
}
