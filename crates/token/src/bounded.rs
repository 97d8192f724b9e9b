//! Foreign code that may never return: whoever waits for it waits so long, and no longer.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, oneshot};

/// What one thread at a time uses, each use on a thread of its own, which nobody can end.
///
/// It promises an answer in time, and that a use which hangs is one thread and no more, however often it is asked. It does not
/// promise that what was given up has not happened.
pub(crate) struct Bounded<S> {
    state: Mutex<S>, // INVARIANT: locked only by who has the turn, so nobody waits for it
    turn: Arc<Semaphore>,
    began: Mutex<Option<Instant>>,
}

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum Silence {
    /// None came in time.
    Late,
    /// A use from before has been under way for so long, and still is. It was not asked again.
    Hangs(Duration),
    /// The use ended without one, or could not begin.
    Broken(String),
}

/// That a use is under way. Dropped, it is not, however it ended.
struct UnderWay<'a>(&'a Mutex<Option<Instant>>);

impl<'a> UnderWay<'a> {
    fn begin(began: &'a Mutex<Option<Instant>>) -> Self {
        *locked(began) = Some(Instant::now());
        Self(began)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        *locked(self.0) = None;
    }
}

impl<S: Send + 'static> Bounded<S> {
    pub(crate) fn new(state: S) -> Self {
        let turn = Arc::new(Semaphore::new(1));
        Self { state: Mutex::new(state), turn, began: Mutex::default() }
    }

    /// Uses it, after those who came before, all of it within this time.
    ///
    /// # Errors
    /// When there is no answer by then. A use that has begun goes on, and whoever comes after nine tenths of `within` is refused at
    /// once until it has ended: the one who waits for it may have given up a moment before it would count as late.
    pub(crate) async fn run<T: Send + 'static>(
        self: Arc<Self>,
        within: Duration,
        work: impl FnOnce(&mut S) -> T + Send + 'static,
    ) -> Result<T, Silence> {
        let busy = locked(&self.began).map(|began| began.elapsed());
        if let Some(busy) = busy.filter(|busy| within - within / 10 <= *busy) {
            return Err(Silence::Hangs(busy));
        }
        let (tell, told) = oneshot::channel();
        let used = async {
            let turn = Arc::clone(&self.turn).acquire_owned().await;
            let turn = turn.expect("the semaphore is never closed");
            let bounded = Arc::clone(&self);
            // None of the runtime's threads, all of which it waits for at its end.
            let thread = std::thread::Builder::new().name("token".to_owned()).spawn(move || {
                let _turn = turn;
                let _under_way = UnderWay::begin(&bounded.began);
                let mut state = locked(&bounded.state);
                // Whoever asked may have gone.
                let _ = tell.send(work(&mut state));
            });
            thread.map_err(|why| Silence::Broken(format!("no thread for it: {why}")))?;
            told.await.map_err(|_dropped| Silence::Broken("it ended by a panic".to_owned()))
        };
        tokio::time::timeout(within, used).await.unwrap_or(Err(Silence::Late))
    }
}

/// What a panic left is used on: it is a state at every moment.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// The thread ends a moment after its answer.
    fn until_idle<S: Send + 'static>(bounded: &Bounded<S>) {
        let begin = Instant::now();
        while locked(&bounded.began).is_some() {
            assert!(begin.elapsed() < LONG, "it does not end");
            std::thread::yield_now();
        }
    }

    const SOON: Duration = Duration::from_millis(50);
    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn uses_come_one_after_the_other_and_see_what_those_before_left() {
        let bounded = Arc::new(Bounded::new(0));
        let add = |_| {
            Arc::clone(&bounded).run(LONG, |count| {
                *count += 1;
                *count
            })
        };
        let mut seen = Vec::new();
        for count in (0..20).map(add) {
            seen.push(count.await.unwrap());
        }
        assert_eq!(seen, (1..=20).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_use_that_hangs_refuses_others_at_once_and_lets_them_in_when_it_ends() {
        let bounded = Arc::new(Bounded::new("kept"));
        let (release, held) = mpsc::channel::<()>();
        let hanging = Arc::clone(&bounded).run(SOON, move |_| held.recv().is_ok());
        assert!(matches!(hanging.await, Err(Silence::Late)));
        for _again in 0..100 {
            let refused = Arc::clone(&bounded).run(SOON, |_| panic!("it is not asked again"));
            let refused: Result<(), _> = refused.await;
            assert!(matches!(refused, Err(Silence::Hangs(_))), "{refused:?}");
        }
        // Who has more time waits for it.
        let waiting = tokio::spawn(Arc::clone(&bounded).run(LONG, |state| *state));
        release.send(()).unwrap();
        assert_eq!(waiting.await.unwrap().unwrap(), "kept");
        until_idle(&bounded);
    }

    #[tokio::test]
    async fn a_use_that_panics_is_the_last_of_its_own_and_not_of_the_others() {
        let bounded = Arc::new(Bounded::new(7));
        let broken: Result<(), _> = Arc::clone(&bounded).run(LONG, |_| panic!("as meant")).await;
        assert!(matches!(broken, Err(Silence::Broken(_))), "{broken:?}");
        assert_eq!(Arc::clone(&bounded).run(LONG, |state| *state).await.unwrap(), 7);
    }
}
