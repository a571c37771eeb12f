//! `papactl listen`: events as they happen, one line of JSON each.

use crate::cli::Common;
use crate::cli::args::ListenArgs;
use crate::commands::logs::screen;
use crate::commands::{CommandError, connect, note};
use papa_control::message::{Command, Listen, Request};

/// Runs the verb, until interrupted or the manager ends.
pub(super) fn run(common: &Common, args: &ListenArgs) -> Result<(), CommandError> {
    let mut client = connect(common)?;
    let request = Request::accepted(Command::Listen(Listen {
        topics: args.topics.clone(),
        since: args.since.clone(),
    }));
    let start: serde_json::Map<_, _> = client.ask(&request, common.timeout())?;
    let incarnation = start["incarnation"].as_str().unwrap_or_default().to_owned();
    if !common.json {
        note(&format!(
            "listening; come back with --since {incarnation}:NUMBER, the \"seq\" of the last event seen"
        ));
    }
    screen::end_with_reader();
    loop {
        let line = client.next_line()?;
        // JSON has no bare control characters: it is as harmless as it is.
        screen::write_out(format!("{}\n", String::from_utf8_lossy(&line)).as_bytes())?;
    }
}
