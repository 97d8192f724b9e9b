//! Doors behind a load balancer: who may say where a caller is, and what comes of it.

use std::net::SocketAddr;
use std::time::Duration;

use countersign_identity::Code;
use countersign_tls::connect;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixListener};

use super::flood::{from, to_orders};
use super::realm::Realm;
use super::world::{Proxy, Shop, WEB_TO_ORDERS, directory, inbound};
use crate::bounds::STANDING;
use crate::config::Protocol;
use crate::dial::Target;
use crate::plan::Preface;
use crate::proxy_protocol::{Told, header, parse};

/// The load balancer that the door knows is `127.1.0.1`.
async fn shop() -> Shop {
    let known = "127.1.0.1".parse().unwrap();
    Shop::open_as(Protocol::Http, |manners| manners.balancers = vec![known]).await
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// A connection through a load balancer at `127.1.0.N`, which says that it is for this one.
async fn through(number: u16, shop: &Shop, told: &str) -> TcpStream {
    let mut tcp = from(number, shop.orders.door()).await.unwrap();
    let header = header(address(told), shop.orders.door(), "spiffe://evil.example/admin");
    tcp.write_all(&header).await.unwrap();
    tcp
}

/// One request as `web`.
async fn asks(shop: &Shop, tcp: TcpStream) -> Option<String> {
    let mut stream = connect(&shop.web.plane.trust, tcp, &to_orders()).await.ok()?.stream;
    let request = b"GET / HTTP/1.1\r\nHost: orders\r\nConnection: close\r\n\r\n";
    stream.write_all(request).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    Some(answer)
}

#[tokio::test]
async fn a_caller_behind_a_load_balancer_is_seen_where_it_is_and_as_who_it_proved_to_be() {
    let shop = shop().await;
    let tcp = through(1, &shop, "192.0.2.7:4660").await;
    let answer = asks(&shop, tcp).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains("x-countersign-peer: spiffe://shop.example/web"), "{answer}");
    assert!(!answer.contains("evil") && !answer.contains("192.0.2.7"), "{answer}");
    let fact = shop.orders.fact(|fact| fact.code.is_none()).await;
    assert_eq!(fact.peer_address, Some(address("192.0.2.7:4660")));
    assert_eq!(fact.peer, Some(shop.realm.id("web")));
}

#[tokio::test]
async fn nobody_but_a_load_balancer_can_say_where_it_is() {
    let shop = shop().await;
    // Another machine, with the same header.
    let tcp = through(2, &shop, "127.1.0.1:1").await;
    let own = tcp.local_addr().unwrap();
    assert_eq!(asks(&shop, tcp).await, None);
    let fact = shop.orders.refused(Code::Forbidden).await;
    assert_eq!(fact.peer_address, Some(own));
    // A door that has no load balancer takes the header for what it is to TLS: noise.
    let plain = Shop::open(Protocol::Http).await;
    let tcp = through(1, &plain, "192.0.2.7:4660").await;
    let own = tcp.local_addr().unwrap();
    assert_eq!(asks(&plain, tcp).await, None);
    let fact = plain.orders.refused(Code::BadHandshake).await;
    assert_eq!(fact.peer_address, Some(own));
    assert_eq!(shop.program.reached() + plain.program.reached(), 0);
}

#[tokio::test]
async fn a_load_balancer_that_says_nothing_or_version_1_is_refused_with_a_sentence() {
    let shop = shop().await;
    let tcp = from(1, shop.orders.door()).await.unwrap();
    assert_eq!(asks(&shop, tcp).await, None);
    let fact = shop.orders.refused(Code::NotUnderstood).await;
    assert!(fact.detail.contains("does not begin with a header"), "{}", fact.detail);
    let mut tcp = from(1, shop.orders.door()).await.unwrap();
    tcp.write_all(b"PROXY TCP4 192.0.2.7 127.0.0.1 4660 443\r\n").await.unwrap();
    let fact = shop.orders.fact(|fact| fact.detail.contains("version 1")).await;
    assert_eq!(fact.code, Some(Code::NotUnderstood));
    let tcp = through(1, &shop, "192.0.2.7:4660").await;
    assert!(asks(&shop, tcp).await.is_some());
}

