//! The queue of what is due, and what happens to each thing in it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::Arc;
use std::time::Duration;

use countersign_agent::core::{Credential, Term};
use countersign_api::v1;
use countersign_identity::{Name, SeededEntropy, SimClock, Timestamp};
use countersign_pki::make_csr;
use countersign_store::{Issued, verify_everything};
use serde_json::{Value, json};

use crate::chaos::Fault;
use crate::clocks::skewed;
use crate::control::{Control, LineKey};
use crate::keys;
use crate::links::{Link, LinkReport};
use crate::machine::{Disk, Machine, Node, Svid};
use crate::manifests::{manifest, name, policy, service, workload};
use crate::mesh::{Mesh, Traffic};
use crate::messages::{Effect, Reply, Request};
use crate::points::Point;
use crate::revocations::{Committed, Thief};
use crate::settings::{Renewal, Settings};
use crate::trace::Trace;

/// Everything there is.
pub struct World {
    pub(crate) settings: Settings,
    pub(crate) control: Control,
    pub(crate) machines: Vec<Machine>,
    /// The streams whose opening has reached the server.
    pub(crate) opened: BTreeSet<LineKey>,
    pub(crate) links: Vec<Link>,
    pub(crate) links_made: u64,
    pub(crate) links_wanted: bool,
    pub(crate) report: LinkReport,
    pub(crate) mesh: Mesh,
    /// The rules that are not moot yet.
    pub(crate) rules: Vec<Committed>,
    /// How many rules there were that are moot.
    pub(crate) numbered: usize,
    /// The workloads for which nothing is issued.
    pub(crate) suspended: BTreeSet<String>,
    /// All SVIDs that were served and have not ended.
    pub(crate) served: Vec<Credential>,
    /// At how many of them it is looked which have ended.
    pub(crate) served_most: usize,
    /// Those who have something that is revoked, and have not tried it yet.
    pub(crate) thieves: Vec<Thief>,
    pub(crate) thwarted: usize,
    pub(crate) chance: SeededEntropy,
    /// How far ahead a server's clock has been at most, in microseconds.
    pub(crate) servers_ahead: i64,
    /// Messages travel without loss.
    pub(crate) calm: bool,
    begun: Timestamp,
    pub(crate) now: Timestamp,
    queue: BinaryHeap<Reverse<Entry>>,
    entries: u64,
    steps: u64,
    trace: Trace,
    renewals: Vec<Renewal>,
    pub(crate) signed: Vec<Duration>,
}

struct Entry {
    at: Timestamp,
    number: u64,
    due: Due,
}

pub(crate) enum Due {
    /// A machine in one of its lives, if its turn is that one still.
    Wake(usize, u64, u64),
    /// From a machine in one of its lives, at a server.
    Arrives((usize, u64), usize, Request),
    Comes(usize, u64, Box<Reply>),
    /// A stream, if its turn is that one still.
    Line(LineKey, u64),
    Advance(usize),
    Fault(Fault),
    Successor(usize),
    /// What was under way on a connection that drains is done.
    Done(u64),
    Traffic(Traffic),
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

/// When every run begins. Any moment does.
const BEGINNING: Timestamp = Timestamp::from_secs(1_795_262_400);

impl World {
    /// A trust domain whose nodes have joined, and whose agents are about to start.
    pub fn begin(settings: Settings) -> Self {
        let control = Control::begin(settings.seed, settings.servers, BEGINNING);
        let mut world = Self {
            control,
            machines: Vec::new(),
            opened: BTreeSet::new(),
            links: Vec::new(),
            links_made: 0,
            links_wanted: settings.services,
            report: LinkReport::default(),
            mesh: Mesh::new(settings.seed),
            rules: Vec::new(),
            numbered: 0,
            suspended: BTreeSet::new(),
            served: Vec::new(),
            served_most: 0,
            thieves: Vec::new(),
            thwarted: 0,
            servers_ahead: 0,
            chance: SeededEntropy::new(settings.seed),
            calm: true,
            begun: BEGINNING,
            now: BEGINNING,
            queue: BinaryHeap::new(),
            entries: 0,
            steps: 0,
            trace: Trace::default(),
            renewals: Vec::new(),
            signed: Vec::new(),
            settings,
        };
        if !world.is_far_off() {
            world.draw_server_clocks();
        }
        world.declare();
        for index in 0..world.settings.machines {
            let machine = world.join(index);
            world.machines.push(machine);
        }
        world.begin_mesh();
        for index in 0..world.settings.machines {
            // Machines are not switched on in the same moment.
            let within = u64::try_from(world.settings.switched_on_within.as_millis());
            let later = index as u64 * 7 + world.below(within.unwrap_or(u64::MAX));
            world.in_millis(later, Due::Wake(index, 0, 0));
        }
        world
    }

