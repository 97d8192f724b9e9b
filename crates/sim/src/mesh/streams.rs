//! One long stream of each caller: it cannot be drained, and lives on over renewals by re-proof.

use std::cell::Cell;
use std::time::Duration;

use countersign_identity::{Code, Timestamp};
use countersign_proxy::tries::{Fate, Fault, Next, Tries};
use countersign_tls::{Admitted, Inbound, REPROOF_ALPN, Reproof, accept, answer_reproof};

use super::Traffic;
use super::dialling::{Dial, Ends, Errand, Line};
use super::ways::{Admits, Reach};
use crate::manifests::call_policy_name;
use crate::world::World;

/// A stream that stands.
pub(super) struct Stream {
    number: u64,
    pub(super) instance: usize,
    ends: Ends,
    /// The ends of the certificates that either end has been shown, as it counts them: the dialler's view and the other's.
    shown: [Timestamp; 2],
    /// When it would have ended without re-proof.
    first_end: Timestamp,
    /// What was in the way of a re-proof since the last one.
    obstacle: Option<&'static str>,
}

/// How often a proxy looks for what it has to prove anew.
const LOOKS_EVERY: Duration = Duration::from_millis(500);
/// Of what ends sooner, three sixteenths may be over between two looks.
const SHORTEST: Duration = LOOKS_EVERY.saturating_mul(6);

/// What becomes of a re-proof on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fortune {
    Passes,
    /// It does not arrive.
    Lost,
    /// It does, and the answer does not.
    Unheard,
}

impl Stream {
    fn sides(&self) -> [&Admitted; 2] {
        [self.ends.dialled.stream.admitted(), self.ends.accepted.stream.admitted()]
    }

    /// The ends of what the peer showed and of what we showed, as the dialler counts them.
    fn counts(&self) -> [Timestamp; 2] {
        let dialled = self.ends.dialled.stream.admitted();
        [dialled.expires(), dialled.presented_ends()]
    }

    /// Whether both ends hold something newer for what ends first, as the dialler sees it.
    fn gains(&self, own: Timestamp, peers: Timestamp) -> bool {
        let [theirs, ours] = self.counts();
        if ours <= theirs { ours < own } else { theirs < peers }
    }
}

impl World {
    pub(super) fn opens(&mut self, from: usize) {
        if self.mesh.callers[from].stream.is_none() {
            match Tries::begin(&self.mesh.callers[from].bytes.health) {
                Some(tries) => self.dial_address(from, tries.address(), Errand::Stream(tries)),
                None => self.open_later(from),
            }
        }
    }

    fn open_later(&mut self, from: usize) {
        let later = 1_000 + self.mesh.below(4_000);
        self.traffic_in(later, Traffic::Opens(from));
    }

    pub(super) fn stream_dialled(
        &mut self,
        dial: Dial,
        mut tries: Tries,
        came: Result<Box<Line>, Code>,
    ) {
        let Dial { from, address, .. } = dial;
        let now = self.machines[from].now();
        let caller = &mut self.mesh.callers[from];
        match came {
            Ok(line) => {
                caller.bytes.health.succeeded(address);
                match line.ends.filter(|_| !line.gone) {
                    Some(ends) => self.begin_stream((from, address), ends),
                    // It ends with the first byte that is read.
                    None => self.open_later(from),
                }
            }
            Err(code) => {
                let missed = (Fate::Unread, Fault::Address(code));
                match tries.after(missed, &mut caller.bytes.health, now, &caller.entropy) {
                    Next::Try(address) => self.dial_address(from, address, Errand::Stream(tries)),
                    Next::GiveUp => self.open_later(from),
                }
            }
        }
        self.plan_probe(from, super::Carries::Bytes);
    }

    fn begin_stream(&mut self, (from, address): (usize, usize), ends: Ends) {
        let (number, instance) = (self.mesh.number(), self.instance_of(from, address));
        let dialled = ends.dialled.stream.admitted();
        let shown = [dialled.expires(), dialled.presented_ends()];
        let first_end = shown[0].min(shown[1]);
        let due = self.true_time(from, dialled.proof_due());
        let obstacle = self.obstacle_ahead(from, instance, first_end);
        let stream = Stream { number, instance, ends, shown, first_end, obstacle };
        self.mesh.callers[from].stream = Some(stream);
        self.mesh.report.streams += 1;
        self.tell(&format!("a{from} has a stream to i{instance}"));
        self.traffic(due, Traffic::Proves(from, number));
    }

