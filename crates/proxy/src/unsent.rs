//! What waits to be sent on an HTTP/2 connection, of all its streams together. hyper bounds it for each stream by itself, so that
//! whoever opens as many as it may, grants large windows and takes nothing would have us keep as many times that.
//!
//! A stream of which nothing waits goes on all the same: no stream is held up by what the readers of others do not take. The first
//! part of a body is not counted. Most bodies have no other, and cost nothing here.

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use http::Response;
use http_body::{Body, Frame, SizeHint};

use crate::bounds::UNSENT_MAX;

/// How many bytes wait on one connection. Its clones are the same count.
#[derive(Clone, Debug, Default)]
pub(crate) struct Unsent(Arc<AtomicUsize>);

/// A body that has no more ready than there is room for on its connection.
pub(crate) struct Bounded<B> {
    body: B,
    /// None where it goes over HTTP/1.1, which has one stream.
    on: Option<Unsent>,
    begun: bool,
    /// What of it waits, once it has more than one part.
    waits: Option<Arc<Waits>>,
}

/// What waits of one stream.
struct Waits {
    bytes: AtomicUsize,
    all: Unsent,
    /// Whom to wake when less waits.
    waker: Mutex<Option<Waker>>,
}

/// A part that waits. Dropped, it has been sent, or will never be.
struct Part {
    bytes: Bytes,
    of: Arc<Waits>,
}

/// An answer whose body is to be bounded.
pub(crate) struct Bounding<F> {
    pub(crate) answer: F,
    pub(crate) on: Option<Unsent>,
}

impl Unsent {
    /// The same body, bounded by what waits here.
    pub(crate) fn bounds<B>(self, body: B) -> Bounded<B> {
        Bounded { on: Some(self), ..Bounded::unbounded(body) }
    }

    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl<B> Bounded<B> {
    const fn unbounded(body: B) -> Self {
        Self { body, on: None, begun: false, waits: None }
    }

    /// The body itself, of which nothing may have been read.
    pub(crate) fn into_body(self) -> B {
        self.body
    }
}

impl<F, B, E> Future for Bounding<F>
where
    F: Future<Output = Result<Response<B>, E>> + Unpin,
{
    type Output = Result<Response<Bounded<B>>, E>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = ready!(Pin::new(&mut self.answer).poll(cx))?;
        let on = self.on.take();
        Poll::Ready(Ok(answer.map(|body| Bounded { on, ..Bounded::unbounded(body) })))
    }
}

impl Waits {
    fn of(all: Unsent) -> Arc<Self> {
        Arc::new(Self { bytes: AtomicUsize::new(0), all, waker: Mutex::new(None) })
    }

    /// Whether there may be more. It is looked at again when some of what waits has gone.
    fn poll_room(&self, cx: &Context<'_>) -> Poll<()> {
        if self.has_room() {
            return Poll::Ready(());
        }
        *self.waker() = Some(cx.waker().clone());
        // What went before that woke nobody.
        if self.has_room() { Poll::Ready(()) } else { Poll::Pending }
    }

    fn has_room(&self) -> bool {
        self.bytes.load(Ordering::SeqCst) == 0 || self.all.0.load(Ordering::SeqCst) < UNSENT_MAX
    }

    fn waker(&self) -> MutexGuard<'_, Option<Waker>> {
        self.waker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Part {
    fn count(bytes: Bytes, of: &Arc<Waits>) -> Bytes {
        of.bytes.fetch_add(bytes.len(), Ordering::SeqCst);
        of.all.0.fetch_add(bytes.len(), Ordering::SeqCst);
        Bytes::from_owner(Self { bytes, of: Arc::clone(of) })
    }
}

impl AsRef<[u8]> for Part {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let length = self.bytes.len();
        self.of.bytes.fetch_sub(length, Ordering::SeqCst);
        self.of.all.0.fetch_sub(length, Ordering::SeqCst);
        // Only who waits for its own parts to go: other streams have parts of their own that wait, or do not wait.
        let waker = self.of.waker().take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Bounded<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = &mut *self;
        if let Some(waits) = &this.waits {
            ready!(waits.poll_room(cx));
        }
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        let Some(on) = &this.on else { return Poll::Ready(frame) };
        let part = match frame {
            Some(Ok(part)) => part,
            other => return Poll::Ready(other),
        };
        if !std::mem::replace(&mut this.begun, true) {
            return Poll::Ready(Some(Ok(part)));
        }
        let waits = this.waits.get_or_insert_with(|| Waits::of(on.clone()));
        Poll::Ready(Some(Ok(part.map_data(|bytes| Part::count(bytes, waits)))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
