//! A state that moves from one backend to another and back.

use countersign_audit::{Event, EventKind};
use countersign_store::{
    Batch, Begins, Dumping, Filling, Op, Password, Place, SqliteStore, Store, StoreError, copy,
    verify_everything,
};

use crate::fixture::{
    at, create, create_at, digest, doing, entropy, folder, issuing, node, noon, open, open_at, put,
    putting, remove, row, token,
};
use crate::server::Cluster;

/// Something in every table.
async fn fill(store: &dyn Store) {
    for round in 0..5 {
        store.commit(putting(&format!("w{round}"), "1")).await.unwrap();
    }
    let mut batch = putting("orders", "2");
    batch.changes.extend([put("twice", "a"), put("twice", "b"), remove("w3")]);
    store.commit(batch).await.unwrap();
    store
        .commit(issuing((0..450).map(|seed| row(seed, 0, at(6))).collect::<Vec<_>>()))
        .await
        .unwrap();
    let ops = [
        Op::CreateToken(token(1)),
        Op::CreateToken(token(2)),
        Op::SpendToken { hash: digest(2), now: noon() },
        Op::PutNode(node(1)),
        Op::PutNode(node(2)),
        Op::PutSecret { name: "authority/root".to_owned(), sealed: vec![0, 1, 2, 255] },
    ];
    let mut batch = Batch { narrows: true, ..doing(ops) };
    batch.events = vec![Event::new(EventKind::NodeAttested, noon(), "server", "a node")];
    store.commit(batch).await.unwrap();
}

/// Everything that can be read, in words.
async fn contents(store: &dyn Store) -> String {
    let whole = verify_everything(store).await.unwrap();
    let events = store.events(0, 1000).await.unwrap();
    let issued = store.issued_after(None, 1000).await.unwrap();
    let nodes = store.nodes(None, 100).await.unwrap();
    let tokens = (store.token(digest(1)).await.unwrap(), store.token(digest(2)).await.unwrap());
    let secret = store.secret("authority/root").await.unwrap();
    let feed = store.changes(at(0), 100).await.unwrap();
    let snapshot = store.snapshot().await.unwrap();
    format!("{whole:?}{events:?}{issued:?}{nodes:?}{tokens:?}{secret:?}{feed:?}{snapshot:?}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_that_moves_to_postgresql_and_back_is_the_same() {
    let (one, two, cluster) = (folder(), folder(), Cluster::shared());
    let database = cluster.database("serializable");
    let url = cluster.url(&database).parse().unwrap();
    let database_place = Place::Database(url, Password::None);
    let store = create(one.path());
    fill(&store).await;
    let before = contents(&store).await;
    let in_use = Place::Directory(one.path().into());
    let locked = copy(&in_use, &database_place, entropy(5)).await.unwrap_err();
    assert!(matches!(locked, StoreError::Locked { .. }), "a server runs on it: {locked}");
    drop(store);

    let copied = copy(&in_use, &database_place, entropy(5)).await.unwrap();
    let rows = |name: &str| copied.tables.iter().find(|(table, _)| *table == name).unwrap().1;
    assert_eq!((rows("issued"), rows("log"), rows("nodes"), rows("tokens")), (450, 457, 2, 2));
    let store = open_at(cluster, &database, 6).await;
    assert_eq!(contents(&store).await, before);
    drop(store);

    let back = Place::Directory(two.path().into());
    let returned = copy(&database_place, &back, entropy(5)).await.unwrap();
    assert_eq!(returned, copied);
    let store = open(two.path());
    assert_eq!(contents(&store).await, before);
    // It goes on where it was.
    store.commit(putting("web", "3")).await.unwrap();
    assert_eq!(store.head().await.unwrap().log_size, 458);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_replaces_nothing() {
    let (one, two, cluster) = (folder(), folder(), Cluster::shared());
    drop(create(one.path()));
    let from = Place::Directory(one.path().into());
    let database = cluster.database("read committed");
    create_at(cluster, &database, 1).await.commit(putting("web", "1")).await.unwrap();
    let url = cluster.url(&database).parse().unwrap();
    let used = Place::Database(url, Password::None);
    let refused = copy(&from, &used, entropy(1)).await.unwrap_err();
    assert!(matches!(refused, StoreError::AlreadyExists { .. }), "{refused}");
    drop(SqliteStore::create(two.path(), entropy(1)).unwrap());
    let refused = copy(&from, &Place::Directory(two.path().into()), entropy(1)).await.unwrap_err();
    assert!(matches!(refused, StoreError::AlreadyExists { .. }), "{refused}");
}

/// What a backup does: the rows of one moment as bytes, from a store that is in use, into another backend and back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_that_is_dumped_while_it_is_written_to_fills_another_backend() {
    let (one, two, cluster) = (folder(), folder(), Cluster::shared());
    let store = create(one.path());
    fill(&store).await;
    let before = verify_everything(&store).await.unwrap();
    let from = serde_json::json!({
        "incarnation": 1, "logSize": before.head.log_size, "logRoot": before.root,
    });
    let event = Event::new(EventKind::IncarnationBegan, noon(), "server", "store");
    let event = event.with_details(serde_json::json!({ "from": from }));
    let begins = Begins { incarnation: 3, log_size: before.head.log_size };
    let began = Batch { begins: Some(begins), events: vec![event], ..putting("began", "1") };
    store.commit(began).await.unwrap();
    let all = contents(&store).await;
    let database = cluster.database("read committed");
    let url = cluster.url(&database).parse().unwrap();
    let database_place = Place::Database(url, Password::None);
    let mut from = Place::Directory(one.path().into());
    for to in [database_place, Place::Directory(two.path().into())] {
        let dumping = Dumping::open(&from).await.unwrap();
        let head = *dumping.head();
        // Only the first is written to meanwhile; what comes after the moment is not in it.
        if matches!(&from, Place::Directory(_)) {
            store.commit(putting("later", "1")).await.unwrap();
        }
        let mut pages = Vec::new();
        let dumped = dumping.pages(|page| {
            pages.push(page.bytes);
            Ok::<(), StoreError>(())
        });
        let dumped = dumped.await.unwrap();
        let filling = Filling::create(to.clone(), entropy(7)).await.unwrap();
        for page in &pages {
            filling.put(page).await.unwrap();
        }
        let tables: Vec<_> =
            dumped.tables.iter().map(|(name, rows)| ((*name).to_owned(), *rows)).collect();
        let filled = filling.finish(&head, &tables, dumped.root).await.unwrap();
        assert_eq!((filled.head, filled.root), (head, dumped.root));
        from = to;
    }
    assert_eq!(contents(&open(two.path())).await, all);
    assert_ne!(contents(&store).await, all, "it went on");
}
