//! How many callers may be here at once, before and after they have said who they are. Pure bookkeeping.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use countersign_identity::{Code, NodeId, Timestamp};
use tokio_util::sync::CancellationToken;

use crate::refusal::Refused;
use crate::source::Source;

/// Who may be in a room.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    /// In all.
    all: usize,
    /// Of one kind.
    each: usize,
    /// How long each may stay before it gives way to a newcomer.
    yields_after: Duration,
}

/// Connections that have shown no agent's identity: handshakes under way, joining and renewing machines. An honest
/// one needs a fraction of a second, so that a slow one is the one to go when there is no room.
const STRANGERS: Bounds = Bounds { all: 1024, each: 128, yields_after: Duration::from_millis(500) };
/// Connections of agents. One agent needs one, and another while it changes over.
const AGENTS: Bounds = Bounds { all: 32_768, each: 8, yields_after: Duration::ZERO };

/// Counts callers, so that no source, no crowd of strangers and no single agent takes the room of the others.
#[derive(Clone, Debug)]
pub(crate) struct Crowd(Arc<Mutex<Rooms>>);

#[derive(Debug)]
struct Rooms {
    last: u64,
    strangers: Room<Source>,
    agents: Room<NodeId>,
}

#[derive(Debug)]
struct Room<K> {
    bounds: Bounds,
    guests: BTreeMap<u64, Guest<K>>, // INVARIANT: in the order of arrival, at most `bounds.all`
    by_kind: HashMap<K, BTreeSet<u64>>, // INVARIANT: the numbers of `guests`, no empty set
}

#[derive(Debug)]
struct Guest<K> {
    kind: K,
    since: Timestamp,
    give_way: CancellationToken,
}

/// A caller's place. Dropped, it is free again.
#[derive(Debug)]
pub(crate) struct Place {
    crowd: Crowd,
    number: u64,
    give_way: CancellationToken,
}

impl<K: Copy + Eq + Hash> Room<K> {
    fn new(bounds: Bounds) -> Self {
        Self { bounds, guests: BTreeMap::new(), by_kind: HashMap::new() }
    }

    /// Lets a guest in; one that was here long enough goes if there is no room.
    fn enter(&mut self, number: u64, kind: K, now: Timestamp) -> Option<CancellationToken> {
        let alike = self.by_kind.get(&kind);
        let goes = if alike.is_some_and(|alike| self.bounds.each <= alike.len()) {
            alike.and_then(|alike| alike.first().copied())
        } else if self.bounds.all <= self.guests.len() {
            self.guests.keys().next().copied()
        } else {
            None
        };
        if let Some(goes) = goes {
            let oldest = self.guests.get(&goes)?;
            if now.since(oldest.since) < self.bounds.yields_after {
                return None;
            }
            oldest.give_way.cancel();
            self.leave(goes);
        }
        let give_way = CancellationToken::new();
        self.guests.insert(number, Guest { kind, since: now, give_way: give_way.clone() });
        self.by_kind.entry(kind).or_default().insert(number);
        Some(give_way)
    }

    /// A guest has gone. Saying so twice is harmless.
    fn leave(&mut self, number: u64) {
        let Some(guest) = self.guests.remove(&number) else { return };
        if let Some(alike) = self.by_kind.get_mut(&guest.kind) {
            alike.remove(&number);
            if alike.is_empty() {
                self.by_kind.remove(&guest.kind);
            }
        }
    }
}

impl Crowd {
    /// Nobody is here.
    pub(crate) fn new() -> Self {
        let rooms = Rooms { last: 0, strangers: Room::new(STRANGERS), agents: Room::new(AGENTS) };
        Self(Arc::new(Mutex::new(rooms)))
    }

    /// Lets a new caller in, as a stranger.
    ///
    /// # Errors
    /// `too-many-connections` when there is no place; the connection is then closed unread.
    pub(crate) fn enter(&self, address: IpAddr, now: Timestamp) -> Result<Place, Refused> {
        let mut rooms = self.rooms();
        rooms.last += 1;
        let number = rooms.last;
        let give_way = rooms.strangers.enter(number, Source::of(address), now).ok_or_else(full)?;
        drop(rooms);
        Ok(Place { crowd: self.clone(), number, give_way })
    }

