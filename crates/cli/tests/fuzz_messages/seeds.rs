//! Seeds of the fuzz targets, as real parts say and keep it: always the same ones.

mod files;
mod requests;
mod texts;

use bytes::Bytes;
use countersign_api::admin::{Reissue, RevokeRequest, Target};
use countersign_api::v1::answer::Outcome;
use countersign_api::v1::attest_x509_request::Step as X509;
use countersign_api::v1::attest_x509_response::Step as X509Told;
use countersign_api::v1::call::Asked;
use countersign_api::v1::enforcement_request::Step as Point;
use countersign_api::v1::enforcement_response::Step as Enforce;
use countersign_api::v1::renew_request::Step as Renew;
use countersign_api::v1::renew_response::Step as RenewTold;
use countersign_api::v1::{from_agent, from_server, sign_result, sync_request, sync_response};
use countersign_api::{Message, envoy, v1, workload};
use countersign_identity::Reason;
use countersign_pki::{encode_certificate, make_csr};

use self::files::files;
use self::requests::requests;
use self::texts::{key_files, texts};
use super::server::{NOW, World, attest_request, key};

type Seed = (&'static str, &'static str, Vec<u8>);

const TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const MICROS: i64 = NOW * 1_000_000;

/// All of them: the target, the name, and the bytes.
pub(crate) fn made() -> Vec<Seed> {
    let world = World::begin();
    let svid = svid(&world, "web");
    let mut seeds = nodes(&world);
    seeds.extend(answers(&world, &svid));
    seeds.push(replica());
    seeds.extend(points(&world));
    seeds.extend(callers(&svid, &world));
    seeds.extend(texts(&world));
    seeds.extend(key_files());
    seeds.extend(files());
    seeds.extend(requests());
    seeds
}

/// The chain of a workload's SVID, whose key is that of the seed 5.
fn svid(world: &World, workload: &str) -> Vec<Bytes> {
    let items = vec![item(workload, 5)];
    let request = v1::SignRequest { items, traceparent: String::new() };
    let signed = world.runtime.block_on(world.steps.sign(&world.shown(), request)).unwrap();
    match signed.results.into_iter().next().unwrap().outcome {
        Some(sign_result::Outcome::Issued(issued)) => issued.chain,
        other => panic!("{other:?}"),
    }
}

fn csr(seed: u8) -> Bytes {
    make_csr(&key(seed)).unwrap().into()
}

fn item(workload: &str, seed: u8) -> v1::SignItem {
    v1::SignItem { workload: workload.to_owned(), csr: csr(seed), canary: String::new() }
}

fn behind(which: u8, message: &impl Message) -> Vec<u8> {
    [vec![which], message.encode_to_vec()].concat()
}

fn parts(messages: &[impl Message]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for message in messages {
        let message = message.encode_to_vec();
        bytes.extend(u16::try_from(message.len()).unwrap().to_be_bytes());
        bytes.extend(message);
    }
    bytes
}

fn framed(message: &impl Message) -> Vec<u8> {
    let message = message.encode_to_vec();
    [u32::try_from(message.len()).unwrap().to_be_bytes().to_vec(), message].concat()
}

fn revision() -> Option<v1::Revision> {
    Some(v1::Revision { incarnation: 1, number: 7 })
}

fn handshake() -> v1::HandshakeFact {
    v1::HandshakeFact {
        at_micros: MICROS,
        point: "proxy".to_owned(),
        direction: v1::Direction::Inbound.into(),
        service: "orders".to_owned(),
        local_id: "spiffe://shop.example/orders".to_owned(),
        peer_id: "spiffe://shop.example/web".to_owned(),
        peer_address: "127.0.0.1:40000".to_owned(),
        version: "1.3".to_owned(),
        group: "X25519MLKEM768".to_owned(),
        code: "policy-denied".to_owned(),
        detail: "`spiffe://shop.example/web` may not connect to `orders`".to_owned(),
        count: 2,
        ..v1::HandshakeFact::default()
    }
}

fn flow() -> v1::Flow {
    v1::Flow {
        point: "proxy".to_owned(),
        source: "spiffe://shop.example/web".to_owned(),
        service: "orders".to_owned(),
        operation: "list".to_owned(),
        method: "GET".to_owned(),
        path: "/orders".to_owned(),
        allowed: true,
        mode: "enforce".to_owned(),
        policies: vec!["web-reads".to_owned()],
        first_micros: MICROS,
        last_micros: MICROS,
        count: 3,
    }
}

