//! How many may be somewhere at once, so that no source and no crowd takes the room of the others. Pure bookkeeping.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::time::Duration;

use countersign_identity::Timestamp;
use tokio_util::sync::CancellationToken;

/// Who may be in a room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoomBounds {
    /// In all.
    pub all: usize,
    /// Of one kind.
    pub each: usize,
    /// How long a guest may stay before it gives way to a newcomer, of its own kind or while no kind has more than others.
    pub yields_after: Duration,
}

/// Guests by kind, such as handshakes under way by source.
///
/// When there is no place, the kind that has most of them makes one, at once: a newcomer of a kind that has few is not
/// kept out by many of others, however young they are.
#[derive(Debug)]
pub struct Room<K> {
    bounds: RoomBounds,
    guests: BTreeMap<u64, Guest<K>>, // INVARIANT: at most `bounds.all`
    by_kind: HashMap<K, BTreeSet<u64>>, // INVARIANT: the numbers of `guests`, no empty set
    by_size: BTreeSet<(usize, K)>,   // INVARIANT: how many each kind of `by_kind` has
    last: u64,
}

#[derive(Debug)]
struct Guest<K> {
    kind: K,
    since: Timestamp,
    give_way: CancellationToken,
}

/// A guest's number, and how it hears that it has to go.
#[derive(Clone, Debug)]
pub struct Ticket {
    /// By which it leaves.
    pub number: u64,
    /// Cancelled when somebody else needs the place. It is not the guest's any more by then.
    pub give_way: CancellationToken,
}

impl<K: Copy + Ord + Hash> Room<K> {
    /// Nobody is here.
    pub fn new(bounds: RoomBounds) -> Self {
        Self {
            bounds,
            guests: BTreeMap::new(),
            by_kind: HashMap::new(),
            by_size: BTreeSet::new(),
            last: 0,
        }
    }

    /// Lets a guest in; another goes if there is no place and it is time for it. None when there is no place.
    pub fn enter(&mut self, kind: K, now: Timestamp) -> Option<Ticket> {
        if let Some(goes) = self.who_goes(kind, now)? {
            if let Some(guest) = self.guests.get(&goes) {
                guest.give_way.cancel();
            }
            self.leave(goes);
        }
        self.last += 1;
        let ticket = Ticket { number: self.last, give_way: CancellationToken::new() };
        let guest = Guest { kind, since: now, give_way: ticket.give_way.clone() };
        self.guests.insert(ticket.number, guest);
        self.resize(kind, |alike| alike.insert(ticket.number));
        Some(ticket)
    }

    /// A guest has gone. Saying so twice is harmless.
    pub fn leave(&mut self, number: u64) {
        let Some(guest) = self.guests.remove(&number) else { return };
        self.resize(guest.kind, |alike| alike.remove(&number));
    }

    /// How many are here.
    pub fn len(&self) -> usize {
        self.guests.len()
    }

    /// Whether nobody is here.
    pub fn is_empty(&self) -> bool {
        self.guests.is_empty()
    }

    /// Who has to go for a newcomer: somebody, nobody, or (none) the newcomer itself.
    fn who_goes(&self, kind: K, now: Timestamp) -> Option<Option<u64>> {
        let alike = self.by_kind.get(&kind);
        let here = alike.map_or(0, BTreeSet::len);
        if self.bounds.each <= here {
            let oldest = alike.and_then(|alike| alike.first().copied())?;
            return self.was_here_long_enough(oldest, now).then_some(Some(oldest));
        }
        if self.guests.len() < self.bounds.all {
            return Some(None);
        }
        let (most, crowd) = self.by_size.last().copied()?;
        if here + 1 < most {
            return self.by_kind.get(&crowd).and_then(|alike| alike.first().copied()).map(Some);
        }
        let oldest = *self.guests.keys().next()?;
        self.was_here_long_enough(oldest, now).then_some(Some(oldest))
    }

    fn was_here_long_enough(&self, number: u64, now: Timestamp) -> bool {
        let guest = self.guests.get(&number);
        guest.is_some_and(|guest| self.bounds.yields_after <= now.since(guest.since))
    }

