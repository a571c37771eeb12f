//! The checks of the promise, in a moment in which the workers write nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{LOOK_AGAIN, Life, RECOVERY, Role, Whole, Written};
use crate::{Kernel, procfs};

/// Sessions, pidfds and pipes of what has just ended are closed a moment later.
const CLOSING: Duration = Duration::from_secs(20);

/// How long output of the side's is taken before anything else is looked at.
const TAKE_AT_ONCE: Duration = Duration::from_millis(200);

/// Where the kernel takes a clock that goes back for one that was set; see its `reel.rs`.
const CLOCK_STEP_US: u64 = 1_000_000;

/// The longest line of a worker that may be made to lose some; each end of a gap tears at most one
/// of each stream.
const TORN_BYTES: u64 = 2 * 256;

impl Whole {
    /// Checks everything, and lets the workers go on.
    ///
    /// # Errors
    /// Everything that is not as it must be.
    pub fn check(&mut self) -> Result<(), Vec<String>> {
        let mut wrong = Vec::new();
        if let Err(missing) = self.restore() {
            // Nothing else could be believed.
            return Err(vec![missing]);
        }
        let mut written = self.pause(&mut wrong);
        self.wait_ended(&mut wrong);
        // Those that came in place of others meanwhile.
        if let Err(text) = self.restore() {
            wrong.push(text);
        }
        written.extend(self.pause(&mut wrong));
        if let Err(text) = self.wait_drained(&mut written, &mut wrong) {
            wrong.push(text);
        }
        let lives = self.lives();
        self.check_workers(&lives, &mut wrong);
        self.check_side(&lives, &mut wrong);
        self.check_lines(&lives, &written, &mut wrong);
        self.check_ledger(&lives, &written, &mut wrong);
        self.check_ends(&lives, &mut wrong);
        self.check_visits(&mut wrong);
        self.check_processes(&mut wrong);
        self.check_doctor(&mut wrong);
        self.go();
        if wrong.is_empty() { Ok(()) } else { Err(wrong) }
    }

    /// Has every living worker finish its line and be silent; what each has written, by pid.
    fn pause(&self, wrong: &mut Vec<String>) -> BTreeMap<i32, Written> {
        let directory = self.kernel.directory();
        let mut written = BTreeMap::new();
        for life in self.lives().iter().filter(|life| life.end.is_none()) {
            match life.order_written(directory, "pause") {
                Some(counts) => {
                    written.insert(life.pid, counts);
                }
                // It may have said in the meantime that it ends.
                None if self.has_ended(life) => {}
                None => wrong.push(format!("{} takes no orders", life.source())),
            }
        }
        written
    }

    /// A worker has said that it ends a moment before it does; what it left is ended after that.
    fn wait_ended(&self, wrong: &mut Vec<String>) {
        let deadline = Instant::now() + CLOSING;
        let lives = self.lives();
        for life in lives.iter().filter(|life| life.end.is_some()) {
            while life.is_there() && Instant::now() < deadline {
                std::thread::sleep(LOOK_AGAIN);
            }
            if life.is_there() {
                wrong.push(format!("{} is still there after its end", life.source()));
            }
            let mut left = life.left.clone();
            while !left.is_empty() && Instant::now() < deadline {
                left.retain(|child| procfs::alive(*child));
                std::thread::sleep(LOOK_AGAIN);
            }
            if !left.is_empty() {
                wrong.push(format!(
                    "{} has ended, its child {left:?} lives",
                    life.source()
                ));
            }
        }
    }

    fn has_ended(&self, life: &Life) -> bool {
        self.lives()
            .iter()
            .any(|now| (now.pid, now.ticks) == (life.pid, life.ticks) && now.end.is_some())
    }

    fn go(&self) {
        for life in self.lives().iter().filter(|life| life.end.is_none()) {
            let _ = life.order(self.kernel.directory(), "go");
        }
    }

    fn processes(&self) -> Vec<Value> {
        let Ok(mut session) = crate::Json::unix(&self.kernel.socket_path()) else {
            return Vec::new();
        };
        match session.call("process.list", json!({})) {
            Ok(Ok(listed)) => listed["processes"].as_array().cloned().unwrap_or_default(),
            _ => Vec::new(),
        }
    }

