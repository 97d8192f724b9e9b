//! Graceful revocation: what is under way is finished, nothing new begins, nothing is lost, and there is a deadline.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use countersign_identity::{Code, Reason, SimClock, Timestamp};
use countersign_tls::{DRAIN_TIMEOUT, Expected, Outbound, dial};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use super::http::upgraded;
use super::world::{Caller, PATIENCE, Shop, directory, eventually, get, inbound, name, read};
use crate::config::Protocol;
use crate::dial::Target;

const GRACEFUL: Reason = Reason::Superseded;

/// A request that waits at the program.
async fn under_way(shop: &Shop) -> tokio::task::JoinHandle<u16> {
    let (mut caller, before) = (shop.caller().await, shop.program.reached());
    let asking = tokio::spawn(async move { caller.get("/gate").await.0 });
    eventually(|| (before < shop.program.reached()).then_some(())).await;
    asking
}

#[tokio::test]
async fn the_called_side_finishes_what_is_under_way_and_begins_nothing_new() {
    let shop = Shop::open(Protocol::Http).await;
    let asking = under_way(&shop).await;
    let applied = shop.orders.revoke(GRACEFUL, &shop.web.own_key());
    assert_eq!((applied.cut, applied.draining), (0, 1));
    // The caller's side knows nothing yet, and has no other certificate.
    let mut caller = shop.caller().await;
    assert_ne!(caller.get("/").await.0, 200);
    shop.orders.refused(Code::Revoked).await;
    assert_eq!(shop.program.reached(), 1, "nothing new has begun");
    shop.web.renew(3600).await;
    let again = async { while caller.get("/").await.0 != 200 {} };
    tokio::time::timeout(PATIENCE, again).await.expect("its new certificate is good");
    assert_eq!((shop.orders.draining(), shop.orders.connections()), (1, 2));
    shop.program.gate.add_permits(1);
    assert_eq!(asking.await.unwrap(), 200, "and what was under way is answered");
    eventually(|| (shop.orders.draining() == 0).then_some(())).await;
    eventually(|| (shop.orders.connections() == 1).then_some(())).await;
}

#[tokio::test]
async fn the_calling_side_finishes_what_is_under_way_and_begins_nothing_new() {
    let shop = Shop::open(Protocol::Http).await;
    let asking = under_way(&shop).await;
    let applied = shop.web.revoke(GRACEFUL, &shop.orders.own_key());
    assert_eq!((applied.cut, applied.draining), (0, 1));
    let mut caller = shop.caller().await;
    assert_eq!(caller.get("/").await.0, 502);
    shop.web.refused(Code::Revoked).await;
    assert_eq!(shop.program.reached(), 1, "nothing new has begun");
    shop.orders.renew(3600).await;
    let again = async { while caller.get("/").await.0 != 200 {} };
    tokio::time::timeout(PATIENCE, again).await.expect("its new certificate is good");
    shop.program.gate.add_permits(1);
    assert_eq!(asking.await.unwrap(), 200);
    eventually(|| (shop.web.draining() == 0).then_some(())).await;
}

#[tokio::test]
async fn a_caller_of_http_1_is_told_to_come_back_over_another_connection() {
    let shop = Shop::open(Protocol::Http).await;
    let mut outbound = Outbound::service(name("orders"), Expected::Id(shop.realm.id("orders")));
    outbound.alpn = vec![b"http/1.1".to_vec()];
    let mut stream =
        dial(&shop.web.plane.trust, shop.orders.door(), &outbound).await.unwrap().stream;
    stream.write_all(b"GET /gate HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    stream.flush().await.unwrap();
    eventually(|| (shop.program.reached() == 1).then_some(())).await;
    assert_eq!(shop.orders.revoke(GRACEFUL, &shop.web.own_key()).draining, 1);
    // A second request, behind the one that is under way.
    stream.write_all(b"GET /second HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    stream.flush().await.unwrap();
    shop.program.gate.add_permits(1);
    let mut answers = Vec::new();
    tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answers)).await.unwrap().ok();
    let answers = String::from_utf8_lossy(&answers);
    assert!(answers.starts_with("HTTP/1.1 200"), "{answers}");
    assert!(answers.contains("connection: close"), "{answers}");
    assert_eq!(shop.program.reached(), 1, "{answers}");
    eventually(|| (shop.orders.connections() == 0).then_some(())).await;
}

