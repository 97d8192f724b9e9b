//! What is told of a revocation beside who enforces it: until when it matters, who is still to be issued anew, and that no
//! other one and no clock makes it untrue.

use std::time::Duration;

use countersign_api::admin::Target;
use countersign_api::v1;
use countersign_identity::{Clock as _, NodeId, Reason, Revision, SKEW_ALLOWED, Timestamp};
use countersign_pki::Verified;
use tokio::task::JoinSet;

use super::converge::{convergence_until, point_ack, web_at};
use super::revoke::{id, revoke, svid};
use super::start::ask;
use super::sync::{Stream, open, open_with};
use super::{Agent, Client, Realm, Running, service, workload};
use crate::config::Config;

/// A point that was heard once, and whose agent is lost.
async fn lost_point(realm: &Realm, running: &Running) -> Agent {
    running.apply(vec![workload("web", &[]), service("web", &[])]).await;
    let agent = Agent::join(realm, running, &[]).await;
    let line = point_ack(realm, running, &agent).await;
    convergence_until(running, None, |now| now.enforcing == 1).await;
    drop(line);
    agent
}

/// A node with what these workloads can present; the last of that.
async fn holder(realm: &Realm, running: &Running, workloads: &[&str]) -> (Agent, Client, Verified) {
    running.apply(workloads.iter().map(|name| workload(name, &[])).collect()).await;
    let agent = Agent::join(realm, running, &[]).await;
    let mut client = agent.client(realm, running).await;
    let mut held = Vec::new();
    for name in workloads {
        held.push(svid(&agent, realm, &mut client, name).await);
    }
    (agent, client, held.pop().unwrap())
}

#[tokio::test]
async fn exposure_to_a_leaked_issuer_ends_no_sooner_than_the_issuer() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    let agent = lost_point(&realm, &running).await;
    let mut client = agent.client(&realm, &running).await;
    let issuer = svid(&agent, &realm, &mut client, "web").await.issuer;
    let answer = revoke(&running, Target::Authority(issuer), Reason::AuthorityCompromise).await;
    let seen = async |running: &Running| {
        let seen = running.admin.convergence(Some(answer.revision), Duration::ZERO).await.unwrap();
        assert_eq!(seen.missing.len(), 1);
        seen.exposure_ends.unwrap()
    };
    let first = seen(&running).await;
    running.stop().await;
    let running = realm.serve().await;
    let again = seen(&running).await;
    running.stop().await;
    let issued = realm.verify_everything().await;
    let authority = issued.iter().find(|one| one.row.key == issuer).expect("it is on record");
    let ends = authority.row.validity.not_after + SKEW_ALLOWED;
    assert_eq!((answer.exposure_ends, first, again), (Some(ends), ends, ends));
}

#[tokio::test]
async fn revocations_of_one_moment_are_each_watched() {
    const ALL: usize = 6;
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    let names: Vec<String> = (0..ALL).map(|number| format!("web{number}")).collect();
    running.apply(names.iter().map(|name| workload(name, &[])).collect()).await;
    let agent = Agent::join(&realm, &running, &[]).await;
    let mut client = agent.client(&realm, &running).await;
    for name in &names {
        svid(&agent, &realm, &mut client, name).await;
    }
    let mut asked = JoinSet::new();
    for name in &names {
        let (admin, name) = (running.admin.clone(), name.clone());
        let request = super::revoke::request(Target::Identity(id(&name)), Reason::KeyCompromise);
        asked.spawn(async move { (name, admin.revoke(&request).await.unwrap().revision) });
    }
    let answers = asked.join_all().await;
    for (name, revision) in &answers {
        let seen = running.admin.convergence(Some(*revision), Duration::ZERO).await.unwrap();
        assert_eq!(seen.connections_cut, Some(0), "{name} at {revision} is watched");
        assert!(seen.reissue_pending, "{name} was not issued anew");
    }
    for name in &names {
        svid(&agent, &realm, &mut client, name).await;
    }
    for (name, revision) in &answers {
        let seen = running.admin.convergence(Some(*revision), Duration::ZERO).await.unwrap();
        assert!(!seen.reissue_pending && seen.reissued_millis.is_some(), "{name}: {seen:?}");
    }
    running.stop().await;
    realm.verify_everything().await;
}

