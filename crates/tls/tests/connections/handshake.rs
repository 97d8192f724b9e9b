//! Who gets through a handshake, who does not, and what each end says of it.

use std::sync::Arc;
use std::time::Duration;

use crate::ends::{
    Shop, WEB_TO_ORDERS, door, exchange, identity, name, shake, slice, tcp_pair, trust,
};
use crate::realm::{NODE, Realm, START};
use countersign_identity::{Clock, Code, KeyId};
use countersign_pki::{KeyKind, PrivateKey};
use countersign_tls::{
    Clients, Direction, Expected, FirstContact, Identity, Inbound, Outbound, Present, Trust,
    accept, connect, connect_pinned, dial,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test]
async fn two_services_talk_and_know_each_other() {
    let shop = Shop::open();
    let (mut web, mut orders) = shop.shake().await.both();
    exchange(&mut web, &mut orders).await;

    let peer = orders.stream.admitted().peer().unwrap().clone();
    assert_eq!(peer.id.as_str(), "spiffe://shop.example/web");
    assert_eq!(web.stream.admitted().peer().unwrap().id.as_str(), "spiffe://shop.example/orders");
    assert_eq!(orders.stream.admitted().policies(), ["shop"]);

    let fact = &orders.fact;
    assert_eq!(fact.direction, Direction::Inbound);
    assert_eq!(fact.code, None);
    assert_eq!(fact.service, Some(name("orders")));
    assert_eq!(fact.local.as_ref().unwrap().as_str(), "spiffe://shop.example/orders");
    assert_eq!(fact.peer, Some(peer.id.clone()));
    assert_eq!(fact.peer_serial, peer.serial_bytes());
    assert_eq!((fact.version, fact.group), ("1.3", "X25519MLKEM768"));
    assert!(fact.suite.starts_with("TLS13_"), "{}", fact.suite);
    assert!(!fact.resumed);
    assert_eq!(web.fact.group, "X25519MLKEM768");
}

#[tokio::test]
async fn services_with_keys_of_any_kind_talk_to_each_other() {
    let shop = Shop::open();
    let keys = KeyKind::ALL.map(|kind| PrivateKey::generate(kind).unwrap());
    for (web_key, orders_key) in keys.iter().zip(keys.iter().cycle().skip(3)) {
        let svid = |key, path| shop.realm.svid_for(key, path, START, 3600, (NODE, 7));
        shop.web.set_identity(identity(&svid(web_key, "/web"))).unwrap();
        shop.orders.set_identity(identity(&svid(orders_key, "/orders"))).unwrap();
        let (mut web, mut orders) = shop.shake().await.both();
        exchange(&mut web, &mut orders).await;
        let kinds = (web_key.public().kind(), orders_key.public().kind());
        let seen = web.stream.admitted().peer().unwrap().clone();
        assert_eq!(seen.key, orders_key.public().id(), "{kinds:?}");
    }
}

#[tokio::test]
async fn a_key_of_another_kind_than_the_certificates_is_no_identity() {
    let shop = Shop::open();
    let keys = KeyKind::ALL.map(|kind| PrivateKey::generate(kind).unwrap());
    for key in &keys {
        let svid = shop.realm.svid_for(key, "/web", START, 3600, (NODE, 7));
        for other in &keys {
            let made = Identity::new(svid.chain.clone(), other.pkcs8());
            assert_eq!(made.is_ok(), other.public() == key.public());
        }
    }
}

#[tokio::test]
async fn both_ends_derive_one_secret_that_another_connection_does_not_have() {
    let shop = Shop::open();
    let (web, orders) = shop.shake().await.both();
    let (other, _orders) = shop.shake().await.both();
    let secret = web.stream.export("EXPORTER-countersign-test").unwrap();
    assert_eq!(secret, orders.stream.export("EXPORTER-countersign-test").unwrap());
    assert_ne!(secret, web.stream.export("EXPORTER-countersign-other").unwrap());
    assert_ne!(secret, other.stream.export("EXPORTER-countersign-test").unwrap());
}

#[tokio::test]
async fn application_protocols_are_agreed_on_or_the_handshake_fails() {
    let shop = Shop::open();
    let inbound = Inbound { alpn: vec![b"h2".to_vec(), b"http/1.1".to_vec()], ..door() };
    let outbound = Outbound { alpn: vec![b"http/1.1".to_vec()], ..shop.to_orders() };
    let (web, _orders) = shake(&shop.web, &outbound, &shop.orders, &inbound).await.both();
    assert_eq!(web.stream.alpn(), Some(&b"http/1.1"[..]));

    let outbound = Outbound { alpn: vec![b"smtp".to_vec()], ..shop.to_orders() };
    let shaken = shake(&shop.web, &outbound, &shop.orders, &inbound).await;
    assert_eq!(shaken.server.unwrap_err().code, Code::NoSharedProtocol);
    assert_eq!(shaken.client.unwrap_err().code, Code::NoSharedProtocol);
}

