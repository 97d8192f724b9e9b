//! Connections between proxies: dialled, kept for the next request, left in time.

use std::time::Duration;

use countersign_identity::{Code, Timestamp};
use countersign_proxy::retire::{IDLE_MOST, Jitter, Retirement, announced, is_fresh, is_succeeded};
use countersign_proxy::tries::{Fate, Fault};
use countersign_tls::{Admitted, Established, Expected, Inbound, Outbound, REPROOF_ALPN};

use super::ways::{Admits, Reach, valid_until};
use super::{Carries, Traffic};
use crate::clocks::skewed;
use crate::links::{Dialled, shake};
use crate::manifests::SHARED;
use crate::world::World;

/// How long connecting to one address may take.
pub(super) const CONNECT_TIMEOUT: Duration = countersign_proxy::health::CONNECT_LONGEST;
/// How long it takes until nobody answers pings any more.
pub(super) const SILENCE: Duration = Duration::from_secs(30);

/// A connection that is being made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dial {
    pub(super) from: usize,
    pub(super) address: usize,
    pub(super) begun: Timestamp,
    pub(super) errand: Errand,
    /// The network loses it.
    pub(super) lost: bool,
}

/// What a connection is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Errand {
    Request(u64),
    Probe(Carries),
    /// Of a connection that retires.
    Successor(u64),
    Stream(countersign_proxy::tries::Tries),
}

impl Errand {
    const fn carries(self) -> Carries {
        match self {
            Self::Request(_) | Self::Successor(_) => Carries::Requests,
            Self::Probe(carries) => carries,
            Self::Stream(_) => Carries::Bytes,
        }
    }
}

/// A connection, as whoever dialled has it.
pub(crate) struct Line {
    pub(super) from: usize,
    pub(super) address: usize,
    /// Under what the dialler was admitted, and what it reads from, unless the other end let nobody in.
    pub(super) dialled: Admitted,
    pub(super) ends: Option<Ends>,
    plan: Retirement,
    /// When the other end says that it closes, by its own clock.
    pub(super) announces: Timestamp,
    pub(super) used: Timestamp,
    retired: bool,
    /// Both ends plan by clocks that are right, and the other one closes as it has planned.
    pub(super) foreseen: bool,
    /// The other end is gone, of which the dialler has not heard.
    pub(super) gone: bool,
}

/// Both ends of a connection that stands.
pub(super) struct Ends {
    pub(super) dialled: Established,
    pub(super) accepted: Established,
}

impl Line {
    /// Whether a request may begin on it, as its pool would say.
    fn takes_more(&self, now: Timestamp) -> bool {
        let lives = !self.retired && now < self.plan.last_request;
        lives && self.dialled.takes_more() && is_fresh(self.used, now, IDLE_MOST)
    }
}

impl World {
    pub(super) fn instance_of(&self, from: usize, address: usize) -> usize {
        self.mesh.callers[from].ways[address].instance
    }

    /// Begins to connect to an address.
    pub(super) fn dial_address(&mut self, from: usize, address: usize, errand: Errand) {
        let lost = !self.calm && self.mesh.below(1000) < 2 * self.settings.lost;
        let dial = Dial { from, address, begun: self.now, errand, lost };
        if lost || self.reach(from, self.instance_of(from, address)) == Reach::Silent {
            return self.unreached(dial);
        }
        let at = self.now + self.travels();
        self.traffic(at, Traffic::Connects(dial));
    }

    /// Nothing comes back until the caller has had enough.
    fn unreached(&mut self, dial: Dial) {
        let at = dial.begun + CONNECT_TIMEOUT;
        self.traffic(at, Traffic::Dialled(dial, Err(Code::PeerUnreachable)));
    }

    pub(super) fn connects(&mut self, dial: Dial) {
        let instance = self.instance_of(dial.from, dial.address);
        let came = match self.reach(dial.from, instance) {
            Reach::Silent => return self.unreached(dial),
            Reach::Refused => Err(Code::PeerUnreachable),
            Reach::Arrives => self.handshake(dial, instance).map(Box::new),
        };
        let at = self.now + self.travels();
        self.traffic(at, Traffic::Dialled(dial, came));
    }

