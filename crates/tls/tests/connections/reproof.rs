//! Connections that outlive the certificates by which they were made, and what may not make them do so.

use std::sync::Arc;
use std::time::Duration;

use countersign_identity::{Attested, Clock, Code, Reason, Revoked, SelectorKind, Timestamp};
use countersign_tls::{
    Established, Expired, Inbound, Outbound, REPROOF_ALPN, REPROOF_NAMES_MAX, REPROOF_TIMEOUT,
    ReproofFault, Trust, accept, answer_reproof, dial,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::ends::{Shop, door, end_of, exchange, identity, revoking, shake, slice, trust};
use crate::lifetime::{ANYBODY, run};
use crate::realm::START;

const LIFE: u64 = 3600;

/// `orders` behind a door that stays open, and `web` with one connection to it.
struct Standing {
    shop: Shop,
    web: Established,
    orders: Established,
    stop: CancellationToken,
    address: std::net::SocketAddr,
    proving: JoinHandle<()>,
    _serving: JoinHandle<()>,
}

impl Standing {
    async fn open(alpn: Vec<Vec<u8>>) -> Self {
        Self::open_to(alpn, Expired::End).await
    }

    async fn open_to(alpn: Vec<Vec<u8>>, expired: Expired) -> Self {
        Self::of(Shop::with_policy(ANYBODY), alpn, expired).await
    }

    async fn of(shop: Shop, alpn: Vec<Vec<u8>>, expired: Expired) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let outbound = shop.to_orders();
        let (first, second) = tokio::join!(dial(&shop.web, address, &outbound), async {
            let (tcp, _) = listener.accept().await.unwrap();
            accept(&shop.orders, tcp, &Inbound { expired, ..door() }).await
        });
        let (web, orders) = (first.unwrap(), second.unwrap());
        let stop = CancellationToken::new();
        for trust in [&shop.web, &shop.orders] {
            let (_running, ends) = run(trust);
            let stop = stop.clone();
            tokio::spawn(async move {
                stop.cancelled().await;
                ends.cancel();
            });
        }
        let proving = tokio::spawn(Arc::clone(&shop.web).keep_proven(|_fact| {}, stop.clone()));
        let called = Arc::clone(&shop.orders);
        let serving = tokio::spawn(async move {
            let inbound = Inbound { alpn, ..door() };
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let Ok(established) = accept(&called, tcp, &inbound).await else { continue };
                let stream = established.stream;
                if stream.alpn() == Some(REPROOF_ALPN) {
                    answer_reproof(&called, stream).await.ok();
                }
            }
        });
        Self { shop, web, orders, stop, address, proving, _serving: serving }
    }

    fn renew(&self) {
        let now = self.shop.clock.now();
        self.shop.web.set_identity(identity(&self.shop.realm.svid("/web", now, LIFE))).unwrap();
        let orders = self.shop.realm.svid("/orders", now, LIFE);
        self.shop.orders.set_identity(identity(&orders)).unwrap();
    }

    fn ends(&self) -> [Timestamp; 2] {
        [&self.web, &self.orders].map(|end| end.stream.admitted().expires())
    }

    /// Lets time pass to shortly before the end, and waits until both sides count this one.
    async fn proven_until(&self, end: Timestamp) {
        let now = self.ends()[0].min(self.ends()[1]) - Duration::from_secs(60);
        self.shop.clock.set(now);
        let looking = async {
            while self.ends() != [end; 2] {
                self.shop.clock.advance(Duration::from_millis(50));
                tokio::task::yield_now().await;
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), looking).await.expect("it is not proven");
    }
}

fn after(secs: u64) -> Timestamp {
    START + Duration::from_secs(secs)
}

