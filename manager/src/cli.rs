//! The command lines of `papa-manager` and `papactl`.
//!
//! Owns the flags and the help; what a verb does is in `commands`. Doc comments here are the help text.
//! Source: manager/README.md, "papactl".

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

/// Runs the watchers of an INI file through the papa kernel. May be stopped, upgraded or killed at any time: the
/// workers stay, and the next manager takes them over. Usually started by `papactl up FILE`.
#[derive(Debug, Parser)]
#[command(name = "papa-manager", version)]
pub struct ManagerArgs {
    /// The INI file.
    pub file: PathBuf,
    /// Kernel to use: a socket's path, `@abstract`, or tcp://HOST:PORT [default: the one the INI names, then the
    /// usual places]
    #[arg(long, value_name = "ADDR")]
    pub kernel: Option<String>,
    /// Write the manager's own log here instead of to standard error.
    #[arg(long, value_name = "FILE")]
    pub log_file: Option<PathBuf>,
    /// Log every decision.
    #[arg(long)]
    pub debug: bool,
    /// Leave the terminal's session first, so that closing the terminal does not end the manager.
    #[arg(long, hide = true)]
    pub own_session: bool,
}

/// Runs and watches services that outlive their manager.
#[derive(Debug, Parser)]
#[command(
    name = "papactl",
    version,
    arg_required_else_help = true,
    max_term_width = 80,
    after_help = "\
Examples:
  papactl up examples/quickstart.ini   start everything in the file
  papactl status                       what runs, and with which pids
  papactl logs -f                      follow every log file
  papactl restart web                  replace the workers of one watcher
  papactl quit                         end the manager; the workers stay
  papactl down                         end everything

Exit status: 0 done, 1 failed, 2 usage or configuration."
)]
pub struct Papactl {
    /// What every verb understands.
    #[command(flatten)]
    pub common: Common,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// What every verb understands.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Options of every command")]
pub struct Common {
    /// Print one line of JSON instead of text
    #[arg(long, global = true)]
    pub json: bool,
    /// The manager to talk to: the one that runs this INI file's namespace
    #[arg(long, global = true, value_name = "FILE", conflicts_with = "namespace")]
    pub config: Option<PathBuf>,
    /// The manager to talk to, by namespace [default: circus]
    #[arg(long, global = true, value_name = "NS")]
    pub namespace: Option<String>,
    /// Seconds to wait for the work to be done [default: 60]
    #[arg(long, global = true, value_name = "SECONDS", value_parser = parse_timeout)]
    pub timeout: Option<Duration>,
}

/// How long a verb waits unless told otherwise: twice Circus's default grace period for stopping a worker.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);

impl Common {
    /// How long to wait for the work to be done.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        self.timeout.unwrap_or(DEFAULT_TIMEOUT)
    }
}

/// Longest wait that can be asked for: a year, far from any overflow of the clock.
const MAX_TIMEOUT_SECONDS: f64 = 366.0 * 24.0 * 3600.0;

fn parse_timeout(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if seconds > 0.0 && seconds <= MAX_TIMEOUT_SECONDS => {
            Ok(Duration::from_secs_f64(seconds))
        }
        _ => Err("expected a number of seconds above 0, for example 2.5".to_owned()),
    }
}

/// The verbs, one file each in `commands`.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Start the kernel and the manager as needed, then every watcher of FILE
    Up(UpArgs),
    /// Show watchers, their state and their workers' pids
    Status(NameArg),
    /// Start a watcher, or all of them
    Start(NameArg),
    /// Stop a watcher, or all of them; it stays stopped until started
    Stop(NameArg),
    /// Stop and start a watcher, or all of them
    Restart(NameArg),
    /// Print watchers' log files
    Logs(LogsArgs),
    /// Print the watchers' names, or the pids of one
    List(NameArg),
    /// End the manager; the workers stay
    Quit,
    /// Stop everything: workers, sockets, manager, and the kernel when nothing is left in it
    Down,
    /// Read an INI file and report every mistake in it
    Check(CheckArgs),
}

/// Arguments of `up`.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  $ papactl up examples/quickstart.ini
  kernel:  started, pid 4711, /run/papa/20202.sock
  manager: started, pid 4713, log /run/papa/circus.manager.log
  clock    active   1/1  4715
  greeter  active   2/2  4716 4717")]
pub struct UpArgs {
    /// The INI file
    pub file: PathBuf,
    /// Run the manager here instead of in the background
    #[arg(long)]
    pub foreground: bool,
    /// Return when every watcher is up (this is the default)
    #[arg(long, conflicts_with = "no_wait")]
    pub wait: bool,
    /// Return as soon as the manager answers
    #[arg(long)]
    pub no_wait: bool,
}

/// A watcher, or all.
#[derive(Debug, Args)]
pub struct NameArg {
    /// A watcher's name; `*` and `?` stand for several
    pub name: Option<String>,
}

/// Arguments of `logs`.
#[derive(Debug, Args)]
#[command(after_help = "\
Example: the last 50 lines of web's logs, then what is added:
  $ papactl logs web -n 50 -f")]
pub struct LogsArgs {
    /// A watcher's name; `*` and `?` stand for several
    pub name: Option<String>,
    /// How many of the last lines of each file to print
    #[arg(short = 'n', long, default_value_t = 10, value_name = "N")]
    pub lines: usize,
    /// Go on printing what is added, across rotation
    #[arg(short, long)]
    pub follow: bool,
}

/// Arguments of `check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The INI file
    pub file: PathBuf,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_lines_are_consistent() {
        ManagerArgs::command().debug_assert();
        Papactl::command().debug_assert();
    }

    #[test]
    fn common_flags_are_taken_on_both_sides_of_the_verb() {
        for line in [
            ["papactl", "--json", "status", "web"],
            ["papactl", "status", "web", "--json"],
        ] {
            assert!(Papactl::parse_from(line).common.json);
        }
    }

    #[test]
    fn a_timeout_is_a_positive_number() {
        assert_eq!(parse_timeout("2.5"), Ok(Duration::from_millis(2500)));
        for text in ["0", "-1", "nan", "inf", "1e300", "x", ""] {
            assert!(parse_timeout(text).is_err(), "{text}");
        }
    }
}
