//! Two replicas on one database, at the same time.

use std::sync::Arc;
use std::time::Duration;

use countersign_audit::{Event, EventKind};
use countersign_identity::{KeyId, Timestamp};
use countersign_store::{
    Batch, Dumping, Duties, Duty, Feed, Op, PAGE_MAX, PaperRow, Password, Place, PostgresStore,
    Store, StoreError, verify_everything,
};
use tokio::task::JoinSet;

use crate::fixture::{
    ISOLATIONS, after, at, create_at, digest, doing, issuing, lease, node, node_id, noon, open_at,
    putting, refuse_other_levels, row, token,
};
use crate::server::{Cluster, Listen};

const TRIM: Duty = Duty { name: "trim", ttl: Duration::from_secs(60) };

async fn pair(isolation: &str) -> [Arc<PostgresStore>; 2] {
    pair_and_database(isolation).await.0
}

async fn pair_and_database(isolation: &str) -> ([Arc<PostgresStore>; 2], String) {
    let cluster = Cluster::shared();
    let database = cluster.database(isolation);
    let one = create_at(cluster, &database, 1).await;
    refuse_other_levels(cluster, &database, isolation);
    ([Arc::new(one), Arc::new(open_at(cluster, &database, 2).await)], database)
}

/// How often the database has told a writer that it could not put its transaction into one order with the others.
fn serialization_failures(database: &str) -> usize {
    let told = format!("40001 {database} ERROR:");
    Cluster::shared().log().lines().filter(|line| line.starts_with(&told)).count()
}

async fn both_agree(stores: &[Arc<PostgresStore>; 2]) -> countersign_store::Verification {
    let one = verify_everything(&*stores[0]).await.unwrap();
    assert_eq!(one, verify_everything(&*stores[1]).await.unwrap());
    one
}

