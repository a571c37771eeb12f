//! The difference between file and running state, in the words of the control socket.
//!
//! Owns the translation only; what differs is `config::diff`'s.

use std::collections::{BTreeMap, BTreeSet};

use crate::config::diff::{Apply, KeyChange, Plan};
use crate::control::message::{PlanAction, PlanStep};
use crate::supervisor::Supervisor;
use crate::supervisor::compare::Next;

impl Supervisor {
    /// What becomes of watchers that were given up and of which the file says nothing new. Those
    /// that are tried again are added to `again`, by lower-case name.
    pub(super) fn given_up(
        &self,
        next: &Next,
        changed_ms: &BTreeMap<String, Option<u64>>,
        again: &mut BTreeSet<String>,
    ) -> Vec<PlanStep> {
        let mut steps = Vec::new();
        for watcher in self.watchers.values() {
            let config = watcher.config();
            let (key, name) = (&config.key, &config.name);
            let Some(changed) = changed_ms.get(key) else {
                continue;
            };
            if !watcher.has_given_up() || next.plan.watcher(key).is_some() {
                continue;
            }
            let (action, why) = if watcher.has_changed_since_giving_up(*changed) {
                again.insert(key.clone());
                let why = "was given up; its program or directory has changed since, so it is tried again";
                (PlanAction::Change, why.to_owned())
            } else {
                let why = format!(
                    "was given up, and nothing of it has changed: `papactl start {name}` tries again"
                );
                (PlanAction::Keep, why)
            };
            steps.push(PlanStep {
                action,
                what: format!("watcher:{name}"),
                why: vec![why],
            });
        }
        steps
    }

    /// What was set at run time, differs from the file and stays when `next` is applied.
    pub(super) fn drift(&self, next: &Next) -> Vec<PlanStep> {
        let watchers = self
            .watchers
            .values()
            .filter(|watcher| !watcher.is_removed());
        watchers
            .filter_map(|watcher| {
                let config = watcher.config();
                let file = next.config.watcher(&config.name)?;
                let stays = next.set.get(&config.key);
                let mut why = Vec::new();
                if watcher.count() != config.numprocesses
                    && next.effective.watcher(&config.name)?.numprocesses == config.numprocesses
                {
                    why.push(format!(
                        "numprocesses: {} at run time, {} in the file",
                        watcher.count(),
                        config.numprocesses
                    ));
                }
                for (key, value) in stays.iter().flat_map(|stays| &stays.options) {
                    let before = file.options.get(key);
                    let before = before.map_or("not set", String::as_str);
                    why.push(format!(
                        "{key}: {value:?} at run time, {before:?} in the file"
                    ));
                }
                if stays.is_some_and(|stays| stays.env.is_some()) {
                    why.push("env: set at run time".to_owned());
                }
                (!why.is_empty()).then(|| PlanStep {
                    action: PlanAction::Keep,
                    what: format!("watcher:{}", config.name),
                    why,
                })
            })
            .collect()
    }
}

/// The steps of a plan, in the order of doing, then what is kept.
pub(super) fn steps(plan: &Plan, drift: &[PlanStep]) -> Vec<PlanStep> {
    let mut steps = Vec::new();
    let mut step = |action, what: String, why: Vec<String>| {
        steps.push(PlanStep { action, what, why });
    };
    for name in &plan.sockets.added {
        step(PlanAction::Add, format!("socket:{name}"), Vec::new());
    }
    for change in &plan.sockets.changed {
        let action = if change.recreated {
            PlanAction::Restart
        } else {
            PlanAction::Change
        };
        step(
            action,
            format!("socket:{}", change.name),
            reasons(&change.keys),
        );
    }
    for change in &plan.watchers.changed {
        let action = match change.apply {
            Apply::InPlace => PlanAction::Change,
            Apply::Roll => PlanAction::Roll,
            Apply::Restart => PlanAction::Restart,
        };
        let mut why = reasons(&change.keys);
        why.extend(
            change
                .sockets
                .iter()
                .map(|socket| format!("socket {socket} changes")),
        );
        step(action, format!("watcher:{}", change.name), why);
    }
    for name in &plan.watchers.added {
        step(PlanAction::Add, format!("watcher:{name}"), Vec::new());
    }
    for name in &plan.watchers.removed {
        step(PlanAction::Remove, format!("watcher:{name}"), Vec::new());
    }
    for name in &plan.sockets.removed {
        step(PlanAction::Remove, format!("socket:{name}"), Vec::new());
    }
    if !plan.settings.is_empty() {
        step(
            PlanAction::Change,
            "circus".to_owned(),
            reasons(&plan.settings),
        );
    }
    if !plan.manager.is_empty() {
        let mut why = reasons(&plan.manager);
        why.push("holds after `papactl quit` and `papactl up`".to_owned());
        step(PlanAction::Keep, "circus".to_owned(), why);
    }
    steps.extend(drift.iter().cloned());
    steps
}

/// The steps in one line, for the log.
pub(super) fn in_one_line(plan: &Plan) -> String {
    let steps = steps(plan, &[]);
    let steps = steps.iter().map(|step| {
        let start = format!("{} {}", step.action.as_str(), step.what);
        if step.why.is_empty() {
            start
        } else {
            format!("{start} ({})", step.why.join(", "))
        }
    });
    steps.collect::<Vec<_>>().join("; ")
}

fn reasons(keys: &[KeyChange]) -> Vec<String> {
    let side = |value: &Option<String>| value.as_ref().map(|value| format!("{value:?}"));
    keys.iter()
        .map(|key| match (side(&key.old), side(&key.new)) {
            (Some(old), Some(new)) => format!("{}: {old} -> {new}", key.key),
            _ if key.key.contains(' ') => key.key.clone(),
            _ => format!("{} is different", key.key),
        })
        .collect()
}
