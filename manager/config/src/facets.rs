//! A configuration taken apart into keys and comparable values.
//!
//! Owns which resolved value belongs to which key of a file, and whether a worker that runs already
//! is affected by it; `diff` compares. Every field of the resolved types appears, or is left out
//! with a reason.
//! Invariant: two values of one key are equal exactly if their texts are.

use std::path::PathBuf;
use std::time::Duration;

use crate::diff::Apply;
use crate::render::{WorkerOutput, render_worker};
use crate::resolve::{color_name, facility_name};
use crate::types::{
    Config, FileStreamConfig, HealthProbe, Identity, LogOutput, Readiness, RlimitValue, RotateWhen,
    SocketConfig, StreamConfig, WatcherConfig,
};
use crate::{scalar, words};

/// One key's value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facet {
    /// As in a file.
    pub key: String,
    /// For comparing and showing.
    pub value: String,
    /// What a difference asks for.
    pub apply: Apply,
    /// Not to be shown.
    pub secret: bool,
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "most callers pass what they have just made"
)]
fn in_place(key: impl Into<String>, value: impl ToString) -> Facet {
    Facet {
        key: key.into(),
        value: value.to_string(),
        apply: Apply::InPlace,
        secret: false,
    }
}

/// Part of what a worker is started with.
fn spec(key: impl Into<String>, value: impl ToString) -> Facet {
    Facet {
        apply: Apply::Roll,
        ..in_place(key, value)
    }
}

/// Keys of `[circus]` the manager reads when it starts.
pub fn of_manager(config: &Config) -> Vec<Facet> {
    let path =
        |path: Option<&PathBuf>| path.map_or(String::new(), |path| path.display().to_string());
    vec![
        in_place("namespace", &config.namespace),
        in_place(
            "papa_endpoint",
            config
                .kernel
                .as_ref()
                .map_or(String::new(), ToString::to_string),
        ),
        in_place("loglevel", &config.log_level),
        in_place("pidfile", path(config.pidfile.as_ref())),
        in_place("logoutput", log_output(config.log_output.as_ref())),
        in_place("logoutput_max_bytes", config.log_max_bytes),
    ]
}

/// Keys of `[circus]` that hold at once. `umask` is each watcher's.
pub fn of_settings(config: &Config) -> Vec<Facet> {
    vec![in_place("warmup_delay", seconds(config.warmup_delay))]
}

/// A socket. Name and place in the file are not its values.
pub fn of_socket(socket: &SocketConfig) -> Vec<Facet> {
    let path = socket.path.as_ref();
    vec![
        spec("family", socket.family.as_str()),
        spec("type", socket.kind.as_str()),
        spec(
            "path",
            path.map_or(String::new(), |path| path.display().to_string()),
        ),
        spec("umask", mask(socket.umask)),
        spec("host", text(socket.host.as_ref())),
        spec("port", text(socket.port.as_ref())),
        spec("interface", text(socket.interface.as_ref())),
        spec("backlog", socket.backlog),
        spec("so_reuseport", yes_no(socket.reuseport)),
        spec("blocking", yes_no(!socket.nonblocking)),
        spec("v6only", socket.v6only.map_or("", yes_no)),
        // Only how it is opened, and when it is given up.
        in_place("replace", yes_no(socket.replace)),
        in_place("use_papa", yes_no(socket.use_papa)),
    ]
}

/// A watcher. Inherited sockets are compared by `diff`, which knows what became of each.
pub fn of_watcher(watcher: &WatcherConfig) -> Vec<Facet> {
    let mut facets = spec_of(watcher);
    facets.extend(policy_of(watcher));
    facets.extend(options_of(watcher));
    facets
}

