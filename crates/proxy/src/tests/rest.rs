//! HTTP/1.1 connections that rest between requests: nobody at the other end notices.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::BodyExt;
use hyper::service::service_fn;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf};
use tokio::task::JoinHandle;
use tokio::time::{Sleep, sleep};
use tokio_util::sync::CancellationToken;

use super::world::{PATIENCE, eventually};
use crate::body::{Arriving, Body};
use crate::rest::serve;
use crate::session::Session;

/// Longer than any of these tests.
const LONG: Duration = Duration::from_secs(600);
const GET: &[u8] = b"GET /next HTTP/1.1\r\nhost: a\r\n\r\n";
/// Much more than a duplex and the buffers behind it hold.
const LARGE: usize = 1 << 20;

/// A connection, and how much was asked of it last: a byte while it rests, and far more by hyper.
struct Watched {
    io: DuplexStream,
    wanted: Arc<AtomicUsize>,
    /// How long its end takes to go out.
    closes_in: Duration,
    closing: Option<Pin<Box<Sleep>>>,
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.wanted.store(buffer.remaining(), Ordering::SeqCst);
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let closes_in = self.closes_in;
        let closing = self.closing.get_or_insert_with(|| Box::pin(sleep(closes_in)));
        ready!(closing.as_mut().poll(cx));
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// A connection that is served, and its other end.
struct Served {
    far: DuplexStream,
    wanted: Arc<AtomicUsize>,
    requests: Arc<AtomicUsize>,
    announce: CancellationToken,
    task: JoinHandle<Result<(), hyper::Error>>,
}

impl Served {
    /// `POST` has its body read, `PUT` is answered before; `/large` has a long answer.
    fn new(head_within: Duration) -> Self {
        Self::closing_in(head_within, Duration::ZERO)
    }

    fn closing_in(head_within: Duration, closes_in: Duration) -> Self {
        let (near, far) = tokio::io::duplex(1024);
        let (wanted, requests) = (Arc::default(), Arc::<AtomicUsize>::default());
        let (announce, session) = (CancellationToken::new(), Session::new());
        let io = Watched { io: near, wanted: Arc::clone(&wanted), closes_in, closing: None };
        let service = service_fn({
            let (session, requests) = (session.clone(), requests.clone());
            move |request: Request<Arriving>| {
                requests.fetch_add(1, Ordering::SeqCst);
                let session = session.clone();
                Box::pin(async move { Ok::<_, Infallible>(answer(request, &session).await) })
            }
        });
        let told = announce.clone();
        let task = tokio::spawn(async move {
            serve(io, Some(head_within), service, session, std::pin::pin!(told.cancelled())).await
        });
        Self { far, wanted, requests, announce, task }
    }

    /// Sends, and reads one answer whose body is `ok`.
    async fn ask(&mut self, request: &[u8]) -> String {
        self.far.write_all(request).await.unwrap();
        self.answer().await
    }

    async fn answer(&mut self) -> String {
        let mut read = Vec::new();
        while !read.ends_with(b"\r\n\r\nok") {
            assert_ne!(self.far.read_buf(&mut read).await.unwrap(), 0, "{read:?}");
        }
        String::from_utf8(read).unwrap()
    }

    async fn rests(&self) {
        eventually(|| (self.wanted.load(Ordering::SeqCst) == 1).then_some(())).await;
    }

    fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }

    /// Waits until it has ended, and says what was left to read.
    async fn ended(mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        self.far.read_to_end(&mut rest).await.unwrap();
        drop(self.far);
        // What the other end did is said in what was read.
        let _ended = self.task.await.unwrap();
        rest
    }
}

async fn answer(request: Request<Arriving>, session: &Arc<Session>) -> Response<Body> {
    let busy = session.enter();
    let (head, incoming) = request.into_parts();
    if head.method == Method::POST {
        let body = Body::sending(incoming, &busy, None);
        body.collect().await.map(drop).unwrap();
    }
    let large = head.uri.path() == "/large";
    let body = if large { vec![b'x'; LARGE].into() } else { Bytes::from_static(b"ok") };
    session.leave(Response::new(Body::from(body)), busy)
}

/// How long resting takes, and then some: for what must not happen.
async fn while_it_would_rest() {
    tokio::time::sleep(crate::bounds::REST_AFTER * 25).await;
}

#[tokio::test]
async fn a_connection_rests_before_the_first_request_and_after_each() {
    let mut served = Served::new(LONG);
    served.rests().await;
    for request in [GET, b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc", GET] {
        assert!(served.ask(request).await.starts_with("HTTP/1.1 200"));
        served.rests().await;
    }
    assert_eq!(served.requests(), 3);
    served.far.shutdown().await.unwrap();
    assert_eq!(served.ended().await, b"");
}

#[tokio::test]
async fn what_was_read_of_the_next_request_is_not_lost() {
    let mut served = Served::new(LONG);
    let (begun, rest) = GET.split_at(9);
    served.ask(&[GET, begun].concat()).await;
    while_it_would_rest().await;
    served.ask(rest).await;
    assert_eq!(served.requests(), 2);
    served.rests().await;
}

