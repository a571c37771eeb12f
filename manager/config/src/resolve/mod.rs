//! From text to the typed configuration, with every mistake reported at once.
//!
//! Owns `[circus]`, the order of things and checks across sections; one watcher, its streams and
//! sockets have files of their own. Reads files, the given environment and the user database;
//! starts nothing.
//! Invariant: a `Config` is returned only if there was no error at all.
//! Source: Circus 0.17.2's `get_config`; manager/docs/ini.md.

mod address;
mod command;
pub mod depends;
mod identity;
mod keys;
mod probe;
mod python;
mod restarts;
mod socket;
mod stream;
mod watcher;

pub use crate::values::circus::namespace;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::environment::{self, Lookup, Variables};
use crate::fields::{Around, Fields};
use crate::include::{self, Loaded};
use crate::kept::KeptDocument;
use crate::known;
use crate::problem::{ConfigErrors, Findings, Origin};
use crate::raw::{RawConfig, RawSection};
use crate::scalar;
use crate::surroundings::Surroundings;
use crate::types::{
    Base, Config, DEFAULT_NAMESPACE, FlappingDefaults, HookConfig, PluginConfig, SocketConfig,
    WatcherConfig,
};

/// Longest name the kernel takes, in bytes.
pub const MAX_KERNEL_NAME_BYTES: usize = 255;

