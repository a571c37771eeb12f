//! A program that answers with its exit code.
//!
//! Owns its process group from start to end: nothing of it lives on when the answer is there, late,
//! or not wanted any more. It gets the watcher's user, directory and environment and no descriptor
//! of ours.
//! Invariant: the group's number is signalled only while its leader has not been waited for, so it
//! is nobody else's.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Group as UnixGroup, Pid, User};
use papa_protocol::process::Account;
use tokio::io::AsyncReadExt as _;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;

use super::{ProbeError, in_time, shown};
use crate::config::WatcherConfig;
use papa_system::sys;

/// What is kept of its output, for the error.
const MAX_OUTPUT_BYTES: usize = 4096;
/// What a program may have left in its pipe is read in so many pieces at most.
const MAX_LAST_READS: usize = 32;

/// Whether `argv` ends with 0, run as `watcher`'s workers are, with `PAPA_PID` set to `pid`. It is
/// killed after `timeout`, with everything in its process group; the same happens to what it leaves
/// behind.
///
/// # Errors
/// It cannot be started, ends otherwise (the last line it wrote is in the error), or takes too
/// long.
///
/// # Cancel safety
/// Dropped, it kills the group.
pub async fn command(
    argv: &[String],
    watcher: &WatcherConfig,
    pid: u32,
    timeout: Duration,
) -> Result<(), ProbeError> {
    let what = format!("command {:?}", argv.first().map_or("", String::as_str));
    let prepared = Prepared {
        argv: argv.to_vec(),
        env: watcher
            .env
            .clone()
            .into_iter()
            .chain([("PAPA_PID".into(), pid.to_string().into())])
            .collect(),
        working_dir: watcher.resolved_dir.clone(),
        uid: watcher.uid.clone(),
        gid: watcher.gid.clone(),
    };
    in_time(&what, timeout, async {
        // Users are looked up and files opened there, both of which may take long. Dropped
        // meanwhile, the thread kills what it started.
        let (running, output) = tokio::task::spawn_blocking(move || prepared.start())
            .await
            .unwrap_or_else(|error| Err(io::Error::other(error)))
            .map_err(ProbeError::io(&what))?;
        let (status, last) = running
            .finish(output)
            .await
            .map_err(ProbeError::io(&what))?;
        if status.success() {
            return Ok(());
        }
        let how = match (status.code(), status.signal()) {
            (Some(code), _) => format!("ended with exit code {code}"),
            (None, Some(signal)) => format!("was ended by signal {signal}"),
            (None, None) => "ended strangely".to_owned(),
        };
        let said = last.map_or(String::new(), |line| format!(", its last line: {line:?}"));
        Err(ProbeError::Answer {
            what: what.clone(),
            answer: format!("{how}, expected 0{said}"),
        })
    })
    .await
}

/// All that is needed to start it on another thread.
struct Prepared {
    argv: Vec<String>,
    env: Vec<(std::ffi::OsString, std::ffi::OsString)>,
    working_dir: std::path::PathBuf,
    uid: Option<Account>,
    gid: Option<Account>,
}

impl Prepared {
    fn start(self) -> io::Result<(Running, OwnedFd)> {
        let (program, arguments) = self
            .argv
            .split_first()
            .ok_or_else(|| io::Error::other("expected a program"))?;
        let (output, its_output) = io::pipe()?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env_clear()
            .envs(self.env)
            .current_dir(&self.working_dir)
            .stdin(Stdio::null())
            .stdout(its_output.try_clone()?)
            .stderr(its_output);
        let (uid, gid) = account(self.uid.as_ref(), self.gid.as_ref())?;
        if let Some(gid) = gid {
            command.gid(gid);
        }
        if let Some(uid) = uid {
            command.uid(uid);
        }
        sys::detach(&mut command);
        let child = command.spawn()?;
        Ok((Running(Some(child)), output.into()))
    }
}

