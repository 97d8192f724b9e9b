//! What the agent tells the server: what is enforced here, what was observed, what everything costs.

mod waiting;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use countersign_api::{v1, wire};
use countersign_identity::{Clock, SpiffeId};
use tokio::sync::{Notify, mpsc, watch};

use crate::enforcement::Points;
use crate::server_link::{Calls, Quiet};
use crate::view::View;
use crate::vitals::vitals;
use waiting::Waiting;

/// What a caller may tell of, by who it is.
pub(crate) struct Ours<'a> {
    /// Its identities on this node. What it tells waits in the name of the first.
    pub(crate) ids: &'a [SpiffeId],
    /// Whether a service is one of theirs.
    pub(crate) owns: &'a dyn Fn(&str) -> bool,
}

/// Facts on their way to the server: bounded, and what did not fit is counted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts(Arc<Inbox>);

#[derive(Debug, Default)]
struct Inbox {
    queue: Mutex<Queue>,
    arrived: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: Load,
    /// Of all that was dropped, here and by points, how many handshakes there were.
    lost: u64,
}

/// What is on its way to the server in one report.
#[derive(Clone, Debug, Default)]
struct Load {
    handshakes: Waiting<v1::HandshakeFact>,
    dropped: u64,
    flows: Waiting<v1::Flow>,
    flows_dropped: u64,
    served: Waiting<v1::Served>,
    served_dropped: u64,
}

impl Ours<'_> {
    fn of(&self, fact: &v1::HandshakeFact) -> bool {
        // A handshake that failed early shows nobody.
        let as_us =
            fact.local_id.is_empty() || self.ids.iter().any(|id| id.as_str() == fact.local_id);
        // Who dialled names the service of another; whoever did not, or does not say, was asked at a door of its own.
        let outbound = fact.direction == i32::from(v1::Direction::Outbound);
        as_us && (outbound || (self.owns)(&fact.service))
    }
}

impl Queue {
    fn add_handshake(&mut self, whose: &str, fact: v1::HandshakeFact) {
        if let Some(lost) = self.waiting.handshakes.add(whose, fact) {
            self.lose(lost.count.max(1));
        }
    }

    fn add_flow(&mut self, whose: &str, flow: v1::Flow) {
        if let Some(lost) = self.waiting.flows.add(whose, flow) {
            self.lose_flows(lost.count.max(1));
        }
    }

    fn add_served(&mut self, whose: &str, served: v1::Served) {
        if let Some(lost) = self.waiting.served.add(whose, served) {
            self.lose_served(lost.count);
        }
    }

    fn lose(&mut self, count: u64) {
        self.waiting.dropped = self.waiting.dropped.saturating_add(count);
        self.lost = self.lost.saturating_add(count);
    }

    fn lose_flows(&mut self, count: u64) {
        self.waiting.flows_dropped = self.waiting.flows_dropped.saturating_add(count);
    }

    fn lose_served(&mut self, count: u64) {
        self.waiting.served_dropped = self.waiting.served_dropped.saturating_add(count);
    }
}

impl Facts {
    /// How many handshakes were told to nobody since the agent started.
    pub(crate) fn lost(&self) -> u64 {
        self.lock().lost
    }

    /// Takes facts of one point, by its name: those of doors of its own services, and of its own dialling.
    pub(crate) fn take(&self, point: &str, facts: v1::Facts, ours: &Ours<'_>) {
        let whose = ours.ids.first().map(SpiffeId::as_str).unwrap_or_default();
        let mut queue = self.lock();
        for served in facts.served {
            if (ours.owns)(&served.service) {
                queue.add_served(whose, served);
            } else {
                queue.lose_served(served.count);
            }
        }
        queue.lose_flows(facts.flows_dropped);
        for flow in facts.flows {
            if (ours.owns)(&flow.service) {
                let flow = v1::Flow { point: point.to_owned(), ..flow };
                queue.add_flow(whose, wire::bounded_flow(flow));
            } else {
                queue.lose_flows(flow.count.max(1));
            }
        }
        queue.lose(facts.dropped);
        for fact in facts.handshakes {
            if ours.of(&fact) {
                let fact = v1::HandshakeFact { point: point.to_owned(), ..fact };
                queue.add_handshake(whose, wire::bounded_fact(fact));
            } else {
                queue.lose(fact.count.max(1));
            }
        }
        drop(queue);
        self.0.arrived.notify_one();
    }

    fn drain(&self) -> Load {
        std::mem::take(&mut self.lock().waiting)
    }

