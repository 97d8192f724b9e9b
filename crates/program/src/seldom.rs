//! What seldom comes, waited for beside what often does: a task that is woken for something else does not ask for it again.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

/// A future that is asked only after it has called. Others may be asked with each turn of their task, of which there are several a
/// request, and to ask whether a connection is to be closed costs as much as a good part of one.
#[derive(Debug)]
pub struct Seldom<F> {
    awaited: Pin<Box<F>>,
    bell: Arc<Bell>,
    /// Whom it wakes.
    told: Option<Waker>,
}

#[derive(Debug, Default)]
struct Bell {
    rung: AtomicBool,
    wakes: Mutex<Option<Waker>>,
}

impl<F: Future> Seldom<F> {
    /// Of what is asked only when it has called.
    pub fn new(awaited: Pin<Box<F>>) -> Self {
        Self { awaited, bell: Arc::default(), told: None }
    }
}

impl<F: Future> Future for Seldom<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = &mut *self;
        let known = this.told.as_ref().is_some_and(|told| told.will_wake(cx.waker()));
        if known && !this.bell.rung.load(Ordering::Acquire) {
            return Poll::Pending;
        }
        if !known {
            this.told = Some(cx.waker().clone());
            *this.bell.wakes() = this.told.clone();
        }
        // Before it is asked, and seen with all that whoever rang has done: what rings while it is asked is not missed.
        this.bell.rung.swap(false, Ordering::AcqRel);
        let bell = Waker::from(Arc::clone(&this.bell));
        this.awaited.as_mut().poll(&mut Context::from_waker(&bell))
    }
}

impl Bell {
    fn wakes(&self) -> std::sync::MutexGuard<'_, Option<Waker>> {
        self.wakes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.rung.store(true, Ordering::Release);
        // Woken without the lock: whoever is woken may come at once.
        let wakes = self.wakes().clone();
        if let Some(waker) = wakes {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use tokio::sync::oneshot;

    use super::*;

    /// Counts how often it was asked.
    struct Counted {
        rings: oneshot::Receiver<u8>,
        asked: Arc<AtomicUsize>,
    }

    impl Future for Counted {
        type Output = u8;

        fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<u8> {
            self.asked.fetch_add(1, Ordering::SeqCst);
            Pin::new(&mut self.rings).poll(cx).map(Result::unwrap)
        }
    }

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn it_is_asked_when_it_has_called_and_else_only_by_another_task() {
        let (ring, rings) = oneshot::channel();
        let asked = Arc::<AtomicUsize>::default();
        let mut seldom = Seldom::new(Box::pin(Counted { rings, asked: asked.clone() }));
        let asked = || asked.load(Ordering::SeqCst);
        let (one, other) = (Arc::<Woken>::default(), Arc::<Woken>::default());
        let mut poll = |task: &Arc<Woken>| {
            let waker = Waker::from(task.clone());
            Pin::new(&mut seldom).poll(&mut Context::from_waker(&waker))
        };
        for _ in 0..3 {
            assert_eq!(poll(&one), Poll::Pending);
        }
        assert_eq!(asked(), 1);
        assert_eq!(poll(&other), Poll::Pending);
        assert_eq!(asked(), 2, "the other task is to be woken from now on");
        ring.send(7).unwrap();
        assert_eq!((one.0.load(Ordering::SeqCst), other.0.load(Ordering::SeqCst)), (0, 1));
        assert_eq!(poll(&other), Poll::Ready(7));
        assert_eq!(asked(), 3);
    }
}
