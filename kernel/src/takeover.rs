//! This process changes its program: into the keeper's role when the keeper
//! has died, or into the same program anew.
//!
//! Either way nothing is lost: descriptors go along or are with the keeper,
//! and what exists is in the journal.

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;

use crate::keeper::wire::{Key, Kind};
use crate::keeper::{self, manifest};
use crate::launcher::title;
use crate::owner::Owner;
use crate::sys::process;

/// Execs into the keeper's role with every descriptor there is. Children stay
/// children, since the process stays. Returns only on failure.
pub fn become_keeper(owner: &Owner) -> Errno {
    let go = || -> Result<Errno, Errno> {
        // From here on orphans come to us, not to process 1.
        process::set_child_subreaper()?;
        let journal: OwnedFd = owner
            .journal
            .as_fd()
            .try_clone_to_owned()
            .map_err(|_| Errno::EMFILE)?;
        let mut kept = owner.all_descriptors();
        kept.push((Key::new(Kind::JOURNAL, 0), &journal));
        let workers = owner
            .table
            .processes()
            .filter(|row| row.exit.is_none() && row.pid != 0)
            .map(|row| (row.serial, row.pid.cast_signed()))
            .collect();
        let file = manifest::write(kept.into_iter(), workers, None, true)?;
        Ok(process::exec(
            owner.fixed.binary.as_fd(),
            file.as_fd(),
            &title(keeper::TITLE, &owner.config),
            &process::environment(),
        ))
    };
    go().unwrap_or_else(|errno| errno)
}

/// Execs the same program anew, with nothing but the line to the keeper.
/// Returns only on failure.
pub fn exec_again(owner: &Owner) -> Errno {
    process::exec(
        owner.fixed.binary.as_fd(),
        owner.link.as_fd(),
        &title(keeper::KERNEL_TITLE, &owner.config),
        &process::environment(),
    )
}
