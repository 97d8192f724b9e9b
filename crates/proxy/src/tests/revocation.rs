//! What was taken out of service is cut, whatever it is busy with, and callers go elsewhere (the shared list: 12 to 15).

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use countersign_identity::{Code, Reason};
use countersign_tls::{Direction, Established, Expected, Outbound, dial};
use futures_util::StreamExt;
use http::{HeaderValue, Request};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use super::http::upgraded;
use super::program::Program;
use super::world::{
    PATIENCE, Proxy, Shop, WEB_TO_ORDERS, directory, eventually, get, inbound, name, outbound,
};
use crate::body::Arriving;
use crate::config::Protocol;
use crate::dial::{Dialer, Target};
use crate::guard::Guard;
use crate::relay::Relay;
use crate::route::{Route, Tended, Ways};
use crate::session::Session;
use crate::upstream::Carries;

const LEAK: Reason = Reason::KeyCompromise;

/// Waits for the end of it, whichever way it shows.
async fn over(mut io: impl AsyncRead + Unpin) {
    let reading = async { while let Ok(1..) = io.read(&mut [0; 1024]).await {} };
    tokio::time::timeout(PATIENCE, reading).await.expect("it goes on");
}

/// Sends until nothing more goes in.
async fn fill(mut io: impl AsyncWrite + Unpin) {
    let part = [b'x'; 16 * 1024];
    while let Ok(Ok(())) =
        tokio::time::timeout(Duration::from_millis(300), io.write_all(&part)).await
    {}
}

/// A connection of `web` to the door, without `web`'s proxy; for this protocol, or for bytes.
async fn straight(shop: &Shop, alpn: &[u8]) -> Established {
    let mut outbound = Outbound::service(name("orders"), Expected::Id(shop.realm.id("orders")));
    outbound.alpn = if alpn.is_empty() { Vec::new() } else { vec![alpn.to_vec()] };
    dial(&shop.web.plane.trust, shop.orders.door(), &outbound).await.unwrap()
}

