//! One classic line to a typed request.
//!
//! Owns the command table, abbreviations and options. Touches nothing: numbers in name lists,
//! users, groups, limits and socket references are looked up by the kernel.

use std::borrow::Cow;

use crate::classic::error::Error;
use crate::classic::help;
use crate::json::SWITCH_WORD;
use crate::json::request::ops::{ProcessMake, SocketMake};
use crate::limits::{MAX_BACKLOG, REEL_BYTES};
use crate::name::{Name, NamePattern};
use crate::process::{Account, Rlimit, Sockets, Stderr, Stdout};
use crate::size::ByteSize;
use crate::socket::{DEFAULT_BACKLOG, Umask, quoted};
use crate::text::ByteString;
use crate::words;

/// What a list or removal is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Processes.
    Processes,
    /// Sockets.
    Sockets,
    /// Values.
    Values,
}

/// What a classic line asks for.
#[derive(Debug, Clone, PartialEq)]
pub enum Request {
    /// `list …`; no pattern means all.
    List(Kind, Vec<NamePattern>),
    /// `remove …`; no pattern means all processes, and comes with processes only.
    Remove(Kind, Vec<NamePattern>),
    /// `watch processes …`; no pattern means all.
    Watch(Vec<NamePattern>),
    /// `make socket …`.
    MakeSocket(SocketMake),
    /// `make process …`.
    MakeProcess {
        /// The process; its `argv` is empty where no command was given.
        make: Box<ProcessMake>,
        /// Start watching it at once.
        watch: bool,
    },
    /// `set NAME …`; without a value the name is cleared.
    Set(Name, Option<String>),
    /// `get NAME`.
    Get(Name),
    /// `help …`: the text to answer.
    Help(Cow<'static, str>),
    /// `quit`.
    Quit,
    /// `exit-if-idle`.
    ExitIfIdle,
    /// `json`: the session speaks JSON from here on.
    Json,
}

/// A command at the end of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Command {
    List(Kind),
    Remove(Kind),
    Watch,
    MakeSocket,
    MakeProcess,
    Set,
    Get,
    Help,
    Quit,
    ExitIfIdle,
    Json,
}

/// Where looking up words ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    Command(Command),
    /// A first word whose second is missing.
    Group(&'static Group),
}

/// A first word that needs a second.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) word: &'static str,
    /// Sorted, so that the first match of a prefix is the one papa takes.
    seconds: &'static [(&'static str, Command)],
}

impl Group {
    fn words(&self) -> String {
        let words: Vec<&str> = self.seconds.iter().map(|(word, _)| *word).collect();
        words.join(", ")
    }
}

static LIST: Group = Group {
    word: "list",
    seconds: &[
        ("processes", Command::List(Kind::Processes)),
        ("sockets", Command::List(Kind::Sockets)),
        ("values", Command::List(Kind::Values)),
    ],
};
static MAKE: Group = Group {
    word: "make",
    seconds: &[
        ("process", Command::MakeProcess),
        ("socket", Command::MakeSocket),
    ],
};
static REMOVE: Group = Group {
    word: "remove",
    seconds: &[
        ("processes", Command::Remove(Kind::Processes)),
        ("sockets", Command::Remove(Kind::Sockets)),
        ("values", Command::Remove(Kind::Values)),
    ],
};
static WATCH: Group = Group {
    word: "watch",
    seconds: &[("processes", Command::Watch)],
};

/// Another word for `quit`, in full.
const EXIT: &str = "exit";
const EXIT_IF_IDLE: &str = "exit-if-idle";

/// First words, sorted. `json` is not among them: a new word must not change what an old
/// abbreviation means.
static TOP: [(&str, Found); 9] = [
    (EXIT_IF_IDLE, Found::Command(Command::ExitIfIdle)),
    ("get", Found::Command(Command::Get)),
    ("help", Found::Command(Command::Help)),
    ("list", Found::Group(&LIST)),
    ("make", Found::Group(&MAKE)),
    ("quit", Found::Command(Command::Quit)),
    ("remove", Found::Group(&REMOVE)),
    ("set", Found::Command(Command::Set)),
    ("watch", Found::Group(&WATCH)),
];

