//! A state that moves from one backend to another and back, whole or not at all.

use std::path::Path;

use countersign_audit::{Event, EventKind};
use countersign_identity::{KeyId, Revision, Timestamp};
use countersign_store::{
    Batch, Begins, Dumped, Dumping, Filled, Filling, FlowRow, Head, IssuedRow, KeysOf, Op,
    PaperRow, Password, Place, PointKey, PointRow, SqliteStore, Store, StoreError, TallyOf,
    TallyRow, verify_everything,
};

use tokio::runtime::Handle;
use tokio::task::block_in_place;

use crate::fixture::{
    after, at, copy, create, create_at, digest, doing, entropy, folder, issuing, node, node_id,
    noon, open, open_at, put, putting, remove, row, signed, token,
};
use crate::rows::Rows;
use crate::server::Cluster;

/// The life after the first.
const SECOND: u64 = 3;

/// Something in every table, and in each column that may be empty both something and nothing.
async fn fill(store: &dyn Store) {
    for round in 0..5 {
        store.commit(putting(&format!("w{round}"), "1")).await.unwrap();
    }
    store
        .commit(issuing((0..450).map(|seed| row(seed, 0, at(5))).collect::<Vec<_>>()))
        .await
        .unwrap();
    let ops = [
        Op::PutNode(node(1)),
        Op::PutNode(node(2)),
        Op::PutNode(node(3)),
        Op::PutSecret { name: "authority/root".to_owned(), sealed: vec![0, 1, 2, 255] },
        Op::RevokeKeys { of: KeysOf::Key(KeyId::from_bytes([9; 32])), at: noon() },
        Op::PutPoint(point("web")),
        Op::AddFlow(flow("é -> web\0")),
        Op::CreatePaper(PaperRow { name: "plan/é".to_owned(), value: vec![0, 200] }),
        Op::AddTally(TallyOf::Handshakes, tally("a\0")),
        Op::AddTally(TallyOf::Requests, tally("b")),
    ];
    let mut batch = Batch { narrows: true, ..doing(ops) };
    batch.events = vec![Event::new(EventKind::NodeAttested, noon(), "server", "a node")];
    store.commit(batch).await.unwrap();
    sign(store, 1, 456).await;
    begin(store).await;
    let now = Revision { incarnation: SECOND, number: 1 };
    let mut batch = putting("orders", "2");
    batch.changes.extend([put("twice", "a"), put("twice", "b"), remove("w3")]);
    store.commit(batch).await.unwrap();
    let nobodys = IssuedRow { node: None, ..row(500, 60, now) };
    store.commit(issuing([nobodys, row(501, 60, now)])).await.unwrap();
    sign(store, SECOND, 4).await;
    // The tokens of a life end with it.
    let tokens = [Op::CreateToken(token(1)), Op::CreateToken(token(2))];
    store.commit(doing(tokens)).await.unwrap();
    store.commit(doing([Op::SpendToken { hash: digest(2), now: noon() }])).await.unwrap();
}

/// The next life of the store, whose log begins with what the one before has come to.
pub(crate) async fn begin(store: &dyn Store) {
    let before = verify_everything(store).await.unwrap();
    let (log_size, root) = (before.head.log_size, before.root);
    let from = serde_json::json!({ "incarnation": 1, "logSize": log_size, "logRoot": root });
    let event = Event::new(EventKind::IncarnationBegan, noon(), "server", "store");
    let event = event.with_details(serde_json::json!({ "from": from }));
    let begins = Some(Begins { incarnation: SECOND, log_size });
    let began = Batch { begins, narrows: true, events: vec![event], ..Batch::default() };
    store.commit(Batch { changes: vec![put("began", "1")], ..began }).await.unwrap();
}

