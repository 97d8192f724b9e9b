//! The protocol of revocation in every order of events: pushes and acknowledgements that are lost, late, doubled and out of
//! order, restarts at any moment, clocks that differ as far as they may and one that is set forth and back, a rule that is
//! pruned once it is moot, and a store that is restored from before it was made.
//!
//! Real are: the agent's copy of the state with what it keeps (`Replica`, `Times`), what a point keeps
//! (`Revocations::keeping`), what an acknowledgement counts for (`Roster`), when a rule is moot, and which revisions a new
//! incarnation has lost. The model plays the network, the disks, and the order in which things happen.

mod explored;

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use countersign_agent::core::{Record, RecordKey, RecordKind, Replica, Times};
use countersign_api::v1;
use countersign_identity::{
    KeyId, NodeId, Presented, Reason, Revision, Revocation, Revocations, Revoked, SKEW_ALLOWED,
    Sha256, SpiffeId, Timestamp,
};
use countersign_store::{PointKey, PointRow};

use crate::incarnation::{Before, Cause, Life, Served};
use crate::publish::{Roster, Slice};

const START: Timestamp = Timestamp::from_secs(1_795_262_400);
/// One step of time is the allowed skew: what clocks differ by is all or nothing of it.
const TICK: Duration = SKEW_ALLOWED;
/// The covered certificate ends, by the clock of whoever looks.
const ENDS: i8 = 1;
/// By then the rule is moot for every clock.
const HORIZON: i8 = 4;
/// By how much a clock is set forth that somebody plays with.
const JUMP: i8 = 8;
const KEY: KeyId = KeyId::from_bytes([7; 32]);
const NAME: &str = "1.2.0";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    None,
    /// Whoever is told a state takes it as it is.
    NothingIsKept,
    /// The agent keeps what the server leaves out by its own clock alone.
    OwnClockAlone,
    /// A point acknowledges what its machine would not know any more after a crash.
    AcknowledgedBeforeWritten,
    /// A rule is dropped at its end, whatever clocks may differ by.
    NoSkew,
    /// The server believes an acknowledgement of what it has not told.
    AnythingCounts,
    /// A point that is not connected is not counted.
    LostIsGone,
    /// Of a revision that a restored store does not have it is said who enforces it.
    LostIsAnswered,
    /// Nobody hands a rule back.
    NobodyHandsBack,
}

/// What may go wrong in a system, each at most once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    /// The network holds back one message of each kind, and brings it again and again.
    Late,
    /// Streams are lost.
    Part,
    /// The clock of a machine is set forth, and back.
    Jump,
    /// Agents, points, and both at once end and begin again.
    Restart,
    /// The server ends and begins again.
    Crash,
    /// The store is restored as it was before the rule.
    Restore,
    /// Somebody acknowledges what it was not told.
    Lie,
}

#[derive(Clone, Debug)]
struct System {
    flaw: Flaw,
    /// By how many ticks the clock of each machine differs from the server's.
    clocks: &'static [i8],
    troubles: &'static [Trouble],
    grain: Grain,
}

/// How finely things happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Grain {
    /// Each by itself.
    Fine,
    /// What arrives at an agent is written and told to its point at once, and time stands still.
    Coarse,
}

/// A machine with its agent and one enforcement point.
#[derive(Clone, Debug)]
struct Node {
    replica: Replica,
    times: Times,
    synced: bool,
    /// What may be acknowledged.
    enforced: Option<Revision>,
    disk: Disk,
    /// Before it is told anything a point lets nobody in.
    point: Option<Point>,
    stream: Stream,
    late: Option<(usize, i8)>,
    late_ack: Option<Revision>,
    /// What the server knows of the point, and whether the agent speaks for it now.
    heard: Option<Revision>,
    confirmed: bool,
    /// The point has enforced the rule.
    had: bool,
    ahead: bool,
    counts: Counts,
}

#[derive(Clone, Debug)]
struct Disk {
    rules: Arc<Revocations>,
    seen: Timestamp,
    replica: Option<Replica>,
}

#[derive(Clone, Debug)]
struct Point {
    rules: Arc<Revocations>,
    reached: Revision,
    latest: Timestamp,
}

/// The server's end of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Stream {
    Lost,
    /// With the state that was told last.
    Open(Option<usize>),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Counts {
    jumps: u8,
    partings: u8,
    restarts: u8,
}

