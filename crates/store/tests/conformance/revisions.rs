//! The map, its revisions and its feed.

use std::collections::BTreeMap;
use std::sync::Arc;

use countersign_audit::{Event, EventKind};
use countersign_identity::{Code, Revision};
use countersign_store::{
    Batch, Begins, Change, FEED_COMMITS_MAX, Feed, Kind, Op, Record, StoreError, verify_everything,
};
use tokio::task::JoinSet;

use crate::Shared;
use crate::fixture::{
    after, at, digest, doing, issuing, node, node_id, noon, number, put, putting, remove, row,
    token,
};

pub(crate) async fn a_change_made_for_another_revision_is_a_conflict(store: Shared) {
    let mut batch = putting("web", "1");
    batch.expected = Some(at(0));
    assert_eq!(store.commit(batch.clone()).await.unwrap().revision, at(1));
    let refused = store.commit(batch.clone()).await.unwrap_err();
    assert_eq!(refused, StoreError::Conflict { expected: at(0), current: at(1) });
    batch.expected = Some(Revision { incarnation: 2, number: 1 });
    assert_eq!(store.commit(batch.clone()).await.unwrap_err().code(), Code::StaleBase);
    batch.expected = Some(at(1));
    assert_eq!(store.commit(batch).await.unwrap().revision, at(2));
}

/// ATTACKS 13: no older snapshot brings back what was taken away.
pub(crate) async fn what_was_authorised_before_rights_were_taken_away_is_fenced(store: Shared) {
    store.commit(putting("web", "1")).await.unwrap();
    store.commit(issuing([row(1, 0, at(1))])).await.unwrap();
    let narrowing = Batch { narrows: true, ..putting("web", "2") };
    assert_eq!(store.commit(narrowing).await.unwrap().revision, at(2));
    assert_eq!(store.head().await.unwrap().fence, at(2));
    let fenced = StoreError::Fenced { authorised_at: at(1), fence: at(2) };
    let late = Batch { authorised_at: Some(at(1)), ..putting("orders", "1") };
    assert_eq!(store.commit(late).await.unwrap_err(), fenced);
    // Also when the caller forgot to ask: the certificate itself says at which revision it was authorised.
    assert_eq!(store.commit(issuing([row(2, 0, at(1))])).await.unwrap_err(), fenced);
    let elsewhere = Revision { incarnation: 0, number: 9 };
    let refused = store.commit(issuing([row(2, 0, elsewhere)])).await.unwrap_err();
    assert_eq!(refused.code(), Code::Fenced);
    // Changes that take nothing away leave the fence where it is.
    store.commit(putting("payments", "1")).await.unwrap();
    store.commit(issuing([row(3, 0, at(2))])).await.unwrap();
    assert_eq!(store.head().await.unwrap().fence, at(2));
}

pub(crate) async fn a_certificate_from_the_future_is_refused(store: Shared) {
    store.commit(putting("web", "1")).await.unwrap();
    let refused = store.commit(issuing([row(1, 0, at(2))])).await.unwrap_err();
    assert_eq!(refused.code(), Code::StaleBase);
    let later = Revision { incarnation: 2, number: 0 };
    let refused = store.commit(issuing([row(1, 0, later)])).await.unwrap_err();
    assert_eq!(refused.code(), Code::StaleBase);
    let ahead = Batch { authorised_at: Some(at(2)), ..putting("web", "2") };
    assert_eq!(store.commit(ahead).await.unwrap_err().code(), Code::StaleBase);
}

pub(crate) async fn taking_rights_away_beside_the_map_moves_the_revision_too(store: Shared) {
    store.commit(doing([Op::PutNode(node(1))])).await.unwrap();
    let removal = Batch { narrows: true, ..doing([Op::RemoveNode { id: node_id(1) }]) };
    assert_eq!(store.commit(removal).await.unwrap().revision, at(1));
    let head = store.head().await.unwrap();
    assert_eq!((head.revision, head.fence), (at(1), at(1)));
    let Feed::Changes(commits) = store.changes(at(0), 10).await.unwrap() else { panic!("a feed") };
    assert_eq!(commits.len(), 1);
    assert!(commits[0].changes.is_empty() && commits[0].revision == at(1));
}

pub(crate) async fn only_changes_move_the_revision(store: Shared) {
    store.commit(putting("web", "1")).await.unwrap();
    store.commit(issuing([row(1, 0, at(1))])).await.unwrap();
    store.commit(doing([Op::CreateToken(token(1)), Op::PutNode(node(1))])).await.unwrap();
    store.commit(doing([Op::TouchNode { id: node_id(1), at: after(1) }])).await.unwrap();
    store.commit(Batch::default()).await.unwrap();
    assert_eq!(number(&store).await, 1);
}

