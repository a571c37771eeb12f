//! From the command line to the keeper: binds, so that errors are shown on the terminal, detaches
//! if asked, and execs into the keeper's role.

use std::ffi::CString;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, getsockopt, socket};
use nix::unistd::ForkResult;
use papa_protocol::text::ByteString;

use crate::cli::{Args, DEFAULT_PORT};
use crate::config::{
    Config, TcpAccess, abstract_name, account, make_runtime_dir, runtime_dir, write_pid_file,
};
use crate::holder::{Holder, Listener};
use crate::keeper::manifest::{self, Beside};
use crate::keeper::wire::{Key, Kind};
use crate::keeper::{self, notify};
use crate::sys::socket::{Address, CONTROL_BACKLOG, Options, local_port, open_listener, server_at};
use crate::sys::{memfd, process};
use crate::world::journal::Journal;
use crate::world::reel::{LINEAR_FILE_BYTES, MIN_FILE_BYTES, largest_reel};

/// First descriptor a service manager passes; `sd_listen_fds(3)`.
const LISTEN_FDS_START: i32 = 3;
/// Most descriptors taken from a service manager.
const MAX_LISTEN_FDS: i32 = 16;
/// The mask a detached daemon runs under, as papa 1.0.6 set it.
const DAEMON_UMASK: u32 = 0o027;

/// Binds everything and becomes the keeper; returns only with an error.
///
/// # Errors
/// Says what is in the way.
pub fn launch(args: &Args) -> anyhow::Result<std::convert::Infallible> {
    let mut config = Config {
        port: args.port,
        tcp: args.tcp,
        debug: args.debug,
        init: std::process::id() == 1,
        splices: splices_work(),
        program: program_path().map(|path| ByteString::from(path.into_os_string().into_vec())),
        notify_socket: std::env::var(notify::VARIABLE).ok(),
        ..Config::default()
    };
    process::inherit_no_further();
    let log = args.log_file.as_deref().map(open_log).transpose()?;
    if let (Some(log), Some(path)) = (&log, &args.log_file)
        && is_file(log)
    {
        config.log_file = Some(std::path::absolute(path)?);
        config.log_bytes = args.log_bytes.0;
    }
    let mut controls = inherited_listeners();
    if controls.is_empty() {
        bind_public(args, &mut config, &mut controls)?;
    } else if let Some(port) = controls
        .iter()
        .find_map(|fd| local_port(fd).ok().filter(|port| *port != 0))
    {
        config.port = port;
    }
    let detached = private_and_detached(args, &mut config, &mut controls, log.as_ref());
    let ready = detached.inspect_err(|_| config.remove_files())?;
    config.original_limits = process::raise_limits();
    if let Some(limit) = process::file_size_limit().filter(|limit| *limit < LINEAR_FILE_BYTES) {
        complain_of_limit(limit);
    }
    let become_keeper = || -> Result<Errno, Errno> {
        let binary = process::own_binary()?;
        let mut kept = vec![
            (Key::new(Kind::CONFIG, 0), config.write()?),
            (Key::new(Kind::JOURNAL, 0), Journal::create()?),
            (
                Key::new(Kind::BINARY, 0),
                binary.try_clone().map_err(|_| Errno::EMFILE)?,
            ),
        ];
        for (id, fd) in controls.into_iter().enumerate() {
            kept.push((Key::new(Kind::CONTROL, id as u64), fd));
        }
        let file = manifest::write(
            kept.iter().map(|(key, fd)| (*key, fd)),
            Beside {
                ready: ready.as_ref(),
                notify_socket: config.notify_socket.clone(),
                ..Beside::default()
            },
        )?;
        Ok(process::exec(
            binary.as_fd(),
            file.as_fd(),
            &title(keeper::TITLE, &config),
            &process::environment(),
        ))
    };
    let errno = become_keeper().unwrap_or_else(|errno| errno);
    config.remove_files();
    Err(anyhow!("cannot start the keeper: {errno}"))
}

