//! Whole files in, typed configuration or every mistake out.

use std::ffi::OsStr;
use std::fs;

use super::*;
use crate::render::{WorkerInput, WorkerOutput, render_worker};
use crate::types::{
    HealthProbe, Identity, Readiness, RlimitValue, SocketFamily, SocketType, StreamConfig,
};
use crate::{KernelEndpoint, LogOutput};

mod beyond;
mod keys;

fn around() -> Surroundings {
    Surroundings {
        environment: [("HOME", "/root"), ("PATH", "/bin")]
            .map(|(key, value)| (key.into(), value.into()))
            .into(),
        directory: "/srv".into(),
    }
}

fn try_load(text: &str) -> Result<Config, ConfigErrors> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.ini");
    fs::write(&path, text).unwrap();
    load(&path, &around())
}

fn config(text: &str) -> Config {
    try_load(text).unwrap_or_else(|errors| panic!("{errors}"))
}

/// Line and text of each problem.
fn lines(problems: &[crate::Problem]) -> Vec<(usize, &str)> {
    problems
        .iter()
        .map(|problem| (problem.origin.line(), problem.message.as_str()))
        .collect()
}

fn errors(text: &str) -> Vec<(usize, String)> {
    let errors = try_load(text).expect_err("the file has mistakes").errors;
    lines(&errors)
        .into_iter()
        .map(|(line, text)| (line, text.to_owned()))
        .collect()
}

fn argv(text: &str) -> Vec<String> {
    let config = config(text);
    render_worker(&config.watchers[0], &config.namespace, 3).argv
}

#[test]
fn an_empty_file_has_defaults() {
    let config = config("");
    assert_eq!(config.namespace, "circus");
    assert_eq!(
        (config.kernel, config.umask, config.log_level.as_str()),
        (None, None, "info")
    );
    assert!(config.watchers.is_empty() && config.warnings.is_empty());
}

#[test]
fn a_watcher_has_circus_defaults() {
    let config = config("[watcher:Web]\ncmd = sleep 9");
    let watcher = &config.watchers[0];
    assert_eq!(
        (watcher.name.as_str(), watcher.key.as_str()),
        ("Web", "web")
    );
    assert_eq!(
        (watcher.numprocesses, watcher.max_retry, watcher.priority),
        (1, Some(5), 0)
    );
    assert_eq!(watcher.graceful_timeout, Duration::from_secs(30));
    assert_eq!(watcher.stop_signal.to_string(), "SIGTERM");
    assert!(watcher.respawn && watcher.autostart && watcher.use_papa);
    assert!(
        watcher.env.is_empty(),
        "nothing is inherited unless copy_env is on"
    );
    let spec = render_worker(watcher, "circus", 1);
    assert_eq!(spec.name, "circus.web.1");
    assert_eq!(spec.argv, ["sleep", "9"]);
    assert_eq!(spec.working_dir, Path::new("/srv"));
    assert!(spec.verbatim && spec.sockets.is_empty());
    assert_eq!(
        (spec.stdin, spec.stdout),
        (WorkerInput::Null, WorkerOutput::Pipe)
    );
    assert_eq!(config.watcher("WEB"), Some(watcher));
}

#[test]
fn every_watcher_key_arrives() {
    let config = config(
        "[circus]\ncircus_warnings = no\numask = 027\nwarmup_delay = 0.5\nnamespace = prod\npapa_endpoint = ipc:///run/k.sock\n\
         [watcher:w]\ncmd = prog\nnumprocesses = 4\nworking_dir = sub\nuid = 12\ngid = root\n\
         rlimit_nofile = 4096\nrlimit_CORE =\nstop_signal = QUIT\nstop_children = on\ngraceful_timeout = 2.5\n\
         send_hup = yes\nrespawn = no\nmax_retry = -1\nautostart = off\npriority = -3\nwarmup_delay = 1\n\
         use_papa = false\nstdout_stream.class = FileStream\nstdout_stream.filename = log/out\n\
         stdout_stream.max_bytes = 1000\nstdout_stream.backup_count = 2\nstdout_stream.time_format = %H:%M:%S.%f\n\
         stderr_stream.class = StdoutStream\nactive = true\n",
    );
    assert_eq!(
        config.kernel,
        Some(KernelEndpoint::Unix("/run/k.sock".into()))
    );
    assert_eq!(
        (config.umask, config.warmup_delay),
        (Some(0o27), Duration::from_millis(500))
    );
    let w = &config.watchers[0];
    assert_eq!((w.numprocesses, w.priority, w.max_retry), (4, -3, None));
    assert_eq!(w.working_dir, Path::new("/srv/sub"));
    assert_eq!(w.uid, Some(Identity::Number(12)));
    assert_eq!(w.gid, Some(Identity::Name("root".into())));
    assert_eq!(w.rlimits["nofile"], RlimitValue::Limit(4096));
    assert_eq!(w.rlimits["core"], RlimitValue::Infinity);
    assert_eq!(w.stop_signal.number(), 3);
    assert_eq!(w.graceful_timeout, Duration::from_millis(2500));
    assert_eq!(w.warmup_delay, Duration::from_secs(1));
    assert!(w.stop_children && w.send_hup && !w.respawn && !w.autostart && !w.use_papa);
    let file = w.stdout.file().unwrap();
    assert_eq!(file.filename, Path::new("/srv/log/out"));
    assert_eq!((file.max_bytes, file.backup_count), (1000, 2));
    assert_eq!(file.time_format.as_deref(), Some("%H:%M:%S.%6f"));
    assert_eq!(w.stderr, StreamConfig::Stdout);
    assert_eq!(w.options["active"], "true");
    assert_eq!(render_worker(w, &config.namespace, 2).name, "prod.w.2");
    assert_eq!(
        lines(&config.warnings),
        [(31, "active is not known and has no effect")]
    );
}

