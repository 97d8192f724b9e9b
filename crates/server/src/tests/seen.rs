//! Stored handshakes: found by what they have in common, counted together, and bounded.

use std::time::Duration;

use countersign_api::admin::{
    HandshakeBy, HandshakeDirection, HandshakeFilter, HandshakeHistory, Outcome,
};
use countersign_api::v1;
use countersign_identity::{Clock as _, Code, Timestamp};
use serde_json::{Value, json};

use super::{Agent, DOMAIN, Realm, Running, soon, workload};

const WEB: &str = "spiffe://shop.example/web";
const ORDERS: &str = "spiffe://shop.example/orders";

/// What the door of `orders` saw of `web`.
fn inbound(code: &str, at: Timestamp) -> v1::HandshakeFact {
    v1::HandshakeFact {
        at_micros: at.micros(),
        point: "orders-proxy".to_owned(),
        direction: v1::Direction::Inbound.into(),
        service: "orders".to_owned(),
        local_id: ORDERS.to_owned(),
        peer_id: WEB.to_owned(),
        version: "1.3".to_owned(),
        group: "X25519MLKEM768".to_owned(),
        suite: "TLS13_AES_128_GCM_SHA256".to_owned(),
        code: code.to_owned(),
        micros: 700,
        count: 1,
        ..v1::HandshakeFact::default()
    }
}

fn observations(retention: &str, entries_max: u32) -> Value {
    json!({
        "apiVersion": "countersign.dev/v1alpha1", "kind": "TrustDomain", "metadata": { "name": "shop" },
        "spec": {
            "trustDomain": DOMAIN,
            "observations": { "retention": retention, "entriesMax": entries_max },
        },
    })
}

async fn report(realm: &Realm, running: &Running, agent: &Agent, facts: Vec<v1::HandshakeFact>) {
    let client = agent.client(realm, running).await;
    let report = v1::ReportRequest { handshakes: facts, ..v1::ReportRequest::default() };
    client.node.report(report).await.unwrap();
}

async fn ask(running: &Running, filter: &HandshakeFilter) -> HandshakeHistory {
    running.admin.handshake_history(filter, 100, 0).await.unwrap()
}

/// Asks again and again, while time goes on, until the answer is as it should be.
async fn until(
    realm: &Realm,
    running: &Running,
    filter: &HandshakeFilter,
    is_so: impl Fn(&HandshakeHistory) -> bool,
) -> HandshakeHistory {
    soon(async {
        loop {
            let history = ask(running, filter).await;
            if is_so(&history) {
                return history;
            }
            realm.clock.advance(Duration::from_millis(100));
            tokio::task::yield_now().await;
        }
    })
    .await
}

/// Everything between these two.
fn between(from: &str, to: &str) -> HandshakeFilter {
    HandshakeFilter {
        from: Some(from.to_owned()),
        to: Some(to.to_owned()),
        ..HandshakeFilter::default()
    }
}

