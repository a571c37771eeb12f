use serde_json::json;

use super::*;
use crate::selection::Matching;

fn parse(text: &str) -> Result<Request, (Value, RequestError)> {
    Request::parse(text.as_bytes())
}

fn command(word: &str, properties: &Value) -> Result<Command, RequestError> {
    let line = json!({"command": word, "properties": properties}).to_string();
    match parse(&line) {
        Ok(request) => Ok(request.command),
        Err((_, error)) => Err(error),
    }
}

fn options(value: &Value) -> OptionValues {
    OptionValues::parse(value.as_object().unwrap()).unwrap()
}

#[test]
fn every_command_survives_the_wire() {
    let name = || "Web".to_owned();
    let some = || Some(name());
    let selection = Selection {
        name: some(),
        names: vec!["api".into()],
        matching: Matching::Simple,
    };
    let kill = SignalNumber::TERM;
    let grace = Some(Duration::from_millis(1500));
    let mut commands = vec![
        Command::Add(Add {
            name: name(),
            options: options(
                &json!({"cmd": "a", "args": "b c", "numprocesses": 2, "env": {"A": "b"}}),
            ),
            start: true,
        }),
        Command::Rm {
            name: name(),
            nostop: true,
        },
        Command::Start(Selection::all()),
        Command::Stop(selection.clone()),
        Command::Restart(Selection {
            name: Some("w.*".into()),
            names: Vec::new(),
            matching: Matching::Regex,
        }),
        Command::ReloadConfig {
            plan: true,
            accept_removal: true,
        },
        Command::Quit,
        Command::Shutdown,
        Command::Upgrade,
        Command::ReopenLogs,
        Command::Incr {
            name: name(),
            by: 3,
        },
        Command::Decr {
            name: name(),
            by: 1,
        },
        Command::Set {
            name: name(),
            options: options(&json!({"send_hup": true, "max_age": 5, "warmup_delay": 0.5})),
        },
        Command::Get {
            name: name(),
            keys: vec!["cmd".into()],
        },
        Command::Options { name: name() },
        Command::GlobalOptions { option: None },
        Command::GlobalOptions {
            option: Some("endpoint".into()),
        },
        Command::List { name: some() },
        Command::Status { name: None },
        Command::Status { name: some() },
        Command::NumProcesses { name: None },
        Command::NumWatchers,
        Command::Stats {
            name: some(),
            process: Some(7),
            extended: true,
        },
        Command::DStats,
        Command::ListSockets,
        Command::Kill(Kill {
            name: name(),
            pid: Some(5),
            signal: Some(kill),
            graceful_timeout: grace,
        }),
        Command::Kill(Kill {
            name: name(),
            pid: None,
            signal: None,
            graceful_timeout: None,
        }),
        Command::Listen(Listen::default()),
        Command::Listen(Listen {
            topics: vec!["watcher.web".into()],
            since: Some(Since {
                incarnation: Some("ab:c".into()),
                seq: 9,
            }),
        }),
        Command::Logs { name: some() },
        Command::Doctor,
    ];
    for how in [
        ReloadHow::Graceful,
        ReloadHow::Sequential,
        ReloadHow::Terminate,
    ] {
        commands.push(Command::Reload {
            selection: selection.clone(),
            how,
        });
    }
    for reach in [Reach::Worker, Reach::Child(8), Reach::Children, Reach::Tree] {
        commands.push(Command::Signal(Signal {
            name: name(),
            pid: Some(7),
            signal: kill,
            reach,
        }));
    }
    for command in commands {
        for request in [
            Request::waiting(command.clone()),
            Request::accepted(command),
        ] {
            let line = request.to_line();
            assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
            assert_eq!(
                parse(String::from_utf8(line).unwrap().trim_end()),
                Ok(request)
            );
        }
    }
}

