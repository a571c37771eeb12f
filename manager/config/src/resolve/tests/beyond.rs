//! What comes beyond Circus, what an existing file may notice, and arbitrary values.

use super::*;
use crate::known;

#[test]
fn what_comes_beyond_circus_arrives() {
    let config = config(
        "[socket:web]\nport = 0\n[watcher:db]\ncmd = x\n[watcher:w]\ncmd = x\nready = tcp:127.0.0.1:809$(circus.wid)\nready_timeout = 5\n\
         max_surge = 2\nmax_age = 60\nmax_age_variance = 5\non_demand = yes\nuse_sockets = yes\nhealth = command:check $(circus.numprocesses) $(circus.wid)\n\
         health_interval = 1\nhealth_timeout = 0.5\nhealth_retries = 4\nbackoff_first = 1\nbackoff_max = 2\nbackoff_reset = 3\n\
         numprocesses = 2\ndepends_on = DB,\n",
    );
    let w = config.watcher("w").unwrap();
    assert_eq!(
        w.ready,
        Some(Readiness::Tcp("127.0.0.1:809$(circus.wid)".into()))
    );
    assert_eq!((w.ready_timeout, w.max_surge), (Duration::from_secs(5), 2));
    assert_eq!(
        (w.max_age, w.max_age_variance),
        (Some(Duration::from_secs(60)), Duration::from_secs(5))
    );
    let health = w.health.as_ref().unwrap();
    assert_eq!(
        health.probe,
        HealthProbe::Command(["check", "2", "$(circus.wid)"].map(str::to_owned).into())
    );
    assert_eq!(
        (health.interval, health.timeout, health.retries),
        (Duration::from_secs(1), Duration::from_millis(500), 4)
    );
    assert_eq!(
        [w.backoff.first, w.backoff.max, w.backoff.reset].map(|time| time.as_secs()),
        [1, 2, 3]
    );
    assert!(w.on_demand && w.demand_sockets() == ["web"]);
    assert_eq!(w.depends_on, ["db"]);
    assert_eq!(w.flapping, None);
    assert_eq!(lines(&config.warnings), []);
}

#[test]
fn a_watcher_is_judged_flapping_by_its_own_keys_or_the_plugin() {
    let attempts = |text: &str| {
        let config = config(&format!("[watcher:w]\ncmd = x\n{text}"));
        config.watchers[0].flapping
    };
    assert_eq!(attempts(""), None);
    let own = attempts("flapping.attempts = 3\nflapping.max_retry = -1").unwrap();
    assert_eq!(
        (own.attempts, own.window, own.retry_in, own.max_retry),
        (3, Duration::from_secs(1), Duration::from_secs(7), None)
    );
    let plugin = "[plugin:any]\nuse = circus.plugins.flapping.Flapping\nattempts = 9\nwindow = 4\n";
    assert_eq!(attempts(plugin).unwrap().attempts, 9);
    let both = attempts(&format!("flapping.window = 2\n{plugin}")).unwrap();
    assert_eq!((both.attempts, both.window.as_secs()), (9, 2));
    assert_eq!(attempts(&format!("flapping.active = no\n{plugin}")), None);
    assert_eq!(attempts(&format!("{plugin}active = no")), None);
}

#[test]
fn dependencies_exist_and_do_not_run_in_circles() {
    let text = "[watcher:A]\ncmd = x\ndepends_on = b\n[watcher:b]\ncmd = x\ndepends_on = c,\td\n[watcher:c]\ncmd = x\ndepends_on = a\n\
        [watcher:d]\ncmd = x\ndepends_on = databse\n[watcher:database]\ncmd = x\ndepends_on = database none\n";
    let found = errors(text);
    assert_eq!(
        found,
        [
            (
                9,
                "depends_on \"a\": they wait for each other: A -> b -> c -> A".to_owned()
            ),
            (
                12,
                "depends_on \"databse\": did you mean database?".to_owned()
            ),
            (
                15,
                "depends_on \"none\": expected the name of a [watcher:NAME] section".to_owned()
            ),
            (
                15,
                "depends_on \"database\": they wait for each other: database -> database"
                    .to_owned()
            ),
        ]
    );
}

#[test]
fn what_cannot_work_is_refused() {
    for (text, begin) in [
        ("on_demand = yes", "on_demand: expected a socket"),
        (
            "max_surge = -1",
            "max_surge \"-1\": expected a whole number",
        ),
        ("ready_timeout = 0", "ready_timeout \"0\": expected seconds"),
        ("health = x", "health \"x\": expected tcp:HOST:PORT"),
        (
            "health_retries = 0",
            "health_retries \"0\": expected a whole",
        ),
        (
            "backoff_first = 60",
            "backoff_first 60: expected at most backoff_max, which is 30",
        ),
        (
            "flapping.attempts = 0",
            "flapping.attempts \"0\": expected a whole",
        ),
    ] {
        let found = errors(&format!("[watcher:w]\ncmd = x\n{text}"));
        assert!(
            found.len() == 1 && found[0].0 == 3 && found[0].1.starts_with(begin),
            "{found:?}"
        );
    }
}

