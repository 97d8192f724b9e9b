//! Time, passed in.

use std::future::Future;
use std::pin::Pin;
use std::time::{Duration, SystemTime};

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
}

/// The operating system's clock.
///
/// `sleep_until` looks at the wall clock at least twice a second, since timers of the runtime neither count
/// suspended time nor follow a stepped clock. One sleeper a component, not one a connection.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

/// A clock that is slewed goes back by less than this; one that goes back by more was set.
const STEP_NOTICED: Duration = Duration::from_secs(1);
/// The longest nap between two looks at the wall clock.
const NAP_MAX: Duration = Duration::from_millis(500);

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
                tokio::time::sleep(at.since(last).min(NAP_MAX)).await;
                let now = self.now();
                if now + STEP_NOTICED < last {
                    return;
                }
                last = now;
            }
        })
    }
}