#[tokio::test]
async fn handshakes_are_found_by_each_of_their_marks_also_after_a_restart() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    running.apply(vec![workload("web", &[]), workload("orders", &[])]).await;
    let agent = Agent::join(&realm, &running, &[]).await;
    let now = realm.clock.now();
    let other = v1::HandshakeFact {
        group: "X25519".to_owned(),
        suite: "TLS13_AES_256_GCM_SHA384".to_owned(),
        count: 4,
        ..inbound("", now)
    };
    let stranger = v1::HandshakeFact {
        peer_id: String::new(),
        version: String::new(),
        group: String::new(),
        suite: String::new(),
        peer_address: "192.0.2.1:5".to_owned(),
        detail: "it sent <nothing>".to_owned(),
        ..inbound("no-certificate", now)
    };
    let dialled = v1::HandshakeFact {
        direction: v1::Direction::Outbound.into(),
        point: "web-proxy".to_owned(),
        local_id: WEB.to_owned(),
        peer_id: ORDERS.to_owned(),
        ..inbound("", now)
    };
    let facts = vec![
        inbound("", now),
        inbound("", now),
        inbound("policy-denied", now),
        other,
        stranger,
        dialled,
    ];
    report(&realm, &running, &agent, facts).await;
    // Names of workloads and SPIFFE IDs mean the same, and five entries are all there are.
    let all = HandshakeFilter { at: Some("orders".to_owned()), ..HandshakeFilter::default() };
    until(&realm, &running, &all, |history| history.entries == 5).await;
    running.stop().await;
    let running = realm.serve().await;
    for filter in [between("web", "orders"), between(WEB, ORDERS), between("spiffe://*", "orders")]
    {
        let found = ask(&running, &filter).await;
        assert_eq!((found.entries, found.whole), (4, true), "{filter:?}: {found:?}");
    }
    let none = HandshakeFilter::default;
    let count = async |filter: HandshakeFilter| {
        let found = ask(&running, &filter).await.handshakes;
        let here = found.iter().filter(|seen| seen.service == "orders");
        here.map(|seen| seen.count).sum::<u64>()
    };
    let some = |text: &str| Some(text.to_owned());
    for (filter, expected) in [
        (HandshakeFilter { outcome: Some(Outcome::Refused), ..none() }, 2),
        (HandshakeFilter { outcome: Some(Outcome::Admitted), ..all.clone() }, 7),
        (HandshakeFilter { reason: Some(Code::NoCertificate), ..none() }, 1),
        (HandshakeFilter { reason: Some(Code::Expired), ..none() }, 0),
        (HandshakeFilter { version: some("1.3"), ..all.clone() }, 8),
        (HandshakeFilter { version: some("1.2"), ..none() }, 0),
        (HandshakeFilter { group: some("x25519"), ..none() }, 4),
        (HandshakeFilter { group: some("X25519MLKEM768"), ..all.clone() }, 4),
        (HandshakeFilter { suite: some("TLS13_AES_256_GCM_SHA384"), ..none() }, 4),
        (HandshakeFilter { at: some("web-proxy"), ..none() }, 1),
        (HandshakeFilter { from: some("nobody"), ..none() }, 0),
        (HandshakeFilter { since: Some(now + Duration::from_secs(3600)), ..none() }, 0),
    ] {
        assert_eq!(count(filter.clone()).await, expected, "{filter:?}");
    }
    let refused = HandshakeFilter { reason: Some(Code::NoCertificate), ..all };
    let refused = ask(&running, &refused).await.handshakes;
    assert_eq!(refused[0].peer_address, "192.0.2.1:5");
    assert_eq!((refused[0].detail.as_str(), refused[0].from.as_str()), ("it sent <nothing>", ""));
    running.stop().await;
}

#[tokio::test]
async fn handshakes_are_counted_together_by_what_they_have_in_common() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    let agent = Agent::join(&realm, &running, &[]).await;
    let now = realm.clock.now();
    let dialled = v1::HandshakeFact {
        direction: v1::Direction::Outbound.into(),
        local_id: WEB.to_owned(),
        peer_id: ORDERS.to_owned(),
        ..inbound("", now)
    };
    let many = v1::HandshakeFact { count: 5, ..inbound("", now) };
    report(&realm, &running, &agent, vec![many, inbound("revoked", now), dialled]).await;
    let by = |by| HandshakeFilter { by: Some(by), ..between(WEB, ORDERS) };
    let pairs = until(&realm, &running, &by(HandshakeBy::Pair), |found| found.entries == 3).await;
    assert_eq!(pairs.groups.len(), 1, "{pairs:?}");
    let pair = &pairs.groups[0];
    assert_eq!((pair.from.as_deref(), pair.to.as_deref()), (Some(WEB), Some(ORDERS)));
    assert_eq!((pair.accepting.admitted, pair.accepting.refused), (5, 1));
    assert_eq!((pair.dialling.admitted, pair.dialling.refused), (1, 0));
    for (way, expected) in [
        (HandshakeBy::Outcome, vec![("admitted", 6), ("revoked", 1)]),
        (HandshakeBy::Version, vec![("1.3", 7)]),
        (HandshakeBy::Group, vec![("X25519MLKEM768", 7)]),
        (HandshakeBy::Suite, vec![("TLS13_AES_128_GCM_SHA256", 7)]),
    ] {
        let groups = ask(&running, &by(way)).await.groups;
        let told = groups.iter().map(|group| {
            let (there, here) = (group.accepting, group.dialling);
            let sum = there.admitted + there.refused + here.admitted + here.refused;
            (group.value.as_deref().unwrap_or_default(), sum)
        });
        assert_eq!(told.collect::<Vec<_>>(), expected, "{way:?}");
    }
    running.stop().await;
}

