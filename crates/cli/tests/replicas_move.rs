//! A trust domain that moves between a directory and a database, and a database that knows its servers by certificate, as
//! processes.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as expected")]

#[path = "../../store/tests/support/certificates.rs"]
mod certificates;
#[path = "../../store/tests/support/postgres.rs"]
#[expect(dead_code, reason = "the store's own tests use the rest of it")]
mod postgres;
#[path = "support/servers.rs"]
mod servers;
mod support;

use certificates::{Certificates, free_port};
use postgres::{Cluster, Listen, give_away};
use serde_json::Value;
use servers::{Domain, Part, done, run};
use support::{folder, text, until};

/// Which of a copy's words are what is said of the same state elsewhere.
#[track_caller]
fn same(one: &Value, other: &Value) {
    for word in ["revision", "logSize", "logRoot"] {
        assert_eq!(one[word], other[word], "{word}: {one} {other}");
    }
}

#[test]
fn a_trust_domain_moves_from_a_directory_to_a_database_serves_there_and_moves_back() {
    let cluster = Cluster::start(Listen::Nowhere, &[]);
    let url = cluster.url(&cluster.database("serializable"));
    let domain = Domain::plan(cluster, url);
    let (data, other) = (domain.place("one"), domain.place("other"));
    done(&["init", "--data", &data, "--trust-domain", "prod.example"]);
    let listen = format!("127.0.0.1:{}", free_port());
    let usual = ["server", "--data", &data, "--listen", &listen, "--metrics", "off"];
    let in_directory = || Part::start(&usual, &[]);
    let in_database = || Part::start(&[&usual[..], &["--store", &domain.url]].concat(), &[]);
    let copy = |from: &str, to: &str| done(&["store", "copy", "--from", from, "--to", to]);

    let server = in_directory();
    let agent = domain.agent("near", &[&server]);
    let applied = domain.apply(&server, "web");
    let held = |count: usize| {
        until("each workload has its SVID", || {
            domain.serials("near").filter(|serials| serials.len() == count)
        })
    };
    held(1);
    drop(server);
    let there = copy(&data, &domain.url);
    assert_eq!((&there["event"], &there["revision"]), (&Value::from("copied"), &applied));
    same(&there, &done(&["store", "verify", &data]));
    // As the handbook says, so that there are not two of one name.
    for ending in ["", "-wal", "-shm"] {
        let _absent = std::fs::remove_file(format!("{data}/state.db{ending}"));
    }

    // The agent's server is back with all that it knew, and goes on.
    let server = in_database();
    server.node_has(&domain.apply(&server, "orders"));
    let before = held(2);
    drop(server);
    let back = copy(&domain.url, &data);
    same(&back, &done(&["store", "verify", &domain.url]));
    same(&back, &done(&["store", "verify", &data]));
    for (table, rows) in back["rows"].as_object().unwrap() {
        let count = domain.sql(&format!("SELECT count(*) FROM {table}"));
        assert_eq!(count, rows.to_string(), "{table}");
    }
    assert!(there["logSize"].as_u64() < back["logSize"].as_u64(), "{there} {back}");
    assert_ne!(there["logRoot"], back["logRoot"]);
    std::fs::create_dir(&other).unwrap();
    assert_eq!(copy(&data, &other), back, "and every table once more");

    let server = in_directory();
    let revision = domain.apply(&server, "last");
    server.node_has(&revision);
    let after = held(3);
    assert!(before.iter().all(|serial| after.contains(serial)), "{before:?} {after:?}");
    assert!(
        revision.as_str().unwrap().starts_with("1."),
        "nothing was lost on the way: {revision}"
    );
    drop(agent);
}

#[test]
fn servers_are_known_to_their_database_by_certificate() {
    let folder = folder();
    let files = Certificates::make(folder.path());
    give_away(files.place("db.key").as_ref());
    let (port, settings) = (free_port(), files.settings("hostssl all all 127.0.0.1/32 cert"));
    let cluster = Cluster::start(Listen::Loopback(port), &settings.each_ref().map(String::as_str));
    let database = cluster.database("read committed");
    let url = format!(
        "postgres://cs@127.0.0.1:{port}/{database}?sslmode=verify-full&sslrootcert={}&sslcert={}&sslkey={}",
        files.place("root.pem"),
        files.place("cs.pem"),
        files.place("cs.key"),
    );
    let domain = Domain::make_in(cluster, url);
    let (one, two) = (domain.server("one"), domain.server("two"));
    let near = domain.agent("near", &[&one]);
    one.node_has(&domain.apply(&two, "web"));
    until("the agent serves", || domain.fetch("near").then_some(()));
    assert_eq!(two.readiness().0, "200");
    let known = "SELECT bool_and(s.ssl AND s.client_dn = '/CN=cs') AND 4 <= count(*) \
                 FROM pg_stat_activity JOIN pg_stat_ssl AS s USING (pid) \
                 WHERE application_name LIKE 'countersign/%'";
    assert_eq!(domain.sql(known), "t", "each of their connections");
    drop(near);
}

