//! Requests on their way.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use countersign_identity::{Code, SimClock, Timestamp};
use http::Request;
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, UnixStream};

use super::program::Program;
use super::world::{
    Caller, NOTHING, PATIENCE, Proxy, Shop, WEB_TO_ORDERS, directory, eventually, get, inbound,
    outbound, read,
};
use crate::bounds::{CONNECT_TIMEOUT, EJECTED_LONGEST};
use crate::config::Protocol;

#[tokio::test]
async fn a_request_travels_over_mutual_tls_and_the_program_learns_who_calls() {
    let shop = Shop::open(Protocol::Http).await;
    let mut caller = shop.caller().await;
    let (status, body) = caller.get("/a//b/../c%2F?q=1").await;
    assert_eq!(status, 200);
    assert!(
        body.starts_with("GET /a//b/../c%2F?q=1 HTTP/1.1\n"),
        "the path is passed as it is: {body}"
    );
    assert!(body.contains("\nhost: orders\n"), "{body}");
    assert!(body.contains("\nx-countersign-peer: spiffe://shop.example/web\n"), "{body}");
    let fact = shop.orders.fact(|fact| fact.code.is_none()).await;
    assert_eq!(fact.peer, Some(shop.realm.id("web")));
    assert_eq!((fact.version, fact.group), ("1.3", "X25519MLKEM768"));
    assert_eq!(shop.web.fact(|fact| fact.code.is_none()).await.peer, Some(shop.realm.id("orders")));
}

#[tokio::test]
async fn requests_share_one_connection_to_the_peer() {
    let shop = Shop::open(Protocol::Http).await;
    let (mut first, mut second) = (shop.caller().await, shop.caller().await);
    for _ in 0..5 {
        assert_eq!(first.get("/").await.0, 200);
        assert_eq!(second.get("/").await.0, 200);
    }
    assert_eq!((shop.web.handshakes(), shop.orders.handshakes()), (1, 1));
}

#[tokio::test]
async fn who_the_peer_is_cannot_be_said_by_the_peer() {
    let shop = Shop::open(Protocol::Http).await;
    let request = Request::get("/")
        .header("host", "orders")
        .header("x-countersign-peer", "spiffe://shop.example/admin")
        .header("x_countersign_peer", "spiffe://shop.example/admin")
        .header("x-countersign-role", "admin")
        .header("x-forwarded-client-cert", "URI=spiffe://shop.example/admin")
        .header("connection", "x-countersign-peer")
        .body(Full::<Bytes>::default())
        .unwrap();
    let answer = shop.caller().await.send(request).await.unwrap();
    let (status, body) = read(answer).await;
    assert_eq!(status, 200);
    assert!(!body.contains("admin"), "{body}");
    assert!(!body.contains("forwarded-client-cert"), "{body}");
    assert_eq!(body.matches("x-countersign-peer: spiffe://shop.example/web").count(), 1, "{body}");
}

#[tokio::test]
async fn answers_without_a_body_keep_their_meaning() {
    let shop = Shop::open(Protocol::Http).await;
    let mut caller = shop.caller().await;
    let ask = |method: &str, path: &str| {
        Request::builder()
            .method(method)
            .uri(path)
            .header("host", "orders")
            .body(Full::<Bytes>::default())
            .unwrap()
    };
    let head = caller.send(ask("HEAD", "/")).await.unwrap();
    assert_eq!(head.status(), 200);
    assert!(head.headers().contains_key("content-length"), "{head:?}");
    assert_eq!(read(head).await.1, "");
    let empty = caller.send(ask("POST", "/echo")).await.unwrap();
    assert_eq!(empty.headers()["content-length"], "0");
    assert_eq!(read(empty).await, (200, String::new()));
    let any = read(caller.send(ask("OPTIONS", "*")).await.unwrap()).await;
    assert!(any.1.starts_with("OPTIONS * HTTP/1.1"), "{any:?}");
    let closed = caller.send(ask("GET", "/close")).await.unwrap();
    assert!(!closed.headers().contains_key("connection"), "the last hop's wish is not passed on");
    assert_eq!(read(closed).await.0, 200);
    assert_eq!(caller.get("/").await.0, 200, "on the same connection");
}

