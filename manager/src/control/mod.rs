//! How the manager is told what to do: JSON lines over a private unix socket.
//!
//! | module | what it owns |
//! |---|---|
//! | `request`, `properties`, `selection`, `options` | requests: commands, their properties, which watchers, values of options |
//! | `reply`, `body` | replies: the envelope, what each holds |
//! | `message` | all of these under one name, and the bounds |
//! | `events` | what happened, for whoever listens |
//! | `client`, `server` | the side `papactl` uses; the manager's side |
//! | `stuck` | a manager that listens and does not answer is ended |

pub mod body;
pub mod client;
pub mod events;
pub mod message;
pub mod options;
mod properties;
pub mod reply;
pub mod request;
pub mod selection;
pub mod server;
mod sessions;
pub(crate) mod stuck;
