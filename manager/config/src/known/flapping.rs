//! Options of the flapping plugin: `[plugin:NAME]`, and `flapping.` of a watcher.

use super::key::{self, Form, Key};
use crate::scalar;
use crate::types::FlappingConfig;

type Section = FlappingConfig;

/// Most ends that can be counted: their times are kept.
const MAX_ATTEMPTS: i64 = 1000;

/// Options of the flapping plugin; with `flapping.` in front, keys of a watcher, which win.
pub const FLAPPING: &[Key<FlappingConfig>] = &[
    number!("attempts", 1, MAX_ATTEMPTS, attempts)
        .default("2")
        .meaning("so many ends within `window` are too many; commanded stops never count")
        .example("3"),
    seconds!("window", window)
        .default("1")
        .meaning("see `attempts`")
        .example("10"),
    seconds!("retry_in", retry_in)
        .default("7")
        .meaning("how long the watcher then pauses")
        .example("30"),
    number_or_ever!("max_retry", max_retry)
        .default("5")
        .meaning("after so many pauses the watcher is stopped for good")
        .example("-1"),
    Key::new("active", Form::YesNo)
        .default("yes")
        .meaning("no: this watcher is not judged")
        .example("no"),
];
