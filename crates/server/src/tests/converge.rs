//! Who enforces a revocation: what points acknowledge, and what trials show of what they say.

use std::time::Duration;

use countersign_api::admin::{Convergence, Target};
use countersign_api::v1;
use countersign_identity::{
    Canary, Clock as _, Code, Reason, Revision, SKEW_ALLOWED, SpiffeId, Timestamp, Trial,
};

use super::revoke::{covers, id, key, request, revoke, rules, svid};
use super::sign::{item, sign};
use super::strangers::Elsewhere;
use super::sync::{Stream, open, open_with};
use super::{Agent, Client, DOMAIN, Realm, Running, service, soon, workload};

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

pub(super) fn web_at(revision: Revision) -> v1::PointAck {
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
async fn who_enforces_a_revision_that_was_never_made_is_not_asked_in_vain() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    let current = running.admin.status().await.unwrap().revision;
    for ahead in [
        Revision { number: current.number + 1, ..current },
        Revision { incarnation: 99, number: 99 },
    ] {
        // It would wait for longer than a test may run.
        let asked = running.admin.convergence(Some(ahead), Duration::from_secs(3600)).await;
        let error = asked.unwrap_err();
        assert_eq!(error.code(), Code::NotFound, "{error}");
        let why = format!("revision {ahead} is not there yet: the current one is {current}");
        assert!(error.to_string().contains(&why), "{error}");
    }
    running.stop().await;
}

#[tokio::test]
async fn revision_that_another_server_made_a_moment_ago_is_one_that_was_made() {
    let domain = Elsewhere::begin(DOMAIN, Timestamp::from_secs(1_795_262_400)).await;
    let order = request(Target::Identity(id("web")), Reason::KeyCompromise);
    let made = domain.another().await.revoke(order).await.unwrap().revision;
    assert!(domain.steps.revision() < made, "this server has not heard of it");
    assert_eq!(domain.steps.converged(made).await.unwrap().revision, made);
    let ahead = Revision { number: made.number + 1, ..made };
    let refused = domain.steps.converged(ahead).await.unwrap_err();
    assert_eq!(refused.code, Code::NotFound, "{refused:?}");
}

/// A node on which the point `proxy` was lost together with its agent, at the realm's first moment, before a revocation.
/// Two minutes later another agent has begun there, and knows another point.
async fn lost(realm: &Realm, running: &Running) -> (Agent, Client, Stream) {
    running.apply(vec![workload("web", &[]), service("web", &[])]).await;
    let agent = Agent::join(realm, running, &[]).await;
    let before = point_ack(realm, running, &agent).await;
    convergence_until(running, None, |now| now.enforcing == 1).await;
    drop(before);
    revoke(running, Target::Identity(id("web")), Reason::KeyCompromise).await;
    realm.clock.advance(Duration::from_secs(120));
    let mut client = agent.client(realm, running).await;
    let stream = other(&mut client, Duration::from_secs(1)).await;
    svid(&agent, realm, &mut client, "web").await;
    convergence_until(running, None, |now| (now.live, now.missing.len()) == (2, 1)).await;
    (agent, client, stream)
}

/// The stream of an agent that has run for so long and knows another point.
async fn other(client: &mut Client, ran: Duration) -> Stream {
    let ran_micros = ran.as_micros().try_into().unwrap();
    let hello = v1::SyncHello { ran_micros, ..Default::default() };
    let mut stream = open_with(client, hello).await.unwrap();
    let revision = stream.snapshot().await.revision.unwrap().into();
    stream.ack(revision, vec![other_at(revision)]).await;
    stream
}

fn other_at(revision: Revision) -> v1::PointAck {
    v1::PointAck { point: "other".to_owned(), ..web_at(revision) }
}

async fn missing(running: &Running) -> Vec<String> {
    let now = running.admin.convergence(None, Duration::ZERO).await.unwrap();
    now.missing.into_iter().map(|point| point.point).collect()
}

#[tokio::test]
async fn point_that_nobody_knows_is_gone_after_a_lifetime_though_its_workload_renews_on_its_node() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    let (agent, mut client, _stream) = lost(&realm, &running).await;
    // The first of these may have been asked for before the agent said how long it has run, as far as clocks can tell.
    for _renewal in 0..2 {
        realm.clock.advance(Duration::from_secs(7 * 60));
        svid(&agent, &realm, &mut client, "web").await;
        assert_eq!(missing(&running).await, ["proxy"]);
    }
    realm.clock.advance(Duration::from_secs(2 * 60));
    assert_eq!(
        missing(&running).await,
        ["proxy"],
        "what it had may still be taken by who is behind"
    );
    realm.clock.advance(Duration::from_secs(1));
    assert_eq!(missing(&running).await, [] as [&str; 0]);
    let all = running.admin.convergence(None, Duration::ZERO).await.unwrap();
    assert_eq!((all.live, all.enforcing), (1, 1));
    running.stop().await;
    realm.verify_everything().await;
}

