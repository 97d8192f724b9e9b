//! Requests to a program of ours, decided on before it sees them.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::extract::{ConnectInfo, Path};
use bytes::Bytes;
use countersign::{
    Admitted, Asked, AskedBody, Connection, Door, Expected, Inbound, Outbound, RequestLayer,
    Source, dial,
};
use countersign_api::v1;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tower::Layer;

use crate::agent::Offer;
use crate::enforcement::{orders, web};
use crate::world::{PERMIT, World, policy};

const OPERATIONS: &str = r#"[{"name":"see","method":"GET","path":"/see/{id}"},{"name":"follow","method":"GET","path":"/follow"},{"name":"call","method":"POST","path":"/shop.Orders/Place"}]"#;

/// A slice in which `orders` declares operations and `web` may do this with them.
fn slice(world: &World, number: u64, permits: &[(&str, &str, &str)]) -> v1::Slice {
    let mut slice = world.slice(number, "orders");
    let head = r#"{"workload":"orders","protocol":"http","listen":"127.0.0.1:4","forward":"unix","operations":"#;
    slice.services[0].value = format!("{head}{OPERATIONS}}}").into();
    let permits = permits.iter().map(|(annotations, method, operation)| {
        let text = format!(
            r#"{annotations} permit (principal == Workload::"web", action == Action::"{method}", resource == Operation::"orders/{operation}");"#
        );
        v1::Record { name: (*operation).to_owned(), ..policy(&text) }
    });
    slice.policies = std::iter::once(policy(PERMIT)).chain(permits).collect();
    slice
}

type Said = http_body_util::combinators::BoxBody<Bytes, Infallible>;

/// The program: it says which path it was asked for, and on `/follow` goes on without end.
async fn program(
    request: Request<AskedBody<Incoming>>,
    reached: Arc<AtomicUsize>,
) -> Response<Said> {
    reached.fetch_add(1, Ordering::SeqCst);
    if request.uri().path() == "/follow" {
        let (send, frames) = mpsc::channel(1);
        tokio::spawn(async move {
            while send.send(Ok(Frame::data(Bytes::from_static(b"more")))).await.is_ok() {}
        });
        return Response::new(StreamBody::new(ReceiverStream::new(frames)).boxed());
    }
    let path = request.uri().path_and_query().map(ToString::to_string).unwrap_or_default();
    let told = request.headers().iter().filter(|(name, _)| name.as_str().contains("peer"));
    let told = told.map(|(name, value)| format!("{name}={};", value.to_str().unwrap()));
    let mut response = Response::new(Full::from(path).boxed());
    response.headers_mut().insert("told", told.collect::<String>().parse().unwrap());
    response
}

/// Serves HTTP/2 at a door of `orders`.
async fn serve(orders: &Source) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut inbound = Inbound::service("orders".parse().unwrap());
    inbound.alpn = vec![b"h2".to_vec()];
    let mut door = Door::new(orders, listener, inbound);
    let layer = RequestLayer::new(orders, "orders".parse().unwrap());
    let (address, reached) = (door.local_address().unwrap(), Arc::new(AtomicUsize::new(0)));
    let counted = Arc::clone(&reached);
    tokio::spawn(async move {
        loop {
            let connection = door.accept().await;
            let reached = Arc::clone(&counted);
            let answer = tower::service_fn(move |request| {
                let reached = Arc::clone(&reached);
                async move { Ok::<_, Infallible>(program(request, reached).await) }
            });
            let service = TowerToHyperService::new(layer.of(&connection).layer(answer));
            let http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(http.serve_connection(TokioIo::new(connection), service));
        }
    });
    (address, reached)
}

/// A connection of `web`.
struct Caller(hyper::client::conn::http2::SendRequest<Full<Bytes>>);

