//! What processes use of the machine, for `stats` and `dstats`.
//!
//! Owns reading `/proc` and what CPU percentages are measured from. Leaves to others which
//! processes are whose.
//! Invariant: one answer is one pass over `/proc`, however many processes it is about; what is
//! remembered between answers is about processes that exist.

mod info;
mod parse;

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::time::{Duration, Instant};

use nix::unistd::{SysconfVar, User, sysconf};
use tokio::sync::{mpsc, oneshot};

use info::rounded;
pub use info::{CpuTime, Info, Known, Nice, ProcessInfo, Size};
use parse::Stat;

/// Questions that may wait; a further one waits for its place.
const QUEUED_QUESTIONS: usize = 16;
/// Asked again sooner, a process has the percentage it had: ticks are too coarse for less.
const SHORTEST_MEASURE: Duration = Duration::from_millis(100);
/// Where `/proc` tells no other. Every Linux that Rust runs on has 100.
const TICKS_PER_SECOND: u32 = 100;
const PAGE_BYTES: u64 = 4096;

/// A process that is asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subject {
    /// Which.
    pub pid: i32,
    /// The worker's number, if it is one.
    pub wid: Option<u32>,
    /// When the kernel started it, in microseconds since the epoch, if it is a worker.
    pub started_us: Option<u64>,
}

impl Subject {
    /// A worker.
    #[must_use]
    pub fn worker(pid: i32, wid: u32, started_us: u64) -> Self {
        Self {
            pid,
            wid: Some(wid),
            started_us: Some(started_us),
        }
    }

    /// This process itself.
    #[must_use]
    pub fn own() -> Self {
        Self {
            pid: nix::unistd::getpid().as_raw(),
            wid: None,
            started_us: None,
        }
    }
}

/// Answers questions off the loop, one after the other, and remembers what is needed for the next.
/// Cheap to clone.
#[derive(Debug, Clone)]
pub struct Statistics(mpsc::Sender<Question>);

#[derive(Debug)]
struct Question {
    subjects: Vec<Subject>,
    answer: oneshot::Sender<Vec<Info>>,
}

impl Statistics {
    /// Starts the task that answers. It ends when the last handle is dropped.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    #[must_use]
    pub fn start() -> Self {
        let (sender, mut questions) = mpsc::channel::<Question>(QUEUED_QUESTIONS);
        tokio::spawn(async move {
            let mut usage = Usage::default();
            while let Some(question) = questions.recv().await {
                if question.answer.is_closed() {
                    continue;
                }
                let look = tokio::task::spawn_blocking(move || {
                    let infos = usage.look(&question.subjects, Instant::now());
                    // Whoever asked may be gone.
                    let _ = question.answer.send(infos);
                    usage
                });
                match look.await {
                    Ok(after) => usage = after,
                    // Only when the runtime ends.
                    Err(_) => return,
                }
            }
        });
        Self(sender)
    }

    /// What `subjects` use, in their order.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn look(&self, subjects: Vec<Subject>) -> Vec<Info> {
        let gone = vec![Info::Gone; subjects.len()];
        let (answer, answered) = oneshot::channel();
        let question = Question { subjects, answer };
        if self.0.send(question).await.is_err() {
            return gone;
        }
        answered.await.unwrap_or(gone)
    }
}

/// What percentages are measured from.
#[derive(Debug, Default)]
pub struct Usage {
    /// By number and start, so that a number's next owner starts anew.
    samples: HashMap<(i32, u64), Sample>,
}

#[derive(Debug, Clone, Copy)]
struct Sample {
    cpu_ticks: u64,
    at: Instant,
    percent: f64,
}

impl Usage {
    /// What `subjects` use, in their order. Reads all of `/proc`: not for the loop.
    pub fn look(&mut self, subjects: &[Subject], now: Instant) -> Vec<Info> {
        let processes = processes();
        self.samples.retain(|(pid, started), _| {
            processes
                .get(pid)
                .is_some_and(|stat| stat.started_ticks == *started)
        });
        let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
        for (pid, stat) in &processes {
            children.entry(stat.parent).or_default().push(*pid);
        }
        let mut machine = Machine::read();
        subjects
            .iter()
            .map(|subject| {
                let Some(stat) = processes.get(&subject.pid) else {
                    return Info::Gone;
                };
                let mut info = self.describe(subject.pid, stat, &mut machine, now);
                info.wid = subject.wid;
                info.started = subject.started_us.map(seconds);
                info.children = children
                    .get(&subject.pid)
                    .into_iter()
                    .flatten()
                    .filter_map(|child| Some((*child, processes.get(child)?)))
                    .map(|(child, stat)| self.describe(child, stat, &mut machine, now))
                    .collect();
                Info::Process(Box::new(info))
            })
            .collect()
    }

