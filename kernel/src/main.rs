//! `papa`: arguments to a role, a role to an exit code.
//!
//! The program has four roles: the launcher a person starts, the keeper it
//! becomes, the kernel the keeper starts, and the dry run a kernel starts
//! before it becomes another program. All but the launcher are told by the
//! first argument; keeper and kernel find what they need at descriptor 3.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use papa_kernel::cli::Args;
use papa_kernel::keeper::{self, KERNEL_TITLE, TITLE};
use papa_kernel::logging::Log;
use papa_kernel::sys::process::{settle, take_inherited};
use papa_kernel::{change::check, launcher, run};
use papa_test_hooks::failpoint;

/// Exit code for a failure.
const FAILED: u8 = 1;

fn main() -> ExitCode {
    let role = std::env::args_os().next().unwrap_or_default();
    if let Err(errno) = settle(role == TITLE || role == KERNEL_TITLE) {
        complain(format_args!("cannot settle: {errno}"));
        return ExitCode::from(FAILED);
    }
    let code = if role == TITLE {
        failpoint::start("keeper", stop_self);
        keep()
    } else if role == KERNEL_TITLE {
        failpoint::start("kernel", stop_self);
        serve()
    } else if role == check::TITLE {
        failpoint::start("check", stop_self);
        look()
    } else {
        match launcher::launch(&Args::parse()) {
            Ok(never) => match never {},
            Err(error) => {
                complain(format_args!("{error:#}"));
                FAILED
            }
        }
    };
    ExitCode::from(code)
}

/// Says what went wrong, if anybody is there to read it; nobody waits for a
/// reader that stands still.
fn complain(text: std::fmt::Arguments<'_>) {
    let _ = Log.write_all(format!("papa: {text}\n").as_bytes());
}

/// What a failpoint does: stand still until somebody says otherwise.
fn stop_self() {
    let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGSTOP);
}

fn keep() -> u8 {
    let arguments = std::env::args_os()
        .skip(1)
        .filter_map(|argument| {
            use std::os::unix::ffi::OsStringExt;
            std::ffi::CString::new(argument.into_vec()).ok()
        })
        .collect();
    let code = take_inherited(3).and_then(|manifest| keeper::run(manifest, arguments));
    code.unwrap_or_else(|errno| {
        complain(format_args!("keeper: {errno}"));
        FAILED
    })
}

fn look() -> u8 {
    let list = std::env::args()
        .skip(1)
        .skip_while(|argument| argument == check::ARGUMENT)
        .find_map(|number| take_inherited(number.parse().ok()?).ok());
    match list
        .ok_or_else(|| anyhow::anyhow!("started by hand?"))
        .and_then(|list| check::run(&list))
    {
        Ok(()) => 0,
        Err(error) => {
            complain(format_args!("dry run: {error:#}"));
            FAILED
        }
    }
}

fn serve() -> u8 {
    match take_inherited(3) {
        Ok(socket) => {
            let error = run::kernel(socket);
            complain(format_args!("kernel: {error:#}"));
            FAILED
        }
        Err(errno) => {
            complain(format_args!(
                "kernel: started by hand? Start `papa` without arguments ({errno})"
            ));
            FAILED
        }
    }
}
