//! Taking out of service: what agents are told, what is refused, and who enforces it.

use std::time::Duration;

use countersign_api::admin::{
    AdminError, Convergence, Leaked, Reissue, ResumeRequest, RevokeRequest, RevokeResponse, Target,
};
use countersign_api::v1;
use countersign_identity::{
    Canary, Clock as _, Code, Presented, Reason, Revision, Revocation, Revocations, Revoked,
    SKEW_ALLOWED, SpiffeId, Suspended, Trial,
};
use countersign_pki::{Certificate, KeyKind, PrivateKey, Verified};
use countersign_tls::FirstContact;
use tokio::net::TcpStream;

use super::sign::{item, sign};
use super::sync::open;
use super::{Agent, Client, Realm, Running, code, service, soon, workload};

fn id(name: &str) -> SpiffeId {
    format!("spiffe://shop.example/{name}").parse().unwrap()
}

fn request(target: Target, reason: Reason) -> RevokeRequest {
    RevokeRequest {
        targets: vec![target],
        reason,
        issued_before: None,
        reissue: Reissue::ByReason,
        dry_run: false,
    }
}

pub(super) async fn revoke(running: &Running, target: Target, reason: Reason) -> RevokeResponse {
    running.admin.revoke(&request(target, reason)).await.unwrap()
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, AdminError>, expected: Code) {
    let error = result.unwrap_err();
    assert_eq!(error.code(), expected, "{error}");
}

fn key() -> PrivateKey {
    PrivateKey::generate(KeyKind::P256).unwrap()
}

async fn svid(agent: &Agent, realm: &Realm, client: &mut Client, name: &str) -> Verified {
    let issued = sign(client, vec![item(name, &key())]).await.remove(0).unwrap();
    agent.verify(realm, &issued.chain)
}

fn rules(records: &[v1::Record]) -> Revocations {
    let rules = records.iter().filter(|record| record.kind == "Revocation").map(|record| {
        let rule: Revocation = serde_json::from_slice(&record.value).unwrap();
        (record.name.as_str().into(), rule.into())
    });
    Revocations::new(rules)
}

fn covers(rules: &Revocations, svid: &Verified) -> bool {
    let presented = Presented {
        id: &svid.id,
        serial: svid.leaf.serial(),
        key: svid.key,
        authorities: &[svid.issuer, svid.anchor],
        provenance: svid.provenance().map(|from| (from.revision, from.node)),
    };
    rules.covering(&presented).is_some()
}

#[tokio::test]
async fn revoked_identity_is_told_at_once_and_its_successor_is_not_covered() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    running.apply(vec![workload("web", &[]), workload("orders", &[])]).await;
    let agent = Agent::join(&realm, &running, &[]).await;
    let mut client = agent.client(&realm, &running).await;
    let (old, web) = (
        svid(&agent, &realm, &mut client, "orders").await,
        svid(&agent, &realm, &mut client, "web").await,
    );
    let mut stream = open(&mut client, None).await.unwrap();
    stream.snapshot().await;
    let answer = revoke(&running, Target::Identity(id("orders")), Reason::KeyCompromise).await;
    assert_eq!((answer.leaked, answer.covered), (Leaked::Key, 1));
    assert_eq!(answer.exposure_ends, Some(old.expires + SKEW_ALLOWED));
    let changes = stream.changes().await;
    assert_eq!(Revision::from(changes.revision.unwrap()), answer.revision);
    let told = rules(&changes.put);
    assert!(covers(&told, &old) && !covers(&told, &web));
    let new = svid(&agent, &realm, &mut client, "orders").await;
    assert!(!covers(&told, &new), "what is issued afterwards is not covered");
    running.stop().await;
    realm.verify_everything().await;
}