#[tokio::test]
async fn what_is_stored_goes_when_it_is_old_or_too_much_the_oldest_first() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    running.apply(vec![observations("1h", 20)]).await;
    let agent = Agent::join(&realm, &running, &[]).await;
    let week = |realm: &Realm| HandshakeFilter {
        since: Some(realm.clock.now() - Duration::from_secs(7 * 86_400)),
        from: Some("spiffe://shop.example/s*".to_owned()),
        ..HandshakeFilter::default()
    };
    // Ten a minute, each from another one: of five minutes, two fit.
    for minute in 0..5 {
        let now = realm.clock.now();
        let facts = (0..10).map(|number| v1::HandshakeFact {
            peer_id: format!("spiffe://shop.example/s{minute}-{number}"),
            ..inbound("", now)
        });
        report(&realm, &running, &agent, facts.collect()).await;
        until(&realm, &running, &week(&realm), |found| {
            let of = format!("/s{minute}-");
            found.handshakes.iter().filter(|seen| seen.from.contains(&of)).count() == 10
        })
        .await;
        realm.clock.advance(Duration::from_secs(60));
    }
    let fits = until(&realm, &running, &week(&realm), |found| found.entries <= 20).await;
    assert!(0 < fits.entries, "{fits:?}");
    let newest = fits
        .handshakes
        .iter()
        .all(|seen| seen.direction == HandshakeDirection::Inbound && !seen.from.contains("/s0-"));
    assert!(newest, "{fits:?}");
    realm.clock.advance(Duration::from_secs(3700));
    until(&realm, &running, &week(&realm), |found| found.entries == 0).await;
    running.stop().await;
}

#[tokio::test]
async fn clock_that_is_ahead_drops_nothing_that_was_observed_until_it_has_gone_on_for_an_hour() {
    let realm = Realm::begin().await;
    let running = realm.serve().await;
    running.apply(vec![observations("1h", 20)]).await;
    let agent = Agent::join(&realm, &running, &[]).await;
    let month = |realm: &Realm| HandshakeFilter {
        since: Some(realm.clock.now() - Duration::from_secs(30 * 86_400)),
        from: Some("spiffe://shop.example/s*".to_owned()),
        ..HandshakeFilter::default()
    };
    let peer_id = "spiffe://shop.example/s".to_owned();
    let fact = v1::HandshakeFact { peer_id, ..inbound("", realm.clock.now()) };
    report(&realm, &running, &agent, vec![fact]).await;
    until(&realm, &running, &month(&realm), |found| found.entries == 1).await;
    realm.clock.set(realm.clock.now() + Duration::from_secs(5 * 86_400));
    for _ in 0..30 {
        realm.clock.advance(Duration::from_secs(60));
        assert_eq!(ask(&running, &month(&realm)).await.entries, 1);
    }
    realm.clock.advance(Duration::from_secs(3600));
    until(&realm, &running, &month(&realm), |found| found.entries == 0).await;
    running.stop().await;
}