fn served() -> v1::Served {
    let (service, at_micros) = ("orders".to_owned(), MICROS);
    v1::Served { service, class: 2, within: 1, at_micros, count: 3, micros: 4000 }
}

fn process() -> v1::ProcessStatus {
    let part =
        v1::PartStatus { part: "leaf".to_owned(), good_micros: MICROS, ..Default::default() };
    v1::ProcessStatus {
        name: "proxy".to_owned(),
        kind: "proxy".to_owned(),
        pid: 7,
        resident_bytes: 1 << 20,
        connections: 3,
        version: "0.1.0".to_owned(),
        doors: vec!["127.0.0.1:8443".to_owned()],
        parts: vec![part],
    }
}

/// Rules that the node was told, as it would hand them back.
fn rules(world: &World) -> Vec<v1::SignedRecord> {
    world.revoke(RevokeRequest {
        targets: vec![Target::Identity("spiffe://shop.example/books".parse().unwrap())],
        reason: Reason::KeyCompromise,
        issued_before: None,
        reissue: Reissue::ByReason,
        dry_run: false,
    });
    let (_, records) = world.records();
    let rules = records.into_iter().filter(|record| record.kind == "Revocation");
    let signed = |v1::Record { kind, name, value }| {
        // Another store has lost it: there its name is free.
        let name = format!("{name}-lost");
        v1::SignedRecord { kind, name, value, signature: Bytes::from_static(&[7; 64]) }
    };
    rules.map(signed).collect()
}

fn nodes(world: &World) -> Vec<Seed> {
    const TARGET: &str = "node_requests";
    let chain = world.shown();
    let proof = v1::AttestX509Proof {
        chain: chain.clone(),
        signature: Bytes::new(),
        csr: csr(4),
        host: "host.example".to_owned(),
    };
    let x509 = |step| v1::AttestX509Request { step: Some(step) };
    let hello = v1::AttestX509Hello { version: "0.1.0".to_owned() };
    let renew = |step| v1::RenewRequest { step: Some(step) };
    let node_id = Bytes::copy_from_slice(world.node.as_bytes());
    let returning = v1::RenewHello { node_id, generation: 1, chain };
    let successor = v1::RenewProof { signature: Bytes::new(), successor_csr: csr(6) };
    let stays = v1::RenewProof::default();
    let mut seeds = vec![
        (TARGET, "attest", behind(0, &attest_request("", csr(4)))),
        (TARGET, "attest_with_another_token", behind(0, &attest_request(&"A".repeat(43), csr(4)))),
        (TARGET, "x509_hello", behind(1, &x509(X509::Hello(hello)))),
        (TARGET, "x509_proof", behind(1, &x509(X509::Proof(proof)))),
        (TARGET, "renew_hello", behind(2, &renew(Renew::Hello(returning)))),
        (TARGET, "renew_successor", behind(2, &renew(Renew::Proof(successor)))),
        (TARGET, "renew_same_key", behind(2, &renew(Renew::Proof(stays)))),
    ];
    for (name, step) in said(world) {
        seeds.push((TARGET, name, behind(3, &v1::FromAgent { step: Some(step) })));
    }
    seeds
}

