//! Callers: who is accepted, what they send and are sent, and how much memory that takes.

pub mod budget;
pub mod connection;
pub mod event;
pub mod exchange;
pub mod inbox;
pub mod record;
pub mod server;
pub mod transport;