    /// Waits until the manager has taken all output, and every end is known. Workers that come
    /// meanwhile are silenced too: on a busy machine the manager may have heard of an end only now.
    fn wait_drained(
        &mut self,
        written: &mut BTreeMap<i32, Written>,
        wrong: &mut Vec<String>,
    ) -> Result<(), String> {
        let deadline = Instant::now() + RECOVERY;
        loop {
            let (ended, living): (Vec<Life>, Vec<Life>) = self
                .lives()
                .into_iter()
                .partition(|life| life.end.is_some());
            if living.iter().any(|life| !written.contains_key(&life.pid)) {
                written.extend(self.pause(wrong));
            }
            // A number may have been used again.
            let has_ended = |pid: &Value| {
                let of = |life: &Life| Some(i64::from(life.pid)) == pid.as_i64();
                ended.iter().any(of) && !living.iter().any(of)
            };
            if let Some(side) = &mut self.side {
                // Not for as long as something comes: that may be one who came late, and is to be
                // silenced first.
                let until = Instant::now() + TAKE_AT_ONCE;
                while Instant::now() < until && side.step(LOOK_AGAIN) {}
            }
            let processes = self.processes();
            let left = processes.iter().find(|process| {
                let name = process["name"].as_str().unwrap_or_default();
                // Other namespaces have other consumers, or none.
                let taken =
                    name.starts_with("circus.") || self.side.is_some() && name.starts_with("side.");
                taken
                    && (kept(process) != 0
                        || process["running"] == false
                        || has_ended(&process["pid"]))
            });
            match left {
                None if !processes.is_empty() => return Ok(()),
                _ if Instant::now() > deadline => {
                    return Err(format!("not taken after {RECOVERY:?}: {left:?}"));
                }
                _ => std::thread::sleep(LOOK_AGAIN),
            }
        }
    }

    /// Who has not said that it ends lives, and is a worker of the manager's; there are no others.
    fn check_workers(&self, lives: &[Life], wrong: &mut Vec<String>) {
        let status = self.ask("status", &json!({})).unwrap_or_default();
        let mut known = BTreeSet::new();
        for watcher in status["watchers"].as_array().into_iter().flatten() {
            for worker in watcher["workers"].as_array().into_iter().flatten() {
                known.insert(worker["pid"].as_i64().unwrap_or_default());
            }
        }
        for life in lives {
            let who = life.source();
            match (life.end.is_some(), life.is_there()) {
                (false, false) => wrong.push(format!("{who} died, and nobody asked it to")),
                (false, true) if life.wid != 0 && !known.contains(&i64::from(life.pid)) => {
                    wrong.push(format!("{who} lives, and the manager does not know it"));
                }
                _ => {}
            }
            if life.twice {
                wrong.push(format!("{who} ran beside what it came in place of"));
            }
        }
    }

    /// Every line of every life is there once, in order; lines may only be missing where the
    /// manager says so.
    fn check_lines(
        &mut self,
        lives: &[Life],
        written: &BTreeMap<i32, Written>,
        wrong: &mut Vec<String>,
    ) {
        for file in &self.deleted {
            self.lines.read_deleted(file);
        }
        for directory in &self.logs {
            self.lines.read(directory);
        }
        wrong.extend(self.lines.findings());
        for life in lives {
            if life.wid == 0 && self.side.is_none() {
                // Nobody takes what it writes.
                continue;
            }
            let counts = match &life.end {
                Some(end) => end.written,
                None => match written.get(&life.pid) {
                    Some(counts) => *counts,
                    None => continue,
                },
            };
            let read = |kind: &str| {
                let source = format!("{}.{kind}", life.source());
                let read = self.lines.sources.get(&source);
                read.copied().unwrap_or_default()
            };
            let (out, err) = (read("out"), read("err"));
            let gap = self.lines.gaps.get(&life.process()).copied();
            let missing = out.missing + err.missing;
            let bytes = out.bytes + err.bytes;
            let whole = (out.next, err.next, bytes) == (counts.out, counts.err, counts.bytes);
            // What a gap tore at both its ends is in the logs, but not as lines.
            let dropped = gap.is_some_and(|gap| {
                let lost = counts.bytes.saturating_sub(bytes);
                gap.bytes <= lost && lost - gap.bytes <= gap.count * 2 * TORN_BYTES
            });
            if !(whole && missing == 0 || dropped) {
                wrong.push(format!(
                    "{} wrote {counts:?}; in the logs are {out:?} and {err:?}",
                    life.source()
                ));
            }
        }
    }