#[tokio::test]
async fn serial_takes_its_key_with_it_and_both_are_refused_for_ever() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    running.apply(vec![workload("web", &[])]).await;
    let agent = Agent::join(&realm, &running, &[]).await;
    let mut client = agent.client(&realm, &running).await;
    let (leaked, other) = (key(), key());
    let issued = sign(&mut client, vec![item("web", &leaked), item("web", &other)]).await;
    let leaf = |issued: &Result<v1::Issued, Code>| {
        Certificate::parse(&issued.as_ref().unwrap().chain[0]).unwrap()
    };
    let serial = leaf(&issued[0]).serial().unwrap();
    let answer = revoke(&running, Target::Serial(serial), Reason::KeyCompromise).await;
    let targets: Vec<_> = answer.rules.iter().map(|rule| rule.target.clone()).collect();
    assert_eq!(targets, [Revoked::Serial(serial), Revoked::Key(leaked.public().id())]);
    assert_eq!(answer.covered, 1, "the other certificate of the same workload is not covered");
    let items = vec![item("web", &leaked)];
    let again = client
        .node
        .sign(v1::SignRequest { items, ..v1::SignRequest::default() })
        .await
        .unwrap_err();
    assert_eq!(code(&again), Code::RevokedKey);
    assert!(sign(&mut client, vec![item("web", &other)]).await[0].is_ok());
    running.stop().await;
    let running = realm.serve().await;
    realm.clock.advance(Duration::from_secs(1800));
    let client = agent.client(&realm, &running).await;
    let items = vec![item("web", &leaked)];
    let again = client
        .node
        .sign(v1::SignRequest { items, ..v1::SignRequest::default() })
        .await
        .unwrap_err();
    assert_eq!(code(&again), Code::RevokedKey, "also after a restart, and when the rule is moot");
    running.stop().await;
    realm.verify_everything().await;
}

#[tokio::test]
async fn what_does_not_fit_is_refused_and_a_dry_run_changes_nothing() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    running.apply(vec![workload("web", &[])]).await;
    let before = running.admin.status().await.unwrap();
    let ask = async |target, reason| running.admin.revoke(&request(target, reason)).await;
    let unknown = "40".repeat(16).parse().unwrap();
    refused(ask(Target::Serial(unknown), Reason::KeyCompromise).await, Code::NotFound);
    let foreign = "spiffe://other.example/web".parse().unwrap();
    refused(ask(Target::Identity(foreign), Reason::KeyCompromise).await, Code::ForeignDomain);
    refused(ask(Target::Identity(id("web")), Reason::NodeCompromise).await, Code::NotUnderstood);
    let node = "0a".repeat(16).parse().unwrap();
    refused(ask(Target::Node(node), Reason::NodeCompromise).await, Code::NotFound);
    refused(
        ask(Target::Authority(realm.trust), Reason::AuthorityCompromise).await,
        Code::Forbidden,
    );
    let nothing = RevokeRequest {
        targets: Vec::new(),
        ..request(Target::Identity(id("web")), Reason::Unspecified)
    };
    refused(running.admin.revoke(&nothing).await, Code::NotUnderstood);
    let dry = RevokeRequest {
        dry_run: true,
        ..request(Target::Identity(id("web")), Reason::Unspecified)
    };
    assert_eq!(running.admin.revoke(&dry).await.unwrap().rules.len(), 1);
    let after = running.admin.status().await.unwrap();
    assert_eq!((before.revision, before.server.log.size), (after.revision, after.server.log.size));
    running.stop().await;
}

#[tokio::test]
async fn leaked_process_gets_nothing_until_an_operator_resumes_it() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    running.apply(vec![workload("web", &[])]).await;
    let agent = Agent::join(&realm, &running, &[]).await;
    let mut client = agent.client(&realm, &running).await;
    svid(&agent, &realm, &mut client, "web").await;
    let answer = revoke(&running, Target::Identity(id("web")), Reason::ProcessCompromise).await;
    assert_eq!((answer.leaked, answer.suspended.len()), (Leaked::Process, 1));
    let asked = sign(&mut client, vec![item("web", &key())]).await;
    assert_eq!(asked[0], Err(Code::Suspended));
    let resume = ResumeRequest { target: Suspended::Identity(id("web")) };
    running.admin.resume(&resume).await.unwrap();
    assert!(sign(&mut client, vec![item("web", &key())]).await[0].is_ok());
    refused(running.admin.resume(&resume).await, Code::NotFound);
    assert_eq!(running.admin.revocations().await.unwrap().rules.len(), 1, "it stays revoked");
    running.stop().await;
    realm.verify_everything().await;
}

