//! Taking out of service: what agents are told, and what is refused.

use std::time::Duration;

use countersign_api::admin::{AdminError, Leaked, Reissue, RevokeRequest, RevokeResponse, Target};
use countersign_api::v1;
use countersign_identity::{
    Clock as _, Code, Presented, Reason, Revision, Revocation, Revocations, Revoked, SKEW_ALLOWED,
    SpiffeId,
};
use countersign_pki::{Certificate, KeyKind, PrivateKey, Verified};
use countersign_tls::FirstContact;
use tokio::net::TcpStream;

use super::sign::{item, sign};
use super::sync::open;
use super::{Agent, Client, Realm, Running, code, soon, workload};

pub(super) fn id(name: &str) -> SpiffeId {
    format!("spiffe://shop.example/{name}").parse().unwrap()
}

pub(super) fn request(target: Target, reason: Reason) -> RevokeRequest {
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
pub(super) fn refused<T: std::fmt::Debug>(result: Result<T, AdminError>, expected: Code) {
    let error = result.unwrap_err();
    assert_eq!(error.code(), expected, "{error}");
}

pub(super) fn key() -> PrivateKey {
    PrivateKey::generate(KeyKind::P256).unwrap()
}

pub(super) async fn svid(
    agent: &Agent,
    realm: &Realm,
    client: &mut Client,
    name: &str,
) -> Verified {
    let issued = sign(client, vec![item(name, &key())]).await.remove(0).unwrap();
    agent.verify(realm, &issued.chain)
}

pub(super) fn rules(records: &[v1::Record]) -> Revocations {
    let rules = records.iter().filter(|record| record.kind == "Revocation").map(|record| {
        let rule: Revocation = serde_json::from_slice(&record.value).unwrap();
        (record.name.as_str().into(), rule.into())
    });
    Revocations::new(rules)
}

pub(super) fn covers(rules: &Revocations, svid: &Verified) -> bool {
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

/// Whoever names a moment covers what was issued before it, and not what is issued well after it.
async fn covers_what_was_before(
    realm: &Realm,
    running: &Running,
    (agent, client): (&Agent, &mut Client),
) {
    let old = svid(agent, realm, client, "web").await;
    let moment = realm.clock.now();
    realm.clock.advance(Duration::from_secs(120));
    running.apply(vec![workload("other", &[])]).await;
    running.apply(vec![workload("another", &[])]).await;
    let new = svid(agent, realm, client, "web").await;
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
}

#[tokio::test]
async fn issued_before_a_moment_covers_rather_more_than_less() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    running.apply(vec![workload("web", &[])]).await;
    let agent = Agent::join(&realm, &running, &[]).await;
    let mut client = agent.client(&realm, &running).await;
    covers_what_was_before(&realm, &running, (&agent, &mut client)).await;
    running.stop().await;
    realm.verify_everything().await;
}

#[tokio::test]
async fn clock_that_was_ahead_once_stops_issuing_until_an_operator_accepts_the_present_one() {
    let realm = Realm::begin().await;
    let noon = realm.clock.now();
    let running = realm.serve().await;
    running.apply(vec![workload("web", &[])]).await;
    let agent = Agent::join(&realm, &running, &[]).await;
    assert_eq!(running.admin.accept_clock().await.unwrap_err().code(), Code::NotFound);
    running.stop().await;
    // A life five days ahead writes into the log, and the clock is set right.
    realm.clock.set(noon + Duration::from_secs(5 * 86_400));
    let running = realm.serve().await;
    for number in 0..40 {
        running.apply(vec![workload(&format!("ahead{number}"), &[])]).await;
    }
    running.stop().await;
    realm.clock.set(noon + Duration::from_secs(60));
    let running = realm.serve().await;
    let unready = running.admin.ready().await.unwrap_err();
    assert!(unready.to_string().contains("resume-issuing --clock"), "{unready}");
    running.admin.accept_clock().await.unwrap();
    running.admin.ready().await.unwrap();
    assert_eq!(running.admin.accept_clock().await.unwrap_err().code(), Code::NotFound);
    running.stop().await;
    // It holds in its next life.
    let running = realm.serve().await;
    running.admin.ready().await.unwrap();
    let mut client = agent.client(&realm, &running).await;
    // The log's times are not in order: what was issued before a moment is covered all the same.
    covers_what_was_before(&realm, &running, (&agent, &mut client)).await;
    running.stop().await;
    realm.verify_everything().await;
}

pub(super) async fn shows_itself(realm: &Realm, running: &Running) -> bool {
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