    /// What was captured is what was written, and it is acknowledged, dropped, or still kept.
    fn check_ledger(
        &self,
        lives: &[Life],
        written: &BTreeMap<i32, Written>,
        wrong: &mut Vec<String>,
    ) {
        for process in self.processes() {
            let name = process["name"].as_str().unwrap_or_default();
            let pid = i32::try_from(process["pid"].as_i64().unwrap_or_default());
            let Some(counts) = written.get(&pid.unwrap_or_default()) else {
                continue;
            };
            let ledger = &process["ledger"];
            let gap = self.lines.gaps.get(name).map_or(0, |gap| gap.bytes);
            if ledger["captured"].as_u64() != Some(counts.bytes) {
                wrong.push(format!("{name} wrote {counts:?}, captured was {ledger}"));
            }
            if kept(&process) < 0 {
                wrong.push(format!("the ledger of {name} does not add up: {ledger}"));
            }
            // What was dropped may have been on its way to the manager already, and in the logs
            // then; a gap is less, or the same. Other lives of the same name may have had gaps as
            // well.
            let only = lives.iter().filter(|life| life.process() == name).count() == 1;
            if only && ledger["dropped"].as_u64() < Some(gap) {
                wrong.push(format!(
                    "{name}: a gap of {gap} was told, dropped was {ledger}"
                ));
            }
        }
    }

    /// A client that consumes by itself has got everything too: the ends once, in their order, with
    /// the right status.
    fn check_side(&mut self, lives: &[Life], wrong: &mut Vec<String>) {
        let Some(side) = &self.side else {
            return;
        };
        let mut statuses: BTreeMap<i64, usize> = BTreeMap::new();
        for (serial, seen) in &side.seen {
            for stream in [1, 2] {
                let bytes = seen.stream(stream);
                let fed = self.fed.entry((*serial, stream)).or_default();
                let new = bytes.get(*fed..).unwrap_or_default();
                self.lines.take(new, Path::new(&format!("serial {serial}")));
                *fed = bytes.len();
            }
            if seen.dropped > 0 {
                wrong.push(format!("serial {serial}: {} bytes dropped", seen.dropped));
            }
            // A clock that was set back by more is followed.
            let back = |pair: &&[(u64, u64, u64)]| {
                (1..CLOCK_STEP_US).contains(&pair[0].2.saturating_sub(pair[1].2))
            };
            if let Some(pair) = seen.records.windows(2).find(back) {
                wrong.push(format!("serial {serial}: stamps go back: {pair:?}"));
            }
            if let Some(exit) = &seen.exit {
                let status = exit["code"].as_i64();
                let status = status.or_else(|| exit["signal"].as_i64().map(|signal| -signal));
                *statuses.entry(status.unwrap_or(i64::MAX)).or_default() += 1;
            }
        }
        let mut expected: BTreeMap<i64, usize> = BTreeMap::new();
        for end in lives
            .iter()
            .filter(|life| life.wid == 0)
            .filter_map(|life| life.end.as_ref())
        {
            *expected.entry(end.status).or_default() += 1;
        }
        if statuses != expected {
            wrong.push(format!(
                "a client's own processes ended with {expected:?} (status: times), told were {statuses:?}"
            ));
        }
    }

    /// Every end was told once, with the right status. A manager that was killed may have taken an
    /// event along.
    fn check_ends(&mut self, lives: &[Life], wrong: &mut Vec<String>) {
        let ended: Vec<&Life> = lives
            .iter()
            .filter(|life| life.wid != 0 && life.end.is_some())
            .collect();
        let expected = |reaps: &super::Reaps| {
            ended.iter().all(|life| {
                self.told.contains(&(life.pid, life.ticks)) || reaps.contains_key(&life.pid)
            })
        };
        // Events arrive a moment after the status that tells of them.
        let deadline = Instant::now() + CLOSING;
        while !self.manager_disturbed
            && !expected(&self.listener.reaps())
            && Instant::now() < deadline
        {
            std::thread::sleep(LOOK_AGAIN);
        }
        let reaps = self.listener.reaps();
        let mut by_pid: BTreeMap<i32, Vec<i64>> = BTreeMap::new();
        for life in &ended {
            let status = life.end.as_ref().map_or(0, |end| end.status);
            by_pid.entry(life.pid).or_default().push(status);
        }
        for (pid, statuses) in &by_pid {
            let told = reaps.get(pid).map_or(&[][..], Vec::as_slice);
            let right = told.iter().all(|status| match status {
                Some(status) => statuses.contains(status),
                None => self.unknown_ends,
            });
            let new = ended
                .iter()
                .any(|life| life.pid == *pid && !self.told.contains(&(life.pid, life.ticks)));
            let enough = !new || self.manager_disturbed || told.len() == statuses.len();
            if !right || told.len() > statuses.len() || !enough {
                wrong.push(format!(
                    "the ends of {pid} were {statuses:?}, told were {told:?}"
                ));
            }
        }
        self.told
            .extend(ended.iter().map(|life| (life.pid, life.ticks)));
        self.manager_disturbed = false;
    }

