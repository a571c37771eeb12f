//! `papactl`: what a person types to run and watch services.

use std::process::ExitCode;

use papa_manager::cli::Papactl;
use papa_manager::commands;

fn main() -> ExitCode {
    commands::run(&Papactl::read())
}
