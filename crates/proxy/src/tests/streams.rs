//! Byte streams.

use countersign_identity::Verb;
use countersign_policy::{Operation, Operations};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use super::world::{NOTHING, Shop, directory, inbound, name};
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

#[tokio::test]
async fn a_stream_that_nobody_takes_ends_at_once() {
    let shop = Shop::open(Protocol::Tcp).await;
    shop.web.enforce(NOTHING, 2);
    let mut client = UnixStream::connect(&shop.local).await.unwrap();
    assert!(matches!(client.read(&mut [0; 1]).await, Ok(0) | Err(_)));
}
