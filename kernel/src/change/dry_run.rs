//! Has another program check what this kernel has (`check.rs`), while this kernel goes on serving.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use papa_protocol::json::status::UpgradeCheck;
use papa_protocol::text::escape_control;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;

use crate::change::check::{ARGUMENT, TITLE};
use crate::keeper::manifest::{self, Beside};
use crate::keeper::wire::{Key, Kind};
use crate::sys::alarm::Alarm;
use crate::sys::pidfd::pidfd_open;
use crate::sys::process;
use crate::sys::runtime::readable;
use crate::world::World;
use crate::world::reel::Reel;

/// How long the check may take.
const LIMIT: Duration = Duration::from_secs(10);
/// Most bytes read of the program's output.
const MAX_BYTES: usize = 64 * 1024;
/// Most characters of that output quoted to whoever asked.
const QUOTED: usize = 300;

/// The result of a dry run.
#[derive(Debug)]
pub(crate) enum Tried {
    /// The program has checked everything.
    Found(UpgradeCheck),
    /// The program has not, for this reason.
    Failed(String),
}

/// A dry run under way.
#[derive(Debug)]
pub(crate) struct DryRun {
    child: Child,
    says: pipe::Receiver,
    /// Readable when it has ended.
    process: AsyncFd<OwnedFd>,
    /// Readable when it has taken too long.
    limit: AsyncFd<OwnedFd>,
}

/// Starts `program` in the role that only checks. It gets the world, and the reels of processes
/// that are being started.
///
/// # Errors
/// The system refuses a descriptor or the child.
pub(crate) fn start<'a>(
    world: &World,
    starting: impl Iterator<Item = (u64, &'a Reel)>,
    program: BorrowedFd<'_>,
) -> io::Result<DryRun> {
    let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    nix::fcntl::fcntl(
        &read,
        nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK),
    )?;
    let says = pipe::Receiver::from_owned_fd(read)?;
    let limit = readable(Alarm::at(Instant::now() + LIMIT)?.into())?;
    let journal = world.journal.as_fd().try_clone_to_owned()?;
    let mut shown: Vec<(Key, &OwnedFd)> = vec![
        (Key::new(Kind::CONFIG, 0), &world.fixed.config),
        (Key::new(Kind::JOURNAL, 0), &journal),
    ];
    for (serial, live) in &world.live {
        if let Some(reel) = &live.reel {
            shown.push((Key::new(Kind::REEL, *serial), reel.file()));
        }
    }
    shown.extend(starting.map(|(serial, reel)| (Key::new(Kind::REEL, serial), reel.file())));
    // This process has one thread, so nothing else is started while these descriptors would be
    // inherited.
    let started = spawn(program, &shown, write);
    for (_, fd) in shown {
        let _ = process::set_inheritable(fd, false);
    }
    let mut child = started?;
    let process = pidfd_open(child.id().cast_signed())
        .map_err(io::Error::from)
        .and_then(readable);
    match process {
        Ok(process) => Ok(DryRun {
            child,
            says,
            process,
            limit,
        }),
        Err(error) => {
            let _ = child.kill();
            let _ = child.wait();
            Err(error)
        }
    }
}

fn spawn(program: BorrowedFd<'_>, shown: &[(Key, &OwnedFd)], says: OwnedFd) -> io::Result<Child> {
    let list = manifest::write(shown.iter().copied(), Beside::default())?;
    process::set_inheritable(&list, true)?;
    Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()))
        .arg0(TITLE)
        .arg(ARGUMENT)
        .arg(list.as_raw_fd().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::from(says.try_clone()?))
        .stderr(Stdio::from(says))
        .spawn()
}

impl DryRun {
    /// Waits until it has ended, or ends it.
    pub(crate) async fn end(mut self) -> Tried {
        let mut said = Vec::new();
        let end = async {
            // Output that cannot be read counts as missing.
            let _ = listen(&self.says, &mut said).await;
            let _ = self.process.readable().await;
        };
        tokio::select! {
            biased;
            () = end => {}
            _ = self.limit.readable() => {}
        }
        let status = match self.child.try_wait() {
            Ok(Some(status)) => status,
            Ok(None) => {
                let _ = self.child.kill();
                let _ = self.child.wait();
                let limit = LIMIT.as_secs();
                return Tried::Failed(format!("the program's dry run took longer than {limit} s"));
            }
            Err(error) => return Tried::Failed(format!("the dry run: {error}")),
        };
        let report = said
            .split(|byte| *byte == b'\n')
            .rev()
            .find_map(|line| serde_json::from_slice(line).ok());
        match report {
            Some(found) if status.success() => Tried::Found(found),
            _ => Tried::Failed(format!(
                "the program's dry run ended with {status}{}",
                quoted(&said)
            )),
        }
    }
}

async fn listen(says: &pipe::Receiver, said: &mut Vec<u8>) -> io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        says.readable().await?;
        match says.try_read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => {
                let room = MAX_BYTES - said.len();
                said.extend_from_slice(&buffer[..length.min(room)]);
                // The program may write without end.
                tokio::task::yield_now().await;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

fn quoted(said: &[u8]) -> String {
    let text = String::from_utf8_lossy(said);
    let text: String = text.trim().chars().take(QUOTED).collect();
    if text.is_empty() {
        return String::new();
    }
    format!(" saying: {}", escape_control(&text))
}
