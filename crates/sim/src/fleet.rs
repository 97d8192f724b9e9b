//! A fleet too large for real keys: the machine of every agent, against a server that is one queue.
//!
//! What is real is when each agent asks, waits, tries again and comes back: `countersign_agent::core::State`. What is
//! played is the rest: SVIDs are terms without keys or signatures, the server answers in turn at the rate that it is given,
//! and its streams say what is new and leave out the marks of an idle hour.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::time::Duration;

use countersign_agent::core::{
    Action, Credential, Event, Outcome, Record, RecordKey, RecordKind, Remembered,
    Settings as AgentSettings, Shown, State, SyncMessage, Term, Workload,
};
use countersign_identity::{
    Attested, Code, Entropy, KeyId, Name, NodeId, NodeTag, Reason, Revision, Revocation, Revoked,
    SeededEntropy, Sha256, SpiffeId, Timestamp,
};
use serde_json::json;

/// What a fleet is made of.
#[derive(Clone, Debug)]
pub struct FleetSettings {
    /// All chance of the run.
    pub seed: u64,
    /// How many agents there are.
    pub agents: usize,
    /// How many workloads each has.
    pub workloads: usize,
    /// How long their SVIDs live.
    pub lifetime: Duration,
    /// How long the agents' own SVIDs live.
    pub agent_lifetime: Duration,
    /// The longest way of a message, in milliseconds.
    pub delay_max: u64,
    /// How many SVIDs the server signs in a second.
    pub signs: u32,
}

/// All agents, and their server.
pub struct Fleet {
    settings: FleetSettings,
    agents: Vec<Agent>,
    chance: SeededEntropy,
    begun: Timestamp,
    now: Timestamp,
    queue: BinaryHeap<Reverse<Entry>>,
    entries: u64,
    server: Server,
    lapses: usize,
    steps: u64,
}

struct Agent {
    state: State,
    /// What it proves itself with, and keeps in a file.
    own: Credential,
    session: u32,
    open: bool,
    calls: u32,
    /// When it is woken at the latest.
    wake: Timestamp,
    held: usize,
}

struct Server {
    up: bool,
    revision: Revision,
    /// What signs.
    issuer: KeyId,
    rules: Vec<Record>,
    domain: Record,
    /// When all that it was asked for is signed.
    free: Timestamp,
    /// SVIDs that were signed, and agents' own, by second.
    signed: Vec<u32>,
    renewed: Vec<u32>,
    opened: Vec<u32>,
}

struct Entry {
    at: Timestamp,
    number: u64,
    agent: usize,
    due: Due,
}

enum Due {
    Wake,
    /// At the server: a stream is asked for.
    Opens(u32, Option<Revision>),
    /// At the server: so many SVIDs are.
    Signs(u32, Vec<Arc<Workload>>),
    /// At the server: the agent's own.
    Renews,
    /// At the agent.
    Comes(u32, Box<Event>),
    /// An answer, or the agent's own patience.
    Answers(u32, Box<Event>),
    /// At the agent: its own SVID, or why not.
    Renewed(Box<Event>),
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}
impl Eq for Entry {}
impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

const BEGINNING: Timestamp = Timestamp::from_secs(1_795_262_400);
const DOMAIN: &str = "shop.example";
/// How long an agent waits for an answer.
const PATIENCE: Duration = Duration::from_secs(10);
const ROOT: KeyId = KeyId::from_bytes([1; 32]);

impl Fleet {
    /// A fleet whose agents are switched on at moments within half a lifetime.
    pub fn begin(settings: FleetSettings) -> Self {
        let chance = SeededEntropy::new(settings.seed);
        let secs = settings.lifetime.as_secs();
        let domain = json!({"trustDomain": DOMAIN, "svidLifetime": format!("{secs}s")});
        let server = Server {
            up: true,
            revision: Revision { incarnation: 1, number: 1 },
            issuer: KeyId::from_bytes([2; 32]),
            rules: Vec::new(),
            domain: record(RecordKind::TrustDomain, "shop", &domain),
            free: BEGINNING,
            signed: Vec::new(),
            renewed: Vec::new(),
            opened: Vec::new(),
        };
        let mut fleet = Self {
            agents: Vec::new(),
            chance,
            begun: BEGINNING,
            now: BEGINNING,
            queue: BinaryHeap::new(),
            entries: 0,
            server,
            lapses: 0,
            steps: 0,
            settings,
        };
        for index in 0..fleet.settings.agents {
            let half = u64::try_from(fleet.settings.lifetime.as_millis() / 2).unwrap_or(u64::MAX);
            let wake = fleet.now + Duration::from_millis(fleet.below(half));
            let node = fleet.own_credential(index, fleet.now);
            let state = machine(index, &node, wake);
            let (session, open, calls, held) = (0, false, 0, 0);
            fleet.agents.push(Agent { state, own: node, session, open, calls, wake, held });
            fleet.push(wake, index, Due::Wake);
        }
        fleet
    }