#[test]
fn a_trust_domain_moves_from_its_database_to_a_directory_and_goes_on() {
    let domain = Domain::make();
    let server = domain.server("one");
    let agent = domain.agent("near", &[&server]);
    let revision = domain.apply(&server, "web");
    server.node_has(&revision);
    // What would go on after the copy is not copied; a backup is of one moment, and may be made at any.
    let (data, other, file) = (domain.place("one"), domain.place("other"), domain.place("file"));
    let refused = run(&["store", "copy", "--from", &domain.url, "--to", &other]);
    let said = text(&refused.stderr);
    let own = std::fs::read(domain.place("one/domain.json")).unwrap();
    let own: Value = serde_json::from_slice(&own).unwrap();
    let name = own["server"].as_str().unwrap();
    assert!(!refused.status.success() && said.contains("servers work on"), "{said}");
    assert!(said.contains(name) && said.contains("Stop them first"), "{name}: {said}");
    done(&["backup", &file, "--data", &data, "--store", &domain.url]);
    drop((agent, server));
    let copied = done(&["store", "copy", "--from", &domain.url, "--to", &data]);
    assert_eq!((&copied["event"], &copied["revision"]), (&Value::from("copied"), &revision));
    let log = copied["logRoot"].clone();
    let fixed = ["server", "--data", &data, "--listen", "127.0.0.1:0", "--metrics", "off"];
    let server = Part::start(&fixed, &[]);
    assert_eq!(server.status()["revision"], revision);
    assert_ne!(server.status()["server"]["log"]["root"], log, "the log goes on");
    let search = ["log", "search", "--kind", "server-started", "--admin", server.admin()];
    let starts = run(&[&search[..], &["--output", "json"]].concat());
    let starts = text(&starts.stdout).matches("server-started").count();
    assert_eq!(starts, 2, "before the move and after it");
    domain.apply(&server, "orders");
}

#[test]
fn a_restore_that_fails_leaves_nothing_in_its_database_and_the_next_one_does_it() {
    let cluster = Cluster::start(Listen::Nowhere, &[]);
    let url = cluster.url(&cluster.database("read committed"));
    let domain = Domain::plan(cluster, url);
    let (data, other, file) = (domain.place("one"), domain.place("other"), domain.place("saved"));
    done(&["init", "--data", &data, "--trust-domain", "prod.example"]);
    done(&["backup", &file, "--data", &data]);
    let kek = format!("{data}/kek");
    let into = |to| ["restore", &file, "--data", to, "--kek", &kek, "--store", &domain.url];
    let refused = run(&[&into(&other)[..], &["--journal", "/nowhere/at/all"]].concat());
    assert!(!refused.status.success());
    assert!(text(&refused.stderr).contains("/nowhere/at/all"), "{}", text(&refused.stderr));
    assert_eq!(domain.sql("SELECT count(*) FROM pg_tables WHERE tablename = 'head'"), "0");
    assert!(!std::path::Path::new(&other).exists());
    let restored = done(&into(&other));
    assert!(!std::path::Path::new(&other).join("state").exists());
    let third = domain.place("third");
    let refused = run(&into(&third));
    assert!(
        text(&refused.stderr).contains("choose an empty database"),
        "{}",
        text(&refused.stderr)
    );
    let at = ["server", "--data", &other, "--store", &domain.url];
    let server =
        Part::start(&[&at[..], &["--listen", "127.0.0.1:0", "--metrics", "off"]].concat(), &[]);
    let status = server.status();
    assert!(status["incarnation"]["heldUntil"].is_string(), "{status}");
    let incarnation =
        |of: &Value| of["revision"].as_str().unwrap().split('.').next().unwrap().to_owned();
    assert_eq!(incarnation(&status), incarnation(&restored));
}
