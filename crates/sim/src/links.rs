//! Connections between services: real handshakes over loopback, admitted and ended by the enforcement points.

use std::sync::Arc;
use std::time::Duration;

use countersign_identity::{Code, Ending, Name, Presented, Revocations, Timestamp};
use countersign_proxy::retire::{Jitter, Retirement, announced};
use countersign_tls::{
    Admitted, DRAIN_TIMEOUT, Established, Expected, HandshakeFailure, Inbound, Outbound, Trust,
    accept, dial,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

use crate::world::{Due, World};

/// One live connection, both of its ends.
pub(crate) struct Link {
    /// Among all of its world.
    number: u64,
    /// Until when each of its ends lets it drain, by its own clock.
    drains: [Option<Timestamp>; 2],
    /// Of the dialler.
    pub(crate) from: usize,
    /// Of the one who answers.
    pub(crate) to: usize,
    pub(crate) dialled: Established,
    pub(crate) accepted: Established,
}

/// How the connections of a run went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkReport {
    /// Let in by both ends.
    pub made: usize,
    /// Refused by policy, at either end.
    pub refused: usize,
    /// Ended because a policy went away.
    pub cut: usize,
    /// Ended because a certificate did.
    pub expired: usize,
    /// Ended because what one of its ends had shown was revoked.
    pub revoked: usize,
    /// Refused because what one of its ends showed was revoked.
    pub turned_away: usize,
    /// Drained because what one of its ends had shown was superseded.
    pub drained: usize,
    /// Of those, closed by the dialler before their time was over.
    pub done: usize,
}

/// What whoever dials has of a handshake, in which it found nothing wrong itself.
pub(crate) enum Dialled {
    Stands(Box<Established>),
    /// The other end let nobody in.
    Refused(Admitted),
}

/// One handshake over loopback, to its end at both ends. Whoever dials must have an identity: otherwise nobody comes.
pub(crate) fn shake(
    runtime: &Runtime,
    listener: &TcpListener,
    trusts: (&Arc<Trust>, &Arc<Trust>),
    (outbound, inbound): (&Outbound, &Inbound),
) -> (Result<Dialled, HandshakeFailure>, Result<Established, HandshakeFailure>) {
    runtime.block_on(async {
        let address = listener.local_addr().expect("it is bound");
        let dialling = async {
            let mut established = dial(trusts.0, address, outbound).await?;
            // In TLS 1.3 the dialler is done before the other end has decided.
            Ok(match established.stream.read_u8().await {
                Ok(_byte) => Dialled::Stands(Box::new(established)),
                // Who refuses waits until the other has read why, so neither is kept longer than the other needs.
                Err(_broken) => Dialled::Refused(established.stream.admitted().clone()),
            })
        };
        let accepting = async {
            let (tcp, _) = listener.accept().await.expect("a connection comes");
            let mut established = accept(trusts.1, tcp, inbound).await?;
            established.stream.write_u8(1).await.ok();
            established.stream.flush().await.ok();
            Ok(established)
        };
        tokio::join!(dialling, accepting)
    })
}

impl Link {
    /// Dials from one point to another, and asks for a byte to be sure that both ends admit it.
    pub(crate) fn make(
        runtime: &Runtime,
        ends: (usize, usize),
        trusts: (&Arc<Trust>, &Arc<Trust>),
        service: &Name,
        expected: &str,
    ) -> Result<Self, Code> {
        let expected = Expected::Id(expected.parse().expect("it is a SPIFFE ID"));
        let (outbound, inbound) =
            (Outbound::service(service.clone(), expected), Inbound::service(service.clone()));
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a free port");
        match shake(runtime, &listener, trusts, (&outbound, &inbound)) {
            (Ok(Dialled::Stands(dialled)), Ok(accepted)) => {
                let (from, to) = ends;
                Ok(Self { number: 0, drains: [None; 2], from, to, dialled: *dialled, accepted })
            }
            (Err(failure), _) => Err(failure.code),
            (Ok(_), Err(failure)) => Err(failure.code),
            (Ok(Dialled::Refused(_)), Ok(_)) => Err(Code::Internal),
        }
    }

    pub(crate) fn ends(&self) -> [&Admitted; 2] {
        [self.dialled.stream.admitted(), self.accepted.stream.admitted()]
    }

    /// Whether something new may begin on it.
    fn takes_more(&self) -> bool {
        self.ends().into_iter().all(Admitted::takes_more)
    }

