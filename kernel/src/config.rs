//! The daemon's settings, fixed when it is first started.
//!
//! The launcher makes them of the command line and writes them into a memfd;
//! every kernel after it reads them from there.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use papa_protocol::text::ByteString;
use serde::{Deserialize, Serialize};

use crate::sys::memfd;

/// Most bytes a settings file may have.
const MAX_CONFIG_BYTES: u64 = 1 << 20;
/// Everybody may read a pid, only we may change it.
const PID_FILE_MODE: u32 = 0o644;

/// What callers on TCP may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum TcpAccess {
    /// Everything.
    #[default]
    All,
    /// Look.
    ReadOnly,
    /// There is no TCP.
    Off,
}

/// The settings.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Config {
    /// The port, 0 without one.
    pub port: u16,
    /// What callers on TCP may do.
    #[serde(default)]
    pub tcp: TcpAccess,
    /// Socket files of ours, to be removed at the end.
    #[serde(default)]
    pub socket_paths: Vec<PathBuf>,
    /// File with the keeper's process number.
    #[serde(default)]
    pub pid_file: Option<PathBuf>,
    /// The log, where it is a file of ours.
    #[serde(default)]
    pub log_file: Option<PathBuf>,
    /// Size in bytes from which on it is put aside; 0 is never.
    #[serde(default)]
    pub log_bytes: u64,
    /// Log everything.
    #[serde(default)]
    pub debug: bool,
    /// Runs as process 1.
    #[serde(default)]
    pub init: bool,
    /// Memory files take splices here.
    #[serde(default)]
    pub splices: bool,
    /// Where the program was started from, or the path it was last changed to,
    /// as it was said: what is there later is another version of it. None where
    /// that is not known.
    #[serde(default)]
    pub program: Option<ByteString>,
    /// Where a service manager wants to be told who its main process is.
    #[serde(default)]
    pub notify_socket: Option<String>,
    /// Resource, soft and hard limits as they were before this program raised
    /// them for itself; children get these.
    #[serde(default)]
    pub original_limits: Vec<(u32, u64, u64)>,
}

impl Config {
    /// Where this kernel is found: its port, else the path of its socket.
    #[must_use]
    pub fn place(&self) -> String {
        if self.port != 0 {
            return self.port.to_string();
        }
        let path = self.socket_paths.first();
        path.map_or_else(String::new, |path| path.display().to_string())
    }

    /// Writes the settings into a memory file.
    ///
    /// # Errors
    /// What the system says.
    pub fn write(&self) -> Result<OwnedFd, Errno> {
        let text = serde_json::to_vec(self).map_err(|_| Errno::EINVAL)?;
        let file = memfd::memfd_create("papa-config")?;
        memfd::write_at(&file, &text, 0)?;
        Ok(file)
    }

    /// Reads settings back.
    ///
    /// # Errors
    /// `EBADMSG` for anything else.
    pub fn read(file: impl AsFd) -> Result<Self, Errno> {
        let size = memfd::size(&file)?;
        if size > MAX_CONFIG_BYTES {
            return Err(Errno::EBADMSG);
        }
        let mut text = vec![0; usize::try_from(size).map_err(|_| Errno::EBADMSG)?];
        memfd::read_at(&file, &mut text, 0)?;
        serde_json::from_slice(&text).map_err(|_| Errno::EBADMSG)
    }

    /// Has the pid file name the keeper of now: it changes when a kernel takes
    /// the keeper's place.
    pub fn update_pid_file(&self, keeper: i32) {
        if let Some(path) = &self.pid_file
            && fs::read_to_string(path).is_ok_and(|text| text.trim() != keeper.to_string())
            && let Err(error) = write_pid_file(path, keeper)
        {
            tracing::warn!(path = %path.display(), %error, "cannot write the pid file");
        }
    }

    /// Removes the files that say that the daemon runs.
    pub fn remove_files(&self) {
        for path in self.socket_paths.iter().chain(&self.pid_file) {
            let _ = fs::remove_file(path);
        }
    }
}

/// Writes a pid file in one step. Whoever else may write to its directory
/// chooses neither which file of ours is written to nor what it says.
///
/// # Errors
/// What the system says.
pub fn write_pid_file(path: &Path, pid: i32) -> std::io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let temporary = PathBuf::from(name);
    // Left behind by one that was killed, or a link somebody laid there.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(PID_FILE_MODE)
        .open(&temporary)?;
    file.write_all(format!("{pid}\n").as_bytes())?;
    fs::rename(&temporary, path)
}

/// The directory for this user's sockets: `$XDG_RUNTIME_DIR/papa`, else
/// `/run/papa` for root, else `/tmp/papa-UID`.
#[must_use]
pub fn runtime_dir() -> PathBuf {
    let uid = nix::unistd::geteuid();
    match std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| Path::new(dir).is_absolute()) {
        Some(dir) => PathBuf::from(dir).join("papa"),
        None if uid.is_root() => PathBuf::from("/run/papa"),
        None => PathBuf::from(format!("/tmp/papa-{uid}")),
    }
}

/// Makes the runtime directory, or checks that the one there is ours alone.
///
/// # Errors
/// Says what is wrong with it and what to do.
pub fn make_runtime_dir(dir: &Path) -> Result<(), String> {
    if let Err(error) = fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
    {
        return Err(format!(
            "cannot make {}: {error}; set XDG_RUNTIME_DIR to a directory of your own, or unset it",
            dir.display()
        ));
    }
    let metadata = fs::symlink_metadata(dir)
        .map_err(|error| format!("cannot look at {}: {error}", dir.display()))?;
    let own = nix::unistd::geteuid().as_raw();
    if !metadata.is_dir() || metadata.uid() != own || metadata.mode() & 0o077 != 0 {
        return Err(format!(
            "{} must be a directory of user {own} with mode 0700; set XDG_RUNTIME_DIR to a directory of your own, or unset it",
            dir.display()
        ));
    }
    check_parent(dir, own)
}

/// Who owns the directory above, or may write to it, could put another one in
/// the place of ours.
fn check_parent(dir: &Path, own: u32) -> Result<(), String> {
    let Some(parent) = dir.parent() else {
        return Ok(());
    };
    let metadata = fs::metadata(parent)
        .map_err(|error| format!("cannot look at {}: {error}", parent.display()))?;
    let (owner, mode) = (metadata.uid(), metadata.mode());
    let open_to_all = mode & 0o002 != 0 && mode & 0o1000 == 0;
    if (owner != own && owner != 0) || open_to_all {
        return Err(format!(
            "{} belongs to user {owner} with mode {:04o}: others could replace what is in it; set XDG_RUNTIME_DIR to a directory of user {own}, or unset it",
            parent.display(),
            mode & 0o7777
        ));
    }
    Ok(())
}

/// A user for people: name and number, or the number alone.
#[must_use]
pub fn account(uid: u32) -> String {
    match nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid)) {
        Ok(Some(user)) => format!("user {} (uid {uid})", user.name.escape_debug()),
        _ => format!("uid {uid}"),
    }
}

/// The abstract name of the socket for a port.
#[must_use]
pub fn abstract_name(port: u16) -> Vec<u8> {
    format!("papa/{}/{port}", nix::unistd::geteuid()).into_bytes()
}
