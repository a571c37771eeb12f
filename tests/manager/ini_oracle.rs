//! Circus's own parser is the judge: every INI file of its source package must mean here what it
//! means there.
//!
//! Owns the comparison and, by name, the deliberate differences; manager/docs/circus.md lists the
//! same ones for people. Each file is read twice, without and with the variables some of them want.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use papa_manager::config::types::{SocketConfig, SocketFamily, SocketType};
use papa_manager::config::{
    Config, ConfigErrors, Problem, Surroundings, WatcherConfig, include, load, problem,
    render_worker, words,
};
use serde_json::{Map, Value};

use papa_harness::{Venv, skipped};

/// Files in the package; fewer would mean that we did not look everywhere.
const FILES: usize = 66;

/// Where relative paths begin on both sides.
const DIRECTORY: &str = "/";

/// The variables of both readings.
const ENVIRONMENTS: [&[(&str, &str)]; 2] = [
    &[("HOME", "/root"), ("PATH", "/bin")],
    &[
        ("HOME", "/root"),
        ("PATH", "/bin:/usr/bin"),
        ("circus_statsd", "True"),
        ("circus_stats_endpoint", "tcp://0.0.0.0:9876"),
    ],
];

/// Files read by Circus and refused here: what the refusal says, and what became of the watcher in
/// Circus.
const REFUSED_HERE: [(&str, &str, &str); 7] = [
    (
        "empty_include.ini",
        "cannot be read",
        "a directory that is not there is left out with a warning",
    ),
    (
        "find_hook_in_pythonpath.ini",
        "has no cmd",
        "an empty command cannot be started",
    ),
    (
        "hooks.ini",
        "has no cmd",
        "an empty command cannot be started",
    ),
    (
        "issue137.ini",
        "uid \"me\": expected the name",
        "starting fails five times",
    ),
    (
        "issue442.ini",
        "uid \"tarek\": expected the name",
        "starting fails five times",
    ),
    (
        "issue395.ini",
        "names no socket",
        "the command keeps the variable as text",
    ),
    (
        "virtualenv.ini",
        "virtualenv needs copy_env",
        "the watcher is left out with a warning",
    ),
];

/// Deliberate differences met on the way, by name; each must be met, or it is none.
#[derive(Default)]
struct Differences(BTreeSet<&'static str>);

const SHELL_TEXT: &str = "shell = true passes the text as written";
const SECTION_NAME: &str = "no variable `__name__`";
const REFUSED: &str = "what cannot work is refused at once";
const ALL: [&str; 3] = [SHELL_TEXT, SECTION_NAME, REFUSED];

#[test]
fn every_file_of_the_circus_package_means_the_same() {
    let Some(venv) = Venv::get() else { return };
    let files = match venv.circus_ini_files() {
        Ok(files) => files,
        Err(why) => return skipped(&why),
    };
    assert_eq!(files.len(), FILES);
    let mut differences = Differences::default();
    let mut faults = Vec::new();
    for variables in ENVIRONMENTS {
        let around = Surroundings {
            environment: variables
                .iter()
                .map(|(name, value)| ((*name).into(), (*value).into()))
                .collect(),
            directory: DIRECTORY.into(),
        };
        for (file, theirs) in files.iter().zip(ask_circus(&venv, variables, &files)) {
            let ours = load(file, &around);
            let mut comparison = Comparison {
                file,
                faults: &mut faults,
                differences: &mut differences,
            };
            comparison.sections(&theirs, &around);
            comparison.configuration(&theirs, ours);
        }
    }
    assert!(
        faults.is_empty(),
        "{} faults\n{}",
        faults.len(),
        faults.join("\n")
    );
    let page = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/circus.md"));
    for name in ALL {
        assert!(
            page.contains(name),
            "manager/docs/circus.md does not list {name:?}"
        );
    }
    let missed: Vec<_> = ALL
        .iter()
        .filter(|name| !differences.0.contains(*name))
        .collect();
    assert!(missed.is_empty(), "differences nobody meets: {missed:?}");
}

/// One file read by both.
struct Comparison<'a> {
    file: &'a Path,
    faults: &'a mut Vec<String>,
    differences: &'a mut Differences,
}

