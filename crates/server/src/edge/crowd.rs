//! How many callers may be here at once, and how often, before and after they have said who they are. Pure bookkeeping.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use countersign_identity::{Code, NodeId, Timestamp};
use countersign_tls::{
    Leave, Limit, Outcome, Rate, Room, RoomBounds, Source, StandingRates, Standings, Stay, Unsaid,
};
use tokio_util::sync::CancellationToken;

use crate::edge::agents::{AgentStay, Agents};
use crate::edge::conduct::{Conduct, Shown};
use crate::refusal::Refused;

/// Connections that have shown no agent's identity: handshakes under way, joining and renewing machines. An honest
/// one needs a fraction of a second, so that a slow one is the one to go when there is no room.
const STRANGERS: RoomBounds =
    RoomBounds { all: 1024, each: 128, yields_after: Duration::from_millis(500) };
/// Callers at once that are being told that somebody else has their place. More are cut unsaid.
const PARTINGS_MAX: usize = 64;
/// A handshake costs 0.4 ms: strangers and suspects together get half of a core at most. One machine that joins needs two,
/// and hundreds may stand behind one address.
const RATES: StandingRates = StandingRates {
    suspect: Rate { burst: 256, every: Duration::from_millis(20) },
    proven: Rate { burst: 2048, every: Duration::from_millis(5) },
    suspects: Rate { burst: 256, every: Duration::from_millis(4) },
    strangers: Rate { burst: 1024, every: Duration::from_millis(1) },
};

/// Counts callers, so that no source, no crowd of strangers and no single agent takes the room of the others.
#[derive(Clone, Debug)]
pub(crate) struct Crowd(Arc<Books>);

#[derive(Debug)]
struct Books {
    standings: Standings,
    shown: Shown,
    strangers: Room<Source>,
    agents: Agents,
    partings: Limit,
}

/// A caller's place during its handshake. Dropped, it is free again.
#[derive(Debug)]
pub(crate) struct Entry {
    crowd: Crowd,
    source: Source,
    leave: Leave,
    stay: Stay<Source>,
}

/// A caller's place after its handshake. Dropped, it is free again.
#[derive(Debug)]
pub(crate) struct Place {
    crowd: Crowd,
    source: Source,
    stay: As,
}

/// As what somebody is here.
#[derive(Debug)]
enum As {
    Stranger(Stay<Source>),
    Agent(AgentStay),
}

impl Crowd {
    /// Nobody is here.
    pub(crate) fn new(now: Timestamp) -> Self {
        Self(Arc::new(Books {
            standings: Standings::new(RATES, now),
            shown: Shown::new(now),
            strangers: Room::new(STRANGERS),
            agents: Agents::new(),
            partings: Limit::new(PARTINGS_MAX),
        }))
    }

    /// Lets a new caller in, as a stranger.
    ///
    /// # Errors
    /// `rate-limited` when too many like it have failed, `too-many-connections` when there is no place; the connection is
    /// then closed unread.
    pub(crate) fn enter(&self, address: IpAddr, now: Timestamp) -> Result<Entry, Refused> {
        let (source, standings) = (Source::of(address), &self.0.standings);
        let leave = standings.begin(source, now);
        let leave = leave.map_err(|refused| Refused::new(refused.code, refused.why))?;
        let Some(stay) = self.0.strangers.enter(source, leave.rank(), now) else {
            standings.ended(leave, Outcome::Nothing, now);
            return Err(full());
        };
        Ok(Entry { crowd: self.clone(), source, leave, stay })
    }

    /// What was shown on connections.
    pub(super) fn shown(&self) -> &Shown {
        &self.0.shown
    }

    /// Who had not said in this handshake who they are has proved it since.
    pub(super) fn vouch(&self, handshake: Unsaid, now: Timestamp) {
        self.0.standings.vouched(handshake, now);
    }
}

fn full() -> Refused {
    Refused::new(Code::TooManyConnections, "the limit of connections is reached")
}

