//! Arguments of `papactl`'s verbs. Doc comments here are the help text.

use std::path::PathBuf;

use chrono::{DateTime, Utc};
use clap::{Args, Subcommand, ValueEnum};

use papa_control::message::{Matching, Since};

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
    /// Run the manager here instead of in the background: shows what workers write into
    /// no file; TERM or Ctrl-C stops everything, a second one kills what is left
    #[arg(long)]
    pub foreground: bool,
    /// With --foreground: TERM or Ctrl-C ends only the manager, the workers run on
    #[arg(long, requires = "foreground")]
    pub keep_workers: bool,
    /// Return when every watcher is up (this is the default)
    #[arg(long, conflicts_with = "no_wait")]
    pub wait: bool,
}

/// A watcher, or all.
#[derive(Debug, Args)]
pub struct NameArg {
    /// A watcher's name; `*` and `?` stand for several
    pub name: Option<String>,
}

/// What `doctor` shows.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Show the ledger of every worker, not only their sum
    #[arg(short = 'v', long)]
    pub verbose: bool,
}

/// Watchers and workers, or all.
#[derive(Debug, Args)]
pub struct NamesArg {
    /// Watchers' names; `*` and `?` stand for several, NAME:WID for one worker, `all`
    /// for every watcher
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
}

/// Arguments of `status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Whom.
    #[command(flatten)]
    pub whom: NamesArg,
    /// Exit with 3 if a watcher was given up, keeps failing, or has fewer workers
    /// than wanted
    #[arg(long)]
    pub check: bool,
}

/// Watchers, or all.
#[derive(Debug, Args)]
pub struct SelectArgs {
    /// Watchers' names; `*` and `?` stand for several, `all` for every watcher
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
    /// How NAME is compared
    #[arg(
        long = "match",
        value_name = "HOW",
        default_value = "glob",
        requires = "names"
    )]
    pub matching: MatchArg,
}

/// How a name is compared.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum MatchArg {
    /// As a shell pattern
    Glob,
    /// As it is
    Simple,
    /// As a regular expression that matches from the beginning
    Regex,
}

impl From<MatchArg> for Matching {
    fn from(how: MatchArg) -> Self {
        match how {
            MatchArg::Glob => Self::Glob,
            MatchArg::Simple => Self::Simple,
            MatchArg::Regex => Self::Regex,
        }
    }
}

/// Arguments of `reload`.
#[derive(Debug, Args)]
pub struct ReloadArgs {
    /// Whose workers.
    #[command(flatten)]
    pub select: SelectArgs,
    /// One after another, each old worker before its successor
    #[arg(long, conflicts_with = "terminate")]
    pub sequential: bool,
    /// All old workers first, like restart
    #[arg(long)]
    pub terminate: bool,
}

/// Arguments of `reloadconfig`.
#[derive(Debug, Args)]
pub struct ReloadConfigArgs {
    /// Only print what would be done, and why
    #[arg(long)]
    pub plan: bool,
    /// Go on even if more than half of what runs would be stopped, or an included
    /// file is no longer there
    #[arg(long, visible_alias = "accept_removal")]
    pub accept_removal: bool,
}

/// Arguments of `incr` and `decr`.
#[derive(Debug, Args)]
pub struct CountArgs {
    /// Watchers, then how many each if not one
    #[arg(
        value_name = "NAME [N]",
        required = true,
        allow_negative_numbers = true
    )]
    pub words: Vec<String>,
}

/// Arguments of `scale`.
#[derive(Debug, Args)]
pub struct ScaleArgs {
    /// The watcher, a pattern or `all`; NAME=N is taken as well
    pub name: String,
    /// How many workers it is to have
    #[arg(value_name = "N", value_parser = parse_count, allow_negative_numbers = true)]
    pub count: Option<u32>,
}

fn parse_count(text: &str) -> Result<u32, String> {
    text.parse()
        .map_err(|_| "expected a whole number, for example papactl scale web 4".to_owned())
}

/// Arguments of `set`.
#[derive(Debug, Args)]
pub struct SetArgs {
    /// The watcher; a pattern or `all` for several
    pub name: String,
    /// Option and value, as often as needed
    #[arg(value_names = ["KEY", "VALUE"], required = true, num_args = 2.., allow_hyphen_values = true)]
    pub pairs: Vec<String>,
}

/// Arguments of `get`.
#[derive(Debug, Args)]
pub struct GetArgs {
    /// The watcher
    pub name: String,
    /// Options
    #[arg(value_name = "KEY", required = true)]
    pub keys: Vec<String>,
}

/// Arguments of `options`.
#[derive(Debug, Args)]
pub struct OptionsArgs {
    /// Watchers; without one, the options of the section circus
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
    /// Show values that look like secrets
    #[arg(long)]
    pub reveal: bool,
}

/// Arguments of `add`.
#[derive(Debug, Args)]
pub struct AddArgs {
    /// Start it at once
    #[arg(long)]
    pub start: bool,
    /// An option, as in an INI file; may be given several times
    #[arg(long = "option", short = 'o', value_name = "KEY=VALUE")]
    pub options: Vec<String>,
    /// Name of the new watcher
    pub name: String,
    /// Its command: one word is split like `cmd` in a file, several are taken
    /// as they are
    #[arg(
        value_name = "CMD",
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    pub command: Vec<String>,
}

