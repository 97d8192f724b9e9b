//! How many agents may be connected. Pure bookkeeping.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use countersign_identity::{NodeId, Timestamp};
use countersign_tls::{Limit, Permit, Rank, Room, RoomBounds, Shards, Stay};
use tokio_util::sync::CancellationToken;

/// Agents at once. Who is connected does not make room for one more: it would come back, and another would go, without end.
pub(super) const AGENTS_MAX: usize = 32_768;
/// Their connections. An agent needs one, and another while it changes over. There are more places than agents, so that whoever has
/// several makes room for one that has none.
pub(super) const CONNECTIONS: RoomBounds =
    RoomBounds { all: AGENTS_MAX + AGENTS_MAX / 8, each: 8, yields_after: Duration::ZERO };

/// The agents that are connected.
#[derive(Debug)]
pub(super) struct Agents {
    connections: Room<NodeId>,
    here: Arc<Shards<HashMap<NodeId, Here>>>,
    places: Limit,
}

#[derive(Debug)]
struct Here {
    connections: usize, // INVARIANT: not 0
    _place: Permit,
}

/// One connection of an agent.
#[derive(Debug)]
pub(super) struct AgentStay {
    stay: Stay<NodeId>,
    _counted: Counted,
}

#[derive(Debug)]
struct Counted {
    here: Arc<Shards<HashMap<NodeId, Here>>>,
    agent: NodeId,
}

impl Agents {
    /// Nobody is connected.
    pub(super) fn new() -> Self {
        let (connections, places) = (Room::new(CONNECTIONS), Limit::new(AGENTS_MAX));
        Self { connections, here: Arc::default(), places }
    }

    /// A connection of this agent. The oldest of too many that it has goes. None when too many others are connected.
    pub(super) fn enter(&self, agent: NodeId, now: Timestamp) -> Option<AgentStay> {
        let _counted = self.count(agent)?;
        let stay = self.connections.enter(agent, Rank::Known, now)?;
        Some(AgentStay { stay, _counted })
    }

    fn count(&self, agent: NodeId) -> Option<Counted> {
        let mut here = self.here.of_key(&agent);
        if let Some(known) = here.get_mut(&agent) {
            known.connections += 1;
        } else {
            here.insert(agent, Here { connections: 1, _place: self.places.take()? });
        }
        Some(Counted { here: Arc::clone(&self.here), agent })
    }
}

impl AgentStay {
    /// Cancelled when it has to go.
    pub(super) const fn give_way(&self) -> &CancellationToken {
        self.stay.give_way()
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut here = self.here.of_key(&self.agent);
        match here.get_mut(&self.agent) {
            Some(known) if 1 < known.connections => known.connections -= 1,
            _ => drop(here.remove(&self.agent)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1_000_000);

    fn agent(number: usize) -> NodeId {
        NodeId::from_bytes((number as u128).to_be_bytes())
    }

    fn gone(stays: &[AgentStay]) -> usize {
        stays.iter().filter(|stay| stay.give_way().is_cancelled()).count()
    }

    #[test]
    fn one_agent_too_many_is_turned_away_and_cuts_nobody_until_another_has_left() {
        let agents = Agents::new();
        let enter = |number| agents.enter(agent(number), NOW + Duration::from_secs(3600));
        let mut stays: Vec<_> = (0..AGENTS_MAX).map(|number| enter(number).unwrap()).collect();
        assert!((0..100).all(|_| enter(AGENTS_MAX).is_none()));
        // Whoever is here may change over.
        let next = enter(7).unwrap();
        assert_eq!(gone(&stays), 0);
        drop(stays.remove(7));
        assert!(enter(AGENTS_MAX).is_none(), "it is here by its other connection");
        drop(next);
        assert!(enter(AGENTS_MAX).is_some());
        drop(stays);
        assert_eq!((agents.places.left(), agents.connections.len()), (AGENTS_MAX, 0));
    }

    #[test]
    fn agents_that_have_several_connections_make_room_for_one_that_has_none() {
        let agents = Agents::new();
        let crowd = CONNECTIONS.all / CONNECTIONS.each;
        let enter = |number| agents.enter(agent(number), NOW).unwrap();
        let stays: Vec<_> = (0..CONNECTIONS.all).map(|number| enter(number % crowd)).collect();
        assert_eq!(gone(&stays), 0);
        let newcomers: Vec<_> = (0..100).map(|number| enter(crowd + number)).collect();
        assert_eq!((gone(&stays), gone(&newcomers)), (100, 0));
    }
}