    /// Lets time pass, and everything that is due happen.
    pub fn run(&mut self, span: Duration) {
        let until = self.now + span;
        while self.queue.peek().is_some_and(|Reverse(entry)| entry.at <= until) {
            let Some(Reverse(Entry { at, agent, due, .. })) = self.queue.pop() else { break };
            self.now = at;
            self.happen(agent, due);
        }
        self.now = until;
    }

    /// Takes the server away for so long.
    pub fn outage(&mut self, span: Duration) {
        self.server.up = false;
        for index in 0..self.agents.len() {
            if std::mem::take(&mut self.agents[index].open) {
                self.comes(index, closed("the server went away"));
            }
        }
        self.run(span);
        self.server.up = true;
        self.server.free = self.now;
    }

    /// Takes everything out of service that is held: what signed it has a successor, and a rule covers it.
    pub fn revoke_everything(&mut self) {
        let target = Revoked::Authority(self.server.issuer);
        let mut next = [0; 32];
        self.chance.fill(&mut next).expect("a seeded sequence does not end");
        self.server.issuer = KeyId::from_bytes(next);
        let (at, until) = (self.now, self.now + self.settings.agent_lifetime);
        let rule = Revocation { target, about: None, reason: Reason::KeyCompromise, at, until };
        self.server.revision.number += 1;
        let revision = self.server.revision;
        let rule = record(RecordKind::Revocation, &format!("{revision}.0"), &rule);
        self.server.rules.push(rule.clone());
        for index in 0..self.agents.len() {
            if self.agents[index].open {
                let (put, gone) = (vec![rule.clone()], Vec::new());
                self.comes(index, Event::Said(SyncMessage::Changes { revision, put, gone }));
            }
        }
    }

    /// Starts every agent anew, all within so long: a new version of them is installed. The keys of workloads were in their memory
    /// only, and nobody holds an SVID any more.
    pub fn restart_everybody(&mut self, within: Duration) {
        let within = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
        for index in 0..self.agents.len() {
            let wake = self.now + Duration::from_millis(self.below(within));
            let agent = &mut self.agents[index];
            agent.state = machine(index, &agent.own, wake);
            // Nothing that was on its way reaches the new one.
            (agent.session, agent.calls) = (agent.session + 1, agent.calls + 1);
            (agent.open, agent.held, agent.wake) = (false, 0, wake);
            self.push(wake, index, Due::Wake);
        }
    }

    /// How much time has passed.
    pub fn elapsed(&self) -> Duration {
        self.now.since(self.begun)
    }

    /// How many SVIDs were signed in each second so far.
    pub fn signed(&self) -> &[u32] {
        &self.server.signed
    }

    /// How many agents' own SVIDs were signed in each second so far.
    pub fn renewed(&self) -> &[u32] {
        &self.server.renewed
    }

    /// How many streams were opened in each second so far.
    pub fn opened(&self) -> &[u32] {
        &self.server.opened
    }

    /// How many workloads hold an SVID that is valid and not revoked.
    pub fn held(&self) -> usize {
        self.agents.iter().map(|agent| self.held_by(agent)).sum()
    }

    /// How often a workload was left without one that it had.
    pub fn lapses(&self) -> usize {
        self.lapses
    }

