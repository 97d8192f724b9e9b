//! What is true when the database goes away, is killed, or stands still, while replicas write.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use countersign_audit::Entry;
use countersign_identity::{Code, Serial};
use countersign_store::{PAGE_MAX, Password, PostgresStore, PostgresUrl, Store, verify_everything};
use tokio::task::JoinSet;

use crate::fixture::{
    ISOLATIONS, at, create_at, entropy, issuing, open_at, putting, refuse_other_levels, row,
};
use crate::joining::Joining;
use crate::server::{Cluster, Listen};

pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Callers that write until they are told to end, and remember what was acknowledged and what was not. Each certificate is
/// asked for once: what comes of an answer that stayed out is the store's own doing.
pub(crate) struct Traffic {
    ending: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    work: JoinSet<Asked>,
}

/// What one caller has asked for.
#[derive(Default)]
struct Asked {
    acknowledged: BTreeSet<Serial>,
    failed: BTreeSet<Serial>,
}

impl Traffic {
    pub(crate) fn begin(stores: &[Arc<PostgresStore>]) -> Self {
        let (ending, acknowledged) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let mut work = JoinSet::new();
        for caller in 0..8_u64 {
            let store = Arc::clone(&stores[usize::try_from(caller).unwrap() % stores.len()]);
            let (ending, acknowledged) = (Arc::clone(&ending), Arc::clone(&acknowledged));
            work.spawn(async move {
                let mut asked = Asked::default();
                for turn in 0.. {
                    if ending.load(Ordering::Relaxed) {
                        break;
                    }
                    let one = row(caller * 1_000_000 + turn, 0, at(0));
                    let serial = one.serial;
                    match store.commit(issuing([one])).await {
                        Ok(committed) => {
                            assert_eq!(committed.receipts.len(), 1);
                            assert!(asked.acknowledged.insert(serial));
                            acknowledged.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(error) => {
                            assert_eq!(error.code(), Code::Unavailable, "{error}");
                            asked.failed.insert(serial);
                            tokio::task::yield_now().await;
                        }
                    }
                }
                asked
            });
        }
        Self { ending, acknowledged, work }
    }

    /// Waits until so many more were acknowledged.
    pub(crate) async fn flows(&self, more: u64) {
        let enough = self.acknowledged.load(Ordering::Relaxed) + more;
        let begin = Instant::now();
        while self.acknowledged.load(Ordering::Relaxed) < enough {
            assert!(begin.elapsed() < PATIENCE, "writing does not go on");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Ends it; every acknowledged certificate must be there, nothing that nobody asked for, nothing twice, and everything must
    /// fit together. Says how often a caller heard that the database was away.
    pub(crate) async fn verify(self, store: &dyn Store) -> usize {
        self.ending.store(true, Ordering::Relaxed);
        let mut asked = Asked::default();
        for one in self.work.join_all().await {
            asked.acknowledged.extend(one.acknowledged);
            asked.failed.extend(one.failed);
        }
        let whole = verify_everything(store).await.unwrap();
        let kept = kept(store).await;
        assert_eq!(kept.len(), whole.issued, "no certificate is recorded twice");
        let lost: Vec<_> = asked.acknowledged.difference(&kept).collect();
        assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
        let known: BTreeSet<_> = asked.acknowledged.union(&asked.failed).copied().collect();
        let strange: Vec<_> = kept.difference(&known).collect();
        assert!(strange.is_empty(), "nobody asked for: {strange:?}");
        assert!(kept.len() <= asked.acknowledged.len() + asked.failed.len());
        // The log says the same: one leaf each, however often the transaction was run.
        let leaves = leaves(store).await;
        let twice: Vec<_> = leaves.iter().filter(|(_, count)| **count != 1).collect();
        assert!(twice.is_empty(), "more than once on the log: {twice:?}");
        assert!(leaves.keys().eq(&kept), "the log and the rows tell of different certificates");
        asked.failed.len()
    }
}

/// The serials of all rows.
async fn kept(store: &dyn Store) -> BTreeSet<Serial> {
    let (mut kept, mut after) = (BTreeSet::new(), None);
    loop {
        let page = store.issued_after(after, PAGE_MAX).await.unwrap();
        let Some(last) = page.last() else { return kept };
        after = Some(last.row.serial);
        kept.extend(page.iter().map(|issued| issued.row.serial));
    }
}

/// How many leaves of the log tell of each serial.
async fn leaves(store: &dyn Store) -> BTreeMap<Serial, u64> {
    let (mut leaves, mut from) = (BTreeMap::new(), 0);
    loop {
        let page = store.events(from, PAGE_MAX).await.unwrap();
        if page.is_empty() {
            return leaves;
        }
        from += page.len() as u64;
        for serial in page.iter().filter_map(|event| Entry::parse(&event.leaf).unwrap().serial) {
            *leaves.entry(serial).or_default() += 1;
        }
    }
}

async fn replicas(cluster: &Cluster, isolation: &str) -> (String, Vec<Arc<PostgresStore>>) {
    let database = cluster.database(isolation);
    let one = Arc::new(create_at(cluster, &database, 1).await);
    refuse_other_levels(cluster, &database, isolation);
    let two = Arc::new(open_at(cluster, &database, 2).await);
    (database, vec![one, two])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_cut_in_the_middle_of_commits_lose_no_acknowledged_write() {
    let cluster = Cluster::shared();
    for isolation in ISOLATIONS {
        are_cut_in_the_middle_of_commits(cluster, isolation).await;
    }
}

async fn are_cut_in_the_middle_of_commits(cluster: &Cluster, isolation: &str) {
    let (database, stores) = replicas(cluster, isolation).await;
    let traffic = Traffic::begin(&stores);
    for _round in 0..15 {
        traffic.flows(20).await;
        let cut = format!(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
             WHERE datname = '{database}' AND application_name LIKE 'countersign/%'"
        );
        cluster.sql("postgres", &cut);
    }
    traffic.flows(50).await;
    traffic.verify(&*stores[1]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_crashes_and_comes_back_has_every_acknowledged_write() {
    let cluster = Cluster::start(Listen::Nowhere, &[]);
    for isolation in ISOLATIONS {
        crashes_and_comes_back(&cluster, isolation).await;
    }
}

async fn crashes_and_comes_back(cluster: &Cluster, isolation: &str) {
    let (_database, stores) = replicas(cluster, isolation).await;
    let traffic = Traffic::begin(&stores);
    for _round in 0..3 {
        traffic.flows(100).await;
        cluster.crash();
        let refused = stores[0].commit(putting("web", "1")).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable, "{refused}");
        cluster.resume();
    }
    traffic.flows(100).await;
    let failed = traffic.verify(&*stores[0]).await;
    assert!(0 < failed, "some heard that the database was away");
    drop(stores);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_synchronous_standby_that_is_promoted_has_every_acknowledged_write_and_lets_nobody_in_twice()
 {
    for isolation in ISOLATIONS {
        is_promoted(isolation).await;
    }
}

async fn is_promoted(isolation: &str) {
    let primary = Cluster::start(Listen::Nowhere, &[]);
    let database = primary.database(isolation);
    let standby = Cluster::standby_of(&primary, "spare");
    primary.sql("postgres", "ALTER SYSTEM SET synchronous_standby_names = 'spare'");
    primary.sql("postgres", "SELECT pg_reload_conf()");
    let begin = Instant::now();
    while primary.sql("postgres", "SELECT sync_state FROM pg_stat_replication") != "sync" {
        assert!(begin.elapsed() < PATIENCE, "the standby does not become synchronous");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let both = format!("{},{}", primary.folder().display(), standby.folder().display());
    let url = format!("postgres://cs@/{database}?host={both}&target_session_attrs=read-write");
    let url: PostgresUrl = url.parse().unwrap();
    let first = PostgresStore::create(url.clone(), Password::None, entropy(1)).await.unwrap();
    refuse_other_levels(&primary, &database, isolation);
    let second = PostgresStore::open(url, Password::None, entropy(2)).await.unwrap();
    let stores = vec![Arc::new(first), Arc::new(second)];
    let (traffic, joining) = (Traffic::begin(&stores), Joining::begin(&stores));
    traffic.flows(200).await;
    primary.kill();
    let refused = stores[0].commit(putting("web", "1")).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    standby.sql("postgres", "SELECT pg_promote()");
    traffic.flows(200).await;
    let waited = joining.verify(&*stores[1]).await;
    assert!(0 < waited, "some came with their tokens while the database was away");
    let failed = traffic.verify(&*stores[0]).await;
    assert!(0 < failed, "some heard that the database was away");
    drop(stores);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_stands_still_is_unavailable_and_then_goes_on() {
    let cluster = Cluster::start(Listen::Nowhere, &[]);
    for isolation in ISOLATIONS {
        stands_still(&cluster, isolation).await;
    }
}

async fn stands_still(cluster: &Cluster, isolation: &str) {
    let (_database, stores) = replicas(cluster, isolation).await;
    let traffic = Traffic::begin(&stores);
    traffic.flows(100).await;
    cluster.signal_all("STOP");
    let begin = Instant::now();
    let refused = stores[0].commit(putting("web", "1")).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    let waited = begin.elapsed();
    let refused = stores[0].head().await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    cluster.signal_all("CONT");
    assert!(waited < Duration::from_secs(15), "{waited:?}");
    traffic.flows(100).await;
    traffic.verify(&*stores[1]).await;
    drop(stores);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_that_hangs_with_the_head_row_stops_nobody_for_long() {
    let cluster = Cluster::shared();
    for isolation in ISOLATIONS {
        hangs_with_the_head_row(cluster, isolation).await;
    }
}

async fn hangs_with_the_head_row(cluster: &Cluster, isolation: &str) {
    let (database, stores) = replicas(cluster, isolation).await;
    // As a replica does that is stopped between its two round trips: our time-outs end its transaction.
    let hold =
        "SET idle_in_transaction_session_timeout = 900; BEGIN; SELECT * FROM head FOR UPDATE";
    let url = cluster.url(&database);
    let folder = cluster.folder().to_owned();
    let mut held = std::process::Command::new("psql")
        .args(["-X", "-q", "-U", "cs", "-d", &database, "-h"])
        .arg(folder)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    use std::io::{BufRead as _, Write as _};
    let mut input = held.stdin.take().unwrap();
    writeln!(input, "{hold};").unwrap();
    let mut line = String::new();
    std::io::BufReader::new(held.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let begin = Instant::now();
    let committed = stores[0].commit(putting("web", "1")).await;
    let waited = begin.elapsed();
    drop(input);
    held.wait().unwrap();
    assert_eq!(committed.unwrap().revision, at(1), "{url}");
    assert!(waited < Duration::from_secs(15), "{waited:?}");
}
