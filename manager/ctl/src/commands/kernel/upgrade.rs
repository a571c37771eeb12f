//! `papactl kernel upgrade`: the kernel's program is changed for another, and everything it holds
//! stays.
//!
//! Owns what a person is told about it. The change itself is the kernel's (`kernel.upgrade`), which
//! answers on the same connection when it is done; where the answer does not come, `outcome` finds
//! out what became of it. A kernel older than that is sent SIGUSR2 as before, which can do no more
//! than the program that is installed now.

use std::path::{self, Path};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use papa_client::{Address, ClientError};
use papa_protocol::json::reply::ErrorCode;
use papa_protocol::json::request::ops;
use papa_protocol::json::status::{Program, StatusReply, UpgradeCheck, Upgraded};
use papa_protocol::text::ByteString;
use papa_system::printable::printable;
use serde_json::json;

use super::asking::ask_status;
use super::outcome::Expected;
use super::{KernelError, block_on, connect_for};
use crate::cli::Common;
use crate::cli::args::KernelUpgradeArgs;
use crate::commands::progress::ProgressLine;
use crate::commands::{CommandError, print, print_json};

/// How often to look whether an older kernel has started anew, and to draw how long it takes.
const POLL: Duration = Duration::from_millis(20);

/// Runs the verb.
pub(super) fn run(
    common: &Common,
    addresses: &[Address],
    args: &KernelUpgradeArgs,
) -> Result<(), CommandError> {
    let request = ops::KernelUpgrade {
        binary: args.binary.as_deref().map(absolute).transpose()?,
        keeper: args.keeper,
        force: args.force,
        dry_run: args.dry_run,
    };
    let (address, before) = ask_status(addresses)?;
    let expected = Expected::note(&before, args);
    let upgraded = match ask(common, &address, request) {
        Err(ClientError::Refused(failure)) if failure.code == ErrorCode::UnknownOp => {
            return signalled(common, addresses, args, &before);
        }
        Err(ClientError::Refused(failure)) => {
            return Err(CommandError::Failed(refusal(
                &before,
                &failure.message,
                args,
            )));
        }
        // What runs now may know nothing of who asked the one before.
        Err(ClientError::Lost) if !args.dry_run => {
            let mut line = ProgressLine::new(common);
            let found = expected.find_out(addresses, args, &mut line);
            found.map_err(CommandError::Failed)?
        }
        Err(source) => {
            return Err(KernelError::Failed { address, source }.into());
        }
        Ok(upgraded) => upgraded,
    };
    if common.json {
        return print_json(&json!({"status": "ok", "kernel": upgraded}));
    }
    let after = ask_status(addresses).ok().map(|(_, status)| status);
    print(&told(&upgraded, &before, after.as_ref()))
}

/// The kernel starts in a directory of its own, so a path is made whole here.
fn absolute(path: &Path) -> Result<ByteString, CommandError> {
    let path = path::absolute(path)
        .map_err(|error| CommandError::Failed(format!("{}: {error}", path.display())))?;
    Ok(ByteString::from(path.into_os_string()))
}

/// Asks and shows that it takes its time.
fn ask(
    common: &Common,
    address: &Address,
    request: ops::KernelUpgrade,
) -> Result<Upgraded, ClientError> {
    let patience = common.timeout();
    let what = if request.dry_run {
        "the program is tried"
    } else {
        "the kernel changes its program"
    };
    let (answered, answer) = mpsc::channel();
    let address = address.clone();
    thread::spawn(move || {
        let result = block_on(async {
            let client = connect_for(&address, patience).await?;
            client.call(request).await
        });
        let result = result.map_err(ClientError::Io).and_then(|result| result);
        let _ = answered.send(result);
    });
    let mut line = ProgressLine::new(common);
    loop {
        match answer.recv_timeout(POLL) {
            Ok(result) => return result,
            Err(mpsc::RecvTimeoutError::Timeout) => line.show(what),
            Err(mpsc::RecvTimeoutError::Disconnected) => return Err(ClientError::Lost),
        }
    }
}

