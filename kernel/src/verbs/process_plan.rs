//! From a request to what the child does between clone and exec.
//!
//! Everything that can fail without a child fails here: unknown users (`account.rs`), unknown
//! sockets and descriptor numbers that contradict each other (`layout.rs`), limits and texts.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use papa_protocol::classic::Error;
use papa_protocol::json::ErrorCode;
use papa_protocol::json::request::ProcessMake;
use papa_protocol::name::Name;
use papa_protocol::text::ByteString;

use super::account::Identity;
use super::layout::{Layout, Source, held_id, sockets_wanted};
use super::pipes::Pipes;
use super::{VerbError, fail};
use crate::sys::cgroup::ControlGroup;
use crate::sys::errno::words;
use crate::sys::spawn::{self, Failure, LISTEN_PID_ENTRY, Plan, Step};
use crate::world::World;

/// Where programs are looked for when the environment has no `PATH`.
const DEFAULT_PATH: &[u8] = b"/bin:/usr/bin";
/// First number of sockets passed as systemd does; `sd_listen_fds(3)`.
const LISTEN_FDS_START: u32 = 3;

/// A process ready to be started.
#[derive(Debug)]
pub(crate) struct Prepared {
    candidates: Vec<CString>,
    argv: Vec<CString>,
    env: Vec<CString>,
    listen_pid: Option<usize>,
    directory: Option<CString>,
    placed: Vec<(Source, i32)>,
    /// Sockets made for this process alone.
    fresh: Vec<OwnedFd>,
    identity: Identity,
    umask: Option<u32>,
    nice: Option<i32>,
    oom_score_adj: Option<CString>,
    rlimits: Vec<(u32, u64, u64)>,
    command: String,
}

/// Prepares everything but the pipes.
///
/// # Errors
/// Says which parameter names nothing or contradicts another.
pub(crate) fn prepare(
    world: &World,
    make: &ProcessMake,
    identity: &Identity,
) -> Result<Prepared, VerbError> {
    let mut layout = Layout::new(world);
    layout.standard(make)?;
    for (index, name) in make.listen_fds.iter().enumerate() {
        let number = LISTEN_FDS_START + u32::try_from(index).unwrap_or(u32::MAX);
        let source = layout.socket(name)?;
        layout.place(number, source)?;
    }
    for (number, name) in &make.descriptors {
        let id = held_id(world, name)?;
        layout.place(*number, Source::Held(id))?;
    }
    let mut sockets = sockets_wanted(world, make)?;
    let mut argv = layout.arguments(make, &mut sockets)?;
    layout.sockets_at_their_numbers(sockets)?;
    if make.shell {
        argv.splice(0..0, [b"/bin/sh".to_vec(), b"-c".to_vec()]);
    }
    let Some(command) = argv.first().cloned() else {
        return Err(Error::NoCommand);
    };
    let (env, listen_pid) = environment(make)?;
    Ok(Prepared {
        candidates: candidates(&command, &env)?,
        command: ByteString::from(command).display(),
        argv: c_strings(argv, "argv")?,
        env,
        listen_pid,
        directory: make
            .working_dir
            .as_ref()
            .map(|dir| c_string(dir.as_bytes().to_vec(), "working_dir"))
            .transpose()?,
        placed: layout
            .numbers
            .into_iter()
            .map(|(number, source)| (source, number))
            .collect(),
        fresh: layout.fresh,
        identity: Identity {
            uid: identity.uid,
            gid: identity.gid,
            groups: identity.groups.clone(),
        },
        umask: make.umask.map(papa_protocol::socket::Umask::bits),
        nice: make.nice,
        oom_score_adj: make
            .oom_score_adj
            .map(|score| c_string(score.to_string().into_bytes(), "oom_score_adj"))
            .transpose()?,
        rlimits: rlimits(world, make)?,
    })
}

/// Limits asked for, and those this process raised for itself put back.
fn rlimits(world: &World, make: &ProcessMake) -> Result<Vec<(u32, u64, u64)>, VerbError> {
    let mut limits: BTreeMap<u32, (u64, u64)> = world
        .config
        .original_limits
        .iter()
        .map(|(resource, soft, hard)| (*resource, (*soft, *hard)))
        .collect();
    for (name, limit) in &make.rlimits {
        let resource = rlimit_number(name).ok_or_else(|| Error::UnknownRlimit(name.clone()))?;
        let infinity = libc::RLIM_INFINITY;
        limits.insert(
            resource,
            (
                limit.soft.unwrap_or(infinity),
                limit.hard.unwrap_or(infinity),
            ),
        );
    }
    Ok(limits
        .into_iter()
        .map(|(resource, (soft, hard))| (resource, soft, hard))
        .collect())
}