/// The numbers of user and group; without a group that of the user, as for the workers.
fn account(uid: Option<&Account>, gid: Option<&Account>) -> io::Result<(Option<u32>, Option<u32>)> {
    let unknown = |kind: &str, name: &dyn std::fmt::Display| {
        io::Error::new(
            io::ErrorKind::NotFound,
            format!("there is no {kind} {name}"),
        )
    };
    let user = match uid {
        None => None,
        Some(Account::Name(name)) => {
            let user = User::from_name(name)?.ok_or_else(|| unknown("user", name))?;
            Some((user.uid.as_raw(), Some(user.gid.as_raw())))
        }
        Some(Account::Id(number)) => {
            let user = User::from_uid((*number).into())?;
            Some((*number, user.map(|user| user.gid.as_raw())))
        }
    };
    let group = match gid {
        None => user.and_then(|(_, group)| group),
        Some(Account::Id(number)) => Some(*number),
        Some(Account::Name(name)) => Some(
            UnixGroup::from_name(name)?
                .ok_or_else(|| unknown("group", name))?
                .gid
                .as_raw(),
        ),
    };
    Ok((user.map(|(uid, _)| uid), group))
}

/// The process group's leader, until it has been waited for.
#[derive(Debug)]
struct Running(Option<Child>);

impl Running {
    /// Waits for its end and kills what it left behind. Answers the last line it wrote, too.
    async fn finish(mut self, output: OwnedFd) -> io::Result<(ExitStatus, Option<String>)> {
        let mut output = pipe::Receiver::from_owned_fd(output)?;
        let ended = self.watch()?;
        let mut tail = Tail::default();
        let mut open = true;
        let mut piece = [0; MAX_OUTPUT_BYTES];
        loop {
            tokio::select! {
                read = output.read(&mut piece), if open => match read {
                    Ok(read @ 1..) => tail.push(&piece[..read]),
                    _ => open = false,
                },
                ended = ended.readable() => {
                    // A pidfd stays readable.
                    ended?.retain_ready();
                    break;
                }
            }
        }
        drop(ended);
        for _ in 0..MAX_LAST_READS {
            match output.try_read(&mut piece) {
                Ok(read @ 1..) => tail.push(&piece[..read]),
                _ => break,
            }
        }
        self.kill();
        let mut child = self.0.take().expect("only this call takes the child");
        // It has ended: this does not wait.
        Ok((child.wait()?, tail.last_line()))
    }

    /// Readable when the leader has ended.
    fn watch(&self) -> io::Result<AsyncFd<OwnedFd>> {
        sys::watch(sys::pidfd_open(self.pid())?)
    }

    fn kill(&self) {
        let pid = self.pid();
        // Nobody left in it is no error, and neither is a member that became somebody else: nothing
        // more can be done about it.
        if pid > 0 {
            let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }

    fn pid(&self) -> i32 {
        let id = self.0.as_ref().map_or(0, Child::id);
        i32::try_from(id).unwrap_or(0)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.0.is_none() {
            return;
        }
        self.kill();
        let watched = self.watch();
        let Some(mut child) = self.0.take() else {
            return;
        };
        if matches!(child.try_wait(), Ok(Some(_))) {
            return;
        }
        // SIGKILL takes a moment. Without a runtime we are ending ourselves, and others wait for
        // our children.
        if let (Ok(watched), Ok(runtime)) = (watched, tokio::runtime::Handle::try_current()) {
            runtime.spawn(async move {
                if watched.readable().await.is_ok() {
                    let _ = child.try_wait();
                }
            });
        }
    }
}

/// The end of an output.
#[derive(Debug, Default)]
struct Tail(Vec<u8>);

impl Tail {
    fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
        let surplus = self.0.len().saturating_sub(MAX_OUTPUT_BYTES);
        self.0.drain(..surplus);
    }

