//! Giving way to all who have something to read, before one says something.
//!
//! What is sent wakes whoever waits for it at the other end, who sleeps again when nothing more has come by the time it is done with that.
//! To wake somebody on another core takes the sender as long as half of a small request does. Where a connection says what it has to
//! say as soon as it knows, it wakes them again and again: what it reads for the next request in between takes as long as they do.
//! So all that has come is read first, and then all that there is to say goes out at once, to somebody who is awake after the first.
//!
//! Only where one worker runs all tasks: of several, another would be woken to take over what goes to the end of the queue.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::runtime::Handle;

/// A connection that gives way before the first that it says after it has heard something, and so once a message: what follows of a
/// long one goes out as it comes.
pub(crate) struct GivingWay<I> {
    io: I,
    turn: Turn,
}

/// Whether one worker runs all tasks of this runtime.
fn one_runs_all() -> bool {
    let workers = Handle::try_current().map(|runtime| runtime.metrics().num_workers());
    workers.is_ok_and(|workers| workers == 1)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// Whatever is said next comes after what others have to read.
    ToCome,
    Awaited,
    Had,
    /// There are several workers.
    Always,
}

impl<I> GivingWay<I> {
    pub(crate) fn new(io: I) -> Self {
        let turn = if one_runs_all() { Turn::ToCome } else { Turn::Always };
        Self { io, turn }
    }

    fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self.turn {
            Turn::ToCome => {
                self.turn = Turn::Awaited;
                // A task that wakes itself goes to the end of the queue.
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Turn::Awaited => {
                self.turn = Turn::Had;
                Poll::Ready(())
            }
            Turn::Had | Turn::Always => Poll::Ready(()),
        }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for GivingWay<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.io).poll_read(cx, buffer);
        if read.is_ready() && self.turn == Turn::Had {
            self.turn = Turn::ToCome;
        }
        read
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for GivingWay<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_turn(cx));
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_turn(cx));
        Pin::new(&mut self.io).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::{Arc, Mutex};

    use bytes::Bytes;
    use http::{Request, Response};
    use hyper::service::service_fn;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

    use super::*;
    use crate::body::{Arriving, Body};
    use crate::rest;
    use crate::session::Session;

    /// Notes in which order is read and written.
    struct Noting {
        io: DuplexStream,
        noted: Arc<Mutex<Vec<&'static str>>>,
    }

    impl AsyncRead for Noting {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            ready!(Pin::new(&mut self.io).poll_read(cx, buffer))?;
            self.noted.lock().unwrap().push("read");
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for Noting {
        fn poll_write(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.noted.lock().unwrap().push("written");
            Pin::new(&mut self.io).poll_write(cx, bytes)
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.io).poll_flush(cx)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.io).poll_shutdown(cx)
        }
    }

    /// Two connections have something to read before either is looked at, and answer it in two parts, the second without having heard
    /// anything; then the same again. In which order that is.
    async fn order() -> Vec<&'static str> {
        let noted = Arc::new(Mutex::new(Vec::new()));
        let (mut ends, mut answering) = (Vec::new(), Vec::new());
        for _ in 0..2 {
            let (end, io) = tokio::io::duplex(64);
            let mut io = GivingWay::new(Noting { io, noted: noted.clone() });
            ends.push(end);
            answering.push(async move {
                for _ in 0..2 {
                    let mut word = [0; 4];
                    io.read_exact(&mut word).await.unwrap();
                    io.write_all(&word[..2]).await.unwrap();
                    io.write_all(&word[2..]).await.unwrap();
                }
            });
        }
        for end in &mut ends {
            end.write_all(b"word").await.unwrap();
        }
        let tasks: Vec<_> = answering.into_iter().map(tokio::spawn).collect();
        for _ in 0..2 {
            for end in &mut ends {
                end.read_exact(&mut [0; 4]).await.unwrap();
            }
            for end in &mut ends {
                // After the second time nobody reads it any more.
                let _ = end.write_all(b"next").await;
            }
        }
        for task in tasks {
            task.await.unwrap();
        }
        let noted = noted.lock().unwrap();
        noted.clone()
    }

    #[tokio::test]
    async fn all_that_has_come_is_read_before_anything_is_said() {
        let once = ["read", "read", "written", "written", "written", "written"];
        assert_eq!(order().await, [once, once].concat());
    }

    #[tokio::test]
    async fn all_requests_that_have_come_are_read_before_any_is_answered() {
        let noted = Arc::new(Mutex::new(Vec::new()));
        let mut ends = Vec::new();
        let answer = service_fn(async |_request: Request<Arriving>| {
            Ok::<_, Infallible>(Response::new(Body::from(Bytes::from_static(b"answer"))))
        });
        let serving: Vec<_> = std::iter::repeat_with(|| {
            let (end, io) = tokio::io::duplex(1024);
            ends.push(end);
            let (io, never) = (Noting { io, noted: noted.clone() }, std::future::pending());
            rest::serve(io, None, answer, Session::new(), Box::pin(never))
        })
        .take(3)
        .collect();
        for end in &mut ends {
            end.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        }
        for serving in serving {
            tokio::spawn(serving);
        }
        for end in &mut ends {
            end.read_exact(&mut [0; b"HTTP/1.1 200 OK".len()]).await.unwrap();
        }
        let noted = noted.lock().unwrap();
        let answers = noted.iter().skip_while(|noted| **noted == "read");
        assert!(
            answers.clone().count() == 3 && answers.clone().all(|it| *it == "written"),
            "{noted:?}"
        );
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn of_several_workers_none_is_woken_for_it() {
        let mut io = GivingWay::new(tokio::io::sink());
        let mut cx = Context::from_waker(std::task::Waker::noop());
        assert!(Pin::new(&mut io).poll_write(&mut cx, b"word").is_ready());
    }
}
