//! From a request to what the child does between vfork and exec.
//!
//! Everything that can fail without a child fails here: unknown users,
//! sockets and limits, contradictory descriptor numbers.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::unistd::{Group, User};
use papa_protocol::classic::Error;
use papa_protocol::json::ErrorCode;
use papa_protocol::json::request::ProcessMake;
use papa_protocol::name::Name;
use papa_protocol::process::{Account, Input, Sockets, Stderr, Stdout};
use papa_protocol::socket_reference::{self, Part};
use papa_protocol::text::ByteString;

use super::pipes::Pipes;
use super::socket::{FIRST_NUMBER, open};
use super::{VerbError, fail};
use crate::sys::cgroup::ControlGroup;
use crate::sys::errno::words;
use crate::sys::spawn::{self, Failure, LISTEN_PID_ENTRY, Plan, Step};
use crate::world::World;

/// Where programs are looked for when the environment has no `PATH`.
const DEFAULT_PATH: &[u8] = b"/bin:/usr/bin";
/// First number of sockets passed as systemd does; `sd_listen_fds(3)`.
const LISTEN_FDS_START: u32 = 3;

/// Who a process runs as.
#[derive(Debug, Default)]
pub(crate) struct Identity {
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub groups: Option<Vec<u32>>,
}

/// A descriptor the child gets.
#[derive(Debug)]
enum Source {
    Null,
    Socket(u64),
    Held(u64),
    Own(usize),
    PipeOut,
    PipeErr,
}

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

