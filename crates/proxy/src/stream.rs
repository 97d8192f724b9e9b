//! The streams of an HTTP/2 connection: each ends with the call that it carries, also while nobody takes its answer.
//!
//! The body of an answer is asked for more only when there is room for it at the other end. So a caller that leaves none would never
//! hear that its call may not go on, and its stream would stay.

use std::cell::RefCell;
use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll};

use countersign_tls::LiveCall;
use hyper::rt::Executor;

use crate::tasks::Tasks;

tokio::task_local! {
    /// By the task of one stream: what it carries, once it is being answered.
    static CARRIED: RefCell<Option<LiveCall>>;
}

/// Starts the task of each stream.
#[derive(Clone, Debug)]
pub(crate) struct Streams(Tasks);

impl Streams {
    pub(crate) fn new(tasks: &Tasks) -> Self {
        Self(tasks.clone())
    }
}

/// The stream of the present task carries the answer to this call from now on. Nothing where the task is none of a stream.
pub(crate) fn carries(call: LiveCall) {
    // An HTTP/1.1 connection has no streams.
    let _no_stream = CARRIED.try_with(|carried| carried.replace(Some(call)));
}

impl<F> Executor<F> for Streams
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, stream: F) {
        self.0.start(CARRIED.scope(RefCell::default(), async move {
            let mut stream = pin!(stream);
            // Asked after the stream: one that takes its answer hears from that why it ends.
            std::future::poll_fn(|cx| match stream.as_mut().poll(cx) {
                Poll::Ready(_done) => Poll::Ready(()),
                Poll::Pending => poll_ended(cx),
            })
            .await;
        }));
    }
}

/// Whether what is carried may not go on. The stream is reset then, when nothing of it is left.
fn poll_ended(cx: &mut Context<'_>) -> Poll<()> {
    CARRIED.with(|carried| match &*carried.borrow() {
        Some(call) => call.poll_ended(cx).map(drop),
        None => Poll::Pending,
    })
}
