//! What SQLite's files promise: durable, whole, for their owner and for one process.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::pin::pin;
use std::task::{Context, Waker};

use countersign_identity::Code;
use countersign_store::{Op, SqliteStore, Store, StoreError, verify_everything};

use crate::fixture::{
    at, create, digest, doing, entropy, folder, issuing, node, node_id, open, opened, patiently,
    putting, row, token,
};

#[track_caller]
fn refused(folder: &Path) -> StoreError {
    match opened(folder) {
        Ok(_store) => panic!("it was opened"),
        Err(error) => error,
    }
}

/// Somebody else with the file in hand.
fn tamper(folder: &Path, statement: &str) {
    let connection = rusqlite::Connection::open(folder.join("state.db")).unwrap();
    connection.execute_batch(statement).unwrap();
}

#[tokio::test]
async fn what_was_acknowledged_is_there_after_a_restart() {
    let folder = folder();
    let store = create(folder.path());
    store.commit(putting("web", "1")).await.unwrap();
    let narrowing = countersign_store::Batch { narrows: true, ..putting("web", "2") };
    store.commit(narrowing).await.unwrap();
    store.commit(issuing([row(1, 0, at(2))])).await.unwrap();
    let secret = Op::PutSecret { name: "a".to_owned(), sealed: vec![1, 2] };
    store.commit(doing([Op::CreateToken(token(1)), Op::PutNode(node(1)), secret])).await.unwrap();
    let before = verify_everything(&store).await.unwrap();
    let snapshot = store.snapshot().await.unwrap();
    drop(store);

    let store = open(folder.path());
    assert_eq!(verify_everything(&store).await.unwrap(), before);
    assert_eq!(store.snapshot().await.unwrap(), snapshot);
    assert_eq!(store.node(node_id(1)).await.unwrap(), Some(node(1)));
    assert_eq!(store.token(digest(1)).await.unwrap(), Some(token(1)));
    assert_eq!(store.secret("a").await.unwrap(), Some(vec![1, 2]));
    assert_eq!(*store.hint().borrow(), at(2));
    // ATTACKS 13: neither does a restart bring back what was taken away.
    let refused = store.commit(issuing([row(2, 0, at(1))])).await.unwrap_err();
    assert_eq!(refused.code(), Code::Fenced);
}

#[tokio::test]
async fn the_file_of_a_store_that_was_closed_has_all_of_it_and_the_one_of_a_server_that_runs_has_not()
 {
    let (folder, copied) = (folder(), folder());
    let store = create(folder.path());
    store.commit(putting("web", "1")).await.unwrap();
    // Those who read close after the one who writes.
    let before = verify_everything(&store).await.unwrap();
    let file = |folder: &tempfile::TempDir| folder.path().join("state.db");
    std::fs::copy(file(&folder), file(&copied)).unwrap();
    let part = verify_everything(&*SqliteStore::observe(copied.path()).unwrap()).await.unwrap();
    assert_ne!(part, before, "it is in the write-ahead log");
    std::fs::remove_file(file(&copied)).unwrap();
    drop(store);
    std::fs::copy(file(&folder), file(&copied)).unwrap();
    let whole = verify_everything(&*SqliteStore::observe(copied.path()).unwrap()).await.unwrap();
    assert_eq!(whole, before);
}

#[tokio::test]
async fn a_second_server_on_the_directory_is_told_who_has_it() {
    let folder = folder();
    let store = create(folder.path());
    let pid = Some(std::process::id());
    let path = folder.path().to_owned();
    let error = SqliteStore::open(folder.path(), entropy(3)).unwrap_err();
    assert_eq!(error, StoreError::Locked { path, pid });
    assert!(error.to_string().contains(&format!("(process {})", std::process::id())), "{error}");
    let again = SqliteStore::create(folder.path(), entropy(1)).err();
    assert!(matches!(again, Some(StoreError::Locked { .. })), "{again:?}");
    drop(store);
    opened(folder.path()).unwrap();
}

#[tokio::test]
async fn a_store_is_never_made_where_one_is_expected_nor_over_another() {
    let folder = folder();
    let error = refused(folder.path());
    assert_eq!(error, StoreError::Missing { path: folder.path().to_owned() });
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing was left there");
    drop(create(folder.path()));
    let again = patiently(|| SqliteStore::create(folder.path(), entropy(1))).unwrap_err();
    assert_eq!(again.code(), Code::AlreadyExists);
}

#[tokio::test]
async fn a_creation_that_was_interrupted_can_be_repeated() {
    let folder = folder();
    std::fs::write(folder.path().join("state.db.new"), b"half").unwrap();
    std::fs::write(folder.path().join("state.db.new-journal"), b"half").unwrap();
    assert!(matches!(refused(folder.path()), StoreError::Missing { .. }));
    let store = create(folder.path());
    verify_everything(&store).await.unwrap();
    assert!(!folder.path().join("state.db.new").exists());
}

