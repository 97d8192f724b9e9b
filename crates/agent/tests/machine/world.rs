//! An agent's machine, and a server that answers as told.

use std::sync::Arc;
use std::time::Duration;

use countersign_agent::core::{
    Action, Credential, Event, Outcome, Record, Remembered, Settings, Shown, State, SyncMessage,
    Term,
};
use countersign_identity::{
    Attested, Code, KeyId, Name, NodeId, NodeTag, Revision, SeededEntropy, Serial, Sha256,
    SpiffeId, Timestamp,
};

pub(crate) const START: Timestamp = Timestamp::from_secs(1_800_000_000);
pub(crate) const NODE: NodeId = NodeId::from_bytes([5; 16]);
pub(crate) const TAG: NodeTag = NodeTag::from_bytes([7; 8]);
pub(crate) const ISSUER: KeyId = KeyId::from_bytes([9; 32]);

pub(crate) fn secs(count: u64) -> Duration {
    Duration::from_secs(count)
}

pub(crate) fn name(text: &str) -> Name {
    text.parse().unwrap()
}

pub(crate) fn id(text: &str) -> SpiffeId {
    format!("spiffe://shop.example/{text}").parse().unwrap()
}

pub(crate) fn revision(number: u64) -> Revision {
    Revision { incarnation: 1, number }
}

pub(crate) fn digest(seed: u64) -> Sha256 {
    let mut bytes = [0; 32];
    // The first two bytes are the spread.
    let mixed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    bytes[..8].copy_from_slice(&mixed.to_be_bytes());
    bytes[8..16].copy_from_slice(&seed.to_be_bytes());
    Sha256::from_bytes(bytes)
}

/// What a server issues under this number, at a revision.
pub(crate) fn credential(
    number: u64,
    id: SpiffeId,
    at: Revision,
    issued: Timestamp,
    ends: Timestamp,
) -> Credential {
    let digest = digest(number);
    let bytes = *digest.as_bytes();
    let mut serial: [u8; 16] = bytes[..16].try_into().unwrap();
    serial[0] &= 0x7f;
    let shown = Shown {
        id,
        serial: Serial::from_bytes(serial),
        key: KeyId::from_bytes(bytes),
        authorities: vec![ISSUER],
        provenance: Some((at, TAG)),
        attested: Attested::default(),
    };
    Credential { term: Term { digest, issued, expires: ends }, shown: Arc::new(shown) }
}

pub(crate) fn node(number: u64, lifetime: Duration) -> Credential {
    let id = id(&format!("countersign/agent/{NODE}"));
    credential(number, id, revision(1), START, START + lifetime)
}

pub(crate) fn settings(servers: usize) -> Settings {
    Settings { node: NODE, servers, batch_max: 256 }
}

pub(crate) fn away() -> Event {
    Event::Closed { code: Code::Unavailable, why: "away".to_owned() }
}

pub(crate) fn domain() -> Record {
    let value = br#"{"agentLifetime":"24h","lifetimeMax":"24h","svidLifetime":"1h","trustDomain":"shop.example"}"#;
    Record::read("TrustDomain", "shop", value).unwrap()
}

pub(crate) fn workload(name: &str) -> Record {
    workload_with(name, "")
}

