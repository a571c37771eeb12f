//! The JSON dialect apart from output: switching, errors, hold and fetch, claims, events, status.

use std::io::Write;
use std::os::fd::AsFd;

use serde_json::json;

use papa_harness::{Json, Kernel, wait_until};

#[test]
fn a_session_switches_with_one_word_over_both_transports() {
    let mut kernel = Kernel::start();
    let over_unix = kernel.json();
    let over_tcp = Json::tcp(kernel.port()).expect("the kernel speaks JSON over TCP");
    for hello in [over_unix.hello, over_tcp.hello] {
        assert_eq!(hello["protocol"], 1, "{hello}");
        assert_eq!(hello["pid"], kernel.pid(), "{hello}");
        assert_eq!(hello["keeper"], kernel.keeper(), "{hello}");
        assert!(hello["limits"].is_object(), "{hello}");
    }
}

#[test]
fn what_is_wrong_is_named() {
    let kernel = Kernel::start();
    let mut session = kernel.json();
    assert_eq!(session.error("no.such", json!({})), "unknown_op");
    assert_eq!(session.error("stat", json!({})), "unknown_op");
    let reply = session
        .call("value.get", json!({"name": "a", "colour": "red"}))
        .unwrap()
        .unwrap_err();
    assert_eq!(reply["code"], "invalid");
    assert!(
        reply["message"].as_str().unwrap().contains("colour"),
        "{reply}"
    );
    for line in [
        "{",
        "[]",
        "7",
        "{\"id\":1}",
        "{\"op\":7}",
        "not json",
        "{\"op\":\"status\",\"id\":[1]}",
    ] {
        session.send_line(line).unwrap();
        let push = session.push();
        assert_eq!(push.header["error"]["code"], "invalid", "{line}: {push:?}");
    }
    session.ok("status", json!({}));
}

#[test]
fn a_request_without_an_id_is_answered_only_when_it_fails() {
    let kernel = Kernel::start();
    let mut session = kernel.json();
    session
        .send("value.set", json!({"name": "a", "value": "b"}))
        .unwrap();
    session
        .send("value.set", json!({"name": "a:b", "value": "b"}))
        .unwrap();
    let push = session.push();
    assert!(push.header["id"].is_null(), "{push:?}");
    assert_eq!(push.header["error"]["code"], "invalid", "{push:?}");
    assert_eq!(session.ok("value.get", json!({"name": "a"}))["value"], "b");
}

#[test]
fn descriptors_are_held_and_fetched_back() {
    let mut kernel = Kernel::start();
    let mut file = tempfile::tempfile().unwrap();
    let mut session = kernel.json();
    session
        .call_with("hold", json!({"name": "m.state"}), file.as_fd())
        .unwrap()
        .unwrap();
    file.write_all(b"written later").unwrap();
    drop((file, session));
    kernel.kill_kernel();
    let mut session = kernel.json();
    session.ok("fetch", json!({"name": "m.state"}));
    let file = std::fs::File::from(session.descriptor());
    let mut bytes = [0; 13];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"written later");
    let held = session.ok("hold.list", json!({}));
    assert_eq!(held["held"][0]["name"], "m.state", "{held}");
    assert_eq!(
        session.ok("hold.drop", json!({"names": ["m.state"]}))["removed"],
        1
    );
    assert_eq!(
        session.error("fetch", json!({"name": "m.state"})),
        "not_found"
    );
    assert_eq!(
        session.error("hold", json!({"name": "m.none"})),
        "no_descriptor"
    );
}

#[test]
fn descriptors_do_not_travel_over_tcp() {
    let kernel = Kernel::start();
    kernel.json().ok("socket.make", json!({"name": "s"}));
    let mut session = Json::tcp(kernel.port()).unwrap();
    assert_eq!(
        session.error("socket.fetch", json!({"name": "s"})),
        "unsupported"
    );
}

#[test]
fn a_claim_keeps_others_out_and_fences_the_predecessor() {
    let kernel = Kernel::start();
    let mut first = kernel.json();
    let epoch = first.ok(
        "claim",
        json!({"namespace": "app", "holder": "manager one"}),
    )["epoch"]
        .as_u64()
        .unwrap();
    // Over TCP: on the unix socket the kernel sees that it is the same process, and one manager may
    // well have several sessions.
    let mut second = Json::tcp(kernel.port()).unwrap();
    let refused = second
        .call(
            "claim",
            json!({"namespace": "app", "holder": "manager two"}),
        )
        .unwrap()
        .unwrap_err();
    assert_eq!(refused["code"], "claimed");
    assert!(
        refused["message"].as_str().unwrap().contains("manager one"),
        "{refused}"
    );
    let make = json!({"name": "app.w.1", "argv": ["/bin/sleep", "60"]});
    assert_eq!(second.error("process.make", make.clone()), "claimed");
    first.ok("process.make", make);
    assert_eq!(
        second.error("process.remove", json!({"names": ["app.w.1"]})),
        "claimed"
    );
    assert!(
        kernel
            .classic()
            .ask_error("make process app.w.2 /bin/true")
            .contains("manager one")
    );
    second.ok(
        "process.make",
        json!({"name": "other", "argv": ["/bin/sleep", "60"]}),
    );

    let taken = second.ok(
        "claim",
        json!({"namespace": "app", "holder": "manager two", "force": true}),
    );
    assert!(taken["epoch"].as_u64().unwrap() > epoch, "{taken}");
    let lost = first.push_of("lost");
    assert_eq!(lost["namespace"], "app", "{lost}");
    assert_eq!(
        first.error("process.remove", json!({"names": ["app.w.1"]})),
        "stale_epoch"
    );
    second.ok("process.remove", json!({"names": ["app.w.1"]}));
}

