//! What ends a live connection, and what does not.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::ends::{
    Shop, WEB_TO_ORDERS, clock, door, end_of, exchange, identity, revoking, rules_on, shake, slice,
    tcp_pair, trust,
};
use crate::realm::{Realm, START};
use countersign_identity::{Clock, Code, Reason, Revoked};
use countersign_tls::{
    Clients, DRAIN_TIMEOUT, Established, Expired, Inbound, Limits, Outbound, Present, Slice, Trust,
    accept, code_of_io,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

pub(crate) const ANYBODY: &str = r#"@unscoped("test") permit (principal, action == Action::"connect", resource == Service::"orders");"#;

#[tokio::test]
async fn a_connection_survives_that_its_own_certificates_are_renewed() {
    let shop = Shop::open();
    let (mut web, mut orders) = shop.shake().await.both();
    let (running, stop) = run(&shop.orders);
    for _ in 0..3 {
        shop.clock.advance(Duration::from_secs(1000));
        let now = shop.clock.now();
        shop.web.set_identity(identity(&shop.realm.svid("/web", now, 3600))).unwrap();
        shop.orders.set_identity(identity(&shop.realm.svid("/orders", now, 3600))).unwrap();
        exchange(&mut web, &mut orders).await;
    }
    assert_eq!(orders.stream.admitted().why_ended(), None);
    stop.cancel();
    running.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_never_rests_is_cut_all_the_same() {
    let shop = Shop::open();
    let (web, orders) = shop.shake().await.both();
    let rule = [Revoked::Key(shop.web.identity().unwrap().leaf().key_id())];
    let came = Arc::new(AtomicUsize::new(0));
    let busy = |end: Established| {
        let came = Arc::clone(&came);
        let (mut reads, mut writes) = tokio::io::split(end.stream);
        tokio::spawn(async move {
            let mut sink = vec![0; 1 << 16];
            let reading = async {
                loop {
                    match reads.read(&mut sink).await {
                        Ok(0) => break Code::PeerClosed,
                        Ok(read) => _ = came.fetch_add(read, Ordering::Relaxed),
                        Err(error) => break code_of_io(&error),
                    }
                }
            };
            let piece = vec![7; 1 << 20];
            let writing = async {
                loop {
                    if let Err(error) = writes.write_all(&piece).await {
                        break code_of_io(&error);
                    }
                }
            };
            tokio::select! {
                code = reading => code,
                code = writing => code,
            }
        })
    };
    let (web, orders) = (busy(web), busy(orders));
    let ends = async {
        while came.load(Ordering::Relaxed) < 1 << 23 {
            tokio::task::yield_now().await;
        }
        let slice = revoking(&shop.orders, Reason::KeyCompromise, &rule);
        let cutting = Arc::clone(&shop.orders);
        let applied = tokio::task::spawn_blocking(move || cutting.apply(slice));
        assert_eq!(applied.await.unwrap().cut, 1);
        (web.await.unwrap(), orders.await.unwrap())
    };
    let (_web, orders) = tokio::time::timeout(Duration::from_secs(60), ends).await.unwrap();
    assert_eq!(orders, Code::Revoked);
}

#[tokio::test]
async fn who_reads_or_writes_much_at_once_holds_nobody_up() {
    const AT_ONCE: usize = 64 * 1024;
    let shop = Shop::open();
    let (mut web, mut orders) = shop.shake().await.both();
    let much = vec![7; 1 << 20];
    let written = web.stream.write(&much).await.unwrap();
    assert!(written <= AT_ONCE, "{written} bytes");
    let writing = tokio::spawn(async move {
        web.stream.write_all(&much[written..]).await.unwrap();
        web.stream.flush().await.unwrap();
        web
    });
    let (mut sink, mut came) = (vec![0; 1 << 20], 0);
    while came < 1 << 20 {
        let read = orders.stream.read(&mut sink).await.unwrap();
        assert!(0 < read && read <= AT_ONCE, "{read} bytes");
        came += read;
    }
    writing.await.unwrap();
}

#[tokio::test]
async fn a_connection_ends_when_its_peers_certificate_expires_and_not_before() {
    let shop = Shop::open();
    let web = shop.realm.svid("/web", START, 60);
    shop.web.set_identity(identity(&web)).unwrap();
    let (running, stop) = run(&shop.orders);
    let (mut web, mut orders) = shop.shake().await.both();
    let admitted = orders.stream.admitted().clone();
    assert_eq!(admitted.expires(), START + Duration::from_secs(60));
    assert_eq!(admitted.retire_at(), START + Duration::from_secs(45));
    // The dialler is not cut by the server's certificate first, but knows when its own one ends.
    assert_eq!(web.stream.admitted().presented_ends(), admitted.expires());
    assert_eq!(web.stream.admitted().retire_at(), START + Duration::from_secs(45));

    shop.clock.set(admitted.expires());
    exchange(&mut web, &mut orders).await;
    assert_eq!(admitted.why_ended(), None, "the last moment is valid still");
    shop.clock.advance(Duration::from_micros(1));
    assert_eq!(admitted.ended().await, Code::Expired);
    assert_eq!(end_of(&mut orders).await, Code::Expired);
    assert_eq!(end_of(&mut web).await, Code::PeerClosed);
    stop.cancel();
    running.await.unwrap();
}

#[tokio::test]
async fn where_the_service_keeps_them_only_revocation_and_policy_end_what_has_expired() {
    let keep = Inbound { expired: Expired::Keep, ..door() };
    let later = Duration::from_secs(100_000);
    let open = async || {
        let shop = Shop::open();
        let svid = shop.realm.svid("/web", START, 60);
        shop.web.set_identity(identity(&svid)).unwrap();
        let (running, stop) = run(&shop.orders);
        let (mut web, mut orders) =
            shake(&shop.web, &shop.to_orders(), &shop.orders, &keep).await.both();
        shop.clock.advance(later);
        exchange(&mut web, &mut orders).await;
        // What is decided anew is decided without regard to the end.
        assert_eq!(shop.orders.apply(slice(&[&shop.realm], WEB_TO_ORDERS)).cut, 0);
        exchange(&mut web, &mut orders).await;
        assert_eq!(orders.stream.admitted().why_ended(), None);
        (shop, svid, orders, (running, stop))
    };
    let (shop, _, mut orders, (running, stop)) = open().await;
    assert_eq!(shop.orders.apply(slice(&[&shop.realm], "")).cut, 1);
    assert_eq!(end_of(&mut orders).await, Code::PolicyDenied);
    stop.cancel();
    running.await.unwrap();
    for kind in 0..6 {
        let (shop, svid, mut orders, (running, stop)) = open().await;
        let rule = rules_on(&svid, &shop.realm)[kind].clone();
        let slice = revoking(&shop.orders, Reason::KeyCompromise, &[rule]);
        assert_eq!(shop.orders.apply(slice).cut, 1, "rule {kind}");
        assert_eq!(end_of(&mut orders).await, Code::Revoked);
        stop.cancel();
        running.await.unwrap();
    }
    // A graceful cause gives it the time that it gives others.
    let (shop, svid, orders, (running, stop)) = open().await;
    let rule = rules_on(&svid, &shop.realm)[0].clone();
    let slice = revoking(&shop.orders, Reason::Superseded, &[rule]);
    assert_eq!(shop.orders.apply(slice).draining, 1);
    assert_eq!(orders.stream.admitted().why_ended(), None);
    shop.clock.advance(DRAIN_TIMEOUT + Duration::from_secs(1));
    assert_eq!(orders.stream.admitted().ended().await, Code::Revoked);
    stop.cancel();
    running.await.unwrap();
    // Whoever comes anew with what has expired is refused.
    let (shop, _, _orders, _run) = open().await;
    let fresh = shop.realm.svid("/orders", shop.clock.now(), 60);
    shop.orders.set_identity(identity(&fresh)).unwrap();
    let shaken = shake(&shop.web, &shop.to_orders(), &shop.orders, &keep).await;
    assert!(shaken.server.is_err());
}

#[tokio::test]
async fn a_stepped_clock_ends_what_has_expired_meanwhile() {
    let shop = Shop::open();
    let (running, stop) = run(&shop.orders);
    let (_web, orders) = shop.shake().await.both();
    shop.clock.advance(Duration::from_secs(86_400));
    assert_eq!(orders.stream.admitted().ended().await, Code::Expired);
    stop.cancel();
    running.await.unwrap();
}

#[tokio::test]
async fn removing_a_bundle_ends_what_hangs_from_it_and_only_that() {
    let shop = Shop::open();
    let partner = Realm::new("partner.example", 2);
    shop.orders.apply(slice(&[&shop.realm, &partner], ANYBODY));
    let guest = partner.svid("/guest", START, 3600);
    let mut guests = slice(&[&partner, &shop.realm], "");
    let guest_id = guest.id.clone();
    guests.policies = shop.orders.slice().policies.clone();
    let guest_trust = trust(&shop.clock, guests, Some(&guest));

    let (mut web, mut orders) = shop.shake().await.both();
    let shaken = shake(&guest_trust, &shop.to_orders(), &shop.orders, &door()).await;
    let (mut guest, mut host) = shaken.both();
    assert_eq!(host.stream.admitted().peer().unwrap().id, guest_id);
    exchange(&mut guest, &mut host).await;

    let applied = shop.orders.apply(slice(&[&shop.realm], ANYBODY));
    assert_eq!(applied.cut, 1);
    assert_eq!(host.stream.admitted().why_ended(), Some(Code::UnknownTrustDomain));
    assert_eq!(end_of(&mut guest).await, Code::PeerClosed);
    exchange(&mut web, &mut orders).await;

    // The same trust domain under a new root: what hangs from the old one ends.
    let moved = Realm::new("shop.example", 9);
    let applied = shop.orders.apply(slice(&[&moved], ANYBODY));
    assert_eq!(applied.cut, 1);
    assert_eq!(end_of(&mut orders).await, Code::UnknownIssuer);
    assert_eq!(end_of(&mut web).await, Code::PeerClosed);
}

#[tokio::test]
async fn a_policy_change_ends_exactly_what_it_denies() {
    let both = format!(
        r#"{WEB_TO_ORDERS} permit (principal == Workload::"payments", action == Action::"connect", resource == Service::"orders");"#
    );
    let shop = Shop::with_policy(&both);
    let payments = shop.realm.svid("/payments", START, 3600);
    let payments = trust(&shop.clock, slice(&[&shop.realm], &both), Some(&payments));
    let (mut web, mut orders) = shop.shake().await.both();
    let shaken = shake(&payments, &shop.to_orders(), &shop.orders, &door()).await;
    let (mut pay, mut to_pay) = shaken.both();
    exchange(&mut pay, &mut to_pay).await;

    assert_eq!(shop.orders.apply(slice(&[&shop.realm], &both)).cut, 0);
    exchange(&mut pay, &mut to_pay).await;
    assert_eq!(shop.orders.apply(slice(&[&shop.realm], WEB_TO_ORDERS)).cut, 1);
    assert_eq!(end_of(&mut to_pay).await, Code::PolicyDenied);
    assert_eq!(end_of(&mut pay).await, Code::PeerClosed);
    exchange(&mut web, &mut orders).await;
    let shaken = shake(&payments, &shop.to_orders(), &shop.orders, &door()).await;
    shaken.refused_by_server(Code::PolicyDenied);

    // The dialler enforces as well, on connections that it holds open.
    assert_eq!(shop.web.apply(slice(&[&shop.realm], "")).cut, 1);
    assert_eq!(end_of(&mut web).await, Code::PolicyDenied);
}

#[tokio::test]
async fn what_arrived_before_the_end_is_not_read_after_it() {
    let shop = Shop::open();
    let (mut web, mut orders) = shop.shake().await.both();
    exchange(&mut web, &mut orders).await;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    web.stream.write_all(b"secret plans").await.unwrap();
    web.stream.flush().await.unwrap();
    // One byte is read, so the rest lies decrypted in the stream.
    orders.stream.read_exact(&mut [0; 1]).await.unwrap();
    shop.orders.apply(slice(&[&shop.realm], ""));
    let error = orders.stream.read(&mut [0; 64]).await.unwrap_err();
    assert_eq!(countersign_tls::code_of_io(&error), Code::PolicyDenied);
    let error = orders.stream.write(b"more").await.unwrap_err();
    assert_eq!(countersign_tls::code_of_io(&error), Code::PolicyDenied);
}

#[tokio::test]
async fn a_dropped_connection_leaves_the_register_and_is_closed() {
    let shop = Shop::open();
    let (mut web, orders) = shop.shake().await.both();
    assert_eq!((shop.web.connections(), shop.orders.connections()), (1, 1));
    // Whoever still holds the handle does not keep the socket open.
    let admitted = orders.stream.admitted().clone();
    drop(orders);
    assert_eq!(shop.orders.connections(), 0);
    assert_eq!(end_of(&mut web).await, Code::PeerClosed);
    assert_eq!(admitted.why_ended(), None);
}

#[tokio::test]
async fn an_anonymous_connection_is_short() {
    let shop = Shop::open();
    let (running, stop) = run(&shop.orders);
    let inbound = Inbound { clients: Clients::Optional, ..Inbound::control() };
    let outbound =
        Outbound { present: Present::Nothing, ..Outbound::control(shop.to_orders().expected) };
    let shaken = shake(&shop.web, &outbound, &shop.orders, &inbound).await;
    let (_nobody, orders) = shaken.both();
    shop.clock.advance(Duration::from_secs(61));
    assert_eq!(orders.stream.admitted().ended().await, Code::Unauthenticated);
    stop.cancel();
    running.await.unwrap();
}

#[tokio::test]
async fn connections_and_handshakes_are_bounded() {
    let clock = clock();
    let realm = Realm::new("shop.example", 1);
    let limits = Limits { connections_max: 1, dialled_min: 0, handshakes_max: 1 };
    let small =
        |slice: Slice| Trust::with_limits(Arc::clone(&clock) as Arc<dyn Clock>, slice, limits);
    let orders = small(slice(&[&realm], WEB_TO_ORDERS));
    orders.set_identity(identity(&realm.svid("/orders", START, 3600))).unwrap();
    let shop = Shop { orders, ..Shop { clock: Arc::clone(&clock), ..Shop::open() } };
    let web = realm.svid("/web", START, 3600);
    let web = trust(&clock, slice(&[&realm], WEB_TO_ORDERS), Some(&web));

    let shaken = shake(&web, &shop.to_orders(), &shop.orders, &door()).await;
    let first: (Established, Established) = shaken.both();
    let shaken = shake(&web, &shop.to_orders(), &shop.orders, &door()).await;
    assert_eq!(shaken.server.unwrap_err().code, Code::TooManyConnections);
    drop(first);
    shake(&web, &shop.to_orders(), &shop.orders, &door()).await.both();

    // A handshake that hangs takes the only place.
    let (hanging, tcp) = tcp_pair().await;
    let (orders, inbound) = (Arc::clone(&shop.orders), door());
    let waiting = tokio::spawn(async move { accept(&orders, tcp, &inbound).await });
    while clock.next_wake().is_none() {
        tokio::task::yield_now().await;
    }
    let (_other, tcp) = tcp_pair().await;
    let failure = accept(&shop.orders, tcp, &door()).await.unwrap_err();
    assert_eq!(failure.code, Code::TooManyConnections);
    drop(hanging);
    assert_eq!(waiting.await.unwrap().unwrap_err().code, Code::PeerClosed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn handshakes_that_race_a_policy_change_leave_nothing_open() {
    let shop = Arc::new(Shop::open());
    for _ in 0..10 {
        shop.orders.apply(slice(&[&shop.realm], WEB_TO_ORDERS));
        let racing: Vec<_> = (0..16)
            .map(|_| {
                let shop = Arc::clone(&shop);
                tokio::spawn(async move { shop.shake().await })
            })
            .collect();
        // Somewhere in the middle of them: after the first one is through.
        while shop.orders.connections() == 0 && !racing.iter().all(|task| task.is_finished()) {
            tokio::task::yield_now().await;
        }
        shop.orders.apply(slice(&[&shop.realm], ""));
        for task in racing {
            match task.await.unwrap().server {
                Ok(mut orders) => assert_eq!(end_of(&mut orders).await, Code::PolicyDenied),
                Err(failure) => assert_eq!(failure.code, Code::PolicyDenied, "{failure}"),
            }
        }
        assert_eq!(shop.orders.connections(), 0);
    }
}

pub(crate) fn run(trust: &Arc<Trust>) -> (tokio::task::JoinHandle<()>, CancellationToken) {
    let stop = CancellationToken::new();
    (tokio::spawn(Arc::clone(trust).run(stop.clone())), stop)
}
