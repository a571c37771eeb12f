//! Requests answered without a socket: each verb of both dialects succeeds once and is refused
//! once. Rules of values, held descriptors, claims and sockets have tests beside them.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use serde_json::{Value, json};

use super::*;
use crate::client::exchange::{Order, Peer, WatchWord};
use crate::client::inbox::{Inbox, Next, Outbox};
use crate::config::TcpAccess;
use crate::processes::capture::on_output;
use crate::processes::exits::on_exit_told;
use crate::processes::starts::{Streams, started};
use crate::readers::session::Session;
use crate::sys::pidfd::{Outcome, WaitStatus, pidfd_open};
use crate::sys::spawn::Started;
use crate::verbs::room::Room;
use crate::world::tests::{empty_world, recovered};
use papa_protocol::record::Stream;

/// The kernel without its event loop: a world, sessions that nobody is connected to, and the
/// writing ends of processes' pipes.
struct Bench {
    world: World,
    readers: Readers,
    usage: Usage,
    journal: OwnedFd,
    inboxes: BTreeMap<SessionId, Rc<Inbox>>,
    writers: BTreeMap<u64, Option<OwnedFd>>,
    _keeper: OwnedFd,
}

/// What the sessions of the bench are: managers of their own, except for the last, which is remote.
const ONE: SessionId = 1;
const OTHER: SessionId = 2;
const REMOTE: SessionId = 3;

fn bench() -> Bench {
    let (world, keeper, journal) = empty_world();
    let mut bench = Bench {
        world,
        readers: Readers::default(),
        usage: Usage {
            room: Room { in_use: 0 },
            session_bytes: 77,
        },
        journal,
        inboxes: BTreeMap::new(),
        writers: BTreeMap::new(),
        _keeper: keeper,
    };
    for (id, pid, tcp) in [
        (ONE, Some(10), false),
        (OTHER, Some(20), false),
        (REMOTE, None, true),
    ] {
        let inbox = Rc::new(Inbox::default());
        let peer = Peer { uid: 0, pid, tcp };
        let session = Session::new(id, peer, Outbox::new(&inbox));
        bench.readers.sessions.insert(id, session);
        bench.inboxes.insert(id, inbox);
    }
    bench
}

impl Bench {
    fn ask_json(&mut self, id: SessionId, op: &str, fields: &Value) -> Answer {
        let mut line = json!({"id": 5, "op": op});
        let line = line.as_object_mut().unwrap();
        line.extend(fields.as_object().unwrap().clone());
        let line = serde_json::to_vec(line).unwrap();
        let request = JsonRequest::parse(&line).map(Option::unwrap);
        self.ask(id, Request::Json(request, None))
    }

    fn ask(&mut self, id: SessionId, request: Request) -> Answer {
        answer(&mut self.world, &mut self.readers, self.usage, id, request)
    }

    /// Asks in JSON for what is answered at once: the result, or the failure's code.
    #[track_caller]
    fn json(&mut self, id: SessionId, op: &str, fields: &Value) -> Result<Value, String> {
        match self.ask_json(id, op, fields) {
            Answer::Reply(reply) => result_of(&reply),
            other => panic!("{op} was not answered: {other:?}"),
        }
    }

    /// Asks in the classic dialect for what is answered at once.
    #[track_caller]
    fn classic(&mut self, id: SessionId, line: &str) -> (String, Expect) {
        match self.ask_classic(id, line) {
            Answer::Reply(reply) => (text_of(&reply), reply.next),
            other => panic!("{line} was not answered: {other:?}"),
        }
    }

    fn ask_classic(&mut self, id: SessionId, line: &str) -> Answer {
        let request = papa_protocol::classic::parse(line).map(Option::unwrap);
        self.ask(id, Request::Classic(request))
    }

    /// Has a process made by `answer` run: as if its program had executed.
    fn run(&mut self, answer: Answer) -> (u64, Reply) {
        let Answer::Start(ready, asker) = answer else {
            panic!("no process is to be started: {answer:?}");
        };
        let serial = ready.serial;
        assert!(!ready.copies().is_empty());
        self.writers.insert(serial, ready.pipes.child_out);
        let child = Started {
            pid: std::process::id().cast_signed(),
            pidfd: pidfd_open(std::process::id().cast_signed()).unwrap(),
            outside: None,
        };
        let streams = Streams {
            out: ready.pipes.out,
            err: None,
            reel: ready.reel,
        };
        let (world, readers) = (&mut self.world, &mut self.readers);
        started(world, readers, asker.session(), serial, child, streams);
        let reply = answer_made(world, readers, &asker, Ok((serial, true)));
        (serial, reply)
    }

