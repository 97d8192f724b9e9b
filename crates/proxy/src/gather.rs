//! What the streams of one HTTP/2 connection have to say, gathered: one record and one system call for several of them.
//!
//! A connection is flushed as soon as one of its streams has something to say. Others often have too, only a little later: they have
//! been answered, and wait for their turn, or for the runtime to look. So a connection gives way before it sends: until no other task
//! is ready and the runtime has looked at its sockets, or until one of its own streams has more to say, whichever comes first. No time
//! is waited for.
//!
//! It does so once for all that it sends in one turn. What is more than fits into a record goes out as it comes; so does, after the
//! first, each frame that h2 sends by itself, which are those with data of 256 bytes and more.

use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::bounds::GATHERED_MAX;

/// A connection whose writes are gathered until it is flushed.
pub(crate) struct Gathering<I> {
    io: I,
    gathered: Vec<u8>,
    /// How much of that has gone out.
    sent: usize,
    way: Way,
}

/// Whether it has given way in this turn.
enum Way {
    ToBeGiven,
    Giving(Pin<Box<dyn Future<Output = ()> + Send>>),
    Given,
}

impl<I> Gathering<I> {
    pub(crate) const fn new(io: I) -> Self {
        Self { io, gathered: Vec::new(), sent: 0, way: Way::ToBeGiven }
    }

    /// Whether so much more can be gathered.
    fn has_room(&self, more: usize) -> bool {
        self.gathered.len() + more <= GATHERED_MAX
    }
}

impl<I: AsyncWrite + Unpin> Gathering<I> {
    /// Sends what was gathered.
    fn poll_sent(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.gathered.len() {
            let rest = &self.gathered[self.sent..];
            match ready!(Pin::new(&mut self.io).poll_write(cx, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.sent += written,
            }
        }
        // Not kept: a connection that has nothing to say is to take no room for it.
        (self.gathered, self.sent) = (Vec::new(), 0);
        Poll::Ready(Ok(()))
    }

    fn poll_way_given(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            match &mut self.way {
                Way::ToBeGiven => self.way = Way::Giving(Box::pin(tokio::task::yield_now())),
                Way::Giving(giving) => {
                    ready!(giving.as_mut().poll(cx));
                    self.way = Way::Given;
                }
                Way::Given => return Poll::Ready(()),
            }
        }
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Gathering<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.as_mut().poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let more = bytes.iter().map(|part| part.len()).sum();
        if !self.has_room(more) {
            ready!(self.poll_sent(cx))?;
        }
        if !self.has_room(more) {
            return Pin::new(&mut self.io).poll_write_vectored(cx, bytes);
        }
        for part in bytes {
            self.gathered.extend_from_slice(part);
        }
        Poll::Ready(Ok(more))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.gathered.is_empty() {
            ready!(self.poll_way_given(cx));
        }
        ready!(self.poll_sent(cx))?;
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_sent(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Gathering<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.io).poll_read(cx, buffer);
        // A turn begins with reading all there is.
        if read.is_pending() && self.gathered.is_empty() {
            self.way = Way::ToBeGiven;
        }
        read
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, Mutex};
    use std::task::{Wake, Waker};
    use std::time::Duration;

    use bytes::Bytes;
    use http::{Request, Response};
    use http_body_util::{BodyExt, Empty, Full};
    use hyper::service::service_fn;
    use hyper_util::rt::{TokioExecutor, TokioIo};
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
    use tokio::net::UnixStream;
    use tokio::sync::Notify;

    use super::*;

    /// Notes what is written at once. Takes at most so much of it.
    struct Noting {
        written: Vec<Vec<u8>>,
        at_most: usize,
        flushed: usize,
    }

    impl AsyncWrite for Noting {
        fn poll_write(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.as_mut().poll_write_vectored(cx, &[IoSlice::new(bytes)])
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            _cx: &mut Context<'_>,
            bytes: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            let mut all = bytes.iter().flat_map(|part| part.to_vec()).collect::<Vec<u8>>();
            all.truncate(self.at_most);
            let length = all.len();
            self.written.push(all);
            Poll::Ready(Ok(length))
        }

        fn is_write_vectored(&self) -> bool {
            true
        }