    /// What could not be sent counts as lost, unless there is room for it.
    fn put_back(&self, load: Load) {
        let mut queue = self.lock();
        // Those of `dropped` are lost already.
        queue.waiting.dropped = queue.waiting.dropped.saturating_add(load.dropped);
        queue.lose_served(load.served_dropped);
        load.served.each(|whose, served| queue.add_served(whose, served));
        queue.lose_flows(load.flows_dropped);
        load.flows.each(|whose, flow| queue.add_flow(whose, flow));
        load.handshakes.each(|whose, fact| queue.add_handshake(whose, fact));
    }

    fn is_empty(&self) -> bool {
        let queue = self.lock();
        let Load { handshakes, dropped, flows, flows_dropped, served, served_dropped } =
            &queue.waiting;
        let counted = [*dropped, *flows_dropped, *served_dropped];
        handshakes.is_empty() && flows.is_empty() && served.is_empty() && counted == [0; 3]
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Queue> {
        self.0.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where reports are made of.
#[derive(Clone)]
pub(crate) struct Reports {
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) facts: Facts,
    pub(crate) points: Points,
}

type Views = watch::Receiver<Option<Arc<View>>>;

/// Facts that come together travel together.
const FACTS_GATHER: Duration = Duration::from_millis(20);
/// How often statuses and points are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Statuses are told at least this often where agents are few.
const REPORT_EVERY: Duration = Duration::from_secs(5);
/// A server that says something to each agent every so often has few of them.
const FEW: Duration = Duration::from_secs(5);
/// Where they are many, statuses that did not change are told once in so many times as the server may be silent.
const QUIETS: u32 = 8;

/// How often statuses are told that did not change.
fn report_every(quiet: Option<Duration>) -> Duration {
    quiet
        .filter(|quiet| FEW < *quiet)
        .map_or(REPORT_EVERY, |quiet| REPORT_EVERY.max(QUIETS * quiet))
}
/// Between two acknowledgements at least, and as much more for each point that they name: one alone goes out at once, a
/// crowd of them together, and telling all points over and over does not become the work itself.
const ACKS_APART: Duration = Duration::from_millis(2);
const ACKS_APART_PER_POINT: Duration = Duration::from_micros(5);

impl Reports {
    /// Acknowledges what this agent serves, and what its points enforce, on one session.
    pub(crate) async fn acknowledge(self, acks: mpsc::Sender<v1::SyncAck>, mut views: Views) {
        let mut changed = self.points.changed();
        let (mut told, mut told_at, mut apart) = (None, self.clock.now(), Duration::ZERO);
        loop {
            // Reckoned anew from now on: a clock that was set back must not let everybody wait until it is where it was.
            let at = told_at.min(self.clock.now()) + apart;
            self.clock.sleep_until(at).await;
            // Marked before it is read: what comes while it is read is looked at again.
            changed.mark_unchanged();
            let revision = views.borrow_and_update().as_ref().and_then(|view| view.enforced);
            let points = self.points.acknowledgements(revision);
            let named = u32::try_from(points.len()).unwrap_or(u32::MAX);
            let unaware = self.points.unaware();
            let ack = v1::SyncAck { revision: revision.map(Into::into), points, unaware };
            if told.as_ref() != Some(&ack) {
                if acks.send(ack.clone()).await.is_err() {
                    return;
                }
                told = Some(ack);
                (told_at, apart) = (self.clock.now(), ACKS_APART + ACKS_APART_PER_POINT * named);
            }
            let ended = tokio::select! {
                view = views.changed() => view.is_err(),
                point = changed.changed() => point.is_err(),
            };
            if ended {
                return;
            }
        }
    }

    /// Reports facts and statuses on one session.
    pub(crate) async fn report(self, calls: Arc<dyn Calls>, views: Views, quiet: Quiet) {
        let mut reported = None;
        loop {
            let now = self.clock.now();
            let view = views.borrow().clone();
            let credentials = view.as_ref().map(|view| view.credentials()).unwrap_or_default();
            self.points.sweep();
            let state = (credentials, self.running());
            let every = report_every(quiet.get());
            // A clock that was set back is told at once.
            let due = reported
                .as_ref()
                .is_none_or(|(at, before)| now < *at || *at + every <= now || *before != state);
            if due || !self.facts.is_empty() {
                self.send(&*calls, state.0.clone(), view.as_deref()).await;
                reported = Some((now, state));
            }
            tokio::select! {
                () = self.clock.sleep_until(self.clock.about(LOOK_EVERY)) => {}
                () = self.facts.0.arrived.notified() => {
                    self.clock.sleep_until(self.clock.now() + FACTS_GATHER).await;
                }
            }
        }
    }

    async fn send(
        &self,
        calls: &dyn Calls,
        credentials: Vec<v1::CredentialStatus>,
        view: Option<&View>,
    ) {
        let load = self.facts.drain();
        let report = self.made(load.clone(), credentials, view);
        if let Err(fault) = calls.report(report).await {
            tracing::debug!(why = %fault.why, "a report was not taken");
            self.facts.put_back(load);
        }
    }

    /// The next report, which nobody has to take.
    pub(crate) fn next(
        &self,
        credentials: Vec<v1::CredentialStatus>,
        view: Option<&View>,
    ) -> v1::ReportRequest {
        self.made(self.facts.drain(), credentials, view)
    }

    fn made(
        &self,
        load: Load,
        credentials: Vec<v1::CredentialStatus>,
        view: Option<&View>,
    ) -> v1::ReportRequest {
        v1::ReportRequest {
            handshakes: load.handshakes.all(),
            dropped: load.dropped,
            flows: load.flows.all(),
            flows_dropped: load.flows_dropped,
            served: load.served.all(),
            served_dropped: load.served_dropped,
            processes: self.processes(view),
            credentials,
            clock_micros: self.clock.now().micros(),
        }
    }

    /// The processes that there are, without what they cost.
    fn running(&self) -> Vec<(String, u32)> {
        let statuses = self.points.statuses();
        statuses.into_iter().map(|process| (process.name, process.pid)).collect()
    }

    /// This agent and its points, what they cost, and how the parts stand that they cannot do without.
    pub(crate) fn processes(&self, view: Option<&View>) -> Vec<v1::ProcessStatus> {
        let vitals = view.map(|view| vitals(view, self.clock.now())).unwrap_or_default();
        let own = v1::ProcessStatus {
            name: "agent".to_owned(),
            kind: "agent".to_owned(),
            pid: std::process::id(),
            resident_bytes: resident_bytes(),
            connections: 0,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            doors: Vec::new(),
            parts: wire::parts_of(&vitals),
        };
        std::iter::once(own).chain(self.points.statuses()).collect()
    }
}

/// How much memory this process has resident.
pub(crate) fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0);
    pages * u64::try_from(rustix::param::page_size()).unwrap_or(4096)
}

