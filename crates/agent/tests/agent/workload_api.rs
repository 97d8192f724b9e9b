//! The Workload API, as the crate `spiffe` sees it.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::thread::ThreadId;
use std::time::Duration;

use countersign_agent::attest::{
    AttestRefused, Attestor, Caller, Facts, Household, Peer, PinRefused, SimulatedProcess,
};
use countersign_api::wire::refusal_of;
use countersign_api::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use countersign_api::workload::{JwtsvidRequest, X509svidRequest, X509svidResponse};
use countersign_identity::{Clock, Code, Reason, Revoked, SeededEntropy, SelectorKind, Serial};
use countersign_pki::{Chain, KeyKind, PrivateKey, RevokedSerial};
use futures_util::StreamExt;
use spiffe::WorkloadApiError;
use tokio::net::UnixStream;
use tonic::{Request, metadata::MetadataValue};

use crate::world::{Agent, World, selectors};

#[tokio::test]
async fn a_process_that_matches_gets_its_identity_and_the_bundle() {
    let world = World::new().await;
    let agent = world.agent().await;
    let context = agent.client().await.fetch_x509_context().await.unwrap();
    let svid = context.default_svid().unwrap();
    assert_eq!(svid.spiffe_id().to_string(), "spiffe://shop.example/web");
    assert_eq!(svid.cert_chain().len(), 2);
    let domain = "shop.example".parse().unwrap();
    assert_eq!(context.bundle_set().get(&domain).unwrap().authorities().len(), 1);
    let bundles = agent.client().await.fetch_x509_bundles().await.unwrap();
    assert!(bundles.get(&domain).is_some());
    agent.stop().await;
}

