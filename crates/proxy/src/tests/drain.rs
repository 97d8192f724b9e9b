//! Shutdown: nothing that was begun is lost, and nothing is waited for without end.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use http::Request;
use http_body_util::Full;
use tokio::net::TcpStream;

use super::flood::visit_over;
use super::program::Program;
use super::world::{
    Caller, PATIENCE, Proxy, Shop, WEB_TO_ORDERS, directory, eventually, get, inbound, outbound,
    read,
};
use crate::config::Protocol;

#[tokio::test]
async fn a_request_under_way_is_answered_before_the_end() {
    let shop = Shop::open(Protocol::Http).await;
    let mut caller = shop.caller().await;
    let asking = tokio::spawn(async move {
        let answer = caller.send(get("/gate")).await.unwrap();
        let closes = answer.headers().get("connection").is_some_and(|value| value == "close");
        (read(answer).await.0, closes)
    });
    eventually(|| (shop.program.reached() == 1).then_some(())).await;
    let orders = tokio::spawn(shop.orders.end(Duration::from_secs(10)));
    let web = tokio::spawn(shop.web.end(Duration::from_secs(10)));
    eventually(|| (!shop.local.exists()).then_some(())).await;
    shop.program.gate.add_permits(1);
    assert_eq!(asking.await.unwrap(), (200, true), "answered, and told to come back elsewhere");
    assert_eq!((orders.await.unwrap(), web.await.unwrap()), (0, 0), "and nothing was cut");
}

#[tokio::test]
async fn what_does_not_end_is_cut_at_the_deadline() {
    let shop = Shop::open(Protocol::Http).await;
    let mut caller = shop.caller().await;
    let asking = tokio::spawn(async move {
        caller.send(get("/gate")).await.map(|answer| answer.status().as_u16())
    });
    eventually(|| (shop.program.reached() == 1).then_some(())).await;
    let cut = shop.web.end(Duration::from_millis(50)).await;
    assert!(0 < cut);
    assert!(asking.await.unwrap().is_err());
}

