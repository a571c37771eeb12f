//! What `papactl` and the manager say to each other.
//!
//! Owns the bounds of the language and gathers its parts: `request`, `selection`, `options`
//! (properties with values of options), `reply`, `body`. Requests and replies have Circus's form,
//! so that scripts reading the JSON keep working; commands and fields beyond Circus's are
//! additions.
//! Source: manager/docs/control.md.

pub use crate::body::*;
pub use crate::options::OptionValues;
pub use crate::reply::{Errno, Reply, ReplyError, RequestError};
pub use crate::request::{Add, Command, Kill, Listen, Reach, ReloadHow, Request, Signal, Since};
pub use crate::selection::{Matcher, Matching, Selection};

/// Longest request line the manager reads, in bytes: names and options are short.
pub const MAX_REQUEST_BYTES: usize = 1024 * 1024;

/// Longest reply line `papactl` reads, in bytes: a status of 10,000 workers is well below.
pub const MAX_REPLY_BYTES: usize = 64 * 1024 * 1024;