    /// How these rules let it end, by what its ends have shown.
    fn ending(&self, rules: &Revocations) -> Option<Ending> {
        let covering = self.ends().into_iter().filter_map(Admitted::peer).filter_map(|peer| {
            let presented = Presented {
                id: &peer.id,
                serial: peer.leaf.serial(),
                key: peer.key,
                authorities: &[peer.issuer, peer.anchor],
                provenance: peer.provenance().map(|one| (one.revision, one.node)),
            };
            rules.covering(&presented).map(|rule| rule.reason.ending())
        });
        covering.max()
    }

    /// Why one of its ends ended it, if one did.
    pub(crate) fn ended(&self) -> [Option<Code>; 2] {
        self.ends().map(Admitted::why_ended)
    }

    /// When the dialler opens a successor. Checks that a request has always somewhere to go until then.
    pub(crate) fn successor_due(&self, jitter: u8) -> Timestamp {
        let [dialled, accepted] = self.ends();
        let ends = dialled.expires().min(dialled.presented_ends());
        let plan = Retirement::dialled(dialled.opened(), ends, Jitter(jitter));
        let told = announced(accepted.opened(), accepted.expires().min(accepted.presented_ends()));
        assert!(plan.successor_due <= plan.last_request);
        assert!(plan.last_request <= told, "requests stop before the other end announces");
        assert!(told <= ends, "the announcement comes before the cut");
        plan.successor_due
    }
}

impl World {
    /// Tells the points of a machine what its agent serves now, and checks what that did to their connections.
    pub(crate) fn look(&mut self, index: usize) {
        let machine = &mut self.machines[index];
        let Some(life) = &machine.life else { return };
        let mut changed = false;
        for point in machine.points.values_mut() {
            changed |= point.look(&life.state, life.svids.get(&point.name));
        }
        self.check_rules(index);
        if changed {
            self.check_links();
        }
        self.look_at_mesh(index);
        self.try_thieves(index);
        let has_one = |link: &Link| link.from == index && link.takes_more();
        if self.links_wanted && !self.links.iter().any(has_one) {
            self.dial(index);
        }
    }

    /// Ends that are due have happened, and no others.
    pub(crate) fn sweep(&mut self) {
        self.control.runtime().block_on(async {
            // Each turn lets the tasks that end connections run once.
            for _turn in 0..4 {
                tokio::task::yield_now().await;
            }
        });
        self.check_links();
        self.check_mesh();
    }

    fn check_links(&mut self) {
        self.note_drains();
        let mut ended = Vec::new();
        for (place, link) in self.links.iter().enumerate() {
            self.check_end(link, link.from, 0);
            self.check_end(link, link.to, 1);
            if let Some(code) = link.ended().into_iter().flatten().next() {
                ended.push((place, code));
            }
        }
        self.check_draining();
        for (place, code) in ended.into_iter().rev() {
            let link = self.links.swap_remove(place);
            self.tell(&format!("link of a{} ends: {code}", link.from));
            match code {
                Code::PolicyDenied => self.report.cut += 1,
                Code::Revoked if link.drains != [None; 2] => {}
                Code::Revoked => self.report.revoked += 1,
                _ => self.report.expired += 1,
            }
        }
    }

    /// Takes note of which connections have begun to drain, on which something is under way for some time still.
    fn note_drains(&mut self) {
        let mut began = Vec::new();
        for link in &mut self.links {
            let first = link.drains == [None; 2];
            let retiring = link.ends().map(|end| (end.why_retiring(), end.expires()));
            for (side, machine) in [link.from, link.to].into_iter().enumerate() {
                let (Some(code), expires) = retiring[side] else { continue };
                assert_eq!(code, Code::Revoked, "a connection drains for what is no rule");
                let now = self.machines[machine].now();
                let until = (now + DRAIN_TIMEOUT).min(expires);
                link.drains[side].get_or_insert(until);
            }
            if first && link.drains != [None; 2] {
                began.push((link.number, link.from));
            }
        }
        for (number, from) in began {
            self.report.drained += 1;
            self.tell(&format!("link of a{from} drains"));
            let later = self.below(60_000);
            self.in_millis(later, Due::Done(number));
        }
    }

