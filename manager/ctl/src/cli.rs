//! The command line of `papactl`.
//!
//!
//! Owns the flags and the help; what a verb does is in `commands`. Doc comments here are the help
//! text.
//! Source: manager/docs/papactl.md.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, Parser, Subcommand};

pub mod args;
mod foreign;

use args::{
    AddArgs, CheckArgs, CompletionsArgs, CountArgs, DoctorArgs, GetArgs, KernelVerb, KillArgs,
    ListenArgs, LogsArgs, NameArg, NamesArg, OptionsArgs, ReloadArgs, ReloadConfigArgs, RmArgs,
    ScaleArgs, SelectArgs, SetArgs, SignalArgs, StatsArgs, StatusArgs, UpArgs,
};

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

impl Papactl {
    /// Reads the command line. A mistake in it is said, and ends the program with status 2; for the
    /// words of other managers that is what to type here.
    #[must_use]
    pub fn read() -> Self {
        Self::try_parse().unwrap_or_else(|error| {
            if error.kind() == ErrorKind::InvalidSubcommand
                && let Some(ContextValue::String(word)) = error.get(ContextKind::InvalidSubcommand)
                && let Some(instead) = foreign::instead_of(word)
            {
                let _ = writeln!(
                    std::io::stderr(),
                    "papactl: there is no {word:?}; here: {instead}"
                );
                std::process::exit(i32::from(EXIT_USAGE));
            }
            error.exit()
        })
    }
}

/// Usage is wrong.
const EXIT_USAGE: u8 = 2;

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
    /// The manager to talk to, by namespace [default: the one that runs]
    #[arg(long, global = true, value_name = "NS")]
    pub namespace: Option<String>,
    /// Seconds to wait for the work to be done [default: 60]
    #[arg(long, global = true, value_name = "SECONDS", value_parser = parse_timeout)]
    pub timeout: Option<Duration>,
    /// Return when the work is accepted instead of when it is done
    #[arg(long, global = true)]
    pub no_wait: bool,
    /// Wait for the work to be done: the default, and how circusctl said it
    #[arg(long, global = true, hide = true, conflicts_with = "no_wait")]
    pub waiting: bool,
}

/// How long a verb waits unless told otherwise: twice Circus's default grace period for stopping a
/// worker.
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
    /// Stop everything: workers, sockets, manager, and the kernel when nothing is
    /// left in it
    #[command(after_help = "\
Example:
  $ papactl down
  manager: ended
  kernel:  ended

Where no manager runs, it ends the workers that one left in the kernel, and
orphans of a kernel that was lost; with --config FILE by the stop signals and
grace periods of the file. Output that cannot be written is named, and the
exit status is 1.")]
    #[command(visible_alias = "shutdown")]
    Down,
    /// Show watchers, their state and their workers' pids
    #[command(after_help = "\
Example:
  $ papactl status 'web*'
  web      active   2/2  4715 4716
  web-api  stopped  0/1")]
    #[command(visible_alias = "ps", alias = "ls")]
    Status(StatusArgs),
    /// Start a watcher, or all of them
    #[command(after_help = "Example:\n  $ papactl start web")]
    Start(SelectArgs),
    /// Stop a watcher, or all of them; it stays stopped until started
    #[command(after_help = "\
Examples: two watchers; all whose name begins with web, without waiting
  $ papactl stop api worker
  $ papactl stop 'web*' --no-wait")]
    Stop(SelectArgs),
    /// Stop and start a watcher, or all of them
    #[command(after_help = "Example:\n  $ papactl restart web --timeout 120")]
    Restart(SelectArgs),
    /// Replace workers without a gap: new ones are ready before old ones go
    #[command(after_help = "\
Example: one worker after another, each old one before its successor
  $ papactl reload web --sequential")]
    Reload(ReloadArgs),
    /// Apply what has changed in the INI file, and only that
    #[command(
        name = "reloadconfig",
        after_help = "\
Example: look first, then do it
  $ papactl reloadconfig --plan
  roll     watcher:web  cmd: \"web -v1\" -> \"web -v2\"
  $ papactl reloadconfig"
    )]
    #[command(visible_alias = "update")]
    ReloadConfig(ReloadConfigArgs),
    /// Read the INI file and print what has changed in it: reloadconfig --plan
    #[command(hide = true)]
    Reread,
    /// Set the number of a watcher's workers, until the file says another
    #[command(after_help = "Example:\n  $ papactl scale web 4")]
    Scale(ScaleArgs),
    /// More workers for a watcher
    #[command(after_help = "Example: two more\n  $ papactl incr web 2")]
    Incr(CountArgs),
    /// Fewer workers for a watcher
    #[command(after_help = "Example: one fewer\n  $ papactl decr web")]
    Decr(CountArgs),
    /// Change options of a running watcher
    #[command(after_help = "\