#[tokio::test]
async fn every_file_is_for_its_owner_only() {
    let folder = folder();
    let store = create(folder.path());
    store.commit(putting("web", "1")).await.unwrap();
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder.path()).unwrap() {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode, 0o600, "{}", entry.path().display());
        names.push(entry.file_name().into_string().unwrap());
    }
    names.sort();
    assert_eq!(names, ["state.db", "state.db-shm", "state.db-wal", "state.lock"]);
}

#[tokio::test]
async fn a_store_that_others_may_read_is_refused() {
    let folder = folder();
    drop(create(folder.path()));
    let path = folder.path().join("state.db");
    for mode in [0o640, 0o604, 0o660, 0o644] {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        assert_eq!(refused(folder.path()), StoreError::Exposed { path: path.clone(), mode });
    }
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    opened(folder.path()).unwrap();
}

#[tokio::test]
async fn what_is_not_our_store_is_refused_and_left_as_it_is() {
    let folder = folder();
    let path = folder.path().join("state.db");
    let put = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    };
    let mut half = b"SQLite format 3\0".to_vec();
    half.extend_from_slice(&[7; 2000]);
    for bytes in [&b""[..], b"-----BEGIN CERTIFICATE-----", &[0; 8192], &half] {
        put(bytes);
        assert_eq!(refused(folder.path()), StoreError::NotAStore { path: path.clone() });
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
    }
    put(b"");
    tamper(folder.path(), "CREATE TABLE cookies (id INTEGER)");
    assert_eq!(refused(folder.path()), StoreError::NotAStore { path: path.clone() });
}

#[tokio::test]
async fn a_store_of_a_newer_version_is_refused() {
    let folder = folder();
    drop(create(folder.path()));
    tamper(folder.path(), "UPDATE schema SET version = 10; UPDATE head SET needs = 9");
    let path = folder.path().join("state.db");
    let error = refused(folder.path());
    assert_eq!(error, StoreError::NewerSchema { path, found: 10, needs: 9, known: 8 });
    assert!(error.to_string().ends_with("use a newer one"), "{error}");
}

#[tokio::test]
async fn a_transaction_that_was_not_committed_never_was() {
    let folder = folder();
    let store = create(folder.path());
    store.commit(putting("web", "1")).await.unwrap();
    let before = verify_everything(&store).await.unwrap();
    drop(store);
    let writer = rusqlite::Connection::open(folder.path().join("state.db")).unwrap();
    let half = "BEGIN; UPDATE head SET number = 2, log_size = 2; DELETE FROM records";
    writer.execute_batch(half).unwrap();
    drop(writer);
    let store = open(folder.path());
    assert_eq!(verify_everything(&store).await.unwrap(), before);
}

/// ATTACKS 26: the tail cut off, or something put behind it.
#[tokio::test]
async fn a_log_that_does_not_end_where_the_head_says_is_not_opened() {
    for statement in [
        "DELETE FROM log WHERE log_index = 2",
        "DELETE FROM log",
        "INSERT INTO log SELECT 3, leaf, hash, details, salt FROM log WHERE log_index = 0",
        "UPDATE head SET log_size = 2",
        "DELETE FROM head",
    ] {
        let folder = folder();
        let store = create(folder.path());
        for value in ["1", "2", "3"] {
            store.commit(putting("web", value)).await.unwrap();
        }
        drop(store);
        tamper(folder.path(), statement);
        let error = refused(folder.path());
        assert!(matches!(error, StoreError::Broken { .. }), "{statement}: {error}");
    }
}

/// ATTACKS 26: rewritten in the middle.
#[tokio::test]
async fn a_rewritten_row_is_found() {
    for statement in [
        "DELETE FROM log WHERE log_index = 1",
        "UPDATE log SET leaf = (SELECT leaf FROM log WHERE log_index = 2) WHERE log_index = 1",
        "UPDATE log SET leaf = (SELECT leaf FROM log WHERE log_index = 2), \
         hash = (SELECT hash FROM log WHERE log_index = 2) WHERE log_index = 1",
        "UPDATE log SET hash = zeroblob(32) WHERE log_index = 1",
        "UPDATE log SET hash = zeroblob(31) WHERE log_index = 1",
        "UPDATE log SET details = CAST('{\"a\":1}' AS BLOB) WHERE log_index = 1",
        "UPDATE log SET salt = NULL WHERE log_index = 1",
        "UPDATE issued SET tbs = zeroblob(32)",
        "UPDATE issued SET log_index = 0",
        "UPDATE issued SET spiffe_id = 'spiffe://shop.example//'",
        "UPDATE records SET kind = 'Secret'",
        "UPDATE head SET number = 1",
    ] {
        let folder = folder();
        let store = create(folder.path());
        store.commit(putting("web", "1")).await.unwrap();
        store.commit(putting("web", "2")).await.unwrap();
        store.commit(issuing([row(1, 0, at(2))])).await.unwrap();
        verify_everything(&store).await.unwrap();
        drop(store);
        tamper(folder.path(), statement);
        let verdict = verify_everything(&open(folder.path())).await;
        assert!(matches!(verdict, Err(StoreError::Broken { .. })), "{statement}: {verdict:?}");
    }
}