#[tokio::test]
async fn who_has_a_successor_already_is_not_waited_for() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    running.apply(vec![workload("web", &[])]).await;
    let agent = Agent::join(&realm, &running, &[]).await;
    let mut client = agent.client(&realm, &running).await;
    let mut serials = Vec::new();
    for _renewal in 0..2 {
        serials.push(svid(&agent, &realm, &mut client, "web").await.leaf.serial().unwrap());
        realm.clock.advance(Duration::from_secs(1));
    }
    for (serial, pending) in serials.into_iter().zip([false, true]) {
        let answer = revoke(&running, Target::Serial(serial), Reason::KeyCompromise).await;
        assert_eq!(answer.covered, 1);
        let seen = running.admin.convergence(Some(answer.revision), Duration::ZERO).await.unwrap();
        assert_eq!(seen.reissue_pending, pending, "{serial}");
    }
    running.stop().await;
    realm.verify_everything().await;
}

#[tokio::test]
async fn clock_that_jumps_ahead_takes_no_point_off_record_and_ends_no_exposure() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    let _agent = lost_point(&realm, &running).await;
    let answer = revoke(&running, Target::Identity(id("web")), Reason::Superseded).await;
    assert!(answer.exposure_ends.is_some());
    let noon = realm.clock.now();
    let missing = async |running: &Running, when: &str| {
        let seen = running.admin.convergence(Some(answer.revision), Duration::ZERO).await.unwrap();
        assert_eq!((seen.live, seen.missing.len()), (1, 1), "{when}");
        assert_eq!(seen.exposure_ends, answer.exposure_ends, "{when}");
    };
    let day = Duration::from_secs(86_400);
    realm.clock.set(noon + day);
    missing(&running, "a day ahead").await;
    let ahead = revoke(&running, Target::Identity(id("web")), Reason::Superseded).await;
    assert_eq!((ahead.covered, ahead.exposure_ends), (1, answer.exposure_ends));
    realm.clock.set(noon);
    missing(&running, "set right").await;
    running.stop().await;
}

#[tokio::test]
async fn what_a_node_runs_that_was_not_heard_since_the_start_is_not_taken_for_nothing() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    let (agent, mut client, held) = holder(&realm, &running, &["web", "orders"]).await;
    // It holds nothing that a workload could present.
    let idle = Agent::join(&realm, &running, &[]).await;
    let mut stream = open(&mut client, None).await.unwrap();
    let revision = stream.snapshot().await.revision.unwrap().into();
    stream.unaware(revision, 1).await;
    convergence_until(&running, None, |now| now.unaware == 1).await;
    drop((client, stream));
    running.stop().await;
    let running = realm.serve().await;
    let answer = revoke(&running, Target::Identity(id("orders")), Reason::Superseded).await;
    let seen = async || {
        let seen = running.admin.convergence(Some(answer.revision), Duration::ZERO).await.unwrap();
        (seen.unheard, seen.unaware, seen.exposure_ends)
    };
    let ends = held.expires + SKEW_ALLOWED;
    assert_eq!(seen().await, (vec![agent.node], 1, Some(ends)));
    // It is back, and has ended the process.
    let mut client = agent.client(&realm, &running).await;
    let mut stream = open(&mut client, None).await.unwrap();
    assert_eq!(seen().await.0, [agent.node], "it has said nothing of it yet");
    let revision = stream.snapshot().await.revision.unwrap().into();
    stream.unaware(revision, 0).await;
    convergence_until(&running, Some(answer.revision), |now| now.unaware == 0).await;
    assert_eq!(seen().await, (Vec::new(), 0, None));
    assert_ne!(agent.node, idle.node);
    drop((client, stream));
    running.stop().await;
    // Once all has ended that it held, there is nothing to know.
    let running = realm.serve().await;
    let seen = async || {
        running.admin.convergence(Some(answer.revision), Duration::ZERO).await.unwrap().unheard
    };
    assert_eq!(seen().await, [agent.node]);
    realm.clock.advance(Duration::from_secs(15 * 60) + SKEW_ALLOWED + Duration::from_secs(1));
    assert_eq!(seen().await, []);
    running.stop().await;
    realm.verify_everything().await;
}

/// The stream of an agent that has run for a second, and the state that it was told.
async fn begun(client: &mut Client) -> (Stream, Revision) {
    said(client, v1::SyncHello { ran_micros: 1_000_000, ..Default::default() }).await
}

/// The same of the agent that has attested the node.
async fn attested(client: &mut Client) -> (Stream, Revision) {
    said(client, v1::SyncHello { ran_micros: 1_000_000, first: true, ..Default::default() }).await
}