Example:
  $ papactl set web numprocesses 4 graceful_timeout 10
What is set holds until the file says something else of that option than it
does now; `papactl reloadconfig --plan` shows it as kept.")]
    Set(SetArgs),
    /// Print some of a watcher's options
    #[command(after_help = "\
Example:
  $ papactl get web numprocesses cmd
  cmd: web --port 80
  numprocesses: 4")]
    Get(GetArgs),
    /// Print all options of a watcher, or those of the section circus
    #[command(after_help = "Example:\n  $ papactl options web")]
    Options(OptionsArgs),
    /// Add a watcher that is in no file
    #[command(after_help = "\
Example:
  $ papactl add --start sleeper sleep 1000")]
    Add(AddArgs),
    /// Stop a watcher and forget it
    #[command(after_help = "Example:\n  $ papactl rm sleeper")]
    #[command(visible_alias = "delete", alias = "remove")]
    Rm(RmArgs),
    /// Send a signal to workers
    #[command(after_help = "\
Examples: to all workers of web; to worker 4715 and all it started
  $ papactl signal web HUP
  $ papactl signal web 4715 USR1 --recursive")]
    Signal(SignalArgs),
    /// Stop workers, which are then replaced
    #[command(after_help = "\
Example: one worker, which gets 5 seconds to end
  $ papactl kill web 4715 --graceful-timeout 5")]
    Kill(KillArgs),
    /// Print the watchers' names, or the pids of one
    #[command(after_help = "Example:\n  $ papactl list web\n  4715,4716")]
    List(NamesArg),
    /// Print what workers use of CPU and memory
    #[command(after_help = "Example:\n  $ papactl stats web")]
    Stats(StatsArgs),
    /// Print what the manager uses of CPU and memory
    #[command(name = "dstats", after_help = "Example:\n  $ papactl dstats")]
    DStats,
    /// Print watchers' log files, output that goes to no file, and the last words of workers that
    /// have ended
    #[command(visible_alias = "tail")]
    Logs(LogsArgs),
    /// Print what happens, as it happens: one line of JSON for each event
    #[command(after_help = "\
Example: the events of one watcher, then the same from where it was cut off
  $ papactl listen watcher.web.
  $ papactl listen watcher.web. --since 19a0-77:412")]
    Listen(ListenArgs),
    /// Print the sockets held for the workers
    #[command(
        name = "listsockets",
        after_help = "Example:\n  $ papactl listsockets\n  100:socket 'web' at 0.0.0.0:80"
    )]
    ListSockets,
    /// Read an INI file and report every mistake in it
    Check(CheckArgs),
    /// Look at the kernel, or have it start anew
    #[command(subcommand, after_help = "Example:\n  $ papactl kernel status")]
    Kernel(KernelVerb),
    /// Have the manager start anew, as the program that is installed now; the
    /// workers stay
    #[command(after_help = "Example:\n  $ papactl upgrade")]
    Upgrade,
    /// End the manager; the workers stay
    #[command(after_help = "\
Example:
  $ papactl quit
  manager: ended; 12 workers run on")]
    Quit,
    /// Have the manager open its log files anew, after somebody moved them
    #[command(
        name = "reopenlogs",
        after_help = "Example: in a logrotate script\n  papactl reopenlogs"
    )]
    ReopenLogs,
    /// Look for everything that is not as it should be
    #[command(after_help = "\
Example:
  $ papactl doctor
  ok       kernel   pid 4711, connected
  notice   drift    web: numprocesses is 4, the file says 2
Exit status 1 if there is a problem. Without a manager it asks the kernel alone.")]
    Doctor(DoctorArgs),
    /// Print the versions of papactl, the manager and the kernel
    #[command(
        after_help = "Example:\n  $ papactl version\n  papactl  0.1.0\n  manager  0.1.0\n  kernel   0.1.0"
    )]
    Version,
    /// Print a script that completes papactl's words in a shell
    #[command(after_help = "\
