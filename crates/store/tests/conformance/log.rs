//! The log, and the certificates that it tells of.

use std::collections::BTreeMap;
use std::sync::Arc;

use countersign_audit::{Entry, Event, EventKind, TileHash, Tree};
use countersign_identity::Code;
use countersign_store::{
    Batch, Begins, CheckpointRow, Op, PAGE_MAX, StoreError, TRIM_ROWS_MAX, verify_everything,
};
use tokio::task::JoinSet;

use crate::Shared;
use crate::fixture::{
    after, at, checkpoint, digest, doing, issuing, node, node_id, noon, putting, row, signed, token,
};

pub(crate) async fn each_receipt_names_the_leaf_of_its_certificate(store: Shared) {
    store.commit(putting("web", "1")).await.unwrap();
    let mut batch = issuing([row(1, 0, at(1)), row(2, 1, at(1)), row(3, 2, at(1))]);
    // Events of other kinds in between, and the rows in another order than the events.
    batch.events.insert(1, Event::new(EventKind::Summary, noon(), "server", "facts"));
    batch.issued.reverse();
    let rows = batch.issued.clone();
    let committed = store.commit(batch).await.unwrap();
    assert_eq!((committed.first_index, committed.receipts.len()), (1, 3));
    for row in rows {
        let issued = store.issued(row.serial).await.unwrap().unwrap();
        assert_eq!(issued.row, row);
        let events = store.events(issued.index, 1).await.unwrap();
        let entry = Entry::parse(&events[0].leaf).unwrap();
        assert_eq!((entry.serial, entry.tbs), (Some(row.serial), Some(row.tbs)));
        assert_eq!(entry.subject, row.spiffe_id.as_str());
        assert_eq!(entry.revision, at(1));
    }
}

pub(crate) async fn concurrent_issuers_get_receipts_of_their_own(store: Shared) {
    let mut issuers = JoinSet::new();
    for issuer in 0..50 {
        let store = Arc::clone(&store);
        issuers.spawn(async move {
            let rows: Vec<_> = (0..4).map(|place| row(issuer * 4 + place, 0, at(0))).collect();
            store.commit(issuing(rows)).await.unwrap().first_index
        });
    }
    let mut first = issuers.join_all().await;
    first.sort_unstable();
    assert_eq!(first, (0..50).map(|issuer| issuer * 4).collect::<Vec<u64>>());
    assert_eq!(verify_everything(&*store).await.unwrap().issued, 200);
}

/// ATTACKS 26: no certificate that the log does not tell of, or tells differently.
pub(crate) async fn an_issuance_without_its_event_or_with_another_is_refused(store: Shared) {
    let good = issuing([row(1, 0, at(0))]);
    let other = row(2, 0, at(0));
    let mut bad = vec![Batch { events: vec![], ..good.clone() }];
    bad.push(Batch { issued: vec![other.clone()], ..good.clone() });
    let mut event = good.events[0].clone();
    event.tbs = Some(other.tbs);
    bad.push(Batch { events: vec![event.clone()], ..good.clone() });
    event.tbs = None;
    bad.push(Batch { events: vec![event.clone()], ..good.clone() });
    event = good.events[0].clone();
    event.subject = "spiffe://shop.example/orders".to_owned();
    bad.push(Batch { events: vec![event], ..good.clone() });
    // One event for two rows, and two events for one.
    let (one, event) = (good.issued[0].clone(), good.events[0].clone());
    bad.push(Batch { issued: vec![one.clone(), one], ..good.clone() });
    bad.push(Batch { events: vec![event.clone(), event], ..good.clone() });
    for batch in bad {
        let refused = store.commit(batch.clone()).await;
        assert!(matches!(refused, Err(StoreError::Mismatched { .. })), "{batch:?}: {refused:?}");
    }
    assert_eq!(store.head().await.unwrap().log_size, 0);
    store.commit(good).await.unwrap();
}

pub(crate) async fn an_event_that_claims_an_issuance_needs_its_row(store: Shared) {
    let mut batch = issuing([row(1, 0, at(0))]);
    batch.issued.clear();
    let refused = store.commit(batch.clone()).await.unwrap_err();
    assert!(matches!(refused, StoreError::Mismatched { serial: Some(_) }), "{refused}");
    batch.events[0].serial = None;
    let refused = store.commit(batch.clone()).await.unwrap_err();
    assert_eq!(refused, StoreError::Mismatched { serial: None });
    batch.events[0].tbs = None;
    assert_eq!(store.commit(batch).await.unwrap_err(), StoreError::Mismatched { serial: None });
}

