//! The places at which somebody is killed: every step of what keeper, kernel and manager do that
//! leaves something behind.
//!
//! A place is a `failpoint::reach` in the code; what it is called there is what it is called here.

use papa_harness::whole::Role;

/// One place.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    /// Its name in the code.
    pub(crate) name: &'static str,
    /// Who gets there.
    pub(crate) role: Role,
    /// What has it reached.
    pub(crate) drive: Drive,
    /// At which time of reaching it from then on.
    pub(crate) time: u64,
    /// What has happened by then, for the table.
    pub(crate) what: &'static str,
    /// Of keeper and kernel there is but one at this moment: killing it is killing both, which
    /// nobody promises to survive.
    pub(crate) alone: bool,
    /// While the keeper is replaced there are two: the one of the column *keeper* is the next one.
    pub(crate) next_keeper: bool,
}

/// What the test does so that a place is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Drive {
    /// Nothing: workers write all the time.
    Write,
    /// Workers write so much that files are turned.
    Burst,
    /// A log file takes only the beginning of a write.
    CutWrite,
    /// The same; then there is room again.
    CutResumed,
    /// The same; then the manager is killed, so that another one finishes the write.
    CutKilled,
    /// A worker ends, and the kernel refuses once to keep what follows from that.
    SaveRefused,
    /// The same, and the manager tries again.
    SaveRetried,
    /// A worker the kernel started itself ends, and is started anew.
    End,
    /// A worker ends whose child ignores SIGTERM and stays; it is started anew when that is killed.
    EndLeaving,
    /// A worker of a kernel that has died since ends, and is started anew.
    EndAdopted,
    /// A worker that is nobody's child any more ends, and is started anew: kernel and keeper have
    /// died since.
    EndOrphaned,
    /// Values are set until the journal is worth rewriting.
    Values,
    /// The kernel is killed, so that another one recovers.
    KernelDies,
    /// The manager is killed, so that another one adopts.
    ManagerDies,
    /// A rolling reload.
    Reload,
    /// The keeper is killed, so that the kernel takes its place.
    KeeperDies,
    /// The kernel is asked to become the program anew.
    Upgrade,
    /// The same, and then the keeper too.
    UpgradeBoth,
    /// The manager is asked to become its program anew.
    UpgradeManager,
    /// Keeper and kernel are killed at once, so that the next kernel's manager ends their workers.
    BothDie,
    /// The path of a unix socket is removed, so that it is bound anew.
    PathGone,
}

impl std::fmt::Display for Drive {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Write => "writing",
            Self::Burst => "much writing",
            Self::CutWrite => "a disk that becomes full",
            Self::CutResumed => "a full disk has room again",
            Self::CutKilled => "the manager was killed while a disk was full",
            Self::SaveRefused => "the kernel refuses to keep a value",
            Self::SaveRetried => "a refused value is sent again",
            Self::End => "a worker ends",
            Self::EndLeaving => "a worker ends and leaves a child",
            Self::EndAdopted => "an adopted worker ends",
            Self::EndOrphaned => "an orphaned worker ends",
            Self::Values => "values are set",
            Self::KernelDies => "the kernel was killed",
            Self::ManagerDies => "the manager was killed",
            Self::Reload => "a reload",
            Self::KeeperDies => "the keeper was killed",
            Self::Upgrade => "`kernel.upgrade`",
            Self::UpgradeBoth => "`kernel.upgrade` with `keeper`",
            Self::UpgradeManager => "SIGUSR2 to the manager",
            Self::BothDie => "keeper and kernel were killed at once",
            Self::PathGone => "the path of a unix socket was removed",
        })
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.name, self.drive)
    }
}

const fn place(name: &'static str, role: Role, drive: Drive, what: &'static str) -> Place {
    Place {
        name,
        role,
        drive,
        time: 1,
        what,
        alone: false,
        next_keeper: false,
    }
}

/// A place in the second half of `kernel.upgrade` with `keeper`: the kernel has been started anew
/// before.
const fn succession(name: &'static str, role: Role, time: u64, what: &'static str) -> Place {
    Place {
        time,
        ..place(name, role, Drive::UpgradeBoth, what)
    }
}