impl Comparison<'_> {
    fn same(&mut self, what: &str, circus: &Value, ours: &Value) {
        if !alike(circus, ours) {
            self.faults.push(format!(
                "{}: {what}: Circus has {circus}, we have {ours}",
                self.file.display()
            ));
        }
    }

    /// The grammar alone: sections, keys and texts as written.
    fn sections(&mut self, theirs: &Value, around: &Surroundings) {
        let Some(sections) = theirs.get("sections").and_then(Value::as_object) else {
            return;
        };
        let mut findings = problem::Findings::default();
        let read = include::load(self.file, &around.directory, str::to_owned, &mut findings);
        let mut ours = Map::new();
        for section in read.document.sections() {
            let entries = read.document.entries(section);
            let keys: Map<String, Value> = entries
                .map(|entry| (entry.key.clone(), entry.value.clone().into()))
                .collect();
            ours.insert(section.name.clone(), keys.into());
        }
        let mut theirs = sections.clone();
        for keys in theirs.values_mut().filter_map(Value::as_object_mut) {
            keys.remove("__name__");
        }
        self.same("sections", &theirs.into(), &ours.into());
    }

    fn configuration(&mut self, theirs: &Value, ours: Result<Config, ConfigErrors>) {
        if let Some(why) = theirs.get("refused") {
            match ours {
                Ok(_) => self
                    .faults
                    .push(format!("{}: Circus refuses it: {why}", self.file.display())),
                Err(errors) => assert!(
                    errors.errors.iter().all(names_a_place),
                    "{errors}: every refusal names file, line and column"
                ),
            }
            return;
        }
        let ours = match ours {
            Ok(ours) => ours,
            Err(errors) => {
                let name = self.file.file_name().unwrap_or_default();
                let expected = REFUSED_HERE
                    .iter()
                    .any(|(file, text, _)| name == *file && errors.to_string().contains(text));
                if expected {
                    self.differences.0.insert(REFUSED);
                } else {
                    self.faults.push(format!("we refuse it: {errors}"));
                }
                return;
            }
        };
        self.circus_section(&theirs["circus"], &ours);
        let names = |section: &str| -> Vec<String> {
            let object = theirs[section].as_object();
            object
                .map(|object| object.keys().cloned().collect())
                .unwrap_or_default()
        };
        let mut own: Vec<_> = ours
            .watchers
            .iter()
            .map(|watcher| watcher.name.clone())
            .collect();
        own.sort();
        self.same("watchers", &names("watchers").into(), &own.into());
        let sockets = by_name(&ours).into_iter();
        let sockets: Vec<_> = sockets.map(|socket| socket.name.clone()).collect();
        self.same("sockets", &names("sockets").into(), &sockets.into());
        for watcher in &ours.watchers {
            self.watcher(&theirs["watchers"][&watcher.name], watcher, &ours);
        }
        for socket in &ours.sockets {
            self.socket(&theirs["sockets"][&socket.name], socket);
        }
        for plugin in &ours.plugins {
            let entry = &theirs["plugins"][&format!("plugin:{}", plugin.name)];
            for (key, value) in &plugin.options {
                self.same(
                    &format!("[plugin:{}] {key}", plugin.name),
                    &text(&entry[key]),
                    &value.clone().into(),
                );
            }
        }
    }

    fn circus_section(&mut self, theirs: &Value, ours: &Config) {
        for (key, value) in &ours.options {
            // These become numbers and booleans in Circus.
            let typed = theirs[key].is_boolean() || theirs[key].is_number();
            if !typed && theirs.get(key).is_some() {
                self.same(
                    &format!("[circus] {key}"),
                    &theirs[key],
                    &value.clone().into(),
                );
            }
        }
        self.same("[circus] umask", &theirs["umask"], &ours.umask.into());
        self.same(
            "[circus] warmup_delay",
            &theirs["warmup_delay"],
            &ours.warmup_delay.as_secs_f64().into(),
        );
    }

    fn watcher(&mut self, theirs: &Value, watcher: &WatcherConfig, config: &Config) {
        let place = |what: &str| format!("[watcher:{}] {what}", watcher.name);
        // Every text Circus keeps, variables replaced.
        for (key, value) in &watcher.options {
            if theirs[key].is_string() {
                self.same(&place(key), &theirs[key], &value.clone().into());
            }
        }
        for (key, value) in typed_values(watcher) {
            self.same(&place(key), &theirs[key], &value);
        }
        for stream in ["stdout_stream", "stderr_stream"] {
            let prefix = format!("{stream}.");
            let own: Map<String, Value> = watcher
                .options
                .iter()
                .filter_map(|(key, value)| {
                    Some((key.strip_prefix(&prefix)?.to_owned(), value.clone().into()))
                })
                .collect();
            self.same(&place(stream), &theirs[stream], &own.into());
        }
        let mut environment = theirs["environment"].clone();
        if environment
            .as_object_mut()
            .is_some_and(|map| map.remove("__name__").is_some())
        {
            self.differences.0.insert(SECTION_NAME);
        }
        let own: Map<String, Value> = watcher
            .env
            .iter()
            .map(|(name, value)| {
                (
                    name.to_string_lossy().into(),
                    value.to_string_lossy().into(),
                )
            })
            .collect();
        self.same(&place("environment"), &environment, &own.into());
        self.command(&theirs["command"], watcher, config);
    }

    fn command(&mut self, theirs: &Value, watcher: &WatcherConfig, config: &Config) {
        let mut argv = render_worker(watcher, &config.namespace, 1).argv;
        for (index, socket) in by_name(config).into_iter().enumerate() {
            let variable = format!("$(socket.{}.fileno)", socket.kernel_name(&config.namespace));
            let number = (1000 + index).to_string();
            argv.iter_mut()
                .for_each(|word| *word = word.replace(&variable, &number));
        }
        let is_shell =
            argv.get(1).is_some_and(|word| word == "-c") && watcher.options.contains_key("shell");
        let Some(circus) = theirs["argv"].as_array() else {
            self.faults.push(format!(
                "{}: [watcher:{}]: Circus drops it: {theirs}",
                self.file.display(),
                watcher.name
            ));
            return;
        };
        let circus: Vec<String> = circus
            .iter()
            .map(|word| word.as_str().unwrap_or_default().to_owned())
            .collect();
        let what = format!("[watcher:{}] words", watcher.name);
        if is_shell {
            // The same words, but for the quotes around each.
            self.differences.0.insert(SHELL_TEXT);
            let split = |text: &str| words::split(text).unwrap_or_default();
            self.same(&what, &split(&circus[0]).into(), &split(&argv[2]).into());
            self.same(
                &what,
                &circus[1..].to_vec().into(),
                &argv[3..].to_vec().into(),
            );
        } else {
            self.same(&what, &circus.into(), &argv.into());
        }
    }

    fn socket(&mut self, theirs: &Value, socket: &SocketConfig) {
        let family = match socket.family {
            SocketFamily::Inet => nix::libc::AF_INET,
            SocketFamily::Inet6 => nix::libc::AF_INET6,
            SocketFamily::Unix => nix::libc::AF_UNIX,
        };
        let kind = match socket.kind {
            SocketType::Stream => nix::libc::SOCK_STREAM,
            SocketType::Dgram => nix::libc::SOCK_DGRAM,
            SocketType::Raw => nix::libc::SOCK_RAW,
            SocketType::Rdm => nix::libc::SOCK_RDM,
            SocketType::Seqpacket => nix::libc::SOCK_SEQPACKET,
        };
        let path = socket.path.as_ref().map(|path| path.to_string_lossy());
        let mut own: Vec<(&str, Value)> = vec![
            ("family", family.into()),
            ("type", kind.into()),
            ("host", socket.host.clone().into()),
            ("port", socket.port.into()),
            ("path", path.into()),
            ("backlog", socket.backlog.into()),
            ("interface", socket.interface.clone().into()),
            ("so_reuseport", socket.reuseport.into()),
        ];
        // Of an inet socket Circus keeps a mask nobody uses.
        own.extend(socket.umask.map(|umask| ("umask", umask.into())));
        for (key, value) in own {
            self.same(
                &format!("[socket:{}] {key}", socket.name),
                &theirs[key],
                &value,
            );
        }
    }
}

