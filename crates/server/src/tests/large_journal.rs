//! A journal of more rules than one batch holds, and a server that is cut off while it takes them in.

use std::sync::Arc;
use std::time::Duration;

use countersign_api::v1;
use countersign_identity::{Clock as _, Code, SystemEntropy, Timestamp};
use countersign_store::{BATCH_ROWS_MAX, Batch, SqliteStore, Store as _};

use super::Realm;
use super::saved::rule;
use crate::config::Config;
use crate::directory::Domain;
use crate::incarnation::{
    Beginning, Cause, ClockIs, Handed, Known, Life, LogKey, begin, take_in_the_rest,
};
use crate::state::State;
use crate::watch::Moment;

fn open(realm: &Realm) -> SqliteStore {
    SqliteStore::open(&realm.data(), Arc::new(SystemEntropy)).unwrap()
}

fn beginning<'a>(
    store: &'a SqliteStore,
    now: Timestamp,
    by: &'a str,
    rules: Vec<Handed>,
) -> Beginning<'a> {
    let known = Known { at: now, by: "nobody", clock: ClockIs::Compared };
    let (cause, hold_off) = (Cause::Behind, Duration::from_secs(60));
    Beginning { store, cause, now, steady: now, hold_off, seen: 1, reached: None, rules, by, known }
}

async fn state(store: &SqliteStore) -> State {
    State::from_snapshot(store.snapshot().await.unwrap()).unwrap()
}

#[tokio::test]
async fn nothing_is_issued_before_every_rule_of_a_large_journal_is_taken_in_also_after_a_cut() {
    let realm = Realm::begin().await;
    realm.serve().await.stop().await;
    let (now, folder) = (realm.clock.now(), realm.place("journal"));
    let count = u32::try_from(BATCH_ROWS_MAX).unwrap() + 1000;
    realm.write_journal(&folder, "one", count).await;
    let store = open(&realm);
    let handed = |number| {
        let v1::Record { kind, name, value } = rule(number, now);
        let signature = bytes::Bytes::new();
        Handed::read(&v1::SignedRecord { kind, name, value, signature }).unwrap()
    };
    let before = store.head().await.unwrap().revision.incarnation;
    let begun = async {
        while store.head().await.unwrap().revision.incarnation == before {
            tokio::task::yield_now().await;
        }
    };
    // Cut off as soon as it has begun.
    tokio::select! {
        done = begin(beginning(&store, now, "one", (0..count).map(handed).collect())) => {
            panic!("it was not cut off: {:?}", done.unwrap())
        }
        () = begun => {}
    }
    let cut = state(&store).await;
    let life = cut.life().unwrap();
    assert_eq!(life.taking_in.as_deref(), Some("one"));
    assert!(cut.revocations().len() < count as usize);
    let refused = life.issues(now + Duration::from_secs(86_400)).unwrap_err();
    assert_eq!(refused.code, Code::NotReady);
    // Another server has another journal.
    let kek = countersign_seal::KekFile::open(&realm.data().join("kek")).unwrap();
    let key = LogKey::open(&store, &kek).await.unwrap().unwrap();
    take_in_the_rest(&store, "two", Some(&folder), &key, Moment::from(now)).await.unwrap();
    assert!(state(&store).await.life().unwrap().taking_in.is_some());
    take_in_the_rest(&store, "one", Some(&folder), &key, Moment::from(now)).await.unwrap();
    let whole = state(&store).await;
    assert_eq!(whole.revocations().len(), count as usize);
    assert_eq!(whole.life().unwrap().taking_in, None);
    assert!(whole.life().unwrap().issues(now + Duration::from_secs(60)).is_ok());
}

#[tokio::test]
async fn a_server_that_was_cut_off_while_it_took_in_its_journal_goes_on_when_it_starts() {
    let realm = Realm::begin().await;
    realm.serve().await.stop().await;
    let server = Domain::read(&realm.data()).unwrap().server.to_string();
    let (now, folder) = (realm.clock.now(), realm.place("journal"));
    realm.write_journal(&folder, &server, 3).await;
    let store = open(&realm);
    let life = begin(beginning(&store, now, &server, Vec::new())).await.unwrap().unwrap();
    let cut = Life { taking_in: Some(server.clone()), hold_until: now, ..life };
    store.commit(Batch { changes: vec![cut.change()], ..Batch::default() }).await.unwrap();
    drop(store);
    for (journal, rules) in [(None, 0), (Some(folder), 3)] {
        let running = realm.start(Config { journal, ..realm.config() }).await.unwrap();
        let status = running.admin.status().await.unwrap();
        let warned = status.warnings.iter().any(|text| text.contains("has not taken in all rules"));
        assert_eq!(warned, rules == 0, "{:?}", status.warnings);
        assert_eq!(status.incarnation.unwrap().held_until.is_some(), rules == 0);
        assert_eq!(running.admin.revocations().await.unwrap().rules.len(), rules);
        running.stop().await;
    }
    realm.verify_everything().await;
}
