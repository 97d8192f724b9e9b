//! One request on its way through: what is taken out of it, where it goes, and what comes back.

use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use arc_swap::ArcSwap;
use countersign::requests::{ended, grpc_status, whole_seconds};
use countersign_identity::{Code, Name, Timestamp};
use countersign_program::trace::{Context, Kind, Span};
use countersign_tls::{Admitted, Limit, LiveCall};
use http::header::{CONNECTION, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER, UPGRADE};
use http::{Request, Response, StatusCode, Version};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use crate::body::{Arriving, Body};
use crate::dial::Want;
use crate::guard::{Entered, Guard};
use crate::headers::{self, BadAnswer, BadRequest};
use crate::metrics::Meter;
use crate::plane::Plane;
use crate::problem::problem;
use crate::route::{Route, Tended, Ways};
use crate::session::{Busy, Session};
use crate::stream;
use crate::trace;
use crate::tunnel;
use crate::upstream::{Failed, permitted};

/// What is the same for all requests of one connection.
pub(crate) struct Relay {
    pub(crate) plane: Arc<Plane>,
    pub(crate) route: Arc<ArcSwap<Route>>,
    pub(crate) meter: Meter,
    /// Who sends them, as the program is told; `None` when it is the program of our own side.
    pub(crate) peer: Option<HeaderValue>,
    /// What the program is told of their certificate, where it asks.
    pub(crate) certificate: Option<HeaderValue>,
    /// How many requests the peer may have under way; no limit for the program of our own side.
    pub(crate) requests: Option<Limit>,
    /// What that peer may ask for; `None` likewise.
    pub(crate) guard: Option<Guard>,
    /// Which service they are for.
    pub(crate) service: Name,
}

/// A request that is being answered.
pub(crate) struct Begun {
    at: Timestamp,
    grpc: bool,
    busy: Arc<Busy>,
    span: Span,
    going: Result<Box<Going>, Failed>,
}

/// A request as it is sent on.
struct Going {
    way: Tended,
    request: Box<Request<Body>>,
    host: HeaderValue,
    want: Want,
    /// The connection that it came over, if it asks for another protocol.
    upgrading: Option<OnUpgrade>,
    entered: Option<Entered>,
}

impl Relay {
    /// Begins to answer a request: all that can be done before there is anything to wait for. Otherwise what waits would
    /// have a place for the request at each step.
    pub(crate) fn begin(&self, request: Request<Arriving>, session: &Arc<Session>) -> Begun {
        let (grpc, at) = (is_grpc(request.headers()), self.plane.clock.now());
        let span = self.span(&request);
        let busy = match &self.requests {
            Some(requests) => session.enter_within(requests),
            None => Some(session.enter()),
        };
        match busy {
            Some(busy) => {
                let going = self.prepare(request, span.context(), &busy);
                Begun { at, grpc, busy, span, going }
            }
            None => Begun { at, grpc, busy: session.enter(), span, going: Err(crowded()) },
        }
    }

    /// Answers it, whatever becomes of it. A block, since what a function that waits is given has two places in it.
    pub(crate) fn finish(
        &self,
        begun: Begun,
        session: &Session,
    ) -> impl Future<Output = Response<Body>> {
        let Begun { at, grpc, busy, mut span, going } = begun;
        async move {
            let answered = match going {
                Ok(going) => self.pass(going).await,
                Err(failed) => Err(failed),
            };
            let response = match answered {
                Ok(response) => response,
                Err(failed) => match grpc.then(|| grpc_status(failed.code)).flatten() {
                    Some(status) => refused_call(status, &failed),
                    None => with_time(self.explain(&failed), failed.again),
                },
            };
            let status = response.status();
            span.number("http.response.status_code", i64::from(status.as_u16()));
            if status.is_server_error() {
                span.fail("");
            }
            drop(span);
            self.meter.request(status, self.plane.clock.now().since(at));
            session.leave(response, busy)
        }
    }

