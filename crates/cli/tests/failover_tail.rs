//! The loss of a primary under two servers, as processes, to a standby that lacks the end.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as expected")]

#[path = "support/door.rs"]
mod door;
#[path = "support/ending.rs"]
mod ending;
#[path = "support/pair.rs"]
#[expect(dead_code, reason = "another test loses nothing")]
mod pair;
#[path = "../../store/tests/support/postgres.rs"]
#[expect(dead_code, reason = "the store's own tests use the rest of it")]
mod postgres;
#[path = "support/servers.rs"]
mod servers;
mod support;

use std::path::Path;
use std::process::Command;

use door::{answer, shown};
use pair::{Pair, Told, Traffic, ready};
use serde_json::Value;
use servers::{Domain, Part, done, run};
use support::{text, until};

/// How long SVIDs live, where nobody says otherwise, and for how long nothing is issued after a tail was lost.
const LIFETIME: &str = "30s";
const HOLD_OFF: &str = "3s";
/// A user of whom no process runs here. What callers declare is for it: a workload that matched the proxy as well, and came before
/// `door` by its name, would be what the proxy is by default, and such a proxy has no door to open.
const NOBODY: &str = "65533";

/// What is known before the tail: workloads, and a door to which one of them has access. Its port is any free one, so who goes on
/// asking at the place that the proxy once named sees whether it was ever closed.
fn declare(domain: &Domain, through: &Part, program: &Path) {
    let manifest = domain.place("all.yaml");
    let declared = format!(
        "apiVersion: countersign.dev/v1alpha1\nkind: TrustDomain\nmetadata: {{name: prod}}\n\
         spec: {{trustDomain: prod.example, svidLifetime: {LIFETIME}}}\n---\n\
         apiVersion: countersign.dev/v1alpha1\nkind: Service\nmetadata: {{name: door}}\n\
         spec: {{workload: door, protocol: http, listen: \"127.0.0.1:0\", forward: \"unix:{}\"}}\n---\n\
         apiVersion: countersign.dev/v1alpha1\nkind: Policy\nmetadata: {{name: kept-to-door}}\n\
         spec:\n  cedar: |\n    permit (principal == Workload::\"kept\", \
         action == Action::\"connect\", resource == Service::\"door\");\n",
        program.display()
    );
    for name in ["kept", "leaked", "door"] {
        domain.apply_for(through, name, LIFETIME);
    }
    std::fs::write(&manifest, declared).unwrap();
    done(&["apply", &manifest, "--admin", through.admin()]);
}

/// Puts the SVID of `kept` into files, and gives its serial.
fn fetch(domain: &Domain, files: &str) -> Option<String> {
    let socket = format!("unix://{}", domain.place("near-run/agent.sock"));
    let id = "spiffe://prod.example/kept";
    let fetched = run(&["fetch", "x509", "--socket", &socket, "--id", id, "--write", files]);
    if !fetched.status.success() {
        return None;
    }
    let leaf = format!("{files}/svid.pem");
    let serial = Command::new("openssl").args(["x509", "-noout", "-serial", "-in", &leaf]).output();
    let serial = text(&serial.unwrap().stdout).trim().to_ascii_lowercase();
    serial.strip_prefix("serial=").map(str::to_owned)
}

/// Whether the certificate in these files has so many seconds left.
fn lasts(files: &str, secs: u32) -> bool {
    let leaf = format!("{files}/svid.pem");
    let left = secs.to_string();
    let check = ["x509", "-noout", "-checkend", &left, "-in", &leaf];
    Command::new("openssl").args(check).output().unwrap().status.success()
}

/// Waits until both agents have a revision, of whichever server.
fn both_have(servers: [&Part; 2], revision: &Value) {
    until("both agents have the revision", || {
        let nodes = servers.map(|server| server.nodes_since(revision));
        (nodes.iter().sum::<usize>() == 2).then_some(())
    });
}

#[test]
fn a_tail_lost_with_an_asynchronous_standby_begins_a_new_incarnation_under_running_servers() {
    let pair = Pair::make("read committed");
    let domain = &pair.domain;
    let serve = |name| domain.server_with(name, &["--hold-off", HOLD_OFF]);
    let (mut one, mut two) = (serve("one"), serve("two"));
    for server in [&one, &two] {
        let warnings = server.status()["warnings"].to_string();
        assert!(warnings.contains("acknowledged writes may be lost"), "{warnings}");
    }
    let near = domain.agent("near", &[&one, &two]);
    let far = domain.agent("far", &[&two, &one]);
    let program = domain.place("door.sock");
    answer(program.as_ref());
    declare(domain, &one, program.as_ref());
    until("both agents serve", || (domain.fetch("near") && domain.fetch("far")).then_some(()));
    let door = domain.proxy("near");
    pair.cut_off();
    let tail = domain.place("tail");
    let serial = write_tail(domain, [&one, &two], &tail);
    until("the door lets it in", || (shown(&door, &tail) == "hello").then_some(()));

    let told = lose_tail(&pair, [&one, &two], || {
        assert_eq!(shown(&door, &tail), "hello", "doors need no database");
    });
    assert!(one.runs() && two.runs(), "they went on by themselves");
    agrees_with_what_was_told(&pair, &told);
    // A change through either reaches both agents, wherever they have gone.
    for (by, name) in [(&one, "lost"), (&two, "new")] {
        both_have([&one, &two], &domain.apply(by, name));
    }
    is_covered(&pair, &door, &serial, &tail);
    pair.verify();
    drop((door, near, far));
}

