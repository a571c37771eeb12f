//! `depends_on`.
//!
//! Owns the checks across watchers: each name exists, and nothing waits for
//! itself.
//! Invariant: after `check` without an error the watchers can be ordered.

use crate::known;
use crate::problem::{Findings, Origin};
use crate::types::WatcherConfig;

/// Reports names of no watcher and circles.
pub fn check(watchers: &[WatcherConfig], findings: &mut Findings) {
    for watcher in watchers {
        for name in &watcher.depends_on {
            if watchers.iter().any(|other| other.key == *name) {
                continue;
            }
            let known = watchers.iter().map(|other| other.key.as_str());
            let hint = match known::nearest(known, name) {
                Some(meant) => format!("did you mean {meant}?"),
                None => "expected the name of a [watcher:NAME] section".to_owned(),
            };
            findings.error(origin(watcher), format!("depends_on {name:?}: {hint}"));
        }
    }
    report_circles(watchers, findings);
}

fn origin(watcher: &WatcherConfig) -> &Origin {
    watcher
        .entries
        .iter()
        .find(|entry| entry.key == "depends_on")
        .map_or(&watcher.origin, |entry| &entry.value_origin)
}

/// How far the search has come with a watcher.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mark {
    New,
    OnPath,
    Done,
}

/// Walks along the dependencies, without recursion because their number is the file's, and reports
/// each circle once.
fn report_circles(watchers: &[WatcherConfig], findings: &mut Findings) {
    let index: std::collections::HashMap<&str, usize> = watchers
        .iter()
        .enumerate()
        .map(|(index, watcher)| (watcher.key.as_str(), index))
        .collect();
    let mut marks = vec![Mark::New; watchers.len()];
    for start in 0..watchers.len() {
        if marks[start] != Mark::New {
            continue;
        }
        marks[start] = Mark::OnPath;
        // Watchers on the way here, and which of its dependencies each looks at next.
        let mut path = vec![(start, 0)];
        while let Some((at, next)) = path.last_mut() {
            let at = *at;
            let Some(name) = watchers[at].depends_on.get(*next) else {
                marks[at] = Mark::Done;
                path.pop();
                continue;
            };
            *next += 1;
            let Some(&other) = index.get(name.as_str()) else {
                continue;
            };
            match marks[other] {
                Mark::New => {
                    marks[other] = Mark::OnPath;
                    path.push((other, 0));
                }
                Mark::OnPath => {
                    let circle: Vec<&str> = path
                        .iter()
                        .map(|(index, _)| *index)
                        .skip_while(|index| *index != other)
                        .chain([other])
                        .map(|index| watchers[index].name.as_str())
                        .collect();
                    findings.error(
                        origin(&watchers[at]),
                        format!(
                            "depends_on {name:?}: they wait for each other: {}",
                            circle.join(" -> ")
                        ),
                    );
                }
                Mark::Done => {}
            }
        }
    }
}
