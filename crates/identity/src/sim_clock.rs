//! A clock whose time passes only when it is told to.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use crate::{Clock, Sleep, Timestamp};

/// Simulated time: it stands still until [`advance`](Self::advance) or [`set`](Self::set) moves it,
/// and then wakes everyone whose moment has come. It may be set back, as an operator's clock may.
///
/// A test shares it as `Arc<SimClock>` with the code that it drives.
///
/// ```
/// # use countersign_identity::{Clock, SimClock, Timestamp};
/// # use std::time::Duration;
/// let clock = SimClock::new(Timestamp::from_secs(100));
/// clock.advance(Duration::from_secs(5));
/// assert_eq!(clock.now(), Timestamp::from_secs(105));
/// ```
#[derive(Debug)]
pub struct SimClock {
    now: watch::Sender<Timestamp>,
    ran: Mutex<Duration>,
    sleepers: Mutex<Sleepers>,
}

#[derive(Debug, Default)]
struct Sleepers {
    next: u64,
    due: BTreeMap<u64, Timestamp>,
}

impl SimClock {
    /// A clock that shows `start`.
    pub fn new(start: Timestamp) -> Self {
        Self { now: watch::Sender::new(start), ran: Mutex::default(), sleepers: Mutex::default() }
    }

    /// Lets this much time pass.
    pub fn advance(&self, span: Duration) {
        // A number is whole, so a panic elsewhere does not spoil it.
        *self.ran.lock().unwrap_or_else(PoisonError::into_inner) += span;
        self.now.send_modify(|now| *now = *now + span);
    }

    /// Steps to this moment, which may lie before the present one.
    pub fn set(&self, moment: Timestamp) {
        self.now.send_replace(moment);
    }

    /// The earliest moment that somebody sleeps for: where a simulation steps to next.
    pub fn next_wake(&self) -> Option<Timestamp> {
        self.sleepers().due.values().min().copied()
    }

    fn sleepers(&self) -> std::sync::MutexGuard<'_, Sleepers> {
        // The map is whole after every statement, so a panic elsewhere does not spoil it.
        self.sleepers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, at: Timestamp) -> Asleep<'_> {
        let mut sleepers = self.sleepers();
        let number = sleepers.next;
        sleepers.next += 1;
        sleepers.due.insert(number, at);
        Asleep { clock: self, number }
    }
}

/// One sleeper; gone when it wakes or is given up.
struct Asleep<'a> {
    clock: &'a SimClock,
    number: u64,
}

impl Drop for Asleep<'_> {
    fn drop(&mut self) {
        self.clock.sleepers().due.remove(&self.number);
    }
}

impl Clock for SimClock {
    fn now(&self) -> Timestamp {
        *self.now.borrow()
    }

    fn ran(&self) -> Duration {
        *self.ran.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sleep_until(&self, at: Timestamp) -> Sleep<'_> {
        let mut now = self.now.subscribe();
        Box::pin(async move {
            let _asleep = self.enter(at);
            // An error would mean that the sender is gone, and `self` holds it.
            now.wait_for(|now| at <= *now).await.map(|_| ()).unwrap_or(());
        })
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn polled(sleep: std::pin::Pin<&mut impl Future<Output = ()>>) -> bool {
        sleep.poll(&mut Context::from_waker(Waker::noop())) == Poll::Ready(())
    }

    #[test]
    fn sleepers_wake_when_their_moment_has_come_and_not_before() {
        let clock = SimClock::new(Timestamp::from_secs(100));
        let mut sleep = pin!(clock.sleep_until(Timestamp::from_secs(110)));
        assert!(!polled(sleep.as_mut()));
        clock.advance(Duration::from_secs(9));
        assert!(!polled(sleep.as_mut()));
        clock.advance(Duration::from_secs(1));
        assert!(polled(sleep.as_mut()));
    }

    #[test]
    fn a_clock_set_back_keeps_its_sleepers_waiting() {
        let clock = SimClock::new(Timestamp::from_secs(100));
        let mut sleep = pin!(clock.sleep_until(Timestamp::from_secs(110)));
        clock.set(Timestamp::from_secs(50));
        clock.advance(Duration::from_secs(20));
        assert!(!polled(sleep.as_mut()));
        clock.set(Timestamp::from_secs(110));
        assert!(polled(sleep.as_mut()));
    }

    #[test]
    fn the_next_wake_is_the_earliest_sleeper_still_asleep() {
        let clock = SimClock::new(Timestamp::from_secs(0));
        assert_eq!(clock.next_wake(), None);
        let mut late = pin!(clock.sleep_until(Timestamp::from_secs(9)));
        assert!(!polled(late.as_mut()));
        {
            let mut early = pin!(clock.sleep_until(Timestamp::from_secs(5)));
            assert!(!polled(early.as_mut()));
            assert_eq!(clock.next_wake(), Some(Timestamp::from_secs(5)));
        }
        assert_eq!(clock.next_wake(), Some(Timestamp::from_secs(9)));
    }

    #[test]
    fn a_past_moment_needs_no_waiting() {
        let clock = SimClock::new(Timestamp::from_secs(100));
        assert!(polled(pin!(clock.sleep_until(Timestamp::from_secs(100))).as_mut()));
        assert_eq!(clock.next_wake(), None);
    }
}