/// Reads the feed to a revision, and checks that nothing is left out and nothing comes twice.
async fn read_to(store: &dyn Store, last: u64) {
    let mut hint = store.hint();
    let mut seen = at(0);
    while seen.number < last {
        let Feed::Changes(commits) = store.changes(seen, 7).await.unwrap() else {
            panic!("the feed goes on")
        };
        if commits.is_empty() {
            hint.changed().await.unwrap();
        }
        for commit in commits {
            assert_eq!(commit.revision.number, seen.number + 1, "no gap and no step back");
            seen = commit.revision;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_on_two_replicas_make_one_order() {
    const WRITERS: u64 = 8;
    const EACH: u64 = 20;
    for isolation in ISOLATIONS {
        let (stores, database) = pair_and_database(isolation).await;
        let mut work = JoinSet::new();
        for writer in 0..WRITERS {
            let store = Arc::clone(&stores[usize::try_from(writer % 2).unwrap()]);
            work.spawn(async move {
                for turn in 0..EACH {
                    let mut batch = putting(&format!("w{writer}"), &turn.to_string());
                    let mut issued = issuing([row(writer * EACH + turn, 0, at(0))]);
                    batch.events.append(&mut issued.events);
                    batch.issued = issued.issued;
                    let committed = store.commit(batch).await.unwrap();
                    assert_eq!(committed.receipts.len(), 1);
                }
            });
        }
        for store in &stores {
            let store = Arc::clone(store);
            work.spawn(async move { read_to(&*store, WRITERS * EACH).await });
        }
        work.join_all().await;
        let whole = both_agree(&stores).await;
        assert_eq!(whole.head.revision, at(WRITERS * EACH), "{isolation}");
        assert_eq!(whole.head.log_size, 2 * WRITERS * EACH);
        assert_eq!(whole.issued, usize::try_from(WRITERS * EACH).unwrap());
        // No caller has heard of it: each of these was run again. The other level knows no such failure.
        let failures = serialization_failures(&database);
        assert_eq!(0 < failures, isolation == "serializable", "{isolation}: {failures}");
    }
}

/// ATTACKS 3: a token shown to two replicas at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_join_token_raced_on_two_replicas_is_spent_once() {
    for isolation in ISOLATIONS {
        let stores = pair(isolation).await;
        let made: Vec<Op> = (0..8).map(|seed| Op::CreateToken(token(seed))).collect();
        stores[0].commit(doing(made)).await.unwrap();
        let mut callers = JoinSet::new();
        for caller in 0..32_u8 {
            let store = Arc::clone(&stores[usize::from(caller % 2)]);
            let seed = u64::from(caller / 4);
            let spend = Op::SpendToken { hash: digest(seed), now: noon() };
            let mut batch = doing([spend, Op::PutNode(node(caller))]);
            batch.events = vec![Event::new(EventKind::NodeAttested, noon(), "server", "a node")];
            callers.spawn(async move { store.commit(batch).await.map(|_committed| seed) });
        }
        let outcomes = callers.join_all().await;
        let mut won: Vec<u64> = outcomes.iter().filter_map(|one| one.clone().ok()).collect();
        won.sort_unstable();
        assert_eq!(won, (0..8).collect::<Vec<_>>(), "{isolation}: each token exactly once");
        let lost = outcomes.into_iter().filter_map(Result::err);
        assert!(lost.into_iter().all(|error| error == StoreError::TokenSpent));
        assert_eq!(stores[1].nodes(None, PAGE_MAX).await.unwrap().len(), 8);
        assert_eq!(both_agree(&stores).await.head.log_size, 8);
    }
}

/// ATTACKS 3: one person's word, given at two replicas at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_papers_of_one_name_at_two_replicas_one_is_kept_and_logged() {
    for isolation in ISOLATIONS {
        let stores = pair(isolation).await;
        let mut callers = JoinSet::new();
        for caller in 0..32_u8 {
            let store = Arc::clone(&stores[usize::from(caller % 2)]);
            let paper = PaperRow { name: format!("p{}", caller / 4), value: vec![caller] };
            let mut batch = doing([Op::CreatePaper(paper.clone())]);
            batch.events = vec![Event::new(EventKind::ChangeApproved, noon(), "a", "a plan")];
            callers.spawn(async move { store.commit(batch).await.map(|_committed| paper) });
        }
        let (won, lost): (Vec<_>, Vec<_>) =
            callers.join_all().await.into_iter().partition(Result::is_ok);
        let mut won: Vec<_> = won.into_iter().map(Result::unwrap).collect();
        won.sort_by(|one, other| one.name.cmp(&other.name));
        assert_eq!(won.len(), 8, "{isolation}: each name exactly once");
        assert!(lost.iter().all(|one| matches!(one, Err(StoreError::AlreadyExists { .. }))));
        assert_eq!(stores[1].papers(None, PAGE_MAX).await.unwrap(), won);
        assert_eq!(both_agree(&stores).await.head.log_size, 8);
    }
}

/// ATTACKS 4: two clones of a node, each at another replica.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_clones_at_two_replicas_one_goes_on() {
    for isolation in ISOLATIONS {
        let stores = pair(isolation).await;
        stores[0].commit(doing([Op::PutNode(node(1))])).await.unwrap();
        let mut clones = JoinSet::new();
        for clone in 10..20_u8 {
            let store = Arc::clone(&stores[usize::from(clone % 2)]);
            let (id, key_spki) = (node_id(1), vec![clone; 91]);
            let batch = doing([Op::UpdateNode {
                id,
                expect_generation: 1,
                proven: KeyId::from_bytes([1; 32]),
                generation: 2,
                key_spki,
                at: after(5),
            }]);
            clones.spawn(async move { store.commit(batch).await.is_ok() });
        }
        let won = clones.join_all().await.into_iter().filter(|won| *won).count();
        assert_eq!(won, 1, "{isolation}");
        assert_eq!(stores[1].node(node_id(1)).await.unwrap().unwrap().generation, 2);
    }
}

