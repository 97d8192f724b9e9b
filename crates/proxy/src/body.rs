//! The one body type of messages that pass through.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use countersign_identity::Code;
use countersign_tls::Admitted;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;

use crate::guard::Entered;
use crate::headers;
use crate::lease::{Lease, told};
use crate::replay::{Replay, Sending};
use crate::rest::Unread;
use crate::session::{Busy, Spoken};
use crate::stream::Carried;

/// A body on its way, with what must stay alive until it has passed. There is none of an empty one.
///
/// Boxed, since messages are handed on by value from step to step.
pub(crate) struct Body(Option<Box<Passing>>);

struct Passing {
    kind: Kind,
    /// The connection that it comes over; given back once the whole body was read.
    lease: Option<Lease>,
    /// What that is still busy with: the request that it is the answer to.
    sending: Option<Replay<Coming>>,
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
    Leased(Incoming),
    Sending(Sending<Coming>),
}

/// The body of a request as it arrives.
pub(crate) struct Arriving {
    pub(crate) incoming: Incoming,
    /// There is something to read, over a connection that may rest when it was read.
    pub(crate) unread: Option<Unread>,
}

/// The body of a request as it arrives, for as long as it may.
pub(crate) struct Coming {
    arriving: Arriving,
    /// Until its end: its request is under way for so long, also when it was answered before.
    busy: Option<Arc<Busy>>,
    /// Likewise: the call that it belongs to, at a door.
    entered: Option<Entered>,
    /// Why it has no end, where it is the sender's doing.
    pub(crate) broken: Option<String>,
}

impl From<Incoming> for Arriving {
    /// Over a connection that never rests.
    fn from(incoming: Incoming) -> Self {
        Self { incoming, unread: None }
    }
}

impl http_body::Body for Arriving {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.incoming).poll_frame(cx));
        let whole = match &frame {
            Some(Ok(_)) => self.is_end_stream(),
            Some(Err(_)) => false,
            None => true,
        };
        if whole && let Some(unread) = self.unread.take() {
            unread.read();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

impl http_body::Body for Coming {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        if let Poll::Ready(broken) = poll_broken(self.entered.as_ref(), cx) {
            return Poll::Ready(Some(Err(broken)));
        }
        let frame = ready!(Pin::new(&mut self.arriving).poll_frame(cx));
        if !matches!(frame, Some(Ok(_))) || self.is_end_stream() {
            // Free at once, also if somebody keeps the body: what the answer holds is enough.
            (self.busy, self.entered) = (None, None);
        }
        if let Some(Err(error)) = &frame {
            self.broken = Some(told(error));
        }
        Poll::Ready(frame.map(|frame| frame.map_err(Broken::from)))
    }

    fn is_end_stream(&self) -> bool {
        self.arriving.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.arriving.size_hint()
    }
}

/// Whether its call may not go on. Asked before each part: none passes after the call was ended, however the two ends are driven.
fn poll_broken(entered: Option<&Entered>, cx: &mut Context<'_>) -> Poll<Broken> {
    match entered {
        Some(entered) => entered.live.poll_ended(cx).map(Broken::Ended),
        None => Poll::Pending,
    }
}

impl Body {
    fn of(kind: Kind) -> Self {
        let (lease, sending, busy, entered, carried) = (None, None, None, None, None);
        Self(Some(Box::new(Passing { kind, lease, sending, busy, entered, carried })))
    }

    pub(crate) const fn empty() -> Self {
        Self(None)
    }

    /// The body of a request, as it arrives. Broken off when the call may not go on.
    pub(crate) fn sending(arriving: Arriving, busy: &Arc<Busy>, entered: Option<&Entered>) -> Self {
        if arriving.is_end_stream() {
            return Self::empty();
        }
        let (busy, entered, broken) = (Some(Arc::clone(busy)), entered.cloned(), None);
        Self::again(Replay::begin(Coming { arriving, busy, entered, broken }))
    }

