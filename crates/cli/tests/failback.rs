//! An old primary that is back beside the standby that took its place, under two servers, as processes.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as expected")]

#[path = "support/ending.rs"]
mod ending;
#[path = "support/pair.rs"]
#[expect(dead_code, reason = "failover uses the rest of it")]
mod pair;
#[path = "../../store/tests/support/postgres.rs"]
#[expect(dead_code, reason = "the store's own tests use the rest of it")]
mod postgres;
#[path = "support/servers.rs"]
mod servers;
mod support;

use std::io::Read as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use pair::{Pair, Traffic, number, ready};
use serde_json::Value;
use servers::{Domain, Part, done};
use support::until;

/// A pair whose servers are told its places in this order, and no more.
fn pair(isolation: &str) -> Pair {
    Pair::found_by(isolation, "")
}

/// All that a server that works on the primary would change, also while it does nothing else.
fn old(pair: &Pair) -> String {
    let written = "SELECT * FROM head; SELECT * FROM leases ORDER BY name; \
                   SELECT replica, version FROM reports ORDER BY replica";
    pair.domain.cluster.sql(&pair.database, written)
}

/// Ends every connection that servers have to the new primary, until each has made new ones and is ready.
fn cut(pair: &Pair, servers: [&Part; 2]) {
    for _round in 0..3 {
        pair.standby.sql(
            "postgres",
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
             WHERE application_name LIKE 'countersign/%'",
        );
        until("each follows on a new connection", || {
            let of = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%l.log_index =%' \
                      AND application_name LIKE 'countersign/%'";
            let count: u32 = pair.standby.sql("postgres", of).parse().unwrap();
            (2 <= count).then_some(())
        });
        ready(servers, true);
    }
}

fn incarnation(server: &Part) -> String {
    let status = server.status();
    let revision = status["revision"].as_str().unwrap_or_default();
    revision.split_once('.').unwrap_or_default().0.to_owned()
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
    let pair = pair("serializable");
    let domain = &pair.domain;
    pair.synchronous();
    let (one, two) = (domain.server("one"), domain.server("two"));
    let traffic = &Traffic::default();
    let (before, mut told) = std::thread::scope(|scope| {
        let ending = traffic.ending();
        let callers = [(0, &one), (1, &two)].map(|(which, server)| {
            let call = move || traffic.call(which, server, |name| domain.manifest(name, "5m"));
            scope.spawn(call)
        });
        traffic.flows(6);
        domain.cluster.kill();
        pair.promote();
        traffic.flows(6);
        domain.cluster.resume();
        let before = old(&pair);
        cut(&pair, [&one, &two]);
        traffic.flows(6);
        drop(ending);
        let told = callers.map(|caller| caller.join().unwrap().applied).concat();
        (before, told)
    });
    // One begins anew while both take writes.
    one.kill();
    let one = domain.server("one");
    told.push(("again".to_owned(), domain.apply(&one, "again")));
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
    assert_eq!(old(&pair), before, "the old primary was written to");
    let names = pair.names("Workload");
    let lost: Vec<_> = told.iter().filter(|(name, _)| !names.contains(name)).collect();
    assert!(lost.is_empty(), "acknowledged and lost: {lost:?} of {}", told.len());
    // A backup is of the new one, and so is what is verified.
    let (data, file) = (domain.place("one"), domain.place("state.backup"));
    let saved = done(&["backup", &file, "--data", &data, "--store", &domain.url]);
    let verified = done(&["store", "verify", &domain.url]);
    let revision = |said: &Value| said["revision"].as_str().unwrap().to_owned();
    let now = pair.sql("SELECT incarnation || '.' || number FROM head");
    assert_eq!([revision(&saved), revision(&verified)], [now.clone(), now]);
}

#[test]
fn an_incarnation_that_began_on_the_new_primary_stays_when_the_old_one_is_back() {
    let pair = pair("read committed");
    let domain = &pair.domain;
    let serve = |name| domain.server_with(name, &["--hold-off", "1s"]);
    let (one, two) = (serve("one"), serve("two"));
    let kept = domain.apply(&one, "kept");
    until("the standby has it", || {
        let there = pair.sql("SELECT number FROM head");
        (number(&kept) <= there.parse().unwrap()).then_some(())
    });
    pair.cut_off();
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
    domain.cluster.kill();
    pair.promote();
    until("a new incarnation has begun", || {
        let of = incarnation(&one);
        (!of.is_empty() && of != "1" && one.readiness().0 == "200").then_some(())
    });
    let new = incarnation(&one);
    domain.cluster.resume();
    let before = old(&pair);
    // It finds on the old primary all that it has seen.
    let two = serve("two");
    cut(&pair, [&one, &two]);
    domain.apply(&two, "through-two");
    one.kill();
    let one = serve("one");
    domain.apply(&one, "through-one");
    ready([&one, &two], true);
    assert_eq!([&one, &two].map(incarnation), [new.clone(), new]);
    let names = pair.names("Workload");
    assert!(!names.contains("lost"), "{names:?}");
    for name in ["kept", "through-two", "through-one"] {
        assert!(names.contains(name), "{name}: {names:?}");
    }
    assert_eq!(old(&pair), before, "the old primary was written to");
    pair.verify();
}