async fn said(client: &mut Client, hello: v1::SyncHello) -> (Stream, Revision) {
    let mut stream = open_with(client, hello).await.unwrap();
    let revision = stream.snapshot().await.revision.unwrap().into();
    (stream, revision)
}

/// How many the metrics say are unaware.
async fn unaware(running: &Running) -> u64 {
    let text = ask(running.ready.metrics.unwrap(), "/metrics").await;
    let told = |line: &str| line.strip_prefix("countersign_server_unaware_count ")?.parse().ok();
    text.lines().find_map(told).unwrap()
}

async fn serve(realm: &Realm) -> Running {
    let metrics = Some("127.0.0.1:0".parse().unwrap());
    realm.start(Config { metrics, ..realm.config() }).await.unwrap()
}

type Unheard = (Vec<NodeId>, u64, Option<Timestamp>);

async fn unheard(running: &Running, revision: Revision) -> Unheard {
    let seen = running.admin.convergence(Some(revision), Duration::ZERO).await.unwrap();
    assert_eq!(seen.unaware, unaware(running).await, "the metrics say the same");
    (seen.unheard, seen.unaware, seen.exposure_ends)
}

#[tokio::test]
async fn what_an_agent_gave_out_that_has_ended_is_not_taken_for_nothing() {
    let realm = Realm::begin().await;
    let running = serve(&realm).await;
    let (agent, mut client, held) = holder(&realm, &running, &["web", "orders"]).await;
    let (stream, revision) = attested(&mut client).await;
    stream.unaware(revision, 1).await;
    convergence_until(&running, None, |now| now.unaware == 1).await;
    assert_eq!(unheard(&running, revision).await.0, [], "no agent was there before it");
    drop((client, stream));
    realm.clock.advance(Duration::from_secs(120));
    // It begins anew: a proxy has come back, and of the files that somebody fetched it knows nothing.
    let mut client = agent.client(&realm, &running).await;
    let (mut stream, revision) = begun(&mut client).await;
    assert_eq!(unheard(&running, revision).await.1, 1, "what the one before it has told");
    stream.ack(revision, vec![web_at(revision)]).await;
    convergence_until(&running, None, |now| now.enforcing == 1).await;
    let answer = revoke(&running, Target::Identity(id("orders")), Reason::Superseded).await;
    stream.changes().await;
    stream.ack(answer.revision, vec![web_at(answer.revision)]).await;
    convergence_until(&running, Some(answer.revision), |now| now.enforcing == 1).await;
    let ends = held.expires + SKEW_ALLOWED;
    let not_known = (vec![agent.node], 1, Some(ends));
    assert_eq!(unheard(&running, answer.revision).await, not_known);
    // Its successor this agent has given out itself.
    realm.clock.advance(Duration::from_secs(5 * 60));
    svid(&agent, &realm, &mut client, "orders").await;
    realm.clock.advance(Duration::from_secs(5 * 60));
    assert_eq!(unheard(&running, answer.revision).await, not_known);
    drop((client, stream));
    realm.clock.advance(ends.since(realm.clock.now()));
    assert_eq!(
        unheard(&running, answer.revision).await.0,
        [agent.node],
        "nobody knows more by now"
    );
    realm.clock.advance(Duration::from_micros(1));
    assert_eq!(unheard(&running, answer.revision).await, (Vec::new(), 0, None));
    running.stop().await;
    realm.verify_everything().await;
}

#[tokio::test]
async fn agent_that_begins_anew_holds_nothing_up_when_all_points_are_back() {
    let realm = Realm::begin().await;
    let running = serve(&realm).await;
    running.apply(vec![workload("web", &[]), service("web", &[])]).await;
    let agent = Agent::join(&realm, &running, &[]).await;
    let line = point_ack(&realm, &running, &agent).await;
    convergence_until(&running, None, |now| now.live == 1).await;
    drop(line);
    realm.clock.advance(Duration::from_secs(120));
    let mut client = agent.client(&realm, &running).await;
    let (mut stream, revision) = begun(&mut client).await;
    // The point registers in a moment.
    stream.ack(revision, Vec::new()).await;
    convergence_until(&running, None, |now| now.unheard == [agent.node]).await;
    stream.ack(revision, vec![web_at(revision)]).await;
    convergence_until(&running, None, |now| now.unaware == 0).await;
    let answer = revoke(&running, Target::Identity(id("web")), Reason::Superseded).await;
    stream.changes().await;
    stream.ack(answer.revision, vec![web_at(answer.revision)]).await;
    convergence_until(&running, Some(answer.revision), |now| now.is_converged()).await;
    assert_eq!(unheard(&running, answer.revision).await, (Vec::new(), 0, None));
    running.stop().await;
    realm.verify_everything().await;
}