/// ATTACKS 13: the fence stands for every replica.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_replica_takes_away_the_other_does_not_issue() {
    for isolation in ISOLATIONS {
        let stores = pair(isolation).await;
        stores[0].commit(putting("web", "1")).await.unwrap();
        stores[1].commit(issuing([row(1, 0, at(1))])).await.unwrap();
        let narrowing = Batch { narrows: true, ..putting("web", "2") };
        stores[0].commit(narrowing).await.unwrap();
        let refused = stores[1].commit(issuing([row(2, 0, at(1))])).await.unwrap_err();
        assert_eq!(refused, StoreError::Fenced { authorised_at: at(1), fence: at(2) });
        both_agree(&stores).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_one_replica_reaches_the_other_by_itself() {
    for isolation in ISOLATIONS {
        let stores = pair(isolation).await;
        for round in 1..=5 {
            let mut hint = stores[1].hint();
            hint.mark_unchanged();
            let batch = putting("web", &round.to_string());
            let revision = stores[0].commit(batch).await.unwrap().revision;
            let heard = hint.wait_for(|known| revision <= *known);
            tokio::time::timeout(Duration::from_secs(60), heard).await.unwrap().unwrap();
            assert_eq!(stores[1].snapshot().await.unwrap().revision, revision);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_duty_is_done_by_one_of_many_replicas() {
    for isolation in ISOLATIONS {
        let stores = pair(isolation).await;
        let mut callers = JoinSet::new();
        for caller in 0..16_usize {
            let store = Arc::clone(&stores[caller % 2]);
            callers.spawn(async move {
                let duties = Duties::new(store, format!("server-{caller}"));
                (duties.is_ours(TRIM, noon()).await.unwrap(), duties)
            });
        }
        let (has, all): (Vec<_>, Vec<_>) = callers.join_all().await.into_iter().unzip();
        assert_eq!(has.iter().filter(|has| **has).count(), 1, "{isolation}");
        // The one that has it does not look any more.
        let late = has.iter().zip(&all).find(|(has, _duties)| !**has).unwrap().1;
        for secs in [1, 31] {
            assert!(!late.is_ours(TRIM, after(secs)).await.unwrap());
        }
        assert!(late.is_ours(TRIM, after(61)).await.unwrap(), "what is not renewed is free");
    }
}

/// What a program of before the election by what was seen did for a duty, by its own clock.
fn takes(name: &str, holder: &str, (now, ends): (Timestamp, Timestamp)) -> String {
    let (now, ends) = (now.micros(), ends.micros());
    format!(
        "INSERT INTO leases (name, holder, ends) VALUES ('{name}', '{holder}', {ends}) \
         ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, ends = excluded.ends \
         WHERE leases.holder = excluded.holder OR leases.ends <= {now} RETURNING name"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_judges_by_ends_shares_duties_with_one_that_watches() {
    let cluster = Cluster::shared();
    let database = cluster.database("read committed");
    let store = create_at(cluster, &database, 1).await;
    let ours = Duties::new(Arc::new(store), "new".to_owned());
    let older = |secs| {
        let times = (after(secs), after(secs + 60));
        cluster.sql(&database, &takes(TRIM.name, "old", times)) == TRIM.name
    };
    assert!(ours.is_ours(TRIM, noon()).await.unwrap());
    assert!(!older(1), "it is ours");
    assert!(!older(59));
    assert!(ours.is_ours(TRIM, after(59)).await.unwrap(), "renewed");
    assert!(!older(118));
    assert!(older(119), "what ended is taken");
    for secs in [120, 150, 178] {
        assert!(!ours.is_ours(TRIM, after(secs)).await.unwrap());
    }
    assert!(older(178), "renewed");
    for secs in [179, 209, 238] {
        assert!(!ours.is_ours(TRIM, after(secs)).await.unwrap());
    }
    assert!(ours.is_ours(TRIM, after(239)).await.unwrap(), "what was not renewed is taken");
    assert!(!older(240));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_is_made_once_and_never_by_opening() {
    let cluster = Cluster::shared();
    let database = cluster.database("read committed");
    let open = |seed| {
        let url = cluster.url(&database).parse().unwrap();
        let password = countersign_store::Password::None;
        PostgresStore::open(url, password, crate::fixture::entropy(seed))
    };
    let missing = open(1).await.unwrap_err();
    assert!(matches!(missing, StoreError::Missing { .. }), "{missing}");
    let store = create_at(cluster, &database, 1).await;
    store.commit(putting("web", "1")).await.unwrap();
    let url = cluster.url(&database).parse().unwrap();
    let again =
        PostgresStore::create(url, countersign_store::Password::None, crate::fixture::entropy(1));
    let again = again.await.unwrap_err();
    assert!(matches!(again, StoreError::AlreadyExists { .. }), "{again}");
    cluster
        .sql(&database, "UPDATE countersign_schema SET version = 99; UPDATE head SET needs = 98");
    let newer = open(1).await.unwrap_err();
    assert!(matches!(newer, StoreError::NewerSchema { found: 99, needs: 98, .. }), "{newer}");
    cluster.sql(&database, "UPDATE head SET needs = 1; DELETE FROM log");
    let torn = open(1).await.unwrap_err();
    assert!(matches!(torn, StoreError::Broken { .. }), "{torn}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_lost_its_tail_is_noticed_and_written_to_no_more() {
    for isolation in ISOLATIONS {
        is_noticed_to_lack_its_tail(isolation).await;
    }
}

async fn is_noticed_to_lack_its_tail(isolation: &str) {
    let cluster = Cluster::shared();
    let database = cluster.database(isolation);
    let store = create_at(cluster, &database, 1).await;
    for round in 0..3 {
        store.commit(putting("web", &round.to_string())).await.unwrap();
    }
    // As a standby that was behind by one commit would have it.
    cluster.sql(
        &database,
        "BEGIN; UPDATE head SET number = 2, log_size = 2; DELETE FROM log WHERE log_index = 2; \
         DELETE FROM changes WHERE number = 3; DELETE FROM commits WHERE number = 3; COMMIT",
    );
    let refused = store.commit(putting("web", "new")).await.unwrap_err();
    assert!(matches!(refused, StoreError::WentBack { .. }), "{refused}");
    assert!(matches!(store.head().await.unwrap_err(), StoreError::WentBack { .. }));
    assert_eq!(cluster.sql(&database, "SELECT number FROM head"), "2");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_lost_its_tail_and_went_on_without_it_is_noticed_when_it_is_connected_to() {
    for isolation in ISOLATIONS {
        is_noticed_to_have_gone_another_way(isolation).await;
    }
}

async fn is_noticed_to_have_gone_another_way(isolation: &str) {
    let cluster = Cluster::shared();
    let database = cluster.database(isolation);
    let store = create_at(cluster, &database, 1).await;
    for round in 0..3 {
        store.commit(putting("web", &round.to_string())).await.unwrap();
    }
    // As a standby that lacked the third commit would have it, after another replica has written two more.
    let other = format!(
        "BEGIN; UPDATE log SET hash = decode(repeat('5a', 32), 'hex') WHERE log_index = 2; \
         INSERT INTO log SELECT 3, leaf, hash, details, salt FROM log WHERE log_index = 1; \
         INSERT INTO commits (number) VALUES (4); UPDATE head SET number = 4, log_size = 4; \
         SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
         WHERE datname = '{database}' AND application_name LIKE 'countersign/%'; COMMIT"
    );
    cluster.sql(&database, &other);
    for _again in 0..2 {
        let refused = store.commit(putting("web", "new")).await.unwrap_err();
        assert!(matches!(refused, StoreError::WentBack { .. }), "{refused}");
        assert!(matches!(store.head().await.unwrap_err(), StoreError::WentBack { .. }));
    }
    assert_eq!(cluster.sql(&database, "SELECT number FROM head"), "4");
}

/// Writes through a store until a condition holds; every write must succeed.
async fn write_until(store: &PostgresStore, mut done: impl FnMut() -> bool) -> u64 {
    let mut count = 0;
    while !done() {
        store.commit(putting("web", &count.to_string())).await.unwrap();
        count += 1;
    }
    count
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_replica_goes_on_while_a_newer_one_adds_to_the_schema_and_stops_when_it_changes() {
    for isolation in ISOLATIONS {
        is_upgraded_beside_an_older_replica(isolation).await;
    }
}

async fn is_upgraded_beside_an_older_replica(isolation: &str) {
    let cluster = Cluster::shared();
    let database = cluster.database(isolation);
    let older = create_at(cluster, &database, 1).await;
    older.commit(putting("web", "0")).await.unwrap();
    // The next version adds a table, and a column to one that every write of ours fills; it starts while we write.
    let next = "BEGIN; ALTER TABLE log ADD COLUMN shard BIGINT NOT NULL DEFAULT 0; \
        CREATE TABLE shards (id BIGINT PRIMARY KEY); \
        UPDATE countersign_schema SET version = version + 1; COMMIT";
    let at = database.clone();
    let upgrade = tokio::task::spawn_blocking(move || Cluster::shared().sql(&at, next));
    let upgrading = write_until(&older, || upgrade.is_finished()).await;
    upgrade.await.unwrap();
    // It runs, and writes what it knows; we go on, also when we start anew.
    cluster.sql(&database, "INSERT INTO shards (id) VALUES (7)");
    older.commit(putting("web", "more")).await.unwrap();
    let again = open_at(cluster, &database, 2).await;
    again.commit(putting("web", "again")).await.unwrap();
    let head = verify_everything(&older).await.unwrap().head;
    assert_eq!(head.revision.number, upgrading + 3);
    let place = Place::Database(cluster.url(&database).parse().unwrap(), Password::None);
    let copying = Dumping::open(&place).await.map(drop).unwrap_err();
    assert!(matches!(copying, StoreError::NewerSchema { .. }), "what is not known is not copied");
    // The version after it changes what we rely on. Nothing that we write comes after that.
    let changed = "BEGIN; ALTER TABLE records RENAME COLUMN value TO body; \
        UPDATE countersign_schema SET version = version + 1; \
        UPDATE head SET needs = 9, writes = writes + 1; COMMIT";
    cluster.sql(&database, changed);
    for store in [&older, &again] {
        let refused = store.commit(putting("web", "late")).await.unwrap_err();
        assert!(matches!(refused, StoreError::NewerSchema { needs: 9, .. }), "{refused}");
        let head = store.head().await.unwrap_err();
        assert!(matches!(head, StoreError::NewerSchema { .. }), "{head}");
        let lease = store.lease("a", lease("b", noon()), None).await;
        assert!(lease.unwrap_err().to_string().contains("use a newer one"));
    }
    let opened = PostgresStore::open(
        cluster.url(&database).parse().unwrap(),
        Password::None,
        crate::fixture::entropy(3),
    );
    assert!(matches!(opened.await.unwrap_err(), StoreError::NewerSchema { found: 10, .. }));
    let number = cluster.sql(&database, "SELECT number FROM head");
    assert_eq!(number, (upgrading + 3).to_string());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_database_does_not_promise_is_said() {
    let durable = Cluster::start(Listen::Nowhere, &["fsync = on"]);
    for (cluster, said) in [
        (&durable, &["synchronous_standby_names"][..]),
        (Cluster::shared(), &["synchronous_standby_names", "fsync = off"]),
    ] {
        let database = cluster.database("read committed");
        let store = create_at(cluster, &database, 1).await;
        let caveats = store.caveats().await.unwrap();
        assert_eq!(caveats.len(), said.len(), "{caveats:?}");
        for said in said {
            assert!(caveats.iter().any(|caveat| caveat.contains(said)), "{said}: {caveats:?}");
        }
    }
}