#[derive(Clone, Debug)]
struct World {
    tick: i8,
    /// Each state that there was, in order: its revision, and whether the rule is in it.
    states: Vec<(Revision, bool)>,
    life: Option<Life>,
    nodes: Vec<Node>,
    crashes: u8,
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Revoke,
    Prune,
    Restore,
    ServerRestarts,
    TimePasses,
    /// The server says what is new, and it arrives.
    Push(usize),
    /// The server says it, and the network holds it back.
    HoldBack(usize),
    /// What was held back arrives.
    Late(usize),
    /// The agent tells the point.
    Tell(usize),
    /// The rules in force are on the disk.
    Write(usize),
    Acknowledge(usize),
    HoldAckBack(usize),
    LateAck(usize),
    Lie(usize),
    HandBack(usize),
    Part(usize),
    Return(usize),
    AgentRestarts(usize),
    PointRestarts(usize),
    MachineRestarts(usize),
    ClockJumps(usize),
    ClockReturns(usize),
}

fn at(ticks: i8) -> Timestamp {
    let ahead = TICK * u32::from(ticks.max(0).unsigned_abs());
    START + ahead - TICK * u32::from(ticks.min(0).unsigned_abs())
}

static ID: LazyLock<SpiffeId> =
    LazyLock::new(|| "spiffe://shop.example/web".parse().expect("a name"));

static RULE: LazyLock<Revocation> = LazyLock::new(|| {
    let (target, until) = (Revoked::Key(KEY), at(ENDS));
    Revocation { target, about: None, reason: Reason::KeyCompromise, at: START, until }
});

static RECORD: LazyLock<Record> = LazyLock::new(|| {
    let key = RecordKey { kind: RecordKind::Revocation, name: NAME.into() };
    Record { key, value: serde_json::to_vec(&*RULE).expect("a rule has a JSON form").into() }
});

fn covers(rules: &Revocations) -> bool {
    let presented =
        Presented { id: &ID, serial: None, key: KEY, authorities: &[], provenance: None };
    rules.covering(&presented).is_some()
}

/// What the server knows of a point that it knew this of, after an acknowledgement of what it has told, by the real roster.
fn heard(known: Option<Revision>, ack: Revision, told: Option<Revision>) -> Option<Revision> {
    let roster = Roster::default();
    let node = NodeId::from_bytes([1; 16]);
    let key = PointKey { node, spiffe_id: ID.clone(), name: "main".to_owned() };
    roster.recall(vec![PointRow { key, registered_at: START }]);
    let _stream = roster.attend(node, &v1::SyncHello::default(), START);
    let acknowledge = |number: Revision, told: Option<Revision>| {
        let revision = Some(number.into());
        let point = v1::PointAck {
            point: "main".to_owned(),
            spiffe_id: "spiffe://shop.example/web".to_owned(),
            revision,
            ..Default::default()
        };
        let ack = v1::SyncAck { revision, points: vec![point], unaware: 0 };
        let told = told.map(|revision| Slice::of_ids(revision, &["web"]));
        roster.acknowledge(node, ack, told.as_ref(), START);
    };
    if let Some(known) = known {
        acknowledge(known, Some(known));
    }
    acknowledge(ack, told);
    roster.standings().first().and_then(|point| point.revision)
}

impl Node {
    fn new() -> Self {
        let replica = Replica::of(Revision { incarnation: 1, number: 1 }, []);
        let rules = Arc::clone(replica.rules());
        let reached = replica.revision();
        let disk = Disk { rules: Arc::clone(&rules), seen: START, replica: Some(replica.clone()) };
        Self {
            replica,
            times: Times::new(START),
            synced: true,
            enforced: Some(reached),
            disk,
            point: Some(Point { rules, reached, latest: START }),
            stream: Stream::Open(Some(0)),
            late: None,
            late_ack: None,
            heard: Some(reached),
            confirmed: true,
            had: false,
            ahead: false,
            counts: Counts::default(),
        }
    }

    /// What the agent's machine makes of the rules that are left out.
    fn rules_until(&self, flaw: Flaw, now: Timestamp) -> Timestamp {
        match flaw {
            Flaw::OwnClockAlone => self.times.seen().max(now),
            Flaw::NoSkew => self.times.for_rules(now) + SKEW_ALLOWED,
            _ => self.times.for_rules(now),
        }
    }

