//! What `--since` accepts: so long ago, or a moment.
//!
//! Owns the reading of the text; the present is an argument. Moments without a zone are local time.
//! Source: manager/docs/papactl.md.

use chrono::{DateTime, Local, NaiveDate, NaiveDateTime, NaiveTime, TimeDelta, TimeZone, Utc};

/// What a mistake is answered with.
const ACCEPTED: &str = "expected so long ago (30s, 10m, 2h, 1d, 1w, 1h30m) or a moment: \
    \"2026-11-22 18:00\", 2026-11-22, 18:00, 2026-11-22T18:00:00Z";

/// Reads `text`, given the present.
///
/// # Errors
/// It is neither a duration nor a moment; the text says what is accepted.
pub(crate) fn parse(text: &str, now: DateTime<Local>) -> Result<DateTime<Utc>, String> {
    let text = text.trim();
    duration(text)
        .and_then(|ago| now.to_utc().checked_sub_signed(ago))
        .or_else(|| {
            let moment = DateTime::parse_from_rfc3339(text).ok()?;
            Some(moment.to_utc())
        })
        .or_else(|| local(date_and_time(text)?))
        .or_else(|| time_of_day(text, now))
        .ok_or_else(|| ACCEPTED.to_owned())
}

/// `1h30m`: whole numbers, each with its unit.
fn duration(text: &str) -> Option<TimeDelta> {
    let mut sum = TimeDelta::zero();
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, tail) = rest.split_at(digits);
        let unit_seconds = match tail.chars().next()? {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 86_400,
            'w' => 7 * 86_400,
            _ => return None,
        };
        let seconds = number.parse::<i64>().ok()?.checked_mul(unit_seconds)?;
        sum = sum.checked_add(&TimeDelta::try_seconds(seconds)?)?;
        rest = tail.get(1..)?;
    }
    (!text.is_empty()).then_some(sum)
}

fn date_and_time(text: &str) -> Option<NaiveDateTime> {
    let date = NaiveDate::parse_from_str(text, "%Y-%m-%d").ok();
    date.map(|date| date.and_time(NaiveTime::MIN)).or_else(|| {
        [
            "%Y-%m-%d %H:%M",
            "%Y-%m-%d %H:%M:%S%.f",
            "%Y-%m-%dT%H:%M",
            "%Y-%m-%dT%H:%M:%S%.f",
        ]
        .iter()
        .find_map(|format| NaiveDateTime::parse_from_str(text, format).ok())
    })
}

/// The latest moment with this time of day.
fn time_of_day(text: &str, now: DateTime<Local>) -> Option<DateTime<Utc>> {
    let time = ["%H:%M", "%H:%M:%S%.f"]
        .iter()
        .find_map(|format| NaiveTime::parse_from_str(text, format).ok())?;
    let today = now.date_naive();
    [Some(today), today.pred_opt()]
        .into_iter()
        .flatten()
        .filter_map(|date| local(date.and_time(time)))
        .find(|moment| *moment <= now)
}

/// The earlier of two where a clock put back shows a time twice: too much is shown rather than too
/// little.
fn local(moment: NaiveDateTime) -> Option<DateTime<Utc>> {
    let moment = Local.from_local_datetime(&moment).earliest()?;
    Some(moment.to_utc())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> DateTime<Local> {
        Local
            .from_local_datetime(&date_and_time("2026-11-22 18:00:30").unwrap())
            .unwrap()
    }

    fn at(text: &str) -> DateTime<Utc> {
        local(date_and_time(text).unwrap()).unwrap()
    }

    #[test]
    fn durations_count_from_now() {
        for (text, seconds) in [
            ("30s", 30),
            ("10m", 600),
            ("1h30m", 5400),
            ("2d", 172_800),
            ("1w", 604_800),
        ] {
            let ago = now().to_utc() - TimeDelta::seconds(seconds);
            assert_eq!(parse(text, now()), Ok(ago), "{text}");
        }
    }

    #[test]
    fn moments_are_local_unless_they_say_otherwise() {
        for (text, moment) in [
            ("2026-11-22 17:00", "2026-11-22 17:00:00"),
            ("2026-11-22T17:00:05.5", "2026-11-22 17:00:05.5"),
            ("2026-11-21", "2026-11-21 00:00:00"),
            ("17:59", "2026-11-22 17:59:00"),
            ("18:01", "2026-11-21 18:01:00"),
        ] {
            assert_eq!(parse(text, now()), Ok(at(moment)), "{text}");
        }
        let utc = parse("2026-11-22T18:00:00+02:00", now()).unwrap();
        assert_eq!(utc.to_rfc3339(), "2026-11-22T16:00:00+00:00");
    }

    #[test]
    fn anything_else_is_a_mistake() {
        for text in [
            "",
            "10",
            "m",
            "-1m",
            "1y",
            "99999999999999999999s",
            "9999999999999999s",
            "2026-13-01",
            "25:00",
            "1é",
        ] {
            assert_eq!(parse(text, now()), Err(ACCEPTED.to_owned()), "{text}");
        }
    }
}
