//! What the supervisor has others do: requests to the kernel, each on a tokio task that answers with
//! an event.
//!
//! Owns no state. Invariant: every task ends by itself, and a request the kernel did not answer is
//! repeated only where that is harmless.

use std::time::Duration;

mod attaching;
mod cleaning;
mod exchange;
mod saving;
mod sockets;
mod waiting;
mod workers;

pub(super) use attaching::{attach, list_again};
pub(super) use cleaning::clean_up;
pub(super) use exchange::{Exchange, Replacement, abandon_change, change_sockets};
pub(super) use saving::send_saves;
pub(super) use sockets::{
    ask_whose_path, bind_anew, make_sockets_again, remove_own_sockets, remove_sockets, watch_paths,
};
pub(super) use workers::{Kills, Order, kill, order_tree, signal, start, stop, stop_reach};

/// Pause before a request is repeated that the kernel did not answer.
const KERNEL_AGAIN: Duration = Duration::from_millis(50);
/// How long the kernel may hold the claim of a manager that was killed, and how long it gets to
/// close the last sockets.
const KERNEL_PATIENCE: Duration = Duration::from_secs(5);
/// How long a start, a stop or a change of the sockets waits until what it follows from is kept.
const KEPT_PATIENCE: Duration = Duration::from_secs(5);
