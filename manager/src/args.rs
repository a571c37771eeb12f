//! The command line of `papa-manager`. Doc comments here are the help text.

use std::path::PathBuf;

use clap::Parser;

/// Runs the watchers of an INI file through the papa kernel. May be stopped, upgraded or killed at
/// any time: the workers stay, and the next manager takes them over. Usually started by `papactl up
/// FILE`.
#[derive(Debug, Parser)]
#[command(name = "papa-manager", version)]
pub struct ManagerArgs {
    /// The INI file.
    pub file: PathBuf,
    /// Kernel to use: a socket's path, `@abstract`, or tcp://HOST:PORT [default: the one the INI
    /// names, then the usual places]
    #[arg(long, value_name = "ADDR")]
    pub kernel: Option<String>,
    /// Write the manager's own log here instead of to standard error.
    #[arg(long, value_name = "FILE")]
    pub log_file: Option<PathBuf>,
    /// Log every decision.
    #[arg(long)]
    pub debug: bool,
    /// Read the file, say what is wrong with it, and start nothing.
    #[arg(long)]
    pub check: bool,
    /// Leave the terminal's session first, so that closing the terminal does not end the manager.
    #[arg(long, hide = true)]
    pub own_session: bool,
    /// Stop everything on TERM, INT and QUIT, as circusd does, and write to standard output what
    /// workers write into no file.
    #[arg(long)]
    pub foreground: bool,
    /// With --foreground: leave the workers to the kernel instead of stopping them.
    #[arg(long, requires = "foreground")]
    pub keep_workers: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        ManagerArgs::command().debug_assert();
    }
}