    fn last_line(&self) -> Option<String> {
        self.0
            .split(|byte| *byte == b'\n')
            .map(<[u8]>::trim_ascii)
            .rfind(|line| !line.is_empty())
            .map(shown)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::time::Instant;

    use super::*;
    use crate::config::{Surroundings, load};

    const SOON: Duration = Duration::from_secs(10);

    fn watcher(directory: &Path, lines: &str) -> WatcherConfig {
        let path = directory.join("test.ini");
        let text = format!("[watcher:w]\ncmd = true\ncopy_env = true\n{lines}\n");
        fs::write(&path, text).unwrap();
        let config = load(&path, &Surroundings::current().unwrap()).unwrap();
        config.watchers[0].clone()
    }

    async fn run(watcher: &WatcherConfig, script: &str, time: Duration) -> Result<(), ProbeError> {
        let argv = ["sh", "-c", script].map(str::to_owned);
        command(&argv, watcher, 4711, time).await
    }

    /// Whether a process runs, zombies not counted.
    fn lives(pid: &str) -> bool {
        fs::read_to_string(format!("/proc/{}/stat", pid.trim()))
            .is_ok_and(|stat| !stat.contains(") Z "))
    }

    /// Waits for a text file, then until the process named in it is gone.
    async fn wait_gone(file: &Path) {
        let deadline = Instant::now() + SOON;
        loop {
            let pid = fs::read_to_string(file).unwrap_or_default();
            if pid.ends_with('\n') && !lives(&pid) {
                return;
            }
            assert!(Instant::now() < deadline, "process {pid:?} lives");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn it_gets_what_a_worker_gets_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let file = fs::File::open("/dev/null").unwrap();
        // Our own descriptors are close-on-exec, all of them.
        assert!(std::os::fd::AsRawFd::as_raw_fd(&file) > 2);
        let watcher = watcher(
            directory.path(),
            &format!("working_dir = {}", directory.path().display()),
        );
        let script = "echo $PAPA_PID $(pwd) $(ls /proc/self/fd | tr '\\n' ' ') > seen";
        run(&watcher, script, SOON).await.unwrap();
        let seen = fs::read_to_string(directory.path().join("seen")).unwrap();
        let words: Vec<&str> = seen.split_whitespace().collect();
        assert_eq!(words[0], "4711");
        assert_eq!(
            Path::new(words[1]),
            directory.path().canonicalize().unwrap()
        );
        // 3 is the directory that ls reads.
        assert_eq!(words[2..], ["0", "1", "2", "3"]);
    }

    #[tokio::test]
    async fn a_no_says_how_it_ended_and_its_last_words() {
        let directory = tempfile::tempdir().unwrap();
        let watcher = watcher(directory.path(), "");
        let no = |script: &'static str| {
            let watcher = watcher.clone();
            async move { run(&watcher, script, SOON).await.unwrap_err().to_string() }
        };
        let text = no("echo one; echo 'it \x1bfails' >&2; exit 3").await;
        assert!(
            text.contains("exit code 3") && text.contains("fails"),
            "{text}"
        );
        assert!(!text.contains('\x1b'), "{text:?}");
        assert!(no("kill -9 $$").await.contains("signal 9"));
        let text = no("yes | head -c 10000000; exit 1").await;
        assert!(text.len() < 1000, "{text}");
        let missing = command(&["/no/such".to_owned()], &watcher, 1, SOON).await;
        assert!(matches!(missing, Err(ProbeError::Io { .. })));
        assert!(command(&[], &watcher, 1, SOON).await.is_err());
    }

    #[tokio::test]
    async fn nothing_of_it_outlives_the_answer() {
        let directory = tempfile::tempdir().unwrap();
        let watcher = watcher(
            directory.path(),
            &format!("working_dir = {}", directory.path().display()),
        );
        // What it leaves behind keeps its pipe open, which delays nothing.
        let begun = Instant::now();
        run(&watcher, "sleep 1000 & echo $! > left", SOON)
            .await
            .unwrap();
        assert!(begun.elapsed() < SOON);
        wait_gone(&directory.path().join("left")).await;
        // Too late: the whole group goes.
        let script = "sh -c 'echo $$ > late; sleep 1000; true'; true";
        let error = run(&watcher, script, Duration::from_millis(500))
            .await
            .unwrap_err();
        assert!(matches!(error, ProbeError::Timeout { .. }), "{error}");
        wait_gone(&directory.path().join("late")).await;
        // Not wanted any more.
        let script = "trap '' TERM; echo $$ > dropped; sleep 1000; true";
        let task = tokio::spawn({
            let watcher = watcher.clone();
            async move { run(&watcher, script, SOON).await }
        });
        let file = directory.path().join("dropped");
        let deadline = Instant::now() + SOON;
        while !fs::read_to_string(&file).is_ok_and(|text| text.ends_with('\n')) {
            assert!(Instant::now() < deadline);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let pid = fs::read_to_string(&file).unwrap();
        task.abort();
        wait_gone(&file).await;
        // Not even as a zombie.
        let deadline = Instant::now() + SOON;
        while Path::new(&format!("/proc/{}", pid.trim())).exists() {
            assert!(Instant::now() < deadline, "the zombie {pid} stays");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}
