//! Log files as people read them: the last lines, those since a moment, and what is added.
//!
//! Owns finding a file's earlier generations (`generations`), reading them while they are turned
//! (`tail`), which lines are wanted (`pick`), when a line was written (`stamp`), and the order of
//! several files' lines (`merge`). Only reads; where the lines are shown is the caller's.

mod generations;
mod merge;
mod pick;
mod stamp;
mod tail;

pub use merge::{Shown, merged};
pub use pick::Wanted;
pub use stamp::Stamps;
pub use tail::{Begun, Tail};
