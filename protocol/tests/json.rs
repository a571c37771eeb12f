//! The JSON dialect: what is sent arrives, what is wrong is refused by name, and nothing grows past
//! its limit.
#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests panic like the tests themselves"
)]

use std::collections::BTreeMap;

use bytes::BytesMut;
use proptest::prelude::*;

use papa_protocol::json::push::{self, OutputHeader, Push};
use papa_protocol::json::reply::{self, Message};
use papa_protocol::json::request::*;
use papa_protocol::json::{ErrorCode, Exited, Failure};
use papa_protocol::limits;
use papa_protocol::name::{Name, NamePattern};
use papa_protocol::process::{
    Account, Environment, Exit, Input, Overflow, Rlimit, Rusage, Sockets, Stderr, Stdout, Tag,
};
use papa_protocol::record::{Record, Serial, Stream};
use papa_protocol::size::ByteSize;
use papa_protocol::socket::{Family, SocketType, Umask};
use papa_protocol::text::ByteString;

fn op(line: &str) -> Op {
    match Request::parse(line.as_bytes()) {
        Ok(Some(request)) => request.op,
        other => panic!("{line}: {other:?}"),
    }
}

fn refused(line: &str) -> (Option<Id>, ErrorCode, String) {
    let rejected = Request::parse(line.as_bytes()).expect_err(line);
    (rejected.id, rejected.failure.code, rejected.failure.message)
}