    /// How many steps all machines have taken.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    fn held_by(&self, agent: &Agent) -> usize {
        let terms = agent.state.standings().filter_map(|(_, standing)| standing.term);
        terms.filter(|term| self.now <= term.expires).count()
    }

    fn below(&self, bound: u64) -> u64 {
        self.chance.next_u64() % bound.max(1)
    }

    fn delay(&self) -> Duration {
        Duration::from_millis(1 + self.below(self.settings.delay_max))
    }

    fn push(&mut self, at: Timestamp, agent: usize, due: Due) {
        self.entries += 1;
        self.queue.push(Reverse(Entry { at, number: self.entries, agent, due }));
    }

    /// Something is on its way to an agent, on its stream.
    fn comes(&mut self, index: usize, event: Event) {
        let session = self.agents[index].session;
        self.push(self.now + self.delay(), index, Due::Comes(session, Box::new(event)));
    }

    fn happen(&mut self, index: usize, due: Due) {
        match due {
            Due::Wake if self.agents[index].wake <= self.now => self.step(index, Event::Woke),
            // It was woken before that.
            Due::Wake => {}
            Due::Comes(session, event) => {
                let agent = &mut self.agents[index];
                if agent.session == session {
                    let closed = matches!(*event, Event::Closed { .. });
                    agent.open &= !closed;
                    // Nothing more is heard of it.
                    agent.session += u32::from(closed);
                    self.step(index, *event);
                }
            }
            Due::Renewed(event) => {
                if let Event::NodeRenewed(own) = &*event {
                    self.agents[index].own = own.clone();
                }
                self.step(index, *event);
            }
            Due::Answers(call, event) => {
                if self.agents[index].calls == call {
                    self.agents[index].calls += 1;
                    self.step(index, *event);
                }
            }
            Due::Opens(session, have) => self.opens(index, session, have),
            Due::Signs(call, workloads) => self.signs(index, call, &workloads),
            Due::Renews => self.renews(index),
        }
    }

    fn step(&mut self, index: usize, event: Event) {
        self.steps += 1;
        let (now, agent) = (self.now, &mut self.agents[index]);
        let revoked = matches!(event, Event::Said(SyncMessage::Changes { .. }));
        let actions = agent.state.step(event, now, &self.chance);
        let wake = agent.state.next_wake(now).max(now + Duration::from_micros(1));
        let moved = std::mem::replace(&mut agent.wake, wake) != wake;
        if moved && wake < Timestamp::LAST {
            self.push(wake, index, Due::Wake);
        }
        let held = self.held_by(&self.agents[index]);
        let before = std::mem::replace(&mut self.agents[index].held, held);
        if !revoked {
            self.lapses += before.saturating_sub(held);
        }
        for action in actions {
            self.act(index, action);
        }
    }

    fn act(&mut self, index: usize, action: Action) {
        let at = self.now + self.delay();
        let agent = &mut self.agents[index];
        match action {
            Action::Open { have, .. } => {
                agent.session += 1;
                agent.open = false;
                let session = agent.session;
                self.push(at, index, Due::Opens(session, have));
            }
            Action::Close => {
                agent.session += 1;
                agent.open = false;
            }
            Action::RenewNode { .. } => self.push(at, index, Due::Renews),
            Action::Sign(workloads) => {
                agent.calls += 1;
                let call = agent.calls;
                let failed = outcomes(&workloads, |_| Outcome::Failed("no answer".to_owned()));
                self.push(self.now + PATIENCE, index, Due::Answers(call, Box::new(failed)));
                self.push(at, index, Due::Signs(call, workloads));
            }
            Action::Publish | Action::Remember => {}
        }
    }

    fn opens(&mut self, index: usize, session: u32, have: Option<Revision>) {
        if self.agents[index].session != session {
            return;
        }
        if !self.server.up {
            return self.comes(index, closed("nobody listens"));
        }
        count(&mut self.server.opened, self.now.since(self.begun), 1);
        self.agents[index].open = true;
        let (revision, clock) = (self.server.revision, Some(self.now));
        let first = match have {
            Some(have) if have == revision => SyncMessage::Mark { revision, clock },
            Some(_) | None => SyncMessage::Snapshot { revision, records: self.slice(index), clock },
        };
        // One after the other, as on one stream.
        let at = self.now + self.delay();
        self.push(at, index, Due::Comes(session, Box::new(Event::Opened)));
        self.push(at, index, Due::Comes(session, Box::new(Event::Said(first))));
    }

    fn slice(&self, index: usize) -> Vec<Record> {
        let workloads = (0..self.settings.workloads).map(|number| {
            let name = format!("w{index}-{number}");
            let spec = json!({"selectors": [format!("launch:{name}")]});
            record(RecordKind::Workload, &name, &spec)
        });
        let server = &self.server;
        [server.domain.clone()].into_iter().chain(server.rules.clone()).chain(workloads).collect()
    }

    fn signs(&mut self, index: usize, call: u32, workloads: &[Arc<Workload>]) {
        let answer = if self.server.up {
            let many = u32::try_from(workloads.len()).unwrap_or(u32::MAX);
            let work = Duration::from_secs(1) * many / self.settings.signs.max(1);
            let issued = self.server.free.max(self.now) + work;
            self.server.free = issued;
            count(&mut self.server.signed, issued.since(self.begun), many);
            let lifetime = self.settings.lifetime;
            let issued = outcomes(workloads, |workload| {
                Outcome::Issued(self.credential(workload.id.clone(), index, issued, lifetime))
            });
            (self.server.free, issued)
        } else {
            (self.now, outcomes(workloads, |_| Outcome::Failed("nobody listens".to_owned())))
        };
        let at = answer.0 + self.delay();
        self.push(at, index, Due::Answers(call, Box::new(answer.1)));
    }

    fn renews(&mut self, index: usize) {
        let event = if self.server.up {
            count(&mut self.server.renewed, self.now.since(self.begun), 1);
            Event::NodeRenewed(self.own_credential(index, self.now))
        } else {
            let (code, why) = (Code::Unavailable, "nobody listens".to_owned());
            Event::NodeRenewalFailed { code, why }
        };
        self.push(self.now + self.delay(), index, Due::Renewed(Box::new(event)));
    }

    fn own_credential(&self, index: usize, issued: Timestamp) -> Credential {
        let id = format!("spiffe://{DOMAIN}/countersign/agent/{}", node_id(index));
        let id = id.parse().expect("it is a SPIFFE ID");
        self.credential(id, index, issued, self.settings.agent_lifetime)
    }

    fn credential(
        &self,
        id: SpiffeId,
        index: usize,
        issued: Timestamp,
        lifetime: Duration,
    ) -> Credential {
        let (mut digest, mut key) = ([0; 32], [0; 32]);
        self.chance.fill(&mut digest).expect("a seeded sequence does not end");
        self.chance.fill(&mut key).expect("a seeded sequence does not end");
        let term = Term { digest: Sha256::from_bytes(digest), issued, expires: issued + lifetime };
        let shown = Shown {
            id,
            serial: None,
            key: KeyId::from_bytes(key),
            authorities: vec![self.server.issuer, ROOT],
            provenance: Some((self.server.revision, NodeTag::from_bytes(tag(index)))),
            attested: Attested::default(),
        };
        Credential { term, shown: Arc::new(shown) }
    }
}

