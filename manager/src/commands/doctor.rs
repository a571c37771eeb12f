//! `papactl doctor`: everything that is not as it should be, and what was looked at.

use crate::cli::Common;
use crate::commands::{CommandError, connect, print, print_json, table, with_ok};
use crate::control::message::{Command, DoctorReply, Finding, Level, Request};

/// Runs the verb.
pub(super) fn run(common: &Common) -> Result<(), CommandError> {
    let request = Request::waiting(Command::Doctor);
    let reply: DoctorReply = connect(common)?.ask(&request, common.timeout())?;
    let bad = reply
        .findings
        .iter()
        .any(|finding| finding.level == Level::Problem);
    if common.json {
        print_json(&with_ok(&reply))?;
    } else {
        print(&rendered(&reply.findings))?;
    }
    if bad {
        Err(CommandError::Reported)
    } else {
        Ok(())
    }
}

fn rendered(findings: &[Finding]) -> String {
    let about: Vec<String> = findings
        .iter()
        .map(|finding| table::printable(&finding.about))
        .collect();
    let width = about
        .iter()
        .map(|about| about.chars().count())
        .max()
        .unwrap_or(0)
        .min(table::COLUMNS / 3);
    let mut text = String::new();
    for (finding, about) in findings.iter().zip(&about) {
        let start = format!("{:7}  {about:width$}", finding.level.as_str());
        let said = table::printable(&finding.text);
        text.push_str(&table::wrapped(&start, &said));
    }
    text
}