#[tokio::test]
async fn workload_of_any_kind_of_key_is_served_with_the_key_of_its_certificate() {
    let world = World::new().await;
    for kind in KeyKind::ALL {
        let value = format!(r#"{{"keyType":"{kind}","selectors":["launch:web"]}}"#);
        world.server.put_value("Workload", kind.as_str(), value.as_bytes());
    }
    let agent = world.agent().await;
    let mut stream = raw(&agent).await;
    let mut served = stream.message().await.unwrap().unwrap().svids;
    while served.len() < KeyKind::ALL.len() + 1 {
        served = stream.message().await.unwrap().unwrap().svids;
    }
    for kind in KeyKind::ALL {
        let id = format!("spiffe://shop.example/{kind}");
        let svid = served.iter().find(|svid| svid.spiffe_id == id).unwrap();
        let key = PrivateKey::from_pkcs8(&svid.x509_svid_key).unwrap();
        let chain = Chain::from_concatenated(&svid.x509_svid).unwrap();
        assert_eq!(key.public().kind(), kind);
        assert_eq!(chain.leaf().spki(), key.public().spki());
    }
    agent.stop().await;
}

#[tokio::test]
async fn one_process_with_several_identities_gets_the_most_narrowly_described_first() {
    let world = World::new().await;
    world.server.put_workload("any", &["unix:uid:1000"], "");
    world.server.put_workload("exact", &["launch:web", "unix:uid:1000"], r#","hint":"internal""#);
    world.server.put_workload("foreign", &["launch:web", "unix:uid:0"], "");
    let agent = world.agent().await;
    let svids = agent.client().await.fetch_all_x509_svids().await.unwrap();
    let ids: Vec<String> = svids.iter().map(|svid| svid.spiffe_id().path().to_owned()).collect();
    // A launcher's word says more than the user.
    assert_eq!(ids, ["/exact", "/web", "/any"]);
    agent.stop().await;
}

/// A stream of a client that looks at revocation lists.
async fn raw(agent: &Agent) -> tonic::Streaming<X509svidResponse> {
    let mut client = SpiffeWorkloadApiClient::new(agent.channel().await);
    let mut request = Request::new(X509svidRequest {});
    request.metadata_mut().insert("workload.spiffe.io", MetadataValue::from_static("true"));
    client.fetch_x509svid(request).await.unwrap().into_inner()
}

#[tokio::test]
async fn lists_are_given_to_workloads_that_ask_and_follow_each_revocation() {
    let world = World::new().await;
    let first = world.server.tell_lists(&[]).await;
    let agent = world.agent().await;
    let plain = raw(&agent).await.message().await.unwrap().unwrap();
    assert!(plain.crl.is_empty(), "nobody asked");
    // Asked for, the identity comes with lists, and not without.
    world.server.put_workload("web", &["launch:web"], r#","crl":true"#);
    world.server.tell_lists(&[]).await;
    let mut stream = raw(&agent).await;
    let mut message = stream.message().await.unwrap().unwrap();
    while message.crl.is_empty() {
        message = stream.message().await.unwrap().unwrap();
    }
    assert_eq!(message.crl.len(), 1);
    assert_ne!(message.crl[0], first);
    // A revocation is in them as soon as the server has it in its own, and until then the older ones go on.
    let other = Serial::draw(world.clock.now(), &SeededEntropy::new(9)).unwrap();
    world.server.revoke("r", Revoked::Serial(other), Reason::KeyCompromise);
    world.pass(Duration::from_secs(2)).await;
    let revoked =
        RevokedSerial { serial: other, at: world.clock.now(), reason: Reason::KeyCompromise };
    let next = world.server.tell_lists(&[revoked]).await;
    world.pass(Duration::from_secs(6)).await;
    let message = stream.message().await.unwrap().unwrap();
    assert_eq!(message.crl, [next.to_vec()]);
    let bundles = agent.client().await.fetch_x509_bundles().await;
    assert!(bundles.is_ok(), "a stock client takes lists as they are");
    agent.stop().await;
}

#[tokio::test]
async fn identity_that_needs_lists_waits_for_them() {
    let world = World::new().await;
    world.server.put_workload("web", &["launch:web"], r#","crl":true"#);
    let agent = world.agent().await;
    let stream = raw(&agent);
    let asked = async { stream.await.message().await };
    let (answer, ()) = tokio::join!(asked, world.pass(Duration::from_secs(5)));
    assert_eq!(answer.unwrap_err().code(), tonic::Code::Unavailable);
    world.server.tell_lists(&[]).await;
    world.pass(Duration::from_secs(6)).await;
    assert_eq!(raw(&agent).await.message().await.unwrap().unwrap().crl.len(), 1);
    agent.stop().await;
}

#[tokio::test]
async fn an_open_stream_brings_each_renewal() {
    let world = World::new().await;
    let agent = world.agent().await;
    let client = agent.client().await;
    let mut stream = Box::pin(client.stream_x509_contexts().await.unwrap());
    let first = stream.next().await.unwrap().unwrap();
    world.pass(Duration::from_secs(31)).await;
    let second = stream.next().await.unwrap().unwrap();
    let leaf = |context: &spiffe::X509Context| {
        context.default_svid().unwrap().cert_chain()[0].as_bytes().to_vec()
    };
    assert_ne!(leaf(&first), leaf(&second));
    assert_eq!(world.server.issued(), 2);
    agent.stop().await;
}

#[tokio::test]
async fn an_open_stream_ends_when_the_workload_is_withdrawn() {
    let world = World::new().await;
    let agent = world.agent().await;
    let client = agent.client().await;
    let mut stream = Box::pin(client.stream_x509_contexts().await.unwrap());
    stream.next().await.unwrap().unwrap();
    world.server.remove("Workload", "web");
    let refused = stream.next().await.unwrap().unwrap_err();
    assert!(
        matches!(
            refused,
            WorkloadApiError::PermissionDenied(_) | WorkloadApiError::NoIdentityIssued
        ),
        "{refused:?}"
    );
    agent.stop().await;
}

#[tokio::test]
async fn a_process_that_runs_another_program_loses_its_stream_before_the_next_message() {
    let world = World::new().await;
    let agent = world.agent().await;
    let client = agent.client().await;
    let mut stream = Box::pin(client.stream_x509_contexts().await.unwrap());
    stream.next().await.unwrap().unwrap();
    world.process.become_(selectors(&["unix:uid:1000"]));
    world.pass(Duration::from_secs(31)).await;
    assert!(stream.next().await.unwrap().is_err());
    assert_eq!(world.server.issued(), 2, "the renewal happened, and was not handed to it");
    agent.stop().await;
}

#[tokio::test]
async fn a_process_that_matches_nothing_is_refused_and_served_once_it_is_declared() {
    let world = World::new().await;
    world.process.become_(selectors(&["launch:other", "unix:uid:1000"]));
    let agent = world.agent().await;
    let client = agent.client().await;
    let refused = client.fetch_x509_svid().await.unwrap_err();
    assert!(
        matches!(
            refused,
            WorkloadApiError::PermissionDenied(_) | WorkloadApiError::NoIdentityIssued
        ),
        "{refused:?}"
    );
    assert!(client.fetch_x509_bundles().await.is_err(), "not even bundles");
    world.server.put_workload("other", &["launch:other"], "");
    world.until("the other workload is served", || world.server.issued() == 2).await;
    let svid = client.fetch_x509_svid().await.unwrap();
    assert_eq!(svid.spiffe_id().path(), "/other");
    agent.stop().await;
}

#[tokio::test]
async fn a_bundle_change_is_pushed_and_the_svid_stays() {
    let world = World::new().await;
    let agent = world.agent().await;
    let client = agent.client().await;
    let mut stream = Box::pin(client.stream_x509_contexts().await.unwrap());
    stream.next().await.unwrap().unwrap();
    let other = crate::server::Server::new(world.clock.clone()).await;
    let mut bundle = world.server.bundle();
    bundle.authorities.extend(other.bundle().authorities);
    world.server.put_bundle(&bundle);
    let context = stream.next().await.unwrap().unwrap();
    let domain = "shop.example".parse().unwrap();
    assert_eq!(context.bundle_set().get(&domain).unwrap().authorities().len(), 2);
    assert_eq!(world.server.issued(), 1);
    agent.stop().await;
}

#[tokio::test]
async fn an_svid_of_a_withdrawn_authority_is_not_served_any_more() {
    let world = World::new().await;
    let agent = world.agent().await;
    let client = agent.client().await;
    client.fetch_x509_svid().await.unwrap();
    let other = crate::server::Server::new(world.clock.clone()).await;
    world.server.sign_nothing();
    world.server.put_bundle(&other.bundle());
    world
        .until("the server was asked again", || {
            // Refused by the server's word, so `PermissionDenied`, not the old certificate.
            world.server.number() > 3
        })
        .await;
    world.settle().await;
    assert!(client.fetch_x509_svid().await.is_err());
    agent.stop().await;
}

#[tokio::test]
async fn a_certificate_that_our_own_verifier_refuses_is_never_served() {
    let world = World::new().await;
    world.server.sign_for_somebody_else();
    let starting = world.begin(world.config());
    let socket = world.config().socket;
    world.until("a certificate was issued", || world.server.issued() == 1).await;
    world.settle().await;
    let client = spiffe::WorkloadApiClient::connect_to(format!("unix://{}", socket.display()))
        .await
        .unwrap();
    let asking = tokio::spawn(async move { client.fetch_x509_svid().await });
    world.pass(Duration::from_secs(6)).await;
    let refused = asking.await.unwrap().unwrap_err();
    assert!(
        !matches!(refused, WorkloadApiError::PermissionDenied(_)),
        "it cannot know: {refused:?}"
    );
    drop(starting);
}

#[tokio::test]
async fn the_security_header_is_demanded_exactly_once_and_only_there() {
    let world = World::new().await;
    let agent = world.agent().await;
    let mut client = SpiffeWorkloadApiClient::new(agent.channel().await);
    let with = |values: &[&'static str]| {
        let mut request = Request::new(X509svidRequest {});
        for value in values {
            request.metadata_mut().append("workload.spiffe.io", MetadataValue::from_static(value));
        }
        request
    };
    for bad in [&[][..], &["True"], &["false"], &["true", "true"], &["true "], &["true,true"]] {
        let refused = client.fetch_x509svid(with(bad)).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{bad:?}");
    }
    let mut stream = client.fetch_x509svid(with(&["true"])).await.unwrap().into_inner();
    assert_eq!(stream.message().await.unwrap().unwrap().svids.len(), 1);
    agent.stop().await;
}

#[tokio::test]
async fn the_jwt_profile_is_unimplemented() {
    let world = World::new().await;
    let agent = world.agent().await;
    let mut client = SpiffeWorkloadApiClient::new(agent.channel().await);
    let mut request = Request::new(JwtsvidRequest::default());
    request.metadata_mut().append("workload.spiffe.io", MetadataValue::from_static("true"));
    let refused = client.fetch_jwtsvid(request).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unimplemented);
    agent.stop().await;
}

#[tokio::test]
async fn health_and_both_reflections_answer_without_the_header() {
    use tonic_health::pb::health_check_response::ServingStatus;
    use tonic_health::pb::health_client::HealthClient;
    let world = World::new().await;
    let agent = world.agent().await;
    let request = tonic_health::pb::HealthCheckRequest { service: "SpiffeWorkloadAPI".to_owned() };
    let answer = HealthClient::new(agent.channel().await).check(request).await.unwrap();
    assert_eq!(answer.into_inner().status(), ServingStatus::Serving);

    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient as V1;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
    let ask = tonic_reflection::pb::v1::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut client = V1::new(agent.channel().await);
    let answers = client.server_reflection_info(tokio_stream::iter([ask])).await.unwrap();
    let answer = answers.into_inner().message().await.unwrap().unwrap();
    let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
        panic!("{answer:?}");
    };
    assert!(list.service.iter().any(|service| service.name == "SpiffeWorkloadAPI"), "{list:?}");

    use tonic_reflection::pb::v1alpha::server_reflection_client::ServerReflectionClient as V1Alpha;
    use tonic_reflection::pb::v1alpha::server_reflection_request::MessageRequest as AlphaRequest;
    let ask = tonic_reflection::pb::v1alpha::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(AlphaRequest::FileContainingSymbol("SpiffeWorkloadAPI".to_owned())),
    };
    let mut client = V1Alpha::new(agent.channel().await);
    let answers = client.server_reflection_info(tokio_stream::iter([ask])).await.unwrap();
    assert!(answers.into_inner().message().await.unwrap().is_some());
    agent.stop().await;
}

#[tokio::test]
async fn while_the_server_is_away_everything_goes_on_until_it_expires() {
    let world = World::new().await;
    let agent = world.agent().await;
    let client = agent.client().await;
    let before = client.fetch_x509_svid().await.unwrap();
    world.server.go();
    world.pass(Duration::from_secs(50)).await;
    let during = client.fetch_x509_svid().await.unwrap();
    assert_eq!(before.cert_chain()[0].as_bytes(), during.cert_chain()[0].as_bytes());
    // Longer than its life: nothing to give, and nobody said that there is none.
    world.pass(Duration::from_secs(20)).await;
    let asking = tokio::spawn({
        let client = client.clone();
        async move { client.fetch_x509_svid().await }
    });
    world.pass(Duration::from_secs(4)).await;
    let refused = asking.await.unwrap().unwrap_err();
    assert!(
        !matches!(
            refused,
            WorkloadApiError::PermissionDenied(_) | WorkloadApiError::NoIdentityIssued
        ),
        "{refused:?}"
    );
    world.server.come_back();
    world.pass(Duration::from_secs(11)).await;
    client.fetch_x509_svid().await.unwrap();
    agent.stop().await;
}

#[tokio::test]
async fn an_agent_that_starts_while_the_server_is_away_cannot_know_and_says_so() {
    let world = World::new().await;
    world.agent().await.stop().await;
    world.server.go();
    let agent = world.agent().await;
    assert!(agent.ready.as_ref().unwrap().degraded.is_some());

    // One that matched before, and one that never did, get the same answer.
    for facts in [&["launch:web"][..], &["launch:other"]] {
        world.process.become_(selectors(facts));
        let mut client = SpiffeWorkloadApiClient::new(agent.channel().await);
        let mut request = Request::new(X509svidRequest {});
        request.metadata_mut().append("workload.spiffe.io", MetadataValue::from_static("true"));
        let asking = tokio::spawn(async move {
            client.fetch_x509svid(request).await.unwrap().into_inner().message().await.unwrap_err()
        });
        world.pass(Duration::from_secs(4)).await;
        let refused = asking.await.unwrap();
        assert_eq!(refused.code(), tonic::Code::Unavailable, "{facts:?}");
        assert_eq!(refusal_of(&refused).unwrap().code, Code::NotReady);
    }
    world.process.become_(selectors(&["launch:web"]));
    world.server.come_back();
    world.pass(Duration::from_secs(11)).await;
    agent.client().await.fetch_x509_svid().await.unwrap();
    agent.stop().await;
}

#[tokio::test]
async fn the_kernels_word_serves_real_processes_in_both_ways() {
    use countersign_agent::attest::Pinning;
    for pinning in [Pinning::Auto, Pinning::ProcDirectory] {
        let mut world = World::new().await;
        world.kernel = true;
        let uid = format!("unix:uid:{}", rustix::process::geteuid().as_raw());
        let path = format!("unix:path:{}", std::env::current_exe().unwrap().display());
        world.server.put_workload("mine", &[&uid, &path], "");
        world.server.put_workload("theirs", &["unix:uid:12345"], "");
        let mut config = world.config();
        config.pinning = pinning;
        let agent = world.agent_with(config).await;
        let svids = agent.client().await.fetch_all_x509_svids().await.unwrap();
        assert_eq!(svids.len(), 1, "{pinning:?}");
        assert_eq!(svids[0].spiffe_id().path(), "/mine");
        agent.stop().await;
    }
}

/// A process of root's, and the threads that asked where it lives.
#[derive(Clone)]
struct Root {
    process: SimulatedProcess,
    asked: Arc<Mutex<Vec<ThreadId>>>,
}

impl Attestor for Root {
    fn pin(&self, _socket: &UnixStream) -> Result<Arc<dyn Caller>, PinRefused> {
        Ok(Arc::new(self.clone()))
    }
}

impl Caller for Root {
    fn peer(&self) -> Peer {
        self.process.peer()
    }

    fn household(&self) -> Household {
        self.asked.lock().unwrap().push(std::thread::current().id());
        self.process.household()
    }

    fn facts(&self, kinds: &BTreeSet<SelectorKind>) -> Result<Facts, AttestRefused> {
        self.process.facts(kinds)
    }

    fn alive(&self) -> Result<(), AttestRefused> {
        self.process.alive()
    }
}

#[tokio::test]
async fn where_roots_processes_live_is_asked_once_per_connection_and_on_no_thread_that_serves_others()
 {
    let mut world = World::new().await;
    let peer = Peer { pid: std::process::id(), uid: 0, gid: 0 };
    let process = SimulatedProcess::new(peer, selectors(&["launch:web"]));
    let root = Root { process, asked: Arc::default() };
    world.others = Some(Arc::new(root.clone()));
    let agent = world.agent().await;
    for connections in 1..3 {
        let client = agent.client().await;
        for _ in 0..3 {
            client.fetch_x509_svid().await.unwrap();
        }
        let asked = root.asked.lock().unwrap().clone();
        assert_eq!(asked.len(), connections);
        // Everything else in this test is on its one thread.
        assert!(!asked.contains(&std::thread::current().id()));
    }
    agent.stop().await;
}
