//! The verbs of `papactl`, one file each.
//!
//! Owns what they share: which manager is meant, how results and failures are printed, and the exit code. A verb
//! asks the manager and prints; it decides nothing about workers.
//! Source: manager/README.md, "papactl".

mod check;
mod down;
pub mod kernel;
mod list;
mod logs;
mod programs;
mod quit;
mod restart;
mod start;
mod status;
mod stop;
pub mod table;
mod tail;
mod up;

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use serde::Serialize;
use serde_json::json;

use crate::cli::{Common, Papactl, Verb};
use crate::config::{self, ConfigErrors};
use crate::control::client::{ManagerClient, ManagerError};
use crate::control::message::{Command, Request, Selection, StatusReply};
use crate::runtime_dir::{RuntimeDir, RuntimeDirError};

use kernel::KernelError;
use programs::ProgramError;

/// Exit code for a usage or configuration error; 0 is done, 1 failed.
const EXIT_USAGE: u8 = 2;

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
    /// Printing failed; nobody is left to tell when it is the reader that went.
    #[error("writing the result: {0}")]
    Output(#[from] io::Error),
}

impl CommandError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) | Self::Usage(_) => EXIT_USAGE,
            Self::Manager(_)
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
        Verb::Status(args) => status::run(common, args),
        Verb::Start(args) => start::run(common, args),
        Verb::Stop(args) => stop::run(common, args),
        Verb::Restart(args) => restart::run(common, args),
        Verb::Logs(args) => logs::run(common, args),
        Verb::List(args) => list::run(common, args),
        Verb::Quit => quit::run(common),
        Verb::Down => down::run(common),
        Verb::Check(args) => check::run(common, args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // `papactl logs | head`: the reader had enough.
        Err(error) if error.is_broken_pipe() => ExitCode::SUCCESS,
        Err(CommandError::Reported) => ExitCode::FAILURE,
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
            CommandError::Config(errors) => reply["errors"] = check::problems(&errors.errors),
            _ => {}
        }
        // There is nobody to tell when this fails.
        let _ = writeln!(io::stdout(), "{reply}");
    } else {
        for line in error.to_string().lines() {
            note(&format!("papactl: {}", table::printable(line)));
        }
    }
}

/// One line of JSON on standard output.
fn print_json(value: &impl Serialize) -> Result<(), CommandError> {
    let text = serde_json::to_string(value).map_err(io::Error::other)?;
    writeln!(io::stdout(), "{text}")?;
    Ok(())
}

/// Text on standard output.
fn print(text: &str) -> Result<(), CommandError> {
    io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

/// A remark on standard error; there is nobody to tell when that fails.
fn note(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// The namespace the command line means.
fn namespace(common: &Common) -> Result<String, CommandError> {
    if let Some(namespace) = &common.namespace {
        return config::resolve::namespace(namespace).map_err(|expected| {
            CommandError::Usage(format!("--namespace {namespace:?}: {expected}"))
        });
    }
    match &common.config {
        Some(file) => namespace_of(file),
        None => Ok(config::types::DEFAULT_NAMESPACE.to_owned()),
    }
}

fn namespace_of(file: &Path) -> Result<String, CommandError> {
    let around = config::Surroundings::current()?;
    Ok(config::resolve::namespace_of(file, &around)?)
}

/// Connects to the manager the command line means.
fn connect(common: &Common) -> Result<ManagerClient, CommandError> {
    let namespace = namespace(common)?;
    Ok(ManagerClient::connect(&RuntimeDir::locate(), &namespace)?)
}

/// What runs now, for all watchers.
fn status_of_all(common: &Common, client: &mut ManagerClient) -> Result<StatusReply, ManagerError> {
    client.ask(
        &Request::waiting(Command::Status { name: None }),
        common.timeout(),
    )
}

/// Start, stop, restart: asks, waits, and prints what became of the watchers.
fn change(
    common: &Common,
    name: Option<&String>,
    command: impl FnOnce(Selection) -> Command,
) -> Result<(), CommandError> {
    let selection = Selection {
        name: name.cloned(),
        ..Selection::default()
    };
    let mut client = connect(common)?;
    let request = Request::waiting(command(selection.clone()));
    let outcome: Result<serde_json::Map<_, _>, _> = client.ask(&request, common.timeout());
    if let Err(error) = outcome {
        // What became of the others is worth seeing even if one failed.
        if matches!(error, ManagerError::Refused(_)) && !common.json {
            print_selected(common, &mut client, &selection)?;
        }
        return Err(error.into());
    }
    print_selected(common, &mut client, &selection)
}

fn print_selected(
    common: &Common,
    client: &mut ManagerClient,
    selection: &Selection,
) -> Result<(), CommandError> {
    let mut status = status_of_all(common, client)?;
    status
        .watchers
        .retain(|watcher| selection.matches(&watcher.name.to_lowercase()));
    status
        .statuses
        .retain(|name, _| selection.matches(&name.to_lowercase()));
    if common.json {
        print_json(&with_ok(status))
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