/// Says what a dialler of re-proofs says, as `from`, and tells the answers; none when the door closes.
async fn say(from: &Arc<Trust>, standing: &Standing, names: &[[u8; 32]]) -> Option<Vec<u8>> {
    let outbound = Outbound { alpn: vec![REPROOF_ALPN.to_vec()], ..standing.shop.to_orders() };
    let mut stream = dial(from, standing.address, &outbound).await.unwrap().stream;
    let count = u16::try_from(names.len()).unwrap();
    stream.write_all(&[&count.to_be_bytes()[..], &names.concat()].concat()).await.ok()?;
    stream.flush().await.ok()?;
    let mut answers = vec![0; names.len()];
    stream.read_exact(&mut answers).await.ok()?;
    Some(answers)
}

fn name_of(end: &Established) -> [u8; 32] {
    end.stream.export("EXPORTER-countersign-reproof").unwrap()
}

/// A connection of which `orders` has counted a proof after both had renewed at half of their lifetimes, and `web` has heard
/// nothing of it; and its name.
async fn half_proven() -> (Standing, [u8; 32]) {
    let standing = Standing::open(vec![REPROOF_ALPN.to_vec()]).await;
    standing.shop.clock.set(after(LIFE / 2));
    standing.renew();
    let name = name_of(&standing.web);
    assert_eq!(say(&standing.shop.web, &standing, &[name]).await, Some(vec![1]));
    assert_eq!(standing.ends(), [after(LIFE), after(LIFE / 2 + LIFE)]);
    (standing, name)
}

#[tokio::test]
async fn a_door_for_bytes_lets_in_who_names_a_protocol_of_their_own() {
    let shop = Shop::with_policy(ANYBODY);
    let inbound = Inbound { alpn: vec![REPROOF_ALPN.to_vec()], ..door() };
    let outbound = Outbound { alpn: vec![b"postgresql".to_vec()], ..shop.to_orders() };
    let (mut web, mut orders) = shake(&shop.web, &outbound, &shop.orders, &inbound).await.both();
    assert_eq!(web.stream.alpn(), None);
    exchange(&mut web, &mut orders).await;
}

#[tokio::test]
async fn peer_that_proved_its_connection_once_can_and_is_not_kept_when_it_does_not_any_more() {
    let mut standing = Standing::open_to(vec![REPROOF_ALPN.to_vec()], Expired::Keep).await;
    let renewed = after(LIFE / 2);
    standing.shop.clock.set(renewed);
    standing.renew();
    standing.proven_until(renewed + Duration::from_secs(LIFE)).await;
    exchange(&mut standing.web, &mut standing.orders).await;
    standing.shop.clock.set(renewed + Duration::from_secs(LIFE + 1));
    assert_eq!(standing.orders.stream.admitted().ended().await, Code::Expired);
    standing.stop.cancel();
}

#[tokio::test]
async fn a_connection_outlives_many_lifetimes_of_its_certificates_and_none_of_a_revoked_one() {
    let mut standing = Standing::open(vec![REPROOF_ALPN.to_vec()]).await;
    assert_eq!(standing.ends(), [after(LIFE); 2]);
    let first = standing.shop.web.identity().unwrap().leaf().key_id();
    for _ in 0..5 {
        let renewed = standing.ends()[0] - Duration::from_secs(LIFE / 2);
        standing.shop.clock.set(renewed);
        standing.renew();
        standing.proven_until(renewed + Duration::from_secs(LIFE)).await;
        exchange(&mut standing.web, &mut standing.orders).await;
    }
    let Standing { shop, web, orders, .. } = &mut standing;
    assert!(after(3 * LIFE) < orders.stream.admitted().expires());
    // It does not stand by its first certificate any more, but by the last one.
    let rule = [Revoked::Key(first)];
    assert_eq!(shop.orders.apply(revoking(&shop.orders, Reason::KeyCompromise, &rule)).cut, 0);
    exchange(web, orders).await;
    let last = shop.web.identity().unwrap().leaf().key_id();
    let rule = [Revoked::Key(last)];
    assert!(0 < shop.orders.apply(revoking(&shop.orders, Reason::KeyCompromise, &rule)).cut);
    assert_eq!(end_of(orders).await, Code::Revoked);
    assert_eq!(end_of(web).await, Code::PeerClosed);
    standing.stop.cancel();
}

