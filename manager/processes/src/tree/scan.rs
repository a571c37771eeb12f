//! One pass over `/proc`, and who belongs to a worker by what it shows.
//!
//! Owns the syntax of `/proc/PID/stat` as far as it is needed here. Reads environments and limits of
//! processes that have lost their parents only, and of none that stands in the system uninterruptibly:
//! reading that one's memory could wait with it.
//! Source: `proc_pid_stat(5)`, `proc_pid_environ(5)`.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::os::unix::fs::MetadataExt;

use crate::mark::{self, Mark};
use crate::tree::memory::Memory;
use crate::tree::{Identity, Member, Target, cgroup};

/// How often what was started while we looked is looked at too.
const CATCH_UP_ROUNDS: usize = 8;
/// So many numbers at a time.
const MAX_CATCH_UP: i32 = 1024;

/// What `/proc/PID/stat` says about one process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat {
    /// The name of its command.
    pub command: String,
    /// Its state, as the system's letter.
    pub state: u8,
    /// Process id of its parent.
    pub parent: i32,
    /// Number of its session.
    pub session: i32,
    /// In ticks since boot: with the pid it names one process for ever.
    pub started: u64,
}

impl Stat {
    /// It has ended, and was not waited for.
    #[must_use]
    pub fn is_zombie(&self) -> bool {
        matches!(self.state, b'Z' | b'X')
    }

    pub(super) fn member(&self, pid: i32) -> Member {
        Member {
            pid,
            started: self.started,
            command: self.command.clone(),
        }
    }
}

/// Every process there was at one moment, and who lives from whom.
#[derive(Debug)]
pub(super) struct Snapshot {
    all: BTreeMap<i32, Stat>,
    children: BTreeMap<i32, Vec<i32>>,
    /// By session: who lives in it.
    sessions: HashMap<i32, Vec<i32>>,
    /// Who carries which mark; read when that is first asked.
    marks: OnceCell<Marks>,
    /// Never to be signalled, nor followed to their children.
    protected: BTreeSet<i32>,
    /// Who adopts what has lost its parent, and nobody but descendants of the kernel's: the keeper,
    /// and a kernel that became one.
    adopters: BTreeSet<i32>,
    /// Processes were started while we looked: somebody who replaces itself faster than that may
    /// have been missed.
    moved: bool,
}

impl Snapshot {
    /// Looks at everything. `kernel` is the kernel's process.
    pub(super) fn take(kernel: Option<i32>) -> Self {
        let before = last_pid();
        let mut all = processes();
        let moved = catch_up(before, &mut all);
        let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
        let mut sessions: HashMap<i32, Vec<i32>> = HashMap::new();
        for (pid, stat) in &all {
            children.entry(stat.parent).or_default().push(*pid);
            if !stat.is_zombie() {
                sessions.entry(stat.session).or_default().push(*pid);
            }
        }
        let mut adopters = BTreeSet::new();
        let mut protected = BTreeSet::from([1, nix::unistd::getpid().as_raw()]);
        let mut ancestor = kernel.unwrap_or(0);
        while ancestor > 1 && protected.insert(ancestor) {
            let parent = all.get(&ancestor).map_or(0, |stat| stat.parent);
            // Below the kernel and below its keeper.
            if adopters.len() < 2 {
                adopters.insert(ancestor);
            }
            ancestor = parent;
        }
        Self {
            all,
            children,
            sessions,
            marks: OnceCell::new(),
            protected,
            adopters,
            moved,
        }
    }

    /// Whether somebody may have been missed.
    pub(super) fn moved(&self) -> bool {
        self.moved
    }

    pub(super) fn get(&self, pid: i32) -> Option<&Stat> {
        self.all.get(&pid)
    }

