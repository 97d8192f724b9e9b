//! A trust domain that lost something: a new incarnation, and what agents hand back.

use std::time::Duration;

use bytes::Bytes;
use countersign_api::admin::{Reissue, RevocationsResponse, RevokeRequest, Target};
use countersign_api::v1;
use countersign_identity::{Clock as _, Code, Reason, Revision, SystemEntropy};
use countersign_pki::{KeyKind, PrivateKey};
use countersign_store::{SqliteStore, Store as _, verify_everything};

use super::sign::{item, sign};
use super::sync::{open, open_with};
use super::{Agent, Client, DOMAIN, Realm, Running, code, workload};

pub(super) fn key() -> PrivateKey {
    PrivateKey::generate(KeyKind::P256).unwrap()
}

pub(super) async fn revoke(running: &Running, target: Target, reason: Reason) {
    let (targets, reissue) = (vec![target], Reissue::ByReason);
    let request = RevokeRequest { targets, reason, issued_before: None, reissue, dry_run: false };
    running.admin.revoke(&request).await.unwrap();
}

async fn hand_back(
    client: &mut Client,
    records: Vec<v1::SignedRecord>,
) -> Result<u64, tonic::Status> {
    let answer = client.node.hand_back(v1::HandBackRequest { records }).await?;
    Ok(answer.into_inner().taken)
}

#[tokio::test]
async fn what_was_revoked_after_the_backup_is_taken_back_from_agents_before_anything_is_issued() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    running.apply(vec![workload("web", &[]), workload("orders", &[])]).await;
    let agent = Agent::join(&realm, &running, &[]).await;
    let gone = Agent::join(&realm, &running, &[]).await;
    realm.save().await;
    let mut client = agent.client(&realm, &running).await;
    let mut stream = open(&mut client, None).await.unwrap();
    stream.snapshot().await;
    let lost = sign(&mut client, vec![item("web", &key())]).await.remove(0).unwrap();
    let orders = "spiffe://shop.example/orders".parse().unwrap();
    revoke(&running, Target::Identity(orders), Reason::ProcessCompromise).await;
    stream.changes().await;
    revoke(&running, Target::Node(gone.node), Reason::NodeCompromise).await;
    stream.changes().await;
    let before = running.admin.status().await.unwrap();
    let kinds = |kind: &str| stream.signed.iter().filter(|record| record.kind == kind).count();
    assert!(2 <= kinds("Revocation") && kinds("Suspension") == 2, "{:?}", stream.signed);
    running.stop().await;

    let report = realm.restore(&realm.restoring("e")).await.unwrap();
    assert_eq!(report.trust_domain.as_str(), DOMAIN);
    assert!(before.revision < report.revision, "{report:?}");
    let running = realm.serve_at("e").await;
    let status = running.admin.status().await.unwrap();
    let incarnation = status.incarnation.unwrap();
    assert_eq!(incarnation.held_until, Some(report.hold_until));
    assert_eq!((incarnation.log_before.size, incarnation.log_before.root), report.log);
    assert!(status.warnings.iter().any(|warning| warning.contains("resume-issuing")));
    // Who enforces what is not there nobody can say, wherever points are.
    let asked = running.admin.convergence(Some(before.revision), Duration::ZERO).await;
    assert_eq!(asked.unwrap_err().code(), Code::NotConverged);
    running.admin.convergence(Some(report.revision), Duration::ZERO).await.unwrap();
    // The agent comes with the certificate that it has, and is told everything.
    let mut client = agent.client(&realm, &running).await;
    let mut again = open(&mut client, stream_revision(&before.revision)).await.unwrap();
    assert_eq!(
        Revision::from(again.snapshot().await.revision.unwrap()).incarnation,
        report.revision.incarnation
    );
    let refused = client
        .node
        .sign(v1::SignRequest { items: vec![item("web", &key())], ..v1::SignRequest::default() })
        .await
        .unwrap_err();
    assert_eq!(code(&refused), Code::NotReady);
    let taken = hand_back(&mut client, stream.signed.clone()).await.unwrap();
    assert!(4 <= taken, "{taken}");
    assert_eq!(hand_back(&mut client, stream.signed.clone()).await.unwrap(), 0, "it knows them");
    let RevocationsResponse { rules, suspensions, .. } = running.admin.revocations().await.unwrap();
    assert!(
        rules
            .iter()
            .any(|rule| rule.target.to_string().starts_with("spiffe://shop.example/orders"))
    );
    assert_eq!(suspensions.len(), 2, "{suspensions:?}");
    // Issued anew after the hold-off, and what was taken back holds.
    realm.clock.advance(Duration::from_secs(61));
    let issued = sign(&mut client, vec![item("web", &key()), item("orders", &key())]).await;
    let web = agent.verify(&realm, &issued[0].as_ref().unwrap().chain);
    assert_eq!(web.provenance().unwrap().revision.incarnation, report.revision.incarnation);
    assert_eq!(issued[1], Err(Code::Suspended));
    // One lifetime later what is of the earlier incarnation is covered, and nothing else.
    realm.clock.advance(Duration::from_secs(62 * 60));
    let covered = async {
        loop {
            let rules = running.admin.revocations().await.unwrap().rules;
            if let Some(rule) =
                rules.into_iter().find(|rule| rule.target.to_string().starts_with("everything"))
            {
                return rule;
            }
            tokio::task::yield_now().await;
        }
    };
    let rule = super::soon(covered).await;
    let countersign_identity::Revoked::Earlier { before: cut_off, .. } = &rule.target else {
        panic!("{rule:?}")
    };
    let of_lost = agent.verify_at(&lost.chain).provenance().unwrap().revision;
    assert!(of_lost < *cut_off && *cut_off < web.provenance().unwrap().revision);
    running.stop().await;
    let store = SqliteStore::open(&realm.place("e"), std::sync::Arc::new(SystemEntropy)).unwrap();
    verify_everything(&store).await.unwrap();
    assert_eq!(store.past_incarnation(0).await.unwrap(), Some(1));
}

