//! The loss of a primary under two servers, as processes: to a standby that has everything, and to one that lacks the end.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as expected")]

#[path = "../../store/tests/support/postgres.rs"]
#[expect(dead_code, reason = "the store's own tests use the rest of it")]
mod postgres;
#[path = "support/servers.rs"]
mod servers;
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use postgres::{Cluster, Listen};
use serde_json::Value;
use servers::{Domain, Part, done, run};
use support::until;

/// A trust domain in a database with a standby, and both of their places in the URL of its servers.
struct Pair {
    domain: Domain,
    standby: Cluster,
    database: String,
}

impl Pair {
    fn make() -> Self {
        let primary = Cluster::start(Listen::Nowhere, &[]);
        let database = primary.database("read committed");
        let standby = Cluster::standby_of(&primary, "spare");
        let (one, two) = (primary.folder().display(), standby.folder().display());
        let parameters = format!("host={one},{two}&target_session_attrs=read-write");
        let url = format!("postgres://cs@/{database}?{parameters}");
        Self { domain: Domain::make_in(primary, url), standby, database }
    }

    /// Has every commit wait for the standby.
    fn synchronous(&self) {
        let primary = &self.domain.cluster;
        primary.sql("postgres", "ALTER SYSTEM SET synchronous_standby_names = 'spare'");
        primary.sql("postgres", "SELECT pg_reload_conf()");
        until("the standby is synchronous", || {
            let state = primary.sql("postgres", "SELECT sync_state FROM pg_stat_replication");
            (state == "sync").then_some(())
        });
    }

    /// Lets no more of the primary's writes reach the standby.
    fn cut_off(&self) {
        self.standby.sql("postgres", "ALTER SYSTEM SET primary_conninfo = 'host=/nowhere'");
        self.standby.sql("postgres", "SELECT pg_reload_conf()");
        until("the standby is cut off", || {
            let of = "SELECT count(*) FROM pg_stat_replication";
            (self.domain.cluster.sql("postgres", of) == "0").then_some(())
        });
    }

    fn promote(&self) {
        // Without waiting: what it is like in between is looked at, too.
        self.standby.sql("postgres", "SELECT pg_promote(false)");
    }

    fn names(&self, kind: &str) -> BTreeSet<String> {
        let sql = format!("SELECT name FROM records WHERE kind = '{kind}'");
        self.standby.sql(&self.database, &sql).lines().map(str::to_owned).collect()
    }

    fn verify(&self) {
        let output = run(&["store", "verify", &self.domain.url, "--output", "json"]);
        assert!(output.status.success(), "{}", support::text(&output.stderr));
    }
}

fn ready(servers: [&Part; 2], is: bool) {
    until(if is { "both are ready" } else { "none is ready" }, || {
        let all = servers.map(|server| server.readiness().0 == "200");
        (all == [is; 2]).then_some(())
    });
}

/// What one caller was told is done, in the order in which it was told.
#[derive(Default)]
struct Told {
    applied: Vec<(String, Value)>,
    revoked: Vec<(String, Value)>,
}

/// Declares and revokes through one server until told to end; whatever does not come to be known is gone on from.
fn call(
    domain: &Domain,
    server: &Part,
    caller: &str,
    acknowledged: &AtomicUsize,
    refused: &AtomicUsize,
    end: &AtomicBool,
) -> Told {
    let mut told = Told::default();
    for turn in 0.. {
        if end.load(Ordering::Relaxed) {
            break;
        }
        let name = format!("{caller}{turn}");
        let manifest = domain.manifest(&name, "5m");
        let id = format!("spiffe://prod.example/{name}");
        let applying = ["apply", &manifest];
        let revoking = ["revoke", &id, "--reason", "key-compromise"];
        for (arguments, done) in
            [(&applying[..], &mut told.applied), (&revoking[..], &mut told.revoked)]
        {
            let more = ["--admin", server.admin(), "--output", "json"];
            let output = run(&[arguments, &more].concat());
            if !output.status.success() {
                refused.fetch_add(1, Ordering::Relaxed);
                break;
            }
            let said: Value = serde_json::from_slice(&output.stdout).unwrap();
            done.push((name.clone(), said["revision"].clone()));
            acknowledged.fetch_add(1, Ordering::Relaxed);
        }
    }
    told
}

/// The second half of a revision's text, which is `INCARNATION.NUMBER`.
fn number(revision: &Value) -> u64 {
    revision.as_str().unwrap().split_once('.').unwrap().1.parse().unwrap()
}

