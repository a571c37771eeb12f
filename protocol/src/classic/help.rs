//! What `help` answers: enough to work from with nothing but telnet.
//!
//! Owns the texts; every example runs as it stands. Lines stay within 80 columns.

use std::borrow::Cow;

use crate::classic::request::{Command, Found, look_up};

/// The text for the words after `help`. An unknown word is answered in words, not as an error, as
/// papa does.
pub(super) fn text(mut words: Vec<Cow<'_, str>>) -> Cow<'static, str> {
    if words.is_empty() {
        return Cow::Borrowed(TOPICS);
    }
    let first = words.remove(0);
    match look_up(first, &mut words) {
        Err(error) => Cow::Owned(format!("{error}\n")),
        Ok(Found::Group(group)) => Cow::Borrowed(match group.word {
            "list" => LIST,
            "make" => MAKE,
            "remove" => REMOVE,
            _ => WATCH,
        }),
        Ok(Found::Command(command)) => Cow::Borrowed(match command {
            Command::List(_) => LIST,
            Command::Remove(_) => REMOVE,
            Command::Watch => WATCH,
            Command::MakeSocket => MAKE_SOCKET,
            Command::MakeProcess => MAKE_PROCESS,
            Command::Set => SET,
            Command::Get => GET,
            Command::Help => HELP,
            Command::Quit => QUIT,
            Command::ExitIfIdle => EXIT_IF_IDLE,
            Command::Json => JSON,
        }),
    }
}

const TOPICS: &str = "\
Commands, each with an example that works as it stands:

    make process      start a process          make process tick /bin/sleep 60
    list processes    what runs, what ended    list processes
    watch processes   read captured output     watch processes tick
    remove processes  forget one               remove processes tick

    make socket       open a listening socket  make socket web port=8080
    list sockets      what is open             list sockets
    remove sockets    close one                remove sockets web

    set               keep a value             set color light\\ blue
    get               read it                  get color
    list values       all of them              list values
    remove values     forget one               remove values color

    json              switch this session to JSON, for programs
    exit-if-idle      end papa if it holds nothing
    quit              end this session
    help COMMAND      more, such as: help make process

Words may be shortened (\"l p\" is \"list processes\"), but for exit-if-idle and
json. Names select exactly, or by what they start with: web, web.*, *
A blank inside a word is typed as backslash and blank: light\\ blue
";

const LIST: &str = "\
list processes [NAME...]    list sockets [NAME...]    list values [NAME...]

One line for each, sorted; without names, all. A name ending in * selects by
what it starts with. Processes may also be named by PID, sockets by file number.

    list processes
    list processes circus.* 3698
    list sockets web 100
    list values circus.*

A process: tick pid=3698 running=True started=1795315366.978956 args=/bin/ls -l
  running=False: it has ended and waits to be watched or removed.
A socket:  web family=inet type=stream backlog=5 host=127.0.0.1 port=80
           fileno=100
  fileno: its number in every process that inherits it.
A value:   color light blue

Control characters are shown as escapes such as \\n or \\x1b.
";

const MAKE: &str = "\
make process NAME [key=value...] EXECUTABLE [ARGUMENT...]
make socket NAME [key=value...]

    make socket web port=8080
    make process tick bufsize=64k /bin/sleep 60

See \"help make process\" and \"help make socket\" for the keys.
";

const MAKE_SOCKET: &str = "\
make socket NAME [key=value...]

Opens a socket, bound and listening at once, that processes inherit and that
stays open whatever becomes of them. Asking again with the same keys answers
the socket there is.

    family=     unix, inet or inet6; unix if there is a path, otherwise inet
    type=       stream (default), dgram, seqpacket, raw or rdm
    backlog=    length of the accept queue (default 5)
  unix:
    path=       absolute path of the socket file; a stale one is replaced
    umask=      file mode mask as a decimal number: 18 is octal 022
  inet, inet6:
    port=       port number; 0 or none lets the system choose
    host=       address to bind; 127.0.0.1 or ::1 unless there is an interface
    interface=  accept only from this interface, such as eth0
    reuseport=1 give each process a socket of its own on the same port

    make socket web port=8080
    make socket app path=/tmp/app.sock umask=7
    make socket dns type=dgram port=5353

A process finds the socket by $(socket.web.fileno) or $(socket.web.port) in its
arguments:

    make process site /usr/bin/app --fd $(socket.web.fileno)
";

const MAKE_PROCESS: &str = "\
make process NAME [key=value...] EXECUTABLE [ARGUMENT...]

Starts a process in a session of its own, with the environment given here and
nothing else, reading from /dev/null. Asking again with the same words answers
the process there is, running or not. The keys end at the first word without =

    uid= gid=      user and group to run as, by number or name
    working_dir=   directory to start in
    bufsize=       how much unread output is kept: 1m (default), 64k, 2g;
                   0 keeps none (output= means the same)
    stdout=0       discard standard output
    stderr=0       discard standard error; stderr=stdout merges the two
    shell=1        run the words by /bin/sh -c
    watch=1        start watching at once
    env.NAME=      an environment variable
    rlimit.NAME=   a resource limit, such as rlimit.nofile=1024

    make process tick /bin/sleep 60
    make process greet env.WHO=you shell=1 echo\\ hello\\ $WHO
    make process id uid=65534 working_dir=/tmp watch=1 /usr/bin/id
    make process list rlimit.nofile=64 bufsize=64k /bin/ls -l /

In arguments $(socket.NAME.fileno) and $(socket.NAME.port) are replaced; all
sockets are inherited at their own numbers.
";

const REMOVE: &str = "\
remove processes [NAME...]    remove sockets NAME...    remove values NAME...

    remove processes tick
    remove processes 3698
    remove sockets web 100
    remove values circus.*

A removed process is not stopped: it runs on unwatched, what it wrote and nobody
read is dropped, and it leaves the list when it ends. Without names, all are
removed. A removed socket is closed here; processes that have it keep it.
";

const WATCH: &str = "\
watch processes [NAME...]

Sends captured output and exits as they happen; without names, of all processes
there are now. Each batch ends with \"] \":

    out:tick:1795315366.978956:6      standard output, 6 bytes follow
    hello
                                      (and a newline that is not among them)
    err:tick:1795315366.979120:3      standard error
    closed:tick:1795315367.001200:0   it ended: exit code, or -9 for signal 9

Press Enter to say that you have it all: papa then forgets it and sends the
next batch. Type q and Enter to say so and stop. A process whose end you have
acknowledged leaves the list. Names a manager has claimed can be looked at like
this too, but Enter then takes nothing away from the manager.

    watch processes tick
    watch processes circus.*
";

const SET: &str = "\
set NAME [WORD...]

Keeps the words, joined by single blanks, under a name until somebody changes
them. Without words the name is cleared.

    set color light\\ blue
    set color
";

const GET: &str = "\
get NAME

Answers the value kept under a name, or an empty line.

    get color
";

const HELP: &str = "\
help [COMMAND]

    help
    help make process
    h w
";

const QUIT: &str = "\
quit

Ends this session, as exit does. Processes, sockets and values stay.
";

const EXIT_IF_IDLE: &str = "\
exit-if-idle

Ends papa if there are no processes, sockets or values; otherwise it answers
\"not idle\". This one has to be typed in full.
";

const JSON: &str = "\
json

Switches this session, for good, to one JSON object per line: any bytes in any
argument, error codes, descriptors, and everything the classic words cannot say.
It has to be typed in full. papa answers with a line about itself. Then, line
by line:

    {\"id\":1,\"op\":\"process.make\",\"name\":\"tick\",\"argv\":[\"/bin/sleep\",\"60\"]}
    {\"id\":2,\"op\":\"process.list\"}
    {\"id\":3,\"op\":\"output.consume\",\"names\":[\"tick\"]}
    {\"id\":4,\"op\":\"process.remove\",\"names\":[\"tick\"]}
    {\"id\":5,\"op\":\"status\"}
";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::classic::{Request, parse};

    fn help(line: &str) -> Cow<'static, str> {
        match parse(line) {
            Ok(Some(Request::Help(text))) => text,
            other => panic!("{line}: {other:?}"),
        }
    }

    const LINES: [&str; 17] = [
        "help",
        "help list",
        "help list values",
        "help make",
        "help make socket",
        "help make process",
        "help remove",
        "help r s",
        "help watch",
        "help watch p",
        "help set",
        "help get",
        "help help",
        "help quit",
        "help exit-if-idle",
        "help json",
        "h l p",
    ];

    #[test]
    fn texts_fit_a_terminal_and_end_in_a_newline() {
        for line in LINES {
            let text = help(line);
            assert!(text.ends_with('\n'), "{line}");
            for text_line in text.lines() {
                assert!(text_line.chars().count() <= 80, "{line}: {text_line}");
                assert_eq!(text_line.trim_end(), text_line, "{line}");
            }
        }
    }

    #[test]
    fn every_example_parses() {
        let commands = [
            "list ", "make ", "remove ", "watch ", "set ", "get ", "help ", "h ",
        ];
        for line in LINES {
            for example in help(line)
                .lines()
                .filter_map(|text| text.strip_prefix("    "))
            {
                if example.starts_with('{') {
                    crate::json::Request::parse(example.as_bytes()).expect(example);
                } else if line != "help"
                    && commands.iter().any(|command| example.starts_with(command))
                {
                    parse(example).expect(example);
                }
            }
        }
    }

    #[test]
    fn unknown_topics_are_answered_not_refused() {
        assert_eq!(help("help zzz"), "Unknown command \"zzz\"\n");
        assert_eq!(
            help("h l zz"),
            "Bad \"list\" command. The following word must be one of: processes, sockets, values\n"
        );
        assert_eq!(help("h ex"), "You cannot abbreviate \"exit-if-idle\"\n");
    }
}
