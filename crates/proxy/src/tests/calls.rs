//! Requests that are decided on one by one: how a denial looks, how much is too much, and what ends with a policy.

mod uploads;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use countersign::{Asked, Flow};
use countersign_api::v1;
use countersign_identity::{Clock, Code, Reason, SimClock, SystemClock, Timestamp, Verb};
use countersign_policy::{Operation, Operations};
use countersign_tls::Slice;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::world::{Caller, PATIENCE, Shop, eventually, get, name, read};
use crate::config::Protocol;

fn operations() -> Operations {
    let operation = |of: &str, verb, template: &str| Operation {
        name: name(of),
        verb,
        template: template.parse().unwrap(),
    };
    let of_orders = vec![
        operation("see", Verb::Get, "/see/{id}"),
        operation("gate", Verb::Get, "/gate"),
        operation("endless", Verb::Get, "/endless"),
        operation("upgrade", Verb::Get, "/upgrade"),
        operation("upgrade-too", Verb::Get, "/upgrade-too"),
        operation("call", Verb::Post, "/shop.Orders/Place"),
        operation("early", Verb::Post, "/early"),
        operation("flood", Verb::Post, "/flood"),
        operation("keep", Verb::Post, "/keep"),
    ];
    Operations::new([(name("orders"), of_orders)])
}

fn permit(annotations: &str, action: &str, operation: &str) -> String {
    format!(
        r#"{annotations} @id("{operation}") permit (principal == Workload::"web", action == Action::"{action}", resource == Operation::"orders/{operation}");"#
    )
}

async fn shop(policy: &str) -> Shop {
    let shop = Shop::open(Protocol::Http).await;
    shop.orders.enforce_calls(policy, operations(), None);
    shop
}

fn grpc(path: &str) -> Request<Full<Bytes>> {
    let request = Request::post(path).header("host", "orders").header("te", "trailers");
    request.header("content-type", "application/grpc").body(Full::default()).unwrap()
}

#[track_caller]
fn status_is(response: &Response<Incoming>, status: &str, about: &str) {
    assert_eq!(response.status(), 200, "gRPC says it in its own status");
    let field = |name: &str| response.headers().get(name).map(|value| value.to_str().unwrap());
    assert_eq!(field("content-type"), Some("application/grpc"));
    assert_eq!(field("grpc-status"), Some(status));
    let said = field("grpc-message").unwrap();
    assert!(said.contains(about), "{said}");
}

