//! What is read of all that is out, to say who is unaware and which points are gone: seldom, and not too seldom.

use std::sync::Arc;
use std::time::Duration;

use countersign_agent::core::SyncMessage;
use countersign_agent::server_link::{
    AttestAsk, Evidence, NodeCredential, ServerLink as _, SignAnswer, SignItem, Subject, TlsLink,
};
use countersign_api::admin::{Convergence, Target};
use countersign_api::v1;
use countersign_identity::{Clock, NodeId, Reason, Revision, SKEW_ALLOWED, SimClock, Timestamp};
use countersign_pki::make_csr;
use countersign_store::Store as _;
use countersign_tls::{Slice, Trust};
use futures_util::StreamExt as _;
use tokio_util::sync::CancellationToken;

use super::converge::{convergence_until, web_at};
use super::counted::Counted;
use super::revoke::{id, key, request};
use super::sign::item;
use super::strangers::Elsewhere;
use super::{DOMAIN, Realm, workload};
use crate::revoke::{prune, unaware};
use crate::steps::{Line, Steps, Told};

/// Between two looks of somebody who waits.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
const SECOND: Duration = Duration::from_secs(1);

/// A trust domain on a store that counts.
struct Site {
    domain: Elsewhere,
    store: Arc<Counted>,
    clock: Arc<SimClock>,
}

/// A node, and what its agent shows.
struct Machine {
    node: NodeId,
    joined: v1::AttestResponse,
}

impl Site {
    async fn begin() -> Self {
        let clock = Arc::new(SimClock::new(Timestamp::from_secs(1_795_262_400)));
        let store = Arc::new(Counted::new());
        let domain = Elsewhere::begin_on(DOMAIN, Arc::clone(&store) as _, Arc::clone(&clock)).await;
        Self { domain, store, clock }
    }

    fn steps(&self) -> &Steps {
        &self.domain.steps
    }

    async fn joined(&self) -> Machine {
        let (joined, _key) = self.domain.joined().await;
        let node = NodeId::from_bytes((&*joined.node_id).try_into().unwrap());
        Machine { node, joined }
    }

    /// An agent that has run for a second.
    fn hello(&self) -> v1::SyncHello {
        let clock_micros = self.clock.now().micros();
        v1::SyncHello { clock_micros, ran_micros: 1_000_000, ..Default::default() }
    }

    /// Its stream, on which it acknowledges for these points.
    async fn line(
        &self,
        steps: &Steps,
        machine: &Machine,
        points: impl FnOnce(Revision) -> Vec<v1::PointAck>,
    ) -> Line {
        let mut line = steps.open(&machine.joined.chain, &self.hello()).await.unwrap();
        while let Told::Message(_) = steps.next(&mut line).unwrap() {}
        let revision = steps.revision();
        let (revision, points) = (Some(revision.into()), points(revision));
        steps.acknowledge(&line, v1::SyncAck { revision, points, unaware: 0 }).await.unwrap();
        line
    }

    /// One look at who enforces what is in force.
    async fn look(&self) -> Convergence {
        self.steps().converged(self.steps().revision()).await.unwrap()
    }

    /// How often all that is out is read while somebody waits for so long, and each time sees this.
    async fn waited(&self, span: Duration, fits: impl Fn(&Convergence) -> bool) -> usize {
        self.store.reads();
        let until = self.clock.now() + span;
        while self.clock.now() < until {
            self.clock.advance(LOOK_AGAIN);
            let seen = self.look().await;
            assert!(fits(&seen), "{seen:?}");
        }
        self.store.reads()
    }
}

async fn sign_web(steps: &Steps, machine: &Machine) {
    let request = v1::SignRequest { items: vec![item("web", &key())], ..Default::default() };
    steps.sign(&machine.joined.chain, request).await.unwrap();
}

#[tokio::test]
async fn who_waits_for_a_node_of_a_young_agent_reads_all_that_is_out_once_a_second_at_most() {
    let site = Site::begin().await;
    let machine = site.joined().await;
    sign_web(site.steps(), &machine).await;
    site.clock.advance(120 * SECOND);
    let _line = site.line(site.steps(), &machine, |_revision| Vec::new()).await;
    let unheard = |seen: &Convergence| (seen.unaware, &*seen.unheard) == (1, &[machine.node]);
    let reads = site.waited(10 * SECOND, unheard).await;
    assert!((9..=11).contains(&reads), "{reads}");
    // By then nothing can be dated before the agent began any more.
    site.waited(120 * SECOND, unheard).await;
    assert_eq!(site.waited(10 * SECOND, unheard).await, 0);
    site.clock.advance(15 * 60 * SECOND);
    assert_eq!(site.look().await.unheard, []);
}

