//! Who enforces a revocation: what points acknowledge, and what trials show of what they say.

use std::time::Duration;

use countersign_api::admin::{Convergence, Target};
use countersign_api::v1;
use countersign_identity::{
    Canary, Clock as _, Code, Reason, Revision, SKEW_ALLOWED, SpiffeId, Trial,
};

use super::revoke::{covers, id, key, revoke, rules, svid};
use super::sign::{item, sign};
use super::sync::{Stream, open};
use super::{Agent, Client, Realm, Running, service, soon, workload};

pub(super) async fn point_ack(realm: &Realm, running: &Running, agent: &Agent) -> (Client, Stream) {
    let mut client = agent.client(realm, running).await;
    svid(agent, realm, &mut client, "web").await;
    let mut stream = open(&mut client, None).await.unwrap();
    let snapshot = stream.snapshot().await;
    stream
        .ack(snapshot.revision.unwrap().into(), vec![web_at(snapshot.revision.unwrap().into())])
        .await;
    (client, stream)
}

fn web_at(revision: Revision) -> v1::PointAck {
    v1::PointAck {
        point: "proxy".to_owned(),
        spiffe_id: "spiffe://shop.example/web".to_owned(),
        revision: Some(revision.into()),
        ..Default::default()
    }
}

pub(super) async fn convergence_until(
    running: &Running,
    revision: Option<Revision>,
    fits: impl Fn(&Convergence) -> bool,
) -> Convergence {
    soon(async {
        loop {
            let now = running.admin.convergence(revision, Duration::ZERO).await.unwrap();
            if fits(&now) {
                return now;
            }
            tokio::task::yield_now().await;
        }
    })
    .await
}

#[tokio::test]
async fn convergence_counts_acknowledgements_and_is_slow_only_as_its_slowest() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    running.apply(vec![workload("web", &[]), service("web", &[])]).await;
    let agent = Agent::join(&realm, &running, &[]).await;
    let (mut client, mut stream) = point_ack(&realm, &running, &agent).await;
    convergence_until(&running, None, |now| now.live == 1 && now.enforcing == 1).await;
    let answer = revoke(&running, Target::Identity(id("web")), Reason::KeyCompromise).await;
    let before = running.admin.convergence(Some(answer.revision), Duration::ZERO).await.unwrap();
    assert_eq!((before.live, before.enforcing, before.reissue_pending), (1, 0, true));
    assert_eq!(before.missing[0].point, "proxy");
    assert_eq!(before.exposure_ends, answer.exposure_ends, "told while somebody is missing");
    stream.changes().await;
    realm.clock.advance(Duration::from_millis(41));
    let ack = v1::PointAck { cut: 2, ..web_at(answer.revision) };
    stream.ack(answer.revision, vec![ack]).await;
    realm.clock.advance(Duration::from_millis(59));
    svid(&agent, &realm, &mut client, "web").await;
    let all = convergence_until(&running, Some(answer.revision), |now| now.is_converged()).await;
    assert_eq!((all.live, all.enforcing, all.connections_cut), (1, 1, Some(2)));
    assert!(all.slowest_millis.is_some_and(|millis| (41..=100).contains(&millis)), "{all:?}");
    assert_eq!((all.reissued_millis, all.reissue_pending), (Some(100), false));
    assert_eq!(all.exposure_ends, None, "nobody is missing");
    running.stop().await;
    realm.verify_everything().await;
}

