//! HTTP/1.1 connections that rest: while nobody asks for anything, nothing is kept but the connection itself.
//!
//! hyper has a buffer to read into and one to write from, 8 KiB each, for as long as it has a connection. So it gets the
//! connection when the first byte of a request has come, and when nothing was asked for a while, the connection is taken back
//! from it, with what it may have read of a next request by then.
//!
//! A connection is taken back only when all that was asked for has been answered, the answers have gone out, and all that was sent
//! along was read: what comes next would be read as the beginning of a request, whatever it is. One that an answer closes is
//! closed by hyper as soon as that has gone out, and so never taken back.

use std::error::Error;
use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::{Body as _, Incoming};
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::{Instant, sleep};

use crate::body::{Arriving, Body};
use crate::bounds::{HEAD_BYTES_MAX, LOOK_AGAIN_MAX, LOOKS_SOON, REST_AFTER, TAKES_LONGER};
use crate::session::{Session, close_when_idle};
use crate::way::GivingWay;

/// Answers requests on `io` until it closes, or until `announce` has come and the last one is answered. The next head must
/// come within that time, if one is named.
pub(crate) fn serve<I, S>(
    io: I,
    head_within: Option<Duration>,
    service: S,
    session: Arc<Session>,
    mut announce: impl Future<Output = ()> + Unpin,
) -> impl Future<Output = Result<(), hyper::Error>>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service<Request<Arriving>, Response = Response<Body>>,
    S::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let traffic = Arc::new(Traffic::of(session));
    let io = GivingWay::new(io);
    let mut line = Line { ahead: Bytes::new(), io, traffic: traffic.clone() };
    let mut service = Asked { service, traffic: traffic.clone() };
    let mut quiet =
        Quiet { since: Instant::now(), at_most: head_within, progress: (0, 0), traffic };
    // A block, in which each of them has one place: given to a function that waits, they would have two.
    async move {
        let mut announce = Pin::new(&mut announce);
        let traffic = quiet.traffic.clone();
        loop {
            let Some(woken) = line.rest(&quiet, announce.as_mut()).await else { return Ok(()) };
            let served = rules().serve_connection(TokioIo::new(line), service);
            // Boxed, so that it takes no room while the connection rests.
            let mut served = Box::pin(served.with_upgrades());
            let course = match woken {
                Woken::Asked => drive(served.as_mut(), &mut quiet, announce.as_mut()).await,
                Woken::Announced => Course::Announced,
            };
            match course {
                Course::Ended(ended) => return ended,
                Course::Announced => {
                    let close =
                        |it: Pin<&mut _>| http1::UpgradeableConnection::graceful_shutdown(it);
                    return tokio::select! {
                        ended = close_when_idle(served, close, Some(&traffic.session)) => ended,
                        () = quiet.over_at_last() => Ok(()),
                    };
                }
                Course::Quiet => {}
            }
            // hyper ends as if the connection were to be closed, which takes until all that it wrote has gone out.
            traffic.resting.store(true, Ordering::Release);
            served.as_mut().graceful_shutdown();
            tokio::select! {
                ended = served.as_mut() => ended?,
                () = quiet.over() => return Ok(()),
            }
            let Some(parts) = Pin::into_inner(served).into_parts() else { return Ok(()) };
            traffic.resting.store(false, Ordering::Release);
            (line, service) = (parts.io.into_inner(), parts.service);
            if !parts.read_buf.is_empty() {
                line.ahead = parts.read_buf;
            }
        }
    }
}

/// How a rest ended.
enum Woken {
    /// Something has come.
    Asked,
    /// The connection is to be closed.
    Announced,
}

/// How it went while hyper had the connection.
enum Course {
    Ended(Result<(), hyper::Error>),
    Announced,
    /// All is answered, and nothing more was asked.
    Quiet,
}

/// Since when nothing has happened, and how long it may be that nothing is asked for.
struct Quiet {
    since: Instant,
    at_most: Option<Duration>,
    /// How much had happened when it was looked at last.
    progress: (usize, usize),
    traffic: Arc<Traffic>,
}

