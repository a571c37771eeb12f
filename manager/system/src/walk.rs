//! Ways to log and pid files that no stranger chooses.
//!
//! A manager that is root writes into directories that belong to others. Who may write to a
//! directory on the way must not decide which file grows, is renamed or goes. So a path is walked
//! part by part, each by the descriptor of the one before, and a symbolic link counts only if root
//! or we made it; so do the links in what it says.
//!
//! Leaves opening files and turning them to others (`disk`, `rotate`, `gzip`).
//! Source: `openat(2)`, `path_resolution(7)`, `symlink(7)`.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, readlinkat};
use nix::sys::stat::{Mode, SFlag, fstat, mkdirat};
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};
use nix::unistd::Uid;

/// Of directories made for `mkdir`.
const DIRECTORY_MODE: u32 = 0o755;

/// Also mounts what is mounted on demand.
const DIRECTORY: OFlag = OFlag::O_DIRECTORY;

/// Links on one way, as many as the system follows.
const MAX_LINKS: u32 = 40;

/// Where a file is, or will be.
#[derive(Debug)]
struct Place {
    directory: OwnedFd,
    /// No link, or a magic one.
    name: OsString,
    /// It is one of procfs's links, which lead to what a process has open and only the system can
    /// follow.
    is_magic: bool,
}

/// A path by its directory's descriptor: what is done there is done in that directory, wherever the
/// path leads by then.
#[derive(Debug)]
pub struct Anchored {
    path: PathBuf,
    /// What the path goes through.
    _directory: OwnedFd,
}

impl Anchored {
    /// Enters the directory of `path`, whatever its last part is.
    ///
    /// # Errors
    /// As [`enter`], and `InvalidInput` when it names no file.
    pub fn at(path: &Path) -> io::Result<Self> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(no_file());
        };
        let directory = enter(parent)?;
        Ok(Self {
            path: by_descriptor(&directory).join(name),
            _directory: directory,
        })
    }

    /// Good as long as this is there.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Enters a directory.
///
/// # Errors
/// Those of `openat(2)`; `PermissionDenied` for a stranger's link on the way.
pub fn enter(path: &Path) -> io::Result<OwnedFd> {
    let mut walk = Walk::begin(path, false)?;
    while let Some(name) = walk.left.pop_front() {
        walk.step(&name)?;
    }
    Ok(walk.current)
}

/// Where a directory is, all links followed.
///
/// # Errors
/// As [`enter`].
pub fn resolved(path: &Path) -> io::Result<PathBuf> {
    fs::read_link(by_descriptor(&enter(path)?))
}

/// Opens a file for appending, made with `mode` if it is missing, its directories too if asked.
/// Does not wait for the reader of a FIFO.
///
/// # Errors
/// As [`enter`], those of `mkdirat(2)`, and `InvalidInput` when the path names no file.
pub fn open_append(path: &Path, mkdir: bool, mode: u32) -> io::Result<File> {
    let place = find_place(path, mkdir)?;
    let mode = Mode::from_bits_truncate(mode);
    Ok(place.open(OFlag::O_CREAT, mode)?)
}