impl Entry {
    /// How the handshake ended. Gives the caller its place from then on, and what is shown on the connection its place in the books.
    pub(crate) fn handshake(self, outcome: Outcome, now: Timestamp) -> (Place, Conduct) {
        let Self { crowd, source, leave, stay } = self;
        let unsaid = crowd.0.standings.ended(leave, outcome, now);
        if outcome == Outcome::Proven {
            crowd.0.shown.proven(source, now);
        }
        let conduct = Conduct::new(crowd.clone(), source, unsaid);
        (Place { crowd, source, stay: As::Stranger(stay) }, conduct)
    }

    /// The handshake was ended because somebody else needed the place. Whoever was not even slow did nothing wrong, and is not held
    /// to have failed; but what it took of the common allowance was used.
    pub(crate) fn gave_way(self, now: Timestamp) {
        if self.stay.is_slow(now) {
            self.crowd.0.standings.ended(self.leave, Outcome::Failed, now);
        }
    }

    /// Resolves when the caller has to go, because somebody else needs the place.
    pub(crate) fn gives_way(&self) -> impl Future<Output = ()> + Send + 'static + use<> {
        self.stay.give_way().clone().cancelled_owned()
    }
}

impl Place {
    /// The connection has ended. An agent that was here until now comes back from where it was, so that after an outage
    /// it does not wait among strangers.
    pub(crate) fn left(&self, now: Timestamp) {
        if matches!(self.stay, As::Agent(_)) {
            self.crowd.0.standings.proven(self.source, now);
            self.crowd.0.shown.proven(self.source, now);
        }
    }

    /// The caller has proven to be this agent, and no longer counts as a stranger. The oldest of too many
    /// connections of one agent goes.
    ///
    /// # Errors
    /// `too-many-connections` when so many other agents are here that there is no place. They stay.
    pub(crate) fn known(&mut self, agent: NodeId, now: Timestamp) -> Result<(), Refused> {
        self.stay = As::Agent(self.crowd.0.agents.enter(agent, now).ok_or_else(full)?);
        Ok(())
    }

