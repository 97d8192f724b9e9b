//! What programs ask of a service that runs on several machines, each through the proxy beside it: requests, and one long stream.
//!
//! What is decided is decided by the code that ships: which address is next and which one rests (`countersign_proxy::health`), what is
//! sent again (`tries`), which connection is left and when (`retire`), who is admitted and when a stream is proven anew
//! (`countersign_tls`), with real handshakes. What is played is what carries bytes: a connection is a pair of admitted ends, and
//! what goes over it is an event.

mod dialling;
mod requests;
mod streams;
mod troubles;
mod ways;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use countersign_identity::{Code, Name, SeededEntropy, Timestamp};
use countersign_proxy::health::Health;
use countersign_proxy::tries::{Fate, Fault};
use serde_json::Value;
use tokio::net::TcpListener;

use self::dialling::{Dial, Line};
use self::requests::Request;
use self::streams::Stream;
pub(crate) use self::troubles::Trouble;
use self::ways::Way;
use crate::clocks::skewed;
use crate::machine::Machine;
use crate::manifests::{SHARED, call_policy, caller, calling, name, shared};
use crate::points::Point;
use crate::world::{Due, World};

/// Everybody who calls, and everybody who is called.
pub(crate) struct Mesh {
    /// Its own, so that whatever is drawn here leaves the rest of a seed as it was.
    chance: SeededEntropy,
    /// By machine.
    callers: Vec<Caller>,
    instances: Vec<Instance>,
    lines: BTreeMap<u64, Line>,
    requests: BTreeMap<u64, Request>,
    /// How many requests, connections and streams there were.
    numbered: u64,
    /// Which callers and instances cannot reach each other, whatever else they reach.
    apart: BTreeSet<(usize, usize)>,
    pub(crate) report: MeshReport,
}

/// A program with its proxy.
struct Caller {
    name: Name,
    /// In order of priority.
    ways: Vec<Way>,
    requests: Upstream,
    bytes: Upstream,
    entropy: SeededEntropy,
    stream: Option<Stream>,
}

/// What its proxy knows of the addresses.
struct Upstream {
    health: Health,
    /// How often the moment of the next one was reckoned.
    turn: u64,
}

/// One of those who are called.
struct Instance {
    machine: usize,
    listener: TcpListener,
    /// Whether somebody listens.
    up: bool,
    /// The requests that its program has read.
    read: BTreeSet<u64>,
}

/// For what an address is dialled or probed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Carries {
    Requests,
    Bytes,
}

/// What happens between programs.
pub(crate) enum Traffic {
    /// A program asks for something.
    Asks(usize),
    /// The first packet of a connection arrives.
    Connects(Dial),
    /// Whoever dialled hears of it.
    Dialled(Dial, Result<Box<Line>, Code>),
    /// A request arrives over a connection.
    Reads(u64, u64),
    /// Its response does.
    Answers(u64, u64),
    /// The caller hears that there is none, and that the connection is of no use, if so.
    Missed(u64, (Fate, Fault), Option<u64>),
    /// It is time to probe, if that is the turn still.
    Probes(usize, Carries, u64),
    /// A connection gets its successor.
    Retires(u64),
    /// It carries nothing more, whether it has one or not.
    Leaves(u64),
    /// A program wants its stream.
    Opens(usize),
    /// The proxy looks for what it has to prove anew: for this stream, if it is there still.
    Proves(usize, u64),
}

