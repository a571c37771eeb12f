//! `papactl`'s side of the manager's control socket.
//!
//! Owns one connection: one request, one reply, within a deadline. Blocking, because a command has
//! nothing else to do meanwhile. Trusts only a socket in our own runtime directory whose other end
//! runs as us or as root.
//! Source: manager/docs/control.md.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::Uid;
use serde::de::DeserializeOwned;

use papa_processes::departing::Departing;

use crate::message::{MAX_REPLY_BYTES, Reply, ReplyError, Request, RequestError};
use papa_system::runtime_dir::{self, RuntimeDir, RuntimeDirError};

/// How much is read at a time.
const READ_BYTES: usize = 64 * 1024;

/// How long a manager that has closed the connection may take to end.
const END_PATIENCE: Duration = Duration::from_secs(1);
/// How long one wait for the next line of a stream takes; another one follows.
const STREAM_PERIOD: Duration = Duration::from_secs(3600);

/// Why the manager could not be asked, or did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum ManagerError {
    /// Nobody listens for this namespace.
    #[error(
        "no manager runs for namespace {namespace:?} (looked for {socket}{oddity}); start one with `papactl up FILE`",
        socket = socket.display(), oddity = runtime_dir::oddity()
    )]
    NotRunning {
        /// The namespace asked for.
        namespace: String,
        /// Where its manager would listen.
        socket: PathBuf,
    },
    /// The runtime directory is not safe to use.
    #[error(transparent)]
    RuntimeDir(#[from] RuntimeDirError),
    /// Somebody else listens there.
    #[error("{socket} belongs to uid {uid}, which is neither us nor root", socket = socket.display())]
    Stranger {
        /// The socket.
        socket: PathBuf,
        /// Who listens.
        uid: u32,
    },
    /// The connection broke.
    #[error("talking to the manager: {0}")]
    Io(#[from] io::Error),
    /// The manager ended after it may have read a request that changes something.
    #[error(
        "the manager ended before it answered and may have done what was asked: `papactl status` shows what is running"
    )]
    Gone,
    /// The deadline passed.
    #[error(
        "no answer within {seconds} s; the manager goes on with it: see `papactl status`, or wait longer with --timeout",
        seconds = .0.as_secs_f64()
    )]
    Timeout(Duration),
    /// The answer is longer than any answer.
    #[error("the manager's answer is longer than {MAX_REPLY_BYTES} bytes")]
    TooLong,
    /// The manager refused or failed.
    #[error(transparent)]
    Refused(#[from] RequestError),
    /// The answer is no answer.
    #[error(
        "the manager's answer is not understood: {0}; are papactl and papa-manager of the same version?"
    )]
    Malformed(#[source] serde_json::Error),
}

impl From<ReplyError> for ManagerError {
    fn from(error: ReplyError) -> Self {
        match error {
            ReplyError::Refused(error) => Self::Refused(error),
            ReplyError::Malformed(error) => Self::Malformed(error),
        }
    }
}

/// A connection to a manager.
#[derive(Debug)]
pub struct ManagerClient {
    stream: UnixStream,
    /// The manager; none if its process id means nothing here.
    process: Option<Departing>,
    /// The namespace asked for.
    namespace: String,
    /// Where the manager listens.
    socket: PathBuf,
    /// Bytes read and not yet part of a reply.
    unread: Vec<u8>,
}

