//! The manager's end of the control socket, and the events it tells of. What travels there is the
//! crate `papa-control`.
//!
//! | module | what it owns |
//! |---|---|
//! | `server`, `sessions` | the socket; its connections, bounded |
//! | `events` | what happened, for whoever listens |

pub use papa_control::{body, client, message, options, reply, request, selection, stuck};

pub mod events;
pub mod server;
mod sessions;