    /// What was in the way of re-proofs of these streams, whatever it is now.
    pub(super) fn hinder(&mut self, why: &'static str, whose: impl Fn(usize, usize) -> bool) {
        let instances = &self.mesh.instances;
        for (from, caller) in self.mesh.callers.iter_mut().enumerate() {
            if let Some(stream) = &mut caller.stream
                && whose(from, instances[stream.instance].machine)
            {
                stream.obstacle = Some(why);
            }
        }
    }

    /// The proxy looks for what needs to be proven anew, and proves it.
    pub(super) fn proves(&mut self, from: usize, number: u64) {
        let Some(stream) = self.mesh.callers[from].stream.as_ref().filter(|it| it.number == number)
        else {
            return;
        };
        let due = stream.ends.dialled.stream.admitted().proof_due();
        if self.machines[from].now() < due {
            let at = self.true_time(from, due).max(self.now + LOOKS_EVERY);
            return self.traffic(at, Traffic::Proves(from, number));
        }
        let fortune = match self.mesh.below(1000) {
            _ if self.calm => Fortune::Passes,
            0..100 => Fortune::Unheard,
            100..200 => Fortune::Lost,
            _ => Fortune::Passes,
        };
        let stream = self.mesh.callers[from].stream.as_ref().expect("it was there");
        let (instance, before) = (stream.instance, stream.counts());
        let (own, peers) = (self.shows(self.calling(from)), self.shows(self.called(instance)));
        let hindered = self.hindered(from, stream, (own, peers), fortune);
        let (asked, answered) = self.reprove_all(from, instance, fortune);
        let stream = self.mesh.callers[from].stream.as_ref().expect("it was there");
        let end = stream.counts().into_iter().min().expect("it has two ends");
        let obstacle = self.obstacle_ahead(from, instance, end);
        let stream = self.mesh.callers[from].stream.as_mut().expect("it was there");
        let moved = before != stream.counts();
        if answered {
            stream.shown[1] = stream.shown[1].max(own);
        }
        if asked {
            stream.shown[0] = stream.shown[0].max(peers);
        }
        match hindered {
            Some(why) if !moved => stream.obstacle = Some(why),
            Some(_) | None => {
                assert!(moved, "a{from} can prove its stream anew, and does not");
                stream.obstacle = obstacle;
                self.mesh.report.proven += 1;
                self.tell(&format!("the stream of a{from} is proven anew"));
            }
        }
        self.mesh.report.unheard += usize::from(answered && !asked);
        self.traffic(self.now + LOOKS_EVERY, Traffic::Proves(from, number));
    }

