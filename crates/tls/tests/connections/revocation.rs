//! What was taken out of service: refused in handshakes, and cut where it was let in before.

use std::sync::Arc;

use countersign_identity::{Code, NodeId, NodeTag, Reason, Revision, Revoked};
use countersign_pki::Chain;
use countersign_tls::{
    Clients, Established, Expected, Identity, Inbound, Outbound, Present, Slice, Trust, accept,
    dial,
};
use rustls::AlertDescription;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;

use crate::ends::{
    CUT_OFF, Shop, door, end_of, exchange, identity, name, revoking, rules_on, shake, slice, trust,
};
use crate::lifetime::ANYBODY;
use crate::realm::{NODE, Realm, START, Svid};

const LEAK: Reason = Reason::KeyCompromise;

/// `web` and `orders`, and `guest` of another domain, issued through another node, who may come to `orders` as well.
struct Crowd {
    shop: Shop,
    svid: Svid,
    guest: Arc<Trust>,
}

impl Crowd {
    fn gather() -> Self {
        let shop = Shop::open();
        let partner = Realm::new("partner.example", 2);
        let svid = shop.realm.svid("/web", START, 3600);
        shop.web.set_identity(identity(&svid)).unwrap();
        let elsewhere = NodeTag::from_bytes([9; 8]);
        let guest = partner.svid_from("/guest", START, 3600, (elsewhere, 7));
        let held = slice(&[&shop.realm, &partner], ANYBODY);
        let guest = trust(&shop.clock, held.clone(), Some(&guest));
        shop.orders.apply(held.clone());
        shop.web.apply(held);
        Self { shop, svid, guest }
    }

    async fn visit(&self) -> (Established, Established) {
        shake(&self.guest, &self.shop.to_orders(), &self.shop.orders, &door()).await.both()
    }
}

/// The alert by which `to` refuses `from`.
async fn alert(from: &Arc<Trust>, outbound: &Outbound, to: &Arc<Trust>) -> AlertDescription {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let greeting = async {
        let (tcp, _) = listener.accept().await.unwrap();
        accept(to, tcp, &door()).await.unwrap_err()
    };
    let calling = async {
        let mut dialled = dial(from, address, outbound).await.unwrap();
        dialled.stream.read(&mut [0; 1]).await.unwrap_err()
    };
    let (_, error) = tokio::join!(greeting, calling);
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::AlertReceived(alert)) => *alert,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn every_kind_of_rule_on_a_dialler_cuts_it_and_nobody_else_and_lets_it_in_no_more() {
    for kind in 0..7 {
        let crowd = Crowd::gather();
        let Crowd { shop, svid, .. } = &crowd;
        let (mut web, mut orders) = shop.shake().await.both();
        let (mut guest, mut host) = crowd.visit().await;
        exchange(&mut web, &mut orders).await;
        exchange(&mut guest, &mut host).await;
        let rule = rules_on(svid, &shop.realm)[kind].clone();
        // Our own certificate is under the same authorities, and of the same node.
        let wide =
            matches!(rule, Revoked::Authority(_) | Revoked::Node { .. } | Revoked::Earlier { .. });

        let applied = shop.orders.apply(revoking(&shop.orders, LEAK, std::slice::from_ref(&rule)));
        let expected = if wide { 2 } else { 1 };
        assert_eq!((applied.cut, applied.draining), (expected, 0), "{rule}");
        assert_eq!(orders.stream.admitted().why_ended(), Some(Code::Revoked), "{rule}");
        assert_eq!(end_of(&mut orders).await, Code::Revoked);
        assert_eq!(end_of(&mut web).await, Code::PeerClosed);
        assert_eq!(applied.own.is_some(), wide, "{rule}");
        if wide {
            continue;
        }
        exchange(&mut guest, &mut host).await;
        let failure = shop.shake().await.refused_by_server(Code::Revoked);
        assert_eq!(failure.fact.peer, Some(svid.id.clone()));
        assert!(failure.detail.contains(&rule.to_string()), "{failure}");
        let alert = alert(&shop.web, &shop.to_orders(), &shop.orders).await;
        assert_eq!(alert, AlertDescription::CertificateRevoked, "{rule}");
        exchange(&mut guest, &mut host).await;
        crowd.visit().await;
    }
}

