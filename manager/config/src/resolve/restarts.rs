//! What becomes of workers that end often: `backoff_*`, `flapping.*`.
//!
//! Owns the defaults that a `[plugin:…]` section of Circus's flapping plugin gives, and which
//! watchers are judged; the watcher acts on them.
//! Source: Circus 0.17.2's `Flapping` plugin.

use crate::fields::{Around, Fields};
use crate::known;
use crate::types::{BackoffConfig, FlappingConfig, FlappingDefaults};

/// The plugin's class, and as older files have it.
const FLAPPING_CLASSES: [&str; 2] = [
    "circus.plugins.flapping.Flapping",
    "circus.plugins.Flapping",
];

/// Whether a plugin's section means the flapping plugin.
pub(super) fn is_flapping_plugin(fields: &Fields<'_>) -> bool {
    fields
        .text("use")
        .is_some_and(|class| FLAPPING_CLASSES.contains(&class.trim()))
}

/// Reads the flapping plugin's section; without one, `fields` are empty.
pub(super) fn flapping_plugin(fields: &mut Fields<'_>, around: Around<'_>) -> FlappingDefaults {
    fields.report_keys(known::FLAPPING, "");
    let mut values = FlappingConfig::default();
    fields.fill(known::FLAPPING, "", &mut values, around);
    let written = !fields.entries().is_empty();
    FlappingDefaults {
        active: written && fields.boolean("active", true),
        values,
    }
}

/// A watcher's `flapping.*`; none if it is not judged.
pub(super) fn flapping(
    fields: &mut Fields<'_>,
    defaults: FlappingDefaults,
    around: Around<'_>,
) -> Option<FlappingConfig> {
    const PREFIX: &str = "flapping.";
    fields.report_keys(known::FLAPPING, PREFIX);
    let mut entries = fields.entries().iter();
    let mentioned = entries.any(|entry| entry.key.starts_with(PREFIX));
    let active = fields.boolean("flapping.active", defaults.active || mentioned);
    let mut values = defaults.values;
    for key in known::FLAPPING {
        fields.fill_written(key, PREFIX, &mut values, around);
    }
    active.then_some(values)
}

/// Reports a first pause that is longer than the longest.
pub(super) fn check_backoff(backoff: &BackoffConfig, fields: &mut Fields<'_>) {
    if backoff.first > backoff.max
        && let Some(origin) = fields
            .origin("backoff_first")
            .or_else(|| fields.origin("backoff_max"))
    {
        fields.findings.error(
            origin,
            format!(
                "backoff_first {}: expected at most backoff_max, which is {}",
                backoff.first.as_secs_f64(),
                backoff.max.as_secs_f64()
            ),
        );
    }
}
