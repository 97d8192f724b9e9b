//! Handshakes, on their way to the agent.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use countersign_api::v1;
use countersign_identity::Code;
use countersign_tls::{Direction, HandshakeFact, Trust};
use tokio::sync::mpsc;

use crate::{Flow, Flows, Served};

/// How many facts wait for the agent. What comes on top is counted, not kept.
const WAITING_MAX: usize = 1024;

/// Takes what was seen of handshakes. Never waits, and never grows.
#[derive(Clone, Debug)]
pub struct Reporter {
    queue: mpsc::Sender<Counted>,
    dropped: Arc<AtomicU64>,
    flows: Flows,
    served: Served,
    trust: Arc<Trust>,
}

#[derive(Debug)]
pub(crate) struct Counted {
    fact: HandshakeFact,
    count: NonZeroU64,
}

/// The other end of a [`Reporter`].
pub(crate) struct Facts {
    pub(crate) queue: mpsc::Receiver<Counted>,
    pub(crate) flows: Flows,
    pub(crate) served: Served,
    dropped: Arc<AtomicU64>,
    told: u64,
}

impl Reporter {
    pub(crate) fn new(trust: Arc<Trust>) -> (Self, Facts) {
        let (sender, queue) = mpsc::channel(WAITING_MAX);
        let dropped = Arc::new(AtomicU64::new(0));
        let (flows, served) = (Flows::default(), Served::default());
        let facts = Facts {
            queue,
            flows: flows.clone(),
            served: served.clone(),
            dropped: Arc::clone(&dropped),
            told: 0,
        };
        (Self { queue: sender, dropped, flows, served, trust }, facts)
    }

    /// Passes on one handshake.
    pub fn report(&self, fact: HandshakeFact) {
        self.report_many(fact, NonZeroU64::MIN);
    }

    /// Passes on one that stands for several alike.
    pub fn report_many(&self, fact: HandshakeFact, count: NonZeroU64) {
        if let Some(flow) = self.flow(&fact) {
            self.flows.count(flow, fact.at);
        }
        if self.queue.try_send(Counted { fact, count }).is_err() {
            self.dropped.fetch_add(count.get(), Ordering::Relaxed);
        }
    }

    /// Where decisions about requests are counted.
    pub fn flows(&self) -> Flows {
        self.flows.clone()
    }

    /// Where answers of doors are counted.
    pub fn served(&self) -> Served {
        self.served.clone()
    }

    /// What was decided about a connection to a service of ours, by a handshake that proved its peer.
    fn flow(&self, fact: &HandshakeFact) -> Option<Flow> {
        let decided = matches!(fact.code, None | Some(Code::PolicyDenied | Code::PolicyError));
        if fact.direction != Direction::Inbound || !decided {
            return None;
        }
        let (service, peer) = (fact.service.clone()?, fact.peer.clone()?);
        let decision = self.trust.decision_on(&peer, &service, (fact.version, fact.group));
        // What is current by now may be another policy than the one that decided then.
        (decision.is_allowed() == fact.code.is_none())
            .then(|| Flow::connection(peer, service, &decision))
    }

    /// How many were not passed on, because the agent was away or too slow.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

impl Facts {
    /// How many were dropped since the last call.
    pub(crate) fn newly_dropped(&mut self) -> u64 {
        let dropped = self.dropped.load(Ordering::Relaxed);
        let new = dropped - self.told;
        self.told = dropped;
        new
    }
}

impl Counted {
    pub(crate) fn into_wire(self, point: &str) -> v1::HandshakeFact {
        let fact = self.fact;
        let direction = match fact.direction {
            Direction::Inbound => v1::Direction::Inbound,
            Direction::Outbound => v1::Direction::Outbound,
        };
        v1::HandshakeFact {
            at_micros: fact.at.micros(),
            point: point.to_owned(),
            direction: direction.into(),
            service: text(fact.service),
            local_id: text(fact.local),
            peer_id: text(fact.peer),
            peer_address: text(fact.peer_address),
            peer_serial: Bytes::from(fact.peer_serial),
            version: fact.version.to_owned(),
            group: fact.group.to_owned(),
            suite: fact.suite.to_owned(),
            resumed: fact.resumed,
            micros: u64::try_from(fact.took.as_micros()).unwrap_or(u64::MAX),
            code: fact.code.map_or_else(String::new, |code| code.as_str().to_owned()),
            detail: fact.detail,
            count: self.count.get(),
        }
    }
}

fn text(value: Option<impl ToString>) -> String {
    value.map(|value| value.to_string()).unwrap_or_default()
}