/// How requests and streams went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MeshReport {
    /// Requests that were answered.
    pub answered: usize,
    /// Of those, by another than the first in order.
    pub elsewhere: usize,
    /// Of those, after more than one try.
    pub again: usize,
    /// Requests without an answer that somebody may have read.
    pub lost: usize,
    /// Requests that reached nobody.
    pub failed: usize,
    /// Probes that brought an address back.
    pub returned: usize,
    /// Streams that were opened.
    pub streams: usize,
    /// How often one was proven anew.
    pub proven: usize,
    /// How often the answer to that was lost.
    pub unheard: usize,
    /// Streams that lived longer than the certificates by which they were made.
    pub outlived: usize,
    /// Streams that ended with a certificate.
    pub expired: usize,
    /// Streams that ended with a right, or by a revocation.
    pub cut: usize,
    /// Requests that went over a connection that stood, and before its end was announced.
    pub reused: usize,
    /// Connections that another took the place of in time.
    pub succeeded: usize,
    /// Requests that an end which closes said it had not read.
    pub unread: usize,
    /// Requests that could not pass over an address, since that had been open for long.
    pub owed: usize,
    /// Handshakes that were not to be let in, and were not.
    pub refused: usize,
    /// How often a caller and an instance were parted from each other alone.
    pub parted: usize,
    /// How often an instance stopped.
    pub stopped: usize,
    /// How often one closed what was open, as for a new version.
    pub turned_over: usize,
    /// How often a caller lost its right.
    pub forbidden: usize,
}

impl Mesh {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            chance: SeededEntropy::new(seed.rotate_left(31) ^ 0x6d65_7368),
            callers: Vec::new(),
            instances: Vec::new(),
            lines: BTreeMap::new(),
            requests: BTreeMap::new(),
            numbered: 0,
            apart: BTreeSet::new(),
            report: MeshReport::default(),
        }
    }

    pub(crate) fn is_there(&self) -> bool {
        !self.instances.is_empty()
    }

    fn below(&self, bound: u64) -> u64 {
        self.chance.next_u64() % bound.max(1)
    }

    const fn number(&mut self) -> u64 {
        self.numbered += 1;
        self.numbered
    }
}

impl Caller {
    const fn upstream(&mut self, carries: Carries) -> &mut Upstream {
        match carries {
            Carries::Requests => &mut self.requests,
            Carries::Bytes => &mut self.bytes,
        }
    }
}

impl Upstream {
    fn to(count: usize) -> Self {
        Self { health: Health::new(count), turn: 0 }
    }
}

impl World {
    /// How requests and streams went.
    pub fn mesh(&self) -> MeshReport {
        self.mesh.report
    }

    /// On which machines the service runs: on the last ones.
    fn hosts(&self) -> Vec<usize> {
        let machines = self.settings.machines;
        (machines - self.settings.instances..machines).collect()
    }

    /// The workloads of a machine that have a part in it.
    pub(crate) fn mesh_names(&self, index: usize) -> Vec<Name> {
        if self.settings.instances == 0 {
            return Vec::new();
        }
        let hosts = self.hosts().contains(&index);
        let names = [caller(index)].into_iter().chain(hosts.then(|| SHARED.to_owned()));
        names.map(|name| name.parse().expect("it is a name")).collect()
    }

    /// By what a machine is known as one on which the service runs.
    pub(crate) fn mesh_label(&self, index: usize) -> Option<Name> {
        let hosts = self.hosts().contains(&index);
        hosts.then(|| SHARED.parse().expect("it is a name"))
    }

    /// How many workloads of a machine can be named: those that are on it, and what it may have of the service.
    pub(crate) fn workloads_named(&self) -> usize {
        self.settings.workloads + if self.settings.instances == 0 { 0 } else { 2 }
    }

    /// The workload of a machine with this number.
    pub(crate) fn named(&self, index: usize, number: usize) -> String {
        match number.checked_sub(self.settings.workloads) {
            None => name(index, number),
            Some(0) => caller(index),
            Some(_) => SHARED.to_owned(),
        }
    }

    pub(crate) fn mesh_manifests(&self) -> Vec<Value> {
        if self.settings.instances == 0 {
            return Vec::new();
        }
        let (machines, lifetime) = (0..self.settings.machines, self.settings.lifetime);
        let mut manifests = shared(&self.hosts(), lifetime).to_vec();
        manifests.extend(machines.clone().flat_map(|machine| calling(machine, lifetime)));
        manifests.extend(machines.map(call_policy));
        manifests
    }