#[test]
fn circus_requests_are_understood() {
    let request = parse(r#"{"command":"STATUS","id":"x","msg_type":"cast"}"#).unwrap();
    assert_eq!(request.command, Command::Status { name: None });
    assert!(request.cast && !request.waiting);
    assert_eq!(request.id, Value::from("x"));
    // Numbers that Circus's command line passes as they were typed.
    assert_eq!(
        command(
            "kill",
            &json!({"name": "w", "pid": "12", "signum": "hup", "graceful_timeout": "2.5"})
        ),
        Ok(Command::Kill(Kill {
            name: "w".into(),
            pid: Some(12),
            signal: Some(SignalNumber::try_from(1).unwrap()),
            graceful_timeout: Some(Duration::from_millis(2500)),
        }))
    );
    assert_eq!(
        command("incr", &json!({"name": "w", "whatever": 1})),
        Ok(Command::Incr {
            name: "w".into(),
            by: 1
        })
    );
    assert_eq!(
        command("listen", &json!({"since": 4})),
        Ok(Command::Listen(Listen {
            topics: Vec::new(),
            since: Some(Since {
                incarnation: None,
                seq: 4
            }),
        }))
    );
    let Ok(Command::Reload { how, .. }) =
        command("reload", &json!({"graceful": false, "sequential": true}))
    else {
        panic!("a reload");
    };
    assert_eq!(how, ReloadHow::Terminate);
}

#[test]
fn bad_requests_get_circus_numbers_and_keep_their_id() {
    for (text, id, errno) in [
        ("", Value::Null, Errno::InvalidJson),
        ("  ", Value::Null, Errno::InvalidJson),
        ("[1]", Value::Null, Errno::InvalidJson),
        (r#"{"id":7}"#, 7.into(), Errno::Message),
        (
            r#"{"id":7,"command":"frobnicate"}"#,
            7.into(),
            Errno::UnknownCommand,
        ),
        (r#"{"id":7,"command":"options"}"#, 7.into(), Errno::Message),
        (
            r#"{"id":7,"command":"stop","properties":3}"#,
            7.into(),
            Errno::Message,
        ),
        (
            r#"{"id":7,"command":"stop","properties":{"name":3}}"#,
            7.into(),
            Errno::Message,
        ),
    ] {
        let (got, error) = parse(text).unwrap_err();
        assert_eq!((got, error.errno), (id, errno), "{text}");
    }
}

#[test]
fn wrong_properties_say_what_is_expected() {
    for (word, properties, expected) in [
        ("stop", json!({"waiting": "yes"}), "true or false"),
        ("stop", json!({"name": "a", "match": "fuzzy"}), "fuzzy"),
        (
            "stop",
            json!({"name": "(", "match": "regex"}),
            "regular expression",
        ),
        ("add", json!({"name": "w"}), "cmd"),
        (
            "add",
            json!({"name": "", "cmd": "x"}),
            "at least one character",
        ),
        (
            "set",
            json!({"name": "w", "options": {"nope": 1}}),
            "unknown option",
        ),
        ("incr", json!({"name": "w", "nb": -1}), "-1"),
        (
            "signal",
            json!({"name": "w", "signum": "NOPE"}),
            "expected a signal",
        ),
        (
            "signal",
            json!({"name": "w", "signum": 1, "childpid": 5}),
            "needs the \"pid\"",
        ),
        (
            "signal",
            json!({"name": "w", "signum": 1, "pid": 0}),
            "process id",
        ),
        (
            "kill",
            json!({"name": "w", "graceful_timeout": "soon"}),
            "number of seconds",
        ),
        (
            "kill",
            json!({"name": "w", "graceful_timeout": -1}),
            "number of seconds",
        ),
        ("stats", json!({"process": 5}), "needs the \"name\""),
        ("listen", json!({"since": "x"}), "number of an event"),
    ] {
        let error = command(word, &properties).unwrap_err();
        assert_eq!(error.errno, Errno::Message, "{word}");
        assert!(error.reason.contains(expected), "{word}: {}", error.reason);
    }
}

/// The fields that serde's derive knows of a type, by asking the derive for them.
pub(crate) fn fields_of<T: DeserializeOwned>() -> Vec<&'static str> {
    struct Asking<'a>(&'a mut Vec<&'static str>);

    impl<'de> serde::Deserializer<'de> for Asking<'_> {
        type Error = serde::de::value::Error;

        fn deserialize_any<V: serde::de::Visitor<'de>>(
            self,
            _: V,
        ) -> Result<V::Value, Self::Error> {
            Err(serde::de::Error::custom("only structs are asked"))
        }

        fn deserialize_struct<V: serde::de::Visitor<'de>>(
            self,
            _: &'static str,
            fields: &'static [&'static str],
            visitor: V,
        ) -> Result<V::Value, Self::Error> {
            self.0.extend(fields);
            self.deserialize_any(visitor)
        }

        serde::forward_to_deserialize_any! {
            bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf
            option unit unit_struct newtype_struct seq tuple tuple_struct map enum identifier
            ignored_any
        }
    }

    let mut fields = Vec::new();
    assert!(T::deserialize(Asking(&mut fields)).is_err());
    fields
}

#[test]
fn the_page_names_every_command_and_its_properties() {
    let mut table = String::from("\n| command | properties | what it does |\n|---|---|---|\n");
    for (word, properties, meaning) in described() {
        let properties: Vec<String> = properties.iter().map(|name| format!("`{name}`")).collect();
        // What follows is about replies, for readers of the code.
        let ends = [" Body: ", " Waiting"].map(|end| meaning.find(end).unwrap_or(meaning.len()));
        let meaning = &meaning[..ends[0].min(ends[1])];
        table.push_str(&format!(
            "| `{word}` | {} | {} |\n",
            properties.join(", "),
            meaning.trim().trim_end_matches('.')
        ));
    }
    table.push('\n');
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/control.md");
    let page = std::fs::read_to_string(path).unwrap();
    let begin = "<!-- commands, written by UPDATE_README=1 cargo test -->\n";
    let from = page.find(begin).expect("the page has the marker") + begin.len();
    let length = page[from..]
        .find("<!-- end -->")
        .expect("the marker has an end");
    let mut expected = page.clone();
    expected.replace_range(from..from + length, &table);
    if std::env::var_os("UPDATE_README").is_some() {
        std::fs::write(path, expected).unwrap();
        return;
    }
    assert!(
        page == expected,
        "manager/docs/control.md differs from the table of commands; UPDATE_README=1 writes it anew"
    );
}
