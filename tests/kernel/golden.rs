//! Plays back what was recorded from papa 1.0.6 and expects our kernel to answer the same.
//!
//! Transcripts are made by tests/golden/record.py. A step marked with a `defect` of the original
//! must answer what its `better` says instead; everything else must be equal to the byte, after the
//! same replacement of what differs from run to run (pids, stamps, ports, file numbers, the scratch
//! folder).

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use serde_json::Value;

use papa_harness::{Classic, Kernel, assert_same, wait_until};

/// How the system says that a port is taken.
const ADDRESS_IN_USE: &str = "[Errno 98]";
/// Help must say at least this much to count as help.
const HELP_BYTES: usize = 60;

#[test]
fn transcripts_of_the_original_replay_equal() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/transcripts");
    let mut names: Vec<_> = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    names.sort();
    assert!(names.len() > 10, "transcripts are in {}", folder.display());
    let mut failures = Vec::new();
    let mut compared = 0;
    for path in names {
        let steps: Vec<Value> = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        compared += steps.len();
        failures.extend(play(&name, &steps));
    }
    assert!(
        failures.is_empty(),
        "{} of {compared} steps differ\n{}",
        failures.len(),
        failures.join("\n")
    );
}

/// One transcript against a fresh kernel; gives a block of text for each step that differs.
fn play(name: &str, steps: &[Value]) -> Vec<String> {
    let kernel = Kernel::start();
    let directory = kernel.path("golden");
    fs::create_dir(&directory).expect("the scratch folder is fresh");
    let mut clients: HashMap<String, Classic> = HashMap::new();
    let mut variables = HashMap::from([("dir".to_owned(), directory.clone())]);
    let mut failures = Vec::new();
    for step in steps {
        let who = text(step, "who").unwrap_or("a");
        if step["close"] == true {
            clients.remove(who);
            continue;
        }
        let client = clients
            .entry(who.to_owned())
            .or_insert_with(|| kernel.classic());
        let mut send = text(step, "send").unwrap_or_default().to_owned();
        for (variable, value) in &variables {
            send = send.replace(&format!("{{{variable}}}"), value);
        }
        let got = ask(client, step, &send);
        learn(&got, &mut variables);
        if step["ours"] == true {
            if got.starts_with("Error") || got.len() < HELP_BYTES {
                failures.push(format!("{name}: {send:?} is no help: {got:?}"));
            }
            continue;
        }
        let mut got = normalise(&got, &directory);
        if is_start(&send) {
            got = replace_after(&got, "running=", "?", char::is_alphabetic);
        }
        let expected = text(step, "better")
            .or_else(|| text(step, "receive"))
            .unwrap_or_default();
        let same = match expected.strip_prefix('~') {
            Some(pattern) => glob(pattern, &got),
            None => expected == got,
        };
        if !same {
            let defect = text(step, "defect").unwrap_or("none");
            failures.push(format!(
                "{name}: {send:?} (defect of the original: {defect})\n  expected {expected:?}\n  got      {got:?}"
            ));
        }
    }
    failures
}

/// Sends a line, again and again where the step says `until`, and reads to the end the step names.
fn ask(client: &mut Classic, step: &Value, send: &str) -> String {
    let end = text(step, "end").unwrap_or("\n> ");
    let wanted = text(step, "until").unwrap_or_default();
    let expects_taken = ["better", "receive"]
        .iter()
        .any(|key| text(step, key).is_some_and(|reply| reply.contains(ADDRESS_IN_USE)));
    let mut got = String::new();
    wait_until(&format!("{send:?} answers {wanted:?}"), || {
        client.send(send);
        got = if end.is_empty() {
            client.read_to_end()
        } else {
            client.read_until(end)
        };
        // A port the system chose and that was given back may for a moment be the
        // near end of somebody's connection; that is not what is compared.
        let taken = got.contains(ADDRESS_IN_USE) && !expects_taken;
        !taken && got.contains(wanted)
    });
    got
}

fn text<'a>(step: &'a Value, key: &str) -> Option<&'a str> {
    step.get(key).and_then(Value::as_str)
}

