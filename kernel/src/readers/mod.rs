//! Who reads output and events: sessions, their subscriptions, delivery and acknowledgement.

mod deliver;
pub mod session;
