//! Looks whether programs, directories and users that a configuration names exist.
//!
//! Owns these checks for `papactl check`. The file may be meant for another machine, or its
//! programs may be installed later, so each finding is a warning, and the configuration is read all
//! the same.
//! Leaves to others: what the file itself says (`resolve`). Reads the file system and the user
//! database; changes nothing.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read;
use std::net::{IpAddr, ToSocketAddrs};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use nix::unistd::User;
use papa_protocol::process::Account;

use crate::problem::{Origin, Problem};
use crate::types::{Config, LogOutput, SocketConfig, StreamConfig, WatcherConfig};
use crate::{render_worker, variables};

/// Where the kernel looks for programs when the worker's environment has no `PATH`.
const DEFAULT_PATH: &str = "/bin:/usr/bin";

/// Most names of hosts that are looked up at once.
const MAX_LOOKUPS: usize = 32;
/// How long all of them may take together.
const RESOLVER_PATIENCE: Duration = Duration::from_secs(2);

/// Most arguments of a command that are looked at as names of files.
const MAX_ARGUMENTS: usize = 32;

/// Longest first line of a script. Source: execve(2), "Interpreter scripts".
const MAX_SHEBANG_BYTES: usize = 255;

/// Lists what `config` names and the machine does not have, in file order.
#[must_use]
pub fn missing(config: &Config) -> Vec<Problem> {
    let mut found = BTreeSet::new();
    for watcher in &config.watchers {
        let faults = watcher_faults(config, watcher).into_iter();
        found.extend(faults.map(|(key, text)| Problem::new(&place(watcher, &key), text)));
    }
    for socket in &config.sockets {
        let directory = socket.path.as_ref().and_then(|path| path.parent());
        let faults = [
            directory
                .and_then(directory_fault)
                .map(|text| format!("path {text}")),
            path_fault(socket),
            interface_fault(socket),
        ];
        let faults = faults.into_iter().flatten();
        found.extend(faults.map(|text| Problem::new(&socket.origin, text)));
    }
    for (socket, text) in unresolved(&config.sockets) {
        found.insert(Problem::new(&socket.origin, text));
    }
    let log = match &config.log_output {
        Some(LogOutput::File(path)) => Some(path),
        _ => None,
    };
    for (key, path) in [("pidfile", config.pidfile.as_ref()), ("logoutput", log)] {
        if let Some(text) = path.and_then(|path| file_fault(path, false)) {
            let entry = config.base.document.get("circus", key);
            let whole = Origin::whole(&config.path);
            let origin = entry.map_or(&whole, |entry| &entry.value_origin);
            found.insert(Problem::new(origin, format!("{key} {text}")));
        }
    }
    found.into_iter().collect()
}

/// Lists what a watcher names and the machine does not have, each with its key.
fn watcher_faults(config: &Config, watcher: &WatcherConfig) -> Vec<(String, String)> {
    let mut faults = Vec::new();
    let mut report = |key: &str, text: String| faults.push((key.to_owned(), text));
    if let Some(text) = directory_fault(&watcher.working_dir) {
        report("working_dir", format!("working_dir {text}"));
    }
    // Relative programs begin there; without it there is nothing to look for.
    else if let Some(text) = program_fault(config, watcher) {
        report(program_key(watcher), text);
    }
    if let (Some(Account::Id(number)), None) = (&watcher.uid, &watcher.gid)
        && matches!(User::from_uid((*number).into()), Ok(None))
    {
        report(
            "uid",
            format!(
                "uid {number}: no user of this system has this number, so its group is unknown; write gid too"
            ),
        );
    }
    for (stream, name) in [(&watcher.stdout, "stdout"), (&watcher.stderr, "stderr")] {
        if let StreamConfig::File(file) = stream
            && let Some(text) = file_fault(&file.filename, file.mkdir)
        {
            let key = format!("{name}_stream.filename");
            let hint = if file.filename.is_dir() {
                String::new()
            } else {
                format!("; make it, or write {name}_stream.mkdir = yes")
            };
            report(&key, format!("{key} {text}{hint}"));
        }
    }
    faults
}

