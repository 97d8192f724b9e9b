//! What policies say of the moment, of where callers come from and of how they were attested.

use std::time::Duration;

use countersign_identity::{Attested, Clock, Code, SelectorKind};
use countersign_tls::{AddressOf, Inbound, TIME_REVIEW_EVERY};

use crate::ends::{Shop, WEB_TO_ORDERS, door, end_of, exchange, identity, shake, slice, trust};
use crate::lifetime::{ANYBODY, run};
use crate::realm::{Realm, START};

/// Whom [`WEB_TO_ORDERS`] permits, under this condition.
fn when(condition: &str) -> String {
    WEB_TO_ORDERS.replace(");", &format!(") when {{ {condition} }};"))
}

const UNTIL_SIX: &str = r#"context.time.toTime() < duration("18h")"#;

#[tokio::test]
async fn what_only_a_time_of_day_permits_ends_when_that_is_over_and_begins_again_after() {
    let shop = Shop::with_policy(&when(UNTIL_SIX));
    let (running, stop) = run(&shop.orders);
    let (mut web, mut orders) = shop.shake().await.both();
    let six = "2026-09-21T18:00:00Z".parse().unwrap();
    // Certificates last longer than the day.
    for trust in [&shop.web, &shop.orders] {
        let path = trust.identity().unwrap().id().path().to_owned();
        let svid = shop.realm.svid(&path, START, 86_400);
        trust.set_identity(identity(&svid)).unwrap();
    }
    let (mut lasting, mut at_orders) = shop.shake().await.both();
    shop.clock.advance(TIME_REVIEW_EVERY);
    exchange(&mut web, &mut orders).await;
    shop.clock.set(six);
    assert_eq!(at_orders.stream.admitted().ended().await, Code::PolicyDenied);
    assert_eq!(end_of(&mut at_orders).await, Code::PolicyDenied);
    assert_eq!(end_of(&mut lasting).await, Code::PeerClosed);
    let refused = shop.shake().await;
    assert!(refused.server.is_err() || refused.client.is_err());
    shop.clock.set("2026-09-22T08:00:00Z".parse().unwrap());
    let (mut web, mut orders) = shop.shake().await.both();
    exchange(&mut web, &mut orders).await;
    stop.cancel();
    running.await.unwrap();
}

#[tokio::test]
async fn a_connection_that_no_policy_ties_to_the_time_is_not_ended_by_it() {
    let timed = r#"permit (principal == Workload::"web", action == Action::"connect", resource == Service::"other") when { context.time < datetime("2026-09-21") };"#;
    let shop = Shop::with_policy(&format!("{WEB_TO_ORDERS}\n{timed}"));
    let (running, stop) = run(&shop.orders);
    let (mut web, mut orders) = shop.shake().await.both();
    for _ in 0..4 {
        shop.clock.advance(TIME_REVIEW_EVERY);
        exchange(&mut web, &mut orders).await;
    }
    assert_eq!(orders.stream.admitted().why_ended(), None);
    stop.cancel();
    running.await.unwrap();
}

#[tokio::test]
async fn a_source_is_the_address_of_whoever_dials_at_both_ends() {
    let inside = r#"context has source && context.source.isInRange(ip("127.0.0.0/8"))"#;
    let shop = Shop::with_policy(&when(inside));
    let (mut web, mut orders) = shop.shake().await.both();
    exchange(&mut web, &mut orders).await;
    // The door is told that the caller is somewhere else, and the caller itself does not look there.
    let told = |address: &str, of| Inbound {
        peer_address: Some(address.parse().unwrap()),
        address_of: of,
        ..door()
    };
    let ask =
        async |inbound: Inbound| shake(&shop.web, &shop.to_orders(), &shop.orders, &inbound).await;
    ask(told("192.0.2.7:1", AddressOf::Peer)).await.refused_by_server(Code::PolicyDenied);
    ask(told("127.9.9.9:1", AddressOf::Peer)).await.both();
    ask(told("[::ffff:127.9.9.9]:1", AddressOf::Peer)).await.both();
    // What connects for it is inside, and does not say for whom.
    ask(told("127.9.9.9:1", AddressOf::Relay)).await.refused_by_server(Code::PolicyDenied);
    let outside = shop.web.slice();
    shop.web.apply(slice(&[&shop.realm], &when(&inside.replace("127.", "10."))));
    shop.shake().await.refused_by_client(Code::PolicyDenied);
    shop.web.apply(countersign_tls::Slice::clone(&outside));
    shop.shake().await.both();
}

#[tokio::test]
async fn kinds_of_attestation_are_those_that_the_certificate_says_and_a_foreign_one_says_nothing() {
    let launched = r#"context has attestation && context.attestation.contains("launch")"#;
    let mut shop = Shop::with_policy(&when(launched));
    // Neither says anything, so the caller itself does not go.
    shop.shake().await.refused_by_client(Code::PolicyDenied);
    shop.realm.attested = Attested::default().and(SelectorKind::UnixUid).and(SelectorKind::Launch);
    let now = shop.clock.now();
    shop.web.set_identity(identity(&shop.realm.svid("/web", now, 3600))).unwrap();
    let (mut web, mut orders) = shop.shake().await.both();
    exchange(&mut web, &mut orders).await;
    shop.realm.attested = Attested::default().and(SelectorKind::UnixUid);
    shop.web.set_identity(identity(&shop.realm.svid("/web", now, 3600))).unwrap();
    shop.web.apply(slice(&[&shop.realm], WEB_TO_ORDERS));
    shop.shake().await.refused_by_server(Code::PolicyDenied);

    let mut partner = Realm::new("partner.example", 2);
    partner.attested = Attested::default().and(SelectorKind::Launch);
    let guest = partner.svid("/guest", START, 3600);
    let guests = slice(&[&partner, &shop.realm], ANYBODY);
    let guest = trust(&shop.clock, guests, Some(&guest));
    let forbid = r#"forbid (principal, action, resource) when { context has attestation };"#;
    shop.orders.apply(slice(&[&shop.realm, &partner], &format!("{ANYBODY}\n{forbid}")));
    shake(&guest, &shop.to_orders(), &shop.orders, &door()).await.both();
    let own = shop.realm.svid("/orders", now + Duration::from_secs(1), 3600);
    let own = trust(&shop.clock, slice(&[&shop.realm], ANYBODY), Some(&own));
    let shaken = shake(&own, &shop.to_orders(), &shop.orders, &door()).await;
    shaken.refused_by_server(Code::PolicyDenied);
}