impl Prepared {
    /// The child's plan, once there are pipes and a serial.
    pub(crate) fn plan<'a>(
        &'a self,
        world: &'a World,
        serial: u64,
        pipes: &'a Pipes,
        cgroup: Option<&ControlGroup>,
    ) -> Plan<'a> {
        let descriptors = self
            .placed
            .iter()
            .map(|(source, number)| {
                let fd: Option<BorrowedFd<'a>> = match source {
                    Source::Null => Some(world.fixed.null.as_fd()),
                    Source::Socket(id) => world.socket_fds.get(id).map(AsFd::as_fd),
                    Source::Held(id) => world.held_fds.get(id).map(AsFd::as_fd),
                    Source::Own(index) => self.fresh.get(*index).map(AsFd::as_fd),
                    Source::PipeOut => pipes.child_out.as_ref().map(AsFd::as_fd),
                    Source::PipeErr => pipes.child_err.as_ref().map(AsFd::as_fd),
                };
                // Better nothing than whatever of ours sits at that number.
                (fd.unwrap_or(world.fixed.null.as_fd()), *number)
            })
            .collect();
        Plan {
            serial,
            keeper: (!world.link.is_lost()).then(|| world.link.as_fd()),
            candidates: self.candidates.clone(),
            argv: self.argv.clone(),
            env: self.env.clone(),
            directory: self.directory.clone(),
            descriptors,
            uid: self.identity.uid,
            gid: self.identity.gid,
            groups: self.identity.groups.clone(),
            umask: self.umask,
            nice: self.nice,
            oom_score_adj: self.oom_score_adj.clone(),
            rlimits: self.rlimits.clone(),
            cgroup: cgroup.cloned(),
            listen_pid: self.listen_pid,
        }
    }

    /// What a failed start is called.
    pub(crate) fn explain(&self, failure: Failure) -> VerbError {
        let directory = self
            .directory
            .as_ref()
            .map_or(String::new(), |dir| dir.to_string_lossy().into_owned());
        explain(failure, &self.command, &directory)
    }
}

/// What a failed start is called.
fn explain(failure: Failure, command: &str, directory: &str) -> VerbError {
    let Failure { step, errno } = failure;
    match (step, errno) {
        (Step::Exec, Errno::ENOENT) => Error::BadCommand(command.to_owned()),
        (Step::Directory, Errno::ENOENT) => Error::BadWorkingDir(directory.to_owned()),
        (Step::Exec, errno) => fail(
            ErrorCode::SpawnFailed,
            &format!("Bad command - {}: {command:?}", words(errno)),
        ),
        (Step::Directory, errno) => fail(
            ErrorCode::SpawnFailed,
            &format!("Bad working_dir - {}: {directory:?}", words(errno)),
        ),
        (step, errno) => {
            let what = match step {
                Step::Clone => "make a process",
                Step::Session => "start a session",
                Step::Descriptors => "place the descriptors",
                Step::Limits => "set the limits",
                Step::Priority => "set nice or oom_score_adj",
                Step::Group => "set the groups",
                Step::User => "set the user",
                Step::Register => "tell the keeper",
                Step::Killed => {
                    return fail(
                        ErrorCode::SpawnFailed,
                        &format!(
                            "it was killed before its program {command:?} started: by the system, which may be out of memory, or by somebody"
                        ),
                    );
                }
                Step::Late => {
                    return fail(
                        ErrorCode::SpawnFailed,
                        &format!(
                            "its program {command:?} did not start within {} s and was given up: does a file system it is on answer?",
                            spawn::EXEC_LIMIT.as_secs()
                        ),
                    );
                }
                Step::Directory | Step::Exec => "start",
            };
            fail(
                ErrorCode::SpawnFailed,
                &format!("cannot {what}: {}", words(errno)),
            )
        }
    }
}

fn c_string(bytes: Vec<u8>, what: &str) -> Result<CString, VerbError> {
    CString::new(bytes).map_err(|_| {
        fail(
            ErrorCode::Invalid,
            &format!("{what}: a NUL byte is not allowed"),
        )
    })
}

fn c_strings(list: Vec<Vec<u8>>, what: &str) -> Result<Vec<CString>, VerbError> {
    list.into_iter()
        .map(|bytes| c_string(bytes, what))
        .collect()
}

