//! From an INI file as people have it to a configuration the manager can act on.
//!
//! `ini` reads lines into keys with their file and line, `include` gathers the files, `foreign`
//! knows those of other programs, `raw` sorts sections by kind, `environment` computes what a
//! worker's variables are, `resolve` turns text into typed values and reports every mistake at
//! once, `render` makes one worker's command from its watcher. Nothing here talks to a kernel or
//! starts anything.
//! Source: Circus 0.17.2's INI format; differences are listed in manager/docs/circus.md.

#![forbid(unsafe_code)]

pub mod change;
pub mod diff;
pub mod environment;
pub mod facets;
pub mod fields;
pub mod fnmatch;
pub mod foreign;
pub mod include;
pub mod ini;
pub mod inspect;
pub mod kept;
pub mod known;
pub mod problem;
pub mod raw;
pub mod release;
pub mod render;
pub mod resolve;
pub mod scalar;
pub mod signal;
mod surroundings;
pub mod target;
pub mod types;
mod values;
pub mod variables;
pub mod words;
mod worker_name;

pub use problem::{ConfigErrors, Origin, Problem};
pub use release::{Place, Release};
pub use render::{NUMBER_VARIABLE, WorkerSpec, render_text, render_worker};
pub use resolve::{load, load_kept};
pub use signal::SignalNumber;
pub use surroundings::Surroundings;
pub use types::{
    BackoffConfig, Config, FancyConfig, FileStreamConfig, FlappingConfig, HealthCheck, HealthProbe,
    HookConfig, KernelEndpoint, LogOutput, OrphanPolicy, PluginConfig, Readiness, RotateWhen,
    RotationConfig, SocketConfig, SocketFamily, SocketType, StreamConfig, SyslogAddress,
    SyslogConfig, WatcherConfig, socket_name,
};
pub use worker_name::worker_of;
