//! Seeds that are meant to be good are: what is refused at its first word leaves all behind it untried.

mod files;

use std::sync::Arc;

use bytes::Bytes;
use countersign::steps::{Step, Steps};
use countersign::{Choice, Decider};
use countersign_agent::attest::{Caller, Peer, SimulatedProcess};
use countersign_agent::server_link::wire;
use countersign_agent::steps::{PointStream, check, lists};
use countersign_api::envoy::CheckRequest;
use countersign_api::envoy::check_response::HttpResponse;
use countersign_api::v1::answer::Outcome;
use countersign_api::v1::call::Asked;
use countersign_api::v1::from_agent::Step as Said;
use countersign_api::workload::X509svidResponse;
use countersign_api::{Message, v1};
use countersign_identity::{Revision, SimClock, Timestamp};
use countersign_program::trace::Context;
use countersign_proxy::steps::{Wire, requests};
use countersign_seal::{KekFile, Passphrase};
use countersign_server::steps::token;

use super::parts::split;
use super::seed;
use super::server::{NOW, World};

fn now() -> Timestamp {
    Timestamp::from_secs(NOW)
}

/// The message behind the byte that says which.
#[track_caller]
fn behind<M: Message + Default>(target: &str, name: &str, which: u8) -> M {
    let bytes = seed(target, name);
    assert_eq!(bytes[0], which, "{name}");
    M::decode(&bytes[1..]).unwrap()
}

