//! Requests to a program of ours, decided on before it sees them.

mod router;
mod shop;
mod upgraded;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use countersign::{Asked, AskedBody, RequestLayer};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use tower::Layer;

use self::shop::{Caller, eventually, serve, slice, to};
use crate::agent::Offer;
use crate::enforcement::{orders, web};
use crate::world::World;

#[tokio::test]
async fn each_request_is_decided_on_by_the_form_that_the_program_sees() {
    let mut world = World::new(Offer::Enforcement);
    let (web, _agent, _folder) = web(&world).await;
    let orders = orders(&mut world).await;
    world.agent.enforce(slice(&world, 6, &[("", "GET", "see")]));
    assert_eq!(world.agent.acknowledged().await, (6, 0));
    let (address, seen) = serve(&orders).await;
    let mut caller = Caller::connect(&web, address).await;
    assert_eq!(caller.ask("GET", "/see/1?q=/x").await, (StatusCode::OK, "/see/1?q=/x".into()));
    assert_eq!(caller.ask("GET", "/%73ee/1").await, (StatusCode::OK, "/see/1".into()));
    for (method, path, status) in [
        ("POST", "/see/1", 403),
        ("GET", "/see/1/", 403),
        ("GET", "/other", 403),
        ("POST", "/shop.Orders/Place", 403),
        ("BREW", "/see/1", 403),
        ("GET", "//see/1", 400),
        ("GET", "/x/../see/1", 400),
        ("GET", "/see/%2e%2e", 400),
        ("GET", "/see%2f1", 400),
        ("GET", "/see/1;v=2", 400),
    ] {
        let (found, body) = caller.ask(method, path).await;
        assert_eq!(found.as_u16(), status, "{method} {path}: {body}");
        let code = if status == 403 { "policy-denied" } else { "not-understood" };
        assert!(body.contains(&format!(r#""code":"{code}""#)), "{body}");
    }
    let overriding = to("GET", "/see/1").header("x-http-method-override", "DELETE");
    assert_eq!(caller.send(overriding).await.status(), 400);
    assert_eq!(seen.reached(), 2, "what was denied has reached nobody");

    let lying = to("GET", "/see/1")
        .header("x-countersign-peer", "spiffe://shop.example/a")
        .header("x-countersign-peer", "spiffe://shop.example/b")
        .header("x_countersign_peer", "spiffe://shop.example/c");
    let told = caller.send(lying).await.headers()["told"].clone();
    assert_eq!(told, "x-countersign-peer=spiffe://shop.example/web;", "who asks is said by us");
    assert_eq!(seen.reached(), 3);

    let grpc = to("POST", "/shop.Orders/Place").header("content-type", "application/grpc");
    let response = caller.send(grpc).await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["grpc-status"], "7");
    let flows = orders.reporter().flows().seen();
    let seen = |allowed: bool, name: &str| {
        flows.iter().any(|flow| {
            let named = matches!(&flow.asked, Asked::Operation(it, ..) if it.as_str() == name);
            flow.allowed == allowed && named
        })
    };
    assert!(seen(true, "see") && seen(false, "call"), "{flows:?}");
}

#[tokio::test]
async fn a_change_breaks_off_the_streams_that_it_denies_and_no_other() {
    let mut world = World::new(Offer::Enforcement);
    let (web, _agent, _folder) = web(&world).await;
    let orders = orders(&mut world).await;
    world.agent.enforce(slice(&world, 6, &[("", "GET", "see"), ("", "GET", "follow")]));
    assert_eq!(world.agent.acknowledged().await, (6, 0));
    let (address, _seen) = serve(&orders).await;
    let mut caller = Caller::connect(&web, address).await;
    let mut endless = caller.send(to("GET", "/follow")).await.into_body();
    assert!(endless.frame().await.unwrap().is_ok());
    world.agent.enforce(slice(&world, 7, &[("", "GET", "see")]));
    assert_eq!(world.agent.acknowledged().await, (7, 0), "the connection is not cut");
    let broken = async { while let Some(Ok(_)) = endless.frame().await {} };
    tokio::time::timeout(Duration::from_secs(60), broken).await.unwrap();
    assert_eq!(caller.ask("GET", "/see/1").await.0, 200, "the connection goes on");
    assert_eq!(caller.ask("GET", "/follow").await.0, 403);
}

#[tokio::test]
async fn what_is_over_a_limit_is_told_when_to_come_again() {
    let mut world = World::new(Offer::Enforcement);
    let (web, _agent, _folder) = web(&world).await;
    let orders = orders(&mut world).await;
    world.agent.enforce(slice(&world, 6, &[(r#"@rate("1/h")"#, "GET", "see")]));
    assert_eq!(world.agent.acknowledged().await, (6, 0));
    let (address, seen) = serve(&orders).await;
    let mut caller = Caller::connect(&web, address).await;
    assert_eq!(caller.ask("GET", "/see/1").await.0, 200);
    let refused = caller.send(to("GET", "/see/2")).await;
    assert_eq!(refused.status(), 429);
    let again: u64 = refused.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((3500..=3600).contains(&again), "{again}");
    assert_eq!(seen.reached(), 1);
}

#[tokio::test]
async fn a_change_breaks_off_what_is_still_asked_and_no_other() {
    let mut world = World::new(Offer::Enforcement);
    let (web, _agent, _folder) = web(&world).await;
    let orders = orders(&mut world).await;
    let all = ["flood", "early", "keep"].map(|operation| ("", "POST", operation));
    world.agent.enforce(slice(&world, 6, &all));
    assert_eq!(world.agent.acknowledged().await, (6, 0));
    let (address, seen) = serve(&orders).await;
    let mut caller = Caller::connect(&web, address).await;
    let mut flood = caller.upload("/flood").await;
    // Nobody takes anything of its answer: the program gets rid of what there is room for, and no more.
    eventually(|| 65 * 1024 <= seen.flooded.load(Ordering::SeqCst)).await;
    let (mut early, mut keep) = (caller.upload("/early").await, caller.upload("/keep").await);
    for upload in [&mut early, &mut keep] {
        let answer = (&mut upload.answer).collect().await.unwrap().to_bytes();
        assert_eq!(answer, "early", "it was answered before its end");
    }
    for upload in [&mut flood, &mut early, &mut keep] {
        upload.goes_on(&seen).await;
    }
    world.agent.enforce(slice(&world, 7, &[("", "POST", "keep")]));
    assert_eq!(world.agent.acknowledged().await, (7, 0), "the connection is not cut");
    flood.is_broken_off(&seen).await;
    early.is_broken_off(&seen).await;
    keep.goes_on(&seen).await;
    tokio::time::timeout(Duration::from_secs(60), early.body.closed()).await.unwrap();
    // As soon as it takes again, it is told.
    let rest = async { while let Some(Ok(_)) = flood.answer.frame().await {} };
    tokio::time::timeout(Duration::from_secs(60), rest).await.unwrap();
}

#[tokio::test]
async fn what_began_before_a_service_declared_operations_is_decided_on_as_soon_as_it_does() {
    let mut world = World::new(Offer::Enforcement);
    let (web, _agent, _folder) = web(&world).await;
    let orders = orders(&mut world).await;
    let (address, seen) = serve(&orders).await;
    let mut caller = Caller::connect(&web, address).await;
    let (mut flood, mut keep) = (caller.upload("/flood").await, caller.upload("/keep").await);
    for upload in [&mut flood, &mut keep] {
        upload.goes_on(&seen).await;
    }
    let mut endless = caller.send(to("GET", "/follow")).await.into_body();
    assert!(endless.frame().await.unwrap().is_ok());
    world.agent.enforce(slice(&world, 6, &[("", "POST", "keep")]));
    assert_eq!(world.agent.acknowledged().await, (6, 0), "the connection is not cut");
    flood.is_broken_off(&seen).await;
    keep.goes_on(&seen).await;
    let broken = async { while let Some(Ok(_)) = endless.frame().await {} };
    tokio::time::timeout(Duration::from_secs(60), broken).await.unwrap();
}

#[tokio::test]
async fn what_is_still_asked_counts_after_its_answer_has_ended() {
    let mut world = World::new(Offer::Enforcement);
    let (web, _agent, _folder) = web(&world).await;
    let orders = orders(&mut world).await;
    world.agent.enforce(slice(&world, 6, &[(r#"@concurrent("1")"#, "POST", "early")]));
    assert_eq!(world.agent.acknowledged().await, (6, 0));
    let (address, seen) = serve(&orders).await;
    let mut caller = Caller::connect(&web, address).await;
    let mut early = caller.upload("/early").await;
    (&mut early.answer).collect().await.unwrap();
    early.goes_on(&seen).await;
    assert_eq!(caller.ask("POST", "/early").await.0, 429);
    drop(early.body);
    eventually(|| seen.taken("/early").end == Some(Ok(()))).await;
    assert_eq!(caller.ask("POST", "/early").await.0, 200);
}

#[tokio::test]
async fn a_request_of_which_nobody_says_who_asks_is_denied() {
    let mut world = World::new(Offer::Enforcement);
    let orders = orders(&mut world).await;
    let layer = RequestLayer::new(&orders, "orders".parse().unwrap());
    let reached = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&reached);
    let program = tower::service_fn(move |_request: Request<AskedBody<Full<Bytes>>>| {
        counted.fetch_add(1, Ordering::SeqCst);
        async { Ok::<_, Infallible>(Response::new(Full::<Bytes>::default())) }
    });
    let request = Request::builder().uri("/see/1").body(Full::default()).unwrap();
    let response = tower::ServiceExt::oneshot(layer.layer(program), request).await.unwrap();
    assert_eq!(response.status(), 403);
    assert_eq!(reached.load(Ordering::SeqCst), 0);
}
