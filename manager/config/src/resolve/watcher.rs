//! `[watcher:NAME]`.
//!
//! Owns a watcher's keys and defaults, which are Circus's but for `use_papa`: here every worker
//! runs in the kernel, and `use_papa = false` means that it is stopped when the manager quits.
//! Source: Circus 0.17.2's `watcher_defaults` and `Watcher`.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::environment::{Variables, WatcherVariables};
use crate::fields::Fields;
use crate::problem::Findings;
use crate::raw::RawSection;
use crate::resolve::restarts::FlappingDefaults;
use crate::resolve::{
    Surroundings, command, depends, hooks, identity, keys, name_fault, probe, python, resolved,
    resolved_program, restarts, stream,
};
use crate::scalar;
use crate::signal::{SignalNumber, UnknownSignal};
use crate::types::{RlimitValue, SocketConfig, WatcherConfig};

/// Most workers of one watcher.
pub(super) const MAX_WORKERS: i64 = 10_000;

/// Circus's default grace period.
const DEFAULT_GRACEFUL_TIMEOUT: Duration = Duration::from_secs(30);

/// Circus's default number of attempts to start a worker.
const DEFAULT_MAX_RETRY: i64 = 5;

/// Bytes of a kernel name left for the longest namespace, `.manager.ready-end.`, and a dot and the
/// worker's number.
const NAME_ROOM: usize = 64;

/// What a watcher depends on besides its own section.
pub(super) struct Context<'a> {
    pub(super) umask: Option<u32>,
    pub(super) sockets: &'a [SocketConfig],
    pub(super) variables: &'a Variables,
    pub(super) flapping: FlappingDefaults,
    pub(super) free_keys: bool,
    pub(super) around: &'a Surroundings,
}

/// Reads one watcher's section; none if it has no usable command.
pub(super) fn resolve(
    section: &RawSection,
    context: &Context<'_>,
    env_given: Option<&BTreeMap<String, String>>,
    findings: &mut Findings,
) -> Option<WatcherConfig> {
    // An option called `name` replaces the section's, as in Circus.
    let mut global = Fields::new(&section.entries, &context.variables.global, findings);
    let name = global
        .filled("name")
        .unwrap_or_else(|| section.name.clone());
    let copy_env = global.boolean("copy_env", false);
    let variables = context.variables.of_watcher(&name, copy_env, env_given);
    if let Some(fault) = name_fault(&name, NAME_ROOM) {
        findings.error(&section.origin, fault);
    }
    let WatcherVariables {
        raw,
        mut environment,
        written,
        mut last,
    } = variables;
    let mut fields = Fields::new(&section.entries, &raw, findings);
    let hooked = section
        .entries
        .iter()
        .any(|entry| entry.key.starts_with("hooks."));
    let free_keys = context.free_keys || hooked;
    keys::report(&mut fields, keys::Kind::Watcher, section.own, free_keys);
    keys::report_variables(&mut fields, command::is_attribute);
    report_differences(&mut fields);
    python::resolve(&mut fields, copy_env, context.around, &mut environment);
    let uid = identity::user(&mut fields);
    let account_env = identity::set_account(uid.as_ref(), &written, &mut environment);
    last.extend(&environment);
    // A blank one counts as none, as it does where the command is read.
    if fields.filled("cmd").is_none() {
        fields.findings.error(
            &section.origin,
            format!("[watcher:{name}] has no cmd, expected the command to run"),
        );
    }
    let working_dir = fields
        .path("working_dir", &context.around.directory)
        .unwrap_or_else(|| context.around.directory.clone());
    let directory_text = working_dir.to_string_lossy().into_owned();
    let argv_template = command::resolve(&mut fields, &last, &directory_text, context.sockets);
    let numprocesses = fields.whole("numprocesses", 0, MAX_WORKERS).unwrap_or(1);
    let singleton = fields.boolean("singleton", false);
    if singleton
        && numprocesses > 1
        && let Some(origin) = fields.origin("numprocesses")
    {
        fields.findings.error(
            origin,
            format!("numprocesses {numprocesses}: expected 0 or 1, because of singleton = true"),
        );
    }
    if !fields.boolean("close_child_stdin", true)
        && let Some(origin) = fields.origin("close_child_stdin")
    {
        fields.findings.differs(
            origin,
            "close_child_stdin: standard input is always /dev/null, or stdin_socket",
        );
    }
    let (ready, ready_timeout) = probe::readiness(&mut fields);
    let (max_age, max_age_variance) = restarts::max_age(&mut fields);
    let watcher = WatcherConfig {
        key: name.to_lowercase(),
        origin: section.origin.clone(),
        numprocesses,
        singleton,
        resolved_dir: resolved(&working_dir),
        resolved_program: argv_template
            .as_ref()
            .and_then(|argv| resolved_program(argv.first()?)),
        working_dir,
        env: environment,
        env_given: env_given.cloned(),
        account_env,
        uid,
        gid: identity::group(&mut fields),
        rlimits: rlimits(&mut fields),
        umask: fields
            .filled("umask")
            .and_then(|_| fields.parsed("umask", scalar::octal_mask))
            .or(context.umask),
        stop_signal: fields
            .parsed("stop_signal", |text| {
                text.parse()
                    .map_err(|error: UnknownSignal| error.to_string())
            })
            .unwrap_or(SignalNumber::TERM),
        stop_children: fields.boolean("stop_children", false),
        leave_children: fields.boolean("leave_children", false),
        graceful_timeout: fields.seconds("graceful_timeout", DEFAULT_GRACEFUL_TIMEOUT),
        send_hup: fields.boolean("send_hup", false),
        respawn: fields.boolean("respawn", true),
        // -1 means for ever.
        max_retry: u32::try_from(
            fields
                .whole("max_retry", -1, i64::from(i32::MAX))
                .unwrap_or(DEFAULT_MAX_RETRY),
        )
        .ok(),
        autostart: fields.boolean("autostart", true),
        priority: fields
            .whole("priority", i64::from(i32::MIN), i64::from(i32::MAX))
            .unwrap_or(0),
        warmup_delay: fields.seconds("warmup_delay", Duration::ZERO),
        ready,
        ready_timeout,
        orphans: fields
            .parsed("orphans", |text| text.parse())
            .unwrap_or_default(),
        max_surge: fields.whole("max_surge", 0, MAX_WORKERS).unwrap_or(1),
        max_age,
        max_age_variance,
        on_demand: fields.boolean("on_demand", false),
        health: probe::health(&mut fields, &last, &directory_text),
        backoff: restarts::backoff(&mut fields),
        flapping: restarts::flapping(&mut fields, context.flapping),
        depends_on: depends::names(&fields),
        use_papa: fields.boolean("use_papa", true),
        sockets: if fields.boolean("use_sockets", false) {
            context
                .sockets
                .iter()
                .map(|socket| socket.name.clone())
                .collect()
        } else {
            Vec::new()
        },
        stdin_socket: stdin_socket(&mut fields, context.sockets),
        stdout: stream::resolve(&mut fields, "stdout", context.around),
        stderr: stream::resolve(&mut fields, "stderr", context.around),
        argv_template: argv_template.unwrap_or_default(),
        hooks: hooks(&mut fields),
        options: fields.options(),
        entries: section.entries.clone(),
        name,
    };
    if watcher.on_demand
        && watcher.demand_sockets().is_empty()
        && let Some(origin) = fields.origin("on_demand")
    {
        fields.findings.error(
            origin,
            "on_demand: expected a socket whose first connection starts it: use_sockets, stdin_socket or $(circus.sockets.NAME)",
        );
    }
    Some(watcher)
}