impl ManagerClient {
    /// Connects to the manager of `namespace`.
    ///
    /// # Errors
    /// None runs, or what listens there is not to be trusted.
    pub fn connect(directory: &RuntimeDir, namespace: &str) -> Result<Self, ManagerError> {
        let socket = directory.manager_socket(namespace);
        let not_running = || ManagerError::NotRunning {
            namespace: namespace.to_owned(),
            socket: socket.clone(),
        };
        directory.check_paths(namespace)?;
        match directory.verify() {
            Err(RuntimeDirError::Io { error, .. }) if error.kind() == io::ErrorKind::NotFound => {
                return Err(not_running());
            }
            verified => verified?,
        }
        let stream = match UnixStream::connect(&socket) {
            Ok(stream) => stream,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                ) =>
            {
                return Err(not_running());
            }
            Err(error) => return Err(error.into()),
        };
        let peer = getsockopt(&stream, PeerCredentials).map_err(io::Error::from)?;
        let uid = peer.uid();
        if uid != 0 && uid != Uid::effective().as_raw() {
            return Err(ManagerError::Stranger { socket, uid });
        }
        let pid = u32::try_from(peer.pid()).ok().filter(|pid| *pid > 0);
        Ok(Self {
            stream,
            process: pid.map(|pid| Departing::of([pid])),
            namespace: namespace.to_owned(),
            socket,
            unread: Vec::new(),
        })
    }

    /// Sends `request` and waits up to `timeout` for its reply.
    ///
    /// A manager that was killed can accept connections for a moment: its socket closes when the
    /// last of its threads is gone. One whose process ends before it can have changed anything is
    /// therefore reported as not running; one that closes the connection and lives is `Gone`.
    ///
    /// # Errors
    /// The manager refused, failed, went away or took too long.
    pub fn ask<T: DeserializeOwned>(
        &mut self,
        request: &Request,
        timeout: Duration,
    ) -> Result<T, ManagerError> {
        let deadline = Instant::now() + timeout;
        self.stream.set_write_timeout(Some(timeout))?;
        // A request that was cut is not carried out.
        self.stream
            .write_all(&request.to_line())
            .map_err(|error| self.unserved(waited(error, timeout)))?;
        loop {
            let line = match self.line(deadline, timeout) {
                Err(error) if request.command.only_asks() => return Err(self.unserved(error)),
                line => line?,
            };
            let reply = Reply::parse(&line).map_err(ManagerError::Malformed)?;
            // An answer to an earlier request that we stopped waiting for is nobody's.
            if reply.id == request.id {
                return Ok(reply.body()?);
            }
        }
    }

    /// `error`, where nothing was carried out: a manager whose process has ended does not run.
    fn unserved(&self, error: ManagerError) -> ManagerError {
        let has_ended = || {
            let process = self.process.as_ref();
            process.is_some_and(|one| one.wait(Instant::now() + END_PATIENCE).is_none())
        };
        match error {
            ManagerError::Gone if has_ended() => ManagerError::NotRunning {
                namespace: self.namespace.clone(),
                socket: self.socket.clone(),
            },
            error => error,
        }
    }

    /// The next line of a stream that was asked for, however long it takes to come.
    ///
    /// # Errors
    /// The manager went away, or the line is too long.
    pub fn next_line(&mut self) -> Result<Vec<u8>, ManagerError> {
        loop {
            // Nothing is lost when the time is up: what came is kept.
            match self.line(Instant::now() + STREAM_PERIOD, STREAM_PERIOD) {
                Err(ManagerError::Timeout(_)) => {}
                line => return line,
            }
        }
    }

    fn line(&mut self, deadline: Instant, timeout: Duration) -> Result<Vec<u8>, ManagerError> {
        let mut searched = 0;
        loop {
            if let Some(at) = self.unread[searched..]
                .iter()
                .position(|byte| *byte == b'\n')
            {
                let rest = self.unread.split_off(searched + at + 1);
                let mut line = std::mem::replace(&mut self.unread, rest);
                line.pop();
                return Ok(line);
            }
            searched = self.unread.len();
            if searched > MAX_REPLY_BYTES {
                return Err(ManagerError::TooLong);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ManagerError::Timeout(timeout));
            }
            self.stream.set_read_timeout(Some(left))?;
            let mut buffer = [0; READ_BYTES];
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(ManagerError::Gone),
                Ok(count) => self.unread.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(waited(error, timeout)),
            }
        }
    }
}

