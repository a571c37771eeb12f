//! Whole files in, typed configuration or every mistake out.

use std::ffi::OsStr;
use std::fs;

use super::*;
use papa_protocol::process::{Account, Rlimit, Stdout};

use crate::render::render_worker;
use crate::types::{HealthProbe, Readiness, SocketFamily, SocketType, StreamConfig};
use crate::{KernelEndpoint, LogOutput};

mod beyond;
mod keys;
mod mistakes;
mod sockets;

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
    assert_eq!((spec.stdin_socket, spec.stdout), (None, Stdout::Pipe));
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
    assert_eq!(w.uid, Some(Account::Id(12)));
    assert_eq!(w.gid, Some(Account::Name("root".into())));
    assert_eq!(w.rlimits["nofile"], Rlimit::both(Some(4096)));
    assert_eq!(w.rlimits["core"], Rlimit::both(None));
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