    /// Changes the set of one kind, and what is known of its size.
    fn resize(&mut self, kind: K, change: impl FnOnce(&mut BTreeSet<u64>) -> bool) {
        let alike = self.by_kind.entry(kind).or_default();
        let before = alike.len();
        change(alike);
        let after = alike.len();
        self.by_size.remove(&(before, kind));
        if after == 0 {
            self.by_kind.remove(&kind);
        } else {
            self.by_size.insert((after, kind));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(100);
    const BOUNDS: RoomBounds =
        RoomBounds { all: 64, each: 16, yields_after: Duration::from_secs(1) };

    fn room() -> Room<u8> {
        Room::new(BOUNDS)
    }

    fn fill(room: &mut Room<u8>, kind: u8, count: usize) -> Vec<Ticket> {
        (0..count).map(|_| room.enter(kind, NOW).unwrap()).collect()
    }

    #[test]
    fn one_kind_fills_its_own_places_only() {
        let mut room = room();
        fill(&mut room, 1, BOUNDS.each);
        assert!(room.enter(1, NOW).is_none());
        assert!(room.enter(2, NOW).is_some());
    }

    #[test]
    fn a_slow_guest_gives_way_to_a_newcomer_of_its_kind_and_a_young_one_does_not() {
        let mut room = room();
        let other = room.enter(9, NOW).unwrap();
        let tickets = fill(&mut room, 1, BOUNDS.each);
        assert!(room.enter(1, NOW + BOUNDS.yields_after - Duration::from_micros(1)).is_none());
        assert!(room.enter(1, NOW + BOUNDS.yields_after).is_some());
        let gone: Vec<bool> = tickets.iter().map(|it| it.give_way.is_cancelled()).collect();
        assert!(gone[0] && gone.iter().filter(|gone| **gone).count() == 1);
        assert!(!other.give_way.is_cancelled());
    }

    #[test]
    fn a_newcomer_takes_the_place_of_one_of_the_many_however_young_they_are() {
        let mut room = room();
        let crowds: Vec<Vec<Ticket>> = (1..=4).map(|kind| fill(&mut room, kind, 16)).collect();
        assert_eq!(room.len(), BOUNDS.all);
        let newcomer = room.enter(9, NOW).expect("the largest crowd makes room");
        let gone = crowds.iter().flatten().filter(|it| it.give_way.is_cancelled()).count();
        assert_eq!((gone, room.len()), (1, BOUNDS.all));
        // It goes on until none has more than the newcomers would.
        let mut came = 1;
        while room.enter(9, NOW).is_some() {
            came += 1;
        }
        assert!(!newcomer.give_way.is_cancelled());
        assert_eq!(came, 12, "a fifth of the places, about");
    }

    #[test]
    fn where_all_have_one_each_only_a_slow_one_goes() {
        let mut room = room();
        let tickets: Vec<Ticket> = (0..64).map(|kind| room.enter(kind, NOW).unwrap()).collect();
        assert!(room.enter(100, NOW).is_none());
        assert!(room.enter(100, NOW + BOUNDS.yields_after).is_some());
        assert!(tickets[0].give_way.is_cancelled());
    }

    #[test]
    fn places_are_free_again_and_nothing_is_left_behind() {
        let mut room = room();
        for _ in 0..1000 {
            let ticket = room.enter(1, NOW).unwrap();
            room.leave(ticket.number);
            room.leave(ticket.number);
        }
        assert!(room.is_empty() && room.by_kind.is_empty() && room.by_size.is_empty());
    }

    proptest::proptest! {
        #[test]
        fn no_order_of_events_goes_over_a_bound_or_loses_count(
            events in proptest::collection::vec((0..6_u8, 0..8_u8, 0..400_u64), 0..2000),
        ) {
            let (mut room, mut now) = (room(), NOW);
            for (event, kind, number) in events {
                match event {
                    0 => now = now + Duration::from_millis(number),
                    1 => room.leave(number),
                    _ => drop(room.enter(kind, now)),
                }
                let counted: usize = room.by_kind.values().map(BTreeSet::len).sum();
                proptest::prop_assert_eq!(counted, room.len());
                proptest::prop_assert!(counted <= BOUNDS.all);
                let sizes: BTreeSet<(usize, u8)> =
                    room.by_kind.iter().map(|(kind, alike)| (alike.len(), *kind)).collect();
                proptest::prop_assert_eq!(&sizes, &room.by_size);
                proptest::prop_assert!(sizes.iter().all(|(size, _)| 0 < *size && *size <= BOUNDS.each));
            }
        }
    }
}
