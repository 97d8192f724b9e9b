//! What the server sees of itself and of others: facts, counts, the status and the metrics.

mod accepted;
mod answered;
mod facts;
mod flows;
mod kept;
mod metrics;
mod notes;
mod pulse;
mod seen;
mod status;
mod table;
mod tallies;
mod time;
mod vitals;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use countersign_api::{v1, wire};
use countersign_identity::{Code, Failed, NodeId, Timestamp, Vital, Vitals};
use countersign_store::{NodeRow, TallyOf};
use countersign_tls::{Direction, HandshakeFact};

pub(crate) use accepted::{accept_clock, begin, believed, highest, in_order_from, note_word};
pub(crate) use answered::{Answers, answers};
pub(crate) use facts::{Fact, Facts};
pub(crate) use flows::{Flows, flows, keep_flows};
pub(crate) use kept::{Ends, KeptTime};
pub(crate) use metrics::{metric_table, serve_metrics};
pub(crate) use notes::Notes;
pub(crate) use pulse::Pulse;
pub(crate) use seen::{Found, Sought, Wanted, search};
pub(crate) use status::{About, LogTree, sealed_status, status};
pub(crate) use table::Row;
pub(crate) use tallies::{SPAN, Tallies, keep_tallies, span_of};
pub(crate) use time::{Moment, TimeGuard};

/// The server's own name among the enforcement points.
pub(crate) const SERVER_POINT: &str = "server";

/// What was counted since the server started.
#[derive(Debug)]
pub(crate) struct Watch {
    pub(crate) facts: Facts,
    pub(crate) flows: Flows,
    pub(crate) reviews: crate::review::Waiting,
    pub(crate) differences: crate::inventory::Differences,
    pub(crate) tallies: Tallies,
    pub(crate) started: Timestamp,
    connections: AtomicUsize,
    issued: AtomicU64,
    lists: AtomicU64,
    counts: Mutex<BTreeMap<Count, u64>>, // INVARIANT: its keys are of closed sets
    failures: Mutex<Failures>,
    /// As they were last read, for a status or to be counted.
    nodes: Mutex<Vec<NodeRow>>,
    nodes_counted: Mutex<Option<Timestamp>>,
    took: Mutex<BTreeMap<&'static str, (u64, Duration)>>, // INVARIANT: its keys are the names of calls
    vitals: Mutex<Vitals>,
    store_fails: AtomicBool,
}

/// How often it is counted, for metrics, how many nodes are on record.
const COUNT_NODES: Duration = Duration::from_secs(15);

/// Failed handshakes of the server's own port that are kept as facts, each second. What comes beyond is counted.
const FAILURES_PER_SEC_MAX: u32 = 20;

/// How many failures the present second has seen.
#[derive(Debug, Default)]
struct Failures {
    second: i64,
    count: u32,
}

/// Something that is counted by reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Count {
    /// A connection that was closed unread.
    TurnedAway(Code),
    /// An attestation or a renewal of a node that was refused.
    AttestationRefused(Code),
    /// Something that a machine showed to attest or to renew, and that was verified.
    Verified(Proof),
    /// A certificate that was refused.
    IssueRefused(Code),
    /// A call that ended, by its method; without a code, well.
    Called(&'static str, Option<Code>),
    /// A question about certificates, by what came of it.
    Asked(&'static str),
}

/// What is verified of a machine that attests or renews. Each costs operations with public keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Proof {
    /// A statement, signed.
    Statement,
    /// A request for a certificate, signed by the key in it.
    Request,
    /// A certificate, up to an authority.
    Chain,
}

impl Proof {
    /// As a label of a metric.
    const fn as_str(self) -> &'static str {
        match self {
            Self::Statement => "statement",
            Self::Request => "request",
            Self::Chain => "chain",
        }
    }
}

/// A connection that is open. Dropped, it is not.
#[derive(Debug)]
pub(crate) struct Connected(Arc<Watch>);