pub(crate) async fn a_serial_is_recorded_once(store: Shared) {
    store.commit(issuing([row(1, 0, at(0))])).await.unwrap();
    let again = store.commit(issuing([row(1, 0, at(0))])).await.unwrap_err();
    assert_eq!(again.code(), Code::AlreadyExists);
    let mut other = row(1, 0, at(0));
    other.tbs = digest(9);
    let again = store.commit(issuing([other])).await.unwrap_err();
    assert_eq!(again.code(), Code::AlreadyExists, "other contents under a known serial");
    assert_eq!(store.head().await.unwrap().log_size, 1);
}

pub(crate) async fn what_is_signed_of_a_log_is_kept_beside_it(store: Shared) {
    let leaves: Vec<_> = (0..301).map(|seed| row(seed, 0, at(0))).collect();
    store.commit(issuing(leaves)).await.unwrap();
    let mut roots = BTreeMap::new();
    for size in [7, 290, 300, 301] {
        roots.insert(size, signed(&*store, 1, size).await.0);
    }
    let other = checkpoint(2, 4, digest(4));
    let row = |size| roots[&size].clone();
    let rows = [row(7), row(300), row(290), other.clone(), row(290), row(301)];
    for row in rows {
        store.commit(doing([Op::PutCheckpoint(row)])).await.unwrap();
    }
    // What is in full tiles already needs no checkpoint of its own.
    let kept = store.checkpoints(1, PAGE_MAX).await.unwrap();
    assert_eq!(kept, [row(301), row(300), row(290)]);
    assert_eq!(store.checkpoints(1, 1).await.unwrap(), kept[..1]);
    assert_eq!(store.checkpoints(2, 9).await.unwrap(), [other]);
    assert_eq!(store.checkpoints(u64::MAX, 9).await.unwrap(), []);
    let again = CheckpointRow { note: "another\n".to_owned(), ..row(301) };
    store.commit(doing([Op::PutCheckpoint(again)])).await.unwrap();
    assert_eq!(store.checkpoints(1, 1).await.unwrap(), kept[..1], "what was signed first stays");

    let hash = |level, position, seed| TileHash { level, position, hash: digest(seed) };
    let first = signed(&*store, 1, 301).await.1[0];
    // The rest is of leaves that are not there yet.
    let hashes = vec![first, hash(1, 1, 2), hash(2, 0, 3)];
    let put = |hashes| doing([Op::PutTileHashes { incarnation: 1, hashes }]);
    store.commit(put(hashes.clone())).await.unwrap();
    store.commit(put(vec![hash(1, 1, 9), hash(1, 2, 4)])).await.unwrap();
    assert_eq!(store.tile_hashes(1, 1, 1, 9).await.unwrap(), [hashes[1], hash(1, 2, 4)]);
    assert_eq!(store.tile_hashes(1, 1, 0, 1).await.unwrap(), hashes[..1]);
    assert_eq!(store.tile_hashes(1, 2, 0, 9).await.unwrap(), hashes[2..]);
    assert_eq!(store.tile_hashes(2, 1, 0, 9).await.unwrap(), []);
    assert_eq!(store.head().await.unwrap().log_size, 301, "none of it is an event");
}

pub(crate) async fn dropped_details_leave_the_log_as_it_is(store: Shared) {
    for name in ["a", "b", "c"] {
        store.commit(putting(name, "1")).await.unwrap();
    }
    let before = store.events(0, 9).await.unwrap();
    let trim = |from, to| doing([Op::TrimDetails { incarnation: 1, from, to }]);
    store.commit(trim(1, 2)).await.unwrap();
    let after = store.events(0, 9).await.unwrap();
    assert_eq!(after[1].details, None);
    assert!(after[0].details.is_some() && after[2].details.is_some());
    let leaf = |event: &countersign_store::StoredEvent| (event.leaf.clone(), event.hash);
    assert!(before.iter().map(leaf).eq(after.iter().map(leaf)));
    // Those of a past log too, and by the number of its incarnation never another's.
    let root = verify_everything(&*store).await.unwrap().root;
    let from = serde_json::json!({ "incarnation": 1, "logSize": 3, "logRoot": root });
    let event = Event::new(EventKind::IncarnationBegan, noon(), "server", "store");
    let event = event.with_details(serde_json::json!({ "from": from }));
    let begins = Some(Begins { incarnation: 2, log_size: 3 });
    let begins = Batch { begins, narrows: true, events: vec![event], ..Batch::default() };
    store.commit(begins).await.unwrap();
    store.commit(trim(0, 3)).await.unwrap();
    assert!(store.past_events(1, 0, 9).await.unwrap().iter().all(|event| event.details.is_none()));
    assert!(store.events(0, 9).await.unwrap()[0].details.is_some());
    let refused = store.commit(trim(0, TRIM_ROWS_MAX as u64 + 1)).await.unwrap_err();
    assert_eq!(refused.code(), Code::TooLarge);
}

