//! `[watcher:NAME]`.

use papa_protocol::process::Account;

use super::key::{self, Apply, Form, Key, MAX_WHOLE, OnChange, Written};
use super::{Inactive, MASK, NEVER_READ, PATH, TEXT, WORDS};
use crate::scalar;
use crate::types::{Readiness, StreamConfig, WatcherConfig};
use crate::values::watcher::{age, age_text, names, orphans, signal};
use crate::values::{identity, probe};
use crate::words;

type Section = WatcherConfig;

/// Most workers of one watcher.
pub const MAX_WORKERS: u32 = 10_000;
/// Most failures in a row that can be asked for.
const MAX_HEALTH_RETRIES: i64 = 1000;

const NAME_OR_NUMBER: Form = Form::Text("name or number");
const READY: &str = "`notify`, `fd:N`, `tcp:HOST:PORT`, `http://HOST[:PORT]/PATH`, `log:REGEX` or \
`delay:SECONDS`";
const PROBE: &str = "`tcp:HOST:PORT`, `http://HOST[:PORT]/PATH` or `command:WORDS`";

/// A setting of the health check, which is there only with `health`.
macro_rules! health {
    ($name:literal, $form:expr, $field:ident, $read:path, $show:path $(,)?) => {
        Key::new($name, $form).field(
            |watcher: &mut Section, written| {
                let value = $read(written.text)?;
                if let Some(health) = &mut watcher.health {
                    health.$field = value;
                }
                Ok(())
            },
            |watcher: &Section| watcher.health.as_ref().map(|health| $show(&health.$field)),
        )
    };
}

fn health_retries(text: &str) -> Result<u32, String> {
    key::to_number(text, 1, MAX_HEALTH_RETRIES)
}

/// The socket of that name, in any case.
fn socket_named(written: Written<'_>) -> Result<String, String> {
    let name = written.text.trim().to_lowercase();
    let mut names = written.sockets.iter().map(|socket| socket.name.as_str());
    if names.any(|known| known == name) {
        return Ok(name);
    }
    let names: Vec<_> = written.sockets.iter().map(|socket| &socket.name).collect();
    Err(format!(
        "expected the name of a [socket:NAME] section, one of {names:?}"
    ))
}

fn identity_text(identity: &Option<Account>) -> String {
    identity.as_ref().map_or(String::new(), ToString::to_string)
}