    fn declare(&mut self) {
        let (machines, workloads) = (self.settings.machines, self.settings.workloads);
        let lifetime = self.settings.lifetime;
        let mut manifests = vec![manifest(
            "TrustDomain",
            "shop",
            &json!({"trustDomain": "shop.example", "agentLifetime": self.settings.agent_lifetime}),
        )];
        for machine in 0..machines {
            for number in 0..workloads {
                manifests.push(workload(machine, number, lifetime));
            }
            if self.settings.services {
                manifests.push(service(machine, (machine + 1) % machines));
            }
        }
        if self.settings.services {
            manifests.extend((0..machines).map(|from| policy(from, (from + 1) % machines)));
        }
        manifests.extend(self.mesh_manifests());
        self.apply(&manifests);
    }

    /// Declares a workload of one node, as at the beginning.
    pub fn declare_workload(&mut self, machine: usize, number: usize) {
        self.apply(&[workload(machine, number, self.settings.lifetime)]);
    }

    /// Puts manifests in force, and lets the snapshot follow at once.
    pub fn apply(&mut self, manifests: &[Value]) {
        let applied = self.control.call(async |steps| steps.apply(manifests).await);
        let revision = applied.unwrap_or_else(|refused| panic!("manifests are refused: {refused}"));
        self.tell(&format!("revision {revision}"));
        (0..self.control.count()).for_each(|server| self.advance(server));
    }

    fn join(&mut self, index: usize) -> Machine {
        let mut labels = vec![format!("n{index}").parse().expect("it is a name")];
        labels.extend(self.mesh_label(index));
        let clock = Arc::new(SimClock::new(self.now));
        let salt = self.settings.seed.rotate_left(17) ^ (index as u64 + 1).wrapping_mul(0x9e37);
        let (entropy, keys) = (SeededEntropy::new(salt), SeededEntropy::new(!salt));
        let key = Arc::new(keys::key(&keys));
        let csr = make_csr(&key).expect("Ed25519 signs");
        let known: BTreeSet<Name> = labels.iter().cloned().collect();
        let answer = self.control.call(async |steps| {
            let token = steps.create_token("10m".parse().expect("it is one"), labels).await?;
            let evidence = Some(v1::attest_request::Evidence::JoinToken(token));
            let (version, host) = ("sim".to_owned(), format!("host{index}"));
            steps.attest(v1::AttestRequest { evidence, csr: csr.into(), version, host }).await
        });
        let answer = answer.unwrap_or_else(|refused| panic!("a{index} may not join: {refused}"));
        let attested = countersign_agent::server_link::wire::attested(answer)
            .expect("our own server is understood");
        let node = Node {
            id: attested.node,
            generation: attested.generation,
            key,
            chain: attested.chain,
            issued: attested.issued,
            bundle: attested.bundle,
        };
        let mut points = BTreeMap::new();
        if self.settings.services {
            let name: Name = name(index, 0).parse().expect("it is a name");
            let point = Point::begin(name.clone(), &clock, self.control.runtime());
            points.insert(name, point);
        }
        for name in self.mesh_names(index) {
            let point = Point::begin(name.clone(), &clock, self.control.runtime());
            points.insert(name, point);
        }
        Machine {
            index,
            labels: known,
            clock,
            truth: Arc::clone(&self.control.clock),
            skew: 0,
            ahead: 0,
            asleep: None,
            cut_off: false,
            cut_from: None,
            servers: self.settings.servers,
            disk: Disk::of(node),
            life: None,
            lives: 0,
            wake: self.now,
            scheduled: None,
            turn: 0,
            points,
            entropy,
            keys,
        }
    }

