//! What an answer goes over, the stream of an HTTP/2 connection or an HTTP/1.1 connection as a whole: it ends with the call that it
//! carries, also while nobody takes the answer.
//!
//! The body of an answer is asked for more only when there is room for it at the other end. So a caller that leaves none would never
//! hear that its call may not go on, and what it holds would stay: its place, and the connection to the program.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use countersign_tls::LiveCall;
use hyper::rt::Executor;
use tokio_util::task::TaskTracker;

use crate::tasks::Tasks;

tokio::task_local! {
    /// What is carried by the stream, or the HTTP/1.1 connection, that is driven at present.
    static CARRIED: RefCell<Load>;
}

/// The answers that were carried are numbered, and the last one's call is here until it is carried to its end.
#[derive(Default)]
struct Load {
    number: u64,
    call: Option<LiveCall>,
}

/// The answer to a call is being carried. Goes with its body.
pub(crate) struct Carried {
    number: u64,
}

/// Starts the task of each stream.
#[derive(Clone, Debug)]
pub(crate) struct Streams(TaskTracker);

impl Streams {
    pub(crate) fn new(tasks: &Tasks) -> Self {
        Self(tasks.parts())
    }
}

/// What is driven at present carries the answer to this call from now on. `None` where that is nothing that ends with it.
pub(crate) fn carries(call: LiveCall) -> Option<Carried> {
    let load = |load: &mut Load| {
        load.number += 1;
        load.call = Some(call);
        Carried { number: load.number }
    };
    CARRIED.try_with(|carried| load(&mut carried.borrow_mut())).ok()
}

impl Drop for Carried {
    fn drop(&mut self) {
        let unload = |load: &mut Load| {
            // An HTTP/1.1 connection may carry the next one by now.
            if load.number == self.number { load.call.take() } else { None }
        };
        // Nothing is left to be ended where it is not driven any more.
        let _call = CARRIED.try_with(|carried| unload(&mut carried.borrow_mut()));
    }
}

impl<F> Executor<F> for Streams
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, stream: F) {
        let carried = carrying(Box::pin(stream));
        // Of its connection, without which nothing is left to be answered: hyper ends it with that.
        self.0.spawn(async move {
            // It is reset when nothing of it is left.
            let _ended = carried.await;
        });
    }
}

/// Drives what carries answers until it is done, or until a call ends whose answer it carries: then nothing is left of it.
///
/// It comes boxed: there would be several places for it otherwise.
pub(crate) fn carrying<F: Future>(
    mut driven: Pin<Box<F>>,
) -> impl Future<Output = Option<F::Output>> {
    // Asked afterwards: one that takes its answer hears from that why it ends.
    let carrying = std::future::poll_fn(move |cx| match driven.as_mut().poll(cx) {
        Poll::Ready(done) => Poll::Ready(Some(done)),
        Poll::Pending => poll_ended(cx).map(|()| None),
    });
    CARRIED.scope(RefCell::default(), carrying)
}

/// Whether what is carried may not go on.
fn poll_ended(cx: &mut Context<'_>) -> Poll<()> {
    CARRIED.with(|carried| match &carried.borrow().call {
        Some(call) => call.poll_ended(cx).map(drop),
        None => Poll::Pending,
    })
}