/// A header of the load balancer's own connection.
const OF_ITSELF: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";

#[tokio::test]
async fn a_load_balancer_that_looks_whether_we_live_is_answered_as_far_as_it_goes() {
    let shop = shop().await;
    // One that goes no further than the connection is no failure.
    let mut tcp = from(1, shop.orders.door()).await.unwrap();
    let silent = tcp.local_addr().unwrap();
    tcp.write_all(OF_ITSELF).await.unwrap();
    tcp.shutdown().await.unwrap();
    assert!(matches!(tcp.read(&mut [0; 1]).await, Ok(0) | Err(_)));
    // One that goes on is a caller like others, and has to be somebody.
    let mut tcp = from(1, shop.orders.door()).await.unwrap();
    let own = tcp.local_addr().unwrap();
    tcp.write_all(OF_ITSELF).await.unwrap();
    let answer = asks(&shop, tcp).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let fact = shop.orders.fact(|fact| fact.peer_address == Some(own)).await;
    assert_eq!((fact.code, fact.peer), (None, Some(shop.realm.id("web"))));
    assert!(!shop.orders.has_fact(|fact| fact.peer_address == Some(silent)));
    let mut tcp = from(1, shop.orders.door()).await.unwrap();
    tcp.write_all(OF_ITSELF).await.unwrap();
    tcp.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    shop.orders.refused(Code::BadHandshake).await;
    assert_eq!(shop.program.reached(), 1);
}