    fn handshake(&mut self, dial: Dial, instance: usize) -> Result<Line, Code> {
        let Dial { from, address, errand, .. } = dial;
        let admits = self.admits(from, instance);
        if valid_until(self.calling(from)).is_none() {
            return Err(Code::NoOwnIdentity);
        }
        let carries = errand.carries();
        let shaken = {
            let (ours, theirs) = (self.calling(from), self.called(instance));
            let trusts = (ours.steps.trust(), theirs.steps.trust());
            let expected = format!("spiffe://shop.example/{SHARED}");
            let expected = Expected::Id(expected.parse().expect("it is a SPIFFE ID"));
            let mut outbound = Outbound::service(theirs.name.clone(), expected);
            let mut inbound = Inbound::service(theirs.name.clone());
            if carries == Carries::Requests {
                outbound.alpn = vec![b"h2".to_vec()];
                inbound.alpn = vec![b"h2".to_vec()];
            }
            inbound.alpn.push(REPROOF_ALPN.to_vec());
            let listener = &self.mesh.instances[instance].listener;
            shake(self.control.runtime(), listener, trusts, (&outbound, &inbound))
        };
        let both = matches!(shaken, (Ok(Dialled::Stands(_)), Ok(_)));
        match admits {
            Admits::Yes => {
                let codes = (shaken.0.as_ref().err(), shaken.1.as_ref().err());
                let codes = (codes.0.map(|it| it.code), codes.1.map(|it| it.code));
                assert!(both, "a{from} may call i{instance}, and cannot: {codes:?}");
            }
            Admits::No => {
                assert!(!both, "a{from} may not call i{instance}, and does");
                self.mesh.report.refused += 1;
            }
            Admits::Unsure => {}
        }
        let (dialled, ends) = match shaken {
            (Err(failure), _) => return Err(failure.code),
            (Ok(Dialled::Refused(admitted)), _) => (admitted, None),
            (Ok(Dialled::Stands(_)), Err(failure)) => return Err(failure.code),
            (Ok(Dialled::Stands(dialled)), Ok(accepted)) => {
                let dialled = *dialled;
                (dialled.stream.admitted().clone(), Some(Ends { dialled, accepted }))
            }
        };
        Ok(self.line((from, address), dialled, ends))
    }

    fn line(&self, (from, address): (usize, usize), dialled: Admitted, ends: Option<Ends>) -> Line {
        let jitter = Jitter(u8::try_from(self.mesh.below(256)).unwrap_or(0));
        let until = dialled.expires().min(dialled.presented_ends());
        let plan = Retirement::dialled(dialled.opened(), until, jitter);
        let announces = ends.as_ref().map_or(Timestamp::LAST, |ends| {
            let accepted = ends.accepted.stream.admitted();
            announced(accepted.opened(), accepted.expires().min(accepted.presented_ends()))
        });
        let used = self.machines[from].now();
        let foreseen = self.odd_clocks(from, self.instance_of(from, address)).is_none();
        let (retired, gone) = (false, false);
        Line { from, address, dialled, ends, plan, announces, used, retired, foreseen, gone }
    }

    pub(super) fn dialled(&mut self, dial: Dial, came: Result<Box<Line>, Code>) {
        let Dial { from, address, errand, lost, .. } = dial;
        if lost {
            self.disturbed(from, self.instance_of(from, address));
        }
        match errand {
            Errand::Request(request) => match came {
                Ok(line) => {
                    let line = self.keep(*line);
                    self.send_over(request, line, super::requests::Over::New);
                }
                Err(code) => {
                    let why = (Fate::Unread, Fault::Address(code));
                    if let Some(request) = self.mesh.requests.get_mut(&request) {
                        request.unlucky |= lost;
                    }
                    self.missed(request, why, None);
                }
            },
            Errand::Probe(carries) => {
                let probed = came.map(|line| (carries == Carries::Requests).then_some(line));
                let probed = probed.map(|line| line.map(|line| self.keep(*line)));
                self.probed((from, address), carries, probed.map(drop));
            }
            Errand::Successor(of) => {
                if let Ok(line) = came {
                    self.keep(*line);
                    self.mesh.report.succeeded += 1;
                }
                self.leaves(of);
            }
            Errand::Stream(tries) => self.stream_dialled(dial, tries, came),
        }
    }

    /// Keeps a connection for requests.
    fn keep(&mut self, line: Line) -> u64 {
        let (number, from) = (self.mesh.number(), line.from);
        let due = self.true_time(from, line.plan.successor_due);
        self.mesh.lines.insert(number, line);
        self.traffic(due, Traffic::Retires(number));
        number
    }