#[tokio::test]
async fn a_kept_connection_does_not_outlive_the_rule_on_its_caller() {
    let shop = Shop::open(Protocol::Http).await;
    let mut caller = shop.caller().await;
    assert_eq!(caller.get("/").await.0, 200);
    let applied = shop.orders.revoke(LEAK, &shop.web.own_key());
    assert_eq!((applied.cut, applied.draining), (1, 0));
    let (status, body) = caller.get("/").await;
    assert_eq!(status, 502, "{body}");
    assert!(body.contains(r#""code":"peer-refused""#), "{body}");
    assert!(body.contains("CertificateRevoked"), "{body}");
    let fact = shop.orders.refused(Code::Revoked).await;
    assert_eq!(fact.peer, Some(shop.realm.id("web")));
    assert_eq!(shop.program.reached(), 1);
    // Its new certificate is not covered.
    shop.web.renew(3600).await;
    eventually(|| (shop.web.connections() == 0).then_some(())).await;
    let mut caller = shop.caller().await;
    assert_eq!(caller.get("/").await.0, 200);
}

#[tokio::test]
async fn an_idle_connection_is_closed_by_the_rule_and_not_by_the_next_request() {
    let shop = Shop::open(Protocol::Http).await;
    let idle = straight(&shop, b"http/1.1").await;
    let mut kept = straight(&shop, b"http/1.1").await;
    kept.stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    kept.stream.flush().await.unwrap();
    kept.stream.read_exact(&mut [0; 12]).await.unwrap();
    let silent = straight(&shop, b"h2").await;
    // Whoever dials is done with the handshake before the door is.
    eventually(|| (shop.orders.connections() == 3).then_some(())).await;
    assert_eq!(shop.orders.revoke(LEAK, &shop.web.own_key()).cut, 3);
    tokio::join!(over(idle.stream), over(kept.stream), over(silent.stream));
    eventually(|| (shop.orders.connections() == 0).then_some(())).await;
}

#[tokio::test]
async fn an_upgraded_connection_is_cut_whichever_end_is_told() {
    let shop = Shop::open(Protocol::Http).await;
    for kind in 0..4 {
        shop.web.renew(3600).await;
        shop.orders.renew(3600).await;
        let mut tunnel = upgraded(&mut shop.caller().await).await;
        tunnel.write_all(b"x").await.unwrap();
        tunnel.read_exact(&mut [0; 1]).await.unwrap();
        let (told, target) = match kind {
            0 => (&shop.orders, shop.web.own_key()),
            1 => (&shop.web, shop.orders.own_key()),
            2 => (&shop.orders, shop.orders.own_key()),
            _ => (&shop.web, shop.web.own_key()),
        };
        assert!(0 < told.revoke(LEAK, &target).cut);
        over(tunnel).await;
        eventually(|| (shop.orders.connections() + shop.web.connections() == 0).then_some(()))
            .await;
    }
}

#[tokio::test]
async fn a_byte_stream_is_cut() {
    let mut shop = Shop::open(Protocol::Tcp).await;
    let directory = directory();
    let path = directory.path().join("raw.sock");
    let listener = UnixListener::bind(&path).unwrap();
    shop.orders.listen(&[inbound(&Target::Unix(path), Protocol::Tcp)], &[]);
    let mut client = UnixStream::connect(&shop.local).await.unwrap();
    client.write_all(b"x").await.unwrap();
    let (mut server, _) = listener.accept().await.unwrap();
    server.read_exact(&mut [0; 1]).await.unwrap();
    assert_eq!(shop.orders.revoke(LEAK, &shop.web.own_key()).cut, 1);
    tokio::join!(over(client), over(server));
    // A new one is refused, and says so by ending.
    over(UnixStream::connect(&shop.local).await.unwrap()).await;
    shop.orders.refused(Code::Revoked).await;
}

#[tokio::test]
async fn a_stream_of_http_2_without_end_is_cut_both_ways_at_once() {
    let shop = Shop::open(Protocol::Http).await;
    let stream = UnixStream::connect(&shop.local).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    let driving = tokio::spawn(connection);
    // As a call of gRPC that streams both ways: the request has no end either.
    let word = Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"zero")));
    let words = futures_util::stream::iter([word]).chain(futures_util::stream::pending());
    let body = StreamBody::new(words);
    let request = Request::post("http://orders/endless").header("content-type", "application/grpc");
    let answer = sender.send_request(request.body(body).unwrap()).await.unwrap();
    assert_eq!(answer.status(), 200);
    let mut answer = answer.into_body();
    assert_eq!(answer.frame().await.unwrap().unwrap().into_data().unwrap(), "one");
    assert_eq!(shop.orders.revoke(LEAK, &shop.web.own_key()).cut, 1);
    let ended = tokio::time::timeout(PATIENCE, answer.frame()).await.expect("it goes on");
    assert!(matches!(ended, None | Some(Err(_))), "{ended:?}");
    eventually(|| (shop.web.connections() == 0).then_some(())).await;
    driving.abort();
}

#[tokio::test]
async fn a_half_sent_body_goes_no_further() {
    let shop = Shop::open(Protocol::Http).await;
    let mut caller = straight(&shop, b"http/1.1").await;
    let half = b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhalf ";
    caller.stream.write_all(half).await.unwrap();
    caller.stream.flush().await.unwrap();
    eventually(|| (shop.program.reached() == 1).then_some(())).await;
    assert_eq!(shop.orders.revoke(LEAK, &shop.web.own_key()).cut, 1);
    // Whatever the caller still sends is not read, and nothing is answered.
    caller.stream.write_all(b"more!").await.ok();
    caller.stream.flush().await.ok();
    let mut answer = Vec::new();
    caller.stream.read_to_end(&mut answer).await.ok();
    assert_eq!(answer, b"");
    eventually(|| (shop.orders.connections() == 0).then_some(())).await;
}

#[tokio::test]
async fn a_response_under_way_is_cut_and_not_finished() {
    let shop = Shop::open(Protocol::Http).await;
    let mut caller = shop.caller().await;
    let asking = tokio::spawn(async move { caller.get("/gate").await.0 });
    eventually(|| (shop.program.reached() == 1).then_some(())).await;
    assert_eq!(shop.web.revoke(LEAK, &shop.orders.own_key()).cut, 1);
    assert_eq!(asking.await.unwrap(), 502);
    shop.program.gate.add_permits(1);
}