#[cfg(test)]
mod tests {
    use countersign_identity::SimClock;

    use super::*;
    use crate::attest::{Caller, Peer, SimulatedProcess};

    #[tokio::test]
    async fn a_clock_that_was_set_back_makes_no_acknowledgement_wait() {
        let noon = countersign_identity::Timestamp::from_secs(1_795_262_400);
        let clock = Arc::new(SimClock::new(noon));
        let points = Points::new(Arc::clone(&clock) as _);
        let facts = Facts::default();
        let reports = Reports { clock: Arc::clone(&clock) as _, facts, points: points.clone() };
        let (acks, mut told) = mpsc::channel(4);
        let (_views, watched) = watch::channel(None);
        let telling = tokio::spawn(reports.acknowledge(acks, watched));
        assert_eq!(told.recv().await.unwrap().points, []);

        clock.set(noon - Duration::from_secs(600));
        let process = SimulatedProcess::new(Peer { pid: 7, uid: 1000, gid: 1000 }, []);
        let caller: Arc<dyn Caller> = Arc::new(process);
        let web = "spiffe://shop.example/web".parse().unwrap();
        let register = v1::Register { point: "door".to_owned(), ..v1::Register::default() };
        let _registered = points.register(&caller, &web, &register).unwrap();
        // A second, in steps that let everybody look.
        for _step in 0..100 {
            clock.advance(Duration::from_millis(10));
            tokio::task::yield_now().await;
        }
        assert_eq!(told.try_recv().unwrap().points[0].point, "door");
        telling.abort();
    }

    #[test]
    fn statuses_that_did_not_change_are_told_less_often_where_agents_are_many() {
        assert_eq!(report_every(None), REPORT_EVERY);
        assert_eq!(report_every(Some(Duration::from_secs(4))), REPORT_EVERY);
        assert_eq!(report_every(Some(Duration::from_secs(80))), Duration::from_secs(640));
    }

    const ORDERS: &str = "spiffe://shop.example/orders";
    const PAYMENTS: &str = "spiffe://shop.example/payments";

    /// Facts of this workload's point, which has the service `mine` and no other.
    fn told(facts: &Facts, by: &str, sent: v1::Facts) {
        let ours = Ours { ids: &[by.parse().unwrap()], owns: &|service| service == "mine" };
        facts.take("p", sent, &ours);
    }

    fn handshakes(handshakes: Vec<v1::HandshakeFact>) -> v1::Facts {
        v1::Facts { handshakes, ..v1::Facts::default() }
    }

    fn handshake(direction: v1::Direction, service: &str, local: &str) -> v1::HandshakeFact {
        v1::HandshakeFact {
            direction: direction.into(),
            service: service.to_owned(),
            local_id: local.to_owned(),
            count: 2,
            ..v1::HandshakeFact::default()
        }
    }