fn waited(error: io::Error, timeout: Duration) -> ManagerError {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ManagerError::Timeout(timeout),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => ManagerError::Gone,
        _ => ManagerError::Io(error),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::os::unix::net::UnixListener;
    use std::{fs, process, thread};

    use serde_json::{Map, Value};

    use super::*;
    use crate::message::{Command, Errno};

    const PATIENCE: Duration = Duration::from_secs(10);

    fn directory() -> (tempfile::TempDir, RuntimeDir) {
        let base = tempfile::tempdir().unwrap();
        let directory = RuntimeDir::locate_for(Uid::effective(), Some(base.path().as_os_str()));
        directory.ensure().unwrap();
        (base, directory)
    }

    /// A manager that answers one connection with `answer` and closes it.
    fn manager(directory: &RuntimeDir, answer: &'static [u8]) -> thread::JoinHandle<Vec<u8>> {
        let listener = UnixListener::bind(directory.manager_socket("circus")).unwrap();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut buffer = [0; 1000];
            let count = stream.read(&mut buffer).unwrap();
            // In pieces: a reply need not come in one.
            for piece in answer.chunks(7) {
                stream.write_all(piece).unwrap();
            }
            buffer[..count].to_vec()
        })
    }

    fn ask(directory: &RuntimeDir, timeout: Duration) -> Result<Map<String, Value>, ManagerError> {
        ManagerClient::connect(directory, "circus")?.ask(&Request::waiting(Command::Quit), timeout)
    }

    #[test]
    fn a_request_is_answered() {
        let (_base, directory) = directory();
        let manager = manager(
            &directory,
            b"{\"id\":9,\"status\":\"ok\"}\n{\"id\":1,\"status\":\"ok\",\"time\":1.0,\"x\":5}\n",
        );
        let fields = ask(&directory, PATIENCE).unwrap();
        assert_eq!(fields["x"], 5);
        let request = manager.join().unwrap();
        assert_eq!(
            Request::parse(request.trim_ascii_end()).unwrap().command,
            Command::Quit
        );
    }

    #[test]
    fn a_refusal_keeps_its_number() {
        let (_base, directory) = directory();
        let manager = manager(
            &directory,
            b"{\"id\":1,\"status\":\"error\",\"errno\":3,\"reason\":\"no\"}\n",
        );
        match ask(&directory, PATIENCE) {
            Err(ManagerError::Refused(error)) => {
                assert_eq!(error, RequestError::new(Errno::Message, "no"));
            }
            other => panic!("{other:?}"),
        }
        manager.join().unwrap();
    }

    #[test]
    fn what_is_no_answer_is_an_error() {
        let (_base, directory) = directory();
        assert!(matches!(
            ask(&directory, PATIENCE),
            Err(ManagerError::NotRunning { .. })
        ));
        let first = manager(&directory, b"");
        assert!(matches!(ask(&directory, PATIENCE), Err(ManagerError::Gone)));
        first.join().unwrap();
        fs::remove_file(directory.manager_socket("circus")).unwrap();
        let second = manager(&directory, b"garbage\n");
        assert!(matches!(
            ask(&directory, PATIENCE),
            Err(ManagerError::Malformed(_))
        ));
        second.join().unwrap();
        // The socket file is left over, nobody listens.
        assert!(matches!(
            ask(&directory, PATIENCE),
            Err(ManagerError::NotRunning { .. })
        ));
    }

    /// A process that is named like a manager, accepts one connection and ends.
    const DIES: &str = "
import os, socket, sys
server = socket.socket(socket.AF_UNIX)
server.bind(sys.argv[1])
server.listen()
print('listens', flush=True)
server.accept()[0].recv(1)
os._exit(0)
";

    #[test]
    fn a_manager_that_dies_before_a_question_is_answered_does_not_run() {
        let (base, directory) = directory();
        let program = base.path().join("papa-dies");
        let found = process::Command::new("python3")
            .args([
                "-c",
                "import os, sys; print(os.path.realpath(sys.executable))",
            ])
            .output()
            .unwrap();
        let python = String::from_utf8(found.stdout).unwrap();
        std::os::unix::fs::symlink(python.trim(), &program).unwrap();
        let mut manager = process::Command::new(&program)
            .args(["-SE", "-c", DIES])
            .arg(directory.manager_socket("circus"))
            .stdout(process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let output = manager.stdout.take().unwrap();
        BufReader::new(output).read_line(&mut line).unwrap();
        assert_eq!(line, "listens\n");
        let question = Request::waiting(Command::Status { name: None });
        let mut client = ManagerClient::connect(&directory, "circus").unwrap();
        let answer = client.ask::<Map<String, Value>>(&question, PATIENCE);
        assert!(
            matches!(answer, Err(ManagerError::NotRunning { .. })),
            "{answer:?}"
        );
        manager.wait().unwrap();
    }

    #[test]
    fn a_manager_that_closes_the_connection_and_lives_is_not_said_to_be_gone_for_good() {
        let (_base, directory) = directory();
        let listener = UnixListener::bind(directory.manager_socket("circus")).unwrap();
        for request in [Command::Status { name: None }, Command::Quit] {
            let mut client = ManagerClient::connect(&directory, "circus").unwrap();
            drop(listener.accept().unwrap());
            let answer = client.ask::<Map<String, Value>>(&Request::waiting(request), PATIENCE);
            assert!(matches!(answer, Err(ManagerError::Gone)), "{answer:?}");
        }
    }

    #[test]
    fn a_silent_manager_is_given_up() {
        let (_base, directory) = directory();
        let _listener = UnixListener::bind(directory.manager_socket("circus")).unwrap();
        let timeout = Duration::from_millis(20);
        assert!(matches!(
            ask(&directory, timeout),
            Err(ManagerError::Timeout(_))
        ));
    }
}
