//! The classic dialect as papa 1.0.6 was observed to speak it, and what any line at all may do to
//! the parser.
#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests panic like the tests themselves"
)]

use bytes::BytesMut;
use proptest::prelude::*;

use papa_protocol::classic::{self, Kind, Request, parse};
use papa_protocol::json::request::{ProcessMake, SocketMake};
use papa_protocol::limits::MAX_VALUE_BYTES;
use papa_protocol::name::{Name, NamePattern};
use papa_protocol::process::{
    Account, Ends, Ledger, Overflow, Process, Rlimit, Sockets, Stderr, Stdout,
};
use papa_protocol::record::{Serial, Stream};
use papa_protocol::size::ByteSize;
use papa_protocol::socket::{Family, SocketInfo, SocketType, Umask};
use papa_protocol::text::ByteString;
use papa_protocol::words;

fn ask(line: &str) -> Request {
    match parse(line) {
        Ok(Some(request)) => request,
        other => panic!("{line:?}: {other:?}"),
    }
}

fn make_process(line: &str) -> ProcessMake {
    match ask(line) {
        Request::MakeProcess { make, .. } => *make,
        other => panic!("{line:?}: {other:?}"),
    }
}

fn make_socket(line: &str) -> SocketMake {
    match ask(line) {
        Request::MakeSocket(make) => make,
        other => panic!("{line:?}: {other:?}"),
    }
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn patterns<const N: usize>(words: [&str; N]) -> Vec<NamePattern> {
    words.map(NamePattern::new).to_vec()
}

#[test]
fn errors_are_worded_as_papa_words_them() {
    for (line, error) in [
        ("foo", "Unknown command \"foo\""),
        ("FOO bar", "Unknown command \"foo\""),
        ("j", "Unknown command \"j\""),
        (
            "list",
            "\"list\" must be followed by one of: processes, sockets, values",
        ),
        (
            "l x",
            "Bad \"list\" command. The following word must be one of: processes, sockets, values",
        ),
        ("m", "\"make\" must be followed by one of: process, socket"),
        ("w", "\"watch\" must be followed by one of: processes"),
        ("e", "You cannot abbreviate \"exit-if-idle\""),
        ("exit-if-idl", "You cannot abbreviate \"exit-if-idle\""),
        ("set", "Value requires a name"),
        ("set *", "Value requires a name"),
        ("get", "Value requires a name"),
        ("r v", "You cannot remove all variables"),
        ("r v *", "You cannot remove all variables"),
        ("m s", "Socket requires a name"),
        ("m p", "Process requires a name"),
        ("m s u1 path=rel", "Absolute path required for Unix sockets"),
        (
            "m s u1 family=unix",
            "Absolute path required for Unix sockets",
        ),
        (
            "m p x rlimit.foo=z /bin/true",
            "The rlimit value for \"foo\" must be an integer, not \"z\"",
        ),
        (
            "m s b family=foo",
            "family \"foo\": expected unix, inet or inet6",
        ),
        (
            "m s b backlog=many",
            "backlog \"many\": expected a whole number from 0 to 65535",
        ),
        (
            "m s b port=65536",
            "port \"65536\": expected a whole number from 0 to 65535",
        ),
        (
            "m s b port=",
            "port \"\": expected a whole number from 0 to 65535",
        ),
        ("m p x stdout=z /bin/true", "stdout \"z\": expected 0 or 1"),
        ("json now", "Unexpected \"now\""),
        ("m s b port=1 host 1.2.3.4", "Unexpected \"host\""),
        (
            "set a:b 1",
            "name \"a:b\": colons and control characters are not allowed",
        ),
    ] {
        assert_eq!(parse(line).unwrap_err().to_string(), error, "{line}");
    }
    assert!(
        parse("r s")
            .unwrap_err()
            .to_string()
            .starts_with("You cannot remove all sockets")
    );
    assert!(
        parse("m p x zz=1 /bin/true")
            .unwrap_err()
            .to_string()
            .starts_with("Unknown option \"zz\"")
    );
}

#[test]
fn an_error_never_holds_a_control_character() {
    for line in [
        "f\x1b[2Joo",
        "l \x07",
        "m s x\x08=1",
        "m s x fam\x01ily=1",
        "m p x uid=1 rlimit.\x02=\x03 /x",
    ] {
        let error = parse(line).unwrap_err().to_string();
        assert!(!error.chars().any(char::is_control), "{error:?}");
    }
}

#[test]
fn words_may_be_abbreviated_but_new_ones_may_not() {
    assert_eq!(ask("l p"), Request::List(Kind::Processes, vec![]));
    assert_eq!(
        ask("LIS proc a* 3698"),
        Request::List(Kind::Processes, patterns(["a*", "3698"]))
    );
    assert_eq!(ask("l v"), Request::List(Kind::Values, vec![]));
    assert_eq!(
        ask("r s u*"),
        Request::Remove(Kind::Sockets, patterns(["u*"]))
    );
    assert_eq!(
        ask("r s *"),
        Request::Remove(Kind::Sockets, patterns(["*"]))
    );
    assert_eq!(ask("r p"), Request::Remove(Kind::Processes, vec![]));
    assert_eq!(ask("w p x"), Request::Watch(patterns(["x"])));
    assert_eq!(ask("q"), Request::Quit);
    assert_eq!(ask("exit-if-idle"), Request::ExitIfIdle);
    assert_eq!(ask("json"), Request::Json);
    assert_eq!(ask("  \t quit \r"), Request::Quit);
    assert_eq!(parse("  \t\r"), Ok(None));
    assert_eq!(
        classic::parse_bytes(b"set a \xff"),
        Err(classic::Error::NotUtf8)
    );
}

#[test]
fn values_are_words_joined_by_single_blanks() {
    assert_eq!(
        ask("set a b  c"),
        Request::Set(name("a"), Some("b c".into()))
    );
    assert_eq!(
        ask(r"set a b\ \ c d"),
        Request::Set(name("a"), Some("b  c d".into()))
    );
    assert_eq!(ask("set a"), Request::Set(name("a"), None));
    assert_eq!(ask("g a"), Request::Get(name("a")));
}

#[test]
fn the_longest_value_is_kept_and_a_longer_one_refused() {
    let longest = format!("set a {}", "x".repeat(MAX_VALUE_BYTES));
    assert!(parse(&longest).is_ok());
    let error = parse(&format!("{longest}x")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "value of 1048577 bytes: at most 1048576 are allowed"
    );
    assert_eq!(error.code(), papa_protocol::json::ErrorCode::Limit);
}

#[test]
fn socket_options_are_read() {
    let make = make_socket(
        "make socket s1 family=inet6 type=dgram backlog=7 host=::1 port=80 interface=eth0 reuseport=1",
    );
    assert_eq!(
        (make.family, make.socket_type),
        (Some(Family::Inet6), SocketType::Dgram)
    );
    assert_eq!(
        (make.backlog, make.port, make.reuseport),
        (Some(7), Some(80), true)
    );
    assert_eq!(
        (make.host.as_deref(), make.interface.as_deref()),
        (Some("::1"), Some("eth0"))
    );
    let make = make_socket(r#"m s u1 path="/tmp/a\ b\" umask=18"#);
    assert_eq!(make.path, Some("/tmp/a b\\".into()));
    assert_eq!(make.umask, Umask::new(0o22));
    assert_eq!(make.effective_family(), Family::Unix);
}

#[test]
fn process_options_end_at_the_first_word_without_an_equals_sign() {
    let make = make_process(
        "m p p1 uid=65534 gid=nogroup working_dir=/tmp bufsize=64k stderr=stdout env.A=1 env.B= rlimit.NOFILE=64 \
         rlimit.core=-1 /bin/echo a=b c\\ d",
    );
    assert_eq!(make.uid, Some(Account::Id(65534)));
    assert_eq!(make.gid, Some(Account::Name("nogroup".into())));
    assert_eq!(make.working_dir, Some("/tmp".into()));
    assert_eq!(make.reel_bytes, Some(ByteSize(65536)));
    assert_eq!((make.stdout, make.stderr), (Stdout::Pipe, Stderr::Stdout));
    assert_eq!(make.env.0["A"], "1");
    assert_eq!(make.env.0["B"], "");
    assert_eq!(make.rlimits["NOFILE"], Rlimit::both(Some(64)));
    assert_eq!(make.rlimits["core"], Rlimit::both(None));
    assert_eq!(make.argv, ["/bin/echo", "a=b", "c d"].map(ByteString::from));
    assert_eq!(make.sockets, Sockets::All);
}

#[test]
fn no_buffer_means_no_capture_and_no_command_is_for_the_kernel_to_say() {
    let make = make_process("m p p1 output=0 stderr=stdout /bin/true");
    assert_eq!((make.stdout, make.stderr), (Stdout::Null, Stderr::Null));
    assert!(make_process("m p p1").argv.is_empty());
    assert!(matches!(
        ask("m p p1 watch=1 /bin/true"),
        Request::MakeProcess { watch: true, .. }
    ));
}

#[test]
fn environment_values_stay_out_of_debug() {
    let request = ask("m p p1 env.TOKEN=hunter2 /bin/true");
    let shown = format!("{request:?}");
    assert!(
        shown.contains("TOKEN") && !shown.contains("hunter2"),
        "{shown}"
    );
}

fn process() -> Process {
    Process {
        serial: Serial(3),
        name: name("p1"),
        pid: 13328,
        running: true,
        started_us: 1_795_315_366_078_956,
        argv: vec!["/bin/echo".into(), "hi".into()],
        shell: false,
        uid: Some(65534),
        gid: Some(0),
        working_dir: None,
        tag: None,
        exit: None,
        ends: Ends::default(),
        ledger: Ledger::default(),
        overflow: Overflow::Auto,
        reel_bytes: 1 << 20,
        consumer: false,
        trouble: None,
    }
}

#[test]
fn listings_look_as_papa_clients_parse_them() {
    assert_eq!(
        classic::process_line(&process()),
        "p1 pid=13328 running=True started=1795315366.078956 uid=65534 args=/bin/echo hi"
    );
    let ended = Process {
        running: false,
        uid: None,
        shell: true,
        argv: vec!["a\nb\x1b".into()],
        ..process()
    };
    assert_eq!(
        classic::process_line(&ended),
        "p1 pid=13328 running=False started=1795315366.078956 shell=True args=a\\nb\\x1b"
    );
    let socket = SocketInfo {
        name: name("u1"),
        family: Family::Unix,
        socket_type: SocketType::Stream,
        backlog: 5,
        path: Some("/tmp/u.sock".into()),
        umask: Umask::new(0),
        host: None,
        port: None,
        interface: None,
        reuseport: false,
        nonblocking: false,
        v6only: None,
        serial: Some(7),
        at_path: None,
        fileno: Some(100),
    };
    assert_eq!(
        classic::socket_line(&socket),
        "u1 family=unix type=stream backlog=5 path=/tmp/u.sock umask=0 fileno=100"
    );
    let socket = SocketInfo {
        family: Family::Inet,
        path: None,
        umask: None,
        host: Some("127.0.0.1".into()),
        port: Some(33149),
        reuseport: true,
        fileno: None,
        ..socket
    };
    assert_eq!(
        classic::socket_line(&socket),
        "u1 family=inet type=stream backlog=5 host=127.0.0.1 port=33149 reuseport=1"
    );
    assert_eq!(
        classic::value_line(&name("a"), b"b\nError: c"),
        "a b\\nError: c"
    );
}

#[test]
fn the_prompt_follows_papas_rule() {
    for (text, reply) in [("", "\n> "), ("x", "x\n> "), ("x\n", "x\n> ")] {
        let mut out = BytesMut::new();
        classic::finish(text, &mut out);
        assert_eq!(out, reply);
    }
    let mut out = BytesMut::new();
    classic::finish_error("no", &mut out);
    assert_eq!(out, "Error: no\n> ");
}

#[test]
fn frames_carry_six_decimals_and_a_length() {
    let mut out = BytesMut::new();
    classic::watching(2, &mut out);
    classic::watch_output(Stream::Err, &name("p1"), 1_000_001, 3, &mut out);
    out.extend_from_slice(b"hi\n\n");
    classic::watch_closed(&name("p1"), 2_000_000, -9, &mut out);
    out.extend_from_slice(classic::WATCH_BATCH_END.as_bytes());
    assert_eq!(
        out,
        "Watching 2\nerr:p1:1.000001:3\nhi\n\nclosed:p1:2.000000:-9\n] "
    );
}

/// A line such as a client would send, from words no rule forbids.
fn word() -> impl Strategy<Value = String> {
    "[a-zA-Z0-9_./=$()\u{e9}-]([ a-zA-Z0-9_./=$()\u{e9}-]{0,8}[a-zA-Z0-9_./=$()\u{e9}-])?"
}

proptest! {
    #[test]
    fn any_line_is_harmless(line: String) {
        let _ = parse(&line);
    }

    #[test]
    fn any_bytes_are_harmless(line: Vec<u8>) {
        let _ = classic::parse_bytes(&line);
    }

    #[test]
    fn anything_after_a_command_is_harmless(
        command in prop::sample::select(vec!["l p", "r v", "m s", "m p", "m p x", "set", "get", "help", "w p"]),
        rest in "\\PC{0,60}",
    ) {
        if let Err(error) = parse(&format!("{command} {rest}")) {
            prop_assert!(!error.to_string().chars().any(char::is_control));
        }
    }

    #[test]
    fn a_command_line_arrives_word_for_word(
        arguments in prop::collection::vec(word(), 0..8),
        variables in prop::collection::btree_map("[A-Z]{1,4}", word(), 0..4),
    ) {
        let mut line = vec!["make".to_owned(), "process".to_owned(), "p1".to_owned()];
        line.extend(variables.iter().map(|(key, value)| format!("env.{key}={value}")));
        line.push("/bin/echo".to_owned());
        line.extend(arguments.iter().cloned());
        let line = words::join(&line).unwrap();
        let make = make_process(&line);
        prop_assert_eq!(&make.argv[0], "/bin/echo");
        let arrived: Vec<&[u8]> = make.argv[1..].iter().map(AsRef::as_ref).collect();
        let sent: Vec<&[u8]> = arguments.iter().map(String::as_bytes).collect();
        prop_assert_eq!(arrived, sent);
        for (key, value) in &variables {
            prop_assert_eq!(make.env.0[key].as_bytes(), value.as_bytes());
        }
    }

    #[test]
    fn a_listing_is_one_line(argv in prop::collection::vec(any::<Vec<u8>>(), 0..4), value: Vec<u8>) {
        let process = Process { argv: argv.into_iter().map(Into::into).collect(), ..process() };
        prop_assert!(!classic::process_line(&process).chars().any(char::is_control));
        prop_assert!(!classic::value_line(&name("a"), &value).chars().any(char::is_control));
    }
}

#[test]
fn a_default_spelt_out_is_the_same_request() {
    assert_eq!(
        make_process("m p p1 bufsize=1m stdout=1 stderr=1 /bin/true"),
        make_process("m p p1 /bin/true")
    );
    assert_eq!(
        make_socket("m s s1 port=0 backlog=5 type=stream"),
        make_socket("m s s1")
    );
}