    /// How much time has passed.
    pub fn elapsed(&self) -> Duration {
        self.now.since(self.begun)
    }

    /// When the next whole second since the beginning is over.
    pub(crate) fn next_second(&self) -> Timestamp {
        self.begun + Duration::from_secs(self.elapsed().as_secs() + 1)
    }

    /// How many things have happened.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Keeps no more than about so many bytes of the trace, the last ones.
    pub fn keep_of_trace(&mut self, bytes: usize) {
        self.trace.keep(bytes);
    }

    /// What happened so far.
    pub fn trace(&self) -> &Trace {
        &self.trace
    }

    /// All renewals so far.
    pub fn renewals(&self) -> &[Renewal] {
        &self.renewals
    }

    /// When each SVID was signed.
    pub fn signed(&self) -> &[Duration] {
        &self.signed
    }

    /// How connections went.
    pub fn links(&self) -> LinkReport {
        self.report
    }

    pub(crate) fn tell(&mut self, what: &str) {
        let at = self.elapsed();
        self.trace.add(at, what);
    }

    /// A number below `bound`.
    pub(crate) fn below(&self, bound: u64) -> u64 {
        self.chance.next_u64() % bound.max(1)
    }

    pub(crate) fn push(&mut self, at: Timestamp, due: Due) {
        self.entries += 1;
        self.queue.push(Reverse(Entry { at: at.max(self.now), number: self.entries, due }));
    }

    pub(crate) fn in_millis(&mut self, millis: u64, due: Due) {
        self.push(self.now + Duration::from_millis(millis), due);
    }

    pub(crate) fn fault_in(&mut self, millis: u64, fault: Fault) {
        self.in_millis(millis, Due::Fault(fault));
    }

    /// Lets time pass, and everything that is due happen.
    pub fn run(&mut self, span: Duration) {
        let until = self.now + span;
        while let Some(Reverse(entry)) = self.queue.peek() {
            if until < entry.at {
                break;
            }
            let Some(Reverse(entry)) = self.queue.pop() else { break };
            self.set_time(entry.at);
            self.steps += 1;
            self.happen(entry.due);
        }
        self.set_time(until);
    }

    fn set_time(&mut self, now: Timestamp) {
        if now == self.now {
            return;
        }
        self.now = now;
        self.control.set_time(now);
        // Only what runs beside a machine's steps looks at its clock by itself.
        for machine in self.machines.iter().filter(|machine| !machine.points.is_empty()) {
            machine.clock.set(skewed(now, machine.skew));
        }
        if !self.links.is_empty() || self.mesh.is_there() {
            self.sweep();
        }
    }

    fn happen(&mut self, due: Due) {
        match due {
            Due::Wake(index, _, _) | Due::Comes(index, _, _)
                if self.machines[index].asleep.is_some_and(|until| self.now < until) =>
            {
                // It may be woken before that. All that waits for it waits for one moment, and so keeps its order.
                let until = self.machines[index].asleep.unwrap_or(self.now);
                self.push(until.min(self.next_second()), due);
            }
            Due::Wake(index, life, turn) => self.wake(index, life, turn),
            Due::Comes(index, life, reply) => {
                if self.machines[index].life.is_some() && self.machines[index].lives == life {
                    self.with(index, |machine, effects| machine.hear(*reply, effects));
                }
            }
            Due::Arrives(from, server, request) => {
                self.arrives(from, server, request);
                self.follow(server);
            }
            Due::Line(key, turn) if self.control.is_turn(key, turn) => self.poll(key),
            Due::Line(_, _) => {}
            Due::Advance(server) => self.advance(server),
            Due::Fault(fault) => self.befall(fault),
            Due::Successor(from) => self.dial(from),
            Due::Done(number) => self.done(number),
            Due::Traffic(traffic) => self.pass(traffic),
        }
    }