fn spec_of(watcher: &WatcherConfig) -> Vec<Facet> {
    // What the kernel is asked to start, but for the names of namespace and worker.
    let worker = render_worker(watcher, "", 1);
    let use_sockets = watcher.options.get("use_sockets");
    let mut facets = vec![
        spec("cmd", words::join(&watcher.argv_template)),
        spec("working_dir", watcher.resolved_dir.display()),
        spec("program", text(watcher.resolved_program.as_ref())),
        spec("uid", identity(watcher.uid.as_ref())),
        spec("gid", identity(watcher.gid.as_ref())),
        spec("umask", mask(watcher.umask)),
        spec(
            "use_sockets",
            yes_no(use_sockets.is_some_and(|text| scalar::boolean(text) == Ok(true))),
        ),
        spec("stdin_socket", text(watcher.stdin_socket.as_ref())),
        spec(
            "close_child_stdout",
            yes_no(worker.stdout == WorkerOutput::Null),
        ),
        spec(
            "close_child_stderr",
            yes_no(worker.stderr == WorkerOutput::Null),
        ),
        Facet {
            apply: if in_environment(watcher.ready.as_ref()) {
                Apply::Roll
            } else {
                Apply::InPlace
            },
            ..in_place(
                "ready",
                watcher.ready.as_ref().map_or(String::new(), readiness),
            )
        },
    ];
    facets.extend(watcher.rlimits.iter().map(|(name, limit)| {
        let value = match limit {
            RlimitValue::Limit(limit) => limit.to_string(),
            RlimitValue::Infinity => "unlimited".to_owned(),
        };
        spec(format!("rlimit_{name}"), value)
    }));
    // What follows from `uid` is compared as that.
    let written = watcher.env.iter().filter(|(name, _)| {
        let mut of_account = watcher.account_env.iter();
        !of_account.any(|variable| **name == **variable)
    });
    facets.extend(written.map(|(name, value)| Facet {
        secret: true,
        // Bytes that are no text still differ.
        ..spec(
            format!("env.{}", name.to_string_lossy()),
            format!("{value:?}"),
        )
    }));
    facets
}

/// The worker is told where to say that it is ready.
fn in_environment(ready: Option<&Readiness>) -> bool {
    matches!(ready, Some(Readiness::Notify | Readiness::Fd(_)))
}

fn policy_of(watcher: &WatcherConfig) -> Vec<Facet> {
    let mut facets = vec![
        in_place("name", &watcher.name),
        in_place("numprocesses", watcher.numprocesses),
        in_place("singleton", yes_no(watcher.singleton)),
        in_place("stop_signal", watcher.stop_signal),
        in_place("stop_children", yes_no(watcher.stop_children)),
        in_place("leave_children", yes_no(watcher.leave_children)),
        in_place("graceful_timeout", seconds(watcher.graceful_timeout)),
        in_place("send_hup", yes_no(watcher.send_hup)),
        in_place("respawn", yes_no(watcher.respawn)),
        in_place("max_retry", or_ever(watcher.max_retry)),
        in_place("autostart", yes_no(watcher.autostart)),
        in_place("priority", watcher.priority),
        in_place("warmup_delay", seconds(watcher.warmup_delay)),
        in_place("ready_timeout", seconds(watcher.ready_timeout)),
        in_place("max_surge", watcher.max_surge),
        in_place("orphans", watcher.orphans),
        in_place("max_age", seconds(watcher.max_age.unwrap_or_default())),
        in_place("max_age_variance", seconds(watcher.max_age_variance)),
        in_place("on_demand", yes_no(watcher.on_demand)),
        in_place("backoff_first", seconds(watcher.backoff.first)),
        in_place("backoff_max", seconds(watcher.backoff.max)),
        in_place("backoff_reset", seconds(watcher.backoff.reset)),
        in_place("depends_on", watcher.depends_on.join(", ")),
        in_place("use_papa", yes_no(watcher.use_papa)),
    ];
    facets.extend(stream("stdout_stream", &watcher.stdout));
    facets.extend(stream("stderr_stream", &watcher.stderr));
    if let Some(health) = &watcher.health {
        facets.extend([
            in_place("health", probe(&health.probe)),
            in_place("health_interval", seconds(health.interval)),
            in_place("health_timeout", seconds(health.timeout)),
            in_place("health_retries", health.retries),
        ]);
    }
    if let Some(flapping) = &watcher.flapping {
        facets.extend([
            in_place("flapping.attempts", flapping.attempts),
            in_place("flapping.window", seconds(flapping.window)),
            in_place("flapping.retry_in", seconds(flapping.retry_in)),
            in_place("flapping.max_retry", or_ever(flapping.max_retry)),
        ]);
    }
    facets.extend(watcher.hooks.iter().map(|hook| {
        in_place(
            format!("hooks.{}", hook.name),
            format!("{}, {}", hook.target, yes_no(hook.ignore_failure)),
        )
    }));
    facets
}

/// Keys nobody here knows; hooks and plugins may.
fn options_of(watcher: &WatcherConfig) -> impl Iterator<Item = Facet> {
    watcher
        .options
        .iter()
        .filter(|(key, _)| !crate::known::is_watcher_key(key))
        .map(|(key, value)| in_place(key.clone(), value))
}

fn log_output(output: Option<&LogOutput>) -> String {
    match output {
        None => String::new(),
        Some(LogOutput::File(path)) => path.display().to_string(),
        Some(LogOutput::Syslog(syslog)) => {
            format!(
                "syslog {}?{}",
                syslog.address,
                facility_name(syslog.facility)
            )
        }
    }
}

