//! Doors that are to be elsewhere.

use std::net::SocketAddr;

use tokio::net::TcpListener;

use super::world::{
    Caller, Proxy, Shop, WEB_TO_ORDERS, directory, eventually, inbound, name, outbound,
};
use crate::config::{FixedInbound, Protocol};
use crate::plan::Plan;

/// How often a port that is free for a moment is tried, in place of which somebody else may get it.
const ROUNDS: usize = 8;

/// A door for the same program there.
fn at(shop: &Shop, listen: SocketAddr) -> Plan {
    let door = inbound(&shop.program.target(), Protocol::Http);
    Plan::fixed(&[FixedInbound { listen, ..door }], &[])
}

fn missing(proxy: &Proxy) -> String {
    let told = proxy.exposed();
    let mut lines = told.lines();
    let line = lines.find_map(|line| line.strip_prefix("countersign_proxy_listeners_missing "));
    line.unwrap().to_owned()
}

/// Whether a caller who has no connection yet is let in there.
async fn lets_in(shop: &Shop, door: SocketAddr) -> u16 {
    let directory = directory();
    let local = directory.path().join("web.sock");
    let mut web = Proxy::start(&shop.realm, "web", WEB_TO_ORDERS).await;
    web.listen(&[], &[outbound(&shop.realm, &local, &[door], Protocol::Http)]);
    Caller::connect(&local).await.get("/").await.0
}

#[tokio::test]
async fn a_door_whose_new_place_is_taken_stays_open_where_it_was_and_it_is_told() {
    let mut shop = Shop::open(Protocol::Http).await;
    let (before, stranger) = (shop.orders.door(), TcpListener::bind("127.0.0.1:0").await.unwrap());
    let there = stranger.local_addr().unwrap();
    assert_eq!(missing(&shop.orders), "0");
    let plan = at(&shop, there);
    for _ in 0..2 {
        let faults = shop.orders.supervisor.reconcile(&plan);
        assert_eq!(faults.len(), 1, "{faults:?}");
        assert!(faults[0].to_string().contains(&there.to_string()), "{}", faults[0]);
        assert_eq!((shop.orders.door(), missing(&shop.orders).as_str()), (before, "1"));
        assert_eq!(lets_in(&shop, before).await, 200);
    }
    // Somebody else may be quicker to take a port that was just freed: then it is another port's turn.
    let (mut there, mut stranger) = (there, stranger);
    for round in 1.. {
        drop(stranger);
        let faults = shop.orders.supervisor.reconcile(&at(&shop, there));
        if faults.is_empty() {
            break;
        }
        assert!(round < ROUNDS, "{faults:?}");
        stranger = TcpListener::bind("127.0.0.1:0").await.unwrap();
        there = stranger.local_addr().unwrap();
    }
    assert_eq!((shop.orders.door(), missing(&shop.orders).as_str()), (there, "0"));
    assert_eq!(lets_in(&shop, there).await, 200);
    eventually(|| std::net::TcpStream::connect(before).is_err().then_some(())).await;
}

#[tokio::test]
async fn a_door_that_is_in_the_way_of_its_own_new_place_closes_first_and_nothing_is_told() {
    for round in 1.. {
        let mut shop = Shop::open(Protocol::Http).await;
        let port = shop.orders.door().port();
        let plan = at(&shop, SocketAddr::from(([0, 0, 0, 0], port)));
        let faults = shop.orders.supervisor.follow(&plan).await;
        if faults.is_empty() {
            assert!(shop.orders.door().ip().is_unspecified());
            assert_eq!(missing(&shop.orders), "0");
            assert_eq!(lets_in(&shop, SocketAddr::from(([127, 0, 0, 1], port))).await, 200);
            return;
        }
        assert!(round < ROUNDS, "{faults:?}");
    }
}

#[tokio::test]
async fn who_takes_the_place_of_another_waits_until_it_is_free() {
    for round in 1.. {
        let mut shop = Shop::open(Protocol::Http).await;
        let door = inbound(&shop.program.target(), Protocol::Http);
        let called =
            |service, listen| FixedInbound { service: name(service), listen, ..door.clone() };
        let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
        shop.orders.listen(&[called("a", anywhere), called("b", anywhere)], &[]);
        let places = |proxy: &Proxy| -> Vec<_> {
            proxy.supervisor.bound().0.iter().map(|door| door.listen).collect()
        };
        let [a, b] = places(&shop.orders)[..] else { panic!("two doors") };
        let doors = Plan::fixed(&[called("a", b), called("b", a)], &[]);
        let mut second = outbound(&shop.realm, &shop.local, &[a], Protocol::Http);
        second.service = name("orders-2");
        let ways = Plan::fixed(&[], &[second]);
        let ways = shop.web.supervisor.follow(&ways).await;
        assert!(ways.is_empty(), "{ways:?}");
        let faults = shop.orders.supervisor.follow(&doors).await;
        if faults.is_empty() {
            assert_eq!(places(&shop.orders), [b, a]);
            return;
        }
        assert!(round < ROUNDS, "{faults:?}");
    }
}
