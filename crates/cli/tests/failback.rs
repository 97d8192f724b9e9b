//! An old primary that is back beside the standby that took its place, under two servers, as processes.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as expected")]

#[path = "support/ending.rs"]
mod ending;
#[path = "../../store/tests/support/postgres.rs"]
#[expect(dead_code, reason = "the store's own tests use the rest of it")]
mod postgres;
#[path = "support/servers.rs"]
mod servers;
mod support;

use std::collections::BTreeSet;
use std::io::Read as _;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ending::Ending;
use postgres::{Cluster, Listen};
use serde_json::Value;
use servers::{Domain, Part, done, run};
use support::until;

/// A trust domain whose servers know a primary and its standby, in this order.
struct Pair {
    domain: Domain,
    standby: Cluster,
    database: String,
}

impl Pair {
    fn make(isolation: &str) -> Self {
        let primary = Cluster::start(Listen::Nowhere, &[]);
        let database = primary.database(isolation);
        let standby = Cluster::standby_of(&primary, "spare");
        let (one, two) = (primary.folder().display(), standby.folder().display());
        let url = format!("postgres://cs@/{database}?host={one},{two}");
        Self { domain: Domain::make_in(primary, url), standby, database }
    }

    fn primary(&self) -> &Cluster {
        &self.domain.cluster
    }

    fn primary_says(&self, what: &str, value: &str) {
        let asked = format!("SELECT {what} FROM pg_stat_replication");
        until(what, || (self.primary().sql("postgres", &asked) == value).then_some(()));
    }

    fn names(&self) -> BTreeSet<String> {
        let sql = "SELECT name FROM records WHERE kind = 'Workload'";
        self.standby.sql(&self.database, sql).lines().map(str::to_owned).collect()
    }

    /// All that a server that works on the primary would change, also while it does nothing else.
    fn old(&self) -> String {
        let written = "SELECT * FROM head; SELECT * FROM leases ORDER BY name; \
                       SELECT replica, version FROM reports ORDER BY replica";
        self.primary().sql(&self.database, written)
    }

    /// Ends every connection that servers have to the new primary, until each has made new ones and is ready.
    fn cut(&self, servers: [&Part; 2]) {
        for _round in 0..3 {
            self.standby.sql(
                "postgres",
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                 WHERE application_name LIKE 'countersign/%'",
            );
            until("each follows on a new connection", || {
                let of = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%l.log_index =%' \
                          AND application_name LIKE 'countersign/%'";
                let count: u32 = self.standby.sql("postgres", of).parse().unwrap();
                (2 <= count).then_some(())
            });
            ready(servers, true);
        }
    }
}

fn ready(servers: [&Part; 2], is: bool) {
    until(if is { "both are ready" } else { "none is ready" }, || {
        let all = servers.map(|server| server.readiness().0 == "200");
        (all == [is; 2]).then_some(())
    });
}

fn incarnation(server: &Part) -> String {
    let status = server.status();
    let revision = status["revision"].as_str().unwrap_or_default();
    revision.split_once('.').unwrap_or_default().0.to_owned()
}

/// The second half of a revision's text, which is `INCARNATION.NUMBER`.
fn number(revision: &Value) -> u64 {
    revision.as_str().unwrap().split_once('.').unwrap().1.parse().unwrap()
}

/// Declares through one server until told to end; notes what was acknowledged.
fn declare(
    domain: &Domain,
    server: &Part,
    caller: &str,
    told: &Mutex<Vec<String>>,
    end: &AtomicBool,
) {
    for turn in 0.. {
        if end.load(Ordering::Relaxed) {
            return;
        }
        let name = format!("{caller}{turn}");
        let manifest = domain.manifest(&name, "5m");
        if run(&["apply", &manifest, "--admin", server.admin()]).status.success() {
            told.lock().unwrap().push(name);
        }
    }
}

/// What a server says that does not start.
fn refused(domain: &Domain, name: &str) -> String {
    let data = domain.place(name);
    let arguments = ["server", "--data", &data, "--store", &domain.url, "--listen", "127.0.0.1:0"];
    let mut server = Command::new(support::binary());
    let mut server = server.args(arguments).stderr(Stdio::piped()).spawn().unwrap();
    let begin = Instant::now();
    let ended = loop {
        if let Some(ended) = server.try_wait().unwrap() {
            break ended;
        }
        if Duration::from_secs(30) < begin.elapsed() {
            server.kill().unwrap();
        }
        std::thread::park_timeout(Duration::from_millis(20));
    };
    let mut said = String::new();
    server.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(ended.code().is_some_and(|code| code != 0), "it starts: {said}");
    said
}

