//! `papactl completions`: a script that completes papactl's words in a shell.

use clap::CommandFactory;

use crate::cli::Papactl;
use crate::cli::args::CompletionsArgs;
use crate::commands::{CommandError, print};

/// Runs the verb.
pub(super) fn run(args: &CompletionsArgs) -> Result<(), CommandError> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Papactl::command(), "papactl", &mut script);
    print(&String::from_utf8_lossy(&script))
}
