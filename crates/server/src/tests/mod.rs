//! A real server in this process, on simulated time, with agents that speak to it over loopback.

mod admin;
mod browser;
mod client;
mod clocks;
mod console;
mod converge;
mod counted;
mod edge;
pub(crate) mod explore;
mod exposure;
mod floods;
mod incarnation;
mod inherited;
mod join;
mod journal;
mod large_journal;
mod log;
mod ocsp;
mod pages;
mod primary;
mod reference;
mod renew;
mod restore;
mod revoke;
mod rotate;
mod saved;
mod seen;
mod sign;
mod start;
mod stopped;
mod strangers;
mod streams;
mod sync;
mod tampered;
mod views;
mod x509;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use countersign_api::admin::{AdminClient, ApplyRequest, ApplyResponse, CreateTokenRequest};
use countersign_api::v1;
use countersign_api::wire::refusal_of;
use countersign_audit::Entry;
use countersign_identity::{Clock, Code, KeyId, NodeId, SimClock, SystemEntropy, Timestamp};
use countersign_pki::{Bundle, Bundles, KeyKind, PrivateKey, Role, Verified, make_csr};
use countersign_seal::KekFile;
use countersign_store::{Issued, Place, SqliteStore, Store as _};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::{Response, Status};

pub(super) use self::client::{Client, known, nobody, stranger};
use crate::config::{Config, InitConfig, Ready, StartError, kek_path};
use crate::init::begin;
use crate::run::{Surroundings, run_in};
use crate::storage::{KeyAt, verify_store};

pub(super) const DOMAIN: &str = "shop.example";

/// A trust domain in a directory of its own.
pub(super) struct Realm {
    directory: TempDir,
    pub(super) clock: Arc<SimClock>,
    pub(super) trust: KeyId,
}

/// A server that runs.
pub(super) struct Running {
    pub(super) ready: Ready,
    pub(super) admin: AdminClient,
    stop: CancellationToken,
    task: JoinHandle<Result<(), StartError>>,
}

impl Realm {
    pub(super) async fn begin() -> Self {
        let directory = tempfile::Builder::new().prefix("cs").tempdir_in("/tmp").unwrap();
        let clock = Arc::new(SimClock::new(Timestamp::from_secs(1_795_262_400)));
        let config = InitConfig::new(directory.path().join("d"), DOMAIN.parse().unwrap());
        let report = begin(config, &*clock, Arc::new(SystemEntropy)).await.unwrap();
        Self { directory, clock, trust: report.trust }
    }

    pub(super) fn data(&self) -> PathBuf {
        self.directory.path().join("d")
    }

    pub(super) fn config(&self) -> Config {
        Config {
            drain: Duration::from_secs(2),
            ..Config::new(self.data(), SocketAddr::from(([127, 0, 0, 1], 0)))
        }
    }

    /// Starts a server, and waits until it serves.
    pub(super) async fn serve(&self) -> Running {
        self.start(self.config()).await.unwrap()
    }

    pub(super) async fn start(&self, config: Config) -> Result<Running, StartError> {
        let around = Surroundings {
            clock: Arc::clone(&self.clock) as Arc<dyn Clock>,
            entropy: Arc::new(SystemEntropy),
        };
        let stop = CancellationToken::new();
        let (tell, told) = oneshot::channel();
        let task = tokio::spawn(run_in(config, around, stop.clone(), tell));
        match told.await {
            Ok(ready) => {
                let admin = AdminClient::new(&ready.admin);
                Ok(Running { ready, admin, stop, task })
            }
            Err(_never_ready) => Err(task.await.unwrap().unwrap_err()),
        }
    }

    /// Checks the whole store of a server that has stopped, and gives all certificates that were recorded.
    pub(super) async fn verify_everything(&self) -> Vec<Issued> {
        let store = SqliteStore::open(&self.data(), Arc::new(SystemEntropy)).unwrap();
        let path = kek_path(&self.data());
        // Some are sealed by what only their tests know.
        let key = KekFile::open(&path).ok().map(|kek| KeyAt { path, kek });
        let verified = verify_store(&Place::Directory(self.data()), key.as_ref()).await.unwrap();
        verified.opened.transpose().unwrap();
        said_as_documented(&store).await;
        store.issued_after(None, 1000).await.unwrap()
    }

    /// What an agent's machine shares with the server's: the time.
    pub(super) fn time(&self) -> Arc<dyn Clock> {
        Arc::clone(&self.clock) as Arc<dyn Clock>
    }
}

/// Every event has a documented form, and no other: what the reference lists is all that there is.
async fn said_as_documented(store: &SqliteStore) {
    let mut next = 0;
    loop {
        let page = store.events(next, 1000).await.unwrap();
        let Some(last) = page.last() else { return };
        next = last.index + 1;
        for event in &page {
            let kind = Entry::parse(&event.leaf).unwrap().kind;
            let details: Value =
                serde_json::from_slice(&event.details.as_ref().unwrap().json).unwrap();
            assert!(kind.describes(&details), "undocumented details of `{kind}`: {details}");
        }
    }
}

impl Running {
    pub(super) fn address(&self) -> SocketAddr {
        self.ready.listen.expect("it is not sealed")
    }