fn said(world: &World) -> Vec<(&'static str, from_agent::Step)> {
    let sync = |step| from_agent::Step::Sync(v1::SyncRequest { step: Some(step) });
    let call = |asked| from_agent::Step::Call(v1::Call { number: 1, asked: Some(asked) });
    let hello = v1::SyncHello {
        have: revision(),
        version: "0.1.0".to_owned(),
        clock_micros: MICROS,
        reached: revision(),
        witness: Bytes::from_static(&[7; 64]),
        ran_micros: 1,
        first: true,
    };
    let point = v1::PointAck {
        point: "proxy".to_owned(),
        spiffe_id: "spiffe://shop.example/web".to_owned(),
        revision: revision(),
        cut: 1,
        tried: Some(v1::TrialResult {
            trial: revision(),
            door: "127.0.0.1:8443".to_owned(),
            covered: v1::CanaryOutcome::Revoked.into(),
            uncovered: v1::CanaryOutcome::Alive.into(),
            ..v1::TrialResult::default()
        }),
        ..v1::PointAck::default()
    };
    let ack = v1::SyncAck { revision: revision(), points: vec![point], unaware: 1 };
    let canary = "spiffe://shop.example/countersign/canary/1/7/covered".to_owned();
    let canary = v1::SignItem { workload: String::new(), csr: csr(6), canary };
    let (items, traceparent) = (vec![item("web", 5), canary], TRACEPARENT.to_owned());
    let credential = v1::CredentialStatus {
        workload: "web".to_owned(),
        spiffe_id: "spiffe://shop.example/web".to_owned(),
        serial: Bytes::from_static(&[1; 16]),
        issued_micros: MICROS,
        expires_micros: MICROS,
        renewal_micros: MICROS,
        trouble: String::new(),
    };
    let report = v1::ReportRequest {
        handshakes: vec![handshake()],
        processes: vec![process()],
        credentials: vec![credential],
        clock_micros: MICROS,
        flows: vec![flow()],
        served: vec![served()],
        ..v1::ReportRequest::default()
    };
    vec![
        ("hello", sync(sync_request::Step::Hello(hello))),
        ("acknowledge", sync(sync_request::Step::Ack(ack))),
        ("sign", call(Asked::Sign(v1::SignRequest { items, traceparent }))),
        ("hand_back", call(Asked::HandBack(v1::HandBackRequest { records: rules(world) }))),
        ("report", call(Asked::Report(report))),
        ("lists", call(Asked::Lists(v1::ListsRequest { revision: revision() }))),
    ]
}

fn answers(world: &World, svid: &[Bytes]) -> Vec<Seed> {
    let bundle: Bytes = world.bundle.to_json().into();
    let node_id = Bytes::copy_from_slice(world.node.as_bytes());
    let chain = world.shown();
    let nonce = || Bytes::from_static(&[7; 32]);
    let attested =
        v1::AttestResponse { node_id, chain: chain.clone(), bundle: bundle.clone(), generation: 1 };
    let renewed = v1::Renewed { chain, bundle, generation: 2 };
    let x509 = |step| v1::AttestX509Response { step: Some(step) };
    let renew = |step| v1::RenewResponse { step: Some(step) };
    let list = std::fs::read(super::fuzz().join("corpus/crl/complete")).unwrap();
    let lists = v1::ListsResponse { lists: vec![list.into()] };
    vec![
        ("agent_messages", "x509_nonce", behind(4, &x509(X509Told::Nonce(nonce())))),
        ("agent_messages", "x509_attested", behind(4, &x509(X509Told::Attested(attested)))),
        ("agent_messages", "renew_nonce", behind(5, &renew(RenewTold::Nonce(nonce())))),
        ("agent_messages", "renew_renewed", behind(5, &renew(RenewTold::Renewed(renewed)))),
        ("agent_messages", "lists", behind(6, &lists)),
        ("standing", "answers", answered(svid, lists)),
        ("standing", "stream", streamed(world)),
    ]
}

/// All that a server answers to calls, and the end.
fn answered(svid: &[Bytes], lists: v1::ListsResponse) -> Vec<u8> {
    let refusal =
        || v1::Refusal { code: "no-match".to_owned(), message: "nothing matches".to_owned() };
    let issued = v1::Issued { chain: svid.to_vec(), issued_micros: MICROS };
    let results = [sign_result::Outcome::Issued(issued), sign_result::Outcome::Refusal(refusal())];
    let results = results.map(|outcome| v1::SignResult { outcome: Some(outcome) });
    let outcomes = [
        Outcome::Sign(v1::SignResponse { results: results.into() }),
        Outcome::HandBack(v1::HandBackResponse { taken: 1 }),
        Outcome::Report(v1::ReportResponse {}),
        Outcome::Lists(lists),
        Outcome::Refused(refusal()),
    ];
    let told = |step| framed(&v1::FromServer { step: Some(step) });
    let answers = outcomes.into_iter().zip(1..).map(|(outcome, number)| {
        told(from_server::Step::Answer(v1::Answer { number, outcome: Some(outcome) }))
    });
    let answers = answers.chain([told(from_server::Step::Ended(refusal()))]);
    answers.collect::<Vec<_>>().concat()
}

