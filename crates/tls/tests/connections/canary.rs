//! Canaries: asked what everybody is asked, told what everybody would be told, and let in nowhere.

use std::sync::Arc;
use std::time::Duration;

use countersign_identity::{Canary, Clock, Code, Revocations, Timestamp, Trial};
use countersign_tls::{
    CANARY_ALPN, CanaryAnswer, Expected, HandshakeFailure, Inbound, Outbound, Slice, Trust, accept,
    show_canary, show_former_canary,
};
use tokio::net::TcpListener;

use crate::ends::{CUT_OFF, Shop, door, identity, name, shake, slice, trust};
use crate::realm::{Realm, START, Svid};

const ALL: &str = r#"@unscoped("test") permit (principal, action, resource);"#;

/// A shop whose every policy is to let everybody in everywhere.
fn open_shop() -> Shop {
    Shop::with_policy(ALL)
}

fn canary(realm: &Realm, canary: Canary, issued: Timestamp) -> Svid {
    let path = Trial(CUT_OFF).id(&realm.domain, canary).path().to_owned();
    realm.svid(&path, issued, 60)
}

/// `orders` with the rule of the trial.
fn begin(shop: &Shop) {
    let rule = Trial(CUT_OFF).rule(&shop.realm.domain, START);
    let rules = Revocations::new([("1.8.0".into(), Arc::new(rule))]);
    let before = Slice::clone(&shop.orders.slice());
    shop.orders.apply(Slice { revision: CUT_OFF, revocations: Arc::new(rules), ..before });
}

/// What `to` says to a canary, and what it notes of it.
async fn try_at(
    shop: &Shop,
    canary: &Svid,
    to: &Arc<Trust>,
    inbound: &Inbound,
) -> (CanaryAnswer, HandshakeFailure) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let clock = Arc::clone(&shop.clock) as Arc<dyn Clock>;
    let expected = shop.realm.domain.with_path("/orders").unwrap();
    let trusting = slice(&[&shop.realm], "");
    let limit = Duration::from_secs(3);
    let showing = show_canary(&clock, trusting, identity(canary), (address, &expected), limit);
    let answering = async {
        let (tcp, _) = listener.accept().await.unwrap();
        accept(to, tcp, inbound).await.unwrap_err()
    };
    tokio::join!(showing, answering)
}

#[tokio::test]
async fn covered_canary_is_refused_as_revoked_and_the_other_is_told_the_revision() {
    let shop = open_shop();
    let covered = canary(&shop.realm, Canary::Covered, START);
    let uncovered = canary(&shop.realm, Canary::Uncovered, START);
    let tcp_only = Inbound { alpn: vec![b"countersign-reproof".to_vec()], ..door() };
    let http = Inbound { alpn: vec![b"h2".to_vec(), b"http/1.1".to_vec()], ..door() };
    for inbound in [&door(), &tcp_only, &http] {
        // Before the point has heard of it, the trial shows that it has not.
        shop.orders.apply(slice(&[&shop.realm], ALL));
        let before = shop.orders.slice().revision;
        let (answer, _) = try_at(&shop, &covered, &shop.orders, inbound).await;
        assert_eq!(answer, CanaryAnswer::Alive(before));
        begin(&shop);
        let (answer, failure) = try_at(&shop, &covered, &shop.orders, inbound).await;
        assert_eq!((answer, failure.code), (CanaryAnswer::Revoked, Code::Revoked));
        let (answer, failure) = try_at(&shop, &uncovered, &shop.orders, inbound).await;
        assert_eq!((answer, failure.code), (CanaryAnswer::Alive(CUT_OFF), Code::Canary));
        assert_eq!(failure.fact.peer, Some(uncovered.id.clone()), "it is counted as what it is");
        assert_eq!(shop.orders.connections(), 0, "nobody was let in");
    }
}

#[tokio::test]
async fn canary_that_comes_by_another_protocol_is_let_in_nowhere_whatever_policy_says() {
    let shop = open_shop();
    let uncovered = canary(&shop.realm, Canary::Uncovered, START);
    let bird = trust(&shop.clock, slice(&[&shop.realm], ALL), Some(&uncovered));
    let several = Inbound { alpn: vec![b"h2".to_vec(), CANARY_ALPN.to_vec()], ..door() };
    for inbound in [door(), Inbound::control(), several] {
        for alpn in [vec![], vec![b"h2".to_vec()], vec![b"h2".to_vec(), CANARY_ALPN.to_vec()]] {
            let inbound = Inbound { alpn: alpn.clone(), ..inbound.clone() };
            let outbound = Outbound { alpn, ..shop.to_orders() };
            let shaken = shake(&bird, &outbound, &shop.orders, &inbound).await;
            shaken.refused_by_server(Code::PolicyDenied);
        }
    }
    // Nor does it stand at a door itself.
    let expected = Expected::AnyOf(vec![uncovered.id.clone()]);
    for outbound in
        [Outbound::service(name("orders"), expected.clone()), Outbound::control(expected)]
    {
        let shaken = shake(&shop.web, &outbound, &bird, &door()).await;
        shaken.refused_by_client(Code::PolicyDenied);
    }
}

