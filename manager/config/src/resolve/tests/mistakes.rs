//! Every mistake and every key without effect is reported with its line.

use super::*;

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
fn a_name_the_kernel_takes_for_others_or_cannot_hold_is_refused() {
    assert!(name_fault("web*", 64).unwrap().contains("ends with `*`"));
    assert_eq!(name_fault("w*b", 64), None);
    // Two bytes as written, three in lower case.
    let grows = "Ⱥ".repeat(80);
    assert!(name_fault(&grows, 64).unwrap().contains("longer than 191"));
    assert_eq!(name_fault(&grows.to_lowercase(), 0), None);
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