/// All that a server says on a stream.
fn streamed(world: &World) -> Vec<u8> {
    let (_, records) = world.records();
    let key = v1::RecordKey { kind: "Workload".to_owned(), name: "web".to_owned() };
    let witness = Bytes::from_static(&[7; 64]);
    let snapshot = v1::Snapshot {
        revision: revision(),
        records: records.clone(),
        clock_micros: MICROS,
        witness: witness.clone(),
    };
    let put = records.into_iter().take(2).collect();
    let changes =
        v1::Changes { revision: revision(), put, gone: vec![key], witness: witness.clone() };
    let mark = v1::Mark { revision: revision(), clock_micros: MICROS, witness };
    let steps = [
        sync_response::Step::Signed(v1::Signed { records: rules(world) }),
        sync_response::Step::Snapshot(snapshot),
        sync_response::Step::Changes(changes),
        sync_response::Step::Mark(mark),
    ];
    let stream = steps.into_iter().map(|step| {
        let step =
            from_server::Step::Sync(v1::SyncResponse { step: Some(step), quiet_millis: 4000 });
        framed(&v1::FromServer { step: Some(step) })
    });
    stream.collect::<Vec<_>>().concat()
}

/// What one server tells the others.
fn replica() -> Seed {
    let point = Bytes::from_static(&[7; 16]);
    let tried = v1::TrialResult {
        trial: revision(),
        door: "127.0.0.1:8443".to_owned(),
        covered: v1::CanaryOutcome::Revoked.into(),
        ..v1::TrialResult::default()
    };
    let report = v1::ReplicaReport {
        reached: vec![v1::ReachedPoints { revision: revision(), points: point.clone() }],
        nodes: vec![v1::ReportedNode {
            node_id: point.clone(),
            opened_micros: MICROS,
            unaware: 1,
            runs_since_micros: MICROS,
            left_out: point.clone(),
        }],
        cuts: vec![v1::CutCount { from: None, to: revision(), cut: 3 }],
        trials: vec![v1::ReportedTrial { point, tried: Some(tried) }],
        draining: 2,
    };
    ("server_messages", "replica_report", behind(5, &report))
}

fn points(world: &World) -> Vec<Seed> {
    let say = |step| v1::EnforcementRequest { step: Some(step) };
    let register = || {
        let (point, kind) = ("proxy".to_owned(), "proxy".to_owned());
        let (version, spiffe_id) = ("0.1.0".to_owned(), String::new());
        say(Point::Register(v1::Register { point, kind, version, spiffe_id }))
    };
    let acknowledge = |number| {
        let revision = Some(v1::Revision { incarnation: 1, number });
        say(Point::Acknowledge(v1::Acknowledge { revision, cut: 1, draining: 2 }))
    };
    let facts = v1::Facts {
        handshakes: vec![handshake()],
        dropped: 1,
        flows: vec![flow(), v1::Flow { service: "others".to_owned(), ..flow() }],
        flows_dropped: 1,
        served: vec![served()],
    };
    let whole =
        [register(), acknowledge(7), say(Point::Facts(facts)), say(Point::Status(process()))];
    let tell = |step| v1::EnforcementResponse { step: Some(step) };
    let slice = |name| tell(Enforce::Slice(world.slice(name)));
    let mark = || {
        let revision = Some(world.records().0);
        tell(Enforce::EnforceMark(v1::enforcement_response::Mark { revision }))
    };
    let none = v1::Slice { revision: None, ..world.slice("web") };
    let later = v1::Revision { incarnation: 1, number: u64::MAX };
    let later = v1::enforcement_response::Mark { revision: Some(later) };
    let alone = v1::Slice { revision: revision(), ..v1::Slice::default() };
    let of_others = v1::Facts {
        flows: vec![v1::Flow { service: "others".to_owned(), ..flow() }],
        ..v1::Facts::default()
    };
    let nothing = v1::EnforcementRequest { step: None };
    vec![
        ("enforcement", "whole", parts(&whole)),
        ("enforcement", "never_sent", parts(&[register(), acknowledge(8)])),
        ("enforcement", "no_registration", parts(&[acknowledge(7)])),
        ("enforcement", "two_registrations", parts(&[register(), register()])),
        ("enforcement", "less_than_before", parts(&[register(), acknowledge(7), acknowledge(3)])),
        ("enforcement", "of_others", parts(&[register(), say(Point::Facts(of_others))])),
        ("enforcement", "nothing_said", parts(&[register(), nothing])),
        ("slice", "web", parts(&[slice("web")])),
        ("slice", "another_in_its_place", parts(&[slice("web"), slice("books")])),
        ("slice", "mark_before_any", parts(&[mark()])),
        ("slice", "mark_of_later", parts(&[slice("web"), tell(Enforce::EnforceMark(later))])),
        ("slice", "empty", parts(&[tell(Enforce::Slice(alone))])),
        ("slice", "books_then_mark", parts(&[slice("books"), mark()])),
        ("slice", "without_revision", parts(&[tell(Enforce::Slice(none))])),
    ]
}

