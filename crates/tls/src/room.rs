//! How many may be somewhere at once, so that no source and no crowd takes the room of the others. Pure bookkeeping.

mod part;

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use countersign_identity::Timestamp;
use tokio_util::sync::CancellationToken;

use crate::limit::{Limit, Permit};
use crate::room::part::{Alike, Crowd, Guest, Part};
use crate::shards::Shards;

/// Who may be in a room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoomBounds {
    /// In all.
    pub all: usize,
    /// Of one kind.
    pub each: usize,
    /// How long a guest may stay before it gives way to a newcomer of its own kind, or to any while no kind has more than the
    /// newcomer's. Nothing, where guests stay for long: then every newcomer finds a place.
    pub yields_after: Duration,
}

/// What is known of a kind of guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    /// Nothing: whoever floods may be of any number of such kinds.
    Stranger,
    /// Somebody of that kind was let in lately. They make room for strangers only when they are slow.
    Known,
}

/// Guests by kind, such as handshakes under way by source.
///
/// When there is no place, the kind that has most of them makes one, at once: a newcomer of a kind that has few is not
/// kept out by many of others, however young they are. Nor is one of a kind that is known kept out by those that are
/// not, however few each of those has. Only then is anything locked that guests of all kinds share.
#[derive(Debug)]
pub struct Room<K: Copy + Ord + Hash>(Arc<Books<K>>);

#[derive(Debug)]
struct Books<K> {
    bounds: RoomBounds,
    parts: Shards<Part<K>>, // By kind
    places: Limit,          // INVARIANT: as many are taken as the parts hold guests
    last: AtomicU64,
    /// Held by who makes room, one after the other. Taken while no part is locked.
    crowded: Mutex<()>,
}

/// A guest's place. Dropped, it is free again.
#[derive(Debug)]
pub struct Stay<K: Copy + Ord + Hash> {
    books: Arc<Books<K>>,
    kind: K,
    number: u64,
    since: Timestamp,
    give_way: CancellationToken,
}

/// How often room is sought where others come and go meanwhile.
const TRIES_MAX: usize = 4;

impl<K: Copy + Ord + Hash> Room<K> {
    /// Nobody is here.
    pub fn new(bounds: RoomBounds) -> Self {
        Self(Arc::new(Books {
            bounds,
            parts: Shards::default(),
            places: Limit::new(bounds.all),
            last: AtomicU64::new(0),
            crowded: Mutex::new(()),
        }))
    }

    /// Lets a guest in; another goes if there is no place and it is time for it. None when there is no place.
    pub fn enter(&self, kind: K, rank: Rank, now: Timestamp) -> Option<Stay<K>> {
        let books = &self.0;
        let mut part = books.parts.of_key(&kind);
        part.change(kind, |alike| alike.rank = rank);
        if books.is_full_of(&part, kind) {
            let oldest = part.oldest_of(kind)?;
            if !part.was_here_long_enough(oldest, books.bounds.yields_after, now) {
                return None;
            }
            let place = part.dismiss(oldest)?;
            return Some(self.let_in(&mut part, (kind, rank), place, now));
        }
        if let Some(place) = books.places.take() {
            return Some(self.let_in(&mut part, (kind, rank), place, now));
        }
        drop(part);
        let place = books.make_room(kind, rank, now)?;
        let mut part = books.parts.of_key(&kind);
        // Others of its kind may have been faster.
        let fits = !books.is_full_of(&part, kind);
        fits.then(|| self.let_in(&mut part, (kind, rank), place, now))
    }

    /// How many are here.
    pub fn len(&self) -> usize {
        self.0.bounds.all - self.0.places.left()
    }

    /// Whether nobody is here.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn let_in(
        &self,
        part: &mut Part<K>,
        (kind, rank): (K, Rank),
        place: Permit,
        now: Timestamp,
    ) -> Stay<K> {
        let number = self.0.last.fetch_add(1, Ordering::Relaxed);
        let give_way = CancellationToken::new();
        let guest = Guest { kind, since: now, give_way: give_way.clone(), place };
        part.guests.insert(number, guest);
        part.by_kind.entry(kind).or_insert(Alike { rank, numbers: BTreeSet::new() });
        part.change(kind, |alike| {
            alike.numbers.insert(number);
        });
        Stay { books: self.0.clone(), kind, number, since: now, give_way }
    }
}

impl<K: Copy + Ord + Hash> Stay<K> {
    /// Cancelled when somebody else needs the place. It is not the guest's any more by then.
    pub const fn give_way(&self) -> &CancellationToken {
        &self.give_way
    }

    /// Whether it is held for so long that it would go for anybody. Who had to give way before that did nothing wrong.
    pub fn is_slow(&self, now: Timestamp) -> bool {
        self.books.bounds.yields_after <= now.since(self.since)
    }
}

