//! The sessions that protocol/README.md and manager/docs/control.md show, held with real programs.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;

use serde_json::Value;

use papa_harness::{Classic, Kernel, PATIENCE, Site, wait_for, wait_until};

use crate::pages::Page;
use crate::shown::masked;

#[test]
fn the_classic_session_is_answered_as_it_is_shown() {
    let page = Page::open("protocol/README.md");
    let block = page.block("### A classic session");
    let kernel = Kernel::start();
    let mut session = Classic::tcp(kernel.port());
    let mut asked = 0;
    let (banner, rest) = block.split_first().unwrap();
    assert_eq!(*banner, "Papa is home. Type \"help\" for commands.");
    let mut steps = rest.split(|line| line.starts_with("> ")).skip(1);
    for line in rest.iter().filter_map(|line| line.strip_prefix("> ")) {
        let shown = steps.next().unwrap();
        if line.starts_with("l p") || line.starts_with("watch") {
            wait_until("the process has ended", || {
                let mut other = kernel.classic();
                other.ask("list processes").contains("running=False")
            });
        }
        session.send(line);
        let answer = match line {
            "quit" => session.read_to_end(),
            // A batch ends with a prompt of its own, and an empty line takes it.
            _ if line.starts_with("watch") => {
                let batch = session.read_until("] ");
                session.send("");
                format!(
                    "{}]\n{}",
                    batch.trim_end().trim_end_matches(']'),
                    session.read_until("> ")
                )
            }
            _ => session.read_until("> "),
        };
        let text = |lines: Vec<&str>| -> Vec<String> {
            let lines = lines
                .into_iter()
                .filter(|line| !["", ">"].contains(&line.trim()));
            lines.map(masked).collect()
        };
        assert_eq!(
            text(answer.lines().collect()),
            text(shown.to_vec()),
            "{line}"
        );
        asked += 1;
    }
    assert!(asked > 5, "{asked}");
}

/// Keys and kinds of a value, numbers aside: what a reader may rely on.
fn shape(value: &Value) -> Value {
    match value {
        Value::Number(_) => 0.into(),
        Value::Array(items) => items.iter().map(shape).collect(),
        Value::Object(fields) => fields
            .iter()
            .map(|(key, value)| (masked(key), shape(value)))
            .collect(),
        other => other.clone(),
    }
}

#[test]
fn the_json_session_is_answered_as_it_is_shown() {
    let page = Page::open("protocol/README.md");
    let block = page.block("### A JSON session");
    let kernel = Kernel::start();
    let stream = UnixStream::connect(kernel.socket_path()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut answers = BufReader::new(&stream);
    let mut next = || {
        let mut line = String::new();
        answers.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    };
    let mut serial = String::new();
    let mut requests = 0;
    assert_eq!(next(), block[0]);
    for line in &block[1..] {
        let line = line.strip_prefix("> ").unwrap_or(line);
        if let Some(request) = line.strip_prefix(">> ") {
            if request.contains("output.consume") {
                wait_for("the process has ended", || {
                    let process = kernel.json().process("demo.hi")?;
                    (process["running"] == false).then_some(())
                });
            }
            let request = request
                .replace("\"2\":", &format!("\"{serial}\":"))
                .replace("[2]", &format!("[{serial}]"));
            writeln!(&stream, "{request}").unwrap();
            requests += 1;
            continue;
        }
        let answer = next();
        let answer = answer.strip_prefix("> ").unwrap_or(&answer);
        if line.contains('…') {
            let (begin, _) = line.split_once("\"features\"").unwrap();
            assert!(masked(answer).starts_with(&masked(begin)), "{answer}");
        } else if line.starts_with('{') {
            let shown: Value = serde_json::from_str(line).unwrap();
            let got: Value = serde_json::from_str(answer).unwrap();
            let process = &got["ok"]["process"];
            if process.is_object() {
                serial = process["serial"].to_string();
            }
            assert_eq!(shape(&got), shape(&shown), "{answer}");
        } else {
            assert_eq!(answer, line);
        }
    }
    assert!(requests > 5, "{requests}");
}

#[test]
fn the_managers_socket_answers_as_its_page_shows() {
    let page = Page::open("manager/docs/control.md");
    let block = page.block("# The control socket");
    let [request, success, failure] = block[..] else {
        panic!("{block:?}");
    };
    let site = Site::new("[watcher:web]\ncmd = sleep 1000\n");
    site.done("up site.ini");
    let ask = |request: &str| -> Value {
        let path = site.file("papa/circus.manager.sock");
        let mut stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        writeln!(stream, "{request}").unwrap();
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    };
    let shown = |text: &str| shape(&serde_json::from_str(text).unwrap());
    assert_eq!(shape(&ask(request)), shown(success));
    let nobody = r#"{"id":1,"command":"stop","properties":{"name":"nope"}}"#;
    assert_eq!(shape(&ask(nobody)), shown(failure));

    let [event] = page.block("## Events")[..] else {
        panic!("one event was expected");
    };
    site.done("start web");
    let printed = site
        .command("papactl", "listen watcher.web.spawn --since 0")
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut printed = printed;
    let mut line = String::new();
    let mut lines = BufReader::new(printed.stdout.take().unwrap());
    lines.read_line(&mut line).unwrap();
    printed.kill().unwrap();
    printed.wait().unwrap();
    assert_eq!(shown(&line), shown(event), "{line}");
}
