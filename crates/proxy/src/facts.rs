//! Facts on their way to the agent: never waited for, and failures of one source never more than a trickle.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use countersign_identity::{Name, Timestamp};
use countersign_tls::{Allowance, Direction, HandshakeFact, Shards, Source};

use crate::bounds::{FAILURES, SOURCES_PER_SHARD_MAX};
use crate::metrics::Metrics;
use crate::plane::Plane;

/// Takes a fact without waiting.
pub type Sink = Arc<dyn Fn(HandshakeFact) + Send + Sync>;

/// Counts every fact, and passes on those that there is room for.
pub struct Facts {
    sink: Sink,
    metrics: Metrics,
    failures: Shards<Reported>, // By source
}

impl Facts {
    /// Counts here, and passes on there.
    pub fn new(sink: Sink, metrics: Metrics) -> Self {
        Self { sink, metrics, failures: Shards::default() }
    }

    /// Takes one, and never waits.
    pub fn report(&self, fact: HandshakeFact) {
        self.metrics.handshake(&fact);
        let source = fact.peer_address.map(|address| Source::of(address.ip()));
        if fact.code.is_some() {
            let allowed = self.failures.of_key(&source).allows(source, fact.at);
            if !allowed {
                self.metrics.fact_dropped();
                return;
            }
        }
        (self.sink)(fact);
    }
}

/// A fact of which nothing is known yet but where it was seen.
pub(crate) fn blank_fact(
    plane: &Plane,
    direction: Direction,
    service: &Name,
    from: Option<SocketAddr>,
) -> HandshakeFact {
    HandshakeFact {
        at: plane.clock.now(),
        direction,
        service: Some(service.clone()),
        local: None,
        peer: None,
        peer_address: from,
        peer_serial: Vec::new(),
        version: "",
        group: "",
        suite: "",
        resumed: false,
        took: std::time::Duration::ZERO,
        code: None,
        detail: String::new(),
    }
}

/// How many failures each source may still have reported.
#[derive(Default)]
struct Reported {
    sources: HashMap<Option<Source>, Allowance>, // INVARIANT: at most SOURCES_PER_SHARD_MAX, and one for all others
    looked: Option<Timestamp>,
}

/// How often those are looked for of whom nothing has to be known any more.
const LOOK_EVERY: Duration = Duration::from_secs(1);

impl Reported {
    fn allows(&mut self, source: Option<Source>, now: Timestamp) -> bool {
        let has_room = |sources: &HashMap<_, _>| {
            sources.len() < SOURCES_PER_SHARD_MAX || sources.contains_key(&source)
        };
        if !has_room(&self.sources) && self.may_look(now) {
            // A source that has its whole allowance again is as good as unknown.
            self.sources.retain(|_, allowance| allowance.left(FAILURES, now) < FAILURES.burst);
        }
        let known = has_room(&self.sources);
        let key = if known { source } else { None };
        let allowance = self.sources.entry(key).or_insert(Allowance::whole(FAILURES, now));
        allowance.take(FAILURES, now)
    }

    fn may_look(&mut self, now: Timestamp) -> bool {
        // The second half is for a clock that went back.
        let lately = |looked: Timestamp| looked <= now && now.since(looked) < LOOK_EVERY;
        let due = !self.looked.is_some_and(lately);
        if due {
            self.looked = Some(now);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::time::Duration;

    use super::*;

    fn source(number: u32) -> Option<Source> {
        Some(Source::of(IpAddr::from(number.to_be_bytes())))
    }

    #[test]
    fn one_source_is_reduced_to_a_trickle_and_the_others_are_not() {
        let mut allowance = Reported::default();
        let start = Timestamp::from_secs(100);
        let passed = (0..1000).filter(|_| allowance.allows(source(1), start)).count();
        assert_eq!(passed, FAILURES.burst as usize);
        assert!(allowance.allows(source(2), start));
        let mut passed = 0;
        for tenth in 1..=100 {
            let now = start + Duration::from_millis(100 * tenth);
            passed += usize::from(allowance.allows(source(1), now));
        }
        assert_eq!(passed, 20, "two a second");
    }

    #[test]
    fn sources_without_end_take_no_memory_without_end() {
        let mut allowance = Reported::default();
        let now = Timestamp::from_secs(100);
        let passed = (0..100_000).filter(|number| allowance.allows(source(*number), now)).count();
        assert!(allowance.sources.len() <= SOURCES_PER_SHARD_MAX + 1);
        assert!(passed <= SOURCES_PER_SHARD_MAX + FAILURES.burst as usize);
        let later = now + Duration::from_secs(60);
        assert!(
            allowance.allows(source(200_000), later),
            "room is made of those that behaved since"
        );
    }
}