#[test]
fn a_lost_connection_leaves_the_claim_vacant_not_void() {
    let mut kernel = Kernel::start();
    let mut first = kernel.json();
    let epoch = first.ok("claim", json!({"namespace": "app", "holder": "gone soon"}))["epoch"]
        .as_u64()
        .unwrap();
    drop(first);
    let mut other = kernel.json();
    wait_until("the claim is vacant", || {
        other.ok("claim.list", json!({}))["claims"][0]["live"] == false
    });
    assert_eq!(
        other.error(
            "process.make",
            json!({"name": "app.x", "argv": ["/bin/true"]})
        ),
        "claimed"
    );
    other.ok(
        "process.make",
        json!({"name": "app.x", "argv": ["/bin/sleep", "60"], "force": true}),
    );
    kernel.kill_kernel();
    let mut next = kernel.json();
    let taken = next.ok("claim", json!({"namespace": "app", "holder": "next"}));
    assert!(
        taken["epoch"].as_u64().unwrap() > epoch,
        "epochs outlive the kernel: {taken}"
    );
    next.ok("claim.release", json!({"namespace": "app"}));
    assert_eq!(next.ok("claim.list", json!({}))["claims"], json!([]));
    kernel.json().ok(
        "process.make",
        json!({"name": "app.y", "argv": ["/bin/sleep", "60"]}),
    );
}

#[test]
fn a_namespace_ends_at_its_dot() {
    let kernel = Kernel::start();
    kernel
        .json()
        .ok("value.set", json!({"name": "before", "value": "x"}));
    let mut holder = kernel.json();
    holder.ok("claim", json!({"namespace": "app", "holder": "h"}));
    let mut other = kernel.json();
    for name in ["application", "app2.x", "app"] {
        other.ok(
            "process.make",
            json!({"name": name, "argv": ["/bin/sleep", "60"]}),
        );
    }
}

#[test]
fn a_subscription_tells_what_changes() {
    let kernel = Kernel::start();
    let mut session = kernel.json();
    session.ok("subscribe", json!({"names": ["w.*"]}));
    let mut other = kernel.json();
    other.make_process("x", &["/bin/true"], json!({}));
    other.make_process("w.1", &["/bin/sh", "-c", "exit 9"], json!({"tag": 5}));
    let made = session.push_of("event");
    assert_eq!(
        (&made["type"], &made["name"]),
        (&json!("made"), &json!("w.1")),
        "{made}"
    );
    assert_eq!(made["process"]["tag"], 5, "{made}");
    let exited = session.push_of("event");
    assert_eq!(exited["type"], "exited", "{exited}");
    assert_eq!(exited["process"]["exit"]["code"], 9, "{exited}");
    assert!(exited["seq"].as_u64() > made["seq"].as_u64());
    other.ok("process.remove", json!({"names": ["w.1"]}));
    assert_eq!(session.push_of("event")["type"], "removed");
    other.ok("socket.make", json!({"name": "w.s"}));
    assert_eq!(session.push_of("event")["type"], "socket_made");
    other.ok("socket.remove", json!({"names": ["w.s"]}));
    assert_eq!(session.push_of("event")["type"], "socket_removed");
}

#[test]
fn the_status_counts_what_there_is() {
    let kernel = Kernel::start();
    let mut session = kernel.json();
    session.ok("socket.make", json!({"name": "s"}));
    session.ok("value.set", json!({"name": "v", "value": "x"}));
    session.make_process("p", &["/bin/sleep", "60"], json!({}));
    session.ok("claim", json!({"namespace": "n", "holder": "h"}));
    let status = session.ok("status", json!({}));
    let counts = &status["counts"];
    for (key, expected) in [
        ("processes", 1),
        ("running", 1),
        ("sockets", 1),
        ("values", 1),
        ("held", 0),
        ("claims", 1),
    ] {
        assert_eq!(counts[key], expected, "{key}: {status}");
    }
    assert!(
        status["memory"]["budget_bytes"].as_u64().unwrap() > 0,
        "{status}"
    );
    assert_eq!(status["skipped_records"], 0, "{status}");
}

#[test]
fn bytes_that_are_not_text_survive_the_round_trip() {
    let kernel = Kernel::start();
    let mut session = kernel.json();
    let odd = json!([120, 255, 10, 121]);
    let argv = json!(["/bin/sh", "-c", "printf %s \"$0\"", odd]);
    let process = session.ok("process.make", json!({"name": "p", "argv": argv}))["process"].clone();
    assert_eq!(process["argv"][3], odd, "{process}");
    let seen = papa_harness::Collector::new(&kernel.socket_path(), &["p"])
        .finish(process["serial"].as_u64().unwrap());
    assert_eq!(seen.bytes, [120, 255, 10, 121]);
}

#[test]
fn sessions_of_one_process_share_its_claim() {
    let kernel = Kernel::start();
    let mut first = kernel.json();
    first.ok("claim", json!({"namespace": "app", "holder": "manager"}));
    let mut log_thread = kernel.json();
    log_thread.ok("value.set", json!({"name": "app.v", "value": "x"}));
    log_thread.make_process("app.p", &["/bin/sleep", "60"], json!({}));
}
