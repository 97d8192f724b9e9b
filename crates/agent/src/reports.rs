//! What the agent tells the server: what is enforced here, what was observed, what everything costs.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use countersign_api::{v1, wire};
use countersign_identity::Clock;
use tokio::sync::{Notify, mpsc, watch};

use crate::enforcement::Points;
use crate::server_link::{Calls, Quiet};
use crate::view::View;
use crate::vitals::vitals;

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
    waiting: Vec<v1::HandshakeFact>, // INVARIANT: at most FACTS_MAX
    dropped: u64,
    /// Of all that was dropped, here and by points, how many handshakes there were.
    lost: u64,
    flows: Vec<v1::Flow>, // INVARIANT: at most FACTS_MAX
    flows_dropped: u64,
    served: Vec<v1::Served>, // INVARIANT: at most FACTS_MAX
    served_dropped: u64,
}

/// What is on its way to the server in one report.
#[derive(Clone, Debug, Default)]
struct Load {
    handshakes: Vec<v1::HandshakeFact>,
    dropped: u64,
    flows: Vec<v1::Flow>,
    flows_dropped: u64,
    served: Vec<v1::Served>,
    served_dropped: u64,
}

impl Queue {
    fn add_served(&mut self, served: v1::Served, owns: &impl Fn(&str) -> bool) {
        if wire::FACTS_MAX <= self.served.len() || !owns(&served.service) {
            self.served_dropped = self.served_dropped.saturating_add(served.count);
        } else {
            self.served.push(served);
        }
    }

    fn lose(&mut self, count: u64) {
        self.dropped = self.dropped.saturating_add(count);
        self.lost = self.lost.saturating_add(count);
    }
}

impl Facts {
    /// How many handshakes were told to nobody since the agent started.
    pub(crate) fn lost(&self) -> u64 {
        self.lock().lost
    }

    /// Takes facts of one point, by its name. Of flows and answers, those through doors of its own services only.
    pub(crate) fn take(&self, point: &str, facts: v1::Facts, owns: impl Fn(&str) -> bool) {
        let mut queue = self.lock();
        for served in facts.served {
            queue.add_served(served, &owns);
        }
        queue.flows_dropped = queue.flows_dropped.saturating_add(facts.flows_dropped);
        for flow in facts.flows {
            let flow = v1::Flow { point: point.to_owned(), ..flow };
            if wire::FACTS_MAX <= queue.flows.len() || !owns(&flow.service) {
                queue.flows_dropped = queue.flows_dropped.saturating_add(flow.count.max(1));
            } else {
                queue.flows.push(wire::bounded_flow(flow));
            }
        }
        queue.lose(facts.dropped);
        for fact in facts.handshakes {
            if wire::FACTS_MAX <= queue.waiting.len() {
                queue.lose(fact.count.max(1));
                continue;
            }
            let mut fact = wire::bounded_fact(fact);
            point.clone_into(&mut fact.point);
            queue.waiting.push(fact);
        }
        drop(queue);
        self.0.arrived.notify_one();
    }

    fn drain(&self) -> Load {
        let mut queue = self.lock();
        Load {
            handshakes: std::mem::take(&mut queue.waiting),
            dropped: std::mem::take(&mut queue.dropped),
            flows: std::mem::take(&mut queue.flows),
            flows_dropped: std::mem::take(&mut queue.flows_dropped),
            served: std::mem::take(&mut queue.served),
            served_dropped: std::mem::take(&mut queue.served_dropped),
        }
    }

    /// What could not be sent counts as lost, unless there is room for it.
    fn put_back(&self, load: Load) {
        let mut queue = self.lock();
        queue.dropped = queue.dropped.saturating_add(load.dropped);
        queue.served_dropped = queue.served_dropped.saturating_add(load.served_dropped);
        for served in load.served {
            queue.add_served(served, &|_its_own| true);
        }
        queue.flows_dropped = queue.flows_dropped.saturating_add(load.flows_dropped);
        for flow in load.flows {
            if queue.flows.len() < wire::FACTS_MAX {
                queue.flows.push(flow);
            } else {
                queue.flows_dropped = queue.flows_dropped.saturating_add(flow.count.max(1));
            }
        }
        for fact in load.handshakes {
            if queue.waiting.len() < wire::FACTS_MAX {
                queue.waiting.push(fact);
            } else {
                queue.lose(fact.count.max(1));
            }
        }
    }

    fn is_empty(&self) -> bool {
        let queue = self.lock();
        queue.waiting.is_empty()
            && queue.dropped == 0
            && queue.flows.is_empty()
            && queue.flows_dropped == 0
            && queue.served.is_empty()
            && queue.served_dropped == 0
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
            handshakes: load.handshakes,
            dropped: load.dropped,
            flows: load.flows,
            flows_dropped: load.flows_dropped,
            served: load.served,
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

    #[test]
    fn too_many_facts_are_counted_and_not_kept() {
        let facts = Facts::default();
        let fact = v1::HandshakeFact { count: 2, ..v1::HandshakeFact::default() };
        for _ in 0..30 {
            let handshakes = vec![fact.clone(); 100];
            let sent = v1::Facts { handshakes, dropped: 1, ..v1::Facts::default() };
            facts.take("p", sent, |_any| true);
        }
        let load = facts.drain();
        let (kept, dropped) = (load.handshakes.clone(), load.dropped);
        assert_eq!(kept.len(), wire::FACTS_MAX);
        assert_eq!(dropped, 30 + 2 * (3000 - wire::FACTS_MAX as u64));
        // A report that was not taken is offered again, and what came meanwhile waits its turn.
        facts.take("p", v1::Facts { handshakes: vec![fact; 10], ..v1::Facts::default() }, |_| true);
        facts.put_back(load);
        let Load { handshakes: kept, dropped: again, .. } = facts.drain();
        assert_eq!(kept.len(), wire::FACTS_MAX);
        assert_eq!(again, dropped + 20);
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
        facts.take("p", sent, |service| service == "mine");
        let load = facts.drain();
        assert_eq!((load.flows.len(), load.flows_dropped), (1, 3));
        assert_eq!((load.served, load.served_dropped), (vec![served("mine")], 5));
        assert_eq!((load.flows[0].point.as_str(), load.flows[0].service.as_str()), ("p", "mine"));
    }
}
