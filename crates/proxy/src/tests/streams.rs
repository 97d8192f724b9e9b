//! Byte streams.

use std::sync::Arc;

use countersign_identity::{Code, SimClock, Timestamp, Verb};
use countersign_policy::{Operation, Operations};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, UnixListener, UnixStream};

use super::world::{NOTHING, PATIENCE, Shop, directory, eventually, inbound, name, outbound};
use crate::bounds::TRIES_MAX;
use crate::config::Protocol;
use crate::dial::Target;

#[tokio::test]
async fn bytes_pass_both_ways_and_each_way_ends_by_itself() {
    let mut shop = Shop::open(Protocol::Tcp).await;
    let directory = directory();
    let path = directory.path().join("raw.sock");
    let listener = UnixListener::bind(&path).unwrap();
    shop.orders.listen(&[inbound(&Target::Unix(path), Protocol::Tcp)], &[]);
    let mut client = UnixStream::connect(&shop.local).await.unwrap();
    client.write_all(b"question").await.unwrap();
    client.shutdown().await.unwrap();
    let (mut server, _) = listener.accept().await.unwrap();
    let mut asked = Vec::new();
    server.read_to_end(&mut asked).await.unwrap();
    assert_eq!(asked, b"question");
    server.write_all(b"answer").await.unwrap();
    drop(server);
    let mut answered = Vec::new();
    client.read_to_end(&mut answered).await.unwrap();
    assert_eq!(answered, b"answer");
}

#[tokio::test]
async fn a_stream_ends_with_the_policy_that_let_it_in() {
    let mut shop = Shop::open(Protocol::Tcp).await;
    let directory = directory();
    let path = directory.path().join("raw.sock");
    let listener = UnixListener::bind(&path).unwrap();
    shop.orders.listen(&[inbound(&Target::Unix(path), Protocol::Tcp)], &[]);
    let mut client = UnixStream::connect(&shop.local).await.unwrap();
    client.write_all(b"x").await.unwrap();
    let (mut server, _) = listener.accept().await.unwrap();
    server.read_exact(&mut [0; 1]).await.unwrap();
    assert_eq!(shop.orders.enforce(NOTHING, 2), 1);
    assert!(matches!(client.read(&mut [0; 1]).await, Ok(0) | Err(_)));
    assert!(matches!(server.read(&mut [0; 1]).await, Ok(0) | Err(_)));
}

#[tokio::test]
async fn a_stream_ends_when_its_service_comes_to_decide_on_requests() {
    let mut shop = Shop::open(Protocol::Tcp).await;
    let directory = directory();
    let path = directory.path().join("raw.sock");
    let listener = UnixListener::bind(&path).unwrap();
    shop.orders.listen(&[inbound(&Target::Unix(path), Protocol::Tcp)], &[]);
    let mut client = UnixStream::connect(&shop.local).await.unwrap();
    client.write_all(b"x").await.unwrap();
    let (mut server, _) = listener.accept().await.unwrap();
    server.read_exact(&mut [0; 1]).await.unwrap();
    let see = Operation { name: name("see"), verb: Verb::Get, template: "/see".parse().unwrap() };
    let operations = Operations::new([(name("orders"), vec![see])]);
    let permit = r#"permit (principal == Workload::"web", action == Action::"GET", resource == Service::"orders");"#;
    assert_eq!(shop.orders.enforce_calls(permit, operations, None), 1);
    assert!(matches!(client.read(&mut [0; 1]).await, Ok(0) | Err(_)));
    assert!(matches!(server.read(&mut [0; 1]).await, Ok(0) | Err(_)));
}

/// Has `web`'s streams go to so many places where nobody listens, and then to `orders`. On a clock that stands still none of them is
/// probed.
fn lead_past(away: &[TcpSocket], shop: &mut Shop) {
    let mut doors: Vec<_> = away.iter().map(|it| it.local_addr().unwrap()).collect();
    doors.push(shop.orders.door());
    shop.web.listen(&[], &[outbound(&shop.realm, &shop.local, &doors, Protocol::Tcp)]);
}

#[tokio::test]
async fn a_stream_goes_on_to_the_next_address_and_not_without_end() {
    let clock = Arc::new(SimClock::new(Timestamp::from_secs(1_790_000_000)));
    let mut shop = Shop::open_on(clock, Protocol::Tcp).await;
    let nobody = || {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        socket
    };
    let away: Vec<TcpSocket> = std::iter::repeat_with(nobody).take(TRIES_MAX).collect();
    lead_past(&away[1..], &mut shop);
    let mut client = UnixStream::connect(&shop.local).await.unwrap();
    client.write_all(b"x").await.unwrap();
    shop.orders.fact(|fact| fact.code.is_none()).await;
    assert_eq!(shop.web.refusals(Code::PeerUnreachable), TRIES_MAX - 1);

    lead_past(&away, &mut shop);
    let mut client = UnixStream::connect(&shop.local).await.unwrap();
    let ended = tokio::time::timeout(PATIENCE, client.read(&mut [0; 1])).await;
    assert!(matches!(ended.expect("it is given up"), Ok(0) | Err(_)));
    assert_eq!(shop.web.refusals(Code::PeerUnreachable), 2 * TRIES_MAX - 1);
    assert_eq!(shop.orders.handshakes(), 1);
    // All of them rest by now, so that the next one goes where nobody has been yet.
    let mut client = UnixStream::connect(&shop.local).await.unwrap();
    client.write_all(b"x").await.unwrap();
    eventually(|| (shop.orders.handshakes() == 2).then_some(())).await;
    assert_eq!(shop.web.refusals(Code::PeerUnreachable), 2 * TRIES_MAX - 1);
}

#[tokio::test]
async fn a_stream_that_nobody_takes_ends_at_once() {
    let shop = Shop::open(Protocol::Tcp).await;
    shop.web.enforce(NOTHING, 2);
    let mut client = UnixStream::connect(&shop.local).await.unwrap();
    assert!(matches!(client.read(&mut [0; 1]).await, Ok(0) | Err(_)));
}