#[tokio::test]
async fn partition_and_restart_never_shrink_the_denominator() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    running.apply(vec![workload("web", &[]), service("web", &[])]).await;
    let agent = Agent::join(&realm, &running, &[]).await;
    let (client, stream) = point_ack(&realm, &running, &agent).await;
    convergence_until(&running, None, |now| now.enforcing == 1).await;
    // The agent is lost, and the right to be counted with it is not.
    drop((client, stream));
    let answer = revoke(&running, Target::Identity(id("web")), Reason::KeyCompromise).await;
    let lost = running.admin.convergence(Some(answer.revision), Duration::ZERO).await.unwrap();
    assert_eq!((lost.live, lost.enforcing, lost.missing.len()), (1, 0, 1));
    running.stop().await;
    let running = realm.serve().await;
    let lost = running.admin.convergence(Some(answer.revision), Duration::ZERO).await.unwrap();
    assert_eq!((lost.live, lost.enforcing, lost.missing.len()), (1, 0, 1), "after a restart");
    assert_eq!(lost.exposure_ends, answer.exposure_ends);
    // A new stream that does not speak of the point makes it no less missing: the agent may have restarted.
    let mut client = agent.client(&realm, &running).await;
    let mut stream = open(&mut client, None).await.unwrap();
    let revision = stream.snapshot().await.revision.unwrap().into();
    stream.ack(revision, Vec::new()).await;
    let lost = running.admin.convergence(Some(answer.revision), Duration::ZERO).await.unwrap();
    assert_eq!((lost.live, lost.missing.len()), (1, 1));
    // Only when nothing that it could present is valid any more it is dead.
    drop((client, stream));
    realm.clock.advance(Duration::from_secs(15 * 60) + SKEW_ALLOWED + Duration::from_secs(1));
    let gone = running.admin.convergence(Some(answer.revision), Duration::ZERO).await.unwrap();
    assert_eq!((gone.live, gone.missing.len()), (0, 0));
    running.stop().await;
    realm.verify_everything().await;
}

#[tokio::test]
async fn counts_that_a_point_and_an_agent_make_up_do_not_overflow() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    running.apply(vec![workload("web", &[]), service("web", &[])]).await;
    let mut lines = Vec::new();
    for _agent in 0..2 {
        let agent = Agent::join(&realm, &running, &[]).await;
        let (client, mut stream) = point_ack(&realm, &running, &agent).await;
        lines.push((client, stream.say.clone()));
        tokio::spawn(async move { while stream.next().await.is_ok() {} });
    }
    convergence_until(&running, None, |now| now.enforcing == 2).await;
    let answer = revoke(&running, Target::Identity(id("web")), Reason::Superseded).await;
    for (_client, say) in &lines {
        let point = v1::PointAck { cut: u64::MAX, draining: u64::MAX, ..web_at(answer.revision) };
        let ack = v1::SyncAck {
            revision: Some(answer.revision.into()),
            points: vec![point],
            unaware: u64::MAX,
        };
        let step = Some(v1::sync_request::Step::Ack(ack));
        soon(say.send(v1::SyncRequest { step })).await.unwrap();
    }
    let all = convergence_until(&running, Some(answer.revision), |now| now.is_converged()).await;
    assert_eq!((all.unaware, all.draining), (u64::MAX, u64::MAX));
    assert_eq!(all.connections_cut, Some(u64::MAX));
    running.stop().await;
}

fn canary_item(canary: &SpiffeId) -> v1::SignItem {
    v1::SignItem { canary: canary.to_string(), ..item("", &key()) }
}

