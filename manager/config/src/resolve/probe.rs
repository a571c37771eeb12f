//! `ready` and `health`: how a worker says, or is found, to serve.
//!
//! Owns the forms of both texts, but for addresses, which are `probe::target`'s; nobody is asked
//! here. `$(circus.wid)` may stand in addresses and commands and stays for `render_text`, so an
//! address is checked as worker 1 would have it.

use std::time::Duration;

use crate::environment::Lookup;
use crate::fields::Fields;
use crate::render::render_text;
use crate::resolve::command;
use crate::scalar;
use crate::target;
use crate::types::{HealthCheck, HealthProbe, Readiness};

/// As long as Circus gives a worker to end.
const DEFAULT_READY_TIMEOUT: Duration = Duration::from_secs(30);
/// From one health check to the next: an ill worker is noticed within half a minute.
const DEFAULT_HEALTH_INTERVAL: Duration = Duration::from_secs(10);
/// Far longer than a worker that is well takes to answer.
const DEFAULT_HEALTH_TIMEOUT: Duration = Duration::from_secs(5);
/// One failed check may be a busy moment, three are none.
const DEFAULT_HEALTH_RETRIES: u32 = 3;
/// Most failures in a row that can be asked for.
const MAX_HEALTH_RETRIES: i64 = 1000;

/// The first descriptor a worker can be told to write to; 0 to 2 are taken.
const MIN_READY_FD: u32 = 3;
/// Below the usual soft limit of descriptors, so that it can be there.
const MAX_READY_FD: u32 = 1023;

/// Largest memory of a compiled pattern, in bytes: thousands of times a real one.
const MAX_PATTERN_BYTES: usize = 1024 * 1024;

const EXPECTED_READY: &str =
    "expected notify, fd:N, tcp:HOST:PORT, http://HOST[:PORT]/PATH, log:REGEX or delay:SECONDS";
const EXPECTED_HEALTH: &str = "expected tcp:HOST:PORT, http://HOST[:PORT]/PATH or command:WORDS";

/// `ready` and `ready_timeout`.
pub(super) fn readiness(fields: &mut Fields<'_>) -> (Option<Readiness>, Duration) {
    let ready = fields
        .filled("ready")
        .and_then(|_| fields.parsed("ready", parse_readiness));
    let timeout = fields
        .parsed("ready_timeout", scalar::period)
        .unwrap_or(DEFAULT_READY_TIMEOUT);
    (ready, timeout)
}

/// `health` and its settings; `last` knows the workers' final environment.
pub(super) fn health(
    fields: &mut Fields<'_>,
    last: &Lookup,
    working_dir: &str,
) -> Option<HealthCheck> {
    let interval = fields.parsed("health_interval", scalar::period);
    let timeout = fields.parsed("health_timeout", scalar::period);
    let retries = fields.whole("health_retries", 1, MAX_HEALTH_RETRIES);
    fields.filled("health")?;
    let text = command::expanded(fields, "health", last, working_dir)?;
    let probe = fields.parsed("health", |_| parse_health(&text))?;
    Some(HealthCheck {
        probe,
        interval: interval.unwrap_or(DEFAULT_HEALTH_INTERVAL),
        timeout: timeout.unwrap_or(DEFAULT_HEALTH_TIMEOUT),
        retries: retries.unwrap_or(DEFAULT_HEALTH_RETRIES),
    })
}

fn parse_readiness(text: &str) -> Result<Readiness, String> {
    let text = text.trim();
    if text == "notify" {
        return Ok(Readiness::Notify);
    }
    if text.starts_with("http://") {
        return url(text).map(Readiness::Http);
    }
    match text.split_once(':') {
        Some(("fd", number)) => number
            .trim()
            .parse()
            .ok()
            .filter(|number| (MIN_READY_FD..=MAX_READY_FD).contains(number))
            .map(Readiness::Fd)
            .ok_or_else(|| {
                format!("expected fd: and a number from {MIN_READY_FD} to {MAX_READY_FD}")
            }),
        Some(("tcp", text)) => address(text).map(Readiness::Tcp),
        Some(("log", pattern)) => log_pattern(pattern).map(Readiness::Log),
        Some(("delay", seconds)) => scalar::seconds(seconds).map(Readiness::Delay),
        _ => Err(EXPECTED_READY.to_owned()),
    }
}

