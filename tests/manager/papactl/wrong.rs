//! Command lines that are wrong, and the help that is asked for.

use super::*;

#[test]
fn wrong_arguments_are_usage_errors_and_say_what_is_accepted() {
    let stack = Stack::start(TWO);
    stack.wait_pids("web", 2);
    stack.wait_pids("worker", 1);
    for (line, expected) in [
        ("signal web zero HUP", "watcher zero not found"),
        ("incr web x", "watcher x not found"),
        ("status web nope", "watcher nope not found"),
        ("stop worker nope", "watcher nope not found"),
        ("kill web:7", "these run: 1, 2"),
    ] {
        let said = failed(&stack, line, 1);
        assert!(said.contains(expected), "papactl {line}: {said}");
    }
    assert_eq!(stack.state("worker"), "active", "nothing is done by halves");
    for (line, expected) in [
        ("frobnicate", "frobnicate"),
        ("set web numprocesses many", "a whole number"),
        ("set web numproceses 2", "did you mean"),
        ("set web cmd", "2"),
        ("set web a b c", "has no value"),
        ("get web", "KEY"),
        ("signal web NOPE", "expected a signal"),
        ("kill web --graceful-timeout -1", "graceful"),
        ("kill web --signum NOPE", "expected a signal"),
        ("reload --sequential --terminate", "terminate"),
        ("stop --match regex", "NAME"),
        ("add web", "CMD"),
        ("add web --set x=y -- sleep 5", "no option of add"),
        ("add --option x new sleep", "KEY=VALUE"),
        ("listen --since x", "number of an event"),
        ("completions nosuchshell", "bash"),
        ("status --timeout 0", "above 0"),
        ("status --namespace a.b/c", "namespace"),
        ("status --config nope.ini", "nope.ini"),
    ] {
        let said = failed(&stack, line, 2);
        assert!(said.contains(expected), "papactl {line}: {said}");
    }
}

#[test]
fn words_of_other_managers_were_answered_with_wrong_guesses() {
    let stack = Stack::start(TWO);
    for (word, expected) in [
        ("top", "papactl stats"),
        ("avail", "papactl options"),
        ("daemon-reload", "papactl reloadconfig"),
        ("monit", "papactl stats"),
        ("jlist", "papactl status --json"),
    ] {
        let said = failed(&stack, word, 2);
        assert!(
            said.contains(expected) && !said.contains("similar"),
            "{word}: {said}"
        );
    }
    assert!(
        failed(&stack, "statsu", 2).contains("stat"),
        "typing errors are clap's"
    );
}

#[test]
fn completions_and_help_need_no_manager() {
    let stack = Stack::start(TWO);
    for shell in ["bash", "zsh", "fish"] {
        assert!(
            done(&stack, &format!("completions {shell}")).contains("reloadconfig"),
            "{shell}"
        );
    }
    let help = done(&stack, "help reload");
    assert!(
        help.contains("Example") && help.contains("--sequential"),
        "{help}"
    );
    assert_eq!(done(&stack, "reopenlogs"), "ok\n");
}