Example:
  $ papactl completions bash > /etc/bash_completion.d/papactl")]
    Completions(CompletionsArgs),
    /// How many workers are meant to run
    #[command(name = "numprocesses", hide = true)]
    NumProcesses(NameArg),
    /// How many watchers there are
    #[command(name = "numwatchers", hide = true)]
    NumWatchers,
    /// Options of the section circus, or one of them
    #[command(name = "globaloptions", hide = true)]
    GlobalOptions(NameArg),
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
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

    /// The lines of the documents that people type: behind four blanks, `$ papactl …` or `papactl
    /// …`, up to a comment.
    fn documented_lines() -> Vec<(String, Vec<String>)> {
        let pages = [
            include_str!("../../../README.md"),
            include_str!("../../README.md"),
            include_str!("../../docs/papactl.md"),
            include_str!("../../docs/operation.md"),
            include_str!("../../docs/deploys.md"),
            include_str!("../../docs/logs.md"),
            include_str!("../../docs/circus.md"),
        ];
        let mut found = Vec::new();
        for line in pages.iter().flat_map(|page| page.lines()) {
            let Some(typed) = line.strip_prefix("    ") else {
                continue;
            };
            let typed = typed.strip_prefix("$ ").unwrap_or(typed);
            let typed = typed.strip_prefix("target/release/").unwrap_or(typed);
            if !typed.starts_with("papactl ") {
                continue;
            }
            let typed = typed.split(" # ").next().unwrap_or(typed);
            let typed = typed.split("   ").next().unwrap_or(typed);
            let words = typed.split_whitespace().map(str::to_owned).collect();
            found.push((line.to_owned(), words));
        }
        found
    }

    #[test]
    fn command_lines_in_the_documents_are_accepted() {
        let lines = documented_lines();
        assert!(lines.len() > 25, "{lines:?}");
        for (line, words) in lines {
            if let Err(error) = Papactl::try_parse_from(&words) {
                panic!("{line}\n{error}");
            }
        }
    }

    /// The words in backquotes of a row's first cell, each with its arguments: `kernel status`.
    fn quoted(cell: &str) -> Vec<Vec<&str>> {
        let pieces = cell.split('`').skip(1).step_by(2);
        pieces.map(|piece| piece.split(' ').collect()).collect()
    }

    #[test]
    fn the_page_has_a_row_for_every_verb_and_knows_no_other_verb_or_option() {
        let page = include_str!("../../docs/papactl.md");
        let mut command = Papactl::command();
        command.build();
        let kernel = command.find_subcommand("kernel").unwrap().clone();
        let mut described = std::collections::BTreeSet::new();
        let rows = page.lines().skip_while(|line| !line.starts_with("|---"));
        for row in rows.skip(1).take_while(|line| line.starts_with('|')) {
            let first = row.split(" | ").next().unwrap();
            let mut verbs = Vec::new();
            for words in quoted(first) {
                let verb = match words.as_slice() {
                    ["kernel", word, ..] => kernel.find_subcommand(word),
                    [word, ..] => command.find_subcommand(word),
                    [] => None,
                };
                let verb = verb.unwrap_or_else(|| panic!("no verb {words:?}: {row}"));
                described.insert(verb.get_name().to_owned());
                verbs.push(verb);
            }
            let known = |flag: &str| {
                let mut arguments = verbs.iter().flat_map(|verb| verb.get_arguments());
                arguments.any(|argument| argument.get_long() == Some(flag))
            };
            let is_word = |c: char| c.is_ascii_lowercase() || c == '-';
            for (at, _) in row.match_indices("`--").chain(row.match_indices("[--")) {
                let flag = row[at + 3..].split(|c| !is_word(c)).next().unwrap();
                assert!(known(flag), "--{flag} is no option of it: {row}");
            }
        }
        let all = command.get_subcommands().chain(kernel.get_subcommands());
        for verb in all.filter(|verb| !verb.is_hide_set()) {
            let name = verb.get_name();
            assert!(
                described.contains(name) || ["kernel", "help"].contains(&name),
                "manager/docs/papactl.md has no row for {name}"
            );
            for word in verb.get_all_aliases() {
                assert!(page.contains(&format!("`{word}`")), "{name}: {word}");
            }
        }
    }

    #[test]
    fn every_verb_shows_an_example_in_80_columns() {
        let mut command = Papactl::command();
        command.build();
        for verb in command.get_subcommands_mut() {
            let hidden = verb.is_hide_set() || verb.get_name() == "help";
            let help = verb.render_long_help().to_string();
            let name = verb.get_name().to_owned();
            assert!(
                hidden || name == "kernel" || help.contains("Example"),
                "{name}:\n{help}"
            );
            for line in help.lines() {
                assert!(line.chars().count() <= 80, "{name}: {line:?}");
            }
        }
    }

    #[test]
    fn a_negative_number_was_taken_for_an_option() {
        for line in [&["logs", "-n", "-1"][..], &["scale", "web", "-1"]] {
            let words = ["papactl"].iter().chain(line);
            let error = Papactl::try_parse_from(words).unwrap_err().to_string();
            assert!(error.contains("expected a "), "{line:?}: {error}");
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
