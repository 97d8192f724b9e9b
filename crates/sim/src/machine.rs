//! One node: a disk that survives, and an agent that may not.

mod credentials;
mod disk;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use countersign_agent::core::{
    Action, Credential, Event, Remembered, Replica, Settings, State, Term,
};
use countersign_agent::server_link::wire;
use countersign_api::v1;
use countersign_identity::{Clock, Code, Name, Revision, SeededEntropy, SimClock, Timestamp};
use countersign_pki::{Bundle, Bundles, Chain, PrivateKey, Role, verify};

use self::credentials::Call;
pub(crate) use self::disk::{Disk, Node};
use crate::clocks::skewed;
use crate::messages::{Effect, Records, Reply, Request};
use crate::points::Point;

/// A node with its agent.
pub(crate) struct Machine {
    pub(crate) index: usize,
    pub(crate) labels: BTreeSet<Name>,
    /// What its points see of time.
    pub(crate) clock: Arc<SimClock>,
    pub(crate) truth: Arc<SimClock>,
    /// How far its clock is ahead of true time, in microseconds.
    pub(crate) skew: i64,
    /// How far ahead it has been at most.
    pub(crate) ahead: i64,
    /// It sleeps until then.
    pub(crate) asleep: Option<Timestamp>,
    /// No message comes or goes.
    pub(crate) cut_off: bool,
    /// None comes from this server or goes there.
    pub(crate) cut_from: Option<usize>,
    /// How many servers its agent knows.
    pub(crate) servers: usize,
    pub(crate) disk: Disk,
    pub(crate) life: Option<Life>,
    pub(crate) lives: u64,
    /// When the driver wakes its machine, by its own clock.
    pub(crate) wake: Timestamp,
    /// In which life, and at which true time, its timer fires, and how often it was set.
    pub(crate) scheduled: Option<(u64, Timestamp)>,
    pub(crate) turn: u64,
    pub(crate) points: BTreeMap<Name, Point>,
    pub(crate) entropy: SeededEntropy,
    pub(crate) keys: SeededEntropy,
}

/// One life of an agent.
pub(crate) struct Life {
    pub(crate) state: State,
    pub(crate) svids: BTreeMap<Name, Arc<Svid>>,
    pub(crate) session: u64,
    /// With which server the session is.
    server: usize,
    open: bool,
    heard: bool,
    calls: BTreeMap<u64, Call>,
    calls_made: u64,
    verified_under: Option<Arc<Bundle>>,
    /// At which revision its records were compared with the server's.
    compared: Option<Revision>,
}

/// A workload's SVID with its key.
pub(crate) struct Svid {
    pub(crate) chain: Chain,
    pub(crate) key: PrivateKey,
    pub(crate) term: Term,
    pub(crate) credential: Credential,
}

/// How long an agent waits for an answer, and for a stream's first message.
const PATIENCE: Duration = Duration::from_secs(10);

impl Machine {
    pub(crate) fn now(&self) -> Timestamp {
        skewed(self.truth.now(), self.skew)
    }

    /// The agent's process begins.
    pub(crate) fn start(&mut self, effects: &mut Vec<Effect>) {
        self.lives += 1;
        let node = &self.disk.node;
        let settings = Settings { node: node.id, servers: self.servers, batch_max: 256 };
        let remembered = self.disk.remembered.clone();
        let state = State::new(settings, node.credential(), remembered, self.now());
        self.life = Some(Life {
            state,
            svids: BTreeMap::new(),
            session: 0,
            server: 0,
            open: false,
            heard: false,
            calls: BTreeMap::new(),
            calls_made: 0,
            verified_under: None,
            compared: None,
        });
        self.step(Event::Woke, effects);
    }

    /// Time has passed.
    pub(crate) fn woke(&mut self, effects: &mut Vec<Effect>) {
        let before = effects.len();
        self.step(Event::Woke, effects);
        let Some(life) = &self.life else { return };
        let idle = effects.len() == before;
        assert!(!idle || self.now() < life.state.next_wake(self.now()), "the machine spins");
    }

