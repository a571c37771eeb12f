//! What the manager and papactl share: what they say to each other over the private control socket,
//! finding the kernel, and following output that is in no file.
//!
//! | module | what it owns |
//! |---|---|
//! | `request`, `properties`, `selection`, `options` | requests: commands, their properties, which watchers, values of options |
//! | `reply`, `body` | replies: the envelope, what each holds |
//! | `last_words` | how a worker ended and what it wrote last, part of replies and events |
//! | `message` | all of these under one name, and the bounds |
//! | `client` | the side that asks |
//! | `kernel_search` | where the kernel may be, and who is there instead |
//! | `sources`, `live` | whose lines are shown: in which files, or followed in the kernel |
//! | `namespace` | one namespace of the kernel: its claim, the end of its processes |
//! | `note` | what the manager notes with each process it has the kernel start |
//! | `findings` | what `doctor` concludes from what the kernel says of itself |
//! | `stuck` | a manager that listens and does not answer is ended |
//!
//! Leaves to others: what a request does (`papa-manager`), what is printed (`papa-ctl`).
#![forbid(unsafe_code)]

pub mod body;
pub mod client;
pub mod findings;
pub mod kernel_search;
pub mod last_words;
pub mod live;
pub mod message;
pub mod namespace;
pub mod note;
pub mod options;
mod properties;
pub mod reply;
pub mod request;
pub mod selection;
pub mod sources;
pub mod stuck;