#[test]
fn use_papa_false_means_false() {
    for (text, expected) in [
        ("false", false),
        ("no", false),
        ("0", false),
        ("True", true),
    ] {
        let config = config(&format!("[watcher:w]\ncmd = x\nuse_papa = {text}"));
        assert_eq!(config.watchers[0].use_papa, expected, "{text}");
    }
}

#[test]
fn watchers_start_by_priority_then_name() {
    let config = config(
        "[watcher:c]\ncmd=x\n[watcher:a]\ncmd=x\n[watcher:b]\ncmd=x\npriority=5\n[watcher:d]\ncmd=x\npriority=-1",
    );
    let names: Vec<_> = config
        .watchers
        .iter()
        .map(|watcher| watcher.name.as_str())
        .collect();
    assert_eq!(names, ["b", "a", "c", "d"]);
}

#[test]
fn the_command_gets_its_variables() {
    let text = "[env]\nWHO = a b\n[watcher:w]\ncopy_env = true\nnumprocesses = 4\n\
        cmd = run $(circus.wid) ((CIRCUS.WID)) --port 809$(circus.wid) '$(circus.env.who)' $(circus.env.who)\n  $(circus.numprocesses) $(circus.working_dir)\n\
        args = $WID $(circus.nope) \"\" \\$x\n";
    assert_eq!(
        argv(text),
        [
            "run",
            "3",
            "3",
            "--port",
            "8093",
            "a b",
            "a",
            "b",
            "4",
            "/srv",
            "$WID",
            "$(circus.nope)",
            "",
            "$x"
        ]
    );
}

#[test]
fn the_shell_gets_the_text_as_written() {
    let text = "[watcher:w]\nshell = true\ncmd = echo \"$X\" | tee\n  out_$(circus.wid) && exit\nshell_args = 'a b' c";
    assert_eq!(
        argv(text),
        [
            "/bin/sh",
            "-c",
            "echo \"$X\" | tee out_3 && exit",
            "a b",
            "c"
        ]
    );
}

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
    assert_eq!(spec.stdin, WorkerInput::Socket("circus.web".into()));
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
fn a_decimal_mask_is_read_as_circus_did_and_reported() {
    let config = config("[socket:a]\npath=/a\numask = 22");
    assert_eq!(config.sockets[0].umask, Some(0o26));
    assert_eq!(
        lines(&config.warnings),
        [(
            3,
            "umask 22: read as decimal as in Circus, so it is octal 026; write 026"
        )]
    );
}

#[test]
fn environment_reaches_the_worker_and_its_paths() {
    let config = config(
        "[env]\nA = 1\n[env:w*]\nB = $(circus.env.HOME) $HOME\n[watcher:web]\ncmd = x $(circus.env.b)\n\
         stdout_stream.filename = $(circus.env.B)/log\n",
    );
    let watcher = &config.watchers[0];
    let get = |name: &str| watcher.env.get(OsStr::new(name)).unwrap().to_str().unwrap();
    assert_eq!(
        (get("A"), get("B"), watcher.env.len()),
        ("1", "$(circus.env.HOME) /root", 2)
    );
    // Paths see the value before `$NAME` is replaced, the command the one after: Circus's two
    // stages.
    assert_eq!(
        watcher.stdout.file().unwrap().filename,
        Path::new("/srv/$(circus.env.HOME) $HOME/log")
    );
}

