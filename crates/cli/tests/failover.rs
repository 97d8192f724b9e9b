//! The loss of a primary under two servers, as processes, to a standby that has everything.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as expected")]

#[path = "support/ending.rs"]
mod ending;
#[path = "support/pair.rs"]
#[expect(dead_code, reason = "another test loses a tail")]
mod pair;
#[path = "../../store/tests/support/postgres.rs"]
#[expect(dead_code, reason = "the store's own tests use the rest of it")]
mod postgres;
#[path = "support/rivals.rs"]
mod rivals;
#[path = "support/servers.rs"]
mod servers;
mod support;

use std::collections::{BTreeMap, BTreeSet};

use pair::{Pair, Told, Traffic, number, ready};
use rivals::Rivals;
use servers::{Domain, done};

#[test]
fn no_acknowledged_write_is_lost_when_a_synchronous_standby_is_promoted_under_traffic() {
    let pair = Pair::make("serializable");
    pair.synchronous();
    let domain = &pair.domain;
    let (mut one, mut two) = (domain.server("one"), domain.server("two"));
    let status = one.status();
    assert_eq!(status["source"], "server", "{status}");
    assert!(!status["warnings"].to_string().contains("standby"), "{status}");
    let near = domain.agent("near", &[&one, &two]);
    let far = domain.agent("far", &[&two, &one]);
    let traffic = Traffic::default();
    let tokens = [(); 3].map(|()| done(&["token", "create", "--admin", one.admin()]));
    let (told, held, rivals) = std::thread::scope(|scope| {
        let traffic = &traffic;
        let ending = traffic.ending();
        let callers = [(0, &one), (1, &two)].map(|(which, server)| {
            let declare = |name: &str| domain.manifest(name, "5m");
            scope.spawn(move || traffic.call(which, server, declare))
        });
        let holding = scope.spawn(|| hold(domain, traffic));
        traffic.flows(12);
        // Of each token's two machines one comes at each server: before the primary is lost, and while nothing is known.
        let early = Rivals::start(domain, "early", &tokens[0], [&one, &two]);
        let racing = Rivals::start(domain, "racing", &tokens[1], [&two, &one]);
        domain.cluster.kill();
        let late = Rivals::start(domain, "late", &tokens[2], [&one, &two]);
        ready([&one, &two], false);
        assert!(one.readiness().1.contains("nothing can be recorded"), "{:?}", one.readiness());
        traffic.halts();
        pair.promote();
        ready([&one, &two], true);
        traffic.flows(12);
        drop(ending);
        let rivals = [early, racing, late];
        (callers.map(|caller| caller.join().unwrap()), holding.join().unwrap(), rivals)
    });
    nothing_told_is_missing(&pair, &told, &traffic);
    a_token_lets_in_one_machine(&pair, rivals);
    nothing_is_issued_twice_or_unrecorded(&pair, &held);
    pair.verify();
    assert!(one.runs() && two.runs());
    assert_eq!(one.status()["revision"].as_str().unwrap().split_once('.').unwrap().0, "1");
    drop((near, far));
}

/// The serials of all that both agents hand out until it is over.
fn hold(domain: &Domain, traffic: &Traffic) -> BTreeSet<String> {
    let mut held = BTreeSet::new();
    while !traffic.is_over() {
        held.extend(["near", "far"].iter().filter_map(|agent| domain.serials(agent)).flatten());
    }
    held
}

fn nothing_told_is_missing(pair: &Pair, told: &[Told], traffic: &Traffic) {
    let (workloads, rules) = (pair.names("Workload"), pair.names("Revocation"));
    let mut revisions = BTreeMap::new();
    for told in told {
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
    // Nor is anything there that nobody asked for: at most one record for each answer, and for each that stayed out.
    let asked = traffic.asked();
    assert!(workloads.len() + rules.len() <= asked, "{workloads:?} {rules:?} of {asked}");
    println!("{} revisions told, {asked} times asked", revisions.len());
}

/// Whatever became of the answers.
fn a_token_lets_in_one_machine(pair: &Pair, rivals: [Rivals; 3]) {
    let let_in = rivals.map(Rivals::settle);
    println!("of three pairs with a token each {let_in:?} were let in");
    assert!(let_in.iter().all(|count| *count <= 1), "{let_in:?}");
    assert_eq!(let_in[2], 1, "who came when the primary was lost already had nothing to lose");
    let nodes = pair.count("SELECT count(*) FROM nodes");
    let spent = pair.count("SELECT count(*) FROM tokens WHERE spent IS NOT NULL");
    assert_eq!(nodes, spent, "one of each");
    assert!(2 + let_in.iter().sum::<usize>() <= nodes, "whoever was told so is in: {nodes}");
}

fn nothing_is_issued_twice_or_unrecorded(pair: &Pair, held: &BTreeSet<String>) {
    let shared = "SELECT count(*) FROM (SELECT 1 FROM issued GROUP BY incarnation, log_index \
                  HAVING 1 < count(*)) AS shared";
    assert_eq!(pair.count(shared), 0, "each has a leaf of its own");
    let issued = pair.sql("SELECT encode(serial, 'hex') FROM issued");
    let recorded: BTreeSet<String> = issued.lines().map(str::to_owned).collect();
    assert_eq!(recorded.len(), issued.lines().count());
    assert!(!held.is_empty());
    let unknown: Vec<_> = held.difference(&recorded).collect();
    assert!(unknown.is_empty(), "held and not recorded: {unknown:?}");
    println!("{} certificates held", held.len());
}
