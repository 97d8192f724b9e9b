//! Programs of different versions on one database: each is this one, with fewer steps of the schema or with more.

use std::sync::Arc;
use std::time::Duration;

use countersign_audit::{Checkpoint, Event, EventKind, NoteKey, NoteKeyKind, Origin, root_of};
use countersign_identity::{SeededEntropy, Timestamp};

use super::PostgresStore;
use super::schema::STEPS;
use super::serve::Opening;
use super::session::Target;
use crate::copy::whole::{Column, is_copied};
use crate::version::{Older, Step, Steps};
use crate::{
    Batch, Change, CheckpointRow, Kind, Lease, Op, PRESENCE, Password, Place, Record, Store as _,
    StoreError, verify_everything,
};

#[path = "../../tests/support/postgres.rs"]
#[expect(dead_code, reason = "other tests need more of it")]
mod server;

use server::Cluster;

/// The program before the log was signed.
const EARLIER: Steps = &[STEPS[0], STEPS[1], STEPS[2]];
/// The one after this, which adds to what every write fills.
const NEXT: Step = Step {
    ddl: "ALTER TABLE log ADD COLUMN shard BIGINT NOT NULL DEFAULT 0; \
          CREATE TABLE shards (id BIGINT PRIMARY KEY)",
    older: Older::GoOn,
};
/// And one that changes what others rely on.
const AFTER: Step = Step { ddl: "ALTER TABLE past_log DROP COLUMN salt", older: Older::Stop };
const LATER: Steps =
    &[STEPS[0], STEPS[1], STEPS[2], STEPS[3], STEPS[4], STEPS[5], STEPS[6], STEPS[7], NEXT];
const LAST: Steps =
    &[STEPS[0], STEPS[1], STEPS[2], STEPS[3], STEPS[4], STEPS[5], STEPS[6], STEPS[7], NEXT, AFTER];

/// Both isolations that a database may have by default.
const ISOLATIONS: [&str; 2] = ["read committed", "serializable"];

/// A database of its own.
struct Database(String);

impl Database {
    fn make(isolation: &str) -> Self {
        Self(Cluster::shared().database(isolation))
    }

    /// A replica that knows these steps.
    async fn program(&self, steps: Steps, opening: Opening) -> crate::Result<PostgresStore> {
        let url = Cluster::shared().url(&self.0).parse().unwrap();
        let target = Target { steps, ..Target::new(url, Password::None) };
        PostgresStore::start(target, Arc::new(SeededEntropy::new(1)), opening).await
    }

    async fn open(&self, steps: Steps) -> crate::Result<PostgresStore> {
        self.program(steps, Opening::Open).await
    }

    fn says(&self, text: &str) -> String {
        Cluster::shared().sql(&self.0, text)
    }
}

fn putting(value: u64) -> Batch {
    let value = value.to_string().into_bytes();
    let record = Record { kind: Kind::Service, name: "web".to_owned(), value };
    let noon = Timestamp::from_secs(1_795_262_400);
    let event = Event::new(EventKind::RecordPut, noon, "operator:uid:0", "web");
    Batch { changes: vec![Change::Put(record)], events: vec![event], ..Batch::default() }
}

/// Writes through a replica until a condition holds; every write must succeed.
async fn write_until(store: &PostgresStore, mut done: impl FnMut() -> bool) -> u64 {
    let mut count = 0;
    while !done() {
        store.commit(putting(count)).await.unwrap();
        count += 1;
    }
    count
}

#[track_caller]
fn stopped<T>(outcome: crate::Result<T>, needed: u64) {
    match outcome {
        Err(StoreError::NewerSchema { needs, .. }) => assert_eq!(needs, needed),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("it goes on"),
    }
}

