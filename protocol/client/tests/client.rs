//! The client against a kernel played by the test: over unix sockets and TCP, with descriptors,
//! across losses.
#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests panic like the tests themselves"
)]

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, UnixListener, UnixStream};

use papa_client::{Address, Client, ClientError, Options, Push, Pushes};
use papa_protocol::classic::BANNER;
use papa_protocol::json::ErrorCode;
use papa_protocol::json::request::*;
use papa_protocol::name::{Name, NamePattern};
use papa_protocol::record::Serial;

/// No step of these tests takes this long unless it is stuck.
const DEADLINE: Duration = Duration::from_secs(10);

/// One session as the kernel sees it.
struct Session<S> {
    stream: BufReader<S>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Session<S> {
    /// Greets as a kernel does.
    async fn greet(stream: S, incarnation: u64) -> Self {
        let mut session = Self {
            stream: BufReader::new(stream),
        };
        session.write(BANNER).await;
        assert_eq!(session.line().await, "json\n");
        session
            .say(&json!({"ok": {
                "papa": "0.1.0", "protocol": 1, "pid": 2, "keeper": 1, "incarnation": incarnation,
                "features": ["splice"], "limits": {}, "later": true,
            }}))
            .await;
        let hello = session.request().await;
        assert_eq!((&hello["op"], hello.get("id")), (&json!("hello"), None));
        session
    }

    async fn write(&mut self, text: &str) {
        self.stream
            .get_mut()
            .write_all(text.as_bytes())
            .await
            .unwrap();
    }

    async fn say(&mut self, message: &Value) {
        self.write(&format!("{message}\n")).await;
    }

    async fn line(&mut self) -> String {
        let mut line = String::new();
        self.stream.read_line(&mut line).await.unwrap();
        line
    }

    async fn request(&mut self) -> Value {
        let line = self.line().await;
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line:?}: {error}"))
    }

    /// Takes the next request, which must be `op`, and answers it.
    async fn answer(&mut self, op: &str, ok: Value) -> Value {
        let request = self.request().await;
        assert_eq!(request["op"], op, "{request}");
        self.say(&json!({"id": request["id"], "ok": ok})).await;
        request
    }

    /// Sends output with its bytes.
    async fn output(&mut self, sub: u64, start: u64, bytes: &str) {
        let end = start + bytes.len() as u64;
        self.say(&json!({"output": {
            "sub": sub, "serial": 7, "start": start, "length": bytes.len(), "inline": true, "records": [[end, 1, 5]],
        }}))
        .await;
        self.write(bytes).await;
    }
}

struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("papa.sock")
    }

    fn listen(&self) -> UnixListener {
        let _ = std::fs::remove_file(self.path());
        UnixListener::bind(self.path()).unwrap()
    }
}

fn connect(path: &Path) -> tokio::task::JoinHandle<Result<(Client, Pushes), ClientError>> {
    let addresses = vec![
        Address::Unix("/nonexistent/papa.sock".into()),
        Address::Unix(path.into()),
    ];
    tokio::spawn(Client::connect(addresses, Options::default()))
}

/// A connected pair.
async fn pair(listener: &UnixListener, path: &Path) -> (Client, Pushes, Session<UnixStream>) {
    let client = connect(path);
    let session = Session::greet(listener.accept().await.unwrap().0, 1).await;
    let (client, pushes) = client.await.unwrap().unwrap();
    (client, pushes, session)
}

fn run<F: Future>(test: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        tokio::time::timeout(DEADLINE, test)
            .await
            .expect("the test is stuck")
    })
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn consume() -> OutputConsume {
    OutputConsume {
        names: vec![NamePattern::new("*")],
        bytes: Delivery::Inline,
        force: true,
    }
}

