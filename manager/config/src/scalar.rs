//! Single values: text to bool, number, duration, mask, limit, time format.
//!
//! Owns what each form accepts and how the refusal reads; knows no key. Texts are those Python's
//! `int`, `float` and Circus's `to_bool` take, plus fractions of a second.
//! Invariant: every error is one clause that says what is accepted; the caller adds key and value.

use std::time::Duration;

use chrono::format::{Item, StrftimeItems};

use papa_protocol::process::Rlimit;

/// Longest duration a file can ask for: a century is for ever and far from any overflow.
const MAX_SECONDS: f64 = 100.0 * 366.0 * 24.0 * 3600.0;

/// Names the kernel knows limits by.
pub const RLIMIT_NAMES: [&str; 16] = [
    "as",
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

/// `yes true on 1` or `no false off 0` in any case.
///
/// # Errors
/// Anything else.
pub fn boolean(text: &str) -> Result<bool, String> {
    match text.trim().to_lowercase().as_str() {
        "yes" | "true" | "on" | "1" => Ok(true),
        "no" | "false" | "off" | "0" => Ok(false),
        _ => Err("expected yes, true, on or 1, or no, false, off or 0".to_owned()),
    }
}

/// A whole number from `min` to `max`.
///
/// # Errors
/// Not a whole number, or out of range.
pub fn whole(text: &str, min: i64, max: i64) -> Result<i64, String> {
    text.trim()
        .replace('_', "")
        .parse()
        .ok()
        .filter(|number| (min..=max).contains(number))
        .ok_or_else(|| format!("expected a whole number from {min} to {max}"))
}

/// Seconds, fractions allowed, not negative.
///
/// # Errors
/// Not a number, negative, or absurdly large.
pub fn seconds(text: &str) -> Result<Duration, String> {
    match text.trim().parse::<f64>() {
        Ok(seconds) if (0.0..=MAX_SECONDS).contains(&seconds) => {
            Ok(Duration::from_secs_f64(seconds))
        }
        _ => Err("expected seconds like 10 or 0.5".to_owned()),
    }
}

/// Shortest period that can be asked for: what is done every period must leave time for everything
/// else.
pub const MIN_PERIOD: Duration = Duration::from_millis(10);

/// Seconds of something that repeats or must be given a chance: not 0.
///
/// # Errors
/// Not a number, too small, or absurdly large.
pub fn period(text: &str) -> Result<Duration, String> {
    seconds(text)
        .ok()
        .filter(|period| *period >= MIN_PERIOD)
        .ok_or_else(|| {
            format!(
                "expected seconds like 10 or 0.5, at least {}",
                MIN_PERIOD.as_secs_f64()
            )
        })
}

/// An octal mask: `022`.
///
/// # Errors
/// Not octal, or above 777.
pub fn octal_mask(text: &str) -> Result<u32, String> {
    let digits = text.trim();
    let digits = digits.strip_prefix("0o").unwrap_or(digits);
    u32::from_str_radix(digits, 8)
        .ok()
        .filter(|mask| *mask <= 0o777)
        .ok_or_else(|| "expected an octal mask like 022, at most 0777".to_owned())
}

/// A limit: a number, or nothing, -1, `unlimited` or `infinity` for no limit.
///
/// # Errors
/// Anything else.
pub fn rlimit(text: &str) -> Result<Rlimit, String> {
    match text.trim().to_lowercase().as_str() {
        "" | "-1" | "unlimited" | "infinity" => Ok(Rlimit::both(None)),
        number => number
            .replace('_', "")
            .parse()
            .map(|limit| Rlimit::both(Some(limit)))
            .map_err(|_| "expected a whole number, or nothing for no limit".to_owned()),
    }
}

/// A strftime format as the log writer's formatter takes it, and the conversions it does not know,
/// which are printed as they are, as the C library does.
#[must_use]
pub fn time_format(text: &str) -> (String, Vec<String>) {
    let mut format = String::with_capacity(text.len());
    let mut unknown = Vec::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            format.push(c);
            continue;
        }
        // Flags stand between the percent sign and its letter: `%-d`.
        let mut conversion = String::from('%');
        for next in chars.by_ref() {
            conversion.push(next);
            if !matches!(next, '-' | '_' | '0') {
                break;
            }
        }
        if conversion == "%f" {
            // Microseconds in Python, nanoseconds here.
            format.push_str("%6f");
        } else if conversion.len() > 1
            && StrftimeItems::new(&conversion).all(|item| !matches!(item, Item::Error))
        {
            format.push_str(&conversion);
        } else {
            format.push_str(&conversion.replace('%', "%%"));
            unknown.push(conversion);
        }
    }
    (format, unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn booleans_are_circus_words() {
        assert_eq!(boolean(" True "), Ok(true));
        assert_eq!(boolean("OFF"), Ok(false));
        for text in ["", "y", "2", "none"] {
            assert!(boolean(text).is_err(), "{text}");
        }
    }

    #[test]
    fn numbers_stay_in_range() {
        assert_eq!(whole(" +1_000 ", 0, 5000), Ok(1000));
        for text in ["", "x", "1.5", "-1", "5001", "99999999999999999999"] {
            assert!(whole(text, 0, 5000).is_err(), "{text}");
        }
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        for text in ["", "-1", "nan", "inf", "1e99", "5s"] {
            assert!(seconds(text).is_err(), "{text}");
        }
        assert_eq!(period("0.01"), Ok(Duration::from_millis(10)));
        for text in ["0", "0.009", "-1", "x"] {
            assert!(period(text).is_err(), "{text}");
        }
        assert_eq!(octal_mask("022"), Ok(0o22));
        for text in ["", "8", "1000", "-1"] {
            assert!(octal_mask(text).is_err(), "{text}");
        }
        assert_eq!(rlimit(""), Ok(Rlimit::both(None)));
        assert_eq!(rlimit("4096"), Ok(Rlimit::both(Some(4096))));
        assert!(rlimit("many").is_err());
    }

    #[test]
    fn time_formats_never_fail_later() {
        for (text, expected) in [
            ("%Y-%m-%d %H:%M:%S", "%Y-%m-%d %H:%M:%S"),
            ("%H:%M:%S.%f", "%H:%M:%S.%6f"),
            ("%-d %%f", "%-d %%f"),
            ("100%", "100%%"),
            ("%Q x", "%%Q x"),
        ] {
            let (format, _) = time_format(text);
            assert_eq!(format, expected);
            // Formatting panics on an item it does not know.
            let _ = chrono::Local::now().format(&format).to_string();
        }
        assert_eq!(time_format("%Q%").1, ["%Q", "%"]);
    }

    proptest::proptest! {
        #[test]
        fn any_time_format_can_be_printed(text in "[%a-zA-Z0-9#:+._é-]{0,12}") {
            let _ = chrono::Local::now().format(&time_format(&text).0).to_string();
        }
    }
}
