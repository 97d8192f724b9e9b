//! What somebody else has done to a state is found when all of it is checked, in whichever table.

use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;

use countersign_identity::{KeyId, Timestamp};
use countersign_store::{
    Batch, Begins, FlowRow, KeysOf, Op, PaperRow, PointKey, PointRow, Store, StoreError, TallyOf,
    TallyRow, verify_everything,
};

use crate::fixture::{
    at, checkpoint, create, create_at, digest, doing, folder, issuing, node, node_id, noon, open,
    putting, remove, row, signed, token,
};
use crate::server::Cluster;

/// Something in every table, and a tile that is full.
async fn fill(store: &dyn Store) {
    store.commit(putting("web", "1")).await.unwrap();
    store.commit(putting("orders", "1")).await.unwrap();
    store.commit(putting("web", "2")).await.unwrap();
    store.commit(putting("gone", "1")).await.unwrap();
    store.commit(Batch { changes: vec![remove("gone")], ..Batch::default() }).await.unwrap();
    let rows: Vec<_> = (0..300).map(|seed| row(seed, 0, at(1))).collect();
    store.commit(issuing(rows)).await.unwrap();
    let spiffe_id = "spiffe://shop.example/web".parse().unwrap();
    let key = PointKey { node: node_id(1), spiffe_id, name: "web".to_owned() };
    let (first, last, sample) = (noon(), noon(), String::new());
    let minute = Timestamp::from_secs(60);
    let tally =
        TallyRow { at: minute, what: "a".to_owned(), first, last, count: 5, micros: 50, sample };
    let ops = [
        Op::PutNode(node(1)),
        Op::PutSecret { name: "authority/root".to_owned(), sealed: vec![0, 255] },
        Op::CreateToken(token(1)),
        Op::RevokeKeys { of: KeysOf::Key(KeyId::from_bytes([9; 32])), at: noon() },
        Op::PutPoint(PointRow { key, registered_at: noon() }),
        Op::AddFlow(FlowRow { flow: "a -> b".to_owned(), first, last, count: 3 }),
        Op::CreatePaper(PaperRow { name: "plan/1".to_owned(), value: vec![1] }),
        Op::AddTally(TallyOf::Requests, tally),
    ];
    store.commit(doing(ops)).await.unwrap();
    let (checkpoint, hashes) = signed(store, 1, 304).await;
    let ops = [Op::PutCheckpoint(checkpoint), Op::PutTileHashes { incarnation: 1, hashes }];
    store.commit(doing(ops)).await.unwrap();
}

/// What is done, and what is said of it. Bytes that do not fit are taken from where there are some.
const DONE: [(&str, &str); 25] = [
    (
        "UPDATE records SET value = (SELECT leaf FROM log WHERE log_index = 0) WHERE name = 'web'",
        "record `Workload/web` is not what the feed says",
    ),
    (
        "UPDATE records SET value = (SELECT value FROM changes WHERE number = 1) WHERE name = 'web'",
        "record `Workload/web` is not what the feed says",
    ),
    ("DELETE FROM records WHERE name = 'orders'", "record `Workload/orders` is missing"),
    (
        "INSERT INTO records (kind, name, value) SELECT kind, 'more', value FROM records WHERE name = 'web'",
        "record `Workload/more` is not what the feed says",
    ),
    (
        "INSERT INTO records (kind, name, value) SELECT kind, 'gone', value FROM records WHERE name = 'web'",
        "record `Workload/gone` is not what the feed says",
    ),
    ("DELETE FROM changes", "is not what the feed says"),
    ("DELETE FROM changes WHERE number = 2", "record `Workload/orders` is not what the feed says"),
    ("DELETE FROM commits", "the feed does not reach the head"),
    ("DELETE FROM commits WHERE number = 1", "the feed begins at 2, expected 1"),
    ("DELETE FROM commits WHERE number = 2", "the feed has a gap"),
    ("DELETE FROM commits WHERE number = 5", "the feed ends at 4"),
    (
        "INSERT INTO changes (number, position, kind, name, value) \
         SELECT 9, 0, kind, name, value FROM records WHERE name = 'web'",
        "changes of commits that are not kept",
    ),
    ("UPDATE nodes SET spiffe_id = 'x'", "a row of `nodes`"),
    ("UPDATE nodes SET labels = '{'", "a row of `nodes`"),
    ("UPDATE nodes SET attested_by = 'hearsay'", "a row of `nodes`"),
    ("UPDATE points SET spiffe_id = 'x'", "a row of `points`"),
    ("UPDATE tokens SET labels = 'x'", "a row of `tokens`"),
    (
        "UPDATE revoked_keys SET key_id = (SELECT leaf FROM log WHERE log_index = 0)",
        "a row of `revoked_keys`",
    ),
    ("UPDATE flows SET seen = -1", "a row of `flows`"),
    ("UPDATE papers SET name = (SELECT sealed FROM secrets)", "a row of `papers`"),
    ("UPDATE tallies SET micros = -1", "a row of `tallies`"),
    ("UPDATE checkpoints SET note = 'x'", "the checkpoint of size 304"),
    ("UPDATE checkpoints SET size = 301", "the checkpoint of size 301 is of another"),
    (
        "UPDATE tile_hashes SET hash = (SELECT hash FROM log WHERE log_index = 0)",
        "the hash of tile 0 of level 1",
    ),
    ("DELETE FROM tile_hashes", "the hash of tile 0 of level 1"),
];