/// A line that starts a process, which may have ended before the answer was written.
fn is_start(line: &str) -> bool {
    let mut words = line.split(' ');
    words.next().is_some_and(|word| word.starts_with('m'))
        && words.next().is_some_and(|word| word.starts_with('p'))
        && words.next().is_some()
}

/// Remembers pid, port and fileno of whatever an answer lists, for `{pid:NAME}` in later lines.
fn learn(answer: &str, variables: &mut HashMap<String, String>) {
    for line in answer.lines() {
        let Some((name, rest)) = line.split_once(' ') else {
            continue;
        };
        for word in rest.split(' ') {
            if let Some((key, value)) = word.split_once('=')
                && matches!(key, "pid" | "port" | "fileno")
            {
                variables.insert(format!("{key}:{name}"), value.to_owned());
            }
        }
    }
}

/// Replaces what differs from run to run. Kept the same in tests/golden/record.py.
fn normalise(text: &str, directory: &str) -> String {
    let mut text = text.replace(directory, "{dir}");
    let digit = |character: char| character.is_ascii_digit();
    for prefix in ["pid=", "fileno=", "/proc/self/fd/"] {
        text = replace_after(&text, prefix, "N", digit);
    }
    text = replace_after(&text, "started=", "T", |character| {
        digit(character) || character == '.'
    });
    text = replace_after(&text, "port=", "N", digit).replace("reuseport=N", "reuseport=1");
    let lines: Vec<String> = text.split('\n').map(normalise_line).collect();
    lines.join("\n")
}

fn normalise_line(line: &str) -> String {
    let pieces: Vec<&str> = line.splitn(4, ':').collect();
    if let [kind @ ("out" | "err" | "closed"), name, stamp, rest] = pieces[..] {
        // Six decimals: what every reader of ours may count on.
        let decimals = stamp.split_once('.').map_or(0, |(_, after)| after.len());
        let stamp = if decimals == 6 { "T" } else { stamp };
        return format!("{kind}:{name}:{stamp}:{rest}");
    }
    if line.contains("Bind failed on ") {
        let mut pieces: Vec<String> = line.split(':').map(str::to_owned).collect();
        if let Some(port) = pieces.get_mut(2)
            && port.chars().all(|character| character.is_ascii_digit())
            && *port != "0"
        {
            *port = "N".to_owned();
        }
        return pieces.join(":");
    }
    line.to_owned()
}

/// Replaces the run of characters after every `prefix` (at least one; `0` alone stays: it is a
/// choice, not chance).
fn replace_after(text: &str, prefix: &str, with: &str, accept: impl Fn(char) -> bool) -> String {
    let mut done = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(prefix) {
        let (before, after) = rest.split_at(at + prefix.len());
        let end = after
            .find(|character| !accept(character))
            .unwrap_or(after.len());
        let (value, remainder) = after.split_at(end);
        done.push_str(before);
        done.push_str(if matches!(value, "" | "0") {
            value
        } else {
            with
        });
        rest = remainder;
    }
    done + rest
}

/// Whether `text` fits `pattern`, in which a star stands for anything.
fn glob(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((before, after)) => text.strip_prefix(before).is_some_and(|rest| {
            (0..=rest.len())
                .filter_map(|from| rest.get(from..))
                .any(|tail| glob(after, tail))
        }),
    }
}

#[test]
fn the_replacements_leave_the_rest_alone() {
    assert_same(
        "a process line",
        "p pid=N running=True started=T args=x pid= {dir}/a",
        &normalise(
            "p pid=12 running=True started=1.5 args=x pid= /tmp/d/a",
            "/tmp/d",
        ),
    );
    assert_same(
        "a frame",
        "out:p:T:5\nab:c:1.000000:3",
        &normalise("out:p:1.123456:5\nab:c:1.000000:3", "/none"),
    );
    assert_same(
        "a socket line",
        "r port=N reuseport=1 port=0",
        &normalise("r port=81 reuseport=1 port=0", "/none"),
    );
    assert!(glob("Error: *x*\n> ", "Error: not x y\n> "));
    assert!(!glob("Error: *x*\n> ", "ok x\n> "));
}
