//! Moments and spans of time, and their texts.

use std::fmt;
use std::ops::{Add, Sub};
use std::str::FromStr;
use std::time::Duration;

/// A moment: microseconds since 1970-01-01T00:00:00Z, without leap seconds.
///
/// RFC 3339 with `Z` on screen and in JSON. Arithmetic saturates, so a hostile number cannot panic.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Timestamp(i64); // INVARIANT: within the years 0001 to 9999, so that every text form exists

/// Why a text is not a moment.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a moment: expected RFC 3339 in UTC, such as `2026-11-21T12:00:00Z`")]
pub struct BadTimestamp(String);

const MICROS: i64 = 1_000_000;
const DAY_SECS: i64 = 86_400;
const MIN: i64 = -62_135_596_800 * MICROS;
const MAX: i64 = 253_402_300_800 * MICROS - 1;

impl Timestamp {
    /// 1970-01-01T00:00:00Z.
    pub const EPOCH: Self = Self(0);
    /// The last moment that can be written: RFC 5280's "no well-defined end" lies in its second.
    pub const LAST: Self = Self(MAX);

    /// From microseconds since the epoch; clamped to the years 0001 to 9999.
    pub const fn from_micros(micros: i64) -> Self {
        Self(if micros < MIN {
            MIN
        } else if micros > MAX {
            MAX
        } else {
            micros
        })
    }

    /// From whole seconds since the epoch; clamped likewise.
    pub const fn from_secs(secs: i64) -> Self {
        Self::from_micros(secs.saturating_mul(MICROS))
    }

    /// Microseconds since the epoch.
    pub const fn micros(self) -> i64 {
        self.0
    }

    /// Whole seconds since the epoch, rounded down, as X.509 and JWT write them.
    pub const fn secs(self) -> i64 {
        self.0.div_euclid(MICROS)
    }

    /// How long after `earlier` this is; zero when it is not.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// Rounded down to a whole second.
    pub const fn floor_secs(self) -> Self {
        Self::from_secs(self.secs())
    }

    /// Year, month, day, hour, minute, second, as in the proleptic Gregorian calendar.
    pub fn civil(self) -> (i64, i64, i64, i64, i64, i64) {
        let secs = self.secs();
        let (year, month, day) = date(secs.div_euclid(DAY_SECS));
        let second = secs.rem_euclid(DAY_SECS);
        (year, month, day, second / 3600, second / 60 % 60, second % 60)
    }

    /// The moment with these civil fields; `None` when there is no such moment.
    pub fn from_civil(year: i64, month: i64, day: i64, time: (i64, i64, i64)) -> Option<Self> {
        let (hour, minute, second) = time;
        let valid = (1..=9999).contains(&year)
            && (0..24).contains(&hour)
            && (0..60).contains(&minute)
            && (0..60).contains(&second);
        let days = days(year, month, day);
        (valid && (1..=12).contains(&month) && date(days) == (year, month, day))
            .then(|| Self::from_secs(days * DAY_SECS + hour * 3600 + minute * 60 + second))
    }
}