/// Whether that would succeed, as far as can be told without making anything.
///
/// # Errors
/// As [`open_append`].
pub fn check_append(path: &Path) -> io::Result<()> {
    match find_place(path, false)?.open(OFlag::empty(), Mode::empty()) {
        Ok(_) | Err(Errno::ENOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

impl Place {
    fn open(&self, more: OFlag, mode: Mode) -> nix::Result<File> {
        let mut flags = OFlag::O_WRONLY | OFlag::O_APPEND | more;
        flags |= OFlag::O_NOCTTY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        if !self.is_magic {
            flags |= OFlag::O_NOFOLLOW;
        }
        openat(&self.directory, self.name.as_os_str(), flags, mode).map(File::from)
    }
}

/// Goes where a file is or will be, also where links lead on from its name.
fn find_place(path: &Path, mkdir: bool) -> io::Result<Place> {
    let mut walk = Walk::begin(path, mkdir)?;
    while let Some(name) = walk.left.pop_front() {
        if !walk.left.is_empty() {
            walk.step(&name)?;
            continue;
        }
        let link = match walk.open(&name, OFlag::O_NOFOLLOW) {
            Ok(there) => walk.follow(&name, &there)?,
            Err(Errno::ENOENT) => Link::None,
            Err(errno) => return Err(errno.into()),
        };
        if !matches!(link, Link::Followed) && name != ".." {
            return Ok(Place {
                directory: walk.current,
                name,
                is_magic: matches!(link, Link::Magic),
            });
        }
    }
    Err(no_file())
}

/// The path at which the system finds an open directory.
fn by_descriptor(directory: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()))
}

/// What a part of the way is.
enum Link {
    /// No link.
    None,
    /// What it says is the way now.
    Followed,
    /// Only the system can follow it.
    Magic,
}

/// Somebody on the way.
struct Walk {
    mkdir: bool,
    current: OwnedFd,
    left: VecDeque<OsString>,
    links: u32,
    /// Where `current` is, for people.
    walked: PathBuf,
}

impl Walk {
    fn begin(path: &Path, mkdir: bool) -> io::Result<Self> {
        let mut walk = Self {
            mkdir,
            current: open_start(".")?,
            left: VecDeque::new(),
            links: 0,
            walked: PathBuf::new(),
        };
        walk.go_by(path)?;
        Ok(walk)
    }

    /// Goes by `path` before all that is left.
    fn go_by(&mut self, path: &Path) -> io::Result<()> {
        if path.is_absolute() {
            self.current = open_start("/")?;
            self.walked = PathBuf::from("/");
        }
        for part in path.components().rev() {
            match part {
                Component::Normal(name) => self.left.push_front(name.to_owned()),
                Component::ParentDir => self.left.push_front(OsString::from("..")),
                Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
            }
        }
        Ok(())
    }

    /// Enters `name`, or follows it.
    fn step(&mut self, name: &OsStr) -> io::Result<()> {
        let next = match self.open(name, DIRECTORY | OFlag::O_NOFOLLOW) {
            Err(Errno::ENOENT) if self.mkdir => {
                let mode = Mode::from_bits_truncate(DIRECTORY_MODE);
                match mkdirat(&self.current, name, mode) {
                    // Somebody was quicker.
                    Ok(()) | Err(Errno::EEXIST) => {}
                    Err(errno) => return Err(errno.into()),
                }
                self.open(name, DIRECTORY | OFlag::O_NOFOLLOW)
            }
            Err(Errno::ENOTDIR) => {
                let there = self.open(name, OFlag::O_NOFOLLOW)?;
                match self.follow(name, &there)? {
                    Link::Followed => return Ok(()),
                    Link::None => Err(Errno::ENOTDIR),
                    Link::Magic => self.open(name, DIRECTORY),
                }
            }
            next => next,
        };
        self.current = next?;
        self.walked.push(name);
        Ok(())
    }

    fn open(&self, name: &OsStr, flags: OFlag) -> nix::Result<OwnedFd> {
        let flags = flags | OFlag::O_PATH | OFlag::O_CLOEXEC;
        openat(&self.current, name, flags, Mode::empty())
    }

    /// Goes by what `there`, called `name`, says, if it is a link and to be trusted.
    fn follow(&mut self, name: &OsStr, there: &OwnedFd) -> io::Result<Link> {
        let data = fstat(there)?;
        if SFlag::from_bits_truncate(data.st_mode) & SFlag::S_IFMT != SFlag::S_IFLNK {
            return Ok(Link::None);
        }
        if data.st_uid != Uid::effective().as_raw() && data.st_uid != 0 {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!(
                    "{}: a symbolic link made by uid {}, which is neither us nor root",
                    self.walked.join(name).display(),
                    data.st_uid
                ),
            ));
        }
        self.links += 1;
        if self.links > MAX_LINKS {
            return Err(Errno::ELOOP.into());
        }
        if fstatfs(there.as_fd())?.filesystem_type() == PROC_SUPER_MAGIC {
            return Ok(Link::Magic);
        }
        let target = readlinkat(there, "")?;
        self.go_by(Path::new(&target))?;
        Ok(Link::Followed)
    }
}

fn open_start(path: &str) -> nix::Result<OwnedFd> {
    let flags = DIRECTORY | OFlag::O_PATH | OFlag::O_CLOEXEC;
    nix::fcntl::open(path, flags, Mode::empty())
}

