//! The manager: policy on top of the papa kernel. It may be stopped and started while the workers
//! run on.
//!
//! | module | what it owns |
//! |---|---|
//! | `config` | the crate `papa-config`: the INI file, typed values, one worker's command |
//! | `supervisor`, `watcher`, `worker`, `backoff` | wanted state against actual state |
//! | `life` | the lives of a watcher and of a worker, as tables of state × event |
//! | `adopt`, `state`, `kernel_link` | what survives the manager; the connection to the kernel |
//! | `orphan` | workers that earlier kernels left running |
//! | `mark` | what a worker's environment says of whose it is |
//! | `probe` | readiness, health checks, starts on demand |
//! | `procinfo`, `holder` | what processes use of the machine; who has a port |
//! | `control` | the socket `papactl` speaks to |
//! | `cli`, `commands` | the command lines; one file per verb of `papactl` |
//! | `runtime_dir`, `own_log`, `pidfile` | where sockets and the manager's log live; that log; the file with its pid |
#![forbid(unsafe_code)]

pub use papa_config as config;

pub mod adopt;
pub mod backoff;
pub mod cli;
pub mod commands;
pub mod control;
pub mod error;
pub mod holder;
pub mod kernel_link;
pub mod last_words;
pub mod life;
pub mod mark;
pub mod orphan;
pub mod own_log;
pub mod pidfd;
pub mod pidfile;
pub mod probe;
pub mod procinfo;
pub mod runtime_dir;
pub mod state;
pub mod supervisor;
pub mod tree;
pub mod watcher;
pub mod worker;
