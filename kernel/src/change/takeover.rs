//! Executes this process into another role or program: into the keeper, when that has died or is to
//! be replaced, or into the kernel of another program.
//!
//! Nothing is lost either way: every descriptor is inherited, and what exists is in the journal. A
//! new kernel fetches everything from the keeper as after a crash. It needs what it inherited only
//! if the keeper dies at that moment: then it takes the keeper's place.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;

use nix::errno::Errno;
use nix::sys::stat::{SFlag, fstat};

use crate::change::succession::Predecessor;
use crate::config::Config;
use crate::keeper::link::KeeperLink;
use crate::keeper::manifest::{Beside, Manifest};
use crate::keeper::understudy::{RIGHT, Understudy};
use crate::keeper::wire::{Kept, Key, Kind};
use crate::keeper::{self, manifest};
use crate::launcher::title;
use crate::sys::process;

/// What this process has and the program it becomes needs.
#[derive(Debug)]
pub struct Holdings<'a> {
    /// Settings.
    pub config: &'a Config,
    /// The program file that has served.
    pub binary: &'a OwnedFd,
    /// The journal's file.
    pub journal: BorrowedFd<'a>,
    /// The line to the keeper.
    pub link: &'a KeeperLink,
    /// The copy of this process that waits beside, where there is one.
    pub understudy: Option<&'a Understudy>,
    /// Every other descriptor that goes along.
    pub descriptors: Vec<(Key, &'a OwnedFd)>,
    /// Processes that run or are being started: serial and process number.
    pub workers: Vec<(u64, i32)>,
}

/// Execs into the keeper's role with every descriptor there is, and what is
/// `handed` over beside. Children stay children, since the process stays.
/// Returns only on failure.
pub fn become_keeper(holdings: &Holdings<'_>, handed: &[(Key, OwnedFd)]) -> Errno {
    let go = || -> Result<Errno, Errno> {
        // From here on orphans come to us, not to process 1.
        process::set_child_subreaper()?;
        let right = holdings.understudy.map(|both| (RIGHT, &both.right));
        exec_keeper(holdings, handed, right.as_slice())
    };
    go().unwrap_or_else(|errno| errno)
}

/// Execs into the keeper's role as the next one, beside the keeper there is,
/// which has been told. Returns only on failure, everything being as before.
pub fn become_next_keeper(holdings: &Holdings<'_>, handed: &[(Key, OwnedFd)]) -> Errno {
    let go = || -> Result<Errno, Errno> {
        let before =
            Predecessor::of_kernel(holdings.link.keeper().as_raw(), holdings.link.as_fd())?;
        exec_keeper(holdings, handed, &before.entries())
    };
    let errno = go().unwrap_or_else(|errno| errno);
    keep_to_ourselves(holdings);
    errno
}

fn exec_keeper(
    holdings: &Holdings<'_>,
    handed: &[(Key, OwnedFd)],
    before: &[(Key, &OwnedFd)],
) -> Result<Errno, Errno> {
    let journal = journal_of(holdings)?;
    let file = hand_over(holdings, &journal, handed, before, None)?;
    Ok(process::exec(
        holdings.binary.as_fd(),
        file.as_fd(),
        &title(keeper::TITLE, holdings.config),
        &process::environment(),
    ))
}

/// Execs `program`, with everything, what is `handed` over beside, and the
/// line to the keeper. Returns only on failure, everything being as before.
pub fn become_program(
    holdings: &Holdings<'_>,
    program: BorrowedFd<'_>,
    handed: &[(Key, OwnedFd)],
) -> Errno {
    let go = || -> Result<Errno, Errno> {
        let journal = journal_of(holdings)?;
        // Its own number is where the list arrives.
        let line: OwnedFd = holdings
            .link
            .as_fd()
            .try_clone_to_owned()
            .map_err(|_| Errno::EMFILE)?;
        let file = hand_over(holdings, &journal, handed, &[], Some(&line))?;
        let errno = process::exec(
            program,
            file.as_fd(),
            &title(keeper::KERNEL_TITLE, holdings.config),
            &process::environment(),
        );
        Ok(errno)
    };
    let errno = go().unwrap_or_else(|errno| errno);
    keep_to_ourselves(holdings);
    errno
}

/// Nothing that was opened for an exec is for the processes started from here on.
fn keep_to_ourselves(holdings: &Holdings<'_>) {
    for (_, fd) in &holdings.descriptors {
        let _ = process::set_inheritable(fd, false);
    }
}

fn journal_of(holdings: &Holdings<'_>) -> Result<OwnedFd, Errno> {
    let journal = holdings.journal.try_clone_to_owned();
    journal.map_err(|_| Errno::EMFILE)
}

/// Opens everything there is for the coming exec, and lists it.
fn hand_over(
    holdings: &Holdings<'_>,
    journal: &OwnedFd,
    handed: &[(Key, OwnedFd)],
    before: &[(Key, &OwnedFd)],
    line: Option<&OwnedFd>,
) -> Result<OwnedFd, Errno> {
    let mut kept = holdings.descriptors.clone();
    kept.extend(handed.iter().map(|(key, fd)| (*key, fd)));
    kept.extend(before);
    kept.push((Key::new(Kind::JOURNAL, 0), journal));
    // Only the process that goes on keeps its copy waiting.
    let understudy = holdings.understudy.map(|both| &both.line);
    let beside = Beside {
        workers: holdings.workers.clone(),
        served: true,
        line,
        notify_socket: holdings.config.notify_socket.clone(),
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
