//! One connection on which we answer requests: its bounds, and how it is closed without losing one.

use std::error::Error;
use std::fmt::Display;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use countersign_program::seldom::Seldom;
use countersign_tls::{Limit, Permit};
use http::header::{CONNECTION, HeaderValue};
use http::{Request, Response, Version};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;

use crate::body::{Arriving, Body};
use crate::bounds::{
    ANNOUNCED_IDLE, ANNOUNCED_MAX, CONNECTION_WINDOW, HEAD_BYTES_MAX, HEAD_TIMEOUT,
    HEADER_LIST_BYTES_MAX, PING_EVERY, PING_TIMEOUT, PROVOKED_RESETS_MAX, RESET_STREAMS_MAX,
    SEND_BUFFER_MAX, STREAM_WINDOW, STREAMS_MAX,
};
use crate::gather::Gathering;
use crate::rest;
use crate::stream::{Streams, carrying};
use crate::tasks::Tasks;
use crate::unsent::{Bounded, Bounding, Unsent};

/// What the other end speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spoken {
    /// Agreed by ALPN, or what is spoken without it.
    Http1,
    /// Agreed by ALPN.
    Http2,
    /// A program of our own side, which may begin with either.
    Either,
}

/// What is known of a connection while it is served.
pub(crate) struct Session {
    announced: AtomicBool,
    active: AtomicUsize,
    /// Rings when that changes after closing was announced; before, nobody listens.
    changed: Notify,
}

/// A request under way. Dropped with the last byte of its response and of its own.
pub(crate) struct Busy {
    session: Arc<Session>,
    /// Among the requests that one peer may have under way over all of its connections.
    share: Option<Permit>,
}

impl Session {
    pub(crate) fn new() -> Arc<Self> {
        let (announced, active) = (AtomicBool::new(false), AtomicUsize::new(0));
        Arc::new(Self { announced, active, changed: Notify::new() })
    }

    /// Counts a request until the guard is dropped.
    pub(crate) fn enter(self: &Arc<Self>) -> Arc<Busy> {
        Arc::new(self.begin(None))
    }

    /// As [`enter`](Self::enter), if there is a place among these.
    pub(crate) fn enter_within(self: &Arc<Self>, limit: &Limit) -> Option<Arc<Busy>> {
        let share = limit.take()?;
        Some(Arc::new(self.begin(Some(share))))
    }

    fn begin(self: &Arc<Self>, share: Option<Permit>) -> Busy {
        self.active.fetch_add(1, Ordering::SeqCst);
        self.tell();
        Busy { session: self.clone(), share }
    }

