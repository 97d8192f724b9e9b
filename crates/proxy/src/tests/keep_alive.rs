//! Peers that speak HTTP/1.1 only: each connection carries one request at a time, and is left in time all the same.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use countersign_tls::{Inbound, accept};
use http::{Request, Response};
use http_body::Frame;
use http_body_util::StreamBody;
use hyper::client::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, UnixStream};

use super::world::{Caller, Proxy, Shop, eventually, get, name, outbound, patient_clock, read};
use crate::body::{Arriving, Body};
use crate::config::Protocol;
use crate::retire::announced;
use crate::session::{Patience, Session, Spoken, serve};

/// A door that offers HTTP/1.1 and nothing else, and answers by itself.
async fn old_door(proxy: &Proxy, requests: Arc<AtomicUsize>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let plane = proxy.plane.clone();
    proxy.plane.tasks.start(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let (plane, requests) = (plane.clone(), requests.clone());
            plane.clone().tasks.start(async move {
                let inbound = Inbound {
                    alpn: vec![b"http/1.1".to_vec()],
                    ..Inbound::service(name("orders"))
                };
                let Ok(established) = accept(&plane.trust, tcp, &inbound).await else { return };
                let admitted = established.stream.admitted();
                let ends = admitted.expires().min(admitted.presented_ends());
                let alarm = plane.alarms.at(announced(admitted.opened(), ends));
                let session = Session::new();
                let service = service_fn({
                    let session = session.clone();
                    move |_: Request<Arriving>| {
                        requests.fetch_add(1, Ordering::SeqCst);
                        let response = Response::new(Body::from(Bytes::from_static(b"old")));
                        let response = session.leave(response, session.enter());
                        std::future::ready(Ok::<_, Infallible>(response))
                    }
                });
                let how = (Spoken::Http1, Patience::Peer);
                serve(established.stream, how, service, session, (alarm, &plane.tasks)).await;
            });
        }
    });
    address
}

async fn with_old_door() -> (Shop, Arc<AtomicUsize>) {
    let mut shop = Shop::open_on(patient_clock(), Protocol::Http).await;
    let requests = Arc::new(AtomicUsize::new(0));
    let door = old_door(&shop.orders, requests.clone()).await;
    shop.web.listen(&[], &[outbound(&shop.realm, &shop.local, &[door], Protocol::Http)]);
    (shop, requests)
}

#[tokio::test]
async fn connections_are_used_again_one_request_at_a_time() {
    let (shop, requests) = with_old_door().await;
    let mut caller = shop.caller().await;
    for _ in 0..20 {
        assert_eq!(caller.get("/").await, (200, "old".to_owned()));
    }
    assert_eq!((requests.load(Ordering::SeqCst), shop.web.handshakes()), (20, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_fails_while_connections_of_one_request_at_a_time_rotate() {
    const LIFETIME_SECS: u64 = 6;
    let (shop, _) = with_old_door().await;
    shop.web.renew(LIFETIME_SECS).await;
    shop.orders.renew(LIFETIME_SECS).await;
    let over = Arc::new(AtomicBool::new(false));
    let mut load = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (local, over) = (shop.local.clone(), over.clone());
        load.spawn(async move {
            let mut caller = Caller::connect(&local).await;
            let mut answered = 0;
            while !over.load(Ordering::Relaxed) {
                let (status, body) = read(caller.send(get("/")).await.unwrap()).await;
                assert_eq!(status, 200, "after {answered}: {body}");
                answered += 1;
                tokio::time::sleep(Duration::from_millis(7)).await;
            }
            answered
        });
    }
    for _ in 0..4 {
        shop.pass(Duration::from_secs(LIFETIME_SECS / 2)).await;
        shop.orders.renew(LIFETIME_SECS).await;
        shop.web.renew(LIFETIME_SECS).await;
    }
    over.store(true, Ordering::Relaxed);
    while let Some(answered) = load.join_next().await {
        assert!(100 < answered.unwrap());
    }
    let handshakes = shop.web.handshakes();
    assert!((8..120).contains(&handshakes), "{handshakes} handshakes");
}

#[tokio::test]
async fn an_idle_connection_that_the_peer_has_closed_costs_no_request() {
    let (shop, requests) = with_old_door().await;
    let mut caller = shop.caller().await;
    for round in 1..=20 {
        assert_eq!(caller.get("/").await.0, 200);
        assert_eq!(requests.load(Ordering::SeqCst), round);
        // Shuts every connection of that end, as an expired certificate does.
        shop.orders.enforce(super::world::NOTHING, 2);
        shop.orders.enforce(super::world::WEB_TO_ORDERS, 3);
        eventually(|| (shop.orders.plane.trust.connections() == 0).then_some(())).await;
        eventually(|| (shop.web.plane.trust.connections() == 0).then_some(())).await;
    }
}

#[tokio::test]
async fn a_body_whose_end_comes_by_itself_keeps_no_connection_from_the_next_request() {
    let shop = Shop::open(Protocol::Http).await;
    let stream = UnixStream::connect(&shop.local).await.unwrap();
    let (mut sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    for _ in 0..5 {
        // Its length is told, and its end is a frame without any of it.
        let words = [Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"words")))];
        let body = StreamBody::new(futures_util::stream::iter(words));
        let request = Request::post("http://orders/echo").header("content-length", "5");
        let answer = sender.send_request(request.body(body).unwrap()).await.unwrap();
        assert_eq!(read(answer).await, (200, "words".to_owned()));
    }
    assert!(shop.program.accepted() <= 2, "{} connections", shop.program.accepted());
}
