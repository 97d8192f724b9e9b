//! What was done to a state by hand is found by whoever checks it, as it would be by a server that starts, or though none would see it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use countersign_api::admin::SuspendRequest;
use countersign_identity::{Clock as _, Code, Reason, Suspended, SystemEntropy};
use countersign_seal::KekFile;
use countersign_store::{Place, SqliteStore};

use super::{Realm, workload};
use crate::backup::{BackupConfig, backup_at};
use crate::config::{Config, StartError, StoreAt, kek_path};
use crate::storage::{KeyAt, copy_store, verify_store};

/// What is done, and what is said of it.
const DONE: [(&str, &str); 4] = [
    ("DELETE FROM records WHERE kind = 'Suspension'", "is missing, and the feed does not say why"),
    // In both places, so that one does not tell of the other.
    (
        "UPDATE records SET value = x'00ff' WHERE kind = 'Workload'; \
         UPDATE changes SET value = x'00ff' WHERE kind = 'Workload'",
        "record `Workload/web` does not parse",
    ),
    (
        "DELETE FROM records WHERE kind = 'TrustDomain'; DELETE FROM changes WHERE kind = 'TrustDomain'",
        "the state holds 0 records of kind `TrustDomain`",
    ),
    ("UPDATE nodes SET spiffe_id = 'x'", "a row of `nodes`"),
];

fn key(path: &Path) -> KeyAt {
    KeyAt { path: path.to_owned(), kek: KekFile::open(path).unwrap() }
}

/// ATTACKS 13.
#[tokio::test]
async fn a_state_that_was_changed_by_hand_is_not_in_order_and_is_copied_nowhere() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    running.apply(vec![workload("web", &[])]).await;
    super::Agent::join(&realm, &running, &[]).await;
    let target = Suspended::Identity("spiffe://shop.example/web".parse().unwrap());
    let suspend = SuspendRequest { target, reason: Reason::ProcessCompromise };
    running.admin.suspend(&suspend).await.unwrap();
    running.stop().await;
    realm.verify_everything().await;
    let kek = key(&kek_path(&realm.data()));
    for (number, (done, said)) in DONE.into_iter().enumerate() {
        let (data, new) = (realm.place(&format!("d{number}")), realm.place(&format!("n{number}")));
        let place = copy_with(&realm.data(), &data, done);
        std::fs::create_dir(&new).unwrap();
        let refused = verify_store(&place, Some(&kek)).await.unwrap_err();
        assert!(refused.to_string().contains(said), "{done}: {refused}");
        assert_eq!(refused.code(), Code::Internal, "{done}: {refused}");
        let refused = copy_store(&place, &Place::Directory(new.clone())).await.unwrap_err();
        assert!(refused.to_string().contains(said), "{done}: {refused}");
        assert!(!new.join("state.db").exists(), "{done}");
    }
    // Nor does a backup of it become a state.
    let (done, said) = DONE[0];
    let path = realm.data().join("state.db");
    rusqlite::Connection::open(path).unwrap().execute_batch(done).unwrap();
    realm.save().await;
    let config = realm.restoring("e");
    let refused = realm.restore(&config).await.unwrap_err();
    assert!(refused.to_string().contains(said), "{refused}");
    assert!(!config.data.exists());
}