#[tokio::test]
async fn whoever_is_no_canary_gets_nothing_by_their_protocol() {
    let shop = open_shop();
    let outbound = Outbound { alpn: vec![CANARY_ALPN.to_vec()], ..shop.to_orders() };
    for inbound in [door(), Inbound::control()] {
        let shaken = shake(&shop.web, &outbound, &shop.orders, &inbound).await;
        shaken.refused_by_server(Code::PolicyDenied);
    }
    // Not even where clients may come without a certificate.
    let optional = Inbound { clients: countersign_tls::Clients::Optional, ..Inbound::control() };
    let nobody = Outbound { present: countersign_tls::Present::Nothing, ..outbound };
    let shaken = shake(&shop.web, &nobody, &shop.orders, &optional).await;
    assert!(shaken.server.is_err());
    assert_eq!(shop.orders.connections(), 0);
}

#[tokio::test]
async fn what_the_verifier_refuses_anyway_proves_nothing() {
    let shop = open_shop();
    begin(&shop);
    let unclear = |(answer, failure): (CanaryAnswer, HandshakeFailure), code| {
        assert!(matches!(answer, CanaryAnswer::Unclear(_)), "{answer:?}");
        assert_eq!(failure.code, code);
    };
    // Another domain's, of whom there is no bundle.
    let partner = Realm::new("partner.example", 2);
    let foreign = canary(&partner, Canary::Uncovered, START);
    let stranger =
        Trust::new(Arc::clone(&shop.clock) as Arc<dyn Clock>, slice(&[&partner, &shop.realm], ALL));
    stranger.set_identity(identity(&foreign)).unwrap();
    let outbound = Outbound { alpn: vec![CANARY_ALPN.to_vec()], ..shop.to_orders() };
    let shaken = shake(&stranger, &outbound, &shop.orders, &door()).await;
    shaken.refused_by_server(Code::UnknownTrustDomain);
    // Somebody else at the door.
    let bird = canary(&shop.realm, Canary::Uncovered, START);
    unclear(try_at(&shop, &bird, &shop.web, &door()).await, Code::PeerRefused);
    // One that has expired is not shown in the first place.
    let old = bird;
    shop.clock.advance(Duration::from_secs(200));
    let clock = Arc::clone(&shop.clock) as Arc<dyn Clock>;
    let at = ("127.0.0.1:1".parse().unwrap(), &old.id.clone());
    let limit = Duration::from_secs(1);
    let answer = show_canary(&clock, slice(&[&shop.realm], ""), identity(&old), at, limit).await;
    assert!(matches!(answer, CanaryAnswer::Unclear(_)), "{answer:?}");
}

#[tokio::test]
async fn canary_of_a_former_root_is_refused_unless_the_door_trusts_that_root_still() {
    let shop = open_shop();
    // The root before: of the same trust domain, with the same name, and another key.
    let former = Realm::new(shop.realm.domain.as_str(), 7);
    let bird = canary(&former, Canary::Former, START);
    let clock = Arc::clone(&shop.clock) as Arc<dyn Clock>;
    let shown_to = async |door_trusts: &Realm| {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let expected = shop.realm.domain.with_path("/orders").unwrap();
        let trusting = slice(&[&shop.realm], "");
        let limit = Duration::from_secs(3);
        // The door shows its own certificate, whatever it trusts.
        let before = Slice::clone(&shop.orders.slice());
        let bundles = slice(&[door_trusts], "").bundles;
        shop.orders.apply(Slice { bundles, ..before });
        let showing =
            show_former_canary(&clock, trusting, identity(&bird), (address, &expected), limit);
        let answering = async {
            let (tcp, _) = listener.accept().await.unwrap();
            accept(&shop.orders, tcp, &door()).await.unwrap_err()
        };
        tokio::join!(showing, answering).0
    };
    assert_eq!(shown_to(&shop.realm).await, CanaryAnswer::Untrusted);
    let trusts_it_still = shown_to(&former).await;
    assert!(matches!(trusts_it_still, CanaryAnswer::Alive(_)), "{trusts_it_still:?}");
}

#[tokio::test]
async fn nothing_but_a_canary_is_shown_unverified() {
    let shop = open_shop();
    let former = Realm::new(shop.realm.domain.as_str(), 7);
    let web = former.svid("/web", START, 60);
    let clock = Arc::clone(&shop.clock) as Arc<dyn Clock>;
    let at = ("127.0.0.1:1".parse().unwrap(), &web.id.clone());
    let (trusting, limit) = (slice(&[&shop.realm], ""), Duration::from_secs(1));
    let answer = show_former_canary(&clock, trusting, identity(&web), at, limit).await;
    let CanaryAnswer::Unclear(why) = answer else { panic!("{answer:?}") };
    assert!(why.contains("no canary"), "{why}");
}
