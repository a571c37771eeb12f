//! A program that is to be executed, and what speaks against it.

use std::os::fd::OwnedFd;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, SFlag, fstat};
use papa_protocol::json::status::UpgradeCheck;
use papa_protocol::text::escape_control;

use crate::sys::process;

/// A file as the system knows it: device and file number.
pub(crate) type FileId = (u64, u64);

/// Opens a program to be executed, and says which file it is.
///
/// # Errors
/// Why it cannot be a program, without its path.
pub(crate) fn open_program(path: &Path) -> Result<(OwnedFd, FileId), String> {
    let words = |errno: Errno| errno.desc().to_owned();
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    let file = open(path, flags, Mode::empty()).map_err(words)?;
    let stat = fstat(&file).map_err(words)?;
    if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT != SFlag::S_IFREG {
        return Err("not a regular file; expected a program".to_owned());
    }
    if stat.st_mode & 0o111 == 0 {
        return Err("not executable; expected a program".to_owned());
    }
    Ok((file, (stat.st_dev, stat.st_ino)))
}

/// Which file this process executes.
pub(crate) fn own_file() -> Option<FileId> {
    let stat = process::own_binary().and_then(fstat).ok()?;
    Some((stat.st_dev, stat.st_ino))
}

/// What speaks against a program that has looked at everything; `unknown_already` is the number of
/// journal records that this program does not know either.
pub(crate) fn fault(check: &UpgradeCheck, unknown_already: u64) -> Option<String> {
    let version = escape_control(&check.version);
    let unknown = check.unknown_records.saturating_sub(unknown_already);
    if check.unreadable_records > 0 {
        let count = check.unreadable_records;
        return Some(format!(
            "version {version} cannot read {count} journal records"
        ));
    }
    if check.unreadable_reels > 0 {
        let count = check.unreadable_reels;
        return Some(format!(
            "version {version} cannot read the output of {count} processes"
        ));
    }
    if unknown > 0 {
        return Some(format!(
            "version {version} does not know {unknown} journal records"
        ));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_regular_file_that_may_be_executed_is_a_program() {
        let refused = |path: &str| open_program(Path::new(path)).unwrap_err();
        assert!(refused("/").contains("not a regular file"));
        assert!(refused("/proc/self/status").contains("not executable"));
        assert_eq!(refused("/none"), "No such file or directory");
        let own = std::env::current_exe().unwrap();
        let (_, file) = open_program(&own).unwrap();
        assert_eq!(Some(file), own_file());
    }

    #[test]
    fn records_that_are_unknown_to_both_programs_speak_against_neither() {
        let check = UpgradeCheck {
            version: "9".into(),
            unknown_records: 2,
            ..UpgradeCheck::default()
        };
        assert_eq!(fault(&check, 2), None);
        let found = fault(&check, 1).unwrap();
        assert_eq!(found, "version 9 does not know 1 journal records");
    }
}
