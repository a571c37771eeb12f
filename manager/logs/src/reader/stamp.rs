//! When a line of a log file was written, as the line itself says.
//!
//! Owns the reading of prefixes and of JSON lines' `time`; opens no file. A format without a year
//! or a day is completed from a later moment: the file's last write, or the line behind.
//! Source: manager/docs/logs.md.

use chrono::format::{Item, Parsed, parse};
use chrono::{DateTime, Datelike, Days, Local, NaiveDateTime, TimeDelta, TimeZone, Utc};

use papa_system::civil;

use crate::form::LineForm;
use crate::prefix;

/// Bytes of a line's beginning that are searched for its time; no prefix is longer.
pub(super) const HEAD_BYTES: usize = prefix::MAX_PREFIX_BYTES;
/// How far lines that were captured together may be apart in the wrong order.
const DISORDER: TimeDelta = TimeDelta::minutes(1);

/// How the lines of a file say when they were written.
#[derive(Debug, Clone)]
pub enum Stamps {
    /// Lines without a time.
    None,
    /// The member `time` of a JSON object.
    Json,
    /// The prefix `TIME [PID] | `.
    Prefix {
        /// The parts of TIME.
        items: Vec<Item<'static>>,
        /// What the format does not show.
        unit: TimeDelta,
    },
}

impl Stamps {
    /// For lines of this form.
    #[must_use]
    pub fn of(form: Option<&LineForm>) -> Self {
        match form {
            Some(LineForm::Json) => Self::Json,
            Some(LineForm::Stamped { time_format }) => match prefix::items(time_format) {
                Some(items) => Self::Prefix {
                    items,
                    unit: unit(time_format),
                },
                None => Self::None,
            },
            None | Some(LineForm::Plain | LineForm::Kernel | LineForm::Nowhere) => Self::None,
        }
    }

    /// Whether lines say anything.
    pub(super) fn exist(&self) -> bool {
        !matches!(self, Self::None)
    }

    /// The moment from which a line belongs to those since `since`: what the format cuts off counts
    /// for the line.
    pub(super) fn floor(&self, since: DateTime<Utc>) -> DateTime<Utc> {
        match self {
            Self::None | Self::Json => since,
            Self::Prefix { unit, .. } => {
                let part = since.timestamp_micros().rem_euclid(micros(*unit));
                since - TimeDelta::microseconds(part)
            }
        }
    }

    /// The moment of the line that begins with `head`, no later than `latest` where a choice is to
    /// be made.
    pub(super) fn read(&self, head: &[u8], latest: DateTime<Utc>) -> Option<DateTime<Utc>> {
        match self {
            Self::None => None,
            Self::Json => {
                const KEY: &[u8] = b"\"time\":\"";
                let at = head.windows(KEY.len()).position(|bytes| bytes == KEY)?;
                let value = head.get(at + KEY.len()..)?;
                let end = value.iter().position(|byte| *byte == b'"')?;
                let text = std::str::from_utf8(value.get(..end)?).ok()?;
                Some(DateTime::parse_from_rfc3339(text).ok()?.to_utc())
            }
            Self::Prefix { items, .. } => {
                let text = std::str::from_utf8(time_of(head)?).ok()?;
                let mut parsed = Parsed::new();
                parse(&mut parsed, text, items.iter()).ok()?;
                complete(&parsed, latest)
            }
        }
    }

    /// Whether a moment can be told without knowing a later one.
    pub(super) fn are_complete(&self) -> bool {
        match self {
            Self::None => false,
            Self::Json => true,
            Self::Prefix { items, .. } => {
                let sample = Local::now();
                let text = sample.format_with_items(items.iter()).to_string();
                let mut parsed = Parsed::new();
                parse(&mut parsed, &text, items.iter()).is_ok()
                    && (parsed.timestamp().is_some()
                        || parsed.to_naive_datetime_with_offset(0).is_ok())
            }
        }
    }
}

/// What stands before ` [PID] | `.
fn time_of(head: &[u8]) -> Option<&[u8]> {
    let mut from = 0;
    while let Some(found) = head
        .get(from..)?
        .windows(2)
        .position(|bytes| bytes == b" [")
    {
        let at = from + found;
        let behind = head.get(at + 2..)?;
        let digits = behind
            .iter()
            .take_while(|byte| byte.is_ascii_digit())
            .count();
        if digits > 0 && behind.get(digits..)?.starts_with(b"] | ") {
            return head.get(..at);
        }
        from = at + 1;
    }
    None
}

