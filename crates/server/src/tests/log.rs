//! The audit log of a real server: signed, proven, refused when it is not what was signed, and trimmed.

use std::time::Duration;

use countersign_api::admin::EventFilter;
use countersign_audit::{Bundle, Checkpoint, NoteKey};
use countersign_identity::Code;
use countersign_pki::Certificate;

use super::{Agent, Realm, Running, soon};
use crate::config::Config;

async fn key(running: &Running) -> NoteKey {
    running.admin.log(None).await.unwrap().key.unwrap().parse().unwrap()
}

/// The newest checkpoint, once it covers so many events.
async fn signed(running: &Running, size: u64) -> Checkpoint {
    let key = key(running).await;
    soon(async {
        loop {
            if let Ok(note) = running.admin.checkpoint(None).await
                && let Ok((checkpoint, _)) = Checkpoint::open(&note, std::slice::from_ref(&key))
                && size <= checkpoint.size
            {
                return checkpoint;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
}

#[tokio::test]
async fn every_issued_certificate_is_proven_by_its_serial_also_when_its_row_is_gone() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    let agent = Agent::join(&realm, &running, &[]).await;
    let certificate = Certificate::parse(&agent.chain[0]).unwrap();
    let serial = certificate.serial().unwrap();
    let proof = running.admin.proof_of(serial).await.unwrap();
    let trusted = [key(&running).await];
    assert_eq!(proof.key, trusted[0].to_string());
    let proven = Bundle::parse(proof.bundle.as_bytes()).unwrap().verify(&trusted).unwrap();
    assert_eq!(proven.entry.tbs, Some(certificate.tbs_digest()));
    assert_eq!(proven.checkpoint.origin.to_string(), "shop.example/log/1");
    // Days later the row is trimmed; the log is what it was.
    running.stop().await;
    realm.clock.advance(Duration::from_secs(86_400 * 3));
    let running = realm.serve().await;
    soon(async {
        while running.admin.log(None).await.unwrap().counted < Some(8) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let again = running.admin.proof_of(serial).await.unwrap();
    assert_eq!(again.index, proof.index);
    let proven = Bundle::parse(again.bundle.as_bytes()).unwrap().verify(&trusted).unwrap();
    assert_eq!(proven.entry.serial, Some(serial));
    let unknown = countersign_identity::Serial::from_bytes([0x11; 16]).unwrap();
    assert_eq!(running.admin.proof_of(unknown).await.unwrap_err().code(), Code::NotFound);
    running.stop().await;
    realm.verify_everything().await;
}

#[tokio::test]
async fn what_is_signed_grows_and_is_all_there_when_the_server_has_stopped() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    let first = signed(&running, 1).await;
    for _ in 0..3 {
        running.token(&[]).await;
    }
    let second = signed(&running, first.size + 3).await;
    assert!(first.size < second.size);
    running.token(&[]).await;
    let count = running.log_size().await;
    running.stop().await;
    let running = realm.serve().await;
    let kept = running.admin.log(None).await.unwrap().checkpoints;
    let trusted = [key(&running).await];
    let sizes: Vec<u64> = kept
        .iter()
        .map(|note| Checkpoint::open(note.as_bytes(), &trusted).unwrap().0.size)
        .collect();
    assert!(sizes.contains(&count), "{sizes:?}, {count}");
    running.stop().await;
}

#[tokio::test]
async fn events_are_found_by_each_condition_and_by_all_together() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    let agent = Agent::join(&realm, &running, &[]).await;
    let serial = Certificate::parse(&agent.chain[0]).unwrap().serial().unwrap();
    let search = async |filter: EventFilter| {
        let page = running.admin.search(&filter, 100, None).await.unwrap();
        assert_eq!(page.next, None);
        page.events
    };
    let all = search(EventFilter::default()).await;
    let issued = search(EventFilter { serial: Some(serial), ..EventFilter::default() }).await;
    assert_eq!(issued.len(), 1);
    let one = &issued[0];
    let exact = EventFilter {
        kind: Some(one.kind.clone()),
        subject: Some(one.subject.clone()),
        actor: Some(one.actor.clone()),
        serial: one.serial,
        since: Some(one.at),
        until: Some(one.at + Duration::from_secs(1)),
        incarnation: Some(1),
    };
    assert_eq!(search(exact.clone()).await, issued);
    let none = |change: fn(&mut EventFilter)| {
        let mut filter = exact.clone();
        change(&mut filter);
        filter
    };
    for filter in [
        none(|filter| filter.kind = Some("server-started".to_owned())),
        none(|filter| filter.subject = Some("spiffe://shop.example/".to_owned())),
        none(|filter| filter.actor = Some("nobody*".to_owned())),
        none(|filter| filter.until = filter.since),
        none(|filter| filter.since = filter.until),
    ] {
        assert_eq!(search(filter.clone()).await, [], "{filter:?}");
    }
    let begins = EventFilter {
        subject: Some("spiffe://shop.example/*".to_owned()),
        ..EventFilter::default()
    };
    let begins = search(begins).await;
    assert!(begins.len() < all.len() && begins.contains(one));
    let unknown = EventFilter { kind: Some("no-such".to_owned()), ..EventFilter::default() };
    let refused = running.admin.search(&unknown, 10, None).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotUnderstood);
    let elsewhere = EventFilter { incarnation: Some(7), ..EventFilter::default() };
    let refused = running.admin.search(&elsewhere, 10, None).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    running.stop().await;
}

#[tokio::test]
async fn dropped_details_leave_every_proof_as_it_was() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    running.token(&[]).await;
    let count = running.log_size().await;
    let before = signed(&running, count).await;
    realm.clock.advance(Duration::from_secs(7200));
    // By this the next life knows that these hours have passed: it would not drop anything yet if it had been away for them.
    running.token(&[]).await;
    running.stop().await;
    let kept = Some(Duration::from_secs(3600));
    let running = realm.start(Config { details_kept: kept, ..realm.config() }).await.unwrap();
    let leaves = async || running.admin.leaves(1, 0, 1000).await.unwrap().leaves;
    let old = usize::try_from(count).unwrap();
    soon(async {
        while leaves().await[1..old].iter().any(|leaf| leaf.details.is_some()) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let leaves = leaves().await;
    assert!(leaves[0].details.is_some(), "the first event binds the log before");
    assert!(leaves[old..].iter().all(|leaf| leaf.details.is_some()), "these are young");
    let proof = running.admin.proof(None, 1).await.unwrap();
    let trusted = [key(&running).await];
    let proven = Bundle::parse(proof.bundle.as_bytes()).unwrap().verify(&trusted).unwrap();
    assert!(before.size <= proven.checkpoint.size);
    let event = running.admin.events(1, Some(0)).await.unwrap().events.remove(0);
    assert_eq!(event.details, serde_json::Value::Null);
    running.stop().await;
}

#[tokio::test]
async fn log_that_is_not_what_was_signed_is_not_signed_any_more_and_the_status_says_so() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    let count = running.log_size().await;
    signed(&running, count).await;
    running.stop().await;
    let database = rusqlite::Connection::open(realm.data().join("state.db")).unwrap();
    database.execute("UPDATE log SET hash = randomblob(32) WHERE log_index = 1", []).unwrap();
    drop(database);
    let running = realm.serve().await;
    soon(async {
        loop {
            let warnings = running.admin.status().await.unwrap().warnings;
            if warnings.iter().any(|text| text.contains("the audit log is not signed")) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    // Nothing of it stops what is served.
    running.token(&[]).await;
    let size = running.log_size().await;
    let refused = running.admin.proof(None, size - 1).await;
    assert_eq!(refused.unwrap_err().code(), Code::NotReady);
    let unread = running.admin.tile(1, "nonsense").await.unwrap_err();
    assert_eq!(unread.code(), Code::NotUnderstood);
    let beyond = running.admin.tile(1, "0/x001/000").await.unwrap_err();
    assert_eq!(beyond.code(), Code::NotFound);
    running.stop().await;
}
