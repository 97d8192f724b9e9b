//! A request from its program to its answer: over which connection, how often, and what is proven when there is none.

use std::time::Duration;

use countersign_identity::{Code, Timestamp};
use countersign_proxy::tries::{Fate, Fault, Next, TRIES_MOST, Tries};

use super::dialling::{Errand, SILENCE};
use super::ways::Reach;
use super::{Carries, Traffic};
use crate::world::World;

/// A request without an answer yet.
pub(super) struct Request {
    pub(super) from: usize,
    begun: Timestamp,
    tries: Tries,
    /// Over what it was sent last.
    pub(super) line: Option<u64>,
    over: Over,
    /// The network lost a packet of it.
    pub(super) unlucky: bool,
}

/// What a request is sent over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Over {
    /// A connection that was opened for it.
    New,
    /// One that stood.
    Standing,
}

/// How long a program works on a request at most.
const WORK_MAX: u64 = 200;

impl World {
    pub(super) fn asks(&mut self, from: usize) {
        let gap = 1 + self.mesh.below(self.settings.pause_max * 2 / 3);
        self.traffic_in(gap, Traffic::Asks(from));
        self.note_ways(from);
        let tries = Tries::begin(&self.mesh.callers[from].requests.health);
        let tries = tries.expect("it has addresses");
        self.check_return(from, &tries);
        let (number, begun) = (self.mesh.number(), self.now);
        let (line, over, unlucky) = (None, Over::New, false);
        let request = Request { from, begun, tries, line, over, unlucky };
        self.mesh.requests.insert(number, request);
        self.attempt(number);
    }

    /// Sends it over a connection that stands, or opens one.
    fn attempt(&mut self, number: u64) {
        let Some(request) = self.mesh.requests.get_mut(&number) else { return };
        request.line = None;
        let (from, address) = (request.from, request.tries.address());
        match self.standing(from, address) {
            Some(line) => self.send_over(number, line, Over::Standing),
            None => self.dial_address(from, address, Errand::Request(number)),
        }
    }

    pub(super) fn send_over(&mut self, number: u64, line: u64, over: Over) {
        let Some(request) = self.mesh.requests.get_mut(&number) else { return };
        (request.line, request.over) = (Some(line), over);
        let (from, now) = (request.from, self.machines[request.from].now());
        let address = request.tries.address();
        let right = self.odd_clocks(from, self.instance_of(from, address)).is_none();
        if let Some(line) = self.mesh.lines.get_mut(&line) {
            line.used = now;
            if over == Over::Standing && right && line.foreseen {
                let (announces, report) = (line.announces, &mut self.mesh.report);
                assert!(now < announces, "a{from} sends over what its peer closes at {announces}");
                report.reused += 1;
            }
        }
        let at = self.now + self.travels();
        self.traffic(at, Traffic::Reads(line, number));
    }

    /// The request is at the other end, if there is one.
    pub(super) fn reads(&mut self, line_number: u64, number: u64) {
        let Some(request) = self.mesh.requests.get(&number) else { return };
        let (from, over) = (request.from, request.over);
        let Some(line) = self.mesh.lines.get(&line_number) else {
            // Its own side has cut it, after it was sent.
            return self.missed(number, (Fate::Perhaps, Fault::Connection), None);
        };
        let instance = self.instance_of(from, line.address);
        let to = self.mesh.instances[instance].machine;
        let now = self.machines[to].now();
        let closing = match over {
            Over::New => Fault::Address(Code::PeerClosed),
            Over::Standing => Fault::Connection,
        };
        let why = match (&line.ends, self.reach(from, instance)) {
            (_, Reach::Silent) => {
                let why = (Fate::Perhaps, Fault::Connection);
                let at = self.now + SILENCE;
                return self.traffic(at, Traffic::Missed(number, why, Some(line_number)));
            }
            // The alert by which it refused the connection comes in place of an answer.
            (None, _) => Some((Fate::Unread, Fault::Address(Code::PeerRefused))),
            (Some(ends), reach) => {
                let accepted = ends.accepted.stream.admitted();
                let over = line.gone || reach == Reach::Refused || accepted.why_ended().is_some();
                if over {
                    Some((Fate::Perhaps, Fault::Connection))
                } else if line.announces <= now || accepted.why_retiring().is_some() {
                    // It says with its GOAWAY that it did not look at the request.
                    self.mesh.report.unread += 1;
                    Some((Fate::Unread, closing))
                } else {
                    None
                }
            }
        };
        if let Some(why) = why {
            let at = self.now + self.travels();
            return self.traffic(at, Traffic::Missed(number, why, Some(line_number)));
        }
        for other in &self.mesh.instances {
            assert!(!other.read.contains(&number), "request {number} of a{from} is read twice");
        }
        self.mesh.instances[instance].read.insert(number);
        let work = Duration::from_millis(self.mesh.below(WORK_MAX));
        let at = self.now + work + self.travels();
        self.traffic(at, Traffic::Answers(line_number, number));
    }