#[tokio::test]
async fn large_bodies_stream_both_ways() {
    let shop = Shop::open(Protocol::Http).await;
    let sent: Vec<u8> = (0..3_000_000_u32).map(|at| at.to_le_bytes()[1]).collect();
    let request =
        Request::post("/echo").header("host", "orders").body(Full::from(sent.clone())).unwrap();
    let answer = shop.caller().await.send(request).await.unwrap();
    let received = answer.into_body().collect().await.unwrap().to_bytes();
    assert!(received == sent, "{} of {} bytes came back alike", received.len(), sent.len());
}

#[tokio::test]
async fn grpc_passes_with_its_trailers_over_http_2_from_end_to_end() {
    let shop = Shop::open(Protocol::Http).await;
    let stream = UnixStream::connect(&shop.local).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    tokio::spawn(connection);
    let mut trailers = http::HeaderMap::new();
    trailers.insert("x-checksum", "1".parse().unwrap());
    trailers.insert("x-countersign-peer", "spiffe://shop.example/admin".parse().unwrap());
    let frames = [
        Ok::<_, std::convert::Infallible>(Frame::data(Bytes::from_static(b"message"))),
        Ok(Frame::trailers(trailers)),
    ];
    let request = Request::post("http://orders/trailers")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(StreamBody::new(futures_util::stream::iter(frames)))
        .unwrap();
    let answer = sender.send_request(request).await.unwrap();
    let collected = answer.into_body().collect().await.unwrap();
    let trailers = collected.trailers().unwrap().clone();
    assert_eq!(collected.to_bytes(), "message");
    assert_eq!(
        (trailers["grpc-status"].as_bytes(), trailers["x-checksum"].as_bytes()),
        (&b"0"[..], &b"1"[..])
    );
    assert_eq!(trailers["x-spoken"], "HTTP/2.0");
    assert!(!trailers.contains_key("x-countersign-peer"), "trailers do not say who calls either");
}

#[tokio::test]
async fn a_connection_upgrades_and_becomes_a_tunnel() {
    let shop = Shop::open(Protocol::Http).await;
    let mut tunnel = upgraded(&mut shop.caller().await).await;
    for word in ["one", "two"] {
        tunnel.write_all(word.as_bytes()).await.unwrap();
        let mut back = [0; 3];
        tunnel.read_exact(&mut back).await.unwrap();
        assert_eq!(&back, word.as_bytes());
    }
    tunnel.shutdown().await.unwrap();
    assert_eq!(tunnel.read(&mut [0; 1]).await.unwrap(), 0);
    let connections = || (shop.web.plane.trust.connections() == 0).then_some(());
    eventually(connections).await;
}

pub(super) async fn upgraded(caller: &mut Caller) -> TokioIo<hyper::upgrade::Upgraded> {
    let request = Request::get("/upgrade")
        .header("host", "orders")
        .header("connection", "Upgrade")
        .header("upgrade", "echo")
        .body(Full::default())
        .unwrap();
    let answer = caller.send(request).await.unwrap();
    assert_eq!(answer.status(), 101);
    assert_eq!(answer.headers()["upgrade"], "echo");
    TokioIo::new(hyper::upgrade::on(answer).await.unwrap())
}

#[tokio::test]
async fn an_upgraded_connection_ends_with_the_policy_that_let_it_in() {
    let shop = Shop::open(Protocol::Http).await;
    let mut tunnel = upgraded(&mut shop.caller().await).await;
    tunnel.write_all(b"x").await.unwrap();
    tunnel.read_exact(&mut [0; 1]).await.unwrap();
    assert_eq!(shop.orders.enforce(NOTHING, 2), 1);
    let ended = tokio::time::timeout(PATIENCE, tunnel.read(&mut [0; 1])).await.unwrap();
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
}