    /// Everybody alive that belongs to `target`, but its leader; what was seen before is looked up
    /// and renewed.
    pub(super) fn members(&self, target: &Target, memory: &mut Memory) -> BTreeMap<i32, Stat> {
        let is_used = |session: i32| self.sessions.contains_key(&session);
        memory.drop_reused_sessions(target, &self.all, is_used);
        let mut found: BTreeMap<i32, Stat> = BTreeMap::new();
        let mut waiting: Vec<i32> = Vec::new();
        if target.leads {
            waiting.extend(self.children.get(&target.leader).into_iter().flatten());
        }
        // Whoever is in its group is its own, even one that was started since everything was looked
        // at.
        for pid in cgroup::members(target) {
            let leads = target.leads && pid == target.leader;
            let listed = self.all.get(&pid).cloned();
            let Some(stat) = listed
                .or_else(|| stat(pid))
                .filter(|stat| !stat.is_zombie())
            else {
                continue;
            };
            if !leads && !self.protected.contains(&pid) {
                found.insert(pid, stat);
                waiting.extend(self.children.get(&pid).into_iter().flatten());
            }
        }
        let roots = self.roots(target, memory);
        waiting.extend(roots.filter(|pid| *pid != target.leader));
        while let Some(pid) = waiting.pop() {
            let Some(stat) = self.all.get(&pid) else {
                continue;
            };
            let leads = target.leads && pid == target.leader;
            if self.protected.contains(&pid) || leads || found.contains_key(&pid) {
                continue;
            }
            // Of what has ended the children are somebody else's by now.
            if !stat.is_zombie() {
                found.insert(pid, stat.clone());
                waiting.extend(self.children.get(&pid).into_iter().flatten());
            }
        }
        memory.remember(&found);
        found
    }

    /// Everybody alive that belongs to `target` whoever its parent is: those seen before, those in
    /// its sessions, and those that carry its mark. Looked up, so that asking for every worker
    /// takes a time in proportion to the number of processes.
    fn roots(&self, target: &Target, memory: &Memory) -> impl Iterator<Item = i32> {
        let lives = |(pid, started): &Identity| {
            let stat = self.all.get(pid)?;
            (stat.started == *started && !stat.is_zombie()).then_some(*pid)
        };
        let known: Vec<i32> = memory.known().filter_map(lives).collect();
        let sessions = memory.sessions();
        let sessions = sessions.filter_map(|session| self.sessions.get(session));
        let sessions: Vec<i32> = sessions.flatten().copied().collect();
        let marked = match target.mark.is_empty() {
            true => Vec::new(),
            false => self.marks().with(&target.mark),
        };
        known.into_iter().chain(sessions).chain(marked)
    }

    fn marks(&self) -> &Marks {
        self.marks.get_or_init(|| {
            let adopted = self.adopters.iter();
            let adopted = adopted.filter_map(|adopter| self.children.get(adopter));
            let mut marks = Marks::default();
            for pid in adopted.flatten() {
                let stat = self.all.get(pid);
                if let Some(stat) = stat.filter(|stat| self.may_be_marked(stat)) {
                    marks.read(*pid, stat);
                }
            }
            marks
        })
    }

    /// Whether a mark that it carries counts, and may be read.
    fn may_be_marked(&self, stat: &Stat) -> bool {
        !stat.is_zombie() && stat.state != b'D' && self.adopters.contains(&stat.parent)
    }

    /// What the mark of a process says, if it counts: only of one that has lost its parent. Only
    /// descendants of the kernel's processes come to have the kernel or its keeper for a parent;
    /// anybody else's mark counts for nothing, since everybody can write what they like into an
    /// environment, and another kernel's workers may have the same names.
    pub(super) fn marks_of(&self, stat: &Stat, pid: i32) -> Marks {
        let mut marks = Marks::default();
        if self.may_be_marked(stat) {
            marks.read(pid, stat);
        }
        marks
    }

    pub(super) fn is_protected(&self, pid: i32) -> bool {
        self.protected.contains(&pid)
    }
}

