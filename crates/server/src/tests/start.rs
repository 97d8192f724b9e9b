//! Servers that start, start sealed, or do not start, with a sentence for it.

use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::time::Duration;

use countersign_api::admin::{AdminError, ApplyRequest, CreateTokenRequest, RotateRequest};
use countersign_identity::{Clock, Code, SystemEntropy};
use countersign_store::{Lease, SqliteStore, Store};
use tokio::net::TcpListener;

use super::revoke::shows_itself;
use super::{Agent, Realm, workload};
use crate::admin::apply;
use crate::authority::internal;
use crate::config::{Config, InitConfig};
use crate::state::Feeder;

fn code(error: &AdminError) -> Code {
    error.code()
}

#[tokio::test]
async fn server_without_its_key_says_that_it_is_sealed_and_nothing_else() {
    let realm = Realm::begin().await;
    let kek = realm.data().join("kek");
    let aside = realm.data().join("kek.aside");
    std::fs::rename(&kek, &aside).unwrap();
    let running = realm.serve().await;
    assert_eq!(running.ready.listen, None);
    let status = running.admin.status().await.unwrap();
    assert!(status.server.sealed);
    assert!(status.warnings[0].contains("sealed"), "{:?}", status.warnings);
    let admin = &running.admin;
    let request = ApplyRequest { resources: vec![], base: None, prune: false, dry_run: false };
    let token = CreateTokenRequest { ttl: "1m".parse().unwrap(), labels: vec![] };
    assert_eq!(code(&admin.ready().await.unwrap_err()), Code::Sealed);
    assert_eq!(code(&admin.apply(&request).await.unwrap_err()), Code::Sealed);
    assert_eq!(code(&admin.create_token(&token).await.unwrap_err()), Code::Sealed);
    assert_eq!(code(&admin.resources().await.unwrap_err()), Code::Sealed);
    assert_eq!(code(&admin.bundle().await.unwrap_err()), Code::Sealed);
    assert_eq!(code(&admin.nodes(None).await.unwrap_err()), Code::Sealed);
    assert_eq!(code(&admin.handshakes(1, None).await.unwrap_err()), Code::Sealed);
    assert_eq!(code(&admin.events(1, None).await.unwrap_err()), Code::Sealed);
    running.stop().await;
    std::fs::rename(&aside, &kek).unwrap();
    let running = realm.serve().await;
    running.admin.ready().await.unwrap();
    running.stop().await;
}

#[tokio::test]
async fn key_that_others_can_read_or_that_is_another_one_seals_the_server() {
    let realm = Realm::begin().await;
    let kek = realm.data().join("kek");
    std::fs::set_permissions(&kek, std::fs::Permissions::from_mode(0o644)).unwrap();
    let running = realm.serve().await;
    assert!(running.admin.status().await.unwrap().server.sealed);
    running.stop().await;
    std::fs::remove_file(&kek).unwrap();
    countersign_seal::KekFile::create(&kek, &SystemEntropy).unwrap();
    let running = realm.serve().await;
    assert!(running.admin.status().await.unwrap().server.sealed);
    running.stop().await;
}

#[tokio::test]
async fn directory_in_use_is_not_begun_again_and_not_served_twice() {
    let realm = Realm::begin().await;
    let config = InitConfig::new(realm.data(), "other.example".parse().unwrap());
    let error = crate::init(config).await.unwrap_err().to_string();
    assert!(error.contains("already holds trust domain `shop.example`"), "{error}");
    let running = realm.serve().await;
    let error = realm.start(realm.config()).await.err().unwrap();
    assert!(error.to_string().contains("in use by another server"), "{error}");
    running.admin.ready().await.unwrap();
    running.stop().await;
}

#[tokio::test]
async fn taken_port_is_named() {
    let realm = Realm::begin().await;
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap();
    let error = realm.start(Config { listen: address, ..realm.config() }).await.err().unwrap();
    assert!(error.to_string().contains(&address.to_string()), "{error}");
    assert_eq!(error.code(), Code::AlreadyExists);
    let metrics = Config { metrics: Some(address), ..realm.config() };
    assert!(realm.start(metrics).await.is_err());
    // Nothing is left that would keep the next one from starting.
    realm.serve().await.stop().await;
}

#[tokio::test]
async fn directory_without_a_trust_domain_is_a_sentence() {
    let realm = Realm::begin().await;
    let empty = tempfile::tempdir().unwrap();
    let config = Config::new(empty.path(), "127.0.0.1:0".parse().unwrap());
    let error = realm.start(config).await.err().unwrap();
    assert!(error.to_string().contains("holds no trust domain"), "{error}");
    assert_eq!(std::fs::read_dir(empty.path()).unwrap().count(), 0, "and nothing was made in it");
}