impl Caller {
    async fn connect(web: &Source, address: SocketAddr) -> Self {
        let expected = Expected::Id("spiffe://shop.example/orders".parse().unwrap());
        let mut outbound = Outbound::service("orders".parse().unwrap(), expected);
        outbound.alpn = vec![b"h2".to_vec()];
        let stream = dial(&web.trust(), address, &outbound).await.unwrap().stream;
        let io = TokioIo::new(stream);
        let (send, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
        tokio::spawn(connection);
        Self(send)
    }

    async fn send(&mut self, request: http::request::Builder) -> Response<Incoming> {
        let request = request.body(Full::default()).unwrap();
        self.0.send_request(request).await.unwrap()
    }

    async fn ask(&mut self, method: &str, path: &str) -> (StatusCode, String) {
        let response = self.send(to(method, path)).await;
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }
}

fn to(method: &str, path: &str) -> http::request::Builder {
    Request::builder().method(method).uri(format!("https://orders{path}"))
}

#[tokio::test]
async fn each_request_is_decided_on_by_the_form_that_the_program_sees() {
    let mut world = World::new(Offer::Enforcement);
    let (web, _agent, _folder) = web(&world).await;
    let orders = orders(&mut world).await;
    world.agent.enforce(slice(&world, 6, &[("", "GET", "see")]));
    assert_eq!(world.agent.acknowledged().await, (6, 0));
    let (address, reached) = serve(&orders).await;
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
    assert_eq!(reached.load(Ordering::SeqCst), 2, "what was denied has reached nobody");

    let lying = to("GET", "/see/1")
        .header("x-countersign-peer", "spiffe://shop.example/a")
        .header("x-countersign-peer", "spiffe://shop.example/b")
        .header("x_countersign_peer", "spiffe://shop.example/c");
    let told = caller.send(lying).await.headers()["told"].clone();
    assert_eq!(told, "x-countersign-peer=spiffe://shop.example/web;", "who asks is said by us");
    assert_eq!(reached.load(Ordering::SeqCst), 3);

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
    let (address, _reached) = serve(&orders).await;
    let mut caller = Caller::connect(&web, address).await;
    let mut endless = caller.send(to("GET", "/follow")).await.into_body();
    assert!(endless.frame().await.unwrap().is_ok());
    world.agent.enforce(slice(&world, 7, &[("", "GET", "see")]));
    assert_eq!(world.agent.acknowledged().await, (7, 0), "the connection is not cut");
    let broken = async { while let Some(Ok(_)) = endless.frame().await {} };
    tokio::time::timeout(std::time::Duration::from_secs(60), broken).await.unwrap();
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
    let (address, reached) = serve(&orders).await;
    let mut caller = Caller::connect(&web, address).await;
    assert_eq!(caller.ask("GET", "/see/1").await.0, 200);
    let refused = caller.send(to("GET", "/see/2")).await;
    assert_eq!(refused.status(), 429);
    let again: u64 = refused.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((3500..=3600).contains(&again), "{again}");
    assert_eq!(reached.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_request_of_which_nobody_says_who_asks_is_denied() {
    let mut world = World::new(Offer::Enforcement);
    let orders = orders(&mut world).await;
    let layer = RequestLayer::new(&orders, "orders".parse().unwrap());
    let reached = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&reached);
    let program = tower::service_fn(move |_request: Request<AskedBody<()>>| {
        counted.fetch_add(1, Ordering::SeqCst);
        async { Ok::<_, Infallible>(Response::new(Full::<Bytes>::default())) }
    });
    let request = Request::builder().uri("/see/1").body(()).unwrap();
    let response = tower::ServiceExt::oneshot(layer.layer(program), request).await.unwrap();
    assert_eq!(response.status(), 403);
    assert_eq!(reached.load(Ordering::SeqCst), 0);
}

/// A door as axum wants it, and who is at the other end of its connections.
struct Mutual(Door);

#[derive(Clone)]
struct Peer(Admitted);

impl axum::serve::Listener for Mutual {
    type Io = Connection;
    type Addr = Admitted;

    async fn accept(&mut self) -> (Connection, Admitted) {
        let connection = self.0.accept().await;
        let admitted = connection.admitted().clone();
        (connection, admitted)
    }

    fn local_addr(&self) -> std::io::Result<Admitted> {
        Err(std::io::ErrorKind::Unsupported.into())
    }
}

impl axum::extract::connect_info::Connected<axum::serve::IncomingStream<'_, Mutual>> for Peer {
    fn connect_info(stream: axum::serve::IncomingStream<'_, Mutual>) -> Self {
        Self(stream.remote_addr().clone())
    }
}

fn of_axum(extensions: &http::Extensions) -> Option<Admitted> {
    extensions.get::<ConnectInfo<Peer>>().map(|info| info.0.0.clone())
}

#[tokio::test]
async fn around_a_router_of_axum_it_decides_before_the_route_is_chosen() {
    let mut world = World::new(Offer::Enforcement);
    let (web, _agent, _folder) = web(&world).await;
    let orders = orders(&mut world).await;
    world.agent.enforce(slice(&world, 6, &[("", "GET", "see")]));
    assert_eq!(world.agent.acknowledged().await, (6, 0));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut inbound = Inbound::service("orders".parse().unwrap());
    inbound.alpn = vec![b"http/1.1".to_vec()];
    let door = Door::new(&orders, listener, inbound);
    let address = door.local_address().unwrap();
    let see = |Path(id): Path<String>| async move { format!("saw {id}") };
    let router = axum::Router::new()
        .route("/see/{id}", axum::routing::get(see).delete(|| async { "removed" }))
        .route("/other", axum::routing::get(|| async { "other" }));
    let layer = RequestLayer::new(&orders, "orders".parse().unwrap()).finding(of_axum);
    let decided =
        tower::ServiceExt::<axum::extract::Request>::map_response(layer.layer(router), |answer| {
            answer.map(axum::body::Body::new)
        });
    let service = axum::ServiceExt::<axum::extract::Request>::into_make_service_with_connect_info::<
        Peer,
    >(decided);
    tokio::spawn(async move { axum::serve(Mutual(door), service).await });
    for (method, path, status, said) in [
        ("GET", "/see/7", 200, "saw 7"),
        ("GET", "/%73ee/7?x=1", 200, "saw 7"),
        ("DELETE", "/see/7", 403, "policy-denied"),
        ("GET", "/other", 403, "policy-denied"),
        ("GET", "/see/../other", 400, "not-understood"),
        ("GET", "//other", 400, "not-understood"),
    ] {
        let expected = Expected::Id("spiffe://shop.example/orders".parse().unwrap());
        let mut outbound = Outbound::service("orders".parse().unwrap(), expected);
        outbound.alpn = vec![b"http/1.1".to_vec()];
        let stream = dial(&web.trust(), address, &outbound).await.unwrap().stream;
        let io = TokioIo::new(stream);
        let (mut send, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
        tokio::spawn(connection);
        let request = Request::builder().method(method).uri(path).header("host", "orders");
        let response = send.send_request(request.body(Full::<Bytes>::default()).unwrap()).await;
        let response = response.unwrap();
        assert_eq!(response.status().as_u16(), status, "{method} {path}");
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let body = String::from_utf8(body.to_vec()).unwrap();
        assert!(body.contains(said), "{method} {path}: {body}");
    }
}