    /// A span of this hop: it continues the trace that the request says it belongs to. What the caller says there decides what is
    /// told to the collector, and nothing else.
    fn span(&self, request: &Request<Arriving>) -> Span {
        let kind = if self.peer.is_some() { Kind::Server } else { Kind::Client };
        let name = || format!("{} {}", trace::word(request.method()), self.service).into();
        let mut span = self.plane.tracer.begin(name, kind, trace::read(request.headers()));
        span.text("countersign.service", &self.service);
        if let Some(peer) = self.peer.as_ref().and_then(|peer| peer.to_str().ok()) {
            span.text("countersign.peer", peer);
        }
        span.text("http.request.method", trace::word(request.method()));
        if span.context().is_some()
            && let Some(serial) = self.plane.trust.identity().and_then(|own| own.serial())
        {
            span.certificate(&serial);
        }
        span
    }

    /// The answer in place of the one that did not come. A peer is not told where our program lives.
    fn explain(&self, failed: &Failed) -> Response<Body> {
        tracing::debug!(code = %failed.code, detail = %failed.detail, "a request was not passed on");
        if self.peer.is_none() {
            return problem(failed.code, &failed.detail);
        }
        match failed.code {
            Code::NotUnderstood
            | Code::BadAnswer
            | Code::PolicyDenied
            | Code::PolicyError
            | Code::RateLimited => problem(failed.code, &failed.detail),
            Code::PeerUnreachable => {
                problem(Code::Unavailable, "the program behind the service cannot be reached")
            }
            code => problem(code, "the program behind the service gave no answer"),
        }
    }

    /// Decides on a request, and makes of it what is sent on.
    fn prepare(
        &self,
        mut request: Request<Arriving>,
        span: Option<Context>,
        busy: &Arc<Busy>,
    ) -> Result<Box<Going>, Failed> {
        let asked = (request.version() == Version::HTTP_11)
            .then(|| headers::upgrade(request.headers()))
            .flatten();
        let upgrading = asked.is_some().then(|| hyper::upgrade::on(&mut request));
        let (mut head, body) = request.into_parts();
        let host = headers::read(&head)?;
        let entered = match &self.guard {
            Some(guard) => Some(guard.check(&self.plane, &mut head)?),
            None => None,
        };
        let told = (self.peer.as_ref(), self.certificate.as_ref());
        headers::forward(&mut head.headers, span, told)?;
        // What hyper keeps beside the head belongs to the connection that it came over.
        head.extensions.clear();
        let want = match asked {
            Some(protocol) => {
                ask_for(&mut head.headers, protocol);
                Want::Http1
            }
            None => Want::AnyHttp,
        };
        let way = match &**self.route.load() {
            Route::Requests(ways) => ways.of(&head.headers).clone(),
            Route::Bytes(_) => return Err(changed()),
        };
        let body = Body::sending(body, busy, entered.as_ref());
        let request = Box::new(Request::from_parts(head, body));
        Ok(Box::new(Going { way, request, host, want, upgrading, entered }))
    }

    async fn pass(&self, going: Box<Going>) -> Result<Response<Body>, Failed> {
        let response = {
            let call = going.entered.as_ref().map(|entered| &entered.live);
            // Pinned where it stands: handed on by value, it would have a place in each that it is handed to.
            let sent =
                std::pin::pin!(going.way.send((going.request, call), &going.host, going.want));
            let response = while_permitted(call, sent).await?;
            // What came in the same moment as the call's end comes too late.
            permitted(call)?;
            response
        };
        self.pass_back(response, going.upgrading, going.entered)
    }