#[tokio::test]
async fn metrics_count_a_node_that_was_not_heard_since_the_start() {
    let realm = Realm::begin().await;
    let running = serve(&realm).await;
    drop(holder(&realm, &running, &["web"]).await);
    let _idle = Agent::join(&realm, &running, &[]).await;
    assert_eq!(unaware(&running).await, 0);
    running.stop().await;
    let running = serve(&realm).await;
    assert_eq!(unaware(&running).await, 1);
    running.stop().await;
}

#[tokio::test]
async fn what_was_issued_about_when_an_agent_began_may_be_of_the_one_before_it() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    let (agent, mut client, before) = holder(&realm, &running, &["web"]).await;
    realm.clock.advance(Duration::from_secs(120));
    let begins = async || {
        let mut client = agent.client(&realm, &running).await;
        let (stream, revision) = begun(&mut client).await;
        stream.ack(revision, Vec::new()).await;
        convergence_until(&running, None, |now| now.unheard == [agent.node]).await;
        (client, stream)
    };
    let first = begins().await;
    // Servers' clocks differ.
    realm.clock.advance(Duration::from_secs(59));
    let about = svid(&agent, &realm, &mut client, "web").await.expires;
    realm.clock.advance(Duration::from_secs(62));
    let seen = async || {
        let seen = running.admin.convergence(None, Duration::ZERO).await.unwrap();
        (seen.unheard, seen.unaware)
    };
    assert_eq!(seen().await, (vec![agent.node], 1));
    assert!(before.expires < about);
    realm.clock.advance((about + SKEW_ALLOWED).since(realm.clock.now()));
    assert_eq!(seen().await, (vec![agent.node], 1));
    realm.clock.advance(Duration::from_micros(1));
    assert_eq!(seen().await, (Vec::new(), 0));
    // What it has given out since is not known to the next.
    svid(&agent, &realm, &mut client, "web").await;
    assert_eq!(seen().await, (Vec::new(), 0));
    drop(first);
    let _next = begins().await;
    running.stop().await;
    realm.verify_everything().await;
}

#[tokio::test]
async fn agent_that_begins_anew_may_follow_one_that_had_what_the_store_has_lost() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    running.apply(vec![workload("web", &[])]).await;
    let agent = Agent::join(&realm, &running, &[]).await;
    let first = Agent::join(&realm, &running, &[]).await;
    realm.save().await;
    svid(&agent, &realm, &mut agent.client(&realm, &running).await, "web").await;
    running.stop().await;
    realm.put_old_store(&realm.data().join("state.db")).await;
    realm.clock.advance(Duration::from_secs(120));
    let running = realm.serve().await;
    assert!(running.admin.status().await.unwrap().incarnation.is_some());
    let mut lines = Vec::new();
    for (agent, is_first) in [(&agent, false), (&first, true)] {
        let mut client = agent.client(&realm, &running).await;
        let (stream, revision) = match is_first {
            true => attested(&mut client).await,
            false => begun(&mut client).await,
        };
        stream.ack(revision, Vec::new()).await;
        lines.push((client, stream));
    }
    convergence_until(&running, None, |now| now.unheard == [agent.node]).await;
    running.stop().await;
    realm.verify_everything().await;
}

#[tokio::test]
async fn agent_that_began_about_when_its_node_attested_is_not_taken_for_the_first() {
    let realm = Realm::begin().await;
    let running = serve(&realm).await;
    running.apply(vec![workload("web", &[])]).await;
    let start = realm.clock.now();
    // By the clock of a server that is ahead, as far as clocks may be.
    realm.clock.advance(Duration::from_secs(30));
    let agent = Agent::join(&realm, &running, &[]).await;
    let mut client = agent.client(&realm, &running).await;
    svid(&agent, &realm, &mut client, "web").await;
    realm.clock.set(start + Duration::from_secs(10));
    let (stream, revision) = begun(&mut client).await;
    stream.ack(revision, Vec::new()).await;
    convergence_until(&running, None, |now| now.unheard == [agent.node]).await;
    drop(stream);
    // What is out is not read again before.
    realm.clock.advance(Duration::from_secs(1));
    let (stream, revision) = attested(&mut client).await;
    stream.ack(revision, Vec::new()).await;
    convergence_until(&running, None, |now| now.unaware == 0).await;
    running.stop().await;
}
