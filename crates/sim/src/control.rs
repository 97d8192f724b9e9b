//! The server: its store, its present life, and its streams.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use countersign_api::v1;
use countersign_identity::{
    Clock, Code, Entropy, Name, Revision, SeededEntropy, SimClock, Timestamp,
};
use countersign_seal::Kek;
use countersign_server::Refused;
use countersign_server::steps::{Ground, Line, Steps, Told, begin};
use countersign_store::{Batch, MemoryStore, Store};
use tokio::runtime::Runtime;

use crate::keys;
use crate::messages::Records;

/// Which stream: the machine, its life, and the session of that.
pub(crate) type LineKey = (usize, u64, u64);

/// The control plane of a world.
pub(crate) struct Control {
    runtime: Runtime,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) clock: Arc<SimClock>,
    ground: Ground,
    kek: Kek,
    steps: Option<Steps>,
    lines: BTreeMap<LineKey, OpenLine>,
    known: BTreeMap<(Revision, Name), Arc<Records>>,
    seen: Option<Revision>,
}

struct OpenLine {
    line: Line,
    label: Name,
    /// Streams keep their order: nothing arrives before what was said earlier.
    pub(crate) arrives: Timestamp,
}

/// What a stream came to when it was asked.
pub(crate) enum Asked {
    /// It says this, and is to be asked again.
    Says(Box<v1::SyncResponse>, Arc<Records>),
    /// To be asked again then.
    Waits(Timestamp),
    /// It has ended.
    Ended(Code, String),
    /// There is none.
    Gone,
}

impl Control {
    /// A trust domain that has just begun.
    pub(crate) fn begin(seed: u64, now: Timestamp) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime on this thread");
        let clock = Arc::new(SimClock::new(now));
        let chance = |salt: u64| Arc::new(SeededEntropy::new(seed.wrapping_mul(31) ^ salt));
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new(chance(1)));
        let entropy = chance(2);
        let kek = Kek::draw(&*entropy).expect("a seeded sequence does not end");
        let ground = Ground {
            store: Arc::clone(&store),
            clock: Arc::clone(&clock) as Arc<dyn Clock>,
            entropy: Arc::clone(&entropy) as Arc<dyn Entropy>,
        };
        let keys = chance(3);
        let domain = "shop.example".parse().expect("it is one");
        let (root, issuer) = (keys::key(&keys), keys::key(&keys));
        runtime
            .block_on(begin(&ground, &kek, domain, &root, &issuer))
            .expect("an empty store takes a beginning");
        let (lines, known) = (BTreeMap::new(), BTreeMap::new());
        let (steps, seen) = (None, None);
        let mut control = Self { runtime, store, clock, ground, kek, steps, lines, known, seen };
        control.start();
        control
    }

    pub(crate) fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// A new life, on what the store holds.
    pub(crate) fn start(&mut self) {
        let started = self.runtime.block_on(Steps::start(self.ground.clone(), &self.kek));
        self.steps = Some(started.expect("a store of our own makes a server"));
    }

    /// Its process ends. Streams are lost, each of which is told.
    pub(crate) fn stop(&mut self) -> Vec<LineKey> {
        self.steps = None;
        std::mem::take(&mut self.lines).into_keys().collect()
    }

    /// True time.
    pub(crate) fn clock_now(&self) -> Timestamp {
        self.clock.now()
    }

    pub(crate) fn is_up(&self) -> bool {
        self.steps.is_some()
    }

    /// Runs one call on the present life.
    ///
    /// # Panics
    /// When there is none.
    pub(crate) fn call<T>(&self, call: impl AsyncFnOnce(&Steps) -> T) -> T {
        let steps = self.steps.as_ref().expect("the server is up");
        self.runtime.block_on(call(steps))
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

    /// Lets the snapshot catch up.
    pub(crate) fn advance(&self) {
        let moved = self.call(async |steps| steps.advance().await);
        moved.expect("our own records are understood");
    }

    /// Whether the snapshot moved since this was asked last: then every stream looks what is new for it.
    pub(crate) fn has_moved(&mut self) -> bool {
        let revision = self.steps.as_ref().map(Steps::revision);
        std::mem::replace(&mut self.seen, revision) != revision
    }

    /// What nodes with this label must know at the snapshot's revision.
    pub(crate) fn records(&mut self, label: &Name) -> (Revision, Arc<Records>) {
        let steps = self.steps.as_ref().expect("the server is up");
        let revision = steps.revision();
        let records = self.known.entry((revision, label.clone())).or_insert_with(|| {
            let (_, records) = steps.slice(&BTreeSet::from([label.clone()]));
            let records = records.into_iter();
            Arc::new(records.map(|one| ((one.kind, one.name), one.value.to_vec())).collect())
        });
        (revision, Arc::clone(records))
    }

    /// Opens a stream.
    pub(crate) fn open(
        &mut self,
        key: LineKey,
        label: &Name,
        chain: &[bytes::Bytes],
        hello: &v1::SyncHello,
    ) -> Result<(), Refused> {
        let line = self.call(async |steps| steps.open(chain, hello).await)?;
        let arrives = self.clock.now();
        self.lines.insert(key, OpenLine { line, label: label.clone(), arrives });
        Ok(())
    }

    /// Asks a stream what it has to say now.
    pub(crate) fn ask(&mut self, key: LineKey) -> Asked {
        let (Some(steps), Some(open)) = (&self.steps, self.lines.get_mut(&key)) else {
            return Asked::Gone;
        };
        match steps.next(&mut open.line) {
            Ok(Told::Message(message)) => {
                let label = open.label.clone();
                let (_, records) = self.records(&label);
                Asked::Says(message, records)
            }
            Ok(Told::Nothing(until)) => Asked::Waits(until),
            Err(refused) => {
                self.close(key);
                Asked::Ended(refused.code, refused.why)
            }
        }
    }

    /// When a message of this stream arrives that would take until `at` alone.
    pub(crate) fn in_order(&mut self, key: LineKey, at: Timestamp) -> Timestamp {
        let Some(open) = self.lines.get_mut(&key) else { return at };
        open.arrives = open.arrives.max(at);
        open.arrives
    }

    pub(crate) fn acknowledge(&self, key: LineKey, ack: v1::SyncAck) {
        let (Some(steps), Some(open)) = (&self.steps, self.lines.get(&key)) else { return };
        // Whoever acknowledges under a key that has a successor is told when the stream is asked next.
        self.runtime.block_on(steps.acknowledge(&open.line, ack)).ok();
    }

    /// The connection of a stream is gone.
    pub(crate) fn close(&mut self, key: LineKey) {
        if let (Some(steps), Some(open)) = (&self.steps, self.lines.remove(&key)) {
            steps.leave(&open.line);
        }
    }

    /// All open streams.
    pub(crate) fn lines(&self) -> Vec<LineKey> {
        self.lines.keys().copied().collect()
    }

    /// The streams of one machine.
    pub(crate) fn lines_of(&self, machine: usize) -> Vec<LineKey> {
        self.lines.keys().copied().filter(|(of, _, _)| *of == machine).collect()
    }
}