#[test]
fn problems_point_at_the_value_or_the_key() {
    let errors = try_load("[watcher:w]\ncmd = x\n  --no-config\nstop_signal =   é\nmax_aeg=3")
        .expect_err("the signal is none");
    let shown = |problem: &crate::Problem| (problem.origin.line(), problem.origin.column());
    assert_eq!(shown(&errors.errors[0]), (4, 17));
    assert_eq!(shown(&errors.warnings[0]), (5, 1));
}

#[test]
fn what_an_existing_file_may_notice_is_said_unless_it_is_known() {
    let text = "[watcher:w]\nshell = yes\ncmd = a | b $WID\nuse_papa = 0\nexecutable = /bin/bash\nenv = x\n[socket:s]\npath = /s\numask = 022\n";
    let config_with = |circus: &str| {
        let config = config(&format!("{text}[circus]\n{circus}"));
        let lines: Vec<usize> = config.warnings.iter().map(|w| w.origin.line()).collect();
        (config.watchers[0].argv_template.clone(), lines)
    };
    assert_eq!(
        config_with(""),
        (
            ["/bin/bash", "-c", "a | b $WID"].map(str::to_owned).into(),
            vec![3, 3, 4, 5, 6, 9]
        )
    );
    assert_eq!(config_with("circus_warnings = no").1, [3, 6]);
}

#[test]
fn an_executable_replaces_the_first_word() {
    assert_eq!(argv("[watcher:w]\ncmd = a b\nexecutable = /c"), ["/c", "b"]);
}

#[test]
fn python_paths_need_copy_env_and_a_virtualenv() {
    let found = errors("[watcher:w]\ncmd = x\ncopy_path = yes\nvirtualenv = /no/such");
    let found: Vec<_> = found
        .iter()
        .map(|(line, text)| (*line, text.as_str()))
        .collect();
    assert_eq!(
        found,
        [
            (3, "copy_path needs copy_env = true"),
            (4, "virtualenv needs copy_env = true"),
            (
                4,
                "virtualenv \"/no/such\": expected a virtualenv with /no/such/lib/pythonX.Y/site-packages"
            ),
        ]
    );
}

#[test]
fn only_the_usual_protocol_can_be_named() {
    assert_eq!(config("[socket:s]\nproto = tcp").warnings.len(), 0);
    assert_eq!(
        errors("[socket:s]\nproto = sctp"),
        [(
            2,
            "proto \"sctp\": expected tcp, which it is without this key too".to_owned()
        )]
    );
}

#[test]
fn the_managers_own_files_are_absolute() {
    assert_eq!(config("[circus]\nlogoutput = stdout").log_output, None);
    let syslog = |text: &str| crate::values::circus::syslog_output(text);
    assert!(
        matches!(syslog("syslog:///dev/log?local3"), Ok(LogOutput::Syslog(config)) if config.facility == 19)
    );
    assert!(
        matches!(syslog("syslog://loghost:1"), Ok(LogOutput::Syslog(config)) if config.facility == 1)
    );
    for text in ["syslog:x", "syslog://", "syslog://h:0", "syslog://h?nope"] {
        assert!(syslog(text).is_err(), "{text}");
    }
    let config = config("[circus]\npidfile = m.pid\nlogoutput = log/m.log");
    assert_eq!(config.pidfile.as_deref(), Some(Path::new("/srv/m.pid")));
    assert_eq!(
        config.log_output,
        Some(LogOutput::File("/srv/log/m.log".into()))
    );
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]

    /// Every key with every odd value: mistakes, never a panic.
    #[test]
    fn arbitrary_values_never_panic(value in "(\\$\\(circus\\.(wid|sockets\\.x|env\\.HOME|cmd)\\)|tcp:|fd:|log:|delay:|http://|command:|syslog://|[0-9%'\"\\[\\]:/?,;=. é\\\\-]|-1|SIG|yes){0,8}") {
        let mut text = String::new();
        fn names<S>(table: &[known::Key<S>]) -> Vec<&'static str> {
            table.iter().map(|key| key.name).collect()
        }
        for (section, names) in [("circus", names(known::CIRCUS)), ("socket:x", names(known::SOCKET)), ("watcher:w", names(known::WATCHER)), ("plugin:p", names(known::PLUGIN))] {
            text.push_str(&format!("[{section}]\n"));
            for name in names {
                text.push_str(&format!("{name} = {value}\n"));
            }
        }
        for stream in known::STREAM {
            text.push_str(&format!("[watcher:{0}]\ncmd = x\nstdout_stream.{0} = {value}\n", stream.name));
        }
        let _ = try_load(&text);
    }
}

#[test]
fn a_blank_command_was_no_mistake_and_could_never_start() {
    for cmd in ["", "\"\"", "$(circus.env.NOTHING)"] {
        let found = errors(&format!(
            "[env]\nNOTHING =\n[watcher:w]\ncmd = {cmd}\nnumprocesses = 2\n"
        ));
        assert_eq!(found.len(), 1, "{cmd}: {found:?}");
        assert!(
            found[0].1.contains("has no cmd") || found[0].1.starts_with("cmd: expected"),
            "{cmd}: {found:?}"
        );
    }
}
