//! Who the database is, and who we are to it.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use countersign_identity::Code;
use countersign_store::{Password, PostgresStore, Store as _, StoreError};

use crate::fixture::{entropy, folder, putting};
use crate::server::{Cluster, Listen};

/// Certificates of a root and of a database at 127.0.0.1, made by OpenSSL.
fn certificates(folder: &Path) {
    let make = |line: &str| {
        let made = Command::new("openssl").args(line.split(' ')).current_dir(folder).output();
        let made = made.unwrap();
        assert!(made.status.success(), "{line}: {}", String::from_utf8_lossy(&made.stderr));
    };
    for root in ["root", "other"] {
        make(&format!(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN={root} \
             -addext basicConstraints=critical,CA:TRUE -keyout {root}.key -out {root}.pem"
        ));
    }
    make(
        "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=db -keyout db.key -out db.csr",
    );
    std::fs::write(folder.join("ext"), "subjectAltName=IP:127.0.0.1\n").unwrap();
    make("x509 -req -in db.csr -CA root.pem -CAkey root.key -days 2 -extfile ext -out db.pem");
}

fn write_private(path: &Path, text: &str) -> PathBuf {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
    path.to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_is_reached_by_tls_only_when_it_is_the_right_one_and_knows_us() {
    let files = folder();
    std::fs::set_permissions(files.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    certificates(files.path());
    let place = |name: &str| files.path().join(name).to_str().unwrap().to_owned();
    crate::server::give_away(&files.path().join("db.key"));
    let rules = "local all all trust\nhostssl all all 127.0.0.1/32 scram-sha-256\n";
    std::fs::write(files.path().join("hba"), rules).unwrap();
    std::fs::set_permissions(files.path().join("hba"), std::fs::Permissions::from_mode(0o644))
        .unwrap();
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let cluster = Cluster::start(
        Listen::Loopback(port),
        &[
            "ssl = on",
            &format!("ssl_cert_file = '{}'", place("db.pem")),
            &format!("ssl_key_file = '{}'", place("db.key")),
            &format!("hba_file = '{}'", place("hba")),
        ],
    );
    let database = cluster.database("read committed");
    cluster.sql("postgres", "ALTER USER cs PASSWORD 'correct horse'");
    let right = write_private(&files.path().join("password"), "correct horse\n");
    let wrong = write_private(&files.path().join("wrong"), "battery staple\n");
    let lines = format!("127.0.0.1:{port}:{database}:cs:correct horse\n");
    let passfile = write_private(&files.path().join("pgpass"), &lines);
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
