//! Time, passed in.

use std::future::Future;
use std::pin::Pin;
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime};

use crate::Timestamp;

/// What [`Clock::sleep_until`] returns.
pub type Sleep<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// The one clock of a process, for validity and for waiting.
pub trait Clock: Send + Sync + 'static {
    /// The present moment.
    fn now(&self) -> Timestamp;

    /// Waits until `now()` is at or after the moment, also over a suspended machine. Ends early when the clock is set
    /// back meanwhile, since the moment was reckoned on a clock that is no more: the caller looks again.
    fn sleep_until(&self, at: Timestamp) -> Sleep<'_>;

    /// How long this clock has run, whatever it was set to meanwhile: it tells a clock that was set from time that has
    /// passed. It need not count while the machine is suspended.
    fn ran(&self) -> Duration;

    /// A moment about so long from now, for work that is done again and again and may be done a little earlier. A clock may
    /// choose one at which it wakes others too: to wake once for all of them costs a fraction of what it costs to wake for
    /// each.
    fn about(&self, span: Duration) -> Timestamp {
        self.now() + self.beat(span)
    }

    /// How long it is until such a moment: at most `span`, and nothing only if that is nothing.
    fn beat(&self, span: Duration) -> Duration {
        span
    }
}

/// The operating system's clock.
///
/// `sleep_until` looks at the wall clock at least twice a second, since timers of the runtime neither count
/// suspended time nor follow a stepped clock. One sleeper a component, not one a connection; all of them look at the same
/// moments, the process's beats, which come twice a second, so that it wakes once for all of them.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

/// A clock that is slewed goes back by less than this; one that goes back by more was set.
const STEP_NOTICED: Duration = Duration::from_secs(1);
/// The time between two looks at the wall clock, and so between two beats.
const BEAT: Duration = Duration::from_millis(500);
/// Who would be woken so shortly before a beat is woken at it.
const NEARLY: Duration = Duration::from_millis(2);

fn since_first_beat() -> Duration {
    static FIRST: OnceLock<Instant> = OnceLock::new();
    FIRST.get_or_init(Instant::now).elapsed()
}

/// How long it takes to the last beat within `span`, beginning so long after the first; all of a span without one.
fn beat_within(span: Duration, since_first: Duration) -> Duration {
    let end = since_first.saturating_add(span);
    let over = Duration::from_nanos_u128(end.as_nanos() % BEAT.as_nanos());
    // What is as good as now is no rest.
    if over + NEARLY < span { span - over } else { span }
}

/// How long to nap for the rest of a sleep, beginning so long after the first beat.
fn nap(rest: Duration, since_first: Duration) -> Duration {
    let over = Duration::from_nanos_u128(since_first.as_nanos() % BEAT.as_nanos());
    let beat = BEAT - over;
    if rest + NEARLY < beat { rest } else { beat }
}

impl SystemClock {
    /// The clock of this machine.
    pub const fn new() -> Self {
        Self
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let micros = match SystemTime::now().duration_since(SystemTime::UNIX_EPOCH) {
            Ok(after) => i64::try_from(after.as_micros()).unwrap_or(i64::MAX),
            Err(before) => {
                i64::try_from(before.duration().as_micros()).map_or(i64::MIN, |micros| -micros)
            }
        };
        Timestamp::from_micros(micros)
    }

    fn sleep_until(&self, at: Timestamp) -> Sleep<'_> {
        Box::pin(async move {
            let mut last = self.now();
            while last < at {
                tokio::time::sleep(nap(at.since(last), since_first_beat())).await;
                let now = self.now();
                if now + STEP_NOTICED < last {
                    return;
                }
                last = now;
            }
        })
    }

    fn ran(&self) -> Duration {
        since_first_beat()
    }

    fn about(&self, span: Duration) -> Timestamp {
        // A little before, so that it has come with the beat, whichever of the two clocks was read first.
        self.now() + self.beat(span).saturating_sub(NEARLY / 2)
    }

    fn beat(&self, span: Duration) -> Duration {
        beat_within(span, since_first_beat())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn whoever_looks_again_and_again_waits_for_the_last_beat_within_the_span() {
        for (span, since_first, wait) in [
            (500, 0, 500),
            (500, 3, 497),
            (500, 499, 500),
            (500, 497, 3),
            (1000, 1003, 997),
            (1000, 1400, 600),
            (2000, 250, 1750),
            // None comes within these.
            (100, 0, 100),
            (100, 300, 100),
            (100, 450, 50),
        ] {
            let found = beat_within(millis(span), millis(since_first));
            assert_eq!(found, millis(wait), "{span} ms, from {since_first} ms on");
        }
    }

    #[test]
    fn naps_end_at_beats_or_when_the_sleep_does() {
        for (rest, since_first, wait) in [
            (10_000, 0, 500),
            (10_000, 123, 377),
            (100, 123, 100),
            (375, 123, 377),
            (374, 123, 374),
            (500, 123, 377),
        ] {
            let found = nap(millis(rest), millis(since_first));
            assert_eq!(found, millis(wait), "{rest} ms are left, from {since_first} ms on");
        }
    }

    #[tokio::test]
    async fn no_sleep_ends_before_its_moment() {
        let clock = SystemClock::new();
        for millis in [1, 30, 600] {
            let at = clock.now() + Duration::from_millis(millis);
            clock.sleep_until(at).await;
            assert!(at <= clock.now(), "{millis} ms");
        }
    }

    #[test]
    fn what_is_due_at_about_the_same_time_is_woken_at_the_same_beat() {
        for begun in (1000..1500).map(millis) {
            // As `about` has it: a little before the beat.
            let rest = beat_within(millis(1000), begun) - NEARLY / 2;
            let mut now = begun;
            while now < begun + rest {
                now += nap(begun + rest - now, now);
            }
            assert_eq!(now, millis(2000), "begun {begun:?} after the first beat");
        }
    }
}
