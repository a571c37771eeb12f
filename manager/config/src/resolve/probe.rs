//! `health`: how a running worker is asked whether it is well.
//!
//! Owns replacing the variables that the workers' final environment has; the form of the text is
//! `values::probe`'s, and its settings are read with the other keys of the table.

use std::time::Duration;

use crate::environment::Lookup;
use crate::fields::Fields;
use crate::resolve::command;
use crate::types::{HealthCheck, HealthProbe};
use crate::values::probe;

/// A health check that its settings can be read into; none without `health`.
pub(super) fn unasked(fields: &Fields<'_>) -> Option<HealthCheck> {
    fields.filled("health")?;
    Some(HealthCheck {
        probe: HealthProbe::Tcp(String::new()),
        interval: Duration::ZERO,
        timeout: Duration::ZERO,
        retries: 0,
    })
}

/// `settings` with what `health` asks; `last` knows the workers' final environment.
pub(super) fn health(
    settings: Option<HealthCheck>,
    fields: &mut Fields<'_>,
    last: &Lookup,
    working_dir: &str,
) -> Option<HealthCheck> {
    let text = command::expanded(fields, "health", last, working_dir)?;
    let probe = fields.parsed("health", |_| probe::health(&text))?;
    Some(HealthCheck { probe, ..settings? })
}
