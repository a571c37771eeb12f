//! What may happen, drawn from a seed: one generator decides everything, and no clock.

use papa_harness::whole::Role;

/// The generator; the same seed gives the same actions, on every machine and in every version of
/// the standard library.
///
/// Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (`SplitMix64`).
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// One of `0..limit`.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }

    /// One of `from..=to`.
    pub(crate) fn between(&mut self, from: u64, to: u64) -> u64 {
        from + self.below(to - from + 1)
    }

    pub(crate) fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        let at = usize::try_from(self.below(choices.len() as u64)).unwrap();
        choices[at]
    }
}

/// A worker, named by what holds in every replay: the n-th of those that are there, counted around.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Which {
    pub(crate) name: &'static str,
    pub(crate) nth: u64,
}

/// How a worker ends when it is told to.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Ending {
    Exit(u8),
    Signal(u8),
}

/// What the kernel is to run from now on.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Program {
    /// The one it runs, by SIGUSR2.
    Signal,
    /// The other one of two, an older one and ours: a downgrade, or an upgrade.
    Other,
    /// The other one, the keeper as well.
    WithKeeper,
    /// One that is no kernel: refused.
    Bad,
    /// The same, and not tried first: the one before comes back.
    BadForced,
}

/// What is wrong with a file.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Bad {
    /// It is empty.
    Empty,
    /// It includes one that is not there.
    Include,
    /// A section in its middle has a mistake.
    Mistake,
    /// Most watchers are gone from it, and nobody says that this is meant.
    Removal,
}

/// One thing that happens.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Action {
    Burst {
        who: Which,
        stream: &'static str,
        count: u64,
        length: u64,
        chunk: u64,
    },
    Partial {
        who: Which,
        stream: &'static str,
    },
    End {
        who: Which,
        how: Ending,
    },
    /// A worker of `crowd` ends; its child, which ignores SIGTERM, stays.
    Leave {
        nth: u64,
    },
    /// A worker of `crowd` goes into the background: it ends well, and its child runs on.
    Background {
        nth: u64,
    },
    /// A worker of `crowd` has started what multiplies when it is killed, or replaces itself for
    /// ever; then the watcher is told to stop, restart or reload, and somebody may be killed
    /// meanwhile. Nothing of it is left.
    Swarm {
        nth: u64,
        order: &'static str,
        verb: &'static str,
        victim: Option<Role>,
    },
    /// A process of a client's own is made.
    Make,
    Kill(Role),
    /// The manager is started again, if it is not there.
    Start,
    UpgradeKernel(Program),
    UpgradeManager,
    Reload {
        terminate: bool,
    },
    /// The file is edited and read again: workers of `crowd`, the generation of `web`, whether
    /// there is `extra`.
    Configure {
        crowd: u64,
        generation: u64,
        extra: bool,
    },
    /// The file is one that must not be taken, and is read; then it is what it was.
    BadFile(Bad),
    Increase(u64),
    Decrease(u64),
    Reopen,
    /// The manager stands still, shorter than the kernel's stall limit.
    Pause {
        ms: u64,
    },
    /// The manager stands still until the kernel has let a writer go on, and the oldest output go.
    Stall {
        bytes: u64,
    },
    /// A follower that does not read.
    Deaf,
    /// The log directory of `full` takes nothing more until the next check.
    FullDisk,
    /// The log file of `full` can be neither renamed nor opened until the next check.
    LockedFile,
    /// The log file of `full` is moved away, and a directory is in its place until the next check.
    ReplacedLog,
    /// The log file of `full` is moved away or deleted while the manager's disk is slow, with or
    /// without a request to open the logs anew, until the next check.
    LogGone {
        deleted: bool,
        reopen: bool,
    },
    /// More connections to the manager's control socket than it takes, which say nothing, until the
    /// next check.
    IdleSessions,
    /// Listeners to the manager's events that read nothing, until the next check.
    DeafListeners,
    /// The runtime directory is removed, with the sockets of kernel and manager in it.
    RemoveRuntimeDirectory,
    /// The manager is killed and started again, and the next one finds its disk slow, until the
    /// next check.
    SlowDisk {
        ms: u64,
    },
    /// The time of day is another one.
    Clock {
        seconds: i64,
    },
    /// The files that the kernel, or the manager, writes may only become so large (`RLIMIT_FSIZE`),
    /// until the next check.
    FileLimit {
        role: Role,
        bytes: u64,
    },
    /// The manager's own log cannot be written, until the next check.
    OwnLog,
    /// Processes are made until there is no descriptor left, and end.
    Exhaust,
}

