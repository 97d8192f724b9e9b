//! Authorities that are succeeded on a real server: what agents are shown, and what is on record.

use std::time::Duration;

use countersign_api::admin::{
    AdminError, AuthoritiesResponse, RecoverRequest, RootState, Step, StepRequest,
};
use countersign_identity::{Code, KeyId};
use countersign_pki::{Bundle, Bundles, Role};

use super::sign::{item, sign};
use super::{Agent, DOMAIN, Realm, Running, soon, workload};

pub(super) async fn step(running: &Running, step: Step) {
    let forced = StepRequest { force: Some("a test".to_owned()), ..StepRequest::default() };
    running.admin.walk(step, &forced).await.unwrap();
}

pub(super) async fn authorities(running: &Running) -> AuthoritiesResponse {
    running.admin.authorities().await.unwrap()
}

pub(super) fn in_state(listed: &AuthoritiesResponse, state: RootState) -> KeyId {
    listed.roots.iter().find(|root| root.state == state).unwrap().key
}

/// Lets simulated time go on until nothing is under way.
pub(super) async fn until_ended(realm: &Realm, running: &Running) -> AuthoritiesResponse {
    soon(async {
        loop {
            let listed = authorities(running).await;
            if listed.order.is_none() {
                return listed;
            }
            realm.clock.advance(Duration::from_millis(500));
            tokio::task::yield_now().await;
        }
    })
    .await
}

#[tokio::test]
async fn agent_that_missed_a_rotation_reaches_the_newer_root_from_the_one_that_it_knows() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    running.apply(vec![workload("web", &[])]).await;
    let agent = Agent::join(&realm, &running, &[]).await;
    for one in [Step::Prepare, Step::Publish, Step::Activate] {
        step(&running, one).await;
    }
    let listed = authorities(&running).await;
    let (old, new) = (in_state(&listed, RootState::Retiring), in_state(&listed, RootState::Active));
    assert_eq!(agent.bundle.authorities[0].key_id(), old);
    // Its bundle holds the old root alone.
    soon(async {
        loop {
            let mut client = agent.client(&realm, &running).await;
            let key = key();
            let issued = sign(&mut client, vec![item("web", &key)]).await.remove(0).unwrap();
            let chain: Vec<&[u8]> = issued.chain.iter().map(AsRef::as_ref).collect();
            let bundle =
                Bundle::parse_json(DOMAIN.parse().unwrap(), &running.admin.bundle().await.unwrap())
                    .unwrap();
            let bundles = Bundles::new(vec![bundle]).unwrap();
            let now = countersign_identity::Clock::now(&*realm.clock);
            let verified = countersign_pki::verify(&chain, &bundles, Role::Client, now).unwrap();
            if verified.anchor == new {
                return;
            }
        }
    })
    .await;
    running.stop().await;
    realm.verify_everything().await;
}

fn key() -> countersign_pki::PrivateKey {
    countersign_pki::PrivateKey::generate(countersign_pki::KeyKind::P256).unwrap()
}

#[tokio::test]
async fn walk_goes_on_after_a_restart_and_every_step_is_on_record() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    step(&running, Step::Prepare).await;
    step(&running, Step::Publish).await;
    running.stop().await;

    let running = realm.serve().await;
    step(&running, Step::Activate).await;
    let listed = authorities(&running).await;
    let old = in_state(&listed, RootState::Retiring);
    running.stop().await;

    // The keys open again, and the root that signs is the new one.
    let running = realm.serve().await;
    let retire = StepRequest { force: Some("a test".to_owned()), ..StepRequest::default() };
    running.admin.walk(Step::Retire, &retire).await.unwrap();
    let listed = until_ended(&realm, &running).await;
    assert_eq!(in_state(&listed, RootState::Retired), old);
    let bundle = running.admin.bundle().await.unwrap();
    let bundle = Bundle::parse_json(DOMAIN.parse().unwrap(), &bundle).unwrap();
    assert_eq!(bundle.authorities.len(), 1, "the old root has left it");
    assert!(bundle.retiring.is_empty());
    let events = running.admin.events(1000, None).await.unwrap();
    let walked: Vec<_> = events
        .events
        .iter()
        .filter(|event| event.kind == "authority-walked")
        .map(|event| event.details["step"].as_str().unwrap_or_default().to_owned())
        .collect();
    for expected in ["prepare", "publish", "activate", "supersede", "retire", "confirm"] {
        assert!(walked.iter().any(|step| step == expected), "no {expected} in {walked:?}");
    }
    running.stop().await;
    realm.verify_everything().await;
}

