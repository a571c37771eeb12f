//! `papactl restart`: stops and starts watchers and waits until they are up; of a single worker,
//! ends it and has it replaced.

use crate::cli::Common;
use crate::cli::args::SelectArgs;
use crate::commands::{CommandError, change, connect, done, kill, meant};
use papa_control::message::{Command, Kill, Matching};

/// Runs the verb.
pub(super) fn run(common: &Common, args: &SelectArgs) -> Result<(), CommandError> {
    if Matching::from(args.matching) == Matching::Glob
        && args.names.iter().any(|name| name.contains(':'))
    {
        let mut client = connect(common)?;
        let targets = meant::targets(common, &mut client, &args.names)?;
        if targets.iter().all(|target| target.worker.is_some()) {
            let how = Kill {
                name: String::new(),
                pid: None,
                signal: None,
                graceful_timeout: None,
            };
            kill::each(common, &mut client, targets, &how)?;
            return done(common);
        }
    }
    change(common, args, "restart", Command::Restart)
}