#[tokio::test]
async fn every_kind_of_rule_on_a_server_cuts_it_and_nobody_else_and_dials_it_no_more() {
    for kind in 0..6 {
        // The dialler is of the other domain, so that no rule covers it as well.
        let crowd = Crowd::gather();
        let Crowd { shop, guest: caller, .. } = &crowd;
        let served = shop.realm.svid("/orders", START, 3600);
        shop.orders.set_identity(identity(&served)).unwrap();
        let own = Realm::new("partner.example", 3);
        let held = slice(&[&shop.realm, &own], ANYBODY);
        let elsewhere = NodeTag::from_bytes([9; 8]);
        let stall = own.svid_from("/stall", START, 3600, (elsewhere, 7));
        let other = trust(&shop.clock, held.clone(), Some(&stall));
        let asking = own.svid_from("/guest", START, 3600, (elsewhere, 7));
        let caller = {
            caller.apply(held.clone());
            caller.set_identity(identity(&asking)).unwrap();
            caller
        };
        shop.orders.apply(held);
        let to_other = Outbound::service(name("orders"), Expected::Id(stall.id.clone()));
        let (mut near, mut far) =
            shake(caller, &shop.to_orders(), &shop.orders, &door()).await.both();
        let (mut kept, mut keeper) = shake(caller, &to_other, &other, &door()).await.both();

        let rule = rules_on(&served, &shop.realm)[kind].clone();
        let applied = caller.apply(revoking(caller, LEAK, std::slice::from_ref(&rule)));
        assert_eq!((applied.cut, applied.draining, applied.own), (1, 0, None), "{rule}");
        assert_eq!(end_of(&mut near).await, Code::Revoked, "{rule}");
        assert_eq!(end_of(&mut far).await, Code::PeerClosed);
        exchange(&mut kept, &mut keeper).await;
        let shaken = shake(caller, &shop.to_orders(), &shop.orders, &door()).await;
        shaken.refused_by_client(Code::Revoked);
        shake(caller, &to_other, &other, &door()).await.both();
    }
}

#[tokio::test]
async fn rules_on_others_and_on_what_came_before_cover_nothing() {
    let crowd = Crowd::gather();
    let Crowd { shop, svid, .. } = &crowd;
    let (mut web, mut orders) = shop.shake().await.both();
    let other = Realm::new("other.example", 4);
    let stranger = other.svid_from("/web", START, 3600, (NodeTag::from_bytes([5; 8]), 7));
    let own = svid.chain.leaf().provenance().unwrap().revision;
    let mut rules = rules_on(&stranger, &other).to_vec();
    rules.push(Revoked::Identity { id: svid.id.clone(), before: own });
    rules.push(Revoked::Node { id: NodeId::from_bytes([1; 16]), tag: NODE, before: own });
    // An identity below, one beside, and keys where they do not belong.
    let below = svid.id.trust_domain().with_path("/web/admin").unwrap();
    rules.push(Revoked::Identity { id: below, before: CUT_OFF });
    rules.push(Revoked::Key(shop.realm.issuer.key_id()));
    rules.push(Revoked::Authority(svid.chain.leaf().key_id()));
    for trust in [&shop.orders, &shop.web] {
        let applied = trust.apply(revoking(trust, LEAK, &rules));
        assert_eq!((applied.cut, applied.own), (0, None));
    }
    exchange(&mut web, &mut orders).await;
    shop.shake().await.both();
}

#[tokio::test]
async fn a_newer_revision_is_let_in_where_the_older_was_cut() {
    let crowd = Crowd::gather();
    let Crowd { shop, svid, .. } = &crowd;
    let rule = Revoked::Identity { id: svid.id.clone(), before: CUT_OFF };
    shop.orders.apply(revoking(&shop.orders, LEAK, &[rule]));
    shop.shake().await.refused_by_server(Code::Revoked);
    for (number, good) in [(6, false), (8, true), (9, true)] {
        let svid = shop.realm.svid_from("/web", START, 3600, (NODE, number));
        shop.web.set_identity(identity(&svid)).unwrap();
        let shaken = shop.shake().await;
        if good {
            shaken.both();
        } else {
            shaken.refused_by_server(Code::Revoked);
        }
    }
    // A later incarnation is later, whatever its number.
    let later = Revision { incarnation: 2, number: 1 };
    let rule = Revoked::Identity { id: svid.id.clone(), before: later };
    shop.orders.apply(revoking(&shop.orders, LEAK, &[rule]));
    shop.shake().await.refused_by_server(Code::Revoked);
}

