//! The servers: their store, the present life of each, and their streams.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use countersign_api::v1;
use countersign_audit::Entry;
use countersign_identity::{
    Clock, Code, Entropy, Name, NodeId, Revision, SKEW_ALLOWED, SeededEntropy, SimClock, Timestamp,
};
use countersign_seal::Kek;
use countersign_server::Refused;
use countersign_server::steps::{Ground, Line, Steps, Told, begin};
use countersign_store::{Batch, MemoryStore, Store};
use tokio::runtime::Runtime;

use crate::clocks::skewed;
use crate::keys;
use crate::messages::Records;

/// Which stream: the machine, its life, and the session of that.
pub(crate) type LineKey = (usize, u64, u64);

/// The control plane of a world.
pub(crate) struct Control {
    runtime: Runtime,
    pub(crate) store: Arc<dyn Store>,
    /// True time.
    pub(crate) clock: Arc<SimClock>,
    entropy: Arc<dyn Entropy>,
    kek: Kek,
    servers: Vec<Server>,
    lines: BTreeMap<LineKey, OpenLine>,
    known: BTreeMap<(Revision, BTreeSet<Name>), Arc<Records>>,
}

/// One server of several on one store.
struct Server {
    steps: Option<Steps>,
    seen: Option<Revision>,
    clock: Arc<SimClock>,
    /// How far that is ahead of true time, in microseconds.
    skew: i64,
    /// The latest moment of which its present life knows.
    latest: Timestamp,
    /// How far time had come, as it wrote it down beside its store.
    kept: Option<Timestamp>,
}

struct OpenLine {
    server: usize,
    line: Line,
    labels: BTreeSet<Name>,
    /// Which of the moments counts at which it is to be asked again.
    turn: u64,
    /// Streams keep their order: nothing arrives before what was said earlier.
    pub(crate) arrives: Timestamp,
}

/// What a stream came to when it was asked.
pub(crate) enum Asked {
    /// It says this, and is to be asked again.
    Says(Box<v1::SyncResponse>, Arc<Records>),
    /// To be asked again at that true time, unless it is asked before: then another turn counts.
    Waits(Timestamp, u64),
    /// It has ended.
    Ended(Code, String),
    /// There is none.
    Gone,
}