impl Watch {
    /// Nothing was seen yet.
    pub(crate) fn new(started: Timestamp) -> Self {
        Self {
            facts: Facts::default(),
            flows: Flows::default(),
            reviews: crate::review::Waiting::default(),
            differences: crate::inventory::Differences::default(),
            tallies: Tallies::default(),
            started,
            connections: AtomicUsize::new(0),
            issued: AtomicU64::new(0),
            lists: AtomicU64::new(0),
            counts: Mutex::default(),
            failures: Mutex::default(),
            nodes: Mutex::default(),
            nodes_counted: Mutex::default(),
            took: Mutex::default(),
            vitals: Mutex::default(),
            store_fails: AtomicBool::new(false),
        }
    }

    /// Remembers the nodes on record, to be shown while the store is away.
    fn remember_nodes(&self, nodes: &[NodeRow]) {
        nodes.clone_into(&mut self.nodes.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn remembered_nodes(&self) -> Vec<NodeRow> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn remembered_nodes_count(&self) -> usize {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether it is time to count the nodes on record; whoever hears that it is, does.
    fn nodes_are_due(&self, now: Timestamp) -> bool {
        let mut counted = self.nodes_counted.lock().unwrap_or_else(PoisonError::into_inner);
        let due = counted.is_none_or(|at| now < at || at + COUNT_NODES <= now);
        if due {
            *counted = Some(now);
        }
        due
    }

    /// A part that the server cannot do without was had, and is good until then.
    pub(crate) fn good(&self, vital: Vital, at: Timestamp, ends: Option<Timestamp>) {
        self.vitals.lock().unwrap_or_else(PoisonError::into_inner).good(vital, at, ends);
    }

    /// It was wanted and not had, for this reason.
    pub(crate) fn failed(&self, vital: Vital, at: Timestamp, why: &str) {
        let failed = Failed { at, why: why.into() };
        self.vitals.lock().unwrap_or_else(PoisonError::into_inner).failed(vital, &failed);
    }

    fn vitals(&self) -> Vitals {
        self.vitals.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The store took a write, or refused one with this code.
    pub(crate) fn wrote(&self, refused: Option<Code>) {
        self.store_fails.store(refused == Some(Code::Unavailable), Ordering::Relaxed);
    }

    fn store_writable(&self) -> bool {
        !self.store_fails.load(Ordering::Relaxed)
    }

    /// How often each call was made, and how long all of them took.
    fn took(&self) -> BTreeMap<&'static str, (u64, Duration)> {
        self.took.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A handshake of the server's own port. A flood of failed ones does not push out what others reported.
    pub(crate) fn handshake(&self, fact: &HandshakeFact) {
        let mut told = wire_fact(fact);
        if fact.code.is_some() && !self.has_room(fact.at) {
            self.facts.count(fact.code);
            // What is stored is counted together, so it does not grow by what it does not tell apart.
            (told.peer_address, told.detail) = (String::new(), String::new());
            seen::count(&self.tallies, None, &[told], fact.at);
        } else {
            self.observe(None, vec![told], 0, fact.at);
        }
    }

    /// What a node reports of handshakes; the server's own are of nobody.
    pub(crate) fn observe(
        &self,
        by: Option<NodeId>,
        handshakes: Vec<v1::HandshakeFact>,
        lost: u64,
        now: Timestamp,
    ) {
        let handshakes: Vec<_> = handshakes.into_iter().map(wire::bounded_fact).collect();
        seen::count(&self.tallies, by, &handshakes, now);
        self.tallies.lost(TallyOf::Handshakes, lost);
        self.facts.observe(handshakes, lost);
    }

    /// What a node reports of requests that its doors answered.
    pub(crate) fn served(&self, by: NodeId, served: &[v1::Served], lost: u64, now: Timestamp) {
        answered::count(&self.tallies, by, served, now);
        self.tallies.lost(TallyOf::Requests, lost);
    }

    fn has_room(&self, now: Timestamp) -> bool {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        if failures.second != now.secs() {
            *failures = Failures { second: now.secs(), count: 0 };
        }
        failures.count = failures.count.saturating_add(1);
        failures.count <= FAILURES_PER_SEC_MAX
    }

    /// A connection was closed unread.
    pub(crate) fn turned_away(&self, code: Code) {
        self.count(Count::TurnedAway(code));
    }

    /// A node was not attested or not renewed.
    pub(crate) fn attestation_refused(&self, code: Code) {
        self.count(Count::AttestationRefused(code));
    }

    /// Something that a machine showed is verified.
    pub(crate) fn verified(&self, proof: Proof) {
        self.count(Count::Verified(proof));
    }

    /// A certificate was made for a workload.
    pub(crate) fn issued(&self) {
        self.issued.fetch_add(1, Ordering::Relaxed);
    }

    /// A certificate was refused.
    pub(crate) fn issue_refused(&self, code: Code) {
        self.count(Count::IssueRefused(code));
    }

    /// A call ended after so long.
    pub(crate) fn called(&self, call: &'static str, code: Option<Code>, took: Duration) {
        self.count(Count::Called(call, code));
        let mut all = self.took.lock().unwrap_or_else(PoisonError::into_inner);
        let (count, whole) = all.entry(call).or_default();
        *count = count.saturating_add(1);
        *whole = whole.saturating_add(took);
    }

    /// Revocation lists of one authority were made.
    pub(crate) fn list_published(&self) {
        self.lists.fetch_add(1, Ordering::Relaxed);
    }

    /// A question about certificates was answered, or not.
    pub(crate) fn asked(&self, outcome: &'static str) {
        self.count(Count::Asked(outcome));
    }

    /// A connection opened.
    pub(crate) fn connected(self: &Arc<Self>) -> Connected {
        self.connections.fetch_add(1, Ordering::Relaxed);
        Connected(Arc::clone(self))
    }

    fn count(&self, count: Count) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let total = counts.entry(count).or_insert(0);
        *total = total.saturating_add(1);
    }

    /// What was counted by reason.
    pub(crate) fn counts(&self) -> BTreeMap<Count, u64> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A fact of the server's own port, as facts travel.
fn wire_fact(fact: &HandshakeFact) -> v1::HandshakeFact {
    let text = |id: &Option<countersign_identity::SpiffeId>| {
        id.as_ref().map(ToString::to_string).unwrap_or_default()
    };
    let direction = match fact.direction {
        Direction::Inbound => v1::Direction::Inbound,
        Direction::Outbound => v1::Direction::Outbound,
    };
    v1::HandshakeFact {
        at_micros: fact.at.micros(),
        point: SERVER_POINT.to_owned(),
        direction: direction.into(),
        service: SERVER_POINT.to_owned(),
        local_id: text(&fact.local),
        peer_id: text(&fact.peer),
        peer_address: fact.peer_address.as_ref().map(SocketAddr::to_string).unwrap_or_default(),
        peer_serial: fact.peer_serial.clone().into(),
        version: fact.version.to_owned(),
        group: fact.group.to_owned(),
        suite: fact.suite.to_owned(),
        resumed: fact.resumed,
        micros: u64::try_from(fact.took.as_micros()).unwrap_or(u64::MAX),
        code: fact.code.map(|code| code.as_str().to_owned()).unwrap_or_default(),
        detail: fact.detail.clone(),
        count: 1,
    }
}

/// The resident memory of this process.
pub(crate) fn resident_bytes() -> u64 {
    const PAGE_BYTES: u64 = 4096;
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or(0) * PAGE_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flood_of_failed_handshakes_is_counted_and_not_kept() {
        let watch = Watch::new(Timestamp::EPOCH);
        let failed = HandshakeFact {
            at: Timestamp::from_secs(1_000_000),
            direction: Direction::Inbound,
            service: None,
            local: None,
            peer: None,
            peer_address: None,
            peer_serial: Vec::new(),
            version: "",
            group: "",
            suite: "",
            resumed: false,
            took: std::time::Duration::ZERO,
            code: Some(Code::BadHandshake),
            detail: String::new(),
        };
        for _ in 0..1000 {
            watch.handshake(&failed);
        }
        assert_eq!(watch.facts.latest(1000).len(), 20);
        assert_eq!(watch.facts.totals().0[0].1, 1000);
        watch.handshake(&HandshakeFact { code: None, ..failed.clone() });
        watch.handshake(&HandshakeFact { at: Timestamp::from_secs(1_000_001), ..failed });
        assert_eq!(watch.facts.latest(1000).len(), 22);
    }
}