    pub(super) async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }

    pub(super) async fn token(&self, labels: &[&str]) -> String {
        let labels = labels.iter().map(|label| label.parse().unwrap()).collect();
        let request = CreateTokenRequest { ttl: "10m".parse().unwrap(), labels };
        self.admin.create_token(&request).await.unwrap().token
    }

    pub(super) async fn apply(&self, resources: Vec<Value>) -> ApplyResponse {
        let request = ApplyRequest { resources, base: None, prune: false, dry_run: false };
        self.admin.apply(&request).await.unwrap()
    }

    pub(super) async fn log_size(&self) -> u64 {
        self.admin.status().await.unwrap().server.log.size
    }
}

pub(super) fn workload(name: &str, nodes: &[&str]) -> Value {
    json!({
        "apiVersion": "countersign.dev/v1alpha1", "kind": "Workload", "metadata": { "name": name },
        "spec": { "selectors": [format!("launch:{name}")], "lifetime": "15m", "nodes": nodes },
    })
}

pub(super) fn service(name: &str, upstreams: &[&str]) -> Value {
    let upstreams: Vec<Value> =
        upstreams.iter().map(|service| json!({ "service": service, "local": "unix" })).collect();
    json!({
        "apiVersion": "countersign.dev/v1alpha1", "kind": "Service", "metadata": { "name": name },
        "spec": {
            "workload": name, "protocol": "http", "listen": "127.0.0.1:0", "forward": "unix",
            "addresses": ["127.0.0.1:1"], "upstreams": upstreams,
        },
    })
}

pub(super) fn policy(name: &str, cedar: &str) -> Value {
    json!({
        "apiVersion": "countersign.dev/v1alpha1", "kind": "Policy", "metadata": { "name": name },
        "spec": { "cedar": cedar },
    })
}

pub(super) fn trust_domain(agent_lifetime: &str) -> Value {
    json!({
        "apiVersion": "countersign.dev/v1alpha1", "kind": "TrustDomain", "metadata": { "name": "shop" },
        "spec": { "trustDomain": DOMAIN, "agentLifetime": agent_lifetime },
    })
}

/// A machine that has joined.
pub(super) struct Agent {
    pub(super) node: NodeId,
    pub(super) key: PrivateKey,
    pub(super) generation: u64,
    pub(super) chain: Vec<Bytes>,
    pub(super) bundle: Bundle,
}

pub(super) async fn attest(
    client: &mut Client,
    token: &str,
    key: &PrivateKey,
) -> Result<v1::AttestResponse, Status> {
    attest_as(client, token, key, "machine").await
}

async fn attest_as(
    client: &mut Client,
    token: &str,
    key: &PrivateKey,
    host: &str,
) -> Result<v1::AttestResponse, Status> {
    let request = v1::AttestRequest {
        evidence: Some(v1::attest_request::Evidence::JoinToken(token.to_owned())),
        csr: make_csr(key).unwrap().into(),
        version: "0".to_owned(),
        host: host.to_owned(),
    };
    client.node.attest(request).await.map(Response::into_inner)
}

impl Agent {
    pub(super) async fn join(realm: &Realm, running: &Running, labels: &[&str]) -> Self {
        Self::join_as(realm, running, labels, "machine").await
    }

    /// Joins as a machine that calls itself so.
    pub(super) async fn join_as(
        realm: &Realm,
        running: &Running,
        labels: &[&str],
        host: &str,
    ) -> Self {
        let token = running.token(labels).await;
        let key = PrivateKey::generate(KeyKind::P256).unwrap();
        let mut client = stranger(realm, running).await;
        let joined = attest_as(&mut client, &token, &key, host).await.unwrap();
        let bundle = Bundle::parse_json(DOMAIN.parse().unwrap(), &joined.bundle).unwrap();
        let node = countersign_api::wire::node_id(&joined.node_id).unwrap();
        Self { node, key, generation: joined.generation, chain: joined.chain, bundle }
    }

    pub(super) async fn client(&self, realm: &Realm, running: &Running) -> Client {
        known(realm, running, &self.bundle, &self.chain, &self.key).await
    }

    pub(super) fn verify(&self, realm: &Realm, chain: &[Bytes]) -> Verified {
        let bundles = Bundles::new(vec![self.bundle.clone()]).unwrap();
        let chain: Vec<&[u8]> = chain.iter().map(AsRef::as_ref).collect();
        countersign_pki::verify(&chain, &bundles, Role::Server, realm.clock.now()).unwrap()
    }
}

/// The code that a refusal carries.
#[track_caller]
pub(super) fn code(status: &Status) -> Code {
    refusal_of(status).unwrap_or_else(|| panic!("no refusal of ours: {status:?}")).code
}

/// Of a node that was removed: the call says so, or the connection was cut before it could, since what the node showed is revoked.
#[track_caller]
pub(super) fn unknown_or_cut(status: &Status) {
    match refusal_of(status) {
        Some(refusal) => assert_eq!(refusal.code, Code::UnknownNode, "{status:?}"),
        None => assert!(
            matches!(
                status.code(),
                tonic::Code::Unavailable
                    | tonic::Code::Unknown
                    | tonic::Code::Internal
                    | tonic::Code::Cancelled
            ),
            "{status:?}"
        ),
    }
}

/// A bound on what a test waits for, so that a defect is a failure and no hang.
pub(super) async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(90), what).await.expect("it takes too long")
}
