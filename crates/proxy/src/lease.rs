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
use crate::unsent::{Bounded, Unsent};
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
    pub(crate) sender: http2::SendRequest<Bounded<Body>>,
    pub(crate) unsent: Unsent,
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
        let response = match &mut self.on {
            On::Line(line) => {
                let sent = line.sender.try_send_request(*request).await;
                sent.map_err(|error| failure(error, |body| body))?
            }
            On::Stream(slot) => {
                let request = request.map(|body| slot.0.unsent.clone().bounds(body));
                let sent = slot.0.sender.clone().try_send_request(request).await;
                sent.map_err(|error| failure(error, Bounded::into_body))?
            }
        };
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

fn failure<B>(mut error: TrySendError<Request<B>>, body: impl FnOnce(B) -> Body) -> SendFailure {
    match error.take_message() {
        Some(request) => SendFailure::Unsent(Box::new(request.map(body))),
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
    let mut told = causes(error).filter_map(|cause| cause.downcast_ref::<h2::Error>());
    told.any(|error| {
        let refused = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
        let above = error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR);
        error.is_remote() && (refused || above)
    })
}

/// Whether what came in answer is none by the rules of HTTP.
pub(crate) fn breaks_http(error: &hyper::Error) -> bool {
    let by_rules = |error: &h2::Error| {
        error.is_library() && error.reason().is_some_and(|reason| reason != h2::Reason::NO_ERROR)
    };
    error.is_parse()
        || causes(error).any(|cause| cause.downcast_ref::<h2::Error>().is_some_and(by_rules))
}

/// What hyper says of it, with what it goes back to.
pub(crate) fn told(error: &hyper::Error) -> String {
    causes(error).fold(error.to_string(), |told, cause| format!("{told}: {cause}"))
}

fn causes(error: &hyper::Error) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
    std::iter::successors(std::error::Error::source(error), |cause| cause.source())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use hyper_util::rt::{TokioExecutor, TokioIo};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

    use super::*;
    use crate::body::Arriving;
    use crate::bounds::SEND_BUFFER_MAX;
    use crate::session::Session;
    use crate::session::tests::{PART, STREAMS, comes, is_used_and_kept};

    /// Settings with the largest window of a stream, and the largest of the connection (RFC 9113, 6.5 and 6.9).
    const GRANTS: &[u8] = b"\0\0\x06\x04\0\0\0\0\0\0\x04\x7f\xff\xff\xff\
        \0\0\x04\x08\0\0\0\0\0\x7f\xff\0\0";

    /// Settings by which no stream may send anything yet.
    const GRANTS_NOTHING: &[u8] = b"\0\0\x06\x04\0\0\0\0\0\0\x04\0\0\0\0";

    /// Reads until the heads of so many requests have come.
    async fn heads(io: &mut DuplexStream, mut count: usize) {
        io.read_exact(&mut [0; b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len()]).await.unwrap();
        while 0 < count {
            let mut head = [0; 9];
            io.read_exact(&mut head).await.unwrap();
            let [a, b, c, kind, ..] = head;
            let length = u32::from_be_bytes([0, a, b, c]);
            io.read_exact(&mut vec![0; usize::try_from(length).unwrap()]).await.unwrap();
            count -= usize::from(kind == 1);
        }
    }

    #[tokio::test]
    async fn requests_to_who_takes_nothing_of_them_are_kept_no_further() {
        let (ours, mut theirs) = tokio::io::duplex(PART);
        theirs.write_all(GRANTS_NOTHING).await.unwrap();
        let mut rules = http2::Builder::new(TokioExecutor::new());
        rules.max_send_buf_size(SEND_BUFFER_MAX);
        let (sender, connection) = rules.handshake(TokioIo::new(ours)).await.unwrap();
        tokio::spawn(connection);
        let state = State {
            id: 0,
            retired: AtomicBool::new(false),
            used: AtomicI64::new(0),
            answered: AtomicBool::new(false),
            heard: Arc::default(),
            admitted: None,
        };
        let (state, streams) = (Arc::new(state), AtomicUsize::new(STREAMS));
        let shared = Arc::new(Shared { sender, unsent: Unsent::default(), state, streams });
        let mut asking = tokio::task::JoinSet::new();
        for _ in 0..STREAMS {
            let on = On::Stream(Slot(Arc::clone(&shared)));
            let mut lease = Lease { on, pool: Weak::new(), reused: false };
            let body = Body::sending(Arriving::from(comes().await), &Session::new().enter(), None);
            let request = Box::new(Request::post("https://orders/").body(body).unwrap());
            asking.spawn(async move { lease.send(request).await.is_ok() });
        }
        let come = tokio::time::timeout(Duration::from_secs(60), heads(&mut theirs, STREAMS));
        come.await.expect("all requests come");
        theirs.write_all(GRANTS).await.unwrap();
        is_used_and_kept(&shared.unsent).await;
    }
}