#[tokio::test]
async fn our_own_last_credential_counts_as_well() {
    let mut standing = Standing::open(vec![REPROOF_ALPN.to_vec()]).await;
    standing.shop.clock.set(after(LIFE / 2));
    standing.renew();
    standing.proven_until(after(LIFE / 2 + LIFE)).await;
    let Standing { shop, web, orders, .. } = &mut standing;
    let own = [Revoked::Key(shop.orders.identity().unwrap().leaf().key_id())];
    assert!(0 < shop.orders.apply(revoking(&shop.orders, Reason::KeyCompromise, &own)).cut);
    assert_eq!(end_of(orders).await, Code::Revoked);
    assert_eq!(end_of(web).await, Code::PeerClosed);
    standing.stop.cancel();
}

#[tokio::test]
async fn without_renewal_or_with_a_peer_that_knows_nothing_of_it_a_connection_ends_in_time() {
    for alpn in [vec![REPROOF_ALPN.to_vec()], vec![b"h2".to_vec()], vec![]] {
        let mut standing = Standing::open(alpn.clone()).await;
        if alpn != [REPROOF_ALPN] {
            standing.shop.clock.set(after(LIFE / 2));
            standing.renew();
        }
        standing.shop.clock.set(after(LIFE - 60));
        for _ in 0..40 {
            standing.shop.clock.advance(Duration::from_secs(1));
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        assert_eq!(standing.ends(), [after(LIFE); 2]);
        exchange(&mut standing.web, &mut standing.orders).await;
        standing.shop.clock.set(after(LIFE) + Duration::from_micros(1));
        standing.orders.stream.admitted().ended().await;
        standing.web.stream.admitted().ended().await;
        standing.stop.cancel();
    }
}

#[tokio::test]
async fn nobody_else_can_prove_a_connection_and_nothing_shortens_it() {
    let standing = Standing::open(vec![REPROOF_ALPN.to_vec()]).await;
    let Standing { shop, web, orders, .. } = &standing;
    let name = name_of(web);
    assert_eq!(name, name_of(orders));
    // Somebody else who may come in, and even knows the name.
    let payments = shop.realm.svid("/payments", START, 2 * LIFE);
    let payments = trust(&shop.clock, slice(&[&shop.realm], ANYBODY), Some(&payments));
    assert_eq!(say(&payments, &standing, &[name]).await, Some(vec![0]));
    // A certificate that ends earlier, or at the same time.
    let short = shop.realm.svid("/web", START, LIFE / 2);
    shop.web.set_identity(identity(&short)).unwrap();
    assert_eq!(say(&shop.web, &standing, &[name]).await, Some(vec![0]));
    assert_eq!(standing.ends(), [after(LIFE); 2]);
    // The right one, among names that nobody has.
    let long = shop.realm.svid("/web", START, 2 * LIFE);
    shop.web.set_identity(identity(&long)).unwrap();
    assert_eq!(say(&shop.web, &standing, &[[1; 32], name, [2; 32]]).await, Some(vec![0, 1, 0]));
    assert_eq!(orders.stream.admitted().expires(), after(2 * LIFE));
    // Whoever asks again may not have heard it, and is told again; it proves nothing more.
    assert_eq!(say(&shop.web, &standing, &[name]).await, Some(vec![1]));
    shop.web.set_identity(identity(&short)).unwrap();
    assert_eq!(say(&shop.web, &standing, &[name]).await, Some(vec![0]));
    assert_eq!(orders.stream.admitted().expires(), after(2 * LIFE));
    standing.stop.cancel();
}

#[tokio::test]
async fn a_connection_whose_proof_was_counted_and_not_answered_is_proven_by_the_next_try() {
    let (mut standing, _name) = half_proven().await;
    standing.proven_until(after(LIFE / 2 + LIFE)).await;
    exchange(&mut standing.web, &mut standing.orders).await;
    standing.stop.cancel();
}

#[tokio::test]
async fn a_proof_that_was_not_answered_is_answered_to_certificates_that_end_with_those_it_showed() {
    let (mut standing, name) = half_proven().await;
    // Others, of the same second; and one of a slower clock, which `orders` shows for a while.
    standing.renew();
    let shop = &standing.shop;
    let sooner = shop.realm.svid("/orders", after(LIFE / 2), LIFE - 1);
    shop.orders.set_identity(identity(&sooner)).unwrap();
    assert_eq!(say(&shop.web, &standing, &[name]).await, Some(vec![1]));
    standing.renew();
    standing.proven_until(after(LIFE / 2 + LIFE)).await;
    exchange(&mut standing.web, &mut standing.orders).await;
    standing.stop.cancel();
}

#[tokio::test]
async fn a_proof_that_gains_nothing_counts_for_none_and_the_next_one_waits_until_there_may_be_more()
{
    let mut standing = Standing::open(vec![REPROOF_ALPN.to_vec()]).await;
    // Here it is asked by hand.
    standing.stop.cancel();
    (&mut standing.proving).await.unwrap();
    let Standing { shop, web, .. } = &standing;
    let prove = async || {
        let mut due = shop.web.reproofs_due();
        assert!(due.len() <= 1);
        let proven = shop.web.reprove(due.pop()?, |_fact| {}).await;
        Some(proven.unwrap())
    };
    // `orders` is late to renew, `web` is not.
    let long = shop.realm.svid("/web", START, 2 * LIFE);
    shop.web.set_identity(identity(&long)).unwrap();
    shop.clock.set(web.stream.admitted().proof_due());
    assert_eq!(prove().await, Some(1), "what `web` shows lasts longer");
    shop.clock.set(web.stream.admitted().proof_due());
    let (mut tries, end) = (0, after(LIFE));
    while shop.clock.now() + Duration::from_secs(1) < end {
        match prove().await {
            Some(proven) => {
                assert_eq!(proven, 0, "it is answered, and nothing is gained");
                assert_eq!(prove().await, None, "nor asked again at once");
                tries += 1;
            }
            None => shop.clock.advance(Duration::from_millis(500)),
        }
    }
    assert!((10..40).contains(&tries), "{tries} tries");
    assert_eq!(web.stream.admitted().expires(), end);
    let late = shop.realm.svid("/orders", START, 2 * LIFE);
    shop.orders.set_identity(identity(&late)).unwrap();
    assert_eq!(prove().await, Some(1), "and at last it is");
    assert_eq!(standing.ends(), [after(2 * LIFE); 2]);
}

#[tokio::test]
async fn of_many_connections_exactly_those_named_are_proven_also_half_closed_ones() {
    let standing = Standing::open(vec![REPROOF_ALPN.to_vec()]).await;
    let Standing { shop, .. } = &standing;
    let mut many = Vec::new();
    for _ in 0..150 {
        let shaken = shake(&shop.web, &shop.to_orders(), &shop.orders, &door()).await;
        many.push(shaken.both());
    }
    let payments = shop.realm.svid("/payments", START, LIFE);
    let payments = trust(&shop.clock, slice(&[&shop.realm], ANYBODY), Some(&payments));
    let (other, _orders) = shake(&payments, &shop.to_orders(), &shop.orders, &door()).await.both();
    let (web, orders) = &mut many[70];
    for _ in 0..10 {
        exchange(web, orders).await;
    }
    web.stream.shutdown().await.unwrap();
    assert_eq!(orders.stream.read(&mut [0; 8]).await.unwrap(), 0);
    let chosen = [0, 70, 149];
    let [first, second, third] = chosen.map(|at| name_of(&many[at].0));
    let long = shop.realm.svid("/web", START, 2 * LIFE);
    shop.web.set_identity(identity(&long)).unwrap();
    let names = [first, name_of(&other), second, third];
    assert_eq!(say(&shop.web, &standing, &names).await, Some(vec![1, 0, 1, 1]));
    for (at, (_, orders)) in many.iter().enumerate() {
        let proven = orders.stream.admitted().expires() == after(2 * LIFE);
        assert_eq!(proven, chosen.contains(&at), "{at}");
    }
    standing.stop.cancel();
}

#[tokio::test]
async fn who_is_attested_by_less_than_before_proves_no_connection() {
    let mut shop = Shop::with_policy(ANYBODY);
    shop.realm.attested = Attested::default().and(SelectorKind::UnixUid).and(SelectorKind::Launch);
    shop.web.set_identity(identity(&shop.realm.svid("/web", START, LIFE))).unwrap();
    let mut standing = Standing::of(shop, vec![REPROOF_ALPN.to_vec()], Expired::End).await;
    let name = name_of(&standing.web);
    let attested = Attested::default().and(SelectorKind::UnixUid);
    for (attested, proven) in [(attested, 0), (attested.and(SelectorKind::Launch), 1)] {
        standing.shop.realm.attested = attested;
        let long = standing.shop.realm.svid("/web", START, 2 * LIFE);
        standing.shop.web.set_identity(identity(&long)).unwrap();
        assert_eq!(say(&standing.shop.web, &standing, &[name]).await, Some(vec![proven]));
    }
    assert_eq!(standing.orders.stream.admitted().expires(), after(2 * LIFE));
    standing.stop.cancel();
}

#[tokio::test]
async fn what_retires_or_was_ended_is_not_proven() {
    let standing = Standing::open(vec![REPROOF_ALPN.to_vec()]).await;
    let Standing { shop, web, orders, .. } = &standing;
    let name = name_of(web);
    let rule = [Revoked::Key(shop.web.identity().unwrap().leaf().key_id())];
    shop.orders.apply(revoking(&shop.orders, Reason::Superseded, &rule));
    let long = shop.realm.svid("/web", START, 2 * LIFE);
    shop.web.set_identity(identity(&long)).unwrap();
    assert_eq!(say(&shop.web, &standing, &[name]).await, Some(vec![0]));
    assert!(orders.stream.admitted().why_retiring().is_some());
    shop.orders.apply(revoking(&shop.orders, Reason::KeyCompromise, &rule));
    assert_eq!(say(&shop.web, &standing, &[name]).await, Some(vec![0]));
    assert_eq!(orders.stream.admitted().expires(), after(LIFE));
    // Whoever is revoked proves nothing at all.
    let rule = [Revoked::Key(long.chain.leaf().key_id())];
    shop.orders.apply(revoking(&shop.orders, Reason::KeyCompromise, &rule));
    assert_eq!(say(&shop.web, &standing, &[name]).await, None);
    standing.stop.cancel();
}

#[tokio::test]
async fn what_a_reproof_names_is_bounded_and_so_is_its_time() {
    let shop = Shop::open();
    let inbound = Inbound { alpn: vec![REPROOF_ALPN.to_vec()], ..door() };
    let outbound = Outbound { alpn: vec![REPROOF_ALPN.to_vec()], ..shop.to_orders() };
    let (mut web, orders) = shake(&shop.web, &outbound, &shop.orders, &inbound).await.both();
    let count = u16::try_from(REPROOF_NAMES_MAX + 1).unwrap();
    web.stream.write_all(&count.to_be_bytes()).await.unwrap();
    web.stream.flush().await.unwrap();
    let fault = answer_reproof(&shop.orders, orders.stream).await.unwrap_err();
    assert!(matches!(fault, ReproofFault::Many { .. }), "{fault}");

    let (mut web, orders) = shake(&shop.web, &outbound, &shop.orders, &inbound).await.both();
    web.stream.write_all(&[0, 1, 7]).await.unwrap();
    web.stream.flush().await.unwrap();
    let called = Arc::clone(&shop.orders);
    let waiting = tokio::spawn(async move { answer_reproof(&called, orders.stream).await });
    while shop.clock.next_wake().is_none() {
        tokio::task::yield_now().await;
    }
    shop.clock.advance(REPROOF_TIMEOUT);
    let fault = waiting.await.unwrap().unwrap_err();
    assert!(matches!(fault, ReproofFault::Late), "{fault}");
}