#[tokio::test]
async fn a_certificate_that_does_not_say_when_it_was_authorised_is_covered_by_a_rule_on_its_identity()
 {
    let shop = Shop::open();
    let svid = shop.realm.svid_from("/web", START, 3600, (NODE, 1_000_000));
    // Another identifier for our extension: the certificate is as good as before, and says nothing.
    let node = [7; 8];
    let tbs = svid.chain.leaf().tbs();
    let at = tbs.windows(8).rposition(|window| window == node).unwrap();
    let oid = tbs[..at].windows(2).rposition(|window| window == [6, 19]).unwrap();
    let from = &tbs[oid..at];
    let mut to = from.to_vec();
    to[20] ^= 1;
    let ders = shop.realm.altered(&svid, from, &to);
    let chain = Chain::from_ders(ders.iter().map(Vec::as_slice)).unwrap();
    assert_eq!(chain.leaf().provenance(), None);
    shop.web.set_identity(Identity::new(chain, &svid.pkcs8).unwrap()).unwrap();
    let (_web, mut orders) = shop.shake().await.both();

    // A node's rule cannot speak of what names no node.
    let node = Revoked::Node { id: NodeId::from_bytes([1; 16]), tag: NODE, before: CUT_OFF };
    let own = shop.realm.svid_from("/orders", START, 3600, (NODE, 1_000_000));
    shop.orders.set_identity(identity(&own)).unwrap();
    shop.shake().await.both();
    let applied = shop.orders.apply(revoking(&shop.orders, LEAK, &[node]));
    assert_eq!(orders.stream.admitted().why_ended(), Some(Code::Revoked), "our own was of it");
    assert_eq!(applied.own, None, "and our own new one is not");
    let rule = Revoked::Identity { id: svid.id.clone(), before: CUT_OFF };
    let (_web, mut again) = shop.shake().await.both();
    shop.orders.apply(revoking(&shop.orders, LEAK, &[rule]));
    assert_eq!(end_of(&mut again).await, Code::Revoked);
    assert_eq!(end_of(&mut orders).await, Code::Revoked);
    shop.shake().await.refused_by_server(Code::Revoked);
}

#[tokio::test]
async fn the_control_plane_is_no_way_around() {
    let crowd = Crowd::gather();
    let Crowd { shop, svid, .. } = &crowd;
    let inbound = Inbound { clients: Clients::Optional, ..Inbound::control() };
    let control = Outbound::control(shop.to_orders().expected);
    let nobody = Outbound { present: Present::Nothing, ..control.clone() };
    let (_web, mut agent) = shake(&shop.web, &control, &shop.orders, &inbound).await.both();
    let (mut anonymous, mut pending) =
        shake(&shop.web, &nobody, &shop.orders, &inbound).await.both();
    let rule = rules_on(svid, &shop.realm)[2].clone();
    assert_eq!(shop.orders.apply(revoking(&shop.orders, LEAK, &[rule])).cut, 1);
    assert_eq!(end_of(&mut agent).await, Code::Revoked);
    let shaken = shake(&shop.web, &control, &shop.orders, &inbound).await;
    shaken.refused_by_server(Code::Revoked);
    // Who showed nothing is not covered, and stays who it was.
    exchange(&mut anonymous, &mut pending).await;
    let own = shop.orders.identity().unwrap().leaf().key_id();
    assert_eq!(shop.orders.apply(revoking(&shop.orders, LEAK, &[Revoked::Key(own)])).cut, 1);
    assert_eq!(end_of(&mut pending).await, Code::Revoked, "it was ours that was shown");
}