/// Days since the epoch of a civil date.
fn days(year: i64, month: i64, day: i64) -> i64 {
    // Years that begin in March put the leap day last.
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// The civil date of a day since the epoch.
fn date(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let shifted = (5 * of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = era * 400 + year + i64::from(month <= 2);
    (year, month, of_year - (153 * shifted + 2) / 5 + 1)
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

impl Add<Duration> for Timestamp {
    type Output = Self;

    fn add(self, span: Duration) -> Self {
        Self::from_micros(self.0.saturating_add(micros(span)))
    }
}

impl Sub<Duration> for Timestamp {
    type Output = Self;

    fn sub(self, span: Duration) -> Self {
        Self::from_micros(self.0.saturating_sub(micros(span)))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day, hour, minute, second) = self.civil();
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}")?;
        match self.0.rem_euclid(MICROS) {
            0 => f.write_str("Z"),
            fraction => write!(f, ".{fraction:06}Z"),
        }
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Timestamp {
    type Err = BadTimestamp;

    fn from_str(text: &str) -> Result<Self, BadTimestamp> {
        parse(text).ok_or_else(|| BadTimestamp(text.chars().take(80).collect()))
    }
}

/// RFC 3339 with an offset of `Z` or `+00:00`, and up to 6 digits of a second's fraction.
fn parse(text: &str) -> Option<Timestamp> {
    let text = text.strip_suffix('Z').or_else(|| text.strip_suffix("+00:00"))?;
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let bytes = seconds.as_bytes();
    if bytes.len() != 19 || fraction.is_empty() || 6 < fraction.len() {
        return None;
    }
    if [bytes[4], bytes[7], bytes[10], bytes[13], bytes[16]] != *b"--T::" {
        return None;
    }
    let number = |digits: &[u8]| -> Option<i64> {
        digits.iter().try_fold(0, |sum, digit| {
            digit.is_ascii_digit().then(|| sum * 10 + i64::from(digit - b'0'))
        })
    };
    let time = (number(&bytes[11..13])?, number(&bytes[14..16])?, number(&bytes[17..19])?);
    let moment = Timestamp::from_civil(
        number(&bytes[..4])?,
        number(&bytes[5..7])?,
        number(&bytes[8..10])?,
        time,
    )?;
    let width = u32::try_from(fraction.len()).ok()?;
    let micros = number(fraction.as_bytes())? * 10_i64.pow(6 - width);
    Some(Timestamp::from_micros(moment.micros() + micros))
}

impl serde::Serialize for Timestamp {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Timestamp {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A span as people write it: `90s`, `15m`, `1h30m`, `7d`, `250ms`.
///
/// Parsing takes one or more numbers, each with its unit, the largest unit first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DurationText(pub Duration);

const UNITS: [(&str, u64); 5] =
    [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

impl fmt::Display for DurationText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        if rest == 0 {
            return f.write_str("0s");
        }
        for (unit, millis) in UNITS {
            if millis <= rest {
                write!(f, "{}{unit}", rest / millis)?;
                rest %= millis;
            }
        }
        Ok(())
    }
}

impl FromStr for DurationText {
    type Err = crate::BadLifetime;

    fn from_str(text: &str) -> Result<Self, crate::BadLifetime> {
        span(text)
            .map(Self)
            .ok_or_else(|| crate::BadLifetime::Text(text.chars().take(80).collect()))
    }
}

fn span(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = 0_u64;
    let mut units = UNITS.iter();
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: u64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let end = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let (_, millis) = units.by_ref().find(|(unit, _)| *unit == &rest[..end])?;
        total = total.checked_add(number.checked_mul(*millis)?)?;
        rest = &rest[end..];
    }
    (!text.is_empty()).then(|| Duration::from_millis(total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn round_trips(text: &str, micros: i64) {
        let moment: Timestamp = text.parse().unwrap();
        assert_eq!(moment.micros(), micros, "parsing {text}");
        assert_eq!(moment.to_string(), text);
    }

    #[test]
    fn rfc_3339_round_trips() {
        round_trips("1970-01-01T00:00:00Z", 0);
        round_trips("2026-11-21T12:00:00Z", 1_795_262_400_000_000);
        round_trips("2000-02-29T23:59:59.000001Z", 951_868_799_000_001);
        round_trips("0001-01-01T00:00:00Z", MIN);
        round_trips("9999-12-31T23:59:59.999999Z", MAX);
    }

    #[test]
    fn what_is_not_rfc_3339_in_utc_is_refused() {
        for text in [
            "",
            "Z",
            "2026-11-21",
            "2026-11-21T12:00:00",
            "2026-11-21T12:00:00+01:00",
            "2026-02-29T00:00:00Z",
            "2026-13-01T00:00:00Z",
            "2026-00-01T00:00:00Z",
            "2026-11-21T24:00:00Z",
            "2026-11-21 12:00:00Z",
            "2026-11-21T12:00:00.Z",
            "2026-11-21T12:00:00.1234567Z",
            "+026-11-21T12:00:00Z",
            "0000-01-01T00:00:00Z",
            "2026-11-21T12:00:0éZ",
        ] {
            assert!(text.parse::<Timestamp>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn spans_are_written_as_people_write_them() {
        for (text, secs) in
            [("90s", 90), ("15m", 900), ("1h", 3600), ("1h30m", 5400), ("7d", 604_800)]
        {
            assert_eq!(
                text.parse::<DurationText>().unwrap().0,
                Duration::from_secs(secs),
                "{text}"
            );
        }
        assert_eq!(DurationText(Duration::from_secs(90)).to_string(), "1m30s");
        assert_eq!(DurationText(Duration::from_millis(250)).to_string(), "250ms");
        for text in ["", "5", "s", "-5s", "5 s", "30m1h", "1h1h", "99999999999999999999d", "1.5h"] {
            assert!(text.parse::<DurationText>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn arithmetic_saturates() {
        assert_eq!(Timestamp::LAST + Duration::MAX, Timestamp::LAST);
        assert_eq!(Timestamp::EPOCH.since(Timestamp::LAST), Duration::ZERO);
    }
}
