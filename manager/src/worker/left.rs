//! What a worker leaves behind when it ends, and how far the end of that has come.
//!
//! Owns the sequence: look, stop signal, grace period, freeze and kill, and a bound to all of it.
//! Pure: time is an argument, what is to be done is an answer.
//! Invariant: a worker's number is free when nothing of it is left, or when this sequence is over,
//! and that is within a bound.

use std::time::{Duration, Instant};

use crate::worker::Running;

/// First pause until it is looked again whether something is left; doubles up to the longest.
const LOOK_AGAIN_MIN: Duration = Duration::from_millis(10);
const LOOK_AGAIN_MAX: Duration = Duration::from_millis(500);
/// How often it is looked whether what went into the background still runs.
const BACKGROUND_LOOK: Duration = Duration::from_secs(1);
/// So long after the first kill what is left is given up: it stands in the system, where no signal
/// reaches it, or belongs to somebody we may not signal.
const KILL_PATIENCE: Duration = Duration::from_secs(5);
/// An answer that is this late does not come: somebody's memory cannot be read.
const ANSWER_PATIENCE: Duration = Duration::from_secs(15);

/// What is left of a worker that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Left {
    /// The worker's process, which is no more.
    pub process: Running,
    /// It had been asked to end.
    pub asked: bool,
    /// When what is left is killed.
    pub kill_at: Instant,
    stage: Stage,
    /// When there is more to do; while an answer is awaited: when it is too late.
    next: Instant,
    awaits: bool,
    looks: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Nobody has looked yet. If `may_stay` and there is something, it went into the background.
    Unknown { may_stay: bool },
    /// It ended well and left something running: that is left alone until it is to stop.
    Background,
    /// What is left has been sent the stop signal.
    Asked,
    /// It has been killed.
    Killed { since: Instant },
}

/// What is to be done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeftDue {
    /// Look who is left.
    Look,
    /// Send them the stop signal.
    Signal,
    /// Freeze and kill them.
    Kill,
    /// Leave them: nothing helps.
    GiveUp,
}

/// What an answer means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeftNow {
    /// Nothing is left.
    Nothing,
    /// It has just become clear that the worker went into the background.
    WentToBackground,
    /// There is something still.
    Something,
}

impl Left {
    /// Of a worker that has just ended. With `may_stay` what it left may run on.
    #[must_use]
    pub fn new(
        process: Running,
        asked: bool,
        may_stay: bool,
        kill_at: Instant,
        now: Instant,
    ) -> Self {
        Self {
            process,
            asked,
            kill_at,
            stage: Stage::Unknown { may_stay },
            next: now,
            awaits: false,
            looks: 0,
        }
    }

    /// It is left alone, because the worker went into the background.
    #[must_use]
    pub fn is_background(&self) -> bool {
        matches!(self.stage, Stage::Background)
    }

    /// Somebody has found that there is something.
    #[must_use]
    pub fn is_found(&self) -> bool {
        !matches!(self.stage, Stage::Unknown { .. })
    }

    /// For a successor: what it leaves may run on.
    #[must_use]
    pub fn may_stay(&self) -> bool {
        matches!(
            self.stage,
            Stage::Background | Stage::Unknown { may_stay: true }
        )
    }

    /// It is to end after all.
    pub fn stop(&mut self, grace: Duration, now: Instant) {
        if self.may_stay() {
            self.asked = true;
            self.kill_at = now + grace;
            self.stage = Stage::Unknown { may_stay: false };
            self.next = now;
            self.awaits = false;
        }
    }

    /// When something is due.
    #[must_use]
    pub fn deadline(&self) -> Instant {
        match self.stage {
            Stage::Asked if !self.awaits => self.next.min(self.kill_at),
            _ => self.next,
        }
    }