/// ATTACKS 13: clean-up takes nothing away that still counts.
pub(crate) async fn trimming_keeps_all_that_somebody_may_need(store: Shared) {
    // Certificates of an hour, issued an hour apart; one of a year, issued first of all.
    let mut authority = row(100, -10, at(0));
    authority.validity.not_after = after(365 * 86_400);
    let rows: Vec<_> =
        (0..5).map(|hour| row(hour, i64::try_from(hour).unwrap() * 3600, at(0))).collect();
    store.commit(issuing([authority.clone()])).await.unwrap();
    store.commit(issuing(rows.clone())).await.unwrap();
    store.commit(doing([Op::CreateToken(token(1)), Op::CreateToken(token(2))])).await.unwrap();
    store.commit(doing([Op::SpendToken { hash: digest(1), now: noon() }])).await.unwrap();
    let root = verify_everything(&*store).await.unwrap().root;

    // Expired, but a clock that is behind by what we allow still takes it for valid.
    let nothing = store.trim(after(3600 + 60)).await.unwrap();
    assert_eq!((nothing.issued, nothing.tokens), (0, 2), "the tokens ended long before");
    let trimmed = store.trim(after(2 * 3600 + 61)).await.unwrap();
    assert_eq!((trimmed.issued, trimmed.more), (2, false));
    for (hour, row) in rows.iter().enumerate() {
        assert_eq!(store.issued(row.serial).await.unwrap().is_some(), 2 <= hour, "hour {hour}");
    }
    assert!(store.issued(authority.serial).await.unwrap().is_some());
    // A clock that was set back drops nothing, and the log has all of it.
    assert_eq!(store.trim(after(-86_400)).await.unwrap().issued, 0);
    let whole = verify_everything(&*store).await.unwrap();
    assert_eq!((whole.root, whole.issued, whole.head.log_size), (root, 4, 6));
    // A spent token is unknown in the end, never fresh again.
    let again = store.commit(doing([Op::SpendToken { hash: digest(1), now: noon() }])).await;
    assert_eq!(again.unwrap_err(), StoreError::TokenUnknown);
}

pub(crate) async fn pages_are_bounded_and_in_order(store: Shared) {
    let rows: Vec<_> = (0..1500).map(|seed| row(seed, 0, at(0))).collect();
    store.commit(issuing(rows)).await.unwrap();
    store
        .commit(doing((0..9).map(|seed| Op::PutNode(node(9 - seed))).collect::<Vec<_>>()))
        .await
        .unwrap();
    assert_eq!(store.events(0, usize::MAX).await.unwrap().len(), PAGE_MAX);
    let rest = store.events(1490, 100).await.unwrap();
    assert_eq!(
        rest.iter().map(|event| event.index).collect::<Vec<_>>(),
        (1490..1500).collect::<Vec<_>>()
    );
    assert!(store.events(1500, 10).await.unwrap().is_empty());
    assert!(store.events(u64::MAX, 10).await.unwrap().is_empty());
    assert_eq!(store.leaf_hashes(0, usize::MAX).await.unwrap().len(), 1500);
    assert_eq!(store.leaf_hashes(7, 1).await.unwrap(), [store.events(7, 1).await.unwrap()[0].hash]);

    let page = store.issued_after(None, usize::MAX).await.unwrap();
    let last = page.last().unwrap().row.serial;
    let rest = store.issued_after(Some(last), usize::MAX).await.unwrap();
    assert_eq!((page.len(), rest.len()), (PAGE_MAX, 500));
    let serials = page.iter().chain(&rest).map(|issued| issued.row.serial);
    assert!(serials.is_sorted_by(|one, next| one < next));

    let first = store.nodes(None, 4).await.unwrap();
    let next = store.nodes(Some(first[3].id), 100).await.unwrap();
    let ids: Vec<_> = first.iter().chain(&next).map(|row| row.id).collect();
    assert_eq!(ids, (1..10).map(node_id).collect::<Vec<_>>());
    assert_eq!(first[0], node(1));
}

/// ATTACKS 26.
pub(crate) async fn the_log_grows_and_is_never_rewritten(store: Shared) {
    let mut seen = Tree::new();
    for round in 0..40 {
        if round % 4 == 3 {
            let refused = Batch { expected: Some(at(99)), ..putting("web", "1") };
            store.commit(refused).await.unwrap_err();
        }
        store.commit(putting(&format!("w{round}"), "1")).await.unwrap();
        let hashes = store.leaf_hashes(0, 1000).await.unwrap();
        let size = usize::try_from(seen.size()).unwrap();
        assert_eq!(Tree::from_leaf_hashes(hashes[..size].iter().copied()), seen);
        seen = Tree::from_leaf_hashes(hashes);
        assert_eq!(seen.size(), round + 1);
    }
    assert_eq!(verify_everything(&*store).await.unwrap().root, seen.root());
}
