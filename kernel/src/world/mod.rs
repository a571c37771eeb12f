//! What exists: the table of everything, the journal that records it, and the descriptors and output of live processes.

pub mod journal;
pub mod live;
pub mod reel;
pub mod table;
