//! Which of several hosts is worked on: after a standby was promoted, its old primary may be back, and a machine that is
//! gone says nothing.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use countersign_identity::{Code, Revision};
use countersign_store::{
    Dumping, Password, Place, PostgresStore, PostgresUrl, Reached, Result, Store, StoreError,
    verify_everything,
};

use crate::copies;
use crate::fixture::{ISOLATIONS, entropy, lease, noon, putting, refuse_other_levels};
use crate::outage::{PATIENCE, Traffic};
use crate::server::{Cluster, Listen};

/// A primary and its standby, named in this order.
struct Pair {
    primary: Cluster,
    standby: Cluster,
    database: String,
    url: PostgresUrl,
}

impl Pair {
    async fn asynchronous(isolation: &str) -> Self {
        let primary = Cluster::start(Listen::Nowhere, &[]);
        let database = primary.database(isolation);
        let standby = Cluster::standby_of(&primary, "spare");
        let both = format!("{},{}", primary.folder().display(), standby.folder().display());
        let url = format!("postgres://cs@/{database}?host={both}").parse().unwrap();
        let pair = Self { primary, standby, database, url };
        pair.primary_says("state", "streaming").await;
        pair
    }

    async fn synchronous(isolation: &str) -> Self {
        let pair = Self::asynchronous(isolation).await;
        pair.primary.sql("postgres", "ALTER SYSTEM SET synchronous_standby_names = 'spare'");
        pair.primary.sql("postgres", "SELECT pg_reload_conf()");
        pair.primary_says("sync_state", "sync").await;
        pair
    }

    async fn primary_says(&self, what: &str, value: &str) {
        let asked = format!("SELECT {what} FROM pg_stat_replication");
        until(what, || self.primary.sql("postgres", &asked) == value).await;
    }

    /// Lets no more of the primary's writes reach the standby.
    async fn cut_off(&self) {
        self.standby.sql("postgres", "ALTER SYSTEM SET primary_conninfo = 'host=/nowhere'");
        self.standby.sql("postgres", "SELECT pg_reload_conf()");
        self.primary_says("count(*)", "0").await;
    }

    fn promote(&self) {
        self.standby.sql("postgres", "SELECT pg_promote()");
    }

    async fn create(&self) -> PostgresStore {
        PostgresStore::create(self.url.clone(), Password::None, entropy(1)).await.unwrap()
    }

    async fn open_after(&self, reached: Option<Reached>) -> Result<PostgresStore> {
        PostgresStore::open_after(self.url.clone(), Password::None, reached, entropy(9)).await
    }

    fn place(&self) -> Place {
        Place::Database(self.url.clone(), Password::None)
    }

    /// What a host's head row says, and every lease that was taken there.
    fn written(&self, host: &Cluster) -> String {
        host.sql(&self.database, "SELECT * FROM head; SELECT * FROM leases ORDER BY name")
    }
}

/// Ends our connections to a host.
fn cut(host: &Cluster) {
    host.sql(
        "postgres",
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
         WHERE application_name LIKE 'countersign/%'",
    );
}