    /// The agent takes a message: the whole state, what changed since another, or that nothing did.
    fn hear(&mut self, system: &System, world: &World, message: (usize, i8), now: Timestamp) {
        let (state, clock) = message;
        let (revision, has_rule) = world.states[state];
        self.times.see(now);
        let base = world.states.iter().position(|(base, _)| *base == self.replica.revision());
        let base = base.filter(|base| world.states[*base].0.incarnation == revision.incarnation);
        let told_rule = self.replica.value(RecordKind::Revocation, NAME).is_some();
        match base {
            Some(base) if world.states[base].1 == told_rule && told_rule == has_rule => {
                self.times.told(Some(at(clock)));
                let until = self.rules_until(system.flaw, now);
                if self.replica.mark(revision).is_err() {
                    return;
                }
                self.replica.forget_moot(until);
            }
            Some(_) => {
                let until = self.rules_until(system.flaw, now);
                let (put, gone) = match has_rule {
                    true => (vec![RECORD.clone()], vec![]),
                    false => (vec![], vec![RECORD.key.clone()]),
                };
                if self.replica.change(revision, put, &gone, until).is_err() {
                    return;
                }
            }
            None if revision < self.replica.revision() => return,
            None => {
                self.times.told(Some(at(clock)));
                let until = self.rules_until(system.flaw, now);
                let whole = Replica::of(revision, has_rule.then(|| RECORD.clone()));
                self.replica = match system.flaw {
                    Flaw::NothingIsKept => whole,
                    _ => whole.keeping(self.replica.rules(), until),
                };
            }
        }
        self.synced = true;
        self.settle(system.flaw);
    }

    fn write(&mut self, flaw: Flaw) {
        self.disk = Disk {
            rules: Arc::clone(self.replica.rules()),
            seen: self.times.seen(),
            replica: Some(self.replica.clone()),
        };
        self.settle(flaw);
    }

    /// Whether what is in force may be acknowledged: a crash takes nothing of it away.
    fn settle(&mut self, flaw: Flaw) {
        let written = covers(&self.disk.rules) == covers(self.replica.rules());
        if self.synced && (written || flaw == Flaw::AcknowledgedBeforeWritten) {
            self.enforced = Some(self.replica.revision());
        }
    }

    fn tell(&mut self, flaw: Flaw, now: Timestamp) {
        let told = Revocations::clone(self.replica.rules());
        let reached = self.replica.revision();
        self.point = Some(match self.point.take() {
            // What is newer stays in force.
            Some(point) if reached < point.reached => point,
            Some(point) => {
                let latest = point.latest.max(now);
                let rules = match flaw {
                    Flaw::NothingIsKept => told,
                    Flaw::NoSkew => told.keeping(&point.rules, latest + SKEW_ALLOWED),
                    _ => told.keeping(&point.rules, latest),
                };
                Point { rules: Arc::new(rules), reached, latest }
            }
            None => Point { rules: Arc::new(told), reached, latest: now },
        });
        self.had |= self.point.as_ref().is_some_and(|point| covers(&point.rules));
    }

    /// The agent begins anew, with what is on its disk.
    fn agent_restarts(&mut self) {
        let Disk { rules, seen, replica } = self.disk.clone();
        self.times = Times::new(seen);
        let replica = replica.unwrap_or_default();
        self.replica = replica.keeping(&rules, self.times.for_rules(seen));
        (self.synced, self.enforced) = (false, None);
        (self.stream, self.late, self.late_ack) = (Stream::Lost, None, None);
        self.confirmed = false;
    }

    /// What the agent says of its point: nothing that it may not say of itself.
    fn ack(&self, flaw: Flaw) -> Option<Revision> {
        let reached = self.point.as_ref()?.reached;
        match flaw {
            Flaw::AcknowledgedBeforeWritten => Some(reached),
            _ => Some(reached.min(self.enforced?)),
        }
    }
}

impl World {
    fn last(&self) -> usize {
        self.states.len() - 1
    }

    fn revision(&self) -> Revision {
        self.states[self.last()].0
    }

    fn has_rule(&self) -> bool {
        self.states[self.last()].1
    }

    fn commit(&mut self, has_rule: bool) {
        let Revision { incarnation, number } = self.revision();
        self.states.push((Revision { incarnation, number: number + 1 }, has_rule));
    }

