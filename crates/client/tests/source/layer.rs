//! Requests to a program of ours, decided on before it sees them.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::{ConnectInfo, Path};
use bytes::Bytes;
use countersign::{
    Admitted, Asked, AskedBody, Connection, Door, Expected, Inbound, Outbound, RequestLayer,
    Source, dial,
};
use countersign_api::v1;
use http::request::Builder;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::upgrade::Upgraded;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tower::Layer;

use crate::agent::Offer;
use crate::enforcement::{orders, web};
use crate::world::{PERMIT, World, policy};

const OPERATIONS: &str = r#"[{"name":"see","method":"GET","path":"/see/{id}"},{"name":"follow","method":"GET","path":"/follow"},{"name":"call","method":"POST","path":"/shop.Orders/Place"},{"name":"flood","method":"POST","path":"/flood"},{"name":"early","method":"POST","path":"/early"},{"name":"keep","method":"POST","path":"/keep"}]"#;

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

/// What the program has seen.
#[derive(Default)]
struct Seen {
    reached: AtomicUsize,
    /// How much of `/flood` was taken from it.
    flooded: AtomicUsize,
    taken: Mutex<HashMap<String, Taken>>,
}

/// What came of a body that is read while it is answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Taken {
    bytes: usize,
    /// How it ended.
    end: Option<Result<(), String>>,
}

impl Seen {
    fn reached(&self) -> usize {
        self.reached.load(Ordering::SeqCst)
    }

    fn taken(&self, path: &str) -> Taken {
        self.taken.lock().unwrap().get(path).cloned().unwrap_or_default()
    }
}

/// The program: it says which path it was asked for, and on `/follow` and `/flood` goes on without end. What is sent to `/flood`,
/// `/early` and `/keep` it reads meanwhile, and after.
async fn program(request: Request<AskedBody<Incoming>>, seen: Arc<Seen>) -> Response<Said> {
    seen.reached.fetch_add(1, Ordering::SeqCst);
    let path = request.uri().path_and_query().map(ToString::to_string).unwrap_or_default();
    match path.as_str() {
        "/follow" => return endless(Bytes::from_static(b"more"), seen),
        "/flood" => {
            tokio::spawn(take(request, Arc::clone(&seen)));
            return endless(Bytes::from_static(&[b'x'; 1024]), seen);
        }
        "/early" | "/keep" => {
            tokio::spawn(take(request, seen));
            return Response::new(Full::from("early").boxed());
        }
        _ => {}
    }
    let told = request.headers().iter().filter(|(name, _)| name.as_str().contains("peer"));
    let told = told.map(|(name, value)| format!("{name}={};", value.to_str().unwrap()));
    let mut response = Response::new(Full::from(path).boxed());
    response.headers_mut().insert("told", told.collect::<String>().parse().unwrap());
    response
}

fn endless(part: Bytes, seen: Arc<Seen>) -> Response<Said> {
    let (send, frames) = mpsc::channel(1);
    tokio::spawn(async move {
        while send.send(Ok(Frame::data(part.clone()))).await.is_ok() {
            seen.flooded.fetch_add(part.len(), Ordering::SeqCst);
        }
    });
    Response::new(StreamBody::new(ReceiverStream::new(frames)).boxed())
}

async fn take(request: Request<AskedBody<Incoming>>, seen: Arc<Seen>) {
    let path = request.uri().path().to_owned();
    let mut body = request.into_body();
    loop {
        let frame = body.frame().await;
        let mut taken = seen.taken.lock().unwrap();
        let taken = taken.entry(path.clone()).or_default();
        match frame {
            Some(Ok(frame)) => taken.bytes += frame.data_ref().map_or(0, Bytes::len),
            Some(Err(error)) => return taken.end = Some(Err(error.to_string())),
            None => return taken.end = Some(Ok(())),
        }
    }
}

/// Serves HTTP/2 at a door of `orders`.
async fn serve(orders: &Source) -> (SocketAddr, Arc<Seen>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut inbound = Inbound::service("orders".parse().unwrap());
    inbound.alpn = vec![b"h2".to_vec()];
    let mut door = Door::new(orders, listener, inbound);
    let layer = RequestLayer::new(orders, "orders".parse().unwrap());
    let (address, seen) = (door.local_address().unwrap(), Arc::new(Seen::default()));
    let sees = Arc::clone(&seen);
    tokio::spawn(async move {
        loop {
            let connection = door.accept().await;
            let sees = Arc::clone(&sees);
            let answer = tower::service_fn(move |request| {
                let sees = Arc::clone(&sees);
                async move { Ok::<_, Infallible>(program(request, sees).await) }
            });
            let service = TowerToHyperService::new(layer.of(&connection).layer(answer));
            let http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(http.serve_connection(TokioIo::new(connection), service));
        }
    });
    (address, seen)
}

/// What one answer may bring before somebody takes of it.
const WINDOW: u32 = 65_535;

/// A connection of `web`.
struct Caller(hyper::client::conn::http2::SendRequest<Said>);

impl Caller {
    async fn connect(web: &Source, address: SocketAddr) -> Self {
        let expected = Expected::Id("spiffe://shop.example/orders".parse().unwrap());
        let mut outbound = Outbound::service("orders".parse().unwrap(), expected);
        outbound.alpn = vec![b"h2".to_vec()];
        let stream = dial(&web.trust(), address, &outbound).await.unwrap().stream;
        let io = TokioIo::new(stream);
        let mut rules = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
        rules.initial_stream_window_size(WINDOW);
        let (send, connection) = rules.handshake(io).await.unwrap();
        tokio::spawn(connection);
        Self(send)
    }