        fn poll_flush(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.flushed += 1;
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncRead for Noting {
        fn poll_read(
            self: Pin<&mut Self>,
            _cx: &mut Context<'_>,
            _buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn gathering(at_most: usize) -> Gathering<Noting> {
        Gathering::new(Noting { written: Vec::new(), at_most, flushed: 0 })
    }

    fn write(to: &mut Gathering<Noting>, bytes: &[u8]) {
        let mut cx = Context::from_waker(Waker::noop());
        let written = Pin::new(to).poll_write(&mut cx, bytes);
        assert!(matches!(written, Poll::Ready(Ok(length)) if length == bytes.len()), "{written:?}");
    }

    #[test]
    fn what_is_written_before_the_task_has_its_next_turn_goes_out_at_once() {
        let (mut to, woken) = (gathering(usize::MAX), Arc::new(Woken::default()));
        let (waker, flush) = (Waker::from(woken.clone()), Gathering::<Noting>::poll_flush);
        let mut cx = Context::from_waker(&waker);
        write(&mut to, b"one ");
        write(&mut to, b"two ");
        assert!(flush(Pin::new(&mut to), &mut cx).is_pending());
        assert_eq!(woken.0.load(Ordering::SeqCst), 1, "nobody would come back");
        assert!(to.io.written.is_empty());
        write(&mut to, b"three");
        assert!(flush(Pin::new(&mut to), &mut cx).is_ready());
        assert_eq!(to.io.written, [b"one two three"]);
        assert_eq!((to.io.flushed, woken.0.load(Ordering::SeqCst)), (1, 1));
        assert_eq!(to.gathered.capacity(), 0, "room is kept for nothing");
        // Nobody has had a reason to come along since.
        write(&mut to, b"four");
        assert!(flush(Pin::new(&mut to), &mut cx).is_ready());
        // In its next turn it gives way again.
        assert!(Pin::new(&mut to).poll_read(&mut cx, &mut ReadBuf::new(&mut [0])).is_pending());
        write(&mut to, b"five");
        assert!(flush(Pin::new(&mut to), &mut cx).is_pending());
        assert!(Pin::new(&mut to).poll_read(&mut cx, &mut ReadBuf::new(&mut [0])).is_pending());
        assert!(flush(Pin::new(&mut to), &mut cx).is_ready());
        assert_eq!(to.io.written[1..], [b"four", b"five"]);
    }

    #[test]
    fn with_nothing_gathered_it_is_flushed_at_once() {
        let mut to = gathering(usize::MAX);
        let mut cx = Context::from_waker(Waker::noop());
        assert!(Pin::new(&mut to).poll_flush(&mut cx).is_ready());
        assert_eq!(to.io.flushed, 1);
    }

    #[test]
    fn what_is_large_goes_out_as_it_comes_behind_what_was_written_before() {
        let mut to = gathering(usize::MAX);
        let large = vec![7; GATHERED_MAX + 1];
        write(&mut to, b"small");
        write(&mut to, &large);
        assert_eq!(to.io.written, [&b"small"[..], &large]);
        // What fills it up makes room for itself.
        write(&mut to, &large[..GATHERED_MAX]);
        write(&mut to, b"more");
        assert_eq!(to.io.written[2..], [&large[..GATHERED_MAX]]);
    }

    #[test]
    fn parts_of_one_write_keep_their_order() {
        let mut to = gathering(usize::MAX);
        let mut cx = Context::from_waker(Waker::noop());
        let large = vec![7; GATHERED_MAX];
        for parts in [[&b"a"[..], b"bc"], [b"head", &large]] {
            let slices = parts.map(IoSlice::new);
            assert!(Pin::new(&mut to).poll_write_vectored(&mut cx, &slices).is_ready());
        }
        assert_eq!(to.io.written, [&b"abc"[..], &[&b"head"[..], &large].concat()]);
    }

    #[tokio::test]
    async fn what_has_arrived_in_a_socket_comes_along() {
        let (theirs, ours) = std::os::unix::net::UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut ours = UnixStream::from_std(ours).unwrap();
        let order: Arc<Mutex<Vec<&str>>> = Arc::default();
        let noted = Arc::clone(&order);
        let reading = tokio::spawn(async move {
            ours.read_exact(&mut [0]).await.unwrap();
            noted.lock().unwrap().push("arrived");
        });
        // It waits, and nothing has come yet.
        tokio::task::yield_now().await;
        let noted = Arc::clone(&order);
        let sending = tokio::spawn(async move {
            let mut to = gathering(usize::MAX);
            to.write_all(b"said").await.unwrap();
            io::Write::write_all(&mut &theirs, b"x").unwrap();
            to.flush().await.unwrap();
            noted.lock().unwrap().push("sent");
        });
        sending.await.unwrap();
        reading.await.unwrap();
        assert_eq!(*order.lock().unwrap(), ["arrived", "sent"]);
    }

    #[test]
    fn at_its_end_nothing_is_left_behind() {
        let mut to = gathering(2);
        let mut cx = Context::from_waker(Waker::noop());
        write(&mut to, b"the end");
        assert!(Pin::new(&mut to).poll_shutdown(&mut cx).is_ready());
        assert_eq!(to.io.written.concat(), b"the end");
    }

    #[tokio::test]
    async fn whatever_the_other_end_takes_at_once_all_arrives_in_its_order() {
        let all: Vec<u8> =
            (0..1_000_000_u32).map(|at| at.to_le_bytes()[0] ^ at.to_le_bytes()[1]).collect();
        let (ours, mut theirs) = tokio::io::duplex(700);
        let sent = all.clone();
        let sending = async move {
            let (mut to, mut from, mut round) = (Gathering::new(ours), 0, 0);
            while from < sent.len() {
                // From one byte to three times of what is gathered, in two parts.
                let until = sent.len().min(from + 1 + round * 7_919 % (3 * GATHERED_MAX));
                let parts = sent[from..until].split_at((until - from) / 3);
                let parts = [parts.0, parts.1].map(IoSlice::new);
                from += to.write_vectored(&parts).await.unwrap();
                round += 1;
                if round % 3 == 0 {
                    to.flush().await.unwrap();
                }
            }
            to.shutdown().await.unwrap();
        };
        let mut arrived = Vec::new();
        let (read, ()) = tokio::join!(theirs.read_to_end(&mut arrived), sending);
        assert_eq!(read.unwrap(), all.len());
        assert!(arrived == all, "some of it, or its order, was lost");
    }

    /// Counts how often something is written at once.
    struct Counting(DuplexStream, Arc<AtomicUsize>);

    impl AsyncWrite for Counting {
        fn poll_write(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.1.fetch_add(1, Ordering::SeqCst);
            Pin::new(&mut self.0).poll_write(cx, bytes)
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            bytes: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            self.1.fetch_add(1, Ordering::SeqCst);
            Pin::new(&mut self.0).poll_write_vectored(cx, bytes)
        }

        fn is_write_vectored(&self) -> bool {
            true
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_flush(cx)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_shutdown(cx)
        }
    }

    impl AsyncRead for Counting {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_read(cx, buffer)
        }
    }

    #[tokio::test]
    async fn answers_that_follow_each_other_at_once_go_out_together() {
        const STREAMS: usize = 8;
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        let written = Arc::new(AtomicUsize::new(0));
        let (turns, arrived): (Arc<[Notify; STREAMS]>, Arc<AtomicUsize>) = Default::default();
        let (told, counted) = (Arc::clone(&turns), Arc::clone(&arrived));
        let answer = service_fn(move |_request: Request<hyper::body::Incoming>| {
            let (turns, arrived) = (Arc::clone(&told), Arc::clone(&counted));
            async move {
                let number = arrived.fetch_add(1, Ordering::SeqCst);
                turns[number].notified().await;
                if let Some(next) = turns.get(number + 1) {
                    next.notify_one();
                }
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(vec![7; 200]))))
            }
        });
        let io = TokioIo::new(Gathering::new(Counting(theirs, Arc::clone(&written))));
        let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        let serving = tokio::spawn(serving.serve_connection(io, answer));
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(ours))
                .await
                .unwrap();
        tokio::spawn(connection);
        let mut asking = tokio::task::JoinSet::new();
        for _ in 0..STREAMS {
            let mut sender = sender.clone();
            asking.spawn(async move {
                let answer =
                    sender.send_request(Request::new(Empty::<Bytes>::new())).await.unwrap();
                answer.into_body().collect().await.unwrap().to_bytes()
            });
        }
        // All of them wait before the first one is answered. What was written before does not count.
        while arrived.load(Ordering::SeqCst) < STREAMS {
            tokio::task::yield_now().await;
        }
        written.store(0, Ordering::SeqCst);
        turns[0].notify_one();
        let answered = tokio::time::timeout(Duration::from_secs(60), asking.join_all()).await;
        for body in answered.expect("nothing is left to be sent") {
            assert_eq!(body.len(), 200);
        }
        let written = written.load(Ordering::SeqCst);
        assert!((1..=2).contains(&written), "{written} writes for {STREAMS} answers");
        drop(sender);
        serving.await.unwrap().unwrap();
    }
}