#[test]
fn no_acknowledged_write_is_lost_when_a_synchronous_standby_is_promoted_under_traffic() {
    let pair = Pair::make();
    pair.synchronous();
    let domain = &pair.domain;
    let (mut one, mut two) = (domain.server("one"), domain.server("two"));
    let status = one.status();
    assert_eq!(status["source"], "server", "{status}");
    assert!(!status["warnings"].to_string().contains("standby"), "{status}");
    let near = domain.agent("near", &[&one, &two]);
    let far = domain.agent("far", &[&two, &one]);
    let (acknowledged, end) = (AtomicUsize::new(0), AtomicBool::new(false));
    let refused = [AtomicUsize::new(0), AtomicUsize::new(0)];
    let flows = |more: usize| {
        let enough = acknowledged.load(Ordering::Relaxed) + more;
        until("writing goes on", || (enough <= acknowledged.load(Ordering::Relaxed)).then_some(()));
    };
    let (told, held) = std::thread::scope(|scope| {
        let callers = [(&one, "a", &refused[0]), (&two, "b", &refused[1])];
        let callers = callers.map(|(server, caller, refused)| {
            let (acknowledged, end) = (&acknowledged, &end);
            scope.spawn(move || call(domain, server, caller, acknowledged, refused, end))
        });
        let holding = scope.spawn(|| {
            let mut held = BTreeSet::new();
            while !end.load(Ordering::Relaxed) {
                held.extend(["near", "far"].iter().filter_map(|a| domain.serials(a)).flatten());
            }
            held
        });
        flows(12);
        domain.cluster.kill();
        ready([&one, &two], false);
        assert!(one.readiness().1.contains("nothing can be recorded"), "{:?}", one.readiness());
        until("each is told that the database is away", || {
            refused.iter().all(|count| 0 < count.load(Ordering::Relaxed)).then_some(())
        });
        pair.promote();
        ready([&one, &two], true);
        flows(12);
        end.store(true, Ordering::Relaxed);
        (callers.map(|caller| caller.join().unwrap()), holding.join().unwrap())
    });
    // Nothing of what was told is missing.
    let (workloads, rules) = (pair.names("Workload"), pair.names("Revocation"));
    let mut revisions = BTreeMap::new();
    for told in &told {
        for (name, revision) in &told.applied {
            assert!(workloads.contains(name), "{name} of {revision} is lost");
        }
        for (name, revision) in &told.revoked {
            let rule = format!("{}.0", revision.as_str().unwrap());
            assert!(rules.contains(&rule), "the revocation of {name} at {revision} is lost");
        }
        let mut order: Vec<u64> =
            told.applied.iter().map(|(_, revision)| number(revision)).collect();
        assert!(order.is_sorted_by(|one, next| one < next), "{order:?}");
        order.extend(told.revoked.iter().map(|(_, revision)| number(revision)));
        for revision in order {
            assert!(revisions.insert(revision, ()).is_none(), "{revision} was told twice");
        }
    }
    // Nothing was issued twice, or without a record.
    let issued = "SELECT encode(serial, 'hex') FROM issued";
    let issued = pair.standby.sql(&pair.database, issued);
    let recorded: BTreeSet<String> = issued.lines().map(str::to_owned).collect();
    assert_eq!(recorded.len(), issued.lines().count());
    assert!(!held.is_empty());
    let unknown: Vec<_> = held.difference(&recorded).collect();
    assert!(unknown.is_empty(), "held and not recorded: {unknown:?}");
    pair.verify();
    assert!(one.runs() && two.runs());
    assert_eq!(one.status()["revision"].as_str().unwrap().split_once('.').unwrap().0, "1");
    println!("{} revisions told, {} certificates held", revisions.len(), held.len());
    drop((near, far));
}

#[test]
fn a_tail_lost_with_an_asynchronous_standby_begins_a_new_incarnation_under_running_servers() {
    let pair = Pair::make();
    let domain = &pair.domain;
    let serve = |name| domain.server_with(name, &["--hold-off", "3s"]);
    let (mut one, mut two) = (serve("one"), serve("two"));
    for server in [&one, &two] {
        let warnings = server.status()["warnings"].to_string();
        assert!(warnings.contains("acknowledged writes may be lost"), "{warnings}");
    }
    let near = domain.agent("near", &[&one, &two]);
    let far = domain.agent("far", &[&two, &one]);
    for name in ["kept", "leaked"] {
        two.node_has(&domain.apply(&one, name));
    }
    until("both agents serve", || (domain.fetch("near") && domain.fetch("far")).then_some(()));
    pair.cut_off();
    domain.apply(&one, "lost");
    let leaked = "spiffe://prod.example/leaked";
    let reason = ["--reason", "process-compromise", "--admin", one.admin()];
    let revoked = done(&[&["revoke", leaked][..], &reason].concat())["revision"].clone();
    until("both agents have the rule", || {
        let nodes = [&one, &two].map(|server| server.nodes_at(&revoked));
        (nodes.iter().sum::<usize>() == 2).then_some(())
    });
    domain.cluster.kill();
    ready([&one, &two], false);
    pair.promote();
    until("a new incarnation has begun", || {
        let all = [&one, &two].map(|server| {
            let status = server.status();
            let revision = status["revision"].as_str().unwrap_or("1.").to_owned();
            !revision.starts_with("1.") && server.readiness().0 == "200"
        });
        (all == [true; 2]).then_some(())
    });
    assert!(one.runs() && two.runs(), "they went on by themselves");
    // The rule that only the agents remembered is back, and so is the suspension.
    until("the agents have handed back what they remember", || {
        (!pair.names("Revocation").is_empty() && !pair.names("Suspension").is_empty()).then_some(())
    });
    let workloads = pair.names("Workload");
    assert!(workloads.contains("kept") && !workloads.contains("lost"), "{workloads:?}");
    // A change through either reaches both agents, wherever they have gone.
    for (by, name) in [(&one, "lost"), (&two, "new")] {
        let revision = domain.apply(by, name);
        until("both agents have the revision", || {
            let nodes = [&one, &two].map(|server| server.nodes_at(&revision));
            (nodes.iter().sum::<usize>() == 2).then_some(())
        });
    }
    pair.verify();
    drop((near, far));
}
