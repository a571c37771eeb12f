//! A client of the JSON dialect: requests out, replies and pushes in, descriptors both ways.
//!
//! Blocking and simple on purpose: one thread, one buffer. What was pushed while a reply was
//! awaited is kept in order and handed out by [`Json::push`].

use std::collections::VecDeque;
use std::io::{ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nix::cmsg_space;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde_json::{Value, json};

use super::PATIENCE;
use super::classic::BANNER;

/// The least room a read from the socket finds; clearing a buffer for every read would cost more
/// than the reading.
const READ_BYTES: usize = 256 << 10;

/// Something the kernel sent unasked.
#[derive(Debug, Clone)]
pub struct Push {
    /// The header line.
    pub header: Value,
    /// The raw bytes that follow an `output` header.
    pub bytes: Vec<u8>,
}

impl Push {
    /// The body of a push of this kind (`output`, `end`, `exit`, `event`, `lost`, `shutdown`).
    pub fn body(&self, kind: &str) -> Option<&Value> {
        self.header.get(kind)
    }
}

#[derive(Debug)]
enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// A session in the JSON dialect.
#[derive(Debug)]
pub struct Json {
    stream: Stream,
    buffer: Vec<u8>,
    /// Where in `buffer` the unread part starts.
    start: usize,
    /// Where it ends; what follows is room.
    end: usize,
    pushes: VecDeque<Push>,
    descriptors: VecDeque<OwnedFd>,
    next_id: u64,
    /// What the kernel said of itself when the session switched.
    pub hello: Value,
}

impl Json {
    /// Connects over a unix socket and switches to JSON.
    ///
    /// # Errors
    /// When the connection is refused or ends before the hello.
    pub fn unix(path: &Path) -> std::io::Result<Self> {
        Self::start(Stream::Unix(UnixStream::connect(path)?))
    }

    /// Connects over TCP and switches to JSON.
    ///
    /// # Errors
    /// When the connection is refused or ends before the hello.
    pub fn tcp(port: u16) -> std::io::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_nodelay(true)?;
        Self::start(Stream::Tcp(stream))
    }

    fn start(stream: Stream) -> std::io::Result<Self> {
        let mut client = Self {
            stream,
            buffer: Vec::new(),
            start: 0,
            end: 0,
            pushes: VecDeque::new(),
            descriptors: VecDeque::new(),
            next_id: 0,
            hello: Value::Null,
        };
        client.set_timeout(PATIENCE)?;
        client.write(b"json\n")?;
        while client.unread().len() < BANNER.len() {
            client.fill()?;
        }
        client.start += BANNER.len();
        let line = client.line()?;
        client.hello = line
            .get("ok")
            .cloned()
            .ok_or_else(|| bad(&format!("the hello should be ok: {line}")))?;
        Ok(client)
    }

    fn set_timeout(&self, limit: Duration) -> std::io::Result<()> {
        let limit = Some(limit.max(Duration::from_millis(1)));
        match &self.stream {
            Stream::Tcp(stream) => stream.set_read_timeout(limit),
            Stream::Unix(stream) => stream.set_read_timeout(limit),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        match &mut self.stream {
            Stream::Tcp(stream) => stream.write_all(bytes),
            Stream::Unix(stream) => stream.write_all(bytes),
        }
    }

    fn unread(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or_default()
    }

    /// One read; end of file is an error, since a session has no business ending here.
    fn fill(&mut self) -> std::io::Result<()> {
        if self.buffer.len() - self.end < READ_BYTES {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
            let wanted = self.end + READ_BYTES;
            if self.buffer.len() < wanted {
                self.buffer.resize(wanted * 2, 0);
            }
        }
        match self.read_at(self.end) {
            Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                self.end += count;
                Ok(())
            }
            // A timeout on the socket takes the automatic restart away.
            Err(error) if error.kind() == ErrorKind::Interrupted => self.fill(),
            Err(error) => Err(error),
        }
    }

    fn read_at(&mut self, offset: usize) -> std::io::Result<usize> {
        let room = self.buffer.get_mut(offset..).unwrap_or_default();
        match &mut self.stream {
            Stream::Tcp(stream) => stream.read(room),
            Stream::Unix(stream) => {
                let mut space = cmsg_space!([i32; 4]);
                let mut slices = [IoSliceMut::new(room)];
                let message = recvmsg::<()>(
                    stream.as_raw_fd(),
                    &mut slices,
                    Some(&mut space),
                    MsgFlags::MSG_CMSG_CLOEXEC,
                )?;
                let count = message.bytes;
                for control in message.cmsgs()? {
                    if let ControlMessageOwned::ScmRights(numbers) = control {
                        for number in numbers {
                            // SAFETY: the kernel of the machine has just created this descriptor
                            // for us, and nothing else in the process knows its number.
                            #[allow(unsafe_code)]
                            let owned = unsafe { OwnedFd::from_raw_fd(number) };
                            self.descriptors.push_back(owned);
                        }
                    }
                }
                Ok(count)
            }
        }
    }

    /// One line, parsed.
    fn line(&mut self) -> std::io::Result<Value> {
        let mut looked = 0;
        loop {
            let unread = self.unread();
            let end = unread
                .get(looked..)
                .unwrap_or_default()
                .iter()
                .position(|byte| *byte == b'\n');
            if let Some(at) = end {
                let line = unread.get(..looked + at).unwrap_or_default();
                let value = serde_json::from_slice(line).map_err(|error| {
                    bad(&format!("{error} in {:?}", String::from_utf8_lossy(line)))
                })?;
                self.start += looked + at + 1;
                return Ok(value);
            }
            looked = unread.len();
            self.fill()?;
        }
    }

    /// One line and, for output, its bytes.
    fn message(&mut self) -> std::io::Result<Push> {
        let header = self.line()?;
        let mut bytes = Vec::new();
        if let Some(output) = header.get("output")
            && output["inline"] == json!(true)
        {
            let length = output["length"].as_u64().unwrap_or(0);
            let length = usize::try_from(length).map_err(|error| bad(&error.to_string()))?;
            while self.unread().len() < length {
                self.fill()?;
            }
            bytes = self.unread().get(..length).unwrap_or_default().to_vec();
            self.start += length;
        }
        Ok(Push { header, bytes })
    }

    /// Sends one line as it is.
    ///
    /// # Errors
    /// As the socket says.
    pub fn send_line(&mut self, line: &str) -> std::io::Result<()> {
        self.write(format!("{line}\n").as_bytes())
    }

    /// Sends a request that wants no reply.
    ///
    /// # Errors
    /// As the socket says.
    pub fn send(&mut self, op: &str, fields: Value) -> std::io::Result<()> {
        let request = request(op, fields, None);
        self.send_line(&request.to_string())
    }

    /// Sends a request and waits for its reply: the `ok` object or the `error` object.
    ///
    /// # Errors
    /// When the connection fails or stays silent.
    pub fn call(&mut self, op: &str, fields: Value) -> std::io::Result<Result<Value, Value>> {
        let id = self.ask(op, fields, None)?;
        self.reply(id)
    }

    /// [`Json::call`] with a descriptor attached.
    ///
    /// # Errors
    /// When the connection fails or stays silent, or is TCP.
    pub fn call_with(
        &mut self,
        op: &str,
        fields: Value,
        descriptor: BorrowedFd<'_>,
    ) -> std::io::Result<Result<Value, Value>> {
        let id = self.ask(op, fields, Some(descriptor))?;
        self.reply(id)
    }

    /// Sends a request, perhaps with a descriptor attached; gives the number its reply will have.
    ///
    /// # Errors
    /// As the socket says, or a descriptor cannot be sent, the connection being TCP.
    pub fn ask(
        &mut self,
        op: &str,
        fields: Value,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> std::io::Result<u64> {
        self.next_id += 1;
        let id = self.next_id;
        let line = format!("{}\n", request(op, fields, Some(id)));
        let Some(descriptor) = descriptor else {
            return self.write(line.as_bytes()).map(|()| id);
        };
        let Stream::Unix(stream) = &self.stream else {
            return Err(bad("descriptors travel on unix sockets only"));
        };
        let numbers = [descriptor.as_raw_fd()];
        let sent = sendmsg::<()>(
            stream.as_raw_fd(),
            &[IoSlice::new(line.as_bytes())],
            &[ControlMessage::ScmRights(&numbers)],
            MsgFlags::empty(),
            None,
        )?;
        let rest = line.as_bytes().get(sent..).unwrap_or_default().to_vec();
        self.write(&rest)?;
        Ok(id)
    }

    /// Waits for the reply to what was asked: the `ok` object or the `error` object.
    ///
    /// # Errors
    /// When the connection fails or stays silent.
    pub fn reply(&mut self, id: u64) -> std::io::Result<Result<Value, Value>> {
        loop {
            let message = self.message()?;
            let header = &message.header;
            if header.get("id").and_then(Value::as_u64) == Some(id) {
                if let Some(ok) = header.get("ok") {
                    return Ok(Ok(ok.clone()));
                }
                return Ok(Err(header["error"].clone()));
            }
            self.pushes.push_back(message);
        }
    }

    /// A request that must succeed.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn ok(&mut self, op: &str, fields: Value) -> Value {
        let shown = fields.to_string();
        match self.call(op, fields) {
            Ok(Ok(reply)) => reply,
            other => panic!("{op} {shown} should succeed: {other:?}"),
        }
    }

    /// A request that must fail; gives its code.
    ///
    /// # Panics
    /// When it succeeds or the connection fails.
    #[track_caller]
    pub fn error(&mut self, op: &str, fields: Value) -> String {
        let shown = fields.to_string();
        match self.call(op, fields) {
            Ok(Err(error)) => error["code"].as_str().unwrap_or_default().to_owned(),
            other => panic!("{op} {shown} should fail: {other:?}"),
        }
    }

    /// The descriptor that came with the last reply.
    ///
    /// # Panics
    /// When none came.
    #[track_caller]
    pub fn descriptor(&mut self) -> OwnedFd {
        self.descriptors
            .pop_front()
            .expect("a descriptor came with the reply")
    }

    /// The next push, none when nothing comes within `limit`.
    ///
    /// # Errors
    /// When the connection fails.
    pub fn push_within(&mut self, limit: Duration) -> std::io::Result<Option<Push>> {
        if let Some(push) = self.pushes.pop_front() {
            return Ok(Some(push));
        }
        if self.unread().is_empty() {
            self.set_timeout(limit)?;
            let arrived = self.fill();
            self.set_timeout(PATIENCE)?;
            match arrived {
                Ok(()) => {}
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
                {
                    return Ok(None);
                }
                Err(error) => return Err(error),
            }
        }
        // One that has begun is read to its end.
        self.message().map(Some)
    }

    /// The next push, whatever it is.
    ///
    /// # Panics
    /// When none comes.
    #[track_caller]
    pub fn push(&mut self) -> Push {
        match self.push_within(PATIENCE) {
            Ok(Some(push)) => push,
            other => panic!("waited for a push: {other:?}"),
        }
    }

    /// The body of the next push of one kind; others before it are dropped.
    ///
    /// # Panics
    /// When none comes.
    #[track_caller]
    pub fn push_of(&mut self, kind: &str) -> Value {
        loop {
            if let Some(body) = self.push().body(kind) {
                return body.clone();
            }
        }
    }

    /// Makes a process and gives its object.
    ///
    /// # Panics
    /// When it cannot be made.
    #[track_caller]
    pub fn make_process(&mut self, name: &str, argv: &[&str], mut more: Value) -> Value {
        more["name"] = json!(name);
        more["argv"] = json!(argv);
        self.ok("process.make", more)["process"].clone()
    }

    /// The object of one process by name, none when it is not listed.
    ///
    /// # Panics
    /// When the list fails.
    #[track_caller]
    pub fn process(&mut self, name: &str) -> Option<Value> {
        self.ok("process.list", json!({ "names": [name] }))["processes"]
            .as_array()
            .and_then(|list| list.first().cloned())
    }
}

fn request(op: &str, mut fields: Value, id: Option<u64>) -> Value {
    if fields.is_null() {
        fields = json!({});
    }
    fields["op"] = json!(op);
    if let Some(id) = id {
        fields["id"] = json!(id);
    }
    fields
}

fn bad(message: &str) -> std::io::Error {
    std::io::Error::new(ErrorKind::InvalidData, message.to_owned())
}
