//! Values of `ready` and `health`: how a worker says, or is found, to serve.
//!
//! `$(circus.wid)` may stand in addresses and commands and stays for `render_text`, so an address
//! is checked as worker 1 would have it. Nobody is asked here.

use crate::render::render_text;
use crate::types::{HealthProbe, Readiness};
use crate::{scalar, target, words};

/// The first descriptor a worker can be told to write to; 0 to 2 are taken.
const MIN_READY_FD: u32 = 3;
/// Below the usual soft limit of descriptors, so that it can be there.
const MAX_READY_FD: u32 = 1023;

/// Largest memory of a compiled pattern, in bytes: thousands of times a real one.
const MAX_PATTERN_BYTES: usize = 1024 * 1024;

const EXPECTED_READY: &str =
    "expected notify, fd:N, tcp:HOST:PORT, http://HOST[:PORT]/PATH, log:REGEX or delay:SECONDS";
const EXPECTED_HEALTH: &str = "expected tcp:HOST:PORT, http://HOST[:PORT]/PATH or command:WORDS";

pub(crate) fn readiness(text: &str) -> Result<Readiness, String> {
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

pub(crate) fn health(text: &str) -> Result<HealthProbe, String> {
    let text = text.trim();
    if text.starts_with("http://") {
        return url(text).map(HealthProbe::Http);
    }
    match text.split_once(':') {
        Some(("tcp", text)) => address(text).map(HealthProbe::Tcp),
        Some(("command", line)) => {
            let words = words::split(line).map_err(|error| error.to_string())?;
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

/// The text of a readiness.
pub(crate) fn readiness_text(ready: &Readiness) -> String {
    match ready {
        Readiness::Notify => "notify".to_owned(),
        Readiness::Fd(number) => format!("fd:{number}"),
        Readiness::Tcp(address) => format!("tcp:{address}"),
        Readiness::Http(url) => url.clone(),
        Readiness::Log(pattern) => format!("log:{pattern}"),
        Readiness::Delay(time) => format!("delay:{}", time.as_secs_f64()),
    }
}

/// The text of a health probe.
pub(crate) fn health_text(probe: &HealthProbe) -> String {
    match probe {
        HealthProbe::Tcp(address) => format!("tcp:{address}"),
        HealthProbe::Http(url) => url.clone(),
        HealthProbe::Command(argv) => format!("command:{}", words::join(argv)),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

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
            assert_eq!(readiness(text), Ok(expected), "{text}");
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
            assert!(readiness(text).is_err(), "{text}");
        }
    }

    #[test]
    fn every_form_of_health() {
        assert_eq!(
            health("command: check 'a b' $(circus.wid)"),
            Ok(HealthProbe::Command(
                ["check", "a b", "$(circus.wid)"].map(str::to_owned).into()
            ))
        );
        assert_eq!(health("tcp:h:1"), Ok(HealthProbe::Tcp("h:1".into())));
        for text in ["command:", "command: 'open", "notify", "http://", "delay:1"] {
            assert!(health(text).is_err(), "{text}");
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