fn callers(svid: &[Bytes], world: &World) -> Vec<Seed> {
    let bundle = world.bundle.authorities_der_concat();
    let own = |key: &[u8]| workload::X509svid {
        spiffe_id: "spiffe://shop.example/web".to_owned(),
        x509_svid: svid.concat(),
        x509_svid_key: key.to_vec(),
        bundle: bundle.clone(),
        hint: "internal".to_owned(),
    };
    let response = |svids: Vec<workload::X509svid>, federated: &str| workload::X509svidResponse {
        svids,
        crl: Vec::new(),
        federated_bundles: [(federated.to_owned(), bundle.clone())].into(),
    };
    let mine = own(key(5).pkcs8());
    let good = response(vec![mine.clone()], "spiffe://other.example");
    let alone = workload::X509svid { x509_svid: svid[0].to_vec(), ..mine.clone() };
    let other_name = "spiffe://shop.example/books".to_owned();
    let other_name = workload::X509svid { spiffe_id: other_name, ..mine.clone() };
    let two =
        vec![workload::X509svid { hint: "external".to_owned(), ..mine.clone() }, mine.clone()];
    let of = |svids| response(svids, "spiffe://other.example").encode_to_vec();
    let claims_ours = response(vec![mine], "spiffe://shop.example");
    let other_key = response(vec![own(key(6).pkcs8())], "spiffe://other.example");
    let ask = |path: &str, field: &str| {
        let header = envoy::HeaderValue { key: field.to_owned(), ..Default::default() };
        let http = envoy::attribute_context::HttpRequest {
            method: "GET".to_owned(),
            path: path.to_owned(),
            headers: [("accept".to_owned(), "*/*".to_owned())].into(),
            header_map: Some(envoy::HeaderMap { headers: vec![header] }),
        };
        let pem = encode_certificate(&svid[0]).replace('+', "%2B").replace('\n', "%0A");
        let source = envoy::attribute_context::Peer {
            principal: "spiffe://shop.example/web".to_owned(),
            certificate: pem,
        };
        let attributes = envoy::AttributeContext {
            source: Some(source),
            request: Some(envoy::attribute_context::Request { http: Some(http) }),
            context_extensions: [("service".to_owned(), "books".to_owned())].into(),
        };
        envoy::CheckRequest { attributes: Some(attributes) }.encode_to_vec()
    };
    vec![
        ("workload_api", "web", good.encode_to_vec()),
        ("workload_api", "foreign_bundle_of_our_domain", claims_ours.encode_to_vec()),
        ("workload_api", "another_key", other_key.encode_to_vec()),
        ("workload_api", "two", of(two)),
        ("workload_api", "none", of(Vec::new())),
        ("workload_api", "without_key", of(vec![own(&[])])),
        ("workload_api", "without_those_above", of(vec![alone])),
        ("workload_api", "another_name", of(vec![other_name])),
        ("envoy_check", "no_such_operation", ask("/charges", "accept")),
        ("envoy_check", "dot_segments", ask("/books/%2e%2e/books", "accept")),
        ("envoy_check", "encoded_slash", ask("/books/..%2Fcharges", "x-forwarded-client-cert")),
        ("envoy_check", "permitted", ask("/books/7?by=title", "x-countersign-peer")),
        ("envoy_check", "spelt_otherwise", ask("/books", "x_forwarded.client-cert")),
        ("envoy_check", "overridden", ask("/books", "x-http-method-override")),
    ]
}