pub(crate) fn workload_with(name: &str, more: &str) -> Record {
    let value = format!(r#"{{"keyType":"ecdsa-p256","selectors":["launch:{name}"]{more}}}"#);
    Record::read("Workload", name, value.as_bytes()).unwrap()
}

/// An agent's machine, and a server that answers as told.
pub(crate) struct World {
    pub(crate) now: Timestamp,
    pub(crate) state: State,
    pub(crate) entropy: SeededEntropy,
    pub(crate) lifetime: Duration,
    pub(crate) node_lifetime: Duration,
    pub(crate) issued: u64,
    pub(crate) server_up: bool,
    /// The server's clock, when it is not ours.
    pub(crate) server_clock: Option<Timestamp>,
    /// When something was asked of the server.
    pub(crate) opened: Vec<Timestamp>,
    pub(crate) signed: Vec<(Timestamp, Name)>,
    /// How many SVIDs each request asked for.
    pub(crate) batches: Vec<usize>,
    pub(crate) node_renewed: Vec<Timestamp>,
    pub(crate) records: Vec<Record>,
    pub(crate) revision: u64,
}

impl World {
    pub(crate) fn new(seed: u64, lifetime: Duration) -> Self {
        let node_lifetime = secs(86_400);
        let node = node(seed, node_lifetime);
        Self {
            now: START,
            state: State::new(settings(1), node, Remembered::nothing(), START),
            entropy: SeededEntropy::new(seed),
            lifetime,
            node_lifetime,
            issued: seed * 1_000_000,
            server_up: true,
            server_clock: None,
            opened: Vec::new(),
            signed: Vec::new(),
            batches: Vec::new(),
            node_renewed: Vec::new(),
            records: vec![domain(), workload("web")],
            revision: 7,
        }
    }

    pub(crate) fn event(&mut self, event: Event) {
        let mut actions = self.state.step(event, self.now, &self.entropy);
        while !actions.is_empty() {
            let mut next = Vec::new();
            for action in actions {
                if let Some(event) = self.act(action) {
                    next.extend(self.state.step(event, self.now, &self.entropy));
                }
            }
            actions = next;
        }
        self.check();
    }

    pub(crate) fn act(&mut self, action: Action) -> Option<Event> {
        match action {
            Action::Open { .. } => {
                self.opened.push(self.now);
                if !self.server_up {
                    return Some(away());
                }
                let opened = self.state.step(Event::Opened, self.now, &self.entropy);
                assert!(
                    opened.iter().all(|action| matches!(action, Action::RenewNode { .. })),
                    "{opened:?}"
                );
                for action in opened {
                    if let Some(event) = self.act(action) {
                        // Its own actions are those of a reopened stream, which is open already.
                        self.state.step(event, self.now, &self.entropy);
                        self.state.step(Event::Opened, self.now, &self.entropy);
                    }
                }
                Some(Event::Said(self.snapshot()))
            }
            Action::Close | Action::Publish | Action::Remember => None,
            Action::RenewNode { .. } => {
                if !self.server_up {
                    let why = "away".to_owned();
                    return Some(Event::NodeRenewalFailed { code: Code::Unavailable, why });
                }
                self.node_renewed.push(self.now);
                let lifetime = self.node_lifetime;
                let id = id(&format!("countersign/agent/{NODE}"));
                Some(Event::NodeRenewed(self.issue(id, lifetime)))
            }
            Action::Sign(workloads) => {
                self.batches.push(workloads.len());
                let mut outcomes = Vec::new();
                for workload in workloads {
                    self.signed.push((self.now, workload.name.clone()));
                    let lifetime = self.lifetime;
                    let issued = self.issue(workload.id.clone(), lifetime);
                    outcomes.push((workload.name.clone(), Outcome::Issued(issued)));
                }
                Some(Event::Signed(outcomes))
            }
        }
    }

    pub(crate) fn issue(&mut self, id: SpiffeId, lifetime: Duration) -> Credential {
        self.issued += 1;
        credential(self.issued, id, revision(self.revision), self.now, self.now + lifetime)
    }

    pub(crate) fn server_now(&self) -> Timestamp {
        self.server_clock.unwrap_or(self.now)
    }

    pub(crate) fn snapshot(&self) -> SyncMessage {
        let (revision, records) = (revision(self.revision), self.records.clone());
        SyncMessage::Snapshot { revision, records, clock: Some(self.server_now()) }
    }

    /// After every step: nothing that has expired is held, and the machine does not spin.
    pub(crate) fn check(&self) {
        for (name, standing) in self.state.standings() {
            if let Some(term) = standing.term {
                assert!(self.now <= term.expires, "{name} holds what expired");
            }
        }
        assert!(self.now < self.state.next_wake(self.now), "at {} it wakes at once", self.now);
    }

    /// Lets time pass, waking the machine whenever it asks.
    pub(crate) fn pass(&mut self, span: Duration) {
        let end = self.now + span;
        loop {
            let wake = self.state.next_wake(self.now);
            if end < wake {
                break;
            }
            // It may have asked to be woken before a clock was set.
            self.now = self.now.max(wake);
            self.event(Event::Woke);
        }
        self.now = end;
    }

    pub(crate) fn fall(&mut self) {
        self.server_up = false;
        self.event(away());
    }

    pub(crate) fn held(&self, name: &str) -> Option<Term> {
        let mut standings = self.state.standings();
        standings.find(|(one, _)| one.as_str() == name).and_then(|(_, standing)| standing.term)
    }
}