#[tokio::test]
async fn limits_are_of_those_behind_the_load_balancer_and_not_of_itself() {
    let shop = shop().await;
    // No TLS at all, so that a slow machine fails faster than failures are earned again. As many as it takes, and not all at
    // once: of many failures in one moment some facts are only counted.
    for _ in 0..STANDING.suspect.burst * 20 {
        if shop.orders.has_refused(Code::RateLimited) {
            break;
        }
        let mut tcp = through(1, &shop, "198.51.100.1:1").await;
        // The door may have closed it already.
        drop(tcp.write_all(b"GET / HTTP/1.1\r\n\r\n").await);
        while let Ok(1..) = tcp.read(&mut [0; 64]).await {}
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let fact = shop.orders.refused(Code::RateLimited).await;
    assert_eq!(fact.peer_address, Some(address("198.51.100.1:1")));
    let tcp = through(1, &shop, "198.51.100.2:1").await;
    assert!(asks(&shop, tcp).await.is_some());
}

/// A Unix socket has no addresses of its own: what the program is told of is what the load balancer said.
#[tokio::test]
async fn a_program_on_a_unix_socket_is_told_what_the_load_balancer_said_of_its_caller() {
    let directory = directory();
    let realm = Realm::new("shop.example", 1).await;
    let path = directory.path().join("program.sock");
    let program = UnixListener::bind(&path).unwrap();
    let mut orders = Proxy::start(&realm, "orders", WEB_TO_ORDERS).await;
    orders.listen_as(&[inbound(&Target::Unix(path), Protocol::Tcp)], |manners| {
        manners.preface = Preface::Address;
        manners.balancers = vec!["127.1.0.1".parse().unwrap()];
    });
    let web = Proxy::start(&realm, "web", WEB_TO_ORDERS).await;
    for source in ["192.0.2.7:4660", "[2001:db8::7]:4660"] {
        let mut tcp = from(1, orders.door()).await.unwrap();
        let said = header(address(source), orders.door(), "spiffe://evil.example/admin");
        tcp.write_all(&said).await.unwrap();
        let mut outbound = to_orders();
        outbound.alpn.clear();
        let mut stream = connect(&web.plane.trust, tcp, &outbound).await.unwrap().stream;
        stream.write_all(b"hello").await.unwrap();
        stream.flush().await.unwrap();
        let (mut behind, _) = program.accept().await.unwrap();
        let truth = header(address(source), orders.door(), "spiffe://shop.example/web");
        let mut seen = vec![0; truth.len() + 5];
        behind.read_exact(&mut seen).await.unwrap();
        assert_eq!(parse(&seen), Ok(Some((Told::From(address(source)), truth.len()))));
        assert_eq!(seen, [&truth[..], b"hello"].concat());
    }
}

#[tokio::test]
async fn a_program_that_asks_is_told_where_its_caller_is_and_who() {
    let directory = directory();
    let realm = Realm::new("shop.example", 1).await;
    let path = directory.path().join("program.sock");
    let program = UnixListener::bind(&path).unwrap();
    let mut orders = Proxy::start(&realm, "orders", WEB_TO_ORDERS).await;
    orders.listen_as(&[inbound(&Target::Unix(path), Protocol::Tcp)], |manners| {
        manners.preface = Preface::Address;
    });
    let web = Proxy::start(&realm, "web", WEB_TO_ORDERS).await;
    let tcp = from(7, orders.door()).await.unwrap();
    let own = tcp.local_addr().unwrap();
    let mut outbound = to_orders();
    outbound.alpn.clear();
    let mut stream = connect(&web.plane.trust, tcp, &outbound).await.unwrap().stream;
    // What the caller sends first is not taken for what the proxy says.
    let lie = header(address("192.0.2.7:4660"), orders.door(), "spiffe://shop.example/admin");
    stream.write_all(&lie).await.unwrap();
    stream.flush().await.unwrap();
    let (mut behind, _) = program.accept().await.unwrap();
    let truth = header(own, orders.door(), "spiffe://shop.example/web");
    let mut seen = vec![0; truth.len() + lie.len()];
    behind.read_exact(&mut seen).await.unwrap();
    assert_eq!(parse(&seen), Ok(Some((Told::From(own), truth.len()))));
    assert_eq!(seen, [truth, lie].concat());
}

/// A header of a caller whose address has no place in it.
const OF_SOMEBODY: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\0\0\0";

#[tokio::test]
async fn a_policy_sees_a_source_where_the_load_balancer_says_it_is_and_none_where_it_does_not_say()
{
    let shop = shop().await;
    let from_net = |net: &str| {
        let inside = format!(r#"context has source && context.source.isInRange(ip("{net}"))"#);
        WEB_TO_ORDERS.replace(");", &format!(") when {{ {inside} }};"))
    };
    shop.orders.enforce(&from_net("192.0.2.0/24"), 2);
    let inside = through(1, &shop, "192.0.2.7:4660").await;
    assert!(asks(&shop, inside).await.is_some());
    let outside = through(1, &shop, "198.51.100.7:4660").await;
    assert_eq!(asks(&shop, outside).await, None);
    let fact = shop.orders.refused(Code::PolicyDenied).await;
    assert_eq!(fact.peer_address, Some(address("198.51.100.7:4660")));
    // The load balancer's own address is nobody's source.
    shop.orders.enforce(&from_net("127.0.0.0/8"), 3);
    let mut tcp = from(1, shop.orders.door()).await.unwrap();
    tcp.write_all(OF_SOMEBODY).await.unwrap();
    let balancer = tcp.local_addr().unwrap();
    assert_eq!(asks(&shop, tcp).await, None);
    let is_it = |fact: &countersign_tls::HandshakeFact| fact.peer_address == Some(balancer);
    let fact = shop.orders.fact(|fact| is_it(fact) && fact.code.is_some()).await;
    assert_eq!(fact.code, Some(Code::PolicyDenied));
    let tcp = through(1, &shop, "127.9.9.9:1").await;
    assert!(asks(&shop, tcp).await.is_some());
    // Without a load balancer it is where the connection comes from.
    let plain = Shop::open(Protocol::Http).await;
    plain.orders.enforce(&from_net("127.1.0.7"), 2);
    let tcp = from(7, plain.orders.door()).await.unwrap();
    assert!(asks(&plain, tcp).await.is_some());
    let tcp = from(8, plain.orders.door()).await.unwrap();
    assert_eq!(asks(&plain, tcp).await, None);
}
