//! What a server on PostgreSQL writes down of the primary that it uses.

use std::sync::Arc;
use std::time::{Duration, Instant};

use countersign_identity::{Clock as _, SystemClock, SystemEntropy};
use countersign_store::{Password, PostgresStore, Store};
use tokio_util::sync::CancellationToken;

use crate::incarnation::{Beside, Seen, remember};
use crate::watch::TimeGuard;

#[path = "../../../store/tests/support/postgres.rs"]
#[expect(dead_code, reason = "the store's own tests use the rest of it")]
mod postgres;

use postgres::{Cluster, Listen};

async fn until(what: &str, is: impl Fn() -> bool) {
    let begin = Instant::now();
    while !is() {
        assert!(begin.elapsed() < Duration::from_secs(60), "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_primary_is_written_down_also_when_it_is_gone_before_it_was_ever_looked_at() {
    let primary = Cluster::start(Listen::Nowhere, &[]);
    let database = primary.database("read committed");
    let standby = Cluster::standby_of(&primary, "spare");
    let both = format!("{},{}", primary.folder().display(), standby.folder().display());
    let url = format!("postgres://cs@/{database}?host={both}").parse().unwrap();
    let made = PostgresStore::create(url, Password::None, Arc::new(SystemEntropy)).await;
    let store: Arc<dyn Store> = Arc::new(made.unwrap());
    let folder = tempfile::tempdir().unwrap();
    Seen::begin(&*store, folder.path()).await.unwrap();
    let timeline = || Seen::reached(folder.path()).unwrap().primary.unwrap().timeline;
    assert_eq!(timeline(), 1);
    let head = "SELECT number FROM head";
    until("the standby has all", || {
        standby.psql(&database, head).stdout == primary.psql(&database, head).stdout
    })
    .await;
    primary.kill();
    standby.sql("postgres", "SELECT pg_promote()");
    until("the new primary is used", || store.primary().is_some_and(|used| used.timeline == 2))
        .await;
    standby.kill();
    let (lost, stop) = (CancellationToken::new(), CancellationToken::new());
    stop.cancel();
    let time = Arc::new(TimeGuard::new(SystemClock.now(), None, &SystemClock));
    let beside = Beside { data: folder.path().to_owned(), clock: Arc::new(SystemClock), time };
    remember(beside, Arc::clone(&store), lost, stop).await;
    assert_eq!(timeline(), 2);
}
