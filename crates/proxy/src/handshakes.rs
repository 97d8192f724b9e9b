//! Who may have a handshake under way: pure bookkeeping, so that a slow or hostile source cannot keep others out.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use countersign_identity::Timestamp;

use crate::bounds::{HANDSHAKE_YIELDS_AFTER, HANDSHAKES_MAX, HANDSHAKES_PER_SOURCE_MAX};

/// Whom an address belongs to: with IPv6, everybody has at least 2^64 of them.
pub(crate) fn subscriber(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(ip) => IpAddr::V6((u128::from(ip) >> 64 << 64).into()),
        v4 @ IpAddr::V4(_) => v4,
    }
}

/// The handshakes under way at one door, in the order in which they began.
#[derive(Debug, Default)]
pub(crate) struct Handshakes {
    under_way: BTreeMap<u64, (IpAddr, Timestamp)>,
    by_source: HashMap<IpAddr, usize>,
    last: u64,
}

/// Whether a newcomer has a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// It has.
    Place(u64),
    /// It takes the place of this one, which was given long enough.
    InPlaceOf(u64, u64),
    /// It has not.
    Full,
}

impl Handshakes {
    /// Somebody connected.
    pub(crate) fn enter(&mut self, source: IpAddr, now: Timestamp) -> Entry {
        let source = subscriber(source);
        let from_source = self.by_source.get(&source).copied().unwrap_or(0);
        let oldest = if HANDSHAKES_PER_SOURCE_MAX <= from_source {
            self.under_way.iter().find(|(_, (from, _))| *from == source)
        } else if HANDSHAKES_MAX <= self.under_way.len() {
            self.under_way.iter().next()
        } else {
            return Entry::Place(self.add(source, now));
        };
        match oldest.map(|(id, (_, began))| (*id, *began)) {
            Some((id, began)) if HANDSHAKE_YIELDS_AFTER <= now.since(began) => {
                self.leave(id);
                Entry::InPlaceOf(self.add(source, now), id)
            }
            Some(_) | None => Entry::Full,
        }
    }

    /// A handshake is over, one way or the other. Saying so twice is harmless.
    pub(crate) fn leave(&mut self, id: u64) {
        let Some((source, _)) = self.under_way.remove(&id) else { return };
        if let Some(count) = self.by_source.get_mut(&source) {
            *count -= 1;
            if *count == 0 {
                self.by_source.remove(&source);
            }
        }
    }

    fn add(&mut self, source: IpAddr, now: Timestamp) -> u64 {
        self.last += 1;
        self.under_way.insert(self.last, (source, now));
        *self.by_source.entry(source).or_default() += 1;
        self.last
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(100);

    fn source(number: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, number])
    }

    #[test]
    fn one_source_fills_its_own_places_only() {
        let mut handshakes = Handshakes::default();
        for _ in 0..HANDSHAKES_PER_SOURCE_MAX {
            assert!(matches!(handshakes.enter(source(1), NOW), Entry::Place(_)));
        }
        assert_eq!(handshakes.enter(source(1), NOW), Entry::Full);
        assert!(matches!(handshakes.enter(source(2), NOW), Entry::Place(_)));
    }

    #[test]
    fn one_subscriber_has_one_share_however_many_addresses_it_has() {
        let at = |text: &str| subscriber(text.parse().unwrap());
        assert_eq!(at("2001:db8:1:2::1"), at("2001:db8:1:2:ffff::9"));
        assert_ne!(at("2001:db8:1:2::1"), at("2001:db8:1:3::1"));
        assert_eq!(at("::ffff:10.0.0.1"), source(1));
        assert_ne!(at("10.0.0.1"), at("10.0.0.2"));
        let mut handshakes = Handshakes::default();
        for number in 0..HANDSHAKES_PER_SOURCE_MAX {
            let address = format!("2001:db8::{number:x}").parse().unwrap();
            assert!(matches!(handshakes.enter(address, NOW), Entry::Place(_)));
        }
        assert_eq!(handshakes.enter("2001:db8::ffff".parse().unwrap(), NOW), Entry::Full);
    }

    #[test]
    fn a_slow_handshake_gives_way_to_a_newcomer_and_a_young_one_does_not() {
        let mut handshakes = Handshakes::default();
        for number in 0..HANDSHAKES_MAX {
            handshakes.enter(source(u8::try_from(number % 200).unwrap()), NOW);
        }
        let soon = NOW + HANDSHAKE_YIELDS_AFTER - Duration::from_micros(1);
        assert_eq!(handshakes.enter(source(201), soon), Entry::Full);
        let later = NOW + HANDSHAKE_YIELDS_AFTER;
        assert_eq!(
            handshakes.enter(source(201), later),
            Entry::InPlaceOf(HANDSHAKES_MAX as u64 + 1, 1)
        );
        assert_eq!(handshakes.under_way.len(), HANDSHAKES_MAX);
    }

    #[test]
    fn a_source_over_its_share_loses_its_own_oldest_and_nobody_elses() {
        let mut handshakes = Handshakes::default();
        assert_eq!(handshakes.enter(source(9), NOW), Entry::Place(1));
        for _ in 0..HANDSHAKES_PER_SOURCE_MAX {
            handshakes.enter(source(1), NOW);
        }
        let entry = handshakes.enter(source(1), NOW + HANDSHAKE_YIELDS_AFTER);
        assert_eq!(entry, Entry::InPlaceOf(HANDSHAKES_PER_SOURCE_MAX as u64 + 2, 2));
    }

    #[test]
    fn places_are_free_again_and_nothing_is_left_behind() {
        let mut handshakes = Handshakes::default();
        for _ in 0..10 * HANDSHAKES_MAX {
            let Entry::Place(id) = handshakes.enter(source(1), NOW) else { panic!("no place") };
            handshakes.leave(id);
            handshakes.leave(id);
        }
        assert!(handshakes.under_way.is_empty() && handshakes.by_source.is_empty());
    }

    proptest::proptest! {
        #[test]
        fn no_order_of_events_goes_over_a_bound_or_loses_count(
            events in proptest::collection::vec((0..6_u8, 0..3_u8, 0..400_u64), 0..3000),
        ) {
            let (mut handshakes, mut now) = (Handshakes::default(), NOW);
            for (kind, from, number) in events {
                match kind {
                    0 => now = now + Duration::from_millis(number),
                    1 => handshakes.leave(number),
                    _ => {
                        handshakes.enter(source(from), now);
                    }
                }
                let counted: usize = handshakes.by_source.values().sum();
                proptest::prop_assert_eq!(counted, handshakes.under_way.len());
                proptest::prop_assert!(counted <= HANDSHAKES_MAX);
                let most = handshakes.by_source.values().max().copied().unwrap_or(0);
                proptest::prop_assert!(most <= HANDSHAKES_PER_SOURCE_MAX);
            }
        }
    }
}
