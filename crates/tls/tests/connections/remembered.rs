//! Signatures of a chain are verified once; everything else is asked at every handshake.

use std::sync::Arc;
use std::time::Duration;

use countersign_identity::{Code, Reason};
use countersign_pki::{Bundle, Bundles, SignatureCounts};
use countersign_tls::{Identity, Slice};
use rustls::version::TLS13;

use crate::ends::{Shop, WEB_TO_ORDERS, door, revoking, rules_on, shake, slice, trust};
use crate::realm::START;
use crate::resumption::{Stranger, meet};

/// What `orders` has counted of its callers' signatures.
fn counted(shop: &Shop) -> (u64, u64) {
    let SignatureCounts { recalled, verified } = shop.orders.signatures();
    (recalled, verified)
}

#[tokio::test]
async fn the_second_handshake_of_a_peer_verifies_no_signature_of_its_chain() {
    let shop = Shop::open();
    drop(shop.shake().await.both());
    assert_eq!(counted(&shop), (0, 2));
    drop(shop.shake().await.both());
    assert_eq!(counted(&shop), (2, 2));
    // A new slice changes nothing about arithmetic.
    shop.orders.apply(slice(&[&shop.realm], WEB_TO_ORDERS));
    drop(shop.shake().await.both());
    assert_eq!(counted(&shop), (4, 2));
    // The one that dials remembers as well.
    assert_eq!(shop.web.signatures(), SignatureCounts { recalled: 4, verified: 2 });
}

#[tokio::test]
async fn a_remembered_peer_is_refused_once_its_anchor_has_left_the_bundle() {
    let shop = Shop::open();
    drop(shop.shake().await.both());
    let without = Bundle::new(shop.realm.domain.clone(), Vec::new(), 2);
    let held = slice(&[&shop.realm], WEB_TO_ORDERS);
    shop.orders.apply(Slice { bundles: Arc::new(Bundles::of(without)), ..held.clone() });
    shop.shake().await.refused_by_server(Code::UnknownIssuer);
    shop.orders.apply(held);
    drop(shop.shake().await.both());
    assert_eq!(counted(&shop), (3, 2), "the refused one came as far as its issuer");
}

#[tokio::test]
async fn a_remembered_peer_is_refused_once_a_rule_covers_it_or_policy_denies_it() {
    for kind in 0..7 {
        let shop = Shop::open();
        let svid = shop.realm.svid("/web", START, 3600);
        let web = trust(&shop.clock, slice(&[&shop.realm], WEB_TO_ORDERS), Some(&svid));
        drop(shake(&web, &shop.to_orders(), &shop.orders, &door()).await.both());
        let rule = rules_on(&svid, &shop.realm)[kind].clone();
        // Without an identity of its own, where the rule covers that as well, nobody would be verified at all.
        let own = shop.orders.identity().unwrap();
        shop.orders.apply(revoking(&shop.orders, Reason::KeyCompromise, &[rule]));
        if shop.orders.identity().is_none() {
            assert!(shop.orders.set_identity(Identity::clone(&own)).is_err());
            continue;
        }
        shake(&web, &shop.to_orders(), &shop.orders, &door())
            .await
            .refused_by_server(Code::Revoked);
    }
    let shop = Shop::open();
    drop(shop.shake().await.both());
    shop.orders.apply(slice(&[&shop.realm], ""));
    shop.shake().await.refused_by_server(Code::PolicyDenied);
}

#[tokio::test]
async fn a_remembered_peer_is_refused_once_its_certificate_has_expired() {
    let shop = Shop::open();
    let short = shop.realm.svid("/web", START, 600);
    let visitor = trust(&shop.clock, slice(&[&shop.realm], WEB_TO_ORDERS), Some(&short));
    drop(shake(&visitor, &shop.to_orders(), &shop.orders, &door()).await.both());
    // The visitor's own clock stands still, so that it goes on to show what has ended.
    let slow = Arc::new(countersign_identity::SimClock::new(START));
    let slow = trust(&slow, slice(&[&shop.realm], WEB_TO_ORDERS), Some(&short));
    shop.clock.advance(Duration::from_secs(601));
    shake(&slow, &shop.to_orders(), &shop.orders, &door()).await.refused_by_server(Code::Expired);
}

#[tokio::test]
async fn a_copied_chain_whose_key_the_peer_does_not_hold_is_not_remembered() {
    let shop = Shop::open();
    let svid = shop.realm.svid("/web", START, 3600);
    let other = shop.realm.svid("/payments", START, 3600);
    let thief = Stranger::showing(&svid.chain.ders(), &other.pkcs8).config(&[&TLS13]);
    let thief = Arc::new(thief);
    for _ in 0..3 {
        assert!(meet(&shop, &thief).await.0.is_err());
    }
    assert_eq!(counted(&shop), (0, 6), "each of them had to be verified anew");
    // Nor does it help the thief that the owner is remembered.
    let owner = trust(&shop.clock, slice(&[&shop.realm], WEB_TO_ORDERS), Some(&svid));
    drop(shake(&owner, &shop.to_orders(), &shop.orders, &door()).await.both());
    let failure = meet(&shop, &thief).await.0.unwrap_err();
    assert_eq!((failure.code, failure.fact.peer), (Code::BadSignature, None));
    assert_eq!(counted(&shop), (2, 8));
}