#[tokio::test]
async fn a_denied_call_of_grpc_is_told_by_its_own_status_and_reaches_nobody() {
    let shop = shop(&permit("", "GET", "see")).await;
    let mut caller = shop.caller().await;
    for path in ["/shop.Orders/Place", "/shop.Orders/Other"] {
        let response = caller.send(grpc(path)).await.unwrap();
        status_is(&response, "7", "may not ask `orders`");
        assert!(response.into_body().collect().await.unwrap().to_bytes().is_empty());
    }
    assert_eq!(shop.program.reached(), 0);
    let (status, body) = caller.get("/see/1").await;
    assert_eq!(status, 200, "the connection goes on: {body}");
    let (status, body) = caller.get("/other").await;
    assert_eq!(status, 403);
    assert!(body.contains(r#""code":"policy-denied""#) && !body.contains("#see"), "{body}");
}

#[tokio::test]
async fn more_than_the_rate_is_refused_without_reaching_the_program_and_is_on_record() {
    let policy = permit("@rate(\"3/h\")", "GET", "see") + &permit("@rate(\"1/h\")", "POST", "call");
    let shop = shop(&policy).await;
    let mut caller = shop.caller().await;
    for _ in 0..3 {
        assert_eq!(caller.get("/see/1").await.0, 200);
    }
    let (status, body) = caller.get("/see/2").await;
    assert_eq!(status, 429, "{body}");
    assert!(
        body.contains(r#""code":"rate-limited""#) && body.contains("again in 1200 s"),
        "{body}"
    );
    assert_eq!(shop.program.reached(), 3);
    let refused = caller.send(get("/see/2")).await.unwrap();
    assert_eq!(refused.headers()["retry-after"], "1200");
    let (status, _) = read(caller.send(grpc("/shop.Orders/Place")).await.unwrap()).await;
    assert_eq!((status, shop.program.reached()), (200, 4), "another policy has its own limit");
    status_is(&caller.send(grpc("/shop.Orders/Place")).await.unwrap(), "8", "permits this caller");
    assert_eq!(shop.program.reached(), 4);
    let recorded = shop.orders.plane.requests.flows().seen();
    let limited = |flow: &&Flow| !flow.allowed && flow.policies == ["shop#see"];
    let flow = recorded.iter().find(limited).expect("it is on record");
    assert!(matches!(&flow.asked, Asked::Operation(operation, ..) if operation.as_str() == "see"));
}

#[tokio::test]
async fn more_at_once_than_a_policy_permits_are_refused_until_one_is_done() {
    let shop = shop(&permit("@concurrent(\"1\")", "GET", "gate")).await;
    let (mut first, mut second) = (shop.caller().await, shop.caller().await);
    let waiting = tokio::spawn(async move { first.get("/gate").await.0 });
    eventually(|| (shop.program.reached() == 1).then_some(())).await;
    let (status, body) = second.get("/gate").await;
    assert_eq!(status, 429, "{body}");
    assert_eq!(shop.program.reached(), 1);
    shop.program.gate.add_permits(2);
    assert_eq!(waiting.await.unwrap(), 200);
    assert_eq!(second.get("/gate").await.0, 200);
}

/// An upgraded connection, which says back what it hears.
async fn upgraded(caller: &mut Caller, path: &str) -> TokioIo<hyper::upgrade::Upgraded> {
    let mut request = get(path);
    let headers = request.headers_mut();
    headers.insert("connection", "upgrade".parse().unwrap());
    headers.insert("upgrade", "echo".parse().unwrap());
    let response = caller.send(request).await.unwrap();
    assert_eq!(response.status(), 101);
    let mut io = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    assert!(echoes(&mut io).await);
    io
}

async fn echoes(io: &mut TokioIo<hyper::upgrade::Upgraded>) -> bool {
    let mut answer = [0; 4];
    let sent = io.write_all(b"ping").await;
    sent.is_ok() && io.read_exact(&mut answer).await.is_ok() && answer == *b"ping"
}

#[tokio::test]
async fn a_change_ends_the_upgraded_connections_that_it_denies_and_no_other() {
    let both = permit("", "GET", "see") + &permit("", "GET", "upgrade");
    let shop = shop(&both).await;
    let (mut plain, mut caller) = (shop.caller().await, shop.caller().await);
    let mut io = upgraded(&mut caller, "/upgrade").await;
    assert_eq!(plain.get("/see/1").await.0, 200);
    let more = both.clone() + &permit("", "GET", "gate");
    assert_eq!(shop.orders.enforce_calls(&more, operations(), None), 0);
    assert!(echoes(&mut io).await, "what is permitted still goes on");
    let other = permit("", "GET", "see");
    assert_eq!(shop.orders.enforce_calls(&other, operations(), None), 1);
    assert!(!echoes(&mut io).await, "it was closed");
    assert_eq!(plain.get("/see/1").await.0, 200, "which connects, and asks for something else");
    assert!(!plain.is_closed());
    let mut request = get("/upgrade");
    request.headers_mut().insert("connection", "upgrade".parse().unwrap());
    request.headers_mut().insert("upgrade", "echo".parse().unwrap());
    assert_eq!(plain.send(request).await.unwrap().status(), 403);
}

#[tokio::test]
async fn a_change_ends_the_streams_that_it_denies_and_not_their_connection() {
    let shop = shop(
        &(permit("", "GET", "see") + &permit("", "GET", "endless") + &permit("", "GET", "gate")),
    )
    .await;
    let (mut first, mut second) = (shop.caller().await, shop.caller().await);
    let mut endless = first.send(get("/endless")).await.unwrap().into_body();
    assert_eq!(endless.frame().await.unwrap().unwrap().into_data().unwrap(), "one");
    let waiting = tokio::spawn(async move { second.get("/gate").await });
    eventually(|| (shop.program.reached() == 2).then_some(())).await;
    let ended = shop.orders.enforce_calls(&permit("", "GET", "see"), operations(), None);
    assert_eq!(ended, 0, "no connection");
    let rest = tokio::time::timeout(Duration::from_secs(10), endless.frame()).await.unwrap();
    assert!(rest.is_none_or(|frame| frame.is_err()), "it is broken off");
    assert_eq!(waiting.await.unwrap().0, 403, "what had no answer yet is denied");
    assert_eq!(shop.caller().await.get("/see/1").await.0, 200);
}

#[tokio::test]
async fn a_change_ends_the_streams_that_it_denies_on_a_connection_that_drains_as_well() {
    // Nothing moves it, so that no deadline cuts the connection.
    let clock = Arc::new(SimClock::new(Timestamp::from_secs(1_790_000_000)));
    let shop = Shop::open_on(clock, Protocol::Http).await;
    let see = permit("", "GET", "see");
    shop.orders.enforce_calls(&(permit("", "GET", "endless") + &see), operations(), None);
    let mut caller = shop.caller().await;
    let mut endless = caller.send(get("/endless")).await.unwrap().into_body();
    assert_eq!(endless.frame().await.unwrap().unwrap().into_data().unwrap(), "one");
    let applied = shop.orders.revoke(Reason::Superseded, &shop.web.own_key());
    assert_eq!((applied.cut, applied.draining), (0, 1));
    assert_eq!(shop.orders.enforce_calls(&see, operations(), None), 0, "it drains still");
    let rest = tokio::time::timeout(PATIENCE, endless.frame()).await.unwrap();
    assert!(rest.is_none_or(|frame| frame.is_err()), "it is broken off");
}

#[tokio::test]
async fn a_policys_end_ends_what_it_let_in_and_permits_nothing_from_then_on() {
    let shop = shop(&permit("", "GET", "gate")).await;
    let until = SystemClock::new().now() + Duration::from_secs(2);
    let both = permit("", "GET", "see") + &permit("", "GET", "upgrade");
    shop.orders.enforce_calls(&both, operations(), Some(until));
    let (mut plain, mut caller) = (shop.caller().await, shop.caller().await);
    let mut io = upgraded(&mut caller, "/upgrade").await;
    assert_eq!(plain.get("/see/1").await.0, 200);
    // Nobody applies anything: it ends by itself.
    let mut rest = Vec::new();
    let closed = tokio::time::timeout(Duration::from_secs(10), io.read_to_end(&mut rest)).await;
    assert!(closed.is_ok() && until <= SystemClock::new().now());
    let (status, body) = plain.get("/see/1").await;
    assert_eq!(status, 403, "{body}");
    let why = shop.orders.plane.trust.slice().policies.ends();
    assert_eq!(why, None);
    assert!(!shop.orders.has_refused(Code::PolicyDenied), "nobody was kept from connecting");
}

#[tokio::test]
async fn a_request_is_decided_at_its_own_moment_and_what_goes_on_ends_when_its_time_is_over() {
    let shop = shop(&permit("", "GET", "gate")).await;
    let end = (SystemClock::new().now() + Duration::from_secs(10)).floor_secs();
    let timed = |operation: &str| {
        let until = format!(") when {{ context.time < datetime(\"{end}\") }};");
        permit("", "GET", operation).replace(");", &until)
    };
    let policy = timed("see") + &timed("upgrade") + &permit("", "GET", "gate");
    shop.orders.enforce_calls(&policy, operations(), None);
    let (mut plain, mut caller) = (shop.caller().await, shop.caller().await);
    let mut io = upgraded(&mut caller, "/upgrade").await;
    assert_eq!(plain.get("/see/1").await.0, 200);
    let mut rest = Vec::new();
    let closed = tokio::time::timeout(Duration::from_secs(60), io.read_to_end(&mut rest)).await;
    assert!(closed.is_ok() && end <= SystemClock::new().now());
    let (status, body) = plain.get("/see/1").await;
    assert_eq!(status, 403, "over the connection that was there: {body}");
    shop.program.gate.add_permits(1);
    assert_eq!(plain.get("/gate").await.0, 200, "which goes on for what has no time");
}

#[tokio::test]
async fn what_was_decided_before_on_a_connection_holds_only_as_long_as_it_would_be_decided_so() {
    let too = r#"permit (principal == Workload::"renamed", action == Action::"connect", resource == Service::"orders");"#;
    let policy = permit("", "GET", "see") + too;
    let shop = shop(&policy).await;
    let mut caller = shop.caller().await;
    let statuses = async |caller: &mut Caller| {
        let mut seen = Vec::new();
        for path in ["/see/1", "/see/2", "/other", "/see/3"] {
            seen.push(caller.get(path).await.0);
        }
        seen
    };
    assert_eq!(statuses(&mut caller).await, [200, 200, 403, 200]);

    // Another operation of the same path, then other policies on the same operations.
    let other =
        Operation { name: name("look"), verb: Verb::Get, template: "/see/2".parse().unwrap() };
    let declared = operations();
    let with_other = declared.of("orders").unwrap().iter().cloned().chain([other]);
    let with_other = Operations::new([(name("orders"), with_other.collect())]);
    shop.orders.enforce_calls(&policy, with_other, None);
    assert_eq!(statuses(&mut caller).await, [200, 403, 403, 200]);
    shop.orders.enforce_calls(&(permit("", "GET", "gate") + too), operations(), None);
    assert_eq!(statuses(&mut caller).await, [403; 4]);
    shop.orders.enforce_calls(&policy, operations(), None);
    assert_eq!(statuses(&mut caller).await, [200, 200, 403, 200]);

    // The same policies, by which the peer is another.
    let before = shop.orders.plane.trust.slice();
    let renamed = before.names.keys().map(|id| (id.clone(), name("renamed"))).collect();
    let slice = Slice { names: Arc::new(renamed), ..Slice::clone(&before) };
    shop.orders.plane.trust.apply(slice);
    assert_eq!(statuses(&mut caller).await, [403; 4], "on the same connection");
    let names = Arc::clone(&before.names);
    shop.orders.plane.trust.apply(Slice { names, ..Slice::clone(&before) });
    assert_eq!(statuses(&mut caller).await, [200, 200, 403, 200]);
}

#[tokio::test]
async fn each_request_counts_in_the_flow_that_it_is_however_often_that_is_told() {
    let shop = shop(&permit("", "GET", "see")).await;
    let (mut first, mut second) = (shop.caller().await, shop.caller().await);
    let flows = shop.orders.plane.requests.flows().clone();
    for _told in 0..3 {
        for caller in [&mut first, &mut second] {
            for path in ["/see/1", "/see/2", "/other", "/another", "/see/1"] {
                caller.get(path).await;
            }
        }
        let (told, dropped) = flows.drain();
        let of = |operation: &str, allowed| {
            let asked = |flow: &&v1::Flow| flow.operation == operation && flow.method == "GET";
            let mut these = told.iter().filter(asked);
            let flow = these.next().filter(|flow| flow.allowed == allowed);
            (flow.map(|flow| flow.count), these.count(), dropped)
        };
        assert_eq!(of("see", true), (Some(6), 0, 0));
        assert_eq!(of("", false), (Some(4), 0, 0));
    }
}