#[tokio::test]
async fn leaked_node_loses_its_stream_and_comes_back_by_attesting_anew_only() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    running.apply(vec![workload("web", &[])]).await;
    let agent = Agent::join(&realm, &running, &[]).await;
    let mut client = agent.client(&realm, &running).await;
    let held = svid(&agent, &realm, &mut client, "web").await;
    let mut stream = open(&mut client, None).await.unwrap();
    stream.snapshot().await;
    let answer = revoke(&running, Target::Node(agent.node), Reason::NodeCompromise).await;
    assert!(covers(
        &Revocations::new(
            answer
                .rules
                .iter()
                .map(|rule| {
                    let (target, about) = (rule.target.clone(), rule.about.clone());
                    let rule = Revocation {
                        target,
                        about,
                        reason: rule.reason,
                        at: rule.at,
                        until: rule.until,
                    };
                    ("r".into(), rule.into())
                })
                .take(1)
        ),
        &held
    ));
    let ended = async {
        loop {
            if let Err(status) = stream.next().await {
                return status;
            }
        }
    };
    soon(ended).await;
    let asked = client
        .node
        .sign(v1::SignRequest { items: vec![item("web", &key())], ..v1::SignRequest::default() })
        .await;
    let issued = asked.is_ok_and(|answer| {
        let results = answer.into_inner().results;
        results
            .iter()
            .any(|result| matches!(result.outcome, Some(v1::sign_result::Outcome::Issued(_))))
    });
    assert!(!issued, "nothing is issued through it any more");
    let again = Agent::join(&realm, &running, &[]).await;
    let mut client = again.client(&realm, &running).await;
    svid(&again, &realm, &mut client, "web").await;
    running.stop().await;
    realm.verify_everything().await;
}

#[tokio::test]
async fn removed_workload_and_removed_node_take_out_of_service_what_they_hold() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    running.apply(vec![workload("web", &[]), workload("orders", &[])]).await;
    let agent = Agent::join(&realm, &running, &[]).await;
    let mut client = agent.client(&realm, &running).await;
    let (web, orders) = (
        svid(&agent, &realm, &mut client, "web").await,
        svid(&agent, &realm, &mut client, "orders").await,
    );
    let kind = countersign_api::resource::Kind::Workload;
    running.admin.remove_resource(kind, &"web".parse().unwrap()).await.unwrap();
    let rules = async || {
        let listed = running.admin.revocations().await.unwrap().rules;
        Revocations::new(listed.into_iter().map(|rule| {
            let (name, target, about) = (rule.name.as_str().into(), rule.target, rule.about);
            let (reason, at, until) = (rule.reason, rule.at, rule.until);
            (name, Revocation { target, about, reason, at, until }.into())
        }))
    };
    let now = rules().await;
    assert!(covers(&now, &web) && !covers(&now, &orders));
    running.admin.remove_node(agent.node).await.unwrap();
    assert!(covers(&rules().await, &orders));
    running.stop().await;
    realm.verify_everything().await;
}