/// Looks up user and groups, and puts numbers in their place so that
/// equal requests compare equal.
///
/// # Errors
/// Names the user or group there is none of.
pub(crate) fn resolve_account(make: &mut ProcessMake) -> Result<Identity, VerbError> {
    let mut identity = Identity::default();
    let mut name = None;
    if let Some(account) = &make.uid {
        let user = match account {
            Account::Id(id) => User::from_uid((*id).into()).ok().flatten(),
            Account::Name(name) => User::from_name(name).ok().flatten(),
        };
        match (user, account) {
            (Some(user), _) => {
                identity.uid = Some(user.uid.as_raw());
                identity.gid = Some(user.gid.as_raw());
                name = CString::new(user.name).ok();
            }
            // A number nobody is listed under is a user of a container
            // image; then the group must be said too.
            (None, Account::Id(id)) if make.gid.is_some() => identity.uid = Some(*id),
            (None, account) if account.looks_numeric() => {
                return Err(Error::UserId(account.to_string()));
            }
            (None, account) => return Err(Error::UserName(account.to_string())),
        }
    }
    if let Some(account) = &make.gid {
        identity.gid = Some(match (account, &make.uid) {
            // Numbers for both need no entry anywhere: a container image often has none.
            (Account::Id(id), Some(Account::Id(_))) => *id,
            (account, _) => group_id(account)?,
        });
    }
    if let Some(groups) = &make.groups {
        identity.groups = Some(groups.iter().map(group_id).collect::<Result<_, _>>()?);
    } else if let (Some(name), Some(gid)) = (name, identity.gid)
        && nix::unistd::geteuid().is_root()
    {
        let groups = nix::unistd::getgrouplist(&name, gid.into()).unwrap_or_default();
        identity.groups = Some(groups.into_iter().map(nix::unistd::Gid::as_raw).collect());
    } else if let (Some(_), Some(gid)) = (identity.uid, identity.gid)
        && nix::unistd::geteuid().is_root()
    {
        // A user nobody knows has no groups of its own, least of all ours.
        identity.groups = Some(vec![gid]);
    }
    make.uid = identity.uid.map(Account::Id);
    make.gid = identity.gid.map(Account::Id);
    Ok(identity)
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
    let mut numbers: BTreeMap<i32, Source> = BTreeMap::new();
    let mut fresh = Vec::new();
    let mut own_numbers: BTreeMap<u64, u32> = BTreeMap::new();
    place_standard(world, make, &mut numbers, &mut fresh)?;
    for (index, name) in make.listen_fds.iter().enumerate() {
        let number = LISTEN_FDS_START + u32::try_from(index).unwrap_or(u32::MAX);
        let source = socket_source(world, name, &mut fresh)?;
        place(&mut numbers, number, source)?;
    }
    for (number, name) in &make.descriptors {
        let id = held_id(world, name)?;
        place(&mut numbers, *number, Source::Held(id))?;
    }
    // Sockets at their own numbers: named ones, those the arguments refer
    // to, and for classic requests all others.
    let mut wanted: Vec<u64> = Vec::new();
    match &make.sockets {
        Sockets::All => wanted.extend(
            world
                .table
                .sockets()
                .filter(|row| row.number.is_some())
                .map(|row| row.id),
        ),
        Sockets::Named(names) => {
            for name in names {
                wanted.push(socket_id(world, name)?);
            }
        }
    }
    let mut argv = Vec::with_capacity(make.argv.len() + 2);
    for argument in &make.argv {
        if make.verbatim || !socket_reference::is_present(argument.as_bytes()) {
            argv.push(argument.as_bytes().to_vec());
            continue;
        }
        let text = socket_reference::replace(argument.as_bytes(), &make.name, |name, part| {
            let row = world.table.socket_named(name)?;
            match part {
                Part::Port => Some(u32::from(row.port)),
                Part::Fileno => {
                    wanted.push(row.id);
                    row.number.or_else(|| {
                        let number = free_number(world, &own_numbers);
                        Some(*own_numbers.entry(row.id).or_insert(number))
                    })
                }
            }
        })?;
        argv.push(text);
    }
    wanted.sort_unstable();
    wanted.dedup();
    for id in wanted {
        let Some(row) = world.table.socket(id) else {
            continue;
        };
        let (source, number) = if let Some(number) = row.number {
            (Source::Socket(id), number)
        } else {
            let number = free_number(world, &own_numbers);
            let number = *own_numbers.entry(id).or_insert(number);
            fresh.push(open(&row.make, Some(row.port))?);
            (Source::Own(fresh.len() - 1), number)
        };
        place(&mut numbers, number, source)?;
    }
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
        placed: numbers
            .into_iter()
            .map(|(number, source)| (source, number))
            .collect(),
        fresh,
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

fn place_standard(
    world: &World,
    make: &ProcessMake,
    numbers: &mut BTreeMap<i32, Source>,
    fresh: &mut Vec<OwnedFd>,
) -> Result<(), VerbError> {
    let captured = make.reel_bytes.is_none_or(|size| size.0 > 0);
    let stdin = match &make.stdin {
        Input::Null => Source::Null,
        Input::Socket(name) => socket_source(world, name, fresh)?,
        Input::Held(name) => Source::Held(held_id(world, name)?),
    };
    let stdout = || -> Result<Source, VerbError> {
        Ok(match &make.stdout {
            Stdout::Pipe if captured => Source::PipeOut,
            Stdout::Pipe | Stdout::Null => Source::Null,
            Stdout::Held(name) => Source::Held(held_id(world, name)?),
        })
    };
    let stderr = match &make.stderr {
        Stderr::Pipe if captured => Source::PipeErr,
        Stderr::Pipe | Stderr::Null => Source::Null,
        Stderr::Stdout => stdout()?,
        Stderr::Held(name) => Source::Held(held_id(world, name)?),
    };
    numbers.insert(0, stdin);
    numbers.insert(1, stdout()?);
    numbers.insert(2, stderr);
    Ok(())
}

fn socket_id(world: &World, name: &Name) -> Result<u64, VerbError> {
    world
        .table
        .socket_named(name)
        .map(|row| row.id)
        .ok_or_else(|| Error::SocketNotFound(name.to_string()))
}

fn held_id(world: &World, name: &Name) -> Result<u64, VerbError> {
    world.table.held.get(name).map(|row| row.id).ok_or_else(|| {
        fail(
            ErrorCode::NotFound,
            &format!("no descriptor is held as {name}"),
        )
    })
}

fn socket_source(
    world: &World,
    name: &Name,
    fresh: &mut Vec<OwnedFd>,
) -> Result<Source, VerbError> {
    let id = socket_id(world, name)?;
    match world.table.socket(id) {
        Some(row) if row.number.is_none() => {
            fresh.push(open(&row.make, Some(row.port))?);
            Ok(Source::Own(fresh.len() - 1))
        }
        _ => Ok(Source::Socket(id)),
    }
}

/// A number no socket has, for one made for this process alone.
fn free_number(world: &World, taken: &BTreeMap<u64, u32>) -> u32 {
    let mut number = world.table.free_socket_number(FIRST_NUMBER);
    while taken.values().any(|other| *other == number) {
        number = world.table.free_socket_number(number + 1);
    }
    number
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

fn place(
    numbers: &mut BTreeMap<i32, Source>,
    number: u32,
    source: Source,
) -> Result<(), VerbError> {
    let at = i32::try_from(number).unwrap_or(i32::MAX);
    if numbers.insert(at, source).is_some() {
        return Err(fail(
            ErrorCode::Invalid,
            &format!("descriptor {number} is given twice"),
        ));
    }
    Ok(())
}

fn group_id(account: &Account) -> Result<u32, VerbError> {
    let group = match account {
        Account::Id(id) => return known_group(*id),
        Account::Name(name) => Group::from_name(name).ok().flatten(),
    };
    group
        .map(|group| group.gid.as_raw())
        .ok_or_else(|| Error::Group(account.to_string()))
}

fn known_group(id: u32) -> Result<u32, VerbError> {
    match Group::from_gid(id.into()) {
        Ok(Some(_)) => Ok(id),
        _ => Err(Error::Group(id.to_string())),
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