/// Adds what the format leaves out such that the moment is the last one not after `latest`.
fn complete(parsed: &Parsed, latest: DateTime<Utc>) -> Option<DateTime<Utc>> {
    if let Some(seconds) = parsed.timestamp() {
        return Some(civil::utc(seconds));
    }
    if let Ok(moment) = parsed.to_naive_datetime_with_offset(0) {
        return local(moment);
    }
    let limit = civil::within(latest).checked_add_signed(DISORDER)?;
    let known = limit.with_timezone(&Local);
    if parsed.month().is_some() && parsed.day().is_some() {
        return [known.year(), known.year() - 1]
            .into_iter()
            .find_map(|year| {
                let mut whole = parsed.clone();
                whole.set_year(i64::from(year)).ok()?;
                local(whole.to_naive_datetime_with_offset(0).ok()?)
                    .filter(|moment| *moment <= limit)
            });
    }
    let time = parsed.to_naive_time().ok()?;
    let today = known.date_naive();
    [Some(today), today.checked_sub_days(Days::new(1))]
        .into_iter()
        .flatten()
        .find_map(|date| local(date.and_time(time)).filter(|moment| *moment <= limit))
}

/// The later of two where a clock put back shows a time twice: too much is shown rather than too
/// little.
fn local(moment: NaiveDateTime) -> Option<DateTime<Utc>> {
    let moment = Local.from_local_datetime(&moment).latest()?;
    Some(moment.to_utc())
}

fn unit(time_format: &str) -> TimeDelta {
    let has = |words: &[&str]| words.iter().any(|word| time_format.contains(word));
    if has(&["%f"]) {
        TimeDelta::microseconds(1)
    } else if has(&["%S", "%T", "%X", "%c", "%s", "%r"]) {
        TimeDelta::seconds(1)
    } else {
        TimeDelta::minutes(1)
    }
}

fn micros(unit: TimeDelta) -> i64 {
    unit.num_microseconds().unwrap_or(1).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prefix::Prefix;

    const AT: i64 = 1_795_315_366_978_956;

    fn utc(micros: i64) -> DateTime<Utc> {
        DateTime::from_timestamp_micros(micros).unwrap()
    }

    fn stamps(time_format: &str) -> Stamps {
        Stamps::of(Some(&LineForm::Stamped {
            time_format: time_format.to_owned(),
        }))
    }

    fn read(time_format: &str, latest: DateTime<Utc>) -> Option<i64> {
        let mut line = Prefix::new(time_format).at(AT, 42).to_vec();
        line.extend_from_slice(b"text [7] | more");
        let moment = stamps(time_format).read(&line, latest)?;
        Some(moment.timestamp_micros())
    }

    #[test]
    fn what_a_prefix_says_is_read_back() {
        let second = AT - AT % 1_000_000;
        let anything = utc(0);
        assert_eq!(read("%Y-%m-%d %H:%M:%S", anything), Some(second));
        assert_eq!(read("%Y-%m-%d %H:%M:%S.%f", anything), Some(AT));
        assert_eq!(read("\"%Y [%j] %H:%M:%S %Z\"", anything), Some(second));
        assert_eq!(read("%s", anything), Some(second));
        assert_eq!(read("%Y-%m-%d %H:%M", anything), Some(AT - AT % 60_000_000));
        assert_eq!(read("%Q", anything), None);
        assert_eq!(stamps("%Y").read(b"a line without", anything), None);
        assert_eq!(stamps("%Y").read(b" [", anything), None);
    }

    #[test]
    fn what_a_format_leaves_out_comes_from_a_later_moment() {
        let second = AT - AT % 1_000_000;
        let hours = |count: i64| utc(AT) + TimeDelta::hours(count);
        assert_eq!(read("%H:%M:%S", hours(0)), Some(second));
        assert_eq!(read("%H:%M:%S", hours(20)), Some(second));
        assert_eq!(read("%H:%M:%S", hours(-1)), Some(second - 86_400_000_000));
        assert_eq!(read("%b %d %H:%M:%S", hours(24 * 300)), Some(second));
        assert!(!stamps("%H:%M:%S").are_complete());
        assert!(!stamps("%b %d %H:%M:%S").are_complete());
        assert!(stamps("%Y-%m-%d %H:%M").are_complete());
    }

    #[test]
    fn json_lines_say_when() {
        let line = br#"{"time":"2026-11-22T19:00:00.123456+00:00","watcher":"web"}"#;
        let moment = Stamps::Json.read(line, utc(0)).unwrap();
        assert_eq!(moment.to_rfc3339(), "2026-11-22T19:00:00.123456+00:00");
        assert_eq!(Stamps::Json.read(br#"{"time":"yesterday"}"#, utc(0)), None);
        assert_eq!(Stamps::Json.read(br#"{"time":"20"#, utc(0)), None);
    }

    #[test]
    fn a_second_begins_at_its_beginning() {
        let floor = |format| stamps(format).floor(utc(AT)).timestamp_micros();
        assert_eq!(floor("%Y-%m-%d %H:%M:%S.%f"), AT);
        assert_eq!(floor("%Y-%m-%d %H:%M:%S"), AT - AT % 1_000_000);
        assert_eq!(floor("%H:%M"), AT - AT % 60_000_000);
    }
}
