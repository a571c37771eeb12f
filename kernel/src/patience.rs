//! How long others are waited for before they are taken to be stuck.

pub use papa_protocol::patience::scaled;
