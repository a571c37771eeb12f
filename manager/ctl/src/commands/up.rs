//! `papactl up`: finds or starts the kernel and the manager, and waits until every watcher is up.
//!
//! Owns the order of these steps and what is said about each. A manager that already runs is left
//! alone.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use papa_control::kernel_search::KernelElsewhere;
use papa_logs::own_output;
use papa_system::printable::printable;
use serde_json::json;

use crate::cli::Common;
use crate::cli::args::UpArgs;
use crate::commands::elsewhere;
use crate::commands::init;
use crate::commands::kernel::{self, Kernel};
use crate::commands::logs::ended;
use crate::commands::programs::{self, Background};
use crate::commands::progress::{self, ProgressLine};
use crate::commands::up_lock::UpLock;
use crate::commands::{
    CommandError, check, note, print, print_json, status_of_all, status_with_kernel, table,
};
use papa_config::{self as config, Config, LogOutput, Surroundings};
use papa_control::client::{ManagerClient, ManagerError};
use papa_control::message::{
    Command, ManagerStatus, PlanAction, PlanReply, Request, Selection, StatusReply, WatcherState,
    WatcherStatus,
};
use papa_control::stuck::{Found, end_if_stuck};
use papa_system::pidfile::Pidfile;
use papa_system::runtime_dir::RuntimeDir;

/// How long the manager gets to compare the file with what runs.
const PLAN_PATIENCE: Duration = Duration::from_secs(5);
/// How long a claim is looked at whose manager does not answer here.
const CLAIM_PATIENCE: Duration = Duration::from_millis(500);
/// Ends so long ago are shown where a manager runs already, in milliseconds.
const RECENT_MS: u64 = 60_000;
/// How often to look again.
const POLL: Duration = Duration::from_millis(20);

/// How long a watcher may be in trouble before waiting for it ends: back-off goes on for ever, a
/// person does not.
const TROUBLE_PATIENCE: Duration = Duration::from_secs(3);

/// Most warnings printed before the work begins; `check` prints all.
const MAX_WARNINGS: usize = 10;

/// Runs the verb.
pub(super) fn run(common: &Common, args: &UpArgs) -> Result<(), CommandError> {
    if args.foreground && init::is_first_process() {
        init::hold_signals()?;
    }
    let config = config::load(&args.file, &Surroundings::current()?)?;
    config.require_watchers(&args.file)?;
    if let Some(wanted) = &common.namespace
        && *wanted != config.namespace
    {
        return Err(CommandError::Usage(format!(
            "--namespace {wanted:?}: {} says namespace {:?}; set it in [circus]",
            args.file.display(),
            config.namespace
        )));
    }
    if !common.json {
        check::print_warnings(&config.warnings, MAX_WARNINGS);
    }
    let directory = RuntimeDir::locate();
    let usable = directory
        .check_paths(&config.namespace)
        .and_then(|()| directory.ensure());
    usable.map_err(|error| elsewhere::explain(common, error.into()))?;
    let deadline = Instant::now() + common.timeout();
    let begun_ms = ended::now_ms();

    let lock = UpLock::take(&directory, &config.namespace, deadline)?;
    if let Some((client, status)) = running_manager(common, &directory, &config)? {
        drop(lock);
        return report_running(common, args, &directory, &config, client, status);
    }
    // What would end the manager at once is said before anything is started.
    if let Some(path) = &config.pidfile {
        Pidfile::check_free(path).map_err(|error| CommandError::Failed(error.to_string()))?;
    }
    own_output::check(config.log_output.as_ref())
        .map_err(|error| CommandError::Failed(error.to_string()))?;
    let (kernel, kernel_started) = provide_kernel(common, &directory, &config)?;
    if !kernel_started {
        refuse_second(&kernel, &directory, &config)?;
    }
    if !common.json {
        print(&kernel_line(&kernel, kernel_started))?;
    }
    let end_kernel = |error: CommandError| {
        if kernel_started {
            end_unused(common, &kernel);
        }
        error
    };
    if args.foreground && init::is_first_process() {
        return init::run(common, args, &config).map_err(end_kernel);
    }
    if args.foreground {
        return Err(end_kernel(become_manager(args, &config)));
    }
    let mut client = start_manager(common, &directory, &config, deadline).map_err(end_kernel)?;
    drop(lock);
    let status = status_of_all(common, &mut client)?;
    if !common.json {
        let pid = status.manager.as_ref().map_or(0, |manager| manager.pid);
        let log = match &config.log_output {
            Some(LogOutput::Syslog(_)) => "syslog".to_owned(),
            _ => manager_log(&directory, &config).display().to_string(),
        };
        print(&format!("manager: started, pid {pid}, log {log}\n"))?;
    }
    let status = if common.no_wait {
        status
    } else {
        wait_until_up(common, &mut client, deadline)?
    };
    let failed = finish(
        common,
        &config,
        common.no_wait,
        &status,
        &json!({
            "address": kernel.address.to_string(),
            "pid": kernel.pid,
            "started": kernel_started,
        }),
    );
    explain(common, &mut client, &status, begun_ms, failed)
}