    /// The body of a request which is sent again.
    pub(crate) fn again(sending: Sending<Coming>) -> Self {
        Self::of(Kind::Sending(sending))
    }

    /// By which it can be sent again, if it is more than nothing.
    pub(crate) fn replay(&self) -> Option<Replay<Coming>> {
        match &self.0.as_ref()?.kind {
            Kind::Sending(sending) => Some(sending.replay()),
            Kind::Whole(_) | Kind::Leased(_) => None,
        }
    }

    /// A body as it arrives over a connection of a pool, which may still be sending the request.
    pub(crate) fn leased(
        incoming: Incoming,
        lease: Lease,
        sending: Option<Replay<Coming>>,
    ) -> Self {
        let mut body = Self::of(Kind::Leased(incoming));
        let passing = body.passing();
        // Of many streams, others begin whatever this one is busy with.
        let alone = lease.spoken() == Spoken::Http1;
        passing.sending = sending.filter(|sending| alone && !sending.is_over());
        passing.lease = Some(lease);
        passing.give_back_if_ended();
        body
    }

    /// The body of an answer, broken off when the call may not go on.
    pub(crate) fn while_permitted(
        mut self,
        entered: Option<Entered>,
        carried: Option<Carried>,
    ) -> Self {
        let passing = self.passing();
        (passing.entered, passing.carried) = (entered, carried);
        self
    }

    pub(crate) fn keep_busy(mut self, busy: Arc<Busy>) -> Self {
        self.passing().busy = Some(busy);
        self
    }

    /// What is kept with it; with an empty one too, until that has passed.
    fn passing(&mut self) -> &mut Passing {
        if self.0.is_none() {
            *self = Self::of(Kind::Whole(None));
        }
        self.0.as_mut().expect("was made if it was not there")
    }
}

impl Passing {
    /// Why we have ended the connection that it comes over: also of what has come before, nothing is passed on.
    fn cut(&self) -> Option<Code> {
        self.lease.as_ref().and_then(Lease::admitted).and_then(Admitted::why_ended)
    }

    fn give_back_if_ended(&mut self) {
        if self.kind.is_end_stream() {
            self.finish();
        }
    }

    fn finish(&mut self) {
        let sent = self.sending.take().is_none_or(|sending| sending.is_over());
        // One that is still sending takes no other request, and whoever got it would wait in vain.
        if let Some(lease) = self.lease.take().filter(|_| sent) {
            lease.give_back();
        }
    }
}

impl Kind {
    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.is_none(),
            Self::Leased(incoming) => incoming.is_end_stream(),
            Self::Sending(sending) => sending.is_end_stream(),
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
        let Some(passing) = &mut self.0 else { return Poll::Ready(None) };
        if let Poll::Ready(broken) = poll_broken(passing.entered.as_ref(), cx) {
            return Poll::Ready(Some(Err(broken)));
        }
        if let Some(code) = passing.cut() {
            return Poll::Ready(Some(Err(Broken::Ended(code))));
        }
        let frame = match &mut passing.kind {
            Kind::Whole(bytes) => {
                return Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes))));
            }
            Kind::Leased(incoming) => {
                ready!(Pin::new(incoming).poll_frame(cx)).map(|frame| frame.map_err(Broken::from))
            }
            Kind::Sending(sending) => ready!(Pin::new(sending).poll_frame(cx)),
        };
        match frame {
            Some(Ok(mut frame)) => {
                if let Some(trailers) = frame.trailers_mut() {
                    headers::strip_trailers(trailers);
                }
                passing.give_back_if_ended();
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(broken)) => Poll::Ready(Some(Err(broken))),
            None => {
                passing.finish();
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(|passing| passing.kind.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let Some(passing) = &self.0 else { return SizeHint::with_exact(0) };
        match &passing.kind {
            Kind::Whole(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Kind::Leased(incoming) => incoming.size_hint(),
            Kind::Sending(sending) => sending.size_hint(),
        }
    }
}