/// What the environments of processes say of whose they are, and the limits of those without.
#[derive(Debug, Default)]
pub(super) struct Marks {
    /// By entry (`NAME=value`): who has it.
    by_entry: HashMap<Vec<u8>, BTreeSet<i32>>,
    /// By `mark::limit`: who has it, and no entry.
    by_limit: HashMap<u64, Vec<i32>>,
}

impl Marks {
    /// Adds what the environment of a process says, or its limit: of a manager which itself runs
    /// below a worker, the workers have an environment of their own and the limit of that worker.
    fn read(&mut self, pid: i32, stat: &Stat) {
        // That of another user may not be readable.
        let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        self.add(pid, &environ);
        if Mark::parse(&environ).is_none()
            && !is_ours(pid, stat)
            && may_signal(pid)
            && let Some((_, Some(limit))) = mark::limits_of(pid)
        {
            self.by_limit.entry(limit).or_default().push(pid);
        }
    }

    fn add(&mut self, pid: i32, environ: &[u8]) {
        for entry in environ.split(|byte| *byte == 0) {
            let name = entry.split(|byte| *byte == b'=').next().unwrap_or_default();
            if mark::VARIABLES.iter().any(|known| known.as_bytes() == name) {
                self.by_entry.entry(entry.to_vec()).or_default().insert(pid);
            }
        }
    }

    /// Those that have all these entries, or the limit that stands for them.
    pub(super) fn with(&self, entries: &[Vec<u8>]) -> Vec<i32> {
        if entries.is_empty() {
            return Vec::new();
        }
        let limited = self.by_limit.get(&mark::limit(entries)).into_iter();
        let mut found = self.with_entries(entries);
        found.extend(limited.flatten());
        found
    }

    fn with_entries(&self, entries: &[Vec<u8>]) -> Vec<i32> {
        let having: Option<Vec<_>> = entries
            .iter()
            .map(|entry| self.by_entry.get(entry))
            .collect();
        let having = having.unwrap_or_default();
        let Some(fewest) = having.iter().min_by_key(|having| having.len()) else {
            return Vec::new();
        };
        let all = |pid: &&i32| having.iter().all(|having| having.contains(*pid));
        fewest.iter().filter(all).copied().collect()
    }
}

/// The process number that was given away last in our namespace.
pub(super) fn last_pid() -> Option<i32> {
    let text = fs::read_to_string("/proc/loadavg").ok()?;
    text.split_ascii_whitespace().last()?.parse().ok()
}

/// Reads those that were started since. Answers whether there were any.
fn catch_up(before: Option<i32>, all: &mut BTreeMap<i32, Stat>) -> bool {
    let Some(mut known) = before else {
        return false;
    };
    let mut moved = false;
    for _ in 0..CATCH_UP_ROUNDS {
        let Some(last) = last_pid().filter(|last| *last != known) else {
            break;
        };
        moved = true;
        // When the numbers begin anew, those before are in the directory.
        for pid in known.saturating_add(1)..=last.min(known.saturating_add(MAX_CATCH_UP)) {
            if let Some(stat) = stat(pid) {
                all.insert(pid, stat);
            }
        }
        known = last;
    }
    moved
}

/// The direct children of a process.
#[must_use]
pub fn children(pid: i32) -> BTreeMap<i32, Stat> {
    let mut all = processes();
    all.retain(|_, stat| stat.parent == pid);
    all
}

/// Everything below `root` and everything in its session, without `root` itself.
#[must_use]
pub fn descendants(root: i32) -> BTreeMap<i32, Stat> {
    let target = Target {
        id: crate::tree::TargetId {
            owner: 0,
            serial: 0,
        },
        leader: root,
        leads: true,
        known: Vec::new(),
        cgroup: None,
        mark: Vec::new(),
    };
    Snapshot::take(None).members(&target, &mut Memory::of(&target))
}