async fn until(what: &str, mut is: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is() {
        assert!(begin.elapsed() < PATIENCE, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What a server writes down of a store.
async fn reached(store: &PostgresStore) -> Reached {
    let head = store.head().await.unwrap();
    let last = head.log_size - 1;
    let hash = store.leaf_hashes(last, 1).await.unwrap()[0];
    Reached {
        revision: head.revision,
        log_size: head.log_size,
        leaf: Some((last, hash)),
        primary: store.primary(),
    }
}

#[track_caller]
fn unavailable<T>(outcome: Result<T>, said: &str) {
    match outcome {
        Err(error @ StoreError::Unavailable { .. }) => {
            assert!(error.to_string().contains(said), "{error}");
        }
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it goes on"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_primary_that_is_back_is_not_written_to_and_takes_nothing_from_the_new_one() {
    for isolation in ISOLATIONS {
        is_back(isolation).await;
    }
}

async fn is_back(isolation: &str) {
    let pair = Pair::synchronous(isolation).await;
    let first = pair.create().await;
    refuse_other_levels(&pair.primary, &pair.database, isolation);
    let stores = vec![Arc::new(first), Arc::new(pair.open_after(None).await.unwrap())];
    let traffic = Traffic::begin(&stores);
    traffic.flows(50).await;
    pair.primary.kill();
    pair.promote();
    traffic.flows(50).await;
    pair.primary.resume();
    let before = pair.written(&pair.primary);
    // Every connection is made anew, again and again, while both take writes.
    for _round in 0..5 {
        cut(&pair.standby);
        traffic.flows(20).await;
    }
    // So do those who have seen nothing yet, and a backup.
    let third = pair.open_after(None).await.unwrap();
    assert!(third.lease("a", lease("b", noon()), None).await.unwrap());
    traffic.verify(&third).await;
    let last = reached(&stores[0]).await;
    assert_eq!(Dumping::open(&pair.place()).await.unwrap().head().revision, last.revision);
    assert_eq!(last.revision.incarnation, 1);
    // The new one alone is away: nobody goes back to the old one, which is no loss, but no place to write to.
    pair.standby.kill();
    for store in &stores {
        refused(store).await;
    }
    unavailable(pair.open_after(Some(last)).await, "old primary");
    unavailable(Dumping::open_after(&pair.place(), Some(last)).await.map(drop), "old primary");
    assert_eq!(pair.written(&pair.primary), before, "the old primary was written to");
    pair.standby.resume();
    let again = pair.open_after(Some(last)).await.unwrap();
    for store in stores.iter().map(|store| &**store).chain([&third, &again]) {
        store.commit(putting("web", "1")).await.unwrap();
    }
    assert_eq!(verify_everything(&again).await.unwrap().head.revision.incarnation, 1);
    assert_eq!(pair.written(&pair.primary), before, "the old primary was written to");
}

/// Waits until a store says that an old primary is all there is; it may know of the other's end only by trying.
async fn refused(store: &PostgresStore) {
    let begin = Instant::now();
    loop {
        match store.commit(putting("web", "1")).await {
            Err(error) if error.to_string().contains("old primary") => break,
            Err(error) => assert_eq!(error.code(), Code::Unavailable, "{error}"),
            Ok(committed) => panic!("{committed:?}"),
        }
        assert!(begin.elapsed() < PATIENCE, "the end is not noticed");
    }
    unavailable(store.head().await, "old primary");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_began_anew_on_a_standby_without_the_tail_is_gone_on_with_when_its_old_primary_is_back()
 {
    let pair = Pair::asynchronous("read committed").await;
    let store = pair.create().await;
    store.commit(putting("web", "kept")).await.unwrap();
    let tail = standby_has(&pair, &store).await;
    pair.cut_off().await;
    assert!(tail < store.commit(putting("web", "lost")).await.unwrap().revision);
    let lost = reached(&store).await;
    pair.primary.kill();
    pair.promote();
    // It alone is there, and lacks something: that is a loss, and no old primary.
    let begin = Instant::now();
    while !matches!(store.head().await, Err(StoreError::WentBack { .. })) {
        assert!(begin.elapsed() < PATIENCE, "the loss is not noticed");
    }
    drop(store);
    let store = pair.open_after(Some(lost)).await.unwrap();
    copies::begin(&store).await;
    pair.primary.resume();
    let before = pair.written(&pair.primary);
    for round in 0..3 {
        cut(&pair.standby);
        // The first after a cut may have met it.
        let _unknown = store.commit(putting("web", "met")).await;
        store.commit(putting("web", &round.to_string())).await.unwrap();
    }
    // Who saw the tail and slept since finds all of it on the old primary, and still goes to the new one.
    let late = pair.open_after(Some(lost)).await.unwrap();
    let head = late.commit(putting("web", "late")).await.unwrap().revision;
    assert_eq!(head.incarnation, store.head().await.unwrap().revision.incarnation);
    assert!(lost.revision.incarnation < head.incarnation);
    assert_eq!(pair.written(&pair.primary), before, "the old primary was written to");
    verify_everything(&late).await.unwrap();
}

/// Waits until the standby has what the store has; says what that is.
async fn standby_has(pair: &Pair, store: &PostgresStore) -> Revision {
    let revision = store.head().await.unwrap().revision;
    let number = revision.number.to_string();
    let asked = "SELECT number FROM head";
    // It may not have the database yet.
    let answer = || pair.standby.psql(&pair.database, asked).stdout;
    until("the standby follows", || answer().trim_ascii() == number.as_bytes()).await;
    revision
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn between_two_primaries_of_which_each_lacks_something_an_operator_decides() {
    let pair = Pair::asynchronous("read committed").await;
    let store = pair.create().await;
    store.commit(putting("web", "kept")).await.unwrap();
    standby_has(&pair, &store).await;
    pair.cut_off().await;
    store.commit(putting("web", "here only")).await.unwrap();
    let seen = reached(&store).await;
    // Promoted while its primary lives.
    pair.promote();
    let before = [&pair.primary, &pair.standby].map(|host| pair.written(host));
    cut(&pair.primary);
    let begin = Instant::now();
    let said = loop {
        match store.commit(putting("web", "where?")).await {
            // The first after a cut may have met it.
            Err(error) if error.to_string().contains("stop the one") => break error,
            Err(error) => assert_eq!(error.code(), Code::Unavailable, "{error}"),
            Ok(committed) => panic!("{committed:?}"),
        }
        assert!(begin.elapsed() < PATIENCE, "nobody is asked");
    };
    let [one, two] = [&pair.primary, &pair.standby].map(|host| host.folder().display().to_string());
    assert!(said.to_string().contains(&one) && said.to_string().contains(&two), "{said}");
    unavailable(store.head().await, "stop the one that is not to be used");
    unavailable(pair.open_after(Some(seen)).await, "stop the one that is not to be used");
    let after = [&pair.primary, &pair.standby].map(|host| pair.written(host));
    assert_eq!(after, before, "something was written");
    // They stop the new one: all that was seen is there, and it goes on.
    pair.standby.kill();
    store.commit(putting("web", "decided")).await.unwrap();
    assert_eq!(verify_everything(&store).await.unwrap().head.revision.incarnation, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_acknowledged_that_the_synchronous_standby_does_not_have() {
    for isolation in ISOLATIONS {
        stalls(isolation).await;
    }
}

async fn stalls(isolation: &str) {
    let pair = Pair::synchronous(isolation).await;
    let store = Arc::new(pair.create().await);
    refuse_other_levels(&pair.primary, &pair.database, isolation);
    store.commit(putting("web", "1")).await.unwrap();
    pair.standby.signal_all("STOP");
    // A COMMIT whose waiting somebody ends is done at the primary alone, and says so by a warning only.
    let cancel = "SELECT count(*) FILTER (WHERE pg_cancel_backend(pid)) FROM pg_stat_activity \
                  WHERE wait_event = 'SyncRep' AND application_name LIKE 'countersign/%'";
    let writing = tokio::spawn({
        let store = Arc::clone(&store);
        async move { store.commit(putting("web", "cancelled")).await }
    });
    until("a commit waits", || pair.primary.sql("postgres", cancel) == "1").await;
    unavailable(writing.await.unwrap(), "warning");
    // One that nobody ends waits for longer than we do; whoever comes after it waits for the head row.
    for said in ["no answer", "others write"] {
        let begin = Instant::now();
        unavailable(store.commit(putting("web", "stalled")).await, said);
        assert!(begin.elapsed() < Duration::from_secs(15), "{:?}", begin.elapsed());
    }
    pair.standby.signal_all("CONT");
    let begin = Instant::now();
    while let Err(error) = store.commit(putting("web", "2")).await {
        assert_eq!(error.code(), Code::Unavailable, "{error}");
        assert!(begin.elapsed() < PATIENCE, "it does not go on: {error}");
    }
    let head = verify_everything(&*store).await.unwrap().head;
    let number = head.revision.number.to_string();
    until("the standby has all of it", || {
        // A standby reads at no higher level than this.
        let asked = "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT number FROM head; COMMIT";
        pair.standby.sql(&pair.database, asked) == number
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_to_an_old_primary_is_used_no_more_once_another_has_met_the_new_one() {
    let pair = Pair::asynchronous("read committed").await;
    let store = pair.create().await;
    store.commit(putting("web", "both")).await.unwrap();
    store.head().await.unwrap();
    standby_has(&pair, &store).await;
    pair.cut_off().await;
    // Promoted while its primary lives, and has written nothing since.
    pair.promote();
    let before = pair.written(&pair.primary);
    let old = store.primary().unwrap();
    let follows = "FROM pg_stat_activity WHERE query LIKE '%WHERE l.log_index = $1%' \
                   AND application_name LIKE 'countersign/%'";
    pair.primary.sql("postgres", &format!("SELECT count(pg_terminate_backend(pid)) {follows}"));
    until("it has met the new one", || store.primary() != Some(old)).await;
    // Those that write and that read have been connected to the old one all the while.
    let revision = store.commit(putting("web", "new")).await.unwrap().revision;
    assert_eq!(store.head().await.unwrap().revision, revision);
    assert_eq!(pair.written(&pair.primary), before, "the old primary was written to");
    let there = pair.standby.sql(&pair.database, "SELECT number FROM head");
    assert_eq!(there, revision.number.to_string());
}

/// The port of a machine that takes connections and never says a word, as one that is gone seems to be.
fn silent() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_host_that_says_nothing_keeps_nobody_waiting_beyond_the_pulse() {
    let cluster = Cluster::shared();
    let database = cluster.database("read committed");
    let (_gone, port) = silent();
    let folder = cluster.folder().display();
    let url = format!("postgres://cs@/{database}?host=127.0.0.1:{port},{folder}&sslmode=disable");
    let url: PostgresUrl = url.parse().unwrap();
    let store = PostgresStore::create(url, Password::None, entropy(1)).await.unwrap();
    let mut quickest = Duration::MAX;
    for _round in 0..5 {
        let ended = format!(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
             WHERE datname = '{database}' AND application_name LIKE 'countersign/%'"
        );
        cluster.sql("postgres", &ended);
        let begin = Instant::now();
        while store.lease("replica/a", lease("a", noon()), None).await.is_err() {
            assert!(begin.elapsed() < PATIENCE, "it does not go on");
        }
        store.head().await.unwrap();
        quickest = quickest.min(begin.elapsed());
    }
    // What `/ready` waits for an answer; on a busy machine one round in five may take longer.
    assert!(quickest < Duration::from_millis(1500), "{quickest:?}");
}