/// Warns about a limit on file size that cannot be raised.
fn complain_of_limit(limit: u64) {
    let hint = "start papa with ulimit -f unlimited";
    let text = if limit < MIN_FILE_BYTES {
        format!(
            "papa: files may have {limit} bytes at most (ulimit -f) and this user cannot raise that: output cannot be \
             captured with fewer than {MIN_FILE_BYTES}, so that processes are not started; {hint}\n"
        )
    } else {
        format!(
            "papa: files may have {limit} bytes at most (ulimit -f) and this user cannot raise that: reels are cut to \
             some {} bytes, and output is sent to consumers rather than shared; {hint}\n",
            largest_reel(limit)
        )
    };
    say(&text);
}

/// Tells whoever started the daemon, if anybody is there to read it.
fn say(text: &str) {
    let _ = crate::logging::Log.write_all(text.as_bytes());
}

/// What comes between the port and the keeper's role: the private socket, the
/// pid file and, if asked for, leaving the terminal. Returns where to say that
/// the daemon serves.
fn private_and_detached(
    args: &Args,
    config: &mut Config,
    controls: &mut Vec<OwnedFd>,
    log: Option<&OwnedFd>,
) -> anyhow::Result<Option<OwnedFd>> {
    if config.port != 0 {
        bind_private(config, controls)?;
    }
    // Once before detaching, so that it is said where it is read, and behind the
    // listeners: who cannot have the port leaves another daemon's file alone.
    let path = args
        .pid_file
        .as_ref()
        .map(std::path::absolute)
        .transpose()?;
    let write = |path: &Path| {
        write_pid_file(path, std::process::id().cast_signed())
            .with_context(|| format!("--pid-file: cannot write {}", path.display()))
    };
    if let Some(path) = path {
        write(&path)?;
        // From now on it is ours to remove.
        config.pid_file = Some(path);
    }
    let ready = if args.daemonize {
        Some(detach(log)?)
    } else {
        if let Some(log) = log {
            redirect(log, &[2])?;
        }
        None
    };
    if let (Some(path), true) = (&config.pid_file, args.daemonize) {
        write(path)?;
    }
    Ok(ready)
}

/// Where this program was started from, as it was said: links on the way are
/// not followed, since an installation may turn them to its next version.
fn program_path() -> Option<PathBuf> {
    let word = PathBuf::from(std::env::args_os().next()?);
    let own = fs::metadata("/proc/self/exe").ok()?;
    let is_own = |path: &PathBuf| {
        fs::metadata(path).is_ok_and(|file| (file.dev(), file.ino()) == (own.dev(), own.ino()))
    };
    if word.components().count() > 1 {
        return std::path::absolute(word).ok().filter(is_own);
    }
    let folders = std::env::var_os("PATH")?;
    std::env::split_paths(&folders)
        .filter_map(|folder| std::path::absolute(folder.join(&word)).ok())
        .find(is_own)
}

/// The argument vector that shows in a process list.
#[must_use]
pub fn title(role: &str, config: &Config) -> Vec<CString> {
    let what = match config.socket_paths.first() {
        Some(path) if config.port == 0 => path.display().to_string(),
        _ => config.port.to_string(),
    };
    [role.to_owned(), what]
        .into_iter()
        .filter_map(|text| CString::new(text).ok())
        .collect()
}

fn stream(backlog: i32, umask: Option<u32>) -> Options<'static> {
    Options {
        kind: SockType::Stream,
        backlog,
        interface: None,
        reuseport: false,
        umask,
        nonblocking: true,
        v6only: None,
    }
}

/// The port, or the unix socket asked for in its place.
fn bind_public(
    args: &Args,
    config: &mut Config,
    controls: &mut Vec<OwnedFd>,
) -> anyhow::Result<()> {
    if let Some(path) = &args.unix_socket {
        let path = std::path::absolute(path)?;
        config.port = 0;
        controls.push(bind_path(&path, 0)?);
        config.socket_paths.push(path);
        return Ok(());
    }
    if args.tcp == TcpAccess::Off {
        if args.port == 0 {
            bail!("--tcp off needs a port to name the socket by, or --unix-socket PATH");
        }
        return Ok(());
    }
    let v4 = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), args.port);
    let fd = open_listener(Address::Internet(v4), &stream(CONTROL_BACKLOG, None))
        .map_err(|errno| port_error(v4, errno))?;
    config.port = local_port(&fd).context("getsockname")?;
    controls.push(fd);
    let v6 = SocketAddr::new(IpAddr::V6(Ipv6Addr::LOCALHOST), config.port);
    match open_listener(Address::Internet(v6), &stream(CONTROL_BACKLOG, None)) {
        Ok(fd) => controls.push(fd),
        // A machine without IPv6, or a port just chosen by the system that
        // happens to be taken there: 127.0.0.1 serves.
        Err(errno) if errno != Errno::EADDRINUSE || args.port == 0 => {}
        Err(errno) => return Err(port_error(v6, errno)),
    }
    Ok(())
}

