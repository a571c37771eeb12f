//! What is told of a process, in Circus's words.
//!
//! Owns the object's fields and how numbers are written. Pure.
//! Source: Circus's `Process.info` and `get_info`.

use std::time::Duration;

use serde::{Serialize, Serializer};

/// What stands for a value the system would not tell.
const UNKNOWN: &str = "N/A";
/// What stands for the priority of a process nobody has waited for.
const ZOMBIE: &str = "Zombie";
/// What stands for a process that is gone.
const GONE: &str = "No such process (stopped?)";
/// From which size on which letter is used; each is 1,024 times the one before.
const UNITS: [char; 8] = ['K', 'M', 'G', 'T', 'P', 'E', 'Z', 'Y'];

/// The answer for one process.
#[derive(Debug, Clone, PartialEq)]
pub enum Info {
    /// It is there.
    Process(Box<ProcessInfo>),
    /// It is not; serialized as the text Circus has for that.
    Gone,
}

impl Serialize for Info {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Process(info) => info.serialize(serializer),
            Self::Gone => serializer.serialize_str(GONE),
        }
    }
}

/// One process.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ProcessInfo {
    /// Resident memory: `12B`, `1.50M`.
    pub mem_info1: Known<Size>,
    /// Virtual memory.
    pub mem_info2: Known<Size>,
    /// Percent of one CPU since it was last asked for; 0 the first time.
    pub cpu: Known<f64>,
    /// Percent of the machine's memory.
    pub mem: Known<f64>,
    /// CPU time, user and system, of all its threads: `M:SS.ff`.
    pub ctime: Known<CpuTime>,
    /// Its number.
    pub pid: i32,
    /// Its user's name, or number if it has no name.
    pub username: Known<String>,
    /// Its priority.
    pub nice: Nice,
    /// File name of its program, as it was called.
    pub cmdline: Known<String>,
    /// When it was started, in seconds since the epoch.
    pub create_time: Known<f64>,
    /// Seconds since then.
    pub age: Known<f64>,
    /// When the kernel started it, in seconds since the epoch; workers only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started: Option<f64>,
    /// The worker's number; workers only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wid: Option<u32>,
    /// Its direct children, whose own are not listed.
    pub children: Vec<Self>,
}

/// A value, or `N/A`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known<T> {
    /// The value.
    Yes(T),
    /// The system would not tell.
    No,
}

impl<T> Known<T> {
    /// The value, if there is one.
    pub fn value(&self) -> Option<&T> {
        match self {
            Self::Yes(value) => Some(value),
            Self::No => None,
        }
    }

    pub(super) fn map<U>(self, change: impl FnOnce(T) -> U) -> Known<U> {
        match self {
            Self::Yes(value) => Known::Yes(change(value)),
            Self::No => Known::No,
        }
    }
}

impl<T> From<Option<T>> for Known<T> {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::No, Self::Yes)
    }
}

impl<T: Serialize> Serialize for Known<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Yes(value) => value.serialize(serializer),
            Self::No => serializer.serialize_str(UNKNOWN),
        }
    }
}

/// A priority from -20 to 19, or `Zombie`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nice {
    /// The priority.
    Value(i32),
    /// It has ended and nobody has waited for it.
    Zombie,
}

impl Serialize for Nice {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Value(value) => serializer.serialize_i32(*value),
            Self::Zombie => serializer.serialize_str(ZOMBIE),
        }
    }
}

/// An amount of memory in bytes, written with two decimals and a letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(pub u64);

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut unit = None;
        let mut divisor = 1_u64;
        for letter in UNITS {
            match divisor.checked_mul(1024) {
                Some(next) if next <= self.0 => (unit, divisor) = (Some(letter), next),
                _ => break,
            }
        }
        match unit {
            None => write!(f, "{}B", self.0),
            // Hundredths by integers: exact, where a float of the whole is not.
            Some(letter) => {
                let whole = self.0 / divisor;
                let rest = u128::from(self.0 % divisor);
                let hundredths = (rest * 100 + u128::from(divisor / 2)) / u128::from(divisor);
                let carried = whole + u64::from(hundredths == 100);
                write!(f, "{carried}.{:02}{letter}", hundredths % 100)
            }
        }
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// CPU time, written `M:SS.ff`. Unlike Circus's, hundredths have two digits always and minutes go
/// beyond 59.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuTime(pub Duration);

impl std::fmt::Display for CpuTime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let seconds = self.0.as_secs();
        let hundredths = self.0.subsec_millis() / 10;
        write!(f, "{}:{:02}.{hundredths:02}", seconds / 60, seconds % 60)
    }
}

impl Serialize for CpuTime {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Rounds to so many decimals.
pub(super) fn rounded(value: f64, decimals: i32) -> f64 {
    let factor = 10_f64.powi(decimals);
    (value * factor).round() / factor
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn sizes_as_circus_writes_them() {
        for (bytes, text) in [
            (0, "0B"),
            (1023, "1023B"),
            (1024, "1.00K"),
            (1536 * 1024, "1.50M"),
            (1_709_000, "1.63M"),
            ((1 << 20) - 1, "1024.00K"),
            (3 << 30, "3.00G"),
            (u64::MAX, "16.00E"),
        ] {
            assert_eq!(Size(bytes).to_string(), text);
        }
    }

    #[test]
    fn cpu_time_has_minutes_seconds_and_hundredths() {
        let text = |millis| CpuTime(Duration::from_millis(millis)).to_string();
        assert_eq!(text(0), "0:00.00");
        assert_eq!(text(1150), "0:01.15");
        assert_eq!(text(59_059), "0:59.05");
        assert_eq!(text(2 * 3_600_000), "120:00.00");
    }

    #[test]
    fn the_object_has_circuss_keys() {
        let mut info = ProcessInfo {
            mem_info1: Known::Yes(Size(1024)),
            mem_info2: Known::No,
            cpu: Known::Yes(0.5),
            mem: Known::Yes(0.007),
            ctime: Known::Yes(CpuTime(Duration::from_millis(10))),
            pid: 7,
            username: Known::Yes("root".into()),
            nice: Nice::Value(-3),
            cmdline: Known::Yes("sh".into()),
            create_time: Known::Yes(1.5),
            age: Known::No,
            started: Some(1.25),
            wid: Some(2),
            children: Vec::new(),
        };
        let child = ProcessInfo {
            started: None,
            wid: None,
            nice: Nice::Zombie,
            ..info.clone()
        };
        info.children.push(child);
        let value = serde_json::to_value(Info::Process(Box::new(info))).unwrap();
        let whole = json!({
            "mem_info1": "1.00K", "mem_info2": "N/A", "cpu": 0.5, "mem": 0.007, "ctime": "0:00.01", "pid": 7, "username": "root",
            "nice": -3, "cmdline": "sh", "create_time": 1.5, "age": "N/A", "started": 1.25, "wid": 2, "children": value["children"],
        });
        assert_eq!(value, whole);
        assert_eq!(value["children"][0]["nice"], "Zombie");
        assert_eq!(value["children"][0].get("wid"), None);
        let gone = serde_json::to_value(Info::Gone).unwrap();
        assert_eq!(gone, "No such process (stopped?)");
    }
}
