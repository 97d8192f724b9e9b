//! More peers, and more connections of one, than a door has places for.

use std::num::NonZeroUsize;
use std::sync::Arc;

use countersign_identity::{Clock, Code, SimClock, SystemClock, Timestamp};
use countersign_tls::{REPROOF_ALPN, Stream, connect};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::flood::{from, to_orders, visit_over};
use super::world::{PATIENCE, Proxy, Shop};
use crate::bounds::STANDING;
use crate::config::Protocol;
use crate::plan::{Connections, Manners};

const WEB_AND_PAYMENTS: &str = r#"
permit (principal == Workload::"web", action == Action::"connect", resource == Service::"orders");
permit (principal == Workload::"payments", action == Action::"connect", resource == Service::"orders");
"#;

/// The shop, whose door has so many places in all and for each peer, and another peer than `web`.
async fn open(all: usize, each: usize) -> (Shop, Proxy) {
    open_on(Arc::new(SystemClock::new()), all, each).await
}

async fn open_on(clock: Arc<dyn Clock>, all: usize, each: usize) -> (Shop, Proxy) {
    let connections = Connections { all, each: NonZeroUsize::new(each).unwrap() };
    let change = |manners: &mut Manners| manners.connections = connections;
    let shop = Shop::build(clock, Protocol::Http, change).await;
    shop.orders.enforce(WEB_AND_PAYMENTS, 2);
    let payments = Proxy::start(&shop.realm, "payments", WEB_AND_PAYMENTS).await;
    (shop, payments)
}

/// Comes in, has a request answered, and stays. None when that is not to be had.
async fn comes(shop: &Shop, peer: &Proxy) -> Option<Stream> {
    let tcp = TcpStream::connect(shop.orders.door()).await.unwrap();
    let mut stream = connect(&peer.plane.trust, tcp, &to_orders()).await.ok()?.stream;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: orders\r\n\r\n").await.ok()?;
    let mut head = [0; 12];
    stream.read_exact(&mut head).await.ok()?;
    assert_eq!(&head, b"HTTP/1.1 200");
    Some(stream)
}

/// The same, once who had its place before is seen to have gone.
async fn comes_at_last(shop: &Shop, peer: &Proxy) {
    let trying = async { while comes(shop, peer).await.is_none() {} };
    tokio::time::timeout(PATIENCE, trying).await.expect("a place that is free again can be had");
}

#[tokio::test]
async fn one_peer_fills_its_own_places_at_a_door_and_gives_them_back() {
    let (shop, payments) = open(100, 2).await;
    let first = comes(&shop, &shop.web).await.expect("the first place");
    let _second = comes(&shop, &shop.web).await.expect("the second place");
    assert!(comes(&shop, &shop.web).await.is_none(), "there is no third");
    let fact = shop.orders.refused(Code::TooManyConnections).await;
    assert_eq!(fact.detail, "the limit on connections of this peer is reached");
    let _other = comes(&shop, &payments).await.expect("another peer has places of its own");
    drop(first);
    comes_at_last(&shop, &shop.web).await;
}

#[tokio::test]
async fn one_peer_that_proves_and_proves_and_says_nothing_takes_nobodys_place_at_a_door() {
    let (shop, payments) = open(100, 2).await;
    let mut outbound = to_orders();
    outbound.alpn = vec![REPROOF_ALPN.to_vec()];
    let mut silent = Vec::new();
    let fills = async {
        // Each is let go after a while, so that it takes a few at once.
        while !shop.orders.has_refused(Code::TooManyConnections) {
            let tcp = TcpStream::connect(shop.orders.door()).await.unwrap();
            silent.extend(connect(&shop.web.plane.trust, tcp, &outbound).await.ok());
        }
    };
    tokio::time::timeout(PATIENCE, fills).await.expect("there is no end to it");
    let fact = shop.orders.refused(Code::TooManyConnections).await;
    assert_eq!(fact.detail, "the limit on connections of this peer is reached");
    let _own = comes(&shop, &shop.web).await.expect("its connections have places of their own");
    let _other = comes(&shop, &payments).await.expect("another peer has a place");
}

/// Of 2 places, which `web` has both, none is to be had by trying.
#[tokio::test]
async fn who_tries_again_and_again_over_its_share_is_turned_away_unread_and_let_in_when_it_may() {
    // No time passes, so that nothing is earned by what the tries take.
    let clock = Arc::new(SimClock::new(Timestamp::from_secs(1_790_000_000)));
    let (shop, payments) = open_on(clock.clone(), 100, 2).await;
    let door = shop.orders.door();
    let first = comes(&shop, &shop.web).await.expect("the first place");
    let _second = comes(&shop, &shop.web).await.expect("the second place");
    let before = shop.orders.handshakes();
    let hurries = async {
        loop {
            let had = shop.orders.handshakes();
            assert!(comes(&shop, &shop.web).await.is_none(), "there is no third");
            if shop.orders.handshakes() == had {
                break;
            }
        }
    };
    tokio::time::timeout(PATIENCE, hurries).await.expect("it is not limited");
    let whole = shop.orders.handshakes() - before;
    assert_eq!(whole, usize::try_from(STANDING.proven.burst).unwrap(), "what it may waste at once");
    // Nobody who comes from elsewhere notices it.
    let elsewhere = visit_over(from(2, door).await.unwrap(), &payments.plane.trust).await;
    assert!(elsewhere.is_ok_and(|it| it.starts_with("HTTP/1.1 200")), "another source");
    drop(first);
    clock.advance(STANDING.proven.every * 20);
    comes_at_last(&shop, &shop.web).await;
}

#[tokio::test]
async fn a_full_door_turns_away_unread_whoever_comes_and_takes_them_again() {
    let (shop, payments) = open(2, 100).await;
    let first = comes(&shop, &shop.web).await.expect("the first place");
    let _second = comes(&shop, &payments).await.expect("the second place");
    let handshakes = shop.orders.handshakes();
    for peer in [&shop.web, &payments] {
        assert!(comes(&shop, peer).await.is_none(), "there is no third");
    }
    let fact = shop.orders.refused(Code::TooManyConnections).await;
    assert_eq!(fact.detail, "the limit on connections of this door is reached");
    assert_eq!((fact.peer, fact.version), (None, ""), "nothing was read");
    assert_eq!(shop.orders.handshakes(), handshakes);
    drop(first);
    comes_at_last(&shop, &payments).await;
}