fn bind_error(address: &str, errno: Errno) -> anyhow::Error {
    let hint = match errno {
        Errno::EADDRINUSE => ": choose another with -p",
        Errno::ENAMETOOLONG => {
            ": a socket's path may have 107 bytes; set XDG_RUNTIME_DIR to a directory with a shorter path"
        }
        Errno::EACCES => ": choose a port above 1023 with -p",
        _ => "",
    };
    anyhow!("bind {address}: {}{hint}", errno.desc())
}

/// Why the port cannot be had: where somebody else holds it, who.
fn port_error(address: SocketAddr, errno: Errno) -> anyhow::Error {
    let port = address.port();
    let Some(listener) = Listener::on_port(port).filter(|_| errno == Errno::EADDRINUSE) else {
        return bind_error(&address.to_string(), errno);
    };
    let own = nix::unistd::geteuid().as_raw();
    let other = another_port(port);
    match (listener.uid.filter(|uid| *uid != own), listener.holder()) {
        (Some(uid), _) => anyhow!(
            "port {port} is taken by a program of {}: choose another with -p, for example papa -p {other}; \
             in an INI file that is papa_endpoint = tcp://127.0.0.1:{other} in [circus]",
            account(uid)
        ),
        (None, Some(holder)) => anyhow!("{}", taken(&format!("port {port}"), port, &holder)),
        (None, None) => bind_error(&address.to_string(), errno),
    }
}

/// What is in the way at a place of ours, how to reach it, and how to go another way. `port` is
/// that of the kernel to be, 0 if it has none.
fn taken(place: &str, port: u16, holder: &Holder) -> String {
    let way_out = if port == 0 {
        "choose another path".to_owned()
    } else {
        let other = another_port(port);
        format!("choose another port with -p, for example papa -p {other}")
    };
    if !holder.is_papa() {
        return format!("{place} is taken by {holder}: end it, or {way_out}");
    }
    let reach = match port {
        0 => format!(
            "reach it with papactl and papa_endpoint = unix:{place} in [circus] of your file"
        ),
        DEFAULT_PORT => {
            format!("reach it with `papactl kernel status` or `telnet localhost {port}`")
        }
        _ => format!(
            "reach it with `telnet localhost {port}`, or with papactl and papa_endpoint = tcp://127.0.0.1:{port} in [circus] of your file"
        ),
    };
    format!(
        "{place} is served by another papa of this user, {holder}: {reach}; to start a second one {way_out}"
    )
}

/// A port to be tried instead, for an example.
fn another_port(port: u16) -> u16 {
    port.checked_add(1).unwrap_or(port - 1)
}

/// The socket only this user can reach, by path and by abstract name.
fn bind_private(config: &mut Config, controls: &mut Vec<OwnedFd>) -> anyhow::Result<()> {
    let name = abstract_name(config.port);
    let shown = String::from_utf8_lossy(&name).into_owned();
    match open_listener(Address::Abstract(&name), &stream(CONTROL_BACKLOG, None)) {
        Ok(fd) => controls.push(fd),
        // Any user may take any name there, which must not keep this daemon
        // from serving: there are the path and the port, and clients look who
        // listens.
        Err(Errno::EADDRINUSE) if !is_ours(&name) => {
            say(&format!(
                "papa: @{shown} is taken by somebody else; going on without it\n"
            ));
        }
        Err(errno) => {
            let place = format!("@{shown}");
            let holder = Listener::at(Path::new(&place)).and_then(Listener::holder);
            return Err(match holder.filter(|_| errno == Errno::EADDRINUSE) {
                Some(holder) => anyhow!("{}", taken(&place, config.port, &holder)),
                None => bind_error(&place, errno),
            });
        }
    }
    let dir = runtime_dir();
    make_runtime_dir(&dir).map_err(|error| anyhow!(error))?;
    let path = dir.join(format!("{}.sock", config.port));
    controls.push(bind_path(&path, config.port)?);
    config.socket_paths.push(path);
    Ok(())
}