#[tokio::test]
async fn clock_behind_the_log_issues_nothing_and_says_so() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    running.apply(vec![workload("web", &[])]).await;
    running.stop().await;
    let now = countersign_identity::Clock::now(&*realm.clock);
    realm.clock.set(now - Duration::from_secs(3600));
    let running = realm.serve().await;
    assert_eq!(code(&running.admin.ready().await.unwrap_err()), Code::NotReady);
    let status = running.admin.status().await.unwrap();
    assert!(
        status.warnings.iter().any(|warning| warning.contains("clock")),
        "{:?}",
        status.warnings
    );
    let token = CreateTokenRequest { ttl: "1m".parse().unwrap(), labels: vec![] };
    assert_eq!(code(&running.admin.create_token(&token).await.unwrap_err()), Code::NotReady);
    // Set right, it goes on by itself.
    realm.clock.set(now);
    running.admin.ready().await.unwrap();
    super::soon(async {
        while tokio::net::TcpStream::connect(running.address()).await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    running.stop().await;
    realm.verify_everything().await;
}

/// Lets a server that is gone have the duty to succeed the issuer.
async fn leave_to_another(realm: &Realm) {
    let store = SqliteStore::open(&realm.data(), Arc::new(SystemEntropy)).unwrap();
    let lease = Lease { holder: "gone".to_owned(), ends: realm.clock.now() };
    assert!(store.lease("authority/issuer", lease, None).await.unwrap());
}

#[tokio::test]
async fn server_whose_issuer_has_ended_recovers_also_when_that_was_the_duty_of_one_that_is_gone() {
    let realm = Realm::begin().await;
    leave_to_another(&realm).await;
    realm.clock.advance(Duration::from_secs(60 * 86_400));
    let running = realm.serve().await;
    super::soon(async {
        while !shows_itself(&realm, &running).await {
            realm.clock.advance(Duration::from_secs(1));
        }
    })
    .await;
    Agent::join(&realm, &running, &[]).await;
    running.stop().await;
    realm.verify_everything().await;
}

#[tokio::test]
async fn server_that_has_run_for_a_while_replaces_an_issuer_at_the_first_word() {
    let realm = Realm::begin().await;
    leave_to_another(&realm).await;
    let running = realm.serve().await;
    // It looks who has that duty each minute, of which a few are missed here.
    for _minute in 0..60 {
        realm.clock.advance(Duration::from_secs(60));
        running.admin.status().await.unwrap();
    }
    let request = RotateRequest { reason: None, root_key: None };
    running.admin.rotate_issuer(&request).await.unwrap();
    running.stop().await;
    realm.verify_everything().await;
}

#[tokio::test]
async fn state_and_nodes_outlive_a_restart() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    let applied = running.apply(vec![workload("web", &[])]).await;
    let agent = Agent::join(&realm, &running, &[]).await;
    running.stop().await;
    let running = realm.serve().await;
    let status = running.admin.status().await.unwrap();
    assert_eq!(status.revision, applied.revision);
    assert_eq!(status.nodes[0].id, agent.node);
    let client = agent.client(&realm, &running).await;
    client.node.sign(countersign_api::v1::SignRequest::default()).await.unwrap();
    running.stop().await;
    realm.verify_everything().await;
}

#[tokio::test]
async fn metrics_are_served_on_their_own_address_and_nothing_else_is() {
    let realm = Realm::begin().await;
    let metrics = Some("127.0.0.1:0".parse().unwrap());
    let running = realm.start(Config { metrics, ..realm.config() }).await.unwrap();
    let address = running.ready.metrics.unwrap();
    let ask = async |path: &str| ask(address, path).await;
    let answer = ask("/metrics").await;
    assert!(answer.contains("countersign_server_resident_bytes"), "{answer}");
    for path in ["/v1/status", "/live", "/"] {
        assert!(ask(path).await.starts_with("HTTP/1.1 404"), "{path}");
    }
    running.stop().await;
}

/// What is answered there in plain HTTP.
pub(super) async fn ask(address: std::net::SocketAddr, path: &str) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut tcp = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    tcp.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    tcp.read_to_string(&mut answer).await.unwrap();
    answer
}

/// What a start issues is fenced when another server has just taken rights away, and then waits for the feed.
#[tokio::test]
async fn a_start_that_waits_for_the_feed_has_it_followed() {
    let realm = Realm::begin().await;
    let store: Arc<dyn Store> =
        Arc::new(SqliteStore::open(&realm.data(), Arc::new(SystemEntropy)).unwrap());
    let clock: Arc<dyn Clock> = Arc::clone(&realm.clock) as _;
    let (feeder, feed) = Feeder::start(Arc::clone(&store), Arc::clone(&clock)).await.unwrap();
    let (state, now) = (feed.current(), clock.now());
    let resources = apply::read(&[workload("web", &[])]).unwrap();
    let plan = apply::put(&state, resources, apply::Unnamed::Keep).unwrap();
    let batch = plan.batch(&state, "operator:uid:0", None, now);
    let revision = store.commit(batch).await.unwrap().revision;
    let start = async { feed.reached(revision).await.ok_or_else(|| internal("the feed ended")) };
    let reached = tokio::time::timeout(Duration::from_secs(60), feeder.beside(start)).await;
    assert_eq!(reached.unwrap().unwrap().revision, revision);
}
