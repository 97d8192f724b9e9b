//! What an attacker tries (the shared list: 14, 19 to 22).

use std::time::Duration;

use countersign_identity::Code;
use countersign_tls::{Expected, Outbound, dial};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use super::world::{PATIENCE, Proxy, Shop, WEB_TO_ORDERS, name};
use crate::bounds::HANDSHAKES;
use crate::config::Protocol;

/// Sends bytes to the door as `web`, over mutual TLS and HTTP/1.1, and reads until the end.
pub(super) async fn raw(shop: &Shop, bytes: &[u8]) -> String {
    let mut outbound = Outbound::service(name("orders"), Expected::Id(shop.realm.id("orders")));
    outbound.alpn = vec![b"http/1.1".to_vec()];
    let mut stream =
        dial(&shop.web.plane.trust, shop.orders.door(), &outbound).await.unwrap().stream;
    stream.write_all(bytes).await.unwrap();
    stream.flush().await.unwrap();
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    // The connection stays open after a good request: what comes within a moment of the rest is all.
    let mut patience = PATIENCE;
    while let Ok(Ok(read @ 1..)) = tokio::time::timeout(patience, stream.read(&mut buffer)).await {
        answer.extend_from_slice(&buffer[..read]);
        patience = Duration::from_millis(300);
    }
    String::from_utf8_lossy(&answer).into_owned()
}

#[track_caller]
fn refused(answer: &str) {
    assert!(answer.starts_with("HTTP/1.1 4"), "{answer}");
}