#[tokio::test]
async fn who_waits_for_nodes_that_nobody_has_heard_reads_all_that_is_out_once_a_second_at_most() {
    let site = Site::begin().await;
    let (machine, idle) = (site.joined().await, site.joined().await);
    sign_web(site.steps(), &machine).await;
    site.steps().control().roster.expect([machine.node, idle.node]);
    let reads = site.waited(10 * SECOND, |seen| seen.unheard == [machine.node]).await;
    assert!((9..=11).contains(&reads), "{reads}");
}

#[tokio::test]
async fn agent_and_node_that_come_between_two_reads_count_until_the_next() {
    let site = Site::begin().await;
    let machine = site.joined().await;
    sign_web(site.steps(), &machine).await;
    site.clock.advance(120 * SECOND);
    let _line = site.line(site.steps(), &machine, |_revision| Vec::new()).await;
    assert_eq!(site.look().await.unheard, [machine.node]);
    let mut others = [site.joined().await, site.joined().await, site.joined().await];
    others.sort_by_key(|other| other.node);
    let [holds, idle, expected] = &others;
    sign_web(site.steps(), holds).await;
    let _holds = site.line(site.steps(), holds, |_revision| Vec::new()).await;
    let _idle = site.line(site.steps(), idle, |_revision| Vec::new()).await;
    site.steps().control().roster.expect([expected.node]);
    site.store.reads();
    let mut all: Vec<_> = others.iter().chain([&machine]).map(|machine| machine.node).collect();
    all.sort();
    assert_eq!((site.look().await.unheard, site.store.reads()), (all, 0));
    site.clock.advance(SECOND);
    let mut holders = vec![machine.node, holds.node];
    holders.sort();
    assert_eq!((site.look().await.unheard, site.store.reads()), (holders, 1));
}

#[tokio::test]
async fn who_waits_for_a_dead_point_reads_what_it_can_present_once() {
    let site = Site::begin().await;
    let machine = site.joined().await;
    sign_web(site.steps(), &machine).await;
    let line = site.line(site.steps(), &machine, |revision| vec![web_at(revision)]).await;
    site.steps().leave(&line);
    let order = request(Target::Identity(id("web")), Reason::KeyCompromise);
    site.steps().revoke(order).await.unwrap();
    // What is out is read for the agent as well, which is young.
    site.clock.advance(300 * SECOND);
    site.look().await;
    let missing = |seen: &Convergence| (seen.live, seen.missing.len()) == (1, 1);
    assert_eq!(site.waited(60 * SECOND, missing).await, 0);
    // It was renewed meanwhile, which shows when it was to have ended.
    sign_web(site.steps(), &machine).await;
    site.clock.advance(900 * SECOND);
    assert_eq!(site.waited(60 * SECOND, missing).await, 1);
    site.clock.advance(SECOND);
    assert!(site.look().await.missing.is_empty());
}

#[tokio::test]
async fn metrics_read_all_that_is_out_four_times_a_minute_at_most() {
    let site = Site::begin().await;
    let machine = site.joined().await;
    sign_web(site.steps(), &machine).await;
    site.clock.advance(120 * SECOND);
    let _line = site.line(site.steps(), &machine, |_revision| Vec::new()).await;
    site.store.reads();
    for _scrape in 0..600 {
        assert_eq!(unaware(site.steps().control()).await, 1);
        site.clock.advance(LOOK_AGAIN);
    }
    assert_eq!(site.store.reads(), 4);
}

#[tokio::test]
async fn while_the_store_is_away_metrics_say_what_was_counted_last() {
    let site = Site::begin().await;
    let (machine, idle) = (site.joined().await, site.joined().await);
    sign_web(site.steps(), &machine).await;
    let nodes = [machine.node, idle.node];
    site.steps().control().roster.expect(nodes);
    assert_eq!(unaware(site.steps().control()).await, 1);
    site.store.go_away();
    site.steps().control().roster.expect(nodes);
    for _scrape in 0..3 {
        site.clock.advance(15 * SECOND);
        assert_eq!(unaware(site.steps().control()).await, 1);
    }
    // One that has never counted does not say that there are none.
    let begun = site.domain.another().await;
    begun.control().roster.expect(nodes);
    assert_eq!(unaware(begun.control()).await, 2);
}