/// A workload, a rule that both agents have, and the word by which an SVID lives longer than any that is known without it. Puts that
/// one into files, and gives its serial.
fn write_tail(domain: &Domain, servers: [&Part; 2], files: &str) -> String {
    let [one, _two] = servers;
    domain.apply(one, "lost");
    domain.apply_for(one, "kept", "10m");
    let leaked = "spiffe://prod.example/leaked";
    let reason = ["--reason", "process-compromise", "--admin", one.admin()];
    let revoked = done(&[&["revoke", leaked][..], &reason].concat())["revision"].clone();
    both_have(servers, &revoked);
    until("an SVID of the tail is held", || {
        fetch(domain, files).filter(|_serial| lasts(files, 300))
    })
}

/// Loses the primary, and with it the tail, while callers go on; gives what they were told.
fn lose_tail(pair: &Pair, servers: [&Part; 2], without_database: impl FnOnce()) -> [Told; 2] {
    let traffic = Traffic::default();
    std::thread::scope(|scope| {
        let (domain, traffic) = (&pair.domain, &traffic);
        let ending = traffic.ending();
        let callers = [(0, servers[0]), (1, servers[1])].map(|(which, server)| {
            let declare = |name: &str| domain.manifest_for(NOBODY, name, "5m");
            scope.spawn(move || traffic.call(which, server, declare))
        });
        traffic.flows(6);
        domain.cluster.kill();
        without_database();
        ready(servers, false);
        traffic.halts();
        pair.promote();
        until("a new incarnation has begun", || {
            let all = servers.map(|server| {
                let status = server.status();
                let revision = status["revision"].as_str().unwrap_or("1.").to_owned();
                !revision.starts_with("1.") && server.readiness().0 == "200"
            });
            (all == [true; 2]).then_some(())
        });
        traffic.flows(6);
        drop(ending);
        callers.map(|caller| caller.join().unwrap())
    })
}

/// What callers were told before is lost with the tail, and all that they were told since is there; the rule that only the agents
/// remembered is back, and so is the suspension.
fn agrees_with_what_was_told(pair: &Pair, told: &[Told]) {
    until("the agents have handed back what they remember", || {
        (!pair.names("Revocation").is_empty() && !pair.names("Suspension").is_empty()).then_some(())
    });
    let workloads = pair.names("Workload");
    assert!(workloads.contains("kept") && !workloads.contains("lost"), "{workloads:?}");
    let applied: Vec<_> = told.iter().flat_map(|told| &told.applied).collect();
    let of_the_tail = |revision: &Value| revision.as_str().unwrap().starts_with("1.");
    for (name, revision) in &applied {
        assert_eq!(workloads.contains(name), !of_the_tail(revision), "{name} of {revision}");
    }
    let lost = applied.iter().filter(|(_, revision)| of_the_tail(revision)).count();
    println!("{lost} of {} declarations lost with the tail", applied.len());
    assert!(0 < lost && lost < applied.len());
}

/// Nobody knows any more that this certificate was issued. Its workload gets another one, and after one lifetime of what is
/// known a rule covers it, long before it would end.
fn is_covered(pair: &Pair, door: &Part, serial: &str, tail: &str) {
    let of = |serial: &str| format!("FROM issued WHERE encode(serial, 'hex') = '{serial}'");
    assert_eq!(pair.count(&format!("SELECT count(*) {}", of(serial))), 0, "it is of the lost tail");
    let new = pair.domain.place("new");
    let again = until("it is issued anew", || {
        fetch(&pair.domain, &new).filter(|again| again != serial && shown(door, &new) == "hello")
    });
    assert!(1 < pair.count(&format!("SELECT incarnation {}", of(&again))), "{again}");
    let refusal = until("the door refuses what is of the tail", || {
        Some(shown(door, tail)).filter(|said| said != "hello")
    });
    assert!(refusal.contains("certificate revoked"), "{refusal}");
    assert!(lasts(tail, 60), "it would have been good for longer");
    assert!(fetch(&pair.domain, &new).is_some());
    assert_eq!(shown(door, &new), "hello");
}