#[tokio::test]
async fn key_of_a_retired_root_is_gone_for_ever() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    for one in [Step::Prepare, Step::Publish, Step::Activate, Step::Retire] {
        step(&running, one).await;
    }
    let listed = until_ended(&realm, &running).await;
    let old = in_state(&listed, RootState::Retired);
    let again = running.admin.walk(Step::Rollback, &StepRequest::default()).await;
    assert!(matches!(again, Err(AdminError::Refused(_))), "{again:?}");
    running.stop().await;
    let store = super::SqliteStore::open(
        &realm.data(),
        std::sync::Arc::new(countersign_identity::SystemEntropy),
    )
    .unwrap();
    let kept = countersign_store::Store::secret(&store, &format!("authority/root/{old}")).await;
    assert!(kept.unwrap().unwrap().is_empty(), "no sealed key is left");
}

#[tokio::test]
async fn recovery_is_refused_for_who_is_no_authority_and_for_who_is_trusted_nowhere() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    let recover =
        |compromised| RecoverRequest { compromised, dry_run: false, reason: None, root_key: None };
    let unknown = running.admin.recover(&recover("ab".repeat(32).parse().unwrap())).await;
    assert_eq!(unknown.unwrap_err().code(), Code::NotFound);
    for one in [Step::Prepare, Step::Publish, Step::Activate, Step::Retire] {
        step(&running, one).await;
    }
    let listed = until_ended(&realm, &running).await;
    let retired = in_state(&listed, RootState::Retired);
    assert_eq!(running.admin.recover(&recover(retired)).await.unwrap_err().code(), Code::NotFound);
    running.stop().await;
}

#[tokio::test]
async fn words_that_force_a_step_are_not_empty_and_not_a_book() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    for (words, code) in [("  ".to_owned(), Code::NotUnderstood), ("x".repeat(513), Code::TooLarge)]
    {
        let request = StepRequest { force: Some(words), ..StepRequest::default() };
        let refused = running.admin.walk(Step::Prepare, &request).await.unwrap_err();
        assert_eq!(refused.code(), code, "{refused}");
    }
    assert_eq!(authorities(&running).await.roots.len(), 1, "nothing was made");
    running.stop().await;
}

#[tokio::test]
async fn schedule_prepares_in_time_with_what_is_declared_and_asks_an_operator_before_it_signs() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    running
        .apply(vec![serde_json::json!({
            "apiVersion": "countersign.dev/v1alpha1", "kind": "Authority",
            "metadata": { "name": "roots" },
            "spec": {
                "keyType": "ed25519", "rootLifetime": "100d", "prepareBefore": "30d",
                "approve": "operator",
            },
        })])
        .await;
    let day = Duration::from_secs(86_400);
    let first = in_state(&authorities(&running).await, RootState::Active);
    // The first root lives for a year. Day by day, as renewals of the server's own credential need it.
    for _day in 0..334 {
        realm.clock.advance(day);
        tokio::task::yield_now().await;
    }
    assert_eq!(authorities(&running).await.roots.len(), 1, "31 days are left");
    realm.clock.advance(day * 2);
    let waiting = soon(async {
        loop {
            realm.clock.advance(Duration::from_secs(1));
            tokio::task::yield_now().await;
            let listed = authorities(&running).await;
            if listed.roots.iter().any(|root| root.state == RootState::Published) {
                return listed;
            }
        }
    })
    .await;
    let order = waiting.order.unwrap();
    assert_eq!(order.actor, "schedule");
    let gate = order.steps.iter().find_map(|step| step.gate.as_ref()).unwrap();
    assert!(gate.why.contains("an operator has to say"), "{}", gate.why);
    assert_eq!(in_state(&authorities(&running).await, RootState::Active), first);

    running.admin.walk(Step::Activate, &StepRequest::default()).await.unwrap();
    let ended = until_ended(&realm, &running).await;
    let new = ended.roots.iter().find(|root| root.state == RootState::Active).unwrap();
    assert_eq!(in_state(&ended, RootState::Retired), first);
    let certificate = countersign_pki::Certificate::from_pem(&new.certificate).unwrap();
    let key = certificate.public_key().unwrap();
    assert_eq!(key.kind(), countersign_pki::KeyKind::Ed25519);
    let validity = certificate.validity();
    assert_eq!(validity.not_after.since(new.since).as_secs() / 86_400, 99, "its 100 days run");
    running.stop().await;
    realm.verify_everything().await;
}