#[tokio::test]
async fn callers_go_to_another_trusted_peer_the_moment_that_the_first_is_revoked() {
    let mut shop = Shop::open(Protocol::Http).await;
    let directory = directory();
    let spare = Program::start(&directory.path().join("spare.sock"));
    let mut second = Proxy::start(&shop.realm, "orders", WEB_TO_ORDERS).await;
    second.listen(&[inbound(&spare.target(), Protocol::Http)], &[]);
    let doors = [shop.orders.door(), second.door()];
    shop.web.listen(&[], &[outbound(&shop.realm, &shop.local, &doors, Protocol::Http)]);
    let mut caller = shop.caller().await;
    for _ in 0..5 {
        assert_eq!(caller.get("/").await.0, 200);
    }
    assert_eq!((shop.program.reached(), spare.reached()), (5, 0));
    assert_eq!(shop.web.revoke(LEAK, &shop.orders.own_key()).cut, 1);
    for _ in 0..20 {
        assert_eq!(caller.get("/").await.0, 200);
    }
    assert_eq!((shop.program.reached(), spare.reached()), (5, 20));
    let fact = shop.web.refused(Code::Revoked).await;
    assert_eq!(fact.peer, Some(shop.realm.id("orders")));
    // With a new certificate it is found again.
    shop.orders.renew(3600).await;
    let back = async {
        while shop.program.reached() == 5 {
            assert_eq!(caller.get("/").await.0, 200);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, back).await.expect("it is tried again");
}

#[tokio::test]
async fn our_own_revoked_credential_says_nothing_more_in_either_direction() {
    let shop = Shop::open(Protocol::Http).await;
    let mut caller = shop.caller().await;
    assert_eq!(caller.get("/").await.0, 200);
    // The calling side is told; its peers are not.
    let applied = shop.web.revoke(LEAK, &shop.web.own_key());
    assert_eq!((applied.cut, applied.own.is_some()), (1, true));
    let (status, body) = caller.get("/").await;
    assert_eq!(status, 503, "{body}");
    assert!(body.contains(r#""code":"no-own-identity""#), "{body}");
    shop.web.renew(3600).await;
    assert_eq!(caller.get("/").await.0, 200);
    // The called side is told.
    eventually(|| (shop.orders.connections() == 1).then_some(())).await;
    let applied = shop.orders.revoke(LEAK, &shop.orders.own_key());
    assert_eq!((applied.cut, applied.own.is_some()), (1, true));
    assert_ne!(caller.get("/").await.0, 200);
    shop.orders.refused(Code::NoOwnIdentity).await;
    assert_eq!(shop.program.reached(), 2);
    shop.orders.renew(3600).await;
    let again = async {
        while caller.get("/").await.0 != 200 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, again).await.expect("it is let in again");
}

#[tokio::test]
async fn what_revocations_end_is_counted() {
    let shop = Shop::open(Protocol::Http).await;
    let mut caller = shop.caller().await;
    assert_eq!(caller.get("/").await.0, 200);
    shop.orders.revoke(LEAK, &shop.web.own_key());
    let text = shop.orders.exposed();
    assert!(text.contains("countersign_proxy_connections_revoked_total 1\n"), "{text}");
    assert!(text.contains("countersign_proxy_connections_draining 0\n"), "{text}");
    // What a policy ends is not.
    let shop = Shop::open(Protocol::Http).await;
    assert_eq!(shop.caller().await.get("/").await.0, 200);
    shop.orders.enforce(super::world::NOTHING, 2);
    let text = shop.orders.exposed();
    assert!(text.contains("countersign_proxy_connections_revoked_total 0\n"), "{text}");
}

#[tokio::test]
async fn a_request_that_raced_the_rule_reached_nobody_or_was_under_way() {
    let shop = Shop::open(Protocol::Http).await;
    let mut load = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let mut caller = shop.caller().await;
        load.spawn(async move {
            loop {
                let Ok(answer) = caller.send(get("/")).await else { return };
                if answer.status() != 200 || answer.into_body().collect().await.is_err() {
                    return;
                }
            }
        });
    }
    eventually(|| (200 < shop.program.reached()).then_some(())).await;
    shop.orders.revoke(LEAK, &shop.web.own_key());
    // Requests may be on their way from our side to the program. Nothing follows them.
    while load.join_next().await.is_some() {}
    let reached = shop.program.reached();
    assert_ne!(shop.caller().await.get("/").await.0, 200);
    assert_eq!(shop.program.reached(), reached);
}

#[tokio::test]
async fn what_was_decided_before_the_rule_and_not_begun_reaches_nobody() {
    let shop = Shop::open(Protocol::Http).await;
    let plane = shop.web.plane.clone();
    // The caller is at the other end of a connection of `web`'s; whichever end opened it, it is decided on alike.
    let peer = straight(&shop, b"http/1.1").await;
    let way = || {
        let program = vec![Dialer::Program(shop.program.target())];
        Tended::start(&plane, program, Carries::Requests)
    };
    let relay = Arc::new(Relay {
        plane: plane.clone(),
        route: Arc::new(ArcSwap::from_pointee(Route::Requests(Ways { http: way(), grpc: None }))),
        meter: plane.metrics.meter("orders", Direction::Inbound),
        peer: Some(HeaderValue::from_static("spiffe://shop.example/orders")),
        certificate: None,
        requests: None,
        guard: Some(Guard { service: name("orders"), admitted: peer.stream.admitted().clone() }),
        service: name("orders"),
    });
    let (session, shop) = (Session::new(), Arc::new(shop));
    let service = service_fn({
        let shop = shop.clone();
        move |request: Request<Incoming>| {
            let (relay, session, shop) = (relay.clone(), session.clone(), shop.clone());
            let begun = relay.begin(request.map(Arriving::from), &session);
            async move {
                // Before its task had a turn.
                if 0 < shop.program.reached() {
                    assert_eq!(shop.web.revoke(LEAK, &shop.orders.own_key()).cut, 1);
                }
                Ok::<_, Infallible>(relay.finish(begun, &session).await)
            }
        }
    });
    let (ours, theirs) = tokio::io::duplex(4096);
    tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(theirs), service));
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(ours)).await.unwrap();
    tokio::spawn(connection);
    // The first leaves a connection to the program, over which the second could go at once.
    assert_eq!(sender.send_request(get("/")).await.unwrap().status(), 200);
    sender.ready().await.unwrap();
    let answer = sender.send_request(get("/")).await.unwrap();
    assert_ne!(answer.status(), 200);
    assert_eq!(shop.program.reached(), 1);
}