/// Where `key` is written; its section if it is not.
fn place(watcher: &WatcherConfig, key: &str) -> Origin {
    let mut entries = watcher.entries.iter();
    entries.find(|entry| entry.key == key).map_or_else(
        || watcher.origin.clone(),
        |entry| entry.value_origin.clone(),
    )
}

fn program_key(watcher: &WatcherConfig) -> &'static str {
    if watcher.options.contains_key("executable") {
        "executable"
    } else {
        "cmd"
    }
}

fn directory_fault(path: &Path) -> Option<String> {
    let text = format!("{:?}", path.display().to_string());
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => None,
        Ok(_) => Some(format!("{text}: is no directory")),
        Err(error) => Some(format!("{text}: {}", words(&error))),
    }
}

/// Something else than a socket has the path.
fn path_fault(socket: &SocketConfig) -> Option<String> {
    let path = socket.path.as_ref()?;
    let kind = fs::metadata(path).ok()?.file_type();
    if kind.is_socket() {
        return None;
    }
    let what = if kind.is_dir() {
        "is a directory"
    } else {
        "is a file and no socket"
    };
    let path = path.display().to_string();
    Some(format!(
        "path {path:?}: {what}; remove it, or write another path"
    ))
}

/// There is no such network interface here.
fn interface_fault(socket: &SocketConfig) -> Option<String> {
    let name = socket.interface.as_ref()?.trim();
    let devices = fs::read_to_string("/proc/net/dev").ok()?;
    let mut names = devices.lines().filter_map(|line| line.split_once(':'));
    if names.any(|(known, _)| known.trim() == name) {
        return None;
    }
    Some(format!(
        "interface {name:?}: this machine has no such network interface"
    ))
}

/// Names of hosts that lead to no address now. A resolver that takes its time is not waited for.
fn unresolved(sockets: &[SocketConfig]) -> Vec<(&SocketConfig, String)> {
    let (sender, answers) = mpsc::channel();
    let mut asked = 0;
    for (index, socket) in sockets.iter().enumerate() {
        let (Some(host), None) = (&socket.host, &socket.path) else {
            continue;
        };
        if host.parse::<IpAddr>().is_ok() {
            continue;
        }
        let (sender, host) = (sender.clone(), host.clone());
        let looking = move || {
            let error = (host.as_str(), 0).to_socket_addrs().err();
            // Nobody waits any more, which is as good.
            let _ = sender.send((index, host, error));
        };
        if asked < MAX_LOOKUPS && thread::Builder::new().spawn(looking).is_ok() {
            asked += 1;
        }
    }
    let until = Instant::now() + RESOLVER_PATIENCE;
    let mut found = Vec::new();
    for _ in 0..asked {
        let left = until.saturating_duration_since(Instant::now());
        let Ok((index, host, error)) = answers.recv_timeout(left) else {
            break;
        };
        if let (Some(error), Some(socket)) = (error, sockets.get(index)) {
            let text = format!(
                "host {host:?}: leads to no address now ({}); the socket waits until it does",
                words(&error)
            );
            found.push((socket, text));
        }
    }
    found
}

/// What is wrong with the place of a file that is to be written.
fn file_fault(path: &Path, made: bool) -> Option<String> {
    if path.is_dir() {
        return Some(format!(
            "{:?}: is a directory, expected a file",
            path.display().to_string()
        ));
    }
    let directory = path.parent()?;
    if made && !directory.exists() {
        return None;
    }
    directory_fault(directory).map(|text| format!("directory {text}"))
}

/// An error without its number.
fn words(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "does not exist".to_owned(),
        std::io::ErrorKind::PermissionDenied => "cannot be looked at: permission denied".to_owned(),
        _ => format!("cannot be looked at: {error}"),
    }
}

