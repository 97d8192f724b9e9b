//! A server with one node and its workloads, on a clock that stands still and chance from a seed: always the same one.

use std::sync::Arc;

use bytes::Bytes;
use countersign_agent::core::{Record, Replica};
use countersign_agent::enforcement::cut;
use countersign_api::admin::{RevokeRequest, RevokeResponse};
use countersign_api::renewal::renewal_statement;
use countersign_api::{v1, wire};
use countersign_identity::{
    Clock, Entropy, Lifetime, NodeId, SeededEntropy, Sha256, SimClock, Timestamp,
};
use countersign_pki::{Bundle, Certificate, Chain, PrivateKey, make_csr};
use countersign_seal::Kek;
use countersign_server::steps::{Ground, Steps, begin, put_log_key};
use countersign_store::{MemoryStore, Store};
use serde_json::json;
use tokio::runtime::Runtime;

/// What the two ends of every connection know.
pub(crate) const EXPORTER: [u8; 32] = [0; 32];
/// When it is.
pub(crate) const NOW: i64 = 1_795_262_400;
/// PKCS#8, version 1, of an Ed25519 key (RFC 8410, section 7), up to the 32 bytes of the seed.
const PREFIX: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

/// The server, and what is known outside of it.
pub(crate) struct World {
    pub(crate) runtime: Runtime,
    pub(crate) steps: Steps,
    /// A join token that nobody has used.
    pub(crate) token: String,
    /// Of the trust domain.
    pub(crate) bundle: Bundle,
    pub(crate) node: NodeId,
    /// The node's key, and its certificate with those above it.
    pub(crate) key: PrivateKey,
    pub(crate) chain: Chain,
}

/// The key of this seed.
pub(crate) fn key(seed: u8) -> PrivateKey {
    PrivateKey::from_pkcs8(&[PREFIX.as_slice(), &[seed; 32]].concat()).expect("any 32 bytes are")
}

pub(crate) fn sha256(bytes: &[u8]) -> Sha256 {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    Sha256::from_bytes(digest.as_ref().try_into().expect("a SHA-256 digest has 32 bytes"))
}

fn manifests() -> Vec<serde_json::Value> {
    let of = |kind: &str, name: &str, spec: serde_json::Value| {
        json!({
            "apiVersion": "countersign.dev/v1alpha1", "kind": kind,
            "metadata": { "name": name }, "spec": spec,
        })
    };
    let workload = |name: &str| {
        let selector = format!("launch:{name}");
        of(
            "Workload",
            name,
            json!({ "selectors": [selector], "keyType": "ed25519", "nodes": ["n"] }),
        )
    };
    let service = |name: &str, rest: serde_json::Value| {
        let mut spec = json!({
            "workload": name, "protocol": "http", "listen": "127.0.0.1:0", "forward": "unix",
            "addresses": ["127.0.0.1:1"],
        });
        for (key, value) in rest.as_object().expect("an object") {
            spec[key] = value.clone();
        }
        of("Service", name, spec)
    };
    let operations = json!({ "operations": [
        { "name": "list", "method": "GET", "path": "/books" },
        { "name": "read", "method": "GET", "path": "/books/{id}" },
    ] });
    let upstreams = json!({ "upstreams": [{ "service": "books", "local": "unix" }] });
    let connect = r#"permit (principal == Workload::"web", action == Action::"connect", resource == Service::"books");"#;
    let read = r#"permit (principal == Workload::"web", action == Action::"GET", resource == Operation::"books/read");"#;
    let list = r#"permit (principal == Workload::"web", action == Action::"GET", resource == Operation::"books/list");"#;
    let cedar = [connect, list, read].join("\n");
    vec![
        workload("web"),
        workload("books"),
        service("books", operations),
        service("web", upstreams),
        of("Policy", "web-reads", json!({ "cedar": cedar })),
    ]
}