/// Bytes one burst writes at most: with all that is written by itself between two checks, less than
/// the kernel keeps.
const BURST_BYTES: u64 = 250_000;

/// Those whose workers are ordered about. `steady` is the first: it writes, and never ends.
const WRITERS: [&str; 5] = ["steady", "web", "crowd", "full", "side"];

/// Those whose workers end.
const MORTALS: [&str; 3] = ["web", "crowd", "side"];

impl Action {
    /// How many kinds there are.
    pub(crate) const KINDS: usize = 32;

    pub(crate) fn draw(random: &mut Random) -> Self {
        let writer = |random: &mut Random| Which {
            name: random.one_of(&WRITERS),
            nth: random.below(8),
        };
        match random.below(113) {
            0..17 => {
                let length = random.one_of(&[70, 100, 1_000, 10_000, 50_000]);
                let count = random.between(1, BURST_BYTES / length);
                Self::Burst {
                    who: writer(random),
                    stream: random.one_of(&["out", "err"]),
                    count: count.min(2_000),
                    length,
                    chunk: random.one_of(&[0, 7, 100, 4_096, 70_000]).max(length / 50),
                }
            }
            17..20 => Self::Partial {
                who: writer(random),
                stream: random.one_of(&["out", "err"]),
            },
            20..21 => Self::BadFile(random.one_of(&[
                Bad::Empty,
                Bad::Include,
                Bad::Mistake,
                Bad::Removal,
            ])),
            21..27 => Self::End {
                who: Which {
                    name: random.one_of(&MORTALS),
                    nth: random.below(8),
                },
                how: random.one_of(&[
                    Ending::Exit(0),
                    Ending::Exit(3),
                    Ending::Signal(9),
                    Ending::Signal(15),
                ]),
            },
            27..29 => Self::Leave {
                nth: random.below(8),
            },
            29..31 => Self::Make,
            31..32 => Self::LockedFile,
            32..33 => Self::ReplacedLog,
            33..35 => Self::IdleSessions,
            35..36 => Self::RemoveRuntimeDirectory,
            36..44 => Self::Kill(Role::Kernel),
            44..51 => Self::Kill(Role::Keeper),
            51..60 => Self::Kill(Role::Manager),
            60..65 => Self::Start,
            65..70 => Self::UpgradeKernel(random.one_of(&[
                Program::Signal,
                Program::Other,
                Program::Other,
                Program::WithKeeper,
                Program::Bad,
                Program::BadForced,
            ])),
            70..74 => Self::UpgradeManager,
            74..78 => Self::Reload {
                terminate: random.below(4) == 0,
            },
            78..82 => Self::Configure {
                crowd: random.between(1, 4),
                generation: random.below(3),
                extra: random.below(2) == 0,
            },
            82..84 => Self::Increase(random.between(1, 2)),
            84..86 => Self::Decrease(1),
            86..87 => Self::Reopen,
            // The last is more than the kernel waits for an acknowledgement.
            87..90 => Self::SlowDisk {
                ms: random.one_of(&[2, 20, 200, 2_500]),
            },
            90..91 => Self::Pause {
                ms: random.between(10, 1_500),
            },
            91..93 => Self::Stall {
                bytes: random.between(1_200_000, 3_000_000),
            },
            93..95 => Self::Deaf,
            95..97 => Self::FullDisk,
            97..99 => Self::Clock {
                seconds: random.one_of(&[-86_400, -3_600, -1, 0, 1, 7_200, 1_000_000]),
            },
            99..100 => Self::Exhaust,
            100..103 => Self::LogGone {
                deleted: random.below(2) == 0,
                reopen: random.below(2) == 0,
            },
            103..105 => Self::Background {
                nth: random.below(8),
            },
            // That of the kernel is more than a worker writes between two checks: what is kept of
            // it goes below the limit. That of the manager is less than a log file may have.
            105..108 => match random.one_of(&[Role::Kernel, Role::Manager]) {
                role @ Role::Kernel => Self::FileLimit {
                    role,
                    bytes: 2_000_000,
                },
                role => Self::FileLimit {
                    role,
                    bytes: random.one_of(&[0, 30_000]),
                },
            },
            108..109 => Self::DeafListeners,
            109..112 => Self::Swarm {
                nth: random.below(8),
                order: random.one_of(&["swarm 4", "replace"]),
                verb: random.one_of(&["stop", "restart", "reload"]),
                victim: random.one_of(&[
                    None,
                    Some(Role::Manager),
                    Some(Role::Kernel),
                    Some(Role::Keeper),
                ]),
            },
            _ => Self::OwnLog,
        }
    }
}