    /// Finishes a response: keeps the session busy until it is sent, and says `Connection: close` on HTTP/1.1
    /// once closing was announced, so that the other end sends nothing more here.
    pub(crate) fn leave(&self, response: Response<Body>, busy: Arc<Busy>) -> Response<Body> {
        let mut response = response.map(|body| body.keep_busy(busy));
        if self.announced.load(Ordering::Acquire)
            && response.status() != http::StatusCode::SWITCHING_PROTOCOLS
        {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    /// Whether a request is under way.
    pub(crate) fn is_active(&self) -> bool {
        0 < self.active.load(Ordering::SeqCst)
    }

    /// Resolves once no request has been under way for the whole of `span`. Closing has been announced before.
    async fn idle_for(&self, span: Duration) {
        loop {
            // Listened for before it is looked at: a change between the two is heard.
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if self.is_active() {
                changed.await;
                continue;
            }
            tokio::select! {
                () = tokio::time::sleep(span) => return,
                () = changed => {}
            }
        }
    }

    /// Tells who waits for idleness that there is another request, or one less.
    fn tell(&self) {
        if self.announced.load(Ordering::SeqCst) {
            self.changed.notify_waiters();
        }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.share.take();
        self.session.active.fetch_sub(1, Ordering::SeqCst);
        self.session.tell();
    }
}

/// What a connection may take before it is taken for dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Patience {
    /// With a peer: the next head must come within [`HEAD_TIMEOUT`].
    Peer,
    /// With the program of our own side, whose pool may rest for as long as it likes.
    Program,
}

impl Patience {
    fn head(self) -> Option<Duration> {
        match self {
            Self::Peer => Some(HEAD_TIMEOUT),
            Self::Program => None,
        }
    }
}

/// Answers requests on `io` until it closes, or until `announce` has come and the last one is answered.
///
/// hyper's own graceful shutdown closes an HTTP/1.1 connection at once, also when a request is on its way. So
/// closing is first told in the next response, and a connection which stays idle is closed a little later.
///
/// Boxed, each protocol by itself: what is handed on from step to step would have a place in each of them.
pub(crate) fn serve<'a, I, S>(
    io: I,
    how: (Spoken, Patience),
    service: S,
    session: Arc<Session>,
    (announce, tasks): (impl Future<Output = ()> + Send + 'a, &Tasks),
) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service<Request<Arriving>, Response = Response<Body>> + Send + Sync + 'static,
    S::Error: Into<Box<dyn Error + Send + Sync>>,
    S::Future: Unpin + Send + 'static,
{
    let announce = Seldom::new(Box::pin(announce));
    match how.0 {
        Spoken::Http1 => {
            let served = rest::serve(io, how.1.head(), service, session, announce);
            let carrying = carrying(Box::pin(served));
            Box::pin(async move {
                match carrying.await {
                    Some(ended) => tell(ended),
                    None => tracing::debug!("a connection ended with the call that it carried"),
                }
            })
        }
        Spoken::Http2 => {
            let service = Whole::new(service);
            let io = TokioIo::new(Gathering::new(io));
            let connection = http2_rules(tasks).serve_connection(io, service);
            let (connection, close) = (Box::pin(connection), |it: Pin<&mut _>| {
                http2::Connection::graceful_shutdown(it);
            });
            Box::pin(async move { tell(closing(connection, close, None, announce).await) })
        }
        Spoken::Either => {
            let (rules, io, service) = (either_rules(tasks), TokioIo::new(io), Whole::new(service));
            Box::pin(async move {
                let connection = rules.serve_connection_with_upgrades(io, service);
                let close = |it: Pin<&mut _>| auto::UpgradeableConnection::graceful_shutdown(it);
                tell(closing(Box::pin(connection), close, Some(&session), announce).await);
            })
        }
    }
}

fn tell(ended: Result<(), impl Display>) {
    if let Err(error) = ended {
        // What the other end did wrong was answered on the connection, if it could be.
        tracing::debug!(%error, "a connection ended");
    }
}

/// Takes requests over one connection that never [rests](rest), and may have many streams.
struct Whole<S> {
    service: S,
    unsent: Unsent,
}

impl<S> Whole<S> {
    fn new(service: S) -> Self {
        Self { service, unsent: Unsent::default() }
    }
}

impl<S> Service<Request<Incoming>> for Whole<S>
where
    S: Service<Request<Arriving>, Response = Response<Body>>,
    S::Future: Unpin,
{
    type Response = Response<Bounded<Body>>;
    type Error = S::Error;
    type Future = Bounding<S::Future>;

    fn call(&self, request: Request<Incoming>) -> Bounding<S::Future> {
        let on = (request.version() == Version::HTTP_2).then(|| self.unsent.clone());
        Bounding { answer: self.service.call(request.map(Arriving::from)), on }
    }
}

/// Drives a connection; announces, waits for idleness if there is a session to ask, then closes.
///
/// It comes boxed: each step on the way here would keep a place for it otherwise.
async fn closing<C, E>(
    mut connection: Pin<Box<C>>,
    close: impl Fn(Pin<&mut C>),
    idle: Option<&Arc<Session>>,
    announce: impl Future<Output = ()>,
) -> Result<(), E>
where
    C: Future<Output = Result<(), E>>,
{
    tokio::select! {
        biased;
        ended = &mut connection => return ended,
        () = announce => {}
    }
    close_when_idle(connection, close, idle).await
}

/// As [`closing`], once closing is to be announced.
pub(crate) async fn close_when_idle<C, E>(
    mut connection: Pin<Box<C>>,
    close: impl Fn(Pin<&mut C>),
    idle: Option<&Arc<Session>>,
) -> Result<(), E>
where
    C: Future<Output = Result<(), E>>,
{
    if let Some(session) = idle {
        session.announced.store(true, Ordering::SeqCst);
        tokio::select! {
            ended = &mut connection => return ended,
            () = session.idle_for(ANNOUNCED_IDLE) => {}
            // A program that speaks HTTP/2 hears of it only now, and HTTP/1.1 that is busy is not hurt.
            () = tokio::time::sleep(ANNOUNCED_MAX) => {}
        }
    }
    close(connection.as_mut());
    connection.await
}

fn http2_rules(tasks: &Tasks) -> http2::Builder<Streams> {
    let mut rules = http2::Builder::new(Streams::new(tasks));
    rules
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_pending_accept_reset_streams(RESET_STREAMS_MAX)
        .max_local_error_reset_streams(PROVOKED_RESETS_MAX)
        .max_header_list_size(HEADER_LIST_BYTES_MAX)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER_MAX)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT)
        .auto_date_header(false);
    rules
}

fn either_rules(tasks: &Tasks) -> auto::Builder<Tasks> {
    let mut rules = auto::Builder::new(tasks.clone());
    rules
        .http1()
        .timer(TokioTimer::new())
        .max_buf_size(HEAD_BYTES_MAX)
        .header_read_timeout(None)
        .auto_date_header(false);
    rules
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_pending_accept_reset_streams(RESET_STREAMS_MAX)
        .max_local_error_reset_streams(PROVOKED_RESETS_MAX)
        .max_header_list_size(HEADER_LIST_BYTES_MAX)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER_MAX)
        .auto_date_header(false);
    rules
}

