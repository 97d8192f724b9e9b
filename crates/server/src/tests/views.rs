//! Revocation lists over time: on schedule, of issuers that a successor has taken the place of, and as agents get them.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use countersign_api::admin::{CrlResponse, RevokeRequest, Target};
use countersign_api::v1;
use countersign_identity::{Code, KeyId, Reason, Serial, SystemEntropy};
use countersign_pki::{Certificate, Crl};
use countersign_store::{SqliteStore, Store as _};

use super::{Agent, Realm, Running, code, known, nobody, soon};

/// Asks again until the answer is as expected, a moment later each time.
async fn until(
    realm: &Realm,
    running: &Running,
    issuer: Option<KeyId>,
    holds: impl Fn(&CrlResponse) -> bool,
) -> CrlResponse {
    soon(async {
        loop {
            if let Ok(list) = running.admin.crl(issuer, None).await
                && holds(&list)
            {
                return list;
            }
            realm.clock.advance(Duration::from_millis(100));
        }
    })
    .await
}

fn parsed(list: &CrlResponse) -> Crl {
    Crl::parse(&STANDARD.decode(&list.der).unwrap()).unwrap()
}

fn serial(agent: &Agent) -> Serial {
    Certificate::parse(&agent.chain[0]).unwrap().serial().unwrap()
}

#[tokio::test]
async fn lists_are_made_anew_on_schedule_and_at_each_revocation() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    let agent = Agent::join(&realm, &running, &[]).await;
    let first = until(&realm, &running, None, |_| true).await;
    assert_eq!((first.count, first.issuers.len()), (0, 2));
    realm.clock.advance(Duration::from_secs(15 * 60));
    let second = until(&realm, &running, None, |list| list.number != first.number).await;
    assert!(parsed(&first).number < parsed(&second).number);
    let later = second.next_update.since(first.next_update).as_secs();
    assert!((900..960).contains(&later), "{later} s later");
    let targets = vec![Target::Serial(serial(&agent))];
    let request = RevokeRequest { targets, reason: Reason::Superseded, ..revoke_nothing() };
    running.admin.revoke(&request).await.unwrap();
    // No waiting here: what is asked for after a revocation tells it.
    let third = running.admin.crl(None, None).await.unwrap();
    assert_eq!(third.count, 1);
    assert!(parsed(&third).entries.contains_key(&serial(&agent)));
    assert!(parsed(&second).number < parsed(&third).number);
    running.stop().await;
    realm.verify_everything().await;
}

fn revoke_nothing() -> RevokeRequest {
    RevokeRequest {
        targets: Vec::new(),
        reason: Reason::Unspecified,
        issued_before: None,
        reissue: countersign_api::admin::Reissue::ByReason,
        dry_run: false,
    }
}

#[tokio::test]
async fn former_issuer_has_lists_until_its_last_certificate_has_ended() {
    let realm = Realm::begin().await;
    // An hour before a successor is due.
    realm.clock.advance(Duration::from_secs(7 * 43_200 - 3600));
    let running = realm.serve().await;
    let agent = Agent::join(&realm, &running, &[]).await;
    let former = until(&realm, &running, None, |_| true).await.issuer;
    realm.clock.advance(Duration::from_secs(2 * 3600));
    let list = until(&realm, &running, None, |list| list.issuer != former).await;
    assert_eq!(list.issuers.len(), 3, "both issuers and the root");
    let targets = vec![Target::Serial(serial(&agent))];
    let request = RevokeRequest { targets, reason: Reason::KeyCompromise, ..revoke_nothing() };
    running.admin.revoke(&request).await.unwrap();
    let list = running.admin.crl(Some(former), None).await.unwrap();
    assert_eq!(list.count, 1);
    let issuer = Certificate::parse(&agent.chain[1]).unwrap();
    assert!(parsed(&list).is_of(&issuer));
    // A server that begins anew finds the key of the former issuer where it was kept.
    running.stop().await;
    let running = realm.serve().await;
    let list = until(&realm, &running, Some(former), |list| list.count == 1).await;
    assert!(parsed(&list).is_of(&issuer));
    // All that it signed has ended: nothing more is told about it, and its key is no more.
    realm.clock.advance(Duration::from_secs(25 * 3600));
    until(&realm, &running, None, |list| list.issuers.len() == 2).await;
    let refused = running.admin.crl(Some(former), None).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    running.stop().await;
    let store = SqliteStore::open(&realm.data(), Arc::new(SystemEntropy)).unwrap();
    let kept = store.secret(&format!("authority/issuer/{former}")).await.unwrap();
    assert_eq!(kept, Some(Vec::new()));
}

#[tokio::test]
async fn agents_get_all_lists_and_strangers_none() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    let agent = Agent::join(&realm, &running, &[]).await;
    let client = known(&realm, &running, &agent.bundle, &agent.chain, &agent.key).await;
    let revision = running.admin.status().await.unwrap().revision;
    let request = v1::ListsRequest { revision: Some(revision.into()) };
    let answer = client.node.lists(request).await.unwrap().into_inner();
    assert_eq!(answer.lists.len(), 2);
    for list in &answer.lists {
        Crl::parse(list).unwrap();
    }
    // What this server has not heard of yet it does not claim to tell.
    let later = countersign_identity::Revision { number: revision.number + 9, ..revision };
    let request = v1::ListsRequest { revision: Some(later.into()) };
    let refused = client.node.lists(request).await.unwrap_err();
    assert_eq!(code(&refused), Code::NotReady);
    let nobody = nobody(&realm, &running).await;
    let refused = nobody.node.lists(v1::ListsRequest::default()).await.unwrap_err();
    assert_eq!(code(&refused), Code::Unauthenticated);
    running.stop().await;
}