/// All of them, in the order of the table.
pub(crate) const PLACES: &[Place] = &[
    place(
        "spawn.intent",
        Role::Kernel,
        Drive::End,
        "the intent is in the journal",
    ),
    place(
        "spawn.kept",
        Role::Kernel,
        Drive::End,
        "the keeper has pipes and reel",
    ),
    place(
        "spawn.child",
        Role::Kernel,
        Drive::End,
        "between vfork and exec, not registered",
    ),
    place(
        "spawn.registered",
        Role::Kernel,
        Drive::End,
        "between vfork and exec, registered",
    ),
    place(
        "spawn.executed",
        Role::Kernel,
        Drive::End,
        "the worker runs, the journal does not say so",
    ),
    place(
        "spawn.started",
        Role::Kernel,
        Drive::End,
        "the journal says so, nobody was answered",
    ),
    place(
        "spawn.answered",
        Role::Manager,
        Drive::End,
        "the manager has the answer",
    ),
    place(
        "exit.seen",
        Role::Kernel,
        Drive::End,
        "seen through the pidfd, not in the journal",
    ),
    place(
        "exit.recorded",
        Role::Kernel,
        Drive::End,
        "in the journal, nobody was told",
    ),
    place(
        "exit.adopted",
        Role::Keeper,
        Drive::EndAdopted,
        "the keeper has waited for it, and not noted how it ended",
    ),
    place(
        "exit.passed_on",
        Role::Keeper,
        Drive::EndAdopted,
        "the keeper has told the kernel",
    ),
    place(
        "exit.told",
        Role::Kernel,
        Drive::EndAdopted,
        "the kernel was told, nothing is in the journal",
    ),
    place(
        "exit.confirm",
        Role::Kernel,
        Drive::EndAdopted,
        "in the journal, not confirmed to the keeper",
    ),
    place(
        "exit.recorded",
        Role::Kernel,
        Drive::EndOrphaned,
        "in the journal, as the system knew it, nobody was told",
    ),
    place(
        "exit.noticed",
        Role::Manager,
        Drive::End,
        "the manager was told, and has done nothing",
    ),
    place(
        "exit.kept",
        Role::Manager,
        Drive::End,
        "what follows is kept, the exit not acknowledged",
    ),
    place(
        "left.found",
        Role::Manager,
        Drive::EndLeaving,
        "the worker has ended, its child was found and not asked to end",
    ),
    place(
        "left.killing",
        Role::Manager,
        Drive::EndLeaving,
        "the child has not ended within the grace period, and is about to be killed",
    ),
    place(
        "left.freed",
        Role::Manager,
        Drive::EndLeaving,
        "nothing is left, and what is kept does not say so",
    ),
    place(
        "exit.waited",
        Role::Kernel,
        Drive::End,
        "acknowledged and waited for, not in the journal",
    ),
    place(
        "exit.forgotten",
        Role::Kernel,
        Drive::End,
        "the journal has forgotten it, the keeper has not",
    ),
    place(
        "capture.intent",
        Role::Kernel,
        Drive::Write,
        "the intent word is set, nothing spliced",
    ),
    place(
        "capture.spliced",
        Role::Kernel,
        Drive::Write,
        "spliced, no index entry",
    ),
    place(
        "capture.indexed",
        Role::Kernel,
        Drive::Write,
        "indexed, nobody was told",
    ),
    place(
        "capture.ended",
        Role::Kernel,
        Drive::End,
        "a stream is at its end, the keeper still has it",
    ),
    place(
        "acknowledge.begin",
        Role::Kernel,
        Drive::Write,
        "asked to let go, the start not moved",
    ),
    place(
        "acknowledge.moved",
        Role::Kernel,
        Drive::Write,
        "the start is moved, nothing given back",
    ),
    place(
        "acknowledge.punched",
        Role::Kernel,
        Drive::Write,
        "given back",
    ),
    place(
        "compact.written",
        Role::Kernel,
        Drive::Values,
        "the image is written, the old journal in force",
    ),
    place(
        "compact.moved",
        Role::Kernel,
        Drive::Values,
        "the image is in force, the old one not given back",
    ),
    place(
        "recover.fetched",
        Role::Kernel,
        Drive::KernelDies,
        "every descriptor is here, nothing read",
    ),
    Place {
        time: 5,
        ..place(
            "recover.replaying",
            Role::Kernel,
            Drive::KernelDies,
            "in the middle of the journal",
        )
    },
    place(
        "recover.replayed",
        Role::Kernel,
        Drive::KernelDies,
        "all read, nothing put together",
    ),
    place(
        "recover.serving",
        Role::Kernel,
        Drive::KernelDies,
        "put together, about to say that it serves",
    ),
    place(
        "recover.confirmed",
        Role::Kernel,
        Drive::KernelDies,
        "serves; what was found is written down, no output taken",
    ),
    place(
        "adopt.claimed",
        Role::Manager,
        Drive::ManagerDies,
        "the namespace is ours, nothing known",
    ),
    place(
        "adopt.subscribed",
        Role::Manager,
        Drive::ManagerDies,
        "changes will be told, nothing is listed",
    ),
    place(
        "adopt.processes",
        Role::Manager,
        Drive::ManagerDies,
        "the processes are listed, what the dead wrote last is not read",
    ),
    place(
        "adopt.listed",
        Role::Manager,
        Drive::ManagerDies,
        "the list is here, nothing matched",
    ),
    place(
        "adopt.reconciled",
        Role::Manager,
        Drive::ManagerDies,
        "matched, nothing done",
    ),
    place(
        "adopt.state",
        Role::Manager,
        Drive::ManagerDies,
        "the log state is here and repaired",
    ),
    place(
        "adopt.consuming",
        Role::Manager,
        Drive::ManagerDies,
        "about to consume output",
    ),
    place(
        "adopt.consumed",
        Role::Manager,
        Drive::ManagerDies,
        "output is on its way",
    ),
    place(
        "adopt.processes",
        Role::Manager,
        Drive::KernelDies,
        "connected again, the processes are listed, what the dead wrote last is not read",
    ),
    place(
        "adopt.listed_again",
        Role::Manager,
        Drive::KernelDies,
        "connected again, the list is here",
    ),
    place(
        "log.before_write",
        Role::Manager,
        Drive::Write,
        "a write is recorded, no byte in the file",
    ),
    place(
        "log.in_write",
        Role::Manager,
        Drive::Write,
        "half of it is in the file",
    ),
    place(
        "log.after_write",
        Role::Manager,
        Drive::Write,
        "all of it, and the record does not say so",
    ),
    place(
        "log.before_acknowledge",
        Role::Manager,
        Drive::Write,
        "recorded, not acknowledged",
    ),
    place(
        "log.cut",
        Role::Manager,
        Drive::CutWrite,
        "the beginning of a write is in the file, and the record does not say how much",
    ),
    place(
        "log.cut_noted",
        Role::Manager,
        Drive::CutWrite,
        "the record says how much, and the rest waits",
    ),
    place(
        "log.before_rest",
        Role::Manager,
        Drive::CutResumed,
        "the rest is about to be written",
    ),
    place(
        "log.in_rest",
        Role::Manager,
        Drive::CutResumed,
        "half of the rest is in the file",
    ),
    place(
        "log.after_rest",
        Role::Manager,
        Drive::CutResumed,
        "all of it, and the record does not say so",
    ),
    place(
        "log.before_rest",
        Role::Manager,
        Drive::CutKilled,
        "the next manager is about to write the rest",
    ),
    place(
        "log.in_rest",
        Role::Manager,
        Drive::CutKilled,
        "half of the rest is in the file",
    ),
    place(
        "log.after_rest",
        Role::Manager,
        Drive::CutKilled,
        "all of it, and the record does not say so",
    ),
    place(
        "save.refused",
        Role::Manager,
        Drive::SaveRefused,
        "the manager was told, and has not tried again",
    ),
    place(
        "save.again",
        Role::Manager,
        Drive::SaveRetried,
        "it is about to be sent again",
    ),
    place(
        "value.asked",
        Role::Kernel,
        Drive::SaveRetried,
        "the kernel has it, and not in its journal",
    ),
    place(
        "value.recorded",
        Role::Kernel,
        Drive::SaveRetried,
        "it is in the journal, nobody was answered",
    ),
    place(
        "save.taken",
        Role::Manager,
        Drive::SaveRetried,
        "the manager was told, and has not noted that",
    ),
    place(
        "log.rotating",
        Role::Manager,
        Drive::Burst,
        "a rotation is recorded, some renames done",
    ),
    place(
        "log.rotated",
        Role::Manager,
        Drive::Burst,
        "all renames done, and the record does not say so",
    ),
    place(
        "reload.decided",
        Role::Manager,
        Drive::Reload,
        "a new generation, kept nowhere",
    ),
    place(
        "reload.kept",
        Role::Manager,
        Drive::Reload,
        "the kernel was asked to keep it",
    ),
    place(
        "reload.started",
        Role::Manager,
        Drive::Reload,
        "a new worker runs",
    ),
    place(
        "reload.ready",
        Role::Manager,
        Drive::Reload,
        "a new worker serves",
    ),
    place(
        "reload.stopping",
        Role::Manager,
        Drive::Reload,
        "an old worker was asked to end",
    ),
    place(
        "reload.gone",
        Role::Manager,
        Drive::Reload,
        "an old worker has ended",
    ),
    place(
        "reload.closed",
        Role::Manager,
        Drive::Reload,
        "all are replaced, and what is kept does not say so",
    ),
    place(
        "adopt.claimed",
        Role::Manager,
        Drive::UpgradeManager,
        "the next program has the namespace, and knows nothing",
    ),
    place(
        "adopt.consuming",
        Role::Manager,
        Drive::UpgradeManager,
        "the next program is about to consume output",
    ),
    place(
        "socket.unbound",
        Role::Manager,
        Drive::PathGone,
        "the socket whose path was removed is closed, no other one is made",
    ),
    place(
        "socket.bound",
        Role::Manager,
        Drive::PathGone,
        "it is bound anew, and the manager has not noted that",
    ),
    place(
        "upgrade.examined",
        Role::Kernel,
        Drive::Upgrade,
        "the program was tried and is good",
    ),
    place(
        "upgrade.frozen",
        Role::Kernel,
        Drive::Upgrade,
        "all connections are stopped",
    ),
    place(
        "upgrade.recorded",
        Role::Kernel,
        Drive::Upgrade,
        "the keeper has the sessions",
    ),
    place(
        "upgrade.tried",
        Role::Kernel,
        Drive::Upgrade,
        "the keeper knows of the program, the exec is next",
    ),
    place(
        "upgrade.executed",
        Role::Kernel,
        Drive::Upgrade,
        "the program runs, nothing fetched",
    ),
    place(
        "recover.fetched",
        Role::Kernel,
        Drive::Upgrade,
        "the program has every descriptor, nothing read",
    ),
    place(
        "recover.serving",
        Role::Kernel,
        Drive::Upgrade,
        "the program is about to confirm",
    ),
    place(
        "recover.served",
        Role::Kernel,
        Drive::Upgrade,
        "confirmed, the sessions not taken",
    ),
    place(
        "upgrade.taken",
        Role::Kernel,
        Drive::Upgrade,
        "the sessions are taken, and not gone on with",
    ),
    place(
        "upgrade.answering",
        Role::Kernel,
        Drive::Upgrade,
        "all goes on, the requester was not answered",
    ),
    succession(
        "upgrade.frozen",
        Role::Kernel,
        2,
        "the kernel is new, all connections are stopped again",
    ),
    succession(
        "upgrade.recorded",
        Role::Kernel,
        2,
        "the kernel is new, the keeper has the sessions",
    ),
    succession(
        "succession.told",
        Role::Kernel,
        1,
        "the keeper knows that it is being replaced, the exec is next",
    ),
    succession(
        "takeover.executed",
        Role::Keeper,
        1,
        "the kernel's process is a keeper beside the old one, and has no kernel (in that column it is itself)",
    ),
    succession(
        "recover.fetched",
        Role::Kernel,
        2,
        "the next kernel has every descriptor; keeper: the old one",
    ),
    Place {
        next_keeper: true,
        ..succession(
            "recover.fetched",
            Role::Kernel,
            2,
            "the next kernel has every descriptor; keeper: the next one",
        )
    },
    succession(
        "succession.dismiss",
        Role::Kernel,
        1,
        "the next kernel is about to dismiss the old keeper; keeper: that one",
    ),
    Place {
        next_keeper: true,
        ..succession(
            "succession.dismiss",
            Role::Kernel,
            1,
            "the next kernel is about to dismiss the old keeper; keeper: the next one",
        )
    },
    Place {
        next_keeper: true,
        ..succession(
            "succession.dismissed",
            Role::Kernel,
            1,
            "the old keeper is gone, nothing is put together",
        )
    },
    Place {
        next_keeper: true,
        ..succession(
            "recover.serving",
            Role::Kernel,
            2,
            "the keeper is new, the next kernel about to confirm",
        )
    },
    Place {
        next_keeper: true,
        ..succession(
            "recover.served",
            Role::Kernel,
            2,
            "the keeper is new, the next kernel has confirmed and written nothing",
        )
    },
    Place {
        alone: true,
        ..place(
            "takeover.alone",
            Role::Kernel,
            Drive::KeeperDies,
            "the keeper is gone, the exec into its role is next",
        )
    },
    Place {
        alone: true,
        ..place(
            "takeover.executed",
            Role::Keeper,
            Drive::KeeperDies,
            "the kernel is the keeper, another one not started",
        )
    },
    place(
        "recover.fetched",
        Role::Kernel,
        Drive::KeeperDies,
        "the next kernel has every descriptor, nothing read",
    ),
    place(
        "recover.served",
        Role::Kernel,
        Drive::KeeperDies,
        "the next kernel has confirmed, the sessions are not taken",
    ),
    place(
        "upgrade.taken",
        Role::Kernel,
        Drive::KeeperDies,
        "the sessions are taken, and not gone on with",
    ),
    place(
        "orphan.found",
        Role::Manager,
        Drive::BothDie,
        "the orphans are found, none was asked to end",
    ),
    place(
        "orphan.asked",
        Role::Manager,
        Drive::BothDie,
        "they were asked to end",
    ),
    place(
        "orphan.killed",
        Role::Manager,
        Drive::BothDie,
        "it was killed",
    ),
    place(
        "orphan.gone",
        Role::Manager,
        Drive::BothDie,
        "all are gone, no worker is started in their place",
    ),
];