#[test]
fn servers_stay_with_the_new_primary_when_the_old_one_is_back() {
    let pair = Pair::make("serializable");
    let domain = &pair.domain;
    pair.primary().sql("postgres", "ALTER SYSTEM SET synchronous_standby_names = 'spare'");
    pair.primary().sql("postgres", "SELECT pg_reload_conf()");
    pair.primary_says("sync_state", "sync");
    let (one, two) = (domain.server("one"), domain.server("two"));
    let (told, end) = (Mutex::new(Vec::new()), AtomicBool::new(false));
    let flows = |more: usize| {
        let enough = told.lock().unwrap().len() + more;
        until("writing goes on", || (enough <= told.lock().unwrap().len()).then_some(()));
    };
    let before = std::thread::scope(|scope| {
        let ending = Ending(&end);
        for (server, caller) in [(&one, "a"), (&two, "b")] {
            let (told, end) = (&told, &end);
            scope.spawn(move || declare(domain, server, caller, told, end));
        }
        flows(6);
        pair.primary().kill();
        pair.standby.sql("postgres", "SELECT pg_promote(false)");
        flows(6);
        pair.primary().resume();
        let before = pair.old();
        pair.cut([&one, &two]);
        flows(6);
        drop(ending);
        before
    });
    // One begins anew while both take writes.
    one.kill();
    let one = domain.server("one");
    told.lock().unwrap().push("again".to_owned());
    domain.apply(&one, "again");
    // The new primary is away for a while: nobody works on the old one instead, or begins anything on it.
    pair.standby.kill();
    ready([&one, &two], false);
    until("each says why", || {
        let why = [&one, &two].map(|server| server.readiness().1.contains("old primary"));
        (why == [true; 2]).then_some(())
    });
    two.kill();
    // On a busy machine a host may answer too late to be told from one that is gone.
    until("it says why it does not start", || {
        refused(domain, "two").contains("old primary").then_some(())
    });
    pair.standby.resume();
    let two = domain.server("two");
    ready([&one, &two], true);
    assert_eq!([&one, &two].map(incarnation), ["1", "1"]);
    assert_eq!(pair.old(), before, "the old primary was written to");
    let (names, told) = (pair.names(), told.into_inner().unwrap());
    let lost: Vec<&String> = told.iter().filter(|name| !names.contains(*name)).collect();
    assert!(lost.is_empty(), "acknowledged and lost: {lost:?} of {}", told.len());
    // A backup is of the new one, and so is what is verified.
    let (data, file) = (domain.place("one"), domain.place("state.backup"));
    let saved = done(&["backup", &file, "--data", &data, "--store", &domain.url]);
    let verified = done(&["store", "verify", &domain.url]);
    let revision = |said: &Value| said["revision"].as_str().unwrap().to_owned();
    let now = pair.standby.sql(&pair.database, "SELECT incarnation || '.' || number FROM head");
    assert_eq!([revision(&saved), revision(&verified)], [now.clone(), now]);
}

#[test]
fn an_incarnation_that_began_on_the_new_primary_stays_when_the_old_one_is_back() {
    let pair = Pair::make("read committed");
    let domain = &pair.domain;
    let serve = |name| domain.server_with(name, &["--hold-off", "1s"]);
    let (one, two) = (serve("one"), serve("two"));
    let kept = domain.apply(&one, "kept");
    until("the standby has it", || {
        let there = pair.standby.sql(&pair.database, "SELECT number FROM head");
        (number(&kept) <= there.parse().unwrap()).then_some(())
    });
    pair.standby.sql("postgres", "ALTER SYSTEM SET primary_conninfo = 'host=/nowhere'");
    pair.standby.sql("postgres", "SELECT pg_reload_conf()");
    pair.primary_says("count(*)", "0");
    let lost = domain.apply(&one, "lost");
    // Each has written down that it has seen that.
    until("both have seen it", || {
        let seen = ["one", "two"].map(|name| {
            // It is there a second after the server's start.
            let seen = std::fs::read(domain.place(&format!("{name}/seen.json")));
            seen.is_ok_and(|seen| {
                let seen: Value = serde_json::from_slice(&seen).unwrap();
                number(&lost) <= number(&seen["revision"])
            })
        });
        (seen == [true; 2]).then_some(())
    });
    // The second sleeps from here on.
    two.kill();
    pair.primary().kill();
    pair.standby.sql("postgres", "SELECT pg_promote(false)");
    until("a new incarnation has begun", || {
        let of = incarnation(&one);
        (!of.is_empty() && of != "1" && one.readiness().0 == "200").then_some(())
    });
    let new = incarnation(&one);
    pair.primary().resume();
    let before = pair.old();
    // It finds on the old primary all that it has seen.
    let two = serve("two");
    pair.cut([&one, &two]);
    domain.apply(&two, "through-two");
    one.kill();
    let one = serve("one");
    domain.apply(&one, "through-one");
    ready([&one, &two], true);
    assert_eq!([&one, &two].map(incarnation), [new.clone(), new]);
    let names = pair.names();
    assert!(!names.contains("lost"), "{names:?}");
    for name in ["kept", "through-two", "through-one"] {
        assert!(names.contains(name), "{name}: {names:?}");
    }
    assert_eq!(pair.old(), before, "the old primary was written to");
    done(&["store", "verify", &domain.url]);
}
