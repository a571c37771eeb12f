//! The life of a watcher and the life of each of its workers: two tables of state × event.
//!
//! Owns which state follows from which event, and what has to be done then. The code that carries
//! an event out (`watcher`, `worker`) asks here first, so that these tables are the whole truth.
//! Leaves to others: data (deadlines, processes), and when an event happens.
//! Invariant: every state answers every event. A cell that says `Never` stands for an event that
//! cannot happen in that state; builds for debugging panic there.
//!
//! manager/docs/lives.md shows both tables; `UPDATE_README=1 cargo test -p papa-manager --lib life`
//! writes them there. The form is that of the state tables of s6 and of RFC 9293.

/// An enum whose variants have a text for people and are listed in `ALL`.
macro_rules! listed {
    ($(#[$doc:meta])* $name:ident { $($variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name {
            $(#[doc = $text] $variant,)*
        }

        impl $name {
            /// Every variant, in the order of the table.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// What it means, for people.
            #[must_use]
            pub const fn text(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }
    };
}

listed! {
    /// State of a watcher.
    Life {
        Stopped = "not wanted; nothing of it runs",
        GivenUp = "stopped because starting it has no prospect",
        Stopping = "not wanted; its workers are ending",
        Restarting = "its workers are ending; it is wanted again after that",
        Dormant = "wanted; the first connection starts it",
        Running = "wanted; as many workers as configured are started and kept",
        Pausing = "wanted; its workers ended too often, none is started for a while",
    }
}

listed! {
    /// What happens to a watcher.
    WatcherEvent {
        Start = "a start is asked for",
        Stop = "a stop is asked for",
        Halt = "the manager ends, and it with it",
        Restart = "a restart is asked for",
        Reload = "a reload is asked for",
        Demand = "a client connects, or `on_demand` is switched off",
        Found = "a worker is found running",
        Idle = "`on_demand`: its last worker has ended by itself",
        Flap = "its workers have ended too often",
        PauseOver = "the pause is over",
        GiveUp = "there were too many pauses or failed starts",
        Finish = "all workers that are not restarted have ended",
        Gone = "its last worker is gone",
    }
}

listed! {
    /// What an event means for a watcher.
    WatcherCell {
        Begin = "→ Running; Pausing until its pause is over; Dormant with `on_demand` and no worker",
        Again = "its workers are stopped: → Restarting; without workers as Begin",
        End = "its workers are stopped: → Stopping; without workers → Stopped, or given up",
        Roll = "the workers it has are replaced one after another, and a pause is over; without workers nothing follows",
        Wake = "→ Running; Pausing until its pause is over",
        Sleep = "→ Dormant",
        Pause = "→ Pausing; in a state that starts no workers the pause counts later",
        Same = "nothing follows",
        Never = "cannot happen",
    }
}

listed! {
    /// State of a worker's number.
    Stage {
        Free = "no process has the number; it may have to wait for its back-off",
        Starting = "the kernel is asked to start a process",
        Unwanted = "the same, but the process is to be stopped once it is there",
        Waiting = "a process runs and is not ready yet",
        Serving = "the process is ready",
        Stopping = "the process is asked to end",
        Left = "the process has ended; what it has left behind has perhaps not",
    }
}

listed! {
    /// What happens to a worker.
    WorkerEvent {
        Begin = "the watcher needs one more worker",
        Started = "the kernel has started the process",
        StartFailed = "the kernel cannot start it",
        Found = "a process with this number is found running",
        Ready = "it says that it serves, or has run long enough",
        Late = "it is not ready in time, or says that it will not be",
        Unwell = "its health check has failed often enough",
        Stop = "it is to end",
        Hasten = "it is to end within a given time",
        GraceOver = "its grace period is over",
        Ended = "its process has ended",
        Cleared = "nothing is left of it",
    }
}

listed! {
    /// What an event means for a worker.
    WorkerCell {
        Ask = "the kernel is asked: → Starting",
        Up = "→ Waiting; Serving if nothing says when it is ready; Stopping if it was asked to end before",
        UpToGo = "as Up, and it is stopped next",
        Fail = "the failure counts (back-off): → Free",
        Drop = "→ Free",
        Serve = "→ Serving",
        Unwant = "→ Unwanted",
        Stop = "stop signal: → Stopping",
        Fault = "stop signal, and the failure counts (back-off, flapping): → Stopping",
        Sooner = "the signal is sent again, and the kill comes no later than asked",
        Kill = "it and everything it has started are killed, and again each second",
        Die = "the end counts (back-off, flapping): → Left, or Free with `leave_children`",
        DieAsked = "→ Left, or Free with `leave_children`",
        EndLeft = "what it has left is stopped too",
        Same = "nothing follows: too late, or known already",
        Never = "cannot happen",
    }
}

impl Life {
    /// What `event` means for a watcher in this state.
    #[must_use]
    #[rustfmt::skip]
    pub const fn on(self, event: WatcherEvent) -> WatcherCell {
        use WatcherCell::{Again, Begin, End, Never, Pause, Roll, Same, Sleep, Wake};
        let [stopped, given_up, stopping, restarting, dormant, running, pausing] = match event {
            //                          Stopped GivenUp Stopping Restarting Dormant Running Pausing
            WatcherEvent::Start     => [Begin,  Begin,  Again,   Again,     Begin,  Begin,  Begin],
            WatcherEvent::Stop      => [End,    End,    End,     End,       End,    End,    End],
            WatcherEvent::Halt      => [End,    End,    End,     End,       End,    End,    End],
            WatcherEvent::Restart   => [Begin,  Begin,  Again,   Again,     Again,  Again,  Again],
            WatcherEvent::Reload    => [Same,   Same,   Same,    Same,      Roll,   Roll,   Roll],
            WatcherEvent::Demand    => [Same,   Same,   Same,    Same,      Wake,   Same,   Same],
            WatcherEvent::Found     => [End,    End,    Same,    Same,      Wake,   Same,   Same],
            WatcherEvent::Idle      => [Same,   Same,   Same,    Same,      Same,   Sleep,  Sleep],
            WatcherEvent::Flap      => [Pause,  Pause,  Pause,   Pause,     Pause,  Pause,  Pause],
            WatcherEvent::PauseOver => [Never,  Never,  Never,   Never,     Never,  Never,  Wake],
            WatcherEvent::GiveUp    => [End,    End,    End,     End,       End,    End,    End],
            WatcherEvent::Finish    => [Never,  Never,  Never,   Never,     End,    End,    End],
            WatcherEvent::Gone      => [Never,  Never,  End,     Begin,     Same,   Same,   Same],
        };
        match self {
            Self::Stopped => stopped,
            Self::GivenUp => given_up,
            Self::Stopping => stopping,
            Self::Restarting => restarting,
            Self::Dormant => dormant,
            Self::Running => running,
            Self::Pausing => pausing,
        }
    }
}

impl Stage {
    /// What `event` means for a worker in this state.
    #[must_use]
    #[rustfmt::skip]
    pub const fn on(self, event: WorkerEvent) -> WorkerCell {
        use WorkerCell::{
            Ask, Die, DieAsked, Drop, EndLeft, Fail, Fault, Kill, Never, Same, Serve, Sooner, Stop,
            Unwant, Up, UpToGo,
        };
        let [free, starting, unwanted, waiting, serving, stopping, left] = match event {
            //                           Free    Starting Unwanted Waiting Serving Stopping  Left
            WorkerEvent::Begin       => [Ask,    Never,   Never,   Never,  Never,  Never,    Never],
            WorkerEvent::Started     => [Up,     Up,      UpToGo,  Same,   Same,   Same,     Same],
            WorkerEvent::StartFailed => [Same,   Fail,    Drop,    Same,   Same,   Same,     Same],
            WorkerEvent::Found       => [Up,     Up,      UpToGo,  Same,   Same,   Same,     Up],
            WorkerEvent::Ready       => [Same,   Same,    Same,    Serve,  Same,   Same,     Same],
            WorkerEvent::Late        => [Same,   Same,    Same,    Fault,  Same,   Same,     Same],
            WorkerEvent::Unwell      => [Same,   Same,    Same,    Fault,  Fault,  Same,     Same],
            WorkerEvent::Stop        => [Same,   Unwant,  Same,    Stop,   Stop,   Same,     EndLeft],
            WorkerEvent::Hasten      => [Same,   Same,    Same,    Stop,   Stop,   Sooner,   Same],
            WorkerEvent::GraceOver   => [Never,  Never,   Never,   Never,  Never,  Kill,     Never],
            WorkerEvent::Ended       => [Same,   Same,    Same,    Die,    Die,    DieAsked, Same],
            WorkerEvent::Cleared     => [Same,   Same,    Same,    Same,   Same,   Same,     Drop],
        };
        match self {
            Self::Free => free,
            Self::Starting => starting,
            Self::Unwanted => unwanted,
            Self::Waiting => waiting,
            Self::Serving => serving,
            Self::Stopping => stopping,
            Self::Left => left,
        }
    }
}