fn no_file() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "it names no file")
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::{lchown, symlink};

    use super::*;

    /// A file with this text at `path`, as a log file would be made.
    fn write(path: &Path) -> io::Result<()> {
        open_append(path, true, 0o644)?.write_all(b"line\n")
    }

    fn read(path: &Path) -> String {
        fs::read_to_string(path).unwrap_or_default()
    }

    #[test]
    fn links_of_ours_lead_on_wherever_they_are() {
        let scratch = tempfile::tempdir().unwrap();
        let at = |name: &str| scratch.path().join(name);
        fs::create_dir_all(at("real/logs")).unwrap();
        symlink("real", at("by")).unwrap();
        symlink(at("by/logs"), at("current")).unwrap();
        symlink("../real/logs/../logs/target", at("real/name")).unwrap();
        write(&at("current/one")).unwrap();
        write(&at("by/name")).unwrap();
        assert_eq!(read(&at("real/logs/one")), "line\n");
        assert_eq!(read(&at("real/logs/target")), "line\n");
        assert_eq!(resolved(&at("current")).unwrap(), at("real/logs"));
        symlink(at("new/er"), at("dangling")).unwrap();
        write(&at("dangling/made/log")).unwrap();
        assert_eq!(read(&at("new/er/made/log")), "line\n");
    }

    #[test]
    fn a_strangers_link_is_refused_behind_one_of_ours_too() {
        if !Uid::effective().is_root() {
            eprintln!("skipped: only root makes links for others");
            return;
        }
        let scratch = tempfile::tempdir().unwrap();
        let at = |name: &str| scratch.path().join(name);
        for directory in ["ours", "theirs", "precious"] {
            fs::create_dir(at(directory)).unwrap();
        }
        symlink(at("precious"), at("theirs/logs")).unwrap();
        symlink(at("precious/file"), at("theirs/log")).unwrap();
        for link in ["theirs/logs", "theirs/log"] {
            lchown(at(link), Some(65_534), None).unwrap();
        }
        symlink(at("theirs/logs"), at("ours/current")).unwrap();
        symlink(at("theirs/log"), at("ours/log")).unwrap();
        for path in [
            "theirs/logs/file",
            "ours/current/file",
            "theirs/log",
            "ours/log",
        ] {
            let error = write(&at(path)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{path}");
            assert!(error.to_string().contains("/theirs/log"), "{error}");
        }
        assert!(resolved(&at("ours/current")).is_err());
        assert!(Anchored::at(&at("ours/current/file")).is_err());
        assert_eq!(fs::read_dir(at("precious")).unwrap().count(), 0);
    }

    #[test]
    fn what_leads_nowhere_ends() {
        let scratch = tempfile::tempdir().unwrap();
        let at = |name: &str| scratch.path().join(name);
        let fails = |result: io::Result<()>| {
            let error = result.unwrap_err().raw_os_error();
            Errno::from_raw(error.unwrap_or(0))
        };
        symlink("round", at("round")).unwrap();
        symlink("..", at("up")).unwrap();
        fs::write(at("file"), "").unwrap();
        assert_eq!(fails(write(&at("round"))), Errno::ELOOP);
        assert_eq!(fails(enter(&at("round/in")).map(drop)), Errno::ELOOP);
        assert_eq!(fails(write(&at("file/in"))), Errno::ENOTDIR);
        for path in ["up", ".."] {
            let error = write(&at(path)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{path}");
        }
    }

    #[test]
    fn what_a_process_has_open_is_reached() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("log");
        let file = File::create(&path).unwrap();
        let link = scratch.path().join("link");
        symlink(format!("/proc/self/fd/{}", file.as_raw_fd()), &link).unwrap();
        write(&link).unwrap();
        assert_eq!(read(&path), "line\n");
    }

    #[test]
    fn what_is_anchored_stays_where_it_was() {
        let scratch = tempfile::tempdir().unwrap();
        let at = |name: &str| scratch.path().join(name);
        fs::create_dir(at("logs")).unwrap();
        let place = Anchored::at(&at("logs/log")).unwrap();
        fs::rename(at("logs"), at("before")).unwrap();
        fs::create_dir(at("logs")).unwrap();
        fs::write(place.path(), "line\n").unwrap();
        assert_eq!(read(&at("before/log")), "line\n");
    }
}