#[test]
fn requests_are_read_with_their_defaults() {
    let Op::ProcessMake(make) =
        op(r#"{"id":1,"op":"process.make","name":"p","argv":["/bin/echo",[104,255]]}"#)
    else {
        panic!("not a process");
    };
    let argv = vec!["/bin/echo".into(), ByteString::from(vec![104, 255])];
    assert_eq!(*make, ProcessMake::new(Name::new("p").unwrap(), argv));
    assert_eq!(
        op(r#"{"op":"process.list"}"#),
        Op::ProcessList(ProcessList::default())
    );
    assert_eq!(
        op(r#"{"acks":{"7":100},"op":"output.ack"}"#),
        Op::OutputAck(OutputAck {
            acks: BTreeMap::from([(Serial(7), 100)])
        })
    );
    assert_eq!(Request::parse(b" \t"), Ok(None));
}

#[test]
fn every_notation_of_a_field_is_read() {
    let Op::ProcessMake(make) = op(
        r#"{"op":"process.make","name":"p","argv":["x"],"uid":"www","gid":33,"groups":["a",7],"umask":"022","nice":-5,
            "rlimits":{"nofile":64,"core":"infinity","cpu":[1,"infinity"]},"sockets":"all","listen_fds":["web"],
            "descriptors":{"3":"r"},"stdin":{"socket":"web"},"stdout":{"held":"log"},"stderr":"stdout",
            "overflow":"drop_oldest","reel_bytes":"2m","tag":{"wid":1},"env":{"A":[255]}}"#,
    ) else {
        panic!("not a process");
    };
    assert_eq!(make.uid, Some(Account::Name("www".into())));
    assert_eq!(
        make.groups,
        Some(vec![Account::Name("a".into()), Account::Id(7)])
    );
    assert_eq!(make.umask, Umask::new(0o22));
    assert_eq!(make.rlimits["core"], Rlimit::both(None));
    assert_eq!(
        make.rlimits["cpu"],
        Rlimit {
            soft: Some(1),
            hard: None
        }
    );
    assert_eq!(make.sockets, Sockets::All);
    assert_eq!(make.descriptors[&3], "r");
    assert_eq!(make.stdin, Input::Socket(Name::new("web").unwrap()));
    assert_eq!(make.stdout, Stdout::Held(Name::new("log").unwrap()));
    assert_eq!(make.stderr, Stderr::Stdout);
    assert_eq!(make.overflow, Overflow::DropOldest);
    assert_eq!(make.reel_bytes, Some(ByteSize(2 << 20)));
    assert_eq!(make.env.0["A"].as_bytes(), [255]);
    assert!(
        matches!(op(r#"{"op":"socket.make","name":"s","umask":18,"path":"/s"}"#), Op::SocketMake(make) if make.umask == Umask::new(18))
    );
}

#[test]
fn what_is_wrong_is_named() {
    use ErrorCode::{Invalid, Limit, UnknownOp};
    for (line, code, part) in [
        ("nonsense", Invalid, "expected"),
        ("[]", Invalid, "expected"),
        ("{\"op\":\"status\"", Invalid, "EOF"),
        ("{}", Invalid, "\"op\" is missing"),
        (r#"{"op":7}"#, Invalid, "expected text"),
        (r#"{"op":"stat"}"#, UnknownOp, "unknown op \"stat\""),
        (r#"{"op":"value.get"}"#, Invalid, "missing field `name`"),
        (
            r#"{"op":"value.get","name":"a","nam":1}"#,
            Invalid,
            "unknown field `nam`",
        ),
        (
            r#"{"op":"value.get","name":"a:b"}"#,
            Invalid,
            "colons and control characters",
        ),
        (
            r#"{"op":"value.remove","names":[]}"#,
            Invalid,
            "at least one",
        ),
        (
            r#"{"op":"value.remove","names":["*"]}"#,
            Invalid,
            "would remove all",
        ),
        (r#"{"op":"process.remove"}"#, Invalid, "at least one"),
        (
            r#"{"op":"process.make","name":"p","argv":[]}"#,
            Invalid,
            "No command",
        ),
        (
            r#"{"op":"process.make","name":"p","argv":[""]}"#,
            Invalid,
            "the command is empty",
        ),
        (
            r#"{"op":"process.make","name":"p","argv":["a\u0000b"]}"#,
            Invalid,
            "NUL",
        ),
        (
            r#"{"op":"process.make","name":"p","argv":["a"],"env":{"A=B":"c"}}"#,
            Invalid,
            "A=B",
        ),
        (
            r#"{"op":"process.make","name":"p","argv":["a"],"nice":20}"#,
            Invalid,
            "nice 20: expected a whole number from -20 to 19",
        ),
        (
            r#"{"op":"process.make","name":"p","argv":["a"],"uid":4294967295}"#,
            Invalid,
            "4294967295",
        ),
        (
            r#"{"op":"process.make","name":"p","argv":["a"],"descriptors":{"2":"x"}}"#,
            Invalid,
            "from 3 to",
        ),
        (
            r#"{"op":"process.make","name":"p","argv":["a"],"rlimits":{"nofile":[2,1]}}"#,
            Invalid,
            "above the hard limit",
        ),
        (
            r#"{"op":"process.make","name":"p","argv":["a"],"rlimits":{"nofile":[1,2,3]}}"#,
            Invalid,
            "an array of two",
        ),
        (
            r#"{"op":"process.make","name":"p","argv":["a"],"stderr":"null","stdout":"stdout"}"#,
            Invalid,
            "unknown variant `stdout`",
        ),
        (
            r#"{"op":"process.make","name":"p","argv":["a"],"umask":"778"}"#,
            Invalid,
            "octal",
        ),
        (
            r#"{"op":"socket.make","name":"s","path":"rel"}"#,
            Invalid,
            "Absolute path required",
        ),
        (
            r#"{"op":"socket.make","name":"s","port":65536}"#,
            Invalid,
            "65536",
        ),
        (
            r#"{"op":"claim","namespace":"circus."}"#,
            Invalid,
            "missing field `holder`",
        ),
        (
            r#"{"op":"output.ack","acks":{"7":1,"7":2}}"#,
            Invalid,
            "twice",
        ),
        (
            r#"{"id":1,"id":2,"op":"status"}"#,
            Invalid,
            "duplicate field `id`",
        ),
        (
            r#"{"op":"socket.make","name":"s","path":"/xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"}"#,
            Limit,
            "at most 108",
        ),
    ] {
        let (_, found, message) = refused(line);
        assert!(
            found == code && message.contains(part),
            "{line}: {found:?} {message}"
        );
        assert!(!message.chars().any(char::is_control), "{message}");
    }
}

#[test]
fn failures_are_answered_under_the_id_if_it_is_legal() {
    assert_eq!(
        refused(r#"{"id":"a","op":"nope"}"#).0,
        Some(Id::Text("a".into()))
    );
    assert_eq!(
        refused(r#"{"op":"value.get","x":[1,{"id":3}],"id":9}"#).0,
        Some(Id::Number(9))
    );
    let long = format!(
        r#"{{"id":"{}","op":"status"}}"#,
        "x".repeat(limits::MAX_ID_BYTES + 1)
    );
    assert_eq!(refused(&long).0, None);
    assert_eq!(refused(r#"{"id":-1,"op":"status"}"#).0, None);
    let mut out = BytesMut::new();
    reply::encode_error(None, &Failure::new(ErrorCode::Invalid, "no"), &mut out);
    assert_eq!(
        out,
        "{\"id\":null,\"error\":{\"code\":\"invalid\",\"message\":\"no\"}}\n"
    );
}

#[test]
fn limits_hold_at_their_edges() {
    let process = |argv: String| format!(r#"{{"op":"process.make","name":"p","argv":[{argv}]}}"#);
    let longest = format!("\"{}\"", "x".repeat(limits::MAX_ARGUMENT_BYTES - 1));
    op(&process(longest.clone()));
    let longer = format!("\"{}\"", "x".repeat(limits::MAX_ARGUMENT_BYTES));
    assert_eq!(refused(&process(longer)).1, ErrorCode::Limit);
    let many = vec![longest; limits::MAX_ARGV_BYTES / limits::MAX_ARGUMENT_BYTES];
    op(&process(many.join(",")));
    assert_eq!(
        refused(&process(format!("{},\"\"", many.join(",")))).1,
        ErrorCode::Limit
    );

    let most = vec!["\"x\""; limits::MAX_ARGUMENTS].join(",");
    op(&process(most.clone()));
    assert!(
        refused(&process(format!("{most},\"x\"")))
            .2
            .contains("more than 65536")
    );

    let value = |length| {
        format!(
            r#"{{"op":"value.set","name":"v","value":"{}"}}"#,
            "x".repeat(length)
        )
    };
    op(&value(limits::MAX_VALUE_BYTES));
    assert_eq!(
        refused(&value(limits::MAX_VALUE_BYTES + 1)).1,
        ErrorCode::Limit
    );

    let tag = |length| {
        format!(
            r#"{{"op":"process.make","name":"p","argv":["x"],"tag":"{}"}}"#,
            "x".repeat(length)
        )
    };
    op(&tag(limits::MAX_TAG_BYTES - 2));
    assert!(
        refused(&tag(limits::MAX_TAG_BYTES - 1))
            .2
            .contains("tag of 4097 bytes")
    );

    let deep = format!(
        r#"{{"op":"status","x":{}1{}}}"#,
        "[".repeat(10_000),
        "]".repeat(10_000)
    );
    assert_eq!(refused(&deep).1, ErrorCode::Invalid);
}

#[test]
fn words_are_unique_and_never_abbreviated() {
    let mut words = Op::WORDS.to_vec();
    words.sort_unstable();
    words.dedup();
    assert_eq!(words.len(), Op::WORDS.len());
    for word in Op::WORDS {
        let line = format!(r#"{{"op":"{}"}}"#, &word[..word.len() - 1]);
        assert_eq!(refused(&line).1, ErrorCode::UnknownOp, "{word}");
    }
}

#[test]
fn pushes_are_lines_the_client_reads() {
    let exit = Exit {
        code: None,
        signal: Some(9),
        core: true,
        stamp_us: 5,
        rusage: Some(Rusage {
            user_us: 1,
            system_us: 2,
            max_rss_kib: 3,
        }),
    };
    let push = Push::Exit(Exited {
        sub: 1,
        serial: Serial(7),
        exit,
    });
    let mut out = BytesMut::new();
    push.encode(&mut out);
    assert_eq!(
        out,
        "{\"exit\":{\"sub\":1,\"serial\":7,\"signal\":9,\"core\":true,\"stamp_us\":5,\
         \"rusage\":{\"user_us\":1,\"system_us\":2,\"max_rss_kib\":3}}}\n"
    );
    assert!(matches!(Message::parse(&out).unwrap(), Message::Push(read) if read == push));

    let header = OutputHeader {
        sub: 1,
        serial: Serial(7),
        start: 100,
        length: 300,
        inline: true,
        records: vec![
            Record {
                end: 150,
                stream: Stream::Out,
                stamp_us: 8,
            },
            Record {
                end: 400,
                stream: Stream::Err,
                stamp_us: 9,
            },
        ],
    };
    let mut out = BytesMut::new();
    push::encode_output(&header, &mut out);
    assert_eq!(
        out,
        "{\"output\":{\"sub\":1,\"serial\":7,\"start\":100,\"length\":300,\"inline\":true,\
         \"records\":[[150,1,8],[400,2,9]]}}\n"
    );
    assert!(matches!(Message::parse(&out).unwrap(), Message::Output(read) if read == header));
    assert!(matches!(
        Message::parse(b"{\"later\":{}}").unwrap(),
        Message::Unknown
    ));
    assert!(matches!(
        Message::parse(
            b"{\"id\":null,\"error\":{\"code\":\"later\",\"message\":\"m\",\"more\":1}}"
        )
        .unwrap(),
        Message::Reply {
            id: None,
            result: Err(Failure {
                code: ErrorCode::Unknown,
                ..
            })
        }
    ));
}

/// The longest header there can be stays within a line, or a client could not read what the kernel
/// sends.
#[test]
fn the_largest_batch_fits_a_line() {
    let far = u64::MAX / 2;
    let record = |k: usize| Record {
        end: far + k as u64,
        stream: Stream::Err,
        stamp_us: u64::MAX,
    };
    let header = OutputHeader {
        sub: u64::MAX,
        serial: Serial(u64::MAX),
        start: far,
        length: limits::MAX_BATCH_RECORDS as u64,
        inline: true,
        records: (1..=limits::MAX_BATCH_RECORDS).map(record).collect(),
    };
    let mut out = BytesMut::new();
    push::encode_output(&header, &mut out);
    assert!(out.len() <= limits::MAX_LINE_BYTES, "{}", out.len());
}

fn names() -> impl Strategy<Value = Name> {
    "[a-z0-9 _.\u{e9}]{1,12}".prop_filter_map("a legal name", |text| Name::new(&text).ok())
}

fn patterns() -> impl Strategy<Value = Vec<NamePattern>> {
    prop::collection::vec(
        "\\PC{0,6}\\*?".prop_map(|text| NamePattern::new(&text)),
        1..4,
    )
}

fn bytes_without_nul() -> impl Strategy<Value = ByteString> {
    prop::collection::vec(1_u8.., 1..20).prop_map(ByteString::from)
}

fn account() -> impl Strategy<Value = Account> {
    prop_oneof![
        (0..u32::MAX).prop_map(Account::Id),
        "[a-z]{1,8}".prop_map(Account::Name)
    ]
}

fn rlimit() -> impl Strategy<Value = Rlimit> {
    (any::<Option<u32>>(), any::<Option<u32>>()).prop_map(|(soft, above)| {
        let soft = soft.map(u64::from);
        let hard = match (soft, above) {
            (Some(soft), Some(above)) => Some(soft + u64::from(above)),
            _ => None,
        };
        Rlimit { soft, hard }
    })
}

prop_compose! {
    fn process_make()(
        name in names(),
        argv in prop::collection::vec(bytes_without_nul(), 1..5),
        env in prop::collection::btree_map("[^=\0]{1,8}", bytes_without_nul(), 0..4),
        uid in prop::option::of(account()),
        groups in prop::option::of(prop::collection::vec(account(), 0..3)),
        rlimits in prop::collection::btree_map("[a-z]{1,6}", rlimit(), 0..3),
        descriptors in prop::collection::btree_map(3_u32..1024, names(), 0..3),
        sockets in prop_oneof![Just(Sockets::All), prop::collection::vec(names(), 0..3).prop_map(Sockets::Named)],
        stdin in prop_oneof![Just(Input::Null), names().prop_map(Input::Socket), names().prop_map(Input::Held)],
        stderr in prop_oneof![Just(Stderr::Pipe), Just(Stderr::Null), Just(Stderr::Stdout), names().prop_map(Stderr::Held)],
        overflow in prop::sample::select(vec![Overflow::Auto, Overflow::Block, Overflow::DropOldest]),
        (umask, nice, reel, env_inherit, shell, force) in
            (prop::option::of(0_u64..512), prop::option::of(-20..20), any::<Option<u32>>(), any::<bool>(), any::<bool>(), any::<bool>()),
        tag in prop::option::of("\\PC{0,20}"),
    ) -> ProcessMake {
        ProcessMake {
            env: Environment(env),
            uid,
            groups,
            rlimits,
            descriptors,
            sockets,
            stdin,
            stderr,
            overflow,
            umask: umask.and_then(Umask::new),
            nice,
            reel_bytes: reel.map(|bytes| ByteSize(u64::from(bytes))).filter(|bytes| bytes.0 != limits::REEL_BYTES),
            env_inherit,
            shell,
            force,
            tag: tag.and_then(|text| Tag::new(text.into())),
            ..ProcessMake::new(name, argv)
        }
    }
}

prop_compose! {
    fn socket_make()(
        name in names(),
        family in prop::option::of(prop::sample::select(vec![Family::Inet, Family::Inet6])),
        socket_type in prop::sample::select(vec![SocketType::Stream, SocketType::Dgram, SocketType::Seqpacket]),
        backlog in prop::option::of(6_u32..65536),
        host in prop::option::of("[0-9.]{1,15}"),
        port in prop::option::of(1_u16..),
        (reuseport, nonblocking, replace, force) in any::<(bool, bool, bool, bool)>(),
    ) -> SocketMake {
        SocketMake { family, socket_type, backlog, host, port, reuseport, nonblocking, replace, force, ..SocketMake::new(name) }
    }
}

fn any_op() -> impl Strategy<Value = Op> {
    let serials = || prop::collection::vec(any::<u64>().prop_map(Serial), 0..4);
    prop_oneof![
        process_make().prop_map(Op::from),
        socket_make().prop_map(Op::from),
        (names(), any::<Vec<u8>>()).prop_map(|(name, value)| ValueSet {
            name,
            value: value.into()
        }
        .into()),
        (patterns(), serials()).prop_map(|(names, serials)| ProcessList { names, serials }.into()),
        (patterns(), serials(), any::<bool>()).prop_map(|(names, serials, force)| ProcessRemove {
            names,
            serials,
            force
        }
        .into()),
        (
            patterns(),
            prop::sample::select(vec![Delivery::Inline, Delivery::Reel, Delivery::Auto]),
            any::<bool>()
        )
            .prop_map(|(names, bytes, force)| OutputConsume {
                names,
                bytes,
                force
            }
            .into()),
        (patterns(), any::<bool>()).prop_map(|(names, start)| OutputFollow {
            names,
            from: if start {
                FollowFrom::Start
            } else {
                FollowFrom::Now
            },
        }
        .into()),
        prop::collection::btree_map(any::<u64>().prop_map(Serial), any::<u64>(), 0..5)
            .prop_map(|acks| OutputAck { acks }.into()),
        (names(), "\\PC{0,20}", any::<bool>()).prop_map(|(namespace, holder, force)| Claim {
            namespace,
            holder,
            force
        }
        .into()),
        names().prop_map(|name| Hold { name }.into()),
        Just(Op::from(Status {})),
        Just(Op::from(KernelExit {})),
        Just(Op::from(KernelUpgrade {
            binary: Some("/x".into()),
            keeper: true,
            ..KernelUpgrade::default()
        })),
    ]
}

fn any_id() -> impl Strategy<Value = Option<Id>> {
    prop::option::of(prop_oneof![
        any::<u64>().prop_map(Id::Number),
        "\\PC{0,16}".prop_map(Id::Text)
    ])
}

proptest! {
    #[test]
    fn what_is_encoded_parses_again(id in any_id(), op in any_op()) {
        let request = Request { id, op };
        let mut line = BytesMut::new();
        request.encode(&mut line);
        prop_assert_eq!(line.last(), Some(&b'\n'));
        let body = &line[..line.len() - 1];
        prop_assert!(!body.contains(&b'\n'));
        prop_assert_eq!(Request::parse(body), Ok(Some(request)));
    }

    #[test]
    fn any_bytes_are_harmless(line: Vec<u8>) {
        let _ = Request::parse(&line);
        let _ = Message::parse(&line);
    }

    #[test]
    fn any_fields_are_harmless(
        word in prop::sample::select(Op::WORDS),
        key in prop::sample::select(vec!["name", "names", "argv", "env", "tag", "uid", "rlimits", "acks", "stdin", "umask"]),
        value in "[\\[\\]{}\":,a-z0-9.-]{0,24}",
    ) {
        let _ = Request::parse(format!("{{\"op\":\"{word}\",\"{key}\":{value}}}").as_bytes());
    }

    #[test]
    fn messages_are_bounded_and_visible(word in "\\PC{0,200}|.{0,200}") {
        let line = serde_json::json!({"id": 1, "op": word}).to_string();
        if let Err(rejected) = Request::parse(line.as_bytes()) {
            prop_assert!(rejected.failure.message.len() <= limits::MAX_MESSAGE_BYTES);
            prop_assert!(!rejected.failure.message.chars().any(char::is_control));
        }
    }
}