pub(crate) async fn a_refused_batch_leaves_nothing_behind(store: Shared) {
    store.commit(putting("web", "1")).await.unwrap();
    let before = verify_everything(&*store).await.unwrap();
    let mut batch = issuing([row(1, 0, at(1))]);
    batch.changes = vec![put("web", "2"), put("orders", "1"), remove("nobody")];
    batch.narrows = true;
    batch.ops = vec![
        Op::PutSecret { name: "a".to_owned(), sealed: vec![1] },
        Op::CreateToken(token(1)),
        Op::PutNode(node(1)),
    ];
    let refused = store.commit(batch.clone()).await.unwrap_err();
    let unknown = StoreError::RecordUnknown { kind: Kind::Workload, name: "nobody".to_owned() };
    assert_eq!(refused, unknown);
    // The same, refused at the last step instead of in the middle.
    batch.changes.pop();
    store.commit(issuing([row(1, 0, at(1))])).await.unwrap();
    assert_eq!(store.commit(batch).await.unwrap_err().code(), Code::AlreadyExists);

    let now = verify_everything(&*store).await.unwrap();
    assert_eq!(now.head.revision, before.head.revision);
    assert_eq!((now.head.fence, now.records), (before.head.fence, before.records));
    assert_eq!(now.head.log_size, before.head.log_size + 1);
    assert_eq!(store.snapshot().await.unwrap().records[0].value, b"1");
    assert_eq!(store.secret("a").await.unwrap(), None);
    assert_eq!(store.token(digest(1)).await.unwrap(), None);
    assert_eq!(store.node(node_id(1)).await.unwrap(), None);
}

pub(crate) async fn nobody_sees_a_revision_before_the_one_before_it(store: Shared) {
    const WRITERS: u64 = 8;
    const EACH: u64 = 25;
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let store = Arc::clone(&store);
        writers.spawn(async move {
            for turn in 0..EACH {
                let name = format!("w{writer}");
                store.commit(putting(&name, &turn.to_string())).await.unwrap();
            }
        });
    }
    let mut hint = store.hint();
    let mut seen = at(0);
    let mut map = BTreeMap::new();
    while seen.number < WRITERS * EACH {
        let Feed::Changes(commits) = store.changes(seen, 7).await.unwrap() else {
            panic!("the feed goes on")
        };
        if commits.is_empty() {
            hint.changed().await.unwrap();
        }
        for commit in commits {
            assert_eq!(commit.revision.number, seen.number + 1, "no gap and no step back");
            seen = commit.revision;
            apply(&mut map, commit.changes);
        }
        // A snapshot is of one revision too, whatever is being written.
        let snapshot = store.snapshot().await.unwrap();
        assert!(seen <= snapshot.revision);
    }
    writers.join_all().await;
    let records: Vec<Record> = map.into_values().collect();
    assert_eq!(store.snapshot().await.unwrap().records, records);
}

fn apply(map: &mut BTreeMap<(Kind, String), Record>, changes: impl IntoIterator<Item = Change>) {
    for change in changes {
        match change {
            Change::Put(record) => {
                map.insert((record.kind, record.name.clone()), record);
            }
            Change::Remove { kind, name } => {
                map.remove(&(kind, name)).expect("what is removed was there");
            }
        }
    }
}

pub(crate) async fn a_snapshot_and_the_changes_after_it_are_the_next_snapshot(store: Shared) {
    for round in 0..20 {
        let mut batch = putting(&format!("w{}", round % 5), &round.to_string());
        batch.changes.push(put("twice", "first"));
        batch.changes.push(put("twice", &round.to_string()));
        if round % 3 == 2 {
            batch.changes.push(remove("twice"));
        }
        store.commit(batch).await.unwrap();
    }
    let last = store.snapshot().await.unwrap();
    let Feed::Changes(all) = store.changes(at(0), 100).await.unwrap() else { panic!("a feed") };
    assert_eq!(all.len(), 20);
    let mut map = BTreeMap::new();
    for commit in all {
        apply(&mut map, commit.changes);
    }
    assert_eq!(map.into_values().collect::<Vec<_>>(), last.records);
    assert_eq!(last.revision, at(20));
    let Feed::Changes(page) = store.changes(at(4), 3).await.unwrap() else { panic!("a feed") };
    let numbers: Vec<u64> = page.iter().map(|commit| commit.revision.number).collect();
    assert_eq!(numbers, [5, 6, 7]);
}

pub(crate) async fn large_commits_make_short_pages(store: Shared) {
    for (name, changes) in [("a", 1), ("b", 9_998), ("c", 1), ("d", 30_000), ("e", 1), ("f", 1)] {
        let changes = vec![put(name, "1"); changes];
        store.commit(Batch { changes, ..Batch::default() }).await.unwrap();
    }
    let (mut seen, mut pages) = (at(0), Vec::new());
    while seen < at(6) {
        let feed = store.changes(seen, usize::MAX).await.unwrap();
        let Feed::Changes(commits) = feed else { panic!("a feed") };
        seen = commits.last().expect("a page makes headway").revision;
        pages.push(commits.iter().map(|commit| commit.changes.len()).collect::<Vec<_>>());
    }
    // Each ends with the commit that makes it ten thousand.
    assert_eq!(pages, [vec![1, 9_998, 1], vec![30_000], vec![1, 1]]);
}