/// As one is that a copy of the directory left without the file beside it, or an old one in its place.
#[tokio::test]
async fn a_state_that_lost_its_tail_or_all_of_it_is_not_in_order_nor_is_it_saved_or_copied() {
    let realm = Realm::begin().await;
    let (old, empty) = (realm.place("old"), realm.place("empty"));
    copy_with(&realm.data(), &old, "");
    drop(SqliteStore::create(&empty_folder(&empty), Arc::new(SystemEntropy)).unwrap());
    let running = realm.serve().await;
    running.apply(vec![workload("web", &[])]).await;
    running.stop().await;
    let place = Place::Directory(realm.data());
    verify_store(&place, None).await.unwrap();
    let config = BackupConfig {
        data: realm.data(),
        store: StoreAt::Directory,
        kek: None,
        file: realm.place("backup"),
        unlock: None,
    };
    for (from, said) in [(&old, "is behind what the server of"), (&empty, "no trust domain")] {
        put_state(from, &realm.data());
        let refused = verify_store(&place, None).await.unwrap_err();
        assert!(refused.to_string().contains(said), "{refused}");
        assert_eq!(refused.code(), Code::Internal);
        let saved = backup_at(&config, realm.clock.now(), &mut |_, _| {}).await;
        let refused = saved.unwrap_err();
        assert!(matches!(refused, StartError::Behind { .. }), "{refused}");
        assert!(!config.file.exists());
        let new = empty_folder(&realm.place(said));
        let refused = copy_store(&place, &Place::Directory(new.clone())).await.unwrap_err();
        assert!(matches!(refused, StartError::Behind { .. }), "{refused}");
        assert!(!new.join("state.db").exists());
    }
    // Also where nothing was ever seen.
    let new = empty_folder(&realm.place("new"));
    let from = Place::Directory(empty.clone());
    let refused = copy_store(&from, &Place::Directory(new.clone())).await.unwrap_err();
    assert!(matches!(refused, StartError::Nothing), "{refused}");
    assert!(!new.join("state.db").exists());
    let fresh = Config::new(realm.data(), ([127, 0, 0, 1], 0).into());
    let refused = realm.start(fresh).await.err().unwrap();
    assert!(matches!(refused, StartError::Nothing), "{refused}");
    // What the server has lost is told as before where it begins a new incarnation, and is in order from then on.
    put_state(&old, &realm.data());
    realm.serve().await.stop().await;
    verify_store(&place, None).await.unwrap();
}

#[tokio::test]
async fn sealed_keys_that_do_not_open_are_found_by_who_has_the_key() {
    let realm = Realm::begin().await;
    realm.serve().await.stop().await;
    let own = key(&kek_path(&realm.data()));
    let whole = Place::Directory(realm.data());
    let verified = verify_store(&whole, Some(&own)).await.unwrap();
    assert!(2 <= verified.opened.unwrap().unwrap());
    assert!(verify_store(&whole, None).await.unwrap().opened.is_none());
    // One byte, where the seal holds it, made another.
    let done = "UPDATE secrets SET sealed = CAST(substr(sealed, 1, 200) || \
                CASE substr(sealed, 201, 1) WHEN x'00' THEN x'01' ELSE x'00' END || substr(sealed, 202) AS BLOB) \
                WHERE name = 'authority/root'";
    let place = copy_with(&realm.data(), &realm.place("e"), done);
    let refused = verify_store(&place, Some(&own)).await.unwrap_err();
    assert!(refused.to_string().contains("`authority/root` does not open"), "{refused}");
    verify_store(&place, None).await.unwrap();
    // A key of somebody else is whose fault it is who named it.
    let other = realm.place("other");
    KekFile::create(&other, &SystemEntropy).unwrap();
    let verified = verify_store(&whole, Some(&key(&other))).await.unwrap();
    let refused = verified.opened.unwrap().unwrap_err();
    assert!(matches!(refused, StartError::WrongKek { .. }), "{refused}");
    assert_eq!(refused.code(), Code::NotUnderstood);
}

fn empty_folder(path: &Path) -> PathBuf {
    std::fs::create_dir(path).unwrap();
    path.to_owned()
}

/// Puts the file of one state in the place of another's, of which nothing is left.
fn put_state(from: &Path, to: &Path) {
    for ending in ["-wal", "-shm"] {
        let _absent = std::fs::remove_file(to.join(format!("state.db{ending}")));
    }
    std::fs::copy(from.join("state.db"), to.join("state.db")).unwrap();
}

/// A copy of the state alone, to which this was done.
fn copy_with(from: &Path, to: &Path, done: &str) -> Place {
    std::fs::create_dir(to).unwrap();
    let path = to.join("state.db");
    // What is in the file beside it goes into it.
    let connection = rusqlite::Connection::open(from.join("state.db")).unwrap();
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_row| Ok(())).unwrap();
    std::fs::copy(from.join("state.db"), &path).unwrap();
    rusqlite::Connection::open(path).unwrap().execute_batch(done).unwrap();
    Place::Directory(to.to_owned())
}
