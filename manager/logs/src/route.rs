//! Where a stream's lines go, as far as the writer has to know.
//!
//! `routes` makes these from the configuration; the writer reads no configuration.

use regex_lite::Regex;

use crate::file::Limits;
use crate::format::Style;
use crate::sink::Address;

/// Where one stream's lines go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The file or daemon.
    pub to: Address,
    /// When a file is rotated. The first route to name a path decides.
    pub limits: Limits,
    /// What lines look like there.
    pub style: Style,
}

/// Where the two streams of a process go; a stream without a route is acknowledged unwritten.
#[derive(Debug, Clone, Default)]
pub struct Routes {
    /// Standard output.
    pub out: Option<Route>,
    /// Standard error.
    pub err: Option<Route>,
    /// What a line of either must match for the process to be ready.
    pub ready: Option<Regex>,
}