/// What workers of watchers that are not up wrote last, before the failure is said.
fn explain(
    common: &Common,
    client: &mut ManagerClient,
    status: &StatusReply,
    begun_ms: u64,
    result: Result<(), CommandError>,
) -> Result<(), CommandError> {
    if let Err(CommandError::Failed(_)) = &result {
        let down = |name: &str| {
            let mut watchers = status.watchers.iter();
            watchers.any(|watcher| watcher.name == name && is_down(watcher))
        };
        ended::explain(common, client, down, begun_ms);
    }
    result
}

/// A manager can use a kernel of its own process namespace alone, whose process numbers mean the
/// same to both. A namespace has one manager. One that runs with another runtime directory (under sudo, su, cron)
/// has its socket where nobody looks here; the kernel knows of it.
fn refuse_second(
    kernel: &Kernel,
    directory: &RuntimeDir,
    config: &Config,
) -> Result<(), CommandError> {
    // A kernel that was killed this moment has a successor here.
    if kernel::is_elsewhere(kernel.pid)
        && let Some(kernel) = kernel::find(std::slice::from_ref(&kernel.address))?
        && kernel::is_elsewhere(kernel.pid)
    {
        let error = KernelElsewhere {
            address: kernel.address.to_string(),
            pid: kernel.pid.into(),
        };
        return Err(CommandError::Failed(error.to_string()));
    }
    let until = Instant::now() + CLAIM_PATIENCE;
    loop {
        let Some(holder) = kernel::holder_of(&kernel.address, &config.namespace)? else {
            return Ok(());
        };
        // The connection of a manager that has just ended may be known to the kernel for a moment
        // longer.
        if Instant::now() >= until {
            return Err(CommandError::Failed(format!(
                "a manager already runs for namespace {:?}: {}; here the runtime directory is {}{}, or choose another namespace in [circus]",
                config.namespace,
                printable(&holder),
                directory.path().display(),
                printable(&elsewhere::reach(&holder)),
            )));
        }
        thread::sleep(POLL);
    }
}