#[tokio::test]
async fn our_own_revoked_credential_is_shown_no_more_and_ends_what_it_made_both_ways() {
    for kind in 0..6 {
        let shop = Shop::open();
        // `orders` calls as well, and is called.
        let both = r#"@unscoped("test") permit (principal, action == Action::"connect", resource == Service::"orders");"#;
        for trust in [&shop.web, &shop.orders] {
            trust.apply(slice(&[&shop.realm], both));
        }
        let svid = shop.realm.svid("/orders", START, 3600);
        shop.orders.set_identity(identity(&svid)).unwrap();
        let web = shop.realm.domain.with_path("/web").unwrap();
        let to_web = Outbound::service(name("orders"), Expected::Id(web));
        let (mut web_in, mut orders_in) = shop.shake().await.both();
        let (mut orders_out, mut web_out) =
            shake(&shop.orders, &to_web, &shop.web, &door()).await.both();

        let rule = rules_on(&svid, &shop.realm)[kind].clone();
        let applied = shop.orders.apply(revoking(&shop.orders, LEAK, std::slice::from_ref(&rule)));
        assert_eq!(applied.cut, 2, "{rule}");
        assert_eq!(applied.own.unwrap().target, rule);
        for ours in [&mut orders_in, &mut orders_out] {
            assert_eq!(end_of(ours).await, Code::Revoked, "{rule}");
        }
        for theirs in [&mut web_in, &mut web_out] {
            assert_eq!(end_of(theirs).await, Code::PeerClosed, "{rule}");
        }
        assert_eq!(shop.orders.identity().map(|own| own.id().clone()), None);
        // Nobody has told the other side yet. It is we who show nothing.
        let shaken = shop.shake().await;
        assert_eq!(shaken.server.unwrap_err().code, Code::NoOwnIdentity, "{rule}");
        assert!(shaken.client.is_err() || shaken.told.is_some());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let dialled = dial(&shop.orders, listener.local_addr().unwrap(), &to_web).await;
        assert_eq!(dialled.unwrap_err().code, Code::NoOwnIdentity, "{rule}");

        let refused = shop.orders.set_identity(identity(&svid)).unwrap_err();
        assert_eq!(refused.code, Code::Revoked, "{rule}");
        assert!(shop.orders.identity().is_none());
        let renewed = shop.realm.svid_from("/orders", START, 3600, (NODE, 8));
        match rule {
            Revoked::Authority(_) => {
                let refused = shop.orders.set_identity(identity(&renewed)).unwrap_err();
                assert_eq!(refused.code, Code::Revoked, "the same authority signed it");
            }
            Revoked::Serial(_) | Revoked::Identity { .. } | Revoked::Key(_) => {
                shop.orders.set_identity(identity(&renewed)).unwrap();
                shop.shake().await.both();
            }
            // The other end is of the same node or incarnation, and was not re-issued.
            Revoked::Node { .. } | Revoked::Earlier { .. } => {
                shop.orders.set_identity(identity(&renewed)).unwrap();
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn handshakes_that_race_a_revocation_leave_nothing_open() {
    let crowd = Arc::new(Crowd::gather());
    let rule = rules_on(&crowd.svid, &crowd.shop.realm)[1].clone();
    for _ in 0..10 {
        let orders = &crowd.shop.orders;
        orders.apply(revoking(orders, LEAK, &[]));
        let racing: Vec<_> = (0..16)
            .map(|_| {
                let crowd = Arc::clone(&crowd);
                tokio::spawn(async move { crowd.shop.shake().await })
            })
            .collect();
        while orders.connections() == 0 && !racing.iter().all(|task| task.is_finished()) {
            tokio::task::yield_now().await;
        }
        orders.apply(revoking(orders, LEAK, std::slice::from_ref(&rule)));
        for task in racing {
            match task.await.unwrap().server {
                Ok(mut orders) => assert_eq!(end_of(&mut orders).await, Code::Revoked),
                Err(failure) => assert_eq!(failure.code, Code::Revoked, "{failure}"),
            }
        }
        assert_eq!(orders.connections(), 0);
    }
}

#[tokio::test]
async fn who_has_closed_lets_nothing_in_and_opens_for_nothing_that_comes_later() {
    let shop = Shop::open();
    let (_web, mut orders) = shop.shake().await.both();
    let held = Slice::clone(&shop.orders.slice());
    let svid = shop.realm.svid("/orders", START, 3600);
    shop.orders.close();
    end_of(&mut orders).await;
    assert!(orders.stream.admitted().why_ended().is_some());
    for _ in 0..2 {
        assert!(shop.shake().await.server.is_err());
        // A slice or a renewed certificate that was under way.
        shop.orders.apply(held.clone());
        let refused = shop.orders.set_identity(identity(&svid)).unwrap_err();
        assert_eq!(refused.code, Code::NoOwnIdentity);
    }
}
