//! Whatever Envoy asks, nobody is let in but whom the certificate names and a policy permits, and no field goes on by which the
//! program would take another for its caller.
#![no_main]

use std::cell::OnceCell;

use countersign::Decider;
use countersign_agent::steps::check;
use countersign_api::Message;
use countersign_api::envoy::check_response::HttpResponse;
use countersign_api::envoy::{CheckRequest, OkHttpResponse};
use countersign_identity::{SpiffeId, Timestamp};
use libfuzzer_sys::fuzz_target;

#[expect(dead_code, reason = "each target uses its own part of this")]
#[path = "../support/reserved.rs"]
mod reserved;
#[expect(dead_code, reason = "each target uses its own part of this")]
#[path = "../support/server.rs"]
mod server;

thread_local! {
    static DECIDER: OnceCell<Decider> = const { OnceCell::new() };
}

fn decider() -> Decider {
    Decider::of(server::World::begin().slice("books"), None).expect("one of ours")
}

fn passed(request: &CheckRequest, ok: OkHttpResponse) {
    let attributes = request.attributes.as_ref().expect("it was read");
    let principal = &attributes.source.as_ref().expect("it was read").principal;
    // The scheme may be spelt in capitals; the program is told the one form.
    let peer: SpiffeId = principal.parse().expect("it was read");
    assert_eq!(peer.as_str(), "spiffe://shop.example/web", "no policy permits another");
    let set: Vec<_> = ok.headers.into_iter().filter_map(|option| option.header).collect();
    let told = set.iter().filter(|field| field.key == "x-countersign-peer");
    assert!(
        told.map(|field| field.value.as_str()).eq([peer.as_str()]),
        "the program is told by us"
    );
    let http = attributes.request.as_ref().and_then(|it| it.http.as_ref()).expect("it was read");
    let raw = http.header_map.iter().flat_map(|map| &map.headers).map(|field| &field.key);
    for name in http.headers.keys().chain(raw) {
        let overwritten = name == "x-countersign-peer";
        let gone = overwritten || ok.headers_to_remove.contains(name);
        assert!(gone || !reserved::names_the_caller(name), "`{name}` goes on");
    }
}

fuzz_target!(|bytes: &[u8]| {
    let Ok(request) = CheckRequest::decode(bytes) else { return };
    let attributes = request.attributes.clone().unwrap_or_default();
    let now = Timestamp::from_secs(server::NOW);
    let answer =
        DECIDER.with(|decider| check(&attributes, decider.get_or_init(self::decider), now));
    match answer.http_response {
        Some(HttpResponse::OkResponse(ok)) => passed(&request, ok),
        Some(HttpResponse::DeniedResponse(denied)) => {
            let status = denied.status.map(|status| status.code);
            assert!(matches!(status, Some(400 | 403)), "{status:?}");
        }
        None => panic!("there is an answer"),
    }
});