#[test]
fn calls_are_matched_by_id_in_any_order() {
    run(async {
        let place = Place::new();
        let (client, _pushes, mut session) = pair(&place.listen(), &place.path()).await;
        assert_eq!(client.hello().incarnation, 1);
        let kernel = async {
            let first = session.request().await;
            let second = session.request().await;
            session.say(&json!({"id": second["id"], "error": {"code": "not_found", "message": "b not found"}})).await;
            session
                .say(&json!({"id": first["id"], "ok": {"value": [104, 255]}}))
                .await;
        };
        let first = client.call(ValueGet { name: name("a") });
        let second = client.call(ValueGet { name: name("b") });
        let (first, second, ()) = tokio::join!(first, second, kernel);
        assert_eq!(first.unwrap().value.unwrap().as_bytes(), [104, 255]);
        let error = second.unwrap_err();
        assert_eq!(
            (error.code(), error.to_string()),
            (Some(ErrorCode::NotFound), "b not found".into())
        );
    });
}

#[test]
fn descriptors_go_both_ways() {
    run(async {
        let place = Place::new();
        let listener = place.listen();
        let client = connect(&place.path());
        let session = Session::greet(listener.accept().await.unwrap().0, 1).await;
        let (client, _pushes) = client.await.unwrap().unwrap();
        // From here on the kernel's side is blocking, in a thread: it speaks sendmsg and recvmsg
        // itself.
        let stream = session.stream.into_inner().into_std().unwrap();
        stream.set_nonblocking(false).unwrap();
        let kernel = std::thread::spawn(move || descriptors::hold_and_fetch(stream));

        let (mut reader, mut writer) = std::io::pipe().unwrap();
        let held = OwnedFd::from(writer.try_clone().unwrap());
        client
            .call_with_descriptor(Hold { name: name("pipe") }, held)
            .await
            .unwrap();
        let (first, second) = tokio::join!(
            client.call_for_descriptor(Fetch { name: name("pipe") }),
            client.call_for_descriptor(OutputReel { serial: Serial(7) }),
        );
        let (reel, reel_descriptor) = second.unwrap();
        assert_eq!(reel.data_offset, 4096);
        let mut contents = String::new();
        std::fs::File::from(reel_descriptor)
            .read_to_string(&mut contents)
            .unwrap();
        assert_eq!(contents, "reel");
        std::fs::File::from(first.unwrap().1)
            .write_all(b"through")
            .unwrap();
        writer.write_all(b"!").unwrap();
        drop(writer);
        kernel.join().unwrap();
        let mut through = String::new();
        reader.read_to_string(&mut through).unwrap();
        assert_eq!(through, "through!");
    });
}

#[test]
fn descriptors_are_refused_over_tcp_and_without_one() {
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = Address::Tcp(listener.local_addr().unwrap());
        let client = tokio::spawn(Client::connect(vec![address], Options::default()));
        let mut session = Session::greet(listener.accept().await.unwrap().0, 1).await;
        let (client, _pushes) = client.await.unwrap().unwrap();
        let error = client
            .call_for_descriptor(Fetch { name: name("x") })
            .await
            .unwrap_err();
        assert!(matches!(error, ClientError::Unsupported));
        let error = client.call(Hold { name: name("x") }).await.unwrap_err();
        assert!(matches!(error, ClientError::NoDescriptor));
        // Nothing of it reached the kernel.
        let (barrier, _) = tokio::join!(
            client.barrier(),
            session.answer("claim.list", json!({"claims": []}))
        );
        barrier.unwrap();
    });
}