    fn running(&mut self, name: &str) -> u64 {
        let made = json!({"name": name, "argv": ["/bin/true"]});
        let answer = self.ask_json(ONE, "process.make", &made);
        self.run(answer).0
    }

    /// The process writes to its standard output, and the kernel takes it.
    fn writes(&mut self, serial: u64, bytes: &[u8]) {
        let writer = self.writers[&serial].as_ref().unwrap();
        nix::unistd::write(writer, bytes).unwrap();
        let (world, readers) = (&mut self.world, &mut self.readers);
        on_output(world, readers, serial, Stream::Out, 1);
    }

    /// The process closes its output and ends, as the keeper reports.
    fn ends(&mut self, serial: u64) {
        self.writers.remove(&serial);
        let status = WaitStatus {
            outcome: Outcome::Code(3),
            usage: None,
        };
        on_exit_told(&mut self.world, &mut self.readers, serial, status, 2);
    }

    /// What a session is sent, as text.
    fn sent(&mut self, id: SessionId) -> String {
        self.readers.deliver(&mut self.world);
        let mut text = String::new();
        while let Next::Order(order) = self.inboxes[&id].next() {
            if let Order::Write(outgoing) = order {
                for piece in outgoing.pieces {
                    text.push_str(std::str::from_utf8(&piece).unwrap());
                }
            }
        }
        if let Some(session) = self.readers.sessions.get_mut(&id) {
            session.busy = false;
        }
        text
    }
}

#[track_caller]
fn result_of(reply: &Reply) -> Result<Value, String> {
    let line: Value = serde_json::from_slice(&reply.bytes).unwrap();
    assert_eq!(line["id"], 5);
    match line.get("error") {
        Some(error) => Err(error["code"].as_str().unwrap().to_owned()),
        None => Ok(line["ok"].clone()),
    }
}

fn text_of(reply: &Reply) -> String {
    String::from_utf8(reply.bytes.to_vec()).unwrap()
}

fn code(text: &str) -> Result<Value, String> {
    Err(text.to_owned())
}

#[test]
fn hello_notes_the_client_and_a_line_that_cannot_be_read_changes_nothing() {
    let mut bench = bench();
    let hello = bench.json(ONE, "hello", &json!({"client": "me"})).unwrap();
    assert_eq!(hello["papa"], crate::VERSION);
    let client = &bench.readers.sessions[&ONE].client;
    assert_eq!(client.as_deref(), Some("me"));
    assert_eq!(bench.json(ONE, "hello", &json!({"x": 1})), code("invalid"));
}

#[test]
fn status_counts_what_there_is() {
    let mut bench = bench();
    bench.running("p");
    bench
        .json(ONE, "value.set", &json!({"name": "v", "value": "1"}))
        .unwrap();
    let status = bench.json(ONE, "status", &json!({})).unwrap();
    assert_eq!(status["counts"]["running"], 1);
    assert_eq!(status["counts"]["values"], 1);
    assert_eq!(status["counts"]["sessions"], 3);
    assert_eq!(status["memory"]["used_bytes"], 77);
    assert_eq!(bench.json(ONE, "status", &json!({"x": 1})), code("invalid"));
}