impl<K: Copy + Ord + Hash> Drop for Stay<K> {
    fn drop(&mut self) {
        // Who gave way is gone already, and its place is another's.
        self.books.parts.of_key(&self.kind).take_out(self.number);
    }
}

impl<K: Copy + Ord + Hash> Books<K> {
    fn is_full_of(&self, part: &Part<K>, kind: K) -> bool {
        self.bounds.each <= part.count_of(kind)
    }

    /// The kind that makes room at once for a newcomer of this rank, whose kind has so many here; and of what rank it is.
    fn who_makes_room(&self, here: usize, rank: Rank) -> Option<(Rank, Crowd<K>)> {
        let has_more = |(_, (most, _, _)): &(Rank, Crowd<K>)| here + 1 < *most;
        match (rank, self.largest(Rank::Stranger)) {
            // However few of them are of one kind.
            (Rank::Known, Some(strangers)) => Some(strangers),
            (Rank::Known, None) => self.largest(Rank::Known).filter(has_more),
            (Rank::Stranger, strangers) => strangers.filter(has_more),
        }
    }

    fn largest(&self, of: Rank) -> Option<(Rank, Crowd<K>)> {
        let largest = self.parts.each().filter_map(|mut part| part.crowds(of).last().copied());
        largest.max().map(|crowd| (of, crowd))
    }

