//! The guests of some kinds, and which of those has most.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::time::Duration;

use countersign_identity::Timestamp;
use tokio_util::sync::CancellationToken;

use super::Rank;
use crate::limit::Permit;

/// All guests of some kinds. Whole at every step, should there be a panic under its lock.
#[derive(Debug)]
pub(super) struct Part<K> {
    pub(super) guests: BTreeMap<u64, Guest<K>>,
    pub(super) by_kind: HashMap<K, Alike>, // INVARIANT: the numbers of `guests`, none empty
    pub(super) strangers: BTreeSet<Crowd<K>>, // INVARIANT: of each of `by_kind` that is of this rank
    pub(super) known: BTreeSet<Crowd<K>>,     // INVARIANT: likewise
}

/// How many there are of one kind, and the oldest of them: of those that have as many, the last is who came first. Whoever chooses
/// how its kind is called chooses nothing by that.
pub(super) type Crowd<K> = (usize, Reverse<u64>, K);

/// The guests of one kind.
#[derive(Debug)]
pub(super) struct Alike {
    pub(super) rank: Rank,
    pub(super) numbers: BTreeSet<u64>,
}

#[derive(Debug)]
pub(super) struct Guest<K> {
    pub(super) kind: K,
    pub(super) since: Timestamp,
    pub(super) give_way: CancellationToken,
    pub(super) place: Permit,
}

impl<K> Default for Part<K> {
    fn default() -> Self {
        Self {
            guests: BTreeMap::new(),
            by_kind: HashMap::new(),
            strangers: BTreeSet::new(),
            known: BTreeSet::new(),
        }
    }
}

impl<K: Copy + Ord + Hash> Part<K> {
    pub(super) fn count_of(&self, kind: K) -> usize {
        self.by_kind.get(&kind).map_or(0, |alike| alike.numbers.len())
    }

    pub(super) fn oldest_of(&self, kind: K) -> Option<u64> {
        self.by_kind.get(&kind).and_then(|alike| alike.numbers.first().copied())
    }

    pub(super) fn rank_of(&self, kind: K) -> Option<Rank> {
        self.by_kind.get(&kind).map(|alike| alike.rank)
    }

    /// The kinds of this rank, the largest last.
    pub(super) const fn crowds(&mut self, rank: Rank) -> &mut BTreeSet<Crowd<K>> {
        match rank {
            Rank::Stranger => &mut self.strangers,
            Rank::Known => &mut self.known,
        }
    }

    pub(super) fn oldest(&self) -> Option<(u64, K)> {
        self.guests.first_key_value().map(|(number, guest)| (*number, guest.kind))
    }

    pub(super) fn was_here_long_enough(
        &self,
        number: u64,
        yields_after: Duration,
        now: Timestamp,
    ) -> bool {
        self.guests.get(&number).is_some_and(|guest| yields_after <= now.since(guest.since))
    }

    /// Has a guest go, whose place somebody else is to have.
    pub(super) fn dismiss(&mut self, number: u64) -> Option<Permit> {
        let guest = self.take_out(number)?;
        guest.give_way.cancel();
        Some(guest.place)
    }

    pub(super) fn take_out(&mut self, number: u64) -> Option<Guest<K>> {
        let guest = self.guests.remove(&number)?;
        self.change(guest.kind, |alike| {
            alike.numbers.remove(&number);
        });
        Some(guest)
    }

    /// Changes what is known of one kind, if it has guests.
    pub(super) fn change(&mut self, kind: K, change: impl FnOnce(&mut Alike)) {
        let Some(alike) = self.by_kind.get_mut(&kind) else { return };
        let before = alike.crowd(kind);
        change(alike);
        let after = alike.crowd(kind);
        if let Some((rank, crowd)) = before {
            self.crowds(rank).remove(&crowd);
        }
        if let Some((rank, crowd)) = after {
            self.crowds(rank).insert(crowd);
        } else {
            self.by_kind.remove(&kind);
        }
    }
}

impl Alike {
    /// As it is in order among its like. None when nobody is there.
    pub(super) fn crowd<K>(&self, kind: K) -> Option<(Rank, Crowd<K>)> {
        let oldest = self.numbers.first()?;
        Some((self.rank, (self.numbers.len(), Reverse(*oldest), kind)))
    }
}