/// Why not, what holds now, and what can be done.
fn refusal(before: &StatusReply, reason: &str, args: &KernelUpgradeArgs) -> String {
    let program = match &args.binary {
        Some(path) => format!("{}: ", printable(&path.to_string_lossy())),
        None => String::new(),
    };
    let mut text = format!(
        "{program}{}\nversion {} serves on, with everything it had",
        printable(reason),
        printable(&before.version)
    );
    if !args.force && !args.dry_run {
        text.push_str("; `--dry-run` tries a program and changes nothing, `--force` changes to it whatever that finds, unless output would be lost");
    }
    text
}

fn told(upgraded: &Upgraded, before: &StatusReply, after: Option<&StatusReply>) -> String {
    let mut text = String::new();
    if upgraded.dry_run {
        text.push_str(&format!(
            "kernel:  {} would take over from {}; nothing was changed\n",
            program(&upgraded.after),
            program(&upgraded.before)
        ));
    } else {
        let version = |program: &Program| {
            let version = program.version.as_deref().unwrap_or("?");
            printable(version)
        };
        let running = after.map_or_else(String::new, |after| {
            format!(
                ", {} of {} processes run on",
                after.counts.running, before.counts.running
            )
        });
        text.push_str(&format!(
            "kernel:  version {} -> {}, pid {} (keeper {}){running}\n",
            version(&upgraded.before),
            version(&upgraded.after),
            upgraded.pid,
            upgraded.keeper,
        ));
        text.push_str(&format!("program: {}\n", printable(&upgraded.after.path)));
    }
    match &upgraded.check {
        Some(check) => text.push_str(&format!("check:   {}\n", checked(check))),
        None => text.push_str("check:   the program is too old to be tried first\n"),
    }
    text
}

fn program(program: &Program) -> String {
    let version = program.version.as_deref().unwrap_or("?");
    format!(
        "version {} ({})",
        printable(version),
        printable(&program.path)
    )
}

fn checked(check: &UpgradeCheck) -> String {
    let mut text = format!(
        "read {} journal records, {} processes, {} reels",
        check.records, check.processes, check.reels
    );
    for (count, what) in [
        (
            check.unknown_records,
            "records of kinds it does not know, which it carries along",
        ),
        (check.unreadable_records, "records it cannot read"),
        (check.unreadable_reels, "reels it cannot read"),
    ] {
        if count > 0 {
            text.push_str(&format!("; {count} {what}"));
        }
    }
    text
}

/// An older kernel is signalled, and waited for until it has started anew.
fn signalled(
    common: &Common,
    addresses: &[Address],
    args: &KernelUpgradeArgs,
    before: &StatusReply,
) -> Result<(), CommandError> {
    if args.binary.is_some() || args.keeper || args.dry_run {
        return Err(CommandError::Failed(format!(
            "the kernel, version {}, can only start anew as the program at the path it was started from; install the new one there, \
             and `papactl kernel upgrade` without options changes to it",
            printable(&before.version)
        )));
    }
    let deadline = Instant::now() + common.timeout();
    let pid = i32::try_from(before.pid)
        .ok()
        .filter(|pid| *pid > 1)
        .ok_or_else(|| {
            CommandError::Failed(format!(
                "the kernel says its pid is {}, which cannot be signalled from here",
                before.pid
            ))
        })?;
    kill(Pid::from_raw(pid), Signal::SIGUSR2).map_err(|errno| {
        CommandError::Failed(format!(
            "send SIGUSR2 to the kernel, pid {pid}: {}",
            errno.desc()
        ))
    })?;
    let mut line = ProgressLine::new(common);
    let after = loop {
        // It is away for a moment: every error is looked at again until the time is up.
        match ask_status(addresses) {
            Ok((_, status)) if status.incarnation > before.incarnation => break status,
            _ if common.no_wait => break before.clone(),
            _ if Instant::now() >= deadline => {
                return Err(CommandError::Failed(format!(
                    "the kernel did not start anew within {} s; `papactl kernel status` shows what runs",
                    common.timeout().as_secs_f64()
                )));
            }
            _ => thread::sleep(POLL),
        }
        line.show("the kernel starts anew");
    };
    drop(line);
    if common.json {
        return print_json(&json!({"status": "ok", "before": before, "after": after}));
    }
    print(&format!(
        "kernel:  started anew, pid {}, version {} -> {}, {} of {} processes run on\n",
        after.pid, before.version, after.version, after.counts.running, before.counts.running
    ))
}
