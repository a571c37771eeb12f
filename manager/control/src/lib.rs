//! What the manager and papactl share: what they say to each other over the private control socket.
//!
//! | module | what it owns |
//! |---|---|
//! | `request`, `properties`, `selection`, `options` | requests: commands, their properties, which watchers, values of options |
//! | `reply`, `body` | replies: the envelope, what each holds |
//! | `last_words` | how a worker ended and what it wrote last, part of replies and events |
//! | `message` | all of these under one name, and the bounds |
//! | `client` | the side that asks |
//! | `stuck` | a manager that listens and does not answer is ended |
//!
//! Leaves to others: what a request does (`papa-manager`), what is printed (`papa-ctl`).
#![forbid(unsafe_code)]

pub mod body;
pub mod client;
pub mod last_words;
pub mod message;
pub mod options;
mod properties;
pub mod reply;
pub mod request;
pub mod selection;
pub mod stuck;