/// What only a database takes whose columns have no types.
const DONE_UNTYPED: [(&str, &str); 3] = [
    ("UPDATE secrets SET name = x'00ff'", "a row of `secrets`"),
    ("UPDATE revoked_keys SET since = 'x'", "a row of `revoked_keys`"),
    ("UPDATE commits SET number = 77 WHERE number = 5", "the feed ends at 77"),
];

/// Says what is wrong with the verdict, if something is.
async fn missed(store: &dyn Store, done: &str, said: &str) -> Option<String> {
    match verify_everything(store).await {
        Err(StoreError::Broken { what }) if what.contains(said) => None,
        verdict => Some(format!("{done}: {verdict:?}")),
    }
}

async fn found(store: &dyn Store, done: &str, said: &str) {
    assert_eq!(missed(store, done, said).await, None);
}

/// ATTACKS 13 and 26.
#[tokio::test]
async fn what_was_done_to_any_table_of_a_directory_is_found() {
    let whole = folder();
    let store = create(whole.path());
    fill(&store).await;
    verify_everything(&store).await.unwrap();
    drop(store);
    let mut all = Vec::new();
    for (done, said) in DONE.into_iter().chain(DONE_UNTYPED) {
        let folder = copy_of(whole.path());
        let path = folder.path().join("state.db");
        rusqlite::Connection::open(path).unwrap().execute_batch(done).unwrap();
        all.extend(missed(&open(folder.path()), done, said).await);
    }
    assert!(all.is_empty(), "{} were not found: {all:#?}", all.len());
    let folder = copy_of(whole.path());
    verify_everything(&open(folder.path())).await.unwrap();
}

/// The same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_done_to_any_table_of_a_database_is_found() {
    let cluster = Cluster::shared();
    let database = cluster.database("read committed");
    let store = create_at(cluster, &database, 1).await;
    fill(&store).await;
    verify_everything(&store).await.unwrap();
    let tables = [
        "records",
        "commits",
        "changes",
        "nodes",
        "points",
        "tokens",
        "revoked_keys",
        "flows",
        "papers",
        "tallies",
        "checkpoints",
        "tile_hashes",
    ];
    let each = |text: &str| tables.map(|table| text.replace("TABLE", table)).join("; ");
    cluster.sql(&database, "CREATE SCHEMA kept");
    cluster.sql(&database, &each("SELECT * INTO kept.TABLE FROM public.TABLE"));
    let mut all = Vec::new();
    for (done, said) in DONE {
        cluster.sql(&database, done);
        all.extend(missed(&store, done, said).await);
        cluster
            .sql(&database, &each("DELETE FROM TABLE; INSERT INTO TABLE SELECT * FROM kept.TABLE"));
    }
    assert!(all.is_empty(), "{} were not found: {all:#?}", all.len());
    verify_everything(&store).await.unwrap();
}

