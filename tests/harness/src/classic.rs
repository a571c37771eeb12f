//! A client of the classic dialect that sends lines and reads bytes, with nothing between it and
//! the wire.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::PATIENCE;

/// The first thing the kernel says.
pub(crate) const BANNER: &str = "Papa is home. Type \"help\" for commands.\n> ";

/// Either transport; a test does not care which.
#[derive(Debug)]
enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// A raw classic session.
#[derive(Debug)]
pub struct Classic {
    stream: Stream,
    unread: Vec<u8>,
}

impl Classic {
    /// Connects over TCP and expects the banner.
    ///
    /// # Panics
    /// When nobody answers or the banner differs.
    #[track_caller]
    pub fn tcp(port: u16) -> Self {
        let mut client = Self::tcp_silent(port);
        assert_eq!(client.read_text(BANNER.len()), BANNER);
        client
    }

    /// Connects over TCP and reads nothing.
    ///
    /// # Panics
    /// When the connection is refused.
    #[track_caller]
    pub fn tcp_silent(port: u16) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).expect("the kernel accepts on TCP");
        Self::over_tcp(stream)
    }

    /// Takes a connected stream.
    ///
    /// # Panics
    /// When its read timeout cannot be set.
    pub fn over_tcp(stream: TcpStream) -> Self {
        stream
            .set_read_timeout(Some(PATIENCE))
            .expect("a read timeout can be set");
        let _ = stream.set_nodelay(true);
        Self {
            stream: Stream::Tcp(stream),
            unread: Vec::new(),
        }
    }

    /// Connects over a unix socket and expects the banner.
    ///
    /// # Panics
    /// When nobody answers or the banner differs.
    #[track_caller]
    pub fn unix(path: &Path) -> Self {
        let mut client = Self::unix_silent(path);
        assert_eq!(client.read_text(BANNER.len()), BANNER);
        client
    }

    /// Connects over a unix socket and reads nothing.
    ///
    /// # Panics
    /// When the connection is refused.
    #[track_caller]
    pub fn unix_silent(path: &Path) -> Self {
        let stream = UnixStream::connect(path).expect("the kernel accepts on its unix socket");
        stream
            .set_read_timeout(Some(PATIENCE))
            .expect("a read timeout can be set");
        Self {
            stream: Stream::Unix(stream),
            unread: Vec::new(),
        }
    }

    /// Sends bytes as they are; the far side may have closed.
    ///
    /// # Errors
    /// As the socket says.
    pub fn send_bytes(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        match &mut self.stream {
            Stream::Tcp(stream) => stream.write_all(bytes),
            Stream::Unix(stream) => stream.write_all(bytes),
        }
    }

    /// Sends one line.
    ///
    /// # Panics
    /// When the kernel has closed the session.
    #[track_caller]
    pub fn send(&mut self, line: &str) {
        self.send_bytes(format!("{line}\n").as_bytes())
            .expect("the session takes a line");
    }

    /// Says that nothing more will be sent; answers are still read. The far side may have closed.
    ///
    /// # Panics
    /// When the socket refuses.
    pub fn finish_sending(&mut self) {
        let result = match &self.stream {
            Stream::Tcp(stream) => stream.shutdown(Shutdown::Write),
            Stream::Unix(stream) => stream.shutdown(Shutdown::Write),
        };
        match result {
            Err(error) if error.kind() == ErrorKind::NotConnected => {}
            other => other.expect("the write side can be shut down"),
        }
    }

    /// One read from the socket: false at end of file (a reset counts as one).
    fn fill(&mut self) -> std::io::Result<bool> {
        let mut piece = [0; 65536];
        let count = match &mut self.stream {
            Stream::Tcp(stream) => stream.read(&mut piece),
            Stream::Unix(stream) => stream.read(&mut piece),
        };
        match count {
            Ok(0) => Ok(false),
            Ok(count) => {
                self.unread
                    .extend_from_slice(piece.get(..count).unwrap_or_default());
                Ok(true)
            }
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(false),
            // A timeout on the socket takes the automatic restart away.
            Err(error) if error.kind() == ErrorKind::Interrupted => self.fill(),
            Err(error) => Err(error),
        }
    }

    /// Reads until what is unread ends in `end`, and takes it all.
    ///
    /// # Panics
    /// When the session ends or stays silent before that.
    #[track_caller]
    pub fn read_until(&mut self, end: &str) -> String {
        while !self.unread.ends_with(end.as_bytes()) {
            let more = self.fill();
            assert!(
                matches!(more, Ok(true)),
                "waited for {end:?}, got {more:?} after {:?}",
                String::from_utf8_lossy(&self.unread)
            );
        }
        String::from_utf8(std::mem::take(&mut self.unread)).expect("the answer is UTF-8")
    }

    /// Reads up to and including the first `end`; what follows stays unread.
    ///
    /// # Panics
    /// When the session ends or stays silent before that.
    #[track_caller]
    pub fn read_to(&mut self, end: &str) -> String {
        loop {
            let found = self
                .unread
                .windows(end.len())
                .position(|window| window == end.as_bytes());
            if let Some(at) = found {
                let rest = self.unread.split_off(at + end.len());
                let taken = std::mem::replace(&mut self.unread, rest);
                return String::from_utf8(taken).expect("the answer is UTF-8");
            }
            let more = self.fill();
            assert!(
                matches!(more, Ok(true)),
                "waited for {end:?}, got {more:?} after {:?}",
                String::from_utf8_lossy(&self.unread)
            );
        }
    }

    /// Reads exactly `count` bytes of text.
    ///
    /// # Panics
    /// When the session ends or stays silent before that.
    #[track_caller]
    pub fn read_text(&mut self, count: usize) -> String {
        String::from_utf8_lossy(&self.read_bytes(count)).into_owned()
    }

    /// Reads exactly `count` bytes.
    ///
    /// # Panics
    /// When the session ends or stays silent before that.
    #[track_caller]
    pub fn read_bytes(&mut self, count: usize) -> Vec<u8> {
        while self.unread.len() < count {
            let more = self.fill();
            assert!(
                matches!(more, Ok(true)),
                "waited for {count} bytes, got {more:?} after {:?}",
                String::from_utf8_lossy(&self.unread)
            );
        }
        let rest = self.unread.split_off(count);
        std::mem::replace(&mut self.unread, rest)
    }

    /// Reads everything until the kernel closes.
    ///
    /// # Panics
    /// When it does not close in time.
    #[track_caller]
    pub fn read_to_end(&mut self) -> String {
        loop {
            match self.fill() {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => panic!(
                    "waited for the end of the session: {error}, after {:?}",
                    String::from_utf8_lossy(&self.unread)
                ),
            }
        }
        String::from_utf8_lossy(&std::mem::take(&mut self.unread)).into_owned()
    }

    /// What arrives within `limit`, possibly nothing: for asserting silence.
    pub fn read_within(&mut self, limit: Duration) -> String {
        self.set_timeout(limit);
        let _ = self.fill();
        self.set_timeout(PATIENCE);
        String::from_utf8_lossy(&std::mem::take(&mut self.unread)).into_owned()
    }

    fn set_timeout(&mut self, limit: Duration) {
        let _ = match &self.stream {
            Stream::Tcp(stream) => stream.set_read_timeout(Some(limit)),
            Stream::Unix(stream) => stream.set_read_timeout(Some(limit)),
        };
    }

    /// Sends a line and reads its answer: everything up to the next prompt, which is taken off,
    /// with the line end before it.
    ///
    /// # Panics
    /// When there is no answer.
    #[track_caller]
    pub fn ask(&mut self, line: &str) -> String {
        self.send(line);
        let answer = self.read_until("\n> ");
        answer
            .strip_suffix("\n> ")
            .expect("it was read up to the prompt")
            .to_owned()
    }

    /// [`Classic::ask`] that expects an error and gives its text.
    ///
    /// # Panics
    /// When the answer is not an error.
    #[track_caller]
    pub fn ask_error(&mut self, line: &str) -> String {
        let answer = self.ask(line);
        answer
            .strip_prefix("Error: ")
            .unwrap_or_else(|| panic!("{line:?} should fail, answered {answer:?}"))
            .to_owned()
    }

    /// One `key=VALUE` word of an answer.
    ///
    /// # Panics
    /// When the answer has none.
    #[track_caller]
    pub fn field(answer: &str, key: &str) -> String {
        let prefix = format!("{key}=");
        answer
            .split(' ')
            .find_map(|word| word.strip_prefix(&prefix))
            .unwrap_or_else(|| panic!("no {key}= in {answer:?}"))
            .to_owned()
    }
}
