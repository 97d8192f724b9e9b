//! The port for the rest of the world: plain HTTP, lists, OCSP and the hashes of the log and nothing else, within bounds.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Extension, Path, Request, State as Shared};
use axum::http::{self, HeaderMap, Response, StatusCode, Uri, header};
use axum::routing::{get, post};
use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use countersign_identity::{Code, KeyId, Timestamp};
use countersign_pki::OCSP_REQUEST_BYTES_MAX;
use countersign_tls::{Rank, Room, RoomBounds, Source};
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tower::util::MapRequest;

use crate::control::Control;
use crate::digest::sha256;
use crate::views::asked::{Asker, Askers};
use crate::views::fetched::{Which, fetch};
use crate::views::http_date::http_date;
use crate::views::ocsp::{self, Answered};

/// Connections at once. Nobody says who they are here, so that whoever comes finds a place: when there is none, the one that goes
/// is the oldest of the source that has most of them. One source may have all while nobody else needs them, because a whole
/// site may be behind one address.
const CONNECTIONS: RoomBounds = RoomBounds { all: 512, each: 512, yields_after: Duration::ZERO };
/// How long a caller may take to send a request's head, and an idle connection may last.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long one request may take, its body included.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may last: a long list is fetched over a slow line within it.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(120);
/// The most bytes of a request's head that are read.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// The longest OCSP request in an address: it has to fit in the head, and longer ones are posted (RFC 5019, 5).
const GET_BYTES_MAX: usize = 4 * 1024;
/// How long to wait after the system refused to accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long caches between may keep what they fetched: a revocation shows to everybody within that time.
const CACHED_FOR: Duration = Duration::from_secs(60);

/// The port, listening.
pub(crate) struct ViewsDoor {
    pub(crate) listener: TcpListener,
    pub(crate) control: Arc<Control>,
}

