//! A small trust domain with an agent, and what tests ask of sources.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use countersign::{
    Authorization, Expected, HandshakeFailure, Inbound, Outbound, Source, Status, Stream, Trust,
    WorkloadApiOptions, accept, dial,
};
use countersign_api::resource::{PolicyRecord, PolicyScope, ScopeNames};
use countersign_api::v1;
use countersign_api::workload::{X509svid, X509svidResponse};
use countersign_identity::{Clock, SystemClock, Timestamp};
use tempfile::TempDir;
use tokio::net::TcpListener;

use crate::agent::{Agent, Offer};
use crate::realm::{Realm, Svid};

/// Longer than anything in a test takes: who waits for it in vain fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct World {
    pub(crate) realm: Realm,
    pub(crate) agent: Agent,
    _folder: TempDir,
}

impl World {
    pub(crate) fn new(offer: Offer) -> Self {
        let folder = tempfile::Builder::new().prefix("cs").tempdir_in("/tmp").unwrap();
        let agent = Agent::start(folder.path(), offer);
        Self { realm: Realm::new("shop.example", 1, now()), agent, _folder: folder }
    }

    /// A second agent of the same domain, for a second process.
    pub(crate) fn neighbour(&self, offer: Offer) -> (Agent, TempDir) {
        let folder = tempfile::Builder::new().prefix("cs").tempdir_in("/tmp").unwrap();
        (Agent::start(folder.path(), offer), folder)
    }

    pub(crate) fn svid(&self, path: &str) -> Svid {
        self.realm.svid(path, now(), 3600)
    }

    pub(crate) fn wire(&self, svid: &Svid) -> X509svidResponse {
        response(vec![svid.wire(&self.realm.bundle())])
    }

    /// What the agent of `orders` sends: `web` may connect to `orders`.
    pub(crate) fn slice(&self, number: u64, workload: &str) -> v1::Slice {
        let named = |name: &str| v1::NamedWorkload {
            name: name.to_owned(),
            spiffe_id: format!("spiffe://shop.example/{name}"),
            labels: Vec::new(),
        };
        v1::Slice {
            revision: Some(v1::Revision { incarnation: 1, number }),
            workload: workload.to_owned(),
            spiffe_id: format!("spiffe://shop.example/{workload}"),
            bundles: vec![v1::TrustBundle {
                trust_domain: "shop.example".to_owned(),
                authorities: vec![self.realm.root.der().to_vec().into()],
            }],
            workloads: vec![named("web"), named("orders")],
            revocations: Vec::new(),
            roles: Vec::new(),
            services: vec![v1::Record {
                kind: "Service".to_owned(),
                name: "orders".to_owned(),
                value: br#"{"workload":"orders","protocol":"http","listen":"127.0.0.1:4","forward":"unix"}"#[..].into(),
            }],
            policies: vec![policy(PERMIT)],
        }
    }
}

pub(crate) const PERMIT: &str = r#"permit (principal == Workload::"web", action == Action::"connect", resource == Service::"orders");"#;

/// A role, which the record of a policy that names it tells of.
pub(crate) const READERS: &str = "readers";

pub(crate) fn policy(cedar: &str) -> v1::Record {
    let scope = PolicyScope {
        principals: ScopeNames::Any,
        resources: ScopeNames::Any,
        workloads: std::collections::BTreeSet::new(),
        services: std::collections::BTreeSet::new(),
        roles: [READERS.to_owned()].into_iter().filter(|role| cedar.contains(role)).collect(),
        labels: false,
        data_sets: std::collections::BTreeSet::new(),
        classifications: false,
    };
    let record = PolicyRecord {
        cedar: cedar.parse().unwrap(),
        mode: countersign_identity::Mode::Enforce,
        until: None,
        reason: None,
        scopes: vec![scope],
    };
    let value = record.encode().into();
    v1::Record { kind: "Policy".to_owned(), name: "shop".to_owned(), value }
}

pub(crate) fn response(svids: Vec<X509svid>) -> X509svidResponse {
    X509svidResponse { svids, crl: Vec::new(), federated_bundles: HashMap::new() }
}

pub(crate) fn now() -> Timestamp {
    SystemClock::new().now()
}

pub(crate) fn options(agent: &Agent) -> WorkloadApiOptions {
    WorkloadApiOptions::at(agent.endpoint())
}

pub(crate) async fn source(agent: &Agent) -> Source {
    Source::from_workload_api(options(agent)).await.unwrap()
}

pub(crate) async fn source_with(agent: &Agent, authorization: Authorization) -> Source {
    let options = WorkloadApiOptions { authorization, ..options(agent) };
    Source::from_workload_api(options).await.unwrap()
}

/// Waits until the status is so.
pub(crate) async fn until(source: &Source, so: impl FnMut(&Status) -> bool) -> Status {
    let mut statuses = source.status_changes();
    let found = tokio::time::timeout(PATIENCE, statuses.wait_for(so)).await;
    found.expect("the status never became so").unwrap().clone()
}

/// One connection from one source to the other, for service `orders`, both ends.
pub(crate) async fn connect(
    from: &Source,
    to: &Source,
) -> (Result<Stream, HandshakeFailure>, Result<Stream, HandshakeFailure>) {
    connect_to(from, &to.trust()).await
}

/// The same, to what was made of a source.
pub(crate) async fn connect_to(
    from: &Source,
    to: &Arc<Trust>,
) -> (Result<Stream, HandshakeFailure>, Result<Stream, HandshakeFailure>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let inbound = Inbound::service("orders".parse().unwrap());
    let orders = Expected::Id("spiffe://shop.example/orders".parse().unwrap());
    let outbound = Outbound::service("orders".parse().unwrap(), orders);
    let trust = Arc::clone(to);
    let server = async move {
        let (tcp, _) = listener.accept().await.unwrap();
        accept(&trust, tcp, &inbound).await.map(|established| established.stream)
    };
    let trust: Arc<_> = from.trust();
    let client = async move {
        let established = dial(&trust, address, &outbound).await?;
        Ok(established.stream)
    };
    tokio::join!(client, server)
}
