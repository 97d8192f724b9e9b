//! How long a credential lives, and when its successor is due.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::{DurationText, Sha256, Timestamp};

/// How long a credential lives, counted from the moment of issue. The backdate comes on top.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lifetime(Duration); // INVARIANT: whole seconds, 1 s to 3650 d

/// Why a text or a number is not a lifetime.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadLifetime {
    /// Not a span of time.
    #[error(
        "`{0}` is not a span of time: expected numbers with units, such as `90s`, `15m` or `1h30m`"
    )]
    Text(String),
    /// Shorter or longer than any credential may live.
    #[error("a lifetime of {} is out of range: expected whole seconds from 1s to 3650d", DurationText(*.0))]
    Range(Duration),
}

impl Lifetime {
    const SECS_MAX: u64 = 3650 * 86_400;

    /// A lifetime of whole seconds.
    ///
    /// # Errors
    /// When it is not from 1 s to 3650 d.
    pub fn from_secs(secs: u64) -> Result<Self, BadLifetime> {
        let duration = Duration::from_secs(secs);
        (1..=Self::SECS_MAX)
            .contains(&secs)
            .then_some(Self(duration))
            .ok_or(BadLifetime::Range(duration))
    }

    /// As a span of time.
    pub const fn duration(self) -> Duration {
        self.0
    }

    /// The outage that every credential of this lifetime survives: 45 % of it, because renewal is due
    /// at half of the lifetime at the latest, and retries stop 5 % before its end.
    pub fn guaranteed_budget(self) -> Duration {
        self.0 * 45 / 100
    }
}

impl fmt::Display for Lifetime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        DurationText(self.0).fmt(f)
    }
}

impl FromStr for Lifetime {
    type Err = BadLifetime;

    fn from_str(text: &str) -> Result<Self, BadLifetime> {
        let DurationText(duration) = text.parse()?;
        if duration.subsec_nanos() != 0 {
            return Err(BadLifetime::Range(duration));
        }
        Self::from_secs(duration.as_secs())
    }
}

impl serde::Serialize for Lifetime {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Lifetime {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// From when to when a certificate is valid, both ends included (RFC 5280, 4.1.2.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Validity {
    /// The first moment.
    pub not_before: Timestamp,
    /// The last moment.
    pub not_after: Timestamp,
}

impl Validity {
    /// Whether the moment lies within.
    pub fn contains(&self, now: Timestamp) -> bool {
        self.not_before <= now && now <= self.not_after
    }
}

/// How much earlier than half of its lifetime one credential is renewed: from 0 (not at all) to 1 (a tenth of
/// that half). It is fixed per credential, so that a fleet started together does not renew together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spread(u16); // INVARIANT: thousandths, 0 to 1000

impl Spread {
    /// No spread: renewed at half of the lifetime exactly.
    pub const NONE: Self = Self(0);

    /// The spread of the credential with this digest.
    pub fn of(digest: &Sha256) -> Self {
        let bytes = digest.as_bytes();
        Self(u16::from_be_bytes([bytes[0], bytes[1]]) % 1001)
    }
}

/// When to renew: at half of the lifetime, earlier by up to a tenth of that half.
///
/// Reckoned from the moment of issue, because a backdated start may lie before it.
pub fn renewal_due(issued: Timestamp, expires: Timestamp, spread: Spread) -> Timestamp {
    let half = expires.since(issued) / 2;
    issued + half - half / 10 * u32::from(spread.0) / 1000
}

/// Until when a failed renewal is tried again: not within the last 5 % of the lifetime.
pub fn retry_ends(issued: Timestamp, expires: Timestamp) -> Timestamp {
    expires - expires.since(issued) / 20
}

/// How far before the moment of issue a certificate of this lifetime becomes valid: 30 s, and at most half the lifetime.
pub fn backdate(lifetime: Lifetime) -> Duration {
    Duration::from_secs(30).min(lifetime.duration() / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewal_is_due_between_45_and_50_percent_of_the_lifetime() {
        let issued = Timestamp::from_secs(1_000_000);
        let expires = issued + Duration::from_secs(1000);
        assert_eq!(renewal_due(issued, expires, Spread::NONE), issued + Duration::from_secs(500));
        assert_eq!(renewal_due(issued, expires, Spread(1000)), issued + Duration::from_secs(450));
    }

    #[test]
    fn retries_end_five_percent_before_the_end() {
        let issued = Timestamp::from_secs(0);
        let expires = issued + Duration::from_secs(100);
        assert_eq!(retry_ends(issued, expires), issued + Duration::from_secs(95));
    }

    #[test]
    fn backdate_is_bounded_by_half_of_a_short_lifetime() {
        assert_eq!(backdate(Lifetime::from_secs(10).unwrap()), Duration::from_secs(5));
        assert_eq!(backdate(Lifetime::from_secs(3600).unwrap()), Duration::from_secs(30));
    }

    #[test]
    fn lifetimes_out_of_range_are_refused() {
        for text in ["0s", "500ms", "3651d"] {
            assert!(matches!(text.parse::<Lifetime>(), Err(BadLifetime::Range(_))), "{text}");
        }
        assert!(matches!("soon".parse::<Lifetime>(), Err(BadLifetime::Text(_))));
    }
}
