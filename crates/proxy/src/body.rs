//! The one body type of messages that pass through.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use countersign_identity::Code;
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;

use crate::guard::Entered;
use crate::headers;
use crate::lease::Lease;
use crate::replay::{Replay, Sending};
use crate::session::Busy;
use crate::stream::Carried;

/// A body on its way, with what must stay alive until it has passed.
pub(crate) struct Body {
    kind: Kind,
    /// The connection that it comes over; given back once the whole body was read.
    lease: Option<Lease>,
    /// Keeps the connection to which it goes from being taken for idle.
    busy: Option<Arc<Busy>>,
    /// The call whose answer it is, at a door.
    entered: Option<Entered>,
    /// Likewise: what it comes over ends with the call for as long as this is there.
    carried: Option<Carried>,
}

/// Why a body has no end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    /// It stopped coming.
    #[error(transparent)]
    Lost(#[from] hyper::Error),
    /// It may not go on.
    #[error("ended: {0}")]
    Ended(Code),
}

enum Kind {
    Whole(Option<Bytes>),
    Passing(Incoming),
    Sending(Sending<Coming>),
}

/// The body of a request as it arrives, for as long as it may.
pub(crate) struct Coming {
    incoming: Incoming,
    /// Until its end: its request is under way for so long, also when it was answered before.
    busy: Option<Arc<Busy>>,
    /// Likewise: the call that it belongs to, at a door.
    entered: Option<Entered>,
}

impl http_body::Body for Coming {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        if let Some(entered) = &self.entered
            && let Poll::Ready(code) = entered.live.poll_ended(cx)
        {
            return Poll::Ready(Some(Err(Broken::Ended(code))));
        }
        let frame = ready!(Pin::new(&mut self.incoming).poll_frame(cx));
        let (whole, over) = match &frame {
            Some(Ok(_)) => (self.incoming.is_end_stream(), self.incoming.is_end_stream()),
            Some(Err(_)) => (false, true),
            None => (true, true),
        };
        if whole && let Some(busy) = &self.busy {
            busy.has_read_body();
        }
        if over {
            // Free at once, also if somebody keeps the body: what the answer holds is enough.
            (self.busy, self.entered) = (None, None);
        }
        Poll::Ready(frame.map(|frame| frame.map_err(Broken::from)))
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

impl Body {
    fn of(kind: Kind) -> Self {
        Self { kind, lease: None, busy: None, entered: None, carried: None }
    }

    pub(crate) fn empty() -> Self {
        Self::of(Kind::Whole(None))
    }

    /// The body of a request, as it arrives. Broken off when the call may not go on.
    pub(crate) fn sending(incoming: Incoming, busy: &Arc<Busy>, entered: Option<&Entered>) -> Self {
        if http_body::Body::is_end_stream(&incoming) {
            return Self::empty();
        }
        let busy = Some(Arc::clone(busy));
        Self::again(Replay::begin(Coming { incoming, busy, entered: entered.cloned() }))
    }

    /// The body of a request which is sent again.
    pub(crate) fn again(sending: Sending<Coming>) -> Self {
        Self::of(Kind::Sending(sending))
    }

    /// By which it can be sent again, if it is more than nothing.
    pub(crate) fn replay(&self) -> Option<Replay<Coming>> {
        match &self.kind {
            Kind::Sending(sending) => Some(sending.replay()),
            Kind::Whole(_) | Kind::Passing(_) => None,
        }
    }

    /// A body as it arrives over a connection of a pool.
    pub(crate) fn leased(incoming: Incoming, lease: Lease) -> Self {
        let mut body = Self { lease: Some(lease), ..Self::of(Kind::Passing(incoming)) };
        body.give_back_if_ended();
        body
    }

    /// The body of an answer, broken off when the call may not go on.
    pub(crate) fn while_permitted(
        mut self,
        entered: Option<Entered>,
        carried: Option<Carried>,
    ) -> Self {
        (self.entered, self.carried) = (entered, carried);
        self
    }

    pub(crate) fn keep_busy(mut self, busy: Arc<Busy>) -> Self {
        self.busy = Some(busy);
        self
    }

    fn give_back_if_ended(&mut self) {
        if http_body::Body::is_end_stream(self) {
            self.finish();
        }
    }

    fn finish(&mut self) {
        if let Some(lease) = self.lease.take() {
            lease.give_back();
        }
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self::of(Kind::Whole(Some(bytes)))
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        if let Some(entered) = &self.entered
            && let Poll::Ready(code) = entered.live.poll_ended(cx)
        {
            return Poll::Ready(Some(Err(Broken::Ended(code))));
        }
        let frame = match &mut self.kind {
            Kind::Whole(bytes) => {
                return Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes))));
            }
            Kind::Passing(incoming) => {
                ready!(Pin::new(incoming).poll_frame(cx)).map(|frame| frame.map_err(Broken::from))
            }
            Kind::Sending(sending) => ready!(Pin::new(sending).poll_frame(cx)),
        };
        match frame {
            Some(Ok(mut frame)) => {
                if let Some(trailers) = frame.trailers_mut() {
                    headers::strip_trailers(trailers);
                }
                self.give_back_if_ended();
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(broken)) => Poll::Ready(Some(Err(broken))),
            None => {
                self.finish();
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Whole(bytes) => bytes.is_none(),
            Kind::Passing(incoming) => incoming.is_end_stream(),
            Kind::Sending(sending) => sending.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Whole(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Kind::Passing(incoming) => incoming.size_hint(),
            Kind::Sending(sending) => sending.size_hint(),
        }
    }
}