    fn describe(
        &mut self,
        pid: i32,
        stat: &Stat,
        machine: &mut Machine,
        now: Instant,
    ) -> ProcessInfo {
        let file = |name: &str| fs::read(format!("/proc/{pid}/{name}")).ok();
        let user = file("status").and_then(|bytes| parse::user(&String::from_utf8_lossy(&bytes)));
        let resident = stat.resident_pages.saturating_mul(machine.page_bytes);
        let started = ratio(stat.started_ticks, machine.ticks_per_second.into());
        ProcessInfo {
            mem_info1: Known::Yes(Size(resident)),
            mem_info2: Known::Yes(Size(stat.virtual_bytes)),
            cpu: Known::Yes(self.percent(pid, stat, machine.ticks_per_second, now)),
            mem: Known::from(machine.memory_bytes)
                .map(|memory| rounded(ratio(resident, memory) * 100.0, 3)),
            ctime: Known::Yes(CpuTime(machine.time(stat.cpu_ticks))),
            pid,
            username: user.map(|user| machine.user_name(user)).into(),
            nice: if stat.zombie {
                Nice::Zombie
            } else {
                Nice::Value(stat.nice)
            },
            cmdline: file("cmdline")
                .and_then(|bytes| parse::program(&bytes))
                .into(),
            create_time: Known::from(machine.boot_time)
                .map(|boot| rounded(ratio(boot, 1) + started, 2)),
            age: Known::from(machine.uptime).map(|uptime| (uptime - started).max(0.0)),
            started: None,
            wid: None,
            children: Vec::new(),
        }
    }

    /// CPU time since the last look in percent of the time that passed.
    fn percent(&mut self, pid: i32, stat: &Stat, ticks_per_second: u32, now: Instant) -> f64 {
        let key = (pid, stat.started_ticks);
        let last = self.samples.get(&key);
        let percent = match last {
            None => 0.0,
            Some(last) => {
                let passed = now.saturating_duration_since(last.at);
                if passed < SHORTEST_MEASURE {
                    return last.percent;
                }
                let used = stat.cpu_ticks.saturating_sub(last.cpu_ticks);
                let used = ratio(used, ticks_per_second.into());
                rounded(used / passed.as_secs_f64() * 100.0, 1)
            }
        };
        let sample = Sample {
            cpu_ticks: stat.cpu_ticks,
            at: now,
            percent,
        };
        self.samples.insert(key, sample);
        percent
    }
}

/// What is the same for all processes of one answer.
struct Machine {
    ticks_per_second: u32,
    page_bytes: u64,
    memory_bytes: Option<u64>,
    boot_time: Option<u64>,
    uptime: Option<f64>,
    /// Names found, one look-up each.
    users: HashMap<u32, String>,
}

impl Machine {
    fn read() -> Self {
        let file = |name: &str| fs::read_to_string(format!("/proc/{name}")).ok();
        let number = |variable| sysconf(variable).ok().flatten();
        Self {
            ticks_per_second: number(SysconfVar::CLK_TCK)
                .and_then(|ticks| u32::try_from(ticks).ok())
                .filter(|ticks| *ticks > 0)
                .unwrap_or(TICKS_PER_SECOND),
            page_bytes: number(SysconfVar::PAGE_SIZE)
                .and_then(|bytes| u64::try_from(bytes).ok())
                .unwrap_or(PAGE_BYTES),
            memory_bytes: file("meminfo").and_then(|text| parse::memory_bytes(&text)),
            boot_time: file("stat").and_then(|text| parse::boot_time(&text)),
            uptime: file("uptime").and_then(|text| parse::uptime(&text)),
            users: HashMap::new(),
        }
    }