/// What is known of what goes over a connection, and bears on whether it may rest.
struct Traffic {
    session: Arc<Session>,
    /// How many requests have come.
    asked: AtomicUsize,
    /// What bars it from resting: [bodies](Unread) that were not read to their end, and what asked for another protocol.
    bars: AtomicUsize,
    /// Whether something was written that has not gone out.
    unsent: AtomicBool,
    /// How often something was written, or had gone out.
    moved: AtomicUsize,
    /// While this is so, closing what hyper has does not close the connection.
    resting: AtomicBool,
}

impl Traffic {
    fn of(session: Arc<Session>) -> Self {
        let [asked, bars, moved] = [0; 3].map(AtomicUsize::new);
        let (unsent, resting) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { session, asked, bars, unsent, moved, resting }
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    /// Whether what was written has not gone out: what follows that may be the connection's end.
    fn is_unsent(&self) -> bool {
        self.unsent.load(Ordering::SeqCst)
    }

    /// How much has happened on it so far.
    fn progress(&self) -> (usize, usize) {
        (self.asked(), self.moved.load(Ordering::Relaxed))
    }

    /// Whether what comes next can be nothing but a request.
    fn may_rest(&self) -> bool {
        self.bars.load(Ordering::SeqCst) == 0
    }

    fn bar(&self) {
        self.bars.fetch_add(1, Ordering::SeqCst);
    }
}

/// A body of which something has not been read. It bars its connection from resting until it has been: for good, where it is
/// dropped before, since what is left of it may still come.
pub(crate) struct Unread(Arc<Traffic>);

impl Unread {
    fn of(traffic: &Arc<Traffic>) -> Self {
        traffic.bar();
        Self(traffic.clone())
    }

    /// It was read to its end: what comes next is not of it.
    pub(crate) fn read(self) {
        self.0.bars.fetch_sub(1, Ordering::SeqCst);
    }
}

/// What was seen of a connection.
enum Look {
    /// Something was asked for since the last look, or is not answered yet.
    Busy,
    Quiet,
    /// It was quiet for too long.
    Over,
}

impl Quiet {
    fn left(&self) -> Option<Duration> {
        self.at_most.map(|most| most.saturating_sub(self.since.elapsed()))
    }

    /// Resolves when it has been so for too long, of a connection on which nothing can be asked for.
    async fn over(&self) {
        match self.left() {
            Some(left) => sleep(left).await,
            None => std::future::pending().await,
        }
        tracing::debug!("nothing was asked for in time");
    }

    /// Looks whether it still is so. To note the time of each request would cost each request something.
    fn look(&mut self) -> Look {
        let progress = self.traffic.progress();
        if self.traffic.session.is_active() || progress != self.progress {
            (self.progress, self.since) = (progress, Instant::now());
            return Look::Busy;
        }
        if self.traffic.is_unsent() {
            // Who takes something now and then asks for nothing meanwhile; who takes nothing is not waited for without end.
            let most = self.at_most.map(|most| TAKES_LONGER * most);
            if most.is_some_and(|most| most <= self.since.elapsed()) {
                tracing::debug!("nobody took what was sent");
                return Look::Over;
            }
            return Look::Busy;
        }
        if self.left() == Some(Duration::ZERO) {
            tracing::debug!("no head came in time");
            return Look::Over;
        }
        Look::Quiet
    }