/// Where `path` is now, links followed; as it is written if nobody can say.
pub(super) fn resolved(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

/// A program that is reached through a link to a directory: where it is now. Its own name stays,
/// because programs look at it. None for a program that is looked for in `PATH` or in the working
/// directory, and for the system's own.
pub(super) fn resolved_program(program: &str) -> Option<String> {
    let path = Path::new(program);
    let (parent, name) = (path.parent()?, path.file_name()?);
    // /bin is a link on most systems, and where it leads does not change.
    let system = ["/bin", "/sbin", "/lib", "/lib64", "/usr"];
    if !path.is_absolute() || system.iter().any(|start| path.starts_with(start)) {
        return None;
    }
    let there = fs::canonicalize(parent).ok()?;
    if there == parent {
        return None;
    }
    there.join(name).into_os_string().into_string().ok()
}

/// Reads the configuration in `path`.
///
/// # Errors
/// Everything wrong in it and in the files it includes.
pub fn load(path: &Path, around: &Surroundings) -> Result<Config, ConfigErrors> {
    let (loaded, findings) = read_files(path, around);
    resolve(path, around, &loaded, findings)
}

/// The configuration in `path` as it was when `kept` was read from it.
///
/// # Errors
/// What was accepted then is not accepted any more: the surroundings or the rules have changed.
pub fn load_kept(
    path: &Path,
    around: &Surroundings,
    kept: &KeptDocument,
) -> Result<Config, ConfigErrors> {
    let loaded = Loaded {
        document: kept.to_document(path),
        files: vec![path.to_owned()],
        ..Loaded::default()
    };
    resolve(path, around, &loaded, Findings::default())
}

fn resolve(
    path: &Path,
    around: &Surroundings,
    loaded: &Loaded,
    mut findings: Findings,
) -> Result<Config, ConfigErrors> {
    let config_dir = directory_of(path, around);
    let variables = Variables::new(&loaded.document, &around.environment, &config_dir);
    let raw = RawConfig::new(&loaded.document, &mut findings);
    findings.differences_known = !circus_warnings(&raw, &variables, &mut findings);
    environment::report(&loaded.document, &variables, &mut findings);
    let (plugins, flapping) = plugins(&raw, &variables, around, &mut findings);
    let free_keys = raw.plugins.iter().any(|section| {
        let fields = Fields::new(&section.entries, &variables.global, &mut findings);
        !restarts::is_flapping_plugin(&fields)
    });
    let base = Arc::new(Base {
        document: loaded.document.clone(),
        variables,
        around: around.clone(),
        flapping,
        free_keys,
    });
    let mut config = circus_section(&raw, &base, &mut findings);
    config.plugins = plugins;
    config.path = around.directory.join(path);
    for section in &raw.sockets {
        config.sockets.extend(socket::resolve(
            section,
            &base.variables.global,
            around,
            &mut findings,
        ));
    }
    let mut watchers = Vec::new();
    for section in &raw.watchers {
        watchers.extend(one_watcher(&config, section, None, &mut findings));
    }
    check_names(&watchers, &config.sockets, &mut findings);
    address::settle(&mut config.sockets, &mut findings);
    depends::check(&watchers, &mut findings);
    watchers.sort_by(|a, b| {
        b.priority
            .cmp(&a.priority)
            .then_with(|| a.name.cmp(&b.name))
    });
    config.watchers = watchers;
    config.plugins.sort_by(|a, b| a.name.cmp(&b.name));
    let findings = in_file_order(findings, loaded);
    if !findings.errors.is_empty() {
        return Err(ConfigErrors {
            path: config.path,
            errors: findings.errors,
            warnings: findings.warnings,
        });
    }
    let absolute = |files: &[PathBuf]| {
        let files = files.iter();
        files.map(|file| around.directory.join(file)).collect()
    };
    config.files = absolute(&loaded.files);
    config.empty_files = absolute(&loaded.empty);
    config.patterns.clone_from(&loaded.patterns);
    config.warnings = findings.warnings;
    Ok(config)
}

/// One watcher of `config`, whose sockets are known. `env_given` replaces what the env sections
/// say.
pub fn one_watcher(
    config: &Config,
    section: &RawSection,
    env_given: Option<&BTreeMap<String, String>>,
    findings: &mut Findings,
) -> Option<WatcherConfig> {
    let context = watcher::Context {
        umask: config.umask,
        sockets: &config.sockets,
        variables: &config.base.variables,
        flapping: config.base.flapping,
        free_keys: config.base.free_keys,
        around: &config.base.around,
    };
    watcher::resolve(section, &context, env_given, findings)
}

/// `[plugin:NAME]`; what the flapping plugin's says of watchers.
fn plugins(
    raw: &RawConfig,
    variables: &Variables,
    surroundings: &Surroundings,
    findings: &mut Findings,
) -> (Vec<PluginConfig>, FlappingDefaults) {
    let mut plugins = Vec::new();
    let around = around(surroundings);
    let mut none = Fields::new(&[], &variables.global, findings);
    let mut flapping = restarts::flapping_plugin(&mut none, around);
    for section in &raw.plugins {
        let mut fields = Fields::new(&section.entries, &variables.global, findings);
        plugins.push(PluginConfig {
            name: section.name.clone(),
            options: fields.options(),
            origin: section.origin.clone(),
        });
        if restarts::is_flapping_plugin(&fields) {
            flapping = restarts::flapping_plugin(&mut fields, around);
        } else if fields.text("use").is_none() {
            findings.error(
                &section.origin,
                format!(
                    "[plugin:{}] has no use, expected the plugin's class",
                    section.name
                ),
            );
        } else {
            findings.differs(
                &section.origin,
                format!("[plugin:{}] is accepted but not yet active", section.name),
            );
        }
    }
    (plugins, flapping)
}

/// Where the main file is: absolute, and without the `.` of `papactl up ./file.ini`.
fn directory_of(path: &Path, around: &Surroundings) -> PathBuf {
    let path = around.directory.join(path);
    path.parent().unwrap_or(&path).components().collect()
}

fn read_files(path: &Path, around: &Surroundings) -> (Loaded, Findings) {
    let mut findings = Findings::default();
    let mut inherited = Lookup::default().with_config_dir(&directory_of(path, around));
    inherited.extend(&around.environment);
    let expand = |text: &str| inherited.expand(text);
    let loaded = include::load(path, &around.directory, expand, &mut findings);
    (loaded, findings)
}

/// Reads only the namespace of the configuration in `path`, so that a file with mistakes elsewhere
/// still tells which manager is meant.
///
/// # Errors
/// The file cannot be read, or its namespace is none.
pub fn namespace_of(path: &Path, around: &Surroundings) -> Result<String, ConfigErrors> {
    let (loaded, mut findings) = read_files(path, around);
    if !loaded.files.is_empty() {
        findings.errors.clear();
    }
    let config_dir = directory_of(path, around);
    let variables = Variables::new(&loaded.document, &around.environment, &config_dir);
    let entry = loaded.document.get("circus", "namespace").cloned();
    let mut fields = Fields::new(entry.as_slice(), &variables.global, &mut findings);
    let found = fields.parsed("namespace", namespace);
    if findings.errors.is_empty() {
        return Ok(found.unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned()));
    }
    Err(ConfigErrors {
        path: path.to_owned(),
        errors: findings.errors,
        warnings: Vec::new(),
    })
}

fn in_file_order(mut findings: Findings, loaded: &Loaded) -> Findings {
    let rank = |origin: &Origin| {
        let file = loaded.files.iter().position(|file| file == origin.file());
        (file, origin.line(), origin.column())
    };
    for problems in [&mut findings.errors, &mut findings.warnings] {
        problems.sort_by_key(|problem| rank(&problem.origin));
        problems.dedup();
    }
    findings
}

