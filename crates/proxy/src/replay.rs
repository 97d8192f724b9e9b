//! A request's body that can be sent a second time, while little of it has passed and nobody has read it.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use crate::bounds::REPLAY_BYTES_MAX;

/// What has passed of a body, until it is too much, or somebody answers.
pub(crate) struct Replay<B>(Arc<Mutex<Kept<B>>>);

struct Kept<B> {
    rest: B,
    passed: Vec<Passed>,
    bytes: usize,
    /// No longer to be sent again.
    released: bool,
    /// What sends it has let go of it.
    over: bool,
    /// Which sending is the present one. An earlier one, whose connection has not noticed its end yet, gets no more.
    turn: u32,
}

#[derive(Clone)]
enum Passed {
    Data(Bytes),
    Trailers(http::HeaderMap),
}

/// One sending of the body.
pub(crate) struct Sending<B> {
    kept: Arc<Mutex<Kept<B>>>,
    again: VecDeque<Passed>,
    turn: u32,
}

impl<B> Clone for Replay<B> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<B: Body<Data = Bytes> + Unpin> Replay<B> {
    /// Begins to send the body.
    pub(crate) fn begin(body: B) -> Sending<B> {
        let (passed, bytes, released, over, turn) = (Vec::new(), 0, false, false, 0);
        let kept = Kept { rest: body, passed, bytes, released, over, turn };
        Sending { kept: Arc::new(Mutex::new(kept)), again: VecDeque::new(), turn: 0 }
    }

    /// Begins again, unless too much has passed to be remembered.
    pub(crate) fn again(&self) -> Option<Sending<B>> {
        let mut kept = lock(&self.0);
        if kept.released {
            return None;
        }
        (kept.turn, kept.over) = (kept.turn + 1, false);
        Some(Sending { kept: self.0.clone(), again: kept.passed.clone().into(), turn: kept.turn })
    }

    /// Whether what sends it has let go of it, having sent all of it or none of the rest.
    pub(crate) fn is_over(&self) -> bool {
        lock(&self.0).over
    }

    /// Asks the body itself.
    pub(crate) fn ask<T>(&self, ask: impl FnOnce(&B) -> T) -> T {
        ask(&lock(&self.0).rest)
    }

    /// Somebody reads it: it is never sent again, and nothing of it is remembered.
    pub(crate) fn release(&self) {
        lock(&self.0).release();
    }
}

impl<B> Kept<B> {
    fn release(&mut self) {
        self.released = true;
        self.passed = Vec::new();
    }

    fn remember(&mut self, passed: Passed, bytes: usize) {
        self.bytes = self.bytes.saturating_add(bytes);
        if REPLAY_BYTES_MAX < self.bytes {
            self.release();
        }
        if !self.released {
            self.passed.push(passed);
        }
    }
}

impl<B> Sending<B> {
    /// By which the body can be sent again.
    pub(crate) fn replay(&self) -> Replay<B> {
        Replay(self.kept.clone())
    }
}

impl<B> Drop for Sending<B> {
    fn drop(&mut self) {
        let mut kept = lock(&self.kept);
        // Whether it was asked for an end that comes apart from the last bytes, or for trailers, depends on who sends.
        kept.over |= kept.turn == self.turn;
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Sending<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = &mut *self;
        let mut kept = lock(&this.kept);
        if kept.turn != this.turn {
            return Poll::Ready(None);
        }
        if let Some(passed) = this.again.pop_front() {
            return Poll::Ready(Some(Ok(passed.into_frame())));
        }
        let frame = ready!(Pin::new(&mut kept.rest).poll_frame(cx));
        if let Some(Ok(frame)) = &frame {
            match (frame.data_ref(), frame.trailers_ref()) {
                // Each frame counts for something, so that empty ones are bounded as well.
                (Some(data), _) => {
                    kept.remember(Passed::Data(data.clone()), data.len() + FRAME_COST);
                }
                (None, Some(trailers)) => {
                    kept.remember(Passed::Trailers(trailers.clone()), FRAME_COST);
                }
                (None, None) => kept.release(),
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        let kept = lock(&self.kept);
        kept.turn != self.turn || (self.again.is_empty() && kept.rest.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let again: u64 = self.again.iter().map(Passed::bytes).sum();
        let rest = lock(&self.kept).rest.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(again));
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper.saturating_add(again));
        }
        hint
    }
}

/// What remembering a frame costs besides its bytes.
const FRAME_COST: usize = 64;

impl Passed {
    fn bytes(&self) -> u64 {
        match self {
            Self::Data(data) => data.len() as u64,
            Self::Trailers(_) => 0,
        }
    }

    fn into_frame(self) -> Frame<Bytes> {
        match self {
            Self::Data(data) => Frame::data(data),
            Self::Trailers(trailers) => Frame::trailers(trailers),
        }
    }
}

fn lock<B>(kept: &Mutex<Kept<B>>) -> std::sync::MutexGuard<'_, Kept<B>> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http_body_util::{BodyExt, StreamBody};

    use super::*;

    type Frames = std::vec::IntoIter<Result<Frame<Bytes>, Infallible>>;

    fn body(parts: &[usize]) -> Sending<StreamBody<futures_util::stream::Iter<Frames>>> {
        let frames: Vec<_> =
            parts.iter().map(|len| Ok(Frame::data(Bytes::from(vec![7; *len])))).collect();
        Replay::begin(StreamBody::new(futures_util::stream::iter(frames)))
    }

    async fn rest<B: Body<Data = Bytes, Error = Infallible>>(body: B) -> usize {
        body.collect().await.unwrap().to_bytes().len()
    }

    #[tokio::test]
    async fn what_passed_is_sent_again_before_the_rest() {
        let mut first = body(&[3, 4, 5]);
        let replay = first.replay();
        assert!(first.frame().await.is_some());
        assert!(first.frame().await.is_some());
        let second = replay.again().unwrap();
        assert_eq!(second.size_hint().lower(), 7);
        assert!(first.frame().await.is_none(), "the earlier sending takes nothing away from it");
        assert_eq!(rest(second).await, 12);
        assert_eq!(rest(replay.again().unwrap()).await, 12);
    }

    #[tokio::test]
    async fn what_was_read_or_is_too_much_is_not_sent_again() {
        let mut answered = body(&[3, 4]);
        assert!(answered.frame().await.is_some());
        answered.replay().release();
        assert!(answered.replay().again().is_none());
        assert_eq!(rest(answered).await, 4, "and goes on");

        let mut large = body(&[REPLAY_BYTES_MAX, 1]);
        let replay = large.replay();
        assert!(large.frame().await.is_some());
        assert!(replay.again().is_none());
        assert_eq!(rest(large).await, 1);

        let mut empties = body(&[0; 10_000]);
        let replay = empties.replay();
        while empties.frame().await.is_some() {}
        assert!(replay.again().is_none(), "frames without bytes are bounded as well");
    }

    #[tokio::test]
    async fn it_is_over_when_the_last_sending_is_let_go_of() {
        let mut first = body(&[3, 4]);
        let replay = first.replay();
        assert!(first.frame().await.is_some());
        let second = replay.again().unwrap();
        drop(first);
        assert!(!replay.is_over(), "an earlier sending says nothing of the present one");
        drop(second);
        assert!(replay.is_over());
        let third = replay.again().unwrap();
        assert!(!replay.is_over(), "it has begun again");
        assert_eq!(rest(third).await, 7);
        assert!(replay.is_over());
    }
}