#[test]
fn output_arrives_whole_and_in_order() {
    run(async {
        let place = Place::new();
        let (client, mut pushes, mut session) = pair(&place.listen(), &place.path()).await;
        let (sub, request) = tokio::join!(
            client.call(consume()),
            session.answer("output.consume", json!({"sub": 40}))
        );
        assert_eq!(request["force"], true);
        let sub = sub.unwrap().sub;
        let big = "x".repeat(3 << 20);
        let kernel = async {
            session.output(40, 0, "hello").await;
            session.output(41, 0, "for nobody").await;
            session.output(40, 5, &big).await;
            session
                .say(&json!({"end": {"sub": 40, "serial": 7, "stream": 1, "position": 9}}))
                .await;
            session.say(&json!({"exit": {"sub": 40, "serial": 7, "signal": 9, "core": false, "stamp_us": 5}})).await;
        };
        let user = async {
            for expected in ["hello", big.as_str()] {
                match pushes.recv().await {
                    Some(Push::Output { header, bytes }) => {
                        assert_eq!((header.sub, header.length), (sub, expected.len() as u64));
                        assert!(bytes == expected);
                    }
                    other => panic!("{other:?}"),
                }
            }
            assert!(matches!(pushes.recv().await, Some(Push::End(end)) if end.sub == sub));
            assert!(
                matches!(pushes.recv().await, Some(Push::Exit(exit)) if exit.exit.classic_code() == -9)
            );
        };
        tokio::join!(kernel, user);
        client
            .send(OutputAck {
                acks: [(Serial(7), 9)].into(),
            })
            .await
            .unwrap();
        let ack = session.request().await;
        assert_eq!(ack, json!({"op": "output.ack", "acks": {"7": 9}}));
        session
            .say(&json!({"id": null, "error": {"code": "invalid", "message": "no"}}))
            .await;
        assert!(
            matches!(pushes.recv().await, Some(Push::Failed(failure)) if failure.message == "no")
        );
        let stop = client.call(OutputStop { sub });
        let (stopped, request) = tokio::join!(stop, session.answer("output.stop", json!({})));
        stopped.unwrap();
        assert_eq!(request["sub"], 40);
        assert_eq!(
            client.call(OutputStop { sub }).await.unwrap_err().code(),
            Some(ErrorCode::NotFound)
        );
    });
}

#[test]
fn a_caller_gets_its_answer_without_draining_pushes() {
    run(async {
        let place = Place::new();
        let (client, mut pushes, mut session) = pair(&place.listen(), &place.path()).await;
        let (sub, _) = tokio::join!(
            client.call(consume()),
            session.answer("output.consume", json!({"sub": 1}))
        );
        sub.unwrap();
        let batches = 3000;
        let kernel = async {
            for k in 0..batches {
                session.output(1, k * 4, "abcd").await;
            }
            session.answer("value.get", json!({"value": null})).await;
        };
        let (value, ()) = tokio::join!(client.call(ValueGet { name: name("a") }), kernel);
        assert_eq!(value.unwrap().value, None);
        for k in 0..batches {
            match pushes.recv().await {
                Some(Push::Output { header, .. }) => assert_eq!(header.start, k * 4),
                other => panic!("{other:?}"),
            }
        }
    });
}

