//! What is told of a revocation beside who enforces it: until when it matters, who is still to be issued anew, and that no
//! other one and no clock makes it untrue.

use std::time::Duration;

use countersign_api::admin::Target;
use countersign_identity::{Clock as _, Reason, SKEW_ALLOWED};
use tokio::task::JoinSet;

use super::converge::{convergence_until, point_ack};
use super::revoke::{id, revoke, svid};
use super::sync::open;
use super::{Agent, Realm, Running, service, workload};

/// A point that was heard once, and whose agent is lost.
async fn lost_point(realm: &Realm, running: &Running) -> Agent {
    running.apply(vec![workload("web", &[]), service("web", &[])]).await;
    let agent = Agent::join(realm, running, &[]).await;
    let line = point_ack(realm, running, &agent).await;
    convergence_until(running, None, |now| now.enforcing == 1).await;
    drop(line);
    agent
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
    running.apply(vec![workload("web", &[]), workload("orders", &[])]).await;
    let agent = Agent::join(&realm, &running, &[]).await;
    // It holds nothing that a workload could present.
    let idle = Agent::join(&realm, &running, &[]).await;
    let mut client = agent.client(&realm, &running).await;
    svid(&agent, &realm, &mut client, "web").await;
    let held = svid(&agent, &realm, &mut client, "orders").await;
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