/// What Circus turns into numbers and booleans, under its own names.
fn typed_values(watcher: &WatcherConfig) -> Vec<(&'static str, Value)> {
    let rlimits: BTreeMap<String, i64> = watcher
        .rlimits
        .iter()
        .map(|(name, limit)| {
            let number = limit
                .soft
                .map_or(-1, |limit| i64::try_from(limit).unwrap_or(i64::MAX));
            (name.clone(), number)
        })
        .collect();
    let hooks: Map<String, Value> = watcher
        .hooks
        .iter()
        .map(|hook| {
            (
                hook.name.clone(),
                serde_json::json!([hook.target, hook.ignore_failure]),
            )
        })
        .collect();
    vec![
        ("numprocesses", watcher.numprocesses.into()),
        ("warmup_delay", watcher.warmup_delay.as_secs_f64().into()),
        ("on_demand", watcher.on_demand.into()),
        ("send_hup", watcher.send_hup.into()),
        ("stop_signal", watcher.stop_signal.number().into()),
        ("stop_children", watcher.stop_children.into()),
        ("max_retry", watcher.max_retry.map_or(-1, i64::from).into()),
        (
            "graceful_timeout",
            watcher.graceful_timeout.as_secs_f64().into(),
        ),
        ("priority", watcher.priority.into()),
        ("singleton", watcher.singleton.into()),
        ("respawn", watcher.respawn.into()),
        ("autostart", watcher.autostart.into()),
        ("rlimits", serde_json::json!(rlimits)),
        ("hooks", hooks.into()),
    ]
}