    /// Resolves when the caller has to go, because somebody else needs the place.
    pub(crate) fn gives_way(&self) -> impl Future<Output = ()> + Send + 'static + use<> {
        self.give_way().clone().cancelled_owned()
    }

    /// How many more callers may be told that they gave way.
    pub(crate) fn partings(&self) -> Limit {
        self.crowd.0.partings.clone()
    }

    const fn give_way(&self) -> &CancellationToken {
        match &self.stay {
            As::Stranger(stay) => stay.give_way(),
            As::Agent(stay) => stay.give_way(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edge::agents::CONNECTIONS;

    impl Crowd {
        /// Somebody whose handshake is over, and who has yet to say who it is.
        fn lets_in(&self, number: usize) -> Place {
            self.enter(address(number), NOW).unwrap().handshake(Outcome::Nothing, NOW).0
        }
    }

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
        let crowd = Crowd::new(NOW);
        let enter = |number| crowd.enter(address(number), NOW);
        let mut places: Vec<_> = (0..STRANGERS.each).map(|_| crowd.lets_in(1)).collect();
        assert_eq!(enter(1).unwrap_err().code, Code::TooManyConnections);
        assert!(enter(2).is_ok());
        places[0].known(AGENT, NOW).unwrap();
        assert!(enter(1).is_ok(), "who is known is no stranger");
    }

    #[test]
    fn addresses_of_one_subscriber_share_their_places() {
        let crowd = Crowd::new(NOW);
        let enter =
            |number: usize| crowd.enter(format!("2001:db8:0:1::{number:x}").parse().unwrap(), NOW);
        let _places: Vec<_> = (0..STRANGERS.each).map(|number| enter(number).unwrap()).collect();
        assert!(enter(STRANGERS.each).is_err());
        assert!(crowd.enter("2001:db8:0:2::1".parse().unwrap(), NOW).is_ok());
    }

    #[test]
    fn slow_strangers_give_way_and_young_ones_do_not() {
        let crowd = Crowd::new(NOW);
        let places: Vec<_> =
            (0..STRANGERS.all).map(|number| crowd.enter(address(number), NOW).unwrap()).collect();
        assert!(crowd.enter(address(5000), NOW).is_err());
        let newcomer = crowd.enter(address(5000), later()).unwrap();
        assert!(places[0].stay.give_way().is_cancelled());
        assert!(!places[1].stay.give_way().is_cancelled());
        drop((places, newcomer));
        assert!(crowd.0.strangers.is_empty());
    }

    #[test]
    fn so_many_at_once_are_told_that_they_gave_way_whoever_they_are() {
        let crowd = Crowd::new(NOW);
        let places = [1, 2].map(|number| crowd.lets_in(number));
        let tries = places.iter().cycle().take(2 * PARTINGS_MAX);
        let mut told: Vec<_> = tries.filter_map(|place| place.partings().take()).collect();
        assert_eq!(told.len(), PARTINGS_MAX);
        told.pop();
        assert!(places[0].partings().take().is_some(), "the next one, when one has gone");
    }

    #[test]
    fn who_gave_way_while_young_is_no_suspect_and_who_was_slow_is() {
        for (stayed, refused) in [(Duration::from_millis(1), false), (STRANGERS.yields_after, true)]
        {
            let (crowd, mut now) = (Crowd::new(NOW), NOW);
            for _ in 0..4 {
                let enter = |_| crowd.enter(address(1), now).ok();
                let places: Vec<_> = (0..100).filter_map(enter).collect();
                now = now + stayed;
                places.into_iter().for_each(|place| place.gave_way(now));
            }
            assert_eq!(crowd.enter(address(1), now).is_err(), refused, "after {stayed:?}");
        }
    }

    #[test]
    fn a_source_whose_handshakes_fail_is_turned_away_unread_and_others_are_not() {
        let crowd = Crowd::new(NOW);
        let tries = (0..10_000).filter(|_| {
            let place = crowd.enter(address(1), NOW);
            place.map(|place| place.handshake(Outcome::Failed, NOW)).is_ok()
        });
        assert_eq!(tries.count(), RATES.suspect.burst as usize);
        assert_eq!(crowd.enter(address(1), NOW).unwrap_err().code, Code::RateLimited);
        let entry = crowd.enter(address(2), NOW).unwrap();
        let (_place, _) = entry.handshake(Outcome::Proven, NOW);
        assert!(crowd.0.strangers.len() == 1, "nobody stays who was turned away");
    }

    #[test]
    fn agent_with_too_many_connections_loses_its_own_oldest() {
        let crowd = Crowd::new(NOW);
        let mut other = crowd.lets_in(1);
        other.known(NodeId::from_bytes([2; 16]), NOW).unwrap();
        let mut places = Vec::new();
        for _ in 0..=CONNECTIONS.each {
            let mut place = crowd.lets_in(1);
            place.known(AGENT, NOW).unwrap();
            places.push(place);
        }
        let gone: Vec<_> = places.iter().map(|place| place.give_way().is_cancelled()).collect();
        assert_eq!(gone.iter().filter(|gone| **gone).count(), 1);
        assert!(gone[0] && !other.give_way().is_cancelled());
    }

    #[test]
    fn agent_that_was_here_until_the_outage_does_not_wait_among_strangers_after_it() {
        let crowd = Crowd::new(NOW);
        let entry = crowd.enter(address(1), NOW).unwrap();
        let (mut place, _) = entry.handshake(Outcome::Proven, NOW);
        place.known(AGENT, NOW).unwrap();
        let hours_later = NOW + Duration::from_secs(5 * 3600);
        place.left(hours_later);
        drop(place);
        let after = hours_later + Duration::from_secs(600);
        let mut number = 1000;
        while crowd.enter(address(number), after).is_ok() {
            number += 1;
        }
        let entry = crowd.enter(address(1), after).unwrap();
        let (_place, conduct) = entry.handshake(Outcome::Anonymous, after);
        conduct.shows(after).unwrap();
        // Who was here and was nobody waits as the others do.
        let entry = crowd.enter(address(1), after).unwrap();
        entry.handshake(Outcome::Nothing, after).0.left(after);
        assert!(crowd.enter(address(number), after).is_err());
    }
}
