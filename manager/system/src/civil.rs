//! Moments as people write them.
//!
//! A file's time, a kernel's stamp or a number somebody typed may be any moment, and not each has a
//! date in each time zone: those outside the years 1 to 9999 count as the nearest one that has.

use chrono::{DateTime, Local, Utc};

/// 0001-01-02T00:00:00Z, in seconds since the epoch.
const FIRST_S: i64 = -62_135_510_400;
/// 9999-12-30T23:59:59Z.
const LAST_S: i64 = 253_402_214_399;

/// A moment in seconds since the epoch.
#[must_use]
pub fn utc(at_s: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(at_s.clamp(FIRST_S, LAST_S), 0).unwrap_or_default()
}

/// A moment in microseconds since the epoch, in local time.
#[must_use]
pub fn local(at_us: i64) -> DateTime<Local> {
    let at_us = at_us.clamp(FIRST_S * 1_000_000, LAST_S * 1_000_000);
    DateTime::from_timestamp_micros(at_us)
        .unwrap_or_default()
        .with_timezone(&Local)
}

/// Limits any moment to the years 1 to 9999.
#[must_use]
pub fn within(moment: DateTime<Utc>) -> DateTime<Utc> {
    moment.clamp(utc(FIRST_S), utc(LAST_S))
}

#[cfg(test)]
mod tests {
    use chrono::{Datelike, FixedOffset, Offset, TimeZone};

    use super::*;

    #[test]
    fn every_moment_has_a_date_everywhere() {
        for at in [i64::MIN, FIRST_S, 0, LAST_S, i64::MAX] {
            let utc = utc(at);
            assert_eq!(within(utc), utc);
            for hours in [-24_i32, 24] {
                let zone = FixedOffset::east_opt(hours * 3600 - hours.signum()).unwrap();
                let there = zone.from_utc_datetime(&utc.naive_utc());
                assert!((1..=9999).contains(&there.year()), "{there} {}", zone.fix());
            }
            let _ = local(at).to_rfc3339();
        }
        assert_eq!(utc(FIRST_S).to_rfc3339(), "0001-01-02T00:00:00+00:00");
        assert_eq!(utc(LAST_S).to_rfc3339(), "9999-12-30T23:59:59+00:00");
        for far in [DateTime::<Utc>::MIN_UTC, DateTime::<Utc>::MAX_UTC] {
            let _ = within(far).with_timezone(&Local).date_naive();
        }
    }
}