#[tokio::test]
async fn an_idle_connection_closes_by_itself_long_before_the_deadline() {
    let shop = Shop::open(Protocol::Http).await;
    let mut caller = shop.caller().await;
    assert_eq!(caller.get("/").await.0, 200);
    let key = shop.web.own_key();
    shop.web.renew(3600).await;
    let applied = shop.orders.revoke(GRACEFUL, &key);
    assert_eq!(applied.draining, 1);
    tokio::time::timeout(Duration::from_secs(10), async {
        eventually(|| (shop.orders.draining() == 0).then_some(())).await;
    })
    .await
    .expect("within the time that announcing takes");
    assert_eq!(caller.get("/").await.0, 200);
}

/// Re-issued first, then superseded, at both ends and out of step, again and again under load.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_fails_while_credentials_are_superseded_under_load() {
    let shop = Shop::open(Protocol::Http).await;
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
                tokio::time::sleep(Duration::from_millis(3)).await;
            }
            answered
        });
    }
    for round in 1..=6 {
        let (web, orders) = (shop.web.own_key(), shop.orders.own_key());
        shop.web.renew(3600).await;
        shop.orders.renew(3600).await;
        let before = shop.program.reached();
        eventually(|| (before + 50 < shop.program.reached()).then_some(())).await;
        // Each end hears of it first in turn.
        let ends = [&shop.web, &shop.orders];
        let ends = if round % 2 == 0 { ends } else { [ends[1], ends[0]] };
        for end in ends {
            end.revoke(GRACEFUL, &web);
            end.revoke(GRACEFUL, &orders);
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
        eventually(|| (shop.orders.draining() + shop.web.draining() == 0).then_some(())).await;
    }
    over.store(true, Ordering::Relaxed);
    while let Some(answered) = load.join_next().await {
        assert!(50 < answered.unwrap());
    }
    assert!(0 < shop.orders.plane.trust.revoked() + shop.web.plane.trust.revoked());
}

/// What cannot be told to finish goes on until the deadline, and not longer.
#[tokio::test]
async fn what_cannot_be_drained_is_cut_at_the_deadline() {
    let clock = Arc::new(SimClock::new(Timestamp::from_secs(1_790_000_000)));
    let web = Shop::open_on(clock.clone(), Protocol::Http).await;
    let mut tunnel = upgraded(&mut web.caller().await).await;
    let mut raw = Shop::open_on(clock.clone(), Protocol::Tcp).await;
    let directory = directory();
    let path = directory.path().join("raw.sock");
    let listener = UnixListener::bind(&path).unwrap();
    raw.orders.listen(&[inbound(&Target::Unix(path), Protocol::Tcp)], &[]);
    let mut client = UnixStream::connect(&raw.local).await.unwrap();
    client.write_all(b"x").await.unwrap();
    let (mut server, _) = listener.accept().await.unwrap();
    server.read_exact(&mut [0; 1]).await.unwrap();

    for shop in [&web, &raw] {
        let applied = shop.orders.revoke(GRACEFUL, &shop.web.own_key());
        assert_eq!((applied.cut, applied.draining), (0, 1));
    }
    clock.advance(DRAIN_TIMEOUT);
    tunnel.write_all(b"y").await.unwrap();
    tunnel.read_exact(&mut [0; 1]).await.unwrap();
    client.write_all(b"y").await.unwrap();
    server.read_exact(&mut [0; 1]).await.unwrap();
    clock.advance(Duration::from_micros(1));
    let reading = async { while let Ok(1..) = tunnel.read(&mut [0; 8]).await {} };
    tokio::time::timeout(PATIENCE, reading).await.expect("the tunnel ends");
    let reading = async { while let Ok(1..) = server.read(&mut [0; 8]).await {} };
    tokio::time::timeout(PATIENCE, reading).await.expect("the byte stream ends");
    for shop in [&web, &raw] {
        eventually(|| (shop.orders.draining() == 0).then_some(())).await;
    }
}
