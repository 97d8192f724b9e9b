//! What a door agrees to, asked by OpenSSL, and whom it takes for somebody.

use std::net::SocketAddr;
use std::process::{Command, Stdio};

use countersign_identity::{Code, TlsGroup, TlsProfile, TlsSuite, TlsTerms, TlsVersion};
use countersign_tls::{Accepted, ServiceTls};
use http_body_util::BodyExt;

use super::world::{Shop, get};
use crate::config::Protocol;

/// What OpenSSL says of a handshake that offers this: the version and the key that was agreed on, or that there was none.
async fn asked(door: SocketAddr, offer: &'static [&'static str]) -> String {
    let ask = move || {
        let mut openssl = Command::new("openssl");
        openssl.args(["s_client", "-brief", "-connect", &door.to_string()]).args(offer);
        openssl.stdin(Stdio::null()).output().unwrap()
    };
    let output = tokio::task::spawn_blocking(ask).await.unwrap();
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

/// Whether the door agrees to X25519, P-256 and P-384, each offered alone, and to TLS 1.2.
async fn agrees(profile: TlsProfile) -> [bool; 4] {
    let shop = Shop::open(Protocol::Http).await;
    for proxy in [&shop.orders, &shop.web] {
        proxy.profile(ServiceTls { terms: TlsTerms::of(profile), accepted: Accepted::default() });
    }
    assert_eq!(shop.caller().await.get("/").await.0, 200, "our own callers always come in");
    let fact = shop.orders.fact(|fact| fact.code.is_none()).await;
    assert_eq!((fact.version, fact.group), ("1.3", "X25519MLKEM768"));
    let mut agreed = [false; 4];
    let offers: [(&[&str], &str); 4] = [
        (&["-tls1_3", "-groups", "X25519"], "Server Temp Key: X25519"),
        (&["-tls1_3", "-groups", "P-256"], "Server Temp Key: ECDH, prime256v1"),
        (&["-tls1_3", "-groups", "P-384"], "Server Temp Key: ECDH, secp384r1"),
        (&["-tls1_2"], "Protocol version: TLSv1.2"),
    ];
    for (agreed, (offer, sign)) in agreed.iter_mut().zip(offers) {
        let said = asked(shop.orders.door(), offer).await;
        *agreed = said.contains(sign);
        assert!(*agreed || said.contains("alert"), "neither agreed nor refused: {said}");
    }
    agreed
}

#[tokio::test]
async fn a_door_agrees_to_the_key_exchanges_of_its_profile_and_to_no_others() {
    assert_eq!(agrees(TlsProfile::Modern).await, [true, true, false, false]);
    assert_eq!(agrees(TlsProfile::Compatible).await, [true, true, true, false]);
    assert_eq!(agrees(TlsProfile::PqOnly).await, [false, false, false, false]);
}

/// A profile of these terms, which takes everybody.
fn of(versions: &[TlsVersion], groups: &[TlsGroup], suites: &[TlsSuite]) -> ServiceTls {
    let terms = TlsTerms::new(versions, groups, suites).unwrap();
    ServiceTls { terms, accepted: Accepted::default() }
}

#[tokio::test]
async fn where_a_profile_says_so_tls_1_2_is_spoken_and_both_ends_prove_who_they_are() {
    let shop = Shop::open(Protocol::Http).await;
    let groups = [TlsGroup::X25519, TlsGroup::P384];
    let old = of(&[TlsVersion::V12], &groups, &[TlsSuite::Aes256]);
    for proxy in [&shop.orders, &shop.web] {
        proxy.profile(old.clone());
    }
    assert_eq!(shop.caller().await.get("/").await.0, 200);
    let fact = shop.orders.fact(|fact| fact.code.is_none()).await;
    assert_eq!((fact.version, fact.group), ("1.2", "X25519"));
    assert_eq!(fact.suite, "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384");
    assert_eq!(fact.peer, Some(shop.realm.id("web")));
    let said = asked(shop.orders.door(), &["-tls1_3"]).await;
    assert!(said.contains("alert"), "1.3 is none of them: {said}");
    // Who shows nothing is not let in by 1.2 either, nor with a suite that is none of them.
    let said = asked(shop.orders.door(), &["-tls1_2"]).await;
    assert!(said.contains("alert") && !said.contains("Protocol version"), "{said}");
    let said = asked(shop.orders.door(), &["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256"]);
    assert!(said.await.contains("alert handshake failure"));
}

#[tokio::test]
async fn what_agreed_on_less_than_a_profile_comes_to_ask_for_is_succeeded_and_no_request_is_lost() {
    let shop = Shop::open(Protocol::Http).await;
    let terms = |group| of(&[TlsVersion::V13], &[group], TlsSuite::ALL);
    shop.web.profile(terms(TlsGroup::X25519));
    let mut caller = shop.caller().await;
    assert_eq!(caller.get("/").await.0, 200);
    assert_eq!(shop.orders.fact(|fact| fact.code.is_none()).await.group, "X25519");
    let mut waiting = shop.caller().await;
    let endless = waiting.send(get("/endless")).await.unwrap();
    for proxy in [&shop.orders, &shop.web] {
        assert_eq!(proxy.profile(terms(TlsGroup::X25519Mlkem768)), 0, "nothing is cut at once");
        assert_eq!(proxy.draining(), 1);
    }
    assert_eq!(caller.get("/").await.0, 200);
    shop.orders.fact(|fact| fact.code.is_none() && fact.group == "X25519MLKEM768").await;
    let mut under_way = endless.into_body();
    let begun = under_way.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(begun, "one", "what is under way goes on for a while");
}

#[tokio::test]
async fn who_is_not_accepted_any_more_is_cut_and_nobody_else() {
    let shop = Shop::open(Protocol::Http).await;
    let mut caller = shop.caller().await;
    assert_eq!(caller.get("/").await.0, 200);
    let terms = TlsTerms::MODERN;
    let only = |domain: &str| Accepted {
        domains: Some([domain.parse().unwrap()].into()),
        ..Accepted::default()
    };
    let own = ServiceTls { terms, accepted: only("shop.example") };
    assert_eq!(shop.orders.profile(own), 0, "who is accepted stays");
    assert_eq!(caller.get("/").await.0, 200);
    let other = ServiceTls { terms, accepted: only("other.example") };
    assert_eq!(shop.orders.profile(other), 1);
    assert_ne!(shop.caller().await.get("/").await.0, 200);
    shop.orders.refused(Code::UnknownTrustDomain).await;
}

#[tokio::test]
async fn a_profile_takes_certificates_of_its_roots_only() {
    let shop = Shop::open(Protocol::Http).await;
    let root = shop.realm.bundle().authorities[0].key_id();
    let of = |root| {
        let accepted = Accepted { roots: Some([root].into()), ..Accepted::default() };
        ServiceTls { terms: TlsTerms::MODERN, accepted }
    };
    shop.orders.profile(of(root));
    assert_eq!(shop.caller().await.get("/").await.0, 200);
    let other = "00".repeat(32).parse().unwrap();
    assert_eq!(shop.orders.profile(of(other)), 1);
    assert_ne!(shop.caller().await.get("/").await.0, 200);
    shop.orders.refused(Code::UnknownIssuer).await;
}