#[tokio::test]
async fn a_peer_of_a_foreign_trust_domain_is_refused() {
    let shop = Shop::open();
    let elsewhere = Realm::new("elsewhere.example", 2);
    let web = elsewhere.svid("/web", START, 3600);
    let both = slice(&[&elsewhere, &shop.realm], WEB_TO_ORDERS);
    let stranger = trust(&shop.clock, both, Some(&web));
    let shaken = shake(&stranger, &shop.to_orders(), &shop.orders, &door()).await;
    let failure = shaken.refused_by_server(Code::UnknownTrustDomain);
    assert_eq!(failure.fact.peer, None, "a refused chain names nobody");
}

#[tokio::test]
async fn a_foreign_root_that_issues_our_names_is_refused() {
    let shop = Shop::open();
    // The same trust domain by name, so that names lead to our root and only the signature tells.
    let impostor = Realm::new("shop.example", 3);
    let web = impostor.svid("/web", START, 3600);
    let stranger = trust(&shop.clock, slice(&[&impostor], WEB_TO_ORDERS), Some(&web));
    stranger.apply(slice(&[&shop.realm], WEB_TO_ORDERS));
    let shaken = shake(&stranger, &shop.to_orders(), &shop.orders, &door()).await;
    shaken.refused_by_server(Code::BadSignature);
}

#[tokio::test]
async fn a_server_under_a_foreign_root_is_refused_by_the_client() {
    let shop = Shop::open();
    let impostor = Realm::new("shop.example", 3);
    let orders = impostor.svid("/orders", START, 3600);
    let stranger = trust(&shop.clock, slice(&[&impostor], WEB_TO_ORDERS), Some(&orders));
    stranger.apply(slice(&[&shop.realm], WEB_TO_ORDERS));
    let shaken = shake(&shop.web, &shop.to_orders(), &stranger, &door()).await;
    shaken.refused_by_client(Code::BadSignature);
}

#[tokio::test]
async fn the_wrong_server_of_the_right_trust_domain_is_refused() {
    let shop = Shop::open();
    let payments = shop.realm.svid("/payments", START, 3600);
    let text = format!("{WEB_TO_ORDERS} @unscoped(\"test\") permit (principal, action, resource);");
    let payments = trust(&shop.clock, slice(&[&shop.realm], &text), Some(&payments));
    let shaken = shake(&shop.web, &shop.to_orders(), &payments, &door()).await;
    let failure = shaken.refused_by_client(Code::UnexpectedPeer);
    assert_eq!(failure.fact.peer.unwrap().as_str(), "spiffe://shop.example/payments");

    let nobody = Outbound::service(name("orders"), Expected::AnyOf(Vec::new()));
    let shaken = shake(&shop.web, &nobody, &shop.orders, &door()).await;
    shaken.refused_by_client(Code::UnexpectedPeer);
}

#[tokio::test]
async fn a_certificate_is_refused_before_and_after_its_time() {
    let shop = Shop::open();
    // The stranger's own clock runs differently, so that it shows its certificate at all.
    let wrong_clock = crate::ends::clock();
    let late = shop.realm.svid("/web", START, 60);
    let late = trust(&wrong_clock, slice(&[&shop.realm], WEB_TO_ORDERS), Some(&late));
    shop.clock.advance(Duration::from_secs(61));
    let shaken = shake(&late, &shop.to_orders(), &shop.orders, &door()).await;
    shaken.refused_by_server(Code::Expired);

    let soon = START + Duration::from_secs(7200);
    let early = shop.realm.svid("/web", soon, 600);
    wrong_clock.set(soon);
    let early = trust(&wrong_clock, slice(&[&shop.realm], WEB_TO_ORDERS), Some(&early));
    let orders = shop.realm.svid("/orders", soon, 600);
    let orders_chain = trust(&wrong_clock, slice(&[&shop.realm], WEB_TO_ORDERS), Some(&orders));
    let shaken = shake(&early, &shop.to_orders(), &shop.orders, &door()).await;
    // Seen from the future, the server's certificate has expired by then.
    assert_eq!(shaken.client.unwrap_err().code, Code::Expired);
    let shaken = shake(&shop.web, &shop.to_orders(), &orders_chain, &door()).await;
    shaken.refused_by_client(Code::NotYetValid);
}

#[tokio::test]
async fn whom_no_policy_permits_is_refused_by_name() {
    let shop = Shop::open();
    let text = r#"permit (principal == Workload::"payments", action == Action::"connect", resource == Service::"orders");"#;
    let payments = shop.realm.svid("/payments", START, 3600);
    let payments = trust(&shop.clock, slice(&[&shop.realm], text), Some(&payments));
    let shaken = shake(&payments, &shop.to_orders(), &shop.orders, &door()).await;
    let failure = shaken.refused_by_server(Code::PolicyDenied);
    assert_eq!(failure.fact.peer.unwrap().as_str(), "spiffe://shop.example/payments");
    assert_eq!(failure.detail, "no policy lets `payments` connect to `orders`");
}

