//! Each request to a program of ours, decided on before the program sees it: a layer for axum, hyper and tonic.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use countersign_identity::{Code, Name};
use countersign_tls::Admitted;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use http::{Extensions, Method, Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use tower::{Layer, Service};

use crate::requests::{Entered, Requests, Unanswered, ended, grpc_status, whole_seconds};
use crate::{Connection, Source, is_overriding, is_reserved};

/// Who asks, for the program.
const PEER_HEADER: HeaderName = HeaderName::from_static("x-countersign-peer");

/// Decides on each request to a service, as the proxy would in front of it.
///
/// A request is decided on by its method and by its path in the one form that the program then sees. What is denied reaches
/// nobody: it is answered with status 403 and a problem document (RFC 9457), or with `PERMISSION_DENIED` where gRPC asks; what
/// is ambiguous with 400; what is over a policy's limit with 429. What is under way is broken off as soon as a change denies it, what
/// is still asked as well as what is answered, an upgraded connection as well, and the connection goes on with others. (The stream of
/// an HTTP/2 caller who takes nothing is reset when it takes again; until then nothing passes.) Each decision is on record with the
/// policy's id. A service that declares no operations is decided on by connection alone, which its [`Door`](crate::Door) does.
///
/// It has to be around the whole program: a router that looks at the path before it would choose by another form than the one
/// that is decided on. So with axum it is `layer.layer(router)`, and not `Router::layer`, which runs after the route was chosen.
///
/// The program is told who asks in `x-countersign-peer`, as behind a proxy; what callers send under that name, or any other of
/// those that a program could read as such, is taken out. `@concurrent` counts an upgraded connection until it is upgraded.
///
/// Who asks is found in the request's extensions, where tonic puts [`Admitted`]; where another framework puts it elsewhere,
/// [`finding`](Self::finding) says where. A request without it is of nobody, and denied.
#[derive(Clone)]
pub struct RequestLayer {
    requests: Requests,
    service: Name,
    find: fn(&Extensions) -> Option<Admitted>,
}

impl RequestLayer {
    /// For the service of this name. Clones count limits together; make one for each service.
    pub fn new(source: &Source, service: Name) -> Self {
        let requests = Requests::new(source.trust(), source.reporter().flows());
        Self { requests, service, find: |extensions| extensions.get::<Admitted>().cloned() }
    }

    /// The same, where who asks is found otherwise.
    #[must_use]
    pub fn finding(self, find: fn(&Extensions) -> Option<Admitted>) -> Self {
        Self { find, ..self }
    }

    /// The same for the requests of one connection, for whoever serves connections one by one.
    #[must_use]
    pub fn of(&self, connection: &Connection) -> OfConnection {
        OfConnection { layer: self.clone(), admitted: connection.admitted().clone() }
    }
}

impl fmt::Debug for RequestLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RequestLayer({})", self.service)
    }
}

impl<S> Layer<S> for RequestLayer {
    type Service = Decided<S>;

    fn layer(&self, inner: S) -> Decided<S> {
        Decided { inner, layer: self.clone(), admitted: None }
    }
}

/// A [`RequestLayer`] for the requests of one connection.
#[derive(Clone, Debug)]
pub struct OfConnection {
    layer: RequestLayer,
    admitted: Admitted,
}

impl<S> Layer<S> for OfConnection {
    type Service = Decided<S>;

    fn layer(&self, inner: S) -> Decided<S> {
        let admitted = Some(self.admitted.clone());
        Decided { inner, layer: self.layer.clone(), admitted }
    }
}

/// A program behind a [`RequestLayer`].
#[derive(Clone, Debug)]
pub struct Decided<S> {
    inner: S,
    layer: RequestLayer,
    admitted: Option<Admitted>,
}

type Answer<B, E> = Pin<Box<dyn Future<Output = Result<Response<DecidedBody<B>>, E>> + Send>>;

