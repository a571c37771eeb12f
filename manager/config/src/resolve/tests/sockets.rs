//! `[socket:NAME]`: its keys, and addresses that clash or that nobody can bind.

use super::*;

#[test]
fn sockets_are_left_to_the_kernel() {
    let text = "[socket:Web]\npath = sock\n[watcher:w]\nuse_sockets = True\nstdin_socket = WEB\n\
        cmd = uwsgi --socket fd://$(circus.sockets.WEB) --stats 127.0.0.1:809$(circus.wid)";
    let config = config(text);
    let spec = render_worker(&config.watchers[0], "circus", 2);
    assert_eq!(
        spec.argv,
        [
            "uwsgi",
            "--socket",
            "fd://$(socket.circus.web.fileno)",
            "--stats",
            "127.0.0.1:8092"
        ]
    );
    assert!(!spec.verbatim);
    assert_eq!(spec.sockets, ["circus.web"]);
    assert_eq!(spec.stdin_socket.as_deref(), Some("circus.web"));
}

#[test]
fn socket_keys_arrive() {
    let config = config(
        "[socket:A]\npath = s/a\numask = 022\nreplace = 1\n[socket:b]\nhost = localhost\nport = 0\nfamily = af_inet6\n\
         type = SOCK_DGRAM\nbacklog = 7\nso_reuseport = true\nblocking = false\nuse_papa = no\ninterface = eth0\n[socket:c]\nbacklog = 5\n",
    );
    let [a, b, c] = config.sockets.as_slice() else {
        panic!("three sockets")
    };
    assert_eq!(
        (a.name.as_str(), a.family, a.umask),
        ("a", SocketFamily::Unix, Some(0o22))
    );
    assert_eq!(a.path.as_deref(), Some(Path::new("/srv/s/a")));
    assert!(a.replace && a.nonblocking && a.use_papa && a.port.is_none());
    assert_eq!(
        (b.family, b.kind, b.backlog),
        (SocketFamily::Inet6, SocketType::Dgram, 7)
    );
    assert_eq!(
        (b.host.as_deref(), b.port, b.umask),
        (Some("::1"), Some(0), None)
    );
    assert!(b.reuseport && b.nonblocking && !b.use_papa);
    assert_eq!((c.host.as_deref(), c.port), (Some("127.0.0.1"), Some(8080)));
    assert!(c.nonblocking);
    assert_eq!(lines(&config.warnings).len(), 1);
    assert!(config.warnings[0].message.contains("leading 0"));
}

#[test]
fn sockets_were_blocking_where_circus_has_them_non_blocking() {
    for (lines, nonblocking) in [
        ("", true),
        ("blocking = yes", false),
        ("blocking = no", true),
        ("use_papa = yes", false),
        ("use_papa = no", true),
        ("use_papa = yes\nblocking = no", true),
    ] {
        let config = config(&format!("[socket:a]\nbacklog = 9\n{lines}\n"));
        assert_eq!(config.sockets[0].nonblocking, nonblocking, "{lines}");
    }
}

#[test]
fn both_wildcards_on_one_port_could_not_be_bound() {
    let v6only = |text: &str| {
        let config = config(text);
        assert!(config.warnings.is_empty(), "{:?}", config.warnings);
        let sockets = config.sockets.iter();
        let v6 = sockets.filter(|socket| socket.family == SocketFamily::Inet6);
        v6.map(|socket| socket.v6only).collect::<Vec<_>>()
    };
    let v4 = "[socket:a]\nhost = 0.0.0.0\nport = 80\n";
    let v6 = "[socket:b]\nhost = ::\nport = 80\n";
    assert_eq!(v6only(&format!("{v4}{v6}")), [Some(true)]);
    assert_eq!(v6only(&format!("{v6}{v4}")), [Some(true)]);
    let one = "[socket:a]\nhost = 127.0.0.1\nport = 80\n";
    assert_eq!(v6only(&format!("{one}{v6}")), [Some(true)]);
    assert_eq!(v6only(v6), [None]);
    assert_eq!(v6only(&format!("{v6}v6only = yes\n")), [Some(true)]);
    assert_eq!(v6only(&format!("{v6}v6only = no\n")), [Some(false)]);
    let other = "[socket:a]\nhost = 0.0.0.0\nport = 81\n";
    assert_eq!(v6only(&format!("{other}{v6}")), [None]);
}

