//! The verbs of `papactl`, one file each.
//!
//! Owns what they share: which manager is meant, how results and failures are printed, and the exit
//! code. A verb asks the manager and prints; it decides nothing about workers.
//! Source: manager/docs/papactl.md.

mod add;
mod check;
mod circus;
mod completions;
mod decr;
mod doctor;
mod down;
mod elsewhere;
mod get;
mod incr;
mod init;
pub mod kernel;
mod kill;
mod leftovers;
mod list;
mod listen;
mod listsockets;
pub(crate) mod logs;
mod meant;
mod options;
mod programs;
mod progress;
mod quit;
mod reload;
mod reloadconfig;
mod reopenlogs;
mod restart;
mod rm;
mod scale;
mod set;
mod signal;
mod start;
mod stats;
mod status;
mod stop;
pub mod table;
mod up;
mod up_lock;
mod upgrade;
mod version;

use std::collections::{BTreeSet, HashMap};
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use papa_system::printable::printable;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::cli::args::{ReloadConfigArgs, SelectArgs};
use crate::cli::{Common, Papactl, Verb};
use papa_config::{self as config, Config, ConfigErrors, Surroundings};
use papa_control::client::{ManagerClient, ManagerError};
use papa_control::message::{Command, Errno, Request, Selection, StatusReply};
use papa_system::runtime_dir::{RuntimeDir, RuntimeDirError};

use kernel::KernelError;
use meant::Target;
use programs::ProgramError;

/// Exit code for a usage or configuration error; 0 is done, 1 failed.
const EXIT_USAGE: u8 = 2;
/// Exit code of `status --check` when a watcher is not as it is wanted.
const EXIT_UNWELL: u8 = 3;

/// Why a verb did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The configuration has mistakes.
    #[error(transparent)]
    Config(#[from] ConfigErrors),
    /// The command line does not make sense.
    #[error("{0}")]
    Usage(String),
    /// The manager is not there, refused or failed.
    #[error(transparent)]
    Manager(#[from] ManagerError),
    /// No manager is found here, and this is why, or where one is.
    #[error("{0}")]
    Elsewhere(String),
    /// The kernel is not there, refused or failed.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// A program could not be started.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// The runtime directory cannot be used.
    #[error(transparent)]
    RuntimeDir(#[from] RuntimeDirError),
    /// Something else went wrong.
    #[error("{0}")]
    Failed(String),
    /// The failure is part of what was already printed.
    #[error("not everything was done")]
    Reported,
    /// `status --check`: a watcher is not as it is wanted, which was printed.
    #[error("a watcher is not as it is wanted")]
    Unwell,
    /// The configuration is wrong, and every mistake was printed.
    #[error("the configuration has mistakes")]
    Checked,
    /// Printing failed; nobody is left to tell when it is the reader that went.
    #[error("writing the result: {0}")]
    Output(#[from] io::Error),
}

impl CommandError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) | Self::Usage(_) | Self::Checked => EXIT_USAGE,
            Self::Unwell => EXIT_UNWELL,
            Self::Manager(_)
            | Self::Elsewhere(_)
            | Self::Kernel(_)
            | Self::Program(_)
            | Self::RuntimeDir(_)
            | Self::Failed(_)
            | Self::Reported
            | Self::Output(_) => 1,
        }
    }

    fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}

/// Runs one command line and says how it went.
#[must_use]
pub fn run(line: &Papactl) -> ExitCode {
    let common = &line.common;
    let result = match &line.verb {
        Verb::Up(args) => up::run(common, args),
        Verb::Down => down::run(common),
        Verb::Status(args) => status::run(common, args),
        Verb::Start(args) => start::run(common, args),
        Verb::Stop(args) => stop::run(common, args),
        Verb::Restart(args) => restart::run(common, args),
        Verb::Reload(args) => reload::run(common, args),
        Verb::ReloadConfig(args) => reloadconfig::run(common, args),
        Verb::Reread => reloadconfig::run(
            common,
            &ReloadConfigArgs {
                plan: true,
                accept_removal: false,
            },
        ),
        Verb::Scale(args) => scale::run(common, args),
        Verb::Version => version::run(common),
        Verb::Incr(args) => incr::run(common, args),
        Verb::Decr(args) => decr::run(common, args),
        Verb::Set(args) => set::run(common, args),
        Verb::Get(args) => get::run(common, args),
        Verb::Options(args) => options::run(common, args),
        Verb::Add(args) => add::run(common, args),
        Verb::Rm(args) => rm::run(common, args),
        Verb::Signal(args) => signal::run(common, args),
        Verb::Kill(args) => kill::run(common, args),
        Verb::List(args) => list::run(common, args),
        Verb::Stats(args) => stats::run(common, args),
        Verb::DStats => stats::run_manager(common),
        Verb::Logs(args) => logs::run(common, args),
        Verb::Listen(args) => listen::run(common, args),
        Verb::ListSockets => listsockets::run(common),
        Verb::Check(args) => check::run(common, args),
        Verb::Kernel(verb) => kernel::verbs::run(common, verb),
        Verb::Upgrade => upgrade::run(common),
        Verb::Quit => quit::run(common),
        Verb::ReopenLogs => reopenlogs::run(common),
        Verb::Doctor(args) => doctor::run(common, args),
        Verb::Completions(args) => completions::run(args),
        Verb::NumProcesses(args) => circus::num_processes(common, args.name.clone()),
        Verb::NumWatchers => circus::num_watchers(common),
        Verb::GlobalOptions(args) => {
            let option = args.name.clone();
            options::run_global(common, option)
        }
    };
    match result.and_then(|()| all_printed()) {
        Ok(()) => ExitCode::SUCCESS,
        // `papactl logs | head`: the reader had enough.
        Err(error) if error.is_broken_pipe() => ExitCode::SUCCESS,
        Err(error @ (CommandError::Reported | CommandError::Checked | CommandError::Unwell)) => {
            ExitCode::from(error.exit_code())
        }
        Err(error) => {
            report(common, &error);
            ExitCode::from(error.exit_code())
        }
    }
}