    /// What must be true of one end of a connection.
    fn check_end(&self, link: &Link, machine: usize, side: usize) {
        let now = self.machines[machine].now();
        let point = self.machines[machine].points.values().next().expect("it has one");
        let allowed = point.policies.contains(&format!("p{}", link.from));
        let over = link.ends()[side].expires() < now;
        let ending = link.ending(&point.steps.trust().slice().revocations);
        let drained = link.drains[side].is_some_and(|until| until < now);
        match link.ended()[side] {
            None => {
                let cut = ending == Some(Ending::Cut);
                assert!(allowed && !over && !cut, "a connection outlives its right");
                let drains = link.drains[side].is_some();
                assert!(drains || ending.is_none(), "a connection does not drain by its rule");
                assert!(!drained, "a connection drains beyond its time");
            }
            Some(Code::Revoked) => {
                let by_rule = ending == Some(Ending::Cut) || drained;
                assert!(by_rule, "a connection is cut by no rule");
            }
            Some(Code::PolicyDenied) => assert!(!allowed, "a connection is cut for nothing"),
            Some(Code::Expired) => assert!(over, "a connection ends before its time"),
            Some(other) => panic!("a connection ended for `{other}`"),
        }
    }

    /// What a point says of how many drain is how many do.
    fn check_draining(&self) {
        for (index, machine) in self.machines.iter().enumerate() {
            let Some(point) = machine.points.values().next() else { continue };
            let sides = self.links.iter().flat_map(|link| {
                [link.from, link.to]
                    .into_iter()
                    .zip(link.ends())
                    .filter(move |(at, _)| *at == index)
            });
            let drains =
                sides.filter(|(_, end)| end.why_retiring().is_some() && end.why_ended().is_none());
            let said = *point.steps.trust().draining().borrow();
            assert_eq!(said, drains.count(), "a{index} reports others than those that drain");
        }
    }

    /// How many connections there are, those that drain among them.
    pub fn connections(&self) -> usize {
        self.links.len()
    }

    /// How many of them drain.
    pub fn draining(&self) -> usize {
        self.links.iter().filter(|link| link.drains != [None; 2]).count()
    }

    /// What was under way on a connection that drains is done: its dialler closes it.
    pub(crate) fn done(&mut self, number: u64) {
        let place = self.links.iter().position(|link| link.number == number);
        if let Some(place) = place {
            let link = self.links.swap_remove(place);
            self.tell(&format!("link of a{} is done", link.from));
            self.report.done += 1;
        }
    }

    /// Opens a connection to the next machine's service.
    pub(crate) fn dial(&mut self, from: usize) {
        let to = (from + 1) % self.machines.len();
        let awake = |index: usize| {
            let machine = &self.machines[index];
            machine.skew == 0 && machine.asleep.is_none_or(|until| until <= machine.now())
        };
        if !self.links_wanted || !awake(from) || !awake(to) {
            return;
        }
        let point = |index: usize| self.machines[index].points.values().next().expect("it has one");
        let (ours, theirs) = (point(from), point(to));
        let has_identity = |point: &crate::points::Point| {
            let own = point.steps.trust().identity();
            let now = point.steps.trust().clock().now();
            // What was taken under a clock that was ahead may not be valid yet for anybody else.
            own.is_some_and(|own| own.leaf().validity().not_before <= now && now <= own.expires())
        };
        if !has_identity(ours) || !has_identity(theirs) {
            return;
        }
        let revoked = self.is_refused_by(from, to) || self.is_refused_by(to, from);
        let (ours, theirs) = (point(from), point(to));
        let name = format!("p{from}");
        let allowed = ours.policies.contains(&name) && theirs.policies.contains(&name);
        let expected = format!("spiffe://shop.example/{}", theirs.name);
        let trusts = (ours.steps.trust(), theirs.steps.trust());
        let (runtime, ends) = (self.control.runtime(), (from, to));
        let made = Link::make(runtime, ends, trusts, &theirs.name, &expected);
        match made {
            Ok(mut link) => {
                self.links_made += 1;
                link.number = self.links_made;
                assert!(allowed, "a{from} may not call a{to}, and does");
                assert!(!revoked, "a{from} calls a{to} with what is revoked there");
                let machine_now = self.machines[from].now();
                let due = link.successor_due(u8::try_from(self.below(256)).unwrap_or(0));
                self.links.push(link);
                self.report.made += 1;
                self.tell(&format!("link of a{from} to a{to}"));
                // Near the end of a certificate that is not renewed, successors live for ever less.
                if machine_now + Duration::from_millis(10) < due {
                    self.succeed_at(from, due);
                }
            }
            Err(Code::Revoked) => {
                assert!(revoked, "a{from} may not call a{to} by no rule");
                self.report.turned_away += 1;
            }
            Err(code) => {
                assert!(!allowed, "a{from} may call a{to}, and cannot: {code}");
                assert_eq!(code, Code::PolicyDenied);
                self.report.refused += 1;
            }
        }
    }
}