/// What an existing file may notice, and what Circus cannot be given.
fn report_differences(fields: &mut Fields<'_>) {
    if let Some(origin) = fields.origin("use_papa")
        && !fields.boolean("use_papa", true)
    {
        fields.findings.differs(
            origin,
            "use_papa: these workers are stopped when the manager quits; Circus took every value for yes",
        );
    }
    // Without effect, but Circus refuses what is no boolean.
    fields.boolean("check_flapping", true);
    if let Some(origin) = fields.origin("executable") {
        fields
            .findings
            .differs(origin, "executable: is obeyed here; Circus ignored it");
    }
    if let Some(origin) = fields.origin("env") {
        fields.findings.warn(
            origin,
            "env: has no effect, as in Circus; expected a section [env:NAME]",
        );
    }
    for key in ["prereload_fn", "loop", "rlimits", "hooks"] {
        if let Some(origin) = fields.origin(key) {
            let hint = match key {
                "rlimits" => "expected keys like rlimit_nofile",
                "hooks" => "expected keys like hooks.before_start",
                _ => "no file can give this",
            };
            fields.findings.error(origin, format!("{key}: {hint}"));
        }
    }
}

fn rlimits(fields: &mut Fields<'_>) -> BTreeMap<String, RlimitValue> {
    let mut limits = BTreeMap::new();
    for entry in fields.entries() {
        let Some(name) = entry.key.strip_prefix("rlimit_") else {
            continue;
        };
        let name = name.to_lowercase();
        if !scalar::RLIMIT_NAMES.contains(&name.as_str()) {
            fields.findings.error(
                &entry.origin,
                format!(
                    "{}: expected one of rlimit_{}",
                    entry.key,
                    scalar::RLIMIT_NAMES.join(", rlimit_")
                ),
            );
        } else if let Some(value) = fields.parsed(&entry.key, scalar::rlimit) {
            limits.insert(name, value);
        }
    }
    limits
}

fn stdin_socket(fields: &mut Fields<'_>, sockets: &[SocketConfig]) -> Option<String> {
    fields.filled("stdin_socket")?;
    fields.parsed("stdin_socket", |text| {
        let name = text.trim().to_lowercase();
        if sockets.iter().any(|socket| socket.name == name) {
            Ok(name)
        } else {
            let known: Vec<_> = sockets.iter().map(|socket| socket.name.as_str()).collect();
            Err(format!(
                "expected the name of a [socket:NAME] section, one of {known:?}"
            ))
        }
    })
}