pub(super) async fn point_ack(
    realm: &Realm,
    running: &Running,
    agent: &Agent,
) -> (Client, super::sync::Stream) {
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
async fn rule_is_dropped_when_it_is_moot_and_not_a_moment_before() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    running.apply(vec![workload("web", &[])]).await;
    let agent = Agent::join(&realm, &running, &[]).await;
    let mut client = agent.client(&realm, &running).await;
    svid(&agent, &realm, &mut client, "web").await;
    let answer = revoke(&running, Target::Identity(id("web")), Reason::KeyCompromise).await;
    let until = answer.rules[0].until;
    let rules = async || running.admin.revocations().await.unwrap().rules.len();
    // The moment itself is not after it.
    realm.clock.advance((until + SKEW_ALLOWED).since(realm.clock.now()));
    for _look in 0..20 {
        assert_eq!(rules().await, 1);
    }
    realm.clock.advance(Duration::from_secs(61));
    soon(async {
        while rules().await != 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    running.stop().await;
    realm.verify_everything().await;
}

#[tokio::test]
async fn issued_before_a_moment_covers_rather_more_than_less() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    running.apply(vec![workload("web", &[])]).await;
    let agent = Agent::join(&realm, &running, &[]).await;
    let mut client = agent.client(&realm, &running).await;
    let old = svid(&agent, &realm, &mut client, "web").await;
    let moment = realm.clock.now();
    realm.clock.advance(Duration::from_secs(120));
    running.apply(vec![workload("other", &[])]).await;
    running.apply(vec![workload("another", &[])]).await;
    let new = svid(&agent, &realm, &mut client, "web").await;
    let asked = RevokeRequest {
        issued_before: Some(moment),
        ..request(Target::Identity(id("web")), Reason::KeyCompromise)
    };
    let answer = running.admin.revoke(&asked).await.unwrap();
    let rule = &answer.rules[0];
    let told = Revocation {
        target: rule.target.clone(),
        about: None,
        reason: rule.reason,
        at: rule.at,
        until: rule.until,
    };
    let told = Revocations::new([("r".into(), told.into())]);
    assert!(covers(&told, &old) && !covers(&told, &new), "{:?}", rule.target);
    running.stop().await;
    realm.verify_everything().await;
}

async fn shows_itself(realm: &Realm, running: &Running) -> bool {
    let contact = FirstContact {
        pin: realm.trust,
        domain: Some(super::DOMAIN.parse().unwrap()),
        alpn: vec![b"h2".to_vec()],
        timeout: Duration::from_secs(10),
    };
    let tcp = TcpStream::connect(running.address()).await.unwrap();
    countersign_tls::connect_pinned(&realm.time(), tcp, &contact).await.is_ok()
}

#[tokio::test]
async fn revoked_issuer_has_a_successor_first_and_what_it_signed_is_covered() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    running.apply(vec![workload("web", &[])]).await;
    let agent = Agent::join(&realm, &running, &[]).await;
    let mut client = agent.client(&realm, &running).await;
    let old = svid(&agent, &realm, &mut client, "web").await;
    let dry = RevokeRequest {
        dry_run: true,
        ..request(Target::Authority(old.issuer), Reason::AuthorityCompromise)
    };
    assert!(1 <= running.admin.revoke(&dry).await.unwrap().covered);
    let answer = revoke(&running, Target::Authority(old.issuer), Reason::AuthorityCompromise).await;
    assert_eq!(answer.rules[0].target, Revoked::Authority(old.issuer));
    // Who has its key can make certificates that end when the issuer does.
    assert!(realm.clock.now() + Duration::from_secs(6 * 86_400) < answer.rules[0].until);
    let unknown = "aa".repeat(32).parse().unwrap();
    let asked = request(Target::Authority(unknown), Reason::AuthorityCompromise);
    refused(running.admin.revoke(&asked).await, Code::NotFound);
    // What the server itself showed is covered as well: it shows its successor in a moment.
    soon(async {
        while !shows_itself(&realm, &running).await {
            tokio::task::yield_now().await;
        }
    })
    .await;
    // So is what the agent shows: it comes anew.
    let again = Agent::join(&realm, &running, &[]).await;
    let mut client = again.client(&realm, &running).await;
    let new = svid(&again, &realm, &mut client, "web").await;
    assert_ne!(new.issuer, old.issuer);
    let listed = running.admin.revocations().await.unwrap().rules;
    let rules = Revocations::new(listed.into_iter().map(|rule| {
        let (name, target, about) = (rule.name.as_str().into(), rule.target, rule.about);
        let (reason, at, until) = (rule.reason, rule.at, rule.until);
        (name, Revocation { target, about, reason, at, until }.into())
    }));
    assert!(covers(&rules, &old) && !covers(&rules, &new));
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

#[tokio::test]
async fn rule_of_a_removed_workload_outlasts_what_was_issued_under_a_longer_limit() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    let long = serde_json::json!({
        "apiVersion": "countersign.dev/v1alpha1", "kind": "Workload", "metadata": { "name": "web" },
        "spec": { "selectors": ["launch:web"], "lifetime": "20h" },
    });
    running.apply(vec![long]).await;
    let agent = Agent::join(&realm, &running, &[]).await;
    let mut client = agent.client(&realm, &running).await;
    let held = svid(&agent, &realm, &mut client, "web").await;
    let short = serde_json::json!({
        "apiVersion": "countersign.dev/v1alpha1", "kind": "TrustDomain", "metadata": { "name": "shop" },
        "spec": { "trustDomain": super::DOMAIN, "lifetimeMax": "1h", "svidLifetime": "1h", "agentLifetime": "1h" },
    });
    let web = workload("web", &[]);
    running.apply(vec![short, web]).await;
    let kind = countersign_api::resource::Kind::Workload;
    running.admin.remove_resource(kind, &"web".parse().unwrap()).await.unwrap();
    let rules = running.admin.revocations().await.unwrap().rules;
    assert!(held.expires <= rules[0].until, "{} ends before {}", rules[0].until, held.expires);
    running.stop().await;
    realm.verify_everything().await;
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