    /// What is in the way of proving a stream anew before this end, as soon as it is known.
    fn obstacle_ahead(&self, from: usize, instance: usize, end: Timestamp) -> Option<&'static str> {
        let short = end <= self.machines[from].now() + SHORTEST;
        self.odd_clocks(from, instance).or(short.then_some("too little time"))
    }

    /// Whether the clocks of two machines differ: the one then ends a stream before the other finds that it is time to prove it anew.
    pub(super) fn odd_clocks(&self, from: usize, instance: usize) -> Option<&'static str> {
        let to = self.mesh.instances[instance].machine;
        let odd = [from, to].into_iter().any(|index| self.machines[index].skew != 0);
        odd.then_some("a clock")
    }

    /// Until when what a point shows is valid.
    fn shows(&self, point: &crate::points::Point) -> Timestamp {
        point.steps.trust().identity().map_or(Timestamp::EPOCH, |own| own.expires())
    }

    /// Why a stream can not be proven anew now, if so.
    fn hindered(
        &self,
        from: usize,
        stream: &Stream,
        (own, peers): (Timestamp, Timestamp),
        fortune: Fortune,
    ) -> Option<&'static str> {
        if fortune != Fortune::Passes {
            return Some("the network");
        }
        if self.reach(from, stream.instance) != Reach::Arrives {
            return Some("a partition");
        }
        if self.admits(from, stream.instance) != Admits::Yes {
            return Some("no right to it");
        }
        if stream.sides().into_iter().any(|side| !side.takes_more()) {
            return Some("its end");
        }
        let [_dialled, accepted] = stream.sides();
        if own < accepted.expires() && peers <= accepted.presented_ends() {
            // Of which the dialler may not have heard; it is told nothing on showing less.
            return Some("what was proven already");
        }
        (!stream.gains(own, peers)).then_some("nothing newer")
    }

    /// Whether the caller counts what came of it for anything, and whether the instance does.
    fn reprove_all(&mut self, from: usize, instance: usize, fortune: Fortune) -> (bool, bool) {
        let trust = self.calling(from).steps.trust();
        let listener = &self.mesh.instances[instance].listener;
        let address = listener.local_addr().expect("it is bound");
        let due = trust.reproofs_due();
        let mut came = (false, false);
        for reproof in due.into_iter().filter(|due| due.address() == address) {
            let lost = fortune == Fortune::Lost || self.reach(from, instance) != Reach::Arrives;
            if !lost {
                came = self.reprove(from, instance, reproof, fortune);
            }
        }
        came
    }

    /// One real handshake, and what both ends make of it.
    fn reprove(
        &self,
        from: usize,
        instance: usize,
        reproof: Reproof,
        fortune: Fortune,
    ) -> (bool, bool) {
        let (ours, theirs) = (self.calling(from), self.called(instance));
        let listener = &self.mesh.instances[instance].listener;
        let (ours, name, theirs) = (ours.steps.trust(), &theirs.name, theirs.steps.trust());
        let mut inbound = Inbound::service(name.clone());
        inbound.alpn = vec![REPROOF_ALPN.to_vec()];
        let came = Cell::new(false);
        let answering = async {
            let (tcp, _) = listener.accept().await.expect("a connection comes");
            came.set(true);
            let established = accept(theirs, tcp, &inbound).await.ok()?;
            answer_reproof(theirs, established.stream).await.ok()
        };
        let asking = ours.reprove(reproof, |_fact| {});
        self.control.runtime().block_on(async {
            let (mut asking, mut answering) = (Box::pin(asking), Box::pin(answering));
            tokio::select! {
                biased;
                answered = &mut answering => {
                    let answered = answered.is_some_and(|count| 0 < count);
                    // The answer is on its way, and is not read.
                    let unheard = fortune == Fortune::Unheard;
                    let asked = !unheard && asking.await.is_ok_and(|count| 0 < count);
                    (asked, answered)
                }
                asked = &mut asking => {
                    let answered = came.get() && answering.await.is_some_and(|count| 0 < count);
                    (asked.is_ok_and(|count| 0 < count), answered)
                }
            }
        })
    }

    /// What must be true of every stream, and what ended one.
    pub(super) fn check_streams(&mut self) {
        for from in 0..self.mesh.callers.len() {
            let Some(stream) = &self.mesh.callers[from].stream else { continue };
            let to = self.mesh.instances[stream.instance].machine;
            let policy = call_policy_name(from);
            let points = [self.calling(from), self.called(stream.instance)];
            let mut ended = None;
            for (side, index) in [from, to].into_iter().enumerate() {
                let allowed = points[side].policies.contains(&policy);
                let over = stream.shown[side] < self.machines[index].now();
                match stream.sides()[side].why_ended() {
                    None => {
                        assert!(!over, "a stream of a{from} outlives what its peer showed");
                        assert!(allowed, "a stream of a{from} outlives its right");
                    }
                    Some(Code::Expired) => {
                        assert!(over, "a stream of a{from} ends before its time");
                        let why = stream.obstacle;
                        assert!(why.is_some(), "a stream of a{from} ends, and could live on");
                        ended = Some((Code::Expired, why));
                    }
                    Some(Code::PolicyDenied) => {
                        assert!(!allowed, "a stream of a{from} is cut for nothing");
                        ended = Some((Code::PolicyDenied, None));
                    }
                    Some(code) => {
                        assert_eq!(code, Code::Revoked);
                        ended = Some((code, None));
                    }
                }
            }
            if let Some((code, why)) = ended {
                let expired = code == Code::Expired;
                self.mesh.report.expired += usize::from(expired);
                self.mesh.report.cut += usize::from(!expired);
                self.end_stream(from, &format!("{code} {}", why.unwrap_or_default()));
            }
        }
    }

    pub(super) fn end_stream(&mut self, from: usize, why: &str) {
        if let Some(stream) = self.mesh.callers[from].stream.take() {
            let outlived = stream.first_end < self.machines[from].now();
            self.mesh.report.outlived += usize::from(outlived);
            self.tell(&format!("the stream of a{from} ends: {why}"));
            self.open_later(from);
        }
    }

    /// Whether every caller has a stream that has had time to open one.
    pub(super) fn check_streams_stand(&self) {
        for (from, caller) in self.mesh.callers.iter().enumerate() {
            let long = |since: Timestamp| since + 2 * super::dialling::SILENCE <= self.now;
            let open = caller.ways.iter().any(|way| way.since.is_some_and(long));
            assert!(!open || caller.stream.is_some(), "a{from} can have a stream, and has none");
        }
    }
}