    /// A message has come.
    pub(crate) fn hear(&mut self, reply: Reply, effects: &mut Vec<Effect>) {
        let Some(life) = &mut self.life else { return };
        match reply {
            Reply::Opened { session } if session == life.session && !life.open => {
                (life.open, life.heard) = (true, false);
                effects.push(Effect::After(PATIENCE, Reply::Silence { session }));
                self.step(Event::Opened, effects);
            }
            Reply::Ended { session, code, why } if session == life.session => {
                self.ended(code, why, effects);
            }
            Reply::Silence { session } if session == life.session && !life.heard => {
                let why = "the server said nothing on its stream".to_owned();
                self.ended(Code::TimedOut, why, effects);
            }
            Reply::Said { session, message, records } if session == life.session && life.open => {
                life.heard = true;
                self.said(*message, &records, effects);
            }
            // Of a session before, which the driver does not hear any more.
            Reply::Opened { .. }
            | Reply::Ended { .. }
            | Reply::Silence { .. }
            | Reply::Said { .. } => {}
            Reply::Signed { call, answer } => self.signed(call, answer, effects),
            Reply::Renewed { call, answer } => self.renewed(call, answer, effects),
            Reply::NoAnswer { call } => match life.calls.get(&call) {
                Some(Call::Sign(_)) => self.signed(call, Err("no answer".to_owned()), effects),
                Some(Call::Renew { .. }) => {
                    let late = (Code::TimedOut, "no answer".to_owned());
                    self.renewed(call, Err(late), effects);
                }
                None => {}
            },
        }
    }

    fn ended(&mut self, code: Code, why: String, effects: &mut Vec<Effect>) {
        let Some(life) = &mut self.life else { return };
        // Nothing more is heard of it; the server learns in its own time.
        let session = life.session;
        life.session += 1;
        life.open = false;
        effects.push(Effect::Send(life.server, Request::Gone { session }));
        effects.push(Effect::Trace(format!("a{} lost its stream: {why}", self.index)));
        if code == Code::StaleGeneration {
            self.step(Event::KeySucceeded, effects);
        }
        self.step(Event::Closed { code, why }, effects);
    }

    fn said(&mut self, message: v1::SyncResponse, records: &Records, effects: &mut Vec<Effect>) {
        let message =
            wire::sync_message(message).expect("our own server's messages are understood");
        let Some(life) = &self.life else { return };
        let before = life.state.replica().revision();
        self.step(Event::Said(message), effects);
        let Some(life) = &self.life else { return };
        let replica = life.state.replica();
        assert!(before <= replica.revision(), "a{} went back to {before}", self.index);
        if life.open {
            // Another word for the same revision is another word for the same records.
            if life.compared != Some(replica.revision()) {
                compare(self.index, replica, records);
            }
            let revision = Some(replica.revision().into());
            let ack = v1::SyncAck { revision, points: Vec::new(), unaware: 0 };
            effects.push(Effect::Send(life.server, Request::Ack { session: life.session, ack }));
        }
        let (index, revision, open) = (self.index, replica.revision(), life.open);
        effects.push(Effect::Trace(format!("a{index} at {revision}")));
        if let Some(life) = self.life.as_mut().filter(|_| open) {
            life.compared = Some(revision);
        }
    }

    fn step(&mut self, event: Event, effects: &mut Vec<Effect>) {
        let now = self.now();
        let Some(life) = &mut self.life else { return };
        for action in life.state.step(event, now, &self.entropy) {
            self.act(action, effects);
        }
        self.check();
        let Some(life) = &self.life else { return };
        self.wake = life.state.next_wake(now);
    }

