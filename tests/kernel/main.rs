//! The kernel from outside: its binary, its sockets, its processes. One file per behaviour.
//!
//! One test target rather than twenty: one program to link.

mod crash;
mod crash_loop;
mod dialect;
mod double_death;
mod fixtures;
mod hanging;
mod hardship;
mod lifecycle;
mod output;
mod own_log;
mod processes;
mod safety;
mod security;
mod sessions;
mod slow_readers;
mod sockets;
mod spawn;
mod stuck;
mod upgrade;
mod values;
mod watching;