/// Equal, numbers by value: 5 is 5.0.
fn alike(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| alike(a, b))
        }
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len()
                && a.iter()
                    .all(|(key, a)| b.get(key).is_some_and(|b| alike(a, b)))
        }
        (a, b) => a == b,
    }
}

/// A plugin's priority is a number in Circus.
fn text(value: &Value) -> Value {
    match value {
        Value::Number(number) => number.to_string().into(),
        other => other.clone(),
    }
}

fn names_a_place(problem: &Problem) -> bool {
    problem.origin.line() > 0 && problem.origin.column() > 0
}

fn ask_circus(venv: &Venv, variables: &[(&str, &str)], files: &[PathBuf]) -> Vec<Value> {
    let environment: BTreeMap<_, _> = variables.iter().copied().collect();
    let script = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../tests/python/circus_config.py"
    );
    let output = Command::new(venv.python())
        .args(["-B", script])
        .arg(serde_json::to_string(&environment).unwrap())
        .arg(DIRECTORY)
        .args(files)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout).unwrap();
    let answers: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(answers.len(), files.len());
    answers
}

/// As Circus has them; ours stay as they are in the file.
fn by_name(config: &Config) -> Vec<&SocketConfig> {
    let mut sockets: Vec<&SocketConfig> = config.sockets.iter().collect();
    sockets.sort_by(|a, b| a.name.cmp(&b.name));
    sockets
}