/// Does what each server does once a minute.
async fn minute(steps: &Steps) {
    let stop = CancellationToken::new();
    stop.cancel();
    prune(Arc::clone(steps.control()), stop).await;
}

#[tokio::test]
async fn point_that_is_gone_is_taken_off_record_though_nobody_asks_by_the_server_that_hears_its_node()
 {
    let site = Site::begin().await;
    let one = site.domain.another().await.beside_others("one");
    let two = site.domain.another().await.beside_others("two");
    let tell = async |steps: &Steps| {
        let (control, now) = (steps.control(), site.clock.now());
        let replicas = control.replicas.as_ref().unwrap();
        let told = replicas.tell(&*control.store, &control.roster, &control.converging, now);
        told.await.unwrap();
    };
    let machine = site.joined().await;
    sign_web(&one, &machine).await;
    let first = site.line(&one, &machine, |revision| vec![web_at(revision)]).await;
    one.leave(&first);
    site.clock.advance(120 * SECOND);
    // Its next agent comes to the other server, and does not know it.
    minute(&two).await;
    let other = |revision| vec![v1::PointAck { point: "other".to_owned(), ..web_at(revision) }];
    let _line = site.line(&two, &machine, other).await;
    site.clock.advance(300 * SECOND);
    sign_web(&two, &machine).await;
    let points = async || {
        let rows = site.store.points(None, 100).await.unwrap();
        rows.into_iter().map(|row| row.key.name).collect::<Vec<_>>()
    };
    let known = |steps: &Steps| steps.control().roster.standings().len();
    tell(&two).await;
    for steps in [&one, &two] {
        minute(steps).await;
        assert_eq!((points().await.len(), known(steps)), (2, 2), "it may be somewhere");
    }
    site.clock.advance(480 * SECOND + SKEW_ALLOWED + SECOND);
    tell(&two).await;
    minute(&one).await;
    assert_eq!((points().await.len(), known(&one)), (2, 2), "it may have come back at the other");
    minute(&two).await;
    assert_eq!((points().await, known(&two)), (vec!["other".to_owned()], 1));
    site.clock.advance(SECOND);
    minute(&one).await;
    assert_eq!(known(&one), 1);
}

/// The link of an agent that begins now.
fn link(realm: &Realm) -> TlsLink {
    let clock = Arc::clone(&realm.clock) as Arc<dyn Clock>;
    TlsLink::new(Arc::clone(&clock), Trust::new(clock, Slice::nothing()))
}

#[tokio::test]
async fn agent_that_has_attested_its_node_inherits_nothing_on_any_of_its_streams_and_its_successor_does()
 {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    running.apply(vec![workload("web", &[])]).await;
    let (node_key, server) = (key(), running.address().to_string());
    let ask = AttestAsk {
        evidence: Evidence::Token(Arc::new(running.token(&[]).await.parse().unwrap())),
        pin: realm.trust,
        domain: None,
        csr: make_csr(&node_key).unwrap(),
        host: "machine".to_owned(),
        first: true,
    };
    let first = link(&realm);
    let attested = first.attest(&server, ask).await.unwrap();
    // It says that of so many processes it does not know what they enforce, so that it is seen when it was heard.
    let heard = async |link: &TlsLink, unaware: u64| {
        realm.clock.advance(SECOND);
        let credential = NodeCredential { chain: &attested.chain, key: &node_key };
        link.present(Some(credential), &attested.bundle).unwrap();
        let mut session = link.open(&server, None).await.unwrap();
        let Some(Ok(SyncMessage::Snapshot { revision, .. })) = session.messages.next().await else {
            panic!("no snapshot")
        };
        let subject = Subject::Workload("web".parse().unwrap());
        let items = vec![SignItem { subject, csr: make_csr(&key()).unwrap() }];
        let signed = session.calls.sign(items, None).await.unwrap();
        assert!(matches!(&*signed, [SignAnswer::Issued { .. }]));
        let (revision, points) = (Some(revision.into()), Vec::new());
        session.acks.send(v1::SyncAck { revision, points, unaware }).await.unwrap();
        let now = convergence_until(&running, None, |now| unaware <= now.unaware).await;
        (now.unaware, now.unheard)
    };
    assert_eq!(heard(&first, 1).await, (1, vec![]));
    assert_eq!(heard(&first, 2).await, (2, vec![]), "it has come back");
    assert_eq!(heard(&link(&realm), 5).await, (6, vec![attested.node]), "it was restarted");
    running.stop().await;
}
