//! Whether the clock may be believed.

use std::sync::atomic::{AtomicI64, Ordering};

use countersign_identity::{Code, SKEW_ALLOWED, Timestamp};

use crate::refusal::Refused;

/// The highest time that the log or this process has seen. While the clock lies behind it by more than the
/// allowed skew, nothing is issued: such certificates would begin in a past that was already written.
#[derive(Debug)]
pub(crate) struct TimeGuard {
    highest: AtomicI64,
}

impl TimeGuard {
    /// Begins with the time of the log's last entry.
    pub(crate) fn new(highest: Timestamp) -> Self {
        Self { highest: AtomicI64::new(highest.micros()) }
    }

    /// Something was recorded at this time.
    pub(crate) fn recorded(&self, at: Timestamp) {
        self.highest.fetch_max(at.micros(), Ordering::Relaxed);
    }

    /// The highest time that was seen, `now` included: for what must happen whatever the clock says, and must not end early.
    pub(crate) fn highest(&self, now: Timestamp) -> Timestamp {
        now.max(Timestamp::from_micros(self.highest.load(Ordering::Relaxed)))
    }

    /// The time, if it may be believed.
    ///
    /// # Errors
    /// `not-ready` while the clock is behind.
    pub(crate) fn trusted(&self, now: Timestamp) -> Result<Timestamp, Refused> {
        let highest = Timestamp::from_micros(self.highest.load(Ordering::Relaxed));
        if now + SKEW_ALLOWED < highest {
            return Err(Refused::new(
                Code::NotReady,
                format!(
                    "the clock says {now}, but the log already holds an entry of {highest}: nothing is \
                     issued until the clock is set right"
                ),
            ));
        }
        Ok(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clock_behind_the_log_issues_nothing() {
        let guard = TimeGuard::new(Timestamp::from_secs(1_000_000));
        assert!(guard.trusted(Timestamp::from_secs(999_940)).is_ok());
        assert_eq!(guard.trusted(Timestamp::from_secs(999_939)).unwrap_err().code, Code::NotReady);
        guard.recorded(Timestamp::from_secs(2_000_000));
        guard.recorded(Timestamp::from_secs(1_500_000));
        assert!(guard.trusted(Timestamp::from_secs(1_999_000)).is_err());
    }
}
