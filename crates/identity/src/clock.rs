//! Time, passed in.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime};

use crate::Timestamp;

/// What [`Clock::sleep_until`] returns.
pub type Sleep<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// The one clock of a process, for validity and for waiting.
pub trait Clock: Send + Sync + 'static {
    /// The present moment.
    fn now(&self) -> Timestamp;

    /// Waits until `now()` is at or after the moment, also over a suspended machine and a stepped clock.
    fn sleep_until(&self, at: Timestamp) -> Sleep<'_>;
}

/// The operating system's clock.
///
/// `sleep_until` looks at the wall clock at least twice a second, since timers of the runtime neither count
/// suspended time nor follow a stepped clock. One sleeper a component, not one a connection.
#[derive(Debug, Default)]
pub struct SystemClock {
    highest: AtomicI64,
}

/// The longest nap between two looks at the wall clock.
const NAP_MAX: Duration = Duration::from_millis(500);

impl SystemClock {
    /// Reads the clock for the first time.
    pub fn new() -> Self {
        let clock = Self::default();
        clock.now();
        clock
    }

    /// The highest time that this process has seen; later than `now()` after the clock was set back.
    pub fn highest(&self) -> Timestamp {
        Timestamp::from_micros(self.highest.load(Ordering::Relaxed))
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
        self.highest.fetch_max(micros, Ordering::Relaxed);
        Timestamp::from_micros(micros)
    }

    fn sleep_until(&self, at: Timestamp) -> Sleep<'_> {
        Box::pin(async move {
            loop {
                let left = at.since(self.now());
                if left.is_zero() {
                    return;
                }
                tokio::time::sleep(left.min(NAP_MAX)).await;
            }
        })
    }
}
