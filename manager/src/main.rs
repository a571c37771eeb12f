//! `papa-manager FILE`: runs the watchers of an INI file through the kernel.
//!
//! Owns the start: arguments, log, configuration, control socket, signals. Exit status: 0 done, 1
//! failed, 2 usage or configuration.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use nix::sys::signal::SigSet;
use papa_client::Address;
use papa_control::kernel_search::{candidates, exit_if_idle};
use papa_logs::own_output;
use papa_manager::args::ManagerArgs;
use papa_manager::config::{self, Config, LogOutput, Surroundings};
use papa_manager::control::server::{Asked, ControlServer};
use papa_manager::error::causes;
use papa_manager::own_log::{self, OwnLog, Setting};
use papa_manager::pidfile::Pidfile;
use papa_manager::runtime_dir::RuntimeDir;
use papa_manager::supervisor::{Checked, Event, Outcome, Setup, Supervisor, own_program};
use papa_system::sys;
use papa_test_hooks::failpoint;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

/// Usage or configuration is wrong.
const EXIT_CONFIGURATION: u8 = 2;
/// Requests on their way from the control socket to the loop.
const REQUESTS: usize = 64;
/// Between two looks whether lines of our log were left out.
const LEFT_OUT_INTERVAL: Duration = Duration::from_secs(5);
/// The program we are, whatever has become of its file.
const OURSELVES: &str = "/proc/self/exe";

