//! When a log file is rotated by time, and what the rotated file is called.
//!
//! Owns the arithmetic of periods; reads no clock and no file. Invariant: a period's end is later
//! than its file's last write, so that a rotation is always followed by an open period.
//! Source: Circus 0.17.2's `TimedRotatingFileStream`.

use std::time::{Instant, SystemTime};

use chrono::{Datelike, Days, Duration, Local, NaiveDate, NaiveTime, TimeZone, Utc};

use papa_config::{RotateWhen, RotationConfig};
use papa_system::civil;

/// The present, as deadlines and as calendars count.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// For deadlines.
    pub at: Instant,
    /// Seconds since the epoch.
    pub epoch_s: i64,
}

impl Now {
    /// Reads both clocks.
    #[must_use]
    pub fn read() -> Self {
        Self {
            at: Instant::now(),
            epoch_s: seconds(SystemTime::now()),
        }
    }
}

/// Seconds since the epoch.
pub(super) fn seconds(moment: SystemTime) -> i64 {
    match moment.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        Err(_) => 0,
    }
}

/// The end of the period a file is in that was made and last written then. Circus counts from the
/// last write alone; a file that was made less than a period before that keeps its period, whoever
/// starts again in between.
pub(super) fn period_end(rotation: &RotationConfig, created_s: i64, modified_s: i64) -> i64 {
    let end = end_of(rotation, created_s.min(modified_s));
    if end > modified_s {
        end
    } else {
        end_of(rotation, modified_s)
    }
}

/// What the file of the period that ends then is called, behind its name and a dot: the start of
/// the period.
pub(super) fn stamp(rotation: &RotationConfig, end_s: i64) -> String {
    let start = match fixed(rotation) {
        Some(length) => end_s.saturating_sub(length),
        None => {
            let days = Days::new(u64::from(rotation.interval) * days_in(rotation.when));
            let date = date_of(rotation, end_s);
            midnight(rotation, date.checked_sub_days(days).unwrap_or(date))
        }
    };
    let format = match rotation.when {
        RotateWhen::Second => "%Y%m%d%H%M%S",
        RotateWhen::Minute => "%Y%m%d%H%M",
        RotateWhen::Hour => "%Y%m%d%H",
        RotateWhen::Day | RotateWhen::Midnight | RotateWhen::Weekday(_) => "%Y%m%d",
    };
    let utc = civil::utc(start);
    if rotation.utc {
        utc.format(format).to_string()
    } else {
        utc.with_timezone(&Local).format(format).to_string()
    }
}

/// Length in seconds of a period that is not a matter of dates.
fn fixed(rotation: &RotationConfig) -> Option<i64> {
    let unit = match rotation.when {
        RotateWhen::Second => 1,
        RotateWhen::Minute => 60,
        RotateWhen::Hour => 3600,
        RotateWhen::Day => 86_400,
        RotateWhen::Midnight | RotateWhen::Weekday(_) => return None,
    };
    Some(unit * i64::from(rotation.interval))
}

fn days_in(when: RotateWhen) -> u64 {
    if matches!(when, RotateWhen::Weekday(_)) {
        7
    } else {
        1
    }
}

fn end_of(rotation: &RotationConfig, start_s: i64) -> i64 {
    if let Some(length) = fixed(rotation) {
        return start_s.saturating_add(length);
    }
    let date = date_of(rotation, start_s);
    let first = match rotation.when {
        RotateWhen::Weekday(day) => {
            let today = date.weekday().num_days_from_monday();
            u64::from((u32::from(day) + 7 - today) % 7) + 1
        }
        _ => 1,
    };
    let more = u64::from(rotation.interval.saturating_sub(1)) * days_in(rotation.when);
    let end = date
        .checked_add_days(Days::new(first + more))
        .unwrap_or(NaiveDate::MAX)
        // Never, where it is that far.
        .min(civil::utc(i64::MAX).date_naive());
    midnight(rotation, end).max(start_s.saturating_add(1))
}

fn date_of(rotation: &RotationConfig, at_s: i64) -> NaiveDate {
    let utc = civil::utc(at_s);
    if rotation.utc {
        utc.date_naive()
    } else {
        utc.with_timezone(&Local).date_naive()
    }
}