/// Reads one line. A blank line is `None`; it is answered by the prompt alone.
///
/// # Errors
/// Says what is wrong in papa's words, where papa has any.
pub fn parse(line: &str) -> Result<Option<Request>, Error> {
    let mut words = words::split(words::strip(line)).map_err(|error| {
        Error::Refused(crate::json::Failure::new(
            crate::json::ErrorCode::Limit,
            &error.to_string(),
        ))
    })?;
    if words.is_empty() {
        return Ok(None);
    }
    let first = words.remove(0);
    let command = match look_up(first, &mut words)? {
        Found::Command(command) => command,
        Found::Group(group) => {
            return Err(Error::MissingSecondWord {
                command: group.word,
                words: group.words(),
            });
        }
    };
    request(command, words).map(Some)
}

/// Reads one line of bytes.
///
/// # Errors
/// As [`parse`]; also if the line is not UTF-8.
pub fn parse_bytes(line: &[u8]) -> Result<Option<Request>, Error> {
    parse(std::str::from_utf8(line).map_err(|_| Error::NotUtf8)?)
}

/// Finds the command that `first`, and where needed the first of `rest`, stand for, and removes it
/// from `rest`.
pub(super) fn look_up(first: Cow<'_, str>, rest: &mut Vec<Cow<'_, str>>) -> Result<Found, Error> {
    let first = lowercase(first);
    if first == SWITCH_WORD {
        return Ok(Found::Command(Command::Json));
    }
    // The original takes it for an abbreviation it forbids; a person means to leave, as with a
    // watch.
    if first == EXIT {
        return Ok(Found::Command(Command::Quit));
    }
    let Some((word, found)) = TOP
        .iter()
        .find(|(word, _)| *word == first)
        .or_else(|| TOP.iter().find(|(word, _)| word.starts_with(&*first)))
    else {
        return Err(Error::UnknownCommand(first.into_owned()));
    };
    if *word == EXIT_IF_IDLE && first != EXIT_IF_IDLE {
        return Err(Error::Abbreviated);
    }
    match found {
        Found::Group(group) if !rest.is_empty() => {
            let second = lowercase(rest.remove(0));
            group
                .seconds
                .iter()
                .find(|(word, _)| word.starts_with(&*second))
                .map(|(_, command)| Found::Command(*command))
                .ok_or_else(|| Error::BadSecondWord {
                    command: group.word,
                    words: group.words(),
                })
        }
        found => Ok(*found),
    }
}