    fn check_visits(&mut self, wrong: &mut Vec<String>) {
        let Some(visitor) = &self.visitor else {
            return;
        };
        wrong.extend(visitor.failures());
        let deadline = Instant::now() + CLOSING;
        while visitor.answered() <= self.visits && Instant::now() < deadline {
            std::thread::sleep(LOOK_AGAIN);
        }
        if visitor.answered() <= self.visits {
            wrong.push("no visit was answered since the last check".to_owned());
        }
        self.visits = visitor.answered();
    }

    /// No zombie below keeper and kernel, and as many descriptors as ever when there was as much to
    /// hold.
    fn check_processes(&mut self, wrong: &mut Vec<String>) {
        let roles = [Role::Keeper, Role::Kernel].map(|role| self.pid(role));
        let zombies = || -> Vec<i32> {
            let mut found: Vec<i32> = roles.into_iter().flat_map(procfs::children).collect();
            found.retain(|pid| procfs::stat(*pid).is_some_and(|stat| stat.state == 'Z'));
            found
        };
        // Another version may need more for itself.
        let programs = roles.map(|role| std::fs::read_link(format!("/proc/{role}/exe")).ok());
        let held = |kernel: &Kernel| {
            kernel.try_status().map_or_else(String::new, |status| {
                let counts = ["processes", "sockets", "held", "sessions"]
                    .map(|key| format!("{key} {}", status["counts"][key]));
                format!("{} of {programs:?}", counts.join(", "))
            })
        };
        let deadline = Instant::now() + CLOSING;
        loop {
            let zombies = zombies();
            let key = held(&self.kernel);
            let now = roles.map(procfs::descriptors);
            if key != held(&self.kernel) && Instant::now() < deadline {
                // Somebody has come or gone meanwhile; the two counts are not of one moment.
                continue;
            }
            let before = self.descriptors.entry(key.clone());
            let before = before.or_insert_with(|| now.clone());
            let grown = now[0].len() > before[0].len() || now[1].len() > before[1].len();
            if zombies.is_empty() && !grown {
                // The first look may have been at a moment in which something was still being
                // closed.
                *before = now;
                return;
            }
            if Instant::now() > deadline {
                if !zombies.is_empty() {
                    wrong.push(format!("zombies: {zombies:?}"));
                }
                if grown {
                    wrong.push(format!(
                        "keeper and kernel have more descriptors than before for {key}: {now:?}, had {before:?}"
                    ));
                }
                return;
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    /// Workers that were told to end soon after their start are a problem for as long as
    /// `backoff_reset` says.
    fn check_doctor(&self, wrong: &mut Vec<String>) {
        let deadline = Instant::now() + CLOSING;
        loop {
            let found = match self.papactl(&["doctor"]).output() {
                Ok(output) if output.status.success() => return,
                Ok(output) => format!(
                    "papactl doctor: {}{}",
                    String::from_utf8_lossy(&output.stdout),
                    String::from_utf8_lossy(&output.stderr)
                ),
                Err(error) => format!("papactl cannot be started: {error}"),
            };
            // The table breaks lines.
            let words: Vec<&str> = found.split_whitespace().collect();
            let passes = words.join(" ").contains("soon after its start");
            if !passes || Instant::now() > deadline {
                wrong.push(found);
                return;
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }
}

/// Bytes the kernel keeps of a process; below 0 where the ledger does not add up.
fn kept(process: &Value) -> i64 {
    let of = |key: &str| process["ledger"][key].as_i64().unwrap_or(-1);
    of("captured") - of("acknowledged") - of("dropped")
}
