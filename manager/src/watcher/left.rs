//! What workers of a watcher leave behind when they end, and when their numbers are free again.
//!
//! Owns what that means for the watcher and what is said about it. Leaves to others: the sequence
//! (`worker::Left`), looking and signalling (`tree`).
//! Invariant: with `leave_children` nobody looks; without it a number is free only when nothing is
//! left, or the bound has passed.

use std::time::{Duration, Instant};

use papa_test_hooks::failpoint;

use crate::life::{WorkerCell, WorkerEvent};
use crate::state::{Kept, KeptRemains, MAX_LEFT_MEMBERS};
use crate::tree::{Identity, Member, describe};
use crate::watcher::{Action, Ended, Moment, Watcher};
use crate::worker::{Left, LeftDue, LeftNow, Running, State, Worker};

/// What is the same in all that is said of what runs in the background.
pub const WENT_TO_BACKGROUND: &str = "went into the background";

impl Watcher {
    /// A worker has ended: its number is free once nothing of it is left. Answers whether there is
    /// something to look for.
    pub(super) fn leave(&mut self, wid: u32, worker: &Worker, how: Ended, at: &Moment) -> bool {
        let Some(process) = worker.process().copied() else {
            return false;
        };
        let grace = self.config.graceful_timeout;
        let (asked, kill_at) = match worker.state {
            State::Stopping { kill_at, .. } => (true, kill_at),
            _ => (false, at.now + grace),
        };
        let ran = at.now.saturating_duration_since(process.started);
        let may_stay = !asked && self.may_stay(how, ran);
        self.leave_as(
            wid,
            *worker,
            Left::new(process, asked, may_stay, kill_at, at.now),
        )
    }

    /// A worker ended while no manager was there.
    pub(super) fn leave_unseen(
        &mut self,
        wid: u32,
        process: Running,
        asked: Option<Instant>,
        (how, ran): (Ended, Duration),
        at: &Moment,
    ) {
        if self.workers.contains_key(&wid) {
            return;
        }
        let kill_at = asked.unwrap_or(at.now + self.config.graceful_timeout);
        let may_stay = asked.is_none() && self.may_stay(how, ran);
        let left = Left::new(process, asked.is_some(), may_stay, kill_at, at.now);
        let mut worker = Worker::starting(self.kept.generation);
        worker.own_signal = self.kept.own_signal(process.serial);
        self.leave_as(wid, worker, left);
    }

    fn leave_as(&mut self, wid: u32, mut worker: Worker, left: Left) -> bool {
        if self.config.leave_children {
            return false;
        }
        worker.state = State::Left(left);
        self.workers.insert(wid, worker);
        true
    }

    /// It ended well, and so soon or so much for good that what it left is what was meant to run.
    fn may_stay(&self, how: Ended, ran: Duration) -> bool {
        how == Ended::Code(0) && (!self.config.respawn || ran < self.config.backoff.reset)
    }

    /// Somebody has looked what is left of the worker with this serial. Answers what is to be done
    /// at once.
    pub fn found_left(&mut self, serial: u64, members: &[Member], at: &Moment) -> Option<Action> {
        let (wid, left) =
            self.workers
                .iter_mut()
                .find_map(|(wid, worker)| match &mut worker.state {
                    State::Left(left) if left.process.serial == serial => Some((*wid, left)),
                    _ => None,
                })?;
        let was_background = left.is_background();
        let (now, due) = left.found(!members.is_empty(), at.now);
        let process = left.process;
        let action = due.map(|due| Action::Left(process, due));
        match now {
            LeftNow::Nothing => {
                if was_background {
                    tracing::info!(
                        watcher = self.config.name,
                        wid,
                        "What ran in the background has ended"
                    );
                }
                self.free(wid, serial);
            }
            LeftNow::WentToBackground => {
                self.left_members.insert(serial, members.to_vec());
                let text = self.background_text(wid, members);
                tracing::warn!(watcher = self.config.name, "{text}");
            }
            LeftNow::Something => {
                if due == Some(LeftDue::Signal) {
                    failpoint::reach("left.found");
                    let left = describe(members);
                    tracing::info!(
                        watcher = self.config.name,
                        wid,
                        left,
                        "The worker has ended; ending what it left"
                    );
                }
                self.left_members.insert(serial, members.to_vec());
            }
        }
        self.sync_kept(at);
        action
    }

