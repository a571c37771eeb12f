//! `papactl reloadconfig`: applies what has changed in the file, or with `--plan` only says what
//! that is.

use papa_system::printable::printable;

use crate::cli::Common;
use crate::cli::args::ReloadConfigArgs;
use crate::commands::{
    CommandError, check, connect, note, print, print_json, wait_or_explain, with_ok,
};
use papa_control::message::{Command, PlanReply, PlanStep, Selection};

/// Runs the verb.
pub(super) fn run(common: &Common, args: &ReloadConfigArgs) -> Result<(), CommandError> {
    let mut client = connect(common)?;
    let command = Command::ReloadConfig {
        plan: args.plan,
        accept_removal: args.accept_removal,
    };
    let all = Selection::all();
    let reply: PlanReply = wait_or_explain(common, &mut client, &all, command, |_| true)?;
    if common.json {
        return print_json(&with_ok(reply));
    }
    for warning in &reply.warnings {
        check::note_finding(warning);
    }
    if reply.plan.is_empty() {
        return print(if common.no_wait && !args.plan {
            "accepted\n"
        } else {
            "nothing to do: the file and what runs agree\n"
        });
    }
    print(&rendered(&reply.plan))?;
    if let Some(why) = reply
        .needs_acceptance
        .filter(|_| args.plan && !args.accept_removal)
    {
        note(&format!("papactl: {}", printable(&why)));
    }
    Ok(())
}

/// One line per step and reason.
fn rendered(plan: &[PlanStep]) -> String {
    let width = plan
        .iter()
        .map(|step| printable(&step.what).chars().count())
        .max()
        .unwrap_or(0);
    let mut text = String::new();
    for step in plan {
        let (action, what) = (step.action.as_str(), printable(&step.what));
        let start = format!("{action:7}  {what:width$}");
        let mut reasons = step.why.iter();
        let first = reasons.next().map(|why| printable(why));
        text.push_str(format!("{start}  {}", first.unwrap_or_default()).trim_end());
        text.push('\n');
        let indent = start.chars().count() + 2;
        for why in reasons {
            text.push_str(&format!("{:indent$}{}\n", "", printable(why)));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use papa_control::message::PlanAction;

    #[test]
    fn a_plan_names_every_step_and_reason() {
        let step = |action, what: &str, why: &[&str]| PlanStep {
            action,
            what: what.into(),
            why: why.iter().map(|why| (*why).to_owned()).collect(),
        };
        let plan = [
            step(PlanAction::Add, "watcher:a", &[]),
            step(
                PlanAction::Roll,
                "watcher:long",
                &["cmd: \"a\" -> \"b\"", "env\x1b"],
            ),
        ];
        assert_eq!(
            rendered(&plan),
            "add      watcher:a\nroll     watcher:long  cmd: \"a\" -> \"b\"\n                       env^[\n"
        );
    }
}
