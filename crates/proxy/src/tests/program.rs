//! The program behind a door: plain HTTP on a Unix socket, no TLS anywhere in it.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::header::{CONNECTION, HeaderMap, HeaderValue, UPGRADE};
use http::{Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::world::eventually;
use crate::dial::Target;

pub(super) struct Program {
    path: PathBuf,
    /// How many requests have reached it.
    pub(super) reached: Arc<AtomicUsize>,
    /// How many connections to it were opened.
    accepted: Arc<AtomicUsize>,
    /// Each permit lets one request for `/gate` go on.
    pub(super) gate: Arc<Semaphore>,
    /// What came of the bodies of requests, by the path.
    taken: Bodies,
    /// How many parts of endless answers were taken from it.
    given: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

/// How often in a row, a millisecond or more apart, nothing has changed of what stands still.
const LOOKS: usize = 500;

type Bodies = Arc<Mutex<HashMap<String, Taken>>>;

/// What came of a body that is read while it is answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Taken {
    pub(super) bytes: usize,
    pub(super) end: Option<End>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Whole,
    Broken,
}

type Answer = Response<BoxBody<Bytes, hyper::Error>>;

impl Program {
    pub(super) fn start(path: &Path) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let (reached, gate) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
        let (counter, waiting) = (reached.clone(), gate.clone());
        let accepted = Arc::new(AtomicUsize::new(0));
        let opened = accepted.clone();
        let taken = Bodies::default();
        let bodies = taken.clone();
        let given = Arc::new(AtomicUsize::new(0));
        let parts = given.clone();
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                opened.fetch_add(1, Ordering::SeqCst);
                let (counter, waiting, bodies) = (counter.clone(), waiting.clone(), bodies.clone());
                let parts = parts.clone();
                let service = service_fn(move |request| {
                    counter.fetch_add(1, Ordering::SeqCst);
                    answer(request, waiting.clone(), (bodies.clone(), parts.clone()))
                });
                tokio::spawn(async move {
                    let rules = auto::Builder::new(TokioExecutor::new());
                    let served =
                        rules.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
                    if let Err(error) = served {
                        tracing::debug!(%error, "the program's connection ended");
                    }
                });
            }
        });
        Self { path: path.to_owned(), reached, accepted, gate, taken, given, task }
    }

    pub(super) fn target(&self) -> Target {
        Target::Unix(self.path.clone())
    }

    /// What came so far of the body that was sent there.
    pub(super) fn taken(&self, path: &str) -> Taken {
        self.taken.lock().unwrap().get(path).copied().unwrap_or_default()
    }

    /// Waits until nobody takes more of what it answers without end.
    pub(super) async fn stands_still(&self) {
        let (mut given, mut looks) = (0, 0);
        eventually(|| {
            let now = self.given.load(Ordering::SeqCst);
            looks = if now == given { looks + 1 } else { 0 };
            given = now;
            (0 < given && LOOKS <= looks).then_some(())
        })
        .await;
    }

    pub(super) fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }

    pub(super) fn reached(&self) -> usize {
        self.reached.load(Ordering::SeqCst)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(
    mut request: Request<Incoming>,
    gate: Arc<Semaphore>,
    (bodies, given): (Bodies, Arc<AtomicUsize>),
) -> Result<Answer, Infallible> {
    match request.uri().path() {
        "/early" | "/keep" => {
            take(request, bodies);
            return Ok(whole(Bytes::from_static(b"early")));
        }
        "/flood" => {
            take(request, bodies);
            return Ok(parts(std::iter::repeat_with(move || {
                given.fetch_add(1, Ordering::SeqCst);
                Bytes::from_static(PART)
            })));
        }
        "/upgrade" | "/upgrade-too" => return Ok(upgrade(&mut request)),
        "/endless" | "//endless" => return Ok(endless(request)),
        "/trailers" => return Ok(trailers(request).await),
        "/large" => return Ok(large()),
        "/gate" => gate.acquire().await.unwrap().forget(),
        "/close" => {
            let mut response = whole(Bytes::from_static(b"closes"));
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            return Ok(response);
        }
        "/echo" => {
            let body = request.into_body().collect().await.map(|body| body.to_bytes());
            return Ok(whole(body.unwrap_or_default()));
        }
        _ => {}
    }
    let mut text = format!("{} {} {:?}\n", request.method(), request.uri(), request.version());
    let mut lines: Vec<String> = request
        .headers()
        .iter()
        .map(|(name, value)| format!("{name}: {}", String::from_utf8_lossy(value.as_bytes())))
        .collect();
    lines.sort();
    for line in lines {
        writeln!(text, "{line}").unwrap();
    }
    Ok(whole(text.into()))
}

fn whole(bytes: Bytes) -> Answer {
    Response::new(Full::new(bytes).map_err(|never| match never {}).boxed())
}

/// Says everything back over the upgraded connection.
fn upgrade(request: &mut Request<Incoming>) -> Answer {
    let upgrading = hyper::upgrade::on(request);
    tokio::spawn(async move {
        let Ok(upgraded) = upgrading.await else { return };
        let mut io = TokioIo::new(upgraded);
        let mut buffer = [0; 1024];
        while let Ok(read @ 1..) = io.read(&mut buffer).await {
            if io.write_all(&buffer[..read]).await.is_err() {
                return;
            }
        }
    });
    let mut response = whole(Bytes::new());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
    response.headers_mut().insert(UPGRADE, HeaderValue::from_static("echo"));
    response
}

const PART: &[u8] = &[b'x'; 16 * 1024];

/// 8 MiB, in parts that are made when somebody takes them.
fn large() -> Answer {
    parts(std::iter::repeat_n(Bytes::from_static(PART), 512))
}

fn parts(parts: impl Iterator<Item = Bytes> + Send + Sync + 'static) -> Answer {
    let parts = parts.map(|part| Ok(Frame::data(part)));
    Response::new(BodyExt::boxed(StreamBody::new(futures_util::stream::iter(parts))))
}

/// Reads the body while it is answered, and after.
fn take(request: Request<Incoming>, bodies: Bodies) {
    let path = request.uri().path().to_owned();
    let mut body = request.into_body();
    let note = move |change: &dyn Fn(&mut Taken)| {
        change(bodies.lock().unwrap().entry(path.clone()).or_default());
    };
    tokio::spawn(async move {
        loop {
            match body.frame().await {
                Some(Ok(frame)) => {
                    let bytes = frame.data_ref().map_or(0, Bytes::len);
                    note(&|taken| taken.bytes += bytes);
                }
                Some(Err(_)) => return note(&|taken| taken.end = Some(End::Broken)),
                None => return note(&|taken| taken.end = Some(End::Whole)),
            }
        }
    });
}

/// A beginning, whatever the body is, and no end.
fn endless(request: Request<Incoming>) -> Answer {
    use futures_util::StreamExt;
    let beginning = futures_util::stream::iter([Ok(Frame::data(Bytes::from_static(b"one")))]);
    // Held, so that a request whose body never ends is never ended by us.
    let never = futures_util::stream::once(async move {
        let _held = request;
        std::future::pending().await
    });
    let mut response = Response::new(BodyExt::boxed(StreamBody::new(beginning.chain(never))));
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    response
}

/// The body back, with the version that was spoken and the trailers that came in trailers of its own.
async fn trailers(request: Request<Incoming>) -> Answer {
    let version = format!("{:?}", request.version());
    let collected = request.into_body().collect().await.unwrap();
    let mut trailers = HeaderMap::new();
    if let Some(came) = collected.trailers() {
        trailers = came.clone();
    }
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    trailers.insert("x-spoken", HeaderValue::from_str(&version).unwrap());
    let data = collected.to_bytes();
    let frames = [Ok(Frame::data(data)), Ok(Frame::trailers(trailers))];
    let mut response = Response::new(StreamBody::new(futures_util::stream::iter(frames)).boxed());
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    response.headers_mut().insert("trailer", HeaderValue::from_static("grpc-status, x-spoken"));
    response
}