fn text(value: Option<&impl ToString>) -> String {
    value.map_or(String::new(), ToString::to_string)
}

fn yes_no(value: bool) -> &'static str {
    if value { "yes" } else { "no" }
}

fn seconds(duration: Duration) -> f64 {
    duration.as_secs_f64()
}

fn or_ever(number: Option<u32>) -> String {
    number.map_or("-1".to_owned(), |number| number.to_string())
}

fn mask(mask: Option<u32>) -> String {
    mask.map_or(String::new(), |mask| format!("{mask:03o}"))
}

fn identity(identity: Option<&Identity>) -> String {
    identity.map_or(String::new(), ToString::to_string)
}

fn readiness(ready: &Readiness) -> String {
    match ready {
        Readiness::Notify => "notify".to_owned(),
        Readiness::Fd(number) => format!("fd:{number}"),
        Readiness::Tcp(address) => format!("tcp:{address}"),
        Readiness::Http(url) => url.clone(),
        Readiness::Log(pattern) => format!("log:{pattern}"),
        Readiness::Delay(time) => format!("delay:{}", seconds(*time)),
    }
}

fn probe(probe: &HealthProbe) -> String {
    match probe {
        HealthProbe::Tcp(address) => format!("tcp:{address}"),
        HealthProbe::Http(url) => url.clone(),
        HealthProbe::Command(argv) => format!("command:{}", words::join(argv)),
    }
}

/// One facet for each option, as a file has it.
fn stream(prefix: &str, stream: &StreamConfig) -> Vec<Facet> {
    let mut options: Vec<(&str, String)> = Vec::new();
    let class = match stream {
        StreamConfig::Unset => "",
        StreamConfig::Null => "null",
        StreamConfig::Stdout => "StdoutStream",
        StreamConfig::Fancy(fancy) => {
            options.extend([
                ("color", fancy.color.map_or(String::new(), color_name)),
                ("time_format", fancy.time_format.clone()),
            ]);
            "FancyStdoutStream"
        }
        StreamConfig::Syslog(syslog) => {
            let format = if syslog.rfc5424 { "rfc5424" } else { "rfc3164" };
            options.extend([
                ("address", syslog.address.to_string()),
                ("facility", facility_name(syslog.facility)),
                ("format", format.to_owned()),
            ]);
            "syslog"
        }
        StreamConfig::File(file) => {
            options.extend(file_options(file));
            match (file.json, file.watch_path, &file.rotation) {
                (true, _, _) => "json",
                (_, true, _) => "WatchedFileStream",
                (_, _, Some(_)) => "TimedRotatingFileStream",
                _ => "FileStream",
            }
        }
    };
    options.push(("class", class.to_owned()));
    // So that going from no file to one shows only what is written.
    for (option, default) in [
        ("max_bytes", "0"),
        ("backup_count", "0"),
        ("time_format", ""),
        ("compress", "no"),
        ("mkdir", "no"),
    ] {
        if !options.iter().any(|(known, _)| *known == option) {
            options.push((option, default.to_owned()));
        }
    }
    options
        .into_iter()
        .map(|(option, value)| in_place(format!("{prefix}.{option}"), value))
        .collect()
}

fn file_options(file: &FileStreamConfig) -> Vec<(&'static str, String)> {
    let FileStreamConfig {
        filename,
        max_bytes,
        backup_count,
        time_format,
        watch_path: _,
        rotation,
        compress,
        mkdir,
        json,
        max_line_bytes,
    } = file;
    let mut options = vec![
        ("filename", filename.display().to_string()),
        ("max_bytes", max_bytes.to_string()),
        ("backup_count", backup_count.to_string()),
        ("time_format", time_format.clone().unwrap_or_default()),
        ("compress", if *compress { "gzip" } else { "no" }.to_owned()),
        ("mkdir", yes_no(*mkdir).to_owned()),
    ];
    if *json {
        options.push(("max_line_bytes", max_line_bytes.to_string()));
    }
    if let Some(rotation) = rotation {
        let when = match rotation.when {
            RotateWhen::Second => "S".to_owned(),
            RotateWhen::Minute => "M".to_owned(),
            RotateWhen::Hour => "H".to_owned(),
            RotateWhen::Day => "D".to_owned(),
            RotateWhen::Midnight => "MIDNIGHT".to_owned(),
            RotateWhen::Weekday(day) => format!("W{day}"),
        };
        options.extend([
            ("rotate_when", when),
            ("rotate_interval", rotation.interval.to_string()),
            ("utc", yes_no(rotation.utc).to_owned()),
        ]);
    }
    options
}