fn call(name: &str) -> Asked {
    match behind::<v1::FromAgent>("node_requests", name, 3).step {
        Some(Said::Call(v1::Call { asked: Some(asked), .. })) => asked,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_agents_ask_is_answered() {
    let world = World::begin();
    let answer = |asked| world.runtime.block_on(world.steps.answer(&world.shown(), asked));
    let Ok(Outcome::Sign(signed)) = answer(call("sign")) else { panic!("it is not signed") };
    let issued = |result: &v1::SignResult| {
        matches!(result.outcome, Some(v1::sign_result::Outcome::Issued(_)))
    };
    assert_eq!(signed.results.iter().map(issued).collect::<Vec<_>>(), [true, false]);
    assert!(matches!(answer(call("report")), Ok(Outcome::Report(_))));
    let Asked::HandBack(back) = call("hand_back") else { panic!("it is another") };
    assert_eq!(world.steps.would_take_back(&back.records).unwrap(), 1);
    assert!(answer(Asked::HandBack(back)).is_err(), "nobody has signed it");
    let bytes = Bytes::from(seed("node_requests", "hello").split_off(1));
    assert!(world.steps.read(&bytes).is_ok());
}

#[test]
fn what_a_server_says_first_and_last_is_understood() {
    use v1::attest_x509_response::Step as X509;
    use v1::renew_response::Step as Renew;
    let x509 = |name| behind::<v1::AttestX509Response>("agent_messages", name, 4).step;
    let renew = |name| behind::<v1::RenewResponse>("agent_messages", name, 5).step;
    let Some(X509::Nonce(nonce)) = x509("x509_nonce") else { panic!("it is no nonce") };
    assert!(wire::nonce(&nonce).is_ok());
    let Some(X509::Attested(attested)) = x509("x509_attested") else { panic!("it is no answer") };
    assert!(wire::attested(attested).is_ok());
    let Some(Renew::Nonce(nonce)) = renew("renew_nonce") else { panic!("it is no nonce") };
    assert!(wire::nonce(&nonce).is_ok());
    let Some(Renew::Renewed(renewed)) = renew("renew_renewed") else { panic!("it is no answer") };
    assert!(wire::renewed(renewed).is_ok());
    assert!(lists(behind("agent_messages", "lists", 6)).is_ok());
}

#[test]
fn a_point_is_heard_to_the_end() {
    let told = Revision { incarnation: 1, number: 7 };
    let hear = |name: &str| {
        let process = SimulatedProcess::new(Peer { pid: 1, uid: 1, gid: 1 }, []);
        let caller: Arc<dyn Caller> = Arc::new(process);
        let id = "spiffe://shop.example/orders".parse().unwrap();
        let mut stream = PointStream::open(Arc::new(SimClock::new(now())), caller, id, told);
        let bytes = seed("enforcement", name);
        let outcome = split(&bytes).into_iter().try_for_each(|part| {
            let said = v1::EnforcementRequest::decode(part).unwrap();
            stream.hear(said, |service| service == "orders")
        });
        (stream, outcome)
    };
    let (stream, outcome) = hear("whole");
    outcome.unwrap();
    assert_eq!(stream.acknowledgements()[0].revision, Some(told.into()));
    let report = stream.report();
    let lengths = [report.handshakes.len(), report.flows.len(), report.served.len()];
    assert_eq!((lengths, report.flows_dropped), ([1, 1, 1], 1 + 3));
    assert!(hear("never_sent").1.is_err() && hear("no_registration").1.is_err());
}

#[test]
fn what_agents_tell_comes_into_force() {
    let steps = Steps::begin(Arc::new(SimClock::new(now())));
    for part in split(&seed("slice", "books_then_mark")) {
        let told = v1::EnforcementResponse::decode(part).unwrap().step.unwrap();
        let step = match told {
            v1::enforcement_response::Step::Slice(slice) => steps.slice(slice),
            v1::enforcement_response::Step::EnforceMark(mark) => {
                steps.mark(mark.revision.unwrap().into())
            }
        };
        assert!(matches!(step, Step::Acknowledged { .. }), "{step:?}");
    }
    let svids = |name| {
        let steps = Steps::begin(Arc::new(SimClock::new(now())));
        let response = X509svidResponse::decode(&seed("workload_api", name)[..]).unwrap();
        steps.svids(response, &Choice::Default, now())
    };
    assert_eq!(svids("web"), Ok(()));
    assert_eq!(svids("foreign_bundle_of_our_domain"), Ok(()));
    assert!(svids("another_key").is_err());
}

#[test]
fn envoys_good_questions_are_permitted() {
    let decider = Decider::of(World::begin().slice("books"), None).unwrap();
    let asked = |name| {
        let request = CheckRequest::decode(&seed("envoy_check", name)[..]).unwrap();
        check(&request.attributes.unwrap(), &decider, now()).http_response.unwrap()
    };
    let permitted = |name| match asked(name) {
        HttpResponse::OkResponse(ok) => ok.headers_to_remove,
        HttpResponse::DeniedResponse(denied) => panic!("{name}: {}", denied.body),
    };
    assert_eq!(permitted("permitted"), [""; 0]);
    assert_eq!(permitted("spelt_otherwise"), ["x_forwarded.client-cert"]);
    assert!(matches!(asked("overridden"), HttpResponse::DeniedResponse(_)));
}

#[test]
fn good_heads_go_on() {
    let world = World::begin();
    let peer = "spiffe://shop.example/web".parse().unwrap();
    let passed = |name: &str, wire| {
        let found = world.runtime.block_on(requests(&seed("http_head", name), wire, &peer));
        found.into_iter().map(Result::unwrap).collect::<Vec<_>>()
    };
    for (name, count) in [("get", 1), ("per_hop", 1), ("reserved", 2), ("upgrade", 1)] {
        assert_eq!(passed(name, Wire::Http1).len(), count, "{name}");
    }
    let http2 = passed("http2", Wire::Http2).remove(0);
    assert_eq!(
        (http2.target.path(), &http2.fields["te"]),
        ("/books", &"trailers".parse().unwrap())
    );
    let trailers = passed("trailers", Wire::Http1).remove(0).trailers;
    assert_eq!(trailers.keys().map(AsRef::as_ref).collect::<Vec<&str>>(), ["x-sum"]);
}

#[test]
fn good_tokens_places_and_keys_are_taken() {
    let text = |target, name| String::from_utf8(seed(target, name)).unwrap();
    assert!(token(&text("join_token", "token")).is_ok());
    assert!(token(&text("join_token", "padded")).is_err());
    assert!(text("traceparent", "sampled").parse::<Context>().is_ok());
    assert!(text("traceparent", "later_version").parse::<Context>().is_ok());
    let open = |name| {
        let passphrase = Passphrase::new("correct horse".to_owned().into()).unwrap();
        KekFile::parse("kek".as_ref(), &seed("key_file", name), Some(&passphrase)).is_ok()
    };
    let names = ["plain", "wrapped", "another_id", "cut"];
    assert_eq!(names.map(open), [true, true, false, false]);
}