#[tokio::test]
async fn a_stream_under_way_is_cut_with_its_connection() {
    let shop = Shop::open(Protocol::Http).await;
    let mut caller = shop.caller().await;
    let asking = tokio::spawn(async move { caller.get("/gate").await });
    eventually(|| (shop.program.reached() == 1).then_some(())).await;
    // Waits until nothing of the door is left, the task of the stream included, whose program does not answer.
    let cut = tokio::time::timeout(PATIENCE, shop.orders.end(Duration::from_millis(50))).await;
    assert!(1 < cut.unwrap(), "the connection, and the stream on it");
    let (status, body) = asking.await.unwrap();
    assert_eq!(status, 502, "{body}");
    assert!(body.contains(r#""code":"peer-closed""#), "{body}");
    assert!(!body.contains("handshake"), "that had ended long before: {body}");
}

#[tokio::test]
async fn ways_out_stay_open_until_those_inside_are_answered() {
    let mut shop = Shop::open(Protocol::Http).await;
    let directory = directory();
    let way = directory.path().join("out.sock");
    let door = inbound(&shop.program.target(), Protocol::Http);
    // A way of `orders` itself, to a second proxy.
    let mut far = Proxy::start(&shop.realm, "orders", WEB_TO_ORDERS).await;
    far.listen(std::slice::from_ref(&door), &[]);
    let both = r#"permit (principal == Workload::"orders", action == Action::"connect", resource == Service::"orders");"#;
    far.enforce(both, 2);
    shop.orders.enforce(&format!("{WEB_TO_ORDERS} {both}"), 2);
    let out = outbound(&shop.realm, &way, &[far.door()], Protocol::Http);
    shop.orders.listen(&[door], &[out]);
    let doors = [shop.orders.door()];
    shop.web.listen(&[], &[outbound(&shop.realm, &shop.local, &doors, Protocol::Http)]);

    let mut caller = shop.caller().await;
    let asking = tokio::spawn(async move { caller.get("/gate").await.0 });
    eventually(|| (shop.program.reached() == 1).then_some(())).await;
    let door = shop.orders.door();
    let ending = tokio::spawn(shop.orders.end(Duration::from_secs(10)));
    eventually(|| std::net::TcpStream::connect(door).is_err().then_some(())).await;
    let (status, body) = Caller::connect(&way).await.get("/").await;
    assert_eq!(status, 200, "the program inside still reaches its own upstreams: {body}");
    shop.program.gate.add_permits(1);
    assert_eq!(asking.await.unwrap(), 200);
    assert_eq!(ending.await.unwrap(), 0);
    assert!(!way.exists());
}

#[tokio::test]
async fn an_idle_proxy_drains_at_once() {
    let shop = Shop::open(Protocol::Http).await;
    let mut caller = shop.caller().await;
    assert_eq!(caller.get("/").await.0, 200);
    // Much sooner than what does not end is cut.
    let ends = tokio::time::timeout(PATIENCE / 2, async {
        (shop.web.end(PATIENCE).await, shop.orders.end(PATIENCE).await)
    });
    assert_eq!(ends.await.unwrap(), (0, 0));
    eventually(|| caller.is_closed().then_some(())).await;
}

#[tokio::test]
async fn a_busy_keep_alive_caller_loses_nothing_while_its_listener_closes() {
    let mut shop = Shop::open(Protocol::Http).await;
    let mut callers = Vec::new();
    for _ in 0..8 {
        callers.push(shop.caller().await);
    }
    let hammering: Vec<_> = callers
        .into_iter()
        .map(|mut caller| {
            tokio::spawn(async move {
                let mut answered = 0;
                loop {
                    let request = Request::post("/echo")
                        .header("host", "orders")
                        .body(Full::from(Bytes::from_static(b"x")));
                    let answer = match caller.send(request.unwrap()).await {
                        Ok(answer) => answer,
                        // Not sent: the connection was closed while it was idle, as announced.
                        Err(error) if error.is_canceled() || error.is_closed() => return answered,
                        Err(error) => panic!("lost after {answered}: {error}"),
                    };
                    let closes =
                        answer.headers().get("connection").is_some_and(|value| value == "close");
                    assert_eq!(read(answer).await, (200, "x".to_owned()));
                    answered += 1;
                    if closes {
                        return answered;
                    }
                }
            })
        })
        .collect();
    eventually(|| (200 < shop.program.reached()).then_some(())).await;
    shop.web.listen(&[], &[]);
    for caller in hammering {
        assert!(0 < caller.await.unwrap());
    }
}

/// The threads of a proxy that has as many cores.
const WORKERS: usize = 4;

/// How many listen at this address.
fn listeners_at(address: SocketAddr) -> usize {
    let SocketAddr::V4(v4) = address else { panic!("expected IPv4, found {address}") };
    let port = format!(":{:04X}", v4.port());
    let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
    let rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    rows.filter(|row| row[1].ends_with(&port) && row[3] == "0A").count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_door_has_a_listener_for_each_core_and_who_had_connected_when_it_closes_is_served() {
    assert_eq!(tokio::runtime::Handle::current().metrics().num_workers(), WORKERS);
    let shop = Shop::open(Protocol::Http).await;
    let door = shop.orders.door();
    assert_eq!(listeners_at(door), WORKERS);
    // Nothing of the door runs while they connect and it is told to close.
    let (held, freed) = (Arc::new(Barrier::new(WORKERS + 1)), Arc::new(Barrier::new(WORKERS + 1)));
    for _ in 0..WORKERS {
        let (held, freed) = (held.clone(), freed.clone());
        tokio::spawn(async move {
            held.wait();
            freed.wait();
        });
    }
    held.wait();
    // Nothing is judged before they are freed: a panic would wait for them without end.
    // So many that some are in each queue.
    let came: Vec<_> = (0..64).map(|_| std::net::TcpStream::connect(door)).collect();
    let mut ending = Box::pin(shop.orders.end(PATIENCE));
    let begun = ending.as_mut().now_or_never();
    freed.wait();
    assert!(begun.is_none());
    let mut visits = tokio::task::JoinSet::new();
    for tcp in came {
        let tcp = tcp.unwrap();
        tcp.set_nonblocking(true).unwrap();
        let (tcp, trust) = (TcpStream::from_std(tcp).unwrap(), shop.web.plane.trust.clone());
        visits.spawn(async move { visit_over(tcp, &trust).await });
    }
    assert_eq!(ending.await, 0, "nothing was cut");
    while let Some(answer) = visits.join_next().await {
        let answer = answer.unwrap();
        assert!(answer.as_ref().is_ok_and(|it| it.starts_with("HTTP/1.1 200")), "{answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_shuts_down_under_load_loses_no_request_while_another_stands() {
    let mut shop = Shop::open(Protocol::Http).await;
    let directory = directory();
    let spare = Program::start(&directory.path().join("spare.sock"));
    let mut second = Proxy::start(&shop.realm, "orders", WEB_TO_ORDERS).await;
    second.listen(&[inbound(&spare.target(), Protocol::Http)], &[]);
    let doors = [shop.orders.door(), second.door()];
    shop.web.listen(&[], &[outbound(&shop.realm, &shop.local, &doors, Protocol::Http)]);
    let mut load = tokio::task::JoinSet::new();
    let over = Arc::new(AtomicBool::new(false));
    for _ in 0..16 {
        let (local, over) = (shop.local.clone(), over.clone());
        load.spawn(async move {
            let mut caller = Caller::connect(&local).await;
            let mut answered = 0;
            while !over.load(Ordering::Relaxed) {
                let body = Full::from(Bytes::from(vec![b'x'; 1 + answered % 5000]));
                let request = Request::post("/echo").header("host", "orders").body(body).unwrap();
                let (status, body) = read(caller.send(request).await.unwrap()).await;
                assert_eq!((status, body.len()), (200, 1 + answered % 5000), "{body}");
                answered += 1;
            }
            answered
        });
    }
    eventually(|| (300 < shop.program.reached()).then_some(())).await;
    assert_eq!(spare.reached(), 0);
    assert_eq!(shop.orders.end(Duration::from_secs(10)).await, 0, "nothing was cut");
    let moved = spare.reached();
    eventually(|| (moved + 300 < spare.reached()).then_some(())).await;
    over.store(true, Ordering::Relaxed);
    while let Some(answered) = load.join_next().await {
        assert!(0 < answered.unwrap());
    }
}

#[tokio::test]
async fn a_program_that_speaks_http_2_is_told_and_loses_nothing() {
    let shop = Shop::open(Protocol::Http).await;
    let stream = tokio::net::UnixStream::connect(&shop.local).await.unwrap();
    let (sender, connection) = hyper::client::conn::http2::handshake(
        hyper_util::rt::TokioExecutor::new(),
        hyper_util::rt::TokioIo::new(stream),
    )
    .await
    .unwrap();
    let driving = tokio::spawn(connection);
    let mut hammering = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let mut sender = sender.clone();
        hammering.spawn(async move {
            let mut answered = 0;
            loop {
                let request =
                    Request::get("http://orders/").body(Full::<Bytes>::default()).unwrap();
                match sender.send_request(request).await {
                    Ok(answer) => assert_eq!(read(answer).await.0, 200),
                    Err(error) => {
                        let last = error.is_canceled()
                            || error.is_closed()
                            || format!("{error:?}").contains("NO_ERROR");
                        assert!(last, "lost after {answered}: {error:?}");
                        return answered;
                    }
                }
                answered += 1;
            }
        });
    }
    drop(sender);
    eventually(|| (100 < shop.program.reached()).then_some(())).await;
    assert_eq!(shop.web.end(Duration::from_secs(10)).await, 0, "nothing was cut");
    while let Some(answered) = hammering.join_next().await {
        assert!(0 < answered.unwrap());
    }
    driving.abort();
}
