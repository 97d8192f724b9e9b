//! A program of an earlier version and this one on one PostgreSQL, as processes: the earlier one's server goes on while this one brings
//! the schema on, and agents and proxies of both go on at both. `cargo xtask older` builds the earlier program and runs this.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as expected")]

#[path = "support/door.rs"]
mod door;
#[path = "support/ending.rs"]
mod ending;
#[path = "support/pair.rs"]
#[expect(dead_code, reason = "other tests have a standby")]
mod pair;
#[path = "../../store/tests/support/postgres.rs"]
#[expect(dead_code, reason = "the store's own tests use the rest of it")]
mod postgres;
#[path = "support/servers.rs"]
mod servers;
mod support;

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use door::{answer, shown};
use pair::{Told, Traffic, number};
use postgres::{Cluster, Listen};
use serde_json::Value;
use servers::{Domain, Part, done, done_by, run};
use support::{binary, text, until};

/// The variable that names the earlier program.
const OLDER: &str = "COUNTERSIGN_OLDER";
/// A user of whom no process runs here: what callers declare is for it.
const NOBODY: &str = "65533";

#[test]
fn an_earlier_program_goes_on_beside_this_one_which_brings_the_schema_on_at_read_committed() {
    beside_an_earlier_one("read committed");
}

#[test]
fn an_earlier_program_goes_on_beside_this_one_which_brings_the_schema_on_at_serializable() {
    beside_an_earlier_one("serializable");
}

fn beside_an_earlier_one(isolation: &str) {
    let Some(older) = std::env::var_os(OLDER).map(PathBuf::from) else {
        let said =
            format!("SKIPPED: {OLDER} names no earlier program; `cargo xtask older` builds one.\n");
        // Past the harness, which shows only what tests print that fail.
        return std::io::stderr().write_all(said.as_bytes()).unwrap();
    };
    let mut domain = begun_by(&older, isolation);
    let one = domain.server("one");
    // Where the later server will be, which the earlier agent has to know by then.
    let address = free_address();
    let near = domain.agent_at("near", &one, &[one.listen(), &address]);
    declare(&domain, &one);
    let door = domain.proxy("near");
    is_let_in(&domain, &door, "near", "web");

    domain.program = binary();
    let (two, told) = brought_on(&domain, &one, &address);
    let far = domain.agent_at("far", &one, &[one.listen(), &address]);
    domain.program.clone_from(&older);
    let late = domain.agent("late", &[&two]);
    domain.program = binary();
    // The door is the earlier proxy at the earlier agent. Later proxies are at the later agent of the earlier server, and at the
    // earlier agent of the later one.
    let points = [domain.proxy("far"), domain.proxy("late")];
    both_reach_all(&domain, [&one, &two], &older);
    for agent in ["near", "far", "late"] {
        is_let_in(&domain, &door, agent, "web");
    }
    is_revoked_at_all([&one, &two], 3);
    suspended_is_refused(&domain, &two, &door);
    logs_agree(&domain, [&one, &two], &older);

    // The earlier server is stopped: its duties, and its agents, are the later one's.
    drop(one);
    has_the_duties(&domain, &two);
    let revision = domain.apply(&two, "moved");
    until("all agents are at the later server", || (two.nodes_since(&revision) == 3).then_some(()));
    // The earlier agents and their points go on as this program.
    let nodes = domain.sql("SELECT count(*) FROM nodes");
    drop((door, points, near, late));
    let near = domain.agent_again("near", &[&address], &[]);
    let late = domain.agent_again("late", &[&address], &[]);
    let points = ["near", "far", "late"].map(|agent| domain.proxy(agent));
    let revision = domain.apply(&two, "upgraded");
    until("all agents go on", || (two.nodes_since(&revision) == 3).then_some(()));
    assert_eq!(domain.sql("SELECT count(*) FROM nodes"), nodes, "nobody has joined anew");
    is_let_in(&domain, &points[0], "near", "web");
    is_revoked_at_all([&two, &two], 3);
    nothing_is_lost_or_issued_twice(&domain, &told);
    done(&["store", "verify", &domain.url]);
    drop((points, near, far, late));
}

/// An empty database in which the earlier program begins, with data directories for two servers.
fn begun_by(older: &Path, isolation: &str) -> Domain {
    let cluster = Cluster::start(Listen::Nowhere, &[]);
    let url = cluster.url(&cluster.database(isolation));
    let mut domain = Domain::plan(cluster, url);
    older.clone_into(&mut domain.program);
    domain.init("one", &[]);
    let kek = domain.place("one/kek");
    domain.init("two", &["--kek", &kek]);
    domain
}

fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

/// Workloads of this user, and a door to which two of them have access. A workload whose name came before `door` would be what a
/// proxy is by default.
fn declare(domain: &Domain, through: &Part) {
    for name in ["door", "suspended", "web"] {
        domain.apply(through, name);
    }
    let program = domain.place("door.sock");
    answer(program.as_ref());
    let mut declared = format!(
        "apiVersion: countersign.dev/v1alpha1\nkind: Service\nmetadata: {{name: door}}\n\
         spec: {{workload: door, protocol: http, listen: \"127.0.0.1:0\", forward: \"unix:{program}\"}}\n"
    );
    for name in ["suspended", "web"] {
        declared.push_str(&format!(
            "---\napiVersion: countersign.dev/v1alpha1\nkind: Policy\nmetadata: {{name: {name}-to-door}}\n\
             spec:\n  cedar: |\n    permit (principal == Workload::\"{name}\", \
             action == Action::\"connect\", resource == Service::\"door\");\n"
        ));
    }
    let manifest = domain.place("door.yaml");
    std::fs::write(&manifest, declared).unwrap();
    done(&["apply", &manifest, "--admin", through.admin()]);
}

/// Puts the SVID that an agent hands out for a workload into files.
fn fetched(domain: &Domain, agent: &str, workload: &str) -> Option<String> {
    let socket = format!("unix://{}", domain.place(&format!("{agent}-run/agent.sock")));
    let files = domain.place(&format!("{agent}-{workload}"));
    let id = format!("spiffe://prod.example/{workload}");
    let fetched = run(&["fetch", "x509", "--socket", &socket, "--id", &id, "--write", &files]);
    fetched.status.success().then_some(files)
}

#[track_caller]
fn is_let_in(domain: &Domain, door: &Part, agent: &str, workload: &str) {
    until(&format!("the door lets in `{workload}` of agent `{agent}`"), || {
        (shown(door, &fetched(domain, agent, workload)?) == "hello").then_some(())
    });
}

/// Starts this program's server while callers write at the earlier one, who goes on, and then at both. Gives what they were told.
fn brought_on(domain: &Domain, one: &Part, address: &str) -> (Part, Vec<Told>) {
    let version = || domain.sql("SELECT version FROM countersign_schema").parse::<u64>().unwrap();
    let before = version();
    let traffic = Traffic::default();
    let (two, told) = std::thread::scope(|scope| {
        let traffic = &traffic;
        let ending = traffic.ending();
        let declare = |name: &str| domain.manifest_for(NOBODY, name, "5m");
        let earlier = scope.spawn(move || traffic.call(0, one, declare));
        traffic.flows(6);
        let two = domain.server_with("two", &["--listen", address]);
        assert!(before < version(), "the earlier program has to know fewer steps: {before}");
        traffic.flows(6);
        let later = scope.spawn(move || {
            let told = traffic.call(1, &two, declare);
            (two, told)
        });
        traffic.flows(12);
        drop(ending);
        let (two, told) = later.join().unwrap();
        (two, vec![earlier.join().unwrap(), told])
    });
    println!("schema {before} to {}, {} writes meanwhile", version(), traffic.acknowledged());
    assert_eq!(traffic.asked(), traffic.acknowledged(), "none was refused");
    (two, told)
}

/// What is said through either server, and by the earlier program, comes to all agents; each hands out what it was issued.
fn both_reach_all(domain: &Domain, servers: [&Part; 2], older: &Path) {
    let [one, two] = servers;
    let by_older = |name: &str| {
        let manifest = domain.manifest(name, "5m");
        done_by(older, &["apply", &manifest, "--admin", two.admin()])["revision"].clone()
    };
    for revision in [domain.apply(one, "first"), domain.apply(two, "second"), by_older("third")] {
        until("all agents have it", || {
            let nodes = servers.map(|server| server.nodes_since(&revision));
            (nodes.iter().sum::<usize>() == 3).then_some(())
        });
    }
    for agent in ["near", "far", "late"] {
        until("each workload has its SVID", || {
            domain.serials(agent).filter(|serials| serials.len() == 6)
        });
    }
}