fn parse_health(text: &str) -> Result<HealthProbe, String> {
    let text = text.trim();
    if text.starts_with("http://") {
        return url(text).map(HealthProbe::Http);
    }
    match text.split_once(':') {
        Some(("tcp", text)) => address(text).map(HealthProbe::Tcp),
        Some(("command", line)) => {
            let words = crate::words::split(line).map_err(|error| error.to_string())?;
            if words.is_empty() {
                return Err("expected a program and its arguments after command:".to_owned());
            }
            Ok(HealthProbe::Command(words))
        }
        _ => Err(EXPECTED_HEALTH.to_owned()),
    }
}

fn address(text: &str) -> Result<String, String> {
    let text = text.trim();
    match target::tcp(&render_text(text, 1)) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(format!("expected {}", error.expected())),
    }
}

fn url(text: &str) -> Result<String, String> {
    match target::http(&render_text(text, 1)) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(format!("expected {}", error.expected())),
    }
}

fn log_pattern(pattern: &str) -> Result<String, String> {
    if pattern.is_empty() {
        return Err("expected a regular expression after log:".to_owned());
    }
    regex_lite::RegexBuilder::new(pattern)
        .size_limit(MAX_PATTERN_BYTES)
        .build()
        .map_err(|error| format!("expected a regular expression after log:, {error}"))?;
    Ok(pattern.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_readiness() {
        for (text, expected) in [
            ("notify", Readiness::Notify),
            ("fd:3", Readiness::Fd(3)),
            ("tcp:127.0.0.1:80", Readiness::Tcp("127.0.0.1:80".into())),
            (
                "tcp:[::1]:809$(circus.wid)",
                Readiness::Tcp("[::1]:809$(circus.wid)".into()),
            ),
            (
                "http://localhost/up",
                Readiness::Http("http://localhost/up".into()),
            ),
            ("http://[::1]:80", Readiness::Http("http://[::1]:80".into())),
            (
                "http://h:8$(circus.wid)/?a=b",
                Readiness::Http("http://h:8$(circus.wid)/?a=b".into()),
            ),
            (
                "http://unix:/run/w$(circus.wid).sock:/up",
                Readiness::Http("http://unix:/run/w$(circus.wid).sock:/up".into()),
            ),
            (
                "tcp:unix:/run/w.sock",
                Readiness::Tcp("unix:/run/w.sock".into()),
            ),
            ("log: ready$", Readiness::Log(" ready$".into())),
            ("delay: 0.5", Readiness::Delay(Duration::from_millis(500))),
        ] {
            assert_eq!(parse_readiness(text), Ok(expected), "{text}");
        }
        for text in [
            "yes",
            "fd:2",
            "fd:1024",
            "fd:x",
            "tcp:80",
            "tcp::80",
            "tcp:h:0",
            "tcp:h:+1",
            "tcp:h:70000",
            "http://",
            "http:///x",
            "http://h:x/",
            "http://a b/",
            "https://h/",
            "http://unix:w.sock",
            "tcp:unix:w.sock",
            "log:",
            "log:(",
            "log:a{9999999}",
            "delay:-1",
            "delay:",
            "",
        ] {
            assert!(parse_readiness(text).is_err(), "{text}");
        }
    }

    #[test]
    fn every_form_of_health() {
        assert_eq!(
            parse_health("command: check 'a b' $(circus.wid)"),
            Ok(HealthProbe::Command(
                ["check", "a b", "$(circus.wid)"].map(str::to_owned).into()
            ))
        );
        assert_eq!(parse_health("tcp:h:1"), Ok(HealthProbe::Tcp("h:1".into())));
        for text in ["command:", "command: 'open", "notify", "http://", "delay:1"] {
            assert!(parse_health(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_bad_pattern_says_what_is_wrong_with_it() {
        let error = log_pattern("a(b").unwrap_err();
        assert!(
            error.ends_with("log:, found open group without closing ')'"),
            "{error}"
        );
    }
}