    /// A place for a newcomer of this kind that found none. None when it is the one that has to go.
    fn make_room(&self, kind: K, rank: Rank, now: Timestamp) -> Option<Permit> {
        let _one_at_a_time = self.crowded.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..TRIES_MAX {
            if let Some(place) = self.places.take() {
                return Some(place);
            }
            let here = self.parts.of_key(&kind).count_of(kind);
            let now_or_in_time =
                self.who_makes_room(here, rank).map(|crowd| (Duration::ZERO, crowd));
            // Newcomers of a large crowd take the places of such a crowd: nobody's who is there alone, however long.
            let now_or_in_time = now_or_in_time.or_else(|| {
                let largest = self.largest(Rank::Stranger).or_else(|| self.largest(Rank::Known));
                largest.map(|crowd| (self.bounds.yields_after, crowd))
            });
            if let Some((after, (of, (most, Reverse(oldest), crowd)))) = now_or_in_time {
                let mut part = self.parts.of_key(&crowd);
                // Some of it may have left since, or it may have become known.
                if part.count_of(crowd) < most
                    || part.oldest_of(crowd) != Some(oldest)
                    || part.rank_of(crowd) != Some(of)
                {
                    continue;
                }
                if part.was_here_long_enough(oldest, after, now) {
                    return part.dismiss(oldest);
                }
            }
            let oldest = self.parts.each().filter_map(|part| part.oldest()).min();
            let Some((number, of)) = oldest else { continue };
            let mut part = self.parts.of_key(&of);
            if !part.guests.contains_key(&number) {
                continue;
            }
            if !part.was_here_long_enough(number, self.bounds.yields_after, now) {
                return None;
            }
            return part.dismiss(number);
        }
        None
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

    fn fill(room: &Room<u8>, kind: u8, count: usize) -> Vec<Stay<u8>> {
        (0..count).map(|_| room.enter(kind, Rank::Stranger, NOW).unwrap()).collect()
    }

    /// All parts as they must be, and how many guests they have together.
    #[track_caller]
    fn counted(room: &Room<u8>) -> usize {
        room.0.parts.each().map(|part| checked(&part)).sum()
    }

    #[track_caller]
    fn checked(part: &Part<u8>) -> usize {
        let crowds = part.by_kind.iter().filter_map(|(kind, alike)| alike.crowd(*kind));
        let of = |rank| crowds.clone().filter(move |(of, _)| *of == rank).map(|(_, crowd)| crowd);
        assert_eq!(of(Rank::Stranger).collect::<BTreeSet<_>>(), part.strangers);
        assert_eq!(of(Rank::Known).collect::<BTreeSet<_>>(), part.known);
        let sizes: Vec<usize> =
            part.strangers.iter().chain(&part.known).map(|(size, _, _)| *size).collect();
        assert_eq!(sizes.len(), part.by_kind.len());
        assert!(sizes.iter().all(|size| (1..=BOUNDS.each).contains(size)), "{sizes:?}");
        assert_eq!(sizes.iter().sum::<usize>(), part.guests.len());
        part.guests.len()
    }

    #[test]
    fn one_kind_fills_its_own_places_only() {
        let room = room();
        let _guests = fill(&room, 1, BOUNDS.each);
        assert!(room.enter(1, Rank::Stranger, NOW).is_none());
        assert!(room.enter(2, Rank::Stranger, NOW).is_some());
    }

    #[test]
    fn a_slow_guest_gives_way_to_a_newcomer_of_its_kind_and_a_young_one_does_not() {
        let room = room();
        let other = room.enter(9, Rank::Stranger, NOW).unwrap();
        let guests = fill(&room, 1, BOUNDS.each);
        assert!(
            room.enter(1, Rank::Stranger, NOW + BOUNDS.yields_after - Duration::from_micros(1))
                .is_none()
        );
        assert!(room.enter(1, Rank::Stranger, NOW + BOUNDS.yields_after).is_some());
        let gone: Vec<bool> = guests.iter().map(|it| it.give_way.is_cancelled()).collect();
        assert!(gone[0] && gone.iter().filter(|gone| **gone).count() == 1);
        assert!(!other.give_way.is_cancelled());
    }

    #[test]
    fn a_newcomer_takes_the_place_of_one_of_the_many_however_young_they_are() {
        let room = room();
        let crowds: Vec<Vec<Stay<u8>>> = (1..=4).map(|kind| fill(&room, kind, 16)).collect();
        assert_eq!(room.len(), BOUNDS.all);
        let newcomer = room.enter(9, Rank::Stranger, NOW).expect("the largest crowd makes room");
        let gone = crowds.iter().flatten().filter(|it| it.give_way.is_cancelled()).count();
        assert_eq!((gone, room.len()), (1, BOUNDS.all));
        // It goes on until none has more than the newcomers would.
        let mut came = vec![newcomer];
        came.extend(std::iter::from_fn(|| room.enter(9, Rank::Stranger, NOW)));
        assert!(came.iter().all(|it| !it.give_way.is_cancelled()));
        assert_eq!(came.len(), 12, "a fifth of the places, about");
    }

    #[test]
    fn crowds_push_out_each_other_and_nobody_who_is_there_alone() {
        for yields_after in [Duration::ZERO, BOUNDS.yields_after] {
            let room = Room::new(RoomBounds { yields_after, ..BOUNDS });
            let alone = room.enter(100, Rank::Stranger, NOW).unwrap();
            let (mut crowd, mut now) = (Vec::new(), NOW);
            for kind in (0..5_u8).cycle().take(640) {
                now = now + BOUNDS.yields_after / 32;
                crowd.extend(room.enter(kind, Rank::Stranger, now));
            }
            assert!(!alone.give_way.is_cancelled(), "yields after {yields_after:?}");
            let gone = crowd.iter().filter(|it| it.give_way.is_cancelled()).count();
            assert_eq!((gone + BOUNDS.all - 1, room.len()), (crowd.len(), BOUNDS.all));
            assert!(300 < gone, "they go on coming in");
        }
    }

    #[test]
    fn where_all_have_one_each_only_a_slow_one_goes() {
        let room = room();
        let guests: Vec<Stay<u8>> =
            (0..64).map(|kind| room.enter(kind, Rank::Stranger, NOW).unwrap()).collect();
        assert!(room.enter(100, Rank::Stranger, NOW).is_none());
        assert!(room.enter(100, Rank::Stranger, NOW + BOUNDS.yields_after).is_some());
        assert!(guests[0].give_way.is_cancelled());
    }

    #[test]
    fn one_that_is_known_takes_the_place_of_a_stranger_however_young_and_few_of_a_kind_those_are() {
        let room = room();
        let known = room.enter(200, Rank::Known, NOW).unwrap();
        let strangers: Vec<Stay<u8>> =
            (0..63).map(|kind| room.enter(kind, Rank::Stranger, NOW).unwrap()).collect();
        assert!(room.enter(100, Rank::Stranger, NOW).is_none(), "it would take a known one's");
        let more: Vec<Stay<u8>> = (101..105)
            .map(|kind| room.enter(kind, Rank::Known, NOW).expect("a stranger makes room"))
            .collect();
        let gone = strangers.iter().filter(|it| it.give_way.is_cancelled()).count();
        assert_eq!((gone, room.len()), (4, BOUNDS.all));
        assert!(!known.give_way.is_cancelled());
        assert!(more.iter().all(|it| !it.give_way.is_cancelled()));
    }

    #[test]
    fn of_strangers_with_as_many_each_it_is_the_oldest_who_makes_room_whatever_it_is_called() {
        for honest in [0, 50, 250] {
            let room = room();
            let silent: Vec<Stay<u8>> =
                (100..163).map(|kind| room.enter(kind, Rank::Stranger, NOW).unwrap()).collect();
            let newest = room.enter(honest, Rank::Stranger, NOW).unwrap();
            let _known: Vec<_> =
                (200..240).map(|kind| room.enter(kind, Rank::Known, NOW).unwrap()).collect();
            let gone: Vec<bool> = silent.iter().map(|it| it.give_way.is_cancelled()).collect();
            assert!(gone[..40].iter().all(|gone| *gone) && !gone[40..].contains(&true), "{gone:?}");
            assert!(!newest.give_way.is_cancelled());
            assert!(!newest.is_slow(NOW) && newest.is_slow(NOW + BOUNDS.yields_after));
        }
    }

    #[test]
    fn strangers_take_no_place_of_a_crowd_that_is_known_unless_it_is_slow() {
        let room = room();
        let crowds = |kind| (0..16).map(move |_| (kind, NOW));
        let crowd: Vec<Stay<u8>> = (1..=4)
            .flat_map(crowds)
            .map(|(kind, now)| room.enter(kind, Rank::Known, now).unwrap())
            .collect();
        assert!(room.enter(9, Rank::Stranger, NOW).is_none());
        let _other = room.enter(8, Rank::Known, NOW).expect("the largest crowd makes room");
        assert_eq!(crowd.iter().filter(|it| it.give_way.is_cancelled()).count(), 1);
        let _slow = room.enter(9, Rank::Stranger, NOW + BOUNDS.yields_after).unwrap();
        assert_eq!(crowd.iter().filter(|it| it.give_way.is_cancelled()).count(), 2);
    }

    #[test]
    fn a_kind_is_of_the_rank_that_was_said_of_it_last() {
        let room = room();
        let guests = fill(&room, 1, 2);
        let _known = room.enter(1, Rank::Known, NOW).unwrap();
        assert_eq!(counted(&room), 3);
        let _others: Vec<_> =
            (2..63).map(|kind| room.enter(kind, Rank::Known, NOW).unwrap()).collect();
        assert!(room.enter(100, Rank::Stranger, NOW).is_none(), "nobody is a stranger any more");
        assert!(guests.iter().all(|it| !it.give_way.is_cancelled()));
    }

    #[test]
    fn places_are_free_again_and_nothing_is_left_behind() {
        let room = room();
        for _ in 0..1000 {
            drop(room.enter(1, Rank::Stranger, NOW).unwrap());
        }
        assert!(room.is_empty() && counted(&room) == 0);
        assert!(room.0.parts.each().all(|part| part.by_kind.is_empty()));
    }

    #[test]
    fn who_gave_way_frees_no_place_by_leaving() {
        let room = Room::new(RoomBounds { all: 2, each: 1, yields_after: Duration::ZERO });
        let gone = room.enter(1, Rank::Stranger, NOW).unwrap();
        let _others = (
            room.enter(1, Rank::Stranger, NOW).unwrap(),
            room.enter(2, Rank::Stranger, NOW).unwrap(),
        );
        drop(gone);
        assert_eq!(room.len(), 2);
    }

    proptest::proptest! {
        #[test]
        fn no_order_of_events_goes_over_a_bound_or_loses_count(
            events in proptest::collection::vec((0..6_u8, 0..8_u8, 0..200_usize), 0..600),
        ) {
            let (room, mut now, mut guests) = (room(), NOW, Vec::new());
            for (event, kind, number) in events {
                match event {
                    0 => now = now + Duration::from_millis(number as u64),
                    1 if number < guests.len() => drop(guests.swap_remove(number)),
                    2 => guests.extend(room.enter(kind, Rank::Known, now)),
                    _ => guests.extend(room.enter(kind, Rank::Stranger, now)),
                }
                let stay = guests.iter().filter(|it: &&Stay<u8>| !it.give_way.is_cancelled());
                let counted = counted(&room);
                proptest::prop_assert_eq!((counted, counted), (stay.count(), room.len()));
                proptest::prop_assert!(room.len() <= BOUNDS.all);
            }
        }
    }

    #[test]
    fn the_bounds_hold_on_several_threads_and_nothing_is_lost() {
        let room = &room();
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4_u8)
                .map(|thread| {
                    scope.spawn(move || {
                        let (mut guests, mut most) = (Vec::new(), 0);
                        for round in 0..4000_u32 {
                            let kind = thread * 4 + u8::try_from(round * round % 7).unwrap() / 2;
                            let now = NOW + Duration::from_millis(u64::from(round) * 10);
                            let rank = if round % 3 == 0 { Rank::Known } else { Rank::Stranger };
                            guests.extend(room.enter(kind, rank, now));
                            most = most.max(room.len());
                            if round % 64 == 0 {
                                counted(room);
                            }
                            // Far more than there is room for, and then nobody, in turns.
                            if 80 < guests.len() {
                                guests.clear();
                            }
                        }
                        (guests, most)
                    })
                })
                .collect();
            let left: Vec<_> = threads.into_iter().map(|it| it.join().unwrap()).collect();
            assert!(left.iter().all(|(_, most)| *most <= BOUNDS.all));
            assert!(left.iter().any(|(_, most)| *most == BOUNDS.all), "it was full");
            assert_eq!(counted(room), room.len());
        });
        assert_eq!((counted(room), room.len()), (0, 0));
    }
}
