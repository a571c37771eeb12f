//! Running processes: taking their output, noticing their ends, forgetting them.
//!
//! Functions of the world and the readers; nothing here knows a request or the event loop.

pub(crate) mod capture;
pub(crate) mod exits;
pub(crate) mod starts;