impl<S, In, Out> Service<Request<In>> for Decided<S>
where
    S: Service<Request<AskedBody<In>>, Response = Response<Out>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    In: Body + Send + 'static,
    Out: Send + 'static,
{
    type Response = Response<DecidedBody<Out>>;
    type Error = S::Error;
    type Future = Answer<Out, S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<In>) -> Self::Future {
        let is_grpc = is_grpc(request.headers());
        let (mut head, body) = request.into_parts();
        let admitted = self.admitted.clone().or_else(|| (self.layer.find)(&head.extensions));
        let Some(admitted) = admitted else {
            let refused = refusal(&nobody(&self.layer.service), is_grpc);
            return Box::pin(async move { Ok(refused) });
        };
        name_caller(&mut head.headers, &admitted);
        let requests = self.layer.requests.clone();
        let entered = match requests.enter(&self.layer.service, &admitted, &mut head) {
            Ok(entered) => entered,
            Err(why) => return Box::pin(async move { Ok(refusal(&why, is_grpc)) }),
        };
        // The one that is ready is the one that is called; the other takes its place.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let asked = AskedBody::new(body, Some(&entered));
        let connects = head.method == Method::CONNECT;
        let answer = inner.call(Request::from_parts(head, asked));
        Box::pin(async move {
            let over = std::future::poll_fn(|cx| entered.live.poll_ended(cx));
            // It was called where its connection is read, and may have waited for its turn here.
            let response = tokio::select! {
                biased;
                code = over => return Ok(refusal(&ended(code), is_grpc)),
                response = answer => response?,
            };
            let status = response.status();
            let upgrades = status == StatusCode::SWITCHING_PROTOCOLS;
            // Of what `CONNECT` opens, nobody here sees the end: over HTTP/2 as well, it ends with its whole connection.
            if (upgrades || connects && status.is_success())
                && let Err(why) = requests.upgraded(&admitted, &entered)
            {
                return Ok(refusal(&why, is_grpc));
            }
            Ok(response.map(|body| DecidedBody { kind: Kind::Passing(body, Some(entered)) }))
        })
    }
}

/// Says who asks, and lets nobody else say it.
fn name_caller(headers: &mut HeaderMap, admitted: &Admitted) {
    strip_reserved(headers);
    let peer = admitted.peer().and_then(|peer| HeaderValue::from_str(peer.id.as_str()).ok());
    if let Some(peer) = peer {
        headers.insert(PEER_HEADER, peer);
    }
}

fn strip_reserved(headers: &mut HeaderMap) {
    strip(headers, is_reserved);
}

fn strip_trailers(trailers: &mut HeaderMap) {
    strip(trailers, |name| is_reserved(name) || is_overriding(name));
}

fn strip(headers: &mut HeaderMap, deceives: impl Fn(&str) -> bool) {
    let names = headers.keys().filter(|name| deceives(name.as_str()));
    for name in names.cloned().collect::<Vec<_>>() {
        headers.remove(name);
    }
}

fn nobody(service: &Name) -> Unanswered {
    let detail = format!("who has shown nothing may ask `{service}` for nothing");
    Unanswered { code: Code::PolicyDenied, detail, again: None }
}

fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
    kind.is_some_and(|kind| kind.starts_with(b"application/grpc"))
}

/// The answer in place of the program's.
fn refusal<B>(why: &Unanswered, is_grpc: bool) -> Response<DecidedBody<B>> {
    let grpc = is_grpc.then(|| grpc_status(why.code)).flatten();
    let mut response = Response::new(DecidedBody::whole(match grpc {
        // The head takes the trailers' place.
        Some(_) => Bytes::new(),
        None => problem(why),
    }));
    let mut kind = "application/problem+json";
    match grpc {
        Some(status) => {
            kind = "application/grpc";
            response.headers_mut().insert("grpc-status", HeaderValue::from_static(status));
            if let Ok(detail) = HeaderValue::from_str(&why.detail) {
                response.headers_mut().insert("grpc-message", detail);
            }
        }
        None => *response.status_mut() = status(why.code),
    }
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    if let Some(again) = why.again {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(whole_seconds(again)));
    }
    response
}

fn status(code: Code) -> StatusCode {
    match code {
        Code::NotUnderstood => StatusCode::BAD_REQUEST,
        Code::RateLimited => StatusCode::TOO_MANY_REQUESTS,
        // Whatever else ends a request that was asked for takes the right to it away.
        _ => StatusCode::FORBIDDEN,
    }
}

fn problem(why: &Unanswered) -> Bytes {
    let problem = serde_json::json!({
        "type": "about:blank",
        "title": why.code.meaning(),
        "status": status(why.code).as_u16(),
        "code": why.code.as_str(),
        "detail": why.detail,
    });
    problem.to_string().into()
}

/// The body of a request, as the program reads it, for as long as the request is permitted. Programs that merge trailers into headers
/// are not told by them who calls, nor that another request is meant.
pub struct AskedBody<B> {
    body: B,
    /// Until its end.
    entered: Option<Entered>,
}