/// What stands beside a log, as the server writes it.
async fn sign(store: &dyn Store, incarnation: u64, size: u64) {
    let (checkpoint, hashes) = signed(store, incarnation, size).await;
    let ops = vec![
        Op::PutCheckpoint(checkpoint),
        Op::PutTileHashes { incarnation, hashes },
        Op::TrimDetails { incarnation, from: 1, to: 3 },
    ];
    store.commit(doing(ops)).await.unwrap();
}

fn point(name: &str) -> PointRow {
    let spiffe_id = "spiffe://shop.example/web".parse().unwrap();
    let key = PointKey { node: node_id(1), spiffe_id, name: name.to_owned() };
    PointRow { key, registered_at: after(7) }
}

fn flow(text: &str) -> FlowRow {
    FlowRow { flow: text.to_owned(), first: noon(), last: after(9), count: 3 }
}

fn tally(what: &str) -> TallyRow {
    let (at, sample) = (Timestamp::from_secs(60), "seen".to_owned());
    TallyRow { at, what: what.to_owned(), first: at, last: after(1), count: 5, micros: 50, sample }
}

/// Everything that can be read, in words.
async fn contents(store: &dyn Store) -> String {
    let whole = verify_everything(store).await.unwrap();
    let events = store.events(0, 1000).await.unwrap();
    let past = store.past_events(1, 0, 1000).await.unwrap();
    let issued = store.issued_after(None, 1000).await.unwrap();
    let nodes = store.nodes(None, 100).await.unwrap();
    let tokens = (store.token(digest(1)).await.unwrap(), store.token(digest(2)).await.unwrap());
    let secret = store.secret("authority/root").await.unwrap();
    let feed = store.changes(Revision { incarnation: SECOND, number: 0 }, 100).await.unwrap();
    let snapshot = store.snapshot().await.unwrap();
    format!(
        "{whole:?}{events:?}{past:?}{issued:?}{nodes:?}{tokens:?}{secret:?}{feed:?}{snapshot:?}"
    )
}

/// Where a copy that is to be refused would go.
struct Elsewhere {
    folder: tempfile::TempDir,
    database: String,
}

impl Elsewhere {
    fn make(isolation: &str) -> Self {
        Self { folder: folder(), database: Cluster::shared().database(isolation) }
    }

    fn directory(&self) -> Place {
        Place::Directory(self.folder.path().into())
    }

    fn database(&self) -> Place {
        place_of(&self.database)
    }

    /// Checks that there is no state at either of them.
    #[track_caller]
    fn is_unused(&self) {
        let left: Vec<_> = std::fs::read_dir(self.folder.path()).unwrap().collect();
        let left = left.into_iter().map(|entry| entry.unwrap().file_name());
        let left: Vec<_> = left.filter(|name| name != "state.lock").collect();
        assert!(left.is_empty(), "{left:?}");
        let rows = Rows::of_database(Cluster::shared(), &self.database);
        if !rows.tables.is_empty() {
            rows.have_nothing();
        }
    }
}