#[test]
fn a_request_without_an_id_is_answered_only_if_it_fails() {
    let mut bench = bench();
    let ask = |bench: &mut Bench, line: &str| {
        let request = JsonRequest::parse(line.as_bytes()).map(Option::unwrap);
        match bench.ask(ONE, Request::Json(request, None)) {
            Answer::Reply(reply) => text_of(&reply),
            other => panic!("{other:?}"),
        }
    };
    let set = r#"{"op":"value.set","name":"v","value":"1"}"#;
    assert_eq!(ask(&mut bench, set), "");
    let stop = ask(&mut bench, r#"{"op":"output.stop","sub":9}"#);
    assert!(stop.contains("there is no subscription 9"), "{stop}");
}

#[test]
fn values_are_the_same_in_both_dialects() {
    let mut bench = bench();
    assert_eq!(bench.classic(ONE, "set a.x one").0, "\n> ");
    let got = bench.json(OTHER, "value.get", &json!({"name": "a.x"}));
    assert_eq!(got.unwrap()["value"], "one");
    let listed = bench.json(ONE, "value.list", &json!({"names": ["a.*"]}));
    assert_eq!(listed.unwrap()["values"]["a.x"], "one");
    assert_eq!(bench.classic(ONE, "get a.x").0, "one\n> ");
    assert_eq!(bench.classic(ONE, "get none").0, "\n> ");
    let removed = bench.json(ONE, "value.remove", &json!({"names": ["a.x"]}));
    assert_eq!(removed.unwrap()["removed"], 1);
    let claim = json!({"namespace": "a", "holder": "one"});
    bench.json(ONE, "claim", &claim).unwrap();
    let refused = bench.classic(OTHER, "set a.x two").0;
    assert!(
        refused.starts_with("Error: a is claimed by one"),
        "{refused}"
    );
}

#[test]
fn a_process_is_made_once_and_its_name_is_taken() {
    let mut bench = bench();
    let make = json!({"name": "p", "argv": ["/bin/true"]});
    let answer = bench.ask_json(ONE, "process.make", &make);
    // The intent is recorded before anything is started.
    let Answer::Start(ready, _) = &answer else {
        panic!("{answer:?}");
    };
    let recorded = recovered(&bench.journal);
    assert_eq!(recorded.process(ready.serial).unwrap().pid, 0);
    // Nobody gets a second one while that start hangs.
    let again = bench.json(OTHER, "process.make", &make);
    assert_eq!(again, code("exists"));
    let (serial, reply) = bench.run(answer);
    let made = result_of(&reply).unwrap();
    assert_eq!(made["created"], true);
    assert_eq!(made["process"]["serial"], serial);
    let again = bench.json(ONE, "process.make", &make).unwrap();
    assert_eq!(again["created"], false);
    let other = json!({"name": "p", "argv": ["/bin/false"]});
    assert_eq!(bench.json(ONE, "process.make", &other), code("exists"));
    let listed = bench.json(ONE, "process.list", &json!({})).unwrap();
    assert_eq!(listed["processes"][0]["name"], "p");
}

#[test]
fn a_process_that_cannot_be_prepared_leaves_nothing_behind() {
    let mut bench = bench();
    let socket = json!({"name": "p", "argv": ["/bin/true"], "listen_fds": ["none"]});
    assert_eq!(bench.json(ONE, "process.make", &socket), code("not_found"));
    bench.usage.room.in_use = u64::MAX / 2;
    let make = json!({"name": "p", "argv": ["/bin/true"]});
    assert_eq!(bench.json(ONE, "process.make", &make), code("limit"));
    bench.usage.room.in_use = 0;
    bench.world.journal.break_file();
    assert_eq!(bench.json(ONE, "process.make", &make), code("internal"));
    assert_eq!(bench.world.table.processes().count(), 0);
}

#[test]
fn a_classic_process_that_is_watched_answers_with_a_batch() {
    let mut bench = bench();
    let answer = bench.ask_classic(ONE, "make process p /bin/true");
    assert!(matches!(
        answer,
        Answer::Start(_, Asker::Classic { watch: false, .. })
    ));
    let (_, reply) = bench.run(answer);
    assert_eq!(reply.next, Expect::Command);
    let refused = bench.classic(ONE, "make process p /bin/false").0;
    assert!(refused.starts_with("Error: "), "{refused}");
    let (text, next) = bench.classic(ONE, "watch p");
    assert_eq!(next, Expect::Batch, "{text}");
    assert_eq!(bench.classic(OTHER, "list processes").1, Expect::Command);
    let missing = bench.classic(OTHER, "watch none").0;
    assert!(missing.starts_with("Error: "), "{missing}");
}

#[test]
fn a_watched_batch_lets_output_and_exit_go_when_it_is_answered() {
    let mut bench = bench();
    let serial = bench.running("p");
    bench.classic(ONE, "watch p");
    bench.readers.sessions.get_mut(&ONE).unwrap().hold_until = None;
    bench.writes(serial, b"hello\n");
    bench.ends(serial);
    let batch = bench.sent(ONE);
    assert!(
        batch.contains("hello\n") && batch.contains("closed"),
        "{batch}"
    );
    // While it is unanswered everything is kept.
    assert_eq!(bench.world.live[&serial].start(), 0);
    let (world, readers) = (&mut bench.world, &mut bench.readers);
    let reply = acknowledge_watch(world, readers, ONE, WatchWord::More).unwrap();
    assert_eq!(reply.next, Expect::Command);
    assert!(text_of(&reply).contains("Nothing left to watch"));
    assert!(world.live.is_empty() && world.table.process(serial).is_none());
    assert!(acknowledge_watch(world, readers, ONE, WatchWord::More).is_none());
}

#[test]
fn only_the_consumer_acknowledges_output_and_exit() {
    let mut bench = bench();
    let serial = bench.running("p");
    let sub = bench.json(ONE, "output.consume", &json!({"names": ["p"]}));
    assert_eq!(sub.unwrap()["sub"], 1);
    let taken = bench.json(OTHER, "output.consume", &json!({"names": ["p"]}));
    assert_eq!(taken, code("claimed"));
    bench.writes(serial, b"line\n");
    assert!(bench.sent(ONE).contains("line\n"));
    let ack = json!({"acks": {serial.to_string(): 5}});
    assert_eq!(bench.json(OTHER, "output.ack", &ack), code("denied"));
    assert_eq!(bench.world.live[&serial].start(), 0);
    bench.json(ONE, "output.ack", &ack).unwrap();
    assert_eq!(bench.world.live[&serial].start(), 5);
    let exit = json!({"serials": [serial]});
    assert_eq!(bench.json(ONE, "exit.ack", &exit), code("denied"));
    bench.ends(serial);
    assert_eq!(bench.json(OTHER, "exit.ack", &exit), code("denied"));
    bench.json(ONE, "exit.ack", &exit).unwrap();
    assert!(bench.world.table.process(serial).is_none());
    // What is forgotten needs no acknowledgement any more.
    bench
        .json(ONE, "exit.ack", &json!({"serials": [serial]}))
        .unwrap();
}

#[test]
fn a_consumer_that_takes_over_with_force_replaces_the_one_before() {
    let mut bench = bench();
    let serial = bench.running("p");
    let consume = |force: bool| json!({"names": ["p"], "force": force});
    bench.json(ONE, "output.consume", &consume(false)).unwrap();
    bench.json(OTHER, "output.consume", &consume(true)).unwrap();
    let consumer = bench.world.live[&serial].consumer.unwrap();
    assert_eq!(consumer.session, OTHER);
    bench
        .json(OTHER, "output.stop", &json!({"sub": 1}))
        .unwrap();
    assert_eq!(bench.world.live[&serial].consumer, None);
    let again = bench.json(OTHER, "output.stop", &json!({"sub": 1}));
    assert_eq!(again, code("not_found"));
}

#[test]
fn a_follower_reads_processes_made_later_and_too_many_subscriptions_are_refused() {
    let mut bench = bench();
    bench
        .json(ONE, "output.follow", &json!({"names": ["p"]}))
        .unwrap();
    let serial = bench.running("p");
    bench.writes(serial, b"seen\n");
    assert!(bench.sent(ONE).contains("seen\n"));
    assert_eq!(bench.world.live[&serial].consumer, None);
    let limit = papa_protocol::limits::MAX_SUBSCRIPTIONS_PER_SESSION;
    for _ in 1..limit {
        bench
            .json(ONE, "output.follow", &json!({"names": ["*"]}))
            .unwrap();
    }
    assert_eq!(
        bench.json(ONE, "output.follow", &json!({"names": ["*"]})),
        code("limit")
    );
    assert_eq!(bench.json(ONE, "subscribe", &json!({})), code("limit"));
}

#[test]
fn a_subscriber_is_told_what_is_made_ends_and_goes() {
    let mut bench = bench();
    bench.json(OTHER, "subscribe", &json!({})).unwrap();
    let serial = bench.running("p");
    bench.ends(serial);
    let remove = json!({"names": ["p"]});
    let removed = bench.json(ONE, "process.remove", &remove).unwrap();
    assert_eq!(removed["removed"], 1);
    let told = bench.sent(OTHER);
    for kind in ["made", "exited", "removed"] {
        assert!(told.contains(&format!("\"{kind}\"")), "{kind}: {told}");
    }
    assert_eq!(
        bench.json(ONE, "process.remove", &remove),
        code("not_found")
    );
    let missing = json!({"serials": [serial]});
    assert_eq!(
        bench.json(ONE, "process.remove", &missing),
        code("not_found")
    );
}

#[test]
fn a_removed_process_runs_on_and_its_output_is_thrown_away() {
    let mut bench = bench();
    let serial = bench.running("p");
    bench.writes(serial, b"kept\n");
    assert_eq!(bench.classic(ONE, "remove process p").0, "\n> ");
    assert!(bench.world.live[&serial].reel.is_none());
    bench.writes(serial, b"thrown away\n");
    let listed = bench.json(ONE, "process.list", &json!({})).unwrap();
    assert_eq!(listed["processes"][0]["running"], true);
    assert_eq!(listed["processes"][0]["ledger"]["dropped"], 5);
    bench.ends(serial);
    assert!(bench.world.live.is_empty());
    assert!(
        bench
            .classic(ONE, "remove process p")
            .0
            .starts_with("Error")
    );
}

#[test]
fn descriptors_go_to_the_consumer_on_a_unix_socket_alone() {
    let mut bench = bench();
    let serial = bench.running("p");
    let which = json!({"serial": serial});
    let Answer::Reply(reply) = bench.ask_json(ONE, "process.pidfd", &which) else {
        panic!("not answered");
    };
    assert!(reply.descriptor.is_some());
    let remote = bench.json(REMOTE, "process.pidfd", &which);
    assert_eq!(remote, code("unsupported"));
    let none = json!({"serial": serial + 1});
    assert_eq!(bench.json(ONE, "process.pidfd", &none), code("not_found"));
    assert_eq!(bench.json(ONE, "output.reel", &none), code("not_found"));
    assert_eq!(bench.json(ONE, "output.reel", &which), code("denied"));
    bench
        .json(ONE, "output.consume", &json!({"names": ["p"]}))
        .unwrap();
    let Answer::Reply(reply) = bench.ask_json(ONE, "output.reel", &which) else {
        panic!("not answered");
    };
    assert!(reply.descriptor.is_some());
    let line = r#"{"op":"output.reel","serial":1}"#;
    let request = JsonRequest::parse(line.as_bytes()).map(Option::unwrap);
    let Answer::Reply(reply) = bench.ask(ONE, Request::Json(request, None)) else {
        panic!("not answered");
    };
    assert!(text_of(&reply).contains("needs an id"));
}

#[test]
fn held_descriptors_and_sockets_are_given_and_refused() {
    let mut bench = bench();
    let hold = |descriptor| {
        let line = r#"{"id":5,"op":"hold","name":"h"}"#;
        let request = JsonRequest::parse(line.as_bytes()).map(Option::unwrap);
        Request::Json(request, descriptor)
    };
    let Answer::Reply(reply) = bench.ask(ONE, hold(None)) else {
        panic!("not answered");
    };
    assert_eq!(result_of(&reply), code("no_descriptor"));
    let null = bench.world.fixed.null.try_clone().unwrap();
    let Answer::Reply(reply) = bench.ask(ONE, hold(Some(null))) else {
        panic!("not answered");
    };
    result_of(&reply).unwrap();
    let name = json!({"name": "h"});
    bench.json(ONE, "fetch", &name).unwrap();
    let listed = bench.json(ONE, "hold.list", &json!({})).unwrap();
    assert_eq!(listed["held"].as_array().unwrap().len(), 1);
    let dropped = bench.json(ONE, "hold.drop", &json!({"names": ["h"]}));
    assert_eq!(dropped.unwrap()["removed"], 1);
    assert_eq!(bench.json(ONE, "fetch", &name), code("not_found"));

    let make = json!({"name": "s", "host": "127.0.0.1", "port": 0});
    let made = bench.json(ONE, "socket.make", &make).unwrap();
    assert_eq!(made["created"], true);
    let again = bench.json(OTHER, "socket.make", &make).unwrap();
    assert_eq!(again["created"], false);
    let listed = bench.classic(ONE, "list sockets").0;
    assert!(listed.starts_with("s "), "{listed}");
    bench
        .json(ONE, "socket.fetch", &json!({"name": "s"}))
        .unwrap();
    let remote = bench.json(REMOTE, "socket.fetch", &json!({"name": "s"}));
    assert_eq!(remote, code("unsupported"));
    let gone = bench.json(ONE, "socket.remove", &json!({"names": ["s"]}));
    assert_eq!(gone.unwrap()["removed"], 1);
    assert!(bench.classic(ONE, "remove socket s").0.starts_with("Error"));
}

#[test]
fn the_one_whose_claim_is_taken_is_told_and_refused() {
    let mut bench = bench();
    let claim =
        |holder: &str, force: bool| json!({"namespace": "ns", "holder": holder, "force": force});
    let epoch = bench.json(ONE, "claim", &claim("one", false)).unwrap();
    assert_eq!(epoch["epoch"], 1);
    assert_eq!(
        bench.json(OTHER, "claim", &claim("other", false)),
        code("claimed")
    );
    bench.json(OTHER, "claim", &claim("other", true)).unwrap();
    assert!(bench.sent(ONE).contains("\"lost\""));
    let set = json!({"name": "ns.v", "value": "1"});
    assert_eq!(bench.json(ONE, "value.set", &set), code("stale_epoch"));
    let listed = bench.json(ONE, "claim.list", &json!({})).unwrap();
    assert_eq!(listed["claims"][0]["holder"], "other");
    let release = json!({"namespace": "ns"});
    assert_eq!(bench.json(ONE, "claim.release", &release), code("claimed"));
    bench.json(OTHER, "claim.release", &release).unwrap();
}

#[test]
fn the_kernel_ends_only_when_it_is_idle() {
    let mut bench = bench();
    bench.classic(ONE, "set v 1");
    assert_eq!(bench.json(ONE, "kernel.exit", &json!({})), code("denied"));
    assert_eq!(bench.classic(ONE, "exit-if-idle").0, "not idle\n> ");
    bench.classic(ONE, "set v");
    for answer in [
        bench.ask_json(ONE, "kernel.exit", &json!({})),
        bench.ask_classic(ONE, "exit-if-idle"),
    ] {
        let Answer::End(reply) = answer else {
            panic!("{answer:?}");
        };
        assert_eq!(reply.next, Expect::Close);
    }
    bench.world.config.tcp = TcpAccess::ReadOnly;
    let refused = bench.json(REMOTE, "kernel.exit", &json!({}));
    assert_eq!(refused, code("denied"));
}

#[test]
fn an_upgrade_is_left_to_the_owner_with_the_id_to_answer() {
    let mut bench = bench();
    let answer = bench.ask_json(ONE, "kernel.upgrade", &json!({"dry_run": true}));
    let Answer::Upgrade(op, id) = answer else {
        panic!("{answer:?}");
    };
    assert!(op.dry_run && id.is_some());
    let refused = bench.json(ONE, "kernel.upgrade", &json!({"x": 1}));
    assert_eq!(refused, code("invalid"));
}

#[test]
fn a_classic_session_changes_to_json_or_leaves() {
    let mut bench = bench();
    let (hello, next) = bench.classic(ONE, "json");
    assert!(hello.starts_with("{\"ok\":{\"papa\":"), "{hello}");
    assert_eq!(next, Expect::Json);
    assert!(bench.readers.sessions[&ONE].json);
    assert_eq!(bench.classic(OTHER, "quit").1, Expect::Close);
    assert!(bench.classic(OTHER, "help").0.contains("watch"));
    let wrong = bench.classic(OTHER, "nonsense").0;
    assert!(wrong.starts_with("Error: "), "{wrong}");
}

#[test]
fn a_session_that_reads_nothing_is_closed_once_and_named_to_the_owner() {
    let mut bench = bench();
    let line = || BytesMut::from("x\n");
    for _ in 0..crate::client::exchange::MAX_QUEUED_PUSHES + 2 {
        bench.readers.push(ONE, line());
    }
    assert_eq!(bench.readers.stuck, [ONE]);
}
