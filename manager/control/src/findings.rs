//! What `doctor` concludes from what the kernel says of itself, with a manager and without one.
//!
//! Owns the words of these findings and the check that every ledger of output adds up. Pure.

use papa_protocol::json::status::StatusReply;
use papa_protocol::process::{Ledger, Process};

use crate::message::{Finding, Level};

/// Most findings of one kind that are told one by one.
pub const MAX_ALIKE: usize = 20;
/// Most processes whose ledger is told although it adds up; those where it does not are all told.
const MAX_LEDGERS: usize = 256;

/// What went where of every worker's output, and whether that adds up.
pub fn judge_ledgers(processes: &[Process], whole: &Ledger, findings: &mut Vec<Finding>) {
    let mut sum = Ledger::default();
    let mut gaps = Vec::new();
    let mut wrong = false;
    for (index, process) in processes.iter().enumerate() {
        let ledger = &process.ledger;
        let told = |text: String| format!("{}: {text}", process.name);
        match entries(ledger) {
            Ok(text) if index < MAX_LEDGERS => findings.push(Finding {
                detail: true,
                ..ok("ledger", told(text))
            }),
            Ok(_) => {}
            Err(text) => {
                wrong = true;
                findings.push(problem("ledger", told(text)));
            }
        }
        if ledger.dropped > 0 {
            gaps.push(format!("{}: {} bytes", process.name, ledger.dropped));
        }
        for (sum, value) in [
            (&mut sum.captured, ledger.captured),
            (&mut sum.delivered, ledger.delivered),
            (&mut sum.acknowledged, ledger.acknowledged),
            (&mut sum.dropped, ledger.dropped),
        ] {
            *sum = sum.saturating_add(value);
        }
    }
    let about = "ledger";
    if !wrong {
        let text = entries(&sum).unwrap_or_else(|text| text);
        findings.push(ok(
            about,
            format!("adds up for all {} processes: {text}", processes.len()),
        ));
    }
    // Asked for after the processes, and counters only grow: the kernel's own sum, with what it has
    // forgotten, is never less.
    match entries(whole) {
        Err(text) => findings.push(problem(about, format!("the kernel's sum: {text}"))),
        Ok(_) if whole.captured < sum.captured || whole.acknowledged < sum.acknowledged => {
            let text = format!(
                "the kernel's sum has {} bytes captured and {} acknowledged, its processes {} and {}",
                whole.captured, whole.acknowledged, sum.captured, sum.acknowledged
            );
            findings.push(problem(about, text));
        }
        Ok(text) => findings.push(Finding {
            detail: true,
            ..ok(
                about,
                format!("with other namespaces and what is forgotten: {text}"),
            )
        }),
    }
    if !gaps.is_empty() {
        let text = format!("output was dropped unread{}", listed(&gaps));
        findings.push(notice(about, text));
    }
}

/// The entries of one ledger in words; the error says what does not add up.
fn entries(ledger: &Ledger) -> Result<String, String> {
    let Ledger {
        captured,
        delivered,
        acknowledged,
        dropped,
    } = *ledger;
    let kept = captured.checked_sub(acknowledged.saturating_add(dropped));
    match kept {
        Some(kept) if delivered <= captured => Ok(format!(
            "{captured} bytes captured = {acknowledged} acknowledged + {dropped} dropped + {kept} kept; {delivered} delivered"
        )),
        _ => Err(format!(
            "does not add up: {captured} bytes captured, {acknowledged} acknowledged, {dropped} dropped, {delivered} delivered"
        )),
    }
}

/// `: a, b`, not more than a few.
#[must_use]
pub fn listed(all: &[String]) -> String {
    if all.is_empty() {
        return String::new();
    }
    let more = match all.len().saturating_sub(MAX_ALIKE) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let some: Vec<&str> = all.iter().take(MAX_ALIKE).map(String::as_str).collect();
    format!(": {}{more}", some.join(", "))
}

/// A kernel that answers.
#[must_use]
pub fn running(status: &StatusReply) -> Finding {
    ok(
        "kernel",
        format!(
            "pid {}, version {}, start number {}, {} processes run",
            status.pid, status.version, status.incarnation, status.counts.running
        ),
    )
}

/// Something that is as it should be.
#[must_use]
pub fn ok(about: &str, text: impl Into<String>) -> Finding {
    finding(Level::Ok, about, text)
}

/// Something worth knowing.
#[must_use]
pub fn notice(about: &str, text: impl Into<String>) -> Finding {
    finding(Level::Notice, about, text)
}

/// Something that is not as it should be.
#[must_use]
pub fn problem(about: &str, text: impl Into<String>) -> Finding {
    finding(Level::Problem, about, text)
}

fn finding(level: Level, about: &str, text: impl Into<String>) -> Finding {
    Finding {
        level,
        about: about.to_owned(),
        text: text.into(),
        detail: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger(captured: u64, delivered: u64, acknowledged: u64, dropped: u64) -> Ledger {
        Ledger {
            captured,
            delivered,
            acknowledged,
            dropped,
        }
    }

    #[test]
    fn a_ledger_adds_up_or_is_a_finding() {
        assert_eq!(
            entries(&ledger(10, 8, 5, 2)).unwrap(),
            "10 bytes captured = 5 acknowledged + 2 dropped + 3 kept; 8 delivered"
        );
        for wrong in [
            ledger(10, 8, 9, 2),
            ledger(10, 11, 5, 2),
            ledger(1, 0, u64::MAX, 1),
        ] {
            let text = entries(&wrong).unwrap_err();
            assert!(text.contains("does not add up"), "{text}");
        }
    }

    #[test]
    fn a_sum_of_the_kernel_below_that_of_its_processes_is_a_problem() {
        for (whole, level) in [
            (ledger(9, 9, 9, 0), Level::Ok),
            (ledger(1, 2, 1, 0), Level::Problem),
        ] {
            let mut findings = Vec::new();
            judge_ledgers(&[], &whole, &mut findings);
            assert_eq!(findings.last().unwrap().level, level, "{findings:?}");
        }
    }
}