    fn rooms(&self) -> MutexGuard<'_, Rooms> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn full() -> Refused {
    Refused::new(Code::TooManyConnections, "the limit of connections is reached")
}

impl Place {
    /// The caller has proven to be this agent, and no longer counts as a stranger. The oldest of too many
    /// connections of one agent goes.
    ///
    /// # Errors
    /// `too-many-connections` when there is no place.
    pub(crate) fn known(&mut self, agent: NodeId, now: Timestamp) -> Result<(), Refused> {
        let mut rooms = self.crowd.rooms();
        rooms.strangers.leave(self.number);
        self.give_way = rooms.agents.enter(self.number, agent, now).ok_or_else(full)?;
        Ok(())
    }

    /// Resolves when the caller has to go, because somebody else needs the place.
    pub(crate) fn gives_way(&self) -> impl Future<Output = ()> + Send + 'static + use<> {
        self.give_way.clone().cancelled_owned()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut rooms = self.crowd.rooms();
        rooms.strangers.leave(self.number);
        rooms.agents.leave(self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1_000_000);
    const AGENT: NodeId = NodeId::from_bytes([1; 16]);

    fn address(number: usize) -> IpAddr {
        IpAddr::V4(u32::try_from(number).unwrap().into())
    }

    fn later() -> Timestamp {
        NOW + STRANGERS.yields_after
    }

    #[test]
    fn one_source_takes_its_own_places_only() {
        let crowd = Crowd::new();
        let enter = |number| crowd.enter(address(number), NOW);
        let mut places: Vec<_> = (0..STRANGERS.each).map(|_| enter(1).unwrap()).collect();
        assert_eq!(enter(1).unwrap_err().code, Code::TooManyConnections);
        assert!(enter(2).is_ok());
        places[0].known(AGENT, NOW).unwrap();
        assert!(enter(1).is_ok(), "who is known is no stranger");
    }

    #[test]
    fn addresses_of_one_subscriber_share_their_places() {
        let crowd = Crowd::new();
        let enter =
            |number: usize| crowd.enter(format!("2001:db8:0:1::{number:x}").parse().unwrap(), NOW);
        let _places: Vec<_> = (0..STRANGERS.each).map(|number| enter(number).unwrap()).collect();
        assert!(enter(STRANGERS.each).is_err());
        assert!(crowd.enter("2001:db8:0:2::1".parse().unwrap(), NOW).is_ok());
    }

    #[test]
    fn slow_strangers_give_way_and_young_ones_do_not() {
        let crowd = Crowd::new();
        let places: Vec<_> =
            (0..STRANGERS.all).map(|number| crowd.enter(address(number), NOW).unwrap()).collect();
        assert!(crowd.enter(address(5000), NOW).is_err());
        let newcomer = crowd.enter(address(5000), later()).unwrap();
        assert!(places[0].give_way.is_cancelled());
        assert!(!places[1].give_way.is_cancelled());
        drop((places, newcomer));
        let rooms = crowd.rooms();
        assert!(rooms.strangers.guests.is_empty() && rooms.strangers.by_kind.is_empty());
    }

    #[test]
    fn agent_with_too_many_connections_loses_its_own_oldest() {
        let crowd = Crowd::new();
        let mut other = crowd.enter(address(1), NOW).unwrap();
        other.known(NodeId::from_bytes([2; 16]), NOW).unwrap();
        let mut places = Vec::new();
        for _ in 0..=AGENTS.each {
            let mut place = crowd.enter(address(1), NOW).unwrap();
            place.known(AGENT, NOW).unwrap();
            places.push(place);
        }
        let gone: Vec<_> = places.iter().map(|place| place.give_way.is_cancelled()).collect();
        assert_eq!(gone.iter().filter(|gone| **gone).count(), 1);
        assert!(gone[0] && !other.give_way.is_cancelled());
    }
}
