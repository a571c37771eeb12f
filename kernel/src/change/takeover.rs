//! This process changes its program: into the keeper's role when the keeper
//! has died or is to be replaced, or into another program's kernel.
//!
//! Either way nothing is lost: every descriptor goes along, and what exists is
//! in the journal. The program that was started anew fetches from the keeper
//! as after a crash, and needs what came along only if the keeper dies in
//! that moment: then it takes its place.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;

use nix::errno::Errno;
use nix::sys::stat::{SFlag, fstat};

use crate::change::succession::Predecessor;
use crate::change::understudy::RIGHT;
use crate::keeper::manifest::{Beside, Manifest};
use crate::keeper::wire::{Kept, Key, Kind};
use crate::keeper::{self, manifest};
use crate::launcher::title;
use crate::owner::Owner;
use crate::sys::process;

/// Execs into the keeper's role with every descriptor there is, and what is
/// `handed` over beside. Children stay children, since the process stays.
/// Returns only on failure.
pub fn become_keeper(owner: &Owner, handed: &[(Key, OwnedFd)]) -> Errno {
    let go = || -> Result<Errno, Errno> {
        // From here on orphans come to us, not to process 1.
        process::set_child_subreaper()?;
        let right = owner.understudy.as_ref().map(|both| (RIGHT, &both.right));
        exec_keeper(owner, handed, right.as_slice())
    };
    go().unwrap_or_else(|errno| errno)
}

/// Execs into the keeper's role as the next one, beside the keeper there is,
/// which has been told. Returns only on failure, everything being as before.
pub fn become_next_keeper(owner: &Owner, handed: &[(Key, OwnedFd)]) -> Errno {
    let go = || -> Result<Errno, Errno> {
        let before = Predecessor::of_kernel(owner.keeper_pid, owner.link.as_fd())?;
        exec_keeper(owner, handed, &before.entries())
    };
    let errno = go().unwrap_or_else(|errno| errno);
    keep_to_ourselves(owner);
    errno
}

fn exec_keeper(
    owner: &Owner,
    handed: &[(Key, OwnedFd)],
    before: &[(Key, &OwnedFd)],
) -> Result<Errno, Errno> {
    let journal = journal_of(owner)?;
    let file = hand_over(owner, &journal, handed, before, None)?;
    Ok(process::exec(
        owner.fixed.binary.as_fd(),
        file.as_fd(),
        &title(keeper::TITLE, &owner.config),
        &process::environment(),
    ))
}

/// Execs `program`, with everything, what is `handed` over beside, and the
/// line to the keeper. Returns only on failure, everything being as before.
pub fn become_program(owner: &Owner, program: BorrowedFd<'_>, handed: &[(Key, OwnedFd)]) -> Errno {
    let go = || -> Result<Errno, Errno> {
        let journal = journal_of(owner)?;
        // Its own number is where the list arrives.
        let line: OwnedFd = owner
            .link
            .as_fd()
            .try_clone_to_owned()
            .map_err(|_| Errno::EMFILE)?;
        let file = hand_over(owner, &journal, handed, &[], Some(&line))?;
        let errno = process::exec(
            program,
            file.as_fd(),
            &title(keeper::KERNEL_TITLE, &owner.config),
            &process::environment(),
        );
        Ok(errno)
    };
    let errno = go().unwrap_or_else(|errno| errno);
    keep_to_ourselves(owner);
    errno
}

/// Nothing that was opened for an exec is for the processes started from here on.
fn keep_to_ourselves(owner: &Owner) {
    for (_, fd) in owner.all_descriptors() {
        let _ = process::set_inheritable(fd, false);
    }
}

fn journal_of(owner: &Owner) -> Result<OwnedFd, Errno> {
    let journal = owner.journal.as_fd().try_clone_to_owned();
    journal.map_err(|_| Errno::EMFILE)
}

/// Opens everything there is for the coming exec, and lists it.
fn hand_over(
    owner: &Owner,
    journal: &OwnedFd,
    handed: &[(Key, OwnedFd)],
    before: &[(Key, &OwnedFd)],
    line: Option<&OwnedFd>,
) -> Result<OwnedFd, Errno> {
    let mut kept = owner.all_descriptors();
    kept.extend(handed.iter().map(|(key, fd)| (*key, fd)));
    kept.extend(before);
    kept.push((Key::new(Kind::JOURNAL, 0), journal));
    // Only the process that goes on keeps its copy waiting.
    let understudy = owner.understudy.as_ref().map(|both| &both.line);
    let workers = owner
        .table
        .processes()
        .filter(|row| row.exit.is_none() && row.pid != 0)
        .map(|row| (row.serial, row.pid.cast_signed()))
        .chain(
            owner
                .starting
                .iter()
                .map(|(serial, start)| (*serial, start.pid())),
        )
        .collect();
    let beside = Beside {
        workers,
        served: true,
        line,
        notify_socket: owner.config.notify_socket.clone(),
        understudy,
        ..Beside::default()
    };
    manifest::write(kept.into_iter(), beside)
}

/// What a kernel's role was started with: the line to the keeper, and what came
/// along from before the program was started anew.
#[derive(Debug)]
pub struct Started {
    /// The line to the keeper.
    pub line: OwnedFd,
    /// What came along, so that nothing is lost if the keeper dies now.
    pub kept: Kept,
    /// The list it came with.
    list: Option<Manifest>,
}

impl Started {
    /// Tells what `first` is: the line to the keeper alone, or a list of
    /// everything.
    ///
    /// # Errors
    /// `EBADMSG` for a list without a line.
    pub fn take(first: OwnedFd) -> Result<Self, Errno> {
        let mode = fstat(&first)?.st_mode;
        if SFlag::from_bits_truncate(mode) & SFlag::S_IFMT == SFlag::S_IFSOCK {
            return Ok(Self {
                line: first,
                kept: Kept::new(),
                list: None,
            });
        }
        let (list, kept) = manifest::read(&first)?;
        let line = process::take_inherited(list.line.ok_or(Errno::EBADMSG)?)?;
        Ok(Self {
            line,
            kept: kept.into_iter().collect(),
            list: Some(list),
        })
    }

    /// Whether the program was started anew in a kernel's process.
    #[must_use]
    pub fn is_anew(&self) -> bool {
        self.list.as_ref().is_some_and(|list| !list.inherited)
    }

    /// Whether it has everything already.
    #[must_use]
    pub fn has_everything(&self) -> bool {
        self.list.is_some()
    }

    /// Execs into the keeper's role with what there is. Returns only on failure.
    #[must_use]
    pub fn become_keeper(&self) -> Errno {
        let go = || -> Result<Errno, Errno> {
            process::set_child_subreaper()?;
            let mut beside = Beside {
                served: true,
                ..Beside::default()
            };
            if let Some(list) = &self.list {
                beside.workers.clone_from(&list.workers);
                beside.notify_socket.clone_from(&list.notify_socket);
            }
            let file = manifest::write(self.kept.iter().map(|(key, fd)| (*key, fd)), beside)?;
            // The one that has served, not one that was only tried.
            let binary = match self.kept.get(&keeper::PROGRAM) {
                Some(binary) => binary.try_clone().map_err(|_| Errno::EMFILE)?,
                None => process::own_binary()?,
            };
            let argv: Vec<CString> = std::iter::once(keeper::TITLE.into())
                .chain(std::env::args_os().skip(1))
                .filter_map(|word| CString::new(word.into_vec()).ok())
                .collect();
            let env = process::environment();
            Ok(process::exec(binary.as_fd(), file.as_fd(), &argv, &env))
        };
        go().unwrap_or_else(|errno| errno)
    }
}