fn stream_revision(revision: &Revision) -> Option<Revision> {
    Some(*revision)
}

impl Agent {
    fn verify_at(&self, chain: &[Bytes]) -> countersign_pki::Certificate {
        assert!(!chain.is_empty() && !self.chain.is_empty());
        countersign_pki::Certificate::parse(&chain[0]).unwrap()
    }
}

#[tokio::test]
async fn an_agent_cannot_invent_rules_nor_change_those_that_were_made() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    running.apply(vec![workload("web", &[])]).await;
    let agent = Agent::join(&realm, &running, &[]).await;
    let mut client = agent.client(&realm, &running).await;
    let mut stream = open(&mut client, None).await.unwrap();
    stream.snapshot().await;
    let web = "spiffe://shop.example/web".parse().unwrap();
    revoke(&running, Target::Identity(web), Reason::KeyCompromise).await;
    stream.changes().await;
    let made = stream.signed.remove(0);
    let revision = running.admin.status().await.unwrap().revision;
    let forged = |change: fn(&mut v1::SignedRecord)| {
        let mut record = made.clone();
        change(&mut record);
        record
    };
    let wide = |record: &mut v1::SignedRecord| {
        let text = String::from_utf8(record.value.to_vec()).unwrap();
        record.value = text.replace("shop.example/web", "shop.example/bank").into();
    };
    for record in [
        forged(wide),
        forged(|record| record.name = "9.9.9".to_owned()),
        forged(|record| {
            record.name = "9.9.9".to_owned();
            record.signature = Bytes::from_static(&[0; 64]);
        }),
        forged(|record| record.kind = "Workload".to_owned()),
        forged(|record| record.kind = "Nonsense".to_owned()),
    ] {
        let refused = hand_back(&mut client, vec![made.clone(), record]).await.unwrap_err();
        assert_eq!(code(&refused), Code::Forbidden);
    }
    let many = vec![made.clone(); 1025];
    assert_eq!(code(&hand_back(&mut client, many).await.unwrap_err()), Code::TooLarge);
    assert_eq!(hand_back(&mut client, vec![made; 1024]).await.unwrap(), 0);
    let after = running.admin.status().await.unwrap().revision;
    assert_eq!(after, revision, "nothing was committed");
    // A key of another trust domain vouches for nothing here.
    let other = Realm::begin().await;
    let theirs = other.serve().await;
    theirs.apply(vec![workload("web", &[])]).await;
    let foreign = Agent::join(&other, &theirs, &[]).await;
    let mut their_client = foreign.client(&other, &theirs).await;
    let mut their_stream = open(&mut their_client, None).await.unwrap();
    their_stream.snapshot().await;
    let bank = "spiffe://shop.example/bank".parse().unwrap();
    revoke(&theirs, Target::Identity(bank), Reason::KeyCompromise).await;
    their_stream.changes().await;
    let refused = hand_back(&mut client, their_stream.signed).await.unwrap_err();
    assert_eq!(code(&refused), Code::Forbidden);
    theirs.stop().await;
    running.stop().await;
}