/// The first moment of a date; where clocks are put forward at midnight, that is an hour later.
fn midnight(rotation: &RotationConfig, date: NaiveDate) -> i64 {
    let midnight = date.and_time(NaiveTime::MIN);
    if rotation.utc {
        return Utc.from_utc_datetime(&midnight).timestamp();
    }
    let local = |hours| {
        let moment = midnight.checked_add_signed(Duration::hours(hours))?;
        Local.from_local_datetime(&moment).earliest()
    };
    local(0).or_else(|| local(1)).map_or_else(
        || Utc.from_utc_datetime(&midnight).timestamp(),
        |moment| moment.timestamp(),
    )
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;

    fn utc(when: RotateWhen, interval: u32) -> RotationConfig {
        RotationConfig {
            when,
            interval,
            utc: true,
        }
    }

    fn at(text: &str) -> i64 {
        DateTime::parse_from_rfc3339(&format!("{text}Z"))
            .unwrap()
            .timestamp()
    }

    /// End and stamp of the period of a file.
    #[track_caller]
    fn check(rotation: RotationConfig, created: &str, modified: &str, end: &str, stamped: &str) {
        let found = period_end(&rotation, at(created), at(modified));
        let text = DateTime::from_timestamp(found, 0).unwrap().to_rfc3339();
        assert_eq!(text, format!("{end}+00:00"));
        assert_eq!(stamp(&rotation, found), stamped);
    }

    #[test]
    fn a_file_of_any_time_has_a_period() {
        let whens = [
            RotateWhen::Second,
            RotateWhen::Day,
            RotateWhen::Midnight,
            RotateWhen::Weekday(6),
        ];
        for (when, utc) in whens
            .into_iter()
            .flat_map(|when| [(when, true), (when, false)])
        {
            for interval in [1, u32::MAX] {
                let rotation = RotationConfig {
                    when,
                    interval,
                    utc,
                };
                for moment in [i64::MIN, -1, 0, 253_402_300_800, i64::MAX] {
                    let end = period_end(&rotation, moment, moment);
                    assert!(end > moment || moment == i64::MAX, "{rotation:?} {moment}");
                    assert!(stamp(&rotation, end).len() >= 8);
                }
            }
        }
    }

    #[test]
    fn periods_of_fixed_length_count_from_the_file() {
        let c = "2026-11-22T10:20:30";
        check(
            utc(RotateWhen::Second, 5),
            c,
            c,
            "2026-11-22T10:20:35",
            "20261122102030",
        );
        check(
            utc(RotateWhen::Minute, 1),
            c,
            c,
            "2026-11-22T10:21:30",
            "202611221020",
        );
        check(
            utc(RotateWhen::Hour, 2),
            c,
            c,
            "2026-11-22T12:20:30",
            "2026112210",
        );
        check(
            utc(RotateWhen::Day, 1),
            c,
            c,
            "2026-11-23T10:20:30",
            "20261122",
        );
    }

    #[test]
    fn a_restart_within_the_period_does_not_prolong_it() {
        let m = "2026-11-22T10:50:00";
        check(
            utc(RotateWhen::Hour, 1),
            "2026-11-22T10:20:30",
            m,
            "2026-11-22T11:20:30",
            "2026112210",
        );
        // An old file that was never rotated: from its last write, as in Circus.
        check(
            utc(RotateWhen::Hour, 1),
            "2026-11-01T00:00:00",
            m,
            "2026-11-22T11:50:00",
            "2026112210",
        );
        // Copied with its old date: made after its last write.
        check(
            utc(RotateWhen::Hour, 1),
            "2026-11-23T00:00:00",
            m,
            "2026-11-22T11:50:00",
            "2026112210",
        );
    }

    #[test]
    fn dates_end_at_midnight() {
        let c = "2026-11-22T10:20:30";
        check(
            utc(RotateWhen::Midnight, 1),
            c,
            c,
            "2026-11-23T00:00:00",
            "20261122",
        );
        check(
            utc(RotateWhen::Midnight, 3),
            c,
            c,
            "2026-11-25T00:00:00",
            "20261122",
        );
        let midnight = "2026-11-22T00:00:00";
        check(
            utc(RotateWhen::Midnight, 1),
            midnight,
            midnight,
            "2026-11-23T00:00:00",
            "20261122",
        );
    }

    #[test]
    fn weeks_end_with_their_day() {
        // A Sunday.
        let c = "2026-11-22T10:20:30";
        check(
            utc(RotateWhen::Weekday(6), 1),
            c,
            c,
            "2026-11-23T00:00:00",
            "20261116",
        );
        check(
            utc(RotateWhen::Weekday(0), 1),
            c,
            c,
            "2026-11-24T00:00:00",
            "20261117",
        );
        check(
            utc(RotateWhen::Weekday(2), 2),
            c,
            c,
            "2026-12-03T00:00:00",
            "20261119",
        );
    }

    #[test]
    fn local_periods_end_after_they_begin() {
        for when in [
            RotateWhen::Midnight,
            RotateWhen::Weekday(3),
            RotateWhen::Hour,
        ] {
            let rotation = RotationConfig {
                when,
                interval: 1,
                utc: false,
            };
            for hour in 0..24 * 400 {
                let now = 1_790_000_000 + hour * 3600;
                assert!(period_end(&rotation, now, now) > now);
            }
        }
    }
}