/// Keys of `[watcher:NAME]`.
pub const WATCHER: &[Key<WatcherConfig>] = &[
    // What runs.
    Key::new("cmd", WORDS)
        .show(|watcher: &Section| Some(words::join(&watcher.argv_template)))
        .change(OnChange::Roll)
        .without("required")
        .meaning("the command, split as a POSIX shell quotes words; nothing else is expanded")
        .example("uwsgi --ini app.ini"),
    Key::new("args", WORDS)
        .change(OnChange::Roll)
        .in_commands()
        .default("")
        .meaning("more words after those of `cmd`")
        .example("--port 809$(circus.wid)"),
    Key::new("shell", Form::YesNo)
        .change(OnChange::Roll)
        .in_commands()
        .default("no")
        .meaning("give the text of `cmd` and `args` to `/bin/sh -c` as written")
        .example("yes"),
    Key::new("shell_args", WORDS)
        .change(OnChange::Roll)
        .default("")
        .meaning("words after that text: `$0`, `$1` …")
        .example("web 1"),
    Key::new("executable", PATH)
        .change(OnChange::Roll)
        .without("the first word of `cmd`")
        .meaning(
            "the program to run in place of the first word of `cmd`, or in place of \
             `/bin/sh`",
        )
        .example("/opt/py/bin/python"),
    Key::new("working_dir", PATH)
        .show(|watcher: &Section| Some(key::path(&watcher.resolved_dir)))
        .change(OnChange::Roll)
        .without("the manager's")
        .meaning("where workers start")
        .example("/srv/app"),
    Key::new("name", TEXT)
        .show(|watcher: &Section| Some(watcher.name.clone()))
        .change(OnChange::By("another watcher", |_| Apply::InPlace))
        .without("the section's")
        .meaning("replaces the section's name")
        .example("web"),
    number!("numprocesses", 0, MAX_WORKERS as i64, numprocesses)
        .in_commands()
        .default("1")
        .meaning("how many workers")
        .example("4"),
    flag!("singleton", singleton)
        .in_commands()
        .default("no")
        .meaning("never more than one, not even during a reload")
        .example("yes"),
    value!("uid", NAME_OR_NUMBER, uid, identity::user, identity_text)
        .change(OnChange::Roll)
        .in_commands()
        .without("the kernel's")
        .meaning(
            "user of the workers; HOME, USER, LOGNAME and SHELL are that user's unless the \
             file sets them; a number without an account has none of them",
        )
        .example("www-data"),
    value!("gid", NAME_OR_NUMBER, gid, identity::group, identity_text)
        .change(OnChange::Roll)
        .in_commands()
        .without("the user's")
        .meaning("group of the workers")
        .example("www-data"),
    optional!("umask", MASK, umask, scalar::octal_mask, key::mask)
        .change(OnChange::Roll)
        .without("that of `[circus]`")
        .meaning("file mode mask of the workers (not in Circus)")
        .example("027"),
    Key::new("rlimit_NAME", Form::Text("number, or empty for none"))
        .change(OnChange::Roll)
        .without("inherited")
        .meaning("soft and hard resource limit: `rlimit_nofile`, `rlimit_core` …")
        .example("4096"),
    // Environment.
    Key::new("copy_env", Form::YesNo)
        .change(OnChange::Roll)
        .in_commands()
        .default("no")
        .meaning("workers inherit the manager's environment")
        .example("yes"),
    Key::new("copy_path", Form::YesNo)
        .change(OnChange::Roll)
        .default("no")
        .meaning(
            "needs `copy_env`: workers keep the manager's `PYTHONPATH` (Circus put its own \
             import path in front)",
        )
        .example("yes"),
    Key::new("virtualenv", PATH)
        .change(OnChange::Roll)
        .meaning(
            "needs `copy_env`: its `bin` comes first in `PATH`, its packages last in \
             `PYTHONPATH`",
        )
        .example("/srv/app/venv"),
    Key::new("virtualenv_py_ver", Form::Text("like `3.11`"))
        .change(OnChange::Roll)
        .without("the newest it has")
        .meaning("which Python of the virtualenv")
        .example("3.11"),
    // Sockets and standard streams.
    flag!("use_sockets", use_sockets)
        .change(OnChange::Roll)
        .in_commands()
        .default("no")
        .meaning("workers inherit every `[socket:…]`, in file order, and wait for those that cmd or args name, else for all")
        .example("yes"),
    Key::new("stdin_socket", Form::Text("name of a socket"))
        .field(
            |watcher: &mut Section, written| {
                watcher.stdin_socket = Some(socket_named(written)?);
                Ok(())
            },
            |watcher| Some(watcher.stdin_socket.clone().unwrap_or_default()),
        )
        .or_blank()
        .change(OnChange::Roll)
        .without("`/dev/null`")
        .meaning("the socket that becomes standard input")
        .example("web"),
    Key::new("stdout_stream.OPTION", Form::Text("see Streams"))
        .change(OnChange::By("see Streams", |_| Apply::InPlace))
        .without("the kernel keeps the latest")
        .meaning("where standard output goes")
        .example("out.log"),
    Key::new("stderr_stream.OPTION", Form::Text("see Streams"))
        .change(OnChange::By("see Streams", |_| Apply::InPlace))
        .without("the kernel keeps the latest")
        .meaning("where standard error goes")
        .example("err.log"),
    Key::new("close_child_stdout", Form::YesNo)
        .show(|watcher: &Section| Some(key::yes_no(&(watcher.stdout == StreamConfig::Null))))
        .change(OnChange::Roll)
        .default("no")
        .meaning("standard output goes to `/dev/null`")
        .example("yes"),
    Key::new("close_child_stderr", Form::YesNo)
        .show(|watcher: &Section| Some(key::yes_no(&(watcher.stderr == StreamConfig::Null))))
        .change(OnChange::Roll)
        .default("no")
        .meaning("standard error goes to `/dev/null`")
        .example("yes"),
    Key::new("close_child_stdin", Form::YesNo)
        .read(|_: &mut Section, written| scalar::boolean(written.text).map(drop))
        .change(OnChange::Never)
        .default("yes")
        .meaning(
            "standard input is `/dev/null`; `no` changes nothing, since there is no \
             terminal to read",
        )
        .example("yes"),
    // When.
    flag!("autostart", autostart)
        .in_commands()
        .default("yes")
        .meaning("started along with the manager")
        .example("no"),
    flag!("on_demand", on_demand)
        .default("no")
        .meaning("started by the first connection to a socket it uses")
        .example("yes"),
    number!("priority", -MAX_WHOLE - 1, MAX_WHOLE, priority)
        .in_commands()
        .default("0")
        .meaning("higher starts earlier; equal ones by name")
        .example("10"),
    Key::new(
        "depends_on",
        Form::Text("names of watchers, separated by commas or white space"),
    )
    .field(
        |watcher: &mut Section, written| {
            watcher.depends_on = names(written.text);
            Ok(())
        },
        |watcher| Some(watcher.depends_on.join(", ")),
    )
    .meaning("started when these are ready, stopped before them (not in Circus)")
    .example("db, cache"),
    seconds!("warmup_delay", warmup_delay)
        .in_commands()
        .default("0")
        .meaning("pause between the starts of two workers")
        .example("1"),
    optional!(
        "ready",
        Form::Text(READY),
        ready,
        probe::readiness,
        probe::readiness_text
    )
    .change(OnChange::By(
        "in place; rolling reload for `notify` and `fd:N`",
        |watcher| match watcher.ready {
            Some(Readiness::Notify | Readiness::Fd(_)) => Apply::Roll,
            _ => Apply::InPlace,
        },
    ))
    .without("as soon as it runs")
    .meaning("when a worker counts as serving (not in Circus)")
    .example("tcp:127.0.0.1:809$(circus.wid)"),
    period!("ready_timeout", ready_timeout)
        .default("30")
        .meaning("how long that may take (not in Circus)")
        .example("60"),
    // Stopping and reloading.
    value!(
        "stop_signal",
        Form::Signal,
        stop_signal,
        signal,
        ToString::to_string
    )
    .in_commands()
    .default("TERM")
    .meaning("what asks a worker to end: `QUIT`, `SIGINT`, `RTMIN+1`, a number")
    .example("QUIT"),
    flag!("stop_children", stop_children)
        .in_commands()
        .default("no")
        .meaning("the worker's direct children get the stop signal too")
        .example("yes"),
    flag!("leave_children", leave_children)
        .default("no")
        .meaning(
            "what a worker leaves running when it ends runs on; otherwise it is ended \
             before the worker's number is used again (not in Circus)",
        )
        .example("yes"),
    seconds!("graceful_timeout", graceful_timeout)
        .in_commands()
        .default("30")
        .meaning("then the worker and all below it are killed")
        .example("10"),
    flag!("send_hup", send_hup)
        .in_commands()
        .default("no")
        .meaning("reload by sending SIGHUP instead of replacing workers")
        .example("yes"),
    number!("max_surge", 0, MAX_WORKERS as i64, max_surge)
        .default("1")
        .meaning(
            "how many workers beyond `numprocesses` a rolling reload starts at once; 0: \
             one goes before one comes (not in Circus)",
        )
        .example("2"),
    flag!("use_papa", use_papa)
        .default("yes")
        .meaning("no: this watcher's workers are stopped when the manager quits")
        .example("no"),
    value!(
        "orphans",
        Form::Text("`end`, `wait` or `leave`"),
        orphans,
        orphans,
        ToString::to_string
    )
    .default("end")
    .meaning(
        "workers that a kernel lost together with its keeper left running: end them \
         before new ones start, wait for their end, or start beside them (not in \
         Circus)",
    )
    .example("wait"),
    // When workers end, age or fall ill.
    flag!("respawn", respawn)
        .in_commands()
        .default("yes")
        .meaning("a worker that ends is replaced")
        .example("no"),
    number_or_ever!("max_retry", max_retry)
        .in_commands()
        .default("5")
        .meaning("attempts when a worker cannot even be started")
        .example("10"),
    period!("backoff_first", backoff.first)
        .default("0.1")
        .meaning(
            "pause after the second quick end in a row; it doubles from there (not in \
             Circus)",
        )
        .example("1"),
    period!("backoff_max", backoff.max)
        .default("30")
        .meaning("longest such pause (not in Circus)")
        .example("60"),
    seconds!("backoff_reset", backoff.reset)
        .default("10")
        .meaning("a worker that ran so long was well, its end is no quick one (not in Circus)")
        .example("60"),
    Key::new("flapping.OPTION", Form::Text("see `[plugin:NAME]`"))
        .without("the plugin's")
        .meaning("`flapping.attempts` and so on; any of them turns the judging on")
        .example("3"),
    value!("max_age", Form::Seconds, max_age, age, age_text)
        .default("0")
        .meaning("age at which a worker is replaced; 0: never")
        .example("86400"),
    seconds!("max_age_variance", max_age_variance)
        .default("30")
        .meaning("random time on top of it, at most this, so that not all go at once")
        .example("600"),
    Key::new("health", Form::Text(PROBE))
        .show(|watcher: &Section| {
            watcher
                .health
                .as_ref()
                .map(|health| probe::health_text(&health.probe))
        })
        .meaning("how a running worker is asked whether it is well (not in Circus)")
        .example("http://127.0.0.1:8080/health"),
    health!(
        "health_interval",
        Form::Period,
        interval,
        scalar::period,
        key::seconds
    )
    .default("10")
    .meaning("from the end of one check to the next (not in Circus)")
    .example("5"),
    health!(
        "health_timeout",
        Form::Period,
        timeout,
        scalar::period,
        key::seconds
    )
    .default("5")
    .meaning("a check that takes longer has failed (not in Circus)")
    .example("2"),
    health!(
        "health_retries",
        Form::Number(1, MAX_HEALTH_RETRIES),
        retries,
        health_retries,
        ToString::to_string
    )
    .default("3")
    .meaning("after so many failures in a row the worker is replaced (not in Circus)")
    .example("5"),
    Key::new("hooks.NAME", Form::Text("`module.function[, yes or no]`"))
        .change(OnChange::Never)
        .meaning("a Python function; reported as not yet active")
        .example("app.hooks.started"),
    Key::inert("check_flapping", Form::YesNo, Inactive(NEVER_READ))
        .read(|_: &mut Section, written| scalar::boolean(written.text).map(drop))
        .meaning("a leftover of old Circus")
        .example("no"),
];
