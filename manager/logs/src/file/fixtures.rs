//! What tests of one log file share: the position that their lines end at, and a later moment.

use std::time::{Duration, Instant};

use crate::layout::{Delta, Kind, Source};
use crate::schedule::Now;

pub(super) const DONE: Delta = Delta {
    source: Source {
        serial: 7,
        kind: Kind::Out,
    },
    position: 14,
};

pub(super) fn later() -> Now {
    Now {
        at: Instant::now() + Duration::from_secs(60),
        ..Now::read()
    }
}