#[test]
fn sections_with_one_address_were_found_out_by_the_kernel() {
    let socket = |name, text: &str| format!("[socket:{name}]\n{}\n", text.replace(", ", "\n"));
    let told = |one, other| {
        let text = socket("a", one) + &socket("b", other);
        let problems = match try_load(&text) {
            Ok(config) => config.warnings,
            Err(found) => found.errors,
        };
        let messages = problems.into_iter().map(|problem| problem.message);
        messages.collect::<Vec<_>>()
    };
    for (one, other, expected) in [
        (
            "host = 1.2.3.4, port = 80",
            "host = 1.2.3.4, port = 80",
            "address 1.2.3.4:80 as [socket:a]",
        ),
        ("backlog = 1", "backlog = 2", "127.0.0.1:8080 as"),
        (
            "host = 0.0.0.0",
            "host = 127.0.0.1",
            "takes too, being 0.0.0.0:8080",
        ),
        (
            "host = ::, v6only = no",
            "host = 0.0.0.0",
            "or no v6only = no",
        ),
        ("host = ::", "host = ::1", "takes too, being [::]:8080"),
        ("host = a.example", "host = a.example", "a.example:8080 as"),
        (
            "host = 127.0.0.1, so_reuseport = yes",
            "host = 127.0.0.1",
            "so_reuseport = yes in both",
        ),
        ("path = /x", "path = /x", "address /x as"),
        (
            "path = /x",
            "path = /./x, type = SOCK_DGRAM",
            "expected another path",
        ),
        (
            "type = SOCK_DGRAM",
            "type = SOCK_DGRAM",
            "only one of them gets",
        ),
        (
            "host = 127.0.0.1, interface = lo",
            "host = 127.0.0.1",
            "8080 as",
        ),
    ] {
        let found = told(one, other);
        assert!(
            found.len() == 1 && found[0].contains(expected),
            "{one} | {other}: {found:?}"
        );
    }
    for (one, other) in [
        ("host = 127.0.0.1", "host = 127.0.0.2"),
        ("host = 127.0.0.1", "host = ::1"),
        ("port = 1", "port = 2"),
        ("port = 0", "port = 0"),
        ("backlog = 1", "type = SOCK_DGRAM"),
        ("so_reuseport = yes", "so_reuseport = yes"),
        ("path = /x", "path = /y"),
        ("interface = a", "interface = b"),
    ] {
        let found = told(one, other);
        assert!(found.is_empty(), "{one} | {other}: {found:?}");
    }
}

#[test]
fn a_socket_nobody_could_bind_was_found_out_at_run_time() {
    for (keys, part) in [
        ("host = 300.1.1.1", "is no IPv4 address"),
        ("host = 1.2.3", ""),
        ("host = 1.2.3.4.5", "is no IPv4 address"),
        ("host = 10.1", ""),
        ("host = 1.2.3.4:80", "write host = 1.2.3.4 and port = 80"),
        (
            "host = example.org:80",
            "write host = example.org and port = 80",
        ),
        ("host = [::1]:80", "write host = ::1 and port = 80"),
        ("host = 127.0.0.1", ""),
        ("host = ::", ""),
        (
            "umask = 999\npath = s",
            "with a leading 0, or a decimal one, at most 0777",
        ),
        ("umask = 0999\npath = s", "at most 0777"),
    ] {
        let read = try_load(&format!("[socket:a]\n{keys}\n"));
        match read {
            Ok(_) => assert_eq!(part, "", "{keys}: expected an error"),
            Err(errors) => {
                assert_eq!(errors.errors.len(), 1, "{keys}: {errors}");
                assert!(
                    !part.is_empty() && errors.to_string().contains(part),
                    "{keys}: {errors}"
                );
            }
        }
    }
}