impl Control {
    /// A trust domain that has just begun.
    pub(crate) fn begin(seed: u64, servers: usize, now: Timestamp) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime on this thread");
        let clock = Arc::new(SimClock::new(now));
        let chance = |salt: u64| Arc::new(SeededEntropy::new(seed.wrapping_mul(31) ^ salt));
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new(chance(1)));
        let entropy: Arc<dyn Entropy> = chance(2);
        let kek = Kek::draw(&*entropy).expect("a seeded sequence does not end");
        let ground = ground(0, &store, &clock, &entropy);
        let keys = chance(3);
        let domain = "shop.example".parse().expect("it is one");
        let (root, issuer) = (keys::key(&keys), keys::key(&keys));
        runtime
            .block_on(begin(&ground, &kek, domain, &root, &issuer))
            .expect("an empty store takes a beginning");
        let (lines, known) = (BTreeMap::new(), BTreeMap::new());
        let all = (0..servers).map(|_| Server::with_clock_at(now)).collect();
        let mut control = Self { runtime, store, clock, entropy, kek, servers: all, lines, known };
        (0..servers).for_each(|server| control.start(server));
        control
    }

    pub(crate) fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// How many servers there are, up or not.
    pub(crate) fn count(&self) -> usize {
        self.servers.len()
    }

    /// A new life, on what the store holds.
    pub(crate) fn start(&mut self, server: usize) {
        let ground = ground(server, &self.store, &self.servers[server].clock, &self.entropy);
        let ground = Ground { steady: self.servers[server].kept, ..ground };
        let started = self.runtime.block_on(Steps::start(ground, &self.kek));
        let latest = self.latest();
        let server = &mut self.servers[server];
        server.steps = Some(started.expect("a store of our own makes a server"));
        server.latest = latest;
    }

    /// When the last entry of the log was written, by the clock of whoever wrote it.
    fn latest(&self) -> Timestamp {
        self.runtime.block_on(async {
            let head = self.store.head().await.expect("the store answers");
            let last = self.store.events(head.log_size - 1, 1).await.expect("the store answers");
            Entry::parse(&last[0].leaf).expect("our own leaves are understood").at
        })
    }

    /// A server has issued something. It may not while its clock is behind what it knows by more than the allowed skew.
    pub(crate) fn issued_at(&mut self, server: usize) {
        let Server { clock, latest, .. } = &mut self.servers[server];
        let now = clock.now();
        assert!(*latest <= now + SKEW_ALLOWED, "s{server} issues at {now}, after {latest}");
        *latest = now.max(*latest);
    }

    /// True time passes, and each server's clock shows it as it does. A server that is up writes down how far it has come.
    pub(crate) fn set_time(&mut self, now: Timestamp) {
        let passed = now.since(self.clock.now());
        self.clock.advance(passed);
        for server in &mut self.servers {
            server.clock.advance(passed);
            let steady = server.steps.as_ref().and_then(Steps::steady);
            server.kept = steady.or(server.kept);
        }
    }

    /// Sets the clock of one server by so many microseconds from true time.
    pub(crate) fn set_skew(&mut self, server: usize, skew: i64) {
        let server = &mut self.servers[server];
        server.skew = skew;
        server.clock.set(skewed(self.clock.now(), skew));
    }

    /// What a server's clock shows.
    pub(crate) fn now_at(&self, server: usize) -> Timestamp {
        self.servers[server].clock.now()
    }

    /// Its process ends. Streams are lost, each of which is told.
    pub(crate) fn stop(&mut self, server: usize) -> Vec<LineKey> {
        self.servers[server].steps = None;
        let lost = self.lines_at(server);
        self.lines.retain(|_, open| open.server != server);
        lost
    }

    /// True time.
    pub(crate) fn clock_now(&self) -> Timestamp {
        self.clock.now()
    }

    pub(crate) fn is_up(&self, server: usize) -> bool {
        self.servers[server].steps.is_some()
    }

    /// Whether there is a server at all, to which an operator could speak.
    pub(crate) fn any_up(&self) -> bool {
        self.servers.iter().any(|server| server.steps.is_some())
    }

    /// Runs one call on the present life of a server.
    ///
    /// # Panics
    /// When there is none.
    pub(crate) fn call_at<T>(&self, server: usize, call: impl AsyncFnOnce(&Steps) -> T) -> T {
        let steps = self.servers[server].steps.as_ref().expect("the server is up");
        self.runtime.block_on(call(steps))
    }

    /// Runs one call on the first server that is up, as an operator's command does.
    ///
    /// # Panics
    /// When there is none.
    pub(crate) fn call<T>(&self, call: impl AsyncFnOnce(&Steps) -> T) -> T {
        let up = (0..self.count()).find(|server| self.is_up(*server));
        self.call_at(up.expect("a server is up"), call)
    }

    /// The revision that the next change gets.
    pub(crate) fn next_revision(&self) -> Revision {
        let head = self.runtime.block_on(self.store.head()).expect("the store answers");
        Revision { number: head.revision.number + 1, ..head.revision }
    }

    /// Writes to the store, as an operator's command does.
    pub(crate) fn commit(&self, batch: Batch) -> Revision {
        let committed = self.runtime.block_on(self.store.commit(batch));
        committed.expect("the store takes what is in order").revision
    }

    /// Lets a server's snapshot catch up.
    pub(crate) fn advance(&self, server: usize) {
        let moved = self.call_at(server, async |steps| steps.advance().await);
        moved.expect("our own records are understood");
    }

    /// Whether its snapshot moved since this was asked last: then every stream looks what is new for it.
    pub(crate) fn has_moved(&mut self, server: usize) -> bool {
        let Server { steps, seen, .. } = &mut self.servers[server];
        let revision = steps.as_ref().map(Steps::revision);
        std::mem::replace(seen, revision) != revision
    }

    /// What a node has acknowledged, to whichever server.
    pub(crate) fn acknowledged(&self, node: NodeId) -> Option<Revision> {
        let up = self.servers.iter().filter_map(|server| server.steps.as_ref());
        up.filter_map(|steps| steps.acknowledged(node)).max()
    }

    /// What nodes with these labels must know at the revision of a server's snapshot.
    pub(crate) fn records(
        &mut self,
        server: usize,
        labels: &BTreeSet<Name>,
    ) -> (Revision, Arc<Records>) {
        let steps = self.servers[server].steps.as_ref().expect("the server is up");
        let revision = steps.revision();
        // What is on its way is of one of the latest revisions.
        let old = |first: &Revision| first.number + KNOWN_REVISIONS < revision.number;
        while self.known.first_key_value().is_some_and(|((first, _), _)| old(first)) {
            self.known.pop_first();
        }
        let records = self.known.entry((revision, labels.clone())).or_insert_with(|| {
            let (_, records) = steps.slice(labels);
            let records = records.into_iter();
            Arc::new(records.map(|one| ((one.kind, one.name), one.value.to_vec())).collect())
        });
        (revision, Arc::clone(records))
    }

    /// Opens a stream.
    pub(crate) fn open(
        &mut self,
        (server, key): (usize, LineKey),
        labels: &BTreeSet<Name>,
        chain: &[bytes::Bytes],
        hello: &v1::SyncHello,
    ) -> Result<(), Refused> {
        let line = self.call_at(server, async |steps| steps.open(chain, hello).await)?;
        let arrives = self.clock.now();
        let open = OpenLine { server, line, labels: labels.clone(), turn: 0, arrives };
        self.lines.insert(key, open);
        Ok(())
    }

    /// Asks a stream what it has to say now.
    pub(crate) fn ask(&mut self, key: LineKey) -> Asked {
        let Some(open) = self.lines.get_mut(&key) else { return Asked::Gone };
        let server = open.server;
        let Some(steps) = &self.servers[server].steps else { return Asked::Gone };
        match steps.next(&mut open.line) {
            Ok(Told::Message(message)) => {
                let labels = open.labels.clone();
                let (_, records) = self.records(server, &labels);
                Asked::Says(message, records)
            }
            Ok(Told::Nothing(until)) => {
                open.turn += 1;
                Asked::Waits(skewed(until, -self.servers[server].skew), open.turn)
            }
            Err(refused) => {
                self.close(key);
                Asked::Ended(refused.code, refused.why)
            }
        }
    }

    /// Whether this turn of a stream is the one that counts.
    pub(crate) fn is_turn(&self, key: LineKey, turn: u64) -> bool {
        self.lines.get(&key).is_some_and(|open| open.turn == turn)
    }

    /// When a message of this stream arrives that would take until `at` alone.
    pub(crate) fn in_order(&mut self, key: LineKey, at: Timestamp) -> Timestamp {
        let Some(open) = self.lines.get_mut(&key) else { return at };
        open.arrives = open.arrives.max(at);
        open.arrives
    }

    /// Takes an acknowledgement; a caller that is not who it was any more ends its stream.
    pub(crate) fn acknowledge(&mut self, key: LineKey, ack: v1::SyncAck) -> Result<(), Refused> {
        let Some(open) = self.lines.get(&key) else { return Ok(()) };
        let Some(steps) = &self.servers[open.server].steps else { return Ok(()) };
        let taken = self.runtime.block_on(steps.acknowledge(&open.line, ack));
        if taken.is_err() {
            self.close(key);
        }
        taken
    }

    /// The connection of a stream is gone.
    pub(crate) fn close(&mut self, key: LineKey) {
        let Some(open) = self.lines.remove(&key) else { return };
        if let Some(steps) = &self.servers[open.server].steps {
            steps.leave(&open.line);
        }
    }

    /// The server at the other end of a stream.
    pub(crate) fn server_of(&self, key: LineKey) -> Option<usize> {
        self.lines.get(&key).map(|open| open.server)
    }

    /// The open streams of one server.
    pub(crate) fn lines_at(&self, server: usize) -> Vec<LineKey> {
        let lines = self.lines.iter().filter(|(_, open)| open.server == server);
        lines.map(|(key, _)| *key).collect()
    }

    /// The streams of one machine.
    pub(crate) fn lines_of(&self, machine: usize) -> Vec<LineKey> {
        self.lines.range((machine, 0, 0)..(machine + 1, 0, 0)).map(|(key, _)| *key).collect()
    }
}

impl Server {
    fn with_clock_at(now: Timestamp) -> Self {
        let clock = Arc::new(SimClock::new(now));
        Self { steps: None, seen: None, clock, skew: 0, latest: now, kept: None }
    }
}

fn ground(
    server: usize,
    store: &Arc<dyn Store>,
    clock: &Arc<SimClock>,
    entropy: &Arc<dyn Entropy>,
) -> Ground {
    let (store, entropy) = (Arc::clone(store), Arc::clone(entropy));
    let clock = Arc::clone(clock) as Arc<dyn Clock>;
    Ground { name: format!("s{server}"), store, clock, entropy, steady: None }
}

/// So many revisions back it is known what each node was to know.
const KNOWN_REVISIONS: u64 = 8;
