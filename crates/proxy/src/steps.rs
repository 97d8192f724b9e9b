//! What the proxy makes of the bytes of a caller, up to what goes on: without TLS, policy and the program behind, for fuzzing.
//!
//! What is read, refused and taken out here is read, refused and taken out by the code that serves.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use countersign_identity::SpiffeId;
use http::header::{HeaderMap, HeaderValue};
use http::{Request, Response, Uri};
use http_body::Body as _;
use hyper::service::service_fn;
use tokio::io::AsyncWriteExt as _;

use crate::body::{Arriving, Body};
use crate::headers;
use crate::session::{Patience, Session, Spoken, serve};
use crate::tasks::Tasks;

/// What a caller speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    /// HTTP/1.1 or 1.0.
    Http1,
    /// HTTP/2.
    Http2,
}

/// A request as it would go on.
#[derive(Clone, Debug)]
pub struct Passed {
    /// Which host it is for.
    pub host: HeaderValue,
    /// The protocol that it asks to go on with.
    pub upgrade: Option<HeaderValue>,
    /// Its target, as it came.
    pub target: Uri,
    /// The fields as they came.
    pub came: HeaderMap,
    /// The fields that go on, with what the program is told of the caller.
    pub fields: HeaderMap,
    /// The trailers that go on.
    pub trailers: HeaderMap,
}

/// What is on its way at once.
const PIPE_BYTES: usize = 1024 * 1024;
/// How often others get their turn before the caller goes away.
const TURNS: usize = 64;

/// Serves a connection on which a caller sends these bytes and closes. Tells of each request that came what would go on, or why
/// none would.
pub async fn requests(bytes: &[u8], wire: Wire, peer: &SpiffeId) -> Vec<Result<Passed, String>> {
    let found = Arc::new(Mutex::new(Vec::new()));
    let (into, peer) = (Arc::clone(&found), headers::peer_value(peer));
    let service = service_fn(move |request: Request<Arriving>| {
        let (into, peer) = (Arc::clone(&into), peer.clone());
        Box::pin(async move {
            let passed = pass(request, peer.as_ref()).await;
            into.lock().unwrap_or_else(PoisonError::into_inner).push(passed);
            Ok::<_, Infallible>(Response::new(Body::empty()))
        })
    });
    let (mut caller, io) = tokio::io::duplex(PIPE_BYTES.max(bytes.len()));
    let caller = async move {
        // It has room for all of it.
        caller.write_all(bytes).await.ok();
        // hyper gives up a request whose sender has gone before it is answered.
        for _turn in 0..TURNS {
            tokio::task::yield_now().await;
        }
    };
    let spoken = match wire {
        Wire::Http1 => Spoken::Http1,
        Wire::Http2 => Spoken::Http2,
    };
    let (how, tasks) = ((spoken, Patience::Peer), Tasks::default());
    let serving = serve(io, how, service, Session::new(), (std::future::pending(), &tasks));
    tokio::join!(serving, caller);
    let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
    std::mem::take(&mut *found)
}

async fn pass(request: Request<Arriving>, peer: Option<&HeaderValue>) -> Result<Passed, String> {
    let upgrade = headers::upgrade(request.headers());
    let (mut head, body) = request.into_parts();
    let host = headers::read(&head).map_err(|bad| bad.to_string())?;
    let came = head.headers.clone();
    headers::forward(&mut head.headers, None, (peer, None)).map_err(|bad| bad.to_string())?;
    let trailers = trailers(body).await;
    Ok(Passed { host, upgrade, target: head.uri, came, fields: head.headers, trailers })
}

/// What of a body's trailers goes on. Of one that breaks off, nothing.
async fn trailers(body: Arriving) -> HeaderMap {
    let Arriving { mut incoming, unread } = body;
    loop {
        match std::future::poll_fn(|cx| Pin::new(&mut incoming).poll_frame(cx)).await {
            Some(Ok(frame)) => {
                if let Ok(mut trailers) = frame.into_trailers() {
                    headers::strip_trailers(&mut trailers);
                    return trailers;
                }
            }
            Some(Err(_)) => return HeaderMap::new(),
            None => {
                if let Some(unread) = unread {
                    unread.read();
                }
                return HeaderMap::new();
            }
        }
    }
}

/// The fields of a response that go back to the caller.
pub fn give_back(mut fields: HeaderMap) -> HeaderMap {
    headers::give_back(&mut fields);
    fields
}

/// One element of `x-forwarded-client-cert`.
pub fn element(key: &str, value: &str) -> String {
    headers::element(key, value)
}