fn program_fault(config: &Config, watcher: &WatcherConfig) -> Option<String> {
    let worker = render_worker(watcher, &config.namespace, 1);
    let program = worker.argv.first()?;
    let key = program_key(watcher);
    // Replaced by the kernel only.
    if !variables::keys(program).is_empty() || program.contains("$(socket.") {
        return None;
    }
    let listed = program.contains('/');
    let path = worker.env.get(OsStr::new("PATH"));
    let found = if listed {
        Some(watcher.working_dir.join(program))
    } else {
        let path = path.map_or(OsStr::new(DEFAULT_PATH), |path| path.as_os_str());
        search(path, program, &watcher.working_dir)
    };
    let Some(found) = found else {
        let place = if path.is_some() {
            "no directory of the workers' PATH has it".to_owned()
        } else {
            format!(
                "{DEFAULT_PATH} does not have it, where programs are looked for when [env] has no PATH"
            )
        };
        let ours = config.base.around.environment.get(OsStr::new("PATH"));
        let elsewhere = ours.and_then(|ours| search(ours, program, &watcher.working_dir));
        let hint = elsewhere.map_or(String::new(), |found| {
            format!(
                "; yours has {}: write that, or copy_env = yes",
                found.display()
            )
        });
        return Some(format!("{key} {program:?}: {place}{hint}"));
    };
    match fs::metadata(&found) {
        Err(error) => Some(format!(
            "{key} {:?}: {}",
            found.display().to_string(),
            words(&error)
        )),
        Ok(metadata) if metadata.is_dir() => Some(format!(
            "{key} {:?}: is a directory, expected a program",
            found.display().to_string()
        )),
        Ok(metadata) if metadata.permissions().mode() & 0o111 == 0 => Some(format!(
            "{key} {:?}: is not executable; chmod +x, or put its interpreter first",
            found.display().to_string()
        )),
        Ok(_) => interpreter_fault(&found, key),
    }
}

/// When the program of a watcher, or a file that its arguments name, was changed last (content,
/// name or permissions), or the directory it starts in was made; in milliseconds since the epoch.
/// None where program or directory are missing.
#[must_use]
pub fn changed_ms(watcher: &WatcherConfig, namespace: &str) -> Option<u64> {
    let directory = fs::metadata(&watcher.working_dir).ok()?;
    let program = fs::metadata(program_of(watcher, namespace)?).ok()?;
    let changed = |found: &fs::Metadata| {
        let seconds = u64::try_from(found.ctime()).ok()?;
        let ms = u64::try_from(found.ctime_nsec() / 1_000_000).ok()?;
        seconds.checked_mul(1000)?.checked_add(ms)
    };
    // Its own times change with every file that is made in it.
    let made = directory.created().ok();
    let made = made.and_then(|made| made.duration_since(SystemTime::UNIX_EPOCH).ok());
    let made = made.and_then(|made| u64::try_from(made.as_millis()).ok());
    let arguments = watcher.argv_template.iter().skip(1).take(MAX_ARGUMENTS);
    let arguments = arguments
        .filter_map(|word| fs::metadata(watcher.working_dir.join(word)).ok())
        .filter(fs::Metadata::is_file)
        .filter_map(|found| changed(&found));
    arguments.chain(made).chain(changed(&program)).max()
}

/// Where the program of a watcher is, as the kernel looks for it.
fn program_of(watcher: &WatcherConfig, namespace: &str) -> Option<PathBuf> {
    let worker = render_worker(watcher, namespace, 1);
    let program = worker.argv.first()?;
    if program.contains('/') {
        return Some(watcher.working_dir.join(program));
    }
    let path = worker.env.get(OsStr::new("PATH"));
    let path = path.map_or(OsStr::new(DEFAULT_PATH), |path| path.as_os_str());
    search(path, program, &watcher.working_dir)
}

/// Why the system may say of a program that is there that it is not: the interpreter its first line
/// names is missing. Reads the file.
#[must_use]
pub fn missing_interpreter(watcher: &WatcherConfig, namespace: &str) -> Option<String> {
    let found = program_of(watcher, namespace)?;
    interpreter_fault(&found, program_key(watcher))
}

