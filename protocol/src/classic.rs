//! The classic dialect: papa 1.0.6's lines, prompt and frames, its listed defects fixed.
//!
//! Owns parsing a line into a typed [`Request`], rendering replies and frames byte by byte as
//! papa's client expects them, the texts of errors, and help. Sockets and processes are asked for
//! through the same structs as in the JSON dialect, so the kernel acts on one kind of request.
//! Source: protocol/README.md, "Classic dialect".

mod error;
mod help;
mod reply;
mod request;

pub use error::Error;
pub use reply::{
    BANNER, EXITING, KERNEL_ENDS, NOT_IDLE, NOTHING_LEFT, PROMPT, QUIT_REPLY, STOPPED,
    WATCH_BATCH_END, WATCH_HINT, finish, finish_error, process_line, socket_line, value_line,
    value_text, watch_closed, watch_output, watching,
};
pub use request::{Kind, Request, parse, parse_bytes};
