//! That a state on which a server works is not copied, and nothing is put where one works: by what its lease does, whatever
//! clocks say.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{sleep, spawn};
use std::time::{Duration, Instant};

use countersign_store::{PRESENCE_TTL, Password, Place, Store as _, StoreError};

use crate::fixture::{copy, create_at, folder, putting};
use crate::server::Cluster;

fn place_of(database: &str) -> Place {
    Place::Database(Cluster::shared().url(database).parse().unwrap(), Password::None)
}

/// A database with a state.
async fn filled(isolation: &str) -> String {
    let database = Cluster::shared().database(isolation);
    let store = create_at(Cluster::shared(), &database, 1).await;
    store.commit(putting("web", "1")).await.unwrap();
    database
}

/// Renews a server's lease, until this many seconds from now by the database's clock.
fn renew(database: &str, server: &str, ends_in: i64) {
    let text = format!(
        "INSERT INTO leases VALUES ('replica/{server}', '{server}', \
         (extract(epoch FROM clock_timestamp()) * 1000000)::BIGINT + {ends_in}::BIGINT * 1000000) \
         ON CONFLICT (name) DO UPDATE SET ends = excluded.ends"
    );
    Cluster::shared().sql(database, &text);
}

/// What comes of a copy while a server works on a database whose clock is so many seconds off.
async fn copied_while_served(
    (from, to): (&Place, &Place),
    database: &str,
    server: &'static str,
    off: i64,
) -> StoreError {
    renew(database, server, off + 10);
    let (at_work, database) = (Arc::new(AtomicBool::new(true)), database.to_owned());
    let works = Arc::clone(&at_work);
    let server = spawn(move || {
        while works.load(Ordering::Acquire) {
            sleep(Duration::from_millis(500));
            renew(&database, server, off + 10);
        }
    });
    let outcome = copy(from, to, 1).await;
    at_work.store(false, Ordering::Release);
    server.join().unwrap();
    outcome.unwrap_err()
}

#[track_caller]
fn is_refused_for(refused: &StoreError, server: &str, database: &str) {
    let StoreError::Served { path, servers } = refused else { panic!("{refused}") };
    assert_eq!(servers.as_slice(), [server]);
    assert!(path.to_string_lossy().contains(database), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_on_which_a_server_works_is_not_copied_however_wrong_its_clock_is() {
    let (from, off_by) = (filled("serializable").await, [0, -3600, 3600]);
    for off in off_by {
        let to = folder();
        let place = Place::Directory(to.path().into());
        let places = (&place_of(&from), &place);
        let refused = copied_while_served(places, &from, "one", off).await;
        is_refused_for(&refused, "one", &from);
        let left = std::fs::read_dir(to.path()).unwrap().count();
        assert_eq!(left, 0, "nothing was begun there");
    }
    // It was killed, and its clock was ahead: its lease says for an hour that it is there.
    let (to, began) = (folder(), Instant::now());
    copy(&place_of(&from), &Place::Directory(to.path().into()), 1).await.unwrap();
    assert!(PRESENCE_TTL <= began.elapsed(), "it may have been slow to renew it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_copied_to_where_a_server_works() {
    let (from, cluster) = (filled("read committed").await, Cluster::shared());
    let to = cluster.database("read committed");
    drop(create_at(cluster, &to, 1).await);
    let places = (&place_of(&from), &place_of(&to));
    let refused = copied_while_served(places, &to, "two", 0).await;
    is_refused_for(&refused, "two", &to);
    assert_eq!(cluster.sql(&to, "SELECT count(*) FROM records"), "0");
}

/// The rows are all there when it is found.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_starts_during_the_copy_makes_it_void() {
    let (from, cluster) = (filled("read committed").await, Cluster::shared());
    let to = cluster.database("read committed");
    drop(create_at(cluster, &to, 1).await);
    cluster.sql(
        &to,
        "CREATE TABLE waits AS SELECT 1; \
         CREATE FUNCTION wait() RETURNS TRIGGER LANGUAGE plpgsql AS $$ BEGIN \
         WHILE EXISTS (SELECT FROM waits) LOOP PERFORM pg_sleep(0.02); END LOOP; RETURN NEW; END $$; \
         CREATE TRIGGER wait BEFORE INSERT ON records FOR EACH ROW EXECUTE FUNCTION wait()",
    );
    let (source, target) = (from.clone(), to.clone());
    let server = spawn(move || {
        let waits = format!(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = '{target}' AND wait_event = 'PgSleep'"
        );
        let patience = Instant::now() + Duration::from_secs(60);
        while cluster.sql("postgres", &waits) == "0" && Instant::now() < patience {
            sleep(Duration::from_millis(20));
        }
        renew(&source, "late", 10);
        cluster.sql(&target, "DELETE FROM waits");
    });
    let refused = copy(&place_of(&from), &place_of(&to), 1).await.unwrap_err();
    server.join().unwrap();
    is_refused_for(&refused, "late", &from);
    assert_eq!(cluster.sql(&to, "SELECT count(*) FROM records"), "0");
}
