//! The private directory where sockets and logs of manager and kernel live.
//!
//! Owns its place, its creation and the check that it is really ours: whoever may write there could
//! pose as the manager. `XDG_RUNTIME_DIR/papa`, else `/run/papa` for root, else `/tmp/papa-UID`;
//! the kernel has the same rule.
//! Invariant: `ensure` returns only a directory owned by us with mode 0700 and reached without a
//! symbolic link at its end.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::unistd::Uid;

/// How the name of a manager's socket ends.
const MANAGER_SOCKET: &str = ".manager.sock";
/// Most entries looked at in search of managers.
const MAX_ENTRIES: usize = 4096;
/// Mode of the directory: only its owner may enter.
const PRIVATE_MODE: u32 = 0o700;

/// Port of a kernel that was given none; also part of its sockets' names.
pub const DEFAULT_KERNEL_PORT: u16 = 20202;

/// The runtime directory: a path, not yet checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeDir {
    path: PathBuf,
}

/// Why the runtime directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeDirError {
    /// It cannot be made or looked at.
    #[error(
        "runtime directory {path}: {error}; {remedy}", path = path.display(), remedy = remedy()
    )]
    Io {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// A socket in it would have a name that no socket can have.
    #[error(
        "socket {path}: its path has {bytes} bytes and may have {MAX_SOCKET_PATH}; set XDG_RUNTIME_DIR to a directory with a shorter path, or choose a shorter namespace in [circus]",
        path = path.display(), bytes = path.as_os_str().len()
    )]
    TooLong {
        /// The socket.
        path: PathBuf,
    },
    /// Another user could change it.
    #[error(
        "runtime directory {path}: {reason}; {remedy}", path = path.display(), remedy = remedy()
    )]
    Unsafe {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// Longest path of a socket, in bytes: `sun_path` without its NUL; `unix(7)`.
const MAX_SOCKET_PATH: usize = 107;

/// Advice for users without a usable runtime directory.
fn remedy() -> String {
    match env::var("XDG_RUNTIME_DIR") {
        Ok(given) if !given.is_empty() => format!(
            "XDG_RUNTIME_DIR is {given:?}, which sudo and su may have left from another user: set it to a directory of your own, or unset it for {}",
            RuntimeDir::locate_for(Uid::effective(), None)
                .path
                .display()
        ),
        _ => "set XDG_RUNTIME_DIR to a directory of your own".to_owned(),
    }
}

/// What is odd about the directory that the environment names; nothing if all is well.
#[must_use]
pub fn oddity() -> String {
    let Some(given) = env::var_os("XDG_RUNTIME_DIR").filter(|given| !given.is_empty()) else {
        return String::new();
    };
    let given = Path::new(&given);
    if !given.is_absolute() {
        format!(" (XDG_RUNTIME_DIR is {given:?}, no absolute path, and is ignored)")
    } else if !given.exists() {
        format!(" (XDG_RUNTIME_DIR is {given:?}, which does not exist)")
    } else {
        String::new()
    }
}

impl RuntimeDir {
    /// The directory for this user and environment.
    #[must_use]
    pub fn locate() -> Self {
        Self::locate_for(Uid::effective(), env::var_os("XDG_RUNTIME_DIR").as_deref())
    }

    /// The directory for `uid` whose `XDG_RUNTIME_DIR` is `xdg`; a relative or empty one counts as
    /// unset.
    #[must_use]
    pub fn locate_for(uid: Uid, xdg: Option<&OsStr>) -> Self {
        let path = match xdg.map(Path::new) {
            Some(base) if base.is_absolute() => base.join("papa"),
            _ if uid.is_root() => PathBuf::from("/run/papa"),
            _ => PathBuf::from(format!("/tmp/papa-{uid}")),
        };
        Self { path }
    }

    /// The directory a socket of ours is in.
    #[must_use]
    pub fn of_socket(socket: &Path) -> Self {
        let path = socket.parent().unwrap_or(Path::new("/")).to_owned();
        Self { path }
    }

    /// Creates the directory if it is missing and checks that it is private.
    ///
    /// # Errors
    /// It cannot be made, or belongs to somebody else, or others may enter, or it is a symbolic
    /// link.
    pub fn ensure(&self) -> Result<(), RuntimeDirError> {
        let failed = |error| RuntimeDirError::Io {
            path: self.path.clone(),
            error,
        };
        match fs::DirBuilder::new().mode(PRIVATE_MODE).create(&self.path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(failed(error)),
        }
        self.verify()?;
        // Our own directory with too wide a mode is repaired: a umask of 0 elsewhere is no reason
        // to refuse.
        let metadata = fs::symlink_metadata(&self.path).map_err(failed)?;
        if metadata.mode() & 0o777 != PRIVATE_MODE {
            fs::set_permissions(&self.path, fs::Permissions::from_mode(PRIVATE_MODE))
                .map_err(failed)?;
        }
        Ok(())
    }

    /// Checks that the directory is ours, before anything in it is trusted.
    ///
    /// # Errors
    /// It does not exist, belongs to somebody else, or is not a directory.
    pub fn verify(&self) -> Result<(), RuntimeDirError> {
        let refused = |reason: String| RuntimeDirError::Unsafe {
            path: self.path.clone(),
            reason,
        };
        let uid = Uid::effective().as_raw();
        let metadata = match fs::symlink_metadata(&self.path) {
            Ok(metadata) => metadata,
            Err(error) => {
                // A missing directory cannot be made in another user's directory.
                if error.kind() == io::ErrorKind::NotFound
                    && self.path.parent().is_some_and(Path::exists)
                {
                    self.verify_parent(uid)?;
                }
                return Err(RuntimeDirError::Io {
                    path: self.path.clone(),
                    error,
                });
            }
        };
        if !metadata.is_dir() {
            return Err(refused("not a directory".into()));
        }
        if metadata.uid() != uid {
            return Err(refused(format!(
                "belongs to uid {}, expected {uid}",
                metadata.uid()
            )));
        }
        self.verify_parent(uid)
    }

    /// Checks the directory above: whoever owns it or may write to it could replace ours.
    fn verify_parent(&self, own: u32) -> Result<(), RuntimeDirError> {
        let Some(parent) = self.path.parent() else {
            return Ok(());
        };
        let metadata = fs::metadata(parent).map_err(|error| RuntimeDirError::Io {
            path: parent.to_owned(),
            error,
        })?;
        let (owner, mode) = (metadata.uid(), metadata.mode());
        let open_to_all = mode & 0o002 != 0 && mode & 0o1000 == 0;
        if (owner != own && owner != 0) || open_to_all {
            return Err(RuntimeDirError::Unsafe {
                path: self.path.clone(),
                reason: format!(
                    "{} belongs to uid {owner} with mode {:04o}, so others could replace what is in it",
                    parent.display(),
                    mode & 0o7777
                ),
            });
        }
        Ok(())
    }

    /// The user whose directory it is, or the one above it.
    #[must_use]
    pub fn owner(&self) -> Option<u32> {
        let metadata = fs::symlink_metadata(&self.path)
            .or_else(|_| fs::metadata(self.path.parent().unwrap_or(Path::new("/"))));
        metadata.ok().map(|metadata| metadata.uid())
    }

    /// The directory itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether a socket of ours may be there: the directory is ours or can be made, and its path is
    /// short enough.
    #[must_use]
    pub fn can_hold_sockets(&self) -> bool {
        let usable = match self.verify() {
            Ok(()) => true,
            Err(RuntimeDirError::Io { error, .. }) => error.kind() == io::ErrorKind::NotFound,
            Err(_) => false,
        };
        usable && self.kernel_socket(u16::MAX).as_os_str().len() <= MAX_SOCKET_PATH
    }

    /// Whether sockets in the directory can have their names.
    ///
    /// # Errors
    /// The path of the manager's or the kernel's is too long.
    pub fn check_paths(&self, namespace: &str) -> Result<(), RuntimeDirError> {
        [self.manager_socket(namespace), self.kernel_socket(u16::MAX)]
            .into_iter()
            .find(|path| path.as_os_str().len() > MAX_SOCKET_PATH)
            .map_or(Ok(()), |path| Err(RuntimeDirError::TooLong { path }))
    }

    /// Control socket of the manager of `namespace`.
    #[must_use]
    pub fn manager_socket(&self, namespace: &str) -> PathBuf {
        self.path.join(format!("{namespace}{MANAGER_SOCKET}"))
    }

    /// Namespaces whose managers answer, sorted.
    #[must_use]
    pub fn managers(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(&self.path) else {
            return Vec::new();
        };
        let mut namespaces: Vec<String> = entries
            .take(MAX_ENTRIES)
            .flatten()
            .filter_map(|entry| {
                let name = entry.file_name().into_string().ok()?;
                let namespace = name.strip_suffix(MANAGER_SOCKET)?.to_owned();
                // A socket without a listener is a leftover.
                UnixStream::connect(entry.path()).ok()?;
                Some(namespace)
            })
            .collect();
        namespaces.sort_unstable();
        namespaces
    }

    /// Where the manager of `namespace` notes its workers by process number.
    #[must_use]
    pub fn worker_notes(&self, namespace: &str) -> PathBuf {
        self.path.join(format!("{namespace}.workers.json"))
    }

    /// Log of the manager of `namespace` when it was given no log file.
    #[must_use]
    pub fn manager_log(&self, namespace: &str) -> PathBuf {
        self.path.join(format!("{namespace}.manager.log"))
    }

    /// Socket of the kernel on `port`.
    #[must_use]
    pub fn kernel_socket(&self, port: u16) -> PathBuf {
        self.path.join(format!("{port}.sock"))
    }

    /// Log of the kernel on `port` when `papactl` started it.
    #[must_use]
    pub fn kernel_log(&self, port: u16) -> PathBuf {
        self.path.join(format!("{port}.log"))
    }
}

/// Name of the kernel's abstract socket, without the leading `@`.
#[must_use]
pub fn abstract_kernel_socket(uid: Uid, port: u16) -> String {
    format!("papa/{uid}/{port}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn in_dir(base: &Path) -> RuntimeDir {
        RuntimeDir::locate_for(Uid::effective(), Some(base.as_os_str()))
    }

    #[test]
    fn the_place_depends_on_user_and_environment() {
        let path = |uid, xdg: Option<&str>| {
            RuntimeDir::locate_for(Uid::from_raw(uid), xdg.map(OsStr::new)).path
        };
        assert_eq!(path(0, None), Path::new("/run/papa"));
        assert_eq!(path(7, None), Path::new("/tmp/papa-7"));
        assert_eq!(path(7, Some("")), Path::new("/tmp/papa-7"));
        assert_eq!(path(7, Some("/run/user/7")), Path::new("/run/user/7/papa"));
    }

    #[test]
    fn a_missing_directory_is_made_private() {
        let base = tempfile::tempdir().unwrap();
        let dir = in_dir(base.path());
        assert!(dir.verify().is_err());
        dir.ensure().unwrap();
        dir.ensure().unwrap();
        assert_eq!(fs::metadata(dir.path()).unwrap().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_wide_mode_is_narrowed() {
        let base = tempfile::tempdir().unwrap();
        let dir = in_dir(base.path());
        fs::create_dir(dir.path()).unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        dir.ensure().unwrap();
        assert_eq!(fs::metadata(dir.path()).unwrap().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_directory_that_others_could_replace_is_refused() {
        let base = tempfile::tempdir().unwrap();
        let dir = in_dir(base.path());
        for (mode, good) in [(0o777, false), (0o1777, true), (0o775, true)] {
            fs::set_permissions(base.path(), fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(dir.ensure().is_ok(), good, "{mode:o}");
        }
    }

    #[test]
    fn a_link_or_a_file_in_its_place_is_refused() {
        let base = tempfile::tempdir().unwrap();
        let other = tempfile::tempdir().unwrap();
        let dir = in_dir(base.path());
        symlink(other.path(), dir.path()).unwrap();
        assert!(matches!(dir.ensure(), Err(RuntimeDirError::Unsafe { .. })));
        fs::remove_file(dir.path()).unwrap();
        fs::write(dir.path(), "").unwrap();
        assert!(matches!(dir.ensure(), Err(RuntimeDirError::Unsafe { .. })));
    }
}
