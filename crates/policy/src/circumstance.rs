//! What is known of a caller and of the moment, for the conditions of policies.

use std::net::IpAddr;

use cedar_policy::RestrictedExpression;
use countersign_identity::{Attested, Timestamp};

use crate::reads::Reads;
use crate::schema::{AGE, ATTESTATION, GROUP, SOURCE, TIME, TLS_VERSION, WEEKDAY};

/// What the handshake has shown, for the conditions of policies. It stays what it was for as long as the connection lives.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Context {
    /// `1.3`.
    pub tls_version: String,
    /// The key exchange, `X25519MLKEM768`.
    pub group: String,
    /// How long ago the peer's certificate became valid.
    pub peer_age_seconds: u64,
    /// The address that the caller comes from, as whoever decides sees it itself or is told by somebody whom it trusts in that. Absent
    /// where it is not known. It narrows; it never says who somebody is.
    pub source: Option<IpAddr>,
    /// By which kinds of facts the caller was attested, as its certificate says; empty where it says nothing, or nothing that
    /// counts here.
    pub attested: Attested,
}

impl Context {
    /// None when it is none that a policy could read.
    pub(crate) fn age(&self) -> Option<i64> {
        i64::try_from(self.peer_age_seconds).ok()
    }

    /// In Cedar's words: what is cheap, and of the rest what is read.
    pub(crate) fn attributes(
        &self,
        now: Timestamp,
        reads: Reads,
    ) -> Option<Vec<(String, RestrictedExpression)>> {
        let text = |value: &str| RestrictedExpression::new_string(value.to_owned());
        let mut pairs = vec![
            (TLS_VERSION.to_owned(), text(&self.tls_version)),
            (GROUP.to_owned(), text(&self.group)),
            (AGE.to_owned(), RestrictedExpression::new_long(self.age()?)),
        ];
        if reads.time {
            pairs.push((TIME.to_owned(), RestrictedExpression::new_datetime(datetime(now))));
            pairs.push((WEEKDAY.to_owned(), RestrictedExpression::new_long(weekday(now))));
        }
        if let Some(source) = self.source.filter(|_| reads.source) {
            let source = RestrictedExpression::new_ip(source.to_canonical().to_string());
            pairs.push((SOURCE.to_owned(), source));
        }
        if reads.attestation && !self.attested.is_empty() {
            let kinds = RestrictedExpression::new_set(self.attested.kinds().map(text));
            pairs.push((ATTESTATION.to_owned(), kinds));
        }
        Some(pairs)
    }
}

/// As Cedar writes a moment: to the millisecond, which is as exact as it knows.
fn datetime(now: Timestamp) -> String {
    let millis = now.micros().div_euclid(1000).rem_euclid(1000);
    let second = now.floor_secs().to_string();
    format!("{}.{millis:03}Z", second.trim_end_matches('Z'))
}

/// Which day of the week it is, as ISO 8601 counts: 1 is Monday.
fn weekday(now: Timestamp) -> i64 {
    // The epoch began on a Thursday.
    (now.secs().div_euclid(86_400) + 3).rem_euclid(7) + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_as_cedar_reads_them_and_weekdays_are_those_of_the_calendar() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        for (text, written, day) in [
            ("1970-01-01T00:00:00Z", "1970-01-01T00:00:00.000Z", 4),
            ("1969-12-31T23:59:59.999999Z", "1969-12-31T23:59:59.999Z", 3),
            ("2026-11-26T23:59:59.001Z", "2026-11-26T23:59:59.001Z", 4),
            ("2026-11-27T00:00:00Z", "2026-11-27T00:00:00.000Z", 5),
            ("2024-02-29T12:00:00.5Z", "2024-02-29T12:00:00.500Z", 4),
            ("2026-11-29T12:00:00Z", "2026-11-29T12:00:00.000Z", 7),
            ("2026-11-30T12:00:00Z", "2026-11-30T12:00:00.000Z", 1),
        ] {
            assert_eq!((datetime(at(text)).as_str(), weekday(at(text))), (written, day));
        }
    }
}
