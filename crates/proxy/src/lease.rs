//! The right to send one request over a connection of a pool, and what a failure proves about the request.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use countersign_identity::Timestamp;
use countersign_tls::Admitted;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use rustls::AlertDescription;

use crate::body::Body;
use crate::pool::Pool;
use crate::session::Spoken;
use crate::wire::Heard;

/// What the driving task and the users of one connection both know.
pub(crate) struct State {
    pub(crate) id: u64,
    pub(crate) retired: AtomicBool,
    pub(crate) used: AtomicI64,
    /// Whether a response has come over it.
    pub(crate) answered: AtomicBool,
    pub(crate) heard: Arc<Heard>,
    /// Under what it was admitted; none when the other end is no peer, and does not look at our certificate.
    pub(crate) admitted: Option<Admitted>,
}

/// An HTTP/2 connection.
pub(crate) struct Shared {
    pub(crate) sender: http2::SendRequest<Body>,
    pub(crate) state: Arc<State>,
    pub(crate) streams: AtomicUsize,
}

/// An HTTP/1.1 connection.
pub(crate) struct Line {
    pub(crate) sender: http1::SendRequest<Body>,
    pub(crate) state: Arc<State>,
}

/// The right to send one request.
pub(crate) struct Lease {
    pub(crate) on: On,
    pub(crate) pool: Weak<Pool>,
    /// Whether it carried requests before, so that a failure says nothing about the address.
    pub(crate) reused: bool,
}

pub(crate) enum On {
    Line(Line),
    Stream(Slot),
}

/// One stream of a shared connection.
pub(crate) struct Slot(pub(crate) Arc<Shared>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Why a request got no response.
pub(crate) enum SendFailure {
    /// No byte of it was sent: here it is again.
    Unsent(Box<Request<Body>>),
    /// The other end says that it did not look at it.
    NotRead,
    /// It may have been read, so it is not repeated.
    Lost(hyper::Error),
}

impl State {
    pub(crate) fn used(&self) -> Timestamp {
        Timestamp::from_micros(self.used.load(Ordering::Relaxed))
    }

    /// Whether a request may begin on it, by what is enforced at this moment.
    pub(crate) fn takes_more(&self) -> bool {
        let retired = self.retired.load(Ordering::Acquire);
        !retired && self.admitted.as_ref().is_none_or(Admitted::takes_more)
    }

    pub(crate) fn touch(&self, now: Timestamp) {
        self.used.store(now.micros(), Ordering::Relaxed);
    }
}

impl Lease {
    /// Whether a request can be sent over it at once.
    pub(crate) fn is_ready(&self) -> bool {
        match &self.on {
            On::Line(line) => line.sender.is_ready(),
            On::Stream(_) => true,
        }
    }

    /// What is spoken on it.
    pub(crate) fn spoken(&self) -> Spoken {
        match self.on {
            On::Line(_) => Spoken::Http1,
            On::Stream(_) => Spoken::Http2,
        }
    }

    /// Sends the request and waits for the head of the response.
    pub(crate) async fn send(
        &mut self,
        request: Box<Request<Body>>,
    ) -> Result<Response<Incoming>, SendFailure> {
        // What is enforced may have changed since it was leased.
        if !self.state().takes_more() {
            return Err(SendFailure::Unsent(request));
        }
        let sent = match &mut self.on {
            On::Line(line) => line.sender.try_send_request(*request).await,
            On::Stream(slot) => slot.0.sender.clone().try_send_request(*request).await,
        };
        let response = sent.map_err(failure)?;
        self.state().answered.store(true, Ordering::Release);
        Ok(response)
    }

    /// Whether the other end has a way to say that it did not read a request.
    pub(crate) fn may_refuse(&self) -> bool {
        match &self.on {
            On::Stream(_) => true,
            On::Line(line) => {
                line.state.admitted.is_some() && !line.state.answered.load(Ordering::Acquire)
            }
        }
    }

    /// The alert by which the other end refused us in place of a first answer: it has read nothing then.
    pub(crate) fn refusal(&self) -> Option<AlertDescription> {
        let state = self.state();
        if state.answered.load(Ordering::Acquire) { None } else { state.heard.refusal() }
    }

    fn state(&self) -> &State {
        match &self.on {
            On::Line(line) => &line.state,
            On::Stream(slot) => &slot.0.state,
        }
    }

    /// Under what the connection was admitted, if the other end is a peer.
    pub(crate) fn admitted(&self) -> Option<&Admitted> {
        self.state().admitted.as_ref()
    }

    /// The other end reads nothing more that is sent over it.
    pub(crate) fn leave(&self) {
        let state = self.state();
        state.retired.store(true, Ordering::Release);
        if let Some(pool) = self.pool.upgrade() {
            pool.forget(state.id);
        }
    }

    /// The response was read to its end: the connection may carry the next request.
    pub(crate) fn give_back(self) {
        if let (On::Line(line), Some(pool)) = (self.on, self.pool.upgrade()) {
            pool.put_back(line);
        }
    }
}

fn failure(mut error: TrySendError<Request<Body>>) -> SendFailure {
    match error.take_message() {
        Some(request) => SendFailure::Unsent(Box::new(request)),
        None => {
            let error = error.into_error();
            if not_read(&error) { SendFailure::NotRead } else { SendFailure::Lost(error) }
        }
    }
}

/// Whether the other end has said that it did not look at the request (RFC 9113, 8.7).
///
/// The response of a stream ends with the peer's GOAWAY only when its number is above the last one that the GOAWAY
/// names; those below it go on.
fn not_read(error: &hyper::Error) -> bool {
    let causes = std::iter::successors(std::error::Error::source(error), |cause| cause.source());
    let mut told = causes.filter_map(|cause| cause.downcast_ref::<h2::Error>());
    told.any(|error| {
        let refused = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
        let above = error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR);
        error.is_remote() && (refused || above)
    })
}