impl ViewsDoor {
    /// Serves until stopped. What is asked here is answered in a moment, so nothing is waited for then.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let (clock, router) = (Arc::clone(&self.control.clock), router(self.control));
        let (room, askers) = (Room::new(CONNECTIONS), Askers::new(clock.now()));
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                Some(_ended) = connections.join_next() => continue,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((tcp, address)) => {
                    let source = Source::of(address.ip());
                    let Some(stay) = room.enter(source, Rank::Stranger, clock.now()) else {
                        continue;
                    };
                    let connection = converse(tcp, router.clone(), askers.asker(source));
                    connections.spawn(async move {
                        tokio::select! {
                            () = stay.give_way().cancelled() => {}
                            () = connection => {}
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "could not accept a connection for revocation lists");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

async fn converse(tcp: TcpStream, router: Router, asker: Asker) {
    let service = MapRequest::new(router, move |mut request: http::Request<Incoming>| {
        request.extensions_mut().insert(asker.clone());
        request
    });
    let service = TowerToHyperService::new(service);
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(tcp), service);
    // How the connection of somebody unknown ends concerns nobody.
    let _ended = tokio::time::timeout(CONNECTION_TIMEOUT, connection).await;
}

fn router(control: Arc<Control>) -> Router {
    Router::new()
        .route("/crl/{list}", get(whole))
        .route("/crl/{issuer}/{list}", get(part))
        .route("/ocsp", post(ocsp_post))
        .route("/ocsp/", post(ocsp_post))
        .route("/ocsp/{*request}", get(ocsp_get))
        .merge(crate::log::router())
        .fallback(|| async { status(StatusCode::NOT_FOUND) })
        .layer(DefaultBodyLimit::max(OCSP_REQUEST_BYTES_MAX))
        .layer(axum::middleware::from_fn(in_time))
        .with_state(control)
}

async fn in_time(
    request: Request,
    next: axum::middleware::Next,
) -> Result<Response<Body>, Infallible> {
    let answer = tokio::time::timeout(REQUEST_TIMEOUT, next.run(request)).await;
    Ok(answer.unwrap_or_else(|_elapsed| status(StatusCode::REQUEST_TIMEOUT)))
}

/// `/crl/ISSUER.crl`.
async fn whole(
    Shared(control): Shared<Arc<Control>>,
    Path(list): Path<String>,
    headers: HeaderMap,
) -> Response<Body> {
    let issuer = list.strip_suffix(".crl").and_then(|issuer| issuer.parse().ok());
    crl(&control, issuer, Some(Which::Whole), &headers).await
}

/// `/crl/ISSUER/delta.crl` and `/crl/ISSUER/COUNT-INDEX.crl`.
async fn part(
    Shared(control): Shared<Arc<Control>>,
    Path((issuer, list)): Path<(String, String)>,
    headers: HeaderMap,
) -> Response<Body> {
    let which = match list.strip_suffix(".crl") {
        Some("delta") => Some(Which::Delta),
        Some(shard) => shard.parse().ok().map(Which::Part),
        None => None,
    };
    crl(&control, issuer.parse().ok(), which, &headers).await
}

async fn crl(
    control: &Control,
    issuer: Option<KeyId>,
    which: Option<Which>,
    headers: &HeaderMap,
) -> Response<Body> {
    let (Some(issuer), Some(which)) = (issuer, which) else { return status(StatusCode::NOT_FOUND) };
    match fetch(control, issuer, which).await {
        Ok(list) => {
            let kept =
                Kept { from: list.this_update, until: list.next_update, now: control.clock.now() };
            cached(headers, "application/pkix-crl", list.der, &kept)
        }
        Err(refused) if refused.code == Code::NotFound => status(StatusCode::NOT_FOUND),
        Err(refused) => {
            tracing::warn!(code = %refused.code, why = %refused.why, "a revocation list could not be given");
            status(StatusCode::SERVICE_UNAVAILABLE)
        }
    }
}

async fn ocsp_post(
    Shared(control): Shared<Arc<Control>>,
    Extension(asker): Extension<Asker>,
    body: Result<Bytes, BytesRejection>,
) -> Response<Body> {
    match body {
        Ok(request) => ask(&control, &asker, &request, &HeaderMap::new()).await,
        Err(rejected) => status(rejected.status()),
    }
}

/// The request in base64, with or without escapes (RFC 6960, A.1).
async fn ocsp_get(
    Shared(control): Shared<Arc<Control>>,
    Extension(asker): Extension<Asker>,
    uri: Uri,
    headers: HeaderMap,
) -> Response<Body> {
    let text = uri.path().strip_prefix("/ocsp/").unwrap_or_default();
    let text = text.get(..GET_BYTES_MAX + 1).unwrap_or(text);
    // What is no request is answered as one that does not parse.
    let request = unescaped(text).and_then(|text| LENIENT.decode(text).ok()).unwrap_or_default();
    ask(&control, &asker, &request, &headers).await
}

/// Clients leave the padding out, or write it.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The bytes of a text with `%` escapes; nothing when it is too long or an escape is none.
fn unescaped(text: &str) -> Option<Vec<u8>> {
    if GET_BYTES_MAX < text.len() {
        return None;
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || char::from(rest.next()?).to_digit(16).and_then(|d| u8::try_from(d).ok());
        bytes.push(digit()? << 4 | digit()?);
    }
    Some(bytes)
}

async fn ask(
    control: &Control,
    asker: &Asker,
    request: &[u8],
    headers: &HeaderMap,
) -> Response<Body> {
    let Answered { der, outcome, good } = ocsp::answer(control, asker, request).await;
    control.watch.asked(outcome.as_str());
    match good {
        Some((from, until)) => {
            let kept = Kept { from, until, now: control.clock.now() };
            cached(headers, OCSP_RESPONSE, der, &kept)
        }
        None => response(
            Response::builder()
                .header(header::CONTENT_TYPE, OCSP_RESPONSE)
                .header(header::CACHE_CONTROL, "no-store"),
            der,
        ),
    }
}

const OCSP_RESPONSE: &str = "application/ocsp-response";

/// Since when something is true, until when it is good, and when it is given.
struct Kept {
    from: Timestamp,
    until: Timestamp,
    now: Timestamp,
}

/// A response that caches may keep for a while (RFC 5019, 6.2).
fn cached(headers: &HeaderMap, kind: &'static str, der: Bytes, kept: &Kept) -> Response<Body> {
    let age = kept.until.since(kept.now).min(CACHED_FOR).as_secs();
    let tag = format!("\"{}\"", sha256(&der));
    let known =
        headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    let same = known.flat_map(|value| value.split(',')).any(|value| value.trim() == tag);
    let builder = Response::builder()
        .header(
            header::CACHE_CONTROL,
            format!("max-age={age}, public, no-transform, must-revalidate"),
        )
        .header(header::ETAG, tag)
        .header(header::LAST_MODIFIED, http_date(kept.from))
        .header(header::EXPIRES, http_date(kept.until));
    if same {
        return response(builder.status(StatusCode::NOT_MODIFIED), Bytes::new());
    }
    response(builder.header(header::CONTENT_TYPE, kind), der)
}

fn response(builder: axum::http::response::Builder, body: Bytes) -> Response<Body> {
    builder.body(Body::from(body)).expect("names and values of these headers are of ASCII")
}

fn status(status: StatusCode) -> Response<Body> {
    response(Response::builder().status(status), Bytes::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_undone_and_what_is_none_is_refused() {
        assert_eq!(unescaped("MA%2b%2F%3D").unwrap(), b"MA+/=");
        assert_eq!(unescaped("MA+/=").unwrap(), b"MA+/=");
        for bad in ["%", "%2", "%zz", "%+1"] {
            assert!(unescaped(bad).is_none(), "{bad}");
        }
        assert!(unescaped(&"a".repeat(5000)).is_none());
    }

    #[test]
    fn one_source_has_every_place_that_nobody_else_needs_and_no_other() {
        let (room, now) = (Room::new(CONNECTIONS), Timestamp::EPOCH);
        let enter = |last| {
            let source = Source::of([127, 0, 0, last].into());
            room.enter(source, Rank::Stranger, now).expect("whoever comes finds a place")
        };
        let site: Vec<_> = (0..CONNECTIONS.all).map(|_| enter(1)).collect();
        let cut = || site.iter().filter(|stay| stay.give_way().is_cancelled()).count();
        assert_eq!(cut(), 0, "there was room for all");
        let others: Vec<_> = (2..=101).map(enter).collect();
        assert_eq!(cut(), others.len(), "the largest makes room");
        let _more = enter(1);
        assert_eq!(
            cut(),
            others.len() + 1,
            "whoever is one of the most takes the place of one of them"
        );
        assert!(others.iter().all(|stay| !stay.give_way().is_cancelled()));
    }
}