/// The environment and, where sockets are passed as systemd does, the index
/// of the entry that takes the child's own number.
fn environment(make: &ProcessMake) -> Result<(Vec<CString>, Option<usize>), VerbError> {
    use std::os::unix::ffi::OsStringExt;
    let mut variables: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
    if make.env_inherit {
        variables
            .extend(std::env::vars_os().map(|(name, value)| (name.into_vec(), value.into_vec())));
    }
    for (name, value) in &make.env.0 {
        if name.is_empty() || name.contains('=') {
            return Err(fail(
                ErrorCode::Invalid,
                &format!("environment variable {name:?}: a name must not be empty or hold \"=\""),
            ));
        }
        variables.insert(name.clone().into_bytes(), value.as_bytes().to_vec());
    }
    let passes = !make.listen_fds.is_empty();
    if passes {
        let names: Vec<&str> = make.listen_fds.iter().map(Name::as_str).collect();
        variables.insert(b"LISTEN_FDS".to_vec(), names.len().to_string().into_bytes());
        variables.insert(b"LISTEN_FDNAMES".to_vec(), names.join(":").into_bytes());
        variables.remove(b"LISTEN_PID".as_slice());
    }
    let mut entries = variables
        .into_iter()
        .map(|(mut entry, value)| {
            entry.push(b'=');
            entry.extend(value);
            c_string(entry, "env")
        })
        .collect::<Result<Vec<_>, _>>()?;
    let listen_pid = passes.then_some(entries.len());
    if passes {
        entries.push(c_string(LISTEN_PID_ENTRY.as_bytes().to_vec(), "env")?);
    }
    Ok((entries, listen_pid))
}

/// The paths `execvp(3)` would try, by the `PATH` the process will have.
fn candidates(command: &[u8], env: &[CString]) -> Result<Vec<CString>, VerbError> {
    if command.contains(&b'/') || command.is_empty() {
        return Ok(vec![c_string(command.to_vec(), "argv")?]);
    }
    let path = env
        .iter()
        .find_map(|entry| entry.as_bytes().strip_prefix(b"PATH="))
        .unwrap_or(DEFAULT_PATH);
    path.split(|byte| *byte == b':')
        .map(|directory| {
            let mut candidate = directory.to_vec();
            if !candidate.is_empty() {
                candidate.push(b'/');
            }
            candidate.extend(command);
            c_string(candidate, "argv")
        })
        .collect()
}

fn rlimit_number(name: &str) -> Option<u32> {
    let resource = match name.to_ascii_lowercase().as_str() {
        "as" => libc::RLIMIT_AS,
        "core" => libc::RLIMIT_CORE,
        "cpu" => libc::RLIMIT_CPU,
        "data" => libc::RLIMIT_DATA,
        "fsize" => libc::RLIMIT_FSIZE,
        "locks" => libc::RLIMIT_LOCKS,
        "memlock" => libc::RLIMIT_MEMLOCK,
        "msgqueue" => libc::RLIMIT_MSGQUEUE,
        "nice" => libc::RLIMIT_NICE,
        "nofile" | "ofile" => libc::RLIMIT_NOFILE,
        "nproc" => libc::RLIMIT_NPROC,
        "rss" => libc::RLIMIT_RSS,
        "rtprio" => libc::RLIMIT_RTPRIO,
        "rttime" => libc::RLIMIT_RTTIME,
        "sigpending" => libc::RLIMIT_SIGPENDING,
        "stack" => libc::RLIMIT_STACK,
        _ => return None,
    };
    #[allow(
        clippy::cast_sign_loss,
        clippy::unnecessary_cast,
        reason = "small and positive; C libraries differ in the sign of its type"
    )]
    let number = resource as u32;
    Some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(command: &str, env: &[&str]) -> Vec<String> {
        let env: Vec<CString> = env
            .iter()
            .map(|entry| CString::new(*entry).unwrap())
            .collect();
        candidates(command.as_bytes(), &env)
            .unwrap()
            .into_iter()
            .map(|path| path.into_string().unwrap())
            .collect()
    }

    #[test]
    fn programs_are_looked_for_where_the_process_would() {
        assert_eq!(paths("/bin/x", &["PATH=/a"]), ["/bin/x"]);
        assert_eq!(paths("x", &[]), ["/bin/x", "/usr/bin/x"]);
        assert_eq!(
            paths("x", &["HOME=/", "PATH=/a::/b"]),
            ["/a/x", "x", "/b/x"]
        );
        assert_eq!(paths("./x", &["PATH=/a"]), ["./x"]);
    }

    #[test]
    fn a_process_that_listens_gets_room_for_its_number() {
        let mut make = ProcessMake::new(Name::new("p").unwrap(), vec!["x".into()]);
        make.listen_fds = vec![Name::new("web").unwrap(), Name::new("api").unwrap()];
        let (env, index) = environment(&make).unwrap();
        let texts: Vec<&str> = env.iter().map(|entry| entry.to_str().unwrap()).collect();
        assert_eq!(texts[..2], ["LISTEN_FDNAMES=web:api", "LISTEN_FDS=2"]);
        assert_eq!(texts[index.unwrap()], LISTEN_PID_ENTRY);
    }
}