#[tokio::test]
async fn without_a_policy_nothing_is_allowed_at_either_end() {
    let shop = Shop::open();
    shop.web.apply(slice(&[&shop.realm], ""));
    let shaken = shop.shake().await;
    shaken.refused_by_client(Code::PolicyDenied);
    shop.web.apply(slice(&[&shop.realm], WEB_TO_ORDERS));
    shop.orders.apply(slice(&[&shop.realm], ""));
    shop.shake().await.refused_by_server(Code::PolicyDenied);
}

#[tokio::test]
async fn a_policy_may_ask_for_the_key_exchange_that_was_agreed_on() {
    let only = |group: &str| {
        format!(
            r#"permit (principal == Workload::"web", action == Action::"connect", resource == Service::"orders")
            when {{ context.group == "{group}" }};"#
        )
    };
    let shop = Shop::with_policy(&only("X25519MLKEM768"));
    shop.shake().await.both();

    // Possible beforehand, and not what was agreed on: refused after the handshake, on both ends by themselves.
    shop.orders.apply(slice(&[&shop.realm], &only("X25519")));
    let shaken = shop.shake().await;
    assert_eq!(shaken.server.unwrap_err().code, Code::PolicyDenied);
    assert_eq!(shaken.told, Some(Code::PeerClosed));

    // Not possible at all: the peer is told.
    shop.orders.apply(slice(&[&shop.realm], &only("ffdhe2048")));
    shop.shake().await.refused_by_server(Code::PolicyDenied);
}

#[tokio::test]
async fn whoever_has_no_certificate_is_refused_or_stays_outside() {
    let shop = Shop::open();
    shop.web.clear_identity();
    let failure = shop.shake_client_only().await;
    assert_eq!(failure, Code::NoOwnIdentity);

    let outbound =
        Outbound { present: Present::Nothing, ..Outbound::control(shop.to_orders().expected) };
    let shaken = shake(&shop.web, &outbound, &shop.orders, &door()).await;
    shaken.refused_by_server(Code::NoCertificate);
}

#[tokio::test]
async fn a_door_without_an_identity_lets_nobody_in() {
    let shop = Shop::open();
    shop.orders.clear_identity();
    let shaken = shop.shake().await;
    assert_eq!(shaken.server.unwrap_err().code, Code::NoOwnIdentity);
    assert_eq!(shaken.client.unwrap_err().code, Code::PeerRefused);
}

#[tokio::test]
async fn an_expired_identity_is_not_shown() {
    let shop = Shop::open();
    shop.clock.advance(Duration::from_secs(3601));
    assert_eq!(shop.shake_client_only().await, Code::NoOwnIdentity);
}

#[tokio::test]
async fn where_certificates_are_optional_a_bad_one_is_refused_all_the_same() {
    let shop = Shop::open();
    let inbound = Inbound { clients: Clients::Optional, ..Inbound::control() };
    let outbound =
        Outbound { present: Present::Nothing, ..Outbound::control(shop.to_orders().expected) };
    let shaken = shake(&shop.web, &outbound, &shop.orders, &inbound).await;
    let (mut nobody, mut orders) = shaken.both();
    exchange(&mut nobody, &mut orders).await;
    assert!(orders.stream.admitted().peer().is_none());
    assert_eq!(orders.fact.peer, None);

    let outbound = Outbound { present: Present::IfAny, ..outbound };
    let shaken = shake(&shop.web, &outbound, &shop.orders, &inbound).await;
    let (_web, orders) = shaken.both();
    assert_eq!(orders.stream.admitted().peer().unwrap().id.as_str(), "spiffe://shop.example/web");

    let elsewhere = Realm::new("elsewhere.example", 2);
    let web = elsewhere.svid("/web", START, 3600);
    let both = slice(&[&elsewhere, &shop.realm], "");
    let stranger = trust(&shop.clock, both, Some(&web));
    let shaken = shake(&stranger, &outbound, &shop.orders, &inbound).await;
    shaken.refused_by_server(Code::UnknownTrustDomain);
}

#[tokio::test]
async fn an_identity_that_our_own_verifier_refuses_leaves_the_old_one_in_place() {
    let shop = Shop::open();
    let impostor = Realm::new("shop.example", 3);
    let other = crate::ends::identity(&impostor.svid("/web", START, 3600));
    let before = shop.web.identity().unwrap().leaf().fingerprint();
    assert_eq!(shop.web.set_identity(other).unwrap_err().code, Code::BadSignature);
    assert_eq!(shop.web.identity().unwrap().leaf().fingerprint(), before);
}