#[cfg(test)]
pub(crate) mod tests {
    use std::convert::Infallible;
    use std::io;
    use std::task::{Context, Poll, Waker};

    use bytes::Bytes;
    use http_body::Frame;
    use http_body_util::{Empty, StreamBody};
    use hyper::service::service_fn;
    use tokio::io::{DuplexStream, ReadBuf};

    use super::*;
    use crate::bounds::UNSENT_MAX;

    pub(crate) const STREAMS: usize = 64;
    pub(crate) const PART: usize = 16 * 1024;
    const PARTS: usize = 32;
    const PATIENCE: Duration = Duration::from_secs(60);

    /// The end of a peer that reads nothing until it is told to.
    struct Slow(DuplexStream, Arc<Gate>);

    #[derive(Default)]
    struct Gate {
        open: AtomicBool,
        waits: std::sync::Mutex<Option<Waker>>,
    }

    impl Gate {
        fn open(&self) {
            self.open.store(true, Ordering::SeqCst);
            self.waits.lock().unwrap().take().unwrap().wake();
        }
    }

    impl AsyncRead for Slow {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            *self.1.waits.lock().unwrap() = Some(cx.waker().clone());
            match self.1.open.load(Ordering::SeqCst) {
                true => Pin::new(&mut self.0).poll_read(cx, buffer),
                false => Poll::Pending,
            }
        }
    }

    impl AsyncWrite for Slow {
        fn poll_write(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            Pin::new(&mut self.0).poll_write(cx, bytes)
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_flush(cx)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_shutdown(cx)
        }
    }

    /// A body of half a megabyte, as it comes from a program.
    pub(crate) async fn comes() -> Incoming {
        let (ours, theirs) = tokio::io::duplex(PART);
        let answer = service_fn(async |_request: Request<Incoming>| {
            let parts = std::iter::repeat_n(Bytes::from_static(&[b'x'; PART]), PARTS);
            let parts = parts.map(|part| Ok::<_, Infallible>(Frame::data(part)));
            Ok::<_, Infallible>(Response::new(StreamBody::new(futures_util::stream::iter(parts))))
        });
        let program = hyper::server::conn::http1::Builder::new();
        tokio::spawn(program.serve_connection(TokioIo::new(theirs), answer));
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(ours)).await.unwrap();
        tokio::spawn(connection);
        sender.send_request(Request::new(Empty::<Bytes>::new())).await.unwrap().into_body()
    }

    /// As much waits as may, and no more.
    pub(crate) async fn is_used_and_kept(unsent: &Unsent) {
        let stands_still = async {
            let (mut waits, mut looks) = (0, 0);
            while waits < UNSENT_MAX || looks < 500 {
                tokio::time::sleep(Duration::from_millis(1)).await;
                let before = std::mem::replace(&mut waits, unsent.bytes());
                looks = if waits == before { looks + 1 } else { 0 };
            }
            waits
        };
        let waits = tokio::time::timeout(PATIENCE, stands_still).await.expect("it is used");
        // Streams of which nothing waited went on with one part.
        assert!(waits <= UNSENT_MAX + STREAMS * PART, "{waits}");
    }

    #[tokio::test]
    async fn who_takes_nothing_of_all_its_streams_has_no_more_kept_for_it_and_gets_all_in_the_end()
    {
        let (ours, theirs) = tokio::io::duplex(PART);
        let service = Whole::new(service_fn(|_request: Request<Arriving>| {
            Box::pin(async {
                let busy = Session::new().enter();
                let body = Body::sending(Arriving::from(comes().await), &busy, None);
                Ok::<_, Infallible>(Response::new(body))
            })
        }));
        let unsent = service.unsent.clone();
        let serving =
            http2_rules(&Tasks::default()).serve_connection(TokioIo::new(theirs), service);
        tokio::spawn(serving);
        // It grants whatever it may, and the bound is ours alone.
        let gate = Arc::new(Gate::default());
        let mut rules = h2::client::Builder::new();
        rules.initial_window_size(i32::MAX as u32).initial_connection_window_size(i32::MAX as u32);
        let slow = Slow(ours, Arc::clone(&gate));
        let (sender, connection) = rules.handshake::<_, Bytes>(slow).await.unwrap();
        tokio::spawn(connection);
        let mut asking = tokio::task::JoinSet::new();
        for _ in 0..STREAMS {
            let (answer, _) =
                sender.clone().send_request(Request::new(()), true).expect("it may have so many");
            asking.spawn(async move {
                let (mut body, mut bytes) = (answer.await.unwrap().into_body(), 0);
                while let Some(part) = body.data().await {
                    bytes += part.unwrap().len();
                }
                bytes
            });
        }
        is_used_and_kept(&unsent).await;
        gate.open();
        let whole = tokio::time::timeout(PATIENCE, asking.join_all()).await;
        assert_eq!(whole.expect("no stream is held up"), [PARTS * PART; STREAMS]);
        assert_eq!(unsent.bytes(), 0);
    }
}
