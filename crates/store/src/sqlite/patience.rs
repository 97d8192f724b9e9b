//! Tells when a write has been under way for long: one that hangs fails at nothing, so nothing else would say so.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a write may take before it is told of. The largest transaction takes a fraction of it on a slow disk.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// What one who writes shows to one who watches it.
#[derive(Debug, Default)]
pub(super) struct Stopwatch {
    present: Mutex<Present>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Present {
    /// Since when the present write is under way.
    since: Option<Instant>,
    /// Which one it is.
    number: u64,
    /// The one who watches waits until a write begins.
    idle: bool,
    over: bool,
}

/// A write that is under way. Dropped, it has ended.
pub(super) struct UnderWay<'a>(&'a Stopwatch);

/// However the one who writes ends, nobody watches any more.
pub(super) struct Ending(pub(super) Arc<Stopwatch>);

impl Stopwatch {
    fn present(&self) -> MutexGuard<'_, Present> {
        // Whole between any two statements, so a panic elsewhere leaves it so.
        self.present.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A write begins.
    pub(super) fn begin(&self) -> UnderWay<'_> {
        let mut present = self.present();
        present.since = Some(Instant::now());
        present.number += 1;
        // Who watches a busy writer looks by itself, so that not each write has to wake it.
        if present.idle {
            self.changed.notify_one();
        }
        UnderWay(self)
    }

    /// Tells of each write, once, that is under way for longer than `patience`, until the one who writes has ended.
    pub(super) fn watch(&self, patience: Duration, mut tell: impl FnMut()) {
        let mut present = self.present();
        let mut told = 0;
        while !present.over {
            let since = present.since.filter(|_since| told != present.number);
            let Some(since) = since else {
                present.idle = true;
                present = self.changed.wait(present).unwrap_or_else(PoisonError::into_inner);
                present.idle = false;
                continue;
            };
            let left = patience.saturating_sub(since.elapsed());
            if left.is_zero() {
                told = present.number;
                tell();
                continue;
            }
            let woken = self.changed.wait_timeout(present, left);
            (present, _) = woken.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.present().since = None;
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.present().over = true;
        self.0.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const SHORT: Duration = Duration::from_millis(20);
    const LONG: Duration = Duration::from_secs(60);

    /// Watches while `writes` writes, and says how often was told.
    fn told(patience: Duration, writes: impl FnOnce(&Stopwatch, &mpsc::Receiver<()>)) -> usize {
        let watched = Arc::new(Stopwatch::default());
        let (tell, told) = mpsc::channel();
        std::thread::scope(|scope| {
            let ending = Ending(Arc::clone(&watched));
            let watching = scope.spawn(|| {
                let mut count = 0;
                watched.watch(patience, || {
                    count += 1;
                    tell.send(()).unwrap();
                });
                count
            });
            writes(&watched, &told);
            drop(ending);
            watching.join().unwrap()
        })
    }

    #[test]
    fn each_write_that_hangs_is_told_of_once_while_it_does() {
        let count = told(SHORT, |watched, told| {
            for _ in 0..3 {
                let _under_way = watched.begin();
                told.recv_timeout(LONG).unwrap();
                assert!(told.recv_timeout(SHORT * 3).is_err(), "it is told once");
            }
        });
        assert_eq!(count, 3);
    }

    #[test]
    fn many_quick_writes_are_told_of_never_and_the_slow_one_after_them_is() {
        let quick = |watched: &Stopwatch| (0..10_000).for_each(|_| drop(watched.begin()));
        assert_eq!(told(LONG, |watched, _| quick(watched)), 0);
        let count = told(SHORT * 10, |watched, told| {
            quick(watched);
            let _under_way = watched.begin();
            told.recv_timeout(LONG).unwrap();
        });
        assert_eq!(count, 1);
    }
}