    /// What is left does not end, whatever is done.
    pub(super) fn give_up_left(&mut self, serial: u64) {
        let wid = self
            .workers
            .iter()
            .find_map(|(wid, worker)| (worker.left()?.process.serial == serial).then_some(*wid));
        let Some(wid) = wid else { return };
        let members = self
            .left_members
            .get(&serial)
            .map_or(&[][..], Vec::as_slice);
        let text = if members.is_empty() {
            format!(
                "it cannot be told whether worker {wid} has left anything behind: reading /proc takes too long"
            )
        } else {
            format!(
                "worker {wid} has left processes that SIGKILL does not end: {}",
                describe(members)
            )
        };
        tracing::error!(watcher = self.config.name, "{text}");
        self.message = Some(text);
        self.free(wid, serial);
    }

    fn free(&mut self, wid: u32, serial: u64) {
        if self.stage(wid).on(WorkerEvent::Cleared) != WorkerCell::Drop {
            return;
        }
        failpoint::reach("left.freed");
        self.workers.remove(&wid);
        self.left_members.remove(&serial);
        self.kept.left.remove(&serial);
        self.freed.push(serial);
    }

    /// Serials of workers of which nothing is left, since the last time.
    pub fn take_freed(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.freed)
    }

    /// The number and the processes seen of the worker with this serial, if it has ended and is not
    /// all gone.
    #[must_use]
    pub fn left(&self, serial: u64) -> Option<(u32, Vec<Identity>)> {
        let mut workers = self.workers.iter();
        let wid = workers
            .find_map(|(wid, worker)| (worker.left()?.process.serial == serial).then_some(*wid))?;
        let seen = self.left_members.get(&serial);
        let mut known: Vec<Identity> = seen.into_iter().flatten().map(Member::identity).collect();
        if let Some(kept) = self.kept.left.get(&serial) {
            known.extend(&kept.members);
        }
        Some((wid, known))
    }

    /// The signal for what is left of it.
    #[must_use]
    pub fn left_signal(&self, serial: u64) -> i32 {
        let mut workers = self.workers.values();
        let worker = workers.find(|worker| {
            worker
                .left()
                .is_some_and(|left| left.process.serial == serial)
        });
        worker
            .and_then(|worker| worker.own_signal)
            .unwrap_or(self.config.stop_signal)
            .number()
    }

    /// A worker went into the background, and runs there.
    pub(super) fn background(&self) -> Option<String> {
        self.workers.iter().find_map(|(wid, worker)| {
            let left = worker.left().filter(|left| left.is_background())?;
            let members = self.left_members.get(&left.process.serial)?;
            Some(self.background_text(*wid, members))
        })
    }

    /// What is waited for because workers left it behind.
    pub(super) fn left_text(&self) -> Option<String> {
        let waits = self.workers.iter().find_map(|(wid, worker)| {
            let left = worker.left().filter(|left| left.is_found())?;
            let members = self.left_members.get(&left.process.serial)?;
            Some(format!(
                "worker {wid} has ended; waiting for what it left: {}",
                describe(members)
            ))
        });
        self.background().or(waits)
    }

    fn background_text(&self, wid: u32, members: &[Member]) -> String {
        let name = &self.config.name;
        format!(
            "worker {wid} {WENT_TO_BACKGROUND}: it exited with 0 and left {} running, which is not restarted; \
             run it in the foreground{}; `papactl stop {name}` ends it",
            describe(members),
            foreground_hint(&self.command_words(), members)
        )
    }

    /// What a successor must know of what is left.
    pub(super) fn sync_left(&mut self, at: &Moment) {
        if self.kept.left.is_empty() && self.left_members.is_empty() {
            return;
        }
        let before = std::mem::take(&mut self.kept.left);
        for (wid, worker) in &self.workers {
            let Some(left) = worker
                .left()
                .filter(|left| left.is_found() || before.contains_key(&left.process.serial))
            else {
                continue;
            };
            let serial = left.process.serial;
            let known = before.get(&serial);
            let mut members: Vec<Identity> = match self.left_members.get(&serial) {
                Some(members) => members.iter().map(Member::identity).collect(),
                None => known.map(|known| known.members.clone()).unwrap_or_default(),
            };
            members.truncate(MAX_LEFT_MEMBERS);
            // The first reckoning counts: read again, the clocks would differ by a little each
            // time.
            let same = known.filter(|known| known.may_stay == left.may_stay());
            let kill_at_ms = same.map_or_else(
                || {
                    let time = left.kill_at.saturating_duration_since(at.now).as_millis();
                    at.epoch_ms
                        .saturating_add(u64::try_from(time).unwrap_or(u64::MAX))
                },
                |known| known.kill_at_ms,
            );
            let remains = KeptRemains {
                wid: *wid,
                pid: left.process.pid,
                started_us: left.process.started_us,
                kill_at_ms,
                asked: left.asked,
                may_stay: left.may_stay(),
                signal: worker.own_signal.map(crate::config::SignalNumber::number),
                members,
            };
            self.kept.left.insert(serial, remains);
        }
    }

    /// What a predecessor knew to be left.
    pub(super) fn resume_left(&mut self, kept: &Kept, at: &Moment) {
        for (serial, remains) in &kept.left {
            if self.workers.contains_key(&remains.wid) {
                continue;
            }
            let time = Duration::from_millis(remains.kill_at_ms.saturating_sub(at.epoch_ms));
            // A clock that was set back must not keep it for ever.
            let kill_at = at.now + time.min(self.config.graceful_timeout);
            let process = Running {
                serial: *serial,
                pid: remains.pid,
                started_us: remains.started_us,
                started: at.now,
            };
            let left = Left::new(process, remains.asked, remains.may_stay, kill_at, at.now);
            let mut worker = Worker::starting(kept.generation);
            worker.own_signal = remains
                .signal
                .and_then(|signal| crate::config::SignalNumber::try_from(signal).ok());
            worker.state = State::Left(left);
            self.workers.insert(remains.wid, worker);
        }
    }

    fn command_words(&self) -> Vec<String> {
        let words = self.config.argv_template.iter();
        words
            .flat_map(|word| word.split_whitespace().map(str::to_owned))
            .collect()
    }
}