#[test]
fn a_lost_connection_is_taken_up_again() {
    run(async {
        let place = Place::new();
        let listener = place.listen();
        let (client, mut pushes, mut session) = pair(&listener, &place.path()).await;
        let claim = Claim {
            namespace: name("circus"),
            holder: "test".into(),
            force: true,
        };
        let taken = Claim {
            namespace: name("other"),
            ..claim.clone()
        };
        let (epoch, _) = tokio::join!(
            client.call(claim),
            session.answer("claim", json!({"epoch": 3}))
        );
        assert_eq!(epoch.unwrap().epoch, 3);
        let (epoch, _) = tokio::join!(
            client.call(taken),
            session.answer("claim", json!({"epoch": 1}))
        );
        epoch.unwrap();
        let events = Subscribe {
            names: vec![NamePattern::new("circus.*")],
        };
        let (events, _) = tokio::join!(
            client.call(events),
            session.answer("subscribe", json!({"sub": 1}))
        );
        let (output, _) = tokio::join!(
            client.call(consume()),
            session.answer("output.consume", json!({"sub": 2}))
        );
        let (events, output) = (events.unwrap().sub, output.unwrap().sub);

        let under_way = client.call(ValueGet { name: name("a") });
        let kernel = async {
            session.request().await;
            drop(session);
            drop(listener);
        };
        let (lost, ()) = tokio::join!(under_way, kernel);
        assert!(matches!(lost, Err(ClientError::Lost)));
        assert!(matches!(
            pushes.recv().await,
            Some(Push::Disconnected { .. })
        ));

        let waiting = client.call(ValueGet { name: name("b") });
        let listener = place.listen();
        // Subscriptions come back in the order of their numbers: events were first.
        let kernel_in_order = async {
            let mut session = Session::greet(listener.accept().await.unwrap().0, 2).await;
            let claim = session.answer("claim", json!({"epoch": 4})).await;
            assert_eq!(
                (&claim["namespace"], claim.get("force")),
                (&json!("circus"), None)
            );
            let taken = session.request().await;
            let failure = json!({"code": "claimed", "message": "somebody holds it"});
            session
                .say(&json!({"id": taken["id"], "error": failure}))
                .await;
            session.answer("subscribe", json!({"sub": 9})).await;
            let request = session.request().await;
            assert_eq!(
                (&request["op"], request.get("force")),
                (&json!("output.consume"), None)
            );
            session
                .say(&json!({"id": request["id"], "ok": {"sub": 1}}))
                .await;
            session.output(1, 0, "again").await;
            session.answer("value.get", json!({"value": "b"})).await;
            session
        };
        let (value, mut session) = tokio::join!(waiting, kernel_in_order);
        assert_eq!(value.unwrap().value.unwrap(), "b");
        match pushes.recv().await {
            Some(Push::Reconnected(news)) => {
                assert_eq!(news.hello.incarnation, 2);
                assert_eq!(news.claims, [(name("circus"), 4)]);
                assert_eq!(news.claims_refused[0].0, "other");
                assert!(news.subscriptions_refused.is_empty());
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(client.hello().incarnation, 2);
        assert!(
            matches!(pushes.recv().await, Some(Push::Output { header, .. }) if header.sub == output)
        );
        session
            .say(&json!({"event": {"sub": 9, "seq": 1, "type": "removed", "name": "circus.a"}}))
            .await;
        assert!(matches!(pushes.recv().await, Some(Push::Event(event)) if event.sub == events));
    });
}

#[test]
fn strangers_are_recognised() {
    run(async {
        let place = Place::new();
        for (said, part) in [
            (
                "220 smtp ready\r\n",
                "no papa kernel; it said \"220 smtp ready\\r\\n\"",
            ),
            (
                "Papa is home. Type \"help\" for commands.\n> Error: Unknown command \"json\"\n> ",
                "too old",
            ),
            ("Papa is home. Type", "closed before the greeting"),
        ] {
            let listener = place.listen();
            let client = connect(&place.path());
            let mut stream = listener.accept().await.unwrap().0;
            stream.write_all(said.as_bytes()).await.unwrap();
            drop(stream);
            let error = client.await.unwrap().expect_err(said).to_string();
            assert!(
                error.contains(part) && error.contains("/nonexistent/papa.sock"),
                "{error}"
            );
        }
    });
}

#[test]
fn the_connection_closes_with_the_last_handle_and_not_before_everything_is_sent() {
    run(async {
        let place = Place::new();
        let (client, mut pushes, mut session) = pair(&place.listen(), &place.path()).await;
        let second = client.clone();
        drop(client);
        for k in 0..100 {
            second
                .send(OutputAck {
                    acks: [(Serial(k), 1)].into(),
                })
                .await
                .unwrap();
        }
        drop(second);
        for k in 0..100 {
            assert_eq!(session.request().await["acks"], json!({k.to_string(): 1}));
        }
        assert_eq!(session.line().await, "");
        assert!(pushes.recv().await.is_none());
    });
}

#[test]
fn a_silent_kernel_costs_a_timeout() {
    run(async {
        let place = Place::new();
        let listener = place.listen();
        let options = Options {
            call_timeout: Duration::from_millis(50),
            ..Options::default()
        };
        let client = tokio::spawn(Client::connect(vec![Address::Unix(place.path())], options));
        let session = Session::greet(listener.accept().await.unwrap().0, 1).await;
        let (client, _pushes) = client.await.unwrap().unwrap();
        assert!(matches!(
            client.call(Status {}).await,
            Err(ClientError::Timeout(_))
        ));
        drop(session);
    });
}

/// As [`pair`], with another limit for calls.
async fn pair_with_timeout(
    listener: &UnixListener,
    path: &Path,
    call_timeout: Duration,
) -> (Client, Pushes, Session<UnixStream>) {
    let options = Options {
        call_timeout,
        ..Options::default()
    };
    let client = tokio::spawn(Client::connect(vec![Address::Unix(path.into())], options));
    let session = Session::greet(listener.accept().await.unwrap().0, 1).await;
    let (client, pushes) = client.await.unwrap().unwrap();
    (client, pushes, session)
}

fn get() -> ValueGet {
    ValueGet { name: name("a") }
}

#[test]
fn a_connection_on_which_no_answer_comes_is_given_up() {
    run(async {
        let place = Place::new();
        let listener = place.listen();
        let timeout = Duration::from_millis(50);
        let (client, mut pushes, mut session) =
            pair_with_timeout(&listener, &place.path(), timeout).await;
        let (answer, _) = tokio::join!(client.call(Status {}), session.request());
        assert!(matches!(answer, Err(ClientError::Timeout(_))));
        let Some(Push::Disconnected { reason }) = pushes.recv().await else {
            panic!("the connection stays");
        };
        assert_eq!(reason, "the kernel has not answered a request within 2 s");
        let session = listener.accept().await.unwrap().0;
        let _session = Session::greet(session, 1).await;
        assert!(matches!(pushes.recv().await, Some(Push::Reconnected(_))));
    });
}

#[test]
fn a_kernel_that_answers_one_slow_request_after_the_other_keeps_its_connection() {
    run(async {
        let place = Place::new();
        let listener = place.listen();
        let timeout = Duration::from_secs(1);
        let (client, mut pushes, mut session) =
            pair_with_timeout(&listener, &place.path(), timeout).await;
        let calls: Vec<_> = (0..5)
            .map(|_| {
                let client = client.clone();
                tokio::spawn(async move { client.call(get()).await })
            })
            .collect();
        for _ in &calls {
            let request = session.request().await;
            // How slow the kernel is is the test's input: the last answer comes long after the last
            // request, and none long after the one before.
            tokio::time::sleep(timeout).await;
            let answer = json!({"id": request["id"], "ok": {"value": "b"}});
            session.say(&answer).await;
        }
        for call in calls {
            let _ = call.await.unwrap();
        }
        let (value, _) = tokio::join!(
            client.call(get()),
            session.answer("value.get", json!({"value": "c"}))
        );
        assert_eq!(value.unwrap().value.unwrap(), "c");
        assert!(pushes.try_recv().is_none(), "it was never lost");
    });
}

mod descriptors {
    //! The kernel's side of descriptor passing, blocking.

    use std::io::{IoSlice, IoSliceMut, Write};
    use std::mem::MaybeUninit;
    use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
    use std::os::unix::net::UnixStream;

    use rustix::net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags,
    };

    /// Takes a `hold`, then answers a `fetch` with the held descriptor and an `output.reel` with a
    /// file.
    pub(super) fn hold_and_fetch(mut stream: UnixStream) {
        let (line, held) = receive(&stream);
        assert!(line.contains("\"op\":\"hold\""), "{line}");
        let held = held.expect("no descriptor came with the hold");
        stream.write_all(b"{\"id\":1,\"ok\":{}}\n").unwrap();

        let mut requests = String::new();
        while requests.matches('\n').count() < 2 {
            requests.push_str(&receive(&stream).0);
        }
        send(&stream, "{\"id\":2,\"ok\":{}}\n", held.as_fd());
        let mut reel = tempfile::tempfile().unwrap();
        reel.write_all(b"reel").unwrap();
        std::io::Seek::rewind(&mut reel).unwrap();
        send(
            &stream,
            "{\"id\":3,\"ok\":{\"data_offset\":4096}}\n",
            reel.as_fd(),
        );
    }

    fn receive(stream: &UnixStream) -> (String, Option<OwnedFd>) {
        let mut bytes = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let slices = &mut [IoSliceMut::new(&mut bytes)];
        let received =
            rustix::net::recvmsg(stream, slices, &mut ancillary, RecvFlags::CMSG_CLOEXEC).unwrap();
        let descriptor = ancillary.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        });
        let text = String::from_utf8(bytes[..received.bytes].to_vec()).unwrap();
        (text, descriptor)
    }

    fn send(stream: &UnixStream, line: &str, descriptor: BorrowedFd<'_>) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let descriptors = [descriptor];
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)));
        let slices = [IoSlice::new(line.as_bytes())];
        let sent =
            rustix::net::sendmsg(stream, &slices, &mut ancillary, SendFlags::NOSIGNAL).unwrap();
        assert_eq!(sent, line.len());
    }
}
