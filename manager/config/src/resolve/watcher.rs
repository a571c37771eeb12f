//! `[watcher:NAME]`.
//!
//! Owns what follows from several keys, and the keys whose values need more than their own text;
//! `known` reads the others. The defaults are Circus's but for `use_papa`: here every worker runs
//! in the kernel, and `use_papa = false` means that it is stopped when the manager quits.
//! Source: Circus 0.17.2's `watcher_defaults` and `Watcher`.

use std::collections::BTreeMap;

use papa_protocol::process::Rlimit;

use crate::environment::{Variables, WatcherVariables};
use crate::fields::{Around, Fields};
use crate::known;
use crate::problem::Findings;
use crate::raw::RawSection;
use crate::resolve::{
    command, hooks, identity, keys, name_fault, probe, python, resolved, resolved_program,
    restarts, stream,
};
use crate::scalar;
use crate::surroundings::Surroundings;
use crate::types::{FlappingDefaults, SocketConfig, WatcherConfig};

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
    keys::report(
        &mut fields,
        keys::SectionKind::Watcher,
        section.own,
        free_keys,
    );
    keys::report_variables(&mut fields, command::is_attribute);
    report_differences(&mut fields);
    python::resolve(&mut fields, copy_env, context.around, &mut environment);
    let mut watcher = WatcherConfig {
        key: name.to_lowercase(),
        origin: section.origin.clone(),
        env_given: env_given.cloned(),
        umask: context.umask,
        working_dir: fields
            .path("working_dir", &context.around.directory)
            .unwrap_or_else(|| context.around.directory.clone()),
        hooks: hooks(&mut fields),
        options: fields.options(),
        entries: section.entries.clone(),
        name,
        ..WatcherConfig::default()
    };
    watcher.resolved_dir = resolved(&watcher.working_dir);
    watcher.health = probe::unasked(&fields);
    let around = Around {
        directory: &context.around.directory,
        sockets: context.sockets,
    };
    fields.fill(known::WATCHER, "", &mut watcher, around);
    watcher.account_env = identity::set_account(watcher.uid.as_ref(), &written, &mut environment);
    last.extend(&environment);
    watcher.env = environment;
    let directory_text = watcher.working_dir.to_string_lossy().into_owned();
    // A blank one counts as none, as it does where the command is read.
    if fields.filled("cmd").is_none() {
        fields.findings.error(
            &section.origin,
            format!(
                "[watcher:{}] has no cmd, expected the command to run",
                watcher.name
            ),
        );
    }
    let argv = command::resolve(&mut fields, &last, &directory_text, context.sockets);
    watcher.argv_template = argv.unwrap_or_default();
    let program = watcher.argv_template.first();
    watcher.resolved_program = program.and_then(|program| resolved_program(program));
    watcher.health = probe::health(watcher.health, &mut fields, &last, &directory_text);
    watcher.stdout = stream::resolve(&mut fields, "stdout", around);
    watcher.stderr = stream::resolve(&mut fields, "stderr", around);
    watcher.rlimits = rlimits(&mut fields);
    watcher.flapping = restarts::flapping(&mut fields, context.flapping, around);
    if watcher.use_sockets {
        let names = context.sockets.iter().map(|socket| socket.name.clone());
        watcher.sockets = names.collect();
    }
    check(&watcher, &mut fields);
    Some(watcher)
}

/// Reports keys that contradict each other, and values that do something else than in Circus.
fn check(watcher: &WatcherConfig, fields: &mut Fields<'_>) {
    let numprocesses = watcher.numprocesses;
    if watcher.singleton
        && numprocesses > 1
        && let Some(origin) = fields.origin("numprocesses")
    {
        fields.findings.error(
            origin,
            format!("numprocesses {numprocesses}: expected 0 or 1, because of singleton = true"),
        );
    }
    restarts::check_backoff(&watcher.backoff, fields);
    if watcher.on_demand
        && watcher.demand_sockets().is_empty()
        && let Some(origin) = fields.origin("on_demand")
    {
        fields.findings.error(
            origin,
            "on_demand: expected a socket whose first connection starts it: use_sockets, stdin_socket or $(circus.sockets.NAME)",
        );
    }
    let stdin = fields.text("close_child_stdin");
    if stdin.is_some_and(|text| scalar::boolean(&text) == Ok(false))
        && let Some(origin) = fields.origin("close_child_stdin")
    {
        fields.findings.differs(
            origin,
            "close_child_stdin: standard input is always /dev/null, or stdin_socket",
        );
    }
    if !watcher.use_papa
        && let Some(origin) = fields.origin("use_papa")
    {
        fields.findings.differs(
            origin,
            "use_papa: these workers are stopped when the manager quits; Circus took every value for yes",
        );
    }
}

/// What an existing file may notice, and what Circus cannot be given.
fn report_differences(fields: &mut Fields<'_>) {
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

fn rlimits(fields: &mut Fields<'_>) -> BTreeMap<String, Rlimit> {
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
