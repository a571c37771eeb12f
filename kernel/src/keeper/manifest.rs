//! The list of descriptors that a process takes along across an exec.
//!
//! The launcher becomes the keeper, and a kernel whose keeper died takes its place. Both leave
//! their descriptors open across the exec and list them, number by number, in a memfd that arrives
//! as descriptor 3. So does a kernel that executes another program, in case the keeper dies before
//! that has fetched the descriptors.
//!
//! The meaning of the kinds is in `wire.rs`, [`Kind`].

use std::collections::BTreeSet;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::wire::{Key, Kind};
use crate::sys::{memfd, process};

/// Longest manifest read: far above any descriptor limit times a line.
const MAX_MANIFEST_BYTES: u64 = 256 * 1024 * 1024;

/// What the keeper's role starts with.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Manifest {
    /// Kind, id and number of every descriptor handed over.
    pub descriptors: Vec<(u8, u64, RawFd)>,
    /// Serial and process number of every worker not known to have ended.
    pub workers: Vec<(u64, i32)>,
    /// Descriptor to which `ready` or a reason is written once, for whoever
    /// waits for the daemon to serve.
    #[serde(default)]
    pub ready: Option<RawFd>,
    /// A kernel has served before, so the daemon never gives up by itself.
    #[serde(default)]
    pub served: bool,
    /// The line to the keeper, where the next role is the kernel's.
    #[serde(default)]
    pub line: Option<RawFd>,
    /// Where a service manager wants to be told who its main process is.
    #[serde(default)]
    pub notify_socket: Option<String>,
    /// The keeper wrote it for a kernel that it has started.
    #[serde(default)]
    pub inherited: bool,
    /// Held open: its end tells the stand-in process that this one has died.
    #[serde(default)]
    pub understudy: Option<RawFd>,
}

/// What goes into a manifest besides the kept descriptors.
#[derive(Debug, Default)]
pub struct Beside<'a> {
    /// As [`Manifest::workers`].
    pub workers: Vec<(u64, i32)>,
    /// As [`Manifest::ready`].
    pub ready: Option<&'a OwnedFd>,
    /// As [`Manifest::served`].
    pub served: bool,
    /// As [`Manifest::line`].
    pub line: Option<&'a OwnedFd>,
    /// As [`Manifest::notify_socket`].
    pub notify_socket: Option<String>,
    /// As [`Manifest::inherited`].
    pub inherited: bool,
    /// As [`Manifest::understudy`].
    pub understudy: Option<&'a OwnedFd>,
}

/// Opens every descriptor of `kept` for the coming exec and writes the
/// manifest that names them.
///
/// # Errors
/// The errno of the call that failed.
pub fn write<'a>(
    kept: impl Iterator<Item = (Key, &'a OwnedFd)>,
    beside: Beside<'_>,
) -> Result<OwnedFd, Errno> {
    let Beside {
        ready,
        line,
        understudy,
        ..
    } = beside;
    let mut manifest = Manifest {
        workers: beside.workers,
        ready: ready.map(AsRawFd::as_raw_fd),
        served: beside.served,
        line: line.map(AsRawFd::as_raw_fd),
        notify_socket: beside.notify_socket,
        inherited: beside.inherited,
        understudy: understudy.map(AsRawFd::as_raw_fd),
        ..Manifest::default()
    };
    for (key, fd) in kept {
        // Descriptor 3 is where the manifest itself arrives.
        let number = if fd.as_raw_fd() > 3 {
            process::set_inheritable(fd, true)?;
            fd.as_raw_fd()
        } else {
            nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_DUPFD(4))?
        };
        manifest.descriptors.push((key.kind.0, key.id, number));
    }
    for fd in [ready, line, understudy].into_iter().flatten() {
        process::set_inheritable(fd, true)?;
    }
    let text = serde_json::to_vec(&manifest).map_err(|_| Errno::EINVAL)?;
    let file = memfd::memfd_create("papa-manifest")?;
    memfd::write_at(&file, &text, 0)?;
    Ok(file)
}

/// Reads the manifest and takes the descriptors it names.
///
/// # Errors
/// `EBADMSG` for anything that is not a manifest; descriptors that are not
/// open, or were named before, are left out.
pub fn read(file: impl AsFd) -> Result<(Manifest, Vec<(Key, OwnedFd)>), Errno> {
    let size = memfd::size(&file)?;
    if size > MAX_MANIFEST_BYTES {
        return Err(Errno::EBADMSG);
    }
    let mut text = vec![0; usize::try_from(size).map_err(|_| Errno::EBADMSG)?];
    memfd::read_at(&file, &mut text, 0)?;
    let manifest: Manifest = serde_json::from_slice(&text).map_err(|_| Errno::EBADMSG)?;
    // A descriptor must not get two owners, whatever the predecessor wrote.
    let mut taken: BTreeSet<RawFd> = [manifest.ready, manifest.line, manifest.understudy]
        .into_iter()
        .flatten()
        .chain([file.as_fd().as_raw_fd()])
        .collect();
    let mut kept = Vec::new();
    for (kind, id, number) in &manifest.descriptors {
        if !taken.insert(*number) {
            continue;
        }
        if let Ok(fd) = process::take_inherited(*number) {
            kept.push((Key::new(Kind(*kind), *id), fd));
        }
    }
    Ok((manifest, kept))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_named_twice_has_one_owner() {
        let null = std::fs::File::open("/dev/null").unwrap();
        let number = std::os::fd::IntoRawFd::into_raw_fd(null);
        let manifest = Manifest {
            descriptors: vec![(1, 1, number), (2, 2, number), (3, 3, -1)],
            ..Manifest::default()
        };
        let file = memfd::memfd_create("test").unwrap();
        memfd::write_at(&file, &serde_json::to_vec(&manifest).unwrap(), 0).unwrap();
        let (_, kept) = read(&file).unwrap();
        let kept: Vec<_> = kept
            .iter()
            .map(|(key, fd)| (key.id, fd.as_raw_fd()))
            .collect();
        assert_eq!(kept, [(1, number)]);
    }
}