fn report(common: &Common, error: &CommandError) {
    if common.json {
        let mut reply = json!({"status": "error", "reason": error.to_string()});
        match error {
            CommandError::Manager(ManagerError::Refused(refused)) => {
                reply["errno"] = (refused.errno as u8).into();
            }
            CommandError::Config(errors) => {
                reply["errors"] = check::problems(&errors.errors);
                reply["warnings"] = check::problems(&errors.warnings);
            }
            _ => {}
        }
        // There is nobody to tell when this fails.
        let _ = writeln!(io::stdout(), "{reply}");
    } else if let CommandError::Config(errors) = error {
        check::print_errors(errors);
    } else {
        let mut text = error.to_string();
        if text.starts_with("watcher ") && text.ends_with(" not found") {
            text.push_str("; `papactl list` prints the names there are");
        }
        for line in text.lines() {
            note(&format!("papactl: {}", printable(line)));
        }
    }
}

/// One line of JSON on standard output, as [`print`] does it.
fn print_json(value: &impl Serialize) -> Result<(), CommandError> {
    let text = serde_json::to_string(value).map_err(io::Error::other)?;
    print(&format!("{text}\n"))
}

/// Text on standard output. `Ok` also where it cannot be printed: a reader that has gone, or a full
/// disk, ends no verb in the middle of its work. [`run`] tells of it when the work is done.
fn print(text: &str) -> Result<(), CommandError> {
    let mut stdout = io::stdout().lock();
    let written = stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush());
    if let Err(error) = written {
        // The first one counts.
        let _ = UNPRINTED.set(error);
    }
    Ok(())
}

/// Why something could not be printed.
static UNPRINTED: OnceLock<io::Error> = OnceLock::new();