#[tokio::test]
async fn an_upgraded_connection_ends_when_the_certificate_of_its_peer_expires_and_no_other_comes() {
    let clock = Arc::new(SimClock::new(Timestamp::from_secs(1_790_000_000)));
    let shop = Shop::open_on(clock.clone(), Protocol::Http).await;
    shop.web.renew(10).await;
    let mut tunnel = upgraded(&mut shop.caller().await).await;
    clock.advance(Duration::from_secs(9));
    tunnel.write_all(b"x").await.unwrap();
    tunnel.read_exact(&mut [0; 1]).await.unwrap();
    clock.advance(Duration::from_secs(2));
    let ended = tokio::time::timeout(PATIENCE, tunnel.read(&mut [0; 1])).await.unwrap();
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    eventually(|| (shop.orders.plane.trust.connections() == 0).then_some(())).await;
}

#[tokio::test]
async fn a_kept_connection_does_not_outlive_the_policy_that_let_it_in() {
    let shop = Shop::open(Protocol::Http).await;
    let mut caller = shop.caller().await;
    assert_eq!(caller.get("/").await.0, 200);
    assert_eq!(shop.orders.enforce(NOTHING, 2), 1);
    let (status, body) = caller.get("/").await;
    assert_eq!(status, 502, "{body}");
    assert!(body.contains(r#""code":"peer-refused""#), "{body}");
    shop.web.refused(Code::PeerRefused).await;
    assert_eq!(shop.program.reached(), 1);
    shop.orders.refused(Code::PolicyDenied).await;
    shop.orders.enforce(WEB_TO_ORDERS, 3);
    assert_eq!(shop.caller().await.get("/").await.0, 200);
}

#[tokio::test]
async fn what_our_own_policy_denies_does_not_leave_the_machine() {
    let shop = Shop::open(Protocol::Http).await;
    shop.web.enforce(NOTHING, 2);
    let (status, body) = shop.caller().await.get("/").await;
    assert_eq!(status, 403, "{body}");
    assert!(body.contains(r#""code":"policy-denied""#), "{body}");
    assert_eq!(shop.program.reached(), 0);
}

#[tokio::test]
async fn an_upstream_that_is_somebody_else_gets_no_request() {
    let mut shop = Shop::open(Protocol::Http).await;
    let payments = Proxy::start(&shop.realm, "payments", WEB_TO_ORDERS).await;
    let mut payments = payments;
    payments.listen(&[inbound(&shop.program.target(), Protocol::Http)], &[]);
    let doors = [payments.door()];
    shop.web.listen(&[], &[outbound(&shop.realm, &shop.local, &doors, Protocol::Http)]);
    let (status, body) = shop.caller().await.get("/").await;
    assert_eq!(status, 502, "{body}");
    assert!(body.contains(r#""code":"unexpected-peer""#), "{body}");
    assert_eq!(shop.program.reached(), 0);
}

#[tokio::test]
async fn a_caller_moves_to_the_next_address_by_itself_and_back_when_the_first_returns() {
    let mut shop = Shop::open(Protocol::Http).await;
    let directory = directory();
    let spare = Program::start(&directory.path().join("spare.sock"));
    let mut second = Proxy::start(&shop.realm, "orders", WEB_TO_ORDERS).await;
    second.listen(&[inbound(&spare.target(), Protocol::Http)], &[]);
    let first_door = shop.orders.door();
    let doors = [first_door, second.door()];
    shop.web.listen(&[], &[outbound(&shop.realm, &shop.local, &doors, Protocol::Http)]);
    let mut caller = shop.caller().await;
    assert_eq!(caller.get("/").await.0, 200);
    assert_eq!((shop.program.reached(), spare.reached()), (1, 0));

    shop.orders.listen(&[], &[]);
    shop.orders.enforce(NOTHING, 2);
    for _ in 0..5 {
        assert_eq!(caller.get("/").await.0, 200);
    }
    assert_eq!((shop.program.reached(), spare.reached()), (1, 5));

    shop.orders.enforce(WEB_TO_ORDERS, 3);
    let mut door = inbound(&shop.program.target(), Protocol::Http);
    door.listen = first_door;
    shop.orders.listen(&[door], &[]);
    eventually(|| (shop.orders.plane.trust.connections() == 1).then_some(())).await;
    let back = async {
        while shop.program.reached() == 1 {
            assert_eq!(caller.get("/").await.0, 200);
        }
    };
    tokio::time::timeout(PATIENCE, back).await.unwrap();
}

/// On a clock that stands still, who connects and says nothing is waited for without end.
#[tokio::test]
async fn an_address_that_says_nothing_keeps_no_other_from_being_found_again() {
    let clock = Arc::new(SimClock::new(Timestamp::from_secs(1_790_000_000)));
    let mut shop = Shop::open_on(clock.clone(), Protocol::Http).await;
    let [mute, away] = [(); 2].map(|()| {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        socket
    });
    let doors = [&mute, &away].map(|socket| socket.local_addr().unwrap());
    shop.web.listen(&[], &[outbound(&shop.realm, &shop.local, &doors, Protocol::Http)]);
    let mut caller = shop.caller().await;
    assert_eq!(caller.get("/").await.0, 503);
    assert_eq!(shop.web.refusals(Code::PeerUnreachable), 2);
    // Both are there again. The first takes connections, and never says a word.
    let mute = mute.listen(8).unwrap();
    drop(away);
    let mut door = inbound(&shop.program.target(), Protocol::Http);
    door.listen = doors[1];
    shop.orders.listen(&[door], &[]);
    clock.advance(EJECTED_LONGEST);
    let (_hangs, _) = tokio::time::timeout(PATIENCE, mute.accept()).await.unwrap().unwrap();
    eventually(|| (shop.web.handshakes() == 1).then_some(())).await;
    // Who comes before that is noted goes to the first one, and waits.
    let answered = async {
        let asks = async || shop.caller().await.get("/").await.0;
        while tokio::time::timeout(Duration::from_secs(1), asks()).await != Ok(200) {}
    };
    tokio::time::timeout(PATIENCE, answered).await.expect("it goes to the one that is there");
}

#[tokio::test]
async fn without_anybody_to_reach_the_caller_is_told_so() {
    let mut shop = Shop::open(Protocol::Http).await;
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    shop.web.listen(&[], &[outbound(&shop.realm, &shop.local, &[closed], Protocol::Http)]);
    let answer = shop.caller().await.send(get("/")).await.unwrap();
    assert_eq!(answer.headers()["content-type"], "application/problem+json");
    let (status, body) = read(answer).await;
    assert_eq!(status, 503, "{body}");
    assert!(body.contains(r#""code":"peer-unreachable""#), "{body}");
}

#[tokio::test]
async fn a_program_that_is_away_is_told_apart_from_a_peer_that_is_away() {
    let mut shop = Shop::open(Protocol::Http).await;
    let nowhere = crate::dial::Target::Unix("/tmp/there-is-no-such.sock".into());
    shop.orders.listen(&[inbound(&nowhere, Protocol::Http)], &[]);
    let (status, body) = shop.caller().await.get("/").await;
    assert_eq!(status, 503, "{body}");
    assert!(body.contains(r#""code":"unavailable""#), "{body}");
    assert!(
        !body.contains("there-is-no-such.sock"),
        "a peer is not told where the program lives: {body}"
    );
}

#[tokio::test]
async fn callers_that_wait_for_one_dead_address_are_told_together() {
    let mut shop = Shop::open(Protocol::Http).await;
    // It takes connections, and never says a word.
    let mute = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let door = mute.local_addr().unwrap();
    shop.web.listen(&[], &[outbound(&shop.realm, &shop.local, &[door], Protocol::Http)]);
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let mut caller = shop.caller().await;
        asking.spawn(async move { caller.get("/").await });
    }
    let all = tokio::time::timeout(3 * CONNECT_TIMEOUT, asking.join_all()).await;
    for (status, body) in all.expect("not one after the other") {
        assert_eq!(status, 502, "{body}");
        assert!(body.contains(r#""code":"handshake-timeout""#), "{body}");
    }
}