fn running_manager(
    common: &Common,
    directory: &RuntimeDir,
    config: &Config,
) -> Result<Option<(ManagerClient, StatusReply)>, CommandError> {
    let mut client = match ManagerClient::connect(directory, &config.namespace) {
        Ok(client) => client,
        Err(ManagerError::NotRunning { .. }) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let socket = directory.manager_socket(&config.namespace);
    if let Found::Ended(pid) = end_if_stuck(&socket).map_err(ManagerError::from)? {
        if !common.json {
            print(&format!(
                "manager: pid {pid} did not answer and was ended; its workers are adopted\n"
            ))?;
        }
        return Ok(None);
    }
    match status_with_kernel(common, &mut client) {
        Ok(status) => Ok(Some((client, status))),
        // It was just ending.
        Err(ManagerError::NotRunning { .. } | ManagerError::Gone) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn report_running(
    common: &Common,
    args: &UpArgs,
    directory: &RuntimeDir,
    config: &Config,
    mut client: ManagerClient,
    mut status: StatusReply,
) -> Result<(), CommandError> {
    let Some(manager) = status.manager.clone() else {
        return Err(CommandError::Failed(
            "the manager does not say what it runs".to_owned(),
        ));
    };
    if args.foreground {
        return Err(CommandError::Failed(format!(
            "a manager already runs for namespace {:?}, pid {}; `papactl quit` ends it and leaves the workers",
            config.namespace, manager.pid
        )));
    }
    if !same_file(Path::new(&manager.config), &config.path) {
        return Err(CommandError::Failed(format!(
            "the manager of namespace {:?}, pid {}, runs {}; `papactl quit` first, or set another namespace in [circus]",
            config.namespace, manager.pid, manager.config
        )));
    }
    // The manager lives and has no kernel: keeper and kernel are gone. It finds the one that is
    // started here.
    let provided = match manager.kernel_pid {
        Some(_) => None,
        None => Some(provide_kernel(common, directory, config)?),
    };
    let deadline = Instant::now() + common.timeout();
    if provided.is_some() {
        wait_until_connected(common, &mut client, deadline)?;
    }
    if !common.json {
        let kernel = match &provided {
            Some((kernel, started)) => kernel_line(kernel, *started),
            None => running_line(&manager),
        };
        print(&kernel)?;
        print(&format!("manager: already running, pid {}\n", manager.pid))?;
    }
    say_if_changed(&mut client);
    if !common.no_wait {
        status = wait_until_up(common, &mut client, deadline)?;
    }
    let kernel = match provided {
        Some((kernel, started)) => {
            json!({"address": kernel.address.to_string(), "pid": kernel.pid, "started": started})
        }
        None => json!({"address": manager.kernel, "pid": manager.kernel_pid, "started": false}),
    };
    let begun_ms = ended::now_ms().saturating_sub(RECENT_MS);
    let result = finish(common, config, common.no_wait, &status, &kernel);
    explain(common, &mut client, &status, begun_ms, result)
}

/// The manager runs what it has read; somebody who edits the file and types `up` again expects
/// otherwise. A file that cannot be read any more is reported as what it is.
fn say_if_changed(client: &mut ManagerClient) {
    let command = Command::ReloadConfig {
        plan: true,
        accept_removal: false,
    };
    let reply: Result<PlanReply, ManagerError> =
        client.ask(&Request::waiting(command), PLAN_PATIENCE);
    match reply {
        Ok(reply)
            if reply
                .plan
                .iter()
                .all(|step| step.action == PlanAction::Keep) => {}
        Ok(_) => note(
            "papactl: the file has changed since the manager read it: `papactl reloadconfig --plan` shows how, `papactl reloadconfig` applies it",
        ),
        // A change is under way, and nobody wants to wait for the hint.
        Err(ManagerError::Timeout(_)) => {}
        Err(error) => note(&format!(
            "papactl: the file cannot be read as it is now, and what runs is as it was read before: {error}"
        )),
    }
}

fn running_line(manager: &ManagerStatus) -> String {
    let pid = manager.kernel_pid.unwrap_or_default();
    format!("kernel:  running, pid {pid}, {}\n", manager.kernel)
}

/// Waits until the manager that runs has found the kernel.
fn wait_until_connected(
    common: &Common,
    client: &mut ManagerClient,
    deadline: Instant,
) -> Result<(), CommandError> {
    loop {
        let status = status_of_all(common, client)?;
        let manager = status.manager.as_ref();
        if manager.is_some_and(|manager| manager.kernel_pid.is_some()) {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(CommandError::Failed(
                "a kernel runs, and the manager has not found it; its log says why".to_owned(),
            ));
        }
        thread::sleep(POLL);
    }
}

fn provide_kernel(
    common: &Common,
    directory: &RuntimeDir,
    config: &Config,
) -> Result<(Kernel, bool), CommandError> {
    let endpoint = config.kernel.as_ref();
    let addresses = kernel::candidates(directory, endpoint)?;
    match kernel::find(&addresses)? {
        Some(kernel) => Ok((kernel, false)),
        None => Ok((kernel::start(directory, endpoint, common.timeout())?, true)),
    }
}

/// Ends the kernel that this very command has started and nothing uses.
fn end_unused(common: &Common, kernel: &Kernel) {
    let said = match kernel::end_if_idle(std::slice::from_ref(&kernel.address)) {
        Ok(_) => "kernel:  ended again, since nothing uses it\n".to_owned(),
        Err(error) => format!(
            "kernel:  pid {} runs on: {error}; `papactl down` ends it\n",
            kernel.pid
        ),
    };
    if !common.json {
        // The error that follows matters more than who reads this.
        let _ = print(&said);
    }
}

fn kernel_line(kernel: &Kernel, started: bool) -> String {
    if started {
        format!("kernel:  started, pid {}, {}\n", kernel.pid, kernel.address)
    } else {
        let noun = if kernel.running == 1 {
            "process"
        } else {
            "processes"
        };
        format!(
            "kernel:  running, pid {}, {}, {} {noun}\n",
            kernel.pid, kernel.address, kernel.running
        )
    }
}

/// Replaces this program by the manager; returns only if that fails.
fn become_manager(args: &UpArgs, config: &Config) -> CommandError {
    match programs::foreground_manager(args, config) {
        Ok((program, mut command)) => {
            let source = command.exec();
            programs::ProgramError::Start { program, source }.into()
        }
        Err(error) => error.into(),
    }
}

fn start_manager(
    common: &Common,
    directory: &RuntimeDir,
    config: &Config,
    deadline: Instant,
) -> Result<ManagerClient, CommandError> {
    // What comes before the log the file names is open, and panics, go to the usual place.
    let log = directory.manager_log(&config.namespace);
    // No --kernel: the manager looks in the same places, and again in all of them if the kernel
    // comes back.
    let mut arguments: Vec<OsString> = vec!["--own-session".into()];
    if !matches!(config.log_output, Some(LogOutput::Syslog(_))) {
        arguments.extend(["--log-file".into(), manager_log(directory, config).into()]);
    }
    arguments.push(config.path.clone().into());
    let mut manager = Background::start("papa-manager", arguments, &log)?;
    loop {
        match ManagerClient::connect(directory, &config.namespace) {
            Ok(client) => return Ok(client),
            Err(ManagerError::NotRunning { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        manager.check_alive()?;
        if Instant::now() >= deadline {
            return Err(manager.late(common.timeout()).into());
        }
        thread::sleep(POLL);
    }
}

/// The log of a manager in the background: the one the file names, else beside its socket.
fn manager_log(directory: &RuntimeDir, config: &Config) -> PathBuf {
    match &config.log_output {
        Some(LogOutput::File(path)) => path.clone(),
        Some(LogOutput::Syslog(_)) | None => directory.manager_log(&config.namespace),
    }
}

/// Asks until no watcher is on its way any more, or only ones in trouble are, or the time is up.
fn wait_until_up(
    common: &Common,
    client: &mut ManagerClient,
    deadline: Instant,
) -> Result<StatusReply, CommandError> {
    let mut troubled: HashMap<String, Instant> = HashMap::new();
    let mut begun = None;
    progress::say_when_interrupted(common);
    let mut line = ProgressLine::new(common);
    loop {
        let status = status_of_all(common, client)?;
        line.show(&progress::missing(&status, &Selection::all()));
        let now = Instant::now();
        // Until then nothing is known of watchers that are not to start by themselves.
        let attached = status.manager.as_ref();
        let attached = attached.is_none_or(|manager| manager.kernel_pid.is_some());
        let since = *begun.get_or_insert(now);
        let mut waiting = !attached && now.duration_since(since) < TROUBLE_PATIENCE;
        for watcher in &status.watchers {
            if is_settled(watcher) {
                continue;
            }
            // Orphans are given their grace period; that is no trouble.
            if watcher.message.is_none() || !watcher.orphans.is_empty() {
                troubled.remove(&watcher.name);
                waiting = true;
            } else {
                let since = *troubled.entry(watcher.name.clone()).or_insert(now);
                waiting |= now.duration_since(since) < TROUBLE_PATIENCE;
            }
        }
        if !waiting || now >= deadline {
            return Ok(status);
        }
        thread::sleep(POLL);
    }
}

fn is_settled(watcher: &WatcherStatus) -> bool {
    match watcher.state {
        _ if watcher.settling => false,
        // A message beside all workers is history.
        WatcherState::Active => {
            watcher.message.is_none() || watcher.workers.len() >= watcher.numprocesses as usize
        }
        WatcherState::Stopped => true,
        WatcherState::Starting | WatcherState::Stopping => false,
    }
}

/// It should be up and is not.
fn is_down(watcher: &WatcherStatus) -> bool {
    let stopped = watcher.state == WatcherState::Stopped && !watcher.dormant && !watcher.done;
    !is_settled(watcher) || (stopped && watcher.message.is_some())
}

/// Prints the watchers; fails if one that should be up is not.
fn finish(
    common: &Common,
    config: &Config,
    no_wait: bool,
    status: &StatusReply,
    kernel: &serde_json::Value,
) -> Result<(), CommandError> {
    let down: Vec<_> = status
        .watchers
        .iter()
        .filter(|watcher| is_down(watcher))
        .map(|watcher| printable(&watcher.name))
        .collect();
    if common.json {
        print_json(&json!({
            "status": if down.is_empty() || no_wait { "ok" } else { "error" },
            "reason": down.first().map(|_| format!("not up: {}", down.join(", "))),
            "kernel": kernel,
            "manager": status.manager,
            "watchers": status.watchers,
            "warnings": check::problems(&config.warnings),
        }))?;
        return if down.is_empty() || no_wait {
            Ok(())
        } else {
            Err(CommandError::Reported)
        };
    }
    print(&table::watchers(&status.watchers))?;
    if down.is_empty() || no_wait {
        return Ok(());
    }
    Err(CommandError::Failed(format!(
        "not up: {}; `papactl logs NAME` shows what it wrote last, `papactl status` how it goes on",
        down.join(", ")
    )))
}

fn same_file(a: &Path, b: &Path) -> bool {
    match (fs::canonicalize(a), fs::canonicalize(b)) {
        (Ok(a), Ok(b)) => a == b,
        _ => a == b,
    }
}