/// Every process there is; none where `/proc` cannot be read.
#[must_use]
pub fn processes() -> BTreeMap<i32, Stat> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return BTreeMap::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|pid| Some((pid, stat(pid)?)))
        .collect()
}

/// One process; none if it is gone.
#[must_use]
pub fn stat(pid: i32) -> Option<Stat> {
    parse_stat(&fs::read(format!("/proc/{pid}/stat")).ok()?)
}

/// Reads the fields around the command name, which may hold anything, parentheses included.
fn parse_stat(bytes: &[u8]) -> Option<Stat> {
    let begin = bytes.iter().position(|byte| *byte == b'(')?;
    let end = bytes.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(bytes.get(end + 1..)?).ok()?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let command = String::from_utf8_lossy(bytes.get(begin + 1..end)?);
    Some(Stat {
        command: command.replace(char::is_control, "?"),
        state: *fields.first()?.as_bytes().first()?,
        parent: fields.get(1)?.parse().ok()?,
        session: fields.get(3)?.parse().ok()?,
        started: fields.get(19)?.parse().ok()?,
    })
}

/// Whether a process is one of this project's programs: an installation that a worker has started
/// with a cleared environment is on its own.
pub(super) fn is_ours(pid: i32, stat: &Stat) -> bool {
    const PROGRAMS: [&str; 4] = ["papa-manager", "papactl", "papa-keeper", "papa-kernel"];
    PROGRAMS.contains(&stat.command.as_str()) || is_titled(pid, "papa: ")
}

/// Whether a process can be ended: of one that has changed its user, everybody can read the limits.
fn may_signal(pid: i32) -> bool {
    let own = nix::unistd::Uid::effective();
    own.is_root()
        || fs::metadata(format!("/proc/{pid}")).is_ok_and(|found| found.uid() == own.as_raw())
}

/// Whether its title begins with this.
pub(super) fn is_titled(pid: i32, role: &str) -> bool {
    fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|title| title.starts_with(role.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_all_of_its_entries() {
        let mut marks = Marks::default();
        marks.add(10, b"PATH=/bin\0PAPA_NAMESPACE=a\0PAPA_WATCHER=web\0");
        marks.add(11, b"PAPA_NAMESPACE=a\0PAPA_WATCHER=db\0");
        marks.add(12, b"PAPA_NAMESPACE=b\0PAPA_WATCHER=web\0");
        let with = |entries: &[&str]| {
            let entries = entries.iter().map(|entry| entry.as_bytes().to_vec());
            marks.with(&entries.collect::<Vec<_>>())
        };
        assert_eq!(with(&["PAPA_NAMESPACE=a"]), [10, 11]);
        assert_eq!(with(&["PAPA_NAMESPACE=a", "PAPA_WATCHER=web"]), [10]);
        assert_eq!(with(&["PAPA_NAMESPACE=c", "PAPA_WATCHER=web"]), [0; 0]);
        assert_eq!(with(&["PATH=/bin"]), [0; 0], "no part of a mark");
        assert_eq!(with(&[]), [0; 0]);
        let web = [b"PAPA_WATCHER=web".to_vec()];
        marks.by_limit.insert(mark::limit(&web), vec![13]);
        assert_eq!(marks.with(&web), [10, 12, 13], "its limit says the same");
    }

    #[test]
    fn a_command_name_cannot_forge_fields() {
        let line = b"42 (a) R 1 1 ( x)) S 7 8 9 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 123 0";
        let stat = parse_stat(line).unwrap();
        assert_eq!(
            (stat.parent, stat.session, stat.started, stat.is_zombie()),
            (7, 9, 123, false)
        );
        assert_eq!(stat.command, "a) R 1 1 ( x)");
        assert_eq!(parse_stat(b"42 (a"), None);
        assert_eq!(parse_stat(b"42 (a) S 1"), None);
        let rude = parse_stat(b"1 (\x1b[2J) S 7 8 9 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 123 0");
        assert_eq!(rude.unwrap().command, "?[2J");
    }
}