    /// Everybody begins to call.
    pub(crate) fn begin_mesh(&mut self) {
        let hosts = if self.settings.instances == 0 { return } else { self.hosts() };
        let runtime = self.control.runtime();
        let instances = hosts.iter().map(|machine| Instance {
            machine: *machine,
            listener: runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a free port"),
            up: true,
            read: BTreeSet::new(),
        });
        self.mesh.instances = instances.collect();
        for index in 0..self.settings.machines {
            // Not all of them prefer the same.
            let count = hosts.len();
            let ways = (0..count).map(|place| Way::to((index + place) % count)).collect();
            self.mesh.callers.push(Caller {
                name: caller(index).parse().expect("it is a name"),
                ways,
                requests: Upstream::to(count),
                bytes: Upstream::to(count),
                entropy: SeededEntropy::new(self.mesh.chance.next_u64()),
                stream: None,
            });
            let begins = 3_000 + self.mesh.below(2_000);
            self.traffic_in(begins, Traffic::Asks(index));
            self.traffic_in(begins, Traffic::Opens(index));
        }
    }

    fn traffic(&mut self, at: Timestamp, traffic: Traffic) {
        self.push(at, Due::Traffic(traffic));
    }

    fn traffic_in(&mut self, millis: u64, traffic: Traffic) {
        self.in_millis(millis, Due::Traffic(traffic));
    }

    /// When a machine's own clock shows this moment.
    fn true_time(&self, index: usize, at: Timestamp) -> Timestamp {
        skewed(at, -self.machines[index].skew)
    }

    fn travels(&self) -> Duration {
        Duration::from_millis(1 + self.mesh.below(self.settings.delay_max))
    }

    /// Something happens between programs.
    pub(crate) fn pass(&mut self, traffic: Traffic) {
        if let Some(from) = self.who_wakes(&traffic)
            && let Some(until) = self.machines[from].asleep
            && self.now < until
        {
            // As what comes to its agent waits for it.
            let at = until.min(self.next_second());
            return self.traffic(at, traffic);
        }
        match traffic {
            Traffic::Asks(from) => self.asks(from),
            Traffic::Connects(dial) => self.connects(dial),
            Traffic::Dialled(dial, came) => self.dialled(dial, came),
            Traffic::Reads(line, request) => self.reads(line, request),
            Traffic::Answers(line, request) => self.answers(line, request),
            Traffic::Missed(request, why, line) => self.missed(request, why, line),
            Traffic::Probes(from, carries, turn) => self.probes(from, carries, turn),
            Traffic::Retires(line) => self.retires(line),
            Traffic::Leaves(line) => self.leaves(line),
            Traffic::Opens(from) => self.opens(from),
            Traffic::Proves(from, stream) => self.proves(from, stream),
        }
    }

    /// The machine on which it happens, if that may sleep.
    fn who_wakes(&self, traffic: &Traffic) -> Option<usize> {
        let of_line = |line: &u64| self.mesh.lines.get(line).map(|line| line.from);
        match traffic {
            Traffic::Connects(_) | Traffic::Reads(..) => None,
            Traffic::Asks(from)
            | Traffic::Probes(from, ..)
            | Traffic::Opens(from)
            | Traffic::Proves(from, _) => Some(*from),
            Traffic::Dialled(dial, _) => Some(dial.from),
            Traffic::Answers(line, _) | Traffic::Retires(line) | Traffic::Leaves(line) => {
                of_line(line)
            }
            Traffic::Missed(request, ..) => {
                self.mesh.requests.get(request).map(|request| request.from)
            }
        }
    }

    /// The point of a caller.
    fn calling(&self, from: usize) -> &Point {
        point(&self.machines[from], &self.mesh.callers[from].name)
    }

    /// The point of an instance.
    fn called(&self, instance: usize) -> &Point {
        let machine = &self.machines[self.mesh.instances[instance].machine];
        point(machine, &SHARED.parse().expect("it is a name"))
    }
}

fn point<'a>(machine: &'a Machine, name: &Name) -> &'a Point {
    machine.points.get(name).expect("it has one")
}