/// Arguments of `rm`.
#[derive(Debug, Args)]
pub struct RmArgs {
    /// Watchers; `*` and `?` stand for several
    #[arg(value_name = "NAME", required = true)]
    pub names: Vec<String>,
    /// Forget it only: its workers run on, managed by nobody
    #[arg(long)]
    pub nostop: bool,
}

/// Arguments of `signal`.
#[derive(Debug, Args)]
pub struct SignalArgs {
    /// Watchers, or one and a worker's pid, or NAME:WID; then the signal: a name or
    /// a number
    #[arg(value_names = ["NAME", "[PID] SIGNAL"], required = true, num_args = 2..)]
    pub words: Vec<String>,
    /// To the direct children of the workers, not to themselves
    #[arg(long, conflicts_with = "recursive")]
    pub children: bool,
    /// Also to everything the workers started
    #[arg(long)]
    pub recursive: bool,
}

/// Arguments of `kill`.
#[derive(Debug, Args)]
pub struct KillArgs {
    /// Watchers, or one and a worker's pid, or NAME:WID
    #[arg(value_name = "NAME [PID]", required = true)]
    pub words: Vec<String>,
    /// Instead of the watcher's `stop_signal`
    #[arg(long, value_name = "SIGNAL")]
    pub signum: Option<String>,
    /// Seconds until they are killed, instead of the watcher's
    #[arg(
        long,
        visible_alias = "graceful_timeout",
        allow_negative_numbers = true,
        value_name = "SECONDS"
    )]
    pub graceful_timeout: Option<f64>,
}

/// Arguments of `stats`.
#[derive(Debug, Args)]
pub struct StatsArgs {
    /// Watchers, or one and a worker's pid, or NAME:WID; `all` for every watcher
    #[arg(value_name = "NAME [PID]")]
    pub words: Vec<String>,
    /// What hooks add is shown too
    #[arg(long, hide = true)]
    pub extended: bool,
}

/// Arguments of `listen`.
#[derive(Debug, Args)]
pub struct ListenArgs {
    /// Beginnings of topics: `watcher.web.`; none means all events
    #[arg(value_name = "TOPIC")]
    pub topics: Vec<String>,
    /// Go on after this event: INCARNATION:NUMBER, or 0 for all there still are
    #[arg(long, value_name = "PLACE")]
    pub since: Option<Since>,
}

/// The verbs of `kernel`.
#[derive(Debug, Clone, Subcommand)]
pub enum KernelVerb {
    /// What the kernel is and holds, in numbers
    #[command(after_help = "Example:\n  $ papactl kernel status")]
    Status,
    /// Change the kernel's program, here to the one that is installed now where it
    /// was started from; processes, sockets, output and connections stay
    #[command(
        after_help = "Examples:\n  $ papactl kernel upgrade --dry-run\n  $ papactl kernel upgrade --binary /opt/papa-0.2/papa"
    )]
    Upgrade(KernelUpgradeArgs),
    /// Everything the kernel knows, as JSON
    #[command(after_help = "Example:\n  $ papactl kernel dump > kernel.json")]
    Dump,
}

/// Arguments of `kernel upgrade`.
#[derive(Debug, Clone, Args)]
pub struct KernelUpgradeArgs {
    /// Change to this program, older or newer, instead
    #[arg(long, value_name = "PATH")]
    pub binary: Option<PathBuf>,
    /// Replace the keeper too: the kernel takes its place and starts another
    #[arg(long)]
    pub keeper: bool,
    /// Change even if the program finds something it cannot read, or is too old
    /// to be tried first
    #[arg(long, conflicts_with = "dry_run")]
    pub force: bool,
    /// Only try whether the program would take everything over
    #[arg(long)]
    pub dry_run: bool,
}

/// Arguments of `completions`.
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell
    pub shell: clap_complete::Shell,
}

/// Arguments of `logs`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples: the last 50 lines of web, then what is added; two hours of everything
  $ papactl logs web -n 50 -f
  $ papactl logs --since 2h")]
pub struct LogsArgs {
    /// Watchers' names; `*` and `?` stand for several, NAME:WID for one worker, `all`
    /// for every watcher
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
    /// How many of the last lines to print, of each file, or of each watcher without
    /// one; `all` for all of them [default: 10, with --since all]
    #[arg(short = 'n', long, value_name = "N", value_parser = parse_lines, allow_negative_numbers = true)]
    pub lines: Option<Lines>,
    /// Go on printing what is added, across rotation
    #[arg(short, long)]
    pub follow: bool,
    /// Print nothing older: 10m, 2h, 1d, "2026-11-22 18:00", 18:00, RFC 3339
    #[arg(long, value_name = "WHEN", value_parser = crate::commands::logs::parse_since)]
    pub since: Option<DateTime<Utc>>,
}

/// Arguments of `check`.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  $ papactl check examples/quickstart.ini
  examples/quickstart.ini: no mistakes; 2 watchers, 0 sockets")]
pub struct CheckArgs {
    /// The INI file
    pub file: PathBuf,
    /// Fail on warnings too
    #[arg(long)]
    pub strict: bool,
}

/// How many lines are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lines {
    /// Every line.
    All,
    /// So many of the last.
    Last(usize),
}

fn parse_lines(text: &str) -> Result<Lines, String> {
    if text.eq_ignore_ascii_case("all") {
        return Ok(Lines::All);
    }
    text.parse()
        .map(Lines::Last)
        .map_err(|_| "expected a number of lines, or all".to_owned())
}