/// Whether to warn where a value means something else than in Circus.
fn circus_warnings(raw: &RawConfig, variables: &Variables, findings: &mut Findings) -> bool {
    Fields::new(&raw.circus, &variables.global, findings).boolean("circus_warnings", true)
}

fn circus_section(raw: &RawConfig, base: &Arc<Base>, findings: &mut Findings) -> Config {
    let mut fields = Fields::new(&raw.circus, &base.variables.global, findings);
    keys::report(
        &mut fields,
        keys::SectionKind::Circus,
        raw.circus_own,
        false,
    );
    keys::report_variables(&mut fields, |_| false);
    let mut config = Config {
        path: PathBuf::new(),
        files: Vec::new(),
        empty_files: Vec::new(),
        patterns: Vec::new(),
        kernel: None,
        namespace: String::new(),
        warmup_delay: Duration::ZERO,
        umask: None,
        pidfile: None,
        log_output: None,
        log_max_bytes: 0,
        log_level: String::new(),
        watchers: Vec::new(),
        sockets: Vec::new(),
        plugins: Vec::new(),
        options: fields.options(),
        warnings: Vec::new(),
        base: Arc::clone(base),
    };
    fields.fill(known::CIRCUS, "", &mut config, around(&base.around));
    config
}

/// What the values of sections that know no socket refer to.
fn around(surroundings: &Surroundings) -> Around<'_> {
    Around {
        directory: &surroundings.directory,
        sockets: &[],
    }
}

/// What a name in the kernel may not hold; none if `name` is fine. `room` bytes are taken by its
/// other parts.
pub fn name_fault(name: &str, room: usize) -> Option<String> {
    if name.is_empty() {
        Some("the name is empty".to_owned())
    } else if name.ends_with('*') {
        Some(format!(
            "the name {name:?} ends with `*`, which the kernel takes for all names that begin so"
        ))
    } else if name.len().max(name.to_lowercase().len()) + room > MAX_KERNEL_NAME_BYTES {
        Some(format!(
            "the name {name:?} is longer than {} bytes",
            MAX_KERNEL_NAME_BYTES - room
        ))
    } else if name.contains(|c: char| c.is_control() || c == ':') {
        Some(format!(
            "the name {name:?} holds `:` or a control character, which the kernel refuses"
        ))
    } else if name.trim() != name {
        Some(format!("the name {name:?} begins or ends with a space"))
    } else {
        None
    }
}

/// Names are compared lower-cased everywhere, so two that differ only in case would share their
/// workers.
fn check_names(watchers: &[WatcherConfig], sockets: &[SocketConfig], findings: &mut Findings) {
    for (index, watcher) in watchers.iter().enumerate() {
        if let Some(first) = watchers[..index]
            .iter()
            .find(|other| other.key == watcher.key)
        {
            findings.error(
                &watcher.origin,
                format!(
                    "[watcher:{}] has the same name as [watcher:{}] at {}; case does not count",
                    watcher.name, first.name, first.origin
                ),
            );
        }
    }
    for (index, socket) in sockets.iter().enumerate() {
        if let Some(first) = sockets[..index]
            .iter()
            .find(|other| other.name == socket.name)
        {
            findings.error(
                &socket.origin,
                format!(
                    "[socket:{}] has the same name as the one at {}; case does not count",
                    socket.name, first.origin
                ),
            );
        }
    }
}

/// `hooks.NAME = target[, ignore failure]`: kept, reported as not yet active.
pub fn hooks(fields: &mut Fields<'_>) -> Vec<HookConfig> {
    let mut hooks = Vec::new();
    for entry in fields.entries() {
        let Some(name) = entry.key.strip_prefix("hooks.") else {
            continue;
        };
        let value = fields.expand(&entry.value);
        let (target, flag) = match value.split_once(',') {
            Some((target, flag)) => (target.trim(), Some(flag)),
            None => (value.trim(), None),
        };
        let ignore_failure = match flag.map(scalar::boolean) {
            None => false,
            Some(Ok(flag)) => flag,
            Some(Err(expected)) => {
                fields.findings.error(
                    &entry.origin,
                    format!("{} {value:?}: after the comma, {expected}", entry.key),
                );
                continue;
            }
        };
        fields.findings.differs(
            &entry.origin,
            format!("{} is accepted but not yet active", entry.key),
        );
        hooks.push(HookConfig {
            name: name.to_owned(),
            target: target.to_owned(),
            ignore_failure,
            origin: entry.origin.clone(),
        });
    }
    hooks
}

#[cfg(test)]
mod tests;