#[tokio::test]
async fn details_can_be_dropped_without_touching_a_proof() {
    let folder = folder();
    let store = create(folder.path());
    store.commit(putting("web", "1")).await.unwrap();
    let root = verify_everything(&store).await.unwrap().root;
    drop(store);
    tamper(folder.path(), "UPDATE log SET details = NULL, salt = NULL");
    let store = open(folder.path());
    assert_eq!(verify_everything(&store).await.unwrap().root, root);
    assert_eq!(store.events(0, 1).await.unwrap()[0].details, None);
}

/// Where a transaction of the write-ahead log ends: frames of 24 bytes and a page, whose second word is not zero.
fn transactions(folder: &Path) -> usize {
    let log = std::fs::read(folder.join("state.db-wal")).unwrap();
    let page = u32::from_be_bytes(log[8..12].try_into().unwrap());
    let salts = &log[16..24];
    let frames = log[32..].chunks_exact(24 + usize::try_from(page).unwrap());
    // Frames with other salts are left over from before a checkpoint.
    frames.filter(|frame| frame[8..16] == *salts && frame[4..8] != [0; 4]).count()
}

#[tokio::test]
async fn what_waits_together_is_committed_together() {
    const COMMITS: u64 = 50;
    let folder = folder();
    let store = create(folder.path());
    store.commit(putting("web", "0")).await.unwrap();
    let before = transactions(folder.path());
    // Not more than Tokio lets one task do before it has to wait.
    let mut commits: Vec<_> =
        (0..COMMITS).map(|seed| Box::pin(store.commit(issuing([row(seed, 0, at(1))])))).collect();
    // A lock that somebody else holds makes them wait together.
    let other = rusqlite::Connection::open(folder.path().join("state.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    for commit in &mut commits {
        let waiting = commit.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert!(waiting.is_pending());
    }
    other.execute_batch("ROLLBACK").unwrap();
    for commit in commits {
        commit.await.unwrap();
    }
    let took = transactions(folder.path()) - before;
    // The writer may have taken one of them before the others came.
    assert!(took <= 2, "{took} transactions for {COMMITS} commits");
    assert_eq!(verify_everything(&store).await.unwrap().issued as u64, COMMITS);
}

#[tokio::test]
async fn one_refusal_in_a_group_leaves_the_others_alone() {
    let folder = folder();
    let store = create(folder.path());
    let mut good = pin!(store.commit(issuing([row(1, 0, at(0))])));
    let mut bad = pin!(store.commit(issuing([row(1, 0, at(0))])));
    let mut last = pin!(store.commit(putting("web", "1")));
    let other = rusqlite::Connection::open(folder.path().join("state.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let mut context = Context::from_waker(Waker::noop());
    assert!(good.as_mut().poll(&mut context).is_pending());
    assert!(bad.as_mut().poll(&mut context).is_pending());
    assert!(last.as_mut().poll(&mut context).is_pending());
    other.execute_batch("ROLLBACK").unwrap();
    assert_eq!(good.await.unwrap().first_index, 0);
    assert_eq!(bad.await.unwrap_err().code(), Code::AlreadyExists);
    assert_eq!(last.await.unwrap().first_index, 1);
    verify_everything(&store).await.unwrap();
}

/// Polls as a caller would that goes away then; the answer may be there already.
fn poll_once(commit: std::pin::Pin<&mut impl Future>) {
    let _answer = commit.poll(&mut Context::from_waker(Waker::noop())).is_ready();
}

#[tokio::test]
async fn a_batch_whose_caller_went_away_is_committed_all_the_same() {
    let folder = folder();
    let store = create(folder.path());
    let mut leaving = Box::pin(store.commit(putting("web", "1")));
    poll_once(leaving.as_mut());
    drop(leaving);
    assert_eq!(store.commit(putting("web", "2")).await.unwrap().revision, at(2));
    // And what is queued when the store is dropped is written before the directory is free.
    let mut leaving = Box::pin(store.commit(putting("web", "3")));
    poll_once(leaving.as_mut());
    drop(leaving);
    drop(store);
    assert_eq!(open(folder.path()).head().await.unwrap().revision, at(3));
}

#[tokio::test]
async fn a_lock_held_too_long_is_an_outage_and_no_damage() {
    let folder = folder();
    let store = create(folder.path());
    let other = rusqlite::Connection::open(folder.path().join("state.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let refused = store.commit(putting("web", "1")).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    assert_eq!(store.head().await.unwrap().revision, at(0), "reading goes on");
    other.execute_batch("ROLLBACK").unwrap();
    store.commit(putting("web", "1")).await.unwrap();
    verify_everything(&store).await.unwrap();
}