/// How well-known programs are kept in the foreground, by the name of the program.
const FOREGROUND: &[(&str, &str)] = &[
    ("nginx", "nginx -g 'daemon off;'"),
    ("apache2", "apache2 -DFOREGROUND"),
    ("apachectl", "apachectl -DFOREGROUND"),
    ("apache2ctl", "apache2ctl -DFOREGROUND"),
    ("httpd", "httpd -DFOREGROUND"),
    ("gunicorn", "without --daemon"),
    ("uwsgi", "without `daemonize`"),
    ("hypercorn", "without --daemon"),
    ("unicorn", "without -D"),
    ("puma", "without -d"),
    (
        "celery",
        "`celery worker` instead of `celery multi`, without --detach",
    ),
    ("redis-server", "--daemonize no"),
    ("valkey-server", "--daemonize no"),
    ("memcached", "without -d"),
    ("mongod", "without --fork"),
    ("pg_ctl", "`postgres -D DIR` instead of pg_ctl"),
    ("mysqld_safe", "`mysqld` instead"),
    ("php-fpm", "--nodaemonize"),
    ("haproxy", "-db"),
    ("varnishd", "-F"),
    ("squid", "-N"),
    ("sshd", "-D"),
    ("dnsmasq", "-k"),
    ("rsyslogd", "-n"),
    ("cron", "-f"),
    ("crond", "-f"),
    ("caddy", "`caddy run` instead of `caddy start`"),
    ("supervisord", "-n"),
    ("pm2", "`pm2-runtime` instead of `pm2`"),
    ("screen", "-D -m"),
    ("nohup", "without nohup"),
    ("setsid", "without setsid"),
    ("daemonize", "without daemonize"),
    ("start-stop-daemon", "without --background"),
];

fn foreground_hint(words: &[String], members: &[Member]) -> String {
    let programs = words
        .iter()
        .filter_map(|word| word.rsplit('/').next())
        .chain(members.iter().map(|member| member.command.as_str()));
    for program in programs {
        let is_it = |(name, _): &&(&str, &str)| {
            let rest = program.strip_prefix(name);
            // Also with a version: php-fpm8.2.
            rest.is_some_and(|rest| rest.chars().all(|c| c.is_ascii_digit() || c == '.'))
        };
        if let Some((_, hint)) = FOREGROUND.iter().find(is_it) {
            return format!(" ({hint})");
        }
    }
    if words.last().is_some_and(|word| word.ends_with('&')) {
        return " (without `&`)".to_owned();
    }
    " (most programs have an option for it; a program that is to leave something running wants `leave_children = yes`)".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_programs_have_a_hint() {
        let words = |text: &str| -> Vec<String> { text.split(' ').map(str::to_owned).collect() };
        let hint = |text: &str| foreground_hint(&words(text), &[]);
        assert_eq!(hint("/usr/sbin/nginx -c x"), " (nginx -g 'daemon off;')");
        assert_eq!(hint("php-fpm8.2"), " (--nodaemonize)");
        assert_eq!(hint("sh -c sleep&"), " (without `&`)");
        assert!(hint("mine").contains("leave_children"));
        let sshd = Member {
            pid: 1,
            started: 1,
            command: "sshd".to_owned(),
        };
        assert_eq!(foreground_hint(&words("wrapper"), &[sshd]), " (-D)");
    }
}
