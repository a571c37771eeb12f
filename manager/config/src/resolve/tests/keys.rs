//! Keys that do not do what whoever wrote them expects, and warnings nobody needs.

use super::*;

fn warnings(text: &str) -> Vec<String> {
    let config = config(text);
    let warnings = config.warnings.iter();
    warnings.map(|problem| problem.message.clone()).collect()
}

#[track_caller]
fn one_warning(text: &str, parts: &[&str]) {
    let found = warnings(text);
    assert_eq!(found.len(), 1, "{text:?}: {found:#?}");
    for part in parts {
        assert!(found[0].contains(part), "{part:?} in {:?}", found[0]);
    }
}

#[test]
fn a_key_about_privilege_or_limits_that_has_no_effect_is_no_silence() {
    for key in [
        "user = nobody",
        "Group = x",
        "LimitNOFILE = 5",
        "mem_limit = 1g",
        "NoNewPrivileges = yes",
        "minfds = 9",
        "nice = 5",
        "capabilities = x",
    ] {
        let found = errors(&format!("[watcher:w]\ncmd = x\n{key}"));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(
            found[0].0 == 3 && found[0].1.contains("has no effect here; "),
            "{found:?}"
        );
    }
    // A section that comes by its keys through [DEFAULT] is no exception.
    assert_eq!(
        errors("[DEFAULT]\nuser = nobody\n[watcher:w]\ncmd = x").len(),
        1
    );
    assert_eq!(
        errors("[circus]\nuser = nobody\n[watcher:w]\ncmd = x").len(),
        1
    );
}

#[test]
fn foreign_keys_get_their_equivalent_and_unknown_ones_a_warning() {
    one_warning(
        "[watcher:w]\ncmd = x\nnumprocs = 3",
        &["supervisord", "use numprocesses"],
    );
    one_warning(
        "[watcher:w]\ncmd = x\nactive = yes",
        &["active is not known and has no effect"],
    );
    one_warning("[socket:s]\nport = 0\nbind = x", &["bind is not known"]);
    // A hook or a plugin may read it.
    let plugin = "[plugin:p]\nuse = my.Plugin\n[circus]\ncircus_warnings = no\n";
    assert_eq!(
        warnings(&format!("{plugin}[watcher:w]\ncmd = x\nbase_port = 3")),
        [""; 0]
    );
    let hook = "[circus]\ncircus_warnings = no\n";
    assert_eq!(
        warnings(&format!(
            "{hook}[watcher:w]\ncmd = x\nhooks.after_start = a.b\nbase_port = 3"
        )),
        [""; 0]
    );
    // Circus's flapping plugin is built in and reads none.
    let flapping = "[plugin:f]\nuse = circus.plugins.flapping.Flapping\n";
    one_warning(
        &format!("{flapping}[watcher:w]\ncmd = x\nbase_port = 3"),
        &["base_port"],
    );
}

#[test]
fn a_key_in_the_wrong_section_is_told_where_it_belongs() {
    one_warning(
        "[circus]\nnumprocesses = 3\n[watcher:w]\ncmd = x",
        &["numprocesses", "no effect in [circus]", "[watcher:NAME]"],
    );
    one_warning(
        "[watcher:w]\ncmd = x\nport = 80",
        &["port", "a key of [socket:NAME]"],
    );
    one_warning(
        "[watcher:w]\ncmd = x\n[env:w]\nworking_dir = /srv",
        &["working_dir becomes an environment variable in [env:w]"],
    );
    one_warning(
        "[watcher:w]\ncmd = x\n[program:y]\ncommand = y",
        &["supervisord", "[watcher:NAME]"],
    );
    assert_eq!(
        warnings("[DEFAULT]\nport = 0\n[socket:s]\nhost = 127.0.0.1\n[watcher:w]\ncmd = x"),
        [""; 0]
    );
}

#[test]
fn one_line_for_all_endpoints_and_none_for_what_is_off() {
    one_warning(
        "[circus]\nendpoint = tcp://127.0.0.1:5555\npubsub_endpoint = tcp://127.0.0.1:5556\n[watcher:w]\ncmd = x",
        &["endpoint, pubsub_endpoint are accepted but not active"],
    );
    assert_eq!(
        warnings(
            "[circus]\nhttpd = no\nhttpd_host = x\nhttpd_port = 80\nstatsd = False\nmulticast_endpoint =\ndebug_gc = 0\n[watcher:w]\ncmd = x\ncheck_flapping = no"
        ),
        [""; 0]
    );
    assert_eq!(
        warnings(
            "[circus]\ncircus_warnings = no\nendpoint = x\nstatsd = yes\nhttpd = yes\nhttpd_port = 1\n[watcher:w]\ncmd = x\nhooks.after_start = a.b\n[plugin:p]\nuse = x\n[socket:s]\npath = /x\numask = 22"
        ),
        [""; 0]
    );
}

