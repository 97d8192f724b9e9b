//! What each of the three does with a request.

use std::convert::Infallible;
use std::str::FromStr;
use std::sync::Arc;

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::Address;
use crate::address::{Dial, Stream};

/// Which of the three services a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The front door.
    Web,
    /// Asked by `web`; asks `payments`.
    Orders,
    /// Asked by `orders`.
    Payments,
}

/// Not one of the three.
#[derive(Debug)]
pub struct UnknownRole(String);

impl std::fmt::Display for UnknownRole {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "`{}` is not a service of the shop: expected `web`, `orders` or `payments`",
            self.0
        )
    }
}

impl std::error::Error for UnknownRole {}

impl FromStr for Role {
    type Err = UnknownRole;

    fn from_str(text: &str) -> Result<Self, UnknownRole> {
        match text {
            "web" => Ok(Self::Web),
            "orders" => Ok(Self::Orders),
            "payments" => Ok(Self::Payments),
            _ => Err(UnknownRole(text.to_owned())),
        }
    }
}

type Answer = Response<Full<Bytes>>;

/// The next service: its address dialled by a pool, and a name for error texts.
struct Upstream {
    name: &'static str,
    client: Client<Dial, Full<Bytes>>,
}

const BODY_BYTES_MAX: usize = 64 * 1024;
/// Where a request stands in a trace (W3C Trace Context); whoever asks somebody else passes it on.
const TRACE: http::HeaderName = http::HeaderName::from_static("traceparent");

/// Serves until stopped. `environment` looks up a variable.
///
/// # Errors
/// When a variable is missing or wrong, or the address cannot be listened on.
pub async fn run(
    role: Role,
    environment: impl Fn(&str) -> Option<String>,
    stop: CancellationToken,
) -> Result<()> {
    let address = |name: &str| -> Result<Address> {
        let text = environment(name).with_context(|| format!("the environment lacks `{name}`"))?;
        text.parse().with_context(|| format!("environment variable `{name}`"))
    };
    let upstream = |name, variable| -> Result<Option<Upstream>> {
        let client = Client::builder(TokioExecutor::new()).build(Dial(address(variable)?));
        Ok(Some(Upstream { name, client }))
    };
    let next = match role {
        Role::Web => upstream("orders", "UPSTREAM_ORDERS")?,
        Role::Orders => upstream("payments", "UPSTREAM_PAYMENTS")?,
        Role::Payments => None,
    };
    let listen = address("LISTEN")?;
    let listener = listen.listen().await.with_context(|| format!("cannot listen on {listen:?}"))?;
    let service = Arc::new(Service { role, next });
    let connections = TaskTracker::new();
    loop {
        let stream = tokio::select! {
            () = stop.cancelled() => break,
            stream = listener.accept() => stream.context("cannot accept connections")?,
        };
        connections.spawn(serve(service.clone(), stream, stop.clone()));
    }
    connections.close();
    connections.wait().await;
    Ok(())
}

async fn serve(service: Arc<Service>, stream: Stream, stop: CancellationToken) {
    let handle = service_fn(move |request| {
        let service = service.clone();
        async move { Ok::<_, Infallible>(service.answer(request).await) }
    });
    let connection =
        http1::Builder::new().serve_connection(TokioIo::new(stream), handle).with_upgrades();
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        eprintln!("connection: {error}");
    }
}

struct Service {
    role: Role,
    next: Option<Upstream>,
}

impl Service {
    async fn answer(&self, request: Request<Incoming>) -> Answer {
        if request.headers().get(header::UPGRADE).is_some_and(|upgrade| upgrade == "echo") {
            return echo(request);
        }
        let (parts, body) = request.into_parts();
        let Ok(body) = Limited::new(body, BODY_BYTES_MAX).collect().await else {
            return json_answer(StatusCode::PAYLOAD_TOO_LARGE, &json!({"error": "body too large"}));
        };
        let path = parts.uri.path();
        let trace = parts.headers.get(TRACE);
        match (self.role, &parts.method, path) {
            (Role::Web, &Method::GET, "/") => {
                self.ask((Method::GET, "/orders/42"), "web", Bytes::new(), trace).await
            }
            (Role::Orders, &Method::GET, path) if path.starts_with("/orders/") => {
                let charge = json!({"order": &path["/orders/".len()..], "cents": 4200}).to_string();
                self.ask((Method::POST, "/charges"), "orders", charge.into(), trace).await
            }
            (Role::Payments, &Method::POST, "/charges") => {
                let order =
                    serde_json::from_slice::<Value>(&body.to_bytes()).unwrap_or(Value::Null);
                json_answer(StatusCode::OK, &json!({"service": "payments", "charged": order}))
            }
            (Role::Payments, &Method::GET, path) if path.starts_with("/charges/") => {
                json_answer(StatusCode::OK, &json!({"service": "payments", "charge": path}))
            }
            _ => json_answer(StatusCode::NOT_FOUND, &json!({"error": "no such page"})),
        }
    }

    /// Asks the next service and puts its answer into ours.
    async fn ask(
        &self,
        (method, path): (Method, &str),
        service: &str,
        body: Bytes,
        trace: Option<&HeaderValue>,
    ) -> Answer {
        let Some(next) = &self.next else {
            return json_answer(StatusCode::NOT_FOUND, &json!({"error": "no such page"}));
        };
        match next.fetch((method, path), body, trace).await {
            Ok((StatusCode::OK, answer)) => {
                json_answer(StatusCode::OK, &json!({"service": service, (next.name): answer}))
            }
            Ok((status, answer)) => {
                let error = format!("{} answered {status}", next.name);
                json_answer(StatusCode::BAD_GATEWAY, &json!({"error": error, "answer": answer}))
            }
            Err(error) => {
                let error = format!("{} did not answer: {error:#}", next.name);
                json_answer(StatusCode::BAD_GATEWAY, &json!({"error": error}))
            }
        }
    }
}

impl Upstream {
    async fn fetch(
        &self,
        (method, path): (Method, &str),
        body: Bytes,
        trace: Option<&HeaderValue>,
    ) -> Result<(StatusCode, Value)> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.name))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))?;
        request.headers_mut().extend(trace.map(|trace| (TRACE, trace.clone())));
        let answer = self.client.request(request).await?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), BODY_BYTES_MAX).collect().await;
        let body = body.map_err(|error| anyhow::anyhow!("{error}"))?.to_bytes();
        let value = serde_json::from_slice(&body)
            .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&body).into_owned()));
        Ok((status, value))
    }
}

/// An upgraded connection that says back what it hears, as a WebSocket would.
fn echo(request: Request<Incoming>) -> Answer {
    // Ends with its connection, which the peer or the machine closes.
    tokio::spawn(async move {
        let Ok(upgraded) = hyper::upgrade::on(request).await else { return };
        let mut stream = TokioIo::new(upgraded);
        let mut buffer = [0; 4096];
        while let Ok(read @ 1..) = stream.read(&mut buffer).await {
            let written = stream.write_all(&buffer[..read]).await;
            if written.is_err() || stream.flush().await.is_err() {
                return;
            }
        }
    });
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    answer.headers_mut().insert(header::UPGRADE, HeaderValue::from_static("echo"));
    answer
}

fn json_answer(status: StatusCode, value: &Value) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(format!("{value}\n"))));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}