fn copy_of(whole: &Path) -> tempfile::TempDir {
    let folder = folder();
    let path = folder.path().join("state.db");
    // What is in the file beside it goes into it.
    let connection = rusqlite::Connection::open(whole.join("state.db")).unwrap();
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_row| Ok(())).unwrap();
    std::fs::copy(whole.join("state.db"), path).unwrap();
    folder
}

/// Nobody reads this index but who writes: it says which keys of nodes there are.
#[tokio::test]
async fn bytes_that_the_disk_has_changed_in_an_index_are_found() {
    let folder = folder();
    let store = create(folder.path());
    fill(&store).await;
    drop(store);
    let path = folder.path().join("state.db");
    let connection = rusqlite::Connection::open(&path).unwrap();
    let number = |text: &str| connection.query_row(text, [], |row| row.get::<_, i64>(0)).unwrap();
    let page = number(
        "SELECT rootpage FROM sqlite_schema WHERE tbl_name = 'nodes' AND type = 'index' ORDER BY name DESC",
    );
    let bytes = number("PRAGMA page_size");
    drop(connection);
    let mut file = std::fs::File::options().read(true).write(true).open(&path).unwrap();
    let end = SeekFrom::Start(u64::try_from(page * bytes - 20).unwrap());
    let mut some = [0; 20];
    file.seek(end).unwrap();
    file.read_exact(&mut some).unwrap();
    file.seek(end).unwrap();
    file.write_all(&some.map(|byte| !byte)).unwrap();
    drop(file);
    found(&open(folder.path()), "bytes flipped", "index").await;
}

#[tokio::test]
async fn what_was_signed_of_other_leaves_or_of_more_than_there_are_is_found() {
    for (checkpoint, said) in [
        (checkpoint(1, 7, digest(1)), "the first 7 leaves are not those that were signed"),
        (checkpoint(1, 9, digest(1)), "the log ends at 8, 9 leaves were signed"),
        (checkpoint(2, 8, digest(1)), "the checkpoint of size 8 is of another"),
    ] {
        let folder = folder();
        let store = create(folder.path());
        let rows: Vec<_> = (0..8).map(|seed| row(seed, 0, at(0))).collect();
        store.commit(issuing(rows)).await.unwrap();
        let checkpoint = countersign_store::CheckpointRow { incarnation: 1, ..checkpoint };
        store.commit(doing([Op::PutCheckpoint(checkpoint)])).await.unwrap();
        found(&store, said, said).await;
    }
}

/// After a restore the feed begins anew, with records that it has never spoken of.
#[tokio::test]
async fn of_a_later_incarnation_the_record_that_says_so_must_be_in_the_feed() {
    let folder = folder();
    let store = create(folder.path());
    store.commit(putting("web", "1")).await.unwrap();
    let before = verify_everything(&store).await.unwrap();
    let from = serde_json::json!({ "incarnation": 1, "logSize": 1, "logRoot": before.root });
    let event = countersign_audit::EventKind::IncarnationBegan;
    let event = countersign_audit::Event::new(event, noon(), "server", "store");
    let events = vec![event.with_details(serde_json::json!({ "from": from }))];
    let record = countersign_store::Record {
        kind: countersign_store::Kind::Incarnation,
        name: "now".to_owned(),
        value: vec![1],
    };
    let changes = vec![countersign_store::Change::Put(record)];
    let begins = Some(Begins { incarnation: 4, log_size: 1 });
    store
        .commit(Batch { begins, narrows: true, events, changes, ..Batch::default() })
        .await
        .unwrap();
    verify_everything(&store).await.unwrap();
    drop(store);
    let path = folder.path().join("state.db");
    rusqlite::Connection::open(path).unwrap().execute_batch("DELETE FROM changes").unwrap();
    let said = "record `Incarnation/now` is not what the feed says";
    found(&open(folder.path()), "DELETE FROM changes", said).await;
}