    fn restore(&mut self) {
        let from = Before {
            incarnation: 1,
            revision: self.states[0].0,
            log_size: 0,
            log_root: Sha256::from_bytes([0; 32]),
            at: START,
        };
        self.life = Some(Life {
            cause: Cause::Restored,
            began: at(self.tick),
            from,
            lost_until: None,
            served: Served::Never,
            hold_until: at(self.tick),
            resumed: None,
            taking_in: None,
            cover_at: at(HORIZON),
            until: at(ENDS),
            covered: false,
        });
        let revision = Revision { incarnation: 2, number: self.states[0].0.number + 1 };
        self.states.push((revision, false));
        self.lose_streams();
    }

    /// The server's process ends: who is on record is known to the next, and nothing else.
    fn lose_streams(&mut self) {
        for node in &mut self.nodes {
            (node.stream, node.late, node.late_ack) = (Stream::Lost, None, None);
            (node.heard, node.confirmed) = (None, false);
        }
    }

    fn reconnect(&mut self, index: usize) -> bool {
        let known = self.nodes[index].replica.revision();
        let node = &mut self.nodes[index];
        if node.stream != Stream::Lost {
            return false;
        }
        let known = self.states.iter().position(|(state, _)| *state == known);
        node.stream = Stream::Open(known);
        true
    }

    fn hand_back(&mut self, index: usize) -> bool {
        let node = &self.nodes[index];
        let has = covers(node.replica.rules()) && node.stream != Stream::Lost && node.synced;
        if !has || self.has_rule() || RULE.is_moot(at(self.tick)) {
            return false;
        }
        self.commit(true);
        true
    }

    fn deliver(&mut self, system: &System, index: usize, message: (usize, i8)) {
        let now = self.clock(system, index);
        let mut node = self.nodes[index].clone();
        node.hear(system, self, message, now);
        self.nodes[index] = node;
    }

    /// By the clock of a machine.
    fn clock(&self, system: &System, index: usize) -> Timestamp {
        let jump = if self.nodes[index].ahead { JUMP } else { 0 };
        at(self.tick + system.clocks[index] + jump)
    }

    /// Whether a point would let in who shows the covered certificate.
    fn lets_in(&self, system: &System, index: usize) -> bool {
        let valid = self.clock(system, index) <= at(ENDS);
        let point = self.nodes[index].point.as_ref();
        valid && point.is_some_and(|point| !covers(&point.rules))
    }

    /// As the server answers who asks whether every live point enforces a revision.
    fn is_converged(&self, system: &System, asked: Revision) -> bool {
        let lost = self.life.as_ref().is_some_and(|life| life.has_lost(asked));
        if lost && system.flaw != Flaw::LostIsAnswered {
            return false;
        }
        let now = at(self.tick);
        let lives = |node: &&Node| {
            node.confirmed || system.flaw != Flaw::LostIsGone && now <= at(ENDS) + SKEW_ALLOWED
        };
        self.nodes.iter().filter(lives).all(|node| Some(asked) <= node.heard)
    }

    /// The revisions at which the rule was put.
    fn put(&self) -> impl Iterator<Item = Revision> {
        let put = self.states.windows(2).filter(|pair| !pair[0].1 && pair[1].1);
        put.map(|pair| pair[1].0)
    }

    /// Whether the server has the rule again, once everybody who remembers it has come and said so.
    fn comes_back(&self, system: &System) -> bool {
        let mut world = self.clone();
        for index in 0..world.nodes.len() {
            world.reconnect(index);
            let message = (world.last(), world.tick);
            world.deliver(system, index, message);
            if system.flaw != Flaw::NobodyHandsBack {
                world.hand_back(index);
            }
        }
        world.has_rule()
    }
}

impl World {
    fn acknowledged(&mut self, index: usize, ack: Option<Revision>, flaw: Flaw) -> bool {
        let newest = self.revision();
        let node = &mut self.nodes[index];
        let (Stream::Open(told), Some(ack)) = (node.stream, ack) else { return false };
        let told = match flaw {
            Flaw::AnythingCounts => Some(newest),
            _ => told.map(|told| self.states[told].0),
        };
        node.heard = heard(node.heard, ack, told);
        node.confirmed = true;
        true
    }
}

impl Node {
    fn is_written(&self) -> bool {
        covers(&self.disk.rules) == covers(self.replica.rules())
    }

    fn restarts(&mut self, how: impl FnOnce(&mut Self)) -> bool {
        self.counts.restarts += 1;
        // What only its memory had, and nobody was told of, may be gone with it.
        self.had &= covers(&self.disk.rules);
        how(self);
        self.counts.restarts <= 1
    }
}