    /// What is due now.
    pub fn due(&mut self, now: Instant) -> Option<LeftDue> {
        if now < self.deadline() {
            return None;
        }
        if self.awaits {
            return Some(LeftDue::GiveUp);
        }
        let due = match self.stage {
            Stage::Asked if self.kill_at <= now => {
                self.stage = Stage::Killed { since: now };
                LeftDue::Kill
            }
            Stage::Killed { since } if since + KILL_PATIENCE <= now => {
                return Some(LeftDue::GiveUp);
            }
            Stage::Killed { .. } => LeftDue::Kill,
            Stage::Unknown { .. } | Stage::Background | Stage::Asked => LeftDue::Look,
        };
        self.awaits = true;
        self.next = now + ANSWER_PATIENCE;
        Some(due)
    }

    /// Somebody has looked. Answers what that means, and what is to be done at once.
    pub fn found(&mut self, anybody: bool, now: Instant) -> (LeftNow, Option<LeftDue>) {
        if !anybody {
            return (LeftNow::Nothing, None);
        }
        self.awaits = false;
        match self.stage {
            Stage::Unknown { may_stay: true } => {
                self.stage = Stage::Background;
                self.next = now + BACKGROUND_LOOK;
                return (LeftNow::WentToBackground, None);
            }
            Stage::Unknown { may_stay: false } => {
                self.stage = Stage::Asked;
                self.awaits = true;
                self.next = now + ANSWER_PATIENCE;
                return (LeftNow::Something, Some(LeftDue::Signal));
            }
            Stage::Background => self.next = now + BACKGROUND_LOOK,
            Stage::Asked | Stage::Killed { .. } => {
                let pause = LOOK_AGAIN_MIN.saturating_mul(1 << self.looks.min(10));
                self.looks = self.looks.saturating_add(1);
                self.next = now + pause.min(LOOK_AGAIN_MAX);
            }
        }
        (LeftNow::Something, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left(may_stay: bool) -> (Left, Instant) {
        let now = Instant::now();
        let process = Running {
            serial: 1,
            pid: 2,
            started_us: 3,
            started: now,
        };
        let kill_at = now + Duration::from_secs(30);
        (Left::new(process, !may_stay, may_stay, kill_at, now), now)
    }

    #[test]
    fn what_is_left_is_asked_then_killed_then_given_up() {
        let (mut left, now) = left(false);
        assert_eq!(left.due(now), Some(LeftDue::Look));
        assert_eq!(left.due(now), None, "the answer is awaited");
        let asked = (LeftNow::Something, Some(LeftDue::Signal));
        assert_eq!(left.found(true, now), asked);
        assert_eq!(left.found(true, now), (LeftNow::Something, None));
        assert!(left.deadline() <= now + LOOK_AGAIN_MIN);
        assert_eq!(left.due(left.kill_at), Some(LeftDue::Kill));
        let killed = left.kill_at;
        assert_eq!(left.found(true, killed), (LeftNow::Something, None));
        assert_eq!(left.due(killed + LOOK_AGAIN_MAX), Some(LeftDue::Kill));
        assert_eq!(left.found(true, killed).1, None);
        assert_eq!(left.due(killed + KILL_PATIENCE), Some(LeftDue::GiveUp));
        assert_eq!(left.found(false, killed).0, LeftNow::Nothing);
    }

    #[test]
    fn what_went_into_the_background_runs_until_it_is_to_stop() {
        let (mut left, now) = left(true);
        assert_eq!(left.due(now), Some(LeftDue::Look));
        assert_eq!(left.found(true, now), (LeftNow::WentToBackground, None));
        let later = now + Duration::from_secs(3600);
        assert_eq!(left.due(later), Some(LeftDue::Look));
        assert_eq!(left.found(true, later), (LeftNow::Something, None));
        left.stop(Duration::from_secs(2), later);
        assert!(left.asked && left.kill_at == later + Duration::from_secs(2));
        assert_eq!(left.due(later), Some(LeftDue::Look));
        assert_eq!(left.found(true, later).1, Some(LeftDue::Signal));
    }

    #[test]
    fn a_look_that_is_never_answered_holds_nobody_for_ever() {
        let (mut left, now) = left(false);
        assert_eq!(left.due(now), Some(LeftDue::Look));
        assert_eq!(left.due(now + ANSWER_PATIENCE), Some(LeftDue::GiveUp));
    }
}