pub(crate) async fn a_reader_from_elsewhere_needs_a_snapshot(store: Shared) {
    assert_eq!(store.changes(at(0), 9).await.unwrap(), Feed::Changes(vec![]));
    store.commit(putting("web", "1")).await.unwrap();
    assert_eq!(store.changes(at(1), 9).await.unwrap(), Feed::Changes(vec![]));
    for elsewhere in [
        Revision { incarnation: 0, number: 1 },
        Revision { incarnation: 2, number: 0 },
        Revision { incarnation: 2, number: 1 },
        at(2),
        at(u64::MAX),
    ] {
        let feed = store.changes(elsewhere, 9).await.unwrap();
        assert_eq!(feed, Feed::SnapshotNeeded, "after {elsewhere}");
    }
}

pub(crate) async fn a_reader_too_far_behind_needs_a_snapshot(store: Shared) {
    let mut writers = JoinSet::new();
    const COMMITS: u64 = FEED_COMMITS_MAX + 300;
    for writer in 0..100 {
        let store = Arc::clone(&store);
        writers.spawn(async move {
            for _turn in 0..COMMITS / 100 {
                let changes = vec![put(&format!("w{writer}"), "")];
                store.commit(Batch { changes, ..Batch::default() }).await.unwrap();
            }
        });
    }
    writers.join_all().await;
    let last = number(&store).await;
    assert_eq!(last, COMMITS);
    assert_eq!(store.changes(at(0), 1).await.unwrap(), Feed::SnapshotNeeded);
    let kept = store.changes(at(last - FEED_COMMITS_MAX), 2).await.unwrap();
    let Feed::Changes(commits) = kept else { panic!("so many commits are kept") };
    assert_eq!(commits.len(), 2);
    assert_eq!(store.snapshot().await.unwrap().records.len(), 100);
}

pub(crate) async fn the_hint_follows_the_revision(store: Shared) {
    let mut hint = store.hint();
    assert_eq!(*hint.borrow_and_update(), at(0));
    store.commit(issuing([row(1, 0, at(0))])).await.unwrap();
    assert!(!hint.has_changed().unwrap(), "nothing that readers serve has changed");
    let revision = store.commit(putting("web", "1")).await.unwrap().revision;
    // Whoever was answered finds the hint moved.
    assert_eq!(*hint.borrow_and_update(), revision);
}

/// A new incarnation: revisions and the log begin anew, and nothing of the one before is lost or goes on.
pub(crate) async fn a_new_incarnation_begins_anew_and_keeps_the_log_before(store: Shared) {
    for round in 0..3 {
        store.commit(putting(&format!("w{round}"), "1")).await.unwrap();
    }
    store.commit(issuing([row(1, 0, at(3))])).await.unwrap();
    let before = verify_everything(&*store).await.unwrap();
    let events = store.events(0, 10).await.unwrap();
    let began = |incarnation| {
        let from = serde_json::json!({
            "incarnation": 1, "logSize": before.head.log_size, "logRoot": before.root,
        });
        let event = Event::new(EventKind::IncarnationBegan, noon(), "server", "store");
        let event = event.with_details(serde_json::json!({ "from": from }));
        let begins = Some(Begins { incarnation, log_size: before.head.log_size });
        let expected = Some(before.head.revision);
        let batch = Batch { expected, begins, narrows: true, ..Batch::default() };
        Batch { changes: vec![put("began", "1")], events: vec![event], ..batch }
    };
    let refused = store.commit(began(1)).await.unwrap_err();
    assert!(matches!(refused, StoreError::Conflict { .. }), "{refused}");
    let begins = Some(Begins { incarnation: 7, log_size: before.head.log_size - 1 });
    let refused = store.commit(Batch { begins, ..began(7) }).await.unwrap_err();
    assert!(matches!(refused, StoreError::LogMoved { .. }), "{refused}");

    let committed = store.commit(began(7)).await.unwrap();
    let first = Revision { incarnation: 7, number: 1 };
    assert_eq!((committed.revision, committed.first_index), (first, 0));
    let head = store.head().await.unwrap();
    assert_eq!((head.revision, head.fence, head.log_size), (first, first, 1));
    assert_eq!(store.changes(at(3), 10).await.unwrap(), Feed::SnapshotNeeded);
    assert_eq!(store.snapshot().await.unwrap().records.len(), 4);
    assert_eq!(store.past_incarnation(0).await.unwrap(), Some(1));
    assert_eq!(store.past_incarnation(1).await.unwrap(), None);
    assert_eq!(store.past_events(1, 0, 10).await.unwrap(), events);
    let fenced = store.commit(issuing([row(2, 1, at(3))])).await.unwrap_err();
    assert!(matches!(fenced, StoreError::Fenced { .. }), "{fenced}");
    // Once more is a conflict, and what follows goes on in the new one.
    let again = store.commit(began(8)).await.unwrap_err();
    assert!(matches!(again, StoreError::Conflict { .. }), "{again}");
    store.commit(issuing([row(3, 2, first)])).await.unwrap();
    let next = store.commit(putting("web", "2")).await.unwrap();
    assert_eq!(next.revision, Revision { number: 2, ..first });
    let after = verify_everything(&*store).await.unwrap();
    assert_eq!((after.issued, after.head.log_size), (2, 3));
}
