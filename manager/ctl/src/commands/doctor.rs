//! `papactl doctor`: everything that is not as it should be, and what was looked at.

use papa_system::printable::printable;

use crate::cli::Common;
use crate::cli::args::DoctorArgs;
use crate::commands::kernel::{self, Examined};
use crate::commands::{
    CommandError, connect, loaded, namespace, print, print_json, table, with_ok,
};
use papa_control::client::ManagerError;
use papa_control::findings::{judge_ledgers, notice, problem, running};
use papa_control::message::{Command, DoctorReply, Finding, Level, Request};
use papa_system::runtime_dir::RuntimeDir;

/// Most processes told by name.
const MAX_TOLD: usize = 10;

/// Runs the verb.
pub(super) fn run(common: &Common, args: &DoctorArgs) -> Result<(), CommandError> {
    let request = Request::waiting(Command::Doctor);
    let asked = connect(common).and_then(|mut manager| {
        let reply = manager.ask::<DoctorReply>(&request, common.timeout());
        reply.map_err(CommandError::from)
    });
    let reply = match asked {
        Ok(reply) => reply,
        Err(
            error @ (CommandError::Elsewhere(_)
            | CommandError::Manager(
                ManagerError::NotRunning { .. } | ManagerError::RuntimeDir(_),
            )),
        ) => DoctorReply {
            findings: without_manager(common, &error)?,
        },
        Err(error) => return Err(error),
    };
    let bad = reply
        .findings
        .iter()
        .any(|finding| finding.level == Level::Problem);
    if common.json {
        print_json(&with_ok(&reply))?;
    } else {
        let mut findings = reply.findings.clone();
        findings.retain(|finding| args.verbose || !finding.detail);
        print(&rendered(&findings))?;
    }
    if bad {
        Err(CommandError::Reported)
    } else {
        Ok(())
    }
}

/// What the kernel alone tells.
fn without_manager(common: &Common, error: &CommandError) -> Result<Vec<Finding>, CommandError> {
    let mut findings = vec![problem("manager", error.to_string())];
    let namespace = namespace(common)?;
    let config = common.config.as_deref().and_then(loaded);
    let endpoint = config.as_ref().and_then(|config| config.kernel.as_ref());
    let places = kernel::candidates(&RuntimeDir::locate(), endpoint)?;
    let kernel = match kernel::examine(&places) {
        Ok(kernel) => kernel,
        Err(error) => {
            findings.push(problem("kernel", error.to_string()));
            return Ok(findings);
        }
    };
    let Some(kernel) = kernel else {
        findings.push(problem(
            "kernel",
            "none answers; `papactl up FILE` starts one",
        ));
        return Ok(findings);
    };
    let elsewhere = matches!(error, CommandError::Elsewhere(_));
    judge_alone(&kernel, &namespace, elsewhere, &mut findings);
    Ok(findings)
}

fn judge_alone(kernel: &Examined, namespace: &str, elsewhere: bool, findings: &mut Vec<Finding>) {
    let status = &kernel.status;
    findings.push(running(status));
    judge_ledgers(&kernel.processes, &status.ledger, findings);
    let ours = kernel.processes.iter().filter(|process| {
        let name = process.name.as_str();
        process.running
            && name
                .strip_prefix(namespace)
                .is_some_and(|rest| rest.starts_with('.'))
    });
    let told: Vec<String> = ours
        .map(|process| format!("{} (pid {})", process.name, process.pid))
        .collect();
    if !told.is_empty() && !elsewhere {
        let more = told.len().saturating_sub(MAX_TOLD);
        let more = if more > 0 {
            format!(" and {more} more")
        } else {
            String::new()
        };
        let shown = told.get(..MAX_TOLD).unwrap_or(&told).join(", ");
        let text = format!(
            "run on without a manager: {shown}{more}; `papactl up FILE` takes them over, `papactl down` ends them"
        );
        findings.push(notice("processes", text));
    }
}

fn rendered(findings: &[Finding]) -> String {
    let about: Vec<String> = findings
        .iter()
        .map(|finding| printable(&finding.about))
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
        let said = printable(&finding.text);
        text.push_str(&table::wrapped(&start, &said));
    }
    text
}