    #[test]
    fn too_many_facts_are_counted_and_not_kept() {
        let facts = Facts::default();
        let fact = handshake(v1::Direction::Inbound, "mine", "");
        for _ in 0..30 {
            let sent = v1::Facts { dropped: 1, ..handshakes(vec![fact.clone(); 100]) };
            told(&facts, ORDERS, sent);
        }
        let load = facts.drain();
        let (kept, dropped) = (load.handshakes.clone().all(), load.dropped);
        assert_eq!(kept.len(), wire::FACTS_MAX);
        assert_eq!(dropped, 30 + 2 * (3000 - wire::FACTS_MAX as u64));
        // A report that was not taken is offered again, and what came meanwhile waits its turn.
        told(&facts, ORDERS, handshakes(vec![fact; 10]));
        facts.put_back(load);
        let Load { handshakes: kept, dropped: again, .. } = facts.drain();
        assert_eq!(kept.all().len(), wire::FACTS_MAX);
        assert_eq!(again, dropped + 20);
    }

    #[test]
    fn what_a_point_tells_without_end_takes_no_place_of_what_another_workload_tells() {
        let facts = Facts::default();
        let flood = |number: usize| {
            let flow = v1::Flow { service: "mine".to_owned(), count: 1, ..v1::Flow::default() };
            let served =
                v1::Served { service: "mine".to_owned(), count: 1, ..v1::Served::default() };
            let handshake = handshake(v1::Direction::Outbound, "any", "");
            v1::Facts {
                flows: vec![flow; number],
                served: vec![served; number],
                ..handshakes(vec![handshake; number])
            }
        };
        told(&facts, ORDERS, flood(3 * wire::FACTS_MAX));
        told(&facts, PAYMENTS, flood(100));
        // More of the same takes none of it back, nor does what could not be sent.
        told(&facts, ORDERS, flood(3 * wire::FACTS_MAX));
        let load = facts.drain();
        told(&facts, ORDERS, flood(3 * wire::FACTS_MAX));
        facts.put_back(load);
        let Load { handshakes, flows, served, .. } = facts.drain();
        let kept = |of: [usize; 2]| assert_eq!(of, [100, wire::FACTS_MAX]);
        kept([handshakes.of(PAYMENTS), handshakes.all().len()]);
        kept([flows.of(PAYMENTS), flows.all().len()]);
        kept([served.of(PAYMENTS), served.all().len()]);
    }

    #[test]
    fn a_point_tells_of_its_own_services_only() {
        let facts = Facts::default();
        let flow = |service: &str| v1::Flow {
            service: service.to_owned(),
            count: 3,
            ..v1::Flow::default()
        };
        let served = |service: &str| v1::Served {
            service: service.to_owned(),
            count: 5,
            ..v1::Served::default()
        };
        let sent = v1::Facts {
            flows: vec![flow("mine"), flow("theirs")],
            served: vec![served("theirs"), served("mine")],
            ..v1::Facts::default()
        };
        told(&facts, ORDERS, sent);
        let load = facts.drain();
        let flows = load.flows.all();
        assert_eq!((flows.len(), load.flows_dropped), (1, 3));
        assert_eq!((load.served.all(), load.served_dropped), (vec![served("mine")], 5));
        assert_eq!((flows[0].point.as_str(), flows[0].service.as_str()), ("p", "mine"));
    }

    #[test]
    fn a_point_tells_of_its_own_handshakes_only() {
        use v1::Direction::{Inbound, Outbound, Unspecified};
        let good = [
            handshake(Inbound, "mine", ORDERS),
            handshake(Inbound, "mine", ""),
            handshake(Outbound, "theirs", ORDERS),
            handshake(Outbound, "theirs", ""),
        ];
        let forged = [
            handshake(Inbound, "theirs", PAYMENTS),
            handshake(Inbound, "theirs", ORDERS),
            handshake(Inbound, "theirs", ""),
            handshake(Inbound, "", ORDERS),
            handshake(Inbound, "mine", PAYMENTS),
            handshake(Outbound, "theirs", PAYMENTS),
            handshake(Outbound, "mine", PAYMENTS),
            handshake(Unspecified, "theirs", ORDERS),
            v1::HandshakeFact { direction: 7, ..handshake(Inbound, "theirs", ORDERS) },
        ];
        let facts = Facts::default();
        told(&facts, ORDERS, handshakes(good.iter().chain(&forged).cloned().collect()));
        let load = facts.drain();
        let named = good.map(|fact| v1::HandshakeFact { point: "p".to_owned(), ..fact });
        assert_eq!(load.handshakes.all(), named);
        assert_eq!((load.dropped, facts.lost()), (18, 18));
    }
}