/// Fails if something could not be printed and somebody is there who may want to know.
fn all_printed() -> Result<(), CommandError> {
    match UNPRINTED.get() {
        // `papactl status | head -1`: the reader had enough.
        Some(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(CommandError::Failed(
            format!("what was asked for is done, but cannot be printed: {error}"),
        )),
        _ => Ok(()),
    }
}

/// A remark on standard error; there is nobody to tell when that fails.
fn note(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// The namespace the command line means: as given, else that of the one manager that runs.
fn namespace(common: &Common) -> Result<String, CommandError> {
    if let Some(namespace) = &common.namespace {
        return config::resolve::namespace(namespace).map_err(|expected| {
            CommandError::Usage(format!("--namespace {namespace:?}: {expected}"))
        });
    }
    if let Some(file) = &common.config {
        return namespace_of(file);
    }
    let mut running = RuntimeDir::locate().managers();
    match running.len() {
        0 => Ok(config::types::DEFAULT_NAMESPACE.to_owned()),
        1 => Ok(running.swap_remove(0)),
        _ => Err(CommandError::Usage(format!(
            "several managers run, for namespaces {}; say which with --namespace NS or --config FILE",
            running.join(", ")
        ))),
    }
}

fn namespace_of(file: &Path) -> Result<String, CommandError> {
    let around = config::Surroundings::current()?;
    Ok(config::resolve::namespace_of(file, &around)?)
}

/// What a file says, if it can be read.
fn loaded(file: &Path) -> Option<Config> {
    let around = Surroundings::current().ok()?;
    config::load(file, &around).ok()
}

/// Connects to the manager the command line means.
fn connect(common: &Common) -> Result<ManagerClient, CommandError> {
    let namespace = namespace(common)?;
    ManagerClient::connect(&RuntimeDir::locate(), &namespace)
        .map_err(|error| elsewhere::explain(common, error))
}

/// What runs now, for all watchers.
fn status_of_all(common: &Common, client: &mut ManagerClient) -> Result<StatusReply, ManagerError> {
    client.ask(
        &Request::waiting(Command::Status { name: None }),
        common.timeout(),
    )
}

/// How long a kernel may be away without being called gone: one that was killed is back sooner.
const KERNEL_PATIENCE: Duration = Duration::from_millis(1500);

/// What runs now; where the manager has no kernel, it is asked again for a moment.
fn status_with_kernel(
    common: &Common,
    client: &mut ManagerClient,
) -> Result<StatusReply, ManagerError> {
    let deadline = Instant::now() + KERNEL_PATIENCE;
    loop {
        let status = status_of_all(common, client)?;
        let manager = status.manager.as_ref();
        let connected = manager.is_none_or(|manager| manager.kernel_pid.is_some());
        if connected || Instant::now() >= deadline {
            return Ok(status);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Asks for work on `selection` and waits until it is done, visibly.
fn wait_for<T: DeserializeOwned>(
    common: &Common,
    client: &mut ManagerClient,
    selection: &Selection,
    command: Command,
) -> Result<T, CommandError> {
    if common.no_wait {
        return Ok(client.ask(&Request::accepted(command), common.timeout())?);
    }
    let namespace = namespace(common)?;
    progress::say_when_interrupted(common);
    let watching = progress::Watching::start(common, &namespace, selection);
    let outcome = client.ask(&Request::waiting(command), common.timeout());
    drop(watching);
    match outcome {
        Err(ManagerError::Timeout(timeout)) => {
            let missing = progress::ask_missing(&namespace, selection)
                .filter(|missing| !missing.is_empty())
                .map(|missing| format!(": {missing}"))
                .unwrap_or_default();
            Err(CommandError::Failed(format!(
                "not done within {} s{missing}; {}",
                timeout.as_secs_f64(),
                progress::GOES_ON
            )))
        }
        outcome => Ok(outcome?),
    }
}

/// Asks for work on `selection` and waits until it is done; if it fails, what workers of the
/// watchers that are `meant` wrote last is shown before the failure.
fn wait_or_explain<T: DeserializeOwned>(
    common: &Common,
    client: &mut ManagerClient,
    selection: &Selection,
    command: Command,
    meant: impl Fn(&str) -> bool,
) -> Result<T, CommandError> {
    let begun_ms = logs::ended::now_ms();
    let outcome = wait_for(common, client, selection, command);
    if let Err(CommandError::Manager(ManagerError::Refused(_))) = &outcome {
        logs::ended::explain(common, client, meant, begun_ms);
    }
    outcome
}

/// Start, stop, restart, reload: asks, waits, and prints what became of the watchers.
fn change(
    common: &Common,
    select: &SelectArgs,
    verb: &str,
    command: impl FnOnce(Selection) -> Command,
) -> Result<(), CommandError> {
    let mut client = connect(common)?;
    let matching = select.matching.into();
    let selection = &meant::selection(common, &mut client, &select.names, matching, verb)?;
    let begun_ms = logs::ended::now_ms();
    let outcome =
        wait_for::<Map<String, Value>>(common, &mut client, selection, command(selection.clone()));
    if let Err(error) = outcome {
        // What became of the others is worth seeing even if one failed.
        if let CommandError::Manager(ManagerError::Refused(refused)) = &error
            && refused.errno == Errno::Asynchronous
            && !common.json
        {
            print_selected(common, &mut client, selection)?;
            let matcher = selection.matcher();
            let meant = |name: &str| matcher.matches(&name.to_lowercase());
            logs::ended::explain(common, &mut client, meant, begun_ms);
        }
        return Err(error);
    }
    print_selected(common, &mut client, selection)
}

/// Incr, decr: asks, waits, and prints how many workers are wanted now.
fn count(
    common: &Common,
    words: &[String],
    command: impl Fn(String, u32) -> Command,
) -> Result<(), CommandError> {
    // A last word that is a number says how many, unless it is the only one: a watcher may be
    // called 8080.
    let (names, by) = match words {
        [names @ .., last] if !names.is_empty() && last.parse::<u32>().is_ok() => {
            (names, last.parse().unwrap_or(1))
        }
        names => (names, 1),
    };
    each_watcher(
        common,
        names,
        "incr and decr",
        |name| command(name, by),
        |reply| {
            if reply.get("singleton") == Some(&Value::Bool(true)) {
                return "this watcher is a singleton: it has one worker at most".to_owned();
            }
            let number = reply.get("numprocesses");
            number.map_or("ok".to_owned(), ToString::to_string)
        },
    )
}

/// Asks for the same work on each watcher that `names` mean, after all names were found, and prints
/// what `said` makes of each answer: with the name in front where there are several.
fn each_watcher(
    common: &Common,
    names: &[String],
    verb: &str,
    command: impl Fn(String) -> Command,
    said: impl Fn(&Map<String, Value>) -> String,
) -> Result<(), CommandError> {
    let mut client = connect(common)?;
    let targets = meant::targets(common, &mut client, names)?;
    if let Some(target) = targets.iter().find(|target| target.worker.is_some()) {
        return Err(CommandError::Usage(format!(
            "{verb}: expected whole watchers, and {} was given with the number of one worker",
            printable(&target.watcher)
        )));
    }
    let several = targets.len() > 1;
    let mut replies = Map::new();
    let mut failed = false;
    for target in targets {
        let selection = Selection::named(&target.watcher);
        let asked = command(target.watcher.clone());
        let meant = |name: &str| name == target.watcher;
        let outcome = wait_or_explain(common, &mut client, &selection, asked, meant);
        let reply: Map<String, Value> = match outcome {
            // One that fails hides no other.
            Err(error @ CommandError::Manager(ManagerError::Refused(_))) if several => {
                failed = true;
                if common.json {
                    let refused = json!({"status": "error", "reason": error.to_string()});
                    replies.insert(target.watcher, refused);
                } else {
                    let text = format!("{}: {error}", target.watcher);
                    note(&format!("papactl: {}", printable(&text)));
                }
                continue;
            }
            outcome => outcome?,
        };
        if !common.json {
            let name = if several {
                format!("{}: ", printable(&target.watcher))
            } else {
                String::new()
            };
            print(&format!("{name}{}\n", said(&reply)))?;
        } else if several {
            replies.insert(target.watcher, reply.into());
        } else {
            return print_json(&with_ok(reply));
        }
    }
    if common.json && failed {
        let reason = CommandError::Reported.to_string();
        print_json(&json!({"status": "error", "reason": reason, "watchers": replies}))?;
    } else if common.json {
        print_json(&with_ok(json!({ "watchers": replies })))?;
    }
    if failed {
        return Err(CommandError::Reported);
    }
    Ok(())
}

/// `ok`, where there is nothing more to say.
fn done(common: &Common) -> Result<(), CommandError> {
    if common.json {
        return print_json(&json!({"status": "ok"}));
    }
    print("ok\n")
}

/// What runs of `targets`: the whole watchers in the manager's order, of a watcher that is named
/// only by workers those alone.
fn print_targets(
    common: &Common,
    mut status: StatusReply,
    targets: &[Target],
) -> Result<(), CommandError> {
    // By watcher: the workers that are meant; none of them named means all.
    let mut meant: HashMap<&str, Option<BTreeSet<u32>>> = HashMap::new();
    for target in targets {
        let workers = meant
            .entry(&target.watcher)
            .or_insert_with(|| Some(BTreeSet::new()));
        match (target.worker, workers) {
            (Some(worker), Some(wids)) => {
                wids.insert(worker.wid);
            }
            (_, workers) => *workers = None,
        }
    }
    status
        .watchers
        .retain_mut(|watcher| match meant.get(watcher.name.as_str()) {
            None => false,
            Some(None) => true,
            Some(Some(wids)) => {
                watcher.workers.retain(|worker| wids.contains(&worker.wid));
                true
            }
        });
    let shown: BTreeSet<&str> = status
        .watchers
        .iter()
        .map(|watcher| watcher.name.as_str())
        .collect();
    status
        .statuses
        .retain(|name, _| shown.contains(name.as_str()));
    show_status(common, status)
}

fn print_selected(
    common: &Common,
    client: &mut ManagerClient,
    selection: &Selection,
) -> Result<(), CommandError> {
    let mut status = status_of_all(common, client)?;
    let matcher = selection.matcher();
    let meant = |name: &str| matcher.matches(&name.to_lowercase());
    status.watchers.retain(|watcher| meant(&watcher.name));
    status.statuses.retain(|name, _| meant(name));
    show_status(common, status)
}

fn show_status(common: &Common, status: StatusReply) -> Result<(), CommandError> {
    if common.json {
        print_json(&with_ok(status))
    } else if status.watchers.is_empty() {
        print("no watchers\n")
    } else {
        print(&table::watchers(&status.watchers))
    }
}

/// A reply's fields with Circus's `"status":"ok"` in front.
fn with_ok(body: impl Serialize) -> serde_json::Value {
    let mut value = serde_json::to_value(body).unwrap_or_default();
    if let Some(fields) = value.as_object_mut() {
        fields.entry("status").or_insert_with(|| "ok".into());
    }
    value
}