#[test]
fn variables_that_nothing_replaces_are_named() {
    one_warning(
        "[watcher:w]\ncmd = x $(circus.env.NOPE)",
        &["cmd: $(circus.env.nope) is not set"],
    );
    one_warning(
        "[watcher:w]\ncmd = x $(circus.nope)",
        &["there is no $(circus.nope)"],
    );
    one_warning(
        "[watcher:w]\ncmd = x\nstdout_stream.filename = out$(circus.wid).log",
        &["$(circus.wid) is replaced in cmd, args"],
    );
    one_warning(
        "[env]\nP = $NOPE\n[watcher:w]\ncmd = x",
        &["$NOPE is not set and becomes nothing; write $$NOPE"],
    );
    assert_eq!(
        warnings(
            "[env]\nA = 1\nH = $HOME\n[watcher:w]\ncmd = x $(circus.wid) $(circus.env.A) $(circus.env.HOME) $(circus.uid)\nuid = 0"
        ),
        [""; 0]
    );
}

#[test]
fn what_only_a_shell_would_obey_is_named() {
    for (cmd, sign) in [
        ("a | b; c", "\"|\""),
        ("a && b", "\"&&\""),
        ("a > /tmp/x", "\">\""),
        ("a 2>&1", "\"2>&1\""),
        ("a; b", "\"a;\""),
        ("a &", "\"&\""),
        ("a $HOME/x", "\"$HOME/x\""),
        ("a ~/x", "\"~/x\""),
        ("a `b`", "\"`b`\""),
    ] {
        one_warning(
            &format!("[watcher:w]\ncmd = {cmd}"),
            &["cmd: ", sign, "shell = true"],
        );
    }
    for cmd in [
        "sh -c 'a | b; c'",
        "x http://h/?a=1&b=2",
        "x a\\;",
        "x \"$HOME\"",
        "x --price=5$ -",
        "x $(circus.env.HOME)",
    ] {
        assert_eq!(
            warnings(&format!("[watcher:w]\ncmd = {cmd}")),
            [""; 0],
            "{cmd}"
        );
    }
    let quiet = "[circus]\ncircus_warnings = no\n";
    assert_eq!(
        warnings(&format!("{quiet}[watcher:w]\nshell = yes\ncmd = a | b # c")),
        [""; 0]
    );
}

#[test]
fn comments_that_are_none_and_none_that_are_are_named() {
    one_warning(
        "[watcher:w]\ncmd = x # the server",
        &["cmd: ` #` belongs to the value"],
    );
    one_warning("[watcher:w]\ncmd = x '#a' # b", &["` #`"]);
    assert_eq!(
        warnings("[watcher:w]\ncmd = x '# a' --color #123\n"),
        [""; 0]
    );
    let cut = try_load("[watcher:w]\ncmd = sh -c \"a ; b\"\n").expect_err("a quote stays open");
    assert_eq!(lines(&cut.warnings)[0].0, 2);
    assert!(
        cut.warnings[0].message.contains("in quotes too"),
        "{:?}",
        cut.warnings
    );
    one_warning(
        "[env]\nA = \"x ; y\"\n[watcher:w]\ncmd = x",
        &["the value of \"A\" ends here"],
    );
    assert_eq!(
        warnings("[env]\nA = it's ; a note\n[watcher:w]\ncmd = x"),
        [""; 0]
    );
}

#[test]
fn a_file_that_is_no_configuration_is_one_error() {
    let mut program = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0];
    program.extend((0..60_000_u32).map(|number| (number * 7 % 251) as u8));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.ini");
    for (bytes, what) in [
        (program, "it is no text"),
        (
            b"services:\n  web:\n    image: x\n".to_vec(),
            "docker-compose",
        ),
        (b"[program:web]\ncommand = x\n".to_vec(), "supervisord"),
    ] {
        fs::write(&path, bytes).unwrap();
        let errors = load(&path, &around()).unwrap_err().errors;
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert!(errors[0].message.contains(what), "{errors:?}");
    }
    // Text of which nothing is INI has an end, too.
    fs::write(
        &path,
        "[circus]\n".to_owned() + &"what is this\n".repeat(500),
    )
    .unwrap();
    let errors = load(&path, &around()).unwrap_err().errors;
    assert_eq!(errors.len(), 21);
    assert!(
        errors
            .iter()
            .any(|error| error.message == "480 more lines are no INI either")
    );
    fs::write(&path, "[circus]\n").unwrap();
    let empty = load(&path, &around())
        .unwrap()
        .require_watchers(Path::new("x.ini"))
        .unwrap_err();
    assert!(
        empty
            .to_string()
            .starts_with("x.ini: there is no watcher in it"),
        "{empty}"
    );
    fs::write(&path, " \n# nothing\n").unwrap();
    let empty = load(&path, &around())
        .unwrap()
        .require_watchers(&path)
        .unwrap_err();
    assert!(empty.to_string().contains("the file is empty"), "{empty}");
}

#[test]
fn a_program_below_a_link_is_found_where_the_link_leads() {
    let dir = tempfile::tempdir().unwrap();
    let base = fs::canonicalize(dir.path()).unwrap();
    let (real, link) = (base.join("r1"), base.join("current"));
    fs::create_dir_all(real.join("bin")).unwrap();
    std::os::unix::fs::symlink(&real, &link).unwrap();
    let program = link.join("bin/run");
    let found = resolved_program(program.to_str().unwrap());
    assert_eq!(found.as_deref(), real.join("bin/run").to_str());
    for other in [
        "run",
        "./run",
        "/bin/sh",
        "/nope/run",
        real.join("bin/run").to_str().unwrap(),
    ] {
        assert_eq!(resolved_program(other), None, "{other}");
    }
}