/// Whether a process of this user listens under an abstract name.
fn is_ours(name: &[u8]) -> bool {
    let holder = || -> Result<u32, Errno> {
        // Not waiting: a stranger may listen and never accept.
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        connect(fd.as_raw_fd(), &UnixAddr::new_abstract(name)?)?;
        Ok(getsockopt(&fd, PeerCredentials)?.uid())
    };
    holder().is_ok_and(|uid| uid == nix::unistd::geteuid().as_raw())
}

/// Binds a path for the kernel on `port`, 0 if it has none; a socket there that nobody answers at
/// is removed.
fn bind_path(path: &Path, port: u16) -> anyhow::Result<OwnedFd> {
    if let Ok(metadata) = fs::symlink_metadata(path) {
        if !metadata.file_type().is_socket() {
            bail!("{}: is in the way and is not a socket", path.display());
        }
        let server =
            server_at(path).with_context(|| format!("ask who serves {}", path.display()))?;
        if let Some(server) = server {
            let place = path.display().to_string();
            match Listener::at(path).and_then(Listener::holder) {
                Some(holder) => bail!("{}", taken(&place, port, &holder)),
                None => bail!("{place} is served by {}", server.describe()),
            }
        }
        fs::remove_file(path).with_context(|| format!("remove {}", path.display()))?;
    }
    open_listener(Address::Path(path), &stream(CONTROL_BACKLOG, Some(0o177)))
        .map_err(|errno| bind_error(&path.display().to_string(), errno))
}

/// Listeners a service manager has bound for us.
fn inherited_listeners() -> Vec<OwnedFd> {
    let number = |name: &str| std::env::var(name).ok()?.parse::<i32>().ok();
    if number("LISTEN_PID") != Some(std::process::id().cast_signed()) {
        return Vec::new();
    }
    let count = number("LISTEN_FDS").unwrap_or(0).clamp(0, MAX_LISTEN_FDS);
    (LISTEN_FDS_START..LISTEN_FDS_START + count)
        .filter_map(|number| process::take_inherited(number).ok())
        .collect()
}

fn open_log(path: &Path) -> anyhow::Result<OwnedFd> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
        .map(OwnedFd::from)
        .with_context(|| format!("open the log {}", path.display()))
}

/// Whether it can be put aside and opened anew.
fn is_file(log: &OwnedFd) -> bool {
    nix::sys::stat::fstat(log).is_ok_and(|status| status.st_mode & libc::S_IFMT == libc::S_IFREG)
}

/// Leaves the terminal. The parent waits here until the daemon serves and
/// exits; the child returns with the end to say so on.
fn detach(log: Option<&OwnedFd>) -> anyhow::Result<OwnedFd> {
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    if let ForkResult::Parent { .. } = process::fork()? {
        drop(write);
        let mut text = String::new();
        let _ = std::io::Read::read_to_string(&mut fs::File::from(read), &mut text);
        match text.as_str() {
            "ready" => std::process::exit(0),
            "" => bail!("the daemon ended before it could serve; its log says more (--log-file)"),
            reason => bail!("{reason}; its log says more (--log-file)"),
        }
    }
    nix::unistd::setsid()?;
    nix::unistd::chdir("/")?;
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(DAEMON_UMASK));
    let null = OwnedFd::from(
        OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/null")?,
    );
    redirect(&null, &[0, 1])?;
    redirect(log.unwrap_or(&null), &[2])?;
    Ok(write)
}

fn redirect(to: &OwnedFd, numbers: &[i32]) -> anyhow::Result<()> {
    for number in numbers {
        process::put_at(to, *number)
            .with_context(|| format!("redirect descriptor {number} to {}", to.as_raw_fd()))?;
    }
    Ok(())
}

/// Whether a memory file takes splices here.
fn splices_work() -> bool {
    let check = || -> Result<bool, Errno> {
        let file = memfd::memfd_create("papa-check")?;
        let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        nix::unistd::write(&write, b"x")?;
        Ok(memfd::splice_at(&read, &file, 0, 1)? == 1)
    };
    check().unwrap_or(false)
}