    fn time(&self, ticks: u64) -> Duration {
        let per_second = u64::from(self.ticks_per_second);
        let rest = ticks % per_second * 1000 / per_second;
        Duration::from_secs(ticks / per_second) + Duration::from_millis(rest)
    }

    fn user_name(&mut self, uid: u32) -> String {
        self.users
            .entry(uid)
            .or_insert_with(|| match User::from_uid(uid.into()) {
                Ok(Some(user)) => user.name,
                _ => uid.to_string(),
            })
            .clone()
    }
}

/// Every process there is.
fn processes() -> BTreeMap<i32, Stat> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return BTreeMap::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|pid: i32| {
            let bytes = fs::read(format!("/proc/{pid}/stat")).ok()?;
            Some((pid, parse::stat(&bytes)?))
        })
        .collect()
}

fn seconds(us: u64) -> f64 {
    ratio(us, 1_000_000)
}

/// A quotient for people: what the division of such large numbers loses does not show.
#[allow(clippy::cast_precision_loss)]
fn ratio(value: u64, of: u64) -> f64 {
    value as f64 / of.max(1) as f64
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    fn process(info: &Info) -> &ProcessInfo {
        match info {
            Info::Process(info) => info,
            Info::Gone => panic!("expected a process, got none"),
        }
    }

    #[test]
    fn a_process_and_its_child_are_described() {
        let script = "sleep 1000 & echo; exec 1>&-; wait";
        let mut child = Command::new("sh")
            .args(["-c", script])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // Closed after both are there.
        let mut output = child.stdout.take().unwrap();
        std::io::Read::read_exact(&mut output, &mut [0]).unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let mut usage = Usage::default();
        let infos = usage.look(&[Subject::worker(pid, 3, 1_500_000)], Instant::now());
        let info = process(&infos[0]).clone();
        for child in &info.children {
            let _ = nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(child.pid),
                nix::sys::signal::Signal::SIGKILL,
            );
        }
        child.wait().unwrap();
        assert_eq!(
            (info.pid, info.wid, info.started),
            (pid, Some(3), Some(1.5))
        );
        assert_eq!(info.cmdline, Known::Yes("sh".to_owned()));
        assert!(info.mem_info1.value().is_some_and(|size| size.0 > 4096));
        assert!(
            info.age
                .value()
                .is_some_and(|age| (0.0..600.0).contains(age))
        );
        let own = User::from_uid(nix::unistd::getuid()).unwrap().unwrap();
        assert_eq!(info.username, Known::Yes(own.name));
        assert_eq!(info.children.len(), 1);
        assert_eq!(info.children[0].wid, None);
        assert_eq!(
            usage.look(&[Subject::worker(pid, 3, 0)], Instant::now()),
            [Info::Gone]
        );
        assert!(usage.samples.is_empty(), "what is gone is forgotten");
    }

    #[test]
    fn percentages_are_of_the_time_since_the_last_look() {
        let mut usage = Usage::default();
        let begun = Instant::now();
        let mut stat =
            parse::stat(b"1 (x) R 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 5 0 0 0").unwrap();
        let mut after = |ticks, millis| {
            stat.cpu_ticks += ticks;
            usage.percent(1, &stat, 100, begun + Duration::from_millis(millis))
        };
        assert_eq!(after(500, 0), 0.0);
        assert_eq!(after(50, 1000), 50.0);
        assert_eq!(after(400, 2000), 400.0, "of one CPU, by four threads");
        assert_eq!(after(3, 2050), 400.0, "too soon to tell");
        assert_eq!(after(7, 2400), 25.0, "and nothing was lost by it");
        // Another process with the number.
        stat.started_ticks += 1;
        assert_eq!(
            usage.percent(1, &stat, 100, begun + Duration::from_secs(3)),
            0.0
        );
    }

    #[tokio::test]
    async fn questions_are_answered_off_the_loop() {
        let statistics = Statistics::start();
        let infos = statistics.look(vec![Subject::own()]).await;
        let own = process(&infos[0]);
        assert!(own.mem.value().is_some_and(|share| *share > 0.0));
        let value = serde_json::to_value(&infos[0]).unwrap();
        assert!(value.get("wid").is_none());
        assert!(statistics.look(Vec::new()).await.is_empty());
    }
}