#[tokio::test]
async fn a_server_whose_store_is_behind_what_an_agent_has_seen_begins_a_new_incarnation() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    running.apply(vec![workload("web", &[])]).await;
    let agent = Agent::join(&realm, &running, &[]).await;
    realm.save().await;
    running.apply(vec![workload("orders", &[])]).await;
    let mut client = agent.client(&realm, &running).await;
    let snapshot = open(&mut client, None).await.unwrap().snapshot().await;
    let (reached, witness) = (snapshot.revision, snapshot.witness);
    running.stop().await;
    // A copy of yesterday in the place of the store, which nobody told the server of, nor what it had seen.
    let report = realm.restore(&realm.restoring("e")).await.unwrap();
    let old = realm.data().join("state.db");
    std::fs::remove_file(realm.data().join("seen.json")).unwrap();
    realm.put_old_store(&old).await;
    let running = realm.serve().await;
    let status = running.admin.status().await.unwrap();
    assert_eq!((status.revision.incarnation, status.incarnation), (1, None));
    let mut client = agent.client(&realm, &running).await;
    // Somebody's word alone is not enough.
    let hello = |witness: Bytes| v1::SyncHello { reached, witness, ..Default::default() };
    open_with(&mut client, hello(Bytes::new())).await.unwrap().snapshot().await;
    let further = v1::SyncHello {
        reached: Some(v1::Revision { incarnation: 1, number: 1 << 40 }),
        ..hello(witness.clone())
    };
    open_with(&mut client, further).await.unwrap().snapshot().await;
    let refused = match open_with(&mut client, hello(witness)).await {
        Ok(mut stream) => stream.next().await.unwrap_err(),
        Err(refused) => refused,
    };
    assert_eq!(code(&refused), Code::Unavailable);
    let begun = async {
        loop {
            let status = running.admin.status().await.unwrap();
            if let Some(incarnation) = status.incarnation {
                return (status.revision, incarnation);
            }
            tokio::task::yield_now().await;
        }
    };
    let (revision, incarnation) = super::soon(begun).await;
    assert!(1 < revision.incarnation && incarnation.held_until.is_some());
    assert!(report.revision.incarnation <= revision.incarnation);
    running.stop().await;
    realm.verify_everything().await;
}

#[tokio::test]
async fn a_server_that_remembers_more_than_its_store_begins_a_new_incarnation_by_itself() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    running.apply(vec![workload("web", &[])]).await;
    realm.save().await;
    running.apply(vec![workload("orders", &[])]).await;
    running.stop().await;
    let old = realm.data().join("state.db");
    realm.put_old_store(&old).await;
    let running = realm.serve().await;
    let status = running.admin.status().await.unwrap();
    assert!(1 < status.revision.incarnation);
    assert!(status.incarnation.unwrap().cause.contains("behind"));
    running.admin.resume_issuing().await.unwrap();
    let status = running.admin.status().await.unwrap();
    assert_eq!(status.incarnation.unwrap().held_until, None);
    assert_eq!(running.admin.resume_issuing().await.unwrap_err().code(), Code::NotFound);
    let first = status.revision.incarnation;
    running.stop().await;
    // Once is enough.
    let running = realm.serve().await;
    assert_eq!(running.admin.status().await.unwrap().revision.incarnation, first);
    running.stop().await;
    realm.verify_everything().await;
}

#[tokio::test]
async fn agent_that_is_ahead_of_a_snapshot_but_not_of_the_store_begins_no_incarnation() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    running.stop().await;
    let store = SqliteStore::open(&realm.data(), std::sync::Arc::new(SystemEntropy)).unwrap();
    let head = store.head().await.unwrap().revision;
    let beginning = |reached| crate::incarnation::Beginning {
        store: &store,
        cause: crate::incarnation::Cause::Behind,
        now: realm.clock.now(),
        steady: realm.clock.now(),
        hold_off: Duration::from_secs(60),
        seen: head.incarnation,
        reached: Some(reached),
        rules: Vec::new(),
        by: "one",
        known: crate::incarnation::Known {
            at: realm.clock.now(),
            by: "nobody",
            clock: crate::incarnation::ClockIs::Compared,
        },
    };
    assert!(crate::incarnation::begin(beginning(head)).await.unwrap().is_none());
    assert_eq!(store.head().await.unwrap().revision, head);
    let ahead = Revision { number: head.number + 1, ..head };
    assert!(crate::incarnation::begin(beginning(ahead)).await.unwrap().is_some());
    assert!(head < store.head().await.unwrap().revision);
}

#[tokio::test]
async fn a_server_whose_clock_is_behind_its_log_begins_no_incarnation() {
    let mut realm = Realm::begin().await;
    let running = realm.serve().await;
    running.apply(vec![workload("web", &[])]).await;
    realm.save().await;
    running.apply(vec![workload("orders", &[])]).await;
    running.stop().await;
    realm.put_old_store(&realm.data().join("state.db")).await;
    let (right, minutes) = (realm.clock.now(), Duration::from_secs(600));
    realm.clock = std::sync::Arc::new(countersign_identity::SimClock::new(right - minutes));
    let refused = realm.start(realm.config()).await.err().unwrap();
    assert_eq!(refused.code(), Code::NotReady, "{refused}");
    assert!(refused.to_string().contains("set the clock right"), "{refused}");
    realm.clock = std::sync::Arc::new(countersign_identity::SimClock::new(right));
    let running = realm.serve().await;
    assert!(running.admin.status().await.unwrap().incarnation.is_some());
    running.stop().await;
    realm.verify_everything().await;
}