#[tokio::test]
async fn ambiguous_requests_reach_nobody() {
    let shop = Shop::open(Protocol::Http).await;
    for request in [
        "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
        "GET http://a/ HTTP/1.1\r\nHost: b\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\nx",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 2\r\n\r\nxx",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: 1\rY: 2\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX : 1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n X: 1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: 1\0\r\n\r\n",
        "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET a HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/3.0\r\nHost: a\r\n\r\n",
        "CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: host\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nConnection: content-length\r\nContent-Length: 1\r\n\r\nx",
    ] {
        let answer = raw(&shop, request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 4"), "{request:?} was answered with {answer:?}");
    }
    assert_eq!(shop.program.reached(), 0);
}

#[tokio::test]
async fn a_body_cannot_smuggle_a_second_request() {
    let shop = Shop::open(Protocol::Http).await;
    let inner = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
    for framing in [
        "Content-Length: 4\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 4",
    ] {
        // By its length the body ends before the inner request; by its encoding, at the 0 after it.
        let chunk = format!("{:x}\r\n{inner}\r\n0\r\n\r\n", inner.len());
        let before = shop.program.reached();
        let answer = raw(
            &shop,
            format!("POST /echo HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n{chunk}").as_bytes(),
        )
        .await;
        let reached = shop.program.reached() - before;
        assert!(reached <= 1, "{framing}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{framing}: {answer}");
        assert!(!answer.contains("GET /smuggled HTTP/1.1\n"), "{framing}: {answer}");
    }
}

#[tokio::test]
async fn heads_without_end_are_refused() {
    let shop = Shop::open(Protocol::Http).await;
    let many: String = (0..500).map(|at| format!("X-{at}: 1\r\n")).collect();
    refused(&raw(&shop, format!("GET / HTTP/1.1\r\nHost: a\r\n{many}\r\n").as_bytes()).await);
    let long = "a".repeat(200_000);
    refused(
        &raw(&shop, format!("GET / HTTP/1.1\r\nHost: a\r\nX: {long}\r\n\r\n").as_bytes()).await,
    );
    assert_eq!(shop.program.reached(), 0);
}

#[tokio::test]
async fn a_stranger_is_refused_and_seen() {
    let shop = Shop::open(Protocol::Http).await;
    let mut stream = TcpStream::connect(shop.orders.door()).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: orders\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.ok();
    assert!(!answer.starts_with(b"HTTP"), "plain HTTP gets no answer in HTTP");
    let fact = shop.orders.fact(|fact| fact.code.is_some()).await;
    assert_eq!((fact.peer, fact.service), (None, Some(name("orders"))));
    let payments = Proxy::start(&shop.realm, "payments", WEB_TO_ORDERS).await;
    let allow = r#"permit (principal == Workload::"payments", action == Action::"connect", resource == Service::"orders");"#;
    payments.enforce(allow, 2);
    let outbound = Outbound::service(name("orders"), Expected::Id(shop.realm.id("orders")));
    if let Ok(established) = dial(&payments.plane.trust, shop.orders.door(), &outbound).await {
        let mut stream = established.stream;
        assert!(
            matches!(stream.read(&mut [0; 1]).await, Ok(0) | Err(_)),
            "what it believes to be allowed is not"
        );
    }
    let fact = shop.orders.refused(Code::PolicyDenied).await;
    assert_eq!(fact.peer, Some(shop.realm.id("payments")));
    assert_eq!(shop.program.reached(), 0);
}

#[tokio::test]
async fn handshakes_that_never_end_do_not_keep_others_out() {
    let shop = Shop::open(Protocol::Http).await;
    let mut silent = Vec::new();
    for _ in 0..HANDSHAKES.each {
        silent.push(TcpStream::connect(shop.orders.door()).await.unwrap());
    }
    let honest = async {
        loop {
            if shop.caller().await.get("/").await.0 == 200 {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(8), honest)
        .await
        .expect("an honest caller got in before their time-out");
    shop.orders.refused(Code::TooManyConnections).await;
    let end = tokio::time::timeout(PATIENCE, silent[0].read(&mut [0; 1])).await.unwrap();
    assert!(matches!(end, Ok(0) | Err(_)), "the oldest gave way");
}

#[tokio::test]
async fn rapid_resets_end_the_connection_and_not_the_door() {
    let shop = Shop::open(Protocol::Http).await;
    let mut attack = Vec::new();
    // Each a whole request, taken back in the same breath (RFC 9113, 6.4); fields by the static table (RFC 7541, A).
    let head = [&[0x82, 0x87, 0x04, 5][..], b"/gate", &[0x01, 6], b"orders"].concat();
    for id in (1..40_001).step_by(2) {
        attack.extend(frame(1, 5, id, &head));
        attack.extend(frame(3, 0, id, &8_u32.to_be_bytes()));
    }
    let kinds = answered(&shop, &attack).await;
    assert!(kinds.contains(&7), "by the door's GOAWAY: {kinds:?}");
    assert!(shop.program.reached() < 5000, "{}", shop.program.reached());
    assert_eq!(shop.caller().await.get("/").await.0, 200);
}

#[tokio::test]
async fn hardly_anything_that_comes_with_a_broken_protocol_is_handed_on() {
    let shop = Shop::open(Protocol::Http).await;
    let head = [&[0x82, 0x87, 0x84, 0x01, 6][..], b"orders"].concat();
    let requests = (1..201).step_by(2).flat_map(|id| frame(1, 5, id, &head));
    // Data of no stream (RFC 9113, 6.1): nobody can be answered any more.
    let kinds = answered(&shop, &requests.chain(frame(0, 0, 0, b"x")).collect::<Vec<u8>>()).await;
    assert!(kinds.contains(&7), "by the door's GOAWAY: {kinds:?}");
    assert!(shop.program.reached() < 10, "{} of 100", shop.program.reached());
    assert_eq!(shop.caller().await.get("/").await.0, 200);
}

/// Begins with HTTP/2 and goes on with these bytes: of which kinds the frames are that come until the door closes.
async fn answered(shop: &Shop, bytes: &[u8]) -> Vec<u8> {
    let mut outbound = Outbound::service(name("orders"), Expected::Id(shop.realm.id("orders")));
    outbound.alpn = vec![b"h2".to_vec()];
    let mut stream =
        dial(&shop.web.plane.trust, shop.orders.door(), &outbound).await.unwrap().stream;
    let all = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &*frame(4, 0, 0, &[]), bytes].concat();
    let mut answer = Vec::new();
    let exchange = async {
        // The door may close while this is still being written.
        let _broken = stream.write_all(&all).await;
        let _broken = stream.flush().await;
        let _broken = stream.read_to_end(&mut answer).await;
    };
    tokio::time::timeout(PATIENCE, exchange).await.expect("the connection was ended");
    let (mut kinds, mut rest) = (Vec::new(), answer.as_slice());
    while let Some((&[a, b, c, kind], _)) = rest.split_first_chunk::<4>() {
        let length = usize::try_from(u32::from_be_bytes([0, a, b, c])).unwrap();
        kinds.push(kind);
        rest = rest.get(9 + length..).unwrap_or_default();
    }
    kinds
}

/// A frame of HTTP/2 (RFC 9113, 4.1) on this stream.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// Sends the beginning of HTTP/2, then these bytes again and again until the door closes.
async fn flood(shop: &Shop, first: &[u8], again: &[u8]) {
    let mut outbound = Outbound::service(name("orders"), Expected::Id(shop.realm.id("orders")));
    outbound.alpn = vec![b"h2".to_vec()];
    let stream = dial(&shop.web.plane.trust, shop.orders.door(), &outbound).await.unwrap().stream;
    let (mut reading, mut writing) = tokio::io::split(stream);
    let sending = async {
        writing.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await?;
        writing.write_all(&frame(4, 0, 0, &[])).await?;
        writing.write_all(first).await?;
        // Bounded, so that a door which takes everything fails the test and does not hang it.
        for _ in 0..100_000 {
            writing.write_all(again).await?;
        }
        Ok::<_, std::io::Error>(())
    };
    let mut sink = [0; 4096];
    let reading = async { while let Ok(1..) = reading.read(&mut sink).await {} };
    let closed = async {
        tokio::select! {
            sent = sending => assert!(sent.is_err(), "the door took all of it"),
            () = reading => {}
        }
    };
    tokio::time::timeout(PATIENCE, closed).await.expect("the door closed the connection");
    assert_eq!(shop.program.reached(), 0);
    assert_eq!(shop.caller().await.get("/").await.0, 200, "and is open to others");
}

#[tokio::test]
async fn heads_without_end_in_http_2_close_the_connection() {
    let shop = Shop::open(Protocol::Http).await;
    // A head that is not finished, and then CONTINUATION frames that do not finish it.
    let field = [&[0x00, 0x01, b'x', 0x7f, 0x81, 0x07][..], &[b'a'; 256]].concat();
    flood(&shop, &frame(1, 0, 1, &field), &frame(9, 0, 1, &field)).await;
    let shop = Shop::open(Protocol::Http).await;
    flood(&shop, &frame(1, 0, 1, &[]), &frame(9, 0, 1, &[])).await;
}

#[tokio::test]
async fn a_local_caller_that_says_nothing_costs_one_connection_only() {
    let shop = Shop::open(Protocol::Http).await;
    let mut silent = Vec::new();
    for _ in 0..50 {
        silent.push(UnixStream::connect(&shop.local).await.unwrap());
    }
    assert_eq!(shop.caller().await.get("/").await.0, 200);
    assert_eq!(shop.web.handshakes(), 1);
}