/// An agent that has just started, and remembers nothing but who it is.
fn machine(index: usize, own: &Credential, now: Timestamp) -> State {
    let settings = AgentSettings { node: node_id(index), servers: 1, batch_max: 256 };
    State::new(settings, own.clone(), Remembered::nothing(), now)
}

fn outcomes(workloads: &[Arc<Workload>], of: impl Fn(&Workload) -> Outcome) -> Event {
    let outcomes = workloads.iter().map(|workload| (workload.name.clone(), of(workload)));
    Event::Signed(outcomes.collect::<Vec<(Name, Outcome)>>())
}

fn closed(why: &str) -> Event {
    Event::Closed { code: Code::Unavailable, why: why.to_owned() }
}

fn record(kind: RecordKind, name: &str, value: &impl serde::Serialize) -> Record {
    let value = serde_json::to_vec(value).expect("texts and numbers are JSON");
    Record { key: RecordKey { kind, name: name.into() }, value: value.into() }
}

fn node_id(index: usize) -> NodeId {
    let mut bytes = [0; 16];
    bytes[8..].copy_from_slice(&tag(index));
    NodeId::from_bytes(bytes)
}

fn tag(index: usize) -> [u8; 8] {
    (index as u64).to_be_bytes()
}

/// One more in that second.
fn count(seconds: &mut Vec<u32>, at: Duration, many: u32) {
    let second = usize::try_from(at.as_secs()).unwrap_or(usize::MAX);
    if seconds.len() <= second {
        seconds.resize(second + 1, 0);
    }
    seconds[second] += many;
}
