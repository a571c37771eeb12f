//! The control group of one worker, where the kernel has made one: who is in it, and its end as a
//! whole.
//!
//! Nothing here fails: where the group is not to be seen, the other ways to find a worker's
//! processes are what there is.
//! Source: `cgroups(7)`, the files `cgroup.procs`, `cgroup.freeze` and `cgroup.kill`.

use std::collections::BTreeSet;
use std::fs;

use crate::tree::Target;

/// Groups below one worker's that are looked at: it may have made some itself.
const MAX_GROUPS: usize = 256;

/// Everybody in the group of this worker and in those below it.
pub(super) fn members(target: &Target) -> BTreeSet<i32> {
    let Some(group) = &target.cgroup else {
        return BTreeSet::new();
    };
    let mut found = BTreeSet::new();
    let mut waiting = vec![group.clone()];
    for _ in 0..MAX_GROUPS {
        let Some(group) = waiting.pop() else { break };
        let listed = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
        // One of another namespace is listed as 0.
        let pids = listed.lines().filter_map(|line| line.parse::<i32>().ok());
        found.extend(pids.filter(|pid| *pid > 0));
        let entries = fs::read_dir(&group).into_iter().flatten().flatten();
        let below = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        waiting.extend(below.map(|entry| entry.path()));
    }
    found
}

/// Stops everybody in the group where they are and kills them, unless somebody is in it who must be
/// spared, as a manager is that was started from a worker: then one after the other has to do.
pub(super) fn kill(target: &Target, is_protected: impl Fn(i32) -> bool) {
    let Some(group) = &target.cgroup else { return };
    if !members(target).iter().copied().any(is_protected) {
        for name in ["cgroup.freeze", "cgroup.kill"] {
            // Not there before Linux 5.2 and 5.14, or the group is gone: see above.
            let _ = fs::write(group.join(name), "1");
        }
    }
}