    /// What must hold after every step.
    fn check(&self) {
        let Some(life) = &self.life else { return };
        let now = self.now();
        for (name, svid) in &life.svids {
            if life.state.holds(name, &svid.term.digest) {
                assert!(now <= svid.term.expires, "a{} holds `{name}` past its end", self.index);
                let workload = life.state.replica().workloads().get(name);
                let workload = workload.unwrap_or_else(|| panic!("`{name}` is held and withdrawn"));
                let id = svid.chain.leaf().spiffe_id().expect("it was verified");
                assert_eq!(id, workload.id, "a{} serves `{name}` as somebody else", self.index);
                let rules = life.state.replica().rules();
                let rule = rules.covering(&svid.credential.shown.presented());
                assert!(rule.is_none(), "a{} serves `{name}`, which {rule:?} covers", self.index);
                let refusal = life.state.refusal(name);
                assert!(refusal.is_none(), "a{} serves `{name}`, which is refused", self.index);
            }
        }
    }

    fn act(&mut self, action: Action, effects: &mut Vec<Effect>) {
        let Some(life) = &mut self.life else { return };
        match action {
            Action::Open { server, have } => {
                life.session += 1;
                life.server = server;
                life.open = false;
                life.heard = false;
                let clock = skewed(self.truth.now(), self.skew);
                let (session, clock_micros) = (life.session, clock.micros());
                let version = "sim".to_owned();
                let have_wire = have.map(Into::into);
                let hello =
                    v1::SyncHello { have: have_wire, version, clock_micros, ..Default::default() };
                let chain = self.disk.node.shown();
                let what = format!("a{} opens at s{server} from {have:?}", self.index);
                effects.push(Effect::Trace(what));
                effects.push(Effect::Send(server, Request::Open { session, chain, hello }));
                effects.push(Effect::After(PATIENCE, Reply::Silence { session }));
            }
            Action::Close => {
                let session = life.session;
                life.session += 1;
                life.open = false;
                effects.push(Effect::Send(life.server, Request::Gone { session }));
            }
            Action::RenewNode { server } => self.renew(server, effects),
            Action::Sign(workloads) => self.sign(workloads, effects),
            Action::Publish => self.publish(effects),
            Action::Remember => {
                let replica = life.state.replica();
                self.disk.older = self.disk.remembered.replica.take();
                self.disk.remembered = Remembered {
                    replica: Some(Replica::clone(replica)),
                    rules: Arc::clone(replica.rules()),
                    seen: life.state.seen(),
                };
            }
        }
    }

    /// What is served has changed: as the driver, forget what is not held, and tell the points.
    fn publish(&mut self, effects: &mut Vec<Effect>) {
        let now = self.now();
        let Some(life) = &mut self.life else { return };
        let state = &life.state;
        life.svids.retain(|name, svid| state.holds(name, &svid.term.digest));
        let bundle = state.replica().own_bundle().cloned();
        if bundle == life.verified_under {
            return;
        }
        life.verified_under.clone_from(&bundle);
        let Some(bundle) = bundle else { return };
        let bundles = Bundles::of(Bundle::clone(&bundle));
        let bad = |svid: &Svid| verify(&svid.chain.ders(), &bundles, Role::Client, now).is_err();
        let bad: Vec<Name> =
            life.svids.iter().filter(|(_, svid)| bad(svid)).map(|(name, _)| name.clone()).collect();
        if !bad.is_empty() {
            self.step(Event::Unusable(bad), effects);
        }
    }
}

/// What an agent holds is what the server holds for it.
fn compare(index: usize, replica: &Replica, records: &Records) {
    let held: Records = replica
        .records()
        .map(|(key, value)| ((key.kind.to_string(), key.name.to_string()), value.to_vec()))
        .collect();
    let other = |(key, value): &(&(String, String), &Vec<u8>)| {
        held.get(*key) != Some(*value) || records.get(*key) != Some(*value)
    };
    let differing: Vec<_> = held.iter().chain(records).filter(other).map(|(key, _)| key).collect();
    let revision = replica.revision();
    assert!(differing.is_empty(), "a{index} has {differing:?} otherwise at {revision}");
}