    fn wake(&mut self, index: usize, life: u64, turn: u64) {
        let machine = &mut self.machines[index];
        if (machine.lives, machine.turn) != (life, turn) {
            return;
        }
        machine.scheduled = None;
        match &machine.life {
            None => self.with(index, Machine::start),
            Some(_) if machine.now() < machine.wake => self.schedule(index),
            Some(_) => self.with(index, Machine::woke),
        }
    }

    /// Wakes the machine when its driver's timer fires: when its own clock shows the moment that it was set to.
    pub(crate) fn schedule(&mut self, index: usize) {
        let machine = &mut self.machines[index];
        let at = skewed(machine.wake, -machine.skew).max(self.now);
        // Once for each moment: a timer that is set anew replaces the one before.
        if machine.wake < Timestamp::LAST && machine.scheduled != Some((machine.lives, at)) {
            machine.scheduled = Some((machine.lives, at));
            machine.turn += 1;
            let due = Due::Wake(index, machine.lives, machine.turn);
            self.push(at, due);
        }
    }

    /// Lets a machine take a step, and does what it asks for.
    pub(crate) fn with(&mut self, index: usize, step: impl FnOnce(&mut Machine, &mut Vec<Effect>)) {
        let mut effects = Vec::new();
        step(&mut self.machines[index], &mut effects);
        for effect in effects {
            self.effect(index, effect);
        }
        self.look(index);
        self.schedule(index);
    }

    fn effect(&mut self, index: usize, effect: Effect) {
        let life = self.machines[index].lives;
        match effect {
            Effect::Send(server, request) => self.send((index, life), server, request),
            Effect::After(span, reply) => {
                self.push(self.now + span, Due::Comes(index, life, Box::new(reply)));
            }
            Effect::Trace(what) => self.tell(&what),
            Effect::Renews(_name, term) => self.renews(index, term),
            Effect::Serves(svid) => {
                self.serves(&svid);
                self.remember_served(svid.credential.clone());
            }
        }
    }

    fn renews(&mut self, index: usize, term: Term) {
        let passed = self.machines[index].now().since(term.issued).as_micros();
        let whole = term.expires.since(term.issued).as_micros().max(1);
        let share = u64::try_from(passed * 10_000 / whole).unwrap_or(u64::MAX);
        self.renewals.push(Renewal { at: self.elapsed(), share });
    }

    /// Every SVID that is served is in the log, with its very contents.
    fn serves(&mut self, svid: &Arc<Svid>) {
        let leaf = svid.chain.leaf();
        let serial = leaf.serial().expect("our own certificates have serials of ours");
        let (store, runtime) = (&self.control.store, self.control.runtime());
        let Issued { row, index } = runtime
            .block_on(store.issued(serial))
            .expect("the store answers")
            .unwrap_or_else(|| panic!("an SVID is served that was never recorded: {serial}"));
        assert_eq!(row.tbs, leaf.tbs_digest(), "the record is of other contents");
        let event = runtime.block_on(store.events(index, 1)).expect("the store answers");
        let text = String::from_utf8_lossy(&event[0].leaf).into_owned();
        assert!(text.contains(&leaf.tbs_digest().to_string()), "the leaf is of other contents");
    }

    /// Has the dialler open a successor when that is due.
    pub(crate) fn succeed_at(&mut self, from: usize, at: Timestamp) {
        let at = skewed(at, -self.machines[from].skew);
        self.push(at, Due::Successor(from));
    }

    /// The whole store agrees with itself.
    pub fn verify_everything(&self) {
        let store = &*self.control.store;
        let verified = self.control.runtime().block_on(verify_everything(store));
        verified.unwrap_or_else(|error| panic!("the store is not in order: {error}"));
    }
}