fn place_of(database: &str) -> Place {
    Place::Database(Cluster::shared().url(database).parse().unwrap(), Password::None)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_that_moves_to_postgresql_and_back_is_the_same_in_every_column() {
    let (one, two, cluster) = (folder(), folder(), Cluster::shared());
    let database = cluster.database("serializable");
    let database_place = place_of(&database);
    let store = create(one.path());
    fill(&store).await;
    let before = contents(&store).await;
    let in_use = Place::Directory(one.path().into());
    let locked = copy(&in_use, &database_place, 5).await.unwrap_err();
    assert!(matches!(locked, StoreError::Locked { .. }), "a server runs on it: {locked}");
    drop(store);
    let rows_before = Rows::of_directory(one.path());
    rows_before.have_everything();

    let copied = copy(&in_use, &database_place, 5).await.unwrap();
    let rows = |name: &str| copied.tables.iter().find(|(table, _)| *table == name).unwrap().1;
    assert_eq!((rows("issued"), rows("log"), rows("past_log")), (452, 4, 456));
    assert_eq!((rows("nodes"), rows("tokens"), rows("tallies")), (3, 2, 2));
    assert_eq!(Rows::of_database(cluster, &database), rows_before);
    let store = open_at(cluster, &database, 6).await;
    assert_eq!(contents(&store).await, before);
    drop(store);

    let back = Place::Directory(two.path().into());
    let returned = copy(&database_place, &back, 5).await.unwrap();
    assert_eq!(returned, copied);
    assert_eq!(Rows::of_directory(two.path()), rows_before);
    let store = open(two.path());
    assert_eq!(contents(&store).await, before);
    // It goes on where it was.
    store.commit(putting("web", "3")).await.unwrap();
    assert_eq!(store.head().await.unwrap().log_size, 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_replaces_nothing() {
    let (one, two, cluster) = (folder(), folder(), Cluster::shared());
    drop(create(one.path()));
    let from = Place::Directory(one.path().into());
    let database = cluster.database("read committed");
    create_at(cluster, &database, 1).await.commit(putting("web", "1")).await.unwrap();
    let refused = copy(&from, &place_of(&database), 1).await.unwrap_err();
    assert!(matches!(refused, StoreError::AlreadyExists { .. }), "{refused}");
    drop(SqliteStore::create(two.path(), entropy(1)).unwrap());
    let refused = copy(&from, &Place::Directory(two.path().into()), 1).await.unwrap_err();
    assert!(matches!(refused, StoreError::AlreadyExists { .. }), "{refused}");
}

/// What a database does to rows on their way in, and how the copy tells of it.
const SPOILT: [(&str, &str, &str); 4] = [
    (
        "issued",
        "IF NEW.log_index = 7 THEN RETURN NULL; END IF;",
        "`issued` has 451 rows, expected 452",
    ),
    ("records", "NEW.value := '\\x00';", "`records` has other values"),
    ("nodes", "NEW.attested_by := NULL;", "`nodes` has other values"),
    ("log", "NEW.hash := decode(repeat('5a', 32), 'hex');", "`log` has other values"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_lacks_a_row_or_differs_in_a_value_is_refused_and_its_place_stays_unused() {
    let (one, cluster) = (folder(), Cluster::shared());
    let store = create(one.path());
    fill(&store).await;
    drop(store);
    let from = Place::Directory(one.path().into());
    let new = Elsewhere::make("read committed");
    drop(create_at(cluster, &new.database, 1).await);
    for (table, spoils, said) in SPOILT {
        cluster.sql(
            &new.database,
            &format!(
                "CREATE FUNCTION spoil() RETURNS TRIGGER LANGUAGE plpgsql AS \
                 $$ BEGIN {spoils} RETURN NEW; END $$; \
                 CREATE TRIGGER spoil BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION spoil()"
            ),
        );
        let refused = copy(&from, &new.database(), 1).await.unwrap_err();
        assert!(matches!(refused, StoreError::Broken { .. }), "{refused}");
        assert!(refused.to_string().contains(said), "{refused}");
        new.is_unused();
        cluster
            .sql(&new.database, &format!("DROP TRIGGER spoil ON {table}; DROP FUNCTION spoil()"));
    }
    copy(&from, &new.database(), 1).await.unwrap();
    assert_eq!(Rows::of_database(cluster, &new.database), Rows::of_directory(one.path()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_that_is_not_in_order_is_copied_nowhere() {
    let one = folder();
    let store = create(one.path());
    fill(&store).await;
    drop(store);
    let connection = rusqlite::Connection::open(one.path().join("state.db")).unwrap();
    connection.execute("UPDATE log SET leaf = x'00' WHERE log_index = 2", []).unwrap();
    drop(connection);
    let from = Place::Directory(one.path().into());
    let new = Elsewhere::make("serializable");
    for to in [new.directory(), new.database()] {
        let refused = copy(&from, &to, 1).await.unwrap_err();
        assert!(matches!(refused, StoreError::Broken { .. }), "{refused}");
        assert!(refused.to_string().contains("leaf 2"), "{refused}");
        new.is_unused();
    }
}

/// All pages of a state, what they say together, and its head.
async fn dumped(from: &Path) -> (Vec<Vec<u8>>, Dumped, Head) {
    let dumping = Dumping::open(&Place::Directory(from.into())).await.unwrap();
    let mut pages = Vec::new();
    let dumped = dumping.pages(|page| {
        pages.push(page.bytes);
        Ok::<(), StoreError>(())
    });
    let dumped = dumped.await.unwrap();
    (pages, dumped, *dumping.head())
}

fn counts(dumped: &Dumped) -> Vec<(String, u64)> {
    dumped.tables.iter().map(|(name, rows)| ((*name).to_owned(), *rows)).collect()
}

/// What a backup must not become a state of: one that lacks a page, has another root, or ends in the middle.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_filling_that_is_not_what_was_dumped_or_is_broken_off_leaves_its_place_unused() {
    let one = folder();
    let store = create(one.path());
    fill(&store).await;
    drop(store);
    let (pages, whole, head) = dumped(one.path()).await;
    let new = Elsewhere::make("serializable");
    for to in [new.directory(), new.database()] {
        for (left_out, root) in
            [(Some(3), whole.root), (Some(pages.len() - 1), whole.root), (None, digest(9))]
        {
            let filling = Filling::create(to.clone(), entropy(7)).await.unwrap();
            for (_, page) in pages.iter().enumerate().filter(|(place, _)| Some(*place) != left_out)
            {
                filling.put(page).await.unwrap();
            }
            let refused = filling.finish(&head, &counts(&whole), root).await.unwrap_err();
            assert!(matches!(refused, StoreError::Broken { .. }), "{refused}");
            new.is_unused();
        }
        let filling = Filling::create(to.clone(), entropy(7)).await.unwrap();
        for page in &pages[..pages.len() / 2] {
            filling.put(page).await.unwrap();
        }
        drop(filling);
        new.is_unused();
    }
    for to in [new.directory(), new.database()] {
        let filling = Filling::create(to.clone(), entropy(7)).await.unwrap();
        for page in &pages {
            filling.put(page).await.unwrap();
        }
        filling.finish(&head, &counts(&whole), whole.root).await.unwrap();
    }
    let rows = Rows::of_directory(one.path());
    assert_eq!(Rows::of_directory(new.folder.path()), rows);
    assert_eq!(Rows::of_database(Cluster::shared(), &new.database), rows);
}

/// What is done to the hashes of full tiles, and to nothing else.
const TILES: [&str; 3] = [
    "UPDATE tile_hashes SET hash = (SELECT hash FROM past_log LIMIT 1)",
    "DELETE FROM tile_hashes",
    "INSERT INTO tile_hashes (incarnation, level, position, hash) SELECT incarnation, level, 7, hash FROM tile_hashes",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hashes_of_tiles_are_reckoned_anew_where_a_backup_has_wrong_ones_and_leaves_are_not() {
    let one = folder();
    let store = create(one.path());
    fill(&store).await;
    drop(store);
    let rows = Rows::of_directory(one.path());
    let connection = rusqlite::Connection::open(one.path().join("state.db")).unwrap();
    connection.execute_batch("CREATE TABLE whole AS SELECT * FROM tile_hashes").unwrap();
    for done in TILES {
        connection.execute_batch(done).unwrap();
        let (pages, dumped, head) = dumped(one.path()).await;
        let new = Elsewhere::make("serializable");
        for to in [new.directory(), new.database()] {
            let filling = Filling::create(to.clone(), entropy(7)).await.unwrap();
            for page in &pages {
                filling.put(page).await.unwrap();
            }
            let filled = filling.finish(&head, &counts(&dumped), dumped.root).await.unwrap();
            assert!(filled.tiles_mended, "{done}");
            assert_eq!((filled.verification.head, filled.verification.root), (head, dumped.root));
        }
        assert_eq!(Rows::of_directory(new.folder.path()), rows, "{done}");
        assert_eq!(Rows::of_database(Cluster::shared(), &new.database), rows, "{done}");
        connection
            .execute_batch("DELETE FROM tile_hashes; INSERT INTO tile_hashes SELECT * FROM whole")
            .unwrap();
    }
    // Of leaves nobody knows what they were.
    let spoils = "UPDATE past_log SET hash = zeroblob(32) WHERE log_index = 3";
    connection.execute_batch(spoils).unwrap();
    let (pages, dumped, head) = dumped(one.path()).await;
    let new = Elsewhere::make("serializable");
    let filling = Filling::create(new.directory(), entropy(7)).await.unwrap();
    for page in &pages {
        filling.put(page).await.unwrap();
    }
    let refused = filling.finish(&head, &counts(&dumped), dumped.root).await.unwrap_err();
    assert!(refused.to_string().contains("leaf 3"), "{refused}");
}

/// Something new in the first table and in the last, and in most between.
fn meanwhile(seed: u64) -> Batch {
    let now = Revision { incarnation: SECOND, number: 1 };
    let mut batch = issuing([row(10_000 + seed, 60, now)]);
    batch.changes = vec![put("aaa", &seed.to_string()), put("w2", &seed.to_string())];
    batch.ops = vec![
        Op::PutSecret { name: format!("a/{seed}"), sealed: vec![1] },
        Op::CreatePaper(PaperRow { name: format!("z/{seed}"), value: vec![1] }),
        Op::AddTally(TallyOf::Requests, tally("z")),
    ];
    batch.events.push(Event::new(EventKind::RecordPut, noon(), "operator:uid:0", "aaa"));
    batch
}

/// What a backup does: the rows of one moment as bytes, from a store that is in use, into another backend and back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_that_is_dumped_while_it_is_written_to_fills_another_backend() {
    let (one, two, cluster) = (folder(), folder(), Cluster::shared());
    let store = create(one.path());
    fill(&store).await;
    let all = contents(&store).await;
    let rows = Rows::of_directory(one.path());
    rows.have_everything();
    let database = cluster.database("read committed");
    let mut from = Place::Directory(one.path().into());
    for to in [place_of(&database), Place::Directory(two.path().into())] {
        let dumping = Dumping::open(&from).await.unwrap();
        let head = *dumping.head();
        // It is written to all the while, in most of the tables; what comes after the moment is not in it.
        let source: &dyn Store = match &from {
            Place::Directory(_) => &store,
            Place::Database(..) => &open_at(cluster, &database, 8).await,
        };
        let (mut pages, mut later) = (Vec::new(), 0);
        let dumped = dumping.pages(|page| {
            pages.push(page.bytes);
            later += 1;
            // Who reads on and on what is written on and on never ends.
            if later <= 60 {
                let writing = source.commit(meanwhile(later));
                block_in_place(|| Handle::current().block_on(writing))?;
            }
            Ok::<(), StoreError>(())
        });
        let dumped = dumped.await.unwrap();
        assert!(10 < later, "{later} pages");
        let filling = Filling::create(to.clone(), entropy(7)).await.unwrap();
        for page in &pages {
            filling.put(page).await.unwrap();
        }
        let filled = filling.finish(&head, &counts(&dumped), dumped.root).await.unwrap();
        let Filled { verification, tiles_mended } = filled;
        assert_eq!((verification.head, verification.root), (head, dumped.root));
        assert!(!tiles_mended);
        let filled = match &to {
            Place::Directory(path) => Rows::of_directory(path),
            Place::Database(..) => Rows::of_database(cluster, &database),
        };
        assert_eq!(filled, rows);
        from = to;
    }
    assert_eq!(contents(&open(two.path())).await, all);
    assert_ne!(contents(&store).await, all, "it went on");
}