    /// Resolves when it has been so for too long.
    async fn over_at_last(&mut self) {
        loop {
            sleep(LOOK_AGAIN_MAX).await;
            if matches!(self.look(), Look::Over) {
                return;
            }
        }
    }
}

/// Drives a connection until it ends, is to be closed, or has nothing to do.
async fn drive<C>(
    mut served: Pin<&mut C>,
    quiet: &mut Quiet,
    mut announce: Pin<&mut impl Future<Output = ()>>,
) -> Course
where
    C: Future<Output = Result<(), hyper::Error>>,
{
    let (first, mut pause, mut looks) = (quiet.traffic.asked(), REST_AFTER, 0);
    loop {
        tokio::select! {
            biased;
            ended = served.as_mut() => return Course::Ended(ended),
            () = announce.as_mut() => return Course::Announced,
            () = sleep(pause) => {}
        }
        match quiet.look() {
            Look::Over => return Course::Ended(Ok(())),
            Look::Quiet if quiet.progress.0 != first && quiet.traffic.may_rest() => {
                return Course::Quiet;
            }
            Look::Quiet | Look::Busy => {}
        }
        // One that goes on, or will never rest, is not to cost more than it must.
        looks += 1;
        if LOOKS_SOON <= looks {
            pause = LOOK_AGAIN_MAX.min(2 * pause);
        }
    }
}

fn rules() -> http1::Builder {
    let mut rules = http1::Builder::new();
    // How long a head may take is counted here: hyper would make a timer for each.
    rules.max_buf_size(HEAD_BYTES_MAX).header_read_timeout(None).auto_date_header(false);
    rules
}

/// Notes what is asked for.
struct Asked<S> {
    service: S,
    traffic: Arc<Traffic>,
}

impl<S: Service<Request<Arriving>>> Service<Request<Incoming>> for Asked<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn call(&self, request: Request<Incoming>) -> S::Future {
        self.traffic.asked.fetch_add(1, Ordering::Relaxed);
        // hyper remembers to the end that another protocol was asked for, also where that was not granted.
        if request.extensions().get::<OnUpgrade>().is_some() {
            self.traffic.bar();
        }
        let unread = |body: &Incoming| (!body.is_end_stream()).then(|| Unread::of(&self.traffic));
        self.service.call(request.map(|body| Arriving { unread: unread(&body), incoming: body }))
    }
}

/// The connection, beneath hyper and without it.
struct Line<I> {
    /// What was read of it and not looked at.
    ahead: Bytes,
    io: I,
    traffic: Arc<Traffic>,
}

impl<I> Line<I> {
    /// Notes that something is to go out, and whether some of it went on.
    fn note_written(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        self.traffic.unsent.store(true, Ordering::SeqCst);
        if written.is_ready() {
            self.traffic.moved.fetch_add(1, Ordering::Relaxed);
        }
        written
    }

    /// Notes that all has gone out. Where nothing was to, that is no news: who sends a head byte by byte is asked for it each time.
    fn note_flushed(&self, flushed: Poll<io::Result<()>>) -> Poll<io::Result<()>> {
        if flushed.is_ready() && self.traffic.unsent.swap(false, Ordering::SeqCst) {
            self.traffic.moved.fetch_add(1, Ordering::Relaxed);
        }
        flushed
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin> Line<I> {
    /// Waits for the first byte of the next request. None when the other end has closed, or asked for nothing in time.
    async fn rest(
        &mut self,
        quiet: &Quiet,
        announce: Pin<&mut impl Future<Output = ()>>,
    ) -> Option<Woken> {
        if !self.ahead.is_empty() {
            return Some(Woken::Asked);
        }
        let mut first = [0];
        let read = tokio::select! {
            biased;
            read = self.io.read(&mut first) => read,
            () = announce => return Some(Woken::Announced),
            () = quiet.over() => return None,
        };
        match read {
            Ok(0) => {
                tokio::select! {
                    ended = self.io.shutdown() => if let Err(error) = ended {
                        tracing::debug!(%error, "a connection ended while it was closed");
                    },
                    () = quiet.over() => {}
                }
                None
            }
            Ok(_) => {
                self.ahead = Bytes::copy_from_slice(&first);
                Some(Woken::Asked)
            }
            Err(error) => {
                tracing::debug!(%error, "a connection ended while it rested");
                None
            }
        }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Line<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.ahead.is_empty() {
            return Pin::new(&mut self.io).poll_read(cx, buffer);
        }
        let length = self.ahead.len().min(buffer.remaining());
        buffer.put_slice(&self.ahead.split_to(length));
        if self.ahead.is_empty() {
            // What is left of it is nothing, and would hold on to the whole.
            self.ahead = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Line<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, bytes);
        self.note_written(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, bytes);
        self.note_written(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.io).poll_flush(cx);
        self.note_flushed(flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.traffic.resting.load(Ordering::Acquire) {
            return Poll::Ready(Ok(()));
        }
        // Nothing is read any more over what is being closed, also while its end has not gone out.
        self.traffic.bar();
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