fn main() -> ExitCode {
    // Before anything of ours is open: what whoever started us has open (a lock, a pipe) is none of
    // our business.
    sys::close_inherited();
    failpoint::start("manager", || {
        let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGSTOP);
    });
    if let Err(error) = sys::ignore_file_size_signal() {
        say(&format!("papa-manager: ignoring SIGXFSZ: {error}"));
    }
    sys::notice_children();
    sys::raise_descriptor_limit();
    let args = ManagerArgs::parse();
    if args.own_session {
        // Fails only for who leads a session already, which is as good.
        let _ = nix::unistd::setsid();
    }
    let config = match Surroundings::current()
        .map_err(|error| error.to_string())
        .and_then(|around| config::load(&args.file, &around).map_err(|errors| errors.listed()))
    {
        Ok(config) => config,
        Err(text) => {
            say(&text);
            return ExitCode::from(EXIT_CONFIGURATION);
        }
    };
    let around = config.base.around.clone();
    // The command line wins, as in Circus.
    let output = args
        .log_file
        .map(LogOutput::File)
        .or(config.log_output.clone());
    if args.check {
        return checked(&config, output.as_ref(), args.kernel.as_deref());
    }
    let level = own_log::level(if args.debug {
        "debug"
    } else {
        &config.log_level
    });
    let log = match OwnLog::start(Setting {
        output,
        max_bytes: config.log_max_bytes,
        started_with: &RuntimeDir::locate().manager_log(&config.namespace),
        level,
    }) {
        Ok(log) => log,
        Err(error) => {
            say(&format!("papa-manager: {}", causes(&error)));
            return ExitCode::FAILURE;
        }
    };
    // Looked up now: when the file has been replaced, the system knows the old one as deleted.
    let program = own_program();
    let again = |program: Option<PathBuf>| -> anyhow::Result<()> {
        // Until the next one has its handlers, what arrives waits: a HUP in between would end it.
        SigSet::all().thread_block()?;
        let mut result = Err(anyhow::anyhow!("our own path is unknown"));
        // Should it be replaced at this very moment, better the program we are than none.
        for program in program.into_iter().chain([PathBuf::from(OURSELVES)]) {
            let mut command = Command::new(&program);
            command.args(std::env::args_os().skip(1));
            around.enter(&mut command);
            sys::restore_descriptor_limit(&mut command);
            let error = command.exec();
            tracing::error!(%error, program = %program.display(), "cannot execute the new program");
            result = Err(error).with_context(|| format!("starting {} anew", program.display()));
        }
        result
    };
    let start = Start {
        kernel: args.kernel.as_deref(),
        program: program.clone(),
        stops_all: args.foreground && !args.keep_workers,
        console: args.foreground,
    };
    let outcome = run(config, start, log.clone());
    log.say_left_out(true);
    match outcome.and_then(|outcome| match outcome {
        Outcome::Ended | Outcome::Stopped => Ok(()),
        Outcome::Again => again(program),
    }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let error = causes(&error);
            if !log.is_standard_error() {
                tracing::error!(error, "the manager ends");
            }
            say(&format!("papa-manager: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// Says what a running manager has to know before it makes way for this program.
fn checked(config: &Config, output: Option<&LogOutput>, kernel: Option<&str>) -> ExitCode {
    for warning in &config.warnings {
        say(&warning.labelled("warning"));
    }
    let found = addresses(&RuntimeDir::locate(), config, kernel).and_then(|_| {
        own_output::check(output)?;
        let pidfile = config.pidfile.as_deref();
        Ok(pidfile.map_or(Ok(()), Pidfile::check)?)
    });
    if let Err(error) = found {
        say(&format!("papa-manager: {}", causes(&error)));
        return ExitCode::from(EXIT_CONFIGURATION);
    }
    let answer = Checked {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        namespace: config.namespace.clone(),
    };
    match serde_json::to_writer(std::io::stdout(), &answer) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn addresses(
    directory: &RuntimeDir,
    config: &Config,
    kernel: Option<&str>,
) -> anyhow::Result<Vec<Address>> {
    match kernel {
        Some(text) => {
            let address = text.parse::<Address>();
            Ok(vec![
                address.with_context(|| format!("kernel address {text:?}"))?,
            ])
        }
        None => Ok(candidates(directory, config.kernel.as_ref())?),
    }
}

/// How the manager is started.
struct Start<'a> {
    kernel: Option<&'a str>,
    program: Option<PathBuf>,
    /// A signal to end stops everything.
    stops_all: bool,
    /// Output that is in no file goes to standard output.
    console: bool,
}

fn run(config: Config, start: Start<'_>, log: OwnLog) -> anyhow::Result<Outcome> {
    let directory = RuntimeDir::locate();
    directory.check_paths(&config.namespace)?;
    directory.ensure()?;
    let addresses = addresses(&directory, &config, start.kernel)?;
    let places = addresses.clone();
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    tracing::info!(pid = std::process::id(), config = %config.path.display(), namespace = config.namespace, "the manager starts");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let outcome = runtime.block_on(async {
        let socket = directory.manager_socket(&config.namespace);
        let pidfile = config.pidfile.clone();
        let namespace = config.namespace.clone();
        let supervisor = Supervisor::new(Setup {
            config,
            directory: directory.clone(),
            addresses,
            program: start.program,
            console: start.console,
            arguments: std::env::args_os().skip(1).collect(),
            umask: own_umask(),
        });
        let events = supervisor.events();
        let (asked, requests) = mpsc::channel(REQUESTS);
        let server = ControlServer::bind(socket, &namespace, asked).await?;
        // After the socket: a second manager of this namespace then hears who the first is.
        let pidfile = pidfile.as_deref().map(Pidfile::claim).transpose()?;
        forward_requests(requests, events.clone());
        tokio::spawn(say_left_out(log.clone()));
        forward_signals(events, log, start.stops_all)?;
        SigSet::all().thread_unblock()?;
        let result = supervisor.run().await;
        drop((server, pidfile));
        tracing::info!("the manager ends");
        Ok(result?)
    });
    // A file that is being read may hang for ever; nobody waits for it any more.
    runtime.shutdown_background();
    if let Ok(Outcome::Stopped) = outcome {
        // As `papactl down` does: a kernel that holds nothing has nobody left to end it.
        match exit_if_idle(&places) {
            Ok(true) => tracing::info!("the kernel holds nothing any more and ends"),
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, "the kernel stays"),
        }
    }
    outcome
}

fn forward_requests(mut requests: mpsc::Receiver<Asked>, events: mpsc::Sender<Event>) {
    tokio::spawn(async move {
        while let Some(asked) = requests.recv().await {
            if events.send(Event::Asked(asked)).await.is_err() {
                return;
            }
        }
    });
}

/// Lines of our log that came too often are counted instead; says how many they were.
async fn say_left_out(log: OwnLog) {
    let mut looks = tokio::time::interval(LEFT_OUT_INTERVAL);
    loop {
        looks.tick().await;
        log.say_left_out(false);
    }
}

/// TERM, INT and QUIT end the manager, or with `stops_all` everything; HUP reloads every watcher,
/// USR1 reopens log files, USR2 starts the manager anew.
fn forward_signals(
    events: mpsc::Sender<Event>,
    log: OwnLog,
    stops_all: bool,
) -> std::io::Result<()> {
    let end = move || if stops_all { Event::Stop } else { Event::Quit };
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut quit = signal(SignalKind::quit())?;
    let mut reopen = signal(SignalKind::user_defined1())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let mut upgrade = signal(SignalKind::user_defined2())?;
    tokio::spawn(async move {
        loop {
            let event = tokio::select! {
                _ = terminate.recv() => end(),
                _ = interrupt.recv() => end(),
                _ = quit.recv() => end(),
                _ = reopen.recv() => {
                    if let Err(error) = log.reopen() {
                        tracing::warn!(%error, "cannot reopen the manager's own log file");
                    }
                    Event::ReopenLogs
                }
                _ = hang_up.recv() => Event::ReloadAll,
                _ = upgrade.recv() => Event::Upgrade,
            };
            if events.send(event).await.is_err() {
                return;
            }
        }
    });
    Ok(())
}

/// The file mode mask we were started with. Asked of `/proc`, because `umask(2)` tells it only by
/// changing it.
fn own_umask() -> Option<u32> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("Umask:"))?;
    u32::from_str_radix(mask.trim(), 8).ok()
}

/// Tells whoever started us; a closed standard error is nobody to tell.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{}", text.trim_end());
}