#[tokio::test]
async fn canaries_are_had_for_a_trial_that_has_just_begun_and_are_recorded_and_short_lived() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    running.apply(vec![workload("web", &[])]).await;
    let agent = Agent::join(&realm, &running, &[]).await;
    let mut client = agent.client(&realm, &running).await;
    let mut stream = open(&mut client, None).await.unwrap();
    stream.snapshot().await;
    let domain = "shop.example".parse().unwrap();
    let early = Trial(Revision { incarnation: 1, number: 3 });
    let ask = async |client: &mut Client, id: &SpiffeId| {
        sign(client, vec![canary_item(id)]).await.remove(0)
    };
    for canary in [Canary::Covered, Canary::Uncovered] {
        let id = early.id(&domain, canary);
        assert_eq!(ask(&mut client, &id).await, Err(Code::NotFound), "nobody asked for a trial");
    }
    let trial = Trial(running.admin.try_out().await.unwrap().revision);
    let told = rules(&stream.changes().await.put);
    let mut covered = Vec::new();
    for canary in [Canary::Covered, Canary::Uncovered] {
        let issued = ask(&mut client, &trial.id(&domain, canary)).await.unwrap();
        let verified = agent.verify(&realm, &issued.chain);
        assert!(verified.expires <= realm.clock.now() + Trial::CANARY_LIFETIME);
        covered.push(covers(&told, &verified));
    }
    assert_eq!(covered, [true, false]);
    let others = [
        "spiffe://shop.example/countersign/server/one",
        "spiffe://shop.example/countersign/canary/x",
        "spiffe://shop.example/web",
        "spiffe://other.example/countersign/canary/1.3/covered",
    ];
    for other in others {
        assert_eq!(ask(&mut client, &other.parse().unwrap()).await, Err(Code::NotFound), "{other}");
    }
    realm.clock.advance(Trial::TIME);
    let id = trial.id(&domain, Canary::Uncovered);
    assert_eq!(ask(&mut client, &id).await, Err(Code::NotFound), "it is over");
    running.stop().await;
    let issued = realm.verify_everything().await;
    assert_eq!(issued.iter().filter(|one| one.row.spiffe_id.is_canary()).count(), 2);
}

use v1::CanaryOutcome::{Alive, Revoked as Refused, Unspecified};

#[tokio::test]
async fn trial_that_contradicts_what_a_point_says_is_told_as_such() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    running.apply(vec![workload("web", &[]), service("web", &[])]).await;
    let agent = Agent::join(&realm, &running, &[]).await;
    let (_client, mut stream) = point_ack(&realm, &running, &agent).await;
    convergence_until(&running, None, |now| now.enforcing == 1).await;
    let trial = running.admin.try_out().await.unwrap().revision;
    let ask = async || running.admin.tried_out(trial, trial, Duration::ZERO).await.unwrap();
    let before = ask().await.trial.unwrap();
    assert!(before.pending && before.verified.is_empty());
    assert_eq!(before.unverified.len(), 1);
    stream.changes().await;
    let result = |covered: v1::CanaryOutcome, uncovered: v1::CanaryOutcome, why: &str| {
        let mut result = v1::TrialResult {
            trial: Some(trial.into()),
            door: "127.0.0.1:1".to_owned(),
            why: why.to_owned(),
            ..Default::default()
        };
        result.set_covered(covered);
        result.set_uncovered(uncovered);
        result
    };
    let cases = [
        (result(Refused, Alive, ""), 1, true),
        (result(Alive, Alive, ""), 1, false),
        (result(Refused, Refused, ""), 1, false),
        (result(Alive, Unspecified, "it hung up"), 1, false),
        (result(Refused, Alive, "the door enforces 1.1 only"), 1, false),
        (result(Unspecified, Unspecified, "no door"), 0, true),
        (result(Refused, Unspecified, "it hung up"), 0, true),
    ];
    for (tried, verified, holds) in cases {
        let ack = v1::PointAck { tried: Some(tried.clone()), ..web_at(trial) };
        stream.ack(trial, vec![ack]).await;
        let seen = soon(async {
            loop {
                let seen = ask().await;
                let view = seen.trial.clone().unwrap();
                let said = view.unverified.first().map(|point| point.why.clone());
                let of_this = said.is_none_or(|why| why == tried.why);
                let outcomes = view.verified.first().map(|point| (point.covered, point.uncovered));
                if !view.pending
                    && of_this
                    && seen.is_as_claimed() == holds
                    && view.verified.len() == verified
                {
                    return (seen, outcomes);
                }
                tokio::task::yield_now().await;
            }
        })
        .await;
        assert!(seen.0.is_converged(), "what it says is counted as before: {seen:?}");
    }
    running.stop().await;
    realm.verify_everything().await;
}
