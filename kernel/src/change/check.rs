//! The dry run: checks whether this program can take over what a running kernel has.
//!
//! A kernel that is asked to change its program starts the new one in this role first, with its
//! settings, journal and reels, and reads one line of JSON from it. Nothing is changed here; what
//! is read may change meanwhile. A program that knows no dry run does not understand the arguments
//! and ends with an error.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use anyhow::{Context, anyhow};
use papa_protocol::json::status::UpgradeCheck;
use papa_test_hooks::failpoint;

use crate::VERSION;
use crate::config::Config;
use crate::keeper::manifest;
use crate::keeper::wire::Kind;
use crate::world::journal::Journal;
use crate::world::reel::Reel;
use crate::world::table::{Entry, Read, Table};

/// The first argument that names this role.
pub const TITLE: &str = "papa: check";
/// The only other argument, which no program of ours takes for anything else.
pub const ARGUMENT: &str = "--dry-run";

/// Looks at everything listed in `file` and prints what was found.
///
/// # Errors
/// Says what could not be read at all.
pub fn run(file: &OwnedFd) -> anyhow::Result<()> {
    let (_, kept) = manifest::read(file).context("the list of descriptors")?;
    let mut found = UpgradeCheck {
        version: VERSION.to_owned(),
        ..UpgradeCheck::default()
    };
    let of = |kind| kept.iter().filter(move |(key, _)| key.kind == kind);
    let (_, config) = of(Kind::CONFIG).next().context("no settings")?;
    Config::read(config).context("the settings cannot be read")?;
    let (_, journal) = of(Kind::JOURNAL).next().context("no journal")?;
    scan(journal, &mut found)?;
    for (key, reel) in of(Kind::REEL) {
        found.reels += 1;
        if let Err(errno) = Reel::check(&read_only(reel)?) {
            say(&format!(
                "the reel of process {} cannot be read: {errno}",
                key.id
            ));
            found.unreadable_reels += 1;
        }
    }
    failpoint::reach("check.looked");
    let line = serde_json::to_string(&found).context("what was found")?;
    writeln!(std::io::stdout(), "{line}").context("answer")
}

/// Tells whoever reads the log of the kernel that asks; nobody need be there.
fn say(text: &str) {
    let _ = crate::logging::Log.write_all(format!("papa: {text}\n").as_bytes());
}

fn scan(journal: &OwnedFd, found: &mut UpgradeCheck) -> anyhow::Result<()> {
    let mut scan = Journal::scan(read_only(journal)?)?;
    let mut table = Table::default();
    while let Some(text) = scan.next_record()? {
        found.records += 1;
        match Entry::read(&text) {
            Read::Entry(entry) => table.apply(entry),
            Read::Unknown(_) => found.unknown_records += 1,
            Read::Bad(error) => {
                say(&format!("a journal record cannot be read: {error}"));
                found.unreadable_records += 1;
            }
        }
    }
    found.processes = table.processes().count() as u64;
    Ok(())
}

/// Another description of the same memory, through which nothing is written.
fn read_only(file: impl AsFd) -> anyhow::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
    OpenOptions::new()
        .read(true)
        .open(path)
        .map(OwnedFd::from)
        .map_err(|error| anyhow!("open for reading: {error}"))
}
