//! The texts of errors as papa 1.0.6 words them, and the codes they have in the JSON dialect.
//!
//! Those the parser finds and those only the kernel can find are together here, because both
//! dialects and both sides need the same words.

use thiserror::Error as ThisError;

use crate::json::reply::{ErrorCode, Failure};
use crate::name::{Name, NameError, NamePattern};
use crate::text::escape_control;

/// What is wrong with a request.
#[derive(Debug, Clone, PartialEq, Eq, ThisError)]
#[non_exhaustive]
pub enum Error {
    /// The first word is none.
    #[error("Unknown command \"{}\"", escape_control(.0))]
    UnknownCommand(String),
    /// The second word is none.
    #[error("Bad \"{command}\" command. The following word must be one of: {words}")]
    BadSecondWord {
        /// The first word, spelt out.
        command: &'static str,
        /// The second words there are.
        words: String,
    },
    /// The second word is missing.
    #[error("\"{command}\" must be followed by one of: {words}")]
    MissingSecondWord {
        /// The first word, spelt out.
        command: &'static str,
        /// The second words there are.
        words: String,
    },
    /// `exit-if-idle` has to be typed in full.
    #[error("You cannot abbreviate \"exit-if-idle\"")]
    Abbreviated,
    /// `set`, `get` without a name.
    #[error("Value requires a name")]
    ValueWithoutName,
    /// `make socket` without a name.
    #[error("Socket requires a name")]
    SocketWithoutName,
    /// `make process` without a name.
    #[error("Process requires a name")]
    ProcessWithoutName,
    /// `remove values` without names, or with the bare `*`.
    #[error("You cannot remove all variables")]
    RemoveAllValues,
    /// `remove sockets` without names.
    #[error("You cannot remove all sockets without naming them (\"remove sockets *\" would)")]
    RemoveAllSockets,
    /// A name that is not legal.
    #[error("{0}")]
    Name(#[from] NameError),
    /// An option that `make` does not have.
    #[error("Unknown option \"{}\", expected one of: {expected}", escape_control(.option))]
    UnknownOption {
        /// As typed.
        option: String,
        /// Those there are.
        expected: &'static str,
    },
    /// An option's value that is not legal; the text says all.
    #[error("{0}")]
    BadOption(String),
    /// A limit that is not a number.
    #[error(
        "The rlimit value for \"{}\" must be an integer, not \"{}\"",
        escape_control(.name),
        escape_control(.value)
    )]
    RlimitValue {
        /// The limit's name as typed.
        name: String,
        /// Its value as typed.
        value: String,
    },
    /// A limit the system does not have.
    #[error("Unknown rlimit \"{}\"", escape_control(.0))]
    UnknownRlimit(String),
    /// Words after the options of `make socket`, or after a command that takes none.
    #[error("Unexpected \"{}\"", escape_control(.0))]
    UnexpectedWord(String),
    /// The line is not text.
    #[error("The line is not valid UTF-8; type \"json\" to send any bytes")]
    NotUtf8,
    /// A request that breaks a limit; the text says which.
    #[error("{0}")]
    Refused(Failure),
    /// A name that selects nothing.
    #[error("{0} not found")]
    NotFound(NamePattern),
    /// `watch` selected nothing.
    #[error("Nothing to watch")]
    NothingToWatch,
    /// No executable was named.
    #[error("No command")]
    NoCommand,
    /// The executable does not exist.
    #[error("Bad command - [Errno 2] No such file or directory: '{}'", escape_control(.0))]
    BadCommand(String),
    /// The directory does not exist.
    #[error("Bad working_dir - [Errno 2] No such file or directory: '{}'", escape_control(.0))]
    BadWorkingDir(String),
    /// There is no user of this number.
    #[error("'{}' is not a valid user id", escape_control(.0))]
    UserId(String),
    /// There is no user of this name.
    #[error("'{}' is not a valid user name", escape_control(.0))]
    UserName(String),
    /// There is no such group.
    #[error("No such group: '{}'", escape_control(.0))]
    Group(String),
    /// A process of this name was made with other parameters.
    #[error("Process for {name} has already been created - {line}")]
    ProcessExists {
        /// Its name.
        name: Name,
        /// Its line as listed.
        line: String,
    },
    /// A socket of this name was made with other parameters.
    #[error("Socket for {name} has already been created - {line}")]
    SocketExists {
        /// Its name.
        name: Name,
        /// Its line as listed.
        line: String,
    },
    /// Another socket has this path.
    #[error("Socket for {} has already been created", escape_control(.0))]
    PathExists(String),
    /// A unix socket needs an absolute path.
    #[error("Absolute path required for Unix sockets")]
    PathNotAbsolute,
    /// The address cannot be bound; `reason` as the system words it.
    #[error("Bind failed on {}:{port}: [Errno {errno}] {reason}", escape_control(.host))]
    BindFailed {
        /// As asked for.
        host: String,
        /// As asked for.
        port: u16,
        /// The system's number.
        errno: i32,
        /// The system's words.
        reason: String,
    },
    /// The path cannot be bound; `reason` as the system words it.
    #[error("Bind failed: [Errno {errno}] {reason}")]
    BindPathFailed {
        /// The system's number.
        errno: i32,
        /// The system's words.
        reason: String,
    },
    /// An argument refers to a socket there is none of.
    #[error("Socket {} not found", escape_control(.0))]
    SocketNotFound(String),
    /// A reference without its closing parenthesis.
    #[error("Process for {0} argument starts with \"$(socket.\" but has no closing parenthesis")]
    ReferenceUnclosed(Name),
    /// A reference that does not say which number is meant.
    #[error("You forgot to specify either \".port\" or \".fileno\" after the name")]
    ReferenceWithoutPart,
}

impl Error {
    /// The code of this error in the JSON dialect.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::UnknownCommand(_)
            | Self::BadSecondWord { .. }
            | Self::MissingSecondWord { .. }
            | Self::Abbreviated => ErrorCode::UnknownOp,
            Self::ValueWithoutName
            | Self::SocketWithoutName
            | Self::ProcessWithoutName
            | Self::RemoveAllValues
            | Self::RemoveAllSockets
            | Self::Name(_)
            | Self::UnknownOption { .. }
            | Self::BadOption(_)
            | Self::RlimitValue { .. }
            | Self::UnknownRlimit(_)
            | Self::UnexpectedWord(_)
            | Self::NotUtf8
            | Self::NoCommand
            | Self::UserId(_)
            | Self::UserName(_)
            | Self::Group(_)
            | Self::PathNotAbsolute
            | Self::ReferenceUnclosed(_)
            | Self::ReferenceWithoutPart => ErrorCode::Invalid,
            Self::Refused(failure) => failure.code,
            Self::NotFound(_) | Self::NothingToWatch | Self::SocketNotFound(_) => {
                ErrorCode::NotFound
            }
            Self::BadCommand(_) | Self::BadWorkingDir(_) => ErrorCode::SpawnFailed,
            Self::ProcessExists { .. } | Self::SocketExists { .. } | Self::PathExists(_) => {
                ErrorCode::Exists
            }
            Self::BindFailed { .. } | Self::BindPathFailed { .. } => ErrorCode::BindFailed,
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::new(error.code(), &error.to_string())
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        Self::Refused(failure)
    }
}