    fn pass_back(
        &self,
        mut response: Response<Body>,
        upgrading: Option<OnUpgrade>,
        entered: Option<Entered>,
    ) -> Result<Response<Body>, Failed> {
        let granted = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        let tunnel = match (granted, upgrading) {
            (false, _) => None,
            (true, Some(near)) => headers::upgrade(response.headers())
                .map(|protocol| (near, hyper::upgrade::on(&mut response), protocol)),
            (true, None) => None,
        };
        if granted && tunnel.is_none() {
            return Err(BadAnswer::Unasked.into());
        }
        if let (Some(_), Some(guard), Some(entered)) = (&tunnel, &self.guard, &entered) {
            guard.upgraded(&self.plane, entered)?;
        }
        let dialled = response.extensions_mut().remove::<Admitted>();
        *response.version_mut() = Version::HTTP_11;
        response.extensions_mut().clear();
        headers::give_back(response.headers_mut());
        if let Some((near, far, protocol)) = tunnel {
            ask_for(response.headers_mut(), protocol);
            self.join((near, entered), (far, dialled));
            return Ok(response);
        }
        let carried = entered.as_ref().and_then(|entered| stream::carries(entered.live.clone()));
        Ok(response.map(|body| body.while_permitted(entered, carried)))
    }

    /// Lets the bytes of the two upgraded connections flow. Each holds its own place in the register.
    fn join(
        &self,
        (near, entered): (OnUpgrade, Option<Entered>),
        (far, dialled): (OnUpgrade, Option<Admitted>),
    ) {
        self.meter.tunnel();
        let came = self.guard.as_ref().map(|guard| guard.admitted.clone());
        self.plane.tasks.start(async move {
            let _until_the_end = entered;
            let joined = async {
                let (near, far) = match tokio::try_join!(near, far) {
                    Ok(both) => both,
                    Err(error) => {
                        tracing::debug!(%error, "an upgrade was agreed on, and did not come");
                        return;
                    }
                };
                if let Err(error) = tunnel::join(TokioIo::new(near), TokioIo::new(far)).await {
                    tracing::debug!(%error, "an upgraded connection broke");
                }
            };
            let joined = tunnel::until_cut(dialled.as_ref(), joined);
            tunnel::until_cut(came.as_ref(), joined).await;
        });
    }
}

/// What comes of it, unless the call is ended before.
async fn while_permitted<T>(
    call: Option<&LiveCall>,
    sent: impl Future<Output = Result<T, Failed>>,
) -> Result<T, Failed> {
    let over = std::future::poll_fn(|cx| call.map_or(Poll::Pending, |call| call.poll_ended(cx)));
    tokio::select! {
        biased;
        sent = sent => sent,
        code = over => Err(ended(code).into()),
    }
}

impl Ways {
    fn of(&self, headers: &HeaderMap) -> &Tended {
        match &self.grpc {
            Some(grpc) if is_grpc(headers) => grpc,
            Some(_) | None => &self.http,
        }
    }
}

fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
    kind.is_some_and(|kind| kind.starts_with(b"application/grpc"))
}

/// That status in a response without a body, where its head takes the trailers' place.
fn refused_call(status: &'static str, failed: &Failed) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert("grpc-status", HeaderValue::from_static(status));
    if let Ok(detail) = HeaderValue::from_str(&failed.detail) {
        headers.insert("grpc-message", detail);
    }
    with_time(response, failed.again)
}

/// Says in which time to ask again (RFC 9110, 10.2.3), where that is known.
fn with_time(mut response: Response<Body>, again: Option<Duration>) -> Response<Body> {
    if let Some(again) = again {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(whole_seconds(again)));
    }
    response
}

/// There is no place for another request of this peer.
fn crowded() -> Failed {
    let detail = "too many requests of this peer are under way".to_owned();
    Failed { code: Code::RateLimited, detail, again: None }
}

/// The service became a byte stream while this connection was open.
fn changed() -> Failed {
    Failed {
        code: Code::Unavailable,
        detail: "the service does not take requests any more".to_owned(),
        again: None,
    }
}

impl From<BadRequest> for Failed {
    fn from(bad: BadRequest) -> Self {
        Self { code: Code::NotUnderstood, detail: bad.to_string(), again: None }
    }
}

fn ask_for(headers: &mut HeaderMap, protocol: HeaderValue) {
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, protocol);
}
