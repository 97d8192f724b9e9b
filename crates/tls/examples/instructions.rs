//! One of the things that are done most, so many times: `instructions NAME COUNT`. `cargo xtask instructions` counts what the
//! processor executes for each, under Valgrind.
//!
//! All is made before the first time, in the same amount whatever the count is, so that the difference between two counts is
//! what the thing itself takes. Time stands still, and serials come from a seed; keys and nonces are random, and of one size.

#![expect(clippy::unwrap_used, reason = "a measurement ends where something is not as expected")]

use std::collections::HashMap;
use std::sync::Arc;

use countersign_identity::{Attested, CanonicalPath, Clock, Revision, SimClock, Verb};
use countersign_pki::{
    Bundles, Issuer, KeyKind, PrivateKey, Role, decode_certificates, make_csr, open_csr, verify,
};
use countersign_policy::{
    CallRequest, Context, Operation, Operations, Policies, PolicySource, Principal,
};
use countersign_tls::{Expected, Identity, Inbound, Outbound, Slice, Trust, accept, connect};
use tokio::net::{TcpListener, TcpStream};

#[path = "../tests/connections/realm.rs"]
mod realm;

use realm::{Realm, START, Svid};

/// How many handshakes are made at most, each of a caller of its own.
const COUNT_MAX: usize = 264;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let (name, count) = (arguments.next().unwrap(), arguments.next().unwrap());
    let count: usize = count.parse().unwrap();
    match &*name {
        "issue" => issue(count),
        "verify" => verified(count),
        "decide" => decided(count, &policies().forgetful()),
        "decide_remembered" => decided(count, &policies()),
        "handshake" => {
            assert!(count <= COUNT_MAX, "{count} is over {COUNT_MAX}");
            shaken(count, COUNT_MAX);
        }
        "handshake_remembered" => shaken(count, 1),
        other => panic!("`{other}` is not counted"),
    }
}

/// From a CSR to a certificate: possession proven, drafted, reviewed, signed. Its record is not part of it.
fn issue(count: usize) {
    let realm = Realm::new("shop.example", 1);
    let csr = make_csr(&PrivateKey::generate(KeyKind::P256).unwrap()).unwrap();
    let issuer = Issuer::from_certificate(realm.issuer.clone()).unwrap();
    for _ in 0..count {
        let proven = open_csr(&csr).unwrap();
        let provenance = realm.provenance(realm::NODE, 7);
        let leaf = realm.certify(proven, "/web", (START, 3600), provenance, &issuer);
        assert!(leaf.serial().is_some());
    }
}

/// How many trust domains there are of which chains are verified: what a signature takes depends on its bits and the key's.
const DOMAINS: usize = 32;

/// A chain of leaf and issuer, by a verifier that remembers nothing.
fn verified(count: usize) {
    let known: Vec<_> = (0..DOMAINS)
        .map(|_| {
            let realm = Realm::new("shop.example", 1);
            let chain = realm.svid("/web", START, 3600).chain.pem();
            let bundles = Bundles::new(vec![realm.bundle()]).unwrap();
            (decode_certificates(&chain).unwrap(), bundles)
        })
        .collect();
    for (chain, bundles) in known.iter().cycle().take(count) {
        let chain: Vec<&[u8]> = chain.iter().map(Vec::as_slice).collect();
        verify(&chain, bundles, Role::Server, START).unwrap();
    }
}

/// Ten policies, all of which bear on the question.
fn policies() -> Policies {
    let source = |number: usize| {
        let text = format!(
            "permit (principal == Workload::\"web\", action == Action::\"GET\", resource == Operation::\"orders/o{number}\");"
        );
        PolicySource::enforced(format!("p{number}").parse().unwrap(), text)
    };
    let operation = |number: usize| Operation {
        name: format!("o{number}").parse().unwrap(),
        verb: Verb::Get,
        template: format!("/o{number}/{{id}}").parse().unwrap(),
    };
    let sources: Vec<_> = (0..10).map(source).collect();
    let policies = Policies::compile(&sources, None).unwrap();
    let operations = (0..10).map(operation).collect();
    policies.with_operations(Operations::new([("orders".parse().unwrap(), operations)]))
}

fn decided(count: usize, policies: &Policies) {
    let principal = Principal::Named("web".parse().unwrap());
    let path = CanonicalPath::of("/o7/42").unwrap();
    let context = Context {
        tls_version: "1.3".to_owned(),
        group: "X25519MLKEM768".to_owned(),
        peer_age_seconds: 60,
        source: None,
        attested: Attested::default(),
    };
    let request = CallRequest {
        principal: &principal,
        service: "orders",
        verb: Some(Verb::Get),
        path: &path,
        context: &context,
        now: START,
    };
    for _ in 0..=count {
        assert!(policies.decide_call(&request).unwrap().decision.is_allowed());
    }
}

fn slice(realm: &Realm) -> Slice {
    let text = r#"permit (principal == Workload::"web", action == Action::"connect", resource == Service::"orders");"#;
    let source = PolicySource::enforced("shop".parse().unwrap(), text);
    let names = ["web", "orders"]
        .map(|path| (realm.domain.with_path(&format!("/{path}")).unwrap(), path.parse().unwrap()));
    Slice {
        revision: Revision { incarnation: 1, number: 1 },
        bundles: Arc::new(Bundles::new(vec![realm.bundle()]).unwrap()),
        names: Arc::new(HashMap::from(names)),
        policies: Arc::new(Policies::compile(&[source], None).unwrap()),
        revocations: Arc::default(),
        profiles: Arc::default(),
    }
}

fn identity(svid: &Svid) -> Identity {
    Identity::new(svid.chain.clone(), &svid.pkcs8).unwrap()
}

/// Whole handshakes, both ends together, over the loopback interface, with so many callers in turn.
fn shaken(count: usize, callers: usize) {
    let realm = Realm::new("shop.example", 1);
    let clock: Arc<dyn Clock> = Arc::new(SimClock::new(START));
    let (web, orders) =
        (Trust::new(Arc::clone(&clock), slice(&realm)), Trust::new(clock, slice(&realm)));
    orders.set_identity(identity(&realm.svid("/orders", START, 3600))).unwrap();
    let callers: Vec<Svid> = (0..callers).map(|_| realm.svid("/web", START, 3600)).collect();
    let to_orders = Expected::Id(realm.domain.with_path("/orders").unwrap());
    let outbound = Outbound::service("orders".parse().unwrap(), to_orders);
    let inbound = Inbound::service("orders".parse().unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        for number in 0..count {
            web.set_identity(identity(&callers[number % callers.len()])).unwrap();
            let address = listener.local_addr().unwrap();
            let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
            let (near, (far, _)) = (near.unwrap(), far.unwrap());
            let (dialled, accepted) =
                tokio::join!(connect(&web, near, &outbound), accept(&orders, far, &inbound));
            assert!(dialled.is_ok() && accepted.is_ok());
        }
    });
}
