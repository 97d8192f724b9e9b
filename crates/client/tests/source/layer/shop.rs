//! The program behind the layer, which sees what gets through, and `web`, which asks it.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use countersign::{AskedBody, Door, Expected, Inbound, Outbound, RequestLayer, Source, dial};
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

use crate::world::{PERMIT, World, policy};

const OPERATIONS: &str = r#"[{"name":"see","method":"GET","path":"/see/{id}"},{"name":"follow","method":"GET","path":"/follow"},{"name":"call","method":"POST","path":"/shop.Orders/Place"},{"name":"flood","method":"POST","path":"/flood"},{"name":"early","method":"POST","path":"/early"},{"name":"keep","method":"POST","path":"/keep"}]"#;

/// A slice in which `orders` declares operations and `web` may do this with them.
pub(super) fn slice(world: &World, number: u64, permits: &[(&str, &str, &str)]) -> v1::Slice {
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

pub(super) type Said = http_body_util::combinators::BoxBody<Bytes, Infallible>;

/// What the program has seen.
#[derive(Default)]
pub(super) struct Seen {
    reached: AtomicUsize,
    /// How much of `/flood` was taken from it.
    pub(super) flooded: AtomicUsize,
    taken: Mutex<HashMap<String, Taken>>,
}

/// What came of a body that is read while it is answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Taken {
    bytes: usize,
    /// How it ended.
    pub(super) end: Option<Result<(), String>>,
}

impl Seen {
    pub(super) fn reached(&self) -> usize {
        self.reached.load(Ordering::SeqCst)
    }

    pub(super) fn taken(&self, path: &str) -> Taken {
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
pub(super) async fn serve(orders: &Source) -> (SocketAddr, Arc<Seen>) {
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
pub(super) struct Caller(hyper::client::conn::http2::SendRequest<Said>);

impl Caller {
    pub(super) async fn connect(web: &Source, address: SocketAddr) -> Self {
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

    pub(super) async fn send(&mut self, request: http::request::Builder) -> Response<Incoming> {
        let request = request.body(Full::default().boxed()).unwrap();
        self.0.send_request(request).await.unwrap()
    }

    /// A request whose body goes on.
    pub(super) async fn upload(&mut self, path: &'static str) -> Upload {
        let (body, frames) = mpsc::channel(1);
        let frames = StreamBody::new(ReceiverStream::new(frames)).boxed();
        let response = self.0.send_request(to("POST", path).body(frames).unwrap()).await.unwrap();
        assert_eq!(response.status(), 200);
        Upload { path, body, answer: response.into_body(), sent: 0 }
    }

    pub(super) async fn ask(&mut self, method: &str, path: &str) -> (StatusCode, String) {
        let response = self.send(to(method, path)).await;
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }
}

pub(super) struct Upload {
    path: &'static str,
    pub(super) body: mpsc::Sender<Result<Frame<Bytes>, Infallible>>,
    pub(super) answer: Incoming,
    sent: usize,
}

impl Upload {
    /// Sends some more, and waits until the program has it.
    pub(super) async fn goes_on(&mut self, seen: &Seen) {
        self.body.send(Ok(Frame::data(Bytes::from_static(b"more")))).await.unwrap();
        self.sent += 4;
        let all = Taken { bytes: self.sent, end: None };
        eventually(|| seen.taken(self.path) == all).await;
    }

    pub(super) async fn is_broken_off(&self, seen: &Seen) {
        let end = Some(Err("the request is not permitted any more (`policy-denied`)".to_owned()));
        let broken = Taken { bytes: self.sent, end };
        eventually(|| seen.taken(self.path) == broken).await;
    }
}

/// Waits for something that other tasks bring about.
pub(super) async fn eventually(mut so: impl FnMut() -> bool) {
    let looking = async {
        while !so() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), looking).await.unwrap();
}

pub(super) fn to(method: &str, path: &str) -> http::request::Builder {
    Request::builder().method(method).uri(format!("https://orders{path}"))
}