    async fn send(&mut self, request: http::request::Builder) -> Response<Incoming> {
        let request = request.body(Full::default().boxed()).unwrap();
        self.0.send_request(request).await.unwrap()
    }

    /// A request whose body goes on.
    async fn upload(&mut self, path: &'static str) -> Upload {
        let (body, frames) = mpsc::channel(1);
        let frames = StreamBody::new(ReceiverStream::new(frames)).boxed();
        let response = self.0.send_request(to("POST", path).body(frames).unwrap()).await.unwrap();
        assert_eq!(response.status(), 200);
        Upload { path, body, answer: response.into_body(), sent: 0 }
    }

    async fn ask(&mut self, method: &str, path: &str) -> (StatusCode, String) {
        let response = self.send(to(method, path)).await;
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }
}

struct Upload {
    path: &'static str,
    body: mpsc::Sender<Result<Frame<Bytes>, Infallible>>,
    answer: Incoming,
    sent: usize,
}

impl Upload {
    /// Sends some more, and waits until the program has it.
    async fn goes_on(&mut self, seen: &Seen) {
        self.body.send(Ok(Frame::data(Bytes::from_static(b"more")))).await.unwrap();
        self.sent += 4;
        let all = Taken { bytes: self.sent, end: None };
        eventually(|| seen.taken(self.path) == all).await;
    }

    async fn is_broken_off(&self, seen: &Seen) {
        let end = Some(Err("the request is not permitted any more (`policy-denied`)".to_owned()));
        let broken = Taken { bytes: self.sent, end };
        eventually(|| seen.taken(self.path) == broken).await;
    }
}

/// Waits for something that other tasks bring about.
async fn eventually(mut so: impl FnMut() -> bool) {
    let looking = async {
        while !so() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), looking).await.unwrap();
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

/// Says everything back over an upgraded connection, or one that `CONNECT` has opened.
async fn echo(mut request: Request<AskedBody<Incoming>>) -> Response<Full<Bytes>> {
    let upgrading = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let (mut read, mut write) = tokio::io::split(TokioIo::new(upgrading.await.unwrap()));
        // It ends when the connection is cut.
        tokio::io::copy(&mut read, &mut write).await.ok();
    });
    let mut response = Response::new(Full::default());
    if request.method() != Method::CONNECT {
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        response.headers_mut().insert("connection", "upgrade".parse().unwrap());
        response.headers_mut().insert("upgrade", "echo".parse().unwrap());
    }
    response
}

/// Opens such a connection of `web` to a door of `orders`.
async fn opened(web: &Source, orders: &Source, request: Builder) -> TokioIo<Upgraded> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut door = Door::new(orders, listener, Inbound::service("orders".parse().unwrap()));
    let address = door.local_address().unwrap();
    let layer = RequestLayer::new(orders, "orders".parse().unwrap());
    tokio::spawn(async move {
        let connection = door.accept().await;
        let answer = tower::service_fn(async |request| Ok::<_, Infallible>(echo(request).await));
        let service = TowerToHyperService::new(layer.of(&connection).layer(answer));
        let http = hyper::server::conn::http1::Builder::new();
        http.serve_connection(TokioIo::new(connection), service).with_upgrades().await
    });
    let expected = Expected::Id("spiffe://shop.example/orders".parse().unwrap());
    let outbound = Outbound::service("orders".parse().unwrap(), expected);
    let stream = dial(&web.trust(), address, &outbound).await.unwrap().stream;
    let io = TokioIo::new(stream);
    let (mut send, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    tokio::spawn(connection.with_upgrades());
    let request = request.header("host", "orders").body(Full::<Bytes>::default()).unwrap();
    let response = send.send_request(request).await.unwrap();
    assert!(matches!(response.status().as_u16(), 101 | 200));
    TokioIo::new(hyper::upgrade::on(response).await.unwrap())
}

async fn echoes(io: &mut TokioIo<Upgraded>) -> bool {
    let mut answer = [0; 4];
    let sent = io.write_all(b"ping").await;
    sent.is_ok() && io.read_exact(&mut answer).await.is_ok() && answer == *b"ping"
}

#[tokio::test]
async fn what_was_upgraded_before_a_service_declared_operations_is_decided_on_as_soon_as_it_does() {
    let mut world = World::new(Offer::Enforcement);
    let (web, _agent, _folder) = web(&world).await;
    let orders = orders(&mut world).await;
    let upgrade = |path: &str| {
        Request::get(path.to_owned()).header("connection", "upgrade").header("upgrade", "echo")
    };
    let mut denied = opened(&web, &orders, upgrade("/follow")).await;
    let mut kept = opened(&web, &orders, upgrade("/see/1")).await;
    let mut through = opened(&web, &orders, Request::builder().method("CONNECT").uri("a:1")).await;
    for io in [&mut denied, &mut kept, &mut through] {
        assert!(echoes(io).await);
    }
    world.agent.enforce(slice(&world, 6, &[("", "GET", "see")]));
    assert_eq!(world.agent.acknowledged().await, (6, 2), "two connections are cut");
    assert!(!echoes(&mut denied).await && !echoes(&mut through).await);
    assert!(echoes(&mut kept).await, "what is permitted goes on");
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