impl<B: Body> AskedBody<B> {
    fn new(body: B, entered: Option<&Entered>) -> Self {
        let entered = entered.filter(|_entered| !body.is_end_stream()).cloned();
        Self { body, entered }
    }
}

impl<B> fmt::Debug for AskedBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AskedBody")
    }
}

impl<B> Body for AskedBody<B>
where
    B: Body + Unpin,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Data = B::Data;
    type Error = BrokenOff;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, BrokenOff>>> {
        let this = self.get_mut();
        if let Some(entered) = &this.entered
            && let Poll::Ready(code) = entered.live.poll_ended(cx)
        {
            return Poll::Ready(Some(Err(BrokenOff::Denied(code))));
        }
        let mut frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        if let Some(Ok(frame)) = &mut frame
            && let Some(trailers) = frame.trailers_mut()
        {
            strip_trailers(trailers);
        }
        if !matches!(frame, Some(Ok(_))) || this.body.is_end_stream() {
            // What was held for it is free at once, also if the program keeps the body.
            this.entered = None;
        }
        Poll::Ready(frame.map(|frame| frame.map_err(|error| BrokenOff::Lost(error.into()))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The body of an answer: the program's, for as long as the request is permitted, or one that says why there is none.
pub struct DecidedBody<B> {
    kind: Kind<B>,
}

enum Kind<B> {
    Whole(Option<Bytes>),
    Passing(B, Option<Entered>),
}

impl<B> DecidedBody<B> {
    fn whole(bytes: Bytes) -> Self {
        Self { kind: Kind::Whole((!bytes.is_empty()).then_some(bytes)) }
    }
}

impl<B> fmt::Debug for DecidedBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DecidedBody")
    }
}

/// Why a body ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum BrokenOff {
    /// It is not permitted any more.
    #[error("the request is not permitted any more (`{0}`)")]
    Denied(Code),
    /// It broke by itself.
    #[error(transparent)]
    Lost(Box<dyn std::error::Error + Send + Sync>),
}

impl<B> Body for DecidedBody<B>
where
    B: Body + Unpin,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        let (body, entered) = match &mut self.get_mut().kind {
            Kind::Whole(bytes) => return Poll::Ready(bytes.take().map(|it| Ok(Frame::data(it)))),
            Kind::Passing(body, entered) => (body, entered),
        };
        if let Some(entered) = entered
            && let Poll::Ready(code) = entered.live.poll_ended(cx)
        {
            return Poll::Ready(Some(Err(BrokenOff::Denied(code))));
        }
        let frame = ready!(Pin::new(body).poll_frame(cx));
        Poll::Ready(match frame {
            Some(Ok(frame)) => Some(Ok(frame.map_data(|mut data| {
                let length = data.remaining();
                data.copy_to_bytes(length)
            }))),
            Some(Err(error)) => Some(Err(BrokenOff::Lost(error.into()))),
            None => {
                // What was held for it is free at once, also if somebody keeps the body.
                *entered = None;
                None
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Whole(bytes) => bytes.is_none(),
            Kind::Passing(body, _) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Whole(bytes) => {
                let length = bytes.as_ref().map_or(0, Bytes::len);
                SizeHint::with_exact(u64::try_from(length).unwrap_or(u64::MAX))
            }
            Kind::Passing(body, _) => body.size_hint(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http_body_util::{BodyExt as _, StreamBody};

    use super::*;

    #[tokio::test]
    async fn neither_who_asks_nor_for_what_is_said_by_trailers() {
        let mut trailers = HeaderMap::new();
        for (name, value) in [
            ("x-countersign-peer", "spiffe://shop.example/admin"),
            ("x-forwarded-client-cert", "By=spiffe://shop.example/admin"),
            ("x-http-method-override", "DELETE"),
            ("x_original_url", "/admin"),
            ("x-checksum", "1"),
        ] {
            trailers.insert(name, HeaderValue::from_static(value));
        }
        let frames = [Frame::data(Bytes::from_static(b"body")), Frame::trailers(trailers)];
        let frames = frames.map(Ok::<_, Infallible>);
        let body = AskedBody::new(StreamBody::new(tokio_stream::iter(frames)), None);
        let read = body.collect().await.unwrap();
        let left: Vec<_> = read.trailers().unwrap().keys().map(HeaderName::as_str).collect();
        assert_eq!(left, ["x-checksum"]);
        assert_eq!(read.to_bytes(), "body");
    }
}