    /// The connection over which a caller sends to an address next, if one stands.
    pub(super) fn standing(&self, from: usize, address: usize) -> Option<u64> {
        let now = self.machines[from].now();
        let usable = |line: &Line| {
            let there = (line.from, line.address) == (from, address);
            // Of one that was refused it has heard by the time that another request could take it.
            there && line.ends.is_some() && line.takes_more(now)
        };
        let mut lines = self.mesh.lines.iter().rev();
        lines.find(|(_, line)| usable(line)).map(|(number, _)| *number)
    }

    pub(super) fn retires(&mut self, number: u64) {
        let Some(line) = self.mesh.lines.get(&number) else { return };
        let (from, address, now) = (line.from, line.address, self.machines[line.from].now());
        if now < line.plan.successor_due {
            // Its clock was set back meanwhile.
            let due = self.true_time(from, line.plan.successor_due);
            return self.traffic(due, Traffic::Retires(number));
        }
        if !is_succeeded(line.used, now) {
            return self.leaves(number);
        }
        let last = self.true_time(from, line.plan.last_request);
        self.traffic(last, Traffic::Leaves(number));
        self.dial_address(from, address, Errand::Successor(number));
    }

    pub(super) fn leaves(&mut self, number: u64) {
        if let Some(line) = self.mesh.lines.get_mut(&number) {
            line.retired = true;
        }
    }

    /// Closes what has ended, what is idle, and what has nothing to do any more. What stands may stand.
    pub(super) fn tend_lines(&mut self) {
        let busy: Vec<u64> = self.mesh.requests.values().filter_map(|it| it.line).collect();
        let (machines, instances, callers) =
            (&self.machines, &self.mesh.instances, &self.mesh.callers);
        self.mesh.lines.retain(|number, line| {
            let now = machines[line.from].now();
            if line.dialled.why_ended().is_some() {
                return false;
            }
            if let Some(ends) = &line.ends {
                let accepted = ends.accepted.stream.admitted();
                let to = instances[callers[line.from].ways[line.address].instance].machine;
                let late =
                    accepted.expires() < machines[to].now() && accepted.why_ended().is_none();
                assert!(!late && now <= line.dialled.expires(), "a connection outlives its right");
                debug_assert_eq!(ends.dialled.stream.admitted().opened(), line.dialled.opened());
            }
            busy.contains(number) || line.takes_more(now)
        });
    }

    /// The clock of a machine was set: whoever waits looks again.
    pub(super) fn clock_stepped(&mut self, index: usize) {
        for carries in [Carries::Requests, Carries::Bytes] {
            self.plan_probe(index, carries);
        }
    }

    /// Looks when the next probe of a caller's addresses is due.
    pub(super) fn plan_probe(&mut self, from: usize, carries: Carries) {
        let (now, skew) = (self.machines[from].now(), self.machines[from].skew);
        let upstream = self.mesh.callers[from].upstream(carries);
        upstream.turn += 1;
        let turn = upstream.turn;
        if let Some(next) = upstream.health.next_probe(now) {
            self.traffic(skewed(next, -skew), Traffic::Probes(from, carries, turn));
        }
    }

    pub(super) fn probes(&mut self, from: usize, carries: Carries, turn: u64) {
        let now = self.machines[from].now();
        let upstream = self.mesh.callers[from].upstream(carries);
        if upstream.turn != turn {
            return;
        }
        for address in upstream.health.begin_probes(now) {
            self.dial_address(from, address, Errand::Probe(carries));
        }
        self.plan_probe(from, carries);
    }

    fn probed(
        &mut self,
        (from, address): (usize, usize),
        carries: Carries,
        came: Result<(), Code>,
    ) {
        let now = self.machines[from].now();
        let caller = &mut self.mesh.callers[from];
        let entropy = &caller.entropy;
        let upstream = match carries {
            Carries::Requests => &mut caller.requests,
            Carries::Bytes => &mut caller.bytes,
        };
        upstream.health.probe_ended(address);
        match came {
            Ok(()) => {
                upstream.health.succeeded(address);
                self.mesh.report.returned += 1;
                self.tell(&format!("a{from} finds its address {address} again"));
            }
            Err(_still) => upstream.health.failed(address, now, entropy),
        }
        self.plan_probe(from, carries);
    }
}