#[tokio::test]
async fn what_was_read_before_the_cut_is_not_passed_on() {
    let mut shop = Shop::open(Protocol::Tcp).await;
    let directory = directory();
    let path = directory.path().join("slow.sock");
    let listener = UnixListener::bind(&path).unwrap();
    shop.orders.listen(&[inbound(&Target::Unix(path), Protocol::Tcp)], &[]);
    let mut caller = straight(&shop, b"").await;
    let (mut program, _) = listener.accept().await.unwrap();
    // The program takes nothing, and what was read waits on our side.
    fill(&mut caller.stream).await;
    assert_eq!(shop.orders.revoke(LEAK, &shop.web.own_key()).cut, 1);
    eventually(|| (shop.orders.connections() == 0).then_some(())).await;
    // What is on its way to the program already stays so; then it ends.
    over(&mut program).await;
}

#[tokio::test]
async fn what_a_revoked_peer_had_sent_is_not_passed_on_to_our_program() {
    let mut shop = Shop::open(Protocol::Tcp).await;
    let directory = directory();
    let path = directory.path().join("talks.sock");
    let listener = UnixListener::bind(&path).unwrap();
    shop.orders.listen(&[inbound(&Target::Unix(path), Protocol::Tcp)], &[]);
    // Our program takes nothing, and what its peer says waits on our side.
    let ours = UnixStream::connect(&shop.local).await.unwrap();
    let (mut theirs, _) = listener.accept().await.unwrap();
    fill(&mut theirs).await;
    assert_eq!(shop.web.revoke(LEAK, &shop.orders.own_key()).cut, 1);
    eventually(|| (shop.web.connections() == 0).then_some(())).await;
    over(ours).await;
}
