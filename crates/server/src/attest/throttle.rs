//! How often a source may guess at a join token before it is made to wait.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use countersign_identity::Timestamp;
use countersign_tls::Source;

/// Failures that a source may make at once.
const BURST: u32 = 20;
/// How long it takes until one more failure is allowed.
const REFILL: Duration = Duration::from_secs(3);
/// Sources that are remembered. An attacker with more addresses gets more tries, each of which is still one
/// guess at 256 random bits; what the bound protects is memory.
const SOURCES_MAX: usize = 4096;

/// Failed attestations and renewals by source, forgotten as time passes. Holds no honest caller: only
/// failures are counted.
#[derive(Debug, Default)]
pub(crate) struct Throttle {
    sources: HashMap<Source, Failures>, // INVARIANT: at most SOURCES_MAX
}

#[derive(Clone, Copy, Debug)]
struct Failures {
    count: u32,
    last: Timestamp,
}

impl Failures {
    /// What is left of the failures at `now`.
    fn at(self, now: Timestamp) -> u32 {
        let refilled = now.since(self.last).as_secs() / REFILL.as_secs();
        self.count.saturating_sub(u32::try_from(refilled).unwrap_or(u32::MAX))
    }
}

impl Throttle {
    /// Whether the source may try at `now`.
    pub(crate) fn allows(&self, address: IpAddr, now: Timestamp) -> bool {
        self.sources.get(&Source::of(address)).is_none_or(|failures| failures.at(now) < BURST)
    }

    /// A try of the source failed.
    pub(crate) fn failed(&mut self, address: IpAddr, now: Timestamp) {
        let source = Source::of(address);
        if SOURCES_MAX <= self.sources.len() && !self.sources.contains_key(&source) {
            self.sources.retain(|_, failures| 0 < failures.at(now));
        }
        if SOURCES_MAX <= self.sources.len() && !self.sources.contains_key(&source) {
            return;
        }
        let failures = self.sources.entry(source).or_insert(Failures { count: 0, last: now });
        *failures = Failures { count: failures.at(now).saturating_add(1), last: now };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const OTHER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

    fn at(secs: i64) -> Timestamp {
        Timestamp::from_secs(1_000_000 + secs)
    }

    #[test]
    fn source_that_fails_too_often_waits_and_others_do_not() {
        let mut throttle = Throttle::default();
        for _ in 0..BURST {
            assert!(throttle.allows(SOURCE, at(0)));
            throttle.failed(SOURCE, at(0));
        }
        assert!(!throttle.allows(SOURCE, at(0)));
        assert!(throttle.allows(OTHER, at(0)));
        assert!(throttle.allows(SOURCE, at(3)));
    }

    #[test]
    fn many_sources_do_not_grow_the_table_past_its_bound() {
        let mut throttle = Throttle::default();
        for number in 0..20_000_u32 {
            throttle.failed(IpAddr::V4(number.into()), at(0));
        }
        assert_eq!(throttle.sources.len(), SOURCES_MAX);
        throttle.failed(SOURCE, at(3600));
        assert_eq!(throttle.sources.len(), 1, "what is long ago is forgotten");
    }

    #[test]
    fn addresses_of_one_subscriber_are_one_source() {
        let mut throttle = Throttle::default();
        for number in 0..u128::from(BURST) {
            let address = 0x2001_0db8_0000_0001_0000_0000_0000_0000 + number;
            throttle.failed(IpAddr::V6(address.into()), at(0));
        }
        assert!(!throttle.allows("2001:db8:0:1::99".parse().unwrap(), at(0)));
        assert!(throttle.allows("2001:db8:0:2::99".parse().unwrap(), at(0)));
    }
}
