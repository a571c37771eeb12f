//! How the manager is told what to do: JSON lines over a private unix socket.
//!
//! `message` is the language and `body` what replies hold, `client` the side `papactl` uses, `server` the manager's side.

pub mod body;
pub mod client;
pub mod message;
pub mod server;