/// A script whose interpreter is missing: the system then says that the script does not exist.
fn interpreter_fault(program: &Path, key: &str) -> Option<String> {
    // To open a named pipe would wait for its writer.
    program.metadata().ok().filter(|found| found.is_file())?;
    let mut start = Vec::new();
    File::open(program)
        .ok()?
        .take(MAX_SHEBANG_BYTES as u64)
        .read_to_end(&mut start)
        .ok()?;
    let line = start
        .strip_prefix(b"#!")?
        .split(|byte| *byte == b'\n')
        .next()?;
    let word = line
        .split(|byte| byte.is_ascii_whitespace())
        .find(|word| !word.is_empty())?;
    let carriage_return = line.ends_with(b"\r");
    let interpreter = PathBuf::from(OsStr::from_bytes(word));
    if interpreter.exists() && !carriage_return {
        return None;
    }
    let script = program.display().to_string();
    let interpreter = interpreter.display().to_string();
    Some(if carriage_return {
        format!(
            "{key} {script:?}: its first line ends in a carriage return, which becomes part of the interpreter's name"
        )
    } else {
        format!("{key} {script:?}: its interpreter {interpreter:?} does not exist")
    })
}

/// The first program of this name in `path`.
fn search(path: &OsStr, program: &str, directory: &Path) -> Option<PathBuf> {
    std::env::split_paths(path)
        .map(|place| directory.join(place).join(program))
        .find(|candidate| {
            fs::metadata(candidate).is_ok_and(|metadata| {
                metadata.is_file() && metadata.permissions().mode() & 0o111 != 0
            })
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Surroundings, load};

    #[test]
    fn what_is_not_there_is_named_with_its_line() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path();
        fs::write(base.join("plain"), "x").unwrap();
        let script = base.join("script");
        fs::write(&script, "#!/nope/python\n").unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(base.join("bin")).unwrap();
        fs::copy(&script, base.join("bin/only-mine")).unwrap();
        let text = "[circus]\npidfile = none/x.pid\n\
            [watcher:a]\ncmd = ./nope\n\
            [watcher:b]\ncmd = nope\n\
            [watcher:c]\ncmd = sleep 1\nworking_dir = gone\n\
            [watcher:d]\ncmd = ./plain\n\
            [watcher:e]\ncmd = ./script\n\
            [watcher:f]\ncmd = only-mine\n\
            [watcher:g]\ncmd = sleep 1\nstdout_stream.filename = logs/x.log\nuid = 3999999\n\
            [watcher:fine]\ncmd = sh -c ok\nstdout_stream.filename = logs/x.log\nstdout_stream.mkdir = yes\nuid = 3999999\ngid = 3999999\n\
            [socket:s]\npath = gone/s.sock\n\
            [socket:t]\npath = bin\n[socket:u]\npath = plain\n\
            [socket:v]\ninterface = nope0\n[socket:w]\nhost = nowhere.invalid\n";
        let file = base.join("t.ini");
        fs::write(&file, text).unwrap();
        let around = Surroundings {
            environment: [("PATH".into(), base.join("bin").into())].into(),
            directory: base.to_owned(),
        };
        let found: Vec<_> = missing(&load(&file, &around).unwrap())
            .into_iter()
            .map(|problem| (problem.origin.line(), problem.message))
            .collect();
        let expected = [
            (2, "pidfile directory"),
            (4, "/nope\": does not exist"),
            (6, "/bin:/usr/bin does not have it"),
            (9, "gone\": does not exist"),
            (11, "is not executable"),
            (13, "its interpreter \"/nope/python\" does not exist"),
            (15, "/bin/only-mine: write that, or copy_env = yes"),
            (18, "make it, or write stdout_stream.mkdir = yes"),
            (19, "write gid too"),
            (26, "path \""),
            (28, "is a directory"),
            (30, "is a file and no socket"),
            (32, "no such network interface"),
            (34, "leads to no address now"),
        ];
        assert_eq!(found.len(), expected.len(), "{found:#?}");
        for ((line, text), (expected_line, part)) in found.iter().zip(expected) {
            assert_eq!(*line, expected_line, "{text}");
            assert!(text.contains(part), "{part:?} in {text:?}");
        }
    }
}