#[test]
fn a_key_that_is_not_the_leafs_makes_no_identity() {
    let realm = Realm::new("shop.example", 1);
    let (one, other) = (realm.svid("/web", START, 60), realm.svid("/web", START, 60));
    let error = countersign_tls::Identity::new(one.chain, &other.pkcs8).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the private key does not belong to the leaf certificate of `spiffe://shop.example/web`"
    );
}

#[tokio::test]
async fn a_handshake_that_does_not_end_is_ended() {
    let shop = Shop::open();
    let (mut slow, tcp) = tcp_pair().await;
    // The beginning of a ClientHello, and then nothing.
    slow.write_all(&[0x16, 0x03, 0x01, 0x02, 0x00]).await.unwrap();
    let (orders, inbound) = (Arc::clone(&shop.orders), door());
    let accepting = tokio::spawn(async move { accept(&orders, tcp, &inbound).await });
    while shop.clock.next_wake().is_none() {
        tokio::task::yield_now().await;
    }
    shop.clock.advance(door().timeout);
    let failure = accepting.await.unwrap().unwrap_err();
    assert_eq!(failure.code, Code::HandshakeTimeout);
    assert_eq!(failure.fact.took, door().timeout);
    let mut rest = Vec::new();
    slow.read_to_end(&mut rest).await.unwrap();
    assert!(rest.is_empty());
}

#[tokio::test]
async fn what_is_not_tls_is_a_bad_handshake_and_a_vanished_peer_a_closed_one() {
    let shop = Shop::open();
    let (mut plain, tcp) = tcp_pair().await;
    let speak = async {
        plain.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        let mut rest = Vec::new();
        plain.read_to_end(&mut rest).await.unwrap();
        drop(plain);
    };
    let inbound = door();
    let (failure, ()) = tokio::join!(accept(&shop.orders, tcp, &inbound), speak);
    assert_eq!(failure.unwrap_err().code, Code::BadHandshake);

    let (gone, tcp) = tcp_pair().await;
    drop(gone);
    let failure = accept(&shop.orders, tcp, &inbound).await.unwrap_err();
    assert_eq!(failure.code, Code::PeerClosed);
}

#[tokio::test]
async fn nobody_listening_is_unreachable() {
    let shop = Shop::open();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let failure = dial(&shop.web, address, &shop.to_orders()).await.unwrap_err();
    assert_eq!(failure.code, Code::PeerUnreachable);
    assert_eq!(failure.fact.peer_address, Some(address));
}

#[tokio::test]
async fn first_contact_trusts_the_pinned_root_and_nothing_else() {
    let realm = Realm::new("shop.example", 1);
    let clock = crate::ends::clock();
    let server = realm.svid("/countersign/server/1", START, 3600);
    let server = trust(&clock, slice(&[&realm], ""), Some(&server));
    let inbound = Inbound { clients: Clients::Optional, ..Inbound::control() };
    let pin = realm.root.key_id();

    let pinned = first_contact(&server, &inbound, &clock, pin).await.unwrap();
    assert_eq!(pinned.peer.id.as_str(), "spiffe://shop.example/countersign/server/1");
    assert_eq!(pinned.bundle.authorities, std::slice::from_ref(&realm.root));

    let other = Realm::new("shop.example", 2).root.key_id();
    let refused = first_contact(&server, &inbound, &clock, other).await.unwrap_err();
    assert_eq!(refused.code, Code::UnknownIssuer);

    // A workload's certificate leads to the same root, but a workload is no server.
    let web = realm.svid("/countersign/agent/1", START, 3600);
    server.set_identity(crate::ends::identity(&web)).unwrap();
    let refused = first_contact(&server, &inbound, &clock, pin).await.unwrap_err();
    assert_eq!(refused.code, Code::UnexpectedPeer);
}

async fn first_contact(
    server: &Arc<Trust>,
    inbound: &Inbound,
    clock: &Arc<countersign_identity::SimClock>,
    pin: KeyId,
) -> Result<countersign_tls::Pinned, countersign_pki::Refused> {
    let (near, far) = tcp_pair().await;
    let contact = FirstContact { pin, domain: None, alpn: Vec::new(), timeout: inbound.timeout };
    let clock = Arc::clone(clock) as Arc<dyn Clock>;
    let (pinned, _accepted) =
        tokio::join!(connect_pinned(&clock, near, &contact), accept(server, far, inbound));
    pinned
}

impl Shop {
    /// For a client that gives up before it says anything.
    async fn shake_client_only(&self) -> Code {
        let (near, far) = tcp_pair().await;
        let failure = connect(&self.web, near, &self.to_orders()).await.unwrap_err();
        drop(far);
        failure.code
    }
}
