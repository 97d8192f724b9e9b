//! What our own connections are told first, and what becomes of one whose program hangs.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use countersign_identity::{Code, Entropy, EntropyLost};
use countersign_store::{Password, PostgresStore, Store, verify_everything};

use crate::fixture::{ISOLATIONS, create_at, entropy, open_at, putting, refuse_other_levels};
use crate::outage::PATIENCE;
use crate::server::Cluster;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_waits_for_the_disk_and_for_nobody_that_hangs_whatever_the_database_says() {
    let cluster = Cluster::shared();
    for (says, holds) in [
        ("off", "on"),
        ("local", "on"),
        ("remote_write", "on"),
        ("on", "on"),
        ("remote_apply", "remote_apply"),
    ] {
        let database = cluster.database("read committed");
        drop(create_at(cluster, &database, 1).await);
        let [one, two, three, four] = [
            "synchronous_commit",
            "statement_timeout",
            "lock_timeout",
            "idle_in_transaction_session_timeout",
        ];
        for (setting, value) in [(one, says), (two, "0"), (three, "0"), (four, "0")] {
            cluster.sql(&database, &format!("ALTER DATABASE {database} SET {setting} = '{value}'"));
        }
        // The transaction of a write says itself what holds for it.
        let note = format!(
            "CREATE TABLE told (one TEXT, two TEXT, three TEXT, four TEXT); \
             CREATE FUNCTION tell() RETURNS TRIGGER LANGUAGE plpgsql AS $$ BEGIN \
             INSERT INTO told SELECT current_setting('{one}'), current_setting('{two}'), \
             current_setting('{three}'), current_setting('{four}'); RETURN NEW; END $$; \
             CREATE TRIGGER tell BEFORE INSERT ON commits FOR EACH ROW EXECUTE FUNCTION tell()"
        );
        cluster.sql(&database, &note);
        let store = open_at(cluster, &database, 2).await;
        store.commit(putting("web", "1")).await.unwrap();
        let told = cluster.sql(&database, "SELECT * FROM told");
        assert_eq!(told, format!("{holds}|900ms|800ms|900ms"), "where the database says {says}");
    }
}

/// Chance that hangs once it is told to, until it is let go: with it hangs the whole replica, between reading and writing.
struct Hanging {
    hangs: AtomicBool,
    says: Mutex<Sender<()>>,
    goes_on: Mutex<Receiver<()>>,
}

impl Entropy for Hanging {
    fn fill(&self, bytes: &mut [u8]) -> Result<(), EntropyLost> {
        // A single byte is chance for a pause.
        if bytes.len() != 1 && self.hangs.load(Ordering::Acquire) {
            self.says.lock().unwrap().send(()).unwrap();
            self.goes_on.lock().unwrap().recv_timeout(PATIENCE).unwrap();
        }
        entropy(7).fill(bytes)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_hangs_with_the_head_row_is_ended_by_what_it_told_the_database() {
    for isolation in ISOLATIONS {
        hangs(isolation).await;
    }
}

async fn hangs(isolation: &str) {
    let cluster = Cluster::shared();
    let database = cluster.database(isolation);
    let other = create_at(cluster, &database, 1).await;
    refuse_other_levels(cluster, &database, isolation);
    let ((says, said), (go, goes_on)) = (channel(), channel());
    let hanging = Arc::new(Hanging {
        hangs: AtomicBool::new(false),
        says: Mutex::new(says),
        goes_on: Mutex::new(goes_on),
    });
    let url = cluster.url(&database).parse().unwrap();
    let chance = Arc::clone(&hanging) as Arc<dyn Entropy>;
    let store = Arc::new(PostgresStore::open(url, Password::None, chance).await.unwrap());
    hanging.hangs.store(true, Ordering::Release);
    let committing = tokio::spawn({
        let store = Arc::clone(&store);
        async move { store.commit(putting("web", "hangs")).await }
    });
    // At first it hopes, and nothing is open; once another has written, it takes the head row, and then hangs.
    said.recv_timeout(PATIENCE).unwrap();
    other.commit(putting("web", "between")).await.unwrap();
    go.send(()).unwrap();
    said.recv_timeout(PATIENCE).unwrap();
    let begin = Instant::now();
    other.commit(putting("web", "goes on")).await.unwrap();
    assert!(begin.elapsed() < Duration::from_secs(15), "{:?}", begin.elapsed());
    // The database says whom it ended: one that was idle in a transaction, which is the one that held the row.
    let ended = format!("25P03 {database} FATAL:");
    let log = cluster.log();
    assert_eq!(log.lines().filter(|line| line.starts_with(&ended)).count(), 1, "it held the row");
    hanging.hangs.store(false, Ordering::Release);
    go.send(()).unwrap();
    // What it had in hand is not done, or done once more from the beginning.
    if let Err(error) = committing.await.unwrap() {
        assert_eq!(error.code(), Code::Unavailable, "{error}");
    }
    store.commit(putting("web", "is back")).await.unwrap();
    verify_everything(&*store).await.unwrap();
}