#[test]
fn every_mistake_is_reported_at_once_with_its_line() {
    let text = "\
[circus]
papa_endpoint = nowhere
namespace = a.b
nonsense
[watcher:w]
cmd = run 'open $(circus.sockets.nope)
numprocesses = many
stop_signal = NOPE
graceful_timeout = -1
uid = no-such-user-here
rlimit_files = 3
use_papa = perhaps
singleton = true
stdout_stream.class = my.Stream
stderr_stream.max_bytes = 5
hooks.before_start = a.b,
[watcher:W]
priority = 1
[socket:s]
port = 70000
family = AF_X
umask = 099
[socket:u]
family = AF_UNIX
";
    let found: Vec<(usize, String)> = errors(text)
        .into_iter()
        .map(|(line, text)| (line, text.chars().take(24).collect()))
        .collect();
    let expected = [
        (2, "papa_endpoint \"nowhere\": "),
        (3, "namespace \"a.b\": expecte"),
        (4, "found \"nonsense\", expect"),
        (6, "cmd: $(circus.sockets.no"),
        (6, "cmd \"run 'open $(circus."),
        (7, "numprocesses \"many\": exp"),
        (8, "stop_signal \"NOPE\": expe"),
        (9, "graceful_timeout \"-1\": e"),
        (10, "uid \"no-such-user-here\":"),
        (11, "rlimit_files: expected o"),
        (12, "use_papa \"perhaps\": expe"),
        (14, "stdout_stream.class \"my."),
        (15, "stderr_stream.filename i"),
        (16, "hooks.before_start \"a.b,"),
        (17, "[watcher:W] has no cmd, "),
        (17, "[watcher:W] has the same"),
        (20, "port \"70000\": expected a"),
        (21, "family \"AF_X\": expected "),
        (22, "umask \"099\": expected an"),
        (23, "[socket:u] has family AF"),
    ];
    let expected: Vec<_> = expected
        .iter()
        .map(|(line, text)| (*line, text.chars().take(24).collect::<String>()))
        .collect();
    assert_eq!(found, expected);
}

#[test]
fn what_has_no_effect_says_so() {
    let config = config(
        "[circus]\ncheck_delay = 5\nstatsd = true\nloglvel = info\n[watcher:w]\ncmd = x\nnumproceses = 3\nmax_age = 5\n\
         stdout_stream.filename = f\nstdout_stream.time_fromat = %Y\nhooks.before_start = a.b\n[plugin:flapping]\nuse = x\n[wacher:x]\nk = v\n[other]\nk = v\n",
    );
    let got: Vec<usize> = config
        .warnings
        .iter()
        .map(|warning| warning.origin.line())
        .collect();
    assert_eq!(got, [3, 4, 7, 10, 11, 12, 14, 16], "{:#?}", config.warnings);
    assert_eq!(config.plugins[0].options["use"], "x");
    assert_eq!(config.watchers[0].hooks[0].target, "a.b");
}

#[test]
fn names_the_kernel_refuses_are_refused_here() {
    let long = "n".repeat(250);
    for name in ["a:b", "", " a", long.as_str()] {
        assert_eq!(
            errors(&format!("[watcher:{name}]\ncmd = x")).len(),
            1,
            "{name}"
        );
    }
    assert_eq!(
        config("[watcher:two words.x]\ncmd = x").watchers[0].key,
        "two words.x"
    );
}

#[test]
fn worker_names_are_read_back() {
    let config = config("[watcher:web]\ncmd = x\n[watcher:web.api]\ncmd = x");
    let web = config.watcher("web").unwrap();
    assert_eq!(web.worker_number("circus", "circus.web.12"), Some(12));
    for other in [
        "circus.web.api.1",
        "circus.web.x",
        "circus.web.+1",
        "circus.web.01",
        "circusx.web.1",
        "circus.web",
    ] {
        assert_eq!(web.worker_number("circus", other), None, "{other}");
    }
    let api = config.watcher("web.api").unwrap();
    assert_eq!(api.worker_number("circus", "circus.web.api.1"), Some(1));
}

