//! What becomes of workers that end often or live long: `backoff_*`, `flapping.*`, `max_age*`.
//!
//! Owns reading them, and the defaults a `[plugin:…]` section of Circus's flapping plugin gives;
//! `backoff` and the watcher act on them.
//! Source: Circus 0.17.2's `Flapping` plugin.

use std::time::Duration;

use crate::fields::Fields;
use crate::known;
use crate::scalar;
use crate::types::{BackoffConfig, FlappingConfig};

/// The plugin's class, and as older files have it.
const FLAPPING_CLASSES: [&str; 2] = [
    "circus.plugins.flapping.Flapping",
    "circus.plugins.Flapping",
];

/// Most ends that can be counted: their times are kept.
const MAX_ATTEMPTS: i64 = 1000;

/// Circus's default.
const DEFAULT_MAX_AGE_VARIANCE: Duration = Duration::from_secs(30);

/// What the plugin judges by unless told otherwise.
const DEFAULT_FLAPPING: FlappingConfig = FlappingConfig {
    attempts: 2,
    window: Duration::from_secs(1),
    retry_in: Duration::from_secs(7),
    max_retry: Some(5),
};

/// What holds for watchers without `flapping.*` keys of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlappingDefaults {
    /// Watchers without such keys are judged too.
    active: bool,
    values: FlappingConfig,
}

impl Default for FlappingDefaults {
    /// As without the plugin's section.
    fn default() -> Self {
        Self {
            active: false,
            values: DEFAULT_FLAPPING,
        }
    }
}

/// Whether a plugin's section means the flapping plugin.
pub(super) fn is_flapping_plugin(fields: &Fields<'_>) -> bool {
    fields
        .text("use")
        .is_some_and(|class| FLAPPING_CLASSES.contains(&class.trim()))
}

/// Reads the flapping plugin's section.
pub(super) fn flapping_plugin(fields: &mut Fields<'_>) -> FlappingDefaults {
    fields.report_keys(known::FLAPPING, "");
    FlappingDefaults {
        active: fields.boolean("active", true),
        values: flapping_values(fields, "", DEFAULT_FLAPPING),
    }
}

/// A watcher's `flapping.*`; none if it is not judged.
pub(super) fn flapping(
    fields: &mut Fields<'_>,
    defaults: FlappingDefaults,
) -> Option<FlappingConfig> {
    const PREFIX: &str = "flapping.";
    fields.report_keys(known::FLAPPING, PREFIX);
    let mentioned = fields
        .entries()
        .iter()
        .any(|entry| entry.key.starts_with(PREFIX));
    let active = fields.boolean("flapping.active", defaults.active || mentioned);
    let values = flapping_values(fields, PREFIX, defaults.values);
    active.then_some(values)
}

fn flapping_values(
    fields: &mut Fields<'_>,
    prefix: &str,
    defaults: FlappingConfig,
) -> FlappingConfig {
    let key = |name: &str| format!("{prefix}{name}");
    FlappingConfig {
        attempts: fields
            .whole(&key("attempts"), 1, MAX_ATTEMPTS)
            .unwrap_or(defaults.attempts),
        window: fields.seconds(&key("window"), defaults.window),
        retry_in: fields.seconds(&key("retry_in"), defaults.retry_in),
        max_retry: fields
            .whole::<i64>(&key("max_retry"), -1, i64::from(i32::MAX))
            // -1 means never to give up.
            .map_or(defaults.max_retry, |number| u32::try_from(number).ok()),
    }
}

/// `backoff_first`, `backoff_max` and `backoff_reset`.
pub(super) fn backoff(fields: &mut Fields<'_>) -> BackoffConfig {
    let defaults = BackoffConfig::default();
    let first = fields.parsed("backoff_first", scalar::period);
    let max = fields.parsed("backoff_max", scalar::period);
    let config = BackoffConfig {
        first: first.unwrap_or(defaults.first),
        max: max.unwrap_or(defaults.max),
        reset: fields.seconds("backoff_reset", defaults.reset),
    };
    if config.first > config.max
        && let Some(origin) = fields
            .origin("backoff_first")
            .or_else(|| fields.origin("backoff_max"))
    {
        fields.findings.error(
            origin,
            format!(
                "backoff_first {}: expected at most backoff_max, which is {}",
                config.first.as_secs_f64(),
                config.max.as_secs_f64()
            ),
        );
    }
    config
}

/// `max_age`, none when it is 0, and `max_age_variance`.
pub(super) fn max_age(fields: &mut Fields<'_>) -> (Option<Duration>, Duration) {
    let age = fields.seconds("max_age", Duration::ZERO);
    let variance = fields.seconds("max_age_variance", DEFAULT_MAX_AGE_VARIANCE);
    ((!age.is_zero()).then_some(age), variance)
}