impl World {
    pub(crate) fn begin() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        let runtime = runtime.expect("a runtime on this thread");
        let clock = Arc::new(SimClock::new(Timestamp::from_secs(NOW)));
        let entropy: Arc<dyn Entropy> = Arc::new(SeededEntropy::new(1));
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new(Arc::new(SeededEntropy::new(2))));
        let kek = Kek::draw(&*entropy).expect("a seeded sequence does not end");
        let (name, clock) = ("server".to_owned(), clock as Arc<dyn Clock>);
        let ground = Ground { name, store, clock, entropy, steady: None };
        let own = key(3);
        let (steps, token, joined) = runtime.block_on(async {
            let domain = "shop.example".parse().expect("it is one");
            begin(&ground, &kek, domain, &key(1), &key(2)).await.expect("an empty store");
            put_log_key(&ground, &kek, &key(4)).await.expect("a store of our own");
            let steps = Steps::start(ground, &kek).await.expect("a store of our own");
            steps.apply(&manifests()).await.expect("they are in order");
            steps.advance().await.expect("our own records");
            let hour = Lifetime::from_secs(3600).expect("it is one");
            let label = || vec!["n".parse().expect("it is a name")];
            let first = steps.create_token(hour, label()).await.expect("the store takes it");
            let token = steps.create_token(hour, label()).await.expect("the store takes it");
            let csr = make_csr(&own).expect("Ed25519 signs").into();
            let joined = steps.attest(attest_request(&first, csr)).await.expect("it may");
            steps.sign_log().await.expect("it is its turn");
            (steps, token, joined)
        });
        let chain = Chain::from_ders(joined.chain.iter().map(AsRef::as_ref)).expect("one of ours");
        let node = wire::node_id(&joined.node_id).expect("it has one");
        let domain = "shop.example".parse().expect("it is one");
        let bundle = Bundle::parse_json(domain, &joined.bundle).expect("one of ours");
        Self { runtime, steps, token, bundle, node, key: own, chain }
    }

    /// What the node shows on its connections.
    pub(crate) fn shown(&self) -> Vec<Bytes> {
        self.chain.ders().into_iter().map(Bytes::copy_from_slice).collect()
    }

    /// The authority that vouches for the node's own certificate, as one for machines.
    pub(crate) fn authorities(&self) -> Vec<Certificate> {
        self.bundle.authorities.clone()
    }

    /// What the node signs in order to renew.
    pub(crate) fn renewal(&self, nonce: &[u8], generation: u64, csr: &[u8]) -> Vec<u8> {
        let nonce = nonce.try_into().expect("a nonce has 32 bytes");
        let statement = renewal_statement(nonce, &EXPORTER, self.node, generation, sha256(csr));
        self.key.sign(&statement).expect("Ed25519 signs")
    }

    /// Takes something out of service.
    pub(crate) fn revoke(&self, request: RevokeRequest) -> RevokeResponse {
        self.runtime.block_on(self.steps.revoke(request)).expect("it may be")
    }

    /// The records that the node is told.
    pub(crate) fn records(&self) -> (v1::Revision, Vec<v1::Record>) {
        let labels = [("n".parse().expect("it is a name"))].into();
        let (revision, records) = self.steps.slice(&labels);
        (revision.into(), records)
    }

    /// The slice of an enforcement point of this workload.
    pub(crate) fn slice(&self, workload: &str) -> v1::Slice {
        let (revision, records) = self.records();
        let read = |one: v1::Record| Record::read(&one.kind, &one.name, &one.value);
        let records = records.into_iter().map(|one| read(one).expect("one of ours"));
        let replica = Replica::of(revision.into(), records);
        let own = replica.workloads()[&workload.parse().expect("it is a name")].clone();
        let slice = cut(&replica, &[own]);
        v1::Slice { revision: Some(revision), ..slice }
    }
}

/// How a new node asks to become one.
pub(crate) fn attest_request(token: &str, csr: Bytes) -> v1::AttestRequest {
    v1::AttestRequest {
        evidence: Some(v1::attest_request::Evidence::JoinToken(token.to_owned())),
        csr,
        version: "0.1.0".to_owned(),
        host: "host.example".to_owned(),
    }
}