#[test]
fn endpoints_are_read_as_circus_wrote_them() {
    for (text, shown) in [
        ("ipc:///run/p", "unix:/run/p"),
        ("ipc://run/p", "unix:/run/p"),
        ("/run/p", "unix:/run/p"),
        ("unix:/run/p", "unix:/run/p"),
        ("@papa/0/1", "@papa/0/1"),
        ("tcp://127.0.0.1:20203", "tcp://127.0.0.1:20203"),
        ("tcp://[::1]:20203/", "tcp://[::1]:20203"),
    ] {
        assert_eq!(
            crate::values::circus::kernel_endpoint(text)
                .unwrap()
                .to_string(),
            shown
        );
    }
    for text in [
        "ipc:",
        "@",
        "tcp://x",
        "tcp://:1",
        "tcp://h:0",
        "tcp://h:x",
        "x",
    ] {
        assert!(
            crate::values::circus::kernel_endpoint(text).is_err(),
            "{text}"
        );
    }
}

#[test]
fn the_page_people_have_reads_without_errors() {
    // The shape of the sample on Circus's papa page.
    let config = config(
        "[circus]\nloglevel = info\n\n[watcher:nginx]\ncmd = /usr/sbin/nginx -p /srv -c /srv/nginx.conf\nwarmup_delay = 3\n\
         max_retry = 5\nsingleton = true\nsend_hup = true\nstop_signal = QUIT\nstdout_stream.class = FileStream\n\
         stdout_stream.filename = /var/logs/a.log\nstdout_stream.max_bytes = 10000000\nstdout_stream.backup_count = 10\n\
         active = true\nuse_papa = true\n\n[watcher:web_app]\ncmd = uwsgi --socket fd://$(circus.sockets.web) --stats 127.0.0.1:809$(circus.wid)\n\
         use_sockets = True\nhooks.after_spawn = examples.uwsgi.children_started\npriority = 40\n\n[socket:web]\npath = /srv/sock\nuse_papa = true\n\n\
         [plugin:flapping]\nuse = circus.plugins.flapping.Flapping\nwindow = 10\npriority = 1000\n",
    );
    assert_eq!(config.watchers[0].name, "web_app");
    // `active`, which Circus does not know either, and the hook.
    assert_eq!(config.warnings.len(), 2, "{:#?}", config.warnings);
    let judged = config.watchers[0].flapping.unwrap();
    assert_eq!((judged.attempts, judged.window.as_secs()), (2, 10));
}

#[test]
fn the_namespace_is_found_in_a_file_with_mistakes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.ini");
    let read = |text: &str| {
        fs::write(&path, text).unwrap();
        namespace_of(&path, &around())
    };
    assert_eq!(
        read("nonsense\n[circus]\nnamespace = prod\n[watcher:x]\n").unwrap(),
        "prod"
    );
    assert_eq!(read("").unwrap(), "circus");
    assert!(read("[circus]\nnamespace = a b").is_err());
    fs::remove_file(&path).unwrap();
    assert!(namespace_of(&path, &around()).is_err());
}

#[test]
fn a_name_the_kernel_takes_for_others_or_cannot_hold_is_refused() {
    assert!(name_fault("web*", 64).unwrap().contains("ends with `*`"));
    assert_eq!(name_fault("w*b", 64), None);
    // Two bytes as written, three in lower case.
    let grows = "Ⱥ".repeat(80);
    assert!(name_fault(&grows, 64).unwrap().contains("longer than 191"));
    assert_eq!(name_fault(&grows.to_lowercase(), 0), None);
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

#[test]
fn keys_that_say_nothing_were_passed_over_in_silence() {
    for (text, line, part) in [
        ("[socket:a]\npath =\n", 2, "path: is empty"),
        (
            "[socket:a]\npath = s\nport = 80\n",
            3,
            "port: has no effect",
        ),
        (
            "[socket:a]\nhost = ::1\npath = s\n",
            2,
            "host: has no effect",
        ),
        ("[socket:a]\nhost = fe80::1\n", 2, "interface = NAME"),
        (
            "[watcher:a]\ncmd = x --id $(circus.wid\n",
            2,
            "expected $(circus.wid)",
        ),
        (
            "[watcher:a]\ncmd = x ((circus.wid) y\n",
            2,
            "expected ((circus.wid))",
        ),
    ] {
        let config = config(text);
        let found = lines(&config.warnings);
        assert_eq!(found.len(), 1, "{text:?}: {found:?}");
        assert!(
            found[0].0 == line && found[0].1.contains(part),
            "{text:?}: {found:?}"
        );
    }
    let silent = "[socket:a]\nhost = fe80::1\ninterface = lo\n\
        [watcher:a]\ncmd = sh -c 'echo $((1 + 2)) $(date)'\nrlimit_as = -1\n";
    assert_eq!(lines(&config(silent).warnings), []);
}
