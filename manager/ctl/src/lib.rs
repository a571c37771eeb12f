//! `papactl`: what a person types to run and watch services.
//!
//! | module | what it owns |
//! |---|---|
//! | `cli` | verbs, flags and their help |
//! | `commands` | what each verb does, one file a verb |
//!
//! Leaves to others: what the manager decides (`papa-manager`, a program that this one starts and
//! speaks to), what both say to each other (`papa-control`), reading log files (`papa-logs`).
#![forbid(unsafe_code)]

pub mod cli;
pub mod commands;