#[tokio::test]
async fn the_rest_of_a_body_that_nobody_read_is_no_request() {
    let mut served = Served::new(LONG);
    served.ask(b"PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: 1000\r\n\r\nabc").await;
    while_it_would_rest().await;
    // It may be closed by now.
    let _closed = served.far.write_all(&GET.repeat(10)).await;
    let requests = served.requests.clone();
    assert_eq!(served.ended().await, b"");
    assert_eq!(requests.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_chunked_body_that_was_read_to_its_end_lets_it_rest() {
    let mut served = Served::new(LONG);
    let post = b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n";
    served.far.write_all(post).await.unwrap();
    eventually(|| (served.requests() == 1).then_some(())).await;
    while_it_would_rest().await;
    assert!(1 < served.wanted.load(Ordering::SeqCst), "it is busy");
    served.ask(b"0\r\n\r\n").await;
    served.rests().await;
    served.ask(GET).await;
}

#[tokio::test]
async fn a_connection_on_which_another_protocol_was_asked_for_in_vain_goes_on() {
    let mut served = Served::new(LONG);
    let upgrade = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n";
    served.ask(upgrade).await;
    while_it_would_rest().await;
    served.ask(GET).await;
    assert_eq!(served.requests(), 2);
}

#[tokio::test]
async fn an_answer_that_is_read_slowly_arrives_whole() {
    let mut served = Served::new(LONG);
    served.far.write_all(b"GET /large HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    while_it_would_rest().await;
    let mut read = vec![0; LARGE];
    served.far.read_exact(&mut read).await.unwrap();
    let head = read.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
    served.far.read_exact(&mut read[..head]).await.unwrap();
    assert!(read[..head].iter().all(|byte| *byte == b'x'));
    served.rests().await;
    served.ask(GET).await;
}

#[tokio::test]
async fn a_connection_that_an_answer_closes_is_closed_once_the_answer_has_gone_out() {
    for request in [
        b"GET /large HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n".as_slice(),
        b"GET /large HTTP/1.0\r\nhost: a\r\n\r\n",
    ] {
        let mut served = Served::new(LONG);
        served.far.write_all(request).await.unwrap();
        let requests = served.requests.clone();
        // Longer than all the looks that come soon.
        while_it_would_rest().await;
        let whole = tokio::time::timeout(PATIENCE, served.ended()).await.unwrap();
        assert!(LARGE < whole.len() && whole.ends_with(b"x"));
        assert_eq!(requests.load(Ordering::SeqCst), 1);
    }
}

#[tokio::test]
async fn who_takes_its_answer_slowly_is_not_cut_for_asking_nothing_meanwhile() {
    let mut served = Served::new(Duration::from_secs(4));
    served.far.write_all(b"GET /large HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    sleep(Duration::from_secs(6)).await;
    served.far.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
    let whole = tokio::time::timeout(PATIENCE, served.ended()).await.unwrap();
    assert!(LARGE < whole.len() && whole.ends_with(b"\r\n\r\nok"), "{} bytes", whole.len());
}

#[tokio::test]
async fn who_takes_nothing_of_its_answer_is_cut_in_the_end() {
    let mut served = Served::new(Duration::from_secs(2));
    served.far.write_all(b"GET /large HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let ended = tokio::time::timeout(PATIENCE, &mut served.task).await;
    ended.expect("it is still held").unwrap().unwrap();
}

#[tokio::test]
async fn nothing_is_answered_over_what_is_being_closed() {
    let mut served = Served::closing_in(LONG, Duration::from_millis(500));
    let closing = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    served.far.write_all(&[closing, GET].concat()).await.unwrap();
    let requests = served.requests.clone();
    let answer = tokio::time::timeout(PATIENCE, served.ended()).await.unwrap();
    assert!(answer.ends_with(b"\r\n\r\nok"), "{answer:?}");
    assert_eq!(requests.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn half_a_head_does_not_keep_open_what_is_to_be_closed() {
    for asked_before in [false, true] {
        let mut served = Served::new(Duration::from_secs(2));
        if asked_before {
            served.ask(GET).await;
        }
        served.rests().await;
        served.announce.cancel();
        served.far.write_all(&GET[..9]).await.unwrap();
        let rest = tokio::time::timeout(PATIENCE, served.ended()).await.unwrap();
        assert_eq!(rest, b"");
    }
}

#[tokio::test]
async fn closing_is_told_while_it_rests_and_takes_what_was_on_its_way() {
    let mut served = Served::new(LONG);
    served.ask(GET).await;
    served.rests().await;
    served.announce.cancel();
    // From then on it waits a while for what is on its way, and rests no more.
    eventually(|| (1 < served.wanted.load(Ordering::SeqCst)).then_some(())).await;
    let answer = served.ask(GET).await;
    assert!(answer.contains("connection: close"), "{answer}");
    assert_eq!(served.ended().await, b"");
    let quiet = Served::new(LONG);
    quiet.rests().await;
    quiet.announce.cancel();
    assert_eq!(quiet.ended().await, b"");
}

#[tokio::test]
async fn who_asks_for_nothing_or_too_slowly_is_cut_in_time() {
    let within = Duration::from_millis(2500);
    assert_eq!(Served::new(within).ended().await, b"", "nothing came");
    let mut slow = Served::new(within);
    slow.ask(GET).await;
    slow.far.write_all(&GET[..9]).await.unwrap();
    let requests = slow.requests.clone();
    assert_eq!(slow.ended().await, b"", "half a head came");
    assert_eq!(requests.load(Ordering::SeqCst), 1);
    let mut first = Served::new(within);
    first.far.write_all(&GET[..9]).await.unwrap();
    assert_eq!(first.ended().await, b"", "half of the first head came");
}
