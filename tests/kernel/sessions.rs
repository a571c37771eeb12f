//! What a person at a telnet prompt meets: banner, prompt, words, abbreviations, errors,
//! pipelining, `quit`.

use std::time::Duration;

use papa_harness::{Classic, Kernel, wait_until};

/// Long enough for an answer that should not come.
const SILENCE: Duration = Duration::from_millis(150);

#[test]
fn the_banner_comes_first_and_an_empty_line_gives_a_prompt() {
    let kernel = Kernel::start();
    let mut client = kernel.classic();
    client.send("");
    assert_eq!(client.read_until("> "), "> ");
    client.send("   \r");
    assert_eq!(client.read_until("> "), "> ");
}

#[test]
fn the_unix_socket_speaks_the_same() {
    let kernel = Kernel::start();
    let mut client = Classic::unix(&kernel.socket_path());
    assert_eq!(client.ask("set a one"), "");
    assert_eq!(kernel.classic().ask("get a"), "one");
}

#[test]
fn every_word_may_be_abbreviated() {
    let kernel = Kernel::start();
    let mut client = kernel.classic();
    client.ask("se name value");
    for line in ["list values", "l v", "LIST VALUES", "li val", "l values n*"] {
        assert_eq!(client.ask(line), "name value", "{line}");
    }
    assert_eq!(client.ask("g name"), "value");
    assert_eq!(client.ask("r v name"), "");
    assert_eq!(client.ask("l v"), "");
}

#[test]
fn wrong_words_are_answered_with_what_is_accepted() {
    let kernel = Kernel::start();
    let mut client = kernel.classic();
    for (line, error) in [
        ("foo", "Unknown command \"foo\""),
        (
            "list",
            "\"list\" must be followed by one of: processes, sockets, values",
        ),
        (
            "l x",
            "Bad \"list\" command. The following word must be one of: processes, sockets, values",
        ),
        ("ex", "You cannot abbreviate \"exit-if-idle\""),
        ("watch", "\"watch\" must be followed by one of: processes"),
    ] {
        assert_eq!(client.ask_error(line), error, "{line}");
    }
    // Whoever types this wants to leave, not to end the kernel.
    client.send_bytes(b"exit\r\n").expect("it is there");
    assert_eq!(client.read_to_end(), "ok\n");
    assert_eq!(kernel.classic().ask("get nothing"), "");
}

#[test]
fn words_of_our_own_are_not_abbreviable() {
    let kernel = Kernel::start();
    let mut client = kernel.classic();
    for line in ["j", "js", "jso"] {
        assert_eq!(
            client.ask_error(line),
            format!("Unknown command \"{line}\""),
            "{line}"
        );
    }
}

#[test]
fn help_is_there_for_every_command() {
    let kernel = Kernel::start();
    let mut client = kernel.classic();
    for line in [
        "help",
        "help make process",
        "h l p",
        "help make socket",
        "help watch",
        "help remove",
        "help set",
        "help get",
        "help quit",
        "help exit-if-idle",
        "help json",
    ] {
        let text = client.ask(line);
        assert!(text.len() > 40, "{line} says only {text:?}");
        for row in text.lines() {
            assert!(row.chars().count() <= 80, "{line}: too wide: {row:?}");
        }
    }
    assert_eq!(client.ask("help zzz"), "Unknown command \"zzz\"");
}

#[test]
fn pipelined_lines_are_answered_in_order() {
    let kernel = Kernel::start();
    let mut client = kernel.classic();
    let lines: String = (0..500)
        .map(|number| format!("set n {number}\nget n\n"))
        .collect();
    client.send_bytes(lines.as_bytes()).unwrap();
    for number in 0..500 {
        assert_eq!(client.read_bytes(3), b"\n> ");
        assert_eq!(client.read_to("\n> "), format!("{number}\n> "));
    }
}

#[test]
fn a_line_may_come_in_single_bytes() {
    let kernel = Kernel::start();
    let mut client = kernel.classic();
    for byte in b"set piece meal\n" {
        client.send_bytes(&[*byte]).unwrap();
    }
    client.read_until("\n> ");
    assert_eq!(client.ask("get piece"), "meal");
}

#[test]
fn escaped_spaces_join_words() {
    let kernel = Kernel::start();
    let mut client = kernel.classic();
    client.ask("set a\\ b c\\ d   e");
    assert_eq!(client.ask("get a\\ b"), "c d e");
    assert_eq!(client.ask("list values"), "a b c d e");
}

#[test]
fn quit_says_ok_and_closes() {
    let kernel = Kernel::start();
    let mut client = kernel.classic();
    client.send("quit");
    assert_eq!(client.read_to_end(), "ok\n");
    let mut client = kernel.classic();
    client.send("q");
    assert_eq!(client.read_to_end(), "ok\n");
}

#[test]
fn a_half_closed_caller_gets_its_answers() {
    let kernel = Kernel::start();
    let mut client = kernel.classic();
    client.send("set half closed");
    client.send("get half");
    client.finish_sending();
    assert_eq!(client.read_to_end(), "\n> closed\n> ");
}

/// Nobody can say any more who a TCP caller was once it has gone, so it is not served; on either
/// transport it may not disturb the others.
#[test]
fn callers_that_send_and_go_at_once_do_no_harm() {
    let kernel = Kernel::start();
    let mut client = kernel.classic();
    for number in 0..100 {
        let mut gone = if number % 2 == 0 {
            Classic::unix_silent(&kernel.socket_path())
        } else {
            Classic::tcp_silent(kernel.port())
        };
        gone.send("list values");
        drop(gone);
        assert_eq!(client.ask("get none"), "");
    }
    wait_until("their sessions are gone", || {
        let status = kernel.json().ok("status", serde_json::json!({}));
        status["counts"]["sessions"] == 2
    });
}

#[test]
fn an_unfinished_line_runs_nothing() {
    let kernel = Kernel::start();
    let mut client = kernel.classic();
    client.send_bytes(b"set half line").unwrap();
    assert_eq!(client.read_within(SILENCE), "");
    drop(client);
    assert_eq!(kernel.classic().ask("get half"), "");
}