/// Revokes what `web` has through each server; every point says that it enforces it, at whichever server it is.
fn is_revoked_at_all(servers: [&Part; 2], points: u64) {
    for through in servers {
        let converged = ["converged", "--admin", through.admin(), "--output", "json"];
        until("all points are counted", || {
            let known: Value = serde_json::from_slice(&run(&converged).stdout).ok()?;
            (known["live"] == points).then_some(())
        });
    }
    for through in servers {
        let revoke = ["revoke", "spiffe://prod.example/web", "--reason", "key-compromise"];
        let wait = ["--wait", "--timeout", "90s", "--admin", through.admin()];
        let outcome = done(&[&revoke[..], &wait].concat());
        let found = (&outcome["live"], &outcome["enforcing"]);
        assert_eq!(found, (&Value::from(points), &Value::from(points)), "{outcome}");
    }
}

/// The earlier proxy, behind the earlier server, enforces what was said at the later one.
fn suspended_is_refused(domain: &Domain, through: &Part, door: &Part) {
    is_let_in(domain, door, "far", "suspended");
    let files = domain.place("far-suspended");
    let id = "spiffe://prod.example/suspended";
    let revoke = ["revoke", id, "--reason", "process-compromise", "--wait", "--timeout", "90s"];
    done(&[&revoke[..], &["--admin", through.admin()]].concat());
    let said = shown(door, &files);
    assert_ne!(said, "hello");
    is_let_in(domain, door, "far", "web");
}

/// Each program finds the log in order, at either server; and this one all of the state.
fn logs_agree(domain: &Domain, servers: [&Part; 2], older: &Path) {
    for server in servers {
        for program in [older, &binary()] {
            let mut verify = std::process::Command::new(program);
            let output = verify.args(["log", "verify", "--admin", server.admin()]).output();
            let output = output.unwrap();
            assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
        }
    }
    let root = |server: &Part| server.status()["server"]["log"]["root"].clone();
    until("both have the root that is verified", || {
        let verified = done(&["store", "verify", &domain.url])["logRoot"].clone();
        (servers.map(root) == [verified.clone(), verified]).then_some(())
    });
}

/// The server signs the log, and so has the duty to.
fn has_the_duties(domain: &Domain, server: &Part) {
    let own = std::fs::read(domain.place("two/domain.json")).unwrap();
    let own: Value = serde_json::from_slice(&own).unwrap();
    done(&["token", "create", "--admin", server.admin()]);
    let size = server.status()["server"]["log"]["size"].as_u64().unwrap();
    until("the later server signs what happens", || {
        let signed = domain.sql("SELECT max(size) FROM checkpoints").parse::<u64>().unwrap();
        let holder = domain.sql("SELECT holder FROM leases WHERE name = 'log/sign'");
        (size <= signed && holder == own["server"].as_str().unwrap()).then_some(())
    });
}

/// What callers were told is there, each under a revision of its own; no two certificates have one leaf, and what agents hand out is on
/// record.
fn nothing_is_lost_or_issued_twice(domain: &Domain, told: &[Told]) {
    let names = |kind: &str| -> BTreeSet<String> {
        let names = domain.sql(&format!("SELECT name FROM records WHERE kind = '{kind}'"));
        names.lines().map(str::to_owned).collect()
    };
    let (workloads, rules) = (names("Workload"), names("Revocation"));
    let mut revisions = BTreeSet::new();
    for Told { applied, revoked } in told {
        for (name, revision) in applied {
            assert!(workloads.contains(name), "{name} of {revision} is lost");
            assert!(revisions.insert(number(revision)), "{revision} was told twice");
        }
        for (name, revision) in revoked {
            let rule = format!("{}.0", revision.as_str().unwrap());
            assert!(rules.contains(&rule), "the revocation of {name} at {revision} is lost");
            assert!(revisions.insert(number(revision)), "{revision} was told twice");
        }
    }
    let shared = "SELECT count(*) FROM (SELECT 1 FROM issued GROUP BY incarnation, log_index \
                  HAVING 1 < count(*)) AS shared";
    assert_eq!(domain.sql(shared), "0", "each has a leaf of its own");
    let issued = domain.sql("SELECT encode(serial, 'hex') FROM issued");
    let recorded: BTreeSet<&str> = issued.lines().collect();
    assert_eq!(recorded.len(), issued.lines().count());
    for agent in ["near", "far", "late"] {
        let held = until("it hands out", || domain.serials(agent));
        let unknown: Vec<_> =
            held.iter().filter(|held| !recorded.contains(held.as_str())).collect();
        assert!(unknown.is_empty(), "held by `{agent}` and not recorded: {unknown:?}");
    }
}
