//! `papactl`: what a person types to run and watch services.

use std::process::ExitCode;

use nix::sys::signal::SigSet;
use papa_ctl::cli::Papactl;
use papa_ctl::commands;
use papa_system::sys;

fn main() -> ExitCode {
    sys::notice_children();
    // Whatever whoever started us had blocked: a Ctrl-C is to end us, and what we start inherits
    // the mask. There is nothing to be done about a failure.
    let _ = SigSet::all().thread_unblock();
    commands::run(&Papactl::read())
}