    pub(super) fn answers(&mut self, line_number: u64, number: u64) {
        let Some(request) = self.mesh.requests.get(&number) else { return };
        let (from, address) = (request.from, request.tries.address());
        let instance = self.instance_of(from, address);
        let perhaps = (Fate::Perhaps, Fault::Connection);
        if self.reach(from, instance) == Reach::Silent {
            let at = self.now + SILENCE;
            return self.traffic(at, Traffic::Missed(number, perhaps, Some(line_number)));
        }
        let now = self.machines[from].now();
        match self.mesh.lines.get_mut(&line_number).filter(|line| !line.gone) {
            None => return self.missed(number, perhaps, Some(line_number)),
            Some(line) => line.used = now,
        }
        self.mesh.callers[from].requests.health.succeeded(address);
        self.plan_probe(from, Carries::Requests);
        let request = self.mesh.requests.remove(&number).expect("it was there");
        let tries = request.tries.count();
        self.forget(number);
        self.mesh.report.answered += 1;
        self.mesh.report.elsewhere += usize::from(address != 0);
        self.mesh.report.again += usize::from(1 < tries);
        self.tell(&format!("request {number} of a{from} is answered by i{instance}, try {tries}"));
    }

    /// There is no answer: what to do is for the proxy to say.
    pub(super) fn missed(&mut self, number: u64, why: (Fate, Fault), line: Option<u64>) {
        if let Some(line) = line {
            self.mesh.lines.remove(&line);
        }
        let Some(request) = self.mesh.requests.get_mut(&number) else { return };
        let (from, now) = (request.from, self.machines[request.from].now());
        let caller = &mut self.mesh.callers[from];
        let health = &mut caller.requests.health;
        let next = request.tries.after(why, health, now, &caller.entropy);
        self.plan_probe(from, Carries::Requests);
        match next {
            Next::Try(_) => self.attempt(number),
            Next::GiveUp => self.gives_up(number, why.0),
        }
    }

    fn gives_up(&mut self, number: u64, fate: Fate) {
        let request = self.mesh.requests.remove(&number).expect("it was there");
        let Request { from, begun, tries, unlucky, .. } = request;
        self.forget(number);
        self.tell(&format!("request {number} of a{from} fails after {} tries", tries.count()));
        assert!(tries.count() <= TRIES_MOST);
        if fate == Fate::Perhaps {
            self.mesh.report.lost += 1;
            return;
        }
        self.mesh.report.failed += 1;
        self.note_ways(from);
        let mut ways = self.mesh.callers[from].ways.iter();
        let open = ways.find(|way| way.since.is_some_and(|since| since <= begun));
        if let Some(way) = open {
            assert!(unlucky, "a{from} reaches i{} all the while, and nobody answers", way.instance);
        }
    }

    fn forget(&mut self, number: u64) {
        for instance in &mut self.mesh.instances {
            instance.read.remove(&number);
        }
    }
}
