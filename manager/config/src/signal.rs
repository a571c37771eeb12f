//! Signals by name or number.
//!
//! Owns the names people write: with or without `SIG`, any case, `RTMIN+2`; sends nothing.
//! Source: signal(7); Circus's `to_signum`.

use std::fmt;
use std::str::FromStr;

use nix::sys::signal::Signal;

/// First real-time signal a program may use; the C library keeps the two before it.
const SIGRTMIN: i32 = 34;
/// Last real-time signal.
const SIGRTMAX: i32 = 64;

/// Other names of the same signals.
const ALIASES: [(&str, Signal); 3] = [
    ("SIGCLD", Signal::SIGCHLD),
    ("SIGPOLL", Signal::SIGIO),
    ("SIGIOT", Signal::SIGABRT),
];

/// A signal that exists: 1 to 64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SignalNumber(i32);

impl SignalNumber {
    /// Circus's default stop signal.
    pub const TERM: Self = Self(Signal::SIGTERM as i32);

    /// What nobody can ignore.
    pub const KILL: Self = Self(Signal::SIGKILL as i32);

    /// The number as the system calls take it.
    #[must_use]
    pub fn number(self) -> i32 {
        self.0
    }
}

/// What asks a worker to end unless told otherwise.
impl Default for SignalNumber {
    fn default() -> Self {
        Self::TERM
    }
}

/// A text that names no signal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected a signal like TERM, SIGQUIT, RTMIN+1 or a number from 1 to {SIGRTMAX}")]
pub struct UnknownSignal;

impl TryFrom<i32> for SignalNumber {
    type Error = UnknownSignal;

    fn try_from(number: i32) -> Result<Self, UnknownSignal> {
        if (1..=SIGRTMAX).contains(&number) {
            Ok(Self(number))
        } else {
            Err(UnknownSignal)
        }
    }
}

impl FromStr for SignalNumber {
    type Err = UnknownSignal;

    fn from_str(text: &str) -> Result<Self, UnknownSignal> {
        let text = text.trim();
        if let Ok(number) = text.parse::<i32>() {
            return Self::try_from(number);
        }
        let (name, offset) = match text.split_once('+') {
            Some((name, offset)) => (name, offset.parse::<u8>().map_err(|_| UnknownSignal)?),
            None => (text, 0),
        };
        let mut name = name.to_uppercase();
        if !name.starts_with("SIG") {
            name.insert_str(0, "SIG");
        }
        let base = match name.as_str() {
            "SIGRTMIN" => SIGRTMIN,
            "SIGRTMAX" => SIGRTMAX,
            name => match ALIASES.iter().find(|(alias, _)| *alias == name) {
                Some((_, signal)) => *signal as i32,
                None => Signal::from_str(name).map_err(|_| UnknownSignal)? as i32,
            },
        };
        Self::try_from(base + i32::from(offset))
    }
}

impl fmt::Display for SignalNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Signal::try_from(self.0) {
            Ok(signal) => f.write_str(signal.as_str()),
            Err(_) if self.0 == SIGRTMIN => f.write_str("SIGRTMIN"),
            Err(_) if self.0 > SIGRTMIN => write!(f, "SIGRTMIN+{}", self.0 - SIGRTMIN),
            Err(_) => write!(f, "{}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        for (text, number, shown) in [
            ("TERM", 15, "SIGTERM"),
            ("sigquit", 3, "SIGQUIT"),
            (" 9 ", 9, "SIGKILL"),
            ("RTMIN", 34, "SIGRTMIN"),
            ("SIGRTMIN+2", 36, "SIGRTMIN+2"),
            ("SIGCLD", 17, "SIGCHLD"),
        ] {
            let signal: SignalNumber = text.parse().unwrap();
            assert_eq!(
                (signal.number(), signal.to_string().as_str()),
                (number, shown)
            );
        }
        for text in ["", "0", "65", "-1", "NOPE", "TERM+x", "RTMAX+1", "SIG"] {
            assert_eq!(text.parse::<SignalNumber>(), Err(UnknownSignal), "{text}");
        }
    }
}