#[tokio::test]
async fn point_of_an_agent_that_is_cut_off_is_missing_until_the_last_credential_of_its_node_has_ended()
 {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    let (agent, mut client, stream) = lost(&realm, &running).await;
    realm.clock.advance(Duration::from_secs(7 * 60));
    svid(&agent, &realm, &mut client, "web").await;
    // From now on it is not heard of to whom its agent gives that.
    drop(stream);
    soon(async {
        while running.admin.status().await.unwrap().nodes[0].connected {
            tokio::task::yield_now().await;
        }
    })
    .await;
    realm.clock.advance(Duration::from_secs(15 * 60) + SKEW_ALLOWED);
    assert!(missing(&running).await.contains(&"proxy".to_owned()));
    realm.clock.advance(Duration::from_secs(1));
    assert_eq!(missing(&running).await, [] as [&str; 0]);
    running.stop().await;
    realm.verify_everything().await;
}

#[tokio::test]
async fn agent_that_has_told_nothing_since_the_servers_restart_leaves_no_point_out() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    let (agent, client, stream) = lost(&realm, &running).await;
    drop((client, stream));
    running.stop().await;
    let running = realm.serve().await;
    let mut client = agent.client(&realm, &running).await;
    let ran_micros = Duration::from_secs(3600).as_micros().try_into().unwrap();
    let hello = v1::SyncHello { ran_micros, ..Default::default() };
    let mut stream = open_with(&mut client, hello).await.unwrap();
    let revision = stream.snapshot().await.revision.unwrap().into();
    assert_eq!(missing(&running).await, ["other", "proxy"], "it has not said whom it knows");
    // It has run since before any of them, and knows of one: the other has ended while the server was away.
    stream.ack(revision, vec![other_at(revision)]).await;
    convergence_until(&running, None, |now| (now.live, now.enforcing) == (1, 1)).await;
    running.stop().await;
    realm.verify_everything().await;
}

#[tokio::test]
async fn agent_that_comes_while_the_clock_is_behind_the_log_leaves_no_point_out_too_early() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    running.apply(vec![workload("web", &[]), service("web", &[])]).await;
    let agent = Agent::join(&realm, &running, &[]).await;
    let start = realm.clock.now();
    let (mut client, stream) = point_ack(&realm, &running, &agent).await;
    realm.clock.advance(Duration::from_secs(600));
    let last = svid(&agent, &realm, &mut client, "web").await.expires;
    convergence_until(&running, None, |now| now.live == 1).await;
    drop((client, stream));
    // Later, by a clock that was set back: the log is ahead of it.
    realm.clock.set(start + Duration::from_secs(480));
    let mut client = agent.client(&realm, &running).await;
    let _stream = other(&mut client, Duration::from_secs(70)).await;
    convergence_until(&running, None, |now| now.live == 2).await;
    revoke(&running, Target::Identity(id("web")), Reason::KeyCompromise).await;
    realm.clock.advance((last + SKEW_ALLOWED).since(realm.clock.now()));
    assert!(missing(&running).await.contains(&"proxy".to_owned()));
    realm.clock.advance(Duration::from_secs(1));
    assert!(!missing(&running).await.contains(&"proxy".to_owned()));
    running.stop().await;
    realm.verify_everything().await;
}

#[tokio::test]
async fn agent_that_came_while_the_clock_was_behind_holds_nothing_up_once_it_is_right() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    running.apply(vec![workload("web", &[]), service("web", &[]), workload("orders", &[])]).await;
    let agent = Agent::join(&realm, &running, &[]).await;
    let start = realm.clock.now();
    let (mut client, stream) = point_ack(&realm, &running, &agent).await;
    realm.clock.advance(Duration::from_secs(600));
    let renew = async |client: &mut Client| {
        svid(&agent, &realm, client, "orders").await;
        svid(&agent, &realm, client, "web").await.expires
    };
    let last = renew(&mut client).await;
    convergence_until(&running, None, |now| now.live == 1).await;
    drop((client, stream));
    realm.clock.set(start + Duration::from_secs(480));
    let mut client = agent.client(&realm, &running).await;
    let _stream = other(&mut client, Duration::from_secs(70)).await;
    convergence_until(&running, None, |now| (now.live, &*now.unheard) == (2, &[agent.node])).await;
    revoke(&running, Target::Identity(id("web")), Reason::KeyCompromise).await;
    // By now the clock has passed the log. What is renewed, this agent gives out.
    realm.clock.advance(Duration::from_secs(320));
    assert!(last < renew(&mut client).await);
    let seen = async || {
        let now = running.admin.convergence(None, Duration::ZERO).await.unwrap();
        (now.missing.iter().any(|point| point.point == "proxy"), now.unheard)
    };
    realm.clock.advance((last + SKEW_ALLOWED).since(realm.clock.now()));
    assert_eq!(seen().await, (true, vec![agent.node]), "as far as it was behind");
    realm.clock.advance(Duration::from_secs(1));
    assert_eq!(seen().await, (false, vec![]));
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
