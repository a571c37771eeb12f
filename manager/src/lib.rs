//! The manager: policy on top of the papa kernel. It may be stopped and started while the workers
//! run on.
//!
//! | module | what it owns |
//! |---|---|
//! | `config` | the crate `papa-config`: the INI file, typed values, one worker's command |
//! | `supervisor`, `watcher`, `worker`, `backoff` | wanted state against actual state |
//! | `life` | the lives of a watcher and of a worker, as tables of state × event |
//! | `state`, `kernel_link` | what survives the manager; the connection to the kernel |
//! | `probe` | readiness, health checks, starts on demand |
//! | `procinfo` | what processes use of the machine |
//! | `console` | output that is in no file, on standard output |
//! | `control` | the socket `papactl` speaks to; the protocol is the crate `papa-control` |
//! | `args` | the command line |
//! | `own_log` | the manager's log |
#![forbid(unsafe_code)]

pub use papa_config as config;
pub use papa_control::{last_words, note};
pub use papa_processes::{mark, orphan, pidfd, tree};
pub use papa_system::{holder, pidfile, runtime_dir};

pub mod args;
pub mod backoff;
pub mod console;
pub mod control;
pub mod error;
pub mod kernel_link;
pub mod life;
pub mod own_log;
pub mod probe;
pub mod procinfo;
pub mod state;
pub mod supervisor;
pub mod watcher;
pub mod worker;