/// An older program has written the state; the newer one brings it to its version while that goes on writing.
async fn is_upgraded_under_traffic(isolation: &str, older: Steps, newer: Steps) {
    let database = Database::make(isolation);
    let before = database.program(older, Opening::Create).await.unwrap();
    before.commit(putting(0)).await.unwrap();
    let upgrade = database.open(newer);
    let finished = std::cell::Cell::new(false);
    let upgrading = async {
        let store = upgrade.await;
        finished.set(true);
        store
    };
    let writing = write_until(&before, || finished.get());
    let (after, count) = futures_util::future::join(upgrading, writing).await;
    let after = after.unwrap();
    let version = "SELECT version FROM countersign_schema";
    assert_eq!(database.says(version), newer.len().to_string());
    // Both serve, and see what the other writes. A restart changes nothing of that.
    let root = root_of(&after.leaf_hashes(0, 1).await.unwrap());
    let key = NoteKey::new("shop.example/log", NoteKeyKind::Log, [7; 32]).unwrap();
    let checkpoint = Checkpoint { origin: Origin::of(&key, 1), size: 1, root };
    let note = checkpoint.note().with_signature(&key, &[9; 64]).to_string();
    let ops = vec![Op::PutCheckpoint(CheckpointRow { incarnation: 1, size: 1, note })];
    after.commit(Batch { ops, ..putting(1) }).await.unwrap();
    before.commit(putting(2)).await.unwrap();
    drop(before);
    let again = database.open(older).await.unwrap();
    again.commit(putting(3)).await.unwrap();
    after.commit(putting(4)).await.unwrap();
    let whole = verify_everything(&after).await.unwrap();
    assert_eq!(whole, verify_everything(&again).await.unwrap());
    assert_eq!(whole.head.revision.number, 1 + count + 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_earlier_program_wrote_is_upgraded_while_that_goes_on_writing() {
    for isolation in ISOLATIONS {
        is_upgraded_under_traffic(isolation, EARLIER, STEPS).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn this_program_goes_on_while_a_later_one_adds_to_what_it_writes() {
    for isolation in ISOLATIONS {
        is_upgraded_under_traffic(isolation, STEPS, LATER).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_that_would_break_others_is_refused_until_they_are_gone_and_then_they_stay_away() {
    for isolation in ISOLATIONS {
        waits_for_others_to_be_gone(&Database::make(isolation)).await;
    }
}

async fn waits_for_others_to_be_gone(database: &Database) {
    let older = database.program(STEPS, Opening::Create).await.unwrap();
    older.commit(putting(0)).await.unwrap();
    let refused = database.open(LAST).await.err().unwrap();
    assert!(
        matches!(
            refused,
            StoreError::OlderPrograms { version: 10, known: 8, connections: 1.., .. }
        ),
        "{refused}"
    );
    assert!(refused.to_string().contains("stop them, then start this one again"), "{refused}");
    // What only adds was done; nothing of the other step was, and the older one serves on.
    let version = "SELECT version FROM countersign_schema";
    assert_eq!(database.says(version), "9");
    older.commit(putting(1)).await.unwrap();
    verify_everything(&older).await.unwrap();
    drop(older);
    // The database hears of it a moment later.
    let newer = loop {
        match database.open(LAST).await {
            Err(StoreError::OlderPrograms { .. }) => tokio::task::yield_now().await,
            outcome => break outcome.unwrap(),
        }
    };
    newer.commit(putting(2)).await.unwrap();
    assert_eq!(database.says(version), "10");
    stopped(database.open(STEPS).await, 10);
    newer.commit(putting(3)).await.unwrap();
}

/// One that connects in the moment between: it has read the state, and is told before it writes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_the_refusal_missed_writes_nothing_more() {
    for isolation in ISOLATIONS {
        is_told_before_it_writes(&Database::make(isolation)).await;
    }
}

async fn is_told_before_it_writes(database: &Database) {
    let older = database.program(STEPS, Opening::Create).await.unwrap();
    older.commit(putting(0)).await.unwrap();
    database.says(
        "BEGIN; UPDATE countersign_schema SET version = 9; \
         UPDATE head SET needs = 9, writes = writes + 1; COMMIT",
    );
    stopped(older.commit(putting(1)).await, 9);
    stopped(older.head().await, 9);
    assert_eq!(database.says("SELECT number FROM head"), "1");
}

/// Shows for as long as it is asked that a server works there, as servers do.
async fn works(store: &PostgresStore) -> std::convert::Infallible {
    let (name, holder) = (format!("{PRESENCE}one"), "one".to_owned());
    let mut before = None;
    for turn in 1.. {
        let ends = Timestamp::from_secs(turn);
        let lease = Lease { holder: holder.clone(), ends };
        assert!(store.lease(&name, lease.clone(), before).await.unwrap());
        before = Some(lease);
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    unreachable!("it goes on until it is dropped")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_is_refused_for_servers_of_an_earlier_program_leaves_their_schema_as_it_is() {
    let database = Database::make(ISOLATIONS[0]);
    let older = database.program(EARLIER, Opening::Create).await.unwrap();
    older.commit(putting(0)).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let url = Cluster::shared().url(&database.0).parse().unwrap();
    let (from, to) =
        (Place::Database(url, Password::None), Place::Directory(folder.path().to_owned()));
    let copied = || {
        let entropy = Arc::new(SeededEntropy::new(1));
        crate::copy::<StoreError>(&from, &to, entropy, |_records| Ok(()))
    };
    let refused = tokio::select! {
        copied = copied() => copied.unwrap_err(),
        never = works(&older) => match never {},
    };
    assert!(matches!(refused, StoreError::Served { .. }), "{refused}");
    let version = "SELECT version FROM countersign_schema";
    assert_eq!(database.says(version), EARLIER.len().to_string());
    older.commit(putting(1)).await.unwrap();
    // Once they are gone it is brought on, and copied.
    drop(older);
    assert_eq!(copied().await.unwrap().verification.head.revision.number, 2);
    assert_eq!(database.says(version), STEPS.len().to_string());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_table_and_column_of_postgresql_is_copied_or_left_out_for_a_reason() {
    let database = Database::make(ISOLATIONS[0]);
    drop(database.program(STEPS, Opening::Create).await.unwrap());
    let all = "SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod), \
               COALESCE(array_position(i.indkey::SMALLINT[], a.attnum) + 1, 0) \
               FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid \
               LEFT JOIN pg_index AS i ON i.indrelid = c.oid AND i.indisprimary \
               WHERE c.relkind = 'r' AND c.relnamespace = 'public'::REGNAMESPACE \
               AND 0 < a.attnum AND NOT a.attisdropped";
    let column = |line: &str| {
        let [table, name, kind, key] = line.split('|').collect::<Vec<_>>().try_into().unwrap();
        let (table, name, kind) = (table.to_owned(), name.to_owned(), kind.to_owned());
        Column { table, name, kind, key: key.parse().unwrap() }
    };
    is_copied(&database.says(all).lines().map(column).collect::<Vec<_>>());
}