/// A word in small letters; most are typed so.
fn lowercase(word: Cow<'_, str>) -> Cow<'_, str> {
    if word
        .bytes()
        .all(|byte| byte.is_ascii() && !byte.is_ascii_uppercase())
    {
        word
    } else {
        word.to_lowercase().into()
    }
}

fn request(command: Command, mut rest: Vec<Cow<'_, str>>) -> Result<Request, Error> {
    Ok(match command {
        Command::List(kind) => Request::List(kind, patterns(&rest)),
        Command::Watch => Request::Watch(patterns(&rest)),
        Command::Remove(Kind::Values) if rest.is_empty() || rest == ["*"] => {
            return Err(Error::RemoveAllValues);
        }
        Command::Remove(Kind::Sockets) if rest.is_empty() => return Err(Error::RemoveAllSockets),
        Command::Remove(kind) => Request::Remove(kind, patterns(&rest)),
        Command::MakeSocket => Request::MakeSocket(make_socket(rest)?),
        Command::MakeProcess => make_process(rest)?,
        Command::Set if rest.is_empty() || rest == ["*"] => return Err(Error::ValueWithoutName),
        Command::Set => {
            let name = Name::new(&rest.remove(0))?;
            let value = (!rest.is_empty()).then(|| rest.join(" "));
            if let Some(value) = &value {
                within_value_limit(value)?;
            }
            Request::Set(name, value)
        }
        Command::Get => match rest.first() {
            Some(name) => Request::Get(Name::new(name)?),
            None => return Err(Error::ValueWithoutName),
        },
        Command::Help => Request::Help(help::text(rest)),
        Command::Quit => Request::Quit,
        Command::ExitIfIdle => Request::ExitIfIdle,
        Command::Json => match rest.into_iter().next() {
            Some(word) => return Err(Error::UnexpectedWord(word.into_owned())),
            None => Request::Json,
        },
    })
}

fn patterns(words: &[Cow<'_, str>]) -> Vec<NamePattern> {
    words.iter().map(|word| NamePattern::new(word)).collect()
}

fn within_value_limit(value: &str) -> Result<(), Error> {
    use crate::json::request::{Operation as _, ValueSet};
    // The name plays no part in the check; any will do.
    let name = Name::new("value")?;
    ValueSet {
        name,
        value: value.into(),
    }
    .check()
    .map_err(Error::Refused)
}

/// Takes the `key=value` words off the front; the last of a key given twice counts.
fn options(
    words: &mut std::iter::Peekable<std::vec::IntoIter<Cow<'_, str>>>,
) -> Vec<(String, String)> {
    let mut options: Vec<(String, String)> = Vec::new();
    while let Some(word) = words.next_if(|word| word.contains('=')) {
        let (key, value) = word.split_once('=').unwrap_or((&word, ""));
        let unquoted = value
            .strip_prefix('"')
            .and_then(|value| value.strip_suffix('"'))
            .unwrap_or(value);
        match options.iter_mut().find(|(known, _)| known == key) {
            Some((_, known)) => unquoted.clone_into(known),
            None => options.push((key.to_owned(), unquoted.to_owned())),
        }
    }
    options
}

const SOCKET_OPTIONS: &str = "family, type, backlog, path, umask, host, port, interface, reuseport";

fn make_socket(words: Vec<Cow<'_, str>>) -> Result<SocketMake, Error> {
    let mut words = words.into_iter().peekable();
    let name = words.next().ok_or(Error::SocketWithoutName)?;
    let options = options(&mut words);
    let mut make = SocketMake::new(Name::new(&name)?);
    for (key, value) in options {
        match key.as_str() {
            "family" => make.family = Some(value.parse().map_err(Error::BadOption)?),
            "type" => make.socket_type = value.parse().map_err(Error::BadOption)?,
            "backlog" => {
                make.backlog = Some(number(&key, &value, u64::from(MAX_BACKLOG))?)
                    .filter(|backlog| *backlog != DEFAULT_BACKLOG);
            }
            "path" => make.path = not_blank(value).map(ByteString::from),
            "umask" => {
                let bits: u32 = number(&key, &value, 0o777)?;
                make.umask = Umask::new(u64::from(bits));
            }
            "host" => make.host = not_blank(value),
            "port" => {
                make.port =
                    Some(number(&key, &value, u64::from(u16::MAX))?).filter(|port| *port != 0);
            }
            "interface" => make.interface = not_blank(value),
            // Any text but the empty one means yes, as in papa 1.0.6; "0" is read as people mean
            // it.
            "reuseport" => make.reuseport = !matches!(value.as_str(), "" | "0"),
            _ => {
                return Err(Error::UnknownOption {
                    option: key,
                    expected: SOCKET_OPTIONS,
                });
            }
        }
    }
    if let Some(word) = words.next() {
        return Err(Error::UnexpectedWord(word.into_owned()));
    }
    // papa 1.0.6 asks nobody.
    make.replace = make.path.is_some();
    crate::json::request::Operation::check(&make)?;
    Ok(make)
}

const PROCESS_OPTIONS: &str = "uid, gid, working_dir, bufsize, output, stdout, stderr, shell, watch, env.NAME, \
                               rlimit.NAME";

fn make_process(words: Vec<Cow<'_, str>>) -> Result<Request, Error> {
    let mut words = words.into_iter().peekable();
    let name = words.next().ok_or(Error::ProcessWithoutName)?;
    let options = options(&mut words);
    let argv = words
        .map(|word| ByteString::from(word.into_owned()))
        .collect();
    let mut make = Box::new(ProcessMake::new(Name::new(&name)?, argv));
    // Some users write a socket's number into the command line themselves, so all are inherited.
    make.sockets = Sockets::All;
    let mut watch = false;
    for (key, value) in options {
        if let Some(variable) = key.strip_prefix("env.") {
            make.env.0.insert(variable.to_owned(), value.into());
            continue;
        }
        if let Some(limit) = key.strip_prefix("rlimit.") {
            make.rlimits.insert(limit.to_owned(), rlimit(limit, value)?);
            continue;
        }
        match key.as_str() {
            "uid" => make.uid = not_blank(value).map(|uid| Account::new(&uid)),
            "gid" => make.gid = not_blank(value).map(|gid| Account::new(&gid)),
            "working_dir" => make.working_dir = not_blank(value).map(ByteString::from),
            "bufsize" | "output" => {
                make.reel_bytes =
                    Some(value.parse().map_err(|error: crate::size::SizeError| {
                        Error::BadOption(format!("{key}: {error}"))
                    })?);
            }
            "stdout" if flag(&key, &value)? => make.stdout = Stdout::Pipe,
            "stdout" => make.stdout = Stdout::Null,
            "stderr" if value == "stdout" => make.stderr = Stderr::Stdout,
            "stderr" if flag(&key, &value)? => make.stderr = Stderr::Pipe,
            "stderr" => make.stderr = Stderr::Null,
            // Any text but the empty one means yes, as in papa 1.0.6; "0" is read as people mean
            // it.
            "shell" => make.shell = !matches!(value.as_str(), "" | "0" | "False"),
            "watch" => watch = flag(&key, &value)?,
            _ => {
                return Err(Error::UnknownOption {
                    option: key,
                    expected: PROCESS_OPTIONS,
                });
            }
        }
    }
    if make.reel_bytes == Some(ByteSize(0)) {
        // No buffer means no capture at all, not even merged.
        make.stdout = Stdout::Null;
        make.stderr = Stderr::Null;
    }
    // The default spelt out is the same request.
    make.reel_bytes = make
        .reel_bytes
        .filter(|bytes| *bytes != ByteSize(REEL_BYTES));
    make.check_fields()?;
    Ok(Request::MakeProcess { make, watch })
}

fn not_blank(value: String) -> Option<String> {
    (!value.is_empty()).then_some(value)
}

fn number<N: TryFrom<u64>>(key: &str, value: &str, most: u64) -> Result<N, Error> {
    Some(value)
        .filter(|value| !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()))
        .and_then(|value| value.parse::<u64>().ok())
        .filter(|number| *number <= most)
        .and_then(|number| N::try_from(number).ok())
        .ok_or_else(|| {
            Error::BadOption(format!(
                "{key} {}: expected a whole number from 0 to {most}",
                quoted(value)
            ))
        })
}

fn flag(key: &str, value: &str) -> Result<bool, Error> {
    number::<u64>(key, value, u64::MAX)
        .map(|number| number != 0)
        .map_err(|_| Error::BadOption(format!("{key} {}: expected 0 or 1", quoted(value))))
}

/// A limit for both soft and hard; -1 is infinity, as it is to Python.
fn rlimit(name: &str, value: String) -> Result<Rlimit, Error> {
    if value == "-1" {
        return Ok(Rlimit::both(None));
    }
    number::<u64>(name, &value, u64::MAX)
        .map(|limit| Rlimit::both(Some(limit)))
        .map_err(|_| Error::RlimitValue {
            name: name.to_owned(),
            value,
        })
}
