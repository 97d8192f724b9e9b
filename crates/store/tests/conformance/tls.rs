//! Who the database is, and who we are to it.

use std::os::unix::fs::PermissionsExt as _;

use countersign_identity::Code;
use countersign_store::{Password, PostgresStore, Store as _, StoreError};

use crate::certificates::{Certificates, free_port};
use crate::fixture::{entropy, folder, putting};
use crate::server::{Cluster, Listen, give_away};

/// A database that lets in by TLS whom this line says.
fn listening(files: &Certificates, line: &str) -> (Cluster, u16) {
    give_away(files.place("db.key").as_ref());
    let (port, settings) = (free_port(), files.settings(line));
    let settings = settings.each_ref().map(String::as_str);
    (Cluster::start(Listen::Loopback(port), &settings), port)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_is_reached_by_tls_only_when_it_is_the_right_one_and_knows_us() {
    let folder = folder();
    let files = Certificates::make(folder.path());
    let place = |name: &str| files.place(name);
    let (cluster, port) = listening(&files, "hostssl all all 127.0.0.1/32 scram-sha-256");
    let database = cluster.database("read committed");
    cluster.sql("postgres", "ALTER USER cs PASSWORD 'correct horse'");
    let right = files.write("password", "correct horse\n", 0o600);
    let wrong = files.write("wrong", "battery staple\n", 0o600);
    let lines = format!("127.0.0.1:{port}:{database}:cs:correct horse\n");
    let passfile = files.write("pgpass", &lines, 0o600);
    let connect = async |host: &str, query: &str, password: Password| {
        let url = format!("postgres://cs@{host}:{port}/{database}?{query}").parse().unwrap();
        PostgresStore::create(url, password, entropy(1)).await
    };
    let query = format!("sslmode=verify-full&sslrootcert={}", place("root.pem"));

    let store = connect("127.0.0.1", &query, Password::File(right.clone())).await.unwrap();
    let encrypted = "SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
                     WHERE application_name LIKE 'countersign/%'";
    assert_eq!(cluster.sql("postgres", encrypted), "t");
    drop(store);
    connect("127.0.0.1", &query, Password::Passfile(passfile)).await.unwrap();
    let given = Password::Given("correct horse".to_owned().into());
    let store = connect("127.0.0.1", &query, given).await.unwrap();
    store.commit(putting("web", "1")).await.unwrap();
    drop(store);

    let refused = async |host: &str, query: &str, password: Password, why: &str| {
        let error = connect(host, query, password).await.unwrap_err();
        assert_eq!(error.code(), Code::Unavailable, "{error}");
        let text = format!("{error} {error:?}");
        assert!(text.contains(why), "{text}");
        assert!(!text.contains("battery") && !text.contains("horse"), "{text}");
    };
    let other = format!("sslmode=verify-full&sslrootcert={}", place("other.pem"));
    refused("127.0.0.1", &other, Password::File(right.clone()), "certificate").await;
    // It proves an address, not this name.
    refused("localhost", &query, Password::File(right.clone()), "certificate").await;
    refused("127.0.0.1", &query, Password::File(wrong), "password").await;
    refused("127.0.0.1", &query, Password::None, "password").await;
    refused("127.0.0.1", "sslmode=disable", Password::File(right.clone()), "pg_hba").await;

    std::fs::set_permissions(&right, std::fs::Permissions::from_mode(0o640)).unwrap();
    let exposed = connect("127.0.0.1", &query, Password::File(right)).await.unwrap_err();
    assert!(matches!(exposed, StoreError::Exposed { .. }), "{exposed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_knows_us_by_our_certificate_and_nobody_by_another() {
    let folder = folder();
    let files = Certificates::make(folder.path());
    let (cluster, port) = listening(&files, "hostssl all all 127.0.0.1/32 cert");
    let database = cluster.database("read committed");
    let verified = format!("sslmode=verify-full&sslrootcert={}", files.place("root.pem"));
    let showing = |name: &str| {
        let file = |ending: &str| files.place(&format!("{name}.{ending}"));
        format!("{verified}&sslcert={}&sslkey={}", file("pem"), file("key"))
    };
    let connect = async |query: &str| {
        let url = format!("postgres://cs@127.0.0.1:{port}/{database}?{query}").parse().unwrap();
        PostgresStore::create(url, Password::None, entropy(1)).await
    };
    let store = connect(&showing("cs")).await.unwrap();
    store.commit(putting("web", "1")).await.unwrap();
    store.head().await.unwrap();
    // Each of its connections: the one that writes, one that reads, the one that listens.
    let known = "SELECT COUNT(*) || ' ' || bool_and(s.ssl AND s.client_dn = '/CN=cs') \
                 FROM pg_stat_activity JOIN pg_stat_ssl AS s USING (pid) \
                 WHERE application_name LIKE 'countersign/%'";
    assert_eq!(cluster.sql("postgres", known), "3 true");
    drop(store);

    let refused = async |query: &str, why: &str| {
        let error = connect(query).await.unwrap_err();
        assert_eq!(error.code(), Code::Unavailable, "{error}");
        assert!(error.to_string().contains(why), "{error}");
    };
    refused(&verified, "valid client certificate").await;
    refused(&showing("stranger"), "certificate authentication failed").await;
    refused(&showing("false"), "").await;
    let key = folder.path().join("cs.key");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o640)).unwrap();
    let exposed = connect(&showing("cs")).await.unwrap_err();
    assert!(matches!(exposed, StoreError::Exposed { .. }), "{exposed}");
}
